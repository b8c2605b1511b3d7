//! NVMe Qualified Names. [BASE-2.0 §4.5]

use core::fmt;

/// The well-known name of every discovery subsystem. [FABRICS-1.1 §5]
pub const DISCOVERY: &str = "nqn.2014-08.org.nvmexpress.discovery";

/// Longest name in bytes, without the terminating NUL.
pub const LEN_MAX: usize = 223;

/// Bytes of a name's field in Connect, Identify and discovery structures.
pub const FIELD_BYTES: usize = 256;

/// Why a name is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NqnError {
    /// No bytes at all.
    Empty,
    /// More than 223 bytes, or no NUL within the field's first 224.
    TooLong,
    /// Not UTF-8, or it contains control characters.
    Text,
    /// Not of the form `nqn.yyyy-mm.reverse-domain[:anything]`.
    Form,
}

impl fmt::Display for NqnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "the name is empty",
            Self::TooLong => "the name is longer than 223 bytes",
            Self::Text => "the name is not printable UTF-8",
            Self::Form => "the name is not of the form nqn.yyyy-mm.reverse-domain[:anything]",
        })
    }
}

impl core::error::Error for NqnError {}

/// Checks a name that we are going to give out or be configured with: `nqn.yyyy-mm.` and a
/// reverse domain name, then perhaps a colon and anything. [BASE-2.0 §4.5]
pub fn validate(name: &str) -> Result<(), NqnError> {
    check_text(name)?;
    let rest = name.strip_prefix("nqn.").ok_or(NqnError::Form)?;
    let (date, rest) = rest.split_once('.').ok_or(NqnError::Form)?;
    let domain = rest.split_once(':').map_or(rest, |(domain, _)| domain);
    if is_date(date) && domain.split('.').all(is_domain_label) {
        Ok(())
    } else {
        Err(NqnError::Form)
    }
}

fn check_text(name: &str) -> Result<(), NqnError> {
    match name.len() {
        0 => Err(NqnError::Empty),
        1..=LEN_MAX if name.chars().any(char::is_control) => Err(NqnError::Text),
        1..=LEN_MAX => Ok(()),
        _ => Err(NqnError::TooLong),
    }
}

/// `yyyy-mm`
fn is_date(date: &str) -> bool {
    let Some((year, month)) = date.split_once('-') else {
        return false;
    };
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    year.len() == 4
        && month.len() == 2
        && digits(year)
        && digits(month)
        && ("01"..="12").contains(&month)
}

fn is_domain_label(label: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    (1..=63).contains(&label.len())
        && label.bytes().all(inner)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// A name in a fixed buffer. Names from the wire need not have the form that [`validate`] asks
/// for: hosts use what they like, and comparing is all we do with it.
#[derive(Clone, Copy)]
pub struct Nqn {
    bytes: [u8; LEN_MAX],
    len: u8,
}

impl Nqn {
    /// No name at all: some hosts connect without one. Nothing can be allowed to it by name.
    pub const ANONYMOUS: Self = Self {
        bytes: [0; LEN_MAX],
        len: 0,
    };

    /// A name of 1 to 223 bytes without control characters.
    pub fn new(name: &str) -> Result<Self, NqnError> {
        check_text(name)?;
        let mut bytes = [0; LEN_MAX];
        let len = u8::try_from(name.len()).map_err(|_| NqnError::TooLong)?;
        crate::wire::put(&mut bytes, 0, name.as_bytes());
        Ok(Self { bytes, len })
    }

    /// Reads a NUL-terminated field of a Connect, Identify or discovery structure.
    pub fn decode(field: &[u8; FIELD_BYTES]) -> Result<Self, NqnError> {
        let text = field.split(|&byte| byte == 0).next().unwrap_or_default();
        if text.len() > LEN_MAX {
            return Err(NqnError::TooLong);
        }
        Self::new(core::str::from_utf8(text).map_err(|_| NqnError::Text)?)
    }

    /// The NUL-terminated, zero-padded field.
    pub fn encode(&self) -> [u8; FIELD_BYTES] {
        let mut field = [0; FIELD_BYTES];
        crate::wire::put(&mut field, 0, &self.bytes);
        field
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        // Made from a `str` of this length.
        let bytes = self.bytes.get(..usize::from(self.len)).unwrap_or_default();
        core::str::from_utf8(bytes).unwrap_or_default()
    }
}

impl PartialEq for Nqn {
    fn eq(&self, other: &Self) -> bool {
        // Both are zero behind their length.
        self.len == other.len && self.bytes == other.bytes
    }
}

impl Eq for Nqn {}

impl core::hash::Hash for Nqn {
    fn hash<H: core::hash::Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl PartialEq<str> for Nqn {
    fn eq(&self, other: &str) -> bool {
        self.as_str() == other
    }
}

impl fmt::Display for Nqn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Nqn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Nqn({:?})", self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn well_formed_names_validate() {
        for name in [
            DISCOVERY,
            "nqn.2014-08.org.nvmexpress:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6",
            "nqn.2026-11.io.bowline:node-1:disk",
            "nqn.2026-11.io",
        ] {
            assert_eq!(validate(name), Ok(()), "{name}");
        }
    }

    #[test]
    fn malformed_names_are_refused() {
        for name in [
            "nqn",
            "nqn.2026-11",
            "nqn.2026-13.io.bowline",
            "nqn.26-11.io.bowline",
            "nqn.2026-11..bowline",
            "nqn.2026-11.-io:x",
            "nqn.2026-11.io bowline:x",
            "iqn.2026-11.io.bowline",
            "nqn.2026-11.:x",
        ] {
            assert_eq!(validate(name), Err(NqnError::Form), "{name}");
        }
        assert_eq!(validate(""), Err(NqnError::Empty));
        assert_eq!(validate("nqn.2026-11.io.bowline:a\nb"), Err(NqnError::Text));
    }

    #[test]
    fn name_of_223_bytes_fits_and_224_does_not() {
        let text = [b'a'; 224];
        let text = core::str::from_utf8(&text).unwrap();
        let longest = Nqn::new(&text[..223]).unwrap();
        assert_eq!(Nqn::decode(&longest.encode()), Ok(longest));
        assert_eq!(Nqn::new(text), Err(NqnError::TooLong));
        let mut field = [b'a'; FIELD_BYTES];
        assert_eq!(Nqn::decode(&field), Err(NqnError::TooLong));
        field[224] = 0;
        assert_eq!(Nqn::decode(&field), Err(NqnError::TooLong));
        field[223] = 0;
        assert_eq!(Nqn::decode(&field), Ok(longest));
    }

    #[test]
    fn field_that_is_not_utf8_is_refused() {
        let mut field = [0; FIELD_BYTES];
        field[0] = 0xFF;
        assert_eq!(Nqn::decode(&field), Err(NqnError::Text));
        assert_eq!(Nqn::decode(&[0; FIELD_BYTES]), Err(NqnError::Empty));
    }

    #[test]
    fn host_name_of_foreign_form_is_carried() {
        let name = Nqn::new("nqn.psk-test-host").unwrap();
        assert_eq!(&name, "nqn.psk-test-host");
        assert_eq!(validate(name.as_str()), Err(NqnError::Form));
    }
}
