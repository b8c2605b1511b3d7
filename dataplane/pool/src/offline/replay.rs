//! Checkpoint and journal, as recovery reads them.

use super::{CheckpointSummary, Inspection, JournalSummary, Severity, Source};
use crate::format::checkpoint::{FRAME_BYTES_MAX, FrameReader};
use crate::format::codec::RecordReader;
use crate::format::journal::JournalReader;
use crate::format::layout::{ALIGN_BYTES, Area};
use crate::map::{State, Tolerance};

/// Read at once, where nothing is wrong.
const PIECE_BYTES: usize = 1 << 20;

/// Replays what is there. Whether all of it could be replayed, and the state is right.
pub(super) fn replay(source: &mut dyn Source, inspection: &mut Inspection) -> bool {
    let has_start = checkpoint(source, inspection);
    if !journal(source, inspection, has_start) || !has_start {
        return false;
    }
    let block_bytes = inspection.superblock.layout.block_bytes;
    let recovered = inspection.state.recovered();
    match recovered.and_then(|()| inspection.state.check_blocks(block_bytes)) {
        Ok(()) => true,
        Err(error) => {
            inspection.find(Severity::Damage, "end of the journal", error);
            false
        }
    }
}

/// Whether it could be replayed; what is wrong is found.
fn checkpoint(source: &mut dyn Source, inspection: &mut Inspection) -> bool {
    let Some(place) = inspection.superblock.checkpoint else {
        return true;
    };
    let area = inspection.superblock.layout.checkpoints[usize::from(place.area)];
    let mut reader = FrameReader::new(inspection.superblock.uuid, place);
    let mut summary = CheckpointSummary {
        place,
        frames: 0,
        bytes: 0,
        records: 0,
    };
    let mut bytes = vec![0; FRAME_BYTES_MAX];
    let mut error = None;
    while let Some(offset) = reader.offset() {
        let left = area.bytes.saturating_sub(offset);
        let left = usize::try_from(left).map_or(FRAME_BYTES_MAX, |left| left.min(FRAME_BYTES_MAX));
        let some = &mut bytes[..left];
        if let Err(why) = source.read(area.offset + offset, some) {
            error = Some(format!("it cannot be read: {why}"));
            break;
        }
        let frame = match reader.next_frame(some) {
            Ok(frame) => frame,
            Err(why) => {
                error = Some(why.to_string());
                break;
            }
        };
        summary.frames += 1;
        summary.bytes += frame.bytes as u64;
        let replayed = records(&mut inspection.state, frame.records, Tolerance::Replay);
        summary.records += replayed.0;
        if let Err(why) = replayed.1 {
            error = Some(why);
            break;
        }
    }
    inspection.checkpoint = Some(summary);
    let Some(error) = error else { return true };
    let place = format!("checkpoint {}, frame {}", place.number, summary.frames);
    inspection.find(Severity::Damage, place, error);
    false
}

/// Whether it ends as it should, and could be replayed; what is wrong is found. Without all of the
/// checkpoint (`has_start`) records need not fit.
fn journal(source: &mut dyn Source, inspection: &mut Inspection, has_start: bool) -> bool {
    let area = inspection.superblock.layout.journal;
    let ring = read_ring(source, area, inspection);
    let mut reader = JournalReader::new(&inspection.superblock, &ring);
    let mut summary = JournalSummary {
        groups: 0,
        records: 0,
        readable_to: reader.readable_to(),
        end: reader.end(),
    };
    let stale_damaged = reader.stale_damaged();
    let mut wrong = None;
    while let Some(group) = reader.next_group() {
        let tolerance = if group.is_strict && has_start {
            Tolerance::Strict
        } else {
            Tolerance::Replay
        };
        let replayed = records(&mut inspection.state, group.records, tolerance);
        summary.groups += 1;
        summary.records += replayed.0;
        if let Err(why) = replayed.1 {
            wrong = Some((format!("journal, group at sector {}", group.sequence), why));
            break;
        }
    }
    inspection.journal = summary;
    let is_right = wrong.is_none() && summary.end.is_ok();
    if let Some((place, why)) = wrong.filter(|_| has_start) {
        inspection.find(Severity::Damage, place, why);
    }
    if let Err(damage) = summary.end {
        inspection.find(Severity::Damage, "journal", damage);
    }
    if stale_damaged > 0 {
        let text = format!("{stale_damaged} sectors that are not needed any more are damaged");
        inspection.find(Severity::Notice, "journal", text);
    }
    is_right
}

/// The whole ring. What cannot be read is FFh, which is no valid sector.
fn read_ring(source: &mut dyn Source, area: Area, inspection: &mut Inspection) -> Vec<u8> {
    let mut ring = vec![0xff; usize::try_from(area.bytes).unwrap_or(0)];
    for (at, piece) in (0..).step_by(PIECE_BYTES).zip(ring.chunks_mut(PIECE_BYTES)) {
        if source.read(area.offset + at, piece).is_ok() {
            continue;
        }
        let small = usize::try_from(ALIGN_BYTES).unwrap_or(PIECE_BYTES);
        for (within, piece) in (0..).step_by(small).zip(piece.chunks_mut(small)) {
            if let Err(error) = source.read(area.offset + at + within, piece) {
                piece.fill(0xff);
                let place = format!("journal, {} bytes from its start", at + within);
                inspection.find(
                    Severity::Notice,
                    place,
                    format!("it cannot be read: {error}"),
                );
            }
        }
    }
    ring
}

/// How many records were applied, and why not all of them.
fn records(state: &mut State, bytes: &[u8], tolerance: Tolerance) -> (u64, Result<(), String>) {
    let mut applied = 0;
    for record in RecordReader::new(bytes) {
        let result = match record {
            Ok(record) => state
                .apply(&record, tolerance)
                .map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = result {
            return (applied, Err(format!("record {applied}: {error}")));
        }
        applied += 1;
    }
    (applied, Ok(()))
}
