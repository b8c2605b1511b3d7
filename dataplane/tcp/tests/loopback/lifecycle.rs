//! Ends of connections: a host that dies, a target that stops, and coming back.

use std::io::{ErrorKind, Read};
use std::sync::Arc;

use bowline_block::{ErrorRates, FaultDevice, FaultPlan};
use bowline_nvme::pdu::{Digests, H2CData};
use bowline_nvme::{ControllerId, NamespaceId, Sgl, Status};
use bowline_nvmf::host::{Reconnect, command};
use bowline_reactor::IoBackend;
use bowline_tcp::host::{HostOp, PathEvent};

use crate::common::device::{Gate, Gated, TestDevice, memory};
use crate::common::initiator::{Bystander, Disk, Options};
use crate::common::raw::Raw;
use crate::common::rig::{BLOCK, DISK_BYTES, NQN, Rig};
use crate::common::{on_both_backends, pattern, until};
use crate::engine::{disk, own_devices};

on_both_backends!(
    peer_killed_within_its_data_leaves_nothing_behind,
    peers_killed_at_any_point_of_a_write_leave_nothing_behind,
    old_commands_of_a_dead_host_hold_its_next_connect,
    graceful_stop_under_load_fails_no_command_for_good,
    graceful_stop_flushes_the_device,
    host_reconnects_to_a_restarted_target,
    orderly_disconnect_ends_every_connection,
);
own_devices!(devices_not_flushed_at_the_stop_are_counted,);

const NSID: NamespaceId = NamespaceId(1);

/// Sends a Write of 64 KiB and the first `sent` bytes of the data it is asked for.
fn write_in_part(raw: &mut Raw, sent: usize) {
    let write = command::write(NSID, 0, 127, false).with_sgl1(Sgl::transport(64 << 10));
    let capsule = raw.capsule_with(write, &[]);
    raw.send(&capsule);
    let r2t = raw.recv().expect("an R2T").r2t();
    let header = H2CData {
        cccid: r2t.cccid,
        ttag: r2t.ttag,
        datao: 0,
        datal: r2t.r2tl,
        last: true,
    };
    let bytes = raw.h2c_data(header, &vec![0xEE; 64 << 10]);
    raw.send(&bytes[..sent]);
}

fn peer_killed_within_its_data_leaves_nothing_behind(io: IoBackend) {
    let rig = Rig::new(io);
    let bystander = Bystander::start(rig.address);
    let (mut raw, admin) = Raw::io(rig.address, Digests::NONE);
    write_in_part(&mut raw, 40_000);
    until("the data holds a buffer", || {
        rig.pool()
            .classes
            .iter()
            .any(|class| class.used > 0)
            .then_some(())
    });
    raw.reset();
    drop(admin);
    rig.await_connections(2);
    bystander.await_progress("a peer was killed");
    bystander.stop();
    rig.await_free_pool();
    let mut disk = Disk::connect(rig.address, io);
    assert!(
        disk.read(NSID, 0, 64 << 10).iter().all(|byte| *byte == 0),
        "written in part"
    );
}

fn peers_killed_at_any_point_of_a_write_leave_nothing_behind(io: IoBackend) {
    let rig = Rig::new(io);
    for sent in [0, 1, 23, 24, 25, 1000, 16 << 10, 65_559, 65_560] {
        let (mut raw, admin) = Raw::io(rig.address, Digests::NONE);
        write_in_part(&mut raw, sent);
        raw.reset();
        drop(admin);
    }
    rig.await_connections(0);
    rig.await_free_pool();
}

