//! A datanet with attackers in it: committed, deduplicated, trained on,
//! sketched and paid by the code that ships.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use ol_attribution::checkpoint::Checkpoints;
use ol_attribution::placebo::{PlaceboOptions, null_threshold};
use ol_attribution::query::QuerySketcher;
use ol_attribution::record::{RecordInput, SketchOptions, sketch_records};
use ol_datanet::{
    AddOptions, CommittedRecord, Datanets, DuplicateRules, NEAR_DUPLICATES_PERCENT, cluster_owners,
};
use ol_model::{Model, Pool, Random, Tokenizer};
use ol_poa::{Entry, Index, QuerySketch};
use ol_runtime::{MemoryHeads, Objects};
use ol_types::{Address, keccak256};

use crate::domain::{Domain, Text};
use crate::retrain::{self, Machine};
use crate::setting::Setting;

/// The datanet: the one with most contributors.
const DATANET: &str = "defi-exploits";

/// What is divided for each answer, in wei.
const POT: u128 = 1_000_000_000_000_000_000;

/// Adapters on the way of a training, at the first of which gradients are taken, as
/// `openledger train` does.
const CHECKPOINTS: u32 = 3;

/// Seed of the initial adapter and of the order of the records.
const SEED: usize = 0;

/// A record and who commits it.
#[derive(Debug, Clone)]
pub(crate) struct Post {
    pub(crate) question: String,
    pub(crate) answer: String,
    /// Number of the contributor.
    pub(crate) by: usize,
}

/// Which records of a datanet count as the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Clusters {
    /// None: every record is trained on and paid.
    Off,
    /// Exact duplicates, and what the rules say.
    Of(DuplicateRules),
}

impl Clusters {
    /// Records of the same words alone.
    pub(crate) const EXACT: Self = Self::Of(DuplicateRules::EXACT);
    /// And those that share much of what their words tell.
    pub(crate) const NEAR: Self = Self::Of(DuplicateRules::EXACT.and_near(NEAR_DUPLICATES_PERCENT));
    /// And those whose question and answer each stand in earlier records.
    pub(crate) const RECOMBINED: Self = Self::Of(DuplicateRules::EXACT.and_recombined());
    /// All of these.
    pub(crate) const ALL: Self = Self::Of(
        DuplicateRules::EXACT
            .and_near(NEAR_DUPLICATES_PERCENT)
            .and_recombined(),
    );
}

/// How scores become weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    /// As it ships: net by contributor, less the null threshold of placebos,
    /// nothing below zero.
    Calibrated,
    /// The same with a threshold of zero.
    Net,
    /// Every record's positive part, as if each were a contributor's only one.
    PositiveParts,
}

/// The honest records, and what is asked.
pub(crate) struct Market {
    machine: Machine,
    pub(crate) tokenizer: Tokenizer,
    setting: Setting,
    domain: Domain,
    /// The honest records in the order of their commits.
    pub(crate) honest: Vec<Post>,
}

/// A model that was trained on some of the records, and its answers.
#[derive(Debug, Clone)]
pub(crate) struct Sketched {
    index: Index,
    queries: Vec<QuerySketch>,
    /// Calibrated as it ships.
    pub(crate) null_threshold: u64,
}

impl Market {
    pub(crate) fn open(root: &Path, setting: Setting, threads: usize) -> anyhow::Result<Self> {
        let base = root.join("assets/base");
        let machine = Machine {
            model: Model::load(&base)?,
            pool: Pool::new(threads),
        };
        let tokenizer = Tokenizer::load(&base)?;
        let domain = Domain::load(root, DATANET, &setting, &machine.model, &tokenizer)?;
        let post = |text: &Text| Post {
            question: text.question.clone(),
            answer: text.answer.clone(),
            by: text.contributor,
        };
        let honest = domain.pool.iter().map(post).collect();
        Ok(Self {
            machine,
            tokenizer,
            setting,
            domain,
            honest,
        })
    }

    /// Contributors by number of honest records, most first.
    pub(crate) fn largest(&self) -> &[usize] {
        &self.domain.largest
    }

    /// Positions of a contributor's honest records.
    pub(crate) fn records_of(&self, contributor: usize) -> Vec<usize> {
        let all = self.honest.iter().enumerate();
        all.filter(|(_, post)| post.by == contributor)
            .map(|(at, _)| at)
            .collect()
    }

