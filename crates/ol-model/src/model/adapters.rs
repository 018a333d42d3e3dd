//! Linear layers with adapters beside them: product and gradients.

use std::cell::RefCell;
use std::ops::Range;

use super::dora::{Dora, base_output};
use super::rows::bias_gradient;
use crate::config::ModelConfig;
use crate::kernels::{Mat, MatMut, Output, Panels, Strands, math, matmul, matmul_here};
use crate::linear::{Linear, Precision};
use crate::lora::{Lora, Projection};
use crate::pool::{Parts, Pool};

/// Rows of one piece of an adapter's work.
const ADAPTER_ROWS: usize = 64;

/// Multiply-adds that are worth a task.
const TASK_WORK: usize = 1 << 15;

/// `scale x A^T` of each adapted projection, kept for the backward pass.
pub(super) type Inner = [Vec<f32>; Projection::COUNT];

/// Rows that share an adapter.
pub(super) struct Group<'a> {
    pub(super) rows: Range<usize>,
    pub(super) adapter: &'a Lora,
}

/// What every layer of a pass needs.
pub(super) struct Pass<'a> {
    pub(super) pool: &'a Pool,
    pub(super) config: &'a ModelConfig,
    pub(super) groups: &'a [Group<'a>],
    pub(super) precision: Precision,
}

