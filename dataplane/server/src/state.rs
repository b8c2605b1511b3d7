//! What must outlive the process when there is no pool: a folder of small files, one for each
//! subsystem and one for each namespace whose reservations persist. (ADR 0012)
//!
//! ```text
//!   reactors ── reservations ──┐                              ┌── answer through the mailbox
//!                              ├─► bounded queue ─► one thread ┤
//!   management ── health ──────┘                              └── answer to the task
//! ```
//!
//! - `record`: what the files hold, as bytes with a version and a checksum.
//! - `folder`: files written whole or not at all; what is not ours is never touched.
//! - `keeper`: the thread that writes, so that nobody who serves I/O waits for a disk.
//! - `health`: the counters of a subsystem over its starts.

mod folder;
mod health;
mod keeper;
mod record;

pub(crate) use folder::{Folder, Kept, Loaded};
pub(crate) use health::Health;
pub(crate) use keeper::{Forgetting, Keeper, ReactorStore};
pub(crate) use record::SubsystemRecord;
