//! Where SPDK is and what has to be linked, as pkg-config tells it.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::fail;

/// What the shim uses, with all modules for block devices; their requirements follow.
const PACKAGES: &[&str] = &[
    "spdk_event_bdev",
    "spdk_event_sock",
    "spdk_bdev_modules",
    "spdk_sock_modules",
    "spdk_accel_modules",
    "spdk_env_dpdk",
    "spdk_thread",
    "spdk_init",
    "spdk_rpc",
    "spdk_log",
    "spdk_syslibs",
];

/// How the libraries are linked: `static` or `shared`; by default as they are found, static first.
const LINK_VARIABLE: &str = "BOWLINE_SPDK_LINK";

pub(crate) struct Spdk {
    pub(crate) includes: Vec<String>,
    folders: Vec<PathBuf>,
    libraries: Vec<Library>,
}

enum Library {
    /// By its name, wherever it is found.
    Named(String),
    /// An archive by its path.
    Archive(PathBuf),
}

pub(crate) fn find() -> Spdk {
    println!("cargo::rerun-if-env-changed={LINK_VARIABLE}");
    println!("cargo::rerun-if-env-changed=PKG_CONFIG_PATH");
    println!("cargo::rerun-if-env-changed=PKG_CONFIG");
    let mut found = Spdk {
        includes: Vec::new(),
        folders: Vec::new(),
        libraries: Vec::new(),
    };
    for flag in ask("--cflags").split_whitespace() {
        if let Some(folder) = flag.strip_prefix("-I") {
            found.includes.push(folder.to_owned());
        }
    }
    for flag in ask("--libs").split_whitespace() {
        if let Some(folder) = flag.strip_prefix("-L") {
            found.folders.push(PathBuf::from(folder));
        } else if let Some(name) = flag.strip_prefix("-l") {
            found.libraries.push(Library::Named(name.to_owned()));
        } else if flag == "-pthread" {
            found.libraries.push(Library::Named("pthread".to_owned()));
        } else if flag.ends_with(".a") {
            found.libraries.push(Library::Archive(PathBuf::from(flag)));
        }
    }
    found
}

fn ask(what: &str) -> String {
    let program = env::var("PKG_CONFIG").unwrap_or_else(|_| "pkg-config".to_owned());
    let help = "the feature `spdk` is optional; leave it out, or install SPDK 24.05 or later and set \
                PKG_CONFIG_PATH to the folder of its .pc files (build/lib/pkgconfig in its source \
                tree)";
    let output = Command::new(&program)
        .args(["--static", what])
        .args(PACKAGES)
        .output();
    match output {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).into_owned()
        }
        Ok(output) => {
            let reason = String::from_utf8_lossy(&output.stderr);
            let first = reason.lines().next().unwrap_or("it does not say why");
            fail(&format!("SPDK was not found by {program}: {first}"), help)
        }
        Err(error) => fail(
            &format!("{program} could not be started: {error}"),
            "install it (on Debian and Ubuntu: apt-get install pkg-config)",
        ),
    }
}

impl Spdk {
    /// Tells cargo.
    pub(crate) fn link(&self) {
        let wanted = env::var(LINK_VARIABLE).unwrap_or_default();
        if !matches!(wanted.as_str(), "" | "static" | "shared") {
            fail(
                &format!("{LINK_VARIABLE} is {wanted:?}"),
                "it is `static`, `shared` or not set",
            );
        }
        for folder in &self.folders {
            println!("cargo::rustc-link-search=native={}", folder.display());
        }
        for library in &self.libraries {
            match library {
                Library::Named(name) => {
                    let is_static = wanted != "shared" && self.has_archive(name);
                    if wanted == "static" && name.starts_with("spdk_") && !is_static {
                        fail(
                            &format!("there is no lib{name}.a, and {LINK_VARIABLE} is `static`"),
                            "build SPDK without --with-shared, or link it shared",
                        );
                    }
                    println!("cargo::rustc-link-lib={}={name}", kind(name, is_static));
                }
                Library::Archive(path) => link_archive(path),
            }
        }
    }

    fn has_archive(&self, name: &str) -> bool {
        let file = format!("lib{name}.a");
        self.folders
            .iter()
            .any(|folder| folder.join(&file).is_file())
    }
}

/// SPDK's and DPDK's archives register their modules in constructors that nobody refers to, so they
/// are taken whole. Unbundled, as what is not may be linked twice.
fn kind(name: &str, is_static: bool) -> &'static str {
    let registers = name.starts_with("spdk_") || name.starts_with("rte_");
    match (is_static, registers) {
        (true, true) => "static:+whole-archive,-bundle",
        (true, false) => "static:-bundle",
        (false, _) => "dylib",
    }
}

fn link_archive(path: &Path) {
    let name = path
        .file_stem()
        .and_then(|stem| stem.to_str())
        .and_then(|stem| stem.strip_prefix("lib"));
    let (Some(folder), Some(name)) = (path.parent(), name) else {
        fail(
            &format!("pkg-config names {}, which is no archive", path.display()),
            "look at the .pc files of this SPDK",
        )
    };
    println!("cargo::rustc-link-search=native={}", folder.display());
    println!("cargo::rustc-link-lib=static:-bundle={name}");
}
