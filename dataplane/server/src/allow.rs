//! Which paths the management API may open: those on the list given at start, and
//! what lies under them. Symbolic links are followed before comparing, so a link
//! under an allowed folder leads nowhere else.

use std::io;
use std::path::{Component, Path, PathBuf};

use bowline_api::{Failure, Reason};

use crate::error::StartError;

/// The list given at start, without symbolic links.
#[derive(Debug, Clone, Default)]
pub(crate) struct AllowList {
    roots: Vec<PathBuf>,
}

impl AllowList {
    pub(crate) fn new(paths: &[PathBuf]) -> Result<Self, StartError> {
        let resolve = |path: &PathBuf| {
            path.canonicalize().map_err(|source| {
                StartError::config(
                    format!("--allow-path {} is not usable: {source}", path.display()),
                    "name a path that exists",
                )
            })
        };
        Ok(Self {
            roots: paths.iter().map(resolve).collect::<Result<_, _>>()?,
        })
    }

    pub(crate) fn roots(&self) -> &[PathBuf] {
        &self.roots
    }

    /// The real path behind an allowed one; it is what must be opened. May block.
    pub(crate) fn resolve(&self, path: &Path) -> Result<PathBuf, Failure> {
        // With ".." a path could begin like an allowed one and lead elsewhere.
        if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
            let message = format!("path {path:?} is not absolute, or holds \"..\"");
            return Err(Failure::invalid_field("namespace.backing.path", message));
        }
        let real = path.canonicalize();
        // Whether a path outside exists is nobody's business: both answers are one.
        let allowed = |real: &PathBuf| self.roots.iter().any(|root| real.starts_with(root));
        match real {
            Ok(real) if allowed(&real) => Ok(real),
            Err(error) if self.roots.iter().any(|root| path.starts_with(root)) => {
                Err(unusable(path, &error))
            }
            _ => Err(Failure::new(
                Reason::PathNotAllowed,
                format!("{} may not be opened", path.display()),
            )
            .cause("it is not on the list that the data plane was started with")
            .hint("start the data plane with --allow-path for it or a folder above it")),
        }
    }
}

fn unusable(path: &Path, error: &io::Error) -> Failure {
    let message = format!("{} cannot be opened", path.display());
    Failure::new(Reason::BackingUnusable, message)
        .cause(error.to_string())
        .hint("check the path")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn only_what_lies_under_the_list_is_allowed() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let inside = root.join("inside");
        let outside = root.join("outside");
        fs::create_dir(&inside).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(inside.join("disk"), b"").unwrap();
        fs::write(outside.join("disk"), b"").unwrap();
        std::os::unix::fs::symlink(outside.join("disk"), inside.join("link")).unwrap();
        let list = AllowList::new(std::slice::from_ref(&inside)).unwrap();
        let check = |path: PathBuf| list.resolve(&path).map_err(|f| f.reason);

        assert_eq!(check(inside.join("disk")), Ok(inside.join("disk")));
        assert_eq!(check(outside.join("disk")), Err(Reason::PathNotAllowed));
        assert_eq!(check(inside.join("link")), Err(Reason::PathNotAllowed));
        assert_eq!(
            check(inside.join("../outside/disk")),
            Err(Reason::InvalidField)
        );
        assert_eq!(check(outside.join("absent")), Err(Reason::PathNotAllowed));
        assert_eq!(check(inside.join("absent")), Err(Reason::BackingUnusable));
        assert_eq!(check(PathBuf::from("disk")), Err(Reason::InvalidField));
    }

    #[test]
    fn nothing_is_allowed_by_default() {
        let reason = AllowList::default()
            .resolve(Path::new("/dev/null"))
            .unwrap_err()
            .reason;
        assert_eq!(reason, Reason::PathNotAllowed);
    }
}
