//! The gRPC side of management: reads requests, lets [`Manager`] decide, and writes
//! answers. Every change runs in a task of its own, so that a caller who hangs up
//! cannot leave it half done.

mod ana;
mod host;
mod namespace;
mod pool;
mod referral;
mod subsystem;
mod volume;

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use bowline_api::dataplane::v1 as api;
use bowline_api::dataplane::v1::data_plane_service_server::DataPlaneService;
use bowline_api::{Failure, Reason};
use bowline_nvmf::target::TargetConfig;
use prost::Message;
use tokio::sync::{Mutex, Semaphore};
use tonic::{Request, Response, Status};

use crate::catalog::Origin;
use crate::fleet::Member;
use crate::manage::Manager;
use crate::names::{self, ANY_HOST, Counted, DATA_PLANE, Parent};
use crate::page::Page;
use crate::requests::{Requests, Seen};
use crate::{observe, view};

/// What management knows and remembers. Locked for the whole of a change, but never while
/// something outside the process is waited for.
pub(crate) struct State {
    pub(crate) manager: Manager,
    pub(crate) requests: Requests,
    pub(crate) node: String,
    /// What the protocol machines were told, with their limits applied.
    pub(crate) target: TargetConfig,
    pub(crate) started: SystemTime,
}

/// Changes under way that wait for the drive, or for those before them. Each goes on without its caller,
/// so callers that give up and come again would let them grow for as long as a drive does not answer.
const DRIVE_CHANGES_MAX: usize = 4096;

/// `bowline.dataplane.v1.DataPlaneService`.
#[derive(Clone)]
pub(crate) struct Management {
    pub(crate) state: Arc<Mutex<State>>,
    /// Places of changes that wait for the drive.
    drive_changes: Arc<Semaphore>,
}

impl Management {
    pub(crate) fn new(manager: Manager, node: String, target: TargetConfig) -> Self {
        let started = SystemTime::now();
        let state = State {
            manager,
            requests: Requests::default(),
            node,
            target,
            started,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            drive_changes: Arc::new(Semaphore::new(DRIVE_CHANGES_MAX)),
        }
    }

    /// Waits while the same request is under way already: its answer will do for both.
    async fn settled(
        &self,
        method: &'static str,
        id: &str,
        request: &impl Message,
    ) -> Result<(), Failure> {
        loop {
            let seen = self
                .state
                .lock()
                .await
                .requests
                .running(method, id, request)?;
            match seen {
                // It ends when the first call drops its side, which is the only thing it does.
                Some(mut running) => while running.changed().await.is_ok() {},
                None => return Ok(()),
            }
        }
    }

    /// Makes a change under the lock; a request that is repeated gets the answer of the first.
    async fn once<Q, A>(
        &self,
        method: &'static str,
        id: String,
        request: Q,
        work: impl for<'a> FnOnce(&'a mut Manager, Q) -> Changing<'a, A> + Send + 'static,
    ) -> Result<Response<A>, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let state = Arc::clone(&self.state);
        change(async move {
            let (answer, forgetting) = {
                let State {
                    manager, requests, ..
                } = &mut *state.lock().await;
                let ticket = match requests.look_up(method, &id, &request)? {
                    Seen::Done(answer) => return Ok(answer),
                    Seen::New(ticket) => ticket,
                };
                let answer = work(manager, request).await;
                let forgetting = manager.take_forgetting();
                if let Ok(answer) = &answer {
                    requests.remember(ticket, answer);
                }
                (answer, forgetting)
            };
            // A slow disk keeps this caller, and no other.
            for it in forgetting {
                it.done().await;
            }
            answer
        })
        .await
    }
}

/// A change under way.
type Changing<'a, A> = Pin<Box<dyn Future<Output = Result<A, Failure>> + Send + 'a>>;

/// Runs a change to its end, even if the caller does not wait for it.
async fn change<R: Send + 'static>(
    work: impl Future<Output = Result<R, Failure>> + Send + 'static,
) -> Result<Response<R>, Status> {
    match tokio::spawn(work).await {
        Ok(result) => Ok(Response::new(result?)),
        Err(_) => Err(Failure::new(Reason::Internal, "the change was not finished").into()),
    }
}

