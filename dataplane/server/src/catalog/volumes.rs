//! The pool's volumes, as management knows them.

use std::collections::{BTreeMap, HashMap};

use bowline_pool::{SnapshotInfo, VolumeInfo};
use uuid::Uuid;

use super::Part;

/// By UUID, and by what people call them.
#[derive(Debug, Default)]
pub(crate) struct Volumes {
    all: HashMap<Uuid, Volume>,
    /// In the order of lists.
    names: BTreeMap<String, Uuid>,
    numbers: HashMap<u32, Uuid>,
}

/// A volume.
#[derive(Debug, Clone)]
pub(crate) struct Volume {
    /// As the pool told of it last; what it has allocated has changed meanwhile.
    pub(crate) info: VolumeInfo,
    /// NQN of its subsystem.
    pub(crate) nqn: String,
    /// Why hosts cannot use it.
    pub(crate) not_served: Option<String>,
}

impl Volume {
    /// What it is called.
    pub(crate) fn called(&self) -> String {
        called(&self.info.name, self.info.uuid)
    }

    /// A snapshot, by UUID or by what it is called.
    pub(crate) fn snapshot(&self, snapshot: &str) -> Option<&SnapshotInfo> {
        let uuid = Uuid::try_parse(snapshot).ok();
        let is_it = |it: &&SnapshotInfo| match uuid {
            Some(uuid) => it.uuid == uuid,
            None => it.name == snapshot,
        };
        self.info.snapshots.iter().find(is_it)
    }
}

/// What a volume or a snapshot is called, which is its UUID if nobody gave it a name.
pub(crate) fn called(name: &str, uuid: Uuid) -> String {
    match name {
        "" => uuid.to_string(),
        name => name.to_owned(),
    }
}

impl Volumes {
    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// Takes a volume in, or what has become of one. Another one of the same name keeps that; this one
    /// is found by its UUID then.
    pub(crate) fn insert(&mut self, volume: Volume) {
        self.remove(volume.info.uuid);
        let (name, uuid) = (volume.called(), volume.info.uuid);
        let name = match self.names.contains_key(&name) {
            true => uuid.to_string(),
            false => name,
        };
        self.names.insert(name, uuid);
        self.numbers.insert(volume.info.volume, uuid);
        self.all.insert(uuid, volume);
    }

    pub(crate) fn remove(&mut self, uuid: Uuid) -> Option<Volume> {
        let volume = self.all.remove(&uuid)?;
        self.numbers.remove(&volume.info.volume);
        for name in [volume.called(), uuid.to_string()] {
            if self.names.get(&name) == Some(&uuid) {
                self.names.remove(&name);
            }
        }
        Some(volume)
    }

    /// By UUID, or by what it is called.
    pub(crate) fn find(&self, volume: &str) -> Option<&Volume> {
        let uuid = Uuid::try_parse(volume).ok();
        let uuid = uuid.or_else(|| self.names.get(volume).copied())?;
        self.all.get(&uuid)
    }

    pub(crate) fn get(&self, uuid: Uuid) -> Option<&Volume> {
        self.all.get(&uuid)
    }

    pub(crate) fn get_mut(&mut self, uuid: Uuid) -> Option<&mut Volume> {
        self.all.get_mut(&uuid)
    }

    /// By its number in the pool.
    pub(crate) fn numbered(&self, number: u32) -> Option<&Volume> {
        self.all.get(self.numbers.get(&number)?)
    }

    /// The volume or the snapshot that has a UUID.
    pub(crate) fn part(&self, uuid: Uuid) -> Option<Part> {
        if self.all.contains_key(&uuid) {
            return Some(Part::Volume(uuid));
        }
        let mut all = self.all.iter();
        let found = all.find(|(_, it)| it.info.snapshots.iter().any(|it| it.uuid == uuid));
        found.map(|(volume, _)| Part::Snapshot {
            volume: *volume,
            snapshot: uuid,
        })
    }

    pub(crate) fn is_taken(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }

    /// All, in the order of lists, with their place in it.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Volume)> {
        let named = self.names.iter();
        named.filter_map(|(name, uuid)| Some((name.as_str(), self.all.get(uuid)?)))
    }
}
