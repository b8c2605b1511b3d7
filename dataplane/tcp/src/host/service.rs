//! Associations on a reactor.

use std::io;
use std::net::{SocketAddr, TcpStream};

use bowline_nvme::Nanos;
use bowline_nvmf::host::{ControllerConfig, HostState};
use bowline_reactor::{Gather, ListenerId, Reactor, Service, SocketId};

use super::path::HostPath;

/// One association of a service, until it is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PathId {
    index: usize,
    generation: u32,
}

/// A call from another thread, run on the reactor's.
pub type HostMessage = Box<dyn FnOnce(&mut HostService, &mut Reactor, Nanos) + Send>;

/// Runs associations on a reactor.
#[derive(Debug, Default)]
pub struct HostService {
    places: Vec<Place>,
    /// Where a socket was found last, by its index.
    routes: Vec<(usize, u16)>,
    /// Associations that somebody had to do with since the last turn, each once: only these can
    /// have something to send, or completions that nobody took.
    active: Vec<usize>,
    /// No timer of an association that is not active is earlier. It may be too early itself: that
    /// costs one look at all of them.
    due: Option<Nanos>,
    stopping: bool,
}

#[derive(Debug, Default)]
struct Place {
    /// Counts reuses, so that an old id names nothing.
    generation: u32,
    path: Option<HostPath>,
    /// It is among the active.
    active: bool,
}

impl HostService {
    /// A service without associations.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an association and starts it.
    pub fn connect(
        &mut self,
        cx: &mut Reactor,
        now: Nanos,
        addr: SocketAddr,
        config: ControllerConfig,
    ) -> PathId {
        let mut path = HostPath::new(addr, config);
        path.connect(cx, now);
        let free = self.places.iter().position(|place| place.path.is_none());
        let index = free.unwrap_or(self.places.len());
        if free.is_none() {
            self.places.push(Place::default());
        }
        let place = &mut self.places[index];
        place.generation = place.generation.wrapping_add(1);
        place.path = Some(path);
        let generation = place.generation;
        self.activate(index);
        PathId { index, generation }
    }

    /// Removes an association. One that is still up is cut off, and its commands are gone with
    /// their data.
    ///
    /// # Panics
    /// When the association was removed before.
    pub fn remove(&mut self, cx: &mut Reactor, id: PathId) {
        self.path_mut(id).abort(cx);
        self.places[id.index].path = None;
        self.places[id.index].active = false;
        self.active.retain(|index| *index != id.index);
    }

    /// An association.
    ///
    /// # Panics
    /// When the association was removed.
    #[must_use]
    pub fn path(&self, id: PathId) -> &HostPath {
        let place = self
            .places
            .get(id.index)
            .filter(|place| place.generation == id.generation);
        place
            .and_then(|place| place.path.as_ref())
            .expect("the association was not removed")
    }

    /// An association, to submit commands to and take completions from.
    ///
    /// # Panics
    /// When the association was removed.
    pub fn path_mut(&mut self, id: PathId) -> &mut HostPath {
        self.activate(id.index);
        let place = self
            .places
            .get_mut(id.index)
            .filter(|place| place.generation == id.generation);
        place
            .and_then(|place| place.path.as_mut())
            .expect("the association was not removed")
    }

    /// The associations that something happened to since the last turn, by number from 0 on: the
    /// others have no new completions.
    #[must_use]
    pub fn active(&self, number: usize) -> Option<PathId> {
        let index = *self.active.get(number)?;
        let generation = self.places.get(index)?.generation;
        Some(PathId { index, generation })
    }

    fn activate(&mut self, index: usize) {
        if let Some(place) = self.places.get_mut(index)
            && !place.active
            && place.path.is_some()
        {
            place.active = true;
            self.active.push(index);
        }
    }

