//! Reservation commands through the target: in from their data, out to whoever they concern.

use std::collections::VecDeque;

use bowline_nvme::opcode::io as opcode;
use bowline_nvme::reservation::{
    Acquire, Register, RegisteredControllerExtended, Release, ReservationStatusExtended,
};
use bowline_nvme::{ControllerId, Nanos, Sqe, Status};

use super::change::{Change, Request};
use super::queue::{Step, Task, Ticket};
use super::{Access, HostId, ReservationState, StoreId, StoreRequest};
use crate::target::Target;
use crate::target::ana::check_access;
use crate::target::async_event::Event;
use crate::target::connection::{Connection, Pending};
use crate::target::log_page::Window;
use crate::target::namespace::Namespace;
use crate::target::output::{ConnId, NamespaceHandle, SlotId};
use crate::target::slot::Stage;
use crate::target::table::{Key, Table};

/// Requests to make reservations durable, from the moment they are made to their answer.
#[derive(Debug, Default)]
pub(in crate::target) struct Stores {
    outgoing: VecDeque<StoreRequest>,
    /// Subsystem and NSID of those not answered, at most one per namespace.
    pending: Vec<(StoreId, usize, u32)>,
    last_id: u64,
    last_ticket: u64,
}

/// A namespace: the subsystem's place, and the NSID.
type Place = (usize, u32);

impl Target {
    /// The next state of reservations that is to become durable. The command that made it is
    /// answered only after [`Target::handle_stored`], and the old state is in force until then.
    ///
    /// The owner must answer each request once, in any order. Requests for one namespace come one
    /// after the other, but when a namespace is removed and added again the old one's answer may
    /// still be missing: the owner keeps the order of its writes.
    pub fn poll_store(&mut self) -> Option<StoreRequest> {
        self.stores.outgoing.pop_front()
    }

    /// The owner's answer to [`Target::poll_store`]: whether the state is durable. If it is not,
    /// the command fails, and what was stored before must still be there.
    pub fn handle_stored(&mut self, now: Nanos, id: StoreId, durable: bool) {
        let pending = &mut self.stores.pending;
        let Some(found) = pending.iter().position(|&(it, ..)| it == id) else {
            return;
        };
        let (_, at, nsid) = pending.swap_remove(found);
        let Some(namespace) = self.namespace_mut((at, nsid)) else {
            return;
        };
        let step = namespace.reservations.stored(id, durable);
        self.drive_reservations(now, (at, nsid), Some(step));
    }

    /// The keys of a reservation command have arrived.
    pub(in crate::target) fn reservation_data(
        &mut self,
        now: Nanos,
        id: ConnId,
        slot: SlotId,
        sqe: &Sqe,
        accepted_for: NamespaceHandle,
        data: &[u8],
    ) {
        let request = match sqe.opcode() {
            opcode::RESERVATION_REGISTER => Register::decode(sqe, data).map(Request::Register),
            opcode::RESERVATION_ACQUIRE => Acquire::decode(sqe, data).map(Request::Acquire),
            _ => Release::decode(sqe, data).map(Request::Release),
        };
        let Some(request) = request else {
            return self.respond(now, id, slot, Status::DATA_SGL_LENGTH_INVALID.dnr(), 0);
        };
        // Hosts without an identifier are different hosts that nothing tells apart: as one they
        // would share their rights. [BASE-2.0 §5.27.1.25]
        if self.host_of_connection(id) == Some([0; 16]) {
            return self.respond(now, id, slot, Status::COMMAND_SEQUENCE_ERROR.dnr(), 0);
        }
        let nsid = sqe.nsid().0;
        let at = self.subsystem_of_connection(id);
        let is_there = at.is_some_and(|at| {
            self.namespace_mut((at, nsid))
                .is_some_and(|namespace| namespace.handle == accepted_for)
        });
        match at.filter(|_| is_there) {
            Some(at) => self.submit_reservation(now, id, slot, (at, nsid), request, false),
            None => self.respond(now, id, slot, Status::INVALID_NAMESPACE.dnr(), 0),
        }
    }

    /// Queues a request of a command that is then held; `all`: for every namespace from this on.
    pub(super) fn submit_reservation(
        &mut self,
        now: Nanos,
        id: ConnId,
        slot: SlotId,
        place: Place,
        request: Request,
        all: bool,
    ) {
        let host = self.host_of_connection(id);
        let command = self
            .connections
            .get_mut(id)
            .and_then(|it| it.slots.get_mut(slot));
        let (Some(host), Some(command)) = (host, command) else {
            return;
        };
        self.stores.last_ticket += 1;
        let number = self.stores.last_ticket;
        command.enter(now, Stage::Reservation);
        // The response's dwords have no other use before there is one.
        command.result = number;
        let ticket = Ticket {
            conn: id,
            slot,
            number,
        };
        let task = Task {
            ticket,
            host,
            request,
            all,
        };
        self.queue_task(place, task);
        self.drive_reservations(now, place, None);
    }

