//! `bowline volume`.

use std::net::SocketAddr;

use bowline_api::dataplane::v1 as api;
use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use uuid::Uuid;

use super::output::{self, Column, OutputFlags, Row};
use super::pool::size;
use super::snapshot::SnapshotName;
use super::{PAGE_ITEMS, PoolClient, RpcFlags, done, every_page, request_id};
use crate::dataplane::{BlockSize, Identifier};
use crate::error::CliError;
use crate::size::Size;

/// Make, show, resize and delete volumes of a data plane's pool.
#[derive(Debug, Args)]
pub(crate) struct VolumeCommand {
    #[command(flatten)]
    rpc: RpcFlags,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make a volume; hosts find it as namespace 1 of a subsystem of its own.
    Create(CreateFlags),
    /// List the volumes.
    List {
        #[command(flatten)]
        output: OutputFlags,
    },
    /// Show one volume.
    Show {
        /// Name or UUID.
        volume: String,
        #[command(flatten)]
        output: OutputFlags,
    },
    /// Change a volume's size; connected hosts notice at once when it gets larger.
    Resize {
        /// Name or UUID.
        volume: String,
        /// The new size, a multiple of 4 KiB.
        #[arg(long, value_name = "SIZE")]
        size: Size,
        /// Also if it gets smaller: what is beyond its new end is lost, and hosts are cut off.
        #[arg(long)]
        force: bool,
    },
    /// Destroy a volume with its snapshots and all its data.
    Delete {
        /// Name or UUID.
        volume: String,
        /// It is meant: the data is gone for ever.
        #[arg(long)]
        yes: bool,
        /// Also while hosts are connected.
        #[arg(long)]
        force: bool,
    },
    /// Print the commands by which a host connects to a volume.
    Connect {
        /// Name or UUID.
        volume: String,
    },
}

