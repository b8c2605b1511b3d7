//! What the owner of a [`TargetService`] changes while it runs, and how it stops.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{fmt, io};

use bowline_block::{Allocation, Deallocate, Device, DeviceEvent, Geometry};
use bowline_nvme::{NamespaceId, Nanos};
use bowline_nvmf::target::{
    Allocation as NsAllocation, AllocationSource, ConfigError, Deallocate as NsDeallocate,
    NamespaceConfig, NamespaceHandle, NsGeometry, Persistence, Target,
};
use bowline_reactor::{ListenerId, Reactor};

use super::{Route, TargetService};

/// The identity of a namespace to be added.
#[derive(Clone, Debug)]
pub struct NamespaceSpec {
    /// The namespace id wanted, or the next that is free.
    pub nsid: Option<u32>,
    /// UUID; not all zero.
    pub uuid: [u8; 16],
    /// NGUID; not all zero.
    pub nguid: [u8; 16],
    /// ANA group; `None`: group 1, where the subsystem has groups.
    pub ana_group: Option<u32>,
    /// Whether its reservations can outlive the process, and those that did. Anything but
    /// `Unsupported` needs a [`ReservationStore`](super::ReservationStore).
    pub persistence: Persistence,
    /// Another process may write to its device: no fused pairs there.
    pub shared: bool,
}

/// Why a namespace could not take over its device's new size.
#[derive(Debug)]
pub enum RefreshError {
    /// No such subsystem or namespace.
    Config(ConfigError),
    /// The backing could not be asked for its size.
    Device(io::Error),
    /// The backing is smaller than the namespace, whose hosts rely on its size.
    Shrunk {
        /// Size of the namespace, in logical blocks.
        blocks: u64,
        /// Size of the backing, in logical blocks.
        backing_blocks: u64,
    },
}

impl fmt::Display for RefreshError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(error) => error.fmt(f),
            Self::Device(error) => write!(f, "the backing's size cannot be read: {error}"),
            Self::Shrunk {
                blocks,
                backing_blocks,
            } => write!(
                f,
                "the backing has {backing_blocks} logical blocks, fewer than the namespace's \
                 {blocks}; a namespace never shrinks"
            ),
        }
    }
}

impl std::error::Error for RefreshError {}

/// Which namespace each device is.
#[derive(Default)]
pub(super) struct Names(HashMap<u32, (String, NamespaceId)>);

impl Names {
    fn handle(&self, nqn: &str, nsid: NamespaceId) -> Option<NamespaceHandle> {
        let mut named = self.0.iter();
        let found = named.find(|(_, (name, id))| name == nqn && *id == nsid);
        found.map(|(handle, _)| NamespaceHandle(*handle))
    }

    pub(super) fn of(&self, handle: NamespaceHandle) -> Option<(String, NamespaceId)> {
        self.0.get(&handle.0).cloned()
    }
}

/// How far a graceful stop has come.
#[derive(Default, PartialEq, Eq)]
pub(super) enum Stop {
    #[default]
    Serving,
    /// No new connections; commands finish, then connections close.
    Draining,
    /// Every device flushes.
    Flushing,
    Done,
}

impl Stop {
    pub(super) fn is_done(&self) -> bool {
        *self == Self::Done
    }
}

impl<D: Device> TargetService<D> {
    /// The protocol machine, for its subsystems, hosts, discovery table and figures. Namespaces
    /// and whole subsystems are changed by the methods here, which keep the devices in step.
    pub fn target(&mut self) -> &mut Target {
        &mut self.target
    }

    /// Accepts connections from now on, as NVMe port `port_id`.
    ///
    /// # Errors
    /// When the reactor cannot watch the listener.
    pub fn listen(
        &mut self,
        cx: &mut Reactor,
        listener: std::net::TcpListener,
        port_id: u16,
    ) -> io::Result<ListenerId> {
        let id = cx.listen(listener)?;
        self.listeners.push((id, port_id));
        Ok(id)
    }

    /// Says that another reactor owns the subsystem: its connections are handed there.
    pub fn set_route(&mut self, nqn: String, owner: impl Into<Route<D>>) {
        self.routes.insert(nqn, owner.into());
    }

