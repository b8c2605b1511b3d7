use bowline_nvme::NamespaceId;

use super::super::namespace::tests::{config, geometry};
use super::ranges as ranges_of;
use super::*;

const MDTS: u32 = 64 << 10;
const TERMS: Terms = Terms {
    mdts_bytes: MDTS,
    host_flushes: true,
};

const ASKER: Asker<'_> = Asker { host: &[7; 16] };

fn namespaces(geometry: NsGeometry) -> Namespaces {
    let mut namespaces = Namespaces::new(4);
    let config = super::super::config::NamespaceConfig {
        geometry,
        ..config(Some(1))
    };
    namespaces.add(config).expect("valid");
    namespaces
}

fn sqe(opcode: u8, slba: u64, nlb: u16, sgl: Sgl) -> Sqe {
    Sqe::new(opcode)
        .with_nsid(NamespaceId(1))
        .with_slba(slba)
        .with_nlb(nlb)
        .with_sgl1(sgl)
}

fn check(sqe: Sqe, expected: Result<(), Status>) {
    let found = plan(&sqe, &namespaces(geometry()), ASKER, TERMS);
    assert_eq!(
        found.map(|_| ()).map_err(|(status, _)| status),
        expected,
        "{sqe:?}"
    );
}

#[test]
fn lengths_and_ranges_are_checked_without_wrapping() {
    let dnr = |status: Status| Err(status.dnr());
    let read = |slba, nlb, len| sqe(io::READ, slba, nlb, Sgl::transport(len));
    check(read(0, 0, 512), Ok(()));
    check(read(999, 0, 512), Ok(()));
    check(read(1000, 0, 512), dnr(Status::LBA_OUT_OF_RANGE));
    check(read(993, 7, 4096), dnr(Status::LBA_OUT_OF_RANGE));
    check(read(u64::MAX, 0, 512), dnr(Status::LBA_OUT_OF_RANGE));
    check(read(0, 0, 511), dnr(Status::DATA_SGL_LENGTH_INVALID));
    check(read(0, 0, 4096), dnr(Status::DATA_SGL_LENGTH_INVALID));
    check(read(0, 127, MDTS), Ok(()));
    check(read(0, 128, MDTS + 512), dnr(Status::INVALID_FIELD));
    check(read(0, 0xFFFF, 0), dnr(Status::INVALID_FIELD));
    check(
        sqe(io::READ, 0, 0, Sgl::in_capsule(512)),
        dnr(Status::SGL_TYPE_INVALID),
    );
    let huge = NsGeometry {
        block_bytes: 65_536,
        blocks: 1 << 40,
        ..geometry()
    };
    let huge = plan(
        &read(0, 0xFFFF, 0),
        &namespaces(huge),
        ASKER,
        Terms {
            mdts_bytes: 1 << 24,
            ..TERMS
        },
    );
    assert_eq!(huge, Err((Status::INVALID_FIELD.dnr(), NLB_AT)));
}

#[test]
fn commands_without_data_refuse_some() {
    check(sqe(io::FLUSH, 0, 0, Sgl::transport(0)), Ok(()));
    let some = Err(Status::DATA_SGL_LENGTH_INVALID.dnr());
    check(sqe(io::FLUSH, 0, 0, Sgl::transport(512)), some);
    check(sqe(io::WRITE_ZEROES, 0, 0, Sgl::in_capsule(512)), some);
    check(sqe(io::WRITE_ZEROES, 0, 999, Sgl::transport(0)), Ok(()));
}

#[test]
fn unknown_opcodes_and_namespaces_are_refused_for_good() {
    for opcode in [
        io::WRITE_UNCORRECTABLE,
        io::IO_MANAGEMENT_RECEIVE,
        io::IO_MANAGEMENT_SEND,
        0x79,
        0x7A,
        0x7D,
        0xFF,
    ] {
        check(
            sqe(opcode, 0, 0, Sgl::transport(0)),
            Err(Status::INVALID_OPCODE.dnr()),
        );
    }
    for nsid in [0, 2, 5, NamespaceId::BROADCAST.0] {
        let flush = Sqe::new(io::FLUSH).with_nsid(NamespaceId(nsid));
        check(flush, Err(Status::INVALID_NAMESPACE.dnr()));
    }
}

#[test]
fn read_only_namespace_reads_compares_and_flushes_only() {
    let geometry = NsGeometry {
        read_only: true,
        ..geometry()
    };
    let namespaces = namespaces(geometry);
    let status = |opcode, sgl| {
        plan(&sqe(opcode, 0, 0, sgl), &namespaces, ASKER, TERMS)
            .err()
            .map(|(status, _)| status)
    };
    let protected = Some(Status::NAMESPACE_WRITE_PROTECTED.dnr());
    assert_eq!(status(io::READ, Sgl::transport(512)), None);
    assert_eq!(status(io::COMPARE, Sgl::transport(512)), None);
    assert_eq!(status(io::FLUSH, Sgl::transport(0)), None);
    assert_eq!(status(io::WRITE, Sgl::in_capsule(512)), protected);
    assert_eq!(status(io::WRITE_ZEROES, Sgl::transport(0)), protected);
    assert_eq!(
        status(io::DATASET_MANAGEMENT, Sgl::transport(4096)),
        protected
    );
    assert_eq!(status(io::COPY, Sgl::transport(32)), protected);
    assert_eq!(status(io::VERIFY, Sgl::transport(0)), None);
}

