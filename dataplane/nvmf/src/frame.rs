//! Cuts a byte stream into PDUs. [TCP-1.0 §3.6.2]
//!
//! The same reader serves both ends of a connection. It collects one header at a time, however
//! the input is split, checks HDGST, skips padding, and then counts the payload that its owner
//! takes from the stream without showing it here. It knows PDUs, not commands: whether a PDU is
//! welcome now is for the owner to say.
//!
//! ```text
//! Collect --header complete--> Pad --aligned--> (Event::Header) --no data--> Collect
//! (Event::Header) --data--> Payload --all taken--> Trailer --DDGST--> (end event) --> Collect
//! any --malformed--> (Event::Violation) --> Broken
//! ```

use bowline_nvme::Sqe;
use bowline_nvme::pdu::{
    C2HData, CapsuleCmd, CapsuleResp, CommonHeader, Digests, Direction, Fes, H2CData, HeaderSpan,
    IcReq, IcResp, Layout, PduType, R2t, TermReq, Violation,
};

/// CRC32C, which is both HDGST and DDGST. [TCP-1.0 §3.3]
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// The longest thing collected: a TermReq, which is all header.
const COLLECT_BYTES_MAX: usize = TermReq::SIZE_MAX;

/// A decoded PDU header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// Initialize Connection Request.
    IcReq(IcReq),
    /// Initialize Connection Response.
    IcResp(IcResp),
    /// Terminate Connection Request, whichever way.
    TermReq(TermReq),
    /// Command Capsule.
    CapsuleCmd(CapsuleCmd),
    /// Response Capsule.
    CapsuleResp(CapsuleResp),
    /// Host to Controller Data.
    H2CData(H2CData),
    /// Controller to Host Data.
    C2HData(C2HData),
    /// Ready to Transfer.
    R2t(R2t),
}

/// What the reader found. At most one waits at a time; until it is polled nothing is consumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A header is complete and its digest right. If [`FrameReader::payload_remaining`] is not 0
    /// now, the next byte of the stream is the first of the data.
    Header(Header),
    /// The data is complete and nobody judged it: no data digest was negotiated, or the owner
    /// gave no CRC to compare with.
    PayloadEnd,
    /// The data is complete and DDGST matches the owner's CRC.
    DigestOk,
    /// The data is complete and DDGST does not match: the data is not what was sent. Framing is
    /// intact, the connection can go on. [TCP-1.0 §3.3]
    DigestMismatch,
    /// The stream cannot be understood any further. Everything that follows is thrown away.
    Violation(Violation),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// `filled` of the `wanted` first bytes of the PDU are in the buffer.
    Collect {
        filled: u8,
        wanted: u8,
    },
    /// Padding left before the data.
    Pad {
        left: u8,
    },
    /// The header waits to be polled.
    HeaderReady,
    /// Bytes of data that the owner has not taken yet.
    Payload {
        remaining: u32,
    },
    /// `filled` bytes of DDGST have arrived; it should equal `crc`.
    Trailer {
        filled: u8,
        crc: Option<u32>,
    },
    /// The end of the data waits to be polled.
    Ended(Verdict),
    /// A violation waits to be polled.
    Violated(Violation),
    Broken,
}

/// What follows the header of a PDU that is in the stream from its first byte to its last.
#[derive(Clone, Copy, Debug)]
pub struct WholePdu<'a> {
    /// Its data; [`WholePdu::is_intact`] judges it.
    pub data: &'a [u8],
    digest: Option<[u8; 4]>,
    /// Of all of it, in the stream.
    pub bytes: usize,
}

impl<'a> WholePdu<'a> {
    /// With which `input` begins, if all of it is there. It has no padding.
    fn in_stream(input: &'a [u8], layout: &Layout) -> Option<Self> {
        let start = usize::from(layout.span.bytes());
        let end = start.checked_add(layout.payload_bytes as usize)?;
        let data = input.get(start..end)?;
        let digest = if layout.data_digest {
            Some(*input.get(end..)?.first_chunk()?)
        } else {
            None
        };
        Some(Self {
            data,
            digest,
            bytes: end + digest.map_or(0, |digest| digest.len()),
        })
    }

