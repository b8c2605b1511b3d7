//! Commands from acceptance to response: the gates in front of them, and what carries them on.

use bowline_nvme::fabrics::{Disconnect, PropertyGet, PropertySet};
use bowline_nvme::log::ErrorLogEntry;
use bowline_nvme::opcode::{self, fabrics};
use bowline_nvme::{NamespaceId, Nanos, QueueId, Sqe, Status};

use super::Target;
use super::connection::{Connection, Pending, State, is_connect};
use super::controller::{Controller, Phase};
use super::error_log::lba_of;
use super::fused::{self, Half};
use super::gate::Gate;
use super::health::Tally;
use super::io::{self, IoPlan, Refusal};
use super::output::{ConnId, IoCommand, IoOp, SlotId};
use super::property::Change;
use super::slot::{Slot, Stage};
use super::subsystem::Subsystem;
use super::table::Key;

/// How an accepted command goes on.
#[derive(Clone, Copy, Debug)]
pub(super) enum Plan {
    /// Fetch this many bytes of data first.
    FromHost(u32),
    /// Let the glue have this many bytes filled in.
    ToHost(u32),
    Execute(IoCommand),
    Respond(Status, u64),
    /// Something else will complete it.
    Held,
    /// Respond, then end this connection.
    Disconnect,
}

impl Plan {
    pub(super) const fn refuse(status: Status) -> Self {
        Self::Respond(status, 0)
    }
}

/// Identify data, and the largest of what admin commands bring.
pub(super) const IDENTIFY_BYTES: u32 = 4096;
const CONNECT_BYTES: u32 = 1024;
const CONTROL_BYTES_MAX: u32 = 8192;
const PSDT_AT: u16 = 1;

impl Target {
    /// Decides on a command just received. The order of the gates is the order of precedence.
    pub(super) fn plan(&mut self, now: Nanos, id: ConnId, slot: SlotId, sqe: &Sqe) -> Plan {
        let Some(connection) = self.connections.get_mut(id) else {
            return Plan::refuse(Status::INTERNAL);
        };
        let (state, queue) = (connection.state, connection.queue);
        // In Fabrics commands the byte is reserved, so it is not looked at.
        let is_fabrics = sqe.opcode() == opcode::admin::FABRICS;
        if !is_fabrics && !has_valid_flags(queue.map(|queue| queue.qid), sqe) {
            return connection.refuse(slot, (Status::INVALID_FIELD.dnr(), PSDT_AT));
        }
        let Some(queue) = queue.filter(|_| state == State::Ready) else {
            return self.plan_before_connect(id, sqe);
        };
        if is_fabrics {
            return self.plan_fabrics(now, queue.controller, queue.qid, sqe);
        }
        if queue.qid == 0 {
            return self.plan_admin(now, id, queue.controller, slot, sqe);
        }
        let gate = Gate {
            config: &self.config,
            controllers: &self.controllers,
            subsystems: &self.subsystems,
        };
        match gate.plan(queue.controller, sqe) {
            Ok(IoPlan::Execute(command)) => Plan::Execute(command),
            Ok(plan) => {
                if let Some(command) = connection.slots.get_mut(slot) {
                    command.command.namespace = plan.namespace();
                }
                match plan {
                    IoPlan::Report(_, bytes) => Plan::ToHost(bytes),
                    _ => Plan::FromHost(sqe.sgl1().length),
                }
            }
            Err(refusal) => connection.refuse(slot, refusal),
        }
    }

    /// Whether a command that was handed out, but waited for the owner's memory, may still run:
    /// meanwhile the path to its namespace, reservations, or the controller may have changed.
    /// `false`: it may not, and has been answered.
    pub fn may_still_run(&mut self, now: Nanos, id: ConnId, slot: SlotId) -> bool {
        let Some(connection) = self.connections.get(id) else {
            return true;
        };
        let executing = |slot| {
            let command = connection.slots.get(slot);
            command.filter(|it| it.stage == Stage::Executing)
        };
        let queue = connection.queue.filter(|queue| queue.qid != 0);
        let (Some(queue), Some(command)) = (queue, executing(slot)) else {
            return true;
        };
        let refusal = |command: &Slot| {
            let handle = command.command.namespace;
            let again = self
                .gate()
                .plan_again(queue.controller, &command.sqe, handle);
            again.err().map(|(status, _)| status)
        };
        let second = command.half.other();
        let refused = match (refusal(command), second) {
            (Some(status), _) => Some((status, Status::ABORTED_FAILED_FUSED)),
            (None, Some(second)) => executing(second)
                .and_then(refusal)
                .map(|status| (Status::ABORTED_FAILED_FUSED, status)),
            (None, None) => None,
        };
        let Some((status, of_second)) = refused else {
            return true;
        };
        self.complete(now, id, slot, status);
        if let Some(second) = second {
            self.complete(now, id, second, of_second);
        }
        false
    }