fn dsm(nr: u8, sgl: Sgl) -> Sqe {
    Sqe::new(io::DATASET_MANAGEMENT)
        .with_nsid(NamespaceId(1))
        .with_ranges(nr, true)
        .with_sgl1(sgl)
}

#[test]
fn dataset_management_accepts_more_data_than_its_ranges_need() {
    check(dsm(0, Sgl::in_capsule(4096)), Ok(()));
    check(dsm(0, Sgl::in_capsule(16)), Ok(()));
    check(dsm(255, Sgl::in_capsule(4096)), Ok(()));
    let short = Err(Status::DATA_SGL_LENGTH_INVALID.dnr());
    check(dsm(1, Sgl::in_capsule(16)), short);
    check(dsm(0, Sgl::in_capsule(8192)), short);
    let hint = dsm(0, Sgl::in_capsule(16)).with_ranges(0, false);
    assert_eq!(
        plan(&hint, &namespaces(geometry()), ASKER, TERMS),
        Ok(IoPlan::Advice(NamespaceHandle(9)))
    );
}

#[test]
fn each_deallocated_range_is_checked_and_empty_ones_do_nothing() {
    let namespaces = namespaces(geometry());
    let list = |ranges: &[(u64, u32)]| -> Vec<u8> {
        let encode = |&(slba, blocks)| {
            DsmRange {
                attributes: 0,
                blocks,
                slba,
            }
            .encode()
        };
        ranges.iter().flat_map(encode).collect()
    };
    let found = |nr, ranges: &[(u64, u32)]| {
        let data = list(ranges);
        let len = u32::try_from(data.len()).expect("short");
        ranges_of(
            &dsm(nr, Sgl::in_capsule(len)),
            &namespaces,
            ASKER,
            NamespaceHandle(9),
            TERMS,
            &data,
        )
        .map(|command| command.map(|command| command.op))
        .map_err(|(status, _)| status)
    };
    let out = Err(Status::LBA_OUT_OF_RANGE.dnr());
    assert_eq!(
        found(1, &[(0, 8), (992, 8)]),
        Ok(Some(IoOp::Deallocate { ranges: 2 }))
    );
    assert_eq!(found(1, &[(0, 8), (993, 8)]), out);
    assert_eq!(found(0, &[(u64::MAX, 2)]), out);
    assert_eq!(found(0, &[(5000, 0)]), Ok(None));
    // The second range is not meant.
    assert_eq!(
        found(0, &[(0, 1), (5000, 9)]),
        Ok(Some(IoOp::Deallocate { ranges: 1 }))
    );
}

/// The ranges of a deallocation were applied to whatever namespace had the NSID by then. One
/// that was added meanwhile lost data that nobody had meant.
#[test]
fn ranges_are_not_for_another_namespace_of_the_same_nsid() {
    let range = DsmRange {
        attributes: 0,
        blocks: 8,
        slba: 0,
    };
    let command = dsm(0, Sgl::in_capsule(16));
    let namespaces = namespaces(geometry());
    let handle = NamespaceHandle(8);
    let found = ranges_of(&command, &namespaces, ASKER, handle, TERMS, &range.encode());
    assert_eq!(found, Err((Status::INVALID_NAMESPACE.dnr(), NSID_AT)));
}

#[test]
fn write_zeroes_deallocates_only_where_that_reads_zeroes() {
    for (deallocate, expected) in [
        (Deallocate::ReadsZero, true),
        (Deallocate::Undefined, false),
        (Deallocate::None, false),
    ] {
        let namespaces = namespaces(NsGeometry {
            deallocate,
            ..geometry()
        });
        let sqe = sqe(io::WRITE_ZEROES, 3, 1, Sgl::transport(0)).with_deac(true);
        let Ok(IoPlan::Execute(command)) = plan(&sqe, &namespaces, ASKER, TERMS) else {
            panic!("refused")
        };
        let op = IoOp::WriteZeroes {
            lba: 3,
            blocks: 2,
            deallocate: expected,
            fua: false,
        };
        assert_eq!(command.op, op);
    }
}

#[test]
fn verify_moves_no_data_and_is_bounded_by_vsl() {
    let geometry = NsGeometry {
        block_bytes: 4096,
        blocks: 1 << 20,
        ..geometry()
    };
    let namespaces = namespaces(geometry);
    let status = |nlb, sgl| {
        plan(&sqe(io::VERIFY, 0, nlb, sgl), &namespaces, ASKER, TERMS)
            .err()
            .map(|(status, _)| status)
    };
    assert_eq!(status(4095, Sgl::transport(0)), None);
    assert_eq!(
        status(4096, Sgl::transport(0)),
        Some(Status::INVALID_FIELD.dnr())
    );
    assert_eq!(
        status(0, Sgl::transport(4096)),
        Some(Status::DATA_SGL_LENGTH_INVALID.dnr())
    );
}