#[tonic::async_trait]
impl DataPlaneService for Management {
    async fn get_data_plane(
        &self,
        request: Request<api::GetDataPlaneRequest>,
    ) -> Result<Response<api::DataPlane>, Status> {
        let name = request.into_inner().name;
        if name != DATA_PLANE {
            let message = format!("name {name:?} is not {DATA_PLANE:?}");
            return Err(Failure::invalid_field("name", message).into());
        }
        let state = self.state.lock().await;
        Ok(Response::new(state.data_plane()))
    }

    async fn list_subsystems(
        &self,
        request: Request<api::ListSubsystemsRequest>,
    ) -> Result<Response<api::ListSubsystemsResponse>, Status> {
        let request = request.into_inner();
        let page = Page::parse(request.page_size, &request.page_token, "subsystems")?;
        let state = self.state.lock().await;
        let all = state.manager.catalog.subsystems.iter();
        let (subsystems, next_page_token) =
            page.cut(all.map(|(nqn, found)| (nqn.clone(), view::subsystem(nqn, found))));
        Ok(Response::new(api::ListSubsystemsResponse {
            subsystems,
            next_page_token,
        }))
    }

    async fn get_subsystem(
        &self,
        request: Request<api::GetSubsystemRequest>,
    ) -> Result<Response<api::Subsystem>, Status> {
        let request = request.into_inner();
        let nqn = names::parse_subsystem("name", &request.name)?;
        let state = self.state.lock().await;
        Ok(Response::new(view::subsystem(
            nqn,
            state.manager.subsystem(nqn)?,
        )))
    }

    async fn create_subsystem(
        &self,
        request: Request<api::CreateSubsystemRequest>,
    ) -> Result<Response<api::Subsystem>, Status> {
        let request = request.into_inner();
        let id = request.request_id.clone();
        self.once("CreateSubsystem", id, request, |manager, request| {
            Box::pin(async move {
                let new = subsystem::new(request.subsystem)?;
                let nqn = new.nqn.clone();
                manager.create_subsystem(new, Origin::Api).await?;
                let made = view::subsystem(&nqn, manager.subsystem(&nqn)?);
                tracing::info!(subsystem_nqn = %nqn, "subsystem created, until the process ends");
                Ok(made)
            })
        })
        .await
    }

    async fn delete_subsystem(
        &self,
        request: Request<api::DeleteSubsystemRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        let id = request.request_id.clone();
        self.once("DeleteSubsystem", id, request, |manager, request| {
            Box::pin(async move {
                let nqn = names::parse_subsystem("name", &request.name)?;
                let origin = manager.delete_subsystem(nqn).await?;
                tracing::info!(subsystem_nqn = %nqn, "subsystem deleted{}", origin.undone());
                Ok(())
            })
        })
        .await
    }

    async fn list_namespaces(
        &self,
        request: Request<api::ListNamespacesRequest>,
    ) -> Result<Response<api::ListNamespacesResponse>, Status> {
        let request = request.into_inner();
        let parent = names::parse_parent("parent", &request.parent)?;
        let scope = format!("namespaces {}", request.parent);
        let page = Page::parse(request.page_size, &request.page_token, &scope)?;
        let mut state = self.state.lock().await;
        state.require(parent)?;
        state.manager.observe_geometries().await?;
        let found = state.manager.catalog.namespaces();
        let found = found.filter(|(nqn, _, _)| parent.holds(nqn));
        let (namespaces, next_page_token) = page.cut(found.map(|(nqn, nsid, namespace)| {
            // Ten digits, so that the order of keys is the order of numbers.
            (
                format!("{nqn}\0{nsid:010}"),
                view::namespace(nqn, nsid, namespace),
            )
        }));
        Ok(Response::new(api::ListNamespacesResponse {
            namespaces,
            next_page_token,
        }))
    }

