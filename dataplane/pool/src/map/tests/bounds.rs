//! How much memory a state takes, and how long chains are looked through.

use std::collections::BTreeMap;

use uuid::Uuid;

use crate::format::record::{
    Checksums, Durability, NONE, Numbers, Record, SnapshotRecord, VolumeRecord,
};
use crate::map::tree::Tree;
use crate::map::versions::Link;
use crate::map::{Collector, HeadEntry, LOGICAL_MAX, Limits, Reader, Run, State, Step, Tolerance};

const MIB: u64 = 1 << 20;
const TIB_EXTENTS: u32 = 1 << 20;

fn limits(extents: u32) -> Limits {
    Limits {
        extents,
        extent_bytes: 1 << 20,
        chunk_bytes: 4096,
        objects_max: 20_000,
        attribute_bytes_max: 1 << 20,
    }
}

fn empty(extents: u32) -> State {
    let mut state = State::new(limits(extents));
    state.recovered().unwrap();
    state
}

fn apply(state: &mut State, record: &Record<'_>) {
    state.apply(record, Tolerance::Strict).unwrap();
}

pub(super) fn volume(number: u32, extents: u64, snapshots_taken: u32) -> VolumeRecord<'static> {
    VolumeRecord {
        volume: number,
        uuid: Uuid::from_u128(number.into()),
        bytes: extents * MIB,
        block_bytes: 4096,
        snapshots_taken,
        base: None,
        is_thick: false,
        is_deleted: false,
        is_being_made: false,
        durability: Durability::Media,
        checksums: Checksums::Off,
        created: 0,
        name: "a volume",
    }
}

fn snapshot(state: &mut State, of: u32, extents: u64, number: u32) {
    apply(state, &Record::Volume(volume(of, extents, number)));
    apply(
        state,
        &Record::Snapshot(SnapshotRecord {
            volume: of,
            number,
            uuid: Uuid::from_u128(number.into()),
            bytes: extents * MIB,
            is_deleted: false,
            created: 0,
            name: "",
        }),
    );
}

fn part(state: &mut State, born: u32, logical: u32, physical: u32, chunk: u32) {
    part_of(state, 1, born, logical, physical, chunk);
}

fn part_of(state: &mut State, volume: u32, born: u32, logical: u32, physical: u32, chunk: u32) {
    let mut bitmap = [0; 32];
    bitmap[(chunk / 8) as usize] = 1 << (chunk % 8);
    apply(
        state,
        &Record::MapPart {
            volume,
            born,
            logical,
            physical,
            bitmap: &bitmap,
        },
    );
}

#[test]
fn a_tebibyte_of_extents_filled_in_part_takes_less_than_64_mib() {
    let mut state = empty(TIB_EXTENTS);
    let fixed = state.memory_bytes();
    assert!(fixed < 23 * MIB, "{fixed} bytes before anything is written");
    apply(
        &mut state,
        &Record::Volume(volume(1, TIB_EXTENTS.into(), 0)),
    );
    for physical in 0..TIB_EXTENTS {
        // Neither physical nor logical ones follow each other.
        let logical = physical.wrapping_mul(77_777) % TIB_EXTENTS;
        part(&mut state, 0, logical, physical, logical % 256);
    }
    assert_eq!(state.extents().used, TIB_EXTENTS);
    // Holes as many as there may be, on top of versions of a snapshot.
    snapshot(&mut state, 1, TIB_EXTENTS.into(), 1);
    for logical in 0..state.holes_left() {
        let physical = Numbers::Native(&[NONE]);
        apply(
            &mut state,
            &Record::Map {
                volume: 1,
                born: 1,
                logical: logical * 7,
                physical,
            },
        );
    }
    assert_eq!(state.holes_left(), 0);
    let bytes = state.memory_bytes();
    assert!(bytes <= 62 * MIB, "{bytes} bytes");
}

