//! What is counted, by name.

use anyhow::{Context, Result, bail};
use bowline_block as block;
use bowline_nvme::opcode::{admin, io as opcode};
use bowline_nvme::pdu::Digests;
use bowline_nvme::{ControllerId, NamespaceId, Sgl, Sqe};
use bowline_reactor::IoBackend;

use crate::host::{Burst, Names, Queue};
use crate::machine::{BLOCK_BYTES, Counts, Machine, NQNS};
use crate::volume;

/// Rounds that are counted, and as many before that, in which tables grow and memory is touched.
const ROUNDS: u32 = 64;
/// Of scenarios with more than [`MANY_COMMANDS`] in a round.
const ROUNDS_OF_MANY: u32 = 8;
const MANY_COMMANDS: u32 = 256;
/// Size of the namespace that is used, in bytes.
const DISK_BYTES: u64 = 64 << 20;
/// The largest data that hosts put in a capsule by default.
const IN_CAPSULE_BYTES: u32 = 8192;
const KIB: u32 = 1024;

/// What is done over and over.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    Read,
    /// In the capsule where it fits, else by R2T.
    Write,
    /// By R2T though it would fit the capsule.
    WriteByR2t,
    Compare,
    Flush,
    KeepAlive,
    /// A host of its own connects its admin queue.
    Connect,
    /// A namespace is added, which no host asks for.
    Attach,
    /// A volume of a pool is read, with no host.
    ReadVolume,
    /// A volume of a pool is overwritten in place, with no host.
    OverwriteVolume,
}

/// One thing to be counted.
#[derive(Clone, Copy)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) op: Op,
    bytes: u32,
    depth: u16,
    digests: Digests,
    /// Hosts beside, of two connections each, on which nothing happens.
    idle: u32,
    /// Hosts that take part, each with this depth, shared evenly by the reactors.
    busy: u32,
    reactors: u32,
    namespaces: u32,
    /// Namespaces that commands go to in turn, from the first on.
    over: u16,
}

const NONE: Scenario = Scenario {
    name: "",
    op: Op::Read,
    bytes: 4 * KIB,
    depth: 32,
    digests: Digests::NONE,
    idle: 0,
    busy: 1,
    reactors: 1,
    namespaces: 1,
    over: 1,
};

const DIGESTS: Digests = Digests {
    header: true,
    data: true,
};

macro_rules! scenarios {
    ($($name:ident { $($field:ident: $value:expr),* $(,)? })+) => {
        /// All of them, in the order in which they are printed.
        pub(crate) const SCENARIOS: &[Scenario] = &[$(Scenario {
            name: stringify!($name),
            $($field: $value,)*
            ..NONE
        }),+];
    };
}

scenarios! {
    read_4k_qd1 { depth: 1 }
    read_4k_qd32 {}
    read_4k_qd128 { depth: 128 }
    read_4k_digests_qd32 { digests: DIGESTS }
    read_512_qd32 { bytes: 512 }
    read_16k_qd32 { bytes: 16 * KIB }
    read_128k_qd1 { bytes: 128 * KIB, depth: 1 }
    read_128k_qd32 { bytes: 128 * KIB }
    read_1m_qd1 { bytes: 1024 * KIB, depth: 1 }
    write_4k_qd1 { op: Op::Write, depth: 1 }
    write_4k_qd32 { op: Op::Write }
    write_4k_qd128 { op: Op::Write, depth: 128 }
    write_4k_digests_qd32 { op: Op::Write, digests: DIGESTS }
    write_4k_r2t_qd1 { op: Op::WriteByR2t, depth: 1 }
    write_4k_r2t_qd32 { op: Op::WriteByR2t }
    write_512_qd32 { op: Op::Write, bytes: 512 }
    write_16k_qd32 { op: Op::Write, bytes: 16 * KIB }
    write_128k_qd1 { op: Op::Write, bytes: 128 * KIB, depth: 1 }
    write_128k_qd32 { op: Op::Write, bytes: 128 * KIB }
    write_1m_qd1 { op: Op::Write, bytes: 1024 * KIB, depth: 1 }
    compare_4k_qd1 { op: Op::Compare, depth: 1 }
    flush_qd1 { op: Op::Flush, bytes: 0, depth: 1 }
    keep_alive { op: Op::KeepAlive, bytes: 0, depth: 1 }
    read_4k_qd1_beside_1000_idle { depth: 1, idle: 500 }
    read_4k_qd32_beside_1000_idle { idle: 500 }
    write_4k_qd32_beside_1000_idle { op: Op::Write, idle: 500 }
    read_4k_qd1_on_each_of_1000 { depth: 1, busy: 1000 }
    write_4k_qd1_on_each_of_1000 { op: Op::Write, depth: 1, busy: 1000 }
    read_4k_qd1_on_2_reactors { depth: 1, busy: 2, reactors: 2 }
    read_4k_qd32_on_2_reactors { busy: 2, reactors: 2 }
    write_4k_qd32_on_2_reactors { op: Op::Write, busy: 2, reactors: 2 }
    read_128k_qd32_on_2_reactors { bytes: 128 * KIB, busy: 2, reactors: 2 }
    read_4k_qd1_of_10000_namespaces { depth: 1, namespaces: 10_000 }
    read_4k_qd32_of_10000_namespaces { namespaces: 10_000 }
    read_4k_qd32_over_32_of_10000_namespaces { namespaces: 10_000, over: 32 }
    write_4k_qd32_of_10000_namespaces { op: Op::Write, namespaces: 10_000 }
    keep_alive_of_10000_namespaces { op: Op::KeepAlive, bytes: 0, depth: 1, namespaces: 10_000 }
    connect { op: Op::Connect, bytes: 0, depth: 1 }
    connect_beside_1000_idle { op: Op::Connect, bytes: 0, depth: 1, idle: 500 }
    connect_to_10000_namespaces { op: Op::Connect, bytes: 0, depth: 1, namespaces: 10_000 }
    volume_read_4k_qd32 { op: Op::ReadVolume }
    volume_overwrite_4k_qd1 { op: Op::OverwriteVolume, depth: 1 }
    volume_overwrite_4k_qd32 { op: Op::OverwriteVolume }
    volume_overwrite_128k_qd32 { op: Op::OverwriteVolume, bytes: 128 * KIB }
    attach { op: Op::Attach, bytes: 0, depth: 1 }
    attach_to_10000_namespaces { op: Op::Attach, bytes: 0, depth: 1, namespaces: 10_000 }
}

