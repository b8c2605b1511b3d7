//! What a drive that is no pool may hold: recognised by what is at fixed places.

/// Bytes from the start of a drive that are looked at.
pub const FOREIGN_BYTES: usize = 68 << 10;

/// Bytes at the end of a drive that are looked at before it is overwritten.
pub const END_BYTES: usize = 1 << 20;

/// What a drive holds that is no pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Foreign {
    /// Nothing: all zero.
    Blank,
    /// This.
    Known(&'static str),
    /// Something.
    Unknown,
    /// Something, at its end alone.
    UnknownEnd,
}

impl std::fmt::Display for Foreign {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Blank => out.write_str("is blank"),
            Self::Known(name) => write!(out, "holds {name}"),
            Self::Unknown => out.write_str("holds something unknown"),
            Self::UnknownEnd => out.write_str("holds something unknown at its end"),
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

/// What is found at the end of a drive alone: its place in bytes from the end, in whole multiples of `aligned` from the
/// start, and what is `at` a byte from there.
struct Ending {
    before_end: u64,
    aligned: u64,
    at: u64,
    bytes: &'static [u8],
    name: &'static str,
}

const fn ending(before_end: u64, at: u64, bytes: &'static [u8], name: &'static str) -> Ending {
    Ending {
        before_end,
        aligned: 512,
        at,
        bytes,
        name,
    }
}

const RAID: &str = "a member of a Linux software RAID";
const DRBD: &str = "a DRBD device";

const ENDINGS: &[Ending] = &[
    ending(512, 0, b"EFI PART", "the backup of a GUID partition table"),
    ending(4096, 0, b"EFI PART", "the backup of a GUID partition table"),
    // Version 0.90, in the byte order of the machine that made it.
    Ending {
        aligned: 64 << 10,
        ..ending(64 << 10, 0, &[0xfc, 0x4e, 0x2b, 0xa9], RAID)
    },
    Ending {
        aligned: 64 << 10,
        ..ending(64 << 10, 0, &[0xa9, 0x2b, 0x4e, 0xfc], RAID)
    },
    // Version 1.0.
    Ending {
        aligned: 4096,
        ..ending(8192, 0, &[0xfc, 0x4e, 0x2b, 0xa9], RAID)
    },
    Ending {
        aligned: 4096,
        ..ending(4096, 60, &[0x83, 0x74, 0x02], DRBD)
    },
    ending(512, 0, &[0xde, 0x11, 0xde, 0x11], "a member of a DDF RAID"),
    ending(
        257 * 512,
        0,
        &[0xde, 0x11, 0xde, 0x11],
        "a member of a DDF RAID",
    ),
    ending(
        1024,
        0,
        b"Intel Raid ISM Cfg Sig. ",
        "a member of an Intel RAID",
    ),
];

/// What the end of a drive of so many bytes looks like: its last [`END_BYTES`], or all it has.
#[must_use]
pub fn recognise_end(end: &[u8], drive_bytes: u64) -> Foreign {
    let begin = drive_bytes.saturating_sub(u64::try_from(end.len()).unwrap_or(u64::MAX));
    let is_there = |it: &&Ending| {
        let place = drive_bytes.checked_sub(it.before_end);
        // Down to a multiple, as those do who write there.
        let place = place.map(|place| place / it.aligned * it.aligned + it.at);
        let at = place.and_then(|place| usize::try_from(place.checked_sub(begin)?).ok());
        let there = at.and_then(|at| end.get(at..));
        there.is_some_and(|there| there.starts_with(it.bytes))
    };
    match ENDINGS.iter().find(is_there) {
        Some(known) => Foreign::Known(known.name),
        None if end.iter().all(|&byte| byte == 0) => Foreign::Blank,
        None => Foreign::UnknownEnd,
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

    /// 0.90 and 1.0 have their own rules for a drive that ends anywhere.
    #[test]
    fn what_is_at_the_end_alone_is_recognised() {
        const DRIVE: u64 = (1 << 30) + 5 * 512;
        let with = |at: u64, bytes: &[u8]| {
            let mut end = vec![0; END_BYTES];
            let begin = DRIVE - END_BYTES as u64;
            let at = usize::try_from(at - begin).unwrap();
            end[at..at + bytes.len()].copy_from_slice(bytes);
            recognise_end(&end, DRIVE)
        };
        let raid = [0xfc, 0x4e, 0x2b, 0xa9];
        assert_eq!(with((1 << 30) - (64 << 10), &raid), Foreign::Known(RAID));
        assert_eq!(with((1 << 30) - 8192, &raid), Foreign::Known(RAID));
        assert_eq!(
            with((1 << 30) - 4096 + 60, &[0x83, 0x74, 0x02, 0x6b]),
            Foreign::Known(DRBD)
        );
        assert_eq!(
            with(DRIVE - 512, b"EFI PART"),
            Foreign::Known("the backup of a GUID partition table")
        );
        assert_eq!(
            with(DRIVE - 257 * 512, &[0xde, 0x11, 0xde, 0x11]),
            Foreign::Known("a member of a DDF RAID")
        );
        assert_eq!(with(DRIVE - 9, &[1]), Foreign::UnknownEnd);
        assert_eq!(recognise_end(&vec![0; END_BYTES], DRIVE), Foreign::Blank);
    }

    #[test]
    fn the_end_of_the_smallest_drives_is_looked_at() {
        assert_eq!(recognise_end(&[], 0), Foreign::Blank);
        assert_eq!(recognise_end(&[0; 512], 512), Foreign::Blank);
        assert_eq!(recognise_end(&[7; 512], 512), Foreign::UnknownEnd);
    }

    #[test]
    fn every_ending_is_within_what_is_looked_at() {
        let farthest = |it: &Ending| it.before_end + it.aligned;
        assert!(ENDINGS.iter().all(|it| farthest(it) <= END_BYTES as u64));
    }
}
