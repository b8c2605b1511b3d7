//! `bowline dataplane`: flags in, a running data plane out.

mod flags;
mod spdk;

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;

use bowline_server::{
    AnaState, BackingConfig, Config, IoBackend, Limits, PollMode, Ready, Referral, Serve,
};
use clap::ArgMatches;
use serde::Serialize;

pub(crate) use flags::{Address, AnaFlag, BlockSize, CntlidRange, DataplaneFlags, Identifier};
use flags::{IoFlag, PollFlag, ReferralFlag};

use crate::error::CliError;
use crate::log;
use crate::size::Size;

/// Runs a data plane until it is told to stop.
pub(crate) fn run(mut flags: DataplaneFlags, matches: &ArgMatches) -> Result<(), CliError> {
    flags.prefer_command_line(matches);
    let flags = flags.with_file()?;
    let filter = log::filter(flags.log_level.as_deref())?;
    let format = flags.log_format.unwrap_or_default();
    let check_only = flags.check_config;
    if let Some(parent) = flags.end_with {
        end_with(parent)?;
    }
    let config = config(flags)?;
    if check_only {
        config.check()?;
        return Ok(());
    }
    // Dropped before the caller says how it ended, so the last lines come first.
    let _last_lines = log::start(format, filter);
    bowline_server::run(config, announce)?;
    Ok(())
}

/// Lets the kernel kill this process when the one that started it ends, however it ends.
fn end_with(parent: i32) -> Result<(), CliError> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .map_err(|error| CliError::failed("the parent cannot be watched").cause(error))?;
    match rustix::process::getppid() {
        Some(pid) if pid.as_raw_nonzero().get() == parent => Ok(()),
        _ => Err(CliError::failed(
            "the process that started this one has ended",
        )),
    }
}

/// The line that tells whoever started the process where it listens. Printed once.
fn announce(ready: &Ready) {
    let line = ReadyLine {
        listen: &ready.listen,
        rpc: ready.rpc,
        metrics: ready.metrics,
        pid: std::process::id(),
    };
    if let Ok(json) = serde_json::to_string(&line) {
        let mut stdout = std::io::stdout().lock();
        // Nobody reading is no reason to stop serving disks.
        let _unread = writeln!(stdout, "ready {json}").and_then(|()| stdout.flush());
    }
}

#[derive(Serialize)]
struct ReadyLine<'a> {
    listen: &'a [SocketAddr],
    rpc: SocketAddr,
    metrics: SocketAddr,
    pid: u32,
}

/// Turns flags into a configuration, or says what is wrong with them.
fn config(flags: DataplaneFlags) -> Result<Config, CliError> {
    refuse_what_is_not_there(&flags)?;
    let limits = limits(&flags)?;
    let ana = ana(flags.ana, flags.ana_state)?;
    let serve = serve(&flags)?;
    let shared = flags.shared_device.unwrap_or(false);
    let (backing, spdk) = match spdk::backing(&flags)? {
        Some((device, options)) if flags.memory.is_none() => (device, Some(options)),
        _ => (backing(flags.device, flags.memory, shared)?, None),
    };
    let mut listen: Vec<SocketAddr> = flags.listen.iter().map(|address| address.nvme()).collect();
    if listen.is_empty() {
        listen.push(Address::LOOPBACK.nvme());
    }
    Ok(Config {
        backing,
        serve,
        block_bytes: flags.block_size.map(|BlockSize(bytes)| bytes),
        listen,
        advertise: flags.advertise.map(Address::nvme),
        rpc: flags.rpc.unwrap_or(Address::LOOPBACK).rpc(),
        metrics: flags.metrics.unwrap_or(Address::LOOPBACK).metrics(),
        node: flags.node.unwrap_or_else(host_name),
        nqn: flags.nqn,
        discovery_nqn: flags.discovery_nqn,
        referrals: flags.referral.into_iter().map(referral).collect(),
        serial: flags.serial,
        cntlids: flags
            .cntlid_range
            .map(|CntlidRange(first, last)| (first, last)),
        controllers_max: flags.controllers_max,
        namespaces_max: flags.namespaces_max,
        ana,
        uuid: flags.uuid.map(|Identifier(bytes)| bytes),
        nguid: flags.nguid.map(|Identifier(bytes)| bytes),
        hosts: flags.host,
        cores: flags.cores.map_or_else(Vec::new, |cores| cores.0),
        io: match flags.io {
            None | Some(IoFlag::Auto) => IoBackend::Auto,
            Some(IoFlag::Uring) => IoBackend::Uring,
            Some(IoFlag::Epoll) => IoBackend::Epoll,
        },
        poll: match flags.poll {
            None | Some(PollFlag::Adaptive) => PollMode::Adaptive,
            Some(PollFlag::Always) => PollMode::Always,
            Some(PollFlag::Never) => PollMode::Never,
        },
        spdk,
        allow_paths: flags.allow_path,
        state: flags.state,
        limits,
    })
}

