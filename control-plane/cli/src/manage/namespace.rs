//! `bowline namespace`.

use std::path::PathBuf;

use bowline_api::dataplane::v1 as api;
use clap::{Args, Subcommand};
use serde::Serialize;
use uuid::Uuid;

use super::output::{self, Column, OutputFlags, Row};
use super::{Client, PAGE_ITEMS, RpcFlags, done, every_page, parent, request_id, until_restart};
use crate::dataplane::{BlockSize, Identifier};
use crate::error::CliError;
use crate::size::Size;

/// List, add, resize and remove namespaces; connected hosts notice at once.
#[derive(Debug, Args)]
pub(crate) struct NamespaceCommand {
    #[command(flatten)]
    rpc: RpcFlags,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the namespaces of one subsystem, or of all.
    List {
        /// NQN of the subsystem; all without it.
        nqn: Option<String>,
        #[command(flatten)]
        output: OutputFlags,
    },
    /// Add a namespace; it is gone after a restart.
    Add(AddFlags),
    /// Read the size of what backs a namespace anew, after it has grown.
    Resize {
        /// NQN of the subsystem.
        nqn: String,
        /// Namespace identifier.
        #[arg(value_parser = clap::value_parser!(i32).range(1..))]
        nsid: i32,
    },
    /// Remove a namespace. What backs it is kept, unless that is memory; it is let go when the
    /// last command on it has ended. A namespace of the start flags comes back at a restart.
    Remove {
        /// NQN of the subsystem.
        nqn: String,
        /// Namespace identifier.
        #[arg(value_parser = clap::value_parser!(i32).range(1..))]
        nsid: i32,
        /// Also when that destroys data in memory.
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
struct AddFlags {
    /// NQN of the subsystem.
    nqn: String,
    #[command(flatten)]
    backing: BackingFlags,
    /// Namespace identifier [default: the next free].
    #[arg(long, value_parser = clap::value_parser!(i32).range(1..))]
    nsid: Option<i32>,
    /// Logical block size [default: the device's own; 4096 for memory].
    #[arg(long, value_name = "512|4096")]
    block_size: Option<BlockSize>,
    /// UUID by which hosts know it [default: derived from NQN and NSID].
    #[arg(long, value_name = "UUID")]
    uuid: Option<Identifier>,
    /// NGUID by which hosts know it [default: derived from NQN and NSID].
    #[arg(long, value_name = "NGUID")]
    nguid: Option<Identifier>,
    /// ANA group, where the subsystem reports ANA [default: 1].
    #[arg(long, value_name = "GROUP", value_parser = clap::value_parser!(i32).range(1..))]
    ana_group: Option<i32>,
    /// Let other data planes that also say so serve the same path: see docs/guide/multipath.md.
    #[arg(long, requires = "path")]
    shared: bool,
    /// Serve the path as a whole although it is, or was, a pool: hosts overwrite it.
    #[arg(long, requires = "path")]
    raw: bool,
}

/// What holds the data: one of these.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct BackingFlags {
    /// Block device or file; one of the data plane's --allow-path must cover it.
    #[arg(
        long,
        value_name = "PATH",
        conflicts_with_all = ["memory", "bdev"],
        required_unless_present_any = ["memory", "bdev"]
    )]
    path: Option<PathBuf>,
    /// Memory of this size.
    #[arg(long, value_name = "SIZE")]
    memory: Option<Size>,
    /// Block device of SPDK, by its name there, in a data plane that runs with it.
    #[arg(long, value_name = "NAME")]
    bdev: Option<String>,
}

impl NamespaceCommand {
    pub(crate) async fn run(self) -> Result<(), CliError> {
        let mut client = self.rpc.connect().await?;
        match self.verb {
            Verb::List { nqn, output } => {
                output::show(&output, async || list(&mut client, nqn.as_deref()).await).await
            }
            Verb::Add(flags) => add(&mut client, flags).await,
            Verb::Resize { nqn, nsid } => resize(&mut client, &nqn, nsid).await,
            Verb::Remove { nqn, nsid, yes } => remove(&mut client, &nqn, nsid, yes).await,
        }
    }
}

