use proptest::prelude::*;

use super::super::arbitrary;
use super::super::codec::RecordReader;
use super::*;

const POOL: Uuid = Uuid::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
const AREA_BYTES: usize = 512 << 10;

/// The area after a checkpoint of `records`, and where it is.
fn written(records: &[Record<'_>]) -> (Vec<u8>, CheckpointPlace) {
    let mut area = vec![0xee; AREA_BYTES];
    let mut frame = vec![0xdd; FRAME_BYTES_MAX];
    let mut writer = FrameWriter::new(POOL, 7, AREA_BYTES as u64);
    let mut put = |writer: &mut FrameWriter, frame: &mut [u8], is_last| {
        let sealed = writer.seal(frame, is_last).unwrap();
        let at = usize::try_from(sealed.offset).unwrap();
        area[at..at + sealed.bytes].copy_from_slice(&frame[..sealed.bytes]);
    };
    for record in records {
        if writer.push(&mut frame, record) == Err(WriteError::Full) {
            put(&mut writer, &mut frame, false);
            writer.push(&mut frame, record).unwrap();
        }
    }
    put(&mut writer, &mut frame, true);
    let frames = writer.frames();
    (
        area,
        CheckpointPlace {
            number: 7,
            area: 0,
            frames,
        },
    )
}

fn read(area: &[u8], place: CheckpointPlace) -> Result<Vec<Record<'_>>, FrameError> {
    let mut reader = FrameReader::new(POOL, place);
    let mut records = Vec::new();
    while let Some(offset) = reader.offset() {
        let bytes = area
            .get(usize::try_from(offset).unwrap()..)
            .unwrap_or_default();
        let frame = reader.next_frame(bytes)?;
        records.extend(RecordReader::new(frame.records).map(Result::unwrap));
    }
    Ok(records)
}

fn some_records() -> Vec<Record<'static>> {
    let attribute = Record::Attribute {
        volume: 1,
        kind: 2,
        bytes: &[0x5a; 40_000],
    };
    vec![
        Record::NextVolume { volume: 9 },
        attribute,
        attribute,
        Record::VolumeGone { volume: 3 },
    ]
}

#[test]
fn a_frame_is_written_as_documented() {
    let (area, place) = written(&[Record::NextVolume { volume: 9 }]);
    assert_eq!(place.frames, 1);
    assert_eq!(area[..4], *b"BWLC");
    assert_eq!(area[8..24], *POOL.as_bytes());
    assert_eq!(area[24..32], 7_u64.to_le_bytes());
    assert_eq!(
        area[32..48],
        [0, 0, 0, 0, 0, 16, 0, 0, 12, 0, 0, 0, 1, 0, 0, 0]
    );
    assert_eq!(
        area[64..80],
        [12, 0, 0, 0, 4, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0]
    );
    assert!(area[80..4096].iter().all(|&byte| byte == 0));
    assert!(area[4096..].iter().all(|&byte| byte == 0xee));
}

#[test]
fn a_checkpoint_of_nothing_is_one_frame() {
    let (area, place) = written(&[]);
    assert_eq!(place.frames, 1);
    assert_eq!(read(&area, place), Ok(Vec::new()));
}

#[test]
fn records_do_not_cross_frames() {
    let (area, place) = written(&some_records());
    assert_eq!(place.frames, 2);
    assert_eq!(read(&area, place), Ok(some_records()));
}

#[test]
fn an_area_that_is_too_small_is_told_before_anything_is_written_beyond_it() {
    let mut frame = vec![0; FRAME_BYTES_MAX];
    let mut writer = FrameWriter::new(POOL, 1, 8192);
    assert_eq!(
        writer.seal(&mut frame, false),
        Ok(SealedFrame {
            offset: 0,
            bytes: 4096
        })
    );
    writer.push(&mut frame, &some_records()[1]).unwrap();
    assert_eq!(writer.seal(&mut frame, true), Err(WriteError::Full));
}

#[test]
fn a_frame_of_another_place_or_time_is_refused() {
    let (mut area, place) = written(&some_records());
    let reason = |area: &[u8], place| read(area, place).unwrap_err().reason;
    let older = CheckpointPlace { number: 6, ..place };
    assert_eq!(reason(&area, older), FrameReason::Misplaced);
    let longer = CheckpointPlace { frames: 3, ..place };
    assert_eq!(reason(&area, longer), FrameReason::Field);
    let shorter = CheckpointPlace { frames: 1, ..place };
    assert_eq!(reason(&area, shorter), FrameReason::Field);
    let second = FrameReader::new(POOL, place)
        .next_frame(&area)
        .unwrap()
        .bytes;
    let first = area[..second].to_vec();
    area[second..2 * second].copy_from_slice(&first);
    assert_eq!(reason(&area, place), FrameReason::Misplaced);
    area[second..].fill(0);
    assert_eq!(reason(&area, place), FrameReason::Absent);
    assert_eq!(reason(&area[..second + 10], place), FrameReason::Truncated);
    let error = read(&area, place).unwrap_err().to_string();
    assert_eq!(
        error,
        format!(
            "frame 1 of checkpoint 7, {second} bytes into its area, is damaged: there is no frame"
        )
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_checkpoint_comes_back_as_it_was_written(
        records in prop::collection::vec(arbitrary::record(), 0..600),
    ) {
        let (area, place) = written(&records);
        prop_assert_eq!(read(&area, place), Ok(records));
    }

    #[test]
    fn a_changed_byte_of_a_frame_is_seen(at in any::<prop::sample::Index>(), change in 1..=255_u8) {
        let (mut area, place) = written(&some_records());
        let at = at.index(80 << 10);
        area[at] ^= change;
        prop_assert!(read(&area, place).is_err());
    }

    #[test]
    fn a_truncated_checkpoint_is_seen(len in 0..80_usize << 10) {
        let (area, place) = written(&some_records());
        prop_assert!(read(&area[..len], place).is_err());
    }
}
