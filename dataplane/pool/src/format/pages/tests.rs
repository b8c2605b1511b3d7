use proptest::prelude::*;

use super::*;

const POOL: Uuid = Uuid::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);

fn page() -> [u8; PAGE_BYTES] {
    let mut page = [0; PAGE_BYTES];
    for index in 0..PAGE_SLOTS {
        set_slot(&mut page, index, index * 7);
    }
    seal_page(&mut page, POOL, 5);
    page
}

#[test]
fn a_page_is_written_as_documented() {
    let page = page();
    assert_eq!(page[..4], *b"BWLX");
    assert_eq!(page[8..24], *POOL.as_bytes());
    assert_eq!(page[24..32], 5_u64.to_le_bytes());
    assert_eq!(page[36..40], [7, 0, 0, 0]);
    assert_eq!(page[4092..], (1015_u32 * 7).to_le_bytes());
    assert_eq!(verify_page(&page, POOL, 5), PageState::Valid);
    assert_eq!(slot(&page, 1015), 1015 * 7);
    assert_eq!(slot(&page, 1016), 0);
}

#[test]
fn a_page_elsewhere_is_damaged_and_of_another_pool_absent() {
    let page = page();
    assert_eq!(verify_page(&page, POOL, 6), PageState::Damaged);
    assert_eq!(verify_page(&page, Uuid::nil(), 5), PageState::Absent);
    assert_eq!(verify_page(&[0; PAGE_BYTES], POOL, 5), PageState::Absent);
}

#[test]
fn a_slot_is_never_zero_for_a_chunk_whose_checksum_is_known() {
    assert_eq!(slot_of(0), 1);
    assert_eq!(slot_of(7), 7);
    assert_ne!(slot_of_chunk(&[0; 4096]), 0);
}

#[test]
fn every_chunk_has_a_slot_of_its_own_in_as_few_pages_as_that_takes() {
    for (extent, extents, pages) in [
        (16 << 10, 1000, 4),
        (1 << 20, 10, 4),
        (2 << 20, 3, 3),
        (4 << 20, 3, 6),
        (16 << 20, 2, 16),
    ] {
        let map = SlotMap::new(extent, extents);
        assert_eq!(map.pages(), pages, "{extent}");
        let mut seen = std::collections::HashSet::new();
        for physical in 0..extents {
            for chunk in 0..extent / CHUNK_BYTES {
                let place = map.place(physical, chunk).unwrap();
                let group = map.group_of(physical);
                assert!(map.group_extents(group).contains(&physical));
                let (first, count) = map.group_pages(group);
                assert!((first..first + u64::from(count)).contains(&place.page));
                assert!(map.page_extents(place.page).contains(&physical));
                let within = map.slot_in_group(physical, chunk);
                assert!(within < map.group_slots());
                assert_eq!(place.page, first + u64::from(within / map.page_slots()));
                assert_eq!(place.slot, within % map.page_slots());
                assert!(place.page < pages && place.slot < PAGE_SLOTS);
                assert!(seen.insert((place.page, place.slot)));
            }
        }
        assert_eq!(map.place(extents, 0), None);
        assert_eq!(map.place(0, extent / CHUNK_BYTES), None);
    }
}

proptest! {
    #[test]
    fn a_changed_byte_of_a_page_is_damage(at in 0..PAGE_BYTES, change in 1..=255_u8) {
        let mut page = page();
        page[at] ^= change;
        prop_assert_eq!(verify_page(&page, POOL, 5), PageState::Damaged);
    }
}
