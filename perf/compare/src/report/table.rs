//! The document as Markdown.

use std::fmt::Write;

use crate::result::{CellResult, Document, Figure, FigureResult};

/// A table cell for what was not measured.
const NOTHING: &str = "–";

pub(super) fn markdown(document: &Document, name: &str) -> String {
    let mut text = format!("# {name}\n\n");
    conditions(&mut text, document);
    comparisons(&mut text, document);
    figures(&mut text, document);
    rest(&mut text, document);
    if !document.skipped.is_empty() {
        text.push_str("\n## Skipped\n\n");
        for skipped in &document.skipped {
            line(
                &mut text,
                format_args!("- {}: {}", skipped.what, skipped.why),
            );
        }
    }
    text
}

fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{arguments}");
}

fn conditions(text: &mut String, document: &Document) {
    let it = &document.environment;
    line(
        text,
        format_args!(
            "{}, {} ({} cores{}), target on core {}, client on core {}, loopback{}, {}.",
            it.kernel,
            it.cpu,
            it.cores,
            if it.virtualised { ", virtual" } else { "" },
            it.target_core,
            it.client_core,
            if it.network.own_namespace {
                " of an own network namespace"
            } else {
                ""
            },
            it.network.congestion_control,
        ),
    );
    if let Some(settings) = &it.settings {
        line(
            text,
            format_args!(
                "`--poll {}`, slices of {} ms{}.",
                settings.poll,
                settings.slice_ms,
                if settings.gated { "" } else { ", ungated" },
            ),
        );
    }
    let programs: Vec<String> = document
        .programs
        .iter()
        .map(|program| named(&program.role, &program.version))
        .collect();
    line(
        text,
        format_args!(
            "Profile {}{}; {}. The terms are those of [SPECIFICATION.md](../SPECIFICATION.md).",
            it.profile,
            it.revision
                .as_ref()
                .map_or_else(String::new, |revision| format!(", revision {revision}")),
            programs.join(", "),
        ),
    );
}

/// A program and its version, which for some begins with the program's name.
fn named(role: &str, version: &str) -> String {
    let rest = version.strip_prefix(role).unwrap_or(version);
    format!("{role} {}", rest.trim_start())
}

/// The subject against each other contender.
fn comparisons(text: &mut String, document: &Document) {
    text.push_str(
        "\n## Ratios\n\nMedian of the pairs' ratios, the first to the second, with its 95 % \
         interval and the noise of the first against itself. What is called *better* or *worse* \
         differs by more than 3 % and more than the noise, and its interval excludes 1.\n\n\
         | cell | client | first : second | IOPS | IOPS per CPU-second | p50 latency | p99 latency |\n\
         |---|---|---|---|---|---|---|\n",
    );
    for cell in &document.cells {
        if let Some(why) = &cell.unpublished {
            line(
                text,
                format_args!(
                    "| {} | {} | not published: {why} | | | | |",
                    cell.name, cell.client
                ),
            );
            continue;
        }
        for comparison in cell.comparisons.iter().filter(|one| one.role != "itself") {
            let second = if comparison.role == comparison.other {
                comparison.role.clone()
            } else {
                format!("{} ({})", comparison.role, comparison.other)
            };
            let columns = Figure::ALL.map(|figure| ratio(comparison.figure(figure)));
            line(
                text,
                format_args!(
                    "| {} | {} | {} : {second} | {} |",
                    cell.name,
                    cell.client,
                    comparison.subject,
                    columns.join(" | ")
                ),
            );
        }
    }
}

fn ratio(found: Option<&FigureResult>) -> String {
    let Some(found) = found else {
        return NOTHING.to_owned();
    };
    let it = &found.estimate;
    format!(
        "**{:.2}** [{:.2}, {:.2}] noise {:.1} % {}",
        it.ratio,
        it.low,
        it.high,
        (found.noise - 1.0) * 100.0,
        found.verdict.word()
    )
}

