//! Identifiers derived from names: the same NQN and NSID give the same UUID, NGUID
//! and serial number at every start, so hosts find their disks again.

use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use uuid::Uuid;

/// Date and domain of the NQNs made here. [BASE-2.0 §4.5]
const NQN_PREFIX: &str = "nqn.2026-11.io.bowline";

/// Root of the derivation, drawn once at random. It never changes: every
/// identifier follows from it.
const ROOT: Uuid = Uuid::from_u128(0x6f0d_9c1e_54b7_4e0a_9a63_3b1d_27c8_8f45);

/// Bytes of a serial number in Identify Controller. [BASE-2.0 §5.17.2.1]
const SERIAL_BYTES: usize = 20;

/// Longest part of an NQN taken from a node's or a device's name, in bytes.
const PART_BYTES_MAX: usize = 64;

/// Hexadecimal digits of the hash at the end of a default NQN.
const HASH_DIGITS: usize = 8;

/// Name of a device that is memory, in the default NQN.
const MEMORY: &str = "memory";

/// Namespace UUID, a version 5 UUID of NQN and NSID.
pub(crate) fn namespace_uuid(nqn: &str, nsid: u32) -> [u8; 16] {
    derive("uuid", nqn, nsid).into_bytes()
}

/// NGUID of NQN and NSID: 16 bytes, big endian. Bytes 8 to 10 hold an OUI; the
/// locally administered bit there says that this one is of no manufacturer.
/// [BASE-2.0 §4.5.2]
pub(crate) fn namespace_nguid(nqn: &str, nsid: u32) -> [u8; 16] {
    let mut nguid = derive("nguid", nqn, nsid).into_bytes();
    nguid[8] = (nguid[8] | 0b10) & !0b01;
    nguid
}

/// Serial number of a subsystem, 20 ASCII characters.
pub(crate) fn serial_number(nqn: &str) -> [u8; SERIAL_BYTES] {
    let digest = derive("serial", nqn, 0).into_bytes();
    let mut serial = [0; SERIAL_BYTES];
    for (pair, byte) in serial.chunks_exact_mut(2).zip(digest) {
        pair.copy_from_slice(&[hex_digit(byte >> 4), hex_digit(byte & 0xf)]);
    }
    serial
}

/// The default NQN of a device: `nqn.2026-11.io.bowline:<node>:<name>-<hash>`. The name is
/// for people; the hash, of the node's name and the whole path, tells disks of the same
/// name apart, which hosts would otherwise take for two paths to one disk.
pub(crate) fn default_nqn(node: &str, path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    named(node, &name, path.as_os_str().as_encoded_bytes())
}

/// The default NQN of memory: what tells two of a node apart is where they listen.
pub(crate) fn default_memory_nqn(node: &str, bound: Option<SocketAddr>) -> String {
    let address = bound.map(|bound| bound.to_string()).unwrap_or_default();
    named(node, MEMORY, address.as_bytes())
}

/// The NQN of a volume's subsystem: the same wherever its pool is.
pub(crate) fn volume_nqn(volume: Uuid) -> String {
    format!("{NQN_PREFIX}:volume:{volume}")
}

/// The NQN of the subsystem that exports a snapshot.
pub(crate) fn snapshot_nqn(snapshot: Uuid) -> String {
    format!("{NQN_PREFIX}:snapshot:{snapshot}")
}

/// The default NQN of a data plane's own discovery subsystem: what tells two of a node apart is
/// where they listen.
pub(crate) fn default_discovery_nqn(node: &str, bound: Option<SocketAddr>) -> String {
    let address = bound.map(|bound| bound.to_string()).unwrap_or_default();
    let text = [b"discovery\0", node.as_bytes(), b"\0", address.as_bytes()].concat();
    let hash = &Uuid::new_v5(&ROOT, &text).simple().to_string()[..HASH_DIGITS];
    format!("{NQN_PREFIX}:{}:discovery-{hash}", nqn_part(node))
}

/// The name by which a device is known for longest. Of a block device that is the one given:
/// links such as those in /dev/disk/by-id stay, what they lead to is new after each start of
/// the machine. Of a file it is the one without links.
pub(crate) fn lasting_path(path: &Path) -> PathBuf {
    let is_device = path
        .metadata()
        .is_ok_and(|metadata| metadata.file_type().is_block_device());
    let lasting = match is_device {
        true => std::path::absolute(path),
        false => path.canonicalize(),
    };
    lasting.unwrap_or_else(|_| path.to_owned())
}

/// True for names such as /dev/sdb, which the kernel gives in the order of discovery.
pub(crate) fn is_kernel_name(path: &Path) -> bool {
    path.parent() == Some(Path::new("/dev"))
}

fn named(node: &str, name: &str, told_apart_by: &[u8]) -> String {
    let text = [b"device\0", node.as_bytes(), b"\0", told_apart_by].concat();
    let hash = &Uuid::new_v5(&ROOT, &text).simple().to_string()[..HASH_DIGITS];
    format!("{NQN_PREFIX}:{}:{}-{hash}", nqn_part(node), nqn_part(name))
}

