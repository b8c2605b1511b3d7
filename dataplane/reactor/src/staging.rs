//! The receive staging area that all sockets of a reactor share.

use std::ops::{Deref, DerefMut};

/// Size of the staging area in bytes: drains a burst of 32 commands with 4 KiB each in one call.
pub const STAGING_BYTES: usize = 256 << 10;

/// Scratch memory for one receive. Idle sockets hold none of it: what a parser cannot consume yet
/// is carried over in a small buffer of the connection.
pub struct Staging(Box<[u8]>);

impl Staging {
    pub(crate) fn new() -> Self {
        Self(vec![0; STAGING_BYTES].into_boxed_slice())
    }
}

impl Deref for Staging {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Staging {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}
