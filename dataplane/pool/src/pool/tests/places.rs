//! What the parts of a pool's drive are for, as far as what comes of damage depends on it.

use std::ops::Range;

use super::medium::Medium;
use crate::format::journal::JournalReader;
use crate::format::layout::SUPERBLOCK_OFFSETS;
use crate::format::superblock::Superblock;

const SECTOR: u64 = 512;
const PAGE: u64 = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    FirstSuperblock,
    SecondSuperblock,
    /// Both at once.
    BothSuperblocks,
    /// The first group that is replayed.
    JournalHead,
    JournalMiddle,
    /// The last group that is replayed, where the superblock tells that it was written.
    JournalLast,
    /// The last group that is replayed, where nothing else tells that it was written.
    JournalTail,
    /// Where the journal goes on, with what is left there of a group that was cut short.
    JournalNext,
    JournalRest,
    /// The beginning of a frame of the checkpoint that counts.
    FrameHead,
    FrameRecords,
    /// Where the other checkpoint is, and behind this one.
    OtherCheckpoint,
    ChecksumPage,
    /// Chunks that are compared when they are read.
    VerifiedData,
    OtherData,
}

impl Kind {
    pub(super) const ALL: [Self; 15] = [
        Self::FirstSuperblock,
        Self::SecondSuperblock,
        Self::BothSuperblocks,
        Self::JournalHead,
        Self::JournalMiddle,
        Self::JournalLast,
        Self::JournalTail,
        Self::JournalNext,
        Self::JournalRest,
        Self::FrameHead,
        Self::FrameRecords,
        Self::OtherCheckpoint,
        Self::ChecksumPage,
        Self::VerifiedData,
        Self::OtherData,
    ];

    /// Whether the pool is refused without it.
    pub(super) const fn is_needed(self) -> bool {
        matches!(
            self,
            Self::BothSuperblocks
                | Self::JournalHead
                | Self::JournalMiddle
                | Self::JournalLast
                | Self::JournalTail
                | Self::FrameHead
                | Self::FrameRecords
        )
    }
}

/// What is damaged at a time: nearly always one place.
pub(super) struct Target {
    pub(super) kind: Kind,
    pub(super) ranges: Vec<Range<u64>>,
}

struct Targets<'a> {
    medium: &'a Medium,
    superblock: &'a Superblock,
    all: Vec<Target>,
}

/// All places but those of data: every sector, and whatever is written with one request.
pub(super) fn targets(medium: &Medium, superblock: &Superblock) -> Vec<Target> {
    let mut it = Targets {
        medium,
        superblock,
        all: Vec::new(),
    };
    it.superblocks();
    it.journal();
    it.checkpoints();
    let checksums = superblock.layout.checksums;
    for at in (checksums.offset..checksums.end().unwrap()).step_by(4096) {
        it.whole_and_sectors(Kind::ChecksumPage, at..at + PAGE);
    }
    it.all
}

impl Targets<'_> {
    fn add(&mut self, kind: Kind, range: Range<u64>) {
        self.all.push(Target {
            kind,
            ranges: vec![range],
        });
    }

    fn sectors(&mut self, kind: Kind, range: Range<u64>) {
        for at in range.step_by(512) {
            self.add(kind, at..at + SECTOR);
        }
    }

    fn whole_and_sectors(&mut self, kind: Kind, range: Range<u64>) {
        self.sectors(kind, range.clone());
        if range.end - range.start > SECTOR {
            self.add(kind, range);
        }
    }

    fn superblocks(&mut self) {
        let [first, second] = SUPERBLOCK_OFFSETS;
        self.whole_and_sectors(Kind::FirstSuperblock, first..first + PAGE);
        self.whole_and_sectors(Kind::SecondSuperblock, second..second + PAGE);
        for bytes in [SECTOR, PAGE] {
            let ranges = vec![first..first + bytes, second..second + bytes];
            let kind = Kind::BothSuperblocks;
            self.all.push(Target { kind, ranges });
        }
    }

    fn journal(&mut self) {
        let (layout, ring) = (self.superblock.layout, self.superblock.layout.ring());
        let area = layout.journal;
        let bytes = self.medium.bytes_at(&(area.offset..area.end().unwrap()));
        let sector = |sequence: u64| {
            let at = usize::try_from(ring.offset(sequence)).unwrap();
            &bytes[at..at + 512]
        };
        let place = |sequence: u64| area.offset + ring.offset(sequence);
        let mut reader = JournalReader::new(self.superblock, &bytes);
        let end = reader.end().unwrap();
        let mut groups = Vec::new();
        while let Some(group) = reader.next_group() {
            let mut last = group.sequence;
            while sector(last)[30] & 1 == 0 {
                last += 1;
            }
            groups.push(group.sequence..last + 1);
        }
        let mut is_known = vec![false; usize::try_from(ring.sectors()).unwrap()];
        let mut know = |sequence: u64| {
            let position = usize::try_from(ring.position(sequence)).unwrap();
            is_known[position] = true;
        };
        for (index, group) in groups.iter().enumerate() {
            let is_proven =
                self.superblock.closed_at.is_some() || group.end <= self.superblock.strict_from;
            let kind = match (index, is_proven) {
                (last, true) if last + 1 == groups.len() => Kind::JournalLast,
                (last, false) if last + 1 == groups.len() => Kind::JournalTail,
                (0, _) => Kind::JournalHead,
                _ => Kind::JournalMiddle,
            };
            group.clone().for_each(&mut know);
            let start = place(group.start);
            self.whole_and_sectors(kind, start..start + (group.end - group.start) * SECTOR);
        }
        // What a crash left there is looked at as far as it hangs together.
        let is_left = |sequence: &u64| {
            let head = sector(*sequence);
            head[..4] == *b"BWLJ" && head[8..16] == sequence.to_le_bytes()
        };
        let left = (end..end + ring.group_sectors_max()).take_while(is_left);
        let left = u64::try_from(left.count()).unwrap() + 1;
        for sequence in end..end + left.max(ring.block_sectors()) {
            know(sequence);
            self.sectors(Kind::JournalNext, place(sequence)..place(sequence) + SECTOR);
        }
        for (position, _) in (0..).zip(&is_known).filter(|(_, is_known)| !**is_known) {
            self.sectors(Kind::JournalRest, place(position)..place(position) + SECTOR);
        }
    }

    fn checkpoints(&mut self) {
        let areas = self.superblock.layout.checkpoints;
        for (index, area) in (0..).zip(areas) {
            let mut at = area.offset;
            let here = self.superblock.checkpoint.filter(|it| it.area == index);
            for _ in 0..here.map_or(0, |it| it.frames) {
                let head = self.medium.bytes_at(&(at..at + SECTOR));
                let bytes = u32::from_le_bytes(head[36..40].try_into().unwrap());
                let end = at + u64::from(bytes);
                self.add(Kind::FrameHead, at..at + SECTOR);
                self.add(Kind::FrameHead, at..end);
                self.sectors(Kind::FrameRecords, at + SECTOR..end);
                at = end;
            }
            // Frames that were here before, and the rest.
            for page in (at..area.end().unwrap()).step_by(4096) {
                self.add(Kind::OtherCheckpoint, page..page + PAGE);
            }
        }
    }
}