    /// Only Connect, and only one at a time. [FABRICS-1.1 §3.3]
    fn plan_before_connect(&self, id: ConnId, sqe: &Sqe) -> Plan {
        if !is_connect(sqe) {
            return Plan::refuse(Status::COMMAND_SEQUENCE_ERROR);
        }
        let connects = self.connections.get(id).map_or(0, |connection| {
            connection
                .slots
                .iter()
                .filter(|(_, slot)| is_connect(&slot.sqe))
                .count()
        });
        // This one is among them.
        if connects > 1 {
            return Plan::refuse(Status::CONTROLLER_BUSY);
        }
        if bowline_nvme::fabrics::Connect::decode(sqe).recfmt != 0 {
            return Plan::refuse(Status::CONNECT_INCOMPATIBLE_FORMAT.dnr());
        }
        match sqe.sgl1().length {
            len @ CONNECT_BYTES..=CONTROL_BYTES_MAX => Plan::FromHost(len),
            _ => Plan::refuse(Status::INVALID_FIELD.dnr()),
        }
    }

    /// Fabrics commands work whether the controller is enabled or not. [FABRICS-1.1 §3]
    fn plan_fabrics(&mut self, now: Nanos, key: Key, qid: u16, sqe: &Sqe) -> Plan {
        let io_entries = self.config.io_queue_entries_max;
        if sqe.fctype() == fabrics::CONNECT {
            return Plan::refuse(Status::CONTROLLER_BUSY);
        }
        if sqe.sgl1().length != 0 && sqe.fctype() != fabrics::DISCONNECT {
            return Plan::refuse(Status::DATA_SGL_LENGTH_INVALID.dnr());
        }
        match (sqe.fctype(), qid) {
            (fabrics::DISCONNECT, 0) => Plan::refuse(Status::INVALID_QUEUE_TYPE.dnr()),
            (fabrics::DISCONNECT, _) if Disconnect::decode(sqe).recfmt != 0 => {
                Plan::refuse(Status::CONNECT_INCOMPATIBLE_FORMAT.dnr())
            }
            (fabrics::DISCONNECT, _) => Plan::Disconnect,
            (fabrics::PROPERTY_GET, 0) => {
                let value = self
                    .controllers
                    .get(key)
                    .ok_or(Status::INTERNAL)
                    .and_then(|it| it.property_get(PropertyGet::decode(sqe), io_entries));
                value.map_or_else(Plan::refuse, |value| Plan::Respond(Status::SUCCESS, value))
            }
            (fabrics::PROPERTY_SET, 0) => {
                let change = self
                    .controllers
                    .get_mut(key)
                    .ok_or(Status::INTERNAL)
                    .and_then(|it| it.property_set(PropertySet::decode(sqe)));
                match change {
                    Ok(change) => self.apply(now, key, change),
                    Err(status) => return Plan::refuse(status),
                }
                Plan::Respond(Status::SUCCESS, 0)
            }
            _ => Plan::refuse(Status::INVALID_OPCODE.dnr()),
        }
    }

    fn apply(&mut self, now: Nanos, key: Key, change: Change) {
        match change {
            Change::None => {}
            Change::Enable => self.enable(now, key),
            Change::Reset => self.reset(now, key),
            Change::Shutdown => self.shut_down(now, key),
        }
    }

