//! Submission queue entries a host sends. The queue adds command identifier and data pointer.

use bowline_nvme::identify::Identify;
use bowline_nvme::opcode::{admin, io};
use bowline_nvme::{NamespaceId, Sqe};

/// Read of `nlb` (0's based) blocks at `slba`. [NVM-1.0 §3.2.4]
#[must_use]
pub fn read(nsid: NamespaceId, slba: u64, nlb: u16) -> Sqe {
    Sqe::new(io::READ)
        .with_nsid(nsid)
        .with_slba(slba)
        .with_nlb(nlb)
}

/// Write of `nlb` (0's based) blocks at `slba`. [NVM-1.0 §3.2.6]
#[must_use]
pub fn write(nsid: NamespaceId, slba: u64, nlb: u16, fua: bool) -> Sqe {
    Sqe::new(io::WRITE)
        .with_nsid(nsid)
        .with_slba(slba)
        .with_nlb(nlb)
        .with_fua(fua)
}

/// Compare of `nlb` (0's based) blocks at `slba`. [NVM-1.0 §3.2.1]
#[must_use]
pub fn compare(nsid: NamespaceId, slba: u64, nlb: u16) -> Sqe {
    Sqe::new(io::COMPARE)
        .with_nsid(nsid)
        .with_slba(slba)
        .with_nlb(nlb)
}

/// Flush. [BASE-2.0 §7.1]
#[must_use]
pub fn flush(nsid: NamespaceId) -> Sqe {
    Sqe::new(io::FLUSH).with_nsid(nsid)
}

/// Write Zeroes of `nlb` (0's based) blocks at `slba`, with or without DEAC. [NVM-1.0 §3.2.8]
#[must_use]
pub fn write_zeroes(nsid: NamespaceId, slba: u64, nlb: u16, deallocate: bool) -> Sqe {
    Sqe::new(io::WRITE_ZEROES)
        .with_nsid(nsid)
        .with_slba(slba)
        .with_nlb(nlb)
        .with_deac(deallocate)
}

/// Dataset Management with Deallocate over `nr` (0's based) ranges of 16 bytes in the command's
/// data. [NVM-1.0 §3.2.3]
#[must_use]
pub fn deallocate(nsid: NamespaceId, nr: u8) -> Sqe {
    Sqe::new(io::DATASET_MANAGEMENT)
        .with_nsid(nsid)
        .with_ranges(nr, true)
}

/// Identify with 4096 bytes of data. [BASE-2.0 §5.17]
#[must_use]
pub fn identify(cns: u8, nsid: NamespaceId) -> Sqe {
    Identify::new(cns).encode().with_nsid(nsid)
}

/// Keep Alive. [BASE-2.0 §5.18]
#[must_use]
pub fn keep_alive() -> Sqe {
    Sqe::new(admin::KEEP_ALIVE)
}

/// Asynchronous Event Request. [BASE-2.0 §5.2]
#[must_use]
pub fn async_event_request() -> Sqe {
    Sqe::new(admin::ASYNC_EVENT_REQUEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn io_commands_carry_their_range_and_flags() {
        let nsid = NamespaceId(9);
        let sqe = write(nsid, 0x1_2345_6789, 7, true);
        assert_eq!(
            (sqe.opcode(), sqe.nsid(), sqe.slba()),
            (io::WRITE, nsid, 0x1_2345_6789)
        );
        assert_eq!((sqe.blocks(), sqe.fua(), sqe.deac()), (8, true, false));
        assert!(write_zeroes(nsid, 0, 0, true).deac());
        assert!(!write_zeroes(nsid, 0, 0, false).deac());
        assert!(deallocate(nsid, 0).deallocate());
    }
}
