//! Identifiers derived from names: the same NQN and NSID give the same UUID, NGUID
//! and serial number at every start, so hosts find their disks again.

use std::path::Path;

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

/// `nqn.2026-11.io.bowline:<node>:<device>`; no device is memory.
pub(crate) fn default_nqn(node: &str, device: Option<&Path>) -> String {
    let device = match device.and_then(Path::file_name) {
        Some(name) => name.to_string_lossy().into_owned(),
        None => MEMORY.to_owned(),
    };
    format!("{NQN_PREFIX}:{}:{}", nqn_part(node), nqn_part(&device))
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
    fn nguid_is_locally_administered() {
        for nsid in 1..100 {
            assert_eq!(namespace_nguid(NQN, nsid)[8] & 0b11, 0b10);
        }
    }

    #[test]
    fn default_nqn_holds_node_and_device() {
        let nqn = default_nqn("Node A", Some(Path::new("/dev/nvme0n1")));
        assert_eq!(nqn, "nqn.2026-11.io.bowline:node-a:nvme0n1");
        assert_eq!(
            default_nqn("", None),
            "nqn.2026-11.io.bowline:unnamed:memory"
        );
        let long = default_nqn(&"n".repeat(500), Some(Path::new(&"d".repeat(200))));
        assert!(long.len() <= 223, "{}", long.len());
    }
}
