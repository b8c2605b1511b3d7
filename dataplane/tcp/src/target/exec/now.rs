//! Devices that need not be waited for: plain Reads and Writes that run as they come.

use std::ops::Range;

use bowline_block::{Device, IoBuf, IoError, ViewedBuf};
use bowline_nvmf::target::{ConnId, IoCommand, IoOp};

use super::{Executor, Found, Unit};

/// A command that was run as it came, and that its device has failed. Only the usual way can tell
/// that; it does not run the command again, or a device would fail it twice, and a second attempt
/// that succeeds would hide the first.
pub(super) struct FailedNow {
    conn: ConnId,
    command: IoCommand,
    pub(super) error: IoError,
}

impl FailedNow {
    /// Of two that are the same either may be told.
    pub(super) fn is_of(&self, conn: ConnId, command: &IoCommand) -> bool {
        self.conn == conn && self.command == *command
    }
}

/// A Write that is answered first and made at once after.
pub(in super::super) struct LateWrite {
    unit: usize,
    lba: u64,
    /// Where its data is in what was received.
    data: Range<usize>,
}

impl<D: Device> Unit<D> {
    /// Whether a plain Read or Write may run without waiting for anything, itself included.
    fn runs_now(&self) -> bool {
        self.is_immediate && self.order.is_free() && self.backlog.is_empty() && !self.retiring
    }

    /// Runs a plain Read or Write on a device that need not be waited for. A Read's data stays in
    /// the medium if it can; `scratch` is used up if so.
    pub(super) fn run_now(
        &mut self,
        op: &IoOp,
        payload: Option<&IoBuf>,
        scratch: &mut Option<IoBuf>,
    ) -> Option<Result<Option<Found>, IoError>> {
        let bytes = |blocks: u32| blocks as usize * self.block_bytes as usize;
        match *op {
            IoOp::Read {
                lba,
                blocks,
                fua: false,
            } if self.runs_now() => {
                let mut into = scratch.take_if(|into| into.len() >= bytes(blocks))?;
                into.truncate(bytes(blocks));
                Some(self.read_now(lba, into).map(Some))
            }
            IoOp::Write { lba, blocks, .. } if self.runs_now() => {
                let data = payload?.get(..bytes(blocks))?;
                Some(self.device.write_now(lba, data).map(|()| None))
            }
            _ => None,
        }
    }

    /// Reads as many blocks as fit in `into`, which is used up.
    fn read_now(&mut self, lba: u64, mut into: IoBuf) -> Result<Found, IoError> {
        match self.device.view_now(lba, into.len()) {
            Ok(view) => {
                let viewed = ViewedBuf::new(view, into).map_err(|_| IoError::Internal)?;
                Ok(Found::InPlace(viewed))
            }
            Err(IoError::Unsupported) => {
                let bytes = into.as_mut().ok_or(IoError::Internal)?;
                self.device.read_now(lba, bytes)?;
                Ok(Found::Copied(into))
            }
            Err(error) => Err(error),
        }
    }
}

impl<D: Device> Executor<D> {
    /// Whether a command may be run as it comes: some device need not be waited for, and none has
    /// failed a command that is still to be answered.
    pub(in super::super) fn runs_now(&self) -> bool {
        self.immediate > 0 && self.failed_now.is_none()
    }

    /// Whether a failure is still to be told.
    pub(in super::super) fn has_failure(&self) -> bool {
        self.failed_now.is_some()
    }

    /// Everything that this connection has sent was started, or never will be.
    pub(in super::super) fn forget_failure(&mut self, conn: ConnId) {
        self.failed_now.take_if(|it| it.conn == conn);
    }

    /// Runs a Read if its device need not be waited for and nothing speaks against it, with what
    /// `alloc` has for so many bytes. `None`: [`start`](Self::start) it, also if the device failed,
    /// which is told there.
    pub(in super::super) fn read_now(
        &mut self,
        conn: ConnId,
        command: &IoCommand,
        alloc: impl FnOnce(usize) -> Option<IoBuf>,
    ) -> Option<Found> {
        let unit = self.unit_now(command)?;
        let IoOp::Read {
            lba, fua: false, ..
        } = command.op
        else {
            return None;
        };
        let result = unit.read_now(lba, alloc(command.bytes as usize)?);
        self.unless_failed(conn, command, result)
    }

    /// Runs a Write in the same way.
    pub(in super::super) fn write_now<'a>(
        &mut self,
        conn: ConnId,
        command: &IoCommand,
        data: impl FnOnce() -> Option<&'a [u8]>,
    ) -> Option<()> {
        let unit = self.unit_now(command)?;
        let IoOp::Write { lba, .. } = command.op else {
            return None;
        };
        let result = unit.device.write_now(lba, data()?);
        self.unless_failed(conn, command, result)
    }

    /// A Write that may be answered before it is [made](Self::make), with its data there in what was
    /// received: if its device can promise that it will not fail.
    pub(in super::super) fn write_late(
        &self,
        command: &IoCommand,
        data: Range<usize>,
    ) -> Option<LateWrite> {
        let index = self.place(command.namespace)?;
        let unit = self.units[index].as_ref().filter(|unit| unit.runs_now())?;
        let IoOp::Write { lba, .. } = command.op else {
            return None;
        };
        let is_sure = unit.device.is_write_sure(lba, data.len());
        is_sure.then_some(LateWrite {
            unit: index,
            lba,
            data,
        })
    }

    /// Makes a Write of which nothing but its answer has happened since
    /// [`write_late`](Self::write_late).
    ///
    /// # Panics
    /// When the device has broken its promise: the Write was answered, and must not be lost.
    pub(in super::super) fn make(&mut self, write: LateWrite, received: &[u8]) {
        let unit = self.units.get_mut(write.unit).and_then(Option::as_mut);
        let data = received.get(write.data);
        let made = unit
            .zip(data)
            .map(|(unit, data)| unit.device.write_now(write.lba, data));
        assert!(
            matches!(made, Some(Ok(()))),
            "a Write that was answered cannot be made: {made:?}"
        );
    }

    fn unless_failed<T>(
        &mut self,
        conn: ConnId,
        command: &IoCommand,
        result: Result<T, IoError>,
    ) -> Option<T> {
        let remember = |error| {
            self.failed_now = Some(FailedNow {
                conn,
                command: *command,
                error,
            });
        };
        result.map_err(remember).ok()
    }

    /// The command's device, if a plain command may run on it now.
    fn unit_now(&mut self, command: &IoCommand) -> Option<&mut Unit<D>> {
        let index = self.place(command.namespace)?;
        self.units[index].as_mut().filter(|unit| unit.runs_now())
    }
}
