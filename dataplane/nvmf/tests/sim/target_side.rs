//! Plays the target's glue: sockets that are queues of bytes, buffers, and devices that finish
//! when they are told to. Everything the target asks for is held against its contract.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bowline_nvme::{Nanos, Status};
use bowline_nvmf::frame::crc32c;
use bowline_nvmf::target::{
    Answer, ConnId, IoCommand, IoOp, Output, Path, ReservationState, Rx, SlotId, StoreRequest,
    Target, TxPdu,
};

/// PDU type of C2HTermReq, the last word on a connection.
const C2H_TERM_REQ: u8 = 3;

/// One connection as the glue sees it.
#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) id: ConnId,
    /// What the target has sent and the network has not taken.
    pub(crate) sent: VecDeque<u8>,
    /// Buffers bound to slots; those of commands at their device are in [`Running`].
    pub(crate) buffers: BTreeMap<SlotId, Vec<u8>>,
    /// `Some(graceful)` once Close was polled.
    pub(crate) closed: Option<bool>,
    pub(crate) terminated: bool,
}

/// A command at its device.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) conn: ConnId,
    pub(crate) slot: SlotId,
    pub(crate) command: IoCommand,
    pub(crate) data: Vec<u8>,
}

/// What the glue was asked for and has not done yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    Buffer { slot: SlotId, len: u32 },
    Fill { slot: SlotId, len: u32 },
    Inspect { slot: SlotId },
    Route,
}

#[derive(Debug)]
pub(crate) struct TargetSide {
    pub(crate) target: Target,
    conns: BTreeMap<u32, Conn>,
    pub(crate) running: Vec<Running>,
    pub(crate) wishes: Vec<(ConnId, Wish)>,
    /// Connections that are not polled, since their peer does not read.
    stuck: BTreeSet<u32>,
    /// Reservations that are to be made durable.
    stores: VecDeque<StoreRequest>,
    /// Those that are, by device.
    pub(crate) durable: BTreeMap<u32, ReservationState>,
    /// Grant every wish at once.
    pub(crate) generous: bool,
    /// The largest buffer there is: commands that can be cut move their data in parts.
    pub(crate) part_bytes: Option<u32>,
    /// Some read was cut.
    has_cut: bool,
    /// Bytes a connection may hold unsent before it is no longer polled.
    pub(crate) window: usize,
}

impl TargetSide {
    pub(crate) fn new(target: Target) -> Self {
        Self {
            target,
            conns: BTreeMap::new(),
            running: Vec::new(),
            wishes: Vec::new(),
            stores: VecDeque::new(),
            durable: BTreeMap::new(),
            stuck: BTreeSet::new(),
            generous: true,
            part_bytes: None,
            has_cut: false,
            window: usize::MAX,
        }
    }

    pub(crate) fn open(&mut self, now: Nanos, path: Path) -> Option<ConnId> {
        let id = self.target.open(now, path)?;
        self.track(id);
        Some(id)
    }

    fn track(&mut self, id: ConnId) {
        let conn = Conn {
            id,
            sent: VecDeque::new(),
            buffers: BTreeMap::new(),
            closed: None,
            terminated: false,
        };
        self.conns.insert(id.index, conn);
    }

    /// The connection, unless its socket is gone.
    pub(crate) fn conn(&mut self, id: ConnId) -> Option<&mut Conn> {
        self.conns.get_mut(&id.index).filter(|conn| conn.id == id)
    }

    /// Whether the target has not closed the connection.
    pub(crate) fn is_open(&mut self, id: ConnId) -> bool {
        self.conn(id).is_some_and(|conn| conn.closed.is_none())
    }

    /// The socket is gone, whoever closed it. Only what is at a device keeps its buffer.
    pub(crate) fn drop_socket(&mut self, now: Nanos, id: ConnId) {
        if self.conn(id).is_none() {
            return;
        }
        self.conns.remove(&id.index);
        self.stuck.remove(&id.index);
        self.wishes.retain(|(conn, _)| *conn != id);
        self.target.closed(now, id);
        self.pump(now);
    }

