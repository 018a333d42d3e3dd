//! What a job is: a base, data, a method and its options (`specs/job.md`).

use std::path::{Path, PathBuf};

use ol_types::{B256, keccak256};
use serde::{Deserialize, Serialize};

use crate::options::TrainOptions;

mod check;
mod parse;

pub use parse::{MAX_SPEC_SIZE_BYTES, SpecError};

/// What is wrong with one field of a specification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The field, as in `options.learning_rate`.
    pub at: String,
    /// What is wrong with it, and what to write instead.
    pub what: String,
}

impl Problem {
    pub(crate) fn new(at: impl Into<String>, what: impl Into<String>) -> Self {
        Self {
            at: at.into(),
            what: what.into(),
        }
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.at, self.what)
    }
}

/// A training job, whole: two runs of equal jobs write equal adapters.
///
/// Fields are in alphabetical order, here and in every struct inside, so that
/// the JSON written is the canonical one, which is hashed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    /// Base model.
    pub base: BaseSource,
    /// What to learn from.
    pub data: DataSource,
    /// What is held out and measured.
    #[serde(default)]
    pub evaluation: EvaluationSpec,
    /// Version of this format, [`JobSpec::FORMAT`].
    pub format: String,
    /// Shape of the adapter.
    #[serde(default)]
    pub lora: LoraSpec,
    /// How the adapter is trained.
    #[serde(default)]
    pub method: Method,
    /// Name for people; also the adapter's in reports.
    pub name: String,
    /// The optimiser, its schedule and the seed.
    #[serde(default)]
    pub options: TrainOptions,
    /// Folder for the finished adapter; without one it stays in the job's.
    #[serde(default)]
    pub output: Option<PathBuf>,
}

/// How an adapter is trained.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// LoRA on the base as it is.
    #[default]
    Lora,
    /// LoRA on a base whose matrices are quantised.
    Qlora,
    /// Direct preference optimisation on pairs of answers.
    Dpo,
}

impl Method {
    /// Name in files, as in `lora`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lora => "lora",
            Self::Qlora => "qlora",
            Self::Dpo => "dpo",
        }
    }
}

/// The base model: exactly one of `path` and `hub`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BaseSource {
    /// Id on the hub, as in `org/name`.
    pub hub: Option<String>,
    /// Folder with `config.json` and safetensors, or a GGUF file.
    pub path: Option<PathBuf>,
    /// How the matrices are stored for QLoRA; without it as they are in the file.
    pub quantise: Option<Quantisation>,
    /// Revision on the hub: a commit, a tag or a branch.
    pub revision: Option<String>,
}

/// Storage of a frozen base in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quantisation {
    /// 4-bit NormalFloat (Dettmers et al., 2023), blocks of 64.
    Nf4,
    /// llama.cpp's 4-bit super-blocks of 256.
    #[serde(rename = "q4_k")]
    Q4K,
    /// 8-bit blocks of 32.
    #[serde(rename = "q8_0")]
    Q8_0,
}

/// What to learn from: `files`, or a version of a datanet.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataSource {
    /// Name of a datanet.
    pub datanet: Option<String>,
    /// Files of examples, in this order.
    pub files: Vec<PathBuf>,
    /// What an example looks like.
    pub format: DataFormat,
    /// Longest example in tokens, 2048 if it is not said; longer ones are cut.
    pub max_tokens: Option<usize>,
    /// Loss weight of what the model is given rather than answers, 0 to 1.
    pub prompt_weight: f32,
    /// Bad lines that are passed over rather than refused.
    pub skip_bad: usize,
    /// Version of the datanet; the newest when it is not said.
    pub version: Option<u64>,
}

/// What an example looks like.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DataFormat {
    /// Told by the fields of the first example.
    #[default]
    Auto,
    /// `messages`: a list of `role` and `content`.
    Chat,
    /// Alpaca's `instruction`, `input`, `output`, or `question` and `answer`.
    Instruction,
    /// `prompt` and `completion`, which follow each other as they are.
    PromptCompletion,
    /// `text`, or a text file whose paragraphs are examples.
    Text,
    /// `prompt`, `chosen`, `rejected`.
    Preference,
}

