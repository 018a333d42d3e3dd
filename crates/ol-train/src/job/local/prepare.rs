//! From a specification to a model and sequences.

use std::fmt::Debug;
use std::path::{Path, PathBuf};

use ol_model::{
    Format, Gguf, LoraConfig, Model, ModelConfig, Pool, Projection, Tokenizer, WeightFormat,
};
use serde::Serialize;

use super::super::manifest::{DataUse, sha256_of};
use super::super::runner::RunError;
use super::super::spec::{DataFormat, JobSpec, Method, Problem, Quantisation, Targets};
use super::{at, failed};
use crate::adapter::TrainingRecord;
use crate::data::{self, DataOptions, Dataset, Examples, Summary};
use crate::evaluate::Question;
use crate::memory::{BaseMemory, MemoryEstimate, MemoryPlan, available_memory_bytes};
use crate::options::TrainOptions;
use crate::trainer::Example as _;

/// Longest `config.json`, in bytes.
const CONFIG_SIZE_BYTES_MAX: usize = 1 << 20;

/// Brings what is not a file of this machine.
pub trait Sources: Debug + Send + Sync {
    /// The folder of a model of the hub, downloaded if it is not there; what is
    /// done meanwhile goes to `log`.
    ///
    /// # Errors
    /// Why it cannot be had, for people.
    fn hub_model(
        &self,
        id: &str,
        revision: Option<&str>,
        log: &mut dyn FnMut(&str),
    ) -> Result<PathBuf, String>;

    /// The records of a version of a datanet, with the id of its manifest.
    ///
    /// # Errors
    /// Why they cannot be had, for people.
    fn datanet(
        &self,
        name: &str,
        version: Option<u64>,
    ) -> Result<(String, Vec<TrainingRecord>), String>;
}

/// Files only.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoSources;

impl Sources for NoSources {
    fn hub_model(
        &self,
        id: &str,
        _revision: Option<&str>,
        _log: &mut dyn FnMut(&str),
    ) -> Result<PathBuf, String> {
        Err(format!("{id}: this program cannot download models"))
    }

    fn datanet(
        &self,
        name: &str,
        _version: Option<u64>,
    ) -> Result<(String, Vec<TrainingRecord>), String> {
        Err(format!("{name}: this program has no datanets"))
    }
}

/// What a job would do and need.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// Settings with which it would fit, if it does not fit the memory there is.
    pub advice: Option<String>,
    /// Memory there is, where the system says so.
    pub available_bytes: Option<usize>,
    /// Parameters of the base.
    pub base_parameters: u64,
    /// What was found in the data.
    pub data: Summary,
    /// Tokens of the longest example.
    pub longest_tokens: u64,
    /// Memory that it will take at its peak.
    pub memory: MemoryEstimate,
    /// Examples trained on.
    pub n_examples: u64,
    /// Examples held out.
    pub n_held_out: u64,
    /// Optimiser steps.
    pub steps: u32,
    /// Tokens in one pass over the examples.
    pub tokens_per_epoch: u64,
    /// Parameters that are trained.
    pub trainable_parameters: u64,
}

impl Plan {
    /// The plan for people, a line each.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.data.to_string().lines().map(str::to_owned).collect();
        lines.push(format!(
            "{} tokens in a pass, the longest example {}; {} steps",
            self.tokens_per_epoch, self.longest_tokens, self.steps
        ));
        lines.push(format!(
            "{} parameters are trained, {} of the base are not",
            self.trainable_parameters, self.base_parameters
        ));
        lines.push(format!("memory: {}", self.memory));
        lines.extend(self.advice.clone());
        lines
    }
}

/// All that training needs, but for the base's weights.
pub(super) struct Prepared {
    dir: PathBuf,
    pub(super) config: ModelConfig,
    pub(super) base_name: String,
    format: WeightFormat,
    pub(super) tokenizer: Tokenizer,
    pub(super) lora: LoraConfig,
    pub(super) training: Examples,
    pub(super) held_out: Examples,
    pub(super) questions: Vec<Question>,
    pub(super) options: TrainOptions,
    pub(super) data: Vec<DataUse>,
    pub(super) plan: Plan,
}

