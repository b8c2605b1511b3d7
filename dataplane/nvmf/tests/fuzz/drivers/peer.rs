//! The host's end of one connection: sends PDUs, right and wrong, and judges every answer.

use bowline_nvme::fabrics::ConnectResult;
use bowline_nvme::opcode::admin;
use bowline_nvme::pdu::{CapsuleCmd, Digests, Direction, H2CData, IcReq, R2t};
use bowline_nvme::{CommandId, Nanos, Sqe, Status};
use bowline_nvmf::frame::{Event, FrameReader, Header, crc32c};
use bowline_nvmf::target::{ConnId, TargetConfig};

use super::conduct::HostConduct;
use super::referee::Referee;

/// Commands a queue takes at a time, whatever its size: the smallest size that is ever asked for.
const QUEUE_MIN: usize = 16;

pub(crate) struct Peer {
    pub(crate) id: ConnId,
    pub(crate) digests: Digests,
    hpda: u8,
    /// Understands what was sent as the target must have.
    mirror: FrameReader,
    reader: FrameReader,
    /// Knows what the target has to say to what was sent.
    pub(crate) referee: Referee<HostConduct>,
    /// When it was told that it broke the protocol.
    pub(crate) told: Option<Nanos>,
    /// Bytes that the target has not taken yet.
    pub(crate) unsent: Vec<u8>,
    /// Commands the target has received and not answered.
    pub(crate) outstanding: Vec<Sqe>,
    /// R2Ts with data still to be sent, as far as it was.
    pub(crate) r2ts: Vec<R2t>,
    connects: Vec<(CommandId, u16)>,
    /// The queue this became, and its controller.
    pub(crate) queue: Option<(u16, u16)>,
    /// Nothing was sent that a target may end the connection for.
    pub(crate) honest: bool,
    /// Several commands had one id: which of them an answer was for cannot be told.
    pub(crate) ambiguous: bool,
    next_cid: u16,
    pub(crate) reads: Vec<Vec<u8>>,
    pub(crate) responses: u64,
}

impl Peer {
    pub(crate) fn new(id: ConnId, config: &TargetConfig) -> Self {
        let conduct = HostConduct::new(config.icd_bytes, config.maxh2cdata_bytes);
        Self {
            id,
            digests: Digests::NONE,
            hpda: 0,
            mirror: FrameReader::new(Direction::HostToController),
            reader: FrameReader::new(Direction::ControllerToHost),
            referee: Referee::new(Direction::HostToController, conduct),
            told: None,
            unsent: Vec::new(),
            outstanding: Vec::new(),
            r2ts: Vec::new(),
            connects: Vec::new(),
            queue: None,
            honest: true,
            ambiguous: false,
            next_cid: 0,
            reads: Vec::new(),
            responses: 0,
        }
    }

    pub(crate) fn icreq(&mut self, digests: Digests, hpda: u8) {
        (self.digests, self.hpda) = (digests, hpda & 31);
        let icreq = IcReq {
            pfv: 0,
            hpda: self.hpda,
            header_digest: digests.header,
            data_digest: digests.data,
            maxr2t: 0,
        };
        self.unsent.extend(icreq.encode());
    }

    pub(crate) fn next_cid(&mut self) -> CommandId {
        self.next_cid = self.next_cid.wrapping_add(1);
        CommandId(self.next_cid)
    }

    pub(crate) fn command(&mut self, sqe: Sqe, data: &[u8]) {
        let len = u32::try_from(data.len()).expect("short");
        let header = CapsuleCmd { sqe }.encode(self.digests, 0, len);
        self.pdu(&header, data);
        // Answers are read before anything is sent, so these are all that count.
        self.honest &= self.queue.is_some() && self.outstanding.len() < QUEUE_MIN;
    }

    pub(crate) fn connect(&mut self, qid: u16, sqe: Sqe, data: &[u8]) {
        let cid = self.next_cid();
        self.connects.push((cid, qid));
        let honest = self.honest && self.outstanding.is_empty();
        self.command(sqe.with_cid(cid), data);
        self.honest = honest;
    }

    pub(crate) fn h2c_data(&mut self, pdu: H2CData, data: &[u8]) {
        let header = pdu.encode(self.digests, 0);
        self.pdu(&header, data);
    }

    fn pdu(&mut self, header: &[u8], data: &[u8]) {
        self.unsent.extend(header);
        if self.digests.header {
            self.unsent.extend(crc32c(header).to_le_bytes());
        }
        self.unsent.extend(data);
        if self.digests.data && !data.is_empty() {
            self.unsent.extend(crc32c(data).to_le_bytes());
        }
    }

    /// Whether the target is in the middle of a PDU.
    pub(crate) fn is_between_pdus(&self) -> bool {
        self.unsent.is_empty() && self.mirror.is_between_pdus()
    }

    /// The target took `count` of the unsent bytes, and listened or did not.
    pub(crate) fn was_taken(&mut self, count: usize, is_heard: bool) {
        let taken: Vec<u8> = self.unsent.drain(..count).collect();
        let outstanding = self.outstanding.len();
        self.mirror(&taken);
        let conduct = &mut self.referee.rules;
        (conduct.outstanding, conduct.is_ambiguous) = (outstanding, self.ambiguous);
        conduct.is_io = self.queue.is_some_and(|(qid, _)| qid != 0);
        conduct.outstanding_max = if self.queue.is_some() {
            QUEUE_MIN - 1
        } else {
            1
        };
        if is_heard {
            self.referee.see(&taken);
        }
    }

