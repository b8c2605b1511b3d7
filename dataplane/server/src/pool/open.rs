//! From an open drive to what is served: a pool, or the whole drive. On the reactor that is going
//! to own it, before anything is served there.

use std::time::{SystemTime, UNIX_EPOCH};

use bowline_api::{Failure, Reason};
use bowline_nvme::Nanos;
use bowline_pool::format::foreign::Foreign;
use bowline_pool::format::layout::LayoutOptions;
use bowline_pool::{FormatOptions, Found, OpenError, OpenOptions, Pool, Recovery};
use bowline_reactor::Reactor;
use tokio::sync::watch;
use uuid::Uuid;

use super::{PoolSeat, explain_pool};
use crate::backing::Opened;
use crate::config::Serve;
use crate::drive::Drive;

/// What is going to be served of a drive.
pub(crate) enum Begun {
    /// All of it, as one namespace.
    Whole(Box<Drive>),
    /// Its pool.
    Pool(Box<PoolSeat>),
}

/// Looks at the drive, makes a pool on it if that was asked for, and opens the pool if there is one;
/// `told` is told how far that is.
pub(crate) fn begin(
    opened: Opened,
    serve: Serve,
    (device, is_shared): (&str, bool),
    told: &watch::Sender<Option<Recovery>>,
    cx: &mut Reactor,
) -> Result<Begun, Failure> {
    let attached = opened.attach(cx, None);
    let mut drive = attached.map_err(|error| {
        Failure::new(Reason::BackingUnusable, format!("{device} is not served"))
            .cause(error.to_string())
            .hint("check the size, the memory of the machine, and the limits on open files")
    })?;
    let patience = drive.patience();
    let wait: &mut dyn FnMut() -> Nanos = &mut || patience.wait(cx);
    let explain = |error: OpenError| explain_pool(device, &error);
    if serve == Serve::Whole || serve == Serve::Found && matches!(drive, Drive::Memory(_)) {
        return Ok(Begun::Whole(Box::new(drive)));
    }
    let found = Pool::find(&mut drive, wait).map_err(|error| match serve {
        Serve::Pool { .. } => explain(error).hint(
            "what is or was a pool is never overwritten at a start: see what it is with `bowline \
             pool inspect`, and give it up with `bowline pool erase`",
        ),
        Serve::Found | Serve::Whole => explain(error),
    })?;
    if let (Found::Nothing(_), Serve::Found | Serve::Whole) = (&found, serve) {
        return Ok(Begun::Whole(Box::new(drive)));
    }
    if is_shared {
        // Before anything is written: another one may be doing the same at this moment.
        return Err(shared(device));
    }
    match (found, serve) {
        (Found::Pool(superblock), Serve::Pool { .. }) => tracing::info!(
            device, pool = %superblock.uuid,
            "the drive has a pool already: --format leaves it as it is"
        ),
        (Found::Pool(_) | Found::Nothing(_), Serve::Found | Serve::Whole) => {}
        (Found::Nothing(_), Serve::Pool { force }) => {
            if force {
                let foreign = Pool::recognise(&mut drive, wait).map_err(explain)?;
                if foreign != Foreign::Blank {
                    tracing::warn!(device, "the drive {foreign}, which is overwritten: --force");
                }
            }
            format(&mut drive, force, device, wait).map_err(explain)?;
        }
    }
    let mut watch = |recovery| {
        told.send_replace(Some(recovery));
    };
    let pool = Pool::open_watched(drive, &OpenOptions::default(), wait, &mut watch);
    let pool = pool.map_err(explain)?;
    Ok(Begun::Pool(Box::new(PoolSeat::new(pool, patience))))
}

fn shared(device: &str) -> Failure {
    Failure::new(Reason::BackingUnusable, format!("{device} is not served"))
        .cause("a pool belongs to one data plane, and --shared-device was given")
        .hint("leave --shared-device out")
}

fn format(
    drive: &mut Drive,
    is_forced: bool,
    device: &str,
    wait: &mut dyn FnMut() -> Nanos,
) -> Result<(), OpenError> {
    let options = FormatOptions {
        uuid: Uuid::new_v4(),
        label: String::new(),
        made: now(),
        layout: LayoutOptions::default(),
        is_forced,
    };
    Pool::format(drive, &options, wait)?;
    tracing::info!(device, pool = %options.uuid, "new pool written");
    Ok(())
}

/// Seconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
