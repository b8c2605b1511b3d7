//! One operation at a time, for those who have nothing else to do meanwhile.

use std::net::SocketAddr;

use bowline_block::Segments;
use bowline_nvme::log::DiscoveryEntry;
use bowline_nvme::{NamespaceId, Nanos, Sqe, Status};
use bowline_nvmf::host::{ControllerConfig, DiscoveryReader, SubmitError};

use super::command::{
    BLOCKS_MAX, Direction, HostCommand, HostCompletion, HostError, HostOp, RejectReason,
};
use super::initiator::Initiator;
use super::path::TOKEN_MARK;
use super::service::PathId;

/// Most bytes of one command of these calls.
const CHUNK_BYTES_MAX: usize = 1 << 20;
/// Most entries of a discovery log that are read.
const DISCOVERY_ENTRIES_MAX: usize = 16 << 10;
/// Bytes of a discovery log read at a time.
const DISCOVERY_CHUNK_BYTES: u32 = 16 << 10;
/// Pause before a command that may succeed later is tried again.
const RETRY_PAUSE: Nanos = Nanos::from_millis(20);

/// Blocking calls. Each runs until it has succeeded, failed for good, or reached its deadline.
///
/// A command lost with its connection is repeated when the association is up again, as is one
/// whose status allows it. Every operation here can be repeated, provided nobody else writes the
/// same range meanwhile. Other commands of the owner go on, and their completions are kept.
impl Initiator {
    /// Reads `data.len()` bytes at byte `offset`, both multiples of the block size.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn read_at(
        &mut self,
        id: PathId,
        nsid: NamespaceId,
        offset: u64,
        data: &mut [u8],
        deadline: Nanos,
    ) -> Result<(), HostError> {
        self.check_range(id, nsid, offset, data.len() as u64)?;
        let mut at = offset;
        for part in data.chunks_mut(self.chunk_bytes(id, nsid)?) {
            let (lba, blocks) = self.range(id, nsid, at, part.len() as u64)?;
            let buffers = self.buffers(part.len(), deadline)?;
            let done = self.io(id, nsid, HostOp::Read, lba, blocks, buffers, deadline)?;
            let mut rest = &mut *part;
            for segment in done.data.iter() {
                let len = segment.len().min(rest.len());
                let (now, later) = rest.split_at_mut(len);
                now.copy_from_slice(&segment.as_slice()[..len]);
                rest = later;
            }
            at += part.len() as u64;
        }
        Ok(())
    }

    /// Writes `data` at byte `offset`, both multiples of the block size.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn write_at(
        &mut self,
        id: PathId,
        nsid: NamespaceId,
        offset: u64,
        data: &[u8],
        fua: bool,
        deadline: Nanos,
    ) -> Result<(), HostError> {
        self.with_data(id, nsid, HostOp::Write { fua }, offset, data, deadline)
    }

    /// Compares `data` with what is at byte `offset`; a difference is
    /// [`Status::COMPARE_FAILURE`].
    ///
    /// # Errors
    /// [`HostError`].
    pub fn compare_at(
        &mut self,
        id: PathId,
        nsid: NamespaceId,
        offset: u64,
        data: &[u8],
        deadline: Nanos,
    ) -> Result<(), HostError> {
        self.with_data(id, nsid, HostOp::Compare, offset, data, deadline)
    }

    /// Makes every write completed before durable.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn flush(
        &mut self,
        id: PathId,
        nsid: NamespaceId,
        deadline: Nanos,
    ) -> Result<(), HostError> {
        self.io(id, nsid, HostOp::Flush, 0, 0, Segments::new(), deadline)
            .map(drop)
    }

    /// Makes `len` bytes at byte `offset` read as zeroes.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn write_zeroes_at(
        &mut self,
        id: PathId,
        nsid: NamespaceId,
        offset: u64,
        len: u64,
        deallocate: bool,
        deadline: Nanos,
    ) -> Result<(), HostError> {
        let op = HostOp::WriteZeroes { deallocate };
        self.without_data(id, nsid, op, offset, len, BLOCKS_MAX, deadline)
    }

    /// Tells that `len` bytes at byte `offset` are no longer needed.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn deallocate_at(
        &mut self,
        id: PathId,
        nsid: NamespaceId,
        offset: u64,
        len: u64,
        deadline: Nanos,
    ) -> Result<(), HostError> {
        self.without_data(
            id,
            nsid,
            HostOp::Deallocate,
            offset,
            len,
            u32::MAX,
            deadline,
        )
    }

    /// Runs an admin command that transfers `len` bytes to the host, and returns them.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn admin_read(
        &mut self,
        id: PathId,
        sqe: Sqe,
        len: usize,
        deadline: Nanos,
    ) -> Result<Vec<u8>, HostError> {
        let (direction, data) = if len == 0 {
            (Direction::None, Segments::new())
        } else {
            (Direction::ToHost, self.buffers(len, deadline)?)
        };
        let done = self.execute(id, Some(0), raw(sqe, direction, data), deadline)?;
        Ok(done
            .data
            .iter()
            .flat_map(|segment| segment.iter().copied())
            .collect())
    }

    /// Reads the discovery log of the discovery controller at `addr`, and disconnects.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn discover(
        &mut self,
        addr: SocketAddr,
        config: ControllerConfig,
        deadline: Nanos,
    ) -> Result<Vec<DiscoveryEntry>, HostError> {
        let config = ControllerConfig {
            io_queues: 0,
            keep_alive: Nanos::ZERO,
            async_events: false,
            ..config
        };
        let id = self.connect(addr, config);
        let entries = self
            .wait_ready(id, deadline)
            .and_then(|()| self.read_discovery_log(id, deadline));
        // The log is what counts; a controller that does not end orderly is cut off.
        let _ = self.disconnect(id, deadline);
        self.remove(id);
        entries
    }

    /// Reads the discovery log of a connected discovery controller.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn read_discovery_log(
        &mut self,
        id: PathId,
        deadline: Nanos,
    ) -> Result<Vec<DiscoveryEntry>, HostError> {
        let mut reader = DiscoveryReader::new(DISCOVERY_CHUNK_BYTES, DISCOVERY_ENTRIES_MAX);
        while let Some((sqe, len)) = reader.command() {
            let data = self.admin_read(id, sqe, len as usize, deadline)?;
            reader
                .handle(Status::SUCCESS, &data)
                .map_err(HostError::Discovery)?;
        }
        Ok(reader.into_entries())
    }

    fn with_data(
        &mut self,
        id: PathId,
        nsid: NamespaceId,
        op: HostOp,
        offset: u64,
        data: &[u8],
        deadline: Nanos,
    ) -> Result<(), HostError> {
        self.check_range(id, nsid, offset, data.len() as u64)?;
        let mut at = offset;
        for part in data.chunks(self.chunk_bytes(id, nsid)?) {
            let (lba, blocks) = self.range(id, nsid, at, part.len() as u64)?;
            let mut buffers = self.buffers(part.len(), deadline)?;
            if !buffers.copy_from(part) {
                return Err(HostError::Rejected(RejectReason::SharedBuffer));
            }
            self.io(id, nsid, op, lba, blocks, buffers, deadline)?;
            at += part.len() as u64;
        }
        Ok(())
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "private; the public calls name them"
    )]
    fn without_data(
        &mut self,
        id: PathId,
        nsid: NamespaceId,
        op: HostOp,
        offset: u64,
        len: u64,
        blocks_max: u32,
        deadline: Nanos,
    ) -> Result<(), HostError> {
        self.check_range(id, nsid, offset, len)?;
        let block_bytes = u64::from(self.namespace(id, nsid)?.block_bytes);
        let chunk = u64::from(blocks_max) * block_bytes;
        let (mut at, mut left) = (offset, len);
        while left > 0 {
            let part = left.min(chunk);
            let (lba, blocks) = self.range(id, nsid, at, part)?;
            self.io(id, nsid, op, lba, blocks, Segments::new(), deadline)?;
            at += part;
            left -= part;
        }
        Ok(())
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "private; the fields of one command"
    )]
    fn io(
        &mut self,
        id: PathId,
        nsid: NamespaceId,
        op: HostOp,
        lba: u64,
        blocks: u32,
        data: Segments,
        deadline: Nanos,
    ) -> Result<HostCompletion, HostError> {
        let command = HostCommand {
            op,
            nsid,
            lba,
            blocks,
            data,
            token: 0,
        };
        self.execute(id, None, command, deadline)
    }

    /// Runs one command to its end, repeating it as long as that may help.
    fn execute(
        &mut self,
        id: PathId,
        queue: Option<u16>,
        mut command: HostCommand,
        deadline: Nanos,
    ) -> Result<HostCompletion, HostError> {
        loop {
            self.wait_ready(id, deadline)?;
            let (op, nsid, lba, blocks) = (command.op, command.nsid, command.lba, command.blocks);
            let done = match self.attempt(id, queue, command, deadline)? {
                Ok(done) if done.status.is_success() => return Ok(done),
                Ok(done) if !is_worth_repeating(&done) => {
                    return Err(HostError::Failed(done.status));
                }
                Ok(done) => done.data,
                Err(unsent) => unsent,
            };
            let pause = self.now().after(RETRY_PAUSE);
            if pause >= deadline {
                return Err(HostError::TimedOut);
            }
            self.run_until(pause, |_, _| false);
            command = HostCommand {
                op,
                nsid,
                lba,
                blocks,
                data: done,
                token: 0,
            };
        }
    }

    /// One attempt: its completion, or its data if it could not be submitted now.
    fn attempt(
        &mut self,
        id: PathId,
        queue: Option<u16>,
        mut command: HostCommand,
        deadline: Nanos,
    ) -> Result<Result<HostCompletion, Segments>, HostError> {
        let token = TOKEN_MARK | self.next_token;
        self.next_token = (self.next_token + 1) & !TOKEN_MARK;
        command.token = token;
        let now = self.now();
        let (service, reactor) = self.parts();
        let path = service.path_mut(id);
        path.forget_abandoned();
        let submitted = match queue {
            Some(queue) => path.submit_on(reactor, now, queue, command),
            None => path.submit(reactor, now, command),
        };
        if let Err(rejected) = submitted {
            return match rejected.reason {
                // Both pass: others' commands complete, and the path comes back.
                RejectReason::Queue(SubmitError::Full | SubmitError::NotReady)
                | RejectReason::NoBuffer
                | RejectReason::SharedBuffer => Ok(Err(rejected.command.data)),
                reason @ (RejectReason::Queue(SubmitError::Length) | RejectReason::Shape) => {
                    Err(HostError::Rejected(reason))
                }
            };
        }
        let mut done = None;
        self.run_until(deadline, |service, _| {
            done = service.path_mut(id).poll_token(token);
            done.is_some()
        });
        done.map(Ok).ok_or(HostError::TimedOut)
    }

    /// The blocks that `len` bytes at `offset` are, for one command.
    fn range(
        &self,
        id: PathId,
        nsid: NamespaceId,
        offset: u64,
        len: u64,
    ) -> Result<(u64, u32), HostError> {
        self.check_range(id, nsid, offset, len)?;
        let block_bytes = u64::from(self.namespace(id, nsid)?.block_bytes);
        let count = u32::try_from(len / block_bytes).map_err(|_| HostError::Range)?;
        Ok((offset / block_bytes, count))
    }

    /// Whether `len` bytes at `offset` are blocks of the namespace.
    fn check_range(
        &self,
        id: PathId,
        nsid: NamespaceId,
        offset: u64,
        len: u64,
    ) -> Result<(), HostError> {
        let namespace = self.namespace(id, nsid)?;
        let block_bytes = u64::from(namespace.block_bytes);
        let aligned = offset.is_multiple_of(block_bytes) && len.is_multiple_of(block_bytes);
        let within = offset
            .checked_add(len)
            .is_some_and(|end| end <= namespace.bytes());
        if aligned && within {
            Ok(())
        } else {
            Err(HostError::Range)
        }
    }

    /// Bytes of data per command: what controller, pool and block count allow, in whole blocks.
    fn chunk_bytes(&self, id: PathId, nsid: NamespaceId) -> Result<usize, HostError> {
        let block_bytes = self.namespace(id, nsid)?.block_bytes as usize;
        let facts = self.path(id).controller().facts();
        let limit = facts.map_or(u32::MAX, |facts| facts.transfer_bytes_max) as usize;
        let limit = limit
            .min(CHUNK_BYTES_MAX)
            .min(self.pool().bytes_max_request());
        Ok((limit - limit % block_bytes).max(block_bytes))
    }

    /// Buffers for `len` bytes, waiting for other commands to give theirs back if need be.
    fn buffers(&mut self, len: usize, deadline: Nanos) -> Result<Segments, HostError> {
        let mut found = None;
        let pool = self.pool().clone();
        self.run_until(deadline, |_, _| {
            found = pool.alloc(len).map(|mut buf| {
                buf.truncate(len);
                Segments::from(buf)
            });
            // A buffer that does not exist is not worth waiting for.
            found.is_some() || len > pool.bytes_max_request()
        });
        found.ok_or(HostError::Rejected(RejectReason::NoBuffer))
    }
}

fn raw(sqe: Sqe, direction: Direction, data: Segments) -> HostCommand {
    let op = HostOp::Raw { sqe, direction };
    HostCommand {
        op,
        nsid: NamespaceId::NONE,
        lba: 0,
        blocks: 0,
        data,
        token: 0,
    }
}

/// Whether the same command may succeed later: its connection was lost, or its status is about
/// the way there or a passing state. [BASE-2.0 §3.3.3.2.1]
fn is_worth_repeating(done: &HostCompletion) -> bool {
    let passing = [
        Status::NAMESPACE_NOT_READY,
        Status::COMMAND_INTERRUPTED,
        Status::TRANSIENT_TRANSPORT,
        Status::DATA_TRANSFER_ERROR,
        Status::ABORTED_SQ_DELETION,
    ];
    let status = done.status;
    done.path_lost
        || (!status.is_dnr()
            && (status.is_path_error() || passing.iter().any(|other| status.same_code(*other))))
}
