//! Goal: simulated blocks follow each other as real ones do, and waive only
//! what they are asked to.

use alloy_primitives::{Address, Bytes, hex};

use super::*;
use crate::{AccountOverride, BlockOverrides, MemoryState};

const USER: Address = Address::repeat_byte(0xAA);
const MAIN: Address = Address::repeat_byte(0xCC);
const NEW: Address = Address::repeat_byte(0xEE);

/// Counts its calls in slot 0, and returns the count and `BLOCKHASH(NUMBER-1)`.
const COUNTS: [u8; 25] = hex!("5f5460010180600055600052600143034060205260406000f3");

fn state() -> MemoryState {
    let mut state = MemoryState::default();
    state.put(USER, 3, U256::from(10_u128.pow(18)), Bytes::new());
    state.put(MAIN, 1, U256::ZERO, COUNTS.to_vec().into());
    state
}

fn parent() -> (Header, B256) {
    let header = header::genesis(1_700_000_000, 0, None, Bytes::new(), B256::ZERO);
    let hash = header.hash_slow();
    (header, hash)
}

fn options() -> SimulateOptions {
    SimulateOptions {
        validates: false,
        logs_transfers: false,
        gas_max: 50_000_000,
        limits: TraceLimits::default(),
    }
}

fn run(
    blocks: Vec<BlockToSimulate>,
    options: &SimulateOptions,
) -> Result<Vec<SimulatedBlock>, SimulateError> {
    let (header, hash) = parent();
    let parent = (&header, hash);
    simulate(
        &state(),
        parent,
        (161_200, &crate::Rules::OpenLedger),
        blocks,
        options,
    )
}

fn call(from: Address, to: Address, value: u64) -> CallRequest {
    CallRequest {
        from,
        to: Some(to),
        value_wei: U256::from(value),
        ..CallRequest::default()
    }
}

fn block(calls: Vec<CallRequest>) -> BlockToSimulate {
    BlockToSimulate {
        calls,
        ..BlockToSimulate::default()
    }
}

fn at(number: Option<u64>, timestamp_s: Option<u64>) -> BlockToSimulate {
    BlockToSimulate {
        overrides: Overrides {
            block: BlockOverrides {
                number,
                timestamp_s,
                ..BlockOverrides::default()
            },
            ..Overrides::default()
        },
        ..BlockToSimulate::default()
    }
}

#[test]
fn blocks_see_the_state_and_the_hashes_of_those_before() {
    let to_main = || call(USER, MAIN, 0);
    let blocks = vec![block(vec![to_main(), to_main()]), block(vec![to_main()])];
    let done = run(blocks, &options()).unwrap();
    let (_, parent_hash) = parent();
    let words = |call: &SimulatedCall| {
        let (count, hash) = call.output.split_at(32);
        (U256::from_be_slice(count), B256::from_slice(hash))
    };
    assert_eq!(words(&done[0].calls[1]), (U256::from(2), parent_hash));
    assert_eq!(words(&done[1].calls[0]), (U256::from(3), done[0].hash));
    assert_eq!(done[0].header.parent_hash, parent_hash);
    assert_eq!(done[1].header.parent_hash, done[0].hash);
    assert_eq!(done[1].header.timestamp, done[0].header.timestamp + 12);
    let gas: u64 = done[0].calls.iter().map(|call| call.gas_used).sum();
    assert_eq!(done[0].header.gas_used, gas);
    assert_eq!(done[0].header.base_fee_per_gas, Some(0));
    assert_eq!(done[0].transactions.len(), 2);
    assert_eq!(done[0].transactions[1].inner().nonce_of(), 4);
}

trait Nonce {
    fn nonce_of(&self) -> u64;
}

impl Nonce for Transaction {
    fn nonce_of(&self) -> u64 {
        alloy_consensus::Transaction::nonce(self)
    }
}

