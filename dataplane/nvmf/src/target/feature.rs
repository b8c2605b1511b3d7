//! Features of one controller. [BASE-2.0 §5.27.1]
//!
//! A feature whose value would not be honoured is not changeable, and says so.

use bowline_nvme::feature::{
    AsyncEventConfig, GetFeatures, HostBehavior, NumberOfQueues, Select, SetFeatures, capabilities,
    id,
};
use bowline_nvme::{NamespaceId, Nanos, Sqe, Status};

use super::controller::{Controller, Kind};

/// KAS: the granularity of KATO in units of 100 ms.
pub(super) const KAS: u16 = 1;

/// Arbitration without a burst limit, which is how commands are taken. [BASE-2.0 §5.27.1.1]
const ARBITRATION_UNLIMITED: u32 = 7;
/// WCTEMP in kelvin: the default over-temperature threshold.
pub(super) const WCTEMP: u16 = 0x157;
/// CCTEMP in kelvin.
pub(super) const CCTEMP: u16 = 0x175;

/// Values that hosts can set, and which a controller reset takes back.
#[derive(Debug)]
pub(super) struct Features {
    write_atomicity: u32,
    timestamp: Timestamp,
    host_behavior: HostBehavior,
    /// I/O queues the host may create.
    pub(super) io_queues: u16,
}

/// Milliseconds since 1970, if the host has told. [BASE-2.0 §5.27.1.13]
#[derive(Debug, Default)]
struct Timestamp {
    base_ms: u64,
    set_at: Nanos,
    set_by_host: bool,
}

impl Features {
    pub(super) fn new(io_queues: u16) -> Self {
        Self {
            write_atomicity: 0,
            timestamp: Timestamp::default(),
            host_behavior: HostBehavior::default(),
            io_queues,
        }
    }
}

/// What the features of a controller depend on beyond the controller.
#[derive(Clone, Copy)]
pub(super) struct Surroundings {
    pub(super) now: Nanos,
    pub(super) io_queues_max: u16,
}

/// Bytes of data that the answer to Get Features has.
pub(super) fn get_data_bytes(sqe: &Sqe) -> u32 {
    let get = GetFeatures::decode(sqe);
    match (get.select, get.fid) {
        (Select::Capabilities, _) => 0,
        (_, id::TIMESTAMP) => 8,
        (_, id::HOST_BEHAVIOR) => 512,
        (_, id::HOST_IDENTIFIER) => 16,
        _ => 0,
    }
}

/// Bytes of data that Set Features brings.
pub(super) fn set_data_bytes(sqe: &Sqe) -> u32 {
    match SetFeatures::decode(sqe).fid {
        id::TIMESTAMP => 8,
        id::HOST_BEHAVIOR => 512,
        _ => 0,
    }
}

/// What can be done with a feature; `None` if there is no such feature here.
pub(super) fn abilities(kind: Kind, volatile_cache: bool, fid: u8) -> Option<u32> {
    let changeable = capabilities::CHANGEABLE;
    match (kind, fid) {
        (_, id::ASYNC_EVENT_CONFIG | id::KEEP_ALIVE_TIMER) => Some(changeable),
        (Kind::Discovery, _) => None,
        (
            Kind::Io,
            id::POWER_MANAGEMENT
            | id::NUMBER_OF_QUEUES
            | id::WRITE_ATOMICITY
            | id::TIMESTAMP
            | id::HOST_BEHAVIOR,
        ) => Some(changeable),
        (Kind::Io, id::RESERVATION_MASK | id::RESERVATION_PERSISTENCE) => {
            Some(changeable | capabilities::NAMESPACE_SPECIFIC)
        }
        (Kind::Io, id::ERROR_RECOVERY) => Some(capabilities::NAMESPACE_SPECIFIC),
        // There is no sensor that could exceed another threshold than the default.
        (Kind::Io, id::ARBITRATION | id::TEMPERATURE_THRESHOLD | id::HOST_IDENTIFIER) => Some(0),
        (Kind::Io, id::VOLATILE_WRITE_CACHE) => volatile_cache.then_some(0),
        (Kind::Io, _) => None,
    }
}

/// Whether a feature of these abilities belongs to a namespace.
pub(super) fn is_of_namespace(abilities: u32) -> bool {
    abilities & capabilities::NAMESPACE_SPECIFIC != 0
}

