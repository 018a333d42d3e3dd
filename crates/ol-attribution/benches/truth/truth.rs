//! The measured losses as an experiment: halves and contributors by query.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::domain::{Domain, KINDS};
use crate::fixture;
use crate::log::{self, Log, Runs};
use crate::plan::{Kept, Run};
use crate::setting::Setting;
use crate::stats::{count, mean, pearson, spearman};

/// Which loss of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    /// Of the answer's tokens given the question, their mean.
    Answer,
    /// Mean over the question plus mean over the answer.
    Both,
}

impl Loss {
    pub(crate) const ALL: [Self; 2] = [Self::Answer, Self::Both];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Answer => "answer",
            Self::Both => "question and answer",
        }
    }

    pub(crate) fn of(self, losses: &[f32], query: usize) -> f64 {
        let [question, answer] = [0, 1].map(|kind| f64::from(losses[KINDS * query + kind]));
        match self {
            Self::Answer => answer,
            Self::Both => question + answer,
        }
    }
}

/// What was measured on a domain.
#[derive(Debug)]
pub(crate) struct Truth {
    runs: Vec<(Run, Vec<f32>)>,
    pub(crate) n_seeds: usize,
}

impl Truth {
    /// What was measured so far in a folder, or what the repository has.
    pub(crate) fn read(folder: &Path, setting: &Setting, domain: &Domain) -> anyhow::Result<Self> {
        let losses = if folder.is_dir() {
            read(folder, domain)?
        } else {
            fixture::read(folder, domain)?
        };
        let runs = losses.into_iter().map(|(number, losses)| {
            let run = Run::from_number(number).context("a run of another version")?;
            Ok((run, losses))
        });
        Ok(Self {
            runs: runs.collect::<anyhow::Result<_>>()?,
            n_seeds: setting.half_seeds,
        })
    }

    fn find(&self, kept: Kept, seed: usize) -> Option<&[f32]> {
        let found = self.runs.iter().find(|(run, _)| *run == Run { kept, seed });
        found.map(|(_, losses)| losses.as_slice())
    }

    /// The halves that were trained with every seed.
    pub(crate) fn halves(&self) -> Vec<usize> {
        let is_whole = |&half: &usize| {
            (0..self.n_seeds).all(|seed| self.find(Kept::Half(half), seed).is_some())
        };
        (0..self.runs.len()).filter(is_whole).collect()
    }

    /// Losses of a query over halves, of one seed.
    pub(crate) fn of_seed(
        &self,
        halves: &[usize],
        seed: usize,
        loss: Loss,
        query: usize,
    ) -> Vec<f64> {
        let of = |&half: &usize| {
            self.find(Kept::Half(half), seed)
                .map_or(f64::NAN, |losses| loss.of(losses, query))
        };
        halves.iter().map(of).collect()
    }

    /// Losses of a query over halves, mean of the seeds.
    pub(crate) fn losses(&self, halves: &[usize], loss: Loss, query: usize) -> Vec<f64> {
        let mut sums = vec![0.0; halves.len()];
        for seed in 0..self.n_seeds {
            let of_seed = self.of_seed(halves, seed, loss, query);
            sums.iter_mut().zip(of_seed).for_each(|(sum, x)| *sum += x);
        }
        sums.iter().map(|sum| sum / count(self.n_seeds)).collect()
    }

    /// How much each query loses without each of the largest contributors,
    /// `[query][rank]`: mean over the seeds for which both trainings are there.
    /// Ends with the last contributor that has any.
    pub(crate) fn without(&self, loss: Loss, n_queries: usize) -> Vec<Vec<f64>> {
        let seeds = |rank: usize| -> Vec<(&[f32], &[f32])> {
            let pair = |seed| {
                let all = self.find(Kept::All, seed)?;
                Some((all, self.find(Kept::Without(rank), seed)?))
            };
            (0..self.runs.len()).filter_map(pair).collect()
        };
        let pairs: Vec<_> = (0..)
            .map(seeds)
            .take_while(|pairs| !pairs.is_empty())
            .collect();
        let drop = |pairs: &Vec<(&[f32], &[f32])>, query| {
            let drops = pairs
                .iter()
                .map(|(all, without)| loss.of(without, query) - loss.of(all, query));
            mean(&drops.collect::<Vec<_>>())
        };
        (0..n_queries)
            .map(|query| pairs.iter().map(|pairs| drop(pairs, query)).collect())
            .collect()
    }

    /// How well one seed's losses over the halves foretell another's: mean
    /// over the queries of Pearson's and Spearman's correlation.
    pub(crate) fn reliability(&self, loss: Loss, queries: std::ops::Range<usize>) -> [f64; 2] {
        let halves = self.halves();
        let mut sums = [Vec::new(), Vec::new()];
        for query in queries {
            for second in 1..self.n_seeds {
                for first in 0..second {
                    let [a, b] =
                        [first, second].map(|seed| self.of_seed(&halves, seed, loss, query));
                    sums[0].push(pearson(&a, &b));
                    sums[1].push(spearman(&a, &b));
                }
            }
        }
        sums.map(|values| mean(&values))
    }
}

/// The log of a domain in a folder, and what it has.
pub(crate) fn open(folder: &Path, domain: &Domain) -> anyhow::Result<(Log, Runs)> {
    Log::open(&path(folder, domain), domain.hash, n_losses(domain))
}

/// What the log of a domain in a folder has.
pub(crate) fn read(folder: &Path, domain: &Domain) -> anyhow::Result<Runs> {
    Ok(log::read(&path(folder, domain), domain.hash, n_losses(domain))?.0)
}

fn path(folder: &Path, domain: &Domain) -> PathBuf {
    folder.join(format!("{}.losses", domain.name))
}

fn n_losses(domain: &Domain) -> usize {
    KINDS * domain.n_queries()
}
