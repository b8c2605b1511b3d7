//! Runs validated commands on devices and says what became of each.
//!
//! Most commands are one device operation. Two are not: Compare reads into a second buffer and
//! compares on this reactor, and a Dataset Management command deallocates its ranges one after
//! the other. A device whose queue is full leaves its operations in a backlog that is bounded by
//! the command slots of the connections.

use std::collections::VecDeque;

use bowline_block::{
    Completion, Completions, Device, DeviceEvent, Geometry, Io, IoBuf, IoError, Op, Segments,
};
use bowline_nvme::nvm::DsmRange;
use bowline_nvme::{Nanos, Status};
use bowline_nvmf::target::{ConnId, IoCommand, IoOp, NamespaceHandle, SlotId};

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
    pub(super) buffer: Option<IoBuf>,
}

/// One namespace's device and what waits for it.
struct Unit<D> {
    device: D,
    block_bytes: u32,
    backlog: VecDeque<Io>,
    /// Commands started and not finished; each has at most one operation at the device.
    commands: usize,
    /// No new command arrives any more; dropped when the last operation has ended.
    retiring: bool,
}

/// What is still to do for a command when its current device operation ends.
enum Step {
    /// Nothing: the operation's end is the command's end.
    Last,
    /// The read data is to be compared with this.
    Compare { expected: IoBuf },
    /// Ranges `next..count` of the list are still to be deallocated.
    Deallocate { list: IoBuf, next: u16, count: u16 },
    /// Not a command: the flush at the end of the process.
    FinalFlush,
}

/// What a device's completion means for its command.
enum Outcome {
    Continues,
    Ended(Option<Finished>),
}

/// How a command begins.
struct First {
    /// The first device operation, still without a token; none where `step` says what comes first.
    io: Option<Io>,
    step: Step,
}

impl First {
    /// `None` when the host's data, which the command is about, is missing.
    fn of(
        op: IoOp,
        block_bytes: u32,
        payload: Option<IoBuf>,
        scratch: Option<IoBuf>,
    ) -> Option<Self> {
        let mut step = Step::Last;
        let (op, lba, blocks, fua, data) = match op {
            IoOp::Read { lba, blocks } => (Op::Read, lba, blocks, false, scratch),
            IoOp::Write { lba, blocks, fua } => {
                let bytes = blocks as usize * block_bytes as usize;
                let data = payload.map(|buf| buf.slice(0..bytes.min(buf.len())));
                (Op::Write, lba, blocks, fua, data)
            }
            IoOp::Compare { lba, blocks } => {
                let expected = payload?;
                step = Step::Compare { expected };
                (Op::Read, lba, blocks, false, scratch)
            }
            IoOp::Flush => (Op::Flush, 0, 0, false, None),
            IoOp::WriteZeroes {
                lba,
                blocks,
                deallocate,
                fua,
            } => (Op::WriteZeroes { deallocate }, lba, blocks, fua, None),
            IoOp::Deallocate { ranges: count } => {
                let (list, next) = (payload?, 0);
                let step = Step::Deallocate { list, next, count };
                return Some(Self { io: None, step });
            }
        };
        let io = Io {
            op,
            lba,
            blocks,
            fua,
            data: data.map_or_else(Segments::new, Segments::from),
            token: 0,
        };
        Some(Self { io: Some(io), step })
    }
}

struct Running {
    conn: ConnId,
    slot: SlotId,
    unit: usize,
    step: Step,
}

