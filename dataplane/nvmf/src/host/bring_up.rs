//! From an accepted admin Connect to a controller that takes I/O.

use bowline_nvme::fabrics::{Cap, Cc, Csts, PropertyGet, PropertySet, Version, offset};
use bowline_nvme::feature::{self, AsyncEventConfig, NumberOfQueues, SetFeatures};
use bowline_nvme::identify::{IdentifyController, cns};
use bowline_nvme::{ControllerId, NamespaceId, Nanos, Sqe, Status};

use super::close_reason::CloseReason;
use super::command;
use super::namespace::{HostNamespace, NamespaceScan};
use super::queue::CONTROL_BYTES;
use super::slots::Transfer;

/// How often CSTS is read while waiting for a change.
pub(super) const CSTS_POLL: Nanos = Nanos::from_millis(1);
/// Most data any command of ours carries in its capsule, whatever the controller offers.
const IN_CAPSULE_BYTES_MAX: u32 = 1 << 20;
/// A controller that announces no time in CAP.TO gets this much.
const READY_TIMEOUT_MIN: Nanos = Nanos::from_millis(500);

/// What the controller says about itself, as far as a host acts on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ControllerFacts {
    /// Controller identifier.
    pub cntlid: ControllerId,
    /// Serial number, ASCII, padded with spaces.
    pub serial: [u8; 20],
    /// Model number, ASCII, padded with spaces.
    pub model: [u8; 40],
    /// Firmware revision, ASCII, padded with spaces.
    pub firmware: [u8; 8],
    /// Version, as in property VS.
    pub version: Version,
    /// Largest data transfer of a command in bytes, from MDTS; `u32::MAX` if unlimited.
    pub transfer_bytes_max: u32,
    /// Largest data of an I/O command in its capsule, in bytes, from IOCCSZ.
    pub in_capsule_bytes: u32,
    /// Entries an I/O queue can have, from CAP.MQES and MAXCMD.
    pub queue_entries_max: u16,
    /// I/O queues granted.
    pub io_queues: u16,
    /// A discovery controller: no namespaces, no I/O queues.
    pub is_discovery: bool,
    /// There is a volatile write cache: completed writes are durable only after Flush.
    pub volatile_cache: bool,
    /// Keep Alive is supported (KAS).
    pub keep_alive: bool,
    /// Optional NVM commands (ONCS).
    pub oncs: u16,
    /// Optional asynchronous events (OAES).
    pub oaes: AsyncEventConfig,
}

/// What bring-up wants next.
#[derive(Debug)]
pub(super) enum Next {
    /// Run this command; its data is the control buffer.
    Command(Sqe, Transfer),
    /// Ask again then.
    Wait(Nanos),
    /// All done.
    Finished,
}

/// Parameters of a bring-up.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wishes {
    pub(super) io_queues: u16,
    /// Asynchronous events to enable where offered.
    pub(super) events: AsyncEventConfig,
    pub(super) namespaces_max: usize,
    /// The subsystem is a discovery subsystem by its name.
    pub(super) discovery: bool,
}

#[derive(Debug)]
enum Step {
    ReadCap,
    Disable,
    AwaitDisabled,
    Enable,
    AwaitReady,
    ReadVersion,
    IdentifyController,
    NumberOfQueues,
    EnableEvents,
    Namespaces(NamespaceScan),
    Finished,
}

/// The controller initialization sequence, in the order Linux uses. [BASE-2.0 §3.5.1]
///
/// ```text
/// ReadCap -> Disable -> AwaitDisabled -> Enable -> AwaitReady -> ReadVersion
///   -> IdentifyController -> NumberOfQueues -> EnableEvents -> Namespaces -> Finished
/// ```
#[derive(Debug)]
pub(super) struct BringUp {
    wishes: Wishes,
    step: Step,
    cap: Cap,
    /// When CSTS must have changed, while it is awaited.
    deadline: Option<Nanos>,
    /// Not before then is CSTS read again.
    pause_until: Option<Nanos>,
    facts: ControllerFacts,
    events_enabled: bool,
}

