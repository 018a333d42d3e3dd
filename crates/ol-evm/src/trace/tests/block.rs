//! Goal: a replayed transaction does what its receipt says, wherever in its
//! block it is.

use alloy_consensus::{SignableTransaction, TxEip1559};
use alloy_primitives::{Signature, TxKind};

use super::*;
use crate::{MemoryState, execute_block};

fn send(nonce: u64, to: TxKind, value_wei: u64, input: Vec<u8>) -> Recovered<Transaction> {
    let transaction = TxEip1559 {
        chain_id: 161_200,
        nonce,
        gas_limit: 300_000,
        max_fee_per_gas: 3_000_000_000,
        max_priority_fee_per_gas: 1_000_000_000,
        to,
        value: U256::from(value_wei),
        input: input.into(),
        ..TxEip1559::default()
    };
    let signed = transaction.into_signed(Signature::test_signature());
    Recovered::new_unchecked(signed.into(), USER)
}

/// Counts its calls in slot 0, logs, and returns the count.
const COUNTS: [u8; 19] = hex!("5f546001015f555f545f5260205fa060205ff3");

#[test]
fn a_transaction_sees_those_before_it() {
    let state = state(&COUNTS, &[]);
    let block: Vec<_> = (3..8)
        .map(|nonce| send(nonce, MAIN.into(), 0, vec![]))
        .collect();
    let limits = TraceLimits::default();
    let replay =
        |positions| trace_block(&state, &context(), &block, positions, &all(), &limits).unwrap();
    let whole = replay(0..block.len());
    for (position, trace) in whole.iter().enumerate() {
        let count = U256::from(position + 1);
        assert_eq!(U256::from_be_slice(&trace.output), count);
        assert_eq!(trace.frames[0].logs[0].index, position as u64);
        let (_, after) = trace.touched[&MAIN].storage[&U256::ZERO];
        assert_eq!(after, count);
        assert_eq!(replay(position..position + 1), std::slice::from_ref(trace));
    }
}

#[test]
fn what_a_transaction_destroys_is_in_the_vault_in_its_trace() {
    // Creates a contract with 5 wei that destroys itself in favour of itself.
    let mut main = vec![op::PUSH2];
    main.extend([op::ADDRESS, op::SELFDESTRUCT, op::PUSH0, op::MSTORE]);
    main.extend([op::PUSH1, 2, op::PUSH1, 30, op::PUSH1, 5, op::CREATE]);
    let state = state(&main, &[]);
    let block = [send(3, MAIN.into(), 0, vec![])];
    let limits = TraceLimits::default();
    let trace = &trace_block(&state, &context(), &block, 0..1, &all(), &limits).unwrap()[0];
    let sum = |state: fn(&TouchedAccount) -> Option<crate::AccountState>| {
        let accounts = trace.touched.values();
        accounts.fold(U256::ZERO, |sum, account| {
            sum + state(account).unwrap_or_default().balance_wei
        })
    };
    assert_eq!(sum(|account| account.before), sum(|account| account.after));
    let execution = execute_block(&state, &context(), &block).unwrap();
    for (address, change) in &execution.diff.accounts {
        assert_eq!(trace.touched[address].after, change.account, "{address}");
    }
}

#[test]
fn a_block_that_is_none_and_a_limit_are_errors() {
    let state = state(&hex!("5b5f56"), &[]);
    let limits = TraceLimits {
        steps_max: 100,
        ..TraceLimits::default()
    };
    let replay =
        |block: &[_]| trace_block(&state, &context(), block, 0..9, &all(), &limits).unwrap_err();
    let error = replay(&[
        send(3, OTHER.into(), 0, vec![]),
        send(9, OTHER.into(), 0, vec![]),
    ]);
    assert!(
        matches!(
            error,
            TraceError::Execute(ExecuteError::Invalid { position: 1, .. })
        ),
        "{error:?}"
    );
    let error = replay(&[
        send(3, OTHER.into(), 0, vec![]),
        send(4, MAIN.into(), 0, vec![]),
    ]);
    assert!(
        matches!(error, TraceError::Limit(LimitPassed::Steps { max: 100 })),
        "{error:?}"
    );
    let over = TraceLimits {
        is_over: Arc::new(|| true),
        ..TraceLimits::default()
    };
    let block = [send(3, OTHER.into(), 0, vec![])];
    let error = trace_block(&state, &context(), &block, 0..1, &all(), &over).unwrap_err();
    assert!(
        matches!(error, TraceError::Limit(LimitPassed::Time)),
        "{error:?}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Traced or not, a block has the same receipts and leaves the same state.
    #[test]
    fn replays_are_what_the_receipts_say(
        main in prop::collection::vec(instruction(), 0..30),
        other in prop::collection::vec(instruction(), 0..15),
        init in prop::collection::vec(instruction(), 0..10),
        kinds in prop::collection::vec(0_u8..3, 1..5),
    ) {
        let state = state(&main.concat(), &other.concat());
        let block: Vec<_> = (3_u64..)
            .zip(kinds)
            .map(|(nonce, kind)| match kind {
                0 => send(nonce, TxKind::Create, 1, init.concat()),
                1 => send(nonce, OTHER.into(), 1, vec![1, 2, 3, 4]),
                _ => send(nonce, MAIN.into(), 0, vec![]),
            })
            .collect();
        let execution = execute_block(&state, &context(), &block).unwrap();
        let limits = TraceLimits::default();
        let traces = trace_block(&state, &context(), &block, 0..block.len(), &all(), &limits);
        let traces = traces.unwrap();
        let mut gas_before = 0;
        let mut replayed: MemoryState = state.clone();
        for (trace, receipt) in traces.iter().zip(&execution.receipts) {
            prop_assert_eq!(trace.gas_used, receipt.cumulative_gas_used() - gas_before);
            gas_before = receipt.cumulative_gas_used();
            prop_assert_eq!(trace.status == CallStatus::Success, receipt.status());
            let n_logs: usize = trace.frames.iter().map(|frame| frame.logs.len()).sum();
            prop_assert_eq!(n_logs, receipt.logs().len());
            for (&address, account) in &trace.touched {
                prop_assert_eq!(replayed.account(address).unwrap(), account.before);
                match account.after {
                    Some(after) => { replayed.accounts.insert(address, after); }
                    None => { replayed.accounts.remove(&address); }
                }
            }
        }
        let mut executed: MemoryState = state;
        executed.apply(&execution.diff);
        prop_assert_eq!(replayed.accounts, executed.accounts);
    }
}
