//! What hosts and controllers may send when. [TCP-1.0 §3.3, §3.6]

use bowline_nvme::CommandId;
use bowline_nvme::opcode::{admin, fabrics};
use bowline_nvme::pdu::{Digests, R2t};

use super::referee::{
    C2H_DATA, CAPSULE_CMD, CAPSULE_RESP, FIELD, Fault, H2C_DATA, IC_REQ, IC_RESP, LIMIT, Pdu, R2T,
    RANGE, Rules, SEQUENCE, UNSUPPORTED, initialize,
};

const FLAG_LAST: u8 = 4;
const FLAG_SUCCESS: u8 = 8;
/// In the header of a command capsule.
const SGL_ADDRESS: usize = 8 + 24;
const SGL_LENGTH: usize = 8 + 32;
const SGL_KIND: usize = 8 + 39;
const SGL_BYTES: usize = 16;
const IN_CAPSULE: u8 = 0x01;
const TRANSPORT: u8 = 0x5A;
/// Fabrics and admin commands carry so much whatever the controller says of others.
const CONTROL_BYTES: u32 = 8192;

/// Data that was asked for and has not all come.
struct Transfer {
    cccid: u16,
    ttag: u16,
    next: u32,
    end: u32,
}

/// A host, as its controller has to judge it.
pub(crate) struct HostConduct {
    digests: Digests,
    has_begun: bool,
    pub(crate) icd_bytes: u32,
    pub(crate) maxh2cdata: u32,
    /// It is an I/O queue.
    pub(crate) is_io: bool,
    /// Commands that are outstanding, at most, and may be.
    pub(crate) outstanding: usize,
    pub(crate) outstanding_max: usize,
    transfers: Vec<Transfer>,
    /// Several commands had one id: which of them data is for cannot be told.
    pub(crate) is_ambiguous: bool,
    /// A command came that may have ended the connection: whether it is listened to is not known.
    pub(crate) is_in_doubt: bool,
}

impl HostConduct {
    pub(crate) fn new(icd_bytes: u32, maxh2cdata: u32) -> Self {
        Self {
            digests: Digests::NONE,
            has_begun: false,
            icd_bytes,
            maxh2cdata,
            is_io: false,
            outstanding: 0,
            outstanding_max: 0,
            transfers: Vec::new(),
            is_ambiguous: false,
            is_in_doubt: false,
        }
    }

    pub(crate) fn asked(&mut self, r2t: &R2t) {
        self.transfers.push(Transfer {
            cccid: r2t.cccid.0,
            ttag: r2t.ttag,
            next: r2t.r2to,
            end: r2t.r2to.saturating_add(r2t.r2tl),
        });
    }

    pub(crate) fn answered(&mut self, cid: CommandId) {
        self.transfers.retain(|transfer| transfer.cccid != cid.0);
    }

    fn capsule(&mut self, pdu: &Pdu) -> Option<Fault> {
        let (opcode, fctype) = (pdu.header[8], pdu.header[8 + 4]);
        let is_fabrics = opcode == admin::FABRICS;
        let (kind, length) = (pdu.header[SGL_KIND], pdu.u32(SGL_LENGTH));
        let is_empty = pdu.header[SGL_ADDRESS..][..SGL_BYTES]
            .iter()
            .all(|it| *it == 0);
        let mut reasons = Vec::new();
        match kind {
            TRANSPORT if pdu.data_bytes > 0 => {
                let fields = [4, 40, 47];
                reasons.extend(fields.map(|at| (FIELD, at)));
            }
            TRANSPORT => {}
            IN_CAPSULE => {
                if pdu.header[SGL_ADDRESS..][..8].iter().any(|it| *it != 0) {
                    reasons.push((UNSUPPORTED, 32));
                }
                if length != pdu.data_bytes {
                    reasons.push((FIELD, 40));
                }
                let is_plain = self.is_io && !is_fabrics;
                let most = if is_plain { 0 } else { CONTROL_BYTES };
                if pdu.data_bytes > most.max(self.icd_bytes) {
                    reasons.push((LIMIT, 0));
                }
            }
            _ if is_empty && pdu.data_bytes == 0 => {}
            _ => reasons.push((UNSUPPORTED, 47)),
        }
        if !reasons.is_empty() {
            return pdu.fault(reasons);
        }
        let ends = [fabrics::DISCONNECT, fabrics::PROPERTY_SET];
        self.is_in_doubt |= is_fabrics && ends.contains(&fctype);
        self.outstanding += 1;
        // How a controller counts commands that end meanwhile is its own affair.
        let is_many = self.outstanding > self.outstanding_max;
        let too_many = is_many.then(|| pdu.fault(vec![(SEQUENCE, 0), (LIMIT, 0)]));
        too_many.flatten().map(|fault| fault.owed(false))
    }

