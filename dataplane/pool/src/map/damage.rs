//! Why a record does not fit the state.

/// A record that does not fit what was said before it: the pool is damaged, or whoever made the
/// record has a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// There is no such volume.
    #[error("volume {volume} does not exist")]
    VolumeUnknown {
        /// Number of the volume.
        volume: u32,
    },
    /// There is no such snapshot.
    #[error("volume {volume} has no snapshot {number}")]
    SnapshotUnknown {
        /// Number of the volume.
        volume: u32,
        /// Number of the snapshot.
        number: u32,
    },
    /// A clone still needs it.
    #[error("snapshot {number} of volume {volume} is gone, although a clone needs it")]
    SnapshotNeeded {
        /// Number of the volume.
        volume: u32,
        /// Number of the snapshot.
        number: u32,
    },
    /// A volume's number was used before, or is the one that stands for none.
    #[error("volume {volume} is new, but numbers below {next} were used before")]
    VolumeNumber {
        /// Number of the volume.
        volume: u32,
        /// Number of the next volume.
        next: u32,
    },
    /// A snapshot is numbered 0, or beyond the snapshots taken.
    #[error("snapshot {number} of volume {volume}, of which {taken} were taken")]
    SnapshotNumber {
        /// Number of the volume.
        volume: u32,
        /// Number of the snapshot.
        number: u32,
        /// Snapshots that were taken.
        taken: u32,
    },
    /// The number of snapshots taken fell.
    #[error("volume {volume} has had {was} snapshots, and now {is}")]
    SnapshotsTaken {
        /// Number of the volume.
        volume: u32,
        /// Snapshots that were taken.
        was: u32,
        /// What is said now.
        is: u32,
    },
    /// A clone was not made of a snapshot of an older volume.
    #[error(
        "volume {volume} is a clone of snapshot {snapshot} of volume {base}, which is not there or not older"
    )]
    Base {
        /// Number of the volume.
        volume: u32,
        /// Number of the base.
        base: u32,
        /// Number of its snapshot.
        snapshot: u32,
    },
    /// A logical block that no volume has, or that is smaller than the drive's.
    #[error("volume {volume} has blocks of {bytes} bytes, which it cannot have on this drive")]
    Block {
        /// Number of the volume.
        volume: u32,
        /// Its logical block.
        bytes: u32,
    },
    /// More extents than a volume may have, or a part of a chunk.
    #[error("volume {volume} has {bytes} bytes: too many extents, or not whole chunks")]
    Size {
        /// Number of the volume.
        volume: u32,
        /// Its size.
        bytes: u64,
    },
    /// Beyond the end of the volume.
    #[error("extents {first} to {last} of volume {volume} are beyond its end")]
    LogicalRange {
        /// Number of the volume.
        volume: u32,
        /// First logical extent.
        first: u32,
        /// Last logical extent.
        last: u64,
    },
    /// Beyond the end of the pool.
    #[error("{count} physical extents from {first} on are beyond the end of the pool")]
    PhysicalRange {
        /// First physical extent.
        first: u32,
        /// How many.
        count: u32,
    },
    /// A version from the future.
    #[error("version of extent {logical} of volume {volume} is born after {born} snapshots")]
    Born {
        /// Number of the volume.
        volume: u32,
        /// First logical extent.
        logical: u32,
        /// Snapshots of the volume when the version was made.
        born: u32,
    },
    /// Two versions would have the same physical extent.
    #[error("physical extent {physical} belongs to extent {logical} of volume {volume} already")]
    Owned {
        /// The physical extent.
        physical: u32,
        /// Number of the volume that has it.
        volume: u32,
        /// The logical extent that has it.
        logical: u32,
    },
    /// It is believed to be zero, and was written to.
    #[error("physical extent {physical} is mapped, but was not reserved before")]
    NotReserved {
        /// The physical extent.
        physical: u32,
    },
    /// It may be read still.
    #[error("physical extent {physical} is clean, but was freed just now")]
    Quarantined {
        /// The physical extent.
        physical: u32,
    },
    /// A bitmap of the wrong length, or with bits beyond the last chunk.
    #[error("bitmap of extent {logical} of volume {volume} is not one")]
    Bitmap {
        /// Number of the volume.
        volume: u32,
        /// The logical extent.
        logical: u32,
    },
    /// More volumes and snapshots than a checkpoint has room for.
    #[error("there are more than {max} volumes and snapshots")]
    TooManyObjects {
        /// The largest number.
        max: u32,
    },
    /// More holes than there is room for.
    #[error("there are more than {max} holes")]
    TooManyHoles {
        /// The largest number.
        max: u32,
    },
    /// More bytes of attributes than a checkpoint has room for.
    #[error("there are more than {max} bytes of attributes")]
    TooManyAttributes {
        /// The largest number.
        max: u64,
    },
    /// A name is longer than 255 bytes.
    #[error("name of volume {volume}, or of a snapshot of it, is too long")]
    Name {
        /// Number of the volume.
        volume: u32,
    },
}
