//! Linear layers with adapters beside them: product and gradients.

use std::ops::Range;

use super::dora::{Dora, base_output};
use super::rows::bias_gradient;
use crate::config::ModelConfig;
use crate::kernels::{Mat, MatMut, Output, Panels, math, matmul, matmul_here};
use crate::linear::{Linear, Precision};
use crate::lora::{Lora, Projection};
use crate::pool::{Parts, Pool};

/// Rows of one adapter's task.
const ADAPTER_ROWS: usize = 64;

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
) -> Vec<(Projection, Range<usize>)> {
    let mut at = 0;
    parts
        .iter()
        .map(|&p| {
            let start = at;
            at += p.shape(config, layer).map_or(0, |(d_out, _)| d_out);
            (p, start..at)
        })
        .collect()
}

/// `y = x W^T + b` and what the adapters add; keeps `scale x A^T` in `inner`
/// if given. `parts` are the projections side by side in `linear`.
pub(super) fn product(
    pass: &Pass<'_>,
    layer: usize,
    linear: &Linear,
    parts: &[Projection],
    x: &[f32],
    y: &mut [f32],
    inner: Option<&mut Inner>,
) {
    linear.product(pass.pool, x, y, pass.precision);
    if pass.groups.is_empty() {
        return;
    }
    let columns = columns(pass.config, layer, parts);
    let d_in = linear.d_in();
    let (mut jobs, mut doras) = (Vec::new(), Vec::new());
    for group in pass.groups {
        for (projection, columns) in &columns {
            let Some(block) = group.adapter.block(layer, *projection) else {
                continue;
            };
            doras.push(Dora::new(
                pass.pool,
                linear,
                columns.start,
                group.adapter,
                block,
            ));
            for start in group.rows.clone().step_by(ADAPTER_ROWS) {
                let rows = start..(start + ADAPTER_ROWS).min(group.rows.end);
                jobs.push(Job {
                    adapter: group.adapter,
                    block,
                    projection: *projection,
                    columns,
                    rows,
                    dora: doras.len() - 1,
                });
            }
        }
    }
    let rows_total = x.len() / d_in;
    let kept = inner.map(|inner| {
        let mut kept: [Option<Parts<'_, f32>>; Projection::COUNT] = [None; Projection::COUNT];
        for (i, z) in inner.iter_mut().enumerate() {
            if let Some(job) = jobs.iter().find(|j| j.projection as usize == i) {
                z.resize(rows_total * job.rank(), 0.0);
                kept[i] = Some(Parts::new(z));
            }
        }
        kept
    });
    let out = Output::new(y, linear.d_out());
    pass.pool.run(jobs.len(), &|i| {
        let job = &jobs[i];
        let (rows, rank) = (&job.rows, job.rank());
        let mut y = out.tile(rows.clone(), job.columns.clone());
        let bias = linear.bias().map(|bias| &bias[job.columns.clone()]);
        let dora = doras[job.dora].as_ref();
        if let (Some(_), Some(bias)) = (dora, bias) {
            // The gain is the weights' alone.
            for i in 0..rows.len() {
                y.row(i).iter_mut().zip(bias).for_each(|(y, b)| *y -= b);
            }
        }
        let x = Mat::new(&x[rows.start * d_in..rows.end * d_in], rows.len(), d_in);
        let isa = pass.pool.isa();
        if let Some(z) = kept.as_ref().and_then(|k| k[job.projection as usize]) {
            z.with(rows.start * rank..rows.end * rank, |z| {
                let y = y.rows(0..rows.len());
                job.adapter.apply(isa, job.block, x, z, y);
            });
        } else {
            let mut z = vec![0.0; rows.len() * rank];
            let y = y.rows(0..rows.len());
            job.adapter.apply(isa, job.block, x, &mut z, y);
        }
        let Some(dora) = dora else { return };
        for i in 0..rows.len() {
            let row = y.row(i);
            row.iter_mut().zip(&dora.gains).for_each(|(y, g)| *y *= g);
            if let Some(bias) = bias {
                math::add(isa, row, bias);
            }
        }
    });
}

/// Rows to which one block of an adapter adds its product.
struct Job<'a> {
    adapter: &'a Lora,
    block: usize,
    projection: Projection,
    /// Its columns of the output.
    columns: &'a Range<usize>,
    rows: Range<usize>,
    dora: usize,
}

impl Job<'_> {
    fn rank(&self) -> usize {
        self.adapter.blocks()[self.block].rank()
    }
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
        let (a, b) = adapter.back(at);
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