    fn mirror(&mut self, taken: &[u8]) {
        let mut rest = taken;
        while !rest.is_empty() {
            let due = self.mirror.payload_remaining() as usize;
            let used = if due > 0 {
                let landed = rest.len().min(due);
                let count = u32::try_from(landed).expect("within due");
                self.mirror.advance_payload(count, None);
                landed
            } else {
                self.mirror.handle(rest)
            };
            rest = &rest[used..];
            while let Some(event) = self.mirror.poll_event() {
                match event {
                    Event::Header(Header::IcReq(icreq)) => {
                        self.digests = icreq.digests();
                        self.mirror.set_digests(self.digests);
                    }
                    Event::Header(Header::CapsuleCmd(capsule)) => {
                        self.ambiguous |= self.is_outstanding(capsule.sqe.cid());
                        self.outstanding.push(capsule.sqe);
                    }
                    _ => {}
                }
            }
        }
    }

    /// Takes everything the target sent, and judges it.
    pub(crate) fn read(&mut self, sent: &[u8]) {
        let mut rest = sent;
        let mut begin = 0;
        loop {
            if self.reader.is_between_pdus() {
                begin = sent.len() - rest.len();
            }
            let used = self.reader.handle(rest);
            rest = &rest[used..];
            let Some(event) = self.reader.poll_event() else {
                assert!(rest.is_empty(), "half a PDU");
                assert!(self.reader.is_between_pdus(), "half a PDU");
                return;
            };
            let Event::Header(header) = event else {
                assert!(!matches!(event, Event::Violation(_)), "{event:?}");
                continue;
            };
            match header {
                Header::IcResp(resp) => {
                    assert_eq!(resp.digests(), self.digests);
                    self.reader.set_digests(self.digests);
                }
                Header::CapsuleResp(resp) => {
                    let sqe = self.answered(resp.cqe.cid, resp.cqe.status);
                    self.responses += 1;
                    if !resp.cqe.status.same_code(Status::CID_CONFLICT) {
                        self.referee.rules.answered(resp.cqe.cid);
                        self.r2ts.retain(|r2t| r2t.cccid != resp.cqe.cid);
                    }
                    let connect = self.connects.iter().find(|(cid, _)| *cid == resp.cqe.cid);
                    if let Some(&(_, qid)) = connect
                        && sqe.opcode() == admin::FABRICS
                        && resp.cqe.status.is_success()
                    {
                        let result = ConnectResult::decode(resp.cqe.result);
                        self.queue = Some((qid, result.cntlid.0));
                    }
                }
                Header::R2t(r2t) => self.r2t(r2t),
                Header::C2HData(data) => {
                    let alignment = (usize::from(self.hpda) + 1) * 4;
                    let offset = sent.len() - rest.len() - begin;
                    assert!(
                        offset.is_multiple_of(alignment),
                        "data not where HPDA wants it"
                    );
                    let (bytes, later) = rest.split_at(data.datal as usize);
                    self.reader.advance_payload(data.datal, Some(crc32c(bytes)));
                    self.reads.push(bytes.to_vec());
                    rest = later;
                    assert!(self.is_outstanding(data.cccid), "data for no command");
                    if data.success {
                        self.answered(data.cccid, Status::SUCCESS);
                        self.responses += 1;
                    }
                }
                Header::TermReq(term) => {
                    self.referee.told(&term);
                    assert!(
                        !self.honest,
                        "an honest host was told that it broke the protocol"
                    );
                }
                other => panic!("a controller does not send {other:?}"),
            }
        }
    }

    fn is_outstanding(&self, cid: CommandId) -> bool {
        self.outstanding.iter().any(|sqe| sqe.cid() == cid)
    }

    /// Of several commands with one id, all but the first are refused for it.
    fn answered(&mut self, cid: CommandId, status: Status) -> Sqe {
        let found = if status.same_code(Status::CID_CONFLICT) {
            self.outstanding.iter().rposition(|sqe| sqe.cid() == cid)
        } else {
            self.outstanding.iter().position(|sqe| sqe.cid() == cid)
        };
        self.outstanding
            .remove(found.expect("a response to no command"))
    }

    fn r2t(&mut self, r2t: R2t) {
        let wanted = self
            .outstanding
            .iter()
            .find(|sqe| sqe.cid() == r2t.cccid && sqe.sgl1().length > 0);
        let len = wanted.expect("R2T for a command with data").sgl1().length;
        let end = r2t.r2to.checked_add(r2t.r2tl).expect("no wrap");
        assert!(
            r2t.r2tl > 0 && end <= len || self.has_twins(r2t.cccid),
            "R2T beyond the data"
        );
        let same = |other: &R2t| other.ttag == r2t.ttag;
        assert!(!self.r2ts.iter().any(same), "two R2Ts with one tag");
        self.referee.rules.asked(&r2t);
        self.r2ts.push(r2t);
    }

    /// Several commands with one id: which of them is meant cannot be told.
    fn has_twins(&self, cid: CommandId) -> bool {
        let twins = self.outstanding.iter().filter(|sqe| sqe.cid() == cid);
        twins.count() > 1
    }
}
