//! Requests over regular files.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::thread;

use bowline_block::{Deallocate, Device, DeviceEvent, Io, IoError, Op, Segments};
use bowline_reactor::IoBackend;
use rustix::process::{Pid, getpid};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tempfile::TempDir;

use super::bench::{Bench, alone, on_both_backends, skip};
use crate::probe::SysfsQueue;
use crate::{Backing, OpenOptions};

pub(super) fn file(bytes: u64) -> (TempDir, PathBuf) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("disk");
    fs::File::create(&path).unwrap().set_len(bytes).unwrap();
    (dir, path)
}

fn on_both(bytes: u64, test: impl Fn(&mut Bench, &PathBuf)) {
    on_both_backends(|backend| {
        let (_dir, path) = file(bytes);
        let mut bench = Bench::open(backend, &OpenOptions::new(&path)).unwrap();
        test(&mut bench, &path);
    });
}

#[test]
fn what_is_written_is_read_back_and_is_in_the_file() {
    on_both(1 << 20, |bench, path| {
        assert_eq!(bench.write(3, 2, 7).result, Ok(()));
        assert_eq!(bench.read(2, 4), [0, 7, 7, 0]);
        let mut bytes = vec![0; 4 * 4096];
        fs::File::open(path)
            .unwrap()
            .read_exact_at(&mut bytes, 2 * 4096)
            .unwrap();
        assert_eq!(
            bytes,
            [vec![0; 4096], vec![7; 8192], vec![0; 4096]].concat()
        );
    });
}

#[test]
fn several_segments_and_cut_buffers_are_one_payload() {
    on_both(4 << 20, |bench, _| {
        let whole = bench.filled(4, 1);
        let mut data = Segments::from(whole.slice(0..4096));
        data.push(whole.slice(4096..8192)).unwrap();
        data.push(bench.filled(256, 2)).unwrap();
        data.push(bench.filled(1, 3)).unwrap();
        assert_eq!(bench.run_op(Op::Write, 1, 259, data).result, Ok(()));
        let mut data = Segments::from(bench.filled(3, 0));
        data.push(bench.filled(256, 0)).unwrap();
        let done = bench.run_op(Op::Read, 1, 259, data);
        let bytes: Vec<u8> = done.data.pieces(0..usize::MAX).flatten().copied().collect();
        assert_eq!(done.data.count(), 2);
        assert!(bytes == [vec![1; 8192], vec![2; 1 << 20], vec![3; 4096]].concat());
    });
}

#[test]
fn flush_and_fua_complete() {
    on_both(1 << 20, |bench, _| {
        let data = bench.filled(2, 5).into();
        let io = Io {
            op: Op::Write,
            lba: 0,
            blocks: 2,
            fua: true,
            data,
            token: 9,
        };
        let done = bench.run(io);
        assert_eq!((done.result, done.token), (Ok(()), 9));
        assert_eq!(
            bench.run_op(Op::Flush, 0, 0, Segments::new()).result,
            Ok(())
        );
        for op in [Op::WriteZeroes { deallocate: true }, Op::Deallocate] {
            let io = Io {
                op,
                lba: 0,
                blocks: 1,
                fua: true,
                data: Segments::new(),
                token: 9,
            };
            assert_eq!(bench.run(io).result, Ok(()));
        }
        assert_eq!(bench.read(0, 2), [0, 5]);
    });
}

#[test]
fn zeroed_blocks_read_zero_and_their_neighbours_do_not_change() {
    on_both(8 << 20, |bench, _| {
        for deallocate in [false, true] {
            assert_eq!(bench.write(0, 256, 9).result, Ok(()));
            let op = Op::WriteZeroes { deallocate };
            assert_eq!(bench.run_op(op, 1, 250, Segments::new()).result, Ok(()));
            assert_eq!(
                bench.read(0, 256),
                [vec![9], vec![0; 250], vec![9; 5]].concat()
            );
        }
    });
}

#[test]
fn deallocated_blocks_read_zero_and_give_their_space_back() {
    on_both(8 << 20, |bench, path| {
        assert_eq!(bench.device().geometry().deallocate, Deallocate::ReadsZero);
        assert_eq!(bench.write(0, 256, 9).result, Ok(()));
        assert_eq!(
            bench.run_op(Op::Flush, 0, 0, Segments::new()).result,
            Ok(())
        );
        let before = fs::metadata(path).unwrap().blocks();
        assert_eq!(
            bench.run_op(Op::Deallocate, 8, 128, Segments::new()).result,
            Ok(())
        );
        assert_eq!(
            bench.run_op(Op::Flush, 0, 0, Segments::new()).result,
            Ok(())
        );
        assert!(fs::metadata(path).unwrap().blocks() < before);
        assert_eq!(bench.read(7, 3), [9, 0, 0]);
        assert_eq!(bench.read(135, 2), [0, 9]);
    });
}

