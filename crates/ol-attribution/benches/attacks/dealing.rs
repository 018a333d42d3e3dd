//! Asking oneself, and being paid for it.

use crate::market::part_of;
use crate::report::{Measure, Row};

/// What an answer costs, in wei; odd, so that something is left over.
const FEE: u128 = 1_000_000_000_000_007;

/// Parts of the contributors' pot that the attacker holds, in per cent.
const PARTS: std::ops::RangeInclusive<u64> = 1..=99;

/// An attacker who pays for answers and has a part in each of the pots. What
/// comes back of a coin is the most over all parts.
pub(crate) fn self_dealing() -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (attack, others) in [
        ("contributor", [false, false]),
        ("contributor and owner of the model", [true, false]),
        ("contributor, owner and only staker", [true, true]),
    ] {
        let (mut with, mut without) = (0.0_f64, 0.0_f64);
        for part in PARTS {
            let [_, model, stakers, pot] = ol_poa::split_fee(FEE, ol_poa::DEFAULT_SPLIT_BPS)?;
            let own = ol_poa::shares(pot, &[part, 100 - part])?[0];
            let pots = [model, stakers].into_iter().zip(others);
            let more: u128 = pots.filter(|(_, is_own)| *is_own).map(|(pot, _)| pot).sum();
            with = with.max(part_of(own + more, FEE));
            // The same again for each answer, from nobody's fee.
            let emitted = ol_poa::shares(FEE, &[part, 100 - part])?[0];
            without = without.max(part_of(own + more + emitted, FEE));
        }
        rows.push(Row {
            attack: format!("own questions, {attack}, 1 to 99 % of the pot"),
            measure: Measure::Return,
            limit: 1.0,
            counter: "pay out of the fee alone",
            with,
            without,
        });
    }
    Ok(rows)
}