    /// Lets the active associations send, and those that are due act.
    fn run_active(&mut self, cx: &mut Reactor, now: Nanos) {
        if self.due.is_some_and(|at| at <= now) {
            for index in 0..self.places.len() {
                self.activate(index);
            }
            self.due = None;
        }
        let (places, due) = (&mut self.places, &mut self.due);
        self.active.retain(|index| {
            let Some(place) = places.get_mut(*index) else {
                return false;
            };
            let Some(path) = &mut place.path else {
                return false;
            };
            path.turn(cx, now);
            *due = earlier(*due, path.poll_timeout());
            place.active = path.has_completions();
            place.active
        });
    }

    /// The association and queue whose connection this is.
    fn route(&mut self, socket: SocketId) -> Option<(&mut HostPath, u16)> {
        if self.routes.len() <= socket.index() {
            self.routes.resize(socket.index() + 1, (0, 0));
        }
        let (index, queue) = self.routes[socket.index()];
        let path = self.places.get(index).and_then(|place| place.path.as_ref());
        let (index, queue) = if path.is_some_and(|path| path.has_socket(queue, socket)) {
            (index, queue)
        } else {
            let mut each = self.places.iter().enumerate();
            let found = each.find_map(|(index, place)| {
                let queue = place.path.as_ref()?.queue_of(socket)?;
                Some((index, queue))
            })?;
            self.routes[socket.index()] = found;
            found
        };
        self.activate(index);
        Some((self.places.get_mut(index)?.path.as_mut()?, queue))
    }

    fn paths(&self) -> impl Iterator<Item = &HostPath> {
        self.places.iter().filter_map(|place| place.path.as_ref())
    }

    fn all_ended(&self) -> bool {
        self.paths().all(|path| {
            matches!(
                path.controller().state(),
                HostState::Idle | HostState::Stopped
            )
        })
    }
}

impl Service for HostService {
    type Message = HostMessage;

    fn message(&mut self, cx: &mut Reactor, now: Nanos, message: HostMessage) {
        message(self, cx, now);
    }

    /// A host listens on nothing.
    fn accepted(
        &mut self,
        _: &mut Reactor,
        _: Nanos,
        _: ListenerId,
        stream: TcpStream,
        _: SocketAddr,
    ) {
        drop(stream);
    }

    fn connected(
        &mut self,
        cx: &mut Reactor,
        now: Nanos,
        socket: SocketId,
        result: io::Result<()>,
    ) {
        match self.route(socket) {
            Some((path, queue)) => path.connected(cx, now, queue, &result),
            None => cx.close(socket),
        }
    }

    fn readable(&mut self, cx: &mut Reactor, now: Nanos, socket: SocketId) {
        if let Some((path, queue)) = self.route(socket) {
            path.readable(cx, now, queue);
        }
    }

    fn sent(
        &mut self,
        cx: &mut Reactor,
        now: Nanos,
        socket: SocketId,
        gather: Gather,
        result: io::Result<()>,
    ) {
        // Gives the buffers' views back before anybody looks whether they are unique.
        drop(gather);
        if let Some((path, queue)) = self.route(socket) {
            path.sent(cx, now, queue, &result);
        }
    }

    fn turn(&mut self, cx: &mut Reactor, now: Nanos) {
        self.run_active(cx, now);
    }

    fn poll_timeout(&self) -> Option<Nanos> {
        let active = self.active.iter().filter_map(|index| {
            let path = self.places.get(*index)?.path.as_ref()?;
            path.poll_timeout()
        });
        earlier(self.due, active.min())
    }

    fn expects_completion(&self) -> bool {
        self.paths().any(|path| path.in_flight() > 0)
    }

    fn stopping(&mut self, cx: &mut Reactor, now: Nanos) {
        self.stopping = true;
        for index in 0..self.places.len() {
            self.activate(index);
            if let Some(path) = &mut self.places[index].path {
                path.disconnect(cx, now);
            }
        }
    }

    fn is_stopped(&self) -> bool {
        self.stopping && self.all_ended()
    }
}

fn earlier(one: Option<Nanos>, other: Option<Nanos>) -> Option<Nanos> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}
