//! Identify Controller. [BASE-2.0 §5.17.2.1], [NVM-1.0 §4.1.5.2]

use crate::ControllerId;
use crate::fabrics::Version;
use crate::layout::layout;

layout! {
    /// Identify Controller, CNS 01h. [BASE-2.0 §5.17.2.1]
    pub struct IdentifyController: 4096 bytes {
        /// PCI Vendor ID.
        vid: u16 = 0,
        /// PCI Subsystem Vendor ID.
        ssvid: u16 = 2,
        /// Serial Number, ASCII padded with spaces.
        sn: [u8; 20] = 4,
        /// Model Number, ASCII padded with spaces.
        mn: [u8; 40] = 24,
        /// Firmware Revision, ASCII padded with spaces.
        fr: [u8; 8] = 64,
        /// Recommended Arbitration Burst, a power of two.
        rab: u8 = 72,
        /// IEEE OUI, least significant byte first.
        ieee: [u8; 3] = 73,
        /// Controller Multi-Path I/O and Namespace Sharing Capabilities: `CMIC_*`.
        cmic: u8 = 76,
        /// Maximum Data Transfer Size, a power of two of `CAP.MPSMIN` pages; 0 is unlimited.
        /// See [`IdentifyController::transfer_bytes_max`].
        mdts: u8 = 77,
        /// Controller ID.
        cntlid: ControllerId = 78,
        /// Version.
        ver: Version = 80,
        /// RTD3 Resume Latency in µs; 0 is not reported.
        rtd3r: u32 = 84,
        /// RTD3 Entry Latency in µs, which bounds how long hosts wait for a shutdown; 0 is not
        /// reported.
        rtd3e: u32 = 88,
        /// Optional Asynchronous Events Supported, as
        /// [`crate::feature::AsyncEventConfig`].
        oaes: u32 = 92,
        /// Controller Attributes: `CTRATT_*`.
        ctratt: u32 = 96,
        /// Read Recovery Levels Supported.
        rrls: u16 = 100,
        /// Controller Type: `CNTRLTYPE_*`.
        cntrltype: u8 = 111,
        /// FRU Globally Unique Identifier.
        fguid: [u8; 16] = 112,
        /// Command Retry Delay Time 1, in 100 ms.
        crdt1: u16 = 128,
        /// Command Retry Delay Time 2, in 100 ms.
        crdt2: u16 = 130,
        /// Command Retry Delay Time 3, in 100 ms.
        crdt3: u16 = 132,
        /// NVM Subsystem Report.
        nvmsr: u8 = 253,
        /// VPD Write Cycle Information.
        vwci: u8 = 254,
        /// Management Endpoint Capabilities.
        mec: u8 = 255,
        /// Optional Admin Command Support.
        oacs: u16 = 256,
        /// Abort Command Limit, 0's based.
        acl: u8 = 258,
        /// Asynchronous Event Request Limit, 0's based. See [`IdentifyController::aers_max`].
        aerl: u8 = 259,
        /// Firmware Updates: `FRMW_*`, slots in bits 3:1.
        frmw: u8 = 260,
        /// Log Page Attributes: `LPA_*`.
        lpa: u8 = 261,
        /// Error Log Page Entries, 0's based. See [`IdentifyController::error_log_entries`].
        elpe: u8 = 262,
        /// Number of Power States Support, 0's based.
        npss: u8 = 263,
        /// Admin Vendor Specific Command Configuration.
        avscc: u8 = 264,
        /// Autonomous Power State Transition Attributes.
        apsta: u8 = 265,
        /// Warning Composite Temperature Threshold in kelvin.
        wctemp: u16 = 266,
        /// Critical Composite Temperature Threshold in kelvin.
        cctemp: u16 = 268,
        /// Maximum Time for Firmware Activation, in 100 ms.
        mtfa: u16 = 270,
        /// Host Memory Buffer Preferred Size, in 4 KiB.
        hmpre: u32 = 272,
        /// Host Memory Buffer Minimum Size, in 4 KiB.
        hmmin: u32 = 276,
        /// Total NVM Capacity in bytes.
        tnvmcap: u128 = 280,
        /// Unallocated NVM Capacity in bytes.
        unvmcap: u128 = 296,
        /// Replay Protected Memory Block Support.
        rpmbs: u32 = 312,
        /// Extended Device Self-test Time in minutes.
        edstt: u16 = 316,
        /// Device Self-test Options.
        dsto: u8 = 318,
        /// Firmware Update Granularity, in 4 KiB.
        fwug: u8 = 319,
        /// Keep Alive Support: granularity of KATO in 100 ms; 0 is no Keep Alive.
        kas: u16 = 320,
        /// Host Controlled Thermal Management Attributes.
        hctma: u16 = 322,
        /// Minimum Thermal Management Temperature in kelvin.
        mntmt: u16 = 324,
        /// Maximum Thermal Management Temperature in kelvin.
        mxtmt: u16 = 326,
        /// Sanitize Capabilities.
        sanicap: u32 = 328,
        /// Host Memory Buffer Minimum Descriptor Entry Size, in 4 KiB.
        hmminds: u32 = 332,
        /// Host Memory Maximum Descriptors Entries.
        hmmaxd: u16 = 336,
        /// NVM Set Identifier Maximum.
        nsetidmax: u16 = 338,
        /// Endurance Group Identifier Maximum.
        endgidmax: u16 = 340,
        /// ANA Transition Time in seconds.
        anatt: u8 = 342,
        /// Asymmetric Namespace Access Capabilities: `ANACAP_*`.
        anacap: u8 = 343,
        /// ANA Group Identifier Maximum.
        anagrpmax: u32 = 344,
        /// Number of ANA Group Identifiers.
        nanagrpid: u32 = 348,
        /// Persistent Event Log Size, in 64 KiB.
        pels: u32 = 352,
        /// Domain Identifier.
        domainid: u16 = 356,
        /// Max Endurance Group Capacity in bytes.
        megcap: u128 = 368,
        /// Submission Queue Entry Size: required in bits 3:0, maximum in 7:4, powers of two.
        sqes: u8 = 512,
        /// Completion Queue Entry Size: required in bits 3:0, maximum in 7:4, powers of two.
        cqes: u8 = 513,
        /// Maximum Outstanding Commands per I/O queue; not 0's based, mandatory in Fabrics.
        maxcmd: u16 = 514,
        /// Number of Namespaces: the largest NSID.
        nn: u32 = 516,
        /// Optional NVM Command Support: `ONCS_*`.
        oncs: u16 = 520,
        /// Fused Operation Support: `FUSES_*`.
        fuses: u16 = 522,
        /// Format NVM Attributes.
        fna: u8 = 524,
        /// Volatile Write Cache: `VWC_*`.
        vwc: u8 = 525,
        /// Atomic Write Unit Normal in blocks, 0's based.
        awun: u16 = 526,
        /// Atomic Write Unit Power Fail in blocks, 0's based.
        awupf: u16 = 528,
        /// I/O Command Set Vendor Specific Command Configuration.
        icsvscc: u8 = 530,
        /// Namespace Write Protection Capabilities.
        nwpc: u8 = 531,
        /// Atomic Compare & Write Unit in blocks, 0's based.
        acwu: u16 = 532,
        /// Optional Copy Formats Supported.
        ocfs: u16 = 534,
        /// SGL Support: `SGLS_*`.
        sgls: u32 = 536,
        /// Maximum Number of Allowed Namespaces; at most NN, not 0 with ANA.
        mnan: u32 = 540,
        /// Maximum Domain Namespace Attachments.
        maxdna: u128 = 544,
        /// Maximum I/O Controller Namespace Attachments.
        maxcna: u32 = 560,
        /// NVM Subsystem NVMe Qualified Name, NUL-terminated. Read with [`crate::nqn::Nqn`].
        subnqn: [u8; 256] = 768,
        /// I/O Queue Command Capsule Supported Size in 16 bytes, the SQE's 64 included. See
        /// [`IdentifyController::in_capsule_bytes_max`].
        ioccsz: u32 = 1792,
        /// I/O Queue Response Capsule Supported Size in 16 bytes: 1.
        iorcsz: u32 = 1796,
        /// In Capsule Data Offset in 16 bytes: 0.
        icdoff: u16 = 1800,
        /// Fabrics Controller Attributes: bit 0 static controller model.
        fcatt: u8 = 1802,
        /// Maximum SGL Data Block Descriptors.
        msdbd: u8 = 1803,
        /// Optional Fabrics Commands Support: bit 0 Disconnect.
        ofcs: u16 = 1804,
        /// Discovery Controller Type: 1 direct, 2 central.
        dctype: u8 = 1806,
        /// Power State 0: Maximum Power in 10 mW.
        psd0_mp: u16 = 2048,
        /// Power State 0: Entry Latency in µs.
        psd0_enlat: u32 = 2052,
        /// Power State 0: Exit Latency in µs.
        psd0_exlat: u32 = 2056,
    }
}

