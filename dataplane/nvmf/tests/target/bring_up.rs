//! The order in which a Linux host brings a controller up, byte for byte.

use bowline_nvme::fabrics::{PropertyGet, offset};
use bowline_nvme::feature::{GetFeatures, SetFeatures, id as fid};
use bowline_nvme::identify::{
    IdentifyController, IdentifyNamespace, NamespaceDescriptor, cns, namespace_descriptors,
    namespace_list,
};
use bowline_nvme::log::{GetLogPage, SmartLog, id as lid};
use bowline_nvme::opcode::{admin, io as opcode};
use bowline_nvme::pdu::Digests;
use bowline_nvme::{NamespaceId, Nanos, Sqe, Status};

use crate::glue::{BLOCK, BLOCKS, CC_ENABLE, Glue, SUBNQN, io, pattern};

const ALL_DIGESTS: [Digests; 4] = [
    Digests {
        header: false,
        data: false,
    },
    Digests {
        header: true,
        data: false,
    },
    Digests {
        header: false,
        data: true,
    },
    Digests {
        header: true,
        data: true,
    },
];

/// Drives a whole bring-up and some I/O; returns every byte the target sent on both queues.
fn bring_up(digests: Digests, chunk: usize) -> (Vec<u8>, Vec<u8>) {
    let mut glue = Glue::new();
    glue.chunk = chunk;
    let (admin, cntlid) = glue.admin_with(digests, 5000);
    let property = |glue: &mut Glue, get: PropertyGet| glue.command(admin, get.encode()).result;
    let cap = property(&mut glue, PropertyGet::qword(offset::CAP));
    assert_eq!(cap & 0xFFFF, 127, "MQES");
    assert_eq!(cap >> 37 & 0xFF, 1, "NVM command set only");
    glue.set_cc(admin, 0x0046_0000);
    let crto = property(&mut glue, PropertyGet::dword(offset::CRTO));
    assert!(crto & 0xFFFF >= cap >> 24 & 0xFF);
    glue.set_cc(admin, CC_ENABLE);
    assert_eq!(glue.csts(admin), 1);
    assert_eq!(
        property(&mut glue, PropertyGet::dword(offset::VS)),
        0x0002_0000
    );

    let page = glue.identify(admin, cns::CONTROLLER, 0).expect("mandatory");
    check_controller(&IdentifyController::decode(&page), cntlid);
    glue.log(admin, GetLogPage::range(lid::EFFECTS, 0, 4096))
        .expect("LPA bit 1");
    glue.log(admin, GetLogPage::range(lid::SMART, 0, 512))
        .expect("hwmon reads it");
    let timestamp = SetFeatures::new(fid::TIMESTAMP, 0).encode();
    assert_eq!(
        glue.status_with_data(admin, timestamp, &[1; 8]),
        Status::SUCCESS
    );
    let queues = glue.command(
        admin,
        SetFeatures::new(fid::NUMBER_OF_QUEUES, 0x0001_0001).encode(),
    );
    assert_eq!(queues.result, 0x0001_0001);

    let queue = glue.io_queue(digests, cntlid, 1);
    let aec = SetFeatures::new(fid::ASYNC_EVENT_CONFIG, 0x100).encode();
    assert_eq!(glue.command(admin, aec).status, Status::SUCCESS);
    glue.send(
        admin,
        Sqe::new(admin::ASYNC_EVENT_REQUEST).with_sgl1(bowline_nvme::Sgl::transport(0)),
    );
    assert!(glue.replies(admin).is_empty());
    glue.identify(admin, cns::COMMAND_SET_CONTROLLER, 0)
        .expect("Linux asks at every scan");
    scan_namespace(&mut glue, admin);
    some_io(&mut glue, queue);
    (glue.conn(admin).sent.clone(), glue.conn(queue).sent.clone())
}

