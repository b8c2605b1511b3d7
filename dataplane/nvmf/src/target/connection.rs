//! One transport connection: its state, its command slots, and what it has to send.
//!
//! ```text
//! AwaitIcReq ─ICReq► AwaitConnect ─Connect data► Routing ─resume► HeldConnect ─► Ready
//!                         ▲                         └──── refused ◄──┘ (and ◄────┘)
//!                         └────────────────────────────────┘
//! any ─violation► Linger (C2HTermReq sent, input dropped) ─► Closing
//! any ─stop► Drain (input dropped, commands at devices finish) ─► Closing
//! Closing ─closed by the glue► Gone, until the last command has left its device
//! ```
//!
//! Authentication will be a state between the accepted Connect and `Ready`: `Target::connected`
//! is the one place that enters `Ready`, and `Target::plan` the one that asks for it.

use std::collections::VecDeque;

use bowline_nvme::opcode::{admin, fabrics};
use bowline_nvme::pdu::{C2HData, CapsuleResp, Digests, Direction, IcResp, R2t, TermReq};
use bowline_nvme::{Cqe, Nanos, QueueId, Sqe, Status};

use super::abort::ACL;
use super::admission::HostKey;
use super::config::Path;
use super::connect::ConnectRequest;
use super::fused::{Before, Half};
use super::output::{IoCommand, Output, Rx, SlotId, TxBody, TxPdu};
use super::slot::{Slot, Slots, Stage};
use super::table::Key;
use super::timer::Armed;
use crate::frame::FrameReader;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    AwaitIcReq,
    AwaitConnect,
    /// Connect's data has arrived; the owner decides which target gets the connection.
    Routing,
    /// Connect waits for an old association or queue to be gone.
    HeldConnect,
    Ready,
    Linger,
    Drain,
    Closing,
    Gone,
}

/// The queue pair a connection became.
#[derive(Clone, Copy, Debug)]
pub(super) struct Queue {
    pub(super) controller: Key,
    /// Whose limit it counts against.
    pub(super) host: HostKey,
    pub(super) qid: u16,
    /// Entries of the submission queue, one-based.
    pub(super) entries: u16,
    pub(super) sq_head: u16,
    /// SQ flow control is on: responses carry SQHD. [FABRICS-1.1 §2.4]
    pub(super) flow_control: bool,
}

/// An output that waits to be polled. Each slot has at most two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pending {
    IcResp,
    Terminate,
    NeedBuffer(SlotId),
    R2t(SlotId),
    Inspect(SlotId),
    Fill(SlotId),
    Execute(SlotId),
    Data(SlotId),
    Response(SlotId),
    Release(SlotId),
    Withdraw(SlotId),
    Route,
    Close { graceful: bool },
}

/// Pending outputs that belong to no slot: ICResp, TermReq, Route, Close.
const UNSLOTTED_OUTPUTS: usize = 4;
/// Commands that may be asked back at a time: those of Aborts, and a pair.
const WITHDRAWALS: usize = ACL as usize + 3;
/// The lowest rate at which a PDU or a granted transfer may move, beyond the time it may pause.
const RATE_MIN_BYTES: u64 = 64 << 10;
/// Slots before Connect: one for it, the rest answer whatever else is sent too early.
const SLOTS_BEFORE_CONNECT: u16 = 4;

/// Where the payload of the PDU being received goes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Landing {
    /// `None`: nowhere, it is dropped.
    pub(super) slot: Option<SlotId>,
    /// Slot offset of the PDU's first payload byte.
    pub(super) start: u32,
    /// Slot offset of the next payload byte.
    pub(super) next: u32,
    /// The slot's earlier data was damaged: this is counted and thrown away.
    pub(super) drop: bool,
}

