//! The engine of a pool: everything behind the handles, driven by polling.

use std::collections::{HashMap, VecDeque};

use bowline_block::{
    Allocation, BufPool, ClassConfig, Completion, Completions, Deallocate, Device, DeviceEvent,
    Geometry, Io, IoError, Op, PoolConfig,
};
use bowline_nvme::Nanos;

use super::checkpoint::Checkpointer;
use super::checksums::Sums;
use super::clean::Cleaner;
use super::collect::Collecting;
use super::doubt::Doubt;
use super::drive::{Access, Drive, Tag};
use super::flush::Flushes;
use super::journal::Journal;
use super::operation::Operations;
use super::piece::Piece;
use super::port::Port;
use super::request::Request;
use super::shape::Shape;
use super::slab::Slab;
use super::work::{Barrier, Works};
use super::{PoolEvent, Provisioning, SnapshotInfo, Usage, VolumeInfo};
use crate::format::superblock::Superblock;
use crate::map::{HeadEntry, Reader, Run, Snapshot, State, Volume};

/// Requests of all volumes that are held at once, until their completions are handed out.
const HELD_MAX: usize = 8192;

/// Times that one poll asks the drive again, when there was something: so that it ends.
const ROUNDS_MAX: usize = 16;

/// Without requests for so long, the pool has the drive for itself.
const QUIET: Nanos = Nanos::from_micros(100);

/// Percent of use that are told when they are reached.
const USED_TOLD: [u8; 3] = [80, 90, 95];

/// So many percent less are told to be less than a mark.
const USED_TOLD_LESS: u8 = 2;

/// The largest piece that is read by way of a buffer.
pub(super) const BOUNCE_BYTES_MAX: u32 = 128 << 10;

/// Events that wait to be fetched.
const EVENTS_MAX: usize = 256;

/// Something to go on with.
pub(super) enum Todo {
    Request(u32),
    Piece(u32),
}

/// The engine.
pub(super) struct Engine<D> {
    pub(super) drive: Drive<D>,
    pub(super) buffers: BufPool,
    pub(super) shape: Shape,
    pub(super) superblock: Superblock,
    pub(super) state: State,
    pub(super) journal: Journal,
    pub(super) checkpointer: Checkpointer,
    pub(super) cleaner: Cleaner,
    pub(super) operations: Operations,
    pub(super) collecting: Collecting,
    pub(super) sums: Sums,
    pub(super) doubt: Doubt,
    pub(super) flushes: Flushes,
    /// A physical extent that must not be written to in place now; no extent has the largest number.
    pub(super) locked: u32,
    pub(super) ports: Slab<Port>,
    pub(super) requests: Slab<Request>,
    pub(super) pieces: Slab<Piece>,
    pub(super) works: Works,
    pub(super) barriers: HashMap<u32, Barrier>,
    pub(super) todo: VecDeque<Todo>,
    /// Requests that had their turn in this poll, and go on with the next.
    pub(super) yielding: VecDeque<u32>,
    /// Requests that wait for a buffer.
    pub(super) starved: VecDeque<u32>,
    /// Pieces that wait for an extent or for a buffer.
    pub(super) homeless: VecDeque<u32>,
    pub(super) events: VecDeque<PoolEvent>,
    pub(super) now: Nanos,
    /// Of the last lookup.
    pub(super) runs: Vec<Run>,
    /// Of the last record.
    pub(super) bitmap: Vec<u8>,
    held: usize,
    /// Those of them that are not completed yet.
    running: usize,
    has_vanished: bool,
    /// Until then there may be more requests where there were some.
    pub(super) busy_until: Nanos,
    /// Something may be left that nobody needs.
    pub(super) was_collecting: bool,
    /// The last poll ended while there was something to do.
    has_more: bool,
    /// The mark that was told last.
    used_told: u8,
}

/// The buffers of an engine: taken from the system where they are touched.
pub(super) fn buffers() -> std::io::Result<BufPool> {
    let class = |bytes, count| ClassConfig { bytes, count };
    BufPool::new(PoolConfig {
        classes: vec![
            class(4 << 10, 256),
            class(16 << 10, 128),
            class(128 << 10, 64),
        ],
    })
}

