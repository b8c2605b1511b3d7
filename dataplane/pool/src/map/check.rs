//! Whether the state is one that can be: every rule is looked at anew, and what is wrong is told.

use super::State;
use super::apply::{attribute_record_bytes, promise};
use super::bit_set::BitSet;
use super::chains::{Key, WALK_MAX};
use super::versions::Link;
use super::volume::{Counts, Volume};

/// The largest number of violations told.
const TOLD_MAX: usize = 100;

/// Finds what is wrong.
struct Check<'a> {
    state: &'a State,
    found: Vec<String>,
    /// Versions seen, by their ordinals.
    seen: BitSet,
    bitmaps: u32,
    holes: u32,
    chains_long: usize,
}

impl State {
    /// Every invariant that is violated, each explained; at most 100 of them.
    #[must_use]
    pub fn check(&self) -> Vec<String> {
        let mut check = Check {
            state: self,
            found: Vec::new(),
            seen: BitSet::new(self.chains.versions.ordinals()),
            bitmaps: 0,
            holes: 0,
            chains_long: 0,
        };
        check.run();
        check.found
    }
}

impl Check<'_> {
    fn run(&mut self) {
        let state = self.state;
        let mut promised = 0;
        let mut snapshots = 0;
        let mut attributes = 0;
        for (index, volume) in state.volumes.from(0) {
            self.volume(index, volume);
            promised += promise(volume);
            snapshots += volume.snapshots.len();
            attributes += volume
                .attributes
                .values()
                .map(|attribute| attribute_record_bytes(&attribute.bytes))
                .sum::<u64>();
        }
        self.equal(
            "extents promised to thick volumes",
            state.promised,
            promised,
        );
        self.equal("snapshots", state.snapshots as usize, snapshots);
        self.equal("bytes of attributes", state.attribute_bytes, attributes);
        self.equal("bitmaps", state.chains.bitmaps.used(), self.bitmaps);
        self.equal("holes", state.chains.versions.holes_used(), self.holes);
        self.equal(
            "indices of long chains",
            state.chains.long().len(),
            self.chains_long,
        );
        self.extents();
        let limits = &state.limits;
        let objects = state.volumes.len() as usize + snapshots;
        self.within(
            "volumes and snapshots",
            objects as u64,
            limits.objects_max.into(),
        );
        self.within("holes", self.holes.into(), limits.holes_max().into());
        self.within(
            "bytes of attributes",
            attributes,
            limits.attribute_bytes_max,
        );
    }

    fn volume(&mut self, index: u32, volume: &Volume) {
        let number = volume.number;
        let state = self.state;
        if number >= state.next_volume {
            let next = state.next_volume;
            self.tell(format!(
                "volume {number} exists, but the next one made is to be {next}"
            ));
        }
        if let Some((base, snapshot)) = volume.base {
            let slot = state.slot(base);
            let found = slot.and_then(|slot| state.volume(slot)?.snapshot(snapshot));
            if found.is_none() || base >= number {
                self.tell(format!(
                    "volume {number} is a clone of snapshot {snapshot} of volume {base}, which is not there"
                ));
            }
        }
        let mut last = 0;
        for snapshot in &volume.snapshots {
            if snapshot.number <= last || snapshot.number > volume.snapshots_taken {
                self.tell(format!(
                    "volume {number} has a snapshot {} after {last}, and {} were taken",
                    snapshot.number, volume.snapshots_taken
                ));
            }
            last = snapshot.number;
        }
        let mut counts = Counts::default();
        let mut next = volume.tree.next(0);
        while let Some(logical) = next {
            self.chain((index, logical), volume, &mut counts);
            next = volume.tree.next(logical + 1);
        }
        if volume.counts != counts {
            self.tell(format!(
                "volume {number} counts {:?}, but has {counts:?}",
                volume.counts
            ));
        }
    }

    fn chain(&mut self, key: Key, volume: &Volume, counts: &mut Counts) {
        let (state, number, logical) = (self.state, volume.number, key.1);
        let newest = volume.tree.newest(logical);
        let mut chain = Vec::new();
        let mut newer = volume.snapshots_taken.saturating_add(1);
        for link in state.chains.iter(newest) {
            if !self.see(link, key) {
                self.tell(format!(
                    "the version {link:?} in the chain of extent {logical} of volume {number} belongs elsewhere, or is there twice"
                ));
                return;
            }
            let born = state.chains.versions.born(link);
            if born >= newer {
                self.tell(format!(
                    "extent {logical} of volume {number} has a version born after {born} snapshots where less than {newer} are right"
                ));
            }
            newer = born;
            counts.holes += u32::from(link.is_hole());
            counts.physical += u32::from(!link.is_hole());
            self.holes += u32::from(link.is_hole());
            self.presence(link, key, number);
            chain.push(link);
        }
        if newest.physical().is_some() && logical >= volume.end {
            counts.beyond += 1;
        } else if newest.physical().is_some() {
            counts.mapped += 1;
            let born = state.chains.versions.born(newest);
            counts.own += u32::from(volume.is_own(born));
        }
        chain.reverse();
        match state.chains.long().get(&key) {
            Some(long) => {
                self.chains_long += 1;
                if *long != chain {
                    self.tell(format!(
                        "the index of the chain of extent {logical} of volume {number} is not as the chain"
                    ));
                }
            }
            None if chain.len() > WALK_MAX => {
                self.tell(format!(
                    "the chain of extent {logical} of volume {number} is long and has no index"
                ));
            }
            None => {}
        }
    }

    /// Counts the bitmap of a version.
    fn presence(&mut self, link: Link, (_, logical): Key, number: u32) {
        let Some(words) = self.state.chains.chunks(link).filter(|_| !link.is_hole()) else {
            return;
        };
        self.bitmaps += 1;
        let set: u32 = words.iter().map(|word| word.count_ones()).sum();
        if set >= self.state.limits.chunks() {
            self.tell(format!(
                "the bitmap of extent {logical} of volume {number} has {set} bits set"
            ));
        }
    }

    /// Whether a version belongs to this chain, and was not seen before.
    fn see(&mut self, link: Link, key: Key) -> bool {
        let versions = &self.state.chains.versions;
        versions.owner(link) == Some(key) && self.seen.insert(versions.ordinal(link))
    }

    fn extents(&mut self) {
        let state = self.state;
        let all = state.chains.versions.extents();
        let allocator = &state.allocator;
        let mut used = 0;
        for physical in 0..all {
            let is_owned = state.chains.versions.owner(Link::to(physical)).is_some();
            used += u32::from(is_owned);
            if is_owned != self.seen.contains(physical) {
                self.tell(format!(
                    "physical extent {physical} has an owner that does not have it"
                ));
            }
            let sets = [
                &allocator.clean,
                &allocator.unclean,
                &allocator.reserved,
                &allocator.quarantined,
            ];
            let is_in = sets.iter().filter(|set| set.contains(physical)).count();
            if is_in + usize::from(is_owned) > 1 {
                self.tell(format!(
                    "physical extent {physical} is used and free, or free twice"
                ));
            }
        }
        self.equal(
            "physical extents in use",
            state.chains.versions.owned(),
            used,
        );
    }

    fn equal<T: PartialEq + std::fmt::Display>(&mut self, what: &str, counted: T, found: T) {
        if counted != found {
            self.tell(format!("{what}: {counted} are counted, there are {found}"));
        }
    }

    fn within(&mut self, what: &str, found: u64, max: u64) {
        if found > max {
            self.tell(format!(
                "{what}: there are {found}, at most {max} are allowed"
            ));
        }
    }

    fn tell(&mut self, what: String) {
        if self.found.len() < TOLD_MAX {
            self.found.push(what);
        }
    }
}
