//! Causal attention of one key-value head: forward and backward.

use crate::isa::Isa;
use crate::kernels::{Mat, MatMut, Panels, PanelsRef, math, matmul_here};

/// Query rows handled together: later keys than their last are not touched.
const BLOCK: usize = 48;

/// Queries of one head at positions `first..`, against keys (`head_dim x
/// positions`) and values (`positions x head_dim`).
///
/// Each output row is `softmax(scale q K) V` over the positions up to its own.
/// Masked positions get probability 0 and come last in the chain, where adding
/// `0 v` changes nothing but the sign of a zero; `+ 0.0` settles that one. So a
/// row's bits do not depend on the rows computed with it.
pub(super) fn attend(
    isa: Isa,
    queries: &Rows<'_>,
    keys: PanelsRef<'_>,
    values: PanelsRef<'_>,
    first: usize,
    mut out: MatMut<'_>,
) {
    let mut scores = Vec::new();
    for r0 in (0..queries.rows).step_by(BLOCK) {
        let rows = BLOCK.min(queries.rows - r0);
        let seen = first + r0 + rows;
        scores.resize(rows * seen, 0.0_f32);
        probabilities(
            isa,
            queries.block(r0, rows),
            keys.columns(seen),
            first + r0,
            &mut scores,
            queries.scale(),
        );
        let target = out.rows(r0..r0 + rows);
        matmul_here(
            isa,
            Mat::new(&scores, rows, seen),
            values.rows(0..seen),
            target,
            false,
        );
        for i in r0..r0 + rows {
            for value in out.row(i) {
                *value += 0.0;
            }
        }
    }
}

fn probabilities(
    isa: Isa,
    queries: Mat<'_>,
    keys: PanelsRef<'_>,
    first: usize,
    scores: &mut [f32],
    scale: f32,
) {
    let rows = queries.n_rows();
    let seen = scores.len() / rows;
    matmul_here(isa, queries, keys, MatMut::new(scores, rows, seen), false);
    for (i, row) in scores.chunks_exact_mut(seen).enumerate() {
        math::softmax_prefix(isa, row, first + i + 1, scale);
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
/// all `rows x head_dim`.
pub(super) fn attend_backward(
    isa: Isa,
    heads: &[HeadGradient<'_>],
    keys: &Rows<'_>,
    values: &Rows<'_>,
    d_queries: &mut [Vec<f32>],
    d_keys: &mut Vec<f32>,
    d_values: &mut Vec<f32>,
) {
    let (n, width) = (keys.rows, keys.width);
    let keys_t = Panels::pack(keys.all().t());
    let keys_rows = Panels::pack(keys.all());
    let values_t = Panels::pack(values.all().t());
    for buffer in [&mut *d_keys, &mut *d_values] {
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
            let seen = r0 + rows;
            p.resize(rows * seen, 0.0_f32);
            ds.resize(rows * seen, 0.0_f32);
            probabilities(
                isa,
                head.queries.block(r0, rows),
                keys_t.view().columns(seen),
                r0,
                &mut p,
                scale,
            );
            let d_p = MatMut::new(&mut ds, rows, seen);
            matmul_here(
                isa,
                head.d_out.block(r0, rows),
                values_t.view().columns(seen),
                d_p,
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
            let block = &mut d_queries[r0 * width..seen * width];
            matmul_here(
                isa,
                ds,
                keys_rows.view().rows(0..seen),
                MatMut::new(block, rows, width),
                false,
            );
            let d_k = MatMut::new(&mut d_keys[..seen * width], seen, width);
            matmul_here(isa, ds.t(), queries_rows.view().rows(r0..seen), d_k, true);
            let d_v = MatMut::new(&mut d_values[..seen * width], seen, width);
            matmul_here(isa, p.t(), d_out_rows.view().rows(r0..seen), d_v, true);
        }
    }
}
