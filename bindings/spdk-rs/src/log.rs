//! The library's log, into `tracing`.

use std::ffi::{CStr, c_char, c_int};
use std::sync::Once;

use bowline_spdk_sys as sys;

/// Up to where the library logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// What failed.
    Error,
    /// What is degraded.
    Warn,
    /// What should be noticed; `info` in `tracing`.
    Notice,
    /// More; `debug` in `tracing`.
    Info,
    /// Everything; `trace` in `tracing`.
    Debug,
}

/// Sends the library's log to `tracing`, target `spdk`, from `level` on up. Call it before anything
/// else is started; the first call counts. What DPDK itself prints is not part of it.
pub fn log_to_tracing(level: LogLevel) {
    static ONCE: Once = Once::new();
    let level = match level {
        LogLevel::Error => sys::SHIM_LOG_ERROR,
        LogLevel::Warn => sys::SHIM_LOG_WARN,
        LogLevel::Notice => sys::SHIM_LOG_NOTICE,
        LogLevel::Info => sys::SHIM_LOG_INFO,
        LogLevel::Debug => sys::SHIM_LOG_DEBUG,
    };
    // SAFETY: `line` may be called on any OS thread.
    ONCE.call_once(|| unsafe { sys::shim_log_open(Some(line), level) });
}

unsafe extern "C" fn line(
    level: sys::shim_log_level,
    file: *const c_char,
    line: c_int,
    function: *const c_char,
    message: *const c_char,
) {
    // SAFETY: they are null, or end with a NUL and are valid during the call.
    let (file, function, message) = unsafe { (text(file), text(function), text(message)) };
    let (file, function) = (file.as_ref(), function.as_ref());
    match level {
        sys::SHIM_LOG_ERROR => tracing::error!(target: "spdk", file, line, function, "{message}"),
        sys::SHIM_LOG_WARN => tracing::warn!(target: "spdk", file, line, function, "{message}"),
        sys::SHIM_LOG_NOTICE => tracing::info!(target: "spdk", file, line, function, "{message}"),
        sys::SHIM_LOG_INFO => tracing::debug!(target: "spdk", file, line, function, "{message}"),
        _ => tracing::trace!(target: "spdk", file, line, function, "{message}"),
    }
}

/// # Safety
/// `text` is null, or ends with a NUL and is valid as long as the result is used.
unsafe fn text<'a>(text: *const c_char) -> std::borrow::Cow<'a, str> {
    if text.is_null() {
        return "".into();
    }
    // SAFETY: as the caller says.
    unsafe { CStr::from_ptr(text) }.to_string_lossy()
}
