//! Files of examples, as what is learnt from.
//!
//! | fields of an example | format |
//! |---|---|
//! | `messages` (or `conversations`): `role`/`content`, or `from`/`value` | [`Format::Chat`] |
//! | `instruction`, `input`, `output`; or `question`, `answer` | [`Format::Instruction`] |
//! | `prompt`, `completion` | [`Format::PromptCompletion`] |
//! | `text`, or a file of plain text | [`Format::Text`] |
//! | `prompt`, `chosen`, `rejected` | [`Format::Preference`] |
//!
//! Files are JSONL, JSON (a list), CSV or TSV with a header, Parquet, text and
//! Markdown.
//! The format is told by the first example of each file, and said in the
//! [`Summary`]. A bad line is an error that names file, line, field and reason,
//! unless [`DataOptions::skip_bad`] allows some.
//!
//! **What is held out** depends on nothing but an example's own prompt (its
//! hash), so adding or reordering lines moves no other example from one side to
//! the other, and two answers to one question land on the same side.

mod encode;
mod example;
mod parquet;
mod read;
mod summary;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use ol_model::{Sequence, Tokenizer};
use ol_types::{B256, keccak256};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::adapter::TrainingRecord;
use crate::evaluate::Question;
use crate::preference::Pair;
use encode::{Encoded, Encoder};
use example::Example;
pub use example::Format;
use read::Item;
pub use summary::{BadLine, Fault, FileSummary, Summary};

/// Bad lines that a summary names; further ones are only counted.
const BAD_LINES_SHOWN: usize = 20;

/// How files of examples are read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataOptions {
    /// What an example looks like; told by each file's first one when `None`.
    pub format: Option<Format>,
    /// Longest sequence, in tokens.
    pub max_tokens: usize,
    /// What becomes of longer examples. Plain text is always cut into pieces.
    pub long: Long,
    /// Bad lines passed over before reading gives up.
    pub skip_bad: usize,
    /// Part of the examples held out, 0 to a half. When it is above 0, at least
    /// one example is held out.
    pub held_out_fraction: f64,
    /// Loss weight of what the model is given, 0 to 1; what it answers weighs 1.
    pub prompt_weight: f32,
    /// Held-out examples (all, when none are held out) that are given as
    /// [`Question`]s.
    pub questions: usize,
    /// Name of the chat template, where the model has several.
    pub template: Option<String>,
    /// Variables of the chat template.
    pub template_variables: BTreeMap<String, serde_json::Value>,
    /// Most examples.
    pub max_records: usize,
}

impl Default for DataOptions {
    fn default() -> Self {
        Self {
            format: None,
            max_tokens: 2048,
            long: Long::Cut,
            skip_bad: 0,
            held_out_fraction: 0.05,
            prompt_weight: 0.0,
            questions: 0,
            template: None,
            template_variables: BTreeMap::new(),
            max_records: 10_000_000,
        }
    }
}

/// What becomes of examples that are too long.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Long {
    /// The end is cut off.
    #[default]
    Cut,
    /// The example is left out.
    Drop,
}

/// Examples in the order read.
#[derive(Debug, Clone, PartialEq)]
pub enum Examples {
    /// Texts with the weights of their tokens.
    Sequences(Vec<Sequence>),
    /// Pairs.
    Preferences(Vec<Pair>),
}