    fn data(&mut self, pdu: &Pdu) -> Option<Fault> {
        let (cccid, ttag) = (pdu.u16(8), pdu.u16(10));
        let (datao, datal) = (pdu.u32(12), pdu.u32(16));
        let mut reasons = Vec::new();
        if datal != pdu.data_bytes {
            reasons.push((FIELD, 16));
        }
        let found = self.transfers.iter().position(|it| it.ttag == ttag);
        let Some(at) = found else {
            reasons.extend([(SEQUENCE, 0), (FIELD, 10)]);
            return self.unless_ambiguous(pdu, reasons);
        };
        let transfer = &mut self.transfers[at];
        let end = datao.checked_add(datal);
        if cccid != transfer.cccid {
            reasons.extend([(SEQUENCE, 0), (FIELD, 8)]);
        }
        if datal > self.maxh2cdata {
            reasons.push((LIMIT, 0));
        }
        if datao != transfer.next || end.is_none_or(|end| end > transfer.end) {
            reasons.push((RANGE, 0));
        }
        if (pdu.flags() & FLAG_LAST != 0) != (end == Some(transfer.end)) {
            reasons.push((FIELD, 1));
        }
        if reasons.is_empty() {
            transfer.next += datal;
            if transfer.next == transfer.end {
                self.transfers.remove(at);
            }
        }
        self.unless_ambiguous(pdu, reasons)
    }

    fn unless_ambiguous(&self, pdu: &Pdu, reasons: Vec<(u16, u32)>) -> Option<Fault> {
        let fault = if self.is_ambiguous {
            let any = [
                (SEQUENCE, 0),
                (RANGE, 0),
                (LIMIT, 0),
                (FIELD, 1),
                (FIELD, 10),
                (FIELD, 16),
            ];
            pdu.fault(any.to_vec())
        } else {
            pdu.fault(reasons)
        };
        fault.map(|fault| fault.owed(!self.is_ambiguous))
    }
}

impl Rules for HostConduct {
    fn judge(&mut self, pdu: &Pdu) -> Option<Fault> {
        match (self.has_begun, pdu.kind()) {
            (false, IC_REQ) => {
                let mut reasons = Vec::new();
                self.digests = initialize(pdu, &mut reasons);
                self.has_begun = true;
                pdu.fault(reasons)
            }
            (true, CAPSULE_CMD) => self.capsule(pdu),
            (true, H2C_DATA) => self.data(pdu),
            (_, kind) => {
                // A header that is wrong by itself may be called that.
                let mut reasons = vec![(SEQUENCE, 0)];
                match kind {
                    IC_REQ => drop(initialize(pdu, &mut reasons)),
                    H2C_DATA if pdu.u32(16) != pdu.data_bytes => reasons.push((FIELD, 16)),
                    _ => {}
                }
                pdu.fault(reasons)
            }
        }
    }

    fn digests(&self) -> Digests {
        self.digests
    }
}

/// Which way the data of a command goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    ToController,
    ToHost,
    None,
}

/// A command that a host has sent and that is not answered.
struct Command {
    cid: u16,
    way: Way,
    len: u32,
    moved: u32,
    /// Data up to here was asked for.
    granted: Option<u32>,
    has_all: bool,
}

/// A controller, as its host has to judge it.
pub(crate) struct ControllerConduct {
    wanted: Digests,
    digests: Digests,
    has_begun: bool,
    has_flow_control: bool,
    commands: Vec<Command>,
    /// An answer came, after which the host may want to end the connection.
    pub(crate) is_in_doubt: bool,
}

impl ControllerConduct {
    pub(crate) fn new(wanted: Digests, has_flow_control: bool) -> Self {
        Self {
            wanted,
            digests: Digests::NONE,
            has_begun: false,
            has_flow_control,
            commands: Vec::new(),
            is_in_doubt: false,
        }
    }

    /// The host has sent this PDU.
    pub(crate) fn sent(&mut self, header: &[u8], data_bytes: u32) {
        let pdu = Pdu {
            header: header.to_vec(),
            data_bytes,
        };
        match pdu.kind() {
            CAPSULE_CMD => {
                let opcode = match pdu.header[8] {
                    admin::FABRICS => pdu.header[8 + 4],
                    opcode => opcode,
                };
                let len = pdu.u32(SGL_LENGTH);
                let way = match opcode & 3 {
                    _ if len == 0 => Way::None,
                    1 => Way::ToController,
                    2 => Way::ToHost,
                    _ => Way::None,
                };
                self.commands.push(Command {
                    cid: pdu.u16(8 + 2),
                    way,
                    len,
                    moved: data_bytes,
                    granted: None,
                    has_all: false,
                });
            }
            H2C_DATA => {
                let cid = pdu.u16(8);
                let command = self.commands.iter_mut().find(|it| it.cid == cid);
                let command = command.expect("data of a command that is outstanding");
                assert_eq!(command.moved, pdu.u32(12), "data is sent in order");
                command.moved += data_bytes;
                let granted = command.granted.expect("data that was asked for");
                assert!(command.moved <= granted, "data beyond what was asked for");
                if command.moved == granted {
                    command.granted = None;
                }
            }
            _ => {}
        }
    }

