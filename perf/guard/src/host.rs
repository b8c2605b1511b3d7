//! A host without a protocol machine: what a scenario wants is laid out in bytes once and sent
//! again every round.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

use anyhow::{Context, Result, bail, ensure};
use bowline_nvme::fabrics::{Connect, ConnectData, PropertySet, offset};
use bowline_nvme::nqn::Nqn;
use bowline_nvme::pdu::{
    C2HData, CapsuleCmd, CapsuleResp, CommonHeader, Digests, H2CData, IcReq, IcResp, PduType, R2t,
};
use bowline_nvme::{CommandId, ControllerId, QueueId, Sgl, Sqe};

/// CC.EN with 64-byte and 16-byte queue entries. [BASE-2.0 §3.1.3.5]
const CC_ENABLE: u32 = 0x0046_0001;
/// Entries of an I/O queue, zero-based.
const SQSIZE: u16 = 127;
/// Entries of an admin queue, zero-based.
const ADMIN_SQSIZE: u16 = 31;
/// Room for what arrives between two looks.
const RECEIVE_BYTES: usize = 4 << 20;
/// Times the other side is let run for one burst before it counts as stuck.
const PUMPS_MAX: u32 = 100_000;

/// Whoever answers: lets it run once.
pub(crate) trait Pump {
    /// Called whenever the host waits on `stream`.
    fn pump(&mut self, stream: &TcpStream, wait: Wait) -> Result<()>;
}

/// What the host waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    Bytes,
    /// Room to send, or bytes: the other side may be waiting for room too.
    Room,
}

/// Commands that are sent at once.
pub(crate) struct Burst {
    bytes: Vec<u8>,
    commands: usize,
}

/// One connection of the host.
pub(crate) struct Queue {
    stream: TcpStream,
    digests: Digests,
    received: Vec<u8>,
    filled: usize,
    /// What goes out for R2Ts; of the largest transfer, then reused.
    payload: Vec<u8>,
    outgoing: Vec<u8>,
}

