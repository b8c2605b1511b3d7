use proptest::prelude::*;

use super::super::arbitrary::tiny_layout;
use super::*;

#[test]
fn a_small_pool_is_possible() {
    let layout = tiny_layout(512);
    assert_eq!(layout.check(), Ok(()));
    assert!(layout.extents > 100, "{layout:?}");
    assert_eq!(layout.extent_offset(0), Some(layout.data.offset));
    assert_eq!(layout.extent_offset(layout.extents), None);
    assert_eq!(layout.bitmap_bytes(), 1);
}

#[test]
fn a_large_pool_gives_little_away() {
    let options = LayoutOptions::default();
    for bytes in [64 << 30, 1 << 40, 16 << 40] {
        let layout = Layout::plan(bytes, 4096, &options).unwrap();
        assert_eq!(layout.check(), Ok(()));
        let overhead = bytes - layout.data.bytes;
        assert!(overhead < bytes / 100, "{overhead} of {bytes}");
    }
}

#[test]
fn what_is_not_possible_is_told() {
    let plan = |bytes, block, extent_bytes, journal_bytes| {
        let options = LayoutOptions {
            extent_bytes,
            journal_bytes,
            ..LayoutOptions::default()
        };
        Layout::plan(bytes, block, &options).unwrap_err()
    };
    assert_eq!(
        plan(1 << 30, 512, 3 << 20, None),
        LayoutError::Extent(3 << 20)
    );
    assert_eq!(
        plan(1 << 30, 512, 8 << 10, None),
        LayoutError::Extent(8 << 10)
    );
    assert_eq!(plan(1 << 30, 520, 1 << 20, None), LayoutError::Block(520));
    assert_eq!(
        plan(1 << 30, 512, 1 << 20, Some(1)),
        LayoutError::Journal(1)
    );
    assert!(
        matches!(plan(4 << 20, 512, 1 << 20, None), LayoutError::TooSmall { needed, .. } if needed > 4 << 20)
    );
    assert!(matches!(
        plan(0, 512, 1 << 20, None),
        LayoutError::TooSmall { .. }
    ));
}

proptest! {
    #[test]
    fn a_layout_fills_the_drive_and_is_believed_when_read(
        bytes in (4_u64 << 20)..(64 << 40),
        extent in 14..=24_u32,
        block in prop_oneof![Just(512_u32), Just(4096)],
        journal in prop::option::of((64_u64 << 10)..(8 << 20)),
        objects in prop::option::of(0..10_000_u32),
    ) {
        let options = LayoutOptions {
            extent_bytes: 1 << extent,
            journal_bytes: journal,
            objects_max: objects,
            attribute_bytes_max: None,
        };
        let Ok(layout) = Layout::plan(bytes, block, &options) else { return Ok(()) };
        prop_assert_eq!(layout.check(), Ok(()));
        // Nothing is left that one more extent would fit into, but for what it needs elsewhere.
        let left = bytes - layout.data.end().unwrap();
        prop_assert!(layout.extents > EXTENTS_MAX - 3 || left < (3 << extent) + (64 << 10), "{}", left);
        // The worst state is what the checkpoint has room for.
        let limits = layout.limits();
        prop_assert!(layout.checkpoints[0].bytes / 9 * 8 >= limits.checkpoint_bytes_max());
        prop_assert_eq!(limits.objects_max, objects.unwrap_or(limits.objects_max));
    }

    #[test]
    fn a_layout_with_a_changed_number_is_not_believed_or_harmless(
        which in 0..5_usize,
        change in any::<u64>(),
        bytes in any::<bool>(),
    ) {
        let mut layout = tiny_layout(4096);
        let [first, second] = &mut layout.checkpoints;
        let areas = [&mut layout.journal, first, second, &mut layout.checksums, &mut layout.data];
        let area = areas.into_iter().nth(which).unwrap();
        if bytes { area.bytes = change } else { area.offset = change }
        if layout.check().is_ok() {
            let end = layout.data.end().unwrap();
            prop_assert!(end <= layout.bytes);
            prop_assert!(layout.extent_offset(layout.extents - 1).unwrap() < end);
        }
    }
}
