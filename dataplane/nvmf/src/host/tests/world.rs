//! A host and a target of this crate with a wire between them, in virtual time.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;

use bowline_nvme::nvm::DsmRange;
use bowline_nvme::{NamespaceId, Nanos, Sqe, Status};

use super::*;
use crate::host::{ControllerConfig, HostController, HostEvent, HostState, command};
use crate::target::{self, ConnId, IoOp, Target, TargetConfig};

pub(super) const BLOCK: usize = 512;
pub(super) const BLOCKS: u64 = 4096;
pub(super) const NSID: NamespaceId = NamespaceId(1);

pub(super) fn geometry(blocks: u64) -> target::NsGeometry {
    target::NsGeometry {
        block_bytes: 512,
        blocks,
        used_blocks: blocks,
        volatile_cache: true,
        read_only: false,
        atomic_write_blocks: 1,
        optimal_io_blocks: 0,
        deallocate: target::Deallocate::ReadsZero,
        deallocate_granularity_blocks: 0,
        write_zeroes: true,
        thin: false,
    }
}

pub(super) fn namespace(id: u8, blocks: u64) -> target::NamespaceConfig {
    target::NamespaceConfig {
        nsid: None,
        handle: target::NamespaceHandle(id.into()),
        geometry: geometry(blocks),
        uuid: [id; 16],
        nguid: [id; 16],
        ana_group: None,
        persistence: target::Persistence::Unsupported,
        shared: false,
        allocation: None,
    }
}

pub(super) fn new_target(now: Nanos) -> Target {
    let subnqn = identity().subnqn;
    let mut target = Target::new(TargetConfig {
        icd_bytes: 4096,
        mdts_bytes: 64 << 10,
        maxh2cdata_bytes: 8192,
        ..TargetConfig::default()
    });
    let mut subsystem = target::SubsystemConfig::new(subnqn.as_str(), "SERIAL");
    subsystem.hosts = target::Hosts::Any;
    target
        .add_subsystem(now, subsystem)
        .expect("a good subsystem");
    target
        .add_namespace(now, subnqn.as_str(), namespace(1, BLOCKS))
        .expect("a good namespace");
    target
}

pub(super) struct Link {
    pub(super) conn: ConnId,
    pub(super) to_target: VecDeque<u8>,
    pub(super) to_host: VecDeque<u8>,
    /// The target closed; what it sent before still arrives.
    pub(super) ended: bool,
}

/// Both sides, the wire, and the disk.
pub(super) struct World {
    pub(super) host: HostController,
    pub(super) target: Target,
    pub(super) disk: Vec<u8>,
    pub(super) links: HashMap<u16, Link>,
    pub(super) host_buffers: HashMap<(u16, SlotId), Vec<u8>>,
    pub(super) target_buffers: HashMap<(ConnId, target::SlotId), Vec<u8>>,
    /// Bytes of one delivery.
    pub(super) chunk: usize,
    /// Bytes until a connection is cut, and which.
    pub(super) cut: Option<(usize, u16)>,
    pub(super) now: Nanos,
    pub(super) events: Vec<HostEvent>,
    pub(super) done: Vec<(Completion, Vec<u8>)>,
}

impl World {
    pub(super) fn new(config: ControllerConfig, chunk: usize) -> Self {
        let now = Nanos::from_secs(1);
        Self {
            host: HostController::new(config),
            target: new_target(now),
            disk: vec![0; BLOCK * usize::try_from(BLOCKS).expect("small")],
            links: HashMap::new(),
            host_buffers: HashMap::new(),
            target_buffers: HashMap::new(),
            chunk,
            cut: None,
            now,
            events: Vec::new(),
            done: Vec::new(),
        }
    }

    pub(super) fn connected(config: ControllerConfig, chunk: usize) -> Self {
        let mut world = Self::new(config, chunk);
        world.host.connect(world.now);
        world.run_until_ready();
        world.events.clear();
        world
    }

    pub(super) fn run_until_ready(&mut self) {
        for _ in 0..1000 {
            self.settle();
            match self.host.state() {
                HostState::Ready => return,
                HostState::Stopped => break,
                _ => self.step_time(Nanos::MAX),
            }
        }
        panic!("never ready: {:?} {:?}", self.host.state(), self.events);
    }

