//! The same commands, and the same changes between a command and its data, for a device that need
//! not be waited for and one that must be.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bowline_nvme::fabrics::{Connect, ConnectData};
use bowline_nvme::nqn::Nqn;
use bowline_nvme::pdu::{Digests, IcReq, R2t};
use bowline_nvme::reservation::{Acquire, Register, Release, ReservationType};
use bowline_nvme::{ControllerId, NamespaceId, QueueId, Sgl, Sqe, Status};
use bowline_nvmf::host::command;
use bowline_nvmf::target::AnaState;
use bowline_reactor::IoBackend;

use super::{DEVICE_BLOCKS, NSID, WORN, add_device, all_of, rig};
use crate::common::raw::{Raw, crc, length};
use crate::common::rig::{BLOCK, NQN, Rig};
use crate::common::{on_both_backends, pattern, verdict};

on_both_backends!(any_stream_of_commands_ends_as_if_its_device_had_to_be_waited_for);

/// Numbers that follow from a seed.
struct Choices(u64);

impl Choices {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }

    fn one_in(&mut self, odds: u64) -> bool {
        self.below(odds) == 0
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        let at = usize::try_from(self.below(all.len() as u64)).expect("few");
        all[at]
    }
}

/// A command with its data, which is in its capsule or waits for R2Ts.
#[derive(Clone)]
struct Draft {
    sqe: Sqe,
    data: Vec<u8>,
    in_capsule: bool,
}

/// Commands that arrive together differ in their blocks, since they are in no order.
fn draft(choices: &mut Choices, place: u64) -> Draft {
    let count = choices.of(&[1_u16, 1, 2, 8, 8, 64, 256]);
    let lba = match choices.below(12) {
        0 if place == 0 => WORN.start - 4,
        1 if place == 0 => DEVICE_BLOCKS - 2,
        _ => choices.below(64) + 1000 * place,
    };
    let nsid = if choices.one_in(15) {
        NamespaceId(2)
    } else {
        NSID
    };
    let fua = choices.one_in(10);
    let wrong = if choices.one_in(20) { BLOCK } else { 0 };
    let bytes = u32::from(count) * BLOCK;
    let kind = choices.below(10);
    let data = match kind {
        0..4 | 8 => pattern(choices.below(3) + 1, bytes as usize),
        _ => Vec::new(),
    };
    let in_capsule = !data.is_empty() && bytes <= 4096 && !choices.one_in(3);
    let sgl = if in_capsule {
        Sgl::in_capsule(bytes)
    } else if kind == 9 {
        Sgl::transport(0)
    } else {
        Sgl::transport(bytes + wrong)
    };
    let sqe = match kind {
        0..4 => command::write(nsid, lba, count - 1, fua),
        4..8 => command::read(nsid, lba, count - 1).with_fua(fua),
        8 => command::compare(nsid, lba, count - 1),
        _ => command::write_zeroes(nsid, lba, count - 1, false),
    };
    Draft {
        sqe: sqe.with_sgl1(sgl),
        data,
        in_capsule,
    }
}

/// What happens to the namespace while commands wait for their data.
#[derive(Clone, Copy, Debug)]
enum Change {
    Remove,
    Replace,
    Access(AnaState),
    /// Of the other host.
    Register,
    Acquire(ReservationType),
    /// Of the other host, to this host's registration.
    Preempt(ReservationType),
    /// Of this host.
    RegisterOwn,
    Clear,
}

fn change(choices: &mut Choices) -> Change {
    let rtype = choices.of(&[
        ReservationType::WriteExclusive,
        ReservationType::ExclusiveAccess,
        ReservationType::WriteExclusiveRegistrantsOnly,
    ]);
    let state = choices.of(&[
        AnaState::Optimized,
        AnaState::Optimized,
        AnaState::Inaccessible,
        AnaState::PersistentLoss,
    ]);
    match choices.below(16) {
        0 => Change::Remove,
        1 | 2 => Change::Replace,
        3..6 => Change::Access(state),
        6 | 7 => Change::Register,
        8 | 9 => Change::Acquire(rtype),
        10 | 11 => Change::Preempt(rtype),
        12 | 13 => Change::RegisterOwn,
        _ => Change::Clear,
    }
}

