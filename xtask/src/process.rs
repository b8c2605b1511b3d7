//! Running other programs: quietly for their answer, or with their output passed through.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;

use anyhow::{Context, Result, bail};

/// Runs to the end and gives its standard output; a failure carries its standard error.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{} failed ({}): {}",
            line(command),
            output.status,
            stderr.trim()
        );
    }
    String::from_utf8(output.stdout).context("output is not text")
}

/// Runs to the end with all output passed through.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    println!("$ {}", line(command));
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    if !status.success() {
        bail!("{} failed ({status})", line(command));
    }
    Ok(())
}

/// Runs to the end, passing every line through and showing it to `each`; true if it succeeded.
pub(crate) fn stream(command: &mut Command, mut each: impl FnMut(&str)) -> Result<bool> {
    println!("$ {}", line(command));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    // Both streams meet in one bounded channel, so that lines stay whole and nothing piles up.
    let (sender, lines) = mpsc::sync_channel(64);
    let stdout = child.stdout.take().context("no standard output")?;
    let stderr = child.stderr.take().context("no standard error")?;
    let readers = [
        forward(Box::new(stdout), sender.clone(), false),
        forward(Box::new(stderr), sender, true),
    ];
    for (text, is_error) in lines {
        if is_error {
            eprintln!("{text}");
        } else {
            println!("{text}");
        }
        each(&text);
    }
    for reader in readers {
        // A reader only ends early when the channel is gone, which is after this loop.
        let _ = reader.join();
    }
    std::io::stdout().flush().context("standard output")?;
    Ok(child.wait().context("cannot wait for the child")?.success())
}

fn forward(
    source: Box<dyn Read + Send>,
    lines: mpsc::SyncSender<(String, bool)>,
    is_error: bool,
) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let mut source = BufReader::new(source);
        let mut raw = Vec::new();
        while source
            .read_until(b'\n', &mut raw)
            .is_ok_and(|count| count > 0)
        {
            let text = String::from_utf8_lossy(&raw)
                .trim_end_matches(['\n', '\r'])
                .to_owned();
            if lines.send((text, is_error)).is_err() {
                return;
            }
            raw.clear();
        }
    })
}

/// Where a program is, searching `PATH` and the administrator's folders.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let folders = path
        .split(':')
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"]);
    folders
        .map(|folder| PathBuf::from(folder).join(name))
        .find(|program| program.is_file())
}

fn line(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}
