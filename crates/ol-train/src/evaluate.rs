//! What an adapter is worth: held-out loss, and answers to held-out questions,
//! before and after.

mod metrics;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use ol_model::{ForwardError, KvCache, Lora, Model, Pool, Segment, Sequence, write_atomic};
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use metrics::{exact_match, rouge_l};

use crate::trainer::weight;

/// Questions answered at the same time.
const BATCH: usize = 16;

/// A held-out question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The question as people read it.
    pub question: String,
    /// The question as the model reads it, up to where it is to answer.
    pub prompt: Vec<u32>,
    /// The right answer.
    pub answer: String,
}

/// How answers are generated: greedily, so that they are the same every time.
#[derive(Clone, Copy)]
pub struct Answering<'a> {
    /// Most tokens of an answer.
    pub max_new_tokens: usize,
    /// Tokens that end an answer; they are no part of it.
    pub end_ids: &'a [u32],
    /// Turns the tokens of an answer into text.
    pub decode: &'a dyn Fn(&[u32]) -> String,
}

impl std::fmt::Debug for Answering<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answering")
            .field("max_new_tokens", &self.max_new_tokens)
            .field("end_ids", &self.end_ids)
            .finish_non_exhaustive()
    }
}

/// Measurements of a model. Fields are in alphabetical order, here and below,
/// as in everything whose JSON is written.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Part of the questions whose answer is the right one, normalised as in
    /// SQuAD (Rajpurkar et al., 2016); none without questions.
    pub exact_match: Option<f64>,
    /// Held-out loss, nats a token.
    pub loss: f64,
    /// `e` to the loss.
    pub perplexity: f64,
    /// Mean F-measure of ROUGE-L (Lin, 2004); none without questions.
    pub rouge_l: Option<f64>,
}

/// A held-out question with its answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answered {
    /// Answer with the adapter.
    pub after: String,
    /// Answer of the base.
    pub before: String,
    /// What was asked.
    pub question: String,
    /// The right answer.
    pub reference: String,
}

/// A base and its adapter, side by side.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// The base with the adapter.
    pub after: Scores,
    /// Every question with both answers.
    pub answers: Vec<Answered>,
    /// The base alone.
    pub before: Scores,
    /// Held-out tokens that have a loss.
    pub n_tokens: u64,
}

/// Why an evaluation cannot be written.
#[derive(Debug, Error)]
#[error("{path}: {source}")]
pub struct EvaluationError {
    /// File concerned.
    pub path: PathBuf,
    /// What the system said.
    pub source: std::io::Error,
}

impl Evaluation {
    /// Name of the JSON file beside an adapter.
    pub const JSON_FILE: &'static str = "evaluation.json";
    /// Name of the file for people.
    pub const MARKDOWN_FILE: &'static str = "evaluation.md";

    /// Measures `model` without and with `adapter` on held-out sequences and
    /// questions. `on_answer` is called with the number of answers after each
    /// batch of them, of twice the number of questions.
    ///
    /// # Errors
    /// [`ForwardError`] when a sequence or a prompt does not fit the model.
    pub fn measure(
        model: &Model,
        pool: &Pool,
        adapter: &Lora,
        held_out: &[Sequence],
        questions: &[Question],
        answering: &Answering<'_>,
        on_answer: &mut dyn FnMut(usize),
    ) -> Result<Self, ForwardError> {
        let mut measure = |adapter: Option<&Lora>, answered: usize| {
            let loss = model.losses(pool, adapter, held_out)?.iter().sum::<f64>();
            let loss = loss / weight(held_out);
            let prompts: Vec<&[u32]> = questions.iter().map(|q| &q.prompt[..]).collect();
            let answers = answer(model, pool, adapter, &prompts, answering, &mut |n| {
                on_answer(answered + n);
            })?;
            Ok((scores(loss, questions, &answers), answers))
        };
        let (before, answers_before) = measure(None, 0)?;
        let (after, answers_after) = measure(Some(adapter), questions.len())?;
        let pairs = answers_before.into_iter().zip(answers_after);
        let answers = questions.iter().zip(pairs);
        let n_tokens = held_out
            .iter()
            .flat_map(|s| s.weights.iter().skip(1))
            .filter(|w| **w != 0.0)
            .count();
        Ok(Self {
            after,
            answers: answers
                .map(|(q, (before, after))| Answered {
                    after,
                    before,
                    question: q.question.clone(),
                    reference: q.answer.clone(),
                })
                .collect(),
            before,
            n_tokens: n_tokens as u64,
        })
    }

