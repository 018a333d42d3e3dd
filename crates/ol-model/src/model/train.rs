//! Losses and gradients over packed, ragged batches.

use std::ops::Range;

use super::Model;
use super::adapters::{Group, Pass, Target};
use super::block::{Place, Saved};
use super::forward::ForwardError;
use super::rows::{ROW_CHUNK, norm, norm_gradient};
use crate::kernels::{Mat, MatMut, Output, Panels, math, matmul};
use crate::linear::Precision;
use crate::lora::Lora;
use crate::pool::{Parts, Pool};
use crate::random::Random;

/// Rows whose logits exist at the same time.
const LOGIT_ROWS: usize = 256;

/// A sequence with its loss weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Sequence {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// `weights[t]` weighs the loss of predicting `tokens[t]` from the tokens
    /// before it; `weights[0]` is not used.
    pub weights: Vec<f32>,
}

impl Sequence {
    /// Tokens that are processed together: bounds the memory of a pass.
    const PASS_TOKENS: usize = 2048;

    /// Cuts `sequences` into the passes in which they are processed: consecutive
    /// ones of at most 2048 tokens together, or a single longer one.
    #[must_use]
    pub fn batches(sequences: &[Self]) -> Vec<Range<usize>> {
        let mut batches: Vec<Range<usize>> = Vec::new();
        let mut tokens = 0;
        for (i, s) in sequences.iter().enumerate() {
            match batches.last_mut() {
                Some(last) if tokens + s.tokens.len() <= Self::PASS_TOKENS => {
                    last.end = i + 1;
                    tokens += s.tokens.len();
                }
                _ => {
                    batches.push(i..i + 1);
                    tokens = s.tokens.len();
                }
            }
        }
        batches
    }
}

/// What the model is asked to predict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Labels {
    /// The tokens given.
    Given,
    /// Tokens drawn from the model's own distribution, as the true Fisher
    /// information needs. The draw depends on the seed, the sequence's tokens
    /// and the position, not on the batch.
    Sampled {
        /// Chooses the draw.
        seed: u64,
    },
}

/// How gradients are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GradientOptions {
    /// What is predicted.
    pub labels: Labels,
    /// Keeps only the input of each block and computes the rest again in the
    /// backward pass: a third more work, a fraction of the memory, the same
    /// bits (Chen et al., 2016).
    pub recompute: bool,
}

impl From<Labels> for GradientOptions {
    fn from(labels: Labels) -> Self {
        Self {
            labels,
            recompute: false,
        }
    }
}

/// A factor for the gradient of each sequence, from the losses of all.
type Factors<'a> = &'a dyn Fn(&[f64]) -> Vec<f32>;

/// Loss of one sequence and its gradient with respect to the adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct SequenceGradient {
    /// `sum_t weights[t] nll_t`.
    pub loss: f64,
    /// In the flat order of [`Lora::parameters`].
    pub gradient: Vec<f32>,
}

/// Sequences laid end to end. The last token of each is only a target.
pub(super) struct Batch {
    pub(super) tokens: Vec<u32>,
    pub(super) spans: Vec<Range<usize>>,
    /// Position of each row in its sequence.
    pub(super) positions: Vec<usize>,
    /// Rows that have a loss.
    targets: Vec<Goal>,
}

struct Goal {
    row: usize,
    token: usize,
    weight: f32,
    sequence: usize,
    draw: Option<u64>,
}

