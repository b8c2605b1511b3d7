//! End-to-end: a real Linux host in a virtual machine uses the real executable as its disk.

mod capture;
mod cpio;
mod dataplane;
mod drive;
mod guest;
mod image;
mod kernel;
mod kernel_log;
mod monitor;
mod replay;
mod scenario;
mod write_log;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::ValueEnum;

use self::drive::Access;
use self::scenario::Run;
use self::scenario::machine::Disk;
use crate::tally::{Tally, seconds};
use crate::workspace::{self, Workspace};
use crate::{debian, process, spdk};

/// The longest that one kernel may take: an end for what hangs, not a measure of speed.
const KERNEL_RUN_MAX: Duration = Duration::from_secs(1800);

/// What the emulator and the guest's files come from.
const PACKAGES: &[&str] = &[
    "e2fsprogs",
    "fio",
    "iproute2",
    "jq",
    "kmod",
    "nvme-cli",
    "qemu-system-x86",
    "tshark",
    "xz-utils",
];

/// A kernel series that Debian 12 offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Release {
    /// The stable release's own.
    #[value(name = "6.1")]
    V6_1,
    /// The newer one from the security suite.
    #[value(name = "6.12")]
    V6_12,
}

const RELEASES: [Release; 2] = [Release::V6_1, Release::V6_12];

impl Release {
    fn name(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
        }
    }

    /// How a program in the guest gets at a drive: each way on one kernel.
    fn access(self) -> Access {
        match self {
            Self::V6_1 => Access::Uio,
            Self::V6_12 => Access::Vfio,
        }
    }
}

/// Under which names a check is counted, one for each kernel.
pub(crate) fn names_of(claim: &str) -> impl Iterator<Item = String> {
    RELEASES
        .iter()
        .map(move |release| format!("{}: {claim}", run_name(*release)))
}

fn run_name(release: Release) -> String {
    format!("e2e kernel {}", release.name())
}

/// Runs the scenario on the named kernel, or on all of them; false if this machine cannot.
pub(crate) fn kernel(
    workspace: &Workspace,
    tally: &mut Tally,
    only: Option<Release>,
    keep: bool,
) -> bool {
    let name = "e2e kernel";
    if let Err(why) = prepare() {
        tally.unavailable(name, &why);
        return false;
    }
    match build(workspace, &[]) {
        Ok(executables) => {
            for release in releases(only) {
                one(&run_name(release), release, keep, tally, |run, tally| {
                    scenario::machine::run(run, &executables, Disk::File, tally)
                });
            }
        }
        Err(error) => tally.failed("e2e kernel: build", &format!("{error:#}")),
    }
    true
}

/// Runs what needs SPDK, where it is installed: on each kernel a data plane in the guest with a drive
/// of its own, then on one a data plane on this machine over memory of SPDK.
pub(crate) fn spdk(workspace: &Workspace, tally: &mut Tally, only: Option<Release>, keep: bool) {
    let name = "e2e spdk";
    if !spdk::is_installed() {
        return tally.skipped(name, &spdk::NOT_INSTALLED);
    }
    if let Err(why) = prepare().and_then(|()| spdk::libclang()) {
        return tally.unavailable(name, &why);
    }
    let executables = match build(workspace, &["--features", "bowline/spdk"]) {
        Ok(executables) => executables,
        Err(error) => return tally.failed("e2e spdk: build", &format!("{error:#}")),
    };
    for release in releases(only) {
        let name = format!("e2e spdk drive {}", release.name());
        one(&name, release, keep, tally, |run, tally| {
            scenario::drive::run(run, &executables, release.access(), tally)
        });
    }
    let release = only.unwrap_or(Release::V6_12);
    let name = format!("e2e spdk memory {}", release.name());
    one(&name, release, keep, tally, |run, tally| {
        scenario::machine::run(run, &executables, Disk::SpdkMemory, tally)
    });
}

