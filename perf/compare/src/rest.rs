//! Figures of targets that have little or nothing to do: idle CPU, the first I/O after idle,
//! memory.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cell::{Cell, KIB, State, Workload};
use crate::client::{Client, Demand};
use crate::cycle::{self, Extent, Record};
use crate::process::{Launch, Process, interrupted};
use crate::result::{Figure, FirstIo, Idle, MemoryAtRest};
use crate::run::Bench;
use crate::statistics::median;
use crate::target::{Contender, SpdkVariant, Target};

/// Hosts of the idle figure.
const HOSTS: u8 = 16;
const READY_LIMIT: Duration = Duration::from_secs(20);
/// What the hosts stay longer than they are measured.
const HOSTS_SLACK: Duration = Duration::from_secs(5);
/// Commands a second after whose pauses (1, 10 and 100 ms) an I/O is looked at.
const PAUSES: [u32; 3] = [1000, 100, 10];
/// A slice with pauses has so many commands, and takes so long.
const SPARSE_COMMANDS: u32 = 20;
const SPARSE_MIN: Duration = Duration::from_millis(500);
/// Time after which the first I/O has to do with the alternations there are.
const FIRST_IO_LIMIT: Duration = Duration::from_secs(240);

impl Bench {
    /// CPU of a target with connected hosts that only send keep-alives.
    pub(crate) fn idle(&mut self) -> Result<Vec<Idle>> {
        let mut found = Vec::new();
        for contender in self.resting() {
            match self.idle_of(contender) {
                Ok(idle) => found.push(idle),
                Err(error) => self.missing(contender, &error)?,
            }
        }
        Ok(found)
    }

    fn idle_of(&self, contender: Contender) -> Result<Idle> {
        let target = Target::start(&self.kit, contender, State::Steady, false)?;
        let program = std::env::current_exe().context("own executable")?;
        let stay = self.settings.idle + HOSTS_SLACK;
        let mut hosts = Process::start(Launch {
            name: "hosts",
            program: &program,
            arguments: vec![
                "idle-hosts".into(),
                format!("--address={}", target.address).into(),
                format!("--subsystem={}", contender.subsystem()).into(),
                format!("--hosts={HOSTS}").into(),
                format!("--seconds={}", stay.as_secs()).into(),
            ],
            core: self.meter.client_core,
            cgroup: None,
        })?;
        hosts.wait_output(READY_LIMIT, |output| output.contains("ready").then_some(()))?;
        let (begun, before) = (Instant::now(), target.process.cpu_time()?);
        if hosts.wait_end(self.settings.idle)? {
            bail!("{}", hosts.last_words());
        }
        let used = target.process.cpu_time()?.saturating_sub(before);
        let seconds = begun.elapsed().as_secs_f64();
        Ok(Idle {
            contender: contender.name(),
            hosts: u32::from(HOSTS),
            seconds,
            cores: used.as_secs_f64() / seconds,
            unclaimed: self.settings.unclaimed.map(str::to_owned),
        })
    }