    /// Lets a command wait for its turn; `None` if there is no such namespace.
    fn queue_task(&mut self, (at, nsid): Place, task: Task) -> Option<()> {
        let connections = &self.connections;
        let subsystem = self.subsystems.get_mut(at)?.as_mut()?;
        let namespace = subsystem.namespaces.get_mut(nsid)?;
        let is_live = |ticket: &Ticket| holds(connections, ticket);
        namespace.reservations.submit(task, is_live);
        Some(())
    }

    /// Goes on with a namespace's commands until one has to wait.
    fn drive_reservations(&mut self, now: Nanos, place: Place, first: Option<Step>) {
        let (at, mut step) = (place.0, first);
        // One that is for all namespaces moves on to the next when it is done with one.
        let mut places = vec![place.1];
        while let Some(nsid) = places.pop() {
            while let Some(next) = step.take().or_else(|| self.reservation_step((at, nsid))) {
                match next {
                    Step::Idle => break,
                    Step::Store(state) => self.store((at, nsid), state),
                    Step::Ended(task, status) => {
                        if let Some(further) = self.end_task(now, (at, nsid), task, status) {
                            places.extend([nsid, further]);
                            break;
                        }
                    }
                    Step::Enact(task, change) => {
                        let victims = self.enact(now, (at, nsid), &task, change);
                        let done = self
                            .namespace_mut((at, nsid))
                            .and_then(|namespace| namespace.reservations.enacted(victims));
                        step = done.map(|task| Step::Ended(task, Status::SUCCESS));
                    }
                }
            }
        }
    }

    fn reservation_step(&mut self, (at, nsid): Place) -> Option<Step> {
        let id = StoreId(self.stores.last_id + 1);
        let connections = &self.connections;
        let subsystem = self.subsystems.get_mut(at)?.as_mut()?;
        let namespace = subsystem.namespaces.get_mut(nsid)?;
        let is_live = |ticket: &Ticket| holds(connections, ticket);
        Some(namespace.reservations.step(id, is_live))
    }

    fn store(&mut self, place: Place, state: Option<ReservationState>) {
        let Some(namespace) = self.namespace_mut(place).map(|it| it.handle) else {
            return;
        };
        self.stores.last_id += 1;
        let id = StoreId(self.stores.last_id);
        self.stores.pending.push((id, place.0, place.1));
        self.stores.outgoing.push_back(StoreRequest {
            id,
            namespace,
            state,
        });
    }

    /// Answers a command, or moves it on to the NSID that is returned.
    fn end_task(
        &mut self,
        now: Nanos,
        (at, nsid): Place,
        task: Task,
        status: Status,
    ) -> Option<u32> {
        if task.all
            && status.is_success()
            && let Some(next) = self.next_persistent((at, nsid))
        {
            self.queue_task((at, next), task);
            return Some(next);
        }
        self.answer_ticket(now, task.ticket, status);
        None
    }

    /// The next namespace after `nsid` whose reservations can be made durable.
    pub(super) fn next_persistent(&self, (at, nsid): Place) -> Option<u32> {
        let subsystem = self.subsystems.get(at)?.as_ref()?;
        let mut next = subsystem.namespaces.after(nsid);
        while let Some(namespace) = next.filter(|it| !it.reservations.persists()) {
            next = subsystem.namespaces.after(namespace.nsid);
        }
        next.map(|namespace| namespace.nsid)
    }

    fn answer_ticket(&mut self, now: Nanos, ticket: Ticket, status: Status) {
        if holds(&self.connections, &ticket) {
            self.respond(now, ticket.conn, ticket.slot, status, 0);
            self.touch(ticket.conn);
        }
    }

    /// Ends the commands that wait for their turn at a namespace, if it can no longer be reached:
    /// the state that they would change is another target's by then.
    pub(in crate::target) fn fail_waiting(&mut self, now: Nanos, place: Place) {
        let Some(namespace) = self.namespace_mut(place) else {
            return;
        };
        let Err(status) = check_access(namespace.access) else {
            return;
        };
        for task in namespace.reservations.withdraw(|_| true) {
            self.answer_ticket(now, task.ticket, status);
        }
    }

