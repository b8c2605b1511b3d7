//! Where things are: the tree, its crates, and the caches outside it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::process;

/// The workspace that this `xtask` was built from, wherever it was called from.
pub(crate) struct Workspace {
    root: PathBuf,
    metadata: Value,
}

/// One member of the workspace.
pub(crate) struct Member<'a> {
    pub(crate) name: &'a str,
    /// Folder of the crate.
    pub(crate) folder: PathBuf,
    /// Source file of every target (library, executables, tests, build script), with its kind.
    pub(crate) targets: Vec<(String, PathBuf)>,
    /// Names of normal dependencies, inside and outside the workspace.
    pub(crate) dependencies: Vec<&'a str>,
}

impl Workspace {
    pub(crate) fn find() -> Result<Self> {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        let output = process::capture(
            Command::new(cargo())
                .args([
                    "metadata",
                    "--format-version=1",
                    "--no-deps",
                    "--manifest-path",
                ])
                .arg(manifest),
        )?;
        let metadata: Value =
            serde_json::from_str(&output).context("cargo metadata is not JSON")?;
        let root = metadata["workspace_root"]
            .as_str()
            .context("cargo metadata names no root")?;
        Ok(Self {
            root: PathBuf::from(root),
            metadata,
        })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Where cargo builds, as the caller's environment and configuration say.
    pub(crate) fn target(&self) -> PathBuf {
        match self.metadata["target_directory"].as_str() {
            Some(path) => PathBuf::from(path),
            None => self.root.join("target"),
        }
    }

    /// `cargo ARGUMENTS` from the root.
    pub(crate) fn cargo(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(cargo());
        command.args(arguments).current_dir(&self.root);
        command
    }

    /// Every crate of the workspace.
    pub(crate) fn members(&self) -> Result<Vec<Member<'_>>> {
        let packages = self.metadata["packages"]
            .as_array()
            .context("no packages in metadata")?;
        packages.iter().map(member).collect()
    }

    /// Files of the tree, relative to the root: tracked, or new and not ignored.
    pub(crate) fn files(&self) -> Result<Vec<PathBuf>> {
        let listing = process::capture(
            Command::new("git")
                .args([
                    "ls-files",
                    "-z",
                    "--cached",
                    "--others",
                    "--exclude-standard",
                ])
                .current_dir(&self.root),
        )
        .context("the tidy rules need git to know which files belong to the tree")?;
        let files = listing
            .split('\0')
            .filter(|name| !name.is_empty())
            .map(PathBuf::from);
        Ok(files
            .filter(|path| self.root.join(path).is_file())
            .collect())
    }
}

fn member(package: &Value) -> Result<Member<'_>> {
    let name = package["name"].as_str().context("package without a name")?;
    let manifest = package["manifest_path"]
        .as_str()
        .context("package without a manifest")?;
    let folder = Path::new(manifest)
        .parent()
        .context("manifest without a folder")?
        .to_owned();
    let mut targets = Vec::new();
    for target in package["targets"].as_array().into_iter().flatten() {
        let kind = target["kind"][0].as_str().unwrap_or_default().to_owned();
        let Some(source) = target["src_path"].as_str() else {
            bail!("{name}: target of no file")
        };
        targets.push((kind, PathBuf::from(source)));
    }
    let dependencies = package["dependencies"].as_array().into_iter().flatten();
    // `kind` is null for a normal dependency, "dev" or "build" otherwise.
    let normal = dependencies.filter(|dependency| dependency["kind"].is_null());
    let names = normal
        .filter_map(|dependency| dependency["name"].as_str())
        .collect();
    Ok(Member {
        name,
        folder,
        targets,
        dependencies: names,
    })
}

/// The cargo that runs us, so that a chosen toolchain stays chosen.
fn cargo() -> String {
    std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned())
}

/// A folder for things that outlive a build and are costly to make: tools, kernels, images.
pub(crate) fn cache() -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()) {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?).join(".cache"),
    };
    let folder = base.join("bowline-xtask");
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make the cache folder {}", folder.display()))?;
    Ok(folder)
}