    /// The measurements as a table, and the answers below it.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut out = "| held out | base | with the adapter |\n|---|---:|---:|\n".to_owned();
        let mut row = |name: &str, before: String, after: String| {
            let _ = writeln!(out, "| {name} | {before} | {after} |");
        };
        let (before, after) = (&self.before, &self.after);
        let digits = |x: f64| format!("{x:.4}");
        row(
            "loss, nats a token",
            digits(before.loss),
            digits(after.loss),
        );
        row(
            "perplexity",
            format!("{:.2}", before.perplexity),
            format!("{:.2}", after.perplexity),
        );
        for (name, before, after) in [
            ("exact match", before.exact_match, after.exact_match),
            ("ROUGE-L", before.rouge_l, after.rouge_l),
        ] {
            if let (Some(before), Some(after)) = (before, after) {
                row(name, digits(before), digits(after));
            }
        }
        let _ = writeln!(
            out,
            "\n{} held-out tokens, {} questions answered greedily.",
            self.n_tokens,
            self.answers.len()
        );
        if !self.answers.is_empty() {
            out.push_str(
                "\n| question | right answer | base | with the adapter |\n|---|---|---|---|\n",
            );
        }
        for a in &self.answers {
            let cells = [&a.question, &a.reference, &a.before, &a.after].map(|text| cell(text));
            let _ = writeln!(out, "| {} |", cells.join(" | "));
        }
        out
    }

    /// Writes both files into `dir`.
    ///
    /// # Errors
    /// [`EvaluationError`] with the file that cannot be written.
    ///
    /// # Panics
    /// Never: every field is a number, a string or a list of those.
    pub fn write(&self, dir: &Path) -> Result<(), EvaluationError> {
        let mut json = serde_json::to_vec_pretty(self).expect("numbers and strings are JSON");
        json.push(b'\n');
        for (name, bytes) in [
            (Self::JSON_FILE, json),
            (Self::MARKDOWN_FILE, self.markdown().into_bytes()),
        ] {
            let path = dir.join(name);
            write_atomic(&path, &bytes).map_err(|source| EvaluationError { path, source })?;
        }
        Ok(())
    }
}

#[expect(clippy::cast_precision_loss, reason = "a mean over a few answers")]
fn scores(loss: f64, questions: &[Question], answers: &[String]) -> Scores {
    let mean = |score: &dyn Fn(&str, &str) -> f64| {
        let pairs = questions.iter().zip(answers);
        let sum: f64 = pairs.map(|(q, a)| score(a, &q.answer)).sum();
        (!questions.is_empty()).then(|| sum / questions.len() as f64)
    };
    Scores {
        exact_match: mean(&|a, b| f64::from(u8::from(exact_match(a, b)))),
        loss,
        perplexity: libm::exp(loss),
        rouge_l: mean(&rouge_l),
    }
}

/// A text in a cell of a Markdown table, cut to 200 characters.
fn cell(text: &str) -> String {
    let mut words = String::new();
    for word in text.split_whitespace() {
        words.push_str(if words.is_empty() { "" } else { " " });
        words.push_str(word);
    }
    let mut out: String = words.chars().take(200).collect();
    if out.len() < words.len() {
        out.push('…');
    }
    out.replace('\\', "\\\\")
        .replace('|', "\\|")
        .replace('<', "&lt;")
}

/// A prompt that is being answered.
struct Running {
    /// Its place among the prompts.
    index: usize,
    cache: KvCache,
    /// Tokens that the model has not seen yet.
    pending: Vec<u32>,
    answer: Vec<u32>,
}

/// The greedy answer to each prompt, the most likely token at each place (of
/// equals the lowest), up to an end token, `max_new_tokens`, or the end of the
/// model's context. A prompt that fills the context has an empty answer.
///
/// # Errors
/// [`ForwardError`] when a prompt is empty or not of the model's tokens, or the
/// adapter is of another shape.
pub fn answer(
    model: &Model,
    pool: &Pool,
    adapter: Option<&Lora>,
    prompts: &[&[u32]],
    answering: &Answering<'_>,
    on_answer: &mut dyn FnMut(usize),
) -> Result<Vec<String>, ForwardError> {
    let context = model.config().max_position_embeddings;
    let mut answers = vec![Vec::new(); prompts.len()];
    let mut waiting = prompts
        .iter()
        .enumerate()
        .filter(|(_, prompt)| prompt.len() < context && answering.max_new_tokens > 0)
        .rev()
        .collect::<Vec<_>>();
    let mut done = prompts.len() - waiting.len();
    let mut running: Vec<Running> = Vec::new();
    loop {
        while running.len() < BATCH
            && let Some((index, prompt)) = waiting.pop()
        {
            let most = prompt.len() + answering.max_new_tokens;
            running.push(Running {
                index,
                cache: KvCache::new(model.config(), most.min(context)),
                pending: prompt.to_vec(),
                answer: Vec::new(),
            });
        }
        if running.is_empty() {
            break;
        }
        let mut segments: Vec<Segment<'_>> = running
            .iter_mut()
            .map(|r| Segment {
                tokens: &r.pending,
                cache: &mut r.cache,
                adapter,
            })
            .collect();
        let logits = model.forward(pool, &mut segments)?;
        drop(segments);
        let rows = logits.chunks_exact(model.config().vocab_size);
        for (r, row) in running.iter_mut().zip(rows) {
            let token = most_likely(row);
            r.pending.clear();
            if !answering.end_ids.contains(&token) {
                r.answer.push(token);
                let has_room = r.cache.len() < context;
                if has_room && r.answer.len() < answering.max_new_tokens {
                    r.pending.push(token);
                }
            }
        }
        let before = done;
        running.retain_mut(|r| {
            if r.pending.is_empty() {
                answers[r.index] = std::mem::take(&mut r.answer);
                done += 1;
            }
            !r.pending.is_empty()
        });
        if done > before {
            on_answer(done);
        }
    }
    Ok(answers.iter().map(|a| (answering.decode)(a)).collect())
}

/// Index of the largest value; of equals the first.
#[expect(clippy::cast_possible_truncation, reason = "a vocabulary fits 32 bits")]
fn most_likely(row: &[f32]) -> u32 {
    let mut best = 0;
    for (i, value) in row.iter().enumerate() {
        if *value > row[best] {
            best = i;
        }
    }
    best as u32
}

#[cfg(test)]
mod tests;
