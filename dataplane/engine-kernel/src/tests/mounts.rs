//! Block devices and file systems of other kinds: loop devices, tmpfs, ramfs. Needs root.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use bowline_block::{Deallocate, Device, DeviceEvent, Io, IoError, Op, Segments};
use tempfile::TempDir;

use super::bench::{Bench, alone_as_root, on_both_backends};
use super::files::file;
use crate::backend::Backend;
use crate::{Backing, BackingKind, Buffered, OpenError, OpenOptions};

fn command(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A loop device over a file, detached when dropped.
struct Loop {
    device: PathBuf,
    file: PathBuf,
    _dir: TempDir,
}

impl Loop {
    fn new(bytes: u64, arguments: &[&str]) -> Self {
        let (dir, file) = file(bytes);
        let arguments = [&["--find", "--show"], arguments, &[file.to_str().unwrap()]].concat();
        let device = command("losetup", &arguments).into();
        Self {
            device,
            file,
            _dir: dir,
        }
    }

    fn open(&self) -> Result<Backing, OpenError> {
        Backing::open(&OpenOptions::new(&self.device))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        command("losetup", &["--detach", self.device.to_str().unwrap()]);
    }
}

/// A partition of a loop device, removed when dropped. The kernel is told of it: it need not know
/// any kind of partition table. The node is our own: nothing promises when somebody else makes one.
struct Partition<'a> {
    disk: &'a Loop,
    node: PathBuf,
    _dir: TempDir,
}

impl<'a> Partition<'a> {
    fn new(disk: &'a Loop, first_sector: u32, sectors: u32) -> Self {
        let path = disk.device.to_str().unwrap();
        // A test that was killed may have left one.
        let _ = Command::new("delpart").args([path, "1"]).output().unwrap();
        command(
            "addpart",
            &[path, "1", &first_sector.to_string(), &sectors.to_string()],
        );
        let name = disk.device.file_name().unwrap().to_str().unwrap();
        let numbers = fs::read_to_string(format!("/sys/block/{name}/{name}p1/dev")).unwrap();
        let (major, minor) = numbers.trim().split_once(':').unwrap();
        let number = rustix::fs::makedev(major.parse().unwrap(), minor.parse().unwrap());
        let dir = TempDir::new().unwrap();
        let node = dir.path().join("partition");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        let kind = rustix::fs::FileType::BlockDevice;
        rustix::fs::mknodat(rustix::fs::CWD, &node, kind, mode, number).unwrap();
        Self {
            disk,
            node,
            _dir: dir,
        }
    }
}

impl Drop for Partition<'_> {
    fn drop(&mut self) {
        command("delpart", &[self.disk.device.to_str().unwrap(), "1"]);
    }
}

/// A file system, unmounted when dropped.
struct Mount {
    dir: TempDir,
}

impl Mount {
    /// A new one in memory.
    fn new(kind: &str, options: &str) -> Self {
        Self::of("none", kind, options)
    }

    fn of(source: &str, kind: &str, options: &str) -> Self {
        let dir = TempDir::new().unwrap();
        command(
            "mount",
            &[
                "-t",
                kind,
                "-o",
                options,
                source,
                dir.path().to_str().unwrap(),
            ],
        );
        Self { dir }
    }

    fn file(&self, bytes: u64) -> PathBuf {
        let path = self.dir.path().join("disk");
        File::create(&path).unwrap().set_len(bytes).unwrap();
        path
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        command("umount", &[self.dir.path().to_str().unwrap()]);
    }
}

fn sysfs(device: &Path, name: &str) -> String {
    let device = device.file_name().unwrap().to_str().unwrap();
    fs::read_to_string(format!("/sys/block/{device}/queue/{name}"))
        .unwrap()
        .trim()
        .to_owned()
}

