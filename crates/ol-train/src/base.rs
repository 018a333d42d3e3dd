//! Training a base model from nothing.

use std::path::Path;

use ol_model::{
    Dtype, ForwardError, LoadError, Model, ModelConfig, Pool, Sequence, Tokenizer, TokenizerError,
    WeightsError,
};
use ol_runtime::Clock;
use ol_types::B256;
use thiserror::Error;

use crate::corpus::Corpus;
use crate::curve::CurvePoint;
use crate::options::TrainOptions;
use crate::trainer::{
    Measurement, Objective, Observer, TrainError, matrix_decay, mean_loss, train,
};

/// Why a base model could not be trained.
#[derive(Debug, Error)]
pub enum BaseError {
    /// The tokenizer failed.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The configuration is wrong, or the written model does not load.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The model cannot be written.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// Training failed.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// The written model's loss is not that of the trained one.
    #[error("the model read back has held-out loss {read_back}, before writing it had {trained}")]
    Differs {
        /// Loss before writing.
        trained: f64,
        /// Loss after reading.
        read_back: f64,
    },
}

/// A model whose every weight is trained.
#[derive(Debug)]
pub struct BaseObjective<'a> {
    /// The model.
    pub model: Model,
    /// Threads it runs on.
    pub pool: &'a Pool,
}

impl Objective for BaseObjective<'_> {
    type Example = Sequence;

    /// Everything is trained.
    fn identity(&self) -> B256 {
        B256::ZERO
    }

    fn parameters(&self) -> Vec<f32> {
        self.model.parameters()
    }

    fn set_parameters(&mut self, params: &[f32]) -> bool {
        self.model.set_parameters(self.pool, params).is_ok()
    }

    fn decays(&self) -> Vec<bool> {
        matrix_decay(&self.model)
    }

    fn add_gradient(
        &self,
        seqs: &[Sequence],
        recompute: bool,
        gradient: &mut [f32],
    ) -> Result<Vec<f64>, ForwardError> {
        self.model
            .add_full_gradient(self.pool, seqs, recompute, gradient)
    }

    fn measure(&self, seqs: &[Sequence]) -> Result<Vec<Measurement>, ForwardError> {
        let losses = self.model.losses(self.pool, None, seqs)?;
        Ok(Measurement::of_losses(losses))
    }
}

/// What to train a base model from.
#[derive(Debug)]
pub struct BaseJob<'a> {
    /// Shape; its vocabulary size is that of the tokenizer trained on the corpus.
    pub config: ModelConfig,
    /// Text.
    pub corpus: &'a Corpus,
    /// How to train; the seed also chooses initial weights and held-out documents.
    pub options: TrainOptions,
    /// Folder for the checkpoint and the tokenizer while training.
    pub work_dir: &'a Path,
    /// Folder for the finished model.
    pub out_dir: &'a Path,
}

/// What the training of a base model came to.
#[derive(Debug, Clone, PartialEq)]
pub struct BaseReport {
    /// Content hash of the model as its files hold it.
    pub hash: B256,
    /// Steps done.
    pub steps: u32,
    /// Tokens seen, repeats counted.
    pub tokens: u64,
    /// Tokens in one pass over the training text.
    pub tokens_per_epoch: u64,
    /// Tokens held out.
    pub held_out_tokens: u64,
    /// Loss on all held-out text after rounding to f16, nats a token.
    pub held_out: f64,
    /// Whether the run came to its end.
    pub finished: bool,
    /// Measurements on the way.
    pub curve: Vec<CurvePoint>,
}

/// Trains tokenizer and model and writes `config.json`, `model.safetensors`
/// (f16), `tokenizer.json`, `tokenizer_config.json`; goes on from the checkpoint
/// in the work folder if there is one.
///
/// # Errors
/// [`BaseError`]; a checkpoint written before stays usable.
pub fn train_base<'p>(
    job: &BaseJob<'_>,
    pool: &'p Pool,
    clock: &dyn Clock,
    observer: &mut impl Observer<BaseObjective<'p>>,
) -> Result<BaseReport, BaseError> {
    let context = job.config.max_position_embeddings;
    let make = |dir: &Path| {
        let io = |source| WeightsError::Io {
            path: dir.to_owned(),
            source,
        };
        std::fs::create_dir_all(dir).map_err(io)
    };
    make(job.work_dir)?;
    let tokenizer = if job.work_dir.join("tokenizer.json").exists() {
        Tokenizer::load(job.work_dir)?
    } else {
        let tokenizer = Tokenizer::train(job.corpus.texts(), job.config.vocab_size)?;
        tokenizer.save(job.work_dir, context)?;
        tokenizer
    };
    let seed = job.options.seed;
    let (training, held_out) = job.corpus.sequences(&tokenizer, context, seed)?;
    let config = ModelConfig {
        vocab_size: tokenizer.vocab_size(),
        ..job.config.clone()
    };
    let mut objective = BaseObjective {
        model: Model::random(config, seed)?,
        pool,
    };
    let checkpoint = job.work_dir.join("checkpoint");
    let outcome = train(
        &mut objective,
        &training,
        &held_out,
        &job.options,
        Some(&checkpoint),
        clock,
        observer,
    )?;
    make(job.out_dir)?;
    tokenizer.save(job.out_dir, context)?;
    objective.model.save(job.out_dir, Dtype::F16)?;
    // Done means: what was written loads and is as good.
    let read = BaseObjective {
        model: Model::load(job.out_dir)?,
        pool,
    };
    let read_back = mean_loss(&read, &held_out)?;
    if (read_back - outcome.held_out).abs() > 0.01 {
        return Err(BaseError::Differs {
            trained: outcome.held_out,
            read_back,
        });
    }
    let count = |seqs: &[Sequence]| seqs.iter().map(|s| s.tokens.len() as u64).sum();
    Ok(BaseReport {
        hash: read.model.hash(),
        steps: outcome.steps,
        tokens: outcome.tokens,
        tokens_per_epoch: count(&training),
        held_out_tokens: count(&held_out),
        held_out: read_back,
        finished: outcome.finished,
        curve: outcome.curve,
    })
}
