//! The host's state machine against a target whose every word may be altered on the way: our own
//! target answers, so that bring-up gets far, and the input edits, drops, repeats and forges PDUs.

use std::collections::BTreeMap;

use bowline_nvme::nqn::Nqn;
use bowline_nvme::pdu::{C2HData, CapsuleResp, Digests, Direction, R2t, TermReq};
use bowline_nvme::{CommandId, Cqe, NamespaceId, Nanos, Status};
use bowline_nvmf::frame::crc32c;
use bowline_nvmf::host::{ControllerConfig, HostEvent, HostState, Rx, command};
use bowline_nvmf::target::{ConnId, Hosts, Path, SubsystemConfig, Target, TargetConfig};

use super::conduct::ControllerConduct;
use super::host_side::{Happened, HostSide};
use super::input::Input;
use super::referee::Referee;
use super::target::namespace;
use super::target_side::TargetSide;

const SUBNQN: &str = "nqn.2026-11.io.bowline:fuzz";
const OPERATIONS_MAX: usize = 200;
const SPANS: [Nanos; 5] = [
    Nanos(1_000_000),
    Nanos(100_000_000),
    Nanos(1_000_000_000),
    Nanos(3_000_000_000),
    Nanos(31_000_000_000),
];
/// Turns that an exchange may take; a host that answers itself for ever is a finding.
const TURNS_MAX: usize = 5000;

struct Fuzz {
    host: HostSide,
    side: TargetSide,
    now: Nanos,
    links: BTreeMap<u16, ConnId>,
    /// Know what the host has to say to what it was sent.
    referees: BTreeMap<u16, Referee<ControllerConduct>>,
    digests: Digests,
    has_flow_control: bool,
    next_token: u64,
}

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut fuzz = Fuzz::new(&mut input);
    fuzz.host.host.connect(fuzz.now);
    for _ in 0..OPERATIONS_MAX {
        fuzz.exchange(&mut input);
        if input.is_empty() {
            break;
        }
        fuzz.operation(&mut input);
    }
    fuzz.finish();
}

impl Fuzz {
    fn new(input: &mut Input<'_>) -> Self {
        let (now, free) = (Nanos::from_secs(1000), input.u8());
        let config = TargetConfig::default();
        // Data goes with its command, or is asked for.
        let icd_bytes = if free & 0x20 == 0 {
            config.icd_bytes
        } else {
            0
        };
        let mut target = Target::new(TargetConfig {
            icd_bytes,
            ..config
        });
        let subsystem = SubsystemConfig {
            hosts: Hosts::Any,
            namespaces_max: 16,
            ..SubsystemConfig::new(SUBNQN, "FUZZ")
        };
        target.add_subsystem(now, subsystem).expect("valid");
        for id in 1..=2 {
            let config = namespace(id, id, 0);
            target.add_namespace(now, SUBNQN, config).expect("valid");
        }
        let digests = Digests {
            header: free & 1 != 0,
            data: free & 2 != 0,
        };
        let nqn = |name: &str| Nqn::new(name).expect("valid");
        let subnqn = if free & 0xE0 == 0xE0 {
            bowline_nvme::nqn::DISCOVERY
        } else {
            SUBNQN
        };
        let config = ControllerConfig {
            io_queues: u16::from(free >> 2 & 3),
            io_queue_entries: 8,
            digests,
            sq_flow_control: free & 0x10 != 0,
            namespaces_max: 8,
            ..ControllerConfig::new(nqn("nqn.2026-11.io.bowline:host"), [7; 16], nqn(subnqn))
        };
        Self {
            host: HostSide::new(config),
            side: TargetSide::new(target),
            now,
            links: BTreeMap::new(),
            referees: BTreeMap::new(),
            digests,
            has_flow_control: free & 0x10 != 0,
            next_token: 0,
        }
    }

    fn operation(&mut self, input: &mut Input<'_>) {
        match input.u8() >> 4 {
            0..6 => self.submit(input),
            6..9 => self.advance(input.one_of(&SPANS)),
            9 => {
                let queue = u16::from(input.u8() & 3);
                if self.links.contains_key(&queue) {
                    self.close(queue);
                    self.host.host.closed(self.now, queue);
                }
            }
            10 => {
                let queue = u16::from(input.u8() & 3);
                let len = usize::from(input.u8());
                let bytes = input.bytes(len).to_vec();
                self.deliver(queue, &bytes);
            }
            11..14 => self.forge(input),
            14 => self.host.host.disconnect(self.now),
            _ => self.host.host.connect(self.now),
        }
    }

    fn submit(&mut self, input: &mut Input<'_>) {
        let (queue, free) = (u16::from(input.u8() & 3), input.u8());
        let (lba, nlb) = (u64::from(free & 15), u16::from(free >> 4 & 7));
        let data = vec![free; (usize::from(nlb) + 1) * 512];
        let nsid = NamespaceId(1 + u32::from(free & 1));
        let (sqe, data) = match input.u8() & 3 {
            0 => (command::read(nsid, lba, nlb), data),
            1 => (command::write(nsid, lba, nlb, false), data),
            2 => (command::compare(nsid, lba, nlb), data),
            _ => (command::flush(nsid), Vec::new()),
        };
        self.next_token += 1;
        // Full, not connected: the host says so, and nothing has happened.
        let _refused = self
            .host
            .submit(self.now, queue, sqe, data, self.next_token)
            .is_err();
    }

