//! AdamW (Loshchilov and Hutter, 2019), with moments in f32 or in blocks of
//! 8-bit numbers.

mod blocks;

use crate::checkpoint::{Values, ValuesMut};
use crate::options::{Optimizer, TrainOptions};
use blocks::Blocks;

const EPSILON: f32 = 1e-8;

/// The optimiser: two moments of every parameter, and the steps done.
#[derive(Debug, Clone, PartialEq)]
pub struct AdamW {
    moments: Moments,
    steps: u32,
    beta1: f32,
    beta2: f32,
    decay: f32,
}

#[derive(Debug, Clone, PartialEq)]
enum Moments {
    /// Mean of the gradients, mean of their squares.
    Full { first: Vec<f32>, second: Vec<f32> },
    /// The same in 8 bits. Of the squares the root is kept: its range is half
    /// as wide, so that no parameter that moves loses its second moment.
    Blocks { first: Blocks, root: Blocks },
}

/// What one step needs besides moments and gradient.
struct Factors {
    beta1: f32,
    beta2: f32,
    /// Rate over the bias correction of the first moment.
    rate: f32,
    /// One over the root of the bias correction of the second.
    root: f32,
    /// Part of a decaying parameter that goes.
    shrink: f32,
}

impl Factors {
    /// New moments of one parameter, and the parameter moved.
    fn apply(&self, p: &mut f32, g: f32, decays: bool, m: f32, v: f32) -> (f32, f32) {
        let m = self.beta1 * m + (1.0 - self.beta1) * g;
        let v = self.beta2 * v + (1.0 - self.beta2) * g * g;
        let shrink = if decays { self.shrink * *p } else { 0.0 };
        *p -= self.rate * m / (v.sqrt() * self.root + EPSILON) + shrink;
        (m, v)
    }
}

impl AdamW {
    /// Zero moments for `n` parameters, in f32; `decay` is the decoupled weight
    /// decay.
    #[must_use]
    pub fn new(n: usize, beta1: f32, beta2: f32, decay: f32) -> Self {
        Self {
            moments: Moments::Full {
                first: vec![0.0; n],
                second: vec![0.0; n],
            },
            steps: 0,
            beta1,
            beta2,
            decay,
        }
    }

    /// Zero moments for `n` parameters as `options` say.
    #[must_use]
    pub fn of(options: &TrainOptions, n: usize) -> Self {
        let (beta1, beta2, decay) = (options.beta1, options.beta2, options.weight_decay);
        match options.optimizer {
            Optimizer::AdamW => Self::new(n, beta1, beta2, decay),
            Optimizer::AdamW8Bit => Self {
                moments: Moments::Blocks {
                    first: Blocks::signed(n),
                    root: Blocks::unsigned(n),
                },
                steps: 0,
                beta1,
                beta2,
                decay,
            },
        }
    }

    /// Bytes that the moments of `n` parameters take.
    #[must_use]
    pub const fn size_bytes(optimizer: Optimizer, n: usize) -> usize {
        match optimizer {
            Optimizer::AdamW => 8 * n,
            Optimizer::AdamW8Bit => 2 * Blocks::size_bytes(n),
        }
    }

    /// One step down `gradient`; `decays` says which parameters decay.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn step(&mut self, params: &mut [f32], gradient: &[f32], decays: &[bool], rate: f32) {
        let n = match &self.moments {
            Moments::Full { first, .. } => first.len(),
            Moments::Blocks { first, .. } => first.len(),
        };
        assert!(
            params.len() == n && gradient.len() == n && decays.len() == n,
            "one value a parameter"
        );
        self.steps += 1;
        let correct = |beta: f32| 1.0 - libm::pow(f64::from(beta), f64::from(self.steps));
        #[expect(
            clippy::cast_possible_truncation,
            reason = "rounding to f32 is what is wanted"
        )]
        let factors = Factors {
            beta1: self.beta1,
            beta2: self.beta2,
            rate: (f64::from(rate) / correct(self.beta1)) as f32,
            root: (1.0 / correct(self.beta2)).sqrt() as f32,
            shrink: rate * self.decay,
        };
        let moving = params.iter_mut().zip(gradient).zip(decays);
        match &mut self.moments {
            Moments::Full { first, second } => {
                let moments = first.iter_mut().zip(second);
                for (((p, g), decays), (m, v)) in moving.zip(moments) {
                    (*m, *v) = factors.apply(p, *g, *decays, *m, *v);
                }
            }
            Moments::Blocks { first, root } => {
                let (mut m, mut r) = (Vec::new(), Vec::new());
                let mut moving = moving;
                for block in 0..first.n_blocks() {
                    first.read(block, &mut m);
                    root.read(block, &mut r);
                    for ((m, r), ((p, g), decays)) in m.iter_mut().zip(&mut r).zip(&mut moving) {
                        let (new, v) = factors.apply(p, *g, *decays, *m, *r * *r);
                        (*m, *r) = (new, v.sqrt());
                    }
                    first.write(block, &m);
                    root.write(block, &r);
                }
            }
        }
    }

    /// The moments for a checkpoint, by name.
    pub(crate) fn values(&self) -> Vec<(&'static str, Values<'_>)> {
        match &self.moments {
            Moments::Full { first, second } => vec![
                ("adamw.first", Values::F32(first)),
                ("adamw.second", Values::F32(second)),
            ],
            Moments::Blocks { first, root } => vec![
                ("adamw.first.codes", Values::U8(&first.codes)),
                ("adamw.first.scales", Values::F32(&first.scales)),
                ("adamw.root.codes", Values::U8(&root.codes)),
                ("adamw.root.scales", Values::F32(&root.scales)),
            ],
        }
    }

    /// As [`AdamW::values`], to be overwritten by those of a checkpoint after
    /// `steps` steps.
    pub(crate) fn values_mut(&mut self, steps: u32) -> Vec<(&'static str, ValuesMut<'_>)> {
        self.steps = steps;
        match &mut self.moments {
            Moments::Full { first, second } => vec![
                ("adamw.first", ValuesMut::F32(first)),
                ("adamw.second", ValuesMut::F32(second)),
            ],
            Moments::Blocks { first, root } => vec![
                ("adamw.first.codes", ValuesMut::U8(&mut first.codes)),
                ("adamw.first.scales", ValuesMut::F32(&mut first.scales)),
                ("adamw.root.codes", ValuesMut::U8(&mut root.codes)),
                ("adamw.root.scales", ValuesMut::F32(&mut root.scales)),
            ],
        }
    }
}

#[cfg(test)]
mod tests;