    /// Whether DDGST, if there is one, matches the data.
    pub fn is_intact(&self) -> bool {
        self.digest
            .is_none_or(|digest| crc32c(self.data).to_le_bytes() == digest)
    }
}

/// What DDGST says of the data, if it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Unjudged,
    Intact,
    Damaged,
}

const COLLECT_COMMON: State = State::Collect {
    filled: 0,
    wanted: 8,
};

impl State {
    /// Behind the header of such a PDU.
    const fn behind(layout: &Layout) -> Self {
        match layout.payload_bytes {
            0 => COLLECT_COMMON,
            remaining => Self::Payload { remaining },
        }
    }
}

/// Cuts one direction of one connection into PDUs. Holds a fixed buffer and never allocates.
#[derive(Clone, Debug)]
pub struct FrameReader {
    from: Direction,
    digests: Digests,
    state: State,
    /// The last common header that was judged, and what it means: most PDUs begin like the one
    /// before.
    judged: Option<([u8; CommonHeader::SIZE], Layout)>,
    /// Bytes of the current or last header in `buffer`, HDGST not counted.
    header_len: u8,
    buffer: [u8; COLLECT_BYTES_MAX],
    trailer: [u8; 4],
}

impl FrameReader {
    /// A reader of what `from` sends, from the first byte of the connection on. No digests are
    /// expected until [`FrameReader::set_digests`].
    pub const fn new(from: Direction) -> Self {
        Self {
            from,
            digests: Digests::NONE,
            state: COLLECT_COMMON,
            judged: None,
            header_len: 0,
            buffer: [0; COLLECT_BYTES_MAX],
            trailer: [0; 4],
        }
    }

    /// Expects these digests from the next PDU on: call it when ICReq, or ICResp, was polled.
    pub const fn set_digests(&mut self, digests: Digests) {
        self.digests = digests;
        self.judged = None;
    }

    /// Takes the header of a command capsule with which `input` begins, and says how many bytes
    /// that were: the short way, for what nearly all PDUs to a controller are. `None`, and nothing
    /// is taken, unless the reader stands between two PDUs, all of the header is there and right,
    /// and no padding follows; [`FrameReader::handle`] finds out what it is instead.
    pub fn take_capsule(&mut self, input: &[u8]) -> Option<(usize, Sqe)> {
        let (header, layout): (&[u8; CapsuleCmd::SIZE], _) =
            self.header_in(input, PduType::CapsuleCmd)?;
        *self.buffer.first_chunk_mut()? = *header;
        self.header_len = layout.span.header_bytes;
        self.state = State::behind(&layout);
        let sqe = Sqe(*header.last_chunk()?);
        Some((usize::from(layout.span.bytes()), sqe))
    }

