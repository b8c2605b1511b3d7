//! What came of a run, for people and for programs.

use std::fmt::Write as _;

use bowline_nvme::Nanos;
use serde::Serialize;

use crate::job::{Job, Pace, Payload};
use crate::latency::{Latencies, Summary};
use crate::load::Load;
use crate::units::show_size;
use crate::verify::Verified;

/// Version of the JSON form; fields may be added without a new one.
pub const SCHEMA_VERSION: u32 = 1;

/// What the controllers offer.
#[derive(Debug, Clone)]
pub(crate) struct Setting {
    pub(crate) unit_blocks: u32,
    /// Units of one command's size in the span.
    pub(crate) units: u64,
    pub(crate) namespace_bytes: u64,
    pub(crate) logical_block_bytes: u32,
    pub(crate) in_capsule_bytes: u32,
    pub(crate) model: String,
    pub(crate) firmware: String,
    pub(crate) backend: String,
}

/// What was measured around the commands.
#[derive(Debug, Clone)]
pub(crate) struct Measured {
    pub(crate) duration: Nanos,
    pub(crate) client_cpu: Nanos,
    pub(crate) gathers: u64,
    pub(crate) system_calls: u64,
}

/// The outcome. Base units, named in each field.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Version of this program.
    pub client_version: &'static str,
    /// Where.
    pub address: String,
    /// Subsystem NQN.
    pub subsystem: String,
    /// Namespace identifier.
    pub namespace: u32,
    /// Model number of the controller.
    pub model: String,
    /// Firmware revision of the controller.
    pub firmware: String,
    /// Size of the namespace.
    pub namespace_bytes: u64,
    /// Size of a logical block.
    pub logical_block_bytes: u32,
    /// The part of the namespace that was used.
    pub span_bytes: u64,
    /// Largest data sent in a command's capsule.
    pub in_capsule_bytes: u32,
    /// read, write or mixed.
    pub workload: &'static str,
    /// Of a hundred commands, this many are reads.
    pub read_percent: u8,
    /// How addresses were chosen.
    pub pattern: String,
    /// Bytes of one command.
    pub block_bytes: u32,
    /// Where the data of writes came from, if there were any: "shared" if all wrote the same
    /// buffer, "own" if each command had one.
    pub write_payload: Option<&'static str>,
    /// Commands outstanding on each queue, at most.
    pub queue_depth: u16,
    /// Associations.
    pub connections: u16,
    /// I/O queues of each.
    pub queues: u16,
    /// In an open loop, commands per second that were to start.
    pub rate_iops: Option<u64>,
    /// In an open loop, how they were spaced.
    pub arrivals: Option<&'static str>,
    /// Whether PDU headers carried a checksum.
    pub header_digest: bool,
    /// Whether data carried a checksum.
    pub data_digest: bool,
    /// What the client did while it waited: spin, park or doze.
    pub poll: &'static str,
    /// The core it ran on, if it was bound to one.
    pub core: Option<usize>,
    /// What moved bytes.
    pub backend: String,
    /// Decides addresses, mix and arrivals.
    pub seed: u64,
    /// Time before counting began.
    pub warm_up_seconds: f64,
    /// Time that was counted.
    pub duration_seconds: f64,
    /// How many commands were to be counted, if their number and not the time was given.
    pub commands_wanted: Option<u64>,
    /// Commands that completed in that time.
    pub commands: u64,
    /// Of these, reads.
    pub reads: u64,
    /// Of these, writes or deallocations.
    pub writes: u64,
    /// Commands per second.
    pub iops: f64,
    /// Data per second.
    pub bytes_per_second: f64,
    /// Latency of all commands: in a closed loop of those that completed in the counted time, in
    /// an open loop of those that were to start in it, from the moment they were to start.
    pub latency_ns: Summary,
    /// Of reads.
    pub read_latency_ns: Summary,
    /// Of writes.
    pub write_latency_ns: Summary,
    /// Commands that failed, warm-up included.
    pub errors: u64,
    /// How the first of them failed.
    pub first_error: Option<String>,
    /// In an open loop, most commands that were due and had to wait for a place in a queue.
    pub backlog_max: Option<u64>,
    /// In an open loop, commands that were due and did not start in the counted time. They are in
    /// the latencies with the time they had waited by its end.
    pub commands_not_started: Option<u64>,
    /// What was verified, if anything was.
    pub verify: Option<Verified>,
    /// Processor time of the client's thread in the counted time.
    pub client_cpu_seconds: f64,
    /// System calls of the client's thread in the counted time.
    pub client_system_calls: u64,
    /// Commands per gather that the client sent: its batching sets the target's.
    pub commands_per_send: Option<f64>,
    /// All latencies: HdrHistogram V2, base64.
    pub histogram: String,
}

