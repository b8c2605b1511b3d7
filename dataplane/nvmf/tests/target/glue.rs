//! Plays the glue (sockets, buffers, devices, clock) and speaks as a host.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use bowline_nvme::fabrics::{Connect, ConnectData, PropertyGet, PropertySet, offset};
use bowline_nvme::identify::Identify;
use bowline_nvme::log::GetLogPage;
use bowline_nvme::nqn::Nqn;
use bowline_nvme::nvm::{CopyRange, DsmRange};
use bowline_nvme::pdu::{CapsuleCmd, Digests, Direction, H2CData, IcReq, R2t};
use bowline_nvme::{CommandId, ControllerId, Cqe, NamespaceId, Nanos, QueueId, Sgl, Sqe, Status};
use bowline_nvmf::frame::{Event, FrameReader, Header, crc32c};
use bowline_nvmf::target::{
    AnaConfig, ConnId, Deallocate, Hosts, IoCommand, IoOp, NamespaceConfig, NamespaceHandle,
    NsGeometry, Output, Path, Persistence, Rx, SlotId, SubsystemConfig, Target, TargetConfig,
    TxPdu,
};

pub(crate) const SUBNQN: &str = "nqn.2026-11.io.bowline:test";
pub(crate) const HOSTNQN: &str =
    "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-4000-8000-000000000001";
pub(crate) const DISCOVERY: &str = bowline_nvme::nqn::DISCOVERY;
pub(crate) const BLOCK: u32 = 512;
pub(crate) const BLOCKS: u64 = 8192;

pub(crate) struct Glue {
    pub(crate) target: Target,
    pub(crate) now: Nanos,
    conns: BTreeMap<u32, Conn>,
    pub(crate) disks: BTreeMap<u32, Vec<u8>>,
    /// Commands that were polled and are kept at their device until `finish_held`.
    pub(crate) hold_io: bool,
    pub(crate) held: VecDeque<(ConnId, SlotId, IoCommand)>,
    /// What the next device commands end with, instead of being run.
    pub(crate) failures: VecDeque<Status>,
    pub(crate) flushes: u32,
    /// Do not answer Route by itself.
    pub(crate) manual_route: bool,
    pub(crate) routes: Vec<(ConnId, String)>,
    /// Largest piece of the stream handed over at a time.
    pub(crate) chunk: usize,
    /// Hand in wrong CRCs for payload received.
    pub(crate) corrupt_crc: bool,
    /// Do not bind buffers for R2T.
    pub(crate) no_buffers: bool,
    /// The largest buffer there is: commands that can be cut move their data in parts.
    pub(crate) part_bytes: Option<u32>,
    pub(crate) wanted: Vec<(ConnId, SlotId)>,
    /// What is held has not reached its device and can be taken back.
    pub(crate) unstarted: bool,
    /// Takes nothing from its socket, so that there is no room for outputs.
    pub(crate) deaf: Option<ConnId>,
    /// HPDA of the connections that are initialized next.
    pub(crate) hpda: u8,
    /// Plain commands that are there as a whole are run as they come.
    pub(crate) at_once: bool,
}

pub(crate) struct Conn {
    pub(crate) id: ConnId,
    inbox: VecDeque<u8>,
    pub(crate) sent: Vec<u8>,
    reader: FrameReader,
    parsed: usize,
    digests: Digests,
    buffers: BTreeMap<SlotId, Vec<u8>>,
    /// `Some(graceful)` once Close was polled.
    pub(crate) closed: Option<bool>,
    next_cid: u16,
}

/// What a host sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    IcResp {
        maxh2cdata: u32,
    },
    Response(Cqe),
    Data {
        cid: CommandId,
        offset: u32,
        bytes: Vec<u8>,
        last: bool,
        success: bool,
    },
    R2t(R2t),
    Terminate {
        fes: u16,
        fei: u32,
    },
}

impl Reply {
    pub(crate) fn cqe(&self) -> Cqe {
        match self {
            Self::Response(cqe) => *cqe,
            other => panic!("expected a response, found {other:?}"),
        }
    }
}

