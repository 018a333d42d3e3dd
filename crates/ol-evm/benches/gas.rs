//! What a unit of gas of `POA_SCORE` and `POA_SHARES` takes, beside precompiles
//! and opcodes of Ethereum in the same run, all through the whole EVM.
//!
//! `cargo bench -p ol-evm --bench gas -- --json`
//! prints a JSON list, without `--json` a line for each row. The peer is
//! `ECRECOVER`; a ratio above 1 means that our gas takes less time than its.
#![expect(clippy::print_stdout, reason = "a program that reports its figures")]

use std::hint::black_box;
use std::time::Instant;

use alloy_primitives::{Address, B256, Bytes, U256};
use alloy_sol_types::SolCall;
use ol_evm::precompiles::{IPoaScore, IPoaShares, POA_SCORE, POA_SHARES};
use ol_evm::{
    BLOCK_GAS_LIMIT, BlockContext, BlockRules, CallOutput, CallRequest, CallStatus, MemoryState,
    call,
};
use ol_poa::{Entry, Index, K};

const COMMAND: &str = "cargo xtask bench scoring";
const ROUNDS: usize = 41;
const ECRECOVER: Address = Address::with_last_byte(1);
const SHA256: Address = Address::with_last_byte(2);
const NOBODY: Address = Address::repeat_byte(0xEE);

/// A call whose gas is looked at.
struct Case {
    work: String,
    to: Address,
    input: Vec<u8>,
    state: MemoryState,
}

fn main() {
    let mut cases = vec![ecrecover(), sha256(), keccak(), multiply()];
    let n_peers = cases.len();
    for n in [10, 100, 1_000, 10_000, 16_384] {
        cases.push(score(n, 4));
        cases.push(score(n, n));
    }
    cases.extend([10, 1_000, 16_384].map(shares));
    let mut nanoseconds = vec![Vec::new(); cases.len()];
    let mut gas = vec![0; cases.len()];
    // In turn, so that all see the same state of the machine.
    for round in 0..=ROUNDS {
        for (at, case) in cases.iter().enumerate() {
            let (ns, spent) = case.measure();
            gas[at] = spent;
            if round > 0 {
                nanoseconds[at].push(ns / spent as f64);
            }
        }
    }
    let per_gas: Vec<f64> = nanoseconds.into_iter().map(median).collect();
    // Names have no character that JSON would escape.
    let row = |at: usize| {
        let (work, ours, peer) = (&cases[at].work, per_gas[at], per_gas[0]);
        let (gas, ratio) = (gas[at], peer / ours);
        format!(
            "{{\"work\": \"{work}, {gas} gas\", \"unit\": \"ns/gas\", \"ours\": {ours:.3}, \
             \"peer\": {peer:.3}, \"peer_name\": \"ECRECOVER\", \"ratio\": {ratio:.3}, \
             \"rounds\": {ROUNDS}, \"command\": \"{COMMAND}\"}}"
        )
    };
    let rows: Vec<String> = (n_peers..cases.len()).chain(1..n_peers).map(row).collect();
    if std::env::args().any(|argument| argument == "--json") {
        println!("[\n  {}\n]", rows.join(",\n  "));
        return;
    }
    for row in rows {
        println!("{row}");
    }
}

impl Case {
    /// Nanoseconds and gas of the call itself: less those of a call with the
    /// same input to an account without code.
    fn measure(&self) -> (f64, u64) {
        // The first of each brings code and data into the caches.
        let [_, (ns, output)] = [(); 2].map(|()| self.run(self.to));
        let [_, (idle_ns, idle)] = [(); 2].map(|()| self.run(NOBODY));
        (ns - idle_ns, output.gas_spent - idle.gas_spent)
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a benchmark measures the machine's time"
    )]
    fn run(&self, to: Address) -> (f64, CallOutput) {
        let request = CallRequest {
            from: Address::repeat_byte(0xAA),
            to: Some(to),
            input: self.input.clone().into(),
            ..CallRequest::default()
        };
        let context = BlockContext {
            chain_id: 161_200,
            number: 1,
            timestamp_s: 1_700_000_000,
            gas_limit: BLOCK_GAS_LIMIT,
            base_fee_wei: 7,
            parent_hash: B256::ZERO,
            rules: BlockRules::OpenLedger,
        };
        let start = Instant::now();
        let output = black_box(call(&self.state, &context, &request)).expect("a valid call");
        let ns = start.elapsed().as_secs_f64() * 1e9;
        assert_eq!(output.status, CallStatus::Success, "{}", self.work);
        (ns, output)
    }
}

