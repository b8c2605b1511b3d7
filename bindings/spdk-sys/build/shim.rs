//! Compiles the shim against an installed SPDK, or the double of it, and makes the bindings.

use std::any::Any;
use std::env;
use std::path::{Path, PathBuf};
use std::process::exit;

#[cfg(feature = "spdk")]
#[path = "spdk.rs"]
mod spdk;

/// The shim over SPDK: its folder, and what is in it.
#[cfg(feature = "spdk")]
const SOURCES: (&str, &[&str]) = ("spdk", &["library.c", "subsystems.c", "bdev.c", "io.c"]);
/// The double, likewise.
#[cfg(not(feature = "spdk"))]
const SOURCES: (&str, &[&str]) = (
    "double",
    &[
        "library.c",
        "bdev.c",
        "drives.c",
        "io.c",
        "json.c",
        "methods.c",
    ],
);

pub(crate) fn build() {
    // Cargo sets both.
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    let folder = here.join("shim");

    let mut compiler = cc::Build::new();
    compiler
        .include(&folder)
        .std("gnu11")
        .warnings(true)
        .extra_warnings(true)
        .files(
            SOURCES
                .1
                .iter()
                .map(|file| folder.join(SOURCES.0).join(file)),
        );
    #[cfg(feature = "spdk")]
    {
        let found = spdk::find();
        found.watch();
        for include in found.includes() {
            // Not ours to be warned about.
            compiler.flag("-isystem").flag(include);
        }
        found.compile(&compiler, &out);
    }
    #[cfg(not(feature = "spdk"))]
    compiler.compile("bowline_shim");

    bind(&folder.join("shim.h"), &out.join("bindings.rs"));
}

fn bind(header: &Path, into: &Path) {
    // bindgen panics when it finds no libclang.
    let made = std::panic::catch_unwind(|| {
        bindgen::Builder::default()
            .header(header.to_string_lossy())
            .allowlist_item("[Ss][Hh][Ii][Mm]_.*")
            .default_enum_style(bindgen::EnumVariation::Consts)
            .prepend_enum_name(false)
            .derive_default(true)
            .layout_tests(true)
            .use_core()
            .generate()
    });
    let made = match made {
        Ok(made) => made,
        Err(panic) => panicked(panic.as_ref()),
    };
    let written = made
        .map_err(|error| error.to_string())
        .and_then(|bindings| {
            bindings
                .write_to_file(into)
                .map_err(|error| error.to_string())
        });
    if let Err(reason) = written {
        fail(
            &format!(
                "no bindings could be made from {}: {reason}",
                header.display()
            ),
            "look at what the compiler says about the header above",
        );
    }
}

fn panicked(panic: &(dyn Any + Send)) -> ! {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("without a reason");
    if text.contains("Unable to find libclang") {
        fail(
            "libclang was not found, which makes the bindings to the shim",
            "install it (on Debian and Ubuntu: apt-get install libclang-dev), or set LIBCLANG_PATH",
        )
    }
    fail(
        &format!("bindgen panicked: {text}"),
        "this is a bug of bindgen, or the libclang that it found is too old for it",
    )
}

/// Ends the build: what is wrong and what to do, without the panic's trace around it.
pub(crate) fn fail(what: &str, help: &str) -> ! {
    println!("cargo::error=bowline-spdk-sys: {what}");
    println!("cargo::error=help: {help}");
    exit(1)
}
