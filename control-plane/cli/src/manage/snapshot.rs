//! `bowline snapshot`.

use std::fmt;
use std::str::FromStr;

use bowline_api::dataplane::v1 as api;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::output::{self, Column, OutputFlags, Row};
use super::pool::size;
use super::volume::say_how_to_connect;
use super::{PAGE_ITEMS, PoolClient, RpcFlags, done, every_page, request_id};
use crate::error::CliError;

/// Keep volumes as they are now, and read them later. For a volume that begins as a snapshot, see
/// `bowline volume create --from`.
#[derive(Debug, Args)]
pub(crate) struct SnapshotCommand {
    #[command(flatten)]
    rpc: RpcFlags,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Keep a volume as it is now.
    Create {
        /// The volume, and the name of the new snapshot.
        #[arg(value_name = "VOLUME/SNAPSHOT")]
        snapshot: SnapshotName,
    },
    /// List the snapshots of one volume, or of all.
    List {
        /// Name or UUID of the volume; all without it.
        volume: Option<String>,
        #[command(flatten)]
        output: OutputFlags,
    },
    /// Delete a snapshot. Volumes that were made from it stay as they are.
    Delete {
        /// The volume and the snapshot, each by name or UUID.
        #[arg(value_name = "VOLUME/SNAPSHOT")]
        snapshot: SnapshotName,
        /// It is meant: what only the snapshot has is gone for ever.
        #[arg(long)]
        yes: bool,
        /// Also while hosts read it.
        #[arg(long)]
        force: bool,
    },
    /// Let hosts read a snapshot, as namespace 1 of a subsystem of its own; until a restart.
    Export {
        /// The volume and the snapshot, each by name or UUID.
        #[arg(value_name = "VOLUME/SNAPSHOT")]
        snapshot: SnapshotName,
        /// Host that may connect, or "any"; may be repeated [default: those of the start flags].
        #[arg(long, value_name = "NQN|any")]
        host: Vec<String>,
    },
    /// Cut off the hosts that read a snapshot, and export it no more.
    Withdraw {
        /// The volume and the snapshot, each by name or UUID.
        #[arg(value_name = "VOLUME/SNAPSHOT")]
        snapshot: SnapshotName,
    },
    /// Print the commands by which a host connects to a snapshot that is exported.
    Connect {
        /// The volume and the snapshot, each by name or UUID.
        #[arg(value_name = "VOLUME/SNAPSHOT")]
        snapshot: SnapshotName,
    },
}

/// A snapshot as people write it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SnapshotName {
    volume: String,
    snapshot: String,
}

impl FromStr for SnapshotName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            Some((volume, snapshot)) if !volume.is_empty() && !snapshot.is_empty() => Ok(Self {
                volume: volume.to_owned(),
                snapshot: snapshot.to_owned(),
            }),
            _ => Err(format!(
                "{text:?} is no snapshot; write the volume and the snapshot, such as db/monday"
            )),
        }
    }
}

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.volume, self.snapshot)
    }
}

impl SnapshotName {
    /// Its resource name.
    pub(super) fn name(&self) -> String {
        format!("volumes/{}/snapshots/{}", self.volume, self.snapshot)
    }
}

impl SnapshotCommand {
    pub(crate) async fn run(self) -> Result<(), CliError> {
        let mut client = self.rpc.connect_pool().await?;
        match self.verb {
            Verb::Create { snapshot } => create(&mut client, snapshot).await,
            Verb::List { volume, output } => {
                output::show(&output, async || list(&mut client, volume.as_deref()).await).await
            }
            Verb::Delete {
                snapshot,
                yes,
                force,
            } => delete(&mut client, &snapshot, yes, force).await,
            Verb::Export { snapshot, host } => export(&mut client, &snapshot, host).await,
            Verb::Withdraw { snapshot } => withdraw(&mut client, &snapshot).await,
            Verb::Connect { snapshot } => connect(&self.rpc, &mut client, &snapshot).await,
        }
    }
}

async fn create(client: &mut PoolClient, snapshot: SnapshotName) -> Result<(), CliError> {
    let what = format!("snapshot {snapshot} not taken");
    let request = api::CreateSnapshotRequest {
        parent: format!("volumes/{}", snapshot.volume),
        snapshot: Some(api::Snapshot {
            display_name: snapshot.snapshot.clone(),
            ..Default::default()
        }),
        request_id: request_id(),
    };
    done(&what, client.create_snapshot(request).await)?;
    output::say(&format!("snapshot {snapshot} taken"))
}