/// Each extent alone: nothing of a leaf can be shared.
#[test]
fn a_tebibyte_of_extents_far_from_one_another_takes_less_than_64_mib() {
    const STEP: u32 = 100;
    let mut state = empty(TIB_EXTENTS);
    let volumes = TIB_EXTENTS.div_ceil(LOGICAL_MAX / STEP);
    for number in 1..=volumes {
        let record = volume(number, LOGICAL_MAX.into(), 0);
        apply(&mut state, &Record::Volume(record));
    }
    let each = LOGICAL_MAX / STEP;
    for physical in 0..TIB_EXTENTS {
        let place = physical % each * STEP;
        let chunk = physical % 256;
        part_of(&mut state, 1 + physical / each, 0, place, physical, chunk);
    }
    assert_eq!(state.extents().used, TIB_EXTENTS);
    let bytes = state.memory_bytes();
    assert!(bytes <= 64 * MIB, "{bytes} bytes");
    assert_eq!(state.check(), Vec::<String>::new());
}

#[test]
fn chains_of_a_thousand_versions_stay_within_the_same_memory_and_are_found() {
    const CHAIN: u32 = 1000;
    let mut state = empty(TIB_EXTENTS);
    let extents = TIB_EXTENTS / CHAIN;
    apply(&mut state, &Record::Volume(volume(1, extents.into(), 0)));
    for born in 0..CHAIN {
        for logical in 0..extents {
            part(
                &mut state,
                born,
                logical,
                born * extents + logical,
                born % 256,
            );
        }
        snapshot(&mut state, 1, extents.into(), born + 1);
    }
    let bytes = state.memory_bytes();
    assert!(bytes <= 62 * MIB, "{bytes} bytes");
    let slot = state.slot(1).unwrap();
    let mut runs = Vec::new();
    for number in 1..=CHAIN {
        let chunk = (number - 1) % 256;
        state.resolve(
            Reader::Snapshot(slot, number),
            17,
            chunk..chunk + 1,
            &mut runs,
        );
        let physical = Some((number - 1) * extents + 17);
        assert_eq!(
            runs,
            [Run {
                chunks: chunk..chunk + 1,
                physical
            }]
        );
    }
    assert_eq!(state.check(), Vec::<String>::new());
}

#[test]
fn a_version_deep_in_a_chain_is_found_without_walking_to_it() {
    let mut state = empty(2000);
    apply(&mut state, &Record::Volume(volume(1, 1, 0)));
    for born in 0..2000 {
        let physical = Numbers::Native(&[born]);
        apply(
            &mut state,
            &Record::Map {
                volume: 1,
                born,
                logical: 0,
                physical: Numbers::Native(&[NONE]),
            },
        );
        apply(
            &mut state,
            &Record::Map {
                volume: 1,
                born,
                logical: 0,
                physical,
            },
        );
        snapshot(&mut state, 1, 1, born + 1);
    }
    let key = (0, 0);
    let long = &state.chains.long()[&key];
    assert_eq!(long.len(), 2000);
    let newest = state.volumes.at(0).unwrap().tree.newest(0);
    for born in 0..2000 {
        let (_, found) = state.chains.seek(newest, key, born);
        assert_eq!(found.physical(), Some(born));
    }
}

#[test]
fn ten_thousand_volumes_take_little() {
    let mut state = empty(1 << 15);
    for number in 1..=10_000 {
        apply(&mut state, &Record::Volume(volume(number, 1 << 20, 0)));
        let first = (number - 1) * 3;
        let physical = [first, first + 1, first + 2];
        let physical = Numbers::Native(&physical);
        apply(
            &mut state,
            &Record::Map {
                volume: number,
                born: 0,
                logical: 1000,
                physical,
            },
        );
    }
    let bytes = state.memory_bytes();
    assert!(bytes <= 24 * MIB, "{bytes} bytes");
    for number in 1..=10_000 {
        let slot = state.slot(number).unwrap();
        let physical = (number - 1) * 3 + 1;
        let entry = state.head(slot, 1001);
        assert_eq!(
            entry,
            HeadEntry::Whole {
                physical,
                is_own: true
            }
        );
    }
}