fn backing(
    device: Option<PathBuf>,
    memory: Option<Size>,
    shared: bool,
) -> Result<BackingConfig, CliError> {
    match (device, memory) {
        (Some(path), None) => Ok(BackingConfig::Path { path, shared }),
        (None, Some(_)) if shared => Err(CliError::usage("--memory cannot be shared")
            .cause("it is memory of one process")
            .hint("share a device or a file: --device PATH --shared-device")),
        (None, Some(Size(size_bytes))) => Ok(BackingConfig::Memory { size_bytes }),
        (Some(_), Some(_)) => Err(CliError::usage("both --device and --memory are given")
            .cause("a data plane serves one device")
            .hint("keep the one you mean")),
        (None, None) => Err(
            CliError::usage("nothing to serve: neither --device nor --memory")
                .hint("give --device PATH, or try it with --memory 1GiB"),
        ),
    }
}

/// What of the device is served.
fn serve(flags: &DataplaneFlags) -> Result<Serve, CliError> {
    let is_on = |flag: Option<bool>| flag.unwrap_or(false);
    match (is_on(flags.format), is_on(flags.force), is_on(flags.raw)) {
        (true, force, false) => Ok(Serve::Pool { force }),
        (false, false, true) => Ok(Serve::Whole),
        (false, false, false) => Ok(Serve::Found),
        (true, _, true) => Err(CliError::usage("both --format and --raw are given")
            .cause("one is for a pool, the other for the whole device")
            .hint("keep the one you mean")),
        (false, true, _) => Err(CliError::usage("--force is given without --format")
            .cause("nothing is overwritten then")
            .hint("add --format, or leave it out")),
    }
}

fn referral(flag: ReferralFlag) -> Referral {
    Referral {
        address: flag.address.discovery(),
        nqn: flag.nqn,
        // Nobody asked it.
        persistent_connections: false,
    }
}

fn ana(on: Option<bool>, state: Option<AnaFlag>) -> Result<Option<AnaState>, CliError> {
    let initial = match state {
        None | Some(AnaFlag::Optimized) => AnaState::Optimized,
        Some(AnaFlag::NonOptimized) => AnaState::NonOptimized,
        Some(AnaFlag::Inaccessible) => AnaState::Inaccessible,
        Some(AnaFlag::PersistentLoss) => AnaState::PersistentLoss,
        Some(AnaFlag::Change) => {
            return Err(
                CliError::usage("--ana-state change is no state to begin with")
                    .cause("hosts wait for a change to end")
                    .hint("give --ana-state inaccessible, and set another with `bowline ana set`"),
            );
        }
    };
    match (on.unwrap_or(false), state) {
        (true, _) => Ok(Some(initial)),
        (false, None) => Ok(None),
        (false, Some(_)) => Err(CliError::usage("--ana-state is given without --ana")
            .cause("hosts are told of states only if the subsystem reports them")
            .hint("add --ana")),
    }
}

/// Flags of later versions are known, so that nobody takes silence for consent.
fn refuse_what_is_not_there(flags: &DataplaneFlags) -> Result<(), CliError> {
    if flags.controller.is_some() {
        return Err(CliError::usage("--controller is not available yet")
            .cause("this version has no control plane to register with")
            .hint("leave it out, and manage the data plane at its --rpc address"));
    }
    Ok(())
}

fn limits(flags: &DataplaneFlags) -> Result<Limits, CliError> {
    let most = Limits::default();
    let bytes = |flag: &str, size: Option<Size>, most: u32| match size {
        None => Ok(most),
        Some(Size(bytes)) => u32::try_from(bytes)
            .ok()
            .filter(|b| *b <= most)
            .ok_or_else(|| {
                CliError::usage(format!("{flag} {} is too large", Size(bytes))).hint(format!(
                    "it can only be lowered, from {}",
                    Size(u64::from(most))
                ))
            }),
    };
    Ok(Limits {
        max_transfer_bytes: bytes(
            "--max-transfer",
            flags.max_transfer,
            most.max_transfer_bytes,
        )?,
        in_capsule_data_bytes: bytes(
            "--in-capsule-data",
            flags.in_capsule_data,
            most.in_capsule_data_bytes,
        )?,
        queue_depth: flags.queue_depth.unwrap_or(most.queue_depth),
        connections_max: flags.connections_max.unwrap_or(most.connections_max),
        queues_per_host_max: flags
            .queues_per_host_max
            .unwrap_or(most.queues_per_host_max),
    })
}

fn host_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

#[cfg(test)]
mod tests;
