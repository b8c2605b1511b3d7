//! One connection as the glue sees it: its socket, the buffers of its command slots, what is
//! gathered to be sent, and what was received but could not be placed yet.

use std::collections::VecDeque;

use bowline_block::IoBuf;
use bowline_nvme::Nanos;
use bowline_nvmf::target::{ConnId, SlotId};
use bowline_reactor::{Gather, Reactor, SocketId};

use super::tx::Waiting;

/// Carried bytes beyond this much capacity are given back to the heap once they are placed.
const CARRY_KEPT_BYTES: usize = 512;

pub(super) struct Link {
    pub(super) conn: ConnId,
    pub(super) socket: SocketId,
    places: Vec<Place>,
    /// What the next send will carry.
    gather: Option<Gather>,
    /// Bytes of the pool that this connection's commands keep from others, until their slot is
    /// free again and everything about them has left the socket.
    held_bytes: usize,
    /// Of these, bytes that come back when what is gathered has left.
    gathered_bytes: usize,
    /// Of these, bytes that come back when the send under way has ended.
    leaving_bytes: usize,
    /// Commands that wait until the connection holds less, in the order of arrival.
    deferred: VecDeque<Waiting>,
    /// When the send under way began.
    sending_since: Option<Nanos>,
    /// Received, but the protocol machine holds or the pool is empty. At most one staging area:
    /// nothing is received while it is not empty.
    carry: Vec<u8>,
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
    /// Bytes of `held_bytes` that are this slot's.
    charge_bytes: usize,
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
            gather: None,
            held_bytes: 0,
            gathered_bytes: 0,
            leaving_bytes: 0,
            deferred: VecDeque::new(),
            sending_since: None,
            carry,
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

    pub(super) fn buffer(&self, slot: SlotId) -> Option<&IoBuf> {
        self.places.get(usize::from(slot.0))?.buffer.as_ref()
    }

    pub(super) fn buffer_mut(&mut self, slot: SlotId) -> Option<&mut IoBuf> {
        self.places.get_mut(usize::from(slot.0))?.buffer.as_mut()
    }

    pub(super) fn take_buffer(&mut self, slot: SlotId) -> Option<IoBuf> {
        self.places.get_mut(usize::from(slot.0))?.buffer.take()
    }

    /// Counts pool bytes against the connection until the slot is released.
    pub(super) fn charge(&mut self, slot: SlotId, bytes: usize) {
        self.place_mut(slot).charge_bytes += bytes;
        self.held_bytes += bytes;
    }

    /// The slot is free. What it had may still be in the gather, and is held until that has left.
    pub(super) fn release_with_gather(&mut self, slot: SlotId) {
        let place = self.place_mut(slot);
        // The view in the gather keeps the memory until the bytes have left.
        place.buffer = None;
        self.gathered_bytes += std::mem::take(&mut place.charge_bytes);
    }

    /// The slot is free, and nothing of it is to be sent.
    pub(super) fn release(&mut self, slot: SlotId) {
        let place = self.place_mut(slot);
        place.buffer = None;
        self.held_bytes -= std::mem::take(&mut place.charge_bytes);
    }

    /// Whether `bytes` more would be more than the connection's share. One request is always
    /// possible, or nothing would ever come back.
    pub(super) fn exceeds_share(&self, bytes: usize, share_bytes: usize) -> bool {
        self.held_bytes > 0 && self.held_bytes + bytes > share_bytes
    }

    pub(super) fn defer(&mut self, waiting: Waiting) {
        self.deferred.push_back(waiting);
    }

    pub(super) fn deferred_mut(&mut self) -> &mut VecDeque<Waiting> {
        &mut self.deferred
    }

    pub(super) fn has_deferred(&self) -> bool {
        !self.deferred.is_empty()
    }

    pub(super) fn has_room(&self) -> bool {
        self.gather.as_ref().is_none_or(|gather| !gather.is_full())
    }

    pub(super) fn gather(&mut self, cx: &mut Reactor) -> &mut Gather {
        self.gather.get_or_insert_with(|| cx.gather())
    }

    /// Sends what is gathered, unless an earlier send is still under way.
    pub(super) fn flush(&mut self, cx: &mut Reactor, now: Nanos) {
        if !cx.is_sending(self.socket)
            && let Some(gather) = self.gather.take()
        {
            cx.send(self.socket, gather);
            self.leaving_bytes = std::mem::take(&mut self.gathered_bytes);
            self.sending_since = Some(now);
        }
    }

    /// The send under way has ended, and its gather is gone.
    pub(super) fn sent(&mut self) {
        self.held_bytes -= std::mem::take(&mut self.leaving_bytes);
        self.sending_since = None;
    }

    /// When the send under way began, if there is one.
    pub(super) fn sending_since(&self) -> Option<Nanos> {
        self.sending_since
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

    /// Keeps `rest` for later, reusing the memory of `carried` if there was any.
    pub(super) fn keep(&mut self, mut carried: Vec<u8>, consumed: usize) {
        carried.drain(..consumed);
        if carried.is_empty() {
            carried.shrink_to(CARRY_KEPT_BYTES);
        }
        self.carry = carried;
    }

    pub(super) fn keep_copy(&mut self, rest: &[u8]) {
        self.carry.extend_from_slice(rest);
    }
}
