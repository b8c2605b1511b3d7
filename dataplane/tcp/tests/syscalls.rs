//! What the data path asks of the kernel when there is little to do, from the reactor's own
//! counters: commands one by one, a command after a pause, and the cost of doing nothing. What
//! bursts ask of it is counted on the real process: perf/guard/README.md.

mod common;
#[path = "common/engine.rs"]
mod engine;

use std::time::{Duration, Instant};

use bowline_nvme::Nanos;
use bowline_reactor::{Counters, IoBackend, PollMode, monotonic_now};
use bowline_tcp::host::HostOp;
use rustix::time::{ClockId, clock_gettime};

use common::harness::{self, Test};
use common::initiator::{Disk, Options};
use common::is_permitted;
use common::rig::Rig;

/// Most of a core that 16 idle connections may take, in per cent. Code without optimisation takes
/// several times as long for the same.
const IDLE_CPU_MAX: f64 = if cfg!(debug_assertions) { 0.5 } else { 0.1 };

/// Keep Alive Timeout of Linux hosts.
const LINUX_KATO: Duration = Duration::from_secs(5);

fn main() {
    let mut tests: Vec<Test> = Vec::new();
    for io in [IoBackend::Uring, IoBackend::Epoll] {
        let name = format!("{io:?}::next_command_finds_the_reactor_awake").to_lowercase();
        let test = move || {
            if is_permitted(io) {
                one_by_one(io);
            }
        };
        tests.push((name, Box::new(test)));
        let name = format!("{io:?}::command_after_a_pause_takes_one_turn").to_lowercase();
        let test = move || {
            if is_permitted(io) {
                pauses(io);
            }
        };
        tests.push((name, Box::new(test)));
        let name = format!("{io:?}::sixteen_idle_connections_sleep").to_lowercase();
        let test = move || {
            if is_permitted(io) {
                idle(io);
            }
        };
        tests.push((name, Box::new(test)));
    }
    harness::run(tests);
}

/// One command at a time from a host that sends the next as soon as it has the answer: what ends a
/// spin meanwhile (the end of the send, a timer) must not have the reactor sleep. Where it waits for a
/// processor it is right to sleep more often: spans in which others had it do not count, and of those
/// that do the best.
fn one_by_one(io: IoBackend) {
    const COMMANDS: u32 = 500;
    const SPANS: u32 = 20;
    let rig = Rig::new(io);
    let options = Options {
        io,
        poll: PollMode::Always,
        ..Options::default()
    };
    let mut disk = Disk::with(rig.address, options);
    let mut burst = disk.prepare(HostOp::Read, 1, 4096);
    let mut least = None;
    for _ in 0..SPANS {
        let before = rig.counters();
        let (begun, waited_before) = (Instant::now(), waited());
        (0..COMMANDS).for_each(|_| disk.burst(&mut burst));
        let is_quiet = waited().saturating_sub(waited_before) < begun.elapsed() / 10;
        let after = rig.counters();
        let sleeps = |counters: Counters| counters.parks + counters.warm_waits;
        let sleeps = sleeps(after) - sleeps(before);
        if is_quiet {
            least = Some(least.map_or(sleeps, |least: u64| least.min(sleeps)));
        }
    }
    let Some(least) = least else {
        println!("{io:?} 4 KiB reads one by one: the machine is busy with other things");
        return;
    };
    println!("{io:?} 4 KiB reads one by one: {least} sleeps for {COMMANDS} commands");
    assert!(
        least <= u64::from(COMMANDS / 10),
        "{least} sleeps for {COMMANDS} commands"
    );
}

/// How long the threads of this process were ready to run, and had no processor.
fn waited() -> Duration {
    let tasks = std::fs::read_dir("/proc/self/task").expect("our threads");
    let waited = tasks.filter_map(|task| {
        let stat = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        stat.split_whitespace().nth(1)?.parse::<u64>().ok()
    });
    Duration::from_nanos(waited.sum())
}

