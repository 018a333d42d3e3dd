//! How results look to a person: money, tables, bars.

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;

/// Where a command writes its result: stdout, and in tests a buffer.
pub(crate) type Out<'a> = &'a mut dyn Write;

/// `1234500000000000000` wei as `1.2345`, exactly.
pub(crate) fn open(wei: u128) -> String {
    let whole = wei / ol_types::WEI_PER_OPEN;
    let fraction = format!("{:018}", wei % ol_types::WEI_PER_OPEN);
    let fraction = fraction.trim_end_matches('0');
    if fraction.is_empty() {
        whole.to_string()
    } else {
        format!("{whole}.{fraction}")
    }
}

/// `1.25` OPEN in wei, exactly.
///
/// # Errors
/// If it is no decimal number of at most 18 places, or too large.
pub(crate) fn wei_of(open: &str) -> anyhow::Result<u128> {
    let (whole, fraction) = open.split_once('.').unwrap_or((open, ""));
    if fraction.len() > 18 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        bail!("{open:?} is no amount of OPEN, as 1.25");
    }
    let whole: u128 = whole
        .parse()
        .with_context(|| format!("{open:?} is no amount of OPEN, as 1.25"))?;
    let fraction: u128 = format!("{fraction:0<18}").parse()?;
    whole
        .checked_mul(ol_types::WEI_PER_OPEN)
        .and_then(|wei| wei.checked_add(fraction))
        .context("the amount is too large")
}

/// A decimal string of wei in a JSON answer, as OPEN; `?` where there is none.
pub(crate) fn open_of(value: &Value) -> String {
    let wei = value.as_str().and_then(|digits| digits.parse().ok());
    wei.map_or_else(|| "?".to_owned(), open)
}

/// Parts per billion of a JSON answer as a percentage with one decimal.
pub(crate) fn percent_of(value: &Value) -> String {
    let ppb = value
        .as_u64()
        .or_else(|| value.as_str()?.parse().ok())
        .unwrap_or(0);
    format!("{}.{} %", ppb / 10_000_000, ppb / 1_000_000 % 10)
}

/// A bar for work of known length, drawn on stderr where that is a terminal.
pub(crate) fn bar(total: u64, what: &str) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{prefix:<28} {bar:30} {pos:>6}/{len} {msg} eta {eta}")
            .expect("a fixed template");
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(4));
    bar.set_style(style);
    bar.set_prefix(what.to_owned());
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}

/// Tells a person what is going on, on stderr.
pub(crate) fn note(text: &str) {
    // A closed stderr is no reason to stop.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Prints a value as JSON, or what `text` writes for a person.
pub(crate) fn print(
    out: Out<'_>,
    json: bool,
    value: &Value,
    text: impl FnOnce(Out<'_>) -> std::io::Result<()>,
) -> anyhow::Result<()> {
    if json {
        writeln!(out, "{}", serde_json::to_string_pretty(value)?)?;
    } else {
        text(out)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wei_are_shown_exactly() {
        assert_eq!(open(0), "0");
        assert_eq!(open(1), "0.000000000000000001");
        assert_eq!(open(12_500_000_000_000_000_000), "12.5");
        assert_eq!(open(ol_types::OPEN_CAP_WEI), "1000000000");
    }

    #[test]
    fn amounts_are_read_exactly() {
        assert_eq!(wei_of("0").unwrap(), 0);
        assert_eq!(wei_of("1.25").unwrap(), ol_types::WEI_PER_OPEN * 5 / 4);
        assert_eq!(wei_of("0.000000000000000001").unwrap(), 1);
        for bad in ["", ".", "-1", "1.0000000000000000001", "1e3", "1.x"] {
            assert!(wei_of(bad).is_err(), "{bad}");
        }
    }
}
