//! A LoRA adapter on a datanet, with sketches: a model that pays.

use anyhow::{Context as _, ensure};
use ol_runtime::{DataDir, DirLock};
use serde_json::json;

use crate::assets;
use crate::cli::JobArgs;
use crate::device::Device;
use crate::factory::{Base, Recipe, train_model};
use crate::instance::Layout;
use crate::output::{Out, print};

pub(super) fn run(layout: &Layout, args: &JobArgs, json: bool, out: Out<'_>) -> anyhow::Result<()> {
    let datanet = args.datanet.as_deref().context("no datanet is named")?;
    let recipe = recipe(args)?;
    let data = DataDir::open_or_create(layout.root())?;
    // A running instance serves the folders below; it loads new ones when it starts.
    let _lock = DirLock::acquire(layout.root())?;
    let datanets = crate::command::datanet::open(&data)?;
    assets::install_base(&layout.base())?;
    let base = Base::load(&layout.base(), args.worker.threads)?;
    let name = args.name.as_deref().unwrap_or(datanet);
    let dir = layout.model(name);
    let report = train_model(&base, &datanets, datanet, name, &recipe, &dir)?;
    let value = json!({
        "name": name,
        "datanet": datanet,
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

/// How it is trained; what a payable model has no choice in is refused.
fn recipe(args: &JobArgs) -> anyhow::Result<Recipe> {
    for (given, flag) in [
        (args.format.is_some(), "--format"),
        (args.method.is_some(), "--method"),
        (args.quantise.is_some(), "--quantise"),
        (args.alpha.is_some(), "--alpha"),
        (!args.target_modules.is_empty(), "--target-modules"),
        (args.steps.is_some(), "--steps"),
        (args.batch_tokens.is_some(), "--batch-tokens"),
        (!args.set.is_empty(), "--set"),
        (args.worker.runner.is_some(), "--runner"),
        (args.worker.device == Device::Cuda, "--device cuda"),
        (args.dry_run, "--dry-run"),
        (args.queue, "--queue"),
        (args.print_spec, "--print-spec"),
    ] {
        ensure!(
            !given,
            "{flag} is not for a payable model, which is trained on the shipped base as its \
             manifest says; add --base to train an adapter on the datanet's records instead"
        );
    }
    let shipped = Recipe::SHIPPED;
    let epochs = args.epochs.unwrap_or_else(|| shipped.epochs.into());
    ensure!(
        epochs.fract() == 0.0 && (1.0..=1000.0).contains(&epochs),
        "--epochs must be 1 to 1000, whole, for a payable model"
    );
    let recipe = Recipe {
        rank: args.rank.unwrap_or(shipped.rank),
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "checked above"
        )]
        epochs: epochs as u16,
        learning_rate: args.learning_rate.unwrap_or(shipped.learning_rate),
        seed: args.seed.unwrap_or(shipped.seed),
        pots_bps: args.pots.map(|pots| pots.0),
        tier: args.tier,
        checkpoints: args.checkpoints.unwrap_or(shipped.checkpoints),
        place: args.gradients_at.map_or(shipped.place, Into::into),
    };
    ensure!(
        recipe.learning_rate > 0.0,
        "the learning rate must be above 0"
    );
    Ok(recipe)
}
