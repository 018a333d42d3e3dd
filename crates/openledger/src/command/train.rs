//! `openledger train`: a LoRA adapter on a datanet, with sketches.

use anyhow::ensure;
use ol_runtime::{DataDir, DirLock};
use serde_json::json;

use crate::assets;
use crate::cli::TrainArgs;
use crate::command::datanet;
use crate::factory::{Base, Recipe, train_model};
use crate::instance::Layout;
use crate::output::{Out, print};

pub(crate) fn run(
    layout: &Layout,
    args: &TrainArgs,
    json: bool,
    out: Out<'_>,
) -> anyhow::Result<()> {
    let data = DataDir::open_or_create(layout.root())?;
    // A running instance serves the folders below; it loads new ones when it starts.
    let _lock = DirLock::acquire(layout.root())?;
    let datanets = datanet::open(&data)?;
    assets::install_base(&layout.base())?;
    let base = Base::load(&layout.base(), args.threads)?;
    let recipe = Recipe {
        rank: args.rank,
        epochs: args.epochs,
        learning_rate: args.learning_rate,
        seed: args.seed,
    };
    ensure!(
        recipe.learning_rate > 0.0,
        "the learning rate must be above 0"
    );
    let name = args.name.as_deref().unwrap_or(&args.datanet);
    let dir = layout.model(name);
    let report = train_model(&base, &datanets, &args.datanet, name, &recipe, &dir)?;
    let value = json!({
        "name": name,
        "datanet": args.datanet,
        "folder": dir,
        "adapter_hash": report.adapter_hash,
        "steps": report.steps,
        "tokens": report.tokens,
        "held_out_before": report.held_out_before,
        "held_out_after": report.held_out_after,
    });
    print(out, json, &value, |out| {
        let fall = (1.0 - report.held_out_after / report.held_out_before) * 100.0;
        writeln!(
            out,
            "{name}: {} steps, {} tokens",
            report.steps, report.tokens
        )?;
        writeln!(
            out,
            "held-out loss {:.3} → {:.3} nats a token ({fall:.1} % lower than the base)",
            report.held_out_before, report.held_out_after
        )?;
        writeln!(
            out,
            "The model is in {}; `openledger up` registers and serves it.",
            dir.display()
        )
    })
}
