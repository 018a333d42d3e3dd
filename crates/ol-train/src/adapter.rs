//! Training a LoRA adapter on records.

use std::path::Path;

use ol_model::{
    CpuLearner, ForwardError, Learner, Lora, LoraConfig, LoraError, Model, PeftError, Pool, Random,
    Sequence, Tokenizer, TokenizerError, WeightsError,
};
use ol_runtime::Clock;
use ol_types::B256;
use thiserror::Error;

use crate::checkpoint::clear_checkpoints;
use crate::curve::CurvePoint;
use crate::options::TrainOptions;
use crate::segments::{SEGMENTS_MAX, Segments};
use crate::trainer::{Measurement, Objective, Observer, TrainError, mean_loss, train};

/// Why an adapter could not be trained.
#[derive(Debug, Error)]
pub enum AdapterError {
    /// The job makes no sense.
    #[error("training job: {0}")]
    Job(&'static str),
    /// The adapter's shape is out of its limits.
    #[error(transparent)]
    Shape(#[from] LoraError),
    /// A record cannot be encoded.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// Training failed.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// The adapter cannot be written.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The written adapter cannot be read back.
    #[error("the written adapter does not load: {0}")]
    ReadBack(#[from] PeftError),
    /// The adapter read back is not the one trained.
    #[error("the written adapter answers differently from the trained one; the job is not done")]
    Differs,
}

/// A base model with an adapter that is trained.
#[derive(Debug)]
pub struct LoraObjective<'a> {
    /// The base, which stays as it is.
    pub model: &'a Model,
    /// The adapter.
    pub adapter: Lora,
    /// Threads it runs on.
    pub pool: &'a Pool,
    /// What computes losses and gradients; without, the CPU engine on `pool`.
    pub learner: Option<&'a dyn Learner>,
}

impl LoraObjective<'_> {
    /// Lets what computes losses and gradients do `work`.
    pub(crate) fn learn<T>(&self, work: impl FnOnce(&dyn Learner) -> T) -> T {
        match self.learner {
            Some(learner) => work(learner),
            None => work(&CpuLearner::new(self.model, self.pool)),
        }
    }

    /// Loss of every sequence, nats.
    pub(crate) fn losses(&self, seqs: &[Sequence]) -> Result<Vec<f64>, ForwardError> {
        self.learn(|learner| learner.losses(Some(&self.adapter), seqs))
    }
}

impl Objective for LoraObjective<'_> {
    type Example = Sequence;

    fn identity(&self) -> B256 {
        self.model.hash()
    }

    fn parameters(&self) -> Vec<f32> {
        self.adapter.parameters().to_vec()
    }

    fn set_parameters(&mut self, params: &[f32]) -> bool {
        self.adapter.set_parameters(params).is_ok()
    }

    fn decays(&self) -> Vec<bool> {
        vec![true; self.adapter.n_params()]
    }

    fn add_gradient(
        &self,
        seqs: &[Sequence],
        recompute: bool,
        gradient: &mut [f32],
    ) -> Result<Vec<f64>, ForwardError> {
        self.learn(|l| l.add_gradient(&self.adapter, seqs, recompute, None, gradient))
    }

    fn measure(&self, seqs: &[Sequence]) -> Result<Vec<Measurement>, ForwardError> {
        self.losses(seqs).map(Measurement::of_losses)
    }
}

/// A question with its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrainingRecord {
    /// What is asked.
    pub question: String,
    /// What the model shall answer.
    pub answer: String,
}

impl TrainingRecord {
    /// The record in chat format, cut to `context` tokens: tokens of the
    /// question weigh `question_weight`, those of the answer and its end 1.
    ///
    /// # Errors
    /// When a text cannot be encoded.
    pub fn sequence(
        &self,
        tokenizer: &Tokenizer,
        context: usize,
        question_weight: f32,
    ) -> Result<Sequence, TokenizerError> {
        let (mut tokens, start) = tokenizer.record(&self.question, &self.answer)?;
        tokens.truncate(context);
        let weights = (0..tokens.len())
            .map(|t| if t < start { question_weight } else { 1.0 })
            .collect();
        Ok(Sequence { tokens, weights })
    }
}

/// What to train an adapter from.
#[derive(Debug)]
pub struct AdapterJob<'a> {
    /// Base model.
    pub model: &'a Model,
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Name of the base, recorded in the adapter's configuration.
    pub base_name: &'a str,
    /// Records to learn from; order matters for the result.
    pub records: &'a [TrainingRecord],
    /// Shape of the adapter.
    pub lora: LoraConfig,
    /// How to train; `steps` is replaced when `epochs` is given.
    pub options: TrainOptions,
    /// Passes over the records.
    pub epochs: Option<f64>,
    /// Loss weight of question tokens, 0 to 1; answers weigh 1.
    pub question_weight: f32,
    /// Part of the records held out for measuring, above 0 and at most a half.
    pub held_out_fraction: f64,
    /// Folder for the PEFT files.
    pub out_dir: &'a Path,
    /// Equal parts of the steps, 1 to 8; the adapter at the end of each is kept in
    /// `segments/1`, `segments/2` and so on below `out_dir`, but for the last part,
    /// which ends with the result.
    pub segments: u32,
    /// File for the checkpoint, removed when the job is done.
    pub checkpoint: Option<&'a Path>,
}

