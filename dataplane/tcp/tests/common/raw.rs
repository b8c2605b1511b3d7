//! A host without a protocol machine: what a test writes is what goes out. It is written from the
//! specification and shares only the layout of structures with the code under test.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use bowline_nvme::fabrics::{Connect, ConnectData, PropertyGet, PropertySet, offset};
use bowline_nvme::nqn::Nqn;
use bowline_nvme::pdu::{
    C2HData, CapsuleCmd, CapsuleResp, Digests, Direction, Fes, H2CData, IcReq, IcResp, R2t, TermReq,
};
use bowline_nvme::{CommandId, ControllerId, Cqe, QueueId, Sgl, Sqe, Status};

use super::DEADLINE;
use super::rig::{HOST, NQN};

/// CC.EN with 64-byte and 16-byte queue entries. [BASE-2.0 §3.1.3.5]
const CC_ENABLE: u32 = 0x0046_0001;

/// One PDU as it arrived.
#[derive(Debug)]
pub(crate) struct Pdu {
    pub(crate) bytes: Vec<u8>,
    digests: Digests,
}

impl Pdu {
    pub(crate) fn kind(&self) -> u8 {
        self.bytes[0]
    }

    pub(crate) fn cqe(&self) -> Cqe {
        CapsuleResp::decode(&self.bytes, self.digests)
            .expect("a response capsule")
            .cqe
    }

    pub(crate) fn r2t(&self) -> R2t {
        R2t::decode(&self.bytes, self.digests).expect("an R2T")
    }

    pub(crate) fn c2h(&self) -> C2HData {
        C2HData::decode(&self.bytes, self.digests).expect("C2HData")
    }

    pub(crate) fn term(&self) -> TermReq {
        TermReq::decode(Direction::ControllerToHost, &self.bytes).expect("a TermReq")
    }
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// C2HTermReq with this FES and FEI, then closed.
    Term(Fes, u32),
    /// Closed without a further word.
    Closed,
}

pub(crate) struct Raw {
    pub(crate) stream: TcpStream,
    pub(crate) digests: Digests,
    pub(crate) maxh2cdata: u32,
    /// What the test is about, for its failure.
    pub(crate) note: &'static str,
    cid: u16,
}

