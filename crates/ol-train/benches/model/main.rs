//! Prefill, decode and LoRA training against transformers + PEFT and llama.cpp
//! on the same random weights, and how much of the machine each reaches.
//!
//! `cargo bench -p ol-train --bench model -- --json` prints a JSON list,
//! without `--json` a line for each row; a further argument keeps only the
//! works whose name contains it. The peers live in `peer.py`; one that is
//! not installed is named on stderr and its rows are left out.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program that reports its figures"
)]

mod peer;
mod roofline;

use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use ol_model::{
    Dtype, KvCache, Labels, Lora, LoraConfig, Model, ModelConfig, Pool, Segment, Sequence,
};
use ol_train::AdamW;
use peer::Peer;
use roofline::Roofline;

const ROUNDS: usize = 7;
const RANK: usize = 8;
/// Prompts of prefill and training, and their length.
const PROMPTS: (usize, usize) = (4, 128);
/// Tokens in the cache before decoding starts, and decode steps.
const DECODE: (usize, usize) = (32, 32);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let filter = arguments.iter().find(|a| !a.starts_with("--"));
    let wanted = |work: &str| filter.is_none_or(|f| work.contains(f.as_str()));
    let mut rows = Vec::new();
    for (name, config) in shapes() {
        let dir =
            std::env::temp_dir().join(format!("openledger-bench-{}-{name}", std::process::id()));
        let model = Model::random(config, 1).expect("the shape is valid");
        model
            .save(&dir, Dtype::F32)
            .expect("the temporary directory can be written");
        let found = bench(name, &model, &dir, &wanted);
        // What is left behind is only a temporary file.
        let _ = std::fs::remove_dir_all(&dir);
        rows.extend(found);
    }
    if arguments.iter().any(|a| a == "--json") {
        println!("{:#}", serde_json::Value::from(rows));
        return;
    }
    for row in rows {
        println!("{row}");
    }
}

/// A model that nearly fits the last-level cache, and one that lives in memory.
fn shapes() -> [(&'static str, ModelConfig); 2] {
    let small = ModelConfig {
        vocab_size: 8192,
        hidden_size: 256,
        intermediate_size: 768,
        num_hidden_layers: 6,
        num_attention_heads: 8,
        num_key_value_heads: 8,
        head_dim: 32,
        tie_word_embeddings: false,
        ..ModelConfig::default_base()
    };
    let large = ModelConfig {
        hidden_size: 1024,
        intermediate_size: 2816,
        num_hidden_layers: 8,
        num_attention_heads: 16,
        num_key_value_heads: 4,
        head_dim: 64,
        ..small.clone()
    };
    [("9M", small), ("107M", large)]
}

/// Multiply-adds a token of the matrix products, and the weights they read.
fn weights(c: &ModelConfig) -> f64 {
    let (h, q, kv) = (
        c.hidden_size,
        c.num_attention_heads * c.head_dim,
        c.num_key_value_heads * c.head_dim,
    );
    let layer = h * (2 * q + 2 * kv) + 3 * h * c.intermediate_size;
    float(c.num_hidden_layers * layer + c.vocab_size * h)
}

fn bench(
    shape: &str,
    model: &Model,
    dir: &Path,
    wanted: &dyn Fn(&str) -> bool,
) -> Vec<serde_json::Value> {
    let mut torch = Peer::start("torch", dir);
    let mut llama_cpp = Peer::start("llama.cpp", dir);
    if let Some(peer) = &mut llama_cpp {
        peer.ask("load 0 F32");
    }
    let mut rows = Vec::new();
    for threads in [1, 2] {
        let pool = Pool::new(threads);
        let mut bench = Bench {
            shape,
            threads,
            wanted,
            rows: &mut rows,
        };
        let roofline = Roofline::measure(&pool, torch.as_mut());
        if shape == "9M" {
            bench.rows.extend(roofline.rows(wanted));
        }
        let weights = weights(model.config());
        let (n, length) = PROMPTS;
        let prompts = prompts(n, length, model.config().vocab_size);
        bench.race(
            &format!("prefill {n}x{length}"),
            || prefill(&pool, model, &prompts),
            &mut [
                (torch.as_mut(), format!("prefill {threads} {n} {length}")),
                (
                    llama_cpp.as_mut(),
                    format!("prefill {threads} {n} {length}"),
                ),
            ],
            &|rate| roofline.of_gemm(2.0 * weights * rate),
        );
        let (context, steps) = DECODE;
        for rows in [1, 16] {
            bench.race(
                &format!("decode, batch {rows}"),
                || decode(&pool, model, rows, &[]),
                &mut [
                    (
                        llama_cpp.as_mut(),
                        format!("decode {threads} {rows} {context} {steps}"),
                    ),
                    (
                        torch.as_mut(),
                        format!("decode {threads} {rows} {context} {steps}"),
                    ),
                ],
                &|rate| roofline.of_memory(4.0 * weights * rate / float(rows)),
            );
        }
        bench.adapters(&pool, model);
        let mut trainer = Trainer::new(model);
        bench.race(
            &format!("LoRA training r={RANK}, all linear, {n}x{length}"),
            || trainer.step(&pool, model),
            &mut [(
                torch.as_mut(),
                format!("train {threads} {n} {length} {RANK}"),
            )],
            // Forward, and back to the inputs; base weights get no gradient.
            &|rate| roofline.of_gemm(4.0 * weights * rate),
        );
    }
    rows
}

struct Bench<'a> {
    shape: &'a str,
    threads: usize,
    wanted: &'a dyn Fn(&str) -> bool,
    rows: &'a mut Vec<serde_json::Value>,
}

