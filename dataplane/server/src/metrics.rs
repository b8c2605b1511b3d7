//! Metrics in the OpenMetrics text format, gathered anew at each scrape.

mod pool;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::State as Shared;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bowline_nvmf::target::{IoCounters, TargetCounters};
use bowline_tcp::target::Work;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use self::pool::PoolScrape;
use crate::observe::{self, Observation};
use crate::service::Management;
use crate::view;

/// What Prometheus expects of the format.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Time for every reactor to answer; a scraper gives up after ten seconds.
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(5);

/// Labels of the exemplars that these counters never carry.
type NoExemplar = [(&'static str, &'static str); 0];

/// Answers `GET /metrics`.
pub(crate) fn router(management: Management) -> Router {
    Router::new()
        .route("/metrics", get(scrape))
        .with_state(management)
}

async fn scrape(Shared(management): Shared<Management>) -> Response {
    match tokio::time::timeout(SCRAPE_TIMEOUT, gather(&management)).await {
        Ok(Some(text)) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Ok(None) | Err(_) => (
            StatusCode::SERVICE_UNAVAILABLE,
            "a reactor does not answer\n",
        )
            .into_response(),
    }
}

async fn gather(management: &Management) -> Option<String> {
    let (fleet, subsystems, namespaces, started) = {
        let state = management.state.lock().await;
        let catalog = &state.manager.catalog;
        let namespaces = catalog.namespaces().count();
        let fleet = Arc::clone(&state.manager.fleet);
        (fleet, catalog.subsystems.len(), namespaces, state.started)
    };
    let reactors = observe::all(&fleet).await.ok()?;
    let pool = pool::observe(management).await;
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Scrape {
        reactors,
        pool,
        subsystems,
        namespaces,
        started,
    }));
    let mut text = String::new();
    encode(&mut text, &registry).ok()?;
    Some(text)
}

#[derive(Debug)]
struct Scrape {
    reactors: Vec<Observation>,
    pool: Option<PoolScrape>,
    subsystems: usize,
    namespaces: usize,
    started: SystemTime,
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        self.encode_process(&mut encoder)?;
        self.encode_target(&mut encoder)?;
        if let Some(pool) = &self.pool {
            pool.encode(&mut encoder)?;
        }
        self.encode_buffers(&mut encoder)?;
        self.encode_reactors(&mut encoder)
    }
}

impl Scrape {
    fn encode_process(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let info = "bowline_build_info";
        let mut metric = gauge(encoder, info, "The executable; always 1")?;
        metric
            .encode_family(&[("version", env!("CARGO_PKG_VERSION"))])?
            .encode_gauge(&1_i64)?;
        let started = self
            .started
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs_f64();
        gauge(
            encoder,
            "bowline_server_start_time_seconds",
            "Start, in seconds since 1970",
        )?
        .encode_gauge(&started)?;
        let subsystems = i64::try_from(self.subsystems).unwrap_or(i64::MAX);
        gauge(encoder, "bowline_server_subsystems", "Subsystems served")?
            .encode_gauge(&subsystems)?;
        let namespaces = i64::try_from(self.namespaces).unwrap_or(i64::MAX);
        gauge(encoder, "bowline_server_namespaces", "Namespaces served")?.encode_gauge(&namespaces)
    }

    fn encode_target(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "I/O commands completed without error";
        self.encode_io(encoder, "bowline_target_commands", "op", help, |io| {
            vec![
                ("read", io.reads),
                ("write", io.writes),
                ("other", io.others),
            ]
        })?;
        let help = "Bytes moved by I/O commands completed without error";
        self.encode_io(encoder, "bowline_target_io_bytes", "op", help, |io| {
            vec![("read", io.read_bytes), ("write", io.written_bytes)]
        })?;
        let help = "I/O commands that a device ended with an error";
        self.encode_io(encoder, "bowline_target_errors", "cause", help, |io| {
            vec![
                ("media", io.media_errors),
                ("other", io.errors.saturating_sub(io.media_errors)),
            ]
        })?;
        self.encode_ana(encoder)?;
        let help = "NVMe/TCP connections now";
        let mut metric = gauge(encoder, "bowline_target_connections", help)?;
        for reactor in &self.reactors {
            let count = i64::try_from(reactor.connections.len()).unwrap_or(i64::MAX);
            metric
                .encode_family(&[("reactor", reactor.index.to_string())])?
                .encode_gauge(&count)?;
        }
        self.encode_connects(encoder)?;
        self.encode_work(encoder)
    }

