//! The device over malloc, null, error and delay devices of SPDK, or of its double.

#![cfg(any(feature = "spdk", feature = "double"))]
#![allow(clippy::unwrap_used, reason = "a test ends where its assumption fails")]

use std::sync::LazyLock;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bowline_block::{
    BufPool, Completion, Completions, Deallocate, Device, DeviceEvent, Io, IoBuf, IoError, Op,
    PoolConfig, Segments,
};
use bowline_engine_spdk::{Options, Source, Spdk, SpdkDevice};
use bowline_nvme::Nanos;
use bowline_spdk_rs::Config;
use serde_json::{Value, json};

const BLOCK: usize = 512;
const BLOCK_BYTES: u32 = 512;
const BLOCKS: u64 = 4096;

static SPDK: LazyLock<Spdk> = LazyLock::new(|| {
    let options = Options {
        config: None,
        drives: Some(Vec::new()),
        huge_pages: false,
        memory_mib: Some(1024),
    };
    Spdk::start(&options).unwrap()
});

fn configure(method: &'static str, params: Value) {
    make(Config::new().method("bdev", method, &params));
}

fn make(config: Config) {
    let done = SPDK.service().call(move |it| it.configure(&config));
    done.unwrap().unwrap();
}

/// Begins a method whose end waits for this thread.
fn begin(method: &'static str, params: Value) -> JoinHandle<()> {
    std::thread::spawn(move || configure(method, params))
}

fn malloc(name: &str) {
    make(Config::new().malloc(name, BLOCKS, BLOCK_BYTES));
}

/// A device for errors, in front of one in memory.
fn faulty(name: &str) -> Rig {
    malloc(name);
    configure("bdev_error_create", json!({ "base_name": name }));
    open(&format!("EE_{name}"))
}

fn inject(name: &str, operation: &str, error: &str) {
    let params = json!({"name": name, "io_type": operation, "error_type": error, "num": 1});
    configure("bdev_error_inject_error", params);
}

fn in_memory(name: &str) -> Rig {
    malloc(name);
    open(name)
}

fn null(name: &str) -> Rig {
    make(Config::new().null(name, BLOCKS, BLOCK_BYTES));
    open(name)
}

fn open(name: &str) -> Rig {
    let memory = SPDK.memory();
    let backing = SPDK.find(&Source::Bdev(name.to_owned())).unwrap();
    Rig {
        device: SpdkDevice::open(backing, &memory, || {}).unwrap(),
        pool: memory.pool(PoolConfig::with_budget(8 << 20)).unwrap(),
        done: Completions::with_capacity(64),
        now: Nanos::ZERO,
    }
}

/// A device, polled by hand.
struct Rig {
    device: SpdkDevice,
    pool: BufPool,
    done: Completions,
    now: Nanos,
}

impl Rig {
    fn buffer(&self, bytes: &[u8]) -> IoBuf {
        let mut buffer = self.pool.alloc(bytes.len()).unwrap();
        buffer.as_mut().unwrap().copy_from_slice(bytes);
        buffer
    }

    fn io(op: Op, lba: u64, blocks: u32, data: impl Into<Segments>) -> Io {
        Io {
            op,
            lba,
            blocks,
            fua: false,
            data: data.into(),
            token: 7,
        }
    }

    fn poll(&mut self) -> Option<Completion> {
        self.now = self.now.after(Nanos(1000));
        self.device.poll(self.now, &mut self.done);
        self.done.pop()
    }

    fn finish(&mut self) -> Completion {
        loop {
            if let Some(completion) = self.poll() {
                return completion;
            }
        }
    }

    fn run(&mut self, io: Io) -> (Result<(), IoError>, Segments) {
        self.device.try_submit(io).unwrap();
        assert_eq!(self.device.poll_timeout(), Some(Nanos::ZERO), "in flight");
        let Completion {
            token,
            result,
            data,
        } = self.finish();
        assert_eq!(token, 7);
        (result, data)
    }

    fn write(&mut self, lba: u64, bytes: &[u8], fua: bool) -> Result<(), IoError> {
        let blocks = u32::try_from(bytes.len() / BLOCK).unwrap();
        let data = self.buffer(bytes);
        let io = Io {
            fua,
            ..Self::io(Op::Write, lba, blocks, data)
        };
        self.run(io).0
    }

