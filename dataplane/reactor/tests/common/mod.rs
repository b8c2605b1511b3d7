//! What the tests share: an echo service, deadlines, and running one claim on both engines.
#![allow(
    dead_code,
    reason = "each test program uses its own part of this module"
)]

use std::collections::HashMap;
use std::io::{self, IoSliceMut, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use bowline_block::{BufPool, ClassConfig, IoBuf, PoolConfig};
use bowline_nvme::Nanos;
use bowline_reactor::{
    Config, Gather, IoBackend, ListenerId, LocalReactor, PollMode, Reactor, Recv, Service,
    SocketId, monotonic_now,
};

/// Runs each named function on both engines. Where `io_uring` is not permitted its half is skipped
/// with a line that says so, and fails in CI.
#[macro_export]
macro_rules! on_both_engines {
    ($($claim:ident),+ $(,)?) => {
        mod uring {
            $(#[test]
            fn $claim() {
                if $crate::common::uring_is_permitted() {
                    super::$claim(bowline_reactor::IoBackend::Uring);
                }
            })+
        }
        mod epoll {
            $(#[test]
            fn $claim() {
                super::$claim(bowline_reactor::IoBackend::Epoll);
            })+
        }
    };
}

struct Nothing;

impl Service for Nothing {
    type Message = ();
    fn message(&mut self, _: &mut Reactor, _: Nanos, (): ()) {}
    fn accepted(&mut self, _: &mut Reactor, _: Nanos, _: ListenerId, _: TcpStream, _: SocketAddr) {}
    fn readable(&mut self, _: &mut Reactor, _: Nanos, _: SocketId) {}
    fn sent(&mut self, _: &mut Reactor, _: Nanos, _: SocketId, _: Gather, _: io::Result<()>) {}
    fn turn(&mut self, _: &mut Reactor, _: Nanos) {}
    fn poll_timeout(&self) -> Option<Nanos> {
        None
    }
    fn is_stopped(&self) -> bool {
        false
    }
}

pub(crate) fn uring_is_permitted() -> bool {
    match LocalReactor::new(&config(IoBackend::Uring), |_, _| Ok(Nothing)) {
        Ok(_) => true,
        Err(error) if std::env::var_os("CI").is_none_or(|ci| ci != "true") => {
            // Past the capture of the test harness, so that it is counted.
            let _ = writeln!(std::io::stderr(), "skipped: {error}");
            false
        }
        Err(error) => panic!("{error}"),
    }
}

pub(crate) fn config(io: IoBackend) -> Config {
    let classes = vec![
        ClassConfig {
            bytes: 4096,
            count: 512,
        },
        ClassConfig {
            bytes: 128 << 10,
            count: 64,
        },
        ClassConfig {
            bytes: 1 << 20,
            count: 32,
        },
    ];
    let (name, mailbox_depth) = ("test".to_owned(), 64);
    let (poll, core) = (PollMode::Never, None);
    Config {
        io,
        poll,
        core,
        name,
        mailbox_depth,
        pool: PoolConfig { classes },
        ..Config::default()
    }
}

/// No test needs as long as this.
pub(crate) fn deadline() -> Nanos {
    monotonic_now().after(Nanos::from_secs(60))
}

pub(crate) fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// A blocking client that fails rather than hangs.
pub(crate) fn client(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    bound(&stream);
    stream
}

pub(crate) fn bound(stream: &TcpStream) {
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    stream
        .set_write_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    stream.set_nodelay(true).unwrap();
}

/// Bytes that repeat nowhere near each other.
pub(crate) struct Noise(u64);

impl Noise {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(end).unwrap()).unwrap()
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        let words = std::iter::repeat_with(|| self.next().to_le_bytes());
        words.flatten().take(len).collect()
    }
}

pub(crate) fn filled(pool: &BufPool, bytes: &[u8]) -> IoBuf {
    let mut buf = pool.alloc(bytes.len()).unwrap();
    buf.truncate(bytes.len());
    buf.as_mut().unwrap().copy_from_slice(bytes);
    buf
}

/// Writes `total` bytes of noise in pieces of random size while reading them back.
pub(crate) fn ping_pong(stream: TcpStream, seed: u64, total: usize, piece_max: usize) {
    bound(&stream);
    let mut reader = stream.try_clone().unwrap();
    let mut writer = stream;
    let sent = Noise::new(seed).bytes(total);
    let expected = sent.clone();
    let writing = std::thread::spawn(move || {
        let mut noise = Noise::new(seed + 1);
        let mut rest = &sent[..];
        while !rest.is_empty() {
            let piece = (1 + noise.below(piece_max)).min(rest.len());
            writer.write_all(&rest[..piece]).unwrap();
            rest = &rest[piece..];
        }
    });
    let mut received = vec![0; total];
    reader.read_exact(&mut received).unwrap();
    assert!(received == expected, "echo differs");
    writing.join().unwrap();
}

type Work = Box<dyn FnOnce(&mut Echo, &mut Reactor) + Send>;

pub(crate) enum Call {
    Attach(TcpStream),
    /// Run on the reactor's thread.
    Run(Work),
}

