use bowline_block::{BufPool, ClassConfig, Device, MemDevice, PoolConfig, ViewedBuf};
use proptest::prelude::*;

use super::*;

fn pool() -> BufPool {
    let classes = vec![ClassConfig {
        bytes: 4096,
        count: 16,
    }];
    BufPool::new(PoolConfig { classes }).unwrap()
}

/// What the kernel would read.
fn unsent_bytes(gather: &mut Gather) -> Vec<u8> {
    gather.message();
    let parts = gather.parts();
    let mut bytes = Vec::new();
    for piece in &parts.iov[parts.iov_next..] {
        // SAFETY: prepared pieces describe live memory of the gather.
        let slice =
            unsafe { std::slice::from_raw_parts(piece.iov_base.cast::<u8>(), piece.iov_len) };
        bytes.extend_from_slice(slice);
    }
    bytes
}

#[test]
fn neighbouring_headers_are_one_piece() {
    let mut gather = GatherPool::default().take();
    gather.push_bytes(b"ab");
    gather.push_bytes(b"");
    gather.push_with(|arena| arena.extend_from_slice(b"cd"));
    assert_eq!(gather.parts().pieces.len(), 1);
    gather.prepare();
    assert_eq!(unsent_bytes(&mut gather), b"abcd");
}

#[test]
fn dropped_gather_gives_buffers_back_and_is_reused() {
    let (buffers, gathers) = (pool(), GatherPool::default());
    let mut gather = gathers.take();
    gather.push_bytes(b"header");
    gather.push_buf(buffers.alloc(100).unwrap());
    assert_eq!(buffers.stats().classes[0].used, 1);
    let arena = gather.parts().arena.as_ptr();
    drop(gather);
    assert_eq!(buffers.stats().classes[0].used, 0);
    let again = gathers.take();
    assert!(again.is_empty());
    assert_eq!(again.parts().arena.as_ptr(), arena);
}

#[test]
fn gathers_are_kept_for_as_many_as_were_used_at_once_of_late() {
    let gathers = GatherPool::default();
    let use_at_once = |count| drop((0..count).map(|_| gathers.take()).collect::<Vec<_>>());
    use_at_once(10 * KEPT_MIN);
    assert_eq!(gathers.kept.borrow().len(), 10 * KEPT_MIN);
    assert!(!gathers.trim());
    assert_eq!(gathers.kept.borrow().len(), 10 * KEPT_MIN, "just used");
    use_at_once(2 * KEPT_MIN);
    assert!(!gathers.trim());
    assert_eq!(gathers.kept.borrow().len(), 2 * KEPT_MIN);
    assert!(gathers.has_spare());
    let in_use = gathers.take();
    assert!(gathers.trim() && !gathers.has_spare());
    assert_eq!(gathers.kept.borrow().len(), KEPT_MIN - 1);
    drop(in_use);
    assert!(gathers.trim());
    assert_eq!(gathers.kept.borrow().len(), KEPT_MIN);
}

#[test]
fn full_at_the_byte_limit_and_at_the_piece_limit() {
    let buffers = pool();
    let mut gather = GatherPool::default().take();
    gather.push_with(|arena| arena.resize(GATHER_BYTES_MAX - 1, 0));
    assert!(!gather.is_full());
    gather.push_bytes(b"x");
    assert!(gather.is_full());

    let mut gather = GatherPool::default().take();
    let buf = buffers.alloc(8).unwrap();
    for _ in 0..GATHER_PIECES_MAX - 1 {
        gather.push_buf(buf.clone());
    }
    assert!(!gather.is_full());
    gather.push_buf(buf);
    assert!(gather.is_full());
}

/// A medium of eight blocks of 512 bytes, all of which hold the number of their last write.
struct Medium {
    device: MemDevice,
    buffers: BufPool,
}

const BLOCKS: u8 = 8;
const BLOCK: usize = 512;

impl Medium {
    fn new(version: u8) -> Self {
        let device = MemDevice::new(u64::from(BLOCKS) * BLOCK as u64, 512).unwrap();
        let mut medium = Self {
            device,
            buffers: pool(),
        };
        medium.write_all(version);
        medium
    }

    fn write_all(&mut self, version: u8) {
        for lba in 0..BLOCKS {
            self.write(lba, version);
        }
    }

    fn write(&mut self, lba: u8, version: u8) {
        let written = self.device.write_now(u64::from(lba), &[version; BLOCK]);
        assert_eq!(written, Ok(()));
    }

    fn view(&self, lba: u8) -> ViewedBuf {
        let view = self.device.view_now(u64::from(lba), BLOCK).unwrap();
        let mut buf = self.buffers.alloc(BLOCK).unwrap();
        buf.as_mut().unwrap().fill(0xEE);
        ViewedBuf::new(view, buf).unwrap()
    }

    fn buffers_used(&self) -> usize {
        self.buffers.stats().classes[0].used
    }
}

#[test]
fn view_is_of_the_moment_it_is_sent_in() {
    let (mut medium, mut gather) = (Medium::new(1), GatherPool::default().take());
    gather.push_bytes(b"header");
    gather.push_view(medium.view(3));
    gather.push_bytes(b"trailer");
    assert_eq!(gather.bytes(), 13 + BLOCK);
    medium.write(3, 2);
    gather.prepare();
    medium.write(3, 3);
    let expected = [b"header".as_slice(), &[3; BLOCK], b"trailer"].concat();
    assert_eq!(unsent_bytes(&mut gather), expected);
    drop(gather);
    assert_eq!(medium.buffers_used(), 0);
}

