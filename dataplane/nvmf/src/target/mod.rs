//! The controller side of NVMe/TCP: subsystems, controllers, and the connections to them.
//!
//! One [`Target`] serves one reactor. Its owner, the glue, has the sockets, buffers, devices, and
//! the clock:
//!
//! 1. [`Target::open`] for an accepted socket; then [`Target::rx`] says what to do with the
//!    stream: [`handle_bytes`](Target::handle_bytes), [`handle_payload`](Target::handle_payload),
//!    or nothing for now.
//! 2. After anything was handled, [`poll_dirty`](Target::poll_dirty) names the connections with
//!    something to do, and [`poll_output`](Target::poll_output) says what, until `None`. A
//!    connection whose `rx` was `Hold` turns dirty when it may go on.
//! 3. Outputs are answered by [`handle_buffer`](Target::handle_buffer), [`fill`](Target::fill),
//!    [`inspect`](Target::inspect), [`complete`](Target::complete), [`resume`](Target::resume),
//!    [`withdrawn`](Target::withdrawn).
//! 4. [`closed`](Target::closed) when the socket is gone, for whatever reason, `Close` included.
//!    The glue then drops the buffers of all the connection's slots but those at their device;
//!    these are still to be completed with the same id.
//! 5. [`poll_store`](Target::poll_store) asks for reservations to be made durable, which
//!    [`handle_stored`](Target::handle_stored) answers.
//! 6. [`poll_timeout`](Target::poll_timeout) says when [`handle_timeout`](Target::handle_timeout)
//!    is due; then [`poll_expiry`](Target::poll_expiry) names the hosts it gave up.
//!    [`poll_refusal`](Target::poll_refusal) names those whose Connect was refused.
//!
//! Nothing is allocated for a command: slots, outputs, and event requests have their maximum
//! from Connect on. Calls with a stale id, or that nobody asked for, have no effect.

mod abort;
mod admin;
mod admission;
mod allocation;
mod ana;
mod async_event;
mod at_once;
mod command;
mod config;
mod connect;
mod connection;
mod controller;
mod discovery;
mod error_log;
mod feature;
mod fused;
mod gate;
mod health;
mod identify;
mod identity;
mod io;
mod lifecycle;
mod log_page;
mod namespace;
mod output;
mod part;
mod property;
mod receive;
mod reservation;
mod slot;
mod snapshot;
mod subsystem;
mod table;
mod timer;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bowline_nvme::{Nanos, Status};

pub use allocation::{Allocation, AllocationSource, SPARE_THRESHOLD_PERCENT};
pub use at_once::{Accepted, Answer, AtOnce};
pub use bowline_nvme::log::AnaState;
pub use config::{
    ANA_GROUPS_MAX, AnaConfig, CNTLID_MAX, ConfigError, Deadlines, Deallocate, Hosts, NSID_MAX,
    NamespaceConfig, NsGeometry, Path, SubsystemConfig, TargetConfig, pad,
};
pub use connect::Refusal;
pub use connection::ConnectionCounters;
pub use controller::{Expiry, ExpiryReason};
pub use discovery::{DiscoveryKind, DiscoveryRecord, DiscoveryTable};
pub use health::{HealthTotals, IoCounters};
pub use lifecycle::Handoff;
pub use output::{ConnId, IoCommand, IoOp, NamespaceHandle, Output, Rx, SlotId, TxPdu};
pub use reservation::{
    IMAGE_BYTES_MAX, Persistence, REGISTRANTS_MAX, Registrant, Reservation, ReservationState,
    ReservationStateError, StoreId, StoreRequest,
};
pub use snapshot::{
    AnaGroupSnapshot, AnaSnapshot, ConnectionSnapshot, ConnectionState, ControllerSnapshot,
    NamespaceSnapshot, QueueSnapshot, SubsystemSnapshot, TargetCounters,
};

use admission::Admission;
use async_event::Event;
use connection::Connection;
use controller::Controller;
use gate::Gate;
use identity::Identities;
use reservation::Stores;
use slot::Stage;
use subsystem::{ControllerIds, Subsystem};
use table::{Key, Table};
use timer::Timers;

