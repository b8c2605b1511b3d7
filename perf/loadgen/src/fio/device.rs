//! What the jobs run on, and whether it may be written to: never while it is in use, and only when
//! it was said that its content may go.

use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{Mode, OFlags, major, minor};
use serde::{Deserialize, Serialize};

use crate::error::PerfError;

/// A block device or a plain file.
#[derive(Debug, Serialize)]
pub(super) struct Device {
    /// Without symbolic links.
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    /// What the drive calls itself.
    pub(super) model: Option<String>,
    #[serde(skip)]
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// With its number, such as (259, 3).
    Block(Number),
    File,
}

type Number = (u32, u32);

/// Nobody mounts or claims the device while this is held.
#[derive(Debug)]
pub(super) struct Claim {
    _exclusive: Option<OwnedFd>,
}

/// What the kernel tells of devices, as folders and files.
struct Sources<'a> {
    sys: &'a Path,
    mountinfo: &'a str,
    swaps: &'a str,
}

impl Device {
    pub(super) fn open(path: &Path) -> Result<Self, PerfError> {
        let unusable = |cause: &dyn std::fmt::Display| {
            PerfError::failed(format!("cannot use {}", path.display())).cause(cause)
        };
        let path = fs::canonicalize(path).map_err(|error| {
            unusable(&error)
                .hint("give a disk such as /dev/nvme1n1, or a file: truncate -s 1G FILE")
        })?;
        let metadata = fs::metadata(&path).map_err(|error| unusable(&error))?;
        let kind = if metadata.file_type().is_block_device() {
            Kind::Block((major(metadata.rdev()), minor(metadata.rdev())))
        } else if metadata.is_file() {
            Kind::File
        } else {
            return Err(unusable(&"it is neither a block device nor a plain file"));
        };
        let end = File::open(&path).and_then(|mut file| file.seek(SeekFrom::End(0)));
        let bytes = end.map_err(|error| unusable(&error).hint("block devices want root"))?;
        if bytes == 0 {
            return Err(
                unusable(&"it has no bytes").hint("give a file a size: truncate -s 1G FILE")
            );
        }
        let model = match kind {
            Kind::Block(number) => model(Path::new("/sys"), number),
            Kind::File => None,
        };
        Ok(Self {
            path,
            bytes,
            model,
            kind,
        })
    }

    /// As fio's `filename` wants it: there a colon stands between two names.
    pub(super) fn fio_name(&self) -> std::ffi::OsString {
        use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
        let mut name = Vec::new();
        for byte in self.path.as_os_str().as_bytes() {
            if matches!(byte, b':' | b'\\') {
                name.push(b'\\');
            }
            name.push(*byte);
        }
        std::ffi::OsString::from_vec(name)
    }

    /// Makes sure that nobody uses the device, and that nobody begins to.
    pub(super) fn claim(&self) -> Result<Claim, PerfError> {
        let in_use = |cause: String| {
            PerfError::failed(format!(
                "{} is in use and is not written to",
                self.path.display()
            ))
            .cause(cause)
            .hint("unmount it, or take it out of what holds it; --destroy does not help here")
        };
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let (mountinfo, swaps) = (read("/proc/self/mountinfo"), read("/proc/swaps"));
        let users = self.users(&Sources {
            sys: Path::new("/sys"),
            mountinfo: &mountinfo,
            swaps: &swaps,
        });
        if !users.is_empty() {
            return Err(in_use(users.join(", ")));
        }
        if self.kind == Kind::File {
            return Ok(Claim { _exclusive: None });
        }
        // The kernel's own answer covers what we did not think of, and holds until the claim ends.
        let flags = OFlags::RDWR | OFlags::EXCL | OFlags::CLOEXEC;
        match rustix::fs::open(&self.path, flags, Mode::empty()) {
            Ok(exclusive) => Ok(Claim {
                _exclusive: Some(exclusive),
            }),
            Err(rustix::io::Errno::BUSY) => {
                Err(in_use("the kernel says that it is busy".to_owned()))
            }
            Err(error) => Err(PerfError::failed(format!(
                "cannot write to {}",
                self.path.display()
            ))
            .cause(error)),
        }
    }

