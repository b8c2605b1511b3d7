//! Reads the first block of a device, polling from this OS thread.
//!
//! `first_block` makes a device in memory and writes to it first; `first_block 0000:01:00.0` attaches
//! the drive at that address, which has to be bound to a driver for user space, and only reads.

#[cfg(any(feature = "spdk", feature = "double"))]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    device::show(std::env::args().nth(1).as_deref())
}

#[cfg(not(any(feature = "spdk", feature = "double")))]
fn main() {
    eprintln!("this example wants the feature `spdk` or `double`");
}

#[cfg(any(feature = "spdk", feature = "double"))]
mod device {
    use std::error::Error;

    use bowline_spdk_rs::{
        Access, Bdev, BdevEvent, Config, DmaBuffer, NvmeController, Operation, Options, Queue,
        Range, Service, Thread,
    };

    const FIRST: Range = Range {
        block: 0,
        blocks: 1,
    };

    pub(crate) fn show(address: Option<&str>) -> Result<(), Box<dyn Error>> {
        let options = match address {
            Some(_) => Options::new("first_block"),
            None => Options::without_huge_pages("first_block", 512),
        };
        println!("{}", bowline_spdk_rs::version());
        let service = Service::start(options, Config::new())?;
        let name = match address {
            Some(address) => {
                let controller = NvmeController::pcie("drive", address)?;
                let names = service.call(move |application| application.attach(&controller))??;
                names.into_iter().next().ok_or("no device")?
            }
            None => {
                let config = Config::new().malloc("memory", 2048, 512);
                service.call(move |application| application.configure(&config))??;
                "memory".to_owned()
            }
        };
        // What follows is this OS thread's: a thread of the library, the device and its queue.
        let thread = service.library().thread("first_block")?;
        let access = match address {
            Some(_) => Access::Read,
            None => Access::Write,
        };
        let device = Bdev::open(&thread, &name, access)?;
        let info = device.info();
        println!(
            "{name}: {} blocks of {} bytes",
            info.blocks, info.block_bytes
        );
        let mut queue = device.queue(1, 1)?;
        let mut block = service.library().dma(info.block_bytes.try_into()?, 4096)?;
        if access == Access::Write {
            block[..5].copy_from_slice(b"hello");
            block = run(&thread, &mut queue, Operation::Write, block)?;
            block.fill(0);
        }
        let block = run(&thread, &mut queue, Operation::Read, block)?;
        println!("{}", block[..16].escape_ascii());
        if device.poll_event() == Some(BdevEvent::Removed) {
            println!("and now it goes");
        }
        drop((queue, device, block, thread));
        Ok(service.stop()?)
    }

    /// Polls until the one request has ended; a program with more to do does that in between.
    fn run(
        thread: &Thread,
        queue: &mut Queue<DmaBuffer>,
        operation: Operation,
        block: DmaBuffer,
    ) -> Result<DmaBuffer, Box<dyn Error>> {
        if let Err(rejected) = queue.submit(operation, FIRST, block) {
            return Err(format!("{operation:?} was not accepted: {:?}", rejected.reason).into());
        }
        loop {
            thread.poll();
            if let Some(finished) = queue.pop() {
                if finished.status.is_success() {
                    return Ok(finished.payload);
                }
                return Err(format!("{operation:?} failed: {}", finished.status).into());
            }
        }
    }
}
