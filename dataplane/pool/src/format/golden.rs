//! Images of version 1: they are written as they always were, and read for ever.

use std::fmt::Write as _;

use uuid::Uuid;

use super::arbitrary::tiny_superblock;
use super::checkpoint::{FRAME_BYTES_MAX, FrameReader, FrameWriter};
use super::codec::RecordReader;
use super::journal::{GroupWriter, JournalReader};
use super::layout::{Area, SUPERBLOCK_OFFSETS};
use super::pages::{PAGE_BYTES, PageState, seal_page, set_slot, slot, slot_of_chunk, verify_page};
use super::record::{Checksums, Durability, NONE, Numbers, Record, SnapshotRecord, VolumeRecord};
use super::superblock::{CheckpointPlace, Superblock};

/// Each image by its name, with the drive's block and whether the pool was closed in order.
pub(crate) const IMAGES: [(&str, u32, bool, &str); 2] = [
    (
        "v1-512",
        512,
        false,
        include_str!("../../golden/v1-512.txt"),
    ),
    (
        "v1-4096",
        4096,
        true,
        include_str!("../../golden/v1-4096.txt"),
    ),
];

/// Bytes in a line of the text.
const LINE: usize = 32;

/// The bytes that the text of an image stands for: what no line has is zero.
pub(crate) fn image_of(text: &str) -> Vec<u8> {
    let mut lines = text.lines();
    let bytes = lines
        .next()
        .unwrap()
        .strip_prefix("bytes ")
        .unwrap()
        .parse()
        .unwrap();
    let mut image = vec![0; bytes];
    for line in lines {
        let (at, hex) = line.split_once(' ').unwrap();
        let at = usize::from_str_radix(at, 16).unwrap();
        for (index, pair) in hex.as_bytes().chunks(2).enumerate() {
            let pair = std::str::from_utf8(pair).unwrap();
            image[at + index] = u8::from_str_radix(pair, 16).unwrap();
        }
    }
    image
}

fn text_of(image: &[u8]) -> String {
    let mut text = format!("bytes {}\n", image.len());
    for (index, line) in image.chunks(LINE).enumerate() {
        if line.iter().any(|&byte| byte != 0) {
            write!(text, "{:06x} ", index * LINE).unwrap();
            line.iter()
                .for_each(|byte| write!(text, "{byte:02x}").unwrap());
            text.push('\n');
        }
    }
    text
}

fn volume(volume: u32, name: &str) -> VolumeRecord<'_> {
    VolumeRecord {
        volume,
        uuid: Uuid::from_u128(0xa000_0000_0000_4000_8000_0000_0000_0000 + u128::from(volume)),
        bytes: 256 << 10,
        block_bytes: 4096,
        snapshots_taken: 0,
        base: None,
        is_thick: false,
        is_deleted: false,
        is_being_made: false,
        durability: Durability::Media,
        checksums: Checksums::Off,
        created: 1_795_000_000,
        name,
    }
}

fn orders(snapshots_taken: u32) -> Record<'static> {
    let checksums = Checksums::Verify;
    Record::Volume(VolumeRecord {
        snapshots_taken,
        checksums,
        ..volume(1, "orders")
    })
}

fn snapshot(number: u32, name: &str) -> Record<'_> {
    Record::Snapshot(SnapshotRecord {
        volume: 1,
        number,
        uuid: Uuid::from_u128(0xb000_0000_0000_4000_8000_0000_0000_0000 + u128::from(number)),
        bytes: 256 << 10,
        is_deleted: false,
        created: 1_795_000_100,
        name,
    })
}

/// A volume with a snapshot, a clone of that and a thick one.
fn checkpoint_records(extents: u32) -> Vec<Record<'static>> {
    let clone = VolumeRecord {
        base: Some((1, 1)),
        durability: Durability::Device,
        checksums: Checksums::Scrub,
        ..volume(2, "scratch")
    };
    let thick = VolumeRecord {
        bytes: 32 << 10,
        is_thick: true,
        ..volume(3, "thick")
    };
    let map = |volume, born, logical, physical| Record::Map {
        volume,
        born,
        logical,
        physical: Numbers::Native(physical),
    };
    vec![
        orders(1),
        snapshot(1, "monday"),
        map(1, 0, 0, &[0, 1, 2]),
        Record::MapPart {
            volume: 1,
            born: 1,
            logical: 1,
            physical: 3,
            bitmap: &[0b0101],
        },
        map(1, 1, 2, &[NONE]),
        Record::Attribute {
            volume: 1,
            kind: 1,
            bytes: b"reservations",
        },
        Record::Volume(clone),
        Record::MapPart {
            volume: 2,
            born: 0,
            logical: 0,
            physical: 4,
            bitmap: &[0b0010],
        },
        Record::Volume(thick),
        map(3, 0, 0, &[5, 6]),
        Record::NextVolume { volume: 4 },
        Record::Clean {
            physical: 10,
            count: extents - 10,
        },
        Record::Activate {
            physical: Numbers::Native(&[0, 3]),
        },
    ]
}

