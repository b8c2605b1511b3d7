//! The library from its start to its end, on one OS thread.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::fmt;
use std::ptr;
use std::time::{Duration, Instant};

use bowline_spdk_sys as sys;
use serde_json::json;

use crate::bdev::{self, BdevInfo};
use crate::config::Config;
use crate::error::Error;
use crate::library::{Library, Options};
use crate::nvme::{self, NvmeController, NvmeIdentity};
use crate::thread::Thread;

/// How long an OS thread rests between two polls while it waits for something.
const REST: Duration = Duration::from_micros(100);
/// After this it is said what is waited for.
const SAY_AFTER: Duration = Duration::from_secs(5);

/// The library, started, and its application thread, which belongs to the OS thread that started it.
///
/// Devices are made and removed here. It wants to be polled: [`Service`](crate::Service) does that on
/// an OS thread of its own. Functions that wait poll it meanwhile.
pub struct Application {
    /// None once it was stopped.
    running: Option<Running>,
}

struct Running {
    thread: Thread,
    library: Library,
}

impl Application {
    /// Starts the library: environment, threads, subsystems, and `config` in them. Once in a process.
    ///
    /// Modules do not look at new devices by themselves, as who finds his own on one claims it; a
    /// configuration with the method `bdev_set_options` decides that itself.
    ///
    /// # Errors
    /// When any of that fails; what was begun is ended then. The library's log says more.
    pub fn start(options: &Options, config: &Config) -> Result<Self, Error> {
        let library = Library::begin(options)?;
        let thread = match library.thread("application") {
            Ok(thread) => thread,
            Err(error) => {
                library.end();
                return Err(error);
            }
        };
        let application = Self {
            running: Some(Running { thread, library }),
        };
        let text = config.for_start().to_json();
        let what = "SPDK's subsystems were not started";
        // SAFETY: this is the application's thread, for the first time; the text lives until `wait`
        // has returned, which is after the end was told.
        let result = wait(application.thread(), what, |done, context| unsafe {
            sys::shim_subsystems_start(text.as_ptr().cast(), text.len(), done, context);
        });
        // When it failed, dropping the application ends what was begun.
        result.map_err(|error| error.help("its log names the method that failed"))?;
        Ok(application)
    }

    /// The way to the library from other OS threads.
    #[must_use]
    pub fn library(&self) -> Library {
        self.running().library.clone()
    }

    /// The application thread. Devices may be opened on it like on any other.
    #[must_use]
    pub fn thread(&self) -> &Thread {
        &self.running().thread
    }

    /// Polls the application thread once; see [`Thread::poll`].
    pub fn poll(&self) -> bool {
        self.thread().poll()
    }

    /// Runs the methods of a configuration, and waits for their end. A method that removes a device
    /// ends when everybody has closed it. Options that SPDK takes before its subsystems start are
    /// passed over here: they belong in the configuration of the start.
    ///
    /// # Errors
    /// When one fails: those before it have been run. The library's log says which.
    pub fn configure(&self, config: &Config) -> Result<(), Error> {
        let text = config.to_json();
        // SAFETY: this is the application's thread, and the subsystems run; one at a time, as this
        // waits. The text lives until then.
        let result = wait(
            self.thread(),
            "SPDK was not configured",
            |done, context| unsafe {
                sys::shim_configure(text.as_ptr().cast(), text.len(), done, context);
            },
        );
        result.map_err(|error| error.help("its log names the method that failed"))
    }

    /// Attaches a controller, and gives the names of its devices.
    ///
    /// # Errors
    /// When it cannot be attached, or has no namespace.
    pub fn attach(&self, controller: &NvmeController) -> Result<Vec<String>, Error> {
        let what = || format!("controller {} was not attached", controller.name());
        // SAFETY: the subsystems run, and this is the application thread.
        unsafe { sys::shim_nvme_catch_up() };
        if let Err(error) = self.configure(&Config::new().nvme(controller)) {
            return Err(error.instead_of(what()).help(
                "it has to be bound to a driver for user space (vfio-pci, uio_pci_generic), and \
                 nobody else may have it; the library's log says more",
            ));
        }
        let mut names: Vec<_> = self.bdevs().into_iter().map(|info| info.name).collect();
        names.retain(|name| controller.namespace(name).is_some());
        if names.is_empty() {
            self.detach(controller.name())?;
            return Err(Error::new(what(), "it has no active namespace"));
        }
        Ok(names)
    }

