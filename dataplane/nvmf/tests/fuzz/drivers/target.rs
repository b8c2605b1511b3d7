//! The target's state machine, driven by many hosts that are right, wrong, or gone, by devices in
//! no hurry, and by an operator who changes his mind; and what must hold whatever they do.

use std::net::SocketAddr;
use std::sync::Arc;

use bowline_nvme::fabrics::{Connect, ConnectData, PropertySet, offset};
use bowline_nvme::nqn::{self, Nqn};
use bowline_nvme::opcode::{admin, io};
use bowline_nvme::pdu::{Digests, Direction, H2CData, TermReq, Violation};
use bowline_nvme::{CommandId, ControllerId, Fuse, NamespaceId, Nanos, QueueId, Sgl, Sqe, Status};
use bowline_nvmf::target::{
    AnaConfig, AnaState, ConnectionState, Deallocate, DiscoveryKind, DiscoveryRecord,
    DiscoveryTable, Hosts, NamespaceConfig, NamespaceHandle, NsGeometry, Path, Persistence, Rx,
    SubsystemConfig, Target, TargetConfig,
};

use super::commands::{self, Wanted};
use super::input::Input;
use super::peer::Peer;
use super::target_side::TargetSide;

const SUBNQN: &str = "nqn.2026-11.io.bowline:fuzz";
const BYSTANDER_SUBNQN: &str = "nqn.2026-11.io.bowline:bystander";
const HOSTS: [&str; 3] = ["nqn.2026-11.io.bowline:a", "nqn.2026-11.io.bowline:b", "c"];
const BYSTANDER: &str = "nqn.2026-11.io.bowline:quiet";
const BLOCKS: u64 = 64;
const OPERATIONS_MAX: usize = 400;
const PEERS_MAX: usize = 8;
const STATUSES: [Status; 5] = [
    Status::SUCCESS,
    Status::SUCCESS,
    Status::INTERNAL,
    Status::COMPARE_FAILURE,
    Status::UNRECOVERED_READ,
];
const ANA_STATES: [AnaState; 6] = [
    AnaState::Optimized,
    AnaState::Optimized,
    AnaState::NonOptimized,
    AnaState::Inaccessible,
    AnaState::PersistentLoss,
    AnaState::Change,
];
const SPANS: [Nanos; 6] = [
    Nanos(1),
    Nanos(1_000_000),
    Nanos(1_000_000_000),
    Nanos(5_000_000_000),
    Nanos(31_000_000_000),
    Nanos(130_000_000_000),
];

struct Fuzz {
    side: TargetSide,
    now: Nanos,
    peers: Vec<Peer>,
    /// The honest host whom nothing may disturb: its admin and its I/O queue.
    bystander: [Peer; 2],
    next_handle: u32,
    /// Devices run Reads and Writes as they come.
    at_once: bool,
}

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut fuzz = Fuzz::new(&mut input);
    for _ in 0..OPERATIONS_MAX {
        if input.is_empty() {
            break;
        }
        fuzz.operation(&mut input);
        fuzz.exchange();
    }
    fuzz.finish(&mut input);
}

pub(super) fn namespace(handle: u32, nsid: u32, free: u8) -> NamespaceConfig {
    let mut id = [0xA5; 16];
    id[..4].copy_from_slice(&handle.to_le_bytes());
    NamespaceConfig {
        nsid: Some(nsid),
        handle: NamespaceHandle(handle),
        geometry: geometry(BLOCKS, free),
        uuid: id,
        nguid: id,
        ana_group: (free & 8 != 0).then_some(u32::from(free & 3) + 1),
        persistence: if free & 1 != 0 {
            Persistence::Stored(None)
        } else {
            Persistence::Unsupported
        },
        shared: free & 16 != 0,
        allocation: None,
    }
}

fn geometry(blocks: u64, free: u8) -> NsGeometry {
    NsGeometry {
        block_bytes: 512,
        blocks,
        used_blocks: 0,
        volatile_cache: free & 1 != 0,
        read_only: free & 0x82 == 0x82,
        atomic_write_blocks: u32::from(free >> 4),
        optimal_io_blocks: 8,
        deallocate: match free >> 2 & 3 {
            0 => Deallocate::None,
            1 => Deallocate::Undefined,
            _ => Deallocate::ReadsZero,
        },
        deallocate_granularity_blocks: 1,
        write_zeroes: free & 0x30 != 0x30,
        thin: free & 0x40 != 0,
    }
}

