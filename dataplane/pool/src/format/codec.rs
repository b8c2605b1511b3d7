//! Records as bytes. What is read is checked: everything that this version does not write is an
//! error, so that a record means the same to all who read it, or nothing.

use super::record::{Checksums, Durability, NONE, Numbers, Record, SnapshotRecord, VolumeRecord};
use super::wire::{Fields, Put};

/// Bytes before the fields of a record: kind, flags, length.
pub const HEAD_BYTES: usize = 8;

/// Longest name of a volume or snapshot.
pub const NAME_BYTES_MAX: usize = 255;

/// Longest attribute.
pub const ATTRIBUTE_BYTES_MAX: usize = 60 << 10;

/// The most that the record of a volume or snapshot takes.
pub const NAMED_RECORD_BYTES_MAX: usize = HEAD_BYTES + VOLUME_BYTES + NAME_BYTES_MAX + 1;

/// What a `map` record takes besides its extents.
pub const MAP_RECORD_BYTES: usize = HEAD_BYTES + 12;

/// What a `map in part` record takes besides its bitmap, which is padded to 4 bytes.
pub const MAP_PART_RECORD_BYTES: usize = HEAD_BYTES + 16;

const VOLUME_BYTES: usize = 60;
const SNAPSHOT_BYTES: usize = 48;

const KIND_VOLUME: u16 = 1;
const KIND_VOLUME_GONE: u16 = 2;
const KIND_SNAPSHOT: u16 = 3;
const KIND_SNAPSHOT_GONE: u16 = 4;
const KIND_MAP: u16 = 5;
const KIND_MAP_PART: u16 = 6;
const KIND_UNMAP: u16 = 7;
const KIND_CLEAN: u16 = 8;
const KIND_ACTIVATE: u16 = 9;
const KIND_RETIRE: u16 = 10;
const KIND_ATTRIBUTE: u16 = 11;
const KIND_NEXT_VOLUME: u16 = 12;
const KIND_RESERVE: u16 = 13;

const FLAG_THICK: u32 = 1 << 0;
const FLAG_DELETED: u32 = 1 << 1;
const FLAG_BEING_MADE: u32 = 1 << 2;
const FLAG_DURABILITY_DEVICE: u32 = 1 << 4;
const SHIFT_CHECKSUMS: u32 = 8;
const VOLUME_FLAGS: u32 =
    FLAG_THICK | FLAG_DELETED | FLAG_BEING_MADE | 0b11 << 4 | 0b11 << SHIFT_CHECKSUMS;

/// Why a record was not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// Not enough room is left; it would fit into an empty buffer of sufficient size.
    #[error("no room is left for the record")]
    Full,
    /// A name or an attribute is longer than the format allows.
    #[error("the record is longer than the format allows")]
    TooLong,
}

/// Why bytes are not records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// They end within a record.
    #[error("the bytes end within a record")]
    Truncated,
    /// Its kind or flags are not of this version.
    #[error("kind {kind} with flags {flags:#06x} is unknown")]
    Unknown {
        /// What is there.
        kind: u16,
        /// What is there.
        flags: u16,
    },
    /// Its length does not fit its kind.
    #[error("{len} bytes are not what a record of kind {kind} has")]
    Length {
        /// Of the record.
        kind: u16,
        /// What is there.
        len: u32,
    },
    /// A field has a value that this version does not write.
    #[error("a record of kind {kind} has a wrong {field}")]
    Field {
        /// Of the record.
        kind: u16,
        /// Which.
        field: &'static str,
    },
}

/// Writes records one after another into a buffer.
#[derive(Debug)]
pub struct RecordWriter<'b> {
    out: &'b mut [u8],
    used: usize,
}

impl<'b> RecordWriter<'b> {
    /// Into `out`, from its start.
    pub const fn new(out: &'b mut [u8]) -> Self {
        Self { out, used: 0 }
    }

    /// Adds a record, whole or not at all.
    pub fn push(&mut self, record: &Record<'_>) -> Result<(), WriteError> {
        self.used += write(record, &mut self.out[self.used..])?;
        Ok(())
    }

    /// Bytes written so far, a multiple of 4.
    #[must_use]
    pub const fn used(&self) -> usize {
        self.used
    }
}

/// Writes one record at the start of `out`; returns its length.
pub(super) fn write(record: &Record<'_>, out: &mut [u8]) -> Result<usize, WriteError> {
    let (kind, body) = measure(record).ok_or(WriteError::TooLong)?;
    let len = u32::try_from(body).map_err(|_| WriteError::TooLong)?;
    let total = HEAD_BYTES + body.next_multiple_of(4);
    let out = out.get_mut(..total).ok_or(WriteError::Full)?;
    let mut put = Put::new(out);
    put.u16(kind);
    put.u16(0);
    put.u32(len);
    put_fields(record, &mut put);
    put.zeroes();
    Ok(total)
}

