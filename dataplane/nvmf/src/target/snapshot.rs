//! What operators see of a target: values, taken at one moment.

use std::net::SocketAddr;

use bowline_nvme::Nanos;
use bowline_nvme::log::AnaState;

use super::Target;
use super::ana::{Ana, Group};
use super::config::{AnaConfig, Hosts, NsGeometry};
use super::connection::{Connection, ConnectionCounters, State};
use super::controller::{Controller, Kind};
use super::health::IoCounters;
use super::output::{ConnId, NamespaceHandle};
use super::reservation::ReservationState;
use super::table::Key;

/// Counts over the target's life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TargetCounters {
    /// Connections taken.
    pub connections_opened: u64,
    /// Connections not taken: a limit was reached.
    pub connections_refused: u64,
    /// Connect commands that made a queue.
    pub connects_accepted: u64,
    /// Connect commands refused.
    pub connects_refused: u64,
    /// Connections ended by a C2HTermReq.
    pub terminated_by_us: u64,
    /// Connections ended by an H2CTermReq.
    pub terminated_by_host: u64,
    /// Connections closed, and associations ended, because nothing happened for too long.
    pub timed_out: u64,
    /// Associations ended because the host was silent.
    pub keep_alive_expired: u64,
    /// Preempt and Preempt and Abort commands that took effect.
    pub reservation_preemptions: u64,
}

/// A subsystem and all that belongs to it.
#[derive(Clone, Debug)]
pub struct SubsystemSnapshot {
    /// Subsystem NQN.
    pub nqn: String,
    /// Serial number, padded.
    pub serial: [u8; 20],
    /// Who may connect.
    pub hosts: Hosts,
    /// Highest NSID possible.
    pub namespaces_max: u32,
    /// By ascending NSID.
    pub namespaces: Vec<NamespaceSnapshot>,
    /// Asymmetric Namespace Access, if the subsystem reports it.
    pub ana: Option<AnaSnapshot>,
    /// Controllers, those that only drain included.
    pub controllers: Vec<ControllerSnapshot>,
}

/// The ANA groups of a subsystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnaSnapshot {
    /// How it is reported.
    pub config: AnaConfig,
    /// Changes of the log, since the subsystem is there.
    pub changes: u64,
    /// Groups that were ever named, by ascending id.
    pub groups: Vec<AnaGroupSnapshot>,
}

/// An ANA group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnaGroupSnapshot {
    /// Group id.
    pub id: u32,
    /// How its namespaces are reached through this target.
    pub state: AnaState,
    /// Changes of the state and of who belongs to it.
    pub changes: u64,
    /// Its namespaces, ascending.
    pub nsids: Vec<u32>,
}

/// A namespace.
#[derive(Clone, Debug)]
pub struct NamespaceSnapshot {
    /// Namespace id.
    pub nsid: u32,
    /// The glue's index of the device.
    pub handle: NamespaceHandle,
    /// Layout and promises.
    pub geometry: NsGeometry,
    /// UUID.
    pub uuid: [u8; 16],
    /// NGUID.
    pub nguid: [u8; 16],
    /// ANA group; 0 without ANA.
    pub ana_group: u32,
    /// What was done with it, by all hosts.
    pub counters: IoCounters,
    /// Registrants and reservation that are in force.
    pub reservations: ReservationState,
    /// Whether they can outlive the process.
    pub persistent_reservations: bool,
}

/// A controller.
#[derive(Clone, Debug)]
pub struct ControllerSnapshot {
    /// Controller id.
    pub cntlid: u16,
    /// Host NQN.
    pub hostnqn: String,
    /// Host id.
    pub hostid: [u8; 16],
    /// CSTS.RDY, and neither draining nor reset.
    pub ready: bool,
    /// Keep Alive Timeout; zero is none.
    pub kato: Nanos,
    /// I/O queue ids, ascending.
    pub io_queues: Vec<u16>,
    /// Commands at devices.
    pub executing: u32,
    /// What the host did.
    pub counters: IoCounters,
    /// Entries ever made in the error log.
    pub error_log_entries: u64,
    /// When the host connected.
    pub created: Nanos,
    /// When its last command came, on any queue.
    pub last_command: Nanos,
}

