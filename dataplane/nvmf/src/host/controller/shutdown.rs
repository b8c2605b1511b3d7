//! Leaving in order. [BASE-2.0 §3.6.1]

use bowline_nvme::Nanos;
use bowline_nvme::fabrics::{Csts, PropertyGet, PropertySet, Shst, offset};

use super::{HostController, KeepAlive, Phase, token};
use crate::host::bring_up::CSTS_POLL;
use crate::host::close_reason::CloseReason;
use crate::host::request::Completion;
use crate::host::slots::Transfer;

impl HostController {
    /// CC.SHN = 01b, then CSTS.SHST until 10b. [BASE-2.0 §3.6.1]
    pub(super) fn shut_down(&mut self, now: Nanos) {
        self.phase = Phase::ShuttingDown {
            until: now.after(self.config.shutdown_timeout),
        };
        self.keep_alive = KeepAlive::default();
        let cc = self.cc.with_shn(1);
        let sqe = PropertySet::dword(offset::CC, cc.0).encode();
        self.run(now, sqe, Transfer::None, token::SHUTDOWN);
    }

    pub(super) fn read_csts(&mut self, now: Nanos) {
        let sqe = PropertyGet::dword(offset::CSTS).encode();
        self.run(now, sqe, Transfer::None, token::SHUTDOWN);
    }

    /// The answer to the write of CC has result 0, which is "not yet" as a value of CSTS.
    pub(super) fn on_shutdown(&mut self, now: Nanos, completion: &Completion) {
        let [r0, r1, r2, r3, ..] = completion.result.to_le_bytes();
        let csts = Csts(u32::from_le_bytes([r0, r1, r2, r3]));
        if !completion.status.is_success() || csts.shutdown() == Shst::Complete {
            self.lose(now, CloseReason::Requested);
        } else {
            self.pause_until = Some(now.after(CSTS_POLL));
        }
    }
}
