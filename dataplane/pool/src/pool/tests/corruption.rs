//! A drive that lies: whatever a pool has written is damaged in every way, one place at a time. Either the pool is refused, or
//! the data that was damaged cannot be read, or all is as it was. What the format cannot tell is counted.
//!
//! `BOWLINE_CRASH_SEEDS=0..500` or `BOWLINE_CRASH_HOURS=3` before
//! `cargo test -p bowline-pool --lib whatever_is_damaged -- --ignored` searches for longer.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::io::{Write, stderr};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bowline_block::BufPool;

use super::campaign::{Campaign, format};
use super::crash::by_hand;
use super::damage::{Drive, FAULTS, Fault};
use super::examine::{Offline, Ticks};
use super::log_device::{Fate, LogDevice, Plan};
use super::medium::Medium;
use super::oracle::Oracle;
use super::places::{Kind, Target, targets};
use super::random::Random;
use super::shown::{CHUNK, ChunkOf, Now, Shown};
use super::timeline::{Cuts, Timeline, buffers};
use crate::format::record::Checksums;
use crate::format::superblock::Superblock;
use crate::offline::{Depth, Severity, inspect};
use crate::{OpenError, Pool};

/// Seeds that are tried every time.
const SEEDS: Range<u64> = 0..12;

/// Turns of a life, at least and at most.
const TURNS: Range<u32> = 300..3000;

/// Places of each kind that are damaged in every way.
const PLACES_MAX: usize = 20;

/// Earlier contents of a drive that are kept.
const BEFORE_MAX: usize = 80;

/// Polls after which a pool is at rest.
const PATIENCE: u32 = 200_000;

/// Places of data that are damaged.
const DATA_MAX: usize = 60;

/// What comes of damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    /// The pool is not opened, and the drive not written to.
    Refused,
    /// It is as if nothing had happened.
    Right,
    /// What was damaged cannot be read; the rest is right.
    Unread,
    /// The last group of the journal never was.
    Undone,
    /// Data without a checksum is wrong.
    Unseen,
}

/// Whether that may come of it. Whatever is `Undone` or `Unseen` is what the format cannot tell.
fn is_allowed(kind: Kind, fault: Fault, outcome: Outcome) -> bool {
    match outcome {
        Outcome::Right => match kind {
            // An older state of both superblocks is right as long as everything that it needs is still there.
            Kind::BothSuperblocks => fault == Fault::Stale,
            Kind::JournalTail => loses(fault),
            _ => !kind.is_needed(),
        },
        Outcome::Refused => kind.is_needed() || kind == Kind::JournalNext,
        // A page that was lost is older than the data that it is about.
        Outcome::Unread => match kind {
            Kind::ChecksumPage => matches!(fault, Fault::Stale | Fault::Misdirected),
            kind => kind == Kind::VerifiedData,
        },
        Outcome::Undone => kind == Kind::JournalTail && loses(fault),
        Outcome::Unseen => kind == Kind::OtherData,
    }
}

/// Whether what is there afterwards is what was never written, or was written before.
const fn loses(fault: Fault) -> bool {
    matches!(
        fault,
        Fault::Torn | Fault::Zeroed | Fault::Stale | Fault::Misdirected
    )
}

/// How often what came of what.
#[derive(Default)]
struct Table {
    counts: BTreeMap<(Kind, Fault, Outcome), u64>,
    /// Lives that were damaged.
    images: u64,
    /// Chunks of volumes that verify every read, of pools that were always closed in order: those that are compared, and
    /// those that are not.
    verified: u64,
    unverified: u64,
    /// Damage to chunks that only scrubs compare: found by the offline check, or not.
    found: u64,
    missed: u64,
}

impl Table {
    fn add(&mut self, other: &Self) {
        for (key, count) in &other.counts {
            *self.counts.entry(*key).or_default() += count;
        }
        self.images += other.images;
        self.verified += other.verified;
        self.unverified += other.unverified;
        self.found += other.found;
        self.missed += other.missed;
    }