/// Sends back what it receives: half of it as header bytes, half as payload.
#[derive(Default)]
pub(crate) struct Echo {
    pub(crate) open: HashMap<SocketId, EchoState>,
    pub(crate) accepted: usize,
    pub(crate) sent: usize,
    pub(crate) send_errors: usize,
    pub(crate) closed: usize,
    pub(crate) connected: Vec<(SocketId, io::Result<()>)>,
    pub(crate) turns: usize,
    pub(crate) timer: Option<Nanos>,
    pub(crate) fired_at: Option<Nanos>,
    pub(crate) stop_asked: bool,
    /// Bytes received so far, all sockets.
    pub(crate) received: usize,
    /// Accepted sockets go here instead of being echoed.
    pub(crate) hold: bool,
    pub(crate) held: Vec<SocketId>,
}

#[derive(Default)]
pub(crate) struct EchoState {
    /// Received nothing because output was on its way.
    waiting: bool,
}

/// One receive of the echo service.
const ECHO_BYTES: usize = 300 << 10;

impl Echo {
    pub(crate) fn adopt(&mut self, cx: &mut Reactor, stream: TcpStream) -> SocketId {
        let id = cx.attach(stream).unwrap();
        self.open.insert(id, EchoState::default());
        id
    }

    fn echo(&mut self, cx: &mut Reactor, id: SocketId) {
        let Some(state) = self.open.get_mut(&id) else {
            return;
        };
        if cx.is_sending(id) {
            state.waiting = true;
            return;
        }
        // Straight into two buffers, as a large payload would be.
        let buffers = (cx.pool().alloc(ECHO_BYTES), cx.pool().alloc(4096));
        let (Some(mut first), Some(mut second)) = buffers else {
            // Sends on their way hold all buffers.
            cx.rearm(id);
            return;
        };
        first.truncate(ECHO_BYTES);
        let mut slices = [
            IoSliceMut::new(first.as_mut().unwrap()),
            IoSliceMut::new(second.as_mut().unwrap()),
        ];
        match cx.recv(id, &mut slices) {
            Recv::Data { bytes, drained } => {
                self.received += bytes;
                let mut gather = cx.gather();
                let in_first = bytes.min(ECHO_BYTES);
                first.truncate(in_first);
                gather.push_bytes(&first[..in_first / 2]);
                gather.push_buf(first.slice(in_first / 2..in_first));
                gather.push_bytes(&second[..bytes - in_first]);
                assert_eq!(gather.bytes(), bytes);
                cx.send(id, gather);
                state.waiting = !drained;
            }
            Recv::WouldBlock => {}
            Recv::Closed | Recv::Error(_) => {
                self.open.remove(&id);
                self.closed += 1;
                cx.close(id);
            }
        }
    }
}

impl Service for Echo {
    type Message = Call;

    fn message(&mut self, cx: &mut Reactor, _: Nanos, call: Call) {
        match call {
            Call::Attach(stream) => drop(self.adopt(cx, stream)),
            Call::Run(run) => run(self, cx),
        }
    }

    fn accepted(
        &mut self,
        cx: &mut Reactor,
        _: Nanos,
        _: ListenerId,
        stream: TcpStream,
        peer: SocketAddr,
    ) {
        assert_eq!(stream.peer_addr().unwrap(), peer);
        self.accepted += 1;
        if self.hold {
            self.held.push(cx.attach(stream).unwrap());
        } else {
            self.adopt(cx, stream);
        }
    }

    fn connected(&mut self, _: &mut Reactor, _: Nanos, socket: SocketId, result: io::Result<()>) {
        if result.is_ok() {
            self.open.insert(socket, EchoState::default());
        }
        self.connected.push((socket, result));
    }

    fn readable(&mut self, cx: &mut Reactor, _: Nanos, socket: SocketId) {
        self.echo(cx, socket);
    }

    fn sent(
        &mut self,
        cx: &mut Reactor,
        _: Nanos,
        socket: SocketId,
        gather: Gather,
        result: io::Result<()>,
    ) {
        drop(gather);
        self.sent += 1;
        if result.is_err() {
            self.send_errors += 1;
            self.open.remove(&socket);
            cx.close(socket);
            return;
        }
        if self
            .open
            .get_mut(&socket)
            .is_some_and(|state| std::mem::take(&mut state.waiting))
        {
            cx.rearm(socket);
        }
    }

    fn turn(&mut self, _: &mut Reactor, now: Nanos) {
        self.turns += 1;
        if self.timer.is_some_and(|at| at <= now) {
            self.timer = None;
            self.fired_at = Some(now);
        }
    }

    fn poll_timeout(&self) -> Option<Nanos> {
        self.timer
    }

    fn stopping(&mut self, _: &mut Reactor, _: Nanos) {
        self.stop_asked = true;
    }

    fn is_stopped(&self) -> bool {
        self.stop_asked
    }
}

pub(crate) fn local(io: IoBackend) -> LocalReactor<Echo> {
    local_with(&config(io))
}

pub(crate) fn local_with(config: &Config) -> LocalReactor<Echo> {
    LocalReactor::new(config, |_, _| Ok(Echo::default())).unwrap()
}

/// Runs until `done`, which must come.
pub(crate) fn run(
    local: &mut LocalReactor<Echo>,
    mut done: impl FnMut(&mut Echo, &mut Reactor) -> bool,
) {
    assert!(
        local.run_until_that(deadline(), |echo, cx| done(echo, cx)),
        "did not come to pass"
    );
}

/// Buffers of the reactor's pool in use.
pub(crate) fn buffers_used(cx: &Reactor) -> usize {
    cx.pool()
        .stats()
        .classes
        .iter()
        .map(|class| class.used)
        .sum()
}
