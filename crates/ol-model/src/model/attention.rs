//! Causal attention of one key-value head: forward and backward.

use std::cell::RefCell;
use std::ops::Range;

use crate::config::ModelConfig;
use crate::isa::Isa;
use crate::kernels::{Mat, MatMut, PANEL, Panels, PanelsRef, math, matmul_here};

/// Query rows handled together: later keys than their last are not touched.
const BLOCK: usize = 48;

/// Positions that a token sees: all up to its own, or the latest `window` of
/// those.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sight {
    /// Position of the first query.
    first: usize,
    /// From one query's position to the next: 1, or 0 for heads of one token.
    step: usize,
    /// Most positions seen, the token's own included.
    window: Option<usize>,
}

impl Sight {
    /// What the tokens from position `first` on see in a layer.
    pub(super) fn new(config: &ModelConfig, layer: usize, first: usize) -> Self {
        Self {
            first,
            step: 1,
            window: config.window(layer),
        }
    }

    /// As [`Sight::new`] for several heads of one token, each a query.
    pub(super) fn of_token(config: &ModelConfig, layer: usize, position: usize) -> Self {
        Self {
            step: 0,
            ..Self::new(config, layer, position)
        }
    }

    /// First position, a multiple of sixteen, that anything is read of.
    pub(super) fn from(&self) -> usize {
        self.of_block(0, 1).start
    }

    /// Positions that some of `rows` queries from query `r0` on see, from a
    /// multiple of sixteen on: where a row's sums begin depends on nothing else.
    fn of_block(&self, r0: usize, rows: usize) -> Range<usize> {
        self.start(r0) / PANEL * PANEL..self.end(r0 + rows - 1)
    }

    /// First position that query `row` sees.
    fn start(&self, row: usize) -> usize {
        let window = self.window.unwrap_or(usize::MAX);
        self.end(row).saturating_sub(window)
    }

    /// The position after the last that query `row` sees.
    fn end(&self, row: usize) -> usize {
        self.first + row * self.step + 1
    }
}

/// Queries of one head against keys (`width x positions`) and values
/// (`positions x width`), whose first position is `from`.
///
/// Each output row is `softmax(scale q K) V` over the positions it sees.
/// Others get probability 0 and stand at the ends of the chain, where adding
/// `0 v` changes nothing but the sign of a zero; `+ 0.0` settles that one. So a
/// row's bits do not depend on the rows computed with it.
pub(super) fn attend(
    isa: Isa,
    queries: &Rows<'_>,
    keys: PanelsRef<'_>,
    values: PanelsRef<'_>,
    from: usize,
    sight: Sight,
    mut out: MatMut<'_>,
) {
    SCORES.with_borrow_mut(|scores| {
        for r0 in (0..queries.rows).step_by(BLOCK) {
            let rows = BLOCK.min(queries.rows - r0);
            let seen = sight.of_block(r0, rows);
            let here = seen.start - from..seen.end - from;
            scores.resize(rows * seen.len(), 0.0_f32);
            let queries_here = queries.block(r0, rows);
            let keys = keys.columns(here.clone());
            probabilities(isa, queries_here, keys, r0, sight, scores, queries.scale());
            matmul_here(
                isa,
                Mat::new(scores, rows, seen.len()),
                values.rows(here),
                out.rows(r0..r0 + rows),
                false,
            );
            for i in r0..r0 + rows {
                for value in out.row(i) {
                    *value += 0.0;
                }
            }
        }
    });
}

thread_local! {
    /// Probabilities of a block of rows.
    static SCORES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Probabilities of the queries from query `r0` on, over the positions of
/// their block.
fn probabilities(
    isa: Isa,
    queries: Mat<'_>,
    keys: PanelsRef<'_>,
    r0: usize,
    sight: Sight,
    scores: &mut [f32],
    scale: f32,
) {
    let rows = queries.n_rows();
    let start = sight.of_block(r0, rows).start;
    let seen = scores.len() / rows;
    matmul_here(isa, queries, keys, MatMut::new(scores, rows, seen), false);
    for (i, row) in scores.chunks_exact_mut(seen).enumerate() {
        let visible = sight.start(r0 + i) - start..sight.end(r0 + i) - start;
        math::softmax_range(isa, row, visible, scale);
    }
}

/// Rows of one head inside a wider row-major buffer.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    /// Starts at the first element of the first row.
    pub(super) data: &'a [f32],
    pub(super) rows: usize,
    pub(super) width: usize,
    pub(super) stride: usize,
}

impl<'a> Rows<'a> {
    /// Columns `first..first + width` of rows `rows` of a buffer whose rows
    /// are `stride` long.
    pub(super) fn of(
        data: &'a [f32],
        rows: &Range<usize>,
        first: usize,
        width: usize,
        stride: usize,
    ) -> Self {
        let data = if rows.is_empty() {
            &[]
        } else {
            &data[rows.start * stride + first..]
        };
        Self {
            data,
            rows: rows.len(),
            width,
            stride,
        }
    }

