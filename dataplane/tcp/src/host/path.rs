//! One association on a reactor's sockets.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;

use bowline_block::Segments;
use bowline_nvme::Nanos;
use bowline_nvme::event::AsyncEvent;
use bowline_nvme::nvm::DsmRange;
use bowline_nvmf::host::{
    CloseReason, Command, ControllerConfig, HostController, HostEvent, HostState, Output, Rx,
    SlotId, SubmitError, Transfer, TxPayload,
};
use bowline_reactor::{Gather, Reactor, Recv, SocketId};

use super::command::{self, HostCommand, HostCompletion, HostOp, RejectReason, Rejected};
use super::link::{Link, copy_in, crc_of, places};

/// From this much missing data on, receiving straight into the command's buffer beats the copy
/// out of the staging area.
const DIRECT_BYTES_MIN: u32 = 16 << 10;
/// Received per connection and turn, so that one busy connection cannot starve the others.
const TURN_BYTES_MAX: usize = 1 << 20;
/// Marks the tokens of blocking calls; owners use those below.
pub(super) const TOKEN_MARK: u64 = 1 << 63;
/// Events kept for an owner that does not ask; the oldest go first.
const EVENTS_MAX: usize = 64;

/// What happened to an association.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathEvent {
    /// It is up.
    Connected,
    /// It was lost and is tried again by itself.
    Disconnected {
        /// Why.
        reason: CloseReason,
        /// When the next attempt begins.
        retry_at: Nanos,
    },
    /// It ended for good.
    Stopped {
        /// Why.
        reason: CloseReason,
    },
    /// A namespace appeared, changed or went away.
    NamespacesChanged,
    /// Another asynchronous event.
    AsyncEvent(AsyncEvent),
}

/// An association: its state machine, its sockets, and the data of its commands.
#[derive(Debug)]
pub struct HostPath {
    controller: HostController,
    addr: SocketAddr,
    links: Vec<Link>,
    /// Queues that may have something to send, each once.
    listed: Vec<u16>,
    completions: VecDeque<HostCompletion>,
    events: VecDeque<PathEvent>,
    /// Commands of the owner's without a completion.
    in_flight: usize,
    /// The I/O queue to try first.
    next_queue: u16,
    /// Why it ended, once it did.
    stopped: Option<CloseReason>,
}

/// How a round of receiving ended.
enum Round {
    Placed { bytes: usize, drained: bool },
    Idle,
    Gone,
}

impl HostPath {
    /// An association with a subsystem at an address, to be started with [`HostPath::connect`].
    #[must_use]
    pub fn new(addr: SocketAddr, config: ControllerConfig) -> Self {
        let depth = usize::from(config.io_queue_entries) * usize::from(config.io_queues)
            + usize::from(config.admin_queue_entries);
        let controller = HostController::new(config);
        let links = (0..controller.queue_count_max())
            .map(|_| Link::default())
            .collect::<Vec<_>>();
        Self {
            controller,
            addr,
            listed: Vec::with_capacity(links.len()),
            links,
            completions: VecDeque::with_capacity(depth),
            events: VecDeque::with_capacity(EVENTS_MAX),
            in_flight: 0,
            next_queue: 1,
            stopped: None,
        }
    }

    /// The state machine, for what it knows: state, facts, namespaces.
    #[must_use]
    pub fn controller(&self) -> &HostController {
        &self.controller
    }