fn check_controller(controller: &IdentifyController, cntlid: u16) {
    assert_eq!(controller.cntlid.0, cntlid);
    assert_eq!(controller.mdts, 8, "1 MiB");
    assert!(controller.kas > 0 && controller.maxcmd > 0 && controller.nn >= controller.mnan);
    assert_eq!(controller.cmic & 3, 3);
    assert_eq!(controller.in_capsule_bytes_max(), 16 << 10);
    assert_eq!((controller.icdoff, controller.iorcsz), (0, 1));
    assert_eq!(controller.sgls & 3, 1);
    assert_eq!(controller.vwc & 1, 1);
    assert_eq!(controller.oacs, 0);
    let subnqn = controller.subnqn.split(|&byte| byte == 0).next();
    assert_eq!(subnqn, Some(SUBNQN.as_bytes()));
}

fn scan_namespace(glue: &mut Glue, admin: bowline_nvmf::target::ConnId) {
    let list = glue
        .identify(admin, cns::ACTIVE_NAMESPACE_LIST, 0)
        .expect("mandatory");
    assert!(namespace_list(&list).eq([NamespaceId(1)]));
    let descriptors = glue
        .identify(admin, cns::NAMESPACE_DESCRIPTORS, 1)
        .expect("VS >= 1.3");
    let ids: Vec<_> = namespace_descriptors(&descriptors).collect();
    assert!(ids.contains(&NamespaceDescriptor::Uuid([1; 16])));
    assert!(ids.contains(&NamespaceDescriptor::Nguid([0x81; 16])));
    let page = glue.identify(admin, cns::NAMESPACE, 1).expect("active");
    let namespace = IdentifyNamespace::decode(&page);
    assert_eq!((namespace.nsze, namespace.ncap), (BLOCKS, BLOCKS));
    assert_eq!(namespace.nmic & 1, 1);
    assert_eq!(
        namespace.format().and_then(|format| format.block_bytes()),
        Some(BLOCK)
    );
    glue.identify(admin, cns::INDEPENDENT_NAMESPACE, 1)
        .expect("2.0");
}

fn some_io(glue: &mut Glue, queue: bowline_nvmf::target::ConnId) {
    let small = pattern(3, 4096);
    assert_eq!(
        glue.status_with_data(queue, io(opcode::WRITE, 8, 8), &small),
        Status::SUCCESS
    );
    let large = pattern(9, 128 << 10);
    let cqe = glue.write_by_r2t(queue, io(opcode::WRITE, 64, 256), &large);
    assert_eq!(cqe.status, Status::SUCCESS);
    assert_eq!(
        glue.read_data(queue, io(opcode::READ, 8, 8), 4096),
        Ok(small)
    );
    assert_eq!(
        glue.read_data(queue, io(opcode::READ, 64, 256), 128 << 10),
        Ok(large)
    );
    let flush = Sqe::new(opcode::FLUSH).with_nsid(NamespaceId(1));
    assert_eq!(glue.command(queue, flush).status, Status::SUCCESS);
}

#[test]
fn linux_brings_a_controller_up_whatever_the_digests() {
    for digests in ALL_DIGESTS {
        bring_up(digests, usize::MAX);
    }
}

#[test]
fn splitting_the_stream_anywhere_changes_nothing() {
    for digests in ALL_DIGESTS {
        let whole = bring_up(digests, usize::MAX);
        for chunk in [1, 2, 3, 5, 7, 64, 71, 73, 100, 1000] {
            assert!(
                bring_up(digests, chunk) == whole,
                "{digests:?} in pieces of {chunk}"
            );
        }
    }
}

#[test]
fn every_split_of_one_capsule_with_data_is_the_same_write() {
    let digests = Digests {
        header: true,
        data: true,
    };
    let mut glue = Glue::new();
    let (_, queue) = glue.queues(digests);
    let data = pattern(77, 512);
    let sqe = io(opcode::WRITE, 5, 1).with_sgl1(bowline_nvme::Sgl::in_capsule(512));
    let len = glue.capsule(queue, sqe, &data).len();
    for split in 1..len {
        let cid = glue.next_cid(queue);
        let bytes = glue.capsule(queue, sqe.with_cid(cid), &data);
        glue.receive(queue, &bytes[..split]);
        assert!(glue.replies(queue).is_empty());
        glue.receive(queue, &bytes[split..]);
        assert_eq!(
            glue.reply(queue).cqe().status,
            Status::SUCCESS,
            "split at {split}"
        );
    }
}

