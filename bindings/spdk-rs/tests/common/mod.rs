//! The library for the tests of one process, which can start it only once.

use std::sync::LazyLock;
use std::thread::JoinHandle;

use bowline_spdk_rs::{
    Access, Bdev, Config, DmaBuffer, Finished, Operation, Options, Payload, Queue, Range, Service,
    Status, Thread,
};

pub(crate) const BLOCK: usize = 512;

static SERVICE: LazyLock<Service> = LazyLock::new(|| {
    let options = Options::without_huge_pages("bowline-spdk-rs-test", 512);
    Service::start(options, Config::new()).unwrap()
});

pub(crate) fn service() -> &'static Service {
    &SERVICE
}

pub(crate) fn configure(config: Config) {
    let done = service().call(move |application| application.configure(&config));
    done.unwrap().unwrap();
}

/// A device in memory, of 2048 blocks.
pub(crate) fn malloc(name: &str) {
    configure(Config::new().malloc(name, 2048, 512));
}

/// An open device on a thread of its own.
pub(crate) struct Open<P: Payload> {
    pub(crate) queue: Queue<P>,
    pub(crate) bdev: Bdev,
    pub(crate) thread: Thread,
}

pub(crate) fn open<P: Payload>(name: &str) -> Open<P> {
    let thread = service().library().thread(name).unwrap();
    let bdev = Bdev::open(&thread, name, Access::Write).unwrap();
    let queue = bdev.queue(8, 4).unwrap();
    Open {
        queue,
        bdev,
        thread,
    }
}

pub(crate) fn buffer(bytes: &[u8]) -> DmaBuffer {
    let mut buffer = service().library().dma(bytes.len(), 4096).unwrap();
    buffer.copy_from_slice(bytes);
    buffer
}

pub(crate) fn at(block: u64, blocks: u64) -> Range {
    Range { block, blocks }
}

impl<P: Payload> Open<P> {
    /// Closes the device, and gives its thread when whoever removes it has done so.
    #[allow(dead_code, reason = "not every test binary removes devices")]
    pub(crate) fn close_for(self, removal: JoinHandle<()>) -> Thread {
        let Self {
            queue,
            bdev,
            thread,
        } = self;
        drop((queue, bdev));
        while !removal.is_finished() {
            thread.poll();
        }
        removal.join().unwrap();
        thread
    }

    pub(crate) fn finish(&mut self) -> Finished<P> {
        loop {
            if let Some(finished) = self.queue.pop() {
                return finished;
            }
            self.thread.poll();
        }
    }

    pub(crate) fn run(&mut self, operation: Operation, range: Range, payload: P) -> (Status, P) {
        if let Err(rejected) = self.queue.submit(operation, range, payload) {
            panic!("{operation:?} of {range:?}: {:?}", rejected.reason);
        }
        let finished = self.finish();
        (finished.status, finished.payload)
    }
}
