//! One queue pair on one connection, from ICReq to the last completion.

use std::collections::VecDeque;

use bowline_nvme::fabrics::{Connect, ConnectData, ConnectInvalid, ConnectResult};
use bowline_nvme::nqn::Nqn;
use bowline_nvme::opcode::admin;
use bowline_nvme::pdu::{Digests, H2CData, IcReq, IcResp, TermReq, Violation};
use bowline_nvme::{ControllerId, Cqe, Nanos, QueueId, Sgl, Sqe, Status};

use super::close_reason::CloseReason;
use super::receive::Receiver;
use super::request::{Command, Completion, SubmitError};
use super::slots::{Slot, SlotId, SlotState, Slots, Transfer};
use super::transmit::{TxPayload, TxPdu};

/// Bytes a host may always send in the capsule of an admin or Fabrics command, whatever IOCCSZ
/// says. [TCP-1.0 §3.3.2]
const ADMIN_IN_CAPSULE_BYTES: u32 = 8192;
/// Size of the buffer for the data of the queue's own commands: an Identify structure.
pub(super) const CONTROL_BYTES: usize = 4096;
/// Data of Connect, in bytes.
const CONNECT_DATA_BYTES: u32 = 1024;
const _: () = assert!(ConnectData::SIZE == 1024);

/// Who connects to what.
#[derive(Debug, Clone, Copy)]
pub struct HostIdentity {
    /// Host NQN.
    pub hostnqn: Nqn,
    /// Host Identifier, the same for all associations of this host.
    pub hostid: [u8; 16],
    /// Subsystem NQN.
    pub subnqn: Nqn,
}

/// Parameters of one queue pair.
#[derive(Debug, Clone, Copy)]
pub struct HostQueueConfig {
    /// Queue identifier; 0 is the admin queue.
    pub qid: QueueId,
    /// [`ControllerId::DYNAMIC`] on an admin queue, the admin queue's own on an I/O queue.
    pub cntlid: ControllerId,
    /// Submission queue entries, 2..=4096 (SQSIZE + 1). One fewer commands can be outstanding.
    pub entries: u16,
    /// Command slots kept for the controller's own commands.
    pub reserved: u16,
    /// Digests to ask for. The connection fails if the controller does not grant exactly these.
    pub digests: Digests,
    /// Keep Alive Timeout in milliseconds, 0 for none; used on the admin queue only.
    pub keep_alive_ms: u32,
    /// Ask for SQ flow control. Without it (the default) reads may end with the SUCCESS flag.
    pub sq_flow_control: bool,
    /// Largest data of an I/O command sent in its capsule, in bytes, from IOCCSZ.
    pub in_capsule_bytes: u32,
    /// How long ICReq and Connect together may take.
    pub setup_timeout: Nanos,
    /// How long any other command may take, to within a quarter; `None` waits for ever.
    pub command_timeout: Option<Nanos>,
}

/// What the queue wants from the byte stream next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rx {
    /// Anything but a user command's data: pass what was received to `handle_bytes`.
    Bytes,
    /// A user command's data: land up to `len` bytes at `offset` of the slot's buffer, then call
    /// `handle_payload`.
    Payload {
        /// The command.
        slot: SlotId,
        /// Where in the slot's buffer the next byte goes.
        offset: u32,
        /// Bytes of this PDU's payload still missing.
        len: u32,
        /// With a data digest, where this PDU's payload began. The landing that completes the
        /// payload must pass the CRC32C of the slot's bytes `start..offset + len`.
        digest_from: Option<u32>,
    },
    /// Nothing more is read.
    Closed,
}

/// Something to send: a PDU header, then the payload, then its digest if `pdu.data_digest()`.
#[derive(Debug)]
pub struct Output {
    /// The header.
    pub pdu: TxPdu,
    /// The bytes that follow it.
    pub payload: TxPayload,
}

/// Something the owner should know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueEvent {
    /// Connect succeeded; commands are taken.
    Ready {
        /// The controller.
        cntlid: ControllerId,
    },
    /// A command finished.
    Complete(Completion),
    /// The connection is over, and every command has been completed. Send what `poll_output`
    /// still has (at most one H2CTermReq), then close.
    Closed(CloseReason),
}

/// ```text
/// Start --ICReq polled--> AwaitIcResp --ICResp--> AwaitConnect --success--> Ready
///   any --violation, time-out, C2HTermReq, closed()--> Closed
/// ```
/// Authentication will be a state between `AwaitConnect` and `Ready`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Start,
    AwaitIcResp,
    AwaitConnect,
    Ready,
    Closed,
}

