//! Power cuts at every moment: what was acknowledged is there, and nothing was invented.
//!
//! `BOWLINE_CRASH_SEEDS=0..5000` or `BOWLINE_CRASH_HOURS=3` before
//! `cargo test -p bowline-pool --lib power_cut -- --ignored` searches for longer.

use std::io::{Write, stderr};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::campaign::Campaign;

/// Seeds that are tried every time.
const SEEDS: Range<u64> = 0..42;

/// What is known of several seeds.
#[derive(Default)]
struct Total {
    seeds: AtomicU64,
    images: AtomicU64,
    moments: AtomicU64,
}

/// Tries seeds on all processors, until one fails or the time is over.
fn search(seeds: Range<u64>, time: Duration) -> u64 {
    let (next, total) = (AtomicU64::new(seeds.start), Total::default());
    let begin = Instant::now();
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end || begin.elapsed() > time {
                return;
            }
            let campaign = Campaign::run(seed);
            total.seeds.fetch_add(1, Ordering::Relaxed);
            total.images.fetch_add(campaign.images, Ordering::Relaxed);
            total.moments.fetch_add(campaign.moments, Ordering::Relaxed);
        }
    };
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let (images, moments, count) = (of(&total.images), of(&total.moments), of(&total.seeds));
    // Not through a macro, which a test that passes keeps to itself.
    let _ = writeln!(
        stderr(),
        "power cuts: {images} images of {moments} moments, {count} seeds from {} on",
        seeds.start
    );
    images
}

/// Seeds to search, and for how long at most.
pub(super) fn by_hand() -> (Range<u64>, Duration) {
    let number = |text: &str| text.parse::<u64>().unwrap();
    let hours = std::env::var("BOWLINE_CRASH_HOURS").ok();
    let time = hours.map_or(Duration::MAX, |it| Duration::from_hours(number(&it)));
    let seeds = std::env::var("BOWLINE_CRASH_SEEDS").ok();
    let seeds = seeds.as_deref().unwrap_or("64..1000000000");
    let (from, to) = seeds.split_once("..").unwrap();
    (number(from)..number(to), time)
}

#[test]
fn every_power_cut_leaves_what_was_acknowledged_and_nothing_invented() {
    let images = search(SEEDS, Duration::MAX);
    assert!(images >= 100_000, "only {images} images were opened");
}

#[test]
fn seed_repeats_exactly() {
    let [a, b] = [Campaign::run(3), Campaign::run(3)];
    assert_eq!((a.trace, a.images), (b.trace, b.images));
}

#[test]
#[ignore = "takes as long as it is told to"]
fn every_power_cut_of_many_lives_leaves_what_was_acknowledged() {
    let (seeds, time) = by_hand();
    search(seeds, time);
}