    fn command(&mut self, cid: u16) -> Option<&mut Command> {
        self.commands.iter_mut().find(|it| it.cid == cid)
    }

    fn ic_resp(&mut self, pdu: &Pdu) -> Option<Fault> {
        let mut reasons = Vec::new();
        self.digests = initialize(pdu, &mut reasons);
        if self.digests != self.wanted {
            reasons.extend([(FIELD, 11), (UNSUPPORTED, 11)]);
        }
        let maxh2cdata = pdu.u32(12);
        if maxh2cdata < 4096 || !maxh2cdata.is_multiple_of(4) {
            reasons.push((FIELD, 12));
        }
        self.has_begun = true;
        pdu.fault(reasons)
    }

    fn response(&mut self, pdu: &Pdu) -> Option<Fault> {
        let (cid, sqhd, status) = (pdu.u16(8 + 12), pdu.u16(8 + 8), pdu.u16(8 + 14) >> 1);
        let Some(at) = self.commands.iter().position(|it| it.cid == cid) else {
            let head = self.has_flow_control.then_some((FIELD, 16));
            return pdu.fault([(FIELD, 20)].into_iter().chain(head).collect());
        };
        let command = &self.commands[at];
        let mut reasons = Vec::new();
        if status & 0x7FF == 0 && command.way == Way::ToController && command.moved < command.len {
            reasons.push((SEQUENCE, 0));
        }
        // The queue may be smaller than this, which only its host knows.
        let is_beyond = self.has_flow_control && sqhd >= 8;
        if is_beyond {
            reasons.push((FIELD, 16));
        }
        let is_certain = !is_beyond || reasons.len() > 1 || sqhd >= 4096;
        self.commands.remove(at);
        self.is_in_doubt |= reasons.is_empty();
        pdu.fault(reasons).map(|fault| fault.owed(is_certain))
    }

    fn data(&mut self, pdu: &Pdu) -> Option<Fault> {
        let (cid, datao, datal) = (pdu.u16(8), pdu.u32(12), pdu.u32(16));
        let is_last = pdu.flags() & FLAG_LAST != 0;
        let is_success = pdu.flags() & FLAG_SUCCESS != 0;
        let mut reasons = Vec::new();
        if datal != pdu.data_bytes {
            reasons.push((FIELD, 16));
        }
        if is_success && (!is_last || self.has_flow_control) {
            reasons.push((FIELD, 1));
        }
        let Some(command) = self.command(cid).filter(|it| it.way == Way::ToHost) else {
            reasons.push((FIELD, 8));
            return pdu.fault(reasons);
        };
        if command.has_all {
            reasons.push((SEQUENCE, 0));
        }
        let end = datao.checked_add(datal);
        if datao != command.moved || end.is_none_or(|end| end > command.len) {
            reasons.push((RANGE, 0));
        }
        command.moved = command.moved.saturating_add(datal);
        command.has_all = is_last;
        if is_success {
            self.commands.retain(|it| it.cid != cid);
            self.is_in_doubt |= reasons.is_empty();
        }
        pdu.fault(reasons)
    }

    fn r2t(&mut self, pdu: &Pdu) -> Option<Fault> {
        let (cid, r2to, r2tl) = (pdu.u16(8), pdu.u32(12), pdu.u32(16));
        let mut reasons = Vec::new();
        if r2tl == 0 {
            reasons.push((FIELD, 16));
        }
        let Some(command) = self.command(cid).filter(|it| it.way == Way::ToController) else {
            reasons.push((FIELD, 8));
            return pdu.fault(reasons);
        };
        // One at a time, as ICReq said.
        if command.granted.is_some() {
            reasons.push((LIMIT, 0));
        }
        let end = r2to.checked_add(r2tl).filter(|end| *end <= command.len);
        if r2to != command.moved || end.is_none() {
            reasons.push((RANGE, 0));
        }
        command.granted = end;
        pdu.fault(reasons)
    }
}

impl Rules for ControllerConduct {
    fn judge(&mut self, pdu: &Pdu) -> Option<Fault> {
        match (self.has_begun, pdu.kind()) {
            (false, IC_RESP) => self.ic_resp(pdu),
            (true, CAPSULE_RESP) => self.response(pdu),
            (true, C2H_DATA) => self.data(pdu),
            (true, R2T) => self.r2t(pdu),
            (_, kind) => {
                let mut reasons = vec![(SEQUENCE, 0)];
                match kind {
                    // Any field of it may be wrong, and be told first.
                    IC_RESP => reasons.extend([8, 10, 11, 12].map(|at| (FIELD, at))),
                    C2H_DATA | R2T => reasons.extend([1, 16].map(|at| (FIELD, at))),
                    _ => {}
                }
                pdu.fault(reasons)
            }
        }
    }

    fn digests(&self) -> Digests {
        self.digests
    }
}
