//! Asymmetric Namespace Access: groups of namespaces, and how each is reached through this target.
//! [BASE-2.0 §8.1]
//!
//! ```text
//!   ┌────────── any state to any other, whenever the owner says ──────────┐
//!   optimized · non-optimized          inaccessible · persistent loss · change
//!   commands are executed              commands end with a path status, without DNR
//! ```
//!
//! A planned move is two changes of state: the new owner's target becomes optimized, then this
//! one's inaccessible. What has not reached its device by then fails here, and its host repeats it
//! there; what has, finishes. [`Target::ana_executing`] says when nothing is left.

use bowline_nvme::log::{AnaDescriptor, AnaHeader, AnaState};
use bowline_nvme::{NamespaceId, Nanos, Sqe, Status};

use super::async_event::Event;
use super::config::{AnaConfig, ConfigError};
use super::controller::Shutdown;
use super::log_page::Window;
use super::namespace::Namespace;
use super::output::NamespaceHandle;
use super::slot::Stage;
use super::subsystem::Subsystem;
use super::table::Key;
use super::timer::{Armed, TimerKey};
use super::{Target, feature};

const HEADER_BYTES: u64 = 16;
const DESCRIPTOR_BYTES: u64 = 32;
const NSID_BYTES: u64 = 4;

/// The group of a namespace that was added without a word about groups.
pub(super) const DEFAULT_GROUP: u32 = 1;

/// The groups of a subsystem that reports ANA.
#[derive(Debug)]
pub(super) struct Ana {
    pub(super) config: AnaConfig,
    /// Changes of anything that the log shows.
    pub(super) changes: u64,
    /// By ascending id. A group stays: its state may be set before its first namespace comes.
    pub(super) groups: Vec<Group>,
    armed: Armed,
}

/// An ANA group.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) id: u32,
    pub(super) state: AnaState,
    /// When the state Change ends by itself; not looked at in another state.
    change_by: Nanos,
    /// Changes of the state and of who belongs to it. Never 0, which would mean "not counted".
    pub(super) changes: u64,
    /// Ascending.
    pub(super) nsids: Vec<u32>,
}

impl Ana {
    pub(super) fn new(config: AnaConfig) -> Self {
        Self {
            config,
            changes: 0,
            groups: Vec::new(),
            armed: Armed::default(),
        }
    }

    pub(super) fn check(&self, group: u32) -> Result<(), ConfigError> {
        if (1..=self.config.groups_max).contains(&group) {
            Ok(())
        } else {
            Err(ConfigError::AnaGroup)
        }
    }

    fn group(&mut self, id: u32) -> &mut Group {
        let at = match self.groups.binary_search_by_key(&id, |group| group.id) {
            Ok(at) => at,
            Err(at) => {
                let group = Group {
                    id,
                    state: self.config.initial,
                    change_by: Nanos::MAX,
                    changes: 1,
                    nsids: Vec::new(),
                };
                self.groups.insert(at, group);
                at
            }
        };
        &mut self.groups[at]
    }

    /// Adds a namespace to a group, and says how it is reached from now on.
    pub(super) fn join(&mut self, id: u32, nsid: u32) -> AnaState {
        let group = self.group(id);
        if let Err(at) = group.nsids.binary_search(&nsid) {
            group.nsids.insert(at, nsid);
            group.changes += 1;
        }
        let state = group.state;
        self.changes += 1;
        state
    }

    pub(super) fn leave(&mut self, id: u32, nsid: u32) {
        let group = self.group(id);
        if let Ok(at) = group.nsids.binary_search(&nsid) {
            group.nsids.remove(at);
            group.changes += 1;
            self.changes += 1;
        }
    }

    /// Moves a namespace: one change of the log, and one of either group.
    fn relocate(&mut self, from: u32, to: u32, nsid: u32) -> AnaState {
        self.leave(from, nsid);
        self.changes -= 1;
        self.join(to, nsid)
    }

