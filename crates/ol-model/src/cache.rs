//! Keys and values of the tokens that sequences have seen, in pages of sixteen
//! tokens from a pool of bounded size (Kwon et al., 2023).

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thiserror::Error;

use crate::config::ModelConfig;
use crate::kernels::{Line, PANEL, PanelsRef};

/// Tokens of a page.
pub const PAGE_TOKENS: usize = PANEL;

/// A pool has no page left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{needed_pages} more pages of the KV pool are needed, {free_pages} are free")]
pub struct PoolFull {
    /// Pages asked for.
    pub needed_pages: usize,
    /// Pages to be had.
    pub free_pages: usize,
}

/// What a page holds for each layer: for each head the keys, positions as
/// columns (`key_dim` lines), then for each head the values, positions as rows
/// (sixteen lines for every sixteen values).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    layers: usize,
    heads: usize,
    key_dim: usize,
    value_dim: usize,
}

impl Shape {
    fn new(config: &ModelConfig) -> Self {
        let (key_dim, value_dim) = config
            .mla
            .map_or((config.head_dim, config.head_dim), |mla| {
                (mla.qk_nope_head_dim + mla.qk_rope_head_dim, mla.v_head_dim)
            });
        Self {
            layers: config.num_hidden_layers,
            heads: config.num_key_value_heads,
            key_dim,
            value_dim,
        }
    }

    fn value_lines(&self) -> usize {
        self.value_dim.div_ceil(PANEL) * PAGE_TOKENS
    }

    fn layer_lines(&self) -> usize {
        self.heads * (self.key_dim + self.value_lines())
    }

    fn page_lines(&self) -> usize {
        self.layers * self.layer_lines()
    }

    /// First line of a head's keys.
    fn keys(&self, layer: usize, head: usize) -> usize {
        layer * self.layer_lines() + head * self.key_dim
    }

    /// First line of a head's values.
    fn values(&self, layer: usize, head: usize) -> usize {
        layer * self.layer_lines() + self.heads * self.key_dim + head * self.value_lines()
    }
}

#[derive(Debug)]
struct Inner {
    shape: Shape,
    n_pages: usize,
    /// Longest sequence of the model.
    max_tokens: usize,
    /// Whether the contents lie on a device and pages are numbers only.
    is_remote: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Pages given back, for the next to ask. All that were ever made are
    /// these and the used ones, so numbers go from 0 without a gap.
    spare: Vec<(usize, Box<[Line]>)>,
    used: usize,
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is complete before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Memory for the keys and values of many sequences of one model.
///
/// It is taken page by page as sequences grow, kept for the next when they end,
/// and never exceeds `n_pages` pages. Clones are the same pool.
#[derive(Debug, Clone)]
pub struct KvPool(Arc<Inner>);

impl KvPool {
    /// A pool of at most `n_pages` pages of [`PAGE_TOKENS`] tokens.
    #[must_use]
    pub fn new(config: &ModelConfig, n_pages: usize) -> Self {
        Self::with(config, n_pages, false)
    }

    /// As [`Self::new`] for an [`Executor`](crate::Executor) that keeps keys and
    /// values in memory of its own: pages have a number and hold nothing.
    #[must_use]
    pub fn remote(config: &ModelConfig, n_pages: usize) -> Self {
        Self::with(config, n_pages, true)
    }

    fn with(config: &ModelConfig, n_pages: usize, is_remote: bool) -> Self {
        Self(Arc::new(Inner {
            shape: Shape::new(config),
            n_pages,
            max_tokens: config.max_position_embeddings,
            is_remote,
            state: Mutex::default(),
        }))
    }

    /// Pages there may be.
    #[must_use]
    pub fn n_pages(&self) -> usize {
        self.0.n_pages
    }

    /// Pages that nobody holds.
    #[must_use]
    pub fn free_pages(&self) -> usize {
        self.0.n_pages - self.0.lock().used
    }

    /// Memory of one page, in bytes.
    #[must_use]
    pub fn page_size_bytes(&self) -> usize {
        self.0.shape.page_lines() * size_of::<Line>()
    }