/// Shape of the adapter, by PEFT's names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraSpec {
    /// The product is scaled by `alpha / rank`; twice the rank when it is not said.
    pub alpha: Option<f32>,
    /// Train magnitudes besides (Liu et al., 2024).
    pub dora: bool,
    /// Only 0: a dropped activation would make a resumed run another run.
    pub dropout: f32,
    /// Inner width.
    pub rank: usize,
    /// Scale by `alpha / sqrt(rank)` (Kalajdzievski, 2023).
    pub rslora: bool,
    /// Layers that are adapted.
    pub target_modules: Targets,
}

impl Default for LoraSpec {
    fn default() -> Self {
        Self {
            alpha: None,
            dora: false,
            dropout: 0.0,
            rank: 16,
            rslora: false,
            target_modules: Targets::default(),
        }
    }
}

impl LoraSpec {
    /// The scale's numerator: as given, or twice the rank.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "ranks are small")]
    pub fn alpha(&self) -> f32 {
        self.alpha.unwrap_or(2.0 * self.rank as f32)
    }
}

/// Layers that are adapted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Targets {
    /// `"all-linear"`.
    Keyword(String),
    /// Modules by name, as in `["q_proj", "v_proj"]`.
    Modules(Vec<String>),
}

impl Targets {
    /// The one keyword.
    pub const ALL_LINEAR: &'static str = "all-linear";
}

impl Default for Targets {
    fn default() -> Self {
        Self::Keyword(Self::ALL_LINEAR.to_owned())
    }
}

/// What is held out and measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvaluationSpec {
    /// Files that are measured on instead of a part of the data.
    pub files: Vec<PathBuf>,
    /// Held-out questions that base and adapter answer at the end, for exact
    /// match and ROUGE-L.
    pub generate: usize,
    /// Part of the data held out, above 0 and at most a half.
    pub held_out_fraction: f64,
    /// Longest of those answers, in tokens.
    pub max_new_tokens: usize,
}

impl Default for EvaluationSpec {
    fn default() -> Self {
        Self {
            files: Vec::new(),
            generate: 16,
            held_out_fraction: 0.05,
            max_new_tokens: 64,
        }
    }
}

impl JobSpec {
    /// Value of `format`.
    pub const FORMAT: &'static str = "openledger-job/1";

    /// A LoRA job with every option as it is by default.
    #[must_use]
    pub fn new(name: impl Into<String>, base: BaseSource, data: DataSource) -> Self {
        Self {
            base,
            data,
            evaluation: EvaluationSpec::default(),
            format: Self::FORMAT.to_owned(),
            lora: LoraSpec::default(),
            method: Method::default(),
            name: name.into(),
            options: TrainOptions::default(),
            output: None,
        }
    }

    /// Canonical JSON: keys sorted, no spaces, numbers in shortest form.
    ///
    /// # Panics
    /// Never: every field is a number, a string, or a list of those.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("numbers, strings and lists are JSON")
    }

    /// keccak256 of the canonical JSON without `output`: where a result is put
    /// is no part of what it is.
    #[must_use]
    pub fn hash(&self) -> B256 {
        let mut identity = self.clone();
        identity.output = None;
        keccak256(identity.to_bytes())
    }

    /// Makes every path absolute, taking relative ones from `folder`.
    #[must_use]
    pub fn at(mut self, folder: &Path) -> Self {
        let place = |path: &mut PathBuf| *path = folder.join(&*path);
        self.base.path.iter_mut().for_each(place);
        self.data.files.iter_mut().for_each(place);
        self.evaluation.files.iter_mut().for_each(place);
        self.output.iter_mut().for_each(place);
        self
    }

    /// Everything that is wrong with the job, as far as it can be told without
    /// loading the model. Empty for a job that may start.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        check::problems(self)
    }
}

#[cfg(test)]
mod tests;
