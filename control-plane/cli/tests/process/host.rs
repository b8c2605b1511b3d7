//! A host: our own initiator.

use bowline_nvme::nqn::Nqn;
use bowline_nvme::{NamespaceId, Nanos};
use bowline_nvmf::host::ControllerConfig;
use bowline_reactor::Config;
use bowline_tcp::host::{HostError, Initiator, PathId};

use crate::harness::DataPlane;

/// Its name.
pub(crate) const HOST: &str =
    "nqn.2014-08.org.nvmexpress:uuid:0f4a2b9e-5e57-4b5c-9a53-6b1f6ac9d1a2";

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
        let mut initiator = Initiator::new(&Config::default()).unwrap();
        let config = ControllerConfig {
            reconnect: None,
            ..ControllerConfig::new(Nqn::new(HOST).unwrap(), [7; 16], Nqn::new(nqn).unwrap())
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

/// Long after anything here is done.
pub(crate) fn soon(initiator: &Initiator) -> Nanos {
    initiator.now().after(Nanos::from_secs(30))
}
