//! `bowline pool show`.

use bowline_api::dataplane::v1 as api;
use serde::Serialize;

use super::output::{self, Column, OutputFlags, Row};
use super::{RpcFlags, done, request_id};
use crate::error::CliError;
use crate::size::Size;

/// Shows the pool that a data plane serves.
pub(crate) async fn show_pool(rpc: &RpcFlags, flags: &OutputFlags) -> Result<(), CliError> {
    let mut client = rpc.connect_pool().await?;
    output::show(flags, async || {
        let request = api::GetPoolRequest {
            name: "pool".to_owned(),
        };
        let pool = done("pool not shown", client.get_pool(request).await)?;
        Ok(vec![PoolRow::from(pool)])
    })
    .await
}

/// Begins a scrub of the pool that a data plane serves.
pub(crate) async fn start_scrub(
    rpc: &RpcFlags,
    rate: Option<Size>,
    everything: bool,
) -> Result<(), CliError> {
    let what = "no scrub was started";
    if rate == Some(Size(0)) {
        return Err(CliError::usage(what)
            .cause("with a rate of 0 it would never end")
            .hint("leave --rate out to have it as fast as the drive is"));
    }
    let rate = rate.map_or(0, |Size(bytes)| bytes);
    let request = api::StartScrubRequest {
        name: "pool".to_owned(),
        rate_bytes_per_second: i64::try_from(rate)
            .map_err(|_| CliError::usage(what).cause("the rate is too large"))?,
        everything,
        request_id: request_id(),
    };
    done(what, rpc.connect_pool().await?.start_scrub(request).await)?;
    output::say("the scrub has begun; `bowline pool show` shows how far it is")
}

/// Ends a scrub before it has seen everything.
pub(crate) async fn stop_scrub(rpc: &RpcFlags) -> Result<(), CliError> {
    let request = api::StopScrubRequest {
        name: "pool".to_owned(),
        request_id: request_id(),
    };
    done(
        "the scrub was not stopped",
        rpc.connect_pool().await?.stop_scrub(request).await,
    )?;
    output::say("no scrub goes on")
}

/// Has a scrub pause.
pub(crate) async fn pause_scrub(rpc: &RpcFlags) -> Result<(), CliError> {
    let request = api::PauseScrubRequest {
        name: "pool".to_owned(),
        request_id: request_id(),
    };
    done(
        "the scrub does not pause",
        rpc.connect_pool().await?.pause_scrub(request).await,
    )?;
    output::say("the scrub pauses; `bowline pool scrub --resume` has it go on")
}

/// Has a scrub that pauses go on.
pub(crate) async fn resume_scrub(rpc: &RpcFlags) -> Result<(), CliError> {
    let request = api::ResumeScrubRequest {
        name: "pool".to_owned(),
        request_id: request_id(),
    };
    done(
        "the scrub does not go on",
        rpc.connect_pool().await?.resume_scrub(request).await,
    )?;
    output::say("the scrub goes on; `bowline pool show` shows how far it is")
}

