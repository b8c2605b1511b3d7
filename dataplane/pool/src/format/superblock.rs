//! What a pool says about itself first: two equal copies of one sector.

use uuid::Uuid;

use super::foreign::{Foreign, recognise};
use super::layout::{Area, CHUNK_BYTES, Layout};
use super::wire::{Fields, Put};

/// Bytes of each copy.
pub const SUPERBLOCK_BYTES: usize = 4096;

/// The version of the format that is written and read.
pub const VERSION: u32 = 1;

/// Longest label.
pub const LABEL_BYTES_MAX: usize = 64;

const MAGIC: &[u8; 8] = b"BOWLPOOL";
const CRC_FROM: usize = 12;

/// Every number that only rises is below this. None gets there by itself, and what is added to one cannot overflow.
const RISING_MAX: u64 = 1 << 62;
/// What is written at once or not at all, and has all that counts.
const SECTOR_BYTES: usize = 512;

/// Features that are known, of each kind: none in version 1.
const COMPATIBLE: u64 = 0;
const READ_ONLY_COMPATIBLE: u64 = 0;
const INCOMPATIBLE: u64 = 0;

/// The checkpoint that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointPlace {
    /// Its number, from 1 on.
    pub number: u64,
    /// 0 or 1.
    pub area: u8,
    /// Number of frames.
    pub frames: u32,
}

/// A superblock, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Rises by one each time it is written.
    pub sequence: u64,
    /// Of the pool.
    pub uuid: Uuid,
    /// Features that whoever does not know them may ignore.
    pub compatible: u64,
    /// Features that whoever does not know them may read.
    pub read_only_compatible: u64,
    /// Features that whoever does not know them refuses.
    pub incompatible: u64,
    /// How often the pool was opened for writing.
    pub generation: u64,
    /// Where things are.
    pub layout: Layout,
    /// The checkpoint that counts; none: the pool was empty when the journal began.
    pub checkpoint: Option<CheckpointPlace>,
    /// First journal sector to replay.
    pub replay_from: u64,
    /// First journal sector whose records must fit the state.
    pub strict_from: u64,
    /// The sector that would have been next when the pool was closed in order.
    pub closed_at: Option<u64>,
    /// Seconds since 1970.
    pub made: u64,
    /// At most [`LABEL_BYTES_MAX`] bytes; more is cut off.
    pub label: String,
}

/// What one copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CopyError {
    /// It has not our magic.
    #[error("it is not there")]
    Absent,
    /// Its checksum is wrong.
    #[error("its checksum is wrong")]
    Checksum,
    /// Its checksum is right, and something else is not.
    #[error("its checksum is right, but not its {0}")]
    Field(&'static str),
    /// It uses features that must be known: what follows them may mean anything.
    #[error("it uses features that this program does not know ({features:#x})")]
    Incompatible {
        /// Which pool.
        uuid: Uuid,
        /// The unknown ones.
        features: u64,
    },
    /// It is of a later version.
    #[error("it is of version {0}")]
    Newer(u32),
}

/// Why a drive is not opened as a pool.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SuperblockError {
    /// It is none.
    #[error("the drive is not a pool: it {0}")]
    NotAPool(Foreign),
    /// It was one.
    #[error("both superblocks of the pool are damaged: of the first, {0}; of the second, {1}")]
    Damaged(CopyError, CopyError),
    /// It was one, and somebody has made something else of the drive since: the second copy is left.
    #[error(
        "the drive holds {made}, made over pool {uuid}, of which the second superblock is left"
    )]
    MadeOver {
        /// Which pool.
        uuid: Uuid,
        /// What is there now.
        made: &'static str,
    },
    /// The copies are of two pools.
    #[error("the drive has superblocks of two pools, {0} and {1}")]
    TwoPools(Uuid, Uuid),
    /// The copies say different things with the same sequence.
    #[error("the two superblocks of pool {0} contradict each other")]
    Contradiction(Uuid),
    /// A later version.
    #[error("the pool has format {found}, and this program reads up to {VERSION}")]
    Newer {
        /// What it has.
        found: u32,
    },
    /// Features that must be known.
    #[error("pool {uuid} uses features that this program does not know ({features:#x})")]
    Incompatible {
        /// Which pool.
        uuid: Uuid,
        /// The unknown ones.
        features: u64,
    },
    /// Features that must be known for writing.
    #[error(
        "pool {uuid} can only be read: it uses features that this program does not know \
         ({features:#x})"
    )]
    ReadOnly {
        /// Which pool.
        uuid: Uuid,
        /// The unknown ones.
        features: u64,
    },
    /// Less than the pool uses.
    #[error("pool {uuid} uses {needed} bytes, and the drive has only {bytes}")]
    DriveSmaller {
        /// Which pool.
        uuid: Uuid,
        /// What it uses.
        needed: u64,
        /// What there is.
        bytes: u64,
    },
    /// Not the block that the pool was made with.
    #[error("pool {uuid} was made on blocks of {made} bytes, and the drive now has {found}")]
    BlockChanged {
        /// Which pool.
        uuid: Uuid,
        /// What it was made with.
        made: u32,
        /// What there is.
        found: u32,
    },
}

