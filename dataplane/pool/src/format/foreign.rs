//! What a drive that is no pool may hold: recognised by what is at fixed places.

/// Bytes from the start of a drive that are looked at.
pub const FOREIGN_BYTES: usize = 68 << 10;

/// What is at the start of a drive that is no pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Foreign {
    /// Nothing: all zero.
    Blank,
    /// This.
    Known(&'static str),
    /// Something.
    Unknown,
}

impl std::fmt::Display for Foreign {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Blank => out.write_str("is blank"),
            Self::Known(name) => write!(out, "holds {name}"),
            Self::Unknown => out.write_str("holds something unknown"),
        }
    }
}

/// Bytes at an offset, and what has them there. What is inside of something comes first: a disk
/// with partitions has both a table and a boot sector.
const SIGNATURES: &[(usize, &[u8], &str)] = &[
    (512, b"EFI PART", "a GUID partition table"),
    (4096, b"EFI PART", "a GUID partition table"),
    (0, b"LUKS\xba\xbe", "a LUKS encrypted volume"),
    (512, b"LABELONE", "an LVM physical volume"),
    (0, b"LABELONE", "an LVM physical volume"),
    (1024, b"LABELONE", "an LVM physical volume"),
    (1536, b"LABELONE", "an LVM physical volume"),
    (
        4096,
        &[0xfc, 0x4e, 0x2b, 0xa9],
        "a member of a Linux software RAID",
    ),
    (
        0,
        &[0xfc, 0x4e, 0x2b, 0xa9],
        "a member of a Linux software RAID",
    ),
    (0, b"SPDKBLOB", "an SPDK blobstore"),
    (0, b"XFSB", "an XFS file system"),
    (1080, &[0x53, 0xef], "an ext2, ext3 or ext4 file system"),
    (65_600, b"_BHRfS_M", "a Btrfs file system"),
    (1024, &[0x10, 0x20, 0xf5, 0xf2], "an F2FS file system"),
    (4086, b"SWAPSPACE2", "Linux swap space"),
    (3, b"NTFS    ", "an NTFS file system"),
    (3, b"EXFAT   ", "an exFAT file system"),
    (82, b"FAT32   ", "a FAT file system"),
    (54, b"FAT1", "a FAT file system"),
    (32_769, b"CD001", "an ISO 9660 image"),
    (0, b"hsqs", "a SquashFS file system"),
    (4120, &[0xc6, 0x85, 0x73, 0xf6], "a bcache device"),
    (0, b"QFI\xfb", "a qcow2 image"),
    (510, &[0x55, 0xaa], "a partition table or boot sector"),
];

/// What the first [`FOREIGN_BYTES`] of a drive (or all it has) look like.
#[must_use]
pub fn recognise(start: &[u8]) -> Foreign {
    let known = SIGNATURES.iter().find(|(at, bytes, _)| {
        start
            .get(*at..)
            .is_some_and(|there| there.starts_with(bytes))
    });
    match known {
        Some(&(_, _, name)) => Foreign::Known(name),
        None if start.iter().all(|&byte| byte == 0) => Foreign::Blank,
        None => Foreign::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_common_is_recognised() {
        let with = |places: &[(usize, &[u8])]| {
            let mut start = vec![0; FOREIGN_BYTES];
            for (at, bytes) in places {
                start[*at..*at + bytes.len()].copy_from_slice(bytes);
            }
            recognise(&start)
        };
        let gpt = with(&[(510, &[0x55, 0xaa]), (512, b"EFI PART")]);
        assert_eq!(gpt, Foreign::Known("a GUID partition table"));
        let ext4 = with(&[(1080, &[0x53, 0xef])]);
        assert_eq!(ext4, Foreign::Known("an ext2, ext3 or ext4 file system"));
        let btrfs = with(&[(0x1_0040, b"_BHRfS_M")]);
        assert_eq!(btrfs, Foreign::Known("a Btrfs file system"));
        assert_eq!(with(&[]), Foreign::Blank);
        assert_eq!(with(&[(70_000 - 2048, b"x")]), Foreign::Unknown);
    }

    #[test]
    fn little_is_enough_to_look_at() {
        assert_eq!(recognise(&[]), Foreign::Blank);
        assert_eq!(recognise(b"XFS"), Foreign::Unknown);
        assert_eq!(recognise(b"XFSB"), Foreign::Known("an XFS file system"));
    }

    #[test]
    fn every_signature_is_within_what_is_looked_at() {
        assert!(
            SIGNATURES
                .iter()
                .all(|(at, bytes, _)| at + bytes.len() <= FOREIGN_BYTES)
        );
    }
}
