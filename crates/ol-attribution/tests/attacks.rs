//! Goal: no attack of `docs/attribution.md` pays, and each would without what
//! stands against it.
//! Method: the benchmark `attacks` in small: adapters trained here on a few
//! records, everything that pays is the code that ships. What needs more
//! records to be seen is measured by the benchmark alone.

#![expect(clippy::unwrap_used, reason = "a test outside of `cfg(test)`")]

#[path = "../benches/attacks/copies.rs"]
mod copies;
#[path = "../benches/attacks/dealing.rs"]
mod dealing;
#[path = "../benches/truth/domain.rs"]
#[expect(dead_code, reason = "the setting of `truth`, of which a part is used")]
mod domain;
#[path = "../benches/attacks/identities.rs"]
mod identities;
#[path = "../benches/attacks/market.rs"]
mod market;
#[path = "../benches/attacks/passages.rs"]
mod passages;
#[path = "../benches/truth/plan.rs"]
#[expect(dead_code, reason = "as above")]
mod plan;
#[path = "../benches/attacks/report.rs"]
#[expect(dead_code, reason = "the table is the benchmark's")]
mod report;
#[path = "../benches/truth/retrain.rs"]
#[expect(dead_code, reason = "as above")]
mod retrain;
#[path = "../benches/truth/setting.rs"]
#[expect(dead_code, reason = "as above")]
mod setting;
#[path = "../benches/attacks/spam.rs"]
#[expect(dead_code, reason = "the other rows need more records to be seen")]
mod spam;

use std::path::Path;

use market::Market;
use report::Row;
use setting::Setting;

fn market() -> Market {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let setting = Setting {
        records: 48,
        cut: 40,
        epochs: 1,
        batch_tokens: 256,
        rank: 4,
        held_out: 12,
        own: 0,
        ..Setting::default()
    };
    Market::open(&root, setting, 1).unwrap()
}

/// What is against the attack stops it, and without that it pays.
#[track_caller]
fn check(rows: &[Row]) {
    assert!(!rows.is_empty());
    for row in rows {
        assert!(row.holds(), "{row:?}");
        assert!(row.can_fail(), "{row:?}");
    }
}

#[test]
fn copies_do_not_pay() {
    let rows = copies::exact(&market()).unwrap();
    let (of_others, of_own) = rows.split_first().unwrap();
    check(std::slice::from_ref(of_others));
    // Copies of one's own share their credit even where they are trained on.
    assert!(of_own.iter().all(Row::holds), "{of_own:?}");
}

#[test]
fn copies_of_which_some_words_are_changed_do_not_pay() {
    check(&copies::paraphrased(&market(), &[15]).unwrap());
}

#[test]
fn records_put_together_from_others_do_not_pay() {
    let rows = spam::recombined(&market()).unwrap();
    let (two_answers, others) = rows.split_last().unwrap();
    check(others);
    // So few records are paid little for two answers, but they are paid.
    assert!(
        two_answers.holds() && two_answers.with == 0.0,
        "{two_answers:?}"
    );
    assert!(two_answers.without > 0.0, "{two_answers:?}");
}

#[test]
fn many_identities_do_not_pay() {
    let rows = identities::identities(&market()).unwrap();
    let (of_market, others) = rows.split_first().unwrap();
    // So few records gain nothing from it, even without the null threshold.
    assert!(of_market.holds(), "{of_market:?}");
    check(others);
}

#[test]
fn quoting_does_not_pay() {
    check(&passages::passages(&market()).unwrap());
}

#[test]
fn own_questions_do_not_pay() {
    check(&dealing::self_dealing().unwrap());
}
