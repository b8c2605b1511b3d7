//! I/O commands: what each must satisfy, and what it becomes for the device. [NVM-1.0 §3]

use bowline_nvme::nvm::{CopyRange, DsmRange};
use bowline_nvme::opcode::io;
use bowline_nvme::reservation::{Register, Release, Report};
use bowline_nvme::{Fuse, Sgl, Sqe, Status};

use super::ana::check_access;
use super::config::{Deallocate, NsGeometry};
use super::namespace::{Namespace, Namespaces};
use super::output::{IoCommand, IoOp, NamespaceHandle};
use super::reservation::{Access, HostId};

/// How a command goes on once it has been accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IoPlan {
    /// Run it now; a Read's data follows.
    Execute(IoCommand),
    /// Fetch its data, then run it.
    FromHost(IoCommand),
    /// Fetch its data, then look at the ranges in it.
    Ranges(NamespaceHandle),
    /// Fetch its data and succeed: it only gave advice that is not taken.
    Advice(NamespaceHandle),
    /// Fetch its data, then change reservations by the keys in it.
    Reservation(NamespaceHandle),
    /// Write this many bytes about reservations to the host.
    Report(NamespaceHandle, u32),
}

impl IoPlan {
    /// The device the command was meant for when it was accepted.
    pub(super) fn namespace(&self) -> NamespaceHandle {
        match self {
            Self::Execute(command) | Self::FromHost(command) => command.namespace,
            Self::Ranges(handle)
            | Self::Advice(handle)
            | Self::Reservation(handle)
            | Self::Report(handle, _) => *handle,
        }
    }
}

/// What holds for every command of a controller.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    pub(super) mdts_bytes: u32,
    /// The host knows of a volatile write cache, and when to flush it.
    pub(super) host_flushes: bool,
}

impl Terms {
    /// Whether the command's end promises that its data is durable.
    fn fua(self, sqe: &Sqe, namespace: &Namespace) -> bool {
        sqe.fua() || (namespace.geometry.volatile_cache && !self.host_flushes)
    }
}

/// Who sends a command.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asker<'a> {
    pub(super) host: &'a HostId,
}

/// Why a command was refused, and the SQE byte that was at fault. [BASE-2.0 §5.16.1.2]
pub(super) type Refusal = (Status, u16);

const FUSE_AT: u16 = 1;
pub(super) const NSID_AT: u16 = 4;
const SGL_LENGTH_AT: u16 = 32;
const SGL_KIND_AT: u16 = 39;
const SLBA_AT: u16 = 40;
const NUMD_AT: u16 = 40;
const EDS_AT: u16 = 44;
const NLB_AT: u16 = 48;
const COPY_FORMAT_AT: u16 = 49;
const CONTROL_AT: u16 = 50;
/// An error in the data, whose bytes the error log does not count.
const DATA_AT: u16 = 0xFFFF;

/// VSL: most bytes of one Verify, a power of two.
pub(super) const VERIFY_BYTES_MAX: u32 = 16 << 20;
/// Most bytes of one Copy.
const COPY_BYTES_MAX: u32 = 16 << 20;
/// MSRC: what fits in a page, 0's based.
const COPY_RANGES_MAX: u8 = 127;

/// Checks an I/O command against its namespace. Called again when its data has arrived, since the
/// namespace may have gone meanwhile, and its NSID to another one.
pub(super) fn plan(
    sqe: &Sqe,
    namespaces: &Namespaces,
    asker: Asker<'_>,
    terms: Terms,
) -> Result<IoPlan, Refusal> {
    if !is_supported(sqe.opcode()) {
        return Err((Status::INVALID_OPCODE.dnr(), 0));
    }
    // Broadcast Flush is not supported, and Identify says so (VWC bits 2:1).
    let namespace = namespaces
        .get(sqe.nsid().0)
        .ok_or((Status::INVALID_NAMESPACE.dnr(), NSID_AT))?;
    admit(sqe, namespace, asker)?;
    match sqe.opcode() {
        io::READ => read(sqe, namespace, terms.mdts_bytes),
        io::WRITE => write(sqe, namespace, terms),
        io::COMPARE => compare(sqe, namespace, terms),
        io::VERIFY => verify(sqe, namespace),
        io::COPY => copy(sqe, namespace),
        io::FLUSH => {
            no_data(sqe)?;
            Ok(IoPlan::Execute(command(namespace, IoOp::Flush, 0)))
        }
        io::WRITE_ZEROES => write_zeroes(sqe, namespace, terms),
        io::RESERVATION_REGISTER | io::RESERVATION_ACQUIRE | io::RESERVATION_RELEASE => {
            reservation(sqe, namespace)
        }
        io::RESERVATION_REPORT => report(sqe, namespace, terms.mdts_bytes),
        _ => dataset_management(sqe, namespace),
    }
}