    fn of(&self, kind: Kind, is_wanted: impl Fn(Fault, Outcome) -> bool) -> u64 {
        let of_kind = self.counts.iter().filter(|((it, ..), _)| *it == kind);
        let wanted = of_kind.filter(|((_, fault, outcome), _)| is_wanted(*fault, *outcome));
        wanted.map(|(_, count)| count).sum()
    }
}

impl Display for Table {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let Self { images, .. } = self;
        let all: u64 = self.counts.values().sum();
        writeln!(out, "damage: {all} times, to {images} drives")?;
        for kind in Kind::ALL {
            write!(out, "  {:<16}", format!("{kind:?}"))?;
            for outcome in [
                Outcome::Refused,
                Outcome::Unread,
                Outcome::Right,
                Outcome::Undone,
                Outcome::Unseen,
            ] {
                let count = self.of(kind, |_, it| it == outcome);
                let name = format!("{outcome:?}").to_lowercase();
                write!(out, " {count:>6} {name}")?;
            }
            writeln!(out)?;
        }
        writeln!(
            out,
            "  of closed pools {} chunks verified, {} not; by scrubs only: {} found, {} missed",
            self.verified, self.unverified, self.found, self.missed
        )
    }
}

/// A pool on a drive that nobody uses.
struct Still {
    name: String,
    plan: Plan,
    drive: Drive,
    superblock: Superblock,
    shown: Shown,
    /// Without the last group of the journal, if nothing else tells that there was one.
    undone: Option<Shown>,
    /// It was always closed in order.
    is_orderly: bool,
}

/// Says what was damaged if that makes the pool panic.
struct Named<'a>(&'a Still, Kind, Fault);

impl Drop for Named<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            let Self(Still { name, .. }, kind, fault) = self;
            let _ = writeln!(stderr(), "{name}: {fault:?} of {kind:?}");
        }
    }
}

fn open(medium: &Medium, plan: &Plan) -> (LogDevice, Ticks, Result<Pool<LogDevice>, OpenError>) {
    let drive = LogDevice::new(medium.clone(), &plan.calm());
    let ticks = Ticks::new();
    let opened = Pool::open(drive.clone(), &mut || ticks.next());
    (drive, ticks, opened)
}

/// Whether there is something of everything.
fn is_rich(pool: &Pool<LogDevice>) -> bool {
    let infos = pool.volumes();
    let has = |checksums| infos.iter().any(|it| it.checksums == checksums);
    has(Checksums::Verify)
        && infos.iter().any(|it| it.checksums != Checksums::Verify)
        && infos.iter().any(|it| it.base.is_some())
        && infos.iter().any(|it| !it.snapshots.is_empty())
}

/// A life, with what its drive has held, until there is something of everything. Some checkpoints are broken off.
fn live(timeline: &mut Timeline<'_>, turns: Range<u32>, before: &mut Vec<Medium>) -> bool {
    let mut random = timeline.random.clone();
    let breaks_off = random.once_in(2);
    for turn in 0..turns.end {
        if turn >= turns.start && is_rich(timeline.pool.as_ref().unwrap()) {
            return true;
        }
        timeline.turn();
        let is_checkpointing = {
            let engine = timeline.pool.as_ref().unwrap().engine.borrow();
            !engine.checkpointer.is_idle()
        };
        if breaks_off && is_checkpointing && random.once_in(12) {
            timeline.break_off();
        }
        if turn % 3 == 0 {
            before.push(timeline.drive.view());
        }
        if before.len() > BEFORE_MAX {
            let mut is_kept = false;
            before.retain(|_| {
                is_kept = !is_kept;
                is_kept
            });
        }
    }
    false
}

/// Has the pool's own work end.
fn settle(pool: &mut Pool<LogDevice>, ticks: &Ticks) {
    for _ in 0..PATIENCE {
        pool.poll(ticks.next());
        let engine = pool.engine.borrow();
        // Nor is there anything to do later: all that is known of checksums is on the drive.
        let later = [engine.activity_timeout(), engine.chores_timeout()];
        match later.into_iter().flatten().min() {
            None if engine.is_idle() => return,
            None => {}
            Some(next) => ticks.0.set(ticks.0.get().max(next.0)),
        }
    }
    panic!("the pool does not come to rest");
}

