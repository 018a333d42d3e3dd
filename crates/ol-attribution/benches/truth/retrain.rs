//! One retraining, and the losses after it.

use ol_model::{Lora, LoraConfig, Model, Pool, Sequence};
use ol_runtime::SystemClock;
use ol_train::{LoraObjective, Observer, Progress, TrainOptions, train};

use crate::domain::{Domain, KINDS, Text};
use crate::plan;
use crate::setting::Setting;

/// The model that is retrained and where.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) model: Model,
    pub(crate) pool: Pool,
}

/// An adapter on the way to the last one.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) adapter: Lora,
    /// Mean learning rate since the one before.
    pub(crate) learning_rate: f64,
}

/// Adapters kept on the way.
#[derive(Default)]
struct Snapshots {
    taken: Vec<Snapshot>,
    rates: Vec<f64>,
}

impl Observer<LoraObjective<'_>> for Snapshots {
    fn on_step(&mut self, progress: &Progress) {
        self.rates.push(f64::from(progress.learning_rate));
    }

    fn on_checkpoint(&mut self, objective: &LoraObjective<'_>, _step: u32) {
        #[expect(clippy::cast_precision_loss, reason = "some hundred steps")]
        let n = self.rates.len().max(1) as f64;
        self.taken.push(Snapshot {
            adapter: objective.adapter.clone(),
            learning_rate: self.rates.drain(..).sum::<f64>() / n,
        });
    }
}

/// Trains an adapter on the records that are kept; returns it after each of
/// `parts` equal parts of the steps, the last one being the result.
pub(crate) fn train_on(
    machine: &Machine,
    domain: &Domain,
    setting: &Setting,
    is_kept: &[bool],
    seed: usize,
    parts: u32,
) -> anyhow::Result<Vec<Snapshot>> {
    // All passes laid end to end, so that trainings of one seed share the order
    // of what they have in common.
    let mut passes = Vec::new();
    for epoch in 0..setting.epochs {
        let order = plan::order(domain.pool.len(), seed, epoch);
        let kept = order.into_iter().filter(|&at| is_kept[at]);
        passes.extend(kept.map(|at| domain.pool[at].whole()));
    }
    let options = TrainOptions {
        batch_tokens: setting.batch_tokens,
        epochs: Some(1.0),
        evaluate_every: u32::MAX,
        evaluate_tokens: 1,
        learning_rate: setting.learning_rate,
        shuffle: false,
        ..TrainOptions::default()
    };
    let n_tokens = passes.iter().map(|s| s.tokens.len()).sum();
    let mut options = options.resolve(passes.len(), n_tokens)?;
    options.checkpoint_every = options.steps.div_ceil(parts);
    let config = LoraConfig::all_linear(setting.rank);
    let mut objective = LoraObjective {
        model: &machine.model,
        adapter: Lora::init(machine.model.config(), config, plan::adapter_seed(seed))?,
        pool: &machine.pool,
        learner: None,
    };
    // The loop wants something to measure at its end; the smallest will do.
    let probe = passes.iter().min_by_key(|s| s.tokens.len()).cloned();
    let folder = (parts > 1).then(tempfile::tempdir).transpose()?;
    let checkpoint = folder.as_ref().map(|folder| folder.path().join("step"));
    let mut snapshots = Snapshots::default();
    train(
        &mut objective,
        &passes,
        probe.as_slice(),
        &options,
        checkpoint.as_deref(),
        &SystemClock::new(),
        &mut snapshots,
    )?;
    if parts == 1 {
        snapshots.on_checkpoint(&objective, options.steps);
    }
    Ok(snapshots.taken)
}

/// Nats a token of every query: question, then answer given the question.
pub(crate) fn losses(
    machine: &Machine,
    adapter: Option<&Lora>,
    domain: &Domain,
) -> anyhow::Result<Vec<f32>> {
    let parts: [Vec<Sequence>; KINDS] =
        [Text::question_part, Text::answer_part].map(|part| domain.queries().map(part).collect());
    let mut means = vec![0.0; KINDS * domain.n_queries()];
    for (kind, sequences) in parts.iter().enumerate() {
        let sums = machine.model.losses(&machine.pool, adapter, sequences)?;
        for (query, (text, sum)) in domain.queries().zip(sums).enumerate() {
            #[expect(
                clippy::cast_precision_loss,
                clippy::cast_possible_truncation,
                reason = "a mean loss, stored as f32"
            )]
            let mean = (sum / text.part_lens()[kind] as f64) as f32;
            means[KINDS * query + kind] = mean;
        }
    }
    Ok(means)
}
