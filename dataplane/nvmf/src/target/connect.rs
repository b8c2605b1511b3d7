//! Connect: from a request to a queue pair, or the exact reason why not. [FABRICS-1.1 §3.3]
//!
//! DNR is policy: Linux gives a controller up for good when Connect fails with it. It is set only
//! where a retry cannot do better, which an unknown subsystem, controller, or host can: after a
//! restart they appear a moment later.

use std::net::SocketAddr;

use bowline_nvme::fabrics::{Connect, ConnectData, ConnectInvalid, ConnectResult};
use bowline_nvme::{ControllerId, Nanos, Status};

use super::Target;
use super::connection::{Pending, Queue, State};
use super::controller::{Controller, Kind, NewController, Phase};
use super::discovery::Snapshot;
use super::feature::kato;
use super::output::SlotId;
use super::slot;
use super::table::Key;

/// A Connect whose data has arrived.
#[derive(Debug)]
pub(super) struct ConnectRequest {
    pub(super) slot: SlotId,
    command: Connect,
    data: ConnectData,
    /// For the owner, who decides where the subsystem lives.
    pub(super) subnqn: String,
    /// From here until the answer the host's time to connect stands still.
    arrived: Nanos,
}

/// A Connect that was refused. [`Target::poll_refusal`] gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Host NQN; empty where it could not be read.
    pub hostnqn: String,
    /// Subsystem NQN; empty where it could not be read.
    pub subnqn: String,
    /// Queue id; 0 where it could not be read.
    pub qid: u16,
    /// The host's address.
    pub peer: SocketAddr,
    /// What the host was told.
    pub status: Status,
    /// Which parameter was not valid.
    pub invalid: Option<ConnectInvalid>,
}

/// Most refusals that wait to be asked about.
const REFUSALS_MAX: usize = 16;

impl Refusal {
    /// Why, in words for the log.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        if self.status.same_code(Status::CONNECT_INVALID_HOST) {
            return "the host is not allowed";
        }
        if self.status.same_code(Status::CONTROLLER_BUSY) {
            return "a limit of controllers or queues is reached, or it is being stopped";
        }
        if self.status.same_code(Status::KATO_INVALID) {
            return "its keep-alive timeout is not possible";
        }
        if self.status.same_code(Status::COMMAND_SEQUENCE_ERROR) {
            return "its queue is still in use";
        }
        match self.invalid {
            Some(ConnectInvalid::SUBNQN) => "there is no such subsystem",
            Some(ConnectInvalid::HOSTNQN) => "its host NQN is not possible",
            Some(ConnectInvalid::HOSTID) => "its host identifier is not possible",
            Some(ConnectInvalid::CNTLID) => "there is no such controller of this host",
            Some(ConnectInvalid::QID) => "there is no room for such a queue",
            Some(ConnectInvalid::SQSIZE) => "its queue size is not possible",
            _ => "its Connect command is not valid",
        }
    }
}

enum Verdict {
    /// The queue belongs to this controller, new or not.
    Accept(Key),
    Refuse(Status, Option<ConnectInvalid>),
    /// Look again when something has gone; at the deadline this is the answer.
    Hold(Nanos, Status),
}

type Refused = Verdict;

const fn refuse(status: Status, invalid: ConnectInvalid) -> Refused {
    Verdict::Refuse(status, Some(invalid))
}

const INVALID: Status = Status::CONNECT_INVALID_PARAMETERS;
const BUSY: Verdict = Verdict::Refuse(Status::CONTROLLER_BUSY, None);

