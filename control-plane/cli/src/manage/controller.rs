//! `bowline controller`.

use std::time::{Duration, SystemTime};

use bowline_api::dataplane::v1 as api;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::output::{self, Column, OutputFlags, Row};
use super::{Client, PAGE_ITEMS, RpcFlags, done, every_page, parent};
use crate::error::CliError;

/// Show the controllers: which host has an association with which subsystem.
#[derive(Debug, Args)]
pub(crate) struct ControllerCommand {
    #[command(flatten)]
    rpc: RpcFlags,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the controllers of one subsystem, or of all.
    List {
        /// NQN of the subsystem; all without it.
        nqn: Option<String>,
        #[command(flatten)]
        output: OutputFlags,
    },
}

impl ControllerCommand {
    pub(crate) async fn run(self) -> Result<(), CliError> {
        let mut client = self.rpc.connect().await?;
        match self.verb {
            Verb::List { nqn, output } => {
                output::show(&output, async || list(&mut client, nqn.as_deref()).await).await
            }
        }
    }
}

async fn list(client: &mut Client, nqn: Option<&str>) -> Result<Vec<ControllerRow>, CliError> {
    let all = every_page(async |page_token| {
        let request = api::ListControllersRequest {
            parent: parent(nqn),
            page_size: PAGE_ITEMS,
            page_token,
        };
        let page = done(
            "controllers not listed",
            client.list_controllers(request).await,
        )?;
        Ok((page.controllers, page.next_page_token))
    });
    Ok(all.await?.into_iter().map(ControllerRow::from).collect())
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ControllerRow {
    subsystem_nqn: String,
    cntlid: i32,
    host_nqn: String,
    host_id: String,
    ready: bool,
    io_queue_count: i32,
    keep_alive_timeout_ms: i64,
    executing_command_count: i32,
    error_log_entry_count: i64,
    connected_seconds: u64,
    silent_seconds: u64,
}

impl From<api::Controller> for ControllerRow {
    fn from(controller: api::Controller) -> Self {
        let nqn = controller
            .name
            .strip_prefix("subsystems/")
            .and_then(|rest| rest.split('/').next());
        Self {
            subsystem_nqn: nqn.unwrap_or_default().to_owned(),
            cntlid: controller.cntlid,
            ready: controller.ready,
            io_queue_count: controller.io_queue_count,
            keep_alive_timeout_ms: controller.keep_alive_timeout_ms,
            executing_command_count: controller.executing_command_count,
            error_log_entry_count: controller.error_log_entry_count,
            connected_seconds: age_seconds(controller.connect_time),
            silent_seconds: age_seconds(controller.last_command_time),
            host_nqn: controller.host_nqn,
            host_id: controller.host_id,
        }
    }
}

/// How long ago it was, by the clock of this machine.
fn age_seconds(time: Option<prost_types::Timestamp>) -> u64 {
    let time = time.and_then(|time| SystemTime::try_from(time).ok());
    let age = time.map(|time| time.elapsed().unwrap_or_default());
    age.unwrap_or(Duration::ZERO).as_secs()
}

impl Row for ControllerRow {
    const COLUMNS: &'static [Column] = &[
        Column("SUBSYSTEM", false),
        Column("CNTLID", false),
        Column("HOST", false),
        Column("STATE", false),
        Column("QUEUES", false),
        Column("KATO", true),
        Column("SILENT", true),
        Column("CONNECTED", true),
        Column("AT DRIVE", true),
        Column("ERRORS", true),
        Column("HOST ID", true),
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.subsystem_nqn.clone(),
            self.cntlid.to_string(),
            self.host_nqn.clone(),
            if self.ready { "ready" } else { "not ready" }.to_owned(),
            self.io_queue_count.to_string(),
            match self.keep_alive_timeout_ms {
                0 => "none".to_owned(),
                ms => format!("{ms}ms"),
            },
            format!("{}s", self.silent_seconds),
            format!("{}s", self.connected_seconds),
            self.executing_command_count.to_string(),
            self.error_log_entry_count.to_string(),
            self.host_id.clone(),
        ]
    }
}
