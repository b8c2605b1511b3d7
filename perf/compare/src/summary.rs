//! From the record of a cell to what is reported of it.

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer, V2Serializer};

use crate::cell::Cell;
use crate::cgroup::HALF_CORE;
use crate::cycle::Record;
use crate::meter::Slice;
use crate::result::{Figure, FigureResult, Summary};
use crate::statistics::{Verdict, estimate, judge, median, noise};

/// A target that uses less of what it may use was not the limit.
const BUSY_MIN: f64 = 0.95;
/// A percentile is told only with so many samples beyond it.
const SAMPLES_BEYOND: u64 = 100;

/// What a contender's slices say together.
pub(crate) fn summarise(
    cell: &Cell,
    contender: &str,
    slices: &[Slice],
    system_calls_per_io: Option<f64>,
    memory_bytes: u64,
) -> Result<Summary> {
    let own: Vec<&Slice> = slices
        .iter()
        .filter(|slice| slice.accepted && slice.contender == contender)
        .collect();
    let middle = |value: fn(&Slice) -> f64| {
        let values: Vec<f64> = own.iter().map(|slice| value(slice)).collect();
        median(&values).unwrap_or(0.0)
    };
    let merged = merge(&own)?;
    let percentile = |quantile: f64, per_slice: fn(&Slice) -> Option<f64>| match &merged {
        Some(histogram) => told(histogram, quantile),
        None => median(
            &own.iter()
                .filter_map(|slice| per_slice(slice))
                .collect::<Vec<f64>>(),
        ),
    };
    let iops_per_cpu_second = middle(Slice::iops_per_cpu_second);
    let allowed = if cell.half_core { HALF_CORE } else { 1.0 };
    let busy_share = middle(|slice| slice.target_cores) / allowed;
    Ok(Summary {
        contender: contender.to_owned(),
        slices: own.len(),
        iops: middle(|slice| slice.iops),
        bytes_per_second: middle(|slice| slice.bytes_per_second),
        latency_p50_ns: percentile(0.5, |slice| Some(slice.latency_ns.p50)).unwrap_or(0.0),
        latency_p99_ns: percentile(0.99, |slice| slice.latency_ns.p99),
        latency_p99_9_ns: percentile(0.999, |slice| slice.latency_ns.p99_9),
        cpu_seconds_per_million_io: if iops_per_cpu_second > 0.0 {
            1e6 / iops_per_cpu_second
        } else {
            0.0
        },
        iops_per_cpu_second,
        busy_share,
        client_bound: busy_share < BUSY_MIN,
        system_calls_per_io,
        memory_bytes,
        share_of_limit: None,
        histogram: merged.map(|histogram| encode(&histogram)).transpose()?,
    })
}

/// Places of the subject and of its twin, whose pairs are the noise, in a cycle.
const SUBJECT: usize = 0;
const TWIN: usize = 1;

/// Compares the subject with one of the others in every figure that the client tells.
pub(crate) fn compare(record: &Record, other: usize, gated: bool) -> Vec<FigureResult> {
    let figures = Figure::ALL.iter().filter_map(|&figure| {
        let pairs = record.pairs(figure, SUBJECT, other);
        let same = record.pairs(figure, SUBJECT, TWIN);
        // What only some slices tell, percentiles of few commands, would be that of the fast ones.
        let is_told = |(one, other): &(f64, f64)| *one > 0.0 && *other > 0.0;
        if !pairs.iter().chain(&same).all(is_told) {
            return None;
        }
        let estimate = estimate(&pairs)?;
        let noise = noise(&same)?;
        Some(FigureResult {
            figure,
            estimate,
            noise,
            verdict: if gated {
                judge(&estimate, noise, figure.better())
            } else {
                Verdict::Ungated
            },
        })
    });
    figures.collect()
}

/// Latencies of all slices together; none when a slice has no histogram.
fn merge(slices: &[&Slice]) -> Result<Option<Histogram<u64>>> {
    let mut merged: Option<Histogram<u64>> = None;
    for slice in slices {
        let Some(text) = &slice.histogram else {
            return Ok(None);
        };
        let next = decode(text)?;
        match &mut merged {
            Some(sum) => {
                sum.auto(true);
                sum.add(&next).context("histograms do not fit together")?;
            }
            None => merged = Some(next),
        }
    }
    Ok(merged)
}

fn told(histogram: &Histogram<u64>, quantile: f64) -> Option<f64> {
    let value = histogram.value_at_quantile(quantile);
    let beyond = histogram.len() - histogram.count_between(0, value).min(histogram.len());
    let enough = beyond >= SAMPLES_BEYOND || quantile <= 0.5;
    enough.then_some(value as f64)
}

/// A histogram as text.
pub(crate) fn encode(histogram: &Histogram<u64>) -> Result<String> {
    let mut bytes = Vec::new();
    V2Serializer::new()
        .serialize(histogram, &mut bytes)
        .context("histogram")?;
    Ok(STANDARD.encode(bytes))
}

/// The median of a histogram as text; 0 of an empty one.
pub(crate) fn median_of(text: &str) -> Result<f64> {
    Ok(decode(text)?.value_at_quantile(0.5) as f64)
}

fn decode(text: &str) -> Result<Histogram<u64>> {
    let bytes = STANDARD.decode(text).context("histogram is not base64")?;
    let mut reader = bytes.as_slice();
    let histogram: Histogram<u64> = Deserializer::new()
        .deserialize(&mut reader)
        .ok()
        .context("histogram is not of the second format")?;
    Ok(histogram)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::Cell;
    use crate::client::Latency;

    fn slice(contender: &str, latency_ns: u64) -> Slice {
        let mut histogram = Histogram::<u64>::new(3).unwrap();
        histogram.record_n(latency_ns, 50_000).unwrap();
        Slice {
            contender: contender.to_owned(),
            foreign_share: 0.0,
            accepted: true,
            iops: 1000.0,
            bytes_per_second: 4096e3,
            latency_ns: Latency {
                p50: 1.0,
                p99: None,
                p99_9: None,
            },
            target_cores: 0.4,
            client_cpu_seconds: 1.0,
            commands: None,
            histogram: Some(encode(&histogram).unwrap()),
        }
    }

    #[test]
    fn percentiles_come_from_all_slices_of_the_contender() {
        let slices = [slice("A", 10_000), slice("B", 1), slice("A", 30_000)];
        let cell = Cell::all()[0];
        let summary = summarise(&cell, "A", &slices, None, 0).unwrap();
        assert_eq!(summary.slices, 2);
        assert!((summary.latency_p50_ns / 10_000.0 - 1.0).abs() < 0.01);
        // The 99th percentile lies within the largest value, so that nothing is beyond it.
        assert_eq!(summary.latency_p99_ns, None);
        assert!((summary.iops_per_cpu_second - 2500.0).abs() < 1e-6);
        assert!((summary.cpu_seconds_per_million_io - 400.0).abs() < 1e-6);
        assert!(summary.client_bound);
    }

    #[test]
    fn slice_without_histogram_falls_back_to_medians() {
        let mut slices = [slice("A", 10_000), slice("A", 10_000)];
        slices[1].histogram = None;
        slices[1].latency_ns.p50 = 3.0;
        let summary = summarise(&Cell::all()[0], "A", &slices, Some(2.0), 7).unwrap();
        assert!((summary.latency_p50_ns - 2.0).abs() < 1e-9);
        assert_eq!(summary.histogram, None);
        assert_eq!(summary.system_calls_per_io, Some(2.0));
    }
}
