//! Goal: the precompiles answer as `specs/poa.md` says, cost what it says, and
//! refuse everything else by a reason.
//! Method: calls through the whole EVM against a state in memory, directly and
//! through small contracts that forward their calldata by every kind of call.

use alloy_primitives::{Address, B256, Bytes, U256, keccak256};
use alloy_sol_types::{Revert, SolCall, SolError};
use ol_poa::{Entry, Index, K, QuerySketch};
use proptest::prelude::*;

use super::abi::IOpenTransfer::transferCall;
use super::abi::IPoaScore::scoreCall;
use super::abi::IPoaShares::sharesCall;
use super::abi::IPoaVerify::{isLieCall, openCall, revealCall};
use super::*;
use crate::{BlockContext, CallOutput, CallRequest, CallStatus, MemoryState, OPEN_FACADE, call};

const USER: Address = Address::repeat_byte(0xAA);
const OTHER: Address = Address::repeat_byte(0xBB);
const FORWARDER: Address = Address::repeat_byte(0xCC);

const CALL: u8 = 0xF1;
const CALLCODE: u8 = 0xF2;
const DELEGATECALL: u8 = 0xF4;
const STATICCALL: u8 = 0xFA;

fn context() -> BlockContext {
    BlockContext {
        chain_id: 161_200,
        number: 1,
        timestamp_s: 1_700_000_000,
        gas_limit: crate::BLOCK_GAS_LIMIT,
        base_fee_wei: 7,
        parent_hash: B256::ZERO,
        rules: crate::BlockRules::OpenLedger,
    }
}

fn state() -> MemoryState {
    let mut state = MemoryState::default();
    for precompile in [POA_SCORE, POA_SHARES, POA_VERIFY, OPEN_TRANSFER] {
        state.put(precompile, 1, U256::ZERO, Bytes::from_static(&[0]));
    }
    state.put(USER, 0, U256::from(1_000_000), Bytes::new());
    state.put(OPEN_FACADE, 1, U256::ZERO, forwarder(CALL, OPEN_TRANSFER));
    state
}

/// Code that passes its calldata on and hands back what it gets.
fn forwarder(opcode: u8, target: Address) -> Bytes {
    let takes_value = matches!(opcode, CALL | CALLCODE);
    let mut code = vec![0x36, 0x5f, 0x5f, 0x37, 0x5f, 0x5f, 0x36, 0x5f];
    if takes_value {
        code.push(0x34);
    }
    code.push(0x73);
    code.extend_from_slice(target.as_slice());
    code.extend_from_slice(&[0x5a, opcode, 0x3d, 0x5f, 0x5f, 0x3e]);
    let destination = u8::try_from(code.len() + 6).unwrap();
    code.extend_from_slice(&[0x60, destination, 0x57, 0x3d, 0x5f, 0xfd]);
    code.extend_from_slice(&[0x5b, 0x3d, 0x5f, 0xf3]);
    code.into()
}

fn request(to: Address, input: Vec<u8>) -> CallRequest {
    CallRequest {
        from: USER,
        to: Some(to),
        input: input.into(),
        ..CallRequest::default()
    }
}

fn run(state: &MemoryState, request: &CallRequest) -> CallOutput {
    call(state, &context(), request).unwrap()
}

/// What calldata costs before the call begins.
fn intrinsic_gas(input: &[u8]) -> u64 {
    21_000
        + input
            .iter()
            .map(|&byte| if byte == 0 { 4 } else { 16 })
            .sum::<u64>()
}

fn precompile_gas(state: &MemoryState, to: Address, input: &[u8]) -> u64 {
    run(state, &request(to, input.to_vec())).gas_spent - intrinsic_gas(input)
}

#[track_caller]
fn check_refused(state: &MemoryState, request: &CallRequest, reason: &str) {
    let output = run(state, request);
    assert_eq!(output.status, CallStatus::Revert, "{output:?}");
    let found = Revert::abi_decode(&output.output).unwrap();
    assert!(found.reason.contains(reason), "{}", found.reason);
}

fn entry(contributor: u8, cluster: u32, scale: u16, codes: [i8; K]) -> Entry {
    Entry {
        contributor: Address::repeat_byte(contributor),
        record: keccak256([contributor]),
        cluster,
        scale,
        codes,
    }
}

fn one_hot(position: usize, value: i8) -> [i8; K] {
    let mut codes = [0; K];
    codes[position] = value;
    codes
}

