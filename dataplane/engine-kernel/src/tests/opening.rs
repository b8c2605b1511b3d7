//! What can be opened, what it turns out to be, and what is said about what cannot.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use bowline_block::Deallocate;
use tempfile::TempDir;

use super::bench::alone;
use super::files::file;
use crate::{Backing, BackingKind, OpenError, OpenOptions};

fn open(path: &Path) -> Result<Backing, OpenError> {
    Backing::open(&OpenOptions::new(path))
}

/// The error, after checking that its text names the path and says more than one thing.
fn error(options: &OpenOptions) -> OpenError {
    let error = Backing::open(options).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(options.path.to_str().unwrap()), "{text}");
    assert!(text.contains("; "), "no remedy: {text}");
    error
}

#[test]
fn what_is_no_backing_is_named() {
    let dir = TempDir::new().unwrap();
    let at = |path: &Path| error(&OpenOptions::new(path));
    assert!(matches!(
        at(&dir.path().join("none")),
        OpenError::Missing { .. }
    ));
    assert!(matches!(
        at(dir.path()),
        OpenError::NotABacking {
            found: "directory",
            ..
        }
    ));
    let null = Path::new("/dev/null");
    assert!(matches!(
        at(null),
        OpenError::NotABacking {
            found: "character device",
            ..
        }
    ));
    let below_a_file = dir.path().join("file");
    File::create(&below_a_file).unwrap();
    assert!(matches!(
        at(&below_a_file.join("x")),
        OpenError::Missing { .. }
    ));
}

#[test]
fn pipe_is_refused_without_waiting_for_its_other_end() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("pipe");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let found = error(&OpenOptions::new(path));
    assert!(matches!(
        found,
        OpenError::NotABacking { found: "pipe", .. }
    ));
}

#[test]
fn file_smaller_than_a_block_is_refused() {
    let _alone = alone();
    for bytes in [0, 100] {
        let (_dir, path) = file(bytes);
        let found = error(&OpenOptions::new(&path));
        assert!(matches!(found, OpenError::TooSmall { bytes: found, .. } if found == bytes));
    }
    let (_dir, path) = file(512);
    assert_eq!(open(&path).unwrap().geometry().blocks, 1);
    let options = OpenOptions {
        block_bytes: Some(4096),
        ..OpenOptions::new(path)
    };
    assert!(matches!(
        error(&options),
        OpenError::TooSmall {
            block_bytes: 4096,
            ..
        }
    ));
}

#[test]
fn block_size_is_chosen_or_asked_for_and_nothing_else_is_served() {
    let _alone = alone();
    for (bytes, asked, block_bytes, unused) in [
        (1 << 20, None, 4096, 0),
        (1 << 20, Some(512), 512, 0),
        ((1 << 20) + 512, None, 4096, 512),
        ((1 << 20) + 700, Some(512), 512, 188),
        ((1 << 20) + 700, Some(4096), 4096, 700),
        (4096, None, 4096, 0),
        (4095, None, 512, 511),
    ] {
        let (_dir, path) = file(bytes);
        let options = OpenOptions {
            block_bytes: asked,
            ..OpenOptions::new(path)
        };
        let backing = Backing::open(&options).unwrap();
        let geometry = backing.geometry();
        assert_eq!(
            (geometry.block_bytes, backing.info().unused_bytes),
            (block_bytes, unused)
        );
        assert_eq!(geometry.bytes() + unused, bytes);
    }
    let (_dir, path) = file(1 << 20);
    for asked in [0, 1, 511, 1024, 8192, u32::MAX] {
        let options = OpenOptions {
            block_bytes: Some(asked),
            ..OpenOptions::new(&path)
        };
        let found = Backing::open(&options).unwrap_err();
        assert!(matches!(found, OpenError::BlockSize { block_bytes } if block_bytes == asked));
    }
}

#[test]
fn block_size_stays_the_same_however_far_a_file_grows() {
    let _alone = alone();
    let (_dir, path) = file(1 << 20);
    for more in [0, 512, 700, 4095, 4096] {
        let grown = File::options().write(true).open(&path).unwrap();
        grown.set_len((1 << 20) + more).unwrap();
        let backing = open(&path).unwrap();
        assert_eq!(backing.geometry().block_bytes, 4096, "{more} bytes more");
        assert_eq!(backing.info().unused_bytes, more % 4096);
    }
}