/// What a connection has done, for operators.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionCounters {
    /// PDUs received.
    pub pdus: u64,
    /// Command capsules received.
    pub commands: u64,
    /// Payload bytes received, those dropped included.
    pub payload_rx_bytes: u64,
    /// Payload bytes handed out for sending.
    pub payload_tx_bytes: u64,
    /// R2Ts sent.
    pub r2ts: u64,
    /// Payloads whose data digest did not match.
    pub data_digest_errors: u64,
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) path: Path,
    pub(super) state: State,
    pub(super) frame: FrameReader,
    pub(super) landing: Landing,
    pub(super) digests: Digests,
    pub(super) hpda: u8,
    pub(super) maxh2cdata: u32,
    pub(super) slots: Slots,
    pub(super) queue: Option<Queue>,
    outputs: VecDeque<Pending>,
    /// ICResp, R2Ts, data and responses to be sent, before any of the outputs: what is done leaves,
    /// and gives back what it holds, before more is begun.
    answers: VecDeque<Pending>,
    /// How many of the outputs take a command back.
    withdrawals: usize,
    pub(super) dirty: bool,
    /// What the last capsule means for the next one.
    pub(super) before: Before,
    pub(super) connect: Option<Box<ConnectRequest>>,
    term: Option<Box<TermReq>>,
    /// Commands at their devices.
    pub(super) executing: u16,
    /// When the state must have been left: ICReq, Connect, Linger, a held Connect.
    pub(super) deadline: Option<Nanos>,
    /// When the host must have connected, however often it tries.
    pub(super) connect_by: Nanos,
    pub(super) armed: Armed,
    /// Last byte received.
    pub(super) last_rx: Nanos,
    /// When the PDU being received began.
    pub(super) pdu_since: Nanos,
    /// Last command received or answered: what restarts the keep-alive timer. A host counts from
    /// the completions it sees. [BASE-2.0 §3.9.4]
    pub(super) last_command: Nanos,
    pub(super) counters: ConnectionCounters,
}

impl Connection {
    pub(super) fn new(now: Nanos, path: Path, maxh2cdata: u32, icreq_by: Nanos) -> Self {
        let slots = Slots::new(SLOTS_BEFORE_CONNECT);
        Self {
            path,
            state: State::AwaitIcReq,
            frame: FrameReader::new(Direction::HostToController),
            landing: Landing::default(),
            digests: Digests::NONE,
            hpda: 0,
            maxh2cdata,
            outputs: VecDeque::with_capacity(outputs_max(&slots)),
            answers: VecDeque::with_capacity(outputs_max(&slots)),
            slots,
            withdrawals: 0,
            queue: None,
            dirty: false,
            before: Before::Alone,
            connect: None,
            term: None,
            executing: 0,
            deadline: Some(icreq_by),
            connect_by: icreq_by,
            armed: Armed::default(),
            last_rx: now,
            pdu_since: now,
            last_command: now,
            counters: ConnectionCounters::default(),
        }
    }

    /// Makes room for a queue of `count` slots: the last allocation of the connection's life.
    pub(super) fn grow(&mut self, count: u16) {
        self.slots.grow(count);
        let most = outputs_max(&self.slots);
        for queue in [&mut self.outputs, &mut self.answers] {
            queue.reserve_exact(most.saturating_sub(queue.len()));
        }
    }

    /// Whether PDUs are understood and acted upon.
    pub(super) fn receives(&self) -> bool {
        matches!(
            self.state,
            State::AwaitIcReq | State::AwaitConnect | State::Ready
        )
    }

    pub(super) fn rx(&self) -> Rx {
        match self.state {
            State::Routing | State::HeldConnect => Rx::Hold,
            State::Linger | State::Drain => Rx::Discard { len: u32::MAX },
            State::Closing | State::Gone => Rx::Closed,
            State::AwaitIcReq | State::AwaitConnect | State::Ready => self.rx_pdu(),
        }
    }

    fn rx_pdu(&self) -> Rx {
        let len = self.frame.payload_remaining();
        if len == 0 {
            return Rx::Bytes;
        }
        let landing = &self.landing;
        let wanted = landing.slot.filter(|_| !landing.drop);
        let Some((slot, command)) = wanted.and_then(|id| Some((id, self.slots.get(id)?))) else {
            return Rx::Discard { len };
        };
        let start = landing.start - command.part_start;
        let next = landing.next - command.part_start;
        let has_digest = self.frame.has_data_digest();
        // The second half of a pair lands behind the first.
        let (slot, base) = match command.half {
            Half::Second { first } => (first, command.part_len()),
            Half::None | Half::First { .. } => (slot, 0),
        };
        Rx::Payload {
            slot,
            offset: base + next,
            len,
            digest_from: has_digest.then_some(base + start),
            transfer_len: base + command.buffer_len(),
        }
    }

    #[inline]
    pub(super) fn push(&mut self, pending: Pending) {
        match pending {
            Pending::IcResp | Pending::R2t(_) | Pending::Data(_) | Pending::Response(_) => {
                self.answers.push_back(pending);
            }
            Pending::Withdraw(_) => {
                self.withdrawals += 1;
                self.outputs.push_back(pending);
            }
            _ => self.outputs.push_back(pending),
        }
    }

    fn clear_outputs(&mut self) {
        self.outputs.clear();
        self.answers.clear();
        self.withdrawals = 0;
    }

    fn has_output(&self) -> bool {
        !self.outputs.is_empty() || !self.answers.is_empty()
    }

