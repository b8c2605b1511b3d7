//! Plays the glue of one host: sockets that are queues of bytes, and the buffers of its commands.

use std::collections::BTreeMap;

use bowline_nvme::{CommandId, Nanos, Sqe};
use bowline_nvmf::frame::crc32c;
use bowline_nvmf::host::{
    Command, Completion, ControllerConfig, HostController, HostEvent, Rx, SlotId, SubmitError,
    Transfer, TxPayload,
};

/// PDU type of a command capsule.
const CAPSULE_CMD: u8 = 4;

pub(crate) struct HostSide {
    pub(crate) host: HostController,
    buffers: BTreeMap<(u16, SlotId), Vec<u8>>,
    /// Queue and identifier of commands on the wire, by their tokens.
    pub(crate) sent: BTreeMap<u64, (u16, CommandId)>,
}

/// What the machine wants done, or tells.
pub(crate) enum Happened {
    Open(u16),
    /// Send these bytes, then close.
    Close(u16, Vec<u8>),
    Complete {
        completion: Completion,
        data: Vec<u8>,
    },
    Event(HostEvent),
}

impl HostSide {
    pub(crate) fn new(config: ControllerConfig) -> Self {
        Self {
            host: HostController::new(config),
            buffers: BTreeMap::new(),
            sent: BTreeMap::new(),
        }
    }

    pub(crate) fn buffers_bound(&self) -> usize {
        self.buffers.len()
    }

    pub(crate) fn next_event(&mut self, now: Nanos) -> Option<Happened> {
        Some(match self.host.poll_event(now)? {
            HostEvent::Open { queue } => Happened::Open(queue),
            HostEvent::Close { queue } => Happened::Close(queue, self.sent(queue)),
            HostEvent::Complete { queue, completion } => {
                let data = self.buffers.remove(&(queue, completion.slot));
                let data = data.expect("a completion of a command that is outstanding");
                self.sent.remove(&completion.token);
                Happened::Complete { completion, data }
            }
            event => Happened::Event(event),
        })
    }

    pub(crate) fn submit(
        &mut self,
        now: Nanos,
        queue: u16,
        sqe: Sqe,
        data: Vec<u8>,
        token: u64,
    ) -> Result<(), SubmitError> {
        let len = u32::try_from(data.len()).expect("small");
        let transfer = match (sqe.opcode() & 3, len) {
            (_, 0) => Transfer::None,
            (2, len) => Transfer::ToHost { len },
            (_, len) => Transfer::FromHost { len },
        };
        let command = Command {
            // In a place without a meaning, to know the command again when it is sent.
            sqe: sqe.with_cdw(3, u32::try_from(token).expect("few")),
            transfer,
            token,
        };
        let slot = self.host.submit(now, queue, command)?;
        let bound = self.buffers.insert((queue, slot), data);
        assert!(bound.is_none(), "one slot, two commands");
        Ok(())
    }

    /// Everything there is to send on a queue.
    pub(crate) fn sent(&mut self, queue: u16) -> Vec<u8> {
        let mut bytes = Vec::new();
        while let Some(output) = self.host.poll_output(queue) {
            let start = bytes.len();
            output.pdu.encode_into(&mut bytes);
            self.note(queue, &bytes[start..]);
            let payload = match output.payload {
                TxPayload::None => continue,
                TxPayload::Slot { slot, offset, len } => {
                    let buffer = self.buffers.get(&(queue, slot)).expect("bound");
                    &buffer[offset as usize..][..len as usize]
                }
                TxPayload::Control { offset, len } => {
                    &self.host.control(queue)[offset as usize..][..len as usize]
                }
            };
            bytes.extend_from_slice(payload);
            if output.pdu.data_digest() {
                bytes.extend_from_slice(&crc32c(payload).to_le_bytes());
            }
        }
        bytes
    }

    /// Keeps the identifier of a command that is sent.
    fn note(&mut self, queue: u16, pdu: &[u8]) {
        let Some(sqe) = pdu.get(8..72).filter(|_| pdu[0] == CAPSULE_CMD) else {
            return;
        };
        let token = u32::from_le_bytes([sqe[12], sqe[13], sqe[14], sqe[15]]);
        if token != 0 {
            let cid = CommandId(u16::from_le_bytes([sqe[2], sqe[3]]));
            self.sent.insert(token.into(), (queue, cid));
        }
    }

    /// Hands received bytes in, all of them.
    pub(crate) fn receive(&mut self, now: Nanos, queue: u16, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let rx = self.host.rx(queue);
            let used = match rx {
                Rx::Closed => return,
                Rx::Bytes => self.host.handle_bytes(now, queue, rest),
                Rx::Payload {
                    slot,
                    offset,
                    len,
                    digest_from,
                } => {
                    let buffer = self.buffers.get_mut(&(queue, slot)).expect("bound");
                    let landed = rest.len().min(len as usize);
                    let end = offset as usize + landed;
                    buffer[offset as usize..end].copy_from_slice(&rest[..landed]);
                    let crc = digest_from
                        .filter(|_| landed == len as usize)
                        .map(|begin| crc32c(&buffer[begin as usize..end]));
                    let count = u32::try_from(landed).expect("within len");
                    self.host.handle_payload(now, queue, count, crc);
                    landed
                }
            };
            assert!(
                used > 0 || self.host.rx(queue) != rx,
                "the queue neither takes bytes nor says why"
            );
            rest = &rest[used..];
        }
    }
}