    /// `None` if that is the state already, else the namespaces that are reached in another way.
    fn set_state(&mut self, now: Nanos, id: u32, state: AnaState) -> Option<Vec<u32>> {
        let transition = Nanos::from_secs(u64::from(self.config.transition_seconds));
        let group = self.group(id);
        if group.state == state {
            return None;
        }
        group.state = state;
        group.change_by = now.after(transition);
        group.changes += 1;
        let nsids = group.nsids.clone();
        // The log names only groups that have namespaces.
        self.changes += u64::from(!nsids.is_empty());
        Some(nsids)
    }

    /// The first group in the state Change, and when it must leave it.
    fn transition(&self) -> Option<(Nanos, u32)> {
        let changing = self.groups.iter();
        let changing = changing.filter(|group| group.state == AnaState::Change);
        changing.map(|group| (group.change_by, group.id)).min()
    }

    /// The log that hosts make room for, with all groups and namespaces that there can be. What
    /// there is not is zero. [BASE-2.0 §5.16.1.13]
    pub(super) fn log_bytes_max(config: &AnaConfig, namespaces_max: u32) -> u64 {
        HEADER_BYTES
            + DESCRIPTOR_BYTES * u64::from(config.groups_max)
            + NSID_BYTES * u64::from(namespaces_max)
    }

    /// Writes the log, whose change count began at `base` for this controller.
    pub(super) fn write_log(&self, window: &mut Window<'_>, base: u64, groups_only: bool) {
        let groups = || self.groups.iter().filter(|group| !group.nsids.is_empty());
        let header = AnaHeader {
            chgcnt: self.changes.saturating_sub(base),
            ngrps: u16::try_from(groups().count()).unwrap_or(u16::MAX),
        };
        window.put(0, &header.to_bytes());
        let mut at = HEADER_BYTES;
        for group in groups() {
            let nsids = if groups_only { &[] } else { &group.nsids[..] };
            let descriptor = AnaDescriptor {
                grpid: group.id,
                nnsids: u32::try_from(nsids.len()).unwrap_or(u32::MAX),
                chgcnt: group.changes,
                state: group.state.wire(),
            };
            window.put(at, &descriptor.to_bytes());
            at += DESCRIPTOR_BYTES;
            for (nsid_at, nsid) in window.entries(at, NSID_BYTES, nsids) {
                window.put(nsid_at, &nsid.to_le_bytes());
            }
            at += NSID_BYTES * u64::from(descriptor.nnsids);
        }
    }
}

/// What a command that needs a namespace in this state ends with. Never with DNR: a host that sees
/// it does not try another path. [BASE-2.0 §8.1.3]
pub(super) const fn check_access(state: AnaState) -> Result<(), Status> {
    match state {
        AnaState::Optimized | AnaState::NonOptimized => Ok(()),
        AnaState::Inaccessible => Err(Status::ANA_INACCESSIBLE),
        AnaState::PersistentLoss => Err(Status::ANA_PERSISTENT_LOSS),
        AnaState::Change => Err(Status::ANA_TRANSITION),
    }
}

impl Subsystem {
    /// A namespace has come: it belongs to the group asked for, or to the first.
    pub(super) fn join_group(&mut self, nsid: u32, group: Option<u32>) {
        let (Some(ana), Some(namespace)) = (&mut self.ana, self.namespaces.get_mut(nsid)) else {
            return;
        };
        namespace.ana_group = group.unwrap_or(DEFAULT_GROUP);
        namespace.access = ana.join(namespace.ana_group, nsid);
    }

    /// Whether a namespace may be added to the group.
    pub(super) fn check_group(&self, group: Option<u32>) -> Result<(), ConfigError> {
        match (&self.ana, group) {
            (_, None) => Ok(()),
            (Some(ana), Some(group)) => ana.check(group),
            (None, Some(_)) => Err(ConfigError::NoAna),
        }
    }

    /// Whether a command about a feature of these namespaces can be processed.
    fn check_feature(&self, nsid: NamespaceId) -> Result<(), Status> {
        if nsid == NamespaceId::BROADCAST {
            let mut all = self.namespaces.iter();
            return all.try_for_each(|namespace| check_access(namespace.access));
        }
        let access = self.namespaces.get(nsid.0).map(|it| it.access);
        access.map_or(Ok(()), check_access)
    }
}

fn ana_of(subsystems: &mut [Option<Subsystem>], at: usize) -> Option<&mut Ana> {
    subsystems.get_mut(at)?.as_mut()?.ana.as_mut()
}

