//! What answers on the management thread: gRPC with health and reflection, and metrics.

use std::io;
use std::net::TcpListener;

use bowline_api::FILE_DESCRIPTOR_SET;
use bowline_api::dataplane::v1::data_plane_service_server::DataPlaneServiceServer;
use bowline_api::dataplane::v1::pool_service_server::PoolServiceServer;
use tokio::sync::watch;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::drive::pool_failed;
use crate::admission::Admission;
use crate::metrics;
use crate::service::Management;

/// What health is asked for by who sends hosts here: everything that was there at the start can be used.
/// Whether the process lives is another question, which the empty name answers.
const READINESS: &str = "readiness";

/// Connections to the management API, and to the metrics; more are closed.
const CALLERS_MAX: usize = 256;
const SCRAPERS_MAX: usize = 64;

/// Calls of one client at a time; more wait.
const STREAMS_MAX: u32 = 64;

impl super::DataPlane {
    pub(super) fn serve_rpc(
        &self,
        mut stopped: watch::Receiver<bool>,
    ) -> io::Result<HealthReporter> {
        let (reporter, health) = tonic_health::server::health_reporter();
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()
            .map_err(io::Error::other)?;
        let server = Server::builder()
            .max_concurrent_streams(STREAMS_MAX)
            .add_service(health)
            .add_service(reflection)
            .add_service(DataPlaneServiceServer::new(self.management.clone()))
            .add_service(PoolServiceServer::new(self.management.clone()));
        let incoming = Admission::new(to_tokio(&self.rpc)?, "management API", CALLERS_MAX);
        let ready = reporter.clone();
        let pool = self.pool.as_ref().map(|facts| facts.health.clone());
        tokio::spawn(async move {
            set_health(&ready, true).await;
            if let Some(health) = pool {
                tokio::spawn(async move {
                    pool_failed(health).await;
                    tracing::error!("not ready any more: the pool does not work");
                    let status = ServingStatus::NotServing;
                    ready.set_service_status(READINESS, status).await;
                });
            }
            let until = async move {
                let _sender_gone = stopped.wait_for(|stopped| *stopped).await;
            };
            if let Err(error) = server.serve_with_incoming_shutdown(incoming, until).await {
                tracing::error!(%error, "management API ended");
            }
        });
        Ok(reporter)
    }

    pub(super) fn serve_metrics(&self, mut stopped: watch::Receiver<bool>) -> io::Result<()> {
        let listener = Admission::new(to_tokio(&self.metrics)?, "metrics", SCRAPERS_MAX);
        let router = metrics::router(self.management.clone());
        tokio::spawn(async move {
            let until = async move {
                let _sender_gone = stopped.wait_for(|stopped| *stopped).await;
            };
            let served = axum::serve(listener, router)
                .with_graceful_shutdown(until)
                .await;
            if let Err(error) = served {
                tracing::error!(%error, "metrics ended");
            }
        });
        Ok(())
    }
}

pub(super) async fn set_health(reporter: &HealthReporter, serving: bool) {
    let status = match serving {
        true => ServingStatus::Serving,
        false => ServingStatus::NotServing,
    };
    // The empty name stands for the whole server.
    reporter.set_service_status("", status).await;
    let services = [
        READINESS,
        <DataPlaneServiceServer<Management> as tonic::server::NamedService>::NAME,
        <PoolServiceServer<Management> as tonic::server::NamedService>::NAME,
    ];
    for service in services {
        reporter.set_service_status(service, status).await;
    }
}

fn to_tokio(listener: &TcpListener) -> io::Result<tokio::net::TcpListener> {
    tokio::net::TcpListener::from_std(listener.try_clone()?)
}
