//! The identities of namespaces, each at most once in the target: hosts ignore a namespace whose
//! identity they know from elsewhere.

use std::collections::BTreeSet;

/// UUIDs and NGUIDs in use, over all subsystems but those that only drain.
#[derive(Debug, Default)]
pub(super) struct Identities {
    uuids: BTreeSet<[u8; 16]>,
    nguids: BTreeSet<[u8; 16]>,
}

impl Identities {
    /// Whether a namespace may have these. All zero stands for none, which it needs.
    pub(super) fn are_free(&self, uuid: [u8; 16], nguid: [u8; 16]) -> bool {
        let none = [0; 16];
        uuid != none
            && nguid != none
            && !self.uuids.contains(&uuid)
            && !self.nguids.contains(&nguid)
    }

    pub(super) fn take(&mut self, uuid: [u8; 16], nguid: [u8; 16]) {
        self.uuids.insert(uuid);
        self.nguids.insert(nguid);
    }

    pub(super) fn give_back(&mut self, uuid: [u8; 16], nguid: [u8; 16]) {
        self.uuids.remove(&uuid);
        self.nguids.remove(&nguid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_is_refused_while_one_half_of_it_is_in_use() {
        let mut identities = Identities::default();
        let (a, b, c) = ([1; 16], [2; 16], [3; 16]);
        assert!(identities.are_free(a, a));
        identities.take(a, b);
        assert!(!identities.are_free(a, c) && !identities.are_free(c, b));
        assert!(identities.are_free(b, a), "of different kinds");
        identities.give_back(a, b);
        assert!(identities.are_free(a, b));
        assert!(!identities.are_free([0; 16], a) && !identities.are_free(a, [0; 16]));
    }
}
