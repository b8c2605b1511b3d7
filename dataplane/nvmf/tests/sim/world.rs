//! Several hosts and a target with a network between them, in virtual time. Whatever happens, and
//! when, follows from the seed.

use std::collections::VecDeque;
use std::net::SocketAddr;

use bowline_nvme::nqn::Nqn;
use bowline_nvme::pdu::Digests;
use bowline_nvme::{Nanos, Status};
use bowline_nvmf::host::{ControllerConfig, HostState, Reconnect};
use bowline_nvmf::target::{
    AnaConfig, ConnId, Deallocate, Hosts, NamespaceConfig, NamespaceHandle, NsGeometry, Path,
    Persistence, SubsystemConfig, Target, TargetConfig,
};

use super::disk::Disks;
use super::host_side::{Happened, HostSide};
use super::random::Random;
use super::target_side::{Running, TargetSide, Wish};
use super::workload::Workload;

pub(crate) const SUBNQN: &str = "nqn.2026-11.io.bowline:sim";
pub(crate) const BLOCKS: u64 = 96;
const KEEP_ALIVE: Nanos = Nanos::from_secs(5);
/// The longest a byte is on its way, unless the network is silent.
const DELAY_MAX: Nanos = Nanos(20_000_000);
const WISH_MAX: Nanos = Nanos(4_000_000);
const DEVICE_MAX: Nanos = Nanos(300_000_000);

/// How a world is made.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    pub(crate) hosts: usize,
    pub(crate) io_queues: u16,
    pub(crate) digests: Digests,
    pub(crate) flow_control: bool,
    pub(crate) icd_bytes: u32,
    /// Largest piece of a stream that arrives at a time.
    pub(crate) chunk: u64,
    pub(crate) part_bytes: Option<u32>,
    pub(crate) window: usize,
    /// The target's wishes wait: buffers, and owners of connections, come late.
    pub(crate) withheld: bool,
    pub(crate) depth: usize,
    /// Devices fail once in so many commands.
    pub(crate) failures: Option<u64>,
    /// Devices run some Reads and Writes as they come.
    pub(crate) at_once: bool,
}

impl Setting {
    pub(crate) fn random(random: &mut Random) -> Self {
        Self {
            hosts: 1 + random.index(3),
            io_queues: 1 + u16::try_from(random.below(3)).expect("small"),
            digests: Digests {
                header: random.one_in(2),
                data: random.one_in(2),
            },
            flow_control: random.one_in(3),
            icd_bytes: if random.one_in(3) { 0 } else { 4096 },
            chunk: [40, 700, 20_000][random.index(3)],
            part_bytes: random.one_in(3).then_some(2048),
            window: if random.one_in(3) { 3000 } else { usize::MAX },
            withheld: random.one_in(2),
            depth: 1 + random.index(12),
            failures: None,
            at_once: random.one_in(2),
        }
    }
}

/// One direction of a connection: pieces with the time at which they arrive.
#[derive(Default)]
struct Pipe {
    pieces: VecDeque<(Nanos, Vec<u8>)>,
    last: Nanos,
    end: Option<Nanos>,
}

/// How bytes are lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// Both sides are told, each in its time.
    Reset,
    /// Nobody is told.
    Silence,
}

pub(crate) struct Link {
    pub(crate) host: usize,
    pub(crate) queue: u16,
    /// The target's end, unless it is gone.
    conn: Option<ConnId>,
    host_open: bool,
    to_target: Pipe,
    to_host: Pipe,
    /// Bytes that still arrive, of both directions, before the connection is lost.
    pub(crate) cut: Option<(u64, Loss)>,
    silent: bool,
    pub(crate) carried: u64,
}

pub(crate) struct World {
    pub(crate) random: Random,
    pub(crate) now: Nanos,
    pub(crate) setting: Setting,
    pub(crate) side: TargetSide,
    pub(crate) hosts: Vec<HostSide>,
    pub(crate) links: Vec<Link>,
    pub(crate) disks: Disks,
    devices: Vec<(Nanos, Running, Option<Status>)>,
    /// When the next wish that is withheld is granted.
    next_wish: Option<Nanos>,
    pub(crate) workload: Workload,
    pub(crate) next_device: u32,
    /// No connection is taken: the target is down.
    pub(crate) down: bool,
    /// The next connections that are opened are lost after so many bytes.
    pub(crate) next_cut: Option<(u16, u64, Loss)>,
}

pub(crate) fn hostnqn(host: usize) -> String {
    format!("nqn.2026-11.io.bowline:host{host}")
}

