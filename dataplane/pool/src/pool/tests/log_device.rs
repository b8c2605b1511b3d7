//! A drive that remembers what a power cut may leave of it, at every moment.
//!
//! Each change is in one of three states. *On its way*: submitted, and nobody knows how much of it is there. *Cached*:
//! completed, on a drive with a volatile cache. *Certain*: completed with FUA, or before a flush was submitted that has
//! completed, or completed by a drive without a volatile cache. After each step there is a [`Moment`], from
//! which every image is made that a power cut may leave: all that is certain, and any part of the rest, in units that
//! the drive writes as a whole.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::rc::Rc;

use bowline_block::{
    Completion, Completions, Deallocate, Device, DeviceEvent, Geometry, Io, IoError, Op,
};
use bowline_nvme::Nanos;

use super::medium::Medium;
use super::random::{Random, mix};

/// What kind of drive it is.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) block_bytes: u32,
    /// Blocks, aligned to as many, that are never torn.
    pub(super) atomic_blocks: u32,
    pub(super) is_volatile: bool,
    pub(super) deallocate: Deallocate,
    /// A request takes up to so long; none: it is done at once.
    pub(super) latency: u64,
    /// Changes of this part of the drive take 16 times as long.
    pub(super) slow: Range<u64>,
}

impl Plan {
    /// The same drive, which answers at once; what a power cut would leave of it nobody asks.
    pub(super) fn calm(&self) -> Self {
        Self {
            latency: 0,
            ..self.clone()
        }
    }
}

/// A change of the medium.
#[derive(Clone)]
struct Change {
    id: u64,
    /// When it had its effect; counted like requests.
    effect: u64,
    offset: u64,
    len: u64,
    /// None: zeroes.
    content: Option<Rc<[u8]>>,
    is_certain: bool,
}

impl Change {
    fn apply(&self, medium: &mut Medium, part: Range<u64>) {
        match &self.content {
            None => medium.zero(self.offset + part.start, part.end - part.start),
            Some(bytes) => {
                let at = |at: u64| usize::try_from(at).unwrap();
                let bytes = &bytes[at(part.start)..at(part.end)];
                medium.write(self.offset + part.start, bytes);
            }
        }
    }

    fn apply_all(&self, medium: &mut Medium) {
        self.apply(medium, 0..self.len);
    }
}

/// What a power cut at one moment may leave.
#[derive(Clone)]
pub(super) struct Moment {
    certain: Medium,
    /// Stands for all changes that are certain.
    certain_hash: u64,
    /// In the order of their effect; those on their way last.
    changes: Vec<Change>,
    unit: u64,
}

/// An image, and a number that stands for what it is made of.
pub(super) struct Image {
    pub(super) medium: Medium,
    pub(super) hash: u64,
}

/// What becomes of a change that is not certain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Kept,
    Lost,
    /// Each unit is there or not, by this seed.
    Torn(u64),
    /// So many units from the start on are there.
    Cut(u64),
}

impl Moment {
    /// Changes that may be there or not.
    pub(super) fn open(&self) -> usize {
        self.changes.iter().filter(|it| !it.is_certain).count()
    }

    /// Has those on their way come in another order.
    pub(super) fn shuffle(&mut self, random: &mut Random, count: usize) {
        let start = self.changes.len().saturating_sub(count);
        for at in (start + 1..self.changes.len()).rev() {
            let other = start + random.index(at - start + 1);
            self.changes.swap(at, other);
        }
    }

    /// Makes an image; `fate` says what becomes of each change that is not certain, counted from 0 on.
    pub(super) fn image(&self, mut fate: impl FnMut(usize) -> Fate) -> Image {
        let mut medium = self.certain.clone();
        let mut hash = self.certain_hash;
        let mut open = 0;
        for change in &self.changes {
            let fate = if change.is_certain {
                Fate::Kept
            } else {
                open += 1;
                fate(open - 1)
            };
            match fate {
                Fate::Lost => {}
                Fate::Kept => {
                    change.apply_all(&mut medium);
                    hash ^= mix(change.id);
                }
                Fate::Torn(seed) => {
                    let mut random = Random(seed);
                    hash ^= self.tear(change, &mut medium, |_| random.once_in(2));
                }
                Fate::Cut(units) => hash ^= self.tear(change, &mut medium, |unit| unit < units),
            }
        }
        Image { medium, hash }
    }

    /// Applies those units of a change that are there.
    fn tear(
        &self,
        change: &Change,
        medium: &mut Medium,
        mut is_there: impl FnMut(u64) -> bool,
    ) -> u64 {
        let end = change.offset + change.len;
        let first = change.offset / self.unit;
        let (mut hash, mut was_all) = (mix(change.id), true);
        for unit in first..end.div_ceil(self.unit) {
            if !is_there(unit - first) {
                was_all = false;
                hash = mix(hash ^ unit);
                continue;
            }
            let from = (unit * self.unit).max(change.offset) - change.offset;
            let to = ((unit + 1) * self.unit).min(end) - change.offset;
            change.apply(medium, from..to);
        }
        if was_all { mix(change.id) } else { hash }
    }
}