    /// The first contributor who has nothing yet.
    pub(crate) fn newcomer(&self) -> usize {
        self.domain.contributors.len()
    }

    /// Commits records to a datanet in their order.
    pub(crate) fn commit(
        posts: &[Post],
        rules: DuplicateRules,
    ) -> anyhow::Result<Vec<CommittedRecord>> {
        let mut lines = String::new();
        for (at, post) in posts.iter().enumerate() {
            let line = serde_json::json!({
                "question": post.question,
                "answer": post.answer,
                "contributor": post.by.to_string(),
                "license": "CC0-1.0",
                "id": at.to_string(),
            });
            writeln!(lines, "{line}")?;
        }
        let datanets = Datanets::open(Objects::memory(), Arc::new(MemoryHeads::default()));
        datanets.create(DATANET)?;
        let to_address = |name: &str| name.parse().map_or(Address::ZERO, address);
        let options = AddOptions::new(&to_address).duplicates(rules);
        let report = datanets.add(DATANET, lines.as_bytes(), &options)?;
        ensure!(report.n_rejected == 0, "{:?}", report.rejected);
        let head = datanets.head(DATANET)?.context("a version")?;
        Ok(datanets.records(head)?)
    }

    /// Which of the records are trained on: the owner of each cluster.
    pub(crate) fn owners(posts: &[Post], clusters: Clusters) -> anyhow::Result<Vec<bool>> {
        let Clusters::Of(rules) = clusters else {
            return Ok(vec![true; posts.len()]);
        };
        let mut is_kept = vec![false; posts.len()];
        for owner in cluster_owners(&Self::commit(posts, rules)?) {
            is_kept[owner.record.id.parse::<usize>()?] = true;
        }
        Ok(is_kept)
    }

    /// Trains on the records that are kept and sketches them and the answers.
    /// Models of the same posts train in the same order, whatever is kept.
    pub(crate) fn sketch(
        &self,
        posts: &[Post],
        is_kept: &[bool],
        options: &SketchOptions,
    ) -> anyhow::Result<Sketched> {
        let mut texts = Vec::with_capacity(posts.len());
        for post in posts {
            let (mut tokens, answer_start) = self.tokenizer.record(&post.question, &post.answer)?;
            tokens.truncate(self.setting.cut);
            texts.push(Text {
                question: post.question.clone(),
                answer: post.answer.clone(),
                answer_start: answer_start.min(tokens.len() - 1),
                tokens,
                contributor: post.by,
            });
        }
        let domain = Domain {
            name: DATANET,
            hash: self.domain.hash,
            pool: texts,
            held_out: Vec::new(),
            own: Vec::new(),
            largest: Vec::new(),
            contributors: Vec::new(),
        };
        let Machine { model, pool } = &self.machine;
        let snapshots = retrain::train_on(
            &self.machine,
            &domain,
            &self.setting,
            is_kept,
            SEED,
            CHECKPOINTS,
        )?;
        let adapter = &snapshots.last().context("a training has an end")?.adapter;
        let kept = snapshots.iter().map(|at| Arc::new(at.adapter.clone()));
        let options = SketchOptions {
            checkpoints: Checkpoints::new(kept.collect()),
            ..options.clone()
        };
        let inputs = (0_u32..).zip(&domain.pool).zip(is_kept);
        let inputs: Vec<RecordInput> = inputs
            .filter(|(_, is_kept)| **is_kept)
            .map(|((at, text), _)| RecordInput {
                tokens: text.tokens.clone(),
                answer_start: text.answer_start,
                hash: keccak256(at.to_be_bytes()),
                contributor: address(text.contributor),
                cluster: at,
            })
            .collect();
        let sketches = sketch_records(model, pool, adapter, &inputs, &options, None, &mut |_| ())?;
        let sketcher = QuerySketcher::at(sketches.map, model, adapter, &options.checkpoints)?;
        let null_threshold = null_threshold(
            model,
            pool,
            adapter,
            &sketcher,
            &sketches.index,
            &inputs,
            &PlaceboOptions::default(),
        )?;
        let sketch = |text: &Text| {
            let (prompt, answer) = text.tokens.split_at(text.answer_start);
            sketcher.sketch(model, pool, adapter, prompt, answer)
        };
        let queries = self.domain.held_out.iter().map(sketch);
        Ok(Sketched {
            index: sketches.index,
            queries: queries.collect::<Result<_, _>>()?,
            null_threshold,
        })
    }
}

