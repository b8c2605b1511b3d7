use std::io;

use super::*;
use crate::format::golden::{IMAGES, image_of};
use crate::format::journal::DamageReason;

/// An image in memory, some of which cannot be read.
struct Memory {
    bytes: Vec<u8>,
    unreadable: Option<u64>,
}

impl Source for Memory {
    fn bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn block_bytes(&self) -> Option<u32> {
        None
    }

    fn read(&mut self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let end = offset + out.len() as u64;
        if self
            .unreadable
            .is_some_and(|at| (offset..end).contains(&at))
        {
            return Err(io::Error::other("medium error"));
        }
        let at = usize::try_from(offset).unwrap();
        out.copy_from_slice(&self.bytes[at..at + out.len()]);
        Ok(())
    }
}

impl Target for Memory {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let at = usize::try_from(offset).unwrap();
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn golden(index: usize) -> Memory {
    Memory {
        bytes: image_of(IMAGES[index].3),
        unreadable: None,
    }
}

fn layout() -> Layout {
    inspect(&mut golden(0), Depth::Opening)
        .unwrap()
        .superblock
        .layout
}

/// What is found after a byte was changed.
fn changed(at: u64) -> Inspection {
    let mut memory = golden(0);
    memory.bytes[usize::try_from(at).unwrap()] ^= 0x10;
    inspect(&mut memory, Depth::Everything).unwrap()
}

#[test]
fn nothing_is_wrong_with_the_images_of_version_1() {
    for index in 0..IMAGES.len() {
        let inspection = inspect(&mut golden(index), Depth::Everything).unwrap();
        assert_eq!(inspection.findings, []);
        assert_eq!(inspection.worst(), None);
        assert_eq!(inspection.checkpoint.unwrap().records, 13);
        assert_eq!(
            (inspection.journal.groups, inspection.journal.records),
            (5, 13)
        );
        assert_eq!(inspection.journal.end, Ok(inspection.journal.readable_to));
        let names: Vec<_> = inspection
            .state
            .volumes()
            .map(|(_, volume)| &*volume.name)
            .collect();
        assert_eq!(names, ["orders", "scratch"]);
        assert_eq!(
            inspection
                .state
                .volume(inspection.state.slot(1).unwrap())
                .unwrap()
                .snapshots()
                .len(),
            2
        );
    }
}

#[test]
fn what_is_damaged_is_told_with_its_place() {
    let layout = layout();
    let told = |inspection: &Inspection| {
        let [finding] = &inspection.findings[..] else {
            panic!("{:?}", inspection.findings)
        };
        (finding.severity, finding.place.clone())
    };
    let superblock = changed(SUPERBLOCK_OFFSETS[1] + 100);
    assert_eq!(
        told(&superblock),
        (Severity::Notice, "superblock 1".to_owned())
    );
    assert_eq!(superblock.to_mend, Some(1));
    let checkpoint = changed(layout.checkpoints[1].offset + 5000);
    assert_eq!(
        told(&checkpoint),
        (Severity::Damage, "checkpoint 3, frame 1".to_owned())
    );
    let journal = changed(layout.journal.offset + 100);
    assert_eq!(told(&journal), (Severity::Damage, "journal".to_owned()));
    assert_eq!(
        journal.journal.end.unwrap_err().reason,
        DamageReason::Sector
    );
    let behind = changed(layout.journal.offset + layout.journal.bytes - 1);
    assert_eq!(told(&behind), (Severity::Notice, "journal".to_owned()));
    let page = changed(layout.checksums.offset + 50);
    assert_eq!(
        told(&page),
        (Severity::Loss, "page of checksums 0".to_owned())
    );
    assert_eq!(changed(layout.data.offset + 50).findings, []);
}

#[test]
fn a_record_that_contradicts_the_map_is_told_although_its_checksum_is_right() {
    let mut memory = golden(0);
    // In the second group: the physical extent of a map, which a version of the checkpoint has.
    let at = usize::try_from(layout().journal.offset).unwrap() + 512;
    let sector = &mut memory.bytes[at..at + 512];
    assert_eq!(sector[32 + 20], 10);
    sector[32 + 20] = 1;
    let crc = crc_fast::crc32_iscsi(&sector[8..]);
    sector[4..8].copy_from_slice(&crc.to_le_bytes());
    let inspection = inspect(&mut memory, Depth::Everything).unwrap();
    let [finding] = &inspection.findings[..] else {
        panic!("{:?}", inspection.findings)
    };
    assert_eq!(finding.severity, Severity::Damage);
    assert_eq!(finding.place, "journal, group at sector 129");
    assert!(finding.text.contains("extent 1"), "{}", finding.text);
}

#[test]
fn what_cannot_be_read_is_told() {
    let layout = layout();
    for (at, severity) in [
        (layout.checkpoints[1].offset, Severity::Damage),
        (layout.journal.offset, Severity::Damage),
        (layout.journal.offset + 40_000, Severity::Notice),
        (layout.checksums.offset, Severity::Loss),
    ] {
        let mut memory = golden(0);
        memory.unreadable = Some(at);
        let inspection = inspect(&mut memory, Depth::Everything).unwrap();
        assert_eq!(
            inspection.worst(),
            Some(severity),
            "{:?}",
            inspection.findings
        );
    }
    // There are two superblocks for that.
    for (copy, at) in SUPERBLOCK_OFFSETS.into_iter().enumerate() {
        let mut memory = golden(0);
        memory.unreadable = Some(at);
        let inspection = inspect(&mut memory, Depth::Opening).unwrap();
        assert_eq!(inspection.to_mend, Some(copy));
        assert_eq!(inspection.worst(), Some(Severity::Notice));
    }
}

#[test]
fn what_is_no_pool_is_refused() {
    for bytes in [0, 512, 1 << 20, 2 << 20] {
        let mut memory = Memory {
            bytes: vec![0; bytes],
            unreadable: None,
        };
        let error = inspect(&mut memory, Depth::Opening).unwrap_err();
        assert_eq!(error.to_string(), "the drive is not a pool: it is blank");
    }
    let mut memory = golden(0);
    memory.bytes.truncate(3 << 20);
    let error = inspect(&mut memory, Depth::Opening).unwrap_err();
    assert!(matches!(
        error,
        InspectError::Superblock(SuperblockError::DriveSmaller { .. })
    ));
}

#[test]
fn repair_writes_a_damaged_superblock_again_and_nothing_else() {
    for copy in SUPERBLOCK_OFFSETS {
        let mut memory = golden(0);
        memory.bytes[usize::try_from(copy).unwrap()..][..4096].fill(0x55);
        assert!(matches!(mend(&mut memory), Ok(Mended::Superblock(_))));
        assert!(memory.bytes == golden(0).bytes);
        assert!(matches!(mend(&mut memory), Ok(Mended::Nothing)));
    }
}

#[test]
fn repair_changes_nothing_where_the_journal_is_damaged() {
    let mut memory = golden(0);
    memory.bytes[0] = 0;
    let at = usize::try_from(layout().journal.offset).unwrap();
    memory.bytes[at] = 0;
    let before = memory.bytes.clone();
    assert!(matches!(mend(&mut memory), Err(MendError::Damaged(_))));
    assert!(memory.bytes == before);
}
