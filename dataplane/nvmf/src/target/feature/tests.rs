use bowline_nvme::nqn::Nqn;

use super::super::controller::NewController;
use super::super::table::Key;
use super::*;

const AROUND: Surroundings = Surroundings {
    now: Nanos::from_secs(100),
    io_queues_max: 64,
};

fn controller(kind: Kind) -> Controller {
    let nqn = Nqn::new("nqn.2026-11.io.bowline:x").expect("valid");
    let new = NewController {
        cntlid: 1,
        kind,
        subsystem: None,
        subnqn: nqn,
        hostnqn: nqn,
        hostid: [7; 16],
        admin: Key {
            index: 0,
            generation: 1,
        },
        kato: kato(5000).expect("fits"),
        io_queues: 64,
        volatile_cache: true,
        ana_changes: None,
    };
    Controller::new(Nanos::ZERO, new)
}

fn get(controller: &Controller, fid: u8, select: Select, cdw11: u32) -> Result<u32, Status> {
    let sqe = GetFeatures { fid, select, cdw11 }
        .encode()
        .with_nsid(NamespaceId(1));
    controller.get_features(AROUND, &sqe, &mut [])
}

fn set(controller: &mut Controller, fid: u8, cdw11: u32) -> Result<u32, Status> {
    controller.set_features(AROUND, &SetFeatures::new(fid, cdw11).encode(), &[])
}

#[test]
fn each_feature_has_its_value_default_and_abilities() {
    let controller = controller(Kind::Io);
    let changeable = capabilities::CHANGEABLE;
    for (fid, cdw11, value, abilities) in [
        (id::ARBITRATION, 0, 7, 0),
        (id::POWER_MANAGEMENT, 0, 0, changeable),
        (id::TEMPERATURE_THRESHOLD, 0, 0x157, 0),
        (id::TEMPERATURE_THRESHOLD, 1 << 20, 0, 0),
        (id::ERROR_RECOVERY, 0, 0, capabilities::NAMESPACE_SPECIFIC),
        (id::VOLATILE_WRITE_CACHE, 0, 1, 0),
        (id::NUMBER_OF_QUEUES, 0, 0x003F_003F, changeable),
        (id::WRITE_ATOMICITY, 0, 0, changeable),
        (id::ASYNC_EVENT_CONFIG, 0, 0, changeable),
        (id::KEEP_ALIVE_TIMER, 0, 5000, changeable),
    ] {
        for select in [Select::Current, Select::Default, Select::Saved] {
            assert_eq!(
                get(&controller, fid, select, cdw11),
                Ok(value),
                "{fid:#x} {select:?}"
            );
        }
        assert_eq!(
            get(&controller, fid, Select::Capabilities, 0),
            Ok(abilities),
            "{fid:#x}"
        );
        let reserved = get(&controller, fid, Select::Reserved(4), 0);
        assert_eq!(reserved, Err(Status::INVALID_FIELD.dnr()));
    }
}

#[test]
fn values_that_would_not_be_honoured_are_not_changeable() {
    let mut controller = controller(Kind::Io);
    let fixed = Err(Status::FEATURE_NOT_CHANGEABLE.dnr());
    let invalid = Err(Status::INVALID_FIELD.dnr());
    for (fid, value, expected) in [
        (id::ARBITRATION, 7, Ok(0)),
        (id::ARBITRATION, 2, fixed),
        (id::POWER_MANAGEMENT, 0, Ok(0)),
        (id::POWER_MANAGEMENT, 1, invalid),
        (id::TEMPERATURE_THRESHOLD, 0x157, Ok(0)),
        (id::TEMPERATURE_THRESHOLD, 0x000F_0157, Ok(0)),
        (id::TEMPERATURE_THRESHOLD, 1 << 20, Ok(0)),
        (id::TEMPERATURE_THRESHOLD, 0x0003_0000, invalid),
        (id::ERROR_RECOVERY, 0, Ok(0)),
        (id::ERROR_RECOVERY, 5, fixed),
        (id::VOLATILE_WRITE_CACHE, 1, Ok(0)),
        (id::VOLATILE_WRITE_CACHE, 0, fixed),
        (id::WRITE_ATOMICITY, 1, Ok(0)),
        (id::INTERRUPT_COALESCING, 0, invalid),
        (id::RESERVATION_MASK, 0, invalid),
        (
            id::HOST_IDENTIFIER,
            0,
            Err(Status::COMMAND_SEQUENCE_ERROR.dnr()),
        ),
        (id::KEEP_ALIVE_TIMER, 0, Err(Status::KATO_INVALID.dnr())),
        (0xFF, 0, invalid),
    ] {
        assert_eq!(
            set(&mut controller, fid, value),
            expected,
            "{fid:#x} = {value:#x}"
        );
    }
    assert_eq!(
        get(&controller, id::WRITE_ATOMICITY, Select::Current, 0),
        Ok(1)
    );
}

/// Temperature Threshold took any value although no sensor ever exceeds one. A host that set a
/// threshold waited for a warning that could not come.
#[test]
fn temperature_threshold_stays_at_its_default() {
    let mut controller = controller(Kind::Io);
    let fixed = Err(Status::FEATURE_NOT_CHANGEABLE.dnr());
    for value in [300, 0x000F_0000 | 300, 1 << 20 | 1] {
        let found = set(&mut controller, id::TEMPERATURE_THRESHOLD, value);
        assert_eq!(found, fixed, "{value:#x}");
    }
    let current = get(&controller, id::TEMPERATURE_THRESHOLD, Select::Current, 0);
    assert_eq!(current, Ok(0x157));
}