#[test]
fn block_device_is_served_as_the_kernel_describes_it() {
    let Some(_alone) = alone_as_root() else {
        return;
    };
    let device = Loop::new(8 << 20, &[]);
    let backing = device.open().unwrap();
    let geometry = backing.geometry();
    assert_eq!(backing.info().kind, BackingKind::BlockDevice);
    assert_eq!(backing.info().buffered, None);
    assert_eq!((geometry.block_bytes, geometry.bytes()), (512, 8 << 20));
    let cache = sysfs(&device.device, "write_cache");
    assert_eq!(geometry.volatile_cache, cache == "write back", "{cache}");
    assert_eq!(
        geometry.deallocate,
        Deallocate::Undefined,
        "zeroes are not promised"
    );
    let granularity = sysfs(&device.device, "discard_granularity");
    assert_eq!(
        (geometry.deallocate_granularity_blocks * 512).to_string(),
        granularity
    );
    assert!(geometry.write_zeroes && !geometry.thin && !geometry.read_only);
}

#[test]
fn block_device_takes_every_operation() {
    let Some(_alone) = alone_as_root() else {
        return;
    };
    on_both_backends(|backend| {
        let device = Loop::new(8 << 20, &[]);
        let mut bench = Bench::attach(backend, device.open().unwrap());
        assert_eq!(bench.write(1, 1001, 7).result, Ok(()));
        assert_eq!(
            bench.read(0, 1003),
            [vec![0], vec![7; 1001], vec![0]].concat()
        );
        for deallocate in [false, true] {
            let op = Op::WriteZeroes { deallocate };
            let io = Io {
                op,
                lba: 3,
                blocks: 500,
                fua: true,
                data: Segments::new(),
                token: 0,
            };
            assert_eq!(bench.write(1, 1001, 7).result, Ok(()));
            assert_eq!(bench.run(io).result, Ok(()));
            assert_eq!(
                bench.read(2, 503),
                [vec![7], vec![0; 500], vec![7; 2]].concat()
            );
        }
        let done = bench.run_op(Op::Deallocate, 8, 64, Segments::new());
        assert_eq!(done.result, Ok(()));
        // This kind of device does return zeroes, so it shows that the discard was done.
        assert_eq!(bench.read(7, 66)[1..65], [0; 64]);
        let data = bench.filled(8, 5).into();
        let io = Io {
            op: Op::Write,
            lba: 100,
            blocks: 8,
            fua: true,
            data,
            token: 0,
        };
        assert_eq!(bench.run(io).result, Ok(()));
        let mut data = Segments::from(bench.filled(2, 5));
        data.push(bench.filled(2, 6)).unwrap();
        assert_eq!(
            bench.run_op(Op::CompareAndWrite, 102, 2, data).result,
            Ok(())
        );
        assert_eq!(
            bench.run_op(Op::Flush, 0, 0, Segments::new()).result,
            Ok(())
        );
        drop(bench);
        let mut bytes = vec![0; 4096];
        File::open(&device.file)
            .unwrap()
            .read_exact_at(&mut bytes, 100 * 512)
            .unwrap();
        assert!(bytes == [vec![5; 1024], vec![6; 1024], vec![5; 2048]].concat());
    });
}

#[test]
fn media_errors_of_a_device_are_errors_and_not_its_end() {
    let Some(_alone) = alone_as_root() else {
        return;
    };
    on_both_backends(|backend| {
        let device = Loop::new(8 << 20, &[]);
        let mut bench = Bench::attach(backend, device.open().unwrap());
        File::options()
            .write(true)
            .open(&device.file)
            .unwrap()
            .set_len(1 << 20)
            .unwrap();
        for _ in 0..2 {
            let data = bench.filled(8, 0).into();
            assert_eq!(
                bench.run_op(Op::Read, 8192, 8, data).result,
                Err(IoError::MediaRead)
            );
        }
        assert_eq!(bench.device().poll_event(), Some(DeviceEvent::MediaWarning));
        assert_eq!(bench.device().poll_event(), None);
        assert_eq!(bench.write(0, 8, 3).result, Ok(()), "the rest goes on");
        assert_eq!(bench.read(0, 8), [3; 8]);
    });
}

