//! What happened to a device, from when an engine notices it until it is told.

use bowline_nvme::Nanos;

use crate::device::{DeviceEvent, MEDIA_WARNING_INTERVAL};

/// What has happened and was not told yet. A burst of the same event is one event.
#[derive(Debug, Default)]
pub struct DeviceEvents {
    has_vanished: bool,
    vanish_untold: bool,
    return_untold: bool,
    geometry_changed: bool,
    warning: bool,
    /// When the next warning may be told.
    next_warning_at: Nanos,
}

impl DeviceEvents {
    /// The device is gone.
    pub fn vanish(&mut self) {
        // Whoever was not told that it was back is not told now: it would come after this.
        let was_never_back = std::mem::take(&mut self.return_untold);
        self.vanish_untold |= !self.has_vanished && !was_never_back;
        self.has_vanished = true;
    }

    /// The device is back.
    pub fn come_back(&mut self) {
        self.return_untold |= self.has_vanished;
        self.has_vanished = false;
    }

    /// Whether the device is gone.
    #[must_use]
    pub const fn has_vanished(&self) -> bool {
        self.has_vanished
    }

    /// The device's geometry is another one now.
    pub fn change_geometry(&mut self) {
        self.geometry_changed = true;
    }

    /// The medium failed. Told once per [`MEDIA_WARNING_INTERVAL`].
    pub fn warn(&mut self, now: Nanos) {
        if self.next_warning_at <= now {
            self.next_warning_at = now.after(MEDIA_WARNING_INTERVAL);
            self.warning = true;
        }
    }

    /// Whether [`pop`](Self::pop) would give something.
    #[must_use]
    pub const fn is_untold(&self) -> bool {
        self.vanish_untold || self.return_untold || self.geometry_changed || self.warning
    }

    /// The next to be told.
    pub fn pop(&mut self) -> Option<DeviceEvent> {
        if std::mem::take(&mut self.vanish_untold) {
            Some(DeviceEvent::Vanished)
        } else if std::mem::take(&mut self.return_untold) {
            Some(DeviceEvent::Returned)
        } else if std::mem::take(&mut self.geometry_changed) {
            Some(DeviceEvent::GeometryChanged)
        } else if std::mem::take(&mut self.warning) {
            Some(DeviceEvent::MediaWarning)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_warning_is_told_once_per_interval() {
        let mut events = DeviceEvents::default();
        let first = Nanos::from_secs(100);
        let told = |events: &mut DeviceEvents, at| {
            events.warn(at);
            assert_eq!(events.is_untold(), events.warning);
            events.pop()
        };
        assert_eq!(told(&mut events, first), Some(DeviceEvent::MediaWarning));
        assert_eq!(told(&mut events, first), None);
        let next = first.after(MEDIA_WARNING_INTERVAL);
        assert_eq!(told(&mut events, Nanos(next.0 - 1)), None);
        assert_eq!(told(&mut events, next), Some(DeviceEvent::MediaWarning));
        assert_eq!(told(&mut events, next), None);
    }

    #[test]
    fn device_vanishes_once_until_it_is_back() {
        let mut events = DeviceEvents::default();
        assert!(!events.has_vanished());
        events.vanish();
        assert!(events.is_untold());
        assert_eq!(events.pop(), Some(DeviceEvent::Vanished));
        events.vanish();
        assert_eq!(events.pop(), None);
        assert!(events.has_vanished());
        events.come_back();
        assert!(!events.has_vanished());
        assert_eq!(events.pop(), Some(DeviceEvent::Returned));
        events.come_back();
        assert_eq!(events.pop(), None);
        events.vanish();
        assert_eq!(events.pop(), Some(DeviceEvent::Vanished));
    }

    #[test]
    fn what_is_told_last_is_how_it_is() {
        let mut events = DeviceEvents::default();
        events.vanish();
        events.come_back();
        events.vanish();
        assert_eq!(events.pop(), Some(DeviceEvent::Vanished));
        assert_eq!(events.pop(), None, "it is gone");
        events.come_back();
        events.vanish();
        assert_eq!(events.pop(), None, "as was told");
        events.come_back();
        assert_eq!(events.pop(), Some(DeviceEvent::Returned));
        assert_eq!(events.pop(), None);
    }
}
