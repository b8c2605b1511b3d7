//! Random valid commands of several hosts, and what may come of each.

use std::collections::BTreeMap;

use bowline_nvme::nvm::{CopyRange, DsmRange};
use bowline_nvme::opcode::io;
use bowline_nvme::{NamespaceId, Nanos, Sqe, Status};
use bowline_nvmf::host::{Completion, HostEvent, HostState, command};

use super::host_side::HostSide;
use super::model::{self, BLOCK, Model, Tick, Value};
use super::random::Random;

const BLOCKS_MAX: u64 = 24;
const PAUSE_MAX: Nanos = Nanos(50_000_000);

#[derive(Debug)]
enum Kind {
    Read,
    Compare(Vec<Value>),
    /// Writes, zeroes and deallocations: every block named gets a new value.
    Write,
    Flush,
}

#[derive(Debug)]
struct Pending {
    device: u32,
    lba: u64,
    blocks: u64,
    from: Tick,
    kind: Kind,
}

pub(crate) struct Workload {
    /// Devices there are, and their blocks.
    pub(crate) devices: BTreeMap<u32, u64>,
    pub(crate) model: Model,
    pending: BTreeMap<(usize, u64), Pending>,
    /// Writes that were lost with their connection, by host: they may still happen.
    lost: Vec<(usize, u64, Pending)>,
    next_token: u64,
    next_at: BTreeMap<usize, Nanos>,
    depth: usize,
    /// Hosts submit commands.
    pub(crate) active: bool,
    /// Nothing has been done to hosts, target, or network: no command may fail.
    pub(crate) calm: bool,
    pub(crate) completed: u64,
    pub(crate) events: Vec<(usize, HostEvent)>,
}

impl Workload {
    pub(crate) fn new(depth: usize) -> Self {
        Self {
            devices: BTreeMap::new(),
            model: Model::default(),
            pending: BTreeMap::new(),
            lost: Vec::new(),
            next_token: 0,
            next_at: BTreeMap::new(),
            depth,
            active: true,
            calm: true,
            completed: 0,
            events: Vec::new(),
        }
    }

    pub(crate) fn outstanding(&self) -> usize {
        self.pending.len()
    }

    pub(crate) fn next_time(&self, now: Nanos) -> Option<Nanos> {
        let coming = self.next_at.values().copied().filter(|at| *at > now);
        coming.min().filter(|_| self.active)
    }

    pub(crate) fn event(&mut self, host: usize, event: HostEvent) {
        if matches!(event, HostEvent::Connected) {
            // The target has fenced this host's old commands: what was lost happens no more.
            self.model.tick();
            for (_, token, pending) in self.lost.extract_if(.., |(of, _, _)| *of == host) {
                for lba in pending.lba..pending.lba + pending.blocks {
                    self.model.over(pending.device, lba, token);
                }
            }
        }
        self.events.push((host, event));
    }

    /// Submits a command if this host has room for one; whether it did.
    pub(crate) fn submit(
        &mut self,
        now: Nanos,
        host: usize,
        hosts: &mut [HostSide],
        random: &mut Random,
    ) -> bool {
        let due = self.next_at.get(&host).is_none_or(|at| *at <= now);
        let own = self.pending.range((host, 0)..=(host, u64::MAX)).count();
        let side = &mut hosts[host];
        if !self.active || !due || own >= self.depth || side.host.state() != HostState::Ready {
            return false;
        }
        let pause = if random.one_in(3) {
            random.span(PAUSE_MAX)
        } else {
            Nanos(1)
        };
        self.next_at.insert(host, now.after(pause));
        let devices: Vec<(u32, u64)> = self.devices.iter().map(|(a, b)| (*a, *b)).collect();
        if devices.is_empty() {
            return false;
        }
        let (device, size) = devices[random.index(devices.len())];
        let blocks = 1 + if random.one_in(3) {
            random.below(BLOCKS_MAX)
        } else {
            0
        };
        let lba = random.below(size - blocks + 1);
        let facts = side.host.facts().expect("ready");
        let queue = 1 + u16::try_from(random.below(facts.io_queues.into())).expect("16 bits");
        self.next_token += 1;
        let token = self.next_token;
        let from = self.model.tick();
        let pending = Pending {
            device,
            lba,
            blocks,
            from,
            kind: Kind::Flush,
        };
        let (sqe, data, pending) = self.command(random, token, pending);
        let taken = side.submit(now, queue, sqe, data, token);
        let is_write = matches!(pending.kind, Kind::Write);
        if taken.is_ok() {
            self.pending.insert((host, token), pending);
        } else if is_write {
            // It never was.
            self.finish_write(&pending, token, false);
        }
        taken.is_ok()
    }