impl Fuzz {
    fn new(input: &mut Input<'_>) -> Self {
        let now = Nanos::from_secs(1000);
        let free = input.u8();
        let mut target = Target::new(TargetConfig {
            icd_bytes: if free & 1 == 0 { 4096 } else { 0 },
            mdts_bytes: 16 << 10,
            maxh2cdata_bytes: 4096,
            io_queue_entries_max: 16,
            io_queues_max: 3,
            connections_max: 12,
            unassociated_per_address_max: 6,
            ..TargetConfig::default()
        });
        for (nqn, host) in [(SUBNQN, None), (BYSTANDER_SUBNQN, Some(BYSTANDER))] {
            let hosts = match host {
                None if free & 2 == 0 => Hosts::Any,
                None => Hosts::Only(vec![HOSTS[0].to_owned(), HOSTS[1].to_owned()]),
                Some(host) => Hosts::Only(vec![host.to_owned()]),
            };
            let subsystem = SubsystemConfig {
                hosts,
                namespaces_max: 16,
                controllers_max: 4,
                ana: Some(AnaConfig {
                    groups_max: 4,
                    ..AnaConfig::default()
                }),
                ..SubsystemConfig::new(nqn, "FUZZ")
            };
            target.add_subsystem(now, subsystem).expect("valid");
        }
        for (nqn, handle, nsid) in [(SUBNQN, 1, 1), (SUBNQN, 2, 2), (BYSTANDER_SUBNQN, 3, 1)] {
            let config = namespace(handle, nsid, free >> 2 & 0x1D);
            target.add_namespace(now, nqn, config).expect("valid");
        }
        let mut side = TargetSide::new(target);
        side.generous = true;
        let path = Path {
            peer: address(9),
            ..Path::default()
        };
        let bystander = [(); 2].map(|()| {
            let id = side.open(now, path).expect("room");
            Peer::new(id, side.target.config())
        });
        let mut fuzz = Self {
            side,
            now,
            peers: Vec::new(),
            bystander,
            next_handle: 4,
            at_once: free & 8 != 0,
        };
        fuzz.connect_bystander();
        fuzz.side.generous = free & 0x80 == 0;
        fuzz
    }

    fn operation(&mut self, input: &mut Input<'_>) {
        let operation = input.u8();
        match operation >> 3 {
            0 => {
                self.open(input);
            }
            1 | 2 => self.open_admin(input),
            3 | 4 => self.open_io(input),
            5..=12 => self.command(input),
            13..=16 => self.data(input),
            17..=20 => self.device(input),
            21 | 22 => self.grant(input),
            23 => self.advance(input.one_of(&SPANS)),
            24 => self.drop_peer(input),
            25 if operation & 1 == 0 => self.namespaces(input),
            25 => self.ana(input),
            26 => self.hosts(input),
            27 => self.raw(input),
            28 => self.damaged(input),
            29 => self.flood(input),
            30 if operation & 1 == 0 => self.check_bystander(),
            30 => self.at_once = operation & 2 == 0,
            _ => match operation & 7 {
                0 => self.side.generous = true,
                1 => self.side.generous = false,
                2 => self.side.window = usize::MAX,
                3 => self.side.window = 200,
                4 => self.hand_over(),
                5 => self.side.part_bytes = None,
                6 => self.side.part_bytes = Some(1024),
                _ => self.stalled(input),
            },
        }
    }

    fn peer(&mut self, input: &mut Input<'_>) -> Option<usize> {
        let count = self.peers.len();
        (count > 0).then(|| input.below(count))
    }

    fn open(&mut self, input: &mut Input<'_>) -> Option<usize> {
        if self.peers.len() >= PEERS_MAX {
            self.drop_at(0);
        }
        let path = Path {
            peer: address(input.u8() & 1),
            ..Path::default()
        };
        let id = self.side.open(self.now, path)?;
        self.peers.push(Peer::new(id, self.side.target.config()));
        Some(self.peers.len() - 1)
    }

