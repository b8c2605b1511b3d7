//! The programs that load a target, and what they say of it.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cell::{Cell, KIB, Pattern, Workload};
use crate::summary;
use crate::target::{Contender, Target};

/// The subsystem that every target serves, but for pools.
pub(crate) const SUBSYSTEM: &str = "nqn.2026-11.io.bowline:compare";

/// Loads a target for one slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Client {
    /// `bowline-perf`.
    Bowline(PathBuf),
    /// `spdk_nvme_perf`.
    Spdk(PathBuf),
    /// Our own counterpart of the bare sockets.
    Bare,
}

/// What one slice asks of a client.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Demand {
    pub(crate) workload: Workload,
    pub(crate) block_bytes: u32,
    pub(crate) queue_depth: u32,
    pub(crate) digests: bool,
    pub(crate) pattern: Pattern,
    /// So many commands, however long they take, instead of the time.
    pub(crate) commands: Option<u64>,
    /// Decides where it begins and what comes next.
    pub(crate) seed: u64,
    /// Open loop at this many commands a second, else closed loop.
    pub(crate) rate: Option<u32>,
    pub(crate) warm_up: Duration,
    pub(crate) duration: Duration,
    pub(crate) address: SocketAddr,
    pub(crate) subsystem: &'static str,
    pub(crate) core: usize,
}

impl Demand {
    pub(crate) fn of(cell: &Cell, target: &Target, core: usize) -> Self {
        Self {
            workload: cell.workload,
            block_bytes: cell.block_bytes,
            queue_depth: cell.queue_depth,
            digests: cell.digests,
            pattern: cell.pattern(),
            commands: None,
            seed: 1,
            rate: None,
            warm_up: Duration::ZERO,
            duration: Duration::ZERO,
            address: target.address,
            subsystem: target.contender.subsystem(),
            core,
        }
    }
}

/// What a client saw.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) iops: f64,
    pub(crate) bytes_per_second: f64,
    pub(crate) latency_ns: Latency,
    /// Commands measured, where the client counts them.
    pub(crate) commands: Option<u64>,
    /// base64 of an `HdrHistogram` in its second format, where the client makes one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) histogram: Option<String>,
}

impl Report {
    /// How long what was measured took, where the client counts commands.
    pub(crate) fn duration(&self) -> Option<Duration> {
        Duration::try_from_secs_f64(self.commands? as f64 / self.iops).ok()
    }
}

/// Percentiles of a slice; those that the client does not tell are absent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p99: Option<f64>,
    pub(crate) p99_9: Option<f64>,
}

impl Client {
    /// Who loads this contender when this client is asked for: bare sockets have their own.
    pub(crate) fn facing(&self, contender: Contender) -> &Self {
        match contender {
            Contender::Bare | Contender::BareSleeping => &Self::Bare,
            Contender::Bowline(_)
            | Contender::Twin(_)
            | Contender::Polling(_)
            | Contender::Spdk(_) => self,
        }
    }

    /// Whether it knows the commands and places of a cell.
    pub(crate) fn knows(&self, cell: &Cell) -> bool {
        matches!(self, Self::Bowline(_)) || cell.pattern() == Pattern::Random
    }

    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Bowline(_) => "bowline-perf",
            Self::Spdk(_) => "spdk_nvme_perf",
            Self::Bare => "bare",
        }
    }

    pub(crate) fn program(&self) -> Result<PathBuf> {
        match self {
            Self::Bowline(path) | Self::Spdk(path) => Ok(path.clone()),
            Self::Bare => std::env::current_exe().context("own executable"),
        }
    }

    /// How long a slice really is: one client counts in whole seconds.
    pub(crate) const fn slice(&self, asked: Duration) -> Duration {
        match self {
            Self::Spdk(_) => Duration::from_secs(if asked.as_secs() == 0 {
                1
            } else {
                asked.as_secs()
            }),
            Self::Bowline(_) | Self::Bare => asked,
        }
    }

    pub(crate) fn arguments(&self, demand: &Demand) -> Vec<OsString> {
        let words = match self {
            Self::Bowline(_) => bowline_arguments(demand),
            Self::Spdk(_) => spdk_arguments(demand),
            Self::Bare => bare_arguments(demand),
        };
        words.into_iter().map(OsString::from).collect()
    }

    pub(crate) fn parse(&self, output: &str) -> Result<Report> {
        match self {
            Self::Bowline(_) | Self::Bare => parse_json(output),
            Self::Spdk(_) => parse_spdk(output),
        }
    }
}

