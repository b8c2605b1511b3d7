use proptest::prelude::*;
use uuid::Uuid;

use super::super::record::{Checksums, Durability, NONE, Numbers, SnapshotRecord, VolumeRecord};
use super::*;
use crate::format::arbitrary;

fn volume() -> VolumeRecord<'static> {
    VolumeRecord {
        volume: 7,
        uuid: Uuid::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff),
        bytes: 3 << 30,
        block_bytes: 4096,
        snapshots_taken: 5,
        base: Some((2, 1)),
        is_thick: true,
        is_deleted: false,
        is_being_made: true,
        durability: Durability::Device,
        checksums: Checksums::Verify,
        created: 1_795_000_000,
        name: "orders",
    }
}

fn bytes_of(record: &Record<'_>) -> Vec<u8> {
    let mut out = vec![0xee; 70 << 10];
    let len = write(record, &mut out).unwrap();
    out.truncate(len);
    out
}

fn only(bytes: &[u8]) -> Result<Record<'_>, RecordError> {
    let mut reader = RecordReader::new(bytes);
    let record = reader.next().unwrap();
    assert!(record.is_err() || reader.next().is_none());
    record
}

#[test]
fn a_volume_is_written_as_documented() {
    let bytes = bytes_of(&Record::Volume(volume()));
    let mut expected = vec![1, 0, 0, 0, 66, 0, 0, 0, 7, 0, 0, 0];
    expected.extend([0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77]);
    expected.extend([0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff]);
    expected.extend([0, 0, 0, 0xc0, 0, 0, 0, 0]);
    expected.extend([0, 0x10, 0, 0, 5, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0]);
    expected.extend([0b0001_0101, 0b10, 0, 0]);
    expected.extend(1_795_000_000_u64.to_le_bytes());
    expected.extend([6, 0, 0, 0]);
    expected.extend(b"orders\0\0");
    assert_eq!(bytes, expected);
    assert_eq!(only(&bytes), Ok(Record::Volume(volume())));
}

#[test]
fn extents_are_written_as_documented() {
    let native = Record::Map {
        volume: 1,
        born: 2,
        logical: 3,
        physical: Numbers::Native(&[9, NONE]),
    };
    let bytes = bytes_of(&native);
    let expected = [
        5, 0, 0, 0, 20, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 9, 0, 0, 0, 255, 255, 255, 255,
    ];
    assert_eq!(bytes, expected);
    let Ok(wire) = only(&bytes) else {
        panic!("not a record")
    };
    assert_eq!(wire, native);
    assert_eq!(bytes_of(&wire), expected);
}

#[test]
fn what_is_longer_than_the_format_allows_is_not_written() {
    let name = "n".repeat(256);
    let snapshot = SnapshotRecord {
        volume: 1,
        number: 1,
        uuid: Uuid::nil(),
        bytes: 0,
        is_deleted: false,
        created: 0,
        name: &name,
    };
    let attribute = vec![0; ATTRIBUTE_BYTES_MAX + 1];
    let mut out = vec![0; 70 << 10];
    let mut writer = RecordWriter::new(&mut out);
    for record in [
        Record::Volume(VolumeRecord {
            name: &name,
            ..volume()
        }),
        Record::Snapshot(snapshot),
        Record::Attribute {
            volume: 1,
            kind: 1,
            bytes: &attribute,
        },
    ] {
        assert_eq!(writer.push(&record), Err(WriteError::TooLong));
        assert_eq!(record_bytes(&record), None);
    }
    assert_eq!(writer.used(), 0);
}

#[test]
fn a_record_that_does_not_fit_leaves_the_buffer_as_it_was() {
    let mut out = [0xee; 24];
    let mut writer = RecordWriter::new(&mut out);
    assert_eq!(
        writer.push(&Record::Clean {
            physical: 1,
            count: 2
        }),
        Ok(())
    );
    let next = Record::Reserve {
        physical: 3,
        count: 4,
    };
    assert_eq!(writer.push(&next), Err(WriteError::Full));
    assert_eq!(writer.used(), 16);
    assert_eq!(out[16..], [0xee; 8]);
}

