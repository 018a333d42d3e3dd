//! Goal: only well-formed transactions for this chain wait for a block.
//! Method: bytes that differ from a valid transaction in one thing.

use alloy_consensus::{SignableTransaction, TxEip1559, TxEip7702, TxLegacy};
use alloy_eips::eip2718::Encodable2718;
use alloy_primitives::{Address, TxKind};
use alloy_signer::SignerSync;
use alloy_signer_local::PrivateKeySigner;
use op_alloy_consensus::{OpTxEnvelope, TxDeposit};
use proptest::prelude::*;

use super::*;

const CHAIN_ID: u64 = 161_200;

fn signer() -> PrivateKeySigner {
    ol_types::DEV_MNEMONIC_KEYS[0].parse().unwrap()
}

fn sign(transaction: TxEip1559) -> Vec<u8> {
    let signature = signer()
        .sign_hash_sync(&transaction.signature_hash())
        .unwrap();
    OpTxEnvelope::from(transaction.into_signed(signature)).encoded_2718()
}

fn transaction() -> TxEip1559 {
    TxEip1559 {
        chain_id: CHAIN_ID,
        gas_limit: 21_000,
        to: Address::repeat_byte(1).into(),
        ..TxEip1559::default()
    }
}

fn admitted(raw: &[u8]) -> Result<Transaction, SubmitError> {
    decode(raw, CHAIN_ID, 60_000_000)
}

fn no_authorization() -> Vec<u8> {
    let transaction = TxEip7702 {
        chain_id: CHAIN_ID,
        gas_limit: 100_000,
        ..TxEip7702::default()
    };
    let signature = signer()
        .sign_hash_sync(&transaction.signature_hash())
        .unwrap();
    OpTxEnvelope::from(transaction.into_signed(signature)).encoded_2718()
}

#[test]
fn each_defect_has_its_error() {
    use SubmitError as E;
    let good = sign(transaction());
    let legacy = |chain_id| {
        let transaction = TxLegacy {
            chain_id,
            gas_limit: 53_000,
            ..TxLegacy::default()
        };
        let signature = signer()
            .sign_hash_sync(&transaction.signature_hash())
            .unwrap();
        OpTxEnvelope::from(transaction.into_signed(signature)).encoded_2718()
    };
    admitted(&legacy(Some(CHAIN_ID))).unwrap();
    type Check = fn(&SubmitError) -> bool;
    let cases: Vec<(Vec<u8>, Check)> = vec![
        (vec![], |e| matches!(e, E::Malformed { .. })),
        (vec![0xC0], |e| matches!(e, E::Malformed { .. })),
        (vec![2], |e| matches!(e, E::Malformed { .. })),
        (good[..good.len() - 1].to_vec(), |e| {
            matches!(e, E::Malformed { .. })
        }),
        ([&good[..], &[0]].concat(), |e| {
            matches!(e, E::Malformed { .. })
        }),
        (vec![3, 0xC0], |e| matches!(e, E::Type { tx_type: 3 })),
        (vec![0x7D, 0xC0], |e| matches!(e, E::Type { tx_type: 0x7D })),
        (
            OpTxEnvelope::from(TxDeposit::default()).encoded_2718(),
            |e| matches!(e, E::Type { tx_type: 0x7E }),
        ),
        (vec![2; RAW_TRANSACTION_MAX_SIZE_BYTES + 1], |e| {
            matches!(
                e,
                E::TooLarge {
                    size_bytes: 131_073
                }
            )
        }),
        (
            sign(TxEip1559 {
                chain_id: 1,
                ..transaction()
            }),
            |e| {
                matches!(
                    e,
                    E::ChainId {
                        found: Some(1),
                        expected: CHAIN_ID
                    }
                )
            },
        ),
        (legacy(None), |e| {
            matches!(e, E::ChainId { found: None, .. })
        }),
        (
            sign(TxEip1559 {
                gas_limit: 60_000_001,
                ..transaction()
            }),
            |e| matches!(e, E::GasLimit { .. }),
        ),
        (
            sign(TxEip1559 {
                gas_limit: 20_999,
                ..transaction()
            }),
            |e| {
                matches!(
                    e,
                    E::IntrinsicGas {
                        found: 20_999,
                        least: 21_000
                    }
                )
            },
        ),
        // EIP-7623: 100 bytes of calldata that are not zero are 400 tokens.
        (
            sign(TxEip1559 {
                gas_limit: 24_999,
                input: vec![1; 100].into(),
                ..transaction()
            }),
            |e| matches!(e, E::IntrinsicGas { least: 25_000, .. }),
        ),
        (
            sign(TxEip1559 {
                max_fee_per_gas: 1,
                max_priority_fee_per_gas: 2,
                ..transaction()
            }),
            |e| {
                matches!(
                    e,
                    E::TipAboveFee {
                        tip_wei: 2,
                        max_fee_wei: 1
                    }
                )
            },
        ),
        (
            sign(TxEip1559 {
                nonce: u64::MAX,
                ..transaction()
            }),
            |e| matches!(e, E::NonceMax),
        ),
        (
            sign(TxEip1559 {
                gas_limit: 10_000_000,
                to: TxKind::Create,
                input: vec![0; INIT_CODE_MAX_SIZE_BYTES + 1].into(),
                ..transaction()
            }),
            |e| matches!(e, E::InitCodeTooLarge { size_bytes: 49_153 }),
        ),
        (no_authorization(), |e| matches!(e, E::NoAuthorization)),
    ];
    for (position, (raw, is_expected)) in cases.into_iter().enumerate() {
        let error = admitted(&raw).unwrap_err();
        assert!(is_expected(&error), "case {position}: {error:?}");
    }
}

proptest! {
    #[test]
    fn no_bytes_cause_a_panic(raw in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = admitted(&raw);
    }

    #[test]
    fn no_change_of_a_valid_one_causes_a_panic(at in 0..110_usize, byte in any::<u8>()) {
        let mut raw = sign(transaction());
        let length = raw.len();
        raw[at % length] = byte;
        let _ = admitted(&raw);
    }
}
