//! The values of flags, each with what to write when it is wrong.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use clap::ValueEnum;
use serde::Deserialize;
use uuid::Uuid;

use crate::size::Size;

/// Port of NVMe/TCP I/O controllers, where an address has none. [TCP-1.0 §3.1.1]
const NVME_PORT: u16 = 4420;
/// Port of NVMe/TCP discovery controllers, where an address has none. [TCP-1.0 §3.1.1]
const DISCOVERY_PORT: u16 = 8009;
/// Port of the management API, where an address has none.
const RPC_PORT: u16 = 7410;
/// Port of the metrics, where an address has none.
const METRICS_PORT: u16 = 9410;

/// An address with a port, or one that takes the default port of its flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Address {
    ip: IpAddr,
    port: Option<u16>,
}

impl Address {
    fn with_port(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip, self.port.unwrap_or(port))
    }

    /// As an NVMe/TCP address.
    pub(crate) fn nvme(self) -> SocketAddr {
        self.with_port(NVME_PORT)
    }

    /// As the address of a discovery controller.
    pub(crate) fn discovery(self) -> SocketAddr {
        self.with_port(DISCOVERY_PORT)
    }

    /// As an address of the management API.
    pub(crate) fn rpc(self) -> SocketAddr {
        self.with_port(RPC_PORT)
    }

    /// As an address of the metrics.
    pub(crate) fn metrics(self) -> SocketAddr {
        self.with_port(METRICS_PORT)
    }

    /// The loopback address with the default port of its flag.
    pub(crate) const LOOPBACK: Self = Self {
        ip: IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
        port: None,
    };
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self {
                ip: address.ip(),
                port: Some(address.port()),
            });
        }
        let bare = text
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(text);
        if let Ok(ip) = bare.parse() {
            return Ok(Self { ip, port: None });
        }
        Err(format!(
            "{text:?} is not an address; write 192.0.2.10:4420, [2001:db8::1]:4420, or the \
             address alone for the default port"
        ))
    }
}

impl TryFrom<String> for Address {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// Logical block size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Size")]
pub(crate) struct BlockSize(pub(crate) u32);

impl TryFrom<Size> for BlockSize {
    type Error = String;

    fn try_from(size: Size) -> Result<Self, String> {
        match size.0 {
            512 => Ok(Self(512)),
            4096 => Ok(Self(4096)),
            _ => Err(format!(
                "a block size of {size} is not possible; choose 512 or 4096"
            )),
        }
    }
}

impl FromStr for BlockSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse::<Size>()?.try_into()
    }
}

/// CPUs in the order given, without repetition.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Cores(pub(crate) Vec<usize>);

/// CPUs a list may hold, far above any machine.
const CORES_MAX: usize = 1024;

impl FromStr for Cores {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a list of CPUs; write 0,2-3");
        let mut cores = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let first: usize = first.trim().parse().map_err(|_| bad())?;
            let last: usize = last.trim().parse().map_err(|_| bad())?;
            if first > last || last - first >= CORES_MAX || cores.len() >= CORES_MAX {
                return Err(bad());
            }
            for core in first..=last {
                if cores.contains(&core) {
                    return Err(format!("CPU {core} is twice in the list {text:?}"));
                }
                cores.push(core);
            }
        }
        Ok(Self(cores))
    }
}

impl TryFrom<String> for Cores {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// What performs the I/O on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Engine {
    /// The kernel's block layer.
    Kernel,
    /// SPDK's user-space drivers; needs a build with them.
    Spdk,
}

/// Kernel interface for I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum IoFlag {
    /// io_uring where it is permitted, else epoll; the log says which and why.
    Auto,
    /// io_uring, or fail.
    Uring,
    /// epoll and a thread pool.
    Epoll,
}

/// Whether reactors spin for events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum PollFlag {
    /// Spin while there is traffic, sleep when idle.
    Adaptive,
    /// Never sleep: one CPU per reactor.
    Always,
    /// Sleep whenever there is nothing to do.
    Never,
}

/// First and last of a range of controller IDs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct CntlidRange(pub(crate) u16, pub(crate) u16);

impl FromStr for CntlidRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let range = text.split_once('-').and_then(|(first, last)| {
            let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
            Some(Self(first, last))
        });
        range.ok_or_else(|| format!("{text:?} is no range of controller IDs; write 1-1000"))
    }
}

impl TryFrom<String> for CntlidRange {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// Another discovery subsystem: where, and its NQN if that is not the well-known one.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct ReferralFlag {
    pub(crate) address: Address,
    pub(crate) nqn: Option<String>,
}

impl FromStr for ReferralFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, nqn) = match text.split_once('=') {
            Some((address, nqn)) => (address, Some(nqn.to_owned())),
            None => (text, None),
        };
        Ok(Self {
            address: address.parse()?,
            nqn,
        })
    }
}

impl TryFrom<String> for ReferralFlag {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// How a namespace is reached through a data plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum AnaFlag {
    /// Commands are executed; hosts prefer this path.
    Optimized,
    /// Commands are executed; hosts use this path if there is no better one.
    NonOptimized,
    /// Commands are refused; hosts repeat them on another path.
    Inaccessible,
    /// As inaccessible, and it will not come back.
    PersistentLoss,
    /// Between two states: hosts wait. After 10 seconds it becomes inaccessible.
    Change,
}

/// A UUID or NGUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Identifier(pub(crate) [u8; 16]);

impl FromStr for Identifier {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Uuid::parse_str(text)
            .map(|identifier| Self(identifier.into_bytes()))
            .map_err(|_| {
                format!("{text:?} is no identifier; write 32 hexadecimal digits, as `uuidgen` does")
            })
    }
}

impl TryFrom<String> for Identifier {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}