    /// Puts the connection on the list of those to be polled, once, if it has something to do.
    #[inline]
    pub(super) fn touch(&mut self, id: Key, dirty: &mut VecDeque<Key>) {
        if self.state == State::Drain {
            self.finish_drain();
        }
        if !self.dirty && self.has_output() {
            self.dirty = true;
            dirty.push_back(id);
        }
    }

    /// Queues the response of a command.
    pub(super) fn respond(&mut self, now: Nanos, id: SlotId, status: Status, result: u64) {
        if let Some(slot) = self.slots.get_mut(id) {
            slot.status = status;
            slot.result = result;
            slot.enter(now, Stage::Respond);
            self.answers.push_back(Pending::Response(id));
        }
    }

    /// Queues the data of a successful command, and its response unless SUCCESS can say it.
    pub(super) fn respond_with_data(&mut self, now: Nanos, id: SlotId, result: u64) {
        let may_fuse = result == 0 && self.may_fuse_response();
        if let Some(slot) = self.slots.get_mut(id) {
            slot.status = Status::SUCCESS;
            slot.result = result;
            slot.fused_response = may_fuse;
            slot.enter(now, Stage::Respond);
            self.answers.push_back(Pending::Data(id));
            if !may_fuse {
                self.answers.push_back(Pending::Response(id));
            }
        }
    }

    /// Ends with a C2HTermReq that quotes the header at fault. [TCP-1.0 §3.5.1]
    pub(super) fn terminate(&mut self, term: TermReq, linger_until: Nanos) {
        self.clear_outputs();
        self.abandon_all(|stage| !matches!(stage, Stage::Executing | Stage::Reserved));
        self.connect = None;
        self.state = State::Linger;
        self.deadline = Some(linger_until);
        self.term = Some(Box::new(term));
        self.push(Pending::Terminate);
    }

    /// Ends without a further word. The glue drops all buffers when it closes.
    pub(super) fn close(&mut self, graceful: bool) {
        if !matches!(self.state, State::Closing | State::Gone) {
            self.cancel();
            self.state = State::Closing;
            self.deadline = None;
            self.push(Pending::Close { graceful });
        }
    }

    /// Takes no further input; what has been accepted and is at its device still finishes.
    pub(super) fn drain(&mut self) {
        self.state = State::Drain;
        self.deadline = None;
        self.connect = None;
        self.answers
            .retain(|pending| !matches!(pending, Pending::R2t(_)));
        self.outputs.retain(|pending| {
            !matches!(
                pending,
                Pending::NeedBuffer(_) | Pending::Inspect(_) | Pending::Fill(_)
            )
        });
        self.abandon_all(|stage| {
            !matches!(
                stage,
                Stage::Queued | Stage::Executing | Stage::Respond | Stage::Reserved
            )
        });
    }

    /// A draining connection closes once everything it owes has been polled. Returns whether it
    /// closes now.
    fn finish_drain(&mut self) -> bool {
        let is_over = self.state == State::Drain && self.executing == 0 && !self.has_output();
        if is_over {
            self.close(true);
        }
        is_over
    }

    /// The socket is gone.
    pub(super) fn gone(&mut self) {
        self.cancel();
        self.state = State::Gone;
        self.deadline = None;
    }

    /// Forgets every command that is not at its device, and every output.
    fn cancel(&mut self) {
        self.clear_outputs();
        self.connect = None;
        self.landing = Landing::default();
        for index in 0..self.slots.capacity() {
            let id = SlotId(index);
            if self
                .slots
                .get(id)
                .is_some_and(|slot| slot.stage != Stage::Executing)
            {
                self.slots.release(id);
            }
        }
    }

    /// Gives up the commands at these stages without a response, but gives their buffers back
    /// at once: an ending connection must not pin memory.
    fn abandon_all(&mut self, mut ends: impl FnMut(Stage) -> bool) {
        self.landing = Landing::default();
        for index in 0..self.slots.capacity() {
            let id = SlotId(index);
            if self.slots.get(id).is_some_and(|slot| ends(slot.stage)) {
                self.abandon(id);
            }
        }
    }

    /// Gives one command up without a response.
    pub(super) fn abandon(&mut self, id: SlotId) {
        if let Some(slot) = self.slots.get_mut(id) {
            slot.stage = Stage::Respond;
            self.push(Pending::Release(id));
        }
    }

