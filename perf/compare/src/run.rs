//! A run: the subjects one after the other, each written to disk before the next begins.

use std::cell::{Cell as Counter, RefCell};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use crate::cell::{Cell, Pattern, State, Workload};
use crate::client::{Client, Demand};
use crate::cycle::{self, Extent, Record};
use crate::environment::Environment;
use crate::meter::{Meter, Slice};
use crate::process::interrupted;
use crate::result::{CellResult, Comparison, Document, Figure, Program, SCHEMA_VERSION, Skipped};
use crate::statistics::median;
use crate::summary::{compare, summarise};
use crate::syscalls::SystemCalls;
use crate::target::{Backing, Contender, Kit, SpdkVariant, Target};

/// SPDK's ways of running that stay for all of a cell.
const FINALISTS_MAX: usize = 3;
/// Cycles of all its ways that decide who stays, where there are more.
const HEATS: usize = 12;
/// A target held to half a core works in bursts of 5 ms: its slices are longer by so much, so that
/// half a burst more or less changes little.
const HELD_LONGER: u32 = 2;
/// Slices in which system calls are counted; the counting costs time, so they count for nothing
/// else.
const COUNTED_SLICES: usize = 3;
/// Large blocks are as fast as the memory that the kernel has found for a file lets them be copied,
/// which differs by a tenth from file to file: of a contender over a drive every so many slices have
/// a target of their own, so that no cell is about one of them.
const SLICES_OF_A_DRIVE: u32 = 3;
const LARGE_BYTES: u32 = 64 << 10;
/// How long a namespace is written to before anything is measured, unless it takes a number of
/// commands, so that reads find memory and not the kernel's page of zeros.
const FILL: Duration = Duration::from_millis(300);

/// How much is measured.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) pairs: usize,
    /// Length of a slice; of a target held to half a core longer.
    pub(crate) slice: Duration,
    pub(crate) warm_up: Duration,
    /// Time after which a cell has to do with the pairs it has.
    pub(crate) cell_limit: Duration,
    pub(crate) idle: Duration,
    /// Alternations of the first-I/O figure.
    pub(crate) alternations: usize,
    /// Why figures without pairs decide nothing, if they do not.
    pub(crate) unclaimed: Option<&'static str>,
}

/// Everything that a run has to work with.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) kit: Kit,
    /// What the bowline serves that the others are compared with.
    pub(crate) subject: Backing,
    pub(crate) meter: Meter,
    pub(crate) settings: Settings,
    /// Clients that speak NVMe/TCP.
    pub(crate) clients: Vec<Client>,
    /// Other contenders, besides SPDK's variants.
    pub(crate) others: Vec<Contender>,
    /// SPDK's ways of running that work here.
    pub(crate) spdk: Vec<SpdkVariant>,
    pub(crate) skipped: Vec<Skipped>,
    /// Slices so far: none repeats the places of another where that matters.
    pub(crate) slices: Counter<u64>,
}

impl Bench {
    pub(crate) fn document(&self, environment: &Environment, programs: &[Program]) -> Document {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Document {
            schema_version: SCHEMA_VERSION,
            measured_at: now.map_or(0, |since| since.as_secs()),
            environment: environment.clone(),
            subject: Contender::Bowline(self.subject).name(),
            programs: programs.to_vec(),
            skipped: self.skipped.clone(),
            cells: Vec::new(),
            idle: Vec::new(),
            first_io: Vec::new(),
            memory: Vec::new(),
            pool: Vec::new(),
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
            if !client.knows(cell) {
                continue;
            }
            results.push(
                self.cell_with(cell, &client)
                    .with_context(|| format!("{} with {}", cell.name(), client.name()))?,
            );
        }
        Ok(results)
    }

