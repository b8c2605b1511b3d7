//! Taking commands back: only what has not begun, from wherever it waits, and for good.

use std::collections::BTreeSet;

use bowline_block::{Io, Op, Segments};
use bowline_nvme::Status;
use bowline_nvmf::target::{ConnId, IoOp, SlotId};
use proptest::prelude::*;

use super::super::order::{Blocks, Order};
use super::super::{Withdrawn, step::CHUNK_BYTES};
use super::{BLOCK, Bench, OK, conn, copy};

impl Bench {
    fn withdraw(&mut self, slot: u16) -> Withdrawn {
        self.executor.withdraw(conn(), SlotId(slot))
    }

    fn is_unordered(&self) -> bool {
        let unit = self.executor.units[0].as_ref().expect("unit");
        unit.order.is_free()
    }
}

fn write_of(token: u64) -> Io {
    Io {
        op: Op::Write,
        lba: 0,
        blocks: 1,
        fua: false,
        data: Segments::new(),
        token,
    }
}

fn token_of(io: Option<Io>) -> Option<u64> {
    io.map(|io| io.token)
}

#[test]
fn order_gives_back_what_waits_anywhere() {
    let blocks = Blocks::new(0, 8);
    let mut order = Order::default();
    let older = order.change(blocks);
    order.claim(1, blocks, write_of(1), [].into_iter());
    assert_eq!(token_of(order.withdraw(1)), Some(1), "it was ready");
    assert!(order.pop_ready().is_none() && !order.is_free());
    let (_, entered) = order.enter(write_of(2), blocks);
    assert!(entered.is_ok());
    assert_eq!(token_of(order.withdraw(2)), Some(2), "it waited for 1");
    order.claim(3, blocks, write_of(3), [older].into_iter());
    assert_eq!(token_of(order.withdraw(3)), Some(3), "it waited for both");
    assert!(order.withdraw(3).is_none() && order.withdraw(9).is_none());
    order.release(1);
    order.changed(older);
    assert!(order.pop_ready().is_none(), "what was taken back is gone");
    order.release(3);
    assert!(order.is_free());
}

#[test]
fn command_at_its_device_or_unknown_is_not_withdrawn() {
    let mut bench = Bench::new(8);
    bench.write(0, 5, 1);
    bench.pair(2, 6, 0, 1);
    for slot in [0, 2, 3, 7] {
        assert_eq!(bench.withdraw(slot), Withdrawn::No, "{slot}");
    }
    // The same slot of others.
    for (index, generation) in [(0, 1), (1, 0)] {
        let other = ConnId { index, generation };
        let found = bench.executor.withdraw(other, SlotId(0));
        assert_eq!(found, Withdrawn::No);
    }
    bench.release_all();
    assert_eq!(bench.statuses(), [(0, OK), (2, OK), (3, OK)]);
    assert_eq!(bench.withdraw(0), Withdrawn::No, "it has ended");
    assert_eq!((bench.medium(5), bench.medium(6)), (1, 1));
}

#[test]
fn command_in_the_backlog_is_withdrawn_and_the_others_keep_their_order() {
    let mut bench = Bench::new(1);
    for (slot, byte) in (0..4).zip(1..) {
        bench.write(slot, 20 + u64::from(slot), byte);
    }
    bench.pair(6, 30, 0, 1);
    assert_eq!(bench.withdraw(2), Withdrawn::Done);
    assert_eq!(bench.withdraw(2), Withdrawn::No, "twice");
    assert_eq!(bench.withdraw(7), Withdrawn::Done, "a pair in the backlog");
    assert!(bench.is_unordered());
    bench.release_all();
    assert_eq!(bench.statuses(), [(0, OK), (1, OK), (3, OK)]);
    let done: Vec<_> = bench.device().done.iter().map(|it| it.1).collect();
    assert_eq!(done, [20, 21, 23]);
}

#[test]
fn pair_that_waits_is_withdrawn_by_either_half_and_lets_those_behind_it_go() {
    for half in [2, 3] {
        let mut bench = Bench::new(8);
        bench.write(0, 10, 9);
        bench.pair(2, 10, 9, 1);
        bench.write(4, 10, 5);
        bench.pair(6, 10, 5, 6);
        assert_eq!(bench.waiting(), [(Op::Write, 10)]);
        assert_eq!(bench.withdraw(half), Withdrawn::Done);
        assert_eq!(bench.waiting(), [(Op::Write, 10); 2], "slot 4");
        bench.release_all();
        let expected = [(0, OK), (4, OK), (6, OK), (7, OK)];
        assert_eq!(bench.statuses(), expected, "{half}");
        assert_eq!(bench.medium(10), 6);
        assert!(bench.is_unordered());
    }
}

