//! Log pages. [BASE-2.0 §5.16.1]

use std::net::SocketAddr;
use std::sync::Arc;

use bowline_nvme::log::{
    CommandEffects, EffectsLog, FirmwareSlotLog, GetLogPage, SmartLog, SupportedLogs,
    encode_changed_namespaces, id,
};
use bowline_nvme::opcode::{admin, io as io_opcode};
use bowline_nvme::{NamespaceId, Sqe, Status, feature};

use super::allocation::SPARE_THRESHOLD_PERCENT;
use super::ana::Ana;
use super::async_event::Event;
use super::config::TargetConfig;
use super::controller::{Controller, Kind};
use super::discovery::{DiscoveryTable, Snapshot};
use super::health::HealthTotals;
use super::io;
use super::namespace::Namespaces;

/// The part of a log that a command asked for. Bytes beyond the log are zero.
pub(super) struct Window<'a> {
    start: u64,
    data: &'a mut [u8],
}

impl<'a> Window<'a> {
    pub(super) fn new(start: u64, data: &'a mut [u8]) -> Self {
        data.fill(0);
        Self { start, data }
    }

    /// The first byte asked for.
    pub(super) fn start(&self) -> u64 {
        self.start
    }

    /// Whether any of the `len` bytes at `at` of the log is asked for.
    pub(super) fn shows(&self, at: u64, len: u64) -> bool {
        let end = self
            .start
            .saturating_add(u64::try_from(self.data.len()).unwrap_or(u64::MAX));
        at < end && at.saturating_add(len) > self.start
    }

    /// Those of `entries`, which are `size` bytes each and begin at `at` of the log, that are asked
    /// for, and where each is.
    pub(super) fn entries<'e, T>(
        &self,
        at: u64,
        size: u64,
        entries: &'e [T],
    ) -> impl Iterator<Item = (u64, &'e T)> + use<'e, T> {
        let index = |position: u64| usize::try_from(position.saturating_sub(at) / size);
        let end = u64::try_from(self.data.len()).map_or(u64::MAX, |len| self.start + len);
        let first = index(self.start).unwrap_or(usize::MAX);
        let last = index(end.saturating_add(size - 1)).unwrap_or(usize::MAX);
        (0u64..)
            .zip(entries)
            .take(last)
            .skip(first)
            .map(move |(index, entry)| (at + index * size, entry))
    }

    /// Puts `bytes` at `at` of the log, as far as they are asked for.
    pub(super) fn put(&mut self, at: u64, bytes: &[u8]) {
        let skip = usize::try_from(self.start.saturating_sub(at)).unwrap_or(usize::MAX);
        let to = usize::try_from(at.saturating_sub(self.start)).unwrap_or(usize::MAX);
        let (Some(from), Some(space)) = (bytes.get(skip..), self.data.get_mut(to..)) else {
            return;
        };
        for (to, from) in space.iter_mut().zip(from) {
            *to = *from;
        }
    }
}

/// What the logs tell of beyond the controller itself.
pub(super) struct LogContext<'a> {
    pub(super) config: &'a TargetConfig,
    pub(super) discovery: &'a Arc<DiscoveryTable>,
    pub(super) namespaces: Option<&'a Namespaces>,
    /// The groups, and how many namespaces there can be.
    pub(super) ana: Option<(&'a Ana, u32)>,
    /// Of the subsystem.
    pub(super) health: Option<HealthTotals>,
    /// The address the host reached us by.
    pub(super) local: SocketAddr,
}

/// Feature Identifiers Supported and Effects, and NVMe-MI Commands Supported and Effects: 256
/// dwords each. LPA bit 5 promises both. [BASE-2.0 §5.16.1.15, §5.16.1.16]
const FEATURE_EFFECTS: u8 = id::FEATURE_EFFECTS;
const MI_EFFECTS: u8 = 0x13;

/// The logs of an I/O controller, besides the ANA log of one that reports ANA.
const IO_LOGS: [u8; 9] = [
    id::SUPPORTED_LOG_PAGES,
    id::ERROR,
    id::SMART,
    id::FIRMWARE_SLOT,
    id::CHANGED_NAMESPACE_LIST,
    id::EFFECTS,
    FEATURE_EFFECTS,
    MI_EFFECTS,
    id::RESERVATION,
];

/// Bytes that Get Log Page moves; `None` if its length is not that of its data.
pub(super) fn transfer_bytes(sqe: &Sqe, mdts_bytes: u32) -> Result<u32, Status> {
    let bytes = GetLogPage::decode(sqe).bytes();
    let bytes = u32::try_from(bytes)
        .ok()
        .filter(|&bytes| bytes <= mdts_bytes)
        .ok_or(Status::INVALID_FIELD.dnr())?;
    if sqe.sgl1().length == bytes {
        Ok(bytes)
    } else {
        Err(Status::DATA_SGL_LENGTH_INVALID.dnr())
    }
}