#[test]
fn what_this_version_does_not_write_is_an_error() {
    let mut bytes = bytes_of(&Record::NextVolume { volume: 4 });
    bytes[0] = 32;
    assert_eq!(
        only(&bytes),
        Err(RecordError::Unknown { kind: 32, flags: 0 })
    );
    bytes[..4].copy_from_slice(&[12, 0, 0, 0x80]);
    assert_eq!(
        only(&bytes),
        Err(RecordError::Unknown {
            kind: 12,
            flags: 0x8000
        })
    );

    let wrong = |record: &Record<'_>, at: usize, byte: u8| {
        let mut bytes = bytes_of(record);
        bytes[at] = byte;
        only(&bytes).map(|_| ()).unwrap_err()
    };
    let field = |kind, field| RecordError::Field { kind, field };
    let whole = Record::Volume(volume());
    assert_eq!(wrong(&whole, 52, 0b11_0000), field(1, "durability"));
    assert_eq!(wrong(&whole, 53, 0b11), field(1, "mode of checksums"));
    assert_eq!(wrong(&whole, 55, 1), field(1, "flag"));
    assert_eq!(wrong(&whole, 68, 0xff), field(1, "name"));
    assert_eq!(wrong(&whole, 75, 1), field(1, "padding"));
    let without_base = Record::Volume(VolumeRecord {
        base: None,
        ..volume()
    });
    assert_eq!(wrong(&without_base, 48, 1), field(1, "base"));
    let range = Record::Clean {
        physical: 5,
        count: 0,
    };
    assert_eq!(only(&bytes_of(&range)), Ok(range));
    let beyond = Record::Clean {
        physical: 5,
        count: NONE - 4,
    };
    assert_eq!(
        only(&bytes_of(&beyond)),
        Err(field(8, "range of physical extents"))
    );
    let beyond = Record::Unmap {
        volume: 1,
        born: 0,
        logical: 2,
        count: NONE - 1,
    };
    assert_eq!(
        only(&bytes_of(&beyond)),
        Err(field(7, "range of logical extents"))
    );
}

#[test]
fn nothing_follows_an_error() {
    let mut bytes = bytes_of(&Record::VolumeGone { volume: 1 });
    bytes.extend([0; 12]);
    bytes.extend(bytes_of(&Record::VolumeGone { volume: 2 }));
    let mut reader = RecordReader::new(&bytes);
    assert_eq!(reader.next(), Some(Ok(Record::VolumeGone { volume: 1 })));
    assert_eq!(
        reader.next(),
        Some(Err(RecordError::Unknown { kind: 0, flags: 0 }))
    );
    assert_eq!(reader.at(), 12);
    assert!(reader.next().is_none());
}

proptest! {
    #[test]
    fn records_come_back_as_they_were_written(
        records in prop::collection::vec(arbitrary::record(), 0..20),
    ) {
        let mut out = vec![0xee; 1 << 20];
        let mut writer = RecordWriter::new(&mut out);
        for record in &records {
            let before = writer.used();
            writer.push(record).unwrap();
            assert_eq!(record_bytes(record), Some(writer.used() - before));
        }
        let used = writer.used();
        let read: Result<Vec<_>, _> = RecordReader::new(&out[..used]).collect();
        prop_assert_eq!(read, Ok(records));
    }

    #[test]
    fn a_truncated_record_is_an_error(record in arbitrary::record(), cut in any::<prop::sample::Index>()) {
        let bytes = bytes_of(&record);
        let cut = cut.index(bytes.len() - 1) + 1;
        prop_assert!(only(&bytes[..bytes.len() - cut]).is_err() || bytes.len() == cut);
    }

    #[test]
    fn any_bytes_are_records_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for record in RecordReader::new(&bytes).flatten() {
            // What is read is written as it was.
            let written = bytes_of(&record);
            prop_assert!(bytes.windows(written.len()).any(|window| window == written));
        }
    }

    #[test]
    fn changed_bytes_never_panic(
        record in arbitrary::record(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = bytes_of(&record);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        for record in RecordReader::new(&bytes).flatten() {
            prop_assert!(bytes_of(&record).len() <= bytes.len());
        }
    }
}
