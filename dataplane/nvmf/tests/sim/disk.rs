//! Devices that take their time, overtake themselves, and sometimes fail half-way.

use std::collections::BTreeMap;

use bowline_nvme::Status;
use bowline_nvme::nvm::{CopyRange, DsmRange};
use bowline_nvmf::target::{IoCommand, IoOp};

use super::model::BLOCK;
use super::random::Random;

#[derive(Default)]
pub(crate) struct Disks {
    blocks: BTreeMap<u32, Vec<u8>>,
}

impl Disks {
    pub(crate) fn add(&mut self, device: u32, blocks: u64) {
        let bytes = usize::try_from(blocks).expect("small") * BLOCK;
        self.blocks.entry(device).or_default().resize(bytes, 0);
    }

    /// Carries a command out, with `failure` perhaps half of it.
    pub(crate) fn run(
        &mut self,
        random: &mut Random,
        command: IoCommand,
        data: &mut [u8],
        failure: Option<Status>,
    ) -> Status {
        let disk = self.blocks.get_mut(&command.namespace.0).expect("known");
        let range = |lba: u64, blocks: u32| {
            let begin = usize::try_from(lba).expect("checked") * BLOCK;
            begin..begin + blocks as usize * BLOCK
        };
        let mut happens = || failure.is_none() || random.one_in(2);
        match command.op {
            IoOp::Read { lba, blocks, .. } => data.copy_from_slice(&disk[range(lba, blocks)]),
            IoOp::Write { lba, blocks, .. } => {
                let to = disk[range(lba, blocks)].chunks_exact_mut(BLOCK);
                for (to, from) in to.zip(data.chunks_exact(BLOCK)) {
                    if happens() {
                        to.copy_from_slice(from);
                    }
                }
            }
            IoOp::Compare { lba, blocks, .. } => {
                if failure.is_none() && disk[range(lba, blocks)] != *data {
                    return Status::COMPARE_FAILURE.dnr();
                }
            }
            IoOp::CompareAndWrite { lba, blocks, .. } => {
                let (expected, new) = data.split_at(data.len() / 2);
                if failure.is_none() && disk[range(lba, blocks)] != *expected {
                    return Status::COMPARE_FAILURE.dnr();
                }
                if failure.is_none() {
                    disk[range(lba, blocks)].copy_from_slice(new);
                }
            }
            IoOp::Copy { lba, ranges, .. } => {
                let mut to = lba;
                for one in (0..ranges).filter_map(|n| CopyRange::nth(data, n)) {
                    for block in 0..u64::from(one.blocks) {
                        if happens() {
                            let to = range(to + block, 1).start;
                            disk.copy_within(range(one.slba + block, 1), to);
                        }
                    }
                    to += u64::from(one.blocks);
                }
            }
            IoOp::Flush | IoOp::Verify { .. } => {}
            IoOp::WriteZeroes { lba, blocks, .. } => {
                for to in disk[range(lba, blocks)].chunks_exact_mut(BLOCK) {
                    if happens() {
                        to.fill(0);
                    }
                }
            }
            IoOp::Deallocate { ranges } => {
                for one in DsmRange::list(data, ranges) {
                    for to in disk[range(one.slba, one.blocks)].chunks_exact_mut(BLOCK) {
                        if happens() {
                            to.fill(0);
                        }
                    }
                }
            }
        }
        failure.unwrap_or(Status::SUCCESS)
    }
}
