//! What a scraper is told of the pool.

use std::fmt;

use bowline_pool::ScrubState;
use prometheus_client::encoding::DescriptorEncoder;

use super::{NoExemplar, counter, gauge, put};
use crate::pool::{PoolHealth, PoolNow};
use crate::service::Management;

/// Volumes that have series of their own, in the order of lists.
const VOLUMES_MAX: usize = 256;

/// The pool at one moment.
#[derive(Debug)]
pub(super) struct PoolScrape {
    uuid: String,
    now: PoolNow,
    volumes: usize,
    snapshots: usize,
    /// UUID, what hosts see as allocated, and what it has of the pool, in bytes.
    allocated: Vec<(String, (u64, u64))>,
}

/// `None` if there is no pool, or it is being closed.
pub(super) async fn observe(management: &Management) -> Option<PoolScrape> {
    let (access, volumes, snapshots, some) = {
        let manager = &management.state.lock().await.manager;
        let volumes = &manager.catalog.volumes;
        let snapshots = volumes.iter().map(|(_, it)| it.info.snapshots.len());
        let some = volumes.iter().take(VOLUMES_MAX);
        let some: Vec<_> = some
            .map(|(_, it)| (it.info.uuid.to_string(), it.info.volume))
            .collect();
        let access = manager.pool().ok()?.clone();
        (access, volumes.len(), snapshots.sum(), some)
    };
    let now = access.now().await.ok()?;
    let (uuids, numbers): (Vec<_>, Vec<_>) = some.into_iter().unzip();
    let allocated = access.allocated(numbers).await.ok()?;
    Some(PoolScrape {
        uuid: access.facts.uuid.to_string(),
        now,
        volumes,
        snapshots,
        allocated: uuids.into_iter().zip(allocated).collect(),
    })
}

impl PoolScrape {
    pub(super) fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "The pool that is served, and whether it works; always 1";
        let state = match self.now.health {
            PoolHealth::Active => "active",
            PoolHealth::JournalFailed => "journal-failed",
            PoolHealth::DriveGone | PoolHealth::DriveBack => "drive-gone",
        };
        gauge(encoder, "bowline_pool_info", help)?
            .encode_family(&[("pool", self.uuid.as_str()), ("state", state)])?
            .encode_gauge(&1_i64)?;
        self.encode_sizes(encoder)?;
        self.encode_counts(encoder)?;
        self.encode_scrub(encoder)?;
        self.encode_volumes(encoder)
    }

    fn encode_sizes(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let usage = &self.now.usage;
        for (name, help, value) in [
            ("capacity_bytes", "Room for data", usage.bytes),
            (
                "used_bytes",
                "What volumes and snapshots have",
                usage.used_bytes,
            ),
            (
                "available_bytes",
                "What thin volumes may still get",
                usage.available_bytes,
            ),
            (
                "promised_bytes",
                "Free, and kept for thick volumes",
                usage.promised_bytes,
            ),
            ("clean_bytes", "Free, and zero already", usage.clean_bytes),
            (
                "reclaiming_bytes",
                "Used, and belonging to nobody any more",
                usage.reclaiming_bytes,
            ),
            ("volumes", "Volumes", count(self.volumes)),
            (
                "snapshots",
                "Snapshots of all volumes",
                count(self.snapshots),
            ),
        ] {
            let name = format!("bowline_pool_{name}");
            gauge(encoder, &name, help)?.encode_gauge(&signed(value))?;
        }
        Ok(())
    }

    fn encode_counts(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let (groups, checkpoints) = self.now.written;
        let sums = &self.now.checksums;
        for (name, help, value) in [
            (
                "journal_groups",
                "Groups of the journal written since the start",
                groups,
            ),
            (
                "checkpoints",
                "Checkpoints written since the start",
                checkpoints,
            ),
            (
                "checksum_pages_lost",
                "Pages of checksums that were damaged, or could not be read or written",
                sums.pages_lost,
            ),
        ] {
            let name = format!("bowline_pool_{name}");
            counter(encoder, &name, help)?.encode_counter::<NoExemplar, u64, u64>(&value, None)?;
        }
        let help = "Chunks of 4096 bytes that were read and compared with their checksums";
        let mut metric = counter(encoder, "bowline_pool_checksum_chunks", help)?;
        for (result, value) in [
            ("verified", sums.verified),
            ("unverified", sums.unverified),
            ("mismatch", sums.mismatches),
        ] {
            put(&mut metric, &[("result", result)], value)?;
        }
        Ok(())
    }

    fn encode_scrub(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let Some(scrub) = &self.now.scrub else {
            return Ok(());
        };
        let (runs, pauses) = (
            scrub.state == ScrubState::Running,
            scrub.state == ScrubState::Paused,
        );
        for (name, help, value) in [
            ("scrub_running", "1 while a scrub goes on", u64::from(runs)),
            ("scrub_paused", "1 while a scrub pauses", u64::from(pauses)),
            (
                "scrub_position_bytes",
                "What the last scrub is done with of the capacity",
                scrub.position,
            ),
        ] {
            let name = format!("bowline_pool_{name}");
            gauge(encoder, &name, help)?.encode_gauge(&signed(value))?;
        }
        let help = "Chunks of 4096 bytes that the last scrub has read";
        let mut metric = gauge(encoder, "bowline_pool_scrub_chunks", help)?;
        for (result, value) in [
            ("verified", scrub.verified),
            ("unverified", scrub.unverified),
            ("plain", scrub.plain),
            ("mismatch", scrub.mismatches),
            ("unreadable", scrub.read_errors),
        ] {
            metric
                .encode_family(&[("result", result)])?
                .encode_gauge(&signed(value))?;
        }
        Ok(())
    }

    /// Of a bounded number of volumes; the management API has all.
    fn encode_volumes(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        type Read = fn(&(u64, u64)) -> u64;
        let each: [(&str, &str, Read); 2] = [
            (
                "bowline_pool_volume_allocated_bytes",
                "What hosts see as allocated; of the first 256 volumes by name",
                |it| it.0,
            ),
            (
                "bowline_pool_volume_used_bytes",
                "What a volume has of the pool with its snapshots; of the first 256 by name",
                |it| it.1,
            ),
        ];
        for (name, help, read) in each {
            let mut metric = gauge(encoder, name, help)?;
            for (uuid, allocated) in &self.allocated {
                metric
                    .encode_family(&[("volume", uuid.as_str())])?
                    .encode_gauge(&signed(read(allocated)))?;
            }
        }
        Ok(())
    }
}

fn count(value: usize) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