impl Batch {
    fn new(seqs: &[Sequence], labels: Labels) -> Self {
        let mut batch = Self {
            tokens: Vec::new(),
            spans: Vec::new(),
            positions: Vec::new(),
            targets: Vec::new(),
        };
        for (sequence, s) in seqs.iter().enumerate() {
            let start = batch.tokens.len();
            let inputs = s.tokens.len().saturating_sub(1);
            batch.tokens.extend(&s.tokens[..inputs]);
            batch.spans.push(start..start + inputs);
            batch.positions.extend(0..inputs);
            let key = match labels {
                Labels::Given => None,
                // FNV-1a over the tokens: batch-independent.
                Labels::Sampled { seed } => Some(
                    s.tokens
                        .iter()
                        .fold(seed ^ 0xCBF2_9CE4_8422_2325, |hash, &t| {
                            (hash ^ u64::from(t)).wrapping_mul(0x0000_0100_0000_01B3)
                        }),
                ),
            };
            for t in 1..s.tokens.len() {
                if s.weights[t] != 0.0 {
                    batch.targets.push(Goal {
                        row: start + t - 1,
                        token: s.tokens[t] as usize,
                        weight: s.weights[t],
                        sequence,
                        draw: key.map(|k| k.wrapping_add(t as u64)),
                    });
                }
            }
        }
        batch
    }
}

impl Model {
    /// Loss of every sequence: `sum_t weights[t] nll_t`, in nats.
    ///
    /// # Errors
    /// [`ForwardError`] when a sequence or the adapter does not fit the model.
    pub fn losses(
        &self,
        pool: &Pool,
        adapter: Option<&Lora>,
        seqs: &[Sequence],
    ) -> Result<Vec<f64>, ForwardError> {
        self.check_sequences(adapter, seqs)?;
        let mut losses = Vec::with_capacity(seqs.len());
        for range in Sequence::batches(seqs) {
            let batch = Batch::new(&seqs[range], Labels::Given);
            let x = self.run(pool, adapter, &batch, None);
            losses.extend(self.loss(pool, &batch, &x, None).0);
        }
        Ok(losses)
    }

    /// What the model makes of each sequence: the mean over its tokens of the
    /// normalised last hidden state, `[hidden_size]`. The last token is left out,
    /// as it is with losses.
    ///
    /// # Errors
    /// [`ForwardError`] when a sequence or the adapter does not fit the model.
    pub fn mean_hidden(
        &self,
        pool: &Pool,
        adapter: Option<&Lora>,
        seqs: &[Sequence],
    ) -> Result<Vec<Vec<f32>>, ForwardError> {
        self.check_sequences(adapter, seqs)?;
        let h = self.config.hidden_size;
        let mut means = Vec::with_capacity(seqs.len());
        for range in Sequence::batches(seqs) {
            let batch = Batch::new(&seqs[range], Labels::Given);
            let x = self.run(pool, adapter, &batch, None);
            let mut normed = vec![0.0_f32; x.len()];
            norm(
                pool,
                &x,
                &self.norm,
                self.config.rms_norm_eps,
                &mut normed,
                None,
            );
            for span in batch.spans {
                #[expect(clippy::cast_precision_loss, reason = "a number of tokens")]
                let part = 1.0 / span.len().max(1) as f32;
                let mut mean = vec![0.0_f32; h];
                for row in normed[span.start * h..span.end * h].chunks_exact(h) {
                    mean.iter_mut().zip(row).for_each(|(m, x)| *m += part * x);
                }
                means.push(mean);
            }
        }
        Ok(means)
    }

    /// Loss and gradient of **each** sequence with respect to the adapter, from
    /// one backward pass over the packed batch.
    ///
    /// A sequence's gradient is bit-identical alone and in any batch.
    ///
    /// # Errors
    /// [`ForwardError`] when a sequence or the adapter does not fit the model.
    pub fn lora_gradients(
        &self,
        pool: &Pool,
        adapter: &Lora,
        seqs: &[Sequence],
        options: impl Into<GradientOptions>,
    ) -> Result<Vec<SequenceGradient>, ForwardError> {
        self.check_sequences(Some(adapter), seqs)?;
        let options = options.into();
        let mut out = Vec::with_capacity(seqs.len());
        for range in Sequence::batches(seqs) {
            let batch = Batch::new(&seqs[range], options.labels);
            let mut gradients = vec![vec![0.0_f32; adapter.n_params()]; batch.spans.len()];
            let groups = batch
                .spans
                .iter()
                .cloned()
                .zip(gradients.iter_mut().map(Vec::as_mut_slice))
                .collect();
            let target = &mut Target::Lora { adapter, groups };
            let losses = self.gradients(pool, &batch, options, target, None);
            out.extend(
                losses
                    .into_iter()
                    .zip(gradients)
                    .map(|(loss, gradient)| SequenceGradient { loss, gradient }),
            );
        }
        Ok(out)
    }