    /// How much later than usual an I/O is answered that comes after a pause: of the subject, of
    /// the subject that polls and so never has to wake up, and of bare sockets both ways, which is
    /// what the machine costs; and of SPDK.
    pub(crate) fn first_io(&mut self) -> Result<Vec<FirstIo>> {
        let client = self.clients[0].clone();
        if !matches!(client, Client::Bowline(_)) {
            self.skip("first-io", "needs a client with a fixed rate: bowline-perf");
            return Ok(Vec::new());
        }
        let mut contenders = self.resting();
        let polling = Contender::Polling(self.subject);
        let ours = [polling, Contender::BareSleeping, Contender::Bare];
        contenders.splice(1..1, ours);
        let mut targets = Vec::new();
        for contender in contenders {
            match Target::start(&self.kit, contender, State::Steady, false) {
                Ok(target) => {
                    target.process.pause()?;
                    targets.push(target);
                }
                Err(error) => self.missing(contender, &error)?,
            }
        }
        let extent = Extent {
            cycles: self.settings.alternations,
            limit: FIRST_IO_LIMIT,
        };
        // Each target without pauses, and with each of the pauses.
        let kinds = PAUSES.len() + 1;
        let record = cycle::run(targets.len() * kinds, extent, |index| {
            let target = &targets[index / kinds];
            let demand = self.after_pauses(target, (index % kinds).checked_sub(1));
            let client = client.facing(target.contender);
            self.meter.slice(target, client, &demand)
        })?;
        if !record.is_publishable() {
            self.skip("first-io", "other processes were busy");
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        for (place, target) in targets.iter().enumerate() {
            for (pause, rate) in PAUSES.iter().enumerate() {
                let (warm, sparse) = (place * kinds, place * kinds + pause + 1);
                let found_one = first_io_of(&record, target, (warm, sparse), *rate)?;
                found.push(FirstIo {
                    unclaimed: self.settings.unclaimed.map(str::to_owned),
                    ..found_one
                });
            }
        }
        Ok(found)
    }

    /// Reads one at a time, without pauses or with this one of them.
    fn after_pauses(&self, target: &Target, pause: Option<usize>) -> Demand {
        let cell = Cell {
            workload: Workload::Read,
            block_bytes: 4 * KIB,
            queue_depth: 1,
            digests: false,
            half_core: false,
            state: State::Steady,
        };
        let rate = pause.map(|pause| PAUSES[pause]);
        let demand = Demand::of(&cell, target, self.meter.client_core);
        match rate {
            None => Demand {
                warm_up: self.settings.warm_up,
                duration: self.settings.slice,
                ..demand
            },
            Some(rate) => Demand {
                rate: Some(rate),
                duration: SPARSE_MIN.max(Duration::from_secs(1) / rate * SPARSE_COMMANDS),
                ..demand
            },
        }
    }

    /// Memory before anybody has connected.
    pub(crate) fn memory(&mut self) -> Result<Vec<MemoryAtRest>> {
        let mut found = Vec::new();
        for contender in self.resting() {
            match Target::start(&self.kit, contender, State::Steady, false) {
                Ok(target) => {
                    let memory = target.process.memory()?;
                    found.push(MemoryAtRest {
                        contender: contender.name(),
                        resident_bytes: memory.resident_bytes,
                        huge_page_bytes: memory.huge_page_bytes,
                    });
                }
                Err(error) => self.missing(contender, &error)?,
            }
        }
        Ok(found)
    }

    fn resting(&self) -> Vec<Contender> {
        let mut contenders = vec![Contender::Bowline(self.subject)];
        if self.spdk.contains(&SpdkVariant::DEFAULT) {
            contenders.push(Contender::Spdk(SpdkVariant::DEFAULT));
            contenders.push(Contender::Spdk(SpdkVariant::INTERRUPT));
        }
        contenders
    }

    /// Older targets of others know no interrupt mode; everything else has to work.
    fn missing(&mut self, contender: Contender, error: &anyhow::Error) -> Result<()> {
        if contender == Contender::Spdk(SpdkVariant::INTERRUPT) && !interrupted() {
            self.skip(&contender.name(), &format!("{error:#}"));
            return Ok(());
        }
        bail!("{}: {error:#}", contender.name())
    }
}

fn first_io_of(
    record: &Record,
    target: &Target,
    (warm, sparse): (usize, usize),
    rate: u32,
) -> Result<FirstIo> {
    let figure = Figure::LatencyP50;
    let middle = |values: Vec<f64>| median(&values).context("nothing was measured");
    let pairs = record.pairs(figure, sparse, warm);
    Ok(FirstIo {
        contender: target.contender.name(),
        warm_ns: middle(record.values(figure, warm))?,
        after_idle_ns: middle(record.values(figure, sparse))?,
        pause_seconds: 1.0 / f64::from(rate),
        beyond_warm_ns: middle(pairs.iter().map(|(sparse, warm)| sparse - warm).collect())?,
        unclaimed: None,
    })
}
