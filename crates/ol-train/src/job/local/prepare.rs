//! From a specification to a model and sequences.

use std::fmt::Debug;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};

use ol_model::{LoraConfig, Model, ModelConfig, Projection, Sequence, Tokenizer};
use serde::Serialize;
use serde_json::Value;

use super::super::manifest::{DataUse, sha256_of};
use super::super::runner::RunError;
use super::super::spec::{JobSpec, Problem, Targets};
use super::{at, failed};
use crate::adapter::{TrainingRecord, held_out};
use crate::options::TrainOptions;

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
    /// Parameters of the base.
    pub base_parameters: u64,
    /// Tokens of the longest example.
    pub longest_tokens: u64,
    /// Examples trained on.
    pub n_examples: u64,
    /// Examples held out.
    pub n_held_out: u64,
    /// Examples cut to the model's context.
    pub n_truncated: u64,
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
        vec![
            format!(
                "{} parameters are trained beside {} of the base",
                self.trainable_parameters, self.base_parameters
            ),
            format!(
                "{} examples of {} tokens together, the longest {}; {} cut to the model's context",
                self.n_examples, self.tokens_per_epoch, self.longest_tokens, self.n_truncated
            ),
            format!("{} examples are held out", self.n_held_out),
            format!("{} steps", self.steps),
        ]
    }
}

/// All that training needs.
pub(super) struct Prepared {
    pub(super) model: Model,
    pub(super) base_name: String,
    pub(super) lora: LoraConfig,
    pub(super) training: Vec<Sequence>,
    pub(super) held_out: Vec<Sequence>,
    pub(super) options: TrainOptions,
    pub(super) data: Vec<DataUse>,
    n_truncated: u64,
    n_trainable: u64,
}

impl Prepared {
    pub(super) fn plan(&self, _spec: &JobSpec) -> Plan {
        let lengths = || self.training.iter().map(|s| s.tokens.len() as u64);
        Plan {
            base_parameters: self.model.layout().len() as u64,
            longest_tokens: lengths().max().unwrap_or(0),
            n_examples: self.training.len() as u64,
            n_held_out: self.held_out.len() as u64,
            n_truncated: self.n_truncated,
            steps: self.options.steps,
            tokens_per_epoch: lengths().sum(),
            trainable_parameters: self.n_trainable,
        }
    }
}

pub(super) fn prepare(
    spec: &JobSpec,
    sources: &dyn Sources,
    log: &mut dyn FnMut(&str),
) -> Result<Prepared, RunError> {
    let (dir, base_name) = match (&spec.base.path, &spec.base.hub) {
        (Some(path), _) => {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            (path.clone(), name.into_owned())
        }
        (None, Some(id)) => {
            let revision = spec.base.revision.as_deref();
            let dir = sources.hub_model(id, revision, log);
            (dir.map_err(RunError::Failed)?, id.clone())
        }
        (None, None) => return Err(RunError::Failed("no base is named".to_owned())),
    };
    let model = Model::load(&dir).map_err(failed)?;
    let tokenizer = Tokenizer::load(&dir).map_err(failed)?;
    let lora = lora_config(spec, model.config())?;
    let mut records = Vec::new();
    let mut data = Vec::new();
    for path in &spec.data.files {
        let read = read_records(path)?;
        data.push(DataUse {
            n_examples: read.len() as u64,
            n_held_out: 0,
            name: file_name(path),
            sha256: sha256_of(path).map_err(at(path))?,
        });
        records.extend(read);
    }
    if let Some(name) = &spec.data.datanet {
        let found = sources.datanet(name, spec.data.version);
        let (manifest, read) = found.map_err(RunError::Failed)?;
        data.push(DataUse {
            n_examples: read.len() as u64,
            n_held_out: 0,
            name: name.clone(),
            sha256: manifest,
        });
        records.extend(read);
    }
    let mut measured = Vec::new();
    for path in &spec.evaluation.files {
        measured.extend(read_records(path)?);
    }
    let n_needed = if measured.is_empty() { 2 } else { 1 };
    if records.len() < n_needed {
        return Err(RunError::Failed(format!(
            "the data has {} examples; at least {n_needed} are needed",
            records.len()
        )));
    }
    let context = model.config().max_position_embeddings;
    let mut n_truncated = 0;
    let mut sequence = |record: &TrainingRecord| {
        let whole = record.sequence(&tokenizer, usize::MAX, spec.data.prompt_weight);
        let mut whole = whole.map_err(failed)?;
        n_truncated += u64::from(whole.tokens.len() > context);
        whole.tokens.truncate(context);
        whole.weights.truncate(context);
        Ok::<_, RunError>(whole)
    };
    let held = if measured.is_empty() {
        let fraction = spec.evaluation.held_out_fraction;
        held_out(records.len(), fraction, spec.options.seed)
    } else {
        Vec::new()
    };
    let (mut training, mut held_sequences) = (Vec::new(), Vec::new());
    for (i, record) in records.iter().enumerate() {
        if held.binary_search(&i).is_ok() {
            &mut held_sequences
        } else {
            &mut training
        }
        .push(sequence(record)?);
    }
    for record in &measured {
        held_sequences.push(sequence(record)?);
    }
    let mut first = 0;
    for part in &mut data {
        let range = first..first + usize::try_from(part.n_examples).unwrap_or(usize::MAX);
        part.n_held_out = held.iter().filter(|i| range.contains(i)).count() as u64;
        part.n_examples -= part.n_held_out;
        first = range.end;
    }
    let tokens = training.iter().map(|s| s.tokens.len()).sum();
    let mut options = spec
        .options
        .resolve(training.len(), tokens)
        .map_err(failed)?;
    if options.checkpoint_every == 0 {
        // A job can always be resumed.
        options.checkpoint_every = options.steps.div_ceil(20).clamp(1, 100);
    }
    let n_trainable = lora.n_params(model.config()).map_err(failed)? as u64;
    Ok(Prepared {
        n_trainable,
        model,
        base_name,
        lora,
        training,
        held_out: held_sequences,
        options,
        data,
        n_truncated,
    })
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

fn read_records(path: &Path) -> Result<Vec<TrainingRecord>, RunError> {
    const LINE_SIZE_BYTES_MAX: u64 = 4 << 20;
    let mut reader = BufReader::new(File::open(path).map_err(at(path))?);
    let mut records = Vec::new();
    for line in 1_usize.. {
        let mut text = Vec::new();
        let n = (&mut reader)
            .take(LINE_SIZE_BYTES_MAX)
            .read_until(b'\n', &mut text);
        if n.map_err(at(path))? == 0 {
            break;
        }
        let bad = |what: &str| RunError::Failed(format!("{}, line {line}: {what}", path.display()));
        let row: Value = serde_json::from_slice(&text).map_err(|e| bad(&e.to_string()))?;
        let field = |names: [&str; 2]| {
            names
                .iter()
                .find_map(|name| row[name].as_str())
                .map(str::to_owned)
                .ok_or_else(|| bad(&format!("has no {}", names.join(" or "))))
        };
        records.push(TrainingRecord {
            question: field(["question", "prompt"])?,
            answer: field(["answer", "completion"])?,
        });
    }
    Ok(records)
}
