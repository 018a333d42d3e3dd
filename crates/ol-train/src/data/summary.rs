//! What was found in the files, and what was wrong.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use super::Format;
use super::read::has_rows;

/// What was found in the files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Each file, in order.
    pub files: Vec<FileSummary>,
    /// Sequences (or pairs) learnt from.
    pub n_train: usize,
    /// Sequences (or pairs) held out.
    pub n_held_out: usize,
    /// Tokens in all of them.
    pub n_tokens: u64,
    /// Tokens whose weight is not 0.
    pub n_learnt_tokens: u64,
    /// Examples cut off because they were too long.
    pub n_cut: usize,
    /// Examples left out because they were too long.
    pub n_dropped: usize,
    /// Examples left out because nothing of the answer was left after the cut.
    pub n_without_answer: usize,
    /// Texts cut into pieces.
    pub n_split: usize,
    /// Examples that were there before, word for word. They are kept.
    pub n_duplicates: usize,
    /// Bad lines passed over.
    pub n_bad: usize,
    /// The first of them.
    pub bad: Vec<BadLine>,
}

/// A file that was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileSummary {
    /// The file.
    pub path: PathBuf,
    /// What its examples look like.
    pub format: Format,
    /// Examples in it.
    pub n_records: usize,
}

/// A line that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BadLine {
    /// The file.
    pub path: PathBuf,
    /// The line, from 1; where the file is one list, the line its element
    /// begins on; of a Parquet file the row.
    pub line: usize,
    /// Field and reason.
    pub fault: Fault,
}

impl fmt::Display for BadLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, line, fault } = self;
        let unit = if has_rows(path) { "row" } else { "line" };
        write!(f, "{}, {unit} {line}: {fault}", path.display())
    }
}

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// The field concerned, if one is.
    pub field: Option<String>,
    /// What is wrong.
    pub reason: String,
}

impl Fault {
    pub(crate) fn new(reason: impl Into<String>) -> Self {
        Self {
            field: None,
            reason: reason.into(),
        }
    }

    pub(crate) fn in_field(field: &str, reason: impl Into<String>) -> Self {
        Self {
            field: Some(field.to_owned()),
            reason: reason.into(),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.field {
            Some(field) => write!(f, "field `{field}`: {}", self.reason),
            None => f.write_str(&self.reason),
        }
    }
}

impl fmt::Display for Summary {
    /// For people, a line for each thing to say.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for file in &self.files {
            let FileSummary {
                path,
                format,
                n_records,
            } = file;
            writeln!(f, "{}: {n_records} examples, {format}", path.display())?;
        }
        write!(
            f,
            "{} to learn from, {} held out; {} tokens, {} of them learnt",
            self.n_train, self.n_held_out, self.n_tokens, self.n_learnt_tokens
        )?;
        for (n, what) in [
            (self.n_cut, "too long, cut off at the end"),
            (self.n_dropped, "too long, left out"),
            (
                self.n_without_answer,
                "left out: nothing of the answer fits",
            ),
            (self.n_split, "texts cut into pieces"),
            (self.n_duplicates, "said more than once"),
            (self.n_bad, "bad lines passed over"),
        ] {
            if n > 0 {
                write!(f, "\n{n} {what}")?;
            }
        }
        for bad in &self.bad {
            write!(f, "\n  {bad}")?;
        }
        Ok(())
    }
}
