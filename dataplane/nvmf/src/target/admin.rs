//! Admin commands. [BASE-2.0 §5]

use std::net::SocketAddr;

use bowline_nvme::feature::{GetFeatures, Select, SetFeatures, id as fid};
use bowline_nvme::identify::{Identify, cns};
use bowline_nvme::opcode::admin;
use bowline_nvme::{NamespaceId, Nanos, Sqe, Status};

use super::Target;
use super::command::{IDENTIFY_BYTES, Plan};
use super::controller::{Kind, Phase};
use super::feature::{self, Surroundings};
use super::identify::View;
use super::log_page::{self, LogContext};
use super::output::{ConnId, SlotId};
use super::reservation::is_reservation;
use super::table::Key;

impl Target {
    pub(super) fn plan_admin(
        &mut self,
        now: Nanos,
        id: ConnId,
        key: Key,
        slot: SlotId,
        sqe: &Sqe,
    ) -> Plan {
        let Some(controller) = self.controllers.get_mut(key) else {
            return Plan::refuse(Status::COMMAND_SEQUENCE_ERROR);
        };
        if !controller.is_enabled() {
            return Plan::refuse(Status::COMMAND_SEQUENCE_ERROR);
        }
        let (kind, volatile_cache) = (controller.kind, controller.volatile_cache);
        let len = sqe.sgl1().length;
        if let admin::GET_FEATURES | admin::SET_FEATURES = sqe.opcode() {
            // CDW10 begins with the feature identifier in either.
            let fid = SetFeatures::decode(sqe).fid;
            let abilities = feature::abilities(kind, volatile_cache, fid);
            if let Err(status) = self.check_feature_access(key, sqe, abilities) {
                return Plan::refuse(status);
            }
        }
        let plan = match sqe.opcode() {
            admin::IDENTIFY => exactly(IDENTIFY_BYTES, len).map(Plan::ToHost),
            admin::GET_LOG_PAGE => {
                log_page::transfer_bytes(sqe, self.config.mdts_bytes).map(Plan::ToHost)
            }
            admin::GET_FEATURES => match feature::get_data_bytes(sqe) {
                0 => exactly(0, len).and_then(|_| self.get_features(now, key, sqe)),
                bytes => exactly(bytes, len).map(Plan::ToHost),
            },
            admin::SET_FEATURES => match feature::set_data_bytes(sqe) {
                0 => exactly(0, len).and_then(|_| self.set_value(now, id, slot, key, sqe)),
                bytes => exactly(bytes, len).map(Plan::FromHost),
            },
            admin::ASYNC_EVENT_REQUEST => {
                exactly(0, len).and_then(|_| self.async_event_request(now, key, slot))
            }
            admin::KEEP_ALIVE => exactly(0, len).map(|_| Plan::Respond(Status::SUCCESS, 0)),
            admin::ABORT if kind == Kind::Io => {
                exactly(0, len).and_then(|_| self.abort(now, id, key, slot, sqe))
            }
            _ => Err(Status::INVALID_OPCODE.dnr()),
        };
        plan.unwrap_or_else(Plan::refuse)
    }

    fn async_event_request(&mut self, now: Nanos, key: Key, slot: SlotId) -> Result<Plan, Status> {
        let controller = self.controllers.get_mut(key).ok_or(Status::INTERNAL)?;
        if !controller.events.request(slot) {
            return Err(Status::AER_LIMIT_EXCEEDED.dnr());
        }
        // An event may have been waiting; the request is held already.
        self.deliver_events(now, key);
        Ok(Plan::Held)
    }

    /// Set Features without data.
    fn set_value(
        &mut self,
        now: Nanos,
        id: ConnId,
        slot: SlotId,
        key: Key,
        sqe: &Sqe,
    ) -> Result<Plan, Status> {
        if is_reservation(SetFeatures::decode(sqe).fid) {
            return self.set_reservation_feature(now, id, slot, key, sqe);
        }
        self.set_features(now, key, sqe, &[])
            .map(|result| Plan::Respond(Status::SUCCESS, u64::from(result)))
    }

    fn get_features(&self, now: Nanos, key: Key, sqe: &Sqe) -> Result<Plan, Status> {
        if is_reservation(GetFeatures::decode(sqe).fid)
            && let Some(value) = self.get_reservation_feature(key, sqe)
        {
            return value.map(|value| Plan::Respond(Status::SUCCESS, u64::from(value)));
        }
        self.check_error_recovery(key, sqe)?;
        let controller = self.controllers.get(key).ok_or(Status::INTERNAL)?;
        let result = controller.get_features(self.surroundings(now), sqe, &mut [])?;
        Ok(Plan::Respond(Status::SUCCESS, u64::from(result)))
    }

    fn set_features(
        &mut self,
        now: Nanos,
        key: Key,
        sqe: &Sqe,
        data: &[u8],
    ) -> Result<u32, Status> {
        let around = self.surroundings(now);
        if sqe.nsid() != NamespaceId::BROADCAST {
            self.check_error_recovery(key, sqe)?;
        }
        let controller = self.controllers.get_mut(key).ok_or(Status::INTERNAL)?;
        let result = controller.set_features(around, sqe, data)?;
        self.arm_controller(key);
        Ok(result)
    }

