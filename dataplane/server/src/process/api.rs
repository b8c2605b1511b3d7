//! What there is to be asked once there is something to manage: the services, and the metrics.

use std::io;
use std::net::TcpListener;

use bowline_api::dataplane::v1::data_plane_service_server::DataPlaneServiceServer;
use bowline_api::dataplane::v1::pool_service_server::PoolServiceServer;
use tokio::sync::watch;
use tonic::server::NamedService;
use tonic::service::Routes;

use crate::admission::Admission;
use crate::metrics;
use crate::service::Management;

/// Connections to the metrics; more are closed.
const SCRAPERS_MAX: usize = 64;

/// The names of the services.
pub(super) const SERVICES: [&str; 2] = [
    <DataPlaneServiceServer<Management> as NamedService>::NAME,
    <PoolServiceServer<Management> as NamedService>::NAME,
];

/// The services.
pub(super) fn routes(management: &Management) -> Routes {
    Routes::new(DataPlaneServiceServer::new(management.clone()))
        .add_service(PoolServiceServer::new(management.clone()))
}

impl super::DataPlane {
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

pub(super) fn to_tokio(listener: &TcpListener) -> io::Result<tokio::net::TcpListener> {
    tokio::net::TcpListener::from_std(listener.try_clone()?)
}
