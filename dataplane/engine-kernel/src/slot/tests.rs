use bowline_block::{ClassConfig, PoolConfig};
use proptest::prelude::*;

use super::*;

const BLOCK: usize = 512;
const DEVICE_BLOCKS: usize = 64;

/// A kernel over a byte vector that does less than it is asked for, or refuses, as told.
struct Kernel {
    medium: Vec<u8>,
    // One answer per call: how much of it to do.
    whims: Vec<Whim>,
    calls: usize,
    refuses: Refuses,
    synced_at: usize,
    sync_failed: bool,
}

#[derive(Clone, Copy, Debug)]
enum Whim {
    Obey,
    Short(u16),
    Interrupt,
}

#[derive(Clone, Copy, Debug, Default)]
struct Refuses {
    punch: bool,
    zero_range: bool,
}

impl Kernel {
    fn execute(&mut self, command: &mut Command) -> i32 {
        let whim = self.whims.get(self.calls).copied().unwrap_or(Whim::Obey);
        self.calls += 1;
        if matches!(whim, Whim::Interrupt) {
            self.sync_failed |= matches!(command.kind, DiskOpKind::Fsync { .. });
            return -libc::EINTR;
        }
        let at = clamp(command.offset);
        let asked = command.data.len_bytes();
        let moved = match whim {
            Whim::Short(bytes) => usize::from(bytes).clamp(BLOCK.min(asked), asked),
            Whim::Obey | Whim::Interrupt => asked,
        };
        match command.kind {
            DiskOpKind::Read => {
                let mut from = at;
                let mut rest = moved;
                for buf in command.data.iter_mut() {
                    let part = rest.min(buf.len());
                    buf.as_mut().unwrap()[..part].copy_from_slice(&self.medium[from..from + part]);
                    (from, rest) = (from + part, rest - part);
                }
                i32::try_from(moved).unwrap()
            }
            DiskOpKind::Write { dsync } => {
                let bytes: Vec<u8> = command.data.pieces(0..moved).flatten().copied().collect();
                self.medium[at..at + moved].copy_from_slice(&bytes);
                if dsync {
                    self.synced_at = self.calls;
                }
                i32::try_from(moved).unwrap()
            }
            DiskOpKind::Fsync { .. } => {
                self.synced_at = self.calls;
                0
            }
            DiskOpKind::Fallocate { mode, len } => {
                let refused = match mode {
                    PUNCH => self.refuses.punch,
                    ZERO => self.refuses.zero_range,
                    // No kernel takes another mode for every kind of backing.
                    _ => true,
                };
                self.zero(at, len, refused)
            }
            DiskOpKind::Discard { len } => self.zero(at, len, false),
        }
    }

    fn zero(&mut self, at: usize, len: u64, refused: bool) -> i32 {
        if refused {
            return -libc::EOPNOTSUPP;
        }
        self.medium[at..at + clamp(len)].fill(0);
        0
    }
}

/// Runs one request to its end. A request that needs more calls than `calls_max` is stuck.
fn run(kernel: &mut Kernel, io: Io, kind: BackingKind, calls_max: usize) -> Completion {
    let classes = vec![
        ClassConfig {
            bytes: 4096,
            count: 1,
        },
        ClassConfig {
            bytes: 128 << 10,
            count: 1,
        },
    ];
    let pool = BufPool::new(PoolConfig { classes }).unwrap();
    let zeroes = pool.alloc(4096).unwrap();
    let mut scratch = None;
    let mut abilities = Abilities {
        kind,
        deallocate: Deallocate::ReadsZero,
        punch: true,
        zero_range: true,
        block_bytes: 512,
    };
    let range = ByteRange {
        offset: io.lba * 512,
        len: u64::from(io.blocks) * 512,
    };
    let mut slot = Slot::new(io, range, 1, &abilities);
    loop {
        assert!(kernel.calls < calls_max, "stuck: {slot:?}");
        let mut lent = Lent {
            zeroes: &zeroes,
            scratch: &mut scratch,
            pool: &pool,
        };
        // A full backend gives the command back; nothing may be lost by that.
        let refused = slot.command(&mut lent);
        slot.take_back(refused, &mut lent);
        let mut command = slot.command(&mut lent);
        let result = kernel.execute(&mut command);
        match slot.answer(result, command.data, &mut lent, &mut abilities) {
            Next::Continue => {}
            Next::Finish(result) => return slot.complete(result),
        }
    }
}