impl Examples {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Sequences(list) => list.len(),
            Self::Preferences(list) => list.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Dataset {
    /// What is learnt from.
    pub train: Examples,
    /// What is measured on; of the same kind.
    pub held_out: Examples,
    /// Questions to ask, see [`DataOptions::questions`].
    pub questions: Vec<Question>,
    /// What was found.
    pub summary: Summary,
}

/// Why data cannot be used.
#[derive(Debug, Error)]
pub enum DataError {
    /// A file cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// File concerned.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file as a whole is not what it should be.
    #[error("{path}: {reason}")]
    File {
        /// File concerned.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A line is bad, and no more bad ones are allowed.
    #[error("{0}")]
    Line(BadLine),
    /// The options make no sense.
    #[error("data: {0}")]
    Options(&'static str),
    /// Pairs and other examples cannot be mixed.
    #[error(
        "{path} has {found}, the files before have {before}: preferences cannot be mixed with others"
    )]
    Mixed {
        /// File concerned.
        path: PathBuf,
        /// Its format.
        found: Format,
        /// That of the files before.
        before: Format,
    },
    /// Nothing, or too little, is left.
    #[error("too few examples: {n}, at least {needed} are needed{}", if *n_left_out > 0 { format!(" ({n_left_out} were left out)") } else { String::new() })]
    TooFew {
        /// Those there are.
        n: usize,
        /// Those needed.
        needed: usize,
        /// Those read but left out.
        n_left_out: usize,
    },
}

/// Reads files of examples; of a folder, every file it can read, by name.
///
/// # Errors
/// [`DataError`] at the first thing that is wrong.
pub fn load(
    paths: &[PathBuf],
    tokenizer: &Tokenizer,
    options: &DataOptions,
) -> Result<Dataset, DataError> {
    let mut loader = Loader::new(tokenizer, options)?;
    for path in read::expand(paths)? {
        loader.begin(&path);
        read::read(&path, &mut |line, item| loader.take(&path, line, item))?;
    }
    loader.finish()
}

/// Takes questions and answers from elsewhere (a version of a datanet, named
/// `source`) instead of files.
///
/// # Errors
/// As [`load`].
pub fn load_records(
    source: &str,
    records: impl IntoIterator<Item = TrainingRecord>,
    tokenizer: &Tokenizer,
    options: &DataOptions,
) -> Result<Dataset, DataError> {
    let mut loader = Loader::new(tokenizer, options)?;
    let path = PathBuf::from(source);
    loader.begin(&path);
    for (record, line) in records.into_iter().zip(1..) {
        loader.set_format(&path, Format::Instruction)?;
        let example = Example::question(&record.question, &record.answer);
        loader.add(&path, line, example)?;
    }
    loader.finish()
}

/// Whether an example with this key is held out.
#[expect(clippy::cast_precision_loss, reason = "a part of 2^53 is exact enough")]
fn is_held_out(key: &B256, fraction: f64) -> bool {
    let bytes: [u8; 8] = key.0[..8].try_into().expect("a hash has 32 bytes");
    let part = (u64::from_be_bytes(bytes) >> 11) as f64 / (1_u64 << 53) as f64;
    part < fraction
}

struct Loader<'a> {
    options: &'a DataOptions,
    encoder: Encoder<'a>,
    /// Format of the file being read.
    format: Option<Format>,
    entries: Vec<Entry>,
    seen: BTreeSet<B256>,
    summary: Summary,
}

struct Entry {
    /// Hash of the prompt.
    key: B256,
    encoded: Encoded,
    question: Option<Question>,
}

impl<'a> Loader<'a> {
    fn new(tokenizer: &'a Tokenizer, options: &'a DataOptions) -> Result<Self, DataError> {
        if !(0.0..=0.5).contains(&options.held_out_fraction) {
            return Err(DataError::Options("held_out_fraction is not 0 to 0.5"));
        }
        if !(0.0..=1.0).contains(&options.prompt_weight) {
            return Err(DataError::Options("prompt_weight is not 0 to 1"));
        }
        if options.max_tokens < 2 {
            return Err(DataError::Options("max_tokens is below 2"));
        }
        Ok(Self {
            options,
            encoder: Encoder::new(tokenizer, options),
            format: options.format,
            entries: Vec::new(),
            seen: BTreeSet::new(),
            summary: Summary::default(),
        })
    }

    fn begin(&mut self, path: &Path) {
        self.format = self.options.format;
        self.summary.files.push(FileSummary {
            path: path.to_owned(),
            format: self.format.unwrap_or(Format::Text),
            n_records: 0,
        });
    }

    fn set_format(&mut self, path: &Path, format: Format) -> Result<(), DataError> {
        let files = &mut self.summary.files;
        if let Some((file, before)) = files.split_last_mut() {
            file.format = format;
            let is_pair = |f: Format| f == Format::Preference;
            let other = before
                .iter()
                .find(|f| f.n_records > 0 && is_pair(f.format) != is_pair(format));
            if let Some(other) = other {
                return Err(DataError::Mixed {
                    path: path.to_owned(),
                    found: format,
                    before: other.format,
                });
            }
        }
        self.format = Some(format);
        Ok(())
    }

