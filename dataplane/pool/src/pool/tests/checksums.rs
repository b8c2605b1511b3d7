//! Volumes with checksums: what is not what was written is never handed out.

use bowline_block::{Completions, Device, FaultPlan, Io, IoError, Op, Segments};

use super::world::{BLOCK, Failing, Shared, World, io, plan, slow, spec};
use crate::format::record::Checksums;
use crate::map::Reader;
use crate::{PoolEvent, ScrubOptions, ScrubReport, ScrubState, Volume, VolumeSpec};

const CHUNK: usize = 4096 / BLOCK;

fn volume(world: &mut World, checksums: Checksums, bytes: u64) -> (u32, Volume<Shared>) {
    let volume = world.create(VolumeSpec {
        checksums,
        ..spec(bytes)
    });
    (volume, world.pool.open_volume(volume).unwrap())
}

impl World {
    /// Where a block of a volume is on the drive, in bytes.
    pub(super) fn place(&self, volume: u32, lba: u64) -> u64 {
        let engine = self.pool.engine.borrow();
        let (logical, start) = engine.shape.split(lba * BLOCK as u64);
        let chunk = start / 4096;
        let reader = Reader::Head(engine.state.slot(volume).unwrap());
        let mut runs = Vec::new();
        engine
            .state
            .resolve(reader, logical, chunk..chunk + 1, &mut runs);
        engine.shape.place(runs[0].physical.unwrap(), start)
    }

    /// Changes a byte of the drive behind the pool's back.
    pub(super) fn flip(&mut self, offset: u64) {
        self.settle();
        let lba = offset / BLOCK as u64;
        let data = self.payload(&[0]);
        let mut data = self.access(io(Op::Read, lba, 1, data));
        for buf in data.iter_mut() {
            buf.as_mut().unwrap()[usize::try_from(offset).unwrap() % BLOCK] ^= 4;
        }
        let mut io = io(Op::Write, lba, 1, data);
        io.fua = true;
        self.access(io);
    }

    fn access(&mut self, io: Io) -> Segments {
        let mut drive = self.drive.clone();
        drive.try_submit(io).unwrap();
        let mut out = Completions::with_capacity(1);
        loop {
            self.now.borrow_mut().0 += 100;
            let now = *self.now.borrow();
            drive.poll(now, &mut out);
            if let Some(completion) = out.pop() {
                completion.result.unwrap();
                return completion.data;
            }
        }
    }

    pub(super) fn try_read(
        &mut self,
        volume: &mut Volume<Shared>,
        lba: u64,
        blocks: usize,
    ) -> Result<Segments, IoError> {
        let data = self.payload(&vec![0; blocks]);
        self.run(volume, io(Op::Read, lba, blocks, data))
    }
}

fn values(first: u64, count: usize) -> Vec<u64> {
    (first..).take(count).collect()
}

#[test]
fn a_changed_byte_is_a_media_error_that_is_told_until_the_chunk_is_written_again() {
    let mut world = World::new(6 << 20, plan(1));
    let (number, mut a) = volume(&mut world, Checksums::Verify, 1 << 20);
    world.write(&mut a, 0, &values(100, 64)).unwrap();
    assert_eq!(world.read(&mut a, 0, 64), values(100, 64));
    let offset = world.place(number, 19);
    world.flip(offset + 7);
    for (lba, blocks) in [(16, 8), (0, 64), (19, 1), (17, 2), (22, 12)] {
        let result = world.try_read(&mut a, lba, blocks);
        assert_eq!(result.err(), Some(IoError::MediaRead), "{lba} {blocks}");
    }
    let Some(PoolEvent::Mismatch(mismatch)) = world.pool.poll_event() else {
        panic!("nothing was told");
    };
    assert_eq!((mismatch.volume, mismatch.lba), (number, 16));
    assert_eq!(mismatch.offset, offset - 3 * BLOCK as u64);
    assert_ne!(mismatch.expected, mismatch.found);
    assert_eq!(world.pool.checksum_counts().mismatches, 5);
    assert_eq!(world.read(&mut a, 24, 40), values(124, 40));
    world.write(&mut a, 16, &values(7, CHUNK)).unwrap();
    assert_eq!(world.read(&mut a, 16, CHUNK), values(7, CHUNK));
}

