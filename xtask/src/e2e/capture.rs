//! Judging captured traffic with a reader that is not ours: tshark's dissector of NVMe/TCP.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use crate::process;

/// One line a frame; what occurs several times in a frame is separated by commas.
const FIELDS: &[&str] = &[
    "frame.number",
    "nvme-tcp.type",
    "nvme-tcp.hdgst.status",
    "nvme-tcp.ddgst.status",
    "_ws.malformed",
    "tcp.analysis.lost_segment",
    "tcp.analysis.ack_lost_segment",
];
/// How tshark says that a checksum is right.
const GOOD: &str = "1";

/// PDU types that every capture of ours shows: ICReq, ICResp, both capsules, H2CData, C2HData, R2T.
const TYPES: &[&str] = &["0", "1", "4", "5", "6", "7", "9"];

/// What a capture held.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    /// PDUs by type.
    pdus: BTreeMap<String, u64>,
    header_digests: u64,
    data_digests: u64,
    /// Frames with something that should not be there, and what.
    offences: Vec<String>,
}

/// Reads a capture; NVMe/TCP is what goes to or comes from `port`.
pub(crate) fn read(file: &Path, port: u16) -> Result<Traffic> {
    let mut command = Command::new("tshark");
    command
        .args(["-n", "-r"])
        .arg(file)
        .args(["-d", &format!("tcp.port=={port},nvme-tcp")])
        .args(["-o", "nvme-tcp.check_hdgst:TRUE"])
        .args(["-o", "nvme-tcp.check_ddgst:TRUE"])
        .args(["-Y", &format!("tcp.port=={port}")])
        .args(["-T", "fields", "-E", "separator=;"]);
    for field in FIELDS {
        command.args(["-e", field]);
    }
    let mut traffic = Traffic::default();
    for line in process::capture(&mut command)?.lines() {
        traffic.count(line);
    }
    Ok(traffic)
}

impl Traffic {
    fn count(&mut self, line: &str) {
        let cells: Vec<&str> = line.split(';').collect();
        let cell = |index: usize| cells.get(index).copied().unwrap_or_default();
        let values = |index: usize| cell(index).split(',').filter(|value| !value.is_empty());
        for kind in values(1) {
            *self.pdus.entry(kind.to_owned()).or_default() += 1;
        }
        for (index, what, total) in [
            (2, "header digest", &mut self.header_digests),
            (3, "data digest", &mut self.data_digests),
        ] {
            for status in values(index) {
                *total += 1;
                if status != GOOD {
                    self.offences
                        .push(format!("frame {}: {what} is wrong", cell(0)));
                }
            }
        }
        for (index, what) in [
            (4, "malformed"),
            (5, "bytes are missing"),
            (6, "bytes are missing"),
        ] {
            if !cell(index).is_empty() {
                self.offences.push(format!("frame {}: {what}", cell(0)));
            }
        }
    }

    /// Every kind of PDU was there, and nothing wrong with any; digests wherever they were agreed on
    /// and nowhere else.
    pub(crate) fn check(&self, digests: bool) -> Result<()> {
        ensure!(
            self.offences.is_empty(),
            "{} offences, the first: {}",
            self.offences.len(),
            self.offences[..self.offences.len().min(5)].join("; ")
        );
        for kind in TYPES {
            ensure!(
                self.pdus.contains_key(*kind),
                "no PDU of type {kind}: {self:?}"
            );
        }
        let pdus: u64 = self.pdus.values().sum();
        let initializing: u64 = ["0", "1"]
            .iter()
            .filter_map(|kind| self.pdus.get(*kind))
            .sum();
        let expected = if digests { pdus - initializing } else { 0 };
        ensure!(
            self.header_digests == expected,
            "header digests are missing: {self:?}"
        );
        ensure!(
            (self.data_digests > 0) == digests,
            "data digests are missing: {self:?}"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frames that show every kind of PDU, with digests where there can be some.
    const WITH_DIGESTS: [&str; 3] = ["1;0;;;;;", "2;1;;;;;", "3;4,4,5,6,7,9;1,1,1,1,1,1;1,1;;;"];

    fn traffic(lines: &[&str]) -> Traffic {
        let mut traffic = Traffic::default();
        for line in lines {
            traffic.count(line);
        }
        traffic
    }

    #[test]
    fn whole_and_sound_traffic_passes() {
        assert!(traffic(&WITH_DIGESTS).check(true).is_ok());
        assert!(traffic(&["1;0,1,4,5,6,7,9;;;;;"]).check(false).is_ok());
    }

    #[test]
    fn anything_wrong_or_missing_fails() {
        assert!(traffic(&WITH_DIGESTS).check(false).is_err());
        for extra in [
            "4;5;0;;;;",
            "4;7;1;0;;;",
            "4;5;1;;1;;",
            "4;5;1;;;1;",
            "4;5;1;;;;1",
            "4;5;;;;;",
        ] {
            let lines = [WITH_DIGESTS.as_slice(), &[extra]].concat();
            assert!(traffic(&lines).check(true).is_err(), "{extra}");
        }
        assert!(traffic(&["1;0,1,4,5,6,7;;;;;"]).check(false).is_err());
        assert!(traffic(&[]).check(false).is_err());
    }
}
