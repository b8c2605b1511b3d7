//! What a drive says about its pool is read and understood: the checkpoint, the journal, and what follows from them. Says
//! meanwhile how far it is, to whoever opened the pool and in the log.

use std::fmt;

use bowline_block::{Device, IoError};
use bowline_nvme::Nanos;
use uuid::Uuid;

use super::checkpoint;
use super::open::{OpenError, Waiting};
use crate::format::codec::RecordReader;
use crate::format::journal::{JournalReader, SECTOR_BYTES, needed};
use crate::format::superblock::Superblock;
use crate::map::{State, Tolerance};

/// How often it is told how far it is, besides the start of each phase.
const TELL_INTERVAL: Nanos = Nanos::from_secs(1);

/// What of the journal is read until it is looked whether it is time to tell.
const JOURNAL_PIECE_BYTES: usize = 4 << 20;

/// Sectors of the journal that are replayed until the time is asked for, which may take a millisecond.
const REPLAY_SECTORS: u64 = 16 << 10;

/// What is done while a pool is opened, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RecoveryPhase {
    /// The superblocks are read. Counted in copies.
    Superblocks,
    /// The checkpoint is read and replayed. Counted in frames.
    Checkpoint,
    /// The journal is read. Counted in sectors.
    Journal,
    /// The groups of the journal are replayed. Counted in sectors.
    Groups,
    /// What is free is found, and everything is counted. Counted in extents.
    Bitmaps,
}

impl RecoveryPhase {
    /// Its name, and what is counted.
    const fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Superblocks => ("superblocks", "copies"),
            Self::Checkpoint => ("checkpoint", "frames"),
            Self::Journal => ("journal", "sectors"),
            Self::Groups => ("groups of the journal", "sectors"),
            Self::Bitmaps => ("bitmaps", "extents"),
        }
    }
}

/// How far the opening of a pool is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// What is being done.
    pub phase: RecoveryPhase,
    /// How much of this phase is done.
    pub done: u64,
    /// All of this phase.
    pub total: u64,
}

impl fmt::Display for Recovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (phase, unit) = self.phase.words();
        write!(f, "{phase}, {} of {} {unit}", self.done, self.total)
    }
}

/// Tells how far it is, not too often.
pub(super) struct Progress<'w> {
    watch: &'w mut dyn FnMut(Recovery),
    pool: Option<Uuid>,
    at: Recovery,
    told: Nanos,
}

impl<'w> Progress<'w> {
    /// The superblocks are about to be read.
    pub(super) fn begin(watch: &'w mut dyn FnMut(Recovery)) -> Self {
        let at = Recovery {
            phase: RecoveryPhase::Superblocks,
            done: 0,
            total: 2,
        };
        let mut progress = Self {
            watch,
            pool: None,
            at,
            told: Nanos::ZERO,
        };
        progress.tell(Nanos::ZERO);
        progress
    }

    /// The superblocks were read: this is the pool.
    pub(super) const fn found(&mut self, pool: Uuid) {
        self.pool = Some(pool);
    }

    /// The next phase begins.
    pub(super) fn phase(&mut self, phase: RecoveryPhase, total: u64, now: Nanos) {
        self.at = Recovery {
            phase,
            done: 0,
            total,
        };
        self.tell(now);
    }

    /// So much of the phase is done.
    pub(super) fn done(&mut self, done: u64, now: Nanos) {
        self.at.done = done;
        if now >= self.told.after(TELL_INTERVAL) {
            self.tell(now);
        }
    }

    fn tell(&mut self, now: Nanos) {
        self.told = now;
        let Recovery { phase, done, total } = self.at;
        let (phase, unit) = phase.words();
        let pool = self.pool.map(tracing::field::display);
        tracing::info!(pool, phase, done, total, unit, "pool is being opened");
        (self.watch)(self.at);
    }
}

/// What the drive said.
pub(super) struct Recovered {
    pub(super) state: State,
    /// The sequence of the next group.
    pub(super) next: u64,
    /// Where the last group is, and its sectors, if it may be in a cache only: perhaps in one that has failed to make it
    /// stable, and is not going to try again. So it is written again, as it is.
    pub(super) last: Option<(u64, Vec<u8>)>,
}