    /// Hands bytes in for as long as the stream wants them, and says how many it took. `device` runs
    /// a Read or a Write at once, or does not.
    pub(crate) fn receive(
        &mut self,
        now: Nanos,
        id: ConnId,
        bytes: &[u8],
        device: &mut dyn FnMut(IoCommand, &mut [u8]) -> bool,
    ) -> usize {
        let mut taken = 0;
        while taken < bytes.len() && self.is_open(id) {
            let rest = &bytes[taken..];
            let rx = self.target.rx(id);
            let used = match rx {
                Rx::Hold | Rx::Closed => break,
                Rx::Bytes => match self.run_at_once(now, id, rest, device) {
                    0 => self.target.handle_bytes(now, id, rest),
                    used => used,
                },
                Rx::Discard { len } => {
                    let count = u32::try_from(rest.len()).unwrap_or(u32::MAX).min(len);
                    self.target.handle_payload(now, id, count, None);
                    count as usize
                }
                Rx::Payload { .. } => self.land(now, id, rx, rest),
            };
            assert!(used <= rest.len(), "more bytes used than there were");
            assert!(
                used > 0 || self.target.rx(id) != rx,
                "the stream neither takes bytes nor says why: {rx:?}"
            );
            taken += used;
        }
        taken
    }

    /// Runs the command with which `bytes` begin, if it can be run as it comes, and says how many
    /// bytes it was.
    fn run_at_once(
        &mut self,
        now: Nanos,
        id: ConnId,
        bytes: &[u8],
        device: &mut dyn FnMut(IoCommand, &mut [u8]) -> bool,
    ) -> usize {
        let window = self.window;
        if self.conn(id).is_none_or(|conn| conn.sent.len() >= window) {
            return 0;
        }
        let Some(mut queue) = self.target.at_once(now, id) else {
            return 0;
        };
        let Some(accepted) = queue.accept(bytes) else {
            return 0;
        };
        let command = *accepted.command();
        let is_read = matches!(command.op, IoOp::Read { .. });
        let mut data = match accepted.data() {
            _ if is_read => vec![0xEE; command.bytes as usize],
            Some(data) => data.to_vec(),
            None => return 0,
        };
        assert_eq!(data.len(), command.bytes as usize, "{command:?}");
        if !device(command, &mut data) {
            return 0;
        }
        let answer = queue.succeeded(&accepted);
        if let Some(slot) = accepted.slot() {
            self.release(id, slot);
        }
        let conn = self.conn(id).expect("it is there");
        assert!(
            conn.closed.is_none() && !conn.terminated,
            "a command is run after the last word"
        );
        conn.answer(&answer, is_read.then_some(&data[..]));
        accepted.bytes()
    }

    fn land(&mut self, now: Nanos, id: ConnId, rx: Rx, rest: &[u8]) -> usize {
        let Rx::Payload {
            slot,
            offset,
            len,
            digest_from,
            transfer_len,
        } = rx
        else {
            return 0;
        };
        let landed = rest.len().min(len as usize);
        let conn = self.conn(id).expect("open");
        let fresh = || vec![0; transfer_len as usize];
        let buffer = conn.buffers.entry(slot).or_insert_with(fresh);
        assert_eq!(
            buffer.len(),
            transfer_len as usize,
            "another buffer is bound"
        );
        let end = offset as usize + landed;
        buffer[offset as usize..end].copy_from_slice(&rest[..landed]);
        let crc = digest_from
            .filter(|_| landed == len as usize)
            .map(|begin| crc32c(&buffer[begin as usize..end]));
        let count = u32::try_from(landed).expect("within len");
        self.target.handle_payload(now, id, count, crc);
        landed
    }

    /// Moves a connection whose owner is asked for, as from one reactor to another.
    pub(crate) fn hand_over(&mut self, now: Nanos, id: ConnId) -> Option<ConnId> {
        let handoff = self.target.take(id)?;
        let conn = self.conns.remove(&id.index)?;
        self.wishes.retain(|(conn, _)| *conn != id);
        let adopted = self.target.adopt(now, handoff).expect("its place is free");
        self.conns.insert(
            adopted.index,
            Conn {
                id: adopted,
                ..conn
            },
        );
        self.wish(now, adopted, Wish::Route);
        Some(adopted)
    }

    pub(crate) fn timeout(&mut self, now: Nanos) {
        self.target.handle_timeout(now);
        self.pump(now);
    }

    /// Takes what the target has to say, of the connections whose peer reads.
    pub(crate) fn pump(&mut self, now: Nanos) {
        let window = self.window;
        let conns = &self.conns;
        let reads = |index: &u32| conns.get(index).is_none_or(|it| it.sent.len() < window);
        let again: Vec<u32> = self.stuck.iter().copied().filter(reads).collect();
        for index in again {
            self.stuck.remove(&index);
            if let Some(id) = self.conns.get(&index).map(|conn| conn.id) {
                self.outputs(now, id);
            }
        }
        let mut polled = 0;
        while let Some(id) = self.target.poll_dirty() {
            self.outputs(now, id);
            polled += 1;
            assert!(polled < 100_000, "the target never comes to rest");
        }
        while let Some(request) = self.target.poll_store() {
            self.stores.push_back(request);
        }
        if self.generous && !self.stores.is_empty() {
            self.stored(now, true);
        }
    }

