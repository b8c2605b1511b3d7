//! What is asked of the pool besides reading and writing: volumes and snapshots are made, changed and deleted.
//!
//! One after another, in the order they were asked for; each ends with one group of records, so a crash finds it done or
//! not done. Volumes that are made one after another share groups.

use std::collections::{HashSet, VecDeque};

use bowline_block::{Device, DeviceEvent};
use uuid::Uuid;

use super::engine::Engine;
use super::growth::Growth;
use super::journal::{Change, Waiter};
use super::{Operation, Outcome, PoolError, VolumeSpec};
use crate::format::codec::{RecordWriter, record_bytes};
use crate::format::record::Record;
use crate::map::Reader;

/// Operations that wait at once.
const OPERATIONS_MAX: usize = 16_384;

/// Volumes that are made at once.
const CREATES_MAX: usize = 256;

/// What is to be done.
#[derive(Clone, Debug)]
pub(super) enum Job {
    Create(VolumeSpec),
    Delete {
        volume: u32,
    },
    Resize {
        volume: u32,
        bytes: u64,
        is_forced: bool,
    },
    Snapshot {
        volume: u32,
        uuid: Uuid,
        name: String,
        created: u64,
    },
    DeleteSnapshot {
        volume: u32,
        number: u32,
    },
    SetAttribute {
        volume: u32,
        kind: u32,
        bytes: Vec<u8>,
    },
    /// The collector gives up snapshots.
    Drop {
        volume: u32,
        snapshots: Box<[u32]>,
    },
}

/// How far an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Not begun, or waiting until nobody changes the map of its volume, or about to go on.
    Begun,
    /// Its records are on their way; perhaps they only prepare what is to be recorded then.
    Recording { is_last: bool },
    /// Zeroes are written by way of this port.
    Zeroing(u32),
    /// They are written.
    Zeroed,
}

struct Running {
    id: u64,
    job: Job,
    outcome: Outcome,
    stage: Stage,
    /// The volume whose changes wait meanwhile.
    frozen: Option<u32>,
    /// Extents that it is going to promise to a thick volume.
    pledged: u64,
}

/// An operation that is durable.
struct Graced {
    id: u64,
    outcome: Outcome,
    /// The volume that a snapshot was taken of.
    snapshot_of: Option<u32>,
}

/// Records that an operation needs, and what it is then.
pub(super) struct Plan {
    pub(super) change: Change,
    pub(super) outcome: Outcome,
    pub(super) pledged: u64,
}

/// Operations, from being asked for to being told done.
#[derive(Default)]
pub(super) struct Operations {
    next_id: u64,
    queue: VecDeque<(u64, Job)>,
    /// Those that the pool itself has begun.
    own: HashSet<u64>,
    /// More than one only while volumes are made.
    running: VecDeque<Running>,
    /// Durable, and waiting until all has ended that began before.
    graced: Vec<Graced>,
    done: VecDeque<(Operation, Result<Outcome, PoolError>)>,
    is_closing: bool,
}

impl Operations {
    pub(super) fn start(&mut self, job: Job) -> Result<Operation, PoolError> {
        if self.is_closing {
            return Err(PoolError::Closing);
        }
        if self.queue.len() + self.done.len() >= OPERATIONS_MAX {
            return Err(PoolError::Busy);
        }
        self.next_id += 1;
        self.queue.push_back((self.next_id, job));
        Ok(Operation(self.next_id))
    }

    /// Something that the pool itself wants done; nobody is told of its end.
    pub(super) fn start_own(&mut self, job: Job) {
        self.next_id += 1;
        self.own.insert(self.next_id);
        // Next: a volume that is to be resized waits for the collector, which would wait for this.
        self.queue.push_front((self.next_id, job));
    }

    pub(super) fn next_done(&mut self) -> Option<(Operation, Result<Outcome, PoolError>)> {
        self.done.pop_front()
    }

    pub(super) fn has_done(&self) -> bool {
        !self.done.is_empty()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.running.is_empty() && self.graced.is_empty()
    }

    /// Nothing new begins from now on.
    pub(super) const fn close(&mut self) {
        self.is_closing = true;
    }

    pub(super) const fn is_closing(&self) -> bool {
        self.is_closing
    }

