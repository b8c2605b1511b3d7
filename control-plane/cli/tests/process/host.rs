//! A host: our own initiator.

use bowline_block::Segments;
use bowline_nvme::nqn::Nqn;
use bowline_nvme::reservation::Register;
use bowline_nvme::{NamespaceId, Nanos, Sqe};
use bowline_nvmf::host::ControllerConfig;
use bowline_reactor::Config;
use bowline_tcp::host::{Direction, HostCommand, HostError, HostOp, Initiator, PathId};

use crate::harness::DataPlane;

/// Its name.
pub(crate) const HOST: &str =
    "nqn.2014-08.org.nvmexpress:uuid:0f4a2b9e-5e57-4b5c-9a53-6b1f6ac9d1a2";

/// Registers a key that persists.
pub(crate) const PERSIST: Register = Register {
    action: Register::REGISTER,
    ignore_key: false,
    change_persistence: Register::PERSISTENCE_SET,
    current_key: 0,
    new_key: 0x1234,
};

/// A host in a process of its own would not be more of one.
pub(crate) struct Host {
    pub(crate) initiator: Initiator,
    pub(crate) path: PathId,
}

impl Host {
    pub(crate) fn connect(
        plane: &DataPlane,
        listener: usize,
        nqn: &str,
    ) -> Result<Self, HostError> {
        Self::connect_as(plane, listener, nqn, [7; 16])
    }

    /// With a host identifier of its own.
    pub(crate) fn connect_as(
        plane: &DataPlane,
        listener: usize,
        nqn: &str,
        hostid: [u8; 16],
    ) -> Result<Self, HostError> {
        let mut initiator = Initiator::new(&Config::default()).unwrap();
        let config = ControllerConfig {
            reconnect: None,
            ..ControllerConfig::new(
                Nqn::new(&name_of(hostid)).unwrap(),
                hostid,
                Nqn::new(nqn).unwrap(),
            )
        };
        let path = initiator.connect(plane.ready.listen[listener], config);
        let deadline = soon(&initiator);
        initiator.wait_ready(path, deadline)?;
        Ok(Self { initiator, path })
    }

    pub(crate) fn write(&mut self, data: &[u8]) -> Result<(), HostError> {
        let deadline = soon(&self.initiator);
        self.initiator
            .write_at(self.path, NamespaceId(1), 0, data, false, deadline)
    }

    /// The same, from a byte on that begins a block.
    pub(crate) fn write_at(&mut self, at: u64, data: &[u8]) -> Result<(), HostError> {
        let deadline = soon(&self.initiator);
        self.initiator
            .write_at(self.path, NamespaceId(1), at, data, false, deadline)
    }

    /// A reservation command with its keys.
    pub(crate) fn reserve(&mut self, sqe: Sqe, keys: &[u8]) -> Result<(), HostError> {
        let deadline = soon(&self.initiator);
        self.reserve_by(sqe, keys, deadline)
    }

    /// The same, with a deadline.
    pub(crate) fn reserve_by(
        &mut self,
        sqe: Sqe,
        keys: &[u8],
        deadline: Nanos,
    ) -> Result<(), HostError> {
        loop {
            self.begin_reserve(sqe, keys);
            let path = self.path;
            let mut done = None;
            self.initiator.run_until(deadline, |service, _| {
                done = done.take().or_else(|| service.path_mut(path).poll());
                done.is_some()
            });
            match done.map(|done| done.status) {
                Some(status) if status.is_success() => return Ok(()),
                Some(status) if status.is_dnr() || self.initiator.now() >= deadline => {
                    return Err(HostError::Failed(status));
                }
                Some(_) => {}
                None => return Err(HostError::TimedOut),
            }
        }
    }

    /// The same, without waiting for its end.
    pub(crate) fn begin_reserve(&mut self, sqe: Sqe, keys: &[u8]) {
        let mut buffer = self.initiator.pool().alloc(keys.len()).unwrap();
        buffer.truncate(keys.len());
        buffer.as_mut().unwrap().copy_from_slice(keys);
        let command = HostCommand {
            op: HostOp::Raw {
                sqe: sqe.with_nsid(NamespaceId(1)),
                direction: Direction::FromHost,
            },
            nsid: NamespaceId(1),
            lba: 0,
            blocks: 0,
            data: Segments::from(buffer),
            token: 1,
        };
        self.initiator.submit(self.path, command).unwrap();
    }

    /// A write that the data plane is to refuse as long as it is asked.
    pub(crate) fn write_refused(&mut self, data: &[u8]) -> bool {
        let deadline = self.initiator.now().after(Nanos::from_secs(1));
        let written = self
            .initiator
            .write_at(self.path, NamespaceId(1), 0, data, false, deadline);
        written.is_err()
    }

    pub(crate) fn read(&mut self, data: &mut [u8]) -> Result<(), HostError> {
        let deadline = soon(&self.initiator);
        self.initiator
            .read_at(self.path, NamespaceId(1), 0, data, deadline)
    }

    /// True once the data plane has ended the association.
    pub(crate) fn is_ended(&mut self) -> bool {
        let (deadline, path) = (soon(&self.initiator), self.path);
        self.initiator.run_until(deadline, |service, _| {
            service.path(path).stopped().is_some()
        })
    }
}

/// Hosts with identifiers of their own have names of their own.
fn name_of(hostid: [u8; 16]) -> String {
    match hostid {
        [7, ..] => HOST.to_owned(),
        other => format!(
            "nqn.2014-08.org.nvmexpress:uuid:{}",
            uuid::Uuid::from_bytes(other)
        ),
    }
}

/// Long after anything here is done.
pub(crate) fn soon(initiator: &Initiator) -> Nanos {
    initiator.now().after(Nanos::from_secs(30))
}