fn put_chunks(state: &mut MemoryState, index: &Index) -> Vec<Address> {
    let mut addresses = Vec::new();
    for (position, chunk) in index.chunks().into_iter().enumerate() {
        let address = Address::with_last_byte(0x20 + u8::try_from(position).unwrap());
        let code = [&[0], chunk].concat();
        state.put(address, 1, U256::ZERO, code.into());
        addresses.push(address);
    }
    addresses
}

fn score_input(chunks: Vec<Address>, null_threshold: u64, query: [i8; K]) -> Vec<u8> {
    scoreCall {
        chunks,
        nullThreshold: null_threshold,
        query: query.map(i8::cast_unsigned).to_vec().into(),
    }
    .abi_encode()
}

#[test]
fn score_nets_by_contributor_and_drops_the_rest() {
    let mut state = state();
    let index = Index::new(vec![
        entry(1, 0, 3, one_hot(0, 7)),
        entry(1, 1, 1, one_hot(1, -2)),
        entry(2, 2, 1, one_hot(0, -7)),
        entry(3, 3, 2, one_hot(1, 7)),
    ])
    .unwrap();
    let chunks = put_chunks(&mut state, &index);
    let mut query = [0; K];
    query[0] = 2;
    query[1] = 4;
    // 1: 3·14 − 8 = 34; 2: −14; 3: 2·28 = 56. The threshold takes 30 from each.
    let input = score_input(chunks, 30, query);
    let output = run(&state, &request(POA_SCORE, input.clone()));
    assert_eq!(output.status, CallStatus::Success);
    let found = scoreCall::abi_decode_returns(&output.output).unwrap();
    assert_eq!(
        found.contributors,
        [Address::repeat_byte(1), Address::repeat_byte(3)]
    );
    assert_eq!(found.weights, [4, 26]);
    assert_eq!(
        precompile_gas(&state, POA_SCORE, &input),
        2_000 + 2_600 + 4 * 12 + 2 * 30
    );
}

#[test]
fn score_reads_many_chunks_in_the_order_given() {
    let mut state = state();
    let entries = (0..300_u32)
        .map(|i| {
            let code = i8::try_from(i % 8).unwrap();
            entry(u8::try_from(i / 10).unwrap(), i, 7, one_hot(3, code))
        })
        .collect();
    let index = Index::new(entries).unwrap();
    let chunks = put_chunks(&mut state, &index);
    assert_eq!(chunks.len(), 3);
    let query = one_hot(3, 5);
    let input = score_input(chunks.clone(), 0, query);
    let output = run(&state, &request(POA_SCORE, input.clone()));
    let found = scoreCall::abi_decode_returns(&output.output).unwrap();
    let expected = index.weights(0, &QuerySketch::new(query).unwrap());
    let found: Vec<_> = found.contributors.into_iter().zip(found.weights).collect();
    assert_eq!(found, expected);
    assert_eq!(
        precompile_gas(&state, POA_SCORE, &input),
        2_000 + 3 * 2_600 + 300 * 12 + 30 * u64::try_from(expected.len()).unwrap()
    );

    let mut swapped = chunks;
    swapped.swap(0, 1);
    check_refused(
        &state,
        &request(POA_SCORE, score_input(swapped, 0, query)),
        "out of order",
    );
}

