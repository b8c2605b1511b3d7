//! Looking at a pool that is not in use, without changing it: what its superblocks, checkpoint
//! and journal say, and everything that is wrong with it, explained.
//!
//! What is read is what recovery reads, by the same code; but where recovery refuses, this goes on
//! as far as that makes sense. Whether the data of volumes is what was written is looked at only if
//! that is asked for.

mod data;
mod erase;
mod mend;
mod replay;
mod source;

use crate::format::foreign::FOREIGN_BYTES;
use crate::format::journal;
use crate::format::layout::{Layout, SUPERBLOCK_OFFSETS};
use crate::format::pages::{PAGE_BYTES, PageState, verify_page};
use crate::format::superblock::{
    CheckpointPlace, CopyError, SUPERBLOCK_BYTES, Superblock, SuperblockError,
};
use crate::map::State;

pub use data::DataSummary;
pub use erase::{EraseError, erase};
pub use mend::{MendError, Mended, mend};
pub use source::{Source, Target};

/// Pages that are read at once.
const PAGES_AT_ONCE: usize = 256;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Of no consequence, or opening the pool mends it.
    Notice,
    /// Something is lost that nobody can tell from what is on this drive; the rest is right.
    Loss,
    /// The pool is not opened.
    Damage,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// In which structure, and where.
    pub place: String,
    /// What it is.
    pub text: String,
}

/// What the checkpoint that counts has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointSummary {
    /// Which.
    pub place: CheckpointPlace,
    /// Frames that were read.
    pub frames: u32,
    /// Their bytes.
    pub bytes: u64,
    /// Their records.
    pub records: u64,
}

/// What the journal has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalSummary {
    /// Whole groups to replay.
    pub groups: u64,
    /// Their records.
    pub records: u64,
    /// The sequence before which there are whole groups.
    pub readable_to: u64,
    /// The sequence of the next group, or why there is none.
    pub end: Result<u64, journal::Damage>,
}

/// A pool as it is on its drive.
#[derive(Debug)]
pub struct Inspection {
    /// What each copy of the superblock is.
    pub copies: [Result<(), CopyError>; 2],
    /// The one that counts.
    pub superblock: Superblock,
    /// The copy that opening the pool would write again.
    pub to_mend: Option<usize>,
    /// The checkpoint that counts, if there is one.
    pub checkpoint: Option<CheckpointSummary>,
    /// The journal.
    pub journal: JournalSummary,
    /// Volumes and extents, as far as they were read.
    pub state: State,
    /// Pages of checksums that were looked at.
    pub pages: u64,
    /// What the data is, if that was asked for and the map could be read.
    pub data: Option<DataSummary>,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

/// How much is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// What opening the pool looks at.
    Opening,
    /// Every invariant, and the pages of checksums.
    Everything,
    /// The data of volumes with checksums, too.
    Data,
}

/// Why there is nothing to look at.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// Neither copy of the superblock.
    #[error("neither superblock can be read: {0}")]
    Read(std::io::Error),
    /// It is no pool, or not one that can be read.
    #[error(transparent)]
    Superblock(#[from] SuperblockError),
}

impl Inspection {
    /// The worst there is.
    #[must_use]
    pub fn worst(&self) -> Option<Severity> {
        self.findings.iter().map(|finding| finding.severity).max()
    }

    fn find(&mut self, severity: Severity, place: impl Into<String>, text: impl ToString) {
        let (place, text) = (place.into(), text.to_string());
        self.findings.push(Finding {
            severity,
            place,
            text,
        });
    }
}

/// Looks at a pool.
pub fn inspect(source: &mut dyn Source, depth: Depth) -> Result<Inspection, InspectError> {
    let mut inspection = superblocks(source)?;
    let is_read = replay::replay(source, &mut inspection);
    if depth != Depth::Opening {
        if is_read {
            for text in inspection.state.check() {
                inspection.find(Severity::Damage, "map", text);
            }
        }
        pages(source, &mut inspection);
        if is_read && depth == Depth::Data {
            data::compare(source, &mut inspection);
        }
    }
    Ok(inspection)
}

