//! What a start needs from the system before a reactor runs: sockets bound, the device
//! opened and locked. All of it may block, the opening of a device behind a dead server
//! for ever.

use std::path::Path;

use bowline_api::{Failure, Reason};
use bowline_engine_spdk::{Spdk, SpdkError};
use uuid::Uuid;

use crate::allow::AllowList;
use crate::backing::{self, Opened};
use crate::config::{BackingConfig, Config};
use crate::error::{RunError, StartError};
use crate::identity;
use crate::listen::Sockets;
use crate::state::{Folder, Loaded, SubsystemRecord};
use crate::takeover::patiently;

/// Everything that is bound, locked and open.
pub(crate) struct Prepared {
    pub(crate) config: Config,
    pub(crate) allow: AllowList,
    pub(crate) sockets: Sockets,
    /// Named so that the same device is recognised when the API names it again.
    pub(crate) backing: BackingConfig,
    pub(crate) opened: Opened,
    /// The library, if it was started: to be let go after the reactors have ended.
    pub(crate) spdk: Option<Spdk>,
    /// NQN of the first subsystem, if the whole device is served.
    pub(crate) nqn: String,
    /// Flags that a pool has no use for.
    pub(crate) of_one_disk: Vec<&'static str>,
    /// NQN of the discovery subsystem of this data plane alone.
    pub(crate) discovery_nqn: String,
    /// Where state is kept, and what was found there.
    pub(crate) state: Option<(Folder, Loaded)>,
}

impl Prepared {
    /// Prepares on a thread that may block. Whoever does not wait any more loses nothing.
    pub(crate) async fn off_thread(config: Config) -> Result<Self, RunError> {
        let prepared = tokio::task::spawn_blocking(move || Self::new(config)).await;
        Ok(prepared.map_err(|_| RunError::ManagementLost)??)
    }

    fn new(mut config: Config) -> Result<Self, StartError> {
        let of_one_disk = config.of_one_disk();
        let state = config.state.as_deref().map(Folder::open).transpose()?;
        let allow = AllowList::new(&config.allow_paths)?;
        let sockets = Sockets::bind(&config)?;
        let is_busy = |failure: &Failure| failure.reason == Reason::BackingBusy;
        let spdk = config.spdk.as_ref().map(Spdk::start).transpose();
        let spdk = spdk.map_err(|error| StartError::Backing(explain_start(error)))?;
        let block_bytes = config
            .block_bytes
            .or_else(|| backing::pool_block_bytes(&config.backing, config.serve));
        let open = || backing::open(&config.backing, block_bytes, spdk.as_ref());
        let opened = patiently(is_busy, open).map_err(StartError::Backing)?;
        let nqn = match &config.nqn {
            Some(nqn) => nqn.clone(),
            None => default_nqn(&config, &sockets),
        };
        let backing = match config.backing.path() {
            Some(path) => {
                let real = path.canonicalize();
                config.backing.at(real.unwrap_or_else(|_| path.to_owned()))
            }
            None => opened.named(config.backing.clone()),
        };
        let bound = sockets.nvme.first().map(|(portal, _)| portal.bound);
        let discovery_nqn = match &config.discovery_nqn {
            Some(nqn) => nqn.clone(),
            None => identity::default_discovery_nqn(&config.node, bound),
        };
        if discovery_nqn == nqn {
            return Err(StartError::config(
                format!("{nqn} is the NQN of a subsystem and of the discovery subsystem"),
                "give --nqn and --discovery-nqn names of their own",
            ));
        }
        if let Some((_, loaded)) = &state
            && let Some(record) = loaded.subsystems.get(&nqn)
        {
            keep_identity(&mut config, record)?;
        }
        Ok(Self {
            config,
            allow,
            sockets,
            backing,
            opened,
            spdk,
            nqn,
            of_one_disk,
            discovery_nqn,
            state,
        })
    }
}

/// A disk keeps the identity that it had at its first start: hosts that met another one would take
/// it for another disk.
fn keep_identity(config: &mut Config, record: &SubsystemRecord) -> Result<(), StartError> {
    let serial = String::from_utf8_lossy(&record.serial)
        .trim_end()
        .to_owned();
    keep("--serial", &mut config.serial, serial, Clone::clone)?;
    let shown = |id: &[u8; 16]| Uuid::from_bytes(*id).to_string();
    keep("--uuid", &mut config.uuid, record.uuid, shown)?;
    keep("--nguid", &mut config.nguid, record.nguid, shown)
}

fn keep<T: PartialEq>(
    flag: &str,
    asked: &mut Option<T>,
    kept: T,
    shown: impl Fn(&T) -> String,
) -> Result<(), StartError> {
    match asked {
        Some(asked) if *asked != kept => Err(StartError::config(
            format!("{flag} {} is not what the disk had until now", shown(asked)),
            format!(
                "leave it out, or write {}; a new disk gets another --nqn or --state folder",
                shown(&kept)
            ),
        )),
        _ => {
            *asked = Some(kept);
            Ok(())
        }
    }
}

fn explain_start(error: SpdkError) -> Failure {
    Failure::new(Reason::BackingUnusable, "SPDK was not started")
        .cause(error.cause)
        .hint(error.hint)
}

fn default_nqn(config: &Config, sockets: &Sockets) -> String {
    if let BackingConfig::Spdk(source) = &config.backing {
        return identity::default_nqn(&config.node, Path::new(&source.to_string()));
    }
    match config.backing.path() {
        Some(path) => {
            let path = identity::lasting_path(path);
            if identity::is_kernel_name(&path) {
                tracing::warn!(
                    path = %path.display(),
                    "the kernel may give this name to another disk after a reboot, and the NQN \
                     follows from it: name the device as /dev/disk/by-id does, or give --nqn"
                );
            }
            identity::default_nqn(&config.node, &path)
        }
        None => {
            let bound = sockets.nvme.first().map(|(portal, _)| portal.bound);
            identity::default_memory_nqn(&config.node, bound)
        }
    }
}
