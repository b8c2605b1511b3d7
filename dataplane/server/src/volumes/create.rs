//! Making a volume.

use bowline_api::{Failure, Reason};
use bowline_pool::{Outcome, VolumeInfo, VolumeSpec};
use uuid::Uuid;

use super::export::export;
use super::{NewVolume, Shared, keep_hosts, label, turn};
use crate::catalog::{Origin, Part};
use crate::identity;
use crate::manage::{Manager, exists, missing};
use crate::names;
use crate::pool::{AllowedHosts, PoolAccess, Surveyed, attribute};

/// Makes a volume and exports it; gives its UUID. One that is there already and is what is asked for is
/// as good.
pub(crate) async fn create(state: &Shared, new: NewVolume) -> Result<Uuid, Failure> {
    new.check()?;
    let uuid = new.uuid.unwrap_or_else(Uuid::new_v4);
    let (access, spec) = {
        let manager = &mut state.lock().await.manager;
        let access = manager.pool()?.clone();
        let spec = manager.spec(&new, uuid)?;
        let is_there = match manager.catalog.volumes.get(uuid) {
            None => false,
            Some(found) if is_what_is_asked_for(&found.info, &spec) => true,
            Some(_) => {
                return Err(exists(names::volume(uuid))
                    .cause("it is not what is asked for now")
                    .hint("choose another UUID, or leave it out"));
            }
        };
        if !is_there {
            if new.uuid.is_some() {
                manager.check_uuid(Part::Volume(uuid))?;
            }
            manager.reserve_volume(uuid, &new.name)?;
        }
        (access, (!is_there).then_some(spec))
    };
    let Some(spec) = spec else {
        complete(state, uuid, &new.hosts).await?;
        return Ok(uuid);
    };
    let made = make(&access, spec, new.hosts).await;
    let manager = &mut state.lock().await.manager;
    manager.making.retain(|(making, _)| *making != uuid);
    let exported = made?;
    let nqn = identity::volume_nqn(uuid);
    manager.record(exported);
    manager.announce(&nqn).await?;
    Ok(uuid)
}

/// In the pool, and on its reactor.
async fn make(
    access: &PoolAccess,
    spec: VolumeSpec,
    hosts: AllowedHosts,
) -> Result<Vec<super::export::Exported>, Failure> {
    let what = format!("volume {} not created", label(&spec.name, spec.uuid));
    let made = access
        .operate(&what, move |pool| pool.create_volume(spec))
        .await?;
    let gone = || Failure::new(Reason::Internal, what.clone()).cause("the pool did not keep it");
    let Outcome::Volume(number) = made else {
        return Err(gone());
    };
    if hosts != AllowedHosts::default() {
        let kept = hosts.encode();
        let kept = access.operate(&what, move |pool| {
            pool.set_attribute(number, attribute::HOSTS, kept)
        });
        if let Err(failure) = kept.await {
            // Half of what was asked for is nothing.
            let undone = access.operate(&what, move |pool| pool.delete_volume(number));
            if let Err(failure) = undone.await {
                tracing::error!(volume = number, cause = %failure.cause, "a volume was left without its hosts");
            }
            return Err(failure);
        }
    }
    let info = access.volume(number).await?.ok_or_else(gone)?;
    let hosts = Some(hosts);
    export(access, vec![Surveyed { info, hosts }]).await
}

/// Allows the hosts of a volume that has none, when its creation is asked for again: the process may
/// have ended between the two.
async fn complete(state: &Shared, uuid: Uuid, asked: &AllowedHosts) -> Result<(), Failure> {
    let (access, _turn) = turn(state).await?;
    let (nqn, number, mut hosts) = {
        let manager = &state.lock().await.manager;
        let volume = manager.volume(&uuid.to_string())?;
        let Ok(subsystem) = manager.subsystem(&volume.nqn) else {
            return Ok(());
        };
        let (nqn, hosts) = (volume.nqn.clone(), subsystem.access.clone());
        (nqn, volume.info.volume, hosts)
    };
    let nobody = AllowedHosts::default();
    if *asked == nobody || hosts.kept() != nobody {
        return Ok(());
    }
    for host in asked.iter() {
        hosts.allow(host, Origin::Pool);
    }
    keep_hosts(&access, number, &hosts).await?;
    state.lock().await.manager.apply_access(&nqn, hosts).await
}

impl Manager {
    /// Takes UUID and name of a volume that is going to be made.
    fn reserve_volume(&mut self, uuid: Uuid, name: &str) -> Result<(), Failure> {
        let is_named = !name.is_empty();
        if is_named && self.catalog.volumes.is_taken(name) {
            return Err(exists(names::volume_called(name)).hint("choose another name"));
        }
        self.check_nqn(Part::Volume(uuid))?;
        let is_same = |(making, called): &(Uuid, String)| {
            *making == uuid || is_named && called.as_str() == name
        };
        if self.making.iter().any(is_same) {
            let message = format!("volume {} is being made", label(name, uuid));
            return Err(Failure::new(Reason::BackingBusy, message)
                .cause("an earlier call makes one of this name or UUID")
                .hint("wait for that call"));
        }
        self.making.push((uuid, name.to_owned()));
        Ok(())
    }

    fn spec(&self, new: &NewVolume, uuid: Uuid) -> Result<VolumeSpec, Failure> {
        let mut spec = VolumeSpec {
            uuid,
            name: new.name.clone(),
            bytes: new.bytes.unwrap_or(0),
            block_bytes: new.block_bytes,
            provisioning: new.provisioning,
            durability: new.durability,
            checksums: new.checksums,
            base: None,
            created: new.created,
        };
        let Some((volume, snapshot)) = &new.source else {
            return Ok(spec);
        };
        let volume = self.volume(volume)?;
        let found = volume.snapshot(snapshot).ok_or_else(|| {
            missing(names::snapshot_called(&volume.called(), snapshot))
                .hint("`bowline snapshot list` shows what is")
        })?;
        if spec.bytes != 0 && spec.bytes < found.bytes {
            let message = format!("{} bytes are less than the snapshot has", spec.bytes);
            return Err(Failure::invalid_field("volume.size_bytes", message)
                .hint("leave it out, or resize the volume when it is made")
                .with("snapshot_size_bytes", found.bytes.to_string()));
        }
        spec.bytes = spec.bytes.max(found.bytes);
        spec.base = Some((volume.info.volume, found.number));
        spec.block_bytes.get_or_insert(volume.info.block_bytes);
        Ok(spec)
    }
}

/// Whether a volume that is there is what a repeated request asks for.
fn is_what_is_asked_for(found: &VolumeInfo, spec: &VolumeSpec) -> bool {
    found.name == spec.name
        && found.bytes == spec.bytes
        && spec
            .block_bytes
            .is_none_or(|bytes| bytes == found.block_bytes)
        && found.provisioning == spec.provisioning
        && found.durability == spec.durability
        && found.checksums == spec.checksums
        && found.base == spec.base
}