impl Bench<'_> {
    /// Runs ours and the peers in turn, so that all see the same state of the
    /// machine; the first round warms up. `ours` returns seconds and tokens.
    fn race(
        &mut self,
        work: &str,
        mut ours: impl FnMut() -> (f64, usize),
        peers: &mut [(Option<&mut Peer>, String)],
        roofline: &dyn Fn(f64) -> String,
    ) {
        let threads = if self.threads == 1 {
            "one thread".to_owned()
        } else {
            format!("{} threads", self.threads)
        };
        let work = format!("{work}, {} parameters f32, {threads}", self.shape);
        if !(self.wanted)(&work) {
            return;
        }
        let mut our_rates = Vec::new();
        let mut peer_rates: Vec<Vec<f64>> = vec![Vec::new(); peers.len()];
        for round in 0..=ROUNDS {
            let (seconds, tokens) = ours();
            if round > 0 {
                our_rates.push(float(tokens) / seconds);
            }
            for ((peer, order), rates) in peers.iter_mut().zip(&mut peer_rates) {
                let Some(peer) = peer else { continue };
                let (seconds, tokens) = peer.ask(order);
                if round > 0 {
                    rates.push(tokens / seconds);
                }
            }
        }
        for ((peer, _), rates) in peers.iter().zip(peer_rates) {
            let Some(peer) = peer else { continue };
            let row = row(
                &work,
                "tokens/s",
                &our_rates,
                &rates,
                &peer.name,
                &roofline(median(&our_rates)),
            );
            eprintln!("{row}");
            self.rows.push(row);
        }
    }

    /// Decoding with another adapter in each row against the base alone.
    fn adapters(&mut self, pool: &Pool, model: &Model) {
        let work = format!(
            "decode, batch 16, 16 adapters r={RANK}, {} parameters f32, {} threads",
            self.shape, self.threads
        );
        if !(self.wanted)(&work) {
            return;
        }
        let adapters: Vec<Lora> = (0..16).map(|seed| adapter(model, seed)).collect();
        let (mut ours, mut base) = (Vec::new(), Vec::new());
        for round in 0..=ROUNDS {
            let with = decode(pool, model, 16, &adapters);
            let without = decode(pool, model, 16, &[]);
            if round > 0 {
                ours.push(float(with.1) / with.0);
                base.push(float(without.1) / without.0);
            }
        }
        let row = row(&work, "tokens/s", &ours, &base, "ours without adapters", "");
        eprintln!("{row}");
        self.rows.push(row);
    }
}

fn row(
    work: &str,
    unit: &str,
    ours: &[f64],
    peer: &[f64],
    peer_name: &str,
    roofline: &str,
) -> serde_json::Value {
    let spread = |x: &[f64]| {
        let (low, high) = x
            .iter()
            .fold((f64::MAX, 0.0_f64), |(l, h), &v| (l.min(v), h.max(v)));
        format!("{}–{}", rounded(low), rounded(high))
    };
    let spreads = [ours, peer].map(|x| {
        if x.is_empty() {
            String::new()
        } else {
            spread(x)
        }
    });
    // The ratio of each round, so that what slows the machine down slows both.
    let ratios: Vec<f64> = ours.iter().zip(peer).map(|(o, p)| o / p).collect();
    serde_json::json!({
        "work": work,
        "unit": unit,
        "ours": rounded(median(ours)),
        "peer": rounded(median(peer)),
        "peer_name": peer_name,
        "ratio": (median(&ratios) * 1e3).round() / 1e3,
        "rounds": ROUNDS,
        "spread": spreads.join(" / ").trim_end_matches(" / "),
        "roofline": roofline,
        "command": "cargo xtask bench model",
    })
}

fn prompts(rows: usize, length: usize, vocab: usize) -> Vec<Vec<u32>> {
    let token = |row: usize, i: usize| {
        u32::try_from((7 + 31 * row + 17 * i) % vocab).expect("a small vocabulary")
    };
    (0..rows)
        .map(|row| (0..length).map(|i| token(row, i)).collect())
        .collect()
}

