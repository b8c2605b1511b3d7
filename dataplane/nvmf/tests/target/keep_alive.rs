//! The keep-alive timer: when it runs, what restarts it, and what its end means. [BASE-2.0 §3.9]

use bowline_nvme::fabrics::{Connect, PropertyGet, offset};
use bowline_nvme::feature::{GetFeatures, SetFeatures, id as fid};
use bowline_nvme::opcode::{admin, io as opcode};
use bowline_nvme::pdu::Digests;
use bowline_nvme::{Nanos, Sgl, Sqe, Status};
use bowline_nvmf::target::{ConnId, Expiry, ExpiryReason};

use crate::glue::{BLOCK, CC_ENABLE, DISCOVERY, Glue, HOSTNQN, SUBNQN, io, pattern};

const KATO_MS: u32 = 5000;
const KATO: Nanos = Nanos::from_secs(5);
const INSTANT: Nanos = Nanos(1);
const ALMOST: Nanos = Nanos(KATO.0 - 1);
const SHN_NORMAL: u32 = 1 << 14;
/// The largest KATO: what hosts read back has 32 bits, and is a multiple of 100 ms.
const KATO_MAX_MS: u32 = 4_294_967_200;

fn keep_alive(glue: &mut Glue, admin: ConnId) {
    let cqe = glue.command(admin, Sqe::new(admin::KEEP_ALIVE));
    assert_eq!(cqe.status, Status::SUCCESS);
}

/// Otherwise sixteen idle hosts would wake their target three times a second for nothing.
#[test]
fn timer_that_keep_alive_moved_wakes_nobody_and_still_ends_a_silent_host() {
    let mut glue = Glue::new();
    let (admin, _) = glue.enabled(Digests::NONE, KATO_MS);
    for _ in 0..4 {
        glue.advance(Nanos(KATO.0 / 2));
        keep_alive(&mut glue, admin);
        glue.target.put_off_timers();
        assert_eq!(glue.target.poll_timeout(), Some(glue.now.after(KATO)));
    }
    glue.advance(ALMOST);
    glue.target.put_off_timers();
    assert!(glue.is_open(admin));
    glue.advance(INSTANT);
    assert!(!glue.is_open(admin));
}

/// CTRATT.TBKAS promises it: hosts that see completions send no Keep Alive.
#[test]
fn every_command_of_every_queue_restarts_the_timer_to_the_instant() {
    type Send = fn(&mut Glue, ConnId, ConnId);
    let commands: [(&str, Send); 7] = [
        ("keep alive", |glue, admin, _| keep_alive(glue, admin)),
        ("property", |glue, admin, _| {
            glue.command(admin, PropertyGet::dword(offset::CSTS).encode());
        }),
        ("feature", |glue, admin, _| {
            glue.command(admin, GetFeatures::current(fid::ARBITRATION).encode());
        }),
        ("event request", |glue, admin, _| {
            let request = Sqe::new(admin::ASYNC_EVENT_REQUEST);
            glue.send(admin, request.with_sgl1(Sgl::transport(0)));
        }),
        ("read", |glue, _, queue| {
            glue.send(queue, io(opcode::READ, 0, 1));
        }),
        ("write", |glue, _, queue| {
            glue.send_with_data(queue, io(opcode::WRITE, 0, 1), &[1; BLOCK as usize]);
        }),
        ("refused", |glue, _, queue| {
            glue.send(queue, io(0xEE, 0, 1));
        }),
    ];
    for (name, send) in commands {
        let mut glue = Glue::new();
        let (admin, cntlid) = glue.enabled(Digests::NONE, KATO_MS);
        let queue = glue.io_queue(Digests::NONE, cntlid, 1);
        for _ in 0..3 {
            glue.advance(ALMOST);
            send(&mut glue, admin, queue);
            assert!(glue.is_open(admin) && glue.is_open(queue), "{name}");
        }
        glue.advance(ALMOST);
        assert!(glue.is_open(admin), "{name}");
        glue.advance(INSTANT);
        assert!(!glue.is_open(admin) && !glue.is_open(queue), "{name}");
    }
}