    fn block(&self, first: usize, rows: usize) -> Mat<'a> {
        Mat::strided(
            &self.data[first * self.stride..],
            rows,
            self.width,
            self.stride,
        )
    }

    fn all(&self) -> Mat<'a> {
        Mat::strided(self.data, self.rows, self.width, self.stride)
    }

    fn row(&self, i: usize) -> &'a [f32] {
        &self.data[i * self.stride..i * self.stride + self.width]
    }

    #[expect(clippy::cast_precision_loss, reason = "head widths are small")]
    fn scale(&self) -> f32 {
        1.0 / (self.width as f32).sqrt()
    }
}

/// Keys and values of one head of a whole sequence, packed.
pub(super) struct HeadPanels {
    pub(super) keys: Panels,
    pub(super) values: Panels,
}

impl HeadPanels {
    pub(super) fn new(keys: &Rows<'_>, values: &Rows<'_>) -> Self {
        Self {
            keys: Panels::pack(keys.all().t()),
            values: Panels::pack(values.all()),
        }
    }
}

/// Query-side inputs of the backward pass for one query head.
pub(super) struct HeadGradient<'a> {
    pub(super) queries: Rows<'a>,
    pub(super) out: Rows<'a>,
    pub(super) d_out: Rows<'a>,
}

/// Gradients of one key-value head and the query heads that share it, for a
/// whole sequence: fills `d_queries` (one buffer a head), `d_keys`, `d_values`,
/// each as wide as what it is the gradient of.
#[expect(
    clippy::too_many_arguments,
    reason = "keys, values, queries and the gradients of each"
)]
pub(super) fn attend_backward(
    isa: Isa,
    heads: &[HeadGradient<'_>],
    keys: &Rows<'_>,
    values: &Rows<'_>,
    sight: Sight,
    d_queries: &mut [Vec<f32>],
    d_keys: &mut Vec<f32>,
    d_values: &mut Vec<f32>,
) {
    let (n, width, value_width) = (keys.rows, keys.width, values.width);
    let keys_t = Panels::pack(keys.all().t());
    let keys_rows = Panels::pack(keys.all());
    let values_t = Panels::pack(values.all().t());
    for (buffer, width) in [(&mut *d_keys, width), (&mut *d_values, value_width)] {
        buffer.clear();
        buffer.resize(n * width, 0.0);
    }
    let (mut p, mut ds) = (Vec::new(), Vec::new());
    for (head, d_queries) in heads.iter().zip(d_queries) {
        d_queries.clear();
        d_queries.resize(n * width, 0.0);
        let queries_rows = Panels::pack(head.queries.all());
        let d_out_rows = Panels::pack(head.d_out.all());
        let scale = head.queries.scale();
        for r0 in (0..n).step_by(BLOCK) {
            let rows = BLOCK.min(n - r0);
            let positions = sight.of_block(r0, rows);
            let seen = positions.len();
            p.resize(rows * seen, 0.0_f32);
            ds.resize(rows * seen, 0.0_f32);
            let here = keys_t.view().columns(positions.clone());
            let queries = head.queries.block(r0, rows);
            probabilities(isa, queries, here, r0, sight, &mut p, scale);
            matmul_here(
                isa,
                head.d_out.block(r0, rows),
                values_t.view().columns(positions.clone()),
                MatMut::new(&mut ds, rows, seen),
                false,
            );
            for (i, (p, ds)) in p
                .chunks_exact(seen)
                .zip(ds.chunks_exact_mut(seen))
                .enumerate()
            {
                let shift = math::dot(isa, head.out.row(r0 + i), head.d_out.row(r0 + i));
                math::softmax_backward(isa, p, ds, shift, scale);
            }
            let ds = Mat::new(&ds, rows, seen);
            let p = Mat::new(&p, rows, seen);
            let block = &mut d_queries[r0 * width..(r0 + rows) * width];
            matmul_here(
                isa,
                ds,
                keys_rows.view().rows(positions.clone()),
                MatMut::new(block, rows, width),
                false,
            );
            let there = |width: usize| positions.start * width..positions.end * width;
            let here = r0..r0 + rows;
            let d_k = MatMut::new(&mut d_keys[there(width)], seen, width);
            matmul_here(
                isa,
                ds.t(),
                queries_rows.view().rows(here.clone()),
                d_k,
                true,
            );
            let d_v = MatMut::new(&mut d_values[there(value_width)], seen, value_width);
            matmul_here(isa, p.t(), d_out_rows.view().rows(here), d_v, true);
        }
    }
}

#[cfg(test)]
mod tests;