#[test]
fn gaps_are_filled_and_disorder_is_refused() {
    let done = run(vec![at(Some(3), None), at(None, None)], &options()).unwrap();
    let numbers: Vec<_> = done.iter().map(|block| block.header.number).collect();
    assert_eq!(numbers, [1, 2, 3, 4]);
    for pair in done.windows(2) {
        assert_eq!(pair[1].header.parent_hash, pair[0].hash);
    }
    let cases = [
        (
            vec![at(Some(0), None)],
            "block numbers must be in order: 0 <= 0",
        ),
        (vec![at(Some(2), None), at(Some(2), None)], "2 <= 2"),
        (
            vec![at(None, Some(1_700_000_000))],
            "block timestamps must be in order",
        ),
        (vec![at(Some(257), None)], "too many blocks"),
        (vec![at(Some(u64::MAX), None)], "too many blocks"),
    ];
    for (blocks, words) in cases {
        let error = run(blocks, &options()).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn transfers_are_logs_if_they_happened() {
    let with_logs = SimulateOptions {
        logs_transfers: true,
        ..options()
    };
    let mut fails = call(USER, MAIN, 7);
    fails.gas_limit = Some(30_000);
    let done = run(vec![block(vec![call(USER, NEW, 5), fails])], &with_logs).unwrap();
    let logs = &done[0].calls[0].logs;
    assert_eq!(logs.len(), 1);
    assert_eq!(logs[0].topics()[1], USER.into_word());
    assert_eq!(logs[0].topics()[2], NEW.into_word());
    assert_eq!(U256::from_be_slice(&logs[0].data.data), U256::from(5));
    assert_ne!(done[0].calls[1].status, CallStatus::Success);
    assert!(done[0].calls[1].logs.is_empty());
    let without = run(vec![block(vec![call(USER, NEW, 5)])], &options()).unwrap();
    assert!(without[0].calls[0].logs.is_empty());
    assert_eq!(without[0].calls[0].gas_used, done[0].calls[0].gas_used);
}

#[test]
fn only_validation_asks_for_nonces_and_fees() {
    let mut wrong_nonce = call(USER, NEW, 1);
    wrong_nonce.nonce = Some(9);
    assert!(run(vec![block(vec![wrong_nonce.clone()])], &options()).is_ok());
    let validates = SimulateOptions {
        validates: true,
        ..options()
    };
    let refusal = |call: CallRequest| {
        run(vec![block(vec![call])], &validates)
            .unwrap_err()
            .to_string()
    };
    let mut pays = wrong_nonce;
    pays.max_fee_wei = Some(2_000_000_000);
    assert!(refusal(pays.clone()).contains("nonce too high"));
    pays.nonce = Some(1);
    assert!(refusal(pays.clone()).contains("nonce too low"));
    assert!(refusal(call(USER, NEW, 1)).contains("less than block base fee"));
    pays.nonce = None;
    let done = run(vec![block(vec![pays])], &validates).unwrap();
    assert_eq!(done[0].header.base_fee_per_gas, Some(875_000_000));
    // Nobody has what is sent, with or without validation.
    let poor = run(vec![block(vec![call(NEW, USER, 1)])], &options()).unwrap_err();
    assert!(poor.to_string().contains("insufficient funds"), "{poor}");
}

#[test]
fn overrides_hold_from_their_block_on() {
    let mut rich = block(vec![call(NEW, USER, 60)]);
    let account = AccountOverride {
        balance_wei: Some(U256::from(100)),
        ..AccountOverride::default()
    };
    rich.overrides.accounts.insert(NEW, account);
    rich.overrides.block.beneficiary = Some(MAIN);
    rich.overrides.block.gas_limit = Some(100_000);
    let later = block(vec![call(NEW, USER, 40)]);
    let done = run(vec![rich, later], &options()).unwrap();
    assert_eq!(done[0].header.beneficiary, MAIN);
    assert_eq!(done[0].header.gas_limit, 100_000);
    assert_eq!(done[1].calls[0].status, CallStatus::Success);
}

#[test]
fn gas_is_bounded_for_all_messages_together() {
    let options = SimulateOptions {
        gas_max: 60_000,
        ..options()
    };
    let transfers = vec![call(USER, NEW, 1), call(USER, NEW, 1)];
    assert!(run(vec![block(transfers.clone())], &options).is_ok());
    let blocks = vec![block(transfers), block(vec![call(USER, NEW, 1)])];
    let error = run(blocks, &options).unwrap_err().to_string();
    assert!(error.contains("intrinsic gas too low"), "{error}");
    let mut greedy = call(USER, NEW, 1);
    greedy.gas_limit = Some(60_001);
    let error = run(vec![block(vec![greedy])], &options).unwrap_err();
    assert!(matches!(error, SimulateError::GasLimit { .. }), "{error:?}");
}
