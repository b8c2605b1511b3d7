//! The fuzzer's drivers without the fuzzer: the corpus is replayed, and a few random inputs show
//! that the drivers themselves are sound. `cargo xtask fuzz` searches for more.

mod drivers;

use std::path::Path;

/// Random inputs per driver. The fuzzer tries millions; this is only a smoke test.
const RANDOM_INPUTS: u64 = 100;

fn replay(name: &str, run: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz/corpus")
        .join(name);
    let entries = std::fs::read_dir(&folder).expect("the corpus is part of the tree");
    let mut files: Vec<_> = entries
        .map(|entry| entry.expect("readable").path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", folder.display());
    for file in files {
        let bytes = std::fs::read(&file).expect("readable");
        // Libtest shows this only if the run panics.
        println!("{}", file.display());
        run(&bytes);
    }
}

fn random(run: fn(&[u8])) {
    for seed in 1..=RANDOM_INPUTS {
        println!("seed {seed}");
        let mut state = seed;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        };
        let bytes: Vec<u8> = (0..seed * 8).map(|_| next()).collect();
        run(&bytes);
    }
}

#[test]
fn pdu_corpus_and_random_bytes_hold() {
    replay("pdu", drivers::pdu::run);
    random(drivers::pdu::run);
}

#[test]
fn logs_corpus_and_random_bytes_hold() {
    replay("logs", drivers::logs::run);
    random(drivers::logs::run);
}

#[test]
fn target_corpus_and_random_bytes_hold() {
    replay("target", drivers::target::run);
    random(drivers::target::run);
}

#[test]
fn host_corpus_and_random_bytes_hold() {
    replay("host", drivers::host::run);
    random(drivers::host::run);
}
