//! The gRPC side of the pool: reads requests, has them carried out, and writes answers.

use std::future::Future;
use std::sync::Arc;

use bowline_api::dataplane::v1 as api;
use bowline_api::dataplane::v1::pool_service_server::PoolService;
use bowline_api::{Failure, Reason};
use bowline_pool::ScrubOptions;
use prost::Message;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::{Management, change, volume};
use crate::names::{self, POOL};
use crate::page::Page;
use crate::requests::Seen;
use crate::volumes::{self, Shared};
use crate::{service::State, view};

impl Management {
    /// Makes a change that waits for the drive, so without the lock; a request that is repeated gets
    /// the answer of the first.
    pub(super) async fn changed<Q, A, F>(
        &self,
        method: &'static str,
        id: String,
        request: Q,
        work: impl FnOnce(Arc<Shared>, Q) -> F + Send + 'static,
    ) -> Result<Response<A>, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
        F: Future<Output = Result<A, Failure>> + Send,
    {
        self.settled(method, &id, &request).await?;
        let place = Arc::clone(&self.drive_changes).try_acquire_owned();
        let place = place.map_err(|_| {
            Failure::new(Reason::LimitReached, "too many changes wait already")
                .cause("the drive, or those before them, take long")
                .hint("see the log of the data plane, and try again later")
        })?;
        let state = Arc::clone(&self.state);
        change(async move {
            let _place = place;
            let (ticket, _running) = {
                let requests = &mut state.lock().await.requests;
                match requests.look_up(method, &id, &request)? {
                    Seen::Done(answer) => return Ok(answer),
                    Seen::New(ticket) => (ticket, requests.begin(ticket)),
                }
            };
            let answer = work(Arc::clone(&state), request).await?;
            state.lock().await.requests.remember(ticket, &answer);
            Ok(answer)
        })
        .await
    }
}

#[tonic::async_trait]
impl PoolService for Management {
    async fn get_pool(
        &self,
        request: Request<api::GetPoolRequest>,
    ) -> Result<Response<api::Pool>, Status> {
        check_pool(&request.into_inner().name)?;
        Ok(Response::new(show_pool(&self.state).await?))
    }

    async fn start_scrub(
        &self,
        request: Request<api::StartScrubRequest>,
    ) -> Result<Response<api::Pool>, Status> {
        let request = request.into_inner();
        let id = request.request_id.clone();
        self.changed("StartScrub", id, request, async |state, request| {
            check_pool(&request.name)?;
            let rate = volume::size("rate_bytes_per_second", request.rate_bytes_per_second)?;
            let options = ScrubOptions {
                bytes_per_second: (rate != 0).then_some(rate),
                is_everything: request.everything,
            };
            let access = state.lock().await.manager.pool()?.clone();
            access.start_scrub(options).await?;
            show_pool(&state).await
        })
        .await
    }

    async fn stop_scrub(
        &self,
        request: Request<api::StopScrubRequest>,
    ) -> Result<Response<api::Pool>, Status> {
        let request = request.into_inner();
        let id = request.request_id.clone();
        self.changed("StopScrub", id, request, async |state, request| {
            check_pool(&request.name)?;
            let access = state.lock().await.manager.pool()?.clone();
            access.stop_scrub().await?;
            show_pool(&state).await
        })
        .await
    }

    async fn pause_scrub(
        &self,
        request: Request<api::PauseScrubRequest>,
    ) -> Result<Response<api::Pool>, Status> {
        let request = request.into_inner();
        let id = request.request_id.clone();
        self.changed("PauseScrub", id, request, async |state, request| {
            check_pool(&request.name)?;
            let access = state.lock().await.manager.pool()?.clone();
            access.pause_scrub(true).await?;
            show_pool(&state).await
        })
        .await
    }