/// Runs the power cuts: on one kernel, as they look at what reaches a drive.
pub(crate) fn power(workspace: &Workspace, tally: &mut Tally, only: Option<Release>, keep: bool) {
    if let Err(why) = prepare() {
        return tally.unavailable("e2e power", &why);
    }
    let executables = match build(workspace, &[]) {
        Ok(executables) => executables,
        Err(error) => return tally.failed("e2e power: build", &format!("{error:#}")),
    };
    let release = only.unwrap_or(Release::V6_12);
    let name = format!("e2e power {}", release.name());
    one(&name, release, keep, tally, |run, tally| {
        scenario::power::run(run, &executables, tally)
    });
}

/// Why this machine cannot run a guest, if it cannot.
fn prepare() -> Result<(), String> {
    if let Some(why) = debian::unusable() {
        return Err(why);
    }
    debian::install(PACKAGES).map_err(|error| format!("{error:#}"))
}

fn releases(only: Option<Release>) -> impl Iterator<Item = Release> {
    let wanted = move |release: &Release| only.is_none_or(|only| only == *release);
    RELEASES.into_iter().filter(wanted)
}

/// One run on one kernel.
fn one(
    name: &str,
    release: Release,
    keep: bool,
    tally: &mut Tally,
    scenario: impl FnOnce(&Run<'_>, &mut Tally) -> Result<()>,
) {
    let started = Instant::now();
    let kernel = match kernel::provide(release) {
        Ok(kernel) => kernel,
        Err(error) => return tally.unavailable(name, &format!("{error:#}")),
    };
    let folder = match RunFolder::new(name, keep) {
        Ok(folder) => folder,
        Err(error) => return tally.failed(name, &format!("{error:#}")),
    };
    let run = Run {
        name,
        kernel: &kernel,
        folder: folder.path(),
        deadline: started + KERNEL_RUN_MAX,
    };
    if let Err(error) = scenario(&run, tally) {
        tally.failed(name, &format!("{error:#}"));
    }
    println!("{name}: took {}", seconds(started.elapsed()));
}

/// What is tested, and with what.
pub(crate) struct Executables {
    /// Runs on this machine, or in the guest where it has a drive.
    pub(crate) bowline: PathBuf,
    /// `bowline-perf`, which runs in the guest.
    pub(crate) perf: PathBuf,
    /// `bowline-witness`, a host that remembers.
    pub(crate) witness: PathBuf,
}

fn build(workspace: &Workspace, features: &[&str]) -> Result<Executables> {
    let packages = ["bowline", "bowline-loadgen", "bowline-witness"];
    let packages: Vec<_> = packages
        .iter()
        .flat_map(|name| ["--package", name])
        .collect();
    let arguments = [
        ["build", "--release", "--locked"].as_slice(),
        &packages,
        features,
    ]
    .concat();
    process::run(&mut workspace.cargo(&arguments))?;
    let release = workspace.target().join("release");
    Ok(Executables {
        bowline: release.join("bowline"),
        perf: release.join("bowline-perf"),
        witness: release.join("bowline-witness"),
    })
}

/// Where one run keeps its logs, images and backing files; removed at the end unless kept.
enum RunFolder {
    Temporary(tempfile::TempDir),
    Kept(PathBuf),
}

impl RunFolder {
    fn new(name: &str, keep: bool) -> Result<Self> {
        // Next to the caches: the backing files want a file system that knows O_DIRECT, which a
        // machine's temporary folder often does not.
        let base = workspace::cache()?.join("runs");
        std::fs::create_dir_all(&base).context("cannot make the folder for runs")?;
        let prefix = format!("{}-", name.replace(' ', "-"));
        let folder = tempfile::Builder::new()
            .prefix(&prefix)
            .tempdir_in(base)
            .context("cannot make a folder for this run")?;
        if !keep {
            return Ok(Self::Temporary(folder));
        }
        let path = folder.keep();
        println!("{name}: keeps its files in {}", path.display());
        Ok(Self::Kept(path))
    }

    fn path(&self) -> &Path {
        match self {
            Self::Temporary(folder) => folder.path(),
            Self::Kept(path) => path,
        }
    }
}