    /// A connection that has sent ICReq and Connect.
    fn connect(&mut self, input: &mut Input<'_>, qid: u16, cntlid: u16, subnqn: &str) {
        let Some(at) = self.open(input) else { return };
        let free = input.u8();
        let digests = Digests {
            header: free & 1 != 0,
            data: free & 2 != 0,
        };
        let hostnqn = HOSTS[usize::from(free >> 2 & 3).min(2)];
        let kato_ms = [0, 0, 1000, 5000][usize::from(free >> 4 & 3)];
        let (sqe, data) = connect(qid, cntlid, subnqn, hostnqn, kato_ms, free & 0x40 != 0);
        let peer = &mut self.peers[at];
        peer.icreq(digests, if free & 0x80 != 0 { free >> 3 } else { 0 });
        peer.connect(qid, sqe, &data);
    }

    fn open_admin(&mut self, input: &mut Input<'_>) {
        let free = input.u8();
        let subnqn = match free & 7 {
            0 => nqn::DISCOVERY,
            1 => BYSTANDER_SUBNQN,
            _ => SUBNQN,
        };
        let cntlid = if free >> 3 == 31 { input.u16() } else { 0xFFFF };
        self.connect(input, 0, cntlid, subnqn);
        self.exchange();
        if let Some(peer) = self.peers.last_mut().filter(|peer| peer.queue.is_some()) {
            let cid = peer.next_cid();
            let sqe = PropertySet::dword(offset::CC, 0x0046_0001)
                .encode()
                .with_cid(cid);
            peer.command(sqe.with_sgl1(Sgl::transport(0)), &[]);
        }
    }

    fn open_io(&mut self, input: &mut Input<'_>) {
        let admins = self.peers.iter().filter_map(|peer| peer.queue);
        let admins: Vec<u16> = admins.filter(|(qid, _)| *qid == 0).map(|it| it.1).collect();
        if !admins.is_empty() {
            let cntlid = input.one_of(&admins);
            let qid = u16::from(input.u8() & 3) + 1;
            self.connect(input, qid, cntlid, SUBNQN);
        }
    }

    fn command(&mut self, input: &mut Input<'_>) {
        let Some(at) = self.peer(input) else { return };
        let is_admin = matches!(self.peers[at].queue, Some((0, _)));
        let wanted = if is_admin {
            commands::admin(input)
        } else {
            commands::io(input)
        };
        let second = (wanted.sqe.fuse() == Fuse::First && input.u8() < 224)
            .then(|| commands::second_half(&wanted, input));
        for Wanted { sqe, in_capsule } in [Some(wanted), second].into_iter().flatten() {
            self.submit(at, sqe, &in_capsule, input);
        }
    }

    fn submit(&mut self, at: usize, sqe: Sqe, in_capsule: &[u8], input: &mut Input<'_>) {
        let peer = &mut self.peers[at];
        let cid = match input.u8() {
            255 => newest(peer),
            _ => peer.next_cid(),
        };
        let is_admin = peer.queue.is_some_and(|(qid, _)| qid == 0);
        let icd_bytes = self.side.target.config().icd_bytes as usize;
        peer.honest &= is_admin || in_capsule.len() <= icd_bytes;
        peer.command(sqe.with_cid(cid), in_capsule);
    }

    /// Answers an R2T, wholly or in part, or wrongly.
    fn data(&mut self, input: &mut Input<'_>) {
        let waiting = self.peers.iter().filter(|peer| !peer.r2ts.is_empty());
        let count = waiting.count();
        let chosen = input.below(count.max(1));
        let Some(peer) = self
            .peers
            .iter_mut()
            .filter(|it| !it.r2ts.is_empty())
            .nth(chosen)
        else {
            return;
        };
        let which = input.below(peer.r2ts.len());
        let r2t = &mut peer.r2ts[which];
        let free = input.u8();
        let datal = match free & 3 {
            0 => ((r2t.r2tl / 2) & !3).max(4).min(r2t.r2tl),
            _ => r2t.r2tl,
        };
        let last = datal == r2t.r2tl;
        let mut pdu = H2CData {
            cccid: r2t.cccid,
            ttag: r2t.ttag,
            datao: r2t.r2to,
            datal,
            last,
        };
        r2t.r2to += datal;
        r2t.r2tl -= datal;
        if last {
            peer.r2ts.remove(which);
        }
        if free >= 0xE0 {
            peer.honest = false;
            match free & 7 {
                0 => pdu.ttag = input.u16(),
                1 => pdu.cccid.0 ^= 1,
                2 => pdu.datao = pdu.datao.wrapping_add(input.u32()),
                3 => pdu.datal = u32::from(input.u16()),
                4 => pdu.last = !pdu.last,
                5 => pdu.datao = pdu.datao.wrapping_sub(4),
                6 => pdu.datal += 4,
                _ => pdu.ttag ^= 0x800,
            }
        }
        let opcode = [io::WRITE, io::DATASET_MANAGEMENT][usize::from(free & 4 != 0)];
        let data = commands::data(opcode, pdu.datal as usize, input);
        peer.h2c_data(pdu, &data);
    }