    /// A whole PDU that the target never sent.
    fn forge(&mut self, input: &mut Input<'_>) {
        let (queue, free) = (u16::from(input.u8() & 3), input.u8());
        let digests = self.digests;
        let named = CommandId(input.u16());
        // Of a command that waits for this, or of any.
        let mut of_queue = self.host.sent.values().filter(|(of, _)| *of == queue);
        let cccid = match of_queue.next_back() {
            Some(&(_, cid)) if free & 0x80 != 0 => cid,
            _ => named,
        };
        let (offset, len) = (u32::from(input.u16()), u32::from(input.u16()));
        let mut pdu = match free & 3 {
            0 => {
                let status = Status::new(free >> 2 & 7, input.u8());
                let cqe = Cqe {
                    cid: cccid,
                    status,
                    result: input.u64(),
                    ..Cqe::default()
                };
                CapsuleResp { cqe }.encode(digests).to_vec()
            }
            1 => R2t {
                cccid,
                ttag: 1,
                r2to: offset,
                r2tl: len,
            }
            .encode(digests)
            .to_vec(),
            _ => {
                let (last, success) = (free & 4 != 0, free & 8 != 0);
                let data = C2HData {
                    cccid,
                    datao: offset,
                    datal: len,
                    last,
                    success,
                };
                data.encode(digests, 0).to_vec()
            }
        };
        if digests.header {
            pdu.extend(crc32c(&pdu).to_le_bytes());
        }
        if free & 2 != 0 {
            let data = vec![free; len as usize];
            pdu.extend_from_slice(&data);
            if digests.data {
                pdu.extend(crc32c(&data).to_le_bytes());
            }
        }
        self.deliver(queue, &pdu);
    }

    fn advance(&mut self, span: Nanos) {
        let until = self.now.after(span);
        for _ in 0..TURNS_MAX {
            let timers = [
                self.host.host.poll_timeout(),
                self.side.target.poll_timeout(),
            ];
            let next = timers.into_iter().flatten().min().unwrap_or(until);
            self.now = self.now.max(next.min(until));
            self.host.host.handle_timeout(self.now);
            self.side.timeout(self.now);
            self.exchange(&mut Input::new(&[]));
            if self.now >= until {
                return;
            }
        }
        panic!("timers without end");
    }

    fn deliver(&mut self, queue: u16, bytes: &[u8]) {
        let is_heard = |host: &HostSide| host.host.rx(queue) != Rx::Closed;
        let referee = self.referees.get_mut(&queue);
        let Some(referee) = referee.filter(|_| is_heard(&self.host)) else {
            return;
        };
        referee.rules.is_in_doubt = false;
        referee.see(bytes);
        self.host.receive(self.now, queue, bytes);
        if is_heard(&self.host) {
            assert!(!referee.is_over, "open after C2HTermReq");
            referee.settle();
        }
    }