/// Bytes that a record takes, its padding included; `None` if it is longer than allowed.
#[must_use]
pub fn record_bytes(record: &Record<'_>) -> Option<usize> {
    measure(record).map(|(_, body)| HEAD_BYTES + body.next_multiple_of(4))
}

/// Kind, and length of the fields; `None` if something is longer than allowed.
fn measure(record: &Record<'_>) -> Option<(u16, usize)> {
    Some(match record {
        Record::Volume(volume) => {
            let name = limited(volume.name.len(), NAME_BYTES_MAX)?;
            (KIND_VOLUME, VOLUME_BYTES + name)
        }
        Record::VolumeGone { .. } => (KIND_VOLUME_GONE, 4),
        Record::Snapshot(snapshot) => {
            let name = limited(snapshot.name.len(), NAME_BYTES_MAX)?;
            (KIND_SNAPSHOT, SNAPSHOT_BYTES + name)
        }
        Record::SnapshotGone { .. } => (KIND_SNAPSHOT_GONE, 8),
        Record::Map { physical, .. } => (KIND_MAP, 12 + physical.wire_bytes()),
        Record::MapPart { bitmap, .. } => (KIND_MAP_PART, 16 + bitmap.len()),
        Record::Unmap { .. } => (KIND_UNMAP, 16),
        Record::Clean { .. } => (KIND_CLEAN, 8),
        Record::Activate { physical } => (KIND_ACTIVATE, physical.wire_bytes()),
        Record::Retire { physical } => (KIND_RETIRE, physical.wire_bytes()),
        Record::Attribute { bytes, .. } => (
            KIND_ATTRIBUTE,
            8 + limited(bytes.len(), ATTRIBUTE_BYTES_MAX)?,
        ),
        Record::NextVolume { .. } => (KIND_NEXT_VOLUME, 4),
        Record::Reserve { .. } => (KIND_RESERVE, 8),
    })
}

fn limited(len: usize, max: usize) -> Option<usize> {
    (len <= max).then_some(len)
}

fn put_fields(record: &Record<'_>, put: &mut Put<'_>) {
    match *record {
        Record::Volume(ref volume) => put_volume(volume, put),
        Record::VolumeGone { volume } | Record::NextVolume { volume } => put.u32(volume),
        Record::Snapshot(ref snapshot) => put_snapshot(snapshot, put),
        Record::SnapshotGone { volume, number } => put_all(put, &[volume, number]),
        Record::Map {
            volume,
            born,
            logical,
            physical,
        } => {
            put_all(put, &[volume, born, logical]);
            put_numbers(put, physical);
        }
        Record::MapPart {
            volume,
            born,
            logical,
            physical,
            bitmap,
        } => {
            put_all(put, &[volume, born, logical, physical]);
            put.bytes(bitmap);
        }
        Record::Unmap {
            volume,
            born,
            logical,
            count,
        } => {
            put_all(put, &[volume, born, logical, count]);
        }
        Record::Clean { physical, count } | Record::Reserve { physical, count } => {
            put_all(put, &[physical, count]);
        }
        Record::Activate { physical } | Record::Retire { physical } => put_numbers(put, physical),
        Record::Attribute {
            volume,
            kind,
            bytes,
        } => {
            put_all(put, &[volume, kind]);
            put.bytes(bytes);
        }
    }
}

fn put_all(put: &mut Put<'_>, numbers: &[u32]) {
    for &number in numbers {
        put.u32(number);
    }
}

fn put_numbers(put: &mut Put<'_>, numbers: Numbers<'_>) {
    match numbers {
        Numbers::Native(numbers) => put_all(put, numbers),
        Numbers::Wire(numbers) => put.bytes(numbers.bytes()),
    }
}

fn put_volume(volume: &VolumeRecord<'_>, put: &mut Put<'_>) {
    let (base, base_snapshot) = volume.base.unwrap_or((NONE, 0));
    put.u32(volume.volume);
    put.bytes(volume.uuid.as_bytes());
    put.u64(volume.bytes);
    put_all(
        put,
        &[
            volume.block_bytes,
            volume.snapshots_taken,
            base,
            base_snapshot,
            volume_flags(volume),
        ],
    );
    put.u64(volume.created);
    put_name(volume.name, put);
}

fn volume_flags(volume: &VolumeRecord<'_>) -> u32 {
    let checksums: u32 = match volume.checksums {
        Checksums::Off => 0,
        Checksums::Scrub => 1,
        Checksums::Verify => 2,
    };
    let flag = |is_set: bool, flag: u32| if is_set { flag } else { 0 };
    flag(volume.is_thick, FLAG_THICK)
        | flag(volume.is_deleted, FLAG_DELETED)
        | flag(volume.is_being_made, FLAG_BEING_MADE)
        | flag(
            volume.durability == Durability::Device,
            FLAG_DURABILITY_DEVICE,
        )
        | checksums << SHIFT_CHECKSUMS
}