#[test]
fn block_may_tear_only_on_a_medium_known_to_write_less_at_once() {
    let _alone = alone();
    let (_dir, path) = file(1 << 20);
    let mut info = open(&path).unwrap().info().clone();
    for (block_bytes, physical_block_bytes, may_tear) in [
        (4096, None, false),
        (4096, Some(512), true),
        (4096, Some(4096), false),
        (512, Some(512), false),
        (512, Some(4096), false),
    ] {
        info.block_bytes = block_bytes;
        info.physical_block_bytes = physical_block_bytes;
        assert_eq!(info.may_tear(), may_tear, "{info:?}");
    }
}

#[test]
fn file_promises_only_what_it_keeps() {
    let _alone = alone();
    let (_dir, path) = file(1 << 20);
    let backing = open(&path).unwrap();
    let geometry = backing.geometry();
    assert_eq!(backing.info().kind, BackingKind::File);
    assert!(
        geometry.volatile_cache,
        "the file system and the drive below have caches"
    );
    assert!(
        geometry.thin,
        "a sparse file finds its space when it is written"
    );
    assert_eq!(
        (geometry.atomic_write_blocks, geometry.read_only),
        (1, false)
    );
    drop(backing);
    fs::write(&path, vec![1; 1 << 20]).unwrap();
    File::open(&path).unwrap().sync_all().unwrap();
    let options = OpenOptions {
        read_only: true,
        ..OpenOptions::new(&path)
    };
    let geometry = Backing::open(&options).unwrap().geometry();
    assert!(!geometry.thin && geometry.read_only);
    assert_eq!(geometry.deallocate, Deallocate::None);
}

#[test]
fn second_opening_is_refused_until_the_first_is_gone() {
    let _alone = alone();
    let (_dir, path) = file(1 << 20);
    let first = open(&path).unwrap();
    let found = error(&OpenOptions::new(&path));
    let own = format!("process {} ", std::process::id());
    assert!(
        matches!(&found, OpenError::Busy { holder: Some(holder), .. } if holder.starts_with(&own)),
        "{found}"
    );
    let options = OpenOptions {
        read_only: true,
        ..OpenOptions::new(&path)
    };
    assert!(
        matches!(error(&options), OpenError::Busy { .. }),
        "for reading too"
    );
    drop(first);
    open(&path).unwrap();
}

#[test]
fn file_locked_by_another_process_is_refused_and_the_process_is_named() {
    let _alone = alone();
    let (_dir, path) = file(1 << 20);
    // The lock is held while `cat` lives, and `cat` answers once the lock is held.
    let mut other = Command::new("flock")
        .args([path.as_os_str(), "cat".as_ref()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = other.stdin.take().unwrap();
    input.write_all(b"locked\n").unwrap();
    let mut line = String::new();
    BufReader::new(other.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let found = error(&OpenOptions::new(&path));
    let holder = format!("process {} (flock)", other.id());
    assert!(
        matches!(&found, OpenError::Busy { holder: Some(found), .. } if *found == holder),
        "{found}"
    );
    drop(input);
    assert!(other.wait().unwrap().success());
    open(&path).unwrap();
}

#[test]
fn file_is_shared_only_among_those_who_say_so() {
    let _alone = alone();
    let (_dir, path) = file(1 << 20);
    let shared = OpenOptions {
        shared: true,
        ..OpenOptions::new(&path)
    };
    let (first, second) = (Backing::open(&shared), Backing::open(&shared));
    assert!(first.is_ok() && second.is_ok());
    drop(first);
    let alone = error(&OpenOptions::new(&path));
    assert!(matches!(alone, OpenError::Busy { .. }), "{alone}");
    drop(second);
    let _alone = open(&path).unwrap();
    assert!(matches!(error(&shared), OpenError::Busy { .. }));
}

#[test]
fn file_of_somebody_else_is_refused_and_said_so() {
    let (dir, path) = file(1 << 20);
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(dir.path(), 0o755);
    mode(&path, 0o444);
    // Root may open everything, so a thread becomes somebody else; only that thread does.
    let as_nobody = thread::spawn(move || {
        if rustix::process::getuid().is_root() {
            rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(65534)).unwrap();
        }
        let found = error(&OpenOptions::new(&path));
        assert!(matches!(found, OpenError::Permission { .. }), "{found}");
        let options = OpenOptions {
            read_only: true,
            ..OpenOptions::new(&path)
        };
        Backing::open(&options).unwrap();
    });
    as_nobody.join().unwrap();
}

#[test]
fn backing_may_be_opened_on_another_thread_than_its_reactor() {
    fn is_send<T: Send>(_: &T) {}
    let (_dir, path) = file(1 << 20);
    is_send(&open(&path).unwrap());
}