#[test]
fn checksums_are_on_the_drive_after_the_pool_was_closed() {
    let mut world = World::new(6 << 20, plan(2));
    let (number, mut a) = volume(&mut world, Checksums::Verify, 1 << 20);
    world.write(&mut a, 0, &values(100, 64)).unwrap();
    drop(a);
    let mut world = world.reopen();
    let offset = world.place(number, 8);
    world.flip(offset);
    let mut a = world.pool.open_volume(number).unwrap();
    assert_eq!(world.try_read(&mut a, 8, 8).err(), Some(IoError::MediaRead));
    assert_eq!(world.read(&mut a, 16, 48), values(116, 48));
    let counts = world.pool.checksum_counts();
    assert_eq!((counts.verified, counts.unverified), (6, 0));
}

#[test]
fn a_crash_leaves_active_chunks_unverified_until_they_are_written() {
    let mut world = World::new(6 << 20, plan(3));
    let (number, mut a) = volume(&mut world, Checksums::Verify, 1 << 20);
    world.write(&mut a, 0, &values(100, 64)).unwrap();
    drop(a);
    let mut world = world.crash();
    let mut a = world.pool.open_volume(number).unwrap();
    assert_eq!(world.read(&mut a, 0, 64), values(100, 64));
    let counts = world.pool.checksum_counts();
    assert_eq!((counts.verified, counts.unverified), (0, 8));
    world.write(&mut a, 8, &values(7, CHUNK)).unwrap();
    assert_eq!(world.read(&mut a, 8, CHUNK), values(7, CHUNK));
    assert_eq!(world.pool.checksum_counts().verified, 1);
    let offset = world.place(number, 8);
    world.flip(offset);
    assert_eq!(world.try_read(&mut a, 8, 8).err(), Some(IoError::MediaRead));
}

#[test]
fn overwriting_active_extents_writes_nothing_but_the_data() {
    let mut world = World::new(6 << 20, FaultPlan::default());
    let (_, mut a) = volume(&mut world, Checksums::Verify, 1 << 20);
    world.write(&mut a, 0, &values(1, 64)).unwrap();
    world.settle();
    let before = world.pool.engine.borrow().journal.applied();
    for round in 0..20 {
        world.write(&mut a, 8, &values(round, CHUNK)).unwrap();
        assert_eq!(world.read(&mut a, 8, CHUNK), values(round, CHUNK));
    }
    assert_eq!(world.pool.engine.borrow().journal.applied(), before);
    let counts = world.pool.checksum_counts();
    assert_eq!((counts.pages_read, counts.pages_written), (0, 0));
    assert_eq!(counts.verified, 20);
}

#[test]
fn scrub_only_volumes_are_read_without_being_compared() {
    let mut world = World::new(6 << 20, plan(4));
    let (number, mut a) = volume(&mut world, Checksums::Scrub, 1 << 20);
    world.write(&mut a, 0, &values(100, 64)).unwrap();
    let offset = world.place(number, 8);
    world.flip(offset);
    assert!(world.try_read(&mut a, 8, 8).is_ok());
    assert_eq!(
        world.pool.checksum_counts(),
        crate::ChecksumCounts::default()
    );
}

/// Runs a scrub to its end.
fn scrub(world: &mut World, options: ScrubOptions) -> ScrubReport {
    world.pool.start_scrub(options).unwrap();
    for _ in 0..1_000_000 {
        world.poll();
        let report = world.pool.scrub_report().unwrap();
        if report.state == ScrubState::Done {
            assert_eq!(report.position, report.total);
            return report;
        }
    }
    panic!("the scrub does not end");
}

