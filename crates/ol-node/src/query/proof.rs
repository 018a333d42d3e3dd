//! Proofs of accounts and storage slots.

use alloy_primitives::{Address, B256, Bytes, KECCAK256_EMPTY, U256, keccak256};
use alloy_rlp::Decodable;
use alloy_trie::{EMPTY_ROOT_HASH, TrieAccount};

use super::{BlockRef, PROOF_SLOTS_MAX, QueryError, find_header};
use crate::Node;
use crate::store::StoreError;
use crate::trie::{TrieReader, prove};

/// Most keys that may have changed between the block of a proof and the newest.
const CHANGED_KEYS_MAX: usize = 500_000;

/// What an account is, and the nodes of the state trie that show it.
///
/// # Source
/// EIP-1186.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountProof {
    /// Whose.
    pub address: Address,
    /// Balance; zero if there is no such account.
    pub balance_wei: U256,
    /// Nonce; zero if there is no such account.
    pub nonce: u64,
    /// keccak256 of the code; of nothing if there is none.
    pub code_hash: B256,
    /// Root of the storage trie; that of the empty one if there is no storage.
    pub storage_root: B256,
    /// Nodes of the state trie from the root on, in RLP. They show the account,
    /// or that there is none.
    pub account_proof: Vec<Bytes>,
    /// One for each slot asked for, in that order.
    pub storage_proof: Vec<StorageProof>,
}

/// What a slot holds, and the nodes of the storage trie that show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorageProof {
    /// Which.
    pub slot: U256,
    /// Its value.
    pub value: U256,
    /// Nodes of the storage trie from the root on, in RLP; none if that trie is
    /// empty.
    pub proof: Vec<Bytes>,
}

impl Node {
    /// Proves an account and some of its slots under the state root of a block.
    ///
    /// # Errors
    /// [`QueryError::UnknownBlock`], [`QueryError::StatePruned`];
    /// [`QueryError::ProofTooOld`] if the block is further back than
    /// [`NodeConfig::proof_depth_max_blocks`](crate::NodeConfig) or more changed
    /// since than a proof may cost; [`QueryError::TooManySlots`].
    pub fn proof(
        &self,
        address: Address,
        slots: &[U256],
        at: BlockRef,
    ) -> Result<AccountProof, QueryError> {
        if slots.len() > PROOF_SLOTS_MAX {
            return Err(QueryError::TooManySlots);
        }
        let txn = self.read()?;
        let (header, _) = find_header(&txn, at)?.ok_or(QueryError::UnknownBlock)?;
        let newest = txn.head()?.0.number;
        if header.number == newest {
            let accounts = txn.account_trie()?;
            let storage = txn.storage_trie(keccak256(address))?;
            return Ok(proof(&accounts, &storage, address, slots)?);
        }
        let too_old = |oldest: u64| QueryError::ProofTooOld {
            number: header.number,
            oldest,
            newest,
        };
        let depth_max = self.shared.config.proof_depth_max_blocks;
        if newest - header.number > depth_max {
            return Err(too_old(newest - depth_max));
        }
        let Some(reverse) = txn.reverse_diff(header.number, CHANGED_KEYS_MAX)? else {
            return Err(too_old(header.number + 1));
        };
        let update = txn.state_update(&reverse)?;
        if update.root != header.state_root {
            let number = header.number;
            let what = format!("the history back to block {number}");
            return Err(StoreError::corrupt(what).into());
        }
        let accounts = update.account_trie(&txn)?;
        let storage = update.storage_trie(&txn, address)?;
        Ok(proof(&accounts, &storage, address, slots)?)
    }
}

fn proof(
    accounts: &impl TrieReader,
    storage: &impl TrieReader,
    address: Address,
    slots: &[U256],
) -> Result<AccountProof, StoreError> {
    let account = prove(accounts, keccak256(address))?;
    let leaf = match account.value {
        Some(leaf) => TrieAccount::decode(&mut leaf.as_slice())
            .map_err(|_| StoreError::corrupt("a leaf of the state trie"))?,
        None => TrieAccount {
            nonce: 0,
            balance: U256::ZERO,
            storage_root: EMPTY_ROOT_HASH,
            code_hash: KECCAK256_EMPTY,
        },
    };
    let prove_slot = |&slot: &U256| {
        let proven = prove(storage, keccak256(slot.to_be_bytes::<32>()))?;
        let value = match proven.value {
            Some(leaf) => U256::decode(&mut leaf.as_slice())
                .map_err(|_| StoreError::corrupt("a leaf of a storage trie"))?,
            None => U256::ZERO,
        };
        Ok(StorageProof {
            slot,
            value,
            proof: proven.nodes,
        })
    };
    Ok(AccountProof {
        address,
        balance_wei: leaf.balance,
        nonce: leaf.nonce,
        code_hash: leaf.code_hash,
        storage_root: leaf.storage_root,
        account_proof: account.nodes,
        storage_proof: slots
            .iter()
            .map(prove_slot)
            .collect::<Result<_, StoreError>>()?,
    })
}
