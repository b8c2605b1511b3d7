//! What came of the jobs, for people and for programs.

use std::fmt::Write as _;

use bowline_nvme::Nanos;
use serde::Serialize;

use super::device::Device;
use super::output::{Direction, Latency, Output, Section};
use super::program::Ran;
use crate::latency::{Latencies, Summary};
use crate::report::SCHEMA_VERSION;

/// `EILSEQ`: how fio says that it did not read what it wrote.
const DATA_DIFFERS: i32 = 84;
/// Below this share of its rate an open loop was not one.
const RATE_KEPT_MIN: f64 = 0.95;
/// Nobody uses more of a core than all of it; the rest is for rounding.
const CORE_MAX: f64 = 1.05;

/// All jobs of a run.
#[derive(Debug, Serialize)]
pub(super) struct Report<'a> {
    pub(super) schema_version: u32,
    pub(super) fio_version: &'a str,
    pub(super) kernel_release: String,
    pub(super) device: &'a Device,
    pub(super) jobs: &'a [JobReport],
    /// Jobs that write, where nobody allowed it.
    pub(super) left_out: &'a [String],
}

/// One section of a job file.
#[derive(Debug, Serialize)]
pub(super) struct JobReport {
    /// Name of the job file, and of the section if that is another.
    pub(super) name: String,
    /// Errors, at least one if the job did not end well.
    pub(super) errors: u64,
    pub(super) first_error: Option<String>,
    /// Cores that the job kept busy in this host; not known where fio's figure cannot be.
    client_cpu_cores: Option<f64>,
    /// In an open loop, commands that were to start per second.
    rate_iops: Option<f64>,
    /// Where a job waits for a steady state, whether it came.
    steady_state: Option<bool>,
    operations: Vec<Operation>,
}

#[derive(Debug, Serialize)]
struct Operation {
    operation: &'static str,
    commands: u64,
    iops: f64,
    bytes_per_second: f64,
    /// `submission` if latency is counted from the call that submits, `completion` if only from its
    /// end, because the job did not ask for more (lat_percentiles=1).
    latency_from: &'static str,
    latency_ns: Summary,
    /// HdrHistogram V2, base64.
    histogram: String,
}

impl<'a> Report<'a> {
    pub(super) fn new(
        fio_version: &'a str,
        device: &'a Device,
        jobs: &'a [JobReport],
        left_out: &'a [String],
    ) -> Self {
        let uname = rustix::system::uname();
        Self {
            schema_version: SCHEMA_VERSION,
            fio_version,
            kernel_release: uname.release().to_string_lossy().into_owned(),
            device,
            jobs,
            left_out,
        }
    }
}

impl JobReport {
    /// Of every section of a job file that ran.
    pub(super) fn of(name: &str, ran: &Ran, output: &Output) -> Vec<Self> {
        let sections = output.jobs.iter();
        let mut reports: Vec<Self> = sections
            .map(|section| Self::of_section(name, section, output))
            .collect();
        // fio may fail without blaming a section.
        if !ran.succeeded && reports.iter().all(|report| report.errors == 0) {
            reports.push(Self::failed(name, &ran.said));
        }
        if let Some(report) = reports.iter_mut().find(|report| report.errors > 0)
            && !ran.said.is_empty()
        {
            let first = report.first_error.get_or_insert_default();
            if *first != ran.said {
                let _ = write!(first, " ({})", ran.said);
            }
        }
        reports
    }

    /// Of a job file that has no result.
    pub(super) fn failed(name: &str, why: &str) -> Self {
        let why = if why.is_empty() {
            "fio failed and does not say why"
        } else {
            why
        };
        Self {
            name: name.to_owned(),
            errors: 1,
            first_error: Some(why.to_owned()),
            client_cpu_cores: None,
            rate_iops: None,
            steady_state: None,
            operations: Vec::new(),
        }
    }

