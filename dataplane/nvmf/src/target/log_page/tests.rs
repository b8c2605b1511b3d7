use bowline_nvme::Nanos;
use bowline_nvme::nqn::Nqn;
use proptest::prelude::*;

use super::super::config::Path;
use super::super::controller::NewController;
use super::super::namespace::tests::config;
use super::super::table::Key;
use super::*;

fn controller() -> Controller {
    let nqn = Nqn::new("nqn.2026-11.io.bowline:x").expect("valid");
    let new = NewController {
        cntlid: 1,
        kind: Kind::Io,
        subsystem: None,
        subnqn: nqn,
        hostnqn: nqn,
        hostid: [7; 16],
        admin: Key {
            index: 0,
            generation: 1,
        },
        kato: Nanos::ZERO,
        io_queues: 4,
        volatile_cache: true,
        ana_changes: None,
    };
    Controller::new(Nanos::ZERO, new)
}

/// Reads a log with any edits of the command.
fn read(controller: &mut Controller, get: GetLogPage, nsid: u32) -> Result<Vec<u8>, Status> {
    let mut namespaces = Namespaces::new(4);
    namespaces.add(config(Some(1))).expect("valid");
    let target = TargetConfig::default();
    let context = LogContext {
        config: &target,
        discovery: &Arc::default(),
        namespaces: Some(&namespaces),
        ana: None,
        health: Some(HealthTotals::default()),
        local: Path::default().local,
    };
    let mut data = vec![0xEE; usize::try_from(get.bytes()).expect("small")];
    let sqe = get.encode().with_nsid(NamespaceId(nsid));
    controller
        .get_log_page(&context, &sqe, &mut data)
        .map(|()| data)
}

#[test]
fn offsets_and_lengths_are_bounded_by_the_log() {
    let mut controller = controller();
    let invalid = Err(Status::INVALID_FIELD.dnr());
    let smart = |offset, len| GetLogPage::range(id::SMART, offset, len);
    for (get, expected) in [
        (smart(0, 512), Ok(512)),
        (smart(0, 4), Ok(4)),
        (smart(508, 512), Ok(512)),
        (smart(512, 4), Ok(4)),
        (smart(516, 4), invalid),
        (smart(2, 4), invalid),
        (smart(u64::MAX - 3, 8), invalid),
        (
            GetLogPage {
                ot: true,
                ..smart(0, 4)
            },
            invalid,
        ),
    ] {
        let found = read(&mut controller, get, 0).map(|data| data.len());
        assert_eq!(found, expected, "{get:?}");
    }
}

#[test]
fn what_lies_beyond_the_log_is_zero_and_pieces_make_the_whole() {
    let mut controller = controller();
    let whole = read(
        &mut controller,
        GetLogPage::range(id::FIRMWARE_SLOT, 0, 1024),
        0,
    )
    .expect("supported");
    assert!(whole[512..].iter().all(|&byte| byte == 0));
    assert_eq!(whole[0], 1);
    assert_eq!(whole[8..16], TargetConfig::default().firmware);
    let mut pieces = Vec::new();
    for offset in (0..512).step_by(12) {
        let get = GetLogPage::range(id::FIRMWARE_SLOT, offset, 12);
        pieces.extend(read(&mut controller, get, 0).expect("supported"));
    }
    assert!(pieces[..512] == whole[..512]);
}

#[test]
fn supported_pages_are_exactly_those_that_can_be_read() {
    let mut controller = controller();
    let bytes = read(
        &mut controller,
        GetLogPage::range(id::SUPPORTED_LOG_PAGES, 0, 1024),
        0,
    )
    .expect("supported");
    let listed = SupportedLogs::decode(bytes.first_chunk().expect("1024"));
    for lid in 0..=u8::MAX {
        let found = read(&mut controller, GetLogPage::range(lid, 0, 4), 0);
        assert_eq!(found.is_ok(), listed.contains(lid), "{lid:#x}");
        if !listed.contains(lid) {
            assert_eq!(found, Err(Status::INVALID_LOG_PAGE.dnr()));
        }
    }
}

#[test]
fn smart_log_is_of_the_controller_and_not_of_a_namespace() {
    let mut controller = controller();
    let get = GetLogPage::range(id::SMART, 0, 512);
    assert!(read(&mut controller, get, NamespaceId::BROADCAST.0).is_ok());
    assert_eq!(
        read(&mut controller, get, 1),
        Err(Status::INVALID_FIELD.dnr())
    );
}

