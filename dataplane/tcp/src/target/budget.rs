//! Who may have how much of the pool.
//!
//! A connection may hold as much as a quarter of what is free: one alone a fifth of the pool, the
//! second as much of the rest, and so on. Shares shrink by themselves as more connections are
//! active, and what is free never ends because of those who hold much already.
//!
//! Beside the pool every connection has two buffers of its own, so that it never waits for
//! others: one for data that arrives in a capsule, which its device gives back, and one for a
//! part of a transfer when it holds nothing else. The first is twice as large when it is for a fused
//! pair. Their memory is taken only when they are used; an engine's, which is taken at once, only
//! as connections come.

use bowline_block::{BufPool, ClassConfig, IoBuf, PoolConfig, PoolMemory};
use bowline_nvmf::target::TargetConfig;

use super::exec::Found;

/// A connection holds at most one part in so many of what is free.
const SHARE: usize = 4;

/// Buffers of each connection's own.
const RESERVED: usize = 2;

/// Fabrics and admin commands carry this much whatever else is configured. [TCP-1.0 §3.3.2.2]
const CONTROL_BYTES: usize = 8192;

/// Pool memory that is counted against a connection.
#[derive(Clone, Copy, Default)]
pub(super) struct Charge {
    /// Of the pool and of the connection's own buffers.
    pub(super) bytes: usize,
    /// Its own buffers for data in a capsule.
    pub(super) landings: u16,
}

impl Charge {
    /// For a buffer of the pool, or the one for a part of a transfer. The whole buffer counts,
    /// however little of it is used.
    pub(super) fn of(buffer: &IoBuf) -> Self {
        Self {
            bytes: buffer.buffer_bytes(),
            landings: 0,
        }
    }

    /// For the buffer of what a Read has found, filled or not.
    pub(super) fn of_found(found: &Found) -> Self {
        let bytes = match found {
            Found::Copied(buffer) => buffer.buffer_bytes(),
            Found::InPlace(viewed) => viewed.buffer_bytes(),
        };
        Self { bytes, landings: 0 }
    }

    /// For the connection's own buffer for data in a capsule.
    fn landing(buffer: &IoBuf) -> Self {
        Self {
            landings: 1,
            ..Self::of(buffer)
        }
    }

    pub(super) fn add(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.landings += other.landings;
    }

    pub(super) fn sub(&mut self, other: Self) {
        self.bytes -= other.bytes;
        self.landings -= other.landings;
    }

    pub(super) const fn is_none(self) -> bool {
        self.bytes == 0
    }
}

/// Why a connection gets no buffer now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// It holds some, which come back.
    Own,
    /// It holds nothing and needs a buffer in one piece: it is its turn when one is free.
    Pool,
}

/// What is asked for.
pub(super) struct Request {
    pub(super) bytes: usize,
    /// Larger buffers are for somebody who waits.
    pub(super) ceiling_bytes: usize,
    /// What the connection holds.
    pub(super) held: Charge,
}

/// Connections for which an engine's memory is taken at a time.
const CONNECTIONS_PER_PART: usize = 64;

/// The buffers that connections have beside the pool.
pub(super) struct Reserve {
    memory: PoolMemory,
    parts: Vec<BufPool>,
    /// Connections that each part has buffers for.
    part_connections: usize,
    bytes: usize,
}

impl Reserve {
    /// Memory for the most connections there can be; none of it is touched yet. Without address
    /// space for it, connections wait for the pool. Of an engine's there is none before
    /// [`make_room`](Self::make_room).
    pub(super) fn new(config: &TargetConfig, memory: &PoolMemory) -> Self {
        let icd_bytes = config.icd_bytes as usize;
        let connections = config.connections_max as usize;
        let mut reserve = Self {
            memory: memory.clone(),
            parts: Vec::new(),
            part_connections: connections,
            bytes: icd_bytes.max(CONTROL_BYTES).next_multiple_of(4096),
        };
        if memory.is_engines() {
            reserve.part_connections = connections.min(CONNECTIONS_PER_PART);
        } else {
            reserve.parts.extend(reserve.part());
        }
        reserve
    }

    fn part(&self) -> Option<BufPool> {
        let class = |bytes, count| ClassConfig { bytes, count };
        // A fused pair has one buffer for the data of both, which may come in two capsules.
        let classes = vec![
            class(self.bytes, RESERVED * self.part_connections),
            class(2 * self.bytes, self.part_connections),
        ];
        self.memory.pool(PoolConfig { classes }).ok()
    }

