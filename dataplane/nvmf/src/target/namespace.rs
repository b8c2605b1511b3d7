//! A namespace and the subsystem's table of them.

use bowline_nvme::log::AnaState;

use super::allocation::{AllocationSource, SPARE_THRESHOLD_PERCENT};
use super::config::{ConfigError, NamespaceConfig, NsGeometry};
use super::health::IoCounters;
use super::output::NamespaceHandle;
use super::reservation::Reservations;

/// How many namespaces are of a kind. Every Connect and Identify Controller asks whether one is,
/// or all are, and must not look at ten thousand of them for that.
#[derive(Debug, Default)]
struct Totals {
    all: usize,
    shared: usize,
    volatile_cache: usize,
    reservable: usize,
    write_zeroes: usize,
    allocating: usize,
}

impl Totals {
    fn add(&mut self, namespace: &Namespace) {
        self.each(namespace, |total| *total += 1);
    }

    fn remove(&mut self, namespace: &Namespace) {
        self.each(namespace, |total| *total = total.saturating_sub(1));
    }

    fn each(&mut self, namespace: &Namespace, change: impl Fn(&mut usize)) {
        let geometry = &namespace.geometry;
        for (total, counts) in [
            (&mut self.all, true),
            (&mut self.shared, namespace.shared),
            (&mut self.volatile_cache, geometry.volatile_cache),
            (&mut self.reservable, namespace.reservations.are_supported()),
            (&mut self.write_zeroes, geometry.write_zeroes),
            (&mut self.allocating, namespace.allocation.is_some()),
        ] {
            if counts {
                change(total);
            }
        }
    }
}

/// A namespace of a subsystem, attached to all its controllers.
#[derive(Debug)]
pub(super) struct Namespace {
    pub(super) nsid: u32,
    pub(super) handle: NamespaceHandle,
    pub(super) geometry: NsGeometry,
    pub(super) uuid: [u8; 16],
    pub(super) nguid: [u8; 16],
    /// ANAGRPID; 0 in a subsystem without ANA.
    pub(super) ana_group: u32,
    /// The state of its group; optimized where there is none.
    pub(super) access: AnaState,
    /// Another process may write to its device.
    pub(super) shared: bool,
    pub(super) counters: IoCounters,
    pub(super) reservations: Reservations,
    /// Where what is allocated changes with writes.
    pub(super) allocation: Option<AllocationSource>,
}

impl Namespace {
    /// Logical blocks allocated now.
    pub(super) fn used_blocks(&self) -> u64 {
        let blocks = self.geometry.blocks;
        match &self.allocation {
            Some(source) => source.now().used_blocks.min(blocks),
            None => self.geometry.used_blocks,
        }
    }

    /// Whether a shutdown must flush it. What cannot be reached is no longer this target's.
    pub(super) fn needs_flush(&self) -> bool {
        self.geometry.volatile_cache && self.access.is_usable()
    }
}

/// Namespaces by NSID. Dense, because the look-up is on the path of every command.
#[derive(Debug, Default)]
pub(super) struct Namespaces {
    by_nsid: Vec<Option<Box<Namespace>>>,
    totals: Totals,
    max: u32,
    /// Where the search for a free NSID begins, zero-based: going round keeps an NSID that was
    /// just given up from meaning something else to hosts that still know it.
    next: u32,
}

impl Namespaces {
    pub(super) fn new(max: u32) -> Self {
        Self {
            by_nsid: Vec::new(),
            totals: Totals::default(),
            max,
            next: 0,
        }
    }

    /// The highest NSID there can be: NN and MNAN.
    pub(super) fn max(&self) -> u32 {
        self.max
    }

    pub(super) fn get(&self, nsid: u32) -> Option<&Namespace> {
        self.by_nsid.get(position(nsid)?)?.as_deref()
    }

    pub(super) fn get_mut(&mut self, nsid: u32) -> Option<&mut Namespace> {
        self.by_nsid.get_mut(position(nsid)?)?.as_deref_mut()
    }

