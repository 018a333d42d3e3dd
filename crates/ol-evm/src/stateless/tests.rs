//! Goal: a transaction that no block of a fork may hold is refused without a
//! state. The public tests of Ethereum check every case (`ol-conformance`).

use alloy_consensus::{SignableTransaction, TxEip1559, TxLegacy};
use alloy_primitives::{Signature, U256};

use super::*;

fn legacy(chain_id: Option<u64>, gas_limit: u64) -> Transaction {
    TxLegacy {
        chain_id,
        gas_limit,
        to: Address::repeat_byte(1).into(),
        ..TxLegacy::default()
    }
    .into_signed(Signature::test_signature())
    .into()
}

#[test]
fn each_fork_takes_what_it_knows() {
    let check = |transaction: Transaction, fork| {
        check_transaction(transaction, 7, fork)
            .map(|(_, gas)| gas)
            .map_err(|error| error.to_string())
    };
    assert_eq!(
        check(legacy(None, 21_000), EthereumHardfork::Frontier),
        Ok(21_000)
    );
    assert_eq!(
        check(legacy(Some(7), 21_000), EthereumHardfork::Cancun),
        Ok(21_000)
    );
    let fee: Transaction = TxEip1559 {
        chain_id: 7,
        gas_limit: 21_000,
        max_fee_per_gas: 1,
        max_priority_fee_per_gas: 2,
        ..TxEip1559::default()
    }
    .into_signed(Signature::test_signature())
    .into();
    let refused = [
        (
            legacy(Some(7), 21_000),
            EthereumHardfork::Homestead,
            "EIP-155",
        ),
        (legacy(Some(8), 21_000), EthereumHardfork::Cancun, "chain"),
        (
            legacy(Some(7), 20_999),
            EthereumHardfork::Cancun,
            "intrinsic gas too low",
        ),
        (fee.clone(), EthereumHardfork::Cancun, "priority fee"),
        (fee, EthereumHardfork::Berlin, "not supported"),
    ];
    for (transaction, fork, named) in refused {
        let error = check(transaction, fork).unwrap_err();
        assert!(error.contains(named), "{error} names {named}");
    }
}

#[test]
fn the_upper_half_of_s_ends_with_frontier() {
    let half = U256::from_be_slice(&[0xA0; 32]);
    let high = Signature::new(U256::from(1), half, false);
    let transaction: Transaction = TxLegacy::default().into_signed(high).into();
    assert!(recover_sender(&transaction, EthereumHardfork::Frontier).is_ok());
    assert_eq!(
        recover_sender(&transaction, EthereumHardfork::Homestead),
        Err(StatelessError::Signature)
    );
}
