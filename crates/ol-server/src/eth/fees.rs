//! What gas costs.

use alloy_eips::BlockNumberOrTag;
use alloy_primitives::U64;
use alloy_rpc_types_eth::FeeHistory;
use jsonrpsee::types::ErrorObjectOwned;
use ol_node::PRIORITY_FEE_WEI;

use super::args::Args;
use super::method::{Method, Reply, quantity, shown};
use super::{Eth, errors, shapes};

/// Most percentiles of a fee history.
const PERCENTILES_MAX: usize = 100;

pub(super) const METHODS: &[Method] = &[
    // There are no blobs; a pool that is always empty keeps its least price.
    Method::free("eth_blobBaseFee", 0, |_, _| quantity(1)),
    Method::call("eth_feeHistory", 3, fee_history),
    Method::free("eth_gasPrice", 0, |_, eth| {
        quantity(
            eth.node
                .next_base_fee_wei()
                .saturating_add(PRIORITY_FEE_WEI),
        )
    }),
    Method::free("eth_maxPriorityFeePerGas", 0, |_, _| {
        quantity(PRIORITY_FEE_WEI)
    }),
];

fn fee_history(args: &mut Args<'_>, eth: &Eth) -> Reply {
    let n_blocks: U64 = args.required()?;
    let newest: BlockNumberOrTag = args.required()?;
    let percentiles: Option<Vec<f64>> = args.optional()?;
    let percentiles_bps = percentiles
        .as_deref()
        .map(percentiles_bps)
        .transpose()?
        .unwrap_or_default();
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
    let is_valid = percentiles.len() <= PERCENTILES_MAX
        && percentiles.iter().all(|p| (0.0..=100.0).contains(p))
        && percentiles.is_sorted();
    if !is_valid {
        return Err(errors::invalid_params("invalid reward percentiles"));
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "within 0 to 10,000"
    )]
    let bps = percentiles.iter().map(|p| (p * 100.0).round() as u32);
    Ok(bps.collect())
}