    /// Who uses the device or a partition of it.
    fn users(&self, sources: &Sources<'_>) -> Vec<String> {
        let mut users = Vec::new();
        if let Kind::Block(number) = self.kind {
            let folder = sources
                .sys
                .join(format!("dev/block/{}:{}", number.0, number.1));
            for folder in partitions(&folder).into_iter().chain([folder]) {
                let holders = entries(&folder.join("holders"));
                users.extend(
                    holders
                        .iter()
                        .map(|name| format!("held by {}", name.display())),
                );
                let number = fs::read_to_string(folder.join("dev")).unwrap_or_default();
                users.extend(mounts(sources.mountinfo, number.trim()));
            }
            users.extend(swap(sources.swaps, |path| is_or_is_part_of(path, number)));
        } else {
            users.extend(swap(sources.swaps, |path| path == self.path));
            for name in entries(&sources.sys.join("block")) {
                let backing = sources
                    .sys
                    .join("block")
                    .join(&name)
                    .join("loop/backing_file");
                let backing = fs::read_to_string(backing).unwrap_or_default();
                if Path::new(backing.trim_end()) == self.path {
                    users.push(format!("behind {}", name.display()));
                }
            }
        }
        users
    }

    /// The file system, partition table or the like that is on it, in words.
    pub(super) fn content(&self) -> String {
        let mut command = Command::new("wipefs");
        command
            .args(["--no-act", "--json"])
            .arg(&self.path)
            .env("LC_ALL", "C");
        let output = command
            .output()
            .ok()
            .filter(|output| output.status.success());
        let signatures = output.and_then(|output| signatures(&output.stdout));
        match signatures.as_deref() {
            None => "what is on it is not known: wipefs of util-linux cannot tell".to_owned(),
            Some([]) => "no file system or partition table is on it".to_owned(),
            Some(found) => format!("on it: {}", found.join(", ")),
        }
    }
}

#[derive(Deserialize)]
struct Wipefs {
    signatures: Vec<Signature>,
}

#[derive(Deserialize)]
struct Signature {
    #[serde(rename = "type")]
    kind: String,
}

fn signatures(output: &[u8]) -> Option<Vec<String>> {
    if output.trim_ascii().is_empty() {
        return Some(Vec::new());
    }
    let parsed: Wipefs = serde_json::from_slice(output).ok()?;
    let mut kinds: Vec<String> = parsed
        .signatures
        .into_iter()
        .map(|found| found.kind)
        .collect();
    // A partition table is found at both ends of a disk.
    kinds.sort();
    kinds.dedup();
    Some(kinds)
}

fn model(sys: &Path, (major, minor): Number) -> Option<String> {
    let folder = sys.join(format!("dev/block/{major}:{minor}"));
    let text = fs::read_to_string(folder.join("device/model")).ok()?;
    Some(text.trim().to_owned()).filter(|model| !model.is_empty())
}

/// Folders of the partitions below the folder of a disk.
fn partitions(disk: &Path) -> Vec<PathBuf> {
    let below = entries(disk).into_iter().map(|name| disk.join(name));
    below
        .filter(|folder| folder.join("partition").exists())
        .collect()
}

/// Names in a folder; none if there is no such folder.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| PathBuf::from(entry.file_name()))
        .collect()
}

/// Where the device with this number (`259:3`) is mounted.
fn mounts(mountinfo: &str, number: &str) -> Vec<String> {
    let of_line = |line: &str| {
        let mut fields = line.split(' ').skip(2);
        let matches = fields.next()? == number;
        let place = fields.nth(1)?;
        matches.then(|| format!("mounted at {place}"))
    };
    mountinfo.lines().filter_map(of_line).collect()
}

fn swap(swaps: &str, is_it: impl Fn(&Path) -> bool) -> Option<String> {
    let mut paths = swaps
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().next());
    paths
        .any(|path| is_it(Path::new(path)))
        .then(|| "used as swap".to_owned())
}