/// `cuts` says where the payload is cut into segments, in blocks.
fn payload(pool: &BufPool, bytes: &[u8], cuts: &[usize]) -> Segments {
    let mut cuts: Vec<usize> = cuts
        .iter()
        .map(|cut| (cut * BLOCK).min(bytes.len()))
        .collect();
    cuts.sort_unstable();
    cuts.dedup();
    cuts.retain(|cut| (1..bytes.len()).contains(cut));
    let ends = cuts.into_iter().chain([bytes.len()]);
    let mut data = Segments::new();
    let mut start = 0;
    for end in ends {
        let mut buf = pool.alloc(end - start).unwrap();
        buf.as_mut().unwrap().copy_from_slice(&bytes[start..end]);
        data.push(buf).unwrap();
        start = end;
    }
    data
}

fn whims() -> impl Strategy<Value = Vec<Whim>> {
    let whim = prop_oneof![
        2 => Just(Whim::Obey),
        4 => (0_u16..20_000).prop_map(Whim::Short),
        1 => Just(Whim::Interrupt),
    ];
    prop::collection::vec(whim, 0..12)
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => Just(Op::Read),
        3 => Just(Op::Write),
        2 => any::<bool>().prop_map(|deallocate| Op::WriteZeroes { deallocate }),
        1 => Just(Op::Deallocate),
        2 => Just(Op::CompareAndWrite),
        1 => Just(Op::Flush),
    ]
}

proptest! {
    /// Short answers, interruptions and refusals in any order: the medium and the payload end as
    /// if the kernel had done everything at once, FUA is the last thing that happens, and the
    /// segments come back as they went in. An interrupted sync is an error.
    #[test]
    fn request_ends_as_if_the_kernel_had_obeyed_at_once(
        op in op(), fua in any::<bool>(), lba in 0_usize..DEVICE_BLOCKS, blocks in 1_usize..40,
        cuts in prop::collection::vec(1_usize..40, 0..3), matches in any::<bool>(),
        whims in whims(), is_file in any::<bool>(),
        (punch, zero_range) in any::<(bool, bool)>(),
    ) {
        let blocks = blocks.min(DEVICE_BLOCKS - lba);
        let (from, len) = (lba * BLOCK, blocks * BLOCK);
        let medium: Vec<u8> = (0..DEVICE_BLOCKS * BLOCK).map(|at| u8::try_from(at % 251).unwrap()).collect();
        let new: Vec<u8> = (0..len).map(|at| u8::try_from(at % 241).unwrap()).collect();
        let mut expected_old = medium[from..from + len].to_vec();
        expected_old[len - 1] ^= u8::from(!matches);
        let bytes = match op {
            Op::Read => vec![0xEE; len],
            Op::Write => new.clone(),
            Op::CompareAndWrite => [expected_old, new.clone()].concat(),
            _ => Vec::new(),
        };
        let pool = BufPool::new(PoolConfig::with_budget(1 << 20)).unwrap();
        let data = if bytes.is_empty() { Segments::new() } else { payload(&pool, &bytes, &cuts) };
        let lengths: Vec<usize> = data.iter().map(IoBuf::len).collect();
        let io = Io { op, lba: lba as u64, blocks: u32::try_from(blocks).unwrap(), fua, data, token: 5 };
        // A file punches to deallocate; were that refused, deallocation would not be offered.
        let kind = if is_file { BackingKind::File } else { BackingKind::BlockDevice };
        let punch = punch && !(is_file && op == Op::Deallocate);
        let refuses = Refuses { punch, zero_range };
        let mut kernel = Kernel {
            medium: medium.clone(), whims, calls: 0, refuses, synced_at: 0, sync_failed: false,
        };
        let done = run(&mut kernel, io, kind, 200);

        let fails = op == Op::CompareAndWrite && !matches;
        let result = match (fails, kernel.sync_failed) {
            (true, _) => Err(IoError::CompareMismatch),
            (false, true) => Err(IoError::MediaWrite),
            (false, false) => Ok(()),
        };
        prop_assert_eq!(done.result, result);
        let mut expected = medium.clone();
        match op {
            Op::Write => expected[from..from + len].copy_from_slice(&new),
            Op::CompareAndWrite if matches => expected[from..from + len].copy_from_slice(&new),
            Op::WriteZeroes { .. } | Op::Deallocate => expected[from..from + len].fill(0),
            _ => {}
        }
        prop_assert!(kernel.medium == expected);
        let payload: Vec<u8> = done.data.pieces(0..usize::MAX).flatten().copied().collect();
        let kept = if op == Op::Read { medium[from..from + len].to_vec() } else { bytes };
        prop_assert_eq!(payload, kept);
        prop_assert_eq!(done.data.iter().map(IoBuf::len).collect::<Vec<_>>(), lengths);
        prop_assert!(done.data.is_unique(), "no view of the payload is left behind");
        if result.is_ok() && (op == Op::Flush || fua && op.is_modifying()) {
            prop_assert_eq!(kernel.synced_at, kernel.calls);
        }
    }
}