pub(crate) fn geometry() -> NsGeometry {
    NsGeometry {
        block_bytes: BLOCK,
        blocks: BLOCKS,
        used_blocks: BLOCKS,
        volatile_cache: true,
        read_only: false,
        atomic_write_blocks: 1,
        optimal_io_blocks: 0,
        deallocate: Deallocate::ReadsZero,
        deallocate_granularity_blocks: 1,
        write_zeroes: true,
        thin: false,
    }
}

pub(crate) fn namespace(id: u8) -> NamespaceConfig {
    NamespaceConfig {
        nsid: Some(u32::from(id)),
        handle: NamespaceHandle(u32::from(id)),
        geometry: geometry(),
        uuid: [id; 16],
        nguid: [id | 0x80; 16],
        ana_group: None,
        persistence: Persistence::Unsupported,
        shared: false,
        allocation: None,
    }
}

impl Glue {
    /// A target with one subsystem that allows `HOSTNQN` and has namespace 1.
    pub(crate) fn new() -> Self {
        Self::with(TargetConfig::default())
    }

    pub(crate) fn with(config: TargetConfig) -> Self {
        Self::serving(config, Self::subsystem())
    }

    /// The same, and the subsystem reports ANA.
    pub(crate) fn with_ana(config: TargetConfig, ana: AnaConfig) -> Self {
        let subsystem = SubsystemConfig {
            ana: Some(ana),
            ..Self::subsystem()
        };
        Self::serving(config, subsystem)
    }

    pub(crate) fn subsystem() -> SubsystemConfig {
        SubsystemConfig {
            hosts: Hosts::Only(vec![HOSTNQN.to_owned()]),
            namespaces_max: 16,
            ..SubsystemConfig::new(SUBNQN, "BL0001")
        }
    }

    pub(crate) fn serving(config: TargetConfig, subsystem: SubsystemConfig) -> Self {
        let mut glue = Self::bare(config);
        glue.target
            .add_subsystem(glue.now, subsystem)
            .expect("valid");
        glue.add_namespace(1);
        glue
    }

    pub(crate) fn bare(config: TargetConfig) -> Self {
        Self {
            target: Target::new(config),
            now: Nanos::from_secs(1000),
            conns: BTreeMap::new(),
            disks: BTreeMap::new(),
            hold_io: false,
            held: VecDeque::new(),
            failures: VecDeque::new(),
            flushes: 0,
            manual_route: false,
            routes: Vec::new(),
            chunk: usize::MAX,
            corrupt_crc: false,
            no_buffers: false,
            part_bytes: None,
            wanted: Vec::new(),
            unstarted: false,
            deaf: None,
            hpda: 0,
            at_once: false,
        }
    }

    pub(crate) fn add_namespace(&mut self, id: u8) {
        let bytes = usize::try_from(BLOCKS).expect("small") * BLOCK as usize;
        self.disks.insert(u32::from(id), vec![0; bytes]);
        self.target
            .add_namespace(self.now, SUBNQN, namespace(id))
            .expect("valid");
        self.pump();
    }

    pub(crate) fn open(&mut self) -> ConnId {
        self.open_on(Path::default())
    }

    pub(crate) fn open_on(&mut self, path: Path) -> ConnId {
        let id = self.target.open(self.now, path).expect("room");
        self.track(
            id,
            Digests::NONE,
            FrameReader::new(Direction::ControllerToHost),
        );
        id
    }

    fn track(&mut self, id: ConnId, digests: Digests, reader: FrameReader) {
        let conn = Conn {
            id,
            inbox: VecDeque::new(),
            sent: Vec::new(),
            reader,
            parsed: 0,
            digests,
            buffers: BTreeMap::new(),
            closed: None,
            next_cid: 0,
        };
        self.conns.insert(id.index, conn);
    }

    /// Gives up a connection whose bytes go on elsewhere.
    pub(crate) fn release(&mut self, id: ConnId) -> Conn {
        self.conns.remove(&id.index).expect("tracked")
    }

    pub(crate) fn track_moved(&mut self, id: ConnId, conn: Conn) {
        self.conns.insert(id.index, Conn { id, ..conn });
    }

