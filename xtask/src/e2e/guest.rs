//! One virtual machine: the kernel's log on the first serial port, a command channel on the second.
//!
//! A request is one line, `ID COMMAND`; the answer is one line, `ID STATUS STDOUT STDERR`, the last
//! two in base64. The guest runs one command at a time.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::drive::{self, Attached};
use super::kernel::Kernel;
use super::kernel_log::KernelLog;
use super::monitor::Monitor;

/// Boot takes 7 to 13 s where the emulator has a core to itself.
const BOOT_MAX: Duration = Duration::from_secs(240);
/// Longest single command; a check that needs longer is several commands. The guest's own limit is
/// shorter, so that an answer comes even from a command that hangs.
const COMMAND_MAX: Duration = Duration::from_secs(300);

/// `mitigations=off` and the like save emulated time. The watchdogs of lock-ups and stalls measure
/// the machine under the emulator; hung tasks stay watched, because those are ours: nothing of ours
/// waits for longer than a Connect that its host gives up, which is after 60 s.
const KERNEL_ARGUMENTS: &str = "console=ttyS0 panic=-1 mitigations=off nokaslr audit=0 \
    random.trust_cpu=on init_on_alloc=0 nosoftlockup rcupdate.rcu_cpu_stall_suppress=1 \
    tsc=reliable workqueue.watchdog_thresh=0 loglevel=7 sysctl.kernel.hung_task_timeout_secs=120";

/// A running guest; dropping it ends the machine.
pub(crate) struct Guest {
    machine: Child,
    requests: ChildStdin,
    answers: Receiver<String>,
    next_id: u64,
    console: PathBuf,
    emulator_log: PathBuf,
    monitor: PathBuf,
    deadline: Instant,
}

