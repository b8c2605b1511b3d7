//! Plain Reads and Writes from their capsule to their answer in one step.
//!
//! A command that has arrived whole, and whose device need not be waited for, has ended before
//! anybody could ask about it. So it needs no slot, no buffer that is bound to one, and no place in
//! the queue of outputs. A Write that had to ask for its data has a slot already, and leaves it in
//! the same way when all of that has arrived. Whatever is special about a command or its connection
//! is not done here: the command stays in the stream and goes through [`Target::handle_bytes`]. Both
//! ways ask the same functions what they think of it.

use bowline_nvme::opcode::io as opcode;
use bowline_nvme::pdu::{C2HData, CapsuleResp, Digests, PduType};
use bowline_nvme::{CommandId, Cqe, Fuse, NamespaceId, Nanos, QueueId, Sqe, Status};

use super::Target;
use super::command::{count, has_valid_flags};
use super::config::TargetConfig;
use super::connection::Connection;
use super::controller::Controller;
use super::fused::Half;
use super::gate;
use super::io::IoPlan;
use super::output::{ConnId, IoCommand, IoOp, SlotId, encode_data, encode_response};
use super::receive::check_sgl;
use super::subsystem::Subsystem;
use crate::frame::WholePdu;

/// An I/O queue whose commands may be run as they come.
#[derive(Debug)]
pub struct AtOnce<'a> {
    now: Nanos,
    config: &'a TargetConfig,
    connection: &'a mut Connection,
    controller: &'a mut Controller,
    subsystem: &'a mut Subsystem,
}

/// A Read or Write that is accepted, and still in the stream with all that belongs to it.
#[derive(Clone, Copy, Debug)]
pub struct Accepted<'b> {
    /// Its capsule, or its data.
    pdu: WholePdu<'b>,
    command: IoCommand,
    cid: CommandId,
    nsid: NamespaceId,
    /// Where it has waited for its data.
    slot: Option<SlotId>,
}

/// What answers a command that has succeeded: a header before its data if it was a Read; then a
/// response, unless that header says all.
#[derive(Debug)]
pub struct Answer {
    data: Option<C2HData>,
    response: Option<CapsuleResp>,
    digests: Digests,
    hpda: u8,
}

impl Target {
    /// For owners with devices that need not be waited for: the connection as one whose commands
    /// are run as they come. `None` if it is no I/O queue, or something has to happen on it first.
    pub fn at_once(&mut self, now: Nanos, id: ConnId) -> Option<AtOnce<'_>> {
        let connection = self.connections.get_mut(id)?;
        let queue = connection.queue?;
        let controller = self.controllers.get_mut(queue.controller)?;
        if !connection.may_answer_at_once() || !controller.runs_io() {
            return None;
        }
        let subsystem = self.subsystems.get_mut(controller.subsystem?)?.as_mut()?;
        Some(AtOnce {
            now,
            config: &self.config,
            connection,
            controller,
            subsystem,
        })
    }
}

