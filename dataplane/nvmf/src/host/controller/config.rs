//! Parameters of an association.

use bowline_nvme::Nanos;
use bowline_nvme::nqn::Nqn;
use bowline_nvme::pdu::Digests;

use crate::host::backoff::Reconnect;

/// Parameters of an association.
#[derive(Debug, Clone)]
pub struct ControllerConfig {
    /// Host NQN.
    pub hostnqn: Nqn,
    /// Host Identifier.
    pub hostid: [u8; 16],
    /// Subsystem NQN; the well-known discovery NQN makes a discovery controller.
    pub subnqn: Nqn,
    /// I/O queues to ask for; the controller may grant fewer. 0 for the admin queue alone.
    pub io_queues: u16,
    /// Entries of each I/O queue; the controller may offer fewer. One fewer commands can be
    /// outstanding.
    pub io_queue_entries: u16,
    /// Entries of the admin queue, at least 8.
    pub admin_queue_entries: u16,
    /// Digests to ask for.
    pub digests: Digests,
    /// Keep Alive Timeout; zero for none. One Keep Alive is sent every half of it.
    pub keep_alive: Nanos,
    /// Ask for SQ flow control. Off by default, so that reads may end without a response capsule.
    pub sq_flow_control: bool,
    /// Ask for asynchronous events and follow namespace changes.
    pub async_events: bool,
    /// How long opening a connection may take.
    pub open_timeout: Nanos,
    /// How long ICReq and Connect together may take.
    pub setup_timeout: Nanos,
    /// How long an admin command may take.
    pub admin_timeout: Nanos,
    /// How long an I/O command may take; `None` waits for ever. A time-out ends the association.
    pub io_timeout: Option<Nanos>,
    /// How long an orderly shutdown may take.
    pub shutdown_timeout: Nanos,
    /// Coming back after a loss; `None` stops at the first.
    pub reconnect: Option<Reconnect>,
    /// How many namespaces to look at.
    pub namespaces_max: usize,
    /// Seed of the jitter; different on every host.
    pub seed: u64,
}

impl ControllerConfig {
    /// One I/O queue of 128 entries, no digests, Keep Alive of 5 s, reconnecting for ever.
    #[must_use]
    pub fn new(hostnqn: Nqn, hostid: [u8; 16], subnqn: Nqn) -> Self {
        Self {
            hostnqn,
            hostid,
            subnqn,
            io_queues: 1,
            io_queue_entries: 128,
            admin_queue_entries: 32,
            digests: Digests::NONE,
            keep_alive: Nanos::from_secs(5),
            sq_flow_control: false,
            async_events: true,
            open_timeout: Nanos::from_secs(1),
            setup_timeout: Nanos::from_secs(3),
            admin_timeout: Nanos::from_secs(10),
            io_timeout: Some(Nanos::from_secs(30)),
            shutdown_timeout: Nanos::from_secs(5),
            reconnect: Some(Reconnect::default()),
            namespaces_max: 1024,
            seed: 0,
        }
    }
}
