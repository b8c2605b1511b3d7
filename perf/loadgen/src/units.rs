//! Sizes and spans of time as people write them: `4KiB`, `50ms`.

use bowline_nvme::Nanos;

/// Binary and decimal units by name, longest first, so that `KiB` is not taken for `B`.
const SIZES: [(&str, u64); 12] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("B", 1),
];

const SPANS: [(&str, u64); 7] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("ms", 1_000_000),
    ("min", 60_000_000_000),
    ("s", 1_000_000_000),
    ("h", 3_600_000_000_000),
];

/// A size in bytes; a bare number is bytes.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text, &SIZES).unwrap_or((text, 1));
    whole(number, unit).ok_or_else(|| {
        format!("{text:?} is not a size; write a whole number with a unit, such as 4KiB or 1MiB")
    })
}

/// A span of time; the unit must be there, except for 0.
pub(crate) fn parse_span(text: &str) -> Result<Nanos, String> {
    let parsed = match split(text, &SPANS) {
        Some((number, unit)) => whole(number, unit),
        None if text == "0" => Some(0),
        None => None,
    };
    parsed.map(Nanos).ok_or_else(|| {
        format!("{text:?} is not a time; write a whole number with a unit, such as 50ms or 10s")
    })
}

/// A size with the largest binary unit that it is a whole multiple of.
pub(crate) fn show_size(bytes: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    let fitting = units
        .iter()
        .find(|(shift, _)| bytes > 0 && bytes.is_multiple_of(1 << shift));
    match fitting {
        Some((shift, name)) => format!("{} {name}", bytes >> shift),
        None => format!("{bytes} B"),
    }
}

fn split<'a>(text: &'a str, units: &[(&str, u64)]) -> Option<(&'a str, u64)> {
    units.iter().find_map(|(name, unit)| {
        let at = text.len().checked_sub(name.len())?;
        let tail = text.get(at..)?;
        tail.eq_ignore_ascii_case(name)
            .then_some((text[..at].trim_end(), *unit))
    })
}

fn whole(number: &str, unit: u64) -> Option<u64> {
    let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    let number: u64 = digits.then(|| number.parse().ok())??;
    number.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_spans_need_whole_numbers_and_known_units() {
        for (text, bytes) in [
            ("512", 512),
            ("4KiB", 4096),
            ("1 MiB", 1 << 20),
            ("2mb", 2_000_000),
        ] {
            assert_eq!(parse_size(text), Ok(bytes));
        }
        for (text, nanos) in [
            ("50ms", 50_000_000),
            ("1s", 1_000_000_000),
            ("0", 0),
            ("2min", 120_000_000_000),
        ] {
            assert_eq!(parse_span(text), Ok(Nanos(nanos)));
        }
        for text in ["", "KiB", "-1", "1.5KiB", "4q", "99999999999TiB"] {
            assert!(parse_size(text).unwrap_err().contains("4KiB"), "{text}");
        }
        for text in ["", "5", "ms", "-1s", "1.5s", "99999999999h"] {
            assert!(parse_span(text).unwrap_err().contains("50ms"), "{text}");
        }
    }

    #[test]
    fn sizes_print_without_loss() {
        for (bytes, text) in [
            (0, "0 B"),
            (512, "512 B"),
            (4096, "4 KiB"),
            (5 << 30, "5 GiB"),
            (1536, "1536 B"),
        ] {
            assert_eq!(show_size(bytes), text);
        }
    }
}
