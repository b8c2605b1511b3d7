//! Power cuts while a pool is made: the drive has no pool then, and one can be made of it as if nothing had been; or it has
//! all of the new one, which is empty; or, if it was to be overwritten, all of the old one.

use std::collections::BTreeSet;
use std::io;

use bowline_block::{Completions, Deallocate, Device, DeviceEvent, Geometry, Io, Op};
use bowline_nvme::Nanos;
use uuid::Uuid;

use super::examine::{Ticks, examine};
use super::log_device::{Fate, LogDevice, Moment, Plan};
use super::medium::Medium;
use super::oracle::Oracle;
use super::random::Random;
use super::timeline::buffers;
use super::world;
use crate::format::foreign::{END_BYTES, FOREIGN_BYTES, Foreign};
use crate::{FormatOptions, Found, OpenError, Pool};

const DRIVE: u64 = 3 << 20;

const OLD: Uuid = Uuid::from_u128(1);
const NEW: Uuid = Uuid::from_u128(2);
const AGAIN: Uuid = Uuid::from_u128(3);

fn options(uuid: Uuid, is_forced: bool) -> FormatOptions {
    FormatOptions {
        uuid,
        is_forced,
        ..world::options()
    }
}

/// A drive that forgets what was discarded unless it was flushed: to deallocate there is no FUA.
struct Forgetful(LogDevice);

impl Device for Forgetful {
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }
    fn depth_max(&self) -> usize {
        self.0.depth_max()
    }
    fn try_submit(&mut self, mut io: Io) -> Result<(), Io> {
        io.fua &= io.op != Op::Deallocate;
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
        self.0.refresh()
    }
}

/// What a power cut has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Left {
    Nothing,
    Old,
    New,
}

/// Every kind of drive that matters here.
fn plans() -> impl Iterator<Item = Plan> {
    let blocks = [(512, 1), (512, 8), (4096, 1)];
    let kinds = [Deallocate::ReadsZero, Deallocate::Undefined];
    blocks
        .into_iter()
        .flat_map(move |(block_bytes, atomic_blocks)| {
            kinds.into_iter().flat_map(move |deallocate| {
                [false, true].map(|is_volatile| Plan {
                    seed: 5,
                    block_bytes,
                    atomic_blocks,
                    is_volatile,
                    deallocate,
                    latency: 50_000,
                    slow: 0..0,
                })
            })
        })
}

/// Something everywhere but where it would be taken for something.
fn rubbish() -> Medium {
    let mut medium = Medium::new(DRIVE);
    let mut random = Random(9);
    let (start, end) = (FOREIGN_BYTES as u64, DRIVE - END_BYTES as u64);
    for at in (start..end).step_by(512) {
        if at != 1 << 20 {
            let word = random.next().to_le_bytes();
            medium.write(at, &word.repeat(64));
        }
    }
    medium
}

/// A drive with a pool.
fn pool(plan: &Plan, uuid: Uuid) -> Medium {
    let mut drive = LogDevice::new(Medium::new(DRIVE), &plan.calm());
    let ticks = Ticks::new();
    Pool::format(&mut drive, &options(uuid, false), &mut || ticks.next()).unwrap();
    drive.view()
}

/// All that a power cut at a moment may leave: every part of the changes that are not certain, and of each many pieces.
fn images(moment: &Moment) -> Vec<Medium> {
    let open = moment.open();
    assert!(open <= 4, "{open} changes at once");
    let kept = |mask: u64| {
        move |at: usize| match mask >> at & 1 {
            1 => Fate::Kept,
            _ => Fate::Lost,
        }
    };
    let mut all: Vec<_> = (0..1 << open)
        .map(|mask| moment.image(kept(mask)))
        .collect();
    if open > 0 {
        all.extend((1..=8).map(|units| moment.image(|_| Fate::Cut(units))));
        all.extend((0..24).map(|seed| moment.image(|at| Fate::Torn(seed ^ (at as u64) << 32))));
    }
    let mut tried = BTreeSet::new();
    all.retain(|image| tried.insert(image.hash));
    all.into_iter().map(|image| image.medium).collect()
}

/// What is left, and that it is as it should be.
fn judge(medium: &Medium, plan: &Plan, is_forced: bool) -> Left {
    let mut drive = LogDevice::new(medium.clone(), &plan.calm());
    let ticks = Ticks::new();
    let mut wait = || ticks.next();
    let is_empty = |medium: &Medium, uuid: Uuid| {
        examine(medium, plan, &Oracle::new(), &buffers()).unwrap();
        let drive = LogDevice::new(medium.clone(), &plan.calm());
        let pool = Pool::open(drive, &mut || ticks.next()).unwrap();
        assert_eq!(pool.uuid(), uuid);
        assert_eq!(pool.usage().used_bytes, 0);
    };
    let found = Pool::find(&mut drive, &mut wait).unwrap();
    let left = match &found {
        Found::Nothing(foreign) => {
            assert_eq!(*foreign, Foreign::Blank);
            Left::Nothing
        }
        Found::Pool(superblock) if superblock.uuid == NEW => Left::New,
        Found::Pool(superblock) => {
            assert_eq!(superblock.uuid, OLD);
            Left::Old
        }
    };
    let again = options(AGAIN, is_forced);
    let formatted = Pool::format(&mut drive, &again, &mut wait);
    if left == Left::Nothing || is_forced {
        formatted.unwrap();
        is_empty(&drive.view(), AGAIN);
    } else {
        assert!(
            matches!(formatted, Err(OpenError::IsAPool)),
            "{formatted:?}"
        );
    }
    match left {
        Left::Nothing => {}
        Left::Old => is_empty(medium, OLD),
        Left::New => is_empty(medium, NEW),
    }
    left
}

/// Makes a pool, and looks at all that power cuts may leave meanwhile.
fn cut_everywhere(before: &Medium, plan: &Plan, is_forced: bool) -> BTreeSet<Left> {
    let drive = LogDevice::new(before.clone(), plan);
    drive.record();
    let ticks = Ticks::new();
    let mut forgetful = Forgetful(drive.clone());
    Pool::format(&mut forgetful, &options(NEW, is_forced), &mut || {
        ticks.next()
    })
    .unwrap();
    let moments = drive.moments();
    assert!(moments.len() > 10, "{} moments", moments.len());
    let images = moments.iter().flat_map(images);
    let left = images
        .map(|medium| judge(&medium, plan, is_forced))
        .collect();
    assert_eq!(judge(&drive.view(), plan, is_forced), Left::New);
    left
}

#[test]
fn a_power_cut_while_a_pool_is_made_leaves_none_or_all_of_an_empty_one() {
    for plan in plans() {
        for before in [Medium::new(DRIVE), rubbish()] {
            let left = cut_everywhere(&before, &plan, false);
            assert!(left.into_iter().eq([Left::Nothing, Left::New]), "{plan:?}");
        }
    }
}

#[test]
fn a_power_cut_while_a_pool_is_overwritten_leaves_one_of_both_or_none() {
    for plan in plans() {
        let left = cut_everywhere(&pool(&plan, OLD), &plan, true);
        let all = [Left::Nothing, Left::Old, Left::New];
        assert!(left.into_iter().eq(all), "{plan:?}");
    }
}
