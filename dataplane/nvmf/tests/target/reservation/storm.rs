//! Hosts that take each other's rights in the middle of everything: every command ends once.

use std::collections::BTreeSet;

use bowline_nvme::log::AnaState;
use bowline_nvme::nvm::CopyRange;
use bowline_nvme::opcode::{admin, io as opcode};
use bowline_nvme::reservation::{Acquire, Register, ReservationType};
use bowline_nvme::{CommandId, Fuse, NamespaceId, Sgl, Sqe};
use bowline_nvmf::target::{AnaConfig, ConnId, TargetConfig};
use proptest::prelude::*;

use super::hosts::{Host, KEY_A, KEY_B, key};
use crate::glue::{BLOCK, Glue, Reply, SUBNQN, h2c_data, io};

struct Storm {
    glue: Glue,
    hosts: [Host; 2],
    outstanding: BTreeSet<(u32, CommandId)>,
}

impl Storm {
    fn new() -> Self {
        let mut glue = Glue::with_ana(TargetConfig::default(), AnaConfig::default());
        let hosts = [glue.host(1), glue.host(2)];
        glue.register_all(&hosts);
        glue.part_bytes = Some(4 * BLOCK);
        glue.hold_io = true;
        Self {
            glue,
            hosts,
            outstanding: BTreeSet::new(),
        }
    }

    fn send(&mut self, queue: ConnId, sqe: Sqe) {
        let cid = self.glue.send(queue, sqe);
        self.outstanding.insert((queue.index, cid));
    }

    fn send_with_data(&mut self, queue: ConnId, sqe: Sqe, data: &[u8]) {
        let cid = self.glue.send_with_data(queue, sqe, data);
        self.outstanding.insert((queue.index, cid));
    }

    fn operation(&mut self, kind: u8, which: bool, free: u8) {
        let Host { admin, queue, .. } = self.hosts[usize::from(which)];
        let blocks = |count: u32| vec![free; (count * BLOCK) as usize];
        let lba = u64::from(free & 7) * 8;
        match kind {
            0 | 1 => self.send(queue, io(opcode::READ, lba, 11)),
            2 => self.send_with_data(queue, io(opcode::WRITE, lba, 1), &blocks(1)),
            3 => self.send(queue, io(opcode::WRITE, lba, 16)),
            4 => {
                let first = io(opcode::COMPARE, lba, 2).with_fuse(Fuse::First);
                let second = io(opcode::WRITE, lba, 2).with_fuse(Fuse::Second);
                self.send_with_data(queue, first, &blocks(2));
                self.send_with_data(queue, second, &blocks(2));
            }
            5 => {
                let range = CopyRange {
                    slba: 512,
                    blocks: 4,
                };
                let copy = Sqe::new(opcode::COPY).with_nsid(NamespaceId(1));
                let copy = copy.with_copy(lba, 0);
                self.send_with_data(queue, copy, &range.encode());
            }
            6 | 7 => self.acquire(which, free),
            8 => self.register(which),
            9 => {
                let own = self.outstanding.iter().filter(|it| it.0 == queue.index);
                if let Some(&(_, cid)) = own.clone().nth(usize::from(free) % own.count().max(1)) {
                    let abort = Sqe::new(admin::ABORT).with_cdw(10, 1 | u32::from(cid.0) << 16);
                    self.send(admin, abort.with_sgl1(Sgl::transport(0)));
                }
            }
            10 => self.glue.unstarted = free & 1 != 0,
            11 => {
                let last = std::mem::replace(&mut self.glue.deaf, (free & 1 != 0).then_some(queue));
                if let Some(last) = last {
                    self.glue.resume(last);
                }
            }
            12 => {
                let states = [AnaState::Optimized, AnaState::Inaccessible];
                let state = states[usize::from(free & 3 == 0)];
                let set = self
                    .glue
                    .target
                    .set_ana_state(self.glue.now, SUBNQN, 1, state);
                set.expect("a group");
                self.glue.pump();
            }
            13 | 14 => self.glue.finish_held(),
            _ => {
                self.answer();
            }
        }
    }

    fn acquire(&mut self, which: bool, free: u8) {
        let types = ReservationType::ALL;
        let actions = [
            Acquire::ACQUIRE,
            Acquire::PREEMPT,
            Acquire::PREEMPT_AND_ABORT,
        ];
        let (own, others) = if which {
            (KEY_B, KEY_A)
        } else {
            (KEY_A, KEY_B)
        };
        let acquire = Acquire {
            action: actions[usize::from(free >> 4) % actions.len()],
            rtype: types[usize::from(free & 7) % types.len()].wire(),
            current_key: own,
            preempt_key: others,
            ..Acquire::default()
        };
        let sqe = acquire.encode().with_nsid(NamespaceId(1));
        self.send_with_data(self.hosts[usize::from(which)].queue, sqe, &acquire.data());
    }

    fn register(&mut self, which: bool) {
        let host = self.hosts[usize::from(which)];
        let register = Register {
            action: Register::REPLACE,
            ignore_key: true,
            ..key(host)
        };
        let sqe = register.encode().with_nsid(NamespaceId(1));
        self.send_with_data(host.queue, sqe, &register.data());
    }

    /// The hosts look at what has come. True if there was anything.
    fn answer(&mut self) -> bool {
        let mut any = false;
        for host in self.hosts {
            for id in [host.admin, host.queue] {
                for reply in self.glue.replies(id) {
                    any = true;
                    let ended = match reply {
                        Reply::R2t(r2t) => {
                            let data = vec![7; r2t.r2tl as usize];
                            let bytes = self.glue.h2c(id, h2c_data(&r2t), &data);
                            self.glue.receive(id, &bytes);
                            None
                        }
                        Reply::Data { success, cid, .. } => success.then_some(cid),
                        Reply::Response(cqe) => Some(cqe.cid),
                        other => panic!("{other:?}"),
                    };
                    if let Some(cid) = ended {
                        assert!(self.outstanding.remove(&(id.index, cid)), "ended twice");
                    }
                }
            }
        }
        any
    }

    fn finish(mut self) {
        self.glue.unstarted = false;
        if let Some(last) = self.glue.deaf.take() {
            self.glue.resume(last);
        }
        while self.answer() || !self.glue.held.is_empty() {
            self.glue.finish_held();
        }
        assert!(
            self.outstanding.is_empty(),
            "never ended: {:?}",
            self.outstanding
        );
        for controller in &self.glue.target.subsystems()[0].controllers {
            assert_eq!(controller.executing, 0);
        }
        for host in self.hosts {
            assert_eq!(self.glue.conn(host.queue).buffers_bound(), 0);
        }
        let left = self.glue.target.ana_executing(SUBNQN, 1);
        assert_eq!(left.expect("a group"), 0);
    }
}

proptest! {
    #[test]
    fn every_command_ends_once_whoever_takes_whose_rights_meanwhile(
        operations in prop::collection::vec((0u8..16, any::<bool>(), any::<u8>()), 1..60),
    ) {
        let mut storm = Storm::new();
        for (kind, which, free) in operations {
            storm.operation(kind, which, free);
        }
        storm.finish();
    }
}
