//! The folder: who owns it, what it holds at start, and how a file is replaced.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bowline_nvmf::target::ReservationState;
use rustix::fs::FlockOperation;
use uuid::Uuid;

use super::record::{Record, SubsystemRecord};
use crate::error::StartError;
use crate::takeover::patiently;

/// Says that the folder is ours. It is also what is locked.
const MARKER: &str = "bowline-state";
/// What our other files end with.
const SUFFIX: &str = ".state";
/// What a file ends with while it is written.
const UNFINISHED: &str = ".tmp";
/// The longest file that can be ours: reservations of a full namespace, and some room.
const FILE_BYTES_MAX: u64 = 256 << 10;
/// Files that can be ours: one per subsystem, one per namespace.
const FILES_MAX: usize = 32 << 10;
/// Room for what is not a record: the marker, what is unfinished, what the file system has.
const FILES_BESIDE: usize = 16;

/// A folder that this process owns as long as it is open.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    /// Of the folder, so that two that make it at once cannot both have it; and of the marker,
    /// which file systems of other machines lock for all of them.
    _locks: [File; 2],
    /// Records in it. What is refused at the next start is not written.
    files: Cell<usize>,
}

/// What the folder held.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    pub(crate) subsystems: BTreeMap<String, SubsystemRecord>,
    /// By NQN and NSID: the UUID of the namespace, and its reservations.
    pub(crate) reservations: BTreeMap<(String, u32), Kept>,
}

/// Reservations of the namespace with that UUID.
pub(crate) type Kept = ([u8; 16], ReservationState);

