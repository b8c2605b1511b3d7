use std::io::Write;

use clap::{Args, FromArgMatches};

use super::*;

/// Parses a command line alone: no environment is set in these tests.
fn parse(line: &[&str]) -> Result<Config, CliError> {
    let command = DataplaneFlags::augment_args(clap::Command::new("dataplane"));
    let matches = command
        .try_get_matches_from(std::iter::once(&"dataplane").chain(line))
        .map_err(|error| CliError::usage(error.to_string()))?;
    let mut flags = DataplaneFlags::from_arg_matches(&matches).unwrap();
    flags.prefer_command_line(&matches);
    let config = config(flags.with_file()?)?;
    config.check()?;
    Ok(config)
}

/// What `--engine spdk` without a device of SPDK is told.
const NO_SPDK: &str = match bowline_server::SPDK_BUILD {
    bowline_server::SpdkBuild::None => "built without SPDK",
    bowline_server::SpdkBuild::Double | bowline_server::SpdkBuild::Spdk => "no --device",
};

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn served(path: &str, shared: bool) -> BackingConfig {
    let path = path.into();
    BackingConfig::Path { path, shared }
}

fn addresses(config: &Config) -> Vec<String> {
    config.listen.iter().map(ToString::to_string).collect()
}

#[test]
fn defaults_are_loopback_and_nobody() {
    let config = parse(&["--memory", "64MiB"]).unwrap();
    assert_eq!(
        config.backing,
        BackingConfig::Memory {
            size_bytes: 64 << 20
        }
    );
    assert_eq!(addresses(&config), ["127.0.0.1:4420"]);
    assert_eq!(config.rpc.to_string(), "127.0.0.1:7410");
    assert_eq!(config.metrics.to_string(), "127.0.0.1:9410");
    assert!(config.hosts.is_empty());
    assert!(config.cores.is_empty());
    assert!(config.allow_paths.is_empty());
    assert!(!config.node.is_empty());
}

#[test]
fn every_flag_reaches_the_configuration() {
    let line = "--device /dev/x --block-size 4KiB --listen 0.0.0.0 --listen [::1]:0 \
                --advertise 192.0.2.1 --nqn nqn.2026-11.io.bowline:a:b --host any \
                --host nqn.2014-08.org.nvmexpress:uuid:0f4a2b9e-5e57-4b5c-9a53-6b1f6ac9d1a2 \
                --io epoll --poll never --cores 0,2-3 --rpc 127.0.0.1:1 --metrics [::1] \
                --node n --allow-path /srv --max-transfer 128KiB --in-capsule-data 4KiB \
                --discovery-nqn nqn.2026-11.io.bowline:a:d --referral 192.0.2.7 \
                --referral [2001:db8::7]:4420=nqn.2026-11.io.bowline:b:d --state /var/lib/bowline \
                --ana --ana-state non-optimized --shared-device --serial SN-1 --cntlid-range 7-9 --controllers-max 3 \
                --namespaces-max 10000 --uuid 5b3e1c1a-3f0e-4b7e-8f52-0d8c5a3f0b11 \
                --nguid 00112233445566778899aabbccddeeff --connections-max 9 --queues-per-host-max 5 \
                --queue-depth 32 --engine kernel --log-format json --log-level warn";
    let line: Vec<&str> = line.split_whitespace().collect();
    let config = parse(&line).unwrap();
    assert_eq!(config.backing, served("/dev/x", true));
    assert_eq!(config.block_bytes, Some(4096));
    assert_eq!(addresses(&config), ["0.0.0.0:4420", "[::1]:0"]);
    assert_eq!(config.advertise.unwrap().to_string(), "192.0.2.1:4420");
    assert_eq!(config.hosts.len(), 2);
    assert_eq!(
        (config.io, config.poll),
        (IoBackend::Epoll, PollMode::Never)
    );
    assert_eq!(config.cores, [0, 2, 3]);
    assert_eq!(config.metrics.to_string(), "[::1]:9410");
    assert_eq!(config.node, "n");
    assert_eq!(config.limits.max_transfer_bytes, 128 << 10);
    assert_eq!(config.limits.in_capsule_data_bytes, 4096);
    assert_eq!(config.limits.queue_depth, 32);
    assert_eq!(config.limits.connections_max, 9);
    assert_eq!(config.limits.queues_per_host_max, 5);
    assert_eq!(config.serial.as_deref(), Some("SN-1"));
    let [first, second] = &config.referrals[..] else {
        panic!("not two referrals")
    };
    assert_eq!(first.address.to_string(), "192.0.2.7:8009");
    assert_eq!(first.nqn, None);
    assert_eq!(second.address.to_string(), "[2001:db8::7]:4420");
    assert_eq!(second.nqn.as_deref(), Some("nqn.2026-11.io.bowline:b:d"));
    assert_eq!(config.cntlids, Some((7, 9)));
    assert_eq!(config.state, Some("/var/lib/bowline".into()));
    assert_eq!(config.ana, Some(AnaState::NonOptimized));
    assert_eq!(config.controllers_max, Some(3));
    assert_eq!(config.namespaces_max, Some(10_000));
    assert_eq!(config.uuid.unwrap()[..2], [0x5b, 0x3e]);
    assert_eq!(config.nguid.unwrap()[14..], [0xee, 0xff]);
}

#[test]
fn what_of_a_device_is_served_is_said_by_three_flags() {
    for (flags, serve) in [
        ("", Serve::Found),
        ("--raw", Serve::Whole),
        ("--format", Serve::Pool { force: false }),
        ("--format --force", Serve::Pool { force: true }),
    ] {
        let line = format!("--device /dev/x {flags}");
        let line: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(parse(&line).unwrap().serve, serve);
    }
}

