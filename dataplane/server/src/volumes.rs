//! Changes of the pool's volumes, each in steps: what is asked for is looked at while the state is
//! locked, the pool does it while nothing is, and what has come of it is written down while the state is
//! locked again. So a drive that does not answer keeps those who wait for it, and nobody else.
//!
//! Changes of what is there come one after another; volumes are made side by side.

mod again;
mod create;
mod export;
mod new;
mod snapshot;

use std::sync::Arc;

use bowline_api::{Failure, Reason};
use bowline_nvme::NamespaceId;
use tokio::sync::{Mutex, OwnedMutexGuard};
use uuid::Uuid;

use crate::catalog::{Access, Origin, Part, Volume, called};
use crate::manage::not_resized;
use crate::names;
use crate::pool::{AllowedHosts, PoolAccess, VOLUME_NSID, attribute};
use crate::service::State;

pub(crate) use create::create;
pub(crate) use export::{serve_pool, tell_discovery};
pub(crate) use new::{NewSnapshot, NewVolume, check_hosts, check_size};
pub(crate) use snapshot::{
    create as create_snapshot, delete as delete_snapshot, export as export_snapshot,
    withdraw as withdraw_snapshot,
};

/// What management knows, to be locked for steps.
pub(crate) type Shared = Mutex<State>;

/// Waits for its turn to change something; gives the way to the pool.
async fn turn(state: &Shared) -> Result<(PoolAccess, OwnedMutexGuard<()>), Failure> {
    let (access, changes) = {
        let manager = &state.lock().await.manager;
        (manager.pool()?.clone(), Arc::clone(&manager.pool_changes))
    };
    Ok((access, changes.lock_owned().await))
}

async fn find(state: &Shared, volume: &str) -> Result<Volume, Failure> {
    state.lock().await.manager.volume(volume).cloned()
}

/// Changes a volume's size.
pub(crate) async fn resize(
    state: &Shared,
    volume: &str,
    bytes: u64,
    force: bool,
) -> Result<Uuid, Failure> {
    check_size("size_bytes", bytes)?;
    let (access, _turn) = turn(state).await?;
    let found = find(state, volume).await?;
    let (info, is_served) = (&found.info, found.not_served.is_none());
    let what = format!("volume {} not resized", found.called());
    if bytes < info.bytes && !force {
        return Err(Failure::new(Reason::ShrinkRefused, what)
            .cause(format!(
                "it has {} bytes, and what is beyond its new end would be lost",
                info.bytes
            ))
            .hint("force it if that is meant")
            .with("size_bytes", info.bytes.to_string()));
    }
    let (number, uuid) = (info.volume, info.uuid);
    if bytes < info.bytes {
        // A disk does not get smaller under its hosts: they find another one.
        let taken = (vec![found.nqn.clone()], true);
        let (before, resized) = again::take(state, &access, taken, &what, move |pool| {
            pool.resize_volume(number, bytes, true)
        })
        .await?;
        again::bring_back(state, &access, number, before).await?;
        look_again(state, &access, uuid, number).await?;
        return resized.map(|_| uuid);
    }
    access
        .operate(&what, move |pool| pool.resize_volume(number, bytes, false))
        .await?;
    if is_served {
        let nqn = found.nqn.clone();
        let geometry = access
            .work(move |served, now| {
                let nsid = NamespaceId(VOLUME_NSID);
                served.service.refresh_namespace(now, &nqn, nsid)
            })
            .await?
            .map_err(|error| not_resized(&what, &error))?;
        let manager = &mut state.lock().await.manager;
        let namespaces = &mut manager.subsystem_mut(&found.nqn)?.namespaces;
        if let Some(namespace) = namespaces.get_mut(&VOLUME_NSID) {
            namespace.geometry = geometry;
        }
    }
    look_again(state, &access, uuid, number).await?;
    Ok(uuid)
}

/// Takes over what the pool says of a volume.
async fn look_again(
    state: &Shared,
    access: &PoolAccess,
    uuid: Uuid,
    number: u32,
) -> Result<(), Failure> {
    let Some(info) = access.volume(number).await? else {
        return Ok(());
    };
    let volumes = &mut state.lock().await.manager.catalog.volumes;
    if let Some(volume) = volumes.get_mut(uuid) {
        volume.info = info;
    }
    Ok(())
}

/// Destroys a volume.
pub(crate) async fn delete(state: &Shared, volume: &str, force: bool) -> Result<(), Failure> {
    let (access, _turn) = turn(state).await?;
    let found = find(state, volume).await?;
    let (uuid, number) = (found.info.uuid, found.info.volume);
    let what = format!("volume {} not deleted", found.called());
    let exports = {
        let manager = &state.lock().await.manager;
        manager.catalog.exports_of(uuid)
    };
    let taken = (exports.clone(), force);
    let (before, deleted) = again::take(state, &access, taken, &what, move |pool| {
        pool.delete_volume(number)
    })
    .await?;
    if let Err(failure) = deleted {
        again::bring_back(state, &access, number, before).await?;
        return Err(failure);
    }
    let manager = &mut state.lock().await.manager;
    manager.catalog.volumes.remove(uuid);
    manager.forget_exports(exports).await
}

/// Allows a host to use the volume of this subsystem, or denies it, and keeps that in the pool. Gives
/// who had allowed it before.
pub(crate) async fn set_host(
    state: &Shared,
    nqn: &str,
    host: &str,
    is_allowed: bool,
) -> Result<Option<Origin>, Failure> {
    let (access, _turn) = turn(state).await?;
    let (uuid, number, mut hosts) = {
        let manager = &state.lock().await.manager;
        let subsystem = manager.subsystem(nqn)?;
        let Some(Part::Volume(uuid)) = subsystem.part else {
            return Err(Failure::new(
                Reason::NotFound,
                format!("{nqn} exports no volume"),
            ));
        };
        let volume = manager.volume(&uuid.to_string())?;
        (uuid, volume.info.volume, subsystem.access.clone())
    };
    let before = match is_allowed {
        true => {
            let before = hosts.origin(host);
            hosts.allow(host, Origin::Pool);
            new::check_host_count(&hosts.kept())?;
            before
        }
        false => Some(hosts.deny(host).ok_or_else(|| {
            Failure::new(
                Reason::NotFound,
                format!("{} does not exist", names::host(nqn, host)),
            )
            .hint("`bowline host list` shows who is")
        })?),
    };
    keep_hosts(&access, number, &hosts).await?;
    let manager = &mut state.lock().await.manager;
    // It may have been withdrawn meanwhile.
    if manager.subsystem(nqn)?.part == Some(Part::Volume(uuid)) {
        manager.apply_access(nqn, hosts).await?;
    }
    Ok(before)
}

async fn keep_hosts(access: &PoolAccess, volume: u32, hosts: &Access) -> Result<(), Failure> {
    let bytes = hosts.kept().encode();
    let kept = access.operate("hosts not changed", move |pool| {
        pool.set_attribute(volume, attribute::HOSTS, bytes)
    });
    kept.await.map(drop)
}

/// Hosts as a request names them.
pub(crate) fn hosts(field: &'static str, asked: Vec<String>) -> Result<AllowedHosts, Failure> {
    let mut hosts = AllowedHosts::default();
    for host in asked {
        match host.as_str() {
            names::ANY_HOST => hosts.any = true,
            _ => {
                hosts.names.insert(host);
            }
        }
    }
    check_hosts(field, &hosts)?;
    Ok(hosts)
}

fn label(name: &str, uuid: Uuid) -> String {
    called(name, uuid)
}
