//! One life of a pool on a drive that remembers: random requests and operations, and after every step of the drive all
//! that a power cut at that moment may leave is opened and looked at.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use bowline_block::{BufPool, Completions, Device, Io, IoError, Op, PoolConfig, Segments};
use uuid::Uuid;

use super::campaign::Campaign;
use super::examine::{Ticks, examine, look, value};
use super::log_device::{Fate, Image, LogDevice, Moment, Plan};
use super::medium::Medium;
use super::oracle::{Life, Oracle, WriteId};
use super::random::Random;
use crate::{Operation, Outcome, Pool, PoolError, Volume};

/// Changes of which a power cut leaves every combination.
const FEW: usize = 4;

/// Requests under way.
pub(super) const FLIGHTS_MAX: usize = 8;

/// Polls in which something has to end.
const PATIENCE: u32 = 200_000;

pub(super) enum Flight {
    Write(WriteId),
    /// Whether it is to find what it expects.
    Compare(WriteId, bool),
    Flush(usize),
    /// What each block may hold.
    Read(Vec<Vec<u64>>),
}

pub(super) struct InFlight {
    pub(super) volume: u128,
    pub(super) lba: usize,
    pub(super) blocks: usize,
    pub(super) flight: Flight,
}

/// An operation that was asked for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Asked {
    Create(u128),
    Delete(u128),
    Resize(u128),
    Attribute(u128),
    Snapshot(u128, u128),
    DeleteSnapshot(u128, u128),
}

impl Asked {
    pub(super) const fn volume(self) -> u128 {
        match self {
            Self::Create(volume)
            | Self::Delete(volume)
            | Self::Resize(volume)
            | Self::Attribute(volume)
            | Self::Snapshot(volume, _)
            | Self::DeleteSnapshot(volume, _) => volume,
        }
    }
}

/// What is made of each moment.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Cuts {
    /// Nothing: there is no power cut.
    None,
    /// One image or two.
    Some,
    /// Every image, as long as there are few.
    All,
}

pub(super) struct Timeline<'c> {
    pub(super) campaign: &'c mut Campaign,
    pub(super) drive: LogDevice,
    pub(super) plan: Plan,
    pub(super) pool: Option<Pool<LogDevice>>,
    pub(super) oracle: Oracle,
    pub(super) random: Random,
    pub(super) buffers: Rc<BufPool>,
    pub(super) handles: BTreeMap<u128, Volume<LogDevice>>,
    pub(super) flights: BTreeMap<u64, InFlight>,
    pub(super) asked: Vec<(Operation, Asked)>,
    pub(super) next_token: u64,
    pub(super) next_uuid: u128,
    /// Volumes that an operation is about.
    pub(super) busy: BTreeSet<u128>,
    /// Volumes of which an operation has failed: what has become of it is not known before the pool is opened again.
    undecided: BTreeSet<u128>,
    /// Turns until it is, if the drive has failed or is about to.
    failing: Option<u32>,
    /// How often the process was broken off.
    pub(super) broken_off: u32,
    ticks: Ticks,
    out: Completions,
    cuts: Cuts,
    tried: BTreeSet<(u64, u64)>,
}

pub(super) fn buffers() -> Rc<BufPool> {
    Rc::new(BufPool::new(PoolConfig::with_budget(4 << 20)).unwrap())
}

impl<'c> Timeline<'c> {
    /// Begins with a drive that has a pool. Opens it; after a power cut all of `medium` is what `oracle` allows.
    pub(super) fn begin(
        campaign: &'c mut Campaign,
        (medium, plan): (Medium, Plan),
        oracle: Oracle,
        buffers: &Rc<BufPool>,
        cuts: Cuts,
    ) -> Self {
        let drive = LogDevice::new(medium, &plan);
        let seed = campaign.random.next();
        let mut it = Self {
            drive,
            plan,
            pool: None,
            oracle,
            random: Random(seed),
            buffers: Rc::clone(buffers),
            handles: BTreeMap::new(),
            flights: BTreeMap::new(),
            asked: Vec::new(),
            next_token: 1,
            next_uuid: u128::from(campaign.random.next()) << 64,
            busy: BTreeSet::new(),
            undecided: BTreeSet::new(),
            failing: None,
            broken_off: 0,
            ticks: Ticks(Rc::new(Cell::new(0))),
            out: Completions::with_capacity(64),
            cuts,
            tried: BTreeSet::new(),
            campaign,
        };
        if cuts != Cuts::None {
            it.drive.record();
        }
        it.oracle.restart();
        it.open(true);
        it
    }

