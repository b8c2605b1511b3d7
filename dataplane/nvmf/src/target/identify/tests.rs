use bowline_nvme::Nanos;
use bowline_nvme::identify::{controller_list, namespace_list as decode_list};
use bowline_nvme::nqn::Nqn;

use super::super::config::{NamespaceConfig, NsGeometry, SubsystemConfig};
use super::super::controller::{Kind, NewController};
use super::super::namespace::tests::{config, geometry};
use super::super::table::Key;
use super::*;

fn check<T>(nsids: &[u32], geometry: NsGeometry, max: u32, act: impl FnOnce(&View<'_>) -> T) -> T {
    let name = "nqn.2026-11.io.bowline:x";
    let subsystem = SubsystemConfig {
        namespaces_max: max,
        ..SubsystemConfig::new(name, "BL1")
    };
    let mut subsystem = Subsystem::new(Nanos::ZERO, subsystem, 0);
    for &nsid in nsids {
        let config = NamespaceConfig {
            nsid: Some(nsid),
            geometry,
            ..config(None)
        };
        subsystem.namespaces.add(config).expect("valid");
    }
    let nqn = Nqn::new(name).expect("valid");
    let controller = Controller::new(
        Nanos::ZERO,
        NewController {
            cntlid: 5,
            kind: Kind::Io,
            subsystem: Some(0),
            subnqn: nqn,
            hostnqn: nqn,
            hostid: [1; 16],
            admin: Key {
                index: 0,
                generation: 1,
            },
            kato: Nanos::ZERO,
            io_queues: 4,
            volatile_cache: subsystem.namespaces.any_volatile_cache(),
            ana_changes: None,
        },
    );
    let config = TargetConfig::default();
    act(&View {
        config: &config,
        subsystem: Some(&subsystem),
        controller: &controller,
        cntlids: &[3, 5, 900],
    })
}

fn identify(view: &View<'_>, identify: Identify, nsid: u32) -> Result<Page, Status> {
    let mut page = [0; 4096];
    let sqe = identify.encode().with_nsid(NamespaceId(nsid));
    view.identify(&sqe, &mut page).map(|()| page)
}

#[test]
fn namespace_ids_are_active_inactive_or_invalid() {
    check(&[2], geometry(), 4, |view| {
        let invalid = Err(Status::INVALID_NAMESPACE.dnr());
        let zeroes = Ok([0; 4096]);
        for cns in [
            cns::NAMESPACE,
            cns::ALLOCATED_NAMESPACE,
            cns::INDEPENDENT_NAMESPACE,
        ] {
            let found = |nsid| identify(view, Identify::new(cns), nsid);
            assert!(found(2).is_ok_and(|page| page != [0; 4096]), "{cns:#x}");
            assert!(found(3) == zeroes, "{cns:#x}");
            assert!(found(0) == invalid && found(5) == invalid, "{cns:#x}");
            assert!(found(NamespaceId::BROADCAST.0) == invalid, "{cns:#x}");
        }
        for cns in [cns::NAMESPACE_DESCRIPTORS, cns::NAMESPACE_CONTROLLER_LIST] {
            let found = |nsid| identify(view, Identify::new(cns), nsid);
            assert!(found(2).is_ok());
            assert!(found(3) == invalid && found(0) == invalid, "{cns:#x}");
        }
    });
}

#[test]
fn lists_ascend_from_behind_the_id_given() {
    check(&[7, 2, 4], geometry(), 9, |view| {
        for cns in [
            cns::ACTIVE_NAMESPACE_LIST,
            cns::ALLOCATED_NAMESPACE_LIST,
            cns::COMMAND_SET_ACTIVE_NAMESPACE_LIST,
            cns::COMMAND_SET_ALLOCATED_NAMESPACE_LIST,
        ] {
            let list = |after| {
                let page = identify(view, Identify::new(cns), after).expect("a list");
                decode_list(&page).map(|nsid| nsid.0).collect::<Vec<_>>()
            };
            assert_eq!(list(0), [2, 4, 7]);
            assert_eq!(list(2), [4, 7]);
            assert_eq!(list(7), []);
            let reserved = identify(view, Identify::new(cns), NamespaceId::BROADCAST.0 - 1);
            assert!(reserved.is_err());
        }
        let from = Identify {
            cntid: ControllerId(4),
            ..Identify::new(cns::CONTROLLER_LIST)
        };
        let page = identify(view, from, 0).expect("a list");
        assert!(controller_list(&page).eq([ControllerId(5), ControllerId(900)]));
    });
}

#[test]
fn full_list_is_continued_by_an_empty_one() {
    let nsids: Vec<u32> = (1..=1024).collect();
    check(&nsids, geometry(), 1024, |view| {
        let list = |after| {
            let cns = Identify::new(cns::ACTIVE_NAMESPACE_LIST);
            let page = identify(view, cns, after).expect("a list");
            decode_list(&page).map(|nsid| nsid.0).collect::<Vec<_>>()
        };
        assert_eq!(list(0), nsids);
        assert_eq!(list(1024), []);
    });
}

#[test]
fn shutdown_is_given_longer_than_hosts_wait_by_themselves() {
    check(&[1], geometry(), 4, |view| {
        let page = identify(view, Identify::new(cns::CONTROLLER), 0).expect("mandatory");
        // Linux waits 5 s where nothing is said, and never longer than 60 s.
        let waits_us = IdentifyController::decode(&page).rtd3e;
        assert!((10_000_000..=60_000_000).contains(&waits_us), "{waits_us}");
    });
}

#[test]
fn unknown_structures_and_command_sets_are_invalid_for_good() {
    check(&[1], geometry(), 4, |view| {
        let invalid = Err(Status::INVALID_FIELD.dnr());
        for cns in [
            0x04, 0x09, 0x0A, 0x14, 0x15, 0x16, 0x17, 0x18, 0x1D, 0x20, 0xFF,
        ] {
            assert!(identify(view, Identify::new(cns), 1) == invalid, "{cns:#x}");
        }
        for cns in [cns::COMMAND_SET_NAMESPACE, cns::COMMAND_SET_CONTROLLER] {
            assert!(identify(view, Identify::new(cns), 1).is_ok(), "{cns:#x}");
            let zoned = Identify {
                csi: 2,
                ..Identify::new(cns)
            };
            assert!(identify(view, zoned, 1) == invalid, "{cns:#x}");
        }
        let sets = identify(view, Identify::new(cns::COMMAND_SETS), 0).expect("2.0");
        assert_eq!(sets[..8], 1u64.to_le_bytes());
    });
}

#[test]
fn geometry_is_told_truthfully() {
    let odd = NsGeometry {
        block_bytes: 4096,
        blocks: 1 << 30,
        used_blocks: 12,
        read_only: true,
        thin: true,
        atomic_write_blocks: 8,
        optimal_io_blocks: 32,
        deallocate: Deallocate::Undefined,
        deallocate_granularity_blocks: 16,
        ..geometry()
    };
    check(&[1], odd, 4, |view| {
        let page = identify(view, Identify::new(cns::NAMESPACE), 1).expect("active");
        let found = IdentifyNamespace::decode(&page);
        assert_eq!((found.nsze, found.ncap, found.nuse), (1 << 30, 1 << 30, 12));
        assert_eq!(found.nvmcap, 4096 << 30);
        assert_eq!(found.nsfeat, 0x13);
        assert_eq!((found.nawun, found.nawupf), (7, 7));
        assert_eq!((found.nabsn, found.nabo, found.nabspf), (7, 0, 7));
        assert_eq!((found.npdg, found.nows, found.noiob), (15, 31, 0));
        assert_eq!((found.dlfeat, found.nsattr, found.nmic), (0, 1, 1));
        assert_eq!(found.lbaf[0].lbads, 12);
        assert_ne!(found.nguid, [0; 16]);
    });
    check(&[1], geometry(), 4, |view| {
        let page = identify(view, Identify::new(cns::NAMESPACE), 1).expect("active");
        assert_eq!(IdentifyNamespace::decode(&page).dlfeat, 0b1001);
    });
}

#[test]
fn controller_claims_what_its_namespaces_can_do() {
    let oncs_and_vwc = |geometry| {
        check(&[1], geometry, 4, |view| {
            let page = identify(view, Identify::new(cns::CONTROLLER), 0).expect("mandatory");
            let found = IdentifyController::decode(&page);
            (
                found.oncs & IdentifyController::ONCS_WRITE_ZEROES != 0,
                found.vwc,
            )
        })
    };
    assert_eq!(oncs_and_vwc(geometry()), (true, 0b101));
    let plain = NsGeometry {
        volatile_cache: false,
        write_zeroes: false,
        ..geometry()
    };
    assert_eq!(oncs_and_vwc(plain), (false, 0b100));
}