fn host_config(setting: &Setting, host: usize) -> ControllerConfig {
    let nqn = |name: &str| Nqn::new(name).expect("valid");
    let id = u8::try_from(host + 1).expect("few");
    ControllerConfig {
        io_queues: setting.io_queues,
        io_queue_entries: 16,
        digests: setting.digests,
        sq_flow_control: setting.flow_control,
        keep_alive: KEEP_ALIVE,
        reconnect: Some(Reconnect::default()),
        seed: u64::from(id),
        ..ControllerConfig::new(nqn(&hostnqn(host)), [id; 16], nqn(SUBNQN))
    }
}

pub(crate) fn geometry(blocks: u64) -> NsGeometry {
    NsGeometry {
        block_bytes: 512,
        blocks,
        used_blocks: blocks,
        volatile_cache: true,
        read_only: false,
        atomic_write_blocks: 1,
        optimal_io_blocks: 0,
        deallocate: Deallocate::ReadsZero,
        deallocate_granularity_blocks: 0,
        write_zeroes: true,
        thin: false,
    }
}

/// A namespace whose NSID is its device's number: an NSID never gets another device.
pub(crate) fn namespace(device: u32) -> NamespaceConfig {
    let mut id = [0xB0; 16];
    id[..4].copy_from_slice(&device.to_le_bytes());
    NamespaceConfig {
        nsid: Some(device),
        handle: NamespaceHandle(device),
        geometry: geometry(BLOCKS),
        uuid: id,
        nguid: id,
        ana_group: Some(1 + (device & 1)),
        persistence: Persistence::Stored(None),
        shared: false,
        allocation: None,
    }
}

fn target(setting: &Setting, now: Nanos, seed: u64) -> Target {
    let mut target = Target::new(TargetConfig {
        icd_bytes: setting.icd_bytes,
        mdts_bytes: 32 << 10,
        maxh2cdata_bytes: 8192,
        seed,
        ..TargetConfig::default()
    });
    let subsystem = SubsystemConfig {
        hosts: Hosts::Any,
        ana: Some(AnaConfig {
            groups_max: 2,
            ..AnaConfig::default()
        }),
        ..SubsystemConfig::new(SUBNQN, "SIM")
    };
    target.add_subsystem(now, subsystem).expect("valid");
    target
}

fn target_side(setting: &Setting, now: Nanos, seed: u64) -> TargetSide {
    let mut side = TargetSide::new(target(setting, now, seed));
    (side.part_bytes, side.window) = (setting.part_bytes, setting.window);
    side.generous = !setting.withheld;
    side
}

impl World {
    pub(crate) fn new(seed: u64, setting: Setting) -> Self {
        let now = Nanos::from_secs(100);
        let side = target_side(&setting, now, seed);
        let hosts = (0..setting.hosts).map(|host| HostSide::new(host_config(&setting, host)));
        let mut world = Self {
            random: Random::new(seed),
            now,
            side,
            hosts: hosts.collect(),
            links: Vec::new(),
            disks: Disks::default(),
            devices: Vec::new(),
            next_wish: None,
            workload: Workload::new(setting.depth, setting.part_bytes.is_some()),
            next_device: 1,
            down: false,
            next_cut: None,
            setting,
        };
        world.add_namespace();
        world.add_namespace();
        for host in &mut world.hosts {
            host.host.connect(now);
        }
        world
    }

    pub(crate) fn add_namespace(&mut self) {
        let device = self.next_device;
        self.next_device += 1;
        self.disks.add(device, BLOCKS);
        let added = self
            .side
            .target
            .add_namespace(self.now, SUBNQN, namespace(device));
        added.expect("valid");
        self.workload.devices.insert(device, BLOCKS);
        self.side.pump(self.now);
    }

    /// A new target process with what the old one served.
    pub(crate) fn restart(&mut self) {
        assert!(self.side.target.is_stopped() && self.devices.is_empty());
        self.boot();
    }

    fn boot(&mut self) {
        let seed = self.random.next();
        let mut side = target_side(&self.setting, self.now, seed);
        side.durable = std::mem::take(&mut self.side.durable);
        for (&device, &blocks) in &self.workload.devices {
            let stored = side.durable.get(&device).cloned();
            let config = NamespaceConfig {
                geometry: geometry(blocks),
                persistence: Persistence::Stored(stored),
                ..namespace(device)
            };
            side.target
                .add_namespace(self.now, SUBNQN, config)
                .expect("valid");
        }
        self.side = side;
        self.down = false;
        self.workload.restarted();
    }