impl Queue {
    /// Exchanges ICReq and ICResp.
    pub(crate) fn new(stream: TcpStream, digests: Digests, peer: &mut dyn Pump) -> Result<Self> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        let mut queue = Self {
            stream,
            digests: Digests::NONE,
            received: vec![0; 64 << 10],
            filled: 0,
            payload: Vec::new(),
            outgoing: Vec::new(),
        };
        let request = IcReq {
            header_digest: digests.header,
            data_digest: digests.data,
            ..IcReq::default()
        };
        queue.send_all(&request.encode(), peer)?;
        let mut granted = Digests::NONE;
        queue.answers(1, peer, |pdu, _| {
            let answer = IcResp::decode(pdu).ok().context("not an ICResp")?;
            granted = answer.digests();
            Ok(true)
        })?;
        ensure!(granted == digests, "digests were not granted");
        queue.digests = digests;
        Ok(queue)
    }

    /// Connects as queue `qid` and gives the controller's id.
    pub(crate) fn connect(
        &mut self,
        qid: u16,
        cntlid: ControllerId,
        names: &Names<'_>,
        peer: &mut dyn Pump,
    ) -> Result<ControllerId> {
        let command = Connect {
            qid: QueueId(qid),
            sqsize: if qid == 0 { ADMIN_SQSIZE } else { SQSIZE },
            ..Connect::default()
        };
        let data = ConnectData {
            hostid: names.hostid,
            cntlid,
            subnqn: Nqn::new(names.subsystem).ok().context("a subsystem NQN")?,
            hostnqn: Nqn::new(&names.host).ok().context("a host NQN")?,
        };
        let command = command.with_sq_flow_control_disabled(true);
        let result = self.command(command.encode(), &data.encode(), peer)?;
        let [low, high, ..] = result.to_le_bytes();
        Ok(ControllerId(u16::from_le_bytes([low, high])))
    }

    pub(crate) fn enable(&mut self, peer: &mut dyn Pump) -> Result<()> {
        let set = PropertySet::dword(offset::CC, CC_ENABLE);
        self.command(set.encode(), &[], peer).map(drop)
    }

    /// One command with its data in the capsule; gives the completion's result.
    fn command(&mut self, sqe: Sqe, data: &[u8], peer: &mut dyn Pump) -> Result<u64> {
        let mut bytes = Vec::new();
        let sgl = if data.is_empty() {
            Sgl::transport(0)
        } else {
            Sgl::in_capsule(length(data)?)
        };
        self.put_capsule(&mut bytes, sqe.with_sgl1(sgl), data)?;
        self.send_all(&bytes, peer)?;
        let digests = self.digests;
        let mut result = 0;
        self.answers(1, peer, |pdu, _| {
            let cqe = completion(pdu, digests)?;
            result = cqe;
            Ok(true)
        })?;
        Ok(result)
    }

    /// Lays out `commands`, each with what it carries in its capsule.
    pub(crate) fn burst(&self, commands: &[(Sqe, Vec<u8>)]) -> Result<Burst> {
        let mut bytes = Vec::new();
        for (cid, (sqe, data)) in (0_u16..).zip(commands) {
            self.put_capsule(&mut bytes, sqe.with_cid(CommandId(cid)), data)?;
        }
        Ok(Burst {
            bytes,
            commands: commands.len(),
        })
    }

    /// Sends a burst, to be seen through by [`Queue::finish`].
    pub(crate) fn begin(&mut self, burst: &Burst, peer: &mut dyn Pump) -> Result<()> {
        self.send_all(&burst.bytes, peer)
    }

    /// Sees a burst through: R2Ts are answered, every command ends with success.
    pub(crate) fn finish(&mut self, burst: &Burst, peer: &mut dyn Pump) -> Result<()> {
        let (digests, payload) = (self.digests, std::mem::take(&mut self.payload));
        let mut data = payload;
        let ended = self.answers(
            burst.commands,
            peer,
            |pdu, outgoing| match PduType::from_wire(pdu[0]) {
                Some(PduType::C2HData) => {
                    let header = C2HData::decode(pdu, digests).ok().context("C2HData")?;
                    Ok(header.success)
                }
                Some(PduType::R2t) => {
                    let r2t = R2t::decode(pdu, digests).ok().context("R2T")?;
                    put_data(outgoing, &r2t, digests, &mut data);
                    Ok(false)
                }
                _ => completion(pdu, digests).map(|_| true),
            },
        );
        self.payload = data;
        ended
    }

    fn put_capsule(&self, bytes: &mut Vec<u8>, sqe: Sqe, data: &[u8]) -> Result<()> {
        let header = CapsuleCmd { sqe }.encode(self.digests, 0, length(data)?);
        put(bytes, &header, data, self.digests);
        Ok(())
    }

    fn send_all(&mut self, mut bytes: &[u8], peer: &mut dyn Pump) -> Result<()> {
        while !bytes.is_empty() {
            match self.stream.write(bytes) {
                Ok(sent) => bytes = bytes.get(sent..).unwrap_or_default(),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.receive()?;
                    peer.pump(&self.stream, Wait::Room)?;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("sending"),
            }
        }
        Ok(())
    }

    /// Takes PDUs until `each` has said of so many that a command has ended with them. What it
    /// writes goes out.
    fn answers(
        &mut self,
        mut ends: usize,
        peer: &mut dyn Pump,
        mut each: impl FnMut(&[u8], &mut Vec<u8>) -> Result<bool>,
    ) -> Result<()> {
        for _ in 0..PUMPS_MAX {
            self.receive()?;
            let mut outgoing = std::mem::take(&mut self.outgoing);
            let mut parsed = 0;
            while let Some(pdu) = next_pdu(&self.received[parsed..self.filled])? {
                parsed += pdu.len();
                if each(pdu, &mut outgoing)? {
                    ends = ends.checked_sub(1).context("more answers than commands")?;
                }
            }
            self.received.copy_within(parsed..self.filled, 0);
            self.filled -= parsed;
            self.send_all(&outgoing, peer)?;
            outgoing.clear();
            self.outgoing = outgoing;
            if ends == 0 {
                ensure!(self.filled == 0, "bytes that nobody asked for");
                return Ok(());
            }
            peer.pump(&self.stream, Wait::Bytes)?;
        }
        bail!("{ends} commands stay without an answer")
    }

    /// Takes what has arrived, without waiting.
    fn receive(&mut self) -> Result<()> {
        loop {
            if self.filled == self.received.len() {
                let room = (self.received.len() * 2).min(RECEIVE_BYTES);
                ensure!(room > self.filled, "more bytes than there is room for");
                self.received.resize(room, 0);
            }
            match self.stream.read(&mut self.received[self.filled..]) {
                Ok(0) => bail!("the target has closed the connection"),
                Ok(bytes) => self.filled += bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("receiving"),
            }
        }
    }
}