    /// Forgets where the subsystem was; a Connect to it is answered here.
    pub fn clear_route(&mut self, nqn: &str) {
        self.routes.remove(nqn);
    }

    /// Adds a namespace over `device` to a subsystem of this reactor.
    ///
    /// # Errors
    /// What the target says; the device is then dropped.
    pub fn add_namespace(
        &mut self,
        now: Nanos,
        nqn: &str,
        spec: NamespaceSpec,
        device: D,
    ) -> Result<NamespaceId, ConfigError> {
        let geometry = ns_geometry(&device.geometry());
        let allocation = device.allocation().map(allocation);
        let handle = self.executor.add(device).ok_or(ConfigError::NamespaceId)?;
        let NamespaceSpec {
            nsid,
            uuid,
            nguid,
            ana_group,
            persistence,
            shared,
        } = spec;
        let config = NamespaceConfig {
            nsid,
            handle,
            geometry,
            uuid,
            nguid,
            ana_group,
            persistence,
            shared,
            allocation,
        };
        match self.target.add_namespace(now, nqn, config) {
            Ok(nsid) => {
                let nsid = NamespaceId(nsid);
                self.names.0.insert(handle.0, (nqn.to_owned(), nsid));
                Ok(nsid)
            }
            Err(error) => {
                self.executor.retire(handle);
                Err(error)
            }
        }
    }

    /// Removes a namespace. Its device is dropped when its last command has ended.
    ///
    /// # Errors
    /// When there is no such namespace.
    pub fn remove_namespace(
        &mut self,
        now: Nanos,
        nqn: &str,
        nsid: NamespaceId,
    ) -> Result<(), ConfigError> {
        self.target.remove_namespace(now, nqn, nsid.0)?;
        if let Some(handle) = self.names.handle(nqn, nsid) {
            self.names.0.remove(&handle.0);
            self.executor.retire(handle);
        }
        Ok(())
    }

    /// Removes a subsystem, its namespaces, controllers and connections.
    ///
    /// # Errors
    /// When there is no such subsystem.
    pub fn remove_subsystem(&mut self, now: Nanos, nqn: &str) -> Result<(), ConfigError> {
        self.target.remove_subsystem(now, nqn)?;
        let executor = &mut self.executor;
        self.names.0.retain(|handle, (name, _)| {
            if name == nqn {
                executor.retire(NamespaceHandle(*handle));
            }
            name != nqn
        });
        Ok(())
    }

    /// Reads the size of a namespace's backing again and tells the hosts when it has grown.
    ///
    /// # Errors
    /// When there is no such namespace, its backing cannot be asked, or it has shrunk.
    pub fn refresh_namespace(
        &mut self,
        now: Nanos,
        nqn: &str,
        nsid: NamespaceId,
    ) -> Result<Geometry, RefreshError> {
        let missing = RefreshError::Config(ConfigError::NoNamespace);
        let Some(handle) = self.names.handle(nqn, nsid) else {
            return Err(missing);
        };
        let Some(blocks) = self.target.namespace_blocks(nqn, nsid.0) else {
            return Err(missing);
        };
        let Some(device) = self.executor.device_mut(handle) else {
            return Err(missing);
        };
        let after = device.refresh().map_err(RefreshError::Device)?;
        if after.blocks < blocks {
            return Err(RefreshError::Shrunk {
                blocks,
                backing_blocks: after.blocks,
            });
        }
        self.target
            .update_namespace(now, nqn, nsid.0, ns_geometry(&after))
            .map_err(RefreshError::Config)?;
        Ok(after)
    }

    /// Has every device asked for its events: some have come although nothing was asked of the device.
    pub fn look_at_devices(&mut self) {
        self.executor.wake_all();
    }

