//! Whether a block follows the rules, apart from executing it.
//!
//! In the order in which an importer needs them: [`validate_header`] against
//! the parent, [`validate_terminal_difficulty`] where proof of work ends,
//! [`validate_body`] against the header, [`validate_ommers`] against the
//! ancestors, and after execution [`validate_execution`]. The state root is the
//! business of who keeps the state. The proof of work itself (ethash) is not
//! checked.

use alloy_consensus::constants::EMPTY_WITHDRAWALS;
use alloy_consensus::{BlockBody, EMPTY_OMMER_ROOT_HASH, Header, Transaction as _, proofs};
use alloy_eips::eip1559::{BaseFeeParams, INITIAL_BASE_FEE};
use alloy_eips::eip4844::DATA_GAS_PER_BLOB;
use alloy_eips::eip7685::EMPTY_REQUESTS_HASH;
use alloy_hardforks::EthereumHardfork;
use alloy_primitives::{Address, B64, B256, U256};

use crate::transaction::Transaction;
use crate::{EthereumRules, Execution, Rules, SEQUENCER_FEE_VAULT, header};

mod ommers;

pub use ommers::{Ancestor, OMMER_GENERATIONS_MAX, validate_ommers};

/// Most bytes of `extraData`.
const EXTRA_DATA_MAX_SIZE_BYTES: usize = 32;

/// `extraData` of the first blocks after the DAO fork.
const DAO_EXTRA_DATA: &[u8] = b"dao-hard-fork";

/// Least gas limit of an Ethereum block.
const GAS_LIMIT_MIN: u64 = 5_000;

/// Largest gas limit of an Ethereum block.
const GAS_LIMIT_MAX: u64 = i64::MAX.cast_unsigned();

/// The gas limit moves by less than this part of the parent's.
const GAS_LIMIT_DIVISOR: u64 = 1_024;

/// How much EIP-1559 raises the gas limit above the target, once, at London.
const LONDON_GAS_LIMIT_FACTOR: u64 = 2;

/// The rule that a block breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BlockError {
    /// It names another parent.
    #[error("the parent hash is {found}, the parent has {expected}")]
    ParentHash {
        /// In the header.
        found: B256,
        /// By the rule.
        expected: B256,
    },
    /// A number in the header is not what the rule says.
    #[error("{field} is {found}, expected {expected}")]
    Number {
        /// Which, by its name in JSON-RPC.
        field: &'static str,
        /// In the header.
        found: U256,
        /// By the rule.
        expected: U256,
    },
    /// A hash, root or address in the header is not what the rule says.
    #[error("{field} is {found}, expected {expected}")]
    Hash {
        /// Which, by its name in JSON-RPC.
        field: &'static str,
        /// In the header.
        found: B256,
        /// By the rule.
        expected: B256,
    },
    /// A field must be there under the fork of the block.
    #[error("{field} is missing")]
    Missing {
        /// Which, by its name in JSON-RPC.
        field: &'static str,
    },
    /// A field must not be there under the fork of the block.
    #[error("{field} is there before its fork")]
    TooEarly {
        /// Which, by its name in JSON-RPC.
        field: &'static str,
    },
    /// The block is older than its parent, or as old where it must be younger.
    #[error("the timestamp {found} is not after the parent's {parent}")]
    Timestamp {
        /// Of the block, in seconds.
        found: u64,
        /// Of the parent, in seconds.
        parent: u64,
    },
    /// The gas limit is out of bounds, or moves too far from the parent's.
    #[error("the gas limit {found} is out of bounds after {parent}")]
    GasLimit {
        /// Of the block.
        found: u64,
        /// Of the parent.
        parent: u64,
    },
    /// More gas is used than the limit allows.
    #[error("the gas used {used} is above the gas limit {limit}")]
    GasUsed {
        /// Of the block.
        used: u64,
        /// Of the block.
        limit: u64,
    },
    /// More blob gas is used than a block may use, or not a whole number of blobs.
    #[error("the blob gas used {used} is not a number of blobs within {limit}")]
    BlobGasUsed {
        /// Of the block.
        used: u64,
        /// Of a block.
        limit: u64,
    },
    /// `extraData` is too long, or must be empty.
    #[error("the extra data has {size_bytes} bytes, at most {size_bytes_max} are allowed")]
    ExtraData {
        /// Its length.
        size_bytes: usize,
        /// The most it may have.
        size_bytes_max: usize,
    },
    /// `extraData` is on the wrong side of the DAO fork.
    #[error("the extra data is on the wrong side of the DAO fork")]
    DaoExtraData,
    /// A block of proof of work after its end, or of proof of stake before it.
    #[error("{consensus} at a total difficulty of {total}, the terminal one is {terminal}")]
    Merge {
        /// What the block is of.
        consensus: &'static str,
        /// Up to and with the parent.
        total: U256,
        /// Where proof of work ends.
        terminal: U256,
    },
    /// A transaction type that the rules do not have.
    #[error("transaction {position} has a type that the rules do not allow")]
    TransactionType {
        /// Which, from 0.
        position: usize,
    },
    /// An ommer is not allowed.
    #[error("ommer {position} {reason}")]
    Ommer {
        /// Which, from 0.
        position: usize,
        /// Why.
        reason: &'static str,
    },
    /// The header of an ommer is not valid.
    #[error("the header of ommer {position} is not valid")]
    OmmerHeader {
        /// Which, from 0.
        position: usize,
        /// The rule that it breaks.
        #[source]
        source: Box<Self>,
    },
    /// More ommers than a block may have.
    #[error("the block has {found} ommers, at most 2 are allowed")]
    TooManyOmmers {
        /// How many.
        found: usize,
    },
}

