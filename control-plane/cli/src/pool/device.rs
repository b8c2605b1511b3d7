//! The drive, or a copy of one in a file, opened so that no data plane has it at the same time.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use bowline_pool::offline::{Source, Target};
use rustix::fs::{FlockOperation, Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use crate::error::CliError;

/// A data plane that was killed a moment ago has the drive as long as the kernel works on its last
/// requests.
const PATIENCE: Duration = Duration::from_secs(1);
const GLANCE: Duration = Duration::from_millis(20);

/// What for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Nothing is changed, by anybody.
    Read,
    /// It is repaired.
    Write,
}

#[derive(Debug)]
pub(super) struct Device {
    file: File,
    bytes: u64,
    block_bytes: Option<u32>,
}

impl Device {
    /// Opens what nobody uses.
    pub(super) fn open(path: &Path, access: Access) -> Result<Self, CliError> {
        let flags = match access {
            Access::Read => OFlags::RDONLY,
            Access::Write => OFlags::RDWR,
        };
        match Self::open_patiently(path, flags) {
            Ok(device) => Ok(device),
            Err(Errno::BUSY | Errno::WOULDBLOCK) => {
                let failed = CliError::failed(format!("{} not opened", path.display()));
                Err(failed
                    .cause("it is in use")
                    .hint("stop the data plane that has it"))
            }
            Err(error) => Err(not_opened(path, error)),
        }
    }

    /// Opens it whoever uses it, for reading; whether somebody does.
    pub(super) fn open_in_use(path: &Path) -> Result<(Self, bool), CliError> {
        match Self::open_alone(path, OFlags::RDONLY) {
            Ok(device) => Ok((device, false)),
            Err(Errno::BUSY | Errno::WOULDBLOCK) => Self::open_with(path, OFlags::RDONLY)
                .map(|device| (device, true))
                .map_err(|error| not_opened(path, error)),
            Err(error) => Err(not_opened(path, error)),
        }
    }

    fn open_patiently(path: &Path, flags: OFlags) -> Result<Self, Errno> {
        let begun = Instant::now();
        loop {
            match Self::open_alone(path, flags) {
                Err(Errno::BUSY | Errno::WOULDBLOCK) if begun.elapsed() < PATIENCE => {
                    #[expect(
                        clippy::disallowed_methods,
                        reason = "nothing tells that the kernel has let a drive go"
                    )]
                    thread::sleep(GLANCE);
                }
                opened => return opened,
            }
        }
    }

    fn open_alone(path: &Path, flags: OFlags) -> Result<Self, Errno> {
        let is_block_device = rustix::fs::stat(path)
            .map(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_block_device())?;
        // Of a file it would ask that there is none.
        let alone = if is_block_device {
            OFlags::EXCL
        } else {
            OFlags::empty()
        };
        let device = Self::open_with(path, flags | alone)?;
        rustix::fs::flock(&device.file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(device)
    }

    fn open_with(path: &Path, flags: OFlags) -> Result<Self, Errno> {
        let file = rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())?;
        let file_type = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode);
        let block_bytes = if file_type.is_block_device() {
            Some(rustix::fs::ioctl_blksszget(&file)?)
        } else if file_type.is_file() {
            None
        } else {
            return Err(Errno::NOTBLK);
        };
        let bytes = rustix::fs::seek(&file, SeekFrom::End(0))?;
        Ok(Self {
            file: file.into(),
            bytes,
            block_bytes,
        })
    }
}

fn not_opened(path: &Path, error: Errno) -> CliError {
    let failed = CliError::failed(format!("{} not opened", path.display())).cause(error);
    match error {
        Errno::ACCESS | Errno::PERM => {
            failed.hint("run it as root, or as one who may read the drive")
        }
        Errno::ROFS => failed.hint("the drive is write-protected: copy it, and repair the copy"),
        _ => failed.hint("name a block device, or a file with a copy of one"),
    }
}

impl Source for Device {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn block_bytes(&self) -> Option<u32> {
        self.block_bytes
    }

    fn read(&mut self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }
}

impl Target for Device {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.sync_all()
    }
}
