//! Judges what is sent to a machine, from the specification and without the machine's code: what is
//! wrong with it, and so which TermReq has to follow. [TCP-1.0 §3.5]

use bowline_nvme::pdu::{Digests, Direction, TermReq};
use bowline_nvmf::frame::crc32c;

/// Fatal error statuses.
pub(crate) const FIELD: u16 = 1;
pub(crate) const SEQUENCE: u16 = 2;
const HEADER_DIGEST: u16 = 3;
pub(crate) const RANGE: u16 = 4;
pub(crate) const LIMIT: u16 = 5;
pub(crate) const UNSUPPORTED: u16 = 6;

/// PDU types.
pub(crate) const IC_REQ: u8 = 0;
pub(crate) const IC_RESP: u8 = 1;
pub(crate) const H2C_TERM_REQ: u8 = 2;
pub(crate) const C2H_TERM_REQ: u8 = 3;
pub(crate) const CAPSULE_CMD: u8 = 4;
pub(crate) const CAPSULE_RESP: u8 = 5;
pub(crate) const H2C_DATA: u8 = 6;
pub(crate) const C2H_DATA: u8 = 7;
pub(crate) const R2T: u8 = 9;

const FLAG_HDGST: u8 = 1;
const FLAG_DDGST: u8 = 2;
const PDO_MAX: usize = 128;
const COMMON_BYTES: usize = 8;

/// What is wrong with one PDU. Any of its `reasons` may be told.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    /// FES, and the byte in which the header is wrong.
    reasons: Vec<(u16, u32)>,
    /// The header as it came, without its digest.
    header: Vec<u8>,
    /// It has to be told. Otherwise the receiver may also overlook it, or see it later.
    must: bool,
}

impl Fault {
    /// The same, which has to be told or not.
    pub(crate) fn owed(self, must: bool) -> Self {
        Self { must, ..self }
    }

    /// Whether this TermReq tells of it: a reason that is one, and the header that it is about.
    fn is_told_by(&self, term: &TermReq) -> bool {
        let quoted = term.quoted();
        let names_it = |&(fes, at): &(u16, u32)| {
            let has_offset = matches!(fes, FIELD | UNSUPPORTED);
            term.fes.0 == fes && (term.fei == at || !has_offset && is_in(term.fei, &self.header))
        };
        let is_quoted = quoted.len() >= COMMON_BYTES && self.header.starts_with(quoted);
        is_quoted && self.reasons.iter().any(names_it)
    }
}

/// Where the error has no field of its own, none or any of the header may be named.
fn is_in(fei: u32, header: &[u8]) -> bool {
    (fei as usize) < header.len().max(1)
}

/// The header of a PDU that is well formed.
pub(crate) struct Pdu {
    pub(crate) header: Vec<u8>,
    /// Bytes of data behind it.
    pub(crate) data_bytes: u32,
}

impl Pdu {
    pub(crate) fn kind(&self) -> u8 {
        self.header[0]
    }

    pub(crate) fn flags(&self) -> u8 {
        self.header[1]
    }

    pub(crate) fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.header[at], self.header[at + 1]])
    }

    pub(crate) fn u32(&self, at: usize) -> u32 {
        u32_at(&self.header, at)
    }

    /// The fault, if there is a reason for one.
    pub(crate) fn fault(&self, reasons: Vec<(u16, u32)>) -> Option<Fault> {
        (!reasons.is_empty()).then(|| Fault {
            reasons,
            header: self.header.clone(),
            must: true,
        })
    }
}

/// What the rules of one side make of its PDUs.
pub(crate) trait Rules {
    /// A PDU that is well formed has come.
    fn judge(&mut self, pdu: &Pdu) -> Option<Fault>;
    /// What the two have agreed on.
    fn digests(&self) -> Digests;
}

/// One direction of one connection.
pub(crate) struct Referee<R> {
    from: Direction,
    pub(crate) rules: R,
    header: Vec<u8>,
    /// Bytes of padding, data and digest still to come.
    rest: u64,
    /// Of these, padding. A machine may look at the header when that is over.
    pad: u64,
    /// What ends the connection.
    fault: Option<Fault>,
    /// What may end it, since the last round.
    doubts: Vec<Fault>,
    /// A TermReq has come: nothing is answered.
    pub(crate) is_over: bool,
    /// A TermReq was sent.
    pub(crate) is_told: bool,
}

