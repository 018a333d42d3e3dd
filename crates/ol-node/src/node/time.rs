//! The time of blocks to come, as far as it is not the clock's.

use ol_runtime::Clock;

/// The clock's time, moved by hand.
#[derive(Debug, Default)]
pub(crate) struct BlockTime {
    offset_s: i64,
    next_s: Option<u64>,
}

impl BlockTime {
    /// The time of a block made now, in Unix seconds.
    pub(crate) fn now_s(&self, clock: &dyn Clock) -> u64 {
        self.next_s
            .unwrap_or_else(|| clock.unix_s().saturating_add_signed(self.offset_s))
    }

    /// Sets the time of the next block.
    pub(crate) const fn set_next(&mut self, unix_s: u64) {
        self.next_s = Some(unix_s);
    }

    /// Moves all blocks to come, and returns how far they are ahead of the clock.
    pub(crate) const fn increase(&mut self, span_s: u64) -> i64 {
        self.offset_s = self.offset_s.saturating_add_unsigned(span_s);
        self.offset_s
    }

    /// The next block is made: time runs on from the one that was set.
    pub(crate) fn arrive(&mut self, clock: &dyn Clock) {
        if let Some(next_s) = self.next_s.take() {
            let offset_s = i128::from(next_s) - i128::from(clock.unix_s());
            self.offset_s = i64::try_from(offset_s).unwrap_or(i64::MAX);
        }
    }
}
