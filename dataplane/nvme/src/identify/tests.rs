extern crate std;

use std::vec::Vec;

use super::*;
use crate::NamespaceId;
use crate::fabrics::Version;
use crate::layout::assert_layout;

fn offset_of(fields: &[(&str, usize, usize)], name: &str) -> (usize, usize) {
    let field = fields.iter().find(|field| field.0 == name).unwrap();
    (field.1, field.2)
}

#[test]
fn layouts_do_not_overlap_and_round_trip() {
    assert_layout!(IdentifyController);
    assert_layout!(IdentifyNvmController);
    assert_layout!(IdentifyNamespace);
    assert_layout!(IndependentNamespace);
}

#[test]
fn controller_fields_are_where_hosts_read_them() {
    for (name, at, bytes) in [
        ("vid", 0, 2),
        ("ssvid", 2, 2),
        ("sn", 4, 20),
        ("mn", 24, 40),
        ("fr", 64, 8),
        ("rab", 72, 1),
        ("ieee", 73, 3),
        ("cmic", 76, 1),
        ("mdts", 77, 1),
        ("cntlid", 78, 2),
        ("ver", 80, 4),
        ("rtd3e", 88, 4),
        ("oaes", 92, 4),
        ("ctratt", 96, 4),
        ("cntrltype", 111, 1),
        ("crdt1", 128, 2),
        ("crdt3", 132, 2),
        ("oacs", 256, 2),
        ("acl", 258, 1),
        ("aerl", 259, 1),
        ("frmw", 260, 1),
        ("lpa", 261, 1),
        ("elpe", 262, 1),
        ("wctemp", 266, 2),
        ("cctemp", 268, 2),
        ("kas", 320, 2),
        ("sanicap", 328, 4),
        ("anatt", 342, 1),
        ("anacap", 343, 1),
        ("anagrpmax", 344, 4),
        ("nanagrpid", 348, 4),
        ("sqes", 512, 1),
        ("cqes", 513, 1),
        ("maxcmd", 514, 2),
        ("nn", 516, 4),
        ("oncs", 520, 2),
        ("fuses", 522, 2),
        ("fna", 524, 1),
        ("vwc", 525, 1),
        ("awun", 526, 2),
        ("awupf", 528, 2),
        ("acwu", 532, 2),
        ("ocfs", 534, 2),
        ("sgls", 536, 4),
        ("mnan", 540, 4),
        ("subnqn", 768, 256),
        ("ioccsz", 1792, 4),
        ("iorcsz", 1796, 4),
        ("icdoff", 1800, 2),
        ("fcatt", 1802, 1),
        ("msdbd", 1803, 1),
        ("ofcs", 1804, 2),
        ("dctype", 1806, 1),
        ("psd0_mp", 2048, 2),
    ] {
        assert_eq!(
            offset_of(IdentifyController::FIELDS, name),
            (at, bytes),
            "{name}"
        );
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "one table")]
fn namespace_fields_are_where_hosts_read_them() {
    for (name, at, bytes) in [
        ("nsze", 0, 8),
        ("ncap", 8, 8),
        ("nuse", 16, 8),
        ("nsfeat", 24, 1),
        ("nlbaf", 25, 1),
        ("flbas", 26, 1),
        ("mc", 27, 1),
        ("dpc", 28, 1),
        ("dps", 29, 1),
        ("nmic", 30, 1),
        ("rescap", 31, 1),
        ("dlfeat", 33, 1),
        ("nawun", 34, 2),
        ("nawupf", 36, 2),
        ("nacwu", 38, 2),
        ("nabsn", 40, 2),
        ("nabo", 42, 2),
        ("nabspf", 44, 2),
        ("noiob", 46, 2),
        ("nvmcap", 48, 16),
        ("npwg", 64, 2),
        ("npwa", 66, 2),
        ("npdg", 68, 2),
        ("npda", 70, 2),
        ("nows", 72, 2),
        ("mssrl", 74, 2),
        ("mcl", 76, 4),
        ("msrc", 80, 1),
        ("anagrpid", 92, 4),
        ("nsattr", 99, 1),
        ("nguid", 104, 16),
        ("eui64", 120, 8),
        ("lbaf", 128, 64),
    ] {
        assert_eq!(
            offset_of(IdentifyNamespace::FIELDS, name),
            (at, bytes),
            "{name}"
        );
    }
    for (name, at) in [
        ("nsfeat", 0),
        ("nmic", 1),
        ("rescap", 2),
        ("fpi", 3),
        ("anagrpid", 4),
        ("nsattr", 8),
        ("nvmsetid", 10),
        ("endgid", 12),
        ("nstat", 14),
    ] {
        assert_eq!(
            offset_of(IndependentNamespace::FIELDS, name).0,
            at,
            "{name}"
        );
    }
    for (name, at) in [
        ("vsl", 0),
        ("wzsl", 1),
        ("wusl", 2),
        ("dmrl", 3),
        ("dmrsl", 4),
        ("dmsl", 8),
    ] {
        assert_eq!(
            offset_of(IdentifyNvmController::FIELDS, name).0,
            at,
            "{name}"
        );
    }
}

