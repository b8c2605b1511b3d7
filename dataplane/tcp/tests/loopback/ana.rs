//! One disk through two data planes, and a path that moves from one to the other and back while
//! hosts write and verify.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bowline_block::{Completion, Completions, Device, DeviceEvent, Geometry, Io, IoError, Op};
use bowline_nvme::{NamespaceId, Nanos, Status};
use bowline_nvmf::target::{
    AnaConfig, AnaState, Hosts, Persistence, SubsystemConfig, TargetConfig,
};
use bowline_reactor::{Config, IoBackend};
use bowline_tcp::host::HostOp;
use bowline_tcp::target::NamespaceSpec;

use crate::common::device::{Gate, Gated, TestDevice, memory};
use crate::common::initiator::{Disk, Options};
use crate::common::rig::{BLOCK, DISK_BYTES, NQN, Rig};
use crate::common::{pattern, until};
use crate::engine::own_devices;

own_devices!(
    planned_moves_under_verifying_writers_lose_nothing,
    paths_through_two_data_planes_are_one_disk,
);

const DISK: NamespaceId = NamespaceId(1);
const MOVES: usize = 24;
/// Commands that each host must have completed between two moves.
const COMMANDS_PER_MOVE: u64 = 40;
/// Parts of the disk that a host writes and reads, all at a time.
const PLACES: u64 = 8;
const PLACE_BYTES: usize = 64 << 10;
const PLACE_BLOCKS: u64 = 128;
/// Bytes of a command: some in the capsule, some by R2T.
const SIZES: [usize; 3] = [4096, 16 << 10, PLACE_BYTES];

type Medium = Arc<Mutex<Vec<u8>>>;

/// A handle of its own on a medium that others have too.
struct Shared {
    medium: Medium,
    geometry: Geometry,
    done: VecDeque<Completion>,
}

impl Shared {
    fn new(medium: Medium) -> Self {
        Self {
            medium,
            geometry: memory(DISK_BYTES, BLOCK).geometry(),
            done: VecDeque::new(),
        }
    }

    fn execute(&self, io: &mut Io) -> Result<(), IoError> {
        let range = self.geometry.check_io(io)?;
        let mut medium = self.medium.lock().expect("nobody panics with it");
        let place = |at| usize::try_from(at).expect("small");
        let blocks = &mut medium[place(range.offset)..place(range.end())];
        match io.op {
            Op::Read => io
                .data
                .copy_from(blocks)
                .then_some(())
                .ok_or(IoError::Internal),
            Op::Write => {
                let mut at = 0;
                for piece in io.data.pieces(0..blocks.len()) {
                    blocks[at..at + piece.len()].copy_from_slice(piece);
                    at += piece.len();
                }
                Ok(())
            }
            Op::Flush => Ok(()),
            _ => Err(IoError::Unsupported),
        }
    }
}

impl Device for Shared {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn depth_max(&self) -> usize {
        256
    }

    fn try_submit(&mut self, mut io: Io) -> Result<(), Io> {
        let result = self.execute(&mut io);
        self.done.push_back(io.complete(result));
        Ok(())
    }

    fn poll(&mut self, _: Nanos, out: &mut Completions) {
        while !out.is_full()
            && let Some(completion) = self.done.pop_front()
        {
            out.push(completion);
        }
    }

    fn poll_timeout(&self) -> Option<Nanos> {
        (!self.done.is_empty()).then_some(Nanos::ZERO)
    }

    fn poll_event(&mut self) -> Option<DeviceEvent> {
        None
    }

    fn refresh(&mut self) -> io::Result<Geometry> {
        Ok(self.geometry)
    }
}

fn medium() -> Medium {
    let bytes = usize::try_from(DISK_BYTES).expect("small");
    Arc::new(Mutex::new(vec![0; bytes]))
}

