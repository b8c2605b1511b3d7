use super::*;
use crate::buf::{BufPool, IoBuf, PoolConfig, ViewedBuf};
use crate::segments::Segments;

fn pool() -> BufPool {
    BufPool::new(PoolConfig::with_budget(4 << 20)).unwrap()
}

fn filled(pool: &BufPool, len: usize, byte: u8) -> IoBuf {
    let mut buf = pool.alloc(len).unwrap();
    buf.as_mut().unwrap().fill(byte);
    buf
}

fn run(device: &mut MemDevice, op: Op, lba: u64, blocks: u32, data: Segments) -> Completion {
    device
        .try_submit(Io {
            op,
            lba,
            blocks,
            fua: false,
            data,
            token: 42,
        })
        .unwrap();
    assert_eq!(device.poll_timeout(), Some(Nanos::ZERO));
    let mut out = Completions::with_capacity(1);
    device.poll(Nanos::ZERO, &mut out);
    assert_eq!(device.poll_timeout(), None);
    out.pop().unwrap()
}

fn write(device: &mut MemDevice, pool: &BufPool, lba: u64, blocks: u32, byte: u8) {
    let data = filled(pool, blocks as usize * 512, byte).into();
    assert_eq!(run(device, Op::Write, lba, blocks, data).result, Ok(()));
}

fn read(device: &mut MemDevice, pool: &BufPool, lba: u64, blocks: u32) -> Vec<u8> {
    let data = filled(pool, blocks as usize * 512, 0xEE).into();
    let completion = run(device, Op::Read, lba, blocks, data);
    assert_eq!((completion.result, completion.token), (Ok(()), 42));
    completion
        .data
        .pieces(0..usize::MAX)
        .flatten()
        .copied()
        .collect()
}

#[test]
fn reads_return_what_was_written_and_zeroes_elsewhere() {
    let (pool, mut device) = (pool(), MemDevice::new(1 << 20, 512).unwrap());
    write(&mut device, &pool, 3, 2, 7);
    let bytes = read(&mut device, &pool, 2, 4);
    assert_eq!(bytes, [vec![0; 512], vec![7; 1024], vec![0; 512]].concat());
}

#[test]
fn what_is_written_at_once_is_what_requests_read_and_the_other_way_round() {
    let (pool, mut device) = (pool(), MemDevice::new(1 << 20, 512).unwrap());
    assert!(device.is_immediate());
    assert_eq!(device.write_now(3, &[7; 1024]), Ok(()));
    let bytes = read(&mut device, &pool, 2, 4);
    assert_eq!(bytes, [vec![0; 512], vec![7; 1024], vec![0; 512]].concat());
    write(&mut device, &pool, 4, 1, 8);
    let mut bytes = [0; 1024];
    assert_eq!(device.read_now(3, &mut bytes), Ok(()));
    assert_eq!(bytes[..], [[7; 512], [8; 512]].concat());
}

#[test]
fn what_cannot_be_done_at_once_changes_nothing() {
    let (pool, mut device) = (pool(), MemDevice::new(8192, 512).unwrap());
    assert_eq!(device.write_now(15, &[1; 1024]), Err(IoError::OutOfRange));
    assert_eq!(
        device.write_now(u64::MAX, &[1; 512]),
        Err(IoError::OutOfRange)
    );
    assert_eq!(device.write_now(0, &[1; 511]), Err(IoError::Internal));
    assert_eq!(device.read_now(16, &mut [0; 512]), Err(IoError::OutOfRange));
    assert_eq!(read(&mut device, &pool, 0, 16), vec![0; 8192]);
}

#[test]
fn payload_in_several_segments_is_one_payload() {
    let (pool, mut device) = (pool(), MemDevice::new(1 << 20, 512).unwrap());
    let mut data = Segments::new();
    for (len, byte) in [(100, 1), (412, 2), (512, 3)] {
        data.push(filled(&pool, len, byte)).unwrap();
    }
    assert_eq!(run(&mut device, Op::Write, 0, 2, data).result, Ok(()));
    let mut data = Segments::from(filled(&pool, 1000, 0));
    data.push(filled(&pool, 24, 0)).unwrap();
    let done = run(&mut device, Op::Read, 0, 2, data);
    let bytes: Vec<u8> = done.data.pieces(0..1024).flatten().copied().collect();
    assert_eq!(bytes, [vec![1; 100], vec![2; 412], vec![3; 512]].concat());
}

#[test]
fn large_medium_zeroes_parts_of_its_large_pages() {
    let mut device = MemDevice::new(LARGE_PAGES_MIN_BYTES, 4096).unwrap();
    let blocks = LARGE_PAGES_MIN_BYTES / 4096;
    for lba in 0..blocks {
        assert_eq!(device.write_now(lba, &[1; 4096]), Ok(()));
    }
    let done = run(&mut device, Op::Deallocate, 100, 1000, Segments::new());
    assert_eq!(done.result, Ok(()));
    for lba in 0..blocks {
        let mut bytes = [9; 4096];
        assert_eq!(device.read_now(lba, &mut bytes), Ok(()));
        let expected = u8::from(!(100..1100).contains(&lba));
        assert_eq!(bytes, [expected; 4096], "{lba}");
    }
}

