//! `openledger earnings`: what contributors can claim, and paying it out.

use std::collections::BTreeMap;

use alloy_primitives::{Address, U256};
use anyhow::ensure;
use ol_contracts::address::{ATTRIBUTION_COURT, INFERENCE_SETTLEMENT};
use ol_contracts::bindings::{AttributionCourt, InferenceSettlement};
use serde_json::{Value, json};

use crate::chain::Chain;
use crate::cli::EarningsCommand;
use crate::command::claims::Shares;
use crate::command::datanet::contributor_address;
use crate::instance::Layout;
use crate::output::{Out, open, open_of, print};
use crate::registration::{DevRole, dev_signer};

pub(crate) fn run(
    layout: &Layout,
    command: &EarningsCommand,
    json: bool,
    out: Out<'_>,
) -> anyhow::Result<()> {
    let chain = Chain::open(layout)?;
    match command {
        EarningsCommand::List { datanet } => list(&chain, datanet, json, out),
        EarningsCommand::Claim { contributor } => claim(&chain, contributor, json, out),
    }
}

fn list(chain: &Chain, datanet: &str, json: bool, out: Out<'_>) -> anyhow::Result<()> {
    let summary = chain.datanets()?.show(datanet)?;
    let accounts: Vec<Address> = summary.contributors.values().map(|c| c.address).collect();
    let mut of_claims: BTreeMap<Address, u128> = BTreeMap::new();
    for share in Shares::new(chain).uncollected(&accounts)? {
        *of_claims.entry(share.contributor()).or_default() += share.share_wei();
    }
    let mut rows = Vec::new();
    for (name, contributor) in &summary.contributors {
        let account = contributor.address;
        let of_claims_wei = of_claims.get(&account).copied().unwrap_or_default();
        let credit_wei = credit_wei(chain, account)? + court_credit_wei(chain, account)?;
        rows.push((credit_wei + of_claims_wei, name, account));
    }
    rows.sort_by_key(|&(credit_wei, name, _)| (std::cmp::Reverse(credit_wei), name));
    let rows: Vec<Value> = rows
        .into_iter()
        .map(|(credit_wei, name, address)| {
            json!({"contributor": name, "address": address, "credit_wei": credit_wei.to_string()})
        })
        .collect();
    print(out, json, &Value::Array(rows.clone()), |out| {
        for row in &rows {
            let name = row["contributor"].as_str().unwrap_or_default();
            writeln!(out, "{name:<48}{:>26} OPEN", open_of(&row["credit_wei"]))?;
        }
        Ok(())
    })
}

/// Anyone may have a credit paid out, but only to the account that earned it:
/// here the owner of the demo pays the gas.
fn claim(chain: &Chain, contributor: &str, json: bool, out: Out<'_>) -> anyhow::Result<()> {
    let account = contributor
        .parse()
        .unwrap_or_else(|_| contributor_address(contributor));
    let signer = dev_signer(DevRole::Owner);
    for share in Shares::new(chain).uncollected(&[account])? {
        share.collect(chain.rpc(), &signer)?;
    }
    let of_receipts_wei = credit_wei(chain, account)?;
    let of_claims_wei = court_credit_wei(chain, account)?;
    let credit_wei = of_receipts_wei + of_claims_wei;
    ensure!(
        credit_wei > 0,
        "{contributor} ({account}) has nothing to claim"
    );
    let mut tx_hash = None;
    if of_receipts_wei > 0 {
        let call = InferenceSettlement::claimForCall { account };
        let sent = chain
            .rpc()
            .send(&signer, INFERENCE_SETTLEMENT, U256::ZERO, &call);
        tx_hash = Some(sent?);
    }
    if of_claims_wei > 0 {
        let call = AttributionCourt::withdrawForCall { account };
        let sent = chain
            .rpc()
            .send(&signer, ATTRIBUTION_COURT, U256::ZERO, &call);
        tx_hash = Some(sent?);
    }
    let balance_wei: u128 = chain.rpc().balance(account)?.saturating_to();
    let value = json!({
        "contributor": contributor,
        "address": account,
        "claimed_wei": credit_wei.to_string(),
        "balance_wei": balance_wei.to_string(),
        "tx_hash": tx_hash,
    });
    print(out, json, &value, |out| {
        writeln!(
            out,
            "Paid {} OPEN to {account}, which now holds {}.",
            open(credit_wei),
            open(balance_wei)
        )
    })
}

fn credit_wei(chain: &Chain, account: Address) -> anyhow::Result<u128> {
    let call = InferenceSettlement::creditCall { account };
    Ok(chain
        .rpc()
        .call(INFERENCE_SETTLEMENT, &call)?
        .saturating_to())
}

fn court_credit_wei(chain: &Chain, account: Address) -> anyhow::Result<u128> {
    let call = AttributionCourt::creditCall { account };
    Ok(chain.rpc().call(ATTRIBUTION_COURT, &call)?.saturating_to())
}