    fn of_section(name: &str, section: &Section, output: &Output) -> Self {
        let option = |key: &str| {
            let own = section.options.get(key);
            own.or_else(|| output.global_options.get(key))
                .map(String::as_str)
        };
        let processes: f64 = option("numjobs")
            .and_then(|text| text.parse().ok())
            .unwrap_or(1.0);
        let seconds = section.job_runtime as f64 / 1000.0 / processes;
        let mut operations = vec![
            Operation::of("read", &section.read),
            Operation::of("write", &section.write),
            Operation::of("trim", &section.trim),
        ];
        let flushes = &section.sync;
        operations.push(Operation {
            commands: flushes.total_ios,
            iops: if seconds > 0.0 {
                flushes.total_ios as f64 / seconds
            } else {
                0.0
            },
            ..Operation::timed("flush", "submission", &flushes.lat_ns)
        });
        operations.retain(|operation| operation.commands > 0);
        let failed = u64::from(section.error != 0);
        Self {
            name: full_name(name, &section.jobname),
            errors: section.total_err.max(failed),
            first_error: (section.error != 0).then(|| describe(section.error)),
            client_cpu_cores: cores(section, processes),
            // One number, or one for each of reads, writes and deallocations.
            rate_iops: option("rate_iops")
                .and_then(|rate| rate.split(',').next())
                .and_then(|rate| rate.parse::<f64>().ok())
                .map(|rate| rate * processes),
            steady_state: section
                .steadystate
                .as_ref()
                .map(|state| state.attained != 0),
            operations,
        }
    }
}

fn full_name(file: &str, section: &str) -> String {
    if file == section {
        file.to_owned()
    } else {
        format!("{file}/{section}")
    }
}

fn describe(errno: i32) -> String {
    match errno {
        DATA_DIFFERS => "what was read is not what was written".to_owned(),
        _ => std::io::Error::from_raw_os_error(errno).to_string(),
    }
}

/// fio's times of several processes together are sometimes far beyond what there is; those are not
/// passed on.
fn cores(section: &Section, processes: f64) -> Option<f64> {
    let each = (section.usr_cpu? + section.sys_cpu?) / 100.0;
    (0.0..=CORE_MAX).contains(&each).then_some(each * processes)
}

impl Operation {
    fn of(operation: &'static str, direction: &Direction) -> Self {
        let (from, latency) = if direction.lat_ns.bins.is_empty() {
            ("completion", &direction.clat_ns)
        } else {
            ("submission", &direction.lat_ns)
        };
        Self {
            commands: direction.total_ios,
            iops: direction.iops.unwrap_or_default(),
            bytes_per_second: direction.bw_bytes as f64,
            ..Self::timed(operation, from, latency)
        }
    }

    fn timed(operation: &'static str, latency_from: &'static str, latency: &Latency) -> Self {
        let mut latencies = Latencies::default();
        for (nanos, count) in &latency.bins {
            latencies.record_many(Nanos(*nanos), *count);
        }
        let mut summary = latencies.summary();
        if summary.count > 0 {
            // These fio knows better than its bins tell.
            summary.min = Some(latency.min);
            summary.max = Some(latency.max);
            summary.mean = latency.mean;
        }
        Self {
            operation,
            commands: 0,
            iops: 0.0,
            bytes_per_second: 0.0,
            latency_from,
            latency_ns: summary,
            histogram: latencies.encoded(),
        }
    }
}

/// What stands above the rows.
pub(super) fn heading(report: &Report<'_>) -> String {
    let device = report.device;
    let model = device
        .model
        .as_ref()
        .map_or(String::new(), |model| format!(" ({model})"));
    let size = crate::units::show_size(device.bytes);
    format!(
        "{}{model}, {size}; {}, Linux {}\n\n{:<22} {:<6} {:>10} {:>9} {:>9} {:>9} {:>9} {:>9} {:>7} {:>6}\n",
        device.path.display(),
        report.fio_version,
        report.kernel_release,
        "job, latency in us",
        "op",
        "IOPS",
        "MiB/s",
        "p50",
        "p99",
        "p99.9",
        "p99.99",
        "errors",
        "CPU %",
    )
}

