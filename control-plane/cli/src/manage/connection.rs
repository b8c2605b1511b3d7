//! `bowline connection`.

use bowline_api::dataplane::v1 as api;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::output::{self, Column, OutputFlags, Row};
use super::{Client, PAGE_ITEMS, RpcFlags, done, every_page};
use crate::error::CliError;

/// Show who is connected.
#[derive(Debug, Args)]
pub(crate) struct ConnectionCommand {
    #[command(flatten)]
    rpc: RpcFlags,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the connections: one for each queue of each host.
    List {
        #[command(flatten)]
        output: OutputFlags,
    },
}

impl ConnectionCommand {
    pub(crate) async fn run(self) -> Result<(), CliError> {
        let mut client = self.rpc.connect().await?;
        match self.verb {
            Verb::List { output } => output::show(&output, async || list(&mut client).await).await,
        }
    }
}

async fn list(client: &mut Client) -> Result<Vec<ConnectionRow>, CliError> {
    let all = every_page(async |page_token| {
        let request = api::ListConnectionsRequest {
            page_size: PAGE_ITEMS,
            page_token,
        };
        let page = done(
            "connections not listed",
            client.list_connections(request).await,
        )?;
        Ok((page.connections, page.next_page_token))
    });
    Ok(all.await?.into_iter().map(ConnectionRow::from).collect())
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ConnectionRow {
    name: String,
    peer_address: String,
    local_address: String,
    subsystem_nqn: String,
    host_nqn: String,
    cntlid: Option<i32>,
    qid: Option<i32>,
    state: String,
    header_digest: bool,
    data_digest: bool,
    reactor_index: i32,
}

impl From<api::Connection> for ConnectionRow {
    fn from(connection: api::Connection) -> Self {
        let state = match connection.state() {
            api::ConnectionState::Connecting => "connecting",
            api::ConnectionState::Ready => "ready",
            api::ConnectionState::Closing => "closing",
            api::ConnectionState::Unspecified => "unknown",
        };
        Self {
            state: state.to_owned(),
            name: connection.name,
            peer_address: connection.peer_address,
            local_address: connection.local_address,
            subsystem_nqn: connection.subsystem_nqn,
            host_nqn: connection.host_nqn,
            cntlid: connection.cntlid,
            qid: connection.qid,
            header_digest: connection.header_digest,
            data_digest: connection.data_digest,
            reactor_index: connection.reactor_index,
        }
    }
}

impl Row for ConnectionRow {
    const COLUMNS: &'static [Column] = &[
        Column("PEER", false),
        Column("STATE", false),
        Column("QID", false),
        Column("HOST", false),
        Column("SUBSYSTEM", false),
        Column("CNTLID", true),
        Column("LOCAL", true),
        Column("DIGESTS", true),
        Column("REACTOR", true),
    ];

    fn cells(&self) -> Vec<String> {
        let number = |value: Option<i32>| value.map_or_else(|| "-".to_owned(), |v| v.to_string());
        let digests = match (self.header_digest, self.data_digest) {
            (true, true) => "header,data",
            (true, false) => "header",
            (false, true) => "data",
            (false, false) => "none",
        };
        vec![
            self.peer_address.clone(),
            self.state.clone(),
            number(self.qid),
            self.host_nqn.clone(),
            self.subsystem_nqn.clone(),
            number(self.cntlid),
            self.local_address.clone(),
            digests.to_owned(),
            self.reactor_index.to_string(),
        ]
    }
}
