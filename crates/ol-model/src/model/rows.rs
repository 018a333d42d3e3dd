//! Element-wise work on all rows of a pass, split over the pool.

use crate::kernels::math;
use crate::linear::Norm;
use crate::pool::{Parts, Pool};

/// Rows of one element-wise task.
pub(super) const ROW_CHUNK: usize = 32;

/// Elements that are worth a task of additions.
const ADD_CHUNK: usize = 1 << 15;

/// `x += y`.
pub(super) fn add(pool: &Pool, x: &mut [f32], y: &[f32]) {
    let parts = Parts::new(x);
    pool.ranges(y.len(), ADD_CHUNK, &|range| {
        parts.with(range.clone(), |x| math::add(pool.isa(), x, &y[range]));
    });
}

/// Norms every row of `x`; keeps the inverse roots if asked. Rows are as long
/// as the weights.
pub(super) fn norm(
    pool: &Pool,
    x: &[f32],
    weight: &Norm,
    eps: f32,
    out: &mut [f32],
    inverse: Option<&mut Vec<f32>>,
) {
    let weight = weight.weight.as_slice();
    let h = weight.len();
    let rows = x.len() / h;
    let out = Parts::new(out);
    let mut unused = Vec::new();
    let inverse = inverse.unwrap_or(&mut unused);
    inverse.resize(rows, 0.0);
    let inverse = Parts::new(inverse);
    pool.ranges(rows, ROW_CHUNK, &|range| {
        inverse.with(range.clone(), |inverse| {
            out.with(range.start * h..range.end * h, |out| {
                let x = x[range.start * h..range.end * h].chunks_exact(h);
                for ((x, out), inverse) in x.zip(out.chunks_exact_mut(h)).zip(inverse) {
                    *inverse = math::rms_norm(pool.isa(), x, weight, eps, out);
                }
            });
        });
    });
}

/// The normed rows once more, from the kept inverse roots.
pub(super) fn norm_again(pool: &Pool, x: &[f32], weight: &Norm, inverse: &[f32], out: &mut [f32]) {
    let weight = weight.weight.as_slice();
    let h = weight.len();
    let out = Parts::new(out);
    pool.ranges(inverse.len(), ROW_CHUNK, &|range| {
        out.with(range.start * h..range.end * h, |out| {
            let rows = x[range.start * h..range.end * h]
                .chunks_exact(h)
                .zip(&inverse[range]);
            for ((x, inverse), out) in rows.zip(out.chunks_exact_mut(h)) {
                for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
                    *out = w * (x * inverse);
                }
            }
        });
    });
}

/// Adds the norm's gradient of all rows to `dx`.
pub(super) fn norm_backward(
    pool: &Pool,
    x: &[f32],
    weight: &Norm,
    inverse: &[f32],
    dy: &[f32],
    dx: &mut [f32],
) {
    let weight = weight.weight.as_slice();
    let h = weight.len();
    let dx = Parts::new(dx);
    pool.ranges(inverse.len(), ROW_CHUNK, &|range| {
        dx.with(range.start * h..range.end * h, |dx| {
            for (i, dx) in range.clone().zip(dx.chunks_exact_mut(h)) {
                let row = i * h..(i + 1) * h;
                let (x, dy) = (&x[row.clone()], &dy[row]);
                math::rms_norm_backward(pool.isa(), x, weight, inverse[i], dy, dx);
            }
        });
    });
}

/// Adds the gradient of a norm's weights: over the rows, ascending.
pub(super) fn norm_gradient(pool: &Pool, x: &[f32], inverse: &[f32], dy: &[f32], out: &mut [f32]) {
    let h = out.len();
    let out = Parts::new(out);
    pool.ranges(h, 64, &|columns| {
        out.with(columns.clone(), |out| {
            for (i, &inverse) in inverse.iter().enumerate() {
                let row = i * h + columns.start..i * h + columns.end;
                math::add_product(pool.isa(), out, &x[row.clone()], &dy[row], inverse);
            }
        });
    });
}

/// Adds the rows of `dy` to `out`, ascending: the gradient of a bias.
pub(super) fn bias_gradient(pool: &Pool, dy: &[f32], out: &mut [f32]) {
    let width = out.len();
    let out = Parts::new(out);
    pool.ranges(width, 64, &|columns| {
        out.with(columns.clone(), |out| {
            for row in dy.chunks_exact(width) {
                math::add(pool.isa(), out, &row[columns.clone()]);
            }
        });
    });
}
