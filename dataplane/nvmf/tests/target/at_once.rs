//! Commands that are run as they come end as those that are not.

use bowline_nvme::fabrics::ConnectData;
use bowline_nvme::nqn::Nqn;
use bowline_nvme::opcode::{admin, io as opcode};
use bowline_nvme::pdu::{Digests, H2CData, R2t};
use bowline_nvme::reservation::{Acquire, Register, Release, ReservationType};
use bowline_nvme::{CommandId, Fuse, NamespaceId, Nanos, Sgl, Sqe, Status};
use bowline_nvmf::target::{
    AnaConfig, AnaState, ConnId, NamespaceConfig, NamespaceHandle, NsGeometry, TargetConfig,
};
use proptest::prelude::*;

use crate::glue::{
    BLOCK, BLOCKS, CC_ENABLE, Glue, HOSTNQN, Reply, SUBNQN, geometry, h2c_data, io, namespace,
    pattern,
};

/// How a host connects.
#[derive(Clone, Copy, Debug)]
struct Manner {
    digests: Digests,
    hpda: u8,
    kato_ms: u32,
    has_flow_control: bool,
}

const PLAIN: Manner = Manner {
    digests: Digests::NONE,
    hpda: 0,
    kato_ms: 0,
    has_flow_control: false,
};

/// A glue whose plain commands are run as they come or not, its admin queue, and an I/O queue.
fn queues(at_once: bool, manner: Manner, sqsize: u16) -> (Glue, ConnId, ConnId) {
    let Manner {
        digests,
        has_flow_control,
        ..
    } = manner;
    let mut glue = Glue::with_ana(TargetConfig::default(), AnaConfig::default());
    glue.at_once = at_once;
    let (admin, cntlid) = glue.enabled(digests, manner.kato_ms);
    glue.hpda = manner.hpda;
    let id = glue.initialized(digests);
    glue.hpda = 0;
    let data = Glue::connect_data(SUBNQN, HOSTNQN, cntlid);
    let command = Glue::connect_command(1, sqsize);
    let command = command.with_sq_flow_control_disabled(!has_flow_control);
    assert_eq!(glue.connect(id, command, &data).status, Status::SUCCESS);
    (glue, admin, id)
}

#[test]
fn plain_command_is_answered_before_anything_is_polled() {
    let (mut glue, _, id) = queues(true, PLAIN, 31);
    let data = pattern(3, 2 * BLOCK as usize);
    let write = io(opcode::WRITE, 5, 2).with_sgl1(Sgl::in_capsule(2 * BLOCK));
    let mut bytes = glue.capsule(id, write.with_cid(CommandId(1)), &data);
    bytes.extend(glue.capsule(id, io(opcode::READ, 5, 2).with_cid(CommandId(2)), &[]));
    glue.receive_only(id, &bytes);
    assert_eq!(glue.target.poll_dirty(), None);
    let replies = glue.replies(id);
    assert_eq!(replies[0].cqe().cid, CommandId(1));
    let read = Reply::Data {
        cid: CommandId(2),
        offset: 0,
        bytes: data,
        last: true,
        success: true,
    };
    assert_eq!(replies[1..], [read]);
}

#[test]
fn command_that_its_host_may_not_send_yet_is_not_run_at_once() {
    let (mut glue, _, id) = queues(true, PLAIN, 1);
    let cid = glue.send(id, io(opcode::WRITE, 0, 1));
    let busy = glue.capsule(id, io(opcode::READ, 0, 1).with_cid(cid), &[]);
    glue.receive(id, &busy);
    let replies = glue.replies(id);
    assert!(matches!(replies[0], Reply::R2t(_)));
    let status = replies[1].cqe().status;
    assert!(status.same_code(Status::CID_CONFLICT), "{status:?}");
    // Two entries, and four more for hosts that count in another way.
    for _ in 1..6 {
        glue.send(id, io(opcode::WRITE, 0, 1));
        assert!(matches!(glue.reply(id), Reply::R2t(_)));
    }
    glue.send(id, io(opcode::READ, 0, 1));
    assert!(matches!(glue.reply(id), Reply::Terminate { .. }));
}

