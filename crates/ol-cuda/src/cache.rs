//! Pages of the KV cache and the sequences that hold them.

use std::sync::{Arc, Mutex, PoisonError};

use crate::error::GpuError;

/// Tokens of a page.
pub(crate) const PAGE_TOKENS: usize = 16;

/// Numbers of the free pages.
pub(crate) type FreePages = Arc<Mutex<Vec<u32>>>;

/// A sequence's place in the cache; its pages are free again when it is dropped.
#[derive(Debug)]
pub struct GpuSequence {
    free: FreePages,
    pages: Vec<u32>,
    len: usize,
}

impl GpuSequence {
    pub(crate) const fn new(free: FreePages) -> Self {
        Self {
            free,
            pages: Vec::new(),
            len: 0,
        }
    }

    /// Tokens held.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether no token is held.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets all but the first `n` tokens and frees the pages behind them.
    pub fn truncate(&mut self, n: usize) {
        self.len = self.len.min(n);
        let kept = self.len.div_ceil(PAGE_TOKENS);
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.extend(self.pages.drain(kept..).rev());
    }

    pub(crate) fn belongs_to(&self, free: &FreePages) -> bool {
        Arc::ptr_eq(&self.free, free)
    }

    /// Takes pages for `n` more tokens.
    pub(crate) fn reserve(&mut self, n: usize) -> Result<(), GpuError> {
        let wanted = (self.len + n).div_ceil(PAGE_TOKENS);
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let more = wanted.saturating_sub(self.pages.len());
        if more > free.len() {
            return Err(GpuError::Full("KV page"));
        }
        let at = free.len() - more;
        self.pages.extend(free.drain(at..).rev());
        Ok(())
    }

    pub(crate) const fn advance(&mut self, n: usize) {
        self.len += n;
    }

    /// First slot of each page.
    pub(crate) fn starts(&self) -> impl Iterator<Item = usize> + '_ {
        self.pages.iter().map(|page| *page as usize * PAGE_TOKENS)
    }

    /// Slot of `position`, which must be reserved.
    pub(crate) fn slot(&self, position: usize) -> usize {
        self.pages[position / PAGE_TOKENS] as usize * PAGE_TOKENS + position % PAGE_TOKENS
    }
}

impl Drop for GpuSequence {
    fn drop(&mut self) {
        self.truncate(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_go_round_and_never_beyond_what_there_is() {
        let free: FreePages = Arc::new(Mutex::new((0..4).rev().collect()));
        let mut one = GpuSequence::new(Arc::clone(&free));
        let mut two = GpuSequence::new(Arc::clone(&free));
        one.reserve(17).unwrap();
        one.advance(17);
        assert_eq!((one.slot(0), one.slot(16)), (0, 16));
        two.reserve(32).unwrap();
        two.advance(32);
        assert_eq!(one.reserve(16), Err(GpuError::Full("KV page")));
        one.reserve(15).unwrap();
        two.truncate(16);
        one.advance(15);
        one.reserve(1).unwrap();
        assert_eq!(one.slot(32), 48);
        drop(one);
        drop(two);
        let mut left = free.lock().unwrap().clone();
        left.sort_unstable();
        assert_eq!(left, [0, 1, 2, 3]);
    }
}