impl<D: Device> Engine<D> {
    pub(super) fn new(
        drive: Drive<D>,
        buffers: BufPool,
        superblock: Superblock,
        state: State,
        journal: Journal,
        checkpointer: Checkpointer,
        sums: Sums,
    ) -> Self {
        let layout = &superblock.layout;
        let bitmap_bytes = layout.bitmap_bytes();
        Self {
            shape: Shape::new(layout.extent_bytes, layout.data.offset),
            drive,
            buffers,
            superblock,
            state,
            journal,
            checkpointer,
            cleaner: Cleaner::default(),
            operations: Operations::default(),
            collecting: Collecting::default(),
            sums,
            doubt: Doubt::default(),
            flushes: Flushes::default(),
            locked: u32::MAX,
            ports: Slab::new(),
            requests: Slab::new(),
            pieces: Slab::new(),
            works: Works::new(),
            barriers: HashMap::new(),
            todo: VecDeque::new(),
            yielding: VecDeque::new(),
            starved: VecDeque::new(),
            homeless: VecDeque::new(),
            events: VecDeque::new(),
            now: Nanos::ZERO,
            runs: Vec::new(),
            bitmap: vec![0; bitmap_bytes],
            held: 0,
            running: 0,
            has_vanished: false,
            busy_until: Nanos::ZERO,
            was_collecting: false,
            has_more: false,
            used_told: 0,
        }
    }

    /// Accepts a request of a handle.
    #[expect(clippy::result_large_err, reason = "the request itself comes back")]
    pub(super) fn submit(&mut self, at: u32, io: Io) -> Result<(), Io> {
        let Some(port) = self.ports.get_mut(at) else {
            return Err(io);
        };
        if self.held >= HELD_MAX {
            return Err(io);
        }
        self.held += 1;
        port.held += 1;
        let range = match port.verdict(&io) {
            Ok(range) => range,
            Err(error) => {
                port.complete(io.complete(Err(error)));
                return Ok(());
            }
        };
        self.running += 1;
        // The hot path: one access where the map says, and nothing else.
        if matches!(io.op, Op::Read | Op::Write) && range.len > 0 {
            let (logical, start) = self.shape.split(range.offset);
            if self.shape.within(start, range.len) == u32::try_from(range.len).unwrap_or(0)
                && let Reader::Head(slot) = port.reader
                && let HeadEntry::Whole { physical, is_own } = self.state.head(slot, logical)
                && (io.op == Op::Read || is_own && physical != self.locked)
            {
                let fua =
                    io.op == Op::Write && (io.fua || port.is_media) && self.drive.is_volatile();
                let access = Access {
                    op: io.op,
                    offset: self.shape.place(physical, start),
                    len: range.len,
                    fua,
                    data: io.data,
                };
                if port.is_plain(io.op) {
                    self.drive.submit_direct(access, at, io.token);
                    return Ok(());
                }
                let (place, token) = ((physical, start), io.token);
                let submitted = match io.op {
                    Op::Read => self.submit_checked(access, place, (at, token, io.lba)),
                    _ => self.submit_claimed(access, place, (at, token)),
                };
                let Some(Access { data, .. }) = submitted else {
                    return Ok(());
                };
                self.submit_slow(at, Io { data, ..io }, range);
                return Ok(());
            }
        }
        self.submit_slow(at, io, range);
        Ok(())
    }

    fn submit_slow(&mut self, at: u32, io: Io, range: bowline_block::ByteRange) {
        match io.op {
            Op::Flush => self.flush(at, io),
            _ if range.len == 0 => self.complete(at, io.complete(Ok(()))),
            Op::CompareAndWrite => self.compare(at, io, range),
            Op::Read | Op::Write | Op::WriteZeroes { .. } | Op::Deallocate => {
                self.begin(at, io, range);
            }
        }
        self.run_todo();
    }

    /// Compares and writes as one, which is possible within an extent.
    fn compare(&mut self, at: u32, io: Io, range: bowline_block::ByteRange) {
        let (_, start) = self.shape.split(range.offset);
        let len = self.shape.within(start, range.len);
        if u64::from(len) != range.len {
            return self.complete(at, io.complete(Err(IoError::Unsupported)));
        }
        self.begin(at, io, range);
    }

