//! Where `io_uring` is forbidden: a real seccomp filter, an ordinary user, 64 KiB of lockable
//! memory. A program of its own: the memory limit is the whole process's.
#![allow(clippy::unwrap_used, reason = "a test ends where its assumption fails")]

mod common;

use std::io;
use std::thread;

use bowline_reactor::{Backend, Config, IoBackend, LocalReactor};
use common::{Echo, client, config, listener, ping_pong, run};
use rustix::process::{Resource, Rlimit, setrlimit};

/// A user without rights.
const NOBODY: libc::uid_t = 65_534;

/// Makes `call` fail with `errno` on this thread for good.
fn forbid(call: libc::c_long, errno: i32) {
    let statement = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter {
        code: u16::try_from(code).unwrap(),
        jt,
        jf,
        k,
    };
    let errno = u32::try_from(errno).unwrap();
    let mut program = [
        // The call's number is at the start of the data that filters see.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        statement(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            0,
            1,
            u32::try_from(call).unwrap(),
        ),
        statement(
            libc::BPF_RET | libc::BPF_K,
            0,
            0,
            libc::SECCOMP_RET_ERRNO | errno,
        ),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog {
        len: u16::try_from(program.len()).unwrap(),
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the arguments are those of the two operations; the program outlives the call.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let mode = libc::SECCOMP_MODE_FILTER;
        assert_eq!(
            libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const filter),
            0
        );
    }
}

/// Gives up root on this thread, if it is root.
fn become_nobody() {
    // SAFETY: the raw call changes this thread's credentials only; it takes plain numbers.
    let changed = unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) };
    let error = io::Error::last_os_error();
    assert!(changed == 0 || error.kind() == io::ErrorKind::PermissionDenied);
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Runs on a thread that will not be used for anything else.
fn on_own_thread(body: impl FnOnce() + Send + 'static) {
    thread::spawn(body).join().unwrap();
}

fn serves(mut local: LocalReactor<Echo>) {
    let (listener, address) = listener();
    local.parts().1.listen(listener).unwrap();
    let traffic = thread::spawn(move || ping_pong(client(address), 8, 400_000, 9000));
    run(&mut local, |echo, _| echo.closed == 1);
    traffic.join().unwrap();
}

fn auto() -> Config {
    config(IoBackend::Auto)
}

fn limit_lockable_memory() {
    let limit = Rlimit {
        current: Some(64 << 10),
        maximum: Some(64 << 10),
    };
    setrlimit(Resource::Memlock, limit).unwrap();
}

#[test]
fn forbidden_ring_falls_back_to_epoll_and_says_why() {
    for (errno, reason) in [(libc::EPERM, "seccomp"), (libc::ENOSYS, "does not offer")] {
        on_own_thread(move || {
            limit_lockable_memory();
            become_nobody();
            forbid(libc::SYS_io_uring_setup, errno);
            let local = LocalReactor::new(&auto(), |_, _| Ok(Echo::default())).unwrap();
            let info = local.reactor().backend().clone();
            assert_eq!(info.backend, Backend::Epoll);
            assert!(info.fallback.unwrap().contains(reason));
            serves(local);
        });
    }
}

#[test]
fn ring_that_may_not_be_entered_falls_back_to_epoll_and_says_why() {
    for (errno, reason) in [(libc::EPERM, "seccomp"), (libc::ENOSYS, "does not offer")] {
        on_own_thread(move || {
            forbid(libc::SYS_io_uring_enter, errno);
            let local = LocalReactor::new(&auto(), |_, _| Ok(Echo::default())).unwrap();
            let info = local.reactor().backend().clone();
            assert_eq!(info.backend, Backend::Epoll);
            let fallback = info.fallback.unwrap();
            // An ordinary user may get no ring for want of the memory that other tests limit.
            assert!(
                fallback.starts_with("io_uring_enter") && fallback.contains(reason)
                    || fallback.starts_with("io_uring_setup") && !is_root(),
                "{fallback}"
            );
            serves(local);
        });
    }
}

#[test]
fn forbidden_ring_is_an_error_when_it_was_asked_for() {
    for (number, call) in [
        (libc::SYS_io_uring_setup, "io_uring_setup"),
        (libc::SYS_io_uring_enter, "io_uring_enter"),
    ] {
        on_own_thread(move || {
            forbid(number, libc::EPERM);
            let made = LocalReactor::new(&config(IoBackend::Uring), |_, _| Ok(Echo::default()));
            let Err(error) = made else {
                panic!("a ring in spite of the filter")
            };
            if is_root() {
                assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
                assert!(error.to_string().starts_with(call));
            }
        });
    }
}

#[test]
fn ordinary_user_with_little_lockable_memory_is_served() {
    on_own_thread(|| {
        limit_lockable_memory();
        become_nobody();
        let local = LocalReactor::new(&auto(), |_, _| Ok(Echo::default())).unwrap();
        eprintln!("engine: {}", local.reactor().backend());
        serves(local);
    });
}

#[test]
fn epoll_works_where_precise_waits_are_forbidden() {
    on_own_thread(|| {
        forbid(libc::SYS_epoll_pwait2, libc::ENOSYS);
        let mut local = common::local(IoBackend::Epoll);
        let due = bowline_reactor::monotonic_now().after(bowline_nvme::Nanos::from_micros(3300));
        local.parts().0.timer = Some(due);
        run(&mut local, |echo, _| echo.fired_at.is_some());
        assert!(local.service().fired_at.unwrap() >= due);
        serves(local);
    });
}
