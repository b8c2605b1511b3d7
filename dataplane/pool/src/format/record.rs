//! What the journal and the checkpoints say, record by record. `FORMAT.md` has the bytes.

use uuid::Uuid;

/// Stands for "none" where a number is expected on the drive.
pub const NONE: u32 = u32::MAX;

/// Numbers, as they are in memory or little-endian as on the drive.
#[derive(Clone, Copy, Debug)]
pub enum Numbers<'a> {
    /// As in memory.
    Native(&'a [u32]),
    /// As on the drive.
    Wire(WireNumbers<'a>),
}

/// Little-endian numbers, each whole.
#[derive(Clone, Copy, Debug)]
pub struct WireNumbers<'a>(&'a [[u8; 4]]);

impl<'a> Numbers<'a> {
    /// `None` if the bytes are not a multiple of 4.
    #[must_use]
    pub fn from_wire(bytes: &'a [u8]) -> Option<Self> {
        match bytes.as_chunks() {
            (numbers, []) => Some(Self::Wire(WireNumbers(numbers))),
            _ => None,
        }
    }

    /// How many.
    #[must_use]
    pub const fn len(&self) -> usize {
        match self {
            Self::Native(numbers) => numbers.len(),
            Self::Wire(numbers) => numbers.0.len(),
        }
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The one at `index`.
    #[must_use]
    pub fn at(&self, index: usize) -> Option<u32> {
        match self {
            Self::Native(numbers) => numbers.get(index).copied(),
            Self::Wire(numbers) => numbers.0.get(index).map(|&bytes| u32::from_le_bytes(bytes)),
        }
    }

    /// One after another.
    pub fn iter(&self) -> impl Iterator<Item = u32> + use<'a> {
        let numbers = *self;
        (0..numbers.len()).filter_map(move |index| numbers.at(index))
    }

    /// Bytes that they take on the drive.
    pub(super) const fn wire_bytes(&self) -> usize {
        self.len() * 4
    }
}

impl WireNumbers<'_> {
    /// As on the drive.
    pub(super) const fn bytes(&self) -> &[u8] {
        self.0.as_flattened()
    }
}

impl PartialEq for Numbers<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Numbers<'_> {}

/// How long a completed write may be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// It is on stable media.
    Media,
    /// As the drive has it: until the next Flush, where the drive's cache is volatile.
    Device,
}

/// What is done with the checksums of a volume's chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksums {
    /// There are none.
    Off,
    /// They are kept, and compared by scrubbing only.
    Scrub,
    /// They are kept, and compared by every read.
    Verify,
}

/// A volume, whole: what is there of it besides versions, snapshots and attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeRecord<'a> {
    /// Number of the volume.
    pub volume: u32,
    /// Its name among all.
    pub uuid: Uuid,
    /// Size.
    pub bytes: u64,
    /// Logical block.
    pub block_bytes: u32,
    /// Number of snapshots ever taken: the `born` of what is written now.
    pub snapshots_taken: u32,
    /// Volume and number of the snapshot it is a clone of.
    pub base: Option<(u32, u32)>,
    /// Every extent is allocated and stays so.
    pub is_thick: bool,
    /// Only kept for others that need it.
    pub is_deleted: bool,
    /// Not acknowledged yet.
    pub is_being_made: bool,
    /// How long a completed write may be lost.
    pub durability: Durability,
    /// What is done with checksums.
    pub checksums: Checksums,
    /// Seconds since 1970.
    pub created: u64,
    /// At most 255 bytes.
    pub name: &'a str,
}

/// A snapshot, whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotRecord<'a> {
    /// Number of the volume.
    pub volume: u32,
    /// Number of the snapshot.
    pub number: u32,
    /// Its name among all.
    pub uuid: Uuid,
    /// Size.
    pub bytes: u64,
    /// Only kept for others that need it.
    pub is_deleted: bool,
    /// Seconds since 1970.
    pub created: u64,
    /// At most 255 bytes.
    pub name: &'a str,
}

/// One record. Each says how something is, so that replaying it twice does no harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record<'a> {
    /// A volume is so.
    Volume(VolumeRecord<'a>),
    /// A volume is gone, with its versions, snapshots and attributes.
    VolumeGone {
        /// Number of the volume.
        volume: u32,
    },
    /// A snapshot is so.
    Snapshot(SnapshotRecord<'a>),
    /// A snapshot is gone.
    SnapshotGone {
        /// Number of the volume.
        volume: u32,
        /// Number of the snapshot.
        number: u32,
    },
    /// Versions without a bitmap for consecutive logical extents; [`NONE`] for a hole.
    Map {
        /// Number of the volume.
        volume: u32,
        /// Snapshots of the volume when the version was made.
        born: u32,
        /// The first logical extent.
        logical: u32,
        /// Physical extents, one for each logical one.
        physical: Numbers<'a>,
    },
    /// A version with a bitmap.
    MapPart {
        /// Number of the volume.
        volume: u32,
        /// Snapshots of the volume when the version was made.
        born: u32,
        /// The logical extent.
        logical: u32,
        /// The physical extent.
        physical: u32,
        /// One bit a chunk, bit 0 of byte 0 the first.
        bitmap: &'a [u8],
    },
    /// There is no version with this `born` for these logical extents.
    Unmap {
        /// Number of the volume.
        volume: u32,
        /// Snapshots of the volume when the version was made.
        born: u32,
        /// The first logical extent.
        logical: u32,
        /// How many, one after another.
        count: u32,
    },
    /// Free, and all zero.
    Clean {
        /// The first physical extent.
        physical: u32,
        /// How many, one after another.
        count: u32,
    },
    /// Their checksums on the drive may be out of date.
    Activate {
        /// Physical extents.
        physical: Numbers<'a>,
    },
    /// Their checksums on the drive are right.
    Retire {
        /// Physical extents.
        physical: Numbers<'a>,
    },
    /// Without bytes: there is none.
    Attribute {
        /// Number of the volume.
        volume: u32,
        /// What it is for.
        kind: u32,
        /// Its content.
        bytes: &'a [u8],
    },
    /// The number of the next volume that is made.
    NextVolume {
        /// Number of the volume.
        volume: u32,
    },
    /// Free, and may be written to from now on: no longer known to be zero.
    Reserve {
        /// The first physical extent.
        physical: u32,
        /// How many, one after another.
        count: u32,
    },
}