/// A connection.
#[derive(Clone, Debug)]
pub struct ConnectionSnapshot {
    /// Its id.
    pub id: ConnId,
    /// The host's address.
    pub peer: SocketAddr,
    /// Our address.
    pub local: SocketAddr,
    /// How far it is.
    pub state: ConnectionState,
    /// Host, subsystem, controller id, and queue id once Connect is done.
    pub queue: Option<QueueSnapshot>,
    /// Header digest in use.
    pub header_digest: bool,
    /// Data digest in use.
    pub data_digest: bool,
    /// Commands not yet answered.
    pub outstanding: u16,
    /// What it did.
    pub counters: ConnectionCounters,
}

/// The queue a connection is.
#[derive(Clone, Debug)]
pub struct QueueSnapshot {
    /// Host NQN.
    pub hostnqn: String,
    /// Subsystem NQN.
    pub subnqn: String,
    /// Controller id.
    pub cntlid: u16,
    /// Queue id; 0 is the admin queue.
    pub qid: u16,
    /// Entries, one-based.
    pub entries: u16,
}

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionState {
    /// Before ICReq or Connect.
    Connecting,
    /// A queue.
    Ready,
    /// On its way out.
    Closing,
}

impl Target {
    /// The subsystems, in the order they were added as far as places were free.
    #[must_use]
    pub fn subsystems(&self) -> Vec<SubsystemSnapshot> {
        self.subsystems_from(0, usize::MAX).0
    }

    /// Those of so many places, and the place that comes next, if there is one: where there are very many,
    /// to copy all of them takes longer than commands should wait.
    #[must_use]
    pub fn subsystems_from(
        &self,
        first: usize,
        places: usize,
    ) -> (Vec<SubsystemSnapshot>, Option<usize>) {
        let end = first.saturating_add(places).min(self.subsystems.len());
        let part = self.subsystems.get(first..end).unwrap_or_default();
        let present = part.iter().flatten().filter(|it| !it.removed);
        let copied = present
            .map(|subsystem| SubsystemSnapshot {
                nqn: subsystem.config.nqn.clone(),
                serial: subsystem.config.serial,
                hosts: subsystem.config.hosts.clone(),
                namespaces_max: subsystem.namespaces.max(),
                namespaces: subsystem
                    .namespaces
                    .iter()
                    .map(|namespace| NamespaceSnapshot {
                        nsid: namespace.nsid,
                        handle: namespace.handle,
                        geometry: namespace.geometry,
                        uuid: namespace.uuid,
                        nguid: namespace.nguid,
                        ana_group: namespace.ana_group,
                        counters: namespace.counters,
                        reservations: namespace.reservations.state().clone(),
                        persistent_reservations: namespace.reservations.persists(),
                    })
                    .collect(),
                ana: subsystem.ana.as_ref().map(ana),
                controllers: self.controllers_of(&subsystem.controllers),
            })
            .collect();
        (copied, (end < self.subsystems.len()).then_some(end))
    }

    /// How many logical blocks a namespace has, as its hosts know it.
    #[must_use]
    pub fn namespace_blocks(&self, nqn: &str, nsid: u32) -> Option<u64> {
        let at = self.find_subsystem(nqn)?;
        let subsystem = self.subsystems.get(at)?.as_ref()?;
        let namespace = subsystem.namespaces.get(nsid)?;
        Some(namespace.geometry.blocks)
    }

    /// How many controllers of hosts a subsystem has, those that only drain included.
    #[must_use]
    pub fn controller_count(&self, nqn: &str) -> usize {
        let at = self.find_subsystem(nqn);
        let subsystem = at.and_then(|at| self.subsystems.get(at)?.as_ref());
        subsystem.map_or(0, |subsystem| subsystem.controllers.len())
    }

