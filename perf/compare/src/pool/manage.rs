//! The management API of a data plane with a pool, from where nothing else waits for it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};
use bowline_api::dataplane::v1 as api;
use bowline_api::dataplane::v1::pool_service_client::PoolServiceClient;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};

/// Size of each volume of many.
const VOLUME_BYTES: i64 = 1 << 30;

/// A client of one data plane, which blocks.
pub(super) struct Manager {
    runtime: Runtime,
    client: PoolServiceClient<Channel>,
}

impl Manager {
    pub(super) fn connect(rpc: SocketAddr) -> Result<Self> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot make a client")?;
        let endpoint = Endpoint::from_shared(format!("http://{rpc}")).context("address")?;
        let channel = runtime.block_on(endpoint.connect());
        let channel = channel.with_context(|| format!("nobody answers at {rpc}"))?;
        Ok(Self {
            runtime,
            client: PoolServiceClient::new(channel),
        })
    }

    /// Makes so many volumes, by so many callers at once.
    pub(super) fn create_volumes(&self, count: u32, callers: usize) -> Result<()> {
        let next = Arc::new(AtomicU32::new(0));
        self.runtime.block_on(async {
            let mut running = JoinSet::new();
            for _ in 0..callers {
                running.spawn(create_some(self.client.clone(), Arc::clone(&next), count));
            }
            while let Some(ended) = running.join_next().await {
                ended.context("a caller")??;
            }
            Ok(())
        })
    }

    /// Fails unless the pool has so many volumes.
    pub(super) fn expect_volumes(&self, count: u32) -> Result<()> {
        let name = "pool".to_owned();
        let mut client = self.client.clone();
        let answer = client.get_pool(api::GetPoolRequest { name });
        let pool = self.runtime.block_on(answer).context("pool")?.into_inner();
        if u32::try_from(pool.volume_count) != Ok(count) {
            bail!("{} volumes instead of {count}", pool.volume_count);
        }
        Ok(())
    }

    /// Keeps a volume as it is.
    pub(super) fn take_snapshot(&self, volume: &str, name: &str) -> Result<()> {
        let request = api::CreateSnapshotRequest {
            parent: format!("volumes/{volume}"),
            snapshot: Some(api::Snapshot {
                display_name: name.to_owned(),
                ..api::Snapshot::default()
            }),
            request_id: String::new(),
        };
        let mut client = self.client.clone();
        let answer = client.create_snapshot(request);
        self.runtime.block_on(answer).context("no snapshot")?;
        Ok(())
    }

    /// Asks for a volume: a call that changes nothing.
    pub(super) fn look_up(&self, volume: &str) -> Result<()> {
        let request = api::GetVolumeRequest {
            name: format!("volumes/{volume}"),
        };
        let mut client = self.client.clone();
        let answer = client.get_volume(request);
        self.runtime.block_on(answer).context("no volume")?;
        Ok(())
    }
}

/// One caller: makes the next volume until there are enough.
async fn create_some(
    mut client: PoolServiceClient<Channel>,
    next: Arc<AtomicU32>,
    count: u32,
) -> Result<()> {
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= count {
            return Ok(());
        }
        let request = api::CreateVolumeRequest {
            volume: Some(api::Volume {
                display_name: format!("volume-{number}"),
                size_bytes: VOLUME_BYTES,
                ..api::Volume::default()
            }),
            request_id: String::new(),
        };
        let answer = client.create_volume(request).await;
        let volume = answer
            .with_context(|| format!("volume {number}"))?
            .into_inner();
        if volume.subsystem_nqn.is_empty() || !volume.not_served_reason.is_empty() {
            bail!(
                "volume {number} is not served: {}",
                volume.not_served_reason
            );
        }
    }
}
