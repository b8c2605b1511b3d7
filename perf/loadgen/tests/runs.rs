//! Runs against a target in this process.

mod common;

use bowline_loadgen::arrivals::Spacing;
use bowline_loadgen::job::{Load, Pace, Poll, Workload};
use bowline_loadgen::pattern::Pattern;
use bowline_loadgen::progress::Progress;
use bowline_loadgen::report::Report;
use bowline_loadgen::runner;
use bowline_loadgen::verify::Verified;
use bowline_nvme::Nanos;
use bowline_nvme::pdu::Digests;
use bowline_reactor::IoBackend;

use common::{BLOCK_BYTES, Fault, Rig};

/// Short, and asleep while it waits: tests share their processors.
fn short() -> Load {
    Load {
        warm_up: Nanos::from_millis(5),
        duration: Nanos::from_millis(60),
        poll: Poll::Park,
        ..Load::default()
    }
}

fn run(io: IoBackend, fault: Fault, load: Load) -> Report {
    let rig = Rig::new(io, fault);
    let job = rig.job(io, load);
    runner::run(&job, &mut Progress::silent()).expect("the run ends")
}

#[test]
fn closed_loop_counts_what_completed_on_either_engine() {
    for io in [IoBackend::Auto, IoBackend::Epoll] {
        for workload in [
            Workload::Read,
            Workload::Write,
            Workload::Mixed { read_percent: 50 },
            Workload::Deallocate,
        ] {
            let load = Load {
                workload,
                connections: 2,
                queues: 2,
                queue_depth: 4,
                ..short()
            };
            let report = run(io, Fault::None, load);
            assert!(
                report.commands > 0 && report.errors == 0,
                "{io:?} {workload:?}"
            );
            assert_eq!(report.reads + report.writes, report.commands);
            assert_eq!(report.latency_ns.count, report.commands);
            assert_eq!(report.reads > 0, workload.read_percent() > 0);
            assert_eq!(report.writes > 0, workload.read_percent() < 100);
            assert!(report.client_cpu_seconds > 0.0 && report.client_system_calls > 0);
            let has_payload = !matches!(workload, Workload::Read | Workload::Deallocate);
            let payload = has_payload.then_some("shared");
            assert_eq!(report.write_payload, payload);
        }
    }
}

#[test]
fn commands_complete_however_the_client_waits() {
    for (poll, name) in [
        (Poll::Spin, "spin"),
        (Poll::Park, "park"),
        (Poll::Doze, "doze"),
    ] {
        for io in [IoBackend::Auto, IoBackend::Epoll] {
            let load = Load {
                poll,
                queues: 2,
                queue_depth: 4,
                ..short()
            };
            let report = run(io, Fault::None, load);
            assert!(report.commands > 0 && report.errors == 0, "{io:?} {name}");
            assert_eq!(report.poll, name);
        }
    }
}

#[test]
fn client_that_dozes_keeps_the_pace_of_an_open_loop_and_verifies() {
    let load = Load {
        poll: Poll::Doze,
        pace: Pace::Open {
            per_second: 1000,
            spacing: Spacing::Poisson,
        },
        workload: Workload::Mixed { read_percent: 50 },
        verify: true,
        span_bytes: Some(64 * u64::from(BLOCK_BYTES)),
        ..short()
    };
    let report = run(IoBackend::Auto, Fault::None, load);
    assert!(report.commands > 0 && report.failure().is_none());
    assert!(report.verify.is_some_and(|verified| verified.faults() == 0));
}

#[test]
fn exactly_as_many_commands_are_counted_as_were_asked_for() {
    for (count, warm_up) in [(1, 0), (3, 5), (1000, 0), (1000, 5)] {
        let load = Load {
            commands: Some(count),
            warm_up: Nanos::from_millis(warm_up),
            workload: Workload::Mixed { read_percent: 50 },
            connections: 2,
            queues: 2,
            queue_depth: 4,
            ..short()
        };
        let report = run(IoBackend::Auto, Fault::None, load);
        assert_eq!(report.commands, count, "after {warm_up} ms");
        assert_eq!(report.reads + report.writes, count);
        assert_eq!(report.latency_ns.count, count);
        assert_eq!(report.commands_wanted, Some(count));
        assert!(report.duration_seconds > 0.0 && report.errors == 0);
    }
}

/// What is read back is not counted, and the span is filled all the same.
#[test]
fn number_of_commands_is_that_of_the_load_and_not_of_its_verification() {
    let load = Load {
        commands: Some(20),
        warm_up: Nanos::ZERO,
        verify: true,
        span_bytes: Some(64 * u64::from(BLOCK_BYTES)),
        ..short()
    };
    let report = run(IoBackend::Auto, Fault::None, load);
    assert_eq!((report.commands, report.reads), (20, 20));
    let checked = report.verify.map(|verified| verified.blocks_checked);
    assert_eq!(checked, Some(20 + 64));
}

#[test]
fn large_blocks_and_digests_make_it_there_and_back() {
    for block_bytes in [BLOCK_BYTES, 128 << 10] {
        let rig = Rig::new(IoBackend::Auto, Fault::None);
        let load = Load {
            workload: Workload::Mixed { read_percent: 50 },
            block_bytes,
            verify: true,
            span_bytes: Some(2 << 20),
            ..short()
        };
        let mut job = rig.job(IoBackend::Auto, load);
        job.digests = Digests {
            header: true,
            data: true,
        };
        let report = runner::run(&job, &mut Progress::silent()).expect("the run ends");
        let verified = report.verify.expect("asked for");
        assert_eq!(
            (report.errors, verified.faults()),
            (0, 0),
            "{:?}",
            verified.findings
        );
        assert!(verified.blocks_checked >= (2 << 20) / u64::from(BLOCK_BYTES));
    }
}