impl SuperblockError {
    /// What may be done about it.
    #[must_use]
    pub const fn hint(&self) -> &'static str {
        match self {
            Self::NotAPool(Foreign::Blank) => "format the drive to make a pool on it",
            Self::NotAPool(_) => {
                "check that this is the drive you mean; formatting it destroys what it holds"
            }
            Self::Damaged(..) | Self::Contradiction(_) => {
                "copy the drive before anything else is tried with it, and look at it with `inspect`"
            }
            Self::MadeOver { .. } => {
                "erase the pool to keep what the drive holds now; to have the pool mended instead, \
                 write zeroes over the first 68 KiB of the drive"
            }
            Self::TwoPools(..) => {
                "a copy was written over, or a pool was formatted over another one and that was \
                 cut short: format again if nothing on it is needed"
            }
            Self::Newer { .. } | Self::Incompatible { .. } | Self::ReadOnly { .. } => {
                "use the version of the program that wrote the pool, or a later one"
            }
            Self::DriveSmaller { .. } => {
                "check that the whole drive is given, and that a copy of it is complete"
            }
            Self::BlockChanged { .. } => {
                "give the drive the block size back that the pool was made with"
            }
        }
    }
}

/// What two copies say together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// The one that counts.
    pub superblock: Superblock,
    /// The copy that does not say the same, and why: it is written again before anything else.
    pub to_mend: Option<(usize, Option<CopyError>)>,
}

impl Superblock {
    /// The bytes of each copy.
    #[must_use]
    pub fn encode(&self) -> [u8; SUPERBLOCK_BYTES] {
        let mut out = [0; SUPERBLOCK_BYTES];
        let mut put = Put::new(&mut out[CRC_FROM..SECTOR_BYTES]);
        put.u32(VERSION);
        put.u64(self.sequence);
        put.bytes(self.uuid.as_bytes());
        put.u64(self.compatible);
        put.u64(self.read_only_compatible);
        put.u64(self.incompatible);
        put.u64(self.generation);
        put_layout(&self.layout, &mut put);
        let none = CheckpointPlace {
            number: 0,
            area: 0,
            frames: 0,
        };
        let checkpoint = self.checkpoint.unwrap_or(none);
        put.u64(checkpoint.number);
        put.u32(u32::from(checkpoint.area));
        put.u32(checkpoint.frames);
        put.u64(self.replay_from);
        put.u64(self.strict_from);
        put.u64(self.closed_at.unwrap_or(0));
        put.u64(self.made);
        let label = label_bytes(&self.label);
        put.bytes(label);
        put.bytes(&[0; LABEL_BYTES_MAX][label.len()..]);
        put.u32(self.layout.objects_max);
        put.u32(0);
        put.u64(self.layout.attribute_bytes_max);
        let crc = crc_fast::crc32_iscsi(&out[CRC_FROM..SECTOR_BYTES]);
        let mut put = Put::new(&mut out);
        put.bytes(MAGIC);
        put.u32(crc);
        out
    }

    /// What one copy says. `copy` has [`SUPERBLOCK_BYTES`].
    pub fn decode(copy: &[u8]) -> Result<Self, CopyError> {
        let Some(copy) = copy
            .get(..SUPERBLOCK_BYTES)
            .filter(|copy| copy.starts_with(MAGIC))
        else {
            return Err(CopyError::Absent);
        };
        let (sector, rest) = copy.split_at(SECTOR_BYTES);
        let mut fields = Fields::new(&sector[MAGIC.len()..]);
        if fields.u32() != Some(crc_fast::crc32_iscsi(&sector[CRC_FROM..])) {
            return Err(CopyError::Checksum);
        }
        match fields.u32() {
            Some(VERSION) => {}
            Some(newer) if newer > VERSION => return Err(CopyError::Newer(newer)),
            _ => return Err(CopyError::Field("version")),
        }
        check_features(fields)?;
        let (superblock, chunk_bytes) = Self::read(&mut fields)
            .ok_or(CopyError::Field("length"))?
            .map_err(CopyError::Field)?;
        if chunk_bytes != CHUNK_BYTES {
            return Err(CopyError::Field("size of a chunk"));
        }
        // The fields of features that are unknown here may follow.
        let mut after = fields.rest().iter().chain(rest);
        if !superblock.has_unknown_features() && after.any(|&byte| byte != 0) {
            return Err(CopyError::Field("end, which should be zero,"));
        }
        superblock.check().map_err(CopyError::Field)?;
        Ok(superblock)
    }