    fn fail(&self, what: &str) -> ! {
        panic!("{}: {what}", self.campaign.name());
    }

    /// Opens the pool and compares it with what should be there.
    pub(super) fn open(&mut self, is_power_cut: bool) {
        let ticks = self.ticks.clone();
        let opened = Pool::open(self.drive.clone(), &mut || ticks.next());
        self.judge_moments();
        match opened {
            Ok(pool) => self.pool = Some(pool),
            Err(error) => self.fail(&format!("the pool is not opened: {error}")),
        }
        let seen = self.look();
        let judged = if is_power_cut {
            self.oracle.judge(&seen)
        } else {
            self.oracle.judge_on(&seen)
        };
        if let Err(why) = judged {
            self.fail(&why);
        }
        if is_power_cut {
            self.oracle.resolve(&seen);
        } else {
            self.oracle.resolve_objects(&seen);
            self.oracle.pin(&seen);
        }
        let pool = self.pool.as_ref().unwrap();
        for found in &seen {
            let handle = pool.open_volume(found.number).unwrap();
            self.handles.insert(found.uuid, handle);
        }
        self.judge_moments();
    }

    fn look(&mut self) -> Vec<super::oracle::Seen> {
        let pool = self.pool.as_ref().unwrap();
        match look(pool, &self.buffers, &self.ticks) {
            Ok(seen) => seen,
            Err(why) => self.fail(&why),
        }
    }

    /// Lives for so many turns, and ends in order.
    pub(super) fn live(&mut self, turns: u32) {
        for _ in 0..turns {
            if self.campaign.is_over() {
                break;
            }
            self.turn();
        }
        if self.is_failing() {
            self.break_off();
        }
        self.check_live();
        self.close();
    }

    /// Whether the drive has failed since the pool was opened, or is about to.
    pub(super) const fn is_failing(&self) -> bool {
        self.failing.is_some()
    }

    pub(super) fn turn(&mut self) {
        if let Some(turns) = &mut self.failing {
            *turns -= 1;
            if *turns == 0 {
                return self.break_off();
            }
        }
        let what = self.random.below(100);
        match what {
            0..=54 => {
                for _ in 0..=self.random.below(4) {
                    self.submit_io();
                }
            }
            55..=59 => self.submit_flush(),
            60..=72 => self.operate(),
            73..=75 => self.check_live(),
            76 if !self.is_failing() => self.settle(),
            77 if !self.is_failing() && self.random.once_in(3) => self.restart(),
            78 if self.campaign.has_errors && !self.is_failing() => {
                self.drive.fail_next(true);
                self.failing = Some(4 + u32::try_from(self.random.below(16)).unwrap());
            }
            79..=86 => self.submit_read(),
            _ => {}
        }
        for _ in 0..=self.random.below(8) {
            self.poll();
        }
    }

    pub(super) fn poll(&mut self) {
        let now = self.ticks.next();
        if let Some(pool) = &mut self.pool {
            pool.poll(now);
        }
        let mut ended = Vec::new();
        for volume in self.handles.values_mut() {
            volume.poll(now, &mut self.out);
            ended.extend(self.out.drain());
        }
        // What happened at the drive happened before anybody was told.
        self.judge_moments();
        let mut is_told = !ended.is_empty();
        for completion in ended {
            self.ended(completion.token, completion.result, &completion.data);
        }
        while let Some((operation, result)) = self.pool.as_mut().and_then(Pool::poll_operation) {
            is_told = true;
            self.operated(operation, result);
        }
        if is_told {
            let used: BTreeSet<u128> = self.flights.values().map(|it| it.volume).collect();
            let volumes = &self.oracle.volumes;
            self.handles
                .retain(|uuid, _| volumes.contains_key(uuid) || used.contains(uuid));
            self.judge_now();
        }
    }

