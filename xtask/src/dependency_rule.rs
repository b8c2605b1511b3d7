//! Which crate may depend on which, and which may contain unsafe code. Adding an edge needs an
//! ADR; removing a restriction here without one is a review failure.

use std::fs;

use anyhow::{Context, Result, bail};

use crate::workspace::{Member, Workspace};

/// Crate, and the workspace crates that it may name. `nvme` holds facts and is open to every data
/// plane crate; everything else points down one way.
const EDGES: &[(&str, &[&str])] = &[
    ("bowline-nvme", &[]),
    ("bowline-nvmf", &["bowline-nvme"]),
    ("bowline-block", &["bowline-nvme"]),
    ("bowline-reactor", &["bowline-nvme", "bowline-block"]),
    ("bowline-pool", &["bowline-nvme", "bowline-block"]),
    // The tests of an engine serve it to hosts: `tcp` and `nvmf`, and the reactor of either.
    (
        "bowline-engine-kernel",
        &[
            "bowline-nvme",
            "bowline-block",
            "bowline-reactor",
            "bowline-nvmf",
            "bowline-tcp",
        ],
    ),
    (
        "bowline-engine-spdk",
        &[
            "bowline-nvme",
            "bowline-block",
            "bowline-spdk-rs",
            "bowline-nvmf",
            "bowline-reactor",
            "bowline-tcp",
        ],
    ),
    (
        "bowline-tcp",
        &[
            "bowline-nvme",
            "bowline-nvmf",
            "bowline-block",
            "bowline-reactor",
        ],
    ),
    (
        "bowline-server",
        &[
            "bowline-api",
            "bowline-block",
            "bowline-engine-kernel",
            "bowline-engine-spdk",
            "bowline-nvme",
            "bowline-nvmf",
            "bowline-pool",
            "bowline-reactor",
            "bowline-tcp",
        ],
    ),
    ("bowline-api", &[]),
    ("bowline-spdk-sys", &[]),
    ("bowline-spdk-rs", &["bowline-spdk-sys"]),
    // The executable is also our own host (`bowline dev` verifies through the initiator).
    (
        "bowline",
        &[
            "bowline-api",
            "bowline-block",
            "bowline-nvme",
            "bowline-nvmf",
            "bowline-pool",
            "bowline-reactor",
            "bowline-server",
            "bowline-tcp",
        ],
    ),
    // Counts what the data plane costs; part of no product.
    (
        "bowline-guard",
        &[
            "bowline-block",
            "bowline-nvme",
            "bowline-nvmf",
            "bowline-pool",
            "bowline-reactor",
            "bowline-tcp",
        ],
    ),
    // A host that measures: the initiator's crates. Its tests serve it a target.
    (
        "bowline-loadgen",
        &[
            "bowline-block",
            "bowline-nvme",
            "bowline-nvmf",
            "bowline-reactor",
            "bowline-tcp",
        ],
    ),
    // A user of the product from outside, over its management API too; of the inside it takes our
    // own host, to have hosts that are connected and do nothing, and the format of pools, to make one
    // that would take hours to fill.
    (
        "bowline-compare",
        &[
            "bowline-api",
            "bowline-nvme",
            "bowline-nvmf",
            "bowline-pool",
            "bowline-reactor",
            "bowline-tcp",
        ],
    ),
    // A host that remembers, for tests of kills and power cuts; part of no product.
    (
        "bowline-witness",
        &[
            "bowline-block",
            "bowline-nvme",
            "bowline-nvmf",
            "bowline-reactor",
            "bowline-tcp",
        ],
    ),
    ("xtask", &[]),
];

/// Crates that must stay usable without a runtime: no dependency on an async or RPC stack.
const NO_RUNTIME: &[&str] = &[
    "bowline-nvme",
    "bowline-nvmf",
    "bowline-block",
    "bowline-reactor",
    "bowline-engine-kernel",
    "bowline-engine-spdk",
    "bowline-tcp",
    "bowline-spdk-sys",
    "bowline-spdk-rs",
];
const RUNTIMES: &[&str] = &[
    "tokio",
    "tonic",
    "hyper",
    "prost",
    "async-std",
    "smol",
    "futures",
];

