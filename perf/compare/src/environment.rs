//! The conditions of a run, so that a figure is never without them.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::network::Network;

/// What figures depend on besides the contenders.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Environment {
    pub(crate) kernel: String,
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) target_core: usize,
    pub(crate) client_core: usize,
    /// Scaling governor of the target's core; none in most guests.
    pub(crate) governor: Option<String>,
    /// Whether a hypervisor is underneath.
    pub(crate) virtualised: bool,
    pub(crate) memory_bytes: u64,
    pub(crate) network: Network,
    /// Build profile of bowline, as the caller says.
    pub(crate) profile: String,
    /// Revision of bowline, as the caller says.
    pub(crate) revision: Option<String>,
    /// How it was measured; older documents do not say.
    #[serde(default)]
    pub(crate) settings: Option<Settings>,
}

/// What a caller chooses that figures depend on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// bowline's --poll.
    pub(crate) poll: String,
    /// Length of a slice in milliseconds.
    pub(crate) slice_ms: u64,
    /// Slices in which others were busy were thrown away.
    pub(crate) gated: bool,
}

/// Asks the kernel; what it does not tell is named so.
pub(crate) fn describe(
    network: Network,
    target_core: usize,
    client_core: usize,
    profile: &str,
    revision: Option<&str>,
    settings: Settings,
) -> Environment {
    let kernel = rustix::system::uname();
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let governor = format!("/sys/devices/system/cpu/cpu{target_core}/cpufreq/scaling_governor");
    Environment {
        kernel: format!(
            "{} {}",
            kernel.sysname().to_string_lossy(),
            kernel.release().to_string_lossy()
        ),
        cpu: field("model name").unwrap_or_else(|| "unknown".to_owned()),
        cores: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        target_core,
        client_core,
        governor: first_line(Path::new(&governor)),
        virtualised: field("flags").is_some_and(|flags| flags.contains("hypervisor")),
        memory_bytes: memory_bytes().unwrap_or(0),
        network,
        profile: profile.to_owned(),
        revision: revision.map(str::to_owned),
        settings: Some(settings),
    }
}

fn first_line(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().next().map(str::to_owned)
}

fn memory_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

/// Huge pages that nobody uses.
pub(crate) fn free_huge_pages_bytes() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    let free = field("HugePages_Free:").unwrap_or(0);
    let kib = field("Hugepagesize:").unwrap_or(0);
    free.saturating_mul(kib).saturating_mul(1024)
}