    fn device(&mut self, input: &mut Input<'_>) {
        if self.side.running.is_empty() {
            return;
        }
        let index = input.below(self.side.running.len());
        let running = self.side.running.remove(index);
        let status = match input.u8() {
            255 => Status::new(input.u8() & 7, input.u8()),
            free => STATUSES[usize::from(free) % STATUSES.len()],
        };
        self.side.finish(self.now, running, status);
    }

    fn grant(&mut self, input: &mut Input<'_>) {
        if !self.side.wishes.is_empty() {
            let index = input.below(self.side.wishes.len());
            self.side.grant(self.now, index);
        } else {
            self.side.stored(self.now, input.u8() != 255);
        }
    }

    fn advance(&mut self, span: Nanos) {
        self.now = self.now.after(span);
        self.side.timeout(self.now);
    }

    fn drop_peer(&mut self, input: &mut Input<'_>) {
        if let Some(at) = self.peer(input) {
            self.drop_at(at);
        }
    }

    fn drop_at(&mut self, at: usize) {
        let peer = self.peers.remove(at);
        self.side.drop_socket(self.now, peer.id);
    }

    fn namespaces(&mut self, input: &mut Input<'_>) {
        let nsid = u32::from(input.u8() & 3) + 1;
        let (now, free) = (self.now, input.u8());
        // What an operator may not do is refused; that is all there is to see.
        let target = &mut self.side.target;
        let _refused = match free & 3 {
            0 => target.remove_namespace(now, SUBNQN, nsid).is_err(),
            1 => {
                let blocks = BLOCKS + u64::from(free);
                let grown = geometry(blocks, free >> 2);
                target.update_namespace(now, SUBNQN, nsid, grown).is_err()
            }
            _ => {
                let handle = self.next_handle;
                self.next_handle += 1;
                let config = namespace(handle, nsid, free >> 2);
                target.add_namespace(now, SUBNQN, config).is_err()
            }
        };
        self.side.pump(now);
    }

    fn ana(&mut self, input: &mut Input<'_>) {
        let (now, free) = (self.now, input.u8());
        let group = u32::from(free & 3) + 1;
        let state = input.one_of(&ANA_STATES);
        let target = &mut self.side.target;
        let _refused = if free & 4 == 0 {
            let set = target.set_ana_state(now, SUBNQN, group, state);
            set.expect("there");
            false
        } else {
            let nsid = u32::from(free >> 3 & 3) + 1;
            target.set_ana_group(now, SUBNQN, nsid, group).is_err()
        };
        self.side.pump(now);
    }

    fn hosts(&mut self, input: &mut Input<'_>) {
        let (now, free) = (self.now, input.u8());
        let host = HOSTS[usize::from(free >> 4 & 3).min(2)];
        let target = &mut self.side.target;
        let done = match free & 7 {
            0 => target.disallow_host(now, SUBNQN, host),
            1 => target.allow_host(SUBNQN, host),
            2 => target.allow_any(SUBNQN),
            3 => target.set_hosts(now, SUBNQN, Hosts::Only(vec![host.to_owned()])),
            _ => {
                let record = |index: u16| DiscoveryRecord {
                    kind: DiscoveryKind::Nvm,
                    subnqn: SUBNQN.to_owned(),
                    address: address(1),
                    port_id: index,
                    hosts: Hosts::Any,
                };
                let entries = (0..u16::from(free >> 4)).map(record).collect();
                let table = DiscoveryTable::new(entries);
                target.set_discovery(now, Arc::new(table));
                Ok(())
            }
        };
        done.expect("valid");
        self.side.pump(now);
    }

