//! Identify data structures. [BASE-2.0 §5.17]

use bowline_nvme::identify::{
    Identify, IdentifyController, IdentifyNamespace, IdentifyNvmController, IndependentNamespace,
    LbaFormat, NamespaceDescriptor, cns, csi, encode_controller_list, encode_namespace_descriptors,
    encode_namespace_list,
};
use bowline_nvme::log::AnaState;
use bowline_nvme::{
    ControllerId, NamespaceId, Sqe, Status, feature::AsyncEventConfig, reservation::rescap,
};

use super::abort::ACL;
use super::async_event::AERL;
use super::config::{Deallocate, TargetConfig, pad};
use super::controller::Controller;
use super::error_log;
use super::feature::{CCTEMP, KAS, WCTEMP};
use super::io::{CopyLimits, VERIFY_BYTES_MAX};
use super::namespace::{Namespace, Namespaces};
use super::property::VERSION;
use super::subsystem::Subsystem;

type Page = [u8; 4096];

/// RTD3 Entry Latency in µs: how long hosts give a shutdown to flush.
const RTD3E_US: u32 = 30_000_000;
/// CNS 1Ch: command set combination 0 is the NVM Command Set alone.
const COMBINATION_NVM: u8 = 1;

/// What Identify tells of.
pub(super) struct View<'a> {
    pub(super) config: &'a TargetConfig,
    /// `None` on a discovery controller.
    pub(super) subsystem: Option<&'a Subsystem>,
    pub(super) controller: &'a Controller,
    /// Ids of the subsystem's controllers, ascending; where a list of them is asked for.
    pub(super) cntlids: &'a [u16],
}

