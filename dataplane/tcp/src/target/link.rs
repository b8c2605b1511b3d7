//! One connection as the glue sees it: its socket, the buffers of its command slots, what is
//! gathered to be sent, and what was received but could not be placed yet.

use std::collections::VecDeque;

use bowline_block::{BufPool, IoBuf, ViewedBuf};
use bowline_nvme::Nanos;
use bowline_nvmf::target::{ConnId, SlotId};
use bowline_reactor::{Gather, Reactor, SocketId};

use super::budget::{self, Charge, Request};
use super::exec::Found;
use super::tx::Waiting;

/// Places for views that an idle connection keeps: usually each is sent before the next is taken.
const VIEWS_KEPT: usize = 4;

pub(super) struct Link {
    pub(super) conn: ConnId,
    pub(super) socket: SocketId,
    places: Vec<Place>,
    /// What Reads have found that is still in a medium: few, and none when a turn has ended.
    views: Vec<(SlotId, ViewedBuf)>,
    /// What the next send will carry.
    gather: Option<Gather>,
    /// What this connection's commands keep from others, until their slot is free again and
    /// everything about them has left the socket.
    held: Charge,
    /// Of this, what comes back when what is gathered has left.
    gathered: Charge,
    /// Of this, what comes back when the send under way has ended.
    leaving: Charge,
    /// Commands that wait until the connection holds less, in the order of arrival.
    deferred: VecDeque<Waiting>,
    /// Commands among the service's waiting ones.
    pub(super) queued: u16,
    /// When the send under way began.
    sending_since: Option<Nanos>,
    /// When an orderly end is no longer waited for.
    pub(super) closing_by: Option<Nanos>,
    /// Listed among the service's sends to be looked at.
    pub(super) send_listed: bool,
    /// Received, but the protocol machine holds or there is no buffer. At most one window of
    /// receiving: nothing is received while it is not empty.
    carry: Vec<u8>,
    /// The peer sends small PDUs, so that little is received at a time.
    pub(super) dense: bool,
    /// The machine may have more to be done than there was room for: what comes now goes behind it.
    pub(super) behind: bool,
    /// Listed among the service's stalled links.
    pub(super) stalled: bool,
    /// Set when the target wants the socket closed once everything gathered has left.
    pub(super) closing: Option<Closing>,
    /// The subsystem whose reactor this connection moves to once everything gathered has left.
    pub(super) leaving_to: Option<String>,
}

/// What a command slot has of the pool.
#[derive(Default)]
struct Place {
    buffer: Option<IoBuf>,
    /// What of `held` is this slot's.
    charge: Charge,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Closing {
    /// FIN.
    Graceful,
    /// RST.
    Abort,
}

impl Link {
    pub(super) fn new(conn: ConnId, socket: SocketId, carry: Vec<u8>) -> Self {
        Self {
            conn,
            socket,
            places: Vec::new(),
            views: Vec::new(),
            gather: None,
            held: Charge::default(),
            gathered: Charge::default(),
            leaving: Charge::default(),
            deferred: VecDeque::new(),
            queued: 0,
            sending_since: None,
            closing_by: None,
            send_listed: false,
            carry,
            dense: true,
            behind: false,
            stalled: false,
            closing: None,
            leaving_to: None,
        }
    }

    fn place_mut(&mut self, slot: SlotId) -> &mut Place {
        let index = usize::from(slot.0);
        if index >= self.places.len() {
            // Once per connection and slot: a slot table never shrinks while the link lives.
            self.places.resize_with(index + 1, Place::default);
        }
        &mut self.places[index]
    }

    pub(super) fn bind(&mut self, slot: SlotId, buffer: IoBuf) {
        self.place_mut(slot).buffer = Some(buffer);
    }

    /// Binds what a Read has found, which stays in the medium until the turn ends.
    pub(super) fn bind_view(&mut self, slot: SlotId, viewed: ViewedBuf) {
        self.views.push((slot, viewed));
    }

    /// Takes what a Read has found, if it is still in the medium.
    fn take_view(&mut self, slot: SlotId) -> Option<ViewedBuf> {
        let at = self.views.iter().position(|(of, _)| *of == slot)?;
        Some(self.views.swap_remove(at).1)
    }

    /// The turn ends: what stays here is copied out of the medium.
    fn fix(&mut self) {
        if let Some(gather) = &mut self.gather {
            gather.fix();
        }
        while let Some((slot, viewed)) = self.views.pop() {
            self.bind(slot, viewed.copied());
        }
    }

    /// A part of what a slot's buffer holds or its Read has found.
    pub(super) fn data(&mut self, slot: SlotId, offset: u32, len: u32) -> Option<Found> {
        let range = offset as usize..offset as usize + len as usize;
        if let Some(viewed) = self.take_view(slot) {
            if range == (0..viewed.len()) {
                return Some(Found::InPlace(viewed));
            }
            self.bind(slot, viewed.copied());
        }
        let buffer = self.buffer(slot)?;
        (range.end <= buffer.len()).then(|| Found::Copied(buffer.slice(range)))
    }