    fn cell_with(&mut self, cell: &Cell, client: &Client) -> Result<CellResult> {
        let mut field = self.field(cell, client)?;
        let extent = Extent {
            cycles: self.settings.pairs,
            limit: self.settings.cell_limit,
        };
        let record = cycle::run(field.entrants.len(), extent, |index| {
            self.turn(&field.entrants[index], cell, client)
        })?;
        let mut result = CellResult {
            name: cell.name(),
            cell: *cell,
            client: client.name().to_owned(),
            pairs: record.cycles(),
            slice_seconds: self.slice_length(cell, client).as_secs_f64(),
            slice_commands: cell.commands(self.settings.slice),
            warm_up_seconds: self.warm_up(cell).as_secs_f64(),
            attempted: record.slices.len(),
            accepted: record.accepted,
            unpublished: None,
            contenders: Vec::new(),
            comparisons: Vec::new(),
            slices: Vec::new(),
        };
        if record.is_publishable() {
            field.name_best(&record, Figure::main(cell));
            self.publish(&mut result, &field, &record, client)?;
        } else {
            result.unpublished = Some(format!(
                "other processes were busy: {} of {} slices could be used, {} whole cycles",
                record.accepted,
                record.slices.len(),
                record.cycles()
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
        for entrant in &field.entrants {
            let name = entrant.contender.name();
            let (calls, memory) = match entrant.target.borrow().as_ref() {
                Some(target) => (
                    self.system_calls(target, &cell, client)?,
                    target.process.memory()?.total_bytes(),
                ),
                None => (None, entrant.memory_bytes.get()),
            };
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
        let subject = Contender::Bowline(self.subject).name();
        for role in &field.roles {
            let comparison = Comparison {
                subject: subject.clone(),
                other: field.entrants[role.place].contender.name(),
                role: role.name.clone(),
                figures: compare(record, role.place, self.meter.gated),
            };
            result.comparisons.push(comparison);
        }
        Ok(())
    }

    /// Starts everybody who takes part, fills their namespaces and takes them off the core. Where
    /// every slice has a target of its own nobody is started yet.
    fn field(&mut self, cell: &Cell, client: &Client) -> Result<Field> {
        let mut field = Field::default();
        let subject = self.entrant(Contender::Bowline(self.subject), cell, client)?;
        field.entrants.push(subject);
        let twin = self.entrant(Contender::Twin(self.subject), cell, client)?;
        field.add(twin, "itself");
        if !self.spdk.is_empty() && cell.state == State::Steady {
            field.spdk = field.entrants.len();
            let finalists = self.finalists(cell, client)?;
            let finalists = finalists.into_iter().map(Entrant::running);
            field.entrants.extend(finalists);
        }
        // The second client is there to confirm the comparison with SPDK; it cannot speak to bare
        // sockets, and the limit does not depend on it.
        if client != &self.clients[0] {
            return Ok(field);
        }
        for contender in self.others.clone() {
            // Bare sockets have no state.
            if contender == Contender::Bare && cell.state != State::Steady {
                continue;
            }
            match self.entrant(contender, cell, client) {
                Ok(entrant) => field.add(entrant, &contender.name()),
                Err(error) if contender == Contender::Bowline(Backing::Block) && !interrupted() => {
                    self.skip(&contender.name(), &format!("{error:#}"));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(field)
    }

    fn entrant(&self, contender: Contender, cell: &Cell, client: &Client) -> Result<Entrant> {
        if cell.state.is_used_up() {
            return Ok(Entrant {
                contender,
                target: RefCell::new(None),
                slices: Counter::new(0),
                memory_bytes: Counter::new(0),
            });
        }
        self.prepared(contender, cell, client).map(Entrant::running)
    }

    /// A target whose namespace is as the cell wants it, and which is off its core.
    fn prepared(&self, contender: Contender, cell: &Cell, client: &Client) -> Result<Target> {
        let target = Target::start(&self.kit, contender, cell.state, cell.half_core)?;
        target.process.pause()?;
        if let Some(ground) = cell.state.ground() {
            target.lay(ground, cell.state)?;
        }
        let fill = cell.state.fill();
        if let Some(fill) = fill.filter(|_| contender != Contender::Bare) {
            let duration = client.slice(FILL);
            let demand = Demand {
                workload: Workload::Write,
                block_bytes: fill.block_bytes,
                queue_depth: fill.queue_depth,
                pattern: fill.pattern,
                commands: fill.commands,
                duration,
                ..Demand::of(cell, &target, self.meter.client_core)
            };
            self.meter.slice(&target, client, &demand)?;
        }
        if cell.state == State::Snapshot {
            target.process.resume()?;
            target.take_snapshot(&self.kit)?;
            target.process.pause()?;
        }
        Ok(target)
    }

    /// A slice of whoever's turn it is, of a target of its own if the cell wants that.
    fn turn(&self, entrant: &Entrant, cell: &Cell, client: &Client) -> Result<Slice> {
        let mut place = entrant.target.borrow_mut();
        let slices_max = match cell.block_bytes >= LARGE_BYTES && entrant.contender.uses_drive() {
            true => SLICES_OF_A_DRIVE,
            false => u32::MAX,
        };
        if entrant.slices.get() >= slices_max {
            *place = None;
            entrant.slices.set(0);
        }
        entrant.slices.set(entrant.slices.get().saturating_add(1));
        let target = match place.take() {
            Some(target) => target,
            None => self.prepared(entrant.contender, cell, client)?,
        };
        let slice = self.slice(&target, cell, client)?;
        let memory = target.process.memory()?.total_bytes();
        entrant.memory_bytes.set(memory);
        if !cell.state.is_used_up() {
            *place = Some(target);
        }
        Ok(slice)
    }

    /// What is used up is not used before it is measured.
    fn warm_up(&self, cell: &Cell) -> Duration {
        match cell.commands(self.settings.slice) {
            Some(_) => Duration::ZERO,
            None => self.settings.warm_up,
        }
    }

    fn slice_length(&self, cell: &Cell, client: &Client) -> Duration {
        let factor = if cell.half_core { HELD_LONGER } else { 1 };
        client.slice(self.settings.slice * factor)
    }

    /// One slice of a contender in a cell.
    fn slice(&self, target: &Target, cell: &Cell, client: &Client) -> Result<Slice> {
        let client = client.facing(target.contender);
        self.slices.set(self.slices.get() + 1);
        let demand = Demand {
            warm_up: self.warm_up(cell),
            duration: self.slice_length(cell, client),
            commands: cell.commands(self.settings.slice),
            ..Demand::of(cell, target, self.meter.client_core)
        };
        let demand = match demand.pattern {
            Pattern::Sequential | Pattern::Random => demand,
            Pattern::Every(_) => Demand {
                seed: self.slices.get(),
                ..demand
            },
        };
        self.meter.slice(target, client, &demand)
    }

    /// SPDK as it is by default, and those of its other ways of running that may be its best in
    /// this cell. Where there are too many for all to stay to the end, heats between them decide.
    /// A way that does not start is left out from then on.
    fn finalists(&mut self, cell: &Cell, client: &Client) -> Result<Vec<Target>> {
        let mut targets = Vec::new();
        for variant in self.spdk.clone() {
            let contender = Contender::Spdk(variant);
            match self.prepared(contender, cell, client) {
                Ok(target) => targets.push(target),
                Err(error) if variant != SpdkVariant::DEFAULT && !interrupted() => {
                    self.spdk.retain(|one| *one != variant);
                    self.skip(&contender.name(), &format!("{error:#}"));
                }
                Err(error) => return Err(error),
            }
        }
        if targets.len() <= FINALISTS_MAX {
            return Ok(targets);
        }
        let extent = Extent {
            cycles: HEATS,
            limit: self.settings.cell_limit,
        };
        let record = cycle::run(targets.len(), extent, |index| {
            self.slice(&targets[index], cell, client)
        })?;
        if !record.is_publishable() {
            // Nothing was decided; the cell finds the machine as busy, or measures all of them.
            return Ok(targets);
        }
        let figure = Figure::main(cell);
        let default = Contender::Spdk(SpdkVariant::DEFAULT);
        let mut order: Vec<usize> = (0..targets.len()).collect();
        order.sort_by(|one, other| {
            let standing = |index: usize| {
                let is_default = targets[index].contender == default;
                let value = median(&record.values(figure, index)).unwrap_or(0.0);
                (!is_default, figure.better().badness(value))
            };
            let ((rank, value), (other_rank, other_value)) = (standing(*one), standing(*other));
            rank.cmp(&other_rank).then(value.total_cmp(&other_value))
        });
        order.truncate(FINALISTS_MAX);
        let mut index = 0;
        targets.retain(|_| {
            index += 1;
            order.contains(&(index - 1))
        });
        Ok(targets)
    }

    /// System calls per I/O, where the kernel lets us count and the client tells how many I/Os.
    fn system_calls(&self, target: &Target, cell: &Cell, client: &Client) -> Result<Option<f64>> {
        let client = client.facing(target.contender);
        let demand = Demand {
            duration: self.slice_length(cell, client),
            ..Demand::of(cell, target, self.meter.client_core)
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

/// Who takes part in a cell.
#[derive(Default)]
struct Field {
    /// The subject first.
    entrants: Vec<Entrant>,
    /// Where SPDK's finalists begin, its default first; 0 without SPDK.
    spdk: usize,
    roles: Vec<Role>,
}

/// One who takes part.
struct Entrant {
    contender: Contender,
    /// None where every slice has one of its own.
    target: RefCell<Option<Target>>,
    /// That the target had.
    slices: Counter<u32>,
    /// Of the last one, where every slice has one of its own.
    memory_bytes: Counter<u64>,
}

impl Entrant {
    fn running(target: Target) -> Self {
        Self {
            contender: target.contender,
            target: RefCell::new(Some(target)),
            slices: Counter::new(0),
            memory_bytes: Counter::new(0),
        }
    }
}

/// Whom the subject is compared with, and as what.
struct Role {
    /// Among the entrants.
    place: usize,
    name: String,
}

impl Field {
    fn add(&mut self, entrant: Entrant, role: &str) {
        self.roles.push(Role {
            place: self.entrants.len(),
            name: role.to_owned(),
        });
        self.entrants.push(entrant);
    }

    /// SPDK's best is who has the best median of all slices of the cell: the choice is made in
    /// SPDK's favour, and with as many slices as the comparison.
    fn name_best(&mut self, record: &Record, figure: Figure) {
        if self.spdk == 0 {
            return;
        }
        let is_spdk = |one: &&Entrant| matches!(one.contender, Contender::Spdk(_));
        let count = self.entrants.iter().filter(is_spdk).count();
        let badness = |index: &usize| {
            let value = median(&record.values(figure, *index)).unwrap_or(0.0);
            figure.better().badness(value)
        };
        let best = (self.spdk..self.spdk + count)
            .min_by(|one, other| badness(one).total_cmp(&badness(other)));
        let roles = [("spdk-best", best), ("spdk-default", Some(self.spdk))];
        let roles = roles.into_iter().filter_map(|(name, place)| {
            let name = name.to_owned();
            place.map(|place| Role { place, name })
        });
        self.roles.splice(1..1, roles);
    }
}
