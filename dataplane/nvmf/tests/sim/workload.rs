//! Random valid commands of several hosts, and what may come of each.

use std::collections::BTreeMap;

use bowline_nvme::fabrics::{Cc, PropertySet, offset};
use bowline_nvme::nvm::{CopyRange, DsmRange};
use bowline_nvme::opcode::{admin, io};
use bowline_nvme::{NamespaceId, Nanos, Sqe, Status};
use bowline_nvmf::host::{Completion, HostEvent, HostState, command};

use super::counters::{COUNTERS, Counters};
use super::host_side::HostSide;
use super::model::{self, BLOCK, Model, Tick, Value};
use super::random::Random;
use super::rights::{Access, Ask, Rights};

const BLOCKS_MAX: u64 = 24;
const PAUSE_MAX: Nanos = Nanos(50_000_000);

#[derive(Debug)]
enum Kind {
    Read,
    Compare(Vec<Value>),
    /// Writes, zeroes and deallocations: every block named gets a new value; `stable`: on stable
    /// media.
    Write {
        stable: bool,
    },
    Flush,
    /// Changes nothing, and has no data.
    Verify,
    /// A read of a counter, which was at least this.
    Look(u64),
    /// The halves of an increment.
    Expect,
    Increment,
    Reservation,
    /// Of the command with this token.
    Abort(u64),
    /// For the controller.
    Control,
}

/// What an Abort, or several, said of their command.
#[derive(Debug, Default)]
struct Aborts {
    asked: u32,
    /// Of those answered: it was aborted.
    succeeded: u32,
    failed: u32,
    /// How the command ended, unless its connection was lost.
    status: Option<Status>,
}

#[derive(Debug)]
struct Pending {
    device: u32,
    lba: u64,
    blocks: u64,
    from: Tick,
    kind: Kind,
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    Nothing,
    Unknown,
}

/// A host that may submit a command now.
struct Turn<'a> {
    now: Nanos,
    host: usize,
    queue: u16,
    side: &'a mut HostSide,
    random: &'a mut Random,
}

pub(crate) struct Workload {
    /// Devices there are, and their blocks.
    pub(crate) devices: BTreeMap<u32, u64>,
    pub(crate) model: Model,
    pending: BTreeMap<(usize, u64), Pending>,
    /// Writes that were lost with their connection, by host: they may still happen.
    lost: Vec<(usize, u64, Pending)>,
    counters: Counters,
    rights: Rights,
    aborts: BTreeMap<u64, Aborts>,
    next_token: u64,
    next_at: BTreeMap<usize, Nanos>,
    depth: usize,
    /// Writes move in parts, so one that was given up may have happened in part.
    parts: bool,
    /// Hosts submit commands.
    pub(crate) active: bool,
    /// Nothing has been done to hosts, target, or network: no command may fail.
    pub(crate) calm: bool,
    pub(crate) completed: u64,
    pub(crate) events: Vec<(usize, HostEvent)>,
}