    fn take(
        &mut self,
        path: &Path,
        line: usize,
        item: Result<Item, Fault>,
    ) -> Result<(), DataError> {
        let example = match item {
            Err(fault) => Err(fault),
            Ok(Item::Text(text)) => {
                self.set_format(path, Format::Text)?;
                Ok(Example::Text(text))
            }
            Ok(Item::Row(row)) => {
                let format = self.format.map_or_else(|| Format::detect(&row), Ok);
                match format {
                    Err(fault) => Err(fault),
                    Ok(format) => {
                        self.set_format(path, format)?;
                        Example::parse(format, &row)
                    }
                }
            }
        };
        match example {
            Ok(example) => self.add(path, line, example),
            Err(fault) => self.bad(path, line, fault),
        }
    }

    fn bad(&mut self, path: &Path, line: usize, fault: Fault) -> Result<(), DataError> {
        let bad = BadLine {
            path: path.to_owned(),
            line,
            fault,
        };
        if self.summary.n_bad >= self.options.skip_bad {
            return Err(DataError::Line(bad));
        }
        self.summary.n_bad += 1;
        if self.summary.bad.len() < BAD_LINES_SHOWN {
            self.summary.bad.push(bad);
        }
        Ok(())
    }

    fn add(&mut self, path: &Path, line: usize, example: Example) -> Result<(), DataError> {
        let n: usize = self.summary.files.iter().map(|f| f.n_records).sum();
        if n >= self.options.max_records {
            return Err(DataError::File {
                path: path.to_owned(),
                reason: format!("more than {} examples", self.options.max_records),
            });
        }
        let encoded = match self.encoder.encode(&example, &mut self.summary) {
            Ok(encoded) => encoded,
            Err(fault) => return self.bad(path, line, fault),
        };
        if let Some(file) = self.summary.files.last_mut() {
            file.n_records += 1;
        }
        if !self.seen.insert(keccak256(example.whole())) {
            self.summary.n_duplicates += 1;
        }
        let key = keccak256(example.prompt());
        let fraction = self.options.held_out_fraction;
        let may_ask = fraction == 0.0 || is_held_out(&key, fraction);
        let question = if may_ask && self.options.questions > 0 {
            self.encoder.question(&example)
        } else {
            None
        };
        self.entries.extend(encoded.map(|encoded| Entry {
            key,
            encoded,
            question,
        }));
        Ok(())
    }

    fn finish(self) -> Result<Dataset, DataError> {
        let Self {
            options,
            mut summary,
            entries,
            ..
        } = self;
        let fraction = options.held_out_fraction;
        let needed = if fraction > 0.0 { 2 } else { 1 };
        let too_few = |n| DataError::TooFew {
            n,
            needed,
            n_left_out: summary.n_dropped + summary.n_without_answer,
        };
        let keys: BTreeSet<B256> = entries.iter().map(|e| e.key).collect();
        let (Some(lowest), Some(highest)) = (keys.first().copied(), keys.last().copied()) else {
            return Err(too_few(0));
        };
        if keys.len() < needed {
            return Err(too_few(keys.len()));
        }
        // With few examples, chance may take none or all: the lowest hash is
        // always held out, the highest never.
        let held = |key: &B256| {
            fraction > 0.0 && *key != highest && (*key == lowest || is_held_out(key, fraction))
        };
        let is_pairs = matches!(
            entries.first().map(|e| &e.encoded),
            Some(Encoded::Preference(_))
        );
        let [mut sequences, mut held_sequences] = [Vec::new(), Vec::new()];
        let [mut pairs, mut held_pairs] = [Vec::new(), Vec::new()];
        let mut questions = Vec::new();
        for entry in entries {
            let is_held = held(&entry.key);
            let is_asked = is_held || fraction == 0.0;
            if questions.len() < options.questions {
                questions.extend(entry.question.filter(|_| is_asked));
            }
            match entry.encoded {
                Encoded::Sequences(list) if is_held => held_sequences.extend(list),
                Encoded::Sequences(list) => sequences.extend(list),
                Encoded::Preference(pair) if is_held => held_pairs.push(pair),
                Encoded::Preference(pair) => pairs.push(pair),
            }
        }
        let (train, held_out) = if is_pairs {
            (
                Examples::Preferences(pairs),
                Examples::Preferences(held_pairs),
            )
        } else {
            (
                Examples::Sequences(sequences),
                Examples::Sequences(held_sequences),
            )
        };
        summary.n_train = train.len();
        summary.n_held_out = held_out.len();
        Ok(Dataset {
            train,
            held_out,
            questions,
            summary,
        })
    }
}

#[cfg(test)]
mod tests;