    fn take(&self, n: usize) -> Result<Vec<Page>, PoolFull> {
        let mut state = self.0.lock();
        let free_pages = self.0.n_pages - state.used;
        if n > free_pages {
            return Err(PoolFull {
                needed_pages: n,
                free_pages,
            });
        }
        let made = state.used + state.spare.len();
        state.used += n;
        let mut taken = Vec::with_capacity(n);
        taken.extend((0..n).map_while(|_| state.spare.pop()));
        drop(state);
        let lines = if self.0.is_remote {
            0
        } else {
            self.0.shape.page_lines()
        };
        for number in made..made + n - taken.len() {
            taken.push((number, vec![Line::ZERO; lines].into_boxed_slice()));
        }
        let page = |(number, lines)| Page {
            number,
            lines,
            home: Arc::clone(&self.0),
        };
        Ok(taken.into_iter().map(page).collect())
    }
}

/// Sixteen tokens of a sequence, or of several that began alike.
#[derive(Debug)]
pub(crate) struct Page {
    number: usize,
    lines: Box<[Line]>,
    home: Arc<Inner>,
}

impl Page {
    pub(crate) fn lines(&self) -> &[Line] {
        &self.lines
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        let mut state = self.home.lock();
        state.spare.push((self.number, lines));
        state.used -= 1;
    }
}

/// A full page: sixteen tokens that any number of sequences may share. It counts
/// as used while this or a cache holds it.
#[derive(Debug, Clone)]
pub struct KvPage(Arc<Page>);

/// Keys and values of one sequence: a view over pages of a [`KvPool`].
///
/// A clone shares the pages; whoever writes first to a page that is shared gets
/// a copy of its own.
#[derive(Debug, Clone)]
pub struct KvCache {
    pool: KvPool,
    pages: Vec<Arc<Page>>,
    capacity: usize,
    len: usize,
}

impl KvCache {
    /// An empty cache with a pool of its own, for at most `capacity_tokens`
    /// tokens, or the model's longest context if that is less.
    #[must_use]
    pub fn new(config: &ModelConfig, capacity_tokens: usize) -> Self {
        let capacity = capacity_tokens.min(config.max_position_embeddings);
        let pool = KvPool::new(config, capacity.div_ceil(PAGE_TOKENS));
        Self::in_pool(&pool, capacity)
    }

    /// An empty cache in a pool that others use too. Nothing is set aside: a
    /// pass that finds the pool full is refused.
    #[must_use]
    pub fn in_pool(pool: &KvPool, capacity_tokens: usize) -> Self {
        Self {
            pool: pool.clone(),
            pages: Vec::new(),
            capacity: capacity_tokens.min(pool.0.max_tokens),
            len: 0,
        }
    }

    /// A cache that begins with full pages of others, in order, and holds their
    /// tokens.
    ///
    /// # Panics
    /// If a page belongs to another pool, or they do not fit the capacity.
    #[must_use]
    pub fn beginning_with(pool: &KvPool, capacity_tokens: usize, pages: &[KvPage]) -> Self {
        let mut cache = Self::in_pool(pool, capacity_tokens);
        cache.len = pages.len() * PAGE_TOKENS;
        assert!(cache.len <= cache.capacity, "the pages fit the cache");
        cache.pages = pages.iter().map(|page| Arc::clone(&page.0)).collect();
        let is_home = |page: &Arc<Page>| Arc::ptr_eq(&page.home, &pool.0);
        assert!(cache.pages.iter().all(is_home), "pages of this pool");
        cache
    }

    /// A page that is full, to begin other caches with; `None` while it is not.
    #[must_use]
    pub fn full_page(&self, index: usize) -> Option<KvPage> {
        let is_full = index < self.len / PAGE_TOKENS;
        is_full.then(|| KvPage(Arc::clone(&self.pages[index])))
    }

    /// Puts a page of another cache in the place of a full one of its own, which
    /// is given back. Both hold the same tokens after the same text, and so the
    /// same bits.
    ///
    /// # Panics
    /// If its own is not full, or the page belongs to another pool.
    pub fn adopt_page(&mut self, index: usize, page: &KvPage) {
        assert!(index < self.len / PAGE_TOKENS, "a full page is replaced");
        assert!(
            Arc::ptr_eq(&page.0.home, &self.pool.0),
            "a page of this pool"
        );
        self.pages[index] = Arc::clone(&page.0);
    }

    /// Pages held, shared ones included.
    #[must_use]
    pub fn n_pages(&self) -> usize {
        self.pages.len()
    }

    /// Tokens held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Most tokens it may hold.
    #[must_use]
    pub fn capacity_tokens(&self) -> usize {
        self.capacity
    }

    /// Forgets all but the first `n` tokens and gives back their pages.
    pub fn truncate(&mut self, n: usize) {
        self.len = self.len.min(n);
        self.pages.truncate(self.len.div_ceil(PAGE_TOKENS));
    }

    /// Memory of its pages, in bytes; shared ones count in full.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.pages.len() * self.pool.page_size_bytes()
    }

    /// Whether its pages come from `pool`.
    #[must_use]
    pub fn is_in(&self, pool: &KvPool) -> bool {
        Arc::ptr_eq(&self.pool.0, &pool.0)
    }

