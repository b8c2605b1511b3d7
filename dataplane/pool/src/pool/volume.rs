//! A volume, or one of its snapshots, as a device.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use bowline_block::{Allocation, Completions, Device, DeviceEvent, Geometry, Io};
use bowline_nvme::Nanos;

use super::engine::Engine;

/// A handle of a volume or of a snapshot, which cannot be written to. All handles of a pool are on the pool's thread;
/// polling any of them, or the pool, drives the requests of all.
///
/// When the volume is deleted, requests end in [`IoError::Vanished`](bowline_block::IoError::Vanished).
pub struct Volume<D: Device> {
    engine: Rc<RefCell<Engine<D>>>,
    port: u32,
}

impl<D: Device> Volume<D> {
    pub(super) const fn new(engine: Rc<RefCell<Engine<D>>>, port: u32) -> Self {
        Self { engine, port }
    }
}

impl<D: Device + 'static> Device for Volume<D> {
    fn geometry(&self) -> Geometry {
        self.engine.borrow().geometry(self.port)
    }

    fn depth_max(&self) -> usize {
        self.engine.borrow().depth_max()
    }

    fn try_submit(&mut self, io: Io) -> Result<(), Io> {
        self.engine.borrow_mut().submit(self.port, io)
    }

    fn poll(&mut self, now: Nanos, out: &mut Completions) {
        let mut engine = self.engine.borrow_mut();
        engine.poll(now);
        engine.hand_out(self.port, out);
    }

    fn allocation(&self) -> Option<Rc<dyn Fn() -> Allocation>> {
        let engine = Rc::clone(&self.engine);
        let volume = engine.borrow().volume_of(self.port)?;
        Some(Rc::new(move || engine.borrow().allocation(volume)))
    }

    fn poll_timeout(&self) -> Option<Nanos> {
        self.engine.borrow().port_timeout(self.port)
    }

    fn poll_event(&mut self) -> Option<DeviceEvent> {
        self.engine.borrow_mut().port_event(self.port)
    }

    fn refresh(&mut self) -> io::Result<Geometry> {
        Ok(self.geometry())
    }
}

impl<D: Device> Drop for Volume<D> {
    fn drop(&mut self) {
        self.engine.borrow_mut().close_port(self.port);
    }
}
