use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::mem::MemDevice;

const BLOCK: usize = 512;
const LOSE_ALL: CachePlan = CachePlan {
    bytes_max: 1 << 20,
    lost_per_million: 1_000_000,
    torn_per_million: 0,
};

/// A device of 64 blocks whose writes of up to eight blocks are atomic, and somebody to ask it.
struct Bench {
    device: FaultDevice<MemDevice>,
    pool: BufPool,
    token: u64,
}

impl Bench {
    fn new(plan: FaultPlan) -> Self {
        let device = FaultDevice::new(MemDevice::new(64 * 512, 512).unwrap(), plan).unwrap();
        Self {
            device,
            pool: BufPool::new(PoolConfig::with_budget(4 << 20)).unwrap(),
            token: 0,
        }
    }

    fn submit(&mut self, op: Op, lba: u64, blocks: u32, byte: u8, fua: bool) -> u64 {
        let data = match op {
            Op::Read | Op::Write => {
                let mut buf = self.pool.alloc(blocks as usize * BLOCK).unwrap();
                buf.as_mut().unwrap().fill(byte);
                buf.into()
            }
            _ => Segments::new(),
        };
        self.token += 1;
        self.device
            .try_submit(Io {
                op,
                lba,
                blocks,
                fua,
                data,
                token: self.token,
            })
            .unwrap();
        self.token
    }

    fn poll(&mut self, now: Nanos) -> Vec<Completion> {
        let mut out = Completions::with_capacity(64);
        self.device.poll(now, &mut out);
        out.drain().collect()
    }

    fn run(&mut self, op: Op, lba: u64, blocks: u32, byte: u8, fua: bool) -> Completion {
        let token = self.submit(op, lba, blocks, byte, fua);
        let done = self.poll(Nanos::ZERO).pop().unwrap();
        assert_eq!(done.token, token);
        done
    }

    fn write(&mut self, lba: u64, blocks: u32, byte: u8) {
        assert_eq!(self.run(Op::Write, lba, blocks, byte, false).result, Ok(()));
    }

    fn flush(&mut self) {
        assert_eq!(self.run(Op::Flush, 0, 0, 0, false).result, Ok(()));
    }

    /// The first byte of each block, after checking that the block is not torn inside.
    fn content(&mut self) -> Vec<u8> {
        let done = self.run(Op::Read, 0, 64, 0, false);
        assert_eq!(done.result, Ok(()));
        let bytes: Vec<u8> = done.data.pieces(0..usize::MAX).flatten().copied().collect();
        bytes
            .chunks(BLOCK)
            .for_each(|block| assert!(block.iter().all(|byte| *byte == block[0])));
        bytes.chunks(BLOCK).map(|block| block[0]).collect()
    }
}

#[test]
fn without_faults_it_is_the_device_below() {
    let mut bench = Bench::new(FaultPlan::default());
    bench.write(3, 2, 7);
    assert_eq!(bench.device.geometry(), bench.device.inner().geometry());
    assert_eq!(bench.content()[2..6], [0, 7, 7, 0]);
    assert_eq!(bench.device.crash(), Ok(CrashReport::default()));
    assert_eq!(bench.content()[2..6], [0, 7, 7, 0]);
}

#[test]
fn request_completes_when_its_latency_has_passed_and_not_before() {
    let read_latency = Latency::Fixed(Nanos(1_000));
    let mut bench = Bench::new(FaultPlan {
        read_latency,
        ..FaultPlan::default()
    });
    let slow = bench.submit(Op::Read, 0, 1, 0, false);
    assert_eq!(
        bench.device.poll_timeout(),
        Some(Nanos::ZERO),
        "the clock starts at a poll"
    );
    assert!(bench.poll(Nanos(50)).is_empty());
    assert_eq!(bench.device.poll_timeout(), Some(Nanos(1_050)));
    let fast = bench.submit(Op::Write, 0, 1, 0, false);
    assert_eq!(bench.poll(Nanos(1_049))[0].token, fast);
    assert_eq!(bench.poll(Nanos(1_050))[0].token, slow);
    assert_eq!(bench.device.poll_timeout(), None);
}