/// A host that waits for a slow command and sees it complete counts from then.
#[test]
fn completion_restarts_the_timer_as_the_host_sees_it() {
    let mut glue = Glue::new();
    let (admin, cntlid) = glue.enabled(Digests::NONE, KATO_MS);
    let queue = glue.io_queue(Digests::NONE, cntlid, 1);
    glue.hold_io = true;
    glue.send(queue, io(opcode::READ, 0, 1));
    glue.advance(ALMOST);
    glue.hold_io = false;
    glue.finish_held();
    glue.advance(ALMOST);
    assert!(glue.is_open(admin));
    glue.advance(INSTANT);
    assert!(!glue.is_open(admin));
}

#[test]
fn timer_stands_still_while_the_controller_is_not_ready() {
    let mut glue = Glue::new();
    let (admin, _) = glue.admin_with(Digests::NONE, KATO_MS);
    glue.advance(Nanos::from_secs(60));
    glue.set_cc(admin, CC_ENABLE);
    glue.advance(ALMOST);
    assert!(glue.is_open(admin), "it begins when ready");
    keep_alive(&mut glue, admin);

    glue.set_cc(admin, 0);
    glue.advance(Nanos::from_secs(60));
    assert!(glue.is_open(admin), "disabled");
    glue.set_cc(admin, CC_ENABLE);
    glue.advance(ALMOST);
    assert!(glue.is_open(admin), "a reset starts it again");
    keep_alive(&mut glue, admin);

    glue.set_cc(admin, CC_ENABLE | SHN_NORMAL);
    glue.advance(Nanos::from_secs(60));
    assert!(glue.is_open(admin), "shut down");
    glue.set_cc(admin, 0);
    glue.set_cc(admin, CC_ENABLE);
    glue.advance(KATO);
    assert!(!glue.is_open(admin), "and back again");
}

#[test]
fn timeouts_from_one_millisecond_to_what_the_field_can_hold_are_kept() {
    let get = GetFeatures::current(fid::KEEP_ALIVE_TIMER).encode();
    for (asked, granted) in [
        (1, 100),
        (100, 100),
        (101, 200),
        (5000, 5000),
        (KATO_MAX_MS - 99, KATO_MAX_MS),
        (KATO_MAX_MS, KATO_MAX_MS),
    ] {
        let mut glue = Glue::new();
        let (admin, _) = glue.enabled(Digests::NONE, asked);
        assert_eq!(glue.command(admin, get).result, u64::from(granted));
        let set = SetFeatures::new(fid::KEEP_ALIVE_TIMER, asked).encode();
        assert_eq!(glue.command(admin, set).status, Status::SUCCESS);
        assert_eq!(glue.command(admin, get).result, u64::from(granted));
        glue.advance(Nanos(u64::from(granted) * 1_000_000 - 1));
        assert!(glue.is_open(admin));
        glue.advance(INSTANT);
        assert!(!glue.is_open(admin), "{asked}");
    }
}

/// What is longer could not be read back: SPDK does read it back.
#[test]
fn timeout_that_cannot_be_read_back_is_refused() {
    for ms in [KATO_MAX_MS + 1, u32::MAX] {
        let mut glue = Glue::new();
        let id = glue.initialized(Digests::NONE);
        let command = Connect {
            kato_ms: ms,
            ..Glue::connect_command(0, 31)
        };
        let data = Glue::connect_data(SUBNQN, HOSTNQN, 0xFFFF);
        let cqe = glue.connect(id, command, &data);
        assert_eq!(cqe.status, Status::KATO_INVALID.dnr());
        let (admin, _) = glue.enabled(Digests::NONE, KATO_MS);
        let set = SetFeatures::new(fid::KEEP_ALIVE_TIMER, ms).encode();
        let refused = glue.command(admin, set).status;
        assert!(refused.same_code(Status::KATO_INVALID) && refused.is_dnr());
        let get = GetFeatures::current(fid::KEEP_ALIVE_TIMER).encode();
        assert_eq!(glue.command(admin, get).result, u64::from(KATO_MS));
    }
}