#[test]
fn a_thick_volume_keeps_its_right_to_extents() {
    let mut state = empty(100);
    let thick = VolumeRecord {
        is_thick: true,
        ..volume(1, 40, 0)
    };
    apply(&mut state, &Record::Volume(thick));
    assert_eq!(state.extents().available(), 60);
    for logical in 0..40 {
        let physical = Numbers::Native(&[logical]);
        apply(
            &mut state,
            &Record::Map {
                volume: 1,
                born: 0,
                logical,
                physical,
            },
        );
    }
    assert_eq!(
        (state.extents().promised, state.extents().available()),
        (0, 60)
    );
    let thick = VolumeRecord {
        snapshots_taken: 1,
        ..thick
    };
    apply(&mut state, &Record::Volume(thick));
    let record = SnapshotRecord {
        volume: 1,
        number: 1,
        uuid: Uuid::nil(),
        bytes: 40 * MIB,
        is_deleted: false,
        created: 0,
        name: "",
    };
    apply(&mut state, &Record::Snapshot(record));
    // Everything that is written from now on needs an extent again.
    assert_eq!(
        (state.extents().promised, state.extents().available()),
        (40, 20)
    );
    apply(
        &mut state,
        &Record::SnapshotGone {
            volume: 1,
            number: 1,
        },
    );
    assert_eq!(
        (state.extents().promised, state.extents().available()),
        (0, 60)
    );
}

#[test]
fn versions_are_merged_by_copying_whatever_is_less() {
    let mut state = empty(10);
    apply(&mut state, &Record::Volume(volume(1, 1, 0)));
    let physical = Numbers::Native(&[3]);
    apply(
        &mut state,
        &Record::Map {
            volume: 1,
            born: 0,
            logical: 0,
            physical,
        },
    );
    snapshot(&mut state, 1, 1, 1);
    part(&mut state, 1, 0, 4, 200);
    apply(
        &mut state,
        &Record::SnapshotGone {
            volume: 1,
            number: 1,
        },
    );
    let mut collector = Collector::new();
    let Step::Merge(merge) = collector.step(&mut state) else {
        panic!("nothing to merge");
    };
    // One chunk goes into the older extent, and not 255 into the newer one.
    assert_eq!((merge.from, merge.into), (4, 3));
    assert_eq!(
        merge
            .chunks
            .iter()
            .map(|byte| byte.count_ones())
            .sum::<u32>(),
        1
    );
    merge
        .records()
        .iter()
        .for_each(|record| apply(&mut state, record));
    let slot = state.slot(1).unwrap();
    let whole = HeadEntry::Whole {
        physical: 3,
        is_own: true,
    };
    assert_eq!(state.head(slot, 0), whole);
    assert_eq!(state.next_freed(), Some(4));
    assert_eq!(collector.step(&mut state), Step::Looked);
    assert_eq!(collector.step(&mut state), Step::Idle);
}

#[test]
fn large_volumes_are_given_back_in_small_steps() {
    let extents = 1 << 16;
    let mut state = empty(extents);
    let made = volume(1, extents.into(), 0);
    apply(&mut state, &Record::Volume(made));
    let physical: Vec<u32> = (0..extents).collect();
    let map = Record::Map {
        volume: 1,
        born: 0,
        logical: 0,
        physical: Numbers::Native(&physical),
    };
    apply(&mut state, &map);
    let mut collector = Collector::new();
    for is_deleted in [false, true] {
        let bytes = if is_deleted {
            made.bytes
        } else {
            made.bytes / 2
        };
        let record = VolumeRecord {
            bytes,
            is_deleted,
            ..made
        };
        apply(&mut state, &Record::Volume(record));
        let before = state.reclaimable();
        assert_eq!(before, extents / 2);
        let mut steps = 0;
        loop {
            match collector.step(&mut state) {
                Step::Idle => break,
                Step::Looked => {}
                Step::Merge(merge) => panic!("{merge:?}"),
                Step::Commit(garbage) => {
                    steps += 1;
                    let used = state.extents().used;
                    for record in garbage.records() {
                        apply(&mut state, &record);
                    }
                    assert!(used - state.extents().used <= 1024);
                }
            }
        }
        assert_eq!(state.reclaimable(), 0);
        assert!(steps <= 1 + (extents / 2).div_ceil(1024), "{steps} steps");
    }
    assert_eq!(state.extents().used, 0);
    assert_eq!(state.volumes().count(), 0);
}

