//! Where SPDK is and what has to be linked, as pkg-config tells it.

use std::env;
use std::path::{Path, PathBuf};

use pkg_config::Library;

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

/// The shim, where SPDK is linked shared.
const SHARED_SHIM: &str = "bowline_spdk_shim";

const HELP: &str = "the feature `spdk` is optional; leave it out, or install SPDK 24.01 or later and set \
                    PKG_CONFIG_PATH to the folder of its .pc files (build/lib/pkgconfig in its source \
                    tree)";

pub(crate) struct Spdk {
    found: Library,
    wants: Wants,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wants {
    Anything,
    Static,
    Shared,
}

pub(crate) fn find() -> Spdk {
    println!("cargo::rerun-if-env-changed={LINK_VARIABLE}");
    let wants = match env::var(LINK_VARIABLE).unwrap_or_default().as_str() {
        "" => Wants::Anything,
        "static" => Wants::Static,
        "shared" => Wants::Shared,
        other => fail(
            &format!("{LINK_VARIABLE} is {other:?}"),
            "it is `static`, `shared` or not set",
        ),
    };
    // All at once: pkg-config knows their order. It follows the usual variables, those for a target
    // included, and refuses to guess for another machine than this.
    let found = pkg_config::Config::new()
        .statik(true)
        .cargo_metadata(false)
        // What lies in the system's own folders is linked as the linker finds it.
        .print_system_libs(false)
        .probe(&PACKAGES.join(" "));
    match found {
        Ok(found) => Spdk { found, wants },
        Err(pkg_config::Error::CrossCompilation) => fail(
            "SPDK was not looked for: the target is another machine",
            "say where its SPDK is with PKG_CONFIG_SYSROOT_DIR and PKG_CONFIG_PATH, or set PKG_CONFIG to \
             a pkg-config for it",
        ),
        Err(error) => fail(&format!("SPDK was not found: {}", one_line(&error)), HELP),
    }
}

/// Without the hints that pkg-config's crate adds for those who develop with it.
fn one_line(error: &pkg_config::Error) -> String {
    let text = match error {
        pkg_config::Error::Failure { output, .. }
        | pkg_config::Error::ProbeFailure { output, .. } => {
            String::from_utf8_lossy(&output.stderr).into_owned()
        }
        other => other.to_string(),
    };
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines
        .next()
        .unwrap_or("pkg-config does not say why")
        .to_owned()
}

impl Spdk {
    /// Folders of headers.
    pub(crate) fn includes(&self) -> &[PathBuf] {
        &self.found.include_paths
    }

    /// A new build or another SPDK at the same place is a reason to build again.
    pub(crate) fn watch(&self) {
        for package in PACKAGES {
            if let Ok(folder) = pkg_config::get_variable(package, "pcfiledir") {
                println!("cargo::rerun-if-changed={folder}/{package}.pc");
            }
        }
        for name in self.modules() {
            for file in [format!("lib{name}.a"), format!("lib{name}.so")] {
                if let Some(path) = self.file(&file) {
                    println!("cargo::rerun-if-changed={}", path.display());
                }
            }
        }
    }

    /// Compiles the shim with what it needs behind it, and tells cargo what to link.
    pub(crate) fn compile(&self, compiler: &cc::Build, out: &Path) {
        if self.is_static() {
            // Before its libraries: what it needs follows it on the linker's command line.
            compiler.compile("bowline_shim");
            self.link_archives();
        } else {
            self.link_shared(compiler, out);
        }
    }

    fn is_static(&self) -> bool {
        let (kind, other, help) = match self.wants {
            // DPDK may be shared all the same: its libraries are found where the system has them.
            Wants::Anything => return self.spdk().all(|name| self.has(name, "a")),
            Wants::Static => ("a", true, "install SPDK's archives, or link it shared"),
            Wants::Shared => (
                "so",
                false,
                "build SPDK with --with-shared, or link it static",
            ),
        };
        if let Some(missing) = self.spdk().find(|name| !self.has(name, kind)) {
            let what = format!("there is no lib{missing}.{kind}, which {LINK_VARIABLE} asks for");
            fail(&what, help)
        }
        other
    }

    fn link_archives(&self) {
        for folder in &self.found.link_paths {
            println!("cargo::rustc-link-search=native={}", folder.display());
        }
        for name in &self.found.libs {
            // SPDK's and DPDK's archives register their modules in constructors that nobody refers
            // to, so they are taken whole. Unbundled, as what is not may be linked twice.
            let kind = match (self.has(name, "a"), registers(name)) {
                (true, true) => "static:+whole-archive,-bundle",
                (true, false) => "static:-bundle",
                (false, _) => "dylib",
            };
            println!("cargo::rustc-link-lib={kind}={name}");
        }
        for file in &self.found.link_files {
            link_archive(file);
        }
    }

    /// The shim becomes a shared library that needs all of SPDK's. Linked to the program, those that
    /// nothing refers to (modules are such) would be left out, as rustc tells the linker to, and what
    /// SPDK's own libraries need without saying so would be missing.
    fn link_shared(&self, compiler: &cc::Build, out: &Path) {
        let file = format!("lib{SHARED_SHIM}.so");
        let mut link = compiler.get_compiler().to_command();
        link.arg("-shared").arg(format!("-Wl,-soname,{file}"));
        link.arg("-o").arg(out.join(&file));
        link.args(compiler.clone().pic(true).compile_intermediates());
        link.arg("-Wl,--no-as-needed");
        for folder in &self.found.link_paths {
            link.arg("-L").arg(folder);
            link.arg(format!("-Wl,-rpath,{}", folder.display()));
        }
        link.args(self.found.libs.iter().map(|name| format!("-l{name}")));
        link.args(&self.found.link_files);
        match link.output() {
            Ok(output) if output.status.success() => {}
            Ok(output) => fail(
                &format!(
                    "{file} was not linked: {}",
                    String::from_utf8_lossy(&output.stderr)
                ),
                "look at the .pc files of this SPDK",
            ),
            Err(error) => fail(
                &format!("the compiler could not be started: {error}"),
                "install a C compiler, or set CC",
            ),
        }
        println!("cargo::rustc-link-search=native={}", out.display());
        println!("cargo::rustc-link-lib=dylib={SHARED_SHIM}");
    }

    fn spdk(&self) -> impl Iterator<Item = &str> {
        self.modules().filter(|name| name.starts_with("spdk_"))
    }

    fn modules(&self) -> impl Iterator<Item = &str> {
        let names = self.found.libs.iter().map(String::as_str);
        names.filter(|name| registers(name))
    }

    fn has(&self, name: &str, extension: &str) -> bool {
        self.file(&format!("lib{name}.{extension}")).is_some()
    }

    fn file(&self, name: &str) -> Option<PathBuf> {
        let folders = self.found.link_paths.iter();
        folders
            .map(|folder| folder.join(name))
            .find(|path| path.is_file())
    }
}

/// What pkg-config names by its path.
fn link_archive(path: &Path) {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .and_then(|name| name.strip_prefix("lib")?.strip_suffix(".a"));
    let (Some(folder), Some(name)) = (path.parent(), name) else {
        fail(
            &format!("pkg-config names {}, which is no archive", path.display()),
            "look at the .pc files of this SPDK",
        )
    };
    println!("cargo::rustc-link-search=native={}", folder.display());
    println!("cargo::rustc-link-lib=static:-bundle={name}");
}

fn registers(name: &str) -> bool {
    name.starts_with("spdk_") || name.starts_with("rte_")
}