    /// Whether commands are taken.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.controller.state() == HostState::Ready
    }

    /// Why the association ended for good, if it did.
    #[must_use]
    pub fn stopped(&self) -> Option<CloseReason> {
        self.stopped
    }

    /// Whether no connection is open any more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.links.iter().all(|link| link.socket.is_none())
    }

    /// Commands of the owner's that were submitted and not completed.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Starts the association, or starts it again after its end.
    pub fn connect(&mut self, cx: &mut Reactor, now: Nanos) {
        self.stopped = None;
        self.controller.connect(now);
        self.pump(cx, now);
    }

    /// Ends the association, orderly if it is up.
    pub fn disconnect(&mut self, cx: &mut Reactor, now: Nanos) {
        self.controller.disconnect(now);
        self.pump(cx, now);
    }

    /// Whether there are completions that nobody took.
    pub(super) fn has_completions(&self) -> bool {
        !self.completions.is_empty()
    }

    /// The oldest completion not taken yet.
    pub fn poll(&mut self) -> Option<HostCompletion> {
        let mut done = self.completions.pop_front()?;
        while done.token & TOKEN_MARK != 0 {
            done = self.completions.pop_front()?;
        }
        Some(done)
    }

    /// Drops the completions of blocking calls that no longer wait for them.
    pub(super) fn forget_abandoned(&mut self) {
        self.completions.retain(|done| done.token & TOKEN_MARK == 0);
    }

    /// The completion with this token, if it is there, whatever else is.
    pub(super) fn poll_token(&mut self, token: u64) -> Option<HostCompletion> {
        let index = self
            .completions
            .iter()
            .position(|done| done.token == token)?;
        self.completions.remove(index)
    }

    /// The oldest event not taken yet.
    pub fn poll_event(&mut self) -> Option<PathEvent> {
        self.events.pop_front()
    }

    /// Accepts a command for any I/O queue with room, in turn.
    ///
    /// # Errors
    /// The command, unchanged, and why.
    #[expect(
        clippy::result_large_err,
        reason = "hands the command back without allocating"
    )]
    pub fn submit(
        &mut self,
        cx: &mut Reactor,
        now: Nanos,
        command: HostCommand,
    ) -> Result<(), Rejected> {
        let queues = self.controller.facts().map_or(0, |facts| facts.io_queues);
        let mut rejected = Rejected {
            command,
            reason: RejectReason::Queue(SubmitError::NotReady),
        };
        for _ in 0..queues {
            let queue = if self.next_queue > queues {
                1
            } else {
                self.next_queue
            };
            self.next_queue = queue + 1;
            match self.submit_on(cx, now, queue, rejected.command) {
                Ok(()) => return Ok(()),
                Err(other) => rejected = other,
            }
            if rejected.reason != RejectReason::Queue(SubmitError::Full) {
                break;
            }
        }
        Err(rejected)
    }

    /// Accepts a command for this queue; 0 is the admin queue, which takes raw commands only.
    ///
    /// # Errors
    /// The command, unchanged, and why.
    #[expect(
        clippy::result_large_err,
        reason = "hands the command back without allocating"
    )]
    pub fn submit_on(
        &mut self,
        cx: &mut Reactor,
        now: Nanos,
        queue: u16,
        mut command: HostCommand,
    ) -> Result<(), Rejected> {
        let reject = |command, reason| Err(Rejected { command, reason });
        let is_raw = matches!(command.op, HostOp::Raw { .. });
        let deallocate = command.op == HostOp::Deallocate;
        if (queue == 0 && !is_raw) || (deallocate && !command.data.is_empty()) {
            return reject(command, RejectReason::Shape);
        }
        let own = if deallocate {
            ranges_of(cx, &command)
        } else {
            None
        };
        if deallocate && own.is_none() {
            return reject(command, RejectReason::NoBuffer);
        }
        let bytes = own.as_ref().unwrap_or(&command.data).len_bytes();
        let Some((sqe, transfer)) = command::encode(&command, bytes) else {
            return reject(command, RejectReason::Shape);
        };
        if matches!(transfer, Transfer::ToHost { .. }) && !command.data.is_unique() {
            return reject(command, RejectReason::SharedBuffer);
        }
        let request = Command {
            sqe,
            transfer,
            token: command.token,
        };
        match self.controller.submit(now, queue, request) {
            Ok(slot) => {
                let is_own = own.is_some();
                let data = own.unwrap_or_else(|| command.data.take());
                if let Some(link) = self.links.get_mut(usize::from(queue)) {
                    link.bind(slot, data, is_own);
                }
                self.list(queue);
                self.in_flight += 1;
                Ok(())
            }
            Err(error) => reject(command, RejectReason::Queue(error)),
        }
    }

    /// The queue whose connection this is.
    pub(super) fn queue_of(&self, socket: SocketId) -> Option<u16> {
        let index = self
            .links
            .iter()
            .position(|link| link.socket == Some(socket))?;
        u16::try_from(index).ok()
    }

    /// Whether this is the connection of this queue.
    pub(super) fn has_socket(&self, queue: u16, socket: SocketId) -> bool {
        self.links
            .get(usize::from(queue))
            .is_some_and(|link| link.socket == Some(socket))
    }

    /// Cuts every connection.
    pub(super) fn abort(&mut self, cx: &mut Reactor) {
        for socket in self.links.iter_mut().filter_map(|link| link.socket.take()) {
            cx.abort(socket);
        }
    }

    /// The reactor opened the connection, or could not.
    pub(super) fn connected(
        &mut self,
        cx: &mut Reactor,
        now: Nanos,
        queue: u16,
        result: &io::Result<()>,
    ) {
        if result.is_ok() {
            self.links[usize::from(queue)].open = true;
            self.controller.opened(now, queue);
        } else {
            self.links[usize::from(queue)].socket = None;
            self.controller.closed(now, queue);
        }
        self.list(queue);
        self.pump(cx, now);
    }

    /// Takes what a socket has, up to a turn's share.
    pub(super) fn readable(&mut self, cx: &mut Reactor, now: Nanos, queue: u16) {
        let Some(socket) = self.links[usize::from(queue)].socket else {
            return;
        };
        let mut staging = cx.take_staging();
        let mut total = 0;
        loop {
            match self.receive(cx, now, queue, socket, &mut staging) {
                Round::Placed { bytes, drained } => {
                    total += bytes;
                    if drained {
                        break;
                    }
                    if total >= TURN_BYTES_MAX {
                        cx.rearm(socket);
                        break;
                    }
                }
                Round::Idle => break,
                Round::Gone => {
                    self.drop_socket(cx, queue);
                    self.controller.closed(now, queue);
                    break;
                }
            }
        }
        cx.put_staging(staging);
        // There may be requests for data to be answered.
        self.list(queue);
        self.pump(cx, now);
    }

    /// A gather left, or the socket is broken.
    pub(super) fn sent(
        &mut self,
        cx: &mut Reactor,
        now: Nanos,
        queue: u16,
        result: &io::Result<()>,
    ) {
        self.links[usize::from(queue)].sending = false;
        // What came meanwhile, or did not fit.
        self.list(queue);
        if result.is_err() {
            self.drop_socket(cx, queue);
            self.controller.closed(now, queue);
            self.pump(cx, now);
        }
    }

    /// Runs what is due and sends what there is.
    pub(super) fn turn(&mut self, cx: &mut Reactor, now: Nanos) {
        if self.controller.poll_timeout().is_some_and(|at| at <= now) {
            self.controller.handle_timeout(now);
            self.pump(cx, now);
        }
        while let Some(queue) = self.listed.pop() {
            self.links[usize::from(queue)].listed = false;
            self.flush(cx, queue);
        }
    }

    /// Has a look taken at what this queue has to send.
    fn list(&mut self, queue: u16) {
        if let Some(link) = self.links.get_mut(usize::from(queue))
            && !link.listed
        {
            link.listed = true;
            self.listed.push(queue);
        }
    }

    /// When [`HostPath::turn`] is due though nothing happens.
    pub(super) fn poll_timeout(&self) -> Option<Nanos> {
        self.controller.poll_timeout()
    }

    fn receive(
        &mut self,
        cx: &mut Reactor,
        now: Nanos,
        queue: u16,
        socket: SocketId,
        staging: &mut [u8],
    ) -> Round {
        let mut direct = None;
        let outcome = match self.controller.rx(queue) {
            Rx::Closed => return Round::Idle,
            Rx::Payload {
                slot,
                offset,
                len,
                digest_from,
            } if len >= DIRECT_BYTES_MIN => {
                let Some(data) = self.links[usize::from(queue)].data_mut(slot) else {
                    return Round::Gone;
                };
                direct = Some((slot, offset, len, digest_from));
                let (mut slices, count) = places(data, offset, len, staging);
                cx.recv(socket, &mut slices[..count])
            }
            Rx::Bytes | Rx::Payload { .. } => cx.recv(socket, &mut [io::IoSliceMut::new(staging)]),
        };
        let (bytes, drained) = match outcome {
            Recv::Data { bytes, drained } => (bytes, drained),
            Recv::WouldBlock => return Round::Idle,
            Recv::Closed | Recv::Error(_) => return Round::Gone,
        };
        let mut staged = bytes;
        if let Some((slot, offset, len, digest_from)) = direct {
            let landed = u32::try_from(bytes).unwrap_or(u32::MAX).min(len);
            staged = bytes - landed as usize;
            self.landed(now, queue, slot, offset, landed, len, digest_from);
        }
        if !self.consume(now, queue, &staging[..staged]) {
            return Round::Gone;
        }
        Round::Placed { bytes, drained }
    }

    /// Feeds received bytes through, copying data to where it belongs; false if data has no
    /// place.
    fn consume(&mut self, now: Nanos, queue: u16, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let taken = match self.controller.rx(queue) {
                Rx::Closed => return true,
                Rx::Bytes => self.controller.handle_bytes(now, queue, bytes),
                Rx::Payload {
                    slot,
                    offset,
                    len,
                    digest_from,
                } => {
                    let part = bytes.get(..len as usize).unwrap_or(bytes);
                    let link = &mut self.links[usize::from(queue)];
                    let copied = link
                        .data_mut(slot)
                        .map_or(0, |data| copy_in(data, offset, part));
                    let landed = u32::try_from(copied).unwrap_or(len);
                    self.landed(now, queue, slot, offset, landed, len, digest_from);
                    copied
                }
            };
            if taken == 0 {
                return false;
            }
            bytes = bytes.get(taken..).unwrap_or_default();
        }
        true
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one Rx::Payload")]
    fn landed(
        &mut self,
        now: Nanos,
        queue: u16,
        slot: SlotId,
        offset: u32,
        landed: u32,
        len: u32,
        digest_from: Option<u32>,
    ) {
        let link = &self.links[usize::from(queue)];
        let begin = digest_from.filter(|_| landed == len);
        let crc = begin.map(|begin| link.crc(slot, begin, offset + landed));
        self.controller.handle_payload(now, queue, landed, crc);
    }

    /// Acts on everything the state machine has to say.
    fn pump(&mut self, cx: &mut Reactor, now: Nanos) {
        // The state machine has commands of its own, all for the admin queue.
        self.list(0);
        while let Some(event) = self.controller.poll_event(now) {
            match event {
                HostEvent::Open { queue } => self.open(cx, now, queue),
                HostEvent::Close { queue } => {
                    self.links[usize::from(queue)].closing = true;
                    self.flush(cx, queue);
                }
                HostEvent::Complete { queue, completion } => {
                    let data = self.links[usize::from(queue)].unbind(completion.slot);
                    self.in_flight -= 1;
                    self.completions.push_back(HostCompletion {
                        token: completion.token,
                        status: completion.status,
                        result: completion.result,
                        path_lost: completion.path_lost,
                        data,
                    });
                }
                HostEvent::Connected => self.note(PathEvent::Connected),
                HostEvent::NamespacesChanged => self.note(PathEvent::NamespacesChanged),
                HostEvent::AsyncEvent(event) => self.note(PathEvent::AsyncEvent(event)),
                HostEvent::Disconnected { reason, retry_at } => {
                    tracing::debug!(addr = %self.addr, %reason, "controller lost");
                    self.note(PathEvent::Disconnected { reason, retry_at });
                }
                HostEvent::Stopped { reason } => {
                    tracing::debug!(addr = %self.addr, %reason, "association ended");
                    self.stopped = Some(reason);
                    self.note(PathEvent::Stopped { reason });
                }
            }
        }
    }

    fn note(&mut self, event: PathEvent) {
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    fn open(&mut self, cx: &mut Reactor, now: Nanos, queue: u16) {
        // A connection that could not be closed in time holds up nothing.
        self.drop_socket(cx, queue);
        let depth = if queue == 0 {
            self.controller.config().admin_queue_entries
        } else {
            self.controller.config().io_queue_entries
        };
        let link = &mut self.links[usize::from(queue)];
        link.reserve(usize::from(depth));
        match cx.connect(self.addr) {
            Ok(socket) => link.socket = Some(socket),
            Err(_) => self.controller.closed(now, queue),
        }
    }

    fn drop_socket(&mut self, cx: &mut Reactor, queue: u16) {
        let link = &mut self.links[usize::from(queue)];
        if let Some(socket) = link.socket.take() {
            cx.abort(socket);
        }
        link.open = false;
        link.sending = false;
        link.closing = false;
    }

    /// Sends what a queue has to send, in one gather; closes it when that was the last.
    fn flush(&mut self, cx: &mut Reactor, queue: u16) {
        let link = &self.links[usize::from(queue)];
        let (Some(socket), false) = (link.socket, link.sending) else {
            return;
        };
        if link.open && self.controller.has_output(queue) {
            let mut gather = cx.gather();
            while !gather.is_full() {
                let Some(output) = self.controller.poll_output(queue) else {
                    break;
                };
                self.push(&mut gather, queue, &output);
            }
            self.links[usize::from(queue)].sending = true;
            cx.send(socket, gather);
        } else if link.closing {
            let link = &mut self.links[usize::from(queue)];
            link.socket = None;
            link.open = false;
            link.closing = false;
            cx.close(socket);
        }
    }

    fn push(&self, gather: &mut Gather, queue: u16, output: &Output) {
        gather.push_with(|arena| output.pdu.encode_into(arena));
        let digest = match output.payload {
            TxPayload::None => return,
            TxPayload::Slot { slot, offset, len } => {
                let Some(data) = self.links[usize::from(queue)].data(slot) else {
                    return;
                };
                push_range(gather, data, offset, len);
                output
                    .pdu
                    .data_digest()
                    .then(|| crc_of(data, offset, offset + len))
            }
            TxPayload::Control { offset, len } => {
                let control = self.controller.control(queue);
                let range = offset as usize..(offset + len) as usize;
                let bytes = control.get(range).unwrap_or_default();
                gather.push_bytes(bytes);
                output
                    .pdu
                    .data_digest()
                    .then(|| bowline_nvmf::frame::crc32c(bytes))
            }
        };
        if let Some(digest) = digest {
            gather.push_bytes(&digest.to_le_bytes());
        }
    }
}

/// Appends views of `offset..offset + len` of `data`.
fn push_range(gather: &mut Gather, data: &Segments, offset: u32, len: u32) {
    let (mut skip, mut left) = (offset as usize, len as usize);
    for segment in data.iter() {
        if skip >= segment.len() {
            skip -= segment.len();
            continue;
        }
        let take = (segment.len() - skip).min(left);
        gather.push_buf(segment.slice(skip..skip + take));
        left -= take;
        skip = 0;
        if left == 0 {
            break;
        }
    }
}

/// The list of ranges of a Deallocate: one range.
fn ranges_of(cx: &Reactor, command: &HostCommand) -> Option<Segments> {
    let mut buf = cx.pool().alloc(DsmRange::SIZE)?;
    buf.truncate(DsmRange::SIZE);
    let range = DsmRange {
        attributes: 0,
        blocks: command.blocks,
        slba: command.lba,
    };
    buf.as_mut()?.copy_from_slice(&range.encode());
    Some(Segments::from(buf))
}
