//! Devices that take their time, overtake themselves, sometimes fail half-way, and forget what
//! was not flushed when power is lost.

use std::collections::BTreeMap;
use std::ops::Range;

use bowline_nvme::Status;
use bowline_nvme::nvm::{CopyRange, DsmRange};
use bowline_nvmf::target::{IoCommand, IoOp};

use super::model::BLOCK;
use super::random::Random;

#[derive(Default)]
pub(crate) struct Disks {
    blocks: BTreeMap<u32, Vec<u8>>,
    /// Of each block that is only in the cache, by its first byte: what stable media may hold
    /// when power is lost, but for its latest content.
    cached: BTreeMap<(u32, usize), Vec<Vec<u8>>>,
}

impl Disks {
    pub(crate) fn add(&mut self, device: u32, blocks: u64) {
        let bytes = usize::try_from(blocks).expect("small") * BLOCK;
        self.blocks.entry(device).or_default().resize(bytes, 0);
    }

    /// Each block that is only in the cache keeps its content, or one that it had since it was
    /// stable last.
    pub(crate) fn lose_power(&mut self, random: &mut Random) {
        for ((device, at), contents) in std::mem::take(&mut self.cached) {
            let disk = self.blocks.get_mut(&device).expect("known");
            if let Some(content) = contents.get(random.index(contents.len() + 1)) {
                disk[at..at + BLOCK].copy_from_slice(content);
            }
        }
    }

    /// Carries a command out, with `failure` perhaps half of it.
    pub(crate) fn run(
        &mut self,
        random: &mut Random,
        command: IoCommand,
        data: &mut [u8],
        failure: Option<Status>,
    ) -> Status {
        let device = command.namespace.0;
        let before = self.blocks.get(&device).expect("known").clone();
        let status = self.act(random, command, data, failure);
        let after = &self.blocks[&device];
        let blocks = before.chunks_exact(BLOCK).zip(after.chunks_exact(BLOCK));
        for (index, (old, _)) in blocks.enumerate().filter(|(_, (old, new))| old != new) {
            let contents = self.cached.entry((device, index * BLOCK)).or_default();
            contents.push(old.to_vec());
        }
        if let Some(blocks) = stable(&command.op).filter(|_| status.is_success()) {
            let is_stable =
                |at: usize| blocks.contains(&u64::try_from(at / BLOCK).expect("64 bits"));
            self.cached
                .retain(|(of, at), _| *of != device || !is_stable(*at));
        }
        status
    }

    fn act(
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

/// The blocks that a command which succeeds leaves on stable media.
fn stable(op: &IoOp) -> Option<Range<u64>> {
    match *op {
        IoOp::Flush => Some(0..u64::MAX),
        IoOp::Read { lba, blocks, fua }
        | IoOp::Write { lba, blocks, fua }
        | IoOp::Compare { lba, blocks, fua }
        | IoOp::Verify { lba, blocks, fua }
        | IoOp::WriteZeroes {
            lba, blocks, fua, ..
        }
        | IoOp::Copy {
            lba, blocks, fua, ..
        } => fua.then(|| lba..lba + u64::from(blocks)),
        IoOp::CompareAndWrite {
            lba,
            blocks,
            read_fua,
            fua,
            ..
        } => (read_fua || fua).then(|| lba..lba + u64::from(blocks)),
        IoOp::Deallocate { .. } => None,
    }
}
