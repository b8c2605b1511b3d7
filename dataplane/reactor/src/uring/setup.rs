//! Making a ring: with what the kernel offers, and only where it may also be used.

use std::io;
use std::os::fd::AsRawFd;

use io_uring::IoUring;

/// Submissions that fit between two system calls; more cost one more call.
pub(super) const SQ_ENTRIES: u32 = 512;

/// Completions that fit between two turns; the kernel keeps more until there is room.
const CQ_ENTRIES: u32 = 4096;

/// `IORING_REGISTER_RING_FDS`, `IORING_UNREGISTER_RING_FDS`: not exported by the crate.
const REGISTER_RING_FDS: libc::c_uint = 20;
const UNREGISTER_RING_FDS: libc::c_uint = 21;

/// `struct io_uring_rsrc_update`.
#[repr(C)]
struct RingRegistration {
    offset: u32,
    reserved: u32,
    data: u64,
}

/// Set-up flags that older kernels lack, newest first: the order in which they are given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flag {
    /// Linux 6.6.
    NoSqArray,
    /// Linux 6.1; replaced by `COOP_TASKRUN` (5.19).
    DeferTaskrun,
    /// Linux 6.0.
    SingleIssuer,
    /// Linux 5.19.
    CoopTaskrun,
    /// Linux 5.18.
    SubmitAll,
}

pub(super) const FLAGS: [Flag; 5] = [
    Flag::NoSqArray,
    Flag::DeferTaskrun,
    Flag::SingleIssuer,
    Flag::CoopTaskrun,
    Flag::SubmitAll,
];

/// Why there is no ring: the call that failed, and how.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) call: &'static str,
    pub(crate) error: io::Error,
}

impl Refusal {
    const fn of_setup(error: io::Error) -> Self {
        let call = "io_uring_setup";
        Self { call, error }
    }
}

/// A ring that works. `given_up` counts the flags given up: those to begin without, then those
/// that the kernel does not know either.
pub(super) fn build(given_up: &mut usize) -> Result<IoUring, Refusal> {
    let ring = loop {
        match build_with(&FLAGS[*given_up..]) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && *given_up < FLAGS.len() => {
                *given_up += 1;
            }
            other => break other.map_err(Refusal::of_setup)?,
        }
    };
    let params = ring.params();
    // Multishot poll has no feature bit; resource tagging came in the same version, 5.13.
    if !(params.is_feature_nodrop()
        && params.is_feature_ext_arg()
        && params.is_feature_resource_tagging())
    {
        return Err(Refusal::of_setup(io::Error::new(
            io::ErrorKind::Unsupported,
            "the kernel's io_uring is older than Linux 5.13",
        )));
    }
    try_enter(&ring)?;
    Ok(ring)
}

fn build_with(flags: &[Flag]) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.dontfork().setup_clamp().setup_cqsize(CQ_ENTRIES);
    let has = |flag| flags.contains(&flag);
    if has(Flag::NoSqArray) {
        builder.setup_no_sqarray();
    }
    if has(Flag::SingleIssuer) {
        builder.setup_single_issuer();
    }
    if has(Flag::DeferTaskrun) {
        builder.setup_defer_taskrun().setup_taskrun_flag();
    } else if has(Flag::CoopTaskrun) {
        builder.setup_coop_taskrun().setup_taskrun_flag();
    }
    if has(Flag::SubmitAll) {
        builder.setup_submit_all();
    }
    builder.build(SQ_ENTRIES)
}

pub(super) fn feature_names(flags: &[Flag]) -> Vec<&'static str> {
    let defers = flags.contains(&Flag::DeferTaskrun);
    let in_use = flags
        .iter()
        .filter(|flag| !(defers && **flag == Flag::CoopTaskrun));
    in_use
        .map(|flag| match flag {
            Flag::NoSqArray => "no_sqarray",
            Flag::DeferTaskrun => "defer_taskrun",
            Flag::SingleIssuer => "single_issuer",
            Flag::CoopTaskrun => "coop_taskrun",
            Flag::SubmitAll => "submit_all",
        })
        .collect()
}

/// Registers the ring's descriptor for the calling thread; `None` before Linux 5.18.
pub(super) fn register_ring(ring: &IoUring) -> Option<u32> {
    let data = u64::try_from(ring.as_raw_fd()).ok()?;
    let mut registration = RingRegistration {
        offset: u32::MAX,
        reserved: 0,
        data,
    };
    // SAFETY: the arguments are those of io_uring_register with one entry, which the kernel reads
    // and writes during the call only.
    let registered = unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            i64::from(ring.as_raw_fd()),
            REGISTER_RING_FDS,
            &raw mut registration,
            1,
        )
    };
    (registered == 1).then_some(registration.offset)
}

/// Undoes [`register_ring`], on the same thread.
pub(super) fn unregister_ring(ring: &IoUring, index: u32) {
    let registration = RingRegistration {
        offset: index,
        reserved: 0,
        data: 0,
    };
    // SAFETY: the arguments are those of io_uring_register with one entry, which the kernel reads
    // during the call only. Afterwards the ring is reached by its descriptor, which stays open.
    let unregistered = unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            i64::from(ring.as_raw_fd()),
            UNREGISTER_RING_FDS,
            &raw const registration,
            1,
        )
    };
    if unregistered != 1 {
        let error = io::Error::last_os_error();
        tracing::warn!(%error, "the ring stays registered until its thread ends");
    }
}

/// Enters the ring once with nothing to do: a seccomp profile may permit the set-up and yet refuse
/// this, and then there must be no ring.
fn try_enter(ring: &IoUring) -> Result<(), Refusal> {
    // SAFETY: the arguments are those of io_uring_enter without submissions and without a wait.
    let entered = unsafe {
        libc::syscall(
            libc::SYS_io_uring_enter,
            i64::from(ring.as_raw_fd()),
            0,
            0,
            io_uring::EnterFlags::GETEVENTS.bits(),
            std::ptr::null::<libc::c_void>(),
            0,
        )
    };
    if entered >= 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if is_transient(&error) {
        return Ok(());
    }
    let call = "io_uring_enter";
    Err(Refusal { call, error })
}

/// Errors of `io_uring_enter` that only mean "later".
pub(super) fn is_transient(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ENOMEM)
    )
}