/// What is left of a life at three moments: the power was cut, the pool was closed, and the power was cut after it was opened
/// again. Nothing where there is too little to damage.
fn stills(seed: u64, buffers: &Rc<BufPool>) -> Vec<Still> {
    let mut campaign = Campaign::new(seed);
    let (plan, options, bytes) = campaign.choose();
    let medium = format(&plan, &options, bytes);
    let mut before = vec![medium.clone()];
    let begin = (medium, plan.clone());
    let mut timeline = Timeline::begin(&mut campaign, begin, Oracle::new(), buffers, Cuts::None);
    if !live(&mut timeline, TURNS, &mut before) {
        return Vec::new();
    }
    let image = |timeline: &Timeline<'_>| timeline.drive.moment().image(|_| Fate::Kept).medium;
    let mut media = vec![("cut", image(&timeline), before.clone())];
    if timeline.is_failing() {
        timeline.break_off();
    }
    timeline.check_live();
    timeline.close();
    let is_orderly = timeline.broken_off == 0;
    media.push(("closed", timeline.drive.view(), before.clone()));
    before.push(timeline.drive.view());
    timeline.open(false);
    live(&mut timeline, TURNS.start / 5..TURNS.start / 4, &mut before);
    media.push(("reopened and cut", image(&timeline), before));
    drop(timeline);
    let still = |(what, now, before)| {
        let name = format!("seed {seed}, {what}");
        let still = Still::new(name, &plan, Drive { now, before }, buffers);
        let is_orderly = is_orderly && still.superblock.closed_at.is_some();
        Still {
            is_orderly,
            ..still
        }
    };
    media.into_iter().map(still).collect()
}

impl Still {
    fn new(name: String, plan: &Plan, drive: Drive, buffers: &Rc<BufPool>) -> Self {
        let mut offline = Offline {
            medium: &drive.now,
            block_bytes: plan.block_bytes,
        };
        let superblock = inspect(&mut offline, Depth::Opening).unwrap().superblock;
        let show = |medium: &Medium| {
            let (_, ticks, pool) = open(medium, plan);
            Shown::of(&pool.unwrap(), buffers, &ticks).unwrap()
        };
        let shown = show(&drive.now);
        let targets = targets(&drive.now, &superblock);
        let mut tail = targets.iter().filter(|it| it.kind == Kind::JournalTail);
        let undone = tail.next().map(|first| {
            let mut medium = drive.now.clone();
            for range in tail.chain([first]).flat_map(|it| &it.ranges) {
                medium.zero(range.start, range.end - range.start);
            }
            show(&medium)
        });
        Self {
            name,
            plan: plan.clone(),
            drive,
            superblock,
            shown,
            undone,
            is_orderly: false,
        }
    }

    fn damage_all(&self, seed: u64, buffers: &Rc<BufPool>, table: &mut Table) {
        let mut random = Random(seed);
        let mut all = targets(&self.drive.now, &self.superblock);
        shuffle(&mut all, &mut random);
        for kind in Kind::ALL {
            let of_kind: Vec<_> = all.iter().filter(|it| it.kind == kind).collect();
            for target in of_kind.iter().take(PLACES_MAX) {
                for fault in FAULTS {
                    let other = another(&of_kind, target, &mut random);
                    let to = (buffers, &mut *table);
                    self.damage(target, fault, other, &mut random, to);
                }
            }
        }
        self.damage_data(&mut random, buffers, table);
        table.images += 1;
    }

    fn damage(
        &self,
        target: &Target,
        fault: Fault,
        other: Option<&Range<u64>>,
        random: &mut Random,
        (buffers, table): (&Rc<BufPool>, &mut Table),
    ) {
        let kind = target.kind;
        let Some(patch) = self.drive.damage(fault, &target.ranges, other, random) else {
            return;
        };
        let named = Named(self, kind, fault);
        let judged = self.judge(kind, &self.drive.patched(&patch), buffers);
        let outcome = match judged {
            Ok(outcome) if is_allowed(kind, fault, outcome) => outcome,
            other => {
                let (name, ranges) = (&self.name, &target.ranges);
                panic!("{name}: {fault:?} of {kind:?} at {ranges:?}: {other:?}");
            }
        };
        *table.counts.entry((kind, fault, outcome)).or_default() += 1;
        drop(named);
    }

