//! What a drive was told, in order: the log that the emulator's block driver `blklogwrites` keeps, in
//! the format of Linux's dm-log-writes.
//!
//! Sector 0 says how many entries there are. An entry is a sector that says what and where, then the
//! sectors of its data; all numbers are little-endian. The emulator logs a request when the drive has
//! done it and before the guest hears of it. So what had been acknowledged before something else was
//! asked for lies before it, and what lies before a flush was there when the flush was done, or was
//! under way together with it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

const MAGIC: u64 = 0x006a_7366_7773_6872;
const VERSION: u64 = 1;
/// Of an entry, and of sector 0.
const HEADER_BYTES: usize = 32;
const SECTOR_BYTES_MAX: u32 = 64 << 10;
/// Far more than a test makes.
const ENTRIES_MAX: u64 = 1 << 20;

const FLUSH: u64 = 1;
const FUA: u64 = 1 << 1;
const DISCARD: u64 = 1 << 2;
const MARK: u64 = 1 << 3;

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// What was written before it is durable.
    pub(crate) is_flush: bool,
    /// Its own data is.
    pub(crate) is_fua: bool,
    pub(crate) change: Change,
}

/// What a request does to bytes of the drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    None,
    /// The data lies at this byte of the log.
    Write {
        at: u64,
        bytes: u64,
        data: u64,
    },
    Discard {
        at: u64,
        bytes: u64,
    },
}

/// A log, of which the entries are in memory and the data is not.
pub(crate) struct WriteLog {
    file: File,
    pub(crate) entries: Vec<Entry>,
}

impl WriteLog {
    /// Reads a log that nobody writes to any more. What came after the last flush is not in it.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).context("cannot open the log of the drive")?;
        let mut first = [0; HEADER_BYTES];
        file.read_exact_at(&mut first, 0)
            .context("the log of the drive is empty")?;
        let [magic, version, count, sector] = words(&first);
        ensure!(magic == MAGIC, "not a log of writes");
        ensure!(version == VERSION, "a log of version {version}");
        ensure!(count <= ENTRIES_MAX, "a log of {count} entries");
        let sector = u32::try_from(sector & u64::from(u32::MAX))?;
        ensure!(
            sector.is_power_of_two() && (512..=SECTOR_BYTES_MAX).contains(&sector),
            "sectors of {sector} bytes"
        );
        let mut log = Self {
            file,
            entries: Vec::new(),
        };
        let mut at = u64::from(sector);
        for number in 0..count {
            let (entry, next) = log
                .entry(at, u64::from(sector))
                .with_context(|| format!("entry {number} of {count}"))?;
            log.entries.push(entry);
            at = next;
        }
        Ok(log)
    }

    /// The data of a write.
    pub(crate) fn data(&self, place: u64, bytes: u64) -> Result<Vec<u8>> {
        let mut data = vec![0; usize::try_from(bytes)?];
        self.file
            .read_exact_at(&mut data, place)
            .context("cannot read the log of the drive")?;
        Ok(data)
    }

    /// The entry at this byte, and where the next one begins.
    fn entry(&self, place: u64, sector: u64) -> Result<(Entry, u64)> {
        let header = self.data(place, sector)?;
        let (header, rest) = header
            .split_first_chunk::<HEADER_BYTES>()
            .context("too short")?;
        let [first, count, flags, data_bytes] = words(header);
        // Data in place of a header shows that the log is not what it should be.
        let is_plausible = flags & !(FLUSH | FUA | DISCARD | MARK) == 0
            && rest.iter().all(|byte| *byte == 0)
            && data_bytes == 0;
        ensure!(is_plausible, "is none");
        let (Some(at), Some(bytes)) = (first.checked_mul(sector), count.checked_mul(sector)) else {
            bail!("lies beyond any drive");
        };
        let data = place + sector;
        let is_discard = flags & DISCARD != 0;
        let change = match (bytes, is_discard) {
            (0, _) => Change::None,
            (_, true) => Change::Discard { at, bytes },
            (_, false) => Change::Write { at, bytes, data },
        };
        let next = if is_discard {
            Some(data)
        } else {
            data.checked_add(bytes)
        };
        let entry = Entry {
            is_flush: flags & FLUSH != 0,
            is_fua: flags & FUA != 0,
            change,
        };
        Ok((entry, next.context("is longer than any drive")?))
    }
}