#[test]
fn command_line_wins_over_the_file() {
    let file = file("memory = \"1GiB\"\nnode = \"from-file\"\nhost = [\"any\"]\nio = \"epoll\"\n");
    let path = file.path().to_str().unwrap();
    let config = parse(&["--config", path, "--node", "typed", "--device", "/dev/x"]).unwrap();
    assert_eq!(config.node, "typed");
    assert_eq!(config.backing, served("/dev/x", false));
    assert_eq!(config.hosts, ["any"]);
    assert_eq!(config.io, IoBackend::Epoll);
}

/// Command lines, and what their errors say.
const WRONG: &[(&str, &str)] = &[
    ("--memory 1MiB --connections-max 1", "2 to 4096"),
    ("--memory 1MiB --queues-per-host-max 4096", "2 to 2048"),
    ("--memory 1MiB --referral nowhere", "is not an address"),
    ("--memory 1MiB --referral 0.0.0.0", "can reach"),
    ("--memory 1MiB --referral 192.0.2.7=bob", "well-known"),
    ("--memory 1MiB --discovery-nqn bob", "--discovery-nqn"),
    (
        "--memory 1MiB --referral 192.0.2.7 --referral 192.0.2.7:8009",
        "given twice",
    ),
    ("", "nothing to serve"),
    (
        "--memory 64MiB --device /dev/x",
        "both --device and --memory",
    ),
    ("--memory 64Mib --bogus", "--bogus"),
    ("--memory lots", "64MiB"),
    ("--memory 1000", "positive multiple"),
    ("--memory 0", "positive multiple"),
    ("--memory 1MiB --block-size 1024", "512 or 4096"),
    ("--memory 1MiB --listen localhost", "192.0.2.10:4420"),
    (
        "--memory 1MiB --listen 127.0.0.1:99999",
        "is not an address",
    ),
    ("--memory 1MiB --listen 127.0.0.1:7410", "given twice"),
    (
        "--memory 1MiB --advertise 192.0.2.1:0",
        "no address that a host can reach",
    ),
    (
        "--memory 1MiB --advertise [::]:4420",
        "no address that a host can reach",
    ),
    ("--memory 1MiB --host bob", "hostnqn"),
    (
        "--memory 1MiB --nqn bob",
        "nqn.2026-11.io.bowline:node:drive",
    ),
    (
        "--memory 1MiB --nqn nqn.2014-08.org.nvmexpress.discovery",
        "discovery",
    ),
    (
        "--memory 1MiB --nqn nqn.2026-11.io.bowline:a/b",
        "ambiguous",
    ),
    ("--memory 1MiB --shared-device", "cannot be shared"),
    ("--memory 1MiB --serial abcdefghijklmnopqrstu", "1 to 20"),
    ("--memory 1MiB --ana-state optimized", "without --ana"),
    (
        "--memory 1MiB --ana --ana-state change",
        "no state to begin",
    ),
    ("--memory 1MiB --cntlid-range 5", "1-1000"),
    ("--memory 1MiB --cntlid-range 9-5", "within 1-65519"),
    ("--memory 1MiB --cntlid-range 0-5", "within 1-65519"),
    ("--memory 1MiB --controllers-max 0", "how many hosts"),
    ("--memory 1MiB --namespaces-max 16385", "1 to 16384"),
    ("--memory 1MiB --uuid 7", "uuidgen"),
    (
        "--memory 1MiB --nguid 00000000000000000000000000000000",
        "no identity",
    ),
    ("--memory 1MiB --cores 3-1", "0,2-3"),
    ("--memory 1MiB --cores 0,0", "twice"),
    ("--memory 1MiB --poll sometimes", "adaptive"),
    ("--memory 1MiB --max-transfer 2MiB", "can only be lowered"),
    ("--memory 1MiB --max-transfer 5000", "power of two"),
    ("--memory 1MiB --in-capsule-data 17", "multiple of 16"),
    ("--memory 1MiB --queue-depth 1", "16 to 128"),
    ("--memory 1MiB --allow-path srv", "not absolute"),
    ("--memory 1MiB --engine spdk", NO_SPDK),
    ("--memory 1MiB --no-huge", "--engine spdk"),
    ("--memory 1MiB --spdk-config f.json", "--engine spdk"),
    ("--device bdev:M0", "--engine spdk"),
    (
        "--memory 1MiB --controller http://c:7400",
        "not available yet",
    ),
    ("--device /dev/x --force", "nothing is overwritten then"),
    ("--device /dev/x --format --raw", "both --format and --raw"),
    (
        "--device /dev/x --format --serial A",
        "--serial is given with --format",
    ),
    (
        "--device /dev/x --format --shared-device",
        "a pool belongs to one data plane",
    ),
    ("--memory 1MiB --config /nonexistent", "not read"),
];

#[test]
fn wrong_values_are_refused_with_what_to_write_instead() {
    for (line, expected) in WRONG {
        let line: Vec<&str> = line.split_whitespace().collect();
        let error = parse(&line).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(expected), "{line:?}: {text}");
        assert_eq!(
            error.exit_code(),
            std::process::ExitCode::from(2),
            "{line:?}"
        );
    }
}

#[test]
fn wrong_files_are_refused_with_the_line() {
    for (text, expected) in [
        ("memory = \"1GiB\"\nmemry = 1\n", "memry"),
        ("memory = true\n", "64MiB"),
        (
            "memory = \"1GiB\"\nlisten = [\"nowhere\"]\n",
            "is not an address",
        ),
        ("config = \"other.toml\"\n", "config"),
        ("memory = ", "line 1"),
    ] {
        let file = file(text);
        let error = parse(&["--config", file.path().to_str().unwrap()])
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
}