    pub(crate) fn conn(&mut self, id: ConnId) -> &mut Conn {
        let conn = self.conns.get_mut(&id.index).expect("tracked");
        assert_eq!(conn.id, id);
        conn
    }

    pub(crate) fn is_open(&self, id: ConnId) -> bool {
        self.conns
            .get(&id.index)
            .is_some_and(|conn| conn.id == id && conn.closed.is_none())
    }

    /// Bytes from the host arrive.
    pub(crate) fn receive(&mut self, id: ConnId, bytes: &[u8]) {
        self.conn(id).inbox.extend(bytes);
        self.pump();
    }

    /// Bytes from the host arrive, and what they lead to is left to be polled.
    pub(crate) fn receive_only(&mut self, id: ConnId, bytes: &[u8]) {
        self.conn(id).inbox.extend(bytes);
        self.feed(id);
    }

    /// The host's socket breaks.
    pub(crate) fn drop_socket(&mut self, id: ConnId) {
        self.conns.remove(&id.index);
        self.target.closed(self.now, id);
        self.pump();
    }

    pub(crate) fn advance(&mut self, span: Nanos) {
        self.now = self.now + span;
        self.target.handle_timeout(self.now);
        self.pump();
    }

    /// Runs everything that can run, until nothing moves.
    pub(crate) fn pump(&mut self) {
        loop {
            let mut moved = false;
            let ids: Vec<ConnId> = self.conns.values().map(|conn| conn.id).collect();
            for id in ids {
                moved |= self.feed(id);
            }
            while let Some(id) = self.target.poll_dirty() {
                moved = true;
                self.outputs(id);
            }
            if !moved {
                return;
            }
        }
    }

    fn feed(&mut self, id: ConnId) -> bool {
        let mut moved = false;
        while let Some(conn) = self.conns.get_mut(&id.index) {
            if conn.inbox.is_empty() {
                break;
            }
            let piece = conn.inbox.len().min(self.chunk);
            match self.target.rx(id) {
                Rx::Bytes => {
                    let bytes: Vec<u8> = conn.inbox.iter().take(piece).copied().collect();
                    let used = match self.run_at_once(id, &bytes) {
                        0 => self.target.handle_bytes(self.now, id, &bytes),
                        used => used,
                    };
                    self.conn(id).inbox.drain(..used);
                    if used == 0 {
                        break;
                    }
                }
                Rx::Payload {
                    slot,
                    offset,
                    len,
                    digest_from,
                    transfer_len,
                } => {
                    let take = piece.min(len as usize);
                    let bytes: Vec<u8> = conn.inbox.drain(..take).collect();
                    let buffer = conn
                        .buffers
                        .entry(slot)
                        .or_insert_with(|| vec![0; transfer_len as usize]);
                    let at = offset as usize;
                    buffer[at..at + take].copy_from_slice(&bytes);
                    let crc = digest_from.filter(|_| take == len as usize).map(|start| {
                        let crc = crc32c(&buffer[start as usize..at + take]);
                        if self.corrupt_crc { !crc } else { crc }
                    });
                    let landed = u32::try_from(take).expect("short");
                    self.target.handle_payload(self.now, id, landed, crc);
                }
                Rx::Discard { len } => {
                    let take = piece.min(len as usize);
                    conn.inbox.drain(..take);
                    let landed = u32::try_from(take).expect("short");
                    self.target.handle_payload(self.now, id, landed, None);
                }
                Rx::Hold | Rx::Closed => break,
            }
            moved = true;
        }
        moved
    }

