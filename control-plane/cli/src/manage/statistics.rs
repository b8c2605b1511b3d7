//! `bowline statistics`.

use bowline_api::dataplane::v1 as api;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::output::{self, Column, OutputFlags, Row};
use super::{Client, RpcFlags, done};
use crate::error::CliError;
use crate::size::Size;

/// Show what hosts did, since each namespace was made.
#[derive(Debug, Args)]
pub(crate) struct StatisticsCommand {
    #[command(flatten)]
    rpc: RpcFlags,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show the counters of the data plane, of a subsystem, or of a namespace.
    Show {
        /// NQN of the subsystem; the whole data plane without it.
        nqn: Option<String>,
        /// Namespace identifier; the whole subsystem without it.
        #[arg(value_parser = clap::value_parser!(i32).range(1..))]
        nsid: Option<i32>,
        #[command(flatten)]
        output: OutputFlags,
    },
}

impl StatisticsCommand {
    pub(crate) async fn run(self) -> Result<(), CliError> {
        let mut client = self.rpc.connect().await?;
        match self.verb {
            Verb::Show { nqn, nsid, output } => {
                let name = match (nqn, nsid) {
                    (None, _) => "dataplane".to_owned(),
                    (Some(nqn), None) => format!("subsystems/{nqn}"),
                    (Some(nqn), Some(nsid)) => format!("subsystems/{nqn}/namespaces/{nsid}"),
                };
                output::show(&output, async || show(&mut client, &name).await).await
            }
        }
    }
}

async fn show(client: &mut Client, name: &str) -> Result<Vec<StatisticsRow>, CliError> {
    let request = api::GetStatisticsRequest {
        name: name.to_owned(),
    };
    let what = format!("counters of {name} not shown");
    let counted = done(&what, client.get_statistics(request).await)?;
    Ok(vec![StatisticsRow::from(counted)])
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct StatisticsRow {
    name: String,
    read_command_count: i64,
    write_command_count: i64,
    other_command_count: i64,
    error_command_count: i64,
    media_error_command_count: i64,
    read_bytes: i64,
    written_bytes: i64,
    connection_count: i32,
}

impl From<api::Statistics> for StatisticsRow {
    fn from(counted: api::Statistics) -> Self {
        Self {
            name: counted.name,
            read_command_count: counted.read_command_count,
            write_command_count: counted.write_command_count,
            other_command_count: counted.other_command_count,
            error_command_count: counted.error_command_count,
            media_error_command_count: counted.media_error_command_count,
            read_bytes: counted.read_bytes,
            written_bytes: counted.written_bytes,
            connection_count: counted.connection_count,
        }
    }
}

impl Row for StatisticsRow {
    const COLUMNS: &'static [Column] = &[
        Column("RESOURCE", true),
        Column("READS", false),
        Column("READ", false),
        Column("WRITES", false),
        Column("WRITTEN", false),
        Column("OTHERS", false),
        Column("ERRORS", false),
        Column("MEDIA ERRORS", true),
        Column("CONNECTIONS", false),
    ];

    fn cells(&self) -> Vec<String> {
        let size = |bytes: i64| Size(u64::try_from(bytes).unwrap_or(0)).to_string();
        vec![
            self.name.clone(),
            self.read_command_count.to_string(),
            size(self.read_bytes),
            self.write_command_count.to_string(),
            size(self.written_bytes),
            self.other_command_count.to_string(),
            self.error_command_count.to_string(),
            self.media_error_command_count.to_string(),
            self.connection_count.to_string(),
        ]
    }
}
