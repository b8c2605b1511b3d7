//! A target in another process.

use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result, ensure};
use bowline_nvme::ControllerId;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::host::{Names, Pump, Queue, Wait};
use crate::scenario::Scenario;

/// How long an answer may take: a target that is being counted is slow.
const ANSWER_SECONDS: i64 = 60;

/// Sleeps until the socket has something.
struct Remote;

impl Pump for Remote {
    fn pump(&mut self, stream: &TcpStream, wait: Wait) -> Result<()> {
        let wanted = match wait {
            Wait::Bytes => PollFlags::IN,
            Wait::Room => PollFlags::IN | PollFlags::OUT,
        };
        let limit = Timespec {
            tv_sec: ANSWER_SECONDS,
            tv_nsec: 0,
        };
        let ready = poll(&mut [PollFd::new(stream, wanted)], Some(&limit))?;
        ensure!(ready > 0, "no answer within {ANSWER_SECONDS} s");
        Ok(())
    }
}

/// Connects one host and runs so many rounds of the scenario; gives the number of commands.
pub(crate) fn drive(
    scenario: &Scenario,
    address: SocketAddr,
    subsystem: &str,
    rounds: u32,
) -> Result<u64> {
    let names = Names::of(subsystem, 0);
    let peer = &mut Remote;
    let dial = || TcpStream::connect(address).context("the target does not listen");
    let mut admin = Queue::new(dial()?, scenario.digests(), peer)?;
    let cntlid = admin.connect(0, ControllerId::DYNAMIC, &names, peer)?;
    admin.enable(peer)?;
    let mut queue = Queue::new(dial()?, scenario.digests(), peer)?;
    queue.connect(1, cntlid, &names, peer)?;
    let burst = scenario.burst(&queue)?;
    for _ in 0..rounds {
        queue.begin(&burst, peer)?;
        queue.finish(&burst, peer)?;
    }
    Ok(u64::from(scenario.commands()) * u64::from(rounds))
}
