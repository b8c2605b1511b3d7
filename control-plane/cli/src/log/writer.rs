//! Writes log lines on a thread of its own. Reactors log too, and must not wait for
//! whoever reads stderr: lines that find no room are dropped, and their number is told.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};

/// How long the end of the process waits for the last lines to be taken.
const LAST_LINES_TIMEOUT: Duration = Duration::from_secs(2);

enum Message {
    Line(Vec<u8>),
    /// Everything before it is written when it is answered.
    Flush(Sender<()>),
}

/// Where a line goes in; never waits.
#[derive(Clone)]
pub(crate) struct Lossy {
    sender: Sender<Message>,
    dropped: Arc<AtomicU64>,
}

impl Write for Lossy {
    /// Takes the whole line: a logger writes each with one call.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.sender.try_send(Message::Line(line.to_vec())).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Sees to it that the last lines are written; drop it before the process ends.
pub(crate) struct Guard {
    sender: Sender<Message>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let (done, flushed) = bounded(1);
        let asked = self
            .sender
            .send_timeout(Message::Flush(done), LAST_LINES_TIMEOUT);
        if asked.is_ok() {
            // Nobody reads: the process ends all the same.
            let _written = flushed.recv_timeout(LAST_LINES_TIMEOUT);
        }
    }
}

/// Starts the thread. `lost` is told how many lines were dropped, once there is room to log it.
pub(crate) fn start(
    out: impl Write + Send + 'static,
    lines_max: usize,
    lost: impl Fn(u64) + Send + 'static,
) -> io::Result<(Lossy, Guard)> {
    let (sender, lines) = bounded(lines_max);
    let dropped = Arc::new(AtomicU64::new(0));
    let lossy = Lossy {
        sender: sender.clone(),
        dropped: Arc::clone(&dropped),
    };
    thread::Builder::new()
        .name("log".to_owned())
        .spawn(move || write_all(out, &lines, &dropped, lost))?;
    Ok((lossy, Guard { sender }))
}

fn write_all(
    mut out: impl Write,
    lines: &Receiver<Message>,
    dropped: &AtomicU64,
    lost: impl Fn(u64),
) {
    let tell = || match dropped.swap(0, Ordering::Relaxed) {
        0 => {}
        count => lost(count),
    };
    // A line that cannot be written has nowhere to complain.
    let mut write = |line: &[u8]| {
        let _unwritten = out.write_all(line);
    };
    for message in lines {
        match message {
            Message::Line(line) => {
                write(&line);
                tell();
            }
            Message::Flush(done) => {
                tell();
                for message in lines.try_iter() {
                    if let Message::Line(line) = message {
                        write(&line);
                    }
                }
                let _gave_up = done.send(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, mpsc};

    use super::*;

    /// Writes only as often as it is allowed to, and says when it wants to.
    struct Gate {
        wants: mpsc::Sender<()>,
        may: mpsc::Receiver<()>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Gate {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            let _ = self.wants.send(());
            // Open for good once the other end is gone.
            let _ = self.may.recv();
            self.written.lock().unwrap().extend_from_slice(line);
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_beyond_the_room_are_dropped_counted_and_the_last_are_flushed() {
        let (wants, wanted) = mpsc::channel();
        let (allow, may) = mpsc::channel();
        let written = Arc::new(Mutex::new(Vec::new()));
        let gate = Gate {
            wants,
            may,
            written: Arc::clone(&written),
        };
        let (count, counted) = mpsc::channel();
        let lost = move |lines| {
            let _ = count.send(lines);
        };
        let (mut lossy, guard) = start(gate, 2, lost).unwrap();
        lossy.write_all(b"1").unwrap();
        // The thread holds the first line; two more find room, and two do not.
        wanted.recv().unwrap();
        for line in [b"2", b"3", b"4", b"5"] {
            lossy.write_all(line).unwrap();
        }
        drop(allow);
        drop(guard);
        assert_eq!(*written.lock().unwrap(), b"123");
        assert_eq!(counted.try_iter().sum::<u64>(), 2);
    }
}
