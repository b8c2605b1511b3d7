//! The executor over a device whose operations end when, and in the order, a test wants.

use std::collections::VecDeque;

use bowline_block::{
    BufPool, Completions, Device, DeviceEvent, Geometry, Io, IoBuf, IoError, MemDevice, Op,
    PoolConfig,
};
use bowline_nvme::nvm::CopyRange;
use bowline_nvme::{Nanos, Status};
use bowline_nvmf::target::{ConnId, IoCommand, IoOp, NamespaceHandle, SlotId};
use proptest::prelude::*;

use super::step::CHUNK_BYTES;
use super::{Executor, Finished};

mod withdraw;

const BLOCK: usize = 512;

/// Memory that is changed, and read, when an operation ends.
struct Slow {
    memory: MemDevice,
    waiting: Vec<Io>,
    /// Operations that may end with the next poll, by their place in `waiting`.
    release: VecDeque<usize>,
    depth: usize,
    done: Vec<(Op, u64, u32, bool)>,
    fail: Option<(Op, IoError)>,
    /// Plain Reads and Writes need not be waited for.
    immediate: bool,
}

impl Slow {
    fn new(depth: usize) -> Self {
        Self {
            memory: MemDevice::new(4 << 20, 512).expect("memory"),
            waiting: Vec::new(),
            release: VecDeque::new(),
            depth,
            done: Vec::new(),
            fail: None,
            immediate: false,
        }
    }
}

impl Device for Slow {
    fn geometry(&self) -> Geometry {
        self.memory.geometry()
    }

    fn depth_max(&self) -> usize {
        self.depth
    }

    fn try_submit(&mut self, io: Io) -> Result<(), Io> {
        if self.waiting.len() >= self.depth {
            return Err(io);
        }
        self.waiting.push(io);
        Ok(())
    }

    fn is_immediate(&self) -> bool {
        self.immediate
    }

    fn read_now(&mut self, lba: u64, into: &mut [u8]) -> Result<(), IoError> {
        self.memory.read_now(lba, into)
    }

    fn write_now(&mut self, lba: u64, data: &[u8]) -> Result<(), IoError> {
        self.memory.write_now(lba, data)
    }

    fn poll(&mut self, now: Nanos, out: &mut Completions) {
        while let Some(at) = self.release.pop_front() {
            let io = self.waiting.remove(at);
            self.done.push((io.op, io.lba, io.blocks, io.fua));
            match self.fail {
                Some((op, error)) if op == io.op => out.push(io.complete(Err(error))),
                _ => {
                    self.memory.try_submit(io).expect("room");
                    self.memory.poll(now, out);
                }
            }
        }
    }

    fn poll_timeout(&self) -> Option<Nanos> {
        None
    }

    fn poll_event(&mut self) -> Option<DeviceEvent> {
        None
    }

    fn refresh(&mut self) -> std::io::Result<Geometry> {
        self.memory.refresh()
    }
}

struct Bench {
    executor: Executor<Slow>,
    handle: NamespaceHandle,
    pool: BufPool,
    finished: Vec<Finished>,
}

impl Bench {
    fn new(depth: usize) -> Self {
        Self::of(Slow::new(depth))
    }

    fn of(device: Slow) -> Self {
        let mut executor = Executor::new();
        let handle = executor.add(device).expect("a place");
        Self {
            executor,
            handle,
            pool: BufPool::new(PoolConfig::with_budget(16 << 20)).expect("memory"),
            finished: Vec::new(),
        }
    }

    fn device(&mut self) -> &mut Slow {
        self.executor.device_mut(self.handle).expect("there")
    }

    fn buffer(&self, data: &[u8]) -> Option<IoBuf> {
        let mut buffer = self.pool.alloc(data.len())?;
        buffer.as_mut().expect("sole").copy_from_slice(data);
        Some(buffer)
    }

    fn start(&mut self, slot: u16, op: IoOp, payload: &[u8]) {
        let command = IoCommand {
            namespace: self.handle,
            op,
            bytes: 0,
        };
        let scratch = self.pool.alloc(self.executor.read_bytes(&command));
        let payload = self.buffer(payload);
        let finished = &mut self.finished;
        self.executor
            .start(conn(), SlotId(slot), &command, payload, scratch, finished);
    }