    /// All data of a command has landed and its digest was right.
    pub(super) fn data_complete(&mut self, now: Nanos, id: ConnId, slot: SlotId) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        let Some(command) = connection.slots.get_mut(slot) else {
            return;
        };
        if command.half != Half::None {
            return self.half_complete(now, id, slot);
        }
        let io_queue = connection.queue.filter(|queue| queue.qid != 0);
        let Some(queue) = io_queue else {
            command.enter(now, Stage::Inspect);
            connection.push(Pending::Inspect(slot));
            return;
        };
        let gate = Gate {
            config: &self.config,
            controllers: &self.controllers,
            subsystems: &self.subsystems,
        };
        let accepted_for = command.command.namespace;
        match gate.plan_again(queue.controller, &command.sqe, accepted_for) {
            Ok(IoPlan::FromHost(io) | IoPlan::Execute(io)) => {
                command.command = command.for_part(io);
                command.enter(now, Stage::Queued);
                connection.push(Pending::Execute(slot));
            }
            Ok(IoPlan::Ranges(_) | IoPlan::Reservation(_) | IoPlan::Report(..)) => {
                command.enter(now, Stage::Inspect);
                connection.push(Pending::Inspect(slot));
            }
            Ok(IoPlan::Advice(_)) => self.respond(now, id, slot, Status::SUCCESS, 0),
            Err((status, at)) => {
                command.error_at = at;
                self.respond(now, id, slot, status, 0);
            }
        }
    }

    /// Shows the control data of a command: `data` is all of what
    /// [`Output::Inspect`](super::Output::Inspect) announced.
    pub fn inspect(&mut self, now: Nanos, id: ConnId, slot: SlotId, data: &[u8]) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        let Some(command) = connection.slots.at_stage(slot, Stage::Inspect) else {
            return;
        };
        let (sqe, namespace) = (command.sqe, command.command.namespace);
        command.enter(now, Stage::Held);
        match connection.queue {
            None => self.connect_data(now, id, slot, data),
            Some(queue) if queue.qid == 0 => self.admin_data(now, id, queue.controller, slot, data),
            Some(queue) if io::is_reservation(sqe.opcode()) => {
                // The path may have gone since the data came.
                match self.gate().plan_again(queue.controller, &sqe, namespace) {
                    Ok(_) => self.reservation_data(now, id, slot, &sqe, namespace, data),
                    Err((status, _)) => self.respond(now, id, slot, status, 0),
                }
            }
            Some(queue) => {
                // A shutdown may have begun since, whose Flush would not cover what is written now.
                let (gate, key) = (self.gate(), queue.controller);
                let ranges = gate
                    .plan_again(key, &sqe, namespace)
                    .and_then(|_| gate.ranges(key, &sqe, namespace, data));
                self.run_ranges(now, id, slot, ranges);
            }
        }
        self.touch(id);
    }

    fn run_ranges(
        &mut self,
        now: Nanos,
        id: ConnId,
        slot: SlotId,
        ranges: Result<Option<IoCommand>, Refusal>,
    ) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        let Some(held) = connection.slots.get_mut(slot) else {
            return;
        };
        match ranges {
            Ok(Some(io)) => {
                held.command = io;
                held.enter(now, Stage::Queued);
                connection.push(Pending::Execute(slot));
            }
            Ok(None) => self.respond(now, id, slot, Status::SUCCESS, 0),
            Err((status, at)) => {
                held.error_at = at;
                self.respond(now, id, slot, status, 0);
            }
        }
    }

    /// Writes the data of a command to the host: all of `data`, whose length
    /// [`Output::Fill`](super::Output::Fill) announced. `false`: the command has gone meanwhile,
    /// and nothing will release the buffer but the one who bound it.
    pub fn fill(&mut self, now: Nanos, id: ConnId, slot: SlotId, data: &mut [u8]) -> bool {
        let Some(connection) = self.connections.get_mut(id) else {
            return false;
        };
        let (local, queue) = (connection.path.local, connection.queue);
        let command = connection.slots.at_stage(slot, Stage::Fill);
        let (Some(command), Some(queue)) = (command, queue) else {
            return false;
        };
        let (sqe, namespace) = (command.sqe, command.command.namespace);
        let status = command.status;
        if !status.is_success() {
            // Given up while it waited.
            self.respond(now, id, slot, status, 0);
            self.touch(id);
            return false;
        }
        command.enter(now, Stage::Held);
        let filled = if queue.qid == 0 {
            self.fill_admin(now, queue.controller, local, &sqe, data)
        } else {
            self.report_reservations(id, &sqe, namespace, data)
                .map(|()| 0)
        };
        match filled {
            Ok(result) => {
                self.respond_with_data(now, id, slot, u64::from(result));
            }
            Err(status) => self.respond(now, id, slot, status, 0),
        }
        // Reading a log lets its next event go.
        self.deliver_events(now, queue.controller);
        self.touch(id);
        true
    }

    /// The device is done with a command. Also for connections that are gone: the end of their
    /// association waits for it.
    pub fn complete(&mut self, now: Nanos, id: ConnId, slot: SlotId, status: Status) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        let Some(command) = connection.slots.at_stage(slot, Stage::Executing) else {
            return;
        };
        let status = command.ended_early(status);
        let awaited = std::mem::take(&mut command.awaited);
        let done = Done::of(command, status, awaited);
        command.enter(now, done.stage());
        let is_plain = done.is_plain() && !awaited && !command.aborting;
        let victim = awaited.then_some(command.sqe);
        connection.executing = connection.executing.saturating_sub(1);
        let is_idle = connection.executing == 0;
        let Some(queue) = connection.queue else {
            return;
        };
        let (mut at, mut is_drained) = (None, false);
        if let Some(controller) = self.controllers.get_mut(queue.controller) {
            at = controller.subsystem;
            let subsystem = at.and_then(|at| self.subsystems.get_mut(at)?.as_mut());
            done.count(now, is_idle, controller, subsystem);
            is_drained = is_idle && controller.is_drained();
        }
        if is_plain && matches!(connection.state, State::Ready | State::Drain) {
            connection.answer(now, slot, &done);
            connection.touch(id, &mut self.dirty);
        } else {
            self.end_otherwise(now, id, slot, &done);
            if let Some(sqe) = victim {
                self.victim_ended(now, at, &sqe, done.io.namespace);
            }
            let controller = self.controllers.get(queue.controller);
            is_drained = controller.is_some_and(Controller::is_drained);
            self.touch(id);
        }
        if is_drained {
            self.advance(now, queue.controller);
            self.touch(id);
        }
    }

    /// What follows the end of a command, or of a part of it, if it is not just its answer.
    #[cold]
    fn end_otherwise(&mut self, now: Nanos, id: ConnId, slot: SlotId, done: &Done) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        let (state, queue) = (connection.state, connection.queue);
        match state {
            _ if done.internal => {
                if let Some(queue) = queue {
                    self.flushed(now, queue.controller, done.status);
                }
                self.reap(now, id);
            }
            State::Ready | State::Drain if done.goes_on => self.part_done(now, id, slot),
            State::Ready | State::Drain => {
                if done.is_read() && done.status.is_success() {
                    self.respond_with_data(now, id, slot, 0);
                } else {
                    self.respond(now, id, slot, done.status, 0);
                }
            }
            State::Linger => {
                connection.abandon(slot);
                self.reap(now, id);
            }
            _ => {
                connection.slots.release(slot);
                self.reap(now, id);
            }
        }
    }

    /// Queues a response; one that reports an error also leaves an entry in the error log.
    pub(super) fn respond(
        &mut self,
        now: Nanos,
        id: ConnId,
        slot: SlotId,
        status: Status,
        result: u64,
    ) {
        let told = if status.is_success() {
            status
        } else {
            self.log_error(id, slot, status)
        };
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        let Some(command) = connection.slots.get_mut(slot) else {
            return;
        };
        let aborting = std::mem::take(&mut command.aborting);
        connection.respond(now, slot, told, result);
        if aborting {
            self.abort_ended(now, id, slot, status);
        }
    }

    /// Leaves an entry in the error log, and says how the command's end is told then.
    #[cold]
    fn log_error(&mut self, id: ConnId, slot: SlotId, status: Status) -> Status {
        let Some(connection) = self.connections.get(id) else {
            return status;
        };
        let (Some(command), Some(queue)) = (connection.slots.get(slot), connection.queue) else {
            return status;
        };
        let sqe = &command.sqe;
        let Some(controller) = self
            .controllers
            .get_mut(queue.controller)
            .filter(|it| it.phase != Phase::Ended && !is_property_get(sqe))
        else {
            return status;
        };
        let status = status.more();
        let number = controller
            .subsystem
            .and_then(|at| self.subsystems.get_mut(at)?.as_mut())
            .map_or(controller.errors.count + 1, |it| it.health.next_error());
        let location = controller.parameter_at(sqe, status);
        controller.errors.add(ErrorLogEntry {
            parameter_error_location: match command.error_at {
                ErrorLogEntry::NO_LOCATION if queue.qid == 0 => location,
                noted => noted,
            },
            lba: if queue.qid == 0 { 0 } else { lba_of(sqe) },
            nsid: if sqe.opcode() == opcode::admin::FABRICS {
                NamespaceId::NONE
            } else {
                sqe.nsid()
            },
            trtype: bowline_nvme::log::Transport::Tcp.wire(),
            ..ErrorLogEntry::new(number, QueueId(queue.qid), sqe.cid(), status)
        });
        status
    }

    fn respond_with_data(&mut self, now: Nanos, id: ConnId, slot: SlotId, result: u64) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        let Some(command) = connection.slots.get_mut(slot) else {
            return;
        };
        let aborting = std::mem::take(&mut command.aborting);
        connection.respond_with_data(now, slot, result);
        if aborting {
            self.abort_ended(now, id, slot, Status::SUCCESS);
        }
    }
}