    /// Bytes of no meaning, or the host's last word.
    fn raw(&mut self, input: &mut Input<'_>) {
        let Some(at) = self.peer(input) else { return };
        let len = input.u8();
        let peer = &mut self.peers[at];
        if len == 255 {
            let violation = Violation::field(u32::from(input.u8()));
            let term = TermReq::new(violation, input.bytes(24));
            let (bytes, used) = term.encode(Direction::HostToController);
            peer.unsent.extend(&bytes[..used]);
            return;
        }
        let bytes = input.bytes(usize::from(len));
        peer.honest &= bytes.is_empty();
        peer.unsent.extend(bytes);
    }

    /// A whole command with one bit, or its digest, damaged on the way.
    fn damaged(&mut self, input: &mut Input<'_>) {
        let Some(at) = self.peer(input) else { return };
        let peer = &mut self.peers[at];
        peer.honest = false;
        let begin = peer.unsent.len();
        let Wanted { sqe, in_capsule } = commands::io(input);
        let cid = peer.next_cid();
        peer.command(sqe.with_cid(cid), &in_capsule);
        let place = begin + usize::from(input.u16()) % (peer.unsent.len() - begin);
        peer.unsent[place] ^= 1 << (input.u8() & 7);
    }

    /// More commands than the queue holds.
    fn flood(&mut self, input: &mut Input<'_>) {
        let Some(at) = self.peer(input) else { return };
        let Wanted { sqe, in_capsule } = commands::io(input);
        let peer = &mut self.peers[at];
        peer.honest = false;
        for _ in 0..40 {
            let cid = peer.next_cid();
            peer.command(sqe.with_cid(cid), &in_capsule);
        }
    }

    fn stalled(&mut self, input: &mut Input<'_>) {
        if let Some(at) = self.peer(input) {
            let id = self.peers[at].id;
            self.side.target.stalled(self.now, id);
        }
    }

    /// Connections whose owner is asked for go away and come back, as between two reactors.
    fn hand_over(&mut self) {
        for at in 0..self.peers.len() {
            let id = self.peers[at].id;
            if let Some(adopted) = self.side.hand_over(self.now, id) {
                self.peers[at].id = adopted;
            }
        }
    }

    /// Carries bytes both ways until nothing moves.
    fn exchange(&mut self) {
        let now = self.now;
        loop {
            let mut moved = false;
            for peer in &mut self.peers {
                moved |= carry(&mut self.side, now, peer, self.at_once);
            }
            for peer in &mut self.bystander {
                moved |= carry(&mut self.side, now, peer, false);
            }
            if !moved {
                break;
            }
        }
        self.check_told();
        // Sockets that the target closed are gone.
        for at in (0..self.peers.len()).rev() {
            if !self.side.is_open(self.peers[at].id) {
                self.drop_at(at);
            }
        }
        self.check_bounds();
    }

    /// Who broke the protocol was told, and nobody else; then the connection ends.
    fn check_told(&mut self) {
        let linger = self.side.target.config().deadlines.linger;
        for peer in self.peers.iter_mut().chain(&mut self.bystander) {
            peer.referee.settle();
            let is_open = self.side.is_open(peer.id);
            if !peer.referee.is_told {
                assert!(!is_open || !peer.referee.is_over, "open after H2CTermReq");
            } else {
                // A TermReq of the host that came behind what it was told of was not heard.
                let told = *peer.told.get_or_insert(self.now);
                let is_late = self.now >= told.after(linger);
                assert!(!is_open || !is_late, "open though its host was told to go");
            }
        }
    }

    /// No connection holds more than its queue can.
    fn check_bounds(&mut self) {
        for peer in self.peers.iter().chain(&self.bystander) {
            let slots = usize::from(self.side.target.slots(peer.id));
            let conn = self.side.conn(peer.id).expect("open");
            assert!(conn.buffers.len() <= slots, "more buffers than slots");
            let bytes: usize = conn.buffers.values().map(Vec::len).sum();
            assert!(
                bytes <= slots * (16 << 10),
                "{bytes} bytes in {slots} slots"
            );
        }
        let slots: usize = 12 * 40;
        assert!(self.side.running.len() <= slots && self.side.wishes.len() <= slots);
    }

    fn settle(&mut self) {
        let generous = std::mem::replace(&mut self.side.generous, true);
        self.side.pump(self.now);
        loop {
            self.exchange();
            if !self.side.wishes.is_empty() {
                self.side.grant(self.now, 0);
                self.side.pump(self.now);
            } else if let Some(running) = self.side.running.pop() {
                self.side.finish(self.now, running, Status::SUCCESS);
            } else {
                break;
            }
        }
        self.exchange();
        self.side.generous = generous;
    }

