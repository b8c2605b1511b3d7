//! The library in this process: its start, its devices, its memory.

use std::collections::BTreeMap;
use std::io;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bowline_block::{Geometry, PoolMemory};
use bowline_spdk_rs::{
    self as spdk, BdevInfo, Config, Library, LogLevel, NvmeController, Operation, Pci, Service,
};
use serde_json::json;

use crate::drives::{self, Attached, Drive, Lost};
use crate::geometry::geometry;
use crate::memory;
use crate::options::{Options, Source, SpdkError};
use crate::request::Abilities;

/// Memory to set aside without huge pages, in MiB. It is taken where it is touched.
const PLAIN_MEMORY_MIB: u32 = 1024;

/// What the library does with drives, where nobody configured it: as a kernel would. A command that
/// is not answered for 30 seconds has its controller reset, and its admin queue is looked at ten times a
/// second.
const TIMEOUT_US: u64 = 30_000_000;
const ADMIN_POLL_US: u64 = 100_000;

/// SPDK in this process. Clones are the same; with the last one the library ends, which waits until
/// the devices are dropped: keep one that does not belong to a reactor.
#[derive(Clone, Debug)]
pub struct Spdk {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    service: Service,
    drives: Mutex<Drives>,
}

#[derive(Debug, Default)]
struct Drives {
    /// Those that were attached, by PCI address, which is their name.
    attached: BTreeMap<String, NvmeController>,
    /// Who looks for those that are lost.
    watcher: Option<Sender<Lost>>,
}

/// A device of the library on its way to its reactor.
#[derive(Clone, Debug)]
pub struct SpdkBacking {
    pub(crate) library: Library,
    pub(crate) name: String,
    /// Another one for what else may have this name later: the library makes one up where there is none.
    pub(crate) uuid: [u8; 16],
    pub(crate) geometry: Geometry,
    pub(crate) abilities: Abilities,
    pub(crate) compare_blocks: u32,
    /// For devices of drives that were attached here.
    pub(crate) drive: Option<Arc<Drive>>,
}

