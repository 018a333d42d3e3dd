//! How long a soak goes on, and what it says at its end.

/// What a process may grow by for reasons of its allocator, in bytes.
const GROWTH_MAX_BYTES: u64 = 24 << 20;

/// The length that was asked for; `None` where `cargo test --benches` only
/// checks that it builds.
pub(crate) fn seconds() -> Option<u32> {
    let args: Vec<String> = std::env::args().collect();
    if !args.iter().any(|arg| arg == "--bench") {
        return None;
    }
    let at = args.iter().position(|arg| arg == "--seconds");
    Some(at.map_or(300, |at| args[at + 1].parse().unwrap()))
}

/// Memory in the second and in the last quarter of the time, in bytes, from
/// samples in order.
///
/// # Panics
/// If the process has grown.
pub(crate) fn quarters(samples: &[u64]) -> [u64; 2] {
    let quarter = samples.len() / 4;
    let early = median(&samples[quarter..2 * quarter]);
    let late = median(&samples[3 * quarter..]);
    assert!(
        late <= early + GROWTH_MAX_BYTES,
        "the process grew from {early} to {late} bytes"
    );
    [early, late]
}

fn median(samples: &[u64]) -> u64 {
    let mut samples = samples.to_vec();
    samples.sort_unstable();
    samples[samples.len() / 2]
}

/// Prints rows of work, unit and count, and the two of memory behind them.
///
/// # Panics
/// If there was none of something.
pub(crate) fn print(
    title: &str,
    command: &str,
    rows: &[(&str, &str, u64)],
    [early, late]: [u64; 2],
) {
    let memory = [
        ("memory in the second quarter", "bytes", early),
        ("memory in the last quarter", "bytes", late),
    ];
    let lines: Vec<String> = rows
        .iter()
        .chain(&memory)
        .map(|(work, unit, n)| {
            assert!(*n > 0, "the soak had none: {work}");
            format!(
                "{{\"work\": \"{title}: {work}\", \"unit\": \"{unit}\", \"ours\": {n}, \"command\": \"{command}\"}}"
            )
        })
        .collect();
    println!("[\n{}\n]", lines.join(",\n"));
}
