//! Reservations that outlive the process: from the protocol machine to whoever stores them.

use bowline_block::Device;
use bowline_nvme::{NamespaceId, Nanos};
use bowline_nvmf::target::{ReservationState, StoreId};

use super::TargetService;

/// Makes reservations durable for a [`TargetService`], outside its reactor.
///
/// Give it to the service with [`TargetService::with_reservation_store`], and add namespaces with
/// [`Persistence::Stored`](bowline_nvmf::target::Persistence::Stored) and what was stored for them
/// before, if anything: [`ReservationState::decode`] reads what [`ReservationState::encode`] wrote.
/// Hosts are then told that reservations can persist through power loss, and a command that
/// changes what persists is answered only when it is durable:
///
/// 1. The service calls [`try_begin`](Self::try_begin) on the reactor's thread. It must not block:
///    it passes the request to a thread, or notes it for what stores it on this one, after the turn.
/// 2. Whoever has it then replaces what was stored for the namespace, all or nothing (write a new file,
///    fsync it, rename it, fsync the directory), or removes it if there is no state.
/// 3. It answers every request once, whatever came of it, through the reactor's mailbox:
///    `mailbox.send_blocking(TargetMessage::Call(Box::new(move |service, _, now| {
///    service.reservations_stored(now, id, durable) })))`.
///
/// There is at most one request at a time for a namespace, until it is removed. The owner then
/// removes what was stored too, in order with a request that may still be under way: the answer to
/// that one does no harm.
pub trait ReservationStore {
    /// Begins to store. False if the request cannot be taken now: then it counts as answered, and
    /// the host's command fails.
    fn try_begin(&mut self, request: StoreReservations) -> bool;
}

/// What is to be made durable for one namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreReservations {
    /// Names the request in the answer. The same number may be in use at another reactor.
    pub id: StoreId,
    /// Subsystem NQN.
    pub nqn: String,
    /// Namespace.
    pub nsid: NamespaceId,
    /// What replaces the state stored before; `None`: nothing is to be remembered.
    pub state: Option<ReservationState>,
}

impl<D: Device> TargetService<D> {
    /// Stores reservations in `store`. Without one nothing can be stored, and commands that ask for
    /// it fail.
    #[must_use]
    pub fn with_reservation_store(mut self, store: Box<dyn ReservationStore>) -> Self {
        self.reservation_store = Some(store);
        self
    }

    /// The store's answer: whether the state is durable. If not, what was stored before still is.
    pub fn reservations_stored(&mut self, now: Nanos, id: StoreId, durable: bool) {
        self.target.handle_stored(now, id, durable);
    }

    /// Passes on what the machine wants stored; false if there was nothing.
    pub(super) fn store_reservations(&mut self, now: Nanos) -> bool {
        let mut any = false;
        while let Some(request) = self.target.poll_store() {
            any = true;
            let id = request.id;
            let name = self.names.of(request.namespace);
            let taken = match (name, &mut self.reservation_store) {
                (Some((nqn, nsid)), Some(store)) => store.try_begin(StoreReservations {
                    id,
                    nqn,
                    nsid,
                    state: request.state,
                }),
                _ => false,
            };
            if !taken {
                if let Some(left_out) = self.log_limits.stores.admit(now) {
                    tracing::error!(
                        left_out,
                        "reservations not stored: their store does not take them"
                    );
                }
                self.target.handle_stored(now, id, false);
            }
        }
        any
    }
}
