//! The features of reservations: the notification mask of a controller, and persistence, which is
//! part of a namespace's state. [BASE-2.0 §5.27.1.26, §5.27.1.27]

use bowline_nvme::feature::{GetFeatures, Select, SetFeatures, id};
use bowline_nvme::reservation::mask;
use bowline_nvme::{NamespaceId, Nanos, Sqe, Status};

use super::change::Request;
use crate::target::Target;
use crate::target::command::Plan;
use crate::target::controller::Kind;
use crate::target::output::{ConnId, SlotId};
use crate::target::table::Key;

/// Whether the feature is one of reservations.
pub(in crate::target) const fn is_reservation(fid: u8) -> bool {
    matches!(fid, id::RESERVATION_MASK | id::RESERVATION_PERSISTENCE)
}

const INVALID: Status = Status::INVALID_FIELD.dnr();

impl Target {
    /// Get Features; `None` where the controller alone can answer. A namespace that does not exist
    /// or cannot persist is an invalid field, and so is asking for all at once.
    pub(in crate::target) fn get_reservation_feature(
        &self,
        key: Key,
        sqe: &Sqe,
    ) -> Option<Result<u32, Status>> {
        let get = GetFeatures::decode(sqe);
        let controller = self.controllers.get(key)?;
        let subsystem = self.subsystems.get(controller.subsystem?)?.as_ref()?;
        let current = match get.select {
            Select::Current => true,
            Select::Default | Select::Saved => false,
            Select::Capabilities | Select::Reserved(_) => return None,
        };
        let namespace = subsystem.namespaces.get(sqe.nsid().0);
        let value = match (get.fid, namespace) {
            (_, None) => return Some(Err(INVALID)),
            (id::RESERVATION_MASK, Some(it)) => controller.notices.mask(it.nsid),
            (_, Some(it)) if !it.reservations.persists() => return Some(Err(INVALID)),
            (_, Some(it)) => u32::from(it.reservations.state().persistent),
        };
        Some(Ok(if current { value } else { 0 }))
    }

    /// Set Features. Persistence is only set when it is durable, so the command may have to wait.
    pub(in crate::target) fn set_reservation_feature(
        &mut self,
        now: Nanos,
        id: ConnId,
        slot: SlotId,
        key: Key,
        sqe: &Sqe,
    ) -> Result<Plan, Status> {
        let set = SetFeatures::decode(sqe);
        let controller = self.controllers.get(key).ok_or(Status::INTERNAL)?;
        let (Kind::Io, Some(at)) = (controller.kind, controller.subsystem) else {
            return Err(INVALID);
        };
        if set.save {
            return Err(Status::FEATURE_NOT_SAVEABLE.dnr());
        }
        if set.fid == id::RESERVATION_MASK {
            self.set_mask(key, at, sqe.nsid(), set.cdw11 & mask::ALL)?;
            return Ok(Plan::Respond(Status::SUCCESS, 0));
        }
        let all = sqe.nsid() == NamespaceId::BROADCAST;
        let nsid = if all {
            self.next_persistent((at, 0))
        } else {
            let namespace = self.namespace_mut((at, sqe.nsid().0));
            let able = namespace.filter(|it| it.reservations.persists());
            able.map(|it| it.nsid)
        };
        let request = Request::Persist(set.cdw11 & 1 != 0);
        let nsid = nsid.ok_or(INVALID)?;
        self.submit_reservation(now, id, slot, (at, nsid), request, all);
        Ok(Plan::Held)
    }

    fn set_mask(
        &mut self,
        key: Key,
        at: usize,
        nsid: NamespaceId,
        mask: u32,
    ) -> Result<(), Status> {
        let subsystem = self.subsystems.get(at).and_then(Option::as_ref);
        let namespaces = subsystem.map(|it| &it.namespaces).ok_or(INVALID)?;
        let controller = self.controllers.get_mut(key).ok_or(INVALID)?;
        let before = namespaces.iter().map(|it| it.nsid);
        let meant = before.filter(|&it| nsid == NamespaceId::BROADCAST || nsid.0 == it);
        let mut found = nsid == NamespaceId::BROADCAST;
        for nsid in meant {
            controller.notices.set_mask(nsid, mask);
            found = true;
        }
        found.then_some(()).ok_or(INVALID)
    }
}