    /// The target's machine loses power, and is there again at once. What was at a device may
    /// have happened; what was in the cache of one may be gone.
    pub(crate) fn lose_power(&mut self) {
        for (_, mut running, status) in std::mem::take(&mut self.devices) {
            if status.is_none() && self.random.one_in(2) {
                let (random, command) = (&mut self.random, running.command);
                let failure = Some(Status::INTERNAL);
                self.disks.run(random, command, &mut running.data, failure);
            }
        }
        self.disks.lose_power(&mut self.random);
        self.workload.model.lose_power();
        for link in &mut self.links {
            link.lose(self.now, Loss::Reset, &mut self.random);
            link.conn = None;
        }
        self.links.retain(|link| link.host_open);
        self.boot();
    }

    /// Lets time pass until `until`, or until nothing is left to happen.
    pub(crate) fn run(&mut self, until: Nanos) {
        loop {
            self.settle();
            let Some(next) = self.next_time().filter(|next| *next <= until) else {
                self.now = self.now.max(until);
                return;
            };
            self.now = self.now.max(next);
            self.side.timeout(self.now);
            for host in &mut self.hosts {
                host.host.handle_timeout(self.now);
            }
        }
    }

    fn next_time(&self) -> Option<Nanos> {
        let pipes = self
            .links
            .iter()
            .flat_map(|link| [&link.to_target, &link.to_host]);
        let arrivals = pipes.flat_map(|pipe| pipe.pieces.front().map(|it| it.0).or(pipe.end));
        let devices = self.devices.iter().map(|(due, _, _)| *due);
        let hosts = self
            .hosts
            .iter()
            .filter_map(|host| host.host.poll_timeout());
        let coming = arrivals.chain(devices).filter(|at| *at > self.now);
        // Timers that are late are due now.
        let timers = hosts.chain(self.side.target.poll_timeout());
        coming
            .chain(timers)
            .chain(self.workload.next_time(self.now))
            .chain(self.next_wish)
            .min()
    }

    /// Everything that is due now, until nothing moves.
    fn settle(&mut self) {
        for round in 0.. {
            assert!(round < 100_000, "the world never comes to rest");
            let mut moved = self.device_commands();
            self.side.pump(self.now);
            moved |= self.wishes();
            for host in 0..self.hosts.len() {
                moved |= self.host_events(host);
                moved |= self
                    .workload
                    .submit(self.now, host, &mut self.hosts, &mut self.random);
            }
            moved |= self.network();
            if !moved {
                return;
            }
        }
    }

    fn host_events(&mut self, host: usize) -> bool {
        let mut moved = false;
        while let Some(happened) = self.hosts[host].next_event(self.now) {
            moved = true;
            match happened {
                Happened::Open(queue) => self.open(host, queue),
                Happened::Close(queue, last_words) => {
                    let open = |it: &&mut Link| it.is_of(host, queue);
                    if let Some(link) = self.links.iter_mut().find(open) {
                        let arrives = self.now.after(self.random.span(DELAY_MAX));
                        link.send(&mut self.random, self.now, self.setting.chunk, last_words);
                        link.host_open = false;
                        link.to_target.end = Some(arrives.max(link.to_target.last));
                    }
                }
                Happened::Complete { completion, data } => {
                    self.workload.complete(self.now, host, &completion, &data);
                }
                Happened::Event(event) => self.workload.event(host, event),
            }
        }
        moved
    }

    /// What a host closed, or was told is lost, has ended at the target too by the time it opens
    /// the next: nothing in the protocol could fence a command of an association that the target
    /// has no reason to think dead.
    fn end_closed(&mut self, host: usize) {
        let now = self.now;
        for link in self.links.iter_mut().filter(|link| link.host == host) {
            if let Some(id) = link.conn
                && !link.host_open
                && link.to_target.end.is_some()
            {
                self.side.drop_socket(now, id);
                link.conn = None;
            }
        }
        self.links
            .retain(|link| link.host_open || link.conn.is_some());
    }

    fn open(&mut self, host: usize, queue: u16) {
        self.end_closed(host);
        let id = u8::try_from(host).expect("few");
        let path = Path {
            peer: SocketAddr::from(([10, 0, 0, id], queue)),
            ..Path::default()
        };
        let conn = if self.down {
            None
        } else {
            self.side.open(self.now, path)
        };
        let Some(conn) = conn else {
            self.hosts[host].host.closed(self.now, queue);
            return;
        };
        let cut = self.next_cut.filter(|(of, _, _)| *of == queue);
        if cut.is_some() {
            self.next_cut = None;
        }
        self.links.push(Link {
            host,
            queue,
            conn: Some(conn),
            host_open: true,
            to_target: Pipe::default(),
            to_host: Pipe::default(),
            cut: cut.map(|(_, bytes, loss)| (bytes, loss)),
            silent: false,
            carried: 0,
        });
        self.hosts[host].host.opened(self.now, queue);
    }

