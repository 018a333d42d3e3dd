//! `openledger datanet spans`: build, verify, query.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use alloy_primitives::{Address, B256};
use anyhow::{Context, bail, ensure};
use ol_datanet::Datanets;
use ol_server::evidence::{Gathered, Shown, ShownSpan, Sources, gather};
use ol_spans::{BuildOptions, SpanIndex};
use serde_json::{Value, json};

use crate::cli::{SpansCommand, SpansVersion};
use crate::instance::Layout;
use crate::output::{Out, print};
use crate::spans::Spans;

/// Largest text that is looked up, in bytes.
const TEXT_SIZE_BYTES_MAX: u64 = 1 << 20;

/// Most characters of a span that a person is shown; `--json` has them all.
const TEXT_SHOWN_MAX: usize = 72;

pub(super) fn run(
    layout: &Layout,
    datanets: &Datanets,
    command: &SpansCommand,
    json: bool,
    out: Out<'_>,
) -> anyhow::Result<()> {
    let spans = Spans::open(layout)?;
    match command {
        SpansCommand::Build {
            version,
            memory_mib,
        } => {
            let options = BuildOptions {
                memory_budget_bytes: usize::try_from(*memory_mib)? << 20,
            };
            let index = spans.build(datanets, version_of(datanets, version)?, &options)?;
            let value = describe(&version.name, &index);
            print(out, json, &value, |out| {
                writeln!(
                    out,
                    "{}: {} records, {} tokens in {} files, id {}",
                    version.name,
                    index.records().len(),
                    index.n_tokens(),
                    index.n_shards(),
                    index.id()
                )
            })
        }
        SpansCommand::Verify { version } => {
            let index = find(&spans, datanets, version)?;
            spans.store().verify(index.id())?;
            let mut value = describe(&version.name, &index);
            value["verdict"] = json!("match");
            print(out, json, &value, |out| {
                writeln!(out, "match  {}: {} tokens", version.name, index.n_tokens())
            })
        }
        SpansCommand::Query {
            version,
            text,
            file,
        } => {
            let text = match (text, file) {
                (Some(text), _) => text.clone(),
                (None, Some(file)) => read_text(file)?,
                (None, None) => bail!("give a text, or a file with --file"),
            };
            let index = find(&spans, datanets, version)?;
            let value = query(&spans, &index, &text, datanets)?;
            print(out, json, &value, |out| show(&value, out))
        }
    }
}

/// Id of the manifest of the version that is meant.
fn version_of(datanets: &Datanets, version: &SpansVersion) -> anyhow::Result<B256> {
    let SpansVersion { name, version } = version;
    match version {
        Some(version) => Ok(datanets.version(name, *version)?),
        None => datanets.head(name)?.with_context(|| {
            format!(
                "datanet {name} has no records; add some with `openledger datanet add {name} FILE`"
            )
        }),
    }
}

fn find(spans: &Spans, datanets: &Datanets, version: &SpansVersion) -> anyhow::Result<SpanIndex> {
    let found = spans.find(version_of(datanets, version)?)?;
    found.with_context(|| {
        let name = &version.name;
        format!("there is no index of {name}; `openledger datanet spans build {name}` builds it")
    })
}

fn describe(name: &str, index: &SpanIndex) -> Value {
    json!({
        "name": name,
        "id": index.id(),
        "manifest": index.manifest(),
        "n_records": index.records().len(),
        "n_tokens": index.n_tokens(),
        "n_shards": index.n_shards(),
    })
}

fn read_text(path: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    let n_bytes = File::open(path)
        .and_then(|file| file.take(TEXT_SIZE_BYTES_MAX + 1).read_to_string(&mut text))
        .with_context(|| path.display().to_string())?;
    ensure!(
        n_bytes as u64 <= TEXT_SIZE_BYTES_MAX,
        "{} is larger than a mebibyte",
        path.display()
    );
    Ok(text)
}

/// The spans of a text, and who would be paid for it.
fn query(
    spans: &Spans,
    index: &SpanIndex,
    text: &str,
    datanets: &Datanets,
) -> anyhow::Result<Value> {
    let tokens = spans.tokenizer().encode(text)?;
    let sources = Sources {
        tokenizer: spans.tokenizer(),
        spans: Some(index),
        passages: &[],
    };
    let Gathered { evidence, object } = gather(&tokens, &sources)?;
    let records = datanets.records(index.manifest())?;
    let names: BTreeMap<Address, String> = records
        .into_iter()
        .map(|record| (record.contributor_address, record.record.contributor))
        .collect();
    let name = |address: Address| {
        let name = names.get(&address).cloned();
        name.unwrap_or_else(|| format!("{address:#x}"))
    };
    let mut found = Vec::new();
    if !object.is_empty() {
        let shown = Shown::from_bytes(&object).map_err(anyhow::Error::msg)?;
        let row = |span: &ShownSpan| {
            let words = shown.tokens(span);
            let holders = span.holders.iter().map(|holder| {
                json!({
                    "contributor": name(holder.contributor),
                    "address": holder.contributor,
                    "record": holder.record,
                    "cluster": holder.cluster,
                })
            });
            json!({
                "tokens": [span.start, span.start + span.len],
                "text_range": span.text,
                "text": words.map(|tokens| spans.tokenizer().decode(tokens)),
                "weight": span.units.to_string(),
                "since_version": span.since,
                "holders": holders.collect::<Vec<_>>(),
            })
        };
        let spans = shown.spans.iter().flat_map(|spans| &spans.found);
        found = spans.map(row).collect();
    }
    let earned = evidence.spans();
    let paid = earned.weights.iter().map(|&(address, weight)| {
        json!({
            "contributor": name(address),
            "address": address,
            "weight": weight.to_string(),
        })
    });
    Ok(json!({
        "n_tokens": tokens.len(),
        "total_weight": earned.total.to_string(),
        "contributors": paid.collect::<Vec<_>>(),
        "found": found,
    }))
}

fn show(value: &Value, out: Out<'_>) -> std::io::Result<()> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let found = list(&value["found"]);
    if found.is_empty() {
        return writeln!(
            out,
            "No run of these {} tokens stands in a record and says more than chance.",
            value["n_tokens"]
        );
    }
    for span in &found {
        let text = span["text"].as_str().unwrap_or_default();
        let words: String = text.chars().take(TEXT_SHOWN_MAX).collect();
        let (start, end) = (&span["tokens"][0], &span["tokens"][1]);
        let since = &span["since_version"];
        writeln!(
            out,
            "tokens {start}..{end}, since version {since}  {words:?}"
        )?;
        let holders = list(&span["holders"]);
        for holder in holders.iter().take(3) {
            let (who, record) = (&holder["contributor"], &holder["record"]);
            let texts = [who, record].map(|text| text.as_str().unwrap_or("?"));
            writeln!(out, "    {:<48} record {}", texts[0], texts[1])?;
        }
        if holders.len() > 3 {
            writeln!(out, "    … and {} more clusters", holders.len() - 3)?;
        }
    }
    Ok(())
}
