//! How many receipts a second come from questions to the chain, where neither the
//! model nor its sketches take time: through HTTP, the journal, the EVM and the
//! chain's disk. `cargo bench -p ol-server --bench settlement`.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a program that measures and reports"
)]

#[expect(dead_code, reason = "the tests use the rest")]
#[path = "../tests/it/support.rs"]
mod support;

use std::thread;
use std::time::{Duration, Instant};

use ol_server::gateway::GatewayOptions;
use serde_json::json;

use self::support::{Disk, OPERATOR};

const N: usize = 1_500;
const CLIENTS: usize = 16;

fn main() {
    if !std::env::args().any(|argument| argument == "--bench") {
        // `cargo test --benches` checks that it builds.
        return;
    }
    let disk = Disk::new();
    let options = GatewayOptions {
        // Receipts queue, as they do under overload.
        settle_wait: Duration::ZERO,
        ..disk.options()
    };
    let world = disk.start_as(OPERATOR, options, |_| support::engine().into());
    let before = world.node.head().header.number;
    let started = Instant::now();
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let world = &world;
            scope.spawn(move || {
                for number in (client..N).step_by(CLIENTS) {
                    let body = json!({
                        "model": "legal", "max_tokens": 1, "seed": number,
                        "messages": [{"role": "user", "content": "the law"}],
                    });
                    world.chat(&body);
                }
            });
        }
    });
    let answered_s = started.elapsed().as_secs_f64();
    while !disk.owed().is_empty() {
        thread::sleep(Duration::from_millis(2));
    }
    let settled_s = started.elapsed().as_secs_f64();
    let n_blocks = world.node.head().header.number - before;
    world.stop();
    let rate = |seconds: f64| (N as f64 / seconds * 10.0).round() / 10.0;
    let row = |work: &str, unit: &str, ours: f64| {
        json!({
            "work": work, "unit": unit, "ours": ours, "command": "cargo xtask bench receipts",
        })
    };
    let rows = [
        row(
            "answers of one token that are receipted, 200 records an index",
            "answers/s",
            rate(answered_s),
        ),
        row(
            "receipts settled, from the first question to the last settlement, each in a transaction of its own",
            "receipts/s",
            rate(settled_s),
        ),
        row(
            "receipts of a block",
            "receipts",
            (N as f64 / n_blocks as f64 * 10.0).round() / 10.0,
        ),
    ];
    println!("{:#}", serde_json::Value::from(rows.to_vec()));
}