    /// Whether so many connections can have their buffers. Always, but in an engine's memory.
    pub(super) fn make_room(&mut self, connections: usize) -> bool {
        while self.memory.is_engines() && self.parts.len() * self.part_connections < connections {
            let Some(part) = self.part() else {
                return false;
            };
            self.parts.push(part);
        }
        true
    }

    /// Size of each buffer, but for that of a pair in capsules.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Buffers in use.
    pub(super) fn used(&self) -> usize {
        let classes = self.parts.iter().flat_map(|part| part.stats().classes);
        classes.map(|class| class.used).sum()
    }

    fn alloc(&self, bytes: usize) -> Option<IoBuf> {
        self.parts.iter().find_map(|part| part.alloc(bytes))
    }
}

/// What a connection that holds `held` may have besides.
pub(super) fn room(pool: &BufPool, held: Charge) -> usize {
    (pool.free_bytes() / SHARE).saturating_sub(held.bytes)
}

/// A buffer for data that arrives in a capsule. `None` only while the connection's own one is in
/// use, which its device gives back.
pub(super) fn for_capsule(
    pool: &BufPool,
    reserve: &Reserve,
    request: &Request,
) -> Option<(IoBuf, Charge)> {
    if let Some(buffer) = shared(pool, request) {
        let charge = Charge::of(&buffer);
        return Some((buffer, charge));
    }
    if request.held.landings > 0 {
        return None;
    }
    let buffer = reserve.alloc(request.bytes)?;
    let charge = Charge::landing(&buffer);
    Some((buffer, charge))
}

/// A buffer for all that is asked for, within the connection's share.
pub(super) fn shared(pool: &BufPool, request: &Request) -> Option<IoBuf> {
    let most = room(pool, request.held).min(request.ceiling_bytes);
    pool.alloc_within(request.bytes, most)
}

/// What a connection gets when [`shared`] has nothing for it: if it holds nothing, as large a
/// part as there is, which may be cut at `unit` bytes, or one of its own buffers.
pub(super) fn for_standstill(
    pool: &BufPool,
    reserve: &Reserve,
    request: &Request,
    unit: Option<usize>,
) -> Result<IoBuf, Wait> {
    if !request.held.is_none() {
        return Err(Wait::Own);
    }
    if request.bytes <= reserve.bytes {
        return reserve.alloc(request.bytes).ok_or(Wait::Pool);
    }
    let Some(unit) = unit.filter(|&unit| unit <= reserve.bytes) else {
        // Only in one piece: whoever holds nothing may go beyond its share for that.
        let whole = pool.alloc_within(request.bytes, request.ceiling_bytes);
        return whole.ok_or(Wait::Pool);
    };
    let most = room(pool, request.held).min(request.ceiling_bytes);
    let largest = pool.largest_free(most).filter(|&it| it > reserve.bytes);
    if let Some(buffer) = largest.and_then(|largest| {
        let part = request.bytes.min(largest) / unit * unit;
        pool.alloc_within(part, largest)
    }) {
        return Ok(buffer);
    }
    reserve.alloc(reserve.bytes / unit * unit).ok_or(Wait::Pool)
}

#[cfg(test)]
mod tests {
    use bowline_block::Mapping;
    use proptest::prelude::*;

    use super::*;

    fn pool(classes: &[(usize, usize)]) -> BufPool {
        let classes = classes
            .iter()
            .map(|&(bytes, count)| ClassConfig { bytes, count })
            .collect();
        BufPool::new(PoolConfig { classes }).expect("memory")
    }

    fn reserve(connections_max: u32) -> Reserve {
        reserve_in(connections_max, &PoolMemory::default())
    }

    fn reserve_in(connections_max: u32, memory: &PoolMemory) -> Reserve {
        let config = TargetConfig {
            connections_max,
            ..TargetConfig::default()
        };
        Reserve::new(&config, memory)
    }

    fn request(bytes: usize, held: Charge) -> Request {
        Request {
            bytes,
            ceiling_bytes: usize::MAX,
            held,
        }
    }

    const MIB: usize = 1 << 20;