#[test]
fn a_scrub_finds_damage_wherever_there_are_checksums() {
    let mut world = World::new(6 << 20, plan(5));
    let modes = [Checksums::Verify, Checksums::Scrub, Checksums::Off];
    let numbers = modes.map(|checksums| {
        let (number, mut it) = volume(&mut world, checksums, 1 << 20);
        world.write(&mut it, 0, &values(1, 64)).unwrap();
        number
    });
    let report = scrub(&mut world, ScrubOptions::default());
    assert_eq!((report.verified, report.unverified), (16, 0));
    assert_eq!((report.mismatches, report.plain), (0, 0));
    for number in numbers {
        let offset = world.place(number, 20);
        world.flip(offset);
    }
    let everything = ScrubOptions {
        is_everything: true,
        ..ScrubOptions::default()
    };
    let report = scrub(&mut world, everything);
    assert_eq!((report.verified, report.mismatches), (14, 2));
    assert_eq!((report.plain, report.read_errors), (8, 0));
    let mut told = Vec::new();
    while let Some(event) = world.pool.poll_event() {
        if let PoolEvent::Mismatch(mismatch) = event {
            told.push((mismatch.volume, mismatch.lba));
        }
    }
    assert_eq!(told, [(numbers[0], 16), (numbers[1], 16)]);
    // After a crash nothing is known, and nothing is blessed.
    let mut world = world.crash();
    for _ in 0..2 {
        let report = scrub(&mut world, everything);
        assert_eq!((report.verified, report.unverified), (0, 16));
    }
}

#[test]
fn answer_to_a_scrub_that_was_stopped_is_not_for_the_next() {
    let mut world = World::new(6 << 20, FaultPlan::default());
    let (_, mut a) = volume(&mut world, Checksums::Verify, 1 << 20);
    let chunks = [1, 4, 2];
    for (extent, count) in (0..).zip(chunks) {
        world
            .write(&mut a, extent * 32, &values(1, count * CHUNK))
            .unwrap();
        // Nothing else is there, so nothing else is read.
        let (lba, rest) = (extent * 32 + count as u64 * 8, 32 - count * CHUNK);
        if rest > 0 {
            world.change(&mut a, Op::Deallocate, lba, rest).unwrap();
        }
    }
    world.settle();
    world.drive.late().polls = 20;
    world.pool.start_scrub(ScrubOptions::default()).unwrap();
    let is_reading = |world: &World| world.pool.engine.borrow().drive.in_flight() > 0;
    // It is stopped while it reads the second extent.
    while world.pool.scrub_report().unwrap().verified < 1 || !is_reading(&world) {
        world.poll();
    }
    world.pool.stop_scrub();
    let report = scrub(&mut world, ScrubOptions::default());
    let all = u64::try_from(chunks.iter().sum::<usize>()).unwrap();
    assert_eq!((report.verified, report.unverified), (all, 0));
}

#[test]
fn a_scrub_keeps_its_rate_pauses_and_stops() {
    let mut world = World::new(6 << 20, FaultPlan::default());
    let (_, mut it) = volume(&mut world, Checksums::Verify, 1 << 20);
    world.write(&mut it, 0, &values(1, 1024)).unwrap();
    let slow = ScrubOptions {
        bytes_per_second: Some(1 << 20),
        ..ScrubOptions::default()
    };
    let seconds = |world: &World| world.now.borrow().0 / 100_000_000;
    let before = seconds(&world);
    world.pool.start_scrub(slow).unwrap();
    let report = |world: &World| world.pool.scrub_report().unwrap();
    assert!(world.pool.start_scrub(slow).is_err(), "one at a time");
    // Half a MiB takes half a second, whose end is known beforehand.
    while report(&world).state == ScrubState::Running {
        world.poll();
        if report(&world).state == ScrubState::Running
            && let Some(at) = world.pool.poll_timeout()
        {
            let mut now = world.now.borrow_mut();
            now.0 = now.0.max(at.0);
        }
    }
    assert!((4..=5).contains(&(seconds(&world) - before)));
    world.pool.start_scrub(slow).unwrap();
    world.poll();
    world.pool.pause_scrub();
    world.settle();
    let paused = report(&world);
    assert_eq!(paused.state, ScrubState::Paused);
    let now = world.now.borrow().0;
    let soon = world
        .pool
        .poll_timeout()
        .is_some_and(|at| at.0 < now + 1_000_000_000);
    assert!(!soon, "it does not go on by itself");
    world.pool.set_scrub_rate(None);
    world.pool.resume_scrub();
    world.poll();
    assert!(report(&world).verified > paused.verified);
    world.pool.stop_scrub();
    world.settle();
    let stopped = report(&world);
    world.poll();
    assert_eq!(
        (stopped.state, report(&world)),
        (ScrubState::Stopped, stopped)
    );
}