type Checked = Result<(), BlockError>;

/// Checks a header against its parent.
///
/// # Errors
/// [`BlockError`] with the first rule that it breaks.
pub fn validate_header(parent: &Header, header: &Header, rules: &Rules) -> Checked {
    let parent_hash = parent.hash_slow();
    if header.parent_hash != parent_hash {
        return Err(BlockError::ParentHash {
            found: header.parent_hash,
            expected: parent_hash,
        });
    }
    number("number", header.number, parent.number.saturating_add(1))?;
    if header.gas_used > header.gas_limit {
        return Err(BlockError::GasUsed {
            used: header.gas_used,
            limit: header.gas_limit,
        });
    }
    absent("blockAccessListHash", header.block_access_list_hash)?;
    absent("slotNumber", header.slot_number)?;
    match rules {
        Rules::OpenLedger => validate_ours(parent, header),
        Rules::Ethereum(rules) => validate_ethereum(parent, header, rules),
    }
}

/// Our headers: nothing in them is free but the timestamp.
fn validate_ours(parent: &Header, header: &Header) -> Checked {
    if header.timestamp < parent.timestamp {
        return Err(BlockError::Timestamp {
            found: header.timestamp,
            parent: parent.timestamp,
        });
    }
    if !header.extra_data.is_empty() {
        return Err(BlockError::ExtraData {
            size_bytes: header.extra_data.len(),
            size_bytes_max: 0,
        });
    }
    number("gasLimit", header.gas_limit, parent.gas_limit)?;
    let base_fee_wei = present("baseFeePerGas", header.base_fee_per_gas)?;
    number(
        "baseFeePerGas",
        base_fee_wei,
        header::next_base_fee_wei(parent),
    )?;
    address("miner", header.beneficiary, SEQUENCER_FEE_VAULT)?;
    number("difficulty", header.difficulty, U256::ZERO)?;
    hash("mixHash", header.mix_hash, B256::ZERO)?;
    zero_nonce(header)?;
    hash("sha3Uncles", header.ommers_hash, EMPTY_OMMER_ROOT_HASH)?;
    let withdrawals_root = present("withdrawalsRoot", header.withdrawals_root)?;
    hash("withdrawalsRoot", withdrawals_root, EMPTY_WITHDRAWALS)?;
    let blob_gas_used = present("blobGasUsed", header.blob_gas_used)?;
    number("blobGasUsed", blob_gas_used, 0_u64)?;
    let excess_blob_gas = present("excessBlobGas", header.excess_blob_gas)?;
    number("excessBlobGas", excess_blob_gas, 0_u64)?;
    let beacon_root = present("parentBeaconBlockRoot", header.parent_beacon_block_root)?;
    hash("parentBeaconBlockRoot", beacon_root, B256::ZERO)?;
    let requests_hash = present("requestsHash", header.requests_hash)?;
    hash("requestsHash", requests_hash, EMPTY_REQUESTS_HASH)
}

