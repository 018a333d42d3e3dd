//! Accounts: balance, nonce, code, storage.

use std::collections::BTreeMap;

use alloy_eips::BlockId;
use alloy_primitives::{Address, B256, Bytes, KECCAK256_EMPTY, U64, U256};
use alloy_rpc_types_eth::{EIP1186AccountProofResponse, EIP1186StorageProof};
use alloy_serde::JsonStorageKey;
use jsonrpsee::types::ErrorObjectOwned;
use ol_node::{BlockRef, Node, StateReader, StoreError};
use serde_json::json;

use super::args::Args;
use super::method::{Method, Reply, quantity, shown};
use super::{Eth, errors, shapes};

/// Most slots of one `eth_getStorageValues`; as in geth.
const STORAGE_VALUES_MAX: usize = 1_024;

pub(super) const METHODS: &[Method] = &[
    Method::read("eth_getAccountInfo", 2, account_info),
    Method::read("eth_getBalance", 2, balance),
    Method::read("eth_getCode", 2, code),
    Method::call("eth_getProof", 3, proof),
    Method::read("eth_getStorageAt", 3, storage),
    Method::read("eth_getStorageValues", 2, storage_values),
    Method::read("eth_getTransactionCount", 2, transaction_count),
];

/// What foundry asks in one call: balance, nonce and code.
fn account_info(args: &mut Args<'_>, eth: &Eth) -> Reply {
    let address: Address = args.required()?;
    let at = optional_block(args, &eth.node)?;
    let failed = |error: StoreError| errors::query(error.into());
    let state = eth.node.state(at).map_err(errors::query)?;
    let account = state.account(address).map_err(failed)?.unwrap_or_default();
    let code = match account.code_hash {
        KECCAK256_EMPTY => Bytes::new(),
        hash => state.code(hash).map_err(failed)?,
    };
    shown(json!({
        "balance": account.balance_wei,
        "nonce": U64::from(account.nonce),
        "code": code,
    }))
}

fn balance(args: &mut Args<'_>, eth: &Eth) -> Reply {
    let address: Address = args.required()?;
    let at = optional_block(args, &eth.node)?;
    shown(eth.node.balance_wei(address, at).map_err(errors::query)?)
}

fn code(args: &mut Args<'_>, eth: &Eth) -> Reply {
    let address: Address = args.required()?;
    let at = optional_block(args, &eth.node)?;
    shown(eth.node.code(address, at).map_err(errors::query)?)
}

fn storage(args: &mut Args<'_>, eth: &Eth) -> Reply {
    let address: Address = args.required()?;
    let slot: U256 = args.required()?;
    let at = optional_block(args, &eth.node)?;
    let value = eth.node.storage(address, slot, at).map_err(errors::query)?;
    shown(B256::from(value))
}

/// Many slots of many accounts at one block.
fn storage_values(args: &mut Args<'_>, eth: &Eth) -> Reply {
    let asked: BTreeMap<Address, Vec<U256>> = args.required()?;
    let at = optional_block(args, &eth.node)?;
    let n_slots: usize = asked.values().map(Vec::len).sum();
    if n_slots == 0 {
        return Err(errors::invalid_params("empty request"));
    }
    if n_slots > STORAGE_VALUES_MAX {
        return Err(errors::invalid_params(format!(
            "too many slots (max {STORAGE_VALUES_MAX})"
        )));
    }
    let state = eth.node.state(at).map_err(errors::query)?;
    let mut found: BTreeMap<Address, Vec<B256>> = BTreeMap::new();
    for (address, slots) in asked {
        let values = found.entry(address).or_default();
        for slot in slots {
            let value = StateReader::storage(&state, address, slot);
            values.push(value.map_err(|error| errors::query(error.into()))?.into());
        }
    }
    shown(found)
}

fn transaction_count(args: &mut Args<'_>, eth: &Eth) -> Reply {
    let address: Address = args.required()?;
    let at = optional_block(args, &eth.node)?;
    quantity(match at {
        BlockRef::Pending => eth.node.next_nonce(address).map_err(errors::query)?,
        at => eth.node.nonce(address, at).map_err(errors::query)?,
    })
}

/// A proof of an account and of some of its slots (EIP-1186).
fn proof(args: &mut Args<'_>, eth: &Eth) -> Reply {
    let address: Address = args.required()?;
    let keys: Vec<JsonStorageKey> = args.required()?;
    let at = optional_block(args, &eth.node)?;
    let slots: Vec<U256> = keys.iter().map(|key| key.as_b256().into()).collect();
    let found = eth.node.proof(address, &slots, at).map_err(errors::query)?;
    let storage_proof = keys
        .into_iter()
        .zip(found.storage_proof)
        .map(|(key, slot)| EIP1186StorageProof {
            // As it was asked for: a hash, or a quantity.
            key,
            value: slot.value,
            proof: slot.proof,
        })
        .collect();
    shown(EIP1186AccountProofResponse {
        address: found.address,
        balance: found.balance_wei,
        code_hash: found.code_hash,
        nonce: found.nonce,
        storage_hash: found.storage_root,
        account_proof: found.account_proof,
        storage_proof,
    })
}

/// The block parameter of a state query; the newest block if it is not given.
pub(super) fn optional_block(
    args: &mut Args<'_>,
    node: &Node,
) -> Result<BlockRef, ErrorObjectOwned> {
    let Some(id) = args.optional::<BlockId>()? else {
        return Ok(BlockRef::Latest);
    };
    match block_of(id) {
        at @ BlockRef::Hash(_) => match node.header(at).map_err(errors::query)? {
            Some(_) => Ok(at),
            None => Err(errors::refused("header for hash not found")),
        },
        at => Ok(at),
    }
}

/// The block that an id means (EIP-1898). Blocks that are no more part of the
/// chain are not kept, so every hash that is known is canonical.
pub(super) const fn block_of(id: BlockId) -> BlockRef {
    match id {
        BlockId::Number(number) => shapes::block_ref(number),
        BlockId::Hash(hash) => BlockRef::Hash(hash.block_hash),
    }
}
