//! The emulator's control channel (QMP): one JSON object a line, each request answered by one with
//! `return` or `error`; events come in between.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// An answer that takes this long does not come.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// The one object that we make.
const CAPTURE: &str = "capture";

/// An open control channel.
pub(crate) struct Monitor {
    stream: BufReader<UnixStream>,
}

impl Monitor {
    pub(crate) fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).context("no control channel to the emulator")?;
        stream
            .set_read_timeout(Some(ANSWER_MAX))
            .context("cannot limit the wait for the emulator")?;
        let mut monitor = Self {
            stream: BufReader::new(stream),
        };
        monitor.request("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    /// Every frame of the guest's network goes to `file` from now on.
    pub(crate) fn capture_starts(&mut self, file: &Path) -> Result<()> {
        let arguments = json!({
            "qom-type": "filter-dump",
            "id": CAPTURE,
            "netdev": "net",
            "file": file,
            "maxlen": 65536,
        });
        self.request("object-add", &arguments)
    }

    /// The file is whole when this returns.
    pub(crate) fn capture_ends(&mut self) -> Result<()> {
        self.request("object-del", &json!({ "id": CAPTURE }))
    }

    /// Takes the device `id` out, and waits until the guest has let it go.
    pub(crate) fn unplug(&mut self, id: &str) -> Result<()> {
        self.send("device_del", &json!({ "id": id }))?;
        let (mut accepted, mut gone) = (false, false);
        while !(accepted && gone) {
            let line = self.receive("device_del")?;
            accepted |= line.get("return").is_some();
            gone |= line["event"] == "DEVICE_DELETED" && line["data"]["device"] == id;
        }
        Ok(())
    }

    /// Puts a device in.
    pub(crate) fn plug(&mut self, device: &Value) -> Result<()> {
        self.request("device_add", device)
    }

    fn request(&mut self, execute: &str, arguments: &Value) -> Result<()> {
        self.send(execute, arguments)?;
        // Neither the greeting nor an event has it.
        while self.receive(execute)?.get("return").is_none() {}
        Ok(())
    }

    fn send(&mut self, execute: &str, arguments: &Value) -> Result<()> {
        let line = json!({ "execute": execute, "arguments": arguments }).to_string();
        writeln!(self.stream.get_mut(), "{line}").context("cannot ask the emulator")
    }

    /// The next line, which is not a refusal of `execute`.
    fn receive(&mut self, execute: &str) -> Result<Value> {
        let mut line = String::new();
        let count = self.stream.read_line(&mut line);
        let count = count.with_context(|| format!("no answer to {execute} from the emulator"))?;
        if count == 0 {
            bail!("the emulator has closed its control channel");
        }
        let line: Value = serde_json::from_str(&line).context("the emulator's answer")?;
        if let Some(error) = line.get("error") {
            bail!("the emulator refuses {execute}: {error}");
        }
        Ok(line)
    }
}