/// Whether `path` is the disk `number` or a partition of it.
fn is_or_is_part_of(path: &Path, number: Number) -> bool {
    let Ok(metadata) = fs::metadata(path) else {
        return false;
    };
    let other = (major(metadata.rdev()), minor(metadata.rdev()));
    let disk = PathBuf::from(format!("/sys/dev/block/{}:{}", number.0, number.1));
    let parts = partitions(&disk).into_iter();
    let mut parts = parts.filter_map(|part| fs::read_to_string(part.join("dev")).ok());
    other == number || parts.any(|part| part.trim() == format!("{}:{}", other.0, other.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &str = "\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 259:4 /sub /mnt/data rw,noatime shared:1 - xfs /dev/nvme0n1p1 rw\n";
    const SWAPS: &str = "Filename\tType\tSize\tUsed\tPriority\n/swap.img  file  1000  0  -2\n";

    fn block(number: Number) -> Device {
        Device {
            path: PathBuf::from("/dev/made-up"),
            bytes: 1,
            model: None,
            kind: Kind::Block(number),
        }
    }

    /// A disk 259:3 with a partition 259:4.
    fn sysfs() -> tempfile::TempDir {
        let sys = tempfile::tempdir().unwrap();
        let disk = sys.path().join("dev/block/259:3");
        for folder in ["holders", "device", "made-up1/holders"] {
            fs::create_dir_all(disk.join(folder)).unwrap();
        }
        fs::write(disk.join("dev"), "259:3\n").unwrap();
        fs::write(disk.join("device/model"), "Bowline  \n").unwrap();
        fs::write(disk.join("made-up1/partition"), "1\n").unwrap();
        fs::write(disk.join("made-up1/dev"), "259:4\n").unwrap();
        sys
    }

    fn users(device: &Device, sys: &Path, mountinfo: &str) -> Vec<String> {
        device.users(&Sources {
            sys,
            mountinfo,
            swaps: SWAPS,
        })
    }

    #[test]
    fn mounted_partition_makes_its_disk_used() {
        let sys = sysfs();
        let used = users(&block((259, 3)), sys.path(), MOUNTINFO);
        assert_eq!(used, ["mounted at /mnt/data"]);
        assert!(users(&block((259, 3)), sys.path(), "").is_empty());
        assert!(users(&block((259, 5)), sys.path(), MOUNTINFO).is_empty());
    }

    #[test]
    fn holders_of_disk_and_partition_are_named() {
        let sys = sysfs();
        let disk = sys.path().join("dev/block/259:3");
        fs::create_dir(disk.join("holders/md0")).unwrap();
        fs::create_dir(disk.join("made-up1/holders/dm-1")).unwrap();
        let mut used = users(&block((259, 3)), sys.path(), "");
        used.sort();
        assert_eq!(used, ["held by dm-1", "held by md0"]);
    }

    #[test]
    fn file_behind_a_loop_device_or_used_as_swap_is_used() {
        let sys = tempfile::tempdir().unwrap();
        let folder = sys.path().join("block/loop7/loop");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("backing_file"), "/images/a\n").unwrap();
        let file = |path: &str| Device {
            path: PathBuf::from(path),
            kind: Kind::File,
            ..block((0, 0))
        };
        assert_eq!(users(&file("/images/a"), sys.path(), ""), ["behind loop7"]);
        assert_eq!(users(&file("/swap.img"), sys.path(), ""), ["used as swap"]);
        assert!(users(&file("/images/b"), sys.path(), MOUNTINFO).is_empty());
    }

    #[test]
    fn model_is_what_the_drive_says() {
        let sys = sysfs();
        assert_eq!(model(sys.path(), (259, 3)).as_deref(), Some("Bowline"));
        assert_eq!(model(sys.path(), (259, 4)), None);
    }

    #[test]
    fn signatures_are_read_once_each() {
        let output = br#"{"signatures": [
            {"device":"f","offset":"0x200","type":"gpt","uuid":null,"label":null},
            {"device":"f","offset":"0xffe00","type":"gpt","uuid":null,"label":null},
            {"device":"f","offset":"0x1fe","type":"PMBR","uuid":null,"label":null}]}"#;
        assert_eq!(signatures(output).unwrap(), ["PMBR", "gpt"]);
        assert!(signatures(b" \n").unwrap().is_empty());
        assert!(signatures(b"{\"signatures\": [ ]}").unwrap().is_empty());
        assert!(signatures(b"wipefs: no").is_none());
    }

    #[test]
    fn only_files_with_bytes_and_block_devices_are_used() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a:b");
        let refused = |path: &Path| Device::open(path).unwrap_err().to_string();
        assert!(refused(&path).contains("truncate -s 1G"));
        assert!(refused(folder.path()).contains("neither"));
        let file = File::create(&path).unwrap();
        assert!(refused(&path).contains("no bytes"));
        file.set_len(4096).unwrap();
        let device = Device::open(&path).unwrap();
        assert_eq!(device.bytes, 4096);
        assert!(device.fio_name().to_str().unwrap().ends_with("a\\:b"));
        device.claim().unwrap();
    }
}