fn score(n: usize, n_contributors: usize) -> Case {
    let mut random = random(3);
    let n_entries = u32::try_from(n).expect("at most 16,384");
    let entry = |cluster: u32| Entry {
        contributor: Address::left_padding_from(&(cluster as usize % n_contributors).to_be_bytes()),
        record: B256::ZERO,
        cluster,
        scale: 1 + u16::try_from(random() % 60_000).expect("below 2^16"),
        codes: std::array::from_fn(|_| random().to_le_bytes()[0].cast_signed() % 8),
    };
    let index = Index::new((0..n_entries).map(entry).collect()).expect("a valid index");
    let mut state = precompiles();
    let mut chunks = Vec::new();
    for (chunk, position) in index.chunks().into_iter().zip(0_u16..) {
        let address = Address::left_padding_from(&(0x2000 + position).to_be_bytes());
        state.put(address, 1, U256::ZERO, [&[0], chunk].concat().into());
        chunks.push(address);
    }
    let query: [u8; K] = std::array::from_fn(|_| random().to_le_bytes()[0] & 0x7f);
    Case {
        work: format!("POA_SCORE, {n} records of {n_contributors} contributors"),
        to: POA_SCORE,
        input: IPoaScore::scoreCall {
            chunks,
            nullThreshold: 0,
            query: query.to_vec().into(),
        }
        .abi_encode(),
        state,
    }
}

fn shares(n: usize) -> Case {
    let mut random = random(4);
    Case {
        work: format!("POA_SHARES, {n} weights"),
        to: POA_SHARES,
        input: IPoaShares::sharesCall {
            pot: U256::from(10).pow(U256::from(18)),
            weights: (0..n).map(|_| random() >> 14).collect(),
        }
        .abi_encode(),
        state: precompiles(),
    }
}

/// A signature whose `r` is the first that is a point of the curve.
fn ecrecover() -> Case {
    let mut words = [
        U256::from(0x1234_5678),
        U256::from(27),
        U256::from(1),
        U256::from(77),
    ];
    loop {
        let case = Case {
            work: "ECRECOVER".to_owned(),
            to: ECRECOVER,
            input: words
                .iter()
                .flat_map(|word| word.to_be_bytes::<32>())
                .collect(),
            state: precompiles(),
        };
        let (_, output) = case.run(ECRECOVER);
        if output.output.len() == 32 {
            return case;
        }
        words[2] += U256::from(1);
    }
}

fn sha256() -> Case {
    Case {
        work: "SHA256 of 8 KiB".to_owned(),
        to: SHA256,
        input: vec![7; 8_192],
        state: precompiles(),
    }
}

/// Straight code, repeated.
fn code(work: &str, piece: &[u8], times: usize) -> Case {
    let to = Address::repeat_byte(0xCC);
    let mut state = precompiles();
    state.put(to, 1, U256::ZERO, Bytes::from(piece.repeat(times)));
    Case {
        work: work.to_owned(),
        to,
        input: Vec::new(),
        state,
    }
}

fn keccak() -> Case {
    // PUSH2 4096, PUSH0, KECCAK256, POP.
    code(
        "KECCAK256 of 4 KiB",
        &[0x61, 0x10, 0x00, 0x5f, 0x20, 0x50],
        200,
    )
}

fn multiply() -> Case {
    // PUSH1 3, PUSH1 2, MUL, POP.
    code(
        "PUSH1, PUSH1, MUL, POP",
        &[0x60, 3, 0x60, 2, 0x02, 0x50],
        3_000,
    )
}

fn precompiles() -> MemoryState {
    let mut state = MemoryState::default();
    for precompile in [POA_SCORE, POA_SHARES] {
        state.put(precompile, 1, U256::ZERO, Bytes::from_static(&[0]));
    }
    state
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// splitmix64.
fn random(mut state: u64) -> impl FnMut() -> u64 {
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
