//! What may not grow: the same command with more connections, namespaces, reactors, depth or bytes.

use std::fmt::Write as _;

use super::figures::{Figures, Group};
use super::script::{ALLOCATIONS, SYSTEM_CALLS};
use super::{EPOLL, calls_with, instructions_with};

/// A difference that is none: cost is flat.
const FLAT: f64 = 1.03;
/// Of system calls and allocations per command.
const NOTHING: f64 = 0.02;

/// One way to grow.
struct Dimension {
    name: &'static str,
    /// Of each pair the larger scenario is the first.
    bounds: &'static [Bound],
}

/// A scenario, one that it is like, and how many times the latter's instructions and system calls
/// it may take. Copies and checksums go by the bytes and are not part of it; it may not allocate
/// more than the other.
struct Bound {
    scenario: &'static str,
    like: &'static str,
    instructions: f64,
    system_calls: f64,
    /// Why it is not flat; empty where it is.
    why: &'static str,
}

const fn flat(scenario: &'static str, like: &'static str) -> Bound {
    bound(scenario, like, FLAT, 1.0, "")
}

const fn bound(
    scenario: &'static str,
    like: &'static str,
    instructions: f64,
    system_calls: f64,
    why: &'static str,
) -> Bound {
    Bound {
        scenario,
        like,
        instructions,
        system_calls,
        why,
    }
}

const SHARED: &str = "falls: the commands of a turn share what a turn costs";
const TIMERS: &str = "the timers that idle connections came with are put off once, a few in each \
    millisecond; here that is soon after they came, and few commands share it";
const TREE: &str = "an identity is looked for in a tree, which is deeper";
const BUFFERS: &str = "what is more than the sockets hold at a time takes more turns, each with its \
    receives and sends";
const ASKED: &str = "what does not come in the capsule is asked for: an R2T and an H2CData more";
const PIECES: &str = "what arrives in pieces is not run at once";
const LARGE: &str = "what arrives in pieces is not run at once, and what the sockets do not hold at a \
    time takes more turns";
const BESIDE: &str = "here both reactors take a turn whenever one of the hosts waits; on cores of \
    their own the other would sleep";

const DIMENSIONS: &[Dimension] = &[
    Dimension {
        name: "Connections: 1,000 idle ones beside, or 1,000 busy ones",
        bounds: &[
            bound(
                "read_4k_qd1_beside_1000_idle",
                "read_4k_qd1",
                1.07,
                1.0,
                TIMERS,
            ),
            flat("read_4k_qd32_beside_1000_idle", "read_4k_qd32"),
            flat("write_4k_qd32_beside_1000_idle", "write_4k_qd32"),
            flat("connect_beside_1000_idle", "connect"),
            bound(
                "read_4k_qd1_on_each_of_1000",
                "read_4k_qd1",
                1.0,
                1.0,
                SHARED,
            ),
            bound(
                "write_4k_qd1_on_each_of_1000",
                "write_4k_qd1",
                1.0,
                1.0,
                SHARED,
            ),
        ],
    },
    Dimension {
        name: "Namespaces: 1 to 10,000",
        bounds: &[
            flat("read_4k_qd1_of_10000_namespaces", "read_4k_qd1"),
            flat("read_4k_qd32_of_10000_namespaces", "read_4k_qd32"),
            flat("read_4k_qd32_over_32_of_10000_namespaces", "read_4k_qd32"),
            flat("write_4k_qd32_of_10000_namespaces", "write_4k_qd32"),
            flat("keep_alive_of_10000_namespaces", "keep_alive"),
            flat("connect_to_10000_namespaces", "connect"),
            bound("attach_to_10000_namespaces", "attach", 1.5, 1.0, TREE),
        ],
    },
    Dimension {
        name: "Reactors: 1 to 2, a subsystem and a busy host on each",
        bounds: &[
            flat("read_4k_qd1_on_2_reactors", "read_4k_qd1"),
            flat("read_4k_qd32_on_2_reactors", "read_4k_qd32"),
            flat("write_4k_qd32_on_2_reactors", "write_4k_qd32"),
            bound(
                "read_128k_qd32_on_2_reactors",
                "read_128k_qd32",
                1.15,
                1.3,
                BESIDE,
            ),
        ],
    },
    Dimension {
        name: "Queue depth: 1 to 128",
        bounds: &[
            bound("read_4k_qd32", "read_4k_qd1", 0.6, 0.1, SHARED),
            bound("read_4k_qd128", "read_4k_qd32", 1.0, 1.0, SHARED),
            bound("write_4k_qd32", "write_4k_qd1", 0.65, 0.1, SHARED),
            bound("write_4k_qd128", "write_4k_qd32", 1.03, 1.0, PIECES),
            bound("write_4k_r2t_qd32", "write_4k_r2t_qd1", 0.6, 0.1, SHARED),
        ],
    },
    Dimension {
        name: "Bytes: 512 B to 1 MiB",
        bounds: &[
            flat("read_4k_qd32", "read_512_qd32"),
            bound("read_16k_qd32", "read_4k_qd32", 1.08, 2.5, BUFFERS),
            bound("read_128k_qd32", "read_4k_qd32", 2.6, 15.0, BUFFERS),
            flat("read_128k_qd1", "read_4k_qd1"),
            bound("read_1m_qd1", "read_128k_qd1", 1.65, 4.0, BUFFERS),
            flat("write_4k_qd32", "write_512_qd32"),
            bound("write_4k_r2t_qd32", "write_4k_qd32", 3.7, 2.5, ASKED),
            bound("write_16k_qd32", "write_4k_r2t_qd32", 1.15, 1.7, BUFFERS),
            bound("write_128k_qd32", "write_16k_qd32", 2.0, 4.5, LARGE),
            bound("write_128k_qd1", "write_4k_r2t_qd1", 1.45, 1.2, LARGE),
            bound("write_1m_qd1", "write_128k_qd1", 1.6, 2.0, BUFFERS),
        ],
    },
];

