//! What can be said about a configuration without touching the system.

use std::collections::HashSet;
use std::net::SocketAddr;

use bowline_nvme::nqn;
use bowline_nvmf::target::{CNTLID_MAX, NSID_MAX};

use crate::config::{
    BackingConfig, CONNECTIONS_MAX, Config, IN_CAPSULE_DATA_BYTES, Limits, MAX_TRANSFER_BYTES,
    MEMORY_BLOCK_BYTES, QUEUE_DEPTH, QUEUES_PER_HOST_MAX, Serve,
};
use crate::error::StartError;
use crate::names::ANY_HOST;

/// Bytes of a serial number. [BASE-2.0 §5.17.2.1, SN]
const SERIAL_BYTES_MAX: usize = 20;
/// Least transfer a host may rely on: one page. [BASE-2.0 §5.17.2.1, MDTS]
const TRANSFER_BYTES_MIN: u32 = 4096;
/// In-capsule data is counted in units of 16 bytes. [BASE-2.0 §5.17.2.1, IOCCSZ]
const CAPSULE_UNIT_BYTES: u32 = 16;
/// Least depth of a queue; hosts open several, and small ones only cost round trips.
const QUEUE_DEPTH_MIN: u16 = 16;
/// Addresses a data plane listens on at most.
const LISTENERS_MAX: usize = 64;

impl Config {
    /// Finds what is impossible, without opening or binding anything.
    ///
    /// # Errors
    /// The first thing found, with what to write instead.
    pub fn check(&self) -> Result<(), StartError> {
        self.check_backing()?;
        self.check_serve()?;
        self.check_listeners()?;
        self.check_names()?;
        self.check_identity()?;
        self.limits.check()
    }

    fn check_backing(&self) -> Result<(), StartError> {
        if let BackingConfig::Memory { size_bytes } = self.backing {
            let block_bytes = u64::from(self.block_bytes.unwrap_or(MEMORY_BLOCK_BYTES));
            if size_bytes == 0 || !size_bytes.is_multiple_of(block_bytes) {
                return Err(StartError::config(
                    format!("--memory {size_bytes} is not a positive multiple of the block size"),
                    format!("give a multiple of {block_bytes} bytes, such as 1GiB"),
                ));
            }
        }
        match self.allow_paths.iter().find(|path| !path.is_absolute()) {
            Some(path) => Err(StartError::config(
                format!("--allow-path {} is not absolute", path.display()),
                "give the whole path, from /",
            )),
            None => Ok(()),
        }
    }