#[test]
fn score_refuses_malformed_input() {
    let mut state = state();
    let index = Index::new(vec![entry(1, 0, 1, one_hot(0, 1))]).unwrap();
    let chunks = put_chunks(&mut state, &index);
    let good = score_input(chunks.clone(), 0, one_hot(0, 1));
    let not_a_chunk = Address::repeat_byte(0x77);
    state.put(not_a_chunk, 1, U256::ZERO, Bytes::from_static(&[0x60, 0]));
    let ragged = Address::repeat_byte(0x78);
    state.put(ragged, 1, U256::ZERO, vec![0; 100].into());
    let zero_scale = Address::repeat_byte(0x79);
    state.put(zero_scale, 1, U256::ZERO, vec![0; 187].into());

    let mut dirty_address = good.clone();
    dirty_address[4 + 4 * 32] = 1;
    let mut wrong_selector = good.clone();
    wrong_selector[0] ^= 1;
    let mut huge_count = good.clone();
    huge_count[4 + 3 * 32..4 + 4 * 32].fill(0xFF);
    let query = one_hot(0, 1);
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (vec![], "malformed call"),
        (good[..3].to_vec(), "malformed call"),
        (good[..good.len() - 1].to_vec(), "malformed call"),
        ([&good[..], &[0; 32]].concat(), "malformed call"),
        (dirty_address, "malformed call"),
        (wrong_selector, "malformed call"),
        (huge_count, "malformed call"),
        (
            score_input(vec![chunks[0]; 129], 0, query),
            "malformed call",
        ),
        (score_input(vec![], 0, query), "has no entry"),
        (
            score_input(vec![Address::repeat_byte(0x76)], 0, query),
            "chunk 0 is not an index chunk",
        ),
        (
            score_input(vec![chunks[0], not_a_chunk], 0, query),
            "chunk 1 is not an index chunk",
        ),
        (score_input(vec![ragged], 0, query), "99 bytes"),
        (score_input(vec![zero_scale], 0, query), "scale of entry 0"),
        (
            score_input(vec![chunks[0], chunks[0]], 0, query),
            "not the size of its entries",
        ),
        (
            score_input(chunks.clone(), 0, one_hot(5, -128)),
            "-127..=127",
        ),
    ];
    for (input, reason) in cases {
        check_refused(&state, &request(POA_SCORE, input), reason);
    }
    let short_query = scoreCall {
        chunks,
        nullThreshold: 0,
        query: vec![0; 255].into(),
    };
    check_refused(
        &state,
        &request(POA_SCORE, short_query.abi_encode()),
        "-127..=127",
    );
}

#[test]
fn shares_are_exact_and_priced() {
    let state = state();
    let input = sharesCall {
        pot: U256::from(100),
        weights: vec![0, 2, 1],
    }
    .abi_encode();
    let output = run(&state, &request(POA_SHARES, input.clone()));
    let amounts = sharesCall::abi_decode_returns(&output.output).unwrap();
    assert_eq!(amounts, [0, 67, 33].map(U256::from));
    assert_eq!(precompile_gas(&state, POA_SHARES, &input), 400 + 3 * 60);
}

#[test]
fn shares_refuse_what_cannot_be_shared() {
    let state = state();
    let encode = |pot: U256, weights: Vec<u64>| sharesCall { pot, weights }.abi_encode();
    let good = encode(U256::from(1), vec![1]);
    let cases = [
        (encode(U256::from(1), vec![]), "no weight is above 0"),
        (encode(U256::from(1), vec![0, 0]), "no weight is above 0"),
        (encode(U256::from(1), vec![1 << 63]), "not below 2^63"),
        (encode(U256::from(1) << 128, vec![1]), "not below 2^128"),
        (good[..good.len() - 1].to_vec(), "malformed call"),
        ([&good[..], &[0]].concat(), "malformed call"),
        (vec![0; 4], "malformed call"),
    ];
    for (input, reason) in cases {
        check_refused(&state, &request(POA_SHARES, input), reason);
    }
}

/// A claim of one entry, whose trees are single leaves: the terms, and a step
/// that is right.
fn claim_of_one() -> (ol_poa::court::Posted, abi::Terms, Vec<u8>) {
    let index = Index::new(vec![entry(1, 0, 2, one_hot(0, 3))]).unwrap();
    let bytes = index.as_bytes().to_vec();
    let index = ol_poa::court::CommittedIndex::from_bytes(bytes.clone()).unwrap();
    let query = QuerySketch::new(one_hot(0, 5)).unwrap();
    let posted = ol_poa::court::Claim::compute(&index, &query, 1, 100).posted();
    let terms = posted.terms(&index, query.hash(), 1, 100);
    let terms = abi::Terms {
        indexRoot: terms.index_root,
        nEntries: terms.n_entries,
        rangesRoot: terms.ranges_root,
        nContributors: terms.n_contributors,
        queryHash: terms.query_hash,
        nullThreshold: terms.null_threshold,
        pot: terms.pot,
        roots: terms.roots,
        cutoffRemainder: terms.cutoff.remainder,
        cutoffPosition: terms.cutoff.position,
    };
    let node = posted.scores.encode();
    let step = [&[1, 0, 0, 0, 0], &node[32..], &bytes, &query.to_bytes()].concat();
    (posted, terms, step)
}