async fn list(client: &mut PoolClient, volume: Option<&str>) -> Result<Vec<SnapshotRow>, CliError> {
    let all = every_page(async |page_token| {
        let request = api::ListSnapshotsRequest {
            parent: format!("volumes/{}", volume.unwrap_or("-")),
            page_size: PAGE_ITEMS,
            page_token,
        };
        let page = done("snapshots not listed", client.list_snapshots(request).await)?;
        Ok((page.snapshots, page.next_page_token))
    });
    Ok(all.await?.into_iter().map(SnapshotRow::from).collect())
}

async fn delete(
    client: &mut PoolClient,
    snapshot: &SnapshotName,
    yes: bool,
    force: bool,
) -> Result<(), CliError> {
    let what = format!("snapshot {snapshot} not deleted");
    if !yes {
        return Err(CliError::usage(what)
            .cause("what only it has would be lost for ever")
            .hint("add --yes if that is meant"));
    }
    let request = api::DeleteSnapshotRequest {
        name: snapshot.name(),
        force,
        request_id: request_id(),
    };
    done(&what, client.delete_snapshot(request).await)?;
    output::say(&format!("snapshot {snapshot} deleted"))
}

async fn export(
    client: &mut PoolClient,
    snapshot: &SnapshotName,
    host_nqns: Vec<String>,
) -> Result<(), CliError> {
    let what = format!("snapshot {snapshot} not exported");
    let request = api::ExportSnapshotRequest {
        name: snapshot.name(),
        host_nqns,
        request_id: request_id(),
    };
    let made = done(&what, client.export_snapshot(request).await)?;
    output::say(&format!(
        "snapshot {snapshot} can be read, {}; until a restart",
        made.subsystem_nqn
    ))
}

async fn withdraw(client: &mut PoolClient, snapshot: &SnapshotName) -> Result<(), CliError> {
    let what = format!("snapshot {snapshot} not withdrawn");
    let request = api::WithdrawSnapshotRequest {
        name: snapshot.name(),
        request_id: request_id(),
    };
    done(&what, client.withdraw_snapshot(request).await)?;
    output::say(&format!("snapshot {snapshot} is not exported any more"))
}

async fn connect(
    rpc: &RpcFlags,
    client: &mut PoolClient,
    snapshot: &SnapshotName,
) -> Result<(), CliError> {
    let what = format!("snapshot {snapshot} not found");
    let request = api::GetSnapshotRequest {
        name: snapshot.name(),
    };
    let found = done(&what, client.get_snapshot(request).await)?;
    if found.subsystem_nqn.is_empty() {
        return Err(
            CliError::failed(format!("snapshot {snapshot} is not exported"))
                .hint(format!("export it: bowline snapshot export {snapshot}")),
        );
    }
    say_how_to_connect(rpc, &found.subsystem_nqn).await
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SnapshotRow {
    volume: String,
    name: String,
    uuid: String,
    size_bytes: i64,
    created_seconds: i64,
    /// Empty unless it is exported.
    subsystem_nqn: String,
}

impl From<api::Snapshot> for SnapshotRow {
    fn from(snapshot: api::Snapshot) -> Self {
        Self {
            volume: snapshot.volume_display_name,
            name: snapshot.display_name,
            uuid: snapshot.uuid,
            size_bytes: snapshot.size_bytes,
            created_seconds: snapshot.create_time.map_or(0, |time| time.seconds),
            subsystem_nqn: snapshot.subsystem_nqn,
        }
    }
}

impl Row for SnapshotRow {
    const COLUMNS: &'static [Column] = &[
        Column("VOLUME", false),
        Column("SNAPSHOT", false),
        Column("SIZE", false),
        Column("EXPORTED", false),
        Column("UUID", true),
        Column("SUBSYSTEM", true),
    ];

    fn cells(&self) -> Vec<String> {
        let exported = match self.subsystem_nqn.is_empty() {
            true => "no",
            false => "until a restart",
        };
        vec![
            self.volume.clone(),
            self.name.clone(),
            size(self.size_bytes),
            exported.to_owned(),
            self.uuid.clone(),
            self.subsystem_nqn.clone(),
        ]
    }
}