fn feed(
    pool: &Pool,
    model: &Model,
    tokens: &[Vec<u32>],
    caches: &mut [KvCache],
    adapters: &[Lora],
) -> Vec<Vec<u32>> {
    let mut segments: Vec<Segment<'_>> = tokens
        .iter()
        .zip(caches)
        .enumerate()
        .map(|(i, (tokens, cache))| Segment {
            tokens,
            cache,
            adapter: adapters.get(i),
        })
        .collect();
    let logits = model.forward(pool, &mut segments).expect("the prompts fit");
    logits
        .chunks_exact(model.config().vocab_size)
        .map(|row| vec![best(row)])
        .collect()
}

fn best(logits: &[f32]) -> u32 {
    let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
    u32::try_from(best.unwrap_or(0)).expect("a small vocabulary")
}

fn caches(model: &Model, n: usize, capacity: usize) -> Vec<KvCache> {
    (0..n)
        .map(|_| KvCache::new(model.config(), capacity))
        .collect()
}

fn prefill(pool: &Pool, model: &Model, prompts: &[Vec<u32>]) -> (f64, usize) {
    let n: usize = prompts.iter().map(Vec::len).sum();
    let seconds = timed(|| {
        let mut caches = caches(model, prompts.len(), prompts[0].len());
        feed(pool, model, prompts, &mut caches, &[])
    });
    (seconds, n)
}

fn decode(pool: &Pool, model: &Model, rows: usize, adapters: &[Lora]) -> (f64, usize) {
    let (context, steps) = DECODE;
    let mut caches = caches(model, rows, context + steps);
    let prompts = prompts(rows, context, model.config().vocab_size);
    let mut last = feed(pool, model, &prompts, &mut caches, adapters);
    let seconds = timed(|| {
        for _ in 0..steps {
            last = feed(pool, model, &last, &mut caches, adapters);
        }
    });
    (seconds, rows * steps)
}

fn adapter(model: &Model, seed: u64) -> Lora {
    let mut lora =
        Lora::init(model.config(), LoraConfig::all_linear(RANK), seed).expect("the rank is valid");
    // B is zero in a fresh adapter.
    let parameters: Vec<f32> = lora.parameters().iter().map(|p| p + 1e-3).collect();
    lora.set_parameters(&parameters)
        .expect("the parameters fit");
    lora
}

/// A LoRA and its optimiser: one step is gradient, clipping, AdamW.
struct Trainer {
    lora: Lora,
    adam: AdamW,
    parameters: Vec<f32>,
    sequences: Vec<Sequence>,
}

impl Trainer {
    fn new(model: &Model) -> Self {
        let lora =
            Lora::init(model.config(), LoraConfig::all_linear(RANK), 3).expect("the rank is valid");
        let (n, length) = PROMPTS;
        let sequences = prompts(n, length + 1, model.config().vocab_size)
            .into_iter()
            .map(|tokens| Sequence {
                weights: vec![1.0; tokens.len()],
                tokens,
            })
            .collect();
        Self {
            adam: AdamW::new(lora.n_params(), 0.9, 0.999, 0.0),
            parameters: lora.parameters().to_vec(),
            lora,
            sequences,
        }
    }

    fn step(&mut self, pool: &Pool, model: &Model) -> (f64, usize) {
        let n: usize = self.sequences.iter().map(|s| s.tokens.len() - 1).sum();
        let seconds = timed(|| {
            let (_, mut gradient) = model
                .lora_gradient(pool, &self.lora, &self.sequences, Labels::Given)
                .expect("the sequences fit");
            let norm = gradient
                .iter()
                .map(|g| f64::from(*g) * f64::from(*g))
                .sum::<f64>()
                .sqrt()
                / float(n);
            #[expect(
                clippy::cast_possible_truncation,
                reason = "rounding is what is wanted"
            )]
            let factor = (1.0 / (float(n) * norm.max(1.0))) as f32;
            gradient.iter_mut().for_each(|g| *g *= factor);
            let decays = vec![false; gradient.len()];
            self.adam
                .step(&mut self.parameters, &gradient, &decays, 1e-3);
            self.lora
                .set_parameters(&self.parameters)
                .expect("training stays finite");
        });
        (seconds, n)
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a benchmark measures the machine's time"
)]
fn timed<T>(work: impl FnOnce() -> T) -> f64 {
    let start = Instant::now();
    black_box(work());
    start.elapsed().as_secs_f64()
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

fn rounded(x: f64) -> f64 {
    (x * 10.0).round() / 10.0
}

#[expect(clippy::cast_precision_loss, reason = "counts are small")]
fn float(n: usize) -> f64 {
    n as f64
}
