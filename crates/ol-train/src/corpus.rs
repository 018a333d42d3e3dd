//! Text for training a base model: prose and questions with answers.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use ol_model::{Random, Sequence, Tokenizer, TokenizerError};
use serde::Deserialize;
use thiserror::Error;

const MAX_TEXT_SIZE_BYTES: u64 = 1 << 30;
const MAX_LINE_SIZE_BYTES: usize = 4 << 20;

/// Why a corpus cannot be read.
#[derive(Debug, Error)]
pub enum CorpusError {
    /// A file cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// File concerned.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file holds something else than expected.
    #[error("{path}, line {line}: {reason}")]
    Format {
        /// File concerned.
        path: PathBuf,
        /// Line, from 1; 0 for the whole file.
        line: usize,
        /// What is wrong.
        reason: String,
    },
}

/// Documents in the order read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Corpus {
    documents: Vec<Document>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Document {
    Prose(String),
    Record { question: String, answer: String },
}

#[derive(Deserialize)]
struct Row {
    contributor: String,
    question: String,
    answer: String,
}

impl Corpus {
    /// Adds the articles of a text file, plain or `.xz`, separated by empty lines.
    ///
    /// # Errors
    /// [`CorpusError`] when the file cannot be read, is not UTF-8 or passes 1 GiB.
    pub fn add_prose(&mut self, path: &Path) -> Result<(), CorpusError> {
        let io = |source| CorpusError::Io {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(io)?;
        let mut text = String::new();
        let limit = MAX_TEXT_SIZE_BYTES + 1;
        if path.extension().is_some_and(|e| e == "xz") {
            xz2::read::XzDecoder::new(file)
                .take(limit)
                .read_to_string(&mut text)
                .map_err(io)?;
        } else {
            file.take(limit).read_to_string(&mut text).map_err(io)?;
        }
        if text.len() as u64 > MAX_TEXT_SIZE_BYTES {
            let reason = "the text passes 1 GiB".to_owned();
            return Err(CorpusError::Format {
                path: path.to_owned(),
                line: 0,
                reason,
            });
        }
        let articles = text.split("\n\n").map(str::trim).filter(|a| !a.is_empty());
        self.documents
            .extend(articles.map(|a| Document::Prose(a.to_owned())));
        Ok(())
    }

    /// Adds the records of a JSONL file whose `contributor` is one of `contributors`.
    ///
    /// # Errors
    /// [`CorpusError`] with the line that cannot be read.
    pub fn add_records(&mut self, path: &Path, contributors: &[&str]) -> Result<(), CorpusError> {
        let io = |source| CorpusError::Io {
            path: path.to_owned(),
            source,
        };
        let mut reader = BufReader::new(File::open(path).map_err(io)?);
        for line in 1.. {
            let mut text = Vec::new();
            let most = MAX_LINE_SIZE_BYTES as u64 + 1;
            if (&mut reader)
                .take(most)
                .read_until(b'\n', &mut text)
                .map_err(io)?
                == 0
            {
                break;
            }
            let bad = |reason: String| CorpusError::Format {
                path: path.to_owned(),
                line,
                reason,
            };
            if text.len() > MAX_LINE_SIZE_BYTES {
                return Err(bad(format!("longer than {MAX_LINE_SIZE_BYTES} bytes")));
            }
            let row: Row = serde_json::from_slice(&text).map_err(|e| bad(e.to_string()))?;
            if contributors.contains(&row.contributor.as_str()) {
                self.documents.push(Document::Record {
                    question: row.question,
                    answer: row.answer,
                });
            }
        }
        Ok(())
    }

    /// Documents held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.documents.len()
    }

