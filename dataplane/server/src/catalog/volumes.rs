//! The pool's volumes, as management knows them.

use std::collections::{BTreeMap, HashMap};

use bowline_pool::VolumeInfo;
use uuid::Uuid;

/// By UUID, and by what people call them.
#[derive(Debug, Default)]
pub(crate) struct Volumes {
    all: HashMap<Uuid, Volume>,
    /// In the order of lists.
    names: BTreeMap<String, Uuid>,
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
    /// What it is called, which is its UUID if nobody gave it a name.
    pub(crate) fn called(&self) -> String {
        called(&self.info)
    }
}

fn called(info: &VolumeInfo) -> String {
    match info.name.as_str() {
        "" => info.uuid.to_string(),
        name => name.to_owned(),
    }
}

impl Volumes {
    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// Takes a volume in. One of the same name keeps that; this one is found by its UUID then.
    pub(crate) fn insert(&mut self, volume: Volume) {
        let (name, uuid) = (volume.called(), volume.info.uuid);
        let name = match self.names.contains_key(&name) {
            true => uuid.to_string(),
            false => name,
        };
        self.names.insert(name, uuid);
        self.all.insert(uuid, volume);
    }

    pub(crate) fn remove(&mut self, uuid: Uuid) -> Option<Volume> {
        let volume = self.all.remove(&uuid)?;
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

    pub(crate) fn is_taken(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }

    /// All, in the order of lists, with their place in it.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Volume)> {
        let named = self.names.iter();
        named.filter_map(|(name, uuid)| Some((name.as_str(), self.all.get(uuid)?)))
    }
}
