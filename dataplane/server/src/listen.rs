//! Listening sockets, bound before anything else so that a port in use is said early.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

use crate::config::Config;
use crate::error::StartError;
use crate::takeover::patiently;

/// Connections the kernel keeps while a reactor is busy. Hosts connect many queues at once.
const BACKLOG: i32 = 1024;

/// How long a peer may be silent before the kernel asks whether it is there, how often it asks, and
/// how often without an answer: a machine that lost its power is noticed within two minutes. Hosts
/// may do without NVMe's own keep-alive, and nothing else would ever end their connections.
const SILENCE_MAX: Duration = Duration::from_secs(60);
const PROBE_INTERVAL: Duration = Duration::from_secs(10);
const PROBES: u32 = 6;

/// An NVMe/TCP listener as discovery and management know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Portal {
    /// NVMe port identifier, from 1.
    pub(crate) id: u16,
    /// Where it listens.
    pub(crate) bound: SocketAddr,
    /// What hosts are told; an unspecified address stands for the one they came in on.
    pub(crate) advertised: SocketAddr,
}

/// Every listening socket of a data plane.
pub(crate) struct Sockets {
    pub(crate) nvme: Vec<(Portal, TcpListener)>,
    pub(crate) rpc: TcpListener,
    pub(crate) metrics: TcpListener,
}

impl Sockets {
    pub(crate) fn bind(config: &Config) -> Result<Self, StartError> {
        let mut nvme = Vec::with_capacity(config.listen.len());
        for (id, address) in (1..).zip(&config.listen) {
            let (listener, bound) = bind("NVMe/TCP", "--listen", *address)?;
            let advertised = config.advertise.unwrap_or(bound);
            nvme.push((
                Portal {
                    id,
                    bound,
                    advertised,
                },
                listener,
            ));
        }
        Ok(Self {
            nvme,
            rpc: bind("the management API", "--rpc", config.rpc)?.0,
            metrics: bind("metrics", "--metrics", config.metrics)?.0,
        })
    }
}

/// Where a socket of ours listens; it was bound, so the system knows.
fn bind(
    purpose: &'static str,
    flag: &'static str,
    address: SocketAddr,
) -> Result<(TcpListener, SocketAddr), StartError> {
    let in_use = |error: &io::Error| error.kind() == io::ErrorKind::AddrInUse;
    let listener = patiently(in_use, || try_bind(address));
    let bound = listener.and_then(|listener| {
        let bound = listener.local_addr()?;
        Ok((listener, bound))
    });
    bound.map_err(|source| StartError::Listen {
        purpose,
        flag,
        address,
        source,
    })
}

fn try_bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // A restarted data plane must not wait for its predecessor's connections to time out.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // [::] alone must not take the IPv4 port from another --listen.
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    // Connections have it from their listener.
    let keepalive = TcpKeepalive::new()
        .with_time(SILENCE_MAX)
        .with_interval(PROBE_INTERVAL)
        .with_retries(PROBES);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use socket2::SockRef;

    use super::*;

    #[test]
    fn accepted_connections_notice_a_peer_that_is_gone() {
        let (listener, address) = bind("NVMe/TCP", "--listen", ([127, 0, 0, 1], 0).into()).unwrap();
        listener.set_nonblocking(false).unwrap();
        let _peer = TcpStream::connect(address).unwrap();
        let (stream, _) = listener.accept().unwrap();
        let socket = SockRef::from(&stream);
        assert!(socket.keepalive().unwrap());
        let (silence, interval) = (
            socket.tcp_keepalive_time().unwrap(),
            socket.tcp_keepalive_interval().unwrap(),
        );
        let noticed = silence + interval * socket.tcp_keepalive_retries().unwrap();
        assert!(noticed <= Duration::from_secs(120), "{noticed:?}");
    }

    #[test]
    fn port_in_use_is_explained() {
        let (_taken, address) = bind("metrics", "--metrics", ([127, 0, 0, 1], 0).into()).unwrap();
        let error = bind("metrics", "--metrics", address).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("cannot listen on {address} for metrics")
        );
        assert_eq!(error.cause(), "another process listens there already");
        assert!(error.hint().contains("--metrics"), "{}", error.hint());
        assert!(!error.is_usage());
    }

    #[test]
    fn foreign_address_is_explained() {
        let error = bind("NVMe/TCP", "--listen", ([192, 0, 2, 77], 0).into()).unwrap_err();
        assert_eq!(error.cause(), "this machine has no such address");
    }
}