impl Report {
    pub(crate) fn new(job: &Job, setting: &Setting, measured: &Measured, done: &Load) -> Self {
        let (load, tally) = (&job.load, &done.tally);
        let mut all = Latencies::default();
        all.add(&tally.read_latencies);
        all.add(&tally.write_latencies);
        let commands = tally.reads + tally.writes;
        let seconds = measured.duration.0 as f64 / 1e9;
        let iops = commands as f64 / seconds;
        let open = match load.pace {
            Pace::Closed => None,
            Pace::Open {
                per_second,
                spacing,
            } => Some((per_second, spacing)),
        };
        let gathers = measured.gathers;
        Self {
            schema_version: SCHEMA_VERSION,
            client_version: env!("CARGO_PKG_VERSION"),
            address: job.address.to_string(),
            subsystem: job.subsystem.as_str().to_owned(),
            namespace: job.namespace.0,
            model: setting.model.clone(),
            firmware: setting.firmware.clone(),
            namespace_bytes: setting.namespace_bytes,
            logical_block_bytes: setting.logical_block_bytes,
            span_bytes: setting.units * u64::from(load.block_bytes),
            in_capsule_bytes: setting.in_capsule_bytes,
            workload: load.workload.name(),
            read_percent: load.workload.read_percent(),
            pattern: load.pattern.to_string(),
            block_bytes: load.block_bytes,
            write_payload: load.write_payload().map(Payload::name),
            queue_depth: load.queue_depth,
            connections: load.connections,
            queues: load.queues,
            rate_iops: open.map(|(rate, _)| rate),
            arrivals: open.map(|(_, spacing)| spacing.name()),
            header_digest: job.digests.header,
            data_digest: job.digests.data,
            poll: load.poll.name(),
            core: load.core,
            backend: setting.backend.clone(),
            seed: load.seed,
            warm_up_seconds: load.warm_up.0 as f64 / 1e9,
            duration_seconds: seconds,
            commands_wanted: load.commands,
            commands,
            reads: tally.reads,
            writes: tally.writes,
            iops,
            bytes_per_second: iops * f64::from(load.block_bytes),
            latency_ns: all.summary(),
            read_latency_ns: tally.read_latencies.summary(),
            write_latency_ns: tally.write_latencies.summary(),
            errors: tally.errors,
            first_error: tally.first_error.map(|status| status.to_string()),
            backlog_max: open.map(|_| tally.backlog_max),
            commands_not_started: open.map(|_| tally.not_started),
            verify: done.verified().cloned(),
            client_cpu_seconds: measured.client_cpu.0 as f64 / 1e9,
            client_system_calls: measured.system_calls,
            commands_per_send: (gathers > 0).then(|| commands as f64 / gathers as f64),
            histogram: all.encoded(),
        }
    }

