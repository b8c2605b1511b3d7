//! Commands for whose data there is too little memory: they move it in parts, and hosts see one
//! command.

use bowline_nvme::opcode::io as opcode;
use bowline_nvme::pdu::Digests;
use bowline_nvme::{Nanos, Status};
use bowline_nvmf::target::NsGeometry;

use crate::glue::{BLOCK, Glue, Reply, SUBNQN, geometry, h2c_data, io, pattern};

const BOTH: Digests = Digests {
    header: true,
    data: true,
};
const BLOCKS: u32 = 32;
const BYTES: u32 = BLOCKS * BLOCK;

fn glue(part_bytes: u32) -> Glue {
    let mut glue = Glue::new();
    glue.part_bytes = Some(part_bytes);
    glue
}

/// One host's view of a Read that comes in parts: where each starts, and the data.
fn read_in_parts(replies: Vec<Reply>) -> (Vec<u32>, Vec<u8>) {
    let (mut starts, mut data) = (Vec::new(), Vec::new());
    let mut ended = false;
    for reply in replies {
        match reply {
            Reply::Data {
                offset,
                bytes,
                last,
                success,
                ..
            } => {
                assert!(!ended, "nothing follows the last part");
                assert_eq!(offset as usize, data.len());
                starts.push(offset);
                data.extend(bytes);
                assert!(last || !success, "only the last part may stand for SUCCESS");
                ended = last;
            }
            other => assert!(ended && other.cqe().status.is_success(), "{other:?}"),
        }
    }
    assert!(ended);
    (starts, data)
}

#[test]
fn read_and_write_in_parts_move_the_same_data_as_in_one() {
    for digests in [Digests::NONE, BOTH] {
        for part_bytes in [512, 1000, 4096, 5 * 512, BYTES] {
            let mut glue = glue(part_bytes);
            let (_, queue) = glue.queues(digests);
            let data = pattern(7, BYTES as usize);
            let cqe = glue.write_by_r2t(queue, io(opcode::WRITE, 40, BLOCKS), &data);
            assert_eq!(cqe.status, Status::SUCCESS, "{part_bytes}");
            let at = 40 * BLOCK as usize;
            assert!(glue.disks[&1][at..at + data.len()] == data[..]);
            glue.send(queue, io(opcode::READ, 40, BLOCKS));
            let (starts, read) = read_in_parts(glue.replies(queue));
            assert!(read == data, "{part_bytes}");
            let unit = (part_bytes / BLOCK).max(1) * BLOCK;
            assert_eq!(starts.len(), BYTES.div_ceil(unit) as usize);
            let counters = glue.target.subsystems()[0].namespaces[0].counters;
            assert_eq!(
                (counters.reads, counters.writes),
                (1, 1),
                "one command each"
            );
            assert_eq!(counters.read_bytes, u64::from(BYTES));
            assert_eq!(counters.written_bytes, u64::from(BYTES));
            assert_eq!(glue.target.subsystems()[0].controllers[0].executing, 0);
            assert_eq!(glue.conn(queue).buffers_bound(), 0);
        }
    }
}

#[test]
fn error_in_a_part_ends_the_command_with_it() {
    let mut glue = glue(4096);
    let (_, queue) = glue.queues(Digests::NONE);
    glue.failures = [Status::SUCCESS, Status::UNRECOVERED_READ].into();
    glue.send(queue, io(opcode::READ, 0, BLOCKS));
    let replies = glue.replies(queue);
    let Some((end, parts)) = replies.split_last() else {
        panic!("nothing")
    };
    assert!(end.cqe().status.same_code(Status::UNRECOVERED_READ));
    assert!(
        matches!(parts, [Reply::Data { last: false, .. }]),
        "{parts:?}"
    );
    glue.failures = [Status::SUCCESS, Status::WRITE_FAULT].into();
    let cqe = glue.write_by_r2t(queue, io(opcode::WRITE, 0, BLOCKS), &[1; BYTES as usize]);
    assert!(cqe.status.same_code(Status::WRITE_FAULT));
    let counters = glue.target.subsystems()[0].namespaces[0].counters;
    assert_eq!(
        (counters.reads, counters.writes, counters.errors),
        (0, 0, 2)
    );
    // The queue goes on.
    glue.send(queue, io(opcode::READ, 0, BLOCKS));
    assert_eq!(read_in_parts(glue.replies(queue)).1.len(), BYTES as usize);
}