impl Target {
    /// Says how the namespaces of a group are reached through this target from now on, and tells
    /// the hosts. In a state without access, commands that are not at their device yet fail with
    /// its status, for the host to repeat elsewhere; [`Target::ana_executing`] says when the others
    /// have finished. What the device still caches, its owner flushes.
    ///
    /// A group that is left in the state [`AnaState::Change`] for longer than
    /// [`transition_seconds`](AnaConfig::transition_seconds) becomes inaccessible: Linux resets a
    /// controller that does not keep its word.
    ///
    /// # Errors
    /// There is no such subsystem, it does not report ANA, or the group id is 0 or too high.
    pub fn set_ana_state(
        &mut self,
        now: Nanos,
        nqn: &str,
        group: u32,
        state: AnaState,
    ) -> Result<(), ConfigError> {
        let at = self.find_subsystem(nqn).ok_or(ConfigError::NoSubsystem)?;
        let subsystem = self.subsystem_mut(at)?;
        let ana = subsystem.ana.as_mut().ok_or(ConfigError::NoAna)?;
        ana.check(group)?;
        if let Some(nsids) = ana.set_state(now, group, state) {
            self.group_changed(now, at, state, &nsids);
        }
        self.arm_transition(at);
        Ok(())
    }

    fn group_changed(&mut self, now: Nanos, at: usize, state: AnaState, nsids: &[u32]) {
        let Some(Some(subsystem)) = self.subsystems.get_mut(at) else {
            return;
        };
        let mut handles = Vec::with_capacity(nsids.len());
        for nsid in nsids {
            if let Some(namespace) = subsystem.namespaces.get_mut(*nsid) {
                namespace.access = state;
                handles.push(namespace.handle);
            }
        }
        if !handles.is_empty() {
            self.ana_changed(now, at, state, handles);
        }
        for nsid in nsids {
            self.fail_waiting(now, (at, *nsid));
        }
    }

    fn arm_transition(&mut self, at: usize) {
        let ana = ana_of(&mut self.subsystems, at);
        if let (Some(ana), Ok(index)) = (ana, u32::try_from(at))
            && let Some((by, _)) = ana.transition()
        {
            let key = TimerKey::AnaTransition(index);
            self.timers.arm(&mut ana.armed, key, by);
        }
    }

    /// A group may have been in the state Change for too long.
    pub(super) fn ana_timeout(&mut self, now: Nanos, index: u32, armed_for: Nanos) {
        let Ok(at) = usize::try_from(index) else {
            return;
        };
        if !ana_of(&mut self.subsystems, at).is_some_and(|ana| ana.armed.fires(armed_for)) {
            return;
        }
        let state = AnaState::Inaccessible;
        while let Some(ana) = ana_of(&mut self.subsystems, at)
            && let Some((_, group)) = ana.transition().filter(|(by, _)| *by <= now)
        {
            let nsids = ana.set_state(now, group, state).unwrap_or_default();
            self.group_changed(now, at, state, &nsids);
        }
        self.arm_transition(at);
    }

    /// Moves a namespace to another group.
    ///
    /// # Errors
    /// There is no such subsystem or namespace, the subsystem does not report ANA, or the group id
    /// is 0 or too high.
    pub fn set_ana_group(
        &mut self,
        now: Nanos,
        nqn: &str,
        nsid: u32,
        group: u32,
    ) -> Result<(), ConfigError> {
        let at = self.find_subsystem(nqn).ok_or(ConfigError::NoSubsystem)?;
        let subsystem = self.subsystem_mut(at)?;
        let ana = subsystem.ana.as_mut().ok_or(ConfigError::NoAna)?;
        ana.check(group)?;
        let namespace = subsystem.namespaces.get_mut(nsid);
        let namespace = namespace.ok_or(ConfigError::NoNamespace)?;
        if namespace.ana_group == group {
            return Ok(());
        }
        let state = ana.relocate(namespace.ana_group, group, nsid);
        namespace.ana_group = group;
        namespace.access = state;
        let handle = namespace.handle;
        self.ana_changed(now, at, state, vec![handle]);
        self.fail_waiting(now, (at, nsid));
        Ok(())
    }