    /// The command capsule with which `input` begins, under the same conditions and if all of its
    /// data is there too. Nothing is taken: who is done with it goes on behind its bytes, and who
    /// is not gives them to the reader.
    pub fn whole_capsule<'a>(&mut self, input: &'a [u8]) -> Option<(Sqe, WholePdu<'a>)> {
        let (header, layout): (&[u8; CapsuleCmd::SIZE], _) =
            self.header_in(input, PduType::CapsuleCmd)?;
        let sqe = Sqe(*header.last_chunk()?);
        Some((sqe, WholePdu::in_stream(input, &layout)?))
    }

    /// The same for an H2CData PDU.
    pub fn whole_h2c_data<'a>(&mut self, input: &'a [u8]) -> Option<(H2CData, WholePdu<'a>)> {
        let (header, layout): (&[u8; H2CData::SIZE], _) =
            self.header_in(input, PduType::H2CData)?;
        let header = H2CData::decode_rest(header, &layout).ok()?;
        Some((header, WholePdu::in_stream(input, &layout)?))
    }

    /// The header of `N` bytes of a PDU of this type, if `input` begins with one between two PDUs,
    /// all of it is there and right, and no padding follows.
    fn header_in<'a, const N: usize>(
        &mut self,
        input: &'a [u8],
        pdu_type: PduType,
    ) -> Option<(&'a [u8; N], Layout)> {
        let header: &[u8; N] = input.first_chunk()?;
        if !self.is_between_pdus() {
            return None;
        }
        let layout = self.layout_of(*header.first_chunk()?).ok()?;
        if layout.span.pdu_type != pdu_type || layout.pad_bytes > 0 {
            return None;
        }
        if layout.span.digest_bytes > 0 {
            let digest = input.get(N..)?.first_chunk()?;
            if crc32c(header).to_le_bytes() != *digest {
                return None;
            }
        }
        Some((header, layout))
    }

    /// Takes bytes from the stream up to the next event or the next byte of data, and says how
    /// many. Takes none while an event waits or data is due. After a violation takes all.
    pub fn handle(&mut self, input: &[u8]) -> usize {
        let mut rest = input;
        loop {
            match self.state {
                State::Collect { filled, wanted } => {
                    let filled = take_into(&mut self.buffer, filled, wanted, &mut rest);
                    self.header_len = filled;
                    self.state = State::Collect { filled, wanted };
                    if filled < wanted {
                        break;
                    }
                    self.state = self.collected(wanted).unwrap_or_else(State::Violated);
                }
                State::Pad { left } => {
                    let skipped = left.min(u8::try_from(rest.len()).unwrap_or(u8::MAX));
                    rest = rest.get(usize::from(skipped)..).unwrap_or_default();
                    let left = left - skipped;
                    self.state = if left == 0 {
                        State::HeaderReady
                    } else {
                        State::Pad { left }
                    };
                    if left > 0 {
                        break;
                    }
                }
                State::Trailer { filled, crc } => {
                    let filled = take_into(&mut self.trailer, filled, 4, &mut rest);
                    self.state = State::Trailer { filled, crc };
                    if filled < 4 {
                        break;
                    }
                    self.state = State::Ended(self.judge(crc));
                }
                State::Broken => return input.len(),
                State::HeaderReady
                | State::Payload { .. }
                | State::Ended(_)
                | State::Violated(_) => break,
            }
        }
        input.len() - rest.len()
    }

    /// The event that waits, if any. Poll until `None` before giving more bytes.
    pub fn poll_event(&mut self) -> Option<Event> {
        match self.state {
            State::HeaderReady => Some(self.header_event()),
            State::Ended(verdict) => {
                self.state = COLLECT_COMMON;
                Some(match verdict {
                    Verdict::Unjudged => Event::PayloadEnd,
                    Verdict::Intact => Event::DigestOk,
                    Verdict::Damaged => Event::DigestMismatch,
                })
            }
            State::Violated(violation) => {
                self.state = State::Broken;
                Some(Event::Violation(violation))
            }
            State::Collect { .. }
            | State::Pad { .. }
            | State::Payload { .. }
            | State::Trailer { .. }
            | State::Broken => None,
        }
    }

    /// Bytes of data of the current PDU that the owner has still to take from the stream. While
    /// this is not 0, the stream's next bytes are data and not for [`FrameReader::handle`].
    pub const fn payload_remaining(&self) -> u32 {
        match self.state {
            State::Payload { remaining } => remaining,
            _ => 0,
        }
    }

    /// Whether the data of the current PDU is followed by DDGST.
    pub fn has_data_digest(&self) -> bool {
        self.judged.is_some_and(|(_, layout)| layout.data_digest)
    }

    /// The owner took `bytes` of data, at most [`FrameReader::payload_remaining`]. `crc` counts
    /// only in the call that takes the last of them: the CRC32C of all the PDU's data, or `None`
    /// if the data was thrown away and DDGST is to be skipped.
    pub fn advance_payload(&mut self, bytes: u32, crc: Option<u32>) {
        let State::Payload { remaining } = self.state else {
            debug_assert_eq!(bytes, 0, "no data is due");
            return;
        };
        debug_assert!(bytes <= remaining, "more data taken than the PDU has");
        let remaining = remaining.saturating_sub(bytes);
        self.state = if remaining > 0 {
            State::Payload { remaining }
        } else if self.has_data_digest() {
            State::Trailer { filled: 0, crc }
        } else {
            State::Ended(Verdict::Unjudged)
        };
    }

    /// The bytes of the current or last header, without HDGST, for a TermReq to quote. After a
    /// violation, what had been collected of it.
    pub fn header_bytes(&self) -> &[u8] {
        self.buffer
            .get(..usize::from(self.header_len))
            .unwrap_or_default()
    }

    /// Whether the stream stands between two PDUs, so that its end cuts nothing short.
    pub const fn is_between_pdus(&self) -> bool {
        matches!(self.state, State::Collect { filled: 0, .. })
    }

    /// `wanted` bytes are in the buffer: either the common header, which says how many more
    /// there are, or all that there is to collect.
    fn collected(&mut self, wanted: u8) -> Result<State, Violation> {
        let [a, b, c, d, e, f, g, h, ..] = self.buffer;
        let common = CommonHeader::decode(&[a, b, c, d, e, f, g, h]);
        let span = common.span(self.from, self.digests)?;
        if wanted < span.bytes() {
            return Ok(State::Collect {
                filled: wanted,
                wanted: span.bytes(),
            });
        }
        self.header_len = span.header_bytes;
        if span.digest_bytes > 0 && !self.header_digest_matches(&span) {
            return Err(Violation::new(Fes::HEADER_DIGEST));
        }
        Ok(match self.layout_of([a, b, c, d, e, f, g, h])?.pad_bytes {
            0 => State::HeaderReady,
            left => State::Pad { left },
        })
    }

    /// What a PDU consists of that begins with `common`.
    fn layout_of(&mut self, common: [u8; CommonHeader::SIZE]) -> Result<Layout, Violation> {
        match self.judged {
            Some((before, layout)) if before == common => Ok(layout),
            _ => {
                let layout = CommonHeader::decode(&common).layout(self.from, self.digests)?;
                self.judged = Some((common, layout));
                Ok(layout)
            }
        }
    }

    fn header_digest_matches(&self, span: &HeaderSpan) -> bool {
        let digest = self
            .buffer
            .get(usize::from(span.header_bytes)..usize::from(span.bytes()));
        digest == Some(&crc32c(self.header_bytes()).to_le_bytes())
    }

    /// Decodes the header in the buffer and moves on to its data, if it has any.
    fn header_event(&mut self) -> Event {
        let decoded = match self.judged {
            Some((_, layout)) => self.decode(&layout).map(|header| (header, layout)),
            None => Err(Violation::field(0)),
        };
        match decoded {
            Ok((header, layout)) => {
                self.state = State::behind(&layout);
                Event::Header(header)
            }
            Err(violation) => {
                self.state = State::Broken;
                Event::Violation(violation)
            }
        }
    }

    fn decode(&self, layout: &Layout) -> Result<Header, Violation> {
        let (bytes, digests) = (self.header_bytes(), self.digests);
        Ok(match layout.span.pdu_type {
            PduType::IcReq => Header::IcReq(IcReq::decode(bytes)?),
            PduType::IcResp => Header::IcResp(IcResp::decode(bytes)?),
            PduType::H2CTermReq | PduType::C2HTermReq => {
                Header::TermReq(TermReq::decode(self.from, bytes)?)
            }
            PduType::CapsuleCmd => Header::CapsuleCmd(CapsuleCmd::decode(bytes, digests)?),
            PduType::CapsuleResp => Header::CapsuleResp(CapsuleResp::decode(bytes, digests)?),
            PduType::H2CData => {
                let header = bytes.first_chunk().ok_or(Violation::field(4))?;
                Header::H2CData(H2CData::decode_rest(header, layout)?)
            }
            PduType::C2HData => Header::C2HData(C2HData::decode(bytes, digests)?),
            PduType::R2t => Header::R2t(R2t::decode(bytes, digests)?),
        })
    }

    fn judge(&self, crc: Option<u32>) -> Verdict {
        match crc {
            None => Verdict::Unjudged,
            Some(crc) if crc.to_le_bytes() == self.trailer => Verdict::Intact,
            Some(_) => Verdict::Damaged,
        }
    }
}

