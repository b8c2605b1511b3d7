use proptest::prelude::*;
use uuid::Uuid;

use super::super::arbitrary::{self, tiny_superblock};
use super::super::codec::{RecordReader, WriteError};
use super::super::record::Record;
use super::super::superblock::Superblock;
use super::*;

/// A journal, what was written to it, and what must be found.
#[derive(Clone, Debug)]
struct History {
    superblock: Superblock,
    ring: Vec<u8>,
    /// What the ring was before the last durable group.
    before_last: Vec<u8>,
    next: u64,
    /// Durable groups from `replay_from` on.
    groups: Vec<(u64, Vec<u8>)>,
}

#[derive(Clone, Debug)]
enum Step {
    /// A group of records.
    Commit(Vec<Record<'static>>),
    /// A checkpoint begins before so many of the last groups, and is complete after all.
    Checkpoint(usize),
    /// A crash while a group is written: the sectors whose bits are set arrive.
    Crash(Vec<Record<'static>>, u64),
}

impl History {
    fn new(block_bytes: u32) -> Self {
        let superblock = tiny_superblock(block_bytes);
        let bytes = usize::try_from(superblock.layout.journal.bytes).unwrap();
        Self {
            next: superblock.replay_from,
            superblock,
            ring: vec![0; bytes],
            before_last: vec![0; bytes],
            groups: Vec::new(),
        }
    }

    fn of(block_bytes: u32, steps: &[Step]) -> Self {
        let mut history = Self::new(block_bytes);
        for step in steps {
            history.step(step);
        }
        history
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Commit(records) => self.commit(records),
            Step::Checkpoint(back) => self.checkpoint(*back),
            Step::Crash(records, arrive) => self.crash(records, *arrive),
        }
    }

    fn writer(&self, records: &[Record<'_>]) -> GroupWriter {
        let superblock = &self.superblock;
        let ring = superblock.layout.ring();
        let mut writer = GroupWriter::new(ring, superblock.uuid, superblock.generation);
        for record in records {
            // More than fits is left out.
            if writer.push(record).is_err() {
                break;
            }
        }
        writer
    }

    fn seal(&mut self, records: &[Record<'_>]) -> (GroupWriter, Sealed, Vec<u8>) {
        let writer = self.writer(records);
        let ring = self.superblock.layout.ring();
        if !ring.has_room(self.superblock.replay_from, self.next, writer.sectors()) {
            self.checkpoint(0);
        }
        let mut out = vec![0xee; 128 << 10];
        let sealed = writer.seal(self.next, &mut out).unwrap();
        out.truncate(sealed.bytes);
        assert_eq!(out.len() % self.superblock.layout.block_bytes as usize, 0);
        (writer, sealed, out)
    }

    fn commit(&mut self, records: &[Record<'_>]) {
        let (writer, sealed, sectors) = self.seal(records);
        self.before_last.clone_from(&self.ring);
        let at = usize::try_from(sealed.offset).unwrap();
        self.ring[at..at + sectors.len()].copy_from_slice(&sectors);
        self.groups
            .push((sealed.sequence, writer.records().to_vec()));
        self.next = sealed.next;
    }

    fn checkpoint(&mut self, back: usize) {
        let first = self.groups.len().saturating_sub(back);
        self.groups.drain(..first);
        self.superblock.replay_from = self.groups.first().map_or(self.next, |group| group.0);
        self.superblock.strict_from = self.next;
        self.superblock.sequence += 1;
    }

    fn crash(&mut self, records: &[Record<'_>], arrive: u64) {
        let (_, sealed, sectors) = self.seal(records);
        let at = usize::try_from(sealed.offset).unwrap();
        let count = (sectors.len() / SECTOR_BYTES) as u64;
        for (index, sector) in sectors.chunks(SECTOR_BYTES).enumerate() {
            // At least one is lost.
            if arrive >> (index % 64) & 1 == 1
                && Some(index) != usize::try_from(arrive % count).ok()
            {
                let at = at + index * SECTOR_BYTES;
                self.ring[at..at + SECTOR_BYTES].copy_from_slice(sector);
            }
        }
        self.superblock.generation += 1;
        self.superblock.sequence += 1;
    }

    fn reader(&self) -> JournalReader<'_> {
        JournalReader::new(&self.superblock, &self.ring)
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let mut reader = self.reader();
        prop_assert_eq!(reader.end(), Ok(self.next));
        prop_assert_eq!(reader.stale_damaged(), 0);
        prop_assert_eq!(all(&mut reader), self.groups.clone());
        Ok(())
    }

    /// Whether a place in the ring is of a durable group that is to be replayed.
    fn is_live(&self, position: u64) -> bool {
        let ring = self.superblock.layout.ring();
        self.groups.iter().any(|(start, records)| {
            let sectors =
                (records.len().div_ceil(480).max(1) as u64).next_multiple_of(ring.block_sectors());
            let from = ring.position(*start);
            (from..from + sectors).contains(&position)
        })
    }
}

fn all(reader: &mut JournalReader<'_>) -> Vec<(u64, Vec<u8>)> {
    let mut groups = Vec::new();
    while let Some(group) = reader.next_group() {
        groups.push((group.sequence, group.records.to_vec()));
    }
    groups
}

fn records() -> impl Strategy<Value = Vec<Record<'static>>> {
    prop_oneof![
        4 => prop::collection::vec(arbitrary::record(), 0..6),
        1 => prop::collection::vec(arbitrary::record(), 30..60),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => records().prop_map(Step::Commit),
        1 => (0..4_usize).prop_map(Step::Checkpoint),
        2 => (records(), any::<u64>()).prop_map(|(records, arrive)| Step::Crash(records, arrive)),
    ];
    prop::collection::vec(step, 1..50)
}

fn block() -> impl Strategy<Value = u32> {
    prop_oneof![Just(512), Just(4096)]
}

fn clean() -> [Record<'static>; 1] {
    [Record::Clean {
        physical: 3,
        count: 4,
    }]
}

/// Enough for several sectors.
fn long() -> [Record<'static>; 1] {
    [Record::Attribute {
        volume: 1,
        kind: 2,
        bytes: &[0x5a; 1500],
    }]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn whole_groups_are_found_whatever_a_crash_leaves_of_the_last(
        block in block(),
        steps in steps(),
    ) {
        let mut history = History::new(block);
        for step in &steps {
            history.step(step);
            history.check()?;
        }
    }

    #[test]
    fn a_changed_byte_is_seen_wherever_it_is(
        block in block(),
        steps in steps(),
        at in any::<prop::sample::Index>(),
        change in 1..=255_u8,
    ) {
        let mut history = History::of(block, &steps);
        let at = at.index(history.ring.len());
        history.ring[at] ^= change;
        let mut reader = history.reader();
        prop_assert!(reader.end().is_err() || reader.stale_damaged() > 0);
        if history.is_live((at / SECTOR_BYTES) as u64) {
            prop_assert!(reader.end().is_err());
        }
        prop_assert!(history.groups.starts_with(&all(&mut reader)));
    }

    #[test]
    fn a_write_that_was_lost_is_seen_if_anything_followed(
        block in block(),
        steps in steps(),
        at in any::<prop::sample::Index>(),
    ) {
        let mut history = History::of(block, &steps);
        // So that both find room.
        history.checkpoint(0);
        history.commit(&long());
        history.commit(&clean());
        let (start, _) = history.groups[history.groups.len() - 2];
        let sectors = if block == 512 { 4 } else { 8 };
        let ring = history.superblock.layout.ring();
        let at = usize::try_from(ring.offset(start)).unwrap() + at.index(sectors) * SECTOR_BYTES;
        // What it was before is not known any more; nothing at all is as good.
        history.ring[at..at + SECTOR_BYTES].fill(0);
        let mut reader = history.reader();
        let end = reader.end().unwrap_err();
        prop_assert!(matches!(end.reason, DamageReason::Missing { .. }), "{end}");
        prop_assert!(history.groups.starts_with(&all(&mut reader)));
    }

    #[test]
    fn of_the_last_group_all_is_found_or_nothing(
        block in block(),
        steps in steps(),
        keep in any::<u64>(),
    ) {
        let mut history = History::of(block, &steps);
        history.commit(&long());
        let changed = history.ring.chunks(SECTOR_BYTES).zip(history.before_last.chunks(SECTOR_BYTES));
        let changed: Vec<usize> =
            changed.enumerate().filter(|(_, (a, b))| a != b).map(|(index, _)| index).collect();
        let mut lost = 0;
        for (index, sector) in changed.iter().enumerate() {
            if keep >> index & 1 == 0 {
                let range = sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES;
                history.ring[range.clone()].copy_from_slice(&history.before_last[range]);
                lost += 1;
            }
        }
        let mut reader = history.reader();
        let (last, before) = history.groups.split_last().unwrap();
        if lost == 0 {
            prop_assert_eq!(reader.end(), Ok(history.next));
            prop_assert_eq!(all(&mut reader), history.groups.clone());
        } else {
            prop_assert_eq!(reader.end(), Ok(last.0));
            prop_assert_eq!(all(&mut reader), before);
        }
    }

    #[test]
    fn of_a_closed_journal_only_what_is_needed_is_looked_at(
        block in block(),
        steps in steps(),
        then in steps(),
    ) {
        let mut history = History::of(block, &steps);
        history.superblock.closed_at = Some(history.next);
        let closed = history.superblock.clone();
        let ring = closed.layout.ring();
        let mut bytes = vec![0xff; history.ring.len()];
        let mut looked_at = 0;
        for place in ring.places(closed.replay_from, needed(&closed)) {
            let sector = |at: u64| usize::try_from(at).unwrap() * SECTOR_BYTES;
            let place = sector(place.start)..sector(place.end);
            looked_at += place.len() as u64;
            bytes[place.clone()].copy_from_slice(&history.ring[place]);
        }
        let groups = (history.next - closed.replay_from) * 512;
        prop_assert!(looked_at <= groups + u64::from(block));
        let mut reader = JournalReader::of_needed(&closed, &bytes);
        prop_assert_eq!(reader.end(), Ok(history.next));
        prop_assert_eq!(all(&mut reader), history.groups.clone());

        // It was opened and written to since, and the superblock of then is lost.
        history.superblock.generation += 1;
        history.superblock.closed_at = None;
        history.commit(&clean());
        for step in &then {
            history.step(step);
        }
        prop_assert!(JournalReader::of_needed(&closed, &history.ring).end().is_err());
    }

    #[test]
    fn any_bytes_are_read_without_panic(
        block in block(),
        steps in steps(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..40),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut history = History::of(block, &steps);
        for (at, byte) in changes {
            let at = at.index(history.ring.len());
            history.ring[at] = byte;
        }
        history.ring.truncate(cut.index(history.ring.len()));
        let mut reader = history.reader();
        prop_assert!(reader.end().is_err() || reader.stale_damaged() > 0);
        prop_assert!(history.groups.starts_with(&all(&mut reader)));
    }
}

#[test]
fn an_empty_ring_ends_where_it_begins() {
    for block in [512, 4096] {
        let history = History::new(block);
        let ring = history.superblock.layout.ring();
        assert_eq!(history.next, ring.first());
        history.check().unwrap();
    }
}

#[test]
fn groups_are_one_piece_at_a_multiple_of_the_block() {
    for (bytes, block) in [
        (64 << 10, 512),
        (68 << 10, 4096),
        (1 << 20, 4096),
        (64 << 20, 512),
    ] {
        let ring = Ring::new(bytes, block);
        let longest = ring.group_sectors_max();
        assert!(longest > 0 && longest * 4 <= ring.sectors() && longest <= 256);
        assert_eq!(longest % ring.block_sectors(), 0);
        assert_eq!(ring.next_start(ring.first()), ring.first());
        for sequence in ring.first()..ring.first() + 2 * ring.sectors() {
            let start = ring.next_start(sequence);
            assert!(start >= sequence && start < sequence + longest + ring.block_sectors());
            assert!(ring.position(start) + longest <= ring.sectors());
            assert_eq!(ring.offset(start) % u64::from(block), 0);
            assert_eq!(ring.next_start(start), start);
        }
    }
}

#[test]
fn a_group_has_a_place_for_the_longest_attribute_in_a_journal_of_a_mebibyte() {
    let ring = Ring::new(1 << 20, 4096);
    let bytes = vec![7; super::super::codec::ATTRIBUTE_BYTES_MAX];
    let record = Record::Attribute {
        volume: 1,
        kind: 1,
        bytes: &bytes,
    };
    let mut writer = GroupWriter::new(ring, Uuid::nil(), 1);
    writer.push(&record).unwrap();
    assert_eq!(RecordReader::new(writer.records()).next(), Some(Ok(record)));
    assert_eq!(writer.push(&record), Err(WriteError::Full));

    let mut writer = GroupWriter::new(Ring::new(64 << 10, 4096), Uuid::nil(), 1);
    assert_eq!(writer.push(&record), Err(WriteError::TooLong));
}

#[test]
fn a_group_that_the_buffer_has_no_room_for_is_not_sealed() {
    let mut writer = GroupWriter::new(Ring::new(64 << 10, 4096), Uuid::nil(), 1);
    writer.push(&clean()[0]).unwrap();
    assert_eq!(writer.seal(128, &mut [0; 4095]), Err(WriteError::Full));
    let sealed = writer.seal(128, &mut [0; 4096]).unwrap();
    assert_eq!(
        sealed,
        Sealed {
            sequence: 128,
            offset: 0,
            bytes: 4096,
            next: 136
        }
    );
    writer.clear();
    assert!(writer.is_empty() && writer.records().is_empty());
}

/// The reason, with the journal of `history` after a change.
fn reason(mut history: History, change: impl FnOnce(&mut History)) -> DamageReason {
    change(&mut history);
    history.reader().end().unwrap_err().reason
}

#[test]
fn each_damage_is_told_by_its_name() {
    let mut history = History::new(512);
    for _ in 0..3 {
        history.commit(&clean());
    }
    let first = history.superblock.replay_from;
    let next = history.next;
    let sector = |sequence: u64| {
        let at = usize::try_from(sequence % 128).unwrap() * SECTOR_BYTES;
        at..at + SECTOR_BYTES
    };
    let garbage = reason(history.clone(), |history| {
        history.ring[sector(first + 1)].fill(0xff)
    });
    assert_eq!(garbage, DamageReason::Sector);
    // It may have been in a group that was durable.
    let garbage = reason(history.clone(), |history| {
        history.ring[sector(next)].fill(0xff)
    });
    assert_eq!(garbage, DamageReason::Sector);
    let missing = reason(history.clone(), |history| {
        history.ring[sector(first + 1)].fill(0)
    });
    assert_eq!(missing, DamageReason::Missing { proof: first + 2 });
    let closed = reason(history.clone(), |history| {
        history.superblock.closed_at = Some(next + 1)
    });
    assert_eq!(closed, DamageReason::BeforeClose);
    let strict = reason(history.clone(), |history| {
        history.superblock.strict_from = next + 1
    });
    assert_eq!(strict, DamageReason::BeforeCheckpoint);
    let older = reason(history, |history| history.superblock.generation -= 1);
    assert_eq!(older, DamageReason::SuperblockOlder);
}

#[test]
fn what_is_damaged_behind_the_end_of_a_closed_journal_is_of_no_consequence() {
    let mut history = History::new(512);
    history.commit(&clean());
    history.superblock.closed_at = Some(history.next);
    let at = usize::try_from(history.next % 128).unwrap() * SECTOR_BYTES;
    history.ring[at] = 1;
    let reader = history.reader();
    assert_eq!(reader.end(), Ok(history.next));
    assert_eq!(reader.stale_damaged(), 1);
}

#[test]
fn a_rest_of_a_longer_group_of_an_earlier_generation_is_an_end() {
    let mut history = History::new(512);
    // Four sectors, of which the second is lost.
    history.step(&Step::Crash(long().to_vec(), 0b1101));
    history.check().unwrap();
    let two = [Record::Attribute {
        volume: 1,
        kind: 2,
        bytes: &[1; 700],
    }];
    history.commit(&two);
    history.check().unwrap();
    // The same with nothing before it, since a checkpoint was made.
    history.checkpoint(0);
    history.check().unwrap();
}
