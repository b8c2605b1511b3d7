//! What a controller tells its host about the reservations of others: the Reservation Notification
//! log page and its mask. [BASE-2.0 §5.16.1.24, §5.27.1.26]
//!
//! Every notification is a log page of its own, and reading takes the oldest. A host that does not
//! read loses the oldest first; the count of the next page it reads shows how many.

use std::collections::VecDeque;

use bowline_nvme::NamespaceId;
use bowline_nvme::log::ReservationNotification;

use super::change::News;

/// Notifications kept for a host that has not read them.
const UNREAD_MAX: usize = 64;

/// Reservation notifications of one controller.
#[derive(Debug, Default)]
pub(in crate::target) struct Notices {
    unread: VecDeque<Notice>,
    /// The page that was read last: a host may fetch it in pieces.
    current: ReservationNotification,
    count: u64,
    /// Masked notifications by NSID less one, as far as a mask was ever set.
    masks: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
struct Notice {
    count: u64,
    nsid: u32,
    kind: u8,
}

impl Notices {
    /// Takes a notification, unless it is masked.
    pub(super) fn add(&mut self, nsid: u32, news: News) -> bool {
        if self.mask(nsid) & 1 << news.wire() != 0 {
            return false;
        }
        // 0 stands for an empty page.
        self.count = self.count.checked_add(1).unwrap_or(1);
        if self.unread.len() == UNREAD_MAX {
            self.unread.pop_front();
        }
        self.unread.push_back(Notice {
            count: self.count,
            nsid,
            kind: news.wire(),
        });
        true
    }

    /// Moves on to the next page.
    pub(in crate::target) fn take_next(&mut self) {
        self.current =
            self.unread
                .pop_front()
                .map_or_else(ReservationNotification::default, |notice| {
                    ReservationNotification {
                        count: notice.count,
                        kind: notice.kind,
                        available: u8::try_from(self.unread.len()).unwrap_or(u8::MAX),
                        nsid: NamespaceId(notice.nsid),
                    }
                });
    }

    /// The page that is being read.
    pub(in crate::target) fn page(&self) -> [u8; ReservationNotification::SIZE] {
        self.current.to_bytes()
    }

    /// Whether there are pages not read yet.
    pub(in crate::target) fn has_unread(&self) -> bool {
        !self.unread.is_empty()
    }

    /// The bits of the mask feature for a namespace.
    pub(super) fn mask(&self, nsid: u32) -> u32 {
        position(nsid)
            .and_then(|at| self.masks.get(at))
            .map_or(0, |&mask| u32::from(mask))
    }

    pub(in crate::target) fn set_mask(&mut self, nsid: u32, mask: u32) {
        let Some(at) = position(nsid) else { return };
        if at >= self.masks.len() && mask != 0 {
            self.masks.resize(at + 1, 0);
        }
        if let Some(place) = self.masks.get_mut(at) {
            *place = u8::try_from(mask).unwrap_or(u8::MAX);
        }
    }
}

fn position(nsid: u32) -> Option<usize> {
    usize::try_from(nsid.checked_sub(1)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(notices: &mut Notices) -> ReservationNotification {
        notices.take_next();
        ReservationNotification::decode(&notices.page())
    }

    #[test]
    fn each_reading_takes_the_oldest_page_and_counts_the_rest() {
        let mut notices = Notices::default();
        assert_eq!(read(&mut notices), ReservationNotification::default());
        assert!(notices.add(3, News::ReservationReleased));
        assert!(notices.add(4, News::RegistrationPreempted));
        let first = read(&mut notices);
        assert_eq!((first.count, first.kind, first.available), (1, 2, 1));
        assert_eq!(first.nsid, NamespaceId(3));
        assert_eq!(notices.page(), first.to_bytes(), "the rest of it");
        let second = read(&mut notices);
        assert_eq!((second.count, second.kind, second.available), (2, 1, 0));
        assert!(!notices.has_unread());
        assert_eq!(read(&mut notices), ReservationNotification::default());
    }

    #[test]
    fn host_that_does_not_read_loses_the_oldest_and_sees_the_gap() {
        let mut notices = Notices::default();
        for _ in 0..UNREAD_MAX + 10 {
            assert!(notices.add(1, News::ReservationPreempted));
        }
        assert_eq!(notices.unread.len(), UNREAD_MAX);
        let first = read(&mut notices);
        assert_eq!((first.count, first.available), (11, 63));
    }

    #[test]
    fn count_is_never_zero_even_after_wrapping() {
        let mut notices = Notices {
            count: u64::MAX,
            ..Notices::default()
        };
        assert!(notices.add(1, News::ReservationPreempted));
        assert_eq!(read(&mut notices).count, 1);
    }

    #[test]
    fn mask_is_by_namespace_and_by_kind() {
        let mut notices = Notices::default();
        notices.set_mask(2, 1 << 2);
        assert!(!notices.add(2, News::ReservationReleased));
        assert!(notices.add(2, News::ReservationPreempted));
        assert!(notices.add(1, News::ReservationReleased));
        assert_eq!(
            (notices.mask(1), notices.mask(2), notices.mask(9)),
            (0, 4, 0)
        );
        notices.set_mask(2, 0);
        assert!(notices.add(2, News::ReservationReleased));
        assert_eq!(notices.unread.len(), 3, "what is masked has no page");
    }
}
