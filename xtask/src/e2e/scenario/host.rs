//! What a host does with any data plane, wherever it runs and whatever its disk is.

use super::super::kernel_log::Phase;
use super::{DISK_BYTES, RESETS, SECTOR_BYTES, Scenario, Subject};

impl<S: Subject> Scenario<'_, S> {
    pub(super) fn connecting(&mut self) {
        self.guest_check("discovery lists the subsystem", Phase::Quiet, "discovers");
        self.guest_check(
            "host that is not allowed is refused",
            Phase::Refusal,
            "is_refused",
        );
        let several = "connects --nr-io-queues=2 --nr-write-queues=1 --nr-poll-queues=1";
        self.guest_check("connect with write and poll queues", Phase::Quiet, several);
        self.guest_check("all four queues serve", Phase::Quiet, "has_queues 4");
    }

    pub(super) fn asking(&mut self) {
        let list = format!("nvme_list {DISK_BYTES}");
        let id_ns = format!("nvme_id_ns {}", DISK_BYTES / SECTOR_BYTES);
        for (claim, command) in [
            ("nvme list shows the disk", list.as_str()),
            ("nvme list-subsys shows a live path", "nvme_list_subsys"),
            ("nvme id-ctrl is what we promise", "nvme_id_ctrl"),
            ("nvme id-ns is what we promise", id_ns.as_str()),
            ("nvme smart-log", "nvme_smart_log"),
            ("nvme error-log", "nvme_error_log"),
            ("nvme effects-log", "nvme_effects_log"),
            ("nvme get-feature", "nvme_get_feature"),
            ("nvme show-regs", "nvme_show_regs"),
            ("nvme fw-log, supported and changed logs", "nvme_other_logs"),
            ("unknown commands are refused", "refuses_unknown_commands"),
        ] {
            self.guest_check(claim, Phase::Quiet, command);
        }
    }

    pub(super) fn data(&mut self) {
        let verifies = format!("verifies_blocks {}", DISK_BYTES / SECTOR_BYTES);
        for (claim, command) in [
            (
                "fio verifies random I/O of 512 B to 1 MiB",
                "verifies_all_sizes",
            ),
            ("discard zeroes its range only", "discards"),
            ("write zeroes zeroes its range only", "writes_zeroes"),
            (
                "write zeroes and deallocate of single blocks",
                "zeroes_single_blocks",
            ),
            ("compare tells equal from different", "compares"),
            ("verify reads the medium", verifies.as_str()),
            ("copy puts ranges one behind the other", "copies"),
            ("flush and FUA", "flushes"),
            ("ext4 keeps files and passes fsck", "keeps_a_file_system"),
        ] {
            self.guest_check(claim, Phase::Quiet, command);
        }
    }

    /// The files of `perf/fio` as users have them, only shorter. What they measure is not judged: an
    /// emulated host says nothing of speed.
    pub(super) fn fio_jobs(&mut self) {
        for (claim, command) in [
            (
                "fio jobs do not write to what is in use",
                "spares_its_file_system",
            ),
            (
                "every fio job gives its rows without an error",
                "runs_every_fio_job",
            ),
        ] {
            self.guest_check(claim, Phase::Quiet, command);
        }
    }

    pub(super) fn resets(&mut self) {
        self.check(
            "controller resets under load lose nothing",
            Phase::Reset,
            |this| {
                this.guest.expect("load_starts")?;
                for _ in 0..RESETS {
                    this.guest.expect("resets")?;
                    this.guest.expect("load_goes_on")?;
                }
                this.load_ends()
            },
        );
    }

    pub(super) fn digests(&mut self) {
        self.guest_check("disconnect removes the disk", Phase::Quiet, "disconnects");
        let connect = "connects --hdr-digest --data-digest";
        self.guest_check(
            "connect with header and data digests",
            Phase::Quiet,
            connect,
        );
        let verify = "verifies_all_sizes";
        self.guest_check("fio verifies random I/O with digests", Phase::Quiet, verify);
        self.check(
            "controller reset with digests under load",
            Phase::Reset,
            |this| {
                this.guest.expect("load_starts")?;
                this.guest.expect("resets")?;
                this.load_ends()
            },
        );
        self.guest_check("disconnect after digests", Phase::Quiet, "disconnects");
    }
}
