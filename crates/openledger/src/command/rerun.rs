//! Answering a question again, to check what the operator of a gateway says.
//!
//! The chain recomputes prices, splits, scores and shares; that the answer, and
//! so its query sketch, came from this prompt and this adapter is the operator's
//! word. The engine gives the same bits on every machine, so whoever knows the
//! question and the sampling can take the operator at it.

use std::sync::Arc;

use anyhow::{Context, ensure};
use ol_attribution::query::QuerySketcher;
use ol_model::{ChatMessage, Role};
use ol_poa::Evidence;
use ol_runtime::DataDir;
use ol_serve::{AdapterRef, EngineHandle, EngineOptions, GenerateRequest, Sampling};
use ol_server::evidence::{Sources, gather};
use ol_server::gateway::hash_tokens;
use ol_train::TrainingManifest;
use ol_types::Receipt;

use crate::cli::VerifyArgs;
use crate::command::datanet;
use crate::factory::{Base, TrainedModel, model_folders};
use crate::instance::Layout;
use crate::spans::Spans;

/// Answers the question as the receipt's model does, and compares prompt, answer
/// query sketch and spans with what the receipt commits to. Returns the answer.
///
/// # Errors
/// If the model is not in this folder, or anything differs, by name.
pub(crate) fn rerun(
    layout: &Layout,
    receipt: &Receipt,
    (evidence, pots_bps): (&Evidence, [u16; 3]),
    question: &str,
    args: &VerifyArgs,
) -> anyhow::Result<String> {
    let base = Base::load(&layout.base(), None)?;
    let model = find_model(layout, &base, receipt)?;
    let message = ChatMessage {
        role: Role::User,
        content: question.to_owned(),
    };
    let prompt_tokens = base.tokenizer.chat(&[message])?;
    let is_prompt = hash_tokens(&prompt_tokens) == receipt.prompt_hash;
    ensure!(
        is_prompt,
        "prompt differs: the receipt is for another question"
    );

    let n_threads = base.pool.threads();
    let (base_model, tokenizer) = (Arc::new(base.model), Arc::new(base.tokenizer));
    let adapter = Arc::new(model.adapter);
    let engine = EngineHandle::start(
        Arc::clone(&base_model),
        tokenizer,
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

    let sketcher = QuerySketcher::new(model.map, &base_model, &adapter)?;
    let query = sketcher.sketch(
        &base_model,
        &base.pool,
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
        let manifest = TrainingManifest::from_bytes(&model.manifest)?;
        let spans = Spans::open(layout)?;
        let index = spans.of_model(&datanet::open(&data)?, &manifest)?;
        let sources = Sources {
            tokenizer: spans.tokenizer(),
            spans: Some(&index),
            passages: &[],
        };
        let gathered = gather(&completion.token_ids, &sources)?;
        let (recomputed, found) = (gathered.evidence.spans(), evidence.spans());
        ensure!(
            recomputed == found,
            "spans differ: recomputed {} contributors, found {}; the answer's words stand \
             elsewhere than the receipt pays for",
            recomputed.len(),
            found.len()
        );
    }
    Ok(text)
}

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
