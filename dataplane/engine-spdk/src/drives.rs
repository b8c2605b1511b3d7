//! Drives that are pulled out and come back.
//!
//! ```text
//! device  loses its drive, closes it --Lost--> watcher  looks once a second whether the drive is there
//! device  opens it again <--Place-- watcher             attaches it, and compares what it is
//! ```
//!
//! The library's own hot-plug is not used: it takes every drive that is bound for user space, and names
//! those that come back in another way.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};
use std::{io, thread};

use bowline_block::Geometry;
use bowline_spdk_rs::{self as spdk, Application, Error, Handle, NvmeController, NvmeIdentity};

use crate::library::{Inner, Spdk, SpdkBacking};
use crate::options::{Source, SpdkError};

/// How often it is looked whether a drive is back.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// A drive that cannot be attached is tried again after 1, 2, 4... intervals, up to two to the power of
/// this: each time the library logs what was wrong.
const PATIENCE_MAX: u32 = 6;

/// The drive under a device.
#[derive(Debug)]
pub(crate) struct Drive {
    pub(crate) address: String,
    pub(crate) identity: NvmeIdentity,
    pub(crate) lost: Sender<Lost>,
}

/// A device without its drive.
#[derive(Debug)]
pub(crate) struct Lost {
    name: String,
    geometry: Geometry,
    address: String,
    identity: NvmeIdentity,
    /// Gone when nobody waits any more.
    place: Weak<Place>,
}

/// Where the drive is put when it is back.
#[derive(Debug)]
pub(crate) struct Place {
    is_taken: AtomicBool,
    returned: Mutex<Option<SpdkBacking>>,
    device: Handle,
}

impl Drive {
    /// Has the drive looked for, as what it was when it went.
    pub(crate) fn seek(&self, name: &str, geometry: Geometry, device: Handle) -> Arc<Place> {
        let place = Arc::new(Place {
            is_taken: AtomicBool::new(false),
            returned: Mutex::default(),
            device,
        });
        let lost = Lost {
            name: name.to_owned(),
            geometry,
            address: self.address.clone(),
            identity: self.identity.clone(),
            place: Arc::downgrade(&place),
        };
        // When the library is ending nobody looks any more.
        let _ = self.lost.send(lost);
        place
    }
}

impl Place {
    /// The drive, once it is back.
    pub(crate) fn take(&self) -> Option<SpdkBacking> {
        if !self.is_taken.load(Ordering::Acquire) {
            return None;
        }
        let mut returned = self.returned.lock().unwrap_or_else(PoisonError::into_inner);
        returned.take()
    }

    fn give(&self, backing: SpdkBacking) {
        let mut returned = self.returned.lock().unwrap_or_else(PoisonError::into_inner);
        *returned = Some(backing);
        drop(returned);
        self.is_taken.store(true, Ordering::Release);
        // Wakes its reactor. A device whose thread has ended wants no drive any more.
        let _ = self.device.send(|| {});
    }
}

/// A drive that is attached.
#[derive(Debug)]
pub(crate) struct Attached {
    /// The devices of its namespaces.
    pub(crate) names: Vec<String>,
    /// It was not before.
    pub(crate) is_new: bool,
}

/// Attaches a drive, if it is not yet; on the application thread.
pub(crate) fn attach(
    application: &Application,
    controller: &NvmeController,
) -> Result<Attached, Error> {
    let mut names: Vec<_> = application.bdevs().into_iter().map(|it| it.name).collect();
    names.retain(|name| controller.namespace(name).is_some());
    let is_new = names.is_empty();
    if is_new {
        names = application.attach(controller)?;
    }
    Ok(Attached { names, is_new })
}

/// Begins to watch for drives that are lost, until nobody can lose one any more.
pub(crate) fn watch(library: Weak<Inner>) -> io::Result<Sender<Lost>> {
    let (lost, receiver) = mpsc::channel();
    let run = move || Watcher::default().run(&receiver, &library);
    thread::Builder::new()
        .name("spdk-drives".to_owned())
        .spawn(run)?;
    Ok(lost)
}

#[derive(Debug, Default)]
struct Watcher {
    /// By PCI address.
    slots: BTreeMap<String, Slot>,
}

