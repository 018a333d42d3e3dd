//! Goal: a trace shows what ran, in full or not at all, and changes nothing.
//! Method: small programs against a state in memory, tried with and without a
//! recorder; random programs for the property.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use alloy_primitives::{B256, U256, hex};
use proptest::prelude::*;
use revm::bytecode::opcode as op;

use super::*;
use crate::call::tests::context;
use crate::{CallOutput, MemoryState, Overrides, call, create_access_list};

mod block;

const USER: Address = Address::repeat_byte(0xAA);
const MAIN: Address = Address::repeat_byte(0xCC);
const OTHER: Address = Address::repeat_byte(0xDD);

fn state(main: &[u8], other: &[u8]) -> MemoryState {
    let mut state = MemoryState::default();
    state.put(USER, 3, U256::from(10_u128.pow(18)), Bytes::new());
    state.put(MAIN, 1, U256::from(1_000), main.to_vec().into());
    state.put(OTHER, 1, U256::ZERO, other.to_vec().into());
    state
}

fn request() -> CallRequest {
    CallRequest {
        from: USER,
        to: Some(MAIN),
        gas_limit: Some(10_000_000),
        ..CallRequest::default()
    }
}

/// Everything that can be recorded.
fn all() -> TraceParts {
    TraceParts {
        frames: Some(FrameOptions {
            only_top: false,
            with_logs: true,
        }),
        steps: Some(StepOptions {
            memory: true,
            return_data: true,
            ..StepOptions::default()
        }),
        selectors: true,
        touched: true,
        transfers: true,
    }
}

/// Calls `to` with 4 bytes of zeros, all gas, and no value.
fn calls(opcode: u8, to: Address) -> Vec<u8> {
    let mut code = vec![op::PUSH0, op::PUSH0, op::PUSH1, 4, op::PUSH0];
    if matches!(opcode, op::CALL | op::CALLCODE) {
        code.push(op::PUSH0);
    }
    code.push(op::PUSH20);
    code.extend(to);
    code.extend([op::GAS, opcode, op::POP]);
    code
}

#[track_caller]
fn traced(state: &MemoryState, request: &CallRequest, parts: &TraceParts) -> Trace {
    trace_call(state, &context(), request, parts, &TraceLimits::default()).unwrap()
}