impl<R: Rules> Referee<R> {
    pub(crate) fn new(from: Direction, rules: R) -> Self {
        Self {
            from,
            rules,
            header: Vec::new(),
            rest: 0,
            pad: 0,
            fault: None,
            doubts: Vec::new(),
            is_over: false,
            is_told: false,
        }
    }

    /// The machine was given these bytes.
    pub(crate) fn see(&mut self, bytes: &[u8]) {
        let mut bytes = bytes;
        loop {
            let skipped = bytes
                .len()
                .min(usize::try_from(self.rest).unwrap_or(usize::MAX));
            self.rest -= skipped as u64;
            self.pad = self.pad.saturating_sub(skipped as u64);
            bytes = &bytes[skipped..];
            if bytes.is_empty() || self.is_over || self.fault.is_some() {
                return;
            }
            let missing = self.wanted() - self.header.len();
            let (now, later) = bytes.split_at(bytes.len().min(missing));
            self.header.extend(now);
            bytes = later;
            if self.header.len() == self.wanted() {
                self.complete();
            }
        }
    }

    /// Bytes of the header that are to be collected, as far as that is known.
    fn wanted(&self) -> usize {
        match self.header.get(..COMMON_BYTES) {
            Some(common) if self.length_faults().is_empty() => self.header_bytes(common[0]),
            _ => COMMON_BYTES,
        }
    }

    /// Header and its digest.
    fn header_bytes(&self, kind: u8) -> usize {
        let digest = if self.has_digest(kind) { 4 } else { 0 };
        match kind {
            H2C_TERM_REQ | C2H_TERM_REQ => u32_at(&self.header, 4) as usize,
            kind => hlen(kind).map_or(COMMON_BYTES, usize::from) + digest,
        }
    }

    fn has_digest(&self, kind: u8) -> bool {
        self.rules.digests().header && !matches!(kind, IC_REQ..=C2H_TERM_REQ)
    }

    /// What is wrong so that nobody can tell where the header ends.
    fn length_faults(&self) -> Vec<(u16, u32)> {
        let (kind, flags, plen) = (self.header[0], self.header[1], u32_at(&self.header, 4));
        let is_its = match self.from {
            Direction::HostToController => [IC_REQ, H2C_TERM_REQ, CAPSULE_CMD, H2C_DATA].as_slice(),
            Direction::ControllerToHost => &[IC_RESP, C2H_TERM_REQ, CAPSULE_RESP, C2H_DATA, R2T],
        };
        if !is_its.contains(&kind) {
            return vec![(FIELD, 0)];
        }
        let mut wrong = Vec::new();
        let has_digest = self.has_digest(kind);
        if Some(self.header[2]) != hlen(kind) {
            wrong.push((FIELD, 2));
        }
        if (flags & FLAG_HDGST != 0) != has_digest {
            wrong.push((FIELD, 1));
        }
        let least = hlen(kind).map_or(0, u32::from) + if has_digest { 4 } else { 0 };
        let is_term = matches!(kind, H2C_TERM_REQ | C2H_TERM_REQ);
        if plen < least || is_term && plen > 152 {
            wrong.push((FIELD, 4));
        }
        wrong
    }

    /// The header is there, as far as it is one.
    fn complete(&mut self) {
        let mut reasons = self.length_faults();
        if !reasons.is_empty() {
            return self.end(reasons);
        }
        let kind = self.header[0];
        let end = self.header_bytes(kind);
        if end > self.header.len() {
            return;
        }
        if self.has_digest(kind) {
            let digest = self.header.split_off(end - 4);
            if crc32c(&self.header).to_le_bytes() != digest[..] {
                reasons.push((HEADER_DIGEST, 0));
            }
        }
        reasons.extend(self.layout_faults(kind, end));
        if !reasons.is_empty() {
            return self.end(reasons);
        }
        let (plen, pdo) = (
            u64::from(u32_at(&self.header, 4)),
            u64::from(self.header[3]),
        );
        self.rest = plen - end as u64;
        let mut data_bytes = 0;
        if self.rest > 0 {
            let digest = if self.rules.digests().data { 4 } else { 0 };
            self.pad = pdo - end as u64;
            data_bytes = u32::try_from(self.rest - self.pad - digest).expect("less than PLEN");
        }
        if matches!(kind, H2C_TERM_REQ | C2H_TERM_REQ) {
            self.is_over = true;
            return;
        }
        let header = std::mem::take(&mut self.header);
        match self.rules.judge(&Pdu { header, data_bytes }) {
            Some(fault) if fault.must => self.fault = Some(fault),
            fault => self.doubts.extend(fault),
        }
    }