/// What ends a change that would leave little else to see.
fn undone(change: Option<Change>) -> Option<Change> {
    match change? {
        Change::Remove => Some(Change::Replace),
        Change::Access(_) => Some(Change::Access(AnaState::Optimized)),
        Change::Acquire(_) | Change::Preempt(_) => Some(Change::Clear),
        _ => None,
    }
}

const SEEDS: u64 = 8;
const STEPS: usize = 100;

const OTHER: u64 = 0xB;
const OWN: u64 = 0xA;

/// How a command ended.
type Outcome = (Status, Vec<u8>);

/// One of the two targets that are compared, and its hosts.
struct Side {
    rig: Rig,
    is_immediate: bool,
    attempts: Arc<AtomicU64>,
    host: Raw,
    other: Raw,
    _admins: [Raw; 2],
    outcomes: BTreeMap<u16, Outcome>,
    reading: BTreeMap<u16, Vec<u8>>,
    asked: Vec<R2t>,
}

/// An I/O queue of a host of this number, with an alignment of data.
fn queue_of(rig: &Rig, number: u8, digests: Digests, hpda: u8) -> (Raw, Raw) {
    let open = |qid: u16, cntlid| {
        let mut raw = Raw::connect(rig.address);
        let icreq = IcReq {
            hpda,
            header_digest: digests.header,
            data_digest: digests.data,
            ..IcReq::default()
        };
        raw.send(&icreq.encode());
        raw.recv().expect("ICResp");
        raw.digests = digests;
        let connect = Connect {
            qid: QueueId(qid),
            sqsize: 31,
            ..Connect::default()
        };
        // One of the two hosts does without SQ flow control, so that data says that all is well.
        let connect = connect.with_sq_flow_control_disabled(number == 0);
        let nqn = |name: &str| Nqn::new(name).expect("a name");
        let data = ConnectData {
            hostid: [number + 1; 16],
            cntlid,
            subnqn: nqn(NQN),
            hostnqn: nqn(&format!("nqn.2026-11.io.bowline:host-{number}")),
        };
        let cqe = raw.command(connect.encode(), Some(&data.encode()));
        assert!(cqe.status.is_success(), "{}", cqe.status);
        let [low, high, ..] = cqe.result.to_le_bytes();
        (raw, ControllerId(u16::from_le_bytes([low, high])))
    };
    let (mut admin, cntlid) = open(0, ControllerId::DYNAMIC);
    admin.enable();
    (open(1, cntlid).0, admin)
}

impl Side {
    fn new(io: IoBackend, is_immediate: bool, digests: Digests, hpda: u8) -> Self {
        let attempts = Arc::default();
        let rig = rig(io, is_immediate, &attempts);
        let (host, admin) = queue_of(&rig, 0, digests, hpda);
        let (other, other_admin) = queue_of(&rig, 1, Digests::NONE, 0);
        Self {
            rig,
            is_immediate,
            attempts,
            host,
            other,
            _admins: [admin, other_admin],
            outcomes: BTreeMap::new(),
            reading: BTreeMap::new(),
            asked: Vec::new(),
        }
    }

