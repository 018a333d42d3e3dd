//! BlockchainTests: a genesis, blocks as bytes, and the chain they must give.
//!
//! Every block goes through `Node::import`, as a follower takes it: one that
//! must be refused has to be, and one that need not must be taken. Afterwards
//! head, state root and every account are compared.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use alloy_genesis::{ChainConfig, Genesis, GenesisAccount};
use alloy_primitives::{Address, B64, B256, Bytes, U64, U256};
use ol_node::{BlockRef, Node, NodeConfig, Role, WireBlock};
use ol_runtime::ManualClock;
use serde::Deserialize;

use crate::fields::FieldError;
use crate::{CaseResult, Verdict, network, skip};

/// Disk that one test's chain may use.
const STORE_MAX_SIZE_BYTES: usize = 256 << 20;

const NO_FORK: &str = "a network that this version does not know";

/// Runs every test of a file, each on a chain of its own in a temporary folder:
/// in memory where the machine has a place for that.
pub(crate) fn run(path: &Path, content: &[u8]) -> Result<Vec<CaseResult>, FieldError> {
    let tests: BTreeMap<String, BlockchainTest> = serde_json::from_slice(content)?;
    let in_memory = Path::new("/dev/shm");
    let below = if in_memory.is_dir() {
        in_memory.to_owned()
    } else {
        std::env::temp_dir()
    };
    let verdict = |test: &BlockchainTest| {
        if let Some(reason) = skip::reason(path, &test.network) {
            return Verdict::Skipped(reason);
        }
        let Some(config) = network::config(&test.network) else {
            return Verdict::Skipped(NO_FORK);
        };
        let checked = tempfile::tempdir_in(&below)
            .map_err(|error| error.to_string())
            .and_then(|dir| test.check(dir.path(), config));
        checked.map_or_else(Verdict::Failed, |()| Verdict::Passed)
    };
    Ok(tests
        .iter()
        .map(|(name, test)| (name.clone(), verdict(test)))
        .collect())
}

/// A test, as its file has it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct BlockchainTest {
    network: String,
    pre: BTreeMap<Address, Account>,
    genesis_block_header: GenesisHeader,
    blocks: Vec<TestBlock>,
    lastblockhash: B256,
    post_state: Option<BTreeMap<Address, Account>>,
    post_state_hash: Option<B256>,
}

#[derive(Debug, Deserialize)]
struct Account {
    balance: U256,
    code: Bytes,
    nonce: U64,
    storage: BTreeMap<U256, U256>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct GenesisHeader {
    hash: B256,
    coinbase: Address,
    difficulty: U256,
    extra_data: Bytes,
    gas_limit: U64,
    mix_hash: B256,
    nonce: B64,
    timestamp: U64,
    base_fee_per_gas: Option<U64>,
    blob_gas_used: Option<U64>,
    excess_blob_gas: Option<U64>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct TestBlock {
    rlp: String,
    /// What is wrong with the block, if something is.
    expect_exception: Option<String>,
}

impl BlockchainTest {
    fn check(&self, dir: &Path, config: ChainConfig) -> Result<(), String> {
        let limits = NodeConfig {
            role: Role::Follower,
            store_max_size_bytes: STORE_MAX_SIZE_BYTES,
            ..NodeConfig::default()
        };
        let clock = Arc::new(ManualClock::new(0));
        let node = Node::open_with(dir, &self.genesis(config), clock, limits)
            .map_err(|error| format!("genesis: {error}"))?;
        same(
            "genesis hash",
            self.genesis_block_header.hash,
            node.head().hash,
        )?;
        for (position, block) in self.blocks.iter().enumerate() {
            let outcome = import(&node, &block.rlp);
            match (outcome, &block.expect_exception) {
                (Ok(()), None) | (Err(_), Some(_)) => {}
                (Ok(()), Some(wrong)) => {
                    return Err(format!("block {position} was taken in spite of {wrong}"));
                }
                (Err(reason), None) => return Err(format!("block {position}: {reason}")),
            }
        }
        let head = node.head();
        same("head", self.lastblockhash, head.hash)?;
        if let Some(root) = self.post_state_hash {
            same("state root", root, head.header.state_root)?;
        }
        for (&address, account) in self.post_state.iter().flatten() {
            check_account(&node, address, account)?;
        }
        Ok(())
    }

    fn genesis(&self, config: ChainConfig) -> Genesis {
        let header = &self.genesis_block_header;
        Genesis {
            config,
            nonce: header.nonce.into(),
            timestamp: header.timestamp.to(),
            extra_data: header.extra_data.clone(),
            gas_limit: header.gas_limit.to(),
            difficulty: header.difficulty,
            mix_hash: header.mix_hash,
            coinbase: header.coinbase,
            alloc: self
                .pre
                .iter()
                .map(|(&at, account)| (at, account.into()))
                .collect(),
            base_fee_per_gas: header.base_fee_per_gas.map(|fee| fee.to()),
            excess_blob_gas: header.excess_blob_gas.map(|gas| gas.to()),
            blob_gas_used: header.blob_gas_used.map(|gas| gas.to()),
            ..Genesis::default()
        }
    }
}

impl From<&Account> for GenesisAccount {
    fn from(account: &Account) -> Self {
        let storage = account.storage.iter();
        Self {
            nonce: Some(account.nonce.to()),
            balance: account.balance,
            code: Some(account.code.clone()),
            storage: Some(
                storage
                    .map(|(&slot, &value)| (slot.into(), value.into()))
                    .collect(),
            ),
            ..Self::default()
        }
    }
}

fn import(node: &Node, rlp: &str) -> Result<(), String> {
    // Some tests hold what is not even hexadecimal.
    let rlp: Bytes = rlp.parse().map_err(|error| format!("{error}"))?;
    let block = WireBlock {
        rlp,
        signature: None,
    };
    node.import(vec![block])
        .map_err(|error| error.to_string())?;
    Ok(())
}

fn check_account(node: &Node, address: Address, account: &Account) -> Result<(), String> {
    let at = BlockRef::Latest;
    let failed = |error| format!("{error}");
    let name = |what: &str| format!("{what} of {address}");
    let balance = node.balance_wei(address, at).map_err(failed)?;
    same(&name("balance"), account.balance, balance)?;
    let nonce = node.nonce(address, at).map_err(failed)?;
    same(&name("nonce"), account.nonce, U64::from(nonce))?;
    let code = node.code(address, at).map_err(failed)?;
    same(&name("code"), &account.code, &code)?;
    for (&slot, &value) in &account.storage {
        let found = node.storage(address, slot, at).map_err(failed)?;
        same(&name("a slot"), value, found)?;
    }
    Ok(())
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, expected: T, found: T) -> Result<(), String> {
    if expected == found {
        return Ok(());
    }
    Err(format!("{what}: expected {expected:?}, found {found:?}"))
}
