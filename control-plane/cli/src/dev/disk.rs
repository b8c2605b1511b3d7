//! The drive as a host sees it: our own initiator, and commands that the ledger follows.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bowline_block::Segments;
use bowline_nvme::nqn::Nqn;
use bowline_nvme::pdu::Digests;
use bowline_nvme::{NamespaceId, Nanos};
use bowline_nvmf::host::ControllerConfig;
use bowline_reactor::Config;
use bowline_tcp::host::{
    HostCommand, HostCompletion, HostError, HostOp, Initiator, PathEvent, PathId,
};

use super::NQN;
use super::ledger::{Ledger, Mismatch};
use super::signals::Signals;
use crate::error::CliError;

/// The namespace that the drive is.
const NSID: NamespaceId = NamespaceId(1);
/// Time for a connection, a reconnection or one command; far more than any should take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Time for a data plane that runs to take a lost connection back.
const RETURN_PATIENCE: Duration = Duration::from_secs(10);
/// Lost connections of one step that are no more than bad luck, on a machine that stalls.
const RECONNECTS_MAX: u32 = 3;
/// How often a wait looks whether it was interrupted.
const GLANCE: Nanos = Nanos::from_millis(200);

/// An association with the data plane.
pub(crate) struct Disk {
    initiator: Initiator,
    path: PathId,
    running: HashMap<u64, Job>,
    next_token: u64,
}

/// A read or a write of a range of blocks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Job {
    pub(crate) access: Access,
    pub(crate) lba: u64,
    pub(crate) blocks: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Read and compare with the ledger.
    Verify,
    Write {
        /// Durable when acknowledged.
        fua: bool,
    },
}

/// What was moved, in which time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moved {
    pub(crate) commands: u64,
    pub(crate) bytes: u64,
    pub(crate) took: Duration,
    /// Times the connection was lost and came back.
    pub(crate) reconnects: u32,
}

/// Why a step ended early.
#[derive(Debug)]
pub(crate) enum DiskError {
    /// A block does not hold what was acknowledged.
    Mismatch(Mismatch),
    /// The host could not work.
    Host(CliError),
}

impl From<CliError> for DiskError {
    fn from(error: CliError) -> Self {
        Self::Host(error)
    }
}

impl Disk {
    /// Connects, with both digests or none.
    pub(crate) fn connect(address: SocketAddr, digests: bool) -> Result<Self, CliError> {
        let failed = |cause: &dyn std::fmt::Display| {
            CliError::failed(format!("our initiator did not connect to {address}")).cause(cause)
        };
        let mut initiator = Initiator::new(&Config::default()).map_err(|error| failed(&error))?;
        let id = uuid::Uuid::new_v4();
        let hostnqn = Nqn::new(&format!("nqn.2014-08.org.nvmexpress:uuid:{id}"));
        let hostnqn = hostnqn.map_err(|error| failed(&error))?;
        let subnqn = Nqn::new(NQN).map_err(|error| failed(&error))?;
        let config = ControllerConfig {
            digests: Digests {
                header: digests,
                data: digests,
            },
            ..ControllerConfig::new(hostnqn, id.into_bytes(), subnqn)
        };
        let path = initiator.connect(address, config);
        let deadline = after(&initiator, PATIENCE);
        initiator
            .wait_ready(path, deadline)
            .map_err(|error| failed(&error))?;
        Ok(Self {
            initiator,
            path,
            running: HashMap::new(),
            next_token: 0,
        })
    }

    /// Size of the drive in blocks, and of a block in bytes.
    pub(crate) fn geometry(&self) -> Result<(u64, u32), CliError> {
        let namespace = self
            .initiator
            .namespace(self.path, NSID)
            .map_err(not_done("looked at"))?;
        Ok((namespace.blocks, namespace.block_bytes))
    }

    /// Makes everything acknowledged durable.
    pub(crate) fn flush(&mut self) -> Result<Moved, CliError> {
        let begun = Instant::now();
        let deadline = after(&self.initiator, PATIENCE);
        self.initiator
            .flush(self.path, NSID, deadline)
            .map_err(not_done("flushed"))?;
        Ok(Moved {
            commands: 1,
            bytes: 0,
            took: begun.elapsed(),
            reconnects: 0,
        })
    }

    /// Runs jobs, `depth` at a time, until they end or `enough` are done; in the latter
    /// case the others stay in flight. Jobs at the same time must not overlap.
    pub(crate) fn run(
        &mut self,
        ledger: &mut Ledger,
        signals: &Signals,
        depth: usize,
        enough: Option<u64>,
        jobs: impl IntoIterator<Item = Job>,
    ) -> Result<Moved, DiskError> {
        let begun = Instant::now();
        let mut moved = Moved {
            commands: 0,
            bytes: 0,
            took: Duration::ZERO,
            reconnects: 0,
        };
        let mut jobs = jobs.into_iter();
        let mut waiting: Vec<Job> = Vec::new();
        loop {
            if !self.initiator.path(self.path).is_ready() {
                moved.reconnects += 1;
                self.come_back(moved.reconnects)?;
            }
            while self.running.len() < depth
                && let Some(job) = waiting.pop().or_else(|| jobs.next())
            {
                if !self.submit(ledger, job)? {
                    waiting.push(job);
                    break;
                }
            }
            if self.running.is_empty() || enough.is_some_and(|enough| moved.commands >= enough) {
                break;
            }
            signals.check()?;
            for done in self.completions()? {
                if done.path_lost {
                    // As any host does: the same command again, once the way is back.
                    waiting.extend(self.running.remove(&done.token));
                    continue;
                }
                if !done.status.is_success() {
                    let cause = format!("the data plane answered {}", done.status);
                    return Err(CliError::failed("a command failed").cause(cause).into());
                }
                moved.commands += 1;
                moved.bytes += self.finish(ledger, done)?;
            }
        }
        moved.took = begun.elapsed();
        Ok(moved)
    }