#[test]
fn steps_are_judged_and_priced() {
    let state = state();
    let (posted, terms, step) = claim_of_one();
    let is_lie = |terms: &abi::Terms, step: &[u8]| {
        let input = isLieCall {
            terms: terms.clone(),
            step: step.to_vec().into(),
        }
        .abi_encode();
        let output = run(&state, &request(POA_VERIFY, input.clone()));
        assert_eq!(output.status, CallStatus::Success, "{output:?}");
        (
            isLieCall::abi_decode_returns(&output.output).unwrap(),
            input,
        )
    };
    let (verdict, input) = is_lie(&terms, &step);
    assert!(!verdict);
    let (verdict, _) = {
        let lying = ol_poa::court::Node {
            value: posted.scores.value + 1,
            ..posted.scores
        };
        let roots = [lying.commitment(), terms.roots[1], terms.roots[2]];
        let terms = abi::Terms { roots, ..terms };
        let step = [&[6, 0, 0, 0, 0][..], &lying.encode()].concat();
        is_lie(&terms, &step)
    };
    assert!(verdict);

    let price = 1_000 + 2 * u64::try_from(input.len()).unwrap();
    for (gas, is_enough) in [(price, true), (price - 1, false)] {
        let output = call_with_gas(&state, POA_VERIFY, gas, &input);
        assert_eq!(output, U256::from(u8::from(is_enough)), "gas {gas}");
    }

    let path = posted.nets.encode();
    let open = openCall {
        terms,
        tree: 1,
        level: 0,
        position: 0,
        path: path.clone().into(),
    };
    let reveal = revealCall {
        tree: 1,
        level: 0,
        row: path.into(),
    };
    for input in [open.abi_encode(), reveal.abi_encode()] {
        let output = run(&state, &request(POA_VERIFY, input));
        assert_eq!(output.output, posted.nets.commitment()[..]);
    }
}

#[test]
fn steps_that_show_nothing_are_refused() {
    let state = state();
    let (_, terms, step) = claim_of_one();
    let encode = |terms: &abi::Terms, step: &[u8]| {
        isLieCall {
            terms: terms.clone(),
            step: step.to_vec().into(),
        }
        .abi_encode()
    };
    let other_roots = abi::Terms {
        roots: [B256::ZERO; 3],
        ..terms
    };
    let no_entries = abi::Terms {
        nEntries: 0,
        ..terms
    };
    let good = encode(&terms, &step);
    let cases = [
        (encode(&other_roots, &step), "not part of the claim"),
        (encode(&no_entries, &step), "malformed step"),
        (encode(&terms, &[]), "malformed step"),
        (encode(&terms, &[9]), "malformed step"),
        (encode(&terms, &step[1..]), "malformed step"),
        (
            encode(&terms, &[&step[..], &[0]].concat()),
            "malformed step",
        ),
        (encode(&terms, &vec![1; 4_096]), "too long"),
        ([&good[..], &[0; 32]].concat(), "malformed call"),
        (good[..good.len() - 1].to_vec(), "malformed call"),
        (vec![], "malformed call"),
    ];
    for (input, reason) in cases {
        check_refused(&state, &request(POA_VERIFY, input), reason);
    }
    let reveal = revealCall {
        tree: 3,
        level: 1,
        row: vec![0; 96].into(),
    };
    check_refused(
        &state,
        &request(POA_VERIFY, reveal.abi_encode()),
        "malformed step",
    );
}

/// Whether a call with this much gas succeeds. The EIP-7623 floor of much
/// calldata is above the execution gas, so a contract in between sets the limit.
fn call_with_gas(state: &MemoryState, to: Address, gas: u64, input: &[u8]) -> U256 {
    let mut code = vec![0x36, 0x5f, 0x5f, 0x37, 0x5f, 0x5f, 0x36, 0x5f, 0x73];
    code.extend_from_slice(to.as_slice());
    code.push(0x61);
    code.extend_from_slice(&u16::try_from(gas).unwrap().to_be_bytes());
    code.extend_from_slice(&[0xfa, 0x5f, 0x52, 0x60, 0x20, 0x5f, 0xf3]);
    let mut state = state.clone();
    state.put(FORWARDER, 1, U256::ZERO, code.into());
    let output = run(&state, &request(FORWARDER, input.to_vec()));
    assert_eq!(output.status, CallStatus::Success);
    U256::from_be_slice(&output.output)
}