    /// Loss and gradient of the sum over all sequences with respect to the
    /// adapter.
    ///
    /// # Errors
    /// [`ForwardError`] when a sequence or the adapter does not fit the model.
    pub fn lora_gradient(
        &self,
        pool: &Pool,
        adapter: &Lora,
        seqs: &[Sequence],
        options: impl Into<GradientOptions>,
    ) -> Result<(f64, Vec<f32>), ForwardError> {
        let mut gradient = vec![0.0_f32; adapter.n_params()];
        let losses = self.add_lora_gradient(pool, adapter, seqs, options, &mut gradient)?;
        Ok((losses.iter().sum(), gradient))
    }

    /// Adds the gradient of the sum over all sequences with respect to the
    /// adapter to `gradient`; returns the loss of each sequence. Sequences given
    /// in several calls add up to the same bits as in one.
    ///
    /// # Errors
    /// [`ForwardError`] when a sequence or the adapter does not fit the model;
    /// `gradient` is then unchanged.
    ///
    /// # Panics
    /// If `gradient` has not one element for each parameter of the adapter.
    pub fn add_lora_gradient(
        &self,
        pool: &Pool,
        adapter: &Lora,
        seqs: &[Sequence],
        options: impl Into<GradientOptions>,
        gradient: &mut [f32],
    ) -> Result<Vec<f64>, ForwardError> {
        assert_eq!(gradient.len(), adapter.n_params(), "one value a parameter");
        self.check_sequences(Some(adapter), seqs)?;
        let options = options.into();
        let mut losses = Vec::with_capacity(seqs.len());
        for range in Sequence::batches(seqs) {
            let batch = Batch::new(&seqs[range], options.labels);
            let groups = vec![(0..batch.tokens.len(), &mut *gradient)];
            let target = &mut Target::Lora { adapter, groups };
            losses.extend(self.gradients(pool, &batch, options, target, None));
        }
        Ok(losses)
    }

    /// As [`Self::add_lora_gradient`], the gradient of each sequence scaled by
    /// what `factors` makes of the losses of all, which are returned as they
    /// are. So a loss that is a function of several likelihoods is
    /// differentiated in one pass (however long the sequences are together).
    ///
    /// # Errors
    /// As [`Self::add_lora_gradient`].
    ///
    /// # Panics
    /// As [`Self::add_lora_gradient`], and if there is not one factor for each
    /// sequence.
    pub fn add_scaled_lora_gradient(
        &self,
        pool: &Pool,
        adapter: &Lora,
        seqs: &[Sequence],
        options: impl Into<GradientOptions>,
        factors: Factors<'_>,
        gradient: &mut [f32],
    ) -> Result<Vec<f64>, ForwardError> {
        assert_eq!(gradient.len(), adapter.n_params(), "one value a parameter");
        self.check_sequences(Some(adapter), seqs)?;
        let options = options.into();
        let batch = Batch::new(seqs, options.labels);
        let groups = vec![(0..batch.tokens.len(), gradient)];
        let target = &mut Target::Lora { adapter, groups };
        Ok(self.gradients(pool, &batch, options, target, Some(factors)))
    }

    /// Loss and gradient of the sum over all sequences with respect to every
    /// base parameter, in the flat order of [`crate::Layout`].
    ///
    /// # Errors
    /// [`ForwardError`] when a sequence does not fit the model, or its weights
    /// cannot be trained.
    pub fn full_gradient(
        &self,
        pool: &Pool,
        seqs: &[Sequence],
    ) -> Result<(f64, Vec<f32>), ForwardError> {
        let mut gradient = vec![0.0_f32; self.layout.len()];
        let losses = self.add_full_gradient(pool, seqs, false, &mut gradient)?;
        Ok((losses.iter().sum(), gradient))
    }