impl BringUp {
    pub(super) fn new(cntlid: ControllerId, wishes: Wishes) -> Self {
        Self {
            wishes,
            step: Step::ReadCap,
            cap: Cap::default(),
            deadline: None,
            pause_until: None,
            facts: ControllerFacts {
                cntlid,
                serial: [b' '; 20],
                model: [b' '; 40],
                firmware: [b' '; 8],
                version: Version(0),
                transfer_bytes_max: u32::MAX,
                in_capsule_bytes: 0,
                queue_entries_max: 2,
                io_queues: 0,
                is_discovery: wishes.discovery,
                volatile_cache: false,
                keep_alive: false,
                oncs: 0,
                oaes: AsyncEventConfig(0),
            },
            events_enabled: false,
        }
    }

    pub(super) fn facts(&self) -> &ControllerFacts {
        &self.facts
    }

    /// Whether asynchronous events were asked for and granted.
    pub(super) fn events_enabled(&self) -> bool {
        self.events_enabled
    }

    pub(super) fn into_namespaces(self) -> Vec<HostNamespace> {
        match self.step {
            Step::Namespaces(scan) => scan.into_namespaces(),
            _ => Vec::new(),
        }
    }

    /// What to do next: at the start, after each answer, and after each wait.
    pub(super) fn next(&mut self, now: Nanos) -> Next {
        if let Some(at) = self.pause_until.filter(|at| *at > now) {
            return Next::Wait(at);
        }
        self.pause_until = None;
        let plain = |sqe| Next::Command(sqe, Transfer::None);
        let structure = |sqe| Next::Command(sqe, Transfer::ToHost { len: 4096 });
        let set_cc = |cc: Cc| plain(PropertySet::dword(offset::CC, cc.0).encode());
        match &self.step {
            Step::ReadCap => plain(PropertyGet::qword(offset::CAP).encode()),
            Step::Disable => set_cc(self.configuration(false)),
            Step::Enable => set_cc(self.configuration(true)),
            Step::AwaitDisabled | Step::AwaitReady => {
                plain(PropertyGet::dword(offset::CSTS).encode())
            }
            Step::ReadVersion => plain(PropertyGet::dword(offset::VS).encode()),
            Step::IdentifyController => {
                structure(command::identify(cns::CONTROLLER, NamespaceId::NONE))
            }
            Step::NumberOfQueues => {
                let value = NumberOfQueues::of(self.wishes.io_queues).encode();
                plain(SetFeatures::new(feature::id::NUMBER_OF_QUEUES, value).encode())
            }
            Step::EnableEvents => {
                let events = self.wishes.events.intersection(self.facts.oaes);
                plain(SetFeatures::new(feature::id::ASYNC_EVENT_CONFIG, events.0).encode())
            }
            Step::Namespaces(scan) => match scan.command() {
                Some(sqe) => structure(sqe),
                None => Next::Finished,
            },
            Step::Finished => Next::Finished,
        }
    }

    /// Takes the answer to the command.
    pub(super) fn handle(
        &mut self,
        now: Nanos,
        status: Status,
        result: u64,
        data: &[u8; CONTROL_BYTES],
    ) -> Result<(), CloseReason> {
        let [r0, r1, r2, r3, ..] = result.to_le_bytes();
        let result32 = u32::from_le_bytes([r0, r1, r2, r3]);
        match &mut self.step {
            Step::ReadCap => {
                check("reading CAP", status)?;
                self.cap = Cap(result);
                self.step = Step::Disable;
            }
            Step::Disable => {
                check("disabling the controller", status)?;
                self.await_csts(now, Step::AwaitDisabled);
            }
            Step::AwaitDisabled => {
                check("reading CSTS", status)?;
                if !Csts(result32).rdy() {
                    self.step = Step::Enable;
                } else {
                    self.keep_waiting(now)?;
                }
            }
            Step::Enable => {
                check("enabling the controller", status)?;
                self.await_csts(now, Step::AwaitReady);
            }
            Step::AwaitReady => {
                check("reading CSTS", status)?;
                self.ready_or_wait(now, Csts(result32))?;
            }
            Step::ReadVersion => {
                check("reading VS", status)?;
                self.facts.version = Version(result32);
                self.step = Step::IdentifyController;
            }
            Step::IdentifyController => {
                check("Identify controller", status)?;
                self.identified(&IdentifyController::decode(data))?;
            }
            Step::NumberOfQueues => {
                check("setting the number of queues", status)?;
                let granted = NumberOfQueues::decode(result32);
                // A queue pair needs one of each.
                let pairs = granted.submission().min(granted.completion());
                let pairs = u16::try_from(pairs).unwrap_or(u16::MAX);
                self.facts.io_queues = pairs.min(self.wishes.io_queues);
                self.step = self.after_queues();
            }
            Step::EnableEvents => {
                // Without events the host still works; it only learns of changes later.
                self.events_enabled = status.is_success();
                self.step = self.after_events();
            }
            Step::Namespaces(scan) => scan.handle(status, data)?,
            Step::Finished => {}
        }
        Ok(())
    }