    fn command(
        &mut self,
        random: &mut Random,
        token: u64,
        mut pending: Pending,
    ) -> (Sqe, Vec<u8>, Pending) {
        let Pending {
            device,
            lba,
            blocks,
            ..
        } = pending;
        let (nsid, range) = (NamespaceId(device), lba..lba + blocks);
        let nlb = u16::try_from(blocks - 1).expect("small");
        let bytes = usize::try_from(blocks).expect("small") * BLOCK;
        let begin = |model: &mut Model, value: fn(u64, u64) -> Value| {
            for lba in lba..lba + blocks {
                model.begin(device, lba, token, value(token, lba));
            }
        };
        let (sqe, data) = match random.below(14) {
            0..4 => {
                pending.kind = Kind::Read;
                (command::read(nsid, lba, nlb), vec![0xEE; bytes])
            }
            4..8 => {
                pending.kind = Kind::Write;
                begin(&mut self.model, |token, lba| (token, lba));
                let data = range.flat_map(|lba| model::encode((token, lba))).collect();
                (command::write(nsid, lba, nlb, random.one_in(4)), data)
            }
            8 => {
                pending.kind = Kind::Write;
                begin(&mut self.model, |_, _| (0, 0));
                (
                    command::write_zeroes(nsid, lba, nlb, random.one_in(2)),
                    Vec::new(),
                )
            }
            9 => {
                pending.kind = Kind::Write;
                begin(&mut self.model, |_, _| (0, 0));
                let blocks = u32::try_from(blocks).expect("small");
                let range = DsmRange {
                    attributes: 0,
                    blocks,
                    slba: lba,
                };
                (command::deallocate(nsid, 0), range.encode().to_vec())
            }
            10 => {
                let guesses = self.guesses(random, &pending);
                let data = guesses
                    .iter()
                    .flat_map(|value| model::encode(*value))
                    .collect();
                pending.kind = Kind::Compare(guesses);
                (command::compare(nsid, lba, nlb), data)
            }
            11 => {
                pending.kind = Kind::Write;
                self.copy(random, token, &pending)
            }
            12 => {
                let sqe = Sqe::new(io::VERIFY)
                    .with_nsid(nsid)
                    .with_slba(lba)
                    .with_nlb(nlb);
                (sqe, Vec::new())
            }
            _ => (command::flush(nsid), Vec::new()),
        };
        (sqe, data, pending)
    }

    /// What the blocks may hold.
    fn guesses(&self, random: &mut Random, pending: &Pending) -> Vec<Value> {
        let mut guess = |lba| {
            let possible = self.model.possible(pending.device, lba, pending.from);
            possible[random.index(possible.len())]
        };
        let blocks = pending.lba..pending.lba + pending.blocks;
        blocks.map(&mut guess).collect()
    }

    fn copy(&mut self, random: &mut Random, token: u64, pending: &Pending) -> (Sqe, Vec<u8>) {
        let Pending {
            device,
            lba,
            blocks,
            ..
        } = *pending;
        let size = self.devices.get(&device).copied().unwrap_or(blocks);
        let source = self.source(random, lba, blocks, size);
        for index in 0..blocks {
            let (to, from) = (lba + index, source + index);
            self.model.begin_copy(device, to, token, from);
        }
        let blocks = u32::try_from(blocks).expect("small");
        let range = CopyRange {
            slba: source,
            blocks,
        };
        let sqe = Sqe::new(io::COPY)
            .with_nsid(NamespaceId(device))
            .with_slba(lba);
        (sqe, range.encode().to_vec())
    }

    /// Where blocks may be copied from: no range may overlap its destination.
    fn source(&self, random: &mut Random, lba: u64, blocks: u64, size: u64) -> u64 {
        let before = lba.saturating_sub(blocks);
        let behind = lba + blocks;
        if behind + blocks <= size && (lba < blocks || random.one_in(2)) {
            behind + random.below(size - blocks - behind + 1)
        } else {
            random.below(before + 1)
        }
    }

    fn finish_write(&mut self, pending: &Pending, token: u64, happened: bool) {
        for lba in pending.lba..pending.lba + pending.blocks {
            if happened {
                self.model.done(pending.device, lba, token);
            } else {
                self.model.over(pending.device, lba, token);
            }
        }
    }

    /// Exactly one completion per command, and one that the model allows.
    pub(crate) fn complete(
        &mut self,
        _now: Nanos,
        host: usize,
        completion: &Completion,
        data: &[u8],
    ) {
        let token = completion.token;
        let pending = self.pending.remove(&(host, token));
        let pending = pending.expect("a completion of a command that is outstanding");
        self.completed += 1;
        self.model.tick();
        let status = completion.status;
        let compared = matches!(pending.kind, Kind::Compare(_));
        let failed_compare = compared && status.same_code(Status::COMPARE_FAILURE);
        assert!(
            !self.calm || status.is_success() || failed_compare,
            "{pending:?} ended with {status} although nothing was wrong"
        );
        if completion.path_lost {
            if matches!(pending.kind, Kind::Write) {
                self.lost.push((host, token, pending));
            }
            return;
        }
        let oldest = self.pending.values().map(|it| it.from).min();
        let oldest = oldest.map_or(pending.from, |oldest| oldest.min(pending.from));
        match &pending.kind {
            Kind::Write => self.finish_write(&pending, token, status.is_success()),
            Kind::Read if status.is_success() => {
                let blocks = (pending.lba..).zip(data.chunks_exact(BLOCK));
                for (lba, block) in blocks {
                    let value = model::decode(block);
                    let (device, from) = (pending.device, pending.from);
                    self.model.read(device, lba, from, value, oldest);
                }
            }
            Kind::Compare(guesses) => self.compared(&pending, guesses, status),
            Kind::Read | Kind::Flush => {}
        }
    }

    /// A comparison says something about all of its blocks, or that one of them differs.
    fn compared(&mut self, pending: &Pending, guesses: &[Value], status: Status) {
        let (device, from) = (pending.device, pending.from);
        if status.is_success() {
            for (lba, value) in (pending.lba..).zip(guesses) {
                let possible = self.model.possible(device, lba, from);
                assert!(
                    possible.contains(value),
                    "equal to what block {lba} cannot be"
                );
            }
        } else if status.same_code(Status::COMPARE_FAILURE) {
            let mut blocks = (pending.lba..).zip(guesses);
            let differs = |(lba, value): (u64, &Value)| {
                let possible = self.model.possible(device, lba, from);
                possible.iter().any(|other| other != value)
            };
            assert!(
                blocks.any(differs),
                "different from what the blocks must be"
            );
        }
    }
}
