//! Hosts that may use a subsystem: kept by the pool where it is a volume's, else as long as the process
//! runs.

use bowline_api::Failure;
use bowline_api::dataplane::v1 as api;

use crate::catalog::{Origin, Part};
use crate::view;
use crate::volumes::{self, Shared};

pub(super) async fn allow(state: &Shared, nqn: &str, host: &str) -> Result<api::Host, Failure> {
    if is_volume(state, nqn).await? {
        state.lock().await.manager.check_host(nqn, host)?;
        volumes::set_host(state, nqn, host, true).await?;
        tracing::info!(subsystem_nqn = %nqn, host_nqn = %host, "host allowed");
        let manager = &state.lock().await.manager;
        let in_flags = manager.is_in_start_flags(nqn, host);
        return Ok(view::host(nqn, host, Origin::Pool, in_flags));
    }
    let manager = &mut state.lock().await.manager;
    let origin = manager.allow_host(nqn, host, Origin::Api).await?;
    tracing::info!(subsystem_nqn = %nqn, host_nqn = %host, "host allowed");
    let in_flags = manager.is_in_start_flags(nqn, host);
    Ok(view::host(nqn, host, origin, in_flags))
}

pub(super) async fn deny(state: &Shared, nqn: &str, host: &str) -> Result<(), Failure> {
    let undone = if is_volume(state, nqn).await? {
        volumes::set_host(state, nqn, host, false).await?;
        let manager = &state.lock().await.manager;
        match manager.is_in_start_flags(nqn, host) {
            true => Origin::Start.undone(),
            false => "",
        }
    } else {
        let manager = &mut state.lock().await.manager;
        manager.deny_host(nqn, host).await?.undone()
    };
    tracing::info!(subsystem_nqn = %nqn, host_nqn = %host, "host denied{undone}");
    Ok(())
}

async fn is_volume(state: &Shared, nqn: &str) -> Result<bool, Failure> {
    let manager = &state.lock().await.manager;
    let part = manager.subsystem(nqn)?.part;
    Ok(matches!(part, Some(Part::Volume(_))))
}
