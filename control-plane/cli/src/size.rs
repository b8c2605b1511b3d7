//! Sizes in bytes as people write them: `64MiB`, `100GB`, `512`.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

/// Units by name, longest first, so that `KiB` is not taken for `B`.
const UNITS: [(&str, u64); 15] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("PiB", 1 << 50),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("PB", 1_000_000_000_000_000),
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("B", 1),
];

/// A size in bytes. Read in binary (`MiB`) and decimal (`MB`) units, printed in binary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "Written")]
pub(crate) struct Size(pub(crate) u64);

/// A size in a configuration file: a number of bytes, or text with a unit.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a size such as \"64MiB\", or a number of bytes")]
enum Written {
    Bytes(u64),
    Text(String),
}

impl TryFrom<Written> for Size {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        match written {
            Written::Bytes(bytes) => Ok(Self(bytes)),
            Written::Text(text) => text.parse(),
        }
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let (number, unit) = split_unit(text);
        parse_number(number.trim_end(), unit)
            .map(Self)
            .ok_or_else(|| {
                format!(
                    "{text:?} is not a size; write a number with a unit, such as 64MiB or 100GB"
                )
            })
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
        let mut power = 0;
        while power + 1 < NAMES.len() && self.0 >> (10 * (power + 1)) > 0 {
            power += 1;
        }
        let unit = 1_u64 << (10 * power);
        let (whole, rest) = (self.0 / unit, self.0 % unit);
        // Two decimals, cut rather than rounded: a size is never printed larger than it is.
        let hundredths = u128::from(rest) * 100 / u128::from(unit);
        match hundredths {
            0 => write!(f, "{whole} {}", NAMES[power]),
            _ => write!(f, "{whole}.{hundredths:02} {}", NAMES[power]),
        }
    }
}

fn split_unit(text: &str) -> (&str, u64) {
    for (name, unit) in UNITS {
        if let Some(at) = text.len().checked_sub(name.len())
            && text.is_char_boundary(at)
            && text[at..].eq_ignore_ascii_case(name)
        {
            return (&text[..at], unit);
        }
    }
    (text, 1)
}

/// A decimal number times a unit, exactly; a fraction of a byte is refused.
fn parse_number(number: &str, unit: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || number.ends_with('.') {
        return None;
    }
    let whole: u64 = whole.parse().ok()?;
    let mut bytes = u128::from(whole.checked_mul(unit)?);
    if !fraction.is_empty() {
        let scale = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
        let part = fraction
            .parse::<u128>()
            .ok()?
            .checked_mul(u128::from(unit))?;
        if part % scale != 0 {
            return None;
        }
        bytes += part / scale;
    }
    u64::try_from(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_parse_in_binary_and_decimal_units() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("512B", 512),
            ("4KiB", 4096),
            ("4k", u64::MAX),
            ("64MiB", 64 << 20),
            ("64mib", 64 << 20),
            ("64 MiB", 64 << 20),
            ("64Mi", 64 << 20),
            ("1.5GiB", 3 << 29),
            ("100GB", 100_000_000_000),
            ("0.5TB", 500_000_000_000),
            ("1TiB", 1 << 40),
        ] {
            let parsed = text.parse::<Size>().map_or(u64::MAX, |size| size.0);
            assert_eq!(parsed, bytes, "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused_with_an_example() {
        for text in [
            "",
            "MiB",
            "-1",
            "1e9",
            "1.",
            ".5GiB",
            "1.5B",
            "16777216TiB",
            "1 2",
            "é",
        ] {
            let error = text.parse::<Size>().unwrap_err();
            assert!(error.contains("64MiB"), "{text}: {error}");
        }
    }

    #[test]
    fn sizes_print_in_binary_units() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (64 << 20, "64 MiB"),
            (3 << 29, "1.50 GiB"),
            (100_000_000_000, "93.13 GiB"),
        ] {
            assert_eq!(Size(bytes).to_string(), text);
        }
    }
}