    /// Connections came one after the other and took what they could. The first eight had all.
    #[test]
    fn shares_shrink_with_the_number_of_active_connections_and_never_end() {
        let pool = pool(&[(4096, 4096)]);
        let total = pool.total_bytes();
        let mut held = Vec::new();
        let mut shares: Vec<usize> = Vec::new();
        for _ in 0..20 {
            let mut charge = Charge::default();
            while let Some(buffer) = shared(&pool, &request(4096, charge)) {
                charge.add(Charge::of(&buffer));
                held.push(buffer);
            }
            shares.push(charge.bytes);
        }
        assert!(shares[0].abs_diff(total / 5) <= 4096, "{}", shares[0]);
        assert!(shares.is_sorted_by(|a, b| a >= b), "{shares:?}");
        assert!(
            shares[19] >= 4096 && pool.free_bytes() >= 4 * 4096,
            "{shares:?}"
        );
    }

    #[test]
    fn small_commands_do_not_take_large_buffers_beyond_their_share() {
        let pool = pool(&[(4096, 1), (MIB, 8)]);
        let mut charge = Charge::default();
        let mut held = Vec::new();
        while let Some(buffer) = shared(&pool, &request(512, charge)) {
            charge.add(Charge::of(&buffer));
            held.push(buffer);
        }
        assert_eq!((held.len(), charge.bytes), (2, 4096 + MIB));
    }

    #[test]
    fn connection_that_holds_nothing_always_gets_a_part() {
        let pool = pool(&[(4096, 16), (128 << 10, 4), (MIB, 1)]);
        let reserve = reserve(3);
        let _large = pool.alloc(MIB).expect("free");
        let none = Charge::default();
        let get = |bytes, unit| for_standstill(&pool, &reserve, &request(bytes, none), unit);
        let first = get(MIB, Some(4096)).expect("a part");
        assert_eq!(
            first.len(),
            128 << 10,
            "the largest there is within its share"
        );
        // Nothing is left of the pool: each connection has its own.
        let taken: Vec<IoBuf> = std::iter::from_fn(|| pool.alloc(512)).collect();
        assert_eq!(taken.len(), 19);
        let own: Vec<IoBuf> = (0..3)
            .map(|_| get(MIB, Some(4096)).expect("its own"))
            .collect();
        assert!(own.iter().all(|buffer| buffer.len() == reserve.bytes()));
        assert_eq!(get(512, None).expect("small").len(), 512);
        assert_eq!(get(64 << 10, None).err(), Some(Wait::Pool), "in one piece");
        let held = Charge::of(&own[0]);
        let more = for_standstill(&pool, &reserve, &request(512, held), None);
        assert_eq!(more.err(), Some(Wait::Own));
        // Capsules land whatever else is held, one at a time.
        let (_landing, mut charge) =
            for_capsule(&pool, &reserve, &request(8192, held)).expect("its own");
        charge.add(held);
        assert!(for_capsule(&pool, &reserve, &request(512, charge)).is_none());
        let pair = 2 * reserve.bytes();
        let (pair, _) = for_capsule(&pool, &reserve, &request(pair, held)).expect("for a pair");
        assert_eq!(pair.len(), 2 * reserve.bytes());
        drop(taken);
        assert!(for_capsule(&pool, &reserve, &request(512, charge)).is_some());
    }

