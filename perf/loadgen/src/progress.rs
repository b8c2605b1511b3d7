//! One line that is written over, for a person who waits.

use std::io::{IsTerminal, Write};

use bowline_nvme::Nanos;

/// Shows where a run is, on a terminal; elsewhere nothing.
#[derive(Debug)]
pub struct Progress {
    shown: bool,
    last: (Nanos, u64),
}

/// How often the line changes.
pub(crate) const INTERVAL: Nanos = Nanos::from_millis(500);

impl Progress {
    /// On standard error, if that is a terminal.
    #[must_use]
    pub fn on_terminal() -> Self {
        Self {
            shown: std::io::stderr().is_terminal(),
            last: (Nanos::ZERO, 0),
        }
    }

    /// Nothing.
    #[must_use]
    pub const fn silent() -> Self {
        Self {
            shown: false,
            last: (Nanos::ZERO, 0),
        }
    }

    /// Whether there is somebody to tell.
    pub(crate) const fn is_shown(&self) -> bool {
        self.shown
    }

    /// `completed` of all commands so far.
    pub(crate) fn tell(&mut self, phase: &str, left: Option<Nanos>, now: Nanos, completed: u64) {
        if !self.shown {
            return;
        }
        let (then, before) = std::mem::replace(&mut self.last, (now, completed));
        let seconds = now.saturating_sub(then).0 as f64 / 1e9;
        let rate = if then == Nanos::ZERO || seconds <= 0.0 {
            0.0
        } else {
            completed.saturating_sub(before) as f64 / seconds
        };
        let left = left.map_or(String::new(), |left| {
            format!(", {:.0} s left", left.0 as f64 / 1e9)
        });
        let mut stderr = std::io::stderr().lock();
        // A terminal that is gone is no reason to stop measuring.
        let _ = write!(
            stderr,
            "\r\x1b[K{phase}: {rate:.0} commands/s, {left:.0} s left"
        );
        let _ = stderr.flush();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}
