//! What a namespace has allocated of a medium that it shares with others: it changes with writes and is
//! asked for when a host wants to know. (ADR 0018)

use std::fmt;
use std::rc::Rc;

use bowline_nvme::Nanos;

use super::Target;
use super::async_event::Event;

/// Below this percentage of room the SMART log warns, for namespaces that need room for writes.
pub const SPARE_THRESHOLD_PERCENT: u8 = 10;

/// At one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// Logical blocks allocated (NUSE).
    pub used_blocks: u64,
    /// Percentage of the medium that its writes may still allocate; 100 where they need none.
    pub spare_percent: u8,
}

/// Asks whoever owns the medium.
#[derive(Clone)]
pub struct AllocationSource(Rc<dyn Fn() -> Allocation>);

impl AllocationSource {
    /// `ask` is called while the target handles a command, so it must not call the target.
    #[must_use]
    pub fn new(ask: Rc<dyn Fn() -> Allocation>) -> Self {
        Self(ask)
    }

    pub(super) fn now(&self) -> Allocation {
        (self.0)()
    }
}

// Not derived: there is nothing to print.
impl fmt::Debug for AllocationSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AllocationSource")
    }
}

impl Target {
    /// The room of media that namespaces share has changed by much: hosts that wanted to know are told when it
    /// has fallen below the threshold. [BASE-2.0 §5.2.1]
    pub fn spare_changed(&mut self, now: Nanos) {
        let mut fallen = Vec::new();
        for subsystem in self.subsystems.iter_mut().flatten() {
            let is_low = subsystem.namespaces.is_spare_low();
            if is_low && !subsystem.is_spare_low {
                fallen.extend(subsystem.controllers.iter().copied());
            }
            subsystem.is_spare_low = is_low;
        }
        for key in fallen {
            self.raise(now, key, Event::SpareLow);
        }
    }
}
