//! What fio prints with `--output-format=json+`, as far as it is used here.
//!
//! Two things are fio's own: it may print notes before and behind the JSON, and it prints numbers
//! that are none (a rate over no time) as `nan` and `inf`, which JSON does not know.

use std::collections::BTreeMap;

use serde::Deserialize;

#[derive(Debug, Deserialize)]
pub(super) struct Output {
    #[serde(rename = "global options", default)]
    pub(super) global_options: BTreeMap<String, String>,
    pub(super) jobs: Vec<Section>,
}

/// A section of a job file, or several of one group together.
#[derive(Debug, Deserialize)]
pub(super) struct Section {
    pub(super) jobname: String,
    /// `errno` of the first error; 0 is none.
    pub(super) error: i32,
    /// Errors that the job went on after; only there if it was told to go on.
    #[serde(default)]
    pub(super) total_err: u64,
    #[serde(rename = "job options", default)]
    pub(super) options: BTreeMap<String, String>,
    pub(super) read: Direction,
    pub(super) write: Direction,
    pub(super) trim: Direction,
    #[serde(default)]
    pub(super) sync: Flushes,
    /// Of all processes of the section together.
    #[serde(default)]
    pub(super) job_runtime: u64,
    /// Of one process, in percent of a core.
    pub(super) usr_cpu: Option<f64>,
    pub(super) sys_cpu: Option<f64>,
    pub(super) steadystate: Option<SteadyState>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Direction {
    pub(super) total_ios: u64,
    pub(super) iops: Option<f64>,
    pub(super) bw_bytes: u64,
    /// From the submitting call to the completion.
    pub(super) lat_ns: Latency,
    /// From the end of the submitting call.
    pub(super) clat_ns: Latency,
}

/// Flushes; fio knows neither their rate nor their time.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Flushes {
    pub(super) total_ios: u64,
    pub(super) lat_ns: Latency,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Latency {
    pub(super) min: u64,
    pub(super) max: u64,
    pub(super) mean: Option<f64>,
    /// Nanoseconds, and how many took that long. Absent unless the job asked for percentiles of
    /// this latency.
    #[serde(default)]
    pub(super) bins: BTreeMap<u64, u64>,
}

#[derive(Debug, Deserialize)]
pub(super) struct SteadyState {
    pub(super) attained: u8,
}

/// Reads what fio printed.
pub(super) fn parse(printed: &str) -> Result<Output, serde_json::Error> {
    let start = printed
        .match_indices('{')
        .find(|(at, _)| *at == 0 || printed[..*at].ends_with('\n'));
    let json = start.map_or("", |(at, _)| &printed[at..]);
    let json = without_nan(json);
    // A stream: notes may follow the first value.
    let mut values = serde_json::Deserializer::from_str(&json).into_iter();
    values.next().unwrap_or_else(|| serde_json::from_str(""))
}

/// `nan`, `-nan`, `inf` and `-inf` as `null`, outside of strings.
fn without_nan(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for (index, part) in quoted(json).enumerate() {
        if index % 2 == 1 {
            out.push_str(part);
            continue;
        }
        let mut part = part.to_owned();
        for number in ["-nan", "nan", "-inf", "inf"] {
            part = part.replace(number, "null");
        }
        out.push_str(&part);
    }
    out
}

/// The text in parts that are in turn outside and inside of strings, quotes included inside.
fn quoted(json: &str) -> impl Iterator<Item = &str> {
    let mut rest = json;
    let mut inside = false;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let end = if inside {
            end_of_string(rest)
        } else {
            rest.find('"').unwrap_or(rest.len())
        };
        inside = !inside;
        let (part, tail) = rest.split_at(end);
        rest = tail;
        Some(part)
    })
}

/// Where the string that begins `text` ends, its quotes included.
fn end_of_string(text: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Printed by fio 3.33 for a file of 16 MiB.
    const SYNC_WRITE: &str = include_str!("golden/sync-write.json");
    const MIXED: &str = include_str!("golden/mixed.json");
    const DAMAGED: &str = include_str!("golden/verify-damaged.json");
    const PRECONDITION: &str = include_str!("golden/precondition.json");

    #[test]
    fn writes_and_their_flushes_are_read() {
        let output = parse(SYNC_WRITE).unwrap();
        let [section] = output.jobs.as_slice() else {
            panic!("one section");
        };
        assert_eq!((section.jobname.as_str(), section.error), ("sync-write", 0));
        assert_eq!(section.options.get("fsync").map(String::as_str), Some("1"));
        // The one that was under way at the end is counted and not timed.
        let all_timed = |latency: &Latency, count: u64| {
            let timed = latency.bins.values().sum::<u64>();
            timed > 1000 && (timed == count || timed + 1 == count)
        };
        let writes = &section.write;
        assert!(all_timed(&writes.lat_ns, writes.total_ios));
        assert!(all_timed(&writes.clat_ns, writes.total_ios));
        assert!(all_timed(&section.sync.lat_ns, section.sync.total_ios));
        assert_eq!(section.read.total_ios, 0);
        assert!(section.job_runtime > 0);
    }

    #[test]
    fn reads_and_writes_are_told_apart() {
        let output = parse(MIXED).unwrap();
        let section = &output.jobs[0];
        assert!(section.read.iops > section.write.iops);
        assert!(section.write.iops > Some(0.0));
        let bins = &section.read.lat_ns.bins;
        assert!(bins.keys().next() >= Some(&(section.read.lat_ns.min / 2)));
        assert_eq!(
            output.global_options.get("direct").map(String::as_str),
            Some("1")
        );
    }

    #[test]
    fn notes_around_the_json_are_passed_over() {
        let noisy = format!("fio: this is {{ a note }}\nnote: another\n{SYNC_WRITE}\nthe end {{\n");
        assert_eq!(parse(&noisy).unwrap().jobs.len(), 1);
    }

    #[test]
    fn data_that_differs_is_an_error_of_the_section() {
        let output = parse(DAMAGED).unwrap();
        assert_eq!(output.jobs[0].error, 84);
    }

    #[test]
    fn sections_behind_each_other_and_steady_state_are_read() {
        let output = parse(PRECONDITION).unwrap();
        let names: Vec<&str> = output.jobs.iter().map(|job| job.jobname.as_str()).collect();
        assert_eq!(names, ["fill", "steady"]);
        let steady = output.jobs[1].steadystate.as_ref().unwrap();
        assert_eq!(steady.attained, 0);
    }

    #[test]
    fn numbers_that_are_none_are_unknown_and_strings_stay() {
        let text = r#"{"a" : -nan, "nan \" inf" : inf, "b" : [nan, 1], "c" : "-inf"}"#;
        assert_eq!(
            without_nan(text),
            r#"{"a" : null, "nan \" inf" : null, "b" : [null, 1], "c" : "-inf"}"#
        );
        let damaged = MIXED.replacen("\"usr_cpu\" : ", "\"usr_cpu\" : -nan, \"was\" : ", 1);
        assert_eq!(parse(&damaged).unwrap().jobs[0].usr_cpu, None);
    }

    #[test]
    fn what_is_no_result_is_an_error() {
        for text in [
            "",
            "fio: cannot\n",
            "{",
            "{}",
            "{\"jobs\": 1}",
            "\"",
            "{\"a\\",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
