use proptest::prelude::*;

use super::super::arbitrary::tiny_superblock;
use super::*;

fn superblock() -> Superblock {
    Superblock {
        sequence: 9,
        generation: 4,
        checkpoint: Some(CheckpointPlace {
            number: 3,
            area: 1,
            frames: 2,
        }),
        replay_from: 128,
        strict_from: 136,
        closed_at: Some(144),
        ..tiny_superblock(4096)
    }
}

fn sealed(mut copy: [u8; SUPERBLOCK_BYTES]) -> [u8; SUPERBLOCK_BYTES] {
    let crc = crc_fast::crc32_iscsi(&copy[12..512]);
    copy[8..12].copy_from_slice(&crc.to_le_bytes());
    copy
}

fn chosen(superblock: &Superblock, to_mend: Option<(usize, Option<CopyError>)>) -> Chosen {
    Chosen {
        superblock: superblock.clone(),
        to_mend,
    }
}

#[test]
fn fields_are_where_the_document_says() {
    let superblock = superblock();
    let copy = superblock.encode();
    let number = |at: usize| u64::from_le_bytes(copy[at..at + 8].try_into().unwrap());
    assert_eq!(copy[..8], *b"BOWLPOOL");
    assert_eq!(copy[12..16], [1, 0, 0, 0]);
    assert_eq!((number(16), number(64), number(72)), (9, 4, 4 << 20));
    assert_eq!(copy[24..40], *superblock.uuid.as_bytes());
    assert_eq!(number(96), superblock.layout.journal.offset);
    assert_eq!(number(160), superblock.layout.data.offset);
    assert_eq!((number(176), number(184)), (3, 2 << 32 | 1));
    assert_eq!((number(192), number(200), number(208)), (128, 136, 144));
    assert_eq!(number(216), 1_795_000_000);
    assert_eq!(copy[224..230], *b"tiny\0\0");
    assert_eq!((number(288), number(296)), (8, 4096));
    assert!(
        copy[230..288]
            .iter()
            .chain(&copy[304..])
            .all(|&byte| byte == 0)
    );
    assert_eq!(Superblock::decode(&copy), Ok(superblock));
}

#[test]
fn a_long_label_is_cut_between_characters() {
    let label = "ü".repeat(40);
    let superblock = Superblock {
        label,
        ..superblock()
    };
    let read = Superblock::decode(&superblock.encode()).unwrap();
    assert_eq!(read.label, "ü".repeat(32));
}

#[test]
fn the_later_copy_counts_and_the_other_is_mended() {
    let older = superblock();
    let newer = Superblock {
        sequence: 10,
        closed_at: None,
        ..superblock()
    };
    let (a, b) = (older.encode(), newer.encode());
    assert_eq!(Superblock::choose(&a, &a), Ok(chosen(&older, None)));
    assert_eq!(
        Superblock::choose(&a, &b),
        Ok(chosen(&newer, Some((0, None))))
    );
    assert_eq!(
        Superblock::choose(&b, &a),
        Ok(chosen(&newer, Some((1, None))))
    );
    let mut damaged = b;
    damaged[300] ^= 1;
    let mend = Some((0, Some(CopyError::Checksum)));
    assert_eq!(Superblock::choose(&damaged, &a), Ok(chosen(&older, mend)));
    let mend = Some((1, Some(CopyError::Absent)));
    assert_eq!(Superblock::choose(&a, &[0; 4096]), Ok(chosen(&older, mend)));
}

#[test]
fn what_is_not_a_usable_pool_is_refused_with_its_reason() {
    let good = superblock().encode();
    let zero = [0; SUPERBLOCK_BYTES];
    let refused = |a: &[u8], b: &[u8]| Superblock::choose(a, b).unwrap_err();

    assert_eq!(
        refused(&zero, &zero),
        SuperblockError::NotAPool(Foreign::Blank)
    );
    let mut ext4 = zero;
    ext4[1080..1082].copy_from_slice(&[0x53, 0xef]);
    let error = refused(&ext4, &zero);
    assert_eq!(
        error.to_string(),
        "the drive is not a pool: it holds an ext2, ext3 or ext4 file system"
    );

    // A file system was made on what was a pool: mending the pool would destroy it.
    let made_over = SuperblockError::MadeOver {
        uuid: superblock().uuid,
        made: "an ext2, ext3 or ext4 file system",
    };
    assert_eq!(refused(&ext4, &good), made_over);

    let mut damaged = good;
    damaged[20] ^= 0x80;
    let both = SuperblockError::Damaged(CopyError::Checksum, CopyError::Absent);
    assert_eq!(refused(&damaged, &zero), both);

    let other = Superblock {
        uuid: Uuid::nil(),
        ..superblock()
    };
    assert!(matches!(
        refused(&good, &other.encode()),
        SuperblockError::TwoPools(..)
    ));
    let other = Superblock {
        made: 1,
        ..superblock()
    };
    assert!(matches!(
        refused(&good, &other.encode()),
        SuperblockError::Contradiction(_)
    ));

    let mut newer = good;
    newer[12] = 2;
    assert_eq!(
        refused(&good, &sealed(newer)),
        SuperblockError::Newer { found: 2 }
    );
    let strange = Superblock {
        incompatible: 4,
        ..superblock()
    }
    .encode();
    assert!(matches!(
        refused(&strange, &strange),
        SuperblockError::Incompatible { features: 4, .. }
    ));
    // Whatever else it says, and whichever copy says it: the other one is not believed then.
    let mut strange = strange;
    strange[184] = 7;
    for (first, second) in [(good, sealed(strange)), (sealed(strange), good)] {
        assert!(matches!(
            refused(&first, &second),
            SuperblockError::Incompatible { features: 4, .. }
        ));
    }
}