impl IdentifyController {
    /// CMIC: the subsystem may have several ports.
    pub const CMIC_PORTS: u8 = 1 << 0;
    /// CMIC: the subsystem may have several controllers.
    pub const CMIC_CONTROLLERS: u8 = 1 << 1;
    /// CMIC: asymmetric namespace access reporting.
    pub const CMIC_ANA: u8 = 1 << 3;
    /// CTRATT: 128-bit Host Identifier.
    pub const CTRATT_HOST_ID_128: u32 = 1 << 0;
    /// CTRATT: traffic based keep alive.
    pub const CTRATT_TBKAS: u32 = 1 << 6;
    /// CNTRLTYPE: an I/O controller.
    pub const CNTRLTYPE_IO: u8 = 1;
    /// CNTRLTYPE: a discovery controller.
    pub const CNTRLTYPE_DISCOVERY: u8 = 2;
    /// FRMW: slot 1 is read only.
    pub const FRMW_SLOT1_READ_ONLY: u8 = 1 << 0;
    /// LPA: SMART log per namespace.
    pub const LPA_SMART_PER_NAMESPACE: u8 = 1 << 0;
    /// LPA: Commands Supported and Effects log.
    pub const LPA_EFFECTS: u8 = 1 << 1;
    /// LPA: extended data, NUMDU and offsets.
    pub const LPA_EXTENDED: u8 = 1 << 2;
    /// LPA: Supported Log Pages log and its kin.
    pub const LPA_SUPPORTED_PAGES: u8 = 1 << 5;
    /// ANACAP: can report every state, bits 0 to 4.
    pub const ANACAP_STATES: u8 = 0x1F;
    /// ANACAP: ANAGRPID does not change while a namespace is attached.
    pub const ANACAP_GROUP_FIXED: u8 = 1 << 6;
    /// ANACAP: ANAGRPID of Identify Namespace is not 0.
    pub const ANACAP_GROUP_NONZERO: u8 = 1 << 7;
    /// SQES of 64-byte entries.
    pub const SQES_64: u8 = 0x66;
    /// CQES of 16-byte entries.
    pub const CQES_16: u8 = 0x44;
    /// ONCS: Compare.
    pub const ONCS_COMPARE: u16 = 1 << 0;
    /// ONCS: Dataset Management.
    pub const ONCS_DSM: u16 = 1 << 2;
    /// ONCS: Write Zeroes.
    pub const ONCS_WRITE_ZEROES: u16 = 1 << 3;
    /// ONCS: Save and Select of features.
    pub const ONCS_SAVE_SELECT: u16 = 1 << 4;
    /// ONCS: reservations.
    pub const ONCS_RESERVATIONS: u16 = 1 << 5;
    /// ONCS: Timestamp feature.
    pub const ONCS_TIMESTAMP: u16 = 1 << 6;
    /// ONCS: Verify.
    pub const ONCS_VERIFY: u16 = 1 << 7;
    /// ONCS: Copy.
    pub const ONCS_COPY: u16 = 1 << 8;
    /// OCFS: Copy descriptor format 0.
    pub const OCFS_FORMAT_0: u16 = 1 << 0;
    /// FUSES: Compare and Write.
    pub const FUSES_COMPARE_AND_WRITE: u16 = 1 << 0;
    /// VWC: there is a volatile write cache.
    pub const VWC_PRESENT: u8 = 1 << 0;
    /// VWC bits 2:1 = 10b: Flush of the broadcast NSID is not supported.
    pub const VWC_NO_BROADCAST_FLUSH: u8 = 0b10 << 1;
    /// VWC bits 2:1 = 11b: Flush of the broadcast NSID is supported.
    pub const VWC_BROADCAST_FLUSH: u8 = 0b11 << 1;
    /// SGLS bits 1:0 = 01b: SGLs are supported, without alignment demands.
    pub const SGLS_SUPPORTED: u32 = 1;
    /// SGLS: address as offset, so in-capsule data.
    pub const SGLS_OFFSET: u32 = 1 << 20;
    /// SGLS: Transport SGL Data Block.
    pub const SGLS_TRANSPORT: u32 = 1 << 21;
    /// OFCS: Disconnect.
    pub const OFCS_DISCONNECT: u16 = 1 << 0;

