//! Feed-forward layers of experts (DeepSeek-AI, 2024: section 2.2 of the report
//! on V2, 2.1.2 of that on V3): every token passes the shared experts and a few
//! that a router chooses.
//!
//! A token's outputs are added up expert by expert, lowest number first, and
//! then the shared ones, whoever else is in the batch. The router and the routed
//! experts stay as they are in training; gradients pass through both.

mod route;

use super::adapters::{Inner, Pass, Target};
use super::mlp::{Mlp, activate, activate_backward};
use super::rows::ROW_CHUNK;
use crate::config::Moe;
use crate::kernels::math;
use crate::linear::{Linear, Norm};
use crate::pool::{Parts, Pool};

pub(super) use route::Router;
use route::Routes;

/// Weights of one layer's experts.
#[derive(Debug)]
pub(super) struct Experts {
    pub(super) router: Router,
    /// Those that tokens choose.
    pub(super) routed: Vec<Mlp>,
    /// Those that every token uses, as one layer.
    pub(super) shared: Mlp,
    pub(super) shape: Moe,
}

/// What the routed experts leave for the backward pass.
#[derive(Debug, Default)]
struct SavedExperts {
    routes: Routes,
    /// Gate and up of every use of an expert.
    gate_up: Vec<f32>,
}

/// The feed-forward part of a block.
#[derive(Debug)]
pub(super) enum FeedForward {
    /// One layer for every token.
    Dense(Mlp),
    /// Experts.
    Experts(Box<Experts>),
}

/// What the forward pass leaves for the backward pass.
#[derive(Debug, Default)]
pub(super) struct SavedFeedForward {
    /// Gate and up of the dense layer or the shared experts.
    gate_up: Vec<f32>,
    routed: SavedExperts,
}

impl FeedForward {
    /// `out = feed_forward(x)` for all rows.
    pub(super) fn forward(
        &self,
        pass: &Pass<'_>,
        layer: usize,
        x: &[f32],
        saved: &mut SavedFeedForward,
        inner: Option<&mut Inner>,
        out: &mut [f32],
    ) {
        match self {
            Self::Dense(mlp) => mlp.forward(pass, layer, x, &mut saved.gate_up, inner, out),
            Self::Experts(experts) => {
                // The shared experts in `out`, then the others before them.
                let shared = &experts.shared;
                shared.forward(pass, layer, x, &mut saved.gate_up, inner, out);
                experts.forward(pass, x, &mut saved.routed, out);
            }
        }
    }

    /// `dx = d feed_forward(x)` for the gradient `d_out` of the output; what
    /// was saved is used up.
    #[expect(
        clippy::too_many_arguments,
        reason = "inputs, what was kept, and two outputs"
    )]
    pub(super) fn backward(
        &self,
        pass: &Pass<'_>,
        layer: usize,
        x: &[f32],
        saved: &mut SavedFeedForward,
        inner: &Inner,
        d_out: &[f32],
        dx: &mut [f32],
        target: &mut Target<'_>,
    ) {
        let mlp = match self {
            Self::Dense(mlp) => mlp,
            Self::Experts(experts) => &experts.shared,
        };
        let gate_up = &mut saved.gate_up;
        mlp.backward(pass, layer, x, gate_up, inner, d_out, dx, target);
        if let Self::Experts(experts) = self {
            experts.backward(pass.pool, &mut saved.routed, d_out, dx);
        }
    }

    /// Every linear layer.
    pub(super) fn linears(&self) -> Vec<&Linear> {
        match self {
            Self::Dense(mlp) => vec![&mlp.gate_up, &mlp.down],
            Self::Experts(experts) => {
                let all = experts.routed.iter().chain([&experts.shared]);
                let gate = [&experts.router.gate].into_iter();
                gate.chain(all.flat_map(|mlp| [&mlp.gate_up, &mlp.down]))
                    .collect()
            }
        }
    }

    /// As [`Self::linears`].
    pub(super) fn linears_mut(&mut self) -> Vec<&mut Linear> {
        match self {
            Self::Dense(mlp) => vec![&mut mlp.gate_up, &mut mlp.down],
            Self::Experts(experts) => {
                let all = experts.routed.iter_mut().chain([&mut experts.shared]);
                let gate = [&mut experts.router.gate].into_iter();
                gate.chain(all.flat_map(|mlp| [&mut mlp.gate_up, &mut mlp.down]))
                    .collect()
            }
        }
    }

    /// Every vector that is no bias of a linear layer.
    pub(super) fn norms(&self) -> Vec<&Norm> {
        match self {
            Self::Dense(_) => Vec::new(),
            Self::Experts(experts) => experts.router.bias.iter().collect(),
        }
    }

    /// As [`Self::norms`].
    pub(super) fn norms_mut(&mut self) -> Vec<&mut Norm> {
        match self {
            Self::Dense(_) => Vec::new(),
            Self::Experts(experts) => experts.router.bias.iter_mut().collect(),
        }
    }
}

