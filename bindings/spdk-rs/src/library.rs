//! The library in this process, as all its threads share it.

use std::ffi::{CStr, CString};
use std::num::NonZeroU64;
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bowline_spdk_sys as sys;

use crate::error::Error;
use crate::memory::DmaBuffer;
use crate::thread::{Remote, Thread};

/// The version of the SPDK behind this crate, for people.
#[must_use]
pub fn version() -> &'static str {
    // SAFETY: it is a static string that ends with a NUL.
    let version = unsafe { CStr::from_ptr(sys::shim_version()) };
    version.to_str().unwrap_or("SPDK")
}

/// Whether this is the double, which keeps devices in memory and loses them with the process.
#[must_use]
pub fn is_double() -> bool {
    // SAFETY: it has no conditions.
    unsafe { sys::shim_is_double() }
}

/// How the library's environment is set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name of the process in the environment's files.
    pub name: String,
    /// Memory for DMA to set aside in MiB; none: what the library takes by itself.
    pub memory_mib: Option<u32>,
    /// Memory in huge pages. Without them no device on PCI can be used, and `memory_mib` is needed.
    pub huge_pages: bool,
    /// Where huge pages are mounted; none: where the library finds them.
    pub huge_folder: Option<String>,
    /// Devices on PCI that may be touched.
    pub pci: Pci,
}

/// The device at this address on PCI (`0000:01:00.0`) if it is bound to a driver for user space, so that
/// it can be attached: a number that is another one for what is put there after it was pulled out.
#[must_use]
pub fn bound_for_user_space(address: &str) -> Option<NonZeroU64> {
    let address = CString::new(address).ok()?;
    // SAFETY: the string lives until after the call, which has no further conditions.
    NonZeroU64::new(unsafe { sys::shim_pci_bound(address.as_ptr()) })
}

/// Devices on PCI that the library may touch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pci {
    /// None.
    None,
    /// All that are bound to a driver for user space.
    All,
    /// Those at these addresses, as `0000:01:00.0`.
    Only(Vec<String>),
}

impl Options {
    /// Huge pages, and every device on PCI that is bound for user space.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            memory_mib: None,
            huge_pages: true,
            huge_folder: None,
            pci: Pci::All,
        }
    }

    /// Ordinary pages, and nothing on PCI: for devices that are not drives of this machine.
    #[must_use]
    pub fn without_huge_pages(name: &str, memory_mib: u32) -> Self {
        Self {
            memory_mib: Some(memory_mib),
            huge_pages: false,
            pci: Pci::None,
            ..Self::new(name)
        }
    }
}

/// The library, once [started](crate::Application::start). Goes to any OS thread.
#[derive(Clone, Debug)]
pub struct Library {
    shared: Arc<Shared>,
}

/// While this lives, the environment does.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// No further threads: it ends.
    ending: bool,
    /// The threads there are.
    threads: Vec<Arc<Remote>>,
}

impl Library {
    /// Sets up environment and thread library; the calling OS thread becomes their main one.
    pub(crate) fn begin(options: &Options) -> Result<Self, Error> {
        const WHAT: &str = "SPDK's environment was not set up";
        let name = c_string(WHAT, &options.name)?;
        let huge_folder = match &options.huge_folder {
            Some(folder) => Some(c_string(WHAT, folder)?),
            None => None,
        };
        let addresses: &[String] = match &options.pci {
            Pci::Only(addresses) => addresses,
            Pci::None | Pci::All => &[],
        };
        let allowed = addresses
            .iter()
            .map(|address| c_string(WHAT, address))
            .collect::<Result<Vec<_>, _>>()?;
        let allowed: Vec<_> = allowed.iter().map(|address| address.as_ptr()).collect();
        let raw = sys::shim_env_options {
            name: name.as_ptr(),
            memory_mib: options.memory_mib.unwrap_or(0),
            no_huge: !options.huge_pages,
            // "Only" none is none, not all.
            no_pci: match &options.pci {
                Pci::None => true,
                Pci::All => false,
                Pci::Only(addresses) => addresses.is_empty(),
            },
            huge_folder: huge_folder
                .as_ref()
                .map_or(ptr::null(), |folder| folder.as_ptr()),
            pci_allowed: allowed.as_ptr(),
            pci_allowed_count: allowed.len(),
        };
        // SAFETY: the strings live until after the call, which keeps none of them.
        let result = unsafe { sys::shim_env_init(&raw const raw) };
        if result != 0 {
            return Err(refused(options, result));
        }
        // SAFETY: the environment was set up, for the first time in this process.
        let result = unsafe { sys::shim_threads_init() };
        if result != 0 {
            // SAFETY: nothing was made in it yet.
            unsafe { sys::shim_env_fini() };
            return Err(Error::of_result("SPDK's threads were not set up", result));
        }
        Ok(Self {
            shared: Arc::new(Shared {
                state: Mutex::new(State {
                    ending: false,
                    threads: Vec::new(),
                }),
            }),
        })
    }

