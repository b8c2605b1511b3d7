//! The flags of `bowline dataplane`: the command line over the environment over a
//! TOML file. One structure describes all three, so that they cannot differ.

mod values;

use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args};
use serde::Deserialize;

pub(crate) use values::{
    Address, AnaFlag, BlockSize, CntlidRange, Cores, Engine, Identifier, IoFlag, PollFlag,
    ReferralFlag,
};

use crate::error::CliError;
use crate::log::LogFormat;
use crate::size::Size;

const LONG_ABOUT: &str = "\
Serve one device (or memory) to hosts over NVMe/TCP, until SIGTERM.

The whole device becomes namespace 1 of one subsystem; or, if it has a pool (see --format),
each of its volumes becomes namespace 1 of a subsystem of its own. Nobody may connect until a host is
allowed, with --host or with `bowline host allow`. Listeners are on the loopback address
unless told otherwise: hosts are not authenticated yet.

When everything listens, one line is printed on stdout:
  ready {\"listen\":[\"127.0.0.1:4420\"],\"rpc\":\"127.0.0.1:7410\",\"metrics\":\"127.0.0.1:9410\",\"pid\":1}

SIGTERM or SIGINT stops gracefully: no new connections, commands in flight finish, the
device is flushed, connections close. A second signal ends the process at once.";

const EXAMPLES: &str = "\
Every flag may be given as BOWLINE_<FLAG> in the environment (lists separated by commas)
and, without the dashes in front, as a key of the --config file. The command line wins
over the environment, which wins over the file.

Examples:
  Try it in memory, for every host on this machine:
    bowline dataplane --memory 1GiB --host any
  Make volumes on a drive, and find them again after a restart:
    bowline dataplane --device /dev/disk/by-id/nvme-DRIVE --format --listen 192.0.2.10
    bowline volume create db --size 100GiB --host any
    bowline volume connect db
  Serve a whole drive to one host:
    bowline dataplane --device /dev/disk/by-id/nvme-DRIVE --listen 192.0.2.10 \\
      --host nqn.2014-08.org.nvmexpress:uuid:0f4a2b9e-5e57-4b5c-9a53-6b1f6ac9d1a2
  Then, on the host, with the NQN that `bowline subsystem list` shows:
    nvme connect -t tcp -a 192.0.2.10 -s 4420 -n NQN";

/// Serve one device to hosts over NVMe/TCP.
#[derive(Debug, Default, Args, Deserialize)]
#[command(long_about = LONG_ABOUT, after_long_help = EXAMPLES)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct DataplaneFlags {
    /// Block device or file to serve; it is locked against other users. With --engine spdk the PCI
    /// address of a drive, such as 0000:01:00.0, or bdev:NAME for another block device of SPDK.
    #[arg(
        long,
        value_name = "PATH",
        env = "BOWLINE_DEVICE",
        hide_env = true,
        help_heading = "Backing"
    )]
    pub(crate) device: Option<PathBuf>,

    /// Serve memory of this size instead, to try things: the data goes with the process.
    #[arg(
        long,
        value_name = "SIZE",
        env = "BOWLINE_MEMORY",
        hide_env = true,
        help_heading = "Backing"
    )]
    pub(crate) memory: Option<Size>,

    /// Logical block size in bytes [default: the device's own; 4096 for memory].
    #[arg(
        long,
        value_name = "512|4096",
        env = "BOWLINE_BLOCK_SIZE",
        hide_env = true,
        help_heading = "Backing"
    )]
    pub(crate) block_size: Option<BlockSize>,

    /// Let other data planes that also say so serve the same device or file at the same time.
    /// Blocks stay whole, but nothing else is agreed on between them: use it only to switch a
    /// host from one to the other with ANA states; see docs/guide/multipath.md.
    #[arg(
        long,
        env = "BOWLINE_SHARED_DEVICE",
        hide_env = true,
        help_heading = "Backing"
    )]
    #[arg(num_args = 0..=1, default_missing_value = "true", value_name = "true|false")]
    pub(crate) shared_device: Option<bool>,

    /// Namespaces made over the management API may use this path and what lies under it;
    /// may be repeated [default: none, only memory].
    #[arg(
        long,
        value_name = "PATH",
        env = "BOWLINE_ALLOW_PATH",
        hide_env = true,
        value_delimiter = ','
    )]
    #[arg(help_heading = "Backing")]
    pub(crate) allow_path: Vec<PathBuf>,

    /// Serve a pool, many volumes on one device, and write a new one first if the device is empty. A
    /// device that has a pool is left as it is, so that a restart with the same flags serves it;
    /// without this flag it is served too. What holds anything else is refused.
    #[arg(
        long,
        env = "BOWLINE_FORMAT",
        hide_env = true,
        help_heading = "Backing"
    )]
    #[arg(num_args = 0..=1, default_missing_value = "true", value_name = "true|false")]
    pub(crate) format: Option<bool>,

    /// With --format: destroy what the device holds. What is or was a pool is not destroyed: give it
    /// up with `bowline pool erase` first.
    #[arg(long, env = "BOWLINE_FORCE", hide_env = true, help_heading = "Backing")]
    #[arg(num_args = 0..=1, default_missing_value = "true", value_name = "true|false")]
    pub(crate) force: Option<bool>,

    /// Serve the whole device as one namespace even if it has a pool, such as one that a host has
    /// made on it.
    #[arg(long, env = "BOWLINE_RAW", hide_env = true, help_heading = "Backing")]
    #[arg(num_args = 0..=1, default_missing_value = "true", value_name = "true|false")]
    pub(crate) raw: Option<bool>,

    /// Address for NVMe/TCP; may be repeated; port 0 takes a free one
    /// [default: 127.0.0.1:4420].
    #[arg(
        long,
        value_name = "ADDR[:PORT]",
        env = "BOWLINE_LISTEN",
        hide_env = true,
        value_delimiter = ','
    )]
    #[arg(help_heading = "NVMe")]
    pub(crate) listen: Vec<Address>,

    /// Address that discovery tells hosts to use [default: the one the host came in on].
    #[arg(
        long,
        value_name = "ADDR[:PORT]",
        env = "BOWLINE_ADVERTISE",
        hide_env = true,
        help_heading = "NVMe"
    )]
    pub(crate) advertise: Option<Address>,

    /// NQN of the subsystem
    /// [default: nqn.2026-11.io.bowline:<node>:<device>-<hash of its path>].
    #[arg(
        long,
        value_name = "NQN",
        env = "BOWLINE_NQN",
        hide_env = true,
        help_heading = "NVMe"
    )]
    pub(crate) nqn: Option<String>,

    /// NQN of the discovery subsystem of this data plane, besides the well-known one
    /// [default: nqn.2026-11.io.bowline:<node>:discovery-<hash of its first listener>].
    #[arg(
        long,
        value_name = "NQN",
        env = "BOWLINE_DISCOVERY_NQN",
        hide_env = true,
        help_heading = "NVMe"
    )]
    pub(crate) discovery_nqn: Option<String>,

    /// Another discovery subsystem that hosts are pointed to, with its NQN if it is not the
    /// well-known one; may be repeated; the port is 8009 unless given.
    #[arg(
        long,
        value_name = "ADDR[:PORT][=NQN]",
        env = "BOWLINE_REFERRAL",
        hide_env = true,
        value_delimiter = ','
    )]
    #[arg(help_heading = "NVMe")]
    pub(crate) referral: Vec<ReferralFlag>,

    /// Serial number of the subsystem, 1 to 20 characters [default: derived from the NQN].
    #[arg(
        long,
        value_name = "TEXT",
        env = "BOWLINE_SERIAL",
        hide_env = true,
        help_heading = "NVMe"
    )]
    pub(crate) serial: Option<String>,

    /// Tell hosts how the namespaces are reached through this data plane (Asymmetric Namespace
    /// Access), which several paths to one disk need [default: false].
    #[arg(long, env = "BOWLINE_ANA", hide_env = true, help_heading = "NVMe")]
    #[arg(num_args = 0..=1, default_missing_value = "true", value_name = "true|false")]
    pub(crate) ana: Option<bool>,

    /// State of the subsystem's ANA groups at first; `bowline ana set` changes it
    /// [default: optimized].
    #[arg(
        long,
        value_enum,
        value_name = "STATE",
        env = "BOWLINE_ANA_STATE",
        hide_env = true,
        help_heading = "NVMe"
    )]
    pub(crate) ana_state: Option<AnaFlag>,

    /// UUID of namespace 1 [default: derived from the NQN].
    #[arg(
        long,
        value_name = "UUID",
        env = "BOWLINE_UUID",
        hide_env = true,
        help_heading = "NVMe"
    )]
    pub(crate) uuid: Option<Identifier>,

    /// NGUID of namespace 1, 32 hexadecimal digits [default: derived from the NQN].
    #[arg(
        long,
        value_name = "NGUID",
        env = "BOWLINE_NGUID",
        hide_env = true,
        help_heading = "NVMe"
    )]
    pub(crate) nguid: Option<Identifier>,

    /// Controller IDs that this data plane may give out, such as 1-1000; data planes that
    /// export one subsystem need ranges that do not overlap [default: all, 1-65519].
    #[arg(
        long,
        value_name = "FIRST-LAST",
        env = "BOWLINE_CNTLID_RANGE",
        hide_env = true,
        help_heading = "NVMe"
    )]
    pub(crate) cntlid_range: Option<CntlidRange>,

    /// Controllers of the subsystem at a time; hosts beyond that are refused [default: 1024].
    #[arg(
        long,
        value_name = "COUNT",
        env = "BOWLINE_CONTROLLERS_MAX",
        hide_env = true,
        help_heading = "NVMe"
    )]
    pub(crate) controllers_max: Option<u16>,

    /// Namespaces of the subsystem at most; hosts size tables by it [default: 256].
    #[arg(
        long,
        value_name = "COUNT",
        env = "BOWLINE_NAMESPACES_MAX",
        hide_env = true,
        help_heading = "NVMe"
    )]
    pub(crate) namespaces_max: Option<u32>,

    /// Host that may connect, or "any" for every host; may be repeated [default: nobody].
    #[arg(
        long,
        value_name = "NQN|any",
        env = "BOWLINE_HOST",
        hide_env = true,
        value_delimiter = ','
    )]
    #[arg(help_heading = "NVMe")]
    pub(crate) host: Vec<String>,

    /// Largest transfer of one command [default and most: 1MiB].
    #[arg(
        long,
        value_name = "SIZE",
        env = "BOWLINE_MAX_TRANSFER",
        hide_env = true,
        help_heading = "NVMe"
    )]
    pub(crate) max_transfer: Option<Size>,

    /// Data a command capsule may carry [default and most: 16KiB].
    #[arg(
        long,
        value_name = "SIZE",
        env = "BOWLINE_IN_CAPSULE_DATA",
        hide_env = true,
        help_heading = "NVMe"
    )]
    pub(crate) in_capsule_data: Option<Size>,

    /// Commands of one I/O queue at a time [default and most: 128].
    #[arg(
        long,
        value_name = "COUNT",
        env = "BOWLINE_QUEUE_DEPTH",
        hide_env = true,
        help_heading = "NVMe"
    )]
    pub(crate) queue_depth: Option<u16>,

    /// Connections of one reactor at a time; more are closed at once [default and most: 4096].
    #[arg(
        long,
        value_name = "COUNT",
        env = "BOWLINE_CONNECTIONS_MAX",
        hide_env = true,
        help_heading = "NVMe"
    )]
    pub(crate) connections_max: Option<u32>,

    /// Queues of one host at one reactor at a time; more are refused [default and most: 2048].
    #[arg(
        long,
        value_name = "COUNT",
        env = "BOWLINE_QUEUES_PER_HOST_MAX",
        hide_env = true,
        help_heading = "NVMe"
    )]
    pub(crate) queues_per_host_max: Option<u32>,

    /// What performs the I/O on the device.
    #[arg(
        long,
        value_enum,
        value_name = "NAME",
        env = "BOWLINE_ENGINE",
        hide_env = true
    )]
    #[arg(help_heading = "Performance")]
    pub(crate) engine: Option<Engine>,

    /// SPDK's own JSON configuration, for --engine spdk: it may make block devices and set
    /// options of drives [default: none].
    #[arg(
        long,
        value_name = "FILE",
        env = "BOWLINE_SPDK_CONFIG",
        hide_env = true,
        help_heading = "SPDK"
    )]
    pub(crate) spdk_config: Option<PathBuf>,

    /// Memory that SPDK sets aside for buffers; all of it is taken from huge pages
    /// [default: as much as is needed; 1GiB with --no-huge].
    #[arg(
        long,
        value_name = "SIZE",
        env = "BOWLINE_SPDK_MEMORY",
        hide_env = true,
        help_heading = "SPDK"
    )]
    pub(crate) spdk_memory: Option<Size>,

    /// Run SPDK without huge pages, which no drive works with: for block devices that are none
    /// [default: false].
    #[arg(long, env = "BOWLINE_NO_HUGE", hide_env = true, help_heading = "SPDK")]
    #[arg(num_args = 0..=1, default_missing_value = "true", value_name = "true|false")]
    pub(crate) no_huge: Option<bool>,

    /// Kernel interface for I/O; auto takes io_uring where it is permitted [default: auto].
    #[arg(
        long,
        value_enum,
        value_name = "NAME",
        env = "BOWLINE_IO",
        hide_env = true,
        help_heading = "Performance"
    )]
    pub(crate) io: Option<IoFlag>,

    /// CPUs to run on, one reactor pinned to each, such as 0,2-3 [default: one reactor,
    /// not pinned].
    #[arg(
        long,
        value_name = "LIST",
        env = "BOWLINE_CORES",
        hide_env = true,
        help_heading = "Performance"
    )]
    pub(crate) cores: Option<Cores>,

    /// Whether reactors spin for events: while there is traffic, always, or never
    /// [default: adaptive].
    #[arg(
        long,
        value_enum,
        value_name = "MODE",
        env = "BOWLINE_POLL",
        hide_env = true
    )]
    #[arg(help_heading = "Performance")]
    pub(crate) poll: Option<PollFlag>,

    /// Address of the management API (gRPC, neither encrypted nor authenticated)
    /// [default: 127.0.0.1:7410].
    #[arg(
        long,
        value_name = "ADDR[:PORT]",
        env = "BOWLINE_RPC",
        hide_env = true,
        help_heading = "Operation"
    )]
    pub(crate) rpc: Option<Address>,

    /// Address of the Prometheus metrics, path /metrics [default: 127.0.0.1:9410].
    #[arg(
        long,
        value_name = "ADDR[:PORT]",
        env = "BOWLINE_METRICS",
        hide_env = true,
        help_heading = "Operation"
    )]
    pub(crate) metrics: Option<Address>,

    /// Folder for what must outlive the process: reservations that persist through a power loss,
    /// the counters of the SMART log, the identity of namespace 1. It is made if it is not there
    /// [default: none; hosts are told that reservations do not persist].
    #[arg(
        long,
        value_name = "DIR",
        env = "BOWLINE_STATE",
        hide_env = true,
        help_heading = "Operation"
    )]
    pub(crate) state: Option<PathBuf>,

    /// Name of this node [default: the host name].
    #[arg(
        long,
        value_name = "NAME",
        env = "BOWLINE_NODE",
        hide_env = true,
        help_heading = "Operation"
    )]
    pub(crate) node: Option<String>,

    /// Control plane to register with (this version has none yet).
    #[arg(
        long,
        value_name = "URL",
        env = "BOWLINE_CONTROLLER",
        hide_env = true,
        help_heading = "Operation"
    )]
    #[arg(hide = true)]
    pub(crate) controller: Option<String>,

    /// How log lines look; they go to stderr [default: text].
    #[arg(
        long,
        value_enum,
        value_name = "FORMAT",
        env = "BOWLINE_LOG_FORMAT",
        hide_env = true
    )]
    #[arg(help_heading = "Operation")]
    pub(crate) log_format: Option<LogFormat>,

    /// What is logged: error, warn, info, debug or trace, or by room, such as
    /// info,bowline_server=debug [default: info].
    #[arg(
        long,
        value_name = "LEVEL",
        env = "BOWLINE_LOG_LEVEL",
        hide_env = true,
        help_heading = "Operation"
    )]
    pub(crate) log_level: Option<String>,

    /// TOML file with the same keys as these flags; unknown keys are errors.
    #[arg(
        long,
        value_name = "FILE",
        env = "BOWLINE_CONFIG",
        hide_env = true,
        help_heading = "Operation"
    )]
    #[serde(skip)]
    pub(crate) config: Option<PathBuf>,

    /// Check the configuration, print what is wrong, and exit.
    #[arg(long, help_heading = "Operation")]
    #[serde(skip)]
    pub(crate) check_config: bool,

    /// End at once when the process that started this one ends; its number, so that one that
    /// is gone already is noticed. For `bowline dev`.
    #[arg(long, value_name = "PID", hide = true)]
    #[serde(skip)]
    pub(crate) end_with: Option<i32>,
}