    fn write(&mut self, slot: u16, lba: u64, byte: u8) {
        let op = IoOp::Write {
            lba,
            blocks: 1,
            fua: false,
        };
        self.start(slot, op, &[byte; BLOCK]);
    }

    /// A pair in slots `slot` and the next that replaces `old` by `new`.
    fn pair(&mut self, slot: u16, lba: u64, old: u8, new: u8) {
        let data = [[old; BLOCK], [new; BLOCK]].concat();
        self.start(slot, fused(slot, lba, 1), &data);
    }

    fn waiting(&mut self) -> Vec<(Op, u64)> {
        let ios = self.device().waiting.iter();
        ios.map(|io| (io.op, io.lba)).collect()
    }

    /// Lets the operation at this place end.
    fn release(&mut self, at: usize) {
        self.device().release.push_back(at);
        self.poll();
    }

    fn poll(&mut self) {
        let finished = &mut self.finished;
        self.executor.poll(Nanos::ZERO, finished);
    }

    /// Lets everything end, in the order of arrival.
    fn release_all(&mut self) {
        for _ in 0..1000 {
            if self.executor.in_flight() == 0 {
                return;
            }
            if !self.waiting().is_empty() {
                self.device().release.push_back(0);
            }
            self.poll();
        }
        panic!("commands hang");
    }

    fn medium(&mut self, lba: u64) -> u8 {
        let memory = &mut self.executor.device_mut(self.handle).expect("there").memory;
        let data = self.pool.alloc(BLOCK).expect("room").into();
        let io = Io {
            op: Op::Read,
            lba,
            blocks: 1,
            fua: false,
            data,
            token: 0,
        };
        memory.try_submit(io).expect("room");
        let mut out = Completions::with_capacity(1);
        memory.poll(Nanos::ZERO, &mut out);
        let mut read = out.pop().expect("done");
        read.data.pop().expect("data")[0]
    }

    fn statuses(&mut self) -> Vec<(u16, Status)> {
        let mut all: Vec<_> = self
            .finished
            .drain(..)
            .map(|it| (it.slot.0, it.status))
            .collect();
        all.sort_by_key(|(slot, _)| *slot);
        all
    }
}

fn conn() -> ConnId {
    ConnId {
        index: 0,
        generation: 0,
    }
}

fn fused(slot: u16, lba: u64, blocks: u32) -> IoOp {
    IoOp::CompareAndWrite {
        second: SlotId(slot + 1),
        lba,
        blocks,
        read_fua: false,
        fua: false,
    }
}

const OK: Status = Status::SUCCESS;

/// A read that waited for a buffer while its namespace was replaced ran on the new device.
/// Handles name a device, not the place where one was.
#[test]
fn command_for_a_removed_namespace_never_runs_on_the_next_device_there() {
    let mut bench = Bench::new(8);
    let old = bench.handle;
    bench.executor.retire(old);
    bench.handle = bench.executor.add(Slow::new(8)).expect("a place");
    assert_ne!(old, bench.handle);
    let op = IoOp::Read {
        lba: 0,
        blocks: 8,
        fua: false,
    };
    let command = |namespace| IoCommand {
        namespace,
        op,
        bytes: 4096,
    };
    assert_eq!(bench.executor.read_bytes(&command(old)), 0);
    assert_eq!(bench.executor.read_bytes(&command(bench.handle)), 4096);
    bench.handle = old;
    bench.start(0, op, &[]);
    bench.start(4, fused(4, 0, 1), &[0; 2 * BLOCK]);
    let gone = Status::INVALID_NAMESPACE.dnr();
    assert_eq!(bench.statuses(), [(0, gone), (4, gone), (5, gone)]);
    assert_eq!(bench.executor.in_flight(), 0);
}

