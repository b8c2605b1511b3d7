//! Abort: what has not begun ends, what has begun goes on, and Abort says which. [BASE-2.0 §5.1]

use std::sync::Arc;

use bowline_block::{ClassConfig, PoolConfig};
use bowline_nvme::opcode::{admin, io as opcode};
use bowline_nvme::pdu::{Digests, H2CData, R2t};
use bowline_nvme::{CommandId, Cqe, Fuse, NamespaceId, Sgl, Sqe, Status};
use bowline_nvmf::host::command;
use bowline_nvmf::target::{Hosts, TargetConfig};
use bowline_reactor::{Config, IoBackend};

use crate::common::device::{Gate, Gated, TestDevice};
use crate::common::initiator::{Bystander, Disk};
use crate::common::raw::{Raw, length};
use crate::common::rig::{BLOCK, DISK_BYTES, NQN, Rig};
use crate::common::{on_both_backends, pattern, until, verdict};
use crate::engine::disk;

on_both_backends!(
    write_that_waits_for_its_data_is_aborted_when_the_data_has_come,
    command_at_its_device_is_not_aborted,
    command_in_the_backlog_of_its_device_never_reaches_it,
    aborted_pair_lets_those_behind_it_go,
    long_verify_ends_early,
    event_requests_are_aborted_at_once,
    fifth_abort_at_a_time_is_refused,
    queue_that_goes_answers_its_aborts,
    commands_behind_their_connections_share_are_aborted_at_once,
    commands_that_wait_for_the_pool_are_aborted_at_once,
    pair_that_waits_for_what_its_device_reads_is_aborted_by_either_half,
);

const NSID: NamespaceId = NamespaceId(1);
const ABORTED: Status = Status::ABORTED_BY_REQUEST;
/// Dword 0: the command was aborted, or was not.
const YES: u64 = 0;
const NO: u64 = 1;

/// A queue with a host of its own, on a target where a bystander is at work.
struct Stage {
    rig: Rig,
    bystander: Bystander,
    gate: Arc<Gate>,
    /// A namespace whose device does what the gate says.
    gated: NamespaceId,
    queue: Raw,
    admin: Raw,
}

impl Stage {
    fn new(io: IoBackend) -> Self {
        Self::on(Rig::new(io))
    }

    /// On a target that has little memory for data.
    fn small(io: IoBackend) -> Self {
        Self::with_pool(
            io,
            &[(4 << 10, 16), (16 << 10, 16), (128 << 10, 4), (1 << 20, 2)],
        )
    }

    /// On a target that has these buffers.
    fn with_pool(io: IoBackend, classes: &[(usize, usize)]) -> Self {
        let class = |&(bytes, count)| ClassConfig { bytes, count };
        let classes = classes.iter().map(class).collect();
        let reactor = Config {
            io,
            pool: PoolConfig { classes },
            ..Config::default()
        };
        let rig = Rig::empty(reactor, TargetConfig::default());
        rig.add_subsystem(NQN, Hosts::Any);
        rig.add_disk(NQN, DISK_BYTES);
        Self::on(rig)
    }

    fn on(rig: Rig) -> Self {
        let bystander = Bystander::start(rig.address);
        let gate = Arc::new(Gate::default());
        let of_device = Arc::clone(&gate);
        let gated = rig.add_namespace_on(NQN, move |cx| {
            TestDevice::new(Gated {
                inner: disk(cx, DISK_BYTES, BLOCK),
                gate: of_device,
            })
        });
        let (queue, admin) = Raw::io(rig.address, Digests::NONE);
        Self {
            rig,
            bystander,
            gate,
            gated,
            queue,
            admin,
        }
    }

    /// Sends a command whose data, if it has some, is in its capsule.
    fn send(&mut self, sqe: Sqe, data: Option<&[u8]>) -> CommandId {
        let capsule = self.queue.capsule(sqe, data);
        self.queue.send(&capsule);
        self.queue.last_cid()
    }

    /// Sends a write whose data is asked for, and takes that R2T.
    fn send_and_await_r2t(&mut self, lba: u64, bytes: u32) -> (CommandId, R2t) {
        self.send_late(write(NSID, lba, bytes), bytes);
        let r2t = self.queue.recv().expect("an R2T").r2t();
        assert_eq!(r2t.cccid, self.queue.last_cid());
        (r2t.cccid, r2t)
    }

