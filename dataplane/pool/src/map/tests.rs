//! The state against an oracle that knows contents only, and a rig that does what an engine does.

mod bounds;
mod damage;
mod emitting;
mod rig;

use proptest::prelude::*;

use rig::{Op, Rig};

fn op() -> impl Strategy<Value = Op> {
    let volume = || 0..4usize;
    let logical = || 0..6u32;
    prop_oneof![
        2 => (1..6u32, any::<bool>()).prop_map(|(extents, thick)| Op::Create { extents, thick }),
        14 => (volume(), logical(), 0..8u32, 1..9u32, any::<bool>()).prop_map(
            |(volume, logical, first, count, unclean)| Op::Write {
                volume, logical, first, count, unclean,
            }
        ),
        4 => (volume(), logical(), 0..8u32, 1..9u32).prop_map(
            |(volume, logical, first, count)| Op::Deallocate { volume, logical, first, count }
        ),
        2 => (volume(), logical()).prop_map(
            |(volume, logical)| Op::Deallocate { volume, logical, first: 0, count: 8 }
        ),
        5 => volume().prop_map(Op::Snapshot),
        2 => (volume(), 0..4usize).prop_map(|(volume, at)| Op::DeleteSnapshot { volume, at }),
        2 => (volume(), 0..4usize).prop_map(|(volume, at)| Op::Clone { volume, at }),
        1 => (volume(), any::<bool>()).prop_map(
            |(volume, at_once)| Op::DeleteVolume { volume, at_once }
        ),
        1 => (volume(), 1..3u32).prop_map(|(volume, extents)| Op::Grow { volume, extents }),
        1 => (volume(), 1..4u32).prop_map(|(volume, extents)| Op::Shrink { volume, extents }),
        2 => (1..8u32).prop_map(Op::Clean),
        1 => (volume(), 0..3u32, 0..9usize).prop_map(
            |(volume, kind, bytes)| Op::Attribute { volume, kind, bytes }
        ),
        1 => (0..40u32, any::<bool>()).prop_map(
            |(physical, is_active)| Op::Activity { physical, is_active }
        ),
        1 => Just(Op::Checkpoint),
        6 => (0..400usize).prop_map(Op::Emit),
        3 => (1..5u32).prop_map(Op::Collect),
        1 => Just(Op::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// What every volume and snapshot reads is what was written; nothing is told that is zero and
    /// is not; a checkpoint written in steps, with what was applied since it began replayed over
    /// it, is the state, whenever the pool is opened again; and when all is collected, what somebody reads is allocated, and nothing
    /// else.
    #[test]
    fn state_is_as_the_oracle_and_survives_checkpoints(
        ops in prop::collection::vec(op(), 1..120),
    ) {
        let mut rig = Rig::new(40);
        for op in &ops {
            rig.run(op);
        }
        rig.verify();
        rig.finish_checkpoint();
        rig.run(&Op::Checkpoint);
        rig.finish_checkpoint();
        rig.verify_space();
        rig.verify();
        rig.run(&Op::Checkpoint);
        rig.finish_checkpoint();
    }
}