#[test]
fn a_write_of_a_part_of_a_chunk_reads_the_rest_and_keeps_it_verified() {
    let mut world = World::new(6 << 20, plan(6));
    let (number, mut a) = volume(&mut world, Checksums::Verify, 1 << 20);
    world.write(&mut a, 0, &values(100, 64)).unwrap();
    world.write(&mut a, 11, &values(1, 3)).unwrap();
    world.write(&mut a, 22, &values(4, 12)).unwrap();
    world
        .change(&mut a, Op::WriteZeroes { deallocate: false }, 42, 2)
        .unwrap();
    let before = world.pool.checksum_counts();
    let mut expected = values(100, 64);
    expected[11..14].copy_from_slice(&values(1, 3));
    expected[22..34].copy_from_slice(&values(4, 12));
    expected[42..44].fill(0);
    assert_eq!(world.read(&mut a, 0, 64), expected);
    let after = world.pool.checksum_counts();
    assert_eq!(after.verified - before.verified, 8);
    assert_eq!(after.unverified, before.unverified);
    // Nothing is put over a chunk that is damaged: it would look right afterwards.
    let offset = world.place(number, 9);
    world.flip(offset);
    let result = world.write(&mut a, 12, &[7]);
    assert_eq!(result.err(), Some(IoError::MediaRead));
    assert_eq!(world.try_read(&mut a, 8, 8).err(), Some(IoError::MediaRead));
}

#[test]
fn a_read_of_what_is_being_overwritten_is_no_mismatch() {
    let mut world = World::new(6 << 20, plan(7));
    let (_, mut a) = volume(&mut world, Checksums::Verify, 1 << 20);
    world.write(&mut a, 0, &values(1, 32)).unwrap();
    world.drive.late().polls = 5;
    let mut out = Completions::with_capacity(64);
    for round in 0..200 {
        // Reads before, between and after two writes of which the second begins when the first has ended.
        for part in 0..2 {
            let data = world.payload(&[round * 2 + part; 32]);
            let mut write = io(Op::Write, 0, 32, data);
            write.token = 1;
            a.try_submit(write).unwrap();
            for lba in 0..4 {
                let data = world.payload(&[0; 24]);
                a.try_submit(io(Op::Read, lba, 24, data)).unwrap();
            }
            let mut is_written = false;
            while !is_written {
                world.poll();
                a.poll(*world.now.borrow(), &mut out);
                for completion in out.drain() {
                    completion.result.unwrap();
                    is_written |= completion.token == 1;
                }
            }
        }
    }
    world.settle();
    a.poll(*world.now.borrow(), &mut out);
    assert!(out.drain().all(|completion| completion.result.is_ok()));
    assert_eq!(world.pool.checksum_counts().mismatches, 0);
}