    /// Takes what both sides send, delivers what has arrived, ends what has ended.
    fn network(&mut self) -> bool {
        let (now, chunk) = (self.now, self.setting.chunk);
        let mut moved = false;
        for link in &mut self.links {
            if link.host_open {
                let bytes = self.hosts[link.host].sent(link.queue);
                moved |= !bytes.is_empty();
                link.send(&mut self.random, now, chunk, bytes);
            }
            if let Some(id) = link.conn {
                let conn = self.side.conn(id).expect("open");
                let bytes = conn.take_sent();
                let closed = conn.closed.is_some();
                moved |= !bytes.is_empty();
                link.to_host
                    .push(&mut self.random, now, chunk, bytes, link.silent);
                if closed {
                    self.side.drop_socket(now, id);
                    link.conn = None;
                    link.to_host.end = Some(link.to_host.last.max(now));
                    moved = true;
                }
            }
            let disks = self.setting.at_once.then_some(&mut self.disks);
            moved |= link.deliver_to_target(now, &mut self.side, &mut self.random, disks);
            moved |= link.deliver_to_host(now, &mut self.hosts, &mut self.random);
            self.side.pump(now);
        }
        self.links
            .retain(|link| link.host_open || link.conn.is_some());
        moved
    }

    /// Grants one of the wishes that are withheld, if it is time.
    fn wishes(&mut self) -> bool {
        let count = self.side.wishes.len() + usize::from(self.side.has_stores());
        if count == 0 {
            self.next_wish = None;
            return false;
        }
        let now = self.now;
        let due = *self
            .next_wish
            .get_or_insert_with(|| now.after(self.random.span(WISH_MAX)));
        if due > now {
            return false;
        }
        self.next_wish = None;
        let index = self.random.index(count);
        match self.side.wishes.get(index).copied() {
            None => self.side.stored(now, true),
            Some((id, Wish::Route)) if self.random.one_in(2) => {
                let adopted = self.side.hand_over(now, id);
                let link = self.links.iter_mut().find(|link| link.conn == Some(id));
                if let (Some(link), Some(_)) = (link, adopted) {
                    link.conn = adopted;
                }
            }
            Some(_) => self.side.grant(now, index),
        }
        self.side.pump(now);
        true
    }

    /// Starts what the target handed out, finishes what is done.
    fn device_commands(&mut self) -> bool {
        let mut moved = !self.side.running.is_empty();
        for mut running in std::mem::take(&mut self.side.running) {
            let fails = self
                .setting
                .failures
                .is_some_and(|times| self.random.one_in(times));
            let failure = fails.then_some(Status::INTERNAL);
            let due = self.now.after(self.random.span(DEVICE_MAX));
            // Some devices act at once and answer late, others act late.
            let status = self.random.one_in(2).then(|| {
                let (random, command) = (&mut self.random, running.command);
                self.disks.run(random, command, &mut running.data, failure)
            });
            self.devices.push((due, running, status));
        }
        while let Some(at) = self.devices.iter().position(|(due, _, _)| *due <= self.now) {
            moved = true;
            let (_, mut running, status) = self.devices.swap_remove(at);
            let fails = self
                .setting
                .failures
                .is_some_and(|times| self.random.one_in(times));
            let status = status.unwrap_or_else(|| {
                let (random, command) = (&mut self.random, running.command);
                let failure = fails.then_some(Status::INTERNAL);
                self.disks.run(random, command, &mut running.data, failure)
            });
            self.side.finish(self.now, running, status);
        }
        moved
    }

    /// What must hold when all hosts have left and nothing is under way.
    pub(crate) fn check_empty(&mut self) {
        for host in &self.hosts {
            assert_eq!(host.buffers_bound(), 0, "a command was forgotten");
        }
        assert!(self.links.is_empty() && self.devices.is_empty());
        assert!(self.side.wishes.is_empty() && self.side.running.is_empty());
        let target = &self.side.target;
        assert!(
            target.connections().is_empty(),
            "connections leak: {:?}",
            target.connections()
        );
        for subsystem in target.subsystems() {
            assert!(subsystem.controllers.is_empty(), "controllers leak");
        }
    }

