use std::cell::RefCell;

use proptest::prelude::*;

use super::*;

fn pool(classes: &[(usize, usize)]) -> BufPool {
    let classes = classes
        .iter()
        .map(|&(bytes, count)| ClassConfig { bytes, count })
        .collect();
    BufPool::new(PoolConfig { classes }).unwrap()
}

fn used(pool: &BufPool) -> usize {
    pool.stats().classes.iter().map(|class| class.used).sum()
}

#[test]
fn buffers_are_aligned_disjoint_and_inside_the_region() {
    let pool = pool(&[(8192, 3), (4096, 5)]);
    let (base, len) = pool.region();
    let mut starts = Vec::new();
    let mut held = Vec::new();
    while let Some(buf) = pool.alloc(4096) {
        let offset = buf.as_ptr().addr() - base.addr();
        assert!(offset + 4096 <= len && offset.is_multiple_of(BUFFER_ALIGN));
        starts.push(offset);
        held.push(buf);
    }
    starts.sort_unstable();
    starts.dedup();
    assert_eq!(
        starts.len(),
        8,
        "both classes serve a small request, each buffer once"
    );
    assert_eq!(pool.stats().alloc_failures, 1);
}

#[test]
fn smallest_fitting_class_with_a_free_buffer_serves() {
    let pool = pool(&[(16384, 1), (4096, 1)]);
    let small = pool.alloc(1).unwrap();
    assert_eq!((small.len(), pool.stats().classes[0].used), (1, 1));
    let large = pool.alloc(4096).unwrap();
    assert_eq!(pool.stats().classes[1].used, 1);
    assert!(pool.alloc(1).is_none());
    drop(large);
    assert!(pool.alloc(16385).is_none());
    assert_eq!(pool.alloc(16384).unwrap().len(), 16384);
    assert!(pool.alloc(0).is_none());
    assert_eq!(pool.bytes_max_request(), 16384);
}

#[test]
fn free_and_total_bytes_are_those_of_whole_buffers() {
    let pool = pool(&[(4096, 2), (16 << 10, 1)]);
    assert_eq!(pool.total_bytes(), 24 << 10);
    let small = pool.alloc(1).unwrap();
    assert_eq!((small.buffer_bytes(), pool.free_bytes()), (4096, 20 << 10));
    assert_eq!(pool.free_of(0..=4096), 1);
    assert_eq!(pool.largest_free(16 << 10), Some(16 << 10));
    assert_eq!(pool.largest_free((16 << 10) - 1), Some(4096));
    assert_eq!(pool.largest_free(4095), None);
    assert_eq!(pool.free_of(4097..=usize::MAX), 1);
    let second = pool.alloc(1).unwrap();
    assert!(
        pool.alloc_within(1, 4096).is_none(),
        "the large one is for others"
    );
    let stand_in = pool.alloc(1).unwrap();
    assert_eq!(stand_in.buffer_bytes(), 16 << 10);
    drop((small, second, stand_in));
    assert_eq!(pool.free_bytes(), pool.total_bytes());
}

#[test]
fn last_view_returns_the_buffer() {
    let pool = pool(&[(4096, 1)]);
    let mut buf = pool.alloc(4096).unwrap();
    buf.as_mut().unwrap().fill(7);
    let mut tail = buf.slice(4000..4096);
    assert!(!buf.is_unique() && buf.as_mut().is_none() && tail.as_mut().is_none());
    drop(buf);
    assert_eq!((used(&pool), tail.len()), (1, 96));
    tail.as_mut().unwrap()[0] = 9;
    assert_eq!((tail[0], tail[1]), (9, 7));
    drop(tail);
    assert_eq!(used(&pool), 0);
    assert!(pool.alloc(1).is_some());
}

#[test]
fn memory_outlives_the_pool_while_a_view_exists() {
    let first = pool(&[(4096, 2)]);
    let mut buf = first.alloc(100).unwrap();
    buf.as_mut().unwrap().fill(3);
    let view = buf.slice(10..20);
    drop((first, buf));
    assert_eq!(&*view, &[3; 10]);
}