#[test]
fn clone_of_a_thousand_clones_finds_its_extents_as_if_there_were_a_few() {
    const CLONES: u32 = 1000;
    let mut state = empty(4096);
    apply(&mut state, &Record::Volume(volume(1, 1100, 0)));
    for number in 1..=CLONES {
        // Each writes an extent of its own, and all one that they share.
        for (logical, physical) in [(number, number), (0, CLONES + number)] {
            let physical = Numbers::Native(&[physical]);
            apply(
                &mut state,
                &Record::Map {
                    volume: number,
                    born: 0,
                    logical,
                    physical,
                },
            );
        }
        let base = number.checked_sub(2).map(|_| (number - 1, 1));
        let taken = VolumeRecord {
            base,
            ..volume(number, 1100, 1)
        };
        apply(&mut state, &Record::Volume(taken));
        apply(
            &mut state,
            &Record::Snapshot(SnapshotRecord {
                volume: number,
                number: 1,
                uuid: Uuid::from_u128(1),
                bytes: 1100 * MIB,
                is_deleted: false,
                created: 0,
                name: "",
            }),
        );
        let clone = VolumeRecord {
            base: Some((number, 1)),
            ..volume(number + 1, 1100, 0)
        };
        apply(&mut state, &Record::Volume(clone));
    }
    let slot = state.slot(CLONES + 1).unwrap();
    assert_eq!(state.base_depth(slot), CLONES);
    let mut runs = Vec::new();
    let mut read_all = |state: &State| {
        let before = state.shortcuts.steps.get();
        for logical in 0..1100 {
            state.resolve(Reader::Head(slot), logical, 0..256, &mut runs);
            let expected = match logical {
                0 => Some(2 * CLONES),
                1..=CLONES => Some(logical),
                _ => None,
            };
            assert_eq!(runs[0].physical, expected, "extent {logical}");
        }
        state.shortcuts.steps.get() - before
    };
    let first = read_all(&state);
    assert!(first > 1100 * 400, "{first} bases looked at");
    // From then on one or two for each.
    let then = read_all(&state);
    assert!(then < 1110, "{then} bases looked at");
    assert!(state.memory_bytes() < 8 * MIB);
}

#[test]
fn what_a_base_got_after_its_snapshot_is_not_looked_at_when_a_clone_grows() {
    let mut state = empty(4096);
    apply(&mut state, &Record::Volume(volume(1, 10, 0)));
    snapshot(&mut state, 1, 10, 1);
    apply(&mut state, &Record::Volume(volume(1, 3000, 1)));
    let physical: Vec<u32> = (5..3000).collect();
    apply(
        &mut state,
        &Record::Map {
            volume: 1,
            born: 1,
            logical: 5,
            physical: Numbers::Native(&physical),
        },
    );
    let clone = VolumeRecord {
        base: Some((1, 1)),
        ..volume(2, 10, 0)
    };
    apply(&mut state, &Record::Volume(clone));
    let slot = state.slot(2).unwrap();
    let before = state.shortcuts.steps.get();
    assert_eq!(state.next_shown(slot, 0..3000), None);
    let steps = state.shortcuts.steps.get() - before;
    assert!((1..=5).contains(&steps), "{steps} bases looked at");
    let own = Record::Map {
        volume: 2,
        born: 0,
        logical: 7,
        physical: Numbers::Native(&[0]),
    };
    apply(&mut state, &own);
    assert_eq!(state.next_shown(slot, 0..7), None);
    assert_eq!(state.next_shown(slot, 0..8), Some(7));
}

