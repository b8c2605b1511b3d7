//! What holds a namespace's data: a whole drive, or a volume of the pool on one.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;

use bowline_api::{Failure, Reason};
use bowline_block::{
    Allocation, Completions, Device, DeviceEvent, Geometry, Io, IoError, MediumView, MemDevice,
};
use bowline_engine_kernel::OpenOptions;
use bowline_engine_kernel::{Backing as KernelBacking, Buffered, KernelDevice, OpenError};
use bowline_engine_spdk::{Source, Spdk, SpdkBacking, SpdkDevice, SpdkError};
use bowline_nvme::Nanos;
use bowline_pool::Volume;
use bowline_pool::format::layout::SUPERBLOCK_OFFSETS;
use bowline_pool::format::superblock::{CopyError, SUPERBLOCK_BYTES, Superblock};
use bowline_reactor::Reactor;

use crate::config::{BackingConfig, MEMORY_BLOCK_BYTES, Serve};
use crate::drive::Drive;

/// Every device a namespace may have.
#[allow(
    clippy::large_enum_variant,
    reason = "few, and a box would cost every I/O a hop"
)]
pub(crate) enum Backing {
    /// A whole one.
    Drive(Drive),
    /// A part of the pool on one.
    Volume(Volume<Drive>),
}

/// An open and locked backing on its way to the reactor that will own it.
pub(crate) enum Opened {
    /// It is there already.
    There,
    Memory {
        size_bytes: u64,
        block_bytes: u32,
    },
    Kernel(Box<KernelBacking>),
    Spdk(SpdkBacking),
}

/// Opens and locks a backing. May block, so never on a reactor.
pub(crate) fn open(
    config: &BackingConfig,
    block_bytes: Option<u32>,
    spdk: Option<&Spdk>,
) -> Result<Opened, Failure> {
    match config {
        BackingConfig::Spdk(source) => {
            let spdk = spdk.ok_or_else(|| explain_spdk(source, &not_started()))?;
            let backing = spdk.find(source);
            let backing = backing.map_err(|error| explain_spdk(source, &error))?;
            let own = backing.geometry().block_bytes;
            match block_bytes {
                Some(asked) if asked != own => Err(explain_spdk(source, &other_blocks(asked, own))),
                _ => Ok(Opened::Spdk(backing)),
            }
        }
        BackingConfig::Memory { size_bytes } => {
            let block_bytes = block_bytes.unwrap_or(MEMORY_BLOCK_BYTES);
            let machine_bytes = memory_of_machine();
            if *size_bytes > machine_bytes {
                tracing::warn!(
                    size_bytes,
                    machine_bytes,
                    "more memory is to be served than the machine has: it is taken as it is \
                     written to, and the process will be killed when there is none left"
                );
            }
            Ok(Opened::Memory {
                size_bytes: *size_bytes,
                block_bytes,
            })
        }
        BackingConfig::Path { path, shared } => {
            let options = OpenOptions {
                block_bytes,
                shared: *shared,
                ..OpenOptions::new(path)
            };
            let backing = KernelBacking::open(&options)
                .map_err(|error| explain_open(path, *shared, &error))?;
            log_truth(&backing);
            Ok(Opened::Kernel(Box::new(backing)))
        }
    }
}

/// The block of the pool in a file, which could have either. What the file is turns out later; a
/// block device says itself what its blocks are.
pub(crate) fn pool_block_bytes(config: &BackingConfig, serve: Serve) -> Option<u32> {
    let path = config.path().filter(|_| serve != Serve::Whole)?;
    // Opening a pipe would wait for whoever writes to it.
    if !path.metadata().ok()?.is_file() {
        return None;
    }
    let file = File::open(path).ok()?;
    SUPERBLOCK_OFFSETS.iter().find_map(|offset| {
        let mut copy = [0; SUPERBLOCK_BYTES];
        file.read_exact_at(&mut copy, *offset).ok()?;
        Some(Superblock::decode(&copy).ok()?.layout.block_bytes)
    })
}

