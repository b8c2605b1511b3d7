//! Reading a discovery controller's log consistently.

use std::fmt;

use bowline_nvme::log::{self, DiscoveryEntry, DiscoveryHeader, GetLogPage};
use bowline_nvme::{Sqe, Status};

/// Bytes of the header and of each entry. [FABRICS-1.1 §5.3]
const RECORD_BYTES: u32 = 1024;
/// How often a log that changes under the reader is begun anew.
const ATTEMPTS_MAX: u32 = 10;

/// Why a discovery log could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiscoveryError {
    /// Get Log Page failed.
    Failed(Status),
    /// The log changed at every attempt.
    NeverStable,
    /// The log has another format than the one known, RECFMT 0.
    UnknownFormat {
        /// Its RECFMT.
        recfmt: u16,
    },
    /// The log has more entries than the reader was told to take.
    TooMany {
        /// Its NUMREC.
        entries: u64,
    },
}

impl fmt::Display for DiscoveryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(status) => write!(f, "reading the discovery log failed: {status}"),
            Self::NeverStable => {
                write!(
                    f,
                    "the discovery log changed during each of {ATTEMPTS_MAX} attempts"
                )
            }
            Self::UnknownFormat { recfmt } => {
                write!(f, "the discovery log has the unknown format {recfmt}")
            }
            Self::TooMany { entries } => {
                write!(
                    f,
                    "the discovery log has {entries} entries, more than this host takes"
                )
            }
        }
    }
}

impl std::error::Error for DiscoveryError {}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Header,
    /// Entries from this index on.
    Entries {
        index: usize,
    },
    /// The header again: did GENCTR stay?
    Verify,
    Done,
}

/// Reads header, entries, and header again, until both headers have the same generation.
///
/// ```text
/// Header --> Entries* --> Verify --same GENCTR--> Done
///    ^__________________________|
/// ```
#[derive(Debug)]
pub struct DiscoveryReader {
    step: Step,
    chunk_bytes: u32,
    entries_max: usize,
    genctr: u64,
    numrec: usize,
    entries: Vec<DiscoveryEntry>,
    attempts: u32,
}

impl DiscoveryReader {
    /// A reader whose commands transfer at most `chunk_bytes` (at least 1024), of a log with at
    /// most `entries_max` entries.
    #[must_use]
    pub fn new(chunk_bytes: u32, entries_max: usize) -> Self {
        Self {
            step: Step::Header,
            chunk_bytes: chunk_bytes.max(RECORD_BYTES),
            entries_max,
            genctr: 0,
            numrec: 0,
            entries: Vec::new(),
            attempts: 0,
        }
    }

    /// The next admin command and the bytes it transfers to the host; `None` when all is read.
    #[must_use]
    pub fn command(&self) -> Option<(Sqe, u32)> {
        let (offset, len) = match self.step {
            Step::Header | Step::Verify => (0, RECORD_BYTES),
            Step::Entries { index } => {
                let per_chunk = self.chunk_bytes / RECORD_BYTES;
                let left = u32::try_from(self.numrec - index).unwrap_or(u32::MAX);
                let offset = (u64::try_from(index).ok()? + 1) * u64::from(RECORD_BYTES);
                (offset, left.min(per_chunk) * RECORD_BYTES)
            }
            Step::Done => return None,
        };
        Some((
            GetLogPage::range(log::id::DISCOVERY, offset, len).encode(),
            len,
        ))
    }

    /// Takes the answer to the command; `data` is what was transferred.
    ///
    /// # Errors
    /// [`DiscoveryError`]; the log cannot be read.
    pub fn handle(&mut self, status: Status, data: &[u8]) -> Result<(), DiscoveryError> {
        if !status.is_success() {
            return Err(DiscoveryError::Failed(status));
        }
        match self.step {
            Step::Header => self.begin(data),
            Step::Entries { index } => {
                self.take(index, data);
                Ok(())
            }
            Step::Verify => self.verify(data),
            Step::Done => Ok(()),
        }
    }

    /// Generation of the log that was read.
    #[must_use]
    pub fn genctr(&self) -> u64 {
        self.genctr
    }

    /// The entries; complete when [`DiscoveryReader::command`] returns `None`.
    #[must_use]
    pub fn into_entries(self) -> Vec<DiscoveryEntry> {
        self.entries
    }

    fn begin(&mut self, data: &[u8]) -> Result<(), DiscoveryError> {
        let header = header_of(data)?;
        if header.recfmt != 0 {
            return Err(DiscoveryError::UnknownFormat {
                recfmt: header.recfmt,
            });
        }
        let numrec = usize::try_from(header.numrec)
            .ok()
            .filter(|numrec| *numrec <= self.entries_max)
            .ok_or(DiscoveryError::TooMany {
                entries: header.numrec,
            })?;
        self.genctr = header.genctr;
        self.numrec = numrec;
        self.entries.clear();
        self.step = if numrec == 0 {
            Step::Done
        } else {
            Step::Entries { index: 0 }
        };
        Ok(())
    }

    fn take(&mut self, index: usize, data: &[u8]) {
        let left = self.numrec - index;
        let mut taken = 0;
        for record in data.chunks_exact(RECORD_BYTES as usize).take(left) {
            if let Ok(record) = record.try_into() {
                self.entries.push(DiscoveryEntry::decode(record));
                taken += 1;
            }
        }
        let index = index + taken;
        self.step = if index < self.numrec && taken > 0 {
            Step::Entries { index }
        } else {
            Step::Verify
        };
    }