impl SpdkBacking {
    /// What it is.
    #[must_use]
    pub const fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The name by which the library knows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Spdk {
    /// Starts the library and runs its configuration. Blocks; once in a process.
    ///
    /// # Errors
    /// What the library says, and what to do about it. Its log says more.
    pub fn start(options: &Options) -> Result<Self, SpdkError> {
        spdk::log_to_tracing(LogLevel::Notice);
        let config = match &options.config {
            Some(path) => Config::from_file(path).map_err(|error| failed(&error, CONFIG_HINT))?,
            None => {
                let params = json!({
                    "timeout_us": TIMEOUT_US,
                    "action_on_timeout": "reset",
                    "nvme_adminq_poll_period_us": ADMIN_POLL_US,
                });
                Config::new().method("bdev", "bdev_nvme_set_options", &params)
            }
        };
        let service = Service::start(environment(options), config)
            .map_err(|error| failed(&error, START_HINT))?;
        if spdk::is_double() {
            tracing::warn!(
                "this is a DOUBLE of SPDK, for checks: no drive is touched, and all data is in \
                 memory of this process and goes with it"
            );
        }
        tracing::info!(version = spdk::version(), "SPDK started");
        Ok(Self {
            inner: Arc::new(Inner {
                service,
                drives: Mutex::default(),
            }),
        })
    }

    /// Looks for a device, attaching a drive that is not yet. Blocks.
    ///
    /// # Errors
    /// When there is none, or it cannot be served.
    pub fn find(&self, source: &Source) -> Result<SpdkBacking, SpdkError> {
        let name = match source {
            Source::Drive(address) => self.first_namespace(address)?,
            Source::Bdev(name) => name.clone(),
        };
        let devices = self.devices()?;
        let Some(info) = devices.iter().find(|info| info.name == name) else {
            return Err(unknown(&name, &devices));
        };
        let geometry = geometry(info)?;
        let abilities = Abilities {
            is_drive: info.module == DRIVES,
            block_bytes: info.block_bytes,
            flush: info.supports(Operation::Flush),
            write_cache: geometry.volatile_cache,
            write_zeroes: info.supports(Operation::WriteZeroes),
            reset: info.supports(Operation::Reset),
        };
        if !abilities.flush {
            tracing::warn!(
                device = name,
                "SPDK cannot flush this device: whether a completed write outlives a power cut is \
                 up to what is behind it"
            );
        }
        let compare = info.supports(Operation::CompareAndWrite);
        Ok(SpdkBacking {
            library: self.inner.service.library().clone(),
            drive: self.drive_of(&name)?,
            name,
            uuid: info.uuid,
            geometry,
            abilities,
            compare_blocks: if compare {
                info.compare_and_write_blocks
            } else {
                0
            },
        })
    }

    /// The library itself, for what is not the engine's: its configuration, its other devices.
    #[must_use]
    pub fn service(&self) -> &Service {
        &self.inner.service
    }

    /// Where pools of buffers for its devices get their memory from.
    #[must_use]
    pub fn memory(&self) -> PoolMemory {
        memory::source(self.inner.service.library().clone())
    }

    /// Leaves the library as it is, for a process that ends now whatever is still open.
    pub fn abandon(self) {
        std::mem::forget(self);
    }

    fn devices(&self) -> Result<Vec<BdevInfo>, SpdkError> {
        let listed = self.inner.service.call(spdk::Application::bdevs);
        listed.map_err(|error| failed(&error, LOG_HINT))
    }

    /// Takes over a drive, and gives the name of its first namespace.
    fn first_namespace(&self, address: &str) -> Result<String, SpdkError> {
        let controller = NvmeController::pcie(address, address)
            .map_err(|error| failed(&error, "`lspci -D` lists those of drives"))?;
        let mut drives = self.drives();
        if drives.watcher.is_none() {
            let watcher = drives::watch(Arc::downgrade(&self.inner));
            drives.watcher = Some(watcher.map_err(|error| no_thread(&error))?);
        }
        drives
            .attached
            .insert(address.to_owned(), controller.clone());
        drop(drives);
        let names = self.attach(address)?.names;
        let ids = names.iter().filter_map(|name| controller.namespace(name));
        let mut ids: Vec<_> = ids.collect();
        ids.sort_unstable();
        let Some((first, others)) = ids.split_first() else {
            return Err(unknown(address, &[]));
        };
        if !others.is_empty() {
            tracing::warn!(
                drive = address,
                served = first,
                ?others,
                "the drive has several namespaces: only the first is served"
            );
        }
        Ok(format!("{address}n{first}"))
    }

    /// Attaches a drive, if it is not yet. Blocks.
    pub(crate) fn attach(&self, address: &str) -> Result<Attached, SpdkError> {
        let controller = NvmeController::pcie(address, address);
        let attached = controller.and_then(|controller| {
            let call = move |application: &_| drives::attach(application, &controller);
            self.inner.service.call(call)?
        });
        attached.map_err(|error| failed(&error, DRIVE_HINT))
    }

    /// Lets go of a drive whose devices nobody has open. Blocks.
    pub(crate) fn detach(&self, address: &str) -> Result<(), SpdkError> {
        let name = address.to_owned();
        let detached = self.inner.service.call(move |it| it.detach(&name));
        detached
            .and_then(|detached| detached)
            .map_err(|error| failed(&error, LOG_HINT))
    }

    /// The drive that a device is made of, if it was attached here.
    fn drive_of(&self, name: &str) -> Result<Option<Arc<Drive>>, SpdkError> {
        let drives = self.drives();
        let mut attached = drives.attached.iter();
        let own = attached.find(|(_, controller)| controller.namespace(name).is_some());
        let (Some((address, _)), Some(lost)) = (own, &drives.watcher) else {
            return Ok(None);
        };
        let (address, lost, name) = (address.clone(), lost.clone(), name.to_owned());
        drop(drives);
        let identity = self.inner.service.call(move |it| it.nvme_identity(&name));
        let identity = identity
            .and_then(|identity| identity)
            .map_err(|error| failed(&error, LOG_HINT))?;
        Ok(identity.map(|identity| {
            Arc::new(Drive {
                address,
                identity,
                lost,
            })
        }))
    }

    fn drives(&self) -> MutexGuard<'_, Drives> {
        let drives = &self.inner.drives;
        drives.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn environment(options: &Options) -> spdk::Options {
    let pci = match &options.drives {
        _ if !options.huge_pages => Pci::None,
        None => Pci::All,
        Some(addresses) => Pci::Only(addresses.clone()),
    };
    let plain = (!options.huge_pages).then_some(PLAIN_MEMORY_MIB);
    spdk::Options {
        memory_mib: options.memory_mib.or(plain),
        huge_pages: options.huge_pages,
        pci,
        ..spdk::Options::new("bowline")
    }
}

/// The library's module for NVMe drives.
const DRIVES: &str = "nvme";

const CONFIG_HINT: &str = "check the file given with --spdk-config";
const START_HINT: &str = "see the log; huge pages are reserved with \
                          `sysctl vm.nr_hugepages=512`, and --no-huge does without";
const LOG_HINT: &str = "see the log";
const DRIVE_HINT: &str = "see the log; the drive must be there (`lspci`), not in use, and huge pages must \
                          be reserved";

fn failed(error: &spdk::Error, hint: &str) -> SpdkError {
    SpdkError {
        is_busy: false,
        cause: error.to_string(),
        hint: hint.to_owned(),
    }
}

fn no_thread(error: &io::Error) -> SpdkError {
    SpdkError {
        is_busy: false,
        cause: format!("there is no thread to look after drives: {error}"),
        hint: "see the limit of processes (`ulimit -u`, TasksMax of the service)".to_owned(),
    }
}

fn unknown(name: &str, devices: &[BdevInfo]) -> SpdkError {
    let names: Vec<_> = devices.iter().map(|info| info.name.as_str()).collect();
    let hint = if names.is_empty() {
        "there is none at all: --spdk-config names a file that makes some".to_owned()
    } else {
        format!("there are: {}", names.join(", "))
    };
    SpdkError {
        is_busy: false,
        cause: format!("SPDK has no block device named {name}"),
        hint,
    }
}
