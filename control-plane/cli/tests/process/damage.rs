//! Data that is not what was written: what hosts and operators are told of it, and how scrubs that look for it are led.

use bowline_nvme::log::{ErrorLogEntry, GetLogPage, SmartLog, id};
use bowline_nvme::{NamespaceId, Status};
use bowline_tcp::host::HostError;
use serde_json::Value;

use crate::harness::DataPlane;
use crate::host::{Host, soon};
use crate::volumes::{Drive, nqn, refused, verb, volumes};

const CHUNK: usize = 4096;

/// Makes a volume whose reads are verified, and has data written from its start on.
fn volume_with(plane: &DataPlane, data: &[u8]) -> String {
    let create = ["volume", "create", "db", "--size", "64MiB"];
    verb(plane, &[&create[..], &["--checksums", "verify"]].concat());
    let subsystem = nqn(&volumes(plane)[0]);
    let mut host = Host::connect(plane, 0, &subsystem).unwrap();
    host.write(data).unwrap();
    subsystem
}

/// Bytes of which no chunk is like another.
fn data(bytes: usize) -> Vec<u8> {
    let chunks = (1..=bytes / CHUNK).map(u32::try_from);
    chunks
        .flat_map(|chunk| chunk.unwrap().to_le_bytes().repeat(CHUNK / 4))
        .collect()
}

fn pool(plane: &DataPlane) -> Value {
    let shown = verb(plane, &["pool", "show", "-o", "json"]);
    let shown: Value = serde_json::from_str(&shown).unwrap();
    shown["items"][0].clone()
}

/// A log page of the controller.
fn log_page(host: &mut Host, lid: u8, bytes: u32) -> Vec<u8> {
    let deadline = soon(&host.initiator);
    let get = GetLogPage::range(lid, 0, bytes).encode();
    let get = get.with_nsid(NamespaceId::BROADCAST);
    let len = usize::try_from(bytes).unwrap();
    host.initiator
        .admin_read(host.path, get, len, deadline)
        .unwrap()
}

fn read_at(host: &mut Host, at: usize, out: &mut [u8]) -> Result<(), HostError> {
    let deadline = soon(&host.initiator);
    let at = u64::try_from(at).unwrap();
    host.initiator
        .read_at(host.path, NamespaceId(1), at, out, deadline)
}

#[test]
fn a_mismatch_is_in_the_hosts_error_log_and_told_over_the_api() {
    const DAMAGED: usize = 2 * CHUNK;
    let drive = Drive::new();
    let plane = drive.start(&["--format", "--host", "any"]);
    let data = data(4 * CHUNK);
    let subsystem = volume_with(&plane, &data);
    let volume = volumes(&plane)[0].clone();
    let block = volume["blockSizeBytes"].as_u64().unwrap();
    let lba = DAMAGED as u64 / block;
    assert_eq!(plane.stop().code(), Some(0));
    let mut bytes = std::fs::read(drive.path()).unwrap();
    let chunks = bytes.chunks(CHUNK);
    let on_drive = CHUNK
        * chunks
            .into_iter()
            .position(|chunk| *chunk == data[DAMAGED..DAMAGED + CHUNK])
            .unwrap();
    bytes[on_drive + 77] ^= 0x10;
    std::fs::write(drive.path(), &bytes).unwrap();

    let plane = drive.start(&["--host", "any"]);
    assert_eq!(pool(&plane)["lastMismatch"], Value::Null);
    let mut host = Host::connect(&plane, 0, &subsystem).unwrap();
    let mut out = [0; CHUNK];
    read_at(&mut host, DAMAGED - CHUNK, &mut out).unwrap();
    assert_eq!(out, data[DAMAGED - CHUNK..DAMAGED]);
    let Err(HostError::Failed(status)) = read_at(&mut host, DAMAGED, &mut out) else {
        panic!("what was damaged can be read");
    };
    assert!(status.same_code(Status::UNRECOVERED_READ), "{status:?}");

    let page = log_page(&mut host, id::ERROR, 128);
    let entries: Vec<ErrorLogEntry> = page
        .as_chunks::<64>()
        .0
        .iter()
        .map(ErrorLogEntry::decode)
        .collect();
    let [entry, none] = entries[..] else {
        panic!("{entries:?}");
    };
    assert!(
        entry.status().same_code(Status::UNRECOVERED_READ),
        "{entry:?}"
    );
    assert_eq!((entry.nsid, entry.lba), (NamespaceId(1), lba), "{entry:?}");
    assert!(entry.error_count > 0 && entry.sqid > 0, "{entry:?}");
    assert_eq!(none, ErrorLogEntry::default());
    let page = log_page(&mut host, id::SMART, 512);
    let smart = SmartLog::decode(page.as_slice().try_into().unwrap());
    assert_eq!((smart.media_errors, smart.error_log_entries), (1, 1));

    let pool = pool(&plane);
    assert_eq!(pool["checksumMismatchCount"], 1);
    let told = &pool["lastMismatch"];
    let name = format!("volumes/{}", volume["uuid"].as_str().unwrap());
    assert_eq!(told["volume"], name, "{told}");
    assert_eq!(told["blockIndex"], lba, "{told}");
    assert_eq!(told["driveOffsetBytes"], on_drive, "{told}");
    assert!(
        told["foundSeconds"].as_u64().unwrap() > 1_700_000_000,
        "{told}"
    );
}

