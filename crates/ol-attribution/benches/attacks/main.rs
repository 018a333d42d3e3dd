//! What attackers gain: copies, paraphrases, many identities, spam, outliers,
//! trigger words, quoted passages, own questions. Everything that pays is the
//! code that ships, on records of a shipped datanet and adapters of the shipped
//! base that are trained here; `docs/attribution.md` has the table.
//!
//! ```text
//! cargo bench -p ol-attribution --bench attacks [-- --json] [--threads N] [--only NAME]
//! ```
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program that reports its figures"
)]

mod copies;
mod dealing;
#[path = "../truth/domain.rs"]
#[expect(dead_code, reason = "the setting of `truth`, of which a part is used")]
mod domain;
mod identities;
mod market;
mod passages;
#[path = "../truth/plan.rs"]
#[expect(dead_code, reason = "as above")]
mod plan;
mod poison;
mod report;
#[path = "../truth/retrain.rs"]
#[expect(dead_code, reason = "as above")]
mod retrain;
#[path = "../truth/setting.rs"]
#[expect(dead_code, reason = "as above")]
mod setting;
mod spam;

use std::path::Path;

use anyhow::{Context as _, bail};
use ol_runtime::{Clock as _, SystemClock};

use market::Market;
use report::Row;
use setting::Setting;

/// Parts of the words that paraphrases change, in per cent.
const PARAPHRASED: [usize; 4] = [5, 15, 25, 40];

/// Plays attacks of one kind.
type Attack<'a> = &'a dyn Fn(&Market) -> anyhow::Result<Vec<Row>>;

fn main() -> anyhow::Result<()> {
    let (mut json, mut threads, mut only) = (false, 2, None);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().context("an argument needs a value");
        match argument.as_str() {
            // Added by `cargo bench`.
            "--bench" => {}
            "--json" => json = true,
            "--threads" => threads = value()?.parse()?,
            "--only" => only = Some(value()?),
            other => bail!("no argument `{other}`; there are --json, --threads N, --only NAME"),
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let clock = SystemClock::new();
    let started_s = clock.monotonic_s();
    let setting = Setting {
        records: 192,
        cut: 72,
        epochs: 2,
        batch_tokens: 512,
        held_out: 48,
        own: 0,
        ..Setting::default()
    };
    let market = Market::open(&root, setting, threads)?;
    let attacks: [(&str, Attack<'_>); 8] = [
        ("copies", &copies::exact),
        ("paraphrases", &|market| {
            copies::paraphrased(market, &PARAPHRASED)
        }),
        ("identities", &identities::identities),
        ("recombined", &spam::recombined),
        ("noise", &spam::noise),
        ("poison", &poison::poison),
        ("passages", &passages::passages),
        ("dealing", &|_| dealing::self_dealing()),
    ];
    let mut rows: Vec<Row> = Vec::new();
    for (name, attack) in attacks {
        if only.as_deref().is_none_or(|only| only == name) {
            rows.extend(attack(&market)?);
            eprintln!("{:.0} s: {name}", clock.monotonic_s() - started_s);
        }
    }

    if json {
        let rows: Vec<_> = rows.iter().map(Row::json).collect();
        println!("{:#}", serde_json::Value::Array(rows));
    } else {
        print!("{}", report::HEAD);
        rows.iter().for_each(|row| print!("{}", row.markdown()));
    }
    Ok(())
}
