//! The job files: which there are, what they are for, whether they write, and what fio is given.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::error::PerfError;

/// Includes within includes; more is a circle.
const INCLUDES_DEEP_MAX: u32 = 8;
/// Line in the head of a file that is too long or too thorough to run without being asked for.
const ONLY_WHEN_NAMED: &str = "Only when named.";

macro_rules! embedded {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../../fio/", $name, ".fio")))),*]
    };
}

/// The files of `perf/fio`, in the order in which they run.
const EMBEDDED: &[(&str, &str)] = embedded![
    "common",
    "latency-read",
    "iops-read",
    "iops-read-max",
    "bandwidth-read",
    "open-loop",
    "precondition",
    "latency-write",
    "in-capsule",
    "sync-write",
    "iops-write",
    "iops-write-max",
    "bandwidth-write",
    "mixed",
    "oltp",
    "verify",
];

/// One job file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Job {
    /// Name of the file without `.fio`.
    pub(super) name: String,
    /// The first two lines of its comment.
    pub(super) purpose: String,
    /// It has a section that writes or deallocates.
    pub(super) writes: bool,
    pub(super) only_when_named: bool,
    /// The text with what it includes.
    text: String,
}

/// What replaces the settings in `[global]`; a section's own stand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Overrides {
    pub(super) runtime_ms: Option<u64>,
    pub(super) size_bytes: Option<u64>,
    /// Only for jobs that have a rate.
    pub(super) rate_iops: Option<u64>,
    pub(super) engine: Option<String>,
}

/// The jobs of this executable.
pub(super) fn embedded() -> Result<Vec<Job>, PerfError> {
    let files = EMBEDDED
        .iter()
        .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
    jobs(&files.collect::<Vec<_>>())
}

/// The jobs of a folder, by name.
pub(super) fn of_folder(folder: &Path) -> Result<Vec<Job>, PerfError> {
    let unreadable = |error: std::io::Error| {
        PerfError::usage(format!("no jobs in {}", folder.display())).cause(error)
    };
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_some_and(|extension| extension == "fio")
            && let Some(name) = path.file_stem().and_then(|name| name.to_str())
        {
            let text = fs::read_to_string(&path).map_err(unreadable)?;
            files.insert(name.to_owned(), text);
        }
    }
    let jobs = jobs(&files.into_iter().collect::<Vec<_>>())?;
    if jobs.is_empty() {
        return Err(PerfError::usage(format!("no jobs in {}", folder.display()))
            .cause("no file NAME.fio has a section besides [global]"));
    }
    Ok(jobs)
}

/// Those of `files` that are jobs; the others are there to be included.
fn jobs(files: &[(String, String)]) -> Result<Vec<Job>, PerfError> {
    let mut jobs = Vec::new();
    for (name, text) in files {
        let text = with_includes(name, text, files, INCLUDES_DEEP_MAX)?;
        let sections = sections(&text);
        if sections.iter().any(|section| !section.is_global) {
            let head: Vec<&str> = text.lines().map_while(comment).collect();
            jobs.push(Job {
                name: name.clone(),
                purpose: head.iter().take(2).copied().collect::<Vec<_>>().join(" "),
                writes: writes(&sections),
                only_when_named: head.contains(&ONLY_WHEN_NAMED),
                text,
            });
        }
    }
    Ok(jobs)
}

/// The text with every `include FILE` replaced by that file, so that fio needs no file at all.
fn with_includes(
    name: &str,
    text: &str,
    files: &[(String, String)],
    deep: u32,
) -> Result<String, PerfError> {
    let mut out = String::with_capacity(text.len());
    for line in text.lines() {
        let Some(wanted) = included(line) else {
            out.push_str(line);
            out.push('\n');
            continue;
        };
        let found = files
            .iter()
            .find(|(name, _)| wanted.strip_suffix(".fio") == Some(name.as_str()));
        let refused = |cause: &str| {
            PerfError::usage(format!("{name}.fio cannot include {wanted}")).cause(cause)
        };
        let (name, text) = found.ok_or_else(|| refused("no such file among the jobs"))?;
        let deep = deep
            .checked_sub(1)
            .ok_or_else(|| refused("files include each other"))?;
        out.push_str(&with_includes(name, text, files, deep)?);
    }
    Ok(out)
}

