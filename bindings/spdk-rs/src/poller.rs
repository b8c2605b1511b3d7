//! Functions that a thread runs again and again.

use std::cell::RefCell;
use std::ffi::c_void;
use std::fmt;
use std::ptr::NonNull;
use std::rc::Rc;
use std::time::Duration;

use bowline_spdk_sys as sys;

use crate::error::Error;
use crate::thread::Thread;

/// The library counts in ticks of the processor, which must not wrap.
const PERIOD_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// A function that its [`Thread`] runs again and again; no longer when this is dropped, which the
/// function itself may do.
pub struct Poller {
    raw: NonNull<sys::shim_poller>,
    /// What the library's context points to.
    _state: Rc<State>,
    _thread: Thread,
}

struct State {
    poll: RefCell<Box<dyn FnMut() -> bool>>,
}

impl Poller {
    pub(crate) fn new(
        thread: &Thread,
        period: Option<Duration>,
        poll: Box<dyn FnMut() -> bool>,
    ) -> Result<Self, Error> {
        let state = Rc::new(State {
            poll: RefCell::new(poll),
        });
        let period_us = match period {
            // Shorter than what can be said is as often as possible, but not "in every turn".
            Some(period) => {
                let period_us = period.min(PERIOD_MAX).as_micros();
                u64::try_from(period_us).unwrap_or(u64::MAX).max(1)
            }
            None => 0,
        };
        let context = Rc::as_ptr(&state).cast_mut().cast();
        // SAFETY: the thread is this OS thread's current one. The context lives until the poller is
        // unregistered, and `run` keeps it while it uses it.
        let raw = unsafe { sys::shim_poller_register(Some(run), context, period_us) };
        match NonNull::new(raw) {
            Some(raw) => Ok(Self {
                raw,
                _state: state,
                _thread: thread.clone(),
            }),
            None => Err(Error::no_memory("poller was not registered")),
        }
    }
}

impl Drop for Poller {
    fn drop(&mut self) {
        // SAFETY: it is registered, and this is its thread's OS thread.
        unsafe { sys::shim_poller_unregister(self.raw.as_ptr()) }
    }
}

impl fmt::Debug for Poller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Poller").finish_non_exhaustive()
    }
}

unsafe extern "C" fn run(context: *mut c_void) -> bool {
    let state = context.cast::<State>().cast_const();
    // SAFETY: the poller is registered, so its owner has the state, on this OS thread; with a count of
    // its own it stays although the function drops the poller.
    let state = unsafe {
        Rc::increment_strong_count(state);
        Rc::from_raw(state)
    };
    // It runs within `poll`, which does not run within itself.
    match state.poll.try_borrow_mut() {
        Ok(mut poll) => poll(),
        Err(_) => false,
    }
}