/// Commands too far apart to spin for: woken by each, the reactor answers and sleeps, instead of
/// waiting for the answer's completion as well and waking once more for nothing.
fn pauses(io: IoBackend) {
    const COMMANDS: u32 = 200;
    let rig = Rig::new(io);
    let options = Options {
        io,
        ..Options::default()
    };
    let mut disk = Disk::with(rig.address, options);
    let mut burst = disk.prepare(HostOp::Read, 1, 4096);
    let mut run = |count: u32| {
        for _ in 0..count {
            disk.rest(monotonic_now().after(Nanos::from_millis(1)));
            disk.burst(&mut burst);
        }
    };
    run(20);
    let before = rig.counters();
    run(COMMANDS);
    let after = rig.counters();
    let count = |now: u64, then: u64| f64::from(u32::try_from(now - then).expect("few"));
    let turns = count(after.turns, before.turns) / f64::from(COMMANDS);
    let calls = count(after.syscalls(), before.syscalls()) / f64::from(COMMANDS);
    println!("{io:?} 4 KiB read every millisecond: {turns:.2} turns, {calls:.2} system calls");
    assert!(turns <= 1.3, "{turns:.2} turns for a command");
    assert!(calls <= 3.5, "{calls:.2} system calls for a command");
}

/// What the reactor's thread has used of its processor so far.
fn cpu_time(rig: &Rig) -> Duration {
    rig.call(|_, _, _| {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        let (seconds, nanos) = (time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs());
        Duration::from_secs(seconds) + Duration::from_nanos(nanos)
    })
}

/// Sixteen hosts that do nothing but send Keep Alive, five times as often as Linux does, so that
/// the test need not take long. Wake-ups are counted as they are; processor time is what it would
/// be with Linux's time-out, since all of it goes by the Keep Alive.
fn idle(io: IoBackend) {
    const HOSTS: u32 = 16;
    const SPAN: Duration = Duration::from_secs(2);
    const SPANS: u32 = 3;
    let kato = LINUX_KATO / 5;
    let keep_alive = Nanos(u64::try_from(kato.as_nanos()).expect("seconds"));
    let rig = Rig::new(io);
    let options = Options {
        io,
        keep_alive,
        queues: 0,
        ..Options::default()
    };
    let mut disks: Vec<Disk> = (0..HOSTS)
        .map(|_| Disk::with(rig.address, options))
        .collect();
    let mut rest = |span: Duration| {
        let end = Instant::now() + span;
        while Instant::now() < end {
            for disk in &mut disks {
                disk.rest(monotonic_now().after(Nanos::from_millis(4)));
            }
        }
    };
    rest(kato);
    // What else the machine does only ever adds to processor time: the least of several spans is
    // the closest to what the reactor needs.
    let mut percent = f64::MAX;
    let before = rig.counters();
    for _ in 0..SPANS {
        let cpu = cpu_time(&rig);
        rest(SPAN);
        let used = cpu_time(&rig) - cpu;
        percent = percent.min(100.0 * used.as_secs_f64() / SPAN.as_secs_f64());
    }
    let after = rig.counters();
    // Two per time-out and host.
    let seconds = SPAN.as_secs_f64() * f64::from(SPANS);
    let keep_alives = 2.0 * f64::from(HOSTS) * seconds / kato.as_secs_f64();
    let count = |now: u64, then: u64| f64::from(u32::try_from(now - then).expect("few"));
    let wakeups = count(after.wakeups, before.wakeups);
    let parks = count(after.parks, before.parks);
    let turns = count(after.turns, before.turns);
    let as_linux = percent * kato.as_secs_f64() / LINUX_KATO.as_secs_f64();
    println!(
        "{io:?} idle, {HOSTS} hosts, {keep_alives} Keep Alives in {seconds} s: {wakeups} wake-ups, \
         {parks} parks, {turns} turns, {percent:.3} % of a core; at Linux's rate {as_linux:.3} %"
    );
    assert!(
        turns <= 1.2 * keep_alives + 20.0,
        "something else than Keep Alive wakes the reactor"
    );
    assert!(
        as_linux <= IDLE_CPU_MAX,
        "{as_linux:.3} % of a core for nothing"
    );
    assert!(
        disks.iter_mut().all(|disk| disk.losses() == 0),
        "Keep Alives were not honoured"
    );
}