/// What a run did in the counted part.
pub(crate) struct Counted {
    pub(crate) commands: u64,
    pub(crate) counts: Counts,
}

impl Scenario {
    pub(crate) fn of(name: &str) -> Result<&'static Self> {
        let found = SCENARIOS.iter().find(|scenario| scenario.name == name);
        found.with_context(|| format!("there is no scenario {name}"))
    }

    pub(crate) const fn digests(&self) -> Digests {
        self.digests
    }

    /// Commands of one round.
    pub(crate) const fn commands(&self) -> u32 {
        self.depth as u32 * self.busy
    }

    /// Whether it is there to be compared with another that is smaller.
    pub(crate) const fn is_growth(&self) -> bool {
        self.idle > 0 || self.busy > 1 || self.namespaces > 1
    }

    const fn rounds(&self) -> u32 {
        if self.commands() > MANY_COMMANDS {
            ROUNDS_OF_MANY
        } else {
            ROUNDS
        }
    }

    /// The whole scenario in this process.
    pub(crate) fn run(&self, io: IoBackend) -> Result<Counted> {
        let rounds = self.rounds();
        match self.op {
            Op::ReadVolume => return self.volume(block::Op::Read, rounds),
            Op::OverwriteVolume => return self.volume(block::Op::Write, rounds),
            _ => {}
        }
        let hosts = self.idle + self.busy + 2 * rounds;
        let mut machine = Machine::new(io, self.reactors, 2 * hosts, DISK_BYTES)?;
        machine.add_namespaces(1..self.namespaces)?;
        let mut idle = Vec::new();
        for host in 0..self.idle {
            idle.push(Association::new(
                &mut machine,
                Digests::NONE,
                NQNS[0],
                host,
            )?);
        }
        match self.op {
            Op::Connect => self.connect(machine, rounds),
            Op::Attach => self.attach(machine, rounds),
            _ => self.bursts(machine, rounds),
        }
    }

    fn volume(&self, op: block::Op, rounds: u32) -> Result<Counted> {
        let blocks = self.bytes / (4 * KIB);
        Ok(Counted {
            commands: u64::from(self.depth) * u64::from(rounds),
            counts: volume::run(op, self.depth, blocks, rounds)?,
        })
    }

    fn bursts(&self, mut machine: Machine, rounds: u32) -> Result<Counted> {
        let mut busy = Vec::new();
        let subsystems = NQNS.iter().take(usize::try_from(self.reactors)?).cycle();
        for (host, subsystem) in (0..self.busy).zip(subsystems) {
            let host = self.idle + host;
            let one = Association::new(&mut machine, self.digests, subsystem, host)?;
            busy.push(one);
        }
        let burst = self.burst(&busy.first().context("a connection")?.queue)?;
        for _ in 0..rounds {
            self.round(&mut busy, &burst, &mut machine)?;
        }
        machine.count();
        for _ in 0..rounds {
            self.round(&mut busy, &burst, &mut machine)?;
        }
        Ok(Counted {
            commands: u64::from(self.commands()) * u64::from(rounds),
            counts: machine.counts(),
        })
    }

    /// All that take part send, then all are waited for.
    fn round(&self, busy: &mut [Association], burst: &Burst, machine: &mut Machine) -> Result<()> {
        for one in &mut *busy {
            one.of(self.op).begin(burst, machine)?;
        }
        busy.iter_mut()
            .try_for_each(|one| one.of(self.op).finish(burst, machine))
    }

    fn connect(&self, mut machine: Machine, rounds: u32) -> Result<Counted> {
        let mut connected = Vec::new();
        for round in 0..2 * rounds {
            if round == rounds {
                machine.count();
            }
            let host = self.idle + round;
            let names = Names::of(NQNS[0], host);
            connected.push(Association::admin(&mut machine, Digests::NONE, &names)?);
        }
        Ok(Counted {
            commands: u64::from(rounds),
            counts: machine.counts(),
        })
    }

    fn attach(&self, mut machine: Machine, rounds: u32) -> Result<Counted> {
        let warm = self.namespaces + rounds;
        machine.add_namespaces(self.namespaces..warm)?;
        machine.count();
        machine.add_namespaces(warm..warm + rounds)?;
        Ok(Counted {
            commands: u64::from(rounds),
            counts: machine.counts(),
        })
    }

    /// The commands of one connection and round.
    pub(crate) fn burst(&self, queue: &Queue) -> Result<Burst> {
        let blocks = self.bytes / BLOCK_BYTES;
        let mut commands = Vec::new();
        for number in 0..self.depth {
            let slba = u64::from(number / self.over) * u64::from(blocks);
            let namespace = NamespaceId(u32::from(1 + number % self.over));
            let nlb = u16::try_from(blocks.saturating_sub(1))?;
            let sqe = |opcode| {
                Sqe::new(opcode)
                    .with_nsid(namespace)
                    .with_slba(slba)
                    .with_nlb(nlb)
            };
            let data = || vec![0; usize::try_from(self.bytes).unwrap_or(0)];
            let by_r2t = Sgl::transport(self.bytes);
            commands.push(match self.op {
                Op::Read => (sqe(opcode::READ).with_sgl1(by_r2t), Vec::new()),
                Op::Write if self.bytes <= IN_CAPSULE_BYTES => {
                    let sgl = Sgl::in_capsule(self.bytes);
                    (sqe(opcode::WRITE).with_sgl1(sgl), data())
                }
                Op::Write | Op::WriteByR2t => (sqe(opcode::WRITE).with_sgl1(by_r2t), Vec::new()),
                Op::Compare => {
                    let sgl = Sgl::in_capsule(self.bytes);
                    (sqe(opcode::COMPARE).with_sgl1(sgl), data())
                }
                Op::Flush => {
                    let flush = Sqe::new(opcode::FLUSH).with_nsid(namespace);
                    (flush.with_sgl1(Sgl::transport(0)), Vec::new())
                }
                Op::KeepAlive => {
                    let keep_alive = Sqe::new(admin::KEEP_ALIVE);
                    (keep_alive.with_sgl1(Sgl::transport(0)), Vec::new())
                }
                Op::Connect | Op::Attach | Op::ReadVolume | Op::OverwriteVolume => {
                    bail!("{} sends no burst", self.name)
                }
            });
        }
        queue.burst(&commands)
    }
}

/// An admin queue and an I/O queue of one host.
pub(crate) struct Association {
    admin: Queue,
    queue: Queue,
}

impl Association {
    fn new(machine: &mut Machine, digests: Digests, subsystem: &str, host: u32) -> Result<Self> {
        let names = Names::of(subsystem, host);
        let (admin, cntlid) = Self::admin(machine, digests, &names)?;
        let mut queue = Queue::new(machine.dial()?, digests, machine)?;
        queue.connect(1, cntlid, &names, machine)?;
        Ok(Self { admin, queue })
    }

    /// An enabled controller.
    fn admin(
        machine: &mut Machine,
        digests: Digests,
        names: &Names<'_>,
    ) -> Result<(Queue, ControllerId)> {
        let mut admin = Queue::new(machine.dial()?, digests, machine)?;
        let cntlid = admin.connect(0, ControllerId::DYNAMIC, names, machine)?;
        admin.enable(machine)?;
        Ok((admin, cntlid))
    }

    /// The queue that such commands go to.
    const fn of(&mut self, op: Op) -> &mut Queue {
        match op {
            Op::KeepAlive => &mut self.admin,
            _ => &mut self.queue,
        }
    }
}