#[test]
fn reads_with_fua_need_stable_media_only_where_there_is_a_volatile_cache() {
    for volatile_cache in [false, true] {
        let namespaces = namespaces(NsGeometry {
            volatile_cache,
            ..geometry()
        });
        for (opcode, sgl) in [
            (io::READ, Sgl::transport(512)),
            (io::COMPARE, Sgl::transport(512)),
            (io::VERIFY, Sgl::transport(0)),
        ] {
            for asked in [false, true] {
                let sqe = sqe(opcode, 0, 0, sgl).with_fua(asked);
                let (Ok(IoPlan::Execute(found)) | Ok(IoPlan::FromHost(found))) =
                    plan(&sqe, &namespaces, ASKER, TERMS)
                else {
                    panic!("refused")
                };
                let (IoOp::Read { fua, .. } | IoOp::Compare { fua, .. } | IoOp::Verify { fua, .. }) =
                    found.op
                else {
                    panic!("{found:?}")
                };
                assert_eq!(fua, asked && volatile_cache);
            }
        }
    }
}

/// The status of a Copy to `to` from these ranges.
fn copied(to: u64, sources: &[(u64, u32)]) -> Result<Option<IoOp>, Status> {
    let geometry = NsGeometry {
        blocks: 1 << 20,
        ..geometry()
    };
    let encode = |&(slba, blocks)| CopyRange { slba, blocks }.encode();
    let data: Vec<u8> = sources.iter().flat_map(encode).collect();
    let len = u32::try_from(data.len()).expect("short");
    let nr = u8::try_from(sources.len() - 1).expect("few");
    let sqe = Sqe::new(io::COPY)
        .with_nsid(NamespaceId(1))
        .with_copy(to, nr)
        .with_sgl1(Sgl::in_capsule(len.min(4096)));
    let namespaces = namespaces(geometry);
    plan(&sqe, &namespaces, ASKER, TERMS)
        .and_then(|plan| ranges_of(&sqe, &namespaces, ASKER, plan.namespace(), TERMS, &data))
        .map(|command| command.map(|command| command.op))
        .map_err(|(status, _)| status)
}

#[test]
fn copy_checks_every_range_before_anything_is_written() {
    let op = |lba, blocks, ranges| {
        let fua = false;
        Ok(Some(IoOp::Copy {
            lba,
            blocks,
            ranges,
            fua,
        }))
    };
    let refused = |status: Status| Err(status.dnr());
    assert_eq!(copied(1000, &[(0, 8)]), op(1000, 8, 1));
    assert_eq!(copied(1000, &[(0, 8), (4, 8), (0, 1)]), op(1000, 17, 3));
    assert_eq!(
        copied(1000, &[(0, 32_768)]),
        refused(Status::OVERLAPPING_RANGE)
    );
    assert_eq!(copied(100_000, &[(0, 32_768)]), op(100_000, 32_768, 1));
    let too_long = refused(Status::COMMAND_SIZE_LIMIT_EXCEEDED);
    assert_eq!(copied(100_000, &[(0, 32_769)]), too_long);
    assert_eq!(copied(100_000, &[(0, 32_768), (0, 1)]), too_long);
    assert_eq!(copied(100_000, &[(0, 1); 128]), op(100_000, 128, 128));
    assert_eq!(copied(100_000, &[(0, 1); 129]), too_long);
    let out = refused(Status::LBA_OUT_OF_RANGE);
    assert_eq!(copied(0, &[(9, 1), ((1 << 20) - 1, 2)]), out);
    assert_eq!(copied((1 << 20) - 1, &[(0, 2)]), out);
    assert_eq!(copied(0, &[(u64::MAX, 2)]), out);
    assert_eq!(copied(u64::MAX, &[(0, 2)]), out);
}

#[test]
fn copy_refuses_sources_that_overlap_its_destination() {
    let refused = Err(Status::OVERLAPPING_RANGE.dnr());
    for source in [(100, 8), (93, 8), (107, 8), (99, 100)] {
        assert_eq!(copied(100, &[source]), refused, "{source:?}");
    }
    // The destination of the second is what the first one is long.
    assert_eq!(copied(100, &[(0, 8), (108, 8)]), refused);
    assert!(copied(100, &[(92, 8)]).is_ok() && copied(100, &[(108, 8)]).is_ok());
}

#[test]
fn copy_knows_one_format_and_no_directive() {
    let copy = Sqe::new(io::COPY).with_nsid(NamespaceId(1)).with_copy(0, 0);
    let list = Sgl::in_capsule(32);
    let field = Err(Status::INVALID_FIELD.dnr());
    check(copy.with_sgl1(list), Ok(()));
    check(copy.with_sgl1(list).with_cdw(12, 1 << 8), field);
    check(copy.with_sgl1(list).with_cdw(12, 1 << 20), field);
    let length = Err(Status::DATA_SGL_LENGTH_INVALID.dnr());
    check(copy.with_sgl1(Sgl::in_capsule(16)), length);
    check(copy.with_sgl1(Sgl::transport(8192)), length);
}