fn validate_ethereum(parent: &Header, header: &Header, rules: &EthereumRules) -> Checked {
    let fork = rules.fork(header);
    let is_merged = rules.is_merged(header);
    if header.timestamp <= parent.timestamp {
        return Err(BlockError::Timestamp {
            found: header.timestamp,
            parent: parent.timestamp,
        });
    }
    if header.extra_data.len() > EXTRA_DATA_MAX_SIZE_BYTES {
        return Err(BlockError::ExtraData {
            size_bytes: header.extra_data.len(),
            size_bytes_max: EXTRA_DATA_MAX_SIZE_BYTES,
        });
    }
    if let Some(is_dao) = rules.dao_extra_data(header.number)
        && is_dao != (header.extra_data.as_ref() == DAO_EXTRA_DATA)
    {
        return Err(BlockError::DaoExtraData);
    }
    let is_london = fork >= EthereumHardfork::London;
    let is_first_of_london = is_london && rules.fork(parent) < EthereumHardfork::London;
    validate_gas_limit(parent, header, is_first_of_london)?;
    if is_london {
        let found = present("baseFeePerGas", header.base_fee_per_gas)?;
        let expected = if is_first_of_london {
            INITIAL_BASE_FEE
        } else {
            parent
                .next_block_base_fee(BaseFeeParams::ethereum())
                .ok_or(BlockError::Missing {
                    field: "baseFeePerGas",
                })?
        };
        number("baseFeePerGas", found, expected)?;
    } else {
        absent("baseFeePerGas", header.base_fee_per_gas)?;
    }
    if is_merged {
        number("difficulty", header.difficulty, U256::ZERO)?;
        zero_nonce(header)?;
        hash("sha3Uncles", header.ommers_hash, EMPTY_OMMER_ROOT_HASH)?;
    } else {
        let expected = header::next_difficulty(parent, header.timestamp, fork);
        number("difficulty", header.difficulty, expected)?;
    }
    if fork >= EthereumHardfork::Shanghai {
        present("withdrawalsRoot", header.withdrawals_root)?;
    } else {
        absent("withdrawalsRoot", header.withdrawals_root)?;
    }
    validate_blob_gas(parent, header, rules, fork)?;
    if fork >= EthereumHardfork::Prague {
        present("requestsHash", header.requests_hash)?;
    } else {
        absent("requestsHash", header.requests_hash)?;
    }
    Ok(())
}

fn validate_gas_limit(parent: &Header, header: &Header, is_first_of_london: bool) -> Checked {
    let before = if is_first_of_london {
        parent.gas_limit.saturating_mul(LONDON_GAS_LIMIT_FACTOR)
    } else {
        parent.gas_limit
    };
    let is_near = header.gas_limit.abs_diff(before) < before / GAS_LIMIT_DIVISOR;
    if !is_near || !(GAS_LIMIT_MIN..=GAS_LIMIT_MAX).contains(&header.gas_limit) {
        return Err(BlockError::GasLimit {
            found: header.gas_limit,
            parent: parent.gas_limit,
        });
    }
    Ok(())
}

fn validate_blob_gas(
    parent: &Header,
    header: &Header,
    rules: &EthereumRules,
    fork: EthereumHardfork,
) -> Checked {
    let Some(params) = rules.blob_params(fork) else {
        absent("blobGasUsed", header.blob_gas_used)?;
        absent("excessBlobGas", header.excess_blob_gas)?;
        return absent("parentBeaconBlockRoot", header.parent_beacon_block_root);
    };
    present("parentBeaconBlockRoot", header.parent_beacon_block_root)?;
    let used = present("blobGasUsed", header.blob_gas_used)?;
    let limit = params.max_blob_gas_per_block();
    if used > limit || used % DATA_GAS_PER_BLOB != 0 {
        return Err(BlockError::BlobGasUsed { used, limit });
    }
    let excess = present("excessBlobGas", header.excess_blob_gas)?;
    let expected = header::next_excess_blob_gas(parent, &params);
    number("excessBlobGas", excess, expected)
}

/// Checks that a block is of proof of work exactly as long as the total
/// difficulty up to and with its parent is below the terminal one.
///
/// # Errors
/// [`BlockError::Merge`] if it is not. Without an end of proof of work, and
/// under our rules, every block passes.
pub fn validate_terminal_difficulty(
    parent_total_difficulty: U256,
    header: &Header,
    rules: &Rules,
) -> Checked {
    let Rules::Ethereum(rules) = rules else {
        return Ok(());
    };
    let Some(terminal) = rules.terminal_total_difficulty() else {
        return Ok(());
    };
    if rules.is_merged(header) == (parent_total_difficulty >= terminal) {
        return Ok(());
    }
    Err(BlockError::Merge {
        consensus: if rules.is_merged(header) {
            "proof of stake"
        } else {
            "proof of work"
        },
        total: parent_total_difficulty,
        terminal,
    })
}