fn derive(kind: &str, nqn: &str, nsid: u32) -> Uuid {
    Uuid::new_v5(&ROOT, format!("{kind}\0{nqn}\0{nsid}").as_bytes())
}

fn hex_digit(nibble: u8) -> u8 {
    match nibble {
        0..=9 => b'0' + nibble,
        _ => b'A' + (nibble - 10),
    }
}

/// Lower case letters, digits, dots and dashes; everything else becomes a dash.
fn nqn_part(text: &str) -> String {
    let part: String = text
        .chars()
        .take(PART_BYTES_MAX)
        .map(|c| match c.to_ascii_lowercase() {
            c @ ('a'..='z' | '0'..='9' | '.') => c,
            _ => '-',
        })
        .collect();
    if part.is_empty() {
        "unnamed".to_owned()
    } else {
        part
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const NQN: &str = "nqn.2026-11.io.bowline:node:drive";

    #[test]
    fn identifiers_never_change() {
        let uuid = Uuid::from_bytes(namespace_uuid(NQN, 1));
        assert_eq!(uuid.get_version_num(), 5);
        assert_eq!(uuid.to_string(), "4ef75e8f-eb3b-54e6-aaf8-a4592d5619fa");
        assert_eq!(
            Uuid::from_bytes(namespace_nguid(NQN, 1))
                .simple()
                .to_string(),
            "53231b023cbb5b0f963eb322cdb9f8a5"
        );
        assert_eq!(
            std::str::from_utf8(&serial_number(NQN)).unwrap(),
            "5AF6F667111A5A29B4BB"
        );
    }

    #[test]
    fn identifiers_differ_by_nqn_and_nsid() {
        assert_ne!(namespace_uuid(NQN, 1), namespace_uuid(NQN, 2));
        assert_ne!(
            namespace_uuid(NQN, 1),
            namespace_uuid("nqn.2026-11.io.bowline:n:d", 1)
        );
        assert_ne!(namespace_uuid(NQN, 1), namespace_nguid(NQN, 1));
    }

    #[test]
    fn nqn_of_a_volume_never_changes() {
        let volume = Uuid::from_u128(7);
        assert_eq!(
            volume_nqn(volume),
            "nqn.2026-11.io.bowline:volume:00000000-0000-0000-0000-000000000007"
        );
        bowline_nvme::nqn::validate(&volume_nqn(volume)).unwrap();
    }

    #[test]
    fn nguid_is_locally_administered() {
        for nsid in 1..100 {
            assert_eq!(namespace_nguid(NQN, nsid)[8] & 0b11, 0b10);
        }
    }

    fn of(node: &str, path: &str) -> String {
        default_nqn(node, Path::new(path))
    }

    #[test]
    fn default_nqn_never_changes() {
        assert_eq!(
            of("Node A", "/dev/nvme0n1"),
            "nqn.2026-11.io.bowline:node-a:nvme0n1-fcef366e"
        );
        assert_eq!(
            default_memory_nqn("", Some(([127, 0, 0, 1], 4420).into())),
            "nqn.2026-11.io.bowline:unnamed:memory-3bd62c02"
        );
        let discovery = |port| default_discovery_nqn("n", Some(([127, 0, 0, 1], port).into()));
        assert!(discovery(4420).starts_with("nqn.2026-11.io.bowline:n:discovery-"));
        assert_ne!(discovery(4420), discovery(4421));
    }

    #[test]
    fn disks_that_are_named_alike_have_different_default_nqns() {
        let mut seen = HashSet::new();
        let long = format!("/dev/disk/by-id/{}", "d".repeat(100));
        for (node, path) in [
            ("n", "/x/disk.img"),
            ("n", "/y/disk.img"),
            ("n", "/x/disk-1"),
            ("n", "/x/disk_1"),
            ("n", &format!("{long}1")),
            ("n", &format!("{long}2")),
            ("N", "/x/disk.img"),
        ] {
            assert!(seen.insert(of(node, path)), "{node} {path}");
        }
        for address in ["127.0.0.1:4420", "127.0.0.1:4421", "127.0.0.2:4420"] {
            let nqn = default_memory_nqn("n", Some(address.parse().unwrap()));
            assert!(seen.insert(nqn), "{address}");
        }
    }

    #[test]
    fn default_nqn_is_short_enough() {
        let nqn = of(&"n".repeat(500), &format!("/{}", "d".repeat(200)));
        bowline_nvme::nqn::validate(&nqn).unwrap();
    }

    #[test]
    fn file_is_known_by_its_path_without_links() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        std::fs::write(root.join("disk"), b"").unwrap();
        std::os::unix::fs::symlink(root.join("disk"), root.join("link")).unwrap();
        assert_eq!(lasting_path(&root.join("link")), root.join("disk"));
    }

    #[test]
    fn names_of_the_kernel_are_recognised() {
        for (path, expected) in [
            ("/dev/sdb", true),
            ("/dev/nvme0n1", true),
            ("/dev/disk/by-id/x", false),
            ("/dev/mapper/x", false),
            ("/srv/disk", false),
        ] {
            assert_eq!(is_kernel_name(Path::new(path)), expected, "{path}");
        }
    }
}