    fn read(&mut self, lba: u64, blocks: u32) -> Result<Vec<u8>, IoError> {
        let data = self.buffer(&vec![0xEE; blocks as usize * BLOCK]);
        let (result, data) = self.run(Self::io(Op::Read, lba, blocks, data));
        result.map(|()| data.pieces(0..usize::MAX).flatten().copied().collect())
    }

    fn plain(&mut self, op: Op, lba: u64, blocks: u32) -> Result<(), IoError> {
        self.run(Self::io(op, lba, blocks, Segments::new())).0
    }

    fn event(&mut self) -> DeviceEvent {
        loop {
            if let Some(event) = self.device.poll_event() {
                return event;
            }
            assert!(self.poll().is_none(), "nothing was asked");
        }
    }
}

fn pattern(seed: u8, bytes: usize) -> Vec<u8> {
    (0..bytes)
        .map(|at| seed.wrapping_add(u8::try_from(at % 251).unwrap()))
        .collect()
}

#[test]
fn written_data_is_read_back_in_one_piece_and_in_several() {
    let mut rig = in_memory("Data");
    let data = pattern(1, 64 * BLOCK);
    let mut pieces = Segments::new();
    for range in [0..BLOCK, BLOCK..9 * BLOCK, 9 * BLOCK..64 * BLOCK] {
        pieces.push(rig.buffer(&data[range])).unwrap();
    }
    assert_eq!(rig.run(Rig::io(Op::Write, 100, 64, pieces)).0, Ok(()));
    assert_eq!(rig.read(100, 64), Ok(data));
    assert_eq!(rig.read(99, 1), Ok(vec![0; BLOCK]));
    assert_eq!(rig.read(164, 1), Ok(vec![0; BLOCK]));
}

#[test]
fn geometry_is_what_the_device_says() {
    let rig = in_memory("Geometry");
    let geometry = rig.device.geometry();
    assert_eq!((geometry.block_bytes, geometry.blocks), (512, BLOCKS));
    assert_eq!(geometry.atomic_write_blocks, 1);
    assert!(geometry.volatile_cache && geometry.write_zeroes && !geometry.read_only);
    assert_eq!(geometry.deallocate, Deallocate::Undefined);
}

#[cfg(feature = "spdk")]
#[test]
fn blocks_that_hosts_are_not_offered_are_refused() {
    make(Config::new().malloc("Odd", 1024, 1024));
    let error = SPDK.find(&Source::Bdev("Odd".to_owned())).unwrap_err();
    assert!(error.cause.contains("1024 bytes"), "{error}");
}

#[cfg(feature = "spdk")]
#[test]
fn blocks_with_metadata_are_refused() {
    let params = json!({
        "name": "Metadata", "num_blocks": 1024, "block_size": 512, "md_size": 8,
        "md_interleave": false,
    });
    configure("bdev_malloc_create", params);
    let error = SPDK.find(&Source::Bdev("Metadata".to_owned())).unwrap_err();
    assert!(error.cause.contains("metadata"), "{error}");
}

#[test]
fn unknown_device_is_refused_with_the_names_there_are() {
    malloc("Known");
    let error = SPDK.find(&Source::Bdev("Unknown".to_owned())).unwrap_err();
    assert!(error.hint.contains("Known"), "{error}");
}

#[test]
fn second_owner_is_refused() {
    let _first = in_memory("Owned");
    let backing = SPDK.find(&Source::Bdev("Owned".to_owned())).unwrap();
    assert!(SpdkDevice::open(backing, &SPDK.memory(), || {}).is_err());
}

#[test]
fn malformed_requests_end_with_their_error() {
    let mut rig = in_memory("Malformed");
    assert_eq!(rig.read(BLOCKS, 1), Err(IoError::OutOfRange));
    let short = rig.buffer(&[0; BLOCK]);
    let io = Rig::io(Op::Write, 0, 2, short);
    assert_eq!(rig.run(io).0, Err(IoError::Internal));
    let shared = rig.buffer(&[0; BLOCK]);
    let second = shared.clone();
    assert_eq!(
        rig.run(Rig::io(Op::Read, 0, 1, shared)).0,
        Err(IoError::Internal)
    );
    drop(second);
    assert_eq!(rig.plain(Op::Read, 0, 0), Ok(()), "of nothing");
}