/// Whether this target knows the opcode; the effects log is made of the same list.
pub(super) const fn is_supported(opcode: u8) -> bool {
    matches!(
        opcode,
        io::FLUSH
            | io::WRITE
            | io::READ
            | io::COMPARE
            | io::WRITE_ZEROES
            | io::DATASET_MANAGEMENT
            | io::VERIFY
            | io::COPY
            | io::RESERVATION_REGISTER
            | io::RESERVATION_REPORT
            | io::RESERVATION_ACQUIRE
            | io::RESERVATION_RELEASE
    )
}

/// Whether the command changes reservations by keys that its host sends.
pub(super) const fn is_reservation(opcode: u8) -> bool {
    matches!(
        opcode,
        io::RESERVATION_REGISTER | io::RESERVATION_ACQUIRE | io::RESERVATION_RELEASE
    )
}

/// Whether the command changes what is stored.
pub(super) const fn modifies(opcode: u8) -> bool {
    matches!(
        opcode,
        io::WRITE | io::WRITE_ZEROES | io::DATASET_MANAGEMENT | io::COPY
    )
}

/// The one gate for everything that depends on who asks and in which state the namespace is:
/// the path to it first, then reservations and write protection.
fn admit(sqe: &Sqe, namespace: &Namespace, asker: Asker<'_>) -> Result<(), Refusal> {
    check_access(namespace.access).map_err(|status| (status, NSID_AT))?;
    let access = Access::of(sqe.opcode());
    if !namespace.reservations.state().allows(asker.host, access) {
        return Err((Status::RESERVATION_CONFLICT.dnr(), NSID_AT));
    }
    if namespace.geometry.read_only && modifies(sqe.opcode()) {
        return Err((Status::NAMESPACE_WRITE_PROTECTED.dnr(), NSID_AT));
    }
    Ok(())
}

fn command(namespace: &Namespace, op: IoOp, bytes: u32) -> IoCommand {
    IoCommand {
        namespace: namespace.handle,
        op,
        bytes,
    }
}

fn read(sqe: &Sqe, namespace: &Namespace, mdts_bytes: u32) -> Result<IoPlan, Refusal> {
    if sqe.sgl1().kind != Sgl::KIND_TRANSPORT {
        return Err((Status::SGL_TYPE_INVALID.dnr(), SGL_KIND_AT));
    }
    let bytes = transfer(sqe, namespace, mdts_bytes)?;
    let op = IoOp::Read {
        lba: sqe.slba(),
        blocks: sqe.blocks(),
        fua: reads_durable(sqe, namespace),
    };
    Ok(IoPlan::Execute(command(namespace, op, bytes)))
}

fn write(sqe: &Sqe, namespace: &Namespace, terms: Terms) -> Result<IoPlan, Refusal> {
    // Directives are not supported. [BASE-2.0 §8.7]
    if sqe.dtype() != 0 {
        return Err((Status::INVALID_FIELD.dnr(), CONTROL_AT));
    }
    let bytes = transfer(sqe, namespace, terms.mdts_bytes)?;
    half(sqe, namespace, bytes, terms)?;
    let op = IoOp::Write {
        lba: sqe.slba(),
        blocks: sqe.blocks(),
        fua: terms.fua(sqe, namespace),
    };
    Ok(IoPlan::FromHost(command(namespace, op, bytes)))
}

