//! A volume becomes namespace 1 of a subsystem of its own. On the pool's reactor.

use bowline_api::{Failure, Reason};
use bowline_block::{Device, Geometry};
use bowline_nvme::Nanos;
use bowline_nvmf::target::{
    AnaState, Persistence, ReservationState, ReservationStateError, SubsystemConfig,
};
use bowline_pool::{Pool, VolumeInfo};
use bowline_tcp::target::NamespaceSpec;

use super::{AllowedHosts, attribute, explain_operation};
use crate::backing::Backing;
use crate::drive::Drive;
use crate::fleet::Served;
use crate::manage::FIRST_ANA_GROUP;

/// The only namespace of a volume's subsystem.
pub(crate) const VOLUME_NSID: u32 = 1;

/// A volume that was found in the pool.
#[derive(Debug)]
pub(crate) struct Surveyed {
    pub(crate) info: VolumeInfo,
    /// `None`: what is kept of them cannot be read.
    pub(crate) hosts: Option<AllowedHosts>,
}

/// A volume, or a snapshot of it, that is to be exported.
#[derive(Debug)]
pub(crate) struct Export {
    /// Its number.
    pub(crate) volume: u32,
    /// Number of the snapshot.
    pub(crate) snapshot: Option<u32>,
    pub(crate) subsystem: SubsystemConfig,
    /// How it is reached, if that is not what the subsystem begins with.
    pub(crate) ana: Option<AnaState>,
    pub(crate) uuid: [u8; 16],
    pub(crate) nguid: [u8; 16],
}

/// All volumes, with the hosts that may use them.
pub(crate) fn survey(pool: &Pool<Drive>) -> Vec<Surveyed> {
    let volumes = pool.volumes().into_iter();
    let found = |info: VolumeInfo| {
        let kept = pool.attribute(info.volume, attribute::HOSTS);
        let hosts = AllowedHosts::decode(&kept.unwrap_or_default());
        Surveyed { info, hosts }
    };
    volumes.map(found).collect()
}

/// Exports a volume: hosts that are allowed can use it from now on.
pub(crate) fn export(served: &mut Served, now: Nanos, export: Export) -> Result<Geometry, Failure> {
    let Export {
        volume,
        snapshot,
        subsystem,
        ana,
        uuid,
        nguid,
    } = export;
    let nqn = subsystem.nqn.clone();
    let failed =
        |cause: String| Failure::new(Reason::Internal, "the volume was not exported").cause(cause);
    let pool = served.pool.as_ref().map(|seat| seat.pool());
    let pool = pool.ok_or_else(|| failed("there is no pool on this reactor".to_owned()))?;
    let opened = match snapshot {
        None => pool.open_volume(volume),
        Some(number) => pool.open_snapshot(volume, number),
    };
    let device = opened.map_err(|error| explain_operation("the volume was not opened", error))?;
    let persistence = match snapshot {
        None => persistence(pool, volume)
            .map_err(|error| failed(format!("its reservations cannot be read: {error}")))?,
        Some(_) => Persistence::Unsupported,
    };
    let geometry = device.geometry();
    let spec = NamespaceSpec {
        nsid: Some(VOLUME_NSID),
        uuid,
        nguid,
        ana_group: None,
        persistence,
        shared: false,
    };
    let service = &mut served.service;
    let added = service.target().add_subsystem(now, subsystem);
    added.map_err(|error| failed(error.to_string()))?;
    let added = service.add_namespace(now, &nqn, spec, Backing::Volume(device));
    let complete = added.and_then(|_| match ana {
        Some(state) => service
            .target()
            .set_ana_state(now, &nqn, FIRST_ANA_GROUP, state),
        None => Ok(()),
    });
    if let Err(error) = complete {
        // It was made just now.
        let _gone = service.remove_subsystem(now, &nqn);
        return Err(failed(error.to_string()));
    }
    if snapshot.is_none() {
        served.stores.add_volume(nqn, volume);
    }
    Ok(geometry)
}

/// The reservations that are in force from the start. Without them a host would write where another
/// one has reserved, so that a volume is not exported when they cannot be read.
fn persistence(pool: &Pool<Drive>, volume: u32) -> Result<Persistence, ReservationStateError> {
    let kept = pool.attribute(volume, attribute::RESERVATIONS);
    let kept = kept.map(|image| ReservationState::decode(&image));
    kept.transpose().map(Persistence::Stored)
}

/// Ends all associations with a volume's subsystem, and removes it. Gives how it was reached.
pub(crate) fn withdraw(served: &mut Served, now: Nanos, nqn: &str) -> Option<AnaState> {
    let ana = served.service.target().ana(nqn);
    // It is not there if the volume could not be exported.
    let _absent = served.service.remove_subsystem(now, nqn);
    served.stores.remove_volume(nqn);
    let first = ana?.groups.into_iter().find(|it| it.id == FIRST_ANA_GROUP);
    first.map(|group| group.state)
}
