//! Giving commands up: Abort, and the halves of a pair that has failed. [BASE-2.0 §5.1]
//!
//! What has not begun is answered at once. Data that an R2T has asked for still comes: it is taken
//! and dropped before the command is answered, since the host may be sending it, and its tag must
//! not mean another command. What has been handed out is asked back from the owner. Abort is
//! answered when its command has ended, and tells truthfully how.

use bowline_nvme::opcode::admin;
use bowline_nvme::{CommandId, Nanos, Sqe, Status};

use super::Target;
use super::command::Plan;
use super::connection::{Pending, State};
use super::fused::Half;
use super::output::{ConnId, SlotId};
use super::slot::Stage;
use super::table::Key;

/// ACL, 0's based: how many Aborts may wait for their commands, less one.
pub(super) const ACL: u8 = 3;

/// Dword 0 of Abort: the command was not aborted.
const NOT_ABORTED: u64 = 1;

/// An Abort that waits for the end of its command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PendingAbort {
    /// Its slot on the admin queue.
    pub(super) abort: SlotId,
    queue: Key,
    command: SlotId,
}

impl Target {
    /// Abort in `slot` of the admin queue `admin`.
    pub(super) fn abort(
        &mut self,
        now: Nanos,
        admin: ConnId,
        key: Key,
        slot: SlotId,
        sqe: &Sqe,
    ) -> Result<Plan, Status> {
        let controller = self.controllers.get(key).ok_or(Status::INTERNAL)?;
        if controller.aborts.len() > usize::from(ACL) {
            return Err(Status::ABORT_LIMIT_EXCEEDED);
        }
        let not_aborted = Ok(Plan::Respond(Status::SUCCESS, NOT_ABORTED));
        let [sqid_low, sqid_high, cid_low, cid_high] = sqe.cdw(10).to_le_bytes();
        let sqid = u16::from_le_bytes([sqid_low, sqid_high]);
        let cid = CommandId(u16::from_le_bytes([cid_low, cid_high]));
        let queue = match sqid {
            0 => Some(admin),
            _ => controller
                .queues
                .iter()
                .find(|&&(qid, _)| qid == sqid)
                .map(|&(_, queue)| queue),
        };
        let found = queue.and_then(|queue| {
            let connection = self.connections.get(queue)?;
            // Of a queue that is lost, only what is at a device is left: it goes on, unanswered.
            let answers = matches!(connection.state, State::Ready | State::Drain);
            let mut slots = connection.slots.iter().filter(|_| answers);
            let is_it = |it: &super::slot::Slot| it.sqe.cid() == cid && !it.internal;
            let (command, _) = slots.find(|(at, it)| is_it(it) && (queue, *at) != (admin, slot))?;
            Some((queue, command))
        });
        let Some((queue, command)) = found else {
            return not_aborted;
        };
        if self.is_event_request(queue, command) && sqid == 0 {
            let controller = self.controllers.get_mut(key).ok_or(Status::INTERNAL)?;
            if !controller.events.withdraw(command) {
                return not_aborted;
            }
            self.respond(now, queue, command, Status::ABORTED_BY_REQUEST, 0);
            return Ok(Plan::Respond(Status::SUCCESS, 0));
        }
        let plan = self.abort_command(now, key, slot, queue, command);
        self.touch(queue);
        Ok(plan)
    }

    fn is_event_request(&self, queue: ConnId, slot: SlotId) -> bool {
        let command = self
            .connections
            .get(queue)
            .and_then(|it| it.slots.get(slot));
        command.is_some_and(|it| it.sqe.opcode() == admin::ASYNC_EVENT_REQUEST)
    }

    fn abort_command(
        &mut self,
        now: Nanos,
        key: Key,
        abort: SlotId,
        queue: ConnId,
        slot: SlotId,
    ) -> Plan {
        let not_aborted = Plan::Respond(Status::SUCCESS, NOT_ABORTED);
        let Some(connection) = self.connections.get_mut(queue) else {
            return not_aborted;
        };
        let Some(command) = connection.slots.get_mut(slot) else {
            return not_aborted;
        };
        // A command that is being given up already is not given up by this.
        if command.aborting || !command.status.is_success() {
            return not_aborted;
        }
        match command.stage {
            Stage::Free | Stage::Held | Stage::Reservation | Stage::Respond | Stage::Reserved => {
                return not_aborted;
            }
            Stage::Executing => connection.push(Pending::Withdraw(slot)),
            _ => self.end_early(now, queue, slot, Status::ABORTED_BY_REQUEST),
        }
        let command = self
            .connections
            .get_mut(queue)
            .and_then(|it| it.slots.get_mut(slot));
        match command {
            Some(command) if command.stage != Stage::Respond => command.aborting = true,
            _ => return Plan::Respond(Status::SUCCESS, 0),
        }
        if let Some(controller) = self.controllers.get_mut(key) {
            controller.aborts.push(PendingAbort {
                abort,
                queue,
                command: slot,
            });
        }
        Plan::Held
    }