/// What checkpoint and journal say.
pub(super) fn replay<D: Device>(
    drive: &mut Waiting<'_, D>,
    superblock: &Superblock,
    progress: &mut Progress<'_>,
) -> Result<Recovered, OpenError> {
    let mut state = State::new(superblock.layout.limits());
    checkpoint::replay(drive, superblock, &mut state, progress)?;
    let ring = read_journal(drive, superblock, progress)?;
    let (next, last) = replay_journal(drive, (superblock, &ring), &mut state, progress)?;
    state.check_blocks(superblock.layout.block_bytes)?;
    let extents = u64::from(superblock.layout.extents);
    progress.phase(RecoveryPhase::Bitmaps, extents, drive.now());
    state.recovered()?;
    let last = last
        .filter(|_| superblock.closed_at.is_none())
        .and_then(|(sequence, sectors)| {
            let offset = superblock.layout.ring().offset(sequence);
            let start = usize::try_from(offset).ok()?;
            let bytes = usize::try_from(sectors).ok()? * SECTOR_BYTES;
            let group = ring.get(start..start + bytes)?;
            Some((superblock.layout.journal.offset + offset, group.to_vec()))
        });
    Ok(Recovered { state, next, last })
}

/// The ring, with those of its sectors that must be looked at; the others are zero.
fn read_journal<D: Device>(
    drive: &mut Waiting<'_, D>,
    superblock: &Superblock,
    progress: &mut Progress<'_>,
) -> Result<Vec<u8>, OpenError> {
    let area = superblock.layout.journal;
    let mut bytes = vec![0; usize::try_from(area.bytes).map_err(|_| IoError::OutOfRange)?];
    let ring = superblock.layout.ring();
    let total = needed(superblock);
    progress.phase(RecoveryPhase::Journal, total, drive.now());
    let mut done = 0;
    for place in ring.places(superblock.replay_from, total) {
        let of = |sector: u64| usize::try_from(sector).map_or(usize::MAX, |it| it * SECTOR_BYTES);
        let wanted = bytes.get_mut(of(place.start)..of(place.end));
        let wanted = wanted.ok_or(IoError::OutOfRange)?;
        let mut at = area.offset + ring.offset(place.start);
        for piece in wanted.chunks_mut(JOURNAL_PIECE_BYTES) {
            // What was made unreadable by time, or by a power cut, may be what nobody needs any more.
            drive.read_in_part(at, piece)?;
            let read = u64::try_from(piece.len()).unwrap_or(0);
            at += read;
            done += read >> 9;
            progress.done(done, drive.now());
        }
    }
    Ok(bytes)
}

/// Replays the journal. Returns where it ends, and where its last group is, with the number of its sectors.
fn replay_journal<D: Device>(
    drive: &mut Waiting<'_, D>,
    (superblock, ring): (&Superblock, &[u8]),
    state: &mut State,
    progress: &mut Progress<'_>,
) -> Result<(u64, Option<(u64, u64)>), OpenError> {
    let mut reader = JournalReader::of_needed(superblock, ring);
    let end = reader.end()?;
    let first = superblock.replay_from;
    progress.phase(
        RecoveryPhase::Groups,
        end.saturating_sub(first),
        drive.now(),
    );
    if reader.stale_damaged() > 0 {
        let (pool, sectors) = (superblock.uuid, reader.stale_damaged());
        tracing::warn!(%pool, sectors, "sectors of the journal that are not needed any more are damaged");
    }
    let mut ask_at = first.saturating_add(REPLAY_SECTORS);
    let mut last = None;
    while let Some(group) = reader.next_group() {
        last = Some((group.sequence, group.sectors));
        let tolerance = if group.is_strict {
            Tolerance::Strict
        } else {
            Tolerance::Replay
        };
        for record in RecordReader::new(group.records) {
            state.apply(&record?, tolerance)?;
        }
        if group.sequence >= ask_at {
            ask_at = group.sequence.saturating_add(REPLAY_SECTORS);
            progress.done(group.sequence - first, drive.turn());
        }
    }
    Ok((end, last))
}
