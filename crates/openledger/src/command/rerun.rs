//! Answering a question again, to check what the operator of a gateway says.
//!
//! The chain recomputes prices, splits, scores and shares; that the answer, and
//! so its query sketch, came from this prompt and this adapter is the operator's
//! word. The engine gives the same bits on every machine, so whoever knows the
//! question and the sampling can take the operator at it.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, ensure};
use ol_attribution::context::Answered;
use ol_attribution::query::QuerySketcher;
use ol_datanet::cluster_owners;
use ol_model::{ChatMessage, Role};
use ol_retrieval::prompt::with_passages;
use ol_retrieval::record_text;
use ol_runtime::DataDir;
use ol_serve::{AdapterRef, EngineHandle, EngineOptions, GenerateRequest, Sampling};
use ol_server::evidence::{Gathered, Passage, Shown, Sources, gather};
use ol_server::gateway::hash_tokens;
use ol_types::Receipt;

use crate::cli::VerifyArgs;
use crate::command::datanet;
use crate::factory::{Base, TrainedModel, model_folders};
use crate::instance::Layout;
use crate::spans::Spans;

/// Answers the question as the receipt's model does, and compares prompt, answer,
/// query sketch, spans and drops of passages with what the receipt commits to. Returns the answer.
///
/// # Errors
/// If the model is not in this folder, or anything differs, by name.
pub(crate) fn rerun(
    layout: &Layout,
    receipt: &Receipt,
    (gathered, pots_bps): (&Gathered, [u16; 3]),
    question: &str,
    args: &VerifyArgs,
) -> anyhow::Result<String> {
    let base = Base::load(&layout.base(), None)?;
    let model = find_model(layout, &base, receipt)?;
    let (base_model, tokenizer) = (Arc::new(base.model), Arc::new(base.tokenizer));
    let pool = base.pool;
    let shown = if gathered.object.is_empty() {
        Vec::new()
    } else {
        let shown = Shown::from_bytes(&gathered.object).map_err(anyhow::Error::msg);
        shown.context("the evidence object")?.passages
    };
    let texts = passage_texts(layout, &shown)?;
    let prompt = |keep: &[bool]| {
        let texts = texts.iter().zip(keep);
        let texts: Vec<Option<&str>> = texts.map(|(t, keep)| keep.then_some(t.as_str())).collect();
        tokenizer.chat(&[ChatMessage {
            role: Role::User,
            content: with_passages(question, &texts),
        }])
    };
    let prompt_tokens = prompt(&vec![true; texts.len()])?;
    let is_prompt = hash_tokens(&prompt_tokens) == receipt.prompt_hash;
    ensure!(
        is_prompt,
        "prompt differs: the receipt is for another question"
    );

    let n_threads = pool.threads();
    let adapter = Arc::new(model.adapter);
    let engine = EngineHandle::start(
        Arc::clone(&base_model),
        Arc::clone(&tokenizer),
        n_threads,
        EngineOptions::default(),
    )?;
    let answer = engine.submit(GenerateRequest {
        adapter: Some(AdapterRef::resident(Arc::clone(&adapter))),
        sampling: Sampling {
            temperature: args.temperature,
            top_p: args.top_p,
            seed: args.seed,
            ..Sampling::GREEDY
        },
        // An answer that ended before its limit ends there again.
        ..GenerateRequest::new(
            prompt_tokens.clone(),
            usize::try_from(receipt.tokens_out.max(1))?,
        )
    })?;
    let (text, completion) = answer.blocking_collect()?;
    engine.shutdown();
    let is_answer = hash_tokens(&completion.token_ids) == receipt.response_hash;
    ensure!(
        is_answer,
        "answer differs: model and sampling give {text:?}; were --temperature, --top-p and --seed the same?"
    );

    let sketcher = QuerySketcher::at(model.map, &base_model, &adapter, &model.checkpoints)?;
    let query = sketcher.sketch(
        &base_model,
        &pool,
        &adapter,
        &prompt_tokens,
        &completion.token_ids,
    )?;
    let (recomputed, found) = (query.hash(), receipt.query_hash);
    ensure!(
        recomputed == found,
        "query sketch differs: recomputed {recomputed}, found {found}"
    );
    let [_, spans_bps, _] = pots_bps;
    if spans_bps > 0 {
        let data = DataDir::open_or_create(layout.root())?;
        let spans = Spans::open(layout)?;
        let index = spans.of_model(&datanet::open(&data)?, &model.manifest)?;
        let sources = Sources {
            tokenizer: spans.tokenizer(),
            spans: Some(&index),
            passages: &[],
        };
        let again = gather(&completion.token_ids, &sources)?;
        let (recomputed, found) = (again.evidence.spans(), gathered.evidence.spans());
        ensure!(
            recomputed.weights == found.weights,
            "spans differ: recomputed {} contributors, found {}; the answer's words stand \
             elsewhere than the receipt pays for",
            recomputed.weights.len(),
            found.weights.len()
        );
        ensure!(
            recomputed.total == found.total,
            "total of spans differs: recomputed {} units for the whole answer, found {}",
            recomputed.total,
            found.total
        );
    }
    let answered = Answered {
        model: &base_model,
        pool: &pool,
        adapter: Some(&adapter),
        tokens: &completion.token_ids,
    };
    let drops = answered.drops(shown.len(), &prompt)?;
    for (passage, drop) in shown.iter().zip(drops) {
        let (record, found) = (passage.record, passage.drop_millinats);
        ensure!(
            drop == found,
            "drop of the passage of record {record} differs: recomputed {drop} milli-nats, found {found}"
        );
    }
    Ok(text)
}