/// Where a drive was.
#[derive(Debug, Default)]
struct Slot {
    lost: Vec<Lost>,
    /// What was there when it was last looked.
    there: Option<NonZeroU64>,
    /// That is not what was there before.
    is_refused: bool,
    /// It could not be attached so many times.
    failures: u32,
    /// Looks to leave out.
    left_out: u32,
}

impl Watcher {
    fn run(&mut self, receiver: &Receiver<Lost>, library: &Weak<Inner>) {
        let mut look_at = Instant::now();
        loop {
            let received = if self.slots.is_empty() {
                receiver.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                receiver.recv_timeout(look_at.saturating_duration_since(Instant::now()))
            };
            match received {
                Ok(lost) => {
                    if self.slots.is_empty() {
                        look_at = Instant::now() + LOOK_INTERVAL;
                    }
                    let slot = self.slots.entry(lost.address.clone()).or_default();
                    slot.lost.push(lost);
                    // It may be one for which what is there is right.
                    slot.is_refused = false;
                }
                Err(RecvTimeoutError::Timeout) => {
                    let Some(inner) = library.upgrade() else {
                        return;
                    };
                    self.look(&Spdk { inner });
                    look_at = Instant::now() + LOOK_INTERVAL;
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn look(&mut self, spdk: &Spdk) {
        self.slots.retain(|address, slot| {
            slot.lost.retain(|lost| lost.place.strong_count() > 0);
            if !slot.lost.is_empty() {
                slot.look(address, spdk);
            }
            !slot.lost.is_empty()
        });
    }
}

impl Slot {
    fn look(&mut self, address: &str, spdk: &Spdk) {
        let there = spdk::bound_for_user_space(address);
        if self.there != there {
            self.there = there;
            self.is_refused = false;
            self.failures = 0;
            self.left_out = 0;
        }
        if there.is_none() || self.is_refused {
            return;
        }
        if self.left_out > 0 {
            self.left_out -= 1;
            return;
        }
        match spdk.attach(address) {
            Ok(attached) => self.hand_back(address, &attached, spdk),
            Err(error) => self.failed(address, &error),
        }
    }

    fn failed(&mut self, address: &str, error: &SpdkError) {
        if self.failures == 0 {
            tracing::warn!(
                address, %error,
                "a drive that was pulled out is back and cannot be attached; it is tried again"
            );
        }
        self.left_out = (1 << self.failures.min(PATIENCE_MAX)) - 1;
        self.failures += 1;
    }

    /// Hands to each device what it has lost, if it is that.
    fn hand_back(&mut self, address: &str, attached: &Attached, spdk: &Spdk) {
        let mut is_wanted = false;
        let is_refused = &mut self.is_refused;
        self.lost.retain(|lost| {
            let found = spdk.find(&Source::Bdev(lost.name.clone()));
            match found.map_err(|error| error.to_string()).and_then(|found| lost.check(found)) {
                Ok(found) => {
                    if let Some(place) = lost.place.upgrade() {
                        is_wanted = true;
                        place.give(found);
                    }
                    false
                }
                Err(difference) => {
                    *is_refused = true;
                    tracing::error!(
                        address, device = lost.name, %difference,
                        "a drive was pulled out, and what is in its place is not that drive: put it \
                         back, or restart the data plane to serve this one"
                    );
                    true
                }
            }
        });
        // Of no use here: others may have it.
        if attached.is_new
            && !is_wanted
            && let Err(error) = spdk.detach(address)
        {
            tracing::warn!(address, %error, "a drive that is not served stays attached");
        }
    }
}

impl Lost {
    /// The same drive, as hosts know it: otherwise what is different.
    fn check(&self, found: SpdkBacking) -> Result<SpdkBacking, String> {
        let Some(Drive { identity, .. }) = found.drive.as_deref() else {
            return Err("it does not say what it is".to_owned());
        };
        if *identity != self.identity {
            return Err(format!("it was {}, and is {identity}", self.identity));
        }
        if !identity.is_distinctive() {
            return Err(format!("any other of its model is {identity} as well"));
        }
        let was = self.geometry;
        let is = found.geometry;
        let same = Geometry {
            blocks: was.blocks,
            // What it claimed may have turned out to be wrong.
            deallocate: was.deallocate,
            ..is
        };
        if same != was || is.blocks < was.blocks {
            return Err(format!("it was {was:?}, and is {is:?}"));
        }
        Ok(found)
    }
}