    /// Adds the gradient of the sum over all sequences with respect to every
    /// base parameter, in the flat order of [`crate::Layout`], to `gradient`;
    /// returns the loss of each sequence. `recompute` is that of
    /// [`GradientOptions`].
    ///
    /// # Errors
    /// [`ForwardError`] when a sequence does not fit the model, or its weights
    /// cannot be trained; `gradient` is then unchanged.
    ///
    /// # Panics
    /// If `gradient` has not one element for each parameter of the model.
    pub fn add_full_gradient(
        &self,
        pool: &Pool,
        seqs: &[Sequence],
        recompute: bool,
        gradient: &mut [f32],
    ) -> Result<Vec<f64>, ForwardError> {
        assert_eq!(gradient.len(), self.layout.len(), "one value a parameter");
        self.check_sequences(None, seqs)?;
        if !self.linears().iter().all(|l| l.is_dense()) {
            return Err(ForwardError::Frozen("a quantised or 16-bit base"));
        }
        if self.config.moe.is_some() {
            return Err(ForwardError::Frozen("a model with experts"));
        }
        let options = GradientOptions {
            labels: Labels::Given,
            recompute,
        };
        let mut losses = Vec::with_capacity(seqs.len());
        for range in Sequence::batches(seqs) {
            let batch = Batch::new(&seqs[range], options.labels);
            let target = &mut Target::Full(gradient);
            losses.extend(self.gradients(pool, &batch, options, target, None));
        }
        Ok(losses)
    }

    fn gradients(
        &self,
        pool: &Pool,
        batch: &Batch,
        options: GradientOptions,
        target: &mut Target<'_>,
        factors: Option<Factors<'_>>,
    ) -> Vec<f64> {
        let adapter = match target {
            Target::Lora { adapter, .. } => Some(*adapter),
            Target::Full(_) => None,
        };
        let mut saved = Vec::with_capacity(self.blocks.len());
        let x = self.run(pool, adapter, batch, Some((&mut saved, options.recompute)));
        let (losses, mut dx) = self.loss(pool, batch, &x, Some(target));
        drop(x);
        if let Some(factors) = factors {
            let (h, factors) = (self.config.hidden_size, factors(&losses));
            assert_eq!(factors.len(), batch.spans.len(), "a factor a sequence");
            for (span, factor) in batch.spans.iter().zip(factors) {
                let rows = &mut dx[span.start * h..span.end * h];
                math::scale(pool.isa(), rows, factor);
            }
        }
        self.backward(pool, batch, saved, options.recompute, dx, target);
        losses
    }

    fn check_sequences(
        &self,
        adapter: Option<&Lora>,
        seqs: &[Sequence],
    ) -> Result<(), ForwardError> {
        if adapter.is_some_and(|a| !a.fits(&self.config)) {
            return Err(ForwardError::Shape {
                segment: 0,
                what: "adapter",
            });
        }
        for (i, s) in seqs.iter().enumerate() {
            if s.weights.len() != s.tokens.len() || s.weights.iter().any(|w| !w.is_finite()) {
                return Err(ForwardError::Weights(i));
            }
            self.check_tokens(i, &s.tokens)?;
            let room = self.config.max_position_embeddings + 1;
            if s.tokens.len() > room {
                return Err(ForwardError::TooLong {
                    segment: i,
                    needed: s.tokens.len(),
                    room,
                });
            }
        }
        Ok(())
    }

