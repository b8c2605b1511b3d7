//! The SMART and Error Information logs. [BASE-2.0 §5.16.1.2, §5.16.1.3]

use bowline_nvme::log::{ErrorLogEntry, GetLogPage, SmartLog, id as lid};
use bowline_nvme::opcode::io as opcode;
use bowline_nvme::pdu::Digests;
use bowline_nvme::{Nanos, Status};
use bowline_nvmf::target::{ConnId, HealthTotals, Hosts, SubsystemConfig};

use crate::glue::{BLOCK, BLOCKS, CC_ENABLE, Glue, SUBNQN, io, namespace, pattern};

const BEFORE: HealthTotals = HealthTotals {
    reads: 100,
    writes: 200,
    read_bytes: 512_000,
    written_bytes: 1_024_000,
    media_errors: 3,
    error_log_entries: 40,
    busy: Nanos::from_secs(120),
    power_on: Nanos::from_secs(2 * 3600),
    power_cycles: 5,
    unsafe_shutdowns: 2,
};

fn glue_after(health: HealthTotals) -> Glue {
    let mut glue = Glue::bare(bowline_nvmf::target::TargetConfig::default());
    let subsystem = SubsystemConfig {
        hosts: Hosts::Any,
        namespaces_max: 4,
        health,
        ..SubsystemConfig::new(SUBNQN, "BL1")
    };
    glue.target
        .add_subsystem(glue.now, subsystem)
        .expect("valid");
    glue.add_namespace(1);
    glue
}

fn smart(glue: &mut Glue, admin: ConnId) -> SmartLog {
    let log = glue
        .log(admin, GetLogPage::range(lid::SMART, 0, 512))
        .expect("supported");
    SmartLog::decode(log.first_chunk().expect("512"))
}

/// Writes and reads a block, and reads two that cannot be read.
fn work(glue: &mut Glue, queue: ConnId) {
    let data = pattern(1, BLOCK as usize);
    assert_eq!(
        glue.status_with_data(queue, io(opcode::WRITE, 1, 1), &data),
        Status::SUCCESS
    );
    assert_eq!(
        glue.read_data(queue, io(opcode::READ, 1, 1), BLOCK),
        Ok(data)
    );
    glue.failures.push_back(Status::UNRECOVERED_READ);
    assert!(
        glue.read_data(queue, io(opcode::READ, 7, 1), BLOCK)
            .is_err()
    );
    assert!(
        glue.read_data(queue, io(opcode::READ, BLOCKS, 1), BLOCK)
            .is_err()
    );
}

#[test]
fn counters_belong_to_the_drive_and_outlive_resets_associations_and_starts() {
    let mut glue = glue_after(BEFORE);
    let (admin, queue) = glue.queues(Digests::NONE);
    work(&mut glue, queue);
    glue.set_cc(admin, 0);
    glue.set_cc(admin, CC_ENABLE);
    let found = smart(&mut glue, admin);
    assert_eq!(
        (found.host_read_commands, found.host_write_commands),
        (101, 201)
    );
    glue.drop_socket(admin);
    let (admin, queue) = glue.queues(Digests::NONE);
    work(&mut glue, queue);
    glue.now = glue.now + Nanos::from_secs(3600);
    let found = smart(&mut glue, admin);
    assert_eq!(
        (found.host_read_commands, found.host_write_commands),
        (102, 202)
    );
    assert_eq!((found.data_units_read, found.data_units_written), (2, 3));
    assert_eq!((found.media_errors, found.error_log_entries), (5, 44));
    assert_eq!(
        (found.power_on_hours, found.controller_busy_minutes),
        (3, 2)
    );
    assert_eq!((found.power_cycles, found.unsafe_shutdowns), (6, 2));
    assert_eq!(
        (found.critical_warning, found.composite_temperature),
        (0, 0)
    );

    let totals = glue.target.health(glue.now, SUBNQN).expect("there");
    let mut next = glue_after(totals);
    let (admin, _) = next.queues(Digests::NONE);
    let found = smart(&mut next, admin);
    assert_eq!(
        (found.host_read_commands, found.error_log_entries),
        (102, 44)
    );
    assert_eq!((found.power_on_hours, found.power_cycles), (3, 7));
    assert!(
        next.target
            .health(next.now, "nqn.2026-11.io.bowline:none")
            .is_err()
    );
}

#[test]
fn error_counts_go_on_where_the_last_association_and_start_ended() {
    let mut glue = glue_after(BEFORE);
    for first in [41, 43] {
        let (admin, queue) = glue.queues(Digests::NONE);
        work(&mut glue, queue);
        let log = glue
            .log(admin, GetLogPage::range(lid::ERROR, 0, 256))
            .expect("supported");
        let counts: Vec<u64> = log
            .as_chunks()
            .0
            .iter()
            .map(|entry| ErrorLogEntry::decode(entry).error_count)
            .collect();
        assert_eq!(
            counts,
            [first + 1, first, 0, 0],
            "newest first, the last host's not shown"
        );
        glue.drop_socket(admin);
    }
}

/// SMART warned of read-only media when every namespace was configured read-only, which the
/// specification forbids: monitoring took it for a worn-out drive.
#[test]
fn namespaces_configured_read_only_are_no_warning() {
    let mut glue = glue_after(HealthTotals::default());
    let mut geometry = namespace(1).geometry;
    geometry.read_only = true;
    glue.target
        .update_namespace(glue.now, SUBNQN, 1, geometry)
        .expect("valid");
    let (admin, _) = glue.queues(Digests::NONE);
    assert_eq!(smart(&mut glue, admin).critical_warning, 0);
}