    /// The number of connections served or on their way out.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.links.len()
    }

    /// Starts a graceful stop: no new connections, commands finish, connections close, devices
    /// flush; then the reactor ends.
    pub fn begin_stop(&mut self, cx: &mut Reactor, now: Nanos) {
        if self.stop == Stop::Serving {
            for (listener, _) in self.listeners.drain(..) {
                cx.unlisten(listener);
            }
            // Their new reactor may have ended already; their hosts come back elsewhere.
            self.departures.clear();
            self.target.stop(now);
            self.stop = Stop::Draining;
        }
    }

    /// Counts failed flushes in `count`, which can be read when the reactor's thread has ended.
    #[must_use]
    pub fn with_flush_failures(mut self, count: Arc<AtomicUsize>) -> Self {
        self.flush_failures = count;
        self
    }

    /// The number of devices that could not be flushed at the stop: writes that their hosts know
    /// as completed may be lost.
    #[must_use]
    pub fn flush_failures(&self) -> usize {
        self.flush_failures.load(Ordering::Acquire)
    }

    fn tell_unflushed(&mut self) {
        while let Some((handle, error)) = self.executor.poll_unflushed() {
            self.flush_failures.fetch_add(1, Ordering::AcqRel);
            match self.names.0.get(&handle.0) {
                Some((nqn, nsid)) => {
                    tracing::error!(%nqn, %nsid, %error, "device not flushed at stop");
                }
                None => tracing::error!(%error, "device not flushed at stop"),
            }
        }
    }

    pub(super) fn advance_stop(&mut self) {
        self.tell_unflushed();
        if self.stop == Stop::Draining
            && self.links.len() == 0
            && self.departures.is_empty()
            && self.executor.in_flight() == 0
        {
            self.executor.flush_all();
            self.stop = Stop::Flushing;
        }
        if self.stop == Stop::Flushing && self.executor.in_flight() == 0 {
            self.stop = Stop::Done;
        }
    }

    pub(super) fn handle_device_events(&mut self, now: Nanos) {
        while let Some((handle, event)) = self.executor.poll_event() {
            let Some((nqn, nsid)) = self.names.0.get(&handle.0) else {
                continue;
            };
            match event {
                DeviceEvent::GeometryChanged => {
                    let Some(geometry) = self.executor.geometry(handle) else {
                        continue;
                    };
                    let update =
                        self.target
                            .update_namespace(now, nqn, nsid.0, ns_geometry(&geometry));
                    if let Err(error) = update {
                        tracing::warn!(%nqn, %nsid, %error, "device changed, namespace did not");
                    }
                }
                DeviceEvent::Vanished => {
                    self.work.vanished += 1;
                    tracing::error!(%nqn, %nsid, "device vanished");
                }
                DeviceEvent::Returned => {
                    self.work.returned += 1;
                    tracing::info!(%nqn, %nsid, "device is back");
                }
                DeviceEvent::MediaWarning => tracing::warn!(%nqn, %nsid, "device reports errors"),
            }
        }
    }
}

/// What is asked for when a host wants to know.
fn allocation(ask: Rc<dyn Fn() -> Allocation>) -> AllocationSource {
    AllocationSource::new(Rc::new(move || {
        let Allocation {
            used_blocks,
            spare_percent,
        } = ask();
        NsAllocation {
            used_blocks,
            spare_percent,
        }
    }))
}

/// What Identify Namespace says of a device. Nothing below a raw device knows what is allocated,
/// so all of it counts as used.
fn ns_geometry(geometry: &Geometry) -> NsGeometry {
    NsGeometry {
        block_bytes: geometry.block_bytes,
        blocks: geometry.blocks,
        used_blocks: geometry.blocks,
        volatile_cache: geometry.volatile_cache,
        read_only: geometry.read_only,
        atomic_write_blocks: geometry.atomic_write_blocks,
        optimal_io_blocks: geometry.optimal_io_blocks,
        deallocate: match geometry.deallocate {
            Deallocate::None => NsDeallocate::None,
            Deallocate::Undefined => NsDeallocate::Undefined,
            Deallocate::ReadsZero => NsDeallocate::ReadsZero,
        },
        deallocate_granularity_blocks: geometry.deallocate_granularity_blocks,
        write_zeroes: geometry.write_zeroes,
        thin: geometry.thin,
    }
}
