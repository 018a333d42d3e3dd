//! Prints a digest of random cases from tokens to shares: small models and
//! adapters, gradients at them, at the mean of their checkpoints and at each of
//! those, fits, sketches, scores, nets and the parts of a pot; and sketches by a
//! map of two bits.
//!
//! `sketch-digest [CASES]` (default 1,000). Every kind of vector instructions of
//! this CPU computes all of it; they must agree, and so must every machine:
//! `cargo xtask test --nightly` compares this program on x86-64, and on AArch64
//! and RISC-V under emulation.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program")]

use std::convert::Infallible;
use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;

use ol_attribution::checkpoint::{Checkpoints, Place};
use ol_attribution::fit::{FitOptions, fit};
use ol_attribution::kronecker::Kronecker;
use ol_attribution::query::QuerySketcher;
use ol_attribution::record::{RecordInput, SketchOptions, sketch_records};
use ol_attribution::reduce::BlockShape;
use ol_attribution::rows::Rows;
use ol_attribution::scorer::{Instructions, Scorer};
use ol_model::{Family, Isa, Labels, Lora, LoraConfig, Model, ModelConfig, Pool, Random, Sequence};
use ol_types::{Address, B256, Keccak256};

/// Answers of each model.
const CASES_PER_MODEL: usize = 40;
const N_RECORDS: u32 = 10;
const VOCAB: usize = 24;
/// Adapted projections of an adapter whose map has two bits a number.
const WIDE_BLOCKS: usize = 33;
const POT_WEI: u128 = 1_000_000_000_000_000_007;

