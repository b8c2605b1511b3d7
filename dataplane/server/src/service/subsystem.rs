//! What a request for a subsystem asks for.

use bowline_api::Failure;
use bowline_api::dataplane::v1 as api;
use bowline_nvmf::target::HealthTotals;

use super::ana;
use crate::config::AnaState;
use crate::manage::NewSubsystem;

/// Zero and empty take the default; whether the rest is possible is decided later.
pub(super) fn new(asked: Option<api::Subsystem>) -> Result<NewSubsystem, Failure> {
    let asked = asked.unwrap_or_default();
    let cntlids = match asked.cntlid_range {
        None => None,
        Some(range) => Some((
            number("subsystem.cntlid_range.first_cntlid", range.first_cntlid)?,
            number("subsystem.cntlid_range.last_cntlid", range.last_cntlid)?,
        )),
    };
    let controllers: u16 = number("subsystem.controller_max_count", asked.controller_max_count)?;
    let namespaces: u32 = number("subsystem.namespace_max_count", asked.namespace_max_count)?;
    let ana = match (asked.ana, asked.initial_ana_state()) {
        (true, api::AnaState::Unspecified) => Some(AnaState::Optimized),
        (true, api::AnaState::Change) => {
            let message = "a subsystem cannot begin in a change that does not end";
            return Err(
                Failure::invalid_field("subsystem.initial_ana_state", message)
                    .hint("begin with inaccessible, and set another state later"),
            );
        }
        (true, _) => Some(ana::state(
            "subsystem.initial_ana_state",
            asked.initial_ana_state,
        )?),
        (false, api::AnaState::Unspecified) => None,
        (false, _) => {
            let message = "a subsystem that reports no ANA has no initial ANA state";
            return Err(
                Failure::invalid_field("subsystem.initial_ana_state", message)
                    .hint("set subsystem.ana"),
            );
        }
    };
    Ok(NewSubsystem {
        nqn: asked.nqn,
        serial: (!asked.serial_number.is_empty()).then_some(asked.serial_number),
        cntlids,
        controllers_max: (controllers != 0).then_some(controllers),
        namespaces_max: (namespaces != 0).then_some(namespaces),
        ana,
        health: HealthTotals::default(),
    })
}

pub(super) fn number<N: TryFrom<i32>>(field: &'static str, value: i32) -> Result<N, Failure> {
    N::try_from(value)
        .map_err(|_| Failure::invalid_field(field, format!("{field} {value} is out of range")))
}