    /// The volume that is being resized: what is beyond its end is prepared, and to be left alone.
    pub(super) fn resizing(&self) -> Option<u32> {
        match self.running.front()?.job {
            Job::Resize { volume, .. } => Some(volume),
            _ => None,
        }
    }

    /// Extents that are going to be promised to thick volumes.
    pub(super) fn pledged(&self) -> u64 {
        self.running.iter().map(|running| running.pledged).sum()
    }

    /// Volumes whose records are on their way.
    pub(super) fn creating(&self) -> u32 {
        let is_create = |running: &&Running| matches!(running.job, Job::Create(_));
        let count = self.running.iter().filter(is_create).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// Whether the next can begin beside those that run.
    fn can_begin(&self) -> bool {
        let is_create = |job: &Job| matches!(job, Job::Create(_));
        let next = self.queue.front();
        let joins = self.running.len() < CREATES_MAX
            && next.is_some_and(|(_, job)| is_create(job))
            && self.running.iter().all(|running| is_create(&running.job));
        next.is_some() && (self.running.is_empty() || joins)
    }

    fn end(&mut self, id: u64, result: Result<Outcome, PoolError>) {
        if !self.own.remove(&id) {
            self.done.push_back((Operation(id), result));
        }
    }
}

/// Records, one after another.
#[derive(Default)]
pub(super) struct Bytes(Vec<u8>);

impl Bytes {
    pub(super) fn push(&mut self, record: &Record<'_>) -> Result<(), PoolError> {
        let len = record_bytes(record).ok_or(PoolError::Invalid("the name is too long"))?;
        let at = self.0.len();
        self.0.resize(at + len, 0);
        let mut writer = RecordWriter::new(&mut self.0[at..]);
        let written = writer.push(record);
        written.map_err(|_| PoolError::Invalid("the record is too long"))
    }

    pub(super) const fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn into_change(self) -> Change {
        Change::Encoded(self.0.into())
    }
}

impl<D: Device> Engine<D> {
    /// Goes on with operations. Returns whether anything was started.
    pub(super) fn run_operations(&mut self) -> bool {
        self.go_on_operating();
        let mut is_started = false;
        while self.operations.can_begin()
            && let Some((id, job)) = self.operations.queue.pop_front()
        {
            is_started = true;
            let frozen = self.frozen_by(&job);
            self.operations.running.push_back(Running {
                id,
                job,
                outcome: Outcome::Done,
                stage: Stage::Begun,
                frozen,
                pledged: 0,
            });
            self.go_on_operating();
        }
        is_started
    }

    /// The volume whose writes must not change the map while the job runs.
    fn frozen_by(&self, job: &Job) -> Option<u32> {
        let volume = match *job {
            // Without a snapshot an older version may be written to in place, where a change has already begun to make a
            // new one.
            Job::Delete { volume }
            | Job::Snapshot { volume, .. }
            | Job::DeleteSnapshot { volume, .. }
            | Job::Drop { volume, .. } => volume,
            // Nothing may be mapped beyond the new end.
            Job::Resize { volume, bytes, .. } => {
                let (_, found) = self.find_volume(volume).ok()?;
                (bytes < found.bytes).then_some(volume)?
            }
            Job::Create(_) | Job::SetAttribute { .. } => return None,
        };
        self.state.slot(volume).map(|_| volume)
    }

    /// Waits until nobody changes the volume's map, does what comes first, and then writes the records.
    fn go_on_operating(&mut self) {
        let is_waiting = |running: &Running| !matches!(running.stage, Stage::Recording { .. });
        let Some(mut running) = self.operations.running.pop_back_if(|it| is_waiting(it)) else {
            return;
        };
        if let Some(volume) = running.frozen
            && !self.freeze(volume)
        {
            self.operations.running.push_back(running);
            return;
        }
        match self.next_stage(&mut running) {
            Ok(stage) => {
                running.stage = stage;
                self.operations.running.push_back(running);
            }
            Err(error) => self.refuse(&running, error),
        }
    }

    fn refuse(&mut self, running: &Running, error: PoolError) {
        self.thaw_after(running);
        self.operations.end(running.id, Err(error));
        match running.job {
            Job::Drop { .. } => self.collected(false),
            // What was to hide something beyond the end is not needed.
            Job::Resize { volume, .. } => self.state.suspect(volume),
            _ => {}
        }
    }

