//! `openledger receipt`: show one, or recompute it from public data alone.

use std::collections::{BTreeMap, BTreeSet};

use alloy_primitives::hex;
use alloy_sol_types::SolEvent;
use anyhow::{Context, anyhow, bail, ensure};
use ol_contracts::address::{DATANET_REGISTRY, INFERENCE_SETTLEMENT, MODEL_REGISTRY, SKETCH_STORE};
use ol_contracts::bindings::ModelRegistry::{self, Params, VersionAdded};
use ol_contracts::bindings::{DatanetRegistry, SketchStore};
use ol_contracts::settlement::{Credit, PotCredits, Settlement};
use ol_poa::court::CommittedIndex;
use ol_poa::index::EntryView;
use ol_poa::{Index, K, Pot};
use ol_server::evidence::{Gathered, Shown};
use ol_server::verify::{
    ClaimedReceipt, Difference, Evidence, Payout, is_made_by, verify, verify_claim,
};
use ol_spans::SpanIndex;
use ol_train::TrainingManifest;
use ol_types::{B256, RECEIPT_SIZE_BYTES, Receipt, name_id};
use serde_json::{Value, json};

use crate::chain::Chain;
use crate::cli::ReceiptCommand;
use crate::command::ask::show_payment;
use crate::command::claims::{self, Charged};
use crate::command::rerun::{passage_texts, rerun};
use crate::instance::Layout;
use crate::output::{Out, open, print};
use crate::rpc::Rpc;
use crate::spans::Spans;

/// Largest training manifest, in bytes.
const MANIFEST_SIZE_BYTES_MAX: u64 = 1 << 20;

/// Most versions of a model looked through for the one that answered.
const VERSIONS_MAX: usize = 1_000;

pub(crate) fn run(
    layout: &Layout,
    command: &ReceiptCommand,
    json: bool,
    out: Out<'_>,
) -> anyhow::Result<()> {
    match command {
        ReceiptCommand::Show { id } => {
            let id = parse_id(id)?;
            let value = Chain::open(layout)?.receipt(id)?;
            print(out, json, &value, |out| {
                writeln!(
                    out,
                    "{}: {} tokens in, {} out, answered at Unix second {}",
                    value["model"].as_str().unwrap_or("?"),
                    value["tokens_in"],
                    value["tokens_out"],
                    value["answered_at"]
                )?;
                show_payment(&value, out).map_err(std::io::Error::other)
            })
        }
        ReceiptCommand::Verify(args) => {
            let id = parse_id(&args.id)?;
            let chain = Chain::open(layout)?;
            let found = collect(&chain, id)?;
            let payout = found.verify(id)?;
            found.verify_training(&chain)?;
            found.verify_passages(&chain)?;
            let question = args.question.as_deref();
            let answer = question
                .map(|question| {
                    rerun(
                        layout,
                        &found.receipt,
                        (&found.evidence, found.params.potsBps),
                        question,
                        args,
                    )
                })
                .transpose()
                .with_context(|| format!("receipt {id} does not match"))?;
            let value = json!({
                "id": id,
                "verdict": "match",
                "fee_wei": payout.fee_wei.to_string(),
                "n_contributors": payout.pot(Pot::Training).credits.len(),
                "pots": pots(&payout, &found.evidence.evidence),
                "n_records": found.index.entries().len(),
                "claim": found.charged.claim(),
                "answer": answer,
                "tx_hash": found.tx_hash,
                "block": found.block,
            });
            print(out, json, &value, |out| {
                writeln!(out, "match  receipt {id}")?;
                writeln!(
                    out,
                    "Recomputed from objects and chain: {} record scores, {} contributors, {} wei, block {}.",
                    found.index.entries().len(),
                    payout.pot(Pot::Training).credits.len(),
                    payout.fee_wei,
                    found.block
                )?;
                if let Charged::Claimed { state, .. } = &found.charged {
                    writeln!(out, "{}", state.words())?;
                }
                for pot in Pot::ALL {
                    let PotCredits {
                        amount_wei,
                        credits,
                    } = payout.pot(pot);
                    let (name, n) = (pot.name(), credits.len());
                    write!(
                        out,
                        "  {name:<10}{:>24} OPEN  {n} contributors",
                        open(*amount_wei)
                    )?;
                    match total_of(pot, &found.evidence.evidence) {
                        Some(total) if total > 0 => {
                            let weight = weight_of(credits);
                            let per_mille = weight * 1_000 / u128::from(total);
                            writeln!(
                                out,
                                ", {}.{} % of the pot earned",
                                per_mille / 10,
                                per_mille % 10
                            )
                        }
                        _ => writeln!(out),
                    }?;
                }
                match &answer {
                    Some(answer) => {
                        writeln!(out, "Answered again, to the same query sketch: {answer}")
                    }
                    None => writeln!(
                        out,
                        "The answer itself was not computed again; who knows the question can, with --question."
                    ),
                }
            })
        }
    }
}