    /// Drives everything.
    pub(super) fn poll(&mut self, now: Nanos) {
        self.now = now;
        if self.running > 0 {
            self.busy_until = now.after(QUIET);
        }
        self.resume_yielding();
        for _ in 0..ROUNDS_MAX {
            self.drive.poll(now);
            let mut was_any = false;
            while let Some((tag, completion)) = self.drive.next() {
                was_any = true;
                self.answered(tag, completion);
            }
            self.run_todo();
            let is_started = self.run_background(was_any);
            self.has_more = was_any || is_started;
            if !self.has_more {
                break;
            }
        }
        while let Some(event) = self.drive.device_mut().poll_event() {
            self.handle_event(event);
        }
    }

    fn answered(&mut self, tag: Tag, completion: Completion) {
        match tag {
            Tag::Direct { port, token, .. } => self.complete(
                port,
                Completion {
                    token,
                    ..completion
                },
            ),
            Tag::Flush {
                port,
                token,
                failures,
            } => self.flush_answered((port, token), failures, completion),
            Tag::Piece { piece, .. } => self.piece_answered(piece, completion),
            Tag::Claimed {
                claim, port, token, ..
            } => self.claimed_answered(claim, (port, token), completion),
            Tag::Check { check, .. } => self.check_answered(check, completion),
            Tag::Page(step) => self.page_answered(step, completion),
            Tag::Group => self.group_answered(completion),
            Tag::Checkpoint => self.checkpoint_answered(completion),
            Tag::Copy { is_read } => self.copy_answered(is_read, completion),
            Tag::Clean { physical, count } => self.cleaned(physical, count, completion.result),
        }
    }

    pub(super) fn run_todo(&mut self) {
        while let Some(todo) = self.todo.pop_front() {
            match todo {
                Todo::Request(index) => self.advance(index),
                Todo::Piece(index) => self.start_piece(index),
            }
        }
    }

    /// Everything that is not a request. Returns whether something was started, so that polling again is worth it.
    fn run_background(&mut self, was_any: bool) -> bool {
        // When nothing is under way, nobody else is going to make room: whoever waits is told.
        if was_any || self.drive.in_flight() == 0 {
            self.retry_homeless();
        }
        self.run_grace();
        let has_operated = self.run_operations();
        self.run_todo();
        self.want_reserve();
        let has_collected = self.run_collector() | self.has_been_collected();
        let has_cleaned = self.run_cleaner();
        let has_saved = self.run_activity();
        let has_scrubbed = self.run_scrub();
        let has_sealed = self.seal();
        let has_checkpointed = self.run_checkpoint();
        has_operated
            || has_collected
            || has_cleaned
            || has_saved
            || has_scrubbed
            || has_sealed
            || has_checkpointed
    }

    /// Tells when a mark of use is passed, and when the use is well below it again.
    pub(super) fn watch_use(&mut self) {
        let percent = self.taken_percent();
        let reached = |percent: u8| USED_TOLD.into_iter().rfind(|mark| *mark < percent);
        let up = reached(percent).unwrap_or(0);
        let down = reached(percent.saturating_add(USED_TOLD_LESS)).unwrap_or(0);
        let told = self.used_told.clamp(up, down);
        if told != self.used_told {
            self.used_told = told;
            self.tell_event(PoolEvent::Used(told));
        }
    }

    /// Tells an event, once until it was fetched.
    pub(super) fn tell_event(&mut self, event: PoolEvent) {
        if self.events.len() < EVENTS_MAX && !self.events.contains(&event) {
            self.events.push_back(event);
        }
    }

    /// The drive is gone. What is under way ends as the drive ends it; nothing else begins.
    pub(super) fn vanish(&mut self) {
        if std::mem::replace(&mut self.has_vanished, true) {
            return;
        }
        self.journal.give_up();
        for port in self.ports.iter_mut() {
            port.vanish();
        }
        self.retry_homeless();
        self.has_more = true;
        self.tell_event(PoolEvent::Vanished);
    }

    fn handle_event(&mut self, event: DeviceEvent) {
        match event {
            DeviceEvent::Vanished => self.vanish(),
            DeviceEvent::MediaWarning => {
                for port in self.ports.iter_mut() {
                    port.tell(DeviceEvent::MediaWarning);
                }
            }
            // A drive that is back may have forgotten what it was to keep: its volumes stay gone until the pool is opened
            // again.
            DeviceEvent::Returned => self.tell_event(PoolEvent::Returned),
            // The pool uses what it was made with.
            DeviceEvent::GeometryChanged => {}
        }
    }

