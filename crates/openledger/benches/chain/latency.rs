//! How long a node takes to answer while it is busy with other people's
//! transactions.

use std::thread;
use std::time::{Duration, Instant};

use alloy_sol_types::{SolCall, sol};
use serde_json::{Value, json};

use crate::nodes::{Kind, Running};
use crate::rpc::{Connection, request};
use crate::work::{N_SENDERS, Work};
use crate::{median, send};

/// Transactions a second while the questions are asked.
const RATE: u32 = 500;

/// Connections that these transactions come over.
const N_CONNECTIONS: usize = 10;

/// From one question to the next.
const QUESTION_EVERY: Duration = Duration::from_millis(5);

const ROUNDS: usize = 3;

sol! {
    function balanceOf(address account) external view returns (uint256);
}

/// What is measured, in the order of the answers' lists.
const WORK: [&str; 5] = [
    "eth_getBalance",
    "eth_call (balanceOf)",
    "eth_getTransactionReceipt",
    "eth_getLogs (one account's transfers of a token, whole chain)",
    "eth_sendRawTransaction",
];

/// Rows of p50 and p99 for this node and anvil, both with a block a second.
pub(crate) fn rows(work: &Work, command: &str) -> Vec<Value> {
    let kinds = [Kind::OursInterval, Kind::AnvilInterval];
    let mut ours: [Vec<[f64; 2]>; WORK.len()] = Default::default();
    let mut peer = ours.clone();
    for round in 0..ROUNDS {
        let mut order = kinds;
        if round % 2 == 1 {
            order.reverse();
        }
        for kind in order {
            let lists = if kind == kinds[0] {
                &mut ours
            } else {
                &mut peer
            };
            for (list, mut times_ms) in lists.iter_mut().zip(measure(kind, work)) {
                times_ms.sort_by(f64::total_cmp);
                let at =
                    |share: usize| times_ms[(times_ms.len() * share / 100).min(times_ms.len() - 1)];
                list.push([at(50), at(99)]);
            }
        }
    }
    let mut rows = Vec::new();
    for (name, (ours, peer)) in WORK.iter().zip(ours.iter().zip(&peer)) {
        for (index, quantile) in ["p50", "p99"].iter().enumerate() {
            let of = |rounds: &[[f64; 2]]| {
                let mut values: Vec<f64> = rounds.iter().map(|round| round[index]).collect();
                values.sort_by(f64::total_cmp);
                values
            };
            let (ours, peer) = (of(ours), of(peer));
            let spread =
                |values: &[f64]| format!("{:.2}–{:.2}", values[0], values[values.len() - 1]);
            rows.push(json!({
                "work": format!("{name}, {quantile}, under {RATE} ERC-20 transfers a second, a block a second"),
                "unit": "ms",
                "ours": rounded(median(&ours)),
                "peer": rounded(median(&peer)),
                "peer_name": "anvil 1.7.1 --block-time 1",
                "ratio": rounded(median(&peer) / median(&ours)),
                "rounds": ROUNDS,
                "spread": format!("{} / {}", spread(&ours), spread(&peer)),
                "command": command,
            }));
        }
    }
    rows
}

/// Milliseconds from when each call was due until it was answered: a node that
/// falls behind does not look faster for being asked less.
#[expect(
    clippy::disallowed_methods,
    reason = "a benchmark measures the machine's time"
)]
fn measure(kind: Kind, work: &Work) -> [Vec<f64>; WORK.len()] {
    let node = Running::start(kind);
    send(&node, &work.setup, 1);
    send(&node, &work.transfers, 1);
    let n_sends = u32::try_from(work.tokens.raws.len()).expect("a load is small");
    let start = Instant::now() + Duration::from_millis(100);
    let end = start + Duration::from_secs(1) / RATE * n_sends;
    let mut times_ms: [Vec<f64>; WORK.len()] = Default::default();
    let [questions @ .., sends] = &mut times_ms;
    thread::scope(|scope| {
        let senders: Vec<_> = (0..N_CONNECTIONS)
            .map(|connection| {
                let node = &node;
                scope.spawn(move || send_at_rate(node, work, connection, start))
            })
            .collect();
        let mut connection = Connection::open(node.addr);
        let mut due = start;
        let mut n_asked = 0;
        while due < end {
            let which = n_asked % questions.len();
            let body = question(which, n_asked, work).to_string();
            wait_until(due);
            let answer = connection.post(body.as_bytes());
            assert!(
                !answer.windows(8).any(|part| part == b"\"error\":"),
                "{}",
                String::from_utf8_lossy(answer)
            );
            questions[which].push(ms_since(due));
            due += QUESTION_EVERY;
            n_asked += 1;
        }
        for sender in senders {
            sends.extend(sender.join().expect("a sender does not panic"));
        }
    });
    times_ms
}

/// Sends every `N_CONNECTIONS`-th sender's transactions when they are due.
fn send_at_rate(node: &Running, work: &Work, connection: usize, start: Instant) -> Vec<f64> {
    let mut link = Connection::open(node.addr);
    let mut times_ms = Vec::new();
    for (i, raw) in (0_u32..).zip(&work.tokens.raws) {
        if i as usize % N_SENDERS % N_CONNECTIONS != connection {
            continue;
        }
        let body = request(1, "eth_sendRawTransaction", &json!([raw])).to_string();
        let due = start + Duration::from_secs(1) / RATE * i;
        wait_until(due);
        link.post_batch(body.as_bytes(), 1);
        times_ms.push(ms_since(due));
    }
    times_ms
}

/// The `n`-th question.
fn question(which: usize, n: usize, work: &Work) -> Value {
    let account = work.senders[n % N_SENDERS];
    match which {
        0 => request(n, "eth_getBalance", &json!([account, "latest"])),
        1 => {
            let call = balanceOfCall { account };
            let input = alloy_primitives::hex::encode_prefixed(call.abi_encode());
            let call = json!({"to": work.token, "input": input});
            request(n, "eth_call", &json!([call, "latest"]))
        }
        2 => {
            let hashes = &work.transfers.hashes;
            let hash = hashes[n * 7919 % hashes.len()];
            request(n, "eth_getTransactionReceipt", &json!([hash]))
        }
        _ => {
            let transfer = alloy_primitives::keccak256("Transfer(address,address,uint256)");
            let filter = json!({
                "address": work.token,
                "fromBlock": "0x0",
                "topics": [transfer, account.into_word()],
            });
            request(n, "eth_getLogs", &json!([filter]))
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a benchmark measures the machine's time"
)]
fn wait_until(due: Instant) {
    thread::sleep(due.saturating_duration_since(Instant::now()));
}

fn ms_since(due: Instant) -> f64 {
    due.elapsed().as_secs_f64() * 1e3
}

fn rounded(x: f64) -> f64 {
    (x * 100.0).round() / 100.0
}