    fn next_stage(&mut self, running: &mut Running) -> Result<Stage, PoolError> {
        if let Job::Resize {
            volume,
            bytes,
            is_forced,
        } = running.job
        {
            if running.stage == Stage::Begun {
                self.check_resize(volume, bytes, is_forced)?;
            }
            let zeroing = match running.stage {
                Stage::Zeroing(port) => Some(port),
                _ => None,
            };
            let is_zeroed = running.stage == Stage::Zeroed;
            match self.prepare_growth(volume, bytes, zeroing, is_zeroed)? {
                Growth::Waiting => return Ok(running.stage),
                Growth::Zeroing(port) => return Ok(Stage::Zeroing(port)),
                Growth::Zeroed => return Ok(Stage::Zeroed),
                Growth::Recording => return Ok(Stage::Recording { is_last: false }),
                Growth::Ready => {}
            }
        }
        let plan = self.plan(&running.job)?;
        self.journal.want(plan.change, Waiter::Operation);
        running.outcome = plan.outcome;
        running.pledged = plan.pledged;
        Ok(Stage::Recording { is_last: true })
    }

    fn thaw_after(&mut self, running: &Running) {
        if let Some(volume) = running.frozen {
            self.thaw(volume);
        }
    }

    /// The records of the operation that runs are durable and applied, or refused.
    pub(super) fn operation_recorded(&mut self, is_durable: bool) {
        let Some(mut running) = self.operations.running.pop_front() else {
            return;
        };
        if !is_durable {
            let error = self.journal_error();
            return self.refuse(&running, error);
        }
        if running.stage == (Stage::Recording { is_last: false }) {
            running.stage = Stage::Begun;
            self.operations.running.push_front(running);
            return;
        }
        match &running.job {
            Job::Delete { volume } => self.vanish_handles(*volume, None),
            Job::DeleteSnapshot { volume, number } => self.vanish_handles(*volume, Some(*number)),
            Job::Resize { volume, bytes, .. } => self.resize_handles(*volume, *bytes),
            Job::Drop { .. } => self.collected(true),
            Job::Create(_) | Job::Snapshot { .. } | Job::SetAttribute { .. } => {}
        }
        let mut snapshot_of = None;
        if let Job::Snapshot { volume, .. } = running.job {
            self.unsettle(volume);
            snapshot_of = Some(volume);
        }
        self.thaw_after(&running);
        if let Job::Delete { volume } = &running.job {
            // Whoever waited finds no volume, and nobody is going to wait again.
            self.barriers.remove(volume);
        }
        let (id, outcome) = (running.id, running.outcome);
        if running.frozen.is_some() {
            // Writes that began before go on in place; only after them does a snapshot stay as it is.
            self.operations.graced.push(Graced {
                id,
                outcome,
                snapshot_of,
            });
            self.cleaner.wait_for_grace(id);
        } else {
            self.operations.end(id, Ok(outcome));
        }
    }

    pub(super) fn operation_graced(&mut self, id: u64) {
        let graced = &mut self.operations.graced;
        if let Some(at) = graced.iter().position(|graced| graced.id == id) {
            let graced = graced.swap_remove(at);
            if let Some(volume) = graced.snapshot_of {
                self.settle_snapshot(volume);
            }
            self.operations.end(id, Ok(graced.outcome));
        }
    }

    /// Handles of a volume and all its snapshots, or of one snapshot, lead nowhere from now on.
    fn vanish_handles(&mut self, volume: u32, number: Option<u32>) {
        for port in self
            .ports
            .iter_mut()
            .filter(|port| port.slot().number() == volume)
        {
            if number
                .is_none_or(|number| matches!(port.reader, Reader::Snapshot(_, it) if it == number))
            {
                port.vanish();
            }
        }
    }

    fn resize_handles(&mut self, volume: u32, bytes: u64) {
        for port in self
            .ports
            .iter_mut()
            .filter(|port| port.slot().number() == volume)
        {
            if matches!(port.reader, Reader::Head(_)) {
                port.geometry.blocks = bytes / u64::from(port.geometry.block_bytes);
                port.tell(DeviceEvent::GeometryChanged);
            }
        }
    }
}