#[test]
fn controller_has_the_known_bytes() {
    let controller = IdentifyController {
        mdts: 8,
        cntlid: ControllerId(0x0102),
        ver: Version::V2_0,
        cntrltype: IdentifyController::CNTRLTYPE_IO,
        sqes: IdentifyController::SQES_64,
        vwc: IdentifyController::VWC_PRESENT | IdentifyController::VWC_BROADCAST_FLUSH,
        sgls: IdentifyController::SGLS_SUPPORTED
            | IdentifyController::SGLS_OFFSET
            | IdentifyController::SGLS_TRANSPORT,
        ioccsz: (64 + 16384) / 16,
        ..IdentifyController::default()
    };
    let bytes = controller.to_bytes();
    assert_eq!(bytes[77..84], [8, 2, 1, 0, 0, 2, 0]);
    assert_eq!((bytes[111], bytes[512], bytes[525]), (1, 0x66, 7));
    assert_eq!(bytes[536..540], [1, 0, 0x30, 0]);
    assert_eq!(bytes[1792..1796], [0x04, 0x04, 0, 0]);
    assert_eq!(controller.transfer_bytes_max(4096), Some(1 << 20));
    assert_eq!(controller.in_capsule_bytes_max(), 16384);
}

#[test]
fn hostile_controller_values_do_not_overflow() {
    let controller = IdentifyController {
        mdts: 255,
        ioccsz: u32::MAX,
        ..IdentifyController::default()
    };
    assert_eq!(controller.transfer_bytes_max(4096), Some(u64::MAX));
    assert!(controller.in_capsule_bytes_max() > 0);
    let controller = IdentifyController::default();
    assert_eq!(controller.transfer_bytes_max(4096), None);
    assert_eq!(controller.in_capsule_bytes_max(), 0);
    assert_eq!(
        (controller.aers_max(), controller.error_log_entries()),
        (1, 1)
    );
}

#[test]
fn namespace_format_in_use_is_found_or_refused() {
    let mut namespace = IdentifyNamespace::default();
    namespace.lbaf[0] = LbaFormat {
        ms: 0,
        lbads: 9,
        rp: 0,
    };
    namespace.lbaf[1] = LbaFormat {
        ms: 8,
        lbads: 12,
        rp: 1,
    };
    namespace.nlbaf = 1;
    namespace.flbas = 1;
    assert_eq!(namespace.to_bytes()[128..136], [0, 0, 9, 0, 8, 0, 12, 1]);
    assert_eq!(
        namespace.format().and_then(|format| format.block_bytes()),
        Some(4096)
    );
    namespace.flbas = 2;
    assert_eq!(namespace.format(), None);
    namespace.nlbaf = 255;
    namespace.flbas = 0x20;
    assert_eq!(namespace.format(), None);
    assert_eq!(namespace.formats().len(), 16);
    for lbads in [0, 8, 32, 255] {
        assert_eq!(
            LbaFormat {
                ms: 0,
                lbads,
                rp: 0
            }
            .block_bytes(),
            None
        );
    }
}