/// Refuses a device or a file that is a pool, or was one: hosts would overwrite it.
pub(crate) fn refuse_pool(config: &BackingConfig) -> Result<(), Failure> {
    let Some(path) = config.path() else {
        return Ok(());
    };
    let what = || format!("{} cannot be served", path.display());
    let file = File::open(path)
        .map_err(|error| Failure::new(Reason::BackingUnusable, what()).cause(error.to_string()))?;
    for offset in SUPERBLOCK_OFFSETS {
        let mut copy = [0; SUPERBLOCK_BYTES];
        match file.read_exact_at(&mut copy, offset) {
            Ok(()) => {}
            // Too short to have a copy.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => continue,
            Err(error) => {
                let cause = format!("whether it is a pool cannot be read: {error}");
                return Err(Failure::new(Reason::BackingUnusable, what()).cause(cause));
            }
        }
        let cause = match Superblock::decode(&copy) {
            Err(CopyError::Absent) => continue,
            Ok(superblock) => format!(
                "it is pool {}, which hosts would overwrite",
                superblock.uuid
            ),
            Err(error) => format!("it is or was a pool, which hosts would overwrite: {error}"),
        };
        return Err(Failure::new(Reason::BackingUnusable, what()).cause(cause).hint(
            "serve its volumes with `bowline dataplane --device`, give it up with `bowline pool \
             erase`, or say that it is to be served as a whole: --raw (`raw` over the API)",
        ));
    }
    Ok(())
}

impl Opened {
    /// Makes the device, on the reactor that owns it from now on. `there` is what was left there.
    pub(crate) fn attach(self, cx: &mut Reactor, there: Option<Drive>) -> io::Result<Drive> {
        match self {
            Self::There => there.ok_or_else(|| io::ErrorKind::NotFound.into()),
            Self::Memory {
                size_bytes,
                block_bytes,
            } => MemDevice::new(size_bytes, block_bytes).map(Drive::Memory),
            Self::Kernel(backing) => KernelDevice::new(*backing, cx.disk()).map(Drive::Kernel),
            Self::Spdk(backing) => {
                let waker = cx.waker();
                SpdkDevice::open(backing, cx.memory(), move || waker.wake()).map(Drive::Spdk)
            }
        }
    }

    /// What was opened, by the name that it has there.
    pub(crate) fn named(&self, config: BackingConfig) -> BackingConfig {
        match self {
            Self::Spdk(backing) => BackingConfig::Spdk(Source::Bdev(backing.name().to_owned())),
            Self::There | Self::Memory { .. } | Self::Kernel(_) => config,
        }
    }
}

impl Device for Backing {
    fn geometry(&self) -> Geometry {
        match self {
            Self::Drive(device) => device.geometry(),
            Self::Volume(device) => device.geometry(),
        }
    }

    fn depth_max(&self) -> usize {
        match self {
            Self::Drive(device) => device.depth_max(),
            Self::Volume(device) => device.depth_max(),
        }
    }

    fn try_submit(&mut self, io: Io) -> Result<(), Io> {
        match self {
            Self::Drive(device) => device.try_submit(io),
            Self::Volume(device) => device.try_submit(io),
        }
    }

    fn is_immediate(&self) -> bool {
        match self {
            Self::Drive(device) => device.is_immediate(),
            Self::Volume(device) => device.is_immediate(),
        }
    }

    fn read_now(&mut self, lba: u64, into: &mut [u8]) -> Result<(), IoError> {
        match self {
            Self::Drive(device) => device.read_now(lba, into),
            Self::Volume(device) => device.read_now(lba, into),
        }
    }

    fn write_now(&mut self, lba: u64, data: &[u8]) -> Result<(), IoError> {
        match self {
            Self::Drive(device) => device.write_now(lba, data),
            Self::Volume(device) => device.write_now(lba, data),
        }
    }

    fn is_write_sure(&self, lba: u64, bytes: usize) -> bool {
        match self {
            Self::Drive(device) => device.is_write_sure(lba, bytes),
            Self::Volume(device) => device.is_write_sure(lba, bytes),
        }
    }

    fn view_now(&self, lba: u64, bytes: usize) -> Result<MediumView, IoError> {
        match self {
            Self::Drive(device) => device.view_now(lba, bytes),
            Self::Volume(device) => device.view_now(lba, bytes),
        }
    }