/// Crates that may open unsafe code in named modules, each block with its SAFETY argument; they
/// deny it everywhere else.
const UNSAFE_IN_MODULES: &[&str] = &[
    "bowline-block",
    "bowline-reactor",
    "bowline-engine-kernel",
    "bowline-engine-spdk",
    "bowline-spdk-rs",
];

/// Crates that are declarations of foreign functions and nothing else.
const BINDINGS: &[&str] = &["bowline-spdk-sys"];

/// Holds the edges against `cargo metadata`.
pub(crate) fn check_edges(workspace: &Workspace) -> Result<()> {
    let members = workspace.members()?;
    let mut broken = Vec::new();
    for member in &members {
        match EDGES.iter().find(|(name, _)| *name == member.name) {
            Some((_, allowed)) => broken.extend(forbidden(member, &members, allowed)),
            None => broken.push(format!("{} is not in the list of crates", member.name)),
        }
    }
    if broken.is_empty() {
        Ok(())
    } else {
        bail!("{}", broken.join("; "))
    }
}

fn forbidden(member: &Member<'_>, members: &[Member<'_>], allowed: &[&str]) -> Vec<String> {
    let is_member = |name: &str| members.iter().any(|other| other.name == name);
    let mut broken = Vec::new();
    for dependency in &member.dependencies {
        if is_member(dependency) && !allowed.contains(dependency) {
            broken.push(format!("{} may not depend on {dependency}", member.name));
        }
        if member.name == "bowline-nvme" {
            broken.push(format!(
                "bowline-nvme has no dependencies, not even {dependency}"
            ));
        }
        if NO_RUNTIME.contains(&member.name) && RUNTIMES.contains(dependency) {
            broken.push(format!(
                "{} may not know the runtime {dependency}",
                member.name
            ));
        }
    }
    broken
}

/// Every crate root forbids unsafe code but the named ones.
pub(crate) fn check_unsafe_policy(workspace: &Workspace) -> Result<()> {
    let mut broken = Vec::new();
    for member in workspace.members()? {
        for (kind, source) in &member.targets {
            if !matches!(kind.as_str(), "lib" | "bin") {
                continue;
            }
            let text = fs::read_to_string(source)
                .with_context(|| format!("cannot read {}", source.display()))?;
            if let Some(missing) = missing_attribute(member.name, &text) {
                broken.push(format!("{} lacks {missing}", source.display()));
            }
        }
    }
    if broken.is_empty() {
        Ok(())
    } else {
        bail!("{}", broken.join("; "))
    }
}

fn missing_attribute(name: &str, root_source: &str) -> Option<&'static str> {
    if BINDINGS.contains(&name) {
        return None;
    }
    let required = if UNSAFE_IN_MODULES.contains(&name) {
        "#![deny(unsafe_code)]"
    } else {
        "#![forbid(unsafe_code)]"
    };
    let present = root_source.lines().any(|line| line.trim_end() == required);
    (!present).then_some(required)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member<'a>(name: &'a str, dependencies: &[&'a str]) -> Member<'a> {
        Member {
            name,
            folder: std::path::PathBuf::new(),
            targets: Vec::new(),
            dependencies: dependencies.to_vec(),
        }
    }

    #[test]
    fn upward_edge_is_refused() {
        let members = [
            member("bowline-block", &["bowline-tcp"]),
            member("bowline-tcp", &[]),
        ];
        let broken = forbidden(&members[0], &members, &["bowline-nvme"]);
        assert_eq!(broken, ["bowline-block may not depend on bowline-tcp"]);
    }

    #[test]
    fn runtime_below_the_process_is_refused() {
        let members = [member("bowline-tcp", &["tokio", "tracing"])];
        let broken = forbidden(&members[0], &members, &[]);
        assert_eq!(broken, ["bowline-tcp may not know the runtime tokio"]);
    }

    #[test]
    fn this_workspace_keeps_the_rule() {
        let workspace = Workspace::find().unwrap();
        check_edges(&workspace).unwrap();
    }

    #[test]
    fn commented_attribute_does_not_count() {
        assert!(missing_attribute("bowline-nvme", "// #![forbid(unsafe_code)]").is_some());
        assert!(missing_attribute("bowline-nvme", "#![no_std]\n#![forbid(unsafe_code)]").is_none());
        assert!(missing_attribute("bowline-reactor", "#![deny(unsafe_code)]").is_none());
        assert!(missing_attribute("bowline-tcp", "#![deny(unsafe_code)]").is_some());
    }
}
