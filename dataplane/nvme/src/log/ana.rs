//! Asymmetric Namespace Access log. [BASE-2.0 §5.16.1.13]

use core::fmt;

use crate::NamespaceId;
use crate::layout::layout;
use crate::wire::u32_at;

layout! {
    /// Header of the ANA log, LID 0Ch. [BASE-2.0 §5.16.1.13]
    pub struct AnaHeader: 16 bytes {
        /// Change Count, rises with every change.
        chgcnt: u64 = 0,
        /// Number of ANA Group Descriptors that follow.
        ngrps: u16 = 8,
    }
}

layout! {
    /// ANA Group Descriptor; `nnsids` NSIDs of 4 bytes follow it, ascending.
    /// [BASE-2.0 §5.16.1.13]
    pub struct AnaDescriptor: 32 bytes {
        /// ANA Group ID, not 0.
        grpid: u32 = 0,
        /// Number of NSID Values that follow; 0 where only groups were asked for.
        nnsids: u32 = 4,
        /// Change Count of the group.
        chgcnt: u64 = 8,
        /// ANA State, bits 3:0. See [`AnaDescriptor::ana_state`].
        state: u8 = 16,
    }
}

/// ANA state of a group on this controller. [BASE-2.0 §8.1.2]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum AnaState {
    /// Optimized.
    Optimized = 0x1,
    /// Non-Optimized.
    NonOptimized = 0x2,
    /// Inaccessible.
    Inaccessible = 0x3,
    /// Persistent Loss.
    PersistentLoss = 0x4,
    /// Change: a transition that must end within ANATT.
    Change = 0xF,
}

impl AnaState {
    /// The number on the wire.
    pub const fn wire(self) -> u8 {
        self as u8
    }

    /// The state of this number, if there is one.
    pub const fn from_wire(wire: u8) -> Option<Self> {
        Some(match wire & 0xF {
            0x1 => Self::Optimized,
            0x2 => Self::NonOptimized,
            0x3 => Self::Inaccessible,
            0x4 => Self::PersistentLoss,
            0xF => Self::Change,
            _ => return None,
        })
    }

    /// Whether commands are executed in this state.
    pub const fn is_usable(self) -> bool {
        matches!(self, Self::Optimized | Self::NonOptimized)
    }
}

impl AnaDescriptor {
    /// The state, if it is one.
    pub const fn ana_state(&self) -> Option<AnaState> {
        AnaState::from_wire(self.state)
    }
}

/// Why an ANA log cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AnaLogError {
    /// The log ends within a header, a descriptor or its NSIDs.
    Truncated,
    /// A group has the identifier 0.
    Group,
    /// A group has an undefined state.
    State,
}

impl fmt::Display for AnaLogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Truncated => "the ANA log ends too early",
            Self::Group => "the ANA log has a group 0",
            Self::State => "the ANA log has an undefined state",
        })
    }
}

impl core::error::Error for AnaLogError {}

/// Walks the groups of an ANA log. After an error it ends.
#[derive(Clone, Debug)]
pub struct AnaLogReader<'a> {
    header: AnaHeader,
    groups_left: u16,
    rest: &'a [u8],
}

impl<'a> AnaLogReader<'a> {
    /// A reader of a whole log.
    pub fn new(log: &'a [u8]) -> Result<Self, AnaLogError> {
        let (header, rest) = log
            .split_first_chunk::<{ AnaHeader::SIZE }>()
            .ok_or(AnaLogError::Truncated)?;
        let header = AnaHeader::decode(header);
        Ok(Self {
            header,
            groups_left: header.ngrps,
            rest,
        })
    }

    /// The log's header.
    pub const fn header(&self) -> &AnaHeader {
        &self.header
    }

    fn read_group(&mut self) -> Result<AnaGroup<'a>, AnaLogError> {
        let (descriptor, rest) = self
            .rest
            .split_first_chunk::<{ AnaDescriptor::SIZE }>()
            .ok_or(AnaLogError::Truncated)?;
        let descriptor = AnaDescriptor::decode(descriptor);
        let nsid_bytes = usize::try_from(descriptor.nnsids)
            .ok()
            .and_then(|count| count.checked_mul(4))
            .ok_or(AnaLogError::Truncated)?;
        let (nsids, rest) = rest
            .split_at_checked(nsid_bytes)
            .ok_or(AnaLogError::Truncated)?;
        if descriptor.grpid == 0 {
            return Err(AnaLogError::Group);
        }
        let state = descriptor.ana_state().ok_or(AnaLogError::State)?;
        self.rest = rest;
        Ok(AnaGroup {
            descriptor,
            state,
            nsids,
        })
    }
}

impl<'a> Iterator for AnaLogReader<'a> {
    type Item = Result<AnaGroup<'a>, AnaLogError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.groups_left = self.groups_left.checked_sub(1)?;
        let group = self.read_group();
        if group.is_err() {
            self.groups_left = 0;
        }
        Some(group)
    }
}

/// One group of an ANA log.
#[derive(Clone, Copy, Debug)]
pub struct AnaGroup<'a> {
    /// The descriptor.
    pub descriptor: AnaDescriptor,
    /// Its state.
    pub state: AnaState,
    nsids: &'a [u8],
}

impl AnaGroup<'_> {
    /// The group's namespaces.
    pub fn namespaces(&self) -> impl Iterator<Item = NamespaceId> + '_ {
        let (chunks, _) = self.nsids.as_chunks::<4>();
        chunks.iter().map(|chunk| NamespaceId(u32_at(chunk, 0)))
    }
}
