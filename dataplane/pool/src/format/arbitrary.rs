//! Any record, for tests. What it refers to is leaked: a test is short.

use proptest::prelude::*;
use uuid::Uuid;

use super::layout::{Layout, LayoutOptions};
use super::record::{Checksums, Durability, Numbers, Record, SnapshotRecord, VolumeRecord};
use super::superblock::Superblock;

/// The smallest of pools.
pub(crate) fn tiny_layout(block_bytes: u32) -> Layout {
    let options = LayoutOptions {
        extent_bytes: 16 << 10,
        journal_bytes: Some(64 << 10),
        objects_max: Some(8),
        attribute_bytes_max: Some(4096),
    };
    Layout::plan(4 << 20, block_bytes, &options).unwrap()
}

/// As the smallest of pools has it, opened once.
pub(crate) fn tiny_superblock(block_bytes: u32) -> Superblock {
    let layout = tiny_layout(block_bytes);
    Superblock {
        sequence: 1,
        uuid: Uuid::from_u128(0x6f1c_91a8_53d4_4a7e_8f6a_0a4c_2b7e_11d0),
        compatible: 0,
        read_only_compatible: 0,
        incompatible: 0,
        generation: 1,
        layout,
        checkpoint: None,
        replay_from: layout.ring().first(),
        strict_from: layout.ring().first(),
        closed_at: None,
        made: 1_795_000_000,
        label: "tiny".to_owned(),
    }
}

/// Any record that may be written.
pub(crate) fn record() -> impl Strategy<Value = Record<'static>> {
    prop_oneof![volume(), snapshot(), versions(), extents(), others()]
}

fn versions() -> impl Strategy<Value = Record<'static>> {
    // Ranges of extents end before the last number.
    let place = (any::<(u32, u32)>(), 0..u32::MAX - 2000);
    let bitmap = prop::collection::vec(any::<u8>(), 0..40);
    prop_oneof![
        (place.clone(), numbers()).prop_map(|(((volume, born), logical), physical)| {
            Record::Map {
                volume,
                born,
                logical,
                physical,
            }
        }),
        (place.clone(), any::<u32>(), bitmap).prop_map(
            |(((volume, born), logical), physical, bitmap)| {
                Record::MapPart {
                    volume,
                    born,
                    logical,
                    physical,
                    bitmap: bitmap.leak(),
                }
            },
        ),
        (place, 0..2000_u32).prop_map(|(((volume, born), logical), count)| {
            Record::Unmap {
                volume,
                born,
                logical,
                count,
            }
        }),
    ]
}

fn extents() -> impl Strategy<Value = Record<'static>> {
    let range = (0..u32::MAX - 2000, 0..2000_u32);
    prop_oneof![
        range
            .clone()
            .prop_map(|(physical, count)| Record::Clean { physical, count }),
        range.prop_map(|(physical, count)| Record::Reserve { physical, count }),
        numbers().prop_map(|physical| Record::Activate { physical }),
        numbers().prop_map(|physical| Record::Retire { physical }),
    ]
}

fn others() -> impl Strategy<Value = Record<'static>> {
    let bytes = prop::collection::vec(any::<u8>(), 0..600);
    prop_oneof![
        any::<u32>().prop_map(|volume| Record::VolumeGone { volume }),
        any::<u32>().prop_map(|volume| Record::NextVolume { volume }),
        any::<(u32, u32)>().prop_map(|(volume, number)| Record::SnapshotGone { volume, number }),
        (any::<(u32, u32)>(), bytes).prop_map(|((volume, kind), bytes)| {
            Record::Attribute {
                volume,
                kind,
                bytes: bytes.leak(),
            }
        }),
    ]
}

fn numbers() -> impl Strategy<Value = Numbers<'static>> {
    prop::collection::vec(any::<u32>(), 0..40).prop_map(|numbers| Numbers::Native(numbers.leak()))
}

fn volume() -> impl Strategy<Value = Record<'static>> {
    let numbers = any::<(u32, u32, u32)>();
    let flags = (any::<(bool, bool, bool, bool)>(), 0..3_usize);
    let base = prop::option::of((0..u32::MAX, any::<u32>()));
    (
        numbers,
        any::<u128>(),
        any::<(u64, u64)>(),
        base,
        flags,
        "\\PC{0,60}",
    )
        .prop_map(
            |(
                (volume, block_bytes, snapshots_taken),
                uuid,
                (bytes, created),
                base,
                flags,
                name,
            )| {
                let ((is_thick, is_deleted, is_being_made, is_device), checksums) = flags;
                Record::Volume(VolumeRecord {
                    volume,
                    uuid: Uuid::from_u128(uuid),
                    bytes,
                    block_bytes,
                    snapshots_taken,
                    base,
                    is_thick,
                    is_deleted,
                    is_being_made,
                    durability: [Durability::Media, Durability::Device][usize::from(is_device)],
                    checksums: [Checksums::Off, Checksums::Scrub, Checksums::Verify][checksums],
                    created,
                    name: name.leak(),
                })
            },
        )
}

fn snapshot() -> impl Strategy<Value = Record<'static>> {
    let sizes = any::<(u64, u64)>();
    (
        any::<(u32, u32)>(),
        any::<u128>(),
        sizes,
        any::<bool>(),
        "\\PC{0,60}",
    )
        .prop_map(
            |((volume, number), uuid, (bytes, created), is_deleted, name)| {
                Record::Snapshot(SnapshotRecord {
                    volume,
                    number,
                    uuid: Uuid::from_u128(uuid),
                    bytes,
                    is_deleted,
                    created,
                    name: name.leak(),
                })
            },
        )
}