    /// Numbers of its pages, in order: below [`KvPool::n_pages`], and no two
    /// different pages of a pool have one at the same time.
    pub fn page_numbers(&self) -> impl Iterator<Item = usize> + '_ {
        self.pages.iter().map(|page| page.number)
    }

    /// Whether the CPU engine can use it for models of this shape.
    pub(crate) fn fits(&self, config: &ModelConfig) -> bool {
        !self.pool.0.is_remote && self.pool.0.shape == Shape::new(config)
    }

    /// Gets pages of its own for the next `n` tokens. On failure nothing has
    /// changed; what is not used can be given back by `truncate(len)`.
    ///
    /// Returns `(from, to)` of every page that took the place of a shared one.
    /// The contents are copied already, but for a [remote](KvPool::remote) pool:
    /// there the executor copies them, before anything else.
    ///
    /// # Errors
    /// [`PoolFull`] when there are not enough pages.
    pub fn reserve(&mut self, n: usize) -> Result<Vec<(usize, usize)>, PoolFull> {
        let first = self.len / PAGE_TOKENS;
        let last = (self.len + n).div_ceil(PAGE_TOKENS);
        let is_shared = |page: &Arc<Page>| Arc::strong_count(page) > 1;
        let shared: Vec<usize> = (first..last.min(self.pages.len()))
            .filter(|&i| is_shared(&self.pages[i]))
            .collect();
        let missing = last.saturating_sub(self.pages.len());
        let mut pages = self.pool.take(shared.len() + missing)?;
        let mut copied = Vec::new();
        for (i, mut page) in shared.into_iter().zip(pages.drain(missing..)) {
            page.lines.copy_from_slice(&self.pages[i].lines);
            copied.push((self.pages[i].number, page.number));
            self.pages[i] = Arc::new(page);
        }
        self.pages.extend(pages.into_iter().map(Arc::new));
        Ok(copied)
    }

    /// Counts `n` tokens that an executor has written to reserved pages.
    ///
    /// # Panics
    /// If no room was reserved for them.
    pub fn advance(&mut self, n: usize) {
        assert!(
            self.len + n <= self.pages.len() * PAGE_TOKENS,
            "tokens are written to reserved pages"
        );
        self.len += n;
    }

    /// Stores the key and value rows (all heads) of position `at`, for which
    /// room was reserved.
    pub(crate) fn write(&mut self, layer: usize, at: usize, key: &[f32], value: &[f32]) {
        let shape = self.pool.0.shape;
        let page = Arc::get_mut(&mut self.pages[at / PAGE_TOKENS])
            .expect("a reserved page belongs to one cache");
        let at = at % PAGE_TOKENS;
        let heads = key
            .chunks_exact(shape.key_dim)
            .zip(value.chunks_exact(shape.value_dim));
        for (head, (key, value)) in heads.enumerate() {
            for (line, &k) in page.lines[shape.keys(layer, head)..].iter_mut().zip(key) {
                line.0[at] = k;
            }
            let lines = &mut page.lines[shape.values(layer, head)..][..shape.value_lines()];
            for (panel, v) in lines.chunks_exact_mut(PAGE_TOKENS).zip(value.chunks(PANEL)) {
                panel[at].0[..v.len()].copy_from_slice(v);
            }
        }
    }

    /// Keys of one head at `positions` (from a multiple of sixteen on), as
    /// `key_dim x positions`.
    pub(crate) fn keys(&self, layer: usize, head: usize, positions: Range<usize>) -> PanelsRef<'_> {
        let shape = self.pool.0.shape;
        let n = positions.len();
        PanelsRef::key_pages(
            self.covering(positions),
            shape.keys(layer, head),
            shape.key_dim,
            n,
        )
    }

    /// Values of one head at `positions` (from a multiple of sixteen on), as
    /// `positions x value_dim`.
    pub(crate) fn values(
        &self,
        layer: usize,
        head: usize,
        positions: Range<usize>,
    ) -> PanelsRef<'_> {
        let shape = self.pool.0.shape;
        let n = positions.len();
        PanelsRef::value_pages(
            self.covering(positions),
            shape.values(layer, head),
            n,
            shape.value_dim,
        )
    }

    fn covering(&self, positions: Range<usize>) -> &[Arc<Page>] {
        assert!(
            positions.start.is_multiple_of(PAGE_TOKENS),
            "positions of whole pages"
        );
        &self.pages[positions.start / PAGE_TOKENS..positions.end.div_ceil(PAGE_TOKENS)]
    }
}

#[cfg(test)]
mod tests;
