//! Runs validated commands on devices and says what became of each.
//!
//! Most commands are one device operation; [`step`] knows what the others do. A device whose queue
//! is full leaves its operations in a backlog that is bounded by the command slots of the
//! connections. Commands that need blocks to themselves get them from the device's [`order`].

mod now;
mod order;
mod step;

use std::collections::VecDeque;

use bowline_block::{
    Completion, Completions, Device, DeviceEvent, Geometry, Io, IoBuf, IoError, Op, Segments,
    ViewedBuf,
};
use bowline_nvme::{Nanos, Status};
use bowline_nvmf::target::{ConnId, IoCommand, NamespaceHandle, SlotId};

use now::FailedNow;
pub(super) use now::LateWrite;
use order::{Blocks, Change, Order};
use step::{Next, Step};

use crate::status::io_status;

/// Device completions taken per call of a device's `poll`.
const COMPLETIONS_PER_POLL: usize = 256;

/// Lower bits of a namespace handle: the device's place.
const PLACE_BITS: u32 = 20;
const PLACE_MAX: u32 = (1 << PLACE_BITS) - 1;

/// A command that has run: whose it was, how it ended, and its buffer.
pub(super) struct Finished {
    pub(super) conn: ConnId,
    pub(super) slot: SlotId,
    pub(super) status: Status,
    pub(super) data: Option<Found>,
}

/// The data that a command has found, in its buffer.
pub(super) enum Found {
    Copied(IoBuf),
    /// It is still in the medium, where it may change until it is sent or the turn ends.
    InPlace(ViewedBuf),
}

impl Found {
    /// The buffer, filled now at the latest.
    pub(super) fn copied(self) -> IoBuf {
        match self {
            Self::Copied(buffer) => buffer,
            Self::InPlace(viewed) => viewed.copied(),
        }
    }
}

impl Finished {
    /// The turn ends: what stays here is copied out of the medium.
    pub(super) fn fix(&mut self) {
        self.data = self.data.take().map(|found| Found::Copied(found.copied()));
    }
}

/// One namespace's device and what waits for it.
struct Unit<D> {
    device: D,
    /// It need not be waited for.
    is_immediate: bool,
    block_bytes: u32,
    backlog: VecDeque<Io>,
    order: Order,
    /// Commands started and not finished; each has at most one operation at the device.
    commands: usize,
    /// No new command arrives any more; dropped when the last operation has ended.
    retiring: bool,
}

/// A command that was started and has not ended.
struct Running {
    conn: ConnId,
    slot: SlotId,
    unit: usize,
    step: Step,
    /// What the current operation changes.
    change: Option<Change>,
    /// It has blocks to itself, or waits for them.
    is_exclusive: bool,
    /// An operation of it has reached the device.
    is_begun: bool,
    /// It was asked to end early.
    is_cancelled: bool,
}

impl Running {
    fn new(conn: ConnId, slot: SlotId, unit: usize, step: Step) -> Self {
        Self {
            conn,
            slot,
            unit,
            step,
            change: None,
            is_exclusive: false,
            is_begun: false,
            is_cancelled: false,
        }
    }
}

/// What [`Executor::withdraw`] could do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Withdrawn {
    /// Nothing of the command has happened, and nothing will.
    Done,
    /// It ends early if it has not finished before.
    Asked,
    /// It is at its device, or not known.
    No,
}

/// All devices of a reactor and the commands running on them.
pub(super) struct Executor<D> {
    units: Vec<Option<Unit<D>>>,
    /// How often each place was used: the upper bits of the handle, so that a command which waited
    /// while its namespace went away never runs on the device that came after.
    uses: Vec<u32>,
    /// Places without a device.
    vacant: Vec<usize>,
    /// Places whose devices have, or may have, something to be polled for: a turn costs what runs, however many
    /// devices there are.
    busy: Vec<usize>,
    /// Whether each place is in `busy`.
    listed: Vec<bool>,
    /// What happened to devices, oldest first.
    events: VecDeque<(NamespaceHandle, DeviceEvent)>,
    running: Vec<Option<Running>>,
    free: Vec<usize>,
    completions: Completions,
    /// Devices that the last flush failed on.
    unflushed: Vec<(NamespaceHandle, IoError)>,
    /// How many devices need not be waited for.
    immediate: usize,
    /// A command that one of them has failed, and that is still to be answered.
    failed_now: Option<FailedNow>,
}

