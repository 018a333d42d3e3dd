//! The linear layer: weights in any storage format, and a bias.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::kernels::{Mat, Output, Panels, Products, math, matmul};
use crate::pool::{Parts, Pool};
use crate::quant::QuantMatrix;

/// Rows of the weights that a backward product turns at a time when the turned
/// matrix is not kept. A multiple of the panel width.
const BACK_ROWS: usize = 1024;

thread_local! {
    /// Where rows of the weights are turned; kept, as fresh memory costs more
    /// than the turning.
    static TURNED: RefCell<Panels> = RefCell::default();
}

/// What a product may round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Precision {
    /// Activations too, where the weights' format multiplies integers.
    Serving,
    /// Nothing but the weights: the backward product is its derivative.
    Exact,
}

/// Storage of the weights of one matrix `[out, in]`.
#[derive(Debug)]
pub(crate) enum Weight {
    /// f32, in panels of sixteen outputs.
    Dense(Panels),
    /// Blocks or 16-bit numbers.
    Quantised(QuantMatrix),
}

impl Weight {
    /// Output width.
    pub(crate) fn rows(&self) -> usize {
        match self {
            Self::Dense(panels) => panels.view().n_columns(),
            Self::Quantised(matrix) => matrix.rows(),
        }
    }

    /// Writes the weights of one output as f32.
    pub(crate) fn row(&self, row: usize, out: &mut [f32]) {
        match self {
            Self::Dense(panels) => panels.read_t(row, out),
            Self::Quantised(matrix) => matrix.dequantise_row(row, out),
        }
    }

    /// Appends the bytes of one output as they are stored, and what tells
    /// their format, for hashing.
    fn stored_row(&self, row: usize, width: usize, out: &mut Vec<u8>) {
        match self {
            Self::Dense(panels) => {
                let mut values = vec![0.0_f32; width];
                panels.read_t(row, &mut values);
                out.extend(values.iter().flat_map(|v| v.to_le_bytes()));
            }
            Self::Quantised(matrix) => {
                matrix.stored_row(row, out);
                if row + 1 == matrix.rows() {
                    matrix.stored_shared(out);
                }
            }
        }
    }

    /// Name of the format.
    fn format_name(&self) -> &'static str {
        match self {
            Self::Dense(_) => "F32",
            Self::Quantised(matrix) => matrix.format().name(),
        }
    }

    fn size_bytes(&self) -> usize {
        match self {
            Self::Dense(panels) => panels.size_bytes(),
            Self::Quantised(matrix) => matrix.size_bytes(),
        }
    }

    /// `dx (+)= dy W`.
    fn product_back(
        &self,
        pool: &Pool,
        dy: Mat<'_>,
        dx: &mut [f32],
        accumulate: bool,
        kept: Option<&OnceLock<Panels>>,
    ) {
        let rows = dy.n_rows();
        match self {
            Self::Dense(panels) => {
                let width = panels.view().n_rows();
                let all = 0..self.rows();
                if let Some(kept) = kept {
                    let back = kept.get_or_init(|| {
                        let mut back = Panels::default();
                        panels.transpose_to(pool, all, &mut back);
                        back
                    });
                    let out = Output::new(dx, width).tile(0..rows, 0..width);
                    matmul(pool, dy, back.view(), out, accumulate);
                    return;
                }
                // The chain over the outputs goes on from one part to the
                // next, so the bits are those of the whole product.
                TURNED.with_borrow_mut(|back| {
                    for start in all.step_by(BACK_ROWS) {
                        let part = start..(start + BACK_ROWS).min(self.rows());
                        panels.transpose_to(pool, part.clone(), back);
                        let out = Output::new(dx, width).tile(0..rows, 0..width);
                        let more = accumulate || start > 0;
                        matmul(pool, dy.columns(&part), back.view(), out, more);
                    }
                });
            }
            Self::Quantised(matrix) => matrix.product_back_of(pool, dy, dx, accumulate),
        }
    }
}

/// One weight matrix of a layer and the outputs it computes.
#[derive(Debug)]
struct Part {
    weight: Weight,
    first: usize,
    /// The turned matrix, packed on first use, where it may be kept.
    back: Option<OnceLock<Panels>>,
}

/// `y = x W^T + b`. Several matrices that read the same input (queries, keys
/// and values; gate and up) are one layer, their outputs side by side.
///
/// What is above does not see how weights are stored.
#[derive(Debug)]
pub(crate) struct Linear {
    parts: Vec<Part>,
    bias: Option<Vec<f32>>,
    d_in: usize,
    d_out: usize,
    /// First weight in the flat parameters.
    flat: usize,
    /// First bias there.
    flat_bias: usize,
    /// Tells these weights from all others of the process.
    id: u64,
}

