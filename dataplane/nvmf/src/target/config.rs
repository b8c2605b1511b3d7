//! What the owner decides: limits, subsystems, namespaces, and who may see them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use bowline_nvme::log::AnaState;
use bowline_nvme::{Nanos, nqn};

use super::allocation::AllocationSource;
use super::ana::Ana;
use super::health::HealthTotals;
use super::output::NamespaceHandle;
use super::reservation::Persistence;

/// Limits of a target. `new` clamps each to what the protocol and the peers allow.
#[derive(Clone, Debug)]
pub struct TargetConfig {
    /// Largest in-capsule data of an I/O queue, in bytes; a multiple of 16. [TCP-1.0 IOCCSZ]
    pub icd_bytes: u32,
    /// Largest transfer of one command, in bytes; a power of two of at least 8192.
    pub mdts_bytes: u32,
    /// Largest H2CData payload, in bytes; a multiple of 4, at least 4096. [TCP-1.0 §3.6.2.3]
    pub maxh2cdata_bytes: u32,
    /// Entries of an I/O submission queue, one-based.
    pub io_queue_entries_max: u16,
    /// Entries of an admin submission queue, one-based.
    pub admin_queue_entries_max: u16,
    /// I/O queues of one controller.
    pub io_queues_max: u16,
    /// Connections held at a time, Connect done or not.
    pub connections_max: u32,
    /// Connections from one address that have not finished Connect.
    pub unassociated_per_address_max: u32,
    /// Queues of one host, named by its NQN, over all its controllers. A Connect beyond that is
    /// refused as busy.
    pub queues_per_host_max: u32,
    /// Firmware revision, ASCII.
    pub firmware: [u8; 8],
    /// Model number, ASCII.
    pub model: [u8; 40],
    /// A name of its own for the discovery subsystem, besides the well-known one. Not that of a
    /// subsystem; what is not a valid NQN counts as none. [BASE-2.0 §3.1.2.3]
    pub discovery_nqn: Option<String>,
    /// Where random choices (first controller ids) start.
    pub seed: u64,
    /// How long a peer may take.
    pub deadlines: Deadlines,
}

/// How long a peer may take for each step before its connection ends.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// From accept to a complete ICReq.
    pub icreq: Nanos,
    /// From ICResp to a complete Connect, however often one is refused.
    pub connect: Nanos,
    /// Without one byte of progress on a PDU or on an R2T.
    pub transfer: Nanos,
    /// From C2HTermReq until the socket is closed though the peer keeps it open.
    pub linger: Nanos,
    /// How long an I/O Connect for a queue id still in use waits for the old queue to go.
    pub queue_id: Nanos,
    /// How long a disabled or shut down controller keeps its association; at least 2 minutes.
    pub association: Nanos,
    /// Inactivity after which a discovery controller without KATO ends.
    pub discovery: Nanos,
    /// How long `stop` waits for commands at their device.
    pub stop: Nanos,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            icreq: Nanos::from_secs(10),
            connect: Nanos::from_secs(10),
            transfer: Nanos::from_secs(30),
            linger: Nanos::from_secs(10),
            queue_id: Nanos::from_secs(2),
            association: Nanos::from_secs(120),
            discovery: Nanos::from_secs(120),
            stop: Nanos::from_secs(20),
        }
    }
}

/// Fabrics commands and the admin queue carry this much in-capsule data whatever IOCCSZ says.
pub(super) const CONTROL_ICD_BYTES: u32 = 8192;

impl Default for TargetConfig {
    fn default() -> Self {
        Self {
            icd_bytes: 16 << 10,
            mdts_bytes: 1 << 20,
            maxh2cdata_bytes: 1 << 20,
            io_queue_entries_max: 128,
            admin_queue_entries_max: 128,
            io_queues_max: 64,
            connections_max: 4096,
            unassociated_per_address_max: 256,
            queues_per_host_max: 2048,
            firmware: pad(env!("CARGO_PKG_VERSION")),
            model: pad("Bowline NVMe/TCP"),
            discovery_nqn: None,
            seed: 0,
            deadlines: Deadlines::default(),
        }
    }
}

