//! How the benchmarks of this crate report.

#![expect(clippy::print_stdout, reason = "a program that reports its figures")]

use serde_json::Value;

/// What writes `docs/benchmarks.md`.
pub(crate) const COMMAND: &str = "cargo xtask bench chain";

/// Prints a JSON list with `--json`, else a line for each row.
pub(crate) fn print(rows: Vec<Value>) {
    if std::env::args().any(|argument| argument == "--json") {
        println!("{:#}", Value::from(rows));
        return;
    }
    for row in rows {
        println!("{row}");
    }
}

/// The middle one.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}