fn main() -> ExitCode {
    let n_cases = match std::env::args().nth(1).map(|cases| cases.parse()) {
        None => 1_000,
        Some(Ok(n_cases)) => n_cases,
        Some(Err(error)) => {
            eprintln!("usage: sketch-digest [CASES]: {error}");
            return ExitCode::from(2);
        }
    };
    let mut digests = Vec::new();
    for isa in Isa::available() {
        match digest(isa, n_cases) {
            Ok(digest) => {
                println!(
                    "{} {} {n_cases} cases {digest}",
                    std::env::consts::ARCH,
                    isa.name()
                );
                digests.push(digest);
            }
            Err(error) => {
                eprintln!("error: {}: {error}", isa.name());
                return ExitCode::FAILURE;
            }
        }
    }
    if digests.iter().any(|digest| *digest != digests[0]) {
        eprintln!("error: the instruction sets of this machine disagree");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn digest(isa: Isa, n_cases: usize) -> Result<B256, Box<dyn Error>> {
    let pool = Pool::with_isa(1, isa);
    let mut hasher = Keccak256::new();
    let mut left = n_cases;
    for seed in 0.. {
        if left == 0 {
            break;
        }
        let n_cases = left.min(CASES_PER_MODEL);
        add_model(&pool, seed, n_cases, &mut hasher)?;
        left -= n_cases;
    }
    add_wide(&mut hasher)?;
    Ok(hasher.finalize())
}

/// Sketches of gradients so long that their map has two bits for each number.
fn add_wide(hasher: &mut Keccak256) -> Result<(), Box<dyn Error>> {
    let block = BlockShape {
        rank: 16,
        d_in: 64,
        d_out: 64,
    };
    let blocks = [block; WIDE_BLOCKS];
    let d = WIDE_BLOCKS * block.rank * (block.d_in + block.d_out);
    let mut random = Random::new(7);
    let mut gradient = || -> Vec<f32> { (0..d).map(|_| random.normal()).collect() };
    let (mut records, mut samples) = (Rows::new(d), Rows::new(d));
    for _ in 0..6 {
        records.push(&gradient());
        samples.push(&gradient());
    }
    let SketchOptions {
        damping,
        seed,
        budget_bytes,
        ..
    } = SketchOptions::default();
    let curvature = Kronecker::fit(
        &blocks,
        &mut |visit| {
            samples.iter().for_each(visit);
            Ok::<_, Infallible>(())
        },
        budget_bytes,
        &mut |_| (),
    )?;
    let options = FitOptions {
        damping,
        seed,
        context: Vec::new(),
        budget_bytes,
    };
    let fitted = fit(
        &curvature,
        &mut records,
        &[0, 0, 1, 1, 2, 2],
        &options,
        &mut |_| (),
    )?;
    let map = fitted.map.to_bytes();
    if map.len() > d * ol_poa::K {
        return Err("the map of long gradients should have two bits a number".into());
    }
    hasher.update(map);
    for record in fitted.records {
        hasher.update(record.scale.to_le_bytes());
        record
            .codes
            .iter()
            .for_each(|code| hasher.update(code.to_le_bytes()));
    }
    hasher.update(fitted.map.sketch(&gradient())?.to_bytes());
    Ok(())
}

/// One model, its sketches, and what some answers pay.
fn add_model(
    pool: &Pool,
    seed: u64,
    n_cases: usize,
    hasher: &mut Keccak256,
) -> Result<(), Box<dyn Error>> {
    let mut random = Random::new(seed);
    let config = config(seed);
    let model = Model::random(config.clone(), seed)?;
    let mut adapter = Lora::init(&config, LoraConfig::all_linear(1 + random.below(2)), seed)?;
    // Both factors random, as if trained.
    let params = adapter.parameters().iter();
    let params: Vec<f32> = params.map(|p| p + 0.1 * random.normal()).collect();
    adapter.set_parameters(&params)?;

    let records: Vec<RecordInput> = (0..N_RECORDS)
        .map(|i| RecordInput {
            tokens: tokens(&mut random),
            answer_start: 3,
            hash: B256::left_padding_from(&i.to_be_bytes()),
            contributor: Address::left_padding_from(&(i % 4 + 1).to_be_bytes()),
            cluster: i,
        })
        .collect();
    let options = SketchOptions {
        checkpoints: checkpoints(&adapter, seed, &mut random)?,
        place: if seed % 3 == 2 {
            Place::Each
        } else {
            Place::Mean
        },
        side: 2,
        seed,
        ..SketchOptions::default()
    };
    let sketches = sketch_records(
        &model,
        pool,
        &adapter,
        &records,
        &options,
        None,
        &mut |_| (),
    )?;
    hasher.update(sketches.map.to_bytes());
    hasher.update(sketches.index.as_bytes());

    let sketcher = QuerySketcher::at(sketches.map, &model, &adapter, &options.checkpoints)?;
    let scorers = Instructions::available().into_iter().map(|instructions| {
        let entries = sketches.index.entries().map(|entry| entry.to_entry());
        Scorer::new(entries).map(|scorer| scorer.with_instructions(instructions))
    });
    let scorers = scorers.collect::<Result<Vec<Scorer>, _>>()?;
    for case in 0..n_cases {
        let tokens = tokens(&mut random);
        let (prompt, answer) = tokens.split_at(3);
        let query = sketcher.sketch(&model, pool, &adapter, prompt, answer)?;
        if case == 0 {
            let weights = sketcher.method().query_loss.weights(tokens.len(), 3);
            let sequence = Sequence { tokens, weights };
            let gradients = model.lora_gradients(pool, &adapter, &[sequence], Labels::Given)?;
            for gradient in gradients {
                hasher.update(gradient.loss.to_bits().to_le_bytes());
                for x in gradient.gradient {
                    hasher.update(x.to_bits().to_le_bytes());
                }
            }
        }
        hasher.update(query.to_bytes());
        let weights = sketches.index.weights(0, &query);
        for scorer in &scorers {
            if scorer.weights(pool, 0, &query) != weights {
                return Err("the scorer and the chain disagree".into());
            }
        }
        for score in sketches.index.scores(&query) {
            hasher.update(score.to_le_bytes());
        }
        let weights: Vec<u64> = weights.into_iter().map(|(_, weight)| weight).collect();
        for share in ol_poa::shares(POT_WEI, &weights).unwrap_or_default() {
            hasher.update(share.to_le_bytes());
        }
    }
    Ok(())
}

/// Of every third model none, of the others two on the way and the result.
fn checkpoints(
    adapter: &Lora,
    seed: u64,
    random: &mut Random,
) -> Result<Checkpoints, Box<dyn Error>> {
    let n_before = if seed.is_multiple_of(3) { 0 } else { 2 };
    let mut all = Vec::new();
    for _ in 0..n_before {
        let mut before = adapter.clone();
        let params = before.parameters().iter();
        let params: Vec<f32> = params.map(|p| p + 0.02 * random.normal()).collect();
        before.set_parameters(&params)?;
        all.push(Arc::new(before));
    }
    all.push(Arc::new(adapter.clone()));
    Ok(Checkpoints::new(all))
}

/// Small models of several kinds and odd sizes.
fn config(seed: u64) -> ModelConfig {
    let base = ModelConfig::default_base();
    let (heads, key_value_heads) = [(1, 1), (2, 1), (2, 2)][usize::from(seed.to_le_bytes()[0] % 3)];
    ModelConfig {
        family: if seed.is_multiple_of(2) {
            base.family
        } else {
            Family::Qwen3
        },
        vocab_size: VOCAB,
        hidden_size: 8 * heads,
        intermediate_size: 12,
        num_hidden_layers: 1,
        num_attention_heads: heads,
        num_key_value_heads: key_value_heads,
        head_dim: 8,
        max_position_embeddings: 16,
        ..base
    }
}

fn tokens(random: &mut Random) -> Vec<u32> {
    let n = 5 + random.below(3);
    let token = |_| u32::try_from(random.below(VOCAB)).expect("below the vocabulary");
    (0..n).map(token).collect()
}