/// A data plane with a handle on the medium, and what reaches it there.
fn data_plane(
    io: IoBackend,
    medium: &Medium,
    cntlids: (u16, u16),
    initial: AnaState,
) -> (Rig, Arc<Gate>) {
    let reactor = Config {
        io,
        ..Config::default()
    };
    let rig = Rig::empty(reactor, TargetConfig::default());
    let gate = Arc::new(Gate::default());
    let (counted, medium) = (Arc::clone(&gate), Arc::clone(medium));
    rig.call(move |target, _, now| {
        let ana = AnaConfig {
            initial,
            ..AnaConfig::default()
        };
        let config = SubsystemConfig {
            hosts: Hosts::Any,
            cntlids,
            ana: Some(ana),
            ..SubsystemConfig::new(NQN, "BOWLINE-TEST")
        };
        target.target().add_subsystem(now, config).expect("valid");
        let spec = NamespaceSpec {
            nsid: Some(DISK.0),
            uuid: [0xB0; 16],
            nguid: [0x71; 16],
            ana_group: Some(1),
            persistence: Persistence::Unsupported,
            shared: false,
        };
        let (inner, gate) = (Shared::new(medium), counted);
        let device = TestDevice::new(Gated { inner, gate });
        target.add_namespace(now, NQN, spec, device).expect("valid");
    });
    (rig, gate)
}

fn set(rig: &Rig, state: AnaState) {
    let set = rig.call(move |target, _, now| target.target().set_ana_state(now, NQN, 1, state));
    set.expect("it is there");
}

fn executing(rig: &Rig) -> usize {
    let count = rig.call(|target, _, _| target.target().ana_executing(NQN, 1));
    count.expect("it is there")
}

/// What the hosts and the one who moves tell each other.
#[derive(Default)]
struct Progress {
    stop: AtomicBool,
    completed: [AtomicU64; 2],
    path_errors: AtomicU64,
}

/// A command of a host; no two at a time are about the same blocks.
#[derive(Clone, Copy, Debug)]
struct Command {
    place: u64,
    len: usize,
    /// What to write; `None` reads.
    seed: Option<u64>,
}

/// A host with a path through each data plane and a part of the disk.
struct Host {
    paths: [Disk; 2],
    current: usize,
    first: u64,
    /// What the blocks of its part hold.
    expected: Vec<u8>,
}

impl Host {
    fn new(addresses: [SocketAddr; 2], io: IoBackend, index: usize) -> Self {
        let options = Options {
            io,
            ..Options::default()
        };
        let places = PLACES * u64::try_from(index).expect("small");
        Self {
            paths: addresses.map(|address| Disk::with(address, options)),
            current: 0,
            first: places * PLACE_BLOCKS,
            expected: vec![0; usize::try_from(PLACES).expect("small") * PLACE_BYTES],
        }
    }

    /// Runs all of these at once, each on whichever path takes it in the end. Returns how often a
    /// path did not.
    fn run(&mut self, commands: Vec<Command>) -> u64 {
        let (mut left, mut path_errors) = (commands, 0);
        while !left.is_empty() {
            let mut submitted = HashMap::new();
            for command in left.drain(..) {
                let lba = self.first + command.place * PLACE_BLOCKS;
                let disk = &mut self.paths[self.current];
                let taken = match command.seed {
                    Some(seed) => {
                        let data = pattern(seed, command.len);
                        disk.submit(HostOp::Write { fua: false }, DISK, lba, &data)
                    }
                    None => disk.submit_read(DISK, lba, command.len),
                };
                assert!(taken, "the queue is full");
                submitted.insert(disk.last_token(), command);
            }
            for done in self.paths[self.current].await_all() {
                let command = submitted.remove(&done.token).expect("one of ours");
                if done.status.is_path_error() {
                    assert!(!done.status.is_dnr() && !done.path_lost, "{done:?}");
                    left.push(command);
                } else {
                    assert_eq!(done.status, Status::SUCCESS, "{command:?}");
                    self.completed(command, &done.data);
                }
            }
            assert!(submitted.is_empty());
            if !left.is_empty() {
                path_errors += u64::try_from(left.len()).expect("small");
                self.current = 1 - self.current;
            }
        }
        path_errors
    }

    fn completed(&mut self, command: Command, data: &[u8]) {
        let start = usize::try_from(command.place).expect("small") * PLACE_BYTES;
        let expected = &mut self.expected[start..start + command.len];
        match command.seed {
            Some(seed) => expected.copy_from_slice(&pattern(seed, command.len)),
            None => assert!(data == expected, "{command:?} reads something else"),
        }
    }

