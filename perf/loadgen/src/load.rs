//! The load on a reactor: takes what completed and submits what is due, in every turn.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpStream};

use bowline_block::Segments;
use bowline_nvme::{NamespaceId, Nanos, Status};
use bowline_reactor::{Gather, ListenerId, Reactor, Service, SocketId};
use bowline_tcp::host::{HostCommand, HostCompletion, HostMessage, HostOp, HostService, PathId};

use crate::arrivals::Arrivals;
use crate::latency::Latencies;
use crate::pattern::Addresses;
use crate::random::Random;
use crate::verify::{Judgement, Ledger, Verified};

/// Associations, and the load on them once there is one.
#[derive(Default)]
pub(crate) struct LoadService {
    pub(crate) host: HostService,
    pub(crate) load: Option<Load>,
}

/// A place for one outstanding command, and its data. Reads and writes have buffers of their own:
/// the kernel may hold a write's until after its completion. Writes that nobody verifies share one
/// with other slots.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) path: PathId,
    pub(crate) queue: u16,
    pub(crate) read: Segments,
    pub(crate) write: Segments,
    is_read: bool,
    /// When the command was to start: in a closed loop, when it did.
    start: Nanos,
    /// What it is for, in units of one command's size.
    unit: u64,
    /// It looks a second time at what it read.
    again: bool,
}

impl Slot {
    pub(crate) fn new(path: PathId, queue: u16, read: Segments, write: Segments) -> Self {
        Self {
            path,
            queue,
            read,
            write,
            is_read: true,
            start: Nanos::ZERO,
            unit: 0,
            again: false,
        }
    }
}

/// What is submitted.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) nsid: NamespaceId,
    pub(crate) unit_blocks: u32,
    pub(crate) read_percent: u8,
    /// What modifies deallocates, and has no data.
    pub(crate) deallocates: bool,
    pub(crate) addresses: Addresses,
    /// Chooses between read and write.
    pub(crate) mix: Random,
    /// What every block should hold, if that is to be verified.
    pub(crate) ledger: Option<Ledger>,
}

/// Which commands are submitted now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// None.
    Rest,
    /// Writes of every unit, from `next` on.
    Fill { next: u64 },
    /// What the plan says; with a number given, so many commands.
    Run { left: Option<u64> },
    /// Reads of every unit that was written, from `next` on.
    ReadBack { next: u64 },
}

/// What was counted.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) reads: u64,
    pub(crate) writes: u64,
    pub(crate) read_latencies: Latencies,
    pub(crate) write_latencies: Latencies,
    pub(crate) errors: u64,
    pub(crate) first_error: Option<Status>,
    /// Most commands that were due and could not be started, for all slots were taken.
    pub(crate) backlog_max: u64,
    /// Commands that were due in the counted time and were not started in it.
    pub(crate) not_started: u64,
}

/// The load.
pub(crate) struct Load {
    plan: Plan,
    phase: Phase,
    /// Intended starts, in an open loop.
    arrivals: Option<Arrivals>,
    slots: Vec<Slot>,
    /// Slots without a command, longest idle first: takes turns between queues.
    idle: VecDeque<u32>,
    /// Slots whose read is to be repeated.
    again: Vec<u32>,
    /// Counts what is due by now, in an open loop.
    due: Option<Arrivals>,
    /// The counted time; empty before it begins.
    from: Nanos,
    to: Nanos,
    /// All that completed, whenever.
    pub(crate) completed: u64,
    /// A connection was lost, or a command could not be submitted.
    pub(crate) broken: bool,
    pub(crate) tally: Tally,
}

impl Load {
    pub(crate) fn new(plan: Plan, slots: Vec<Slot>) -> Self {
        let count = u32::try_from(slots.len()).unwrap_or(u32::MAX);
        Self {
            plan,
            phase: Phase::Rest,
            arrivals: None,
            again: Vec::with_capacity(slots.len()),
            slots,
            idle: (0..count).collect(),
            due: None,
            from: Nanos::MAX,
            to: Nanos::MAX,
            completed: 0,
            broken: false,
            tally: Tally::default(),
        }
    }

    /// Submits these commands from now on.
    pub(crate) fn enter(&mut self, phase: Phase) {
        self.phase = phase;
    }

    /// Runs at times of its own from now on.
    pub(crate) fn run_open(&mut self, arrivals: Arrivals) {
        self.due = Some(arrivals.clone());
        self.arrivals = Some(arrivals);
        self.phase = Phase::Run { left: None };
    }

    /// What was verified.
    pub(crate) fn verified(&self) -> Option<&Verified> {
        self.plan.ledger.as_ref().map(|ledger| &ledger.verified)
    }

    /// Counts from `from` to `to`, and stops starting commands then. What failed before is not
    /// forgotten: a target that loses what it is filled with is no better for it.
    pub(crate) fn count(&mut self, from: Nanos, to: Nanos) {
        self.tally = Tally {
            errors: self.tally.errors,
            first_error: self.tally.first_error,
            ..Tally::default()
        };
        self.from = from;
        self.to = to;
    }

