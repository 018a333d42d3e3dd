//! One block of the model over whole sequences: forward for training, and
//! backward.

use std::ops::Range;

use super::adapters::{Inner, Pass, Target};
use super::heads::{Heads, SavedHeads};
use super::moe::{FeedForward, SavedFeedForward};
use super::rope::RopeTable;
use super::rows::{add, norm, norm_again, norm_backward, norm_gradient};
use crate::linear::{Linear, Norm};
use crate::pool::Pool;

/// Weights of one block.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) norm1: Norm,
    pub(super) attention: Heads,
    pub(super) norm2: Norm,
    pub(super) mlp: FeedForward,
}

/// What the forward pass of one block leaves for the backward pass.
#[derive(Default)]
pub(super) struct Saved {
    /// The residual stream before the block.
    x: Vec<f32>,
    inverse1: Vec<f32>,
    attention: SavedHeads,
    /// The residual stream between attention and feed-forward.
    middle: Vec<f32>,
    inverse2: Vec<f32>,
    feed_forward: SavedFeedForward,
    inner: Inner,
}

impl Saved {
    /// Only what is needed to run the block again.
    pub(super) fn input(x: Vec<f32>) -> Self {
        Self {
            x,
            ..Self::default()
        }
    }

    /// The residual stream before the block.
    pub(super) fn into_input(self) -> Vec<f32> {
        self.x
    }
}

/// Where the rows of a pass come from.
pub(super) struct Place<'a> {
    /// The block's number.
    pub(super) layer: usize,
    pub(super) rope: &'a RopeTable,
    /// Rows of each sequence.
    pub(super) spans: &'a [Range<usize>],
    /// Position of each row in its sequence.
    pub(super) positions: &'a [usize],
}

impl Block {
    /// Every linear layer.
    pub(super) fn linears(&self) -> Vec<&Linear> {
        let mut all = self.attention.inputs.linears();
        all.push(&self.attention.o);
        all.extend(self.mlp.linears());
        all
    }

    /// As [`Self::linears`].
    pub(super) fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let mut all = self.attention.inputs.linears_mut();
        all.push(&mut self.attention.o);
        all.extend(self.mlp.linears_mut());
        all
    }

    /// Every norm, and the other vectors that are no biases of linear layers.
    pub(super) fn norms(&self) -> Vec<&Norm> {
        let mut all = vec![&self.norm1, &self.norm2];
        all.extend(self.attention.inputs.norms());
        all.extend(self.mlp.norms());
        all
    }

    /// As [`Self::norms`].
    pub(super) fn norms_mut(&mut self) -> Vec<&mut Norm> {
        let mut all = vec![&mut self.norm1, &mut self.norm2];
        all.extend(self.attention.inputs.norms_mut());
        all.extend(self.mlp.norms_mut());
        all
    }

    /// `x` becomes what the next block reads; with `keep` all that the
    /// backward pass needs is left in `saved`.
    pub(super) fn forward(
        &self,
        pass: &Pass<'_>,
        place: &Place<'_>,
        x: &mut [f32],
        saved: &mut Saved,
        keep: bool,
    ) {
        let (pool, eps) = (pass.pool, pass.config.rms_norm_eps);
        if keep {
            saved.x.clear();
            saved.x.extend_from_slice(x);
        }
        let mut normed = vec![0.0_f32; x.len()];
        let mut delta = vec![0.0_f32; x.len()];
        norm(
            pool,
            x,
            &self.norm1,
            eps,
            &mut normed,
            Some(&mut saved.inverse1),
        );
        self.attention.forward(
            pass,
            place.layer,
            place.rope,
            place.spans,
            place.positions,
            &normed,
            &mut saved.attention,
            &mut saved.inner,
            &mut delta,
        );
        add(pool, x, &delta);
        if keep {
            saved.middle.clear();
            saved.middle.extend_from_slice(x);
        }
        norm(
            pool,
            x,
            &self.norm2,
            eps,
            &mut normed,
            Some(&mut saved.inverse2),
        );
        self.mlp.forward(
            pass,
            place.layer,
            &normed,
            &mut saved.feed_forward,
            Some(&mut saved.inner),
            &mut delta,
        );
        add(pool, x, &delta);
    }

    /// Carries `dx`, the gradient of the block's output, to its input (unless
    /// nothing below is trained: `below` false) and adds what belongs to the
    /// target.
    pub(super) fn backward(
        &self,
        pass: &Pass<'_>,
        place: &Place<'_>,
        mut saved: Saved,
        dx: &mut [f32],
        below: bool,
        target: &mut Target<'_>,
    ) {
        let pool = pass.pool;
        let mut normed = vec![0.0_f32; dx.len()];
        let mut d_normed = vec![0.0_f32; dx.len()];
        norm_again(
            pool,
            &saved.middle,
            &self.norm2,
            &saved.inverse2,
            &mut normed,
        );
        self.mlp.backward(
            pass,
            place.layer,
            &normed,
            &mut saved.feed_forward,
            &saved.inner,
            dx,
            &mut d_normed,
            target,
        );
        let (x, inverse) = (&saved.middle, &saved.inverse2);
        back_through_norm(pool, &self.norm2, x, inverse, &d_normed, dx, target);
        norm_again(pool, &saved.x, &self.norm1, &saved.inverse1, &mut normed);
        self.attention.backward(
            pass,
            place.layer,
            place.rope,
            place.spans,
            place.positions,
            &normed,
            &saved.attention,
            &saved.inner,
            dx,
            below.then_some(&mut d_normed),
            target,
        );
        if !below {
            return;
        }
        let (x, inverse) = (&saved.x, &saved.inverse1);
        back_through_norm(pool, &self.norm1, x, inverse, &d_normed, dx, target);
    }
}

/// Adds the gradient of a norm's input to `dx`, and that of its weights to the
/// target if they are trained.
fn back_through_norm(
    pool: &Pool,
    norm: &Norm,
    x: &[f32],
    inverse: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    target: &mut Target<'_>,
) {
    if let Target::Full(gradient) = target {
        norm_gradient(pool, x, inverse, dy, &mut gradient[norm.flat()]);
    }
    norm_backward(pool, x, norm, inverse, dy, dx);
}
