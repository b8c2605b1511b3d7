//! The loading side: as many requests outstanding as told, spinning.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use arrayvec::ArrayVec;
use hdrhistogram::Histogram;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, sendmsg};

use super::{
    DIGEST_BYTES, INDEX_OFFSET, REPLY_BYTES, REQUEST_BYTES, Shape, VECTORS_MAX, check_digest,
    digest, invalid,
};
use crate::cell::Workload;

const RECEIVE_BYTES: usize = 1 << 20;
/// Longest latency that the histogram tells apart.
const LATENCY_MAX_NS: u64 = 60_000_000_000;
/// A server that says nothing for so long is gone.
const PATIENCE: Duration = Duration::from_secs(5);

/// What to do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) address: SocketAddr,
    pub(crate) shape: Shape,
    pub(crate) queue_depth: usize,
    /// Time from one request to the next; without it the next follows a reply.
    pub(crate) interval: Option<Duration>,
    pub(crate) warm_up: Duration,
    pub(crate) duration: Duration,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) commands: u64,
    pub(crate) elapsed: Duration,
    pub(crate) histogram: Histogram<u64>,
}

/// Runs the load.
pub(crate) fn run(plan: &Plan) -> io::Result<Outcome> {
    let mut stream = TcpStream::connect(plan.address)?;
    stream.set_nodelay(true)?;
    stream.write_all(&plan.shape.to_hello()?)?;
    let mut load = Load::new(&stream, plan)?;
    load.phase(plan.warm_up)?;
    load.commands = 0;
    load.histogram.reset();
    let elapsed = load.phase(plan.duration)?;
    Ok(Outcome {
        commands: load.commands,
        elapsed,
        histogram: load.histogram,
    })
}

struct Load<'a> {
    stream: &'a TcpStream,
    shape: Shape,
    depth: usize,
    interval: Option<Duration>,
    /// Requests made and not wholly sent, oldest first.
    unsent: VecDeque<Request>,
    /// Bytes of the oldest that are sent.
    sent_bytes: usize,
    /// When each outstanding request was made, oldest first: replies come in order.
    since: VecDeque<Instant>,
    block: Vec<u8>,
    received: Vec<u8>,
    filled: usize,
    random: u64,
    commands: u64,
    histogram: Histogram<u64>,
}

struct Request {
    header: [u8; REQUEST_BYTES + DIGEST_BYTES],
    data_digest: [u8; DIGEST_BYTES],
}

impl<'a> Load<'a> {
    fn new(stream: &'a TcpStream, plan: &Plan) -> io::Result<Self> {
        let histogram = Histogram::new_with_bounds(1, LATENCY_MAX_NS, 3)
            .map_err(|error| io::Error::other(error.to_string()))?;
        Ok(Self {
            stream,
            shape: plan.shape,
            depth: plan.queue_depth,
            interval: plan.interval,
            unsent: VecDeque::with_capacity(plan.queue_depth),
            sent_bytes: 0,
            since: VecDeque::with_capacity(plan.queue_depth),
            block: vec![0xa5; plan.shape.block_bytes],
            received: vec![0; RECEIVE_BYTES],
            filled: 0,
            random: 0x2545_f491_4f6c_dd1d,
            commands: 0,
            histogram,
        })
    }

    /// Keeps the load up for so long, and until something was answered; gives the time it took.
    fn phase(&mut self, duration: Duration) -> io::Result<Duration> {
        let begun = Instant::now();
        let mut now = begun;
        let mut heard = begun;
        let mut due = begun;
        while now.duration_since(begun) < duration || self.commands == 0 {
            while self.since.len() < self.depth && now >= due {
                due += self.interval.unwrap_or_default();
                let request = self.request();
                self.unsent.push_back(request);
                self.since.push_back(now);
            }
            self.send()?;
            let replies = self.receive()?;
            now = Instant::now();
            for _ in 0..replies {
                let Some(since) = self.since.pop_front() else {
                    return Err(invalid("count of replies"));
                };
                let latency = now.duration_since(since).as_nanos();
                self.histogram
                    .saturating_record(u64::try_from(latency).unwrap_or(u64::MAX));
                self.commands += 1;
            }
            if replies > 0 {
                heard = now;
            } else if !self.since.is_empty() && now.duration_since(heard) > PATIENCE {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        Ok(now.duration_since(begun))
    }

    fn request(&mut self) -> Request {
        // xorshift: which block is asked for only has to be spread.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let mut header = [0; REQUEST_BYTES + DIGEST_BYTES];
        let [a, b, c, d, ..] = self.random.to_le_bytes();
        header[INDEX_OFFSET..INDEX_OFFSET + 4].copy_from_slice(&[a, b, c, d]);
        let mut data_digest = [0; DIGEST_BYTES];
        if self.shape.digests {
            let crc = digest(&header[..REQUEST_BYTES]);
            header[REQUEST_BYTES..].copy_from_slice(&crc);
            if self.shape.workload == Workload::Write {
                data_digest = digest(&self.block);
            }
        }
        Request {
            header,
            data_digest,
        }
    }

    /// Sends what the socket takes.
    fn send(&mut self) -> io::Result<()> {
        if self.unsent.is_empty() {
            return Ok(());
        }
        self.sent_bytes += self.send_some()?;
        while self.sent_bytes >= self.shape.request_bytes() && self.unsent.pop_front().is_some() {
            self.sent_bytes -= self.shape.request_bytes();
        }
        Ok(())
    }

    fn send_some(&self) -> io::Result<usize> {
        let shape = self.shape;
        let mut vectors = ArrayVec::<IoSlice<'_>, VECTORS_MAX>::new();
        for request in &self.unsent {
            if vectors.remaining_capacity() < 3 {
                break;
            }
            vectors.push(IoSlice::new(
                &request.header[..shape.request_header_bytes()],
            ));
            if shape.workload == Workload::Write {
                vectors.push(IoSlice::new(&self.block));
                if shape.digests {
                    vectors.push(IoSlice::new(&request.data_digest));
                }
            }
        }
        let mut rest = &mut vectors[..];
        IoSlice::advance_slices(&mut rest, self.sent_bytes);
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match sendmsg(
            self.stream,
            rest,
            &mut SendAncillaryBuffer::default(),
            flags,
        ) {
            Ok(count) => Ok(count),
            Err(Errno::AGAIN | Errno::INTR) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes what has come; gives how many replies it completed.
    fn receive(&mut self) -> io::Result<usize> {
        let received = recv(
            self.stream,
            &mut self.received[self.filled..],
            RecvFlags::DONTWAIT,
        );
        match received {
            Ok((0, _)) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok((count, _)) => self.filled += count,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(0),
            Err(error) => return Err(error.into()),
        }
        let reply = self.shape.reply_bytes();
        let replies = self.filled / reply;
        if self.shape.digests {
            for bytes in self.received[..replies * reply].chunks_exact(reply) {
                check_reply(self.shape, bytes)?;
            }
            self.received.copy_within(replies * reply..self.filled, 0);
        }
        // Without digests nothing of a reply is looked at, so that a part of one need not be
        // kept, only counted; the next one is received over it from where it would have been.
        self.filled -= replies * reply;
        Ok(replies)
    }
}

fn check_reply(shape: Shape, reply: &[u8]) -> io::Result<()> {
    let (header, data) = reply.split_at(shape.reply_header_bytes());
    check_digest(&header[..REPLY_BYTES], &header[REPLY_BYTES..])?;
    if shape.workload == Workload::Read {
        let (block, found) = data.split_at(shape.block_bytes);
        check_digest(block, found)?;
    }
    Ok(())
}
