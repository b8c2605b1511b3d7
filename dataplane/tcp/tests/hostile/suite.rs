//! Peers that break the protocol, whichever engine the disks are of.

#[path = "crowd.rs"]
mod crowd;
#[path = "endings.rs"]
mod endings;
#[path = "flood.rs"]
mod flood;
#[path = "malformed.rs"]
mod malformed;
#[path = "pinning.rs"]
mod pinning;
#[path = "pressure.rs"]
mod pressure;
#[path = "silent.rs"]
mod silent;

use bowline_nvme::pdu::{Digests, H2CData, R2t};
use bowline_nvme::{NamespaceId, Nanos, Sgl, Sqe};
use bowline_nvmf::host::command;
use bowline_nvmf::target::Deadlines;

use crate::common::raw::{Raw, length};

const BOTH: Digests = Digests {
    header: true,
    data: true,
};
const NSID: NamespaceId = NamespaceId(1);

/// Short enough that a test can wait for them, long enough for a busy machine.
fn deadlines() -> Deadlines {
    Deadlines {
        icreq: Nanos::from_millis(1500),
        connect: Nanos::from_millis(1500),
        transfer: Nanos::from_millis(1500),
        linger: Nanos::from_millis(200),
        ..Deadlines::default()
    }
}

fn write_sqe(bytes: u32) -> Sqe {
    let nlb = u16::try_from(bytes / 512 - 1).expect("a short write");
    command::write(NSID, 0, nlb, false)
}

/// A Write of one block in the capsule, whose header is changed before its digest is made.
fn changed_write(raw: &mut Raw, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let data = [0x5A; 512];
    let mut header = raw.capsule_with(write_sqe(512).with_sgl1(Sgl::in_capsule(512)), &data);
    header.truncate(72);
    change(&mut header);
    raw.assemble(&header, &data)
}

/// The 64 KiB that the R2T asked for, whose header is changed before its digest is made.
fn changed_data(
    raw: &mut Raw,
    r2t: R2t,
    change: impl FnOnce(&mut H2CData, &mut Vec<u8>),
) -> Vec<u8> {
    let mut data = vec![0xA5; r2t.r2tl as usize];
    let R2t {
        cccid,
        ttag,
        r2to,
        r2tl,
    } = r2t;
    let mut header = H2CData {
        cccid,
        ttag,
        datao: r2to,
        datal: r2tl,
        last: true,
    };
    change(&mut header, &mut data);
    header.datal = length(&data);
    raw.h2c_data(header, &data)
}

/// Sends a Write that is too long for its capsule and waits for the R2T.
fn granted(raw: &mut Raw, bytes: u32) -> R2t {
    let capsule = raw.capsule_with(write_sqe(bytes).with_sgl1(Sgl::transport(bytes)), &[]);
    raw.send(&capsule);
    let r2t = raw.recv().expect("an R2T").r2t();
    assert_eq!((r2t.cccid, r2t.r2to, r2t.r2tl), (raw.last_cid(), 0, bytes));
    r2t
}