fn compare(sqe: &Sqe, namespace: &Namespace, terms: Terms) -> Result<IoPlan, Refusal> {
    let bytes = transfer(sqe, namespace, terms.mdts_bytes)?;
    half(sqe, namespace, bytes, terms)?;
    let op = IoOp::Compare {
        lba: sqe.slba(),
        blocks: sqe.blocks(),
        fua: reads_durable(sqe, namespace),
    };
    Ok(IoPlan::FromHost(command(namespace, op, bytes)))
}

/// What half of a fused pair must satisfy besides: the pair's data is kept in one piece, and what
/// others can write to behind our back cannot be compared and written as one.
fn half(sqe: &Sqe, namespace: &Namespace, bytes: u32, terms: Terms) -> Result<(), Refusal> {
    if sqe.fuse() == Fuse::Normal {
        return Ok(());
    }
    if namespace.shared {
        return Err((Status::INVALID_FIELD.dnr(), FUSE_AT));
    }
    if bytes > terms.mdts_bytes / 2 {
        return Err((Status::ATOMIC_WRITE_UNIT_EXCEEDED.dnr(), NLB_AT));
    }
    Ok(())
}

/// Whether what the command reads must be on stable media first. Where a completed write always
/// is, there is nothing to do. [NVM-1.0 §3.2.4]
fn reads_durable(sqe: &Sqe, namespace: &Namespace) -> bool {
    sqe.fua() && namespace.geometry.volatile_cache
}

fn verify(sqe: &Sqe, namespace: &Namespace) -> Result<IoPlan, Refusal> {
    no_data(sqe)?;
    let bytes = u64::from(sqe.blocks()) * u64::from(namespace.geometry.block_bytes);
    let bytes = u32::try_from(bytes)
        .ok()
        .filter(|&bytes| bytes <= VERIFY_BYTES_MAX)
        .ok_or((Status::INVALID_FIELD.dnr(), NLB_AT))?;
    range(namespace, sqe.slba(), sqe.blocks())?;
    let op = IoOp::Verify {
        lba: sqe.slba(),
        blocks: sqe.blocks(),
        fua: reads_durable(sqe, namespace),
    };
    Ok(IoPlan::Execute(command(namespace, op, bytes)))
}

/// What one Copy may ask for. [NVM-1.0 §4.1.5.1]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CopyLimits {
    /// MSSRL: blocks of one source range.
    pub(super) range_blocks: u16,
    /// MCL: blocks of all source ranges.
    pub(super) blocks: u32,
    /// MSRC: number of source ranges, 0's based.
    pub(super) ranges: u8,
}

impl CopyLimits {
    pub(super) fn of(geometry: &NsGeometry) -> Self {
        let blocks = COPY_BYTES_MAX / geometry.block_bytes;
        Self {
            range_blocks: u16::try_from(blocks).unwrap_or(u16::MAX),
            blocks,
            ranges: COPY_RANGES_MAX,
        }
    }
}

fn copy(sqe: &Sqe, namespace: &Namespace) -> Result<IoPlan, Refusal> {
    // Formats with the protection information of other namespaces do not exist here (OCFS).
    if sqe.copy_format() != 0 {
        return Err((Status::INVALID_FIELD.dnr(), COPY_FORMAT_AT));
    }
    if sqe.dtype() != 0 {
        return Err((Status::INVALID_FIELD.dnr(), CONTROL_AT));
    }
    let limits = CopyLimits::of(&namespace.geometry);
    if sqe.copy_ranges() > u16::from(limits.ranges) + 1 {
        return Err((Status::COMMAND_SIZE_LIMIT_EXCEEDED.dnr(), NLB_AT));
    }
    list_of(sqe, usize::from(sqe.copy_ranges()) * CopyRange::SIZE)?;
    Ok(IoPlan::Ranges(namespace.handle))
}

/// Checks a list that the host sends: at least what the command needs, at most a page.
fn list_of(sqe: &Sqe, needed: usize) -> Result<(), Refusal> {
    let given = usize::try_from(sqe.sgl1().length).unwrap_or(usize::MAX);
    if given < needed || given > DsmRange::LIST_BYTES_MAX {
        return Err((Status::DATA_SGL_LENGTH_INVALID.dnr(), SGL_LENGTH_AT));
    }
    Ok(())
}