fn old_commands_of_a_dead_host_hold_its_next_connect(io: IoBackend) {
    let gate = Arc::new(Gate::default());
    let of_device = Arc::clone(&gate);
    let rig = Rig::with_device_on(io, move |cx| {
        TestDevice::new(Gated {
            inner: disk(cx, DISK_BYTES, BLOCK),
            gate: of_device,
        })
    });
    let (mut raw, admin) = Raw::io(rig.address, Digests::NONE);
    gate.set_closed(true);
    let write = command::write(NSID, 0, 0, false);
    let capsule = raw.capsule(write, Some(&[1; 512]));
    raw.send(&capsule);
    until("the write is at the device", || {
        (gate.submitted() == 1).then_some(())
    });
    raw.reset();
    drop(admin);
    // The same host again, while its old write may still reach the medium.
    let mut again = Raw::initialized(rig.address, Digests::NONE);
    let capsule = again.connect_capsule(0, ControllerId::DYNAMIC, 31);
    again.send(&capsule);
    again.stream.set_nonblocking(true).expect("an open socket");
    for _ in 0..200 {
        // Each is at least a turn of the reactor.
        rig.call(|_, _, _| {});
        let early = again.stream.read(&mut [0; 1]).expect_err("Connect is held");
        assert_eq!(early.kind(), ErrorKind::WouldBlock, "{early}");
    }
    gate.set_closed(false);
    rig.call(|_, _, _| {});
    again.stream.set_nonblocking(false).expect("an open socket");
    assert_eq!(again.await_status(), Status::SUCCESS);
}

fn graceful_stop_under_load_fails_no_command_for_good(io: IoBackend) {
    let rig = Rig::new(io);
    let options = Options {
        io,
        queues: 2,
        ..Options::default()
    };
    let mut disk = Disk::with(rig.address, options);
    let data = pattern(1, 4096);
    let mut completed = 0;
    let mut stopping = false;
    until("the association ends", || {
        let lba = completed % 1024 * 8;
        while disk.submit(HostOp::Write { fua: false }, NSID, lba, &data) {}
        for done in disk.poll_all() {
            completed += 1;
            assert!(done.path_lost || !done.status.is_dnr(), "{}", done.status);
        }
        if completed > 2000 && !stopping {
            stopping = true;
            rig.begin_stop();
        }
        (disk.losses() > 0).then_some(())
    });
    rig.join();
}

fn graceful_stop_flushes_the_device(io: IoBackend) {
    let gate = Arc::new(Gate::default());
    let of_device = Arc::clone(&gate);
    let rig = Rig::with_device_on(io, move |cx| {
        TestDevice::new(Gated {
            inner: disk(cx, DISK_BYTES, BLOCK),
            gate: of_device,
        })
    });
    let mut disk = Disk::connect(rig.address, io);
    disk.write(NSID, 0, &[1; 512]);
    rig.begin_stop();
    assert_eq!(rig.join(), 0, "devices not flushed");
    assert_eq!(gate.flushes(), 1);
}

fn devices_not_flushed_at_the_stop_are_counted(io: IoBackend) {
    let rig = Rig::new(io);
    for _ in 0..2 {
        rig.add_namespace(NQN, || {
            let errors = ErrorRates {
                flush_per_million: 1_000_000,
                ..ErrorRates::default()
            };
            let plan = FaultPlan {
                errors,
                ..FaultPlan::default()
            };
            let device = FaultDevice::new(memory(DISK_BYTES, BLOCK), plan);
            TestDevice::new(device.expect("memory for its buffers"))
        });
    }
    assert_eq!(rig.call(|target, _, _| target.flush_failures()), 0);
    rig.begin_stop();
    assert_eq!(rig.join(), 2);
}

fn host_reconnects_to_a_restarted_target(io: IoBackend) {
    let rig = Rig::new(io);
    let address = rig.address;
    let reconnect = Some(Reconnect::default());
    let mut disk = Disk::with(
        address,
        Options {
            io,
            reconnect,
            ..Options::default()
        },
    );
    disk.write(NSID, 0, &[1; 512]);
    rig.begin_stop();
    rig.join();
    disk.await_loss();
    let rig = Rig::at(address, io);
    disk.await_event(PathEvent::Connected);
    let data = pattern(9, 128 << 10);
    disk.write(NSID, 0, &data);
    assert!(disk.read(NSID, 0, data.len()) == data);
    drop(disk);
    rig.await_connections(0);
}

fn orderly_disconnect_ends_every_connection(io: IoBackend) {
    let rig = Rig::new(io);
    let mut disks: Vec<Disk> = (0..4)
        .map(|_| {
            Disk::with(
                rig.address,
                Options {
                    io,
                    queues: 3,
                    ..Options::default()
                },
            )
        })
        .collect();
    assert_eq!(rig.connections(), 16);
    for (left, disk) in (0..4).rev().zip(&mut disks) {
        disk.disconnect();
        rig.await_connections(left * 4);
    }
}