    /// All, by ascending NSID.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Namespace> + Clone {
        self.by_nsid.iter().filter_map(Option::as_deref)
    }

    /// The first namespace after `nsid` in ascending order.
    pub(super) fn after(&self, nsid: u32) -> Option<&Namespace> {
        let start = usize::try_from(nsid).ok()?;
        self.by_nsid.get(start..)?.iter().find_map(Option::as_deref)
    }

    /// Whether another process may write to the device of one of them.
    pub(super) fn any_shared(&self) -> bool {
        self.totals.shared > 0
    }

    pub(super) fn any_volatile_cache(&self) -> bool {
        self.totals.volatile_cache > 0
    }

    /// Whether one can be reserved, or there is none yet.
    pub(super) fn any_reservations(&self) -> bool {
        self.totals.all == 0 || self.totals.reservable > 0
    }

    /// Whether hosts may be told that Write Zeroes works: on every namespace, or there is none.
    pub(super) fn all_write_zeroes(&self) -> bool {
        self.totals.write_zeroes == self.totals.all
    }

    /// The least percentage of room that writes may still allocate; `None` where no namespace shares
    /// a medium.
    pub(super) fn spare_percent(&self) -> Option<u8> {
        if self.totals.allocating == 0 {
            return None;
        }
        let sources = self.iter().filter_map(|it| it.allocation.as_ref());
        sources.map(|it| it.now().spare_percent.min(100)).min()
    }

    pub(super) fn is_spare_low(&self) -> bool {
        self.spare_percent()
            .is_some_and(|spare| spare < SPARE_THRESHOLD_PERCENT)
    }

    pub(super) fn add(&mut self, config: NamespaceConfig) -> Result<u32, ConfigError> {
        config.geometry.check()?;
        config.persistence.check()?;
        let nsid = match config.nsid {
            Some(nsid) => nsid,
            None => self.next_free().ok_or(ConfigError::NamespaceId)?,
        };
        let at = position(nsid)
            .filter(|_| nsid <= self.max)
            .ok_or(ConfigError::NamespaceId)?;
        if self.by_nsid.len() <= at {
            self.by_nsid.resize_with(at + 1, || None);
        }
        let place = &mut self.by_nsid[at];
        if place.is_some() {
            return Err(ConfigError::NamespaceId);
        }
        let namespace = place.insert(Box::new(Namespace {
            nsid,
            handle: config.handle,
            geometry: config.geometry,
            uuid: config.uuid,
            nguid: config.nguid,
            ana_group: 0,
            access: AnaState::Optimized,
            shared: config.shared,
            counters: IoCounters::default(),
            reservations: Reservations::new(config.persistence),
            allocation: config.allocation,
        }));
        self.totals.add(namespace);
        if config.nsid.is_none() {
            self.next = nsid;
        }
        Ok(nsid)
    }

    /// Gives a namespace its new geometry and returns the old one.
    pub(super) fn set_geometry(
        &mut self,
        nsid: u32,
        geometry: NsGeometry,
    ) -> Result<NsGeometry, ConfigError> {
        let place = position(nsid).and_then(|at| self.by_nsid.get_mut(at));
        let namespace = place.and_then(Option::as_deref_mut);
        let namespace = namespace.ok_or(ConfigError::NoNamespace)?;
        namespace.geometry.check_successor(&geometry)?;
        self.totals.remove(namespace);
        let old = std::mem::replace(&mut namespace.geometry, geometry);
        self.totals.add(namespace);
        Ok(old)
    }

    pub(super) fn remove(&mut self, nsid: u32) -> Option<Box<Namespace>> {
        let removed = self.by_nsid.get_mut(position(nsid)?)?.take()?;
        self.next = self.next.max(nsid);
        self.totals.remove(&removed);
        Some(removed)
    }

    fn next_free(&self) -> Option<u32> {
        let start = self.next.min(self.max);
        (start..self.max)
            .chain(0..start)
            .map(|at| at + 1)
            .find(|&nsid| self.get(nsid).is_none())
    }
}

fn position(nsid: u32) -> Option<usize> {
    usize::try_from(nsid.checked_sub(1)?).ok()
}