/// Who connects to what.
pub(crate) struct Names<'a> {
    pub(crate) subsystem: &'a str,
    pub(crate) host: String,
    pub(crate) hostid: [u8; 16],
}

impl<'a> Names<'a> {
    /// The host of this number.
    pub(crate) fn of(subsystem: &'a str, host: u32) -> Self {
        let mut hostid = [0xB0; 16];
        hostid[12..].copy_from_slice(&host.to_be_bytes());
        Self {
            subsystem,
            host: format!("nqn.2026-11.io.bowline:guard:host-{host}"),
            hostid,
        }
    }
}

/// The first PDU, if it is there as a whole.
fn next_pdu(bytes: &[u8]) -> Result<Option<&[u8]>> {
    let Some(header) = bytes.first_chunk::<{ CommonHeader::SIZE }>() else {
        return Ok(None);
    };
    let plen = usize::try_from(CommonHeader::decode(header).plen)?;
    ensure!(plen >= CommonHeader::SIZE, "a PDU of {plen} bytes");
    Ok(bytes.get(..plen))
}

/// The result of a completion, which has to be a success.
fn completion(pdu: &[u8], digests: Digests) -> Result<u64> {
    let capsule = CapsuleResp::decode(pdu, digests);
    let cqe = capsule.ok().context("not a response capsule")?.cqe;
    ensure!(
        cqe.status.is_success(),
        "a command ended with {}",
        cqe.status
    );
    Ok(cqe.result)
}

/// The one H2CData that answers an R2T.
fn put_data(bytes: &mut Vec<u8>, r2t: &R2t, digests: Digests, data: &mut Vec<u8>) {
    let header = H2CData {
        cccid: r2t.cccid,
        ttag: r2t.ttag,
        datao: r2t.r2to,
        datal: r2t.r2tl,
        last: true,
    };
    let len = usize::try_from(r2t.r2tl).unwrap_or(0);
    if data.len() < len {
        data.resize(len, 0x5A);
    }
    put(bytes, &header.encode(digests, 0), &data[..len], digests);
}

/// Header, its digest, data, its digest.
fn put(bytes: &mut Vec<u8>, header: &[u8], data: &[u8], digests: Digests) {
    bytes.extend_from_slice(header);
    if digests.header {
        bytes.extend_from_slice(&crc(header));
    }
    bytes.extend_from_slice(data);
    if digests.data && !data.is_empty() {
        bytes.extend_from_slice(&crc(data));
    }
}

fn crc(bytes: &[u8]) -> [u8; 4] {
    crc_fast::crc32_iscsi(bytes).to_le_bytes()
}

fn length(data: &[u8]) -> Result<u32> {
    u32::try_from(data.len()).context("too much data for a capsule")
}