    /// What the host has to send, which it may.
    fn sent(&mut self, queue: u16) -> Vec<u8> {
        let bytes = self.host.sent(queue);
        if let Some(referee) = self.referees.get_mut(&queue) {
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let plen = u32::from_le_bytes([rest[4], rest[5], rest[6], rest[7]]) as usize;
                let (pdu, later) = rest.split_at(plen);
                let header = &pdu[..usize::from(pdu[2])];
                let data_bytes = match usize::from(pdu[3]) {
                    0 => 0,
                    begin => plen - begin - usize::from(referee.data_digest_bytes()),
                };
                let data_bytes = u32::try_from(data_bytes).expect("short");
                referee.rules.sent(header, data_bytes);
                rest = later;
            }
        }
        bytes
    }

    /// The host ends a connection: it has said why, if it had to.
    fn ended(&mut self, queue: u16, last_words: &[u8]) {
        let Some(mut referee) = self.referees.remove(&queue) else {
            return;
        };
        if !last_words.is_empty() {
            let term = TermReq::decode(Direction::HostToController, last_words);
            let term = term.expect("there is nothing else to say");
            referee.told(&term);
        } else if referee.rules.is_in_doubt {
            referee.doubt();
        }
        referee.settle();
    }

    fn close(&mut self, queue: u16) {
        self.referees.remove(&queue);
        if let Some(conn) = self.links.remove(&queue) {
            self.side.drop_socket(self.now, conn);
        }
    }

    /// Carries bytes until nothing moves; the input edits what the target says.
    fn exchange(&mut self, input: &mut Input<'_>) {
        for _ in 0..TURNS_MAX {
            let mut moved = self.host_events();
            for running in std::mem::take(&mut self.side.running) {
                self.side.finish(self.now, running, Status::SUCCESS);
                moved = true;
            }
            for (queue, conn) in self.links.clone() {
                let bytes = self.sent(queue);
                self.side.receive(self.now, conn, &bytes, &mut |_, _| false);
                self.side.pump(self.now);
                moved |= !bytes.is_empty();
                moved |= self.answers(queue, conn, input);
            }
            if !moved {
                return;
            }
        }
        panic!("the two never come to rest");
    }

    fn host_events(&mut self) -> bool {
        let mut moved = false;
        while let Some(happened) = self.host.next_event(self.now) {
            moved = true;
            match happened {
                Happened::Open(queue) => match self.side.open(self.now, Path::default()) {
                    Some(conn) => {
                        let old = self.links.insert(queue, conn);
                        assert!(old.is_none(), "opened twice");
                        let conduct = ControllerConduct::new(self.digests, self.has_flow_control);
                        let referee = Referee::new(Direction::ControllerToHost, conduct);
                        self.referees.insert(queue, referee);
                        self.host.host.opened(self.now, queue);
                    }
                    None => self.host.host.closed(self.now, queue),
                },
                Happened::Close(queue, last_words) => {
                    self.ended(queue, &last_words);
                    if let Some(&conn) = self.links.get(&queue) {
                        self.side
                            .receive(self.now, conn, &last_words, &mut |_, _| false);
                    }
                    self.close(queue);
                }
                Happened::Complete { completion, data } => {
                    assert!(data.len() <= 8 * 512, "another buffer");
                    assert!(completion.token <= self.next_token, "nobody's completion");
                }
                Happened::Event(HostEvent::Stopped { .. }) => {
                    assert!(self.links.is_empty(), "stopped, and a connection is open");
                }
                Happened::Event(_) => {}
            }
        }
        moved
    }

    fn answers(&mut self, queue: u16, id: ConnId, input: &mut Input<'_>) -> bool {
        let Some(conn) = self.side.conn(id) else {
            return false;
        };
        let bytes = conn.take_sent();
        let closed = conn.closed.is_some();
        let mut rest = bytes.as_slice();
        while rest.len() >= 8 {
            let plen = u32::from_le_bytes([rest[4], rest[5], rest[6], rest[7]]) as usize;
            let (pdu, later) = rest.split_at(plen.min(rest.len()));
            for edited in edit(pdu, input) {
                self.deliver(queue, &edited);
            }
            rest = later;
        }
        if closed && self.links.contains_key(&queue) {
            self.close(queue);
            self.host.host.closed(self.now, queue);
        }
        closed || !bytes.is_empty()
    }

    /// Left alone, the host lets go of everything and stops.
    fn finish(&mut self) {
        self.host.host.disconnect(self.now);
        self.exchange(&mut Input::new(&[]));
        self.advance(Nanos::from_secs(60));
        self.host.host.disconnect(self.now);
        self.exchange(&mut Input::new(&[]));
        assert_eq!(self.host.host.state(), HostState::Stopped);
        assert_eq!(self.host.buffers_bound(), 0, "a command was forgotten");
        assert!(self.links.is_empty(), "a connection was forgotten");
        assert_eq!(self.host.host.poll_timeout(), None, "a timer was forgotten");
    }
}

/// What becomes of one PDU of the target's.
fn edit(pdu: &[u8], input: &mut Input<'_>) -> Vec<Vec<u8>> {
    let mut altered = pdu.to_vec();
    match input.u8() {
        0xE0..0xE8 => return Vec::new(),
        0xE8..0xF0 => return vec![pdu.to_vec(), pdu.to_vec()],
        0xF0..0xF4 => {
            let at = usize::from(input.u16()) % altered.len();
            altered[at] ^= input.u8();
        }
        0xF4..0xFC => {
            // Data of the input's choice where the data is, or the header's body.
            let at = usize::from(altered[3]).max(8) + usize::from(input.u16());
            let len = usize::from(input.u8());
            for (to, from) in altered.iter_mut().skip(at).zip(input.bytes(len)) {
                *to = *from;
            }
        }
        0xFC..=0xFF => {
            let at = 8 + usize::from(input.u8() & 15);
            for (to, from) in altered.iter_mut().skip(at).zip(input.bytes(4)) {
                *to = *from;
            }
        }
        _ => return vec![altered],
    }
    seal(&mut altered);
    vec![altered]
}

/// Makes the digests right again.
fn seal(pdu: &mut [u8]) {
    let (flags, hlen, pdo) = (pdu[1], usize::from(pdu[2]), usize::from(pdu[3]));
    if flags & 1 != 0 && pdu.len() >= hlen + 4 {
        let crc = crc32c(&pdu[..hlen]).to_le_bytes();
        pdu[hlen..hlen + 4].copy_from_slice(&crc);
    }
    let end = pdu.len().saturating_sub(4);
    if flags & 2 != 0 && pdo > 0 && pdo < end {
        let crc = crc32c(&pdu[pdo..end]).to_le_bytes();
        pdu[end..].copy_from_slice(&crc);
    }
}
