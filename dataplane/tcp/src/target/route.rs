//! The way to the reactor that owns a subsystem.

use std::fmt;
use std::sync::Arc;

use bowline_block::Device;
use bowline_reactor::Mailbox;

use super::TargetMessage;

/// Hands a message to the [`TargetService`](super::TargetService) of another reactor, or back if there is no
/// room. What runs there besides it may have messages of its own.
pub struct Route<D: Device>(Arc<TrySend<D>>);

type TrySend<D> = dyn Fn(TargetMessage<D>) -> Result<(), TargetMessage<D>> + Send + Sync;

impl<D: Device> Route<D> {
    /// A way through what the owner's reactor takes. It must not block.
    pub fn new(
        send: impl Fn(TargetMessage<D>) -> Result<(), TargetMessage<D>> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(send))
    }

    pub(super) fn try_send(&self, message: TargetMessage<D>) -> Result<(), TargetMessage<D>> {
        (self.0)(message)
    }
}

impl<D: Device + 'static> From<Mailbox<TargetMessage<D>>> for Route<D> {
    fn from(mailbox: Mailbox<TargetMessage<D>>) -> Self {
        Self::new(move |message| mailbox.try_send(message))
    }
}

impl<D: Device> Clone for Route<D> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

// Not derived: there is nothing to print.
impl<D: Device> fmt::Debug for Route<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Route")
    }
}
