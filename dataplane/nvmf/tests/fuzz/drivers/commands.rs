//! Commands out of an input: mostly of a kind that means something, some of no kind at all.

use bowline_nvme::fabrics::{Disconnect, PropertyGet, PropertySet, offset};
use bowline_nvme::identify::Identify;
use bowline_nvme::log::GetLogPage;
use bowline_nvme::nvm::DsmRange;
use bowline_nvme::opcode::{admin, io};
use bowline_nvme::{Fuse, NamespaceId, Sgl, Sqe};

use super::input::Input;

/// A command, the data a host sends with it or on request, and the data it would have sent back.
pub(crate) struct Wanted {
    pub(crate) sqe: Sqe,
    pub(crate) in_capsule: Vec<u8>,
}

const NSIDS: [u32; 6] = [1, 2, 1, 3, 0, u32::MAX];
const LENGTHS: [u32; 8] = [0, 512, 1024, 4096, 8192, 16, 64, 65_536];
const CNS: [u8; 16] = [
    0, 1, 2, 3, 5, 6, 7, 8, 0x10, 0x11, 0x12, 0x13, 0x15, 0x16, 0x1C, 0x17,
];
const LIDS: [u8; 12] = [0, 1, 2, 3, 4, 5, 0x0C, 0x12, 0x70, 0x80, 0x0D, 0x13];
const FEATURES: [u8; 16] = [
    1, 2, 4, 5, 6, 7, 8, 9, 0x0A, 0x0B, 0x0E, 0x0F, 0x16, 0x81, 0x82, 0x83,
];
const ADMIN: [u8; 12] = [
    admin::FORMAT_NVM,
    admin::SANITIZE,
    admin::NAMESPACE_MANAGEMENT,
    admin::NAMESPACE_ATTACHMENT,
    admin::FIRMWARE_COMMIT,
    admin::SECURITY_RECEIVE,
    admin::CREATE_SQ,
    admin::DELETE_SQ,
    0x1C,
    0x14,
    0xC0,
    0x7F,
];
const RESERVATIONS: [u8; 4] = [
    io::RESERVATION_REGISTER,
    io::RESERVATION_REPORT,
    io::RESERVATION_ACQUIRE,
    io::RESERVATION_RELEASE,
];
const CC: [u32; 6] = [
    0x0046_0001,
    0x0046_0000,
    0x0046_4001,
    0x0046_8001,
    1,
    0xFFFF_FFFF,
];

/// A command for an admin queue.
pub(crate) fn admin(input: &mut Input<'_>) -> Wanted {
    let nsid = NamespaceId(input.one_of(&NSIDS));
    let sqe = match input.below(12) {
        0 => Identify::new(input.one_of(&CNS)).encode(),
        1 => log(input),
        2 => Sqe::new(admin::SET_FEATURES)
            .with_cdw(10, feature(input))
            .with_cdw(11, choice(input)),
        3 => Sqe::new(admin::GET_FEATURES).with_cdw(10, feature(input)),
        4 => Sqe::new(admin::ASYNC_EVENT_REQUEST),
        5 => Sqe::new(admin::KEEP_ALIVE),
        6 => {
            let free = u32::from(input.u8());
            // Identifiers are counted up from 1.
            Sqe::new(admin::ABORT).with_cdw(10, free & 3 | free >> 2 << 16)
        }
        7 => PropertyGet::dword(input.one_of(&[offset::CAP, offset::CSTS, offset::CC, 0x24]))
            .encode(),
        8 => PropertySet::dword(offset::CC, input.one_of(&CC)).encode(),
        9 => PropertySet::dword(offset::NSSR, input.u32()).encode(),
        10 => noise(Sqe::new(input.one_of(&ADMIN)), input),
        _ => noise(Sqe::new(input.u8()), input),
    };
    let bytes = match sqe.opcode() {
        admin::IDENTIFY => 4096,
        admin::GET_LOG_PAGE => u32::try_from(GetLogPage::decode(&sqe).bytes()).unwrap_or(u32::MAX),
        _ => 0,
    };
    with_data(sqe.with_nsid(nsid), bytes, input)
}