/// Every turn asked every device, so that thousands of idle namespaces slowed down the one in
/// use. Only those with something running are looked at.
#[test]
fn turn_looks_only_at_devices_with_something_to_do() {
    let mut executor = Executor::new();
    let device = || MemDevice::new(1 << 20, 512).expect("memory");
    let handles: Vec<_> = (0..100)
        .map(|_| executor.add(device()).expect("a place"))
        .collect();
    assert!(executor.busy.is_empty());
    let command = IoCommand {
        namespace: handles[70],
        op: IoOp::Flush,
        bytes: 0,
    };
    for _ in 0..2 {
        let mut finished = Vec::new();
        executor.start(conn(), SlotId(0), &command, None, None, &mut finished);
        assert!(finished.is_empty());
        assert_eq!(executor.busy, [70]);
        executor.poll(Nanos::ZERO, &mut finished);
        assert_eq!(finished.len(), 1);
        assert!(executor.busy.is_empty());
    }
    // Its place is used again, once, and what is removed while listed is forgotten.
    assert!(executor.device_mut(handles[3]).is_some());
    executor.retire(handles[3]);
    let next = executor.add(device()).expect("a place");
    assert_ne!(next, handles[3]);
    assert!(executor.device_mut(next).is_some());
    assert_eq!(executor.busy, [3]);
    executor.poll(Nanos::ZERO, &mut Vec::new());
    assert!(executor.busy.is_empty());
}

#[test]
fn pair_writes_only_what_it_found_unchanged() {
    let mut bench = Bench::new(8);
    bench.pair(0, 7, 0, 1);
    assert_eq!(bench.waiting(), [(Op::Read, 7)]);
    bench.release_all();
    assert_eq!(bench.statuses(), [(0, OK), (1, OK)]);
    assert_eq!(bench.medium(7), 1);
    bench.pair(0, 7, 0, 2);
    bench.release_all();
    let differs = Status::COMPARE_FAILURE.dnr();
    assert_eq!(
        bench.statuses(),
        [(0, differs), (1, Status::ABORTED_FAILED_FUSED)]
    );
    assert_eq!(bench.medium(7), 1);
    assert!(
        bench.executor.units[0]
            .as_ref()
            .expect("unit")
            .order
            .is_free()
    );
}

#[test]
fn pair_tells_which_half_the_medium_failed() {
    let mut bench = Bench::new(8);
    bench.device().fail = Some((Op::Read, IoError::MediaRead));
    bench.pair(0, 7, 0, 1);
    bench.release_all();
    assert_eq!(
        bench.statuses(),
        [
            (0, Status::UNRECOVERED_READ),
            (1, Status::ABORTED_FAILED_FUSED)
        ]
    );
    bench.device().fail = Some((Op::Write, IoError::MediaWrite));
    bench.pair(0, 7, 0, 1);
    bench.release_all();
    assert_eq!(bench.statuses(), [(0, OK), (1, Status::WRITE_FAULT)]);
}

#[test]
fn pair_waits_for_older_changes_of_its_blocks_and_younger_ones_wait_for_it() {
    let zeroes = |lba, blocks| IoOp::WriteZeroes {
        lba,
        blocks,
        deallocate: false,
        fua: false,
    };
    let mut bench = Bench::new(8);
    bench.write(0, 10, 9);
    bench.pair(2, 10, 9, 1);
    bench.write(4, 10, 5);
    bench.start(5, zeroes(0, 11), &[]);
    // Elsewhere nothing waits, and a read never does.
    bench.write(6, 11, 6);
    let read = IoOp::Read {
        lba: 10,
        blocks: 1,
        fua: false,
    };
    bench.start(7, read, &[]);
    assert_eq!(
        bench.waiting(),
        [(Op::Write, 10), (Op::Write, 11), (Op::Read, 10)]
    );
    bench.release(0);
    assert_eq!(
        bench.waiting(),
        [(Op::Write, 11), (Op::Read, 10), (Op::Read, 10)]
    );
    bench.release(2);
    assert_eq!(bench.waiting()[2], (Op::Write, 10));
    bench.release(2);
    // The pair is done: those behind it go, in their order.
    assert_eq!(bench.waiting().len(), 4);
    bench.release_all();
    let expected: Vec<_> = [0, 2, 3, 4, 5, 6, 7].map(|slot| (slot, OK)).into();
    assert_eq!(bench.statuses(), expected);
    assert_eq!((bench.medium(10), bench.medium(11)), (0, 6));
}

