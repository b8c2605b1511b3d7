//! Snapshots: taken, deleted, and exported for reading.

use bowline_api::Failure;
use bowline_pool::SnapshotInfo;
use uuid::Uuid;

use super::export::{Exported, Plan, carry_out};
use super::{NewSnapshot, Shared, again, find, label, look_again, new, turn};
use crate::catalog::{Access, Origin, Part, Volume};
use crate::manage::{exists, missing};
use crate::names;
use crate::pool::{self, AllowedHosts};

/// A snapshot, by its volume's and its own UUID.
type Id = (Uuid, Uuid);

/// Takes a snapshot of a volume. One of the same UUID that is there already is as good.
pub(crate) async fn create(state: &Shared, volume: &str, new: NewSnapshot) -> Result<Id, Failure> {
    new::check_name("snapshot.display_name", &new.name)?;
    let (access, _turn) = turn(state).await?;
    let found = find(state, volume).await?;
    let uuid = new.uuid.unwrap_or_else(Uuid::new_v4);
    let volume = found.info.uuid;
    let snapshots = &found.info.snapshots;
    if let Some(there) = snapshots.iter().find(|it| it.uuid == uuid) {
        return match there.name == new.name {
            true => Ok((volume, uuid)),
            false => Err(exists(names::snapshot(volume, uuid)).hint("choose another UUID")),
        };
    }
    if new.uuid.is_some() {
        let snapshot = uuid;
        let manager = &state.lock().await.manager;
        manager.check_uuid(Part::Snapshot { volume, snapshot })?;
    }
    if !new.name.is_empty() && found.snapshot(&new.name).is_some() {
        let name = names::snapshot_called(&found.called(), &new.name);
        return Err(exists(name).hint("choose another name"));
    }
    let number = found.info.volume;
    let what = format!("snapshot of volume {} not taken", found.called());
    let NewSnapshot { name, created, .. } = new;
    access
        .operate(&what, move |pool| {
            pool.create_snapshot(number, uuid, name, created)
        })
        .await?;
    look_again(state, &access, volume, number).await?;
    Ok((volume, uuid))
}

/// Deletes a snapshot.
pub(crate) async fn delete(
    state: &Shared,
    (volume, snapshot): (&str, &str),
    force: bool,
) -> Result<(), Failure> {
    let (access, _turn) = turn(state).await?;
    let found = find(state, volume).await?;
    let info = find_snapshot(&found, snapshot)?;
    let what = format!("snapshot {} not deleted", label(&info.name, info.uuid));
    let (number, of) = (info.number, found.info.volume);
    let exports = exports(state, &found, info).await;
    let taken = (exports.clone(), force);
    let (before, deleted) = again::take(state, &access, taken, &what, move |pool| {
        pool.delete_snapshot(of, number)
    })
    .await?;
    if let Err(failure) = deleted {
        again::bring_back(state, &access, of, before).await?;
        return Err(failure);
    }
    forget(state, exports).await?;
    look_again(state, &access, found.info.uuid, of).await
}

/// Lets hosts read a snapshot, besides those that the flags at start allow.
pub(crate) async fn export(
    state: &Shared,
    (volume, snapshot): (&str, &str),
    hosts: AllowedHosts,
) -> Result<Id, Failure> {
    let (access, _turn) = turn(state).await?;
    let found = find(state, volume).await?;
    let info = find_snapshot(&found, snapshot)?;
    let id = (found.info.uuid, info.uuid);
    let mut allowed = Access::of_volume(&AllowedHosts::default(), &access.facts.defaults.hosts);
    for host in hosts.iter() {
        allowed.allow(host, Origin::Api);
    }
    let part = part(&found, info);
    let nqn = part.nqn();
    let is_there = {
        let manager = &mut state.lock().await.manager;
        let is_there = manager.catalog.export_of(part).is_some();
        match is_there {
            true => manager.apply_access(&nqn, allowed.clone()).await?,
            false => manager.check_export(part)?,
        }
        is_there
    };
    if !is_there {
        let plan = Plan {
            info: found.info.clone(),
            snapshot: Some((info.number, info.uuid)),
            hosts: allowed,
            ana: None,
        };
        let exported = carry_out(&access, vec![plan]).await?;
        if let Some(failure) = exported.iter().find_map(Exported::failure) {
            return Err(failure);
        }
        let manager = &mut state.lock().await.manager;
        manager.record(exported);
        manager.announce(&nqn).await?;
    }
    Ok(id)
}

/// Exports a snapshot no more.
pub(crate) async fn withdraw(
    state: &Shared,
    (volume, snapshot): (&str, &str),
) -> Result<Id, Failure> {
    let (access, _turn) = turn(state).await?;
    let found = find(state, volume).await?;
    let info = find_snapshot(&found, snapshot)?;
    let exports = exports(state, &found, info).await;
    for nqn in exports.clone() {
        access
            .work(move |served, now| pool::withdraw(served, now, &nqn))
            .await?;
    }
    forget(state, exports).await?;
    Ok((found.info.uuid, info.uuid))
}

async fn forget(state: &Shared, nqns: Vec<String>) -> Result<(), Failure> {
    let manager = &mut state.lock().await.manager;
    manager.forget_exports(nqns).await
}

/// NQN of the subsystem that exports a snapshot, if it is exported.
async fn exports(state: &Shared, volume: &Volume, snapshot: &SnapshotInfo) -> Vec<String> {
    let catalog = &state.lock().await.manager.catalog;
    let found = catalog.export_of(part(volume, snapshot));
    found.into_iter().collect()
}

fn part(volume: &Volume, snapshot: &SnapshotInfo) -> Part {
    Part::Snapshot {
        volume: volume.info.uuid,
        snapshot: snapshot.uuid,
    }
}

fn find_snapshot<'a>(volume: &'a Volume, snapshot: &str) -> Result<&'a SnapshotInfo, Failure> {
    volume.snapshot(snapshot).ok_or_else(|| {
        let name = names::snapshot_called(&volume.called(), snapshot);
        missing(name).hint("`bowline snapshot list` shows what is")
    })
}