/// Checks a body against its header.
///
/// # Errors
/// [`BlockError`] with the first rule that it breaks.
pub fn validate_body(header: &Header, body: &BlockBody<Transaction>, rules: &Rules) -> Checked {
    let is_allowed = |transaction: &Transaction| match rules {
        Rules::OpenLedger => !matches!(
            transaction,
            Transaction::Eip4844(_) | Transaction::Deposit(_)
        ),
        Rules::Ethereum(_) => !matches!(transaction, Transaction::Deposit(_)),
    };
    if let Some(position) = body.transactions.iter().position(|tx| !is_allowed(tx)) {
        return Err(BlockError::TransactionType { position });
    }
    let transactions_root = proofs::calculate_transaction_root(&body.transactions);
    hash(
        "transactionsRoot",
        header.transactions_root,
        transactions_root,
    )?;
    let ommers_hash = proofs::calculate_ommers_root(&body.ommers);
    hash("sha3Uncles", header.ommers_hash, ommers_hash)?;
    match (header.withdrawals_root, &body.withdrawals) {
        (Some(found), Some(withdrawals)) => {
            let expected = proofs::calculate_withdrawals_root(withdrawals);
            hash("withdrawalsRoot", found, expected)?;
        }
        (Some(_), None) => {
            return Err(BlockError::Missing {
                field: "withdrawals",
            });
        }
        (None, Some(_)) => {
            return Err(BlockError::TooEarly {
                field: "withdrawals",
            });
        }
        (None, None) => {}
    }
    if let Some(found) = header.blob_gas_used {
        let blobs = body.transactions.iter().filter_map(|tx| tx.blob_gas_used());
        number("blobGasUsed", found, blobs.fold(0, u64::saturating_add))?;
    }
    Ok(())
}

/// Checks what an execution left against the header, but for the state root.
///
/// Receipts from before Byzantium hold the state root after each transaction,
/// which execution does not compute: their root is not checked.
///
/// # Errors
/// [`BlockError`] with the first rule that it breaks.
pub fn validate_execution(header: &Header, execution: &Execution, rules: &Rules) -> Checked {
    number("gasUsed", header.gas_used, execution.gas_used)?;
    let has_status = match rules {
        Rules::OpenLedger => true,
        Rules::Ethereum(rules) => rules.fork(header) >= EthereumHardfork::Byzantium,
    };
    if has_status {
        let receipts_root = header::receipts_root(&execution.receipts);
        hash("receiptsRoot", header.receipts_root, receipts_root)?;
    }
    if header.logs_bloom != execution.logs_bloom {
        return Err(BlockError::Hash {
            field: "logsBloom",
            found: alloy_primitives::keccak256(header.logs_bloom),
            expected: alloy_primitives::keccak256(execution.logs_bloom),
        });
    }
    match (header.requests_hash, execution.requests_hash) {
        (Some(found), Some(expected)) => hash("requestsHash", found, expected),
        (found, expected) if found == expected => Ok(()),
        (Some(_), _) => Err(BlockError::TooEarly {
            field: "requestsHash",
        }),
        (None, _) => Err(BlockError::Missing {
            field: "requestsHash",
        }),
    }
}

fn zero_nonce(header: &Header) -> Checked {
    number(
        "nonce",
        u64::from_be_bytes(header.nonce.0),
        u64::from_be_bytes(B64::ZERO.0),
    )
}

fn number<T: Into<Quantity>>(field: &'static str, found: T, expected: T) -> Checked {
    let (Quantity(found), Quantity(expected)) = (found.into(), expected.into());
    if found == expected {
        return Ok(());
    }
    Err(BlockError::Number {
        field,
        found,
        expected,
    })
}

/// A number of a header, whatever its width.
struct Quantity(U256);

impl From<u64> for Quantity {
    fn from(number: u64) -> Self {
        Self(U256::from(number))
    }
}

impl From<U256> for Quantity {
    fn from(number: U256) -> Self {
        Self(number)
    }
}

fn hash(field: &'static str, found: B256, expected: B256) -> Checked {
    if found == expected {
        return Ok(());
    }
    Err(BlockError::Hash {
        field,
        found,
        expected,
    })
}

fn address(field: &'static str, found: Address, expected: Address) -> Checked {
    hash(field, found.into_word(), expected.into_word())
}

fn present<T>(field: &'static str, value: Option<T>) -> Result<T, BlockError> {
    value.ok_or(BlockError::Missing { field })
}

fn absent<T>(field: &'static str, value: Option<T>) -> Checked {
    match value {
        None => Ok(()),
        Some(_) => Err(BlockError::TooEarly { field }),
    }
}

#[cfg(test)]
mod tests;
