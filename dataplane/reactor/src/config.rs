//! What a reactor is told at start, and what it answers about itself.

use std::fmt;

use bowline_block::{PoolConfig, PoolMemory};

/// Which engine moves bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IoBackend {
    /// `io_uring` where the kernel permits it, else epoll; [`BackendInfo::fallback`] says why.
    #[default]
    Auto,
    /// `io_uring`, or an error.
    Uring,
    /// epoll.
    Epoll,
}

/// How a reactor with nothing to do waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PollMode {
    /// Spins while traffic is expected within the cost of a wake-up, then sleeps.
    #[default]
    Adaptive,
    /// Never sleeps: one core at 100 %.
    Always,
    /// Sleeps whenever there is nothing to do.
    Never,
}

/// Settings of one reactor.
#[derive(Clone, Debug)]
pub struct Config {
    /// The engine.
    pub io: IoBackend,
    /// The waiting policy.
    pub poll: PollMode,
    /// Core that [`spawn`](crate::spawn) pins the thread to.
    pub core: Option<usize>,
    /// Thread name; Linux shows the first 15 bytes.
    pub name: String,
    /// Messages that wait in the mailbox before `try_send` refuses.
    pub mailbox_depth: usize,
    /// The reactor's buffers.
    pub pool: PoolConfig,
    /// What they lie in: a drive that reads and writes buffers by itself may need its own.
    pub memory: PoolMemory,
}

/// Default mailbox depth, in messages.
const MAILBOX_DEPTH: usize = 1024;

/// Default pool budget in bytes; pages are only taken when a buffer is first used.
const POOL_BYTES: usize = 64 << 20;

impl Default for Config {
    fn default() -> Self {
        Self {
            io: IoBackend::default(),
            poll: PollMode::default(),
            core: None,
            name: "reactor".to_owned(),
            mailbox_depth: MAILBOX_DEPTH,
            pool: PoolConfig::with_budget(POOL_BYTES),
            memory: PoolMemory::default(),
        }
    }
}

/// The engine that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// `io_uring`.
    Uring,
    /// epoll.
    Epoll,
}

impl Backend {
    /// The name used in flags, logs and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Uring => "uring",
            Self::Epoll => "epoll",
        }
    }
}

/// The engine that was chosen, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendInfo {
    /// The engine that runs.
    pub backend: Backend,
    /// Ring features in use.
    pub features: Vec<&'static str>,
    /// Why `io_uring` was not used although [`IoBackend::Auto`] prefers it.
    pub fallback: Option<String>,
}

impl fmt::Display for BackendInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.backend.name())?;
        if !self.features.is_empty() {
            write!(f, " ({})", self.features.join(" "))?;
        }
        if let Some(reason) = &self.fallback {
            write!(f, ", io_uring not used: {reason}")?;
        }
        Ok(())
    }
}