#[test]
fn zeroed_and_deallocated_blocks_read_zero() {
    let (pool, mut device) = (pool(), MemDevice::new(1 << 20, 512).unwrap());
    for op in [Op::Deallocate, Op::WriteZeroes { deallocate: true }] {
        write(&mut device, &pool, 0, 40, 9);
        assert_eq!(run(&mut device, op, 3, 30, Segments::new()).result, Ok(()));
        let bytes = read(&mut device, &pool, 0, 40);
        let expected = [vec![9; 3 * 512], vec![0; 30 * 512], vec![9; 7 * 512]].concat();
        assert_eq!(bytes, expected);
    }
}

#[test]
fn compare_and_write_writes_only_on_a_match() {
    let (pool, mut device) = (pool(), MemDevice::new(1 << 20, 512).unwrap());
    write(&mut device, &pool, 5, 1, 1);
    let pair = |old: u8, new: u8| {
        let mut data = Segments::from(filled(&pool, 512, old));
        data.push(filled(&pool, 512, new)).unwrap();
        data
    };
    let done = run(&mut device, Op::CompareAndWrite, 5, 1, pair(2, 3));
    assert_eq!(done.result, Err(IoError::CompareMismatch));
    assert_eq!(read(&mut device, &pool, 5, 1), vec![1; 512]);
    assert_eq!(
        run(&mut device, Op::CompareAndWrite, 5, 1, pair(1, 3)).result,
        Ok(())
    );
    assert_eq!(read(&mut device, &pool, 5, 1), vec![3; 512]);
}

#[test]
fn malformed_requests_complete_with_their_error() {
    let (pool, mut device) = (pool(), MemDevice::new(8192, 4096).unwrap());
    let buf = || Segments::from(filled(&pool, 4096, 0));
    assert_eq!(
        run(&mut device, Op::Read, 2, 1, buf()).result,
        Err(IoError::OutOfRange)
    );
    assert_eq!(
        run(&mut device, Op::Read, u64::MAX, 1, buf()).result,
        Err(IoError::OutOfRange)
    );
    assert_eq!(
        run(&mut device, Op::Write, 0, 2, buf()).result,
        Err(IoError::Internal)
    );
    let shared = buf();
    let keep = shared.clone();
    assert_eq!(
        run(&mut device, Op::Read, 0, 1, shared).result,
        Err(IoError::Internal)
    );
    drop(keep);
    assert_eq!(
        run(&mut device, Op::Flush, 0, 0, Segments::new()).result,
        Ok(())
    );
}

#[test]
fn full_queue_hands_the_request_back_and_completes_in_order() {
    let mut device = MemDevice::new(8192, 4096).unwrap();
    let flush = |token| {
        let data = Segments::new();
        Io {
            op: Op::Flush,
            lba: 0,
            blocks: 0,
            fua: false,
            data,
            token,
        }
    };
    let depth = u64::try_from(device.depth_max()).unwrap();
    (0..depth).for_each(|token| device.try_submit(flush(token)).unwrap());
    assert_eq!(device.try_submit(flush(depth)).unwrap_err().token, depth);
    let mut out = Completions::with_capacity(3);
    device.poll(Nanos::ZERO, &mut out);
    assert!(out.is_full());
    assert_eq!(
        out.drain().map(|done| done.token).collect::<Vec<_>>(),
        [0, 1, 2]
    );
    device.try_submit(flush(depth)).unwrap();
}

#[test]
fn sizes_that_are_no_device_are_refused() {
    for (size, block) in [
        (0, 512),
        (511, 512),
        (4096 + 512, 4096),
        (4096, 1024),
        (4096, 0),
    ] {
        let error = MemDevice::new(size, block).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{size} {block}");
    }
}

#[test]
fn view_is_what_a_read_would_return_until_it_is_copied() {
    let (pool, mut device) = (pool(), MemDevice::new(8192, 512).unwrap());
    assert_eq!(device.write_now(3, &[1; 1024]), Ok(()));
    let view = device.view_now(3, 1024).unwrap();
    let viewed = ViewedBuf::new(view, filled(&pool, 1024, 0xEE)).unwrap();
    assert_eq!((viewed.len(), viewed.is_empty()), (1024, false));
    assert_eq!(device.write_now(4, &[2; 512]), Ok(()));
    let buf = viewed.copied();
    assert_eq!(device.write_now(3, &[3; 1024]), Ok(()));
    assert_eq!(buf[..], [[1; 512], [2; 512]].concat());
}

#[test]
fn view_ends_with_the_device_and_outlives_it() {
    let (pool, mut device) = (pool(), MemDevice::new(8192, 512).unwrap());
    assert_eq!(device.write_now(15, &[4; 512]), Ok(()));
    assert_eq!(device.view_now(15, 1024).unwrap_err(), IoError::OutOfRange);
    assert_eq!(device.view_now(0, 511).unwrap_err(), IoError::Internal);
    let view = device.view_now(15, 512).unwrap();
    drop(device);
    let viewed = ViewedBuf::new(view, filled(&pool, 512, 0xEE)).unwrap();
    assert_eq!(viewed.copied()[..], [4; 512]);
}

#[test]
fn view_takes_no_buffer_that_somebody_else_sees_or_that_does_not_fit() {
    let (pool, device) = (pool(), MemDevice::new(8192, 512).unwrap());
    let buf = filled(&pool, 512, 7);
    let other = buf.clone();
    let buf = ViewedBuf::new(device.view_now(0, 512).unwrap(), buf).unwrap_err();
    drop(other);
    let buf = ViewedBuf::new(device.view_now(0, 1024).unwrap(), buf).unwrap_err();
    assert_eq!(buf[..], [7; 512]);
}