fn put_snapshot(snapshot: &SnapshotRecord<'_>, put: &mut Put<'_>) {
    put_all(put, &[snapshot.volume, snapshot.number]);
    put.bytes(snapshot.uuid.as_bytes());
    put.u64(snapshot.bytes);
    put.u32(if snapshot.is_deleted { FLAG_DELETED } else { 0 });
    put.u64(snapshot.created);
    put_name(snapshot.name, put);
}

fn put_name(name: &str, put: &mut Put<'_>) {
    // Measured before: it is short.
    put.u32(u32::try_from(name.len()).unwrap_or(0));
    put.bytes(name.as_bytes());
}

/// Reads records one after another. Ends behind the last, or after the first error.
#[derive(Clone, Debug)]
pub struct RecordReader<'b> {
    rest: &'b [u8],
    at: usize,
}

impl<'b> RecordReader<'b> {
    /// All of `bytes` are records.
    #[must_use]
    pub const fn new(bytes: &'b [u8]) -> Self {
        Self { rest: bytes, at: 0 }
    }

    /// Where the next record begins, or where the one begins that is wrong.
    #[must_use]
    pub const fn at(&self) -> usize {
        self.at
    }
}

impl<'b> Iterator for RecordReader<'b> {
    type Item = Result<Record<'b>, RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let read = read(self.rest);
        match read {
            Ok((_, total)) => {
                self.at += total;
                self.rest = &self.rest[total..];
            }
            Err(_) => self.rest = &[],
        }
        Some(read.map(|(record, _)| record))
    }
}

/// The record at the start of `bytes`, and its length.
fn read(bytes: &[u8]) -> Result<(Record<'_>, usize), RecordError> {
    let mut head = Fields::new(bytes);
    let fields = (head.u16(), head.u16(), head.u32());
    let (Some(kind), Some(flags), Some(len)) = fields else {
        return Err(RecordError::Truncated);
    };
    if !(KIND_VOLUME..=KIND_RESERVE).contains(&kind) || flags != 0 {
        return Err(RecordError::Unknown { kind, flags });
    }
    let body_len = usize::try_from(len).map_err(|_| RecordError::Truncated)?;
    let body = head.bytes(body_len).ok_or(RecordError::Truncated)?;
    let padding = (4 - body_len % 4) % 4;
    match head.bytes(padding) {
        None => return Err(RecordError::Truncated),
        Some(padding) if padding.iter().any(|&byte| byte != 0) => {
            return Err(RecordError::Field {
                kind,
                field: "padding",
            });
        }
        Some(_) => {}
    }
    let record = read_fields(kind, body)?;
    Ok((record, HEAD_BYTES + body_len + padding))
}

fn read_fields(kind: u16, body: &[u8]) -> Result<Record<'_>, RecordError> {
    // A body is in memory, so its length came from a u32.
    let len = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let wrong_length = RecordError::Length { kind, len };
    let mut fields = Fields::new(body);
    let record = match kind {
        KIND_VOLUME => return read_volume(fields).ok_or(wrong_length)?,
        KIND_SNAPSHOT => return read_snapshot(fields).ok_or(wrong_length)?,
        KIND_VOLUME_GONE => fields.u32().map(|volume| Record::VolumeGone { volume }),
        KIND_NEXT_VOLUME => fields.u32().map(|volume| Record::NextVolume { volume }),
        _ => read_numbers(kind, &mut fields),
    };
    let is_open_ended = matches!(
        kind,
        KIND_MAP | KIND_MAP_PART | KIND_ACTIVATE | KIND_RETIRE | KIND_ATTRIBUTE
    );
    match record {
        Some(record) if is_open_ended || fields.rest().is_empty() => check_range(kind, &record)
            .map_or(Ok(record), |field| Err(RecordError::Field { kind, field })),
        _ => Err(wrong_length),
    }
}

