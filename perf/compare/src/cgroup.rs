//! Holding a target to half a core, with control groups of version 2 or 1.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Half of every 10 ms: short enough that a slice of half a second has fifty of them.
const PERIOD_US: u32 = 10_000;
const QUOTA_US: u32 = 5_000;
/// Share of a core that a group leaves its members.
pub(crate) const HALF_CORE: f64 = 0.5;

const ROOT: &str = "/sys/fs/cgroup";
const PREFIX: &str = "bowline-compare-";

/// A group that holds its members to half a core; removed when dropped, after its members ended.
#[derive(Debug)]
pub(crate) struct HalfCore {
    path: PathBuf,
}

impl HalfCore {
    /// Makes a group for one target.
    ///
    /// # Errors
    /// This machine does not let us; the error says what was refused.
    pub(crate) fn new(name: &str) -> Result<Self> {
        let label = format!("{PREFIX}{}-{name}", std::process::id());
        let root = Path::new(ROOT);
        if root.join("cgroup.controllers").exists() {
            // Enabled already where systemd runs; otherwise the kernel says why not.
            let _ = fs::write(root.join("cgroup.subtree_control"), "+cpu");
            return Self::make(
                root.join(label),
                &[("cpu.max", format!("{QUOTA_US} {PERIOD_US}"))],
            );
        }
        let Some(root) = version_1_root(root) else {
            bail!("no control group hierarchy with a cpu controller under {ROOT}");
        };
        Self::make(
            root.join(label),
            &[
                ("cpu.cfs_period_us", PERIOD_US.to_string()),
                ("cpu.cfs_quota_us", QUOTA_US.to_string()),
            ],
        )
    }

    fn make(path: PathBuf, settings: &[(&str, String)]) -> Result<Self> {
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let group = Self { path };
        for (file, value) in settings {
            let file = group.path.join(file);
            fs::write(&file, value)
                .with_context(|| format!("cannot write {value} to {}", file.display()))?;
        }
        Ok(group)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for HalfCore {
    fn drop(&mut self) {
        // Empty by now; one that is not is swept by a later run.
        let _ = fs::remove_dir(&self.path);
    }
}

fn version_1_root(root: &Path) -> Option<PathBuf> {
    let candidates = [root.join("cpu"), root.join("cpu,cpuacct")];
    candidates
        .into_iter()
        .find(|path| path.join("cpu.cfs_quota_us").exists() || path.join("cgroup.procs").exists())
}

/// Removes the groups of runs that were killed. A group with members cannot be removed, so this
/// disturbs nobody.
pub(crate) fn sweep() {
    let root = Path::new(ROOT);
    let folder = version_1_root(root).unwrap_or_else(|| root.to_owned());
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else {
            continue;
        };
        let owner = rest.split('-').next().unwrap_or_default();
        if !Path::new("/proc").join(owner).exists() {
            let _ = fs::remove_dir(entry.path());
        }
    }
}
