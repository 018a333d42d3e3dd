//! A datanet as tokens: what may be trained on, and what is asked.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context, ensure};
use ol_model::{Model, Random, Sequence, Tokenizer};
use ol_types::B256;
use serde::Deserialize;

use crate::setting::Setting;

/// The datanets of the experiment.
pub(crate) const NAMES: [&str; 2] = ["defi-exploits", "healthcare"];

/// Fewest tokens of an answer that is asked for.
const ANSWER_TOKENS_MIN: usize = 8;

/// Kinds of loss that are measured of every query.
pub(crate) const KINDS: usize = 2;

#[derive(Debug, Deserialize)]
struct Line {
    contributor: String,
    question: String,
    answer: String,
}

/// A record, cut.
#[derive(Debug, Clone)]
pub(crate) struct Text {
    pub(crate) question: String,
    pub(crate) answer: String,
    pub(crate) tokens: Vec<u32>,
    pub(crate) answer_start: usize,
    /// Position among the datanet's contributors.
    pub(crate) contributor: usize,
}

impl Text {
    /// Both question and answer, token by token.
    pub(crate) fn whole(&self) -> Sequence {
        Sequence {
            tokens: self.tokens.clone(),
            weights: vec![1.0; self.tokens.len()],
        }
    }

    /// The question alone.
    pub(crate) fn question_part(&self) -> Sequence {
        let tokens = self.tokens[..self.answer_start].to_vec();
        let weights = vec![1.0; tokens.len()];
        Sequence { tokens, weights }
    }

    /// The answer, given the question.
    pub(crate) fn answer_part(&self) -> Sequence {
        let weight = |t: usize| if t < self.answer_start { 0.0 } else { 1.0 };
        Sequence {
            tokens: self.tokens.clone(),
            weights: (0..self.tokens.len()).map(weight).collect(),
        }
    }

    /// Tokens that are predicted in each part.
    pub(crate) fn part_lens(&self) -> [usize; KINDS] {
        [self.answer_start - 1, self.tokens.len() - self.answer_start]
    }
}

/// What a record is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    None,
    /// Asked, never trained on.
    HeldOut,
    /// Trained on and asked.
    Own,
    /// Trained on.
    Pool,
}

/// Gives the first `n` of `order` that have no use yet and are fit a use.
fn mark(uses: &mut [Use], order: &[usize], new: Use, n: usize, is_fit: impl Fn(&usize) -> bool) {
    let free = order.iter().filter(|&&at| uses[at] == Use::None);
    let chosen: Vec<usize> = free.copied().filter(is_fit).take(n).collect();
    chosen.into_iter().for_each(|at| uses[at] = new);
}

/// A datanet, split for the experiment.
#[derive(Debug)]
pub(crate) struct Domain {
    pub(crate) name: &'static str,
    /// Names the experiment on it.
    pub(crate) hash: B256,
    /// Records that may be trained on.
    pub(crate) pool: Vec<Text>,
    /// Records that are never trained on.
    pub(crate) held_out: Vec<Text>,
    /// Positions in `pool` that are asked too.
    pub(crate) own: Vec<usize>,
    /// Contributors by number of records in `pool`, most first.
    pub(crate) largest: Vec<usize>,
    pub(crate) contributors: Vec<String>,
}

impl Domain {
    /// Reads `assets/datanets/NAME.jsonl.xz` below `root`.
    pub(crate) fn load(
        root: &Path,
        name: &'static str,
        setting: &Setting,
        model: &Model,
        tokenizer: &Tokenizer,
    ) -> anyhow::Result<Self> {
        let path = root.join(format!("assets/datanets/{name}.jsonl.xz"));
        let file = File::open(&path).with_context(|| path.display().to_string())?;
        let mut lines = String::new();
        xz2::read::XzDecoder::new(file).read_to_string(&mut lines)?;
        let mut numbers: BTreeMap<String, usize> = BTreeMap::new();
        let mut contributors = Vec::new();
        let mut texts = Vec::new();
        for line in lines.lines() {
            let line: Line = serde_json::from_str(line)?;
            let contributor = *numbers.entry(line.contributor.clone()).or_insert_with(|| {
                contributors.push(line.contributor.clone());
                contributors.len() - 1
            });
            let (mut tokens, answer_start) = tokenizer.record(&line.question, &line.answer)?;
            tokens.truncate(setting.cut);
            ensure!(
                (2..tokens.len()).contains(&answer_start),
                "a record of {name} is all question at {} tokens",
                setting.cut
            );
            texts.push(Text {
                question: line.question,
                answer: line.answer,
                tokens,
                answer_start,
                contributor,
            });
        }

        let mut order: Vec<usize> = (0..texts.len()).collect();
        Random::new(0x6865_6c64).shuffle(&mut order);
        let can_be_asked = |&at: &usize| texts[at].part_lens()[1] >= ANSWER_TOKENS_MIN;
        let mut uses = vec![Use::None; texts.len()];
        mark(
            &mut uses,
            &order,
            Use::HeldOut,
            setting.held_out,
            can_be_asked,
        );
        mark(&mut uses, &order, Use::Own, setting.own, can_be_asked);
        let others = setting.records.saturating_sub(setting.own);
        mark(&mut uses, &order, Use::Pool, others, |_| true);

        let mut domain = Self {
            name,
            hash: setting.hash(model.hash(), lines.as_bytes()),
            pool: Vec::new(),
            held_out: Vec::new(),
            own: Vec::new(),
            largest: Vec::new(),
            contributors,
        };
        let mut counts = vec![0_usize; domain.contributors.len()];
        for (at, text) in texts.into_iter().enumerate() {
            match uses[at] {
                Use::None => continue,
                Use::HeldOut => {
                    domain.held_out.push(text);
                    continue;
                }
                Use::Own => domain.own.push(domain.pool.len()),
                Use::Pool => {}
            }
            counts[text.contributor] += 1;
            domain.pool.push(text);
        }
        domain.largest = (0..counts.len()).collect();
        domain
            .largest
            .sort_by_key(|&contributor| (usize::MAX - counts[contributor], contributor));
        Ok(domain)
    }

    /// What is asked: the held-out records, then the own ones.
    pub(crate) fn queries(&self) -> impl Iterator<Item = &Text> {
        let own = self.own.iter().map(|&at| &self.pool[at]);
        self.held_out.iter().chain(own)
    }

    pub(crate) fn n_queries(&self) -> usize {
        self.held_out.len() + self.own.len()
    }
}