#[test]
fn same_seed_gives_the_same_faults() {
    let trace = |seed| {
        let (min, max) = (Nanos(0), Nanos(5_000));
        let tail = Latency::Tail {
            usual: Nanos(1),
            rare: Nanos(9_999),
            rare_per_million: 300_000,
        };
        let errors = ErrorRates {
            read_per_million: 200_000,
            write_per_million: 200_000,
            ..ErrorRates::default()
        };
        let mut bench = Bench::new(FaultPlan {
            seed,
            read_latency: Latency::Uniform { min, max },
            write_latency: tail,
            errors,
            ..FaultPlan::default()
        });
        for lba in 0..32 {
            bench.submit(
                if lba % 2 == 0 { Op::Read } else { Op::Write },
                lba,
                1,
                1,
                false,
            );
        }
        let poll = |now| {
            bench
                .poll(Nanos(now))
                .into_iter()
                .map(move |done| (now, done.token, done.result))
                .collect::<Vec<_>>()
        };
        (0..12_000).step_by(100).flat_map(poll).collect::<Vec<_>>()
    };
    let first = trace(1);
    assert_eq!(first.len(), 32);
    assert_eq!(first, trace(1));
    assert_ne!(first, trace(2));
}

#[test]
fn failed_requests_have_the_error_of_their_kind_and_change_nothing() {
    let always = 1_000_000;
    let errors = ErrorRates {
        read_per_million: 0,
        write_per_million: always,
        flush_per_million: always,
        deallocate_per_million: always,
    };
    let mut bench = Bench::new(FaultPlan {
        errors,
        ..FaultPlan::default()
    });
    for op in [
        Op::Write,
        Op::Flush,
        Op::Deallocate,
        Op::WriteZeroes { deallocate: false },
    ] {
        assert_eq!(
            bench.run(op, 0, 1, 5, false).result,
            Err(IoError::MediaWrite)
        );
    }
    assert_eq!(bench.device.poll_event(), Some(DeviceEvent::MediaWarning));
    assert_eq!(bench.device.poll_event(), None, "one warning for the burst");
    assert_eq!(bench.content(), [0; 64]);
}

#[test]
fn media_warning_is_told_once_per_interval() {
    let errors = ErrorRates {
        flush_per_million: 1_000_000,
        ..ErrorRates::default()
    };
    let mut bench = Bench::new(FaultPlan {
        errors,
        ..FaultPlan::default()
    });
    let warns_at = |bench: &mut Bench, now: Nanos| {
        bench.submit(Op::Flush, 0, 0, 0, false);
        assert_eq!(bench.poll(now)[0].result, Err(IoError::MediaWrite));
        let event = bench.device.poll_event();
        assert!(matches!(event, None | Some(DeviceEvent::MediaWarning)));
        event.is_some()
    };
    let first = Nanos::from_secs(1);
    let next = first.after(MEDIA_WARNING_INTERVAL);
    assert!(warns_at(&mut bench, first));
    assert!(!warns_at(&mut bench, first));
    assert!(!warns_at(&mut bench, Nanos(next.0 - 1)));
    assert!(warns_at(&mut bench, next));
}

/// A device whose backing has become smaller.
struct Shrunk(MemDevice);

impl Device for Shrunk {
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }

    fn depth_max(&self) -> usize {
        self.0.depth_max()
    }

    fn try_submit(&mut self, io: Io) -> Result<(), Io> {
        self.0.try_submit(io)
    }

    fn poll(&mut self, now: Nanos, out: &mut Completions) {
        self.0.poll(now, out);
    }

    fn poll_timeout(&self) -> Option<Nanos> {
        self.0.poll_timeout()
    }

    fn poll_event(&mut self) -> Option<DeviceEvent> {
        self.0.poll_event()
    }

    fn refresh(&mut self) -> io::Result<Geometry> {
        let blocks = self.0.geometry().blocks - 1;
        Ok(Geometry {
            blocks,
            ..self.0.geometry()
        })
    }
}

