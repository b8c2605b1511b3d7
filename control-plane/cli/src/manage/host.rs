//! `bowline host`.

use bowline_api::dataplane::v1 as api;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::output::{self, Column, OutputFlags, Row};
use super::{Client, PAGE_ITEMS, RpcFlags, done, every_page, parent, request_id, until_restart};
use crate::error::CliError;

/// Say which hosts may connect to a subsystem.
#[derive(Debug, Args)]
pub(crate) struct HostCommand {
    #[command(flatten)]
    rpc: RpcFlags,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the allowed hosts of one subsystem, or of all.
    List {
        /// NQN of the subsystem; all without it.
        nqn: Option<String>,
        #[command(flatten)]
        output: OutputFlags,
    },
    /// Allow a host, or every host. It is forgotten at a restart, unless the subsystem is a volume's.
    Allow {
        /// NQN of the subsystem.
        nqn: String,
        /// NQN of the host, or "any".
        host: String,
    },
    /// Take the permission back and end the host's associations. What the start flags allow
    /// is allowed again after a restart.
    Deny {
        /// NQN of the subsystem.
        nqn: String,
        /// NQN of the host, or "any".
        host: String,
    },
}

impl HostCommand {
    pub(crate) async fn run(self) -> Result<(), CliError> {
        let mut client = self.rpc.connect().await?;
        match self.verb {
            Verb::List { nqn, output } => {
                output::show(&output, async || list(&mut client, nqn.as_deref()).await).await
            }
            Verb::Allow { nqn, host } => allow(&mut client, &nqn, host).await,
            Verb::Deny { nqn, host } => deny(&mut client, &nqn, &host).await,
        }
    }
}

async fn list(client: &mut Client, nqn: Option<&str>) -> Result<Vec<HostRow>, CliError> {
    let all = every_page(async |page_token| {
        let request = api::ListHostsRequest {
            parent: parent(nqn),
            page_size: PAGE_ITEMS,
            page_token,
        };
        let page = done("hosts not listed", client.list_hosts(request).await)?;
        Ok((page.hosts, page.next_page_token))
    });
    Ok(all.await?.into_iter().map(HostRow::from).collect())
}

async fn allow(client: &mut Client, nqn: &str, host_nqn: String) -> Result<(), CliError> {
    let what = format!("host {host_nqn} not allowed");
    let mut done_text = format!("host {host_nqn} may connect to {nqn}");
    let request = api::AllowHostRequest {
        parent: parent(Some(nqn)),
        host_nqn,
        request_id: request_id(),
    };
    let allowed = done(&what, client.allow_host(request).await)?;
    if !allowed.persistent {
        done_text.push_str("; forgotten at a restart");
    }
    output::say(&done_text)
}

async fn deny(client: &mut Client, nqn: &str, host: &str) -> Result<(), CliError> {
    let allowed = list(client, Some(nqn)).await?;
    let comes_back = allowed
        .iter()
        .any(|row| row.nqn == host && row.in_start_flags);
    let request = api::DenyHostRequest {
        name: format!("subsystems/{nqn}/hosts/{host}"),
        request_id: request_id(),
    };
    done(
        &format!("host {host} not denied"),
        client.deny_host(request).await,
    )?;
    output::say(&format!(
        "host {host} may not connect to {nqn} any more{}",
        until_restart(comes_back)
    ))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct HostRow {
    subsystem_nqn: String,
    nqn: String,
    persistent: bool,
    in_start_flags: bool,
}

impl From<api::Host> for HostRow {
    fn from(host: api::Host) -> Self {
        let nqn = host
            .name
            .strip_prefix("subsystems/")
            .and_then(|rest| rest.split('/').next());
        Self {
            subsystem_nqn: nqn.unwrap_or_default().to_owned(),
            nqn: host.nqn,
            persistent: host.persistent,
            in_start_flags: host.in_start_flags,
        }
    }
}

impl Row for HostRow {
    const COLUMNS: &'static [Column] = &[
        Column("SUBSYSTEM", false),
        Column("HOST", false),
        Column("AFTER RESTART", true),
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.subsystem_nqn.clone(),
            self.nqn.clone(),
            super::after_restart(self.persistent),
        ]
    }
}