    /// Ends the commands that waited for a namespace which is gone.
    pub(in crate::target) fn drop_reservations(
        &mut self,
        now: Nanos,
        at: usize,
        mut namespace: Box<Namespace>,
    ) {
        let place = (at, namespace.nsid);
        self.stores
            .pending
            .retain(|&(_, at, nsid)| (at, nsid) != place);
        for task in namespace.reservations.clear() {
            // For one that is for all namespaces this one no longer counts.
            if !task.all {
                self.answer_ticket(now, task.ticket, Status::INVALID_NAMESPACE.dnr());
            } else if let Some(next) = self.end_task(now, place, task, Status::SUCCESS) {
                self.drive_reservations(now, (at, next), None);
            }
        }
    }

    /// A new state is in force: whom it concerns is told, what it forbids ends. Returns how many
    /// commands have to leave the device before the command that brought it may end.
    fn enact(&mut self, now: Nanos, place: Place, task: &Task, mut change: Change) -> u32 {
        if let Request::Acquire(acquire) = &task.request
            && acquire.action != Acquire::ACQUIRE
        {
            self.counters.reservation_preemptions += 1;
        }
        change.news.sort_unstable_by_key(|&(host, _)| host);
        // The machine has left the state of before in the place of the one to come.
        let before = &change.next;
        let Some(namespace) = self.namespace_mut(place) else {
            return 0;
        };
        let (after, handle) = (namespace.reservations.state(), namespace.handle);
        let takes_rights = after.reservation.is_some()
            && (after.reservation != before.reservation
                || after.registrants.len() < before.registrants.len());
        // Cloned, because the commands it forbids are elsewhere in the target; rare, and small.
        let after = takes_rights.then(|| after.clone());
        let withdrawn = namespace
            .reservations
            .withdraw(|other| change.victims.contains(&other.host));
        for other in withdrawn.iter().filter(|other| other.ticket != task.ticket) {
            self.answer_ticket(now, other.ticket, Status::ABORTED_PREEMPT);
        }
        let mut victims = 0;
        for key in self.controllers_of_subsystem(place.0) {
            let Some(controller) = self.controllers.get_mut(key) else {
                continue;
            };
            let host = controller.hostid;
            let news = change.news.binary_search_by_key(&host, |&(host, _)| host);
            if let Ok(found) = news
                && controller.is_enabled()
                && controller.notices.add(place.1, change.news[found].1)
            {
                self.raise(now, key, Event::ReservationLog);
            }
            if change.victims.contains(&host) {
                victims += self.abort_victims(now, key, handle);
            }
            if let Some(after) = &after {
                self.fail_forbidden(now, key, handle, &host, after);
            }
        }
        victims
    }

    /// Ends what has been accepted but has not reached its device, where the new state would not
    /// let it in. What is at the device is not taken back. [BASE-2.0 §8.19]
    fn fail_forbidden(
        &mut self,
        now: Nanos,
        key: Key,
        handle: NamespaceHandle,
        host: &HostId,
        state: &ReservationState,
    ) {
        let conflict = Status::RESERVATION_CONFLICT.dnr();
        for (id, slot, stage) in self.commands_to(key, handle, |sqe| {
            !state.allows(host, Access::of(sqe.opcode()))
        }) {
            // Also a Read between two parts: the rest of it has not been read.
            if matches!(stage, Stage::Queued | Stage::Respond) {
                self.fail_one_queued(now, id, slot, conflict);
                self.touch(id);
            }
        }
    }

    /// Preempt and Abort: ends the commands of one of the victims' controllers, and returns how
    /// many are at the device and have to be waited for. [BASE-2.0 §8.19.7]
    ///
    /// A command whose data is still under way will never reach the device, so nobody waits for
    /// it; it is answered when its host has sent what it was asked for. Waiting would let a host
    /// that died in the middle of a transfer hold up its own fencing. What was handed out is asked
    /// back, since it may still wait for a buffer or for room at the device.
    fn abort_victims(&mut self, now: Nanos, key: Key, handle: NamespaceHandle) -> u32 {
        let mut at_device = 0;
        for (id, slot, stage) in self.commands_to(key, handle, |_| true) {
            let command = self
                .connections
                .get_mut(id)
                .and_then(|it| it.slots.get_mut(slot));
            let Some(command) = command else { continue };
            match stage {
                Stage::Executing => {
                    command.awaited = true;
                    at_device += 1;
                    if let Some(connection) = self.connections.get_mut(id) {
                        connection.push(Pending::Withdraw(slot));
                    }
                    self.touch(id);
                }
                Stage::Queued
                | Stage::Inspect
                | Stage::Fused
                | Stage::Receive
                | Stage::Buffer
                | Stage::Transfer => {
                    self.end_early(now, id, slot, Status::ABORTED_PREEMPT);
                    self.touch(id);
                }
                // A part of a Read is being sent; no other follows.
                Stage::Respond => {
                    self.fail_one_queued(now, id, slot, Status::ABORTED_PREEMPT);
                    self.touch(id);
                }
                // A report changes nothing, and the rest is over or is not for the device.
                Stage::Free | Stage::Fill | Stage::Held | Stage::Reservation | Stage::Reserved => {}
            }
        }
        at_device
    }