/// An id that no weights had before.
fn new_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Linear {
    /// A layer of `weights`, top to bottom. `flat` is where weights and bias
    /// begin in the flat parameters; `keep_back` trades memory (the weights
    /// once more) for faster backward products.
    ///
    /// # Panics
    /// If the bias is not as long as the output.
    pub(crate) fn new(
        weights: Vec<Weight>,
        bias: Option<Vec<f32>>,
        d_in: usize,
        flat: (usize, usize),
        keep_back: bool,
    ) -> Self {
        let mut d_out = 0;
        let parts: Vec<Part> = weights
            .into_iter()
            .map(|weight| {
                let first = d_out;
                d_out += weight.rows();
                Part {
                    weight,
                    first,
                    back: keep_back.then(OnceLock::new),
                }
            })
            .collect();
        assert!(
            bias.as_ref().is_none_or(|b| b.len() == d_out),
            "a bias for each output"
        );
        Self {
            parts,
            bias,
            d_in,
            d_out,
            flat: flat.0,
            flat_bias: flat.1,
            id: new_id(),
        }
    }

    /// Output width.
    pub(crate) fn d_out(&self) -> usize {
        self.d_out
    }

    /// Input width.
    pub(crate) fn d_in(&self) -> usize {
        self.d_in
    }

    /// Changes with the weights: what was computed from them may be kept under
    /// it.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// `y = x W^T + b` for all rows of `x` (`[rows, d_in]`).
    pub(crate) fn product(&self, pool: &Pool, x: &[f32], y: &mut [f32], precision: Precision) {
        let rows = x.len() / self.d_in;
        assert_eq!(y.len(), rows * self.d_out, "shape of y");
        self.product_to(pool, x, &Output::new(y, self.d_out), precision);
        let Some(bias) = &self.bias else { return };
        let y = Parts::new(y);
        pool.ranges(rows, 32, &|range| {
            y.with(range.start * self.d_out..range.end * self.d_out, |y| {
                for row in y.chunks_exact_mut(self.d_out) {
                    math::add(pool.isa(), row, bias);
                }
            });
        });
    }

    /// The weights' product alone, into the first columns of `y`.
    pub(crate) fn product_to(&self, pool: &Pool, x: &[f32], y: &Output<'_>, precision: Precision) {
        let rows = x.len() / self.d_in;
        let mut together = Products::default();
        for Part { weight, first, .. } in &self.parts {
            match weight {
                Weight::Dense(panels) => {
                    let x = Mat::new(x, rows, self.d_in);
                    let y = y.tile(0..rows, *first..first + weight.rows());
                    together.add(pool, x, panels.view(), y, false);
                }
                Weight::Quantised(matrix) => match precision {
                    Precision::Serving => matrix.product_to(pool, x, y, *first),
                    Precision::Exact => matrix.product_f32_to(pool, x, y, *first),
                },
            }
        }
        together.run(pool);
    }

    /// `dx = dy W` for all rows of `dy` (`[rows, d_out]`).
    pub(crate) fn product_back(&self, pool: &Pool, dy: &[f32], dx: &mut [f32]) {
        let rows = dy.len() / self.d_out;
        assert_eq!(dx.len(), rows * self.d_in, "shape of dx");
        self.product_back_of(pool, Mat::new(dy, rows, self.d_out), dx);
    }

    /// As [`Self::product_back`] for rows that lie apart.
    pub(crate) fn product_back_of(&self, pool: &Pool, dy: Mat<'_>, dx: &mut [f32]) {
        for (i, part) in self.parts.iter().enumerate() {
            let columns = part.first..part.first + part.weight.rows();
            let back = part.back.as_ref();
            part.weight
                .product_back(pool, dy.columns(&columns), dx, i > 0, back);
        }
    }

    /// Weights of output `row` as f32.
    pub(crate) fn row(&self, row: usize, out: &mut [f32]) {
        let part = self.part_of(row);
        part.weight.row(row - part.first, out);
    }

    /// Appends what is stored for output `row`.
    pub(crate) fn stored_row(&self, row: usize, out: &mut Vec<u8>) {
        let part = self.part_of(row);
        part.weight.stored_row(row - part.first, self.d_in, out);
    }

    /// Name of the format that output `row` is stored in.
    pub(crate) fn format_name(&self, row: usize) -> &'static str {
        self.part_of(row).weight.format_name()
    }

    fn part_of(&self, row: usize) -> &Part {
        let after = self.parts.partition_point(|p| p.first <= row);
        &self.parts[after - 1]
    }

    /// The bias, if there is one.
    pub(crate) fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }

    /// Elements of the weights in the flat parameters.
    pub(crate) fn flat(&self) -> Range<usize> {
        self.flat..self.flat + self.d_in * self.d_out
    }

    /// Elements of the bias there.
    pub(crate) fn flat_bias(&self) -> Option<Range<usize>> {
        self.bias
            .as_ref()
            .map(|bias| self.flat_bias..self.flat_bias + bias.len())
    }

    /// Bytes in memory; without the turned matrices of backward products.
    pub(crate) fn size_bytes(&self) -> usize {
        let bias = self.bias.as_ref().map_or(0, |b| size_of_val(b.as_slice()));
        bias + self
            .parts
            .iter()
            .map(|p| p.weight.size_bytes())
            .sum::<usize>()
    }

    /// Whether all weights are f32.
    pub(crate) fn is_dense(&self) -> bool {
        self.parts
            .iter()
            .all(|p| matches!(p.weight, Weight::Dense(_)))
    }

    /// Takes f32 weights and bias from the flat parameters.
    ///
    /// # Panics
    /// If the layer is not dense.
    pub(crate) fn refill(&mut self, pool: &Pool, params: &[f32]) {
        self.id = new_id();
        let weights = &params[self.flat()];
        if let Some(range) = self.flat_bias() {
            self.bias = Some(params[range].to_vec());
        }
        for part in &mut self.parts {
            let rows = part.weight.rows();
            let from = &weights[part.first * self.d_in..(part.first + rows) * self.d_in];
            match &mut part.weight {
                Weight::Dense(panels) => panels.write_t(pool, 0, Mat::new(from, rows, self.d_in)),
                Weight::Quantised(_) => unreachable!("only f32 models take new parameters"),
            }
            if let Some(back) = &mut part.back {
                *back = OnceLock::new();
            }
        }
    }

    /// Lets `change` rewrite the weights of outputs `rows`, which lie in one
    /// matrix; it is held in f32 from then on.
    pub(crate) fn map_rows(
        &mut self,
        pool: &Pool,
        rows: Range<usize>,
        change: &(dyn Fn(usize, &mut [f32]) + Sync),
    ) {
        self.id = new_id();
        let width = self.d_in;
        let at = self.parts.partition_point(|p| p.first <= rows.start) - 1;
        let part = &mut self.parts[at];
        let n = part.weight.rows();
        if let Weight::Quantised(matrix) = &part.weight {
            let mut panels = Panels::zeros(width, n);
            let mut values = Vec::new();
            for start in (0..n).step_by(BACK_ROWS) {
                let range = start..(start + BACK_ROWS).min(n);
                values.resize(range.len() * width, 0.0_f32);
                for (row, out) in range.clone().zip(values.chunks_exact_mut(width)) {
                    matrix.dequantise_row(row, out);
                }
                panels.write_t(pool, start, Mat::new(&values, range.len(), width));
            }
            part.weight = Weight::Dense(panels);
            part.back = part.back.is_some().then(OnceLock::new);
        }
        let Weight::Dense(panels) = &mut part.weight else {
            return;
        };
        let mut values = Vec::new();
        for start in rows.clone().step_by(BACK_ROWS) {
            let range = start..(start + BACK_ROWS).min(rows.end);
            values.resize(range.len() * width, 0.0_f32);
            let parts = Parts::new(&mut values);
            pool.ranges(range.len(), 16, &|chunk| {
                parts.with(chunk.start * width..chunk.end * width, |values| {
                    let rows = chunk.start + range.start..chunk.end + range.start;
                    for (row, out) in rows.zip(values.chunks_exact_mut(width)) {
                        panels.read_t(row - part.first, out);
                        change(row, out);
                    }
                });
            });
            let from = Mat::new(&values, range.len(), width);
            panels.write_t(pool, range.start - part.first, from);
        }
        if let Some(back) = &mut part.back {
            *back = OnceLock::new();
        }
    }
}

/// Weights of a root-mean-square norm.
#[derive(Debug)]
pub(crate) struct Norm {
    /// One factor a column.
    pub(crate) weight: Vec<f32>,
    /// The first in the flat parameters.
    pub(crate) flat: usize,
}

impl Norm {
    /// Elements in the flat parameters.
    pub(crate) fn flat(&self) -> Range<usize> {
        self.flat..self.flat + self.weight.len()
    }
}