    /// The earliest moment at which something must have happened on this connection.
    pub(super) fn next_deadline(&self, transfer: Nanos) -> Option<Nanos> {
        let mut next = self.deadline;
        let mut consider = |at: Nanos| next = Some(next.map_or(at, |other| other.min(at)));
        if self.receives() && !self.frame.is_between_pdus() {
            consider(self.last_rx.after(transfer));
            consider(at_least(self.pdu_since, transfer, self.maxh2cdata));
        }
        if self.state == State::Ready {
            self.first_half_by(transfer)
                .into_iter()
                .for_each(&mut consider);
            self.slots
                .iter()
                .filter(|(_, slot)| slot.stage == Stage::Transfer)
                .for_each(|(_, slot)| {
                    consider(slot.since.after(transfer));
                    consider(at_least(slot.granted, transfer, slot.part_len()));
                });
        }
        next
    }

    /// The next output, skipping those whose command has gone or changed meanwhile.
    pub(super) fn poll(&mut self, now: Nanos) -> Option<Output> {
        loop {
            let answer = self.answers.pop_front();
            let Some(pending) = answer.or_else(|| self.outputs.pop_front()) else {
                if !self.finish_drain() {
                    return None;
                }
                continue;
            };
            match pending {
                Pending::Execute(slot) => {
                    if let Some(command) = self.execute(now, slot) {
                        return Some(Output::Execute { slot, command });
                    }
                }
                Pending::Data(slot) => {
                    if let Some(data) = self.data(now, slot) {
                        return Some(Output::Send {
                            pdu: self.pdu(TxBody::Data(data)),
                            payload: Some((slot, 0, data.datal)),
                            release: data.success.then_some(slot),
                        });
                    }
                }
                Pending::Response(slot) => {
                    if let Some(cqe) = self.response(now, slot) {
                        return Some(Output::Send {
                            pdu: self.pdu(TxBody::Response(CapsuleResp { cqe })),
                            payload: None,
                            release: Some(slot),
                        });
                    }
                }
                pending => {
                    if let Some(output) = self.other_output(now, pending) {
                        return Some(output);
                    }
                }
            }
        }
    }

    /// The next command that is to be taken back, before whatever else there is to do.
    pub(super) fn poll_withdrawal(&mut self, now: Nanos) -> Option<Output> {
        while self.withdrawals > 0 {
            let is_it = |it: &Pending| matches!(it, Pending::Withdraw(_));
            let at = self.outputs.iter().position(is_it)?;
            let pending = self.outputs.remove(at)?;
            if let Some(output) = self.other_output(now, pending) {
                return Some(output);
            }
        }
        None
    }

    /// What most commands do without.
    fn other_output(&mut self, now: Nanos, pending: Pending) -> Option<Output> {
        match pending {
            Pending::IcResp => Some(self.send(TxBody::IcResp(IcResp {
                pfv: 0,
                // CPDA other than 0 is refused by Linux 6.1 and 6.12.
                cpda: 0,
                header_digest: self.digests.header,
                data_digest: self.digests.data,
                maxh2cdata: self.maxh2cdata,
            }))),
            Pending::Terminate => self
                .term
                .take()
                .map(|term| self.send(TxBody::Terminate(term))),
            Pending::NeedBuffer(slot) => {
                let command = self.slots.at_stage(slot, Stage::Buffer)?;
                let len = command.buffer_len();
                // Given up before it was asked for.
                let is_wanted = command.status.is_success();
                is_wanted.then_some(Output::NeedBuffer { slot, len })
            }
            Pending::R2t(slot) => self.r2t(now, slot),
            Pending::Inspect(slot) => {
                let len = self.slots.at_stage(slot, Stage::Inspect)?.transfer_len;
                Some(Output::Inspect { slot, len })
            }
            Pending::Fill(slot) => {
                let command = self.slots.at_stage(slot, Stage::Fill)?;
                let (len, is_wanted) = (command.transfer_len, command.status.is_success());
                is_wanted.then_some(Output::Fill { slot, len })
            }
            Pending::Release(slot) => {
                self.slots.release(slot);
                Some(Output::Release { slot })
            }
            Pending::Withdraw(slot) => {
                self.withdrawals = self.withdrawals.saturating_sub(1);
                let command = self.slots.get(slot)?;
                let is_given_up = match command.stage {
                    Stage::Buffer | Stage::Fill => !command.status.is_success(),
                    Stage::Executing => command.aborting || command.awaited,
                    _ => false,
                };
                is_given_up.then_some(Output::Withdraw { slot })
            }
            Pending::Route => self.connect.as_ref().map(|request| Output::Route {
                subnqn: request.subnqn.clone(),
            }),
            Pending::Close { graceful } => Some(Output::Close { graceful }),
            // They have a function each.
            Pending::Execute(_) | Pending::Data(_) | Pending::Response(_) => None,
        }
    }

