//! What decides about a command for a namespace, besides its connection: its controller, and its
//! subsystem's namespaces. Borrowed apart from the connections, one of which is at hand meanwhile.

use bowline_nvme::{Sqe, Status};

use super::config::TargetConfig;
use super::controller::Controller;
use super::io::{self, Asker, IoPlan, NSID_AT, Refusal, Terms};
use super::namespace::Namespaces;
use super::output::{IoCommand, NamespaceHandle};
use super::subsystem::Subsystem;
use super::table::{Key, Table};

#[derive(Clone, Copy)]
pub(super) struct Gate<'a> {
    pub(super) config: &'a TargetConfig,
    pub(super) controllers: &'a Table<Controller>,
    pub(super) subsystems: &'a [Option<Subsystem>],
}

impl<'a> Gate<'a> {
    /// Decides on a command just received on an I/O queue of the controller.
    pub(super) fn plan(self, key: Key, sqe: &Sqe) -> Result<IoPlan, Refusal> {
        let not_ready = (Status::COMMAND_SEQUENCE_ERROR, 0);
        let controller = self.controllers.get(key).ok_or(not_ready)?;
        if !controller.runs_io() {
            return Err(not_ready);
        }
        let namespaces = self.namespaces(controller)?;
        plan(self.config, controller, namespaces, sqe)
    }

    /// Looks at a command again that was accepted for a device: meanwhile its namespace may have
    /// gone, and the NSID to another, or the path to it.
    pub(super) fn plan_again(
        self,
        key: Key,
        sqe: &Sqe,
        accepted_for: NamespaceHandle,
    ) -> Result<IoPlan, Refusal> {
        self.plan(key, sqe)
            .and_then(|plan| is_for(plan, accepted_for))
    }

    /// Turns the ranges in a command's data into what its device is to do; no range, nothing.
    pub(super) fn ranges(
        self,
        key: Key,
        sqe: &Sqe,
        accepted_for: NamespaceHandle,
        data: &[u8],
    ) -> Result<Option<IoCommand>, Refusal> {
        let gone = (Status::INVALID_NAMESPACE.dnr(), NSID_AT);
        let controller = self.controllers.get(key).ok_or(gone)?;
        let namespaces = self.namespaces(controller)?;
        let (asker, terms) = (asker(controller), terms(self.config, controller));
        io::ranges(sqe, namespaces, asker, accepted_for, terms, data)
    }

    fn namespaces(self, controller: &Controller) -> Result<&'a Namespaces, Refusal> {
        controller
            .subsystem
            .and_then(|at| self.subsystems.get(at)?.as_ref())
            .map(|subsystem| &subsystem.namespaces)
            .ok_or((Status::INVALID_NAMESPACE.dnr(), NSID_AT))
    }
}

/// The plan, if it is still for the device that the command was accepted for.
pub(super) fn is_for(plan: IoPlan, accepted_for: NamespaceHandle) -> Result<IoPlan, Refusal> {
    if plan.namespace() == accepted_for {
        Ok(plan)
    } else {
        Err((Status::INVALID_NAMESPACE.dnr(), NSID_AT))
    }
}

/// Decides on a command of a controller that runs I/O.
pub(super) fn plan(
    config: &TargetConfig,
    controller: &Controller,
    namespaces: &Namespaces,
    sqe: &Sqe,
) -> Result<IoPlan, Refusal> {
    let terms = terms(config, controller);
    io::plan(sqe, namespaces, asker(controller), terms)
}

fn terms(config: &TargetConfig, controller: &Controller) -> Terms {
    Terms {
        mdts_bytes: config.mdts_bytes,
        host_flushes: controller.volatile_cache,
    }
}

fn asker(controller: &Controller) -> Asker<'_> {
    Asker {
        host: &controller.hostid,
    }
}
