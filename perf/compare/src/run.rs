//! A run: the subjects one after the other, each written to disk before the next begins.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

use crate::abba::{self, Record, Side};
use crate::cell::{Cell, Workload};
use crate::client::{Client, Demand};
use crate::environment::Environment;
use crate::meter::{Meter, Slice};
use crate::process::interrupted;
use crate::result::{CellResult, Comparison, Document, Figure, Program, SCHEMA_VERSION, Skipped};
use crate::statistics::{Better, median};
use crate::summary::{compare, summarise};
use crate::syscalls::SystemCalls;
use crate::target::{Backing, Contender, Kit, SpdkVariant, Target};

/// Slices that decide which way of running SPDK is its best in a cell.
const TOURNAMENT_SLICES: usize = 3;
/// How often a slice outside of pairs is tried until nobody else is busy.
const QUIET_ATTEMPTS: usize = 5;
/// Slices in which system calls are counted; the counting costs time, so they count for nothing
/// else.
const COUNTED_SLICES: usize = 3;
/// What writes every block of a namespace before anything is measured, so that reads find memory
/// and not the kernel's page of zeros.
const FILL: Duration = Duration::from_millis(300);
const FILL_BLOCK_BYTES: u32 = 128 << 10;
const FILL_DEPTH: u32 = 8;

/// How much is measured.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) pairs: usize,
    pub(crate) slice: Duration,
    pub(crate) warm_up: Duration,
    pub(crate) idle: Duration,
    /// Alternations of the first-I/O figure.
    pub(crate) alternations: usize,
}

/// Everything that a run has to work with.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) kit: Kit,
    pub(crate) meter: Meter,
    pub(crate) settings: Settings,
    /// Clients that speak NVMe/TCP.
    pub(crate) clients: Vec<Client>,
    /// Other contenders, besides SPDK's variants.
    pub(crate) others: Vec<Contender>,
    /// SPDK's ways of running that work here.
    pub(crate) spdk: Vec<SpdkVariant>,
    pub(crate) skipped: Vec<Skipped>,
}

impl Bench {
    pub(crate) fn document(&self, environment: &Environment, programs: &[Program]) -> Document {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Document {
            schema_version: SCHEMA_VERSION,
            measured_at: now.map_or(0, |since| since.as_secs()),
            environment: environment.clone(),
            programs: programs.to_vec(),
            skipped: self.skipped.clone(),
            cells: Vec::new(),
            idle: Vec::new(),
            first_io: Vec::new(),
            memory: Vec::new(),
        }
    }

    pub(crate) fn skip(&mut self, what: &str, why: &str) {
        let skipped = Skipped {
            what: what.to_owned(),
            why: why.to_owned(),
        };
        if !self.skipped.contains(&skipped) {
            eprintln!("skipped: {what}: {why}");
            self.skipped.push(skipped);
        }
    }

    /// Measures a cell with every client.
    pub(crate) fn cell(&mut self, cell: &Cell) -> Result<Vec<CellResult>> {
        let mut results = Vec::new();
        for client in self.clients.clone() {
            results.push(
                self.cell_with(cell, &client)
                    .with_context(|| format!("{} with {}", cell.name(), client.name()))?,
            );
        }
        Ok(results)
    }

    fn cell_with(&mut self, cell: &Cell, client: &Client) -> Result<CellResult> {
        let field = self.field(cell, client)?;
        let rounds = self.settings.pairs.div_ceil(2);
        let record = abba::run(field.opponents.len(), rounds, |opponent, side| {
            let index = match side {
                Side::Subject => 0,
                Side::Opponent => field.opponents[opponent].target,
            };
            self.slice(&field.targets[index], cell, client)
        })?;
        let mut result = CellResult {
            name: cell.name(),
            cell: *cell,
            client: client.name().to_owned(),
            pairs: rounds * 2,
            slice_seconds: client.slice(self.settings.slice).as_secs_f64(),
            warm_up_seconds: self.settings.warm_up.as_secs_f64(),
            attempted: record.slices.len(),
            accepted: record.accepted,
            unpublished: None,
            contenders: Vec::new(),
            comparisons: Vec::new(),
            slices: Vec::new(),
        };
        if record.is_publishable() {
            self.publish(&mut result, &field, &record, client)?;
        } else {
            result.unpublished = Some(format!(
                "other processes were busy: {} of {} slices could be used",
                record.accepted,
                record.slices.len()
            ));
        }
        result.slices = record.slices;
        Ok(result)
    }

    fn publish(
        &self,
        result: &mut CellResult,
        field: &Field,
        record: &Record,
        client: &Client,
    ) -> Result<()> {
        let cell = result.cell;
        for target in &field.targets {
            let name = target.contender.name();
            let calls = self.system_calls(target, &cell, client)?;
            let memory = target.process.memory()?.total_bytes();
            result
                .contenders
                .push(summarise(&cell, &name, &record.slices, calls, memory)?);
        }
        let bare = Contender::Bare.name();
        let limit = result.contenders.iter().find(|one| one.contender == bare);
        if let Some(limit) = limit.map(|one| one.iops).filter(|iops| *iops > 0.0) {
            for summary in &mut result.contenders {
                summary.share_of_limit = Some(summary.iops / limit);
            }
        }
        let subject = Contender::SUBJECT.name();
        let same = &record.pairs[0];
        for (opponent, pairs) in field.opponents.iter().zip(&record.pairs) {
            let other = field.targets[opponent.target].contender.name();
            for role in &opponent.roles {
                let comparison: Comparison =
                    compare(&subject, &other, role, pairs, same, self.meter.gated);
                result.comparisons.push(comparison);
            }
        }
        Ok(())
    }