    /// Largest transfer of one command in bytes, for pages of `page_bytes_min` (4096 << MPSMIN);
    /// `None` if there is no limit.
    pub fn transfer_bytes_max(&self, page_bytes_min: u32) -> Option<u64> {
        match self.mdts {
            0 => None,
            mdts => {
                let factor = 1u64.checked_shl(u32::from(mdts)).unwrap_or(u64::MAX);
                Some(u64::from(page_bytes_min).saturating_mul(factor))
            }
        }
    }

    /// How many Asynchronous Event Requests may be outstanding, 1 to 256.
    pub const fn aers_max(&self) -> u16 {
        self.aerl as u16 + 1
    }

    /// Entries of the Error Information log, 1 to 256.
    pub const fn error_log_entries(&self) -> u16 {
        self.elpe as u16 + 1
    }

    /// Largest in-capsule data on I/O queues in bytes.
    pub const fn in_capsule_bytes_max(&self) -> u32 {
        self.ioccsz.saturating_mul(16).saturating_sub(64)
    }
}

layout! {
    /// Identify Controller of the NVM Command Set, CNS 06h with CSI 0. [NVM-1.0 §4.1.5.2]
    pub struct IdentifyNvmController: 4096 bytes {
        /// Verify Size Limit, a power of two of `CAP.MPSMIN` pages; 0 is none.
        vsl: u8 = 0,
        /// Write Zeroes Size Limit, likewise; 0 is none beyond NLB.
        wzsl: u8 = 1,
        /// Write Uncorrectable Size Limit, likewise.
        wusl: u8 = 2,
        /// Dataset Management Ranges Limit; 0 is none.
        dmrl: u8 = 3,
        /// Dataset Management Range Size Limit in blocks; 0 is none.
        dmrsl: u32 = 4,
        /// Dataset Management Size Limit in blocks; 0 is none.
        dmsl: u64 = 8,
    }
}