    fn poll(&mut self, now: Nanos, out: &mut Completions) {
        match self {
            Self::Drive(device) => device.poll(now, out),
            Self::Volume(device) => device.poll(now, out),
        }
    }

    fn allocation(&self) -> Option<Rc<dyn Fn() -> Allocation>> {
        match self {
            Self::Drive(device) => device.allocation(),
            Self::Volume(device) => device.allocation(),
        }
    }

    fn poll_timeout(&self) -> Option<Nanos> {
        match self {
            Self::Drive(device) => device.poll_timeout(),
            Self::Volume(device) => device.poll_timeout(),
        }
    }

    fn poll_event(&mut self) -> Option<DeviceEvent> {
        match self {
            Self::Drive(device) => device.poll_event(),
            Self::Volume(device) => device.poll_event(),
        }
    }

    fn refresh(&mut self) -> io::Result<Geometry> {
        match self {
            Self::Drive(device) => device.refresh(),
            Self::Volume(device) => device.refresh(),
        }
    }
}

fn memory_of_machine() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram.saturating_mul(u64::from(info.mem_unit))
}

/// What an operator should know about a device before trusting it.
fn log_truth(backing: &KernelBacking) {
    let info = backing.info();
    let path = info.path.display();
    match info.buffered {
        None => {}
        Some(Buffered::OpenRefused | Buffered::FileRefused) => tracing::warn!(
            %path,
            "direct I/O is not possible here: data goes through the page cache, and the \
             namespace says that it has a volatile write cache"
        ),
    }
    if info.unused_bytes > 0 {
        tracing::warn!(
            %path, unused_bytes = info.unused_bytes,
            "the end of the device makes no whole block and is not used"
        );
    }
    if info.may_tear() {
        tracing::warn!(
            %path, block_bytes = info.block_bytes, physical_block_bytes = info.physical_block_bytes,
            "a power cut may leave a block half written: the medium writes smaller sectors; blocks \
             of the sector's size would be whole"
        );
    }
}

/// The engine's messages say what is wrong, and after a semicolon what to do.
fn explain_open(path: &Path, shared: bool, error: &OpenError) -> Failure {
    let text = error.to_string();
    let (cause, hint) = text
        .split_once("; ")
        .unwrap_or((&text, "check the device and the path"));
    let reason = match error {
        OpenError::Busy { .. } => Reason::BackingBusy,
        _ => Reason::BackingUnusable,
    };
    let hint = match error {
        // The engine could open it for reading; a data plane has no use for that yet.
        OpenError::ReadOnly { .. } => {
            "lift the protection (`blockdev --setrw`, `mount -o remount,rw`), or name another path"
        }
        OpenError::Permission { .. } if rustix::process::geteuid().is_root() => {
            "root may not either: look for an immutable file (`lsattr`), a security policy, or a \
             capability that the container lacks"
        }
        OpenError::Busy { .. } if shared => {
            "only data planes share a device, and all of them must say so: unmount it, or start \
             the other data plane with --shared-device too"
        }
        _ => hint,
    };
    Failure::new(reason, format!("{} cannot be served", path.display()))
        .cause(cause)
        .hint(hint)
}

fn explain_spdk(source: &Source, error: &SpdkError) -> Failure {
    let reason = if error.is_busy {
        Reason::BackingBusy
    } else {
        Reason::BackingUnusable
    };
    Failure::new(reason, format!("{source} cannot be served"))
        .cause(&error.cause)
        .hint(&error.hint)
}

fn not_started() -> SpdkError {
    SpdkError {
        is_busy: false,
        cause: "this data plane runs without SPDK".to_owned(),
        hint: "start it with --engine spdk".to_owned(),
    }
}

fn other_blocks(asked: u32, own: u32) -> SpdkError {
    SpdkError {
        is_busy: false,
        cause: format!("its blocks are {own} bytes long, not {asked}"),
        hint: "leave --block-size out, or format the drive with other blocks".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_not_told_to_become_root() {
        let path = Path::new("/disk");
        let error = OpenError::Permission {
            path: path.to_owned(),
            access: "reading and writing",
        };
        let is_root = rustix::process::geteuid().is_root();
        let hint = explain_open(path, false, &error).hint;
        assert_eq!(hint.contains("lsattr"), is_root, "{hint}");
    }
}