#[test]
fn volume_of_which_only_the_far_end_is_written_takes_little_memory() {
    const VOLUMES: u32 = 100;
    let mut state = empty(4096);
    let before = state.memory_bytes();
    for number in 1..=VOLUMES {
        let record = volume(number, LOGICAL_MAX.into(), 0);
        apply(&mut state, &Record::Volume(record));
        apply(
            &mut state,
            &Record::Map {
                volume: number,
                born: 0,
                logical: LOGICAL_MAX - 1,
                physical: Numbers::Native(&[number]),
            },
        );
    }
    let each = (state.memory_bytes() - before) / u64::from(VOLUMES);
    assert!(each < 100 << 10, "{each} bytes for each volume");
}

#[test]
fn tree_has_what_was_set_wherever_that_is() {
    let mut tree = Tree::default();
    let mut model = BTreeMap::new();
    let mut random = 1_u64;
    for round in 0..4000_u32 {
        random = random.wrapping_mul(6_364_136_223_846_793_005) + 1;
        // Near one another, in one node, and anywhere.
        let spread = [300, 30_000, u64::from(LOGICAL_MAX)][(round % 3) as usize];
        let logical = u32::try_from((random >> 33) % spread).unwrap();
        if round % 7 < 4 {
            tree.set_newest(logical, Link::to(round));
            model.insert(logical, round);
        } else {
            let taken = model.range(logical..).next().map(|(at, _)| *at);
            tree.set_newest(taken.unwrap_or(logical), Link::NONE);
            taken.and_then(|taken| model.remove(&taken));
        }
        let next = model.range(logical..).next().map(|(at, _)| *at);
        assert_eq!(tree.next(logical), next, "round {round}");
        let newest = model.get(&logical).copied();
        assert_eq!(tree.newest(logical).physical(), newest, "round {round}");
    }
    let all = std::iter::successors(tree.next(0), |last| tree.next(last + 1));
    assert!(all.eq(model.keys().copied()));
}

#[test]
fn tree_that_becomes_dense_and_sparse_again_keeps_what_it_has() {
    const MANY: u32 = 40_000;
    let mut tree = Tree::default();
    let listed = |tree: &Tree| -> Vec<u32> {
        std::iter::successors(tree.next(0), |last| tree.next(last + 1)).collect()
    };
    // One far from the other, then those between, in an order that splits every leaf.
    for step in [100, 7, 1] {
        for logical in (0..MANY).step_by(step) {
            tree.set_newest(logical, Link::to(logical));
        }
        let expected: Vec<u32> = (0..MANY)
            .filter(|logical| {
                [100, 7, 1]
                    .iter()
                    .any(|it| *it >= step && logical % u32::try_from(*it).unwrap() == 0)
            })
            .collect();
        assert_eq!(listed(&tree), expected, "every {step}");
    }
    let dense = tree.memory_bytes();
    assert!(dense < 5 * u64::from(MANY), "{dense} bytes");
    for logical in (0..MANY).filter(|logical| logical % 100 != 0) {
        tree.set_newest(logical, Link::NONE);
    }
    assert!(listed(&tree).into_iter().eq((0..MANY).step_by(100)));
    let sparse = tree.memory_bytes();
    assert!(sparse < 8 * u64::from(MANY / 100) + 512, "{sparse} bytes");
    for logical in (0..MANY).step_by(100) {
        assert_eq!(tree.newest(logical).physical(), Some(logical));
        tree.set_newest(logical, Link::NONE);
    }
    assert_eq!(tree.next(0), None);
    assert!(tree.memory_bytes() <= 96, "{} bytes", tree.memory_bytes());
}