fn scripted(op: Op, results: &[i32]) -> Result<(), IoError> {
    let pool = BufPool::new(PoolConfig::with_budget(0)).unwrap();
    let zeroes = pool.alloc(4096).unwrap();
    let mut scratch = None;
    let mut abilities = Abilities {
        kind: BackingKind::File,
        deallocate: Deallocate::ReadsZero,
        punch: true,
        zero_range: true,
        block_bytes: 512,
    };
    let data = match op {
        Op::Read | Op::Write => pool.alloc(4096).unwrap().into(),
        _ => Segments::new(),
    };
    let io = Io {
        op,
        lba: 0,
        blocks: 8,
        fua: false,
        data,
        token: 0,
    };
    let mut slot = Slot::new(
        io,
        ByteRange {
            offset: 0,
            len: 4096,
        },
        1,
        &abilities,
    );
    for result in results {
        let mut lent = Lent {
            zeroes: &zeroes,
            scratch: &mut scratch,
            pool: &pool,
        };
        let command = slot.command(&mut lent);
        if let Next::Finish(result) = slot.answer(*result, command.data, &mut lent, &mut abilities)
        {
            return result;
        }
    }
    panic!("not finished after {results:?}");
}

#[test]
fn backing_that_ends_early_is_a_media_error() {
    assert_eq!(scripted(Op::Read, &[2048, 0]), Err(IoError::MediaRead));
    assert_eq!(scripted(Op::Write, &[2048, 0]), Err(IoError::MediaWrite));
    assert_eq!(
        scripted(Op::Read, &[100]),
        Err(IoError::MediaRead),
        "less than a block"
    );
}

#[test]
fn kernel_that_only_ever_interrupts_ends_in_an_error() {
    assert_eq!(
        scripted(Op::Write, &[-libc::EINTR; 17]),
        Err(IoError::Aborted)
    );
}

/// The kernel reports a lost write to one sync; the next succeeds without the data.
#[test]
fn sync_that_failed_is_never_made_again() {
    for errno in [libc::EINTR, libc::EAGAIN, libc::ENOMEM, libc::ECANCELED] {
        assert_eq!(
            scripted(Op::Flush, &[-errno, 0]),
            Err(IoError::MediaWrite),
            "errno {errno}"
        );
    }
    assert_eq!(
        scripted(Op::Flush, &[-libc::EIO, 0]),
        Err(IoError::MediaWrite)
    );
}

#[test]
fn kernel_that_claims_to_have_moved_too_much_is_believed_up_to_the_range() {
    assert_eq!(scripted(Op::Read, &[i32::MAX]), Ok(()));
}

#[test]
fn refused_deallocation_is_unsupported() {
    assert_eq!(
        scripted(Op::Deallocate, &[-libc::EOPNOTSUPP]),
        Err(IoError::Unsupported)
    );
}