impl Prepared {
    /// Reads the weights of the base.
    pub(super) fn load(&self, pool: &Pool) -> Result<Model, RunError> {
        if let Some(advice) = &self.plan.advice {
            return Err(RunError::Failed(advice.clone()));
        }
        Model::load_as(pool, &self.dir, self.format).map_err(failed)
    }
}

pub(super) fn prepare(
    spec: &JobSpec,
    sources: &dyn Sources,
    n_threads: usize,
    log: &mut dyn FnMut(&str),
) -> Result<Prepared, RunError> {
    let (dir, base_name) = base(spec, sources, log)?;
    let config = read_config(&dir)?;
    // A GGUF file's tokenizer lies beside it, as Hugging Face files.
    let beside = if dir.is_file() { dir.parent() } else { None };
    let tokenizer = Tokenizer::load(beside.unwrap_or(&dir)).map_err(failed)?;
    let lora = lora_config(spec, &config)?;
    let (dataset, held_out, questions, data) = read_data(spec, sources, &config, &tokenizer)?;
    let training = dataset.train;
    let is_pairs = matches!(training, Examples::Preferences(_));
    if is_pairs != (spec.method == Method::Dpo) {
        let what = if is_pairs {
            "the data has pairs of answers, which method dpo learns from"
        } else {
            "method dpo needs pairs: prompt, chosen and rejected"
        };
        return Err(RunError::Refused(vec![Problem::new("method", what)]));
    }
    let lengths = lengths(&training);
    let tokens: usize = lengths.iter().sum();
    let mut options = spec
        .options
        .resolve(lengths.len(), tokens)
        .map_err(failed)?;
    if options.checkpoint_every == 0 {
        // A job can always be resumed.
        options.checkpoint_every = options.steps.div_ceil(20).clamp(1, 100);
    }
    let format = match spec.base.quantise {
        None if dir.is_file() => WeightFormat::Stored,
        None => WeightFormat::F32,
        Some(Quantisation::Nf4) => WeightFormat::Quantised(Format::Nf4),
        Some(Quantisation::Q4K) => WeightFormat::Quantised(Format::Q4K),
        Some(Quantisation::Q8_0) => WeightFormat::Quantised(Format::Q8_0),
    };
    let n_params = lora.n_params(&config).map_err(failed)?;
    let longest = lengths.iter().copied().max().unwrap_or(0);
    let memory = MemoryPlan {
        config: &config,
        base: BaseMemory::of(&config, format),
        lora: &lora,
        n_params,
        options: &options,
        longest_tokens: longest,
        data_tokens: tokens,
        n_threads,
    };
    let available_bytes = available_memory_bytes();
    let fits = available_bytes.map_or(Ok(()), |bytes| memory.check(bytes).map(drop));
    let plan = Plan {
        advice: fits.err().map(|error| error.to_string()),
        available_bytes,
        base_parameters: config.n_params() as u64,
        data: dataset.summary,
        longest_tokens: longest as u64,
        memory: memory.estimate(),
        n_examples: training.len() as u64,
        n_held_out: held_out.len() as u64,
        steps: options.steps,
        tokens_per_epoch: tokens as u64,
        trainable_parameters: n_params as u64,
    };
    Ok(Prepared {
        dir,
        config,
        base_name,
        format,
        tokenizer,
        lora,
        training,
        held_out,
        questions,
        options,
        data,
        plan,
    })
}

fn read_config(base: &Path) -> Result<ModelConfig, RunError> {
    if base.is_file() {
        return Gguf::open(base)
            .and_then(|gguf| gguf.config())
            .map_err(failed);
    }
    let path = base.join("config.json");
    let text = std::fs::read(&path).map_err(at(&path))?;
    let fail = |what: String| RunError::Failed(format!("{}: {what}", path.display()));
    if text.len() > CONFIG_SIZE_BYTES_MAX {
        return Err(fail(format!("longer than {CONFIG_SIZE_BYTES_MAX} bytes")));
    }
    ModelConfig::from_json(&text).map_err(|error| fail(error.to_string()))
}

fn base(
    spec: &JobSpec,
    sources: &dyn Sources,
    log: &mut dyn FnMut(&str),
) -> Result<(PathBuf, String), RunError> {
    match (&spec.base.path, &spec.base.hub) {
        (Some(path), _) => Ok((path.clone(), file_name(path))),
        (None, Some(id)) => {
            let dir = sources.hub_model(id, spec.base.revision.as_deref(), log);
            Ok((dir.map_err(RunError::Failed)?, id.clone()))
        }
        (None, None) => Err(RunError::Failed("no base is named".to_owned())),
    }
}

