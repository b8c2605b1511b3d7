//! The bytes of a file. All integers are little-endian; texts have their length in front.
//!
//! ```text
//!   0  magic "BOWLSTAT"      16  bytes of the body, u32
//!   8  version, u32          20  CRC32C of the other 20 bytes and the body, u32
//!  12  kind, u32             24  body
//! ```

use std::fmt;

use bowline_nvme::Nanos;
use bowline_nvmf::target::HealthTotals;

/// Of the first bytes of every file.
const MAGIC: [u8; 8] = *b"BOWLSTAT";
/// The format that this code writes and reads.
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 24;
const CHECKSUM_AT: usize = 20;

/// What a file holds. Numbers are never given to something else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Record {
    /// Says whose folder it is.
    Marker,
    Subsystem(SubsystemRecord),
    Reservations(ReservationRecord),
}

/// A subsystem of the start flags, and what it has been through.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SubsystemRecord {
    pub(crate) nqn: String,
    /// Padded with spaces.
    pub(crate) serial: [u8; 20],
    /// UUID and NGUID of namespace 1.
    pub(crate) uuid: [u8; 16],
    pub(crate) nguid: [u8; 16],
    pub(crate) health: HealthTotals,
    /// Served when it was written. Who finds it so knows of an end without a shutdown.
    pub(crate) running: bool,
}

/// Reservations that persist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReservationRecord {
    pub(crate) nqn: String,
    pub(crate) nsid: u32,
    /// Of the namespace that they are of.
    pub(crate) uuid: [u8; 16],
    /// As the protocol machine encodes them.
    pub(crate) image: Vec<u8>,
}

/// Why bytes are no record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RecordError {
    /// Not written by a data plane.
    Foreign,
    /// Written by another version.
    Version(u32),
    /// Cut short, or changed since it was written.
    Damaged,
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Foreign => f.write_str("it was not written by a data plane"),
            Self::Version(version) => write!(
                f,
                "it has version {version} of the format, and this executable knows {VERSION}"
            ),
            Self::Damaged => f.write_str("it is cut short or damaged: its checksum is wrong"),
        }
    }
}

const KIND_MARKER: u32 = 1;
const KIND_SUBSYSTEM: u32 = 2;
const KIND_RESERVATIONS: u32 = 3;

impl Record {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut body = Writer(Vec::new());
        let kind = match self {
            Self::Marker => KIND_MARKER,
            Self::Subsystem(record) => {
                record.encode(&mut body);
                KIND_SUBSYSTEM
            }
            Self::Reservations(record) => {
                body.bytes(record.nqn.as_bytes());
                body.u32(record.nsid);
                body.0.extend(record.uuid);
                body.bytes(&record.image);
                KIND_RESERVATIONS
            }
        };
        let Writer(body) = body;
        let mut file = Writer(MAGIC.to_vec());
        file.u32(VERSION);
        file.u32(kind);
        file.u32(length(&body));
        file.u32(checksum(&file.0, &body));
        file.0.extend(body);
        file.0
    }

    pub(crate) fn decode(file: &[u8]) -> Result<Self, RecordError> {
        if !file.starts_with(&MAGIC) {
            return Err(RecordError::Foreign);
        }
        let (header, body) = file
            .split_at_checked(HEADER_BYTES)
            .ok_or(RecordError::Damaged)?;
        let mut reader = Reader(&header[MAGIC.len()..]);
        // The version comes first: another one may have a checksum of another kind.
        let version = reader.u32()?;
        if version != VERSION {
            return Err(RecordError::Version(version));
        }
        let (kind, bytes, crc) = (reader.u32()?, reader.u32()?, reader.u32()?);
        if bytes != length(body) || crc != checksum(&header[..CHECKSUM_AT], body) {
            return Err(RecordError::Damaged);
        }
        let mut reader = Reader(body);
        let record = match kind {
            KIND_MARKER => Self::Marker,
            KIND_SUBSYSTEM => Self::Subsystem(SubsystemRecord::decode(&mut reader)?),
            KIND_RESERVATIONS => Self::Reservations(ReservationRecord {
                nqn: reader.text()?,
                nsid: reader.u32()?,
                uuid: reader.array()?,
                image: reader.bytes()?.to_vec(),
            }),
            _ => return Err(RecordError::Damaged),
        };
        if reader.0.is_empty() {
            Ok(record)
        } else {
            Err(RecordError::Damaged)
        }
    }
}