    /// Flags given that are about one disk, of which a pool has many.
    pub(crate) fn of_one_disk(&self) -> Vec<&'static str> {
        let given = [
            ("--nqn", self.nqn.is_some()),
            ("--serial", self.serial.is_some()),
            ("--namespaces-max", self.namespaces_max.is_some()),
            ("--uuid", self.uuid.is_some()),
            ("--nguid", self.nguid.is_some()),
        ];
        let given = given.into_iter().filter(|(_, is_given)| *is_given);
        given.map(|(flag, _)| flag).collect()
    }

    fn check_serve(&self) -> Result<(), StartError> {
        let Serve::Pool { .. } = self.serve else {
            return Ok(());
        };
        if let Some(flag) = self.of_one_disk().first() {
            return Err(StartError::config(
                format!("{flag} is given with --format"),
                "leave it out: each volume of a pool is a disk of its own, named by its UUID",
            ));
        }
        if self.backing.is_shared() {
            return Err(StartError::config(
                "--shared-device is given with --format".to_owned(),
                "leave it out: a pool belongs to one data plane",
            ));
        }
        Ok(())
    }

    fn check_listeners(&self) -> Result<(), StartError> {
        if self.listen.is_empty() || self.listen.len() > LISTENERS_MAX {
            return Err(StartError::config(
                format!("{} listeners are not possible", self.listen.len()),
                format!("give --listen 1 to {LISTENERS_MAX} times"),
            ));
        }
        if let Some(address) = self.advertise
            && (address.port() == 0 || address.ip().is_unspecified())
        {
            return Err(StartError::config(
                format!("--advertise {address} is no address that a host can reach"),
                "give the address and the port that hosts connect to",
            ));
        }
        let mut seen = HashSet::new();
        let fixed = self.listen.iter().filter(|address| address.port() != 0);
        for address in fixed.chain(
            [&self.rpc, &self.metrics]
                .into_iter()
                .filter(|a| a.port() != 0),
        ) {
            if !seen.insert(address) {
                return Err(StartError::config(
                    format!("{address} is given twice"),
                    "give --listen, --rpc and --metrics addresses of their own",
                ));
            }
        }
        Ok(())
    }

    fn check_names(&self) -> Result<(), StartError> {
        if let Some(nqn) = &self.nqn {
            check_subsystem_nqn(nqn).map_err(|why| {
                StartError::config(
                    format!("--nqn {nqn:?} is not possible: {why}"),
                    "write it like nqn.2026-11.io.bowline:node:drive",
                )
            })?;
        }
        if let Some(nqn) = &self.discovery_nqn {
            check_subsystem_nqn(nqn).map_err(|why| {
                StartError::config(
                    format!("--discovery-nqn {nqn:?} is not possible: {why}"),
                    "write it like nqn.2026-11.io.bowline:node:discovery, or leave it out",
                )
            })?;
        }
        let mut addresses = HashSet::new();
        for referral in &self.referrals {
            let (address, nqn) = (referral.address, referral.nqn.as_deref());
            check_referral(address, nqn).map_err(|(message, hint)| {
                StartError::config(format!("--referral: {message}"), hint)
            })?;
            if !addresses.insert(address) {
                return Err(StartError::config(
                    format!("--referral {address} is given twice"),
                    "leave one out",
                ));
            }
        }
        for host in self.hosts.iter().filter(|host| *host != ANY_HOST) {
            check_host_nqn(host).map_err(|why| {
                StartError::config(
                    format!("--host {host:?} is not possible: {why}"),
                    "write what /etc/nvme/hostnqn of the host holds, or any",
                )
            })?;
        }
        Ok(())
    }
}

impl Config {
    fn check_identity(&self) -> Result<(), StartError> {
        let refused = |flag: &str, (message, hint): (String, String)| {
            StartError::config(format!("{flag}: {message}"), hint)
        };
        if let Some(serial) = &self.serial {
            check_serial(serial).map_err(|why| refused("--serial", why))?;
        }
        if let Some(range) = self.cntlids {
            check_cntlids(range).map_err(|why| refused("--cntlid-range", why))?;
        }
        if let Some(most) = self.controllers_max {
            check_controllers_max(most).map_err(|why| refused("--controllers-max", why))?;
        }
        if let Some(most) = self.namespaces_max {
            check_namespaces_max(most).map_err(|why| refused("--namespaces-max", why))?;
        }
        for (flag, identifier) in [("--uuid", self.uuid), ("--nguid", self.nguid)] {
            if identifier == Some([0; 16]) {
                return Err(StartError::config(
                    format!("{flag} of zeroes is no identity"),
                    "make one with `uuidgen`, or leave it out",
                ));
            }
        }
        Ok(())
    }
}

impl Limits {
    fn check(&self) -> Result<(), StartError> {
        let transfer = self.max_transfer_bytes;
        if !(TRANSFER_BYTES_MIN..=MAX_TRANSFER_BYTES).contains(&transfer)
            || !transfer.is_power_of_two()
        {
            return Err(StartError::config(
                format!("a largest transfer of {transfer} bytes is not possible"),
                "give --max-transfer a power of two from 4KiB to 1MiB",
            ));
        }
        let capsule = self.in_capsule_data_bytes;
        if capsule > IN_CAPSULE_DATA_BYTES || !capsule.is_multiple_of(CAPSULE_UNIT_BYTES) {
            return Err(StartError::config(
                format!("in-capsule data of {capsule} bytes is not possible"),
                "give --in-capsule-data a multiple of 16 bytes up to 16KiB",
            ));
        }
        for (flag, count, most) in [
            ("--connections-max", self.connections_max, CONNECTIONS_MAX),
            (
                "--queues-per-host-max",
                self.queues_per_host_max,
                QUEUES_PER_HOST_MAX,
            ),
        ] {
            // A host needs an admin queue and one for I/O.
            if !(2..=most).contains(&count) {
                return Err(StartError::config(
                    format!("{flag} {count} is not possible"),
                    format!("give 2 to {most}"),
                ));
            }
        }
        if !(QUEUE_DEPTH_MIN..=QUEUE_DEPTH).contains(&self.queue_depth) {
            return Err(StartError::config(
                format!("a queue depth of {} is not possible", self.queue_depth),
                format!("give --queue-depth {QUEUE_DEPTH_MIN} to {QUEUE_DEPTH}"),
            ));
        }
        Ok(())
    }
}

