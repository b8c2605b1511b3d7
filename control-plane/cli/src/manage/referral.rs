//! `bowline referral`.

use bowline_api::dataplane::v1 as api;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::output::{self, Column, OutputFlags, Row};
use super::{Client, PAGE_ITEMS, RpcFlags, done, every_page, request_id, until_restart};
use crate::dataplane::Address;
use crate::error::CliError;

/// Point hosts that ask for discovery to other discovery subsystems.
#[derive(Debug, Args)]
pub(crate) struct ReferralCommand {
    #[command(flatten)]
    rpc: RpcFlags,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List where hosts are pointed to.
    List {
        #[command(flatten)]
        output: OutputFlags,
    },
    /// Point hosts to another discovery subsystem; it is forgotten at a restart.
    Add {
        /// Its address; the port is 8009 unless given.
        #[arg(value_name = "ADDR[:PORT]")]
        address: Address,
        /// Its NQN [default: the well-known discovery NQN].
        #[arg(long)]
        nqn: Option<String>,
        /// It is known to take persistent connections.
        #[arg(long)]
        persistent_connections: bool,
    },
    /// Stop pointing there. What the start flags made comes back at a restart.
    Remove {
        /// Its address; the port is 8009 unless given.
        #[arg(value_name = "ADDR[:PORT]")]
        address: Address,
    },
}

impl ReferralCommand {
    pub(crate) async fn run(self) -> Result<(), CliError> {
        let mut client = self.rpc.connect().await?;
        match self.verb {
            Verb::List { output } => output::show(&output, async || list(&mut client).await).await,
            Verb::Add {
                address,
                nqn,
                persistent_connections,
            } => {
                let referral = api::Referral {
                    address: address.discovery().to_string(),
                    nqn: nqn.unwrap_or_default(),
                    persistent_connections,
                    ..Default::default()
                };
                add(&mut client, referral).await
            }
            Verb::Remove { address } => remove(&mut client, address).await,
        }
    }
}

async fn list(client: &mut Client) -> Result<Vec<ReferralRow>, CliError> {
    let all = every_page(async |page_token| {
        let request = api::ListReferralsRequest {
            page_size: PAGE_ITEMS,
            page_token,
        };
        let page = done("referrals not listed", client.list_referrals(request).await)?;
        Ok((page.referrals, page.next_page_token))
    });
    Ok(all.await?.into_iter().map(ReferralRow::from).collect())
}

async fn add(client: &mut Client, referral: api::Referral) -> Result<(), CliError> {
    let what = format!("referral to {} not added", referral.address);
    let request = api::CreateReferralRequest {
        referral: Some(referral),
        request_id: request_id(),
    };
    let made = done(&what, client.create_referral(request).await)?;
    output::say(&format!(
        "hosts are pointed to {} too; forgotten at a restart",
        made.address
    ))
}

async fn remove(client: &mut Client, address: Address) -> Result<(), CliError> {
    let address = address.discovery().to_string();
    let known = list(client).await?;
    let persistent = known
        .iter()
        .any(|it| it.address == address && it.persistent);
    let request = api::DeleteReferralRequest {
        name: format!("referrals/{address}"),
        request_id: request_id(),
    };
    let what = format!("referral to {address} not removed");
    done(&what, client.delete_referral(request).await)?;
    output::say(&format!(
        "hosts are not pointed to {address} any more{}",
        until_restart(persistent)
    ))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ReferralRow {
    address: String,
    nqn: String,
    persistent_connections: bool,
    persistent: bool,
}

impl From<api::Referral> for ReferralRow {
    fn from(referral: api::Referral) -> Self {
        Self {
            address: referral.address,
            nqn: referral.nqn,
            persistent_connections: referral.persistent_connections,
            persistent: referral.persistent,
        }
    }
}

impl Row for ReferralRow {
    const COLUMNS: &'static [Column] = &[
        Column("ADDRESS", false),
        Column("NQN", false),
        Column("PERSISTENT CONNECTIONS", true),
        Column("AFTER RESTART", true),
    ];

    fn cells(&self) -> Vec<String> {
        let known = if self.persistent_connections {
            "yes"
        } else {
            "not known"
        };
        vec![
            self.address.clone(),
            self.nqn.clone(),
            known.to_owned(),
            super::after_restart(self.persistent),
        ]
    }
}