/// What is differentiated.
pub(super) enum Target<'a> {
    /// The adapter; each group of rows has its own gradient.
    Lora {
        adapter: &'a Lora,
        groups: Vec<(Range<usize>, &'a mut [f32])>,
    },
    /// Every base parameter.
    Full(&'a mut [f32]),
}

/// Output columns of the projections that one linear layer computes.
fn columns(
    config: &ModelConfig,
    layer: usize,
    parts: &[Projection],
) -> impl Iterator<Item = (Projection, Range<usize>)> {
    parts.iter().scan(0, move |at, &p| {
        let start = *at;
        *at += p.shape(config, layer).map_or(0, |(d_out, _)| d_out);
        Some((p, start..*at))
    })
}

/// Rows to which one block of an adapter adds its product.
struct Piece {
    /// Index of the rows' group.
    group: usize,
    rows: Range<usize>,
    /// Of the group's adapter.
    block: usize,
    rank: usize,
    /// Index of the projection among those side by side, and its columns.
    part: usize,
    columns: Range<usize>,
    /// Where its inner products begin.
    inner: usize,
    /// Multiply-adds of all pieces before it.
    before: usize,
}

/// The pieces of one product, and their inner products; kept from one product
/// to the next.
#[derive(Default)]
struct Plan {
    pieces: Vec<Piece>,
    /// Multiply-adds of all.
    work: usize,
    inner: Vec<f32>,
}

thread_local! {
    static PLAN: RefCell<Plan> = RefCell::default();
}

impl Plan {
    fn make(&mut self, pass: &Pass<'_>, layer: usize, parts: &[Projection], d_in: usize) {
        self.pieces.clear();
        self.work = 0;
        let mut inner = 0;
        for (group, rows_of) in pass.groups.iter().enumerate() {
            let adapter = rows_of.adapter;
            for (part, (projection, columns)) in columns(pass.config, layer, parts).enumerate() {
                let Some(block) = adapter.block(layer, projection) else {
                    continue;
                };
                let rank = adapter.blocks()[block].rank();
                for start in rows_of.rows.clone().step_by(ADAPTER_ROWS) {
                    let rows = start..(start + ADAPTER_ROWS).min(rows_of.rows.end);
                    let (n, width) = (rows.len() * rank, d_in + columns.len());
                    self.pieces.push(Piece {
                        group,
                        rows,
                        block,
                        rank,
                        part,
                        columns: columns.clone(),
                        inner,
                        before: self.work,
                    });
                    inner += n;
                    self.work += n * width;
                }
            }
        }
        self.inner.resize(inner, 0.0);
    }

    /// Calls `job` with runs of pieces of about equal work, which cover all.
    fn run(&self, pool: &Pool, job: &(dyn Fn(&[Piece]) + Sync)) {
        let tasks = match pool.threads() {
            1 => 1,
            n => (4 * n).min(self.work / TASK_WORK).max(1),
        };
        let share = (self.work / tasks).max(1);
        let from = |task: usize| self.pieces.partition_point(|p| p.before < task * share);
        pool.run(tasks, &|task| {
            let end = if task + 1 == tasks {
                self.pieces.len()
            } else {
                from(task + 1)
            };
            job(&self.pieces[from(task)..end]);
        });
    }
}

/// `y = x W^T + b` and what the adapters add; keeps `scale x A^T` in `kept`
/// if given (all rows have one adapter then). `parts` are the projections side
/// by side in `linear`.
pub(super) fn product(
    pass: &Pass<'_>,
    layer: usize,
    linear: &Linear,
    parts: &[Projection],
    x: &[f32],
    y: &mut [f32],
    kept: Option<&mut Inner>,
) {
    linear.product(pass.pool, x, y, pass.precision);
    if pass.groups.is_empty() {
        return;
    }
    PLAN.with_borrow_mut(|plan| {
        plan.make(pass, layer, parts, linear.d_in());
        add_products(pass, linear, parts, plan, x, y);
        let Some(kept) = kept else { return };
        for piece in &plan.pieces {
            let kept = &mut kept[parts[piece.part] as usize];
            let range = piece.rows.start * piece.rank..piece.rows.end * piece.rank;
            kept.resize(range.end.max(kept.len()), 0.0);
            kept[range.clone()].copy_from_slice(&plan.inner[piece.inner..][..range.len()]);
        }
    });
}

/// `y += s B A x` for all pieces.
fn add_products(
    pass: &Pass<'_>,
    linear: &Linear,
    parts: &[Projection],
    plan: &mut Plan,
    x: &[f32],
    y: &mut [f32],
) {
    let (pool, isa, d_in) = (pass.pool, pass.pool.isa(), linear.d_in());
    let mut doras = Vec::new();
    if pass.groups.iter().any(|g| g.adapter.config().use_dora) {
        doras.resize_with(pass.groups.len() * parts.len(), || None);
        for piece in &plan.pieces {
            let at = piece.group * parts.len() + piece.part;
            if doras[at].is_none() {
                let adapter = pass.groups[piece.group].adapter;
                doras[at] = Dora::new(pool, linear, piece.columns.start, adapter, piece.block);
            }
        }
    }
    let mut inner = std::mem::take(&mut plan.inner);
    let z = Output::new(&mut inner, 0);
    plan.run(pool, &|pieces| {
        let mut strands = Strands::new(isa, false);
        for piece in pieces {
            let adapter = pass.groups[piece.group].adapter;
            let n = piece.rows.len();
            let x = Mat::new(&x[piece.rows.start * d_in..][..n * d_in], n, d_in);
            let scale = adapter.blocks()[piece.block].scale;
            let z = z.dense(piece.inner, n, piece.rank);
            strands.push(x, adapter.a_t(piece.block), scale, z);
        }
    });
    let out = Output::new(y, linear.d_out());
    plan.run(pool, &|pieces| {
        let mut strands = Strands::new(isa, true);
        for piece in pieces {
            let adapter = pass.groups[piece.group].adapter;
            let n = piece.rows.len();
            let z = Mat::new(&inner[piece.inner..][..n * piece.rank], n, piece.rank);
            let tile = || out.tile(piece.rows.clone(), piece.columns.clone());
            let dora = doras.get(piece.group * parts.len() + piece.part);
            let Some(dora) = dora.and_then(Option::as_ref) else {
                strands.push(z, adapter.b_t(piece.block), 1.0, tile());
                continue;
            };
            // The gain is the weights' alone.
            let bias = linear.bias().map(|bias| &bias[piece.columns.clone()]);
            if let Some(bias) = bias {
                let mut y = tile();
                for i in 0..n {
                    y.row(i).iter_mut().zip(bias).for_each(|(y, b)| *y -= b);
                }
            }
            adapter.apply_inner(isa, piece.block, z, tile());
            let mut y = tile();
            for i in 0..n {
                let row = y.row(i);
                row.iter_mut().zip(&dora.gains).for_each(|(y, g)| *y *= g);
                if let Some(bias) = bias {
                    math::add(isa, row, bias);
                }
            }
        }
    });
    plan.inner = inner;
}

/// Gradients of the magnitudes of every adapted projection; and `dy` of the
/// layer's weights, which is `dy` of its output times the gains.
#[expect(
    clippy::too_many_arguments,
    reason = "the inputs of `backward` and its target"
)]
fn dora_backward(
    pass: &Pass<'_>,
    layer: usize,
    linear: &Linear,
    parts: &[Projection],
    x: &[f32],
    dy: &[f32],
    inner: &Inner,
    adapter: &Lora,
    groups: &mut [(Range<usize>, &mut [f32])],
) -> Vec<f32> {
    let (pool, width) = (pass.pool, linear.d_out());
    let rows = dy.len() / width;
    let mut u = base_output(pool, linear, x, pass.precision);
    let mut scaled = dy.to_vec();
    for (projection, columns) in columns(pass.config, layer, parts) {
        let Some(at) = adapter.block(layer, projection) else {
            continue;
        };
        let Some(dora) = Dora::new(pool, linear, columns.start, adapter, at) else {
            continue;
        };
        let block = &adapter.blocks()[at];
        let z = Mat::new(&inner[projection as usize], rows, block.rank());
        let tile = Output::new(&mut u, width).tile(0..rows, columns.clone());
        adapter.apply_inner(pool.isa(), at, z, tile);
        let u = Mat::new(&u, rows, width).columns(&columns);
        let dy = Mat::new(dy, rows, width).columns(&columns);
        for (rows, gradient) in groups.iter_mut() {
            let out = &mut gradient[block.range_magnitude()];
            dora.magnitude_gradient(pool, rows, dy, u, out);
        }
        for row in scaled.chunks_exact_mut(width) {
            let row = &mut row[columns.clone()];
            row.iter_mut().zip(&dora.gains).for_each(|(d, g)| *d *= g);
        }
    }
    scaled
}