#[test]
fn refresh_tells_the_smaller_size_of_the_device_below_and_keeps_its_own() {
    let inner = Shrunk(MemDevice::new(64 * 512, 512).unwrap());
    let mut device = FaultDevice::new(inner, FaultPlan::default()).unwrap();
    assert_eq!(device.refresh().unwrap().blocks, 63);
    assert_eq!(device.geometry().blocks, 64);
}

#[test]
fn crash_loses_what_was_not_flushed_and_nothing_else() {
    let mut bench = Bench::new(FaultPlan {
        cache: Some(LOSE_ALL),
        ..FaultPlan::default()
    });
    assert!(bench.device.geometry().volatile_cache);
    bench.write(0, 4, 1);
    bench.flush();
    bench.write(0, 2, 2);
    bench.write(1, 2, 3);
    assert_eq!(bench.run(Op::Deallocate, 3, 1, 0, false).result, Ok(()));
    assert_eq!(bench.run(Op::Write, 8, 1, 4, true).result, Ok(()), "FUA");
    assert_eq!(bench.content()[..9], [2, 3, 3, 0, 0, 0, 0, 0, 4]);
    assert_eq!(
        bench.device.crash(),
        Ok(CrashReport {
            kept: 0,
            lost: 3,
            torn: 0
        })
    );
    assert_eq!(bench.content()[..9], [1, 1, 1, 1, 0, 0, 0, 0, 4]);
}

#[test]
fn flush_covers_only_writes_completed_before_it_was_submitted() {
    let write_latency = Latency::Fixed(Nanos(10));
    let plan = FaultPlan {
        write_latency,
        cache: Some(LOSE_ALL),
        ..FaultPlan::default()
    };
    let mut bench = Bench::new(plan);
    bench.submit(Op::Write, 0, 1, 1, false);
    assert_eq!(bench.poll(Nanos(0)).len() + bench.poll(Nanos(10)).len(), 1);
    bench.submit(Op::Write, 1, 1, 1, false);
    bench.submit(Op::Flush, 0, 0, 0, false);
    assert_eq!(bench.poll(Nanos(20)).len() + bench.poll(Nanos(30)).len(), 2);
    bench.device.crash().unwrap();
    assert_eq!(bench.content()[..2], [1, 0]);
}

#[test]
fn torn_write_keeps_whole_blocks_and_atomic_writes_stay_whole() {
    let cache = CachePlan {
        lost_per_million: 0,
        torn_per_million: 1_000_000,
        ..LOSE_ALL
    };
    let mut seen = BTreeSet::new();
    for seed in 0..32 {
        let mut bench = Bench::new(FaultPlan {
            seed,
            cache: Some(cache),
            ..FaultPlan::default()
        });
        bench.write(0, 32, 6);
        bench.write(42, 8, 7);
        assert_eq!(
            bench.device.crash(),
            Ok(CrashReport {
                kept: 1,
                lost: 0,
                torn: 1
            })
        );
        let content = bench.content();
        assert_eq!(content[42..50], [7; 8], "atomic whatever its start");
        seen.insert(content);
    }
    assert!(seen.len() > 8, "tears vary with the seed: {}", seen.len());
}

#[test]
fn full_cache_makes_the_oldest_writes_durable() {
    let cache = CachePlan {
        bytes_max: 4 * BLOCK,
        ..LOSE_ALL
    };
    let mut bench = Bench::new(FaultPlan {
        cache: Some(cache),
        ..FaultPlan::default()
    });
    (0..6).for_each(|lba| bench.write(lba, 1, 9));
    bench.write(16, 8, 8); // Larger than the cache: written through.
    bench.device.crash().unwrap();
    let content = bench.content();
    assert_eq!(content[..6], [9, 9, 0, 0, 0, 0]);
    assert_eq!(content[16..24], [8; 8]);
}