impl View<'_> {
    /// Writes the structure that the command asks for.
    pub(super) fn identify(&self, sqe: &Sqe, page: &mut Page) -> Result<(), Status> {
        let identify = Identify::decode(sqe);
        if identify.cns == cns::CONTROLLER {
            self.controller_page(page);
            return Ok(());
        }
        let Some(subsystem) = self.subsystem else {
            return Err(Status::INVALID_FIELD.dnr());
        };
        let namespaces = &subsystem.namespaces;
        let nsid = sqe.nsid();
        match identify.cns {
            cns::NAMESPACE | cns::ALLOCATED_NAMESPACE => {
                if let Some(namespace) = find(namespaces, nsid)? {
                    namespace_page(namespace).encode(page);
                }
                Ok(())
            }
            cns::ACTIVE_NAMESPACE_LIST | cns::ALLOCATED_NAMESPACE_LIST => {
                namespace_list(namespaces, nsid, page)
            }
            cns::NAMESPACE_DESCRIPTORS => {
                let namespace = find(namespaces, nsid)?.ok_or(Status::INVALID_NAMESPACE.dnr())?;
                descriptors(namespace, page);
                Ok(())
            }
            cns::INDEPENDENT_NAMESPACE => {
                if let Some(namespace) = find(namespaces, nsid)? {
                    independent(namespace).encode(page);
                }
                Ok(())
            }
            cns::NAMESPACE_CONTROLLER_LIST => {
                find(namespaces, nsid)?.ok_or(Status::INVALID_NAMESPACE.dnr())?;
                self.controller_list(identify.cntid, page);
                Ok(())
            }
            cns::CONTROLLER_LIST => {
                self.controller_list(identify.cntid, page);
                Ok(())
            }
            _ => command_set(namespaces, &identify, nsid, page),
        }
    }

    fn controller_list(&self, from: ControllerId, page: &mut Page) {
        let ids = self
            .cntlids
            .iter()
            .map(|&id| ControllerId(id))
            .filter(|id| *id >= from);
        encode_controller_list(ids, page);
    }

    fn controller_page(&self, page: &mut Page) {
        let common = self.common();
        let structure = match self.subsystem {
            Some(subsystem) => self.io_controller(subsystem, common),
            None => self.discovery_controller(common),
        };
        structure.encode(page);
    }

    fn common(&self) -> IdentifyController {
        IdentifyController {
            mn: self.config.model,
            fr: self.config.firmware,
            mdts: u8::try_from(self.config.mdts_bytes.ilog2() - 12).unwrap_or(0),
            cntlid: ControllerId(self.controller.cntlid),
            ver: VERSION,
            kas: KAS,
            ctratt: IdentifyController::CTRATT_HOST_ID_128 | IdentifyController::CTRATT_TBKAS,
            aerl: AERL,
            sgls: IdentifyController::SGLS_SUPPORTED
                | IdentifyController::SGLS_OFFSET
                | IdentifyController::SGLS_TRANSPORT,
            subnqn: self.controller.subnqn.encode(),
            iorcsz: 1,
            msdbd: 1,
            ..IdentifyController::default()
        }
    }

    fn discovery_controller(&self, common: IdentifyController) -> IdentifyController {
        IdentifyController {
            sn: self.discovery_serial(),
            oaes: AsyncEventConfig::DISCOVERY_CHANGE.0,
            cntrltype: IdentifyController::CNTRLTYPE_DISCOVERY,
            lpa: IdentifyController::LPA_EXTENDED,
            // Linux compares its I/O queue size with it though there will be no I/O queue.
            maxcmd: self.config.io_queue_entries_max,
            ioccsz: 4,
            dctype: 1,
            ..common
        }
    }

    /// The well-known subsystem is the same everywhere; one with a name of its own is told from
    /// others by a hash of it (FNV-1a).
    fn discovery_serial(&self) -> [u8; 20] {
        let Some(name) = &self.config.discovery_nqn else {
            return pad("discovery");
        };
        let hash = name.bytes().fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
        });
        pad(&format!("{hash:016x}"))
    }

    fn io_controller(
        &self,
        subsystem: &Subsystem,
        common: IdentifyController,
    ) -> IdentifyController {
        let namespaces = &subsystem.namespaces;
        let ana = subsystem.config.ana;
        let mut oncs = IdentifyController::ONCS_COMPARE
            | IdentifyController::ONCS_DSM
            | IdentifyController::ONCS_VERIFY
            | IdentifyController::ONCS_COPY
            | IdentifyController::ONCS_SAVE_SELECT
            | IdentifyController::ONCS_TIMESTAMP;
        if namespaces.any_reservations() {
            oncs |= IdentifyController::ONCS_RESERVATIONS;
        }
        if namespaces.all_write_zeroes() {
            oncs |= IdentifyController::ONCS_WRITE_ZEROES;
        }
        IdentifyController {
            sn: subsystem.config.serial,
            rab: 6,
            // Several ports and controllers even if there is one now: Linux refuses a second
            // controller of a subsystem whose first did not announce it.
            cmic: IdentifyController::CMIC_PORTS
                | IdentifyController::CMIC_CONTROLLERS
                | ana.map_or(0, |_| IdentifyController::CMIC_ANA),
            rtd3e: RTD3E_US,
            oaes: AsyncEventConfig::NAMESPACE_ATTRIBUTE.0
                | ana.map_or(0, |_| AsyncEventConfig::ANA_CHANGE.0),
            anatt: ana.map_or(0, |ana| ana.transition_seconds),
            // ANACAP bit 6 is clear: a namespace may move between groups.
            anacap: ana.map_or(0, |_| {
                IdentifyController::ANACAP_STATES | IdentifyController::ANACAP_GROUP_NONZERO
            }),
            anagrpmax: ana.map_or(0, |ana| ana.groups_max),
            nanagrpid: ana.map_or(0, |ana| ana.groups_max),
            cntrltype: IdentifyController::CNTRLTYPE_IO,
            acl: ACL,
            frmw: IdentifyController::FRMW_SLOT1_READ_ONLY | 1 << 1,
            lpa: IdentifyController::LPA_EFFECTS
                | IdentifyController::LPA_EXTENDED
                | IdentifyController::LPA_SUPPORTED_PAGES,
            elpe: u8::try_from(error_log::ENTRIES - 1).unwrap_or(u8::MAX),
            wctemp: WCTEMP,
            cctemp: CCTEMP,
            // All of it belongs to namespaces: hosts can make none.
            tnvmcap: namespaces.iter().map(capacity).sum(),
            sqes: IdentifyController::SQES_64,
            cqes: IdentifyController::CQES_16,
            maxcmd: self.config.io_queue_entries_max,
            nn: namespaces.max(),
            mnan: namespaces.max(),
            oncs,
            fuses: if namespaces.any_shared() {
                0
            } else {
                IdentifyController::FUSES_COMPARE_AND_WRITE
            },
            ocfs: IdentifyController::OCFS_FORMAT_0,
            vwc: if self.controller.volatile_cache {
                IdentifyController::VWC_PRESENT
            } else {
                0
            } | IdentifyController::VWC_NO_BROADCAST_FLUSH,
            ioccsz: (64 + self.config.icd_bytes) / 16,
            ofcs: IdentifyController::OFCS_DISCONNECT,
            ..common
        }
    }
}