/// Groups after it: every kind of record is somewhere.
fn journal_groups() -> Vec<Vec<Record<'static>>> {
    let physical = Numbers::Native(&[10]);
    vec![
        vec![Record::Reserve {
            physical: 10,
            count: 4,
        }],
        vec![
            Record::Map {
                volume: 1,
                born: 1,
                logical: 3,
                physical,
            },
            Record::Retire {
                physical: Numbers::Native(&[0]),
            },
        ],
        vec![
            orders(2),
            snapshot(2, "tuesday"),
            orders(3),
            snapshot(3, ""),
        ],
        vec![
            Record::SnapshotGone {
                volume: 1,
                number: 3,
            },
            Record::VolumeGone { volume: 3 },
        ],
        vec![
            Record::Clean {
                physical: 5,
                count: 2,
            },
            Record::Unmap {
                volume: 2,
                born: 0,
                logical: 0,
                count: 1,
            },
            Record::Attribute {
                volume: 1,
                kind: 1,
                bytes: &[],
            },
            Record::NextVolume { volume: 5 },
        ],
    ]
}

struct Image {
    bytes: Vec<u8>,
    superblock: Superblock,
}

impl Image {
    fn put(&mut self, area: Area, offset: u64, bytes: &[u8]) {
        let at = usize::try_from(area.offset + offset).unwrap();
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn area(&self, area: Area) -> &[u8] {
        let at = usize::try_from(area.offset).unwrap();
        &self.bytes[at..at + usize::try_from(area.bytes).unwrap()]
    }

    /// Writes an image as version 1 does.
    fn write(block_bytes: u32, is_closed: bool) -> Self {
        let superblock = tiny_superblock(block_bytes);
        let mut image = Self {
            bytes: vec![0; 4 << 20],
            superblock,
        };
        image.write_checkpoint();
        image.write_journal(is_closed);
        image.write_page();
        let copy = image.superblock.encode();
        for offset in SUPERBLOCK_OFFSETS {
            image.put(Area::default(), offset, &copy);
        }
        image
    }

    fn write_checkpoint(&mut self) {
        let Superblock { uuid, layout, .. } = self.superblock;
        let area = layout.checkpoints[1];
        let mut frame = vec![0; FRAME_BYTES_MAX];
        let mut writer = FrameWriter::new(uuid, 3, area.bytes);
        let records = checkpoint_records(layout.extents);
        // In two frames, so that there is more than one.
        let (first, second) = records.split_at(6);
        for (records, is_last) in [(first, false), (second, true)] {
            for record in records {
                writer.push(&mut frame, record).unwrap();
            }
            let sealed = writer.seal(&mut frame, is_last).unwrap();
            self.put(area, sealed.offset, &frame[..sealed.bytes]);
        }
        let place = CheckpointPlace {
            number: 3,
            area: 1,
            frames: writer.frames(),
        };
        self.superblock.checkpoint = Some(place);
    }

    fn write_journal(&mut self, is_closed: bool) {
        let Superblock { uuid, layout, .. } = self.superblock;
        let mut out = vec![0; 64 << 10];
        let mut next = layout.ring().first();
        let mut writer = GroupWriter::new(layout.ring(), uuid, 1);
        for (index, records) in journal_groups().iter().enumerate() {
            if index == 3 {
                // A crash left a part of a group, and the pool was opened again.
                self.write_torn_group(1, next);
                writer = GroupWriter::new(layout.ring(), uuid, 2);
            }
            for record in records {
                writer.push(record).unwrap();
            }
            let sealed = writer.seal(next, &mut out).unwrap();
            self.put(layout.journal, sealed.offset, &out[..sealed.bytes]);
            next = sealed.next;
            writer.clear();
        }
        self.superblock.generation = 2;
        self.superblock.sequence = 7;
        if is_closed {
            self.superblock.closed_at = Some(next);
        } else {
            self.write_torn_group(2, next);
        }
    }

    /// Only the third sector of one arrives.
    fn write_torn_group(&mut self, generation: u64, next: u64) {
        let Superblock { uuid, layout, .. } = self.superblock;
        let mut writer = GroupWriter::new(layout.ring(), uuid, generation);
        writer
            .push(&Record::Attribute {
                volume: 1,
                kind: 2,
                bytes: &[7; 1500],
            })
            .unwrap();
        let mut out = vec![0; 64 << 10];
        let sealed = writer.seal(next, &mut out).unwrap();
        self.put(layout.journal, sealed.offset + 1024, &out[1024..1536]);
    }

    fn write_page(&mut self) {
        let Superblock { uuid, layout, .. } = self.superblock;
        let mut page = [0; PAGE_BYTES];
        for chunk in 0..4 {
            let place = layout.slots().place(1, chunk).unwrap();
            set_slot(&mut page, place.slot, slot_of_chunk(&[0; 4096]));
        }
        seal_page(&mut page, uuid, 0);
        self.put(layout.checksums, 0, &page);
    }
}

fn records_in(bytes: &[u8]) -> Vec<Record<'_>> {
    RecordReader::new(bytes).map(Result::unwrap).collect()
}