impl JobReport {
    /// A line for each operation; errors and CPU of the job stand in the first.
    pub(super) fn rows(&self) -> String {
        let mut out = String::new();
        let cpu = self.client_cpu_cores;
        let cpu = cpu.map_or("-".to_owned(), |cores| format!("{:.0}", cores * 100.0));
        let mut firsts = [(self.name.as_str(), self.errors.to_string(), cpu)].into_iter();
        let mut lines: Vec<[String; 7]> = self.operations.iter().map(Operation::cells).collect();
        if lines.is_empty() {
            lines.push(std::array::from_fn(|_| "-".to_owned()));
        }
        for [operation, iops, rate, p50, p99, p99_9, p99_99] in lines {
            let (name, errors, cpu) = firsts.next().unwrap_or_default();
            let line = format!(
                "{name:<22} {operation:<6} {iops:>10} {rate:>9} {p50:>9} {p99:>9} {p99_9:>9} \
                 {p99_99:>9} {errors:>7} {cpu:>6}"
            );
            out.push_str(line.trim_end());
            out.push('\n');
        }
        for note in self.notes() {
            let _ = writeln!(out, "  {note}");
        }
        out
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if let Some(error) = &self.first_error {
            notes.push(format!("error: {error}"));
        }
        if let Some(steady) = self.steady_state {
            notes.push(format!("steady: {}", if steady { "yes" } else { "no" }));
        }
        if let Some(rate) = self.rate_iops {
            let kept: f64 = self
                .operations
                .iter()
                .map(|operation| operation.iops)
                .fold(0.0, f64::max);
            if kept < rate * RATE_KEPT_MIN {
                notes.push(format!(
                    "only {kept:.0} of {rate:.0} a second: arrivals had to wait, latency is too good"
                ));
            }
        }
        notes
    }
}