pub(super) async fn list(
    client: &mut Client,
    nqn: Option<&str>,
) -> Result<Vec<NamespaceRow>, CliError> {
    let all = every_page(async |page_token| {
        let request = api::ListNamespacesRequest {
            parent: parent(nqn),
            page_size: PAGE_ITEMS,
            page_token,
        };
        let page = done(
            "namespaces not listed",
            client.list_namespaces(request).await,
        )?;
        Ok((page.namespaces, page.next_page_token))
    });
    Ok(all.await?.into_iter().map(NamespaceRow::from).collect())
}

async fn add(client: &mut Client, flags: AddFlags) -> Result<(), CliError> {
    let what = format!("namespace not added to {}", flags.nqn);
    let BackingFlags { path, memory, bdev } = flags.backing;
    let kind = match (path, bdev) {
        (_, Some(name)) => api::backing::Kind::Bdev(api::BdevBacking { name }),
        (Some(path), None) => {
            let path = std::path::absolute(&path)
                .map_err(|error| CliError::usage(what.clone()).cause(error))?;
            let path = path.into_os_string().into_string().map_err(|path| {
                CliError::usage(what.clone()).cause(format!("{path:?} is not UTF-8"))
            })?;
            let shared = flags.shared;
            api::backing::Kind::Path(api::PathBacking { path, shared })
        }
        (None, None) => {
            let bytes = memory.map_or(0, |size| size.0);
            let size_bytes = i64::try_from(bytes)
                .map_err(|_| CliError::usage(what.clone()).cause("the size is too large"))?;
            api::backing::Kind::Memory(api::MemoryBacking { size_bytes })
        }
    };
    let namespace = api::Namespace {
        nsid: flags.nsid.unwrap_or(0),
        backing: Some(api::Backing { kind: Some(kind) }),
        block_size_bytes: match flags.block_size {
            None => 0,
            Some(BlockSize(bytes)) => i32::try_from(bytes).unwrap_or(0),
        },
        uuid: hexadecimal(flags.uuid),
        nguid: hexadecimal(flags.nguid),
        ana_group_id: flags.ana_group.unwrap_or(0),
        ..Default::default()
    };
    let request = api::CreateNamespaceRequest {
        parent: parent(Some(&flags.nqn)),
        namespace: Some(namespace),
        request_id: request_id(),
        raw: flags.raw,
    };
    let made = NamespaceRow::from(done(&what, client.create_namespace(request).await)?);
    output::say(&format!(
        "namespace {} added to {}, {}; gone after a restart",
        made.nsid,
        flags.nqn,
        made.size()
    ))
}

/// Empty for what the data plane chooses.
fn hexadecimal(identifier: Option<Identifier>) -> String {
    identifier.map_or_else(String::new, |Identifier(bytes)| {
        Uuid::from_bytes(bytes).simple().to_string()
    })
}

async fn resize(client: &mut Client, nqn: &str, nsid: i32) -> Result<(), CliError> {
    let request = api::ResizeNamespaceRequest {
        name: name(nqn, nsid),
        request_id: request_id(),
    };
    let what = format!("namespace {nsid} of {nqn} not resized");
    let made = NamespaceRow::from(done(&what, client.resize_namespace(request).await)?);
    output::say(&format!("namespace {nsid} of {nqn} is {}", made.size()))
}

