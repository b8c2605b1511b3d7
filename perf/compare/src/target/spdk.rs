//! SPDK's target, configured by the JSON file it reads at start.

use std::ffi::OsString;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{Kit, START_LIMIT, Started};
use crate::cell::State;
use crate::client::SUBSYSTEM;
use crate::process::{Launch, Process};

/// The block device that it serves, and our SPDK engine too.
pub(super) const BDEV: &str = "Memory";
/// Memory that it is given, in MiB.
pub(super) const MEMORY_MIB: u64 = 512;
const BLOCK_BYTES: u64 = 4096;

/// One way to run it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SpdkVariant {
    pub(crate) sockets: Sockets,
    pub(crate) in_capsule: InCapsule,
    /// It sleeps instead of polling.
    pub(crate) interrupt_mode: bool,
}

/// Its socket implementations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sockets {
    Posix,
    Uring,
}

/// Data that a command capsule may carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InCapsule {
    Kib4,
    Kib16,
}

impl SpdkVariant {
    /// What it does when nobody tells it anything.
    pub(crate) const DEFAULT: Self = Self {
        sockets: Sockets::Posix,
        in_capsule: InCapsule::Kib4,
        interrupt_mode: false,
    };
    pub(crate) const INTERRUPT: Self = Self {
        interrupt_mode: true,
        ..Self::DEFAULT
    };
    /// All that compete to be its best, the default first.
    pub(crate) const POLLING: [Self; 4] = [
        Self::DEFAULT,
        Self {
            in_capsule: InCapsule::Kib16,
            ..Self::DEFAULT
        },
        Self {
            sockets: Sockets::Uring,
            ..Self::DEFAULT
        },
        Self {
            sockets: Sockets::Uring,
            in_capsule: InCapsule::Kib16,
            interrupt_mode: false,
        },
    ];

    pub(crate) fn name(&self) -> String {
        let sockets = self.sockets.word();
        let kib = match self.in_capsule {
            InCapsule::Kib4 => 4,
            InCapsule::Kib16 => 16,
        };
        let mode = if self.interrupt_mode {
            "-interrupt"
        } else {
            ""
        };
        format!("spdk-{sockets}-{kib}k{mode}")
    }

    fn configuration(&self, port: u16) -> String {
        let in_capsule_bytes = match self.in_capsule {
            InCapsule::Kib4 => 4096,
            InCapsule::Kib16 => 16_384,
        };
        let sockets = call(
            "sock_set_default_impl",
            json!({"impl_name": self.sockets.word()}),
        );
        let target = [
            call(
                "nvmf_create_transport",
                json!({"trtype": "TCP", "in_capsule_data_size": in_capsule_bytes}),
            ),
            call(
                "nvmf_create_subsystem",
                json!({"nqn": SUBSYSTEM, "allow_any_host": true, "serial_number": "COMPARE",
                    "model_number": "compare"}),
            ),
            call(
                "nvmf_subsystem_add_ns",
                json!({"nqn": SUBSYSTEM, "namespace": {"nsid": 1, "bdev_name": BDEV}}),
            ),
            call(
                "nvmf_subsystem_add_listener",
                json!({"nqn": SUBSYSTEM, "listen_address": {"trtype": "TCP", "adrfam": "IPv4",
                    "traddr": "127.0.0.1", "trsvcid": port.to_string()}}),
            ),
        ];
        json!({"subsystems": [
            {"subsystem": "sock", "config": [sockets]},
            bdev_subsystem(),
            {"subsystem": "nvmf", "config": target},
        ]})
        .to_string()
    }
}

fn call(method: &str, params: Value) -> Value {
    json!({"method": method, "params": params})
}

fn bdev_subsystem() -> Value {
    let memory = call(
        "bdev_malloc_create",
        json!({"name": BDEV, "num_blocks": State::Steady.namespace_bytes() / BLOCK_BYTES,
            "block_size": BLOCK_BYTES}),
    );
    json!({"subsystem": "bdev", "config": [memory]})
}

/// The same block device for our SPDK engine.
pub(super) fn bdev_configuration() -> String {
    json!({"subsystems": [bdev_subsystem()]}).to_string()
}

impl Sockets {
    const fn word(self) -> &'static str {
        match self {
            Self::Posix => "posix",
            Self::Uring => "uring",
        }
    }
}

pub(super) fn start(
    kit: &Kit,
    variant: SpdkVariant,
    name: &str,
    cgroup: Option<&Path>,
) -> Result<Started> {
    let program = kit.spdk.as_deref().context("no nvmf_tgt")?;
    let folder = tempfile::tempdir().context("temporary folder")?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
    let configuration = folder.path().join("target.json");
    fs::write(&configuration, variant.configuration(address.port())).context("configuration")?;
    let mut arguments: Vec<OsString> = vec![
        "--json".into(),
        configuration.into(),
        "-r".into(),
        folder.path().join("rpc.sock").into(),
        "-m".into(),
        format!("[{}]", kit.core).into(),
        "-s".into(),
        MEMORY_MIB.to_string().into(),
        "--no-pci".into(),
        "--disable-cpumask-locks".into(),
    ];
    if !kit.huge_pages {
        arguments.push("--no-huge".into());
    }
    if variant.interrupt_mode {
        arguments.push("--interrupt-mode".into());
    }
    let mut process = Process::start(Launch {
        name,
        program,
        arguments,
        core: kit.core,
        cgroup,
    })?;
    process.wait_until(START_LIMIT, |_| Ok(TcpStream::connect(address).ok()))?;
    Ok(Started {
        process,
        address,
        rpc: None,
        folder: Some(folder),
    })
}

/// It takes no port 0. In a network of our own nobody else takes this one meanwhile.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port")?;
    Ok(listener.local_addr().context("no free port")?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_names_sockets_capsules_and_port() {
        let variant = SpdkVariant::POLLING[3];
        assert_eq!(variant.name(), "spdk-uring-16k");
        let value: Value = serde_json::from_str(&variant.configuration(4600)).unwrap();
        let subsystems = &value["subsystems"];
        assert_eq!(subsystems[0]["config"][0]["params"]["impl_name"], "uring");
        let target = &subsystems[2]["config"];
        assert_eq!(target[0]["params"]["in_capsule_data_size"], 16_384);
        assert_eq!(target[3]["params"]["listen_address"]["trsvcid"], "4600");
    }

    #[test]
    fn names_tell_variants_apart() {
        let mut names: Vec<String> = SpdkVariant::POLLING.iter().map(SpdkVariant::name).collect();
        names.push(SpdkVariant::INTERRUPT.name());
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 5);
    }
}
