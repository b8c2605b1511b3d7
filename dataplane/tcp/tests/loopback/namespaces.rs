//! Several namespaces, and changes to them while hosts look on.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;

use bowline_nvme::{NamespaceId, Status};
use bowline_reactor::IoBackend;
use bowline_tcp::host::PathEvent;
use bowline_tcp::target::RefreshError;

use crate::common::device::{Growing, TestDevice, memory};
use crate::common::initiator::Disk;
use crate::common::rig::{BLOCK, DISK_BYTES, NQN, Rig};
use crate::common::{on_both_backends, pattern};
use crate::engine::{disk, own_devices};

on_both_backends!(
    namespaces_of_one_subsystem_are_apart,
    added_namespace_is_announced_and_usable,
    removed_namespace_is_announced_and_gone,
);
own_devices!(
    grown_namespace_is_announced_and_usable_to_its_end,
    refused_shrink_changes_nothing_and_a_restored_backing_heals,
);

fn namespaces_of_one_subsystem_are_apart(io: IoBackend) {
    let rig = Rig::new(io);
    let second = rig.add_namespace_on(NQN, |cx| disk(cx, 8 << 20, 4096));
    let mut disk = Disk::connect(rig.address, io);
    let sizes: Vec<_> = disk
        .namespaces()
        .iter()
        .map(|ns| (ns.nsid, ns.block_bytes, ns.bytes()))
        .collect();
    assert_eq!(
        sizes,
        [(NamespaceId(1), BLOCK, DISK_BYTES), (second, 4096, 8 << 20)]
    );
    let (one, two) = (pattern(1, 64 << 10), pattern(2, 64 << 10));
    disk.write(NamespaceId(1), 0, &one);
    disk.write(second, 0, &two);
    assert!(disk.read(NamespaceId(1), 0, one.len()) == one);
    assert!(disk.read(second, 0, two.len()) == two);
}

fn added_namespace_is_announced_and_usable(io: IoBackend) {
    let rig = Rig::new(io);
    let mut disk = Disk::connect(rig.address, io);
    // Twice: reading the changed namespace list arms the event again.
    for expected in 2..=3 {
        let added = rig.add_disk(NQN, 4 << 20);
        disk.await_event(PathEvent::NamespacesChanged);
        assert_eq!(disk.namespaces().len(), expected);
        assert_eq!(disk.namespace(added).bytes(), 4 << 20);
        let data = pattern(u64::from(added.0), 4096);
        disk.write(added, 0, &data);
        assert!(disk.read(added, 0, 4096) == data);
    }
}

fn removed_namespace_is_announced_and_gone(io: IoBackend) {
    let rig = Rig::new(io);
    let second = rig.add_disk(NQN, 4 << 20);
    let mut disk = Disk::connect(rig.address, io);
    disk.write(second, 0, &pattern(1, 4096));
    rig.call(move |target, _, now| target.remove_namespace(now, NQN, second))
        .expect("it is there");
    disk.await_event(PathEvent::NamespacesChanged);
    assert_eq!(disk.namespaces().len(), 1);
    assert_eq!(
        disk.try_read(second, 0, 512),
        Err(Status::INVALID_NAMESPACE.dnr())
    );
    disk.write(NamespaceId(1), 0, &pattern(2, 4096));
}

fn grown_namespace_is_announced_and_usable_to_its_end(io: IoBackend) {
    let (tell, told) = mpsc::channel();
    let rig = Rig::with_device(io, move || {
        let device = Growing::new(memory(DISK_BYTES, BLOCK), 1000);
        tell.send(Arc::clone(&device.backing_blocks))
            .expect("the test waits");
        TestDevice::new(device)
    });
    let backing_blocks = told.recv().expect("made");
    let nsid = NamespaceId(1);
    let mut disk = Disk::connect(rig.address, io);
    assert_eq!(disk.namespace(nsid).blocks, 1000);
    assert_eq!(
        disk.try_read(nsid, 1000, 512),
        Err(Status::LBA_OUT_OF_RANGE.dnr())
    );
    backing_blocks.store(5000, Ordering::SeqCst);
    rig.call(move |target, _, now| target.refresh_namespace(now, NQN, nsid).map(|_| ()))
        .expect("it grows");
    disk.await_event(PathEvent::NamespacesChanged);
    assert_eq!(disk.namespace(nsid).blocks, 5000);
    let data = pattern(3, 4096);
    disk.write(nsid, 4992, &data);
    assert!(disk.read(nsid, 4992, 4096) == data);
}

fn refused_shrink_changes_nothing_and_a_restored_backing_heals(io: IoBackend) {
    let (tell, told) = mpsc::channel();
    let rig = Rig::with_device(io, move || {
        let device = Growing::new(memory(DISK_BYTES, BLOCK), 1000);
        tell.send(Arc::clone(&device.backing_blocks))
            .expect("the test waits");
        TestDevice::new(device)
    });
    let nsid = NamespaceId(1);
    let backing_blocks = told.recv().expect("made");
    let refresh =
        || rig.call(move |target, _, now| target.refresh_namespace(now, NQN, nsid).map(|_| ()));
    let mut disk = Disk::connect(rig.address, io);
    backing_blocks.store(500, Ordering::SeqCst);
    for _ in 0..2 {
        let refused = refresh();
        let shrunk = matches!(
            refused,
            Err(RefreshError::Shrunk {
                blocks: 1000,
                backing_blocks: 500
            })
        );
        assert!(shrunk, "{refused:?}");
    }
    let data = pattern(4, 4096);
    disk.write(nsid, 992, &data);
    assert!(disk.read(nsid, 992, 4096) == data);
    let other = Disk::connect(rig.address, io);
    assert_eq!(
        other.namespace(nsid).blocks,
        1000,
        "hosts still see what they rely on"
    );
    backing_blocks.store(1000, Ordering::SeqCst);
    refresh().expect("the size is right again");
    backing_blocks.store(2000, Ordering::SeqCst);
    refresh().expect("it grows");
    disk.await_event(PathEvent::NamespacesChanged);
    assert_eq!(disk.namespace(nsid).blocks, 2000);
}
