//! `openledger datanet`: create, add, list, show, verify, index.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::sync::Arc;

use alloy_primitives::{Address, B256};
use alloy_signer_local::PrivateKeySigner;
use anyhow::Context;
use ol_datanet::{AddOptions, AddReport, Datanets, DuplicateRules, Summary};
use ol_runtime::DataDir;
use ol_server::gateway::Labels;
use serde_json::{Value, json};

use crate::cli::DatanetCommand;
use crate::instance::{Instance, Layout};
use crate::output::{Out, print};
use crate::registration;
use crate::rpc::Rpc;

mod spans;

/// Most rejected lines shown to a person; `--json` has them all.
const REJECTIONS_SHOWN_MAX: usize = 10;

pub(crate) fn run(
    layout: &Layout,
    command: &DatanetCommand,
    json: bool,
    out: Out<'_>,
) -> anyhow::Result<()> {
    let data = DataDir::open_or_create(layout.root())?;
    let datanets = open(&data)?;
    match command {
        DatanetCommand::Create { name } => {
            datanets.create(name)?;
            let published = publish(layout, &datanets, name)?;
            print(
                out,
                json,
                &json!({"name": name, "on_chain": published}),
                |out| {
                    writeln!(
                        out,
                        "Created {name}. Add records with `openledger datanet add {name} FILE`."
                    )
                },
            )
        }
        DatanetCommand::Add {
            name,
            file,
            near_duplicates,
            recombined_duplicates,
        } => {
            let options = AddOptions::new(&contributor_address).duplicates(DuplicateRules {
                near_percent: *near_duplicates,
                recombined: *recombined_duplicates,
            });
            let report = add(&datanets, name, file, &options)?;
            let published = publish(layout, &datanets, name)?;
            show_added(name, &report, published, json, out)
        }
        DatanetCommand::List => list(&datanets, json, out),
        DatanetCommand::Show { name } => show(&datanets.show(name)?, json, out),
        DatanetCommand::Spans(command) => spans::run(layout, &datanets, command, json, out),
        DatanetCommand::Verify { name } => verify(&datanets, name.as_deref(), json, out),
    }
}

/// The datanets of a data folder.
pub(crate) fn open(data: &DataDir) -> anyhow::Result<Datanets> {
    Ok(Datanets::open(
        data.objects()?,
        Arc::new(data.heads("datanets")?),
    ))
}

/// The names of all contributors and records.
pub(crate) fn labels(datanets: &Datanets) -> anyhow::Result<Labels> {
    let mut labels = Labels::default();
    for name in datanets.list()? {
        let Some(head) = datanets.head(&name)? else {
            continue;
        };
        for committed in datanets.records(head)? {
            labels.name_contributor(committed.contributor_address, &committed.record.contributor);
            if !committed.record.id.is_empty() {
                labels.name_record(committed.record_hash, &committed.record.id);
            }
        }
    }
    Ok(labels)
}

/// The account that a contributor known only by name is paid on: the one of
/// its development key.
///
/// # Panics
/// Never: a keccak256 value is a valid key but for about 2^-128 of them.
pub(crate) fn contributor_address(name: &str) -> Address {
    PrivateKeySigner::from_bytes(&ol_types::contributor_dev_key(name))
        .expect("a hash is a valid key")
        .address()
}

fn add(
    datanets: &Datanets,
    name: &str,
    file: &Path,
    options: &AddOptions<'_>,
) -> anyhow::Result<AddReport> {
    let input = File::open(file).with_context(|| format!("could not read {}", file.display()))?;
    Ok(datanets.add(name, BufReader::new(input), options)?)
}

/// Tells the chain of a running instance; later, `up` does.
fn publish(layout: &Layout, datanets: &Datanets, name: &str) -> anyhow::Result<bool> {
    let Ok(instance) = Instance::find(layout) else {
        return Ok(false);
    };
    registration::publish_datanet(&Rpc::new(&instance.rpc), datanets, name)?;
    Ok(true)
}

fn show_added(
    name: &str,
    report: &AddReport,
    published: bool,
    json: bool,
    out: Out<'_>,
) -> anyhow::Result<()> {
    let rejected: Vec<Value> = report
        .rejected
        .iter()
        .map(|rejection| {
            json!({
                "line": rejection.line,
                "code": rejection.reason.code(),
                "reason": rejection.reason.to_string(),
            })
        })
        .collect();
    let version = report.new_version.as_ref();
    let value = json!({
        "name": name,
        "version": version.map(|version| version.version),
        "manifest": version.map(|version| version.id),
        "root": version.map(|version| version.root),
        "accepted": report.accepted,
        "duplicates": report.duplicates,
        "repeated": report.repeated,
        "n_rejected": report.n_rejected,
        "rejected": rejected,
        "on_chain": published,
    });
    print(out, json, &value, |out| {
        match version {
            Some(version) => writeln!(
                out,
                "{name} version {}: {} records added ({} of them duplicates), {} in all",
                version.version, report.accepted, report.duplicates, version.n_records
            )?,
            None => writeln!(
                out,
                "{name}: nothing new ({} records are there already)",
                report.repeated
            )?,
        }
        for rejection in report.rejected.iter().take(REJECTIONS_SHOWN_MAX) {
            writeln!(out, "  rejected {rejection}")?;
        }
        let shown = report.rejected.len().min(REJECTIONS_SHOWN_MAX) as u64;
        if report.n_rejected > shown {
            writeln!(out, "  … and {} more lines", report.n_rejected - shown)?;
        }
        Ok(())
    })
}

