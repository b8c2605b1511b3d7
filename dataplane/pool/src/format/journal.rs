//! The journal: a ring of sectors in which groups of records follow one another.
//!
//! [`GroupWriter`] collects the records of one group and makes sectors of them; [`JournalReader`]
//! finds the groups again, and where they end. What it takes for the end is either what a crash
//! can have left, or damage: see *Recovery* in `FORMAT.md`.

mod read;
mod ring;
mod sector;
mod write;

pub use read::{Damage, DamageReason, Group, JournalReader, needed};
pub use ring::{Ring, SECTOR_BYTES};
pub use write::{GroupWriter, Sealed};

#[cfg(test)]
mod tests;
