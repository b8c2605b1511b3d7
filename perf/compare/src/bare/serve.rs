//! The serving side: it spins on its one connection and answers all it has received with one send.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;

use anyhow::{Context, Result};
use arrayvec::ArrayVec;
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags, recv, recvmsg, sendmsg,
};

use super::{
    AREA_BYTES, BATCH_MAX, DIGEST_BYTES, DIRECT_MIN_BYTES, HELLO_BYTES, INDEX_OFFSET, REPLY_BYTES,
    REQUEST_BYTES, STAGING_BYTES, Shape, VECTORS_MAX, check_digest, digest,
};
use crate::cell::Workload;

/// How it waits for what comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waiting {
    Spinning,
    /// In `recv`, so that what waking up costs is seen.
    Sleeping,
}

impl Waiting {
    const fn flags(self) -> RecvFlags {
        match self {
            Self::Spinning => RecvFlags::DONTWAIT,
            Self::Sleeping => RecvFlags::empty(),
        }
    }
}

/// Serves one connection after the other until it is killed.
pub(crate) fn run(waiting: Waiting) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").context("cannot listen")?;
    let address = listener.local_addr().context("address")?;
    let mut area = Area::new();
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "ready {{\"listen\":[\"{address}\"]}}").context("standard output")?;
    stdout.flush().context("standard output")?;
    loop {
        let (stream, _) = listener.accept().context("accept")?;
        if let Err(error) = connection(&stream, &mut area, waiting) {
            eprintln!("connection: {error}");
        }
    }
}

/// The memory that is served.
#[derive(Debug)]
pub(crate) struct Area(Vec<u8>);

impl Area {
    /// Not zero, so that every page exists and none is shared.
    pub(crate) fn new() -> Self {
        Self(vec![0x5a; AREA_BYTES])
    }
}

/// Serves one connection to its end.
pub(crate) fn connection(
    mut stream: &TcpStream,
    area: &mut Area,
    waiting: Waiting,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut hello = [0; HELLO_BYTES];
    stream.read_exact(&mut hello)?;
    let shape = Shape::from_hello(hello)?;
    let mut connection = Connection {
        stream,
        shape,
        waiting,
        staging: vec![0; STAGING_BYTES],
        filled: 0,
        replies: Replies::default(),
    };
    let served = match shape.workload {
        Workload::Write if shape.block_bytes >= DIRECT_MIN_BYTES => {
            connection.large_writes(&mut area.0)
        }
        _ => connection.small_requests(&area.0),
    };
    // A client ends with requests outstanding, and what it does not wait for comes back as this.
    let ends = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
    match served {
        Err(error) if ends.contains(&error.kind()) => Ok(()),
        other => other,
    }
}

struct Connection<'a> {
    stream: &'a TcpStream,
    shape: Shape,
    waiting: Waiting,
    staging: Vec<u8>,
    /// Bytes of the staging area that hold what was received and not looked at.
    filled: usize,
    replies: Replies,
}

/// What the replies of one batch are made of, besides blocks.
#[derive(Default)]
struct Replies {
    headers: Vec<[u8; REPLY_BYTES + DIGEST_BYTES]>,
    blocks: Vec<Range<usize>>,
    digests: Vec<[u8; DIGEST_BYTES]>,
}

