//! What arrives on a connection: PDUs, payload, and the checks on both. [TCP-1.0 §3.3, §3.6]

use bowline_nvme::pdu::{Fes, H2CData, IcReq, TermReq, Violation};
use bowline_nvme::{CommandId, Fuse, Nanos, Sgl, Sqe, Status};

use super::Target;
use super::command::Plan;
use super::config::CONTROL_ICD_BYTES;
use super::connection::{Connection, Landing, Pending, State};
use super::controller::Controller;
use super::fused::{Before, Half};
use super::output::{ConnId, SlotId};
use super::slot::Stage;
use super::table::Table;
use super::timer::TimerKey;
use crate::frame::{Event, Header};

/// Byte offsets within the PDU headers, for FEI.
const CAPSULE_SGL_ADDRESS: u32 = 8 + 24;
const CAPSULE_SGL_LENGTH: u32 = 8 + 32;
const CAPSULE_SGL_KIND: u32 = 8 + 39;
const COMMON_FLAGS: u32 = 1;
const H2C_TTAG: u32 = 10;

impl Target {
    /// Takes received bytes that [`Target::rx`] called `Bytes` and says how many it used. Call
    /// `rx` again afterwards: the rest may be payload, or further PDUs.
    pub fn handle_bytes(&mut self, now: Nanos, id: ConnId, bytes: &[u8]) -> usize {
        let mut used = 0;
        while let Some(connection) = self.connections.get_mut(id) {
            if !connection.receives() {
                if matches!(connection.state, State::Linger | State::Drain) {
                    used = bytes.len();
                }
                break;
            }
            let rest = bytes.get(used..).unwrap_or_default();
            if connection.frame.payload_remaining() > 0 || rest.is_empty() {
                break;
            }
            connection.last_rx = now;
            if connection.frame.is_between_pdus() {
                connection.pdu_since = now;
            }
            if let Some((taken, sqe)) = connection.frame.take_capsule(rest) {
                used += taken;
                self.capsule(now, id, &sqe);
            } else {
                used += connection.frame.handle(rest);
                self.handle_event(now, id);
                // Behind what came in pieces there may be whole commands again, for which the
                // owner may have a shorter way.
                let connection = self.connections.get(id);
                if connection.is_some_and(|it| it.frame.is_between_pdus()) {
                    break;
                }
            }
        }
        self.received(now, id);
        used
    }