/// A command, or a part of it, that has left its device.
struct Done {
    /// All of the command, which is counted once.
    io: IoCommand,
    nsid: NamespaceId,
    status: Status,
    /// It was the controller's own.
    internal: bool,
    /// The next part follows.
    goes_on: bool,
}

impl Done {
    /// `is_awaited`: its end is what a Preempt and Abort waits for.
    fn of(command: &Slot, status: Status, is_awaited: bool) -> Self {
        let has_more = command.has_more_parts() && status.is_success();
        Self {
            io: command.whole(),
            nsid: command.sqe.nsid(),
            // What is aborted ends with the part that was at the device.
            status: if has_more && is_awaited {
                Status::ABORTED_PREEMPT
            } else {
                status
            },
            internal: command.internal,
            goes_on: has_more && !is_awaited,
        }
    }

    fn stage(&self) -> Stage {
        if self.internal {
            Stage::Reserved
        } else {
            Stage::Held
        }
    }

    /// Whether it has succeeded, and only its answer is left to be sent.
    fn is_plain(&self) -> bool {
        self.status.is_success() && !self.internal && !self.goes_on
    }

    fn is_read(&self) -> bool {
        matches!(self.io.op, IoOp::Read { .. })
    }

    /// `is_idle`: its queue has nothing else at a device.
    fn count(
        &self,
        now: Nanos,
        is_idle: bool,
        controller: &mut Controller,
        subsystem: Option<&mut Subsystem>,
    ) {
        if is_idle {
            controller.health.finished(now);
        }
        let Some(subsystem) = subsystem else { return };
        if is_idle {
            subsystem.health.run.finished(now);
        }
        if self.internal || self.goes_on {
            return;
        }
        count(controller, subsystem, &self.io, self.nsid, self.status);
    }
}