/// A request on its way.
struct Flying {
    io: Io,
    due: u64,
    id: u64,
    offset: u64,
    len: u64,
    /// Compare-and-write has compared, and writes now.
    has_compared: bool,
    /// Changes that had their effect when it was submitted: what a flush makes certain.
    seen: u64,
}

impl Flying {
    fn change(&self) -> Option<Change> {
        let bytes = self.io.data.len_bytes();
        let part = match self.io.op {
            Op::Read | Op::Flush => return None,
            Op::CompareAndWrite if !self.has_compared => return None,
            Op::CompareAndWrite => Some(bytes / 2..bytes),
            Op::Write => Some(0..bytes),
            Op::WriteZeroes { .. } | Op::Deallocate => None,
        };
        let content = part.map(|part| self.io.data.pieces(part).flatten().copied().collect());
        Some(Change {
            id: self.id,
            effect: u64::MAX,
            offset: self.offset,
            len: self.len,
            content,
            is_certain: false,
        })
    }
}

struct Inner {
    plan: Plan,
    geometry: Geometry,
    random: Random,
    /// What a read returns.
    view: Medium,
    certain: Medium,
    certain_hash: u64,
    cached: VecDeque<Change>,
    flying: Vec<Flying>,
    done: VecDeque<Completion>,
    now: u64,
    /// Counts requests.
    clock: u64,
    moments: Vec<Moment>,
    is_recording: bool,
    /// The next change or flush fails.
    is_failing: bool,
}

/// The drive. It outlives the pool on it.
#[derive(Clone)]
pub(super) struct LogDevice(Rc<RefCell<Inner>>);

impl LogDevice {
    pub(super) fn new(medium: Medium, plan: &Plan) -> Self {
        let geometry = Geometry {
            block_bytes: plan.block_bytes,
            blocks: medium.bytes() / u64::from(plan.block_bytes),
            volatile_cache: plan.is_volatile,
            read_only: false,
            atomic_write_blocks: plan.atomic_blocks,
            optimal_io_blocks: 8,
            deallocate: plan.deallocate,
            deallocate_granularity_blocks: 8,
            write_zeroes: true,
            thin: false,
        };
        Self(Rc::new(RefCell::new(Inner {
            geometry,
            random: Random(plan.seed),
            plan: plan.clone(),
            certain: medium.clone(),
            view: medium,
            certain_hash: 0,
            cached: VecDeque::new(),
            flying: Vec::new(),
            done: VecDeque::new(),
            now: 0,
            clock: 0,
            moments: Vec::new(),
            is_recording: false,
            is_failing: false,
        })))
    }

    /// From now on every step makes a moment.
    pub(super) fn record(&self) {
        self.0.borrow_mut().is_recording = true;
    }

    /// Has the next change or flush fail; whether it is done all the same nobody knows.
    pub(super) fn fail_next(&self, is_failing: bool) {
        self.0.borrow_mut().is_failing = is_failing;
    }

    /// The moments since this was asked last.
    pub(super) fn moments(&self) -> Vec<Moment> {
        std::mem::take(&mut self.0.borrow_mut().moments)
    }

    /// This moment.
    pub(super) fn moment(&self) -> Moment {
        self.0.borrow().moment()
    }

    /// Changes that are on their way.
    pub(super) fn on_the_way(&self) -> usize {
        let inner = self.0.borrow();
        inner.flying.iter().filter_map(Flying::change).count()
    }

    /// What a read returns.
    pub(super) fn view(&self) -> Medium {
        self.0.borrow().view.clone()
    }

    /// Something else is there from now on, and nobody has written it.
    pub(super) fn poke(&self, offset: u64, bytes: &[u8]) {
        self.0.borrow_mut().view.write(offset, bytes);
    }

    /// Whoever uses the drive is gone, but the power stays on: what is on its way happens or not, what is
    /// cached stays cached.
    pub(super) fn abandon(&self) {
        let mut inner = self.0.borrow_mut();
        while !inner.flying.is_empty() {
            let count = inner.flying.len();
            let at = inner.random.index(count);
            let flying = inner.flying.swap_remove(at);
            if inner.random.once_in(2) {
                inner.finish(flying);
            }
        }
        inner.done.clear();
    }
}

impl Inner {
    fn moment(&self) -> Moment {
        let mut changes: Vec<Change> = self.cached.iter().cloned().collect();
        changes.extend(self.flying.iter().filter_map(Flying::change));
        Moment {
            certain: self.certain.clone(),
            certain_hash: self.certain_hash,
            changes,
            unit: u64::from(self.plan.block_bytes) * u64::from(self.plan.atomic_blocks),
        }
    }

    fn note(&mut self) {
        if self.is_recording {
            self.moments.push(self.moment());
        }
    }