impl TargetConfig {
    /// Brings every limit into the range in which the promises of Identify hold.
    pub(super) fn clamped(mut self) -> Self {
        // MDTS 0, one page, would mean no limit.
        self.mdts_bytes = floor_power_of_two(self.mdts_bytes.clamp(8192, 1 << 24));
        // Above 64 KiB in-capsule data would cost more memory than the R2T it saves.
        self.icd_bytes = self.icd_bytes.min(64 << 10).min(self.mdts_bytes) & !15;
        self.maxh2cdata_bytes = self.maxh2cdata_bytes.clamp(4096, 1 << 24) & !3;
        self.io_queue_entries_max = self.io_queue_entries_max.clamp(16, 1024);
        self.admin_queue_entries_max = self.admin_queue_entries_max.clamp(32, 256);
        self.io_queues_max = self.io_queues_max.clamp(1, 1024);
        self.deadlines.association = self.deadlines.association.max(Nanos::from_secs(120));
        let usable = |name: &String| nqn::validate(name).is_ok() && name != nqn::DISCOVERY;
        self.discovery_nqn = self.discovery_nqn.filter(usable);
        self
    }

    /// The name by which other hosts and discovery controllers should know this one: its own, or
    /// else the well-known one.
    #[must_use]
    pub fn discovery_name(&self) -> &str {
        self.discovery_nqn.as_deref().unwrap_or(nqn::DISCOVERY)
    }

    /// Whether Connect with this name is for the discovery subsystem.
    pub(super) fn is_discovery(&self, subnqn: &str) -> bool {
        subnqn == nqn::DISCOVERY || self.discovery_nqn.as_deref() == Some(subnqn)
    }
}

fn floor_power_of_two(value: u32) -> u32 {
    1 << value.ilog2()
}

/// Left-justified ASCII padded with spaces, as Identify wants it; other characters become `?`.
#[must_use]
pub fn pad<const N: usize>(text: &str) -> [u8; N] {
    let mut out = [b' '; N];
    for (to, from) in out.iter_mut().zip(text.bytes()) {
        *to = if (0x20..0x7f).contains(&from) {
            from
        } else {
            b'?'
        };
    }
    out
}

/// Where a connection came in.
#[derive(Clone, Copy, Debug)]
pub struct Path {
    /// The address the host reached us by.
    pub local: SocketAddr,
    /// The host's address.
    pub peer: SocketAddr,
    /// The listener, which is also the NVMe port id.
    pub listener: u16,
}

/// A set of host NQNs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hosts {
    /// Every host.
    Any,
    /// These only; empty means nobody.
    Only(Vec<String>),
}

impl Hosts {
    pub(super) fn allows(&self, hostnqn: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Only(hosts) => hosts.iter().any(|host| host == hostnqn),
        }
    }
}

/// A subsystem to serve.
#[derive(Clone, Debug)]
pub struct SubsystemConfig {
    /// Subsystem NQN; not one of the discovery subsystem.
    pub nqn: String,
    /// Serial number, ASCII padded with spaces; unique per subsystem.
    pub serial: [u8; 20],
    /// Highest NSID, and the number of namespaces the subsystem can hold (NN, MNAN).
    pub namespaces_max: u32,
    /// Hosts that may connect.
    pub hosts: Hosts,
    /// Listeners through which it is reached; `None` means all.
    pub listeners: Option<Vec<u16>>,
    /// Lowest and highest controller id this target may hand out for the subsystem: the part
    /// of 1..=0xFFEF that no other node uses.
    pub cntlids: (u16, u16),
    /// Controllers at a time.
    pub controllers_max: u16,
    /// Asymmetric Namespace Access; `None`: hosts hear nothing of it.
    pub ana: Option<AnaConfig>,
    /// What the subsystem had been through when it last ended; zero for a new one. Its SMART log
    /// counts on from there.
    pub health: HealthTotals,
}

