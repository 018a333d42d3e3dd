//! What can be known of a transaction of Ethereum without a state.

use alloy_consensus::transaction::{Recovered, SignerRecoverable};
use alloy_hardforks::EthereumHardfork;
use alloy_primitives::Address;
use revm::context::{Context, TxEnv};
use revm::context_interface::result::InvalidTransaction;
use revm::database::EmptyDB;
use revm::handler::MainContext;
use revm::handler::validation::{validate_initial_tx_gas, validate_tx_env};

use alloy_evm::FromRecoveredTx;

use crate::block::refusal;
use crate::rules::spec_id;
use crate::transaction::Transaction;

/// Why a transaction is invalid on every state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StatelessError {
    /// Its signature gives no sender under the rules of the fork.
    #[error("the signature gives no sender")]
    Signature,
    /// Something else of it is not allowed.
    #[error("{reason}")]
    Invalid {
        /// What.
        reason: String,
    },
}

/// The sender of a transaction, by its signature.
///
/// Since Homestead the upper half of the values of `s` is not allowed (EIP-2).
///
/// # Errors
/// [`StatelessError::Signature`] if the signature gives none.
pub fn recover_sender(
    transaction: &Transaction,
    fork: EthereumHardfork,
) -> Result<Address, StatelessError> {
    let sender = if fork >= EthereumHardfork::Homestead {
        transaction.recover_signer()
    } else {
        transaction.recover_signer_unchecked()
    };
    sender.map_err(|_| StatelessError::Signature)
}

/// Checks a transaction as far as that goes without a state, and gives it with
/// its sender and the gas that it costs at least.
///
/// # Errors
/// [`StatelessError`] if no block of the fork may hold it.
pub fn check_transaction(
    transaction: Transaction,
    chain_id: u64,
    fork: EthereumHardfork,
) -> Result<(Recovered<Transaction>, u64), StatelessError> {
    let invalid = |reason: &str| StatelessError::Invalid {
        reason: reason.to_owned(),
    };
    if let Some(reason) = refused_before(&transaction, fork) {
        return Err(invalid(reason));
    }
    let sender = recover_sender(&transaction, fork)?;
    let env = TxEnv::from_recovered_tx(&transaction, sender);
    let spec_id = spec_id(fork);
    let mut context = Context::mainnet()
        .with_db(EmptyDB::new())
        .modify_cfg_chained(|cfg| {
            cfg.chain_id = chain_id;
            cfg.set_spec_and_mainnet_gas_params(spec_id);
        })
        .modify_block_chained(|block| block.gas_limit = u64::MAX)
        .with_tx(env);
    let gas = validate_tx_env(&mut context, spec_id)
        .and_then(|()| validate_initial_tx_gas(&context.tx, spec_id, false, false, u64::MAX))
        .map_err(|error: InvalidTransaction| invalid(&refusal(&error)))?;
    let gas = gas.initial_total_gas.max(gas.floor_gas);
    Ok((Recovered::new_unchecked(transaction, sender), gas))
}

/// Why a fork does not have such transactions.
pub(crate) fn refused_before(
    transaction: &Transaction,
    fork: EthereumHardfork,
) -> Option<&'static str> {
    match transaction {
        Transaction::Deposit(_) => Some("deposits are not accepted"),
        Transaction::Legacy(signed)
            if signed.tx().chain_id.is_some() && fork < EthereumHardfork::SpuriousDragon =>
        {
            Some("a chain id is not accepted before EIP-155")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