#[test]
fn what_can_run_at_once_does_unless_a_pair_has_blocks_to_itself() {
    let mut bench = Bench::of(Slow {
        immediate: true,
        ..Slow::new(8)
    });
    let handle = bench.handle;
    let write = |lba, blocks| IoCommand {
        namespace: handle,
        op: IoOp::Write {
            lba,
            blocks,
            fua: true,
        },
        bytes: blocks * 512,
    };
    let read = |lba, fua| IoCommand {
        namespace: handle,
        op: IoOp::Read {
            lba,
            blocks: 1,
            fua,
        },
        bytes: 512,
    };
    let pool = BufPool::new(PoolConfig::with_budget(1 << 20)).expect("memory");
    let alloc = |bytes| pool.alloc(bytes);
    let data = [9; BLOCK];
    bench.write(1, 7, 5);
    assert_eq!(bench.statuses(), [(1, Status::SUCCESS)]);
    assert!(bench.waiting().is_empty() && bench.executor.in_flight() == 0);
    let conn = conn();
    let executor = &mut bench.executor;
    assert!(executor.runs_now());
    let mut run = |lba, data: Option<&[u8]>| executor.write_now(conn, &write(lba, 1), || data);
    assert_eq!(run(8, None), None, "damaged");
    assert_eq!(run(8, Some(&data)), Some(()));
    let got = executor
        .read_now(conn, &read(8, false), alloc)
        .expect("it is read");
    assert_eq!(got.copied().as_slice(), data);
    let fua = executor.read_now(conn, &read(8, true), alloc);
    assert!(fua.is_none(), "FUA");
    let without = executor.read_now(conn, &read(8, false), |_| None);
    assert!(without.is_none());
    bench.pair(2, 7, 5, 6);
    let executor = &mut bench.executor;
    let mut run = |lba| executor.write_now(conn, &write(lba, 1), || Some(&data));
    assert_eq!(run(7), None);
    assert!(executor.read_now(conn, &read(7, false), alloc).is_none());
    bench.write(4, 7, 8);
    assert_eq!(bench.statuses(), [], "it waits for the pair");
    bench.release_all();
    let all = [2, 3, 4].map(|slot| (slot, Status::SUCCESS));
    let mut statuses = bench.statuses();
    statuses.sort_by_key(|it| it.0);
    assert_eq!(statuses, all);
    assert_eq!(bench.medium(7), 8);
    let executor = &mut bench.executor;
    let run =
        |executor: &mut Executor<Slow>| executor.write_now(conn, &write(7, 1), || Some(&data));
    assert_eq!(run(executor), Some(()));
    executor.retire(handle);
    assert!(!executor.runs_now());
    assert_eq!(run(executor), None);
}

/// A device that had failed a command as it came was asked a second time, which could hide what the
/// first had found.
#[test]
fn what_a_device_has_failed_is_not_run_again() {
    let mut bench = Bench::of(Slow {
        immediate: true,
        ..Slow::new(8)
    });
    // Nobody but the executor's callers knows how large the device is.
    let beyond = IoOp::Write {
        lba: 1 << 40,
        blocks: 1,
        fua: false,
    };
    let command = |op| IoCommand {
        namespace: bench.handle,
        op,
        bytes: 512,
    };
    let (first, second) = (command(beyond), command(IoOp::Flush));
    let data = [9; BLOCK];
    let executor = &mut bench.executor;
    let other = ConnId { index: 1, ..conn() };
    for owner in [conn(), other] {
        assert_eq!(executor.write_now(owner, &first, || Some(&data)), None);
        assert!(!executor.runs_now(), "a failure is to be told first");
        executor.forget_failure(ConnId { index: 2, ..conn() });
        assert!(!executor.runs_now(), "it was not of that connection");
        let start = |executor: &mut Executor<Slow>, owner, command: &IoCommand| {
            let mut finished = Vec::new();
            executor.start(owner, SlotId(1), command, None, None, &mut finished);
            finished.pop().map(|it| it.status)
        };
        assert_eq!(start(executor, owner, &second), None, "it is at its device");
        // Without its data it could not run again.
        let told = start(executor, owner, &first).expect("it has ended");
        assert_eq!(told, crate::status::io_status(IoError::OutOfRange));
        assert!(executor.runs_now());
    }
    assert_eq!(executor.write_now(other, &first, || Some(&data)), None);
    executor.forget_failure(other);
    assert!(executor.runs_now(), "it will not be told");
}