    async fn get_namespace(
        &self,
        request: Request<api::GetNamespaceRequest>,
    ) -> Result<Response<api::Namespace>, Status> {
        let request = request.into_inner();
        let (nqn, nsid) = names::parse_namespace("name", &request.name)?;
        let mut state = self.state.lock().await;
        state.manager.observe_geometries().await?;
        let (_, namespace) = state.manager.namespace(nqn, nsid)?;
        Ok(Response::new(view::namespace(nqn, nsid, namespace)))
    }

    async fn create_namespace(
        &self,
        request: Request<api::CreateNamespaceRequest>,
    ) -> Result<Response<api::Namespace>, Status> {
        let request = request.into_inner();
        self.settled("CreateNamespace", &request.request_id, &request)
            .await?;
        change(namespace::create(Arc::clone(&self.state), request)).await
    }

    async fn resize_namespace(
        &self,
        request: Request<api::ResizeNamespaceRequest>,
    ) -> Result<Response<api::Namespace>, Status> {
        let request = request.into_inner();
        let id = request.request_id.clone();
        self.once("ResizeNamespace", id, request, |manager, request| {
            Box::pin(async move {
                let (nqn, nsid) = names::parse_namespace("name", &request.name)?;
                manager.resize_namespace(nqn, nsid).await?;
                let (_, namespace) = manager.namespace(nqn, nsid)?;
                let made = view::namespace(nqn, nsid, namespace);
                tracing::info!(
                    subsystem_nqn = %nqn, nsid, size_bytes = made.size_bytes, "namespace resized"
                );
                Ok(made)
            })
        })
        .await
    }

    async fn delete_namespace(
        &self,
        request: Request<api::DeleteNamespaceRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        let id = request.request_id.clone();
        self.once("DeleteNamespace", id, request, |manager, request| {
            Box::pin(async move {
                let (nqn, nsid) = names::parse_namespace("name", &request.name)?;
                let origin = manager.delete_namespace(nqn, nsid).await?;
                tracing::info!(subsystem_nqn = %nqn, nsid, "namespace removed{}", origin.undone());
                Ok(())
            })
        })
        .await
    }

    async fn list_hosts(
        &self,
        request: Request<api::ListHostsRequest>,
    ) -> Result<Response<api::ListHostsResponse>, Status> {
        let request = request.into_inner();
        let parent = names::parse_parent("parent", &request.parent)?;
        let scope = format!("hosts {}", request.parent);
        let page = Page::parse(request.page_size, &request.page_token, &scope)?;
        let state = self.state.lock().await;
        state.require(parent)?;
        let found = state
            .manager
            .catalog
            .subsystems
            .iter()
            .filter(|(nqn, _)| parent.holds(nqn));
        let (hosts, next_page_token) = page.cut(found.flat_map(|(nqn, subsystem)| {
            let manager = &state.manager;
            let in_flags = |host: &str| manager.is_in_start_flags(nqn, host);
            // "any" sorts before every NQN, which begin with "nqn.".
            let any = subsystem.access.any_host.map(|origin| (ANY_HOST, origin));
            let named = subsystem
                .access
                .hosts
                .iter()
                .map(|(host, origin)| (host.as_str(), *origin));
            any.into_iter()
                .chain(named)
                .map(|(host, origin)| {
                    let shown = view::host(nqn, host, origin, in_flags(host));
                    (format!("{nqn}\0{host}"), shown)
                })
                .collect::<Vec<_>>()
        }));
        Ok(Response::new(api::ListHostsResponse {
            hosts,
            next_page_token,
        }))
    }

    async fn allow_host(
        &self,
        request: Request<api::AllowHostRequest>,
    ) -> Result<Response<api::Host>, Status> {
        let request = request.into_inner();
        let id = request.request_id.clone();
        self.changed("AllowHost", id, request, async |state, request| {
            let nqn = names::parse_subsystem("parent", &request.parent)?;
            host::allow(&state, nqn, &request.host_nqn).await
        })
        .await
    }