/// Subsystems and the connections to them, on one reactor. See the module for how it is driven.
#[derive(Debug)]
pub struct Target {
    config: TargetConfig,
    connections: Table<Connection>,
    controllers: Table<Controller>,
    /// Places are reused only when the last controller of a removed subsystem has gone.
    subsystems: Vec<Option<Subsystem>>,
    /// Where each subsystem is, those that only drain not included.
    by_nqn: HashMap<String, usize>,
    identities: Identities,
    /// Controllers by subsystem (`None`: discovery) and controller id, until the last has gone.
    by_cntlid: HashMap<(Option<usize>, u16), Key>,
    /// Controllers whose association is over and whose last command has not left its device.
    ended: Vec<Key>,
    admission: Admission,
    discovery: Arc<DiscoveryTable>,
    discovery_cntlids: ControllerIds,
    /// Connections with outputs, or that may read again.
    dirty: VecDeque<Key>,
    /// Connections whose Connect waits.
    held: Vec<Key>,
    timers: Timers,
    /// Associations that expired, for the owner to hear of.
    expiries: VecDeque<Expiry>,
    /// Connects that were refused, for the owner to hear of.
    refusals: VecDeque<Refusal>,
    /// Reservations on their way to the owner's store.
    stores: Stores,
    /// When a graceful stop becomes less graceful.
    stopping: Option<Nanos>,
    counters: TargetCounters,
    random: u64,
}

impl Target {
    /// A target without subsystems. It answers discovery.
    #[must_use]
    pub fn new(config: TargetConfig) -> Self {
        let config = config.clamped();
        let mut random = config.seed;
        let discovery_cntlids = ControllerIds::new((1, CNTLID_MAX), split_mix(&mut random));
        Self {
            config,
            connections: Table::new(),
            controllers: Table::new(),
            subsystems: Vec::new(),
            by_nqn: HashMap::new(),
            identities: Identities::default(),
            by_cntlid: HashMap::new(),
            ended: Vec::new(),
            admission: Admission::default(),
            discovery: Arc::default(),
            discovery_cntlids,
            dirty: VecDeque::new(),
            held: Vec::new(),
            timers: Timers::default(),
            expiries: VecDeque::new(),
            refusals: VecDeque::new(),
            stores: Stores::default(),
            stopping: None,
            counters: TargetCounters::default(),
            random,
        }
    }

    /// The limits in force, after clamping.
    #[must_use]
    pub fn config(&self) -> &TargetConfig {
        &self.config
    }

    /// Adds a subsystem, without namespaces.
    ///
    /// # Errors
    /// The configuration is not valid, or the NQN is in use.
    pub fn add_subsystem(
        &mut self,
        now: Nanos,
        config: SubsystemConfig,
    ) -> Result<(), ConfigError> {
        config.check(self.config.mdts_bytes)?;
        if self.config.is_discovery(&config.nqn) || self.find_subsystem(&config.nqn).is_some() {
            return Err(ConfigError::SubsystemExists);
        }
        let subsystem = Subsystem::new(now, config, split_mix(&mut self.random));
        let vacant = self.subsystems.iter().position(Option::is_none);
        let at = vacant.unwrap_or(self.subsystems.len());
        self.by_nqn.insert(subsystem.config.nqn.clone(), at);
        match self.subsystems.get_mut(at) {
            Some(place) => *place = Some(subsystem),
            None => self.subsystems.push(Some(subsystem)),
        }
        Ok(())
    }

    /// Removes a subsystem; its controllers end, commands at devices still complete.
    ///
    /// # Errors
    /// There is no such subsystem.
    pub fn remove_subsystem(&mut self, now: Nanos, nqn: &str) -> Result<(), ConfigError> {
        let at = self.find_subsystem(nqn).ok_or(ConfigError::NoSubsystem)?;
        let Some(Some(subsystem)) = self.subsystems.get_mut(at) else {
            return Err(ConfigError::NoSubsystem);
        };
        subsystem.removed = true;
        self.by_nqn.remove(nqn);
        for namespace in subsystem.namespaces.iter() {
            self.identities.give_back(namespace.uuid, namespace.nguid);
        }
        let controllers = subsystem.controllers.clone();
        if controllers.is_empty() {
            self.subsystems[at] = None;
        }
        controllers.into_iter().for_each(|key| self.end(now, key));
        Ok(())
    }

    /// Adds a namespace and tells the hosts.
    ///
    /// # Errors
    /// The NSID is taken or too high, the geometry impossible, or the identity not unique.
    pub fn add_namespace(
        &mut self,
        now: Nanos,
        nqn: &str,
        config: NamespaceConfig,
    ) -> Result<u32, ConfigError> {
        let at = self.find_subsystem(nqn).ok_or(ConfigError::NoSubsystem)?;
        let (uuid, nguid) = (config.uuid, config.nguid);
        if !self.identities.are_free(uuid, nguid) {
            return Err(ConfigError::NamespaceIdentity);
        }
        let subsystem = self.subsystem_mut(at)?;
        subsystem.check_group(config.ana_group)?;
        let group = config.ana_group;
        let nsid = subsystem.namespaces.add(config)?;
        subsystem.join_group(nsid, group);
        self.identities.take(uuid, nguid);
        self.namespace_changed(now, at, nsid);
        Ok(nsid)
    }