    /// Ends a command that is not at its device with `status`; half of a pair takes the other
    /// with it.
    pub(super) fn end_early(&mut self, now: Nanos, id: ConnId, slot: SlotId, status: Status) {
        let command = self.connections.get(id).and_then(|it| it.slots.get(slot));
        if command.is_some_and(|it| it.half == Half::None) {
            self.revoke(now, id, slot, status);
        } else {
            self.fail_pair(now, id, slot, status);
        }
    }

    /// Ends a command that is not at its device with `status`, as soon as that may be.
    pub(super) fn revoke(&mut self, now: Nanos, id: ConnId, slot: SlotId, status: Status) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        let Some(command) = connection.slots.get_mut(slot) else {
            return;
        };
        match command.stage {
            Stage::Receive | Stage::Transfer if command.landed < command.r2t_end => {
                command.status = status;
                if connection.landing.slot == Some(slot) {
                    connection.landing.drop = true;
                }
            }
            Stage::Buffer | Stage::Fill => {
                command.status = status;
                connection.push(Pending::Withdraw(slot));
            }
            Stage::Receive | Stage::Transfer | Stage::Fused | Stage::Inspect | Stage::Queued => {
                self.respond(now, id, slot, status, 0)
            }
            Stage::Free
            | Stage::Executing
            | Stage::Held
            | Stage::Reservation
            | Stage::Respond
            | Stage::Reserved => {}
        }
    }

    /// The answer to [`Output::Withdraw`](super::Output::Withdraw). `true`: nothing of the
    /// command has happened, and nothing will; its buffer, if it had one, is the machine's again.
    pub fn withdrawn(&mut self, now: Nanos, id: ConnId, slot: SlotId, done: bool) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        let Some(command) = connection.slots.get_mut(slot) else {
            return;
        };
        let status = command.status;
        match command.stage {
            Stage::Buffer | Stage::Fill if !status.is_success() => {
                self.respond(now, id, slot, status, 0);
            }
            Stage::Executing if done => {
                let half = command.half;
                let aborted = command.ended_early(Status::ABORTED_BY_REQUEST);
                let other = half.other();
                if let (Half::Second { .. }, Some(first)) = (half, other) {
                    self.complete(now, id, first, Status::ABORTED_FAILED_FUSED);
                }
                self.complete(now, id, slot, aborted);
                if let (Half::First { .. }, Some(second)) = (half, other) {
                    self.complete(now, id, second, Status::ABORTED_FAILED_FUSED);
                }
            }
            Stage::Executing if command.aborting => {
                command.aborting = false;
                self.abort_ended(now, id, slot, Status::SUCCESS);
            }
            _ => {}
        }
        self.touch(id);
    }

    /// A command that an Abort waits for has ended with `status`.
    pub(super) fn abort_ended(&mut self, now: Nanos, id: ConnId, slot: SlotId, status: Status) {
        let queue = self.connections.get(id).and_then(|it| it.queue);
        let Some(controller) = queue.and_then(|it| self.controllers.get_mut(it.controller)) else {
            return;
        };
        let is_it = |it: &PendingAbort| it.queue == id && it.command == slot;
        let Some(at) = controller.aborts.iter().position(is_it) else {
            return;
        };
        let (abort, admin) = (controller.aborts.remove(at).abort, controller.admin);
        let aborted = status.same_code(Status::ABORTED_BY_REQUEST);
        let result = if aborted { 0 } else { NOT_ABORTED };
        self.respond(now, admin, abort, Status::SUCCESS, result);
        self.touch(admin);
    }

    /// The commands of a queue are gone with it: their Aborts have nothing left to wait for.
    pub(super) fn aborts_ended(&mut self, now: Nanos, id: ConnId, key: Key) {
        while let Some(controller) = self.controllers.get(key)
            && let Some(abort) = controller.aborts.iter().find(|it| it.queue == id)
        {
            let command = abort.command;
            self.abort_ended(now, id, command, Status::ABORTED_SQ_DELETION);
        }
    }
}