    fn connect_bystander(&mut self) {
        let mut cntlid = 0xFFFF;
        for qid in 0..2 {
            let (sqe, data) = connect(qid, cntlid, BYSTANDER_SUBNQN, BYSTANDER, 0, false);
            let peer = &mut self.bystander[usize::from(qid)];
            peer.icreq(
                Digests {
                    header: true,
                    data: true,
                },
                0,
            );
            peer.connect(qid, sqe, &data);
            self.exchange();
            let peer = &mut self.bystander[usize::from(qid)];
            cntlid = peer.queue.expect("connected").1;
            if qid == 0 {
                let sqe = PropertySet::dword(offset::CC, 0x0046_0001).encode();
                let cid = peer.next_cid();
                peer.command(sqe.with_cid(cid).with_sgl1(Sgl::transport(0)), &[]);
                self.exchange();
            }
        }
    }

    /// The bystander's commands are carried out, whatever happens on other connections.
    fn check_bystander(&mut self) {
        let generous = std::mem::replace(&mut self.side.generous, true);
        let peer = &mut self.bystander[1];
        let before = peer.responses;
        let (id, cid) = (peer.id, peer.next_cid());
        let sqe = Sqe::new(io::READ)
            .with_nsid(NamespaceId(1))
            .with_sgl1(Sgl::transport(512));
        peer.command(sqe.with_cid(cid), &[]);
        self.exchange();
        let at = self
            .side
            .running
            .iter()
            .position(|running| running.conn == id);
        let running = self
            .side
            .running
            .remove(at.expect("the bystander's read is at its device"));
        self.side.finish(self.now, running, Status::SUCCESS);
        self.exchange();
        let peer = &mut self.bystander[1];
        assert_eq!(peer.responses, before + 1, "the bystander waits");
        assert_eq!(peer.reads.pop().map(|read| read.len()), Some(512));
        self.side.generous = generous;
    }

    fn finish(&mut self, input: &mut Input<'_>) {
        self.side.window = usize::MAX;
        self.side.pump(self.now);
        self.settle();
        self.check_bystander();
        self.check_leaks();
        if input.rest().len() & 1 != 0 {
            self.side.target.stop(self.now);
            self.side.pump(self.now);
            self.settle();
            self.advance(Nanos::from_secs(60));
            self.settle();
            let peers = self.peers.iter().chain(&self.bystander).map(|peer| peer.id);
            for id in peers.collect::<Vec<_>>() {
                assert!(!self.side.is_open(id), "open after stop");
            }
        }
        let peers = self.peers.iter().chain(&self.bystander).map(|peer| peer.id);
        for id in peers.collect::<Vec<_>>() {
            self.side.drop_socket(self.now, id);
        }
        self.check_empty();
    }

    /// Every command that is not answered waits for something that only the host can bring.
    fn check_leaks(&mut self) {
        let snapshots = self.side.target.connections();
        for peer in &self.peers {
            let Some(snapshot) = snapshots.iter().find(|it| it.id == peer.id) else {
                panic!("a connection is not listed")
            };
            let is_ready = snapshot.state == ConnectionState::Ready;
            if !is_ready || !peer.is_between_pdus() || peer.ambiguous {
                continue;
            }
            let is_admin = peer.queue.is_some_and(|(qid, _)| qid == 0);
            let reserved = usize::from(is_admin);
            let outstanding = usize::from(snapshot.outstanding);
            let is_event = |sqe: &Sqe| is_admin && sqe.opcode() == admin::ASYNC_EVENT_REQUEST;
            // A reset ends event requests, and Aborts that wait for their command, without an answer.
            let is_abort = |sqe: &Sqe| is_admin && sqe.opcode() == admin::ABORT;
            let mut silent = peer.outstanding.iter().collect::<Vec<_>>();
            silent.retain(|sqe| is_event(sqe) || is_abort(sqe));
            let all = peer.outstanding.len() + reserved;
            assert!(
                (all - silent.len()..=all).contains(&outstanding),
                "slots leak: {outstanding} of {all}"
            );
            // An Abort waits for its command, which may be one of another peer that owes data.
            let waits_for_command = |sqe: &Sqe| {
                let [_, _, low, high] = sqe.cdw(10).to_le_bytes();
                let cid = u16::from_le_bytes([low, high]);
                let mut commands = self.peers.iter().flat_map(|other| &other.outstanding);
                is_abort(sqe) && commands.any(|command| command.cid().0 == cid)
            };
            let waits_for_host = |sqe: &&Sqe| {
                let waits_for_data = peer.r2ts.iter().any(|r2t| r2t.cccid == sqe.cid());
                waits_for_data || is_event(sqe) || waits_for_command(sqe) || sqe.0[1] & 3 != 0
            };
            if peer.honest {
                let waits_for_nobody = |sqe: &&Sqe| !waits_for_host(sqe);
                let mut stuck: Vec<_> = peer.outstanding.iter().filter(waits_for_nobody).collect();
                // Aborts among them ended in silence, unless they still have their slots.
                if stuck.len() <= all - outstanding {
                    stuck.retain(|sqe| !is_abort(sqe));
                }
                assert!(stuck.is_empty(), "never answered: {stuck:?}");
            }
        }
    }