    /// Goes to the next timer, if it is not after `limit`.
    pub(super) fn step_time(&mut self, limit: Nanos) {
        let timers = [self.host.poll_timeout(), self.target.poll_timeout()];
        let next = timers.into_iter().flatten().min().unwrap_or(limit);
        self.now = next.min(limit).max(self.now);
        self.host.handle_timeout(self.now);
        self.target.handle_timeout(self.now);
        self.settle();
    }

    pub(super) fn run_for(&mut self, span: Nanos) {
        let until = self.now.after(span);
        self.settle();
        while self.now < until {
            self.step_time(until);
        }
    }

    pub(super) fn settle(&mut self) {
        for round in 0.. {
            assert!(round < 1_000_000, "the two never come to rest");
            let mut worked = self.host_events();
            worked |= self.target_outputs();
            let mut queues: Vec<u16> = self.links.keys().copied().collect();
            queues.sort_unstable();
            for queue in &queues {
                self.host_outputs(*queue);
                worked |= self.carry_to_target(*queue);
                worked |= self.carry_to_host(*queue);
            }
            worked |= self.links.len() < queues.len();
            if !worked {
                return;
            }
        }
    }

    pub(super) fn host_events(&mut self) -> bool {
        let mut worked = false;
        while let Some(event) = self.host.poll_event(self.now) {
            worked = true;
            match event {
                HostEvent::Open { queue } => self.open(queue),
                HostEvent::Close { queue } => {
                    self.host_outputs(queue);
                    if let Some(link) = self.links.remove(&queue) {
                        self.target.closed(self.now, link.conn);
                        self.target_buffers
                            .retain(|(conn, _), _| *conn != link.conn);
                    }
                }
                HostEvent::Complete { queue, completion } => {
                    let data = self.host_buffers.remove(&(queue, completion.slot));
                    self.done.push((completion, data.unwrap_or_default()));
                }
                other => self.events.push(other),
            }
        }
        worked
    }

    pub(super) fn open(&mut self, queue: u16) {
        let addr = SocketAddr::from(([127, 0, 0, 1], 4420));
        let path = target::Path {
            local: addr,
            peer: addr,
            listener: 1,
        };
        let conn = self
            .target
            .open(self.now, path)
            .expect("room for a connection");
        let link = Link {
            conn,
            to_target: VecDeque::new(),
            to_host: VecDeque::new(),
            ended: false,
        };
        self.links.insert(queue, link);
        self.host.opened(self.now, queue);
    }

    pub(super) fn host_outputs(&mut self, queue: u16) {
        let Some(link) = self.links.get_mut(&queue) else {
            return;
        };
        while let Some(output) = self.host.poll_output(queue) {
            let mut header = Vec::new();
            output.pdu.encode_into(&mut header);
            link.to_target.extend(header);
            let payload = match output.payload {
                TxPayload::None => continue,
                TxPayload::Slot { slot, offset, len } => {
                    &self.host_buffers[&(queue, slot)][offset as usize..(offset + len) as usize]
                }
                TxPayload::Control { offset, len } => {
                    &self.host.control(queue)[offset as usize..(offset + len) as usize]
                }
            };
            link.to_target.extend(payload);
            if output.pdu.data_digest() {
                link.to_target.extend(crc32c(payload).to_le_bytes());
            }
        }
    }

    /// The next bytes of a direction, unless they meet the cut.
    pub(super) fn delivery(&mut self, queue: u16, to_target: bool) -> Option<Vec<u8>> {
        let link = self.links.get_mut(&queue)?;
        let wire = if to_target {
            &mut link.to_target
        } else {
            &mut link.to_host
        };
        let mut len = wire.len().min(self.chunk);
        if let Some((left, victim)) = &mut self.cut
            && *victim == queue
        {
            len = len.min(*left);
            *left -= len;
            if *left == 0 {
                self.cut = None;
                self.cut_link(queue);
                return None;
            }
        }
        let wire = if to_target {
            &mut link.to_target
        } else {
            &mut link.to_host
        };
        (len > 0).then(|| wire.drain(..len).collect())
    }

    pub(super) fn cut_link(&mut self, queue: u16) {
        if let Some(link) = self.links.remove(&queue) {
            self.target.closed(self.now, link.conn);
            self.target_buffers
                .retain(|(conn, _), _| *conn != link.conn);
            self.host.closed(self.now, queue);
        }
    }