    fn ended(&mut self, token: u64, result: Result<(), IoError>, data: &Segments) {
        let InFlight { volume, flight, .. } = self.flights.remove(&token).unwrap();
        let life = self.oracle.volumes.get(&volume).map(|it| it.life);
        match (flight, result) {
            (Flight::Read(possible), Ok(())) => self.judge_read(volume, &possible, data),
            (Flight::Write(id), Ok(())) | (Flight::Compare(id, true), Ok(())) => {
                self.oracle.written(id, true);
            }
            (Flight::Flush(flush), Ok(())) => self.oracle.flushed(flush),
            (Flight::Write(id) | Flight::Compare(id, true), Err(IoError::NoSpace)) => {
                self.campaign.full += 1;
                self.oracle.written(id, false);
            }
            (Flight::Write(id) | Flight::Compare(id, _), Err(IoError::Vanished))
                if life != Some(Life::Here) =>
            {
                self.oracle.written(id, false);
            }
            // It was submitted before the volume became smaller.
            (Flight::Write(id) | Flight::Compare(id, _), Err(IoError::OutOfRange)) => {
                self.oracle.written(id, false);
            }
            (Flight::Write(id) | Flight::Compare(id, _), Err(IoError::MediaWrite))
                if self.is_failing() =>
            {
                self.oracle.written(id, false);
            }
            (Flight::Flush(_), Err(IoError::MediaWrite)) if self.is_failing() => {}
            (Flight::Flush(_) | Flight::Read(_), Err(IoError::Vanished))
                if life != Some(Life::Here) => {}
            (Flight::Read(_), Err(IoError::OutOfRange)) => {}
            (Flight::Compare(id, false), Err(IoError::CompareMismatch | IoError::NoSpace))
            | (Flight::Compare(id, _), Err(IoError::Unsupported)) => self.oracle.refused(id),
            (_, result) => self.fail(&format!("a request ends with {result:?}")),
        }
    }

    /// Whether a read has found what it may.
    fn judge_read(&self, volume: u128, possible: &[Vec<u64>], data: &Segments) {
        let block_bytes = data.len_bytes() / possible.len();
        let found = data.iter().flat_map(|buf| buf.chunks(block_bytes));
        for (block, possible) in found.zip(possible) {
            let found = value(block);
            if found.is_none_or(|found| !possible.contains(&found)) {
                self.fail(&format!(
                    "a read of volume {volume:x} finds {found:x?}, and only {possible:x?} is possible"
                ));
            }
        }
    }

    fn operated(&mut self, operation: Operation, result: Result<Outcome, PoolError>) {
        let at = self.asked.iter().position(|(it, _)| *it == operation);
        let Some(at) = at else { return };
        let (_, asked) = self.asked.remove(at);
        self.busy.clear();
        self.busy
            .extend(self.asked.iter().map(|(_, it)| it.volume()));
        self.busy.extend(&self.undecided);
        match (asked, result) {
            (asked, Err(PoolError::Journal | PoolError::Drive(_))) if self.is_failing() => {
                self.undecided.insert(asked.volume());
                self.busy.insert(asked.volume());
            }
            (Asked::Create(uuid), Ok(Outcome::Volume(number))) => {
                self.oracle.created(uuid, number);
                let handle = self.pool.as_ref().unwrap().open_volume(number).unwrap();
                self.handles.insert(uuid, handle);
            }
            (Asked::Create(uuid), Err(PoolError::Full | PoolError::NoSpace))
            | (Asked::Delete(uuid), Ok(Outcome::Done)) => self.oracle.deleted(uuid),
            (Asked::Resize(uuid), Ok(Outcome::Done)) => self.oracle.resized(uuid, true),
            (Asked::Resize(uuid), Err(PoolError::NoSpace | PoolError::Full)) => {
                self.oracle.resized(uuid, false);
            }
            (Asked::Attribute(uuid), Ok(Outcome::Done)) => self.oracle.attribute_set(uuid, true),
            (Asked::Attribute(uuid), Err(PoolError::Full)) => {
                self.oracle.attribute_set(uuid, false);
            }
            (Asked::Snapshot(uuid, snapshot), Ok(Outcome::Snapshot(number))) => {
                self.oracle.snapshot_made(uuid, snapshot, number);
            }
            (Asked::Snapshot(uuid, snapshot), Err(PoolError::Full | PoolError::NoSpace))
            | (Asked::DeleteSnapshot(uuid, snapshot), Ok(Outcome::Done)) => {
                self.oracle.snapshot_deleted(uuid, snapshot);
            }
            (asked, result) => self.fail(&format!("{asked:?} ends with {result:?}")),
        }
    }