#[test]
fn number_of_queues_is_granted_once_and_within_limits() {
    let mut controller = controller(Kind::Io);
    let fid = id::NUMBER_OF_QUEUES;
    for (asked, granted) in [
        (0x0003_0003, Ok(0x0003_0003)),
        (0x0001_0007, Ok(0x0001_0001)),
        (0x03FF_03FF, Ok(0x003F_003F)),
        (0xFFFF_0000, Err(Status::INVALID_FIELD.dnr())),
        (0x0000_FFFF, Err(Status::INVALID_FIELD.dnr())),
    ] {
        assert_eq!(set(&mut controller, fid, asked), granted, "{asked:#x}");
    }
    controller.queues.push((
        1,
        Key {
            index: 1,
            generation: 1,
        },
    ));
    assert_eq!(
        set(&mut controller, fid, 0),
        Err(Status::COMMAND_SEQUENCE_ERROR.dnr())
    );
    assert_eq!(get(&controller, fid, Select::Current, 0), Ok(0x003F_003F));
}

#[test]
fn only_events_that_can_happen_are_enabled() {
    let fid = id::ASYNC_EVENT_CONFIG;
    for (kind, enabled) in [(Kind::Io, 0x11F), (Kind::Discovery, 0x8000_0000)] {
        let mut controller = controller(kind);
        assert_eq!(set(&mut controller, fid, u32::MAX), Ok(0));
        assert_eq!(get(&controller, fid, Select::Current, 0), Ok(enabled));
    }
}

#[test]
fn discovery_controller_has_two_features() {
    let controller = controller(Kind::Discovery);
    let known = (0..=u8::MAX)
        .filter(|&fid| get(&controller, fid, Select::Capabilities, 0).is_ok())
        .collect::<Vec<_>>();
    assert_eq!(known, [id::ASYNC_EVENT_CONFIG, id::KEEP_ALIVE_TIMER]);
}

#[test]
fn host_identifier_has_128_bits_only() {
    let controller = controller(Kind::Io);
    let mut data = [0; 16];
    let sqe = |cdw11| {
        GetFeatures {
            fid: id::HOST_IDENTIFIER,
            select: Select::Current,
            cdw11,
        }
        .encode()
    };
    let short = controller.get_features(AROUND, &sqe(0), &mut data);
    assert_eq!(short, Err(Status::HOST_ID_INCONSISTENT.dnr()));
    assert_eq!(controller.get_features(AROUND, &sqe(1), &mut data), Ok(0));
    assert_eq!(data, [7; 16]);
}

#[test]
fn timestamp_goes_on_from_what_the_host_said() {
    let mut controller = controller(Kind::Io);
    let sqe = SetFeatures::new(id::TIMESTAMP, 0).encode();
    assert_eq!(
        controller.set_features(AROUND, &sqe, &1000u64.to_le_bytes()),
        Ok(0)
    );
    let later = Surroundings {
        now: AROUND.now + Nanos::from_millis(2500),
        ..AROUND
    };
    let mut data = [0; 8];
    let get = GetFeatures::current(id::TIMESTAMP).encode();
    assert_eq!(controller.get_features(later, &get, &mut data), Ok(0));
    assert_eq!(u64::from_le_bytes(data), 3500 | 1 << 49);
    let short = controller.set_features(AROUND, &sqe, &[0; 4]);
    assert_eq!(short, Err(Status::DATA_SGL_LENGTH_INVALID.dnr()));
}

#[test]
fn host_behavior_is_checked_and_kept() {
    let mut controller = controller(Kind::Io);
    let sqe = SetFeatures::new(id::HOST_BEHAVIOR, 0).encode();
    let mut behavior = [0; 512];
    behavior[0] = 1;
    assert_eq!(controller.set_features(AROUND, &sqe, &behavior), Ok(0));
    behavior[2] = 2;
    let invalid = Err(Status::INVALID_FIELD.dnr());
    assert_eq!(controller.set_features(AROUND, &sqe, &behavior), invalid);
    let mut data = [9; 512];
    let get = GetFeatures::current(id::HOST_BEHAVIOR).encode();
    assert_eq!(controller.get_features(AROUND, &get, &mut data), Ok(0));
    assert_eq!((data[0], data[2]), (1, 0));
}

#[test]
fn nothing_is_saved_and_nothing_belongs_to_a_namespace_but_error_recovery() {
    let mut controller = controller(Kind::Io);
    let save = SetFeatures {
        save: true,
        ..SetFeatures::new(id::WRITE_ATOMICITY, 1)
    };
    let found = controller.set_features(AROUND, &save.encode(), &[]);
    assert_eq!(found, Err(Status::FEATURE_NOT_SAVEABLE.dnr()));
    for (fid, expected) in [
        (
            id::WRITE_ATOMICITY,
            Err(Status::FEATURE_NOT_NAMESPACE_SPECIFIC.dnr()),
        ),
        (id::ERROR_RECOVERY, Ok(0)),
    ] {
        let sqe = SetFeatures::new(fid, 0).encode().with_nsid(NamespaceId(1));
        assert_eq!(controller.set_features(AROUND, &sqe, &[]), expected);
    }
    let unnamed = GetFeatures::current(id::ERROR_RECOVERY).encode();
    let found = controller.get_features(AROUND, &unnamed, &mut []);
    assert_eq!(found, Err(Status::INVALID_NAMESPACE.dnr()));
}

#[test]
fn without_volatile_cache_there_is_no_cache_to_ask_about() {
    let mut controller = controller(Kind::Io);
    controller.volatile_cache = false;
    let sqe = GetFeatures::current(id::VOLATILE_WRITE_CACHE).encode();
    let found = controller.get_features(AROUND, &sqe, &mut []);
    assert_eq!(found, Err(Status::INVALID_FIELD.dnr()));
}