/// What a pot's weights would add up to if all of it were earned; training always is.
fn total_of(pot: Pot, evidence: &ol_poa::Evidence) -> Option<u64> {
    match pot {
        Pot::Training => None,
        Pot::Spans => Some(evidence.spans().total),
        Pot::Context => Some(evidence.context().total),
    }
}

/// What a pot is shared by, all together.
fn weight_of(credits: &[Credit]) -> u128 {
    credits.iter().map(|credit| u128::from(credit.weight)).sum()
}

fn pots(payout: &Payout, evidence: &ol_poa::Evidence) -> Value {
    let pot = |pot: Pot| {
        let PotCredits {
            amount_wei,
            credits,
        } = payout.pot(pot);
        let mut view = json!({"paid_wei": amount_wei.to_string(), "n_contributors": credits.len()});
        if let Some(total) = total_of(pot, evidence) {
            view["weight"] = json!(weight_of(credits).to_string());
            view["total_weight"] = json!(total.to_string());
        }
        (pot.name().to_owned(), view)
    };
    Value::Object(Pot::ALL.into_iter().map(pot).collect())
}

/// Recomputes a receipt as `receipt verify` does: what differs, if anything.
///
/// # Errors
/// If something that it takes cannot be read.
pub(crate) fn recompute(chain: &Chain, id: B256) -> anyhow::Result<Result<(), String>> {
    let found = collect(chain, id)?;
    Ok(found
        .verify(id)
        .map(drop)
        .map_err(|error| error.to_string()))
}

/// The sketches of a model.
enum Sketches {
    OnChain(Index),
    Committed(CommittedIndex),
}

impl Sketches {
    fn entries(&self) -> impl ExactSizeIterator<Item = EntryView<'_>> {
        match self {
            Self::OnChain(index) => index.entries(),
            Self::Committed(index) => index.index().entries(),
        }
    }
}

/// What the public objects and the chain say about one receipt.
struct Found {
    bytes: Vec<u8>,
    receipt: Receipt,
    query: Vec<u8>,
    evidence: Gathered,
    /// The spans of the datanet that the model learned from, if they are paid for.
    spans: Option<SpanIndex>,
    datanets: Vec<String>,
    params: Params,
    index: Sketches,
    charged: Charged,
    tx_hash: B256,
    block: u64,
}

/// Reads everything about a receipt.
///
/// # Errors
/// If an object is missing or changed, or the chain never settled it.
fn collect(chain: &Chain, id: B256) -> anyhow::Result<Found> {
    let (rpc, objects) = (chain.rpc(), chain.objects()?);
    let stored = objects.get(id, RECEIPT_SIZE_BYTES as u64);
    let bytes = match stored {
        Err(ol_runtime::ObjectsError::NotFound { .. }) => bail!("there is no receipt {id} here"),
        stored => stored?.to_vec(),
    };
    let receipt = Receipt::decode(&bytes).with_context(|| format!("object {id} is no receipt"))?;
    let query = objects
        .get(receipt.query_hash, K as u64)
        .context("the query sketch")?
        .to_vec();
    let evidence = Gathered::load(&objects, receipt.evidence_hash).context("the evidence")?;
    let evidence = evidence.context("the evidence is none")?;
    let spans = if evidence.evidence.spans().weights.is_empty() {
        None
    } else {
        Some(find_spans(chain, &receipt)?)
    };
    let (charged, tx_hash, block) = match claims::find(rpc, id)? {
        Some((claimed, tx_hash, block)) => (claimed, tx_hash, block),
        None => {
            let (settled, tx_hash, block) = read_settlement(rpc, id)?;
            (Charged::Settled(Box::new(settled)), tx_hash, block)
        }
    };
    let (index, (params, datanets)) = match &charged {
        Charged::Settled(_) => (
            Sketches::OnChain(read_index(rpc, receipt.sketch_root)?),
            params_of(rpc, &receipt, block)?,
        ),
        Charged::Claimed { event, .. } => (
            Sketches::Committed(claims::read_index(chain, receipt.sketch_root)?),
            version_of(rpc, receipt.model_id, event.version)?,
        ),
    };
    Ok(Found {
        bytes,
        receipt,
        query,
        evidence,
        spans,
        datanets,
        params,
        index,
        charged,
        tx_hash,
        block,
    })
}

