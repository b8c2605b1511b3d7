//! What is printed.

use std::fmt;

use bowline_pool::format::layout::{Area, SUPERBLOCK_OFFSETS};
use bowline_pool::format::record::{Checksums, Durability};
use bowline_pool::map::Volume;
use bowline_pool::offline::{Finding, Inspection, Severity};
use serde::Serialize;

use crate::size::Size;

/// All of it, as JSON has it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    uuid: String,
    label: String,
    format_version: u32,
    made_time: String,
    generation: u64,
    closed_in_order: bool,
    in_use: bool,
    size_bytes: u64,
    block_bytes: u32,
    extent_bytes: u32,
    extents: ExtentReport,
    areas: Vec<AreaReport>,
    superblocks: Vec<String>,
    checkpoint: Option<CheckpointReport>,
    journal: JournalReport,
    volumes: Vec<VolumeReport>,
    /// Only if it was asked for.
    data: Option<DataReport>,
    findings: Vec<FindingReport>,
}

/// Chunks of 4,096 bytes of volumes that have checksums.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct DataReport {
    verified_chunks: u64,
    unverified_chunks: u64,
    mismatched_chunks: u64,
    unreadable_chunks: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ExtentReport {
    all: u32,
    used: u32,
    clean: u32,
    unclean: u32,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct AreaReport {
    name: &'static str,
    offset_bytes: u64,
    size_bytes: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct CheckpointReport {
    number: u64,
    area: u8,
    frames: u32,
    records: u64,
    size_bytes: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct JournalReport {
    first_sector: u64,
    strict_sector: u64,
    next_sector: u64,
    groups: u64,
    records: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct VolumeReport {
    number: u32,
    name: String,
    uuid: String,
    size_bytes: u64,
    block_bytes: u32,
    /// What its newest state has; with its snapshots.
    allocated_bytes: u64,
    with_snapshots_bytes: u64,
    thick: bool,
    state: &'static str,
    durability: &'static str,
    checksums: &'static str,
    created_time: String,
    base: Option<BaseReport>,
    snapshots: Vec<SnapshotReport>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct BaseReport {
    volume: u32,
    snapshot: u32,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct SnapshotReport {
    number: u32,
    name: String,
    uuid: String,
    size_bytes: u64,
    created_time: String,
    deleted: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct FindingReport {
    severity: &'static str,
    place: String,
    text: String,
}

impl Report {
    pub(super) fn of(inspection: &Inspection, in_use: bool) -> Self {
        let superblock = &inspection.superblock;
        let layout = superblock.layout;
        let counts = inspection.state.extents();
        Self {
            uuid: superblock.uuid.to_string(),
            label: superblock.label.clone(),
            format_version: bowline_pool::format::superblock::VERSION,
            made_time: time(superblock.made),
            generation: superblock.generation,
            closed_in_order: superblock.closed_at.is_some(),
            in_use,
            size_bytes: layout.bytes,
            block_bytes: layout.block_bytes,
            extent_bytes: layout.extent_bytes,
            extents: ExtentReport {
                all: counts.all,
                used: counts.used,
                clean: counts.clean,
                unclean: counts.unclean,
            },
            areas: areas(inspection),
            superblocks: inspection
                .copies
                .iter()
                .map(|copy| match copy {
                    Ok(()) => "valid".to_owned(),
                    Err(error) => error.to_string(),
                })
                .collect(),
            checkpoint: inspection.checkpoint.map(|checkpoint| CheckpointReport {
                number: checkpoint.place.number,
                area: checkpoint.place.area,
                frames: checkpoint.frames,
                records: checkpoint.records,
                size_bytes: checkpoint.bytes,
            }),
            journal: JournalReport {
                first_sector: superblock.replay_from,
                strict_sector: superblock.strict_from,
                next_sector: inspection.journal.readable_to,
                groups: inspection.journal.groups,
                records: inspection.journal.records,
            },
            volumes: inspection
                .state
                .volumes()
                .map(|(_, volume)| VolumeReport::of(volume, layout.extent_bytes))
                .collect(),
            data: inspection.data.map(|data| DataReport {
                verified_chunks: data.verified,
                unverified_chunks: data.unverified,
                mismatched_chunks: data.mismatches,
                unreadable_chunks: data.unreadable,
            }),
            findings: inspection.findings.iter().map(FindingReport::of).collect(),
        }
    }
}

fn areas(inspection: &Inspection) -> Vec<AreaReport> {
    let layout = &inspection.superblock.layout;
    let [first, second] = layout.checkpoints;
    let copy = |offset| Area {
        offset,
        bytes: 4096,
    };
    let [a, b] = SUPERBLOCK_OFFSETS.map(copy);
    [
        ("superblock 0", a),
        ("superblock 1", b),
        ("journal", layout.journal),
        ("checkpoint 0", first),
        ("checkpoint 1", second),
        ("checksums", layout.checksums),
        ("data", layout.data),
    ]
    .map(|(name, area)| AreaReport {
        name,
        offset_bytes: area.offset,
        size_bytes: area.bytes,
    })
    .into()
}

impl VolumeReport {
    fn of(volume: &Volume, extent_bytes: u32) -> Self {
        let bytes = |extents: u32| u64::from(extents) * u64::from(extent_bytes);
        let counts = volume.counts();
        let snapshots = volume.snapshots().iter();
        Self {
            number: volume.number,
            name: volume.name.to_string(),
            uuid: volume.uuid.to_string(),
            size_bytes: volume.bytes,
            block_bytes: volume.block_bytes,
            allocated_bytes: bytes(counts.mapped),
            with_snapshots_bytes: bytes(counts.physical),
            thick: volume.is_thick,
            state: match (volume.is_being_made, volume.is_deleted) {
                (true, _) => "being made",
                (false, true) => "deleted, and needed by clones",
                (false, false) => "ready",
            },
            durability: match volume.durability {
                Durability::Media => "media",
                Durability::Device => "device",
            },
            checksums: match volume.checksums {
                Checksums::Off => "off",
                Checksums::Scrub => "scrub",
                Checksums::Verify => "verify",
            },
            created_time: time(volume.created),
            base: volume
                .base
                .map(|(volume, snapshot)| BaseReport { volume, snapshot }),
            snapshots: snapshots
                .map(|snapshot| SnapshotReport {
                    number: snapshot.number,
                    name: snapshot.name.to_string(),
                    uuid: snapshot.uuid.to_string(),
                    size_bytes: snapshot.bytes,
                    created_time: time(snapshot.created),
                    deleted: snapshot.is_deleted,
                })
                .collect(),
        }
    }
}

impl FindingReport {
    fn of(finding: &Finding) -> Self {
        let severity = match finding.severity {
            Severity::Notice => "notice",
            Severity::Loss => "loss",
            Severity::Damage => "damage",
        };
        Self {
            severity,
            place: finding.place.clone(),
            text: finding.text.clone(),
        }
    }
}

/// RFC 3339; the end of the year 9999 for whatever is later.
fn time(seconds: u64) -> String {
    const END_OF_9999: u64 = 253_402_300_799;
    i64::try_from(seconds.min(END_OF_9999))
        .map(|seconds| prost_types::Timestamp { seconds, nanos: 0 }.to_string())
        .unwrap_or_default()
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "pool         {} {:?}", self.uuid, self.label)?;
        writeln!(
            out,
            "made         {}, format {}",
            self.made_time, self.format_version
        )?;
        let closed = match (self.in_use, self.closed_in_order) {
            (true, _) => "in use: what follows may be changing while it is read",
            (false, true) => "closed in order",
            (false, false) => "not closed in order: opening it replays the journal",
        };
        writeln!(out, "opened       {} times, {closed}", self.generation)?;
        let extents = &self.extents;
        writeln!(
            out,
            "extents      {} of {}: {} used, {} clean, {} to be cleaned",
            extents.all,
            Size(self.extent_bytes.into()),
            extents.used,
            extents.clean,
            extents.unclean
        )?;
        writeln!(out, "superblocks  {}", self.superblocks.join("; "))?;
        match &self.checkpoint {
            None => writeln!(out, "checkpoint   none")?,
            Some(checkpoint) => writeln!(
                out,
                "checkpoint   {} in area {}: {} records in {} frames, {}",
                checkpoint.number,
                checkpoint.area,
                checkpoint.records,
                checkpoint.frames,
                Size(checkpoint.size_bytes)
            )?,
        }
        let journal = &self.journal;
        writeln!(
            out,
            "journal      sectors {} to {}: {} records in {} groups",
            journal.first_sector, journal.next_sector, journal.records, journal.groups
        )?;
        for area in &self.areas {
            writeln!(
                out,
                "area         {:12} {:>14} {}",
                area.name,
                area.offset_bytes,
                Size(area.size_bytes)
            )?;
        }
        self.volumes.iter().try_for_each(|volume| volume.fmt(out))?;
        match self.findings.as_slice() {
            [] => writeln!(out, "nothing wrong was found"),
            findings => findings.iter().try_for_each(|finding| {
                writeln!(
                    out,
                    "{:12} {}: {}",
                    finding.severity, finding.place, finding.text
                )
            }),
        }
    }
}

impl fmt::Display for VolumeReport {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.thick { "thick" } else { "thin" };
        write!(
            out,
            "volume       {} {:?} {}: {} {kind}, {} allocated, {} with snapshots, {}",
            self.number,
            self.name,
            self.uuid,
            Size(self.size_bytes),
            Size(self.allocated_bytes),
            Size(self.with_snapshots_bytes),
            self.state
        )?;
        if let Some(base) = &self.base {
            write!(
                out,
                ", clone of snapshot {} of volume {}",
                base.snapshot, base.volume
            )?;
        }
        writeln!(out)?;
        self.snapshots.iter().try_for_each(|snapshot| {
            let deleted = if snapshot.deleted {
                ", deleted, and needed by clones"
            } else {
                ""
            };
            writeln!(
                out,
                "  snapshot   {} {:?} {}: {}{deleted}",
                snapshot.number,
                snapshot.name,
                snapshot.uuid,
                Size(snapshot.size_bytes)
            )
        })
    }
}