fn write_zeroes(sqe: &Sqe, namespace: &Namespace, terms: Terms) -> Result<IoPlan, Refusal> {
    if !namespace.geometry.write_zeroes {
        return Err((Status::INVALID_OPCODE.dnr(), 0));
    }
    no_data(sqe)?;
    range(namespace, sqe.slba(), sqe.blocks())?;
    let op = IoOp::WriteZeroes {
        lba: sqe.slba(),
        blocks: sqe.blocks(),
        // Deallocated blocks must read as zeroes, or the command would not do what it says.
        deallocate: sqe.deac() && namespace.geometry.deallocate == Deallocate::ReadsZero,
        fua: terms.fua(sqe, namespace),
    };
    Ok(IoPlan::Execute(command(namespace, op, 0)))
}

/// Hosts may send more data than the ranges need: Linux always sends 4096 bytes.
fn dataset_management(sqe: &Sqe, namespace: &Namespace) -> Result<IoPlan, Refusal> {
    list_of(sqe, usize::from(sqe.ranges()) * DsmRange::SIZE)?;
    if sqe.deallocate() && namespace.geometry.deallocate != Deallocate::None {
        Ok(IoPlan::Ranges(namespace.handle))
    } else {
        Ok(IoPlan::Advice(namespace.handle))
    }
}

/// Checks the ranges of Dataset Management or Copy and turns them into a command; no range, no
/// command. `accepted_for` is the device that the ranges are meant for.
pub(super) fn ranges(
    sqe: &Sqe,
    namespaces: &Namespaces,
    asker: Asker<'_>,
    accepted_for: NamespaceHandle,
    terms: Terms,
    data: &[u8],
) -> Result<Option<IoCommand>, Refusal> {
    let namespace = namespaces
        .get(sqe.nsid().0)
        .filter(|namespace| namespace.handle == accepted_for)
        .ok_or((Status::INVALID_NAMESPACE.dnr(), NSID_AT))?;
    admit(sqe, namespace, asker)?;
    if sqe.opcode() == io::COPY {
        copy_ranges(sqe, namespace, terms, data).map(Some)
    } else {
        deallocate(sqe, namespace, data)
    }
}

/// Every range is checked before anything is written. [NVM-1.0 §3.2.2]
fn copy_ranges(
    sqe: &Sqe,
    namespace: &Namespace,
    terms: Terms,
    data: &[u8],
) -> Result<IoCommand, Refusal> {
    let too_long = (Status::COMMAND_SIZE_LIMIT_EXCEEDED.dnr(), DATA_AT);
    let limits = CopyLimits::of(&namespace.geometry);
    let sources = || (0..sqe.copy_ranges()).map_while(|n| CopyRange::nth(data, n));
    let mut blocks = 0_u32;
    for source in sources() {
        if source.blocks > u32::from(limits.range_blocks) {
            return Err(too_long);
        }
        // At most 128 ranges of 16 bits.
        blocks += source.blocks;
    }
    if blocks > limits.blocks {
        return Err(too_long);
    }
    let to = sqe.slba();
    range(namespace, to, blocks)?;
    let end = to + u64::from(blocks);
    for source in sources() {
        range(namespace, source.slba, source.blocks).map_err(|(status, _)| (status, DATA_AT))?;
        // What comes out would depend on the order of parts.
        if source.slba < end && to < source.slba + u64::from(source.blocks) {
            return Err((Status::OVERLAPPING_RANGE.dnr(), DATA_AT));
        }
    }
    let op = IoOp::Copy {
        lba: to,
        blocks,
        ranges: sqe.copy_ranges(),
        fua: terms.fua(sqe, namespace),
    };
    // The limit keeps this far below 4 GiB.
    Ok(command(
        namespace,
        op,
        blocks.saturating_mul(namespace.geometry.block_bytes),
    ))
}