impl Connection<'_> {
    /// Requests that fit the staging area: all reads, and writes of small blocks, which stay
    /// there: nothing is stored, so this is less than any target does.
    fn small_requests(&mut self, area: &[u8]) -> io::Result<()> {
        let request = self.shape.request_bytes();
        loop {
            let count = match recv(
                self.stream,
                &mut self.staging[self.filled..],
                self.waiting.flags(),
            ) {
                Ok((0, _)) => return Ok(()),
                Ok((count, _)) => count,
                Err(Errno::AGAIN | Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            self.filled += count;
            let mut begin = 0;
            while self.filled - begin >= request {
                self.request(area, begin)?;
                begin += request;
                if self.replies.headers.len() == BATCH_MAX {
                    self.reply(area)?;
                }
            }
            self.reply(area)?;
            self.staging.copy_within(begin..self.filled, 0);
            self.filled -= begin;
        }
    }

    fn request(&mut self, area: &[u8], begin: usize) -> io::Result<()> {
        let shape = self.shape;
        let request = &self.staging[begin..begin + shape.request_bytes()];
        if shape.digests {
            check_digest(
                &request[..REQUEST_BYTES],
                &request[REQUEST_BYTES..shape.request_header_bytes()],
            )?;
            if shape.workload == Workload::Write {
                let data = &request[shape.request_header_bytes()..];
                let (block, found) = data.split_at(shape.block_bytes);
                check_digest(block, found)?;
            }
        }
        let block = block_range(shape, request);
        self.replies.push(shape, area, block);
        Ok(())
    }

    /// Writes of large blocks: each is received where it belongs, the next header with it.
    fn large_writes(&mut self, area: &mut [u8]) -> io::Result<()> {
        let shape = self.shape;
        let header = shape.request_header_bytes();
        loop {
            while self.filled < header {
                match recv(
                    self.stream,
                    &mut self.staging[self.filled..header],
                    self.waiting.flags(),
                ) {
                    Ok((0, _)) => return Ok(()),
                    Ok((count, _)) => self.filled += count,
                    Err(Errno::AGAIN | Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            if shape.digests {
                check_digest(
                    &self.staging[..REQUEST_BYTES],
                    &self.staging[REQUEST_BYTES..header],
                )?;
            }
            let block = block_range(shape, &self.staging);
            self.filled = 0;
            if !self.receive_block(&mut area[block.clone()])? {
                return Ok(());
            }
            if shape.digests {
                check_digest(&area[block.clone()], &self.staging[..DIGEST_BYTES])?;
                self.staging.copy_within(DIGEST_BYTES..self.filled, 0);
                self.filled -= DIGEST_BYTES;
            }
            self.replies.push(shape, area, block);
            self.reply(area)?;
        }
    }

    /// Receives a block and its digest; false at the end of the stream. What comes with it goes
    /// to the staging area: never more than the digest and one header, which is what it asks for.
    fn receive_block(&mut self, mut block: &mut [u8]) -> io::Result<bool> {
        let digest_bytes = self.shape.digest_bytes();
        let beyond = digest_bytes + self.shape.request_header_bytes();
        while !block.is_empty() || self.filled < digest_bytes {
            let length = block.len();
            let mut vectors = [
                IoSliceMut::new(block),
                IoSliceMut::new(&mut self.staging[self.filled..beyond]),
            ];
            let received = recvmsg(
                self.stream,
                &mut vectors,
                &mut RecvAncillaryBuffer::default(),
                self.waiting.flags(),
            );
            let count = match received {
                Ok(message) if message.bytes == 0 => return Ok(false),
                Ok(message) => message.bytes,
                Err(Errno::AGAIN | Errno::INTR) => 0,
                Err(error) => return Err(error.into()),
            };
            let landed = count.min(length);
            block = &mut block[landed..];
            self.filled += count - landed;
        }
        Ok(true)
    }

    /// Sends the replies of a batch.
    fn reply(&mut self, area: &[u8]) -> io::Result<()> {
        self.send_replies(area)?;
        self.replies.clear();
        Ok(())
    }

    fn send_replies(&self, area: &[u8]) -> io::Result<()> {
        let shape = self.shape;
        let mut vectors = ArrayVec::<IoSlice<'_>, VECTORS_MAX>::new();
        for (index, header) in self.replies.headers.iter().enumerate() {
            vectors.push(IoSlice::new(&header[..shape.reply_header_bytes()]));
            if shape.workload == Workload::Read {
                vectors.push(IoSlice::new(&area[self.replies.blocks[index].clone()]));
                if shape.digests {
                    vectors.push(IoSlice::new(&self.replies.digests[index]));
                }
            }
        }
        let mut rest = &mut vectors[..];
        while !rest.is_empty() {
            let mut control = SendAncillaryBuffer::default();
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match sendmsg(self.stream, rest, &mut control, flags) {
                Ok(count) => IoSlice::advance_slices(&mut rest, count),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

impl Replies {
    fn push(&mut self, shape: Shape, area: &[u8], block: Range<usize>) {
        let mut header = [0; REPLY_BYTES + DIGEST_BYTES];
        if shape.digests {
            let crc = digest(&header[..REPLY_BYTES]);
            header[REPLY_BYTES..].copy_from_slice(&crc);
            if shape.workload == Workload::Read {
                self.digests.push(digest(&area[block.clone()]));
            }
        }
        self.headers.push(header);
        self.blocks.push(block);
    }

    fn clear(&mut self) {
        self.headers.clear();
        self.blocks.clear();
        self.digests.clear();
    }
}

/// The block that a request names, wherever its number points.
fn block_range(shape: Shape, request: &[u8]) -> Range<usize> {
    let mut index = [0; 4];
    index.copy_from_slice(&request[INDEX_OFFSET..INDEX_OFFSET + 4]);
    let index = usize::try_from(u32::from_le_bytes(index)).unwrap_or(0) % shape.blocks();
    let begin = index * shape.block_bytes;
    begin..begin + shape.block_bytes
}
