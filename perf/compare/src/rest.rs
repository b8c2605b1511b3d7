//! Figures of targets that have little or nothing to do: idle CPU, the first I/O after idle,
//! memory.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cell::{Cell, KIB, Workload};
use crate::client::{Client, Demand, SPARSE_RATE};
use crate::process::{Launch, Process, interrupted};
use crate::result::{FirstIo, Idle, MemoryAtRest};
use crate::run::{Bench, quiet};
use crate::statistics::median;
use crate::target::{Contender, SpdkVariant, Target};

/// Hosts of the idle figure.
const HOSTS: u8 = 16;
const READY_LIMIT: Duration = Duration::from_secs(20);
/// What the hosts stay longer than they are measured.
const HOSTS_SLACK: Duration = Duration::from_secs(5);
/// Time of a sparse run: with ten commands a second, thirty of them.
const SPARSE: Duration = Duration::from_secs(3);

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
        let target = Target::start(&self.kit, contender, false)?;
        let program = std::env::current_exe().context("own executable")?;
        let stay = self.settings.idle + HOSTS_SLACK;
        let mut hosts = Process::start(Launch {
            name: "hosts",
            program: &program,
            arguments: vec![
                "idle-hosts".into(),
                format!("--address={}", target.address).into(),
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
        })
    }

    /// How much later than usual an I/O is answered that comes after a pause.
    pub(crate) fn first_io(&mut self) -> Result<Vec<FirstIo>> {
        let client = self.clients[0].clone();
        if !matches!(client, Client::Bowline(_)) {
            self.skip("first-io", "needs a client with a fixed rate: bowline-perf");
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        for contender in self.resting() {
            match self.first_io_of(contender, &client) {
                Ok(Some(first)) => found.push(first),
                Ok(None) => {
                    let what = format!("first-io, {}", contender.name());
                    self.skip(&what, "other processes were busy");
                }
                Err(error) => self.missing(contender, &error)?,
            }
        }
        Ok(found)
    }

    /// None where others were busy however often it was tried: a neighbour that takes the core
    /// while the target sleeps is what would be measured.
    fn first_io_of(&self, contender: Contender, client: &Client) -> Result<Option<FirstIo>> {
        let target = Target::start(&self.kit, contender, false)?;
        let cell = Cell {
            workload: Workload::Read,
            block_bytes: 4 * KIB,
            queue_depth: 1,
            digests: false,
            half_core: false,
        };
        let warm = Demand {
            warm_up: self.settings.warm_up,
            duration: self.settings.slice,
            ..Demand::of(&cell, target.address, self.meter.client_core)
        };
        let sparse = Demand {
            rate: Some(SPARSE_RATE),
            warm_up: Duration::ZERO,
            duration: SPARSE,
            ..warm
        };
        let (mut warm_ns, mut sparse_ns, mut beyond_ns) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.settings.alternations {
            let p50 = |demand| -> Result<Option<f64>> {
                let slice = quiet(|| self.meter.slice(&target, client, demand))?;
                Ok(slice.accepted.then_some(slice.latency_ns.p50))
            };
            let (Some(one), Some(other)) = (p50(&warm)?, p50(&sparse)?) else {
                return Ok(None);
            };
            warm_ns.push(one);
            sparse_ns.push(other);
            beyond_ns.push(other - one);
        }
        let middle = |values: &[f64]| median(values).context("nothing was measured");
        Ok(Some(FirstIo {
            contender: contender.name(),
            warm_ns: middle(&warm_ns)?,
            after_idle_ns: middle(&sparse_ns)?,
            pause_seconds: 1.0 / f64::from(SPARSE_RATE),
            beyond_warm_ns: middle(&beyond_ns)?,
        }))
    }

    /// Memory before anybody has connected.
    pub(crate) fn memory(&mut self) -> Result<Vec<MemoryAtRest>> {
        let mut found = Vec::new();
        for contender in self.resting() {
            match Target::start(&self.kit, contender, false) {
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
        let mut contenders = vec![Contender::SUBJECT];
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