    fn check_empty(&mut self) {
        while let Some(running) = self.side.running.pop() {
            self.side.finish(self.now, running, Status::SUCCESS);
        }
        assert!(
            self.side.wishes.is_empty(),
            "wishes of connections that are gone"
        );
        let target = &self.side.target;
        assert!(target.connections().is_empty(), "connections leak");
        assert!(
            target.discovery_controllers().is_empty(),
            "controllers leak"
        );
        for subsystem in target.subsystems() {
            assert!(subsystem.controllers.is_empty(), "controllers leak");
        }
        for _ in 0..10_000 {
            let Some(at) = self.side.target.poll_timeout() else {
                return;
            };
            self.now = self.now.max(at);
            self.side.timeout(self.now);
        }
        panic!("timers never end");
    }
}

/// Sends what a peer has, takes what there is for it; whether anything moved.
fn carry(side: &mut TargetSide, now: Nanos, peer: &mut Peer, at_once: bool) -> bool {
    // What the target has asked for until now is known when its answer is judged.
    let mut moved = read(side, peer);
    let was_heard = is_heard(side, peer);
    let taken = side.receive(now, peer.id, &peer.unsent, &mut |_, _| at_once);
    peer.was_taken(taken, was_heard);
    side.pump(now);
    moved |= taken > 0;
    moved |= read(side, peer);
    if std::mem::take(&mut peer.referee.rules.is_in_doubt) && !is_heard(side, peer) {
        peer.referee.doubt();
    }
    side.pump(now);
    moved
}

fn read(side: &mut TargetSide, peer: &mut Peer) -> bool {
    let sent = side.conn(peer.id).map(|conn| conn.take_sent());
    let sent = sent.unwrap_or_default();
    peer.read(&sent);
    !sent.is_empty()
}

/// Whether the target acts on what this peer sends, and does not just drop it.
fn is_heard(side: &TargetSide, peer: &Peer) -> bool {
    let rx = side.target.rx(peer.id);
    !matches!(rx, Rx::Closed | Rx::Discard { len: u32::MAX })
}

/// The id of a command that is still outstanding, if there is one.
fn newest(peer: &Peer) -> CommandId {
    peer.outstanding.last().map_or(CommandId(0), Sqe::cid)
}

fn address(host: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, host], 4420))
}

fn connect(
    qid: u16,
    cntlid: u16,
    subnqn: &str,
    hostnqn: &str,
    kato_ms: u32,
    flow_control: bool,
) -> (Sqe, [u8; 1024]) {
    let command = Connect {
        recfmt: 0,
        qid: QueueId(qid),
        sqsize: if qid == 0 { 31 } else { 15 },
        cattr: 0,
        kato_ms,
    };
    let data = ConnectData {
        hostid: [hostnqn.bytes().last().unwrap_or(1); 16],
        cntlid: ControllerId(cntlid),
        subnqn: Nqn::new(subnqn).expect("valid"),
        hostnqn: Nqn::new(hostnqn).expect("valid"),
    };
    let sqe = command
        .with_sq_flow_control_disabled(!flow_control)
        .encode();
    (sqe.with_sgl1(Sgl::in_capsule(1024)), data.encode())
}