fn milliseconds(duration: Duration) -> String {
    format!("{}ms", duration.as_millis())
}

fn bowline_arguments(demand: &Demand) -> Vec<String> {
    let pattern = match demand.pattern {
        Pattern::Sequential => "sequential".to_owned(),
        Pattern::Random => "random".to_owned(),
        Pattern::Every(blocks) => format!("every:{blocks}"),
    };
    let mut words = vec![
        "run".to_owned(),
        format!("--address={}", demand.address),
        format!("--subsystem={}", demand.subsystem),
        format!("--workload={}", demand.workload.word()),
        format!("--pattern={pattern}"),
        format!("--block-size={}KiB", demand.block_bytes / KIB),
        format!("--queue-depth={}", demand.queue_depth),
        format!("--warm-up={}", milliseconds(demand.warm_up)),
        match demand.commands {
            Some(count) => format!("--commands={count}"),
            None => format!("--duration={}", milliseconds(demand.duration)),
        },
        format!("--seed={}", demand.seed),
        format!("--core={}", demand.core),
        "--poll=spin".to_owned(),
        "--output=json".to_owned(),
    ];
    if demand.digests {
        words.extend(["--header-digest".to_owned(), "--data-digest".to_owned()]);
    }
    if let Some(rate) = demand.rate {
        words.push(format!("--rate={rate}"));
    }
    words
}

fn spdk_arguments(demand: &Demand) -> Vec<String> {
    // It is not asked for what it does not know.
    let is_sequential = demand.pattern == Pattern::Sequential;
    let workload = match (demand.workload, is_sequential) {
        (Workload::Read, true) => "read",
        (Workload::Read, false) => "randread",
        (_, true) => "write",
        (_, false) => "randwrite",
    };
    let transport = format!(
        "trtype:TCP adrfam:IPv4 traddr:{} trsvcid:{} subnqn:{}",
        demand.address.ip(),
        demand.address.port(),
        demand.subsystem
    );
    let mut words: Vec<String> = ["-w", workload, "-L", "--no-huge", "-s", "512", "-r"]
        .map(str::to_owned)
        .to_vec();
    words.push(transport);
    for (flag, value) in [
        ("-q", u64::from(demand.queue_depth)),
        ("-o", u64::from(demand.block_bytes)),
        ("-t", demand.duration.as_secs()),
    ] {
        words.extend([flag.to_owned(), value.to_string()]);
    }
    words.extend(["-c".to_owned(), format!("[{}]", demand.core)]);
    if demand.digests {
        words.extend(["-H".to_owned(), "-I".to_owned()]);
    }
    words
}

fn bare_arguments(demand: &Demand) -> Vec<String> {
    let mut words = vec![
        "bare-client".to_owned(),
        format!("--address={}", demand.address),
        format!("--workload={}", demand.workload.word()),
        format!("--block-bytes={}", demand.block_bytes),
        format!("--queue-depth={}", demand.queue_depth),
        format!("--warm-up-ms={}", demand.warm_up.as_millis()),
        format!("--duration-ms={}", demand.duration.as_millis()),
    ];
    if demand.digests {
        words.push("--digests".to_owned());
    }
    if let Some(rate) = demand.rate {
        words.push(format!("--rate={rate}"));
    }
    words
}

fn parse_json(output: &str) -> Result<Report> {
    let value: Value = serde_json::from_str(output).context("the client's answer is not JSON")?;
    let version = value["schema_version"].as_u64();
    if version != Some(1) {
        bail!("the client's answer has schema version {version:?}, not 1");
    }
    let errors = value["errors"].as_u64().context("no `errors`")?;
    if errors > 0 {
        bail!("the client saw {errors} errors");
    }
    let number = |name: &str| {
        value[name]
            .as_f64()
            .with_context(|| format!("no number `{name}`"))
    };
    let latency = &value["latency_ns"];
    let histogram = value["histogram"].as_str();
    Ok(Report {
        iops: number("iops")?,
        bytes_per_second: number("bytes_per_second")?,
        latency_ns: Latency {
            p50: match (latency["p50"].as_f64(), histogram) {
                (Some(p50), _) => p50,
                // Of a few samples the client tells no median; a median of medians may have it.
                (None, Some(text)) => summary::median_of(text)?,
                (None, None) => bail!("no `latency_ns.p50`"),
            },
            p99: latency["p99"].as_f64(),
            p99_9: latency["p99_9"].as_f64(),
        },
        commands: value["commands"].as_u64(),
        histogram: histogram.map(str::to_owned),
    })
}