    /// Has all requests and operations end.
    fn quiesce(&mut self) {
        for _ in 0..PATIENCE {
            if self.flights.is_empty() && self.asked.is_empty() {
                return;
            }
            self.poll();
        }
        let state = {
            let engine = self.pool.as_ref().unwrap().engine.borrow();
            let waiting: Vec<_> = (engine.homeless.iter())
                .filter_map(|piece| {
                    let key = engine.task(*piece)?.key;
                    let may = (engine.may_take(key), engine.may_get_space(key));
                    Some((key, may))
                })
                .collect();
            let (extents, asked) = (engine.state.extents(), &self.asked);
            format!("{extents:?}, {asked:?} asked for, {waiting:?} waiting for room")
        };
        self.fail(&format!("requests or operations do not end: {state}"));
    }

    /// Has the pool's own work end, too.
    pub(super) fn settle(&mut self) {
        self.quiesce();
        for _ in 0..PATIENCE {
            let pool = self.pool.as_ref().unwrap();
            let is_idle = pool.engine.borrow().is_idle();
            if is_idle {
                return;
            }
            self.poll();
        }
        self.fail("the pool does not come to rest");
    }

    /// Compares everything with what should be there while the power is on.
    pub(super) fn check_live(&mut self) {
        self.quiesce();
        let seen = self.look();
        if let Err(why) = self.oracle.judge_on(&seen) {
            self.fail(&format!("while the power is on: {why}"));
        }
        // What has failed may be there when the pool is opened again.
        if !self.is_failing() {
            self.oracle.pin(&seen);
        }
        let wrong = self.pool.as_ref().unwrap().check();
        if !wrong.is_empty() {
            self.fail(&format!("check: {wrong:?}"));
        }
        self.judge_moments();
    }

    pub(super) fn close(&mut self) {
        self.quiesce();
        self.handles.clear();
        let ticks = self.ticks.clone();
        if let Some(pool) = self.pool.take()
            && let Err(error) = pool.close(&mut || ticks.next())
        {
            self.fail(&format!("the pool is not closed: {error}"));
        }
        self.judge_moments();
    }

    /// The process ends, in order or not, and comes again; the power stays on.
    fn restart(&mut self) {
        if self.random.once_in(2) {
            self.close();
            self.open(false);
        } else {
            self.break_off();
        }
    }

    /// The process ends in the middle of whatever it does, and comes again; the power stays on.
    pub(super) fn break_off(&mut self) {
        self.handles.clear();
        self.flights.clear();
        self.asked.clear();
        self.busy.clear();
        self.undecided.clear();
        self.pool = None;
        self.drive.fail_next(false);
        self.failing = None;
        self.broken_off += 1;
        self.drive.abandon();
        self.judge_moments();
        self.oracle.restart();
        self.open(false);
    }

    fn judge_moments(&mut self) {
        for moment in self.drive.moments() {
            self.judge_moment(moment);
        }
    }

    /// Something was acknowledged, so less is possible than before.
    fn judge_now(&mut self) {
        if self.cuts != Cuts::None {
            let mut moment = self.drive.moment();
            if self.random.once_in(4) {
                moment.shuffle(&mut self.random, self.drive.on_the_way());
            }
            self.judge_moment(moment);
        }
    }

