//! What a controller sends: every PDU is checked against the command it names.

use bowline_nvme::pdu::{C2HData, Direction, Fes, IcResp, R2t, Violation};
use bowline_nvme::{Cqe, Nanos, Status};

use super::close_reason::CloseReason;
use super::queue::{HostQueue, Rx, State};
use super::slots::{Grant, SlotId, Transfer};
use crate::frame::{Event, FrameReader, Header, crc32c};

/// Byte offsets in PDU headers, for FEI.
const CCCID: u32 = 8;
const DGST: u32 = 11;
const DATAO: u32 = 12;
const CQE_SQHD: u32 = 16;
const CQE_CID: u32 = 20;
const FLAGS: u32 = 1;

/// The stream's position.
#[derive(Debug)]
pub(super) struct Receiver {
    frame: FrameReader,
    landing: Option<Landing>,
}

/// The C2HData PDU whose data is arriving.
#[derive(Debug, Clone, Copy)]
struct Landing {
    slot: SlotId,
    /// Offset of the PDU's data in the command's data.
    datao: u32,
    internal: bool,
    last: bool,
    success: bool,
}

impl Receiver {
    pub(super) fn new() -> Self {
        Self {
            frame: FrameReader::new(Direction::ControllerToHost),
            landing: None,
        }
    }
}

impl HostQueue {
    /// What to do with the next received bytes.
    #[must_use]
    pub fn rx(&self) -> Rx {
        if self.state == State::Closed {
            return Rx::Closed;
        }
        match (
            self.receiver.frame.payload_remaining(),
            self.receiver.landing,
        ) {
            (len @ 1.., Some(landing)) if !landing.internal => Rx::Payload {
                slot: landing.slot,
                offset: self.slots.slot(landing.slot).moved,
                len,
                digest_from: self
                    .receiver
                    .frame
                    .has_data_digest()
                    .then_some(landing.datao),
            },
            _ => Rx::Bytes,
        }
    }

    /// Takes bytes until the input is used up or a user command's data is next, and says how
    /// many. Of a closed connection all bytes are taken, and ignored.
    pub fn handle_bytes(&mut self, now: Nanos, input: &[u8]) -> usize {
        let mut rest = input;
        while !rest.is_empty() && self.state != State::Closed {
            let taken = match (
                self.receiver.frame.payload_remaining(),
                self.receiver.landing,
            ) {
                (0, _) => self.receiver.frame.handle(rest),
                (_, Some(landing)) if !landing.internal => break,
                (remaining, _) => self.land_internal(remaining, rest),
            };
            rest = rest.get(taken..).unwrap_or_default();
            self.drain_frame(now);
        }
        if self.state == State::Closed {
            input.len()
        } else {
            input.len() - rest.len()
        }
    }

    /// `landed` bytes of data are in the buffer that [`Rx::Payload`] named; `crc` as it asked.
    pub fn handle_payload(&mut self, now: Nanos, landed: u32, crc: Option<u32>) {
        let Some(landing) = self.receiver.landing else {
            return;
        };
        if self.state == State::Closed {
            return;
        }
        let landed = landed.min(self.receiver.frame.payload_remaining());
        self.slots.slot_mut(landing.slot).moved += landed;
        self.receiver.frame.advance_payload(landed, crc);
        self.drain_frame(now);
    }

    /// Copies data of one of the queue's own commands into the control buffer.
    fn land_internal(&mut self, remaining: u32, input: &[u8]) -> usize {
        let Some(landing) = self.receiver.landing else {
            return input.len();
        };
        let begin = self.slots.slot(landing.slot).moved;
        // Every bound was checked when the header came: the transfer fits the control buffer.
        let room = self.control.get_mut(begin as usize..).unwrap_or_default();
        let len = input.len().min(room.len()).min(remaining as usize);
        room[..len].copy_from_slice(&input[..len]);
        let landed = u32::try_from(len).unwrap_or(remaining);
        self.slots.slot_mut(landing.slot).moved += landed;
        let complete = landed == remaining && self.receiver.frame.has_data_digest();
        let crc = complete.then(|| {
            let end = begin as usize + len;
            crc32c(&self.control[landing.datao as usize..end])
        });
        self.receiver.frame.advance_payload(landed, crc);
        len
    }

    fn drain_frame(&mut self, now: Nanos) {
        while self.state != State::Closed {
            match self.receiver.frame.poll_event() {
                None => return,
                Some(Event::Header(header)) => {
                    if let Err(violation) = self.on_header(now, &header) {
                        self.violated(violation);
                    }
                }
                Some(Event::Violation(violation)) => self.violated(violation),
                Some(Event::DigestOk) => self.on_data_end(true),
                Some(Event::DigestMismatch) => self.on_data_end(false),
                // With a data digest, data that nobody checked is not to be trusted.
                Some(Event::PayloadEnd) => self.on_data_end(!self.config.digests.data),
            }
        }
    }

