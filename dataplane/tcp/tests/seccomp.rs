//! The data path as containers run it: a seccomp filter that refuses `io_uring_setup`, an ordinary
//! user, 64 KiB of lockable memory. Each case runs in a process of its own, since neither can be
//! taken back.

mod common;
#[path = "common/engine.rs"]
mod engine;

use std::collections::BTreeMap;
use std::process::Command;

use bowline_nvme::NamespaceId;
use bowline_reactor::{Backend, IoBackend, PollMode};
use rustix::process::{Gid, Resource, Rlimit, Uid, setrlimit};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

use common::harness;
use common::initiator::{Disk, Options};
use common::rig::Rig;

/// Tells the process that it is a child, and which case it is.
const CASE: &str = "BOWLINE_TEST_SECCOMP_CASE";

/// The user "nobody".
const ORDINARY: u32 = 65_534;

const LOCKABLE_BYTES: u64 = 64 << 10;

/// Name, whether the filter is in place, and how the reactors wait.
const CASES: &[(&str, bool, PollMode)] = &[
    (
        "refused_io_uring_falls_back_to_epoll_adaptive",
        true,
        PollMode::Adaptive,
    ),
    (
        "refused_io_uring_falls_back_to_epoll_poll_never",
        true,
        PollMode::Never,
    ),
    (
        "refused_io_uring_falls_back_to_epoll_poll_always",
        true,
        PollMode::Always,
    ),
    (
        "ordinary_user_with_little_lockable_memory_is_served",
        false,
        PollMode::Adaptive,
    ),
];

fn main() {
    if let Ok(case) = std::env::var(CASE) {
        let found = CASES.iter().find(|(name, ..)| *name == case);
        let (_, filtered, poll) = *found.expect("a case that exists");
        return serve_io(filtered, poll);
    }
    if !rustix::process::geteuid().is_root() {
        assert!(!common::is_ci(), "CI runs this as root");
        eprintln!("skipped: becoming an ordinary user; only root can. The rest runs as you.");
    }
    let tests = CASES.iter().map(|(name, ..)| {
        let test: Box<dyn FnOnce()> = Box::new(|| in_a_child(name));
        ((*name).to_owned(), test)
    });
    harness::run(tests.collect());
}

fn in_a_child(case: &str) {
    let program = std::env::current_exe().expect("this program has a path");
    let child = Command::new(program)
        .env(CASE, case)
        .output()
        .expect("a child process");
    let said = String::from_utf8_lossy(&child.stdout);
    let complained = String::from_utf8_lossy(&child.stderr);
    assert!(
        child.status.success(),
        "{case}: {}\n{said}\n{complained}",
        child.status
    );
    assert!(
        said.contains("verified over"),
        "{case}: the child did nothing\n{said}"
    );
    print!("{said}");
}

/// The child: gives up its rights, then serves and uses a disk.
fn serve_io(filtered: bool, poll: PollMode) {
    become_ordinary();
    if filtered {
        refuse_io_uring();
        let refused = Rig::try_backend(IoBackend::Uring);
        assert!(refused.is_err(), "the filter is not in place");
    }
    let rig = Rig::with(IoBackend::Auto, poll, Default::default());
    let info = rig.backend();
    if filtered {
        assert_eq!(info.backend, Backend::Epoll, "{info}");
        let reason = info.fallback.clone().expect("says why");
        assert!(
            reason.contains("not permitted"),
            "the reason is no reason: {reason}"
        );
    }
    let options = Options {
        io: IoBackend::Auto,
        poll,
        ..Options::default()
    };
    let mut disk = Disk::with(rig.address, options);
    let nsid = NamespaceId(1);
    for (lba, len) in [(0, 512), (64, 4096), (1024, 128 << 10), (8192, 1 << 20)] {
        let data = common::pattern(lba, len);
        disk.write(nsid, lba, &data);
        assert!(
            disk.read(nsid, lba, len) == data,
            "{len} bytes at block {lba} differ"
        );
    }
    disk.flush(nsid);
    disk.disconnect();
    rig.begin_stop();
    rig.join();
    println!("verified over {info}");
}

/// Gives up root's identity and, with it, root's capabilities. The identity is this thread's and
/// that of the threads it starts; there are no others.
fn become_ordinary() {
    let limit = Rlimit {
        current: Some(LOCKABLE_BYTES),
        maximum: Some(LOCKABLE_BYTES),
    };
    setrlimit(Resource::Memlock, limit).expect("a limit may be lowered");
    if rustix::process::geteuid().is_root() {
        let (uid, gid) = (Uid::from_raw(ORDINARY), Gid::from_raw(ORDINARY));
        set_thread_groups(&[]).expect("root may");
        set_thread_res_gid(gid, gid, gid).expect("root may");
        set_thread_res_uid(uid, uid, uid).expect("root may");
        assert!(set_thread_groups(&[]).is_err(), "still privileged");
    }
}

/// What the default profiles of container runtimes do.
fn refuse_io_uring() {
    // The number is the same on every architecture.
    const IO_URING_SETUP: i64 = 425;
    const EPERM: u32 = 1;
    let refuse = SeccompAction::Errno(EPERM);
    let architecture = std::env::consts::ARCH
        .try_into()
        .expect("a supported architecture");
    let filter = SeccompFilter::new(
        BTreeMap::from([(IO_URING_SETUP, Vec::new())]),
        SeccompAction::Allow,
        refuse,
        architecture,
    );
    let program: BpfProgram = filter
        .expect("a valid filter")
        .try_into()
        .expect("compiles");
    seccompiler::apply_filter(&program).expect("the kernel takes the filter");
}