#[test]
fn gas_below_the_price_halts_and_takes_it_all() {
    let mut state = state();
    let index = Index::new(vec![entry(1, 0, 1, one_hot(0, 1))]).unwrap();
    let chunks = put_chunks(&mut state, &index);
    let input = score_input(chunks, 0, one_hot(0, 1));
    let price = 2_000 + 2_600 + 12 + 30;
    for (gas, is_enough) in [(price, true), (price - 1, false), (1_999, false)] {
        let succeeded = call_with_gas(&state, POA_SCORE, gas, &input);
        assert_eq!(succeeded, U256::from(u8::from(is_enough)), "gas {gas}");
    }
    let direct = CallRequest {
        gas_limit: Some(21_000 + 16 * 4 + 4 * 92 + 8_999),
        ..request(
            OPEN_TRANSFER,
            vec![0xFF; 4].into_iter().chain([0; 92]).collect(),
        )
    };
    let output = run(&state, &direct);
    assert!(
        matches!(output.status, CallStatus::Halt { .. }),
        "{output:?}"
    );
    assert_eq!(output.gas_used, direct.gas_limit.unwrap());
}

#[test]
fn value_and_borrowed_contexts_are_refused() {
    let mut state = state();
    for precompile in [POA_SCORE, POA_SHARES, POA_VERIFY, OPEN_TRANSFER] {
        for opcode in [DELEGATECALL, CALLCODE] {
            state.put(FORWARDER, 1, U256::ZERO, forwarder(opcode, precompile));
            check_refused(&state, &request(FORWARDER, vec![1; 36]), "DELEGATECALL");
        }
        let with_value = CallRequest {
            value_wei: U256::from(1),
            ..request(precompile, vec![])
        };
        check_refused(&state, &with_value, "takes no value");
    }
}

fn transfer_input(from: Address, to: Address, amount: u64) -> Vec<u8> {
    transferCall {
        from,
        to,
        amount: U256::from(amount),
    }
    .abi_encode()
}

#[test]
fn only_the_facade_moves_balance() {
    let mut state = state();
    let input = transfer_input(USER, OTHER, 1);
    check_refused(&state, &request(OPEN_TRANSFER, input.clone()), "facade");
    state.put(FORWARDER, 1, U256::ZERO, forwarder(CALL, OPEN_TRANSFER));
    check_refused(&state, &request(FORWARDER, input.clone()), "facade");

    let output = run(&state, &request(OPEN_FACADE, input));
    assert_eq!(output.status, CallStatus::Success);
    assert!(output.output.is_empty());

    let too_much = transfer_input(USER, OTHER, 1_000_001);
    check_refused(&state, &request(OPEN_FACADE, too_much), "balance too low");
    let to_self = transfer_input(USER, USER, 1_000_001);
    check_refused(&state, &request(OPEN_FACADE, to_self), "balance too low");
    check_refused(&state, &request(OPEN_FACADE, vec![1, 2, 3]), "malformed");

    // The façade itself, called by STATICCALL, may not move anything either.
    state.put(FORWARDER, 1, U256::ZERO, forwarder(STATICCALL, OPEN_FACADE));
    let input = transfer_input(USER, OTHER, 1);
    check_refused(&state, &request(FORWARDER, input), "static call");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_bytes_give_an_answer_and_the_same_one_twice(
        which in 0..4_usize,
        selector in any::<bool>(),
        tail in prop::collection::vec(prop_oneof![Just(0_u8), Just(0x40), any::<u8>()], 0..400),
    ) {
        let state = state();
        let (to, known) = [
            (POA_SCORE, scoreCall::SELECTOR),
            (POA_SHARES, sharesCall::SELECTOR),
            (POA_VERIFY, isLieCall::SELECTOR),
            (OPEN_FACADE, transferCall::SELECTOR),
        ][which];
        let input = if selector { [&known[..], &tail].concat() } else { tail };
        let first = run(&state, &request(to, input.clone()));
        prop_assert_eq!(first, run(&state, &request(to, input)));
    }

    #[test]
    fn shares_add_up_through_the_evm(
        pot in any::<u128>(),
        weights in prop::collection::vec(0..1_u64 << 63, 1..20),
    ) {
        prop_assume!(weights.iter().any(|&weight| weight > 0));
        let input = sharesCall { pot: U256::from(pot), weights }.abi_encode();
        let output = run(&state(), &request(POA_SHARES, input));
        let amounts = sharesCall::abi_decode_returns(&output.output).unwrap();
        prop_assert_eq!(amounts.into_iter().sum::<U256>(), U256::from(pot));
    }
}