/// All devices of a reactor and the commands running on them.
pub(super) struct Executor<D> {
    units: Vec<Option<Unit<D>>>,
    /// How often each place was used: the upper bits of the handle, so that a command which waited
    /// while its namespace went away never runs on the device that came after.
    uses: Vec<u32>,
    /// Places without a device.
    vacant: Vec<usize>,
    /// Places whose devices have something to be polled for: a turn costs what runs, however many
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
        }
    }

    /// `None` when there is no place left for a further device.
    pub(super) fn add(&mut self, device: D) -> Option<NamespaceHandle> {
        let unit = Unit {
            block_bytes: device.geometry().block_bytes,
            device,
            // Ten thousand idle devices must cost nothing.
            backlog: VecDeque::new(),
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
        self.units[index] = Some(unit);
        self.uses[index] = self.uses[index].wrapping_add(1);
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
        self.units[index] = None;
        self.vacant.push(index);
    }

    /// Has the place polled from the next turn on, until nothing runs there.
    fn wake(&mut self, index: usize) {
        if !self.listed[index] {
            self.listed[index] = true;
            self.busy.push(index);
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
        let Some(unit) = unit else { return 0 };
        match command.op {
            IoOp::Read { blocks, .. } | IoOp::Compare { blocks, .. } => {
                blocks as usize * unit.block_bytes as usize
            }
            _ => 0,
        }
    }

    /// Starts a command. `scratch` is the buffer of `read_bytes`, `payload` what the host sent.
    pub(super) fn start(
        &mut self,
        conn: ConnId,
        slot: SlotId,
        command: &IoCommand,
        payload: Option<IoBuf>,
        scratch: Option<IoBuf>,
    ) -> Option<Finished> {
        let failed = |status, buffer| {
            Some(Finished {
                conn,
                slot,
                status,
                buffer,
            })
        };
        // A namespace that went away while the command waited for its buffer.
        let gone = Status::INVALID_NAMESPACE.dnr();
        let Some(index) = self.place(command.namespace) else {
            return failed(gone, payload);
        };
        let Some(unit) = self.units[index].as_mut().filter(|unit| !unit.retiring) else {
            return failed(gone, payload);
        };
        let Some(First { io, step }) = First::of(command.op, unit.block_bytes, payload, scratch)
        else {
            return failed(Status::INTERNAL, None);
        };
        unit.commands += 1;
        self.wake(index);
        let running = Running {
            conn,
            slot,
            unit: index,
            step,
        };
        let Some(mut io) = io else {
            let finished = self.next_range(running, Ok(()));
            if finished.is_some() {
                self.end_command(index);
            }
            return finished;
        };
        io.token = self.park(running);
        self.submit(index, io);
        None
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
            let step = Step::FinalFlush;
            let token = self.park(Running {
                conn,
                slot: SlotId(0),
                unit: index,
                step,
            });
            let data = Segments::new();
            self.submit(
                index,
                Io {
                    op: Op::Flush,
                    lba: 0,
                    blocks: 0,
                    fua: false,
                    data,
                    token,
                },
            );
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

    /// Polls one device. False when nothing runs there any more.
    fn poll_place(&mut self, now: Nanos, index: usize, finished: &mut Vec<Finished>) -> bool {
        let handle = self.handle(index);
        let Some(unit) = self.units[index].as_mut() else {
            return false;
        };
        while let Some(io) = unit.backlog.pop_front() {
            if let Err(io) = unit.device.try_submit(io) {
                unit.backlog.push_front(io);
                break;
            }
        }
        // An empty list takes no memory.
        let empty = Completions::with_capacity(0);
        let mut completions = std::mem::replace(&mut self.completions, empty);
        if unit.commands > 0 {
            unit.device.poll(now, &mut completions);
        }
        while let Some(event) = unit.device.poll_event() {
            self.events.push_back((handle, event));
        }
        for completion in completions.drain() {
            if let Outcome::Ended(done) = self.handle_completion(completion) {
                finished.extend(done);
                self.end_command(index);
            }
        }
        self.completions = completions;
        self.units[index]
            .as_ref()
            .is_some_and(|unit| unit.commands > 0)
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

    fn end_command(&mut self, index: usize) {
        if let Some(unit) = self.units[index].as_mut() {
            unit.commands -= 1;
            if unit.retiring && unit.commands == 0 {
                self.vacate(index);
            }
        }
    }

    fn handle_completion(&mut self, completion: Completion) -> Outcome {
        let Completion {
            token,
            result,
            mut data,
        } = completion;
        let Some((position, running)) = usize::try_from(token)
            .ok()
            .and_then(|at| Some((at, self.running.get_mut(at)?.take()?)))
        else {
            debug_assert!(false, "a device completed what was never submitted");
            return Outcome::Continues;
        };
        self.free.push(position);
        let (conn, slot) = (running.conn, running.slot);
        let finished = match running.step {
            Step::Last => {
                let status = result.map_or_else(io_status, |()| Status::SUCCESS);
                Finished {
                    conn,
                    slot,
                    status,
                    buffer: data.pop(),
                }
            }
            Step::Compare { expected } => {
                let same = data.pop().is_some_and(|found| {
                    expected
                        .get(..found.len())
                        .is_some_and(|expected| *expected == *found)
                });
                let result = result.and(if same {
                    Ok(())
                } else {
                    Err(IoError::CompareMismatch)
                });
                let status = result.map_or_else(io_status, |()| Status::SUCCESS);
                Finished {
                    conn,
                    slot,
                    status,
                    buffer: Some(expected),
                }
            }
            Step::Deallocate { .. } => {
                return self
                    .next_range(running, result)
                    .map_or(Outcome::Continues, |done| Outcome::Ended(Some(done)));
            }
            Step::FinalFlush => {
                if let Err(error) = result {
                    let handle = self.handle(running.unit);
                    self.unflushed.push((handle, error));
                }
                return Outcome::Ended(None);
            }
        };
        Outcome::Ended(Some(finished))
    }

    /// Goes on with a Dataset Management command, or ends it.
    fn next_range(&mut self, running: Running, result: Result<(), IoError>) -> Option<Finished> {
        let Running {
            conn,
            slot,
            unit,
            step,
        } = running;
        let Step::Deallocate {
            list,
            mut next,
            count,
        } = step
        else {
            return None;
        };
        // Deallocate is advice: a device that cannot do it has still obeyed. [NVM-1.0 §3.2.3]
        let mut outcome = result.or_else(|error| match error {
            IoError::Unsupported => Ok(()),
            error => Err(error),
        });
        while outcome.is_ok() && next < count {
            let at = usize::from(next) * DsmRange::SIZE;
            next += 1;
            let Some(range) = list
                .get(at..)
                .and_then(<[u8]>::first_chunk)
                .map(DsmRange::decode)
            else {
                outcome = Err(IoError::Internal);
                break;
            };
            if range.blocks == 0 {
                continue;
            }
            let step = Step::Deallocate { list, next, count };
            let token = self.park(Running {
                conn,
                slot,
                unit,
                step,
            });
            let io = Io {
                op: Op::Deallocate,
                lba: range.slba,
                blocks: range.blocks,
                fua: false,
                data: Segments::new(),
                token,
            };
            self.submit(unit, io);
            return None;
        }
        let status = outcome.map_or_else(io_status, |()| Status::SUCCESS);
        Some(Finished {
            conn,
            slot,
            status,
            buffer: Some(list),
        })
    }

    fn submit(&mut self, index: usize, io: Io) {
        let unit = self.units[index]
            .as_mut()
            .expect("a unit lives while commands run on it");
        // Order between commands is not promised, but nobody should starve: behind a backlog
        // new operations queue up.
        if !unit.backlog.is_empty() {
            unit.backlog.push_back(io);
        } else if let Err(io) = unit.device.try_submit(io) {
            unit.backlog.push_back(io);
        }
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

#[cfg(test)]
mod tests {
    use bowline_block::MemDevice;

    use super::*;

    /// A read that waited for a buffer while its namespace was replaced ran on the new device.
    /// Handles name a device, not the place where one was.
    #[test]
    fn command_for_a_removed_namespace_never_runs_on_the_next_device_there() {
        let mut executor = Executor::new();
        let device = || MemDevice::new(1 << 20, 512).expect("memory");
        let old = executor.add(device()).expect("a place");
        executor.retire(old);
        let new = executor.add(device()).expect("a place");
        assert_ne!(old, new);
        let op = IoOp::Read { lba: 0, blocks: 8 };
        let command = |namespace| IoCommand {
            namespace,
            op,
            bytes: 4096,
        };
        assert_eq!(executor.read_bytes(&command(old)), 0);
        assert_eq!(executor.read_bytes(&command(new)), 4096);
        let conn = ConnId {
            index: 0,
            generation: 0,
        };
        let finished = executor.start(conn, SlotId(0), &command(old), None, None);
        let status = finished.expect("nothing to run on").status;
        assert!(status.same_code(Status::INVALID_NAMESPACE));
        assert_eq!(executor.in_flight(), 0);
    }

    /// Every turn asked every device, so that thousands of idle namespaces slowed down the one in
    /// use. Only those with something running are looked at.
    #[test]
    fn turn_looks_only_at_devices_with_something_to_do() {
        let mut executor = Executor::new();
        let device = || MemDevice::new(1 << 20, 512).expect("memory");
        let handles: Vec<_> = (0..100)
            .map(|_| executor.add(device()).expect("a place"))
            .collect();
        assert!(executor.busy.is_empty());
        let command = IoCommand {
            namespace: handles[70],
            op: IoOp::Flush,
            bytes: 0,
        };
        let conn = ConnId {
            index: 0,
            generation: 0,
        };
        for _ in 0..2 {
            assert!(
                executor
                    .start(conn, SlotId(0), &command, None, None)
                    .is_none()
            );
            assert_eq!(executor.busy, [70]);
            let mut finished = Vec::new();
            executor.poll(Nanos::ZERO, &mut finished);
            assert_eq!(finished.len(), 1);
            assert!(executor.busy.is_empty());
        }
        // Its place is used again, once, and what is removed while listed is forgotten.
        assert!(executor.device_mut(handles[3]).is_some());
        executor.retire(handles[3]);
        let next = executor.add(device()).expect("a place");
        assert_ne!(next, handles[3]);
        assert!(executor.device_mut(next).is_some());
        assert_eq!(executor.busy, [3]);
        executor.poll(Nanos::ZERO, &mut Vec::new());
        assert!(executor.busy.is_empty());
    }
}