    /// All fields after the version, and the size of a chunk.
    fn read(fields: &mut Fields<'_>) -> Option<Result<(Self, u32), &'static str>> {
        let sequence = fields.u64()?;
        let uuid = fields.uuid()?;
        let (compatible, read_only_compatible) = (fields.u64()?, fields.u64()?);
        let (incompatible, generation) = (fields.u64()?, fields.u64()?);
        let (mut layout, chunk_bytes) = read_layout(fields)?;
        let (number, area, frames) = (fields.u64()?, fields.u32()?, fields.u32()?);
        let checkpoint = match (number, area, frames) {
            (0, 0, 0) => None,
            (1.., 0..=1, 1..) => Some(CheckpointPlace {
                number,
                area: u8::from(area == 1),
                frames,
            }),
            _ => return Some(Err("checkpoint")),
        };
        let (replay_from, strict_from) = (fields.u64()?, fields.u64()?);
        let closed_at = Some(fields.u64()?).filter(|&at| at != 0);
        let made = fields.u64()?;
        let label = fields.bytes(LABEL_BYTES_MAX)?;
        let end = label
            .iter()
            .rposition(|&byte| byte != 0)
            .map_or(0, |last| last + 1);
        let Ok(label) = std::str::from_utf8(&label[..end]) else {
            return Some(Err("label"));
        };
        let label = label.to_owned();
        layout.objects_max = fields.u32()?;
        if fields.u32()? != 0 {
            return Some(Err("spare field"));
        }
        layout.attribute_bytes_max = fields.u64()?;
        let superblock = Self {
            sequence,
            uuid,
            compatible,
            read_only_compatible,
            incompatible,
            generation,
            layout,
            checkpoint,
            replay_from,
            strict_from,
            closed_at,
            made,
            label,
        };
        Some(Ok((superblock, chunk_bytes)))
    }

    const fn has_unknown_features(&self) -> bool {
        self.read_only_compatible & !READ_ONLY_COMPATIBLE != 0 || self.compatible & !COMPATIBLE != 0
    }

    /// What is impossible about it.
    fn check(&self) -> Result<(), &'static str> {
        self.layout.check()?;
        let ring = self.layout.ring();
        let rising = [self.sequence, self.generation];
        if rising.iter().any(|it| !(1..RISING_MAX).contains(it)) {
            return Err("sequence or generation");
        }
        let places = [
            Some(self.replay_from),
            Some(self.strict_from),
            self.closed_at,
        ];
        let places: Vec<u64> = places.into_iter().flatten().collect();
        let is_place = |&at: &u64| (1..RISING_MAX).contains(&at) && ring.next_start(at) == at;
        if !places.iter().all(is_place) || !places.is_sorted() {
            return Err("place in the journal");
        }
        if let Some(checkpoint) = self.checkpoint {
            let frames_max = self.layout.checkpoints[0].bytes / (4 << 10);
            if u64::from(checkpoint.frames) > frames_max {
                return Err("number of frames");
            }
        }
        Ok(())
    }

    /// Which copy counts. `start` is the start of the drive: the first copy, and as much of
    /// [`FOREIGN_BYTES`](super::foreign::FOREIGN_BYTES) as there is, to say what else it may be.
    pub fn choose(start: &[u8], second: &[u8]) -> Result<Chosen, SuperblockError> {
        let copies = [Self::decode(start), Self::decode(second)];
        for copy in &copies {
            match *copy {
                Err(CopyError::Newer(found)) => return Err(SuperblockError::Newer { found }),
                Err(CopyError::Incompatible { uuid, features }) => {
                    return Err(SuperblockError::Incompatible { uuid, features });
                }
                Ok(_) | Err(_) => {}
            }
        }
        let chosen = match copies {
            [Err(CopyError::Absent), Err(CopyError::Absent)] => {
                return Err(SuperblockError::NotAPool(recognise(start)));
            }
            [Err(first), Err(second)] => return Err(SuperblockError::Damaged(first, second)),
            [Ok(superblock), Err(error)] => Chosen {
                superblock,
                to_mend: Some((1, Some(error))),
            },
            [Err(error), Ok(superblock)] => {
                // Mending would destroy what somebody else has on the drive now.
                if let (CopyError::Absent, Foreign::Known(made)) = (&error, recognise(start)) {
                    let uuid = superblock.uuid;
                    return Err(SuperblockError::MadeOver { uuid, made });
                }
                Chosen {
                    superblock,
                    to_mend: Some((0, Some(error))),
                }
            }
            [Ok(first), Ok(second)] => later(first, second)?,
        };
        Ok(chosen)
    }

