//! Lists that Identify returns. [BASE-2.0 §4.4, §5.17.2.3]

use super::{SIZE, csi};
use crate::wire::{put, put_u16, put_u32, u16_at, u32_at};
use crate::{ControllerId, NamespaceId};

const NAMESPACES_MAX: usize = SIZE / 4;
const CONTROLLERS_MAX: usize = SIZE / 2 - 1;

/// Writes a Namespace List: the first 1024 of `ids`, which must ascend, then zeroes.
/// [BASE-2.0 §4.4.2]
pub fn encode_namespace_list(ids: impl IntoIterator<Item = NamespaceId>, out: &mut [u8; SIZE]) {
    *out = [0; SIZE];
    for (index, id) in ids.into_iter().take(NAMESPACES_MAX).enumerate() {
        put_u32(out, index * 4, id.0);
    }
}

/// The identifiers of a Namespace List up to its first zero.
pub fn namespace_list(bytes: &[u8; SIZE]) -> impl Iterator<Item = NamespaceId> + '_ {
    let ids = (0..NAMESPACES_MAX).map(|index| NamespaceId(u32_at(bytes, index * 4)));
    ids.take_while(|id| *id != NamespaceId::NONE)
}

/// Writes a Controller List: the first 2047 of `ids`, which must ascend. [BASE-2.0 §4.4.1]
pub fn encode_controller_list(ids: impl IntoIterator<Item = ControllerId>, out: &mut [u8; SIZE]) {
    *out = [0; SIZE];
    let mut count = 0;
    for id in ids.into_iter().take(CONTROLLERS_MAX) {
        count += 1;
        put_u16(out, usize::from(count) * 2, id.0);
    }
    put_u16(out, 0, count);
}

/// The identifiers of a Controller List, as many as it says it has, 2047 at most.
pub fn controller_list(bytes: &[u8; SIZE]) -> impl Iterator<Item = ControllerId> + '_ {
    let count = usize::from(u16_at(bytes, 0)).min(CONTROLLERS_MAX);
    (1..=count).map(|index| ControllerId(u16_at(bytes, index * 2)))
}

/// Namespace Identification Descriptor. [BASE-2.0 §5.17.2.3]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NamespaceDescriptor {
    /// IEEE Extended Unique Identifier, big-endian.
    Eui64([u8; 8]),
    /// Namespace Globally Unique Identifier, big-endian.
    Nguid([u8; 16]),
    /// UUID in the byte order of RFC 4122.
    Uuid([u8; 16]),
    /// Command Set Identifier.
    Csi(u8),
}

impl NamespaceDescriptor {
    /// The NVM Command Set.
    pub const NVM: Self = Self::Csi(csi::NVM);

    /// Namespace Identifier Type (NIDT).
    pub const fn nidt(&self) -> u8 {
        match self {
            Self::Eui64(_) => 1,
            Self::Nguid(_) => 2,
            Self::Uuid(_) => 3,
            Self::Csi(_) => 4,
        }
    }

    fn id(&self) -> &[u8] {
        match self {
            Self::Eui64(id) => id,
            Self::Nguid(id) | Self::Uuid(id) => id,
            Self::Csi(id) => core::slice::from_ref(id),
        }
    }

    /// `None` for a type we do not know. `Err` for a wrong length.
    fn decode(nidt: u8, id: &[u8]) -> Result<Option<Self>, core::array::TryFromSliceError> {
        Ok(Some(match nidt {
            1 => Self::Eui64(id.try_into()?),
            2 => Self::Nguid(id.try_into()?),
            3 => Self::Uuid(id.try_into()?),
            4 => {
                let [csi] = id.try_into()?;
                Self::Csi(csi)
            }
            _ => return Ok(None),
        }))
    }
}

/// Writes a descriptor list; what does not fit is left out.
pub fn encode_namespace_descriptors(list: &[NamespaceDescriptor], out: &mut [u8; SIZE]) {
    *out = [0; SIZE];
    let mut at = 0;
    for descriptor in list {
        let id = descriptor.id();
        if at + 4 + id.len() > SIZE {
            break;
        }
        out[at] = descriptor.nidt();
        out[at + 1] = u8::try_from(id.len()).unwrap_or(0);
        put(out, at + 4, id);
        at += 4 + id.len();
    }
}

/// The descriptors of a list. Unknown types are skipped; a known type with a wrong length ends
/// the list, for nothing behind it can be trusted.
pub fn namespace_descriptors(bytes: &[u8; SIZE]) -> impl Iterator<Item = NamespaceDescriptor> + '_ {
    let mut rest: &[u8] = bytes;
    core::iter::from_fn(move || {
        loop {
            let (&[nidt, nidl, _, _], body) = rest.split_first_chunk::<4>()?;
            if nidl == 0 {
                rest = &[];
                return None;
            }
            let (id, later) = body.split_at_checked(usize::from(nidl))?;
            match NamespaceDescriptor::decode(nidt, id) {
                Ok(known) => {
                    rest = later;
                    if known.is_some() {
                        return known;
                    }
                }
                Err(_) => {
                    rest = &[];
                    return None;
                }
            }
        }
    })
}