impl Sketched {
    /// Sketches that say nothing: every score is chance, of records that belong to
    /// `owners`. The threshold is what placebos would give.
    pub(crate) fn of_chance(owners: &[usize], n_queries: usize) -> anyhow::Result<Self> {
        let mut random = Random::new(10);
        let entries = (0_u32..).zip(owners).map(|(cluster, &owner)| Entry {
            contributor: address(owner),
            record: keccak256(cluster.to_be_bytes()),
            cluster,
            scale: 1,
            codes: std::array::from_fn(|_| code(&mut random, 7)),
        });
        let index = Index::new(entries.collect())?;
        let queries = (0..n_queries).map(|_| {
            let codes = std::array::from_fn(|_| code(&mut random, 127));
            QuerySketch::new(codes)
        });
        let queries: Vec<QuerySketch> = queries.collect::<Result<_, _>>()?;
        let mut scores: Vec<i64> = queries
            .iter()
            .flat_map(|query| index.scores(query))
            .collect();
        scores.sort_unstable();
        let null_threshold = u64::try_from(scores[scores.len() * 9 / 10])?;
        Ok(Self {
            index,
            queries,
            null_threshold,
        })
    }

    /// Each contributor's part of all pots, 0 to 1.
    pub(crate) fn shares(&self, rule: Rule) -> anyhow::Result<BTreeMap<Address, f64>> {
        let mut shares: BTreeMap<Address, f64> = BTreeMap::new();
        for query in &self.queries {
            let weights = match rule {
                Rule::Calibrated => self.index.weights(self.null_threshold, query),
                Rule::Net => self.index.weights(0, query),
                Rule::PositiveParts => self.positive_parts(query),
            };
            let (who, weights): (Vec<Address>, Vec<u64>) = weights.into_iter().unzip();
            if weights.is_empty() {
                continue;
            }
            for (who, wei) in who.into_iter().zip(ol_poa::shares(POT, &weights)?) {
                *shares.entry(who).or_default() += part_of(wei, POT) / count(self.queries.len());
            }
        }
        Ok(shares)
    }

    fn positive_parts(&self, query: &QuerySketch) -> Vec<(Address, u64)> {
        let mut parts: BTreeMap<Address, u64> = BTreeMap::new();
        for (entry, score) in self.index.entries().zip(self.index.scores(query)) {
            *parts.entry(entry.contributor()).or_default() += u64::try_from(score).unwrap_or(0);
        }
        parts.into_iter().filter(|(_, part)| *part > 0).collect()
    }

    /// What some contributors get together.
    pub(crate) fn share_of(&self, who: &[usize], rule: Rule) -> anyhow::Result<f64> {
        let shares = self.shares(rule)?;
        let of = |&number: &usize| shares.get(&address(number)).copied().unwrap_or(0.0);
        Ok(who.iter().map(of).sum())
    }

    /// The same sketches, owned by others: entry by entry, by the position of
    /// the record.
    pub(crate) fn owned_by(&self, owner: impl Fn(usize) -> usize) -> anyhow::Result<Self> {
        let entries = self.index.entries().map(|entry| Entry {
            contributor: address(owner(entry.cluster() as usize)),
            ..entry.to_entry()
        });
        Ok(Self {
            index: Index::new(entries.collect())?,
            ..self.clone()
        })
    }
}

/// A number from `-most` to `most`.
fn code(random: &mut Random, most: i8) -> i8 {
    let n = random.below(2 * usize::from(most.unsigned_abs()) + 1);
    let n = i16::try_from(n).expect("at most 254");
    i8::try_from(n - i16::from(most)).expect("at most 127 either way")
}

/// The address of a contributor.
pub(crate) fn address(number: usize) -> Address {
    Address::from_slice(&keccak256(number.to_be_bytes())[12..])
}

#[expect(clippy::cast_precision_loss, reason = "a number of things")]
pub(crate) const fn count(n: usize) -> f64 {
    n as f64
}

#[expect(clippy::cast_precision_loss, reason = "a share for a table")]
pub(crate) const fn part_of(wei: u128, whole: u128) -> f64 {
    wei as f64 / whole as f64
}