    /// Commands at their device for the namespaces that are in the group now, the flushes of a
    /// shutdown included, and changes of their reservations that are being made durable. In a state
    /// without access it only falls, unless a busy namespace joins.
    ///
    /// # Errors
    /// There is no such subsystem, it does not report ANA, or the group id is 0 or too high.
    pub fn ana_executing(&self, nqn: &str, group: u32) -> Result<usize, ConfigError> {
        let at = self.find_subsystem(nqn).ok_or(ConfigError::NoSubsystem)?;
        let subsystem = self.subsystems.get(at).and_then(Option::as_ref);
        let subsystem = subsystem.ok_or(ConfigError::NoSubsystem)?;
        let ana = subsystem.ana.as_ref().ok_or(ConfigError::NoAna)?;
        ana.check(group)?;
        let members = subsystem.namespaces.iter();
        let members = members.filter(|namespace| namespace.ana_group == group);
        let at_work = |namespace: &&Namespace| namespace.reservations.is_at_work();
        let reserving = members.clone().filter(at_work).count();
        let mut handles: Vec<u32> = members.map(|namespace| namespace.handle.0).collect();
        handles.sort_unstable();
        let controllers = subsystem.controllers.iter();
        let controllers = controllers.filter_map(|&key| self.controllers.get(key));
        let queues = controllers.flat_map(|controller| {
            let queues = controller.queues.iter().map(|&(_, queue)| queue);
            queues.chain([controller.admin])
        });
        let busy = queues
            .filter_map(|queue| self.connections.get(queue))
            .filter(|connection| connection.executing > 0);
        let of_group = |handle: NamespaceHandle| handles.binary_search(&handle.0).is_ok();
        Ok(busy
            .flat_map(|connection| connection.slots.iter())
            .filter(|(_, slot)| slot.stage == Stage::Executing)
            .filter(|(_, slot)| of_group(slot.command.namespace))
            .count()
            + reserving)
    }

    /// These namespaces are reached in another way: what may not run any more fails, and hosts
    /// are told.
    fn ana_changed(
        &mut self,
        now: Nanos,
        at: usize,
        state: AnaState,
        mut handles: Vec<NamespaceHandle>,
    ) {
        handles.sort_unstable_by_key(|handle| handle.0);
        let concerned = |handle: NamespaceHandle| {
            let found = handles.binary_search_by_key(&handle.0, |it| it.0);
            found.is_ok()
        };
        for key in self.controllers_of_subsystem(at) {
            if let Err(status) = check_access(state) {
                self.fail_queued(now, key, status, |command| concerned(command.namespace));
                self.skip_flush(now, key, concerned);
            }
            self.raise(now, key, Event::AnaChange);
        }
    }

    /// A flush of a shutdown that has not reached its device does not any more.
    fn skip_flush(&mut self, now: Nanos, key: Key, concerned: impl Fn(NamespaceHandle) -> bool) {
        let Some(controller) = self.controllers.get(key) else {
            return;
        };
        let Shutdown::Flushing { nsid } = controller.shutdown else {
            return;
        };
        let admin = self.connections.get_mut(controller.admin);
        let queued = controller
            .flush_slot
            .and_then(|id| admin?.slots.at_stage(id, Stage::Queued))
            .filter(|slot| concerned(slot.command.namespace));
        if let Some(slot) = queued {
            slot.stage = Stage::Reserved;
            self.flush_after(now, key, nsid);
        }
    }

    /// Features of a namespace that cannot be reached are out of reach too; those of the
    /// controller are not. [BASE-2.0 §8.1.3]
    pub(super) fn check_feature_access(
        &self,
        key: Key,
        sqe: &Sqe,
        abilities: Option<u32>,
    ) -> Result<(), Status> {
        let of_namespace = abilities.is_some_and(feature::is_of_namespace);
        let subsystem = self.controllers.get(key).and_then(|controller| {
            let place = self.subsystems.get(controller.subsystem?)?;
            place.as_ref()
        });
        match subsystem {
            Some(subsystem) if of_namespace && subsystem.ana.is_some() => {
                subsystem.check_feature(sqe.nsid())
            }
            _ => Ok(()),
        }
    }
}