impl Folder {
    /// Opens, or makes in an empty place. May block.
    pub(crate) fn open(path: &Path) -> Result<(Self, Loaded), StartError> {
        let failed = |doing: &'static str| {
            move |source: io::Error| StartError::State {
                path: path.to_owned(),
                cause: format!("cannot {doing}: {source}"),
                hint: "check the folder, its owner and its file system".to_owned(),
            }
        };
        if !path.exists() {
            match DirBuilder::new().mode(0o700).create(path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                made => made,
            }
            .map_err(failed("make it"))?;
            sync_folder(path.parent().unwrap_or(path)).map_err(failed("make it"))?;
        }
        let is_held = |error: &io::Error| error.kind() == io::ErrorKind::WouldBlock;
        let lock = |file: &Path| {
            let file = File::open(file).map_err(failed("open it"))?;
            let try_lock = || {
                rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)
                    .map_err(io::Error::from)
            };
            match patiently(is_held, try_lock) {
                Ok(()) => Ok(file),
                Err(source) if is_held(&source) => Err(StartError::State {
                    path: path.to_owned(),
                    cause: "another data plane uses it".to_owned(),
                    hint: "give every data plane a --state folder of its own".to_owned(),
                }),
                Err(source) => Err(failed("lock it")(source)),
            }
        };
        if !path.is_dir() {
            // Says why it cannot be listed.
            refuse_strangers(path)?;
        }
        let whole = lock(path)?;
        let marker = path.join(MARKER);
        if !marker.exists() {
            refuse_strangers(path)?;
            replace(path, MARKER, &Record::Marker.encode()).map_err(failed("write to it"))?;
        }
        let _locks = [whole, lock(&marker)?];
        let loaded = load(path)?;
        let path = path.to_owned();
        let files = Cell::new(loaded.subsystems.len() + loaded.reservations.len());
        let folder = Self {
            path,
            _locks,
            files,
        };
        Ok((folder, loaded))
    }

    pub(super) fn write(&self, record: &Record) -> io::Result<()> {
        let name = match record {
            Record::Marker => MARKER.to_owned(),
            Record::Subsystem(it) => subsystem_name(&it.nqn),
            Record::Reservations(it) => reservation_name(&it.nqn, it.nsid),
        };
        let is_new = !self.path.join(&name).exists();
        let files = self.files.get();
        if is_new && files >= FILES_MAX - FILES_BESIDE {
            return Err(io::Error::other(format!("there are {files} files already")));
        }
        replace(&self.path, &name, &record.encode())?;
        self.files.set(files + usize::from(is_new));
        Ok(())
    }

    /// Removes the reservations of a namespace; if that cannot be made durable, they stay.
    pub(super) fn remove_reservations(&self, nqn: &str, nsid: u32) -> io::Result<()> {
        let name = reservation_name(nqn, nsid);
        let (file, unfinished) = (
            self.path.join(&name),
            self.path.join(format!("{name}{UNFINISHED}")),
        );
        let Some(before) = read_if_there(&file)? else {
            return Ok(());
        };
        fs::remove_file(&file)?;
        sync_folder(&self.path).inspect_err(|_| put_back(&file, &unfinished, Some(&before)))?;
        self.note_removed();
        Ok(())
    }

    /// Removes the reservations of namespaces that are gone, as far as there are some.
    pub(super) fn forget_reservations(&self, nqn: &str, nsids: &[u32]) -> io::Result<()> {
        for nsid in nsids {
            match fs::remove_file(self.path.join(reservation_name(nqn, *nsid))) {
                Ok(()) => self.note_removed(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        sync_folder(&self.path)
    }

    fn note_removed(&self) {
        self.files.set(self.files.get().saturating_sub(1));
    }
}

/// NQNs may hold characters that file names should not.
fn subsystem_name(nqn: &str) -> String {
    named("subsystem", nqn, 0)
}

fn reservation_name(nqn: &str, nsid: u32) -> String {
    named("reservations", nqn, nsid)
}

fn named(kind: &str, nqn: &str, nsid: u32) -> String {
    let hash = Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{nqn}\0{nsid}").as_bytes());
    format!("{kind}-{}{SUFFIX}", hash.simple())
}

/// A folder that holds something else is not taken for ours.
fn refuse_strangers(path: &Path) -> Result<(), StartError> {
    let stranger = fs::read_dir(path)
        .map(|mut entries| {
            entries.find_map(|entry| {
                let name = entry.ok()?.file_name().into_string().unwrap_or_default();
                // What a new file system has, and what a first start that was killed left behind.
                let harmless = name == "lost+found" || name == format!("{MARKER}{UNFINISHED}");
                (!harmless).then_some(name)
            })
        })
        .map_err(|source| StartError::State {
            path: path.to_owned(),
            cause: format!("cannot list it: {source}"),
            hint: "give a folder".to_owned(),
        })?;
    match stranger {
        None => Ok(()),
        Some(name) => Err(StartError::State {
            path: path.to_owned(),
            cause: format!("it holds {name:?} and nothing of a data plane"),
            hint: "give an empty folder, or one that does not exist yet".to_owned(),
        }),
    }
}

/// Reads every file of ours; what is left of unfinished ones is removed.
fn load(path: &Path) -> Result<Loaded, StartError> {
    let mut loaded = Loaded::default();
    let unreadable = |source: io::Error| StartError::State {
        path: path.to_owned(),
        cause: format!("cannot list it: {source}"),
        hint: "check the folder, its owner and its file system".to_owned(),
    };
    for (count, entry) in fs::read_dir(path).map_err(unreadable)?.enumerate() {
        let name = entry.map_err(unreadable)?.file_name();
        let (file, name) = (path.join(&name), name.to_string_lossy().into_owned());
        if count >= FILES_MAX {
            return Err(StartError::State {
                path: path.to_owned(),
                cause: format!("it holds more than {FILES_MAX} files"),
                hint: "give a folder that only data planes write to".to_owned(),
            });
        }
        if name.ends_with(&format!("{SUFFIX}{UNFINISHED}")) {
            // It was never finished, so nobody was told that it is there.
            let _it_does_no_harm = fs::remove_file(&file);
        } else if name.ends_with(SUFFIX) || name == MARKER {
            let record = read(&file)
                .and_then(|bytes| Record::decode(&bytes).map_err(|error| error.to_string()));
            let misplaced = || damaged(&file, "it is not what its name says");
            match record.map_err(|cause| damaged(&file, &cause))? {
                Record::Marker if name == MARKER => {}
                Record::Subsystem(it) if name == subsystem_name(&it.nqn) => {
                    loaded.subsystems.insert(it.nqn.clone(), it);
                }
                Record::Reservations(it) if name == reservation_name(&it.nqn, it.nsid) => {
                    let state = ReservationState::decode(&it.image)
                        .map_err(|error| damaged(&file, &error.to_string()))?;
                    let kept = (it.uuid, state);
                    loaded.reservations.insert((it.nqn, it.nsid), kept);
                }
                _ => return Err(misplaced()),
            }
        }
    }
    Ok(loaded)
}

fn read(file: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    File::open(file)
        .and_then(|opened| opened.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(|error| format!("it cannot be read: {error}"))?;
    match u64::try_from(bytes.len()) {
        Ok(length) if length <= FILE_BYTES_MAX => Ok(bytes),
        _ => Err("it is too long".to_owned()),
    }
}

/// What such a file meant is not known, so nothing is served before somebody has looked.
pub(super) fn damaged(file: &Path, cause: &str) -> StartError {
    StartError::State {
        path: file.to_owned(),
        cause: cause.to_owned(),
        hint: "put back a copy of it, or move it away: the reservations or counters that it held \
               are then forgotten"
            .to_owned(),
    }
}

/// Replaces a file, or makes it: all of it or nothing, on stable media when this returns.
fn replace(folder: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let (file, unfinished) = (
        folder.join(name),
        folder.join(format!("{name}{UNFINISHED}")),
    );
    let written = write_synced(&unfinished, bytes).and_then(|()| {
        let before = read_if_there(&file)?;
        fs::rename(&unfinished, &file)?;
        sync_folder(folder).inspect_err(|_| put_back(&file, &unfinished, before.as_deref()))
    });
    if written.is_err() {
        // The first failure is what counts.
        let _gone_or_not = fs::remove_file(&unfinished);
    }
    written
}

fn read_if_there(file: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        found => found.map(Some),
    }
}

/// Nobody will be told that the new content is there, so the old one should be. What fails here
/// (the disk may be full) leaves the new content whole, never a part of the old.
fn put_back(file: &Path, unfinished: &Path, before: Option<&[u8]>) {
    let outcome = match before {
        Some(bytes) => write_synced(unfinished, bytes).and_then(|()| fs::rename(unfinished, file)),
        None => fs::remove_file(file),
    };
    if let Err(error) = outcome {
        tracing::error!(file = %file.display(), %error, "state is newer than was acknowledged");
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn sync_folder(path: &Path) -> io::Result<()> {
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::super::record::ReservationRecord;
    use super::*;

    const NQN: &str = "nqn.2026-11.io.bowline:test:a";

    fn reservations(generation: u32) -> Record {
        let state = ReservationState {
            generation,
            persistent: true,
            ..ReservationState::default()
        };
        Record::Reservations(ReservationRecord {
            nqn: NQN.to_owned(),
            nsid: 1,
            uuid: [1; 16],
            image: state.encode(),
        })
    }

    fn generation(loaded: &Loaded) -> Option<u32> {
        let found = loaded.reservations.get(&(NQN.to_owned(), 1));
        found.map(|(_, state)| state.generation)
    }

    fn refused(path: &Path) -> String {
        let error = Folder::open(path).map(|_| ()).unwrap_err();
        format!("{error}: {}; {}", error.cause(), error.hint())
    }

    #[test]
    fn what_was_written_last_is_found_and_what_was_removed_is_not() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("state");
        let (folder, loaded) = Folder::open(&path).unwrap();
        assert_eq!(generation(&loaded), None);
        folder.write(&reservations(1)).unwrap();
        folder.write(&reservations(2)).unwrap();
        drop(folder);
        let (folder, loaded) = Folder::open(&path).unwrap();
        assert_eq!(generation(&loaded), Some(2));
        folder.remove_reservations(NQN, 1).unwrap();
        folder.remove_reservations(NQN, 1).unwrap();
        folder.forget_reservations(NQN, &[1, 2]).unwrap();
        drop(folder);
        assert_eq!(generation(&Folder::open(&path).unwrap().1), None);
    }

    #[test]
    fn write_that_was_cut_off_leaves_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let (opened, _) = Folder::open(folder.path()).unwrap();
        opened.write(&reservations(1)).unwrap();
        drop(opened);
        let name = format!("{}{UNFINISHED}", reservation_name(NQN, 1));
        let unfinished = folder.path().join(name);
        fs::write(&unfinished, &reservations(2).encode()[..20]).unwrap();
        let (opened, loaded) = Folder::open(folder.path()).unwrap();
        assert_eq!(generation(&loaded), Some(1));
        assert!(!unfinished.exists());
        // Nor does one that cannot even begin.
        fs::create_dir(&unfinished).unwrap();
        opened.write(&reservations(3)).unwrap_err();
        drop(opened);
        assert_eq!(generation(&Folder::open(folder.path()).unwrap().1), Some(1));
    }

    #[test]
    fn foreign_folders_and_files_are_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let stranger = folder.path().join("thesis");
        fs::write(&stranger, b"all of it").unwrap();
        assert!(refused(folder.path()).contains("\"thesis\""));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(refused(&stranger).contains("cannot list it"));

        fs::remove_file(&stranger).unwrap();
        drop(Folder::open(folder.path()).unwrap());
        let ours = folder.path().join(reservation_name(NQN, 1));
        fs::write(&ours, b"all of it").unwrap();
        assert!(refused(folder.path()).contains("not written by a data plane"));
        assert_eq!(fs::read(&ours).unwrap(), b"all of it");
    }

    #[test]
    fn damaged_newer_and_misplaced_files_are_refused_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        drop(Folder::open(folder.path()).unwrap());
        let file = folder.path().join(reservation_name(NQN, 1));
        let mut damaged = reservations(1).encode();
        damaged[30] ^= 1;
        let mut newer = reservations(1).encode();
        newer[8] = 9;
        let misplaced = Record::Marker.encode();
        let long = vec![0; usize::try_from(FILE_BYTES_MAX).unwrap() + 1];
        for (bytes, expected) in [
            (&damaged, "checksum is wrong"),
            (&newer, "version 9"),
            (&misplaced, "not what its name says"),
            (&long, "too long"),
        ] {
            fs::write(&file, bytes).unwrap();
            let said = refused(folder.path());
            assert!(said.contains(expected), "{said}");
            assert!(said.contains("move it away"), "{said}");
            assert_eq!(&fs::read(&file).unwrap(), bytes);
        }
    }

    #[test]
    fn content_is_put_back_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let (file, unfinished) = (folder.path().join("a"), folder.path().join("a.tmp"));
        fs::write(&file, b"new").unwrap();
        put_back(&file, &unfinished, Some(b"old"));
        assert_eq!(fs::read(&file).unwrap(), b"old");
        // Nowhere to write it to: what is there stays as it is.
        fs::create_dir(&unfinished).unwrap();
        put_back(&file, &unfinished, Some(b"older"));
        assert_eq!(fs::read(&file).unwrap(), b"old");
        put_back(&file, &unfinished, None);
        assert!(!file.exists());
    }

    #[test]
    fn of_many_that_make_a_folder_at_once_one_has_it() {
        for _ in 0..3 {
            let parent = tempfile::tempdir().unwrap();
            let path = &parent.path().join("state");
            let users: Vec<_> = std::thread::scope(|scope| {
                let open = || Folder::open(path).map(|(folder, _)| folder);
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(open)).collect();
                let joined = threads.into_iter().map(|it| it.join().unwrap());
                joined.collect()
            });
            assert_eq!(users.iter().filter(|it| it.is_ok()).count(), 1);
        }
    }

    #[test]
    fn no_more_is_written_than_the_next_start_takes() {
        let folder = tempfile::tempdir().unwrap();
        let (opened, _) = Folder::open(folder.path()).unwrap();
        opened.write(&reservations(1)).unwrap();
        opened.files.set(FILES_MAX - FILES_BESIDE);
        opened.write(&reservations(2)).unwrap();
        opened.remove_reservations(NQN, 1).unwrap();
        opened.write(&reservations(3)).unwrap();
        let other = SubsystemRecord {
            nqn: NQN.to_owned(),
            ..SubsystemRecord::default()
        };
        opened.write(&Record::Subsystem(other)).unwrap_err();
        drop(opened);
        assert_eq!(generation(&Folder::open(folder.path()).unwrap().1), Some(3));
    }

    #[test]
    fn folder_has_one_user() {
        let folder = tempfile::tempdir().unwrap();
        let _user = Folder::open(folder.path()).unwrap();
        assert!(refused(folder.path()).contains("another data plane"));
    }
}