/// What is wrong, and what to write instead.
type Wrong = (String, String);

/// A serial number that Identify Controller can hold. [BASE-2.0 §5.17.2.1, SN]
pub(crate) fn check_serial(serial: &str) -> Result<(), Wrong> {
    let is_text = serial.bytes().all(|byte| (0x20..0x7f).contains(&byte));
    // Spaces pad it on the wire, so at the ends they would be lost.
    if is_text && (1..=SERIAL_BYTES_MAX).contains(&serial.len()) && serial.trim() == serial {
        return Ok(());
    }
    let message = format!("serial number {serial:?} is not possible");
    Err((
        message,
        format!("write 1 to {SERIAL_BYTES_MAX} ASCII characters, no space at the ends"),
    ))
}

/// Controller IDs that may be given out. [BASE-2.0 CNTLID]
pub(crate) fn check_cntlids((first, last): (u16, u16)) -> Result<(), Wrong> {
    if (1..=CNTLID_MAX).contains(&first) && (first..=CNTLID_MAX).contains(&last) {
        return Ok(());
    }
    let message = format!("controller IDs {first} to {last} are not possible");
    Err((
        message,
        format!("write a range within 1-{CNTLID_MAX}, the lower end first"),
    ))
}

pub(crate) fn check_controllers_max(most: u16) -> Result<(), Wrong> {
    if most > 0 {
        return Ok(());
    }
    let message = "no controller at all is not possible".to_owned();
    Err((
        message,
        "write how many hosts may connect at a time".to_owned(),
    ))
}

pub(crate) fn check_namespaces_max(most: u32) -> Result<(), Wrong> {
    if (1..=NSID_MAX).contains(&most) {
        return Ok(());
    }
    let message = format!("{most} namespaces are not possible");
    Err((message, format!("write 1 to {NSID_MAX}")))
}

/// Another discovery subsystem, with its own NQN or the well-known one.
pub(crate) fn check_referral(address: SocketAddr, nqn: Option<&str>) -> Result<(), Wrong> {
    if address.port() == 0 || address.ip().is_unspecified() {
        let message = format!("{address} is no address that a host can reach");
        return Err((message, "write it like 192.0.2.9:8009".to_owned()));
    }
    match nqn.map(check_host_nqn) {
        None | Some(Ok(())) => Ok(()),
        Some(Err(why)) => {
            let message = format!("NQN {:?} is not possible: {why}", nqn.unwrap_or_default());
            Err((
                message,
                "leave it out for the well-known discovery NQN".to_owned(),
            ))
        }
    }
}

/// An NQN that a subsystem may have: valid, not the discovery one, and without "/",
/// which separates the parts of resource names.
pub(crate) fn check_subsystem_nqn(text: &str) -> Result<(), String> {
    check_host_nqn(text)?;
    if text == nqn::DISCOVERY {
        return Err("it is the NQN of the discovery subsystem".to_owned());
    }
    if text.contains('/') {
        return Err("\"/\" would make its resource name ambiguous".to_owned());
    }
    Ok(())
}

/// An NQN that a host may have.
pub(crate) fn check_host_nqn(text: &str) -> Result<(), String> {
    nqn::validate(text).map_err(|error| error.to_string())
}
