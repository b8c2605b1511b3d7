//! NVMe controllers: how they are reached, and what is known by what.

use std::fmt;

use bowline_spdk_sys as sys;
use serde_json::{Value, json};

use crate::bdev::text;
use crate::error::Error;
use crate::library::c_string;

/// A controller to attach. Its namespaces become devices named after it: `drive` has `driven1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NvmeController {
    name: String,
    transport: &'static str,
    address: String,
}

impl NvmeController {
    /// The drive at an address on PCI, as `0000:01:00.0`. It has to be bound to a driver for user
    /// space (vfio-pci or uio_pci_generic).
    ///
    /// # Errors
    /// When that is no such address.
    pub fn pcie(name: &str, address: &str) -> Result<Self, Error> {
        if !is_pci_address(address) {
            let what = format!("controller {name} cannot be attached");
            return Err(
                Error::new(what, format!("{address:?} is no address on PCI"))
                    .help("it looks like 0000:01:00.0: domain, bus, device and function"),
            );
        }
        Ok(Self::new(name, "PCIe", address))
    }

    /// The controller that another process emulates at a socket in `folder` (vfio-user). SPDK has to
    /// be built with it.
    #[must_use]
    pub fn vfio_user(name: &str, folder: &str) -> Self {
        Self::new(name, "VFIOUSER", folder)
    }

    fn new(name: &str, transport: &'static str, address: &str) -> Self {
        Self {
            name: name.to_owned(),
            transport,
            address: address.to_owned(),
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The identifier of the namespace of which the device of this name is made; none if that is not
    /// one of this controller.
    #[must_use]
    pub fn namespace(&self, device: &str) -> Option<u32> {
        let id = device.strip_prefix(&self.name)?.strip_prefix('n')?;
        let is_number = id.bytes().all(|byte| byte.is_ascii_digit());
        id.parse().ok().filter(|_| is_number)
    }

    pub(crate) fn params(&self) -> Value {
        json!({"name": self.name, "trtype": self.transport, "traddr": self.address})
    }
}

/// By what a namespace is known, wherever its drive is. Zeroes, and nothing, where it does not say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NvmeIdentity {
    /// The drive's serial number, without what fills it up.
    pub serial: String,
    /// The drive's model, likewise.
    pub model: String,
    /// The namespace's identifier in its drive.
    pub namespace: u32,
    /// Its globally unique identifier.
    pub nguid: [u8; 16],
    /// Its IEEE extended unique identifier.
    pub eui64: [u8; 8],
    /// Its UUID.
    pub uuid: [u8; 16],
}

impl NvmeIdentity {
    /// Whether it tells the namespace from those of other drives of its model.
    #[must_use]
    pub fn is_distinctive(&self) -> bool {
        let names = [&self.nguid[..], &self.eui64, &self.uuid];
        let is_named = names.iter().any(|name| name.iter().any(|byte| *byte != 0));
        is_named || !self.serial.trim().is_empty()
    }
}

impl fmt::Display for NvmeIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            serial,
            model,
            namespace,
            ..
        } = self;
        write!(
            f,
            "namespace {namespace} of {model:?} with serial number {serial:?}"
        )?;
        for (name, bytes) in [
            ("NGUID", &self.nguid[..]),
            ("EUI64", &self.eui64),
            ("UUID", &self.uuid),
        ] {
            if bytes.iter().any(|byte| *byte != 0) {
                write!(f, ", {name} ")?;
                bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
            }
        }
        Ok(())
    }
}

/// What the device of this name is; on the application thread. None when it is no drive.
pub(crate) fn identity(name: &str) -> Result<Option<NvmeIdentity>, Error> {
    let what = || format!("device {name} was not identified");
    let c_name = c_string(&what(), name)?;
    let mut raw = sys::shim_nvme_identity::default();
    // SAFETY: the subsystems run, and this is the application thread; both live until after the call.
    let result = unsafe { sys::shim_bdev_nvme_identity(c_name.as_ptr(), &raw mut raw) };
    match -result {
        0 => Ok(Some(NvmeIdentity {
            serial: text(&raw.serial),
            model: text(&raw.model),
            namespace: raw.nsid,
            nguid: raw.nguid,
            eui64: raw.eui64,
            uuid: raw.uuid,
        })),
        libc::ENOTSUP => Ok(None),
        _ => Err(Error::of_result(what(), result)),
    }
}

/// `0000:01:00.0`, in hexadecimal. Domains that are not the machine's own bus have more digits.
fn is_pci_address(text: &str) -> bool {
    let is_hex = |text: &str, digits: usize| {
        text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    let mut parts = text.split(':');
    let (Some(domain), Some(bus), Some(rest), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    let Some((device, function)) = rest.split_once('.') else {
        return false;
    };
    let is_domain = (4..=8).any(|digits| is_hex(domain, digits));
    is_domain && is_hex(bus, 2) && is_hex(device, 2) && is_hex(function, 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_addresses_are_taken() {
        NvmeController::pcie("n", "0000:01:00.0").unwrap();
        NvmeController::pcie("n", "00a1:ff:1F.7").unwrap();
        NvmeController::pcie("n", "10000:e1:00.0").unwrap();
        for wrong in [
            "",
            "01:00.0",
            "000:01:00.0",
            "000000000:01:00.0",
            "0000:01:00",
            "0000:01:00.00",
            "0000:01:0g.0",
            "1:2:3:4.5",
        ] {
            let error = NvmeController::pcie("n", wrong).unwrap_err().to_string();
            assert!(
                error.contains("looks like 0000:01:00.0"),
                "{wrong}: {error}"
            );
        }
    }

    #[test]
    fn model_and_number_of_a_namespace_tell_it_from_no_other() {
        let model = NvmeIdentity {
            serial: String::new(),
            model: "model".to_owned(),
            namespace: 1,
            nguid: [0; 16],
            eui64: [0; 8],
            uuid: [0; 16],
        };
        assert!(!model.is_distinctive());
        let mut one = [0; 16];
        one[15] = 1;
        for distinctive in [
            NvmeIdentity {
                serial: "S1".to_owned(),
                ..model.clone()
            },
            NvmeIdentity {
                nguid: one,
                ..model.clone()
            },
            NvmeIdentity {
                eui64: [1; 8],
                ..model.clone()
            },
            NvmeIdentity {
                uuid: one,
                ..model.clone()
            },
        ] {
            assert!(distinctive.is_distinctive(), "{distinctive}");
        }
    }

    #[test]
    fn namespaces_are_known_by_their_names() {
        let controller = NvmeController::vfio_user("drive", "/run/drive");
        assert_eq!(controller.namespace("driven1"), Some(1));
        assert_eq!(controller.namespace("driven12"), Some(12));
        for other in [
            "drive", "driven", "driven+1", "drive1n1", "drivenn1", "other",
        ] {
            assert_eq!(controller.namespace(other), None, "{other}");
        }
    }
}