impl Controller {
    /// Get Features: dword 0, and the data of those that have some. [BASE-2.0 §5.15]
    pub(super) fn get_features(
        &self,
        around: Surroundings,
        sqe: &Sqe,
        data: &mut [u8],
    ) -> Result<u32, Status> {
        let get = GetFeatures::decode(sqe);
        let abilities = abilities(self.kind, self.volatile_cache, get.fid)
            .ok_or(Status::INVALID_FIELD.dnr())?;
        let current = match get.select {
            Select::Current => true,
            // Nothing is saved, so the saved value is the default.
            Select::Default | Select::Saved => false,
            Select::Capabilities => return Ok(abilities),
            Select::Reserved(_) => return Err(Status::INVALID_FIELD.dnr()),
        };
        let defaults = Features::new(around.io_queues_max);
        let features = if current { &self.features } else { &defaults };
        match get.fid {
            id::ARBITRATION => Ok(ARBITRATION_UNLIMITED),
            id::TEMPERATURE_THRESHOLD => temperature(get.cdw11, 0),
            id::ERROR_RECOVERY if sqe.nsid() == NamespaceId::NONE => {
                Err(Status::INVALID_NAMESPACE.dnr())
            }
            id::POWER_MANAGEMENT | id::ERROR_RECOVERY => Ok(0),
            id::VOLATILE_WRITE_CACHE => Ok(1),
            id::NUMBER_OF_QUEUES => Ok(NumberOfQueues::of(features.io_queues).encode()),
            id::WRITE_ATOMICITY => Ok(features.write_atomicity),
            id::ASYNC_EVENT_CONFIG => Ok(if current { self.events.config.0 } else { 0 }),
            id::TIMESTAMP => {
                put(data, &features.timestamp.encode(around.now));
                Ok(0)
            }
            id::KEEP_ALIVE_TIMER => Ok(kato_ms(self.kato)),
            id::HOST_BEHAVIOR => {
                put(data, &features.host_behavior.encode());
                Ok(0)
            }
            // Only the 128-bit form exists on Fabrics. [BASE-2.0 §5.27.1.25]
            id::HOST_IDENTIFIER if get.cdw11 & 1 == 0 => Err(Status::HOST_ID_INCONSISTENT.dnr()),
            id::HOST_IDENTIFIER => {
                put(data, &self.hostid);
                Ok(0)
            }
            _ => Err(Status::INVALID_FIELD.dnr()),
        }
    }

    /// Set Features. [BASE-2.0 §5.27]
    pub(super) fn set_features(
        &mut self,
        around: Surroundings,
        sqe: &Sqe,
        data: &[u8],
    ) -> Result<u32, Status> {
        let set = SetFeatures::decode(sqe);
        let abilities = abilities(self.kind, self.volatile_cache, set.fid)
            .ok_or(Status::INVALID_FIELD.dnr())?;
        if set.save {
            return Err(Status::FEATURE_NOT_SAVEABLE.dnr());
        }
        if !is_of_namespace(abilities)
            && !matches!(sqe.nsid(), NamespaceId::NONE | NamespaceId::BROADCAST)
        {
            return Err(Status::FEATURE_NOT_NAMESPACE_SPECIFIC.dnr());
        }
        let value = set.cdw11;
        match set.fid {
            id::ARBITRATION => unchangeable(value & 7 == ARBITRATION_UNLIMITED),
            id::POWER_MANAGEMENT if value & 0x1F == 0 => Ok(0),
            id::POWER_MANAGEMENT => Err(Status::INVALID_FIELD.dnr()),
            id::TEMPERATURE_THRESHOLD => {
                let threshold = temperature(value, ALL_SENSORS)?;
                unchangeable(value & 0xFFFF == threshold).map(|_| 0)
            }
            id::ERROR_RECOVERY => unchangeable(value == 0),
            id::VOLATILE_WRITE_CACHE => unchangeable(value & 1 == 1),
            id::NUMBER_OF_QUEUES => self.set_number_of_queues(around, value),
            id::WRITE_ATOMICITY => {
                self.features.write_atomicity = value & 1;
                Ok(0)
            }
            id::ASYNC_EVENT_CONFIG => {
                let supported = self.events_supported();
                self.events
                    .configure(AsyncEventConfig(value).intersection(supported));
                Ok(0)
            }
            id::TIMESTAMP => self.features.set_timestamp(around.now, data),
            id::KEEP_ALIVE_TIMER => {
                // Once running the timer cannot be switched off. [BASE-2.0 §5.27.1.12]
                if value == 0 {
                    return Err(Status::KATO_INVALID.dnr());
                }
                self.kato = kato(value).ok_or(Status::KATO_INVALID.dnr())?;
                Ok(0)
            }
            id::HOST_BEHAVIOR => self.features.set_host_behavior(data),
            // Connect has said it. [FABRICS-1.1 §3.3]
            id::HOST_IDENTIFIER => Err(Status::COMMAND_SEQUENCE_ERROR.dnr()),
            _ => Err(Status::INVALID_FIELD.dnr()),
        }
    }