    async fn resume_scrub(
        &self,
        request: Request<api::ResumeScrubRequest>,
    ) -> Result<Response<api::Pool>, Status> {
        let request = request.into_inner();
        let id = request.request_id.clone();
        self.changed("ResumeScrub", id, request, async |state, request| {
            check_pool(&request.name)?;
            let access = state.lock().await.manager.pool()?.clone();
            access.pause_scrub(false).await?;
            show_pool(&state).await
        })
        .await
    }

    async fn list_volumes(
        &self,
        request: Request<api::ListVolumesRequest>,
    ) -> Result<Response<api::ListVolumesResponse>, Status> {
        let request = request.into_inner();
        let page = Page::parse(request.page_size, &request.page_token, "volumes")?;
        let (uuids, next_page_token) = {
            let state = self.state.lock().await;
            state.manager.pool()?;
            let catalog = &state.manager.catalog;
            let all = catalog.volumes.iter().map(|(name, found)| {
                let bytes = view::volume_bytes(found, catalog);
                (name.to_owned(), bytes, found.info.uuid)
            });
            page.cut_weighed(all)
        };
        Ok(Response::new(api::ListVolumesResponse {
            volumes: show(&self.state, &uuids).await?,
            next_page_token,
        }))
    }

    async fn get_volume(
        &self,
        request: Request<api::GetVolumeRequest>,
    ) -> Result<Response<api::Volume>, Status> {
        let request = request.into_inner();
        let asked = names::parse_volume("name", &request.name)?;
        let uuid = self.state.lock().await.manager.volume(asked)?.info.uuid;
        Ok(Response::new(show_one(&self.state, uuid).await?))
    }

    async fn create_volume(
        &self,
        request: Request<api::CreateVolumeRequest>,
    ) -> Result<Response<api::Volume>, Status> {
        let request = request.into_inner();
        let id = request.request_id.clone();
        self.changed("CreateVolume", id, request, async |state, request| {
            let uuid = volumes::create(&state, volume::new(request.volume)?).await?;
            let made = show_one(&state, uuid).await?;
            tracing::info!(
                volume = %uuid, name = %made.display_name, size_bytes = made.size_bytes,
                "volume created"
            );
            Ok(made)
        })
        .await
    }

    async fn resize_volume(
        &self,
        request: Request<api::ResizeVolumeRequest>,
    ) -> Result<Response<api::Volume>, Status> {
        let request = request.into_inner();
        let id = request.request_id.clone();
        self.changed("ResizeVolume", id, request, async |state, request| {
            let asked = names::parse_volume("name", &request.name)?;
            let bytes = volume::size("size_bytes", request.size_bytes)?;
            let uuid = volumes::resize(&state, asked, bytes, request.force).await?;
            tracing::info!(volume = %uuid, size_bytes = bytes, "volume resized");
            show_one(&state, uuid).await
        })
        .await
    }

    async fn delete_volume(
        &self,
        request: Request<api::DeleteVolumeRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        let id = request.request_id.clone();
        self.changed("DeleteVolume", id, request, async |state, request| {
            let asked = names::parse_volume("name", &request.name)?;
            volumes::delete(&state, asked, request.force).await?;
            tracing::info!(volume = asked, force = request.force, "volume deleted");
            Ok(())
        })
        .await
    }

    async fn list_snapshots(
        &self,
        request: Request<api::ListSnapshotsRequest>,
    ) -> Result<Response<api::ListSnapshotsResponse>, Status> {
        let request = request.into_inner();
        let parent = names::parse_volume("parent", &request.parent)?;
        let scope = format!("snapshots {}", request.parent);
        let page = Page::parse(request.page_size, &request.page_token, &scope)?;
        let state = self.state.lock().await;
        let catalog = &state.manager.catalog;
        let of = match parent {
            "-" => {
                state.manager.pool()?;
                None
            }
            volume => Some(state.manager.volume(volume)?.info.uuid),
        };
        let volumes = catalog.volumes.iter();
        let volumes = volumes.filter(|(_, it)| of.is_none_or(|uuid| it.info.uuid == uuid));
        let all = volumes.flat_map(|(name, volume)| {
            let each = volume.info.snapshots.iter();
            // Ten digits, so that the order of keys is the order of numbers.
            each.map(move |it| (format!("{name}\0{:010}", it.number), (volume, it)))
        });
        let (found, next_page_token) = page.cut(all);
        let shown = found.into_iter();
        Ok(Response::new(api::ListSnapshotsResponse {
            snapshots: shown
                .map(|(volume, it)| view::snapshot(volume, it, catalog))
                .collect(),
            next_page_token,
        }))
    }

