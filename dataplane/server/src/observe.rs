//! What the reactors see at one moment, for lists, statistics and metrics.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use bowline_api::Failure;
use bowline_api::dataplane::v1 as api;
use bowline_block::ClassStats;
use bowline_nvme::Nanos;
use bowline_nvmf::target::{
    ConnectionSnapshot, ConnectionState, ControllerSnapshot, IoCounters, NamespaceSnapshot,
    Registrant, Reservation, SubsystemSnapshot, TargetCounters,
};
use bowline_reactor::{BackendInfo, Counters, monotonic_now};
use bowline_tcp::target::Work;
use uuid::Uuid;

use crate::fleet::{Fleet, Service};
use crate::names::{self, Counted};
use crate::view;

/// Subsystems of a reactor that are looked at in one turn of it.
const SUBSYSTEMS_AT_ONCE: usize = 128;

/// One reactor and what it serves.
#[derive(Debug)]
pub(crate) struct Observation {
    pub(crate) index: usize,
    pub(crate) backend: BackendInfo,
    pub(crate) counters: Counters,
    pub(crate) target: TargetCounters,
    /// What its turns have cost.
    pub(crate) work: Work,
    /// Its buffers by size.
    pub(crate) buffers: Vec<ClassStats>,
    pub(crate) subsystems: Vec<SubsystemSnapshot>,
    pub(crate) connections: Vec<ConnectionSnapshot>,
}

/// Asks one reactor.
pub(crate) async fn reactor(fleet: &Fleet, index: usize) -> Result<Observation, Failure> {
    let (target, work, buffers, connections) = fleet
        .call(index, |service, cx, _| {
            let buffers = cx.pool().stats().classes;
            let work = service.work();
            let target = service.target();
            (target.counters(), work, buffers, target.connections())
        })
        .await?;
    let subsystems = subsystems(fleet, index).await?;
    let member = &fleet.members[index];
    Ok(Observation {
        index,
        backend: member.info.clone(),
        counters: member.counters.snapshot(),
        target,
        work,
        buffers,
        subsystems,
        connections,
    })
}

/// Asks one reactor for its subsystems, bit by bit: hosts do not wait while ten thousand are copied.
async fn subsystems(fleet: &Fleet, index: usize) -> Result<Vec<SubsystemSnapshot>, Failure> {
    let (mut all, mut next) = (Vec::new(), Some(0));
    let mut is_in_parts = false;
    while let Some(first) = next {
        let look = move |service: &mut Service, _: &mut _, _| {
            service.target().subsystems_from(first, SUBSYSTEMS_AT_ONCE)
        };
        let (some, rest) = fleet.call(index, look).await?;
        all.extend(some);
        is_in_parts |= rest.is_some();
        next = rest;
    }
    if is_in_parts {
        // One that was exported anew meanwhile may have been seen at both its places.
        let mut seen = HashSet::with_capacity(all.len());
        all.retain(|it| seen.insert(it.nqn.clone()));
    }
    Ok(all)
}

/// Asks every reactor.
pub(crate) async fn all(fleet: &Fleet) -> Result<Vec<Observation>, Failure> {
    let mut observations = Vec::with_capacity(fleet.members.len());
    for index in 0..fleet.members.len() {
        observations.push(reactor(fleet, index).await?);
    }
    Ok(observations)
}