fn included(line: &str) -> Option<&str> {
    let rest = line.trim().strip_prefix("include")?;
    rest.starts_with(char::is_whitespace).then(|| rest.trim())
}

fn comment(line: &str) -> Option<&str> {
    let text = line.strip_prefix(['#', ';'])?;
    Some(text.trim())
}

struct Section<'a> {
    is_global: bool,
    /// Number of its header's line.
    line: usize,
    options: BTreeMap<&'a str, &'a str>,
}

fn sections(text: &str) -> Vec<Section<'_>> {
    let mut sections: Vec<Section<'_>> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.split(['#', ';']).next().unwrap_or_default().trim();
        if let Some(name) = line.strip_prefix('[') {
            let name = name.split(']').next().unwrap_or_default();
            sections.push(Section {
                is_global: name.eq_ignore_ascii_case("global"),
                line: number,
                options: BTreeMap::new(),
            });
        } else if let Some(section) = sections.last_mut() {
            let (key, value) = line.split_once('=').unwrap_or((line, ""));
            section.options.insert(key.trim(), value.trim());
        }
    }
    sections
}

/// Whether a job writes, by the kind of I/O that each section asks for itself or has from [global].
/// What is not known to read is taken to write. fio is told as well, so this decides no more than
/// what is said beforehand.
fn writes(sections: &[Section<'_>]) -> bool {
    let mut inherited = "read";
    sections.iter().any(|section| {
        let own = section.options.get("rw");
        let kind = own.or_else(|| section.options.get("readwrite"));
        let kind = kind.copied().unwrap_or(inherited);
        if section.is_global {
            inherited = kind;
            return false;
        }
        let kind = kind.split(':').next().unwrap_or(kind);
        !matches!(kind, "read" | "randread")
    })
}

impl Job {
    /// What fio reads: the file with its includes, and the overrides behind its [global].
    pub(super) fn script(&self, overrides: &Overrides) -> String {
        let sections = sections(&self.text);
        let first = sections.iter().find(|section| !section.is_global);
        let at = first.map_or(0, |section| section.line);
        let has_rate = sections
            .iter()
            .any(|section| section.is_global && section.options.contains_key("rate_iops"));
        let lines: Vec<&str> = self.text.lines().collect();
        let (head, tail) = lines.split_at(at);
        let mut script: Vec<String> = head.iter().map(|line| (*line).to_owned()).collect();
        script.push("[global]".to_owned());
        script.extend(overrides.lines(has_rate));
        script.extend(tail.iter().map(|line| (*line).to_owned()));
        script.join("\n") + "\n"
    }
}

impl Overrides {
    fn lines(&self, has_rate: bool) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some(runtime) = self.runtime_ms {
            lines.push(format!("runtime={runtime}ms"));
            // The files have 10 s before 60 s.
            lines.push(format!("ramp_time={}ms", runtime / 6));
        }
        if let Some(size) = self.size_bytes {
            lines.push(format!("size={size}"));
        }
        if let Some(rate) = self.rate_iops.filter(|_| has_rate) {
            lines.push(format!("rate_iops={rate}"));
        }
        if let Some(engine) = &self.engine {
            lines.push(format!("ioengine={engine}"));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(text: &str) -> Job {
        let files = [
            ("shared".to_owned(), "direct=1\nrw=randread\n".to_owned()),
            ("a".to_owned(), text.to_owned()),
        ];
        let mut jobs = jobs(&files).unwrap();
        assert_eq!(jobs.len(), 1, "shared.fio is no job");
        jobs.remove(0)
    }

    #[test]
    fn every_embedded_job_says_what_it_is_for_and_how_to_read_its_result() {
        let jobs = embedded().unwrap();
        assert_eq!(jobs.len(), EMBEDDED.len() - 1);
        for job in &jobs {
            assert!(job.purpose.len() > 80, "{}: {}", job.name, job.purpose);
            assert!(!job.purpose.contains("Result:"), "{}", job.name);
            let lines: Vec<&str> = job.text.lines().map_while(comment).collect();
            assert!(lines[2].starts_with("Result: "), "{}", job.name);
        }
    }

    #[test]
    fn every_file_of_the_folder_is_embedded() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fio");
        let mut embedded = embedded().unwrap();
        embedded.sort_by(|a, b| a.name.cmp(&b.name));
        assert_eq!(of_folder(&folder).unwrap(), embedded);
    }

    #[test]
    fn jobs_that_write_are_told_from_jobs_that_read() {
        let of = |writes: bool| {
            let jobs = embedded().unwrap();
            let jobs = jobs.into_iter().filter(move |job| job.writes == writes);
            jobs.map(|job| job.name).collect::<Vec<_>>()
        };
        assert_eq!(
            of(false),
            [
                "latency-read",
                "iops-read",
                "iops-read-max",
                "bandwidth-read",
                "open-loop"
            ]
        );
        assert_eq!(of(true).len(), 10);
        for (text, writes) in [
            ("[a]\nbs=4k\n", false),
            ("[a]\nrw=randread:8 ; eight\n", false),
            ("[global]\ninclude shared.fio\n[a]\n", false),
            ("[global]\ninclude shared.fio\n[a]\nrw=write\n", true),
            ("[Global]\nreadwrite=randrw\n[a]\n", true),
            ("[global]\nrw=write\n[global]\nrw=read\n[a]\n", false),
            ("[a]\nrw=read\n[b]\nrw=randtrim\n", true),
            ("[a]\nrw=something\n", true),
        ] {
            assert_eq!(job(text).writes, writes, "{text}");
        }
    }

    #[test]
    fn only_the_precondition_waits_to_be_named() {
        let jobs = embedded().unwrap();
        let waiting = jobs.iter().filter(|job| job.only_when_named);
        assert_eq!(
            waiting.map(|job| job.name.as_str()).collect::<Vec<_>>(),
            ["precondition"]
        );
    }

    #[test]
    fn overrides_stand_between_the_globals_and_the_sections() {
        let job = job("# x\n[global]\ninclude shared.fio\n[a]\nruntime=0\n[b]\nrw=read\n");
        let overrides = Overrides {
            runtime_ms: Some(3000),
            size_bytes: Some(4096),
            rate_iops: Some(5),
            engine: Some("libaio".to_owned()),
        };
        assert_eq!(
            job.script(&overrides),
            "# x\n[global]\ndirect=1\nrw=randread\n[global]\nruntime=3000ms\nramp_time=500ms\n\
             size=4096\nioengine=libaio\n[a]\nruntime=0\n[b]\nrw=read\n"
        );
    }

    #[test]
    fn rate_is_only_for_jobs_that_have_one() {
        let overrides = Overrides {
            rate_iops: Some(5),
            ..Overrides::default()
        };
        let with = job("[global]\nrate_iops=10\n[a]\n").script(&overrides);
        assert_eq!(with, "[global]\nrate_iops=10\n[global]\nrate_iops=5\n[a]\n");
        assert!(!job("[a]\n").script(&overrides).contains("rate_iops"));
    }

    #[test]
    fn includes_that_are_missing_or_circular_are_refused() {
        let refused = |text: &str| {
            let files = [("a".to_owned(), text.to_owned())];
            jobs(&files).unwrap_err().to_string()
        };
        assert!(refused("[global]\ninclude b.fio\n[a]\n").contains("include b.fio"));
        assert!(refused("[global]\ninclude a.fio\n[a]\n").contains("each other"));
    }
}