    /// That no peer makes a turn long, and how often one was kept from it.
    fn encode_work(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        type Read = fn(&Work) -> u64;
        let largest: [(&str, &str, Read); 3] = [
            (
                "turn_bytes_max",
                "Most bytes taken from a connection in a turn",
                |it| it.turn_bytes_max,
            ),
            (
                "turn_pdus_max",
                "Most PDUs taken from a connection in a turn",
                |it| it.turn_pdus_max,
            ),
            (
                "carry_bytes_max",
                "Most bytes held back for a connection",
                |it| it.carry_bytes_max,
            ),
        ];
        for (name, help, read) in largest {
            let name = format!("bowline_target_{name}");
            let mut metric = gauge(encoder, &name, help)?;
            for reactor in &self.reactors {
                let value = i64::try_from(read(&reactor.work)).unwrap_or(i64::MAX);
                metric
                    .encode_family(&[("reactor", reactor.index.to_string())])?
                    .encode_gauge(&value)?;
            }
        }
        let counts: [(&str, &str, Read); 6] = [
            ("turns_cut", "Turns that left bytes for the next", |it| {
                it.turns_cut
            }),
            ("stalls", "Waits for a buffer before receiving", |it| {
                it.stalls
            }),
            ("parts", "Reads cut in parts for want of memory", |it| {
                it.parts
            }),
            ("unread", "Connections whose peers did not read", |it| {
                it.unread
            }),
            ("devices_vanished", "Devices that went away", |it| {
                it.vanished
            }),
            ("devices_returned", "Devices that came back", |it| {
                it.returned
            }),
        ];
        for (name, help, read) in counts {
            let name = format!("bowline_target_{name}");
            let mut metric = counter(encoder, &name, help)?;
            for reactor in &self.reactors {
                let labels = [("reactor", &*reactor.index.to_string())];
                put(&mut metric, &labels, read(&reactor.work))?;
            }
        }
        Ok(())
    }

    /// One series for each ANA group, which the operator makes.
    fn encode_ana(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "State of an ANA group; always 1";
        let mut metric = gauge(encoder, "bowline_target_ana_state", help)?;
        let subsystems = self.reactors.iter().flat_map(|reactor| &reactor.subsystems);
        for subsystem in subsystems {
            for group in subsystem.ana.iter().flat_map(|ana| &ana.groups) {
                let labels = [
                    ("subsystem", subsystem.nqn.clone()),
                    ("group", group.id.to_string()),
                    (
                        "state",
                        view::ana_state(group.state).as_str_name().to_owned(),
                    ),
                ];
                metric.encode_family(&labels)?.encode_gauge(&1_i64)?;
            }
        }
        let help = "Changes of the ANA log";
        let mut metric = counter(encoder, "bowline_target_ana_changes", help)?;
        for subsystem in self.reactors.iter().flat_map(|reactor| &reactor.subsystems) {
            if let Some(ana) = &subsystem.ana {
                put(&mut metric, &[("subsystem", &subsystem.nqn)], ana.changes)?;
            }
        }
        Ok(())
    }