    /// Why the process is to end with 1, if it is.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        if self.errors > 0 {
            let first = self.first_error.as_deref().unwrap_or("unknown");
            return Some(format!(
                "{} commands failed, the first with: {first}",
                self.errors
            ));
        }
        let faults = self.verify.as_ref().map_or(0, Verified::faults);
        (faults > 0).then(|| format!("{faults} blocks do not hold what they should"))
    }

    /// As a table for people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut out = String::new();
        // Writing to a string does not fail.
        let _ = self.write_table(&mut out);
        out
    }

    fn write_table(&self, out: &mut String) -> std::fmt::Result {
        self.write_setting(out)?;
        writeln!(
            out,
            "\n{:>14} {:>12} {:>10} {:>12} {:>10} {:>8}",
            "IOPS", "MiB/s", "errors", "CPU us/cmd", "calls/cmd", "batch"
        )?;
        let per = |total: f64| {
            let each = total / self.commands as f64;
            if self.commands == 0 {
                "-".to_owned()
            } else {
                format!("{each:.3}")
            }
        };
        writeln!(
            out,
            "{:>14.0} {:>12.1} {:>10} {:>12} {:>10} {:>8}",
            self.iops,
            self.bytes_per_second / f64::from(1 << 20),
            self.errors,
            per(self.client_cpu_seconds * 1e6),
            per(self.client_system_calls as f64),
            self.commands_per_send
                .map_or("-".to_owned(), |batch| format!("{batch:.1}")),
        )?;
        self.write_latencies(out)?;
        if let (Some(backlog), Some(not_started)) = (self.backlog_max, self.commands_not_started) {
            writeln!(
                out,
                "\nbacklog: {backlog} commands at most, {not_started} not started by the end"
            )?;
        }
        if let Some(verified) = &self.verify {
            writeln!(
                out,
                "\nverified: {} blocks; {} lost, {} stale, {} misplaced, {} torn, {} corrupt",
                verified.blocks_checked,
                verified.lost,
                verified.stale,
                verified.misplaced,
                verified.torn,
                verified.corrupt
            )?;
            for finding in &verified.findings {
                writeln!(out, "  {finding}")?;
            }
        }
        Ok(())
    }

    fn write_setting(&self, out: &mut String) -> std::fmt::Result {
        let digests = match (self.header_digest, self.data_digest) {
            (false, false) => "no digests",
            (true, false) => "header digest",
            (false, true) => "data digest",
            (true, true) => "header and data digest",
        };
        writeln!(
            out,
            "{} {} of {}, {digests}",
            self.workload,
            self.pattern,
            show_size(self.block_bytes.into())
        )?;
        if self.workload == "mixed" {
            writeln!(out, "  {} % reads", self.read_percent)?;
        }
        writeln!(
            out,
            "  on namespace {} of {} at {} ({} {})",
            self.namespace, self.subsystem, self.address, self.model, self.firmware
        )?;
        write!(
            out,
            "  {} connections x {} queues x {} commands",
            self.connections, self.queues, self.queue_depth
        )?;
        match (self.rate_iops, self.arrivals) {
            (Some(rate), Some(arrivals)) => writeln!(out, ", open loop at {rate}/s, {arrivals}")?,
            _ => writeln!(out, ", closed loop")?,
        }
        let core = self
            .core
            .map_or(String::new(), |core| format!(" on core {core}"));
        let payload = match self.write_payload {
            Some("shared") => ", all writes from one buffer",
            _ => "",
        };
        writeln!(
            out,
            "  client: poll {}{core}, {}{payload}",
            self.poll, self.backend
        )?;
        Ok(())
    }

    fn write_latencies(&self, out: &mut String) -> std::fmt::Result {
        writeln!(
            out,
            "\n{:>14} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
            "latency us", "mean", "p50", "p90", "p99", "p99.9", "p99.99", "p99.999", "max", "count"
        )?;
        let rows = [
            ("all", &self.latency_ns),
            ("reads", &self.read_latency_ns),
            ("writes", &self.write_latency_ns),
        ];
        let classes = if self.workload == "mixed" { 3 } else { 1 };
        for (name, summary) in rows.into_iter().take(classes) {
            // Too few samples beyond it: not known.
            let micros = |nanos: Option<u64>| {
                nanos.map_or("-".to_owned(), |nanos| {
                    format!("{:.1}", nanos as f64 / 1000.0)
                })
            };
            let mean = summary
                .mean
                .map_or("-".to_owned(), |mean| format!("{:.1}", mean / 1000.0));
            writeln!(
                out,
                "{name:>14} {mean:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
                micros(summary.p50),
                micros(summary.p90),
                micros(summary.p99),
                micros(summary.p99_9),
                micros(summary.p99_99),
                micros(summary.p99_999),
                micros(summary.max),
                summary.count
            )?;
        }
        Ok(())
    }
}