    /// `landed` bytes of payload were received into the slot's buffer, or dropped. `crc` is the
    /// CRC32C that [`Rx::Payload`](super::Rx::Payload) asked for.
    pub fn handle_payload(&mut self, now: Nanos, id: ConnId, landed: u32, crc: Option<u32>) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        if !connection.receives() {
            return;
        }
        let landed = landed.min(connection.frame.payload_remaining());
        connection.last_rx = now;
        connection.landing.next += landed;
        connection.counters.payload_rx_bytes += u64::from(landed);
        let slot = connection.landing.slot;
        if let Some(command) = slot.and_then(|slot| connection.slots.get_mut(slot)) {
            command.since = now;
        }
        connection
            .frame
            .advance_payload(landed, crc.filter(|_| slot.is_some()));
        self.handle_event(now, id);
        self.received(now, id);
    }

    /// Acts on what the reader has found, if anything: there is never more than one event.
    fn handle_event(&mut self, now: Nanos, id: ConnId) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        let is_trusted = match connection.frame.poll_event() {
            None => return,
            Some(Event::Header(header)) => return self.handle_header(now, id, &header),
            Some(Event::Violation(violation)) => return self.violation(now, id, violation),
            // Data nobody vouched for although there was a digest is no data.
            Some(Event::PayloadEnd) => !connection.frame.has_data_digest(),
            Some(Event::DigestOk) => true,
            Some(Event::DigestMismatch) => false,
        };
        self.payload_end(now, id, is_trusted);
    }

    /// After something was received: a PDU that has begun must go on, or the connection ends.
    fn received(&mut self, now: Nanos, id: ConnId) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        if connection.receives() && !connection.frame.is_between_pdus() {
            let at = now.after(self.config.deadlines.transfer);
            let key = TimerKey::Connection(id.index);
            self.timers.arm(&mut connection.armed, key, at);
        }
        connection.touch(id, &mut self.dirty);
    }

    /// A header that did not arrive whole, or of another PDU than a command capsule.
    fn handle_header(&mut self, now: Nanos, id: ConnId, header: &Header) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        if let Header::CapsuleCmd(capsule) = header {
            return self.capsule(now, id, &capsule.sqe);
        }
        connection.begin_pdu();
        match (connection.state, header) {
            // The host's last word: nothing is answered. [TCP-1.0 §3.5.1]
            (_, Header::TermReq(_)) => {
                self.counters.terminated_by_host += 1;
                self.close_connection(now, id, true);
            }
            (State::AwaitIcReq, Header::IcReq(icreq)) => self.icreq(now, id, icreq),
            (State::Ready | State::AwaitConnect, Header::H2CData(data)) => {
                if let Err(violation) = connection.h2c_data(data) {
                    self.violation(now, id, violation);
                }
            }
            _ => self.violation(now, id, Violation::new(Fes::SEQUENCE_ERROR)),
        }
    }

    /// Settles digests and alignment; at most one R2T per command is ever outstanding, so MAXR2T
    /// does not matter. [TCP-1.0 §3.1]
    fn icreq(&mut self, now: Nanos, id: ConnId, icreq: &IcReq) {
        let connect_by = now.after(self.config.deadlines.connect);
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        connection.digests = icreq.digests();
        connection.hpda = icreq.hpda;
        connection.frame.set_digests(icreq.digests());
        connection.state = State::AwaitConnect;
        connection.connect_by = connect_by;
        connection.deadline = Some(connect_by);
        connection.push(Pending::IcResp);
        self.arm_connection(id);
    }

    /// The stream is broken or its sender is: say why, then end. [TCP-1.0 §3.5.1]
    #[cold]
    pub(super) fn violation(&mut self, now: Nanos, id: ConnId, violation: Violation) {
        let linger_until = now.after(self.config.deadlines.linger);
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        let term = TermReq::new(violation, connection.frame.header_bytes());
        connection.terminate(term, linger_until);
        self.counters.terminated_by_us += 1;
        self.detach(now, id);
        self.arm_connection(id);
        self.touch(id);
    }

    /// A command has arrived, all but the data that its capsule may have.
    fn capsule(&mut self, now: Nanos, id: ConnId, sqe: &Sqe) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        connection.begin_pdu();
        if !matches!(connection.state, State::AwaitConnect | State::Ready) {
            return self.violation(now, id, Violation::new(Fes::SEQUENCE_ERROR));
        }
        connection.begin_command(now);
        let payload = connection.frame.payload_remaining();
        if let Err(violation) = check_sgl(connection, sqe, payload, self.config.icd_bytes) {
            return self.violation(now, id, violation);
        }
        let duplicate = connection.slots.is_cid_busy(sqe.cid())
            && !connection.forget_event_request(&mut self.controllers, sqe.cid());
        // More commands than the queue has entries, and then some: a host that does not count.
        let Some(slot) = connection.slots.claim(now, sqe) else {
            return self.violation(now, id, Violation::new(Fes::SEQUENCE_ERROR));
        };
        let before = std::mem::take(&mut connection.before);
        let plan = if duplicate {
            Plan::Respond(Status::CID_CONFLICT.dnr(), 0)
        } else {
            self.plan(now, id, slot, sqe)
        };
        if before == Before::Alone && sqe.fuse() == Fuse::Normal {
            self.start(now, id, slot, plan, payload);
        } else {
            self.fused_capsule(now, id, slot, before, plan, payload);
        }
    }

    /// Sets a planned command going.
    #[inline]
    pub(super) fn start(&mut self, now: Nanos, id: ConnId, slot: SlotId, plan: Plan, payload: u32) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        if let Some((status, result)) = connection.start(now, slot, plan, payload) {
            self.respond(now, id, slot, status, result);
        }
    }

    /// A buffer is bound: ask for the data. `false`: the command has gone meanwhile, and nothing
    /// will release the buffer but the one who bound it.
    pub fn handle_buffer(&mut self, now: Nanos, id: ConnId, slot: SlotId) -> bool {
        self.handle_part_buffer(now, id, slot, u32::MAX)
    }

    /// The owner could not take what has arrived, for want of a buffer of its own: the peer's
    /// deadlines start again, since it is not the peer that is slow.
    pub fn stalled(&mut self, now: Nanos, id: ConnId) {
        if let Some(connection) = self.connections.get_mut(id) {
            connection.last_rx = now;
            connection.pdu_since = now;
            connection.slots.restart_transfers(now);
        }
    }

    /// One PDU's payload is complete.
    fn payload_end(&mut self, now: Nanos, id: ConnId, trusted: bool) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        let landing = std::mem::take(&mut connection.landing);
        let Some(slot) = landing.slot else { return };
        let Some(command) = connection.slots.get_mut(slot) else {
            return;
        };
        command.landed = landing.next;
        command.since = now;
        if !trusted && !landing.drop {
            // All of the command's data is taken first; it is never executed. [TCP-1.0 §3.3.1.1]
            command.status = Status::TRANSIENT_TRANSPORT;
            connection.counters.data_digest_errors += 1;
        }
        let (status, landed, half) = (command.status, command.landed, command.half);
        if landed < command.r2t_end {
            return;
        }
        if !status.is_success() && half != Half::None {
            return self.fail_pair(now, id, slot, status);
        }
        if !status.is_success() {
            return self.respond(now, id, slot, status, 0);
        }
        if landed < command.part_end {
            connection.push(Pending::R2t(slot));
            return;
        }
        self.data_complete(now, id, slot);
    }
}

