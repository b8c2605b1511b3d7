//! Random valid commands, many at a time, against the simplest model of a disk.

use std::collections::HashMap;

use bowline_nvme::opcode::io as opcode;
use bowline_nvme::pdu::{Digests, H2CData};
use bowline_nvme::{CommandId, NamespaceId, Sgl, Sqe, Status};
use bowline_nvmf::target::{ConnId, TargetConfig};
use proptest::prelude::*;

use crate::glue::{BLOCK, Glue, Reply, io, pattern};

const BLOCKS: u64 = 256;

#[derive(Clone, Copy, Debug)]
enum Action {
    Read {
        lba: u64,
        blocks: u32,
    },
    Write {
        lba: u64,
        blocks: u32,
        seed: u8,
        in_capsule: bool,
        pieces: u32,
    },
    Zero {
        lba: u64,
        blocks: u32,
    },
    Flush,
    /// Let what is at the device finish.
    Finish,
}

fn action() -> impl Strategy<Value = Action> {
    let range = || (0..BLOCKS - 64, 1u32..64);
    prop_oneof![
        4 => range().prop_map(|(lba, blocks)| Action::Read { lba, blocks }),
        5 => (range(), any::<u8>(), any::<bool>(), 1u32..5).prop_map(
            |((lba, blocks), seed, in_capsule, pieces)| {
                let in_capsule = in_capsule && blocks <= 32;
                Action::Write { lba, blocks, seed, in_capsule, pieces }
            },
        ),
        1 => range().prop_map(|(lba, blocks)| Action::Zero { lba, blocks }),
        1 => Just(Action::Flush),
        3 => Just(Action::Finish),
    ]
}

/// What the host waits for.
enum Expected {
    Data(Vec<u8>),
    Success,
}

struct Host {
    glue: Glue,
    queue: ConnId,
    disk: Vec<u8>,
    expected: HashMap<CommandId, Expected>,
    /// Data that R2Ts will ask for, and in how many PDUs it goes.
    writes: HashMap<CommandId, (Vec<u8>, u32)>,
}

impl Host {
    fn start(&mut self, action: Action) {
        let range = |lba: u64, blocks: u32| {
            let start = usize::try_from(lba).expect("small") * BLOCK as usize;
            start..start + (blocks * BLOCK) as usize
        };
        match action {
            Action::Read { lba, blocks } => {
                // Order among commands is the device's; ours runs them as they come.
                let cid = self.glue.send(self.queue, io(opcode::READ, lba, blocks));
                let data = self.disk[range(lba, blocks)].to_vec();
                self.expected.insert(cid, Expected::Data(data));
            }
            Action::Write {
                lba,
                blocks,
                seed,
                in_capsule,
                pieces,
            } => {
                let data = pattern(seed, (blocks * BLOCK) as usize);
                self.disk[range(lba, blocks)].copy_from_slice(&data);
                let sqe = io(opcode::WRITE, lba, blocks);
                let cid = if in_capsule {
                    self.glue.send_with_data(self.queue, sqe, &data)
                } else {
                    let cid = self.glue.send(self.queue, sqe);
                    self.writes.insert(cid, (data, pieces));
                    cid
                };
                self.expected.insert(cid, Expected::Success);
                // The model writes at once: so must the disk, before a later command reads.
                self.serve();
            }
            Action::Zero { lba, blocks } => {
                self.disk[range(lba, blocks)].fill(0);
                let sqe = io(opcode::WRITE_ZEROES, lba, blocks).with_sgl1(Sgl::transport(0));
                let cid = self.glue.send(self.queue, sqe);
                self.expected.insert(cid, Expected::Success);
            }
            Action::Flush => {
                let sqe = Sqe::new(opcode::FLUSH)
                    .with_nsid(NamespaceId(1))
                    .with_sgl1(Sgl::transport(0));
                let cid = self.glue.send(self.queue, sqe);
                self.expected.insert(cid, Expected::Success);
            }
            Action::Finish => self.glue.finish_held(),
        }
        self.serve();
    }

    fn serve(&mut self) {
        loop {
            let replies = self.glue.replies(self.queue);
            if replies.is_empty() {
                return;
            }
            for reply in replies {
                self.take(reply);
            }
        }
    }

    fn take(&mut self, reply: Reply) {
        match reply {
            Reply::R2t(r2t) => {
                let (data, pieces) = self.writes[&r2t.cccid].clone();
                let step = (r2t.r2tl / pieces).max(4) & !3;
                let end = r2t.r2to + r2t.r2tl;
                let mut datao = r2t.r2to;
                while datao < end {
                    let datal = step.min(end - datao);
                    let last = datao + datal == end;
                    let pdu = H2CData {
                        cccid: r2t.cccid,
                        ttag: r2t.ttag,
                        datao,
                        datal,
                        last,
                    };
                    let range = datao as usize..(datao + datal) as usize;
                    let bytes = self.glue.h2c(self.queue, pdu, &data[range]);
                    self.glue.receive(self.queue, &bytes);
                    datao += datal;
                }
            }
            Reply::Data {
                cid,
                bytes,
                success,
                ..
            } => {
                assert!(success);
                let Some(Expected::Data(data)) = self.expected.remove(&cid) else {
                    panic!("no read has the id {cid}")
                };
                assert!(bytes == data, "command {cid} read something else");
            }
            Reply::Response(cqe) => {
                assert_eq!(cqe.status, Status::SUCCESS);
                let found = self.expected.remove(&cqe.cid);
                assert!(matches!(found, Some(Expected::Success)));
            }
            other => panic!("{other:?}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn disk_behaves_like_an_array_of_blocks(
        actions in proptest::collection::vec(action(), 1..80),
        digests in (any::<bool>(), any::<bool>()),
        chunk in 1usize..5000,
        maxh2cdata in 1u32..5,
        hold in any::<bool>(),
    ) {
        let digests = Digests { header: digests.0, data: digests.1 };
        let maxh2cdata_bytes = maxh2cdata * 4096;
        let mut glue = Glue::with(TargetConfig { maxh2cdata_bytes, ..TargetConfig::default() });
        glue.chunk = chunk;
        let (_, queue) = glue.queues(digests);
        glue.hold_io = hold;
        let disk = vec![0; glue.disks[&1].len()];
        let mut host =
            Host { glue, queue, disk, expected: HashMap::new(), writes: HashMap::new() };
        for action in actions {
            host.start(action);
        }
        host.glue.hold_io = false;
        host.glue.finish_held();
        host.serve();
        prop_assert!(host.expected.is_empty());
        prop_assert!(host.glue.disks[&1] == host.disk);
    }
}
