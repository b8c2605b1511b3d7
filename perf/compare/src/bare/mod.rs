//! Bare sockets: messages of the sizes that NVMe/TCP has, with no protocol in them. What a target
//! and a client reach here no target reaches on this machine; every figure is read against it.
//!
//! A read is 72 bytes in, 24 and the block out (the data PDU with its success flag). A write is
//! 72 bytes and the block in, 24 out (the response capsule). With digests each header is followed
//! by four bytes more and each block too, CRC32C, computed and checked on both sides.

pub(crate) mod load;
pub(crate) mod serve;

use std::io;

use crc_fast::CrcAlgorithm;

use crate::cell::Workload;

/// What a command capsule has without its data.
const REQUEST_BYTES: usize = 72;
/// A C2HData header, or a response capsule.
const REPLY_BYTES: usize = 24;
const DIGEST_BYTES: usize = 4;
/// Where a request says which block it wants.
const INDEX_OFFSET: usize = 8;
/// What a client says first: workload, digests, block size.
const HELLO_BYTES: usize = 8;
/// Memory that is read and written: more than caches hold.
const AREA_BYTES: usize = 64 << 20;
/// From this size on a block is received where it belongs, not by way of the staging area.
const DIRECT_MIN_BYTES: usize = 16 << 10;
const STAGING_BYTES: usize = 256 << 10;
/// Messages in one system call.
const BATCH_MAX: usize = 128;
/// Vectors in one system call: header, its digest, block, its digest of every message.
const VECTORS_MAX: usize = BATCH_MAX * 4;

/// The sizes of one connection's messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) workload: Workload,
    pub(crate) digests: bool,
    pub(crate) block_bytes: usize,
}

impl Shape {
    const fn digest_bytes(self) -> usize {
        if self.digests { DIGEST_BYTES } else { 0 }
    }

    /// The block on the wire.
    const fn data_bytes(self) -> usize {
        self.block_bytes + self.digest_bytes()
    }

    const fn request_header_bytes(self) -> usize {
        REQUEST_BYTES + self.digest_bytes()
    }

    const fn request_bytes(self) -> usize {
        match self.workload {
            Workload::Read | Workload::Deallocate => self.request_header_bytes(),
            Workload::Write => self.request_header_bytes() + self.data_bytes(),
        }
    }

    const fn reply_header_bytes(self) -> usize {
        REPLY_BYTES + self.digest_bytes()
    }

    const fn reply_bytes(self) -> usize {
        match self.workload {
            Workload::Read => self.reply_header_bytes() + self.data_bytes(),
            Workload::Write | Workload::Deallocate => self.reply_header_bytes(),
        }
    }

    const fn blocks(self) -> usize {
        AREA_BYTES / self.block_bytes
    }

    fn to_hello(self) -> io::Result<[u8; HELLO_BYTES]> {
        let block = u32::try_from(self.block_bytes).map_err(|_| invalid("block size"))?;
        let mut hello = [0; HELLO_BYTES];
        hello[0] = u8::from(self.workload == Workload::Write);
        hello[1] = u8::from(self.digests);
        hello[4..].copy_from_slice(&block.to_le_bytes());
        Ok(hello)
    }

    fn from_hello(hello: [u8; HELLO_BYTES]) -> io::Result<Self> {
        let [workload, digests, _, _, a, b, c, d] = hello;
        let block_bytes = usize::try_from(u32::from_le_bytes([a, b, c, d]))
            .ok()
            .filter(|bytes| bytes.is_power_of_two() && (512..=1 << 20).contains(bytes));
        Ok(Self {
            workload: if workload == 0 {
                Workload::Read
            } else {
                Workload::Write
            },
            digests: digests != 0,
            block_bytes: block_bytes.ok_or_else(|| invalid("block size"))?,
        })
    }
}

/// CRC32C as it stands on the wire.
fn digest(bytes: &[u8]) -> [u8; DIGEST_BYTES] {
    let crc = crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, bytes);
    // A CRC of 32 bits in a wider type.
    u32::try_from(crc).unwrap_or(0).to_le_bytes()
}

fn check_digest(bytes: &[u8], found: &[u8]) -> io::Result<()> {
    if digest(bytes) == found {
        Ok(())
    } else {
        Err(invalid("digest"))
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("bad {what}"))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn hello_carries_the_shape() {
        for workload in [Workload::Read, Workload::Write] {
            let shape = Shape {
                workload,
                digests: true,
                block_bytes: 4096,
            };
            assert_eq!(Shape::from_hello(shape.to_hello().unwrap()).unwrap(), shape);
        }
        assert!(Shape::from_hello([0; HELLO_BYTES]).is_err());
    }

    #[test]
    fn digest_is_crc32c() {
        assert_eq!(digest(b"123456789"), 0xe306_9283_u32.to_le_bytes());
    }

    /// Every shape of message goes back and forth, with its digests checked on both sides.
    #[test]
    fn every_shape_is_served() {
        for workload in [Workload::Read, Workload::Write] {
            for (block_bytes, digests) in [
                (4096, false),
                (4096, true),
                (131_072, false),
                (16_384, true),
            ] {
                let listener = TcpListener::bind("127.0.0.1:0").unwrap();
                let address = listener.local_addr().unwrap();
                let server = thread::spawn(move || {
                    let (stream, _) = listener.accept().unwrap();
                    let mut area = serve::Area::new();
                    serve::connection(&stream, &mut area, serve::Waiting::Spinning)
                });
                let plan = load::Plan {
                    address,
                    shape: Shape {
                        workload,
                        digests,
                        block_bytes,
                    },
                    queue_depth: 7,
                    interval: None,
                    warm_up: Duration::ZERO,
                    duration: Duration::from_millis(20),
                };
                let result = load::run(&plan).unwrap();
                assert!(result.commands > 0, "{plan:?}");
                assert_eq!(result.histogram.len(), result.commands);
                server.join().unwrap().unwrap();
            }
        }
    }

    /// A server that sleeps is served as one that spins, at a rate that leaves pauses.
    #[test]
    fn rate_leaves_pauses() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            serve::connection(&stream, &mut serve::Area::new(), serve::Waiting::Sleeping)
        });
        let plan = load::Plan {
            address,
            shape: Shape {
                workload: Workload::Read,
                block_bytes: 4096,
                digests: false,
            },
            queue_depth: 1,
            interval: Some(Duration::from_millis(5)),
            warm_up: Duration::ZERO,
            duration: Duration::from_millis(50),
        };
        let result = load::run(&plan).unwrap();
        // Ten begin in this time, and one may be asked for at its very end.
        assert!((1..=11).contains(&result.commands), "{result:?}");
        server.join().unwrap().unwrap();
    }
}