#[test]
fn rewind_takes_back_what_advance_dropped_and_nothing_more() {
    let pool = pool(&[(4096, 2)]);
    let mut buf = pool.alloc(4096).unwrap();
    buf.as_mut().unwrap()[512] = 1;
    buf.advance(512);
    assert_eq!((buf.len(), buf[0]), (3584, 1));
    buf.advance(3584);
    assert!(buf.is_empty() && buf.as_slice().is_empty());
    buf.rewind(4096);
    assert_eq!((buf.len(), buf[512]), (4096, 1));
    buf.truncate(usize::MAX);
    assert_eq!(buf.len(), 4096);
}

#[test]
#[should_panic(expected = "rewound past the start")]
fn rewind_cannot_reach_the_neighbour() {
    let pool = pool(&[(4096, 2)]);
    let first = pool.alloc(4096).unwrap();
    let mut second = pool.alloc(4096).unwrap();
    let _keep = first;
    second.rewind(1);
}

#[test]
#[should_panic(expected = "advanced past the end")]
fn advance_cannot_leave_the_view() {
    let mut buf = pool(&[(4096, 1)]).alloc(10).unwrap();
    buf.advance(11);
}

#[test]
#[should_panic(expected = "slice outside the view")]
fn slice_cannot_leave_the_view() {
    let _ = pool(&[(4096, 1)]).alloc(10).unwrap().slice(5..11);
}

#[test]
#[should_panic(expected = "a shared buffer was to be written to")]
fn shared_buffer_gives_no_mutable_pointer() {
    let mut buf = pool(&[(4096, 1)]).alloc(10).unwrap();
    let _other = buf.clone();
    let _ = buf.as_mut_ptr();
}

#[test]
fn senseless_pools_are_refused() {
    let refused = |classes: &[(usize, usize)]| {
        let classes = classes
            .iter()
            .map(|&(bytes, count)| ClassConfig { bytes, count })
            .collect();
        BufPool::new(PoolConfig { classes }).unwrap_err().kind()
    };
    let invalid = io::ErrorKind::InvalidInput;
    assert_eq!(refused(&[]), invalid);
    assert_eq!(refused(&[(4096, 0)]), invalid);
    assert_eq!(refused(&[(4096, 1), (0, 3)]), invalid);
    assert_eq!(refused(&[(4097, 1)]), invalid);
    assert_eq!(refused(&[(4096, usize::MAX)]), invalid);
    assert_eq!(refused(&[(1 << 32, 1)]), invalid);
}

#[test]
fn budget_is_kept_and_every_class_exists() {
    for budget in [0, 1 << 20, 64 << 20] {
        let config = PoolConfig::with_budget(budget);
        let total: usize = config
            .classes
            .iter()
            .map(|class| class.bytes * class.count)
            .sum();
        assert!(config.classes.iter().all(|class| class.count >= 2));
        assert!(
            total <= budget.max(2 * ((1 << 20) + (128 << 10) + (16 << 10) + (4 << 10))) * 11 / 10
        );
        BufPool::new(config).unwrap();
    }
}

#[test]
fn pool_takes_memory_of_an_engine_and_no_more_than_there_is() {
    let config = || PoolConfig {
        classes: vec![ClassConfig {
            bytes: 4096,
            count: 2,
        }],
    };
    let small = Box::new(Mapping::new(4096).unwrap());
    assert!(BufPool::with_region(config(), small).is_err());
    let enough = Box::new(Mapping::new(8192).unwrap());
    let base = enough.base().as_ptr().cast_const();
    assert_eq!(
        BufPool::with_region(config(), enough).unwrap().region(),
        (base, 8192)
    );
}

#[derive(Clone, Debug)]
enum Step {
    Alloc(usize),
    Clone(usize),
    Slice(usize, usize, usize),
    Fill(usize, u8),
    Drop(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1_usize..20_000).prop_map(Step::Alloc),
        1 => any::<usize>().prop_map(Step::Clone),
        2 => any::<(usize, usize, usize)>().prop_map(|(at, a, b)| Step::Slice(at, a, b)),
        3 => any::<(usize, u8)>().prop_map(|(at, byte)| Step::Fill(at, byte)),
        3 => any::<usize>().prop_map(Step::Drop),
    ]
}