    /// Error Recovery belongs to a namespace, which must be there. [BASE-2.0 §5.27.1.4]
    fn check_error_recovery(&self, key: Key, sqe: &Sqe) -> Result<(), Status> {
        // CDW10 is the same in Get Features, and its Select is where this has reserved bits.
        let get = GetFeatures::decode(sqe);
        if get.fid != fid::ERROR_RECOVERY || get.select == Select::Capabilities {
            return Ok(());
        }
        let subsystem = self
            .controllers
            .get(key)
            .and_then(|controller| self.subsystems.get(controller.subsystem?)?.as_ref());
        match subsystem {
            Some(it) if it.namespaces.get(sqe.nsid().0).is_none() => {
                Err(Status::INVALID_NAMESPACE.dnr())
            }
            _ => Ok(()),
        }
    }

    /// The data of an admin command is here; only Set Features brings any.
    pub(super) fn admin_data(
        &mut self,
        now: Nanos,
        id: ConnId,
        key: Key,
        slot: SlotId,
        data: &[u8],
    ) {
        let sqe = self
            .connections
            .get(id)
            .and_then(|it| it.slots.get(slot))
            .map(|it| it.sqe);
        let Some(sqe) = sqe else { return };
        match self.set_features(now, key, &sqe, data) {
            Ok(result) => self.respond(now, id, slot, Status::SUCCESS, u64::from(result)),
            Err(status) => self.respond(now, id, slot, status, 0),
        }
    }

    /// Writes the data of an admin command to the host, and returns its dword 0.
    pub(super) fn fill_admin(
        &mut self,
        now: Nanos,
        key: Key,
        local: SocketAddr,
        sqe: &Sqe,
        data: &mut [u8],
    ) -> Result<u32, Status> {
        let around = self.surroundings(now);
        match sqe.opcode() {
            admin::IDENTIFY => self.identify(key, sqe, data).map(|()| 0),
            admin::GET_FEATURES => {
                data.fill(0);
                let controller = self.controllers.get(key).ok_or(Status::INTERNAL)?;
                controller.get_features(around, sqe, data)
            }
            _ => self.get_log_page(now, key, local, sqe, data).map(|()| 0),
        }
    }

    fn identify(&self, key: Key, sqe: &Sqe, data: &mut [u8]) -> Result<(), Status> {
        let controller = self.controllers.get(key).ok_or(Status::INTERNAL)?;
        let subsystem = controller
            .subsystem
            .and_then(|at| self.subsystems.get(at)?.as_ref());
        // A controller that only drains is there for nobody.
        let lists = matches!(
            Identify::decode(sqe).cns,
            cns::NAMESPACE_CONTROLLER_LIST | cns::CONTROLLER_LIST
        );
        let mut cntlids: Vec<u16> = subsystem
            .filter(|_| lists)
            .map(|subsystem| subsystem.controllers.as_slice())
            .unwrap_or_default()
            .iter()
            .filter_map(|&other| self.controllers.get(other))
            .filter(|other| other.phase != Phase::Ended)
            .map(|other| other.cntlid)
            .collect();
        cntlids.sort_unstable();
        let mut page = [0; IDENTIFY_BYTES as usize];
        let view = View {
            config: &self.config,
            subsystem,
            controller,
            cntlids: &cntlids,
        };
        view.identify(sqe, &mut page)?;
        for (to, from) in data.iter_mut().zip(page) {
            *to = from;
        }
        Ok(())
    }

    fn get_log_page(
        &mut self,
        now: Nanos,
        key: Key,
        local: SocketAddr,
        sqe: &Sqe,
        data: &mut [u8],
    ) -> Result<(), Status> {
        let controller = self.controllers.get_mut(key).ok_or(Status::INTERNAL)?;
        let subsystem = controller
            .subsystem
            .and_then(|at| self.subsystems.get(at)?.as_ref());
        let context = LogContext {
            config: &self.config,
            discovery: &self.discovery,
            namespaces: subsystem.map(|subsystem| &subsystem.namespaces),
            ana: subsystem.and_then(|it| it.ana.as_ref().map(|ana| (ana, it.namespaces.max()))),
            health: subsystem.map(|subsystem| subsystem.health.totals(now)),
            local,
        };
        controller.get_log_page(&context, sqe, data)
    }

    fn surroundings(&self, now: Nanos) -> Surroundings {
        Surroundings {
            now,
            io_queues_max: self.config.io_queues_max,
        }
    }
}

/// The data a command must move. [BASE-2.0 §4.1.2.1]
fn exactly(bytes: u32, found: u32) -> Result<u32, Status> {
    if bytes == found {
        Ok(bytes)
    } else {
        Err(Status::DATA_SGL_LENGTH_INVALID.dnr())
    }
}