/// Fills, reads, reads back, and says what was found.
fn verify(fault: Fault) -> Verified {
    let load = Load {
        verify: true,
        pattern: Pattern::Sequential,
        span_bytes: Some(64 * u64::from(BLOCK_BYTES)),
        queue_depth: 4,
        ..short()
    };
    let report = run(IoBackend::Auto, fault, load);
    assert_eq!(report.failure().is_some(), fault != Fault::None);
    assert_eq!(report.write_payload, Some("own"));
    report.verify.expect("asked for")
}

/// Counts of lost, stale, misplaced, torn and corrupt blocks, as far as there were any.
fn kinds(verified: &Verified) -> [bool; 5] {
    let Verified {
        lost,
        stale,
        misplaced,
        torn,
        corrupt,
        ..
    } = verified;
    [lost, stale, misplaced, torn, corrupt].map(|count| *count > 0)
}

#[test]
fn device_without_a_fault_is_found_to_have_none() {
    assert_eq!(kinds(&verify(Fault::None)), [false; 5]);
}

/// What failed before the counted time was forgotten when that began, and a run whose filling had
/// failed ended as a success: nothing is expected of a block whose write failed.
#[test]
fn write_that_fails_before_the_counted_time_fails_the_run() {
    let load = Load {
        workload: Workload::Read,
        verify: true,
        pattern: Pattern::Sequential,
        span_bytes: Some(64 * u64::from(BLOCK_BYTES)),
        queue_depth: 4,
        ..short()
    };
    let report = run(IoBackend::Auto, Fault::FailWrite(20), load);
    assert_eq!(report.errors, 1);
    assert!(report.first_error.is_some() && report.failure().is_some());
}

#[test]
fn write_that_was_not_done_is_lost() {
    assert_eq!(
        kinds(&verify(Fault::LoseWrite(20))),
        [true, false, false, false, false]
    );
}

#[test]
fn older_state_shown_once_is_stale() {
    let verified = verify(Fault::HideWrite(20));
    assert_eq!(kinds(&verified), [false, true, false, false, false]);
    assert_eq!(verified.stale, 1);
}

#[test]
fn write_in_the_wrong_place_is_misplaced_there_and_lost_here() {
    assert_eq!(
        kinds(&verify(Fault::MisplaceWrite(20))),
        [true, false, true, false, false]
    );
}

#[test]
fn half_a_write_is_torn() {
    assert_eq!(
        kinds(&verify(Fault::TearWrite(20))),
        [false, false, false, true, false]
    );
}

#[test]
fn changed_bit_is_corrupt() {
    assert_eq!(
        kinds(&verify(Fault::FlipWrite(20))),
        [false, false, false, false, true]
    );
}

/// A third of the counted time nothing completes.
const STALL: Fault = Fault::Stall {
    after: Nanos::from_millis(200),
    span: Nanos::from_millis(300),
};

fn stalled(pace: Pace) -> Report {
    let load = Load {
        pace,
        queue_depth: 4,
        duration: Nanos::from_millis(900),
        ..short()
    };
    run(IoBackend::Auto, STALL, load)
}

#[test]
fn open_loop_shows_the_stall_that_a_closed_loop_hides() {
    for spacing in [Spacing::Constant, Spacing::Poisson] {
        let open = stalled(Pace::Open {
            per_second: 2000,
            spacing,
        });
        // Of 1800 commands 600 were to start in the stall, evenly: a tenth of all waited for
        // more than 210 ms.
        assert!(
            open.latency_ns.p90 > Some(150_000_000),
            "{:?}",
            open.latency_ns
        );
        assert!(open.backlog_max > Some(300), "{:?}", open.backlog_max);
        assert!(open.latency_ns.count.abs_diff(1800) < 250);
    }
    let closed = stalled(Pace::Closed);
    assert!(
        closed.latency_ns.p90 < Some(100_000_000),
        "{:?}",
        closed.latency_ns
    );
}

#[test]
fn commands_that_never_started_are_in_the_latencies() {
    let load = Load {
        pace: Pace::Open {
            per_second: 2000,
            spacing: Spacing::Constant,
        },
        queue_depth: 1,
        warm_up: Nanos::ZERO,
        duration: Nanos::from_millis(400),
        ..short()
    };
    let fault = Fault::Stall {
        after: Nanos::from_millis(50),
        span: Nanos::from_secs(2),
    };
    let report = run(IoBackend::Auto, fault, load);
    let not_started = report.commands_not_started.expect("an open loop");
    assert!((500..=800).contains(&not_started), "{not_started}");
    assert_eq!(
        report.latency_ns.count.abs_diff(800),
        0,
        "every intended start is judged"
    );
    assert!(
        report.latency_ns.p50 > Some(100_000_000),
        "{:?}",
        report.latency_ns
    );
}

#[test]
fn ceiling_is_measured_for_reads_writes_and_transfers_in_parts() {
    for (workload, block_bytes, queue_depth) in [
        (Workload::Read, 4096, 4),
        // More than are answered at once.
        (Workload::Read, 512, 600),
        (Workload::Write, 4096, 4),
        (Workload::Write, 256 << 10, 4),
        (Workload::Mixed { read_percent: 50 }, 1 << 20, 4),
    ] {
        let load = Load {
            workload,
            block_bytes,
            queues: 2,
            queue_depth,
            ..short()
        };
        let report = runner::ceiling(&load, None, &mut Progress::silent()).expect("a ceiling");
        assert!(
            report.commands > 0 && report.errors == 0,
            "{workload:?} {block_bytes}"
        );
        assert_eq!(report.model, "null responder");
    }
}
