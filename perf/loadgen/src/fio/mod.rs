//! `bowline-perf fio`: the job files of `perf/fio` on a disk, and one table of what came of them.
//!
//! The files are part of the executable. fio gets them on its standard input, one process for each,
//! with `--readonly` unless writing was allowed.

mod device;
mod jobs;
mod output;
mod program;
mod report;

use std::io::Write as _;
use std::path::PathBuf;

use bowline_nvme::Nanos;
use clap::Args;

use self::device::Device;
use self::jobs::{Job, Overrides};
use self::program::Fio;
use self::report::{JobReport, Report};
use crate::cli::{OutputFlag, OutputFlags, json, print};
use crate::error::PerfError;
use crate::units::{parse_size, parse_span};

/// Run fio's usual jobs on a disk, and print one table.
///
/// Jobs that only read run on any disk. Jobs that write want --destroy, and run on no disk that is
/// mounted or otherwise in use. A drive wants `--only precondition` first, or its writes are too
/// fast. --list says what each job is for.
#[derive(Debug, Args)]
pub(crate) struct FioFlags {
    /// The disk, such as /dev/nvme1n1, or a plain file
    #[arg(long, value_name = "PATH", required_unless_present = "list")]
    device: Option<PathBuf>,
    /// Folder of job files to use instead of our own
    #[arg(long, value_name = "DIR")]
    jobs: Option<PathBuf>,
    /// Only this job; may be given several times [default: all but precondition]
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Time of each job that has an end by time, after a sixth of it that is not counted [default:
    /// what the job says: 60s]
    #[arg(long, value_name = "TIME", value_parser = parse_span)]
    runtime: Option<Nanos>,
    /// Part of the disk to use, from its start [default: all; verify: 1GiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    size: Option<u64>,
    /// Requests that arrive per second in open-loop [default: 10000]
    #[arg(long, value_name = "IOPS", value_parser = clap::value_parser!(u64).range(1..))]
    rate: Option<u64>,
    /// How fio asks the kernel, where io_uring is refused [default: io_uring]
    #[arg(long, value_name = "NAME")]
    engine: Option<String>,
    /// Let jobs write: what is on the disk is lost
    #[arg(long)]
    destroy: bool,
    /// Say which jobs there are and what they are for
    #[arg(long)]
    list: bool,
    #[command(flatten)]
    output: OutputFlags,
}

/// Which jobs run and which do not.
struct Plan {
    run: Vec<Job>,
    /// They write, and nobody allowed it.
    left_out: Vec<String>,
}

pub(crate) fn run(flags: &FioFlags) -> Result<(), PerfError> {
    let jobs = match &flags.jobs {
        Some(folder) => jobs::of_folder(folder)?,
        None => jobs::embedded()?,
    };
    match &flags.device {
        Some(path) if !flags.list => {
            let device = Device::open(path)?;
            flags.check_size(&device)?;
            run_on(flags, &device, plan(flags, jobs, &device)?)
        }
        _ => print(&list(&jobs)),
    }
}

fn run_on(flags: &FioFlags, device: &Device, plan: Plan) -> Result<(), PerfError> {
    let fio = Fio::find()?;
    // Held until the last job is done.
    let _claim = match plan.run.iter().any(|job| job.writes) {
        true => Some(device.claim()?),
        false => None,
    };
    tell_left_out(&plan.left_out, device);
    let as_table = flags.output.output == OutputFlag::Table;
    if as_table {
        let nothing = Report::new(&fio.version, device, &[], &plan.left_out);
        print(&report::heading(&nothing))?;
    }
    let mut done = Vec::new();
    for (index, job) in plan.run.iter().enumerate() {
        tell(&format!(
            "{} of {}: {}",
            index + 1,
            plan.run.len(),
            job.name
        ));
        let reports = run_job(&fio, job, flags, device)?;
        if as_table {
            // As soon as it is known: the whole may take a quarter of an hour.
            print(&reports.iter().map(JobReport::rows).collect::<String>())?;
        }
        done.extend(reports);
    }
    if !as_table {
        print(&json(&Report::new(
            &fio.version,
            device,
            &done,
            &plan.left_out,
        ))?)?;
    }
    judge(&done)
}

fn run_job(
    fio: &Fio,
    job: &Job,
    flags: &FioFlags,
    device: &Device,
) -> Result<Vec<JobReport>, PerfError> {
    let script = job.script(&flags.overrides());
    let ran = fio.run(&script, &device.fio_name(), flags.destroy)?;
    Ok(match output::parse(&ran.printed) {
        Ok(output) => JobReport::of(&job.name, &ran, &output),
        Err(_) if !ran.succeeded => vec![JobReport::failed(&job.name, &ran.said)],
        Err(error) => {
            let why = format!("fio's result is not understood: {error}");
            vec![JobReport::failed(&job.name, &why)]
        }
    })
}

/// What runs: what was named, or everything that may be run without a name.
fn plan(flags: &FioFlags, jobs: Vec<Job>, device: &Device) -> Result<Plan, PerfError> {
    let known = |name: &String| jobs.iter().any(|job| job.name == *name);
    if let Some(unknown) = flags.only.iter().find(|name| !known(name)) {
        let names: Vec<&str> = jobs.iter().map(|job| job.name.as_str()).collect();
        return Err(PerfError::usage(format!("there is no job {unknown}"))
            .hint(format!("there are {}", names.join(", "))));
    }
    let is_wanted = |job: &Job| match flags.only.as_slice() {
        [] => !job.only_when_named,
        only => only.contains(&job.name),
    };
    let wanted = jobs.into_iter().filter(is_wanted);
    let (refused, run): (Vec<Job>, Vec<Job>) = wanted.partition(|job| job.writes && !flags.destroy);
    let left_out: Vec<String> = refused.into_iter().map(|job| job.name).collect();
    if !left_out.is_empty() && (run.is_empty() || !flags.only.is_empty()) {
        return Err(PerfError::usage(format!(
            "{} would write to {}",
            left_out.join(", "),
            device.path.display()
        ))
        .cause(device.content())
        .hint("--destroy lets jobs write; what is on the disk is lost"));
    }
    Ok(Plan { run, left_out })
}

/// Failed, if a job was.
fn judge(done: &[JobReport]) -> Result<(), PerfError> {
    let failed = done.iter().filter(|report| report.errors > 0);
    let failed: Vec<&str> = failed.map(|report| report.name.as_str()).collect();
    if failed.is_empty() {
        return Ok(());
    }
    let first = done.iter().find_map(|report| report.first_error.as_deref());
    let error = PerfError::failed(format!("failed: {}", failed.join(", ")));
    Err(error.cause(first.unwrap_or("errors that the job went on after")))
}

impl FioFlags {
    fn overrides(&self) -> Overrides {
        Overrides {
            // Less than a millisecond is still some time; none would be without an end.
            runtime_ms: self.runtime.map(|runtime| (runtime.0 / 1_000_000).max(1)),
            size_bytes: self.size,
            rate_iops: self.rate,
            engine: self.engine.clone(),
        }
    }

    fn check_size(&self, device: &Device) -> Result<(), PerfError> {
        match self.size {
            Some(size) if size > device.bytes || size == 0 => Err(PerfError::usage(format!(
                "--size must be between 1 byte and the {} of {}",
                crate::units::show_size(device.bytes),
                device.path.display()
            ))),
            _ => Ok(()),
        }
    }
}

fn list(jobs: &[Job]) -> String {
    let mut out = String::new();
    for job in jobs {
        let writes = if job.writes { " (writes)" } else { "" };
        out.push_str(&format!("{}{writes}\n  {}\n", job.name, job.purpose));
    }
    out
}

fn tell_left_out(left_out: &[String], device: &Device) {
    if !left_out.is_empty() {
        tell(&format!(
            "left out, because they write: {}\n{} allows it ({})",
            left_out.join(", "),
            "--destroy",
            device.content()
        ));
    }
}

/// For a person who waits; nobody is left to tell if standard error is gone.
fn tell(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