    pub(super) fn carry_to_target(&mut self, queue: u16) -> bool {
        let Some(conn) = self.links.get(&queue).map(|link| link.conn) else {
            return false;
        };
        if self.target.rx(conn) == target::Rx::Hold {
            return false;
        }
        let Some(bytes) = self.delivery(queue, true) else {
            return false;
        };
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let taken = match self.target.rx(conn) {
                target::Rx::Closed => break,
                target::Rx::Hold => {
                    // What cannot be taken now stays on the wire.
                    let link = self.links.get_mut(&queue).expect("open");
                    rest.iter()
                        .rev()
                        .for_each(|byte| link.to_target.push_front(*byte));
                    break;
                }
                target::Rx::Bytes => self.target.handle_bytes(self.now, conn, rest),
                target::Rx::Discard { len } => {
                    let dropped = rest.len().min(len as usize);
                    let count = u32::try_from(dropped).expect("within len");
                    self.target.handle_payload(self.now, conn, count, None);
                    dropped
                }
                target::Rx::Payload {
                    slot,
                    offset,
                    len,
                    digest_from,
                    transfer_len,
                } => {
                    let buffer = self
                        .target_buffers
                        .entry((conn, slot))
                        .or_insert_with(|| vec![0; transfer_len as usize]);
                    let landed = rest.len().min(len as usize);
                    let end = offset as usize + landed;
                    buffer[offset as usize..end].copy_from_slice(&rest[..landed]);
                    let crc = digest_from
                        .filter(|_| landed == len as usize)
                        .map(|begin| crc32c(&buffer[begin as usize..end]));
                    let count = u32::try_from(landed).expect("within len");
                    self.target.handle_payload(self.now, conn, count, crc);
                    landed
                }
            };
            rest = &rest[taken..];
        }
        true
    }

    pub(super) fn carry_to_host(&mut self, queue: u16) -> bool {
        let Some(bytes) = self.delivery(queue, false) else {
            let ended = self
                .links
                .get(&queue)
                .is_some_and(|link| link.ended && link.to_host.is_empty());
            if ended {
                self.cut_link(queue);
            }
            return ended;
        };
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let taken = match self.host.rx(queue) {
                Rx::Closed => break,
                Rx::Bytes => self.host.handle_bytes(self.now, queue, rest),
                Rx::Payload {
                    slot,
                    offset,
                    len,
                    digest_from,
                } => {
                    let buffer = self.host_buffers.get_mut(&(queue, slot)).expect("bound");
                    let landed = rest.len().min(len as usize);
                    let end = offset as usize + landed;
                    buffer[offset as usize..end].copy_from_slice(&rest[..landed]);
                    let crc = digest_from
                        .filter(|_| landed == len as usize)
                        .map(|begin| crc32c(&buffer[begin as usize..end]));
                    let count = u32::try_from(landed).expect("within len");
                    self.host.handle_payload(self.now, queue, count, crc);
                    landed
                }
            };
            rest = &rest[taken..];
        }
        true
    }

    pub(super) fn target_outputs(&mut self) -> bool {
        let mut worked = false;
        while let Some(conn) = self.target.poll_dirty() {
            while let Some(output) = self.target.poll_output(self.now, conn) {
                worked = true;
                self.target_output(conn, output);
            }
        }
        worked
    }

    pub(super) fn target_output(&mut self, conn: ConnId, output: target::Output) {
        let now = self.now;
        match output {
            target::Output::NeedBuffer { slot, len } => {
                self.target_buffers
                    .insert((conn, slot), vec![0; len as usize]);
                self.target.handle_buffer(now, conn, slot);
            }
            target::Output::Fill { slot, len } => {
                let mut data = vec![0; len as usize];
                self.target.fill(now, conn, slot, &mut data);
                self.target_buffers.insert((conn, slot), data);
            }
            target::Output::Inspect { slot, .. } => {
                let data = self.target_buffers[&(conn, slot)].clone();
                self.target.inspect(now, conn, slot, &data);
            }
            target::Output::Execute { slot, command } => {
                let status = self.execute(conn, slot, command);
                self.target.complete(now, conn, slot, status);
            }
            target::Output::Send {
                pdu,
                payload,
                release,
            } => {
                let link = self.links.values_mut().find(|link| link.conn == conn);
                if let Some(link) = link {
                    let mut header = Vec::new();
                    pdu.encode_into(&mut header);
                    link.to_host.extend(header);
                    if let Some((slot, offset, len)) = payload {
                        let data = &self.target_buffers[&(conn, slot)];
                        let part = &data[offset as usize..(offset + len) as usize];
                        link.to_host.extend(part);
                        if pdu.data_digest() {
                            link.to_host.extend(crc32c(part).to_le_bytes());
                        }
                    }
                }
                if let Some(slot) = release {
                    self.target_buffers.remove(&(conn, slot));
                }
            }
            target::Output::Release { slot } => {
                self.target_buffers.remove(&(conn, slot));
            }
            target::Output::Withdraw { slot } => self.target.withdrawn(now, conn, slot, false),
            target::Output::Route { .. } => self.target.resume(now, conn),
            target::Output::Close { .. } => {
                if let Some(link) = self.links.values_mut().find(|link| link.conn == conn) {
                    link.ended = true;
                }
            }
        }
    }

    pub(super) fn execute(
        &mut self,
        conn: ConnId,
        slot: target::SlotId,
        command: target::IoCommand,
    ) -> Status {
        let range = |lba: u64, blocks: u32| {
            let begin = usize::try_from(lba).expect("checked") * BLOCK;
            begin..begin + blocks as usize * BLOCK
        };
        match command.op {
            IoOp::Read { lba, blocks, .. } => {
                let data = self.disk[range(lba, blocks)].to_vec();
                self.target_buffers.insert((conn, slot), data);
            }
            IoOp::Write { lba, blocks, .. } => {
                let data = &self.target_buffers[&(conn, slot)];
                self.disk[range(lba, blocks)].copy_from_slice(data);
            }
            IoOp::Compare { lba, blocks, .. } => {
                if self.disk[range(lba, blocks)] != self.target_buffers[&(conn, slot)] {
                    return Status::COMPARE_FAILURE.dnr();
                }
            }
            IoOp::Flush | IoOp::Verify { .. } => {}
            IoOp::CompareAndWrite { .. } | IoOp::Copy { .. } => {
                panic!("our host does not send {command:?}")
            }
            IoOp::WriteZeroes { lba, blocks, .. } => self.disk[range(lba, blocks)].fill(0),
            IoOp::Deallocate { ranges } => {
                let data = self.target_buffers[&(conn, slot)].clone();
                for dsm in DsmRange::list(&data, ranges) {
                    self.disk[range(dsm.slba, dsm.blocks)].fill(0);
                }
            }
        }
        Status::SUCCESS
    }

    pub(super) fn submit(
        &mut self,
        queue: u16,
        sqe: Sqe,
        transfer: Transfer,
        data: Vec<u8>,
        token: u64,
    ) {
        let command = Command {
            sqe,
            transfer,
            token,
        };
        let slot = self.host.submit(self.now, queue, command).expect("room");
        self.host_buffers.insert((queue, slot), data);
    }

    pub(super) fn write(&mut self, queue: u16, lba: u64, data: &[u8], token: u64) {
        let nlb = u16::try_from(data.len() / BLOCK - 1).expect("small");
        let len = u32::try_from(data.len()).expect("small");
        let sqe = command::write(NSID, lba, nlb, false);
        self.submit(queue, sqe, Transfer::FromHost { len }, data.to_vec(), token);
    }

    pub(super) fn read(&mut self, queue: u16, lba: u64, blocks: u16, token: u64) {
        let bytes = usize::from(blocks) * BLOCK;
        let len = u32::try_from(bytes).expect("small");
        let sqe = command::read(NSID, lba, blocks - 1);
        self.submit(
            queue,
            sqe,
            Transfer::ToHost { len },
            vec![0xEE; bytes],
            token,
        );
    }

    /// Settles, and takes the one completion there is.
    pub(super) fn finish(&mut self) -> (Status, Vec<u8>) {
        self.settle();
        assert_eq!(self.done.len(), 1, "{:?}", self.events);
        let (completion, data) = self.done.remove(0);
        (completion.status, data)
    }

    pub(super) fn check_read(&mut self, lba: u64, expected: &[u8]) {
        self.read(
            1,
            lba,
            u16::try_from(expected.len() / BLOCK).expect("small"),
            0,
        );
        let (status, data) = self.finish();
        assert_eq!(status, Status::SUCCESS);
        assert!(data == expected, "other data at {lba}");
    }
}
