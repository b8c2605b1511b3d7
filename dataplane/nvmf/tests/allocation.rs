//! A command allocates nothing in the target once its queue exists.

use std::alloc::System;

use bowline_nvme::fabrics::{Connect, ConnectData, PropertySet, offset};
use bowline_nvme::nqn::Nqn;
use bowline_nvme::opcode::io as opcode;
use bowline_nvme::pdu::{CapsuleCmd, Digests, H2CData, IcReq};
use bowline_nvme::{CommandId, ControllerId, NamespaceId, Nanos, QueueId, Sgl, Sqe, Status};
use bowline_nvmf::frame::crc32c;
use bowline_nvmf::target::{
    ConnId, Deallocate, Hosts, NamespaceConfig, NamespaceHandle, NsGeometry, Output, Path,
    Persistence, Rx, SubsystemConfig, Target, TargetConfig,
};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const NQN: &str = "nqn.2026-11.io.bowline:test";
const BYTES_MAX: usize = 128 << 10;
const ROUNDS: usize = 256;

/// A glue with one buffer, which all slots share, and one reused vector to send from.
struct Glue {
    target: Target,
    now: Nanos,
    buffer: Vec<u8>,
    sent: Vec<u8>,
    digests: Digests,
}

impl Glue {
    fn feed(&mut self, id: ConnId, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let used = match self.target.rx(id) {
                Rx::Bytes => self.target.handle_bytes(self.now, id, bytes),
                Rx::Payload {
                    offset,
                    len,
                    digest_from,
                    ..
                } => {
                    let used = bytes.len().min(len as usize);
                    self.buffer[offset as usize..][..used].copy_from_slice(&bytes[..used]);
                    let end = offset as usize + used;
                    let crc = digest_from.map(|start| crc32c(&self.buffer[start as usize..end]));
                    self.target.handle_payload(
                        self.now,
                        id,
                        u32::try_from(used).expect("valid"),
                        crc,
                    );
                    used
                }
                other => panic!("{other:?}"),
            };
            bytes = &bytes[used..];
        }
        self.poll();
    }

    fn poll(&mut self) {
        while let Some(id) = self.target.poll_dirty() {
            while let Some(output) = self.target.poll_output(self.now, id) {
                match output {
                    Output::NeedBuffer { slot, .. } => {
                        self.target.handle_buffer(self.now, id, slot);
                    }
                    Output::Inspect { slot, len } => {
                        let data = &self.buffer[..len as usize];
                        self.target.inspect(self.now, id, slot, data);
                    }
                    Output::Execute { slot, .. } => {
                        self.target.complete(self.now, id, slot, Status::SUCCESS);
                    }
                    Output::Send { pdu, .. } => pdu.encode_into(&mut self.sent),
                    Output::Route { .. } => self.target.resume(self.now, id),
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    fn pdu(&self, header: &[u8], data: &[u8]) -> Vec<u8> {
        let mut bytes = header.to_vec();
        if self.digests.header {
            bytes.extend(crc32c(header).to_le_bytes());
        }
        bytes.extend(data);
        if self.digests.data && !data.is_empty() {
            bytes.extend(crc32c(data).to_le_bytes());
        }
        bytes
    }

    fn capsule(&self, sqe: Sqe, data: &[u8]) -> Vec<u8> {
        let len = u32::try_from(data.len()).expect("valid");
        let sqe = if len > 0 {
            sqe.with_sgl1(Sgl::in_capsule(len))
        } else {
            sqe
        };
        self.pdu(&CapsuleCmd { sqe }.encode(self.digests, 0, len), data)
    }

    fn connect(&mut self, qid: u16, cntlid: u16) -> ConnId {
        let id = self.target.open(self.now, Path::default()).expect("valid");
        let (header_digest, data_digest) = (self.digests.header, self.digests.data);
        self.feed(
            id,
            &IcReq {
                header_digest,
                data_digest,
                ..IcReq::default()
            }
            .encode(),
        );
        let sqsize = if qid == 0 { 31 } else { 127 };
        let command = Connect {
            qid: QueueId(qid),
            sqsize,
            ..Connect::default()
        }
        .with_sq_flow_control_disabled(true);
        let data = ConnectData {
            hostid: [1; 16],
            cntlid: ControllerId(cntlid),
            subnqn: Nqn::new(NQN).expect("valid"),
            hostnqn: Nqn::new("nqn.2026-11.io.bowline:host").expect("valid"),
        };
        let capsule = self.capsule(command.encode(), &data.encode());
        self.feed(id, &capsule);
        id
    }
}

fn glue(digests: Digests) -> (Glue, ConnId) {
    let now = Nanos::from_secs(1);
    let mut target = Target::new(TargetConfig::default());
    let config = SubsystemConfig {
        hosts: Hosts::Any,
        ..SubsystemConfig::new(NQN, "BL1")
    };
    target.add_subsystem(now, config).expect("valid");
    let geometry = NsGeometry {
        block_bytes: 512,
        blocks: 1 << 20,
        used_blocks: 1 << 20,
        volatile_cache: false,
        read_only: false,
        atomic_write_blocks: 1,
        optimal_io_blocks: 0,
        deallocate: Deallocate::None,
        deallocate_granularity_blocks: 0,
        write_zeroes: true,
        thin: false,
    };
    let handle = NamespaceHandle(0);
    let namespace = NamespaceConfig {
        nsid: None,
        handle,
        geometry,
        uuid: [1; 16],
        nguid: [1; 16],
        ana_group: None,
        persistence: Persistence::Unsupported,
        shared: false,
        allocation: None,
    };
    target.add_namespace(now, NQN, namespace).expect("valid");
    let sent = Vec::with_capacity(1 << 20);
    let mut glue = Glue {
        target,
        now,
        buffer: vec![0; BYTES_MAX],
        sent,
        digests,
    };
    let admin = glue.connect(0, 0xFFFF);
    let capsule = glue.capsule(
        PropertySet::dword(offset::CC, 0x0046_0001)
            .encode()
            .with_sgl1(Sgl::transport(0)),
        &[],
    );
    glue.feed(admin, &capsule);
    let cntlid = glue.target.subsystems()[0].controllers[0].cntlid;
    let queue = glue.connect(1, cntlid);
    (glue, queue)
}

/// What a host sends for a read, an in-capsule write, a flush, and the capsule of a large write.
fn commands(glue: &Glue) -> Vec<Vec<u8>> {
    let sqe = |opcode, cid, bytes: u32| {
        let nlb = u16::try_from((bytes / 512).max(1) - 1).expect("valid");
        Sqe::new(opcode)
            .with_nsid(NamespaceId(1))
            .with_cid(CommandId(cid))
            .with_nlb(nlb)
            .with_sgl1(Sgl::transport(bytes))
    };
    let large = u32::try_from(BYTES_MAX).expect("valid");
    vec![
        glue.capsule(sqe(opcode::READ, 1, 4096), &[]),
        glue.capsule(sqe(opcode::READ, 2, large), &[]),
        glue.capsule(sqe(opcode::WRITE, 3, 4096), &[7; 4096]),
        glue.capsule(sqe(opcode::FLUSH, 4, 0), &[]),
        glue.capsule(sqe(opcode::WRITE, 5, large), &[]),
    ]
}

#[test]
fn commands_allocate_nothing() {
    for (header, data) in [(false, false), (true, true)] {
        let (mut glue, queue) = glue(Digests { header, data });
        let commands = commands(&glue);
        let payload = vec![9; BYTES_MAX];
        let h2c = |glue: &Glue, ttag| {
            let datal = u32::try_from(BYTES_MAX).expect("valid");
            let pdu = H2CData {
                cccid: CommandId(5),
                ttag,
                datao: 0,
                datal,
                last: true,
            };
            glue.pdu(&pdu.encode(glue.digests, 0), &payload)
        };
        let mut responses = 0;
        // The first window fills free lists and timers; tags repeat after 32 uses of a slot. The
        // test runner's own thread may allocate now and then; what a command costs, every window
        // shows.
        let mut windows = [0; 4];
        for round in 0..ROUNDS {
            let mut allocations = 0;
            for (index, command) in commands.iter().enumerate() {
                glue.sent.clear();
                let region = Region::new(ALLOCATOR);
                glue.feed(queue, command);
                allocations += region.change().allocations + region.change().reallocations;
                if index == 4 {
                    let ttag = u16::from_le_bytes([glue.sent[10], glue.sent[11]]);
                    let data = h2c(&glue, ttag);
                    glue.sent.clear();
                    let region = Region::new(ALLOCATOR);
                    glue.feed(queue, &data);
                    allocations += region.change().allocations + region.change().reallocations;
                }
                responses += usize::from(!glue.sent.is_empty());
            }
            glue.now = glue.now + Nanos::from_secs(7);
            glue.target.handle_timeout(glue.now);
            windows[round * windows.len() / ROUNDS] += allocations;
        }
        assert_eq!(responses, ROUNDS * commands.len());
        assert!(windows[1..].contains(&0), "allocations: {windows:?}");
    }
}