    async fn deny_host(
        &self,
        request: Request<api::DenyHostRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        let id = request.request_id.clone();
        self.changed("DenyHost", id, request, async |state, request| {
            let (nqn, host) = names::parse_host("name", &request.name)?;
            host::deny(&state, nqn, host).await
        })
        .await
    }

    async fn list_reservations(
        &self,
        request: Request<api::ListReservationsRequest>,
    ) -> Result<Response<api::ListReservationsResponse>, Status> {
        let request = request.into_inner();
        let parent = names::parse_parent("parent", &request.parent)?;
        let scope = format!("reservations {}", request.parent);
        let page = Page::parse(request.page_size, &request.page_token, &scope)?;
        let state = self.state.lock().await;
        state.require(parent)?;
        let observations = observe::all(&state.manager.fleet).await?;
        let found = observe::reservations(&observations).into_iter();
        let of_parent =
            found.filter(|(key, _)| key.split('\0').next().is_some_and(|nqn| parent.holds(nqn)));
        let (reservations, next_page_token) = page.cut(of_parent);
        Ok(Response::new(api::ListReservationsResponse {
            reservations,
            next_page_token,
        }))
    }

    async fn list_ana_groups(
        &self,
        request: Request<api::ListAnaGroupsRequest>,
    ) -> Result<Response<api::ListAnaGroupsResponse>, Status> {
        let state = self.state.lock().await;
        Ok(Response::new(ana::list(&state, request.get_ref()).await?))
    }

    async fn get_ana_group(
        &self,
        request: Request<api::GetAnaGroupRequest>,
    ) -> Result<Response<api::AnaGroup>, Status> {
        let request = request.into_inner();
        let (nqn, id) = names::parse_ana_group("name", &request.name)?;
        let state = self.state.lock().await;
        let group = state.manager.ana_group(nqn, id).await?;
        Ok(Response::new(view::ana_group(nqn, &group)))
    }

    async fn set_ana_state(
        &self,
        request: Request<api::SetAnaStateRequest>,
    ) -> Result<Response<api::AnaGroup>, Status> {
        let request = request.into_inner();
        let id = request.request_id.clone();
        self.once("SetAnaState", id, request, |manager, request| {
            Box::pin(async move {
                let (nqn, id) = names::parse_ana_group("name", &request.name)?;
                let wanted = ana::state("state", request.state)?;
                let group = manager.set_ana_state(nqn, id, wanted).await?;
                Ok(view::ana_group(nqn, &group))
            })
        })
        .await
    }

    async fn set_ana_group(
        &self,
        request: Request<api::SetAnaGroupRequest>,
    ) -> Result<Response<api::Namespace>, Status> {
        let request = request.into_inner();
        let id = request.request_id.clone();
        self.once("SetAnaGroup", id, request, |manager, request| {
            Box::pin(async move {
                let (nqn, nsid) = names::parse_namespace("name", &request.name)?;
                let group = subsystem::number("ana_group_id", request.ana_group_id)?;
                manager.set_ana_group(nqn, nsid, group).await?;
                let (_, namespace) = manager.namespace(nqn, nsid)?;
                Ok(view::namespace(nqn, nsid, namespace))
            })
        })
        .await
    }

    async fn list_referrals(
        &self,
        request: Request<api::ListReferralsRequest>,
    ) -> Result<Response<api::ListReferralsResponse>, Status> {
        let request = request.into_inner();
        let page = Page::parse(request.page_size, &request.page_token, "referrals")?;
        let state = self.state.lock().await;
        let (referrals, next_page_token) = page.cut(referral::keyed(&state.manager.catalog));
        Ok(Response::new(api::ListReferralsResponse {
            referrals,
            next_page_token,
        }))
    }

    async fn create_referral(
        &self,
        request: Request<api::CreateReferralRequest>,
    ) -> Result<Response<api::Referral>, Status> {
        let request = request.into_inner();
        let id = request.request_id.clone();
        self.once("CreateReferral", id, request, |manager, request| {
            Box::pin(referral::create(manager, request))
        })
        .await
    }

