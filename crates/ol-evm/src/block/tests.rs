//! Goal: blocks follow the rules of the fork, and no coin is made or lost.
//! Method: unsigned transactions with a given sender (execution does not check
//! signatures) over a state in memory.

use alloy_consensus::{SignableTransaction, TxEip1559, TxEip4844, TxLegacy};
use alloy_primitives::{Address, Bytes, Signature, TxKind};
use op_alloy_consensus::TxDeposit;
use proptest::prelude::*;

use super::*;
use crate::header::{genesis, next_base_fee_wei, seal};
use crate::{BASE_FEE_VAULT, MemoryState, SEQUENCER_FEE_VAULT};

const CHAIN_ID: u64 = 161_200;
const GWEI: u128 = 1_000_000_000;
const COINS_WEI: u128 = 10_u128.pow(24);

fn user(number: usize) -> Address {
    Address::repeat_byte(0x10 + u8::try_from(number).unwrap())
}

fn state(n_users: usize) -> MemoryState {
    let mut state = MemoryState::default();
    for number in 0..n_users {
        state.put(user(number), 0, U256::from(COINS_WEI), Bytes::new());
    }
    state
}

fn context(number: u64) -> BlockContext {
    BlockContext {
        chain_id: CHAIN_ID,
        number,
        timestamp_s: 1_700_000_000 + number,
        gas_limit: crate::BLOCK_GAS_LIMIT,
        base_fee_wei: 1_000_000_000,
        parent_hash: B256::repeat_byte(9),
        rules: crate::BlockRules::OpenLedger,
    }
}

fn send(
    from: Address,
    nonce: u64,
    to: TxKind,
    value_wei: u128,
    input: Vec<u8>,
) -> Recovered<Transaction> {
    let transaction = TxEip1559 {
        chain_id: CHAIN_ID,
        nonce,
        gas_limit: 200_000,
        max_fee_per_gas: 3 * GWEI,
        max_priority_fee_per_gas: GWEI,
        to,
        value: U256::from(value_wei),
        input: input.into(),
        ..TxEip1559::default()
    };
    let signed = transaction.into_signed(Signature::test_signature());
    Recovered::new_unchecked(signed.into(), from)
}

fn transfer(from: usize, nonce: u64, to: usize, value_wei: u128) -> Recovered<Transaction> {
    send(user(from), nonce, user(to).into(), value_wei, vec![])
}

#[test]
fn a_transfer_pays_both_vaults() {
    let mut state = state(2);
    let before = state.supply_wei();
    let execution = execute_block(&state, &context(1), &[transfer(0, 0, 1, 5)]).unwrap();
    assert_eq!(execution.gas_used, 21_000);
    assert_eq!(execution.receipts.len(), 1);
    assert!(execution.receipts[0].status());
    assert_eq!(execution.fees_wei, U256::from(21_000 * 2 * GWEI));
    state.apply(&execution.diff);
    let balance = |address: Address| state.accounts[&address].balance_wei;
    assert_eq!(balance(BASE_FEE_VAULT), U256::from(21_000 * GWEI));
    assert_eq!(balance(SEQUENCER_FEE_VAULT), U256::from(21_000 * GWEI));
    assert_eq!(balance(user(1)), U256::from(COINS_WEI + 5));
    assert_eq!(state.accounts[&user(0)].nonce, 1);
    assert_eq!(state.supply_wei(), before);
    assert_eq!(state.accounts.len(), 4, "no system account appears");
}

#[test]
fn what_does_not_belong_is_named_or_left_out() {
    let state = state(2);
    let legacy_without_fee = TxLegacy {
        chain_id: Some(CHAIN_ID),
        gas_limit: 21_000,
        gas_price: 1,
        to: user(1).into(),
        ..TxLegacy::default()
    };
    let signed = legacy_without_fee.into_signed(Signature::test_signature());
    let cases = [
        (transfer(0, 1, 1, 1), "nonce"),
        (transfer(0, 0, 1, COINS_WEI), "insufficient funds"),
        (transfer(7, 0, 1, 1), "insufficient funds"),
        (
            Recovered::new_unchecked(signed.into(), user(0)),
            "less than block base fee",
        ),
        (
            Recovered::new_unchecked(TxDeposit::default().into(), user(0)),
            "deposits are not accepted",
        ),
        (
            Recovered::new_unchecked(
                TxEip4844::default()
                    .into_signed(Signature::test_signature())
                    .into(),
                user(0),
            ),
            "blob transactions are not accepted",
        ),
    ];
    for (bad, expected) in cases {
        let good = transfer(1, 0, 0, 1);
        let candidates = [good.clone(), bad.clone(), transfer(1, 1, 0, 1)];
        match execute_block(&state, &context(1), &candidates) {
            Err(ExecuteError::Invalid { position, reason }) => {
                assert_eq!(position, 1);
                assert!(reason.contains(expected), "{reason}");
            }
            other => panic!("{expected}: {other:?}"),
        }
        let built = build_block(&state, &context(1), &candidates).unwrap();
        assert_eq!(built.included, [0, 2], "{expected}");
        let without = [good, transfer(1, 1, 0, 1)];
        let expected = execute_block(&state, &context(1), &without).unwrap();
        assert_eq!(built.execution, expected);
    }
}

#[test]
fn a_full_block_leaves_the_rest_for_the_next() {
    let state = state(2);
    let small = BlockContext {
        gas_limit: 230_000,
        ..context(1)
    };
    let candidates = [
        transfer(0, 0, 1, 1),
        transfer(0, 1, 1, 1),
        transfer(0, 2, 1, 1),
    ];
    let built = build_block(&state, &small, &candidates).unwrap();
    assert_eq!(built.included, [0, 1]);
    assert_eq!(built.left_out, [(2, LeftOut::NoRoom)]);
}