/// Every kernel before 6.12.
#[test]
fn ring_that_cannot_discard_leaves_it_to_a_thread() {
    let Some(_alone) = alone_as_root() else {
        return;
    };
    on_both_backends(|io| {
        let device = Loop::new(8 << 20, &[]);
        let mut bench = Bench::attach(io, device.open().unwrap());
        let Backend::Ring(ring) = bench.device().backend() else {
            return;
        };
        ring.refuse_discard();
        assert!(!ring.has_helper(), "not before it is needed");
        // The first ones find out, together; those after go to the thread only.
        for round in 1..4 {
            assert_eq!(bench.write(0, 512, round).result, Ok(()));
            for token in 0..4 {
                let lba = 64 * (token + 1);
                assert!(bench.submit(Op::Deallocate, lba, 32, Segments::new(), token));
            }
            let done = bench.wait(4);
            assert!(done.iter().all(|done| done.result == Ok(())), "{done:?}");
            for part in 1..5 {
                let expected = [vec![round], vec![0; 32], vec![round]].concat();
                assert_eq!(bench.read(64 * part - 1, 34), expected);
            }
        }
        assert!(matches!(bench.device().backend(), Backend::Ring(ring) if ring.has_helper()));
        assert_eq!(
            bench.device().geometry().deallocate,
            Deallocate::Undefined,
            "as it was announced"
        );
        let io = Io {
            op: Op::Deallocate,
            lba: 0,
            blocks: 8,
            fua: true,
            data: Segments::new(),
            token: 0,
        };
        assert_eq!(bench.run(io).result, Ok(()));
        assert_eq!(bench.read(0, 9), [vec![0; 8], vec![3]].concat());
        // The thread ends with the device, whatever it is doing, and its handle with it.
        assert!(bench.submit(Op::Deallocate, 0, 512, Segments::new(), 0));
        drop(bench);
        device.open().unwrap();
    });
}

#[test]
fn device_and_file_on_it_know_what_the_medium_writes_at_once() {
    let Some(_alone) = alone_as_root() else {
        return;
    };
    let disk = Loop::new(32 << 20, &[]);
    let sector: u32 = sysfs(&disk.device, "physical_block_size").parse().unwrap();
    let options = OpenOptions {
        block_bytes: Some(4096),
        ..OpenOptions::new(&disk.device)
    };
    let backing = Backing::open(&options).unwrap();
    assert_eq!(backing.info().physical_block_bytes, Some(sector));
    assert_eq!(backing.info().may_tear(), sector < 4096);
    drop(backing);
    command("mkfs.ext4", &["-q", disk.device.to_str().unwrap()]);
    let mount = Mount::of(disk.device.to_str().unwrap(), "ext4", "rw");
    let backing = Backing::open(&OpenOptions::new(mount.file(1 << 20))).unwrap();
    assert_eq!(backing.info().physical_block_bytes, Some(sector));
    assert_eq!(backing.info().may_tear(), sector < 4096);
    drop(backing);
    drop(mount);
    let mount = Mount::new("tmpfs", "size=2m");
    let backing = Backing::open(&OpenOptions::new(mount.file(1 << 20))).unwrap();
    assert_eq!(backing.info().physical_block_bytes, None, "on no device");
    assert!(!backing.info().may_tear());
}

#[test]
fn block_device_in_use_is_refused() {
    let Some(_alone) = alone_as_root() else {
        return;
    };
    let device = Loop::new(8 << 20, &[]);
    let first = device.open().unwrap();
    assert!(matches!(device.open(), Err(OpenError::Busy { .. })));
    drop(first);
    device.open().unwrap();
}