async fn remove(client: &mut Client, nqn: &str, nsid: i32, yes: bool) -> Result<(), CliError> {
    let what = format!("namespace {nsid} of {nqn} not removed");
    let name = name(nqn, nsid);
    let request = api::GetNamespaceRequest { name: name.clone() };
    let found = NamespaceRow::from(done(&what, client.get_namespace(request).await)?);
    if !yes && found.is_in_memory() {
        return Err(CliError::usage(what)
            .cause("it is in memory; its data would be lost")
            .hint("add --yes if that is meant"));
    }
    let request = api::DeleteNamespaceRequest {
        name,
        request_id: request_id(),
    };
    done(&what, client.delete_namespace(request).await)?;
    output::say(&format!(
        "namespace {nsid} of {nqn} removed{}",
        until_restart(found.persistent)
    ))
}

fn name(nqn: &str, nsid: i32) -> String {
    format!("subsystems/{nqn}/namespaces/{nsid}")
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NamespaceRow {
    subsystem_nqn: String,
    nsid: i32,
    size_bytes: i64,
    block_size_bytes: i32,
    /// "memory", or the path.
    backing: String,
    uuid: String,
    nguid: String,
    /// 0 without ANA.
    ana_group_id: i32,
    volatile_write_cache: bool,
    read_only: bool,
    shared: bool,
    persistent: bool,
    #[serde(skip)]
    in_memory: bool,
}

impl NamespaceRow {
    /// True if removing it loses its data.
    pub(super) fn is_in_memory(&self) -> bool {
        self.in_memory
    }

    fn size(&self) -> String {
        Size(u64::try_from(self.size_bytes).unwrap_or(0)).to_string()
    }
}

impl From<api::Namespace> for NamespaceRow {
    fn from(namespace: api::Namespace) -> Self {
        let kind = namespace.backing.and_then(|backing| backing.kind);
        let (backing, in_memory, shared) = match kind {
            Some(api::backing::Kind::Path(path)) => (path.path, false, path.shared),
            Some(api::backing::Kind::Memory(_)) => ("memory".to_owned(), true, false),
            Some(api::backing::Kind::Bdev(bdev)) => (format!("bdev:{}", bdev.name), false, false),
            Some(api::backing::Kind::Volume(volume)) => (volume.name, false, false),
            None => (String::new(), false, false),
        };
        let nqn = namespace
            .name
            .strip_prefix("subsystems/")
            .and_then(|rest| rest.split('/').next());
        Self {
            subsystem_nqn: nqn.unwrap_or_default().to_owned(),
            nsid: namespace.nsid,
            size_bytes: namespace.size_bytes,
            block_size_bytes: namespace.block_size_bytes,
            backing,
            uuid: namespace.uuid,
            nguid: namespace.nguid,
            ana_group_id: namespace.ana_group_id,
            volatile_write_cache: namespace.volatile_write_cache,
            read_only: namespace.read_only,
            shared,
            persistent: namespace.persistent,
            in_memory,
        }
    }
}

impl Row for NamespaceRow {
    const COLUMNS: &'static [Column] = &[
        Column("SUBSYSTEM", false),
        Column("NSID", false),
        Column("SIZE", false),
        Column("BLOCK", false),
        Column("BACKING", false),
        Column("UUID", true),
        Column("CACHE", true),
        Column("SHARED", true),
        Column("ANA GROUP", true),
        Column("AFTER RESTART", true),
    ];

    fn cells(&self) -> Vec<String> {
        let cache = match (self.read_only, self.volatile_write_cache) {
            (true, _) => "read only",
            (false, true) => "volatile",
            (false, false) => "none",
        };
        vec![
            self.subsystem_nqn.clone(),
            self.nsid.to_string(),
            self.size(),
            self.block_size_bytes.to_string(),
            self.backing.clone(),
            self.uuid.clone(),
            cache.to_owned(),
            if self.shared { "yes" } else { "no" }.to_owned(),
            match self.ana_group_id {
                0 => "-".to_owned(),
                group => group.to_string(),
            },
            match (self.persistent, self.in_memory) {
                // It comes back, its data does not.
                (true, true) => "empty".to_owned(),
                (persistent, _) => super::after_restart(persistent),
            },
        ]
    }
}