impl Raw {
    /// A TCP connection and nothing more.
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("the target listens");
        stream.set_nodelay(true).expect("an open socket");
        stream
            .set_read_timeout(Some(DEADLINE))
            .expect("an open socket");
        stream
            .set_write_timeout(Some(DEADLINE))
            .expect("an open socket");
        Self {
            stream,
            digests: Digests::NONE,
            maxh2cdata: 0,
            note: "",
            cid: 0,
        }
    }

    /// A connection with ICReq and ICResp exchanged.
    pub(crate) fn initialized(address: SocketAddr, digests: Digests) -> Self {
        let mut raw = Self::connect(address);
        raw.send(&ic_req(digests));
        let answer = raw.recv().expect("ICResp");
        let answer = IcResp::decode(&answer.bytes).expect("a valid ICResp");
        assert_eq!(
            answer.digests(),
            digests,
            "digests are granted exactly as asked for"
        );
        raw.digests = digests;
        raw.maxh2cdata = answer.maxh2cdata;
        raw
    }

    /// An admin queue of an enabled controller, and the controller's id.
    pub(crate) fn admin(address: SocketAddr, digests: Digests) -> (Self, ControllerId) {
        let mut raw = Self::initialized(address, digests);
        let cqe = raw.connect_queue(0, ControllerId::DYNAMIC, 31);
        assert!(cqe.status.is_success(), "{}", cqe.status);
        let [low, high, ..] = cqe.result.to_le_bytes();
        raw.enable();
        (raw, ControllerId(u16::from_le_bytes([low, high])))
    }

    /// Sets CC.EN and waits for CSTS.RDY. [BASE-2.0 §3.5.1]
    pub(crate) fn enable(&mut self) {
        let enabled = self.command(PropertySet::dword(offset::CC, CC_ENABLE).encode(), None);
        assert!(enabled.status.is_success(), "{}", enabled.status);
        while self
            .command(PropertyGet::dword(offset::CSTS).encode(), None)
            .result
            & 1
            == 0
        {}
    }

    /// Clears CC.EN: a controller reset, which ends its I/O queues. [BASE-2.0 §3.7.2]
    pub(crate) fn disable(&mut self) {
        let disabled = self.command(PropertySet::dword(offset::CC, 0).encode(), None);
        assert!(disabled.status.is_success(), "{}", disabled.status);
    }

    /// An I/O queue, and the admin queue it lives by.
    pub(crate) fn io(address: SocketAddr, digests: Digests) -> (Self, Self) {
        let (admin, cntlid) = Self::admin(address, digests);
        let mut raw = Self::initialized(address, digests);
        let cqe = raw.connect_queue(1, cntlid, 127);
        assert!(cqe.status.is_success(), "{}", cqe.status);
        (raw, admin)
    }

    /// As [`Raw::io`], of a host with a name and an identifier of its own.
    pub(crate) fn io_of_host(address: SocketAddr, hostnqn: &str, hostid: [u8; 16]) -> (Self, Self) {
        let queue = |qid: u16, cntlid, sqsize| {
            let mut raw = Self::initialized(address, Digests::NONE);
            let connect = Connect {
                qid: QueueId(qid),
                sqsize,
                ..Connect::default()
            };
            let data = ConnectData {
                hostid,
                cntlid,
                subnqn: Nqn::new(NQN).expect("a name"),
                hostnqn: Nqn::new(hostnqn).expect("a name"),
            };
            let cqe = raw.command(connect.encode(), Some(&data.encode()));
            assert!(cqe.status.is_success(), "{}", cqe.status);
            let [low, high, ..] = cqe.result.to_le_bytes();
            (raw, ControllerId(u16::from_le_bytes([low, high])))
        };
        let (mut admin, cntlid) = queue(0, ControllerId::DYNAMIC, 31);
        admin.enable();
        (queue(1, cntlid, 127).0, admin)
    }

    pub(crate) fn connect_queue(&mut self, qid: u16, cntlid: ControllerId, sqsize: u16) -> Cqe {
        self.connect_as(qid, cntlid, sqsize, NQN, HOST)
    }

    pub(crate) fn connect_as(
        &mut self,
        qid: u16,
        cntlid: ControllerId,
        sqsize: u16,
        subnqn: &str,
        hostnqn: &str,
    ) -> Cqe {
        let connect = Connect {
            qid: QueueId(qid),
            sqsize,
            ..Connect::default()
        };
        let data = Self::connect_data(cntlid, subnqn, hostnqn);
        self.command(connect.encode(), Some(&data))
    }

    /// The capsule of a Connect, to be sent without waiting for its response.
    pub(crate) fn connect_capsule(
        &mut self,
        qid: u16,
        cntlid: ControllerId,
        sqsize: u16,
    ) -> Vec<u8> {
        let connect = Connect {
            qid: QueueId(qid),
            sqsize,
            ..Connect::default()
        };
        self.capsule(
            connect.encode(),
            Some(&Self::connect_data(cntlid, NQN, HOST)),
        )
    }

    /// The capsule of an admin Connect to a subsystem.
    pub(crate) fn connect_capsule_to(&mut self, subnqn: &str) -> Vec<u8> {
        let connect = Connect {
            sqsize: 31,
            ..Connect::default()
        };
        let data = Self::connect_data(ControllerId::DYNAMIC, subnqn, HOST);
        self.capsule(connect.encode(), Some(&data))
    }

    pub(crate) fn connect_data(
        cntlid: ControllerId,
        subnqn: &str,
        hostnqn: &str,
    ) -> [u8; ConnectData::SIZE] {
        ConnectData {
            hostid: [7; 16],
            cntlid,
            subnqn: Nqn::new(subnqn).expect("a name"),
            hostnqn: Nqn::new(hostnqn).expect("a name"),
        }
        .encode()
    }

    /// Sends a command with its data in the capsule, and waits for its response.
    pub(crate) fn command(&mut self, sqe: Sqe, data: Option<&[u8]>) -> Cqe {
        let capsule = self.capsule(sqe, data);
        self.send(&capsule);
        let response = self.recv().expect("a response");
        assert_eq!(response.kind(), 0x05, "a response capsule: {response:?}");
        response.cqe()
    }

    /// A capsule with the next command identifier and, if there is any, in-capsule data.
    pub(crate) fn capsule(&mut self, sqe: Sqe, data: Option<&[u8]>) -> Vec<u8> {
        let len = data.map_or(0, length);
        let sgl = match data {
            Some(_) => Sgl::in_capsule(len),
            None => Sgl::transport(0),
        };
        self.capsule_with(sqe.with_sgl1(sgl), data.unwrap_or_default())
    }

    /// A capsule whose SGL is the caller's.
    pub(crate) fn capsule_with(&mut self, sqe: Sqe, data: &[u8]) -> Vec<u8> {
        self.cid = self.cid.wrapping_add(1);
        let sqe = sqe.with_cid(CommandId(self.cid));
        let header = CapsuleCmd { sqe }.encode(self.digests, 0, length(data));
        self.assemble(&header, data)
    }

    /// The command identifier used last.
    pub(crate) fn last_cid(&self) -> CommandId {
        CommandId(self.cid)
    }

    pub(crate) fn h2c_data(&self, header: H2CData, data: &[u8]) -> Vec<u8> {
        self.assemble(&header.encode(self.digests, 0), data)
    }

    /// Header, its digest, data, its digest.
    pub(crate) fn assemble(&self, header: &[u8], data: &[u8]) -> Vec<u8> {
        let mut bytes = header.to_vec();
        if self.digests.header {
            bytes.extend_from_slice(&crc(header));
        }
        bytes.extend_from_slice(data);
        if self.digests.data && !data.is_empty() {
            bytes.extend_from_slice(&crc(data));
        }
        bytes
    }

    /// Sends what the target may already have stopped reading.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        if let Err(error) = self.stream.write_all(bytes) {
            let gone = [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset];
            assert!(gone.contains(&error.kind()), "sending: {error}");
        }
    }

    /// Sends no more.
    pub(crate) fn finish(&mut self) {
        // The target may have been faster.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Ends the connection as a killed process does whose received bytes were not read.
    pub(crate) fn reset(self) {
        socket2::SockRef::from(&self.stream)
            .set_linger(Some(std::time::Duration::ZERO))
            .expect("an open socket");
    }

    /// The next PDU, or `None` at the end of the connection.
    pub(crate) fn recv(&mut self) -> Option<Pdu> {
        let mut common = [0; 8];
        if !self.fill(&mut common) {
            return None;
        }
        let plen = u32::from_le_bytes([common[4], common[5], common[6], common[7]]) as usize;
        assert!(
            (8..=(2 << 20)).contains(&plen),
            "PLEN of {plen}: {common:?}"
        );
        let mut bytes = vec![0; plen];
        bytes[..8].copy_from_slice(&common);
        assert!(
            self.fill(&mut bytes[8..]),
            "the connection ended within a PDU"
        );
        Some(Pdu {
            bytes,
            digests: self.digests,
        })
    }

    /// How the connection ends; what arrives before the end is dropped. A TermReq is answered as
    /// a host does: by ending the connection.
    pub(crate) fn await_end(&mut self) -> End {
        let mut end = End::Closed;
        while let Some(pdu) = self.recv() {
            assert_eq!(end, End::Closed, "nothing follows a TermReq: {pdu:?}");
            if pdu.kind() == 0x03 {
                let term = pdu.term();
                end = End::Term(term.fes, term.fei);
                self.finish();
            }
        }
        end
    }

    /// False at the end of the connection, which may only be where a PDU begins.
    fn fill(&mut self, buffer: &mut [u8]) -> bool {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.stream.read(&mut buffer[filled..]) {
                Ok(0) => return false,
                Ok(bytes) => filled += bytes,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Closing while our bytes wait unread there is a reset.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return false,
                Err(error) => panic!("{}: neither answer nor end: {error}", self.note),
            }
        }
        true
    }

    /// The status of the next response, and whether the connection still serves afterwards.
    pub(crate) fn await_status(&mut self) -> Status {
        super::verdict(self.recv().expect("a response").cqe().status)
    }
}

/// ICReq with these digests, no alignment, one R2T.
pub(crate) fn ic_req(digests: Digests) -> [u8; IcReq::SIZE] {
    IcReq {
        header_digest: digests.header,
        data_digest: digests.data,
        ..IcReq::default()
    }
    .encode()
}

pub(crate) fn crc(bytes: &[u8]) -> [u8; 4] {
    crc_fast::crc32_iscsi(bytes).to_le_bytes()
}

pub(crate) fn length(data: &[u8]) -> u32 {
    u32::try_from(data.len()).expect("small data")
}
