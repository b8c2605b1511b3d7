//! Every command of every host under every reservation, checked when it comes and when its data
//! has come.

use bowline_nvme::nvm::{CopyRange, DsmRange};
use bowline_nvme::opcode::io as opcode;
use bowline_nvme::reservation::ReservationType;
use bowline_nvme::{Fuse, NamespaceId, Sgl, Sqe, Status};

use super::hosts::{Host, KEY_A, KEY_B, acquire};
use crate::glue::{BLOCK, Glue, Reply, h2c_data, io, pattern};

fn status_of(glue: &mut Glue, host: Host, opcode: u8) -> Status {
    let queue = host.queue;
    let block = vec![0; BLOCK as usize];
    match opcode {
        opcode::READ => glue
            .read_data(queue, io(opcode, 0, 1), BLOCK)
            .map_or_else(|status| status, |_| Status::SUCCESS),
        opcode::WRITE | opcode::COMPARE => glue.status_with_data(queue, io(opcode, 0, 1), &block),
        opcode::DATASET_MANAGEMENT => {
            let range = DsmRange {
                attributes: 0,
                blocks: 1,
                slba: 0,
            };
            let sqe = Sqe::new(opcode)
                .with_nsid(NamespaceId(1))
                .with_ranges(0, true);
            glue.status_with_data(queue, sqe, &range.encode())
        }
        opcode::COPY => {
            let list = CopyRange { slba: 0, blocks: 1 }.encode();
            let sqe = Sqe::new(opcode).with_nsid(NamespaceId(1)).with_copy(100, 0);
            glue.status_with_data(queue, sqe, &list)
        }
        _ => glue.command(queue, io(opcode, 0, 1)).status,
    }
}

#[test]
fn every_command_of_every_host_meets_the_table() {
    let reads = [opcode::READ, opcode::COMPARE, opcode::VERIFY];
    let writes = [
        opcode::WRITE,
        opcode::WRITE_ZEROES,
        opcode::DATASET_MANAGEMENT,
        opcode::COPY,
        opcode::FLUSH,
    ];
    // Holder, registrant, other: may read, may write.
    let table = [
        [(true, true), (true, false), (true, false)],
        [(true, true), (false, false), (false, false)],
        [(true, true), (true, true), (true, false)],
        [(true, true), (true, true), (false, false)],
        [(true, true), (true, true), (true, false)],
        [(true, true), (true, true), (false, false)],
    ];
    for (rtype, row) in ReservationType::ALL.into_iter().zip(table) {
        let mut glue = Glue::new();
        let hosts = [glue.host(1), glue.host(2), glue.host(3)];
        glue.register_all(&hosts[..2]);
        assert_eq!(
            glue.acquire(hosts[0], acquire(rtype, KEY_A)),
            Status::SUCCESS
        );
        for (host, (may_read, may_write)) in hosts.into_iter().zip(row) {
            for (opcodes, may) in [(&reads[..], may_read), (&writes[..], may_write)] {
                for &opcode in opcodes {
                    let found = status_of(&mut glue, host, opcode);
                    let name = format!("{rtype:?}, host {}, opcode {opcode:#x}", host.id);
                    if may {
                        assert_eq!(found, Status::SUCCESS, "{name}");
                    } else {
                        assert!(found.same_code(Status::RESERVATION_CONFLICT), "{name}");
                        assert!(found.is_dnr(), "{name}");
                    }
                }
            }
        }
    }
}

#[test]
fn write_whose_data_comes_after_the_reservation_is_refused() {
    let mut glue = Glue::new();
    let (a, b) = (glue.host(1), glue.host(2));
    glue.register_all(&[a, b]);
    let data = pattern(9, 8192);
    let cid = glue.send(b.queue, io(opcode::WRITE, 0, 16));
    let Reply::R2t(r2t) = glue.reply(b.queue) else {
        panic!("no R2T")
    };
    let exclusive = acquire(ReservationType::WriteExclusive, KEY_A);
    assert_eq!(glue.acquire(a, exclusive), Status::SUCCESS);
    let bytes = glue.h2c(b.queue, h2c_data(&r2t), &data);
    glue.receive(b.queue, &bytes);
    let cqe = glue.reply(b.queue).cqe();
    assert_eq!(cqe.cid, cid);
    assert!(cqe.status.same_code(Status::RESERVATION_CONFLICT));
    assert!(glue.disks[&1].iter().all(|&byte| byte == 0));
}

