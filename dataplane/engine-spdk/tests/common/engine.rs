//! Disks that are malloc devices of SPDK, or of its double.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Mutex, OnceLock};
use std::thread;

use bowline_block::{Completions, Device, DeviceEvent, Geometry, Io, PoolMemory};
use bowline_engine_spdk::{BUILD, Build, Options, Source, Spdk, SpdkDevice};
use bowline_nvme::Nanos;
use bowline_reactor::Reactor;
use bowline_spdk_rs::Config;

use crate::common::device::TestDevice;
use crate::common::until;

/// Enough for the disks and buffers of as many tests as run at once. It is taken where it is touched.
const MEMORY_MIB: u32 = 4096;

/// The library, once in the process, which outlives every test.
struct Library {
    spdk: Spdk,
    /// Takes the names of devices that nobody has any more.
    unused: Mutex<Sender<String>>,
}

fn library() -> &'static Library {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let is_real = cfg!(feature = "spdk");
        assert_eq!(BUILD == Build::Spdk, is_real, "named as what it is");
        let spdk = Spdk::start(&Options {
            config: None,
            drives: Some(Vec::new()),
            huge_pages: false,
            memory_mib: Some(MEMORY_MIB),
        });
        let spdk = spdk.expect("SPDK starts");
        let (unused, names) = mpsc::channel::<String>();
        let deleting = spdk.clone();
        // Waits until a device is closed, which its own thread may still be about.
        thread::spawn(move || {
            for name in names {
                let which = name.clone();
                let deleted = deleting.service().call(move |it| it.remove(&which));
                let is_deleted = deleted.expect("SPDK runs").is_ok();
                assert!(is_deleted, "{name} is not deleted");
            }
        });
        Library {
            spdk,
            unused: Mutex::new(unused),
        }
    })
}

/// A disk of this many bytes, zero, which goes when it is dropped.
pub(crate) fn disk(cx: &mut Reactor, bytes: u64, block_bytes: u32) -> TestDevice {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let library = library();
    let name = format!("M{}", LAST.fetch_add(1, Ordering::Relaxed));
    let config = Config::new().malloc(&name, bytes / u64::from(block_bytes), block_bytes);
    // Disks of tests before may not have given their memory back yet.
    until("a disk is made", || {
        let config = config.clone();
        let made = library.spdk.service().call(move |it| it.configure(&config));
        made.expect("SPDK runs").ok()
    });
    let backing = library.spdk.find(&Source::Bdev(name.clone()));
    let device = {
        let waker = cx.waker();
        let backing = backing.expect("it can be served");
        SpdkDevice::open(backing, cx.memory(), move || waker.wake())
    };
    TestDevice::new(Deleted {
        device: Some(device.expect("it opens")),
        name,
    })
}

/// What buffers lie in.
pub(crate) fn memory() -> PoolMemory {
    library().spdk.memory()
}

/// A device that is deleted after it was dropped.
struct Deleted {
    device: Option<SpdkDevice>,
    name: String,
}

impl Deleted {
    fn device(&self) -> &SpdkDevice {
        self.device.as_ref().expect("not dropped yet")
    }

    fn device_mut(&mut self) -> &mut SpdkDevice {
        self.device.as_mut().expect("not dropped yet")
    }
}

impl Drop for Deleted {
    fn drop(&mut self) {
        self.device = None;
        let unused = library().unused.lock().expect("nobody panics with it");
        unused
            .send(self.name.clone())
            .expect("somebody deletes devices");
    }
}

impl Device for Deleted {
    fn geometry(&self) -> Geometry {
        self.device().geometry()
    }

    fn depth_max(&self) -> usize {
        self.device().depth_max()
    }

    fn try_submit(&mut self, io: Io) -> Result<(), Io> {
        self.device_mut().try_submit(io)
    }

    fn poll(&mut self, now: Nanos, out: &mut Completions) {
        self.device_mut().poll(now, out);
    }

    fn poll_timeout(&self) -> Option<Nanos> {
        self.device().poll_timeout()
    }

    fn poll_event(&mut self) -> Option<DeviceEvent> {
        self.device_mut().poll_event()
    }

    fn refresh(&mut self) -> io::Result<Geometry> {
        self.device_mut().refresh()
    }
}

/// Tests that bring devices of their own say nothing of this engine.
#[allow(
    unused_macros,
    reason = "every test binary uses the part that it needs"
)]
macro_rules! own_devices {
    ($($name:ident),+ $(,)?) => {};
}
#[allow(
    unused_imports,
    reason = "every test binary uses the part that it needs"
)]
pub(crate) use own_devices;