    /// Takes a namespace's new geometry: it has grown, or its promises have changed.
    ///
    /// # Errors
    /// There is no such namespace, or it would shrink or change its block size.
    pub fn update_namespace(
        &mut self,
        now: Nanos,
        nqn: &str,
        nsid: u32,
        geometry: NsGeometry,
    ) -> Result<(), ConfigError> {
        let at = self.find_subsystem(nqn).ok_or(ConfigError::NoSubsystem)?;
        let namespaces = &mut self.subsystem_mut(at)?.namespaces;
        let old = namespaces.set_geometry(nsid, geometry)?;
        // Allocation changes all the time and is no news.
        if old
            != (NsGeometry {
                used_blocks: old.used_blocks,
                ..geometry
            })
        {
            self.namespace_changed(now, at, nsid);
        }
        Ok(())
    }

    /// Removes a namespace and tells the hosts. Commands that have not reached its device fail;
    /// the glue keeps the device until those that have are complete.
    ///
    /// # Errors
    /// There is no such namespace.
    pub fn remove_namespace(
        &mut self,
        now: Nanos,
        nqn: &str,
        nsid: u32,
    ) -> Result<NamespaceHandle, ConfigError> {
        let at = self.find_subsystem(nqn).ok_or(ConfigError::NoSubsystem)?;
        let subsystem = self.subsystem_mut(at)?;
        let namespace = subsystem
            .namespaces
            .remove(nsid)
            .ok_or(ConfigError::NoNamespace)?;
        if let Some(ana) = &mut subsystem.ana {
            ana.leave(namespace.ana_group, nsid);
        }
        let (gone, handle) = (Status::INVALID_NAMESPACE.dnr(), namespace.handle);
        for key in self.controllers_of_subsystem(at) {
            self.fail_queued(now, key, gone, |command| command.namespace == handle);
            // The mask was for this namespace, not for the next that gets its NSID.
            if let Some(controller) = self.controllers.get_mut(key) {
                controller.notices.set_mask(nsid, 0);
            }
        }
        self.identities.give_back(namespace.uuid, namespace.nguid);
        self.drop_reservations(now, at, namespace);
        self.namespace_changed(now, at, nsid);
        Ok(handle)
    }

    /// Lets a host connect.
    ///
    /// # Errors
    /// There is no such subsystem, or the name is not an NQN.
    pub fn allow_host(&mut self, nqn: &str, hostnqn: &str) -> Result<(), ConfigError> {
        config::check_host(hostnqn)?;
        let at = self.find_subsystem(nqn).ok_or(ConfigError::NoSubsystem)?;
        if let Hosts::Only(hosts) = &mut self.subsystem_mut(at)?.config.hosts
            && !hosts.iter().any(|host| host == hostnqn)
        {
            hosts.push(hostnqn.to_owned());
        }
        Ok(())
    }

    /// Takes a host off the list and ends its controllers. Without effect where any host is
    /// allowed: see [`Target::set_hosts`].
    ///
    /// # Errors
    /// There is no such subsystem.
    pub fn disallow_host(
        &mut self,
        now: Nanos,
        nqn: &str,
        hostnqn: &str,
    ) -> Result<(), ConfigError> {
        let at = self.find_subsystem(nqn).ok_or(ConfigError::NoSubsystem)?;
        let Hosts::Only(hosts) = self.subsystem_mut(at)?.config.hosts.clone() else {
            return Ok(());
        };
        let left = hosts.into_iter().filter(|host| host != hostnqn).collect();
        self.set_hosts(now, nqn, Hosts::Only(left))
    }

    /// Lets every host connect.
    ///
    /// # Errors
    /// There is no such subsystem.
    pub fn allow_any(&mut self, nqn: &str) -> Result<(), ConfigError> {
        let at = self.find_subsystem(nqn).ok_or(ConfigError::NoSubsystem)?;
        self.subsystem_mut(at)?.config.hosts = Hosts::Any;
        Ok(())
    }

    /// Replaces the hosts that may connect; the controllers of others end.
    ///
    /// # Errors
    /// There is no such subsystem, or a name is not an NQN.
    pub fn set_hosts(&mut self, now: Nanos, nqn: &str, hosts: Hosts) -> Result<(), ConfigError> {
        if let Hosts::Only(hosts) = &hosts {
            hosts.iter().try_for_each(|host| config::check_host(host))?;
        }
        let at = self.find_subsystem(nqn).ok_or(ConfigError::NoSubsystem)?;
        let subsystem = self.subsystem_mut(at)?;
        subsystem.config.hosts = hosts.clone();
        for key in subsystem.controllers.clone() {
            let hostnqn = self
                .controllers
                .get(key)
                .map(|controller| controller.hostnqn);
            if hostnqn.is_some_and(|hostnqn| !hosts.allows(hostnqn.as_str())) {
                self.end(now, key);
            }
        }
        Ok(())
    }

