//! `bowline pool show`.

use bowline_api::dataplane::v1 as api;
use serde::Serialize;

use super::output::{self, Column, OutputFlags, Row};
use super::{RpcFlags, done};
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
