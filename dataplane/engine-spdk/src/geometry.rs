//! What a device of the library is, in our words, and which ones cannot be served.

use bowline_block::{Deallocate, Geometry};
use bowline_spdk_rs::{BdevInfo, Operation};

use crate::options::SpdkError;

/// Logical block sizes that hosts are offered, in bytes.
const BLOCK_BYTES: [u32; 2] = [512, 4096];

/// The module of devices that are namespaces of an NVMe controller.
const DRIVE: &str = "nvme";

/// The device as hosts will see it.
pub(crate) fn geometry(info: &BdevInfo) -> Result<Geometry, SpdkError> {
    let refused = |cause: String, hint: &str| {
        Err(SpdkError {
            is_busy: false,
            cause,
            hint: hint.to_owned(),
        })
    };
    let name = &info.name;
    if info.metadata_bytes > 0 {
        let bytes = info.metadata_bytes;
        return refused(
            format!("blocks of {name} carry {bytes} bytes of metadata, which hosts would not see"),
            "format the drive without metadata (`nvme format`)",
        );
    }
    if !BLOCK_BYTES.contains(&info.block_bytes) {
        let bytes = info.block_bytes;
        return refused(
            format!("blocks of {name} are {bytes} bytes long"),
            "hosts are offered blocks of 512 or 4096 bytes: make the device with such",
        );
    }
    if info.write_unit_blocks > 1 {
        let blocks = info.write_unit_blocks;
        return refused(
            format!(
                "{name} is written {blocks} blocks at a time, and hosts would write single ones"
            ),
            "serve a device that takes single blocks",
        );
    }
    if info.blocks == 0 {
        return refused(
            format!("{name} has no blocks"),
            "give the device a size, or name another one",
        );
    }
    let can_flush = info.supports(Operation::Flush);
    if info.write_cache && !can_flush {
        return refused(
            format!("{name} has a volatile write cache, which SPDK would not flush"),
            "use SPDK 25.09 or later, and leave enable_flush of bdev_nvme_set_options at true",
        );
    }
    Ok(Geometry {
        block_bytes: info.block_bytes,
        blocks: info.blocks,
        // Only of a drive is it known; a RAID of drives says that it has none, whatever they have.
        volatile_cache: info.write_cache || (can_flush && info.module != DRIVE),
        read_only: !info.supports(Operation::Write),
        // What the medium writes as one; the library never says more than what outlives a power cut.
        atomic_write_blocks: (info.physical_block_bytes / info.block_bytes).max(1),
        optimal_io_blocks: info.optimal_boundary_blocks,
        deallocate: if info.supports(Operation::Unmap) {
            // What a released block reads as is not said.
            Deallocate::Undefined
        } else {
            Deallocate::None
        },
        deallocate_granularity_blocks: 0,
        write_zeroes: info.supports(Operation::WriteZeroes),
        thin: false,
    })
}