impl AtOnce<'_> {
    /// The plain Read or Write that may run now, because `input` begins with all of its capsule, or
    /// with all of the data that the host was asked for. `None` also if anything speaks against
    /// it. Nothing is taken.
    pub fn accept<'b>(&mut self, input: &'b [u8]) -> Option<Accepted<'b>> {
        if input.first() == Some(&PduType::H2CData.wire()) {
            self.accept_data(input)
        } else {
            self.accept_capsule(input)
        }
    }

    fn accept_capsule<'b>(&mut self, input: &'b [u8]) -> Option<Accepted<'b>> {
        let (sqe, pdu) = self.connection.frame.whole_capsule(input)?;
        let payload = u32::try_from(pdu.data.len()).ok()?;
        let may_be_whole = match sqe.opcode() {
            opcode::READ => payload == 0,
            opcode::WRITE => payload > 0,
            _ => false,
        };
        if !may_be_whole {
            return None;
        }
        let connection = &*self.connection;
        let qid = connection.queue.map(|queue| queue.qid);
        let is_new = connection.slots.has_free() && !connection.slots.is_cid_busy(sqe.cid());
        if !is_new || !has_valid_flags(qid, &sqe) || sqe.fuse() != Fuse::Normal {
            return None;
        }
        check_sgl(connection, &sqe, payload, self.config.icd_bytes).ok()?;
        let command = match self.plan(&sqe)? {
            IoPlan::Execute(command) => command,
            IoPlan::FromHost(command) if payload == command.bytes => command,
            _ => return None,
        };
        Some(Accepted {
            pdu,
            command,
            cid: sqe.cid(),
            nsid: sqe.nsid(),
            slot: None,
        })
    }

    fn accept_data<'b>(&mut self, input: &'b [u8]) -> Option<Accepted<'b>> {
        let (header, pdu) = self.connection.frame.whole_h2c_data(input)?;
        let id = self.connection.transfer_of(&header).ok()?;
        let slot = self.connection.slots.get(id)?;
        let is_plain = slot.sqe.opcode() == opcode::WRITE && slot.half == Half::None;
        let is_all = header.datal == slot.transfer_len;
        if !is_plain || !is_all || slot.aborting || slot.awaited || !slot.status.is_success() {
            return None;
        }
        match gate::is_for(self.plan(&slot.sqe)?, slot.command.namespace) {
            Ok(IoPlan::FromHost(command)) => Some(Accepted {
                pdu,
                command,
                cid: slot.sqe.cid(),
                nsid: slot.sqe.nsid(),
                slot: Some(id),
            }),
            _ => None,
        }
    }

    fn plan(&self, sqe: &Sqe) -> Option<IoPlan> {
        let namespaces = &self.subsystem.namespaces;
        gate::plan(self.config, self.controller, namespaces, sqe).ok()
    }

    /// The command has succeeded. Its owner goes on behind its [bytes](Accepted::bytes), and drops
    /// the buffer of its [slot](Accepted::slot).
    pub fn succeeded(&mut self, accepted: &Accepted<'_>) -> Answer {
        let &Accepted {
            command, cid, nsid, ..
        } = accepted;
        let (now, connection) = (self.now, &mut *self.connection);
        connection.last_rx = now;
        connection.begin_pdu();
        match accepted.slot {
            None => connection.begin_command(now),
            Some(slot) => {
                connection.last_command = now;
                connection.slots.release(slot);
            }
        }
        let status = Status::SUCCESS;
        count(self.controller, self.subsystem, &command, nsid, status);
        let is_read = matches!(command.op, IoOp::Read { .. });
        let counters = &mut connection.counters;
        if is_read {
            counters.payload_tx_bytes += u64::from(command.bytes);
        } else {
            counters.payload_rx_bytes += u64::from(command.bytes);
        }
        let success = is_read && connection.may_fuse_response();
        Answer {
            data: is_read.then_some(C2HData {
                cccid: cid,
                datao: 0,
                datal: command.bytes,
                last: true,
                success,
            }),
            response: (!success).then(|| CapsuleResp {
                cqe: Cqe {
                    result: 0,
                    sqhd: connection.sqhd(),
                    sqid: QueueId(0),
                    cid,
                    status,
                },
            }),
            digests: connection.digests,
            hpda: connection.hpda,
        }
    }
}

impl<'b> Accepted<'b> {
    /// What to do: a Read or a Write.
    #[must_use]
    pub fn command(&self) -> &IoCommand {
        &self.command
    }

    /// The data of a Write; `None` if it was damaged on its way, which is not for here.
    #[must_use]
    pub fn data(&self) -> Option<&'b [u8]> {
        self.pdu.is_intact().then_some(self.pdu.data)
    }

    /// How much of the stream it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.pdu.bytes
    }

    /// The slot of a Write that has asked for its data, with a buffer that it did not need.
    #[must_use]
    pub fn slot(&self) -> Option<SlotId> {
        self.slot
    }
}

impl Answer {
    /// Appends what goes before the data of a Read.
    pub fn encode_before_data(&self, out: &mut Vec<u8>) {
        if let Some(data) = &self.data {
            encode_data(out, data, self.digests, self.hpda);
        }
    }

    /// Appends what goes behind the data of a Read, or answers a Write. Before it, and behind the
    /// data, goes the CRC32C of the data, little-endian, if [`data_digest`](Self::data_digest).
    pub fn encode_end(&self, out: &mut Vec<u8>) {
        if let Some(response) = &self.response {
            encode_response(out, response, self.digests);
        }
    }

    /// Whether the data is followed by its CRC32C.
    #[must_use]
    pub fn data_digest(&self) -> bool {
        self.digests.data && self.data.is_some()
    }
}
