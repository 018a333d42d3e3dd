//! `openledger bond`: what an operator has bonded for claims, and taking it back.

use alloy_primitives::{Address, U256};
use anyhow::ensure;
use ol_contracts::address::ATTRIBUTION_COURT;
use ol_contracts::bindings::AttributionCourt::{self, Claimed};
use ol_contracts::court::ClaimStatus;
use serde_json::json;

use crate::chain::Chain;
use crate::cli::BondArgs;
use crate::command::claims::each_event;
use crate::instance::Layout;
use crate::output::{Out, open, print, wei_of};
use crate::registration::{DevRole, dev_signer};
use crate::rpc::Rpc;
use crate::secret::read_key;

pub(crate) fn run(
    layout: &Layout,
    args: &BondArgs,
    json: bool,
    out: Out<'_>,
) -> anyhow::Result<()> {
    let asked = match args.take.as_deref() {
        None => Asked::Nothing,
        Some("all") => Asked::All,
        Some(amount) => Asked::Wei(wei_of(amount)?),
    };
    let signer = match &args.key {
        Some(path) => read_key(path)?,
        None => dev_signer(DevRole::Operator),
    };
    let chain = Chain::open(layout)?;
    let (rpc, operator) = (chain.rpc(), signer.address());
    let free_wei = free_wei(rpc, operator)?;
    let taken_wei = match asked {
        Asked::Nothing => 0,
        Asked::All => free_wei,
        Asked::Wei(amount) => amount,
    };
    ensure!(
        taken_wei <= free_wei,
        "{} OPEN of the bond of {operator} are free, {} were asked for; what claims hold is free when they are closed",
        open(free_wei),
        open(taken_wei)
    );
    let mut tx_hash = None;
    if taken_wei > 0 {
        let amount = U256::from(taken_wei);
        let call = AttributionCourt::takeBondCall { amount };
        tx_hash = Some(rpc.send(&signer, ATTRIBUTION_COURT, U256::ZERO, &call)?);
    }
    let (n_claims, held_wei) = held(rpc, operator)?;
    let free_wei = self::free_wei(rpc, operator)?;
    let value = json!({
        "operator": operator,
        "free_wei": free_wei.to_string(),
        "held_wei": held_wei.to_string(),
        "n_open_claims": n_claims,
        "taken_wei": taken_wei.to_string(),
        "tx_hash": tx_hash,
    });
    print(out, json, &value, |out| {
        if taken_wei > 0 {
            writeln!(out, "{} OPEN are back at {operator}.", open(taken_wei))?;
        }
        writeln!(
            out,
            "{operator} has bonded {} OPEN that are free, and {} that {n_claims} open claims hold.",
            open(free_wei),
            open(held_wei)
        )
    })
}

/// How much to take back.
enum Asked {
    Nothing,
    All,
    Wei(u128),
}

fn free_wei(rpc: &Rpc, operator: Address) -> anyhow::Result<u128> {
    let call = AttributionCourt::bondsCall { operator };
    Ok(rpc.call(ATTRIBUTION_COURT, &call)?.saturating_to())
}

/// How many claims of an operator are open, and what they hold of its bond, in wei.
fn held(rpc: &Rpc, operator: Address) -> anyhow::Result<(u64, u128)> {
    let mut claims = Vec::new();
    each_event(rpc, |claimed: Claimed| {
        claims.extend((claimed.operator == operator).then_some(claimed.id));
    })?;
    let (mut n_claims, mut held_wei) = (0, 0_u128);
    for id in claims {
        let claim = rpc.call(ATTRIBUTION_COURT, &AttributionCourt::claimOfCall { id })?;
        if ClaimStatus::of(claim.status) == Some(ClaimStatus::Pending) {
            let fee = U256::from(claim.fee);
            let bond = rpc.call(ATTRIBUTION_COURT, &AttributionCourt::bondOfCall { fee })?;
            n_claims += 1;
            held_wei = held_wei.saturating_add(bond.saturating_to());
        }
    }
    Ok((n_claims, held_wei))
}