    /// Ends the counted time, which had no end.
    pub(crate) fn count_no_more(&mut self, to: Nanos) {
        self.to = to;
    }

    /// Starts no more commands. What was due by then and did not start waited until then at
    /// least; leaving it out would hide the stall.
    pub(crate) fn stop(&mut self) {
        self.phase = Phase::Rest;
        let Some(arrivals) = &mut self.arrivals else {
            return;
        };
        while arrivals.next_at() < self.to {
            let at = arrivals.next_at();
            arrivals.advance();
            if at < self.from {
                continue;
            }
            self.tally.not_started += 1;
            let waited = self.to.saturating_sub(at);
            if is_read(&mut self.plan.mix, self.plan.read_percent) {
                self.tally.read_latencies.record(waited);
            } else {
                self.tally.write_latencies.record(waited);
            }
        }
    }

    /// Whether nothing more is to be submitted.
    pub(crate) fn is_resting(&self) -> bool {
        self.phase == Phase::Rest
    }

    /// Commands that are outstanding.
    pub(crate) fn outstanding(&self) -> u64 {
        (self.slots.len() - self.idle.len()) as u64
    }

    /// Whether nothing is outstanding.
    pub(crate) fn is_idle(&self) -> bool {
        self.idle.len() == self.slots.len()
    }

    /// When the next command is due though nothing completes.
    fn next_arrival(&self) -> Option<Nanos> {
        let arrivals = self.arrivals.as_ref()?;
        (matches!(self.phase, Phase::Run { .. }) && !self.idle.is_empty())
            .then(|| arrivals.next_at())
    }

    /// Takes everything that completed.
    fn collect(&mut self, host: &mut HostService, now: Nanos) {
        let mut number = 0;
        while let Some(path) = host.active(number) {
            number += 1;
            let path = host.path_mut(path);
            while let Some(done) = path.poll() {
                self.on_done(done, now);
            }
        }
    }

    fn on_done(&mut self, done: HostCompletion, now: Nanos) {
        let slot = usize::try_from(done.token).ok();
        let Some(slot) = slot.and_then(|index| self.slots.get_mut(index)) else {
            return;
        };
        let index = u32::try_from(done.token).unwrap_or(u32::MAX);
        self.completed += 1;
        self.broken |= done.path_lost;
        let tally = &mut self.tally;
        let in_time = now >= self.from && now < self.to;
        // An open loop judges the commands that were to start in the counted time, whenever they
        // end; a closed loop those that ended in it.
        let judged = match self.arrivals {
            Some(_) => slot.start >= self.from && slot.start < self.to,
            None => in_time,
        };
        if !done.status.is_success() {
            tally.errors += 1;
            tally.first_error.get_or_insert(done.status);
        }
        let latency = now.saturating_sub(slot.start);
        let verdict = match &mut self.plan.ledger {
            None => Judgement::Settled,
            Some(ledger) => judge(ledger, slot, &done),
        };
        if slot.is_read {
            slot.read = done.data;
            tally.reads += u64::from(in_time);
            if judged {
                tally.read_latencies.record(latency);
            }
        } else {
            slot.write = done.data;
            tally.writes += u64::from(in_time);
            if judged {
                tally.write_latencies.record(latency);
            }
        }
        match verdict {
            Judgement::Settled => self.idle.push_back(index),
            Judgement::ReadAgain => self.again.push(index),
        }
    }

    /// Submits what is due, as far as there are slots.
    fn issue(&mut self, host: &mut HostService, cx: &mut Reactor, now: Nanos) {
        if self.broken {
            return;
        }
        while let Some(index) = self.again.pop() {
            self.slots[index as usize].again = true;
            self.slots[index as usize].start = now;
            self.send(host, cx, now, index);
        }
        while let Some(index) = self.idle.front().copied() {
            if !self.choose(index, now) {
                break;
            }
            self.idle.pop_front();
            self.send(host, cx, now, index);
        }
        if let (Phase::Run { .. }, Some(arrivals), Some(due)) =
            (self.phase, &self.arrivals, &mut self.due)
        {
            due.advance_to(now);
            let backlog = due.count() - arrivals.count();
            self.tally.backlog_max = self.tally.backlog_max.max(backlog);
        }
    }

    /// Decides what a slot does next; false if there is nothing for it now.
    fn choose(&mut self, index: u32, now: Nanos) -> bool {
        let slot = &mut self.slots[index as usize];
        // What the kernel still sends must not be filled anew.
        if self.plan.ledger.is_some() && !slot.write.is_unique() {
            return false;
        }
        slot.start = now;
        slot.again = false;
        match &mut self.phase {
            Phase::Rest => false,
            Phase::Run { left: Some(0) } => {
                self.phase = Phase::Rest;
                false
            }
            Phase::Run { .. } => self.choose_run(index, now),
            Phase::Fill { next } => {
                let ledger = self.plan.ledger.as_mut();
                let unit = ledger
                    .filter(|ledger| *next < ledger.unit_count())
                    .and_then(|ledger| ledger.claim(*next));
                let Some(unit) = unit else {
                    self.phase = Phase::Rest;
                    return false;
                };
                *next = unit + 1;
                (slot.is_read, slot.unit) = (false, unit);
                true
            }
            Phase::ReadBack { next } => {
                let ledger = self.plan.ledger.as_mut();
                let unit = ledger.and_then(|ledger| {
                    let unit =
                        (*next..ledger.unit_count()).find(|unit| ledger.is_written(*unit))?;
                    ledger.claim(unit)
                });
                let Some(unit) = unit else {
                    self.phase = Phase::Rest;
                    return false;
                };
                *next = unit + 1;
                (slot.is_read, slot.unit) = (true, unit);
                true
            }
        }
    }