    fn submit(&mut self, io: Io) {
        self.clock += 1;
        let (id, seen) = (self.clock, self.clock);
        let block = u64::from(self.plan.block_bytes);
        if let Err(error) = self.geometry.check_io(&io) {
            self.done.push_back(io.complete(Err(error)));
            return;
        }
        let (mut offset, mut len) = (io.lba * block, u64::from(io.blocks) * block);
        if io.op == Op::Flush {
            (offset, len) = (0, 0);
        }
        let is_change = io.op.is_modifying();
        let mut flying = Flying {
            io,
            due: 0,
            id,
            offset,
            len,
            has_compared: false,
            seen,
        };
        if self.plan.latency == 0 {
            return self.finish(flying);
        }
        flying.due = self.due(&flying);
        self.flying.push(flying);
        if is_change {
            self.note();
        }
    }

    fn due(&mut self, flying: &Flying) -> u64 {
        let is_slow = flying.io.op.is_modifying() && self.plan.slow.contains(&flying.offset);
        let latency = self.random.below(self.plan.latency);
        self.now + if is_slow { 16 * latency } else { latency }
    }

    /// A request has its effect, and is answered.
    fn finish(&mut self, mut flying: Flying) {
        let mut result = Ok(());
        match flying.io.op {
            Op::Read => self.read(&mut flying),
            Op::CompareAndWrite if !flying.has_compared => {
                if self.compares(&flying) {
                    flying.has_compared = true;
                    if self.plan.latency == 0 {
                        return self.finish(flying);
                    }
                    flying.due = self.due(&flying);
                    self.flying.push(flying);
                    return self.note();
                }
                result = Err(IoError::CompareMismatch);
            }
            _ if std::mem::take(&mut self.is_failing) => {
                if self.random.once_in(2) {
                    self.changed(&flying, false);
                }
                result = Err(IoError::MediaWrite);
            }
            Op::Flush => self.flushed(flying.seen),
            Op::Deallocate
                if self.plan.deallocate == Deallocate::Undefined && self.random.once_in(2) => {}
            _ => self.changed(&flying, flying.io.fua || !self.plan.is_volatile),
        }
        let is_change = flying.io.op != Op::Read;
        self.done.push_back(flying.io.complete(result));
        if is_change {
            self.note();
        }
    }

    fn read(&self, flying: &mut Flying) {
        let mut at = flying.offset;
        for buf in flying.io.data.iter_mut() {
            let bytes = buf.as_mut().unwrap();
            self.view.read(at, bytes);
            at += bytes.len() as u64;
        }
    }

    fn compares(&self, flying: &Flying) -> bool {
        let bytes = flying.io.data.len_bytes() / 2;
        let expected: Vec<u8> = flying.io.data.pieces(0..bytes).flatten().copied().collect();
        let mut found = vec![0; bytes];
        self.view.read(flying.offset, &mut found);
        found == expected
    }

    fn changed(&mut self, flying: &Flying, is_certain: bool) {
        let Some(mut change) = flying.change() else {
            return;
        };
        change.apply_all(&mut self.view);
        if self.plan.latency == 0 {
            return;
        }
        change.is_certain = is_certain;
        self.clock += 1;
        change.effect = self.clock;
        self.cached.push_back(change);
        self.settle();
    }

    fn flushed(&mut self, seen: u64) {
        for change in &mut self.cached {
            change.is_certain |= change.effect < seen;
        }
        self.settle();
    }

    /// What is certain, and behind nothing that is not, needs no list.
    fn settle(&mut self) {
        while let Some(change) = self.cached.pop_front_if(|it| it.is_certain) {
            change.apply_all(&mut self.certain);
            self.certain_hash ^= mix(change.id);
        }
    }
}

impl Device for LogDevice {
    fn geometry(&self) -> Geometry {
        self.0.borrow().geometry
    }
    fn depth_max(&self) -> usize {
        64
    }
    fn try_submit(&mut self, io: Io) -> Result<(), Io> {
        let mut inner = self.0.borrow_mut();
        if inner.flying.len() + inner.done.len() >= 64 {
            return Err(io);
        }
        inner.submit(io);
        Ok(())
    }
    fn poll(&mut self, now: Nanos, out: &mut Completions) {
        let mut inner = self.0.borrow_mut();
        inner.now = inner.now.max(now.0);
        let now = inner.now;
        loop {
            let due = inner.flying.iter().enumerate().min_by_key(|(_, it)| it.due);
            let Some((at, _)) = due.filter(|(_, it)| it.due <= now) else {
                break;
            };
            let flying = inner.flying.remove(at);
            inner.finish(flying);
        }
        while !out.is_full()
            && let Some(completion) = inner.done.pop_front()
        {
            out.push(completion);
        }
    }
    fn poll_timeout(&self) -> Option<Nanos> {
        Some(Nanos::ZERO)
    }
    fn poll_event(&mut self) -> Option<DeviceEvent> {
        None
    }
    fn refresh(&mut self) -> io::Result<Geometry> {
        Ok(self.geometry())
    }
}
