//! Weighted sums of adapters: `sum_i w_i s_i B_i A_i`, exactly, as one adapter
//! whose factors are those of the parts side by side.
//!
//! A is the parts' A below each other. B is `w_i s_i B_i` beside each other,
//! each element rounded once to f32, so the scale of the whole is 1. The rank of
//! a module is the sum of the parts' ranks there.

use std::collections::BTreeMap;
use std::sync::Arc;

use ol_model::{Lora, LoraBlock, LoraConfig, MAX_RANK, ModelConfig};
use ol_types::{B256, keccak256};

use super::AdapterError;
use super::error::MAX_WEIGHTED_PARTS;
use super::table::{HOST, N_TIERS};
use super::version::{Origin, Version};

/// Largest weight, up or down.
const MAX_WEIGHT: f32 = 100.0;

/// The version that a weighted sum of versions is. Equal parts in any order
/// make the same version; one part of weight 1 is that part.
pub(super) fn sum_of(
    parts: impl IntoIterator<Item = (Arc<Version>, f32)>,
) -> Result<Arc<Version>, AdapterError> {
    let refused = |reason: String| Err(AdapterError::Merge { reason });
    let mut by_hash: BTreeMap<B256, (Arc<Version>, f32)> = BTreeMap::new();
    for (n, (version, weight)) in parts.into_iter().enumerate() {
        if n == MAX_WEIGHTED_PARTS {
            return refused(format!("there are more than {MAX_WEIGHTED_PARTS}"));
        }
        if version.use_dora {
            return refused("a DoRA adapter is no sum of low-rank products".into());
        }
        let entry = by_hash.entry(version.hash).or_insert((version, 0.0));
        entry.1 += weight;
        // Not a number fails this too.
        if !(weight.abs() <= MAX_WEIGHT && entry.1.abs() <= MAX_WEIGHT) {
            return refused(format!(
                "weight {weight} is not a number from -{MAX_WEIGHT} to {MAX_WEIGHT}"
            ));
        }
    }
    by_hash.retain(|_, (_, weight)| *weight != 0.0);
    let parts: Vec<(Arc<Version>, f32)> = by_hash.into_values().collect();
    match parts.as_slice() {
        [] => return refused("no part has a weight".into()),
        [(version, 1.0)] => return Ok(Arc::clone(version)),
        _ => {}
    }
    let rank_max = parts.iter().map(|(part, _)| part.rank_max).sum();
    if rank_max > MAX_RANK {
        return Err(AdapterError::too_high_rank(rank_max));
    }
    let n_params = parts.iter().map(|(part, _)| part.n_params).sum();
    let mut bytes = b"openledger-adapter-sum/1".to_vec();
    for (part, weight) in &parts {
        bytes.extend(part.hash);
        bytes.extend(weight.to_be_bytes());
    }
    let mut size_bytes = [0; N_TIERS];
    for (part, _) in &parts {
        for (sum, size) in size_bytes.iter_mut().zip(part.size_bytes) {
            *sum += size;
        }
    }
    // A sum is in f32 whatever its parts are.
    size_bytes[HOST] = size_bytes[HOST].max((n_params * size_of::<f32>()) as u64);
    Ok(Arc::new(Version {
        hash: keccak256(&bytes),
        rank_max,
        n_params,
        use_dora: false,
        file_size_bytes: 0,
        size_bytes,
        origin: Origin::Sum(parts),
    }))
}

/// The sum itself.
pub(super) fn weighted_sum(
    model: &ModelConfig,
    parts: &[(Arc<Lora>, f32)],
) -> Result<Lora, AdapterError> {
    // By layer and projection, which is the flat order.
    let mut modules: BTreeMap<_, Vec<(&[f32], &LoraBlock, f32)>> = BTreeMap::new();
    // Not `parameters`, which the part would keep.
    let flat: Vec<Vec<f32>> = parts.iter().map(|(lora, _)| lora.to_parameters()).collect();
    for ((lora, weight), flat) in parts.iter().zip(&flat) {
        for block in lora.blocks() {
            let module = (block.layer, block.projection);
            modules
                .entry(module)
                .or_default()
                .push((flat, block, *weight));
        }
    }
    let mut params = Vec::new();
    let mut by_rank: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    let mut target_modules = Vec::new();
    for ((_, projection), blocks) in &modules {
        let rank: usize = blocks.iter().map(|(_, block, _)| block.rank()).sum();
        if rank > MAX_RANK {
            return Err(AdapterError::too_high_rank(rank));
        }
        for (flat, block, _) in blocks {
            params.extend_from_slice(&flat[block.range_a()]);
        }
        let d_out = blocks[0].1.rows_b.0;
        for row in 0..d_out {
            for (flat, block, weight) in blocks {
                let factor = weight * block.scale;
                let start = block.range_b().start + row * block.rank();
                let b = &flat[start..start + block.rank()];
                params.extend(b.iter().map(|b| factor * b));
            }
        }
        by_rank
            .entry(rank)
            .or_default()
            .push(blocks[0].1.module.clone());
        if !target_modules.contains(projection) {
            target_modules.push(*projection);
        }
    }
    let module_pattern = Some(any_of(by_rank.values().flatten()));
    let (rank, _) = by_rank.pop_last().ok_or_else(|| AdapterError::Merge {
        reason: "the parts adapt nothing".into(),
    })?;
    let rank_pattern: BTreeMap<String, usize> = by_rank
        .iter()
        .map(|(rank, modules)| (any_of(modules.iter()), *rank))
        .collect();
    let alpha = |rank: usize| f32::from(u16::try_from(rank).unwrap_or(u16::MAX));
    let config = LoraConfig {
        alpha: alpha(rank),
        alpha_pattern: rank_pattern
            .iter()
            .map(|(modules, rank)| (modules.clone(), alpha(*rank)))
            .collect(),
        module_pattern,
        rank,
        rank_pattern,
        target_modules,
        use_dora: false,
        use_rslora: false,
    };
    Lora::from_parameters(model, config, params).map_err(|error| AdapterError::Merge {
        reason: error.to_string(),
    })
}

/// A pattern for exactly these paths, which have no sign of patterns but dots.
fn any_of<'a>(modules: impl Iterator<Item = &'a String>) -> String {
    let escaped: Vec<String> = modules.map(|module| module.replace('.', r"\.")).collect();
    escaped.join("|")
}