impl<D: Device> Executor<D> {
    pub(super) fn new() -> Self {
        Self {
            units: Vec::new(),
            uses: Vec::new(),
            vacant: Vec::new(),
            busy: Vec::new(),
            listed: Vec::new(),
            events: VecDeque::new(),
            running: Vec::with_capacity(COMPLETIONS_PER_POLL),
            free: Vec::with_capacity(COMPLETIONS_PER_POLL),
            completions: Completions::with_capacity(COMPLETIONS_PER_POLL),
            unflushed: Vec::new(),
            immediate: 0,
            failed_now: None,
        }
    }

    /// `None` when there is no place left for a further device.
    pub(super) fn add(&mut self, device: D) -> Option<NamespaceHandle> {
        let unit = Unit {
            is_immediate: device.is_immediate(),
            block_bytes: device.geometry().block_bytes,
            device,
            // Ten thousand idle devices must cost nothing.
            backlog: VecDeque::new(),
            order: Order::default(),
            commands: 0,
            retiring: false,
        };
        let index = self.vacant.pop().unwrap_or(self.units.len());
        if index > PLACE_MAX as usize {
            return None;
        }
        if index == self.units.len() {
            self.units.push(None);
            self.uses.push(0);
            self.listed.push(false);
        }
        self.immediate += usize::from(unit.is_immediate);
        let is_polled = unit.device.poll_timeout().is_some();
        self.units[index] = Some(unit);
        self.uses[index] = self.uses[index].wrapping_add(1);
        if is_polled {
            self.wake(index);
        }
        Some(self.handle(index))
    }

    fn handle(&self, index: usize) -> NamespaceHandle {
        // Places are at most PLACE_MAX.
        let place = u32::try_from(index).unwrap_or(PLACE_MAX);
        NamespaceHandle(self.uses[index] << PLACE_BITS | place)
    }

    /// Where the device is, if the handle is still that of the device there.
    fn place(&self, handle: NamespaceHandle) -> Option<usize> {
        let index = (handle.0 & PLACE_MAX) as usize;
        (index < self.units.len() && self.handle(index) == handle).then_some(index)
    }

    /// Gives the device up as soon as its last operation has ended.
    pub(super) fn retire(&mut self, handle: NamespaceHandle) {
        let Some(index) = self.place(handle) else {
            return;
        };
        if let Some(unit) = &mut self.units[index] {
            unit.retiring = true;
            if unit.commands == 0 {
                self.vacate(index);
            }
        }
    }

    fn vacate(&mut self, index: usize) {
        let gone = self.units[index].take();
        let was_immediate = gone.is_some_and(|unit| unit.is_immediate);
        self.immediate -= usize::from(was_immediate);
        self.vacant.push(index);
    }

    /// Has the place polled from the next turn on, until nothing runs there.
    fn wake(&mut self, index: usize) {
        if !self.listed[index] {
            self.listed[index] = true;
            self.busy.push(index);
        }
    }

    /// Has every device polled once.
    pub(super) fn wake_all(&mut self) {
        for index in 0..self.units.len() {
            if self.units[index].is_some() {
                self.wake(index);
            }
        }
    }

    /// The device, which is looked at afterwards: what is done to it may be an event.
    pub(super) fn device_mut(&mut self, handle: NamespaceHandle) -> Option<&mut D> {
        let index = self.place(handle)?;
        self.wake(index);
        let unit = self.units[index].as_mut()?;
        (!unit.retiring).then_some(&mut unit.device)
    }

    pub(super) fn geometry(&self, handle: NamespaceHandle) -> Option<Geometry> {
        Some(self.units[self.place(handle)?].as_ref()?.device.geometry())
    }

    /// Operations that a device has not ended yet.
    pub(super) fn in_flight(&self) -> usize {
        self.running.len() - self.free.len()
    }