    pub(super) fn buffer(&self, slot: SlotId) -> Option<&IoBuf> {
        self.places.get(usize::from(slot.0))?.buffer.as_ref()
    }

    pub(super) fn buffer_mut(&mut self, slot: SlotId) -> Option<&mut IoBuf> {
        self.places.get_mut(usize::from(slot.0))?.buffer.as_mut()
    }

    pub(super) fn take_buffer(&mut self, slot: SlotId) -> Option<IoBuf> {
        self.places.get_mut(usize::from(slot.0))?.buffer.take()
    }

    /// Counts pool memory against the connection until the slot is released.
    pub(super) fn charge(&mut self, slot: SlotId, charge: Charge) {
        self.place_mut(slot).charge.add(charge);
        self.held.add(charge);
    }

    /// Binds a buffer of the pool that is counted until the slot is released.
    pub(super) fn bind_charged(&mut self, slot: SlotId, buffer: IoBuf, charge: Charge) {
        self.charge(slot, charge);
        self.bind(slot, buffer);
    }

    /// What to ask for when `bytes` are needed and larger buffers than `ceiling_bytes` are for
    /// somebody else.
    pub(super) fn request(&self, bytes: usize, ceiling_bytes: usize) -> Request {
        Request {
            bytes,
            ceiling_bytes,
            held: self.held,
        }
    }

    /// What the connection may have besides what it holds.
    pub(super) fn room(&self, pool: &BufPool) -> usize {
        budget::room(pool, self.held)
    }

    /// Counts memory that is in the gather, and that no slot has, until it has left.
    pub(super) fn charge_gathered(&mut self, charge: Charge) {
        self.held.add(charge);
        self.gathered.add(charge);
    }

    /// The slot is free. What it had may still be in the gather, or in the send under way, and is
    /// held until that has left.
    pub(super) fn release_with_gather(&mut self, slot: SlotId) {
        drop(self.take_view(slot));
        let place = self.place_mut(slot);
        // The view in the gather keeps the memory until the bytes have left.
        place.buffer = None;
        let charge = std::mem::take(&mut place.charge);
        if self.gather.is_some() {
            self.gathered.add(charge);
        } else if self.sending_since.is_some() {
            self.leaving.add(charge);
        } else {
            // Nothing that leaves later would bring it back.
            self.held.sub(charge);
        }
    }

    /// The slot is free, and nothing of it is to be sent.
    pub(super) fn release(&mut self, slot: SlotId) {
        drop(self.take_view(slot));
        let place = self.place_mut(slot);
        place.buffer = None;
        let charge = std::mem::take(&mut place.charge);
        self.held.sub(charge);
    }

    pub(super) fn defer(&mut self, waiting: Waiting) {
        self.deferred.push_back(waiting);
    }

    pub(super) fn deferred_mut(&mut self) -> &mut VecDeque<Waiting> {
        &mut self.deferred
    }

    /// Whether commands wait for a buffer, of which the next would have to go behind them.
    pub(super) fn has_waiting(&self) -> bool {
        !self.deferred.is_empty() || self.queued > 0
    }

    pub(super) fn has_room(&self) -> bool {
        self.gather.as_ref().is_none_or(|gather| !gather.is_full())
    }

    pub(super) fn gather(&mut self, cx: &mut Reactor) -> &mut Gather {
        self.gather.get_or_insert_with(|| cx.gather())
    }

    /// Sends what is gathered, unless an earlier send is still under way. Either way the turn ends
    /// for what is still in a medium.
    pub(super) fn flush(&mut self, cx: &mut Reactor, now: Nanos) {
        if !cx.is_sending(self.socket)
            && let Some(gather) = self.gather.take()
        {
            cx.send(self.socket, gather);
            self.leaving = std::mem::take(&mut self.gathered);
            self.sending_since = Some(now);
        }
        self.fix();
    }

    /// The send under way has ended, and its gather is gone.
    pub(super) fn sent(&mut self) {
        let left = std::mem::take(&mut self.leaving);
        self.held.sub(left);
        self.sending_since = None;
    }

    /// When the peer must have taken what is being sent to it, if anything is.
    pub(super) fn send_deadline(&self, limit: Nanos) -> Option<Nanos> {
        let sending = self.sending_since.map(|since| since.after(limit));
        match (sending, self.closing_by) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Whether [`Link::tidy`] has something to give back, now or soon.
    pub(super) fn has_spare_memory(&self) -> bool {
        self.deferred.capacity() > 0 || self.views.capacity() > VIEWS_KEPT
    }

    /// Gives memory back that only a busy connection needs.
    pub(super) fn tidy(&mut self) {
        if self.deferred.is_empty() {
            self.deferred = VecDeque::new();
        }
        self.views.shrink_to(VIEWS_KEPT);
    }

    /// Whether everything gathered has left.
    pub(super) fn is_flushed(&self, cx: &Reactor) -> bool {
        self.gather.is_none() && !cx.is_sending(self.socket)
    }

    pub(super) fn is_carrying(&self) -> bool {
        !self.carry.is_empty()
    }

    pub(super) fn take_carry(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.carry)
    }