    /// The ANA groups of a subsystem, if there is such a one and it reports ANA.
    #[must_use]
    pub fn ana(&self, nqn: &str) -> Option<AnaSnapshot> {
        let at = self.find_subsystem(nqn)?;
        let subsystem = self.subsystems.get(at)?.as_ref()?;
        subsystem.ana.as_ref().map(ana)
    }

    /// The discovery controllers.
    #[must_use]
    pub fn discovery_controllers(&self) -> Vec<ControllerSnapshot> {
        let keys: Vec<Key> = self
            .controllers
            .iter()
            .filter(|(_, controller)| controller.kind == Kind::Discovery)
            .map(|(key, _)| key)
            .collect();
        self.controllers_of(&keys)
    }

    /// The connections.
    #[must_use]
    pub fn connections(&self) -> Vec<ConnectionSnapshot> {
        self.connections
            .iter()
            .map(|(id, connection)| self.connection(id, connection))
            .collect()
    }

    /// Counts over the target's life.
    #[must_use]
    pub fn counters(&self) -> TargetCounters {
        self.counters
    }

    fn controllers_of(&self, keys: &[Key]) -> Vec<ControllerSnapshot> {
        keys.iter()
            .filter_map(|&key| self.controllers.get(key))
            .map(|it| controller(it, self.executing(it), self.last_command(it)))
            .collect()
    }

    /// All its connections that are there, those that only drain included.
    fn queues_of(&self, controller: &Controller) -> impl Iterator<Item = &Connection> {
        let queues = controller.queues.iter().map(|&(_, queue)| queue);
        queues
            .chain([controller.admin])
            .filter_map(|key| self.connections.get(key))
    }

    fn executing(&self, controller: &Controller) -> u32 {
        let each = self.queues_of(controller);
        each.map(|connection| u32::from(connection.executing)).sum()
    }

    fn last_command(&self, controller: &Controller) -> Nanos {
        self.queues_of(controller)
            .map(|connection| connection.last_command)
            .fold(controller.created, Nanos::max)
    }

    fn connection(&self, id: ConnId, connection: &Connection) -> ConnectionSnapshot {
        let queue = connection.queue.and_then(|queue| {
            let controller = self.controllers.get(queue.controller)?;
            Some(QueueSnapshot {
                hostnqn: controller.hostnqn.as_str().to_owned(),
                subnqn: controller.subnqn.as_str().to_owned(),
                cntlid: controller.cntlid,
                qid: queue.qid,
                entries: queue.entries,
            })
        });
        ConnectionSnapshot {
            id,
            peer: connection.path.peer,
            local: connection.path.local,
            state: match connection.state {
                State::AwaitIcReq | State::AwaitConnect | State::Routing | State::HeldConnect => {
                    ConnectionState::Connecting
                }
                State::Ready => ConnectionState::Ready,
                State::Linger | State::Drain | State::Closing | State::Gone => {
                    ConnectionState::Closing
                }
            },
            queue,
            header_digest: connection.digests.header,
            data_digest: connection.digests.data,
            outstanding: connection.slots.busy(),
            counters: connection.counters,
        }
    }
}

fn ana(ana: &Ana) -> AnaSnapshot {
    let group = |group: &Group| AnaGroupSnapshot {
        id: group.id,
        state: group.state,
        changes: group.changes,
        nsids: group.nsids.clone(),
    };
    AnaSnapshot {
        config: ana.config,
        changes: ana.changes,
        groups: ana.groups.iter().map(group).collect(),
    }
}

fn controller(controller: &Controller, executing: u32, last_command: Nanos) -> ControllerSnapshot {
    let mut io_queues: Vec<u16> = controller.queues.iter().map(|&(qid, _)| qid).collect();
    io_queues.sort_unstable();
    ControllerSnapshot {
        cntlid: controller.cntlid,
        hostnqn: controller.hostnqn.as_str().to_owned(),
        hostid: controller.hostid,
        ready: controller.is_enabled(),
        kato: controller.kato,
        io_queues,
        executing,
        counters: controller.health.io,
        error_log_entries: controller.errors.count,
        created: controller.created,
        last_command,
    }
}
