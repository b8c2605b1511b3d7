//! Logs that say what an event was about. [BASE-2.0 §5.16.1.5, §5.16.1.24]

use crate::NamespaceId;
use crate::identify::{SIZE, encode_namespace_list, namespace_list};
use crate::layout::layout;

/// Most namespaces that the Changed Namespace List can name.
const CHANGED_MAX: usize = SIZE / 4;

/// Writes the Changed Namespace List, LID 04h, of `ids`, which must ascend. More than 1024 are
/// replaced by the one value that means "too many". [BASE-2.0 §5.16.1.5]
pub fn encode_changed_namespaces(
    ids: impl IntoIterator<Item = NamespaceId> + Clone,
    out: &mut [u8; SIZE],
) {
    if ids.clone().into_iter().nth(CHANGED_MAX).is_some() {
        encode_namespace_list([NamespaceId::BROADCAST], out);
    } else {
        encode_namespace_list(ids, out);
    }
}

/// The Changed Namespace List's namespaces; [`NamespaceId::BROADCAST`] alone means "too many".
pub fn changed_namespaces(bytes: &[u8; SIZE]) -> impl Iterator<Item = NamespaceId> + '_ {
    namespace_list(bytes)
}

layout! {
    /// Reservation Notification, LID 80h. [BASE-2.0 §5.16.1.24]
    pub struct ReservationNotification: 64 bytes {
        /// Log Page Count: rises with every notification, never 0 but for an empty page.
        count: u64 = 0,
        /// Reservation Notification Log Page Type: one of this type's constants; 0 is an empty page.
        kind: u8 = 8,
        /// Number of Available Log Pages besides this; 255 is 255 or more.
        available: u8 = 9,
        /// Namespace.
        nsid: NamespaceId = 12,
    }
}

impl ReservationNotification {
    /// Registration preempted.
    pub const REGISTRATION_PREEMPTED: u8 = 1;
    /// Reservation released.
    pub const RESERVATION_RELEASED: u8 = 2;
    /// Reservation preempted.
    pub const RESERVATION_PREEMPTED: u8 = 3;
}