#[test]
fn block_device_is_shared_only_among_those_who_say_so() {
    let Some(_alone) = alone_as_root() else {
        return;
    };
    let device = Loop::new(8 << 20, &[]);
    let shared = || {
        Backing::open(&OpenOptions {
            shared: true,
            ..OpenOptions::new(&device.device)
        })
    };
    let (first, second) = (shared().unwrap(), shared().unwrap());
    drop(first);
    assert!(matches!(device.open(), Err(OpenError::Busy { .. })));
    drop(second);
    let alone = device.open().unwrap();
    assert!(matches!(shared(), Err(OpenError::Busy { .. })));
    drop(alone);
    shared().unwrap();
}

#[test]
fn write_protected_device_is_opened_only_for_reading() {
    let Some(_alone) = alone_as_root() else {
        return;
    };
    on_both_backends(|backend| {
        let device = Loop::new(8 << 20, &["--read-only"]);
        let error = device.open().unwrap_err();
        assert!(matches!(error, OpenError::ReadOnly { .. }), "{error}");
        let options = OpenOptions {
            read_only: true,
            ..OpenOptions::new(&device.device)
        };
        let mut bench = Bench::open(backend, &options).unwrap();
        assert!(bench.device().geometry().read_only);
        assert_eq!(bench.read(0, 4), [0; 4]);
        assert_eq!(bench.write(0, 1, 1).result, Err(IoError::ReadOnly));
    });
}

#[test]
fn device_of_large_sectors_is_served_in_large_blocks_only() {
    let Some(_alone) = alone_as_root() else {
        return;
    };
    let device = Loop::new(8 << 20, &["--sector-size", "4096"]);
    assert_eq!(device.open().unwrap().geometry().block_bytes, 4096);
    let options = |bytes| OpenOptions {
        block_bytes: Some(bytes),
        ..OpenOptions::new(&device.device)
    };
    let error = Backing::open(&options(512)).unwrap_err();
    assert!(
        matches!(
            error,
            OpenError::Granularity {
                granularity_bytes: 4096,
                ..
            }
        ),
        "{error}"
    );
    Backing::open(&options(4096)).unwrap();
    let device = Loop::new(8 << 20, &[]);
    let options = OpenOptions {
        block_bytes: Some(4096),
        ..OpenOptions::new(&device.device)
    };
    assert_eq!(Backing::open(&options).unwrap().geometry().blocks, 2048);
}

#[test]
fn device_that_grows_is_larger_after_a_refresh() {
    let Some(_alone) = alone_as_root() else {
        return;
    };
    on_both_backends(|backend| {
        let device = Loop::new(8 << 20, &[]);
        let mut bench = Bench::attach(backend, device.open().unwrap());
        File::options()
            .write(true)
            .open(&device.file)
            .unwrap()
            .set_len(12 << 20)
            .unwrap();
        command(
            "losetup",
            &["--set-capacity", device.device.to_str().unwrap()],
        );
        assert_eq!(bench.device().refresh().unwrap().bytes(), 12 << 20);
        assert_eq!(
            bench.device().poll_event(),
            Some(DeviceEvent::GeometryChanged)
        );
        assert_eq!(bench.write((11 << 20) / 512, 8, 1).result, Ok(()));
    });
}

#[test]
fn device_that_was_emptied_is_gone_and_a_refresh_says_so() {
    let Some(_alone) = alone_as_root() else {
        return;
    };
    on_both_backends(|backend| {
        let device = Loop::new(8 << 20, &[]);
        let mut bench = Bench::attach(backend, device.open().unwrap());
        let file = File::options().write(true).open(&device.file).unwrap();
        file.set_len(0).unwrap();
        command(
            "losetup",
            &["--set-capacity", device.device.to_str().unwrap()],
        );
        let error = bench.device().refresh().unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
        assert_eq!(bench.device().poll_event(), Some(DeviceEvent::Vanished));
        assert_eq!(bench.device().geometry().bytes(), 8 << 20);
    });
}

