//! Plain Reads and Writes from their capsule to their answer in one step.
//!
//! A command that has arrived whole, and whose device need not be waited for, has ended before
//! anybody could ask about it. So it needs no slot, no buffer that is bound to one, and no place in
//! the queue of outputs. Whatever is special about a command or its connection is not done here:
//! the command stays in the stream and goes through [`Target::handle_bytes`]. Both ways ask the
//! same functions what they think of it.

use bowline_nvme::opcode::io as opcode;
use bowline_nvme::pdu::{C2HData, CapsuleResp, Digests};
use bowline_nvme::{Cqe, Fuse, Nanos, QueueId, Sqe, Status};

use super::Target;
use super::command::{count, has_valid_flags};
use super::config::TargetConfig;
use super::connection::Connection;
use super::controller::Controller;
use super::gate;
use super::io::IoPlan;
use super::output::{ConnId, IoCommand, IoOp, encode_data, encode_response};
use super::receive::check_sgl;
use super::subsystem::Subsystem;
use crate::frame::WholeCapsule;

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
    capsule: WholeCapsule<'b>,
    command: IoCommand,
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
    /// The command with which `input` begins, if it is a plain Read or Write, here as a whole,
    /// and nothing speaks against it. Nothing is taken.
    pub fn accept<'b>(&mut self, input: &'b [u8]) -> Option<Accepted<'b>> {
        let capsule = self.connection.frame.whole_capsule(input)?;
        let sqe = &capsule.sqe;
        let payload = u32::try_from(capsule.data.len()).ok()?;
        let command = match (sqe.opcode(), self.plan(sqe, payload)?) {
            (opcode::READ, IoPlan::Execute(command)) if payload == 0 => command,
            (opcode::WRITE, IoPlan::FromHost(command)) if payload == command.bytes => command,
            _ => return None,
        };
        Some(Accepted { capsule, command })
    }

    /// What becomes of the command; `None` if it is refused, half of a pair, or ends the
    /// connection.
    fn plan(&self, sqe: &Sqe, payload: u32) -> Option<IoPlan> {
        let connection = &*self.connection;
        let qid = connection.queue.map(|queue| queue.qid);
        let is_new = connection.slots.has_free() && !connection.slots.is_cid_busy(sqe.cid());
        if !is_new || !has_valid_flags(qid, sqe) || sqe.fuse() != Fuse::Normal {
            return None;
        }
        check_sgl(connection, sqe, payload, self.config.icd_bytes).ok()?;
        let namespaces = &self.subsystem.namespaces;
        gate::plan(self.config, self.controller, namespaces, sqe).ok()
    }

    /// The command has succeeded. Its owner goes on behind its [bytes](Accepted::bytes).
    pub fn succeeded(&mut self, accepted: &Accepted<'_>) -> Answer {
        let Accepted { capsule, command } = accepted;
        let (sqe, status) = (&capsule.sqe, Status::SUCCESS);
        let connection = &mut *self.connection;
        connection.last_rx = self.now;
        connection.begin_pdu();
        connection.begin_command(self.now);
        count(self.controller, self.subsystem, command, sqe.nsid(), status);
        let is_read = matches!(command.op, IoOp::Read { .. });
        let counters = &mut connection.counters;
        if is_read {
            counters.payload_tx_bytes += u64::from(command.bytes);
        } else {
            counters.payload_rx_bytes += u64::from(command.bytes);
        }
        let success = is_read && connection.may_fuse_response();
        Answer {
            data: is_read.then(|| C2HData {
                cccid: sqe.cid(),
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
                    cid: sqe.cid(),
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
        self.capsule.is_intact().then_some(self.capsule.data)
    }

    /// How much of the stream it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.capsule.bytes
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