/// What one scenario costs.
#[derive(Clone, Copy)]
struct Cost {
    instructions: f64,
    copies: f64,
    system_calls: f64,
    allocations: f64,
}

impl Cost {
    fn of(scenario: &str, instructions: &Group, calls: &Group) -> Option<Self> {
        let (counted, called) = (instructions.get(scenario)?, calls.get(scenario)?);
        Some(Self {
            instructions: *counted.get("target")?,
            copies: *counted.get("copies")?,
            system_calls: *called.get(SYSTEM_CALLS)?,
            allocations: *called.get(ALLOCATIONS)?,
        })
    }
}

/// What has grown in these figures.
pub(super) fn broken(instructions: &Group, calls: &Group) -> Vec<String> {
    let mut broken = Vec::new();
    for bound in DIMENSIONS.iter().flat_map(|dimension| dimension.bounds) {
        let cost = |name| Cost::of(name, instructions, calls);
        let (name, like) = (bound.scenario, bound.like);
        let (Some(found), Some(base)) = (cost(name), cost(like)) else {
            broken.push(format!("{name} or {like} was not counted"));
            continue;
        };
        let mut hold = |what: &str, found: f64, base: f64, times: f64, slack: f64| {
            if found > base * times + slack {
                let grown = found / base;
                broken.push(format!(
                    "{name} takes {found:.3} {what}, {grown:.3} times the {base:.3} of {like}; \
                     at most {times}"
                ));
            }
        };
        hold(
            "instructions",
            found.instructions,
            base.instructions,
            bound.instructions,
            0.0,
        );
        hold(
            "system calls",
            found.system_calls,
            base.system_calls,
            bound.system_calls,
            NOTHING,
        );
        hold(
            "allocations",
            found.allocations,
            base.allocations,
            1.0,
            NOTHING,
        );
    }
    broken
}

const HEAD: &str = "\
# Growth

What a command costs with more of something, per command and without a clock: instructions of the
target but for copies and checksums, the reactor's system calls on its data path, allocations. One
thread holds a scripted host and the whole target (memory, epoll, release profile); see
[perf/guard](../guard/README.md). Written by `cargo xtask perf guard --renew` from `guard.toml`;
`cargo xtask perf guard` holds each row within the bounds of `xtask/src/guard/growth.rs`. What two
reactors do on two cores at a time is not measured: a clock would be needed, and cores for hosts.
";