    fn choose_run(&mut self, index: u32, now: Nanos) -> bool {
        let start = match &mut self.arrivals {
            None => now,
            Some(arrivals) if arrivals.next_at() <= now => arrivals.next_at(),
            Some(_) => return false,
        };
        let wanted = self.plan.addresses.next_unit();
        let unit = match &mut self.plan.ledger {
            None => wanted,
            Some(ledger) => match ledger.claim(wanted) {
                Some(unit) => unit,
                // Every unit is in use: when a command is back there is one.
                None => return false,
            },
        };
        if let Some(arrivals) = &mut self.arrivals {
            arrivals.advance();
        }
        if let Phase::Run { left: Some(left) } = &mut self.phase {
            *left -= 1;
        }
        let slot = &mut self.slots[index as usize];
        slot.start = start;
        slot.is_read = is_read(&mut self.plan.mix, self.plan.read_percent);
        slot.unit = unit;
        true
    }

    /// Submits what was decided.
    fn send(&mut self, host: &mut HostService, cx: &mut Reactor, now: Nanos, index: u32) {
        let (plan, slot) = (&mut self.plan, &mut self.slots[index as usize]);
        let (op, mut data) = if slot.is_read {
            (HostOp::Read, slot.read.take())
        } else if plan.deallocates {
            (HostOp::Deallocate, Segments::new())
        } else {
            (HostOp::Write { fua: false }, slot.write.take())
        };
        if let (Some(ledger), false) = (&mut plan.ledger, slot.is_read) {
            self.broken |= !ledger.fill(slot.unit, &mut data);
        }
        let command = HostCommand {
            op,
            nsid: plan.nsid,
            lba: slot.unit * u64::from(plan.unit_blocks),
            blocks: plan.unit_blocks,
            data,
            token: u64::from(index),
        };
        let path = host.path_mut(slot.path);
        // A queue has as many places as there are slots for it: only a lost connection refuses.
        self.broken |= path.submit_on(cx, now, slot.queue, command).is_err();
    }
}

/// Compares what came back with what should be there.
fn judge(ledger: &mut Ledger, slot: &Slot, done: &HostCompletion) -> Judgement {
    let succeeded = done.status.is_success();
    if !slot.is_read {
        ledger.written(slot.unit, succeeded);
        return Judgement::Settled;
    }
    if !succeeded {
        ledger.unread(slot.unit);
        return Judgement::Settled;
    }
    ledger.read(slot.unit, &done.data, slot.again)
}

fn is_read(mix: &mut Random, read_percent: u8) -> bool {
    match read_percent {
        0 => false,
        100.. => true,
        percent => mix.below(100) < u64::from(percent),
    }
}

impl Service for LoadService {
    type Message = HostMessage;

    fn message(&mut self, cx: &mut Reactor, now: Nanos, message: HostMessage) {
        self.host.message(cx, now, message);
    }

    fn accepted(
        &mut self,
        cx: &mut Reactor,
        now: Nanos,
        listener: ListenerId,
        stream: TcpStream,
        peer: SocketAddr,
    ) {
        self.host.accepted(cx, now, listener, stream, peer);
    }

    fn connected(
        &mut self,
        cx: &mut Reactor,
        now: Nanos,
        socket: SocketId,
        result: io::Result<()>,
    ) {
        self.host.connected(cx, now, socket, result);
    }

    fn readable(&mut self, cx: &mut Reactor, now: Nanos, socket: SocketId) {
        self.host.readable(cx, now, socket);
    }

    fn sent(
        &mut self,
        cx: &mut Reactor,
        now: Nanos,
        socket: SocketId,
        gather: Gather,
        result: io::Result<()>,
    ) {
        self.host.sent(cx, now, socket, gather, result);
    }

    fn turn(&mut self, cx: &mut Reactor, now: Nanos) {
        if let Some(load) = &mut self.load {
            load.collect(&mut self.host, now);
            load.issue(&mut self.host, cx, now);
        }
        self.host.turn(cx, now);
    }

    fn poll_timeout(&self) -> Option<Nanos> {
        let arrival = self.load.as_ref().and_then(Load::next_arrival);
        match (self.host.poll_timeout(), arrival) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    fn expects_completion(&self) -> bool {
        self.load.as_ref().is_some_and(|load| !load.is_idle())
    }

    fn stopping(&mut self, cx: &mut Reactor, now: Nanos) {
        self.host.stopping(cx, now);
    }

    fn is_stopped(&self) -> bool {
        self.host.is_stopped()
    }
}