    fn execute(&mut self, now: Nanos, slot: SlotId) -> Option<IoCommand> {
        let queued = self.slots.at_stage(slot, Stage::Queued)?;
        let command = queued.command;
        queued.enter(now, Stage::Executing);
        self.executing += 1;
        if let Some(second) = command.second() {
            self.slots.get_mut(second)?.enter(now, Stage::Executing);
            self.executing += 1;
        }
        Some(command)
    }

    fn send(&self, body: TxBody) -> Output {
        Output::Send {
            pdu: self.pdu(body),
            payload: None,
            release: None,
        }
    }

    fn pdu(&self, body: TxBody) -> TxPdu {
        TxPdu {
            body,
            digests: self.digests,
            hpda: self.hpda,
        }
    }

    /// Asks for the rest of the data, or as much as one H2CData may carry. [TCP-1.0 §3.3.2.1]
    fn r2t(&mut self, now: Nanos, id: SlotId) -> Option<Output> {
        let (ttag, maxh2cdata) = (self.slots.tag(id), self.maxh2cdata);
        let slot = self.slots.at_stage(id, Stage::Transfer)?;
        let r2tl = slot.part_end.saturating_sub(slot.landed).min(maxh2cdata);
        slot.r2t_end = slot.landed + r2tl;
        slot.since = now;
        let r2t = R2t {
            cccid: slot.sqe.cid(),
            ttag,
            r2to: slot.landed,
            r2tl,
        };
        self.counters.r2ts += 1;
        Some(self.send(TxBody::R2t(r2t)))
    }

    fn data(&mut self, now: Nanos, id: SlotId) -> Option<C2HData> {
        self.last_command = now;
        let slot = self.slots.at_stage(id, Stage::Respond)?;
        let last = !slot.has_more_parts();
        let goes_on = slot.is_between_parts();
        let data = C2HData {
            cccid: slot.sqe.cid(),
            datao: slot.part_start,
            datal: slot.part_len(),
            last,
            success: slot.fused_response && last,
        };
        self.counters.payload_tx_bytes += u64::from(data.datal);
        if data.success {
            self.slots.release(id);
        }
        if goes_on {
            self.read_on(now, id);
        }
        Some(data)
    }

    fn response(&mut self, now: Nanos, id: SlotId) -> Option<Cqe> {
        self.last_command = now;
        let slot = self.slots.at_stage(id, Stage::Respond)?;
        let (result, status, cid) = (slot.result, slot.status, slot.sqe.cid());
        let sqhd = match self.queue {
            // Tells the host that its wish to disable SQ flow control was granted.
            Some(queue) if !queue.flow_control && is_connect(&slot.sqe) => u16::MAX,
            _ => self.sqhd(),
        };
        self.slots.release(id);
        Some(Cqe {
            result,
            sqhd,
            sqid: QueueId(0),
            cid,
            status,
        })
    }

    /// What a response says about the submission queue. [FABRICS-1.1 §2.4]
    pub(super) fn sqhd(&self) -> u16 {
        let queue = self.queue.filter(|queue| queue.flow_control);
        queue.map_or(0, |queue| queue.sq_head)
    }

    /// Whether the header of a Read's data can say that it has succeeded, so that no response has
    /// to. [TCP-1.0 §3.6.2.7]
    pub(super) fn may_fuse_response(&self) -> bool {
        self.queue.is_some_and(|queue| !queue.flow_control)
    }

    /// Whether a command that arrives now may be answered before anything else is: it is on an I/O
    /// queue, is not behind half of a pair, and no answer waits to be sent.
    pub(super) fn may_answer_at_once(&self) -> bool {
        self.state == State::Ready
            && self.before == Before::Alone
            && self.answers.is_empty()
            && self.queue.is_some_and(|queue| queue.qid != 0)
    }

    pub(super) fn slot_mut(&mut self, id: SlotId) -> Option<&mut Slot> {
        self.slots.get_mut(id)
    }
}

pub(super) fn is_connect(sqe: &Sqe) -> bool {
    sqe.opcode() == admin::FABRICS && sqe.fctype() == fabrics::CONNECT
}

/// The latest end of moving `bytes`: a peer that is slower than [`RATE_MIN_BYTES`] a second keeps
/// memory from others, however regularly it sends a byte.
fn at_least(since: Nanos, transfer: Nanos, bytes: u32) -> Nanos {
    let span = u64::from(bytes) * Nanos::from_secs(1).0 / RATE_MIN_BYTES;
    since.after(transfer).after(Nanos(span))
}

fn outputs_max(slots: &Slots) -> usize {
    2 * usize::from(slots.capacity()) + UNSLOTTED_OUTPUTS + WITHDRAWALS
}
