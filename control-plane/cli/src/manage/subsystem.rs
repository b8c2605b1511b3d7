//! `bowline subsystem`.

use bowline_api::dataplane::v1 as api;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::output::{self, Column, OutputFlags, Row};
use super::{Client, PAGE_ITEMS, RpcFlags, done, every_page, namespace, request_id, until_restart};
use crate::error::CliError;

/// List, create and delete subsystems of a data plane.
#[derive(Debug, Args)]
pub(crate) struct SubsystemCommand {
    #[command(flatten)]
    rpc: RpcFlags,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the subsystems.
    List {
        #[command(flatten)]
        output: OutputFlags,
    },
    /// Make an empty subsystem that serves nobody yet; it is gone after a restart.
    Create {
        /// NQN of the subsystem.
        nqn: String,
    },
    /// End every association with a subsystem, and remove it and its namespaces. What the start
    /// flags made comes back at a restart.
    Delete {
        /// NQN of the subsystem.
        nqn: String,
        /// Also when that destroys the data of namespaces in memory.
        #[arg(long)]
        yes: bool,
    },
}

impl SubsystemCommand {
    pub(crate) async fn run(self) -> Result<(), CliError> {
        let mut client = self.rpc.connect().await?;
        match self.verb {
            Verb::List { output } => output::print(&list(&mut client).await?, output.output),
            Verb::Create { nqn } => create(&mut client, nqn).await,
            Verb::Delete { nqn, yes } => delete(&mut client, nqn, yes).await,
        }
    }
}

async fn list(client: &mut Client) -> Result<Vec<SubsystemRow>, CliError> {
    let all = every_page(async |page_token| {
        let request = api::ListSubsystemsRequest {
            page_size: PAGE_ITEMS,
            page_token,
        };
        let page = done(
            "subsystems not listed",
            client.list_subsystems(request).await,
        )?;
        Ok((page.subsystems, page.next_page_token))
    });
    Ok(all.await?.into_iter().map(SubsystemRow::from).collect())
}

async fn create(client: &mut Client, nqn: String) -> Result<(), CliError> {
    let what = format!("subsystem {nqn} not created");
    let subsystem = api::Subsystem {
        nqn,
        ..Default::default()
    };
    let request = api::CreateSubsystemRequest {
        subsystem: Some(subsystem),
        request_id: request_id(),
    };
    let made = done(&what, client.create_subsystem(request).await)?;
    output::say(&format!(
        "{} created; nobody may connect until `bowline host allow`; gone after a restart",
        made.nqn
    ))
}

async fn delete(client: &mut Client, nqn: String, yes: bool) -> Result<(), CliError> {
    let what = format!("subsystem {nqn} not deleted");
    if !yes {
        let namespaces = namespace::list(client, Some(&nqn)).await?;
        let in_memory = namespaces
            .iter()
            .filter(|namespace| namespace.is_in_memory())
            .count();
        if in_memory > 0 {
            return Err(CliError::usage(what)
                .cause(format!(
                    "it has {in_memory} namespaces in memory; their data would be lost"
                ))
                .hint("add --yes if that is meant"));
        }
    }
    let name = format!("subsystems/{nqn}");
    let request = api::GetSubsystemRequest { name: name.clone() };
    let found = done(&what, client.get_subsystem(request).await)?;
    let request = api::DeleteSubsystemRequest {
        name,
        request_id: request_id(),
    };
    done(&what, client.delete_subsystem(request).await)?;
    output::say(&format!("{nqn} deleted{}", until_restart(found.persistent)))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SubsystemRow {
    nqn: String,
    serial_number: String,
    hosts: String,
    host_count: i32,
    namespace_count: i32,
    reactor_index: i32,
    persistent: bool,
}

impl From<api::Subsystem> for SubsystemRow {
    fn from(subsystem: api::Subsystem) -> Self {
        let hosts = match subsystem.host_access() {
            api::HostAccess::Any => "any",
            api::HostAccess::Listed => "listed",
            api::HostAccess::None | api::HostAccess::Unspecified => "none",
        };
        Self {
            hosts: hosts.to_owned(),
            nqn: subsystem.nqn,
            serial_number: subsystem.serial_number,
            host_count: subsystem.host_count,
            namespace_count: subsystem.namespace_count,
            reactor_index: subsystem.reactor_index,
            persistent: subsystem.persistent,
        }
    }
}

impl Row for SubsystemRow {
    const COLUMNS: &'static [Column] = &[
        Column("NQN", false),
        Column("NAMESPACES", false),
        Column("HOSTS", false),
        Column("SERIAL", true),
        Column("REACTOR", true),
        Column("AFTER RESTART", true),
    ];

    fn cells(&self) -> Vec<String> {
        let hosts = match self.hosts.as_str() {
            "listed" => self.host_count.to_string(),
            other => other.to_owned(),
        };
        vec![
            self.nqn.clone(),
            self.namespace_count.to_string(),
            hosts,
            self.serial_number.clone(),
            self.reactor_index.to_string(),
            super::after_restart(self.persistent),
        ]
    }
}