    /// Starts everybody who takes part, fills their namespaces and takes them off the core.
    fn field(&mut self, cell: &Cell, client: &Client) -> Result<Field> {
        let mut field = Field::default();
        let subject = self.prepared(Contender::SUBJECT, cell, client)?;
        field.add(subject, &["itself"]);
        if !self.spdk.is_empty() {
            let best = self.best_spdk(cell, client)?;
            let default = SpdkVariant::DEFAULT;
            let target = self.prepared(Contender::Spdk(best), cell, client)?;
            if best == default {
                field.add(target, &["spdk-best", "spdk-default"]);
            } else {
                field.add(target, &["spdk-best"]);
                let target = self.prepared(Contender::Spdk(default), cell, client)?;
                field.add(target, &["spdk-default"]);
            }
        }
        // The second client is there to confirm the comparison with SPDK; it cannot speak to bare
        // sockets, and the limit does not depend on it.
        if client == &self.clients[0] {
            for contender in self.others.clone() {
                match self.prepared(contender, cell, client) {
                    Ok(target) => field.add(target, &[contender.name().as_str()]),
                    Err(error)
                        if contender == Contender::Bowline(Backing::Block) && !interrupted() =>
                    {
                        self.skip(&contender.name(), &format!("{error:#}"));
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(field)
    }

    /// A target whose namespace is written once and which is off its core.
    fn prepared(&self, contender: Contender, cell: &Cell, client: &Client) -> Result<Target> {
        let target = Target::start(&self.kit, contender, cell.half_core)?;
        target.process.pause()?;
        if contender != Contender::Bare {
            let duration = client.slice(FILL);
            let demand = Demand {
                workload: Workload::Write,
                block_bytes: FILL_BLOCK_BYTES,
                queue_depth: FILL_DEPTH,
                sequential: true,
                duration,
                ..Demand::of(cell, target.address, self.meter.client_core)
            };
            self.meter.slice(&target, client, &demand)?;
        }
        Ok(target)
    }

    /// One slice of a contender in a cell.
    fn slice(&self, target: &Target, cell: &Cell, client: &Client) -> Result<Slice> {
        let client = match target.contender {
            Contender::Bare => &Client::Bare,
            Contender::Bowline(_) | Contender::Spdk(_) => client,
        };
        let demand = Demand {
            warm_up: self.settings.warm_up,
            duration: client.slice(self.settings.slice),
            ..Demand::of(cell, target.address, self.meter.client_core)
        };
        self.meter.slice(target, client, &demand)
    }

    /// Which way of running SPDK is best in this cell, by a few slices of each. A way that does
    /// not start is left out from then on.
    fn best_spdk(&mut self, cell: &Cell, client: &Client) -> Result<SpdkVariant> {
        let figure = Figure::main(cell);
        let mut best: Option<(SpdkVariant, f64)> = None;
        for variant in self.spdk.clone() {
            let contender = Contender::Spdk(variant);
            let target = match self.prepared(contender, cell, client) {
                Ok(target) => target,
                Err(error) if variant != SpdkVariant::DEFAULT && !interrupted() => {
                    self.spdk.retain(|one| *one != variant);
                    self.skip(&contender.name(), &format!("{error:#}"));
                    continue;
                }
                Err(error) => return Err(error),
            };
            let mut values = Vec::new();
            for _ in 0..TOURNAMENT_SLICES {
                let slice = quiet(|| self.slice(&target, cell, client))?;
                values.push(figure.of(&slice));
            }
            let value = median(&values).unwrap_or(0.0);
            let wins = best.is_none_or(|(_, record)| match figure.better() {
                Better::Higher => value > record,
                Better::Lower => value < record,
            });
            if wins {
                best = Some((variant, value));
            }
        }
        match best {
            Some((variant, _)) => Ok(variant),
            None => bail!("SPDK's target does not run"),
        }
    }

    /// System calls per I/O, where the kernel lets us count and the client tells how many I/Os.
    fn system_calls(&self, target: &Target, cell: &Cell, client: &Client) -> Result<Option<f64>> {
        let client = match target.contender {
            Contender::Bare => &Client::Bare,
            Contender::Bowline(_) | Contender::Spdk(_) => client,
        };
        let demand = Demand {
            duration: client.slice(self.settings.slice),
            ..Demand::of(cell, target.address, self.meter.client_core)
        };
        let mut values = Vec::new();
        for _ in 0..COUNTED_SLICES {
            let Ok(counter) = SystemCalls::watch(target.process.pid()) else {
                return Ok(None);
            };
            let slice = self.meter.slice(target, client, &demand)?;
            let calls = counter.count()?;
            let Some(commands) = slice.commands.filter(|count| *count > 0) else {
                return Ok(None);
            };
            values.push(calls as f64 / commands as f64);
        }
        Ok(median(&values))
    }
}

/// A slice in which nobody else was busy, or the last of a few where somebody always is: what
/// decides less than a claim is not to be decided by a neighbour either.
pub(crate) fn quiet(mut measure: impl FnMut() -> Result<Slice>) -> Result<Slice> {
    for _ in 1..QUIET_ATTEMPTS {
        let slice = measure()?;
        if slice.accepted {
            return Ok(slice);
        }
    }
    measure()
}

/// Who takes part in a cell.
#[derive(Default)]
struct Field {
    /// The subject first.
    targets: Vec<Target>,
    opponents: Vec<Opponent>,
}

struct Opponent {
    target: usize,
    roles: Vec<String>,
}

impl Field {
    fn add(&mut self, target: Target, roles: &[&str]) {
        self.opponents.push(Opponent {
            target: self.targets.len(),
            roles: roles.iter().map(|role| (*role).to_owned()).collect(),
        });
        self.targets.push(target);
    }
}