    fn send_read(&mut self, nsid: NamespaceId, bytes: u32) -> CommandId {
        let nlb = u16::try_from(bytes / BLOCK - 1).expect("16 bits");
        self.send_late(command::read(nsid, 0, nlb), bytes)
    }

    /// Sends a command whose data would be asked for.
    fn send_late(&mut self, sqe: Sqe, bytes: u32) -> CommandId {
        let capsule = self
            .queue
            .capsule_with(sqe.with_sgl1(Sgl::transport(bytes)), &[]);
        self.queue.send(&capsule);
        self.queue.last_cid()
    }

    /// Everything that was sent on the queue has arrived when this returns.
    fn round_trip(&mut self) {
        let flushed = self.queue.command(command::flush(NSID), None);
        assert_eq!(flushed.status, Status::SUCCESS);
    }

    fn send_data(&mut self, r2t: &R2t, data: &[u8]) {
        let header = H2CData {
            cccid: r2t.cccid,
            ttag: r2t.ttag,
            datao: r2t.r2to,
            datal: length(data),
            last: true,
        };
        let pdu = self.queue.h2c_data(header, data);
        self.queue.send(&pdu);
    }

    /// Sends data for this R2T and all that follow, until a command has ended.
    fn finish(&mut self, mut r2t: R2t, byte: u8) -> Cqe {
        loop {
            self.send_data(&r2t, &vec![byte; r2t.r2tl as usize]);
            let pdu = self.queue.recv().expect("an R2T or the end");
            if pdu.kind() == 0x05 {
                return pdu.cqe();
            }
            r2t = pdu.r2t();
        }
    }

    fn send_abort(&mut self, sqid: u16, cid: CommandId) -> CommandId {
        let capsule = self.admin.capsule(abort(sqid, cid), None);
        self.admin.send(&capsule);
        self.admin.last_cid()
    }

    /// Aborts what can be decided on at once.
    fn abort(&mut self, cid: CommandId) -> u64 {
        let cqe = self.admin.command(abort(1, cid), None);
        assert_eq!(cqe.status, Status::SUCCESS);
        cqe.result
    }

    /// Opens the device and has it looked at.
    fn open(&self) {
        self.gate.set_closed(false);
        self.gate.set_full(false);
        self.rig.call(|_, _, _| {});
    }

    /// What is there, as another host sees it.
    fn medium(&self, nsid: NamespaceId, lba: u64, len: usize) -> Vec<u8> {
        Disk::connect(self.rig.address, IoBackend::Auto).read(nsid, lba, len)
    }

    /// Nobody was disturbed, the queue still serves, and nothing is left.
    fn end(mut self) {
        self.bystander.await_progress("beside aborts");
        self.round_trip();
        let alive = self.admin.command(Sqe::new(admin::KEEP_ALIVE), None);
        assert_eq!(alive.status, Status::SUCCESS);
        self.bystander.stop();
        drop((self.queue, self.admin));
        self.rig.await_nothing_left();
    }
}

fn abort(sqid: u16, cid: CommandId) -> Sqe {
    Sqe::new(admin::ABORT).with_cdw(10, u32::from(cid.0) << 16 | u32::from(sqid))
}

fn write(nsid: NamespaceId, lba: u64, bytes: u32) -> Sqe {
    let nlb = u16::try_from(bytes / BLOCK - 1).expect("16 bits");
    command::write(nsid, lba, nlb, false)
}

fn response(queue: &mut Raw) -> Cqe {
    queue.recv().expect("a response").cqe()
}

/// The next response is that of `cid`; how did it end?
fn ended(queue: &mut Raw, cid: CommandId) -> Status {
    let cqe = response(queue);
    assert_eq!(cqe.cid, cid);
    verdict(cqe.status)
}

fn write_that_waits_for_its_data_is_aborted_when_the_data_has_come(io: IoBackend) {
    let mut stage = Stage::new(io);
    for bytes in [8 << 10, 256 << 10] {
        let (cid, r2t) = stage.send_and_await_r2t(0, bytes);
        let aborting = stage.send_abort(1, cid);
        // The second changes nothing, and its answer shows that the first one's is not due yet.
        assert_eq!(stage.abort(cid), NO);
        let end = stage.finish(r2t, 7);
        assert_eq!((end.cid, verdict(end.status)), (cid, ABORTED));
        let answer = response(&mut stage.admin);
        assert_eq!((answer.cid, answer.result), (aborting, YES));
        let found = stage.medium(NSID, 0, 8 << 10);
        assert!(found.iter().all(|byte| *byte == 0), "it was not written");
    }
    stage.end();
}