    /// After the data plane was killed: takes the answers that still came, and drops
    /// the commands that got none. Gives how many these were.
    pub(crate) fn settle(&mut self, ledger: &mut Ledger) -> Result<usize, DiskError> {
        let mut lost = 0;
        while !self.running.is_empty() {
            for done in self.completions()? {
                if done.status.is_success() {
                    self.finish(ledger, done)?;
                } else {
                    self.running.remove(&done.token);
                    lost += 1;
                }
            }
        }
        Ok(lost)
    }

    /// Waits until the association is up again; gives the time it took.
    pub(crate) fn reconnected(&mut self) -> Result<Duration, CliError> {
        let begun = Instant::now();
        let deadline = after(&self.initiator, PATIENCE);
        let ready = self.initiator.wait_ready(self.path, deadline);
        ready.map_err(not_done("reconnected"))?;
        Ok(begun.elapsed())
    }

    /// Ends the association in order.
    pub(crate) fn disconnect(mut self) -> Result<(), CliError> {
        let deadline = after(&self.initiator, PATIENCE);
        self.initiator
            .disconnect(self.path, deadline)
            .map_err(not_done("disconnected"))
    }

    /// Waits until a lost connection is back, unless it was lost too often.
    fn come_back(&mut self, reconnects: u32) -> Result<(), CliError> {
        let path = self.path;
        let mut events = std::iter::from_fn(|| self.initiator.poll_event(path));
        let reason = events.find_map(|event| match event {
            PathEvent::Disconnected { reason, .. } | PathEvent::Stopped { reason } => {
                Some(reason.to_string())
            }
            _ => None,
        });
        let lost = CliError::failed("the connection was lost").cause(reason.unwrap_or_default());
        let deadline = after(&self.initiator, RETURN_PATIENCE);
        match self.initiator.wait_ready(path, deadline) {
            Ok(()) if reconnects <= RECONNECTS_MAX => Ok(()),
            _ => Err(lost),
        }
    }

    /// Submits a job; false when there is no room for it now.
    fn submit(&mut self, ledger: &mut Ledger, job: Job) -> Result<bool, CliError> {
        let bytes = job.blocks as usize * ledger.block_bytes as usize;
        let Some(mut buffer) = self.initiator.pool().alloc(bytes) else {
            return self.no_room();
        };
        buffer.truncate(bytes);
        let op = match job.access {
            Access::Verify => HostOp::Read,
            Access::Write { fua } => {
                let Some(payload) = buffer.as_mut() else {
                    return self.no_room();
                };
                ledger.begin_write(job.lba, payload);
                HostOp::Write { fua }
            }
        };
        let token = self.next_token;
        let command = HostCommand {
            op,
            nsid: NSID,
            lba: job.lba,
            blocks: job.blocks,
            data: Segments::from(buffer),
            token,
        };
        self.initiator
            .submit(self.path, command)
            .map_err(|rejected| {
                CliError::failed("a command was not accepted").cause(rejected.reason)
            })?;
        self.next_token += 1;
        self.running.insert(token, job);
        Ok(true)
    }

    fn no_room(&self) -> Result<bool, CliError> {
        match self.running.is_empty() {
            false => Ok(false),
            true => Err(CliError::failed("our initiator has no buffer of that size")),
        }
    }

    /// At least one completion, unless time is up.
    fn completions(&mut self) -> Result<Vec<HostCompletion>, CliError> {
        let deadline = after(&self.initiator, PATIENCE);
        let path = self.path;
        let mut done = Vec::new();
        while done.is_empty() {
            let now = self.initiator.now();
            if now >= deadline {
                return Err(not_done("answered")(HostError::TimedOut));
            }
            self.initiator
                .run_until(now.after(GLANCE).min(deadline), |service, _| {
                    done.extend(std::iter::from_fn(|| service.path_mut(path).poll()));
                    !done.is_empty()
                });
        }
        Ok(done)
    }

    /// Enters a finished command in the ledger; gives its bytes.
    fn finish(&mut self, ledger: &mut Ledger, done: HostCompletion) -> Result<u64, DiskError> {
        let Some(job) = self.running.remove(&done.token) else {
            return Ok(0);
        };
        match job.access {
            Access::Write { .. } => ledger.acknowledge(job.lba, u64::from(job.blocks)),
            Access::Verify => {
                let mut lba = job.lba;
                for segment in done.data.iter() {
                    ledger
                        .check(lba, segment.as_slice())
                        .map_err(DiskError::Mismatch)?;
                    lba += segment.len() as u64 / u64::from(ledger.block_bytes);
                }
            }
        }
        Ok(u64::from(job.blocks) * u64::from(ledger.block_bytes))
    }
}

fn after(initiator: &Initiator, time: Duration) -> Nanos {
    initiator
        .now()
        .after(Nanos(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)))
}

fn not_done(what: &'static str) -> impl Fn(HostError) -> CliError {
    move |error| CliError::failed(format!("the drive was not {what}")).cause(error)
}