    async fn get_snapshot(
        &self,
        request: Request<api::GetSnapshotRequest>,
    ) -> Result<Response<api::Snapshot>, Status> {
        let request = request.into_inner();
        let (volume, snapshot) = names::parse_snapshot("name", &request.name)?;
        let state = self.state.lock().await;
        Ok(Response::new(snapshot_of(&state, volume, snapshot)?))
    }

    async fn create_snapshot(
        &self,
        request: Request<api::CreateSnapshotRequest>,
    ) -> Result<Response<api::Snapshot>, Status> {
        let request = request.into_inner();
        let id = request.request_id.clone();
        self.changed("CreateSnapshot", id, request, async |state, request| {
            let volume = names::parse_volume("parent", &request.parent)?;
            let new = volume::new_snapshot(request.snapshot)?;
            let made = volumes::create_snapshot(&state, volume, new).await?;
            tracing::info!(volume = %made.0, snapshot = %made.1, "snapshot taken");
            show_snapshot(&state, made).await
        })
        .await
    }

    async fn delete_snapshot(
        &self,
        request: Request<api::DeleteSnapshotRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        let id = request.request_id.clone();
        self.changed("DeleteSnapshot", id, request, async |state, request| {
            let snapshot = names::parse_snapshot("name", &request.name)?;
            volumes::delete_snapshot(&state, snapshot, request.force).await?;
            tracing::info!(
                volume = snapshot.0,
                snapshot = snapshot.1,
                "snapshot deleted"
            );
            Ok(())
        })
        .await
    }

    async fn export_snapshot(
        &self,
        request: Request<api::ExportSnapshotRequest>,
    ) -> Result<Response<api::Snapshot>, Status> {
        let request = request.into_inner();
        let id = request.request_id.clone();
        self.changed("ExportSnapshot", id, request, async |state, request| {
            let snapshot = names::parse_snapshot("name", &request.name)?;
            let hosts = volumes::hosts("host_nqns", request.host_nqns)?;
            let found = volumes::export_snapshot(&state, snapshot, hosts).await?;
            tracing::info!(volume = %found.0, snapshot = %found.1, "snapshot exported, until the process ends");
            show_snapshot(&state, found).await
        })
        .await
    }

    async fn withdraw_snapshot(
        &self,
        request: Request<api::WithdrawSnapshotRequest>,
    ) -> Result<Response<api::Snapshot>, Status> {
        let request = request.into_inner();
        let id = request.request_id.clone();
        self.changed("WithdrawSnapshot", id, request, async |state, request| {
            let snapshot = names::parse_snapshot("name", &request.name)?;
            let found = volumes::withdraw_snapshot(&state, snapshot).await?;
            tracing::info!(volume = %found.0, snapshot = %found.1, "snapshot withdrawn");
            show_snapshot(&state, found).await
        })
        .await
    }
}

fn check_pool(name: &str) -> Result<(), Failure> {
    match name {
        POOL => Ok(()),
        name => {
            let message = format!("name {name:?} is not {POOL:?}");
            Err(Failure::invalid_field("name", message))
        }
    }
}