#[derive(Debug, Args)]
struct CreateFlags {
    /// Name, unique in the pool.
    name: String,
    /// Size, a multiple of 4 KiB [default with --from: the snapshot's].
    #[arg(long, value_name = "SIZE", required_unless_present = "from")]
    size: Option<Size>,
    /// Snapshot that it begins as; both go their own ways from then on.
    #[arg(long, value_name = "VOLUME/SNAPSHOT")]
    from: Option<SnapshotName>,
    /// Keep room for all of it, so that its writes never fail for want of room; without this room is
    /// taken as it is written to.
    #[arg(long)]
    thick: bool,
    /// What is done with checksums of its data, for good [default: off].
    #[arg(long, value_enum, value_name = "MODE")]
    checksums: Option<ChecksumFlag>,
    /// Host that may connect, or "any"; may be repeated [default: those of the start flags].
    #[arg(long, value_name = "NQN|any")]
    host: Vec<String>,
    /// What a completed write is [default: media].
    #[arg(long, value_enum, value_name = "WHAT")]
    durability: Option<DurabilityFlag>,
    /// Logical block size [default: the drive's].
    #[arg(long, value_name = "512|4096")]
    block_size: Option<BlockSize>,
    /// UUID; a volume that has it already and is the same is as good [default: a random one].
    #[arg(long, value_name = "UUID")]
    uuid: Option<Identifier>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DurabilityFlag {
    /// On stable media.
    Media,
    /// As the drive has it: on stable media after a flush.
    Device,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ChecksumFlag {
    /// None are kept.
    Off,
    /// They are kept, and compared when the pool is scrubbed.
    Scrub,
    /// They are kept, and compared by every read.
    Verify,
}

impl VolumeCommand {
    pub(crate) async fn run(self) -> Result<(), CliError> {
        let mut client = self.rpc.connect_pool().await?;
        match self.verb {
            Verb::Create(flags) => create(&mut client, flags).await,
            Verb::List { output } => output::show(&output, async || list(&mut client).await).await,
            Verb::Show { volume, output } => {
                output::show(&output, async || {
                    Ok(vec![VolumeRow::from(get(&mut client, &volume).await?)])
                })
                .await
            }
            Verb::Resize {
                volume,
                size,
                force,
            } => resize(&mut client, &volume, size, force).await,
            Verb::Delete { volume, yes, force } => delete(&mut client, &volume, yes, force).await,
            Verb::Connect { volume } => connect(&self.rpc, &mut client, &volume).await,
        }
    }
}

async fn list(client: &mut PoolClient) -> Result<Vec<VolumeRow>, CliError> {
    let all = every_page(async |page_token| {
        let request = api::ListVolumesRequest {
            page_size: PAGE_ITEMS,
            page_token,
        };
        let page = done("volumes not listed", client.list_volumes(request).await)?;
        Ok((page.volumes, page.next_page_token))
    });
    Ok(all.await?.into_iter().map(VolumeRow::from).collect())
}

async fn get(client: &mut PoolClient, volume: &str) -> Result<api::Volume, CliError> {
    let request = api::GetVolumeRequest { name: name(volume) };
    done(
        &format!("volume {volume} not shown"),
        client.get_volume(request).await,
    )
}

async fn create(client: &mut PoolClient, flags: CreateFlags) -> Result<(), CliError> {
    let what = format!("volume {} not created", flags.name);
    let durability = match flags.durability {
        None => api::Durability::Unspecified,
        Some(DurabilityFlag::Media) => api::Durability::Media,
        Some(DurabilityFlag::Device) => api::Durability::Device,
    };
    let volume = api::Volume {
        display_name: flags.name,
        size_bytes: flags.size.map_or(Ok(0), |size| bytes(&what, size))?,
        source_snapshot: flags.from.map(|from| from.name()).unwrap_or_default(),
        provisioning: match flags.thick {
            true => api::Provisioning::Thick.into(),
            false => api::Provisioning::Thin.into(),
        },
        checksums: match flags.checksums {
            None => api::ChecksumMode::Unspecified.into(),
            Some(ChecksumFlag::Off) => api::ChecksumMode::Off.into(),
            Some(ChecksumFlag::Scrub) => api::ChecksumMode::Scrub.into(),
            Some(ChecksumFlag::Verify) => api::ChecksumMode::Verify.into(),
        },
        host_nqns: flags.host,
        durability: durability.into(),
        block_size_bytes: match flags.block_size {
            None => 0,
            Some(BlockSize(bytes)) => i32::try_from(bytes).unwrap_or(0),
        },
        uuid: flags.uuid.map_or_else(String::new, |Identifier(bytes)| {
            Uuid::from_bytes(bytes).to_string()
        }),
        ..Default::default()
    };
    let request = api::CreateVolumeRequest {
        volume: Some(volume),
        request_id: request_id(),
    };
    let made = done(&what, client.create_volume(request).await)?;
    output::say(&format!(
        "volume {} created, {}, {}",
        made.display_name,
        size(made.size_bytes),
        made.subsystem_nqn
    ))
}

async fn resize(
    client: &mut PoolClient,
    volume: &str,
    to: Size,
    force: bool,
) -> Result<(), CliError> {
    let what = format!("volume {volume} not resized");
    let request = api::ResizeVolumeRequest {
        name: name(volume),
        size_bytes: bytes(&what, to)?,
        force,
        request_id: request_id(),
    };
    let made = done(&what, client.resize_volume(request).await)?;
    output::say(&format!("volume {volume} is {}", size(made.size_bytes)))
}

async fn delete(
    client: &mut PoolClient,
    volume: &str,
    yes: bool,
    force: bool,
) -> Result<(), CliError> {
    let what = format!("volume {volume} not deleted");
    if !yes {
        let found = get(client, volume).await?;
        return Err(CliError::usage(what)
            .cause(format!(
                "its data, {}, and its {} snapshots would be lost for ever",
                size(found.pool_bytes),
                found.snapshot_count
            ))
            .hint("add --yes if that is meant"));
    }
    let request = api::DeleteVolumeRequest {
        name: name(volume),
        force,
        request_id: request_id(),
    };
    done(&what, client.delete_volume(request).await)?;
    output::say(&format!("volume {volume} deleted"))
}

async fn connect(rpc: &RpcFlags, client: &mut PoolClient, volume: &str) -> Result<(), CliError> {
    let found = get(client, volume).await?;
    say_how_to_connect(rpc, &found.subsystem_nqn).await
}

/// One line for each address of the data plane, and nothing else.
pub(super) async fn say_how_to_connect(rpc: &RpcFlags, nqn: &str) -> Result<(), CliError> {
    let request = api::GetDataPlaneRequest {
        name: "dataplane".to_owned(),
    };
    let what = "addresses of the data plane not found".to_owned();
    let plane = done(&what, rpc.connect().await?.get_data_plane(request).await)?;
    for listener in &plane.advertised_listeners {
        let address: SocketAddr = listener
            .parse()
            .map_err(|error| CliError::failed(what.clone()).cause(error))?;
        // On every address: the one that we have come by is one of them.
        let ip = match address.ip().is_unspecified() {
            true => rpc.address().ip(),
            false => address.ip(),
        };
        output::say(&format!(
            "nvme connect -t tcp -a {ip} -s {} -n {nqn}",
            address.port(),
        ))?;
    }
    Ok(())
}

fn name(volume: &str) -> String {
    format!("volumes/{volume}")
}

fn bytes(what: &str, Size(bytes): Size) -> Result<i64, CliError> {
    i64::try_from(bytes).map_err(|_| CliError::usage(what).cause("the size is too large"))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct VolumeRow {
    name: String,
    uuid: String,
    size_bytes: i64,
    block_size_bytes: i32,
    /// "media" or "device".
    durability: String,
    /// "thin" or "thick".
    provisioning: String,
    /// "off", "scrub" or "verify".
    checksums: String,
    /// Resource name; empty if it began as zeroes.
    source_snapshot: String,
    allocated_bytes: i64,
    pool_bytes: i64,
    snapshot_count: i32,
    host_nqns: Vec<String>,
    subsystem_nqn: String,
    nguid: String,
    created_seconds: i64,
    /// Empty if hosts can use it.
    not_served_reason: String,
}

impl From<api::Volume> for VolumeRow {
    fn from(volume: api::Volume) -> Self {
        let durability = match volume.durability() {
            api::Durability::Device => "device",
            api::Durability::Media | api::Durability::Unspecified => "media",
        };
        let provisioning = match volume.provisioning() {
            api::Provisioning::Thick => "thick",
            api::Provisioning::Thin | api::Provisioning::Unspecified => "thin",
        };
        let checksums = match volume.checksums() {
            api::ChecksumMode::Verify => "verify",
            api::ChecksumMode::Scrub => "scrub",
            api::ChecksumMode::Off | api::ChecksumMode::Unspecified => "off",
        };
        Self {
            provisioning: provisioning.to_owned(),
            checksums: checksums.to_owned(),
            source_snapshot: volume.source_snapshot,
            durability: durability.to_owned(),
            name: volume.display_name,
            uuid: volume.uuid,
            size_bytes: volume.size_bytes,
            block_size_bytes: volume.block_size_bytes,
            allocated_bytes: volume.allocated_bytes,
            pool_bytes: volume.pool_bytes,
            snapshot_count: volume.snapshot_count,
            host_nqns: volume.host_nqns,
            subsystem_nqn: volume.subsystem_nqn,
            nguid: volume.nguid,
            created_seconds: volume.create_time.map_or(0, |time| time.seconds),
            not_served_reason: volume.not_served_reason,
        }
    }
}

impl Row for VolumeRow {
    const COLUMNS: &'static [Column] = &[
        Column("NAME", false),
        Column("SIZE", false),
        Column("ALLOCATED", false),
        Column("HOSTS", false),
        Column("SNAPSHOTS", false),
        Column("STATE", false),
        Column("UUID", true),
        Column("BLOCK", true),
        Column("DURABILITY", true),
        Column("PROVISIONING", true),
        Column("CHECKSUMS", true),
        Column("POOL USE", true),
        Column("SUBSYSTEM", true),
    ];

    fn cells(&self) -> Vec<String> {
        let hosts = match self.host_nqns.as_slice() {
            [] => "none".to_owned(),
            [first, ..] if first == "any" => "any".to_owned(),
            all => all.len().to_string(),
        };
        let state = match self.not_served_reason.is_empty() {
            true => "served".to_owned(),
            false => format!("not served: {}", self.not_served_reason),
        };
        vec![
            self.name.clone(),
            size(self.size_bytes),
            size(self.allocated_bytes),
            hosts,
            self.snapshot_count.to_string(),
            state,
            self.uuid.clone(),
            self.block_size_bytes.to_string(),
            self.durability.clone(),
            self.provisioning.clone(),
            self.checksums.clone(),
            size(self.pool_bytes),
            self.subsystem_nqn.clone(),
        ]
    }
}
