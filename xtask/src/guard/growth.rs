//! What may not grow: the same command with more connections, namespaces, depth or bytes.

use super::figures::Group;

/// A scenario, one that it is like, and how many times the latter's instructions it may take.
/// Copies and checksums go by the bytes and are not part of it.
struct Bound {
    scenario: &'static str,
    like: &'static str,
    times: f64,
}

const fn bound(scenario: &'static str, like: &'static str, times: f64) -> Bound {
    Bound {
        scenario,
        like,
        times,
    }
}

const BOUNDS: &[Bound] = &[
    // Who does nothing costs nothing, but that the timers it came with are put off once, a few in
    // each millisecond: here that is soon after it came, and few commands share it.
    bound("read_4k_qd1_beside_1000_idle", "read_4k_qd1", 1.07),
    bound("read_4k_qd32_beside_1000_idle", "read_4k_qd32", 1.03),
    bound("write_4k_qd32_beside_1000_idle", "write_4k_qd32", 1.03),
    bound("connect_beside_1000_idle", "connect", 1.03),
    // Many that do something share turns.
    bound("read_4k_qd1_on_each_of_500", "read_4k_qd1", 1.0),
    // A namespace is found by its place, an identity in a tree.
    bound("read_4k_qd1_of_10000_namespaces", "read_4k_qd1", 1.03),
    bound("read_4k_qd32_of_10000_namespaces", "read_4k_qd32", 1.03),
    bound(
        "read_4k_qd32_over_32_of_10000_namespaces",
        "read_4k_qd32",
        1.2,
    ),
    bound("write_4k_qd32_of_10000_namespaces", "write_4k_qd32", 1.03),
    bound("keep_alive_of_10000_namespaces", "keep_alive", 1.03),
    bound("connect_to_10000_namespaces", "connect", 1.03),
    bound("attach_to_10000_namespaces", "attach", 1.5),
    // A turn's own cost is shared by the commands in it.
    bound("read_4k_qd32", "read_4k_qd1", 0.6),
    bound("read_4k_qd128", "read_4k_qd32", 1.0),
    bound("write_4k_qd32", "write_4k_qd1", 0.65),
    // So many bytes are received in several goes, and a command that is cut by one takes the long way.
    bound("write_4k_qd128", "write_4k_qd32", 1.03),
    // Bytes cost copies only; a mebibyte does not fit the socket's buffer and takes more turns.
    bound("read_512_qd32", "read_4k_qd32", 1.03),
    bound("read_4k_qd32", "read_512_qd32", 1.03),
    bound("read_128k_qd1", "read_4k_qd1", 1.03),
    bound("read_1m_qd1", "read_128k_qd1", 1.55),
    bound("write_512_qd32", "write_4k_qd32", 1.03),
    bound("write_4k_qd32", "write_512_qd32", 1.03),
    // What arrives in pieces is not run at once.
    bound("write_128k_qd1", "write_4k_r2t_qd1", 1.45),
    bound("write_1m_qd1", "write_128k_qd1", 1.6),
];

/// What has grown in these figures.
pub(super) fn broken(group: &Group) -> Vec<String> {
    let figure = |name: &str| group.get(name)?.get("target").copied();
    let mut broken = Vec::new();
    for Bound {
        scenario,
        like,
        times,
    } in BOUNDS
    {
        match (figure(scenario), figure(like)) {
            (Some(found), Some(base)) if found <= base * times => {}
            (Some(found), Some(base)) => broken.push(format!(
                "{scenario} takes {found:.0} instructions, {:.3} times those of {like}; at most \
                 {times}",
                found / base
            )),
            _ => broken.push(format!("{scenario} or {like} was not counted")),
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::super::figures::Parts;
    use super::*;

    #[test]
    fn growth_beyond_its_bound_is_told() {
        let parts = |figure: f64| Parts::from([("target".to_owned(), figure)]);
        let flat = BOUNDS
            .iter()
            .flat_map(|bound| [bound.scenario, bound.like])
            .map(|name| (name.to_owned(), parts(1000.0)));
        let mut group: Group = flat.collect();
        group.insert("read_4k_qd1".to_owned(), parts(2000.0));
        group.insert("write_4k_qd1".to_owned(), parts(2000.0));
        assert_eq!(broken(&group), [""; 0]);
        group.insert("connect_to_10000_namespaces".to_owned(), parts(1100.0));
        let told = broken(&group);
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].contains("1.100 times those of connect"), "{told:?}");
    }
}
