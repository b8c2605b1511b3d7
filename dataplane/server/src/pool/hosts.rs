//! The hosts that may use a volume, as the pool keeps them: an attribute of the volume. FORMAT.md
//! has the bytes.

use std::collections::BTreeSet;

use crate::names::ANY_HOST;

/// Who may use a volume, whatever the flags at start say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct AllowedHosts {
    /// Every host.
    pub(crate) any: bool,
    /// By NQN.
    pub(crate) names: BTreeSet<String>,
}

impl AllowedHosts {
    /// All, as they are written.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &str> {
        let any = self.any.then_some(ANY_HOST);
        any.into_iter().chain(self.names.iter().map(String::as_str))
    }

    /// One name a line. Nothing for nobody, which is how an attribute is taken away.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut text = String::new();
        for name in self.iter() {
            text.push_str(name);
            text.push('\n');
        }
        text.into_bytes()
    }

    /// `None` if these are not such bytes.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let mut hosts = Self::default();
        for line in text.split_terminator('\n') {
            match line {
                "" => return None,
                ANY_HOST => hosts.any = true,
                name => {
                    hosts.names.insert(name.to_owned());
                }
            }
        }
        (text.is_empty() || text.ends_with('\n')).then_some(hosts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_survive_the_pool() {
        for (any, names) in [
            (false, &[][..]),
            (true, &[]),
            (false, &["nqn.b", "nqn.a"]),
            (true, &["nqn.c"]),
        ] {
            let names = names.iter().map(|&name| name.to_owned()).collect();
            let hosts = AllowedHosts { any, names };
            assert_eq!(AllowedHosts::decode(&hosts.encode()), Some(hosts));
        }
    }

    #[test]
    fn what_is_cut_short_is_not_believed() {
        for bytes in [&b"nqn.a"[..], b"\n", b"nqn.a\n\n", b"\xff\n"] {
            assert_eq!(AllowedHosts::decode(bytes), None);
        }
    }
}