    /// A part holds the buffers of 64 connections: 64 KiB each.
    #[test]
    fn engines_memory_is_taken_as_connections_come_and_refuses_those_it_has_none_for() {
        let left = std::sync::atomic::AtomicUsize::new(2 * 64 * (64 << 10));
        let memory = PoolMemory::from_source(move |bytes| {
            use std::sync::atomic::Ordering::Relaxed;
            left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(bytes))
                .map_err(|_| std::io::ErrorKind::OutOfMemory)?;
            Ok(Box::new(Mapping::new(bytes)?))
        });
        let mut reserve = reserve_in(4096, &memory);
        assert!(reserve.alloc(4096).is_none() && reserve.make_room(64));
        let taken: Vec<IoBuf> = std::iter::from_fn(|| reserve.alloc(4096)).collect();
        assert_eq!(taken.len(), 64 * (RESERVED + 1));
        assert!(reserve.make_room(65) && reserve.alloc(4096).is_some());
        assert_eq!(reserve.used(), taken.len());
        assert!(reserve.make_room(128) && !reserve.make_room(129));
        let mut plain = reserve_in(4096, &PoolMemory::default());
        assert!(plain.make_room(4096) && plain.parts.len() == 1);
    }

    #[test]
    fn who_waits_for_a_large_buffer_is_not_overtaken() {
        let pool = pool(&[(4096, 4), (MIB, 4)]);
        let ahead = Request {
            ceiling_bytes: MIB - 1,
            ..request(MIB, Charge::default())
        };
        let part = for_standstill(&pool, &reserve(1), &ahead, Some(512)).expect("a part");
        assert_eq!(part.buffer_bytes(), 16 << 10, "none of the large ones");
    }

    /// What one of several connections does.
    #[derive(Clone, Debug)]
    enum Step {
        /// A capsule brings so many bytes.
        Capsule(usize),
        /// A transfer needs a buffer, which may be cut at so many bytes.
        Transfer(usize, Option<usize>),
        /// One of its buffers comes back.
        Give(usize),
    }

    const CONNECTIONS: usize = 4;

    fn step() -> impl Strategy<Value = Step> {
        let bytes = prop_oneof![1_usize..=16 << 10, 1_usize..=MIB];
        let unit = prop::option::of(prop::sample::select(vec![512_usize, 4096]));
        prop_oneof![
            2 => (1_usize..=32 << 10).prop_map(Step::Capsule),
            4 => (bytes, unit).prop_map(|(bytes, unit)| Step::Transfer(bytes, unit)),
            4 => (0_usize..32).prop_map(Step::Give),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// The model is what each connection holds, buffer by buffer.
        #[test]
        fn any_order_of_taking_and_giving_keeps_the_accounts_and_each_connections_minimum(
            steps in prop::collection::vec((0..CONNECTIONS, step()), 1..200),
        ) {
            let pool = pool(&[(4096, 16), (64 << 10, 8), (MIB, 2)]);
            let reserve = reserve(4);
            prop_assert_eq!(reserve.bytes(), 16 << 10, "capsules are up to a pair of these");
            let total = pool.total_bytes();
            let mut charges = [Charge::default(); CONNECTIONS];
            let mut held: [Vec<(IoBuf, Charge)>; CONNECTIONS] = Default::default();
            for (who, step) in steps {
                let (free, before) = (pool.free_bytes(), charges[who]);
                let taken = match step {
                    Step::Give(at) => {
                        if !held[who].is_empty() {
                            let at = at % held[who].len();
                            charges[who].sub(held[who].swap_remove(at).1);
                        }
                        None
                    }
                    Step::Capsule(bytes) => {
                        let got = for_capsule(&pool, &reserve, &request(bytes, before));
                        prop_assert!(got.is_some() || before.landings > 0, "its own is free");
                        got
                    }
                    Step::Transfer(bytes, unit) => {
                        let request = request(bytes, before);
                        let got = shared(&pool, &request)
                            .ok_or(Wait::Own)
                            .or_else(|_| for_standstill(&pool, &reserve, &request, unit));
                        let minimum = unit.is_some() || bytes <= reserve.bytes();
                        match &got {
                            Ok(buffer) => prop_assert!(buffer.len() == bytes
                                || unit.is_some_and(|unit| buffer.len() % unit == 0)
                                    && buffer.len() < bytes),
                            Err(Wait::Own) => prop_assert!(!before.is_none()),
                            Err(Wait::Pool) => prop_assert!(before.is_none() && !minimum),
                        }
                        got.ok().map(|buffer| {
                            let charge = Charge::of(&buffer);
                            (buffer, charge)
                        })
                    }
                };
                if let Some((buffer, charge)) = taken {
                    charges[who].add(charge);
                    let from_pool = free - pool.free_bytes();
                    prop_assert!(from_pool == 0 || from_pool == charge.bytes);
                    let in_share = charges[who].bytes <= free / SHARE;
                    prop_assert!(from_pool == 0 || in_share || before.is_none());
                    held[who].push((buffer, charge));
                }
                let charged: usize = charges.iter().map(|it| it.bytes).sum();
                let buffers = held.iter().flatten();
                prop_assert_eq!(charged, buffers.map(|(it, _)| it.buffer_bytes()).sum::<usize>());
                prop_assert!(pool.free_bytes() <= total && charged >= total - pool.free_bytes());
                prop_assert!(charges.iter().all(|it| it.landings <= 1));
                prop_assert!(reserve.used() <= RESERVED * CONNECTIONS);
            }
            for (charge, held) in charges.iter_mut().zip(&mut held) {
                held.drain(..).for_each(|(_, it)| charge.sub(it));
                prop_assert!(charge.is_none() && charge.landings == 0);
            }
            prop_assert_eq!((pool.free_bytes(), reserve.used()), (total, 0));
        }
    }
}