/// A command, and what is wrong with it.
#[derive(Clone, Debug)]
struct Draft {
    opcode: u8,
    cid: u16,
    nsid: u32,
    lba: u64,
    blocks: u32,
    fuse: Fuse,
    fua: bool,
    psdt: u8,
    /// By how much the length in the descriptor is wrong.
    excess: u32,
    /// The descriptor is of no kind that is known here.
    is_odd: bool,
    /// Its data, if it has any, comes with it.
    in_capsule: bool,
    /// A byte of it is damaged on the way.
    is_damaged: bool,
}

#[derive(Clone, Debug)]
enum Step {
    /// Commands that arrive together, in pieces of so many bytes.
    Send(Vec<Draft>, usize),
    /// The oldest R2T is answered, in two PDUs if it is split, with a damaged byte or without.
    Answer {
        is_split: bool,
        is_damaged: bool,
    },
    /// The latest Write that waits for its data is aborted.
    Abort,
    ReadOnly(bool),
    Access(AnaState),
    Disable,
    /// The namespace goes away, and another comes, unless it has.
    Remove,
    Replace,
    /// Time passes, in which the host may be given up.
    Wait(Nanos),
    Reserve(Reserve),
}

/// What becomes of the reservation.
#[derive(Clone, Copy, Debug)]
enum Reserve {
    /// Of this host or the other.
    Register {
        is_other: bool,
    },
    /// The other host.
    Acquire(ReservationType),
    Preempt(ReservationType),
    Release(ReservationType),
    Clear,
}

const OTHER: &str = "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-4000-8000-000000000002";
const OWN_KEY: u64 = 0xA;
const OTHER_KEY: u64 = 0xB;

fn reserve() -> impl Strategy<Value = Reserve> {
    let types = prop::sample::select(vec![
        ReservationType::WriteExclusive,
        ReservationType::ExclusiveAccess,
        ReservationType::WriteExclusiveRegistrantsOnly,
    ]);
    prop_oneof![
        3 => any::<bool>().prop_map(|is_other| Reserve::Register { is_other }),
        3 => types.clone().prop_map(Reserve::Acquire),
        2 => types.clone().prop_map(Reserve::Preempt),
        1 => types.prop_map(Reserve::Release),
        1 => Just(Reserve::Clear),
    ]
}

impl Reserve {
    fn command(self) -> (Sqe, Vec<u8>) {
        let acquire = |action, rtype: ReservationType| {
            let acquire = Acquire {
                action,
                rtype: rtype.wire(),
                current_key: OTHER_KEY,
                preempt_key: OWN_KEY,
                ..Acquire::default()
            };
            (acquire.encode(), acquire.data().to_vec())
        };
        let release = |action, rtype| {
            let release = Release {
                action,
                rtype,
                current_key: OTHER_KEY,
                ..Release::default()
            };
            (release.encode(), release.data().to_vec())
        };
        match self {
            Self::Register { is_other } => {
                let register = Register {
                    ignore_key: true,
                    new_key: if is_other { OTHER_KEY } else { OWN_KEY },
                    ..Register::default()
                };
                (register.encode(), register.data().to_vec())
            }
            Self::Acquire(rtype) => acquire(Acquire::ACQUIRE, rtype),
            Self::Preempt(rtype) => acquire(Acquire::PREEMPT, rtype),
            Self::Release(rtype) => release(Release::RELEASE, rtype.wire()),
            Self::Clear => release(Release::CLEAR, 0),
        }
    }
}

fn rarely(odds: f64) -> impl Strategy<Value = bool> {
    prop::bool::weighted(odds)
}

