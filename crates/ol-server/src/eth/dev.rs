//! Helpers of development chains, by the names that foundry and hardhat use:
//! blocks and time by hand, snapshots, balances, and accounts that are signed for.
//!
//! Served only if [`ServeConfig::is_dev`](super::ServeConfig) is set. All of
//! them make real blocks by the rules of the chain. Snapshots alone are not:
//! to go back is to forget blocks.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use alloy_consensus::SignableTransaction as _;
use alloy_eips::eip2718::Encodable2718 as _;
use alloy_primitives::{Address, B256, Bytes, TxKind, U64, U256};
use alloy_rpc_types_eth::TransactionRequest;
use alloy_signer::SignerSync as _;
use alloy_signer_local::PrivateKeySigner;
use jsonrpsee::types::ErrorObjectOwned;
use ol_node::{BlockRef, ControlError, MINE_BLOCKS_MAX, UnwindError};
use ol_types::DEV_MNEMONIC_KEYS;
use serde::Deserialize;
use serde_json::json;

use super::args::Args;
use super::fees::suggested_tip_wei;
use super::method::{Method, Reply, shown};
use super::{Eth, errors, fill};

/// Most snapshots that are kept; the oldest goes first.
const SNAPSHOTS_MAX: usize = 1_024;

/// Most waiting transactions that all snapshots together remember.
const SNAPSHOTS_WAITING_MAX: usize = 1 << 20;

pub(super) const METHODS: &[Method] = &[
    Method::call("anvil_increaseTime", 1, increase_time),
    Method::call("anvil_mine", 2, mine_many),
    Method::read("anvil_nodeInfo", 0, node_info),
    Method::call("anvil_revert", 1, revert),
    Method::call("anvil_setBalance", 2, set_balance),
    Method::call("anvil_setNextBlockTimestamp", 1, set_next_timestamp),
    Method::call("anvil_snapshot", 0, snapshot),
    Method::call("eth_sendTransaction", 1, send_transaction),
    Method::call("evm_increaseTime", 1, increase_time),
    Method::call("evm_mine", 1, mine),
    Method::call("evm_revert", 1, revert),
    Method::call("evm_setAutomine", 1, set_automine),
    Method::call("evm_setNextBlockTimestamp", 1, set_next_timestamp),
    Method::call("evm_snapshot", 0, snapshot),
    Method::call("hardhat_mine", 2, mine_many),
    Method::call("hardhat_setBalance", 2, set_balance),
];

/// What a development server has besides.
#[derive(Debug)]
pub(super) struct Dev {
    signers: Vec<PrivateKeySigner>,
    /// Pays for balances that are raised.
    treasury: Address,
    /// Held from the choice of a nonce until its transaction is taken.
    sending: Mutex<()>,
    snapshots: Mutex<Snapshots>,
}

#[derive(Debug, Default)]
struct Snapshots {
    n_taken: u64,
    by_id: BTreeMap<u64, Snapshot>,
    /// Transactions in all of them.
    n_waiting: usize,
}

/// What a chain goes back to.
#[derive(Debug)]
struct Snapshot {
    /// The newest block.
    number: u64,
    /// What was in the pool.
    waiting: HashSet<B256>,
}

impl Snapshots {
    /// Keeps one more, and returns its id. The oldest go if there are too many.
    fn add(&mut self, snapshot: Snapshot) -> u64 {
        self.n_taken += 1;
        self.n_waiting += snapshot.waiting.len();
        self.by_id.insert(self.n_taken, snapshot);
        while self.by_id.len() > SNAPSHOTS_MAX || self.n_waiting > SNAPSHOTS_WAITING_MAX {
            let Some((_, oldest)) = self.by_id.pop_first() else {
                break;
            };
            self.n_waiting -= oldest.waiting.len();
        }
        self.n_taken
    }

    /// Takes out one and all later ones, and returns it.
    fn use_up(&mut self, id: u64) -> Option<Snapshot> {
        if !self.by_id.contains_key(&id) {
            return None;
        }
        let mut gone = self.by_id.split_off(&id);
        self.n_waiting -= gone.values().map(|one| one.waiting.len()).sum::<usize>();
        gone.remove(&id)
    }
}

