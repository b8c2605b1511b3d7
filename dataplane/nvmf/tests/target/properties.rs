//! Controller properties. [BASE-2.0 §3.1.3]

use bowline_nvme::fabrics::{PropertyGet, PropertySet, offset};
use bowline_nvme::log::{GetLogPage, SmartLog, id as lid};
use bowline_nvme::pdu::Digests;
use bowline_nvme::{Nanos, Status};
use bowline_nvmf::target::ConnId;

use crate::glue::{CC_ENABLE, DISCOVERY, Glue, HOSTNQN};

const RDY: u32 = 1;
const CFS: u32 = 1 << 1;

#[test]
fn properties_there_are_have_one_size_and_the_others_do_not_exist() {
    let mut glue = Glue::new();
    let (admin, _) = glue.enabled(Digests::NONE, 0);
    let there = [
        (offset::CAP, 1),
        (offset::VS, 0),
        (offset::CC, 0),
        (offset::CSTS, 0),
        (offset::CRTO, 0),
    ];
    for at in (0..0x100).chain([0xE00, 0x1000, u32::MAX - 3]) {
        for size in 0..8 {
            let get = PropertyGet { size, offset: at };
            let cqe = glue.command(admin, get.encode());
            let exists = there.contains(&(at, size));
            let expected = if exists {
                Status::SUCCESS
            } else {
                Status::INVALID_FIELD
            };
            assert_eq!(cqe.status, expected, "{get:?}");
            if size == 0 {
                assert_eq!(cqe.result >> 32, 0, "{get:?}");
            }
        }
    }
    let log = glue
        .log(admin, GetLogPage::range(lid::SMART, 0, 512))
        .expect("mandatory");
    let smart = SmartLog::decode(log.first_chunk().expect("512"));
    assert_eq!(smart.error_log_entries, 0, "asking is no error");
}

#[test]
fn only_controller_configuration_can_be_written() {
    let mut glue = Glue::new();
    let (admin, _) = glue.enabled(Digests::NONE, 0);
    // The NVM Subsystem Reset is not supported: CAP.NSSRS is clear.
    const NSSR: u32 = 0x20;
    for (at, size, value) in [
        (offset::CAP, 1, 0),
        (offset::VS, 0, 0),
        (offset::CSTS, 0, 1 << 4),
        (NSSR, 0, 0x4E56_4D65),
        (offset::CRTO, 0, 0),
        (offset::CC, 1, u64::from(CC_ENABLE)),
        (offset::CC, 2, u64::from(CC_ENABLE)),
        (offset::CC, 0, 1 << 32 | u64::from(CC_ENABLE)),
        (offset::CC + 1, 0, 0),
    ] {
        let set = PropertySet {
            size,
            offset: at,
            value,
        };
        let status = glue.command(admin, set.encode()).status;
        assert!(
            status.same_code(Status::INVALID_FIELD) && status.is_dnr(),
            "{set:?}"
        );
        assert_eq!(glue.csts(admin), RDY);
    }
}

fn discovery(glue: &mut Glue) -> ConnId {
    let id = glue.initialized(Digests::NONE);
    let data = Glue::connect_data(DISCOVERY, HOSTNQN, 0xFFFF);
    let cqe = glue.connect(id, Glue::connect_command(0, 31), &data);
    assert!(cqe.status.is_success());
    id
}

#[test]
fn settings_that_cannot_work_are_a_fatal_status_until_the_next_reset() {
    let mut glue = Glue::new();
    let (io, _) = glue.admin_with(Digests::NONE, 0);
    let discovery = discovery(&mut glue);
    let with = |field: u32, value: u32| (CC_ENABLE & !field) | value;
    for (cc, of_io, of_discovery) in [
        (CC_ENABLE, true, true),
        (with(0xF << 16, 0), false, true),
        (with(0xF << 20, 0), false, true),
        (with(0xF << 16, 7 << 16), false, true),
        (CC_ENABLE | 1 << 4, false, false),
        (CC_ENABLE | 0b110 << 4, false, false),
        (CC_ENABLE | 0b111 << 4, false, false),
        (CC_ENABLE | 1 << 7, false, false),
        (CC_ENABLE | 1 << 11, false, false),
        (CC_ENABLE | 0b111 << 11, false, false),
        (CC_ENABLE | 1 << 24, false, false),
    ] {
        for (id, works) in [(io, of_io), (discovery, of_discovery)] {
            glue.set_cc(id, cc);
            let expected = if works { RDY } else { CFS };
            assert_eq!(glue.csts(id), expected, "{cc:#x}");
            glue.set_cc(id, 0);
            assert_eq!(glue.csts(id), 0, "{cc:#x}");
        }
    }
}

#[test]
fn capabilities_say_what_this_transport_can_do() {
    let mut glue = Glue::new();
    let (admin, _) = glue.admin_with(Digests::NONE, 0);
    let cap = glue
        .command(admin, PropertyGet::qword(offset::CAP).encode())
        .result;
    assert_eq!(cap & 0xFFFF, 127, "MQES");
    assert_eq!(cap >> 16 & 1, 1, "CQR");
    assert_eq!(cap >> 17 & 3, 0, "AMS: round robin only");
    assert_eq!(cap >> 32 & 0xF, 0, "DSTRD");
    assert_eq!(cap >> 36 & 1, 0, "NSSRS");
    assert_eq!(cap >> 37 & 0xFF, 1, "CSS");
    assert_eq!(cap >> 45 & 7, 0, "BPS, CPS");
    assert_eq!(cap >> 48 & 0xFF, 0, "MPSMIN, MPSMAX");
    assert_eq!(cap >> 56 & 3, 0, "PMRS, CMBS");
    assert_eq!(cap >> 59 & 3, 0b01, "CRWMS without CRIMS");
    let crto = glue
        .command(admin, PropertyGet::dword(offset::CRTO).encode())
        .result;
    assert_eq!((crto & 0xFFFF, crto >> 16), (cap >> 24 & 0xFF, 0));
    let version = glue
        .command(admin, PropertyGet::dword(offset::VS).encode())
        .result;
    assert_eq!(version, 0x0002_0000);
    glue.advance(Nanos::from_secs(1));
    assert_eq!(glue.csts(admin), 0);
}