    pub(super) fn complete(&mut self, at: u32, completion: Completion) {
        let Some(port) = self.ports.get_mut(at) else {
            return;
        };
        self.running -= 1;
        port.complete(completion);
        if port.is_closed {
            self.held -= port.discard();
            if port.held == 0 {
                self.ports.remove(at);
            }
        }
    }

    pub(super) fn hand_out(&mut self, at: u32, out: &mut Completions) {
        if let Some(port) = self.ports.get_mut(at) {
            self.held -= port.hand_out(out);
        }
    }

    /// The pool itself has taken a completion.
    pub(super) const fn take_held(&mut self) {
        self.held -= 1;
    }

    pub(super) fn open_port(&mut self, mut port: Port) -> u32 {
        if self.has_doubts() {
            port.look_before_writing();
        }
        let at = self.ports.insert(port);
        if self.has_vanished
            && let Some(port) = self.ports.get_mut(at)
        {
            port.vanish();
        }
        at
    }

    /// A handle was dropped. Its requests end without being told.
    pub(super) fn close_port(&mut self, at: u32) {
        let Some(port) = self.ports.get_mut(at) else {
            return;
        };
        port.is_closed = true;
        self.held -= port.discard();
        if port.held == 0 {
            self.ports.remove(at);
        }
    }

    pub(super) fn port_event(&mut self, at: u32) -> Option<DeviceEvent> {
        self.ports.get_mut(at)?.next_event()
    }

    pub(super) fn geometry(&self, at: u32) -> Geometry {
        let port = self.ports.get(at);
        port.map_or(*self.drive.geometry(), |port| port.geometry)
    }

    pub(super) fn depth_max(&self) -> usize {
        self.drive.device().depth_max()
    }

    pub(super) fn port_timeout(&self, at: u32) -> Option<Nanos> {
        let port = self.ports.get(at)?;
        if port.has_done() {
            return Some(Nanos::ZERO);
        }
        if port.held > 0 { self.timeout() } else { None }
    }

    pub(super) fn timeout(&self) -> Option<Nanos> {
        let is_due = !self.todo.is_empty() || !self.yielding.is_empty() || self.has_turn();
        if self.has_more || self.journal.wants_seal() || is_due {
            return Some(Nanos::ZERO);
        }
        let timeouts = [
            self.drive.poll_timeout(),
            self.scrub_timeout(),
            self.activity_timeout(),
            self.chores_timeout(),
        ];
        timeouts.into_iter().flatten().min()
    }