/// A view, the oracle's bytes of its buffer, and where in them it begins.
type View = (IoBuf, Rc<RefCell<Vec<u8>>>, usize);

proptest! {
    /// The oracle keeps each buffer's bytes in a vector of its own: views that overlapped by
    /// mistake, or a buffer handed out twice, would show another's bytes.
    #[test]
    fn views_see_only_their_own_buffer(steps in prop::collection::vec(step(), 1..200)) {
        let pool = pool(&[(4096, 3), (8192, 2), (16384, 1)]);
        let mut views: Vec<View> = Vec::new();
        for step in steps {
            let at = |index: usize, len: usize| index % len.max(1);
            match step {
                Step::Alloc(len) => {
                    if let Some(mut buf) = pool.alloc(len) {
                        prop_assert!(buf.is_unique() && buf.len() == len);
                        buf.as_mut().unwrap().fill(0);
                        views.push((buf, Rc::new(vec![0; len].into()), 0));
                    }
                }
                Step::Clone(index) if !views.is_empty() => {
                    let (buf, model, offset) = &views[at(index, views.len())];
                    let view = (buf.clone(), Rc::clone(model), *offset);
                    views.push(view);
                }
                Step::Slice(index, a, b) if !views.is_empty() => {
                    let (buf, model, offset) = &views[at(index, views.len())];
                    let (a, b) = (a % (buf.len() + 1), b % (buf.len() + 1));
                    let (from, to) = (a.min(b), a.max(b));
                    let view = (buf.slice(from..to), Rc::clone(model), offset + from);
                    views.push(view);
                }
                Step::Fill(index, byte) if !views.is_empty() => {
                    let index = at(index, views.len());
                    let (buf, model, offset) = &mut views[index];
                    let len = buf.len();
                    prop_assert_eq!(buf.is_unique(), Rc::strong_count(model) == 1);
                    if let Some(bytes) = buf.as_mut() {
                        bytes.fill(byte);
                        model.borrow_mut()[*offset..*offset + len].fill(byte);
                    }
                }
                Step::Drop(index) if !views.is_empty() => {
                    views.swap_remove(at(index, views.len()));
                }
                _ => {}
            }
            for (buf, model, offset) in &views {
                prop_assert_eq!(buf.as_slice(), &model.borrow()[*offset..*offset + buf.len()]);
            }
        }
        drop(views);
        prop_assert_eq!(used(&pool), 0);
    }

    #[test]
    fn zeroed_ranges_read_zero_and_their_neighbours_do_not_change(
        a in 0_usize..40_000, b in 0_usize..40_000,
    ) {
        let mut medium = Medium::new(40_000).unwrap();
        medium.write(0, &[0xA5; 40_000]);
        let (from, to) = (a.min(b), a.max(b));
        medium.zero(from..to);
        let mut bytes = [1; 40_000];
        medium.read(0, &mut bytes);
        let expected = |at: usize| if (from..to).contains(&at) { 0 } else { 0xA5 };
        for (at, byte) in bytes.iter().enumerate() {
            prop_assert_eq!(*byte, expected(at));
        }
    }
}

#[test]
fn pool_in_an_engines_memory_takes_all_it_needs_at_once_and_fails_where_there_is_no_more() {
    let config = || PoolConfig {
        classes: vec![ClassConfig {
            bytes: 8192,
            count: 3,
        }],
    };
    assert!(!PoolMemory::default().is_engines());
    assert_eq!(
        PoolMemory::default().pool(config()).unwrap().total_bytes(),
        3 * 8192
    );
    let left = std::sync::atomic::AtomicUsize::new(4 * 8192);
    let memory = PoolMemory::from_source(move |bytes| {
        use std::sync::atomic::Ordering::Relaxed;
        left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(bytes))
            .map_err(|_| io::ErrorKind::OutOfMemory)?;
        Ok(Box::new(Mapping::new(bytes)?))
    });
    let pool = memory.clone().pool(config()).unwrap();
    assert_eq!((pool.total_bytes(), pool.region().1), (3 * 8192, 3 * 8192));
    let refused = memory.pool(config()).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::OutOfMemory);
    let empty = PoolConfig { classes: vec![] };
    let refused = memory.pool(empty).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
}