    fn violated(&mut self, violation: Violation) {
        let header = self.receiver.frame.header_bytes();
        let mut quoted = [0; 128];
        let len = header.len().min(quoted.len());
        quoted[..len].copy_from_slice(&header[..len]);
        self.violate(violation, &quoted[..len]);
    }

    fn on_header(&mut self, now: Nanos, header: &Header) -> Result<(), Violation> {
        match (self.state, header) {
            (_, Header::TermReq(request)) => {
                self.close(CloseReason::Terminated {
                    fes: request.fes,
                    fei: request.fei,
                });
                Ok(())
            }
            (State::AwaitIcResp, Header::IcResp(response)) => self.on_ic_resp(now, response),
            (State::AwaitConnect | State::Ready, Header::CapsuleResp(response)) => {
                self.on_response(&response.cqe)
            }
            (State::AwaitConnect | State::Ready, Header::C2HData(data)) => self.on_data(data),
            (State::AwaitConnect | State::Ready, Header::R2t(r2t)) => self.on_r2t(r2t),
            _ => Err(Violation::new(Fes::SEQUENCE_ERROR)),
        }
    }

    fn on_ic_resp(&mut self, now: Nanos, response: &IcResp) -> Result<(), Violation> {
        // A controller may neither add a digest nor leave one out. [TCP-1.0 §3.6.2.2]
        if response.digests() != self.config.digests {
            return Err(Violation::unsupported(DGST));
        }
        self.receiver.frame.set_digests(self.config.digests);
        self.connect(now, response);
        Ok(())
    }

    fn on_response(&mut self, cqe: &Cqe) -> Result<(), Violation> {
        let id = self
            .slots
            .find_sent(cqe.cid)
            .ok_or(Violation::field(CQE_CID))?;
        if self.config.sq_flow_control && cqe.sqhd >= self.config.entries {
            return Err(Violation::field(CQE_SQHD));
        }
        let slot = self.slots.slot(id);
        let unsent = matches!(slot.transfer, Transfer::FromHost { len } if slot.moved < len);
        // A controller may refuse a command early, yet cannot have executed it without its data.
        if cqe.status.is_success() && unsent {
            return Err(Violation::new(Fes::SEQUENCE_ERROR));
        }
        self.finish(id, cqe);
        Ok(())
    }

    fn on_data(&mut self, data: &C2HData) -> Result<(), Violation> {
        let id = self
            .slots
            .find_sent(data.cccid)
            .ok_or(Violation::field(CCCID))?;
        // SUCCESS stands for a completion that says nothing else, so not even SQHD. [TCP-1.0
        // §3.6.2.7]
        if data.success && self.config.sq_flow_control {
            return Err(Violation::field(FLAGS));
        }
        let slot = self.slots.slot(id);
        let Transfer::ToHost { len } = slot.transfer else {
            return Err(Violation::field(CCCID));
        };
        if slot.data_ended {
            return Err(Violation::new(Fes::SEQUENCE_ERROR));
        }
        let end = data.datao.checked_add(data.datal);
        if data.datao != slot.moved || end.is_none_or(|end| end > len) {
            return Err(Violation {
                fes: Fes::DATA_OUT_OF_RANGE,
                fei: DATAO,
            });
        }
        self.receiver.landing = Some(Landing {
            slot: id,
            datao: data.datao,
            internal: slot.internal,
            last: data.last,
            success: data.success,
        });
        Ok(())
    }

    fn on_data_end(&mut self, intact: bool) {
        let Some(landing) = self.receiver.landing.take() else {
            return;
        };
        let slot = self.slots.slot_mut(landing.slot);
        slot.digest_failed |= !intact;
        slot.data_ended = landing.last;
        if landing.success {
            let cid = slot.sqe.cid();
            let cqe = Cqe {
                cid,
                status: Status::SUCCESS,
                ..Cqe::default()
            };
            self.finish(landing.slot, &cqe);
        }
    }

    fn on_r2t(&mut self, r2t: &R2t) -> Result<(), Violation> {
        let id = self
            .slots
            .find_sent(r2t.cccid)
            .ok_or(Violation::field(CCCID))?;
        let slot = self.slots.slot_mut(id);
        let Transfer::FromHost { len } = slot.transfer else {
            return Err(Violation::field(CCCID));
        };
        // MAXR2T of our ICReq allows one at a time. [TCP-1.0 §3.3.2.1]
        if slot.grant.is_some() {
            return Err(Violation::new(Fes::LIMIT_EXCEEDED));
        }
        let end = r2t.r2to.checked_add(r2t.r2tl).filter(|end| *end <= len);
        match end {
            Some(end) if r2t.r2to == slot.moved && r2t.r2tl > 0 => {
                slot.grant = Some(Grant {
                    ttag: r2t.ttag,
                    end,
                });
                self.granted.push_back(id);
                Ok(())
            }
            _ => Err(Violation {
                fes: Fes::DATA_OUT_OF_RANGE,
                fei: DATAO,
            }),
        }
    }
}