impl Controller {
    /// Get Log Page. Reading to the host with RAE cleared re-arms the log's event.
    pub(super) fn get_log_page(
        &mut self,
        context: &LogContext<'_>,
        sqe: &Sqe,
        data: &mut [u8],
    ) -> Result<(), Status> {
        let get = GetLogPage::decode(sqe);
        let known = match self.kind {
            Kind::Io => IO_LOGS.contains(&get.lid) || (get.lid == id::ANA && self.ana),
            Kind::Discovery => get.lid == id::DISCOVERY,
        };
        if !known {
            return Err(Status::INVALID_LOG_PAGE.dnr());
        }
        // Offsets as indexes are not advertised.
        if get.ot || !get.lpo.is_multiple_of(4) {
            return Err(Status::INVALID_FIELD.dnr());
        }
        if get.lid == id::DISCOVERY && get.lpo == 0 {
            self.discovery = Some(Snapshot::new(context.discovery));
        }
        if get.lpo > self.log_bytes(context, get.lid) {
            return Err(Status::INVALID_FIELD.dnr());
        }
        if get.lid == id::RESERVATION && get.lpo == 0 {
            self.notices.take_next();
        }
        let mut window = Window::new(get.lpo, data);
        self.write_log(context, &get, sqe.nsid(), &mut window)?;
        if !get.rae {
            self.log_was_read(context, get.lid);
        }
        Ok(())
    }

    fn log_bytes(&self, context: &LogContext<'_>, lid: u8) -> u64 {
        match lid {
            id::ANA => context.ana.map_or(0, |(ana, namespaces_max)| {
                Ana::log_bytes_max(&ana.config, namespaces_max)
            }),
            id::RESERVATION => 64,
            id::SMART | id::FIRMWARE_SLOT => 512,
            id::SUPPORTED_LOG_PAGES | FEATURE_EFFECTS | MI_EFFECTS => 1024,
            id::DISCOVERY => self
                .discovery
                .as_ref()
                .map_or(0, |it| it.log_bytes(self.hostnqn.as_str(), context.local)),
            _ => 4096,
        }
    }

    fn write_log(
        &self,
        context: &LogContext<'_>,
        get: &GetLogPage,
        nsid: NamespaceId,
        window: &mut Window<'_>,
    ) -> Result<(), Status> {
        match get.lid {
            id::SUPPORTED_LOG_PAGES => {
                let mut logs = SupportedLogs::default();
                let ana = self.ana.then_some(id::ANA);
                let all = IO_LOGS.into_iter().chain(ana);
                all.for_each(|lid| logs.insert(lid));
                window.put(0, &logs.to_bytes());
            }
            id::ERROR => {
                let entries = self.errors.newest_first().map(|entry| entry.to_bytes());
                (0u64..)
                    .zip(entries)
                    .for_each(|(index, entry)| window.put(index * 64, &entry));
            }
            // One log for the whole controller: LPA bit 0 is clear.
            id::SMART if matches!(nsid, NamespaceId::NONE | NamespaceId::BROADCAST) => {
                window.put(0, &Self::smart(context).to_bytes());
            }
            id::SMART => return Err(Status::INVALID_FIELD.dnr()),
            id::FIRMWARE_SLOT => {
                let mut firmware = FirmwareSlotLog {
                    afi: 1,
                    ..FirmwareSlotLog::default()
                };
                firmware.frs[0] = context.config.firmware;
                window.put(0, &firmware.to_bytes());
            }
            id::CHANGED_NAMESPACE_LIST => {
                let mut page = [0; 4096];
                let changed = self.changed.nsids.iter().map(|&nsid| NamespaceId(nsid));
                encode_changed_namespaces(changed, &mut page);
                window.put(0, &page);
            }
            id::EFFECTS => window.put(0, &effects(context).to_bytes()),
            id::RESERVATION => window.put(0, &self.notices.page()),
            FEATURE_EFFECTS => {
                for fid in 0..=u8::MAX {
                    let effects = self.feature_effects(fid);
                    window.put(u64::from(fid) * 4, &effects.to_le_bytes());
                }
            }
            id::ANA => {
                let groups_only = get.lsp & GetLogPage::LSP_ANA_GROUPS_ONLY != 0;
                if let Some((ana, _)) = context.ana {
                    ana.write_log(window, self.ana_changes_base, groups_only);
                }
            }
            id::DISCOVERY => {
                if let Some(snapshot) = &self.discovery {
                    snapshot.write(window, self.hostnqn.as_str(), context.local, context.config);
                }
            }
            // No NVMe-MI command is supported: all zero.
            _ => {}
        }
        Ok(())
    }

