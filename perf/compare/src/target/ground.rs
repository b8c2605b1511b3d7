//! Memory for a file before it is written to. A drive has a place for every block that it may ever
//! hold; a file has the kernel look for one when a block is written first. That is work of its own
//! kind, which differs by where the blocks are, and none that a pool saves or causes.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};
use bowline_pool::format::layout::{Area, Layout, LayoutOptions};
use rustix::fs::{FallocateFlags, fallocate};

use super::bowline::BLOCK_BYTES;
use crate::cell::{EXTENT_BYTES, Ground, State};

/// Has the kernel find memory for what a volume, or a namespace that is a file, is going to have.
/// What is written there already stays.
pub(super) fn lay(drive: &Path, ground: Ground, state: State, is_pool: bool) -> Result<()> {
    let area = if is_pool {
        // The rest of a pool's drive is written when the pool is made, or is not written meanwhile.
        Layout::plan(state.drive_bytes(), BLOCK_BYTES, &LayoutOptions::default())?.data
    } else {
        Area {
            offset: 0,
            bytes: state.namespace_bytes(),
        }
    };
    let (step, len) = match ground {
        Ground::Heads => (EXTENT_BYTES, u64::from(BLOCK_BYTES)),
        Ground::Whole => (area.bytes, area.bytes),
    };
    let file = File::options().write(true).open(drive).context("drive")?;
    let mut at = area.offset;
    while at < area.offset + area.bytes {
        fallocate(&file, FallocateFlags::empty(), at, len)
            .with_context(|| format!("no memory for {}", drive.display()))?;
        at += step;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    #[test]
    fn every_extent_has_its_first_block_and_keeps_what_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let drive = folder.path().join("drive");
        let file = File::create_new(&drive).unwrap();
        let state = State::Snapshot;
        file.set_len(state.drive_bytes()).unwrap();
        file.write_all_at(b"kept", 0).unwrap();
        lay(&drive, Ground::Heads, state, false).unwrap();
        let there = file.metadata().unwrap().blocks() * 512;
        let heads = state.namespace_bytes() / EXTENT_BYTES * u64::from(BLOCK_BYTES);
        assert!(there >= heads, "{there} of {heads}");
        assert!(there < state.namespace_bytes(), "{there}");
        let mut start = [0; 4];
        std::fs::File::open(&drive)
            .unwrap()
            .read_exact_at(&mut start, 0)
            .unwrap();
        assert_eq!(&start, b"kept");
    }
}