impl Experts {
    /// Adds `out`, what the shared experts say, to what the routed ones do.
    fn forward(&self, pass: &Pass<'_>, x: &[f32], saved: &mut SavedExperts, out: &mut [f32]) {
        let (pool, precision) = (pass.pool, pass.precision);
        let (h, f) = (self.shared.gate_up.d_in(), self.shape.moe_intermediate_size);
        saved.routes = self.router.route(pool, &self.shape, x);
        let routes = &saved.routes;
        saved.gate_up.clear();
        saved.gate_up.resize(routes.len() * 2 * f, 0.0);
        let mut sum = vec![0.0_f32; out.len()];
        let (mut from, mut act, mut to) = (Vec::new(), Vec::new(), Vec::new());
        for (expert, uses) in routes.by_expert() {
            let weights = &self.routed[expert];
            let gate_up = &mut saved.gate_up[uses.start * 2 * f..uses.end * 2 * f];
            gather(x, h, routes.rows(&uses), &mut from);
            weights.gate_up.product(pool, &from, gate_up, precision);
            act.resize(uses.len() * f, 0.0_f32);
            activate(pool, gate_up, f, &mut act);
            to.resize(uses.len() * h, 0.0_f32);
            weights.down.product(pool, &act, &mut to, precision);
            let (rows, weights) = (routes.rows(&uses), routes.weights(&uses));
            scatter(pool, &to, h, rows, Some(weights), &mut sum);
        }
        math::add(pool.isa(), out, &sum);
    }

    /// Adds to `dx` what the gradient `d_out` of the output says about the
    /// input; what was saved is used up.
    fn backward(&self, pool: &Pool, saved: &mut SavedExperts, d_out: &[f32], dx: &mut [f32]) {
        let (h, f) = (self.shared.gate_up.d_in(), self.shape.moe_intermediate_size);
        let routes = &saved.routes;
        let mut d_weights = vec![0.0_f32; routes.len()];
        let (mut from, mut act, mut d_act) = (Vec::new(), Vec::new(), Vec::new());
        for (expert, uses) in routes.by_expert() {
            let weights = &self.routed[expert];
            let gate_up = &mut saved.gate_up[uses.start * 2 * f..uses.end * 2 * f];
            act.resize(uses.len() * f, 0.0_f32);
            activate(pool, gate_up, f, &mut act);
            gather(d_out, h, routes.rows(&uses), &mut from);
            d_act.resize(uses.len() * f, 0.0_f32);
            weights.down.product_back(pool, &from, &mut d_act);
            // A weight's gradient is the product of `d_out` and what the expert
            // said; turned through `down`, of `d_act` and what `down` read.
            let (d, factors) = (Parts::new(&mut d_weights), routes.weights(&uses));
            let d_acts = Parts::new(&mut d_act);
            pool.ranges(uses.len(), ROW_CHUNK, &|range| {
                for i in range {
                    d_acts.with(i * f..(i + 1) * f, |d_act| {
                        let act = &act[i * f..(i + 1) * f];
                        let at = uses.start + i;
                        d.with(at..at + 1, |d| d[0] = math::dot(pool.isa(), act, d_act));
                        math::scale(pool.isa(), d_act, factors[i]);
                    });
                }
            });
            activate_backward(pool, gate_up, f, &d_act);
            from.resize(uses.len() * h, 0.0_f32);
            weights.gate_up.product_back(pool, gate_up, &mut from);
            scatter(pool, &from, h, routes.rows(&uses), None, dx);
        }
        self.router
            .backward(pool, &self.shape, routes, &d_weights, dx);
    }
}

/// The chosen rows of `x`, one after another.
fn gather(x: &[f32], width: usize, rows: &[usize], out: &mut Vec<f32>) {
    out.clear();
    for row in rows {
        out.extend_from_slice(&x[row * width..(row + 1) * width]);
    }
}

/// Adds each row of `from`, times its weight if there are weights, to the row of
/// `out` it belongs to. A row occurs once at most.
fn scatter(
    pool: &Pool,
    from: &[f32],
    width: usize,
    rows: &[usize],
    weights: Option<&[f32]>,
    out: &mut [f32],
) {
    let out = Parts::new(out);
    pool.ranges(rows.len(), ROW_CHUNK, &|range| {
        for i in range {
            let (row, from) = (rows[i], &from[i * width..(i + 1) * width]);
            out.with(row * width..(row + 1) * width, |out| match weights {
                Some(weights) => {
                    for (out, from) in out.iter_mut().zip(from) {
                        *out += weights[i] * from;
                    }
                }
                None => math::add(pool.isa(), out, from),
            });
        }
    });
}