    /// The residual stream after the last block, `[rows, hidden]`. What the
    /// backward pass needs is pushed to `saved`: all of it, or only the input
    /// of each block if that is to be recomputed.
    fn run(
        &self,
        pool: &Pool,
        adapter: Option<&Lora>,
        batch: &Batch,
        mut saved: Option<(&mut Vec<Saved>, bool)>,
    ) -> Vec<f32> {
        let h = self.config.hidden_size;
        let rows = batch.tokens.len();
        let groups = whole(adapter, rows);
        let pass = Pass {
            pool,
            config: &self.config,
            groups: &groups,
            precision: Precision::Exact,
        };
        let mut x = vec![0.0_f32; rows * h];
        let parts = Parts::new(&mut x);
        pool.ranges(rows, ROW_CHUNK, &|range| {
            parts.with(range.start * h..range.end * h, |x| {
                for (row, &token) in x.chunks_exact_mut(h).zip(&batch.tokens[range]) {
                    self.embed(token as usize, row);
                }
            });
        });
        let mut s = Saved::default();
        for (layer, block) in self.blocks.iter().enumerate() {
            let place = self.place(batch, layer);
            match saved.as_mut() {
                Some((saved, false)) => {
                    block.forward(&pass, &place, &mut x, &mut s, true);
                    saved.push(std::mem::take(&mut s));
                }
                Some((saved, true)) => {
                    saved.push(Saved::input(x.clone()));
                    block.forward(&pass, &place, &mut x, &mut s, false);
                }
                None => block.forward(&pass, &place, &mut x, &mut s, false),
            }
        }
        x
    }

    fn place<'a>(&'a self, batch: &'a Batch, layer: usize) -> Place<'a> {
        Place {
            layer,
            rope: &self.rope,
            spans: &batch.spans,
            positions: &batch.positions,
        }
    }

    /// Carries `dx`, the gradient of the residual stream after the last block,
    /// back to the embedding and adds what belongs to the target.
    fn backward(
        &self,
        pool: &Pool,
        batch: &Batch,
        mut saved: Vec<Saved>,
        recompute: bool,
        mut dx: Vec<f32>,
        target: &mut Target<'_>,
    ) {
        let adapter = match target {
            Target::Lora { adapter, .. } => Some(*adapter),
            Target::Full(_) => None,
        };
        let groups = whole(adapter, batch.tokens.len());
        let pass = Pass {
            pool,
            config: &self.config,
            groups: &groups,
            precision: Precision::Exact,
        };
        for (layer, block) in self.blocks.iter().enumerate().rev() {
            let Some(mut s) = saved.pop() else { return };
            let place = self.place(batch, layer);
            if recompute {
                let mut x = s.into_input();
                s = Saved::default();
                block.forward(&pass, &place, &mut x, &mut s, true);
            }
            // Below the first block only the embedding is trained.
            let below = layer > 0 || matches!(target, Target::Full(_));
            block.backward(&pass, &place, s, &mut dx, below, target);
        }
        if let Target::Full(gradient) = target {
            let h = self.config.hidden_size;
            let embedding = &mut gradient[self.embedding().flat()];
            for (dx, &token) in dx.chunks_exact(h).zip(&batch.tokens) {
                let row = token as usize * h..(token as usize + 1) * h;
                math::add(pool.isa(), &mut embedding[row], dx);
            }
        }
    }