    /// The host has read all news, unless it is reading an older version of the log.
    fn log_was_read(&mut self, context: &LogContext<'_>, lid: u8) {
        match lid {
            id::CHANGED_NAMESPACE_LIST => {
                self.changed.clear();
                self.events.log_read(Event::NamespaceChanged, true);
            }
            id::DISCOVERY => {
                let hostnqn = self.hostnqn.as_str();
                let is_current =
                    |it: &Snapshot| it.is_of(context.discovery, hostnqn, context.local);
                let is_current = self.discovery.as_ref().is_some_and(is_current);
                self.events.log_read(Event::DiscoveryChanged, is_current);
            }
            id::ANA => self.events.log_read(Event::AnaChange, true),
            id::SMART => self.events.log_read(Event::SpareLow, true),
            id::RESERVATION => {
                // Each reading shows one page of possibly many.
                let is_last = !self.notices.has_unread();
                self.events.log_read(Event::ReservationLog, is_last);
                if !is_last {
                    self.events.raise(Event::ReservationLog);
                }
            }
            _ => {}
        }
    }

    /// What is not measured is zero. There is no sensor, so no temperature; and a namespace that is
    /// read-only by configuration is no fault of the medium. Spare is room that writes may need, where
    /// they need any. [BASE-2.0 §5.16.1.3]
    fn smart(context: &LogContext<'_>) -> SmartLog {
        let health = context.health.unwrap_or_default();
        let spare = context.namespaces.and_then(Namespaces::spare_percent);
        let is_low = spare.is_some_and(|spare| spare < SPARE_THRESHOLD_PERCENT);
        SmartLog {
            critical_warning: if is_low { SmartLog::WARNING_SPARE } else { 0 },
            available_spare: spare.unwrap_or(100),
            available_spare_threshold: spare.map_or(0, |_| SPARE_THRESHOLD_PERCENT),
            data_units_read: SmartLog::data_units(u128::from(health.read_bytes)),
            data_units_written: SmartLog::data_units(u128::from(health.written_bytes)),
            host_read_commands: u128::from(health.reads),
            host_write_commands: u128::from(health.writes),
            controller_busy_minutes: u128::from(health.busy.as_millis() / 60_000),
            power_cycles: u128::from(health.power_cycles),
            power_on_hours: u128::from(health.power_on.as_millis() / 3_600_000),
            unsafe_shutdowns: u128::from(health.unsafe_shutdowns),
            media_errors: u128::from(health.media_errors),
            error_log_entries: u128::from(health.error_log_entries),
            ..SmartLog::default()
        }
    }

    /// FSUPP bit 0, UDCC bit 1, and the scope: bit 20 namespace, bit 21 controller.
    fn feature_effects(&self, fid: u8) -> u32 {
        match super::feature::abilities(self.kind, self.volatile_cache, fid) {
            None => 0,
            Some(abilities) if abilities & feature::capabilities::NAMESPACE_SPECIFIC != 0 => {
                1 | 1 << 20
            }
            Some(_) => 1 | 1 << 21,
        }
    }
}

/// The admin commands of an I/O controller.
pub(super) const ADMIN_COMMANDS: [u8; 7] = [
    admin::GET_LOG_PAGE,
    admin::IDENTIFY,
    admin::ABORT,
    admin::SET_FEATURES,
    admin::GET_FEATURES,
    admin::ASYNC_EVENT_REQUEST,
    admin::KEEP_ALIVE,
];

/// No command changes anything beyond the content of blocks, and none needs to run alone.
fn effects(context: &LogContext<'_>) -> EffectsLog {
    let mut log = EffectsLog::default();
    for opcode in ADMIN_COMMANDS {
        log.set_admin(opcode, CommandEffects::SUPPORTED);
    }
    let write_zeroes = context.namespaces.is_none_or(Namespaces::all_write_zeroes);
    for opcode in (0..=u8::MAX).filter(|&opcode| io::is_supported(opcode)) {
        let effects = match opcode {
            io_opcode::WRITE_ZEROES if !write_zeroes => continue,
            _ if io::modifies(opcode) => {
                CommandEffects::SUPPORTED.union(CommandEffects::CONTENT_CHANGE)
            }
            _ => CommandEffects::SUPPORTED,
        };
        log.set_io(opcode, effects);
    }
    log
}

#[cfg(test)]
mod tests;