/// Absolute figures, which move with the machine.
fn figures(text: &mut String, document: &Document) {
    text.push_str(
        "\n## Figures\n\nThey move with the machine; compare within a cell only.\n\n\
         | cell | client | contender | IOPS | MiB/s | p50 µs | p99 µs | p99.9 µs | CPU s per 10⁶ I/O \
         | IOPS per CPU-second | system calls per I/O | memory MiB | of the limit | busy | slices |\n\
         |---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    let published = document
        .cells
        .iter()
        .filter(|cell| cell.unpublished.is_none());
    for cell in published {
        contenders(text, cell);
    }
}

fn contenders(text: &mut String, cell: &CellResult) {
    for it in &cell.contenders {
        let micros = |ns: Option<f64>| maybe(ns.map(|ns| ns / 1e3), 1);
        let bound = if it.client_bound {
            ", client-bound"
        } else {
            ""
        };
        line(
            text,
            format_args!(
                "| {} | {} | {} | {:.0} | {:.0} | {} | {} | {} | {:.3} | {:.0} | {} | {:.0} | {} | {:.0} %{bound} | {} of {} |",
                cell.name,
                cell.client,
                it.contender,
                it.iops,
                it.bytes_per_second / f64::from(1_u32 << 20),
                micros(Some(it.latency_p50_ns)),
                micros(it.latency_p99_ns),
                micros(it.latency_p99_9_ns),
                it.cpu_seconds_per_million_io,
                it.iops_per_cpu_second,
                maybe(it.system_calls_per_io, 3),
                it.memory_bytes as f64 / f64::from(1_u32 << 20),
                maybe(it.share_of_limit, 2),
                it.busy_share * 100.0,
                it.slices,
                cell.attempted,
            ),
        );
    }
}

fn maybe(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| NOTHING.to_owned(), |value| format!("{value:.digits$}"))
}

fn rest(text: &mut String, document: &Document) {
    if !document.idle.is_empty() {
        text.push_str("\n## Idle\n\n| contender | hosts | seconds | CPU, share of a core |\n|---|--:|--:|--:|\n");
        for it in &document.idle {
            line(
                text,
                format_args!(
                    "| {} | {} | {:.0} | {:.3} % |",
                    it.contender,
                    it.hosts,
                    it.seconds,
                    it.cores * 100.0
                ),
            );
        }
    }
    if !document.first_io.is_empty() {
        text.push_str(
            "\n## First I/O after idle\n\nBare sockets show what the machine itself needs to answer \
             after a pause: `bare-sleeping` with waking up, `bare`, which spins, without.\n\n| contender | pause ms | warm p50 µs | after idle p50 µs | beyond warm µs |\n|---|--:|--:|--:|--:|\n",
        );
        for it in &document.first_io {
            line(
                text,
                format_args!(
                    "| {} | {:.0} | {:.1} | {:.1} | {:.1} |",
                    it.contender,
                    it.pause_seconds * 1e3,
                    it.warm_ns / 1e3,
                    it.after_idle_ns / 1e3,
                    it.beyond_warm_ns / 1e3
                ),
            );
        }
    }
    pool(text, document);
    if !document.memory.is_empty() {
        text.push_str(
            "\n## Memory at rest\n\n| contender | resident MiB | huge pages MiB |\n|---|--:|--:|\n",
        );
        for it in &document.memory {
            let mib = |bytes: u64| bytes as f64 / f64::from(1_u32 << 20);
            line(
                text,
                format_args!(
                    "| {} | {:.1} | {:.1} |",
                    it.contender,
                    mib(it.resident_bytes),
                    mib(it.huge_page_bytes)
                ),
            );
        }
    }
}

fn pool(text: &mut String, document: &Document) {
    if document.pool.is_empty() {
        return;
    }
    text.push_str(
        "\n## The pool as a whole\n\n| subject | figure | value | seen |\n|---|---|--:|---|\n",
    );
    for it in &document.pool {
        let value = if it.value < 100.0 {
            format!("{:.3}", it.value)
        } else {
            format!("{:.0}", it.value)
        };
        line(
            text,
            format_args!(
                "| {} | {} | {value} | {}{} |",
                it.subject,
                it.measure.word(),
                it.detail,
                it.unclaimed
                    .as_ref()
                    .map_or_else(String::new, |why| format!("; no claim: {why}")),
            ),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_is_named_once() {
        assert_eq!(named("bowline", "bowline 0.1.0"), "bowline 0.1.0");
        assert_eq!(named("nvmf_tgt", "SPDK v26"), "nvmf_tgt SPDK v26");
    }
}
