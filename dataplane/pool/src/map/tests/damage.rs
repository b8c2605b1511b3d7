//! Records that do not fit: refused, and never worse.

use proptest::prelude::*;
use uuid::Uuid;

use super::bounds::volume;
use super::rig::limits;
use crate::format::record::{NONE, Numbers, Record, SnapshotRecord, VolumeRecord};
use crate::map::{Damage, State, Tolerance};

fn snapshot(volume: u32, number: u32) -> Record<'static> {
    Record::Snapshot(SnapshotRecord {
        volume,
        number,
        uuid: Uuid::nil(),
        bytes: 1 << 15,
        is_deleted: false,
        created: 0,
        name: "",
    })
}

fn map(volume: u32, born: u32, logical: u32, physical: &[u32]) -> Record<'_> {
    let physical = Numbers::Native(physical);
    Record::Map {
        volume,
        born,
        logical,
        physical,
    }
}

/// Volume 1 of 32 extents has a snapshot, volume 2 is a clone of it. Extents 0 to 3 are mapped, 4
/// and 5 are clean, 6 was reserved.
fn state() -> State {
    let mut state = State::new(limits(16));
    state.recovered().unwrap();
    let base = Some((1, 1));
    for record in [
        Record::Volume(volume(1, 1, 0)),
        map(1, 0, 0, &[0, 1, 2, 3]),
        Record::Volume(volume(1, 1, 1)),
        snapshot(1, 1),
        Record::Volume(VolumeRecord {
            base,
            ..volume(2, 1, 0)
        }),
        Record::Clean {
            physical: 4,
            count: 3,
        },
        Record::Reserve {
            physical: 6,
            count: 1,
        },
    ] {
        state.apply(&record, Tolerance::Strict).unwrap();
    }
    state
}

/// The record is refused, and that is told in these words.
fn check(record: &Record<'_>, told: &str) {
    let refused = state().apply(record, Tolerance::Strict);
    let damage = refused.expect_err("it was not refused");
    assert_eq!(damage.to_string(), told, "{record:?}");
}

#[test]
fn versions_that_do_not_fit_are_refused() {
    check(&map(7, 0, 0, &[9]), "volume 7 does not exist");
    let told = "version of extent 0 of volume 1 is born after 2 snapshots";
    check(&map(1, 2, 0, &[9]), told);
    let told = "extents 31 to 32 of volume 1 are beyond its end";
    check(&map(1, 1, 31, &[9, 10]), told);
    let told = "1 physical extents from 16 on are beyond the end of the pool";
    check(&map(1, 1, 0, &[16]), told);
    let told = "physical extent 2 belongs to extent 2 of volume 1 already";
    check(&map(1, 1, 9, &[2]), told);
    check(&map(2, 0, 2, &[2]), told);
    let told = "physical extent 9 belongs to extent 0 of volume 1 already";
    check(&map(1, 1, 0, &[9, 9]), told);
    let told = "physical extent 4 is mapped, but was not reserved before";
    check(&map(1, 1, 0, &[4]), told);
    let part = Record::MapPart {
        volume: 1,
        born: 1,
        logical: 5,
        physical: 9,
        bitmap: &[1, 0],
    };
    check(&part, "bitmap of extent 5 of volume 1 is not one");
}

#[test]
fn volumes_and_snapshots_that_do_not_fit_are_refused() {
    let gone = |volume, number| Record::SnapshotGone { volume, number };
    let needed = "snapshot 1 of volume 1 is gone, although a clone needs it";
    check(&gone(1, 1), needed);
    check(&Record::VolumeGone { volume: 1 }, needed);
    check(&gone(2, 1), "volume 2 has no snapshot 1");
    let told = "snapshot 2 of volume 1, of which 1 were taken";
    check(&snapshot(1, 2), told);
    let told = "volume 1 has had 1 snapshots, and now 0";
    check(&Record::Volume(volume(1, 1, 0)), told);
    let told = "volume 0 is new, but numbers below 3 were used before";
    check(&Record::Volume(volume(0, 1, 0)), told);
    let mut record = volume(3, 1, 0);
    record.base = Some((2, 1));
    let told = "volume 3 is a clone of snapshot 1 of volume 2, which is not there or not older";
    check(&Record::Volume(record), told);
    let mut record = volume(3, 1, 0);
    record.bytes = 1 << 60;
    let told = "volume 3 has 1152921504606846976 bytes: too many extents, or not whole chunks";
    check(&Record::Volume(record), told);
    let attribute = Record::Attribute {
        volume: 1,
        kind: 1,
        bytes: &[0; 200],
    };
    check(&attribute, "there are more than 200 bytes of attributes");
}

#[test]
fn free_extents_that_are_not_are_refused() {
    let clean = |physical, count| Record::Clean { physical, count };
    let told = "physical extent 3 belongs to extent 3 of volume 1 already";
    check(&clean(3, 2), told);
    let reserve = Record::Reserve {
        physical: 3,
        count: 2,
    };
    check(&reserve, told);
    let told = "2 physical extents from 15 on are beyond the end of the pool";
    check(&clean(15, 2), told);
}