#[test]
fn change_that_waits_is_withdrawn_and_pairs_behind_it_go() {
    let mut bench = Bench::new(8);
    bench.pair(0, 10, 0, 1);
    bench.write(2, 10, 7);
    bench.pair(4, 10, 1, 8);
    assert_eq!(bench.withdraw(2), Withdrawn::Done);
    bench.release_all();
    let expected = [(0, OK), (1, OK), (4, OK), (5, OK)];
    assert_eq!(bench.statuses(), expected);
    assert_eq!(bench.medium(10), 8);
    assert!(bench.is_unordered());
}

#[test]
fn command_of_many_parts_ends_early_when_asked_to() {
    let blocks = 3 * u32::try_from(CHUNK_BYTES / BLOCK).expect("small");
    let verify = IoOp::Verify {
        lba: 0,
        blocks,
        fua: false,
    };
    let (copying, list) = copy(4096, &[(0, blocks)], false);
    for (op, data) in [(verify, Vec::new()), (copying, list)] {
        let mut bench = Bench::new(8);
        bench.start(0, op, &data);
        assert_eq!(bench.withdraw(0), Withdrawn::Asked);
        bench.release_all();
        assert_eq!(bench.statuses(), [(0, Status::ABORTED_BY_REQUEST)]);
        assert_eq!(bench.device().done.len(), 1, "{op:?}");
        // Asked in its last part, it has done everything.
        bench.device().done.clear();
        bench.start(0, op, &data);
        let parts = if data.is_empty() { 3 } else { 6 };
        for _ in 1..parts {
            bench.release(0);
        }
        assert_eq!(bench.withdraw(0), Withdrawn::Asked);
        bench.release_all();
        assert_eq!(bench.statuses(), [(0, OK)], "{op:?}");
        assert_eq!(bench.device().done.len(), parts);
    }
}

#[test]
fn last_command_withdrawn_lets_a_retired_device_go_and_flushes_stay() {
    let mut bench = Bench::new(0);
    bench.write(0, 10, 9);
    let handle = bench.handle;
    bench.executor.retire(handle);
    assert!(bench.executor.units[0].is_some());
    assert_eq!(bench.withdraw(0), Withdrawn::Done);
    assert!(bench.executor.units[0].is_none());
    assert_eq!(bench.executor.in_flight(), 0);
    // The flush at the end of the process is nobody's to take back.
    bench.handle = bench.executor.add(super::Slow::new(0)).expect("a place");
    bench.executor.flush_all();
    let nobody = ConnId {
        index: u32::MAX,
        generation: 0,
    };
    let found = bench.executor.withdraw(nobody, SlotId(0));
    assert_eq!((found, bench.executor.in_flight()), (Withdrawn::No, 1));
}

proptest! {
    /// Writes, copies and pairs on the same few blocks, some of which are taken back: each ends
    /// once or is withdrawn once, and nothing waits for ever.
    #[test]
    fn every_command_ends_once_or_is_withdrawn_once(
        depth in 1_usize..4,
        picks in prop::collection::vec((0_u8..6, 0_u64..3, 0_usize..8), 1..80),
    ) {
        let mut bench = Bench::new(depth);
        let mut open = BTreeSet::new();
        let mut ended = Vec::new();
        for (slot, (action, lba, at)) in (0..).step_by(2).zip(picks) {
            match action {
                0 => {
                    bench.write(slot, lba, 1);
                    open.insert(slot);
                }
                1 => {
                    let (op, list) = copy(lba, &[(8, 1), (9, 1)], false);
                    bench.start(slot, op, &list);
                    open.insert(slot);
                }
                2 => {
                    bench.pair(slot, lba, 0, 0);
                    open.extend([slot, slot + 1]);
                }
                3 if !bench.waiting().is_empty() => {
                    let place = at % bench.waiting().len();
                    bench.release(place);
                }
                _ => {
                    let chosen = open.iter().nth(at % open.len().max(1)).copied();
                    let Some(chosen) = chosen else { continue };
                    if bench.withdraw(chosen) == Withdrawn::Done {
                        let first = chosen & !1;
                        open.retain(|slot| slot & !1 != first);
                    }
                }
            }
            ended.extend(bench.statuses().into_iter().map(|(slot, _)| slot));
            open.retain(|slot| !ended.contains(slot));
        }
        bench.release_all();
        let last: Vec<_> = bench.statuses().into_iter().map(|(slot, _)| slot).collect();
        prop_assert_eq!(&last, &open.into_iter().collect::<Vec<_>>());
        ended.extend(last);
        let once: BTreeSet<_> = ended.iter().copied().collect();
        prop_assert_eq!(once.len(), ended.len());
        prop_assert!(bench.is_unordered());
    }
}