    /// The events this controller can report: OAES, and the SMART warnings.
    fn events_supported(&self) -> AsyncEventConfig {
        let io = AsyncEventConfig::SMART.union(AsyncEventConfig::NAMESPACE_ATTRIBUTE);
        match self.kind {
            Kind::Io if self.ana => io.union(AsyncEventConfig::ANA_CHANGE),
            Kind::Io => io,
            Kind::Discovery => AsyncEventConfig::DISCOVERY_CHANGE,
        }
    }

    /// Number of Queues: only before the first I/O queue. [BASE-2.0 §5.27.1.5]
    fn set_number_of_queues(&mut self, around: Surroundings, value: u32) -> Result<u32, Status> {
        let asked = NumberOfQueues::decode(value);
        if asked.nsq == u16::MAX || asked.ncq == u16::MAX {
            return Err(Status::INVALID_FIELD.dnr());
        }
        if !self.queues.is_empty() {
            return Err(Status::COMMAND_SEQUENCE_ERROR.dnr());
        }
        let granted = (asked.nsq.min(asked.ncq) + 1).min(around.io_queues_max);
        self.features.io_queues = granted;
        Ok(NumberOfQueues::of(granted).encode())
    }
}

/// Setting the value there already is succeeds.
fn unchangeable(same: bool) -> Result<u32, Status> {
    if same {
        Ok(0)
    } else {
        Err(Status::FEATURE_NOT_CHANGEABLE.dnr())
    }
}

/// KATO from milliseconds, rounded up to the granularity; `None` if the result, which hosts read
/// back, does not fit in the field. The transport sets no other limit. [BASE-2.0 §5.27.1.12]
pub(super) fn kato(ms: u32) -> Option<Nanos> {
    let unit = u32::from(KAS) * 100;
    let rounded = ms.div_ceil(unit).checked_mul(unit)?;
    Some(Nanos::from_millis(u64::from(rounded)))
}

fn kato_ms(kato: Nanos) -> u32 {
    u32::try_from(kato.as_millis()).unwrap_or(u32::MAX)
}

/// TMPSEL of Set Features: every sensor there is.
const ALL_SENSORS: u32 = 0xF;

/// Temperature Threshold, of the composite temperature only: TMPSEL 19:16 is 0 or `all`, and THSEL
/// 21:20 is 0 (over) or 1 (under). [BASE-2.0 §5.27.1.3]
fn temperature(cdw11: u32, all: u32) -> Result<u32, Status> {
    let sensor = cdw11 >> 16 & 0xF;
    match cdw11 >> 20 & 3 {
        0 if sensor == 0 || sensor == all => Ok(u32::from(WCTEMP)),
        1 if sensor == 0 || sensor == all => Ok(0),
        _ => Err(Status::INVALID_FIELD.dnr()),
    }
}

fn put(to: &mut [u8], from: &[u8]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from;
    }
}

impl Features {
    fn set_timestamp(&mut self, now: Nanos, data: &[u8]) -> Result<u32, Status> {
        let Some(bytes) = data.first_chunk::<8>() else {
            return Err(Status::DATA_SGL_LENGTH_INVALID.dnr());
        };
        let base_ms = u64::from_le_bytes(*bytes) & TIMESTAMP_MASK;
        self.timestamp = Timestamp {
            base_ms,
            set_at: now,
            set_by_host: true,
        };
        Ok(0)
    }

    fn set_host_behavior(&mut self, data: &[u8]) -> Result<u32, Status> {
        let Some(bytes) = data.first_chunk::<{ HostBehavior::SIZE }>() else {
            return Err(Status::DATA_SGL_LENGTH_INVALID.dnr());
        };
        self.host_behavior = HostBehavior::decode(bytes).ok_or(Status::INVALID_FIELD.dnr())?;
        Ok(0)
    }
}

const TIMESTAMP_MASK: u64 = (1 << 48) - 1;

impl Timestamp {
    /// 48 bits of milliseconds, then the origin: 0 never set, 1 set by the host.
    fn encode(&self, now: Nanos) -> [u8; 8] {
        let elapsed_ms = if self.set_by_host {
            (now - self.set_at).as_millis()
        } else {
            0
        };
        let value = self.base_ms.wrapping_add(elapsed_ms) & TIMESTAMP_MASK;
        let origin = u64::from(self.set_by_host) << 1;
        (value | origin << 48).to_le_bytes()
    }
}

#[cfg(test)]
mod tests;