    #[allow(dead_code, reason = "the fuzzer just tries")]
    pub(crate) fn has_stores(&self) -> bool {
        !self.stores.is_empty()
    }

    /// The oldest request to store reservations ends; whether they are durable then.
    pub(crate) fn stored(&mut self, now: Nanos, durable: bool) {
        let Some(request) = self.stores.pop_front() else {
            return;
        };
        let device = request.namespace.0;
        match request.state {
            Some(state) if durable => drop(self.durable.insert(device, state)),
            None if durable => drop(self.durable.remove(&device)),
            _ => {}
        }
        self.target.handle_stored(now, request.id, durable);
        self.pump(now);
    }

    fn outputs(&mut self, now: Nanos, id: ConnId) {
        loop {
            let window = self.window;
            let is_full = |conn: &mut Conn| conn.closed.is_none() && conn.sent.len() >= window;
            let full = self.conn(id).is_some_and(is_full);
            if full {
                self.stuck.insert(id.index);
                return;
            }
            let Some(output) = self.target.poll_output(now, id) else {
                return;
            };
            self.output(now, id, output);
        }
    }

    fn output(&mut self, now: Nanos, id: ConnId, output: Output) {
        if let Output::Withdraw { slot } = output {
            let done = self.take_back(id, slot);
            return self.target.withdrawn(now, id, slot, done);
        }
        let slots = self.target.slots(id);
        let conn = self
            .conn(id)
            .expect("nothing is said on a connection that is gone");
        assert!(conn.closed.is_none(), "{output:?} after Close");
        let last_word = matches!(output, Output::Release { .. } | Output::Close { .. });
        assert!(!conn.terminated || last_word, "{output:?} after C2HTermReq");
        let bound = |slot: SlotId| {
            assert!(slot.0 < slots, "a slot beyond the table");
            conn.buffers.contains_key(&slot)
        };
        match output {
            Output::NeedBuffer { slot, len } => {
                assert!(!bound(slot) && len > 0, "a buffer is bound already");
                self.wish(now, id, Wish::Buffer { slot, len });
            }
            Output::Fill { slot, len } => {
                assert!(!bound(slot), "a buffer is bound already");
                self.wish(now, id, Wish::Fill { slot, len });
            }
            Output::Inspect { slot, len } => {
                assert!(bound(slot), "nothing to look at");
                assert_eq!(conn.buffers[&slot].len(), len as usize);
                self.wish(now, id, Wish::Inspect { slot });
            }
            Output::Route { .. } => self.wish(now, id, Wish::Route),
            Output::Execute { slot, command } => self.execute(id, slot, command),
            Output::Send {
                pdu,
                payload,
                release,
            } => {
                conn.send(&pdu, payload);
                if let Some(slot) = release {
                    self.release(id, slot);
                }
            }
            Output::Release { slot } => self.release(id, slot),
            Output::Withdraw { .. } => unreachable!("handled above"),
            Output::Close { graceful } => conn.closed = Some(graceful),
        }
    }

    /// The slot is free: nothing is wished for its command any more.
    fn release(&mut self, id: ConnId, slot: SlotId) {
        if let Some(conn) = self.conn(id) {
            conn.buffers.remove(&slot);
        }
        self.wishes
            .retain(|(conn, wish)| *conn != id || !wish.is_of(slot));
    }

    /// Gives up a wish, or a command as if it had not begun.
    fn take_back(&mut self, id: ConnId, slot: SlotId) -> bool {
        let is_wish = |(conn, wish): &(ConnId, Wish)| *conn == id && wish.is_of(slot);
        if let Some(at) = self.wishes.iter().position(is_wish) {
            self.wishes.remove(at);
            return true;
        }
        let is_it =
            |it: &Running| it.conn == id && (it.slot == slot || it.command.second() == Some(slot));
        let at = self.running.iter().position(is_it);
        at.map(|at| self.running.remove(at)).is_some()
    }