    /// Runs a command with which `bytes` begin, if it can be run as it comes.
    fn run_at_once(&mut self, id: ConnId, bytes: &[u8]) -> usize {
        let queue = self.target.at_once(self.now, id).filter(|_| self.at_once);
        let Some(mut queue) = queue else {
            return 0;
        };
        let Some((accepted, data)) = queue.accept(bytes).and_then(|it| Some((it, it.data()?)))
        else {
            return 0;
        };
        let command = accepted.command();
        let disk = self.disks.get_mut(&command.namespace.0).expect("known");
        let mut read = Vec::new();
        match command.op {
            IoOp::Read { lba, blocks, .. } => read.extend(&disk[range(lba, blocks)]),
            IoOp::Write { lba, blocks, .. } => disk[range(lba, blocks)].copy_from_slice(data),
            other => panic!("not plain: {other:?}"),
        }
        let answer = queue.succeeded(&accepted);
        let conn = self.conns.get_mut(&id.index).expect("tracked");
        if let Some(slot) = accepted.slot() {
            assert!(conn.buffers.remove(&slot).is_some());
        }
        let sent = &mut conn.sent;
        answer.encode_before_data(sent);
        sent.extend(&read);
        if answer.data_digest() {
            sent.extend(crc32c(&read).to_le_bytes());
        }
        answer.encode_end(sent);
        accepted.bytes()
    }

    fn outputs(&mut self, id: ConnId) {
        if self.deaf == Some(id) {
            while let Some(output) = self.target.poll_withdrawal(self.now, id) {
                self.output(id, output);
            }
            return;
        }
        while let Some(output) = self.target.poll_output(self.now, id) {
            self.output(id, output);
        }
    }

    fn output(&mut self, id: ConnId, output: Output) {
        let now = self.now;
        if let Output::Withdraw { slot } = output {
            let done = self.take_back(id, slot);
            return self.target.withdrawn(now, id, slot, done);
        }
        let conn = self.conns.get_mut(&id.index).filter(|conn| conn.id == id);
        let Some(conn) = conn else {
            panic!("output for a closed connection: {output:?}")
        };
        match output {
            Output::NeedBuffer { slot, len } => self.need_buffer(id, slot, len),
            Output::Fill { slot, len } => {
                let mut buffer = vec![0xEE; len as usize];
                assert!(self.target.fill(now, id, slot, &mut buffer));
                assert!(conn.buffers.insert(slot, buffer).is_none());
            }
            Output::Inspect { slot, len } => {
                let buffer = conn.buffers.get(&slot).expect("it has landed");
                assert_eq!(buffer.len(), len as usize);
                self.target.inspect(now, id, slot, buffer);
            }
            Output::Execute { slot, mut command } => {
                if let IoOp::Read { .. } = command.op {
                    if let Some(part) = self.part_bytes {
                        // What an earlier part was read into.
                        conn.buffers.remove(&slot);
                        let cut = self.target.cut_read(id, slot, part);
                        command = cut.expect("a Read at its device");
                    }
                    assert!(
                        conn.buffers
                            .insert(slot, vec![0xDD; command.bytes as usize])
                            .is_none()
                    );
                }
                if self.hold_io {
                    self.held.push_back((id, slot, command));
                } else {
                    self.execute(id, slot, command);
                }
            }
            Output::Send {
                pdu,
                payload,
                release,
            } => {
                conn.send(&pdu, payload);
                if let Some(slot) = release {
                    conn.buffers.remove(&slot);
                }
            }
            Output::Release { slot } => {
                conn.buffers.remove(&slot);
            }
            Output::Withdraw { .. } => unreachable!("handled above"),
            Output::Route { subnqn } => {
                if self.manual_route {
                    self.routes.push((id, subnqn));
                } else {
                    self.target.resume(now, id);
                }
            }
            Output::Close { graceful } => {
                conn.closed = Some(graceful);
                self.target.closed(now, id);
            }
        }
    }

    fn need_buffer(&mut self, id: ConnId, slot: SlotId, len: u32) {
        let part = self
            .part_bytes
            .and_then(|part| Some((part, self.target.part_unit(id, slot)?)));
        if self.no_buffers {
            self.wanted.push((id, slot));
        } else if let Some((part, unit)) = part {
            let len = len.min((part / unit * unit).max(unit));
            self.conn(id).buffers.insert(slot, vec![0; len as usize]);
            assert!(self.target.handle_part_buffer(self.now, id, slot, len));
        } else {
            let buffers = &mut self.conn(id).buffers;
            assert!(buffers.insert(slot, vec![0; len as usize]).is_none());
            assert!(self.target.handle_buffer(self.now, id, slot));
        }
    }

