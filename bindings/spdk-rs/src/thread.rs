//! Threads of the library, each polled by the OS thread that made it.

use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::fmt;
use std::ptr::{self, NonNull};
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bowline_spdk_sys as sys;

use crate::error::Error;
use crate::library::{Library, c_string};
use crate::poller::Poller;

thread_local! {
    /// The thread of this OS thread.
    static CURRENT: RefCell<Weak<Inner>> = const { RefCell::new(Weak::new()) };
    /// Whether there is one, be it that it is just ending.
    static IS_TAKEN: Cell<bool> = const { Cell::new(false) };
}

/// A thread of the library: what callbacks, pollers and I/O run on. It belongs to the OS thread that
/// made it, which cannot have a second one. Clones are the same thread; it ends, taking turns until
/// all that was sent to it is done, with the last of them and of what was opened on it.
///
/// It stays on its OS thread, and so does what is opened on it:
///
/// ```compile_fail
/// fn elsewhere<T: Send>(_: T) {}
/// let thread: bowline_spdk_rs::Thread = bowline_spdk_rs::Thread::current().unwrap();
/// elsewhere(thread);
/// ```
#[derive(Clone)]
pub struct Thread {
    inner: Rc<Inner>,
}

struct Inner {
    raw: NonNull<sys::shim_thread>,
    remote: Arc<Remote>,
    library: Library,
    polling: Cell<bool>,
}

impl Thread {
    pub(crate) fn new(library: &Library, name: &str) -> Result<Self, Error> {
        let what = || format!("thread {name} was not made");
        if IS_TAKEN.get() {
            return Err(Error::new(what(), "this OS thread already has one")
                .help("use Thread::current, or another OS thread"));
        }
        let c_name = c_string(&what(), name)?;
        let remote = Arc::new(Remote::new(name));
        library.join(&remote)?;
        // SAFETY: the thread library is set up while `library` counts a thread.
        let raw = unsafe { sys::shim_thread_create(c_name.as_ptr()) };
        let Some(raw) = NonNull::new(raw) else {
            library.leave(&remote);
            return Err(Error::no_memory(what()));
        };
        *remote.raw() = Some(Raw(raw));
        // It stays current until its end, as there is no other on this OS thread: what SPDK wants to
        // be called on the thread is called by types that cannot leave it.
        // SAFETY: the thread lives.
        unsafe { sys::shim_thread_set(raw.as_ptr()) };
        let inner = Rc::new(Inner {
            raw,
            remote,
            library: library.clone(),
            polling: Cell::new(false),
        });
        CURRENT.set(Rc::downgrade(&inner));
        IS_TAKEN.set(true);
        Ok(Self { inner })
    }

    /// The thread of the calling OS thread, if it has one.
    #[must_use]
    pub fn current() -> Option<Self> {
        // A destructor may run after the OS thread's own data is gone.
        let inner = CURRENT.try_with(|current| current.borrow().upgrade());
        inner.ok().flatten().map(|inner| Self { inner })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.remote.name
    }

    /// The library it is of.
    #[must_use]
    pub fn library(&self) -> &Library {
        &self.inner.library
    }

    /// Runs what was sent to it, a few messages at a time, and pollers that are due; callbacks come
    /// within. Returns whether anything was done. Does nothing when called by one of those.
    pub fn poll(&self) -> bool {
        if self.inner.polling.replace(true) {
            return false;
        }
        // SAFETY: the thread lives as long as `self`, which is borrowed until the call returns, and
        // this is its OS thread.
        let busy = unsafe { sys::shim_thread_poll(self.inner.raw.as_ptr(), 0) };
        self.inner.polling.set(false);
        busy
    }

    /// Whether `poll` is on its way, so that nothing can be waited for.
    pub(crate) fn is_polling(&self) -> bool {
        self.inner.polling.get()
    }

    /// Whether somebody besides this value has the thread: a clone, or something opened on it.
    pub(crate) fn is_shared(&self) -> bool {
        Rc::strong_count(&self.inner) > 1
    }

    /// Whether a poller wants to run in every turn.
    #[must_use]
    pub fn has_active_pollers(&self) -> bool {
        // SAFETY: as in `poll`.
        unsafe { sys::shim_thread_has_active_pollers(self.inner.raw.as_ptr()) }
    }

    /// How long until a poller is due; none while there is no poller. Others may send messages
    /// before that.
    #[must_use]
    pub fn next_poll(&self) -> Option<Duration> {
        if self.has_active_pollers() {
            return Some(Duration::ZERO);
        }
        self.next_timed_poll()
    }

    /// How long until a poller is due that does not want to run in every turn; none while there is
    /// none.
    #[must_use]
    pub fn next_timed_poll(&self) -> Option<Duration> {
        // SAFETY: as in `poll`.
        let left_us = unsafe { sys::shim_thread_next_poll_us(self.inner.raw.as_ptr()) };
        u64::try_from(left_us).ok().map(Duration::from_micros)
    }