    /// Sends commands together, lets the change happen while some wait for their data, and waits
    /// for all of them.
    fn run(&mut self, drafts: &[Draft], change: Option<Change>, hpda: u8) -> Vec<Outcome> {
        let mut bytes = Vec::new();
        let mut sent = BTreeMap::new();
        for draft in drafts {
            let data = if draft.in_capsule {
                &draft.data[..]
            } else {
                &[]
            };
            bytes.extend(self.host.capsule_with(draft.sqe, data));
            sent.insert(self.host.last_cid().0, draft);
        }
        self.host.send(&bytes);
        self.outcomes.clear();
        let all: BTreeSet<u16> = sent.keys().copied().collect();
        self.gather(&all, hpda);
        let changed = change.map(|change| self.change(change));
        while self.outcomes.len() < all.len() {
            for r2t in std::mem::take(&mut self.asked) {
                let range = r2t.r2to as usize..(r2t.r2to + r2t.r2tl) as usize;
                let data = &sent[&r2t.cccid.0].data;
                // Where the length is wrong, so is the data.
                let data = data
                    .get(range)
                    .map_or_else(|| vec![0; r2t.r2tl as usize], <[u8]>::to_vec);
                let pdu = self.host.h2c_data(all_of(&r2t), &data);
                self.host.send(&pdu);
            }
            self.gather(&all, hpda);
        }
        let outcomes = std::mem::take(&mut self.outcomes).into_values();
        outcomes
            .chain(changed.map(|status| (status, Vec::new())))
            .collect()
    }

    /// Receives until each command has ended or waits for data.
    fn gather(&mut self, all: &BTreeSet<u16>, hpda: u8) {
        let waits = |side: &Self| {
            let asked = side.asked.iter().map(|r2t| r2t.cccid.0);
            let mut known: BTreeSet<u16> = asked.collect();
            known.extend(side.outcomes.keys());
            known != *all
        };
        while waits(self) {
            let pdu = self.host.recv().expect("an answer");
            match pdu.kind() {
                0x05 => {
                    let cqe = pdu.cqe();
                    let data = self.reading.remove(&cqe.cid.0).unwrap_or_default();
                    self.outcomes.insert(cqe.cid.0, (verdict(cqe.status), data));
                }
                0x09 => self.asked.push(pdu.r2t()),
                _ => {
                    let c2h = pdu.c2h();
                    let start = usize::from(pdu.bytes[3]);
                    assert!(start.is_multiple_of((usize::from(hpda) + 1) * 4), "HPDA");
                    let (data, digest) = pdu.bytes[start..].split_at(c2h.datal as usize);
                    if self.host.digests.data {
                        assert_eq!(crc(data), digest, "digest of other bytes");
                    }
                    let so_far = self.reading.entry(c2h.cccid.0).or_default();
                    assert_eq!(length(so_far), c2h.datao);
                    so_far.extend(data);
                    if c2h.success {
                        let data = self.reading.remove(&c2h.cccid.0).unwrap_or_default();
                        self.outcomes.insert(c2h.cccid.0, (Status::SUCCESS, data));
                    }
                }
            }
        }
    }

    fn change(&mut self, change: Change) -> Status {
        let rig = &self.rig;
        match change {
            Change::Remove => {
                let removed = rig.call(|target, _, now| target.remove_namespace(now, NQN, NSID));
                removed.map_or(Status::INVALID_NAMESPACE, |_| Status::SUCCESS)
            }
            Change::Replace => {
                let removed = rig.call(|target, _, now| target.remove_namespace(now, NQN, NSID));
                add_device(rig, self.is_immediate, &self.attempts);
                removed.map_or(Status::INVALID_NAMESPACE, |_| Status::SUCCESS)
            }
            Change::Access(state) => {
                rig.call(move |target, _, now| {
                    target
                        .target()
                        .set_ana_state(now, NQN, 1, state)
                        .expect("there is a group 1");
                });
                Status::SUCCESS
            }
            Change::Register => register(&mut self.other, OTHER),
            // Whoever waits for its data gives no answer now.
            Change::RegisterOwn => register(&mut self.host, OWN),
            Change::Acquire(rtype) => acquire(&mut self.other, Acquire::ACQUIRE, rtype, 0),
            Change::Preempt(rtype) => acquire(&mut self.other, Acquire::PREEMPT, rtype, OWN),
            Change::Clear => {
                let release = Release {
                    action: Release::CLEAR,
                    current_key: OTHER,
                    ..Release::default()
                };
                let sqe = release.encode().with_nsid(NSID);
                verdict(self.other.command(sqe, Some(&release.data())).status)
            }
        }
    }
}