/// Controllers of the subsystems, each with the key of its place in the list.
pub(crate) fn controllers(observations: &[Observation]) -> Vec<(String, api::Controller)> {
    let mut found: Vec<(String, api::Controller)> = Vec::new();
    for subsystem in observations
        .iter()
        .flat_map(|observation| &observation.subsystems)
    {
        for snapshot in &subsystem.controllers {
            let key = format!("{}\0{:05}", subsystem.nqn, snapshot.cntlid);
            found.push((key, controller(&subsystem.nqn, snapshot)));
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

fn controller(nqn: &str, snapshot: &ControllerSnapshot) -> api::Controller {
    let kato_ms = i64::try_from(snapshot.kato.as_millis()).unwrap_or(i64::MAX);
    api::Controller {
        name: names::controller(nqn, snapshot.cntlid),
        cntlid: i32::from(snapshot.cntlid),
        host_nqn: snapshot.hostnqn.clone(),
        host_id: Uuid::from_bytes(snapshot.hostid).to_string(),
        keep_alive_timeout_ms: kato_ms,
        io_queue_count: view::count(snapshot.io_queues.len()),
        ready: snapshot.ready,
        connect_time: Some(view::timestamp(wall_time(snapshot.created))),
        last_command_time: Some(view::timestamp(wall_time(snapshot.last_command))),
        executing_command_count: i32::try_from(snapshot.executing).unwrap_or(i32::MAX),
        error_log_entry_count: view::bytes(snapshot.error_log_entries),
    }
}

/// Reservations of namespaces that have registrants, each with the key of its place in the list.
pub(crate) fn reservations(observations: &[Observation]) -> Vec<(String, api::Reservations)> {
    let mut found: Vec<(String, api::Reservations)> = Vec::new();
    let subsystems = observations.iter().flat_map(|it| &it.subsystems);
    for subsystem in subsystems {
        let used = subsystem.namespaces.iter();
        for namespace in used.filter(|it| !it.reservations.registrants.is_empty()) {
            let key = format!("{}\0{:010}", subsystem.nqn, namespace.nsid);
            found.push((key, reservations_of(subsystem, namespace)));
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

fn reservations_of(
    subsystem: &SubsystemSnapshot,
    namespace: &NamespaceSnapshot,
) -> api::Reservations {
    let state = &namespace.reservations;
    let registrant = |registrant: &Registrant| {
        let connected = |it: &&ControllerSnapshot| it.hostid == registrant.hostid;
        let host = subsystem.controllers.iter().find(connected);
        let holds = |held: Reservation| held.holder.is_none_or(|it| it == registrant.hostid);
        api::Registrant {
            host_id: Uuid::from_bytes(registrant.hostid).to_string(),
            host_nqn: host.map(|it| it.hostnqn.clone()).unwrap_or_default(),
            holder: state.reservation.is_some_and(holds),
        }
    };
    let rtype = state
        .reservation
        .map(|held| view::reservation_type(held.rtype));
    api::Reservations {
        name: names::reservations(&subsystem.nqn, namespace.nsid),
        generation_count: i64::from(state.generation),
        r#type: rtype.unwrap_or_default().into(),
        registrants: state.registrants.iter().map(registrant).collect(),
        persist_through_power_loss: state.persistent,
        persistence_supported: namespace.persistent_reservations,
    }
}

/// Connections, each with the key of its place in the list.
pub(crate) fn connections(observations: &[Observation]) -> Vec<(String, api::Connection)> {
    let mut found: Vec<(String, api::Connection)> = Vec::new();
    for observation in observations {
        for snapshot in &observation.connections {
            let (index, id) = (observation.index, snapshot.id);
            let key = format!("{index:04}-{:06}-{:010}", id.index, id.generation);
            found.push((key, connection(index, snapshot)));
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

fn connection(reactor: usize, snapshot: &ConnectionSnapshot) -> api::Connection {
    let state = match snapshot.state {
        ConnectionState::Connecting => api::ConnectionState::Connecting,
        ConnectionState::Ready => api::ConnectionState::Ready,
        ConnectionState::Closing => api::ConnectionState::Closing,
    };
    let queue = snapshot.queue.as_ref();
    let text = |address: SocketAddr| address.to_string();
    api::Connection {
        name: format!(
            "connections/{reactor}-{}-{}",
            snapshot.id.index, snapshot.id.generation
        ),
        peer_address: text(snapshot.peer),
        local_address: text(snapshot.local),
        subsystem_nqn: queue.map(|queue| queue.subnqn.clone()).unwrap_or_default(),
        host_nqn: queue.map(|queue| queue.hostnqn.clone()).unwrap_or_default(),
        cntlid: queue.map(|queue| i32::from(queue.cntlid)),
        qid: queue.map(|queue| i32::from(queue.qid)),
        state: state.into(),
        header_digest: snapshot.header_digest,
        data_digest: snapshot.data_digest,
        reactor_index: view::count(reactor),
        outstanding_command_count: i32::from(snapshot.outstanding),
    }
}

/// Sums what is counted of a resource.
pub(crate) fn statistics(observations: &[Observation], counted: Counted<'_>) -> api::Statistics {
    let of_subsystem = |nqn: &str| match counted {
        Counted::DataPlane => true,
        Counted::Subsystem(wanted) | Counted::Namespace(wanted, _) => wanted == nqn,
    };
    let of_namespace = |nsid: u32| match counted {
        Counted::DataPlane | Counted::Subsystem(_) => true,
        Counted::Namespace(_, wanted) => wanted == nsid,
    };
    let mut sum = IoCounters::default();
    let mut connections = 0;
    for observation in observations {
        for subsystem in observation
            .subsystems
            .iter()
            .filter(|it| of_subsystem(&it.nqn))
        {
            for namespace in subsystem
                .namespaces
                .iter()
                .filter(|it| of_namespace(it.nsid))
            {
                add(&mut sum, &namespace.counters);
            }
        }
        let counts = |connection: &&ConnectionSnapshot| match &connection.queue {
            Some(queue) => of_subsystem(&queue.subnqn),
            None => counted == Counted::DataPlane,
        };
        connections += observation.connections.iter().filter(counts).count();
    }
    api::Statistics {
        name: String::new(),
        read_command_count: view::bytes(sum.reads),
        write_command_count: view::bytes(sum.writes),
        other_command_count: view::bytes(sum.others),
        error_command_count: view::bytes(sum.errors),
        media_error_command_count: view::bytes(sum.media_errors),
        read_bytes: view::bytes(sum.read_bytes),
        written_bytes: view::bytes(sum.written_bytes),
        connection_count: view::count(connections),
        observe_time: Some(view::timestamp(SystemTime::now())),
    }
}

fn add(sum: &mut IoCounters, part: &IoCounters) {
    sum.reads += part.reads;
    sum.writes += part.writes;
    sum.read_bytes += part.read_bytes;
    sum.written_bytes += part.written_bytes;
    sum.others += part.others;
    sum.errors += part.errors;
    sum.media_errors += part.media_errors;
}

/// When a moment of the monotonic clock was, by the wall clock of now.
fn wall_time(moment: Nanos) -> SystemTime {
    let age = Duration::from_nanos(monotonic_now().saturating_sub(moment).0);
    SystemTime::now()
        .checked_sub(age)
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use bowline_nvmf::target::{ConnId, QueueSnapshot};

    use super::*;

    fn connection(index: u32, subnqn: Option<&str>) -> ConnectionSnapshot {
        ConnectionSnapshot {
            id: ConnId {
                index,
                generation: 3,
            },
            peer: ([127, 0, 0, 1], 5000).into(),
            local: ([127, 0, 0, 1], 4420).into(),
            state: ConnectionState::Ready,
            queue: subnqn.map(|subnqn| QueueSnapshot {
                hostnqn: "nqn.2014-08.org.nvmexpress:uuid:1".to_owned(),
                subnqn: subnqn.to_owned(),
                cntlid: 7,
                qid: 1,
                entries: 128,
            }),
            header_digest: true,
            data_digest: false,
            outstanding: 2,
            counters: Default::default(),
        }
    }

    fn observation(index: usize, connections: Vec<ConnectionSnapshot>) -> Observation {
        Observation {
            index,
            backend: BackendInfo {
                backend: bowline_reactor::Backend::Epoll,
                features: Vec::new(),
                fallback: None,
            },
            counters: Counters::default(),
            target: TargetCounters::default(),
            work: Work::default(),
            buffers: Vec::new(),
            subsystems: Vec::new(),
            connections,
        }
    }

    #[test]
    fn connections_are_listed_by_reactor_and_place() {
        let first = vec![connection(11, None), connection(2, Some("a"))];
        let observations = [
            observation(0, first),
            observation(1, vec![connection(0, Some("b"))]),
        ];
        let names: Vec<String> = connections(&observations)
            .into_iter()
            .map(|(_, found)| found.name)
            .collect();
        assert_eq!(
            names,
            [
                "connections/0-2-3",
                "connections/0-11-3",
                "connections/1-0-3"
            ]
        );
    }

    #[test]
    fn connections_are_counted_where_they_belong() {
        let all = vec![
            connection(0, None),
            connection(1, Some("a")),
            connection(2, Some("b")),
        ];
        let observations = [observation(0, all)];
        let count = |counted| statistics(&observations, counted).connection_count;
        assert_eq!(count(Counted::DataPlane), 3);
        assert_eq!(count(Counted::Subsystem("a")), 1);
        assert_eq!(count(Counted::Namespace("b", 1)), 1);
        assert_eq!(count(Counted::Subsystem("c")), 0);
    }
}