fn deallocate(sqe: &Sqe, namespace: &Namespace, data: &[u8]) -> Result<Option<IoCommand>, Refusal> {
    let mut blocks = 0;
    for one in DsmRange::list(data, sqe.ranges()) {
        if one.blocks > 0 {
            range(namespace, one.slba, one.blocks)?;
        }
        blocks += u64::from(one.blocks);
    }
    let bytes = sqe.sgl1().length;
    let op = IoOp::Deallocate {
        ranges: sqe.ranges(),
    };
    Ok((blocks > 0).then(|| command(namespace, op, bytes)))
}

/// A reservation command brings its keys. Hosts may send more than those: Linux does with Release.
fn reservation(sqe: &Sqe, namespace: &Namespace) -> Result<IoPlan, Refusal> {
    check_reservations(namespace)?;
    let needed = match sqe.opcode() {
        io::RESERVATION_RELEASE => Release::DATA_BYTES,
        _ => Register::DATA_BYTES,
    };
    let given = usize::try_from(sqe.sgl1().length).unwrap_or(usize::MAX);
    if (needed..=KEY_BYTES_MAX).contains(&given) {
        Ok(IoPlan::Reservation(namespace.handle))
    } else {
        Err((Status::DATA_SGL_LENGTH_INVALID.dnr(), SGL_LENGTH_AT))
    }
}

/// The namespace has to be one that can be reserved. [BASE-2.0 §8.19, RESCAP]
fn check_reservations(namespace: &Namespace) -> Result<(), Refusal> {
    if namespace.reservations.are_supported() {
        Ok(())
    } else {
        Err((Status::INVALID_OPCODE.dnr(), 0))
    }
}

/// Most data that is taken for the sake of two keys: a page.
const KEY_BYTES_MAX: usize = 4096;

fn report(sqe: &Sqe, namespace: &Namespace, mdts_bytes: u32) -> Result<IoPlan, Refusal> {
    check_reservations(namespace)?;
    let report = Report::decode(sqe);
    // Hosts have 128-bit identifiers here, and the short structure has no room for them.
    if !report.extended {
        return Err((Status::HOST_ID_INCONSISTENT.dnr(), EDS_AT));
    }
    let bytes = u32::try_from(report.bytes())
        .ok()
        .filter(|&bytes| bytes <= mdts_bytes)
        .ok_or((Status::INVALID_FIELD.dnr(), NUMD_AT))?;
    if sqe.sgl1().length == bytes {
        Ok(IoPlan::Report(namespace.handle, bytes))
    } else {
        Err((Status::DATA_SGL_LENGTH_INVALID.dnr(), SGL_LENGTH_AT))
    }
}

/// The transfer length of a command that moves blocks; in 64 bits, since 65536 blocks of 64 KiB
/// do not fit in 32.
fn transfer(sqe: &Sqe, namespace: &Namespace, mdts_bytes: u32) -> Result<u32, Refusal> {
    let bytes = u64::from(sqe.blocks()) * u64::from(namespace.geometry.block_bytes);
    let bytes = u32::try_from(bytes)
        .ok()
        .filter(|&bytes| bytes <= mdts_bytes)
        .ok_or((Status::INVALID_FIELD.dnr(), NLB_AT))?;
    if sqe.sgl1().length != bytes {
        return Err((Status::DATA_SGL_LENGTH_INVALID.dnr(), SGL_LENGTH_AT));
    }
    range(namespace, sqe.slba(), sqe.blocks())?;
    Ok(bytes)
}

fn range(namespace: &Namespace, slba: u64, blocks: u32) -> Result<(), Refusal> {
    let end = slba.checked_add(u64::from(blocks));
    if end.is_some_and(|end| end <= namespace.geometry.blocks) {
        Ok(())
    } else {
        Err((Status::LBA_OUT_OF_RANGE.dnr(), SLBA_AT))
    }
}

fn no_data(sqe: &Sqe) -> Result<(), Refusal> {
    if sqe.sgl1().length == 0 {
        Ok(())
    } else {
        Err((Status::DATA_SGL_LENGTH_INVALID.dnr(), SGL_LENGTH_AT))
    }
}

#[cfg(test)]
mod tests;
