//! The state as bytes, for the owner to keep. (ADR 0011)
//!
//! ```text
//!  0  magic "BLRESERV"          24  holder, 16 bytes; zero without one
//!  8  version u32, 1            40  registrants, 24 bytes each: host id 16, key u64
//! 12  generation u32             .  CRC32C u32 of all before
//! 16  registrants u32
//! 20  RTYPE u8, 0 for none; holder present u8; zero u16
//! ```
//!
//! Integers are little-endian. Only states with Persist Through Power Loss set are ever stored,
//! so the flag itself is not.

use bowline_nvme::reservation::ReservationType;

use super::{REGISTRANTS_MAX, Registrant, Reservation, ReservationState};
use crate::frame::crc32c;

const MAGIC: [u8; 8] = *b"BLRESERV";
const VERSION: u32 = 1;
const HEAD_BYTES: usize = 40;
const REGISTRANT_BYTES: usize = 24;
const CRC_BYTES: usize = 4;

/// Bytes of the longest image.
pub const IMAGE_BYTES_MAX: usize = HEAD_BYTES + REGISTRANTS_MAX * REGISTRANT_BYTES + CRC_BYTES;

/// Why bytes are not the image of a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReservationStateError {
    /// Not the beginning of an image.
    Magic,
    /// An image of another version.
    Version(u32),
    /// The length is not that of the registrants it announces.
    Length {
        /// What it announces, in bytes.
        expected: usize,
        /// What there is, in bytes.
        found: usize,
    },
    /// The bytes were damaged.
    Checksum {
        /// What was stored.
        expected: u32,
        /// What the bytes have.
        found: u32,
    },
    /// No sequence of commands leads to such a state.
    Inconsistent,
}

impl std::fmt::Display for ReservationStateError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Magic => f.write_str("not an image of reservations"),
            Self::Version(version) => {
                write!(f, "reservations of version {version}, known is {VERSION}")
            }
            Self::Length { expected, found } => {
                write!(f, "reservations of {found} bytes, expected {expected}")
            }
            Self::Checksum { expected, found } => write!(
                f,
                "reservations are damaged: CRC32C {found:#010x}, stored {expected:#010x}"
            ),
            Self::Inconsistent => f.write_str("reservations contradict themselves"),
        }
    }
}

impl std::error::Error for ReservationStateError {}

impl ReservationState {
    /// The state as bytes that [`decode`](Self::decode) reads.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let count = u32::try_from(self.registrants.len()).unwrap_or(u32::MAX);
        let holder = self.reservation.and_then(|held| held.holder);
        let rtype = self.reservation.map_or(0, |held| held.rtype.wire());
        let mut image = Vec::with_capacity(IMAGE_BYTES_MAX);
        image.extend_from_slice(&MAGIC);
        image.extend_from_slice(&VERSION.to_le_bytes());
        image.extend_from_slice(&self.generation.to_le_bytes());
        image.extend_from_slice(&count.to_le_bytes());
        image.extend_from_slice(&[rtype, u8::from(holder.is_some()), 0, 0]);
        image.extend_from_slice(&holder.unwrap_or_default());
        for registrant in &self.registrants {
            image.extend_from_slice(&registrant.hostid);
            image.extend_from_slice(&registrant.key.to_le_bytes());
        }
        let crc = crc32c(&image);
        image.extend_from_slice(&crc.to_le_bytes());
        image
    }

    /// Reads an image.
    ///
    /// # Errors
    /// The bytes are not exactly one image, damaged, or of a version not known here.
    pub fn decode(image: &[u8]) -> Result<Self, ReservationStateError> {
        let head = image.first_chunk::<HEAD_BYTES>();
        let Some(head) = head.filter(|head| head.starts_with(&MAGIC)) else {
            return Err(ReservationStateError::Magic);
        };
        let version = u32_at(head, 8);
        if version != VERSION {
            return Err(ReservationStateError::Version(version));
        }
        let count = usize::try_from(u32_at(head, 16)).unwrap_or(usize::MAX);
        let expected = HEAD_BYTES
            .saturating_add(count.saturating_mul(REGISTRANT_BYTES))
            .saturating_add(CRC_BYTES);
        let found = image.len();
        let Some((body, crc)) = image.split_last_chunk().filter(|_| found == expected) else {
            return Err(ReservationStateError::Length { expected, found });
        };
        let (expected, found) = (u32::from_le_bytes(*crc), crc32c(body));
        if expected != found {
            return Err(ReservationStateError::Checksum { expected, found });
        }
        let registrants = body.get(HEAD_BYTES..).unwrap_or_default();
        Self::of(head, registrants)
            .filter(Self::is_consistent)
            .ok_or(ReservationStateError::Inconsistent)
    }

    fn of(head: &[u8; HEAD_BYTES], registrants: &[u8]) -> Option<Self> {
        let mut holder = [0; 16];
        holder.copy_from_slice(&head[24..]);
        let holder = match head[21] {
            0 => None,
            1 => Some(holder),
            _ => return None,
        };
        let reservation = match (ReservationType::from_wire(head[20]), holder) {
            (Some(rtype), holder) => Some(Reservation { rtype, holder }),
            (None, None) if head[20] == 0 => None,
            (None, _) => return None,
        };
        let (registrants, _) = registrants.as_chunks::<REGISTRANT_BYTES>();
        let registrants = registrants.iter().filter_map(|bytes| {
            Some(Registrant {
                hostid: *bytes.first_chunk()?,
                key: u64::from_le_bytes(*bytes.last_chunk()?),
            })
        });
        Some(Self {
            generation: u32_at(head, 12),
            persistent: true,
            registrants: registrants.collect(),
            reservation,
        })
    }
}