/// The index in which spans are found again; built if this folder has none.
fn find_spans(chain: &Chain, receipt: &Receipt) -> anyhow::Result<SpanIndex> {
    let manifest = read_manifest(chain, receipt)?;
    let spans = Spans::open(chain.layout())?;
    spans.of_model(&chain.datanets()?, &manifest)
}

fn read_manifest(chain: &Chain, receipt: &Receipt) -> anyhow::Result<TrainingManifest> {
    let bytes = chain
        .objects()?
        .get(receipt.manifest_hash, MANIFEST_SIZE_BYTES_MAX);
    Ok(TrainingManifest::from_bytes(
        &bytes.context("the training manifest")?,
    )?)
}

/// The version that the receipt was settled against, and its datanets: the
/// newest of that block with the receipt's hashes and price. One that came later
/// may differ in nothing but how it is paid.
fn params_of(
    rpc: &Rpc,
    receipt: &Receipt,
    settled_block: u64,
) -> anyhow::Result<(Params, Vec<String>)> {
    let id = receipt.model_id;
    let logs = rpc.logs(MODEL_REGISTRY, id)?;
    let versions: Vec<u64> = logs
        .iter()
        .filter(|found| found.block <= settled_block)
        .filter_map(|found| VersionAdded::decode_log(&found.log).ok())
        .map(|added| added.version)
        .collect();
    for &version in versions.iter().rev().take(VERSIONS_MAX) {
        let found = version_of(rpc, id, version)?;
        if is_made_by(receipt, &found.0) {
            return Ok(found);
        }
    }
    bail!("no version of model {id} on chain has the hashes and the price of the receipt")
}

/// A version of a model, with the names of its datanets.
fn version_of(rpc: &Rpc, id: B256, version: u64) -> anyhow::Result<(Params, Vec<String>)> {
    let call = ModelRegistry::versionOfCall { id, version };
    let params = rpc.call(MODEL_REGISTRY, &call)?;
    let names = params.datanetIds.iter();
    let names = names.map(|&id| rpc.call(DATANET_REGISTRY, &DatanetRegistry::nameOfCall { id }));
    let names = names.collect::<anyhow::Result<_>>()?;
    Ok((params, names))
}

fn read_index(rpc: &Rpc, root: B256) -> anyhow::Result<Index> {
    let found = rpc.call(SKETCH_STORE, &SketchStore::indexOfCall { root })?;
    let mut bytes = Vec::new();
    for account in found.chunks {
        let code = rpc.code(account)?;
        bytes.extend_from_slice(
            code.strip_prefix(&[0])
                .with_context(|| format!("{account} is no chunk"))?,
        );
    }
    Index::from_bytes(bytes).context("the sketch index on chain")
}

fn read_settlement(rpc: &Rpc, id: B256) -> anyhow::Result<(Settlement, B256, u64)> {
    let found = rpc.logs(INFERENCE_SETTLEMENT, id)?;
    let Some(first) = found.first() else {
        bail!("receipt {id} is not settled on chain")
    };
    let (tx_hash, block) = (first.tx_hash, first.block);
    let mut settled = Settlement::from_logs(found.iter().map(|found| &found.log))?;
    ensure!(
        settled.len() == 1,
        "receipt {id} has {} settlements on chain",
        settled.len()
    );
    Ok((settled.remove(0), tx_hash, block))
}