    /// Bytes of buffer a command needs before it can start, beyond what its host sent.
    pub(super) fn read_bytes(&self, command: &IoCommand) -> usize {
        let unit = self
            .place(command.namespace)
            .and_then(|index| self.units[index].as_ref());
        unit.map_or(0, |unit| step::scratch_bytes(&command.op, unit.block_bytes))
    }

    /// Starts a command. `scratch` is the buffer of `read_bytes`, `payload` what the host sent.
    pub(super) fn start(
        &mut self,
        conn: ConnId,
        slot: SlotId,
        command: &IoCommand,
        payload: Option<IoBuf>,
        scratch: Option<IoBuf>,
        finished: &mut Vec<Finished>,
    ) {
        // A namespace that went away while the command waited for its buffer.
        let unit = self
            .place(command.namespace)
            .and_then(|index| Some((index, self.units[index].as_mut()?)))
            .filter(|(_, unit)| !unit.retiring);
        let Some((index, unit)) = unit else {
            finished.extend(failed(conn, slot, command, Status::INVALID_NAMESPACE.dnr()));
            return;
        };
        let mut scratch = scratch;
        let has_failed = self.failed_now.take_if(|it| it.is_of(conn, command));
        let ended = match has_failed {
            Some(failed) => Some(Err(failed.error)),
            None => unit.run_now(&command.op, payload.as_ref(), &mut scratch),
        };
        if let Some(result) = ended {
            let (result, data) = match result {
                Ok(data) => (Ok(()), data),
                Err(error) => (Err(error), None),
            };
            if result.is_err() {
                // It may have something to tell.
                self.wake(index);
            }
            finished.push(Finished {
                conn,
                slot,
                status: status_of(result),
                data,
            });
            return;
        }
        let (step, next) = Step::begin(command.op, unit.block_bytes, payload, scratch);
        unit.commands += 1;
        self.wake(index);
        let token = self.park(Running::new(conn, slot, index, step));
        match (next, step::exclusive(&command.op)) {
            (Next::Run(io), Some(blocks)) => self.claim(token, blocks, io),
            (next, _) => {
                self.go_on(token, next, finished);
            }
        }
        self.run_ready(index);
    }

    /// Starts a flush of every device; `in_flight` falls to 0 when the last has ended, and
    /// [`poll_unflushed`](Self::poll_unflushed) knows those that failed.
    pub(super) fn flush_all(&mut self) {
        for index in 0..self.units.len() {
            let Some(unit) = self.units[index].as_mut() else {
                continue;
            };
            unit.commands += 1;
            self.wake(index);
            let conn = ConnId {
                index: u32::MAX,
                generation: 0,
            };
            let token = self.park(Running::new(conn, SlotId(0), index, Step::FinalFlush));
            let io = Io {
                op: Op::Flush,
                lba: 0,
                blocks: 0,
                fua: false,
                data: Segments::new(),
                token,
            };
            self.submit(index, io);
        }
    }

    /// Takes completions and events off the devices, and starts what waited for room.
    pub(super) fn poll(&mut self, now: Nanos, finished: &mut Vec<Finished>) {
        let mut at = 0;
        while let Some(&index) = self.busy.get(at) {
            if self.poll_place(now, index, finished) {
                at += 1;
            } else {
                self.busy.swap_remove(at);
                self.listed[index] = false;
            }
        }
    }

    /// Polls one device. False when nothing runs there any more, and it does not want to be polled
    /// all the same.
    fn poll_place(&mut self, now: Nanos, index: usize, finished: &mut Vec<Finished>) -> bool {
        let handle = self.handle(index);
        let Some(unit) = self.units[index].as_mut() else {
            return false;
        };
        while let Some(io) = unit.backlog.pop_front() {
            let token = io.token;
            if let Err(io) = unit.device.try_submit(io) {
                unit.backlog.push_front(io);
                break;
            }
            begun(&mut self.running, token);
        }
        // An empty list takes no memory.
        let empty = Completions::with_capacity(0);
        let mut completions = std::mem::replace(&mut self.completions, empty);
        let is_due = |device: &D| device.poll_timeout().is_some_and(|at| at <= now);
        if unit.commands > 0 || is_due(&unit.device) {
            unit.device.poll(now, &mut completions);
        }
        while let Some(event) = unit.device.poll_event() {
            self.events.push_back((handle, event));
        }
        for completion in completions.drain() {
            self.handle_completion(completion, finished);
        }
        self.completions = completions;
        self.run_ready(index);
        self.drop_retired(index);
        self.units[index]
            .as_ref()
            .is_some_and(|unit| unit.commands > 0 || unit.device.poll_timeout().is_some())
    }