#[test]
fn deallocation_whose_ranges_come_after_the_reservation_is_refused() {
    let mut glue = Glue::new();
    let (a, b) = (glue.host(1), glue.host(2));
    glue.register_all(&[a, b]);
    glue.disks.get_mut(&1).expect("there").fill(7);
    let range = DsmRange {
        attributes: 0,
        blocks: 8,
        slba: 0,
    };
    let sqe = Sqe::new(opcode::DATASET_MANAGEMENT)
        .with_nsid(NamespaceId(1))
        .with_ranges(0, true)
        .with_sgl1(Sgl::transport(16));
    glue.send(b.queue, sqe);
    let Reply::R2t(r2t) = glue.reply(b.queue) else {
        panic!("no R2T")
    };
    let exclusive = acquire(ReservationType::WriteExclusive, KEY_A);
    assert_eq!(glue.acquire(a, exclusive), Status::SUCCESS);
    let bytes = glue.h2c(b.queue, h2c_data(&r2t), &range.encode());
    glue.receive(b.queue, &bytes);
    let status = glue.reply(b.queue).cqe().status;
    assert!(status.same_code(Status::RESERVATION_CONFLICT));
    assert!(glue.disks[&1].iter().all(|&byte| byte == 7));
}

#[test]
fn everybody_writes_again_after_the_release() {
    let mut glue = Glue::new();
    let (a, b) = (glue.host(1), glue.host(2));
    glue.register_all(&[a, b]);
    let exclusive = acquire(ReservationType::ExclusiveAccess, KEY_B);
    assert_eq!(glue.acquire(b, exclusive), Status::SUCCESS);
    let refused = status_of(&mut glue, a, opcode::WRITE);
    assert!(refused.same_code(Status::RESERVATION_CONFLICT));
    let release = bowline_nvme::reservation::Release {
        rtype: 2,
        current_key: KEY_B,
        ..Default::default()
    };
    assert_eq!(glue.release_reservation(b, release), Status::SUCCESS);
    assert_eq!(status_of(&mut glue, a, opcode::WRITE), Status::SUCCESS);
}

/// A sends a pair, and B reserves between its halves, or before the second one's data comes.
#[test]
fn pair_that_a_reservation_comes_into_writes_nothing() {
    let (ok, failed) = (Status::SUCCESS, Status::ABORTED_FAILED_FUSED);
    let conflict = Status::RESERVATION_CONFLICT;
    // Under Write Exclusive the first half would still be allowed by itself.
    for (rtype, late, expected) in [
        (ReservationType::WriteExclusive, false, [failed, conflict]),
        (ReservationType::WriteExclusive, true, [failed, conflict]),
        (ReservationType::ExclusiveAccess, false, [failed, conflict]),
        (ReservationType::ExclusiveAccess, true, [conflict, failed]),
    ] {
        let mut glue = Glue::new();
        let (a, b) = (glue.host(1), glue.host(2));
        glue.register_all(&[a, b]);
        let first = io(opcode::COMPARE, 0, 1).with_fuse(Fuse::First);
        let second = io(opcode::WRITE, 0, 1).with_fuse(Fuse::Second);
        let (old, new) = ([0; BLOCK as usize], [1; BLOCK as usize]);
        glue.send_with_data(a.queue, first, &old);
        let r2t = late.then(|| {
            glue.send(a.queue, second);
            glue.reply(a.queue)
        });
        assert_eq!(glue.acquire(b, acquire(rtype, KEY_B)), ok);
        match r2t {
            Some(Reply::R2t(r2t)) => {
                let bytes = glue.h2c(a.queue, h2c_data(&r2t), &new);
                glue.receive(a.queue, &bytes);
            }
            Some(other) => panic!("expected an R2T, found {other:?}"),
            None => {
                glue.send_with_data(a.queue, second, &new);
            }
        }
        let mut cqes: Vec<_> = glue.replies(a.queue).iter().map(Reply::cqe).collect();
        cqes.sort_by_key(|cqe| cqe.cid);
        let what = format!("{rtype:?}, {late}: {cqes:?}");
        assert_eq!(cqes.len(), 2, "{what}");
        for (cqe, expected) in cqes.iter().zip(expected) {
            assert!(cqe.status.same_code(expected), "{what}");
        }
        assert!(glue.disks[&1].iter().all(|byte| *byte == 0), "{what}");
        assert_eq!(glue.conn(a.queue).buffers_bound(), 0);
    }
}
