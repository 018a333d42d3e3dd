//! The router: which experts a token uses, and with what weights.

use std::ops::Range;

use super::super::rows::ROW_CHUNK;
use crate::config::{Moe, Routing};
use crate::isa::Isa;
use crate::kernels::math;
use crate::linear::{Linear, Norm, Precision};
use crate::pool::{Parts, Pool};

/// Keeps the sum of the chosen weights from being 0, as transformers does.
const SMALLEST_SUM: f32 = 1e-20;

/// Weights of one router; always f32.
#[derive(Debug)]
pub(crate) struct Router {
    /// From hidden states to one score an expert.
    pub(crate) gate: Linear,
    /// Added to the sigmoid scores when experts are chosen, not to their
    /// weights (Wang et al., 2024). A vector of the file, though no norm's.
    pub(crate) bias: Option<Norm>,
}

/// The choices of all rows, sorted by expert, then row.
#[derive(Debug, Default)]
pub(super) struct Routes {
    rows: Vec<usize>,
    weights: Vec<f32>,
    /// First use of each expert, and the number of uses.
    starts: Vec<usize>,
    /// Score of every expert for every row.
    scores: Vec<f32>,
}

impl Routes {
    /// Uses in all.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Experts in use with their uses, lowest number first.
    pub(super) fn by_expert(&self) -> impl Iterator<Item = (usize, Range<usize>)> + '_ {
        self.starts
            .windows(2)
            .enumerate()
            .map(|(expert, ends)| (expert, ends[0]..ends[1]))
            .filter(|(_, uses)| !uses.is_empty())
    }

    /// Rows of these uses, ascending.
    pub(super) fn rows(&self, uses: &Range<usize>) -> &[usize] {
        &self.rows[uses.clone()]
    }

    /// Weights of these uses.
    pub(super) fn weights(&self, uses: &Range<usize>) -> &[f32] {
        &self.weights[uses.clone()]
    }
}

/// Numbers of the `k` largest values, largest first, the lower number first
/// among equals.
fn largest(values: &[f32], k: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*b].total_cmp(&values[*a]).then(a.cmp(b)));
    order.truncate(k);
    order
}

/// Sums of the `k` largest values of each of `groups` equal parts.
fn group_merits(values: &[f32], groups: usize, k: usize) -> Vec<f32> {
    let parts = values.chunks_exact(values.len() / groups);
    parts
        .map(|part| largest(part, k).iter().map(|i| part[*i]).sum())
        .collect()
}

/// Experts of one token, ascending.
fn choose(shape: &Moe, scores: &[f32], bias: Option<&[f32]>) -> Vec<usize> {
    let mut merits = scores.to_vec();
    if let Some(bias) = bias {
        merits.iter_mut().zip(bias).for_each(|(m, b)| *m += b);
    }
    let of_group = match shape.routing {
        Routing::Greedy => None,
        Routing::GroupLimitedGreedy => Some(1),
        Routing::NoAuxTc => Some(2),
    };
    if let Some(k) = of_group {
        let groups = group_merits(&merits, shape.n_group, k);
        let open = largest(&groups, shape.topk_group);
        let size = merits.len() / shape.n_group;
        for (group, merits) in merits.chunks_exact_mut(size).enumerate() {
            if !open.contains(&group) {
                merits.fill(f32::NEG_INFINITY);
            }
        }
    }
    let mut chosen = largest(&merits, shape.num_experts_per_tok);
    chosen.sort_unstable();
    chosen
}

/// Router outputs to scores, in place.
fn score(isa: Isa, routing: Routing, logits: &mut [f32]) {
    if routing == Routing::NoAuxTc {
        for logit in logits.iter_mut() {
            *logit = -*logit;
        }
        math::exp_minus(isa, logits, 0.0);
        for value in logits {
            *value = 1.0 / (1.0 + *value);
        }
    } else {
        let n = logits.len();
        math::softmax_range(isa, logits, 0..n, 1.0);
    }
}

/// What the chosen scores are divided by.
fn divisor(shape: &Moe, chosen: impl Iterator<Item = f32>) -> f32 {
    if shape.norm_topk_prob {
        chosen.sum::<f32>() + SMALLEST_SUM
    } else {
        1.0
    }
}