    /// Writes and reads until told to stop; then everything must be there.
    fn write_and_verify(&mut self, seed: u64, progress: &Progress, completed: &AtomicU64) {
        let mut round = 0;
        while !progress.stop.load(Ordering::SeqCst) {
            round += 1;
            let command = |place: u64| {
                let size = usize::try_from((place + round) % 3).expect("small");
                let writes = (place + round).is_multiple_of(2);
                Command {
                    place,
                    len: SIZES[size],
                    seed: writes.then_some(seed << 32 | round << 8 | place),
                }
            };
            let path_errors = self.run((0..PLACES).map(command).collect());
            progress
                .path_errors
                .fetch_add(path_errors, Ordering::SeqCst);
            completed.fetch_add(PLACES, Ordering::SeqCst);
        }
        let read = |place| Command {
            place,
            len: PLACE_BYTES,
            seed: None,
        };
        self.run((0..PLACES).map(read).collect());
    }
}

/// Moves the disk to and fro, each time when every host has done something since the last time.
fn relocate(planes: &[(Rig, Arc<Gate>); 2], progress: &Progress) {
    for step in 0..MOVES {
        let [old, new] = [step % 2, 1 - step % 2].map(|at| &planes[at]);
        set(&new.0, AnaState::Optimized);
        set(&old.0, AnaState::Inaccessible);
        until("the drive of the old path is idle", || {
            (executing(&old.0) == 0).then_some(())
        });
        let drained = old.1.submitted();
        let counts = || [0, 1].map(|host: usize| progress.completed[host].load(Ordering::SeqCst));
        let before = counts();
        until("hosts go on", || {
            let after = counts();
            let enough = |at: usize| after[at] >= before[at] + COMMANDS_PER_MOVE;
            (enough(0) && enough(1)).then_some(())
        });
        let late = old.1.submitted() - drained;
        assert_eq!(
            late, 0,
            "commands reached the drive of a path without access"
        );
    }
}

/// Ends the hosts also where the test fails.
struct StopAtEnd<'a>(&'a Progress);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::SeqCst);
    }
}

fn planned_moves_under_verifying_writers_lose_nothing(io: IoBackend) {
    let medium = medium();
    let planes = [
        data_plane(io, &medium, (1, 0x7FF), AnaState::Optimized),
        data_plane(io, &medium, (0x800, 0xFFF), AnaState::Inaccessible),
    ];
    let addresses = [planes[0].0.address, planes[1].0.address];
    let progress = Progress::default();
    std::thread::scope(|scope| {
        let stop = StopAtEnd(&progress);
        for (index, completed) in progress.completed.iter().enumerate() {
            let progress = &progress;
            scope.spawn(move || {
                let seed = u64::try_from(index).expect("small") + 1;
                let mut host = Host::new(addresses, io, index);
                host.write_and_verify(seed, progress, completed);
            });
        }
        relocate(&planes, &progress);
        drop(stop);
    });
    let path_errors = progress.path_errors.load(Ordering::SeqCst);
    assert!(path_errors > 0, "no move met a command");
}

fn paths_through_two_data_planes_are_one_disk(io: IoBackend) {
    let medium = medium();
    let (old, _) = data_plane(io, &medium, (1, 0x7FF), AnaState::Optimized);
    let (new, gate) = data_plane(io, &medium, (0x800, 0xFFF), AnaState::Inaccessible);
    let mut paths = [&old, &new].map(|rig| Disk::connect(rig.address, io));
    let [first, second] = &mut paths;
    let (one, other) = (first.facts(), second.facts());
    assert_eq!((one.serial, one.model), (other.serial, other.model));
    assert!((1..=0x7FF).contains(&one.cntlid.0));
    assert!((0x800..=0xFFF).contains(&other.cntlid.0));
    assert_eq!(first.namespaces(), second.namespaces());
    let data = pattern(7, 64 << 10);
    first.write(DISK, 0, &data);
    let refused = second
        .run(HostOp::Write { fua: false }, DISK, 0, &data)
        .status;
    assert_eq!(refused, Status::ANA_INACCESSIBLE);
    let refused = second.try_read(DISK, 0, 4096);
    assert_eq!(refused, Err(Status::ANA_INACCESSIBLE));
    assert_eq!(gate.submitted(), 0);
    set(&new, AnaState::NonOptimized);
    assert!(second.read(DISK, 0, data.len()) == data);
    for (state, status) in [
        (AnaState::PersistentLoss, Status::ANA_PERSISTENT_LOSS),
        (AnaState::Change, Status::ANA_TRANSITION),
    ] {
        set(&new, state);
        assert_eq!(second.try_read(DISK, 0, 4096), Err(status));
    }
    assert!(first.read(DISK, 0, data.len()) == data);
}