#[test]
fn partition_has_the_abilities_of_its_disk() {
    let Some(_alone) = alone_as_root() else {
        return;
    };
    let device = Loop::new(8 << 20, &[]);
    let partition = Partition::new(&device, 2048, 8192);
    let geometry = Backing::open(&OpenOptions::new(&partition.node))
        .unwrap()
        .geometry();
    assert_eq!(geometry.bytes(), 4 << 20);
    assert_eq!(geometry.deallocate, Deallocate::Undefined);
    let _whole = device.open().unwrap();
    let error = Backing::open(&OpenOptions::new(&partition.node)).unwrap_err();
    assert!(
        matches!(error, OpenError::Busy { .. }),
        "a part of a device in use: {error}"
    );
}

#[test]
fn full_file_system_is_no_space_and_space_that_comes_back_is_used() {
    let Some(_alone) = alone_as_root() else {
        return;
    };
    on_both_backends(|backend| {
        let mount = Mount::new("tmpfs", "size=1m");
        let mut bench = Bench::open(backend, &OpenOptions::new(mount.file(8 << 20))).unwrap();
        assert!(bench.device().geometry().thin);
        let results: Vec<_> = (0..32).map(|n| bench.write(n * 16, 16, 1).result).collect();
        assert_eq!(results[..8], [Ok(()); 8]);
        assert_eq!(results[31], Err(IoError::NoSpace));
        assert_eq!(bench.read(0, 16), [1; 16]);
        assert_eq!(
            bench.device().poll_event(),
            None,
            "nothing is wrong with the medium"
        );
        assert_eq!(
            bench.run_op(Op::Deallocate, 0, 128, Segments::new()).result,
            Ok(())
        );
        assert_eq!(bench.write(31 * 16, 16, 2).result, Ok(()));
        // No room for zeroes either, until they need none.
        let keep = Op::WriteZeroes { deallocate: false };
        let done = bench.run_op(keep, 512, 1024, Segments::new());
        assert_eq!(
            done.result,
            Err(IoError::NoSpace),
            "tmpfs cannot zero without writing"
        );
        let release = Op::WriteZeroes { deallocate: true };
        assert_eq!(
            bench.run_op(release, 0, 2048, Segments::new()).result,
            Ok(())
        );
        assert_eq!(bench.run_op(keep, 0, 100, Segments::new()).result, Ok(()));
        assert_eq!(bench.read(0, 128), [0; 128]);
    });
}

#[test]
fn file_system_without_direct_io_is_served_through_its_cache_and_says_so() {
    let Some(_alone) = alone_as_root() else {
        return;
    };
    on_both_backends(|backend| {
        let mount = Mount::new("ramfs", "mode=700");
        let backing = Backing::open(&OpenOptions::new(mount.file(4 << 20))).unwrap();
        assert_eq!(backing.info().buffered, Some(Buffered::OpenRefused));
        let mut bench = Bench::attach(backend, backing);
        let geometry = bench.device().geometry();
        assert!(geometry.volatile_cache && !geometry.write_zeroes);
        assert_eq!(geometry.deallocate, Deallocate::None);
        assert_eq!(bench.write(0, 256, 4).result, Ok(()));
        // Zeroes have to be written, in more than one piece.
        let op = Op::WriteZeroes { deallocate: true };
        let io = Io {
            op,
            lba: 1,
            blocks: 250,
            fua: true,
            data: Segments::new(),
            token: 0,
        };
        assert_eq!(bench.run(io).result, Ok(()));
        assert_eq!(
            bench.read(0, 256),
            [vec![4], vec![0; 250], vec![4; 5]].concat()
        );
        let done = bench.run_op(Op::Deallocate, 0, 1, Segments::new());
        assert_eq!(done.result, Err(IoError::Unsupported));
        assert_eq!(
            bench.run_op(Op::Flush, 0, 0, Segments::new()).result,
            Ok(())
        );
        // Through the page cache the memory need not be aligned.
        let data = bench.filled(2, 8).slice(3..4099).into();
        assert_eq!(bench.run_op(Op::Write, 9, 1, data).result, Ok(()));
        assert_eq!(bench.read(9, 1), [8]);
    });
}
