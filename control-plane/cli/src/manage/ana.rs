//! `bowline ana`.

use std::time::{Duration, Instant};

use bowline_api::dataplane::v1 as api;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::output::{self, Column, OutputFlags, Row};
use super::{Client, PAGE_ITEMS, RpcFlags, done, every_page, parent, request_id};
use crate::dataplane::AnaFlag;
use crate::error::CliError;

/// How long commands at the drive may take to end, and how often that is asked.
const DRAIN_PATIENCE: Duration = Duration::from_secs(30);
const DRAIN_INTERVAL: Duration = Duration::from_millis(20);

/// Say how namespaces are reached through a data plane (Asymmetric Namespace Access).
#[derive(Debug, Args)]
pub(crate) struct AnaCommand {
    #[command(flatten)]
    rpc: RpcFlags,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the ANA groups of one subsystem, or of all.
    List {
        /// NQN of the subsystem; all without it.
        nqn: Option<String>,
        #[command(flatten)]
        output: OutputFlags,
    },
    /// Set the state of a group; hosts notice at once. Into a state without access it returns
    /// when the drive has answered what was under way. It is forgotten at a restart.
    Set {
        /// NQN of the subsystem.
        nqn: String,
        /// The new state.
        #[arg(value_enum)]
        state: AnaFlag,
        /// ANA group.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..))]
        group: i32,
    },
    /// Move a namespace to another group, which may be new. It is forgotten at a restart.
    Move {
        /// NQN of the subsystem.
        nqn: String,
        /// Namespace identifier.
        #[arg(value_parser = clap::value_parser!(i32).range(1..))]
        nsid: i32,
        /// ANA group.
        #[arg(value_parser = clap::value_parser!(i32).range(1..))]
        group: i32,
    },
}

impl AnaCommand {
    pub(crate) async fn run(self) -> Result<(), CliError> {
        let mut client = self.rpc.connect().await?;
        match self.verb {
            Verb::List { nqn, output } => {
                output::show(&output, async || list(&mut client, nqn.as_deref()).await).await
            }
            Verb::Set { nqn, state, group } => set(&mut client, &nqn, group, state).await,
            Verb::Move { nqn, nsid, group } => move_to(&mut client, &nqn, nsid, group).await,
        }
    }
}

async fn list(client: &mut Client, nqn: Option<&str>) -> Result<Vec<AnaRow>, CliError> {
    let all = every_page(async |page_token| {
        let request = api::ListAnaGroupsRequest {
            parent: parent(nqn),
            page_size: PAGE_ITEMS,
            page_token,
        };
        let page = done(
            "ANA groups not listed",
            client.list_ana_groups(request).await,
        )?;
        Ok((page.ana_groups, page.next_page_token))
    });
    Ok(all.await?.into_iter().map(AnaRow::from).collect())
}

async fn set(client: &mut Client, nqn: &str, group: i32, flag: AnaFlag) -> Result<(), CliError> {
    let what = format!("state of ANA group {group} of {nqn} not set");
    let name = format!("subsystems/{nqn}/anaGroups/{group}");
    let request = api::SetAnaStateRequest {
        name: name.clone(),
        state: match flag {
            AnaFlag::Optimized => api::AnaState::Optimized,
            AnaFlag::NonOptimized => api::AnaState::NonOptimized,
            AnaFlag::Inaccessible => api::AnaState::Inaccessible,
            AnaFlag::PersistentLoss => api::AnaState::PersistentLoss,
            AnaFlag::Change => api::AnaState::Change,
        }
        .into(),
        request_id: request_id(),
    };
    let mut found = done(&what, client.set_ana_state(request).await)?;
    let refuses = !matches!(flag, AnaFlag::Optimized | AnaFlag::NonOptimized);
    let started = Instant::now();
    while refuses && found.executing_command_count > 0 {
        if started.elapsed() > DRAIN_PATIENCE {
            let cause = format!(
                "{} commands are still at the drive",
                found.executing_command_count
            );
            return Err(CliError::failed(format!(
                "ANA group {group} of {nqn} is {}, but not at rest",
                state(found.state())
            ))
            .cause(cause)
            .hint("look at the drive; `bowline ana list -o wide` shows when they have ended"));
        }
        tokio::time::sleep(DRAIN_INTERVAL).await;
        let request = api::GetAnaGroupRequest { name: name.clone() };
        found = done(&what, client.get_ana_group(request).await)?;
    }
    output::say(&format!(
        "ANA group {group} of {nqn} is {} (change {})",
        state(found.state()),
        found.change_count
    ))
}

async fn move_to(client: &mut Client, nqn: &str, nsid: i32, group: i32) -> Result<(), CliError> {
    let what = format!("namespace {nsid} of {nqn} not moved to ANA group {group}");
    let request = api::SetAnaGroupRequest {
        name: format!("subsystems/{nqn}/namespaces/{nsid}"),
        ana_group_id: group,
        request_id: request_id(),
    };
    done(&what, client.set_ana_group(request).await)?;
    output::say(&format!(
        "namespace {nsid} of {nqn} is in ANA group {group}"
    ))
}

fn state(state: api::AnaState) -> &'static str {
    match state {
        api::AnaState::Optimized => "optimized",
        api::AnaState::NonOptimized => "non-optimized",
        api::AnaState::Inaccessible => "inaccessible",
        api::AnaState::PersistentLoss => "persistent-loss",
        api::AnaState::Change => "change",
        api::AnaState::Unspecified => "unknown",
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AnaRow {
    subsystem_nqn: String,
    ana_group_id: i32,
    state: &'static str,
    change_count: i64,
    nsids: Vec<i32>,
    executing_command_count: i32,
}

impl From<api::AnaGroup> for AnaRow {
    fn from(group: api::AnaGroup) -> Self {
        let nqn = group
            .name
            .strip_prefix("subsystems/")
            .and_then(|rest| rest.split('/').next());
        Self {
            subsystem_nqn: nqn.unwrap_or_default().to_owned(),
            ana_group_id: group.ana_group_id,
            state: state(group.state()),
            change_count: group.change_count,
            nsids: group.nsids,
            executing_command_count: group.executing_command_count,
        }
    }
}

impl Row for AnaRow {
    const COLUMNS: &'static [Column] = &[
        Column("SUBSYSTEM", false),
        Column("GROUP", false),
        Column("STATE", false),
        Column("NAMESPACES", false),
        Column("CHANGES", true),
        Column("AT DRIVE", true),
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.subsystem_nqn.clone(),
            self.ana_group_id.to_string(),
            self.state.to_owned(),
            self.nsids.len().to_string(),
            self.change_count.to_string(),
            self.executing_command_count.to_string(),
        ]
    }
}