/// How a subsystem reports Asymmetric Namespace Access. [BASE-2.0 §8.1]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnaConfig {
    /// Highest group id, and the number of groups there can be (ANAGRPMAX, NANAGRPID). Hosts make
    /// room for the log of them all.
    pub groups_max: u32,
    /// The longest that a group stays in the state [`AnaState::Change`] (ANATT), in seconds.
    pub transition_seconds: u8,
    /// The state of a group that nothing was said about yet; not [`AnaState::Change`].
    pub initial: AnaState,
}

impl Default for AnaConfig {
    fn default() -> Self {
        Self {
            groups_max: 32,
            transition_seconds: 10,
            initial: AnaState::Optimized,
        }
    }
}

/// Most ANA groups of a subsystem.
pub const ANA_GROUPS_MAX: u32 = 1024;

/// Highest controller id that may be given out. [BASE-2.0 CNTLID; FABRICS-1.1 §3.3]
pub const CNTLID_MAX: u16 = 0xFFEF;

impl SubsystemConfig {
    /// A subsystem that nobody may use yet, with the default limits.
    #[must_use]
    pub fn new(nqn: &str, serial: &str) -> Self {
        Self {
            nqn: nqn.to_owned(),
            serial: pad(serial),
            namespaces_max: 256,
            hosts: Hosts::Only(Vec::new()),
            listeners: None,
            cntlids: (1, CNTLID_MAX),
            controllers_max: 1024,
            ana: None,
            health: HealthTotals::default(),
        }
    }

    pub(super) fn check(&self, mdts_bytes: u32) -> Result<(), ConfigError> {
        check_nqn(&self.nqn)?;
        if let Hosts::Only(hosts) = &self.hosts {
            hosts.iter().try_for_each(|host| check_host(host))?;
        }
        let (low, high) = self.cntlids;
        if low == 0 || high > CNTLID_MAX || low > high {
            return Err(ConfigError::ControllerIds);
        }
        if !(1..=NSID_MAX).contains(&self.namespaces_max) {
            return Err(ConfigError::NamespaceId);
        }
        if let Some(ana) = &self.ana {
            // Linux reads the whole log in one command, or does without ANA.
            let log_fits = Ana::log_bytes_max(ana, self.namespaces_max) <= u64::from(mdts_bytes);
            let groups_ok = (1..=ANA_GROUPS_MAX).contains(&ana.groups_max);
            let times_ok = ana.transition_seconds > 0 && ana.initial != AnaState::Change;
            if !groups_ok || !log_fits || !times_ok {
                return Err(ConfigError::Ana);
            }
        }
        Ok(())
    }
}

/// Largest NSID of a subsystem: hosts size tables by NN.
pub const NSID_MAX: u32 = 16_384;

pub(super) fn check_nqn(name: &str) -> Result<(), ConfigError> {
    nqn::validate(name).map_err(|_| ConfigError::Nqn)
}

/// Hosts call themselves what they like, in up to 223 bytes of text.
pub(super) fn check_host(name: &str) -> Result<(), ConfigError> {
    nqn::Nqn::new(name)
        .map(|_| ())
        .map_err(|_| ConfigError::Nqn)
}

/// How a namespace's device is laid out and what it promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NsGeometry {
    /// Logical block size in bytes: a power of two from 512 to 64 KiB.
    pub block_bytes: u32,
    /// Size in logical blocks (NSZE).
    pub blocks: u64,
    /// Logical blocks allocated (NUSE), at most `blocks`.
    pub used_blocks: u64,
    /// Completed writes may be lost in a power failure unless flushed.
    pub volatile_cache: bool,
    /// Writes are refused.
    pub read_only: bool,
    /// Logical blocks written atomically even in a power failure, one-based; 0 counts as 1.
    pub atomic_write_blocks: u32,
    /// Preferred I/O size in logical blocks; 0 means none.
    pub optimal_io_blocks: u32,
    /// What deallocation does.
    pub deallocate: Deallocate,
    /// Preferred deallocation granularity in logical blocks; 0 means none.
    pub deallocate_granularity_blocks: u32,
    /// Write Zeroes is supported.
    pub write_zeroes: bool,
    /// Blocks are allocated when first written.
    pub thin: bool,
}

