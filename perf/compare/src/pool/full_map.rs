//! A pool on a sparse file whose map is as large as it may get: every extent of the drive filled in
//! part and none beside its neighbour, a snapshot that needs all of them, and as many holes as there
//! may be. Written as the pool itself writes it, so that nothing else may be wrong with it, in a
//! second instead of hours.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};
use bowline_pool::format::checkpoint::{FRAME_BYTES_MAX, FRAME_HEAD_BYTES, FrameWriter};
use bowline_pool::format::journal::GroupWriter;
use bowline_pool::format::layout::{Layout, LayoutOptions, SUPERBLOCK_OFFSETS};
use bowline_pool::format::record::{
    Checksums, Durability, NONE, Numbers, Record, SnapshotRecord, VolumeRecord,
};
use bowline_pool::format::superblock::{CheckpointPlace, Superblock};
use bowline_pool::map::{Emitted, State, Tolerance};
use uuid::Uuid;

const BLOCK_BYTES: u32 = 4096;
const POOL: Uuid = Uuid::from_u128(0x7a0d_5f31_c2b4_4e86_9d13_5be0_6c2f_a817);
const VOLUME: u32 = 1;
/// Records of a group, as a queue of 64 writes makes them.
const GROUP_RECORDS: u32 = 64;

/// What is in the pool.
#[derive(Debug, Clone, Copy)]
pub(super) struct Full {
    pub(super) extents: u32,
    pub(super) holes: u32,
    pub(super) data_bytes: u64,
    pub(super) checkpoint_bytes: u64,
    pub(super) journal_bytes: u64,
    pub(super) journal_records: u64,
}

/// Writes the pool to a file that is empty.
pub(super) fn write(file: &File, bytes: u64) -> Result<Full> {
    file.set_len(bytes).context("size of the drive")?;
    let layout = Layout::plan(bytes, BLOCK_BYTES, &LayoutOptions::default())?;
    let mut state = State::new(layout.limits());
    fill(&mut state, &layout)?;
    let holes = state.holes_left();
    make_holes(&mut state, holes)?;
    let (place, checkpoint_bytes) = write_checkpoint(file, &layout, &mut state)?;
    let (end, journal_bytes, journal_records) = write_journal(file, &layout)?;
    let first = layout.ring().first();
    let superblock = Superblock {
        sequence: 1,
        uuid: POOL,
        compatible: 0,
        read_only_compatible: 0,
        incompatible: 0,
        generation: 1,
        layout,
        checkpoint: Some(place),
        replay_from: first,
        // The checkpoint may show all of it already.
        strict_from: end,
        closed_at: None,
        made: 0,
        label: "full".to_owned(),
    };
    for offset in SUPERBLOCK_OFFSETS {
        file.write_all_at(&superblock.encode(), offset)
            .context("superblock")?;
    }
    Ok(Full {
        extents: layout.extents,
        holes,
        data_bytes: layout.data.bytes,
        checkpoint_bytes,
        journal_bytes,
        journal_records,
    })
}

/// Which physical extent a logical one has: a bijection that puts no two beside each other.
fn physical(logical: u32, extents: u32) -> u32 {
    let gcd = |mut a: u32, mut b: u32| {
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    let stride = (77_777..).find(|stride| gcd(*stride, extents) == 1);
    let product = u64::from(logical) * u64::from(stride.unwrap_or(1));
    u32::try_from(product % u64::from(extents)).unwrap_or(0)
}

/// A version with one chunk of its extent.
fn part<'a>(logical: u32, extents: u32, bitmap: &'a mut [u8]) -> Record<'a> {
    let bits = u32::try_from(bitmap.len() * 8).unwrap_or(1);
    let chunk = logical % bits;
    bitmap.fill(0);
    if let Some(byte) = bitmap.get_mut((chunk / 8) as usize) {
        *byte = 1 << (chunk % 8);
    }
    Record::MapPart {
        volume: VOLUME,
        born: 0,
        logical,
        physical: physical(logical, extents),
        bitmap,
    }
}

