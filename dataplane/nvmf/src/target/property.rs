//! Controller properties: what Property Get and Set read and change. [BASE-2.0 §3.1.3]

use bowline_nvme::Status;
use bowline_nvme::fabrics::{Cap, Cc, Crto, Csts, PropertyGet, PropertySet, Shn, Version, offset};

use super::controller::{Controller, Kind, Phase, Shutdown};

/// The version whose promises this target keeps. From 2.0 on CRTO must work. [BASE-2.0 §3.1.3.2]
pub(super) const VERSION: Version = Version::V2_0;

/// CAP.TO and CRTO.CRWMT in 500 ms: 30 s, the time commands may stay at a device before a reset
/// is done.
const READY_TIMEOUT: u8 = 60;

/// What a write to CC asks for beyond the value itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    None,
    /// EN 0 to 1.
    Enable,
    /// EN 1 to 0.
    Reset,
    /// SHN 0 to 1 or 2.
    Shutdown,
}

/// Capabilities. `io_entries` is the longest I/O queue, one-based.
pub(super) fn capabilities(io_entries: u16) -> Cap {
    Cap::default()
        .with_mqes(io_entries.saturating_sub(1))
        .with_cqr(true)
        .with_to(READY_TIMEOUT)
        .with_css(Cap::CSS_NVM)
        .with_crwms(true)
}

impl Controller {
    pub(super) fn property_get(&self, get: PropertyGet, io_entries: u16) -> Result<u64, Status> {
        match (get.offset, get.size) {
            (offset::CAP, 1) => Ok(capabilities(io_entries).0),
            (offset::VS, 0) => Ok(u64::from(VERSION.0)),
            (offset::CC, 0) => Ok(u64::from(self.cc.0)),
            (offset::CSTS, 0) => Ok(u64::from(self.csts().0)),
            (offset::CRTO, 0) => Ok(u64::from(
                Crto::default().with_crwmt(u16::from(READY_TIMEOUT)).0,
            )),
            // Without DNR: nvme-cli 2.3 walks all offsets, and takes only exactly this for "not
            // there"; with DNR its show-regs fails.
            _ => Err(Status::INVALID_FIELD),
        }
    }

    fn csts(&self) -> Csts {
        let rdy = matches!(self.phase, Phase::Ready | Phase::Resetting);
        Csts::default()
            .with_rdy(rdy)
            .with_cfs(self.fatal)
            .with_shutdown(self.shutdown.status())
    }

    /// Takes a new value of CC; the only property that can be written. [BASE-2.0 §3.1.3.5]
    pub(super) fn property_set(&mut self, set: PropertySet) -> Result<Change, Status> {
        if (set.offset, set.size) != (offset::CC, 0) || set.value > u64::from(u32::MAX) {
            return Err(Status::INVALID_FIELD.dnr());
        }
        let (old, new) = (self.cc, Cc(set.value_dword()));
        self.cc = new;
        let shuts_down = |cc: Cc| matches!(cc.shutdown(), Shn::Normal | Shn::Abrupt);
        Ok(match (old.en(), new.en()) {
            (true, false) => Change::Reset,
            _ if shuts_down(new) && !shuts_down(old) => Change::Shutdown,
            (false, true) => Change::Enable,
            _ => Change::None,
        })
    }

    /// Whether the settings can work once EN is set; if not, CSTS.CFS says so. [BASE-2.0 §3.5.3]
    pub(super) fn settings_are_valid(&self) -> bool {
        let cc = self.cc;
        let common = cc.css() == Cc::CSS_NVM && cc.mps() == 0 && cc.ams() == 0 && !cc.crime();
        // Discovery controllers have no I/O queues, and hosts set the entry sizes or not.
        common && (self.kind == Kind::Discovery || (cc.iosqes() == 6 && cc.iocqes() == 4))
    }
}

impl Shutdown {
    fn status(self) -> bowline_nvme::fabrics::Shst {
        use bowline_nvme::fabrics::Shst;
        match self {
            Self::None => Shst::None,
            Self::Draining | Self::Flushing { .. } => Shst::InProgress,
            Self::Complete => Shst::Complete,
        }
    }
}
