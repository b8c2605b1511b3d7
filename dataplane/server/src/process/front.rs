//! The address of the management API, which answers from before a pool is opened on: health at once, and everything else
//! as soon as there is something to manage. Until then callers are told how far it is.

use std::io;
use std::net::TcpListener;
use std::sync::{Arc, OnceLock};

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use bowline_api::{FILE_DESCRIPTOR_SET, Failure, Reason};
use bowline_pool::Recovery;
use tokio::sync::watch;
use tonic::Status;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tower::ServiceExt;

use super::api::{self, SERVICES};
use super::drive::pool_failed;
use crate::admission::Admission;
use crate::pool::PoolHealth;

/// What health is asked for by who sends hosts here: everything that was there at the start can be used.
/// Whether the process lives is another question, which the empty name answers.
const READINESS: &str = "readiness";

/// Connections to the management API; more are closed.
const CALLERS_MAX: usize = 256;

/// Calls of one client at a time; more wait.
const STREAMS_MAX: u32 = 64;

/// What answers.
#[derive(Clone)]
pub(super) struct Front {
    reporter: HealthReporter,
    /// Management, once there is something to manage.
    rest: Arc<OnceLock<Routes>>,
    /// How far the opening of the pool is.
    recovery: watch::Receiver<Option<Recovery>>,
}

impl Front {
    /// Begins to answer.
    pub(super) async fn serve(
        listener: &TcpListener,
        recovery: watch::Receiver<Option<Recovery>>,
        mut stopped: watch::Receiver<bool>,
    ) -> io::Result<Self> {
        let (reporter, health) = tonic_health::server::health_reporter();
        let front = Self {
            reporter,
            rest: Arc::default(),
            recovery,
        };
        // The process lives; nothing of it can be used yet.
        front.set("", ServingStatus::Serving).await;
        front.set_usable(ServingStatus::NotServing).await;
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()
            .map_err(io::Error::other)?;
        let rest = front.clone();
        let router = Routes::new(health)
            .add_service(reflection)
            .into_axum_router()
            .fallback(move |request: Request| rest.clone().answer(request));
        let server = Server::builder()
            .max_concurrent_streams(STREAMS_MAX)
            .add_routes(Routes::from(router).prepare());
        let incoming = Admission::new(api::to_tokio(listener)?, "management API", CALLERS_MAX);
        tokio::spawn(async move {
            let until = async move {
                let _sender_gone = stopped.wait_for(|stopped| *stopped).await;
            };
            if let Err(error) = server.serve_with_incoming_shutdown(incoming, until).await {
                tracing::error!(%error, "management API ended");
            }
        });
        Ok(front)
    }

    /// From now on everything answers and is ready, until the pool fails, if there is one.
    pub(super) async fn open(&self, rest: Routes, pool: Option<watch::Receiver<PoolHealth>>) {
        if self.rest.set(rest.prepare()).is_err() {
            return;
        }
        self.set_usable(ServingStatus::Serving).await;
        if let Some(health) = pool {
            let front = self.clone();
            tokio::spawn(async move {
                pool_failed(health).await;
                tracing::error!("not ready any more: the pool does not work");
                front.set(READINESS, ServingStatus::NotServing).await;
            });
        }
    }

    /// The process is being stopped.
    pub(super) async fn stop(&self) {
        self.set("", ServingStatus::NotServing).await;
        self.set_usable(ServingStatus::NotServing).await;
    }

    async fn set_usable(&self, status: ServingStatus) {
        for service in [&[READINESS], &SERVICES[..]].concat() {
            self.set(service, status).await;
        }
    }

    async fn set(&self, service: &str, status: ServingStatus) {
        self.reporter.set_service_status(service, status).await;
    }

    /// What has no place of its own here.
    async fn answer(self, request: Request) -> Response {
        let Some(rest) = self.rest.get() else {
            return self.not_yet().into_http();
        };
        match rest.clone().oneshot(request).await {
            Ok(response) => response.map(Body::new),
            Err(never) => match never {},
        }
    }

    fn not_yet(&self) -> Status {
        let cause = match *self.recovery.borrow() {
            Some(recovery) => format!("the pool is being opened: {recovery}"),
            None => "what it serves is being opened".to_owned(),
        };
        Failure::new(Reason::Starting, "the data plane is not ready yet")
            .cause(cause)
            .hint("ask again in a moment")
            .into()
    }
}

#[cfg(test)]
mod tests {
    use bowline_api::dataplane::v1::GetPoolRequest;
    use bowline_api::dataplane::v1::pool_service_client::PoolServiceClient;
    use bowline_pool::RecoveryPhase;
    use tonic::Code;
    use tonic::transport::Channel;
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_check_response::ServingStatus as Shown;
    use tonic_health::pb::health_client::HealthClient;

    use super::*;

    fn request(service: &str) -> HealthCheckRequest {
        HealthCheckRequest {
            service: service.to_owned(),
        }
    }

    #[tokio::test]
    async fn a_pool_that_is_being_opened_is_not_ready_and_says_how_far_it_is() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let (told, recovery) = watch::channel(None);
        let (_stop, stopped) = watch::channel(false);
        let front = Front::serve(&listener, recovery, stopped).await.unwrap();
        let uri = format!("http://{}", listener.local_addr().unwrap());
        let channel = Channel::from_shared(uri).unwrap().connect().await.unwrap();
        let mut health = HealthClient::new(channel.clone());
        let lives = health.check(request("")).await.unwrap().into_inner();
        assert_eq!(lives.status(), Shown::Serving);
        let watched = health.watch(request("readiness")).await.unwrap();
        let mut watched = watched.into_inner();
        let first = watched.message().await.unwrap().unwrap();
        assert_eq!(first.status(), Shown::NotServing);

        let mut client = PoolServiceClient::new(channel);
        let mut why = async || {
            let request = GetPoolRequest {
                name: "pool".to_owned(),
            };
            client.get_pool(request).await.unwrap_err()
        };
        let refused = why().await;
        assert_eq!(refused.code(), Code::Unavailable);
        told.send_replace(Some(Recovery {
            phase: RecoveryPhase::Journal,
            done: 3,
            total: 8,
        }));
        let (reason, cause, _) = Failure::explain(&why().await).unwrap();
        assert_eq!(reason, "STARTING");
        assert!(cause.ends_with("journal, 3 of 8 sectors"), "{cause}");

        // The same connection comes through to what there is then.
        let (failed, pool) = watch::channel(PoolHealth::Active);
        front.open(Routes::default(), Some(pool)).await;
        let next = watched.message().await.unwrap().unwrap();
        assert_eq!(next.status(), Shown::Serving);
        assert_eq!(why().await.code(), Code::Unimplemented);
        failed.send(PoolHealth::JournalFailed).unwrap();
        let last = watched.message().await.unwrap().unwrap();
        assert_eq!(last.status(), Shown::NotServing);
        let lives = health.check(request("")).await.unwrap().into_inner();
        assert_eq!(lives.status(), Shown::Serving);
    }
}