#[test]
fn coins_of_a_contract_that_destroys_itself_reach_the_vault() {
    let mut state = state(1);
    let before = state.supply_wei();
    // ADDRESS SELFDESTRUCT: made and destroyed in one transaction, to itself.
    let transaction = send(user(0), 0, TxKind::Create, 1_000, vec![0x30, 0xff]);
    let execution = execute_block(&state, &context(1), &[transaction]).unwrap();
    let base_fee = U256::from(execution.gas_used) * U256::from(GWEI);
    state.apply(&execution.diff);
    assert_eq!(state.supply_wei(), before);
    assert_eq!(
        state.accounts[&BASE_FEE_VAULT].balance_wei,
        base_fee + U256::from(1_000)
    );
}

#[test]
fn a_contract_keeps_code_and_storage() {
    let mut state = state(1);
    // Stores 42 in slot 1, then returns the single byte 0x00 as its code.
    let init = vec![0x60, 0x2a, 0x60, 0x01, 0x55, 0x60, 0x01, 0x60, 0x00, 0xf3];
    let transaction = send(user(0), 0, TxKind::Create, 0, init);
    let execution = execute_block(&state, &context(1), &[transaction]).unwrap();
    state.apply(&execution.diff);
    let contract = user(0).create(0);
    let account = state.accounts[&contract];
    assert_eq!(account.nonce, 1);
    assert_eq!(state.codes[&account.code_hash], Bytes::from_static(&[0]));
    assert_eq!(state.storage[&(contract, U256::from(1))], U256::from(42));
}

#[test]
fn headers_chain_and_the_base_fee_follows_the_load() {
    let parent = genesis(5, 0, None, Bytes::new(), B256::repeat_byte(1));
    assert_eq!(parent.gas_limit, crate::BLOCK_GAS_LIMIT);
    assert_eq!(
        next_base_fee_wei(&parent),
        875_000_000,
        "an empty block: 7/8"
    );
    let next = BlockContext::after(
        &parent,
        parent.hash_slow(),
        CHAIN_ID,
        3,
        &crate::Rules::OpenLedger,
    );
    assert_eq!(next.timestamp_s, 5, "time does not run backwards");
    let transaction = transfer(0, 0, 1, 1);
    let execution = execute_block(&state(2), &next, std::slice::from_ref(&transaction)).unwrap();
    let header = seal(&next, &[transaction.inner()], &execution, B256::ZERO);
    assert_eq!(header.number, 1);
    assert_eq!(header.parent_hash, parent.hash_slow());
    assert_eq!(header.gas_used, 21_000);
    assert_eq!(header.base_fee_per_gas, Some(875_000_000));
    assert!(header.extra_data.is_empty());
    let full = Header {
        gas_used: header.gas_limit,
        ..header
    };
    assert_eq!(next_base_fee_wei(&full), 984_375_000, "a full block: 9/8");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Any transfers, contract creations and self-destructions, over several
    /// blocks, executed by two independent runs.
    #[test]
    fn supply_is_constant_and_twins_agree(
        steps in prop::collection::vec(
            (0..4_usize, 0..6_usize, 0..u64::MAX, 0..8_u8),
            1..40,
        ),
        n_blocks in 1..4_u64,
    ) {
        let mut state = state(4);
        let supply = state.supply_wei();
        let per_block = steps.len().div_ceil(usize::try_from(n_blocks).unwrap());
        let mut nonces = [0_u64; 4];
        for (number, steps) in (1..).zip(steps.chunks(per_block)) {
            let candidates: Vec<_> = steps
                .iter()
                .map(|&(from, to, value_wei, kind)| {
                    let nonce = nonces[from];
                    nonces[from] += 1;
                    let value_wei = u128::from(value_wei);
                    match kind {
                        0 => send(user(from), nonce, TxKind::Create, value_wei, vec![0x30, 0xff]),
                        1 => send(user(from), nonce, TxKind::Create, value_wei, vec![0x33, 0xff]),
                        2 => send(user(from), nonce, TxKind::Create, value_wei, vec![0xfe]),
                        _ => transfer(from, nonce, to, value_wei),
                    }
                })
                .collect();
            let execution = execute_block(&state, &context(number), &candidates).unwrap();
            let twin = execute_block(&state.clone(), &context(number), &candidates).unwrap();
            prop_assert_eq!(&execution, &twin);
            // Step by step comes to the same state as all at once.
            let mut stepwise = state.clone();
            let mut builder = BlockBuilder::new(&state, &context(number)).unwrap();
            stepwise.apply(builder.opening());
            for candidate in &candidates {
                let outcome = builder.execute(candidate).unwrap().unwrap();
                stepwise.apply(&outcome.changes);
            }
            prop_assert_eq!(builder.finish().unwrap(), twin);
            let mut at_once = state.clone();
            at_once.apply(&execution.diff);
            prop_assert_eq!(stepwise, at_once);
            let vaults = |state: &MemoryState| {
                [BASE_FEE_VAULT, SEQUENCER_FEE_VAULT]
                    .map(|vault| state.accounts.get(&vault).copied().unwrap_or_default())
                    .into_iter()
                    .fold(U256::ZERO, |sum, account| sum + account.balance_wei)
            };
            let before = vaults(&state);
            state.apply(&execution.diff);
            prop_assert_eq!(state.supply_wei(), supply);
            prop_assert!(vaults(&state) - before >= execution.fees_wei);
        }
    }
}