/// Counts a command that has left its device.
pub(super) fn count(
    controller: &mut Controller,
    subsystem: &mut Subsystem,
    io: &IoCommand,
    nsid: NamespaceId,
    status: Status,
) {
    let tally = Tally::of(&io.op, io.bytes, status);
    controller.health.io.count(tally);
    subsystem.health.run.io.count(tally);
    let namespace = subsystem.namespaces.get_mut(nsid.0);
    // The NSID may have been given to another device meanwhile.
    if let Some(namespace) = namespace.filter(|it| it.handle == io.namespace) {
        namespace.counters.count(tally);
    }
}

/// What the byte behind the opcode may say in a command that is not of Fabrics, on such a queue or
/// before Connect. PRPs do not exist on Fabrics. [BASE-2.0 §3.3.3.1]
pub(super) fn has_valid_flags(qid: Option<u16>, sqe: &Sqe) -> bool {
    matches!(sqe.psdt(), 1 | 2) && fused::is_possible(qid, sqe)
}

impl Connection {
    /// Answers a command that has succeeded.
    fn answer(&mut self, now: Nanos, slot: SlotId, done: &Done) {
        if done.is_read() {
            self.respond_with_data(now, slot, 0);
        } else {
            self.respond(now, slot, done.status, 0);
        }
    }

    #[cold]
    fn refuse(&mut self, slot: SlotId, (status, at): Refusal) -> Plan {
        if let Some(command) = self.slots.get_mut(slot) {
            command.error_at = at;
        }
        Plan::refuse(status)
    }
}

/// Hosts find out which properties there are by asking for all: no error, and nvme-cli does not
/// understand More there.
fn is_property_get(sqe: &Sqe) -> bool {
    sqe.opcode() == opcode::admin::FABRICS && sqe.fctype() == opcode::fabrics::PROPERTY_GET
}
