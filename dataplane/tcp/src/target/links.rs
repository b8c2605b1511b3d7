//! The connections of one reactor, found by the protocol machine's id or by the socket.

use std::collections::VecDeque;

use bowline_nvmf::target::ConnId;
use bowline_reactor::SocketId;

use super::link::Link;

#[derive(Default)]
pub(super) struct Links {
    by_conn: Vec<Option<Link>>,
    by_socket: Vec<Option<(SocketId, ConnId)>>,
    /// Links that wait for a slot or a buffer before they receive again.
    stalled: VecDeque<ConnId>,
    count: usize,
}

impl Links {
    pub(super) fn insert(&mut self, link: Link) {
        let (conn, socket) = (link.conn, link.socket);
        place(&mut self.by_conn, conn.index as usize, link);
        place(&mut self.by_socket, socket.index(), (socket, conn));
        self.count += 1;
    }

    pub(super) fn remove(&mut self, conn: ConnId) -> Option<Link> {
        self.get(conn)?;
        let link = self.by_conn.get_mut(conn.index as usize)?.take()?;
        self.by_socket[link.socket.index()] = None;
        self.count -= 1;
        Some(link)
    }

    pub(super) fn get(&self, conn: ConnId) -> Option<&Link> {
        self.by_conn
            .get(conn.index as usize)?
            .as_ref()
            .filter(|link| link.conn == conn)
    }

    pub(super) fn get_mut(&mut self, conn: ConnId) -> Option<&mut Link> {
        self.by_conn
            .get_mut(conn.index as usize)?
            .as_mut()
            .filter(|link| link.conn == conn)
    }

    pub(super) fn conn(&self, socket: SocketId) -> Option<ConnId> {
        let (owner, conn) = (*self.by_socket.get(socket.index())?)?;
        (owner == socket).then_some(conn)
    }

    pub(super) fn len(&self) -> usize {
        self.count
    }

    pub(super) fn stall(&mut self, conn: ConnId) {
        if let Some(link) = self.get_mut(conn)
            && !link.stalled
        {
            link.stalled = true;
            self.stalled.push_back(conn);
        }
    }

    /// The links that wait for a slot or a buffer.
    pub(super) fn stalled(&self) -> impl Iterator<Item = ConnId> + '_ {
        self.stalled.iter().copied()
    }

    pub(super) fn stalled_count(&self) -> usize {
        self.stalled.len()
    }

    /// Gives memory back that only busy connections need.
    pub(super) fn tidy(&mut self) {
        self.by_conn.iter_mut().flatten().for_each(Link::tidy);
    }

    /// The link that has been stalled longest; it is no longer listed.
    pub(super) fn next_stalled(&mut self) -> Option<ConnId> {
        let conn = self.stalled.pop_front()?;
        if let Some(link) = self.get_mut(conn) {
            link.stalled = false;
        }
        Some(conn)
    }
}

fn place<T>(table: &mut Vec<Option<T>>, index: usize, value: T) {
    if index >= table.len() {
        table.resize_with(index + 1, || None);
    }
    table[index] = Some(value);
}
