//! Pages of lists. A token holds the key of the last item sent, so a list that
//! changes between two pages neither repeats nor loses what stayed.

use bowline_api::{Failure, Reason};
use uuid::Uuid;

/// Items of a page when the caller does not say.
const SIZE_DEFAULT: usize = 100;
/// Items of a page at most.
const SIZE_MAX: usize = 1000;
/// Bytes of a page at most, but for a single item: well below what gRPC clients take in one message.
const BYTES_MAX: usize = 2 << 20;
/// Bytes of the fingerprint that ties a token to its list.
const SCOPE_BYTES: usize = 4;

/// Which part of a list is wanted.
#[derive(Debug)]
pub(crate) struct Page {
    size: usize,
    after: Option<String>,
    scope: [u8; SCOPE_BYTES],
}

impl Page {
    /// `scope` names the list and its filters: a token of another is refused.
    pub(crate) fn parse(page_size: i32, token: &str, scope: &str) -> Result<Self, Failure> {
        let size = match usize::try_from(page_size) {
            Ok(0) => SIZE_DEFAULT,
            Ok(size) => size.min(SIZE_MAX),
            Err(_) => {
                let message = format!("page_size {page_size} is negative");
                return Err(Failure::invalid_field("page_size", message));
            }
        };
        let scope = fingerprint(scope);
        let after = if token.is_empty() {
            None
        } else {
            Some(after(token, scope)?)
        };
        Ok(Self { size, after, scope })
    }

    /// Cuts the page out of a list in ascending order of its keys; gives it with
    /// the token of the next page, empty at the end.
    pub(crate) fn cut<T>(&self, items: impl IntoIterator<Item = (String, T)>) -> (Vec<T>, String) {
        let items = items.into_iter();
        self.cut_weighed(items.map(|(key, item)| (key, 0, item)))
    }

    /// The same of items that may be large: each comes with about the bytes that it takes.
    pub(crate) fn cut_weighed<T>(
        &self,
        items: impl IntoIterator<Item = (String, usize, T)>,
    ) -> (Vec<T>, String) {
        let mut page = Vec::new();
        let (mut last, mut room) = (String::new(), BYTES_MAX);
        for (key, bytes, item) in items {
            if self.after.as_ref().is_some_and(|after| key <= *after) {
                continue;
            }
            let is_full = page.len() == self.size || bytes > room;
            if is_full && !page.is_empty() {
                return (page, self.token(&last));
            }
            room = room.saturating_sub(bytes);
            page.push(item);
            last = key;
        }
        (page, String::new())
    }

    fn token(&self, last: &str) -> String {
        use std::fmt::Write as _;
        let mut token = String::with_capacity(2 * (SCOPE_BYTES + last.len()));
        for byte in self.scope.iter().chain(last.as_bytes()) {
            let _infallible = write!(token, "{byte:02x}");
        }
        token
    }
}

fn after(token: &str, scope: [u8; SCOPE_BYTES]) -> Result<String, Failure> {
    let bytes = unhex(token).ok_or_else(bad_token)?;
    let key = bytes.strip_prefix(&scope).ok_or_else(bad_token)?;
    String::from_utf8(key.to_vec()).map_err(|_| bad_token())
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text
        .chars()
        .map(|digit| {
            digit
                .to_digit(16)
                .and_then(|value| u8::try_from(value).ok())
        })
        .collect();
    let (pairs, rest) = digits.as_deref()?.as_chunks::<2>();
    rest.is_empty()
        .then(|| pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

fn bad_token() -> Failure {
    Failure::new(
        Reason::InvalidPageToken,
        "page_token is not a token of this list",
    )
    .with("field", "page_token")
    .hint("start again without a token, and keep the other fields the same for every page")
}

fn fingerprint(scope: &str) -> [u8; SCOPE_BYTES] {
    let [a, b, c, d, ..] = *Uuid::new_v5(&Uuid::NAMESPACE_OID, scope.as_bytes()).as_bytes();
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(count: usize) -> Vec<(String, usize)> {
        (0..count)
            .map(|index| (format!("{index:05}"), index))
            .collect()
    }

    #[test]
    fn pages_cover_the_list_once() {
        let mut seen = Vec::new();
        let mut token = String::new();
        loop {
            let page = Page::parse(7, &token, "s").unwrap();
            let (items, next) = page.cut(keys(23));
            seen.extend(items);
            if next.is_empty() {
                break;
            }
            token = next;
        }
        assert_eq!(seen, (0..23).collect::<Vec<_>>());
    }

    #[test]
    fn large_items_make_short_pages_and_the_largest_is_alone() {
        let weights = [BYTES_MAX / 2, BYTES_MAX / 2, 1, 2 * BYTES_MAX, 1];
        let mut token = String::new();
        let mut pages = Vec::new();
        loop {
            let items = keys(weights.len()).into_iter().zip(weights);
            let items = items.map(|((key, item), bytes)| (key, bytes, item));
            let (page, next) = Page::parse(7, &token, "s").unwrap().cut_weighed(items);
            pages.push(page);
            if next.is_empty() {
                break;
            }
            token = next;
        }
        assert_eq!(pages, [vec![0, 1], vec![2], vec![3], vec![4]]);
    }

    #[test]
    fn full_last_page_has_no_token() {
        let (items, next) = Page::parse(3, "", "s").unwrap().cut(keys(3));
        assert_eq!((items.len(), next.as_str()), (3, ""));
    }

    #[test]
    fn removed_item_does_not_disturb_the_next_page() {
        let (_, token) = Page::parse(2, "", "s").unwrap().cut(keys(5));
        let mut rest = keys(5);
        rest.remove(1);
        let (items, _) = Page::parse(2, &token, "s").unwrap().cut(rest);
        assert_eq!(items, [2, 3]);
    }

    #[test]
    fn sizes_are_bounded() {
        assert_eq!(
            Page::parse(0, "", "s").unwrap().cut(keys(5000)).0.len(),
            SIZE_DEFAULT
        );
        assert_eq!(
            Page::parse(4000, "", "s").unwrap().cut(keys(5000)).0.len(),
            SIZE_MAX
        );
        let failure = Page::parse(-1, "", "s").unwrap_err();
        assert_eq!(failure.reason, Reason::InvalidField);
    }

    #[test]
    fn foreign_tokens_are_refused() {
        let (_, token) = Page::parse(2, "", "a").unwrap().cut(keys(5));
        for (token, scope) in [(token.as_str(), "b"), ("zz", "a"), ("abc", "a"), ("é", "a")] {
            let failure = Page::parse(2, token, scope).unwrap_err();
            assert_eq!(failure.reason, Reason::InvalidPageToken, "{token}");
        }
    }
}