#[test]
fn what_was_promised_to_be_atomic_or_is_compared_is_not_cut() {
    let mut glue = glue(512);
    let (_, queue) = glue.queues(Digests::NONE);
    // One block is the atomic unit of the glue's namespaces.
    for (sqe, cut) in [
        (io(opcode::WRITE, 0, 1), false),
        (io(opcode::WRITE, 0, 2), true),
        (io(opcode::COMPARE, 0, 2), false),
    ] {
        glue.no_buffers = true;
        glue.send(queue, sqe);
        let (id, slot) = glue.wanted.pop().expect("it wants a buffer");
        assert_eq!(glue.target.part_unit(id, slot), cut.then_some(BLOCK));
    }
}

/// A Read was cut anywhere, and so could show half of a Write that was promised to be atomic.
#[test]
fn read_is_cut_where_no_atomic_write_is() {
    let mut glue = Glue::new();
    let (_, queue) = glue.queues(Digests::NONE);
    let atomic = NsGeometry {
        atomic_write_blocks: 8,
        ..geometry()
    };
    let updated = glue.target.update_namespace(glue.now, SUBNQN, 1, atomic);
    updated.expect("no other size");
    glue.hold_io = true;
    for (sqe, unit) in [
        (io(opcode::READ, 0, 8), None),
        (io(opcode::READ, 0, 9), Some(8 * BLOCK)),
    ] {
        glue.send(queue, sqe);
        let (id, slot, _) = glue.held.pop_back().expect("at its device");
        assert_eq!(glue.target.part_unit(id, slot), unit);
    }
}

#[test]
fn host_gone_between_two_parts_leaves_nothing_behind() {
    let mut glue = glue(4096);
    let (admin, queue) = glue.queues(Digests::NONE);
    glue.send(queue, io(opcode::WRITE, 0, BLOCKS));
    let Reply::R2t(r2t) = glue.reply(queue) else {
        panic!("no R2T")
    };
    assert_eq!((r2t.r2to, r2t.r2tl), (0, 4096));
    glue.hold_io = true;
    let bytes = glue.h2c(queue, h2c_data(&r2t), &[3; 4096]);
    glue.receive(queue, &bytes);
    assert_eq!(glue.held.len(), 1);
    glue.drop_socket(queue);
    glue.finish_held();
    let controller = &glue.target.subsystems()[0].controllers[0];
    assert_eq!(controller.executing, 0);
    assert!(controller.io_queues.is_empty());
    glue.drop_socket(admin);
    assert!(glue.target.connections().is_empty());
}

#[test]
fn transfer_slower_than_the_least_rate_ends_although_it_never_pauses() {
    let mut glue = Glue::new();
    let (_, queue) = glue.queues(Digests::NONE);
    glue.send(queue, io(opcode::WRITE, 0, 128));
    let Reply::R2t(r2t) = glue.reply(queue) else {
        panic!("no R2T")
    };
    let bytes = glue.h2c(queue, h2c_data(&r2t), &[0; 64 << 10]);
    // A byte every ten seconds, where 30 may pass in silence. 64 KiB may take one second more.
    let (header, data) = bytes.split_at(24);
    glue.receive(queue, header);
    let mut seconds = 0;
    for byte in data {
        glue.receive(queue, &[*byte]);
        glue.advance(Nanos::from_secs(10));
        seconds += 10;
        if !glue.is_open(queue) {
            break;
        }
    }
    assert!((31..=50).contains(&seconds), "{seconds}");
}