/// The kinds that are numbers, and what follows them.
fn read_numbers<'b>(kind: u16, fields: &mut Fields<'b>) -> Option<Record<'b>> {
    Some(match kind {
        KIND_SNAPSHOT_GONE => Record::SnapshotGone {
            volume: fields.u32()?,
            number: fields.u32()?,
        },
        KIND_MAP => Record::Map {
            volume: fields.u32()?,
            born: fields.u32()?,
            logical: fields.u32()?,
            physical: Numbers::from_wire(fields.rest())?,
        },
        KIND_MAP_PART => Record::MapPart {
            volume: fields.u32()?,
            born: fields.u32()?,
            logical: fields.u32()?,
            physical: fields.u32()?,
            bitmap: fields.rest(),
        },
        KIND_UNMAP => Record::Unmap {
            volume: fields.u32()?,
            born: fields.u32()?,
            logical: fields.u32()?,
            count: fields.u32()?,
        },
        KIND_CLEAN => Record::Clean {
            physical: fields.u32()?,
            count: fields.u32()?,
        },
        KIND_RESERVE => Record::Reserve {
            physical: fields.u32()?,
            count: fields.u32()?,
        },
        KIND_ACTIVATE => Record::Activate {
            physical: Numbers::from_wire(fields.rest())?,
        },
        KIND_RETIRE => Record::Retire {
            physical: Numbers::from_wire(fields.rest())?,
        },
        KIND_ATTRIBUTE => {
            let (volume, kind) = (fields.u32()?, fields.u32()?);
            limited(fields.rest().len(), ATTRIBUTE_BYTES_MAX)?;
            Record::Attribute {
                volume,
                kind,
                bytes: fields.rest(),
            }
        }
        _ => return None,
    })
}

/// What is wrong about consecutive extents: all of them have a number less than [`NONE`].
fn check_range(kind: u16, record: &Record<'_>) -> Option<&'static str> {
    let (first, count) = match *record {
        Record::Map {
            logical, physical, ..
        } => (logical, physical.len()),
        Record::MapPart { logical, .. } => (logical, 1),
        Record::Unmap { logical, count, .. } => (logical, usize::try_from(count).ok()?),
        Record::Clean { physical, count } | Record::Reserve { physical, count } => {
            (physical, usize::try_from(count).ok()?)
        }
        _ => return None,
    };
    let fits = u32::try_from(count).is_ok_and(|count| first.checked_add(count).is_some());
    (!fits).then_some(if kind == KIND_CLEAN || kind == KIND_RESERVE {
        "range of physical extents"
    } else {
        "range of logical extents"
    })
}

/// `None`: the length is wrong.
fn read_volume(mut fields: Fields<'_>) -> Option<Result<Record<'_>, RecordError>> {
    let volume = fields.u32()?;
    let uuid = fields.uuid()?;
    let bytes = fields.u64()?;
    let block_bytes = fields.u32()?;
    let snapshots_taken = fields.u32()?;
    let (base, base_snapshot) = (fields.u32()?, fields.u32()?);
    let flags = fields.u32()?;
    let created = fields.u64()?;
    let name = read_name(fields)?;
    let wrong = |field| {
        Some(Err(RecordError::Field {
            kind: KIND_VOLUME,
            field,
        }))
    };
    let Ok(name) = std::str::from_utf8(name) else {
        return wrong("name");
    };
    let base = match (base, base_snapshot) {
        (NONE, 0) => None,
        (NONE, _) => return wrong("base"),
        base => Some(base),
    };
    let durability = match flags >> 4 & 0b11 {
        0 => Durability::Media,
        1 => Durability::Device,
        _ => return wrong("durability"),
    };
    let checksums = match flags >> SHIFT_CHECKSUMS & 0b11 {
        0 => Checksums::Off,
        1 => Checksums::Scrub,
        2 => Checksums::Verify,
        _ => return wrong("mode of checksums"),
    };
    if flags & !VOLUME_FLAGS != 0 {
        return wrong("flag");
    }
    Some(Ok(Record::Volume(VolumeRecord {
        volume,
        uuid,
        bytes,
        block_bytes,
        snapshots_taken,
        base,
        is_thick: flags & FLAG_THICK != 0,
        is_deleted: flags & FLAG_DELETED != 0,
        is_being_made: flags & FLAG_BEING_MADE != 0,
        durability,
        checksums,
        created,
        name,
    })))
}

/// `None`: the length is wrong.
fn read_snapshot(mut fields: Fields<'_>) -> Option<Result<Record<'_>, RecordError>> {
    let (volume, number) = (fields.u32()?, fields.u32()?);
    let uuid = fields.uuid()?;
    let bytes = fields.u64()?;
    let flags = fields.u32()?;
    let created = fields.u64()?;
    let name = read_name(fields)?;
    let wrong = |field| {
        Some(Err(RecordError::Field {
            kind: KIND_SNAPSHOT,
            field,
        }))
    };
    let Ok(name) = std::str::from_utf8(name) else {
        return wrong("name");
    };
    if flags & !FLAG_DELETED != 0 {
        return wrong("flag");
    }
    Some(Ok(Record::Snapshot(SnapshotRecord {
        volume,
        number,
        uuid,
        bytes,
        is_deleted: flags & FLAG_DELETED != 0,
        created,
        name,
    })))
}

fn read_name(mut fields: Fields<'_>) -> Option<&[u8]> {
    let len = usize::try_from(fields.u32()?).ok()?;
    let name = fields.rest();
    (name.len() == len && len <= NAME_BYTES_MAX).then_some(name)
}

#[cfg(test)]
mod tests;