impl Workload {
    pub(crate) fn new(depth: usize, parts: bool) -> Self {
        Self {
            devices: BTreeMap::new(),
            model: Model::default(),
            pending: BTreeMap::new(),
            lost: Vec::new(),
            counters: Counters::default(),
            rights: Rights::default(),
            aborts: BTreeMap::new(),
            next_token: 0,
            next_at: BTreeMap::new(),
            depth,
            parts,
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
            let lost = self.lost.extract_if(.., |(of, _, _)| *of == host);
            for (_, token, pending) in lost.collect::<Vec<_>>() {
                match pending.kind {
                    Kind::Reservation => self.rights.over(pending.device, token),
                    _ => self.finish_write(&pending, token, Outcome::Unknown),
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
        let count = hosts.len();
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
        let chosen = devices[random.index(devices.len())];
        let facts = side.host.facts().expect("ready");
        let queue = 1 + u16::try_from(random.below(facts.io_queues.into())).expect("16 bits");
        let mut turn = Turn {
            now,
            host,
            queue,
            side,
            random,
        };
        match turn.random.below(24) {
            0..3 => self.count(&mut turn, chosen.0),
            3 => self.abort(&mut turn),
            4 => self.reserve(&mut turn, chosen.0, count),
            _ => self.access(&mut turn, chosen),
        }
    }

    /// A command that reads or writes blocks.
    fn access(&mut self, turn: &mut Turn<'_>, (device, size): (u32, u64)) -> bool {
        let random = &mut *turn.random;
        let blocks = 1 + if random.one_in(3) {
            random.below(BLOCKS_MAX)
        } else {
            0
        };
        let lba = COUNTERS + random.below(size - COUNTERS - blocks + 1);
        let token = self.token();
        let from = self.model.tick();
        let pending = Pending {
            device,
            lba,
            blocks,
            from,
            kind: Kind::Flush,
        };
        let (sqe, data, pending) = self.command(random, token, pending);
        self.send(turn, token, (sqe, data), pending)
    }

    fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    fn send(
        &mut self,
        turn: &mut Turn<'_>,
        token: u64,
        (sqe, data): (Sqe, Vec<u8>),
        pending: Pending,
    ) -> bool {
        let taken = turn.side.submit(turn.now, turn.queue, sqe, data, token);
        if taken.is_ok() {
            self.pending.insert((turn.host, token), pending);
        } else if matches!(pending.kind, Kind::Write { .. }) {
            self.finish_write(&pending, token, Outcome::Nothing);
        }
        taken.is_ok()
    }

    /// Increments a counter, or looks where it is.
    fn count(&mut self, turn: &mut Turn<'_>, device: u32) -> bool {
        let (lba, host) = (turn.random.below(COUNTERS), turn.host);
        let from = self.model.tick();
        let pending = |kind| Pending {
            device,
            lba,
            blocks: 1,
            from,
            kind,
        };
        let controller = &turn.side.host;
        if controller.outstanding(turn.queue) + 2 > controller.depth_max(turn.queue) {
            return false;
        }
        let Some([first, second]) = self.counters.increment(host, device, lba) else {
            let least = self.counters.least(device, lba);
            let command = (Counters::look(device, lba), vec![0xEE; BLOCK]);
            let token = self.token();
            return self.send(turn, token, command, pending(Kind::Look(least)));
        };
        let token = self.token();
        let taken = self.send(turn, token, first, pending(Kind::Expect));
        let token = self.token();
        if !taken {
            self.counters.ended(device, lba, false);
            return false;
        }
        let taken = self.send(turn, token, second, pending(Kind::Increment));
        assert!(taken, "there is room for both");
        true
    }

    /// Aborts a command of this host's that is on the wire.
    fn abort(&mut self, turn: &mut Turn<'_>) -> bool {
        let sent: Vec<_> = turn.side.sent.iter().collect();
        let Some(&(&victim, &(queue, cid))) = sent.get(turn.random.index(sent.len())) else {
            return false;
        };
        let from = self.model.tick();
        let pending = Pending {
            device: 0,
            lba: 0,
            blocks: 0,
            from,
            kind: Kind::Abort(victim),
        };
        let command = u32::from(queue) | u32::from(cid.0) << 16;
        let sqe = Sqe::new(admin::ABORT).with_cdw(10, command);
        turn.queue = 0;
        let token = self.token();
        let taken = self.send(turn, token, (sqe, Vec::new()), pending);
        if taken {
            self.aborts.entry(victim).or_default().asked += 1;
        }
        taken
    }

    /// Changes the reservations of a device, unless somebody does already.
    fn reserve(&mut self, turn: &mut Turn<'_>, device: u32, hosts: usize) -> bool {
        if self.rights.is_busy(device) {
            return false;
        }
        let ask = Ask::random(turn.random, turn.host, hosts);
        let from = self.model.tick();
        let pending = Pending {
            device,
            lba: 0,
            blocks: 0,
            from,
            kind: Kind::Reservation,
        };
        let command = ask.command(device, turn.host);
        let token = self.token();
        let taken = self.send(turn, token, command, pending);
        if taken {
            self.rights.begin(device, turn.host, token, ask);
        }
        taken
    }

    /// The host resets its controller, behind the back of its own state machine.
    pub(crate) fn reset(
        &mut self,
        now: Nanos,
        host: usize,
        side: &mut HostSide,
        random: &mut Random,
    ) {
        let from = self.model.tick();
        let pending = Pending {
            device: 0,
            lba: 0,
            blocks: 0,
            from,
            kind: Kind::Control,
        };
        let sqe = PropertySet::dword(offset::CC, Cc(0x0046_0000).0).encode();
        let mut turn = Turn {
            now,
            host,
            queue: 0,
            side,
            random,
        };
        let token = self.token();
        self.send(&mut turn, token, (sqe, Vec::new()), pending);
    }

    /// The target has begun anew.
    pub(crate) fn restarted(&mut self) {
        let tick = self.model.tick();
        self.rights.restarted(tick);
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
                let stable = random.one_in(4);
                pending.kind = Kind::Write { stable };
                begin(&mut self.model, |token, lba| (token, lba));
                let data = range.flat_map(|lba| model::encode((token, lba))).collect();
                (command::write(nsid, lba, nlb, stable), data)
            }
            8 => {
                pending.kind = Kind::Write { stable: false };
                begin(&mut self.model, |_, _| (0, 0));
                (
                    command::write_zeroes(nsid, lba, nlb, random.one_in(2)),
                    Vec::new(),
                )
            }
            9 => {
                pending.kind = Kind::Write { stable: false };
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
                pending.kind = Kind::Write { stable: false };
                self.copy(random, token, &pending)
            }
            12 => {
                pending.kind = Kind::Verify;
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
        let before = lba.saturating_sub(blocks + COUNTERS);
        let behind = lba + blocks;
        if behind + blocks <= size && (lba < blocks + COUNTERS || random.one_in(2)) {
            behind + random.below(size - blocks - behind + 1)
        } else {
            COUNTERS + random.below(before + 1)
        }
    }

    fn finish_write(&mut self, pending: &Pending, token: u64, outcome: Outcome) {
        let stable = matches!(pending.kind, Kind::Write { stable: true });
        for lba in pending.lba..pending.lba + pending.blocks {
            let device = pending.device;
            match outcome {
                Outcome::Done => self.model.done(device, lba, token, stable),
                Outcome::Nothing => self.model.never(device, lba, token),
                Outcome::Unknown => self.model.over(device, lba, token),
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
        let tick = self.model.tick();
        let status = completion.status;
        assert!(
            !self.calm || self.is_normal(&pending, token, status),
            "{pending:?} ended with {status} although nothing was wrong"
        );
        if completion.path_lost {
            if matches!(pending.kind, Kind::Write { .. } | Kind::Reservation) {
                self.lost.push((host, token, pending));
            }
            return;
        }
        self.check_rights(host, &pending, status);
        let outcome = self.outcome(&pending, status);
        // A copy that is lost may still find what its source holds.
        let lost = self.lost.iter().map(|(_, _, it)| it.from);
        let oldest = self.pending.values().map(|it| it.from).chain(lost).min();
        let oldest = oldest.map_or(pending.from, |oldest| oldest.min(pending.from));
        let (device, lba, from) = (pending.device, pending.lba, pending.from);
        match &pending.kind {
            Kind::Write { .. } => self.finish_write(&pending, token, outcome),
            Kind::Read if status.is_success() => {
                for (lba, block) in (lba..).zip(data.chunks_exact(BLOCK)) {
                    let value = model::decode(block);
                    self.model.read(device, lba, from, value, oldest);
                }
            }
            Kind::Compare(guesses) => self.compared(&pending, guesses, status),
            Kind::Flush if status.is_success() => self.model.flushed(device, from),
            Kind::Look(least) if status.is_success() => {
                self.counters.saw(host, device, lba, *least, data);
            }
            Kind::Increment if outcome != Outcome::Unknown => {
                self.counters.ended(device, lba, outcome == Outcome::Done);
            }
            Kind::Reservation => self.rights.answered(device, token, status, tick),
            Kind::Abort(victim) if status.is_success() => {
                let aborts = self.aborts.entry(*victim).or_default();
                match completion.result {
                    0 => aborts.succeeded += 1,
                    _ => aborts.failed += 1,
                }
            }
            _ => {}
        }
        if let Some(aborts) = self.aborts.get_mut(&token) {
            aborts.status = Some(status);
        }
        let about = match pending.kind {
            Kind::Abort(victim) => victim,
            _ => token,
        };
        self.check_aborts(about);
    }

    /// What an Abort says of its command is how it ended.
    fn check_aborts(&self, token: u64) {
        let Some(aborts) = self.aborts.get(&token) else {
            return;
        };
        let Some(status) = aborts.status else { return };
        let aborted = status.same_code(Status::ABORTED_BY_REQUEST);
        assert!(aborts.succeeded <= 1, "aborted more than once: {aborts:?}");
        assert!(
            aborts.succeeded == 0 || aborted,
            "not aborted after all: {aborts:?}"
        );
        assert!(
            !aborted || aborts.failed < aborts.asked,
            "aborted, and no Abort says so: {aborts:?}"
        );
    }

    /// Whether this is an end that needs no disturbance.
    fn is_normal(&self, pending: &Pending, token: u64, status: Status) -> bool {
        let is = |other: Status| status.same_code(other);
        status.is_success()
            || is(Status::RESERVATION_CONFLICT)
            || is(Status::ABORTED_PREEMPT)
            || is(Status::ABORTED_BY_REQUEST) && self.aborts.contains_key(&token)
            || match pending.kind {
                Kind::Compare(_) => is(Status::COMPARE_FAILURE),
                Kind::Expect => is(Status::COMPARE_FAILURE) || is(Status::ABORTED_FAILED_FUSED),
                Kind::Increment => is(Status::ABORTED_FAILED_FUSED),
                Kind::Reservation => is(Status::INVALID_FIELD),
                Kind::Abort(_) => is(Status::ABORT_LIMIT_EXCEEDED),
                _ => false,
            }
    }

    /// What the end of a command means for what it was to write.
    fn outcome(&self, pending: &Pending, status: Status) -> Outcome {
        let in_parts = self.parts && matches!(pending.kind, Kind::Write { .. });
        let refused = [
            Status::RESERVATION_CONFLICT,
            Status::ABORTED_BY_REQUEST,
            Status::ABORTED_FAILED_FUSED,
            Status::ABORTED_MISSING_FUSED,
            Status::INVALID_NAMESPACE,
        ];
        if status.is_success() {
            Outcome::Done
        } else if !in_parts && refused.iter().any(|it| status.same_code(*it)) {
            Outcome::Nothing
        } else {
            Outcome::Unknown
        }
    }

    /// Who has no right fails, and nobody else fails for it.
    fn check_rights(&mut self, host: usize, pending: &Pending, status: Status) {
        let access = match pending.kind {
            Kind::Read | Kind::Compare(_) | Kind::Verify | Kind::Look(_) | Kind::Expect => {
                Access::Read
            }
            Kind::Write { .. } | Kind::Flush | Kind::Increment => Access::Write,
            Kind::Reservation | Kind::Abort(_) | Kind::Control => return,
        };
        let had = self.rights.had(pending.device, host, access, pending.from);
        let (may, may_not) = had;
        if status.is_success() || status.same_code(Status::COMPARE_FAILURE) {
            assert!(may, "{pending:?} of host {host} without the right");
        } else if status.same_code(Status::RESERVATION_CONFLICT) {
            assert!(may_not, "{pending:?} of host {host} had the right");
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
