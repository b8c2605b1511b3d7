//! Events as sectors on a drive.
//!
//! The sectors are written past every cache and never flushed. So if the drive's writes are logged,
//! the log says which acknowledgements had been heard before any other write, and nothing that the
//! data plane has not made durable becomes so by a mark.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

use crate::ledger::{Kind, Operation};
use crate::volume::Event;

/// What one write covers: a block of any drive.
pub const SECTOR_BYTES: usize = 512;
const MAGIC: [u8; 8] = *b"BLMARKS1";
/// Magic, number of the sector, number of records.
const HEADER_BYTES: usize = 16;
const RECORD_BYTES: usize = 16;
const RECORDS_MAX: usize = (SECTOR_BYTES - HEADER_BYTES) / RECORD_BYTES;

const KINDS: [Kind; 5] = [
    Kind::Write,
    Kind::WriteFua,
    Kind::Zero,
    Kind::Deallocate,
    Kind::Flush,
];
const BEGIN: u8 = 1;
const END: u8 = 2;
const SNAPSHOT_BEGINS: u8 = 3;
const SNAPSHOT_ENDS: u8 = 4;

/// An event of one of several volumes.
pub type Mark = (u8, Event);

/// Memory that a drive takes without a copy.
#[repr(align(4096))]
struct Aligned([u8; SECTOR_BYTES]);

/// The drive, or part of a drive, that takes the marks.
pub struct Writer {
    file: File,
    sector: Box<Aligned>,
    next: u32,
}

impl Writer {
    /// Begins behind the first `next` sectors of `path`, past the page cache.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(path: &Path, next: u32) -> io::Result<Self> {
        let flags = i32::try_from(OFlags::DIRECT.bits()).map_err(io::Error::other)?;
        let file = File::options().write(true).custom_flags(flags).open(path)?;
        Ok(Self {
            file,
            sector: Box::new(Aligned([0; SECTOR_BYTES])),
            next,
        })
    }

    /// How many there are.
    #[must_use]
    pub fn sectors(&self) -> u32 {
        self.next
    }

    /// Writes the marks; they are in the drive's log when this returns.
    ///
    /// # Errors
    /// The drive's.
    pub fn write(&mut self, marks: &[Mark]) -> io::Result<()> {
        for marks in marks.chunks(RECORDS_MAX) {
            encode(self.next, marks, &mut self.sector.0);
            let at = u64::from(self.next) * SECTOR_BYTES as u64;
            self.file.write_all_at(&self.sector.0, at)?;
            self.next += 1;
        }
        Ok(())
    }
}

fn encode(number: u32, marks: &[Mark], sector: &mut [u8; SECTOR_BYTES]) {
    sector.fill(0);
    let (header, records) = sector.split_at_mut(HEADER_BYTES);
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&number.to_le_bytes());
    let count = u32::try_from(marks.len()).unwrap_or(0);
    header[12..].copy_from_slice(&count.to_le_bytes());
    for ((volume, event), record) in marks.iter().zip(records.chunks_exact_mut(RECORD_BYTES)) {
        let (tag, kind, words) = match event {
            Event::Begin(operation) => {
                let kind = KINDS.iter().position(|kind| *kind == operation.kind);
                let kind = kind.and_then(|kind| u8::try_from(kind).ok()).unwrap_or(0);
                let words = [operation.number, operation.lba, operation.blocks];
                (BEGIN, kind, words)
            }
            Event::End(number) => (END, 0, [*number, 0, 0]),
            Event::SnapshotBegins(number) => (SNAPSHOT_BEGINS, 0, [*number, 0, 0]),
            Event::SnapshotEnds(number) => (SNAPSHOT_ENDS, 0, [*number, 0, 0]),
        };
        record[..3].copy_from_slice(&[tag, kind, *volume]);
        for (bytes, word) in record[4..].chunks_exact_mut(4).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
    }
}

/// The marks in sectors that lie one behind the other, from number 0 on.
///
/// # Errors
/// What is wrong with them.
pub fn read(sectors: &[u8]) -> Result<Vec<Mark>, String> {
    let mut marks = Vec::new();
    for (number, sector) in sectors.chunks(SECTOR_BYTES).enumerate() {
        let wrong = || format!("sector {number} of the marks is none");
        let (header, records) = sector.split_at_checked(HEADER_BYTES).ok_or_else(wrong)?;
        let count = word(header, 12) as usize;
        let is_next = word(header, 8) as usize == number;
        if header[..8] != MAGIC || !is_next || count > records.len() / RECORD_BYTES {
            return Err(wrong());
        }
        let records = records.chunks_exact(RECORD_BYTES).take(count);
        for record in records {
            marks.push((record[2], decode(record).ok_or_else(wrong)?));
        }
    }
    Ok(marks)
}

fn decode(record: &[u8]) -> Option<Event> {
    let number = word(record, 4);
    match record[0] {
        BEGIN => Some(Event::Begin(Operation {
            number,
            kind: *KINDS.get(usize::from(record[1]))?,
            lba: word(record, 8),
            blocks: word(record, 12),
        })),
        END => Some(Event::End(number)),
        SNAPSHOT_BEGINS => Some(Event::SnapshotBegins(number)),
        SNAPSHOT_ENDS => Some(Event::SnapshotEnds(number)),
        _ => None,
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
    word.map_or(0, u32::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_read_as_they_were_written() {
        let mut marks = vec![
            (3, Event::SnapshotBegins(7)),
            (3, Event::SnapshotEnds(7)),
            (0, Event::End(u32::MAX)),
        ];
        for (number, kind) in (0..).zip(KINDS.iter().cycle().take(70)) {
            let operation = Operation {
                number,
                kind: *kind,
                lba: 100 + number,
                blocks: 1 << 16,
            };
            marks.push((1, Event::Begin(operation)));
        }
        let mut sectors = Vec::new();
        for (number, marks) in (0..).zip(marks.chunks(RECORDS_MAX)) {
            let mut sector = [0; SECTOR_BYTES];
            encode(number, marks, &mut sector);
            sectors.extend(sector);
        }
        assert_eq!(read(&sectors), Ok(marks));
        assert!(read(&sectors[SECTOR_BYTES..]).is_err(), "one is missing");
        assert!(read(&sectors[..700]).is_err(), "one is cut off");
        sectors[HEADER_BYTES] = 9;
        assert!(read(&sectors).is_err(), "an event that there is not");
    }
}