/// SGL descriptors of a capsule against the data that came with it. [TCP-1.0 §3.3.2]
pub(super) fn check_sgl(
    connection: &Connection,
    sqe: &Sqe,
    payload: u32,
    icd_bytes: u32,
) -> Result<(), Violation> {
    let sgl = sqe.sgl1();
    match sgl.kind {
        Sgl::KIND_TRANSPORT if payload == 0 => Ok(()),
        Sgl::KIND_TRANSPORT => Err(Violation::field(CAPSULE_SGL_LENGTH)),
        Sgl::KIND_IN_CAPSULE if sgl.address != 0 => {
            Err(Violation::unsupported(CAPSULE_SGL_ADDRESS))
        }
        Sgl::KIND_IN_CAPSULE if sgl.length != payload => Err(Violation::field(CAPSULE_SGL_LENGTH)),
        Sgl::KIND_IN_CAPSULE if payload > capsule_bytes_max(connection, sqe, icd_bytes) => {
            Err(Violation::new(Fes::LIMIT_EXCEEDED))
        }
        Sgl::KIND_IN_CAPSULE => Ok(()),
        // What a host leaves behind that sets no descriptor where no data moves. A command that
        // moves some is refused for it by itself.
        _ if sgl == Sgl::default() && payload == 0 => Ok(()),
        _ => Err(Violation::unsupported(CAPSULE_SGL_KIND)),
    }
}

/// Admin and Fabrics commands carry 8192 bytes whatever IOCCSZ says. [TCP-1.0 §3.3.2.2]
fn capsule_bytes_max(connection: &Connection, sqe: &Sqe, icd_bytes: u32) -> u32 {
    let is_io = connection.queue.is_some_and(|queue| queue.qid != 0);
    let is_fabrics = sqe.opcode() == bowline_nvme::opcode::admin::FABRICS;
    if is_io && !is_fabrics {
        icd_bytes
    } else {
        icd_bytes.max(CONTROL_ICD_BYTES)
    }
}

impl Connection {
    pub(super) fn begin_pdu(&mut self) {
        self.landing = Landing::default();
        self.counters.pdus += 1;
    }

    pub(super) fn begin_command(&mut self, now: Nanos) {
        self.last_command = now;
        self.counters.commands += 1;
        if let Some(queue) = &mut self.queue {
            let next = queue.sq_head + 1;
            queue.sq_head = if next >= queue.entries { 0 } else { next };
        }
    }