#[test]
fn fixed_gather_does_not_follow_its_medium_any_more() {
    for prepared in [false, true] {
        let (mut medium, mut gather) = (Medium::new(1), GatherPool::default().take());
        gather.push_view(medium.view(0));
        gather.push_bytes(b"between");
        gather.push_view(medium.view(1));
        if prepared {
            gather.prepare();
        }
        gather.fix();
        medium.write_all(2);
        if !prepared {
            gather.push_view(medium.view(2));
            gather.prepare();
        }
        let mut expected = [[1; BLOCK].as_slice(), b"between", &[1; BLOCK]].concat();
        if !prepared {
            expected.extend_from_slice(&[2; BLOCK]);
        }
        assert_eq!(unsent_bytes(&mut gather), expected);
    }
}

#[test]
fn view_outlives_its_device() {
    let (medium, mut gather) = (Medium::new(5), GatherPool::default().take());
    gather.push_view(medium.view(7));
    let Medium { device, buffers } = medium;
    drop(device);
    gather.prepare();
    assert_eq!(unsent_bytes(&mut gather), [5; BLOCK]);
    gather.fix();
    assert_eq!(unsent_bytes(&mut gather), [5; BLOCK]);
    drop(gather);
    assert_eq!(buffers.stats().classes[0].used, 0);
}

/// What a slow socket makes of a gather: a part leaves, then the medium changes, then the rest.
#[test]
fn part_that_left_and_the_rest_are_of_one_moment_wherever_it_is_cut() {
    for cut in 0..=2 * BLOCK + 24 {
        let (mut medium, mut gather) = (Medium::new(1), GatherPool::default().take());
        for lba in [0, 1] {
            gather.push_bytes(b"twelve bytes");
            gather.push_view(medium.view(lba));
        }
        gather.prepare();
        let mut received = unsent_bytes(&mut gather);
        received.truncate(cut);
        gather.advance(cut);
        gather.fix();
        medium.write_all(2);
        received.extend(unsent_bytes(&mut gather));
        let expected = [b"twelve bytes".as_slice(), &[1; BLOCK]].concat().repeat(2);
        assert_eq!(received, expected, "cut at {cut}");
    }
}

proptest! {
    /// Reads, writes, and sends of a part, in any order: whatever arrives is of the moment at
    /// which sending its gather began, and so neither torn nor older than its read.
    #[test]
    fn gathers_are_of_the_moment_at_which_they_begin_to_leave(
        reads in prop::collection::vec((0..BLOCKS, 0_usize..40), 1..8),
        before in prop::collection::vec(0..BLOCKS, 0..8),
        steps in prop::collection::vec((1_usize..1200, 0..BLOCKS), 1..12),
    ) {
        let (mut medium, mut gather) = (Medium::new(1), GatherPool::default().take());
        let mut version = 1;
        let mut model = [1; BLOCKS as usize];
        for (lba, header) in &reads {
            gather.push_bytes(&vec![0xAA; *header]);
            gather.push_view(medium.view(*lba));
        }
        for lba in before {
            version += 1;
            medium.write(lba, version);
            model[usize::from(lba)] = version;
        }
        let mut expected = Vec::new();
        for (lba, header) in &reads {
            expected.extend_from_slice(&vec![0xAA; *header]);
            expected.extend_from_slice(&[model[usize::from(*lba)]; BLOCK]);
        }
        gather.prepare();
        let mut received = Vec::new();
        for (step, lba) in steps {
            let rest = unsent_bytes(&mut gather);
            let step = step.min(rest.len());
            received.extend_from_slice(&rest[..step]);
            gather.advance(step);
            gather.fix();
            version += 1;
            medium.write(lba, version);
        }
        received.extend(unsent_bytes(&mut gather));
        prop_assert_eq!(received, expected);
        drop(gather);
        prop_assert_eq!(medium.buffers_used(), 0);
    }


    #[test]
    fn any_partial_progress_leaves_exactly_the_rest(
        pieces in prop::collection::vec((any::<bool>(), 1_usize..300), 1..12),
        steps in prop::collection::vec(0_usize..400, 0..20),
    ) {
        let (buffers, mut gather) = (pool(), GatherPool::default().take());
        let mut expected = Vec::new();
        for (number, (header, len)) in pieces.into_iter().enumerate() {
            let fill = vec![u8::try_from(number).unwrap(); len];
            if header {
                gather.push_bytes(&fill);
            } else {
                let mut buf = buffers.alloc(len).unwrap();
                buf.truncate(len);
                buf.as_mut().unwrap().copy_from_slice(&fill);
                gather.push_buf(buf);
            }
            expected.extend_from_slice(&fill);
        }
        gather.prepare();
        prop_assert_eq!(gather.bytes(), expected.len());
        let mut sent = 0;
        for step in steps {
            let step = step.min(expected.len() - sent);
            gather.advance(step);
            sent += step;
            prop_assert_eq!(gather.unsent(), expected.len() - sent);
            prop_assert_eq!(unsent_bytes(&mut gather), &expected[sent..]);
        }
    }
}