    /// Losses of the sequences; with a target also the gradient of the
    /// residual stream, and the head's and final norm's if those are trained.
    fn loss(
        &self,
        pool: &Pool,
        batch: &Batch,
        x: &[f32],
        mut target: Option<&mut Target<'_>>,
    ) -> (Vec<f64>, Vec<f32>) {
        let (h, vocab) = (self.config.hidden_size, self.config.vocab_size);
        // A row of logits is a little longer than the vocabulary, so that rows
        // do not fall on the same cache sets.
        let stride = vocab + 16;
        let mut losses = vec![0.0_f64; batch.spans.len()];
        let mut dx = vec![0.0_f32; if target.is_some() { x.len() } else { 0 }];
        let mut normed = Vec::new();
        let mut inverse = Vec::new();
        let mut logits = Vec::new();
        let mut panels = Panels::default();
        for goals in batch.targets.chunks(LOGIT_ROWS) {
            let n = goals.len();
            let rows: Vec<f32> = goals
                .iter()
                .flat_map(|g| &x[g.row * h..(g.row + 1) * h])
                .copied()
                .collect();
            normed.resize(n * h, 0.0_f32);
            let eps = self.config.rms_norm_eps;
            norm(
                pool,
                &rows,
                &self.norm,
                eps,
                &mut normed,
                Some(&mut inverse),
            );
            logits.resize(n * stride, 0.0_f32);
            let out = Output::new(&mut logits, stride);
            self.head.product_to(pool, &normed, &out, Precision::Exact);
            let mut row_losses = vec![0.0_f64; n];
            let (logit_parts, loss_parts) = (Parts::new(&mut logits), Parts::new(&mut row_losses));
            pool.ranges(n, 4, &|range| {
                for i in range {
                    logit_parts.with(i * stride..i * stride + vocab, |row| {
                        loss_parts.with(i..i + 1, |loss| loss[0] = score(pool, &goals[i], row));
                    });
                }
            });
            for (goal, loss) in goals.iter().zip(&row_losses) {
                losses[goal.sequence] += f64::from(goal.weight) * loss;
            }
            let Some(target) = target.as_deref_mut() else {
                continue;
            };
            let d_logits = Mat::strided(&logits, n, vocab, stride);
            let mut d_normed = vec![0.0_f32; n * h];
            self.head.product_back_of(pool, d_logits, &mut d_normed);
            if let Target::Full(gradient) = target {
                panels.repack(pool, Mat::new(&normed, n, h));
                let d_head = &mut gradient[self.head.flat()];
                matmul(
                    pool,
                    d_logits.t(),
                    panels.view(),
                    MatMut::new(d_head, vocab, h),
                    true,
                );
                let d_norm = &mut gradient[self.norm.flat()];
                norm_gradient(pool, &rows, &inverse, &d_normed, d_norm);
            }
            // Rows of the targets are distinct: each has one next token.
            for (i, goal) in goals.iter().enumerate() {
                let (row, dy) = (&rows[i * h..(i + 1) * h], &d_normed[i * h..(i + 1) * h]);
                let weight = &self.norm.weight;
                let out = &mut dx[goal.row * h..(goal.row + 1) * h];
                math::rms_norm_backward(pool.isa(), row, weight, inverse[i], dy, out);
            }
        }
        (losses, dx)
    }
}

/// One group of all rows.
fn whole(adapter: Option<&Lora>, rows: usize) -> Vec<Group<'_>> {
    adapter
        .map(|adapter| Group {
            rows: 0..rows,
            adapter,
        })
        .into_iter()
        .collect()
}

/// Negative log-likelihood of the goal; `row` turns from logits to their
/// weighted gradient.
fn score(pool: &Pool, goal: &Goal, row: &mut [f32]) -> f64 {
    let isa = pool.isa();
    let top = math::max(isa, row);
    let given = row[goal.token];
    let before = goal.draw.map(|_| row.to_vec());
    let sum = math::exp_minus(isa, row, top);
    let (token, logit) = match (goal.draw, before) {
        (Some(key), Some(before)) => {
            let token = draw(row, sum, key);
            (token, before[token])
        }
        _ => (goal.token, given),
    };
    math::scale(isa, row, goal.weight / sum);
    row[token] -= goal.weight;
    libm::log(f64::from(sum)) + f64::from(top) - f64::from(logit)
}

/// An index drawn with probability proportional to `row`, which sums to about `sum`.
fn draw(row: &[f32], sum: f32, key: u64) -> usize {
    let wanted = Random::new(key).uniform() * f64::from(sum);
    let mut seen = 0.0_f64;
    for (i, &e) in row.iter().enumerate() {
        seen += f64::from(e);
        if seen > wanted {
            return i;
        }
    }
    row.len() - 1
}