#[test]
fn compare_and_write_writes_only_on_a_match() {
    on_both(1 << 20, |bench, _| {
        let pair = |bench: &Bench, old, new| {
            let mut data = Segments::from(bench.filled(2, old));
            data.push(bench.filled(2, new)).unwrap();
            data
        };
        let data = pair(bench, 1, 2);
        assert_eq!(
            bench.run_op(Op::CompareAndWrite, 4, 2, data).result,
            Err(IoError::CompareMismatch)
        );
        let data = pair(bench, 0, 2);
        assert_eq!(bench.run_op(Op::CompareAndWrite, 4, 2, data).result, Ok(()));
        assert_eq!(bench.read(3, 4), [0, 2, 2, 0]);
        let large = Segments::from(bench.filled(66, 0));
        assert_eq!(
            bench.run_op(Op::CompareAndWrite, 0, 33, large).result,
            Err(IoError::Unsupported)
        );
    });
}

#[test]
fn one_of_many_competing_compare_and_writes_wins() {
    on_both(1 << 20, |bench, _| {
        for round in 0..10_u8 {
            for token in 1..=20_u8 {
                let mut data = Segments::from(bench.filled(1, round));
                data.push(bench.filled(1, if token == 10 { round } else { round + 1 }))
                    .unwrap();
                assert!(bench.submit(Op::CompareAndWrite, 5, 1, data, token.into()));
            }
            let mut done = bench.wait(20);
            done.sort_by_key(|done| done.token);
            assert_eq!(done[0].result, Ok(()), "the first submitted goes first");
            assert!(
                done[1..]
                    .iter()
                    .all(|done| done.result == Err(IoError::CompareMismatch))
            );
            assert_eq!(bench.read(5, 1), [round + 1]);
        }
    });
}

#[test]
fn write_behind_a_compare_and_write_waits_for_it_and_others_do_not() {
    on_both(1 << 20, |bench, _| {
        for round in 1..20_u8 {
            let mut data = Segments::from(bench.filled(2, round - 1));
            data.push(bench.filled(2, 0xAA)).unwrap();
            assert!(bench.submit(Op::CompareAndWrite, 5, 2, data, 1));
            let data = bench.filled(2, round).into();
            assert!(bench.submit(Op::Write, 5, 2, data, 2));
            let data = bench.filled(1, round).into();
            assert!(bench.submit(Op::Write, 7, 1, data, 3));
            let done = bench.wait(3);
            assert!(done.iter().all(|done| done.result == Ok(())));
            let place = |token| done.iter().position(|done| done.token == token);
            assert!(place(1) < place(2));
            assert_eq!(bench.read(5, 3), [round; 3]);
        }
    });
}

#[test]
fn full_queue_hands_back_and_everything_accepted_completes_once() {
    on_both_backends(|backend| {
        let (_dir, path) = file(1 << 20);
        let options = OpenOptions {
            depth: 8,
            threads: 2,
            ..OpenOptions::new(path)
        };
        let mut bench = Bench::open(backend, &options).unwrap();
        assert_eq!(bench.device().depth_max(), 8);
        let mut accepted = 0;
        loop {
            let data = bench.filled(1, u8::try_from(accepted).unwrap()).into();
            if !bench.submit(Op::Write, accepted, 1, data, accepted) {
                break;
            }
            accepted += 1;
        }
        assert_eq!(accepted, 8);
        // One that is finished at once takes a place too.
        assert!(!bench.submit(Op::Read, u64::MAX, 1, Segments::new(), 0));
        let mut tokens: Vec<u64> = bench.wait(8).iter().map(|done| done.token).collect();
        tokens.sort_unstable();
        assert_eq!(tokens, (0..8).collect::<Vec<u64>>());
        assert_eq!(bench.read(0, 8), (0..8).collect::<Vec<u8>>());
        for token in 0..8 {
            assert!(bench.submit(Op::Read, u64::MAX, 1, Segments::new(), token));
        }
        assert!(!bench.submit(Op::Flush, 0, 0, Segments::new(), 0));
        assert!(
            bench
                .wait(8)
                .iter()
                .all(|done| done.result == Err(IoError::OutOfRange))
        );
        assert_eq!(bench.device().in_flight(), 0);
    });
}

