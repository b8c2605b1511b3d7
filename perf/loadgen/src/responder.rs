//! A controller that does nothing, as cheaply as it can: what our own client can drive at most.
//!
//! Commands are answered without a look at where they lead. What a read brings are the same zeroes
//! each time, read from the closest cache; what a write takes is thrown away. There are no digests, no errors but for
//! commands it does not know, and no time-outs: it serves the client in this process and nobody
//! else.

use std::io::{self, ErrorKind, IoSlice, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use bowline_nvme::fabrics::{
    Cap, Cc, ConnectResult, Csts, PropertyGet, PropertySet, Shst, Version, offset,
};
use bowline_nvme::feature::{self, SetFeatures};
use bowline_nvme::identify::{
    Identify, IdentifyController, IdentifyNamespace, LbaFormat, cns, encode_namespace_list,
};
use bowline_nvme::opcode::{admin, fabrics, io as io_opcode};
use bowline_nvme::pdu::{C2HData, CapsuleCmd, CapsuleResp, Digests, H2CData, IcResp, PduType, R2t};
use bowline_nvme::{ControllerId, Cqe, NamespaceId, Sqe, Status};

use crate::error::PerfError;
use crate::runner::pin;

/// Model number that the client sees.
pub(crate) const MODEL: &str = "null responder";
/// Bytes that data in a capsule may have, as our own target offers it.
const IN_CAPSULE_BYTES: u32 = 16 << 10;
/// Bytes of one H2CData PDU.
const H2C_BYTES_MAX: u32 = 128 << 10;
/// Received at once; holds any PDU whole.
const IN_BYTES: usize = 512 << 10;
/// Sent at once, and one answer more.
const OUT_BYTES: usize = 512 << 10;
/// Answers sent at once, each with a header and data. The kernel takes 1024 pieces.
const ANSWERS_MAX: usize = 256;
/// Largest data of a command: 1 MiB, as MDTS of 4 KiB pages.
const MDTS: u8 = 8;
const DATA_BYTES_MAX: usize = 4096 << MDTS;
/// Blocks of 512 bytes: enough addresses to be no limit.
const BLOCKS: u64 = 1 << 31;
const BLOCK_SHIFT: u8 = 9;
const CNTLID: ControllerId = ControllerId(1);
const CAPSULE_BYTES: usize = CapsuleCmd::SIZE;
/// Looks for new connections once in so many rounds.
const ACCEPT_EVERY: u32 = 256;

/// The responder's thread, until it is dropped.
pub(crate) struct Responder {
    pub(crate) address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Responder {
    /// Starts one, on a core if that is given.
    pub(crate) fn start(core: Option<usize>) -> Result<Self, PerfError> {
        let failed = |error: io::Error| {
            PerfError::failed("the null responder cannot be started").cause(error)
        };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("null responder".to_owned())
            .spawn(move || {
                let pinned = core.map_or(Ok(()), pin);
                let ready = pinned.is_ok();
                if tell.send(pinned).is_ok() && ready {
                    serve(&listener, &stopped);
                }
            })
            .map_err(failed)?;
        told.recv()
            .unwrap_or_else(|_| Err(PerfError::failed("the null responder has ended")))?;
        Ok(Self {
            address,
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It ends by itself, whatever happened to it.
            let _ = thread.join();
        }
    }
}

fn serve(listener: &TcpListener, stop: &AtomicBool) {
    let mut peers: Vec<Peer> = Vec::new();
    let mut round = 0_u32;
    while !stop.load(Ordering::Relaxed) {
        if round.is_multiple_of(ACCEPT_EVERY) {
            while let Ok((stream, _)) = listener.accept() {
                peers.extend(Peer::new(stream));
            }
        }
        round = round.wrapping_add(1);
        peers.retain_mut(|peer| peer.turn().is_ok());
    }
}

/// One connection.
struct Peer {
    stream: TcpStream,
    is_admin: bool,
    cc: Cc,
    input: Box<[u8]>,
    filled: usize,
    /// Headers of the answers, and data that is not the same for all.
    output: Vec<u8>,
    answers: Vec<Answer>,
    /// Data of every read.
    data: Box<[u8]>,
    /// What the answers have together, and how much of that has left.
    end: usize,
    sent: usize,
}

/// Bytes of the output, and then of the data of reads.
struct Answer {
    output: Range<usize>,
    data: usize,
}

impl Peer {
    fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            is_admin: true,
            cc: Cc::default(),
            input: vec![0; IN_BYTES].into(),
            filled: 0,
            output: Vec::with_capacity(ANSWERS_MAX * CAPSULE_BYTES),
            answers: Vec::with_capacity(ANSWERS_MAX),
            data: vec![0; DATA_BYTES_MAX].into(),
            end: 0,
            sent: 0,
        })
    }

    /// Sends what there is, else receives and answers. An error ends the connection.
    fn turn(&mut self) -> io::Result<()> {
        if self.end == 0 {
            match self.stream.read(&mut self.input[self.filled..]) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(bytes) => self.filled += bytes,
                // Commands may be left for which there was no room in the output.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            if self.filled > 0 {
                self.answer()?;
            }
        }
        while self.sent < self.end {
            match self.send() {
                Ok(bytes) => self.sent += bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        (self.end, self.sent) = (0, 0);
        self.output.clear();
        self.answers.clear();
        Ok(())
    }

    /// Sends what the socket takes of the answers, in one call.
    fn send(&mut self) -> io::Result<usize> {
        let mut pieces = [IoSlice::new(&[]); 2 * ANSWERS_MAX];
        let mut count = 0;
        for answer in &self.answers {
            for piece in [
                &self.output[answer.output.clone()],
                &self.data[..answer.data],
            ] {
                // Not more than there is room for: `answer` sees to that.
                pieces[count] = IoSlice::new(piece);
                count += usize::from(!piece.is_empty());
            }
        }
        let mut unsent = &mut pieces[..count];
        IoSlice::advance_slices(&mut unsent, self.sent);
        self.stream.write_vectored(unsent)
    }

    /// Answers the PDUs that are there whole.
    fn answer(&mut self) -> io::Result<()> {
        let input = std::mem::take(&mut self.input);
        let mut at = 0;
        while self.end < OUT_BYTES
            && self.answers.len() < ANSWERS_MAX
            && let Some(pdu) = whole_pdu(&input[at..self.filled])?
        {
            at += pdu.len();
            self.handle(pdu)?;
        }
        self.input = input;
        self.input.copy_within(at..self.filled, 0);
        self.filled -= at;
        Ok(())
    }

    fn handle(&mut self, pdu: &[u8]) -> io::Result<()> {
        match PduType::from_wire(pdu[0]) {
            Some(PduType::CapsuleCmd) => {
                let header = pdu.get(..CAPSULE_BYTES).ok_or_else(broken)?;
                let sqe = CapsuleCmd::decode(header, Digests::NONE)
                    .map_err(|_| broken())?
                    .sqe;
                if self.is_admin {
                    self.command(&sqe);
                } else {
                    self.io(&sqe, pdu.len() > CAPSULE_BYTES)?;
                }
            }
            Some(PduType::H2CData) => {
                let header = pdu.get(..H2CData::SIZE).ok_or_else(broken)?;
                let data = H2CData::decode(header, Digests::NONE).map_err(|_| broken())?;
                if data.last {
                    self.respond(data.cccid, Status::SUCCESS, 0);
                }
            }
            Some(PduType::IcReq) => {
                let response = IcResp {
                    maxh2cdata: H2C_BYTES_MAX,
                    ..IcResp::default()
                };
                self.push(&response.encode());
            }
            _ => return Err(broken()),
        }
        Ok(())
    }

    fn io(&mut self, sqe: &Sqe, data_came: bool) -> io::Result<()> {
        let bytes = sqe.sgl1().length;
        match sqe.opcode() {
            io_opcode::READ => return self.send_data(sqe, bytes),
            io_opcode::WRITE if !data_came => {
                let ask = R2t {
                    cccid: sqe.cid(),
                    ttag: sqe.cid().0,
                    r2to: 0,
                    r2tl: bytes,
                };
                self.push(&ask.encode(Digests::NONE));
            }
            io_opcode::WRITE | io_opcode::FLUSH => self.respond(sqe.cid(), Status::SUCCESS, 0),
            _ => self.respond(sqe.cid(), Status::INVALID_OPCODE.dnr(), 0),
        }
        Ok(())
    }

    /// Data and completion in one.
    fn send_data(&mut self, sqe: &Sqe, bytes: u32) -> io::Result<()> {
        let len = usize::try_from(bytes)
            .ok()
            .filter(|len| (1..=DATA_BYTES_MAX).contains(len));
        let len = len.ok_or_else(broken)?;
        let header = C2HData {
            cccid: sqe.cid(),
            datao: 0,
            datal: bytes,
            last: true,
            success: true,
        };
        self.push_with(&header.encode(Digests::NONE, 0), len);
        Ok(())
    }

    fn respond(&mut self, cid: bowline_nvme::CommandId, status: Status, result: u64) {
        let cqe = Cqe {
            cid,
            status,
            result,
            ..Cqe::default()
        };
        self.push(&CapsuleResp { cqe }.encode(Digests::NONE));
    }

    fn push(&mut self, bytes: &[u8]) {
        self.push_with(bytes, 0);
    }

    /// An answer, and so many bytes of a read's data behind it.
    fn push_with(&mut self, bytes: &[u8], data: usize) {
        let start = self.output.len();
        self.output.extend_from_slice(bytes);
        self.end += bytes.len() + data;
        let output = start..self.output.len();
        self.answers.push(Answer { output, data });
    }

    /// Bring-up. A connection is an I/O queue's from its Connect on.
    fn command(&mut self, sqe: &Sqe) {
        let cid = sqe.cid();
        match (sqe.opcode(), sqe.fctype()) {
            (admin::FABRICS, fabrics::CONNECT) => {
                self.is_admin = bowline_nvme::fabrics::Connect::decode(sqe).qid.is_admin();
                let connected = ConnectResult {
                    cntlid: CNTLID,
                    authentication_required: false,
                    secure_channel_required: false,
                };
                self.respond(cid, Status::SUCCESS, connected.encode());
            }
            (admin::FABRICS, fabrics::PROPERTY_SET) => {
                self.cc = Cc(PropertySet::decode(sqe).value_dword());
                self.respond(cid, Status::SUCCESS, 0);
            }
            (admin::FABRICS, fabrics::PROPERTY_GET) => {
                let value = self.property(PropertyGet::decode(sqe).offset);
                self.respond(cid, Status::SUCCESS, value);
            }
            (admin::IDENTIFY, _) => self.identify(sqe),
            // As many queues as asked for.
            (admin::SET_FEATURES, _)
                if SetFeatures::decode(sqe).fid == feature::id::NUMBER_OF_QUEUES =>
            {
                self.respond(cid, Status::SUCCESS, sqe.cdw(11).into());
            }
            (admin::SET_FEATURES | admin::KEEP_ALIVE, _) => self.respond(cid, Status::SUCCESS, 0),
            _ => self.respond(cid, Status::INVALID_OPCODE.dnr(), 0),
        }
    }

    fn property(&self, at: u32) -> u64 {
        match at {
            offset::CAP => {
                Cap::default()
                    .with_mqes(u16::MAX)
                    .with_to(1)
                    .with_css(Cap::CSS_NVM)
                    .0
            }
            offset::VS => Version::V2_0.0.into(),
            offset::CC => self.cc.0.into(),
            _ => {
                let shutdown = if self.cc.shn() == 0 {
                    Shst::None
                } else {
                    Shst::Complete
                };
                Csts::default()
                    .with_rdy(self.cc.en())
                    .with_shutdown(shutdown)
                    .0
                    .into()
            }
        }
    }

    fn identify(&mut self, sqe: &Sqe) {
        let mut data = [0; 4096];
        match Identify::decode(sqe).cns {
            cns::CONTROLLER => controller().encode(&mut data),
            cns::ACTIVE_NAMESPACE_LIST => {
                let above = Some(NamespaceId(1)).filter(|nsid| *nsid > sqe.nsid());
                encode_namespace_list(above, &mut data);
            }
            cns::NAMESPACE if sqe.nsid() == NamespaceId(1) => namespace().encode(&mut data),
            _ => return self.respond(sqe.cid(), Status::INVALID_FIELD.dnr(), 0),
        }
        let header = C2HData {
            cccid: sqe.cid(),
            datao: 0,
            datal: 4096,
            last: true,
            success: true,
        };
        let mut answer = header.encode(Digests::NONE, 0).to_vec();
        answer.extend_from_slice(&data);
        self.push(&answer);
    }
}

/// The PDU at the start of the input, if all of it is there.
fn whole_pdu(input: &[u8]) -> io::Result<Option<&[u8]>> {
    let Some([.., a, b, c, d]) = input.first_chunk::<8>() else {
        return Ok(None);
    };
    let len = u32::from_le_bytes([*a, *b, *c, *d]);
    let len = usize::try_from(len)
        .ok()
        .filter(|len| (8..=IN_BYTES).contains(len));
    Ok(input.get(..len.ok_or_else(broken)?))
}

fn broken() -> io::Error {
    ErrorKind::InvalidData.into()
}

fn controller() -> IdentifyController {
    let mut mn = [b' '; 40];
    mn[..MODEL.len()].copy_from_slice(MODEL.as_bytes());
    IdentifyController {
        cntlid: CNTLID,
        sn: [b' '; 20],
        mn,
        fr: [b' '; 8],
        mdts: MDTS,
        cntrltype: IdentifyController::CNTRLTYPE_IO,
        kas: 10,
        nn: 1,
        sgls: IdentifyController::SGLS_SUPPORTED,
        ioccsz: (64 + IN_CAPSULE_BYTES) / 16,
        iorcsz: 1,
        ..IdentifyController::default()
    }
}

fn namespace() -> IdentifyNamespace {
    let mut lbaf = [LbaFormat::default(); 16];
    lbaf[0].lbads = BLOCK_SHIFT;
    IdentifyNamespace {
        nsze: BLOCKS,
        ncap: BLOCKS,
        lbaf,
        ..IdentifyNamespace::default()
    }
}
