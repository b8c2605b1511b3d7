//! ANA groups: lists and states.

use bowline_api::Failure;
use bowline_api::dataplane::v1 as api;

use super::State;
use crate::config::AnaState;
use crate::names;
use crate::page::Page;
use crate::view;

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