/// Host side of one queue pair. See the [module](super) for how it is driven.
///
/// Memory is taken in [`HostQueue::new`]; nothing is allocated per command.
#[derive(Debug)]
pub struct HostQueue {
    pub(super) config: HostQueueConfig,
    pub(super) state: State,
    pub(super) receiver: Receiver,
    pub(super) slots: Slots,
    /// Commands whose capsule is to be sent, oldest first.
    queued: VecDeque<SlotId>,
    /// Commands with an R2T to answer, oldest first; one R2T each.
    pub(super) granted: VecDeque<SlotId>,
    /// Finished commands, oldest first.
    done: VecDeque<Completion>,
    ready: Option<ControllerId>,
    closed: Option<CloseReason>,
    terminate: Option<TermReq>,
    /// Data of the queue's own command; one such command has data at a time.
    pub(super) control: Box<[u8; CONTROL_BYTES]>,
    /// Largest payload of an H2CData PDU, in bytes.
    maxh2cdata_bytes: u32,
    /// Alignment the controller asked for, 0's based dwords.
    cpda: u8,
    setup_deadline: Option<Nanos>,
    /// When to look for overdue commands next.
    overdue_at: Option<Nanos>,
}

impl HostQueue {
    /// A queue on a connection that was just opened.
    #[must_use]
    pub fn new(now: Nanos, identity: &HostIdentity, config: HostQueueConfig) -> Self {
        let entries = config.entries.clamp(2, 4096);
        let config = HostQueueConfig { entries, ..config };
        // A full queue has one empty entry. [BASE-2.0 §3.3.1.5]
        let slots = Slots::new(entries - 1);
        let capacity = slots.capacity();
        let mut control = Box::new([0; CONTROL_BYTES]);
        let connect = ConnectData {
            hostid: identity.hostid,
            cntlid: config.cntlid,
            subnqn: identity.subnqn,
            hostnqn: identity.hostnqn,
        }
        .encode();
        control[..connect.len()].copy_from_slice(&connect);
        Self {
            config,
            state: State::Start,
            receiver: Receiver::new(),
            slots,
            queued: VecDeque::with_capacity(capacity),
            granted: VecDeque::with_capacity(capacity),
            done: VecDeque::with_capacity(capacity),
            ready: None,
            closed: None,
            terminate: None,
            control,
            maxh2cdata_bytes: 0,
            cpda: 0,
            setup_deadline: Some(now.after(config.setup_timeout)),
            overdue_at: None,
        }
    }

    /// The queue's identifier.
    #[must_use]
    pub fn qid(&self) -> QueueId {
        self.config.qid
    }

