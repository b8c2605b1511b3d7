//! Our hosts and our target, joined by a network in virtual time.
//!
//! Every run follows from its seed. `BOWLINE_SIM_SEEDS=10000 cargo test --release -p bowline-nvmf
//! --test sim` tries so many instead of the few that are always tried; `BOWLINE_SIM_SEED=7` runs
//! one again.

mod counters;
mod disk;
mod host_side;
mod model;
mod random;
mod rights;
mod scenarios;
mod target_side;
mod workload;
mod world;