    /// Whether the drive is one that this pool can be used on.
    pub fn check_drive(&self, bytes: u64, block_bytes: u32) -> Result<(), SuperblockError> {
        let (uuid, made) = (self.uuid, self.layout.block_bytes);
        if made != block_bytes {
            return Err(SuperblockError::BlockChanged {
                uuid,
                made,
                found: block_bytes,
            });
        }
        if self.layout.bytes > bytes {
            let needed = self.layout.bytes;
            return Err(SuperblockError::DriveSmaller {
                uuid,
                needed,
                bytes,
            });
        }
        Ok(())
    }

    /// Whether this program may write to the pool.
    pub const fn check_writable(&self) -> Result<(), SuperblockError> {
        match self.read_only_compatible & !READ_ONLY_COMPATIBLE {
            0 => Ok(()),
            features => Err(SuperblockError::ReadOnly {
                uuid: self.uuid,
                features,
            }),
        }
    }
}

/// That all features are known that must be, before anything after them is looked at. From the sequence on.
fn check_features(mut fields: Fields<'_>) -> Result<(), CopyError> {
    let mut read = || {
        fields.u64()?;
        let uuid = fields.uuid()?;
        fields.u64()?;
        fields.u64()?;
        Some((uuid, fields.u64()? & !INCOMPATIBLE))
    };
    match read() {
        None => Err(CopyError::Field("length")),
        Some((_, 0)) => Ok(()),
        Some((uuid, features)) => Err(CopyError::Incompatible { uuid, features }),
    }
}

/// Of two valid copies.
fn later(first: Superblock, second: Superblock) -> Result<Chosen, SuperblockError> {
    if first.uuid != second.uuid {
        return Err(SuperblockError::TwoPools(first.uuid, second.uuid));
    }
    if first == second {
        return Ok(Chosen {
            superblock: first,
            to_mend: None,
        });
    }
    match first.sequence.cmp(&second.sequence) {
        std::cmp::Ordering::Equal => Err(SuperblockError::Contradiction(first.uuid)),
        std::cmp::Ordering::Greater => Ok(Chosen {
            superblock: first,
            to_mend: Some((1, None)),
        }),
        std::cmp::Ordering::Less => Ok(Chosen {
            superblock: second,
            to_mend: Some((0, None)),
        }),
    }
}

fn label_bytes(label: &str) -> &[u8] {
    let end = label.floor_char_boundary(LABEL_BYTES_MAX);
    &label.as_bytes()[..end]
}

fn put_layout(layout: &Layout, put: &mut Put<'_>) {
    put.u64(layout.bytes);
    put.u32(layout.block_bytes);
    put.u32(CHUNK_BYTES);
    put.u32(layout.extent_bytes);
    put.u32(layout.extents);
    let [first, second] = layout.checkpoints;
    for area in [layout.journal, first, second, layout.checksums, layout.data] {
        put.u64(area.offset);
        put.u64(area.bytes);
    }
}

/// The layout, and the size of a chunk.
fn read_layout(fields: &mut Fields<'_>) -> Option<(Layout, u32)> {
    let bytes = fields.u64()?;
    let (block_bytes, chunk_bytes) = (fields.u32()?, fields.u32()?);
    let (extent_bytes, extents) = (fields.u32()?, fields.u32()?);
    let mut area = || {
        Some(Area {
            offset: fields.u64()?,
            bytes: fields.u64()?,
        })
    };
    let journal = area()?;
    let checkpoints = [area()?, area()?];
    let (checksums, data) = (area()?, area()?);
    let layout = Layout {
        bytes,
        block_bytes,
        extent_bytes,
        extents,
        journal,
        checkpoints,
        checksums,
        data,
        ..Layout::default()
    };
    Some((layout, chunk_bytes))
}

#[cfg(test)]
mod tests;