    async fn delete_referral(
        &self,
        request: Request<api::DeleteReferralRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        let id = request.request_id.clone();
        self.once("DeleteReferral", id, request, |manager, request| {
            Box::pin(async move {
                let address = names::parse_referral("name", &request.name)?;
                let origin = manager.delete_referral(address).await?;
                tracing::info!(%address, "referral removed{}", origin.undone());
                Ok(())
            })
        })
        .await
    }

    async fn list_controllers(
        &self,
        request: Request<api::ListControllersRequest>,
    ) -> Result<Response<api::ListControllersResponse>, Status> {
        let request = request.into_inner();
        let parent = names::parse_parent("parent", &request.parent)?;
        let scope = format!("controllers {}", request.parent);
        let page = Page::parse(request.page_size, &request.page_token, &scope)?;
        let state = self.state.lock().await;
        state.require(parent)?;
        let observations = observe::all(&state.manager.fleet).await?;
        let prefix = match parent {
            Parent::All => String::new(),
            Parent::Subsystem(nqn) => format!("{nqn}\0"),
        };
        let found = observe::controllers(&observations).into_iter();
        let (controllers, next_page_token) =
            page.cut(found.filter(|(key, _)| key.starts_with(&prefix)));
        Ok(Response::new(api::ListControllersResponse {
            controllers,
            next_page_token,
        }))
    }

    async fn list_connections(
        &self,
        request: Request<api::ListConnectionsRequest>,
    ) -> Result<Response<api::ListConnectionsResponse>, Status> {
        let request = request.into_inner();
        let page = Page::parse(request.page_size, &request.page_token, "connections")?;
        let state = self.state.lock().await;
        let observations = observe::all(&state.manager.fleet).await?;
        let (connections, next_page_token) = page.cut(observe::connections(&observations));
        Ok(Response::new(api::ListConnectionsResponse {
            connections,
            next_page_token,
        }))
    }

    async fn get_statistics(
        &self,
        request: Request<api::GetStatisticsRequest>,
    ) -> Result<Response<api::Statistics>, Status> {
        let request = request.into_inner();
        let counted = names::parse_counted("name", &request.name)?;
        let state = self.state.lock().await;
        match counted {
            Counted::DataPlane => {}
            Counted::Subsystem(nqn) => {
                state.manager.subsystem(nqn)?;
            }
            Counted::Namespace(nqn, nsid) => {
                state.manager.namespace(nqn, nsid)?;
            }
        }
        let observations = observe::all(&state.manager.fleet).await?;
        let statistics = observe::statistics(&observations, counted);
        Ok(Response::new(api::Statistics {
            name: request.name,
            ..statistics
        }))
    }
}

impl State {
    fn data_plane(&self) -> api::DataPlane {
        let manager = &self.manager;
        let reactor = |(index, member): (usize, &Member)| api::Reactor {
            index: view::count(index),
            cpu: member.cpu.map(view::count),
            io_backend: member.info.backend.name().to_owned(),
            io_fallback_reason: member.info.fallback.clone().unwrap_or_default(),
            subsystem_count: view::count(manager.catalog.subsystem_count(index)),
        };
        let path = |path: &PathBuf| path.display().to_string();
        api::DataPlane {
            name: DATA_PLANE.to_owned(),
            node: self.node.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            start_time: Some(view::timestamp(self.started)),
            listeners: manager
                .portals
                .iter()
                .map(|portal| portal.bound.to_string())
                .collect(),
            advertised_listeners: (manager.portals.iter())
                .map(|portal| portal.advertised.to_string())
                .collect(),
            reactors: manager
                .fleet
                .members
                .iter()
                .enumerate()
                .map(reactor)
                .collect(),
            allowed_paths: manager.allow.roots().iter().map(path).collect(),
            discovery_nqn: self.target.discovery_name().to_owned(),
            limits: Some(view::limits(&self.target)),
        }
    }

    /// The parent of a list must be there.
    fn require(&self, parent: Parent<'_>) -> Result<(), Failure> {
        match parent {
            Parent::All => Ok(()),
            Parent::Subsystem(nqn) => self.manager.subsystem(nqn).map(|_| ()),
        }
    }
}
