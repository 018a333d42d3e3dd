//! `openledger self-query`: asks the questions of sampled training records and
//! counts how often the record's contributor earns the largest share.

use std::collections::BTreeSet;

use ol_attribution::query::QuerySketcher;
use ol_attribution::self_query::{SelfQueryOptions, evaluate_self_query};
use ol_datanet::{CommittedRecord, cluster_owners};
use ol_runtime::DataDir;
use serde_json::{Value, json};

use crate::cli::SelfQueryArgs;
use crate::command::datanet;
use crate::factory::{Base, TrainedModel, chosen_folders, record_inputs, records_of};
use crate::instance::Layout;
use crate::output::{Out, print};

pub(crate) fn run(
    layout: &Layout,
    args: &SelfQueryArgs,
    json: bool,
    out: Out<'_>,
) -> anyhow::Result<()> {
    let data = DataDir::open_or_create(layout.root())?;
    let datanets = datanet::open(&data)?;
    let folders = chosen_folders(layout, args.model.as_deref())?;
    let base = Base::load(&layout.base(), None)?;
    let mut rows = Vec::new();
    for folder in folders {
        let model = TrainedModel::load(&folder, &base.model)?;
        let records = records_of(&datanets, &model.manifest)?;
        let trained: BTreeSet<_> = model.index.entries().map(|entry| entry.record()).collect();
        let records: Vec<&CommittedRecord> = cluster_owners(&records)
            .into_iter()
            .filter(|record| trained.contains(&record.record_hash))
            .collect();
        let inputs = record_inputs(&base, &records)?;
        let (adapter, at) = (&model.adapter, &model.checkpoints);
        let sketcher = QuerySketcher::at(model.map, &base.model, adapter, at)?;
        let options = SelfQueryOptions {
            n_samples: args.samples,
            answer_tokens_max: args.max_tokens,
            seed: args.seed,
            end: base.tokenizer.end_id(),
        };
        let report = evaluate_self_query(
            &base.model,
            &base.pool,
            &model.adapter,
            &sketcher,
            &model.index,
            &inputs,
            &options,
        )?;
        rows.push(json!({
            "model": model.description.name,
            "n_samples": report.n_samples,
            "n_contributors": report.n_contributors,
            "n_own_largest": report.n_own_largest,
            "n_own_record_largest": report.n_own_record_largest,
            "n_unpaid": report.n_unpaid,
            "own_share_mean": report.own_share_mean,
            "own_share_by_count": report.own_share_by_count,
        }));
    }
    print(out, json, &Value::Array(rows.clone()), |out| {
        writeln!(
            out,
            "How often the contributor of a training record earns most when its question is asked:"
        )?;
        for row in &rows {
            writeln!(
                out,
                "{:<20} {} of {} ({} contributors); the record itself scores highest in {}",
                row["model"].as_str().unwrap_or_default(),
                row["n_own_largest"],
                row["n_samples"],
                row["n_contributors"],
                row["n_own_record_largest"]
            )?;
        }
        Ok(())
    })
}
