//! Data structures described once, as a list of fields at offsets.
//!
//! `layout!` turns the list into a plain struct with `encode`, `decode` and an all-zero
//! `Default`. Bytes that no field covers are written as zero and ignored when read. Tests walk
//! the list for overlaps.

use crate::fabrics::Version;
use crate::wire::{array_at, put};
use crate::{ControllerId, NamespaceId};

/// Something with a fixed little-endian form.
pub(crate) trait Field: Sized {
    /// Bytes of the form.
    const BYTES: usize;
    fn load(bytes: &[u8], at: usize) -> Self;
    fn store(&self, bytes: &mut [u8], at: usize);
}

macro_rules! integer_fields {
    ($($int:ty),*) => {$(
        impl Field for $int {
            const BYTES: usize = size_of::<$int>();

            fn load(bytes: &[u8], at: usize) -> Self {
                Self::from_le_bytes(array_at(bytes, at))
            }

            fn store(&self, bytes: &mut [u8], at: usize) {
                put(bytes, at, &self.to_le_bytes());
            }
        }
    )*};
}

integer_fields!(u8, u16, u32, u64, u128);

macro_rules! newtype_fields {
    ($($name:ident),*) => {$(
        impl Field for $name {
            const BYTES: usize = size_of::<$name>();

            fn load(bytes: &[u8], at: usize) -> Self {
                Self(Field::load(bytes, at))
            }

            fn store(&self, bytes: &mut [u8], at: usize) {
                self.0.store(bytes, at);
            }
        }
    )*};
}

newtype_fields!(ControllerId, NamespaceId, Version);

impl<T: Field, const N: usize> Field for [T; N] {
    const BYTES: usize = T::BYTES * N;

    fn load(bytes: &[u8], at: usize) -> Self {
        core::array::from_fn(|index| T::load(bytes, at + index * T::BYTES))
    }

    fn store(&self, bytes: &mut [u8], at: usize) {
        for (index, item) in self.iter().enumerate() {
            item.store(bytes, at + index * T::BYTES);
        }
    }
}

/// Declares a structure: its size in bytes, then `name: type = offset` for each field.
macro_rules! layout {
    (
        $(#[$meta:meta])*
        pub struct $name:ident: $size:literal bytes {
            $($(#[$field_meta:meta])* $field:ident: $ty:ty = $at:literal,)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: $ty,)*
        }

        impl $name {
            /// Bytes of the structure.
            pub const SIZE: usize = $size;

            /// Writes the whole structure over `out`.
            pub fn encode(&self, out: &mut [u8; $size]) {
                *out = [0; $size];
                $($crate::layout::Field::store(&self.$field, out, $at);)*
            }

            /// The structure's bytes.
            pub fn to_bytes(&self) -> [u8; $size] {
                let mut bytes = [0; $size];
                self.encode(&mut bytes);
                bytes
            }

            /// Reads the structure; any bytes are one.
            pub fn decode(bytes: &[u8; $size]) -> Self {
                Self { $($field: $crate::layout::Field::load(bytes, $at),)* }
            }

            /// Name, offset and size of every field.
            #[cfg(test)]
            pub(crate) const FIELDS: &'static [(&'static str, usize, usize)] = &[
                $((stringify!($field), $at, <$ty as $crate::layout::Field>::BYTES),)*
            ];
        }

        impl Default for $name {
            fn default() -> Self {
                Self::decode(&[0; $size])
            }
        }
    };
}

pub(crate) use layout;

/// Asserts that fields come in order, do not overlap and stay within the structure, and that
/// decoding and encoding arbitrary bytes keeps what the fields cover.
#[cfg(test)]
macro_rules! assert_layout {
    ($name:ty) => {{
        let mut end = 0;
        for &(field, at, bytes) in <$name>::FIELDS {
            assert!(
                at >= end,
                "{}.{field} at {at} overlaps what ends at {end}",
                stringify!($name)
            );
            end = at + bytes;
        }
        assert!(end <= <$name>::SIZE);
        let noise: [u8; <$name>::SIZE] =
            core::array::from_fn(|at| u8::try_from(at % 251 + 1).unwrap());
        let decoded = <$name>::decode(&noise);
        let bytes = decoded.to_bytes();
        assert_eq!(<$name>::decode(&bytes), decoded);
        for (at, &byte) in bytes.iter().enumerate() {
            let covered = <$name>::FIELDS
                .iter()
                .any(|&(_, start, n)| (start..start + n).contains(&at));
            assert_eq!(byte, if covered { noise[at] } else { 0 }, "byte {at}");
        }
        assert_eq!(<$name>::default().to_bytes(), [0; <$name>::SIZE]);
    }};
}

#[cfg(test)]
pub(crate) use assert_layout;
