//! The verbs that talk to a running data plane over its management API.

mod ana;
mod connection;
mod controller;
mod host;
mod namespace;
mod output;
mod pool;
mod referral;
mod reservation;
mod snapshot;
mod statistics;
mod subsystem;
mod volume;

use std::error::Error;
use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use bowline_api::dataplane::v1::data_plane_service_client::DataPlaneServiceClient;
use bowline_api::dataplane::v1::pool_service_client::PoolServiceClient;
use clap::Args;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

pub(crate) use ana::AnaCommand;
pub(crate) use connection::ConnectionCommand;
pub(crate) use controller::ControllerCommand;
pub(crate) use host::HostCommand;
pub(crate) use namespace::NamespaceCommand;
pub(crate) use output::{OutputFlags, say};
pub(crate) use pool::{pause_scrub, resume_scrub, show_pool, start_scrub, stop_scrub};
pub(crate) use referral::ReferralCommand;
pub(crate) use reservation::ReservationCommand;
pub(crate) use snapshot::SnapshotCommand;
pub(crate) use statistics::StatisticsCommand;
pub(crate) use subsystem::SubsystemCommand;
pub(crate) use volume::VolumeCommand;

use crate::dataplane::Address;
use crate::error::CliError;

/// Time to reach a data plane.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for one call; opening a slow device takes longest.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Items asked for at a time; the server's largest page.
const PAGE_ITEMS: i32 = 1000;

/// Which data plane is meant.
#[derive(Debug, Args)]
pub(crate) struct RpcFlags {
    /// Address of the data plane's management API [default: 127.0.0.1:7410].
    #[arg(
        long,
        value_name = "ADDR[:PORT]",
        env = "BOWLINE_RPC",
        hide_env = true,
        global = true
    )]
    rpc: Option<Address>,
}

/// A client of one data plane.
pub(crate) type Client = DataPlaneServiceClient<Channel>;

/// A client of its pool.
pub(crate) type PoolClient = PoolServiceClient<Channel>;

impl RpcFlags {
    pub(crate) async fn connect(&self) -> Result<Client, CliError> {
        self.channel().await.map(Client::new)
    }

    pub(crate) async fn connect_pool(&self) -> Result<PoolClient, CliError> {
        self.channel().await.map(PoolClient::new)
    }

    /// Where the data plane is asked.
    fn address(&self) -> SocketAddr {
        self.rpc.unwrap_or(Address::LOOPBACK).rpc()
    }

    async fn channel(&self) -> Result<Channel, CliError> {
        let address = self.address();
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| CliError::usage(format!("{address} is not usable")).cause(error))?
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(CALL_TIMEOUT);
        endpoint.connect().await.map_err(|error| {
            CliError::failed(format!("no data plane reached at {address}"))
                .cause(root_cause(&error))
                .hint("start one with `bowline dataplane`, or name the address of one with --rpc")
        })
    }
}

/// Runs a verb to its end on this thread.
pub(crate) fn block_on<T>(verb: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::failed("the client did not start").cause(error))?
        .block_on(verb)
}

/// A new identifier for a mutation, so that a call tried again has one effect.
fn request_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// The answer, or the error with what was not done.
fn done<T>(what: &str, answer: Result<Response<T>, Status>) -> Result<T, CliError> {
    answer
        .map(Response::into_inner)
        .map_err(|status| CliError::from_status(what, &status))
}

/// Asks for pages until the last.
async fn every_page<T>(
    mut page: impl AsyncFnMut(String) -> Result<(Vec<T>, String), CliError>,
) -> Result<Vec<T>, CliError> {
    let mut all = Vec::new();
    let mut token = String::new();
    loop {
        let (items, next) = page(token).await?;
        all.extend(items);
        if next.is_empty() {
            return Ok(all);
        }
        token = next;
    }
}

/// The parent of a list: one subsystem, or all.
fn parent(nqn: Option<&str>) -> String {
    format!("subsystems/{}", nqn.unwrap_or("-"))
}

/// What a table says about a restart.
fn after_restart(persistent: bool) -> String {
    if persistent { "kept" } else { "gone" }.to_owned()
}

/// What to add when something was taken away that the start flags bring back.
fn until_restart(persistent: bool) -> &'static str {
    match persistent {
        true => " until the next restart: it is in the start flags",
        false => "",
    }
}

/// The innermost error says what the system said.
fn root_cause(error: &dyn Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
