//! The gRPC side of the pool: reads requests, lets the manager decide, and writes answers.

use bowline_api::Failure;
use bowline_api::dataplane::v1 as api;
use bowline_api::dataplane::v1::pool_service_server::PoolService;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::{Management, State, volume};
use crate::manage::Manager;
use crate::names::{self, POOL};
use crate::page::Page;
use crate::view;

#[tonic::async_trait]
impl PoolService for Management {
    async fn get_pool(
        &self,
        request: Request<api::GetPoolRequest>,
    ) -> Result<Response<api::Pool>, Status> {
        let name = request.into_inner().name;
        if name != POOL {
            let message = format!("name {name:?} is not {POOL:?}");
            return Err(Failure::invalid_field("name", message).into());
        }
        let state = self.state.lock().await;
        let manager = &state.manager;
        let now = manager.pool_now().await?;
        let facts = manager.pool()?;
        Ok(Response::new(view::pool(
            facts,
            now,
            &manager.catalog.volumes,
        )))
    }

    async fn list_volumes(
        &self,
        request: Request<api::ListVolumesRequest>,
    ) -> Result<Response<api::ListVolumesResponse>, Status> {
        let request = request.into_inner();
        let page = Page::parse(request.page_size, &request.page_token, "volumes")?;
        let state = self.state.lock().await;
        state.manager.pool()?;
        let all = state.manager.catalog.volumes.iter();
        let (uuids, next_page_token) =
            page.cut(all.map(|(name, found)| (name.to_owned(), found.info.uuid)));
        Ok(Response::new(api::ListVolumesResponse {
            volumes: state.volumes(&uuids).await?,
            next_page_token,
        }))
    }

    async fn get_volume(
        &self,
        request: Request<api::GetVolumeRequest>,
    ) -> Result<Response<api::Volume>, Status> {
        let request = request.into_inner();
        let asked = names::parse_volume("name", &request.name)?;
        let state = self.state.lock().await;
        let uuid = state.manager.volume(asked)?.info.uuid;
        Ok(Response::new(shown(&state.manager, uuid).await?))
    }

    async fn create_volume(
        &self,
        request: Request<api::CreateVolumeRequest>,
    ) -> Result<Response<api::Volume>, Status> {
        let request = request.into_inner();
        let id = request.request_id.clone();
        self.once("CreateVolume", id, request, |manager, request| {
            Box::pin(async move {
                let new = volume::new(request.volume)?;
                let uuid = manager.create_volume(new).await?;
                let made = shown(manager, uuid).await?;
                tracing::info!(
                    volume = %uuid, name = %made.display_name, size_bytes = made.size_bytes,
                    "volume created"
                );
                Ok(made)
            })
        })
        .await
    }

    async fn resize_volume(
        &self,
        request: Request<api::ResizeVolumeRequest>,
    ) -> Result<Response<api::Volume>, Status> {
        let request = request.into_inner();
        let id = request.request_id.clone();
        self.once("ResizeVolume", id, request, |manager, request| {
            Box::pin(async move {
                let asked = names::parse_volume("name", &request.name)?;
                let bytes = volume::size("size_bytes", request.size_bytes)?;
                let uuid = manager.resize_volume(asked, bytes).await?;
                tracing::info!(volume = %uuid, size_bytes = bytes, "volume resized");
                shown(manager, uuid).await
            })
        })
        .await
    }

    async fn delete_volume(
        &self,
        request: Request<api::DeleteVolumeRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        let id = request.request_id.clone();
        self.once("DeleteVolume", id, request, |manager, request| {
            Box::pin(async move {
                let asked = names::parse_volume("name", &request.name)?;
                manager.delete_volume(asked, request.force).await?;
                tracing::info!(volume = asked, force = request.force, "volume deleted");
                Ok(())
            })
        })
        .await
    }
}

impl State {
    /// As the API shows them.
    async fn volumes(&self, uuids: &[Uuid]) -> Result<Vec<api::Volume>, Failure> {
        show(&self.manager, uuids).await
    }
}

async fn shown(manager: &Manager, uuid: Uuid) -> Result<api::Volume, Failure> {
    let found = show(manager, &[uuid]).await?.pop();
    found.ok_or_else(|| {
        Failure::new(
            bowline_api::Reason::NotFound,
            format!("volume {uuid} is gone"),
        )
    })
}

async fn show(manager: &Manager, uuids: &[Uuid]) -> Result<Vec<api::Volume>, Failure> {
    let catalog = &manager.catalog;
    let volumes: Vec<_> = uuids
        .iter()
        .filter_map(|uuid| catalog.volumes.get(*uuid))
        .collect();
    let numbers = volumes.iter().map(|it| it.info.volume).collect();
    let allocated = manager.allocated(numbers).await?;
    let each = volumes.into_iter().zip(allocated);
    Ok(each
        .map(|(volume, allocated)| {
            let subsystem = catalog.subsystems.get(&volume.nqn);
            view::volume(volume, subsystem.map(|it| &it.access), allocated)
        })
        .collect())
}