/// What the passages of a receipt say, from the public records.
///
/// # Errors
/// If a record is not in the version of the datanet, belongs to somebody else
/// there, or has no such part.
pub(crate) fn passage_texts(layout: &Layout, passages: &[Passage]) -> anyhow::Result<Vec<String>> {
    let mut texts = Vec::with_capacity(passages.len());
    if passages.is_empty() {
        return Ok(texts);
    }
    let data = DataDir::open_or_create(layout.root())?;
    let datanets = datanet::open(&data)?;
    let mut versions = BTreeMap::new();
    for passage in passages {
        if !versions.contains_key(&passage.version) {
            ensure!(
                versions.len() < VERSIONS_MAX,
                "the passages are of more than {VERSIONS_MAX} versions of datanets"
            );
            versions.insert(passage.version, datanets.records(passage.version)?);
        }
        let owner = cluster_owners(&versions[&passage.version])
            .into_iter()
            .find(|owner| owner.record_hash == passage.record);
        let record = passage.record;
        let owner = owner.with_context(|| {
            format!(
                "record {record} owns no cluster in version {}",
                passage.version
            )
        })?;
        ensure!(
            (owner.contributor_address, owner.cluster) == (passage.contributor, passage.cluster),
            "record {record} is not its contributor's, or of another cluster, in version {}",
            passage.version
        );
        let text = record_text(&owner.record);
        let part = text.get(passage.start as usize..passage.end as usize);
        let part = part.with_context(|| {
            let (start, end) = (passage.start, passage.end);
            format!("record {record} has no text from byte {start} to {end}")
        })?;
        texts.push(part.to_owned());
    }
    Ok(texts)
}

/// Versions of datanets that the passages of one answer may be of.
const VERSIONS_MAX: usize = 8;

fn find_model(layout: &Layout, base: &Base, receipt: &Receipt) -> anyhow::Result<TrainedModel> {
    for folder in model_folders(&layout.models())? {
        let model = TrainedModel::load(&folder, &base.model)?;
        if model.description.adapter_hash == receipt.adapter_hash {
            return Ok(model);
        }
    }
    let adapter = receipt.adapter_hash;
    None.with_context(|| format!("the adapter {adapter} of the receipt is not in this folder"))
}
