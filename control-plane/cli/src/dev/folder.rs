//! The folder of `bowline dev`: the drive, the ledger of what was written to it, the
//! data plane's log, and a lock so that two runs cannot meet there.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::ledger::{Ledger, Phase};
use crate::error::CliError;

/// An open and locked folder.
pub(crate) struct Folder {
    path: PathBuf,
    /// True if the folder was not there before.
    made: bool,
    _lock: File,
}

impl Folder {
    /// Opens the folder given, or the default one, and makes it where it is missing.
    pub(crate) fn open(dir: Option<PathBuf>) -> Result<Self, CliError> {
        let path = match dir {
            Some(path) => path,
            None => default_path()?,
        };
        let unusable = |error: io::Error| {
            CliError::failed(format!("folder {} cannot be used", path.display()))
                .cause(error)
                .hint("choose another with --dir")
        };
        let made = !path.exists();
        fs::create_dir_all(&path).map_err(unusable)?;
        let path = path.canonicalize().map_err(unusable)?;
        let lock = File::create(path.join("lock")).map_err(unusable)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
            CliError::failed(format!("folder {} is in use", path.display()))
                .cause("another `bowline dev` runs there")
                .hint("stop it, or choose another folder with --dir")
        })?;
        Ok(Self {
            path,
            made,
            _lock: lock,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The file that stands for a drive.
    pub(crate) fn drive(&self) -> PathBuf {
        self.path.join("drive.img")
    }

    /// Where the data plane's log goes.
    pub(crate) fn log(&self) -> PathBuf {
        self.path.join("dataplane.log")
    }

    fn ledger(&self) -> PathBuf {
        self.path.join("ledger.json")
    }

    /// The ledger of an earlier run, if there is one. A drive without a ledger is not
    /// ours and is never written over.
    pub(crate) fn load(&self) -> Result<Option<(Ledger, Phase)>, CliError> {
        let path = self.ledger();
        let found = Ledger::load(&path).map_err(|error| {
            CliError::failed(format!("{} cannot be read", path.display()))
                .cause(error)
                .hint(format!("delete {} to start anew", self.path.display()))
        })?;
        if found.is_none() && self.drive().exists() {
            return Err(
                CliError::failed(format!("{} is not ours", self.drive().display()))
                    .cause("there is no ledger beside it")
                    .hint("move it away, or choose another folder with --dir"),
            );
        }
        if found.is_some() && !self.drive().exists() {
            return Err(
                CliError::failed(format!("{} is gone", self.drive().display()))
                    .cause("the ledger beside it says that it holds data")
                    .hint(format!("delete {} to start anew", self.path.display())),
            );
        }
        Ok(found)
    }

    /// Writes the ledger.
    pub(crate) fn store(&self, ledger: &Ledger, phase: Phase) -> Result<(), CliError> {
        let path = self.ledger();
        ledger.store(&path, phase).map_err(|error| {
            CliError::failed(format!("{} not written", path.display())).cause(error)
        })
    }

    /// Makes an empty drive, in place of the one there may be.
    pub(crate) fn make_drive(&self, bytes: u64) -> Result<(), CliError> {
        let path = self.drive();
        let made = File::create(&path).and_then(|file| {
            file.set_len(bytes)?;
            file.sync_all()
        });
        made.map_err(|error| {
            CliError::failed(format!("{} not made", path.display()))
                .cause(error)
                .hint("check the free space, or choose another folder with --dir")
        })
    }

    /// Removes what is ours, and the folder too if we made it.
    pub(crate) fn remove(&self) -> Result<(), CliError> {
        // The drive goes before its ledger: a ledger alone is explained, a drive alone is not.
        for path in [
            self.drive(),
            self.ledger(),
            self.log(),
            self.path.join("lock"),
        ] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(
                        CliError::failed(format!("{} not removed", path.display())).cause(error)
                    );
                }
                Ok(()) | Err(_) => {}
            }
        }
        if self.made {
            // Stays if somebody put something there meanwhile.
            let _not_empty = fs::remove_dir(&self.path);
        }
        Ok(())
    }
}

/// `bowline/dev` in the user's state folder.
fn default_path() -> Result<PathBuf, CliError> {
    let named = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let state = named("XDG_STATE_HOME").filter(|path| path.is_absolute());
    let home = named("HOME").map(|home| home.join(".local/state"));
    match state.or(home) {
        Some(state) => Ok(state.join("bowline/dev")),
        None => Err(CliError::usage("no folder to work in")
            .cause("neither XDG_STATE_HOME nor HOME is set")
            .hint("name one with --dir")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_has_one_user_at_a_time() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("dev");
        let first = Folder::open(Some(dir.clone())).unwrap();
        let error = Folder::open(Some(dir.clone())).err().unwrap().to_string();
        assert!(error.contains("another `bowline dev`"), "{error}");
        first.remove().unwrap();
        assert!(!dir.exists());
    }

    #[test]
    fn foreign_drive_is_not_written_over() {
        let parent = tempfile::tempdir().unwrap();
        fs::write(parent.path().join("drive.img"), "precious").unwrap();
        let folder = Folder::open(Some(parent.path().to_owned())).unwrap();
        let error = folder.load().unwrap_err().to_string();
        assert!(error.contains("is not ours"), "{error}");
    }

    #[test]
    fn lost_drive_is_not_a_fresh_start() {
        let parent = tempfile::tempdir().unwrap();
        let folder = Folder::open(Some(parent.path().to_owned())).unwrap();
        assert!(folder.load().unwrap().is_none());
        folder
            .store(&Ledger::new(1, 4096, 8), Phase::Acknowledged)
            .unwrap();
        let error = folder.load().unwrap_err().to_string();
        assert!(error.contains("is gone"), "{error}");
    }
}