    /// Takes back a wish for a buffer, or a held command.
    fn take_back(&mut self, id: ConnId, slot: SlotId) -> bool {
        if let Some(at) = self.wanted.iter().position(|it| *it == (id, slot)) {
            self.wanted.remove(at);
            return true;
        }
        let is_it = |it: &(ConnId, SlotId, IoCommand)| {
            it.0 == id && (it.1 == slot || it.2.second() == Some(slot))
        };
        let at = self.held.iter().position(is_it).filter(|_| self.unstarted);
        at.is_some_and(|at| self.held.remove(at).is_some())
    }

    /// Runs a command on the RAM disk.
    fn execute(&mut self, id: ConnId, slot: SlotId, command: IoCommand) {
        let status = match self.failures.pop_front() {
            Some(status) => status,
            None => self.run(id, slot, command),
        };
        self.target.complete(self.now, id, slot, status);
        if let Some(second) = command.second() {
            let status = if status.is_success() {
                status
            } else {
                Status::ABORTED_FAILED_FUSED
            };
            self.target.complete(self.now, id, second, status);
        }
    }

    fn run(&mut self, id: ConnId, slot: SlotId, command: IoCommand) -> Status {
        let disk = self.disks.get_mut(&command.namespace.0).expect("known");
        let mut none = Vec::new();
        let conn = self.conns.get_mut(&id.index).filter(|conn| conn.id == id);
        let buffer = conn
            .and_then(|conn| conn.buffers.get_mut(&slot))
            .unwrap_or(&mut none);
        match command.op {
            IoOp::Read { lba, blocks, .. } if !buffer.is_empty() => {
                buffer.copy_from_slice(&disk[range(lba, blocks)]);
            }
            IoOp::Write { lba, blocks, .. } if !buffer.is_empty() => {
                disk[range(lba, blocks)].copy_from_slice(buffer);
            }
            IoOp::Read { .. } | IoOp::Write { .. } => {}
            IoOp::Compare { lba, blocks, .. } => {
                if disk[range(lba, blocks)] != buffer[..] {
                    return Status::COMPARE_FAILURE.dnr();
                }
            }
            IoOp::CompareAndWrite { lba, blocks, .. } => {
                let half = buffer.len() / 2;
                if disk[range(lba, blocks)] != buffer[..half] {
                    return Status::COMPARE_FAILURE.dnr();
                }
                disk[range(lba, blocks)].copy_from_slice(&buffer[half..]);
            }
            IoOp::Verify { .. } => {}
            IoOp::Copy { lba, ranges, .. } => {
                let mut to = lba;
                for one in (0..ranges).filter_map(|n| CopyRange::nth(buffer, n)) {
                    let from = range(one.slba, one.blocks);
                    disk.copy_within(from, range(to, one.blocks).start);
                    to += u64::from(one.blocks);
                }
            }
            IoOp::Flush => self.flushes += 1,
            IoOp::WriteZeroes { lba, blocks, .. } => disk[range(lba, blocks)].fill(0),
            IoOp::Deallocate { ranges } => {
                for one in DsmRange::list(buffer, ranges) {
                    disk[range(one.slba, one.blocks)].fill(0);
                }
            }
        }
        Status::SUCCESS
    }

    /// There is room for outputs again.
    pub(crate) fn resume(&mut self, id: ConnId) {
        self.outputs(id);
        self.pump();
    }

    pub(crate) fn finish_held(&mut self) {
        while let Some((id, slot, command)) = self.held.pop_front() {
            self.execute(id, slot, command);
        }
        self.pump();
    }

    /// Everything the host can read since the last call.
    pub(crate) fn replies(&mut self, id: ConnId) -> Vec<Reply> {
        self.conn(id).replies()
    }

    pub(crate) fn reply(&mut self, id: ConnId) -> Reply {
        let mut replies = self.replies(id);
        assert_eq!(replies.len(), 1, "{replies:?}");
        replies.remove(0)
    }
}

