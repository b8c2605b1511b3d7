//! What a killed predecessor still holds for a moment.
//!
//! The kernel takes back what an io_uring holds, listening sockets and the device's lock among
//! it, after the process that owned the ring is gone and has been reaped. A data plane that is
//! restarted at once after SIGKILL would find its own port and device in use, so at start it asks
//! again for a little while before it reports that.

use std::time::{Duration, Instant};

/// How long to ask. The kernel needs milliseconds, a busy machine more.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often. There is no event to wait for.
const INTERVAL: Duration = Duration::from_millis(10);

/// Repeats an attempt as long as it fails because something is held.
pub(crate) fn patiently<T, E>(
    is_held: impl Fn(&E) -> bool,
    mut attempt: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    let started = Instant::now();
    loop {
        match attempt() {
            Err(error) if is_held(&error) && started.elapsed() < PATIENCE => {
                #[expect(
                    clippy::disallowed_methods,
                    reason = "the kernel tells nobody when it has let go"
                )]
                std::thread::sleep(INTERVAL);
            }
            outcome => return outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_let_go_in_time_is_taken_and_other_failures_are_final() {
        let mut attempts = 0;
        let taken = patiently(
            |held| *held,
            || {
                attempts += 1;
                if attempts < 4 {
                    Err(true)
                } else {
                    Ok(attempts)
                }
            },
        );
        assert_eq!(taken, Ok(4));
        let mut attempts = 0;
        let failed: Result<(), bool> = patiently(
            |held| *held,
            || {
                attempts += 1;
                Err(false)
            },
        );
        assert_eq!((failed, attempts), (Err(false), 1));
    }
}