#[test]
fn change_that_waits_is_not_overtaken_by_younger_pairs() {
    let mut bench = Bench::new(8);
    bench.pair(0, 10, 0, 1);
    bench.write(2, 10, 7);
    bench.pair(4, 10, 7, 8);
    bench.pair(6, 10, 8, 9);
    assert_eq!(bench.waiting(), [(Op::Read, 10)]);
    bench.release_all();
    assert!(bench.statuses().iter().all(|(_, status)| *status == OK));
    assert_eq!(bench.medium(10), 9);
}

#[test]
fn read_with_fua_leaves_what_it_returns_on_stable_media() {
    let mut bench = Bench::new(8);
    bench.write(0, 10, 9);
    let read = IoOp::Read {
        lba: 8,
        blocks: 4,
        fua: true,
    };
    bench.start(1, read, &[]);
    bench.write(2, 11, 5);
    assert_eq!(bench.waiting(), [(Op::Write, 10)]);
    bench.release(0);
    assert_eq!(bench.waiting(), [(Op::Flush, 0)]);
    bench.release(0);
    assert_eq!(bench.waiting(), [(Op::Read, 8)]);
    bench.release(0);
    assert_eq!(bench.waiting(), [(Op::Write, 11)]);
    let read = bench.finished.pop().and_then(|it| it.data).expect("data");
    let read = read.copied();
    assert_eq!((read[2 * BLOCK], read[3 * BLOCK]), (9, 0));
    bench.release_all();
    // A flush that fails fails the read: nobody vouches for the data.
    bench.statuses();
    bench.device().fail = Some((Op::Flush, IoError::MediaWrite));
    let verify = IoOp::Verify {
        lba: 8,
        blocks: 4,
        fua: true,
    };
    bench.start(1, verify, &[]);
    bench.release_all();
    assert_eq!(bench.statuses(), [(1, Status::WRITE_FAULT)]);
}

#[test]
fn verify_reads_everything_in_parts_and_stops_at_the_first_error() {
    let mut bench = Bench::new(8);
    let blocks = 2 * u32::try_from(CHUNK_BYTES / BLOCK).expect("small") + 3;
    let verify = IoOp::Verify {
        lba: 5,
        blocks,
        fua: false,
    };
    bench.start(0, verify, &[]);
    bench.release_all();
    assert_eq!(bench.statuses(), [(0, OK)]);
    let done: Vec<_> = bench.device().done.drain(..).collect();
    let expected = [(5, 256), (261, 256), (517, 3)];
    assert_eq!(
        done,
        expected.map(|(lba, count)| (Op::Read, lba, count, false))
    );
    bench.device().fail = Some((Op::Read, IoError::MediaRead));
    bench.start(0, verify, &[]);
    bench.release_all();
    assert_eq!(bench.statuses(), [(0, Status::UNRECOVERED_READ)]);
    assert_eq!(bench.device().done.len(), 1);
}

fn copy(lba: u64, sources: &[(u64, u32)], fua: bool) -> (IoOp, Vec<u8>) {
    let encode = |&(slba, blocks): &(u64, u32)| CopyRange { slba, blocks }.encode();
    let op = IoOp::Copy {
        lba,
        blocks: sources.iter().map(|(_, blocks)| blocks).sum(),
        ranges: u16::try_from(sources.len()).expect("few"),
        fua,
    };
    (op, sources.iter().flat_map(encode).collect())
}