    /// The commands that a controller's I/O queues have for a device.
    fn commands_to(
        &self,
        key: Key,
        handle: NamespaceHandle,
        concerns: impl Fn(&Sqe) -> bool,
    ) -> Vec<(ConnId, SlotId, Stage)> {
        let queues = self.controllers.get(key).map(|it| it.queues.as_slice());
        let queues = queues.unwrap_or_default().iter();
        let connections = queues.filter_map(|&(_, id)| Some((id, self.connections.get(id)?)));
        connections
            .filter(|(_, connection)| connection.slots.busy() > 0)
            .flat_map(|(id, connection)| {
                let slots = connection.slots.iter();
                let mine = slots.filter(|(_, slot)| {
                    slot.command.namespace == handle && !slot.internal && concerns(&slot.sqe)
                });
                mine.map(move |(at, slot)| (id, at, slot.stage))
            })
            .collect()
    }

    /// A command that a Preempt and Abort waited for has left its device.
    pub(in crate::target) fn victim_ended(
        &mut self,
        now: Nanos,
        at: Option<usize>,
        sqe: &Sqe,
        meant: NamespaceHandle,
    ) {
        let Some(at) = at else { return };
        let place = (at, sqe.nsid().0);
        let done = self
            .namespace_mut(place)
            .filter(|namespace| namespace.handle == meant)
            .and_then(|namespace| namespace.reservations.victim_ended());
        if let Some(task) = done {
            let ended = Step::Ended(task, Status::SUCCESS);
            self.drive_reservations(now, place, Some(ended));
        }
    }

    /// Writes the data of Reservation Report, as much of it as was asked for. [BASE-2.0 §7.5]
    pub(in crate::target) fn report_reservations(
        &mut self,
        id: ConnId,
        sqe: &Sqe,
        accepted_for: NamespaceHandle,
        data: &mut [u8],
    ) -> Result<(), Status> {
        let at = self
            .subsystem_of_connection(id)
            .ok_or(Status::INVALID_NAMESPACE.dnr())?;
        let state = self
            .namespace_mut((at, sqe.nsid().0))
            .filter(|namespace| namespace.handle == accepted_for)
            .map(|namespace| namespace.reservations.state())
            .ok_or(Status::INVALID_NAMESPACE.dnr())?;
        state.report(&mut Window::new(0, data));
        Ok(())
    }

    fn host_of_connection(&self, id: ConnId) -> Option<HostId> {
        let queue = self.connections.get(id)?.queue?;
        Some(self.controllers.get(queue.controller)?.hostid)
    }

    pub(super) fn subsystem_of_connection(&self, id: ConnId) -> Option<usize> {
        let queue = self.connections.get(id)?.queue?;
        self.controllers.get(queue.controller)?.subsystem
    }

    pub(super) fn namespace_mut(&mut self, (at, nsid): Place) -> Option<&mut Namespace> {
        let subsystem = self.subsystems.get_mut(at)?.as_mut()?;
        subsystem.namespaces.get_mut(nsid)
    }
}

/// Whether the command still waits in its slot.
fn holds(connections: &Table<Connection>, ticket: &Ticket) -> bool {
    connections
        .get(ticket.conn)
        .and_then(|connection| connection.slots.get(ticket.slot))
        .is_some_and(|slot| slot.stage == Stage::Reservation && slot.result == ticket.number)
}

impl ReservationState {
    /// One entry per registrant: in the dynamic controller model a registrant is no controller.
    /// The head counts them all, also those that the window does not show. [BASE-2.0 §7.5]
    fn report(&self, window: &mut Window<'_>) {
        let head = ReservationStatusExtended {
            generation: self.generation,
            rtype: self.reservation.map_or(0, |held| held.rtype.wire()),
            regctl: u16::try_from(self.registrants.len()).unwrap_or(u16::MAX),
            ptpls: u8::from(self.persistent),
        };
        window.put(0, &head.to_bytes());
        for (at, registrant) in (1..).zip(&self.registrants) {
            let entry = RegisteredControllerExtended {
                cntlid: ControllerId::DYNAMIC,
                rcsts: if self.is_holder(&registrant.hostid) {
                    RegisteredControllerExtended::HOLDER
                } else {
                    0
                },
                rkey: registrant.key,
                hostid: registrant.hostid,
            };
            window.put(at * 64, &entry.to_bytes());
        }
    }
}