    fn execute(&mut self, id: ConnId, slot: SlotId, command: IoCommand) {
        let twice = self
            .running
            .iter()
            .any(|it| it.conn == id && it.slot == slot);
        assert!(!twice, "one slot, two commands at their device");
        let mut command = command;
        let part_bytes = self.part_bytes;
        let conn = self.conn(id).expect("open");
        // A read in parts leaves its last part's buffer behind.
        let left = conn.buffers.remove(&slot);
        let data = if matches!(command.op, IoOp::Read { .. }) {
            assert!(
                left.is_none() || self.has_cut,
                "a read finds a buffer bound"
            );
            if let Some(part) = part_bytes {
                let cut = self.target.cut_read(id, slot, part);
                command = cut.expect("a read at its device can be cut");
                self.has_cut = true;
            }
            vec![0xEE; command.bytes as usize]
        } else {
            left.unwrap_or_default()
        };
        self.running.push(Running {
            conn: id,
            slot,
            command,
            data,
        });
    }

    fn wish(&mut self, now: Nanos, id: ConnId, wish: Wish) {
        self.wishes.push((id, wish));
        if self.generous {
            self.grant(now, self.wishes.len() - 1);
        }
    }

    /// Does what the target waits for.
    pub(crate) fn grant(&mut self, now: Nanos, index: usize) {
        let (id, wish) = self.wishes.remove(index);
        match wish {
            Wish::Buffer { slot, len } => {
                let part = self.part_bytes.map_or(len, |part| part.min(len));
                let len = match self.target.part_unit(id, slot) {
                    Some(unit) => (part / unit * unit).max(unit).min(len),
                    None => len,
                };
                if self.target.handle_part_buffer(now, id, slot, len)
                    && let Some(conn) = self.conn(id)
                {
                    conn.buffers.insert(slot, vec![0; len as usize]);
                }
            }
            Wish::Fill { slot, len } => {
                let mut data = vec![0xEE; len as usize];
                if self.target.fill(now, id, slot, &mut data)
                    && let Some(conn) = self.conn(id)
                {
                    conn.buffers.insert(slot, data);
                }
            }
            Wish::Inspect { slot } => {
                let buffer = self
                    .conn(id)
                    .and_then(|conn| conn.buffers.get(&slot).cloned());
                if let Some(data) = buffer {
                    self.target.inspect(now, id, slot, &data);
                }
            }
            Wish::Route => self.target.resume(now, id),
        }
    }

    /// A device finishes the command at `index` with this status; what it read goes to the slot.
    pub(crate) fn finish(&mut self, now: Nanos, running: Running, status: Status) {
        let Running {
            conn: id,
            slot,
            command,
            data,
        } = running;
        let is_read = matches!(command.op, IoOp::Read { .. });
        if let Some(conn) = self.conn(id).filter(|_| is_read) {
            conn.buffers.insert(slot, data);
        }
        self.target.complete(now, id, slot, status);
        if let Some(second) = command.second() {
            // What was not equal was not written.
            let status = match status {
                it if it.same_code(Status::COMPARE_FAILURE) => Status::ABORTED_FAILED_FUSED,
                it => it,
            };
            self.target.complete(now, id, second, status);
        }
        self.pump(now);
    }
}

impl Wish {
    fn is_of(self, of: SlotId) -> bool {
        match self {
            Self::Buffer { slot, .. } | Self::Fill { slot, .. } | Self::Inspect { slot } => {
                slot == of
            }
            Self::Route => false,
        }
    }
}

impl Conn {
    /// All that was sent since the last time; moved, since one byte at a time is slow under the
    /// fuzzer's instruments.
    pub(crate) fn take_sent(&mut self) -> Vec<u8> {
        Vec::from(std::mem::take(&mut self.sent))
    }

    fn answer(&mut self, answer: &Answer, read: Option<&[u8]>) {
        let mut bytes = Vec::new();
        answer.encode_before_data(&mut bytes);
        if let Some(data) = read {
            bytes.extend(data);
            if answer.data_digest() {
                bytes.extend(crc32c(data).to_le_bytes());
            }
        }
        answer.encode_end(&mut bytes);
        self.sent.extend(bytes);
    }

    fn send(&mut self, pdu: &TxPdu, payload: Option<(SlotId, u32, u32)>) {
        let mut header = Vec::new();
        pdu.encode_into(&mut header);
        assert!(header.len() <= 160, "a header of {} bytes", header.len());
        self.terminated |= header[0] == C2H_TERM_REQ;
        self.sent.extend(header);
        if let Some((slot, start, len)) = payload {
            let buffer = self.buffers.get(&slot).expect("a buffer to send from");
            let part = &buffer[start as usize..][..len as usize];
            self.sent.extend(part);
            if pdu.data_digest() {
                self.sent.extend(crc32c(part).to_le_bytes());
            }
        }
    }
}
