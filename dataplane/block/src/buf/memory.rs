//! Where pools get their memory from.

use std::fmt;
use std::io;
use std::sync::Arc;

use super::{BufPool, PoolConfig, Region};

type Source = dyn Fn(usize) -> io::Result<Box<dyn Region>> + Send + Sync;

/// Where pools get their memory from: from the system, or from an engine whose drive reads and
/// writes buffers by itself and needs them in memory of its own.
#[derive(Clone, Default)]
pub struct PoolMemory {
    source: Option<Arc<Source>>,
}

impl PoolMemory {
    /// Memory that `source` gives, at least as many bytes as it is asked for. It is asked on the
    /// thread of whoever makes a pool.
    pub fn from_source(
        source: impl Fn(usize) -> io::Result<Box<dyn Region>> + Send + Sync + 'static,
    ) -> Self {
        Self {
            source: Some(Arc::new(source)),
        }
    }

    /// Whether it is an engine's: all of a pool is taken when the pool is made, and there may be
    /// little of it. The system's is taken where it is touched.
    #[must_use]
    pub const fn is_engines(&self) -> bool {
        self.source.is_some()
    }

    /// A pool in this memory.
    ///
    /// # Errors
    /// As [`BufPool::new`], or when the engine has no more.
    pub fn pool(&self, config: PoolConfig) -> io::Result<BufPool> {
        match &self.source {
            None => BufPool::new(config),
            Some(source) => {
                let region = source(config.checked_bytes()?)?;
                BufPool::with_region(config, region)
            }
        }
    }
}

impl fmt::Debug for PoolMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_engines() {
            "an engine's memory"
        } else {
            "the system's memory"
        })
    }
}
