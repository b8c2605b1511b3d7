//! The data-plane process: reactors that serve, and one management thread that tells
//! them what. Tokio lives on that thread and never touches an I/O.
//!
//! ```text
//!   process ── prepare                  bind, lock and open before anything is promised
//!      │
//!      ├── fleet: reactor-0 … reactor-n   TargetService<Backing>, one thread each
//!      │       ▲                        one of them owns the pool, if there is one
//!      │       │ closures through bounded mailboxes
//!      ├── management: service ── manage ── catalog      gRPC, one change at a time
//!      │               │   volumes                        what the pool is asked, in steps
//!      │               metrics ── observe                Prometheus
//!      └── state: one thread that writes                 what outlives the process
//! ```
#![forbid(unsafe_code)]

mod admission;
mod allow;
mod backing;
mod catalog;
mod check;
mod config;
mod drive;
mod error;
mod fleet;
mod identity;
mod listen;
mod manage;
mod metrics;
mod names;
mod observe;
mod page;
mod pool;
mod prepare;
mod process;
mod requests;
mod service;
mod signals;
mod state;
mod takeover;
mod view;
mod volumes;

pub use config::{
    AnaState, BackingConfig, CONNECTIONS_MAX, Config, IN_CAPSULE_DATA_BYTES, IoBackend, Limits,
    MAX_TRANSFER_BYTES, MEMORY_BLOCK_BYTES, PollMode, QUEUE_DEPTH, QUEUES_PER_HOST_MAX, Referral,
    SPDK_BUILD, Serve, SpdkBuild, SpdkOptions, SpdkSource,
};
pub use error::{RunError, StartError};
pub use process::{Ready, run};