async fn show_pool(state: &Shared) -> Result<api::Pool, Failure> {
    let access = state.lock().await.manager.pool()?.clone();
    let now = access.now().await?;
    let volumes = &state.lock().await.manager.catalog.volumes;
    Ok(view::pool(&access.facts, now, volumes))
}

fn snapshot_of(state: &State, volume: &str, snapshot: &str) -> Result<api::Snapshot, Failure> {
    let volume = state.manager.volume(volume)?;
    let found = volume.snapshot(snapshot).ok_or_else(|| {
        let name = names::snapshot_called(&volume.called(), snapshot);
        Failure::new(Reason::NotFound, format!("{name} does not exist"))
            .with("resource", name)
            .hint("`bowline snapshot list` shows what is")
    })?;
    Ok(view::snapshot(volume, found, &state.manager.catalog))
}

async fn show_snapshot(
    state: &Shared,
    (volume, snapshot): (Uuid, Uuid),
) -> Result<api::Snapshot, Failure> {
    let state = state.lock().await;
    snapshot_of(&state, &volume.to_string(), &snapshot.to_string())
}

async fn show_one(state: &Shared, uuid: Uuid) -> Result<api::Volume, Failure> {
    let found = show(state, &[uuid]).await?.pop();
    found.ok_or_else(|| {
        let name = names::volume(uuid);
        Failure::new(Reason::NotFound, format!("{name} is not there any more"))
            .with("resource", name)
    })
}

/// Volumes with what they have allocated now; those that are gone meanwhile are left out.
async fn show(state: &Shared, uuids: &[Uuid]) -> Result<Vec<api::Volume>, Failure> {
    let (access, numbers) = {
        let manager = &state.lock().await.manager;
        let volumes = uuids
            .iter()
            .filter_map(|uuid| manager.catalog.volumes.get(*uuid));
        let numbers: Vec<u32> = volumes.map(|it| it.info.volume).collect();
        (manager.pool()?.clone(), numbers)
    };
    let allocated = access.allocated(numbers.clone()).await?;
    let catalog = &state.lock().await.manager.catalog;
    let each = numbers.into_iter().zip(allocated);
    Ok(each
        .filter_map(|(number, allocated)| {
            let volume = catalog.volumes.numbered(number)?;
            Some(view::volume(volume, catalog, allocated))
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use bowline_nvmf::target::TargetConfig;
    use tokio::sync::Semaphore;

    use super::super::DRIVE_CHANGES_MAX;
    use super::*;
    use crate::allow::AllowList;
    use crate::fleet::Fleet;
    use crate::manage::Manager;

    fn management() -> Management {
        let fleet = Arc::new(Fleet {
            members: Vec::new(),
            not_flushed: Arc::default(),
        });
        let manager = Manager::new(fleet, Vec::new(), AllowList::default());
        Management::new(manager, String::new(), TargetConfig::default())
    }

    #[tokio::test]
    async fn callers_who_give_up_do_not_let_changes_grow() {
        let management = management();
        let drive = Arc::new(Semaphore::new(0));
        let ask = async || {
            let (drive, request) = (Arc::clone(&drive), api::DeleteVolumeRequest::default());
            let work = async move |_, _| {
                drive.acquire().await.unwrap().forget();
                Ok(())
            };
            let answer: Result<Response<()>, Status> =
                management.changed("M", String::new(), request, work).await;
            answer.map_err(|status| Failure::explain(&status).unwrap().0)
        };
        for _ in 0..DRIVE_CHANGES_MAX {
            let mut asked = pin!(ask());
            tokio::select! {
                biased;
                answer = &mut asked => panic!("the drive has not answered: {answer:?}"),
                () = tokio::task::yield_now() => {}
            }
        }
        assert_eq!(ask().await.unwrap_err(), "LIMIT_REACHED");
        drive.add_permits(DRIVE_CHANGES_MAX + 1);
        while Arc::strong_count(&drive) > 1 {
            tokio::task::yield_now().await;
        }
        ask().await.unwrap();
    }
}