impl Router {
    /// Chooses for every row of `x`.
    pub(super) fn route(&self, pool: &Pool, shape: &Moe, x: &[f32]) -> Routes {
        let (n, k) = (shape.n_routed_experts, shape.num_experts_per_tok);
        let rows = x.len() / self.gate.d_in();
        let mut scores = vec![0.0_f32; rows * n];
        // One near tie decided otherwise in serving would be another model.
        self.gate.product(pool, x, &mut scores, Precision::Exact);
        let mut chosen = vec![(0_usize, 0.0_f32); rows * k];
        let (all, out) = (Parts::new(&mut scores), Parts::new(&mut chosen));
        pool.ranges(rows, ROW_CHUNK, &|range| {
            for row in range {
                all.with(row * n..(row + 1) * n, |scores| {
                    score(pool.isa(), shape.routing, scores);
                    let experts = choose(
                        shape,
                        scores,
                        self.bias.as_ref().map(|b| b.weight.as_slice()),
                    );
                    let divisor = divisor(shape, experts.iter().map(|e| scores[*e]));
                    out.with(row * k..(row + 1) * k, |out| {
                        for (out, expert) in out.iter_mut().zip(experts) {
                            let weight = scores[expert] / divisor * shape.routed_scaling_factor;
                            *out = (expert, weight);
                        }
                    });
                });
            }
        });
        let mut starts = vec![0; n + 1];
        for (expert, _) in &chosen {
            starts[expert + 1] += 1;
        }
        for expert in 0..n {
            starts[expert + 1] += starts[expert];
        }
        let mut next = starts.clone();
        let mut routes = Routes {
            rows: vec![0; chosen.len()],
            weights: vec![0.0; chosen.len()],
            starts,
            scores,
        };
        for (i, (expert, weight)) in chosen.into_iter().enumerate() {
            routes.rows[next[expert]] = i / k;
            routes.weights[next[expert]] = weight;
            next[expert] += 1;
        }
        routes
    }

    /// Adds to `dx` what the gradient `d_weights` of the weights (in the order
    /// of the uses) says about the input.
    pub(super) fn backward(
        &self,
        pool: &Pool,
        shape: &Moe,
        routes: &Routes,
        d_weights: &[f32],
        dx: &mut [f32],
    ) {
        let n = shape.n_routed_experts;
        let rows = dx.len() / self.gate.d_in();
        // Of the chosen scores, then of the router's outputs.
        let mut d = vec![0.0_f32; rows * n];
        let mut used = vec![false; rows * n];
        for (expert, uses) in routes.by_expert() {
            for (row, d_weight) in routes.rows(&uses).iter().zip(&d_weights[uses.clone()]) {
                d[row * n + expert] = d_weight * shape.routed_scaling_factor;
                used[row * n + expert] = true;
            }
        }
        for ((d, used), scores) in d
            .chunks_exact_mut(n)
            .zip(used.chunks_exact(n))
            .zip(routes.scores.chunks_exact(n))
        {
            let of_used = || {
                scores
                    .iter()
                    .zip(used)
                    .filter(|(_, u)| **u)
                    .map(|(s, _)| *s)
            };
            if shape.norm_topk_prob {
                let divisor = divisor(shape, of_used());
                // Masked by `d`, which is 0 where an expert is not used.
                let pull = math::dot(pool.isa(), d, scores) / (divisor * divisor);
                for (d, _) in d.iter_mut().zip(used).filter(|(_, u)| **u) {
                    *d = *d / divisor - pull;
                }
            }
            if shape.routing == Routing::NoAuxTc {
                for (d, s) in d.iter_mut().zip(scores) {
                    *d *= s * (1.0 - s);
                }
            } else {
                let shift = math::dot(pool.isa(), d, scores);
                math::softmax_backward(pool.isa(), scores, d, shift, 1.0);
            }
        }
        let mut from = vec![0.0_f32; dx.len()];
        self.gate.product_back(pool, &d, &mut from);
        math::add(pool.isa(), dx, &from);
    }
}

#[cfg(test)]
mod tests;
