//! The acceptance measure on an adapter: does asking a record's question pay
//! the record's contributor the largest share?
//!
//! `xz -dc RECORDS.jsonl.xz | cargo run --release -p ol-attribution --example
//! self_query -- BASE_DIR ADAPTER_DIR [HELD_OUT.json] [DAMPING] [N_SAMPLES]`
//!
//! Records are lines with `contributor`, `question` and `answer`; `HELD_OUT.json`
//! lists the positions of those that were not trained on.
#![expect(clippy::print_stdout, reason = "a program that reports its figures")]

use std::collections::HashSet;
use std::error::Error;
use std::io::{BufRead, stdin};
use std::path::Path;

use ol_attribution::query::QuerySketcher;
use ol_attribution::record::{RecordInput, SketchOptions, sketch_records};
use ol_attribution::self_query::{SelfQueryOptions, evaluate_self_query};
use ol_model::{Llama, Lora, Pool, Tokenizer};
use ol_types::{Address, keccak256};

#[derive(serde::Deserialize)]
struct Record {
    contributor: String,
    question: String,
    answer: String,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [base, adapter, rest @ ..] = args.as_slice() else {
        return Err("arguments: BASE_DIR ADAPTER_DIR [HELD_OUT.json] [DAMPING] [N_SAMPLES]".into());
    };
    let model = Llama::load(Path::new(base))?;
    let tokenizer = Tokenizer::load(Path::new(base))?;
    let adapter = Lora::load(Path::new(adapter), model.config())?;
    let held_out: HashSet<usize> = match rest.first() {
        Some(path) => serde_json::from_slice(&std::fs::read(path)?)?,
        None => HashSet::new(),
    };
    let mut options = SketchOptions::default();
    if let Some(damping) = rest.get(1) {
        options.damping = damping.parse()?;
    }
    let mut sampling = SelfQueryOptions::with_end(tokenizer.end_id());
    if let Some(n_samples) = rest.get(2) {
        sampling.n_samples = n_samples.parse()?;
    }
    let records = read_records(&tokenizer, &held_out)?;
    println!("{} records", records.len());

    let pool = Pool::new(std::thread::available_parallelism()?.get());
    let sketches = sketch_records(&model, &pool, &adapter, &records, &options, &mut |p| {
        if p.tokens == p.tokens_total {
            println!("{} tokens differentiated", p.tokens);
        }
    })?;
    println!(
        "map {} bytes, {:.3} of the relative scores kept",
        sketches.map.size_bytes(),
        sketches.energy_kept
    );
    let sketcher = QuerySketcher::new(sketches.map, &model, &adapter)?;
    let index = &sketches.index;
    let report = evaluate_self_query(
        &model, &pool, &adapter, &sketcher, index, &records, &sampling,
    )?;
    println!("{report:#?}");
    Ok(())
}

/// The records on stdin, each text once: the first stands for its duplicates.
fn read_records(
    tokenizer: &Tokenizer,
    held_out: &HashSet<usize>,
) -> Result<Vec<RecordInput>, Box<dyn Error>> {
    let mut seen = HashSet::new();
    let mut records = Vec::new();
    for (position, line) in stdin().lock().lines().enumerate() {
        let line = line?;
        let record: Record = serde_json::from_str(&line)?;
        let text = format!("{}\n{}", record.question, record.answer);
        if held_out.contains(&position) || !seen.insert(text) {
            continue;
        }
        let (tokens, answer_start) = tokenizer.record(&record.question, &record.answer)?;
        records.push(RecordInput {
            tokens,
            answer_start,
            hash: keccak256(line.as_bytes()),
            contributor: Address::from_word(keccak256(record.contributor.as_bytes())),
            cluster: u32::try_from(position)?,
        });
    }
    Ok(records)
}