    /// Whether there is no document.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.documents.is_empty()
    }

    /// Every text once, for training a tokenizer.
    pub fn texts(&self) -> impl Iterator<Item = String> + Send + '_ {
        self.documents.iter().flat_map(|d| match d {
            Document::Prose(text) => vec![text.clone()],
            Document::Record { question, answer } => vec![question.clone(), answer.clone()],
        })
    }

    /// Training and held-out sequences of at most `context` tokens, every
    /// token weighing 1. One document in a hundred is held out, chosen by
    /// `seed`; longer documents are cut.
    ///
    /// # Errors
    /// When a text cannot be encoded.
    pub fn sequences(
        &self,
        tokenizer: &Tokenizer,
        context: usize,
        seed: u64,
    ) -> Result<(Vec<Sequence>, Vec<Sequence>), TokenizerError> {
        let mut order: Vec<usize> = (0..self.documents.len()).collect();
        Random::new(seed).shuffle(&mut order);
        let held = self.documents.len().div_ceil(100);
        let (mut train, mut held_out) = (Vec::new(), Vec::new());
        for (i, document) in order.into_iter().enumerate() {
            let tokens = match &self.documents[document] {
                Document::Prose(text) => {
                    let mut tokens = tokenizer.encode(text)?;
                    tokens.push(tokenizer.end_id());
                    tokens
                }
                Document::Record { question, answer } => tokenizer.record(question, answer)?.0,
            };
            let out = if i < held { &mut held_out } else { &mut train };
            for piece in tokens.chunks(context.max(2)).filter(|p| p.len() > 1) {
                out.push(Sequence {
                    tokens: piece.to_vec(),
                    weights: vec![1.0; piece.len()],
                });
            }
        }
        Ok((train, held_out))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn files_become_documents_and_bad_lines_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let prose = dir.path().join("a.txt.xz");
        let mut xz = xz2::write::XzEncoder::new(File::create(&prose).unwrap(), 1);
        xz.write_all("one article\n\n\n\nanother\nof two lines\n\n".as_bytes())
            .unwrap();
        xz.finish().unwrap();
        let records = dir.path().join("r.jsonl");
        let row = |who: &str| {
            format!(r#"{{"contributor":"{who}","question":"q","answer":"a","id":"1"}}"#) + "\n"
        };
        std::fs::write(&records, row("A") + &row("B") + &row("A")).unwrap();
        let mut corpus = Corpus::default();
        corpus.add_prose(&prose).unwrap();
        corpus.add_records(&records, &["A"]).unwrap();
        assert_eq!(corpus.len(), 4);
        assert_eq!(
            corpus.texts().collect::<Vec<_>>(),
            ["one article", "another\nof two lines", "q", "a", "q", "a"]
        );
        std::fs::write(&records, row("A") + "{\n").unwrap();
        let error = corpus
            .add_records(&records, &["A"])
            .unwrap_err()
            .to_string();
        assert!(error.contains("line 2"), "{error}");
        assert!(corpus.add_prose(&dir.path().join("none")).is_err());
        std::fs::write(&prose, b"not xz").unwrap();
        assert!(corpus.add_prose(&prose).is_err());
    }

    #[test]
    fn long_documents_are_cut_and_some_held_out() {
        let mut corpus = Corpus::default();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.txt");
        let text: Vec<String> = (0..150)
            .map(|i| format!("article {i} {}", "word ".repeat(i)))
            .collect();
        std::fs::write(&path, text.join("\n\n")).unwrap();
        corpus.add_prose(&path).unwrap();
        let tokenizer = Tokenizer::train(corpus.texts(), 300).unwrap();
        let (train, held_out) = corpus.sequences(&tokenizer, 32, 1).unwrap();
        assert!(
            train
                .iter()
                .chain(&held_out)
                .all(|s| s.tokens.len() <= 32 && s.tokens.len() == s.weights.len())
        );
        assert!(!held_out.is_empty() && held_out.len() < train.len());
        assert_eq!(corpus.sequences(&tokenizer, 32, 1).unwrap().0, train);
        assert_ne!(corpus.sequences(&tokenizer, 32, 2).unwrap().0, train);
    }
}