    /// What comes of a damaged drive.
    fn judge(&self, kind: Kind, medium: &Medium, buffers: &BufPool) -> Result<Outcome, String> {
        let inspect = |medium: &Medium, depth| {
            let block_bytes = self.plan.block_bytes;
            inspect(
                &mut Offline {
                    medium,
                    block_bytes,
                },
                depth,
            )
        };
        let inspected = inspect(medium, Depth::Opening);
        let is_damage = match &inspected {
            Ok(inspected) => inspected.worst() == Some(Severity::Damage),
            Err(_) => true,
        };
        let (drive, ticks, opened) = open(medium, &self.plan);
        let pool = match opened {
            Ok(pool) => pool,
            Err(error) if !is_damage => return Err(format!("only the engine refuses: {error}")),
            Err(_) if !drive.view().is_same(medium) => return Err("refused and written to".into()),
            Err(_) => return Ok(Outcome::Refused),
        };
        if is_damage {
            return Err(format!("it is opened in spite of {inspected:?}"));
        }
        if matches!(kind, Kind::FirstSuperblock | Kind::SecondSuperblock) {
            let mended = inspect(&drive.view(), Depth::Opening).map_err(|it| it.to_string())?;
            if mended.to_mend.is_some() {
                return Err("it is not mended".into());
            }
        }
        let wrong = pool.check();
        if !wrong.is_empty() {
            return Err(format!("check: {wrong:?}"));
        }
        let difference = self.shown.compare(&pool, buffers, &ticks)?;
        if difference.is_none() {
            return Ok(Outcome::Right);
        }
        if let Some(undone) = &self.undone
            && kind == Kind::JournalTail
            && undone.compare(&pool, buffers, &ticks)?.is_none()
        {
            return Ok(Outcome::Undone);
        }
        match difference.is_another || difference.wrong > 0 {
            true => Err(format!("it shows something else: {difference:?}")),
            false => Ok(Outcome::Unread),
        }
    }

    /// Damages data, which the pool finds out about when it reads it: so it stays open.
    fn damage_data(&self, random: &mut Random, buffers: &BufPool, table: &mut Table) {
        let (drive, ticks, pool) = open(&self.drive.now, &self.plan);
        let mut pool = pool.unwrap();
        settle(&mut pool, &ticks);
        let now = Drive {
            now: drive.view(),
            before: self.drive.before.clone(),
        };
        let places = self.shown.places(&pool);
        if self.is_orderly {
            let of_verify = places.values().flatten().copied();
            let of_verify = of_verify.filter(|it| self.shown.checksums(*it) == Checksums::Verify);
            for chunk in of_verify {
                match self.shown.is_verified(chunk) {
                    true => table.verified += 1,
                    false => table.unverified += 1,
                }
            }
        }
        let mut all: Vec<u64> = places.keys().copied().collect();
        shuffle(&mut all, random);
        let parts = [0..CHUNK as u64, 0..512, 1024..1536, 3584..4096];
        for (index, place) in all.iter().take(DATA_MAX).enumerate() {
            let part = &parts[index % parts.len()];
            let at = |place: u64| place + part.start..place + part.end;
            for fault in FAULTS {
                let other = at(all[random.index(all.len())]);
                let patch = now.damage(fault, &[at(*place)], Some(&other), random);
                let Some(patch) = patch else { continue };
                let named = Named(self, Kind::VerifiedData, fault);
                for (at, bytes) in &patch {
                    drive.poke(*at, bytes);
                }
                // With two places the check would have two reasons.
                let is_checked = patch.len() == 1 && random.once_in(8);
                let check = is_checked.then(|| self.check_data(&drive.view()));
                for (at, bytes) in &patch {
                    let shown = places[&(at / CHUNK as u64 * CHUNK as u64)].iter();
                    for chunk in shown.copied() {
                        let is = self.shown.look(&pool, buffers, &ticks, chunk).unwrap();
                        self.judge_data(chunk, is, fault, check, table);
                    }
                    let end = at + bytes.len() as u64;
                    drive.poke(*at, &now.now.bytes_at(&(*at..end)));
                }
                drop(named);
            }
        }
        let difference = self.shown.compare(&pool, buffers, &ticks).unwrap();
        assert!(difference.is_none(), "{}: {difference:?}", self.name);
    }