#[test]
fn namespace_list_ends_at_zero_or_1024() {
    let mut page = [0xFF; SIZE];
    encode_namespace_list([1, 2, 300].map(NamespaceId), &mut page);
    assert_eq!(
        page[..16],
        [1, 0, 0, 0, 2, 0, 0, 0, 0x2C, 1, 0, 0, 0, 0, 0, 0]
    );
    assert!(namespace_list(&page).eq([1, 2, 300].map(NamespaceId)));
    encode_namespace_list((1..=2000).map(NamespaceId), &mut page);
    assert!(namespace_list(&page).eq((1..=1024).map(NamespaceId)));
}

#[test]
fn controller_list_counts_its_entries() {
    let mut page = [0xFF; SIZE];
    encode_controller_list([1, 0xFFEF].map(ControllerId), &mut page);
    assert_eq!(page[..8], [2, 0, 1, 0, 0xEF, 0xFF, 0, 0]);
    assert!(controller_list(&page).eq([1, 0xFFEF].map(ControllerId)));
    encode_controller_list((1..=4000).map(ControllerId), &mut page);
    assert_eq!(controller_list(&page).count(), 2047);
    assert_eq!(controller_list(&[0xFF; SIZE]).count(), 2047);
}

#[test]
fn descriptors_have_the_known_bytes() {
    let list = [
        NamespaceDescriptor::Uuid([0xAA; 16]),
        NamespaceDescriptor::Nguid([0xBB; 16]),
        NamespaceDescriptor::Eui64([0xCC; 8]),
        NamespaceDescriptor::NVM,
    ];
    let mut page = [0xFF; SIZE];
    encode_namespace_descriptors(&list, &mut page);
    assert_eq!(page[..5], [3, 16, 0, 0, 0xAA]);
    assert_eq!(page[20..25], [2, 16, 0, 0, 0xBB]);
    assert_eq!(page[40..45], [1, 8, 0, 0, 0xCC]);
    assert_eq!(page[52..62], [4, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert!(namespace_descriptors(&page).eq(list));
}

#[test]
fn descriptor_reader_skips_unknown_types_and_stops_at_wrong_lengths() {
    let mut page = [0; SIZE];
    page[..6].copy_from_slice(&[9, 2, 0, 0, 1, 2]);
    page[6..11].copy_from_slice(&[4, 1, 0, 0, 0]);
    page[11..20].copy_from_slice(&[3, 5, 0, 0, 1, 2, 3, 4, 5]);
    page[20..25].copy_from_slice(&[4, 1, 0, 0, 0]);
    let found: Vec<_> = namespace_descriptors(&page).collect();
    assert_eq!(found, [NamespaceDescriptor::NVM]);
    // A list that never ends is bounded by the page.
    assert_eq!(namespace_descriptors(&[0xFF; SIZE]).count(), 0);
    let mut page = [0; SIZE];
    for entry in page.chunks_exact_mut(5) {
        entry[..2].copy_from_slice(&[4, 1]);
    }
    assert_eq!(namespace_descriptors(&page).count(), SIZE / 5);
}

#[test]
fn descriptors_that_do_not_fit_are_left_out() {
    let list = [NamespaceDescriptor::Uuid([1; 16]); 300];
    let mut page = [0; SIZE];
    encode_namespace_descriptors(&list, &mut page);
    assert_eq!(namespace_descriptors(&page).count(), SIZE / 20);
}

#[test]
fn identify_command_has_the_known_bytes() {
    let identify = Identify {
        cns: cns::CONTROLLER_LIST,
        cntid: ControllerId(0x0102),
        csi: 3,
    };
    let sqe = identify.encode();
    assert_eq!(sqe.0[40..48], [0x13, 0, 2, 1, 0, 0, 0, 3]);
    assert_eq!(Identify::decode(&sqe), identify);
    assert_eq!(Identify::new(cns::CONTROLLER).encode().cdw(10), 1);
}