/// What is learnt from, what is measured on, questions to ask, and where it is from.
type Read = (Dataset, Examples, Vec<Question>, Vec<DataUse>);

fn read_data(
    spec: &JobSpec,
    sources: &dyn Sources,
    config: &ModelConfig,
    tokenizer: &Tokenizer,
) -> Result<Read, RunError> {
    let has_files = !spec.evaluation.files.is_empty();
    let reading = DataOptions {
        format: match spec.data.format {
            DataFormat::Auto => None,
            DataFormat::Chat => Some(data::Format::Chat),
            DataFormat::Instruction => Some(data::Format::Instruction),
            DataFormat::PromptCompletion => Some(data::Format::PromptCompletion),
            DataFormat::Text => Some(data::Format::Text),
            DataFormat::Preference => Some(data::Format::Preference),
        },
        max_tokens: spec
            .data
            .max_tokens
            .unwrap_or(2048)
            .min(config.max_position_embeddings),
        skip_bad: spec.data.skip_bad,
        held_out_fraction: if has_files {
            0.0
        } else {
            spec.evaluation.held_out_fraction
        },
        prompt_weight: spec.data.prompt_weight,
        questions: if has_files {
            0
        } else {
            spec.evaluation.generate
        },
        ..DataOptions::default()
    };
    let mut uses = Vec::new();
    let dataset = if let Some(name) = &spec.data.datanet {
        let found = sources.datanet(name, spec.data.version);
        let (manifest, records) = found.map_err(RunError::Failed)?;
        uses.push(DataUse {
            n_examples: records.len() as u64,
            name: name.clone(),
            sha256: manifest,
        });
        data::load_records(name, records, tokenizer, &reading).map_err(failed)?
    } else {
        let dataset = data::load(&spec.data.files, tokenizer, &reading).map_err(failed)?;
        for file in &dataset.summary.files {
            uses.push(DataUse {
                n_examples: file.n_records as u64,
                name: file_name(&file.path),
                sha256: sha256_of(&file.path).map_err(at(&file.path))?,
            });
        }
        dataset
    };
    let (held_out, questions) = if has_files {
        let measuring = DataOptions {
            questions: spec.evaluation.generate,
            ..reading
        };
        let measured = data::load(&spec.evaluation.files, tokenizer, &measuring);
        let measured = measured.map_err(failed)?;
        (measured.train, measured.questions)
    } else {
        (dataset.held_out.clone(), dataset.questions.clone())
    };
    let questions = questions
        .into_iter()
        .map(|question| Question {
            question: tokenizer.decode(&question.prompt),
            prompt: question.prompt,
            answer: question.answer,
        })
        .collect();
    Ok((dataset, held_out, questions, uses))
}

/// Tokens of each example; of both sequences of a pair.
fn lengths(examples: &Examples) -> Vec<usize> {
    match examples {
        Examples::Sequences(list) => list.iter().map(|s| s.n_tokens()).collect(),
        Examples::Preferences(list) => list
            .iter()
            .map(|pair| pair.chosen.n_tokens() + pair.rejected.n_tokens())
            .collect(),
    }
}

/// The adapter's shape.
fn lora_config(spec: &JobSpec, model: &ModelConfig) -> Result<LoraConfig, RunError> {
    let lora = &spec.lora;
    let there = Projection::of(model);
    let target_modules = match &lora.target_modules {
        Targets::Keyword(_) => there,
        Targets::Modules(names) => {
            let known: Vec<&str> = there.iter().map(|target| target.name()).collect();
            if let Some(name) = names.iter().find(|name| !known.contains(&name.as_str())) {
                let what = format!(
                    "{name:?} is not in this base; there are {}",
                    known.join(", ")
                );
                let problem = Problem::new("lora.target_modules", what);
                return Err(RunError::Refused(vec![problem]));
            }
            let is_named = |target: &Projection| names.iter().any(|name| name == target.name());
            there.into_iter().filter(is_named).collect()
        }
    };
    Ok(LoraConfig {
        alpha: lora.alpha(),
        target_modules,
        use_dora: lora.dora,
        use_rslora: lora.rslora,
        ..LoraConfig::all_linear(lora.rank)
    })
}

fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}