    /// Whether commands are taken.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.state == State::Ready
    }

    /// Commands that can be outstanding at once.
    #[must_use]
    pub fn depth_max(&self) -> usize {
        self.slots
            .capacity()
            .saturating_sub(usize::from(self.config.reserved))
    }

    /// Commands not completed yet, the queue's own included.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.slots.in_use()
    }

    /// Largest data sent in the capsule of an I/O command, in bytes. Takes effect at once.
    pub fn set_in_capsule_bytes(&mut self, bytes: u32) {
        self.config.in_capsule_bytes = bytes;
    }

    /// Accepts a command, or says why not.
    ///
    /// # Errors
    /// [`SubmitError`]; the command was not taken.
    pub fn submit(&mut self, now: Nanos, command: Command) -> Result<SlotId, SubmitError> {
        if !self.is_ready() {
            return Err(SubmitError::NotReady);
        }
        if self.slots.in_use() >= self.depth_max() {
            return Err(SubmitError::Full);
        }
        self.enqueue(now, command, false)
    }

    /// A command of the queue's owner in this module; its data is [`HostQueue::control`], and it
    /// may use the reserved slots. At most one with data is outstanding.
    pub(super) fn submit_internal(
        &mut self,
        now: Nanos,
        command: Command,
    ) -> Result<SlotId, SubmitError> {
        self.enqueue(now, command, true)
    }

    /// Data of the queue's own command.
    #[must_use]
    pub fn control(&self) -> &[u8; CONTROL_BYTES] {
        &self.control
    }

    /// Whether [`HostQueue::poll_output`] would return something.
    #[must_use]
    pub fn has_output(&self) -> bool {
        match self.state {
            State::Start => true,
            State::AwaitIcResp => false,
            State::AwaitConnect | State::Ready => {
                !self.queued.is_empty() || !self.granted.is_empty()
            }
            State::Closed => self.terminate.is_some(),
        }
    }

    /// The next thing to send, in order. Encode it before calling again.
    pub fn poll_output(&mut self) -> Option<Output> {
        match self.state {
            State::Start => {
                self.state = State::AwaitIcResp;
                Some(self.ic_req())
            }
            State::AwaitIcResp => None,
            State::AwaitConnect | State::Ready => match self.queued.pop_front() {
                Some(id) => Some(self.capsule(id)),
                None => self.granted_data(),
            },
            State::Closed => self.terminate.take().map(|term| Output {
                pdu: TxPdu::terminate(term),
                payload: TxPayload::None,
            }),
        }
    }

    /// The next thing that happened.
    pub fn poll_event(&mut self) -> Option<QueueEvent> {
        if let Some(cntlid) = self.ready.take() {
            return Some(QueueEvent::Ready { cntlid });
        }
        if let Some(completion) = self.done.pop_front() {
            self.slots.release(completion.slot);
            return Some(QueueEvent::Complete(completion));
        }
        self.closed.take().map(QueueEvent::Closed)
    }

    /// When [`HostQueue::handle_timeout`] wants to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Nanos> {
        match (self.setup_deadline, self.overdue_at) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Acts on whatever is due.
    pub fn handle_timeout(&mut self, now: Nanos) {
        if self.setup_deadline.is_some_and(|at| at <= now) {
            self.close(CloseReason::SetupTimeout);
        }
        if self.overdue_at.is_some_and(|at| at <= now) {
            self.look_for_overdue(now);
        }
    }

    /// The transport is gone.
    pub fn closed(&mut self) {
        self.close(CloseReason::PathLost);
    }

    /// Ends the connection: every outstanding command is completed as lost.
    pub fn close(&mut self, reason: CloseReason) {
        if self.state == State::Closed {
            return;
        }
        self.state = State::Closed;
        self.setup_deadline = None;
        self.overdue_at = None;
        self.queued.clear();
        self.granted.clear();
        for (slot, command) in self.slots.iter_used_mut() {
            if command.state == SlotState::Done {
                continue;
            }
            command.state = SlotState::Done;
            self.done.push_back(Completion {
                slot,
                token: command.token,
                status: Status::HOST_PATHING,
                result: 0,
                path_lost: true,
                internal: command.internal,
            });
        }
        self.closed = Some(reason);
    }

    /// Tells the controller what it did wrong, and ends the connection. [TCP-1.0 §3.5]
    pub(super) fn violate(&mut self, violation: Violation, header: &[u8]) {
        if self.state != State::Closed {
            self.terminate = Some(TermReq::new(violation, header));
            self.close(CloseReason::Violation(violation));
        }
    }

    /// ICResp was accepted: Connect is next.
    pub(super) fn connect(&mut self, now: Nanos, response: &IcResp) {
        self.maxh2cdata_bytes = response.maxh2cdata;
        self.cpda = response.cpda;
        self.state = State::AwaitConnect;
        let connect = Connect {
            qid: self.config.qid,
            sqsize: self.config.entries - 1,
            kato_ms: if self.config.qid.is_admin() {
                self.config.keep_alive_ms
            } else {
                0
            },
            ..Connect::default()
        };
        let sqe = connect
            .with_sq_flow_control_disabled(!self.config.sq_flow_control)
            .encode();
        let transfer = Transfer::FromHost {
            len: CONNECT_DATA_BYTES,
        };
        // Every slot is free: this is the queue's first command.
        let command = Command {
            sqe,
            transfer,
            token: 0,
        };
        if self.enqueue(now, command, true).is_err() {
            self.close(CloseReason::Unsupported {
                what: "queue without a command slot",
            });
        }
    }

    /// Takes a command's final status, from a response capsule or a SUCCESS flag.
    pub(super) fn finish(&mut self, id: SlotId, cqe: &Cqe) {
        let slot = self.slots.slot_mut(id);
        if slot.grant.take().is_some() {
            self.granted.retain(|granted| *granted != id);
        }
        let short = matches!(slot.transfer, Transfer::ToHost { len } if slot.moved < len);
        let status = if !cqe.status.is_success() {
            cqe.status
        } else if slot.digest_failed {
            Status::TRANSIENT_TRANSPORT
        } else if short {
            Status::DATA_TRANSFER_ERROR
        } else {
            cqe.status
        };
        slot.state = SlotState::Done;
        let (token, internal) = (slot.token, slot.internal);
        if self.state == State::AwaitConnect {
            self.slots.release(id);
            self.connected(status, cqe.result);
            return;
        }
        let result = cqe.result;
        self.done.push_back(Completion {
            slot: id,
            token,
            status,
            result,
            path_lost: false,
            internal,
        });
    }

    fn connected(&mut self, status: Status, result: u64) {
        if !status.is_success() {
            let invalid = ConnectInvalid::decode(result);
            self.close(CloseReason::ConnectRejected { status, invalid });
            return;
        }
        let accepted = ConnectResult::decode(result);
        if accepted.authentication_required || accepted.secure_channel_required {
            self.close(CloseReason::AuthenticationRequired);
            return;
        }
        self.state = State::Ready;
        self.setup_deadline = None;
        // Connect was watched by the deadline; nothing else is outstanding.
        self.overdue_at = None;
        self.ready = Some(accepted.cntlid);
    }

    fn enqueue(
        &mut self,
        now: Nanos,
        command: Command,
        internal: bool,
    ) -> Result<SlotId, SubmitError> {
        if !matches!(self.state, State::Ready | State::AwaitConnect) {
            return Err(SubmitError::NotReady);
        }
        let len = command.transfer.len();
        if command.transfer != Transfer::None && (len == 0 || !len.is_multiple_of(4)) {
            return Err(SubmitError::Length);
        }
        let (id, cid) = self.slots.claim().ok_or(SubmitError::Full)?;
        let in_capsule = match command.transfer {
            Transfer::FromHost { len } => len <= self.in_capsule_max(&command.sqe),
            Transfer::ToHost { .. } | Transfer::None => false,
        };
        let sgl = if in_capsule {
            Sgl::in_capsule(len)
        } else {
            Sgl::transport(len)
        };
        let slot = self.slots.slot_mut(id);
        slot.sqe = command.sqe.with_cid(cid).with_sgl1(sgl);
        slot.token = command.token;
        slot.since = now;
        slot.transfer = command.transfer;
        slot.moved = if in_capsule { len } else { 0 };
        slot.grant = None;
        slot.state = SlotState::Queued;
        slot.internal = internal;
        slot.patient =
            self.config.qid.is_admin() && command.sqe.opcode() == admin::ASYNC_EVENT_REQUEST;
        slot.digest_failed = false;
        slot.data_ended = false;
        if self.overdue_at.is_none() && !slot.patient {
            self.overdue_at = self
                .config
                .command_timeout
                .map(|span| now.after(quarter(span)));
        }
        self.queued.push_back(id);
        Ok(id)
    }

    fn in_capsule_max(&self, sqe: &Sqe) -> u32 {
        if self.config.qid.is_admin() || sqe.opcode() == admin::FABRICS {
            ADMIN_IN_CAPSULE_BYTES
        } else {
            self.config.in_capsule_bytes
        }
    }

    fn ic_req(&self) -> Output {
        let digests = self.config.digests;
        let request = IcReq {
            pfv: 0,
            hpda: 0,
            header_digest: digests.header,
            data_digest: digests.data,
            // 0's based: one R2T per command at a time.
            maxr2t: 0,
        };
        Output {
            pdu: TxPdu::ic_req(request),
            payload: TxPayload::None,
        }
    }

    fn capsule(&mut self, id: SlotId) -> Output {
        let slot = self.slots.slot_mut(id);
        slot.state = SlotState::Sent;
        // Anything moved before the capsule left is in the capsule.
        let len = slot.moved;
        let payload = payload_of(id, slot.internal, 0, len);
        Output {
            pdu: TxPdu::capsule(slot.sqe, len, self.config.digests, self.cpda),
            payload,
        }
    }

    /// The next H2CData PDU of the oldest R2T. [TCP-1.0 §3.6.2.6]
    fn granted_data(&mut self) -> Option<Output> {
        let id = *self.granted.front()?;
        let maximum = self.maxh2cdata_bytes;
        let slot = self.slots.slot_mut(id);
        // A slot in this list has a grant; without one there is nothing to send.
        let grant = slot.grant?;
        let datao = slot.moved;
        let datal = (grant.end - datao).min(maximum);
        slot.moved += datal;
        let last = slot.moved == grant.end;
        let data = H2CData {
            cccid: slot.sqe.cid(),
            ttag: grant.ttag,
            datao,
            datal,
            last,
        };
        let payload = payload_of(id, slot.internal, datao, datal);
        if last {
            slot.grant = None;
            self.granted.pop_front();
        }
        Some(Output {
            pdu: TxPdu::data(data, self.config.digests, self.cpda),
            payload,
        })
    }

    fn look_for_overdue(&mut self, now: Nanos) {
        self.overdue_at = None;
        let Some(span) = self.config.command_timeout else {
            return;
        };
        let waiting = |slot: &Slot| !slot.patient && slot.state != SlotState::Done;
        let oldest = self
            .slots
            .iter_used()
            .map(|(_, slot)| slot)
            .filter(|slot| waiting(slot));
        match oldest.map(|slot| slot.since).min() {
            Some(since) if since.after(span) <= now => self.close(CloseReason::CommandTimeout),
            Some(_) => self.overdue_at = Some(now.after(quarter(span))),
            None => {}
        }
    }
}

/// Overdue commands are looked for this often: late by a quarter at most, and no timer per
/// command.
fn quarter(span: Nanos) -> Nanos {
    Nanos((span.0 / 4).max(1))
}

fn payload_of(slot: SlotId, internal: bool, offset: u32, len: u32) -> TxPayload {
    match (len, internal) {
        (0, _) => TxPayload::None,
        (_, true) => TxPayload::Control { offset, len },
        (_, false) => TxPayload::Slot { slot, offset, len },
    }
}
