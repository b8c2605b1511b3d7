//! The Error Information log of one controller. [BASE-2.0 §5.16.1.2]

use std::collections::VecDeque;

use bowline_nvme::feature::{GetFeatures, Select};
use bowline_nvme::identify::{Identify, csi};
use bowline_nvme::log::{ErrorLogEntry, GetLogPage, id};
use bowline_nvme::opcode::{admin, io};
use bowline_nvme::{NamespaceId, Sqe, Status};

use super::controller::Controller;
use super::feature;

/// Entries kept (ELPE + 1); allocated as errors occur.
pub(super) const ENTRIES: usize = 64;

#[derive(Debug, Default)]
pub(super) struct ErrorLog {
    /// Oldest first.
    entries: VecDeque<ErrorLogEntry>,
    /// Errors of this controller.
    pub(super) count: u64,
}

impl ErrorLog {
    /// Adds an entry. Its Error Count is higher than those before.
    pub(super) fn add(&mut self, entry: ErrorLogEntry) {
        self.count += 1;
        if self.entries.len() == ENTRIES {
            self.entries.pop_front();
        }
        self.entries.push_back(entry);
    }

    /// Newest first, as hosts read them.
    pub(super) fn newest_first(&self) -> impl Iterator<Item = &ErrorLogEntry> {
        self.entries.iter().rev()
    }
}

/// Bytes of the SQE. [BASE-2.0 §3.3.3.1]
const OPCODE_AT: u16 = 0;
const NSID_AT: u16 = 4;
const SGL_LENGTH_AT: u16 = 32;
const CDW10_AT: u16 = 40;
const SELECT_AT: u16 = 41;
const NUMD_AT: u16 = 42;
const CDW11_AT: u16 = 44;
const CSI_AT: u16 = 47;
const LPO_AT: u16 = 48;
/// Save, cdw10 bit 31; and Offset Type, cdw14 bit 23.
const SAVE_AT: u16 = 43 | 7 << 8;
const OT_AT: u16 = 58 | 7 << 8;

impl Controller {
    /// Where in an admin command that was refused the reason is. [BASE-2.0 §5.16.1.2]
    pub(super) fn parameter_at(&self, sqe: &Sqe, status: Status) -> u16 {
        let is = |code: Status| status.same_code(code);
        if is(Status::INVALID_OPCODE) {
            OPCODE_AT
        } else if is(Status::INVALID_NAMESPACE) || is(Status::FEATURE_NOT_NAMESPACE_SPECIFIC) {
            NSID_AT
        } else if is(Status::DATA_SGL_LENGTH_INVALID) {
            SGL_LENGTH_AT
        } else if is(Status::INVALID_LOG_PAGE) || is(Status::FEATURE_NOT_CHANGEABLE) {
            CDW10_AT
        } else if is(Status::FEATURE_NOT_SAVEABLE) {
            SAVE_AT
        } else if is(Status::HOST_ID_INCONSISTENT) || is(Status::KATO_INVALID) {
            CDW11_AT
        } else if is(Status::INVALID_FIELD) {
            self.invalid_field_at(sqe)
        } else {
            ErrorLogEntry::NO_LOCATION
        }
    }

    fn invalid_field_at(&self, sqe: &Sqe) -> u16 {
        match sqe.opcode() {
            admin::IDENTIFY if Identify::decode(sqe).csi != csi::NVM => CSI_AT,
            admin::GET_LOG_PAGE => {
                let get = GetLogPage::decode(sqe);
                let of_all = matches!(sqe.nsid(), NamespaceId::NONE | NamespaceId::BROADCAST);
                match get.lpo {
                    _ if get.lid == id::SMART && !of_all => NSID_AT,
                    _ if get.ot => OT_AT,
                    // Where every log begins: the length was at fault.
                    0 => NUMD_AT,
                    _ => LPO_AT,
                }
            }
            admin::GET_FEATURES | admin::SET_FEATURES => {
                let get = GetFeatures::decode(sqe);
                if feature::abilities(self.kind, self.volatile_cache, get.fid).is_none() {
                    CDW10_AT
                } else if matches!(get.select, Select::Reserved(_)) {
                    SELECT_AT
                } else {
                    CDW11_AT
                }
            }
            _ => CDW10_AT,
        }
    }
}

/// The first block of an I/O command; those without blocks have none.
pub(super) fn lba_of(sqe: &Sqe) -> u64 {
    match sqe.opcode() {
        io::READ | io::WRITE | io::COMPARE | io::WRITE_ZEROES | io::VERIFY | io::COPY => sqe.slba(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use bowline_nvme::{CommandId, QueueId, Status};

    use super::*;

    #[test]
    fn log_keeps_the_newest_and_counts_all() {
        let mut log = ErrorLog::default();
        for cid in 0..100 {
            log.add(ErrorLogEntry::new(
                u64::from(cid) + 8,
                QueueId(1),
                CommandId(cid),
                Status::INVALID_FIELD,
            ));
        }
        assert_eq!(log.count, 100);
        assert_eq!(log.newest_first().count(), ENTRIES);
        let newest = log.newest_first().next().expect("there are some");
        assert_eq!((newest.error_count, newest.cid), (107, 99));
    }
}
