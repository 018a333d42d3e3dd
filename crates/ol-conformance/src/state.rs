//! `GeneralStateTests`: one transaction on one state.

use std::collections::BTreeMap;
use std::path::Path;

use alloy_eips::eip2718::Decodable2718;
use alloy_primitives::{Address, B256, U256, keccak256};
use alloy_trie::TrieAccount;
use alloy_trie::root::{state_root_unhashed, storage_root_unhashed};
use ol_evm::{
    BlockBuilder, BlockContext, EthereumHardfork, Header, LeftOut, MemoryState, Recovered,
    Transaction, recover_sender,
};
use serde::Deserialize;

use crate::fields::{self, FieldError, Pre};
use crate::{CaseResult, Verdict, network, skip};

/// Blocks whose hashes `BLOCKHASH` gives.
const BLOCK_HASHES: u64 = 256;

#[derive(Debug, Deserialize)]
struct StateTest {
    env: Env,
    pre: Pre,
    post: BTreeMap<String, Vec<Post>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Env {
    current_coinbase: Address,
    current_difficulty: Option<String>,
    current_gas_limit: String,
    current_number: String,
    current_timestamp: String,
    current_random: Option<String>,
    current_base_fee: Option<String>,
    current_excess_blob_gas: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Post {
    hash: B256,
    logs: B256,
    txbytes: String,
    expect_exception: Option<String>,
}

pub(crate) fn run(path: &Path, content: &[u8]) -> Result<Vec<CaseResult>, FieldError> {
    let tests: BTreeMap<String, StateTest> = serde_json::from_slice(content)?;
    let mut cases = Vec::new();
    for (name, test) in &tests {
        let state = fields::state(&test.pre)?;
        for (network_name, posts) in &test.post {
            for (position, post) in posts.iter().enumerate() {
                let verdict = match skip::reason(path, network_name) {
                    Some(reason) => Verdict::Skipped(reason),
                    None => run_case(test, state.clone(), network_name, post)?,
                };
                cases.push((format!("{name} {network_name} {position}"), verdict));
            }
        }
    }
    Ok(cases)
}

fn run_case(
    test: &StateTest,
    mut state: MemoryState,
    network_name: &str,
    post: &Post,
) -> Result<Verdict, FieldError> {
    let Some(fork) = network::fork(network_name) else {
        return Ok(Verdict::Failed(format!("unknown network {network_name}")));
    };
    let context = context(&test.env, network_name, fork)?;
    let oldest = context.number.saturating_sub(BLOCK_HASHES);
    for number in oldest..context.number {
        let hash = keccak256(number.to_string());
        state.block_hashes.insert(number, hash);
    }
    let outcome = match execute(&mut state, &context, fork, &post.txbytes)? {
        Ok(logs_hash) => {
            if let Some(expected) = &post.expect_exception {
                return Ok(Verdict::Failed(format!("valid, expected {expected}")));
            }
            logs_hash
        }
        Err(reason) => {
            if post.expect_exception.is_none() {
                return Ok(Verdict::Failed(format!("invalid: {reason}")));
            }
            // The miner is touched all the same, which makes an account of it
            // before EIP-161.
            let miner = test.env.current_coinbase;
            if fork < EthereumHardfork::SpuriousDragon {
                state.accounts.entry(miner).or_default();
            }
            keccak256(alloy_rlp::encode(Vec::<alloy_primitives::Log>::new()))
        }
    };
    if outcome != post.logs {
        return Ok(Verdict::Failed(format!(
            "logs hash {outcome}, expected {}",
            post.logs
        )));
    }
    let root = state_root(&state);
    if root != post.hash {
        return Ok(Verdict::Failed(format!(
            "state root {root}, expected {}",
            post.hash
        )));
    }
    Ok(Verdict::Passed)
}

/// Executes a raw transaction and applies what it changed. Answers the hash of
/// its logs, or why it is invalid.
fn execute(
    state: &mut MemoryState,
    context: &BlockContext,
    fork: EthereumHardfork,
    raw: &str,
) -> Result<Result<B256, String>, FieldError> {
    let raw = fields::bytes(raw)?;
    let transaction = match Transaction::decode_2718_exact(&raw) {
        Ok(transaction) => transaction,
        Err(error) => return Ok(Err(error.to_string())),
    };
    let sender = match recover_sender(&transaction, fork) {
        Ok(sender) => sender,
        Err(error) => return Ok(Err(error.to_string())),
    };
    let transaction = Recovered::new_unchecked(transaction, sender);
    let run = || {
        let mut builder = BlockBuilder::new(&*state, context)?;
        let executed = builder.execute(&transaction)?;
        // Without a reward for the block, what it leaves is what its
        // transaction left.
        let whole = match (fork >= EthereumHardfork::Paris, &executed) {
            (true, Ok(_)) => Some(builder.finish()?.diff),
            _ => None,
        };
        Ok::<_, ol_evm::ExecuteError>((executed, whole))
    };
    let (executed, whole) = match run() {
        Ok(ran) => ran,
        Err(error) => return Ok(Err(format!("not executed: {error:?}"))),
    };
    let outcome = match executed {
        Ok(outcome) => outcome,
        Err(LeftOut::NoRoom) => return Ok(Err("no room in the block".to_owned())),
        Err(LeftOut::Invalid { reason }) => return Ok(Err(reason)),
    };
    let logs_hash = keccak256(alloy_rlp::encode(outcome.receipt.logs().to_vec()));
    if let Some(whole) = whole {
        let mut by_block = state.clone();
        by_block.apply(&whole);
        state.apply(&outcome.changes);
        if state_root(&by_block) != state_root(state) {
            return Ok(Err(
                "the block leaves another state than its transaction".to_owned()
            ));
        }
    } else {
        state.apply(&outcome.changes);
    }
    Ok(Ok(logs_hash))
}

fn context(
    env: &Env,
    network_name: &str,
    fork: EthereumHardfork,
) -> Result<BlockContext, FieldError> {
    let rules =
        network::rules(network_name).ok_or_else(|| FieldError::text(network_name, "network"))?;
    let since = |first| fork >= first;
    let number = |field: &Option<String>| field.as_deref().map(fields::number).transpose();
    let word = |field: &Option<String>| field.as_deref().map(fields::word).transpose();
    let difficulty = word(&env.current_difficulty)?.unwrap_or_default();
    let is_merged = since(EthereumHardfork::Paris);
    let is_cancun = since(EthereumHardfork::Cancun);
    let header = Header {
        number: fields::number(&env.current_number)?,
        timestamp: fields::number(&env.current_timestamp)?,
        gas_limit: fields::number(&env.current_gas_limit)?,
        beneficiary: env.current_coinbase,
        difficulty: if is_merged {
            U256::ZERO
        } else {
            difficulty.into()
        },
        mix_hash: word(&env.current_random)?.unwrap_or_default(),
        base_fee_per_gas: if since(EthereumHardfork::London) {
            number(&env.current_base_fee)?
        } else {
            None
        },
        excess_blob_gas: if is_cancun {
            Some(number(&env.current_excess_blob_gas)?.unwrap_or_default())
        } else {
            None
        },
        parent_beacon_block_root: is_cancun.then_some(B256::ZERO),
        ..Header::default()
    };
    Ok(BlockContext::of(&header, network::CHAIN_ID, &rules))
}

/// The root of a state, from all of its accounts and slots.
pub(crate) fn state_root(state: &MemoryState) -> B256 {
    let mut storage: BTreeMap<Address, Vec<(B256, U256)>> = BTreeMap::new();
    for (&(address, slot), &value) in &state.storage {
        let slots = storage.entry(address).or_default();
        slots.push((slot.into(), value));
    }
    state_root_unhashed(state.accounts.iter().map(|(&address, account)| {
        let slots = storage.remove(&address).unwrap_or_default();
        let leaf = TrieAccount {
            nonce: account.nonce,
            balance: account.balance_wei,
            storage_root: storage_root_unhashed(slots),
            code_hash: account.code_hash,
        };
        (address, leaf)
    }))
}