fn command_at_its_device_is_not_aborted(io: IoBackend) {
    let mut stage = Stage::new(io);
    stage.gate.set_closed(true);
    let data = pattern(1, 4096);
    let cid = stage.send(write(stage.gated, 8, 4096), Some(&data));
    let gate = Arc::clone(&stage.gate);
    until("it is there", || (gate.submitted() == 1).then_some(()));
    assert_eq!(stage.abort(cid), NO);
    assert_eq!(stage.abort(cid), NO, "nor by asking again");
    stage.bystander.await_progress("while a device is slow");
    stage.open();
    assert_eq!(ended(&mut stage.queue, cid), Status::SUCCESS);
    assert!(stage.medium(stage.gated, 8, 4096) == data);
    assert_eq!(stage.abort(cid), NO, "it has ended");
    stage.end();
}

fn command_in_the_backlog_of_its_device_never_reaches_it(io: IoBackend) {
    let mut stage = Stage::new(io);
    stage.gate.set_full(true);
    let nsid = stage.gated;
    let one = stage.send(write(nsid, 0, 512), Some(&[1; 512]));
    let other = stage.send(write(nsid, 1, 512), Some(&[2; 512]));
    let read = stage.send_read(nsid, 4096);
    let gate = Arc::clone(&stage.gate);
    until("it is refused", || (gate.refused() > 0).then_some(()));
    // Those behind it came on the same connection; a round trip on it shows that they are there.
    stage.round_trip();
    // From within the backlog, from its end, and from its front.
    for cid in [other, read, one] {
        assert_eq!(stage.abort(cid), YES);
        assert_eq!(ended(&mut stage.queue, cid), ABORTED);
    }
    assert_eq!(stage.gate.submitted(), 0);
    let last = stage.send(write(nsid, 2, 512), Some(&[3; 512]));
    stage.open();
    assert_eq!(ended(&mut stage.queue, last), Status::SUCCESS);
    assert_eq!(stage.gate.submitted(), 1);
    let found = stage.medium(nsid, 0, 1536);
    assert_eq!((found[0], found[512], found[1024]), (0, 0, 3));
    stage.end();
}

fn aborted_pair_lets_those_behind_it_go(io: IoBackend) {
    let mut stage = Stage::new(io);
    let nsid = stage.gated;
    let first = command::compare(nsid, 0, 0).with_fuse(Fuse::First);
    let second = write(nsid, 0, 512).with_fuse(Fuse::Second);
    for by_second in [false, true] {
        stage.gate.set_closed(true);
        let before = stage.gate.submitted();
        let running = stage.send(write(nsid, 0, 512), Some(&[0; 512]));
        let one = stage.send(first, Some(&[0; 512]));
        let other = stage.send(second, Some(&[1; 512]));
        let behind = stage.send(write(nsid, 0, 512), Some(&[2; 512]));
        stage.round_trip();
        assert_eq!(stage.gate.submitted(), before + 1, "the others wait");
        let failed = Status::ABORTED_FAILED_FUSED;
        let (cid, ends) = if by_second {
            (other, [failed, ABORTED])
        } else {
            (one, [ABORTED, failed])
        };
        assert_eq!(stage.abort(cid), YES);
        assert_eq!(ended(&mut stage.queue, one), ends[0]);
        assert_eq!(ended(&mut stage.queue, other), ends[1]);
        assert_eq!(stage.gate.submitted(), before + 2, "behind it is nothing");
        stage.open();
        let mut ends = [(); 2].map(|()| response(&mut stage.queue));
        ends.sort_by_key(|cqe| cqe.cid);
        assert_eq!(ends.map(|cqe| cqe.cid), [running, behind]);
        assert!(ends.iter().all(|cqe| cqe.status == Status::SUCCESS));
        assert!(stage.medium(nsid, 0, 512) == [2; 512]);
    }
    stage.end();
}