#[test]
fn a_damaged_page_of_checksums_is_told_and_makes_nothing_unreadable() {
    let mut world = World::new(6 << 20, plan(8));
    let (number, mut a) = volume(&mut world, Checksums::Verify, 1 << 20);
    world.write(&mut a, 0, &values(1, 64)).unwrap();
    drop(a);
    let mut world = world.reopen();
    let offset = world
        .pool
        .engine
        .borrow()
        .superblock
        .layout
        .checksums
        .offset;
    world.flip(offset + 100);
    let mut a = world.pool.open_volume(number).unwrap();
    assert_eq!(world.read(&mut a, 0, 64), values(1, 64));
    let counts = world.pool.checksum_counts();
    assert_eq!((counts.pages_lost, counts.unverified), (1, 8));
    assert_eq!(world.pool.poll_event(), Some(PoolEvent::ChecksumsLost));
    world.write(&mut a, 8, &values(9, 8)).unwrap();
    drop(a);
    // The page is written again, and right.
    let mut world = world.reopen();
    let mut a = world.pool.open_volume(number).unwrap();
    world.read(&mut a, 0, 64);
    let counts = world.pool.checksum_counts();
    assert_eq!(
        (counts.pages_lost, counts.verified, counts.unverified),
        (0, 1, 7)
    );
}

#[test]
fn an_extent_that_was_another_volumes_has_no_checksums_of_it() {
    let mut world = World::new(6 << 20, plan(9));
    // So that the page of checksums still matters.
    let (_, mut other) = volume(&mut world, Checksums::Verify, 1 << 20);
    world.write(&mut other, 0, &values(1, 8)).unwrap();
    drop(other);
    let (first, mut a) = volume(&mut world, Checksums::Verify, 4 << 20);
    for lba in (0..8192).step_by(64) {
        world.write(&mut a, lba, &values(lba, 64)).unwrap();
    }
    let operation = world.pool.delete_volume(first);
    world.wait(operation).unwrap();
    drop(a);
    let mut world = world.reopen();
    // In part, so that the rest of each extent is whatever it is; and in between for a volume without checksums.
    let (_, mut plain) = volume(&mut world, Checksums::Off, 1 << 20);
    let (_, mut b) = volume(&mut world, Checksums::Verify, 2 << 20);
    for lba in (0..2048).step_by(32) {
        world.write(&mut plain, lba, &values(lba, 8)).unwrap();
        world.write(&mut b, lba + 8, &values(7 * lba, 16)).unwrap();
    }
    for lba in (0..2048).step_by(32) {
        let found = world.read(&mut b, lba, 32);
        assert_eq!(found[..8], [0; 8]);
        assert_eq!(found[8..24], values(7 * lba, 16));
    }
    assert_eq!(world.pool.checksum_counts().mismatches, 0);
}

#[test]
fn groups_that_rest_are_retired_and_outlive_a_crash() {
    let mut world = World::new(6 << 20, plan(10));
    let (number, mut a) = volume(&mut world, Checksums::Verify, 1 << 20);
    world.write(&mut a, 0, &values(1, 64)).unwrap();
    world.settle();
    let wait = |world: &mut World, seconds: u64| {
        world.now.borrow_mut().0 += seconds * 1_000_000_000;
        world.settle();
    };
    wait(&mut world, 20);
    assert_eq!(world.pool.checksum_counts().pages_written, 0);
    wait(&mut world, 20);
    assert_eq!(world.pool.checksum_counts().pages_written, 1);
    assert_eq!(
        world.pool.poll_timeout(),
        None,
        "there is nothing left to do"
    );
    drop(a);
    let mut world = world.crash();
    let mut a = world.pool.open_volume(number).unwrap();
    assert_eq!(world.read(&mut a, 0, 64), values(1, 64));
    let counts = world.pool.checksum_counts();
    assert_eq!((counts.verified, counts.unverified), (8, 0));
}

