//! Mixed traffic with faults through HTTP for a bounded time: `cargo bench -p
//! ol-server --bench soak -- --seconds 300`. What happens is in
//! `tests/it/soak/world.rs`; the process may not have grown since the second
//! quarter of the time.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a program that fails loudly"
)]

use std::sync::atomic::Ordering;

use self::world::Length;

#[path = "../tests/it/soak/world.rs"]
mod world;

/// What a process may grow by for reasons of its allocator, in bytes.
const GROWTH_MAX_BYTES: u64 = 24 << 20;

fn median(samples: &[u64]) -> u64 {
    let mut samples = samples.to_vec();
    samples.sort_unstable();
    samples[samples.len() / 2]
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if !args.iter().any(|arg| arg == "--bench") {
        // `cargo test --benches` checks that it builds.
        return;
    }
    let seconds = args.iter().position(|arg| arg == "--seconds");
    let seconds: u32 = seconds.map_or(300, |at| args[at + 1].parse().unwrap());
    let counts = world::run(Length {
        n_exchanges: 0,
        seconds: f64::from(seconds),
    });
    let samples = counts.memory_bytes.lock().unwrap();
    let quarter = samples.len() / 4;
    let early = median(&samples[quarter..2 * quarter]);
    let late = median(&samples[3 * quarter..]);
    assert!(
        late <= early + GROWTH_MAX_BYTES,
        "the process grew from {early} to {late} bytes"
    );
    eprintln!("{counts:?}");
    let n = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
    let command = format!("cargo bench -p ol-server --bench soak -- --seconds {seconds}");
    let rows = [
        (
            "answers that are what their requests get alone",
            "answers",
            n(&counts.answered),
        ),
        ("of them streams", "answers", n(&counts.streamed)),
        ("of them to slow clients", "answers", n(&counts.slow)),
        ("clients that left", "requests", n(&counts.left)),
        (
            "requests that stopped in their middle",
            "requests",
            n(&counts.half_sent),
        ),
        (
            "bodies that were too large",
            "requests",
            n(&counts.oversize),
        ),
        ("requests without sense", "requests", n(&counts.senseless)),
        ("requests that ran out of time", "requests", n(&counts.late)),
        (
            "requests refused as too many",
            "requests",
            n(&counts.overloaded),
        ),
        (
            "requests whose adapter was broken",
            "requests",
            n(&counts.broken),
        ),
        (
            "requests whose adapter was gone",
            "requests",
            n(&counts.unloaded),
        ),
        (
            "adapters replaced or unloaded",
            "calls",
            n(&counts.replaced),
        ),
        (
            "times that the store's folder refused writes",
            "times",
            n(&counts.sabotaged),
        ),
        ("memory in the second quarter", "bytes", early),
        ("memory in the last quarter", "bytes", late),
    ];
    let lines: Vec<String> = rows
        .iter()
        .map(|(work, unit, n)| {
            assert!(*n > 0, "the soak had none: {work}");
            format!(
                "{{\"work\": \"soak through HTTP, {seconds} s: {work}\", \"unit\": \"{unit}\", \"ours\": {n}, \"command\": \"{command}\"}}"
            )
        })
        .collect();
    println!("[\n{}\n]", lines.join(",\n"));
}