fn long_verify_ends_early(io: IoBackend) {
    let mut stage = Stage::new(io);
    stage.gate.set_closed(true);
    let verify = Sqe::new(opcode::VERIFY)
        .with_nsid(stage.gated)
        .with_nlb(32_767);
    let cid = stage.send(verify, None);
    let gate = Arc::clone(&stage.gate);
    until("it is there", || (gate.submitted() == 1).then_some(()));
    let aborting = stage.send_abort(1, cid);
    // The answer to a second one shows that the first has been taken.
    assert_eq!(stage.abort(cid), NO);
    stage.open();
    assert_eq!(ended(&mut stage.queue, cid), ABORTED);
    let answer = response(&mut stage.admin);
    assert_eq!((answer.cid, answer.result), (aborting, YES));
    assert_eq!(stage.gate.submitted(), 1, "of 128 parts");
    stage.end();
}

fn event_requests_are_aborted_at_once(io: IoBackend) {
    let mut stage = Stage::new(io);
    let mut events = Vec::new();
    for _ in 0..3 {
        let capsule = stage.admin.capsule(command::async_event_request(), None);
        stage.admin.send(&capsule);
        events.push(stage.admin.last_cid());
    }
    for event in [events[1], events[0], events[2]] {
        assert_eq!(stage.abort(event), NO, "there is none on the I/O queue");
        let aborting = stage.send_abort(0, event);
        assert_eq!(ended(&mut stage.admin, event), ABORTED);
        let answer = response(&mut stage.admin);
        assert_eq!((answer.cid, answer.result), (aborting, YES));
    }
    stage.end();
}

fn fifth_abort_at_a_time_is_refused(io: IoBackend) {
    let mut stage = Stage::new(io);
    let waiting: Vec<_> = (0..5).map(|_| stage.send_and_await_r2t(0, 8192)).collect();
    let mut aborts = Vec::new();
    for (cid, _) in &waiting[..4] {
        aborts.push(stage.send_abort(1, *cid));
    }
    let fifth = stage.admin.command(abort(1, waiting[4].0), None);
    assert!(fifth.status.same_code(Status::ABORT_LIMIT_EXCEEDED));
    for (at, (cid, r2t)) in waiting.iter().enumerate() {
        stage.send_data(r2t, &[7; 8192]);
        let end = ended(&mut stage.queue, *cid);
        let Some(&aborting) = aborts.get(at) else {
            assert_eq!(end, Status::SUCCESS, "its Abort was refused");
            continue;
        };
        assert_eq!(end, ABORTED);
        let answer = response(&mut stage.admin);
        assert_eq!((answer.cid, answer.result), (aborting, YES));
    }
    stage.end();
}

fn queue_that_goes_answers_its_aborts(io: IoBackend) {
    let mut stage = Stage::new(io);
    let (cid, _) = stage.send_and_await_r2t(0, 8192);
    let aborting = stage.send_abort(1, cid);
    assert_eq!(stage.abort(cid), NO);
    stage.queue.finish();
    let answer = response(&mut stage.admin);
    assert_eq!((answer.cid, answer.result), (aborting, NO));
    stage.bystander.await_progress("after a queue has gone");
    stage.bystander.stop();
    drop((stage.queue, stage.admin));
    stage.rig.await_nothing_left();
}

/// They wait at their own connection, which holds what it may.
fn commands_behind_their_connections_share_are_aborted_at_once(io: IoBackend) {
    let mut stage = Stage::small(io);
    // Each moves in parts, of which the connection may hold one.
    let bytes = 512 << 10;
    let (one, r2t) = stage.send_and_await_r2t(0, bytes);
    assert!(r2t.r2tl < bytes, "a part");
    let waiting = [1, 2, 3, 4].map(|nth| stage.send_late(write(NSID, nth << 10, bytes), bytes));
    stage.round_trip();
    // From within, from the front and from the end.
    for at in [1, 0, 3] {
        assert_eq!(stage.abort(waiting[at]), YES, "{at}");
        assert_eq!(ended(&mut stage.queue, waiting[at]), ABORTED, "{at}");
    }
    // The one that is left goes on when the first holds less.
    let first = stage.finish(r2t, 5);
    let second = stage.queue.recv().expect("an R2T or the end");
    let second = if second.kind() == 0x05 {
        second.cqe()
    } else {
        stage.finish(second.r2t(), 5)
    };
    let mut ends = [first, second];
    ends.sort_by_key(|cqe| cqe.cid);
    assert_eq!(ends.map(|cqe| cqe.cid), [one, waiting[2]]);
    assert!(ends.iter().all(|cqe| cqe.status == Status::SUCCESS));
    for (nth, byte) in [(0, 5), (1, 0), (2, 0), (3, 5), (4, 0)] {
        let found = stage.medium(NSID, nth << 10, 512 << 10);
        assert!(found.iter().all(|it| *it == byte), "write {nth}");
    }
    stage.end();
}