fn u32_at(head: &[u8; HEAD_BYTES], at: usize) -> u32 {
    u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> ReservationState {
        ReservationState {
            generation: 0x0102_0304,
            persistent: true,
            registrants: vec![
                Registrant {
                    hostid: [0x11; 16],
                    key: 0xA1,
                },
                Registrant {
                    hostid: [0x22; 16],
                    key: 0xB2,
                },
            ],
            reservation: Some(Reservation {
                rtype: ReservationType::WriteExclusiveRegistrantsOnly,
                holder: Some([0x22; 16]),
            }),
        }
    }

    /// An image written by version 1: what was stored once must be read for ever.
    #[test]
    fn image_of_version_1_has_the_known_bytes() {
        let mut golden = b"BLRESERV\x01\0\0\0\x04\x03\x02\x01\x02\0\0\0\x03\x01\0\0".to_vec();
        golden.extend([0x22; 16]);
        golden.extend([0x11; 16]);
        golden.extend(b"\xA1\0\0\0\0\0\0\0");
        golden.extend([0x22; 16]);
        golden.extend(b"\xB2\0\0\0\0\0\0\0");
        golden.extend(GOLDEN_CRC.to_le_bytes());
        assert_eq!(state().encode(), golden);
        assert_eq!(ReservationState::decode(&golden), Ok(state()));
    }

    const GOLDEN_CRC: u32 = 0x8358_8214;

    #[test]
    fn every_damaged_byte_and_every_other_length_is_found() {
        let image = state().encode();
        for at in 0..image.len() {
            let mut damaged = image.clone();
            damaged[at] ^= 0x40;
            assert!(ReservationState::decode(&damaged).is_err(), "byte {at}");
            assert!(
                ReservationState::decode(&image[..at]).is_err(),
                "{at} bytes"
            );
        }
        let longer = [image.as_slice(), &[0]].concat();
        assert!(ReservationState::decode(&longer).is_err());
    }

    #[test]
    fn states_that_contradict_themselves_are_refused() {
        let holderless = ReservationState {
            reservation: Some(Reservation {
                rtype: ReservationType::WriteExclusive,
                holder: Some([0x33; 16]),
            }),
            ..state()
        };
        let mut unsorted = state();
        unsorted.registrants.reverse();
        let mut keyless = state();
        keyless.registrants[0].key = 0;
        let named = ReservationState {
            reservation: Some(Reservation {
                rtype: ReservationType::WriteExclusiveAllRegistrants,
                holder: Some([0x22; 16]),
            }),
            ..state()
        };
        for bad in [holderless, unsorted, keyless, named] {
            let decoded = ReservationState::decode(&bad.encode());
            assert_eq!(decoded, Err(ReservationStateError::Inconsistent));
        }
    }
}