/// Parent, kind, target and fault of a frame.
type Shape = (Option<usize>, &'static str, Option<Address>, Option<Fault>);

fn shape(trace: &Trace) -> Vec<Shape> {
    let frames = trace.frames.iter();
    frames
        .map(|frame| (frame.parent, frame.kind.name(), frame.to, frame.fault))
        .collect()
}

#[test]
fn frames_are_a_tree_in_order() {
    // OTHER logs nothing and reverts with one byte.
    let reverts = hex!("60ab5f5360015ffd");
    let identity = Address::with_last_byte(4);
    let mut main = calls(op::STATICCALL, identity);
    main.extend(calls(op::CALL, OTHER));
    main.extend(calls(op::DELEGATECALL, OTHER));
    // CREATE of a contract without code, then LOG0 of nothing.
    main.extend([op::PUSH0, op::PUSH0, op::PUSH0, op::CREATE, op::POP]);
    main.extend([op::PUSH0, op::PUSH0, op::LOG0, op::STOP]);
    let trace = traced(&state(&main, &reverts), &request(), &all());
    let made = MAIN.create(1);
    let reverted = Some(Fault::Reverted);
    assert_eq!(
        shape(&trace),
        [
            (None, "CALL", Some(MAIN), None),
            (Some(0), "STATICCALL", Some(identity), None),
            (Some(0), "CALL", Some(OTHER), reverted),
            (Some(0), "DELEGATECALL", Some(OTHER), reverted),
            (Some(0), "CREATE", Some(made), None),
        ]
    );
    assert_eq!(trace.frames[0].n_children, 4);
    assert!(trace.frames[1].is_precompile);
    assert_eq!(trace.frames[1].input, trace.frames[1].output);
    assert_eq!(trace.frames[2].output, Bytes::from_static(&[0xab]));
    assert_eq!(trace.frames[3].from, MAIN);
    let log = &trace.frames[0].logs[0];
    assert_eq!((log.address, log.position, log.index), (MAIN, 4, 0));
    let zeros = Selector::from([0; 4]);
    assert_eq!(trace.selectors, BTreeMap::from([((zeros, 0), 3)]));
}

#[test]
fn logs_of_what_failed_are_not_there() {
    let logs_and_reverts = hex!("5f5fa05f5ffd");
    let trace = traced(
        &state(&calls(op::CALL, OTHER), &logs_and_reverts),
        &request(),
        &all(),
    );
    assert_eq!(trace.frames[1].fault, Some(Fault::Reverted));
    assert!(trace.frames[1].logs.is_empty());
    // The call fails after a call that has logged: that log is undone too.
    let mut main = calls(op::CALL, OTHER);
    main.push(op::INVALID);
    let trace = traced(&state(&main, &hex!("5f5fa0")), &request(), &all());
    assert_eq!(
        trace.frames[0].fault,
        Some(Fault::InvalidOpcode(op::INVALID))
    );
    assert_eq!(trace.frames[1].fault, None);
    assert!(trace.frames[1].logs.is_empty());
}

#[test]
fn a_self_destruction_is_a_frame() {
    let mut destroys = vec![op::PUSH20];
    destroys.extend(OTHER);
    destroys.push(op::SELFDESTRUCT);
    let trace = traced(&state(&destroys, &[]), &request(), &all());
    assert_eq!(
        shape(&trace)[1],
        (Some(0), "SELFDESTRUCT", Some(OTHER), None)
    );
    assert_eq!(trace.frames[1].value_wei, U256::from(1_000));
    assert_eq!(trace.frames[1].from, MAIN);
}

#[test]
fn only_the_top_frame_if_so_asked() {
    let parts = TraceParts {
        frames: Some(FrameOptions {
            only_top: true,
            with_logs: true,
        }),
        ..TraceParts::default()
    };
    let mut main = calls(op::CALL, OTHER);
    main.extend([op::PUSH0, op::PUSH0, op::LOG0]);
    let trace = traced(&state(&main, &hex!("5f5fa0")), &request(), &parts);
    assert_eq!(trace.frames.len(), 1);
    assert_eq!(trace.frames[0].logs.len(), 1);
}

#[test]
fn faults_have_geths_words() {
    let deep = |code: &[u8]| {
        let request = CallRequest {
            gas_limit: Some(100_000),
            ..request()
        };
        let trace = traced(&state(code, &[]), &request, &all());
        trace.frames[0].fault.unwrap()
    };
    let cases: [(&[u8], &str, &str); 9] = [
        (&hex!("5f5ffd"), "execution reverted", "Reverted"),
        (&hex!("5b5f56"), "out of gas", "Out of gas"),
        (
            &hex!("600156"),
            "invalid jump destination",
            "Bad jump destination",
        ),
        (&hex!("fe"), "invalid opcode: INVALID", "Bad instruction"),
        (
            &hex!("0c"),
            "invalid opcode: opcode 0xc not defined",
            "Bad instruction",
        ),
        (&hex!("01"), "stack underflow (0 <=> 2)", "Stack underflow"),
        (
            &hex!("5b5f5f56"),
            "stack limit reached 1024 (1023)",
            "Out of stack",
        ),
        (
            &hex!("60015f5f3e"),
            "return data out of bounds",
            "Out of bounds",
        ),
        (
            &hex!("63ffffffff5f5ff0"),
            "max initcode size exceeded",
            "max initcode size exceeded",
        ),
    ];
    for (code, geth, parity) in cases {
        let fault = deep(code);
        assert_eq!(fault.to_string(), geth, "{}", hex::encode(code));
        assert_eq!(fault.in_parity_words(), parity, "{}", hex::encode(code));
    }
}

#[test]
fn steps_show_the_machine_before_each_instruction() {
    // SSTORE(1, 2), SLOAD(1), MSTORE(0, it), STOP.
    let code = hex!("60026001556001545f5200");
    let trace = traced(&state(&code, &[]), &request(), &all());
    let names: Vec<_> = trace
        .steps
        .iter()
        .map(|step| opcode_name(step.opcode))
        .collect();
    assert_eq!(
        names,
        [
            "PUSH1", "PUSH1", "SSTORE", "PUSH1", "SLOAD", "PUSH0", "MSTORE", "STOP"
        ]
    );
    let [.., sstore, _, sload, _, mstore, stop] = &trace.steps[..] else {
        panic!("eight steps");
    };
    assert_eq!(sstore.storage, Some((U256::from(1), U256::from(2))));
    assert_eq!(
        sstore.stack.as_deref(),
        Some(&[U256::from(2), U256::from(1)][..])
    );
    assert_eq!(sstore.gas_cost, 22_100);
    assert_eq!(sload.storage, Some((U256::from(1), U256::from(2))));
    assert_eq!(mstore.memory.as_ref().unwrap().len(), 0);
    assert_eq!(stop.memory.as_ref().unwrap().len(), 32);
    for pair in trace.steps.windows(2) {
        assert_eq!(pair[0].gas - pair[0].gas_cost, pair[1].gas);
    }
    let account = &trace.touched[&MAIN];
    let slot = (U256::from(1), (U256::ZERO, U256::from(2)));
    assert_eq!(account.storage, BTreeMap::from([slot]));
    assert!(account.is_changed());
}

#[test]
fn the_refund_counter_is_the_transactions() {
    // Clears slot 0, calls OTHER, and so does OTHER with its own.
    let mut main = hex!("5f5f55").to_vec();
    main.extend(calls(op::CALL, OTHER));
    let mut state = state(&main, &hex!("5f5f5500"));
    for owner in [MAIN, OTHER] {
        state.storage.insert((owner, U256::ZERO), U256::from(1));
    }
    let trace = traced(&state, &request(), &all());
    let last_below = trace.steps.iter().rfind(|step| step.depth == 2).unwrap();
    assert_eq!(last_below.refund, 9_600);
    assert_eq!(trace.steps.last().unwrap().refund, 9_600);
    let first = TraceParts {
        steps: Some(StepOptions {
            first_max: 3,
            ..StepOptions::default()
        }),
        ..TraceParts::default()
    };
    assert_eq!(traced(&state, &request(), &first).steps.len(), 3);
}

#[track_caller]
fn check_limit(code: &[u8], parts: &TraceParts, limits: &TraceLimits, expected: &str) {
    let request = CallRequest {
        gas_limit: None,
        ..request()
    };
    let error = trace_call(&state(code, &[]), &context(), &request, parts, limits).unwrap_err();
    assert!(matches!(error, TraceError::Limit(_)), "{error:?}");
    assert_eq!(error.to_string(), expected);
}

#[test]
fn bombs_end_at_the_limits() {
    let limits = TraceLimits {
        size_max_bytes: 1 << 20,
        steps_max: 20_000,
        ..TraceLimits::default()
    };
    let steps = TraceParts {
        steps: Some(StepOptions {
            memory: true,
            ..StepOptions::default()
        }),
        ..TraceParts::default()
    };
    let too_large = "the trace is larger than 1048576 bytes";
    // A loop, for ever.
    let endless = hex!("5b5f56");
    let few = TraceLimits {
        steps_max: 1_000,
        ..limits.clone()
    };
    let too_many = "the trace has more than 1000 steps";
    check_limit(&endless, &steps, &few, too_many);
    // MSTORE at a growing place, for ever: the memory of each step is larger.
    let memory = hex!("5b5f598052505f56");
    check_limit(&memory, &steps, &limits, too_large);
    // Calls the identity precompile with 64 KiB, for ever.
    let input = hex!("5b5f5f620100005f5f60045af1505f56");
    let frames = TraceParts {
        frames: Some(FrameOptions::default()),
        ..TraceParts::default()
    };
    check_limit(&input, &frames, &limits, too_large);
    // Calls with nothing, for ever: frames cost too.
    let frequent = hex!("5b5f5f5f5f5f60045af1505f56");
    check_limit(&frequent, &frames, &limits, too_large);
    // Logs 1 KiB for ever.
    let logs = hex!("5b6104005fa05f56");
    let with_logs = TraceParts {
        frames: Some(FrameOptions {
            only_top: true,
            with_logs: true,
        }),
        ..TraceParts::default()
    };
    check_limit(&logs, &with_logs, &limits, too_large);
}

#[test]
fn time_is_asked_for_while_it_runs() {
    let asked = Arc::new(AtomicU64::new(0));
    let limits = TraceLimits {
        is_over: Arc::new({
            let asked = Arc::clone(&asked);
            move || asked.fetch_add(1, Ordering::Relaxed) == 2
        }),
        ..TraceLimits::default()
    };
    let parts = TraceParts {
        selectors: true,
        ..TraceParts::default()
    };
    check_limit(&hex!("5b5f56"), &parts, &limits, "the trace took too long");
    assert_eq!(asked.load(Ordering::Relaxed), 3);
}

#[test]
fn calls_1024_deep_are_traced() {
    // Calls itself until it may not.
    let mut main = calls(op::CALL, MAIN);
    main.push(op::STOP);
    let rich = CallRequest {
        gas_limit: None,
        overrides: Overrides {
            block: crate::BlockOverrides {
                gas_limit: Some(1 << 60),
                ..crate::BlockOverrides::default()
            },
            ..Overrides::default()
        },
        ..request()
    };
    let trace = traced(&state(&main, &[]), &rich, &all());
    assert_eq!(trace.frames.len(), 1_026);
    assert_eq!(trace.frames[1_025].fault, Some(Fault::TooDeep));
    assert_eq!(trace.frames[1_025].gas_used, 0);
    assert_eq!(trace.frames[1_025].parent, Some(1_024));
}

#[test]
fn an_access_list_has_what_is_not_warm_anyway() {
    // SLOAD(7) here, BALANCE(OTHER), and a call of a precompile.
    let mut main = hex!("600754").to_vec();
    main.push(op::PUSH20);
    main.extend(OTHER);
    main.push(op::BALANCE);
    main.extend(calls(op::STATICCALL, Address::with_last_byte(4)));
    let state = state(&main, &[]);
    let limits = TraceLimits::default();
    let found = create_access_list(&state, &context(), &request(), &limits).unwrap();
    let keys: Vec<_> = found
        .access_list
        .0
        .iter()
        .map(|item| (item.address, item.storage_keys.clone()))
        .collect();
    let seven = B256::with_last_byte(7);
    assert_eq!(keys, [(MAIN, vec![seven]), (OTHER, vec![])]);
    assert_eq!(found.error, None);
    let with_list = CallRequest {
        access_list: found.access_list,
        ..request()
    };
    let output = call(&state, &context(), &with_list).unwrap();
    assert_eq!(output.gas_used, found.gas_used);
}

#[test]
fn an_access_list_comes_to_rest_and_names_the_failure() {
    // Reads slot 0, and slot 1 too if slot 0 was cheap.
    let main = hex!("5a5f54505a90036103e810601257600154505b00");
    let limits = TraceLimits::default();
    let state_with = state(&main, &[]);
    let found = create_access_list(&state_with, &context(), &request(), &limits).unwrap();
    assert_eq!(found.error, None);
    let keys = vec![B256::ZERO, B256::with_last_byte(1)];
    assert_eq!(found.access_list.0[0].storage_keys, keys);
    let reverting = state(&hex!("5f54505f5ffd"), &[]);
    let found = create_access_list(&reverting, &context(), &request(), &limits).unwrap();
    assert_eq!(found.error.as_deref(), Some("execution reverted"));
    assert_eq!(found.access_list.0.len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// A recorder changes nothing, whatever runs.
    #[test]
    fn tracing_never_changes_results(
        main in prop::collection::vec(instruction(), 0..40),
        other in prop::collection::vec(instruction(), 0..20),
        input in prop::collection::vec(any::<u8>(), 0..40),
        gas_limit in 30_000_u64..300_000,
        value in 0_u64..2,
    ) {
        let state = state(&main.concat(), &other.concat());
        let request = CallRequest {
            input: input.into(),
            gas_limit: Some(gas_limit),
            value_wei: U256::from(value),
            ..request()
        };
        let untraced: CallOutput = call(&state, &context(), &request).unwrap();
        let trace = traced(&state, &request, &all());
        prop_assert_eq!(&trace.status, &untraced.status);
        prop_assert_eq!(&trace.output, &untraced.output);
        prop_assert_eq!(trace.gas_used, untraced.gas_used);
        // Every frame but the first lies below one that came before it.
        for (position, frame) in trace.frames.iter().enumerate() {
            prop_assert_eq!(frame.parent.is_none(), position == 0);
            prop_assert!(frame.parent.is_none_or(|parent| parent < position));
            prop_assert!(frame.gas_used <= frame.gas_limit);
            let n_children = trace.frames.iter().filter(|f| f.parent == Some(position)).count();
            prop_assert_eq!(n_children, frame.n_children);
        }
        let supply = |after: bool| {
            trace.touched.values().fold(U256::ZERO, |sum, account| {
                let state = if after { account.after } else { account.before };
                sum + state.unwrap_or_default().balance_wei
            })
        };
        prop_assert!(supply(true) <= supply(false), "no coins are made");
    }
}

/// An instruction with what it needs, more often than not.
fn instruction() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => any::<u8>().prop_map(|byte| vec![op::PUSH1, byte]),
        2 => any::<u8>().prop_map(|byte| vec![byte]),
        2 => (0_u8..4, any::<u8>()).prop_map(|(slot, value)| {
            vec![op::PUSH1, value, op::PUSH1, slot, op::SSTORE]
        }),
        1 => (0_u8..4).prop_map(|slot| vec![op::PUSH1, slot, op::SLOAD]),
        1 => Just(vec![op::PUSH0, op::MSTORE]),
        1 => Just(vec![op::PUSH1, 32, op::PUSH0, op::LOG0]),
        1 => Just(vec![op::PUSH1, 32, op::PUSH0, op::PUSH0, op::CREATE]),
        1 => Just(vec![op::PUSH1, 32, op::PUSH0, op::REVERT]),
        2 => prop::sample::select(vec![
            op::CALL, op::STATICCALL, op::DELEGATECALL, op::CALLCODE,
        ])
        .prop_map(|opcode| calls(opcode, OTHER)),
        1 => Just(calls(op::CALL, MAIN)),
        1 => Just({
            let mut code = vec![op::PUSH20];
            code.extend(OTHER);
            code.push(op::SELFDESTRUCT);
            code
        }),
    ]
}