#[test]
fn malformed_requests_complete_with_their_error() {
    on_both(8 * 4096, |bench, _| {
        let one = |bench: &Bench| Segments::from(bench.filled(1, 0));
        let data = one(bench);
        assert_eq!(
            bench.run_op(Op::Write, 8, 1, data).result,
            Err(IoError::OutOfRange)
        );
        let data = one(bench);
        assert_eq!(
            bench.run_op(Op::Read, 0, 2, data).result,
            Err(IoError::Internal)
        );
        let shared = one(bench);
        let view = shared.clone();
        assert_eq!(
            bench.run_op(Op::Read, 0, 1, shared).result,
            Err(IoError::Internal)
        );
        drop(view);
        assert_eq!(
            bench.run_op(Op::Read, 8, 0, Segments::new()).result,
            Ok(()),
            "nothing to read"
        );
        assert_eq!(bench.device().poll_event(), None);
    });
}

#[test]
fn read_only_backing_refuses_to_change_and_serves_reads() {
    on_both_backends(|backend| {
        let (_dir, path) = file(8 * 4096);
        let options = OpenOptions {
            read_only: true,
            ..OpenOptions::new(path)
        };
        let mut bench = Bench::open(backend, &options).unwrap();
        assert!(bench.device().geometry().read_only);
        assert_eq!(bench.write(0, 1, 1).result, Err(IoError::ReadOnly));
        let done = bench.run_op(Op::Deallocate, 0, 1, Segments::new());
        assert_eq!(done.result, Err(IoError::ReadOnly));
        assert_eq!(
            bench.run_op(Op::Flush, 0, 0, Segments::new()).result,
            Ok(())
        );
        assert_eq!(bench.read(0, 8), [0; 8]);
    });
}

#[test]
fn file_that_shrinks_gives_media_errors_and_one_warning_until_it_is_restored() {
    on_both(16 * 4096, |bench, path| {
        let resize = |blocks: u64| {
            let file = fs::File::options().write(true).open(path).unwrap();
            file.set_len(blocks * 4096).unwrap();
        };
        resize(4);
        let read_all = |bench: &mut Bench| {
            let data = bench.filled(8, 0).into();
            bench.run_op(Op::Read, 0, 8, data).result
        };
        assert_eq!(read_all(bench), Err(IoError::MediaRead));
        assert_eq!(read_all(bench), Err(IoError::MediaRead));
        assert_eq!(bench.device().poll_event(), Some(DeviceEvent::MediaWarning));
        assert_eq!(bench.device().poll_event(), None);
        for _ in 0..2 {
            assert_eq!(bench.device().refresh().unwrap().blocks, 4);
            assert_eq!(bench.device().geometry().blocks, 16, "hosts rely on it");
            assert_eq!(bench.device().poll_event(), None);
        }
        assert_eq!(read_all(bench), Err(IoError::MediaRead));
        assert_eq!(bench.read(0, 4), [0; 4]);
        resize(16);
        assert_eq!(bench.device().refresh().unwrap().blocks, 16);
        assert_eq!(bench.device().poll_event(), None, "nothing has changed");
        assert_eq!(read_all(bench), Ok(()));
    });
}

#[test]
fn file_that_grows_is_larger_after_a_refresh() {
    on_both(4 * 4096, |bench, path| {
        assert_eq!(bench.device().refresh().unwrap().blocks, 4);
        assert_eq!(bench.device().poll_event(), None);
        fs::File::options()
            .write(true)
            .open(path)
            .unwrap()
            .set_len(9 * 4096 + 17)
            .unwrap();
        assert_eq!(bench.write(8, 1, 1).result, Err(IoError::OutOfRange));
        assert_eq!(bench.device().refresh().unwrap().blocks, 9);
        assert_eq!(bench.device().info().unused_bytes, 17);
        assert_eq!(
            bench.device().poll_event(),
            Some(DeviceEvent::GeometryChanged)
        );
        assert_eq!(bench.write(8, 1, 1).result, Ok(()));
    });
}

/// A pulled drive fails with an I/O error like a bad sector; only its folder in sysfs is gone.
#[test]
fn device_that_sysfs_has_forgotten_has_vanished() {
    on_both_backends(|backend| {
        let (_dir, path) = file(16 * 4096);
        let mut backing = Backing::open(&OpenOptions::new(&path)).unwrap();
        backing.sysfs = Some(SysfsQueue::new(0, 1 << 19));
        let mut bench = Bench::attach(backend, backing);
        fs::File::options()
            .write(true)
            .open(path)
            .unwrap()
            .set_len(0)
            .unwrap();
        for _ in 0..2 {
            let data = bench.filled(1, 0).into();
            assert_eq!(
                bench.run_op(Op::Read, 0, 1, data).result,
                Err(IoError::Vanished)
            );
        }
        assert_eq!(
            bench.run_op(Op::Flush, 0, 0, Segments::new()).result,
            Err(IoError::Vanished)
        );
        assert_eq!(bench.device().poll_event(), Some(DeviceEvent::Vanished));
        assert_eq!(bench.device().poll_event(), None);
    });
}