    /// Keeps what of `carried` was not consumed.
    pub(super) fn keep(&mut self, mut carried: Vec<u8>, consumed: usize) {
        if consumed < carried.len() {
            carried.drain(..consumed);
            self.carry = carried;
        }
    }

    pub(super) fn keep_copy(&mut self, rest: &[u8]) {
        self.carry.extend_from_slice(rest);
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use bowline_block::{Device, MemDevice};
    use bowline_nvmf::target::TargetConfig;
    use bowline_reactor::{Config, LocalReactor};

    use super::super::TargetService;
    use super::*;

    const CHARGE: Charge = Charge {
        bytes: 4096,
        landings: 0,
    };

    fn check(mut link: Link, cx: &mut Reactor) {
        let is_free = |link: &Link| link.request(1, 1).held.is_none();
        link.charge(SlotId(0), CHARGE);
        link.gather(cx).push_bytes(&[1; 64]);
        link.release_with_gather(SlotId(0));
        assert!(!is_free(&link), "it is gathered");
        link.charge(SlotId(1), CHARGE);
        link.flush(cx, Nanos::ZERO);
        link.release_with_gather(SlotId(1));
        assert!(!is_free(&link), "it is being sent");
        link.sent();
        assert!(is_free(&link), "all has left");
        link.charge(SlotId(2), CHARGE);
        link.release_with_gather(SlotId(2));
        assert!(is_free(&link), "it had left before");
    }

    /// What a Read found in a medium and cannot be sent in its turn may not change with the medium:
    /// its host may have lost its access before the next turn.
    fn check_views(mut link: Link, cx: &mut Reactor) {
        let mut device = MemDevice::new(1 << 20, 512).expect("memory");
        device.write_now(0, &[1; 4096]).expect("within");
        let buffer = cx.pool().alloc(4096).expect("room");
        let view = device.view_now(0, 4096).expect("within");
        let viewed = ViewedBuf::new(view, buffer).expect("as long");
        link.gather(cx).push_bytes(&[1; 64]);
        link.flush(cx, Nanos::ZERO);
        link.bind_view(SlotId(0), viewed);
        link.flush(cx, Nanos::ZERO);
        device.write_now(0, &[2; 4096]).expect("within");
        let buffer = link.buffer(SlotId(0)).expect("what was found");
        assert!(buffer.iter().all(|byte| *byte == 1));
        assert!(link.take_view(SlotId(0)).is_none());
    }

    /// What a part of a Read had was counted until the next send. When the part had left before
    /// the next was asked for, none came: the rest of the Read waited for itself.
    #[test]
    fn what_has_left_already_is_not_held_until_something_else_leaves() {
        on_a_reactor(check);
    }

    #[test]
    fn what_was_found_in_a_medium_is_copied_before_the_turn_ends() {
        on_a_reactor(check_views);
    }

    /// What was answered as it came has no slot: it comes back with the send that carries it, not
    /// with an earlier one.
    fn check_gathered(mut link: Link, cx: &mut Reactor) {
        let held = |link: &Link| link.request(1, 1).held.bytes;
        link.gather(cx).push_bytes(&[1; 64]);
        link.charge_gathered(CHARGE);
        assert_eq!(held(&link), 4096, "it is gathered");
        link.flush(cx, Nanos::ZERO);
        assert_eq!(held(&link), 4096, "it is being sent");
        assert!(cx.is_sending(link.socket));
        for _ in 0..2 {
            link.gather(cx).push_bytes(&[2; 64]);
            link.charge_gathered(CHARGE);
        }
        // A Write's answer keeps nothing from others.
        link.charge_gathered(Charge::default());
        link.flush(cx, Nanos::ZERO);
        assert_eq!(held(&link), 3 * 4096, "the others wait for the first");
        link.sent();
        assert_eq!(held(&link), 2 * 4096, "the first has left");
        link.release_with_gather(SlotId(0));
        assert_eq!(held(&link), 2 * 4096, "no slot has what is gathered");
    }

    #[test]
    fn what_was_answered_as_it_came_is_held_until_it_has_left() {
        on_a_reactor(check_gathered);
    }

    fn on_a_reactor(check: fn(Link, &mut Reactor)) {
        LocalReactor::new(&Config::default(), |cx, _| {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            let socket = cx.attach(TcpStream::connect(listener.local_addr()?)?)?;
            let conn = ConnId {
                index: 0,
                generation: 0,
            };
            check(Link::new(conn, socket, Vec::new()), cx);
            Ok(TargetService::<MemDevice>::new(TargetConfig::default()))
        })
        .expect("a reactor");
    }
}