#[test]
fn images_of_version_1_are_written_byte_for_byte() {
    for (name, block_bytes, is_closed, text) in IMAGES {
        let written = text_of(&Image::write(block_bytes, is_closed).bytes);
        assert!(written == text, "{name} is written in another way");
        assert_eq!(text_of(&image_of(text)), text, "{name}");
    }
}

#[test]
fn images_of_version_1_are_read() {
    for (name, block_bytes, is_closed, text) in IMAGES {
        let bytes = image_of(text);
        let [first, second] = SUPERBLOCK_OFFSETS.map(|at| usize::try_from(at).unwrap());
        let chosen = Superblock::choose(&bytes[first..], &bytes[second..]).unwrap();
        assert_eq!(chosen.to_mend, None, "{name}");
        let superblock = chosen.superblock;
        assert_eq!(superblock.label, "tiny");
        assert_eq!(superblock.check_drive(4 << 20, block_bytes), Ok(()));
        assert_eq!(superblock.closed_at.is_some(), is_closed);
        let image = Image {
            bytes,
            superblock: superblock.clone(),
        };

        let place = superblock.checkpoint.unwrap();
        let area = image.area(superblock.layout.checkpoints[usize::from(place.area)]);
        let mut reader = FrameReader::new(superblock.uuid, place);
        let mut records = Vec::new();
        while let Some(offset) = reader.offset() {
            let frame = reader
                .next_frame(&area[usize::try_from(offset).unwrap()..])
                .unwrap();
            records.extend(records_in(frame.records));
        }
        assert_eq!(
            records,
            checkpoint_records(superblock.layout.extents),
            "{name}"
        );

        let mut journal = JournalReader::new(&superblock, image.area(superblock.layout.journal));
        let mut generations = Vec::new();
        for records in journal_groups() {
            let group = journal.next_group().unwrap();
            assert_eq!(records_in(group.records), records, "{name}");
            generations.push(group.generation);
        }
        assert_eq!(generations, [1, 1, 1, 2, 2]);
        assert_eq!(journal.next_group(), None);
        assert_eq!(journal.stale_damaged(), 0);
        assert_eq!(journal.end(), Ok(journal.readable_to()));

        let page: &[u8; PAGE_BYTES] = image
            .area(superblock.layout.checksums)
            .first_chunk()
            .unwrap();
        assert_eq!(verify_page(page, superblock.uuid, 0), PageState::Valid);
        // CRC32C of 4,096 zeroes.
        assert_eq!(
            [3, 4, 7, 8].map(|at| slot(page, at)),
            [0, 0x98f9_4189, 0x98f9_4189, 0]
        );
    }
}

/// For a new version, or a new image of this one: those that are there never change.
#[test]
#[ignore = "writes the images anew"]
fn images_are_written_to_files() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    for (name, block_bytes, is_closed, _) in IMAGES {
        let text = text_of(&Image::write(block_bytes, is_closed).bytes);
        std::fs::write(folder.join(name).with_extension("txt"), text).unwrap();
    }
}
