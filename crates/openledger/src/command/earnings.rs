//! `openledger earnings`: what contributors can claim, and paying it out.

use alloy_primitives::{Address, U256};
use anyhow::ensure;
use ol_contracts::address::INFERENCE_SETTLEMENT;
use ol_contracts::bindings::InferenceSettlement;
use serde_json::{Value, json};

use crate::chain::Chain;
use crate::cli::EarningsCommand;
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
    let mut rows = Vec::new();
    for (name, contributor) in &summary.contributors {
        rows.push((
            credit_wei(chain, contributor.address)?,
            name,
            contributor.address,
        ));
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
    let credit_wei = credit_wei(chain, account)?;
    ensure!(
        credit_wei > 0,
        "{contributor} ({account}) has nothing to claim"
    );
    let call = InferenceSettlement::claimForCall { account };
    let signer = dev_signer(DevRole::Owner);
    let tx_hash = chain
        .rpc()
        .send(&signer, INFERENCE_SETTLEMENT, U256::ZERO, &call)?;
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