/// The line of totals, and the percentiles of the only device.
fn parse_spdk(output: &str) -> Result<Report> {
    let totals = output
        .lines()
        .find_map(|line| line.trim_start().strip_prefix("Total"))
        .context("no line of totals")?;
    let mut numbers = totals
        .split_whitespace()
        .filter_map(|word| word.parse::<f64>().ok());
    let iops = numbers.next().context("no IOPS in the totals")?;
    let mib = numbers.next().context("no MiB/s in the totals")?;
    let percentile = |name: &str| {
        let line = output
            .lines()
            .find_map(|line| line.trim_start().strip_prefix(name))?;
        let micros = line.split(':').nth(1)?.trim().strip_suffix("us")?;
        micros.parse::<f64>().ok().map(|micros| micros * 1e3)
    };
    Ok(Report {
        iops,
        bytes_per_second: mib * f64::from(1_u32 << 20),
        latency_ns: Latency {
            p50: percentile("50.00000%").context("no median latency")?,
            p99: percentile("99.00000%"),
            p99_9: percentile("99.90000%"),
        },
        commands: None,
        histogram: None,
    })
}

/// Where a client is: told, or found on `PATH`.
pub(crate) fn find(told: Option<&Path>, name: &str) -> Result<PathBuf, String> {
    if let Some(path) = told {
        return if path.is_file() {
            Ok(path.to_owned())
        } else {
            Err(format!("{} is not there", path.display()))
        };
    }
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .ok_or_else(|| format!("no {name} on PATH"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPDK: &str = "Initializing NVMe Controllers\n\
        Device Information       :       IOPS      MiB/s    Average        min        max\n\
        TCP (addr:127.0.0.1) NSID 1 from core  1:    4458.65      17.42     224.26      20.08   26350.44\n\
        ====\n\
        Total                    :    4458.65      17.42     224.26      20.08   26350.44\n\n\
        Summary latency data for TCP (addr:127.0.0.1) from core 1:\n\
        ====\n\
          1.00000% :    21.071us\n 50.00000% :    22.745us\n 99.00000% : 10132.874us\n\
         99.90000% : 22282.240us\n 99.99000% : 26416.049us\n";

    #[test]
    fn totals_and_percentiles_are_read() {
        let report = parse_spdk(SPDK).unwrap();
        assert!((report.iops - 4458.65).abs() < 1e-9);
        assert!((report.bytes_per_second - 17.42 * 1_048_576.0).abs() < 1.0);
        assert!((report.latency_ns.p50 - 22_745.0).abs() < 1e-6);
        assert!((report.latency_ns.p99.unwrap() - 10_132_874.0).abs() < 1e-3);
        assert!(parse_spdk("nothing").is_err());
        assert!(parse_spdk(&SPDK.replace("50.00000%", "49.00000%")).is_err());
    }

    #[test]
    fn own_json_is_read_and_errors_are_refused() {
        let text = r#"{"schema_version":1,"iops":10.5,"bytes_per_second":43008,"errors":0,
            "commands":21,"latency_ns":{"p50":9000,"p99":12000,"p99_9":null},"histogram":"AA=="}"#;
        let report = parse_json(text).unwrap();
        assert_eq!(report.commands, Some(21));
        assert_eq!(report.duration(), Some(Duration::from_secs(2)));
        assert_eq!(report.latency_ns.p99, Some(12_000.0));
        assert_eq!(report.latency_ns.p99_9, None);
        assert!(parse_json(&text.replace("\"errors\":0", "\"errors\":3")).is_err());
        assert!(parse_json(&text.replace("schema_version\":1", "schema_version\":2")).is_err());
        assert!(parse_json("").is_err());
        let mut few = hdrhistogram::Histogram::<u64>::new(3).unwrap();
        few.record_n(2_000, 5).unwrap();
        let few = summary::encode(&few).unwrap();
        let text = text
            .replace("\"p50\":9000", "\"p50\":null")
            .replace("AA==", &few);
        assert!((parse_json(&text).unwrap().latency_ns.p50 - 2_000.0).abs() < 2.0);
    }

    #[test]
    fn client_of_whole_seconds_gets_whole_seconds() {
        let half = Duration::from_millis(500);
        assert_eq!(Client::Bare.slice(half), half);
        assert_eq!(
            Client::Spdk(PathBuf::new()).slice(half),
            Duration::from_secs(1)
        );
    }
}