#[test]
fn effects_name_the_commands_there_are_and_freeze_nothing() {
    let mut controller = controller();
    let bytes =
        read(&mut controller, GetLogPage::range(id::EFFECTS, 0, 4096), 0).expect("supported");
    for (opcode, dword) in (0..=u8::MAX).zip(bytes[1024..2048].chunks(4)) {
        let effects = u32::from_le_bytes(dword.try_into().expect("4"));
        assert_eq!(effects & 1 == 1, io::is_supported(opcode), "{opcode:#x}");
        assert_eq!(effects >> 16 & 7, 0, "no exclusive execution");
    }
    assert_eq!(bytes[usize::from(admin::IDENTIFY) * 4], 1);
    assert_eq!(bytes[usize::from(admin::FORMAT_NVM) * 4], 0);
}

#[test]
fn too_many_changed_namespaces_are_all_of_them() {
    let mut controller = controller();
    let get = GetLogPage::range(id::CHANGED_NAMESPACE_LIST, 0, 4096);
    for nsid in (1..=1024).rev() {
        controller.changed.add(nsid);
    }
    controller.changed.add(7);
    let retained = GetLogPage { rae: true, ..get };
    let bytes = read(&mut controller, retained, 0).expect("supported");
    assert_eq!(
        (bytes[0], bytes[4092..].to_vec()),
        (1, 1024u32.to_le_bytes().to_vec())
    );
    controller.changed.add(5000);
    controller.changed.add(6000);
    let bytes = read(&mut controller, get, 0).expect("supported");
    assert_eq!(bytes[..4], [0xFF; 4]);
    assert!(bytes[4..].iter().all(|&byte| byte == 0));
    let bytes = read(&mut controller, get, 0).expect("supported");
    assert!(bytes.iter().all(|&byte| byte == 0));
}

#[test]
fn transfer_length_must_be_what_numd_says() {
    use bowline_nvme::Sgl;
    let sqe = |bytes, sgl| {
        GetLogPage::range(id::SMART, 0, bytes)
            .encode()
            .with_sgl1(Sgl::transport(sgl))
    };
    assert_eq!(transfer_bytes(&sqe(512, 512), 4096), Ok(512));
    let length = Err(Status::DATA_SGL_LENGTH_INVALID.dnr());
    assert_eq!(transfer_bytes(&sqe(512, 511), 4096), length);
    let invalid = Err(Status::INVALID_FIELD.dnr());
    assert_eq!(transfer_bytes(&sqe(8192, 8192), 4096), invalid);
    let all = GetLogPage {
        numd: u32::MAX,
        ..GetLogPage::range(id::SMART, 0, 4)
    };
    assert_eq!(transfer_bytes(&all.encode(), 4096), invalid);
}

proptest! {
    /// The model is the whole log, of which the window shows a slice.
    #[test]
    fn any_window_shows_what_a_slice_of_the_whole_log_would(
        base in prop::sample::select(vec![0_u64, 4096, u64::from(u32::MAX), 1 << 40]),
        (start, len) in (0_usize..200, 1_usize..200),
        puts in prop::collection::vec(
            (0_usize..400, prop::collection::vec(any::<u8>(), 0..100)),
            0..10,
        ),
        (at, size, count) in (0_usize..300, 1_usize..50, 0_usize..20),
    ) {
        let place = |at: usize| base + u64::try_from(at).expect("small");
        let mut whole = vec![0; 500];
        let mut data = vec![0xEE; len];
        let mut window = Window::new(place(start), &mut data);
        prop_assert_eq!(window.start(), place(start));
        let shown = start..start + len;
        for (at, bytes) in &puts {
            window.put(place(*at), bytes);
            whole[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        let size_bytes = u64::try_from(size).expect("small");
        let overlaps = |first: usize| first < shown.end && shown.start < first + size;
        for first in 0..400 {
            prop_assert_eq!(window.shows(place(first), size_bytes), overlaps(first));
        }
        let entries: Vec<usize> = (0..count).collect();
        let found: Vec<(u64, usize)> = window
            .entries(place(at), size_bytes, &entries)
            .map(|(position, &entry)| (position, entry))
            .collect();
        let expected: Vec<(u64, usize)> = entries
            .iter()
            .map(|&entry| (at + entry * size, entry))
            .filter(|&(first, _)| overlaps(first))
            .map(|(first, entry)| (place(first), entry))
            .collect();
        prop_assert_eq!(found, expected);
        prop_assert_eq!(&data[..], &whole[shown]);
    }
}
