//! An emulated NVMe drive in a slot of its own, from which it can be pulled.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// The drive's name in the emulator.
pub(crate) const DEVICE: &str = "drive0";
/// What is on it stays when it is pulled.
const MEDIUM: &str = "medium";
const SLOT: &str = "slot0";
/// The drive's serial number.
pub(crate) const SERIAL: &str = "emulated";

/// What the emulator says of each flush that reaches the drive.
pub(crate) const FLUSH: &str = "pci_nvme_flush_ns";

/// What the host sends from two huge pages side by side reaches a data plane on the same kernel as one
/// piece. Linux 6.1 takes that for an overrun, and kills the reader.
const SAME_KERNEL: &str = "hardened_usercopy=off";

/// How a program in the guest gets at the drive: through which driver of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// By physical addresses, in huge pages.
    Uio,
    /// Through an IOMMU, which keeps the drive to the memory of the program.
    Vfio,
}

impl Access {
    /// The driver's name on the PCI bus.
    pub(crate) fn driver(self) -> &'static str {
        match self {
            Self::Uio => "uio_pci_generic",
            Self::Vfio => "vfio-pci",
        }
    }
}

/// The drive and the machine around it.
pub(crate) struct Drive {
    image: String,
    access: Access,
}

impl Drive {
    /// A new and empty one, whose content is kept in the file `image`.
    pub(crate) fn new(image: &Path, bytes: u64, access: Access) -> Result<Self> {
        let file = File::create(image).context("cannot make the drive's image")?;
        file.set_len(bytes)
            .context("cannot size the drive's image")?;
        let image = image.to_str().context("the image's path is not text")?;
        Ok(Self {
            image: image.to_owned(),
            access,
        })
    }

    /// Adds the drive and the machine that it needs to the emulator's command line.
    pub(crate) fn attach(&self, emulator: &mut Command, kernel_arguments: &str) {
        // Huge pages want memory, and slots that a drive can be pulled from are PCI Express.
        emulator.args(["-machine", "q35", "-m", "2048", "-append"]);
        match self.access {
            Access::Uio => {
                emulator.arg(format!("{kernel_arguments} {SAME_KERNEL}"));
            }
            Access::Vfio => {
                emulator.arg(format!("{kernel_arguments} {SAME_KERNEL} intel_iommu=on"));
                // Processes map memory at addresses of 48 bits; the device's own width is 39.
                emulator.args(["-device", "intel-iommu,intremap=on,aw-bits=48"]);
            }
        }
        let port = format!("pcie-root-port,id={SLOT},chassis=1,slot=1");
        // What the host deallocates is zero afterwards only if the image forgets it too.
        let medium = json!({
            "driver": "raw",
            "node-name": MEDIUM,
            "discard": "unmap",
            "file": { "driver": "file", "filename": self.image },
        });
        emulator
            .args(["-device", &port, "-blockdev"])
            .arg(medium.to_string())
            .arg("-device")
            .arg(device(SERIAL).to_string())
            .args(["-trace", &format!("enable={FLUSH}")]);
    }
}

/// The drive as the emulator describes it, on its command line and in its control channel. With another
/// serial number it is another drive, whatever is on it.
pub(crate) fn device(serial: &str) -> Value {
    json!({ "driver": "nvme", "id": DEVICE, "bus": SLOT, "drive": MEDIUM, "serial": serial })
}
