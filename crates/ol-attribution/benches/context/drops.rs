//! Whether an answer loses most by the passage that it is from.

use std::time::Instant;

use ol_attribution::context::Answered;
use ol_attribution::self_query::{SelfQueryOptions, greedy_answer};
use ol_model::{ChatMessage, Lora, Role, TokenizerError};
use ol_retrieval::{CutRule, Method, Retriever, prompt};
use ol_types::B256;

use crate::datanet::Texts;
use crate::{Machine, Rows, assets, percent};

/// Tokens of an answer; with four passages they fit the context of 512.
const ANSWER_TOKENS_MAX: usize = 48;

const TOP_K: usize = 4;

const N_QUESTIONS: usize = 60;

/// What was found for one kind of answer.
#[derive(Default)]
struct Found {
    n: usize,
    n_source_first: usize,
    source: Vec<u32>,
    others: Vec<u32>,
    ms: Vec<f64>,
}

pub(crate) fn measure(
    name: &str,
    texts: &Texts,
    machine: &Machine,
    rows: &mut Rows,
) -> anyhow::Result<()> {
    let model = &*machine.model;
    let adapter = Lora::load(&assets().join("models").join(name), model.config())?;
    let retriever = Retriever::new(name, B256::ZERO, &texts.pool, CutRule::default())?;
    let (mut given, mut own) = (Found::default(), Found::default());
    let step = texts.pool.len() / N_QUESTIONS;
    for committed in texts.pool.iter().step_by(step.max(1)) {
        let question = &committed.record.question;
        let hits = retriever.search(question, TOP_K, Method::Lexical)?;
        let mut passages = Vec::new();
        for hit in hits {
            passages.extend(retriever.passages().get(hit.passage));
        }
        let is_source = |at: &usize| passages[*at].source.record == committed.record_hash;
        let Some(source) = (0..passages.len()).find(|at| is_source(at)) else {
            continue;
        };
        let prompt = |keep: &[bool]| -> Result<Vec<u32>, TokenizerError> {
            let texts = passages.iter().zip(keep);
            let texts: Vec<Option<&str>> = texts.map(|(p, keep)| keep.then_some(p.text)).collect();
            machine.tokenizer.chat(&[ChatMessage {
                role: Role::User,
                content: prompt::with_passages(question, &texts),
            }])
        };
        let full = prompt(&vec![true; passages.len()])?;
        if full.len() + ANSWER_TOKENS_MAX > model.config().max_position_embeddings {
            continue;
        }
        // The record's answer, as far as the passage has it.
        let text = passages[source].text;
        let answer = text.strip_prefix(question.as_str()).unwrap_or(text);
        let mut answer = machine.tokenizer.encode(answer.trim())?;
        answer.truncate(ANSWER_TOKENS_MAX);
        let options = SelfQueryOptions {
            answer_tokens_max: ANSWER_TOKENS_MAX,
            ..SelfQueryOptions::with_end(machine.tokenizer.end_id())
        };
        let drawn = greedy_answer(model, &machine.pool, &adapter, &full, &options)?;
        for (found, answer) in [(&mut given, &answer), (&mut own, &drawn)] {
            let answered = Answered {
                model,
                pool: &machine.pool,
                adapter: Some(&adapter),
                tokens: answer,
            };
            let started = Instant::now();
            let drops = answered.drops(passages.len(), &prompt)?;
            found.ms.push(started.elapsed().as_secs_f64() * 1e3);
            found.add(&drops, source);
        }
    }
    for (what, mut found) in [
        ("the record's answer", given),
        ("the model's greedy answer", own),
    ] {
        let n = found.n;
        let work = |what_of: &str| format!("{what_of}: {name}, {what}");
        rows.add(
            &work("the source's drop is the largest"),
            "%",
            percent(found.n_source_first, n),
            n,
        );
        rows.add(
            &work("drop of the source, median"),
            "milli-nats",
            quantile(&mut found.source, 50),
            n,
        );
        for q in [50, 90, 95] {
            let value = quantile(&mut found.others, q);
            rows.add(
                &work(&format!("drop of the other passages, {q} %")),
                "milli-nats",
                value,
                n,
            );
        }
        found.ms.sort_by(f64::total_cmp);
        let ms = found.ms.get(found.ms.len() / 2).copied().unwrap_or(0.0);
        rows.add(&work("drops of four passages, median time"), "ms", ms, n);
    }
    Ok(())
}

impl Found {
    fn add(&mut self, drops: &[u32], source: usize) {
        self.n += 1;
        let own = drops[source];
        let others = drops.iter().enumerate().filter(|(at, _)| *at != source);
        let others: Vec<u32> = others.map(|(_, drop)| *drop).collect();
        let is_first = own > 0 && others.iter().all(|drop| *drop < own);
        self.n_source_first += usize::from(is_first);
        self.source.push(own);
        self.others.extend(others);
    }
}

fn quantile(values: &mut [u32], of_hundred: usize) -> f64 {
    values.sort_unstable();
    let at = (values.len() * of_hundred / 100).min(values.len().saturating_sub(1));
    values.get(at).copied().map_or(0.0, f64::from)
}
