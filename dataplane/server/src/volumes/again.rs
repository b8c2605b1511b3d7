//! What was withdrawn for a change comes back as it was: to the hosts that were allowed last, whatever
//! the flags at start say, and reached as it was last.

use bowline_api::Failure;
use bowline_nvmf::target::AnaState;
use bowline_pool::{Operation, Outcome, Pool, PoolError};

use super::Shared;
use super::export::{Plan, carry_out};
use crate::catalog::{Access, Part};
use crate::drive::Drive;
use crate::pool::PoolAccess;

/// A subsystem as it was before it was withdrawn.
pub(super) struct Before {
    nqn: String,
    part: Part,
    hosts: Access,
    ana: Option<AnaState>,
}

/// Has the pool do what takes these subsystems away; unless it is forced, only if no host uses them.
/// Gives what they were, and what has become of it. On an error nothing has changed.
pub(super) async fn take(
    state: &Shared,
    access: &PoolAccess,
    (nqns, force): (Vec<String>, bool),
    what: &str,
    start: impl FnOnce(&mut Pool<Drive>) -> Result<Operation, PoolError> + Send + 'static,
) -> Result<(Vec<Before>, Result<Outcome, Failure>), Failure> {
    let taken = (nqns.clone(), force);
    let (states, ended) = access.operate_without(what, taken, start).await?;
    let subsystems = &state.lock().await.manager.catalog.subsystems;
    let before = nqns.into_iter().zip(states).filter_map(|(nqn, ana)| {
        let subsystem = subsystems.get(&nqn)?;
        Some(Before {
            part: subsystem.part?,
            hosts: subsystem.access.clone(),
            nqn,
            ana,
        })
    });
    Ok((before.collect(), ended))
}

/// Exports a volume and its snapshots again, as they are now. What cannot be exported is not served any
/// more.
pub(super) async fn bring_back(
    state: &Shared,
    access: &PoolAccess,
    volume: u32,
    before: Vec<Before>,
) -> Result<(), Failure> {
    let nqns = before.iter().map(|it| it.nqn.clone()).collect();
    let plans = match access.volume(volume).await? {
        None => Vec::new(),
        Some(info) => {
            let plan = |it: Before| {
                let snapshot = match it.part {
                    Part::Volume(_) => None,
                    Part::Snapshot { snapshot, .. } => {
                        let mut all = info.snapshots.iter();
                        let found = all.find(|it| it.uuid == snapshot)?;
                        Some((found.number, snapshot))
                    }
                };
                Some(Plan {
                    info: info.clone(),
                    snapshot,
                    hosts: it.hosts,
                    ana: it.ana,
                })
            };
            before.into_iter().filter_map(plan).collect()
        }
    };
    let exported = carry_out(access, plans).await?;
    let manager = &mut state.lock().await.manager;
    manager.record_again(nqns, exported).await
}
