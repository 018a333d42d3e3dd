//! Whether a question finds its record.

use std::sync::Arc;

use ol_datanet::CommittedRecord;
use ol_retrieval::{CutRule, Embedder, Method, Retriever};
use ol_types::B256;

use crate::datanet::{Texts, commit};
use crate::{Machine, Rows, percent};

const TOP: [usize; 3] = [1, 4, 16];

const METHODS: [Method; 3] = [Method::Lexical, Method::Embedding, Method::Hybrid];

pub(crate) fn measure(
    name: &str,
    texts: &Texts,
    machine: &Machine,
    rows: &mut Rows,
) -> anyhow::Result<()> {
    // A record's own question stands in its first passage, so that it is found
    // is no news. Without the questions it has to be found by its answer.
    let blank = |committed: &CommittedRecord| ol_datanet::Record {
        question: String::new(),
        ..committed.record.clone()
    };
    let answers = commit(texts.pool.iter().map(blank).collect());
    let answers = retriever(name, &answers, machine)?;
    let own = texts.pool.iter().step_by(4);
    let own: Vec<Asked<'_>> = own
        .map(|committed| {
            let answer = committed.record.answer.clone();
            let is_own: Box<dyn Fn(&str) -> bool> =
                Box::new(move |text| text.trim_start() == answer.trim_start());
            (committed.record.question.as_str(), is_own)
        })
        .collect();
    report(
        &format!("{name}: own question, answers indexed"),
        &answers,
        &own,
        rows,
    )?;

    let whole = retriever(name, &texts.pool, machine)?;
    let known = |topic: &str| texts.pool.iter().any(|c| c.record.topic == topic);
    let held_out = texts.held_out.iter();
    let held_out: Vec<Asked<'_>> = held_out
        .filter(|record| !record.topic.is_empty() && known(&record.topic))
        .map(|record| {
            let of_topic: std::collections::BTreeSet<String> = texts
                .pool
                .iter()
                .filter(|c| c.record.topic == record.topic)
                .map(|c| ol_retrieval::record_text(&c.record))
                .collect();
            let is_of_topic: Box<dyn Fn(&str) -> bool> =
                Box::new(move |text| of_topic.contains(text));
            (record.question.as_str(), is_of_topic)
        })
        .collect();
    report(
        &format!("{name}: held-out question, a record of its topic"),
        &whole,
        &held_out,
        rows,
    )
}

type Asked<'a> = (&'a str, Box<dyn Fn(&str) -> bool>);

/// Parts of the questions for which one of the first passages is of a record
/// whose text is right.
fn report(
    setting: &str,
    retriever: &Retriever,
    asked: &[Asked<'_>],
    rows: &mut Rows,
) -> anyhow::Result<()> {
    for method in METHODS {
        let mut found = [0_usize; TOP.len()];
        for (question, is_right) in asked {
            let hits = retriever.search(question, TOP[TOP.len() - 1], method)?;
            let passages = hits
                .iter()
                .filter_map(|hit| retriever.passages().get(hit.passage));
            let rank = passages
                .map(|passage| &passage.source.text)
                .position(|text| is_right(text));
            for (found, top) in found.iter_mut().zip(TOP) {
                *found += usize::from(rank.is_some_and(|rank| rank < top));
            }
        }
        for (found, top) in found.into_iter().zip(TOP) {
            let work = format!("recall@{top}, {}: {setting}", method.name());
            rows.add(&work, "%", percent(found, asked.len()), asked.len());
        }
    }
    Ok(())
}

pub(crate) fn retriever(
    name: &str,
    records: &[CommittedRecord],
    machine: &Machine,
) -> anyhow::Result<Retriever> {
    let embedder = Embedder::of_language_model(
        Arc::clone(&machine.model),
        Arc::clone(&machine.tokenizer),
        crate::THREADS,
    );
    let retriever = Retriever::new(name, B256::ZERO, records, CutRule::default())?;
    Ok(retriever.with_embeddings(Arc::new(embedder), None, &mut |_| ())?)
}