    /// The next event of any device.
    pub(super) fn poll_event(&mut self) -> Option<(NamespaceHandle, DeviceEvent)> {
        self.events.pop_front()
    }

    /// A device that [`flush_all`](Self::flush_all) could not flush, and why.
    pub(super) fn poll_unflushed(&mut self) -> Option<(NamespaceHandle, IoError)> {
        self.unflushed.pop()
    }

    pub(super) fn poll_timeout(&self) -> Option<Nanos> {
        if !self.events.is_empty() {
            return Some(Nanos::ZERO);
        }
        let units = self.busy.iter().filter_map(|&at| self.units[at].as_ref());
        units.filter_map(|unit| unit.device.poll_timeout()).min()
    }

    /// A device that was given up goes when its last command has ended.
    fn drop_retired(&mut self, index: usize) {
        let is_unused = |unit: &Unit<D>| unit.retiring && unit.commands == 0;
        if self.units[index].as_ref().is_some_and(is_unused) {
            self.vacate(index);
        }
    }

    fn handle_completion(&mut self, completion: Completion, finished: &mut Vec<Finished>) {
        let Completion {
            token,
            result,
            data,
        } = completion;
        let Some(running) = running_mut(&mut self.running, token) else {
            debug_assert!(false, "a device completed what was never submitted");
            return;
        };
        let mut next = running.step.next(result, data);
        if running.is_cancelled && matches!(next, Next::Run(_)) {
            next = Next::End {
                status: Status::ABORTED_BY_REQUEST,
                buffer: None,
            };
        }
        let (change, unit) = (running.change.take(), running.unit);
        if let (Some(change), Some(unit)) = (change, self.units[unit].as_mut())
            && !unit.order.is_free()
        {
            unit.order.changed(change);
        }
        self.go_on(token, next, finished);
    }

    /// Does what comes next for a command.
    fn go_on(&mut self, token: u64, next: Next, finished: &mut Vec<Finished>) {
        let (status, buffer, second) = match next {
            Next::Run(mut io) => {
                io.token = token;
                let Some(running) = running_mut(&mut self.running, token) else {
                    return;
                };
                let unit = running.unit;
                return self.submit(unit, io);
            }
            Next::End { status, buffer } => (status, buffer, None),
            Next::EndPair { first, second } => (first, None, Some(second)),
            Next::Flushed(result) => {
                let index = self.end(token).map(|running| running.unit);
                if let (Err(error), Some(index)) = (result, index) {
                    self.unflushed.push((self.handle(index), error));
                }
                return;
            }
        };
        let Some(Running { conn, slot, .. }) = self.end(token) else {
            return;
        };
        // Taken from the end: the first half is answered first.
        finished.extend(second.map(|(slot, status)| Finished {
            conn,
            slot,
            status,
            data: None,
        }));
        finished.push(Finished {
            conn,
            slot,
            status,
            data: buffer.map(Found::Copied),
        });
    }

    /// Takes a command that has ended out of the table.
    fn end(&mut self, token: u64) -> Option<Running> {
        let position = usize::try_from(token).ok()?;
        let running = self.running.get_mut(position)?.take()?;
        self.free.push(position);
        if let Some(unit) = self.units[running.unit].as_mut() {
            unit.commands -= 1;
            if running.is_exclusive {
                unit.order.release(token);
            }
        }
        Some(running)
    }

    /// Lets a command have its blocks to itself from its first operation on.
    fn claim(&mut self, token: u64, blocks: Blocks, mut first: Io) {
        first.token = token;
        let Some(running) = running_mut(&mut self.running, token) else {
            return;
        };
        running.is_exclusive = true;
        let index = running.unit;
        let Some(unit) = self.units[index].as_mut() else {
            return;
        };
        let all = self.running.iter().flatten();
        let changes = all
            .filter(|it| it.unit == index && !it.is_exclusive)
            .filter_map(|it| it.change);
        unit.order.claim(token, blocks, first, changes);
    }