fn register(host: &mut Raw, key: u64) -> Status {
    let register = Register {
        ignore_key: true,
        new_key: key,
        ..Register::default()
    };
    let sqe = register.encode().with_nsid(NSID);
    verdict(host.command(sqe, Some(&register.data())).status)
}

fn acquire(other: &mut Raw, action: u8, rtype: ReservationType, preempt_key: u64) -> Status {
    let acquire = Acquire {
        action,
        rtype: rtype.wire(),
        current_key: OTHER,
        preempt_key,
        ..Acquire::default()
    };
    let sqe = acquire.encode().with_nsid(NSID);
    verdict(other.command(sqe, Some(&acquire.data())).status)
}

/// What is left on the medium, read when nothing is in the way any more.
fn medium() -> Vec<Draft> {
    let count = 256_u16;
    let firsts = (0..DEVICE_BLOCKS).step_by(count.into());
    let read = |lba| Draft {
        sqe: command::read(NSID, lba, count - 1)
            .with_sgl1(Sgl::transport(u32::from(count) * BLOCK)),
        data: Vec::new(),
        in_capsule: false,
    };
    firsts.map(read).collect()
}

fn any_stream_of_commands_ends_as_if_its_device_had_to_be_waited_for(io: IoBackend) {
    let mut seen = Vec::new();
    for seed in 1..=SEEDS {
        let mut choices = Choices(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let digests = Digests {
            header: choices.one_in(2),
            data: choices.one_in(2),
        };
        let hpda = choices.of(&[0, 0, 1, 31]);
        let mut sides = [true, false].map(|it| Side::new(io, it, digests, hpda));
        let mut last = None;
        for step in 0..STEPS {
            let places = 0..choices.below(4) + 1;
            let drafts: Vec<Draft> = places.map(|it| draft(&mut choices, it)).collect();
            let next = choices.one_in(2).then(|| change(&mut choices));
            let is_enough = choices.one_in(2);
            last = undone(last).filter(|_| is_enough).or(next);
            let change = last;
            let [short, usual] = sides.each_mut().map(|it| it.run(&drafts, change, hpda));
            let statuses = |all: &[Outcome]| all.iter().map(|it| it.0).collect::<Vec<_>>();
            let (short_statuses, usual_statuses) = (statuses(&short), statuses(&usual));
            let what = format!("seed {seed}, step {step}, {change:?}");
            assert_eq!(short_statuses, usual_statuses, "{what}");
            assert!(short == usual, "{what}: other data");
            seen.extend(short_statuses);
        }
        for change in [
            Change::Replace,
            Change::Access(AnaState::Optimized),
            Change::Register,
            Change::Clear,
        ] {
            let is_there = !matches!(change, Change::Replace);
            for side in &mut sides {
                let nothing = side.rig.call(|target, _, _| {
                    let subsystems = target.target().subsystems();
                    subsystems.iter().all(|it| it.namespaces.is_empty())
                });
                if is_there || nothing {
                    side.change(change);
                }
            }
        }
        for draft in medium() {
            let [short, usual] = sides
                .each_mut()
                .map(|it| it.run(std::slice::from_ref(&draft), None, hpda));
            assert!(short == usual, "seed {seed}: the media differ");
        }
        let attempts = sides
            .each_ref()
            .map(|it| it.attempts.load(Ordering::SeqCst));
        assert_eq!(attempts[0], attempts[1], "seed {seed}: run another time");
    }
    for wanted in [
        Status::SUCCESS,
        Status::INVALID_NAMESPACE,
        Status::LBA_OUT_OF_RANGE,
        Status::DATA_SGL_LENGTH_INVALID,
        Status::RESERVATION_CONFLICT,
        Status::COMPARE_FAILURE,
        Status::WRITE_FAULT,
        Status::UNRECOVERED_READ,
        Status::ANA_INACCESSIBLE,
        Status::ANA_PERSISTENT_LOSS,
    ] {
        let is_it = |status: &Status| status.same_code(wanted);
        assert!(seen.iter().any(is_it), "{wanted} was not tried");
    }
}