    /// Detaches a controller, once everybody has closed its devices: they are told.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn detach(&self, name: &str) -> Result<(), Error> {
        let method = "bdev_nvme_detach_controller";
        let config = Config::new().method("bdev", method, &json!({"name": name}));
        let result = self.configure(&config);
        result.map_err(|error| error.instead_of(format!("controller {name} was not detached")))
    }

    /// Removes a device that was made of memory or of a file, once everybody has closed it: they are
    /// told.
    ///
    /// # Errors
    /// When there is none of this name, or it is of another kind.
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        let what = || format!("device {name} was not removed");
        let bdevs = self.bdevs();
        let Some(info) = bdevs.iter().find(|info| info.name == name) else {
            return Err(Error::of_result(what(), -libc::ENODEV)
                .help("there is none of this name: see Application::bdevs"));
        };
        if !matches!(info.module.as_str(), "malloc" | "null" | "aio" | "uring") {
            let why = format!("it is of the module {}", info.module);
            return Err(Error::new(what(), why).help("controllers are detached instead"));
        }
        let method = format!("bdev_{}_delete", info.module);
        let config = Config::new().method("bdev", &method, &json!({"name": name}));
        let result = self.configure(&config);
        result.map_err(|error| error.instead_of(what()))
    }

    /// All block devices there are.
    #[must_use]
    pub fn bdevs(&self) -> Vec<BdevInfo> {
        bdev::list()
    }

    /// By what the namespace is known that the device `name` is made of; none when it is not one.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn nvme_identity(&self, name: &str) -> Result<Option<NvmeIdentity>, Error> {
        nvme::identity(name)
    }

    /// Ends the library: waits until all its other threads have ended, then ends the subsystems, which
    /// removes all devices. DMA memory that somebody still has stays valid.
    ///
    /// # Errors
    /// When something is still open on this thread, or the subsystems do not end: the library stays as
    /// it is until the process ends.
    pub fn stop(mut self) -> Result<(), Error> {
        match self.running.take() {
            Some(running) => running.stop(),
            None => Ok(()),
        }
    }

    fn running(&self) -> &Running {
        match &self.running {
            Some(running) => running,
            None => unreachable!("it is taken by who consumes or drops the application"),
        }
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.running.take().map(Running::stop) {
            tracing::error!(%error, "SPDK was not stopped");
        }
    }
}

impl fmt::Debug for Application {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Application").finish_non_exhaustive()
    }
}

impl Running {
    fn stop(self) -> Result<(), Error> {
        let what = "SPDK was not stopped";
        self.library.close();
        let Self { thread, library } = &self;
        if thread.is_shared() {
            let why = "something is still open on the application thread";
            let error = Error::new(what, why).help("drop devices, queues and clones first");
            return Err(self.leave(error));
        }
        wait_for_threads(thread, library);
        // SAFETY: this is the application's thread. Every descriptor is closed: one would hold its
        // thread, and all are gone.
        let stopped = wait(thread, what, |done, context| unsafe {
            sys::shim_subsystems_stop(done, context);
        });
        if let Err(error) = stopped {
            return Err(self.leave(error));
        }
        let Self { thread, library } = self;
        drop(thread);
        library.end();
        Ok(())
    }

    /// Leaves the library as it is: others still send to its application thread, so that this never
    /// ends.
    fn leave(self, error: Error) -> Error {
        std::mem::forget(self.thread);
        error
    }
}

/// Others end theirs on their own OS threads; for that this one has to be polled.
fn wait_for_threads(thread: &Thread, library: &Library) {
    let mut say_at = Instant::now() + SAY_AFTER;
    loop {
        let threads = library.threads();
        if threads.len() <= 1 {
            return;
        }
        if Instant::now() >= say_at {
            say_at += SAY_AFTER;
            tracing::warn!(?threads, "SPDK waits for its threads to end");
        }
        if !thread.poll() {
            std::thread::park_timeout(REST);
        }
    }
}

/// Begins something and polls until its end is told.
fn wait(
    thread: &Thread,
    what: &str,
    begin: impl FnOnce(sys::shim_done_fn, *mut c_void),
) -> Result<(), Error> {
    unsafe extern "C" fn done(context: *mut c_void, result: c_int) {
        // SAFETY: the context is the cell below, which lives until it has a value, on this OS thread.
        unsafe { &*context.cast::<Cell<Option<c_int>>>() }.set(Some(result));
    }

    if thread.is_polling() {
        let why = "it cannot be waited for in a callback";
        return Err(Error::new(what, why).help("do it outside of Thread::poll"));
    }
    let result: Cell<Option<c_int>> = Cell::new(None);
    begin(Some(done), ptr::from_ref(&result).cast_mut().cast());
    // Others may have to do something for it.
    thread.library().stir();
    loop {
        match result.get() {
            Some(0) => return Ok(()),
            Some(result) => return Err(Error::of_result(what, result)),
            None if thread.poll() => {}
            None => std::thread::park_timeout(REST),
        }
    }
}
