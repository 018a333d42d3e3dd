//! Goal: calls see the state and keep nothing; estimates suffice and are tight.

use alloy_primitives::B256;

use super::*;
use crate::MemoryState;

const USER: Address = Address::repeat_byte(0xAA);
const CONTRACT: Address = Address::repeat_byte(0xCC);

/// The block in which calls are tried and traced.
pub(crate) fn context() -> BlockContext {
    BlockContext {
        chain_id: 161_200,
        number: 10,
        timestamp_s: 1_700_000_000,
        gas_limit: crate::BLOCK_GAS_LIMIT,
        base_fee_wei: 1_000_000_000,
        parent_hash: B256::ZERO,
        rules: crate::BlockRules::OpenLedger,
    }
}

fn state(code: &[u8]) -> MemoryState {
    let mut state = MemoryState::default();
    state.put(USER, 3, U256::from(10_u128.pow(18)), Bytes::new());
    state.put(CONTRACT, 1, U256::ZERO, code.to_vec().into());
    state
}

fn request() -> CallRequest {
    CallRequest {
        from: USER,
        to: Some(CONTRACT),
        ..CallRequest::default()
    }
}

#[test]
fn a_call_reads_its_block() {
    // Returns NUMBER, TIMESTAMP, CHAINID, BASEFEE.
    let code = [
        0x43, 0x5f, 0x52, 0x42, 0x60, 0x20, 0x52, 0x46, 0x60, 0x40, 0x52, 0x48, 0x60, 0x60, 0x52,
        0x60, 0x80, 0x5f, 0xf3,
    ];
    let words = |request: &CallRequest| -> Vec<u64> {
        let output = call(&state(&code), &context(), request).unwrap().output;
        output
            .chunks(32)
            .map(|word| U256::from_be_slice(word).to())
            .collect()
    };
    assert_eq!(words(&request()), [10, 1_700_000_000, 161_200, 0]);
    let paying = CallRequest {
        max_fee_wei: Some(2_000_000_000),
        ..request()
    };
    assert_eq!(words(&paying)[3], 1_000_000_000);
}

#[test]
fn a_contract_may_be_the_sender() {
    let from_contract = CallRequest {
        from: CONTRACT,
        to: Some(USER),
        ..request()
    };
    let output = call(&state(&[0x00]), &context(), &from_contract).unwrap();
    assert_eq!(output.status, CallStatus::Success);
}

#[test]
fn what_cannot_be_sent_is_refused() {
    let cases = [
        CallRequest {
            value_wei: U256::from(2 * 10_u128.pow(18)),
            ..request()
        },
        CallRequest {
            max_fee_wei: Some(1),
            ..request()
        },
        CallRequest {
            gas_limit: Some(20_999),
            ..request()
        },
        CallRequest {
            max_fee_wei: Some(2_000_000_000),
            max_priority_fee_wei: Some(3_000_000_000),
            ..request()
        },
    ];
    for request in cases {
        let error = call(&state(&[]), &context(), &request).unwrap_err();
        assert!(matches!(error, CallError::Invalid { .. }), "{error:?}");
    }
}

#[test]
fn reverts_keep_their_data_and_endless_loops_end() {
    // Reverts with the single byte 0xAB.
    let reverts = [0x60, 0xab, 0x5f, 0x53, 0x60, 0x01, 0x5f, 0xfd];
    let output = call(&state(&reverts), &context(), &request()).unwrap();
    assert_eq!(output.status, CallStatus::Revert);
    assert_eq!(output.output, Bytes::from_static(&[0xab]));
    let error = estimate_gas(&state(&reverts), &context(), &request()).unwrap_err();
    assert!(matches!(error, CallError::Reverted { output } if output.as_ref() == [0xab]));

    let loops = [0x5b, 0x5f, 0x56];
    let output = call(&state(&loops), &context(), &request()).unwrap();
    assert!(matches!(
        output.status,
        CallStatus::Halt {
            is_out_of_gas: true,
            ..
        }
    ));
    let error = estimate_gas(&state(&loops), &context(), &request()).unwrap_err();
    assert!(matches!(
        error,
        CallError::OutOfReach {
            gas_limit: 60_000_000,
            ..
        }
    ));
}

#[track_caller]
fn check_estimate(code: &[u8], request: &CallRequest) -> u64 {
    let state = state(code);
    let estimate = estimate_gas(&state, &context(), request).unwrap();
    let with_gas = |gas_limit| {
        let request = CallRequest {
            gas_limit: Some(gas_limit),
            ..request.clone()
        };
        call(&state, &context(), &request).is_ok_and(|out| out.status == CallStatus::Success)
    };
    assert!(with_gas(estimate), "{estimate} is enough");
    let least = (1..=estimate).find(|&gas| with_gas(gas)).unwrap();
    assert!(estimate - least <= estimate / 64 + 1, "{least} {estimate}");
    estimate
}

#[test]
fn estimates_suffice_and_are_tight() {
    let to_user = CallRequest {
        to: Some(Address::repeat_byte(1)),
        value_wei: U256::from(5),
        ..request()
    };
    assert_eq!(check_estimate(&[], &to_user), 21_000);
    // SSTORE(0, 1), and clearing slot 0 of nothing.
    check_estimate(&[0x60, 0x01, 0x5f, 0x55], &request());
    check_estimate(&[0x5f, 0x5f, 0x55], &request());
    // Fails unless 100,000 gas are left at the start.
    let hungry = [
        0x62, 0x01, 0x86, 0xa0, 0x5a, 0x11, 0x60, 0x0b, 0x57, 0x5f, 0xfd, 0x5b, 0x00,
    ];
    assert!(check_estimate(&hungry, &request()) > 100_000);
}

#[test]
fn an_estimate_stays_within_what_the_sender_can_pay() {
    let rich_price = CallRequest {
        max_fee_wei: Some(10_u128.pow(18) / 30_000),
        ..request()
    };
    // SSTORE of a new slot takes about 43,000 gas; there are coins for 30,000.
    let error =
        estimate_gas(&state(&[0x60, 0x01, 0x5f, 0x55]), &context(), &rich_price).unwrap_err();
    assert!(
        matches!(error, CallError::OutOfReach { gas_limit, .. } if gas_limit <= 30_000),
        "{error:?}"
    );
}