impl DataplaneFlags {
    /// Drops what the environment says about the backing where the command line names
    /// one: `--memory` beats `BOWLINE_DEVICE`.
    pub(crate) fn prefer_command_line(&mut self, matches: &ArgMatches) {
        let typed = |id| matches.value_source(id) == Some(ValueSource::CommandLine);
        if typed("memory") && !typed("device") {
            self.device = None;
        }
        if typed("device") && !typed("memory") {
            self.memory = None;
        }
    }

    /// Fills what neither command line nor environment gave from `file`.
    pub(crate) fn or(self, file: Self) -> Self {
        let list = |mine: Vec<_>, file| if mine.is_empty() { file } else { mine };
        let backed = self.device.is_some() || self.memory.is_some();
        Self {
            device: if backed { self.device } else { file.device },
            memory: if backed { self.memory } else { file.memory },
            block_size: self.block_size.or(file.block_size),
            allow_path: if self.allow_path.is_empty() {
                file.allow_path
            } else {
                self.allow_path
            },
            format: self.format.or(file.format),
            force: self.force.or(file.force),
            raw: self.raw.or(file.raw),
            listen: if self.listen.is_empty() {
                file.listen
            } else {
                self.listen
            },
            advertise: self.advertise.or(file.advertise),
            shared_device: self.shared_device.or(file.shared_device),
            nqn: self.nqn.or(file.nqn),
            discovery_nqn: self.discovery_nqn.or(file.discovery_nqn),
            referral: if self.referral.is_empty() {
                file.referral
            } else {
                self.referral
            },
            serial: self.serial.or(file.serial),
            ana: self.ana.or(file.ana),
            ana_state: self.ana_state.or(file.ana_state),
            uuid: self.uuid.or(file.uuid),
            nguid: self.nguid.or(file.nguid),
            cntlid_range: self.cntlid_range.or(file.cntlid_range),
            controllers_max: self.controllers_max.or(file.controllers_max),
            namespaces_max: self.namespaces_max.or(file.namespaces_max),
            host: list(self.host, file.host),
            max_transfer: self.max_transfer.or(file.max_transfer),
            in_capsule_data: self.in_capsule_data.or(file.in_capsule_data),
            queue_depth: self.queue_depth.or(file.queue_depth),
            connections_max: self.connections_max.or(file.connections_max),
            queues_per_host_max: self.queues_per_host_max.or(file.queues_per_host_max),
            engine: self.engine.or(file.engine),
            spdk_config: self.spdk_config.or(file.spdk_config),
            spdk_memory: self.spdk_memory.or(file.spdk_memory),
            no_huge: self.no_huge.or(file.no_huge),
            io: self.io.or(file.io),
            cores: self.cores.or(file.cores),
            poll: self.poll.or(file.poll),
            rpc: self.rpc.or(file.rpc),
            metrics: self.metrics.or(file.metrics),
            state: self.state.or(file.state),
            node: self.node.or(file.node),
            controller: self.controller.or(file.controller),
            log_format: self.log_format.or(file.log_format),
            log_level: self.log_level.or(file.log_level),
            config: self.config,
            check_config: self.check_config,
            end_with: self.end_with,
        }
    }

    /// Reads the file named by `--config`, if any.
    pub(crate) fn with_file(self) -> Result<Self, CliError> {
        let Some(path) = self.config.clone() else {
            return Ok(self);
        };
        let shown = path.display();
        let text = std::fs::read_to_string(&path).map_err(|source| {
            CliError::usage(format!("configuration file {shown} not read"))
                .cause(source)
                .hint("check the path given with --config or BOWLINE_CONFIG")
        })?;
        let file: Self = toml::from_str(&text).map_err(|source| {
            CliError::usage(format!("configuration file {shown} is wrong"))
                .cause(source.to_string().trim_end())
                .hint("the keys are the flags of `bowline dataplane --help` without the dashes")
        })?;
        Ok(self.or(file))
    }
}
