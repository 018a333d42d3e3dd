//! The gated feed-forward layer: `down(silu(gate x) * up x)`.

use super::adapters::{self, Inner, Pass, Target};
use super::rows::ROW_CHUNK;
use crate::kernels::math;
use crate::linear::Linear;
use crate::lora::Projection;
use crate::pool::{Parts, Pool};

/// Weights of one feed-forward layer.
#[derive(Debug)]
pub(crate) struct Mlp {
    /// Gate and up side by side.
    pub(crate) gate_up: Linear,
    /// Back to the residual stream.
    pub(crate) down: Linear,
}

const GATE_UP: [Projection; 2] = [Projection::Gate, Projection::Up];

impl Mlp {
    /// Inner width.
    pub(crate) fn width(&self) -> usize {
        self.down.d_in()
    }

    /// `out = mlp(x)` for all rows; `gate_up` keeps the two products.
    pub(super) fn forward(
        &self,
        pass: &Pass<'_>,
        layer: usize,
        x: &[f32],
        gate_up: &mut Vec<f32>,
        mut inner: Option<&mut Inner>,
        out: &mut [f32],
    ) {
        let (rows, f) = (x.len() / self.gate_up.d_in(), self.width());
        gate_up.resize(rows * 2 * f, 0.0);
        let kept = inner.as_deref_mut();
        adapters::product(pass, layer, &self.gate_up, &GATE_UP, x, gate_up, kept);
        let mut act = vec![0.0_f32; rows * f];
        activate(pass.pool, gate_up, f, &mut act);
        let parts = [Projection::Down];
        adapters::product(pass, layer, &self.down, &parts, &act, out, inner);
    }

    /// `dx = d mlp(x)` for the gradient `d_out` of the output; `gate_up` is
    /// used up.
    #[expect(
        clippy::too_many_arguments,
        reason = "inputs, what was kept, and two outputs"
    )]
    pub(super) fn backward(
        &self,
        pass: &Pass<'_>,
        layer: usize,
        x: &[f32],
        gate_up: &mut [f32],
        inner: &Inner,
        d_out: &[f32],
        dx: &mut [f32],
        target: &mut Target<'_>,
    ) {
        let (rows, f) = (x.len() / self.gate_up.d_in(), self.width());
        let mut act = vec![0.0_f32; rows * f];
        activate(pass.pool, gate_up, f, &mut act);
        let mut d_act = vec![0.0_f32; rows * f];
        let parts = [Projection::Down];
        let d = Some(d_act.as_mut_slice());
        adapters::backward(
            pass, layer, &self.down, &parts, &act, d_out, inner, d, target,
        );
        drop(act);
        activate_backward(pass.pool, gate_up, f, &d_act);
        drop(d_act);
        let d = Some(dx);
        adapters::backward(
            pass,
            layer,
            &self.gate_up,
            &GATE_UP,
            x,
            gate_up,
            inner,
            d,
            target,
        );
    }
}

/// `silu(gate) up` for all rows of `[gate, up]`.
pub(super) fn activate(pool: &Pool, gate_up: &[f32], f: usize, act: &mut [f32]) {
    let rows = act.len() / f;
    let act = Parts::new(act);
    pool.ranges(rows, ROW_CHUNK, &|range| {
        act.with(range.start * f..range.end * f, |act| {
            let rows = gate_up[range.start * 2 * f..range.end * 2 * f].chunks_exact(2 * f);
            for (row, act) in rows.zip(act.chunks_exact_mut(f)) {
                math::silu_mul(pool.isa(), &row[..f], &row[f..], act);
            }
        });
    });
}

/// Gradient of `[gate, up]` in place of their values.
pub(super) fn activate_backward(pool: &Pool, gate_up: &mut [f32], f: usize, d_act: &[f32]) {
    let rows = d_act.len() / f;
    let parts = Parts::new(gate_up);
    pool.ranges(rows, ROW_CHUNK, &|range| {
        parts.with(range.start * 2 * f..range.end * 2 * f, |rows| {
            for (row, d) in rows
                .chunks_exact_mut(2 * f)
                .zip(d_act[range.start * f..range.end * f].chunks_exact(f))
            {
                let (gate, up) = row.split_at_mut(f);
                math::silu_mul_backward(pool.isa(), gate, up, d);
            }
        });
    });
}