impl Target {
    /// Connect's data is here: the owner is asked where it belongs.
    pub(super) fn connect_data(&mut self, now: Nanos, id: Key, slot: SlotId, data: &[u8]) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        let Some(sqe) = connection.slots.get(slot).map(|slot| slot.sqe) else {
            return;
        };
        let decoded = match data.first_chunk::<{ ConnectData::SIZE }>() {
            Some(bytes) => ConnectData::decode(bytes),
            None => return connection.respond(now, slot, Status::INVALID_FIELD.dnr(), 0),
        };
        match decoded {
            Ok(data) => {
                let subnqn = data.subnqn.as_str().to_owned();
                let command = Connect::decode(&sqe);
                connection.connect = Some(Box::new(ConnectRequest {
                    slot,
                    command,
                    data,
                    subnqn,
                    arrived: now,
                }));
                connection.state = State::Routing;
                connection.push(Pending::Route);
            }
            Err(invalid) => {
                connection.respond(now, slot, INVALID.dnr(), invalid.encode());
                let peer = connection.path.peer;
                self.tell_refused(Refusal {
                    hostnqn: String::new(),
                    subnqn: String::new(),
                    qid: 0,
                    peer,
                    status: INVALID.dnr(),
                    invalid: Some(invalid),
                });
            }
        }
    }

    /// Answers Connect, now or when what is in its way has gone.
    pub(super) fn connect(&mut self, now: Nanos, id: Key) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        let Some(request) = connection.connect.take() else {
            return;
        };
        let host = self.admission.host(&request.data.hostnqn);
        let verdict = if self.admission.queues(host) >= self.config.queues_per_host_max {
            // Others have a right to what is left.
            BUSY
        } else if request.command.qid.is_admin() {
            self.connect_admin(now, id, &request)
        } else {
            self.connect_io(now, id, &request)
        };
        match verdict {
            Verdict::Accept(controller) => self.connected(now, id, &request, controller),
            Verdict::Refuse(status, invalid) => self.refused(now, id, &request, status, invalid),
            Verdict::Hold(until, status) => self.hold(now, id, request, until, status),
        }
        self.touch(id);
    }

    fn hold(
        &mut self,
        now: Nanos,
        id: Key,
        request: Box<ConnectRequest>,
        until: Nanos,
        status: Status,
    ) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        let until = match (connection.state, connection.deadline) {
            (State::HeldConnect, Some(earlier)) => earlier,
            _ => until,
        };
        if until <= now {
            return self.refused(now, id, &request, status, None);
        }
        connection.state = State::HeldConnect;
        connection.deadline = Some(until);
        connection.connect = Some(request);
        if !self.held.contains(&id) {
            self.held.push(id);
        }
        self.arm_connection(id);
    }

    /// Looks at every held Connect again; what it waited for may have gone.
    pub(super) fn retry_held(&mut self, now: Nanos) {
        for id in std::mem::take(&mut self.held) {
            let held = |state| state == State::HeldConnect;
            if self
                .connections
                .get(id)
                .is_some_and(|connection| held(connection.state))
            {
                self.connect(now, id);
            }
        }
    }

    /// The host may try again for as long as it had left: refusals win no time.
    fn refused(
        &mut self,
        now: Nanos,
        id: Key,
        request: &ConnectRequest,
        status: Status,
        invalid: Option<ConnectInvalid>,
    ) {
        let stopping = self.stopping.is_some();
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        connection.state = State::AwaitConnect;
        connection.connect_by = connection.connect_by.after(now - request.arrived);
        connection.deadline = Some(connection.connect_by);
        let result = invalid.map_or(0, |invalid| invalid.encode());
        connection.respond(now, request.slot, status, result);
        if stopping {
            connection.drain();
        }
        let peer = connection.path.peer;
        self.arm_connection(id);
        self.tell_refused(Refusal {
            hostnqn: request.data.hostnqn.as_str().to_owned(),
            subnqn: request.subnqn.clone(),
            qid: request.command.qid.0,
            peer,
            status,
            invalid,
        });
    }

    fn tell_refused(&mut self, refusal: Refusal) {
        self.counters.connects_refused += 1;
        if self.refusals.len() < REFUSALS_MAX {
            self.refusals.push_back(refusal);
        }
    }

    /// The next Connect that was refused; those that nobody asks about are only counted beyond a
    /// limit.
    pub fn poll_refusal(&mut self) -> Option<Refusal> {
        self.refusals.pop_front()
    }

    fn connect_admin(&mut self, now: Nanos, id: Key, request: &ConnectRequest) -> Verdict {
        let (command, data) = (&request.command, &request.data);
        if self.stopping.is_some() {
            return BUSY;
        }
        if let Some(refused) = check_entries(command, self.config.admin_queue_entries_max) {
            return refused;
        }
        let Some(path) = self.connections.get(id).map(|connection| connection.path) else {
            return BUSY;
        };
        let Some(kato) = kato(command.kato_ms) else {
            return Verdict::Refuse(Status::KATO_INVALID.dnr(), None);
        };
        let is_discovery = self.config.is_discovery(data.subnqn.as_str());
        let subsystem = self.find_subsystem(data.subnqn.as_str());
        if subsystem.is_none() && !is_discovery {
            return refuse(INVALID, ConnectInvalid::SUBNQN);
        }
        let allowed = subsystem
            .and_then(|at| self.subsystems.get(at)?.as_ref())
            .is_none_or(|subsystem| subsystem.allows(data.hostnqn.as_str(), path.listener));
        if !allowed {
            return refuse(Status::CONNECT_INVALID_HOST, ConnectInvalid::HOSTNQN);
        }
        // Only the dynamic controller model: a host cannot choose. [FABRICS-1.1 §4.1]
        if data.cntlid != ControllerId::DYNAMIC {
            return refuse(INVALID.dnr(), ConnectInvalid::CNTLID);
        }
        let fenced = self
            .ended
            .iter()
            .filter_map(|&key| self.controllers.get(key))
            .any(|controller| controller.fences(&data.subnqn, &data.hostnqn, &data.hostid));
        if fenced {
            let until = now.after(self.config.deadlines.connect);
            return Verdict::Hold(until, Status::CONTROLLER_BUSY);
        }
        self.new_controller(now, id, request, subsystem, kato)
            .map_or(BUSY, Verdict::Accept)
    }

    fn new_controller(
        &mut self,
        now: Nanos,
        admin: Key,
        request: &ConnectRequest,
        subsystem: Option<usize>,
        kato: Nanos,
    ) -> Option<Key> {
        let cntlid = self.allocate_cntlid(subsystem)?;
        let data = &request.data;
        let kind = if subsystem.is_some() {
            Kind::Io
        } else {
            Kind::Discovery
        };
        let volatile_cache = subsystem
            .and_then(|at| self.subsystems.get(at)?.as_ref())
            .is_some_and(|subsystem| subsystem.namespaces.any_volatile_cache());
        let ana = subsystem.and_then(|at| self.subsystems.get(at)?.as_ref()?.ana.as_ref());
        let ana_changes = ana.map(|ana| ana.changes);
        let new = NewController {
            cntlid,
            kind,
            subsystem,
            subnqn: data.subnqn,
            hostnqn: data.hostnqn,
            hostid: data.hostid,
            admin,
            kato,
            io_queues: self.config.io_queues_max,
            volatile_cache,
            ana_changes,
        };
        let association_by = now.after(self.config.deadlines.association);
        let discovery = (kind == Kind::Discovery).then(|| Snapshot::new(&self.discovery));
        let mut controller = Controller::new(now, new);
        controller.association_by = Some(association_by);
        controller.discovery = discovery;
        let key = self.controllers.insert(Box::new(controller))?;
        self.by_cntlid.insert((subsystem, cntlid), key);
        if let Some(Some(subsystem)) = subsystem.and_then(|at| self.subsystems.get_mut(at)) {
            subsystem.controllers.push(key);
        }
        self.arm_controller(key);
        Some(key)
    }

    fn allocate_cntlid(&mut self, subsystem: Option<usize>) -> Option<u16> {
        let by_cntlid = &self.by_cntlid;
        let in_use = |cntlid| by_cntlid.contains_key(&(subsystem, cntlid));
        let Some(at) = subsystem else {
            return self.discovery_cntlids.allocate(in_use);
        };
        let subsystem = self.subsystems.get_mut(at)?.as_mut()?;
        let room = subsystem.controllers.len() < usize::from(subsystem.config.controllers_max);
        room.then(|| subsystem.cntlids.allocate(in_use)).flatten()
    }

    fn connect_io(&self, now: Nanos, id: Key, request: &ConnectRequest) -> Verdict {
        let (command, data) = (&request.command, &request.data);
        let owns = |controller: &Controller| {
            controller.cntlid == data.cntlid.0
                && controller.subnqn == data.subnqn
                && controller.hostnqn == data.hostnqn
                && controller.hostid == data.hostid
                && controller.phase != Phase::Ended
        };
        if self.stopping.is_some() {
            return BUSY;
        }
        let subsystem = self.find_subsystem(data.subnqn.as_str());
        let key = self.by_cntlid.get(&(subsystem, data.cntlid.0)).copied();
        let found = key.and_then(|key| Some((key, self.controllers.get(key)?)));
        let Some((key, controller)) = found.filter(|(_, controller)| owns(controller)) else {
            return refuse(INVALID, ConnectInvalid::CNTLID);
        };
        if controller.kind == Kind::Discovery || command.qid.0 > controller.features.io_queues {
            return refuse(INVALID.dnr(), ConnectInvalid::QID);
        }
        // A path is one port: what ANA says of it holds for all queues of the controller.
        let port = |key| self.connections.get(key).map(|it| it.path.listener);
        if controller.ana && port(id) != port(controller.admin) {
            return refuse(INVALID.dnr(), ConnectInvalid::QID);
        }
        if !controller.is_enabled() {
            return refuse(INVALID, ConnectInvalid::QID);
        }
        if let Some(refused) = check_entries(command, self.config.io_queue_entries_max) {
            return refused;
        }
        // After a fast reconnect the old queue may be gone in a moment.
        if controller
            .queues
            .iter()
            .any(|&(qid, _)| qid == command.qid.0)
        {
            let until = now.after(self.config.deadlines.queue_id);
            return Verdict::Hold(until, Status::COMMAND_SEQUENCE_ERROR);
        }
        Verdict::Accept(key)
    }

    /// The one place where a queue comes to life. Authentication would begin here.
    fn connected(&mut self, now: Nanos, id: Key, request: &ConnectRequest, key: Key) {
        let Some(controller) = self.controllers.get_mut(key) else {
            return;
        };
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        // Checked against the limit, which is below 65536.
        let entries = u16::try_from(request.command.entries()).unwrap_or(u16::MAX);
        let qid = request.command.qid.0;
        let host = self.admission.host(&request.data.hostnqn);
        self.admission.associated(connection.path.peer.ip(), host);
        connection.queue = Some(Queue {
            controller: key,
            host,
            qid,
            entries,
            // Connect itself was the first entry.
            sq_head: 1 % entries,
            flow_control: !request.command.disables_sq_flow_control(),
        });
        connection.state = State::Ready;
        connection.deadline = None;
        connection.last_command = now;
        let is_admin = qid == 0;
        connection.grow(entries.saturating_add(slot::SLACK + u16::from(is_admin)));
        if is_admin {
            controller.flush_slot = connection.slots.reserve(now);
        } else {
            controller.queues.push((qid, id));
        }
        let result = ConnectResult {
            cntlid: ControllerId(controller.cntlid),
            authentication_required: false,
            secure_channel_required: false,
        };
        connection.respond(now, request.slot, Status::SUCCESS, result.encode());
        self.counters.connects_accepted += 1;
    }
}

/// SQSIZE must not be 0 and fit the limit.
fn check_entries(command: &Connect, entries_max: u16) -> Option<Refused> {
    let fits = (2..=u32::from(entries_max)).contains(&command.entries());
    (!fits).then_some(refuse(INVALID.dnr(), ConnectInvalid::SQSIZE))
}
