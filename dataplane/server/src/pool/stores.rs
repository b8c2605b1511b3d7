//! Where a reactor's reservations go that outlive the process: those of volumes to the pool, which
//! is on the same reactor, all others to the thread that writes files.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use bowline_tcp::target::{ReservationStore, StoreReservations};

use crate::state::ReactorStore;

/// One handle is the target's, the other the pool's.
#[derive(Default, Clone)]
pub(crate) struct Stores {
    shared: Rc<RefCell<Shared>>,
}

#[derive(Default)]
struct Shared {
    /// Numbers of volumes by the NQN of their subsystem.
    volumes: HashMap<String, u32>,
    /// At most one for each volume.
    waiting: VecDeque<(u32, StoreReservations)>,
    /// For everything else.
    files: Option<ReactorStore>,
}

impl Stores {
    pub(crate) fn new(files: Option<ReactorStore>) -> Self {
        let stores = Self::default();
        stores.shared.borrow_mut().files = files;
        stores
    }

    /// Has the pool keep a subsystem's reservations from now on.
    pub(crate) fn add_volume(&self, nqn: String, volume: u32) {
        self.shared.borrow_mut().volumes.insert(nqn, volume);
    }

    /// What was not begun for it is dropped: nobody waits for the answer, and the volume may be exported
    /// again with what is stored now.
    pub(crate) fn remove_volume(&self, nqn: &str) {
        let shared = &mut *self.shared.borrow_mut();
        shared.volumes.remove(nqn);
        shared.waiting.retain(|(_, request)| request.nqn != nqn);
    }

    /// Whether there is something for the pool.
    pub(crate) fn has_next(&self) -> bool {
        !self.shared.borrow().waiting.is_empty()
    }

    /// What the pool is to store next, for a volume.
    pub(crate) fn next(&self) -> Option<(u32, StoreReservations)> {
        self.shared.borrow_mut().waiting.pop_front()
    }
}

impl ReservationStore for Stores {
    fn try_begin(&mut self, request: StoreReservations) -> bool {
        let shared = &mut *self.shared.borrow_mut();
        if let Some(&volume) = shared.volumes.get(&request.nqn) {
            shared.waiting.push_back((volume, request));
            return true;
        }
        match &mut shared.files {
            Some(files) => files.try_begin(request),
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use bowline_nvme::NamespaceId;
    use bowline_nvmf::target::StoreId;

    use super::*;

    #[test]
    fn what_was_not_begun_for_a_volume_goes_with_its_subsystem() {
        let mut stores = Stores::default();
        let request = |id: u64, nqn: &str| StoreReservations {
            id: StoreId(id),
            nqn: nqn.to_owned(),
            nsid: NamespaceId(1),
            state: None,
        };
        for (volume, nqn) in [(1, "a"), (2, "b")] {
            stores.add_volume(nqn.to_owned(), volume);
            assert!(stores.try_begin(request(volume.into(), nqn)));
        }
        stores.remove_volume("a");
        assert_eq!(stores.next(), Some((2, request(2, "b"))));
        assert!(!stores.has_next());
        assert!(
            !stores.try_begin(request(3, "a")),
            "there is no store of files"
        );
    }
}