/// What reading a deallocated block returns. [NVM-1.0 §4.1.5.1 DLFEAT]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deallocate {
    /// Deallocation is not supported.
    None,
    /// Anything.
    Undefined,
    /// Zeroes.
    ReadsZero,
}

impl NsGeometry {
    /// log2 of the logical block size (LBADS).
    pub(super) fn block_shift(&self) -> u8 {
        u8::try_from(self.block_bytes.trailing_zeros()).unwrap_or(9)
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let block_ok =
            self.block_bytes.is_power_of_two() && (512..=65_536).contains(&self.block_bytes);
        let size_ok = self
            .blocks
            .checked_mul(u64::from(self.block_bytes))
            .is_some();
        if block_ok && size_ok && self.blocks > 0 && self.used_blocks <= self.blocks {
            Ok(())
        } else {
            Err(ConfigError::Geometry)
        }
    }
}

/// A namespace to add to a subsystem.
#[derive(Clone, Debug)]
pub struct NamespaceConfig {
    /// The namespace id wanted, or the next that is free: one just removed is not used again soon.
    pub nsid: Option<u32>,
    /// The glue's name of the device; no other namespace ever had it.
    pub handle: NamespaceHandle,
    /// Layout and promises.
    pub geometry: NsGeometry,
    /// UUID; not all zero.
    pub uuid: [u8; 16],
    /// NGUID; not all zero.
    pub nguid: [u8; 16],
    /// ANA group, created if need be; `None`: group 1, where the subsystem has groups.
    pub ana_group: Option<u32>,
    /// Whether its reservations can outlive the process, and those that did.
    pub persistence: Persistence,
    /// Another process may write to its device: no fused pairs there.
    pub shared: bool,
    /// What it has allocated of a medium that it shares; `None`: what its geometry says.
    pub allocation: Option<AllocationSource>,
}

/// Why a configuration was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// Not a valid NQN.
    Nqn,
    /// A subsystem of that NQN is already there, or it is a name of the discovery subsystem.
    SubsystemExists,
    /// No subsystem of that NQN.
    NoSubsystem,
    /// The range of controller ids is empty or outside 1..=0xFFEF.
    ControllerIds,
    /// The NSID is 0, in use, or above the subsystem's maximum, or none is free.
    NamespaceId,
    /// No such namespace.
    NoNamespace,
    /// The block size or the size is not possible, or would shrink or change the block size.
    Geometry,
    /// UUID or NGUID is zero, or another namespace of this target has it.
    NamespaceIdentity,
    /// The subsystem does not report ANA.
    NoAna,
    /// The ANA group id is 0 or above the subsystem's maximum.
    AnaGroup,
    /// No or too many ANA groups, no transition time or one that never ends, or a log larger than
    /// MDTS.
    Ana,
    /// The reservations that the namespace was to begin with contradict themselves.
    Reservations,
}

impl std::fmt::Display for ConfigError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Nqn => "not a valid NVMe qualified name",
            Self::SubsystemExists => "a subsystem of that name already exists",
            Self::NoSubsystem => "no such subsystem",
            Self::ControllerIds => "controller ids must be a range within 1..=65519",
            Self::NamespaceId => "the namespace id is in use or out of range",
            Self::NoNamespace => "no such namespace",
            Self::Geometry => "the block size or capacity is not possible",
            Self::NamespaceIdentity => "the namespace's UUID or NGUID is zero or already in use",
            Self::NoAna => "the subsystem does not report ANA",
            Self::AnaGroup => "no such ANA group",
            Self::Ana => "the ANA groups are too many or none, or change without a time limit",
            Self::Reservations => "the namespace's reservations contradict themselves",
        })
    }
}

impl std::error::Error for ConfigError {}

/// The path of a connection that never had one, for tests and local pipes.
impl Default for Path {
    fn default() -> Self {
        let any = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
        Self {
            local: any,
            peer: any,
            listener: 0,
        }
    }
}