fn fill(state: &mut State, layout: &Layout) -> Result<()> {
    let mut apply = |record: &Record<'_>| state.apply(record, Tolerance::Strict);
    let volume = |snapshots_taken| VolumeRecord {
        volume: VOLUME,
        uuid: Uuid::from_u128(POOL.as_u128() + 1),
        bytes: layout.data.bytes,
        block_bytes: BLOCK_BYTES,
        snapshots_taken,
        base: None,
        is_thick: false,
        is_deleted: false,
        is_being_made: false,
        durability: Durability::Media,
        checksums: Checksums::Off,
        created: 0,
        name: "full",
    };
    apply(&Record::Volume(volume(0)))?;
    let mut bitmap = vec![0; layout.bitmap_bytes()];
    for logical in 0..layout.extents {
        apply(&part(logical, layout.extents, &mut bitmap))?;
    }
    apply(&Record::Volume(volume(1)))?;
    apply(&Record::Snapshot(SnapshotRecord {
        volume: VOLUME,
        number: 1,
        uuid: Uuid::from_u128(POOL.as_u128() + 2),
        bytes: layout.data.bytes,
        is_deleted: false,
        created: 0,
        name: "kept",
    }))?;
    Ok(())
}

/// Of what the volume has beyond its snapshot.
fn make_holes(state: &mut State, holes: u32) -> Result<()> {
    for number in 0..holes {
        let hole = Record::Map {
            volume: VOLUME,
            born: 1,
            logical: number * 7,
            physical: Numbers::Native(&[NONE]),
        };
        state.apply(&hole, Tolerance::Strict)?;
    }
    state.recovered()?;
    Ok(())
}

fn write_checkpoint(
    file: &File,
    layout: &Layout,
    state: &mut State,
) -> Result<(CheckpointPlace, u64)> {
    let area = layout.checkpoints[0];
    let mut writer = FrameWriter::new(POOL, 1, area.bytes);
    let mut cursor = state.begin_checkpoint();
    let mut frame = vec![0; FRAME_BYTES_MAX];
    let written = loop {
        let mut failed = None;
        let room = FRAME_BYTES_MAX - FRAME_HEAD_BYTES;
        let emitted = state.emit(&mut cursor, room, &mut |record| {
            failed = failed.take().or(writer.push(&mut frame, record).err());
        });
        if let Some(error) = failed {
            return Err(error).context("checkpoint");
        }
        let is_last = emitted == Emitted::All;
        let sealed = writer.seal(&mut frame, is_last).context("checkpoint")?;
        file.write_all_at(&frame[..sealed.bytes], area.offset + sealed.offset)
            .context("checkpoint")?;
        if is_last {
            break sealed.offset + sealed.bytes as u64;
        }
    };
    state.end_checkpoint();
    let place = CheckpointPlace {
        number: 1,
        area: 0,
        frames: writer.frames(),
    };
    Ok((place, written))
}

/// Half of the journal, where the next checkpoint would begin, says again what versions are. Returns
/// its end, its bytes and its records.
fn write_journal(file: &File, layout: &Layout) -> Result<(u64, u64, u64)> {
    let mut writer = GroupWriter::new(layout.ring(), POOL, 1);
    let mut group = vec![0; 1 << 20];
    let mut bitmap = vec![0; layout.bitmap_bytes()];
    let mut sequence = layout.ring().first();
    let (mut bytes, mut records, mut logical) = (0, 0, 0);
    while bytes < layout.journal.bytes / 2 {
        for _ in 0..GROUP_RECORDS {
            let record = part(logical, layout.extents, &mut bitmap);
            writer.push(&record).context("journal")?;
            logical = (logical + 1) % layout.extents;
        }
        let sealed = writer.seal(sequence, &mut group).context("journal")?;
        file.write_all_at(
            &group[..sealed.bytes],
            layout.journal.offset + sealed.offset,
        )
        .context("journal")?;
        writer.clear();
        sequence = sealed.next;
        bytes += sealed.bytes as u64;
        records += u64::from(GROUP_RECORDS);
    }
    Ok((sequence, bytes, records))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_extent_is_given_twice() {
        for extents in [1, 2, 97, 1000] {
            let mut all: Vec<u32> = (0..extents).map(|it| physical(it, extents)).collect();
            all.sort_unstable();
            assert!(all.into_iter().eq(0..extents));
        }
    }
}