/// A command for an I/O queue.
pub(crate) fn io(input: &mut Input<'_>) -> Wanted {
    let nsid = NamespaceId(input.one_of(&NSIDS));
    let (slba, nlb) = (u64::from(input.u8() >> 2), u16::from(input.u8() & 15));
    let range = |opcode| Sqe::new(opcode).with_slba(slba).with_nlb(nlb);
    let blocks = (u32::from(nlb) + 1) * 512;
    let (sqe, bytes) = match input.below(12) {
        0 | 1 => (range(io::READ), blocks),
        2 | 3 => (range(io::WRITE).with_fua(slba & 1 != 0), blocks),
        4 => (range(io::COMPARE), blocks),
        5 => (Sqe::new(io::FLUSH), 0),
        6 => (range(io::WRITE_ZEROES).with_deac(slba & 1 != 0), 0),
        7 => {
            let nr = input.u8() & 7;
            let bytes = (u32::from(nr) + 1) * 16;
            (
                Sqe::new(io::DATASET_MANAGEMENT).with_ranges(nr, slba & 3 != 0),
                bytes,
            )
        }
        8 => (range(io::VERIFY), 0),
        9 => {
            let opcode = input.one_of(&RESERVATIONS);
            let (what, free) = (choice(input), u32::from(input.u8()));
            // The highest bits: whether what is registered persists.
            let sqe = Sqe::new(opcode)
                .with_cdw(10, what | free >> 6 << 30)
                .with_cdw(11, free & 1);
            (
                sqe,
                if opcode == io::RESERVATION_REPORT {
                    4096
                } else {
                    16
                },
            )
        }
        10 => {
            let nr = input.u8() & 3;
            let sqe = Sqe::new(io::COPY)
                .with_slba(slba)
                .with_cdw(12, u32::from(nr));
            (sqe, (u32::from(nr) + 1) * 32)
        }
        _ => match input.u8() {
            0..16 => (Disconnect::default().encode(), 0),
            opcode => (noise(Sqe::new(opcode), input), choice(input)),
        },
    };
    let mut wanted = with_data(sqe.with_nsid(nsid), bytes, input);
    // FUSE: compare-and-write is the second of two.
    match input.u8() {
        free if free & 7 == 7 => wanted.sqe.0[1] |= input.u8() & 3,
        free if free & 8 != 0 && wanted.sqe.opcode() == io::COMPARE => {
            wanted.sqe = wanted.sqe.with_fuse(Fuse::First);
        }
        _ => {}
    }
    wanted
}

/// The Write that makes a pair with a Compare.
pub(crate) fn second_half(first: &Wanted, input: &mut Input<'_>) -> Wanted {
    let mut sqe = first.sqe.with_fuse(Fuse::Second);
    sqe.0[0] = io::WRITE;
    let in_capsule = data(io::WRITE, first.in_capsule.len(), input);
    Wanted { sqe, in_capsule }
}

fn log(input: &mut Input<'_>) -> Sqe {
    let lid = input.one_of(&LIDS);
    let bytes = input.one_of(&LENGTHS).max(4);
    let at = u64::from(input.one_of(&LENGTHS));
    let mut page = GetLogPage::range(lid, at & !511, bytes);
    let free = input.u8();
    page.rae = free & 1 != 0;
    page.ot = free & 0xF0 == 0xF0;
    page.lsp = free >> 1 & 3;
    page.encode()
}

fn feature(input: &mut Input<'_>) -> u32 {
    let select = u32::from(input.u8() & 7) << 8;
    u32::from(input.one_of(&FEATURES)) | select
}

/// A small number, or any.
fn choice(input: &mut Input<'_>) -> u32 {
    match input.u8() {
        255 => input.u32(),
        small => u32::from(small),
    }
}

fn noise(sqe: Sqe, input: &mut Input<'_>) -> Sqe {
    let count = input.below(7);
    (0..count).fold(sqe, |sqe, _| sqe.with_cdw(10 + input.below(6), input.u32()))
}

/// Says where the data of the command is: mostly as it should be.
fn with_data(sqe: Sqe, bytes: u32, input: &mut Input<'_>) -> Wanted {
    let bytes = match input.u8() {
        0..8 => input.one_of(&LENGTHS),
        _ => bytes,
    };
    let to_controller = matches!(
        sqe.opcode(),
        io::WRITE | io::COMPARE | io::DATASET_MANAGEMENT | io::COPY | io::RESERVATION_REGISTER
    ) || matches!(
        sqe.opcode(),
        io::RESERVATION_ACQUIRE | io::RESERVATION_RELEASE
    );
    let mode = input.u8();
    if (to_controller || mode == 255) && mode & 1 != 0 && (1..=4096).contains(&bytes) {
        let data = data(sqe.opcode(), bytes as usize, input);
        return Wanted {
            sqe: sqe.with_sgl1(Sgl::in_capsule(bytes)),
            in_capsule: data,
        };
    }
    Wanted {
        sqe: sqe.with_sgl1(Sgl::transport(bytes)),
        in_capsule: Vec::new(),
    }
}

/// Data for a command: ranges where ranges are wanted, a pattern with some noise otherwise.
pub(crate) fn data(opcode: u8, len: usize, input: &mut Input<'_>) -> Vec<u8> {
    let mut data = vec![input.u8(); len];
    if opcode == io::DATASET_MANAGEMENT {
        for chunk in data.chunks_exact_mut(DsmRange::SIZE) {
            let range = DsmRange {
                attributes: 0,
                blocks: u32::from(input.u8() & 31),
                slba: u64::from(input.u8() & 63),
            };
            chunk.copy_from_slice(&range.encode());
        }
    } else {
        for (to, from) in data.iter_mut().zip(input.bytes(len.min(32))) {
            *to = *from;
        }
    }
    data
}
