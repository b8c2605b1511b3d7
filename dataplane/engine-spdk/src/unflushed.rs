//! What a drive may have forgotten when it loses power.

/// Whether a change has ended that a host may believe in and no flush has covered since.
#[derive(Debug, Default)]
pub(crate) struct Unflushed {
    /// Changes that have ended without being on the medium, so far.
    changes: u64,
    /// As many of them are on the medium.
    flushed: u64,
    /// A flush on its way, and the changes that it covers. Others beside it count for nothing.
    flushing: Option<(u64, u64)>,
}

impl Unflushed {
    pub(crate) fn change(&mut self) {
        self.changes += 1;
    }

    /// A flush begins; `token` is its own.
    pub(crate) fn begin_flush(&mut self, token: u64) {
        if self.flushing.is_none() {
            self.flushing = Some((token, self.changes));
        }
    }

    pub(crate) fn end_flush(&mut self, token: u64, is_done: bool) {
        if let Some((own, covered)) = self.flushing
            && own == token
        {
            self.flushing = None;
            if is_done {
                self.flushed = covered;
            }
        }
    }

    pub(crate) const fn is_any(&self) -> bool {
        self.changes != self.flushed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flush_covers_what_had_ended_when_it_began() {
        let mut unflushed = Unflushed::default();
        assert!(!unflushed.is_any());
        unflushed.change();
        unflushed.begin_flush(1);
        unflushed.change();
        unflushed.end_flush(1, true);
        assert!(unflushed.is_any(), "the second came later");
        unflushed.begin_flush(2);
        unflushed.end_flush(2, false);
        assert!(unflushed.is_any(), "it failed");
        unflushed.begin_flush(3);
        unflushed.begin_flush(4);
        unflushed.end_flush(4, true);
        assert!(unflushed.is_any(), "nothing was noted of it");
        unflushed.end_flush(3, true);
        assert!(!unflushed.is_any());
    }
}
