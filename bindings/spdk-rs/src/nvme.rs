//! NVMe controllers, and how they are reached.

use serde_json::{Value, json};

use crate::error::Error;

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