/// They need a buffer in one piece, and others have all of these.
fn commands_that_wait_for_the_pool_are_aborted_at_once(io: IoBackend) {
    let mut stage = Stage::small(io);
    let bytes = 512 << 10;
    let nlb = u16::try_from(bytes / BLOCK - 1).expect("16 bits");
    let compare = command::compare(NSID, 0, nlb);
    // One of the two large buffers is kept for Compare, and this takes the other.
    let (mut other, other_admin) = Raw::io(stage.rig.address, Digests::NONE);
    let capsule = other.capsule_with(compare.with_sgl1(Sgl::transport(bytes)), &[]);
    other.send(&capsule);
    let _ = other.recv().expect("an R2T").r2t();
    let alone = stage.send_late(compare, bytes);
    stage.round_trip();
    assert_eq!(stage.abort(alone), YES);
    assert_eq!(ended(&mut stage.queue, alone), ABORTED);
    // A pair needs room for both halves, and either takes the other with it.
    let failed = Status::ABORTED_FAILED_FUSED;
    for by_second in [false, true] {
        let half = bytes / 2;
        let nlb = u16::try_from(half / BLOCK - 1).expect("16 bits");
        let first = command::compare(NSID, 0, nlb).with_fuse(Fuse::First);
        let first = stage.send_late(first, half);
        let second = write(NSID, 0, half).with_fuse(Fuse::Second);
        let second = stage.send_late(second, half);
        stage.round_trip();
        let (cid, ends) = if by_second {
            (second, [failed, ABORTED])
        } else {
            (first, [ABORTED, failed])
        };
        assert_eq!(stage.abort(cid), YES);
        let mut found = [(); 2].map(|()| response(&mut stage.queue));
        found.sort_by_key(|cqe| cqe.cid);
        assert_eq!(found.map(|cqe| cqe.cid), [first, second]);
        assert_eq!(found.map(|cqe| verdict(cqe.status)), ends);
    }
    // What the connection asks for now is not behind anything.
    let (cid, r2t) = stage.send_and_await_r2t(0, 32 << 10);
    stage.send_data(&r2t, &vec![3; r2t.r2tl as usize]);
    assert_eq!(ended(&mut stage.queue, cid), Status::SUCCESS);
    drop((other, other_admin));
    stage.end();
}

/// Data of a pair is there, and its device would read, but every buffer is at the device.
fn pair_that_waits_for_what_its_device_reads_is_aborted_by_either_half(io: IoBackend) {
    let mut stage = Stage::with_pool(io, &[(1 << 20, 3)]);
    stage.gate.set_closed(true);
    let nsid = stage.gated;
    let halves = |lba: u64| {
        let first = command::compare(nsid, lba, 0).with_fuse(Fuse::First);
        let second = write(nsid, lba, 512).with_fuse(Fuse::Second);
        [(first, [0; 512]), (second, [1; 512])]
    };
    let mut others = Vec::new();
    for lba in 0..3 {
        let (mut queue, admin) = Raw::io(stage.rig.address, Digests::NONE);
        for (sqe, data) in halves(lba) {
            let capsule = queue.capsule(sqe, Some(&data));
            queue.send(&capsule);
        }
        let gate = &stage.gate;
        until("it is there", || (gate.submitted() > lba).then_some(()));
        others.push((queue, admin));
    }
    let failed = Status::ABORTED_FAILED_FUSED;
    for (half, ends) in [(0, [ABORTED, failed]), (1, [failed, ABORTED])] {
        let cids = halves(3).map(|(sqe, data)| stage.send(sqe, Some(&data)));
        stage.round_trip();
        assert_eq!(stage.abort(cids[half]), YES, "{half}");
        for (cid, end) in cids.into_iter().zip(ends) {
            assert_eq!(ended(&mut stage.queue, cid), end, "{half}");
        }
    }
    assert_eq!(stage.gate.submitted(), 3);
    stage
        .bystander
        .await_progress("while the pool is at a device");
    stage.open();
    for (queue, _) in &mut others {
        assert!([(); 2].iter().all(|()| queue.await_status().is_success()));
    }
    assert!(stage.medium(nsid, 3, 512) == [0; 512]);
    drop(others);
    stage.end();
}