#[test]
fn zeroed_and_released_blocks_read_as_they_should() {
    let mut rig = in_memory("Zeroes");
    let data = pattern(3, 32 * BLOCK);
    rig.write(0, &data, false).unwrap();
    assert_eq!(
        rig.plain(Op::WriteZeroes { deallocate: true }, 4, 8),
        Ok(())
    );
    let mut expected = data;
    expected[4 * BLOCK..12 * BLOCK].fill(0);
    assert_eq!(rig.read(0, 32).unwrap(), expected);
    assert_eq!(rig.plain(Op::Deallocate, 16, 8), Ok(()));
    assert_eq!(rig.read(0, 16).unwrap(), expected[..16 * BLOCK]);
}

/// Whatever the device can: what it cannot zero is written, what it cannot release is refused, and
/// what it need not flush is not flushed.
#[test]
fn device_with_few_abilities_is_served() {
    let mut rig = null("Few");
    let geometry = rig.device.geometry();
    let whole = u32::try_from(BLOCKS).unwrap();
    for deallocate in [false, true] {
        let zeroed = rig.plain(Op::WriteZeroes { deallocate }, 0, whole);
        assert_eq!(zeroed, Ok(()));
    }
    assert_eq!(rig.plain(Op::Flush, 0, 0), Ok(()));
    let released = rig.plain(Op::Deallocate, 0, 8);
    let can_release = geometry.deallocate != Deallocate::None;
    assert_eq!(released.is_ok(), can_release);
    assert_eq!(rig.write(0, &[1; BLOCK], true), Ok(()));
}

#[test]
fn compare_and_write_writes_only_what_compares_equal() {
    let mut rig = in_memory("Compare");
    let pair = |rig: &mut Rig, old: u8, new: u8| {
        let data = rig.buffer(&[[old; BLOCK], [new; BLOCK]].concat());
        rig.run(Rig::io(Op::CompareAndWrite, 5, 1, data)).0
    };
    assert_eq!(pair(&mut rig, 0, 1), Ok(()));
    assert_eq!(pair(&mut rig, 0, 2), Err(IoError::CompareMismatch));
    assert_eq!(rig.read(5, 1), Ok(vec![1; BLOCK]));
    let large = rig.buffer(&[0; 16 * BLOCK]);
    let io = Rig::io(Op::CompareAndWrite, 0, 8, large);
    assert_eq!(
        rig.run(io).0,
        Err(IoError::Unsupported),
        "larger than it can"
    );
}

#[test]
fn fua_is_a_write_and_then_a_flush() {
    let mut rig = faulty("Fua");
    inject("EE_Fua", "flush", "failure");
    assert_eq!(rig.write(0, &[1; BLOCK], false), Ok(()), "no flush");
    assert_eq!(rig.write(0, &[2; BLOCK], true), Err(IoError::MediaWrite));
    assert_eq!(rig.read(0, 1), Ok(vec![2; BLOCK]), "the write was done");
    assert_eq!(rig.write(0, &[3; BLOCK], true), Ok(()));
    inject("EE_Fua", "flush", "failure");
    assert_eq!(rig.plain(Op::Flush, 0, 0), Err(IoError::MediaWrite));
    assert_eq!(rig.plain(Op::Flush, 0, 0), Ok(()));
}

#[test]
fn failed_medium_is_told_and_warned_of_once() {
    let mut rig = faulty("Failed");
    inject("EE_Failed", "read", "failure");
    assert_eq!(rig.read(0, 1), Err(IoError::MediaRead));
    assert_eq!(rig.event(), DeviceEvent::MediaWarning);
    inject("EE_Failed", "write", "failure");
    assert_eq!(rig.write(0, &[1; BLOCK], false), Err(IoError::MediaWrite));
    assert_eq!(rig.device.poll_event(), None, "not again so soon");
    assert_eq!(rig.read(0, 1), Ok(vec![0; BLOCK]));
}

#[test]
fn full_device_hands_requests_back_and_ends_all_it_took() {
    let mut rig = in_memory("Full");
    let mut taken = 0;
    let refused = loop {
        let io = Rig::io(Op::Flush, 0, 0, Segments::new());
        match rig.device.try_submit(io) {
            Ok(()) => taken += 1,
            Err(io) => break io,
        }
    };
    assert_eq!((taken, refused.token), (rig.device.depth_max(), 7));
    for _ in 0..taken {
        assert_eq!(rig.finish().result, Ok(()));
    }
    assert!(rig.poll().is_none());
    assert_eq!(rig.device.in_flight(), 0);
}