impl Conn {
    fn send(&mut self, pdu: &TxPdu, payload: Option<(SlotId, u32, u32)>) {
        pdu.encode_into(&mut self.sent);
        if let Some((slot, start, len)) = payload {
            let buffer = &self.buffers[&slot][start as usize..][..len as usize];
            self.sent.extend_from_slice(buffer);
            if pdu.data_digest() {
                self.sent.extend_from_slice(&crc32c(buffer).to_le_bytes());
            }
        }
    }

    pub(crate) fn buffers_bound(&self) -> usize {
        self.buffers.len()
    }

    fn replies(&mut self) -> Vec<Reply> {
        let mut replies = Vec::new();
        let mut data: Option<Reply> = None;
        loop {
            self.parsed += self.reader.handle(&self.sent[self.parsed..]);
            match self.reader.poll_event() {
                Some(Event::Header(header)) => match header {
                    Header::IcResp(resp) => {
                        assert_eq!(resp.digests(), self.digests);
                        self.reader.set_digests(self.digests);
                        replies.push(Reply::IcResp {
                            maxh2cdata: resp.maxh2cdata,
                        });
                    }
                    Header::CapsuleResp(resp) => replies.push(Reply::Response(resp.cqe)),
                    Header::R2t(r2t) => replies.push(Reply::R2t(r2t)),
                    Header::TermReq(term) => {
                        replies.push(Reply::Terminate {
                            fes: term.fes.0,
                            fei: term.fei,
                        });
                    }
                    Header::C2HData(pdu) => {
                        let start = self.parsed;
                        let end = start + pdu.datal as usize;
                        let bytes = self.sent[start..end].to_vec();
                        self.parsed = end;
                        self.reader.advance_payload(pdu.datal, Some(crc32c(&bytes)));
                        data = Some(Reply::Data {
                            cid: pdu.cccid,
                            offset: pdu.datao,
                            bytes,
                            last: pdu.last,
                            success: pdu.success,
                        });
                    }
                    other => panic!("a controller does not send {other:?}"),
                },
                Some(Event::PayloadEnd | Event::DigestOk) => replies.extend(data.take()),
                Some(other) => panic!("{other:?}"),
                None if self.parsed == self.sent.len() => return replies,
                None => {}
            }
        }
    }
}

/// Host side: PDUs.
impl Glue {
    pub(crate) fn icreq(&mut self, id: ConnId, digests: Digests) {
        self.conn(id).digests = digests;
        let icreq = IcReq {
            pfv: 0,
            hpda: self.hpda,
            header_digest: digests.header,
            data_digest: digests.data,
            maxr2t: 0,
        };
        self.receive(id, &icreq.encode());
    }

    pub(crate) fn digests(&mut self, id: ConnId) -> Digests {
        self.conn(id).digests
    }

    /// A capsule's bytes, with in-capsule data or none.
    pub(crate) fn capsule(&mut self, id: ConnId, sqe: Sqe, data: &[u8]) -> Vec<u8> {
        let digests = self.conn(id).digests;
        let len = u32::try_from(data.len()).expect("short");
        with_digests(&CapsuleCmd { sqe }.encode(digests, 0, len), data, digests)
    }

    pub(crate) fn h2c(&mut self, id: ConnId, pdu: H2CData, data: &[u8]) -> Vec<u8> {
        let digests = self.conn(id).digests;
        with_digests(&pdu.encode(digests, 0), data, digests)
    }

    pub(crate) fn next_cid(&mut self, id: ConnId) -> CommandId {
        let conn = self.conn(id);
        conn.next_cid = conn.next_cid.wrapping_add(1);
        CommandId(conn.next_cid)
    }

    /// Sends a command without data, or one that reads.
    pub(crate) fn send(&mut self, id: ConnId, sqe: Sqe) -> CommandId {
        let cid = self.next_cid(id);
        let bytes = self.capsule(id, sqe.with_cid(cid), &[]);
        self.receive(id, &bytes);
        cid
    }

    pub(crate) fn send_with_data(&mut self, id: ConnId, sqe: Sqe, data: &[u8]) -> CommandId {
        let cid = self.next_cid(id);
        let len = u32::try_from(data.len()).expect("short");
        let sqe = sqe.with_cid(cid).with_sgl1(Sgl::in_capsule(len));
        let bytes = self.capsule(id, sqe, data);
        self.receive(id, &bytes);
        cid
    }