    /// Submits what need not wait any longer for others' blocks.
    fn run_ready(&mut self, index: usize) {
        while let Some(unit) = self.units[index].as_mut()
            && let Some(io) = unit.order.pop_ready()
        {
            self.submit_now(index, io);
        }
    }

    fn submit(&mut self, index: usize, io: Io) {
        let Some(unit) = self.units[index].as_mut() else {
            return;
        };
        let running = running_mut(&mut self.running, io.token);
        if let Some(running) = running.filter(|it| io.op.is_modifying() && !it.is_exclusive) {
            let blocks = Blocks::new(io.lba, io.blocks);
            if unit.order.is_free() {
                running.change = Some(unit.order.change(blocks));
            } else {
                let (change, entered) = unit.order.enter(io, blocks);
                running.change = Some(change);
                match entered {
                    Ok(()) => return,
                    Err(io) => return self.submit_now(index, io),
                }
            }
        }
        self.submit_now(index, io);
    }

    fn submit_now(&mut self, index: usize, io: Io) {
        let unit = self.units[index]
            .as_mut()
            .expect("a unit lives while commands run on it");
        let token = io.token;
        // Order between commands is not promised, but nobody should starve: behind a backlog
        // new operations queue up.
        if !unit.backlog.is_empty() {
            unit.backlog.push_back(io);
        } else if let Err(io) = unit.device.try_submit(io) {
            unit.backlog.push_back(io);
        } else {
            begun(&mut self.running, token);
        }
    }

    /// Takes back a command, or a fused pair by either of its halves, of which nothing has
    /// reached the device. One that is done in parts is asked to end early.
    pub(super) fn withdraw(&mut self, conn: ConnId, slot: SlotId) -> Withdrawn {
        let is_it = |it: &Running| {
            it.conn == conn
                && (it.slot == slot || it.step.second() == Some(slot))
                && !matches!(it.step, Step::FinalFlush)
        };
        let found = self
            .running
            .iter_mut()
            .enumerate()
            .find_map(|(at, place)| Some((at, place.as_mut().filter(|it| is_it(it))?)));
        let Some((position, running)) = found else {
            return Withdrawn::No;
        };
        if running.is_begun {
            if !running.step.is_divisible() {
                return Withdrawn::No;
            }
            running.is_cancelled = true;
            return Withdrawn::Asked;
        }
        let (token, index, change) = (position as u64, running.unit, running.change.take());
        let Some(unit) = self.units[index].as_mut() else {
            return Withdrawn::No;
        };
        if unit.order.withdraw(token).is_none() {
            unit.backlog.retain(|io| io.token != token);
        }
        if let Some(change) = change {
            unit.order.changed(change);
        }
        self.end(token);
        self.run_ready(index);
        self.drop_retired(index);
        Withdrawn::Done
    }

    fn park(&mut self, running: Running) -> u64 {
        let position = match self.free.pop() {
            Some(position) => {
                self.running[position] = Some(running);
                position
            }
            None => {
                self.running.push(Some(running));
                self.running.len() - 1
            }
        };
        position as u64
    }
}

/// A command, or both halves of a pair, that never ran.
fn failed(
    conn: ConnId,
    slot: SlotId,
    command: &IoCommand,
    status: Status,
) -> impl Iterator<Item = Finished> {
    let both = command.second().into_iter().chain([slot]);
    both.map(move |slot| Finished {
        conn,
        slot,
        status,
        data: None,
    })
}

fn status_of(result: Result<(), IoError>) -> Status {
    result.map_or_else(io_status, |()| Status::SUCCESS)
}

fn running_mut(running: &mut [Option<Running>], token: u64) -> Option<&mut Running> {
    running.get_mut(usize::try_from(token).ok()?)?.as_mut()
}

/// An operation of the command is at its device.
fn begun(running: &mut [Option<Running>], token: u64) {
    if let Some(running) = running_mut(running, token) {
        running.is_begun = true;
    }
}

#[cfg(test)]
mod tests;