#[test]
fn host_without_a_timeout_is_not_watched_until_it_sets_one() {
    let mut glue = Glue::new();
    let (admin, _) = glue.admin();
    glue.advance(Nanos::from_secs(3600));
    assert!(glue.is_open(admin));
    let set = |ms| SetFeatures::new(fid::KEEP_ALIVE_TIMER, ms).encode();
    let off = glue.command(admin, set(0)).status;
    assert!(off.same_code(Status::KATO_INVALID));
    assert_eq!(glue.command(admin, set(KATO_MS)).status, Status::SUCCESS);
    glue.advance(ALMOST);
    assert!(glue.is_open(admin));
    glue.advance(INSTANT);
    assert!(!glue.is_open(admin));
}

/// Neither a device that does not answer, nor memory that is used up, nor a namespace that goes
/// keeps the answer back.
#[test]
fn keep_alive_is_answered_whatever_else_waits() {
    let mut glue = Glue::new();
    let (admin, cntlid) = glue.enabled(Digests::NONE, KATO_MS);
    let queue = glue.io_queue(Digests::NONE, cntlid, 1);
    glue.hold_io = true;
    glue.no_buffers = true;
    for lba in 0..60 {
        glue.send(queue, io(opcode::READ, lba, 1));
        let data = pattern(1, BLOCK as usize);
        glue.send_with_data(queue, io(opcode::WRITE, lba, 1), &data);
    }
    glue.send(queue, io(opcode::WRITE, 100, 64));
    glue.advance(ALMOST);
    keep_alive(&mut glue, admin);
    let now = glue.now;
    let removed = glue.target.remove_namespace(now, SUBNQN, 1);
    removed.expect("it is there");
    glue.advance(ALMOST);
    keep_alive(&mut glue, admin);
    glue.finish_held();
    glue.advance(ALMOST);
    keep_alive(&mut glue, admin);
    assert!(glue.is_open(admin) && glue.is_open(queue));
}

#[test]
fn end_of_an_association_is_told_with_its_host_and_its_timeout() {
    let mut glue = Glue::new();
    assert_eq!(glue.target.poll_expiry(), None);
    let (silent, cntlid) = glue.enabled(Digests::NONE, 1234);
    let (lazy, lazy_cntlid) = glue.admin_with(Digests::NONE, KATO_MS);
    let expiry = |subnqn: &str, cntlid, reason| Expiry {
        hostnqn: HOSTNQN.to_owned(),
        subnqn: subnqn.to_owned(),
        cntlid,
        peer: Some(bowline_nvmf::target::Path::default().peer),
        reason,
    };
    glue.advance(Nanos::from_secs(2));
    assert!(!glue.is_open(silent));
    let kato = Nanos::from_millis(1300);
    let expected = expiry(SUBNQN, cntlid, ExpiryReason::KeepAlive { kato });
    assert_eq!(glue.target.poll_expiry(), Some(expected));
    assert_eq!(glue.target.poll_expiry(), None);
    assert_eq!(glue.target.counters().keep_alive_expired, 1);

    glue.advance(Nanos::from_secs(121));
    assert!(!glue.is_open(lazy));
    let expected = expiry(SUBNQN, lazy_cntlid, ExpiryReason::NotEnabled);
    assert_eq!(glue.target.poll_expiry(), Some(expected));
    let counters = glue.target.counters();
    assert_eq!((counters.keep_alive_expired, counters.timed_out), (1, 1));

    let id = glue.initialized(Digests::NONE);
    let data = Glue::connect_data(DISCOVERY, HOSTNQN, 0xFFFF);
    let cqe = glue.connect(id, Glue::connect_command(0, 31), &data);
    glue.set_cc(id, CC_ENABLE);
    glue.advance(Nanos::from_secs(121));
    let cntlid = u16::try_from(cqe.result & 0xFFFF).expect("16 bits");
    let expected = expiry(DISCOVERY, cntlid, ExpiryReason::Idle);
    assert_eq!(glue.target.poll_expiry(), Some(expected));
}