#[test]
fn a_scrub_pauses_goes_on_where_it_was_and_is_forgotten_by_a_restart() {
    let drive = Drive::new();
    let plane = drive.start(&["--format", "--host", "any"]);
    let why = refused(&plane, &["pool", "scrub", "--pause"]);
    assert!(why.contains("no scrub goes on"), "{why}");
    // It would take a minute.
    let subsystem = volume_with(&plane, &data(8 << 20));
    verb(&plane, &["pool", "scrub", "--rate", "128KiB"]);
    verb(&plane, &["pool", "scrub", "--pause"]);
    let state = |pool: &Value| pool["scrubState"].as_str().unwrap().to_owned();
    let verified = |pool: &Value| pool["scrub"]["verifiedChunkCount"].as_u64().unwrap();
    let paused = pool(&plane);
    assert!(state(&paused).starts_with("paused "), "{paused}");
    assert!(plane.scrape().contains("bowline_pool_scrub_paused 1\n"));
    let why = refused(&plane, &["pool", "scrub"]);
    assert!(why.contains("or pauses"), "{why}");
    // Hosts go on, and what they do is not in the way of the pause.
    let mut host = Host::connect(&plane, 0, &subsystem).unwrap();
    host.write(&[1; CHUNK]).unwrap();
    let still = pool(&plane);
    assert!(state(&still).starts_with("paused "), "{still}");

    let before = verified(&still);
    verb(&plane, &["pool", "scrub", "--resume"]);
    let on = loop {
        let now = pool(&plane);
        if verified(&now) > before {
            break now;
        }
    };
    assert!(state(&on).starts_with("running "), "{on}");
    assert!(plane.scrape().contains("bowline_pool_scrub_paused 0\n"));
    verb(&plane, &["pool", "scrub", "--pause"]);
    assert_eq!(plane.stop().code(), Some(0));

    let plane = drive.start(&["--host", "any"]);
    let after = pool(&plane);
    assert_eq!(
        (state(&after).as_str(), &after["scrub"]),
        ("none", &Value::Null)
    );
    let why = refused(&plane, &["pool", "scrub", "--resume"]);
    assert!(why.contains("no scrub goes on"), "{why}");
    verb(&plane, &["pool", "scrub"]);
    while state(&pool(&plane)) != "done" {}
    verb(&plane, &["pool", "scrub", "--stop"]);
    assert_eq!(state(&pool(&plane)), "done");
}