impl Operation {
    fn cells(&self) -> [String; 7] {
        let micros = |nanos: Option<u64>| {
            nanos.map_or("-".to_owned(), |nanos| {
                format!("{:.1}", nanos as f64 / 1000.0)
            })
        };
        let rate = match self.operation {
            "flush" => String::new(),
            _ => format!("{:.1}", self.bytes_per_second / f64::from(1 << 20)),
        };
        [
            self.operation.to_owned(),
            format!("{:.0}", self.iops),
            rate,
            micros(self.latency_ns.p50),
            micros(self.latency_ns.p99),
            micros(self.latency_ns.p99_9),
            micros(self.latency_ns.p99_99),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::super::output::parse;
    use super::*;

    const SYNC_WRITE: &str = include_str!("golden/sync-write.json");
    const MIXED: &str = include_str!("golden/mixed.json");
    const DAMAGED: &str = include_str!("golden/verify-damaged.json");
    const PRECONDITION: &str = include_str!("golden/precondition.json");

    fn reports(name: &str, printed: &str, succeeded: bool, said: &str) -> Vec<JobReport> {
        let ran = Ran {
            printed: printed.to_owned(),
            said: said.to_owned(),
            succeeded,
        };
        JobReport::of(name, &ran, &parse(printed).unwrap())
    }

    fn operations(report: &JobReport) -> Vec<&'static str> {
        report
            .operations
            .iter()
            .map(|operation| operation.operation)
            .collect()
    }

    #[test]
    fn percentiles_agree_with_fios_own() {
        let fio: serde_json::Value = serde_json::from_str(MIXED).unwrap();
        let report = &reports("mixed", MIXED, true, "")[0];
        assert_eq!(operations(report), ["read", "write"]);
        for operation in &report.operations {
            let own = &fio["jobs"][0][operation.operation];
            assert_eq!(Some(operation.commands), own["total_ios"].as_u64());
            let percentiles = &own["lat_ns"]["percentile"];
            let ours = operation.latency_ns;
            for (name, value) in [("50.000000", ours.p50), ("99.000000", ours.p99)] {
                let (theirs, ours) = (percentiles[name].as_u64().unwrap(), value.unwrap());
                assert!(
                    ours.abs_diff(theirs) * 50 <= theirs,
                    "{name}: {ours}, fio {theirs}"
                );
            }
            assert_eq!(ours.max, own["lat_ns"]["max"].as_u64());
            assert_eq!(operation.latency_from, "submission");
        }
    }

    #[test]
    fn flushes_have_a_line_of_their_own() {
        let report = &reports("sync-write", SYNC_WRITE, true, "")[0];
        assert_eq!(operations(report), ["write", "flush"]);
        let [write, flush] = report.operations.as_slice() else {
            panic!("two operations");
        };
        assert!(write.commands.abs_diff(flush.commands) <= 1);
        assert!((flush.iops / write.iops - 1.0).abs() < 0.05, "{flush:?}");
        let rows = report.rows();
        let lines: Vec<&str> = rows.lines().collect();
        assert_eq!(lines.len(), 2, "{rows}");
        assert!(
            lines[0].starts_with("sync-write             write"),
            "{rows}"
        );
        assert!(
            lines[1].starts_with("                       flush"),
            "{rows}"
        );
    }

    #[test]
    fn job_without_lat_percentiles_says_that_its_latency_is_shorter() {
        let mut output = parse(MIXED).unwrap();
        output.jobs[0].read.lat_ns.bins.clear();
        let report = JobReport::of_section("mixed", &output.jobs[0], &output);
        assert_eq!(report.operations[0].latency_from, "completion");
        assert!(report.operations[0].latency_ns.p50 > Some(0));
    }

    #[test]
    fn damaged_data_is_an_error_in_words_with_what_fio_said() {
        let report = &reports("verify", DAMAGED, false, "crc32c: verify failed")[0];
        assert_eq!(report.errors, 1);
        let error = report.first_error.as_deref().unwrap();
        assert_eq!(
            error,
            "what was read is not what was written (crc32c: verify failed)"
        );
        assert!(report.rows().contains("  error: what was read"));
    }

    #[test]
    fn failure_of_no_section_is_a_failure_of_the_job() {
        let reports = reports("mixed", MIXED, false, "out of memory");
        assert_eq!(reports.len(), 2);
        assert_eq!((reports[0].errors, reports[1].errors), (0, 1));
        assert_eq!(reports[1].first_error.as_deref(), Some("out of memory"));
        let nothing = JobReport::failed("a", "");
        assert!(nothing.rows().contains("does not say why"));
    }

    #[test]
    fn sections_are_named_after_their_file_and_say_whether_they_got_steady() {
        let reports = reports("precondition", PRECONDITION, true, "");
        let names: Vec<&str> = reports.iter().map(|report| report.name.as_str()).collect();
        assert_eq!(names, ["precondition/fill", "precondition/steady"]);
        assert!(reports[1].rows().contains("steady: no"));
    }

    #[test]
    fn open_loop_that_did_not_keep_its_rate_says_so() {
        let mut output = parse(MIXED).unwrap();
        let mut rows = |rate: &str| {
            let rate = ("rate_iops".to_owned(), rate.to_owned());
            output.jobs[0].options.extend([rate]);
            JobReport::of_section("mixed", &output.jobs[0], &output).rows()
        };
        assert!(rows("1000000000").contains("latency is too good"));
        assert!(!rows("1,1").contains("too good"));
    }

    #[test]
    fn impossible_cpu_times_are_not_known() {
        let mut output = parse(MIXED).unwrap();
        let mut cores = |percent: f64| {
            output.jobs[0].usr_cpu = Some(percent);
            output.jobs[0].sys_cpu = Some(0.0);
            super::cores(&output.jobs[0], 4.0)
        };
        assert_eq!(cores(50.0), Some(2.0));
        assert_eq!(cores(788_040.4), None);
        assert_eq!(cores(-1.0), None);
    }
}
