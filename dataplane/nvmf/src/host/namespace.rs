//! What namespaces there are, read with Identify.

use bowline_nvme::identify::{
    IdentifyNamespace, NamespaceDescriptor, cns, namespace_descriptors, namespace_list,
};
use bowline_nvme::{NamespaceId, Sqe, Status};

use super::close_reason::CloseReason;
use super::command;
use super::queue::CONTROL_BYTES;

/// NSIDs in one active namespace list. [BASE-2.0 §5.17.2.2]
const IDS_PER_LIST: usize = CONTROL_BYTES / 4;

/// Largest logical block this host works with, in bytes.
const BLOCK_BYTES_MAX: u32 = 1 << 16;

/// One namespace, as Identify describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostNamespace {
    /// Namespace identifier.
    pub nsid: NamespaceId,
    /// Bytes of a logical block, 512..=65536.
    pub block_bytes: u32,
    /// Size in logical blocks (NSZE).
    pub blocks: u64,
    /// Write protected (NSATTR bit 0).
    pub read_only: bool,
    /// Deallocated blocks read as zeroes (DLFEAT).
    pub deallocated_reads_zero: bool,
    /// Write Zeroes may deallocate (DLFEAT bit 3).
    pub write_zeroes_deallocates: bool,
    /// Namespace globally unique identifier; zero if there is none.
    pub nguid: [u8; 16],
    /// UUID of the namespace; zero if there is none.
    pub uuid: [u8; 16],
}

impl HostNamespace {
    /// Size in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        // Cannot wrap: `decode` checked the product.
        self.blocks * u64::from(self.block_bytes)
    }

    /// `None` for a namespace this host cannot use: inactive, with metadata, or with blocks of a
    /// size out of range.
    fn decode(nsid: NamespaceId, data: &[u8; CONTROL_BYTES]) -> Option<Self> {
        let identify = IdentifyNamespace::decode(data);
        let format = identify.format()?;
        let block_bytes = format
            .block_bytes()
            .filter(|bytes| *bytes <= BLOCK_BYTES_MAX)?;
        if identify.ncap == 0 || format.ms > 0 {
            return None;
        }
        // So that no arithmetic on byte offsets can overflow.
        identify.nsze.checked_mul(u64::from(block_bytes))?;
        let dlfeat = identify.dlfeat;
        Some(Self {
            nsid,
            block_bytes,
            blocks: identify.nsze,
            read_only: identify.nsattr & IdentifyNamespace::NSATTR_WRITE_PROTECTED != 0,
            deallocated_reads_zero: dlfeat & 0b111 == IdentifyNamespace::DLFEAT_READS_ZEROES,
            write_zeroes_deallocates: dlfeat & IdentifyNamespace::DLFEAT_WRITE_ZEROES_DEAC != 0,
            nguid: identify.nguid,
            uuid: [0; 16],
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Active NSIDs above `after`.
    List {
        after: u32,
    },
    /// Identify Namespace of the `index`th NSID.
    Namespace {
        index: usize,
    },
    /// Identification descriptors of the `index`th NSID, whose namespace was found last.
    Descriptors {
        index: usize,
    },
    Done,
}

/// Reads the list of active namespaces, then each of them.
///
/// List --1024 NSIDs--> List --fewer--> (Namespace --> Descriptors)* --> Done
#[derive(Debug)]
pub(super) struct NamespaceScan {
    ids: Vec<u32>,
    ids_max: usize,
    found: Vec<HostNamespace>,
    step: Step,
}

impl NamespaceScan {
    /// A scan that looks at the first `ids_max` namespaces.
    pub(super) fn new(ids_max: usize) -> Self {
        Self {
            ids: Vec::new(),
            ids_max,
            found: Vec::new(),
            step: Step::List { after: 0 },
        }
    }

    /// The next command, all of which transfer 4096 bytes; `None` when the scan is done.
    pub(super) fn command(&self) -> Option<Sqe> {
        let id = |index: usize| NamespaceId(self.ids.get(index).copied().unwrap_or(0));
        Some(match self.step {
            Step::List { after } => {
                command::identify(cns::ACTIVE_NAMESPACE_LIST, NamespaceId(after))
            }
            Step::Namespace { index } => command::identify(cns::NAMESPACE, id(index)),
            Step::Descriptors { index } => command::identify(cns::NAMESPACE_DESCRIPTORS, id(index)),
            Step::Done => return None,
        })
    }

    /// Takes the answer to the command.
    pub(super) fn handle(
        &mut self,
        status: Status,
        data: &[u8; CONTROL_BYTES],
    ) -> Result<(), CloseReason> {
        match self.step {
            Step::List { after } => {
                if !status.is_success() {
                    return Err(failed("Identify active namespaces", status));
                }
                self.step = self.list(after, data);
            }
            Step::Namespace { index } => {
                // A namespace may go between the list and now.
                if !status.is_success() && !status.same_code(Status::INVALID_NAMESPACE) {
                    return Err(failed("Identify namespace", status));
                }
                let id = self.ids.get(index).copied().unwrap_or(0);
                let found = status
                    .is_success()
                    .then(|| HostNamespace::decode(NamespaceId(id), data))
                    .flatten();
                self.found.extend(found);
                self.step = match found {
                    Some(_) => Step::Descriptors { index },
                    None => self.namespace(index + 1),
                };
            }
            Step::Descriptors { index } => {
                // Descriptors are a courtesy: without them there is no UUID, and all else works.
                if let (true, Some(namespace)) = (status.is_success(), self.found.last_mut()) {
                    namespace.uuid = uuid_of(data);
                }
                self.step = self.namespace(index + 1);
            }
            Step::Done => {}
        }
        Ok(())
    }

    /// The namespaces found, in ascending order of NSID.
    pub(super) fn into_namespaces(self) -> Vec<HostNamespace> {
        self.found
    }

    fn list(&mut self, after: u32, data: &[u8; CONTROL_BYTES]) -> Step {
        let mut last = after;
        let mut listed = 0;
        for NamespaceId(id) in namespace_list(data) {
            // An identifier that does not rise could make the scan run for ever.
            if id <= last || !NamespaceId(id).is_valid() || self.ids.len() >= self.ids_max {
                break;
            }
            self.ids.push(id);
            last = id;
            listed += 1;
        }
        if listed == IDS_PER_LIST {
            Step::List { after: last }
        } else {
            self.namespace(0)
        }
    }

    fn namespace(&self, index: usize) -> Step {
        if index < self.ids.len() {
            Step::Namespace { index }
        } else {
            Step::Done
        }
    }
}

fn failed(step: &'static str, status: Status) -> CloseReason {
    CloseReason::BringUpFailed { step, status }
}

/// The UUID among the identification descriptors, or zero. [BASE-2.0 §5.17.2.3]
fn uuid_of(data: &[u8; CONTROL_BYTES]) -> [u8; 16] {
    let uuid = |descriptor| match descriptor {
        NamespaceDescriptor::Uuid(uuid) => Some(uuid),
        _ => None,
    };
    namespace_descriptors(data)
        .find_map(uuid)
        .unwrap_or([0; 16])
}