#[test]
fn compare_and_write_keeps_checksums_whether_it_writes_or_not() {
    let mut world = World::new(6 << 20, plan(11));
    let (_, mut a) = volume(&mut world, Checksums::Verify, 1 << 20);
    world.write(&mut a, 0, &values(100, 64)).unwrap();
    // A block, a chunk; what is expected, and something else.
    for (lba, blocks) in [(11, 1), (16, 8)] {
        for is_same in [false, true] {
            let expected = if is_same {
                values(100 + lba, blocks)
            } else {
                vec![1; blocks]
            };
            let data = world.payload(&[expected, values(900 + lba, blocks)].concat());
            let result = world.run(&mut a, io(Op::CompareAndWrite, lba, blocks, data));
            assert_eq!(result.is_ok(), is_same);
            let before = world.pool.checksum_counts();
            world.read(&mut a, lba, blocks);
            let after = world.pool.checksum_counts();
            assert_eq!(after.verified, before.verified + 1, "{lba} {is_same}");
        }
    }
    assert_eq!(world.read(&mut a, 11, 1), [911]);
    assert_eq!(world.read(&mut a, 16, 8), values(916, 8));
}

#[test]
fn what_checksums_cost_in_accesses_to_the_drive() {
    // Whole chunks: overwritten, read. A part of one. Read from the drive. Overwritten where the group is retired.
    let expected = [
        (Checksums::Off, [1, 1, 1, 1, 1]),
        (Checksums::Scrub, [1, 1, 2, 1, 3]),
        (Checksums::Verify, [1, 1, 2, 2, 2]),
    ];
    for (checksums, expected) in expected {
        let mut world = World::new(6 << 20, FaultPlan::default());
        let (number, mut a) = volume(&mut world, checksums, 1 << 20);
        world.write(&mut a, 0, &values(1, 64)).unwrap();
        let accesses = |world: &mut World| {
            world.settle();
            let mut late = world.drive.late();
            std::mem::take(&mut late.accesses)
        };
        accesses(&mut world);
        world.write(&mut a, 8, &values(1, 8)).unwrap();
        let overwrite = accesses(&mut world);
        world.read(&mut a, 8, 8);
        let read = accesses(&mut world);
        world.write(&mut a, 9, &values(1, 2)).unwrap();
        let part = accesses(&mut world);
        drop(a);
        let mut world = world.reopen();
        let mut a = world.pool.open_volume(number).unwrap();
        accesses(&mut world);
        world.read(&mut a, 8, 8);
        let cold = accesses(&mut world);
        world.write(&mut a, 8, &values(1, 8)).unwrap();
        let retired = accesses(&mut world);
        assert_eq!([overwrite, read, part, cold, retired], expected);
    }
}

#[test]
fn no_chunk_that_is_there_is_written_beside_one_that_is_not_before_its_group_is_active() {
    let mut world = World::new(6 << 20, slow());
    let (number, mut a) = volume(&mut world, Checksums::Verify, 1 << 20);
    world.write(&mut a, 0, &values(1, 4 * CHUNK)).unwrap();
    world.snapshot(number);
    // A version that has the first chunk only.
    world.write(&mut a, 0, &values(100, CHUNK)).unwrap();
    drop(a);
    let mut world = world.reopen();
    world.settle();
    let area = world.pool.engine.borrow().superblock.layout.journal;
    let block = |offset: u64| offset / BLOCK as u64;
    // So the group stays what it is, and what the drive has of its checksums counts.
    world.drive.late().failing = Some(Failing {
        blocks: block(area.offset)..block(area.end().unwrap()),
        after: 0,
        is_done: false,
    });
    let mut a = world.pool.open_volume(number).unwrap();
    let written = world.write(&mut a, 0, &values(200, 2 * CHUNK));
    assert_eq!(written, Err(IoError::MediaWrite));
    assert!(world.drive.late().failing.is_none());
    drop(a);
    let mut world = world.crash();
    let mut a = world.pool.open_volume(number).unwrap();
    assert_eq!(world.read(&mut a, 0, CHUNK), values(100, CHUNK));
    assert!(world.pool.checksum_counts().verified > 0);
}