    /// Has `wake` called, on any OS thread, when this thread ought to be polled soon: something was
    /// sent to it by its [`Handle`], or may be sent to it by the library, as something was opened,
    /// closed, reset or configured. It must not wait for anything.
    pub fn set_waker(&self, wake: impl Fn() + Send + Sync + 'static) {
        *self.inner.remote.waker() = Some(Arc::new(wake));
    }

    /// Counts what the waker is called for. It rises before the waker is called.
    #[must_use]
    pub fn stirs(&self) -> u64 {
        self.inner.remote.stirs.load(Ordering::Acquire)
    }

    /// Runs `poll` on this thread, in every turn or when it is due, until the [`Poller`] is dropped.
    /// It returns whether it found something to do.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn poller(
        &self,
        period: Option<Duration>,
        poll: impl FnMut() -> bool + 'static,
    ) -> Result<Poller, Error> {
        Poller::new(self, period, Box::new(poll))
    }

    /// A way to this thread from any OS thread.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle {
            remote: Arc::clone(&self.inner.remote),
        }
    }
}

impl fmt::Debug for Thread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Thread").field(&self.name()).finish()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.remote.close();
        // SAFETY: the thread lives, is current and is this OS thread's. Nothing is open on it: that
        // would hold it. It is not being polled: that borrows it. Nobody else has it, now that the
        // way to it is closed. SPDK ends it by force after five seconds, so this ends.
        unsafe {
            sys::shim_thread_exit(self.raw.as_ptr());
            while !sys::shim_thread_is_exited(self.raw.as_ptr()) {
                if !sys::shim_thread_poll(self.raw.as_ptr(), 0) {
                    std::thread::yield_now();
                }
            }
            sys::shim_thread_set(ptr::null_mut());
            sys::shim_thread_destroy(self.raw.as_ptr());
        }
        IS_TAKEN.set(false);
        self.library.leave(&self.remote);
    }
}

/// Sends closures to a [`Thread`] from any OS thread.
#[derive(Clone)]
pub struct Handle {
    remote: Arc<Remote>,
}

/// The thread as others know it.
pub(crate) struct Remote {
    name: String,
    /// Until it begins to end.
    raw: Mutex<Option<Raw>>,
    stirs: AtomicU64,
    waker: Mutex<Option<Waker>>,
}

type Waker = Arc<dyn Fn() + Send + Sync>;

struct Raw(NonNull<sys::shim_thread>);

// SAFETY: the only thing done with it on other OS threads is sending, which SPDK allows from any.
unsafe impl Send for Raw {}

impl Remote {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            raw: Mutex::new(None),
            stirs: AtomicU64::new(0),
            waker: Mutex::new(None),
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Has its OS thread look, and look again soon.
    pub(crate) fn stir(&self) {
        self.stirs.fetch_add(1, Ordering::AcqRel);
        let waker = self.waker().clone();
        if let Some(wake) = waker {
            wake();
        }
    }

    fn close(&self) {
        *self.raw() = None;
        *self.waker() = None;
    }

    fn waker(&self) -> MutexGuard<'_, Option<Waker>> {
        self.waker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn raw(&self) -> MutexGuard<'_, Option<Raw>> {
        self.raw.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Remote").field(&self.name).finish()
    }
}

type Message = Box<dyn FnOnce() + Send>;

impl Handle {
    /// Has `message` run on the thread, within [`Thread::poll`], and wakes its OS thread for that if it
    /// [can be](Thread::set_waker).
    ///
    /// # Errors
    /// When the thread has ended, or there is no memory; the message is dropped then.
    pub fn send(&self, message: impl FnOnce() + Send + 'static) -> Result<(), Error> {
        const WHAT: &str = "message was not sent";
        // Held until it is sent: a thread is destroyed only after it has closed this.
        let raw = self.remote.raw();
        let Some(Raw(thread)) = *raw else {
            return Err(Error::new(WHAT, "the thread has ended"));
        };
        let message: *mut Message = Box::into_raw(Box::new(Box::new(message)));
        // SAFETY: the thread lives while the lock is held; the message belongs to `run_message`
        // when it was accepted.
        let result =
            unsafe { sys::shim_thread_send(thread.as_ptr(), Some(run_message), message.cast()) };
        if result != 0 {
            // It may send something itself when it is dropped.
            drop(raw);
            // SAFETY: it was refused, so it is still ours.
            drop(unsafe { Box::from_raw(message) });
            return Err(Error::of_result(WHAT, result));
        }
        drop(raw);
        self.remote.stir();
        Ok(())
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}

unsafe extern "C" fn run_message(context: *mut c_void) {
    // SAFETY: `Handle::send` gave it the box, and each message is run once.
    let message = unsafe { Box::from_raw(context.cast::<Message>()) };
    message();
}