#[test]
fn vanished_device_ends_everything_and_says_so_once() {
    let read_latency = Latency::Fixed(Nanos::from_millis(5));
    let mut bench = Bench::new(FaultPlan {
        read_latency,
        ..FaultPlan::default()
    });
    bench.submit(Op::Read, 0, 1, 0, false);
    assert!(bench.poll(Nanos::ZERO).is_empty());
    bench.device.vanish();
    bench.device.vanish();
    bench.submit(Op::Write, 0, 1, 0, false);
    let done = bench.poll(Nanos::ZERO);
    assert_eq!(done.len(), 2);
    assert!(
        done.iter()
            .all(|done| done.result == Err(IoError::Vanished))
    );
    assert_eq!(bench.device.poll_event(), Some(DeviceEvent::Vanished));
    assert_eq!(bench.device.poll_event(), None);
}

#[test]
fn full_queue_hands_the_request_back() {
    let read_latency = Latency::Fixed(Nanos(1));
    let mut bench = Bench::new(FaultPlan {
        read_latency,
        ..FaultPlan::default()
    });
    let io = |token| Io {
        op: Op::Flush,
        lba: 0,
        blocks: 0,
        fua: false,
        data: Segments::new(),
        token,
    };
    let depth = u64::try_from(bench.device.depth_max()).unwrap();
    (0..depth).for_each(|token| bench.device.try_submit(io(token)).unwrap());
    assert_eq!(bench.device.try_submit(io(depth)).unwrap_err().token, depth);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Write { lba: u64, blocks: u32, fua: bool },
    Zero { lba: u64, blocks: u32 },
    Flush,
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    let range = (0_u64..64, 1_u32..20)
        .prop_map(|(lba, n)| (lba, n.min(64 - u32::try_from(lba).unwrap_or(0))));
    prop_oneof![
        8 => (range.clone(), prop::bool::weighted(0.2)).prop_map(|((lba, blocks), fua)| Step::Write { lba, blocks, fua }),
        1 => range.prop_map(|(lba, blocks)| Step::Zero { lba, blocks }),
        1 => Just(Step::Flush),
        1 => Just(Step::Crash),
    ]
}

fn blocks_of<T>(all: &mut [T], lba: u64, blocks: u32) -> &mut [T] {
    &mut all[usize::try_from(lba).unwrap()..][..blocks as usize]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The oracle keeps, per block, the set of contents a crash may leave: the last durable one
    /// and every unflushed one since. What is read after a crash is the only one from then on.
    #[test]
    fn crash_leaves_each_block_with_a_content_it_may_have(
        seed in any::<u64>(),
        bytes_max in prop_oneof![Just(8 * BLOCK), Just(1 << 20)],
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let cache = CachePlan { bytes_max, lost_per_million: 400_000, torn_per_million: 400_000 };
        let mut bench = Bench::new(FaultPlan { seed, cache: Some(cache), ..FaultPlan::default() });
        let mut possible: Vec<Vec<u8>> = vec![vec![0]; 64];
        let mut byte = 0_u8;
        for step in steps {
            byte = byte.wrapping_add(1).max(1);
            match step {
                Step::Write { lba, blocks, fua } => {
                    prop_assert_eq!(bench.run(Op::Write, lba, blocks, byte, fua).result, Ok(()));
                    for block in blocks_of(&mut possible, lba, blocks) {
                        if fua { block.clear(); }
                        block.push(byte);
                    }
                }
                Step::Zero { lba, blocks } => {
                    let op = Op::WriteZeroes { deallocate: false };
                    prop_assert_eq!(bench.run(op, lba, blocks, 0, false).result, Ok(()));
                    blocks_of(&mut possible, lba, blocks).iter_mut().for_each(|block| block.push(0));
                }
                Step::Flush => {
                    bench.flush();
                    possible.iter_mut().for_each(|block| { block.drain(..block.len() - 1); });
                }
                Step::Crash => {
                    bench.device.crash().unwrap();
                    for (block, now) in possible.iter_mut().zip(bench.content()) {
                        prop_assert!(block.contains(&now), "{now} is none of {block:?}");
                        *block = vec![now];
                    }
                }
            }
            let newest: Vec<u8> = possible.iter().map(|block| *block.last().unwrap()).collect();
            prop_assert_eq!(bench.content(), newest, "reads see the newest");
        }
    }
}
