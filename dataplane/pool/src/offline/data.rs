//! The data of volumes with checksums, read and compared.

use super::{Inspection, Severity, Source};
use crate::format::layout::CHUNK_BYTES;
use crate::format::pages::{PAGE_BYTES, PageState, SlotMap, slot, slot_of_chunk, verify_page};
use crate::format::record::Checksums;

/// Read at once.
const PIECE_BYTES: usize = 1 << 20;

/// Findings that are told one by one; the rest is counted.
const FINDINGS_MAX: u64 = 1000;

/// What the data is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DataSummary {
    /// Chunks that are what was written.
    pub verified: u64,
    /// Chunks whose checksums are not known; they were not read.
    pub unverified: u64,
    /// Chunks that are not what was written.
    pub mismatches: u64,
    /// Chunks that cannot be read.
    pub unreadable: u64,
}

/// Compares the chunks of all versions that have checksums. Damaged pages are found elsewhere.
pub(super) fn compare(source: &mut dyn Source, inspection: &mut Inspection) {
    let map = inspection.superblock.layout.slots();
    let mut summary = DataSummary::default();
    let mut slots = Slots::default();
    let mut piece = vec![0; PIECE_BYTES];
    for physical in 0..inspection.superblock.layout.extents {
        let Some(owner) = owner(inspection, physical) else {
            continue;
        };
        if inspection.state.is_active(physical) {
            slots.forget();
        } else {
            slots.read(source, inspection, &map, physical);
        }
        let mut extent = Extent {
            physical,
            owner,
            map: &map,
            slots: &slots,
            summary: &mut summary,
        };
        extent.compare(source, inspection, &mut piece);
    }
    let found = summary.mismatches + summary.unreadable;
    if found > FINDINGS_MAX {
        let text = format!(
            "{} more chunks are wrong or unreadable",
            found - FINDINGS_MAX
        );
        inspection.find(Severity::Loss, "data", text);
    }
    inspection.data = Some(summary);
}

/// Volume and logical extent, if the volume has checksums.
fn owner(inspection: &Inspection, physical: u32) -> Option<(u32, u32)> {
    let (volume, logical, _) = inspection.state.owner(physical)?;
    let found = inspection.state.volume(inspection.state.slot(volume)?)?;
    (found.checksums != Checksums::Off).then_some((volume, logical))
}

/// The slots of a group.
#[derive(Default)]
struct Slots {
    group: Option<u32>,
    slots: Vec<u32>,
}

impl Slots {
    /// Nothing is known.
    fn forget(&mut self) {
        self.group = None;
        self.slots.clear();
    }

    fn read(
        &mut self,
        source: &mut dyn Source,
        inspection: &Inspection,
        map: &SlotMap,
        physical: u32,
    ) {
        let group = map.group_of(physical);
        if self.group == Some(group) {
            return;
        }
        self.forget();
        self.group = Some(group);
        let (uuid, area) = (
            inspection.superblock.uuid,
            inspection.superblock.layout.checksums,
        );
        let (first, count) = map.group_pages(group);
        for index in first..first + u64::from(count) {
            let mut page = [0; PAGE_BYTES];
            let offset = area.offset + index * PAGE_BYTES as u64;
            let is_valid = source.read(offset, &mut page).is_ok()
                && verify_page(&page, uuid, index) == PageState::Valid;
            let known = |at| if is_valid { slot(&page, at) } else { 0 };
            self.slots.extend((0..map.page_slots()).map(known));
        }
    }

    fn of(&self, at: u32) -> u32 {
        self.slots.get(at as usize).copied().unwrap_or(0)
    }
}

struct Extent<'a> {
    physical: u32,
    owner: (u32, u32),
    map: &'a SlotMap,
    slots: &'a Slots,
    summary: &'a mut DataSummary,
}

impl Extent<'_> {
    fn slot(&self, chunk: u32) -> u32 {
        self.slots.of(self.map.slot_in_group(self.physical, chunk))
    }

    fn compare(&mut self, source: &mut dyn Source, inspection: &mut Inspection, piece: &mut [u8]) {
        let layout = inspection.superblock.layout;
        let chunks = layout.extent_bytes / CHUNK_BYTES;
        let start = layout.data.offset + u64::from(self.physical) * u64::from(layout.extent_bytes);
        let at_once = u32::try_from(piece.len()).unwrap_or(CHUNK_BYTES) / CHUNK_BYTES;
        let mut next = 0;
        while next < chunks {
            let end = chunks.min(next + at_once);
            let has = |chunk: &u32| {
                inspection
                    .state
                    .has_chunks(self.physical, *chunk..*chunk + 1)
            };
            let present: Vec<u32> = (next..end).filter(has).collect();
            let known: Vec<u32> = present
                .iter()
                .copied()
                .filter(|chunk| self.slot(*chunk) != 0)
                .collect();
            self.summary.unverified += (present.len() - known.len()) as u64;
            let offset = start + u64::from(next * CHUNK_BYTES);
            let bytes = &mut piece[..(end - next) as usize * CHUNK_BYTES as usize];
            let is_read = !known.is_empty() && source.read(offset, bytes).is_ok();
            for chunk in known {
                let at = (chunk - next) as usize * CHUNK_BYTES as usize;
                let bytes = &mut bytes[at..at + CHUNK_BYTES as usize];
                let place = start + u64::from(chunk * CHUNK_BYTES);
                // One by one where they cannot be read together.
                let result = if is_read {
                    Ok(())
                } else {
                    source.read(place, bytes)
                };
                self.judge(inspection, chunk, place, result.map(|()| &*bytes));
            }
            next = end;
        }
    }

    fn judge(
        &mut self,
        inspection: &mut Inspection,
        chunk: u32,
        place: u64,
        bytes: std::io::Result<&[u8]>,
    ) {
        let expected = self.slot(chunk);
        let text = match bytes.map(slot_of_chunk) {
            Ok(found) if found == expected => {
                self.summary.verified += 1;
                return;
            }
            Ok(found) => {
                self.summary.mismatches += 1;
                format!("it is not what was written: checksum {found:08x}, not {expected:08x}")
            }
            Err(error) => {
                self.summary.unreadable += 1;
                format!("it cannot be read: {error}")
            }
        };
        if self.summary.mismatches + self.summary.unreadable > FINDINGS_MAX {
            return;
        }
        let (volume, logical) = self.owner;
        let extent_bytes = inspection.superblock.layout.extent_bytes;
        let within = u64::from(logical) * u64::from(extent_bytes) + u64::from(chunk * CHUNK_BYTES);
        let where_it_is =
            format!("volume {volume}, 4096 bytes at {within} (of the drive: {place})");
        inspection.find(Severity::Loss, where_it_is, text);
    }
}