    /// Whether the offline check finds data that is not what was written.
    fn check_data(&self, medium: &Medium) -> bool {
        let mut offline = Offline {
            medium,
            block_bytes: self.plan.block_bytes,
        };
        let inspection = inspect(&mut offline, Depth::Data).unwrap();
        inspection.data.unwrap().mismatches > 0
    }

    fn judge_data(
        &self,
        chunk: ChunkOf,
        now: Now,
        fault: Fault,
        check: Option<bool>,
        table: &mut Table,
    ) {
        let (kind, outcome) = match (self.shown.is_verified(chunk), now) {
            (true, Now::Unread) => (Kind::VerifiedData, Outcome::Unread),
            (false, Now::Wrong) => (Kind::OtherData, Outcome::Unseen),
            (is_verified, now) => panic!(
                "{}: {fault:?} of chunk {chunk:?} (verified: {is_verified}): {now:?}",
                self.name
            ),
        };
        *table.counts.entry((kind, fault, outcome)).or_default() += 1;
        match (kind, self.shown.checksums(chunk), check) {
            (Kind::VerifiedData, _, Some(is_found)) => {
                assert!(is_found, "{}: the check finds nothing", self.name);
            }
            (_, Checksums::Scrub, Some(true)) => table.found += 1,
            (_, Checksums::Scrub, Some(false)) => table.missed += 1,
            _ => {}
        }
    }
}

fn shuffle<T>(all: &mut [T], random: &mut Random) {
    for at in (1..all.len()).rev() {
        all.swap(at, random.index(at + 1));
    }
}

/// A place like this one.
fn another<'a>(
    of_kind: &[&'a Target],
    target: &Target,
    random: &mut Random,
) -> Option<&'a Range<u64>> {
    let len = |target: &Target| target.ranges[0].end - target.ranges[0].start;
    let alike: Vec<_> = of_kind
        .iter()
        .filter(|it| len(it) == len(target) && it.ranges != target.ranges)
        .collect();
    (!alike.is_empty()).then(|| &alike[random.index(alike.len())].ranges[0])
}

/// Damages what is left of lives, on all processors.
fn search(seeds: Range<u64>, time: Duration) -> Table {
    let next = AtomicU64::new(seeds.start);
    let total = Mutex::new(Table::default());
    let begin = Instant::now();
    let work = || {
        let buffers = buffers();
        while begin.elapsed() < time {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            let mut table = Table::default();
            for still in stills(seed, &buffers) {
                still.damage_all(seed, &buffers, &mut table);
            }
            total.lock().unwrap().add(&table);
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let table = total.into_inner().unwrap();
    // Not through a macro, which a test that passes keeps to itself.
    let _ = write!(stderr(), "{table}");
    table
}

#[test]
fn whatever_is_damaged_is_refused_or_unread_or_of_no_consequence() {
    let table = search(SEEDS, Duration::MAX);
    let any = |_, _| true;
    for kind in Kind::ALL {
        assert!(table.of(kind, any) >= 50, "too little of {kind:?}");
    }
    // What the format cannot tell stays as narrow as that: of the journal only its end, as long as nothing was written behind
    // it, and only where it looks as if it had never been written.
    let tail = table.of(Kind::JournalTail, any);
    let undone = table.of(Kind::JournalTail, |_, it| it == Outcome::Undone);
    assert!(undone * 2 < tail, "{undone} of {tail}");
    // Where the power was never cut, most chunks that are to be verified are.
    assert!(table.unverified < table.verified);
    assert!(table.found >= 20);
}

#[test]
#[ignore = "takes as long as it is told to"]
fn whatever_is_damaged_of_many_lives_is_refused_or_unread_or_of_no_consequence() {
    let (seeds, time) = by_hand();
    search(seeds, time);
}