#[test]
fn dropped_device_gives_every_buffer_back_and_the_lock() {
    let _alone = alone();
    let used = |bench: &Bench| -> usize {
        bench
            .pool
            .stats()
            .classes
            .iter()
            .map(|class| class.used)
            .sum()
    };
    on_both_backends(|backend| {
        let (_dir, path) = file(64 << 20);
        let mut bench = Bench::open(backend, &OpenOptions::new(&path)).unwrap();
        for lba in 0..15 {
            let data = bench.filled(128, 1).into();
            assert!(bench.submit(Op::Write, lba * 128, 128, data, lba));
            let data = bench.filled(32, 1).into();
            assert!(bench.submit(Op::Read, lba * 128, 32, data, lba));
        }
        bench.drop_device();
        // What the ring's kernel side still holds, the reactor gives back as it completes.
        let deadline =
            bowline_reactor::monotonic_now().saturating_add(bowline_nvme::Nanos::from_secs(30));
        while used(&bench) > 0 {
            assert!(
                bowline_reactor::monotonic_now() < deadline,
                "{} buffers held",
                used(&bench)
            );
            bench.turn();
        }
        // The lock is free again as well.
        drop(bench);
        Bench::open(backend, &OpenOptions::new(&path)).unwrap();
    });
}

/// The thread of a reactor is pinned before its devices exist, and threads inherit that.
#[test]
fn disk_threads_run_wherever_the_process_may() {
    let cores_of = |thread| sched_getaffinity(Some(thread)).unwrap();
    let all = cores_of(getpid());
    if all.count() < 2 {
        return skip("one core only");
    }
    let pinned = thread::spawn(move || {
        let mut one = CpuSet::new();
        one.set((0..CpuSet::MAX_CPU).find(|core| all.is_set(*core)).unwrap());
        sched_setaffinity(None, &one).unwrap();
        let (_dir, path) = file(1 << 20);
        // No other test has so many that one gets this name.
        let options = OpenOptions {
            threads: 64,
            ..OpenOptions::new(path)
        };
        let _bench = Bench::open(IoBackend::Epoll, &options).unwrap();
        let deadline = bowline_reactor::monotonic_now() + bowline_nvme::Nanos::from_secs(30);
        while disk_thread("bowline-disk63").is_none_or(|thread| cores_of(thread) != all) {
            assert!(
                bowline_reactor::monotonic_now() < deadline,
                "the thread is still on its maker's core"
            );
            thread::yield_now();
        }
        assert_eq!(sched_getaffinity(None).unwrap(), one, "the reactor stays");
    });
    pinned.join().unwrap();
}

fn disk_thread(name: &str) -> Option<Pid> {
    let threads = fs::read_dir("/proc/self/task").unwrap();
    let found = threads.flatten().find(|thread| {
        let found = fs::read_to_string(thread.path().join("comm"));
        found.is_ok_and(|found| found.trim() == name)
    })?;
    Pid::from_raw(found.file_name().to_str()?.parse().ok()?)
}

#[test]
fn ring_and_threads_leave_the_same_file() {
    let write_all = |backend: IoBackend| {
        let (_dir, path) = file(4 << 20);
        let mut bench = Bench::open(backend, &OpenOptions::new(&path)).unwrap();
        for index in 0..200_u32 {
            let blocks = index % 16 + 1;
            let lba = u64::from(index * 37 % 1000);
            let byte = u8::try_from(index).unwrap();
            match index % 5 {
                0 => assert_eq!(
                    bench
                        .run_op(Op::Deallocate, lba, blocks, Segments::new())
                        .result,
                    Ok(())
                ),
                1 => {
                    let op = Op::WriteZeroes {
                        deallocate: index % 2 == 0,
                    };
                    assert_eq!(
                        bench.run_op(op, lba, blocks, Segments::new()).result,
                        Ok(())
                    );
                }
                _ => assert_eq!(bench.write(lba, blocks, byte).result, Ok(())),
            }
        }
        drop(bench);
        fs::read(path).unwrap()
    };
    let threads = write_all(IoBackend::Epoll);
    assert!(threads.iter().any(|byte| *byte != 0));
    assert!(write_all(IoBackend::Auto) == threads);
}