#[test]
fn unknown_features_that_allow_it_are_read_or_ignored() {
    let reading = Superblock {
        read_only_compatible: 2,
        ..superblock()
    };
    let copy = reading.encode();
    let found = Superblock::choose(&copy, &copy).unwrap().superblock;
    assert!(matches!(
        found.check_writable(),
        Err(SuperblockError::ReadOnly { features: 2, .. })
    ));
    let ignoring = Superblock {
        compatible: 1,
        ..superblock()
    };
    let mut copy = ignoring.encode();
    copy[310] = 7;
    let copy = sealed(copy);
    assert_eq!(
        Superblock::choose(&copy, &copy)
            .unwrap()
            .superblock
            .check_writable(),
        Ok(())
    );
    // But what is known is checked.
    let mut copy = ignoring.encode();
    copy[96] ^= 1;
    assert_eq!(
        Superblock::decode(&sealed(copy)),
        Err(CopyError::Field("place of an area"))
    );
}

#[test]
fn the_drive_must_be_what_the_pool_was_made_on() {
    let superblock = superblock();
    assert_eq!(superblock.check_drive(4 << 20, 4096), Ok(()));
    let error = superblock.check_drive((4 << 20) - 4096, 4096).unwrap_err();
    assert!(matches!(error, SuperblockError::DriveSmaller { .. }));
    let error = superblock.check_drive(4 << 20, 512).unwrap_err();
    assert!(matches!(
        error,
        SuperblockError::BlockChanged {
            made: 4096,
            found: 512,
            ..
        }
    ));
}

#[test]
fn impossible_fields_are_told_by_name() {
    let wrong = |superblock: Superblock| Superblock::decode(&superblock.encode()).unwrap_err();
    let place = CopyError::Field("place in the journal");
    assert_eq!(
        wrong(Superblock {
            replay_from: 140,
            ..superblock()
        }),
        place
    );
    assert_eq!(
        wrong(Superblock {
            strict_from: 152,
            ..superblock()
        }),
        place
    );
    assert_eq!(
        wrong(Superblock {
            replay_from: 0,
            ..superblock()
        }),
        place
    );
    let none = CheckpointPlace {
        number: 0,
        area: 0,
        frames: 2,
    };
    let error = wrong(Superblock {
        checkpoint: Some(none),
        ..superblock()
    });
    assert_eq!(error, CopyError::Field("checkpoint"));
    let many = CheckpointPlace {
        number: 1,
        area: 0,
        frames: 1_000_000,
    };
    let error = wrong(Superblock {
        checkpoint: Some(many),
        ..superblock()
    });
    assert_eq!(error, CopyError::Field("number of frames"));
    let error = wrong(Superblock {
        generation: 0,
        ..superblock()
    });
    assert_eq!(error, CopyError::Field("sequence or generation"));
}

/// Nothing that is added to such a number overflows, and no pool is written that cannot be read.
#[test]
fn numbers_that_no_pool_gets_to_are_told_by_name() {
    let far = 1 << 62;
    let wrong = |superblock: Superblock| Superblock::decode(&superblock.encode()).err();
    for (sequence, generation) in [(far, 1), (1, far), (u64::MAX, 1), (1, u64::MAX)] {
        let error = wrong(Superblock {
            sequence,
            generation,
            ..superblock()
        });
        let expected = CopyError::Field("sequence or generation");
        assert_eq!(error, Some(expected), "{sequence} {generation}");
    }
    let place = |at| Superblock {
        replay_from: at,
        strict_from: at,
        closed_at: Some(at),
        ..superblock()
    };
    let error = CopyError::Field("place in the journal");
    assert_eq!(wrong(place(far)), Some(error));
    assert_eq!(wrong(place(far - 128)), None);
}

proptest! {
    #[test]
    fn a_changed_byte_of_a_copy_is_seen(at in 0..SUPERBLOCK_BYTES, change in 1..=255_u8) {
        let mut copy = superblock().encode();
        copy[at] ^= change;
        prop_assert!(Superblock::decode(&copy).is_err());
    }

    #[test]
    fn a_truncated_copy_is_absent(len in 0..SUPERBLOCK_BYTES) {
        let copy = superblock().encode();
        prop_assert_eq!(Superblock::decode(&copy[..len]), Err(CopyError::Absent));
    }

    #[test]
    fn any_field_is_read_without_panic(
        changes in prop::collection::vec((12..512_usize, any::<u8>()), 0..8),
    ) {
        let mut copy = superblock().encode();
        for (at, byte) in changes {
            copy[at] = byte;
        }
        if let Ok(read) = Superblock::decode(&sealed(copy)) {
            // What is believed is written as it was, but for features that are unknown.
            prop_assert!(read.has_unknown_features() || read.incompatible != 0
                || read.encode() == sealed(copy));
        }
    }
}