#[test]
fn larger_device_is_told_and_a_smaller_one_is_not() {
    let mut rig = null("Grown");
    configure("bdev_null_resize", json!({"name": "Grown", "new_size": 4}));
    assert_eq!(rig.event(), DeviceEvent::GeometryChanged);
    assert_eq!(rig.device.geometry().blocks, 8192);
    assert_eq!(rig.write(8191, &[1; BLOCK], false), Ok(()));
    assert_eq!(rig.device.refresh().unwrap().blocks, 8192);
}

#[test]
fn removed_device_ends_what_runs_and_is_closed() {
    let mut rig = in_memory("Removed");
    let mut left = 32;
    for _ in 0..left {
        let io = Rig::io(Op::Write, 0, 1, rig.buffer(&[1; BLOCK]));
        rig.device.try_submit(io).unwrap();
    }
    let removed = begin("bdev_malloc_delete", json!({"name": "Removed"}));
    let mut vanished = false;
    while left > 0 || !vanished {
        if let Some(Completion { result, .. }) = rig.poll() {
            assert!(
                matches!(result, Ok(()) | Err(IoError::Vanished)),
                "{result:?}"
            );
            left -= 1;
        }
        vanished |= rig.device.poll_event() == Some(DeviceEvent::Vanished);
    }
    // Whoever removes it waits until it is closed, which the device that stays does not prevent.
    while !removed.is_finished() {
        assert!(rig.poll().is_none());
    }
    removed.join().unwrap();
    assert_eq!(rig.read(0, 1), Err(IoError::Vanished));
    assert_eq!(rig.plain(Op::Flush, 0, 0), Err(IoError::Vanished));
    assert_eq!(rig.device.poll_event(), None);
    assert!(rig.device.refresh().is_err());
}

/// A drive's own driver aborts what runs at one that was pulled out; other devices want to be asked.
#[test]
fn stuck_requests_of_a_removed_device_end() {
    let mut rig = faulty("Stuck");
    inject("EE_Stuck", "write", "pending");
    let io = Rig::io(Op::Write, 0, 1, rig.buffer(&[1; BLOCK]));
    rig.device.try_submit(io).unwrap();
    for _ in 0..1000 {
        assert!(rig.poll().is_none(), "it is stuck");
    }
    let removed = begin("bdev_malloc_delete", json!({"name": "Stuck"}));
    assert_eq!(rig.finish().result, Err(IoError::Vanished));
    assert_eq!(rig.event(), DeviceEvent::Vanished);
    while !removed.is_finished() {
        assert!(rig.poll().is_none());
    }
    removed.join().unwrap();
}

#[test]
fn dropped_device_waits_for_what_runs() {
    malloc("Base");
    let micros = 50_000;
    let params = json!({
        "base_bdev_name": "Base", "name": "Slow", "avg_read_latency": 0, "p99_read_latency": 0,
        "avg_write_latency": micros, "p99_write_latency": micros,
    });
    configure("bdev_delay_create", params);
    let mut rig = open("Slow");
    let pool = rig.pool.clone();
    let io = Rig::io(Op::Write, 0, 1, rig.buffer(&[1; BLOCK]));
    let begun = Instant::now();
    rig.device.try_submit(io).unwrap();
    drop(rig);
    assert!(begun.elapsed() >= Duration::from_micros(micros));
    let used: usize = pool.stats().classes.iter().map(|class| class.used).sum();
    assert_eq!(used, 0, "the buffer came back");
    // It is closed: it can be opened again.
    assert_eq!(open("Slow").read(0, 1), Ok(vec![1; BLOCK]));
}

#[test]
fn devices_of_one_thread_share_its_polls() {
    let (mut one, mut two) = (in_memory("One"), in_memory("Two"));
    let io = Rig::io(Op::Write, 0, 1, one.buffer(&[1; BLOCK]));
    one.device.try_submit(io).unwrap();
    // What ends while the other is polled is not lost.
    assert_eq!(two.write(0, &[2; BLOCK], false), Ok(()));
    assert_eq!(one.finish().result, Ok(()));
    assert_eq!(one.read(0, 1), Ok(vec![1; BLOCK]));
    drop(one);
    assert_eq!(two.read(0, 1), Ok(vec![2; BLOCK]));
}

