//! What a transaction must have before it is executed at all.

use alloy_consensus::Transaction as _;
use revm::context_interface::cfg::gas::calculate_initial_tx_gas;
use revm::primitives::{eip3860::MAX_INITCODE_SIZE, hardfork::SpecId};

use crate::transaction::Transaction;

/// Largest code that makes a contract (EIP-3860).
pub const INIT_CODE_MAX_SIZE_BYTES: usize = MAX_INITCODE_SIZE;

/// The least gas limit with which a transaction can be in a block: its
/// intrinsic gas, or the floor that its calldata sets.
///
/// # Source
/// Yellow paper, section 6.2; EIP-2930, EIP-3860, EIP-7623, EIP-7702.
#[must_use]
pub fn intrinsic_gas(transaction: &Transaction) -> u64 {
    let (mut n_accounts, mut n_slots) = (0, 0);
    for item in transaction
        .access_list()
        .iter()
        .flat_map(|list| list.iter())
    {
        n_accounts += 1;
        n_slots += item.storage_keys.len() as u64;
    }
    let n_authorizations = transaction.authorization_list().map_or(0, <[_]>::len);
    let gas = calculate_initial_tx_gas(
        SpecId::PRAGUE,
        transaction.input(),
        transaction.is_create(),
        n_accounts,
        n_slots,
        n_authorizations as u64,
    );
    gas.initial_total_gas.max(gas.floor_gas)
}