fn draft() -> impl Strategy<Value = Draft> {
    let opcodes = prop::sample::select(vec![
        opcode::READ,
        opcode::READ,
        opcode::READ,
        opcode::WRITE,
        opcode::WRITE,
        opcode::WRITE,
        opcode::COMPARE,
        opcode::FLUSH,
        opcode::WRITE_ZEROES,
        0x7F,
    ]);
    let lba = prop_oneof![9 => 0..16_u64, 1 => BLOCKS - 2..BLOCKS + 2, 1 => Just(u64::MAX)];
    let fuse = prop_oneof![
        18 => Just(Fuse::Normal),
        2 => Just(Fuse::First),
        2 => Just(Fuse::Second),
        1 => Just(Fuse::Reserved),
    ];
    let odd = (
        rarely(0.1),
        rarely(0.05),
        rarely(0.03),
        rarely(0.7),
        rarely(0.05),
    );
    (opcodes, 0..6_u16, lba, 1..6_u32, fuse, odd).prop_map(
        |(opcode, cid, lba, blocks, fuse, (fua, is_other, is_wrong, in_capsule, is_damaged))| {
            Draft {
                opcode,
                cid,
                nsid: if is_other { 2 } else { 1 },
                lba,
                blocks,
                fuse,
                fua,
                psdt: if is_wrong { 0 } else { 1 },
                excess: u32::from(is_other && is_wrong) * BLOCK,
                is_odd: is_damaged && is_other,
                in_capsule,
                is_damaged,
            }
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let pieces = prop_oneof![6 => Just(usize::MAX), 1 => 1..600_usize];
    let states = prop::sample::select(vec![
        AnaState::Optimized,
        AnaState::Optimized,
        AnaState::NonOptimized,
        AnaState::Inaccessible,
        AnaState::Change,
    ]);
    prop_oneof![
        40 => (prop::collection::vec(draft(), 1..4), pieces).prop_map(|(all, at)| Step::Send(all, at)),
        12 => (rarely(0.2), rarely(0.1)).prop_map(|(is_split, is_damaged)| {
            Step::Answer { is_split, is_damaged }
        }),
        2 => Just(Step::Abort),
        2 => any::<bool>().prop_map(Step::ReadOnly),
        3 => states.prop_map(Step::Access),
        1 => Just(Step::Disable),
        1 => Just(Step::Remove),
        3 => Just(Step::Replace),
        2 => (1..400_u64).prop_map(|it| Step::Wait(Nanos(it * 10_000_000))),
        8 => reserve().prop_map(Step::Reserve),
    ]
}

impl Draft {
    /// Commands that arrive together are in no order: by their `place` they differ in their
    /// identifiers, and in their blocks unless they are a pair.
    fn lba(&self, place: u16) -> u64 {
        let apart = 100 * u64::from(place);
        match self.fuse {
            Fuse::Normal if self.lba < BLOCKS / 2 => self.lba + apart,
            Fuse::Normal => self.lba - apart,
            _ => self.lba,
        }
    }

    fn bytes(&self, place: u16, glue: &mut Glue, id: ConnId) -> Vec<u8> {
        let moves_data = matches!(self.opcode, opcode::READ | opcode::WRITE | opcode::COMPARE);
        let len = if moves_data { self.blocks * BLOCK } else { 0 };
        let in_capsule = self.in_capsule && matches!(self.opcode, opcode::WRITE | opcode::COMPARE);
        let mut data = Vec::new();
        let mut sgl = Sgl::transport(len + self.excess);
        if in_capsule {
            data = pattern(u8::try_from(self.cid).expect("small"), len as usize);
            // A wrong length ends the connection, before or after those ahead are answered.
            let excess = if place == 0 { self.excess } else { 0 };
            sgl = Sgl::in_capsule(len + excess);
        }
        // That ends the connection too.
        if self.is_odd && place == 0 {
            sgl.kind = 0x02;
        }
        let mut sqe: Sqe = io(self.opcode, self.lba(place), self.blocks)
            .with_nsid(NamespaceId(self.nsid))
            .with_cid(CommandId(self.cid + 8 * place))
            .with_sgl1(sgl)
            .with_fua(self.fua)
            .with_fuse(self.fuse);
        sqe.0[1] = sqe.0[1] & 0x3F | self.psdt << 6;
        let mut bytes = glue.capsule(id, sqe, &data);
        let digests = glue.digests(id);
        // Without a digest nobody can know.
        if self.is_damaged && in_capsule && digests.data {
            let last = bytes.len() - 5;
            bytes[last] ^= 1;
        }
        bytes
    }
}

/// What the host sees, in an order that is the same however commands that arrive together
/// overtake each other. Tags name slots, which plain commands do not need.
fn seen(glue: &mut Glue, id: ConnId, is_batch: bool) -> (Vec<String>, Vec<R2t>) {
    let mut replies = glue.replies(id);
    let mut r2ts = Vec::new();
    for reply in &mut replies {
        match reply {
            Reply::R2t(r2t) => {
                r2ts.push(*r2t);
                r2t.ttag = 0;
            }
            Reply::Response(cqe) if is_batch => cqe.sqhd = 0,
            _ => {}
        }
    }
    let mut seen: Vec<String> = replies.iter().map(|it| format!("{it:?}")).collect();
    if is_batch {
        seen.sort();
    }
    (seen, r2ts)
}

/// The data that an R2T asks for.
fn transfer(glue: &mut Glue, id: ConnId, r2t: &R2t, is_split: bool, is_damaged: bool) -> Vec<u8> {
    let all = h2c_data(r2t);
    let data = pattern(9, r2t.r2tl as usize);
    let mut bytes = if is_split {
        let first = H2CData {
            datal: 4,
            last: false,
            ..all
        };
        let second = H2CData {
            datao: all.datao + 4,
            datal: all.datal - 4,
            ..all
        };
        let mut bytes = glue.h2c(id, first, &data[..4]);
        bytes.extend(glue.h2c(id, second, &data[4..]));
        bytes
    } else {
        glue.h2c(id, all, &data)
    };
    if is_damaged && glue.digests(id).data {
        let last = bytes.len() - 5;
        bytes[last] ^= 1;
    }
    bytes
}

/// One of the two targets that are compared.
struct Side {
    glue: Glue,
    admin: ConnId,
    id: ConnId,
    /// An I/O queue of the other host.
    other: ConnId,
    /// R2Ts that were not answered yet.
    open: Vec<R2t>,
    /// The namespaces there were.
    namespaces: u32,
}

impl Side {
    fn new(at_once: bool, manner: Manner) -> Self {
        let (mut glue, admin, id) = queues(at_once, manner, 127);
        glue.target.allow_any(SUBNQN).expect("it is there");
        let other = |glue: &mut Glue, qid, cntlid| {
            let id = glue.initialized(Digests::NONE);
            let data = ConnectData {
                hostid: [8; 16],
                hostnqn: Nqn::new(OTHER).expect("valid"),
                ..Glue::connect_data(SUBNQN, HOSTNQN, cntlid)
            };
            let cqe = glue.connect(id, Glue::connect_command(qid, 31), &data);
            assert_eq!(cqe.status, Status::SUCCESS);
            (id, u16::try_from(cqe.result & 0xFFFF).expect("16 bits"))
        };
        let (other_admin, cntlid) = other(&mut glue, 0, 0xFFFF);
        glue.set_cc(other_admin, CC_ENABLE);
        let other = other(&mut glue, 1, cntlid).0;
        Self {
            glue,
            admin,
            id,
            other,
            open: Vec::new(),
            namespaces: 1,
        }
    }

    /// Replaces the namespace by one of the same number, or makes it anew.
    fn replace(&mut self) {
        let (glue, handle) = (&mut self.glue, 100 + self.namespaces);
        self.namespaces += 1;
        // It may have gone before.
        let _gone = glue.target.remove_namespace(glue.now, SUBNQN, 1).is_err();
        let bytes = usize::try_from(BLOCKS).expect("small") * BLOCK as usize;
        glue.disks.insert(handle, vec![0; bytes]);
        let config = NamespaceConfig {
            handle: NamespaceHandle(handle),
            uuid: [u8::try_from(handle).expect("few"); 16],
            nguid: [u8::try_from(handle).expect("few"); 16],
            ..namespace(1)
        };
        let added = glue.target.add_namespace(glue.now, SUBNQN, config);
        added.expect("its place is free");
        glue.pump();
    }

    fn reserve(&mut self, reserve: Reserve) -> String {
        let (sqe, data) = reserve.command();
        let is_own = matches!(reserve, Reserve::Register { is_other: false });
        let id = if is_own { self.id } else { self.other };
        self.glue
            .send_with_data(id, sqe.with_nsid(NamespaceId(1)), &data);
        let replies = self.glue.replies(id);
        format!("{replies:?}")
    }

    fn take(&mut self, step: &Step) -> Vec<String> {
        let (glue, id) = (&mut self.glue, self.id);
        glue.now = glue.now + Nanos(1000);
        match step {
            Step::Send(drafts, piece) => {
                let placed = (0..).zip(drafts);
                let bytes = placed.flat_map(|(place, it)| it.bytes(place, glue, id));
                let bytes: Vec<u8> = bytes.collect();
                glue.chunk = *piece;
                glue.receive(id, &bytes);
            }
            Step::Answer {
                is_split,
                is_damaged,
            } => {
                if !self.open.is_empty() {
                    let r2t = self.open.remove(0);
                    let bytes = transfer(glue, id, &r2t, *is_split, *is_damaged);
                    glue.receive(id, &bytes);
                }
            }
            Step::Abort => {
                if let Some(r2t) = self.open.last() {
                    let cdw10 = u32::from(r2t.cccid.0) << 16 | 1;
                    glue.send(
                        self.admin,
                        Sqe::new(admin::ABORT)
                            .with_cdw(10, cdw10)
                            .with_sgl1(Sgl::transport(0)),
                    );
                }
            }
            Step::ReadOnly(read_only) => {
                let geometry = NsGeometry {
                    read_only: *read_only,
                    ..geometry()
                };
                let (now, target) = (glue.now, &mut glue.target);
                // It may have gone before.
                let _gone = target.update_namespace(now, SUBNQN, 1, geometry).is_err();
            }
            Step::Access(state) => {
                let (now, target) = (glue.now, &mut glue.target);
                target
                    .set_ana_state(now, SUBNQN, 1, *state)
                    .expect("there is such a group");
                glue.pump();
            }
            Step::Disable => glue.set_cc(self.admin, CC_ENABLE & !1),
            Step::Remove => {
                let (now, target) = (glue.now, &mut glue.target);
                let _gone = target.remove_namespace(now, SUBNQN, 1).is_err();
                glue.pump();
            }
            Step::Replace => self.replace(),
            Step::Wait(span) => glue.advance(*span),
            Step::Reserve(reserve) => return vec![self.reserve(*reserve)],
        }
        let glue = &mut self.glue;
        let is_batch = matches!(step, Step::Send(drafts, _) if drafts.len() > 1);
        let (mut seen, open) = seen(glue, id, is_batch);
        // With its padding, whatever the tags are.
        seen.push(format!("{} bytes", glue.conn(id).sent.len()));
        self.open.extend(open);
        let of_admin = glue.replies(self.admin);
        seen.extend(of_admin.iter().map(|it| format!("{it:?}")));
        seen
    }

    fn state(&mut self) -> String {
        let target = &mut self.glue.target;
        // When something is due, and not when it was looked at last.
        target.put_off_timers();
        let due = target.poll_timeout();
        let (subsystems, connections) = (target.subsystems(), target.connections());
        let counters = target.counters();
        format!("{subsystems:#?} {connections:#?} {counters:?} {due:?}")
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn what_is_run_at_once_ends_and_counts_as_if_it_were_not(
        steps in prop::collection::vec(step(), 1..24),
        (header, data, has_flow_control) in any::<(bool, bool, bool)>(),
        hpda in prop::sample::select(vec![0, 0, 1, 5, 31]),
        kato_ms in prop::sample::select(vec![0, 0, 1000, 5000]),
    ) {
        let digests = Digests { header, data };
        let manner = Manner { digests, hpda, kato_ms, has_flow_control };
        let mut usual = Side::new(false, manner);
        let mut short = Side::new(true, manner);
        for step in &steps {
            prop_assert_eq!(usual.take(step), short.take(step), "{:?}", step);
            prop_assert!(usual.glue.disks == short.glue.disks, "{:?}", step);
            prop_assert_eq!(usual.state(), short.state(), "{:?}", step);
            if ![usual.id, usual.admin].iter().all(|id| usual.glue.is_open(*id)) {
                break;
            }
        }
    }
}