#[test]
fn copy_puts_its_ranges_one_after_the_other_in_parts() {
    let mut bench = Bench::new(8);
    for (lba, byte) in [(0, 1), (1, 2), (300, 3), (599, 4)] {
        bench.write(0, lba, byte);
        bench.release_all();
    }
    bench.statuses();
    bench.device().done.clear();
    let (op, list) = copy(4000, &[(1, 1), (300, 300), (0, 2)], true);
    bench.start(0, op, &list);
    bench.release_all();
    assert_eq!(bench.statuses(), [(0, OK)]);
    let lbas = [4000, 4001, 4300, 4301, 4302];
    assert_eq!(lbas.map(|lba| bench.medium(lba)), [2, 3, 4, 1, 2]);
    let done = &bench.device().done;
    let writes: Vec<_> = done.iter().filter(|it| it.0 == Op::Write).collect();
    assert_eq!(writes.len(), 4);
    assert!(writes.iter().all(|it| it.3), "FUA");
    bench.device().fail = Some((Op::Write, IoError::MediaWrite));
    bench.start(0, op, &list);
    bench.release_all();
    assert_eq!(bench.statuses(), [(0, Status::WRITE_FAULT)]);
}

#[test]
fn copy_and_deallocate_wait_for_a_pair_on_their_destination() {
    let mut bench = Bench::new(8);
    bench.pair(0, 10, 0, 1);
    let (op, list) = copy(10, &[(50, 1)], false);
    bench.start(2, op, &list);
    assert_eq!(bench.waiting(), [(Op::Read, 10), (Op::Read, 50)]);
    bench.release(1);
    assert_eq!(bench.waiting(), [(Op::Read, 10)], "the write waits");
    bench.release(0);
    assert_eq!(bench.waiting(), [(Op::Write, 10)], "the pair's");
    bench.release_all();
    assert_eq!(bench.medium(10), 0);
}

#[test]
fn nothing_is_lost_behind_a_full_device() {
    let mut bench = Bench::new(1);
    for slot in 0..20 {
        bench.pair(
            2 * slot,
            10,
            u8::try_from(slot).expect("small"),
            u8::try_from(slot + 1).expect("small"),
        );
    }
    bench.write(100, 11, 1);
    bench.release_all();
    assert_eq!(bench.statuses().len(), 41);
    assert_eq!(bench.medium(10), 20);
}

proptest! {
    /// Several hosts count with compare and write: each reads the counter, and replaces what it
    /// read by one more. Whatever the order in which operations end, no increment is lost, and
    /// plain writes elsewhere are not disturbed.
    #[test]
    fn counters_that_many_increment_lose_nothing(
        depth in 1_usize..6,
        picks in prop::collection::vec((0_u16..4, 0_usize..8, any::<bool>()), 1..200),
    ) {
        let mut bench = Bench::new(depth);
        // Per host, what it believes the counter to be; and pairs under way.
        let mut belief = [0_u8; 4];
        let mut busy = [false; 4];
        let mut counted = 0_u8;
        for (host, at, other) in picks {
            let index = usize::from(host);
            if !busy[index] {
                busy[index] = true;
                bench.pair(2 * host, 3, belief[index], belief[index].wrapping_add(1));
            }
            if other {
                let lba = 4 + u64::from(host);
                bench.write(100 + host, lba, 1);
            }
            let waiting = bench.waiting().len();
            if waiting > 0 {
                bench.release(at % waiting);
            }
            settle(&mut bench, &mut belief, &mut busy, &mut counted);
        }
        bench.release_all();
        settle(&mut bench, &mut belief, &mut busy, &mut counted);
        prop_assert_eq!(busy, [false; 4]);
        prop_assert_eq!(bench.medium(3), counted);
        prop_assert_eq!(bench.executor.in_flight(), 0);
    }
}

/// What the hosts learn from the pairs that have ended.
fn settle(bench: &mut Bench, belief: &mut [u8; 4], busy: &mut [bool; 4], counted: &mut u8) {
    for (slot, status) in bench.statuses() {
        let host = usize::from(slot / 2);
        if slot >= 100 {
            assert_eq!(status, OK);
        } else if slot % 2 == 1 {
            busy[host] = false;
            if status == OK {
                *counted += 1;
                belief[host] += 1;
            } else {
                assert_eq!(status, Status::ABORTED_FAILED_FUSED);
                belief[host] = bench.medium(3);
            }
        }
    }
}