/// Structures that depend on the command set; only the NVM one exists here. [NVM-1.0 §4.1.5]
fn command_set(
    namespaces: &Namespaces,
    identify: &Identify,
    nsid: NamespaceId,
    page: &mut Page,
) -> Result<(), Status> {
    if identify.cns == cns::COMMAND_SETS {
        page[0] = COMBINATION_NVM;
        return Ok(());
    }
    if identify.csi != csi::NVM {
        return Err(Status::INVALID_FIELD.dnr());
    }
    match identify.cns {
        // Neither protection information nor storage tags: all zero for every namespace.
        cns::COMMAND_SET_NAMESPACE | cns::COMMAND_SET_ALLOCATED_NAMESPACE => {
            find(namespaces, nsid).map(|_| ())
        }
        // No other limits beyond those of the commands themselves.
        cns::COMMAND_SET_CONTROLLER => {
            IdentifyNvmController {
                vsl: u8::try_from(VERIFY_BYTES_MAX.ilog2() - 12).unwrap_or(0),
                ..IdentifyNvmController::default()
            }
            .encode(page);
            Ok(())
        }
        cns::COMMAND_SET_ACTIVE_NAMESPACE_LIST | cns::COMMAND_SET_ALLOCATED_NAMESPACE_LIST => {
            namespace_list(namespaces, nsid, page)
        }
        _ => Err(Status::INVALID_FIELD.dnr()),
    }
}

/// The namespace, `None` if the NSID is valid but inactive. [BASE-2.0 §3.2.1]
fn find(namespaces: &Namespaces, nsid: NamespaceId) -> Result<Option<&Namespace>, Status> {
    if (1..=namespaces.max()).contains(&nsid.0) {
        Ok(namespaces.get(nsid.0))
    } else {
        Err(Status::INVALID_NAMESPACE.dnr())
    }
}

fn namespace_list(
    namespaces: &Namespaces,
    after: NamespaceId,
    page: &mut Page,
) -> Result<(), Status> {
    if after.0 >= NamespaceId::BROADCAST.0 - 1 {
        return Err(Status::INVALID_NAMESPACE.dnr());
    }
    let ids = namespaces
        .iter()
        .map(|namespace| namespace.nsid)
        .filter(|&nsid| nsid > after.0);
    encode_namespace_list(ids.map(NamespaceId), page);
    Ok(())
}

fn descriptors(namespace: &Namespace, page: &mut Page) {
    let list = [
        NamespaceDescriptor::Uuid(namespace.uuid),
        NamespaceDescriptor::Nguid(namespace.nguid),
        NamespaceDescriptor::NVM,
    ];
    encode_namespace_descriptors(&list, page);
}