/// "running 41 %", and what it has found that is wrong.
fn scrub(scrub: &api::Scrub) -> String {
    let percent = scrub.position_bytes.saturating_mul(100) / scrub.total_bytes.max(1);
    let state = match scrub.state() {
        api::ScrubState::Done => "done".to_owned(),
        api::ScrubState::Stopped => "stopped".to_owned(),
        api::ScrubState::Paused => format!("paused {percent} %"),
        api::ScrubState::Running | api::ScrubState::Unspecified => format!("running {percent} %"),
    };
    match scrub.mismatch_chunk_count + scrub.unreadable_chunk_count {
        0 => state,
        wrong => format!("{state}, {wrong} wrong"),
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ScrubRow {
    position_bytes: i64,
    total_bytes: i64,
    verified_chunk_count: i64,
    unverified_chunk_count: i64,
    plain_chunk_count: i64,
    mismatch_chunk_count: i64,
    unreadable_chunk_count: i64,
}

impl From<api::Scrub> for ScrubRow {
    fn from(scrub: api::Scrub) -> Self {
        Self {
            position_bytes: scrub.position_bytes,
            total_bytes: scrub.total_bytes,
            verified_chunk_count: scrub.verified_chunk_count,
            unverified_chunk_count: scrub.unverified_chunk_count,
            plain_chunk_count: scrub.plain_chunk_count,
            mismatch_chunk_count: scrub.mismatch_chunk_count,
            unreadable_chunk_count: scrub.unreadable_chunk_count,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MismatchRow {
    volume: String,
    block_index: i64,
    drive_offset_bytes: i64,
    found_seconds: i64,
}

impl From<api::Mismatch> for MismatchRow {
    fn from(mismatch: api::Mismatch) -> Self {
        Self {
            volume: mismatch.volume,
            block_index: mismatch.block_index,
            drive_offset_bytes: mismatch.drive_offset_bytes,
            found_seconds: mismatch.find_time.map_or(0, |time| time.seconds),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PoolRow {
    uuid: String,
    device: String,
    /// "active", "journal failed", or "drive gone".
    state: String,
    capacity_bytes: i64,
    used_bytes: i64,
    available_bytes: i64,
    promised_bytes: i64,
    reclaiming_bytes: i64,
    clean_bytes: i64,
    volume_count: i32,
    snapshot_count: i32,
    checksum_mismatch_count: i64,
    /// "none", "running 41 %", "paused 41 %", "done", or "stopped".
    scrub_state: String,
    scrub: Option<ScrubRow>,
    last_mismatch: Option<MismatchRow>,
    reactor_index: i32,
}

impl From<api::Pool> for PoolRow {
    fn from(pool: api::Pool) -> Self {
        let state = match pool.state() {
            api::PoolState::Active => "active",
            api::PoolState::JournalFailed => "journal failed",
            api::PoolState::DriveGone => "drive gone",
            api::PoolState::Unspecified => "unknown",
        };
        Self {
            state: state.to_owned(),
            uuid: pool.uuid,
            device: pool.device,
            capacity_bytes: pool.capacity_bytes,
            used_bytes: pool.used_bytes,
            available_bytes: pool.available_bytes,
            promised_bytes: pool.promised_bytes,
            reclaiming_bytes: pool.reclaiming_bytes,
            scrub_state: pool.scrub.as_ref().map_or("none".to_owned(), scrub),
            scrub: pool.scrub.map(ScrubRow::from),
            last_mismatch: pool.last_mismatch.map(MismatchRow::from),
            checksum_mismatch_count: pool.checksums.map_or(0, |it| it.mismatch_chunk_count),
            clean_bytes: pool.clean_bytes,
            volume_count: pool.volume_count,
            snapshot_count: pool.snapshot_count,
            reactor_index: pool.reactor_index,
        }
    }
}

impl Row for PoolRow {
    const COLUMNS: &'static [Column] = &[
        Column("POOL", false),
        Column("STATE", false),
        Column("CAPACITY", false),
        Column("USED", false),
        Column("AVAILABLE", false),
        Column("VOLUMES", false),
        Column("SNAPSHOTS", false),
        Column("SCRUB", false),
        Column("PROMISED", true),
        Column("RECLAIMING", true),
        Column("CLEAN", true),
        Column("MISMATCHES", true),
        Column("DEVICE", true),
        Column("REACTOR", true),
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.uuid.clone(),
            self.state.clone(),
            size(self.capacity_bytes),
            size(self.used_bytes),
            size(self.available_bytes),
            self.volume_count.to_string(),
            self.snapshot_count.to_string(),
            self.scrub_state.clone(),
            size(self.promised_bytes),
            size(self.reclaiming_bytes),
            size(self.clean_bytes),
            self.checksum_mismatch_count.to_string(),
            self.device.clone(),
            self.reactor_index.to_string(),
        ]
    }
}

/// As people read it.
pub(super) fn size(bytes: i64) -> String {
    Size(u64::try_from(bytes).unwrap_or(0)).to_string()
}