    fn verify(&mut self, data: &[u8]) -> Result<(), DiscoveryError> {
        let header = header_of(data)?;
        let complete = self.entries.len() == self.numrec;
        if header.genctr == self.genctr && complete {
            self.step = Step::Done;
            return Ok(());
        }
        self.attempts += 1;
        if self.attempts >= ATTEMPTS_MAX {
            return Err(DiscoveryError::NeverStable);
        }
        // This header is the first of the next attempt.
        self.begin(data)
    }
}

fn header_of(data: &[u8]) -> Result<DiscoveryHeader, DiscoveryError> {
    data.first_chunk()
        .map(DiscoveryHeader::decode)
        .ok_or(DiscoveryError::Failed(Status::DATA_TRANSFER_ERROR))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A log of `entries` entries, each telling its index in its port.
    fn log(genctr: u64, entries: u16) -> Vec<u8> {
        let header = DiscoveryHeader {
            genctr,
            numrec: entries.into(),
            recfmt: 0,
        };
        let mut bytes = header.to_bytes().to_vec();
        for index in 0..entries {
            let entry = DiscoveryEntry {
                portid: index,
                ..DiscoveryEntry::default()
            };
            bytes.extend_from_slice(&entry.to_bytes());
        }
        bytes
    }

    fn answer(reader: &mut DiscoveryReader, log: &[u8]) -> Result<(), DiscoveryError> {
        let (sqe, len) = reader.command().expect("not done");
        let begin = sqe.cdw(12) as usize;
        let mut data = vec![0; len as usize];
        let there = log.get(begin..).unwrap_or_default();
        let count = there.len().min(data.len());
        data[..count].copy_from_slice(&there[..count]);
        reader.handle(Status::SUCCESS, &data)
    }

    fn read(reader: &mut DiscoveryReader, log: &[u8]) -> Result<Vec<u16>, DiscoveryError> {
        while reader.command().is_some() {
            answer(reader, log)?;
        }
        Ok(reader.entries.iter().map(|entry| entry.portid).collect())
    }

    #[test]
    fn entries_are_read_in_chunks_of_any_size() {
        for chunk in [0, 1024, 4096, 5000, 1 << 20] {
            for entries in [0, 1, 3, 4, 9] {
                let mut reader = DiscoveryReader::new(chunk, 100);
                let ports = read(&mut reader, &log(7, entries)).expect("a stable log");
                assert_eq!(ports, (0..entries).collect::<Vec<_>>());
                assert_eq!(reader.genctr(), 7);
            }
        }
    }

    #[test]
    fn log_that_changes_is_read_again() {
        let mut reader = DiscoveryReader::new(1024, 100);
        answer(&mut reader, &log(1, 2)).expect("the header");
        answer(&mut reader, &log(1, 2)).expect("an entry");
        let ports = read(&mut reader, &log(2, 3)).expect("the newer log");
        assert_eq!((ports, reader.genctr()), (vec![0, 1, 2], 2));
    }

    #[test]
    fn log_that_never_rests_is_given_up() {
        let mut reader = DiscoveryReader::new(1024, 100);
        let mut genctr = 0;
        let result = loop {
            genctr += 1;
            if let Err(error) = answer(&mut reader, &log(genctr, 1)) {
                break error;
            }
        };
        assert_eq!(result, DiscoveryError::NeverStable);
    }

    #[test]
    fn absurd_logs_are_refused() {
        let mut reader = DiscoveryReader::new(1024, 2);
        assert_eq!(
            read(&mut reader, &log(1, 3)),
            Err(DiscoveryError::TooMany { entries: 3 })
        );
        let mut reader = DiscoveryReader::new(1024, 2);
        let mut other = log(1, 1);
        other[16] = 9;
        assert_eq!(
            read(&mut reader, &other),
            Err(DiscoveryError::UnknownFormat { recfmt: 9 })
        );
        let mut reader = DiscoveryReader::new(1024, 2);
        let failed = Status::INVALID_FIELD;
        assert_eq!(
            reader.handle(failed, &[]),
            Err(DiscoveryError::Failed(failed))
        );
        assert!(reader.handle(Status::SUCCESS, &[1; 10]).is_err());
    }

    proptest! {
        /// Whatever a target answers, reading ends after a bounded number of commands, and no
        /// more entries are kept than the reader was told to take.
        #[test]
        fn hostile_target_can_neither_hold_nor_fill_the_reader(
            answers in prop::collection::vec((0u64..4, 0u64..14, 0usize..5000), 1..50),
            chunk in 0u32..8192,
        ) {
            const ENTRIES_MAX: usize = 10;
            let mut reader = DiscoveryReader::new(chunk, ENTRIES_MAX);
            let mut commands = 0;
            while let Some((_, len)) = reader.command() {
                let (genctr, numrec, given) = answers[commands % answers.len()];
                let header = DiscoveryHeader { genctr, numrec, recfmt: 0 };
                let mut data = header.to_bytes().to_vec();
                data.resize(given.min(len as usize), 0);
                commands += 1;
                prop_assert!(commands <= 1 + 10 * (ENTRIES_MAX + 2));
                if reader.handle(Status::SUCCESS, &data).is_err() {
                    break;
                }
                prop_assert!(reader.entries.len() <= ENTRIES_MAX);
            }
        }
    }
}