/// What a command in the guest said.
pub(crate) struct Answer {
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Guest {
    /// Boots and waits until the guest takes commands.
    pub(crate) fn boot(
        kernel: &Kernel,
        initramfs: &Path,
        drive: Attached<'_>,
        folder: &Path,
        deadline: Instant,
    ) -> Result<Self> {
        let console = folder.join("console.log");
        let emulator_log = folder.join("qemu.log");
        let said = File::create(&emulator_log).context("cannot write a log")?;
        let monitor = folder.join("monitor");
        let mut machine = emulator(kernel, initramfs, drive, &console, &monitor)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(said)
            .spawn()
            .context("cannot start the emulator")?;
        let requests = machine.stdin.take().context("no channel to the guest")?;
        let stdout = machine.stdout.take().context("no channel from the guest")?;
        let (sender, answers) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut guest = Self {
            machine,
            requests,
            answers,
            next_id: 0,
            console,
            emulator_log,
            monitor,
            deadline,
        };
        guest
            .answer("ready", BOOT_MAX)
            .context("the guest did not boot")?;
        Ok(guest)
    }

    /// Runs a shell command with the checks' functions at hand; an exit status is an answer.
    pub(crate) fn run(&mut self, command: &str) -> Result<Answer> {
        assert!(!command.contains('\n'), "a request is one line");
        self.next_id += 1;
        let id = self.next_id.to_string();
        writeln!(self.requests, "{id} {command}").context("the guest is gone")?;
        let line = self
            .answer(&id, COMMAND_MAX)
            .with_context(|| format!("guest: {command}"))?;
        let mut parts = line.split(' ').skip(1);
        let status = parts
            .next()
            .and_then(|text| text.parse().ok())
            .context("no status")?;
        let mut text = || String::from_utf8_lossy(&base64(parts.next().unwrap_or(""))).into_owned();
        Ok(Answer {
            status,
            stdout: text(),
            stderr: text(),
        })
    }

    /// Runs a shell command that must succeed; gives its standard output.
    pub(crate) fn expect(&mut self, command: &str) -> Result<String> {
        let answer = self.run(command)?;
        if answer.status != 0 {
            bail!(
                "guest: `{command}` ended with {}\n{}{}",
                answer.status,
                tail(&answer.stdout, 20),
                tail(&answer.stderr, 40)
            );
        }
        Ok(answer.stdout.trim_end().to_owned())
    }

    /// Runs a command as [`Guest::expect`] does, with all of the guest's traffic written to `file`.
    pub(crate) fn capture(&mut self, file: &Path, command: &str) -> Result<()> {
        let mut monitor = Monitor::connect(&self.monitor)?;
        monitor.capture_starts(file)?;
        let result = self.expect(command).map(drop);
        monitor.capture_ends()?;
        result
    }

    /// Pulls the drive out of the machine, and waits until the kernel has let it go.
    pub(crate) fn unplug_drive(&mut self) -> Result<()> {
        Monitor::connect(&self.monitor)?.unplug(drive::DEVICE)
    }

    /// Puts the drive in again, with what is on it, or with another serial number another one.
    pub(crate) fn plug_drive(&mut self, serial: &str) -> Result<()> {
        Monitor::connect(&self.monitor)?.plug(&drive::device(serial))
    }

    /// How many flushes have reached the drive.
    pub(crate) fn drive_flushes(&self) -> Result<usize> {
        let log = fs::read(&self.emulator_log).context("cannot read the emulator's log")?;
        let log = String::from_utf8_lossy(&log);
        Ok(log
            .lines()
            .filter(|line| line.contains(drive::FLUSH))
            .count())
    }

    /// The kernel's log so far, complete up to this call.
    pub(crate) fn kernel_log(&mut self) -> Result<KernelLog> {
        self.next_id += 1;
        let mark = format!("end of log {}", self.next_id);
        self.expect(&format!("echo '{mark}' >/dev/kmsg"))?;
        // The console may lag behind the command channel: ask something until the mark is there.
        for _ in 0..100 {
            let text = fs::read(&self.console).context("cannot read the guest's console")?;
            let text = String::from_utf8_lossy(&text).into_owned();
            if text.contains(&mark) {
                return Ok(KernelLog::new(text));
            }
            self.expect("sleep 0.1")?;
        }
        bail!("the guest's kernel log has stopped")
    }

    /// The last lines of the console after byte `from`, for people; empty when there are none.
    pub(crate) fn console_tail(&self, from: usize, lines: usize) -> String {
        let text = fs::read(&self.console).unwrap_or_default();
        tail(
            &String::from_utf8_lossy(text.get(from..).unwrap_or_default()),
            lines,
        )
    }

    /// The line that begins with `id`; lines of commands given up on are passed over.
    fn answer(&mut self, id: &str, longest: Duration) -> Result<String> {
        let until = self.deadline.min(Instant::now() + longest);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.answers.recv_timeout(left) {
                Ok(line) if line.split(' ').next() == Some(id) => return Ok(line),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => bail!("no answer in time"),
                Err(RecvTimeoutError::Disconnected) => bail!("the machine has stopped"),
            }
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Both fail only if the machine is already gone, which is what is wanted.
        let _ = self.machine.kill();
        let _ = self.machine.wait();
    }
}

fn emulator(
    kernel: &Kernel,
    initramfs: &Path,
    drive: Attached<'_>,
    console: &Path,
    monitor: &Path,
) -> Command {
    // `setpriv` ends the machine with us, however we end.
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
        .args(["-accel", "tcg,thread=multi", "-cpu", "max,la57=off"])
        .args(["-smp", "2", "-no-user-config", "-nodefaults", "-no-reboot"])
        .args(["-display", "none", "-kernel"])
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(initramfs);
    if let Attached::Drive(drive) = drive {
        drive.attach(&mut command, KERNEL_ARGUMENTS);
    } else {
        command.args(["-machine", "pc", "-m", "1024"]);
        command.args(["-append", KERNEL_ARGUMENTS]);
    }
    if let Attached::Logged(drive) = drive {
        drive.attach(&mut command);
    }
    command
        .args([
            "-netdev",
            "user,id=net",
            "-device",
            "virtio-net-pci,netdev=net,romfile=",
        ])
        .args(["-device", "virtio-rng-pci", "-serial"])
        .arg(format!("file:{}", console.display()))
        .arg("-qmp")
        .arg(format!("unix:{},server=on,wait=off", monitor.display()))
        .args([
            "-chardev",
            "stdio,id=channel,signal=off",
            "-serial",
            "chardev:channel",
        ]);
    command
}

/// The last lines of a file of text, for people; empty when there is none.
pub(crate) fn file_tail(path: &Path, lines: usize) -> String {
    tail(
        &String::from_utf8_lossy(&fs::read(path).unwrap_or_default()),
        lines,
    )
}

/// The last `count` lines of a text.
pub(crate) fn tail(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let start = lines.len().saturating_sub(count);
    let mut out = String::new();
    for line in &lines[start..] {
        out.push_str("    | ");
        out.push_str(line);
        out.push('\n');
    }
    out
}

/// Standard alphabet; anything else (padding, line ends) is skipped.
fn base64(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut held) = (0_u32, 0_u32);
    for character in text.bytes() {
        let digit = match character {
            b'A'..=b'Z' => character - b'A',
            b'a'..=b'z' => character - b'a' + 26,
            b'0'..=b'9' => character - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => continue,
        };
        bits = (bits << 6) | u32::from(digit);
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push(((bits >> held) & 0xff) as u8);
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_the_guest_is_read() {
        assert_eq!(base64("aGVsbG8K"), b"hello\n");
        assert_eq!(base64("aGk="), b"hi");
        assert_eq!(base64("//79"), [0xff, 0xfe, 0xfd]);
        assert!(base64("").is_empty());
    }

    #[test]
    fn tail_keeps_the_last_lines() {
        assert_eq!(tail("a\nb\nc\n", 2), "    | b\n    | c\n");
    }
}