#[test]
fn nvme_cli_finds_every_log_and_feature_it_asks_for() {
    let mut glue = Glue::new();
    let (admin, queue) = glue.queues(Digests::NONE);
    for (lid, len) in [
        (lid::SUPPORTED_LOG_PAGES, 1024),
        (lid::ERROR, 64 * 64),
        (lid::SMART, 512),
        (lid::FIRMWARE_SLOT, 512),
        (lid::CHANGED_NAMESPACE_LIST, 4096),
        (lid::EFFECTS, 4096),
        (lid::FEATURE_EFFECTS, 1024),
        (0x13, 1024),
        (lid::RESERVATION, 64),
    ] {
        glue.log(admin, GetLogPage::range(lid, 0, len))
            .expect("supported");
    }
    let get = |glue: &mut Glue, fid: u8| {
        let sqe = GetFeatures::current(fid).encode().with_nsid(NamespaceId(1));
        glue.command(admin, sqe).status
    };
    for fid in [1, 2, 4, 5, 6, 7, 0xA, 0xB, 0xF, 0x82] {
        assert_eq!(get(&mut glue, fid), Status::SUCCESS, "feature {fid:#x}");
    }
    for fid in [3, 8, 9, 0xC, 0x10, 0x83, 0x84, 0xFF] {
        assert!(
            get(&mut glue, fid).same_code(Status::INVALID_FIELD),
            "feature {fid:#x}"
        );
    }
    let flush = Sqe::new(opcode::FLUSH).with_nsid(NamespaceId(1));
    assert_eq!(glue.command(queue, flush).status, Status::SUCCESS);
}

#[test]
fn smart_counts_what_was_done_and_the_error_log_what_failed() {
    let mut glue = Glue::new();
    let (admin, queue) = glue.queues(Digests::NONE);
    some_io(&mut glue, queue);
    let beyond = glue.read_data(queue, io(opcode::READ, BLOCKS, 1), BLOCK);
    assert!(beyond.is_err_and(|status| status.same_code(Status::LBA_OUT_OF_RANGE)));
    glue.failures.push_back(Status::UNRECOVERED_READ);
    let media = glue.read_data(queue, io(opcode::READ, 7, 1), BLOCK);
    assert!(media.is_err_and(|status| status.same_code(Status::UNRECOVERED_READ)));
    glue.now = glue.now + Nanos::from_secs(3 * 3600);
    let log = glue
        .log(admin, GetLogPage::range(lid::SMART, 0, 512))
        .expect("supported");
    let smart = SmartLog::decode(log.first_chunk().expect("512"));
    assert_eq!(
        (smart.host_read_commands, smart.host_write_commands),
        (2, 2)
    );
    assert_eq!((smart.data_units_read, smart.data_units_written), (1, 1));
    assert_eq!((smart.media_errors, smart.error_log_entries), (1, 2));
    assert_eq!(smart.power_on_hours, 3);
    let log = glue
        .log(admin, GetLogPage::range(lid::ERROR, 0, 128))
        .expect("supported");
    let entry = bowline_nvme::log::ErrorLogEntry::decode(log.first_chunk().expect("64"));
    assert!(entry.status().same_code(Status::UNRECOVERED_READ));
    assert_eq!(
        (entry.error_count, entry.sqid, entry.lba, entry.nsid.0),
        (2, 1, 7, 1)
    );
}

/// nvme-cli 2.3 reads every offset and takes only Invalid Field without DNR for "not there": with
/// DNR its show-regs failed.
#[test]
fn absent_property_is_an_invalid_field_without_do_not_retry() {
    let mut glue = Glue::new();
    let (admin, _) = glue.admin_with(Digests::NONE, 5000);
    for get in [PropertyGet::dword(0x3C), PropertyGet::qword(0x28)] {
        assert_eq!(
            glue.command(admin, get.encode()).status,
            Status::INVALID_FIELD
        );
    }
}