#[test]
fn an_extent_is_not_clean_before_its_readers_are_done() {
    let mut state = state();
    let unmap = Record::Unmap {
        volume: 1,
        born: 0,
        logical: 0,
        count: 1,
    };
    let clean = Record::Clean {
        physical: 0,
        count: 1,
    };
    state.apply(&unmap, Tolerance::Strict).unwrap();
    let refused = Err(Damage::Quarantined { physical: 0 });
    assert_eq!(state.apply(&clean, Tolerance::Strict), refused);
    // Nobody was told of it yet, so nobody can know.
    state.release(0);
    assert_eq!(state.apply(&clean, Tolerance::Strict), refused);
    assert_eq!(state.next_freed(), Some(0));
    assert_eq!(state.next_freed(), None);
    state.release(0);
    assert_eq!(state.apply(&clean, Tolerance::Strict), Ok(()));
}

/// Any record, with numbers so small that they meet.
fn any_record() -> impl Strategy<Value = Raw> {
    (
        0..13u8,
        0..5u32,
        0..4u32,
        0..6u32,
        0..12u32,
        0..4u32,
        any::<u8>(),
    )
        .prop_map(|(kind, volume, born, logical, physical, count, bits)| Raw {
            kind,
            volume,
            born,
            logical,
            physical,
            count,
            bits,
        })
}

#[derive(Clone, Debug)]
struct Raw {
    kind: u8,
    volume: u32,
    born: u32,
    logical: u32,
    physical: u32,
    count: u32,
    bits: u8,
}

impl Raw {
    fn apply(&self, state: &mut State, tolerance: Tolerance) -> Result<(), Damage> {
        let Self {
            volume: number,
            born,
            logical,
            physical,
            count,
            bits,
            ..
        } = *self;
        let numbers = [physical, physical + 1, NONE, 3];
        let some = Numbers::Native(&numbers[..count as usize]);
        let bitmap = [bits];
        let base = (count > 1).then_some((number.saturating_sub(1), born));
        state.apply(
            &match self.kind {
                0 => Record::Volume(VolumeRecord {
                    base,
                    is_thick: bits & 1 != 0,
                    is_deleted: bits & 6 == 6,
                    bytes: u64::from(logical + 1) << 15,
                    ..volume(number, 0, born)
                }),
                1 => Record::VolumeGone { volume: number },
                2 => snapshot(number, born),
                3 => Record::SnapshotGone {
                    volume: number,
                    number: born,
                },
                4 | 5 => map(number, born, logical, &numbers[..count as usize]),
                6 => Record::MapPart {
                    volume: number,
                    born,
                    logical,
                    physical,
                    bitmap: &bitmap,
                },
                7 => Record::Unmap {
                    volume: number,
                    born,
                    logical,
                    count,
                },
                8 => Record::Clean { physical, count },
                9 => Record::Reserve { physical, count },
                10 => Record::Activate { physical: some },
                11 => Record::NextVolume { volume: number },
                _ => {
                    let bytes = &[7; 4][..count as usize];
                    Record::Attribute {
                        volume: number,
                        kind: born,
                        bytes,
                    }
                }
            },
            tolerance,
        )
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    /// Whatever a journal says that was made by nobody: it is refused, or the state is one that
    /// can be.
    #[test]
    fn any_records_are_refused_or_make_a_state_that_can_be(
        replayed in prop::collection::vec(any_record(), 0..60),
        strict in prop::collection::vec(any_record(), 0..60),
    ) {
        let mut state = State::new(limits(12));
        for record in &replayed {
            // What is refused is not in the pool; what follows meets a state that lacks it.
            let _ = record.apply(&mut state, Tolerance::Replay);
        }
        if state.recovered().is_ok() {
            prop_assert_eq!(state.check(), Vec::<String>::new());
            for record in &strict {
                if record.apply(&mut state, Tolerance::Strict).is_err() {
                    break;
                }
                prop_assert_eq!(state.check(), Vec::<String>::new(), "after {:?}", record);
            }
        }
    }
}

#[test]
fn volume_with_blocks_or_a_size_that_none_has_is_damage() {
    for tolerance in [Tolerance::Strict, Tolerance::Replay] {
        for block_bytes in [0, 1, 1024, 8192, u32::MAX] {
            let record = Record::Volume(VolumeRecord {
                block_bytes,
                ..volume(3, 1, 0)
            });
            let expected = Damage::Block {
                volume: 3,
                bytes: block_bytes,
            };
            assert_eq!(state().apply(&record, tolerance), Err(expected));
        }
        let bytes = 5000;
        let record = Record::Volume(VolumeRecord {
            bytes,
            ..volume(3, 1, 0)
        });
        let expected = Damage::Size { volume: 3, bytes };
        assert_eq!(state().apply(&record, tolerance), Err(expected));
    }
}