/// What only the double can be asked for.
#[cfg(not(feature = "spdk"))]
mod double {
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn requests_that_the_library_has_no_room_for_are_tried_again_in_order() {
        let mut rig = in_memory("Refuses");
        configure("double_refuse", json!({"name": "Refuses", "num": 5}));
        for token in 0..8_u8 {
            let data = rig.buffer(&[token; BLOCK]);
            let io = Io {
                token: u64::from(token),
                ..Rig::io(Op::Write, u64::from(token), 1, data)
            };
            rig.device.try_submit(io).unwrap();
        }
        let ended: Vec<u64> = (0..8).map(|_| rig.finish().token).collect();
        assert_eq!(ended, [0, 1, 2, 3, 4, 5, 6, 7]);
        for token in 0..8_u8 {
            assert_eq!(rig.read(u64::from(token), 1), Ok(vec![token; BLOCK]));
        }
    }

    /// It was asked for once. Without room at that time what was stuck stayed so, and with it whoever
    /// removed the device.
    #[test]
    fn reset_of_a_removed_device_is_tried_until_there_is_room() {
        let mut rig = faulty("Crowded");
        inject("EE_Crowded", "write", "pending");
        let io = Rig::io(Op::Write, 0, 1, rig.buffer(&[1; BLOCK]));
        rig.device.try_submit(io).unwrap();
        configure("double_refuse", json!({"name": "EE_Crowded", "num": 3}));
        let removed = begin("bdev_malloc_delete", json!({"name": "Crowded"}));
        assert_eq!(rig.finish().result, Err(IoError::Vanished));
        while !removed.is_finished() {
            assert!(rig.poll().is_none());
        }
        removed.join().unwrap();
    }

    #[test]
    fn statuses_of_drives_have_their_meaning() {
        let mut rig = faulty("Statuses");
        for (code_type, code, error) in [
            (2, 0x81, IoError::MediaRead),
            (0, 0x81, IoError::NoSpace),
            (3, 0x71, IoError::Aborted),
        ] {
            let params = json!({
                "name": "EE_Statuses", "io_type": "read", "error_type": "nvme_failure",
                "nvme_sct": code_type, "nvme_sc": code, "num": 1,
            });
            configure("bdev_error_inject_error", params);
            assert_eq!(rig.read(0, 1), Err(error));
        }
    }

    /// What is logged from its first use on, by all tests of the process.
    static LOG: LazyLock<Log> = LazyLock::new(Log::open);

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Log {
        fn open() -> Self {
            let log = Self::default();
            let writer = log.clone();
            tracing_subscriber::fmt()
                .with_writer(move || writer.clone())
                .with_ansi(false)
                .init();
            log
        }

        /// A line about this drive.
        fn line(&self, address: &str, part: &str) -> Option<String> {
            let bytes = self.0.lock().unwrap().clone();
            let text = String::from_utf8(bytes).unwrap();
            let mut lines = text.lines();
            let line = lines.find(|line| line.contains(address) && line.contains(part));
            line.map(str::to_owned)
        }
    }

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn drive(address: &str) -> Rig {
        let memory = SPDK.memory();
        let backing = SPDK.find(&Source::Drive(address.to_owned())).unwrap();
        assert_eq!(backing.name(), format!("{address}n1"));
        Rig {
            device: SpdkDevice::open(backing, &memory, || {}).unwrap(),
            pool: memory.pool(PoolConfig::with_budget(0)).unwrap(),
            done: Completions::with_capacity(64),
            now: Nanos::ZERO,
        }
    }

    fn pull(rig: &mut Rig, address: &str) {
        configure("double_pull", json!({ "traddr": address }));
        assert_eq!(rig.event(), DeviceEvent::Vanished);
        assert_eq!(rig.read(9, 1), Err(IoError::Vanished));
    }

    /// Why it is not served again.
    fn refusal(rig: &mut Rig, address: &str) -> String {
        loop {
            assert!(rig.poll().is_none());
            assert_eq!(rig.device.poll_event(), None);
            if let Some(line) = LOG.line(address, "is not that drive") {
                return line;
            }
        }
    }