impl NsGeometry {
    /// A live namespace may grow and change its promises, but neither shrink nor change its
    /// block size: hosts would lose or misread data.
    pub(super) fn check_successor(&self, next: &Self) -> Result<(), ConfigError> {
        next.check()?;
        if next.block_bytes == self.block_bytes && next.blocks >= self.blocks {
            Ok(())
        } else {
            Err(ConfigError::Geometry)
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::config::Deallocate;
    use super::super::reservation::Persistence;
    use super::*;

    pub(in super::super) fn geometry() -> NsGeometry {
        NsGeometry {
            block_bytes: 512,
            blocks: 1000,
            used_blocks: 1000,
            volatile_cache: true,
            read_only: false,
            atomic_write_blocks: 1,
            optimal_io_blocks: 0,
            deallocate: Deallocate::ReadsZero,
            deallocate_granularity_blocks: 8,
            write_zeroes: true,
            thin: false,
        }
    }

    pub(in super::super) fn config(nsid: Option<u32>) -> NamespaceConfig {
        let id = u8::try_from(nsid.unwrap_or(0)).unwrap() + 1;
        NamespaceConfig {
            nsid,
            handle: NamespaceHandle(9),
            geometry: geometry(),
            uuid: [id; 16],
            nguid: [id; 16],
            ana_group: None,
            persistence: Persistence::Unsupported,
            shared: false,
            allocation: None,
        }
    }

    #[test]
    fn free_nsids_are_given_and_the_maximum_holds() {
        let mut namespaces = Namespaces::new(3);
        assert_eq!(namespaces.add(config(Some(2))), Ok(2));
        assert_eq!(namespaces.add(config(None)), Ok(1));
        assert_eq!(namespaces.add(config(None)), Ok(3));
        assert_eq!(namespaces.add(config(None)), Err(ConfigError::NamespaceId));
        assert_eq!(
            namespaces.add(config(Some(2))),
            Err(ConfigError::NamespaceId)
        );
        assert_eq!(
            namespaces.add(config(Some(0))),
            Err(ConfigError::NamespaceId)
        );
        assert!(namespaces.remove(2).is_some());
        assert_eq!(namespaces.after(1).map(|ns| ns.nsid), Some(3));
        assert!(namespaces.after(3).is_none() && namespaces.after(u32::MAX).is_none());
        assert_eq!(namespaces.iter().count(), 2);
    }

    /// The lowest free NSID was given out, and so the one removed a moment before. Commands and
    /// hosts that still meant the old namespace met the new one.
    #[test]
    fn removed_nsid_is_not_given_out_again_soon() {
        let mut namespaces = Namespaces::new(4);
        assert_eq!(namespaces.add(config(None)), Ok(1));
        assert_eq!(namespaces.add(config(None)), Ok(2));
        assert!(namespaces.remove(2).is_some() && namespaces.remove(1).is_some());
        assert_eq!(namespaces.add(config(None)), Ok(3));
        assert_eq!(namespaces.add(config(Some(4))), Ok(4));
        assert!(namespaces.remove(4).is_some());
        assert_eq!(namespaces.add(config(None)), Ok(1));
        assert_eq!(namespaces.add(config(None)), Ok(2));
        assert_eq!(namespaces.add(config(None)), Ok(4));
        assert_eq!(namespaces.add(config(None)), Err(ConfigError::NamespaceId));
    }

    #[test]
    fn what_holds_for_one_or_all_follows_every_change() {
        let asked = |it: &Namespaces| {
            (
                it.any_shared(),
                it.any_volatile_cache(),
                it.any_reservations(),
                it.all_write_zeroes(),
            )
        };
        let mut namespaces = Namespaces::new(4);
        assert_eq!(asked(&namespaces), (false, false, true, true));
        let mut first = config(Some(1));
        first.persistence = Persistence::NoReservations;
        namespaces.add(first).unwrap();
        assert_eq!(asked(&namespaces), (false, true, false, true));
        let mut other = config(Some(2));
        other.shared = true;
        other.geometry.write_zeroes = false;
        namespaces.add(other).unwrap();
        assert_eq!(asked(&namespaces), (true, true, true, false));
        let plain = NsGeometry {
            volatile_cache: false,
            ..geometry()
        };
        for nsid in [1, 2] {
            assert!(namespaces.set_geometry(nsid, plain).is_ok());
        }
        assert_eq!(asked(&namespaces), (true, false, true, true));
        let smaller = NsGeometry { blocks: 1, ..plain };
        assert!(namespaces.set_geometry(1, smaller).is_err());
        assert_eq!(
            namespaces.set_geometry(3, plain),
            Err(ConfigError::NoNamespace)
        );
        assert!(namespaces.remove(2).is_some() && namespaces.remove(2).is_none());
        assert_eq!(asked(&namespaces), (false, false, false, true));
        assert!(namespaces.remove(1).is_some());
        assert_eq!(asked(&namespaces), (false, false, true, true));
    }

    #[test]
    fn shrinking_and_impossible_geometries_are_refused() {
        let old = geometry();
        let grown = NsGeometry {
            blocks: 2000,
            ..old
        };
        assert_eq!(old.check_successor(&grown), Ok(()));
        for bad in [
            NsGeometry {
                blocks: 999,
                used_blocks: 0,
                ..old
            },
            NsGeometry {
                block_bytes: 4096,
                ..old
            },
            NsGeometry {
                blocks: u64::MAX,
                ..old
            },
            NsGeometry {
                used_blocks: 1001,
                ..old
            },
        ] {
            assert_eq!(old.check_successor(&bad), Err(ConfigError::Geometry));
        }
        let none = NsGeometry {
            blocks: 0,
            used_blocks: 0,
            ..old
        };
        assert_eq!(none.check(), Err(ConfigError::Geometry));
        assert_eq!(
            NsGeometry {
                block_bytes: 520,
                ..old
            }
            .check(),
            Err(ConfigError::Geometry)
        );
    }
}
