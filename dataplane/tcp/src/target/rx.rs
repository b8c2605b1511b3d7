//! From the socket into the protocol machine and the command buffers.
//!
//! Small commands are received many at a time into the reactor's one staging area; the payload of
//! a large transfer is received straight into the buffer the device will read.

use std::io::IoSliceMut;

use bowline_block::{BUFFER_ALIGN, Device};
use bowline_nvme::Nanos;
use bowline_nvmf::target::{ConnId, Rx, SlotId};
use bowline_reactor::{Reactor, Recv, SocketId};

use super::{TargetService, budget};
use bowline_nvmf::frame::crc32c;

/// From this much missing payload on, receiving straight into the command's buffer beats the copy
/// out of the staging area.
const DIRECT_BYTES_MIN: u32 = 16 << 10;

/// Received per connection and turn, so that one busy connection cannot starve the others.
const TURN_BYTES_MAX: usize = 1 << 20;

/// Received by all connections in a turn, so that a turn ends while they all send.
const ALL_TURN_BYTES_MAX: usize = 8 << 20;

/// PDUs taken per connection and turn: a turn's bytes may be tens of thousands of the smallest.
const TURN_PDUS_MAX: u64 = 1024;

/// A peer whose PDUs are smaller than this on average sends many of them.
const DENSE_PDU_BYTES: u64 = 512;

/// Received at a time from a peer that sends many PDUs, or when not everything that arrives is
/// sure to find its place. What does not is carried, so this bounds what a connection carries. A
/// queue of 128 Reads fits.
const WINDOW_BYTES: usize = 16 << 10;

/// How a round of receiving ended.
enum Round {
    /// Everything received was placed; there may be more.
    Placed { bytes: usize, drained: bool },
    /// The connection waits for a slot or a buffer.
    Stalled,
    /// Nothing more for now.
    Idle,
    /// The connection is gone.
    Gone,
}

impl<D: Device> TargetService<D> {
    /// Takes what the socket has, up to a turn's share.
    pub(super) fn receive(&mut self, cx: &mut Reactor, now: Nanos, conn: ConnId) {
        let Some(link) = self.links.get(conn) else {
            return;
        };
        let socket = link.socket;
        if link.is_carrying() && !self.place_carry(cx, now, conn) {
            return;
        }
        let mut staging = cx.take_staging();
        let before = self.target.pdus(conn);
        let may_be_late = self.touched.is_empty() && cx.may_send_early();
        let mut total = 0;
        loop {
            self.catch_up(&staging);
            let window = self.window_bytes(cx, conn, staging.len());
            let into = &mut staging[..window];
            match self.receive_once(cx, now, conn, socket, into, may_be_late) {
                Round::Placed { bytes, drained } => {
                    total += bytes;
                    self.turn_bytes += bytes;
                    let pdus = self.target.pdus(conn).saturating_sub(before);
                    self.note_density(conn, total, pdus);
                    if drained {
                        break;
                    }
                    if total >= TURN_BYTES_MAX || pdus >= TURN_PDUS_MAX {
                        self.work.turns_cut += 1;
                        cx.rearm(socket);
                        break;
                    }
                }
                Round::Stalled => {
                    self.links.stall(conn);
                    break;
                }
                Round::Idle => break,
                Round::Gone => {
                    self.drop_link(cx, now, conn);
                    break;
                }
            }
        }
        self.answer_early(cx, now, conn);
        self.catch_up(&staging);
        cx.put_staging(staging);
        let pdus = self.target.pdus(conn).saturating_sub(before);
        self.work.note_turn(total, pdus);
    }

    /// Whether this turn has received enough; the socket is then seen again in the next.
    pub(super) fn put_off(&mut self, cx: &mut Reactor, socket: SocketId) -> bool {
        let is_over = self.turn_bytes >= ALL_TURN_BYTES_MAX;
        if is_over {
            self.work.turns_cut += 1;
            cx.rearm(socket);
        }
        is_over
    }

    fn note_density(&mut self, conn: ConnId, bytes: usize, pdus: u64) {
        if let Some(link) = self.links.get_mut(conn) {
            link.dense = pdus.saturating_mul(DENSE_PDU_BYTES) > bytes as u64;
        }
    }

    /// How much to receive at a time: all that fits, if all of it will find a buffer, whatever it
    /// turns out to be.
    fn window_bytes(&self, cx: &Reactor, conn: ConnId, most: usize) -> usize {
        let Some(link) = self.links.get(conn) else {
            return WINDOW_BYTES.min(most);
        };
        // A command in a capsule takes a buffer of four times its size, or the smallest.
        let slots = usize::from(self.target.slots(conn));
        let worst_bytes = 4 * most + slots * BUFFER_ALIGN;
        let is_sure = link.room(cx.pool()) >= worst_bytes
            && cx
                .pool()
                .free_of(self.reserve.bytes()..=4 * self.reserve.bytes())
                >= slots;
        if is_sure && !link.dense && self.target.is_ready(conn) {
            most
        } else {
            WINDOW_BYTES.min(most)
        }
    }