/// The start of a drive, and the second copy of its superblock. One that cannot be read is FFh:
/// that is what there are two for.
fn read_superblocks(source: &mut dyn Source) -> Result<[Vec<u8>; 2], InspectError> {
    let mut unreadable = Vec::new();
    let mut read = |offset: u64, bytes: usize| {
        let left = source.bytes().saturating_sub(offset);
        let bytes = usize::try_from(left).map_or(bytes, |left| left.min(bytes));
        let mut out = vec![0; bytes];
        if out.is_empty() {
            return out;
        }
        if let Err(error) = source.read(offset, &mut out) {
            out.fill(0xff);
            unreadable.push(error);
        }
        out
    };
    let [first, second] = SUPERBLOCK_OFFSETS;
    let copies = [read(first, FOREIGN_BYTES), read(second, SUPERBLOCK_BYTES)];
    match <[_; 2]>::try_from(unreadable) {
        Ok([source, _]) => Err(InspectError::Read(source)),
        Err(_) => Ok(copies),
    }
}

fn superblocks(source: &mut dyn Source) -> Result<Inspection, InspectError> {
    let [start, second] = read_superblocks(source)?;
    let chosen = Superblock::choose(&start, &second)?;
    let superblock = chosen.superblock;
    let block_bytes = source
        .block_bytes()
        .unwrap_or(superblock.layout.block_bytes);
    superblock.check_drive(source.bytes(), block_bytes)?;
    let copies = [&start, &second].map(|copy| Superblock::decode(copy).map(drop));
    let next = superblock.replay_from;
    let mut inspection = Inspection {
        copies,
        to_mend: chosen.to_mend.map(|(copy, _)| copy),
        checkpoint: None,
        journal: JournalSummary {
            groups: 0,
            records: 0,
            readable_to: next,
            end: Ok(next),
        },
        state: State::new(superblock.layout.limits()),
        pages: 0,
        data: None,
        findings: Vec::new(),
        superblock,
    };
    if let Some((copy, error)) = chosen.to_mend {
        let place = format!("superblock {copy}");
        match error {
            Some(error) => inspection.find(Severity::Notice, place, error),
            None => inspection.find(Severity::Notice, place, "it is older than the other one"),
        }
    }
    if let Err(error) = inspection.superblock.check_writable() {
        inspection.find(Severity::Notice, "superblock", error);
    }
    Ok(inspection)
}

/// Looks at the pages of checksums of extents that are in use and not active.
fn pages(source: &mut dyn Source, inspection: &mut Inspection) {
    let Layout { checksums, .. } = inspection.superblock.layout;
    let uuid = inspection.superblock.uuid;
    let slots = inspection.superblock.layout.slots();
    let count = slots.pages();
    let mut bytes = vec![0; PAGES_AT_ONCE * PAGE_BYTES];
    while inspection.pages < count {
        let first = inspection.pages;
        let left = usize::try_from(count - first)
            .unwrap_or(usize::MAX)
            .min(PAGES_AT_ONCE);
        let some = &mut bytes[..left * PAGE_BYTES];
        let offset = checksums.offset + first * PAGE_BYTES as u64;
        let is_read = source.read(offset, some);
        if let Err(error) = is_read {
            let place = format!("pages of checksums from {first} on");
            inspection.find(
                Severity::Loss,
                place,
                format!("they cannot be read: {error}"),
            );
        } else {
            for (index, page) in (first..).zip(some.as_chunks::<PAGE_BYTES>().0) {
                // While its extents are active nobody believes it, and a crash may have torn it.
                let is_believed = slots
                    .page_extents(index)
                    .any(|physical| !inspection.state.is_active(physical));
                if is_believed && verify_page(page, uuid, index) == PageState::Damaged {
                    let text = "it is damaged: what it covers is not verified until it is written";
                    inspection.find(Severity::Loss, format!("page of checksums {index}"), text);
                }
            }
        }
        inspection.pages += left as u64;
    }
}

#[cfg(test)]
mod tests;