    /// One series for each namespace and kind; namespaces are made by the operator, so
    /// they are bounded.
    fn encode_io(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        kind: &str,
        help: &str,
        values: impl Fn(&IoCounters) -> Vec<(&'static str, u64)>,
    ) -> fmt::Result {
        let mut metric = counter(encoder, name, help)?;
        for subsystem in self.reactors.iter().flat_map(|reactor| &reactor.subsystems) {
            for namespace in &subsystem.namespaces {
                let nsid = namespace.nsid.to_string();
                for (which, value) in values(&namespace.counters) {
                    let labels = [
                        ("subsystem", subsystem.nqn.as_str()),
                        ("nsid", &nsid),
                        (kind, which),
                    ];
                    put(&mut metric, &labels, value)?;
                }
            }
        }
        Ok(())
    }

    fn encode_connects(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        type Read = fn(&TargetCounters) -> u64;
        let rows: [(&str, &str, Read); 9] = [
            ("connections_opened", "Connections taken", |it| {
                it.connections_opened
            }),
            ("connections_refused", "Connections beyond a limit", |it| {
                it.connections_refused
            }),
            ("connects_accepted", "Connect commands accepted", |it| {
                it.connects_accepted
            }),
            ("connects_refused", "Connect commands refused", |it| {
                it.connects_refused
            }),
            (
                "terminated_by_us",
                "Connections ended by C2HTermReq",
                |it| it.terminated_by_us,
            ),
            (
                "terminated_by_host",
                "Connections ended by H2CTermReq",
                |it| it.terminated_by_host,
            ),
            ("timed_out", "Connections on which nothing happened", |it| {
                it.timed_out
            }),
            ("keep_alive_expired", "Associations of silent hosts", |it| {
                it.keep_alive_expired
            }),
            (
                "reservation_preemptions",
                "Preemptions of reservations that took effect",
                |it| it.reservation_preemptions,
            ),
        ];
        for (name, help, read) in rows {
            let name = format!("bowline_target_{name}");
            let mut metric = counter(encoder, &name, help)?;
            for reactor in &self.reactors {
                put(
                    &mut metric,
                    &[("reactor", &reactor.index.to_string())],
                    read(&reactor.target),
                )?;
            }
        }
        Ok(())
    }

    fn encode_buffers(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Buffers of a reactor's pool by size";
        let mut metric = gauge(encoder, "bowline_reactor_buffers", help)?;
        for reactor in &self.reactors {
            let index = reactor.index.to_string();
            for class in &reactor.buffers {
                let bytes = class.bytes.to_string();
                for (state, count) in [("free", class.free), ("used", class.used)] {
                    let labels = [
                        ("reactor", index.as_str()),
                        ("bytes", &bytes),
                        ("state", state),
                    ];
                    let count = i64::try_from(count).unwrap_or(i64::MAX);
                    metric.encode_family(&labels)?.encode_gauge(&count)?;
                }
            }
        }
        Ok(())
    }

    fn encode_reactors(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "I/O interface in use, and why it is not io_uring; always 1";
        let mut metric = gauge(encoder, "bowline_reactor_io_backend_info", help)?;
        for reactor in &self.reactors {
            let labels = [
                ("reactor", reactor.index.to_string()),
                ("backend", reactor.backend.backend.name().to_owned()),
                (
                    "fallback",
                    reactor.backend.fallback.clone().unwrap_or_default(),
                ),
            ];
            metric.encode_family(&labels)?.encode_gauge(&1_i64)?;
        }
        let Some(first) = self.reactors.first() else {
            return Ok(());
        };
        for (position, (name, _)) in first.counters.iter().enumerate() {
            let help = format!("Event loop: {}", name.replace('_', " "));
            let name = format!("bowline_reactor_{name}");
            let mut metric = counter(encoder, &name, &help)?;
            for reactor in &self.reactors {
                let value = reactor
                    .counters
                    .iter()
                    .nth(position)
                    .map_or(0, |(_, value)| value);
                put(
                    &mut metric,
                    &[("reactor", &reactor.index.to_string())],
                    value,
                )?;
            }
        }
        Ok(())
    }
}

fn gauge<'a>(
    encoder: &'a mut DescriptorEncoder<'_>,
    name: &'a str,
    help: &str,
) -> Result<MetricEncoder<'a>, fmt::Error> {
    encoder.encode_descriptor(name, help, None, MetricType::Gauge)
}

/// The format adds `_total` to the name.
fn counter<'a>(
    encoder: &'a mut DescriptorEncoder<'_>,
    name: &'a str,
    help: &str,
) -> Result<MetricEncoder<'a>, fmt::Error> {
    encoder.encode_descriptor(name, help, None, MetricType::Counter)
}

fn put(metric: &mut MetricEncoder<'_>, labels: &[(&str, &str)], value: u64) -> fmt::Result {
    metric
        .encode_family(&labels)?
        .encode_counter::<NoExemplar, u64, u64>(&value, None)
}