fn namespace_page(namespace: &Namespace) -> IdentifyNamespace {
    let geometry = &namespace.geometry;
    let atomic = zero_based(geometry.atomic_write_blocks);
    let mut nsfeat = IdentifyNamespace::NSFEAT_ATOMIC | IdentifyNamespace::NSFEAT_OPTIMAL;
    if geometry.thin {
        nsfeat |= IdentifyNamespace::NSFEAT_THIN;
    }
    let mut lbaf = [LbaFormat::default(); 16];
    lbaf[0] = LbaFormat {
        ms: 0,
        lbads: geometry.block_shift(),
        rp: 0,
    };
    let deallocate = zero_based(geometry.deallocate_granularity_blocks);
    let copy = CopyLimits::of(geometry);
    IdentifyNamespace {
        nsze: geometry.blocks,
        ncap: geometry.blocks,
        nuse: match namespace.access {
            // What is allocated there is no business of this path. [BASE-2.0 §8.1.3]
            AnaState::Inaccessible | AnaState::PersistentLoss => 0,
            AnaState::Optimized | AnaState::NonOptimized | AnaState::Change => {
                namespace.used_blocks()
            }
        },
        nsfeat,
        // Shared whatever the number of paths: Linux drops unshared duplicates.
        nmic: IdentifyNamespace::NMIC_SHARED,
        rescap: reservation_capabilities(namespace),
        dlfeat: match geometry.deallocate {
            Deallocate::ReadsZero if geometry.write_zeroes => {
                IdentifyNamespace::DLFEAT_READS_ZEROES | IdentifyNamespace::DLFEAT_WRITE_ZEROES_DEAC
            }
            Deallocate::ReadsZero => IdentifyNamespace::DLFEAT_READS_ZEROES,
            Deallocate::None | Deallocate::Undefined => 0,
        },
        nawun: atomic,
        nawupf: atomic,
        nacwu: if namespace.shared { 0 } else { atomic },
        // A Read that moves in parts is cut at multiples of the unit, so it may see a half of what
        // lies across one. [NVM-1.0 §2.1.4]
        nabsn: atomic,
        nabspf: atomic,
        nvmcap: capacity(namespace),
        npdg: deallocate,
        npda: deallocate,
        nows: zero_based(geometry.optimal_io_blocks),
        anagrpid: namespace.ana_group,
        mssrl: copy.range_blocks,
        mcl: copy.blocks,
        msrc: copy.ranges,
        nsattr: write_protected(namespace),
        nguid: namespace.nguid,
        lbaf,
        ..IdentifyNamespace::default()
    }
}

/// In bytes.
fn capacity(namespace: &Namespace) -> u128 {
    u128::from(namespace.geometry.blocks) << namespace.geometry.block_shift()
}

fn independent(namespace: &Namespace) -> IndependentNamespace {
    IndependentNamespace {
        nmic: IdentifyNamespace::NMIC_SHARED,
        anagrpid: namespace.ana_group,
        rescap: reservation_capabilities(namespace),
        nsattr: write_protected(namespace),
        nstat: IndependentNamespace::NSTAT_READY,
        ..IndependentNamespace::default()
    }
}

fn reservation_capabilities(namespace: &Namespace) -> u8 {
    if !namespace.reservations.are_supported() {
        return 0;
    }
    let persist = if namespace.reservations.persists() {
        rescap::PERSIST
    } else {
        0
    };
    persist | rescap::ALL_TYPES | rescap::IGNORE_KEY_1_3
}

fn write_protected(namespace: &Namespace) -> u8 {
    if namespace.geometry.read_only {
        IdentifyNamespace::NSATTR_WRITE_PROTECTED
    } else {
        0
    }
}

/// A count of blocks as a 0's based field; no count is one block.
fn zero_based(blocks: u32) -> u16 {
    u16::try_from(blocks.saturating_sub(1)).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests;
