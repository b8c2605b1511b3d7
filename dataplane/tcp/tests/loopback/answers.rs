//! What a host reads that is not ours and takes the protocol's liberties: data aligned as it
//! asked for, and its own data sent while it leaves everything else unread.

use bowline_nvme::pdu::{Digests, H2CData, IcReq, IcResp};
use bowline_nvme::{NamespaceId, Sgl, Status};
use bowline_nvmf::host::command;
use bowline_reactor::IoBackend;

use crate::common::raw::{Raw, crc, length};
use crate::common::rig::{BLOCK, Rig};
use crate::common::{on_both_backends, pattern, until};

on_both_backends!(
    data_of_every_size_begins_where_hpda_asks,
    data_is_taken_while_what_follows_its_r2t_is_not_read,
);

const NSID: NamespaceId = NamespaceId(1);

/// An I/O queue whose data is aligned as HPDA says, and its admin queue.
fn aligned(rig: &Rig, digests: Digests, hpda: u8) -> (Raw, Raw) {
    let (admin, cntlid) = Raw::admin(rig.address, digests);
    let mut raw = Raw::connect(rig.address);
    let request = IcReq {
        hpda,
        header_digest: digests.header,
        data_digest: digests.data,
        ..IcReq::default()
    };
    raw.send(&request.encode());
    let answer = raw.recv().expect("ICResp");
    let answer = IcResp::decode(&answer.bytes).expect("a valid ICResp");
    assert_eq!((answer.digests(), answer.cpda), (digests, 0));
    raw.digests = digests;
    let cqe = raw.connect_queue(1, cntlid, 127);
    assert!(cqe.status.is_success(), "{}", cqe.status);
    (raw, admin)
}

fn nlb(bytes: usize) -> u16 {
    u16::try_from(bytes / BLOCK as usize - 1).expect("a short transfer")
}

/// Reads the first `bytes` of the disk, whose C2HData each begin at a multiple of `alignment`.
fn read(raw: &mut Raw, bytes: usize, alignment: usize) -> Vec<u8> {
    let sqe = command::read(NSID, 0, nlb(bytes)).with_sgl1(Sgl::transport(
        u32::try_from(bytes).expect("a short transfer"),
    ));
    let capsule = raw.capsule_with(sqe, &[]);
    raw.send(&capsule);
    let mut data = Vec::new();
    let header = 24 + 4 * usize::from(raw.digests.header);
    let pdo = header.next_multiple_of(alignment);
    while data.len() < bytes {
        let pdu = raw.recv().expect("data");
        let c2h = pdu.c2h();
        assert_eq!(c2h.datao as usize, data.len(), "contiguous and ascending");
        assert_eq!(usize::from(pdu.bytes[3]), pdo);
        assert!(pdu.bytes[header..pdo].iter().all(|&byte| byte == 0));
        let (payload, digest) = pdu.bytes[pdo..].split_at(c2h.datal as usize);
        let expected = raw.digests.data.then(|| crc(payload));
        assert_eq!(digest, expected.as_ref().map_or(&[][..], |it| it));
        data.extend_from_slice(payload);
        assert_eq!(c2h.last, data.len() == bytes);
    }
    let response = raw.recv().expect("a response, for it has SQ flow control");
    assert_eq!(response.cqe().status, Status::SUCCESS);
    data
}

fn data_of_every_size_begins_where_hpda_asks(io: IoBackend) {
    const SIZES: [usize; 4] = [512, 4096, 64 << 10, 1 << 20];
    let rig = Rig::new(io);
    let contents = pattern(5, 1 << 20);
    let (mut writer, _admin) = Raw::io(rig.address, Digests::NONE);
    for (at, part) in contents.chunks(8192).enumerate() {
        let slba = u64::try_from(at * part.len() / BLOCK as usize).expect("small");
        let cqe = writer.command(
            command::write(NSID, slba, nlb(part.len()), false),
            Some(part),
        );
        assert_eq!(cqe.status, Status::SUCCESS);
    }
    for (header, data) in [(false, false), (true, false), (false, true), (true, true)] {
        for hpda in [0, 1, 7, 31] {
            let (mut raw, _admin) = aligned(&rig, Digests { header, data }, hpda);
            for bytes in SIZES {
                let found = read(&mut raw, bytes, (usize::from(hpda) + 1) * 4);
                assert!(found == contents[..bytes], "HPDA {hpda}, {bytes} bytes");
            }
        }
    }
}

/// The data an R2T asked for may be there before the target has heard that the R2T was sent: here
/// it goes out with a mebibyte that the peer does not read before its data has been written.
fn data_is_taken_while_what_follows_its_r2t_is_not_read(io: IoBackend) {
    const WRITTEN: usize = 64 << 10;
    const READ: u32 = 1 << 20;
    let rig = Rig::new(io);
    let (mut raw, _admin) = Raw::io(rig.address, Digests::NONE);
    socket2::SockRef::from(&raw.stream)
        .set_recv_buffer_size(64 << 10)
        .expect("an open socket");
    let data = pattern(6, WRITTEN);
    let write = command::write(NSID, 0, nlb(WRITTEN), false);
    let mut capsules = raw.capsule_with(write.with_sgl1(Sgl::transport(length(&data))), &[]);
    let write = raw.last_cid();
    let sqe = command::read(NSID, 8192, nlb(READ as usize));
    capsules.extend(raw.capsule_with(sqe.with_sgl1(Sgl::transport(READ)), &[]));
    raw.send(&capsules);
    let r2t = raw.recv().expect("an R2T").r2t();
    assert_eq!((r2t.cccid, r2t.r2to, r2t.r2tl), (write, 0, length(&data)));
    let header = H2CData {
        cccid: r2t.cccid,
        ttag: r2t.ttag,
        datao: 0,
        datal: r2t.r2tl,
        last: true,
    };
    let bytes = raw.h2c_data(header, &data);
    raw.send(&bytes);
    let (mut witness, _witness_admin) = Raw::io(rig.address, Digests::NONE);
    until("the data is written", || {
        (read(&mut witness, WRITTEN, 4) == data).then_some(())
    });
    // Nothing was lost meanwhile.
    let (mut read, mut responses) = (0, 0);
    while responses < 2 {
        let pdu = raw.recv().expect("data and responses");
        if pdu.kind() == 0x07 {
            read += pdu.c2h().datal;
        } else {
            assert_eq!(pdu.cqe().status, Status::SUCCESS);
            responses += 1;
        }
    }
    assert_eq!(read, READ);
}