/// What the training of an adapter came to.
#[derive(Debug, Clone)]
pub struct AdapterReport {
    /// The adapter, as read back from its files.
    pub adapter: Lora,
    /// Its content hash.
    pub adapter_hash: B256,
    /// The adapters at the ends of the segments but the last one, in order.
    pub segments: Vec<Lora>,
    /// Options used, steps filled in.
    pub options: TrainOptions,
    /// Held-out loss of the base, nats a token.
    pub held_out_before: f64,
    /// Held-out loss with the adapter, nats a token.
    pub held_out_after: f64,
    /// Positions in `records` that were held out, ascending.
    pub held_out_records: Vec<usize>,
    /// Steps done.
    pub steps: u32,
    /// Tokens seen, repeats counted.
    pub tokens: u64,
    /// False when the observer stopped the run; the checkpoint is kept then.
    pub finished: bool,
    /// Measurements on the way.
    pub curve: Vec<CurvePoint>,
}

/// Trains an adapter, writes it as a PEFT directory, reads it back and compares
/// its logits before it says done.
///
/// # Errors
/// [`AdapterError`]; a checkpoint written before stays usable.
pub fn train_adapter<'a>(
    job: &AdapterJob<'a>,
    pool: &'a Pool,
    clock: &dyn Clock,
    observer: &mut impl Observer<LoraObjective<'a>>,
) -> Result<AdapterReport, AdapterError> {
    if job.records.len() < 2 {
        return Err(AdapterError::Job(
            "at least two records are needed: one to learn from, one to measure with",
        ));
    }
    if !(job.held_out_fraction > 0.0 && job.held_out_fraction <= 0.5) {
        return Err(AdapterError::Job(
            "held_out_fraction must be above 0 and at most 0.5",
        ));
    }
    if !(0.0..=1.0).contains(&job.question_weight) {
        return Err(AdapterError::Job("question_weight must be between 0 and 1"));
    }
    if job.epochs.is_some_and(|e| !(e > 0.0 && e <= 1000.0)) {
        return Err(AdapterError::Job("epochs must be above 0 and at most 1000"));
    }
    if !(1..=SEGMENTS_MAX).contains(&job.segments) {
        return Err(AdapterError::Job("segments must be 1 to 8"));
    }
    let context = job.model.config().max_position_embeddings;
    let held = held_out(job.records.len(), job.held_out_fraction, job.options.seed);
    let (mut training, mut measuring) = (Vec::new(), Vec::new());
    for (i, record) in job.records.iter().enumerate() {
        let sequence = record.sequence(job.tokenizer, context, job.question_weight)?;
        if held.binary_search(&i).is_ok() {
            &mut measuring
        } else {
            &mut training
        }
        .push(sequence);
    }
    let mut options = job.options.clone();
    if let Some(epochs) = job.epochs {
        options.steps = options.steps_for(training.iter().map(|s| s.tokens.len()).sum(), epochs);
        options.warmup_steps = options.warmup_steps.min(options.steps / 5);
    }
    let adapter = Lora::init(job.model.config(), job.lora.clone(), options.seed)?;
    let mut objective = LoraObjective {
        model: job.model,
        adapter,
        pool,
        learner: None,
    };
    // B is zero at first: the fresh adapter is the base.
    let held_out_before = mean_loss(&objective, &measuring)?;
    let mut observer = Segments::new(observer, job, options.steps);
    let trained = train(
        &mut objective,
        &training,
        &measuring,
        &options,
        job.checkpoint,
        clock,
        &mut observer,
    );
    // What could not be kept ended the run; that is to be known, not its end.
    observer.kept()?;
    let outcome = trained?;
    let segments = if outcome.finished {
        observer.read(job.model.config())?
    } else {
        Vec::new()
    };
    let probe = &measuring[..measuring.len().min(8)];
    let adapter = save_checked(&objective, job.out_dir, job.base_name, probe)?;
    if let Some(path) = job.checkpoint.filter(|_| outcome.finished) {
        clear_checkpoints(path).map_err(TrainError::from)?;
    }
    Ok(AdapterReport {
        adapter_hash: adapter.hash(),
        adapter,
        segments,
        options,
        held_out_before,
        held_out_after: outcome.held_out,
        held_out_records: held,
        steps: outcome.steps,
        tokens: outcome.tokens,
        finished: outcome.finished,
        curve: outcome.curve,
    })
}

/// Writes the trained adapter as a PEFT directory, reads it back, and compares:
/// the content, and the losses of `probe`, bit by bit. Returns what was read.
///
/// # Errors
/// [`AdapterError`] when it cannot be written or read, or is not the same.
pub fn save_checked(
    trained: &LoraObjective<'_>,
    dir: &Path,
    base_name: &str,
    probe: &[Sequence],
) -> Result<Lora, AdapterError> {
    trained.adapter.save(dir, base_name)?;
    let adapter = Lora::load(dir, trained.model.config())?;
    let losses = |adapter| {
        let losses = trained.model.losses(trained.pool, Some(adapter), probe);
        let bits = |losses: Vec<f64>| losses.into_iter().map(f64::to_bits).collect::<Vec<_>>();
        losses.map(bits).map_err(TrainError::from)
    };
    let same = losses(&adapter)? == losses(&trained.adapter)?;
    if adapter.hash() != trained.adapter.hash() || !same {
        return Err(AdapterError::Differs);
    }
    Ok(adapter)
}

/// Records held out: a seeded choice of at least one, at most all but one.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a fraction of a count, clamped"
)]
fn held_out(n: usize, fraction: f64, seed: u64) -> Vec<usize> {
    let wanted = ((n as f64 * fraction).round() as usize).clamp(1, n - 1);
    let mut order: Vec<usize> = (0..n).collect();
    Random::new(seed ^ 0x6865_6C64).shuffle(&mut order);
    order.truncate(wanted);
    order.sort_unstable();
    order
}

#[cfg(test)]
pub(crate) mod tests;