fn list(datanets: &Datanets, json: bool, out: Out<'_>) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    for name in datanets.list()? {
        let manifest = datanets
            .head(&name)?
            .map(|id| datanets.manifest(id))
            .transpose()?;
        let (version, n_records, n_contributors, n_clusters, root) =
            manifest.map_or((0, 0, 0, 0, B256::ZERO), |manifest| {
                (
                    manifest.version,
                    manifest.n_records,
                    manifest.n_contributors,
                    manifest.n_clusters,
                    manifest.root,
                )
            });
        rows.push(json!({
            "name": name,
            "version": version,
            "n_records": n_records,
            "n_contributors": n_contributors,
            "n_clusters": n_clusters,
            "root": root,
        }));
    }
    print(out, json, &Value::Array(rows.clone()), |out| {
        writeln!(
            out,
            "{:<24}{:>8}{:>10}{:>14}{:>10}",
            "datanet", "version", "records", "contributors", "clusters"
        )?;
        for row in &rows {
            writeln!(
                out,
                "{:<24}{:>8}{:>10}{:>14}{:>10}",
                row["name"].as_str().unwrap_or_default(),
                row["version"].to_string(),
                row["n_records"].to_string(),
                row["n_contributors"].to_string(),
                row["n_clusters"].to_string()
            )?;
        }
        Ok(())
    })
}

fn show(summary: &Summary, json: bool, out: Out<'_>) -> anyhow::Result<()> {
    let versions: Vec<Value> = summary
        .versions
        .iter()
        .map(|version| {
            json!({
                "version": version.version,
                "manifest": version.id,
                "root": version.root,
                "n_records": version.n_records,
                "n_contributors": version.n_contributors,
                "n_clusters": version.n_clusters,
                "size_bytes": version.size_bytes,
            })
        })
        .collect();
    let contributors: Vec<Value> = summary
        .contributors
        .iter()
        .map(|(name, contributor)| {
            json!({
                "contributor": name,
                "address": contributor.address,
                "n_records": contributor.n_records,
                "n_clusters": contributor.n_clusters,
            })
        })
        .collect();
    let value = json!({
        "name": summary.name,
        "near_duplicates_percent": summary.duplicates.and_then(|rules| rules.near_percent),
        "recombined_duplicates": summary.duplicates.map(|rules| rules.recombined),
        "versions": versions,
        "contributors": contributors,
        "licenses": summary.licenses,
        "topics": summary.topics,
    });
    print(out, json, &value, |out| {
        writeln!(out, "{}", summary.name)?;
        if let Some(rules) = summary.duplicates {
            writeln!(out, "  duplicates: {rules}")?;
        }
        for version in &summary.versions {
            writeln!(
                out,
                "  version {:<4} {:>6} records  {:>5} contributors  {:>6} clusters  root {}",
                version.version,
                version.n_records,
                version.n_contributors,
                version.n_clusters,
                version.root
            )?;
        }
        for (license, count) in &summary.licenses {
            writeln!(out, "  licence {license}: {count} records")?;
        }
        for (name, contributor) in &summary.contributors {
            writeln!(
                out,
                "  {:<48}{:>6} records  {}",
                name, contributor.n_records, contributor.address
            )?;
        }
        Ok(())
    })
}

/// Recomputes everything; the first thing that differs is the error.
fn verify(datanets: &Datanets, name: Option<&str>, json: bool, out: Out<'_>) -> anyhow::Result<()> {
    let names = match name {
        Some(name) => vec![name.to_owned()],
        None => datanets.list()?,
    };
    let mut rows = Vec::new();
    for name in &names {
        let report = datanets
            .verify(name)
            .with_context(|| format!("{name} is not what it claims"))?;
        rows.push(json!({
            "name": name,
            "verdict": "match",
            "n_versions": report.n_versions,
            "n_records": report.n_records,
        }));
    }
    print(out, json, &Value::Array(rows.clone()), |out| {
        for row in &rows {
            let name = row["name"].as_str().unwrap_or_default();
            writeln!(
                out,
                "match  {name}: {} records in {} versions",
                row["n_records"], row["n_versions"]
            )?;
        }
        Ok(())
    })
}
