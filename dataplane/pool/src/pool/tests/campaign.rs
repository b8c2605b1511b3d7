//! Seeds, and what is made of each: a drive, a pool and its life.

use bowline_block::Deallocate;
use bowline_nvme::Nanos;
use uuid::Uuid;

use super::examine::Ticks;
use super::log_device::{LogDevice, Plan};
use super::medium::Medium;
use super::oracle::Oracle;
use super::random::{Random, mix};
use super::timeline::{Cuts, Timeline, buffers};
use crate::format::layout::{Layout, LayoutOptions};
use crate::{FormatOptions, Pool};

/// Turns of a life at most.
const TURNS_MAX: u32 = 100_000;

/// Images that are opened of a life.
const IMAGES_MAX: u64 = 2500;

/// What one seed does, and how far it is.
pub(super) struct Campaign {
    seed: u64,
    pub(super) random: Random,
    /// Images that were opened.
    pub(super) images: u64,
    /// Moments of which images were made.
    pub(super) moments: u64,
    /// Of how many moments one is looked at: of all in a short life, of few in a long one.
    pub(super) stride: u64,
    /// Stands for all images in their order.
    pub(super) trace: u64,
    /// Power cuts that the present drive has behind it.
    pub(super) depth: u32,
    /// Requests for which there was no room.
    pub(super) full: u64,
    /// Longest attribute.
    pub(super) attribute_bytes: usize,
    /// Whether the drive fails now and then.
    pub(super) has_errors: bool,
}

impl Campaign {
    pub(super) fn name(&self) -> String {
        let (seed, image) = (self.seed, self.images);
        format!(
            "seed {seed}, image {image} (to repeat it: BOWLINE_CRASH_SEEDS={seed}..{} \
             cargo test -p bowline-pool --lib power_cut -- --ignored)",
            seed + 1
        )
    }

    pub(super) const fn is_over(&self) -> bool {
        self.images >= IMAGES_MAX
    }

    pub(super) const fn count(&mut self, hash: u64) {
        self.images += 1;
        self.trace = mix(self.trace ^ hash);
    }

    pub(super) const fn new(seed: u64) -> Self {
        Self {
            seed,
            random: Random(mix(seed)),
            images: 0,
            moments: 0,
            stride: 1,
            trace: 0,
            depth: 0,
            full: 0,
            attribute_bytes: 40,
            has_errors: seed % 4 == 1,
        }
    }

    /// Lives the life of a seed.
    pub(super) fn run(seed: u64) -> Self {
        let mut it = Self::new(seed);
        let (plan, options, bytes) = it.choose();
        let medium = format(&plan, &options, bytes);
        let buffers = buffers();
        let mut timeline =
            Timeline::begin(&mut it, (medium, plan), Oracle::new(), &buffers, Cuts::All);
        timeline.live(TURNS_MAX);
        drop(timeline);
        it
    }

    /// A drive, and a pool for it.
    pub(super) fn choose(&mut self) -> (Plan, FormatOptions, u64) {
        let random = &mut self.random;
        let (block_bytes, atomic_blocks) = [(512, 1), (512, 8), (4096, 1)][random.index(3)];
        self.stride = [1, 1, 4, 16][random.index(4)];
        let is_wide = random.once_in(3);
        if is_wide {
            // Several frames to a checkpoint, so that something happens between them.
            self.attribute_bytes = 12 << 10;
        }
        let layout = LayoutOptions {
            extent_bytes: 16 << 10,
            journal_bytes: Some(64 << 10),
            objects_max: Some(24),
            attribute_bytes_max: Some(if is_wide { 100 << 10 } else { 1 << 10 }),
        };
        let extents = 24 + random.below(40);
        let bytes = (1_u64..)
            .map(|at| (1 << 20) + (at << 14))
            .find(|bytes| {
                Layout::plan(*bytes, block_bytes, &layout)
                    .is_ok_and(|it| u64::from(it.extents) >= extents)
            })
            .unwrap();
        let places = Layout::plan(bytes, block_bytes, &layout).unwrap();
        let slow = match random.below(4) {
            0 => 0..0,
            1 => places.journal.offset..places.journal.offset + places.journal.bytes,
            2 => places.checkpoints[0].offset..places.checksums.offset,
            _ => places.data.offset..u64::MAX,
        };
        let plan = Plan {
            seed: random.next(),
            block_bytes,
            atomic_blocks,
            is_volatile: !random.once_in(3),
            deallocate: if random.once_in(2) {
                Deallocate::ReadsZero
            } else {
                Deallocate::Undefined
            },
            latency: 150_000,
            slow,
        };
        let options = FormatOptions {
            uuid: Uuid::from_u128(u128::from(random.next())),
            label: "crash".into(),
            made: 1,
            layout,
            is_forced: false,
        };
        (plan, options, bytes)
    }
}

/// A drive with an empty pool.
pub(super) fn format(plan: &Plan, options: &FormatOptions, bytes: u64) -> Medium {
    let mut drive = LogDevice::new(Medium::new(bytes), &plan.calm());
    let ticks = Ticks::new();
    let mut wait = || -> Nanos { ticks.next() };
    Pool::format(&mut drive, options, &mut wait).unwrap();
    drive.view()
}