    /// A command whose one reply is its completion.
    pub(crate) fn command(&mut self, id: ConnId, sqe: Sqe) -> Cqe {
        let cid = self.send(id, sqe.with_sgl1(Sgl::transport(0)));
        let cqe = self.reply(id).cqe();
        assert_eq!(cqe.cid, cid);
        cqe
    }

    /// A command that reads `len` bytes: its data, or its status.
    pub(crate) fn read_data(&mut self, id: ConnId, sqe: Sqe, len: u32) -> Result<Vec<u8>, Status> {
        self.send(id, sqe.with_sgl1(Sgl::transport(len)));
        let mut replies = self.replies(id).into_iter();
        match replies.next() {
            Some(Reply::Data {
                bytes,
                offset,
                last,
                success,
                ..
            }) => {
                assert_eq!((offset, last, bytes.len()), (0, true, len as usize));
                let cqe = replies.next().map(|reply| reply.cqe());
                assert_eq!(success, cqe.is_none());
                assert!(cqe.is_none_or(|cqe| cqe.status.is_success()));
                Ok(bytes)
            }
            Some(reply) => Err(reply.cqe().status),
            None => panic!("no reply"),
        }
    }

    pub(crate) fn status_with_data(&mut self, id: ConnId, sqe: Sqe, data: &[u8]) -> Status {
        self.send_with_data(id, sqe, data);
        self.reply(id).cqe().status
    }

    /// Sends a write by R2T and plays the host's part.
    pub(crate) fn write_by_r2t(&mut self, id: ConnId, sqe: Sqe, data: &[u8]) -> Cqe {
        let len = u32::try_from(data.len()).expect("short");
        let cid = self.send(id, sqe.with_sgl1(Sgl::transport(len)));
        loop {
            match self.reply(id) {
                Reply::R2t(r2t) => {
                    assert_eq!(r2t.cccid, cid);
                    let range = r2t.r2to as usize..(r2t.r2to + r2t.r2tl) as usize;
                    let pdu = h2c_data(&r2t);
                    let bytes = self.h2c(id, pdu, &data[range]);
                    self.receive(id, &bytes);
                }
                reply => return reply.cqe(),
            }
        }
    }
}

/// Where blocks are on a disk.
fn range(lba: u64, blocks: u32) -> Range<usize> {
    let start = usize::try_from(lba).expect("small") * BLOCK as usize;
    start..start + blocks as usize * BLOCK as usize
}

/// The one PDU that answers an R2T.
pub(crate) fn h2c_data(r2t: &R2t) -> H2CData {
    H2CData {
        cccid: r2t.cccid,
        ttag: r2t.ttag,
        datao: r2t.r2to,
        datal: r2t.r2tl,
        last: true,
    }
}

fn with_digests(header: &[u8], data: &[u8], digests: Digests) -> Vec<u8> {
    let mut bytes = header.to_vec();
    if digests.header {
        bytes.extend_from_slice(&crc32c(header).to_le_bytes());
    }
    bytes.extend_from_slice(data);
    if digests.data && !data.is_empty() {
        bytes.extend_from_slice(&crc32c(data).to_le_bytes());
    }
    bytes
}

/// Host side: queues.
impl Glue {
    pub(crate) fn connect_data(subnqn: &str, hostnqn: &str, cntlid: u16) -> ConnectData {
        ConnectData {
            hostid: [7; 16],
            cntlid: ControllerId(cntlid),
            subnqn: Nqn::new(subnqn).expect("valid"),
            hostnqn: Nqn::new(hostnqn).expect("valid"),
        }
    }

    pub(crate) fn connect_command(qid: u16, sqsize: u16) -> Connect {
        Connect {
            recfmt: 0,
            qid: QueueId(qid),
            sqsize,
            cattr: 0,
            kato_ms: 0,
        }
        .with_sq_flow_control_disabled(true)
    }