/// Gradients of one linear layer: of its input into `dx` if asked, and of
/// the base weights or the adapter, whichever is the target.
#[expect(
    clippy::too_many_arguments,
    reason = "inputs, what was kept, and two outputs"
)]
pub(super) fn backward(
    pass: &Pass<'_>,
    layer: usize,
    linear: &Linear,
    parts: &[Projection],
    x: &[f32],
    dy: &[f32],
    inner: &Inner,
    mut dx: Option<&mut [f32]>,
    target: &mut Target<'_>,
) {
    let pool = pass.pool;
    let scaled;
    let dy = match target {
        Target::Lora { adapter, groups } if adapter.config().use_dora => {
            scaled = dora_backward(pass, layer, linear, parts, x, dy, inner, adapter, groups);
            scaled.as_slice()
        }
        _ => dy,
    };
    if let Some(dx) = dx.as_deref_mut() {
        linear.product_back(pool, dy, dx);
    }
    let (d_in, d_out) = (linear.d_in(), linear.d_out());
    let rows = x.len() / d_in;
    let (adapter, groups) = match target {
        Target::Full(gradient) => {
            let mut x_panels = Panels::default();
            x_panels.repack(pool, Mat::new(x, rows, d_in));
            matmul(
                pool,
                Mat::new(dy, rows, d_out).t(),
                x_panels.view(),
                MatMut::new(&mut gradient[linear.flat()], d_out, d_in),
                true,
            );
            if let Some(bias) = linear.flat_bias() {
                bias_gradient(pool, dy, &mut gradient[bias]);
            }
            return;
        }
        Target::Lora { adapter, groups } => (*adapter, groups),
    };
    let mut x_panels = None;
    for (projection, columns) in columns(pass.config, layer, parts) {
        let Some(at) = adapter.block(layer, projection) else {
            continue;
        };
        let block = &adapter.blocks()[at];
        let rank = block.rank();
        let x_panels = x_panels.get_or_insert_with(|| {
            let mut panels = Panels::default();
            panels.repack(pool, Mat::new(x, rows, d_in));
            panels
        });
        let factors = adapter.factors(at);
        let a = Panels::pack(Mat::new(&factors.a, rank, d_in));
        let b = Panels::pack(Mat::new(&factors.b, columns.len(), rank));
        let dy = Mat::new(dy, rows, d_out).columns(&columns);
        let mut dz = vec![0.0_f32; rows * rank];
        matmul(pool, dy, b.view(), MatMut::new(&mut dz, rows, rank), false);
        math::scale(pool.isa(), &mut dz, block.scale);
        let dz = Mat::new(&dz, rows, rank);
        if let Some(dx) = dx.as_deref_mut() {
            matmul(pool, dz, a.view(), MatMut::new(dx, rows, d_in), true);
        }
        let z_panels = Panels::pack(Mat::new(&inner[projection as usize], rows, rank));
        let jobs: Vec<(Range<usize>, Parts<'_, f32>)> = groups
            .iter_mut()
            .map(|(rows, g)| (rows.clone(), Parts::new(&mut g[block.range()])))
            .collect();
        let split = block.range_a().len();
        let gradients = |i: usize, alone: bool| {
            let (range, gradient) = &jobs[i];
            let (dz, dy) = (dz.rows(range), dy.rows(range));
            let (x, z) = (
                x_panels.view().rows(range.clone()),
                z_panels.view().rows(range.clone()),
            );
            gradient.with(0..block.range().len(), |g| {
                let (d_a, d_b) = g.split_at_mut(split);
                let d_a = MatMut::new(d_a, rank, d_in);
                let d_b = MatMut::new(d_b, columns.len(), rank);
                if alone {
                    matmul(pool, dz.t(), x, d_a, true);
                    matmul(pool, dy.t(), z, d_b, true);
                } else {
                    matmul_here(pool.isa(), dz.t(), x, d_a, true);
                    matmul_here(pool.isa(), dy.t(), z, d_b, true);
                }
            });
        };
        if jobs.len() == 1 {
            gradients(0, true);
        } else {
            pool.run(jobs.len(), &|i| gradients(i, false));
        }
    }
}
