//! Checkpoints of a state that changes meanwhile are bounded.

use super::bounds::volume;
use super::rig::{CHUNKS, limits};
use crate::format::codec::record_bytes;
use crate::format::record::{NONE, Numbers, Record, VolumeRecord};
use crate::map::{Emitted, State, Tolerance};

fn apply(state: &mut State, record: &Record<'_>) {
    state.apply(record, Tolerance::Strict).unwrap();
}

#[test]
fn what_moves_ahead_of_a_checkpoint_is_told_once() {
    let extents = 4;
    let mut state = State::new(limits(extents));
    state.recovered().unwrap();
    let record = VolumeRecord {
        bytes: u64::from(CHUNKS) * 4096 * 1000,
        ..volume(1, 0, 0)
    };
    apply(&mut state, &Record::Volume(record));
    let map = |logical, physical| Record::MapPart {
        volume: 1,
        born: 0,
        logical,
        physical,
        bitmap: &[1],
    };
    for physical in 0..extents {
        apply(&mut state, &map(physical, physical));
    }
    let mut cursor = state.begin_checkpoint();
    let (mut told, mut bytes) = (0, 0);
    // Room for one version at a time; what was told moves to where the checkpoint comes yet.
    for step in 0.. {
        let emitted = state.emit(&mut cursor, 340, &mut |record| {
            bytes += record_bytes(record).unwrap() as u64;
            told += usize::from(matches!(record, Record::MapPart { .. }));
        });
        if emitted == Emitted::All {
            break;
        }
        for physical in 0..extents {
            let (_, logical, born) = state.owner(physical).unwrap();
            if logical < 900 {
                let count = 1;
                apply(
                    &mut state,
                    &Record::Unmap {
                        volume: 1,
                        born,
                        logical,
                        count,
                    },
                );
                apply(&mut state, &map(100 + step * extents + physical, physical));
            }
        }
    }
    assert!(
        told <= extents as usize,
        "{told} versions of {extents} extents"
    );
    assert!(bytes <= state.limits().checkpoint_bytes_max());
}

#[test]
fn no_state_is_larger_than_the_bound() {
    let mut state = State::new(limits(64));
    state.recovered().unwrap();
    // As far apart as can be, so that no record tells of two.
    let record = volume(1, 400, 0);
    apply(&mut state, &Record::Volume(record));
    for physical in 0..64 {
        let logical = physical * 4;
        let (volume, born) = (1, 0);
        let bitmap = &[1][..];
        apply(
            &mut state,
            &Record::MapPart {
                volume,
                born,
                logical,
                physical,
                bitmap,
            },
        );
    }
    for hole in 0..state.holes_left() {
        let physical = Numbers::Native(&[NONE]);
        let (volume, born, logical) = (1, 0, 400 + hole * 2);
        apply(
            &mut state,
            &Record::Map {
                volume,
                born,
                logical,
                physical,
            },
        );
    }
    for physical in 0..64 {
        apply(
            &mut state,
            &Record::Activate {
                physical: Numbers::Native(&[physical]),
            },
        );
    }
    for number in 2..=state.objects_left() + 1 {
        let name = "n".repeat(255);
        let record = VolumeRecord {
            name: &name,
            ..volume(number, 1, 0)
        };
        apply(&mut state, &Record::Volume(record));
    }
    let mut bytes = 0;
    let mut cursor = state.begin_checkpoint();
    let emitted = state.emit(&mut cursor, 1 << 20, &mut |record| {
        bytes += record_bytes(record).unwrap() as u64;
    });
    assert_eq!(emitted, Emitted::All);
    let max = state.limits().checkpoint_bytes_max();
    assert!(bytes <= max, "{bytes} of {max}");
    assert!(bytes > max * 3 / 4, "{bytes} of {max}");
}
