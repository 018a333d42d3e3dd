//! The acceptance measure: does asking a record's question pay its contributor?

use std::collections::BTreeMap;

use ol_model::{ForwardError, KvCache, Lora, Model, Pool, Random, Segment};
use ol_poa::Index;
use ol_types::Address;

use crate::query::{QueryError, QuerySketcher};
use crate::record::RecordInput;

/// How to sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SelfQueryOptions {
    /// Records that are asked, at most all.
    pub n_samples: usize,
    /// Longest answer, in tokens.
    pub answer_tokens_max: usize,
    /// The token that ends an answer.
    pub end: u32,
    /// Chooses the records.
    pub seed: u64,
}

impl SelfQueryOptions {
    /// Fifty records, answers of at most 64 tokens that end with `end`.
    #[must_use]
    pub const fn with_end(end: u32) -> Self {
        Self {
            n_samples: 50,
            answer_tokens_max: 64,
            end,
            seed: 1,
        }
    }
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SelfQueryReport {
    /// Records asked.
    pub n_samples: usize,
    /// Contributors there are.
    pub n_contributors: usize,
    /// How often the record's contributor had the largest share, alone.
    pub n_own_largest: usize,
    /// How often the record itself had the largest score.
    pub n_own_record_largest: usize,
    /// How often nobody was paid.
    pub n_unpaid: usize,
    /// Mean share of the record's contributor, 0 to 1.
    pub own_share_mean: f64,
    /// Share that the same samples would give on average if every contributor
    /// were paid for the number of records alone.
    pub own_share_by_count: f64,
}

/// The model's greedy answer to `prompt`: at most `answer_tokens_max` tokens and
/// the model's context, up to and with the end token.
///
/// # Errors
/// [`ForwardError`] if the prompt or the adapter does not fit the model.
pub fn greedy_answer(
    model: &Model,
    pool: &Pool,
    adapter: &Lora,
    prompt: &[u32],
    options: &SelfQueryOptions,
) -> Result<Vec<u32>, ForwardError> {
    let context = model.config().max_position_embeddings;
    let mut cache = KvCache::new(model.config(), context);
    let mut answer = Vec::new();
    let mut new = prompt.to_vec();
    let room = context.saturating_sub(prompt.len());
    for _ in 0..options.answer_tokens_max.min(room) {
        let logits = model.forward(
            pool,
            &mut [Segment {
                tokens: &new,
                cache: &mut cache,
                adapter: Some(adapter),
            }],
        )?;
        // The first of equals: a fixed order.
        let best = logits
            .iter()
            .zip(0_u32..)
            .fold((f32::MIN, options.end), |best, (&x, token)| {
                if x > best.0 { (x, token) } else { best }
            });
        answer.push(best.1);
        new = vec![best.1];
        if best.1 == options.end {
            break;
        }
    }
    Ok(answer)
}

/// Asks the questions of sampled records, sketches the model's own greedy
/// answers and counts whom they pay. Records whose question leaves no room for
/// an answer in the model's context cannot be asked and are passed over.
///
/// # Errors
/// [`QueryError`] if a record does not fit the model, or the sketcher is for
/// another.
pub fn evaluate_self_query(
    model: &Model,
    pool: &Pool,
    adapter: &Lora,
    sketcher: &QuerySketcher,
    index: &Index,
    records: &[RecordInput],
    options: &SelfQueryOptions,
) -> Result<SelfQueryReport, QueryError> {
    let mut count_by_contributor: BTreeMap<Address, usize> = BTreeMap::new();
    for entry in index.entries() {
        *count_by_contributor.entry(entry.contributor()).or_default() += 1;
    }
    let context = model.config().max_position_embeddings;
    let can_be_asked = |record: &&RecordInput| record.answer_start < context;
    let mut order: Vec<&RecordInput> = records.iter().filter(can_be_asked).collect();
    Random::new(options.seed).shuffle(&mut order);
    order.truncate(options.n_samples);

    let mut report = SelfQueryReport {
        n_samples: order.len(),
        n_contributors: count_by_contributor.len(),
        n_own_largest: 0,
        n_own_record_largest: 0,
        n_unpaid: 0,
        own_share_mean: 0.0,
        own_share_by_count: 0.0,
    };
    for record in &order {
        let prompt = &record.tokens[..record.answer_start.min(record.tokens.len())];
        let answer = greedy_answer(model, pool, adapter, prompt, options)?;
        let query = sketcher.sketch(model, pool, adapter, prompt, &answer)?;

        let weights = index.weights(0, &query);
        let total: f64 = weights.iter().map(|(_, weight)| as_f64(*weight)).sum();
        let own = weights.iter().find(|(who, _)| *who == record.contributor);
        let own = own.map_or(0, |(_, weight)| *weight);
        let n_as_large = weights.iter().filter(|(_, weight)| *weight >= own).count();
        report.n_own_largest += usize::from(own > 0 && n_as_large == 1);
        report.n_unpaid += usize::from(weights.is_empty());
        if total > 0.0 {
            report.own_share_mean += as_f64(own) / total;
        }
        let scores = index.scores(&query);
        let best = index.entries().zip(scores).max_by_key(|(_, score)| *score);
        let is_own = best.is_some_and(|(entry, _)| entry.record() == record.hash);
        report.n_own_record_largest += usize::from(is_own);
        let own_count = count_by_contributor.get(&record.contributor).copied();
        report.own_share_by_count += count(own_count.unwrap_or(0)) / count(index.len());
    }
    let n = count(order.len().max(1));
    report.own_share_mean /= n;
    report.own_share_by_count /= n;
    Ok(report)
}

/// A weight, below 2⁵¹ and so exact.
#[expect(clippy::cast_precision_loss, reason = "weights are below 2^51")]
const fn as_f64(weight: u64) -> f64 {
    weight as f64
}

/// A number of records as a factor.
#[expect(
    clippy::cast_precision_loss,
    reason = "an index has at most 2^20 entries"
)]
const fn count(n: usize) -> f64 {
    n as f64
}