    /// A host that uses the identifier of an Asynchronous Event Request again has forgotten the
    /// request: SPDK does before it shuts a controller down, and would lose the shutdown with it.
    #[cold]
    fn forget_event_request(
        &mut self,
        controllers: &mut Table<Controller>,
        cid: CommandId,
    ) -> bool {
        let admin = self.queue.filter(|queue| queue.qid == 0);
        let controller = admin.and_then(|queue| controllers.get_mut(queue.controller));
        let (Some(slot), Some(controller)) = (self.slots.by_cid(cid), controller) else {
            return false;
        };
        let forgotten = controller.events.withdraw(slot);
        if forgotten {
            self.slots.release(slot);
        }
        forgotten
    }

    /// Sets a planned command going, or says how it is answered. In-capsule data of one that wants
    /// none is dropped.
    #[inline]
    fn start(
        &mut self,
        now: Nanos,
        slot: SlotId,
        plan: Plan,
        payload: u32,
    ) -> Option<(Status, u64)> {
        let command = self.slots.get_mut(slot)?;
        match plan {
            Plan::Execute(io) => {
                command.set_transfer(io.bytes);
                command.command = io;
                command.enter(now, Stage::Queued);
                self.push(Pending::Execute(slot));
            }
            Plan::FromHost(len) => {
                command.set_transfer(len);
                if payload > 0 {
                    command.enter(now, Stage::Receive);
                    command.r2t_end = payload;
                    self.landing = Landing {
                        slot: Some(slot),
                        ..Landing::default()
                    };
                } else {
                    command.enter(now, Stage::Buffer);
                    self.push(Pending::NeedBuffer(slot));
                }
            }
            // Data in a capsule only goes to the controller.
            Plan::ToHost(_) if payload > 0 => return Some((Status::SGL_TYPE_INVALID.dnr(), 0)),
            Plan::ToHost(len) => {
                command.set_transfer(len);
                command.enter(now, Stage::Fill);
                self.push(Pending::Fill(slot));
            }
            Plan::Respond(status, result) => return Some((status, result)),
            Plan::Held => {}
            Plan::Disconnect => {
                self.respond(now, slot, Status::SUCCESS, 0);
                self.drain();
            }
        }
        None
    }

    /// Data has arrived for a transfer, or begins to.
    fn h2c_data(&mut self, data: &H2CData) -> Result<(), Violation> {
        let slot = self.transfer_of(data)?;
        // After a digest error the rest is only counted.
        let drop = self
            .slots
            .get(slot)
            .is_none_or(|it| !it.status.is_success());
        self.landing = Landing {
            slot: Some(slot),
            start: data.datao,
            next: data.datao,
            drop,
        };
        Ok(())
    }

    /// Finds the transfer that an H2CData PDU belongs to, by its tag alone, and checks that the
    /// data is exactly what is due. [TCP-1.0 §3.6.2.6]
    pub(super) fn transfer_of(&self, data: &H2CData) -> Result<SlotId, Violation> {
        let sequence = Violation::new(Fes::SEQUENCE_ERROR);
        let slot = self.slots.by_tag(data.ttag).ok_or(sequence)?;
        let maxh2cdata = self.maxh2cdata;
        let command = self.slots.get(slot).ok_or(sequence)?;
        if command.stage != Stage::Transfer || command.r2t_end == command.landed {
            return Err(Violation::field(H2C_TTAG));
        }
        if data.cccid != command.sqe.cid() {
            return Err(sequence);
        }
        if data.datal > maxh2cdata {
            return Err(Violation::new(Fes::LIMIT_EXCEEDED));
        }
        let end = data.datao.checked_add(data.datal);
        if data.datao != command.landed || end.is_none_or(|end| end > command.r2t_end) {
            return Err(Violation::new(Fes::DATA_OUT_OF_RANGE));
        }
        if data.last != (end == Some(command.r2t_end)) {
            return Err(Violation::field(COMMON_FLAGS));
        }
        Ok(slot)
    }
}
