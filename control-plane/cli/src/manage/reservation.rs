//! `bowline reservation`.

use bowline_api::dataplane::v1 as api;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::output::{self, Column, OutputFlags, Row};
use super::{Client, PAGE_ITEMS, RpcFlags, done, every_page, parent};
use crate::error::CliError;

/// Show which hosts reserved which namespaces; hosts make and end reservations themselves.
#[derive(Debug, Args)]
pub(crate) struct ReservationCommand {
    #[command(flatten)]
    rpc: RpcFlags,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the registrants of one subsystem's namespaces, or of all, and who holds what.
    List {
        /// NQN of the subsystem; all without it.
        nqn: Option<String>,
        #[command(flatten)]
        output: OutputFlags,
    },
}

impl ReservationCommand {
    pub(crate) async fn run(self) -> Result<(), CliError> {
        let mut client = self.rpc.connect().await?;
        match self.verb {
            Verb::List { nqn, output } => {
                output::show(&output, async || list(&mut client, nqn.as_deref()).await).await
            }
        }
    }
}

async fn list(client: &mut Client, nqn: Option<&str>) -> Result<Vec<RegistrantRow>, CliError> {
    let all = every_page(async |page_token| {
        let request = api::ListReservationsRequest {
            parent: parent(nqn),
            page_size: PAGE_ITEMS,
            page_token,
        };
        let page = done(
            "reservations not listed",
            client.list_reservations(request).await,
        )?;
        Ok((page.reservations, page.next_page_token))
    });
    Ok(all.await?.into_iter().flat_map(rows).collect())
}

/// One row for each registrant.
fn rows(found: api::Reservations) -> Vec<RegistrantRow> {
    let mut parts = found.name.split('/');
    let nqn = parts.nth(1).unwrap_or_default().to_owned();
    let nsid = parts.nth(1).and_then(|nsid| nsid.parse().ok()).unwrap_or(0);
    let reserved = match found.r#type() {
        api::ReservationType::Unspecified => "nothing",
        api::ReservationType::WriteExclusive => "write-exclusive",
        api::ReservationType::ExclusiveAccess => "exclusive-access",
        api::ReservationType::WriteExclusiveRegistrantsOnly => "write-exclusive-registrants-only",
        api::ReservationType::ExclusiveAccessRegistrantsOnly => "exclusive-access-registrants-only",
        api::ReservationType::WriteExclusiveAllRegistrants => "write-exclusive-all-registrants",
        api::ReservationType::ExclusiveAccessAllRegistrants => "exclusive-access-all-registrants",
    };
    let row = |registrant: api::Registrant| RegistrantRow {
        subsystem_nqn: nqn.clone(),
        nsid,
        host_nqn: registrant.host_nqn,
        host_id: registrant.host_id,
        holder: registrant.holder,
        r#type: reserved,
        generation_count: found.generation_count,
        persist_through_power_loss: found.persist_through_power_loss,
        persistence_supported: found.persistence_supported,
    };
    found.registrants.into_iter().map(row).collect()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RegistrantRow {
    subsystem_nqn: String,
    nsid: i32,
    /// Empty if it is not connected.
    host_nqn: String,
    host_id: String,
    holder: bool,
    r#type: &'static str,
    generation_count: i64,
    persist_through_power_loss: bool,
    persistence_supported: bool,
}

impl Row for RegistrantRow {
    const COLUMNS: &'static [Column] = &[
        Column("SUBSYSTEM", false),
        Column("NSID", false),
        Column("HOST", false),
        Column("HOLDS", false),
        Column("RESERVED", false),
        Column("GENERATION", true),
        Column("AFTER RESTART", true),
        Column("HOST ID", true),
    ];

    fn cells(&self) -> Vec<String> {
        let host = match self.host_nqn.as_str() {
            "" => format!("{} (not connected)", self.host_id),
            nqn => nqn.to_owned(),
        };
        vec![
            self.subsystem_nqn.clone(),
            self.nsid.to_string(),
            host,
            if self.holder { "yes" } else { "no" }.to_owned(),
            self.r#type.to_owned(),
            self.generation_count.to_string(),
            super::after_restart(self.persist_through_power_loss),
            self.host_id.clone(),
        ]
    }
}
