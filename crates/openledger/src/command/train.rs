//! `openledger train`: adapters from files as jobs, payable models from datanets.

mod jobs;
mod payable;
mod progress;
mod sources;
mod spec;

use crate::cli::{JobArgs, TrainArgs, TrainCommand};
use crate::instance::Layout;
use crate::output::Out;

pub(crate) fn run(
    layout: &Layout,
    args: &TrainArgs,
    json: bool,
    out: Out<'_>,
) -> anyhow::Result<()> {
    match &args.command {
        None if is_payable(args) => payable::run(layout, &args.job, json, out),
        None => {
            refuse_for_payable(&args.job)?;
            jobs::train(layout, &args.job, json, out)
        }
        Some(TrainCommand::Jobs) => jobs::list(layout, json, out),
        Some(TrainCommand::Show { id }) => jobs::show(layout, *id, json, out),
        Some(TrainCommand::Logs { id, follow }) => jobs::logs(layout, *id, *follow, json, out),
        Some(TrainCommand::Cancel { id }) => jobs::cancel(layout, *id, json, out),
        Some(TrainCommand::Resume { id, worker, queue }) => {
            jobs::resume(layout, *id, worker, *queue, json, out)
        }
        Some(TrainCommand::Work { worker }) => jobs::work(layout, worker, json, out),
        Some(TrainCommand::Run {
            spec,
            folder,
            threads,
            device,
        }) => jobs::run(layout, spec, folder, *threads, *device),
    }
}

/// Refuses what only a payable model has.
fn refuse_for_payable(job: &JobArgs) -> anyhow::Result<()> {
    for (given, flag) in [
        (job.pots.is_some(), "--pots"),
        (job.tier.is_some(), "--tier"),
        (job.checkpoints.is_some(), "--checkpoints"),
        (job.gradients_at.is_some(), "--gradients-at"),
    ] {
        anyhow::ensure!(
            !given,
            "{flag} is for a payable model: --datanet without --base, --spec or --out"
        );
    }
    Ok(())
}

/// A datanet alone: a model with sketches, which the gateway serves and pays for.
fn is_payable(args: &TrainArgs) -> bool {
    let job = &args.job;
    job.datanet.is_some() && job.base.is_none() && job.spec.is_none() && job.out.is_none()
}