    /// Takes the next version of the discovery table; hosts that see a difference and wanted to
    /// know are told.
    pub fn set_discovery(&mut self, now: Nanos, table: Arc<DiscoveryTable>) {
        let old = std::mem::replace(&mut self.discovery, Arc::clone(&table));
        for key in self.controllers.keys() {
            let Some(controller) = self.controllers.get_mut(key) else {
                continue;
            };
            let Some(snapshot) = &mut controller.discovery else {
                continue;
            };
            snapshot.expire(&table);
            let Some(admin) = self.connections.get(controller.admin) else {
                continue;
            };
            let (hostnqn, local) = (controller.hostnqn.as_str(), admin.path.local.ip());
            if old.generation(hostnqn, local) != table.generation(hostnqn, local) {
                self.raise(now, key, Event::DiscoveryChanged);
            }
        }
    }

    /// What a subsystem has been through, for [`SubsystemConfig::health`] at its next start.
    ///
    /// # Errors
    /// There is no such subsystem.
    pub fn health(&self, now: Nanos, nqn: &str) -> Result<HealthTotals, ConfigError> {
        self.find_subsystem(nqn)
            .and_then(|at| self.subsystems.get(at)?.as_ref())
            .map(|subsystem| subsystem.health.totals(now))
            .ok_or(ConfigError::NoSubsystem)
    }

    fn gate(&self) -> Gate<'_> {
        Gate {
            config: &self.config,
            controllers: &self.controllers,
            subsystems: &self.subsystems,
        }
    }

    fn find_subsystem(&self, nqn: &str) -> Option<usize> {
        self.by_nqn.get(nqn).copied()
    }

    fn subsystem_mut(&mut self, at: usize) -> Result<&mut Subsystem, ConfigError> {
        self.subsystems
            .get_mut(at)
            .and_then(Option::as_mut)
            .ok_or(ConfigError::NoSubsystem)
    }

    /// Tells every controller of a subsystem that a namespace has changed. One that has come or
    /// gone changes the ANA log too, of which this event is to tell alone. [BASE-2.0 §5.2.1]
    fn namespace_changed(&mut self, now: Nanos, at: usize, nsid: u32) {
        for key in self.controllers_of_subsystem(at) {
            if let Some(controller) = self.controllers.get_mut(key) {
                controller.changed.add(nsid);
            }
            self.raise(now, key, Event::NamespaceChanged);
        }
    }

    fn controllers_of_subsystem(&self, at: usize) -> Vec<Key> {
        let subsystem = self.subsystems.get(at).and_then(Option::as_ref);
        subsystem
            .map(|subsystem| subsystem.controllers.clone())
            .unwrap_or_default()
    }

    /// Answers those commands of a controller's I/O queues whose Execute has not been polled, and
    /// which therefore have not happened, and the Reads that wait between two parts.
    fn fail_queued(
        &mut self,
        now: Nanos,
        key: Key,
        status: Status,
        concerns: impl Fn(&IoCommand) -> bool,
    ) {
        let Some(controller) = self.controllers.get(key) else {
            return;
        };
        let queues: Vec<Key> = controller.queues.iter().map(|&(_, queue)| queue).collect();
        for queue in queues {
            let Some(connection) = self.connections.get(queue) else {
                continue;
            };
            let queued: Vec<SlotId> = connection
                .slots
                .iter()
                .filter(|(_, it)| it.stage == Stage::Queued || it.is_between_parts())
                .filter(|(_, it)| concerns(&it.command))
                .map(|(slot, _)| slot)
                .collect();
            for slot in queued {
                self.fail_one_queued(now, queue, slot, status);
            }
            self.touch(queue);
        }
    }

    /// Answers a command of which nothing, or no further part, has been handed out; half of a pair
    /// takes the other with it.
    fn fail_one_queued(&mut self, now: Nanos, queue: Key, slot: SlotId, status: Status) {
        let connection = self.connections.get_mut(queue);
        let Some(command) = connection.and_then(|it| it.slots.get_mut(slot)) else {
            return;
        };
        if command.stage == Stage::Queued {
            self.end_early(now, queue, slot, status);
        } else if command.is_between_parts() {
            self.respond(now, queue, slot, status, 0);
        }
    }

    /// Puts a connection that has something to do on the list, once.
    fn touch(&mut self, id: Key) {
        if let Some(connection) = self.connections.get_mut(id) {
            connection.touch(id, &mut self.dirty);
        }
    }
}

/// SplitMix64: a seed in, well-mixed numbers out. Nothing secret depends on them.
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
