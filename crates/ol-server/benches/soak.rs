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

#[path = "../../ol-serve/benches/soak/report.rs"]
mod report;
#[path = "../tests/it/soak/world.rs"]
mod world;

fn main() {
    let Some(seconds) = report::seconds() else {
        return;
    };
    let counts = world::run(Length {
        n_exchanges: 0,
        seconds: f64::from(seconds),
    });
    let quarters = report::quarters(&counts.memory_bytes.lock().unwrap());
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
    ];
    let title = format!("soak through HTTP, {seconds} s");
    report::print(&title, &command, &rows, quarters);
}
