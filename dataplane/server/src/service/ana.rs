//! ANA groups: lists, states, and the end of a change that takes too long.

use std::sync::Arc;
use std::time::Duration;

use bowline_api::Failure;
use bowline_api::dataplane::v1 as api;
use tokio::sync::Mutex;

use super::State;
use crate::config::AnaState;
use crate::manage::AnaGroup;
use crate::names;
use crate::page::Page;
use crate::view;

/// How long a change may take, which is what hosts are told. [BASE-2.0 §5.17.2.1, ANATT]
const TRANSITION: Duration = Duration::from_secs(10);

/// The state that a request names.
pub(super) fn state(field: &'static str, value: i32) -> Result<AnaState, Failure> {
    match api::AnaState::try_from(value) {
        Ok(api::AnaState::Optimized) => Ok(AnaState::Optimized),
        Ok(api::AnaState::NonOptimized) => Ok(AnaState::NonOptimized),
        Ok(api::AnaState::Inaccessible) => Ok(AnaState::Inaccessible),
        Ok(api::AnaState::PersistentLoss) => Ok(AnaState::PersistentLoss),
        Ok(api::AnaState::Change) => Ok(AnaState::Change),
        Ok(api::AnaState::Unspecified) | Err(_) => Err(Failure::invalid_field(
            field,
            format!("{field} {value} is no ANA state"),
        )),
    }
}

pub(super) async fn list(
    state: &State,
    request: &api::ListAnaGroupsRequest,
) -> Result<api::ListAnaGroupsResponse, Failure> {
    let parent = names::parse_parent("parent", &request.parent)?;
    let scope = format!("ana groups {}", request.parent);
    let page = Page::parse(request.page_size, &request.page_token, &scope)?;
    state.require(parent)?;
    let manager = &state.manager;
    let subsystems = manager.catalog.subsystems.iter();
    let reporting = subsystems.filter(|(_, subsystem)| subsystem.ana.is_some());
    let mut found: Vec<(String, api::AnaGroup)> = Vec::new();
    for (nqn, _) in reporting.filter(|(nqn, _)| parent.holds(nqn)) {
        for group in manager.ana_groups(nqn).await? {
            // Ten digits, so that the order of keys is the order of numbers.
            let key = format!("{nqn}\0{:010}", group.group.id);
            found.push((key, view::ana_group(nqn, &group)));
        }
    }
    let (ana_groups, next_page_token) = page.cut(found);
    Ok(api::ListAnaGroupsResponse {
        ana_groups,
        next_page_token,
    })
}

/// Hosts wait only so long for a change to end [BASE-2.0 §8.1.3.5]: one that the operator forgot
/// ends in the state that keeps data safe.
pub(super) fn end_change(state: Arc<Mutex<State>>, nqn: String, begun: &AnaGroup) {
    let (id, changes) = (begun.group.id, begun.group.changes);
    tokio::spawn(async move {
        tokio::time::sleep(TRANSITION).await;
        let manager = &state.lock().await.manager;
        let Ok(now) = manager.ana_group(&nqn, id).await else {
            return;
        };
        if (now.group.state, now.group.changes) == (AnaState::Change, changes) {
            tracing::warn!(
                subsystem_nqn = %nqn, ana_group = id, "ANA change took too long: inaccessible now"
            );
            if let Err(failure) = manager
                .set_ana_state(&nqn, id, AnaState::Inaccessible)
                .await
            {
                tracing::error!(subsystem_nqn = %nqn, ana_group = id, ?failure, "ANA state not set");
            }
        }
    });
}
