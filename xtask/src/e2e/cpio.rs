//! Writer for the kernel's initramfs format ("newc" cpio), enough of it to need no other tool.
//! Archives may be concatenated; the kernel unpacks one after the other.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::Path;

const MODE_DIRECTORY: u32 = 0o040_755;
const MODE_FILE: u32 = 0o100_755;
const MODE_SYMLINK: u32 = 0o120_777;
const MODE_CHARACTER_DEVICE: u32 = 0o020_600;

/// One archive being written. Parent folders are added as needed.
pub(crate) struct Archive<W: Write> {
    output: W,
    written: u64,
    inode: u32,
    folders: BTreeSet<String>,
}

impl<W: Write> Archive<W> {
    pub(crate) fn new(output: W) -> Self {
        Self {
            output,
            written: 0,
            inode: 0,
            folders: BTreeSet::new(),
        }
    }

    /// A folder and those above it. `path` has no leading slash, here and below.
    pub(crate) fn folder(&mut self, path: &str) -> io::Result<()> {
        if path.is_empty() || self.folders.contains(path) {
            return Ok(());
        }
        self.parents(path)?;
        self.folders.insert(path.to_owned());
        self.entry(path, MODE_DIRECTORY, (0, 0), &[])
    }

    /// An executable file; the guest's only user is root, so no other mode is needed.
    pub(crate) fn file(&mut self, path: &str, content: &[u8]) -> io::Result<()> {
        self.parents(path)?;
        self.entry(path, MODE_FILE, (0, 0), content)
    }

    pub(crate) fn symlink(&mut self, path: &str, to: &str) -> io::Result<()> {
        self.parents(path)?;
        self.entry(path, MODE_SYMLINK, (0, 0), to.as_bytes())
    }

    pub(crate) fn character_device(
        &mut self,
        path: &str,
        major: u32,
        minor: u32,
    ) -> io::Result<()> {
        self.parents(path)?;
        self.entry(path, MODE_CHARACTER_DEVICE, (major, minor), &[])
    }

    /// Ends the archive, padded so that another may follow.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        self.pad(512)?;
        self.output.flush()?;
        Ok(self.output)
    }

    fn parents(&mut self, path: &str) -> io::Result<()> {
        let parent = Path::new(path)
            .parent()
            .and_then(Path::to_str)
            .unwrap_or_default();
        self.folder(parent)
    }

    fn entry(&mut self, path: &str, mode: u32, rdev: (u32, u32), data: &[u8]) -> io::Result<()> {
        let too_large = |_| io::Error::from(io::ErrorKind::FileTooLarge);
        let size = u32::try_from(data.len()).map_err(too_large)?;
        let name_size = u32::try_from(path.len() + 1).map_err(too_large)?;
        self.inode += 1;
        // Fields of eight hexadecimal digits: inode, mode, uid, gid, links, mtime, size, device,
        // device of the special file, name size with its zero, checksum (unused).
        let fields = [
            self.inode, mode, 0, 0, 1, 0, size, 0, 0, rdev.0, rdev.1, name_size, 0,
        ];
        self.put(b"070701")?;
        for field in fields {
            self.put(format!("{field:08x}").as_bytes())?;
        }
        self.put(path.as_bytes())?;
        self.put(&[0])?;
        self.pad(4)?;
        self.put(data)?;
        self.pad(4)
    }

    fn pad(&mut self, alignment: u64) -> io::Result<()> {
        while !self.written.is_multiple_of(alignment) {
            self.put(&[0])?;
        }
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len() as u64;
        self.output.write_all(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_is_a_header_a_name_and_data_each_padded_to_four() {
        let mut archive = Archive::new(Vec::new());
        archive.file("a/b", b"hello").unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % 512, 0);
        let text = String::from_utf8(bytes).unwrap();
        // 110 bytes of header, "a" and a zero: already a multiple of four.
        assert!(text.starts_with("070701") && text[110..].starts_with("a\0"));
        let file = &text[112..];
        assert!(file[110..].starts_with("a/b\0"));
        assert_eq!(&file[54..62], "00000005");
        assert_eq!(&file[116..124], "hello\0\0\0");
        assert!(text.contains("TRAILER!!!"));
    }

    #[test]
    fn parent_folder_is_written_once() {
        let mut archive = Archive::new(Vec::new());
        archive.file("x/1", b"").unwrap();
        archive.file("x/2", b"").unwrap();
        let text = String::from_utf8(archive.finish().unwrap()).unwrap();
        assert_eq!(text.matches("000041ed").count(), 1);
    }
}
