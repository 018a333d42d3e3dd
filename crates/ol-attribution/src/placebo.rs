//! What chance pays: the null threshold of a model.
//!
//! An answer that has nothing to do with any record should pay nobody; yet some
//! nets are above zero by chance, and who splits into many identities keeps the
//! positive ones of all parts and leaves the negative ones behind. A *placebo*
//! is a record whose words stand in random order: the tokens of the datanet
//! without what it says. What single records score for placebos is chance, and
//! the threshold is a quantile of it.

use ol_model::{Lora, Model, Pool, Random};
use ol_poa::Index;

use crate::query::{QueryError, QuerySketcher};
use crate::record::RecordInput;

/// Most scores that are looked at, so that large indexes fit into memory: of a
/// larger one every second, third, ... record counts. A quantile of 16 million
/// scores is off by less than a thousandth of them.
const SCORES_MAX: usize = 1 << 24;

/// How to calibrate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PlaceboOptions {
    /// Placebos, at most all records.
    pub n_placebos: usize,
    /// Part of the scores that the threshold is not below, 0 to 1.
    pub quantile: f64,
    /// Chooses the records and the order of their words.
    pub seed: u64,
}

impl Default for PlaceboOptions {
    /// A hundred placebos; nine of ten scores are not above the threshold. On
    /// the benchmark `attacks` splitting pays up to 0.75, and no longer at 0.9.
    fn default() -> Self {
        Self {
            n_placebos: 100,
            quantile: 0.9,
            seed: 1,
        }
    }
}

/// The null threshold of an index: the quantile of the scores of its records,
/// those below zero counted as zero, for placebos made of `records`. In units
/// of the scores, for [`ol_poa::weights`].
///
/// One forward and backward pass for each placebo. The same on every machine.
///
/// # Errors
/// [`QueryError`] if a record does not fit the model, or the sketcher is for
/// another.
pub fn null_threshold(
    model: &Model,
    pool: &Pool,
    adapter: &Lora,
    sketcher: &QuerySketcher,
    index: &Index,
    records: &[RecordInput],
    options: &PlaceboOptions,
) -> Result<u64, QueryError> {
    let context = model.config().max_position_embeddings;
    let mut random = Random::new(options.seed);
    let mut order: Vec<&RecordInput> = records.iter().collect();
    random.shuffle(&mut order);
    let mut scores: Vec<u64> = Vec::new();
    let n_placebos = order.len().min(options.n_placebos);
    let stride = (n_placebos * index.len()).div_ceil(SCORES_MAX).max(1);
    for record in order.into_iter().take(options.n_placebos) {
        let n_tokens = record.tokens.len().min(context);
        let mut tokens = record.tokens[..n_tokens].to_vec();
        random.shuffle(&mut tokens);
        let (prompt, answer) = tokens.split_at(record.answer_start.min(n_tokens));
        let query = sketcher.sketch(model, pool, adapter, prompt, answer)?;
        let of_query = index.scores(&query).into_iter().step_by(stride);
        scores.extend(of_query.map(|score| u64::try_from(score).unwrap_or(0)));
    }
    scores.sort_unstable();
    Ok(quantile(&scores, options.quantile))
}

/// The least value that a part of all are not above; 0 of none.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "a position in a list, cut to its length"
)]
fn quantile(ascending: &[u64], part: f64) -> u64 {
    let last = ascending.len().saturating_sub(1);
    let at = (part * last as f64).ceil() as usize;
    ascending.get(at.min(last)).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests;