fn words(bytes: &[u8; HEADER_BYTES]) -> [u64; 4] {
    let (words, _) = bytes.as_chunks::<8>();
    std::array::from_fn(|index| u64::from_le_bytes(words[index]))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;

    use tempfile::NamedTempFile;

    use super::*;

    const SECTOR: usize = 512;

    /// Flags, first sector, number of sectors, and the byte that its data is made of.
    pub(crate) type Request = (u64, u64, u64, Option<u8>);

    pub(crate) const PLAIN: u64 = 0;
    pub(crate) const FLUSHES: u64 = FLUSH;
    pub(crate) const WITH_FUA: u64 = FUA;
    pub(crate) const DISCARDS: u64 = DISCARD;

    pub(crate) fn log_of(requests: &[Request]) -> NamedTempFile {
        let mut log = sector([MAGIC, VERSION, requests.len() as u64, 512]);
        for (flags, first, count, data) in requests {
            log.extend(sector([*first, *count, *flags, 0]));
            if let Some(byte) = data {
                log.resize(log.len() + usize::try_from(*count).unwrap() * SECTOR, *byte);
            }
        }
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(&log).unwrap();
        file
    }

    fn sector(words: [u64; 4]) -> Vec<u8> {
        let mut bytes: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
        bytes.resize(SECTOR, 0);
        bytes
    }

    fn error_of(file: &NamedTempFile) -> String {
        let error = WriteLog::open(file.path()).map(drop).unwrap_err();
        format!("{error:#}")
    }

    #[test]
    fn requests_are_read_in_order_with_their_data() {
        let file = log_of(&[
            (PLAIN, 3, 2, Some(7)),
            (DISCARDS, 8, 4, None),
            (FLUSHES, 0, 0, None),
            (WITH_FUA, 5, 1, Some(9)),
        ]);
        let log = WriteLog::open(file.path()).unwrap();
        let write = |at, bytes, data| Change::Write { at, bytes, data };
        let expected = [
            (false, false, write(1536, 1024, 1024)),
            (
                false,
                false,
                Change::Discard {
                    at: 4096,
                    bytes: 2048,
                },
            ),
            (true, false, Change::None),
            (false, true, write(2560, 512, 3584)),
        ];
        let found: Vec<_> = log
            .entries
            .iter()
            .map(|entry| (entry.is_flush, entry.is_fua, entry.change))
            .collect();
        assert_eq!(found, expected);
        assert_eq!(log.data(1024, 1024).unwrap(), [7; 1024]);
        assert_eq!(log.data(3584, 512).unwrap(), [9; 512]);
    }

    #[test]
    fn what_is_no_log_is_refused() {
        let damaged = |at: usize, byte: u8| {
            let file = log_of(&[(PLAIN, 3, 2, Some(7)), (FLUSHES, 0, 0, None)]);
            file.as_file().write_all_at(&[byte], at as u64).unwrap();
            error_of(&file)
        };
        assert_eq!(
            error_of(&NamedTempFile::new().unwrap())
                .split(':')
                .next()
                .unwrap(),
            "the log of the drive is empty"
        );
        assert_eq!(damaged(0, 1), "not a log of writes");
        assert_eq!(damaged(8, 2), "a log of version 2");
        assert_eq!(damaged(25, 3), "sectors of 768 bytes");
        assert_eq!(damaged(22, 1), "a log of 281474976710658 entries");
        // A write that is shorter than it was: its data follows where an entry should.
        assert_eq!(damaged(520, 1), "entry 1 of 2: is none");
        assert_eq!(damaged(528, 16), "entry 0 of 2: is none");
        assert_eq!(damaged(527, 1), "entry 0 of 2: lies beyond any drive");
        assert!(damaged(16, 3).starts_with("entry 2 of 3: cannot read the log"));
    }
}