/// Moves bytes from `input` into `buffer[filled..wanted]` and says how far it is filled then.
fn take_into(buffer: &mut [u8], filled: u8, wanted: u8, input: &mut &[u8]) -> u8 {
    let Some(space) = buffer.get_mut(usize::from(filled)..usize::from(wanted)) else {
        return filled;
    };
    let taken = space.len().min(input.len());
    let (now, later) = input.split_at(taken);
    space[..taken].copy_from_slice(now);
    *input = later;
    filled.saturating_add(u8::try_from(taken).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bowline_nvme::{CommandId, Cqe};
    use proptest::prelude::*;

    const H2C: Direction = Direction::HostToController;
    const C2H: Direction = Direction::ControllerToHost;
    const BOTH: Digests = Digests {
        header: true,
        data: true,
    };

    const _: () = assert!(
        size_of::<FrameReader>() <= 224,
        "memory per connection is bounded"
    );

    /// Everything an owner sees, so that two runs can be compared.
    #[derive(Clone, Debug, PartialEq, Eq)]
    enum Seen {
        Event(Event),
        Payload(Vec<u8>),
    }

    /// One side of a connection as bytes: IC PDU first, then capsules and data.
    struct Wire {
        digests: Digests,
        bytes: Vec<u8>,
    }

    impl Wire {
        fn host(digests: Digests) -> Self {
            let icreq = IcReq {
                header_digest: digests.header,
                data_digest: digests.data,
                ..IcReq::default()
            };
            Self {
                digests,
                bytes: icreq.encode().to_vec(),
            }
        }

        fn controller(digests: Digests) -> Self {
            let icresp = IcResp {
                header_digest: digests.header,
                data_digest: digests.data,
                maxh2cdata: 4096,
                ..IcResp::default()
            };
            Self {
                digests,
                bytes: icresp.encode().to_vec(),
            }
        }

        /// Appends a PDU with its digests and padding.
        fn pdu(mut self, header: &[u8], payload: &[u8]) -> Self {
            let begin = self.bytes.len();
            self.bytes.extend(header);
            if self.digests.header {
                self.bytes.extend(crc32c(header).to_le_bytes());
            }
            if !payload.is_empty() {
                self.bytes.resize(begin + usize::from(header[3]), 0);
                self.bytes.extend(payload);
                if self.digests.data {
                    self.bytes.extend(crc32c(payload).to_le_bytes());
                }
            }
            self
        }

        fn command(self, pda: u8, payload: &[u8]) -> Self {
            let sqe = Sqe::new(1).with_cid(CommandId(0x1234));
            let len = u32::try_from(payload.len()).unwrap();
            let header = CapsuleCmd { sqe }.encode(self.digests, pda, len);
            self.pdu(&header, payload)
        }

        fn h2c_data(self, payload: &[u8]) -> Self {
            let datal = u32::try_from(payload.len()).unwrap();
            let data = H2CData {
                cccid: CommandId(1),
                ttag: 2,
                datao: 0,
                datal,
                last: true,
            };
            let header = data.encode(self.digests, 0);
            self.pdu(&header, payload)
        }

        fn c2h_data(self, pda: u8, payload: &[u8]) -> Self {
            let datal = u32::try_from(payload.len()).unwrap();
            let data = C2HData {
                cccid: CommandId(1),
                datao: 0,
                datal,
                last: true,
                success: false,
            };
            let header = data.encode(self.digests, pda);
            self.pdu(&header, payload)
        }

        fn term_req(mut self, from: Direction) -> Self {
            let (bytes, len) = TermReq::new(Violation::field(3), &[9; 40]).encode(from);
            self.bytes.extend(&bytes[..len]);
            self
        }
    }

    fn host_wire(digests: Digests) -> Wire {
        Wire::host(digests)
            .command(0, &[])
            .command(0, b"in-capsule")
            .command(31, &[7; 64])
            .h2c_data(&[1; 33])
            .h2c_data(&[2])
            .command(0, &[])
            .term_req(H2C)
    }

    fn controller_wire(digests: Digests) -> Wire {
        let response = CapsuleResp {
            cqe: Cqe::default(),
        }
        .encode(digests);
        let r2t = R2t {
            cccid: CommandId(1),
            ttag: 2,
            r2to: 0,
            r2tl: 4096,
        }
        .encode(digests);
        Wire::controller(digests)
            .pdu(&response, &[])
            .c2h_data(0, b"data for the host")
            .pdu(&r2t, &[])
            .c2h_data(31, &[3; 100])
            .term_req(C2H)
    }

    /// What an owner does: feeds the reader, takes payload, computes its CRC, and turns digests
    /// on when the IC PDU has been seen.
    struct Owner {
        reader: FrameReader,
        digests: Digests,
        /// Takes capsules the short way where it can.
        short: bool,
        payload: Vec<u8>,
        seen: Vec<Seen>,
    }

    impl Owner {
        fn new(from: Direction, digests: Digests) -> Self {
            let reader = FrameReader::new(from);
            Self {
                reader,
                digests,
                short: false,
                payload: Vec::new(),
                seen: Vec::new(),
            }
        }

        fn take(&mut self, mut input: &[u8]) {
            loop {
                while let Some(event) = self.reader.poll_event() {
                    if matches!(event, Event::Header(Header::IcReq(_) | Header::IcResp(_))) {
                        self.reader.set_digests(self.digests);
                    }
                    self.seen.push(Seen::Event(event));
                }
                let due = usize::try_from(self.reader.payload_remaining()).unwrap();
                if due > 0 {
                    let (now, later) = input.split_at(due.min(input.len()));
                    self.payload.extend(now);
                    let taken = u32::try_from(now.len()).unwrap();
                    self.reader
                        .advance_payload(taken, Some(crc32c(&self.payload)));
                    if self.reader.payload_remaining() == 0 {
                        self.seen
                            .push(Seen::Payload(std::mem::take(&mut self.payload)));
                    }
                    input = later;
                    if input.is_empty() && self.reader.payload_remaining() > 0 {
                        return;
                    }
                    continue;
                }
                if self.short
                    && let Some((consumed, sqe)) = self.reader.take_capsule(input)
                {
                    let header = Header::CapsuleCmd(CapsuleCmd { sqe });
                    self.seen.push(Seen::Event(Event::Header(header)));
                    input = &input[consumed..];
                    continue;
                }
                let consumed = self.reader.handle(input);
                input = &input[consumed..];
                if consumed == 0 && input.is_empty() && !self.has_event() {
                    return;
                }
            }
        }

        fn has_event(&self) -> bool {
            matches!(
                self.reader.state,
                State::HeaderReady | State::Ended(_) | State::Violated(_)
            )
        }
    }

    /// What is seen, which must not depend on the way that capsules take.
    fn run<'a>(
        from: Direction,
        digests: Digests,
        pieces: impl IntoIterator<Item = &'a [u8]>,
    ) -> Vec<Seen> {
        let mut long = Owner::new(from, digests);
        let mut short = Owner::new(from, digests);
        short.short = true;
        for piece in pieces {
            long.take(piece);
            short.take(piece);
        }
        assert_eq!(long.seen, short.seen);
        assert_eq!(long.reader.header_bytes(), short.reader.header_bytes());
        assert_eq!(long.reader.state, short.reader.state);
        long.seen
    }

    fn digests() -> [Digests; 4] {
        [(false, false), (true, false), (false, true), (true, true)]
            .map(|(header, data)| Digests { header, data })
    }

    fn violation(seen: &[Seen]) -> Option<Violation> {
        match seen.last() {
            Some(Seen::Event(Event::Violation(violation))) => Some(*violation),
            _ => None,
        }
    }

    #[test]
    fn crc_has_the_published_values() {
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8A91_36AA);
        let response = CapsuleResp {
            cqe: Cqe::default(),
        };
        let header = response.encode(Digests {
            header: true,
            data: false,
        });
        assert_eq!(crc32c(&header).to_le_bytes(), [0x9b, 0x12, 0x03, 0x89]);
    }

    #[test]
    fn whole_stream_yields_every_pdu_in_order() {
        let seen = run(H2C, BOTH, [&host_wire(BOTH).bytes[..]]);
        let shape: Vec<&str> = seen
            .iter()
            .map(|seen| match seen {
                Seen::Event(Event::Header(Header::IcReq(_))) => "icreq",
                Seen::Event(Event::Header(Header::CapsuleCmd(_))) => "command",
                Seen::Event(Event::Header(Header::H2CData(_))) => "data",
                Seen::Event(Event::Header(Header::TermReq(_))) => "termreq",
                Seen::Event(Event::DigestOk) => "ok",
                Seen::Payload(_) => "payload",
                other => panic!("{other:?}"),
            })
            .collect();
        let with_payload = ["payload", "ok"];
        let mut expected = vec!["icreq", "command"];
        for header in ["command", "command", "data", "data"] {
            expected.push(header);
            expected.extend(with_payload);
        }
        expected.extend(["command", "termreq"]);
        assert_eq!(shape, expected);
    }

    #[test]
    fn every_split_of_every_pdu_gives_the_same_result() {
        for digests in digests() {
            for (from, wire) in [(H2C, host_wire(digests)), (C2H, controller_wire(digests))] {
                let whole = run(from, digests, [&wire.bytes[..]]);
                assert_eq!(violation(&whole), None);
                for at in 0..=wire.bytes.len() {
                    let (first, second) = wire.bytes.split_at(at);
                    assert_eq!(run(from, digests, [first, second]), whole, "split at {at}");
                }
                assert_eq!(run(from, digests, wire.bytes.chunks(1)), whole);
            }
        }
    }

    #[test]
    fn corrupted_header_is_a_digest_error() {
        let intact = Wire::host(BOTH).command(0, b"payload").bytes;
        // The SQE, PLEN and the digest itself; type, flags and HLEN decide the framing.
        for at in 131..intact.len() - 11 {
            let mut bytes = intact.clone();
            bytes[at] ^= 0x80;
            let seen = run(H2C, BOTH, [&bytes[..]]);
            assert_eq!(
                violation(&seen),
                Some(Violation::new(Fes::HEADER_DIGEST)),
                "byte {at}"
            );
        }
    }

    #[test]
    fn corrupted_data_is_a_mismatch_and_framing_goes_on() {
        for data in [
            Digests {
                header: false,
                data: true,
            },
            BOTH,
        ] {
            let mut wire = Wire::host(data).h2c_data(&[5; 64]);
            let last = wire.bytes.len() - 1;
            wire.bytes[last] ^= 1;
            let seen = run(H2C, data, [&wire.command(0, &[]).bytes[..]]);
            assert_eq!(seen[3], Seen::Event(Event::DigestMismatch));
            assert!(matches!(
                seen[4],
                Seen::Event(Event::Header(Header::CapsuleCmd(_)))
            ));
        }
    }

    #[test]
    fn discarded_data_ends_without_verdict() {
        let wire = Wire::host(BOTH).h2c_data(&[5; 64]);
        let mut owner = Owner::new(H2C, BOTH);
        owner.take(&wire.bytes[..128 + 28]);
        owner.reader.advance_payload(64, None);
        assert_eq!(owner.reader.payload_remaining(), 0);
        assert_eq!(owner.reader.handle(&wire.bytes[128 + 28 + 64..]), 4);
        assert_eq!(owner.reader.poll_event(), Some(Event::PayloadEnd));
        assert!(owner.reader.is_between_pdus());
    }

    #[test]
    fn nothing_is_consumed_while_an_event_waits_or_data_is_due() {
        let wire = Wire::host(Digests::NONE).command(0, b"data");
        let mut reader = FrameReader::new(H2C);
        assert!(reader.is_between_pdus());
        assert_eq!(reader.handle(&wire.bytes), 128);
        assert_eq!(reader.handle(&wire.bytes[128..]), 0);
        assert_eq!(reader.header_bytes(), &wire.bytes[..128]);
        assert!(matches!(
            reader.poll_event(),
            Some(Event::Header(Header::IcReq(_)))
        ));
        assert_eq!(reader.handle(&wire.bytes[128..]), 72);
        assert!(matches!(
            reader.poll_event(),
            Some(Event::Header(Header::CapsuleCmd(_)))
        ));
        assert_eq!((reader.payload_remaining(), reader.handle(b"data")), (4, 0));
        assert!(!reader.is_between_pdus() && !reader.has_data_digest());
        reader.advance_payload(4, None);
        assert_eq!(reader.handle(b"next"), 0);
        assert_eq!(reader.poll_event(), Some(Event::PayloadEnd));
        assert_eq!(reader.poll_event(), None);
    }

    #[test]
    fn capsule_is_taken_whole_or_not_at_all() {
        for digests in digests() {
            let icreq = Wire::host(digests).bytes;
            let bytes = Wire::host(digests).command(0, b"data").bytes.split_off(128);
            let header = CapsuleCmd::SIZE + usize::from(digests.header_bytes());
            let mut reader = FrameReader::new(H2C);
            assert_eq!(reader.take_capsule(&icreq), None, "another PDU");
            assert_eq!(reader.handle(&icreq), icreq.len());
            assert_eq!(reader.take_capsule(&bytes), None, "an event waits");
            assert!(reader.poll_event().is_some());
            reader.set_digests(digests);
            assert_eq!(reader.take_capsule(&bytes[..header - 1]), None, "not whole");
            assert!(reader.is_between_pdus(), "nothing was taken");
            let sqe = Sqe::new(1).with_cid(CommandId(0x1234));
            assert_eq!(reader.take_capsule(&bytes), Some((header, sqe)));
            assert_eq!(reader.header_bytes(), &bytes[..72]);
            assert_eq!(reader.payload_remaining(), 4);
            assert_eq!(reader.has_data_digest(), digests.data);
            assert_eq!(reader.take_capsule(&bytes), None, "data is due");
            let mut padded = FrameReader::new(H2C);
            padded.set_digests(digests);
            let wire = Wire::host(digests).command(31, b"data").bytes;
            assert_eq!(padded.take_capsule(&wire[128..]), None, "padding follows");
        }
    }

    #[test]
    fn violation_is_told_once_and_the_rest_is_thrown_away() {
        let mut reader = FrameReader::new(H2C);
        // CapsuleResp is not for a host to send.
        assert_eq!(reader.handle(&[5, 0, 24, 0, 24, 0, 0, 0, 1, 2, 3]), 8);
        assert_eq!(
            reader.poll_event(),
            Some(Event::Violation(Violation::field(0)))
        );
        assert_eq!(reader.header_bytes(), [5, 0, 24, 0, 24, 0, 0, 0]);
        assert_eq!(reader.poll_event(), None);
        assert_eq!(reader.handle(&[0; 1000]), 1000);
        assert_eq!(reader.poll_event(), None);
    }

    #[test]
    fn wrong_body_is_a_violation_after_the_header() {
        let mut icreq = IcReq::default().encode();
        icreq[8] = 1;
        let seen = run(H2C, BOTH, [&icreq[..]]);
        assert_eq!(violation(&seen), Some(Violation::field(8)));
    }

    proptest! {
        #[test]
        fn any_pieces_of_a_valid_stream_give_the_same_result(
            cuts in prop::collection::vec(0..2000usize, 0..12),
            (header, data) in any::<(bool, bool)>(),
        ) {
            let digests = Digests { header, data };
            let bytes = host_wire(digests).bytes;
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut % bytes.len()).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]);
            prop_assert_eq!(run(H2C, digests, pieces), run(H2C, digests, [&bytes[..]]));
        }

        #[test]
        fn garbage_never_panics(
            bytes in prop::collection::vec(any::<u8>(), 0..600),
            (header, data, from_host) in any::<(bool, bool, bool)>(),
        ) {
            let from = if from_host { H2C } else { C2H };
            run(from, Digests { header, data }, [&bytes[..]]);
        }

        #[test]
        fn damaged_streams_never_panic_and_splitting_them_changes_nothing(
            damage in prop::collection::vec((0..2000usize, any::<u8>()), 1..4),
            (header, data, at) in (any::<bool>(), any::<bool>(), 0..2000usize),
        ) {
            let digests = Digests { header, data };
            let mut bytes = host_wire(digests).bytes;
            let len = bytes.len();
            for (at, value) in damage {
                bytes[at % len] = value;
            }
            let (first, second) = bytes.split_at(at % len);
            prop_assert_eq!(
                run(H2C, digests, [first, second]),
                run(H2C, digests, [&bytes[..]])
            );
        }
    }
}