    fn receive_once(
        &mut self,
        cx: &mut Reactor,
        now: Nanos,
        conn: ConnId,
        socket: SocketId,
        staging: &mut [u8],
        may_be_late: bool,
    ) -> Round {
        let mut direct = None;
        let outcome = match self.target.rx(conn) {
            Rx::Hold => {
                self.pump(cx, now, conn);
                self.touched.push(conn);
                if self.target.rx(conn) == Rx::Hold {
                    return Round::Stalled;
                }
                return Round::Placed {
                    bytes: 0,
                    drained: false,
                };
            }
            Rx::Payload {
                slot,
                offset,
                len,
                transfer_len,
                ..
            } if len >= DIRECT_BYTES_MIN => {
                if !self.bind(cx, conn, slot, transfer_len) {
                    return Round::Stalled;
                }
                direct = Some((slot, len as usize));
                let Some(into) = self.window(conn, slot, offset, len) else {
                    return Round::Gone;
                };
                cx.recv(
                    socket,
                    &mut [IoSliceMut::new(into), IoSliceMut::new(staging)],
                )
            }
            _ => cx.recv(socket, &mut [IoSliceMut::new(staging)]),
        };
        let (bytes, drained) = match outcome {
            Recv::Data { bytes, drained } => (bytes, drained),
            Recv::WouldBlock => return Round::Idle,
            Recv::Closed | Recv::Error(_) => return Round::Gone,
        };
        let staged = match direct {
            Some((slot, len)) => {
                let landed = bytes.min(len);
                self.landed(now, conn, slot, landed);
                bytes - landed
            }
            None => bytes,
        };
        let placed = self.feed(cx, now, conn, &staging[..staged], may_be_late);
        if placed < staged {
            if let Some(link) = self.links.get_mut(conn) {
                link.keep_copy(&staging[placed..staged]);
            }
            self.work.note_carry(staged - placed);
            return Round::Stalled;
        }
        Round::Placed { bytes, drained }
    }

    /// Places bytes kept from an earlier turn. Returns whether all of them could be.
    fn place_carry(&mut self, cx: &mut Reactor, now: Nanos, conn: ConnId) -> bool {
        let Some(link) = self.links.get_mut(conn) else {
            return false;
        };
        let carry = link.take_carry();
        let placed = self.feed(cx, now, conn, &carry, false);
        let done = placed == carry.len();
        if let Some(link) = self.links.get_mut(conn) {
            link.keep(carry, placed);
            if !done {
                self.links.stall(conn);
            }
        }
        done
    }

    /// Hands bytes to the protocol machine and the command buffers; returns how many it took.
    /// Writes among them that `may_be_late` are only answered, unless something follows them.
    fn feed(
        &mut self,
        cx: &mut Reactor,
        now: Nanos,
        conn: ConnId,
        input: &[u8],
        may_be_late: bool,
    ) -> usize {
        let mut at = 0;
        let mut held = false;
        while at < input.len() {
            let rest = &input[at..];
            match self.target.rx(conn) {
                Rx::Bytes => {
                    at += self.run_at_once(cx, now, conn, input, at, may_be_late);
                    let rest = &input[at..];
                    if !rest.is_empty() {
                        self.catch_up(input);
                        at += self.target.handle_bytes(now, conn, rest);
                    }
                }
                Rx::Payload {
                    slot,
                    offset,
                    len,
                    transfer_len,
                    ..
                } => {
                    if !self.bind(cx, conn, slot, transfer_len) {
                        break;
                    }
                    let take = rest.len().min(len as usize);
                    let Ok(len) = u32::try_from(take) else { break };
                    let Some(into) = self.window(conn, slot, offset, len) else {
                        break;
                    };
                    into.copy_from_slice(&rest[..take]);
                    self.landed(now, conn, slot, take);
                    at += take;
                }
                Rx::Discard { len } => {
                    let take = u32::try_from(rest.len()).map_or(len, |rest| rest.min(len));
                    self.target.handle_payload(now, conn, take, None);
                    at += take as usize;
                }
                // Running what is queued may end the hold: control data wants to be inspected.
                Rx::Hold if !held => {
                    held = true;
                    self.pump(cx, now, conn);
                    self.touched.push(conn);
                    continue;
                }
                Rx::Hold => break,
                Rx::Closed => return input.len(),
            }
            held = false;
        }
        at
    }

    /// Reports landed payload, with its CRC where it completes a PDU.
    fn landed(&mut self, now: Nanos, conn: ConnId, slot: SlotId, landed: usize) {
        let Rx::Payload {
            offset,
            len,
            digest_from,
            ..
        } = self.target.rx(conn)
        else {
            return;
        };
        let Ok(landed) = u32::try_from(landed) else {
            return;
        };
        let crc = digest_from.filter(|_| landed == len).and_then(|start| {
            let buffer = self.links.get(conn)?.buffer(slot)?;
            Some(crc32c(
                buffer.get(start as usize..(offset + landed) as usize)?,
            ))
        });
        self.target.handle_payload(now, conn, landed, crc);
    }

    /// Makes sure the slot has a buffer. False when the connection must first give one back.
    fn bind(&mut self, cx: &Reactor, conn: ConnId, slot: SlotId, transfer_len: u32) -> bool {
        let Some(link) = self.links.get(conn) else {
            return false;
        };
        if link.buffer(slot).is_some() {
            return true;
        }
        let ceiling_bytes = self.ceiling_bytes();
        let Some(link) = self.links.get_mut(conn) else {
            return false;
        };
        let request = link.request(transfer_len as usize, ceiling_bytes);
        match budget::for_capsule(cx.pool(), &self.reserve, &request) {
            Some((buffer, charge)) => {
                link.bind_charged(slot, buffer, charge);
                true
            }
            None => {
                self.work.stalls += 1;
                false
            }
        }
    }

    /// Where the next `len` payload bytes of the slot go.
    fn window(&mut self, conn: ConnId, slot: SlotId, offset: u32, len: u32) -> Option<&mut [u8]> {
        let buffer = self.links.get_mut(conn)?.buffer_mut(slot)?;
        let start = offset as usize;
        buffer
            .as_mut()?
            .get_mut(start..start.checked_add(len as usize)?)
    }
}
