//! Asynchronous events of one controller: which are wanted, which wait, who asked. [BASE-2.0 §5.2]
//!
//! An event is reported once and then masked until its log page is read with RAE cleared, so that
//! a host that reads slowly sees one event and not a flood.

use bowline_nvme::event::AsyncEvent;
use bowline_nvme::feature::AsyncEventConfig;

use super::output::SlotId;

/// AERL, 0's based: how many requests a host may leave outstanding, less one.
pub(super) const AERL: u8 = 3;
const REQUESTS_MAX: usize = AERL as usize + 1;

/// The events this target has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    NamespaceChanged,
    AnaChange,
    DiscoveryChanged,
    ReservationLog,
    /// Room of the medium has fallen below the threshold.
    SpareLow,
}

impl Event {
    const ALL: [Self; 5] = [
        Self::NamespaceChanged,
        Self::AnaChange,
        Self::DiscoveryChanged,
        Self::ReservationLog,
        Self::SpareLow,
    ];

    /// The bit of Asynchronous Event Configuration that enables it.
    const fn enable(self) -> AsyncEventConfig {
        match self {
            Self::NamespaceChanged => AsyncEventConfig::NAMESPACE_ATTRIBUTE,
            Self::AnaChange => AsyncEventConfig::ANA_CHANGE,
            Self::DiscoveryChanged => AsyncEventConfig::DISCOVERY_CHANGE,
            // Masked by a feature of its own, before it comes here. [BASE-2.0 §5.27.1.26]
            Self::ReservationLog => AsyncEventConfig(0),
            Self::SpareLow => AsyncEventConfig::SMART_SPARE,
        }
    }

    const fn wire(self) -> AsyncEvent {
        match self {
            Self::NamespaceChanged => AsyncEvent::NAMESPACE_CHANGED,
            Self::AnaChange => AsyncEvent::ANA_CHANGED,
            Self::DiscoveryChanged => AsyncEvent::DISCOVERY_CHANGED,
            Self::ReservationLog => AsyncEvent::RESERVATION_AVAILABLE,
            Self::SpareLow => AsyncEvent::SPARE_BELOW_THRESHOLD,
        }
    }