    /// A new thread of the library, which belongs to the calling OS thread.
    ///
    /// # Errors
    /// When this OS thread has one, the library is being stopped, or there is no memory.
    pub fn thread(&self, name: &str) -> Result<Thread, Error> {
        Thread::new(self, name)
    }

    /// Memory for DMA: zeroed, at least `bytes` long, at a multiple of `align`.
    ///
    /// # Errors
    /// When `bytes` is 0 or `align` no power of two, or there is no such memory left.
    pub fn dma(&self, bytes: usize, align: usize) -> Result<DmaBuffer, Error> {
        DmaBuffer::new(self, bytes, align)
    }

    /// Takes note of a new thread; not once the library is ending.
    pub(crate) fn join(&self, thread: &Arc<Remote>) -> Result<(), Error> {
        let mut state = self.state();
        if state.ending {
            let what = format!("thread {} was not made", thread.name());
            return Err(Error::new(what, "SPDK is being stopped"));
        }
        state.threads.push(Arc::clone(thread));
        Ok(())
    }

    /// Forgets a thread that was destroyed.
    pub(crate) fn leave(&self, thread: &Arc<Remote>) {
        let mut state = self.state();
        state.threads.retain(|other| !Arc::ptr_eq(other, thread));
    }

    /// Has all threads look now, and again soon: the library is about to send something from one to
    /// another, or has just done so.
    pub(crate) fn stir(&self) {
        let threads = self.state().threads.clone();
        for thread in threads {
            thread.stir();
        }
    }

    /// Lets no further thread begin.
    pub(crate) fn close(&self) {
        self.state().ending = true;
    }

    /// Names of the threads there are.
    pub(crate) fn threads(&self) -> Vec<String> {
        let state = self.state();
        let names = state.threads.iter().map(|thread| thread.name().to_owned());
        names.collect()
    }

    /// Ends what `begin` began, on the same OS thread, after all threads are gone. The environment
    /// stays, for the rest of the process, if somebody still has the library or memory of it.
    pub(crate) fn end(self) {
        // SAFETY: no thread is left, and none can be made any more.
        unsafe { sys::shim_threads_fini() };
        if Arc::into_inner(self.shared).is_some() {
            // SAFETY: nobody has anything of it, and nobody can get anything of it: this was the
            // last way to it.
            unsafe { sys::shim_env_fini() };
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is a single step, so a panic leaves nothing half done.
        self.shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn refused(options: &Options, result: i32) -> Error {
    let error = Error::of_result("SPDK's environment was not set up", result);
    if result == -libc::EALREADY {
        return error.help("it can be set up only once in a process");
    }
    if options.huge_pages {
        return error.help(
            "it wants root, and free huge pages: see HugePages_Free in /proc/meminfo, and write \
             their number to /proc/sys/vm/nr_hugepages; its log says more",
        );
    }
    error.help("its log says more")
}

pub(crate) fn c_string(what: &str, text: &str) -> Result<CString, Error> {
    CString::new(text).map_err(|_| Error::new(what, format!("{text:?} has a NUL inside")))
}