impl SubsystemRecord {
    fn encode(&self, body: &mut Writer) {
        body.bytes(self.nqn.as_bytes());
        body.0.extend(self.serial);
        body.0.extend(self.uuid);
        body.0.extend(self.nguid);
        body.u32(u32::from(self.running));
        let health = &self.health;
        for number in [
            health.reads,
            health.writes,
            health.read_bytes,
            health.written_bytes,
            health.media_errors,
            health.error_log_entries,
            health.busy.0,
            health.power_on.0,
            health.power_cycles,
            health.unsafe_shutdowns,
        ] {
            body.0.extend(number.to_le_bytes());
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, RecordError> {
        Ok(Self {
            nqn: reader.text()?,
            serial: reader.array()?,
            uuid: reader.array()?,
            nguid: reader.array()?,
            running: reader.u32()? != 0,
            health: HealthTotals {
                reads: reader.u64()?,
                writes: reader.u64()?,
                read_bytes: reader.u64()?,
                written_bytes: reader.u64()?,
                media_errors: reader.u64()?,
                error_log_entries: reader.u64()?,
                busy: Nanos(reader.u64()?),
                power_on: Nanos(reader.u64()?),
                power_cycles: reader.u64()?,
                unsafe_shutdowns: reader.u64()?,
            },
        })
    }
}

fn checksum(header: &[u8], body: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(&[header, body].concat())
}

/// Bodies stay far below 4 GiB.
fn length(body: &[u8]) -> u32 {
    u32::try_from(body.len()).unwrap_or(u32::MAX)
}

struct Writer(Vec<u8>);

impl Writer {
    fn u32(&mut self, value: u32) {
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.u32(length(bytes));
        self.0.extend(bytes);
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], RecordError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(RecordError::Damaged)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], RecordError> {
        self.take(N)?.try_into().map_err(|_| RecordError::Damaged)
    }

    fn u32(&mut self) -> Result<u32, RecordError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, RecordError> {
        self.array().map(u64::from_le_bytes)
    }

    fn bytes(&mut self) -> Result<&'a [u8], RecordError> {
        let count = usize::try_from(self.u32()?).map_err(|_| RecordError::Damaged)?;
        self.take(count)
    }

    fn text(&mut self) -> Result<String, RecordError> {
        String::from_utf8(self.bytes()?.to_vec()).map_err(|_| RecordError::Damaged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subsystem() -> Record {
        Record::Subsystem(SubsystemRecord {
            nqn: "nqn.2026-11.io.bowline:a:b".to_owned(),
            serial: *b"SERIAL              ",
            uuid: [1; 16],
            nguid: [2; 16],
            health: HealthTotals {
                reads: 1,
                writes: 2,
                read_bytes: 3,
                written_bytes: 4,
                media_errors: 5,
                error_log_entries: 6,
                busy: Nanos(7),
                power_on: Nanos(8),
                power_cycles: 9,
                unsafe_shutdowns: 10,
            },
            running: true,
        })
    }

    fn reservations() -> Record {
        Record::Reservations(ReservationRecord {
            nqn: "nqn.2026-11.io.bowline:a:b".to_owned(),
            nsid: 7,
            uuid: [3; 16],
            image: vec![9; 100],
        })
    }

    #[test]
    fn records_come_back_as_they_were() {
        for record in [Record::Marker, subsystem(), reservations()] {
            assert_eq!(Record::decode(&record.encode()), Ok(record));
        }
    }

    /// What an earlier version wrote must be read by every later one.
    #[test]
    fn format_never_changes() {
        let file = subsystem().encode();
        assert_eq!(&file[..20], b"BOWLSTAT\x01\0\0\0\x02\0\0\0\xa6\0\0\0");
        assert_eq!(file.len(), 24 + 166);
        assert_eq!(&file[24..28], &26_u32.to_le_bytes());
        assert_eq!(&file[24 + 166 - 8..], &10_u64.to_le_bytes());
    }

    #[test]
    fn any_changed_bit_and_any_cut_is_noticed() {
        for record in [Record::Marker, subsystem(), reservations()] {
            let file = record.encode();
            for bit in 0..file.len() * 8 {
                let mut changed = file.clone();
                changed[bit / 8] ^= 1 << (bit % 8);
                assert!(Record::decode(&changed).is_err(), "bit {bit}");
            }
            for bytes in 0..file.len() {
                assert!(Record::decode(&file[..bytes]).is_err(), "{bytes} bytes");
            }
            assert!(Record::decode(&[&file[..], &[0]].concat()).is_err());
        }
    }

    #[test]
    fn foreign_and_newer_files_are_called_so() {
        assert_eq!(Record::decode(b"root:x:0:0"), Err(RecordError::Foreign));
        let mut newer = Record::Marker.encode();
        newer[8] = 2;
        assert_eq!(Record::decode(&newer), Err(RecordError::Version(2)));
    }
}