    const fn bit(self) -> u8 {
        match self {
            Self::NamespaceChanged => 1,
            Self::DiscoveryChanged => 2,
            Self::AnaChange => 4,
            Self::ReservationLog => 8,
            Self::SpareLow => 16,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct AsyncEvents {
    /// What the host asked to hear of.
    pub(super) config: AsyncEventConfig,
    /// Outstanding Asynchronous Event Requests, oldest first.
    requests: Vec<SlotId>,
    /// To be reported, in the order they were raised, each once.
    pending: Vec<Event>,
    /// Reported, and their log page not read since.
    masked: u8,
}

impl AsyncEvents {
    pub(super) fn new() -> Self {
        Self {
            requests: Vec::with_capacity(REQUESTS_MAX),
            pending: Vec::with_capacity(Event::ALL.len()),
            ..Self::default()
        }
    }

    /// Takes what the host wants to hear of from now on; of the rest nothing is reported any more.
    pub(super) fn configure(&mut self, config: AsyncEventConfig) {
        self.config = config;
        self.pending.retain(|event| config.contains(event.enable()));
    }

    /// Takes an Asynchronous Event Request; false if there are too many.
    pub(super) fn request(&mut self, slot: SlotId) -> bool {
        let room = self.requests.len() < REQUESTS_MAX;
        if room {
            self.requests.push(slot);
        }
        room
    }

    /// Withdraws a request, for Abort.
    pub(super) fn withdraw(&mut self, slot: SlotId) -> bool {
        let before = self.requests.len();
        self.requests.retain(|&request| request != slot);
        self.requests.len() < before
    }

    /// Gives up all requests and events: a controller reset. [BASE-2.0 §3.7.2]
    pub(super) fn reset(&mut self) -> impl Iterator<Item = SlotId> + '_ {
        self.config = AsyncEventConfig::default();
        self.pending.clear();
        self.masked = 0;
        self.requests.drain(..)
    }

    pub(super) fn raise(&mut self, event: Event) {
        if self.config.contains(event.enable()) && !self.pending.contains(&event) {
            self.pending.push(event);
        }
    }

    /// The next request to complete, with its result.
    pub(super) fn deliver(&mut self) -> Option<(SlotId, u32)> {
        if self.requests.is_empty() {
            return None;
        }
        let is_masked = |event: &Event| self.masked & event.bit() != 0;
        let at = self.pending.iter().position(|event| !is_masked(event))?;
        let event = self.pending.remove(at);
        self.masked |= event.bit();
        Some((self.requests.remove(0), event.wire().encode()))
    }

    /// The event's log page was read with RAE cleared: report the next one. If what was read was
    /// up to date, an event not yet reported is news no more.
    pub(super) fn log_read(&mut self, event: Event, up_to_date: bool) {
        if up_to_date {
            self.pending.retain(|&waiting| waiting != event);
        }
        self.masked &= !event.bit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enabled() -> AsyncEvents {
        let mut events = AsyncEvents::new();
        events.config = AsyncEventConfig::NAMESPACE_ATTRIBUTE;
        events
    }

    #[test]
    fn event_is_reported_once_until_its_log_is_read() {
        let mut events = enabled();
        assert!(events.request(SlotId(1)) && events.request(SlotId(2)));
        events.raise(Event::NamespaceChanged);
        assert_eq!(events.deliver(), Some((SlotId(1), 0x0004_0002)));
        events.raise(Event::NamespaceChanged);
        assert_eq!(events.deliver(), None);
        events.log_read(Event::NamespaceChanged, true);
        assert_eq!(events.deliver(), None, "the log told of both changes");
        events.raise(Event::NamespaceChanged);
        assert_eq!(events.deliver(), Some((SlotId(2), 0x0004_0002)));
    }

    #[test]
    fn event_that_is_not_enabled_is_not_remembered() {
        let mut events = enabled();
        events.raise(Event::DiscoveryChanged);
        events.config = AsyncEventConfig::DISCOVERY_CHANGE;
        assert!(events.request(SlotId(0)));
        assert_eq!(events.deliver(), None);
        events.raise(Event::DiscoveryChanged);
        assert_eq!(events.deliver(), Some((SlotId(0), 0x0070_F002)));
    }

    #[test]
    fn event_no_longer_wanted_is_not_reported() {
        let mut events = enabled();
        events.raise(Event::NamespaceChanged);
        events.configure(AsyncEventConfig::default());
        assert!(events.request(SlotId(0)));
        assert_eq!(events.deliver(), None);
        events.configure(AsyncEventConfig::NAMESPACE_ATTRIBUTE);
        assert_eq!(events.deliver(), None, "it was not wanted when it was");
    }

    #[test]
    fn events_are_reported_in_the_order_they_happened_and_none_waits_for_another_log() {
        let mut events = enabled();
        events.configure(
            AsyncEventConfig::NAMESPACE_ATTRIBUTE
                .union(AsyncEventConfig::ANA_CHANGE)
                .union(AsyncEventConfig::DISCOVERY_CHANGE),
        );
        events.raise(Event::DiscoveryChanged);
        events.raise(Event::NamespaceChanged);
        events.raise(Event::DiscoveryChanged);
        events.raise(Event::AnaChange);
        for (slot, result) in [(0, 0x0070_F002), (1, 0x0004_0002), (2, 0x000C_0302)] {
            assert!(events.request(SlotId(slot)));
            assert_eq!(events.deliver(), Some((SlotId(slot), result)));
        }
        assert!(events.request(SlotId(3)));
        assert_eq!(events.deliver(), None);
        events.raise(Event::DiscoveryChanged);
        events.raise(Event::NamespaceChanged);
        events.log_read(Event::NamespaceChanged, false);
        assert_eq!(events.deliver(), Some((SlotId(3), 0x0004_0002)));
    }

    #[test]
    fn event_waits_for_a_request() {
        let mut events = enabled();
        events.raise(Event::NamespaceChanged);
        assert_eq!(events.deliver(), None);
        assert!(events.request(SlotId(5)));
        assert_eq!(events.deliver(), Some((SlotId(5), 0x0004_0002)));
    }

    #[test]
    fn requests_beyond_the_limit_are_refused_and_reset_gives_all_back() {
        let mut events = enabled();
        for slot in 0..4 {
            assert!(events.request(SlotId(slot)));
        }
        assert!(!events.request(SlotId(4)));
        assert!(events.withdraw(SlotId(2)));
        assert!(!events.withdraw(SlotId(2)));
        assert_eq!(events.reset().count(), 3);
        assert_eq!(events.config, AsyncEventConfig::default());
    }
}