    /// Nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.drive.in_flight() == 0
            && self.todo.is_empty()
            && self.requests.len() == 0
            && self.works.is_empty()
            && self.journal.is_idle()
            && self.checkpointer.is_idle()
            && self.operations.is_idle()
            && self.cleaner.is_idle()
            && self.collecting.is_idle()
            && self.sums.is_idle(self.operations.is_closing())
    }

    /// What a volume's handles say of it.
    pub(super) fn volume_geometry(
        &self,
        bytes: u64,
        block_bytes: u32,
        (is_media, is_thin): (bool, bool),
    ) -> Geometry {
        let drive = self.drive.geometry();
        Geometry {
            block_bytes,
            blocks: bytes / u64::from(block_bytes),
            volatile_cache: drive.volatile_cache && !is_media,
            read_only: drive.read_only,
            // What is longer may be parted at a chunk, and a power cut may come between the parts.
            atomic_write_blocks: 1,
            optimal_io_blocks: drive.optimal_io_blocks * drive.block_bytes / block_bytes,
            deallocate: Deallocate::ReadsZero,
            deallocate_granularity_blocks: self.shape.extent_bytes() / block_bytes,
            write_zeroes: true,
            thin: is_thin,
        }
    }

    /// Whether the drive is gone, or was.
    pub(super) const fn has_vanished(&self) -> bool {
        self.has_vanished
    }

    /// Whether handles have requests under way, or had just now.
    pub(super) fn is_used(&self) -> bool {
        self.running > 0 || self.now < self.busy_until
    }

    pub(super) fn usage(&self) -> Usage {
        let counts = self.state.extents();
        let bytes = |count: u32| u64::from(count) * u64::from(self.shape.extent_bytes());
        Usage {
            bytes: bytes(counts.all),
            used_bytes: bytes(counts.used),
            clean_bytes: bytes(counts.clean + counts.reserved),
            promised_bytes: bytes(counts.promised),
            available_bytes: bytes(counts.available()),
            reclaiming_bytes: bytes(self.state.reclaimable()),
            is_reclaiming: !self.is_collected(),
        }
    }

    /// The number of the volume behind a handle, if it is not of a snapshot.
    pub(super) fn volume_of(&self, at: u32) -> Option<u32> {
        let port = self.ports.get(at)?;
        matches!(port.reader, Reader::Head(_)).then(|| port.slot().number())
    }

    /// What a host may know of the room that a volume has and may still get.
    pub(super) fn allocation(&self, volume: u32) -> Allocation {
        let found = self.state.slot(volume).and_then(|it| self.state.volume(it));
        let Some(found) = found else {
            return Allocation {
                used_blocks: 0,
                spare_percent: 100,
            };
        };
        let mapped = u64::from(found.counts().mapped) * u64::from(self.shape.extent_bytes());
        let used = if found.is_thick {
            found.bytes
        } else {
            mapped.min(found.bytes)
        };
        Allocation {
            used_blocks: used / u64::from(found.block_bytes.max(1)),
            spare_percent: match found.is_thick {
                true => 100,
                false => 100 - self.taken_percent(),
            },
        }
    }

    /// What thin volumes cannot get any more, of all the room there is. Rounded up, so that the room
    /// which is left is below a percentage at once when the use has passed its mark.
    fn taken_percent(&self) -> u8 {
        let counts = self.state.extents();
        let taken = u64::from(counts.all - counts.available()) * 100;
        u8::try_from(taken.div_ceil(u64::from(counts.all.max(1)))).unwrap_or(100)
    }

    pub(super) fn volume_infos(&self) -> Vec<VolumeInfo> {
        let volumes = self.state.volumes().map(|(_, it)| it);
        volumes
            .filter(is_there)
            .map(|it| self.info_of(it))
            .collect()
    }

    pub(super) fn volume_info(&self, number: u32) -> Option<VolumeInfo> {
        let volume = self.state.volume(self.state.slot(number)?);
        volume.filter(is_there).map(|it| self.info_of(it))
    }

    pub(super) fn allocated(&self, number: u32) -> Option<(u64, u64)> {
        let volume = self.state.volume(self.state.slot(number)?)?;
        let bytes = |count: u32| u64::from(count) * u64::from(self.shape.extent_bytes());
        let counts = volume.counts();
        let mapped = if volume.is_thick {
            volume.bytes
        } else {
            bytes(counts.mapped)
        };
        Some((mapped, bytes(counts.physical)))
    }

    fn info_of(&self, volume: &Volume) -> VolumeInfo {
        let bytes = |count: u32| u64::from(count) * u64::from(self.shape.extent_bytes());
        VolumeInfo {
            volume: volume.number,
            uuid: volume.uuid,
            name: volume.name.to_string(),
            bytes: volume.bytes,
            block_bytes: volume.block_bytes,
            provisioning: provisioning(volume),
            durability: volume.durability,
            checksums: volume.checksums,
            base: volume.base,
            created: volume.created,
            mapped_bytes: if volume.is_thick {
                volume.bytes
            } else {
                bytes(volume.counts().mapped)
            },
            physical_bytes: bytes(volume.counts().physical),
            snapshots: snapshot_infos(volume),
        }
    }
}

/// Whether anybody but the pool itself should know of it.
fn is_there(volume: &&Volume) -> bool {
    !volume.is_deleted && !volume.is_being_made
}

const fn provisioning(volume: &Volume) -> Provisioning {
    if volume.is_thick {
        Provisioning::Thick
    } else {
        Provisioning::Thin
    }
}

fn snapshot_infos(volume: &Volume) -> Vec<SnapshotInfo> {
    let live = volume.snapshots().iter().filter(|it| !it.is_deleted);
    live.map(snapshot_info).collect()
}

fn snapshot_info(snapshot: &Snapshot) -> SnapshotInfo {
    SnapshotInfo {
        number: snapshot.number,
        uuid: snapshot.uuid,
        name: snapshot.name.to_string(),
        bytes: snapshot.bytes,
        created: snapshot.created,
    }
}