impl Dev {
    /// The accounts whose keys are public.
    pub(super) fn new() -> Self {
        let signers = DEV_MNEMONIC_KEYS.map(|key| {
            key.parse::<PrivateKeySigner>()
                .expect("a well-known key parses")
        });
        let [.., last] = &signers;
        Self {
            treasury: last.address(),
            signers: signers.into(),
            sending: Mutex::new(()),
            snapshots: Mutex::new(Snapshots::default()),
        }
    }

    fn snapshots(&self) -> MutexGuard<'_, Snapshots> {
        self.snapshots
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The development part; there, or the method would not be.
fn dev(eth: &Eth) -> Result<&Dev, ErrorObjectOwned> {
    eth.dev
        .as_ref()
        .ok_or_else(|| errors::refused("this is no development chain"))
}

/// A number that may be written in any of the ways that tools write it.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(untagged)]
enum Number {
    Plain(u64),
    Quantity(U256),
}

impl Number {
    fn to_u64(self) -> u64 {
        match self {
            Self::Plain(number) => number,
            Self::Quantity(number) => number.saturating_to(),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum MineOptions {
    Timestamp(Number),
    Options {
        timestamp: Option<Number>,
        blocks: Option<Number>,
    },
}

fn mine(args: &mut Args<'_>, eth: &Eth) -> Reply {
    let (timestamp, blocks) = match args.optional()? {
        None => (None, None),
        Some(MineOptions::Timestamp(timestamp)) => (Some(timestamp), None),
        Some(MineOptions::Options { timestamp, blocks }) => (timestamp, blocks),
    };
    if let Some(timestamp) = timestamp {
        eth.node
            .set_next_timestamp(timestamp.to_u64())
            .map_err(control)?;
    }
    eth.node
        .mine(blocks.map_or(1, Number::to_u64))
        .map_err(control)?;
    Ok(json!("0x0"))
}

fn mine_many(args: &mut Args<'_>, eth: &Eth) -> Reply {
    let blocks = args.optional()?.map_or(1, Number::to_u64);
    let interval_s = args.optional()?.map(Number::to_u64);
    let Some(interval_s) = interval_s else {
        eth.node.mine(blocks).map_err(control)?;
        return shown(());
    };
    if blocks > MINE_BLOCKS_MAX {
        return Err(control(ControlError::TooManyBlocks { asked: blocks }));
    }
    for n in 0..blocks {
        if n > 0 {
            let newest_s = eth.node.head().header.timestamp;
            eth.node
                .set_next_timestamp(newest_s.saturating_add(interval_s.max(1)))
                .map_err(control)?;
        }
        eth.node.mine(1).map_err(control)?;
    }
    shown(())
}

fn increase_time(args: &mut Args<'_>, eth: &Eth) -> Reply {
    let span_s = args.required::<Number>()?.to_u64();
    shown(eth.node.increase_time(span_s).map_err(control)?)
}

fn set_next_timestamp(args: &mut Args<'_>, eth: &Eth) -> Reply {
    let unix_s = args.required::<Number>()?.to_u64();
    eth.node.set_next_timestamp(unix_s).map_err(control)?;
    shown(())
}

fn set_automine(args: &mut Args<'_>, eth: &Eth) -> Reply {
    let is_on: bool = args.required()?;
    eth.node.set_mining_paused(!is_on).map_err(control)?;
    shown(())
}

fn snapshot(_: &mut Args<'_>, eth: &Eth) -> Reply {
    let mut snapshots = dev(eth)?.snapshots();
    // The pool first: what becomes part of a block in between is in both.
    let pool = eth.node.pool_content();
    let waiting = [pool.pending, pool.queued]
        .iter()
        .flat_map(BTreeMap::values)
        .flat_map(BTreeMap::values)
        .map(|pooled| pooled.hash)
        .collect();
    let number = eth.node.head().header.number;
    shown(U64::from(snapshots.add(Snapshot { number, waiting })))
}

/// Goes back to a snapshot, which is used up, as all later ones are. What
/// waited then and was executed since waits again.
fn revert(args: &mut Args<'_>, eth: &Eth) -> Reply {
    let id: U64 = args.required()?;
    let mut snapshots = dev(eth)?.snapshots();
    let Some(Snapshot { number, waiting }) = snapshots.use_up(id.to()) else {
        return shown(false);
    };
    eth.node
        .unwind(number, move |hash| waiting.contains(hash))
        .map_err(|error| match error {
            UnwindError::Store(_) => errors::internal(&error),
            other => errors::refused(other.to_string()),
        })?;
    shown(true)
}

fn node_info(_: &mut Args<'_>, eth: &Eth) -> Reply {
    let head = eth.node.head();
    let tip_wei = suggested_tip_wei(eth)?;
    let base_fee_wei = eth.node.next_base_fee_wei();
    shown(json!({
        "currentBlockNumber": U64::from(head.header.number),
        "currentBlockTimestamp": head.header.timestamp,
        "currentBlockHash": head.hash,
        "hardFork": "Prague",
        "transactionOrder": "fees",
        "environment": {
            "baseFee": U64::from(base_fee_wei),
            "chainId": eth.node.chain_id(),
            "gasLimit": U64::from(head.header.gas_limit),
            "gasPrice": U64::from(base_fee_wei.saturating_add(tip_wei)),
        },
        "forkConfig": {"forkUrl": null, "forkBlockNumber": null, "forkRetryBackoff": null},
    }))
}

/// Raises a balance by a transfer from the treasury, so that the sum of all
/// balances stays what it is and every node agrees.
fn set_balance(args: &mut Args<'_>, eth: &Eth) -> Reply {
    let address: Address = args.required()?;
    let asked_wei: U256 = args.required()?;
    let dev = dev(eth)?;
    let held_wei = eth
        .node
        .balance_wei(address, BlockRef::Pending)
        .map_err(errors::query)?;
    let Some(missing_wei) = asked_wei.checked_sub(held_wei) else {
        return Err(errors::refused(format!(
            "a balance cannot be lowered, because coins are never lost: {address} has {held_wei} wei"
        )));
    };
    if missing_wei.is_zero() {
        return shown(());
    }
    if address == dev.treasury {
        return Err(errors::refused(format!(
            "balances are raised from {address}, whose own cannot be"
        )));
    }
    let request = TransactionRequest {
        from: Some(dev.treasury),
        to: Some(TxKind::Call(address)),
        value: Some(missing_wei),
        ..TransactionRequest::default()
    };
    send(eth, request)?;
    shown(())
}

fn send_transaction(args: &mut Args<'_>, eth: &Eth) -> Reply {
    send(eth, args.required()?)
}

/// Fills in what is missing, signs, and sends.
fn send(eth: &Eth, request: TransactionRequest) -> Reply {
    let dev = dev(eth)?;
    let from = request
        .from
        .ok_or_else(|| errors::invalid_params("missing value for field from"))?;
    let signer = dev
        .signers
        .iter()
        .find(|signer| signer.address() == from)
        .ok_or_else(|| errors::refused("unknown account"))?;
    let mut request = fill::all_but_nonce(eth, request)?;
    let sending = dev.sending.lock().unwrap_or_else(PoisonError::into_inner);
    fill::nonce(eth, &mut request)?;
    let raw = signed(signer, request)?;
    let outcome = eth.node.submit(&raw).map_err(errors::submit)?;
    drop(sending);
    shown(outcome.transaction_hash())
}

fn signed(
    signer: &PrivateKeySigner,
    request: TransactionRequest,
) -> Result<Bytes, ErrorObjectOwned> {
    let unsigned = fill::typed(request)?;
    let signature = signer
        .sign_hash_sync(&unsigned.signature_hash())
        .map_err(|error| errors::internal(&error))?;
    Ok(unsigned.into_envelope(signature).encoded_2718().into())
}

fn control(error: ControlError) -> ErrorObjectOwned {
    match error {
        ControlError::Storage(_) => errors::internal(&error),
        other => errors::invalid_params(other.to_string()),
    }
}

/// The accounts that are signed for; none outside of development.
pub(super) fn accounts(_: &mut Args<'_>, eth: &Eth) -> Reply {
    let signers = eth.dev.iter().flat_map(|dev| &dev.signers);
    shown(signers.map(PrivateKeySigner::address).collect::<Vec<_>>())
}
