//! Tests that drive whole machines. The wire is bytes, so that splits and damage are real.

mod hostile;
mod joined;
mod queue;
mod script;
mod scripted;
mod world;

use std::collections::HashMap;

use bowline_nvme::fabrics::ConnectResult;
use bowline_nvme::nqn::Nqn;
use bowline_nvme::pdu::{C2HData, CapsuleResp, Digests, IcResp, R2t};
use bowline_nvme::{CommandId, ControllerId, Cqe, Nanos, QueueId, Sqe, Status};

use super::{
    CloseReason, Command, Completion, HostIdentity, HostQueue, HostQueueConfig, QueueEvent, Rx,
    SlotId, SubmitError, Transfer, TxPayload,
};
use crate::frame::crc32c;

const DIGESTS_ALL: [Digests; 4] = [
    Digests {
        header: false,
        data: false,
    },
    Digests {
        header: true,
        data: false,
    },
    Digests {
        header: false,
        data: true,
    },
    Digests {
        header: true,
        data: true,
    },
];

fn nqn(name: &str) -> Nqn {
    Nqn::new(name).expect("a valid name")
}

fn identity() -> HostIdentity {
    HostIdentity {
        hostnqn: nqn("nqn.2026-11.io.bowline:host"),
        hostid: [7; 16],
        subnqn: nqn("nqn.2026-11.io.bowline:subsystem"),
    }
}

fn queue_config() -> HostQueueConfig {
    HostQueueConfig {
        qid: QueueId(1),
        cntlid: ControllerId(5),
        entries: 8,
        reserved: 0,
        digests: Digests::NONE,
        keep_alive_ms: 5000,
        sq_flow_control: false,
        in_capsule_bytes: 4096,
        setup_timeout: Nanos::from_secs(3),
        command_timeout: Some(Nanos::from_secs(8)),
    }
}

fn ic_resp(digests: Digests) -> IcResp {
    IcResp {
        pfv: 0,
        cpda: 0,
        header_digest: digests.header,
        data_digest: digests.data,
        maxh2cdata: 8192,
    }
}

/// A header as it goes over the wire: with its digest.
fn with_header_digest(header: &[u8], digests: Digests) -> Vec<u8> {
    let mut bytes = header.to_vec();
    if digests.header {
        bytes.extend_from_slice(&crc32c(header).to_le_bytes());
    }
    bytes
}

fn response(cid: CommandId, status: Status, result: u64, digests: Digests) -> Vec<u8> {
    let cqe = Cqe {
        cid,
        status,
        result,
        ..Cqe::default()
    };
    with_header_digest(&CapsuleResp { cqe }.encode(digests), digests)
}

fn c2h_data(data: C2HData, payload: &[u8], digests: Digests) -> Vec<u8> {
    let mut bytes = with_header_digest(&data.encode(digests, 0), digests);
    bytes.extend_from_slice(payload);
    if digests.data {
        bytes.extend_from_slice(&crc32c(payload).to_le_bytes());
    }
    bytes
}

fn r2t(cccid: CommandId, ttag: u16, r2to: u32, r2tl: u32, digests: Digests) -> Vec<u8> {
    with_header_digest(
        &R2t {
            cccid,
            ttag,
            r2to,
            r2tl,
        }
        .encode(digests),
        digests,
    )
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len)
        .map(|at| u8::try_from(at % 251).expect("below 251"))
        .collect()
}

/// The owner of one queue: its command buffers and what it was told.
struct Owner {
    queue: HostQueue,
    buffers: HashMap<SlotId, Vec<u8>>,
    events: Vec<QueueEvent>,
    now: Nanos,
}

impl Owner {
    fn new(config: HostQueueConfig) -> Self {
        let now = Nanos::from_secs(100);
        let queue = HostQueue::new(now, &identity(), config);
        Self {
            queue,
            buffers: HashMap::new(),
            events: Vec::new(),
            now,
        }
    }

