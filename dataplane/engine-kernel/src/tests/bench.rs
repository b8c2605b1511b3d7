//! A device on a reactor, and somebody to ask it.

use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bowline_block::{BufPool, Completion, Completions, Device, Io, IoBuf, Op, Segments};
use bowline_nvme::Nanos;
use bowline_reactor::{
    Config, Gather, IoBackend, ListenerId, LocalReactor, Mailbox, PollMode, Reactor, Service,
    SocketId, monotonic_now,
};

use crate::{Backing, KernelDevice, OpenError, OpenOptions};

/// Runs `test` with each way to make system calls.
pub(super) fn on_both_backends(test: impl Fn(IoBackend)) {
    let config = Config {
        io: IoBackend::Uring,
        ..Config::default()
    };
    match LocalReactor::new(&config, Disk::none) {
        Ok(_) => test(IoBackend::Uring),
        Err(error) => skip(&format!("io_uring is not available: {error}")),
    }
    test(IoBackend::Epoll);
}

/// Says that something could not be tested, past the test harness's capture. An error where
/// nothing may be left out.
pub(super) fn skip(reason: &str) {
    assert!(
        std::env::var_os("CI").is_none_or(|ci| ci != "true"),
        "must not be skipped: {reason}"
    );
    writeln!(io::stderr(), "skipped: {reason}").unwrap();
}

/// Keeps tests that start processes apart from tests that expect a lock to be free once its file is
/// closed: a process that is being started has a copy of every open file for a moment.
pub(super) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What [`alone`] gives, where a test may mount and make devices.
pub(super) fn alone_as_root() -> Option<MutexGuard<'static, ()>> {
    if rustix::process::getuid().is_root() {
        return Some(alone());
    }
    skip("loop devices and mounts need root");
    None
}

/// The service: nothing but a device.
pub(super) struct Disk {
    device: Option<KernelDevice>,
    completions: Completions,
}

impl Disk {
    fn none(_: &mut Reactor, _: Mailbox<()>) -> io::Result<Self> {
        Ok(Self {
            device: None,
            completions: Completions::with_capacity(1024),
        })
    }
}

impl Service for Disk {
    type Message = ();

    fn message(&mut self, _: &mut Reactor, _: Nanos, (): ()) {}
    fn accepted(&mut self, _: &mut Reactor, _: Nanos, _: ListenerId, _: TcpStream, _: SocketAddr) {}
    fn readable(&mut self, _: &mut Reactor, _: Nanos, _: SocketId) {}
    fn sent(&mut self, _: &mut Reactor, _: Nanos, _: SocketId, _: Gather, _: io::Result<()>) {}

    fn turn(&mut self, _: &mut Reactor, now: Nanos) {
        if let Some(device) = &mut self.device {
            device.poll(now, &mut self.completions);
        }
    }

    fn poll_timeout(&self) -> Option<Nanos> {
        self.device.as_ref()?.poll_timeout()
    }

    fn expects_completion(&self) -> bool {
        self.device
            .as_ref()
            .is_some_and(|device| device.in_flight() > 0)
    }

    fn is_stopped(&self) -> bool {
        false
    }
}

pub(super) struct Bench {
    local: LocalReactor<Disk>,
    pub(super) pool: BufPool,
    pub(super) block_bytes: usize,
}

impl Bench {
    pub(super) fn open(io: IoBackend, options: &OpenOptions) -> Result<Self, OpenError> {
        Ok(Self::attach(io, Backing::open(options)?))
    }

    pub(super) fn attach(io: IoBackend, backing: Backing) -> Self {
        // Never spinning: every completion has to wake the reactor by itself.
        let config = Config {
            io,
            poll: PollMode::Never,
            ..Config::default()
        };
        let mut local = LocalReactor::new(&config, Disk::none).unwrap();
        let (disk, reactor) = local.parts();
        let pool = reactor.pool().clone();
        let device = KernelDevice::new(backing, reactor.disk()).unwrap();
        let block_bytes = device.geometry().block_bytes as usize;
        disk.device = Some(device);
        Self {
            local,
            pool,
            block_bytes,
        }
    }

    pub(super) fn device(&mut self) -> &mut KernelDevice {
        self.local.parts().0.device.as_mut().unwrap()
    }

    pub(super) fn drop_device(&mut self) {
        self.local.parts().0.device = None;
    }

    /// One turn of the reactor, without waiting.
    pub(super) fn turn(&mut self) {
        self.local.turn(monotonic_now());
    }

    /// A buffer of `blocks` blocks filled with `byte`.
    pub(super) fn filled(&self, blocks: u32, byte: u8) -> IoBuf {
        let mut buf = self.pool.alloc(blocks as usize * self.block_bytes).unwrap();
        buf.as_mut().unwrap().fill(byte);
        buf
    }

    /// Hands the request over; false when the queue is full.
    pub(super) fn submit(
        &mut self,
        op: Op,
        lba: u64,
        blocks: u32,
        data: Segments,
        token: u64,
    ) -> bool {
        self.device()
            .try_submit(Io {
                op,
                lba,
                blocks,
                fua: false,
                data,
                token,
            })
            .is_ok()
    }

    /// Waits until `count` requests have completed.
    pub(super) fn wait(&mut self, count: usize) -> Vec<Completion> {
        let deadline = monotonic_now().saturating_add(Nanos::from_secs(30));
        let arrived = self
            .local
            .run_until_that(deadline, |disk, _| disk.completions.len() >= count);
        assert!(arrived, "completions did not arrive");
        self.local.parts().0.completions.drain().collect()
    }

    pub(super) fn run(&mut self, io: Io) -> Completion {
        self.device().try_submit(io).unwrap();
        self.wait(1).pop().unwrap()
    }

    pub(super) fn run_op(&mut self, op: Op, lba: u64, blocks: u32, data: Segments) -> Completion {
        self.run(Io {
            op,
            lba,
            blocks,
            fua: false,
            data,
            token: 1,
        })
    }

    pub(super) fn write(&mut self, lba: u64, blocks: u32, byte: u8) -> Completion {
        let data = self.filled(blocks, byte).into();
        self.run_op(Op::Write, lba, blocks, data)
    }

    /// The first byte of each block, after checking that the block is all the same.
    pub(super) fn read(&mut self, lba: u64, blocks: u32) -> Vec<u8> {
        let data = self.filled(blocks, 0xEE).into();
        let done = self.run_op(Op::Read, lba, blocks, data);
        assert_eq!(done.result, Ok(()), "read of {blocks} at {lba}");
        let bytes: Vec<u8> = done.data.pieces(0..usize::MAX).flatten().copied().collect();
        let blocks = bytes.chunks(self.block_bytes);
        blocks
            .map(|block| {
                assert!(block.iter().all(|byte| *byte == block[0]));
                block[0]
            })
            .collect()
    }
}