    pub(crate) fn all_ready(&self) -> bool {
        self.hosts
            .iter()
            .all(|host| host.host.state() == HostState::Ready)
    }
}

impl Pipe {
    fn push(&mut self, random: &mut Random, now: Nanos, chunk: u64, bytes: Vec<u8>, silent: bool) {
        if silent {
            return;
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let len = rest
                .len()
                .min(1 + random.index(usize::try_from(chunk).expect("small")));
            let (piece, later) = rest.split_at(len);
            // Most pieces travel together.
            let delay = if random.one_in(8) {
                random.span(DELAY_MAX)
            } else {
                Nanos(1000)
            };
            self.last = self.last.max(now.after(delay));
            self.pieces.push_back((self.last, piece.to_vec()));
            rest = later;
        }
    }

    fn lose(&mut self, end: Option<Nanos>) {
        self.pieces.clear();
        self.end = end;
    }
}

impl Link {
    fn is_of(&self, host: usize, queue: u16) -> bool {
        self.host_open && self.host == host && self.queue == queue
    }

    fn send(&mut self, random: &mut Random, now: Nanos, chunk: u64, bytes: Vec<u8>) {
        self.to_target.push(random, now, chunk, bytes, self.silent);
    }

    /// How many of these bytes still arrive.
    fn let_through(&mut self, now: Nanos, len: usize, random: &mut Random) -> usize {
        let wanted = u64::try_from(len).expect("64 bits");
        let Some((left, loss)) = self.cut.filter(|(left, _)| *left <= wanted) else {
            self.carried += wanted;
            if let Some((left, _)) = &mut self.cut {
                *left -= wanted;
            }
            return len;
        };
        self.cut = None;
        self.carried += left;
        self.lose(now, loss, random);
        usize::try_from(left).expect("at most len")
    }

    pub(crate) fn lose(&mut self, now: Nanos, loss: Loss, random: &mut Random) {
        let mut end = || (loss == Loss::Reset).then(|| now.after(random.span(DELAY_MAX)));
        let ends = [end(), end()];
        self.to_target.lose(ends[0]);
        self.to_host.lose(ends[1]);
        self.silent = true;
    }

    fn deliver_to_target(
        &mut self,
        now: Nanos,
        side: &mut TargetSide,
        random: &mut Random,
        mut at_once: Option<&mut Disks>,
    ) -> bool {
        let Some(id) = self.conn else {
            self.to_target.pieces.clear();
            return false;
        };
        let mut moved = false;
        while let Some((_, piece)) = self.to_target.pieces.pop_front_if(|(at, _)| *at <= now) {
            let len = self.let_through(now, piece.len(), random);
            let taken = side.receive(now, id, &piece[..len], &mut |command, data| {
                // Now and then it has something else to do first.
                let disks = at_once.as_mut().filter(|_| !random.one_in(8));
                disks.is_some_and(|it| it.run(random, command, data, None).is_success())
            });
            moved |= taken > 0;
            if taken < len {
                // Held: the rest waits in the network.
                if let Some((left, _)) = &mut self.cut {
                    *left += u64::try_from(len - taken).expect("small");
                }
                if !self.silent && side.is_open(id) {
                    self.carried -= u64::try_from(len - taken).expect("small");
                    self.to_target
                        .pieces
                        .push_front((now, piece[taken..].to_vec()));
                }
                break;
            }
            side.pump(now);
        }
        if self.to_target.pieces.is_empty() && self.to_target.end.is_some_and(|at| at <= now) {
            side.drop_socket(now, id);
            self.conn = None;
            // What the target had sent is on its way all the same; then it ends.
            if !self.silent {
                self.to_host.end = Some(self.to_host.last.max(now));
            }
            moved = true;
        }
        moved
    }

    fn deliver_to_host(&mut self, now: Nanos, hosts: &mut [HostSide], random: &mut Random) -> bool {
        if !self.host_open {
            self.to_host.pieces.clear();
            return false;
        }
        let mut moved = false;
        while let Some((_, piece)) = self.to_host.pieces.pop_front_if(|(at, _)| *at <= now) {
            let len = self.let_through(now, piece.len(), random);
            hosts[self.host].receive(now, self.queue, &piece[..len]);
            moved = true;
        }
        if self.to_host.pieces.is_empty() && self.to_host.end.is_some_and(|at| at <= now) {
            self.host_open = false;
            if self.conn.is_some() && !self.silent {
                self.to_target.end = Some(self.to_target.last.max(now));
            }
            hosts[self.host].host.closed(now, self.queue);
            moved = true;
        }
        moved
    }
}