    /// Another serial number is another drive.
    fn plug(address: &str, serial: Option<&str>) {
        let params = json!({ "traddr": address, "serial": serial.unwrap_or_default() });
        configure("double_plug", params);
    }

    #[test]
    fn drive_that_is_pulled_out_and_put_back_serves_again() {
        let address = "0000:01:00.0";
        let mut rig = drive(address);
        for byte in [1, 2] {
            rig.write(9, &[byte; BLOCK], true).unwrap();
            pull(&mut rig, address);
            assert_eq!(rig.plain(Op::Flush, 0, 0), Err(IoError::Vanished));
            plug(address, None);
            assert_eq!(rig.event(), DeviceEvent::Returned);
            assert_eq!(rig.read(9, 1), Ok(vec![byte; BLOCK]));
            assert_eq!(rig.plain(Op::Flush, 0, 0), Ok(()), "nothing was forgotten");
        }
    }

    #[test]
    fn other_drive_in_its_place_is_not_served() {
        let address = "0000:02:00.0";
        LazyLock::force(&LOG);
        let mut rig = drive(address);
        rig.write(9, &[9; BLOCK], true).unwrap();
        pull(&mut rig, address);
        plug(address, Some("other"));
        let line = refusal(&mut rig, address);
        for told in [address, "\"double\"", "\"other\"", "put it back"] {
            assert!(line.contains(told), "{line}");
        }
        assert_eq!(rig.device.poll_event(), None);
        assert_eq!(rig.read(9, 1), Err(IoError::Vanished));
        configure("double_pull", json!({ "traddr": address }));
        plug(address, Some("double"));
        assert_eq!(rig.event(), DeviceEvent::Returned);
        assert_eq!(rig.read(9, 1), Ok(vec![9; BLOCK]));
    }

    #[test]
    fn drive_that_is_exchanged_before_it_is_opened_is_refused() {
        let address = "0000:04:00.0";
        let source = Source::Drive(address.to_owned());
        let backing = SPDK.find(&source).unwrap();
        configure("double_pull", json!({ "traddr": address }));
        plug(address, Some("other"));
        SPDK.find(&source).unwrap();
        let refused = SpdkDevice::open(backing, &SPDK.memory(), || {})
            .err()
            .unwrap();
        assert!(refused.to_string().contains("another one"), "{refused}");
    }

    #[test]
    fn drive_that_somebody_else_opened_first_is_served_again_when_they_are_gone() {
        let address = "0000:06:00.0";
        LazyLock::force(&LOG);
        let mut rig = drive(address);
        rig.write(9, &[9; BLOCK], true).unwrap();
        pull(&mut rig, address);
        plug(address, None);
        let other = drive(address);
        while LOG.line(address, "was not opened").is_none() {
            assert!(rig.poll().is_none());
        }
        assert_eq!(rig.device.poll_event(), None);
        drop(other);
        assert_eq!(rig.event(), DeviceEvent::Returned);
        assert_eq!(rig.read(9, 1), Ok(vec![9; BLOCK]));
    }

    #[test]
    fn drive_that_nothing_tells_from_others_is_not_served_again() {
        let address = "0000:05:00.0";
        LazyLock::force(&LOG);
        SPDK.find(&Source::Drive(address.to_owned())).unwrap();
        configure("double_pull", json!({ "traddr": address }));
        plug(address, Some(" "));
        let mut rig = drive(address);
        pull(&mut rig, address);
        plug(address, None);
        let line = refusal(&mut rig, address);
        assert!(line.contains("any other of its model"), "{line}");
        assert_eq!(rig.read(9, 1), Err(IoError::Vanished));
    }

    #[test]
    fn writes_that_no_flush_had_covered_make_the_next_one_fail() {
        let address = "0000:03:00.0";
        let mut rig = drive(address);
        rig.write(9, &[1; BLOCK], false).unwrap();
        rig.plain(Op::Flush, 0, 0).unwrap();
        rig.write(9, &[2; BLOCK], false).unwrap();
        pull(&mut rig, address);
        plug(address, None);
        assert_eq!(rig.event(), DeviceEvent::Returned);
        assert_eq!(rig.plain(Op::Flush, 0, 0), Err(IoError::MediaWrite));
        assert_eq!(rig.plain(Op::Flush, 0, 0), Ok(()), "it was told");
    }
}