    /// What is wrong behind the header: its data, or that there is none.
    fn layout_faults(&self, kind: u8, end: usize) -> Vec<(u16, u32)> {
        let (flags, pdo) = (self.header[1], usize::from(self.header[3]));
        let plen = u32_at(&self.header, 4) as usize;
        let mut wrong = Vec::new();
        let can_have_data = matches!(kind, CAPSULE_CMD | H2C_DATA | C2H_DATA);
        if plen == end {
            if matches!(kind, H2C_DATA | C2H_DATA) {
                wrong.push((FIELD, 4));
            }
            return wrong;
        }
        if !can_have_data {
            return vec![(FIELD, 4)];
        }
        if pdo < end || !pdo.is_multiple_of(4) || pdo > PDO_MAX {
            wrong.push((FIELD, 3));
        }
        let has_digest = self.rules.digests().data;
        if (flags & FLAG_DDGST != 0) != has_digest {
            wrong.push((FIELD, 1));
        }
        if plen <= pdo + if has_digest { 4 } else { 0 } {
            wrong.push((FIELD, 4));
        }
        wrong
    }

    fn end(&mut self, reasons: Vec<(u16, u32)>) {
        self.fault = Some(Fault {
            reasons,
            header: std::mem::take(&mut self.header),
            must: true,
        });
    }

    /// Bytes of digest behind data.
    pub(crate) fn data_digest_bytes(&self) -> u8 {
        self.rules.digests().data_bytes()
    }

    /// Nothing that has come so far need be told: its receiver may have stopped listening.
    pub(crate) fn doubt(&mut self) {
        if let Some(fault) = self.fault.take() {
            self.doubts.push(fault.owed(false));
        }
    }

    /// The machine has sent a TermReq.
    pub(crate) fn told(&mut self, term: &TermReq) {
        assert!(!self.is_told, "two TermReqs");
        let mut faults = self.fault.iter().chain(&self.doubts);
        assert!(
            faults.any(|fault| fault.is_told_by(term)),
            "{term:?} for {:?} and perhaps {:?}",
            self.fault,
            self.doubts
        );
        self.is_told = true;
    }

    /// The machine has had its turn: what it owes it has said.
    pub(crate) fn settle(&mut self) {
        // Behind padding that is still to come the header may be looked at.
        let is_owed = self.fault.is_some() && self.pad == 0 && !self.is_told;
        assert!(!is_owed, "nobody was told of {:?}", self.fault);
        self.doubts.clear();
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// HLEN of each type.
fn hlen(kind: u8) -> Option<u8> {
    match kind {
        IC_REQ | IC_RESP => Some(128),
        CAPSULE_CMD => Some(72),
        H2C_TERM_REQ | C2H_TERM_REQ | CAPSULE_RESP | H2C_DATA | C2H_DATA | R2T => Some(24),
        _ => None,
    }
}

/// What ICReq and ICResp have in common: their format, an alignment, digests.
pub(crate) fn initialize(pdu: &Pdu, reasons: &mut Vec<(u16, u32)>) -> Digests {
    if pdu.u16(8) != 0 {
        reasons.extend([(FIELD, 8), (UNSUPPORTED, 8)]);
    }
    if pdu.header[10] > 31 {
        reasons.extend([(FIELD, 10), (UNSUPPORTED, 10)]);
    }
    Digests {
        header: pdu.header[11] & 1 != 0,
        data: pdu.header[11] & 2 != 0,
    }
}
