//! Hosts that are connected and want nothing: they only send keep-alives.

use std::io::Write;
use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use bowline_nvme::Nanos;
use bowline_nvme::nqn::Nqn;
use bowline_nvmf::host::ControllerConfig;
use bowline_reactor::{Config, PollMode};
use bowline_tcp::host::Initiator;
use clap::Args;

/// How long connecting may take.
const CONNECT_LIMIT: Nanos = Nanos::from_secs(10);

#[derive(Debug, Args)]
pub(crate) struct HostsArguments {
    #[arg(long)]
    address: SocketAddr,
    #[arg(long)]
    subsystem: String,
    #[arg(long)]
    hosts: u8,
    #[arg(long)]
    seconds: u64,
}

/// Connects, says `ready`, and stays for so long; fails if a host was disconnected meanwhile.
pub(crate) fn run(arguments: &HostsArguments) -> Result<()> {
    let config = Config {
        poll: PollMode::Never,
        ..Config::default()
    };
    let mut initiator = Initiator::new(&config).context("cannot make a reactor")?;
    let subsystem = Nqn::new(&arguments.subsystem).context("subsystem")?;
    let mut paths = Vec::new();
    for index in 0..arguments.hosts {
        let id = [0xb0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, index];
        let name = format!("nqn.2026-11.io.bowline:compare-host-{index}");
        let host = Nqn::new(&name).context("host")?;
        let config = ControllerConfig {
            reconnect: None,
            ..ControllerConfig::new(host, id, subsystem)
        };
        paths.push(initiator.connect(arguments.address, config));
    }
    for path in &paths {
        let deadline = initiator.now().saturating_add(CONNECT_LIMIT);
        initiator
            .wait_ready(*path, deadline)
            .context("a host did not connect")?;
    }
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "ready").context("standard output")?;
    stdout.flush().context("standard output")?;
    let deadline = initiator
        .now()
        .saturating_add(Nanos::from_secs(arguments.seconds));
    let lost = initiator.run_until(deadline, |service, _| {
        paths.iter().any(|path| !service.path(*path).is_ready())
    });
    if lost {
        bail!("a host was disconnected");
    }
    Ok(())
}
