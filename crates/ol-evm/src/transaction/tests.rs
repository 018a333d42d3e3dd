//! Goal: the envelope writes and reads every type it has as others do, and
//! nothing else.
//! Method: the envelopes of alloy and op-alloy as oracle, then hostile bytes.

use alloy_consensus::{SignableTransaction, TxEnvelope};
use alloy_primitives::{LogData, Signature, U256};
use op_alloy_consensus::{OpReceiptEnvelope, OpTxEnvelope};
use proptest::prelude::*;

use super::*;

fn samples() -> Vec<Transaction> {
    let signature = Signature::test_signature();
    vec![
        TxLegacy::default().into_signed(signature).into(),
        TxEip2930::default().into_signed(signature).into(),
        TxEip1559::default().into_signed(signature).into(),
        TxEip4844 {
            blob_versioned_hashes: vec![B256::with_last_byte(1)],
            ..TxEip4844::default()
        }
        .into_signed(signature)
        .into(),
        TxEip7702::default().into_signed(signature).into(),
        TxDeposit {
            from: Address::repeat_byte(7),
            mint: 5,
            ..TxDeposit::default()
        }
        .into(),
    ]
}

#[test]
fn every_type_encodes_as_elsewhere_and_comes_back() {
    for transaction in samples() {
        let raw = transaction.encoded_2718();
        let same = Transaction::decode_2718_exact(&raw).unwrap();
        assert_eq!(same, transaction);
        assert_eq!(same.tx_hash(), transaction.trie_hash());
        let (oracle, sender) = match transaction {
            Transaction::Deposit(_) => {
                let other = OpTxEnvelope::decode_2718_exact(&raw).unwrap();
                (other.tx_hash(), other.recover_signer())
            }
            _ => {
                let other = TxEnvelope::decode_2718_exact(&raw).unwrap();
                (*other.tx_hash(), other.recover_signer())
            }
        };
        assert_eq!(same.tx_hash(), oracle);
        assert_eq!(same.recover_signer().ok(), sender.ok());
    }
}

#[test]
fn other_types_do_not_decode() {
    let post_exec: OpTxEnvelope = TxPostExec::default().into();
    assert!(Transaction::decode_2718_exact(&post_exec.encoded_2718()).is_err());
    let body = samples()[2].encoded_2718();
    for tx_type in (5..=0x7D).chain([0x7F]) {
        let mut raw = body.clone();
        raw[0] = tx_type;
        assert!(
            Transaction::decode_2718_exact(&raw).is_err(),
            "{tx_type:#x}"
        );
    }
}

fn receipt(status: Eip658Value) -> Receipt {
    Receipt {
        status,
        cumulative_gas_used: 21_000,
        logs: vec![Log {
            address: Address::repeat_byte(1),
            data: LogData::new_unchecked(vec![B256::repeat_byte(2)], Bytes::from_static(b"x")),
        }],
    }
}

#[test]
fn receipts_encode_as_elsewhere_and_come_back() {
    let types = [
        TxType::Legacy,
        TxType::Eip2930,
        TxType::Eip1559,
        TxType::Eip4844,
        TxType::Eip7702,
    ];
    let statuses = [true.into(), Eip658Value::PostState(B256::repeat_byte(3))];
    for (tx_type, status) in types.into_iter().flat_map(|t| statuses.map(|s| (t, s))) {
        let other = ReceiptEnvelope::from_typed(tx_type, receipt(status));
        let ours = TransactionReceipt::Ethereum(other.clone());
        let raw = ours.encoded_2718();
        assert_eq!(raw, other.encoded_2718());
        assert_eq!(raw.len(), ours.encode_2718_len());
        assert_eq!(TransactionReceipt::decode_2718_exact(&raw).unwrap(), ours);
        assert_eq!(*ours.logs_bloom(), other.bloom());
    }
    let deposit = OpDepositReceipt {
        inner: receipt(true.into()),
        deposit_nonce: Some(4),
        deposit_receipt_version: Some(1),
    };
    let ours = TransactionReceipt::Deposit(deposit.clone().with_bloom());
    let raw = ours.encoded_2718();
    assert_eq!(
        raw,
        OpReceiptEnvelope::Deposit(deposit.with_bloom()).encoded_2718()
    );
    assert_eq!(raw.len(), ours.encode_2718_len());
    assert_eq!(TransactionReceipt::decode_2718_exact(&raw).unwrap(), ours);
    let mapped = ours.map_logs(|log| log.address);
    assert_eq!(mapped.logs(), [Address::repeat_byte(1)]);
    for bad in [&[0x7D, 0xC0][..], &[5, 0xC0], &[], &[0x7E]] {
        assert!(TransactionReceipt::decode_2718_exact(bad).is_err());
    }
}

proptest! {
    /// Bytes either do not decode, or are exactly what the result encodes to.
    #[test]
    fn decoding_is_canonical_and_never_panics(
        sample in 0..6_usize,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in any::<prop::sample::Index>(),
        is_cut in any::<bool>(),
    ) {
        let mut raw = samples()[sample].encoded_2718();
        for (at, value) in changes {
            let at = at.index(raw.len());
            raw[at] = value;
        }
        if is_cut {
            raw.truncate(cut.index(raw.len()));
        }
        if let Ok(transaction) = Transaction::decode_2718_exact(&raw) {
            prop_assert_eq!(transaction.encoded_2718(), raw);
            let _ = transaction.recover_signer();
        }
    }
}

#[test]
fn the_value_of_a_deposit_is_kept() {
    let deposit = TxDeposit {
        value: U256::from(9),
        ..TxDeposit::default()
    };
    let env = TxEnv::from_recovered_tx(&Transaction::from(deposit), Address::repeat_byte(1));
    assert_eq!(env.value, U256::from(9));
    assert_eq!(env.tx_type, DEPOSIT_TX_TYPE_ID);
}
