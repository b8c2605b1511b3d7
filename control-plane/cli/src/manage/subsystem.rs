//! `bowline subsystem`.

use bowline_api::dataplane::v1 as api;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::output::{self, Column, OutputFlags, Row};
use super::{Client, PAGE_ITEMS, RpcFlags, done, every_page, namespace, request_id, until_restart};
use crate::dataplane::CntlidRange;
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
    Create(CreateFlags),
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

#[derive(Debug, Args)]
struct CreateFlags {
    /// NQN of the subsystem.
    nqn: String,
    /// Serial number, 1 to 20 characters [default: derived from the NQN].
    #[arg(long, value_name = "TEXT")]
    serial: Option<String>,
    /// Controller IDs that this data plane may give out; data planes that export one subsystem
    /// need ranges that do not overlap [default: all, 1-65519].
    #[arg(long, value_name = "FIRST-LAST")]
    cntlid_range: Option<CntlidRange>,
    /// Controllers at a time; hosts beyond that are refused [default: 1024].
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(i32).range(1..=65519))]
    controllers_max: Option<i32>,
    /// Tell hosts how its namespaces are reached through this data plane.
    #[arg(long)]
    ana: bool,
    /// Namespaces at most; hosts size tables by it [default: 256].
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(i32).range(1..=16384))]
    namespaces_max: Option<i32>,
}

impl SubsystemCommand {
    pub(crate) async fn run(self) -> Result<(), CliError> {
        let mut client = self.rpc.connect().await?;
        match self.verb {
            Verb::List { output } => output::show(&output, async || list(&mut client).await).await,
            Verb::Create(flags) => create(&mut client, flags).await,
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

async fn create(client: &mut Client, flags: CreateFlags) -> Result<(), CliError> {
    let what = format!("subsystem {} not created", flags.nqn);
    let subsystem = api::Subsystem {
        nqn: flags.nqn,
        serial_number: flags.serial.unwrap_or_default(),
        cntlid_range: flags
            .cntlid_range
            .map(|CntlidRange(first, last)| api::CntlidRange {
                first_cntlid: i32::from(first),
                last_cntlid: i32::from(last),
            }),
        controller_max_count: flags.controllers_max.unwrap_or(0),
        ana: flags.ana,
        namespace_max_count: flags.namespaces_max.unwrap_or(0),
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
    namespace_max_count: i32,
    /// "1-65519".
    cntlid_range: String,
    controller_max_count: i32,
    ana: bool,
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
        let range = subsystem.cntlid_range.unwrap_or_default();
        Self {
            cntlid_range: format!("{}-{}", range.first_cntlid, range.last_cntlid),
            controller_max_count: subsystem.controller_max_count,
            ana: subsystem.ana,
            namespace_max_count: subsystem.namespace_max_count,
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
        Column("CNTLIDS", true),
        Column("ANA", true),
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
            self.cntlid_range.clone(),
            if self.ana { "yes" } else { "no" }.to_owned(),
            self.reactor_index.to_string(),
            super::after_restart(self.persistent),
        ]
    }
}