/// The figures on file as tables.
pub(super) fn table(figures: &Figures) -> Option<String> {
    let instructions = figures.figures.get(&instructions_with(EPOLL))?;
    let calls = figures.figures.get(&calls_with(EPOLL))?;
    let mut text = HEAD.to_owned();
    for dimension in DIMENSIONS {
        // Writing to a string does not fail.
        let _ = write!(
            text,
            "\n## {}\n\n| what | beside | instructions | times | system calls | allocations | \
             copies | |\n|---|---|--:|--:|--:|--:|--:|---|\n",
            dimension.name
        );
        for bound in dimension.bounds {
            let found = Cost::of(bound.scenario, instructions, calls)?;
            let base = Cost::of(bound.like, instructions, calls)?;
            let times = found.instructions / base.instructions;
            let why = if bound.why.is_empty() {
                "flat"
            } else {
                bound.why
            };
            let _ = writeln!(
                text,
                "| {} | {} | {:.0} → {:.0} | {times:.2} | {:.3} → {:.3} | {:.2} → {:.2} | {:.0} → \
                 {:.0} | {why} |",
                bound.scenario,
                bound.like,
                base.instructions,
                found.instructions,
                base.system_calls,
                found.system_calls,
                base.allocations,
                found.allocations,
                base.copies,
                found.copies,
            );
        }
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::figures::{MadeWith, Parts};
    use super::*;

    fn group(parts: &[(&str, f64)]) -> Group {
        let parts: Parts = parts
            .iter()
            .map(|&(part, figure)| (part.to_owned(), figure))
            .collect();
        let bounds = DIMENSIONS.iter().flat_map(|dimension| dimension.bounds);
        bounds
            .flat_map(|bound| [bound.scenario, bound.like])
            .map(|name| (name.to_owned(), parts.clone()))
            .collect()
    }

    /// Figures that do not grow, but fall where they have to.
    fn flat_figures() -> (Group, Group) {
        let mut instructions = group(&[("target", 1000.0), ("copies", 10.0)]);
        let mut calls = group(&[(SYSTEM_CALLS, 0.1), (ALLOCATIONS, 0.0)]);
        for name in ["read_4k_qd1", "write_4k_qd1", "write_4k_r2t_qd1"] {
            *part(&mut instructions, name, "target") = 2000.0;
            *part(&mut calls, name, SYSTEM_CALLS) = 3.0;
        }
        (instructions, calls)
    }

    fn part<'a>(group: &'a mut Group, name: &str, part: &str) -> &'a mut f64 {
        group.get_mut(name).unwrap().get_mut(part).unwrap()
    }

    #[test]
    fn growth_beyond_its_bound_is_told() {
        let (mut instructions, mut calls) = flat_figures();
        assert_eq!(broken(&instructions, &calls), [""; 0]);
        *part(&mut instructions, "connect_to_10000_namespaces", "target") = 1100.0;
        *part(&mut calls, "read_4k_qd32_on_2_reactors", SYSTEM_CALLS) = 1.1;
        *part(&mut calls, "keep_alive_of_10000_namespaces", ALLOCATIONS) = 1.0;
        let told = broken(&instructions, &calls);
        assert_eq!(told.len(), 3, "{told:?}");
        let expected = [
            "1.000 allocations",
            "1100.000 instructions, 1.100 times the 1000.000 of connect; at most 1.03",
            "1.100 system calls",
        ];
        for expected in expected {
            let is_told = told.iter().any(|line| line.contains(expected));
            assert!(is_told, "{expected}: {told:?}");
        }
    }

    #[test]
    fn table_has_a_row_for_each_bound() {
        let (instructions, calls) = flat_figures();
        let made_with = MadeWith {
            profile: String::new(),
            rustc: String::new(),
            architecture: String::new(),
        };
        let mut figures = Figures {
            made_with,
            figures: BTreeMap::from([
                (instructions_with(EPOLL), instructions),
                (calls_with(EPOLL), calls),
            ]),
        };
        let text = table(&figures).unwrap();
        for bound in DIMENSIONS.iter().flat_map(|dimension| dimension.bounds) {
            let row = format!("\n| {} | {} | ", bound.scenario, bound.like);
            assert!(text.contains(&row), "{row}");
        }
        figures.figures.remove(&calls_with(EPOLL));
        assert!(table(&figures).is_none());
    }
}