    fn judge_moment(&mut self, moment: Moment) {
        if self.cuts == Cuts::None || self.campaign.is_over() {
            return;
        }
        let stride = if self.cuts == Cuts::All {
            self.campaign.stride
        } else {
            4
        };
        if !self.random.once_in(stride) {
            return;
        }
        self.campaign.moments += 1;
        let open = moment.open();
        if self.cuts == Cuts::All && open <= FEW {
            for kept in 0..1_u64 << open {
                self.judge_image(&moment, |at| keep(kept >> at & 1 == 1));
            }
        } else {
            let count = if self.cuts == Cuts::All { 10 } else { 1 };
            for kept in [0, u64::MAX] {
                self.judge_image(&moment, |at| keep(kept >> (at % 64) & 1 == 1));
            }
            for _ in 0..count {
                let kept = self.random.next();
                self.judge_image(&moment, |at| keep(kept >> (at % 64) & 1 == 1));
            }
        }
        let torn = if open > 0 && self.cuts == Cuts::All {
            2
        } else {
            0
        };
        for _ in 0..torn {
            let mut random = Random(self.random.next());
            self.judge_image(&moment, |_| match random.below(4) {
                0 => Fate::Kept,
                1 => Fate::Lost,
                2 => Fate::Torn(random.next()),
                _ => Fate::Cut(random.below(4)),
            });
        }
    }

    fn judge_image(&mut self, moment: &Moment, mut fate: impl FnMut(usize) -> Fate) {
        let mut fates = Vec::new();
        let Image { medium, hash } = moment.image(|at| {
            let fate = fate(at);
            fates.push(fate);
            fate
        });
        if !self.tried.insert((self.oracle.version, hash)) {
            return;
        }
        self.campaign.count(hash);
        let examined = examine(&medium, &self.plan, &self.oracle, &self.buffers);
        if let Err(why) = examined {
            self.fail(&format!("after a power cut that left {fates:?}: {why}"));
        }
        self.go_on_after(medium);
    }

    /// Some images are opened for longer: for more work, and for a power cut in the middle of that.
    fn go_on_after(&mut self, medium: Medium) {
        if self.campaign.depth > 0 {
            return;
        }
        let (plan, cuts, turns) = match self.random.below(160) {
            0 => (self.plan.clone(), Cuts::Some, 12),
            1..=10 => (self.plan.calm(), Cuts::None, 8),
            _ => return,
        };
        let plan = Plan {
            seed: self.random.next(),
            ..plan
        };
        let oracle = self.oracle.clone();
        self.campaign.depth += 1;
        let mut then = Timeline::begin(self.campaign, (medium, plan), oracle, &self.buffers, cuts);
        then.live(turns);
        drop(then);
        self.campaign.depth -= 1;
    }

    /// Submits a request of a volume.
    pub(super) fn send(&mut self, in_flight: InFlight, op: Op, fua: bool, data: Segments) {
        let token = self.next_token;
        self.next_token += 1;
        let io = Io {
            op,
            lba: in_flight.lba as u64,
            blocks: u32::try_from(in_flight.blocks).unwrap(),
            fua,
            data,
            token,
        };
        let handle = self.handles.get_mut(&in_flight.volume).unwrap();
        handle.try_submit(io).unwrap();
        self.flights.insert(token, in_flight);
        self.judge_moments();
    }

    pub(super) fn ask(&mut self, asked: Asked, operation: Result<Operation, PoolError>) {
        self.busy.insert(asked.volume());
        self.asked.push((operation.unwrap(), asked));
    }

    pub(super) fn new_uuid(&mut self) -> u128 {
        self.next_uuid += 1;
        self.next_uuid
    }

    pub(super) fn name(uuid: u128) -> (Uuid, String) {
        (Uuid::from_u128(uuid), format!("{uuid:x}"))
    }
}

const fn keep(is_kept: bool) -> Fate {
    if is_kept { Fate::Kept } else { Fate::Lost }
}