    /// A queue that went through ICReq and Connect.
    fn connected(config: HostQueueConfig) -> Self {
        let mut owner = Self::new(config);
        owner.sent();
        owner.receive(&ic_resp(config.digests).encode());
        owner.sent();
        let result = ConnectResult {
            cntlid: config.cntlid,
            authentication_required: false,
            secure_channel_required: false,
        };
        let cid = owner.only_outstanding();
        owner.receive(&response(
            cid,
            Status::SUCCESS,
            result.encode(),
            config.digests,
        ));
        assert_eq!(
            owner.take_events(),
            [QueueEvent::Ready {
                cntlid: config.cntlid
            }]
        );
        owner
    }

    fn only_outstanding(&self) -> CommandId {
        let mut used = self.queue.slots.iter_used();
        let cid = used.next().expect("a command is outstanding").1.sqe.cid();
        assert!(used.next().is_none(), "only one command is outstanding");
        cid
    }

    fn cid(&self, slot: SlotId) -> CommandId {
        self.queue.slots.slot(slot).sqe.cid()
    }

    fn submit(&mut self, sqe: Sqe, transfer: Transfer, token: u64) -> Result<SlotId, SubmitError> {
        self.queue.submit(
            self.now,
            Command {
                sqe,
                transfer,
                token,
            },
        )
    }

    fn read(&mut self, len: u32, token: u64) -> SlotId {
        let sqe = super::command::read(bowline_nvme::NamespaceId(1), 0, 0);
        let slot = self
            .submit(sqe, Transfer::ToHost { len }, token)
            .expect("room");
        self.buffers.insert(slot, vec![0; len as usize]);
        slot
    }

    fn write(&mut self, data: &[u8], token: u64) -> SlotId {
        let sqe = super::command::write(bowline_nvme::NamespaceId(1), 0, 0, false);
        let len = u32::try_from(data.len()).expect("small");
        let slot = self
            .submit(sqe, Transfer::FromHost { len }, token)
            .expect("room");
        self.buffers.insert(slot, data.to_vec());
        slot
    }

    /// Everything there is to send, as bytes.
    fn sent(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while let Some(output) = self.queue.poll_output() {
            output.pdu.encode_into(&mut bytes);
            let payload = match output.payload {
                TxPayload::None => continue,
                TxPayload::Slot { slot, offset, len } => {
                    self.buffers[&slot][offset as usize..(offset + len) as usize].to_vec()
                }
                TxPayload::Control { offset, len } => {
                    self.queue.control()[offset as usize..(offset + len) as usize].to_vec()
                }
            };
            bytes.extend_from_slice(&payload);
            if output.pdu.data_digest() {
                bytes.extend_from_slice(&crc32c(&payload).to_le_bytes());
            }
        }
        bytes
    }

    fn receive(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let taken = match self.queue.rx() {
                Rx::Closed => break,
                Rx::Bytes => self.queue.handle_bytes(self.now, rest),
                Rx::Payload {
                    slot,
                    offset,
                    len,
                    digest_from,
                } => {
                    let buffer = self.buffers.get_mut(&slot).expect("a buffer is bound");
                    let landed = rest.len().min(len as usize);
                    let end = offset as usize + landed;
                    buffer[offset as usize..end].copy_from_slice(&rest[..landed]);
                    let crc = digest_from
                        .filter(|_| landed == len as usize)
                        .map(|begin| crc32c(&buffer[begin as usize..end]));
                    let count = u32::try_from(landed).expect("within len");
                    self.queue.handle_payload(self.now, count, crc);
                    landed
                }
            };
            assert!(taken > 0, "the queue neither takes bytes nor says why");
            rest = &rest[taken..];
        }
        while let Some(event) = self.queue.poll_event() {
            self.events.push(event);
        }
    }

    fn take_events(&mut self) -> Vec<QueueEvent> {
        while let Some(event) = self.queue.poll_event() {
            self.events.push(event);
        }
        std::mem::take(&mut self.events)
    }

    fn completions(&mut self) -> Vec<Completion> {
        let completion = |event| match event {
            QueueEvent::Complete(completion) => Some(completion),
            _ => None,
        };
        self.take_events()
            .into_iter()
            .filter_map(completion)
            .collect()
    }

    fn closed(&mut self) -> Option<CloseReason> {
        self.take_events()
            .into_iter()
            .find_map(|event| match event {
                QueueEvent::Closed(reason) => Some(reason),
                _ => None,
            })
    }
}