    /// A connection with ICReq done.
    pub(crate) fn initialized(&mut self, digests: Digests) -> ConnId {
        let id = self.open();
        self.icreq(id, digests);
        assert!(matches!(self.reply(id), Reply::IcResp { .. }));
        id
    }

    pub(crate) fn connect(&mut self, id: ConnId, command: Connect, data: &ConnectData) -> Cqe {
        self.send_with_data(id, command.encode(), &data.encode());
        self.reply(id).cqe()
    }

    /// An admin queue, not yet enabled, and its controller id.
    pub(crate) fn admin_with(&mut self, digests: Digests, kato_ms: u32) -> (ConnId, u16) {
        let id = self.initialized(digests);
        let command = Connect {
            kato_ms,
            ..Self::connect_command(0, 31)
        };
        let cqe = self.connect(id, command, &Self::connect_data(SUBNQN, HOSTNQN, 0xFFFF));
        assert_eq!(cqe.status, Status::SUCCESS);
        (id, u16::try_from(cqe.result & 0xFFFF).expect("16 bits"))
    }

    pub(crate) fn set_cc(&mut self, admin: ConnId, cc: u32) {
        let cqe = self.command(admin, PropertySet::dword(offset::CC, cc).encode());
        assert_eq!(cqe.status, Status::SUCCESS);
    }

    pub(crate) fn csts(&mut self, admin: ConnId) -> u32 {
        let cqe = self.command(admin, PropertyGet::dword(offset::CSTS).encode());
        u32::try_from(cqe.result).expect("32 bits")
    }

    /// An enabled controller.
    pub(crate) fn admin(&mut self) -> (ConnId, u16) {
        self.enabled(Digests::NONE, 0)
    }

    pub(crate) fn enabled(&mut self, digests: Digests, kato_ms: u32) -> (ConnId, u16) {
        let (admin, cntlid) = self.admin_with(digests, kato_ms);
        self.set_cc(admin, CC_ENABLE);
        assert_eq!(self.csts(admin), 1);
        (admin, cntlid)
    }

    pub(crate) fn io_queue(&mut self, digests: Digests, cntlid: u16, qid: u16) -> ConnId {
        let id = self.initialized(digests);
        let data = Self::connect_data(SUBNQN, HOSTNQN, cntlid);
        let cqe = self.connect(id, Self::connect_command(qid, 127), &data);
        assert_eq!(cqe.status, Status::SUCCESS);
        assert_eq!(cqe.sqhd, 0xFFFF, "SQ flow control is off");
        id
    }

    /// An admin queue and one I/O queue.
    pub(crate) fn queues(&mut self, digests: Digests) -> (ConnId, ConnId) {
        let (admin, cntlid) = self.enabled(digests, 0);
        (admin, self.io_queue(digests, cntlid, 1))
    }

    pub(crate) fn identify(
        &mut self,
        admin: ConnId,
        cns: u8,
        nsid: u32,
    ) -> Result<[u8; 4096], Status> {
        let sqe = Identify::new(cns).encode().with_nsid(NamespaceId(nsid));
        self.read_data(admin, sqe, 4096)
            .map(|bytes| bytes.try_into().expect("4096"))
    }

    pub(crate) fn log(&mut self, admin: ConnId, log: GetLogPage) -> Result<Vec<u8>, Status> {
        let len = u32::try_from(log.bytes()).expect("short");
        self.read_data(admin, log.encode().with_nsid(NamespaceId::BROADCAST), len)
    }
}

/// EN, IOSQES 6, IOCQES 4.
pub(crate) const CC_ENABLE: u32 = 0x0046_0001;

pub(crate) fn io(opcode: u8, lba: u64, blocks: u32) -> Sqe {
    let nlb = u16::try_from(blocks - 1).expect("at most 65536");
    Sqe::new(opcode)
        .with_nsid(NamespaceId(1))
        .with_slba(lba)
        .with_nlb(nlb)
        .with_sgl1(Sgl::transport(blocks * BLOCK))
}

pub(crate) fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len)
        .map(|at| u8::try_from(at % 251).expect("small") ^ seed)
        .collect()
}
