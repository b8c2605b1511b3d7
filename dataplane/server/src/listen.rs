//! Listening sockets, bound before anything else so that a port in use is said early.

use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

use crate::config::Config;
use crate::error::StartError;
use crate::takeover::patiently;

/// Connections the kernel keeps while a reactor is busy. Hosts connect many queues at once.
const BACKLOG: i32 = 1024;

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
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

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
