//! Drives of the guest's own: an emulated NVMe drive in a slot from which it can be pulled, or one of
//! which everything that it is told is logged.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::replay::Region;

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

/// What the guest has besides what every guest has.
#[derive(Clone, Copy)]
pub(crate) enum Attached<'a> {
    Nothing,
    Drive(&'a Drive),
    Logged(&'a LoggedDrive),
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

/// A drive with a volatile cache, in partitions: two that are served one after the other, and for each
/// one to which its host writes what it knows. So one log has the order of both.
pub(crate) struct LoggedDrive {
    image: String,
    log: String,
}

impl LoggedDrive {
    pub(crate) const PARTITIONS: [Region; 4] = [
        Region::after(1 << 20, 16 << 20),
        Region::after(17 << 20, 4 << 20),
        Region::after(21 << 20, 96 << 20),
        Region::after(117 << 20, 10 << 20),
    ];

    /// A new and empty one, whose content is kept in the file `image`, and its log in `log`.
    pub(crate) fn new(image: &Path, log: &Path) -> Result<Self> {
        let file = File::create(image).context("cannot make the drive's image")?;
        let ends = Self::PARTITIONS.iter().map(|one| one.at + one.bytes);
        let bytes = ends.max().unwrap_or(0);
        file.set_len(bytes)
            .and_then(|()| file.write_all_at(&partition_table(), 0))
            .context("cannot write the drive's image")?;
        File::create(log).context("cannot make the drive's log")?;
        let text = |path: &Path| path.to_str().map(str::to_owned);
        Ok(Self {
            image: text(image).context("the image's path is not text")?,
            log: text(log).context("the log's path is not text")?,
        })
    }

    /// Adds the drive to the emulator's command line. A flush has to reach the log only: the machine
    /// under the emulator stays up.
    pub(crate) fn attach(&self, emulator: &mut Command) {
        let file = |path: &str| {
            let cache = json!({ "no-flush": true });
            json!({ "driver": "file", "filename": path, "cache": cache, "discard": "unmap" })
        };
        let logged = json!({
            "driver": "blklogwrites",
            "node-name": "logged",
            "discard": "unmap",
            "file": { "driver": "raw", "discard": "unmap", "file": file(&self.image) },
            "log": file(&self.log),
        });
        let device = json!({ "driver": "virtio-blk-pci", "drive": "logged", "write-cache": "on" });
        emulator.arg("-blockdev").arg(logged.to_string());
        emulator.arg("-device").arg(device.to_string());
    }
}

/// A table of the kind that every system reads: at byte 446 four entries of 16 bytes, each with its
/// type, first sector and number of sectors; then the signature.
fn partition_table() -> [u8; 512] {
    const LINUX: u8 = 0x83;
    let mut table = [0; 512];
    let entries = table[446..510].chunks_exact_mut(16);
    for (entry, region) in entries.zip(LoggedDrive::PARTITIONS) {
        let sectors = |bytes: u64| u32::try_from(bytes / 512).unwrap_or(u32::MAX).to_le_bytes();
        entry[4] = LINUX;
        entry[8..12].copy_from_slice(&sectors(region.at));
        entry[12..].copy_from_slice(&sectors(region.bytes));
    }
    table[510..].copy_from_slice(&[0x55, 0xaa]);
    table
}

/// The drive as the emulator describes it, on its command line and in its control channel. With another
/// serial number it is another drive, whatever is on it.
pub(crate) fn device(serial: &str) -> Value {
    json!({ "driver": "nvme", "id": DEVICE, "bus": SLOT, "drive": MEDIUM, "serial": serial })
}