impl Found {
    /// Recomputes scores, shares and amounts and compares them with the chain's.
    fn verify(&self, id: B256) -> anyhow::Result<Payout> {
        let payout = match (&self.index, &self.charged) {
            (Sketches::OnChain(index), Charged::Settled(settled)) => {
                self.verify_settled(id, index, settled)
            }
            (Sketches::Committed(index), Charged::Claimed { event, .. }) => {
                verify_claim(&ClaimedReceipt {
                    id,
                    receipt: &self.bytes,
                    query: &self.query,
                    index,
                    params: &self.params,
                    claimed: event,
                })
            }
            _ => bail!("receipt {id} was charged in the other tier than its model's"),
        };
        payout.map_err(|difference| anyhow!("receipt {id} does not match: {difference}"))
    }

    fn verify_settled(
        &self,
        id: B256,
        index: &Index,
        settled: &Settlement,
    ) -> Result<Payout, Difference> {
        let chunks = index.chunks();
        verify(&Evidence {
            id,
            receipt: &self.bytes,
            query: &self.query,
            evidence: &self.evidence.evidence.to_bytes(),
            shown: &self.evidence.object,
            spans: self.spans.as_ref(),
            chunks: &chunks,
            params: &self.params,
            settled,
        })
    }

    /// Checks that the passages which are paid for are parts of records that own
    /// their cluster, in versions of datanets that are on chain.
    fn verify_passages(&self, chain: &Chain) -> anyhow::Result<()> {
        let object = &self.evidence.object;
        if object.is_empty() {
            return Ok(());
        }
        let shown = Shown::from_bytes(object).map_err(anyhow::Error::msg);
        let passages = shown.context("the evidence object")?.passages;
        passage_texts(chain.layout(), &passages)?;
        let versions: BTreeSet<B256> = passages.iter().map(|passage| passage.version).collect();
        let datanets = chain.datanets()?;
        for version in versions {
            let manifest = datanets.manifest(version)?;
            let call = DatanetRegistry::versionOfCall {
                id: name_id(&manifest.name),
                version: manifest.version,
            };
            let on_chain = chain.rpc().call(DATANET_REGISTRY, &call)?.manifestHash;
            ensure!(
                on_chain == version,
                "version {} of {} is {on_chain} on chain, the passages are of {version}",
                manifest.version,
                manifest.name
            );
        }
        Ok(())
    }

    /// Follows the hashes of the receipt to the records: the training manifest
    /// names base, adapter and datanet version, and each sketched record is in
    /// that version, paid to the address and owning the cluster it names there.
    fn verify_training(&self, chain: &Chain) -> anyhow::Result<()> {
        let manifest = read_manifest(chain, &self.receipt)?;
        ensure!(
            manifest.base == self.receipt.base_hash,
            "the training manifest names another base"
        );
        ensure!(
            manifest.adapter == self.receipt.adapter_hash,
            "the training manifest names another adapter"
        );
        let datanets = chain.datanets()?;
        let mut records = BTreeMap::new();
        for source in &manifest.datanets {
            ensure!(
                self.datanets.contains(&source.name),
                "{} is not registered for the model",
                source.name
            );
            let call = DatanetRegistry::versionOfCall {
                id: name_id(&source.name),
                version: source.version,
            };
            let on_chain = chain.rpc().call(DATANET_REGISTRY, &call)?.manifestHash;
            ensure!(
                on_chain == source.manifest,
                "version {} of {} is {on_chain} on chain, the training manifest says {}",
                source.version,
                source.name,
                source.manifest
            );
            for record in datanets.records(source.manifest)? {
                records.insert(
                    record.record_hash,
                    (record.contributor_address, record.cluster),
                );
            }
        }
        for entry in self.index.entries() {
            let owner = records.get(&entry.record());
            ensure!(
                owner == Some(&(entry.contributor(), entry.cluster())),
                "record {} is not in the datanet as the sketch index has it",
                entry.record()
            );
        }
        Ok(())
    }
}

/// Reads a 32-byte id from the command line.
fn parse_id(text: &str) -> anyhow::Result<B256> {
    hex::decode_to_array::<_, 32>(text)
        .map(B256::from)
        .with_context(|| format!("`{text}` is no id: 0x and 64 hexadecimal digits are expected"))
}
