//! What gas costs.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use alloy_eips::BlockNumberOrTag;
use alloy_primitives::{B256, U64};
use alloy_rpc_types_eth::FeeHistory;
use jsonrpsee::types::ErrorObjectOwned;
use ol_node::{BlockRef, PRIORITY_FEE_WEI};
use serde_json::json;

use super::args::Args;
use super::method::{Method, Reply, quantity, shown};
use super::{Eth, errors, shapes};

/// Most percentiles of a fee history; as in geth.
const PERCENTILES_MAX: usize = 100;

/// Blocks whose tips are looked at for a suggestion.
const TIP_BLOCKS: usize = 20;

/// Which transaction of a block counts, by gas.
const TIP_PERCENTILE_BPS: u32 = 3_000;

/// Most that is suggested, however much others pay; as in geth.
const TIP_MAX_WEI: u64 = 500_000_000_000;

pub(super) const METHODS: &[Method] = &[
    // There are no blobs; a pool that is always empty keeps its least price.
    Method::free("eth_blobBaseFee", 0, |_, _| quantity(1)),
    Method::call("eth_feeHistory", 3, fee_history),
    Method::read("eth_gasPrice", 0, |_, eth| {
        let tip_wei = suggested_tip_wei(eth)?;
        // Enough for the next block, and for a call on top of the newest, which
        // is made with the newest's base fee.
        let newest_wei = eth.node.head().header.base_fee_per_gas.unwrap_or_default();
        let base_fee_wei = eth.node.next_base_fee_wei().max(newest_wei);
        quantity(base_fee_wei.saturating_add(tip_wei))
    }),
    Method::read("eth_maxPriorityFeePerGas", 0, |_, eth| {
        quantity(suggested_tip_wei(eth)?)
    }),
];

/// The tips of recent blocks, of which each is looked at once.
#[derive(Debug, Default)]
pub(super) struct TipOracle {
    /// By block hash: what the cheaper transactions of a block tipped; `None`
    /// if the block is empty.
    tips_wei: Mutex<BTreeMap<B256, Option<u64>>>,
}

/// The tip that gets a transaction into a block soon: the middle of what the
/// cheaper transactions of recent blocks paid.
pub(super) fn suggested_tip_wei(eth: &Eth) -> Result<u64, ErrorObjectOwned> {
    let mut known = eth
        .tips
        .tips_wei
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    let mut recent = BTreeMap::new();
    let mut at = BlockRef::Latest;
    while recent.len() < TIP_BLOCKS {
        let Some((header, hash)) = eth.node.header(at).map_err(errors::query)? else {
            break;
        };
        let tip_wei = match known.remove(&hash) {
            Some(tip_wei) => tip_wei,
            None if header.gas_used == 0 => None,
            None => tip_of_block(eth, hash)?,
        };
        recent.insert(hash, tip_wei);
        if header.number == 0 {
            break;
        }
        at = BlockRef::Hash(header.parent_hash);
    }
    let mut tips_wei: Vec<u64> = recent.values().copied().flatten().collect();
    tips_wei.sort_unstable();
    *known = recent;
    let middle = tips_wei
        .get(tips_wei.len() / 2)
        .copied()
        .unwrap_or_default();
    Ok(middle.clamp(PRIORITY_FEE_WEI, TIP_MAX_WEI))
}

fn tip_of_block(eth: &Eth, hash: B256) -> Result<Option<u64>, ErrorObjectOwned> {
    let history = eth
        .node
        .fee_history(1, BlockRef::Hash(hash), &[TIP_PERCENTILE_BPS])
        .map_err(errors::query)?;
    let tip_wei = history.tips_wei.first().and_then(|tips| tips.first());
    Ok(tip_wei.map(|tip_wei| u64::try_from(*tip_wei).unwrap_or(u64::MAX)))
}

fn fee_history(args: &mut Args<'_>, eth: &Eth) -> Reply {
    let n_blocks: U64 = args.required()?;
    let newest: BlockNumberOrTag = args.required()?;
    let percentiles: Option<Vec<f64>> = args.optional()?;
    let percentiles_bps = percentiles
        .as_deref()
        .map(percentiles_bps)
        .transpose()?
        .unwrap_or_default();
    if n_blocks == U64::ZERO {
        return Ok(json!({"oldestBlock": "0x0", "gasUsedRatio": null}));
    }
    let head = eth.node.head().header.number;
    if let BlockNumberOrTag::Number(number) = newest
        && number > head
    {
        return Err(errors::refused(format!(
            "request beyond head block: requested {number}, head {head}"
        )));
    }
    let found = eth
        .node
        .fee_history(n_blocks.to(), shapes::block_ref(newest), &percentiles_bps)
        .map_err(errors::query)?;
    let n_blocks = found.gas.len();
    shown(FeeHistory {
        base_fee_per_gas: found.base_fees_wei.into_iter().map(u128::from).collect(),
        #[expect(clippy::cast_precision_loss, reason = "a ratio for display")]
        gas_used_ratio: found
            .gas
            .into_iter()
            .map(|(used, limit)| used as f64 / limit.max(1) as f64)
            .collect(),
        base_fee_per_blob_gas: vec![1; n_blocks + 1],
        blob_gas_used_ratio: vec![0.0; n_blocks],
        oldest_block: found.oldest_block,
        reward: percentiles.map(|_| found.tips_wei),
    })
}

/// Percentiles as basis points; they must ascend within 0 to 100.
fn percentiles_bps(percentiles: &[f64]) -> Result<Vec<u32>, ErrorObjectOwned> {
    if percentiles.len() > PERCENTILES_MAX {
        return Err(errors::refused(format!(
            "invalid reward percentile: over the query limit {PERCENTILES_MAX}"
        )));
    }
    if let Some(wrong) = percentiles.iter().find(|p| !(0.0..=100.0).contains(*p)) {
        return Err(errors::refused(format!(
            "invalid reward percentile: {wrong}"
        )));
    }
    if let Some(at) = percentiles.windows(2).position(|pair| pair[0] > pair[1]) {
        let (before, after) = (percentiles[at], percentiles[at + 1]);
        return Err(errors::refused(format!(
            "invalid reward percentile: #{at}:{before} >= #{}:{after}",
            at + 1
        )));
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "within 0 to 10,000"
    )]
    let bps = percentiles.iter().map(|p| (p * 100.0).round() as u32);
    Ok(bps.collect())
}
