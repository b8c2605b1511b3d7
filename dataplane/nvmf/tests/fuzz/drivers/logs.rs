//! Everything a host reads out of a controller's answers, and what a target reads out of a
//! host's data: any bytes are readable without harm, and readers end.

use bowline_nvme::fabrics::{ConnectData, ConnectInvalid};
use bowline_nvme::identify::{
    IdentifyController, IdentifyNamespace, controller_list, namespace_descriptors, namespace_list,
};
use bowline_nvme::log::{
    AnaLogReader, DiscoveryEntry, DiscoveryHeader, EffectsLog, ErrorLogEntry, SmartLog,
    SupportedLogs, changed_namespaces,
};
use bowline_nvme::nqn::Nqn;
use bowline_nvme::nvm::DsmRange;
use bowline_nvme::{Sqe, Status};
use bowline_nvmf::host::DiscoveryReader;

use super::input::Input;

/// Most commands an honest end of reading can take: the header, every entry by itself, the header
/// again, and all that once per attempt.
const COMMANDS_MAX: usize = 10 * (ENTRIES_MAX + 2) + 2;
const ENTRIES_MAX: usize = 16;

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    match input.below(3) {
        0 => discovery(&mut input),
        1 => ana(input.rest()),
        _ => structures(input.rest()),
    }
}

/// A discovery log that may change, lie, and end early between any two commands.
fn discovery(input: &mut Input<'_>) {
    let chunk = u32::from(input.u16());
    let entries_max = input.below(ENTRIES_MAX + 1);
    let mut reader = DiscoveryReader::new(chunk, entries_max);
    let mut genctr = input.u64();
    let mut numrec = u64::from(input.u8() & 15);
    for _ in 0..COMMANDS_MAX {
        let Some((sqe, len)) = reader.command() else {
            let genctr = reader.genctr();
            let entries = reader.into_entries();
            assert!(entries.len() <= entries_max, "more entries than wanted");
            assert!(genctr > 0 || entries.len() <= entries_max);
            return;
        };
        assert!(
            len >= 1024 && len <= chunk.max(1024),
            "{len} bytes of at most {chunk}"
        );
        let offset = u64::from(sqe.cdw(12)) | u64::from(sqe.cdw(13)) << 32;
        let choice = input.u8();
        if choice & 1 != 0 {
            genctr = genctr.wrapping_add(1);
            numrec = match choice >> 4 {
                15 => input.u64(),
                few => u64::from(few),
            };
        }
        let mut data = vec![0; len as usize];
        if offset == 0 {
            let header = DiscoveryHeader {
                genctr,
                numrec,
                recfmt: u16::from(choice == 255),
            };
            data[..1024].copy_from_slice(&header.to_bytes());
        }
        if choice & 2 != 0 {
            let noise = input.bytes(usize::from(choice));
            let at = input.below(256) * 4;
            for (to, from) in data.iter_mut().skip(at).zip(noise) {
                *to = *from;
            }
        }
        if choice & 12 == 12 {
            data.truncate(usize::from(input.u16()));
        }
        let status = if choice == 254 {
            Status::INVALID_FIELD
        } else {
            Status::SUCCESS
        };
        if reader.handle(status, &data).is_err() {
            return;
        }
    }
    panic!("the reader never ends");
}

fn ana(bytes: &[u8]) {
    let Ok(reader) = AnaLogReader::new(bytes) else {
        return;
    };
    let mut seen = 0;
    for group in reader {
        seen += 1;
        assert!(seen <= bytes.len(), "groups out of nothing");
        if let Ok(group) = group {
            assert!(group.namespaces().count() <= bytes.len() / 4);
        }
    }
}

fn structures(bytes: &[u8]) {
    let mut page = [0; 4096];
    let len = bytes.len().min(page.len());
    page[..len].copy_from_slice(&bytes[..len]);
    let controller = IdentifyController::decode(&page);
    let _ = controller.transfer_bytes_max(4096);
    assert_eq!(
        IdentifyController::decode(&controller.to_bytes()),
        controller
    );
    let namespace = IdentifyNamespace::decode(&page);
    let _ = (namespace.format(), namespace.formats());
    assert_eq!(IdentifyNamespace::decode(&namespace.to_bytes()), namespace);
    assert!(namespace_list(&page).count() <= 1024);
    assert!(changed_namespaces(&page).count() <= 1024);
    assert!(controller_list(&page).count() <= 2047);
    assert!(namespace_descriptors(&page).count() <= 1024);
    let effects = EffectsLog::decode(&page);
    assert_eq!(EffectsLog::decode(&effects.to_bytes()), effects);
    let (first, _) = page.split_first_chunk::<1024>().expect("4096 bytes");
    let logs = SupportedLogs::decode(first);
    assert_eq!(SupportedLogs::decode(&logs.to_bytes()), logs);
    let entry = DiscoveryEntry::decode(first);
    let _ = (entry.nqn(), entry.address(), entry.service());
    assert_eq!(DiscoveryEntry::decode(&entry.to_bytes()), entry);
    if let Ok(data) = ConnectData::decode(first) {
        assert_eq!(ConnectData::decode(&data.encode()), Ok(data));
    }
    let (smart, _) = page.split_first_chunk::<512>().expect("4096 bytes");
    let smart = SmartLog::decode(smart);
    assert_eq!(SmartLog::decode(&smart.to_bytes()), smart);
    let (small, _) = page.split_first_chunk::<64>().expect("4096 bytes");
    let error = ErrorLogEntry::decode(small);
    assert_eq!(ErrorLogEntry::decode(&error.to_bytes()), error);
    let sqe = Sqe(*small);
    assert!(sqe.blocks() >= 1);
    let _ = (sqe.fuse(), sqe.sgl1(), ConnectInvalid::decode(sqe.slba()));
    let (name, _) = page.split_first_chunk::<256>().expect("4096 bytes");
    if let Ok(name) = Nqn::decode(name) {
        assert!(Nqn::new(name.as_str()).is_ok_and(|again| again == name));
    }
    assert!(DsmRange::list(bytes, u16::MAX).count() <= bytes.len() / DsmRange::SIZE);
}