    /// CC for entries of 64 and 16 bytes, the smallest page, and round robin.
    pub(super) fn configuration(&self, enable: bool) -> Cc {
        let nvm_alone = self.cap.css() & Cap::CSS_IO_COMMAND_SETS == 0;
        Cc::default()
            .with_en(enable)
            .with_css(if nvm_alone {
                Cc::CSS_NVM
            } else {
                Cc::CSS_ALL_SUPPORTED
            })
            .with_mps(self.cap.mpsmin())
            .with_iosqes(6)
            .with_iocqes(4)
    }

    fn await_csts(&mut self, now: Nanos, step: Step) {
        self.deadline = Some(now.after(self.cap.ready_timeout().max(READY_TIMEOUT_MIN)));
        self.step = step;
    }

    fn ready_or_wait(&mut self, now: Nanos, csts: Csts) -> Result<(), CloseReason> {
        if csts.cfs() {
            return Err(CloseReason::ControllerFatal);
        }
        if csts.rdy() {
            self.step = Step::ReadVersion;
            return Ok(());
        }
        self.keep_waiting(now)
    }

    fn keep_waiting(&mut self, now: Nanos) -> Result<(), CloseReason> {
        if self.deadline.is_some_and(|at| at <= now) {
            return Err(CloseReason::NotReadyInTime);
        }
        self.pause_until = Some(now.after(CSTS_POLL));
        Ok(())
    }

    fn identified(&mut self, identify: &IdentifyController) -> Result<(), CloseReason> {
        let unsupported = |what| Err(CloseReason::Unsupported { what });
        self.facts.is_discovery |= identify.cntrltype == IdentifyController::CNTRLTYPE_DISCOVERY;
        if !self.facts.is_discovery {
            if identify.ioccsz < 4 || identify.iorcsz < 1 {
                return unsupported("I/O capsules smaller than a command");
            }
            if identify.icdoff != 0 {
                return unsupported("in-capsule data at an offset");
            }
            if identify.sgls & 0b11 == 0 {
                return unsupported("a controller without SGLs");
            }
        }
        if identify.cntlid != self.facts.cntlid {
            return unsupported("Identify and Connect with different controller identifiers");
        }
        let maxcmd = if identify.maxcmd == 0 {
            u16::MAX
        } else {
            identify.maxcmd
        };
        self.facts.serial = identify.sn;
        self.facts.model = identify.mn;
        self.facts.firmware = identify.fr;
        self.facts.transfer_bytes_max = identify
            .transfer_bytes_max(self.cap.page_bytes_min())
            .map_or(u32::MAX, |bytes| u32::try_from(bytes).unwrap_or(u32::MAX));
        self.facts.in_capsule_bytes = identify.in_capsule_bytes_max().min(IN_CAPSULE_BYTES_MAX);
        let entries_max = u16::try_from(self.cap.queue_entries_max()).unwrap_or(u16::MAX);
        self.facts.queue_entries_max = entries_max.min(maxcmd);
        self.facts.volatile_cache = identify.vwc & IdentifyController::VWC_PRESENT != 0;
        self.facts.keep_alive = identify.kas > 0;
        self.facts.oncs = identify.oncs;
        self.facts.oaes = AsyncEventConfig(identify.oaes);
        let needs_queues = !self.facts.is_discovery && self.wishes.io_queues > 0;
        self.step = if needs_queues {
            Step::NumberOfQueues
        } else {
            self.after_queues()
        };
        Ok(())
    }

    fn after_queues(&self) -> Step {
        if self.wishes.events.intersection(self.facts.oaes).0 != 0 {
            Step::EnableEvents
        } else {
            self.after_events()
        }
    }

    fn after_events(&self) -> Step {
        if self.facts.is_discovery {
            Step::Finished
        } else {
            Step::Namespaces(NamespaceScan::new(self.wishes.namespaces_max))
        }
    }
}

fn check(step: &'static str, status: Status) -> Result<(), CloseReason> {
    if status.is_success() {
        Ok(())
    } else {
        Err(CloseReason::BringUpFailed { step, status })
    }
}
