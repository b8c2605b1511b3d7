//! Counters in blocks, which hosts increment together by Compare and Write, fused and with Force
//! Unit Access: every increment that was acknowledged counts, once.

use std::collections::BTreeMap;

use bowline_nvme::opcode::io;
use bowline_nvme::{Fuse, NamespaceId, Sqe};
use bowline_nvmf::host::command;

use super::model::{self, Value};

/// Blocks at the beginning of every device that are counters.
pub(crate) const COUNTERS: u64 = 4;
/// In the block of a counter, where others say which LBA they wrote.
const MARK: u64 = 0xC0;

#[derive(Debug, Default)]
struct Counter {
    /// Increments that succeeded.
    done: u64,
    /// Those that may yet succeed, or may have without anybody knowing.
    open: u64,
}

#[derive(Default)]
pub(crate) struct Counters {
    counters: BTreeMap<(u32, u64), Counter>,
    /// What hosts saw last.
    seen: BTreeMap<(usize, u32, u64), u64>,
}

fn value(count: u64) -> Value {
    if count == 0 { (0, 0) } else { (count, MARK) }
}

impl Counters {
    /// The two commands of an increment from what the host saw last, and their data; none if it
    /// has not looked.
    pub(crate) fn increment(
        &mut self,
        host: usize,
        device: u32,
        lba: u64,
    ) -> Option<[(Sqe, Vec<u8>); 2]> {
        let seen = self.seen.remove(&(host, device, lba))?;
        self.counters.entry((device, lba)).or_default().open += 1;
        let nsid = NamespaceId(device);
        let first = command::compare(nsid, lba, 0).with_fuse(Fuse::First);
        let second = command::write(nsid, lba, 0, true).with_fuse(Fuse::Second);
        let data = |count| model::encode(value(count)).to_vec();
        Some([(first, data(seen)), (second, data(seen + 1))])
    }

    pub(crate) fn look(device: u32, lba: u64) -> Sqe {
        Sqe::new(io::READ)
            .with_nsid(NamespaceId(device))
            .with_slba(lba)
    }

    /// How often the counter was incremented at least.
    pub(crate) fn least(&self, device: u32, lba: u64) -> u64 {
        self.counters.get(&(device, lba)).map_or(0, |it| it.done)
    }

    /// An increment was answered: it happened, or it did not.
    pub(crate) fn ended(&mut self, device: u32, lba: u64, happened: bool) {
        let counter = self.counters.entry((device, lba)).or_default();
        counter.open -= 1;
        counter.done += u64::from(happened);
    }

    /// A host that looked when the counter was at `least` saw this.
    pub(crate) fn saw(&mut self, host: usize, device: u32, lba: u64, least: u64, block: &[u8]) {
        let count = model::decode(block);
        assert_eq!(count, value(count.0), "not a counter");
        let counter = self.counters.entry((device, lba)).or_default();
        let most = counter.done + counter.open;
        assert!(
            (least..=most).contains(&count.0),
            "counter {lba} of device {device} is at {}, not {least}..={most}",
            count.0
        );
        self.seen.insert((host, device, lba), count.0);
    }
}
