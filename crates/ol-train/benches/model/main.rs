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
    Dtype, Format, KvCache, Labels, Lora, LoraConfig, Model, ModelConfig, Pool, Segment, Sequence,
    WeightFormat,
};
use ol_train::AdamW;
use peer::Peer;
use roofline::Roofline;

/// Names the Python in which the peers are installed.
const PYTHON: &str = "OPENLEDGER_BENCH_PYTHON";
const ROUNDS: usize = 7;
const RANK: usize = 8;
/// Ranks of the adapters in a batch, which take turns.
const RANKS: [(&str, &[usize]); 2] = [("r=8", &[RANK]), ("r=8 to 64", &[8, 16, 32, 64])];
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
        let mut peers = Peers::start(&dir);
        rows.extend(bench(name, "f32", &model, &mut peers, &wanted));
        let format = WeightFormat::Quantised(Format::Q4K);
        let model = Model::load_as(&Pool::new(1), &dir, format).expect("it was just written");
        rows.extend(bench(name, "Q4_K", &model, &mut peers, &wanted));
        drop(peers);
        // What is left behind is only a temporary file.
        let _ = std::fs::remove_dir_all(&dir);
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

/// What the matrix products of one token cost. Attention's own products and
/// the adapters' are not counted.
struct Costs {
    /// Multiply-adds of the queries, keys and values of one layer, and of the
    /// rest of it.
    inputs: usize,
    rest: usize,
    layers: usize,
    /// Multiply-adds of the output layer.
    head: usize,
    /// Bytes of all weights.
    size_bytes: usize,
}

impl Costs {
    /// The output layer is f32 in either format.
    fn new(c: &ModelConfig, format: &str) -> Self {
        let (h, q, kv) = (
            c.hidden_size,
            c.num_attention_heads * c.head_dim,
            c.num_key_value_heads * c.head_dim,
        );
        let (inputs, rest) = (h * (q + 2 * kv), h * q + 3 * h * c.intermediate_size);
        let (layers, head) = (c.num_hidden_layers, c.vocab_size * h);
        let weights = layers * (inputs + rest);
        // 144 bytes hold 256 weights.
        let stored = if format == "f32" {
            4 * weights
        } else {
            weights * 144 / 256
        };
        Self {
            inputs,
            rest,
            layers,
            head,
            size_bytes: stored + 4 * head,
        }
    }

    /// Multiply-adds a token of prompts of `length` tokens: the output layer,
    /// and in the last layer all but the inputs, see the last token alone.
    fn prefill(&self, length: usize) -> f64 {
        let all = self.layers * (self.inputs + self.rest) - self.rest;
        float(all) + float(self.rest + self.head) / float(length)
    }

    /// Multiply-adds a token of a training step: forward, and back to the
    /// inputs of all layers but the first. Base weights get no gradient.
    fn training(&self) -> f64 {
        float(2 * (self.layers * (self.inputs + self.rest) + self.head) - self.inputs)
    }
}

struct Peers {
    torch: Option<Peer>,
    llama_cpp: Option<Peer>,
}

impl Peers {
    fn start(dir: &Path) -> Self {
        Self {
            torch: Peer::start("model", PYTHON, "torch", dir),
            llama_cpp: Peer::start("model", PYTHON, "llama.cpp", dir),
        }
    }
}

fn bench(
    shape: &str,
    format: &str,
    model: &Model,
    peers: &mut Peers,
    wanted: &dyn Fn(&str) -> bool,
) -> Vec<serde_json::Value> {
    let mut rows = Vec::new();
    let is_f32 = format == "f32";
    let costs = Costs::new(model.config(), format);
    let load = format!("load 0 {}", format.to_uppercase());
    let mut is_loaded = false;
    for threads in [1, 2] {
        let mut bench = Bench {
            shape,
            format,
            threads,
            wanted,
            rows: &mut rows,
        };
        let (n, length) = PROMPTS;
        let (context, steps) = DECODE;
        let prefill_work = bench.work(&format!("prefill {n}x{length}"));
        let train_work = bench.work(&format!("LoRA training r={RANK}, all linear, {n}x{length}"));
        let decode_works = [1, 16].map(|rows| (rows, bench.work(&format!("decode, batch {rows}"))));
        let adapter_works = RANKS.map(|(what, ranks)| {
            (
                bench.work(&format!("decode, batch 16, 16 adapters {what}")),
                ranks,
            )
        });
        let decode_names = decode_works.iter().map(|(_, work)| work);
        let adapter_names = adapter_works.iter().map(|(work, _)| work);
        let mut works = decode_names
            .chain([&prefill_work, &train_work])
            .chain(adapter_names);
        let is_first = shape == "9M" && is_f32;
        if !is_first && !works.any(|work| wanted(work)) {
            continue;
        }
        if let (Some(peer), false) = (&mut peers.llama_cpp, is_loaded) {
            peer.ask(&load);
            is_loaded = true;
        }
        let pool = Pool::new(threads);
        let roofline = Roofline::measure(&pool, costs.size_bytes, peers.torch.as_mut());
        if is_f32 {
            bench.rows.extend(roofline.rows(wanted));
        }
        let mut torch = peers.torch.as_mut().filter(|_| is_f32);
        let mut llama_cpp = peers.llama_cpp.as_mut();
        let prompts = prompts(n, length, model.config().vocab_size);
        let order = format!("prefill {threads} {n} {length}");
        bench.race(
            &prefill_work,
            || prefill(&pool, model, &prompts),
            &mut [
                (torch.as_deref_mut(), order.clone()),
                (llama_cpp.as_deref_mut(), order),
            ],
            &|rate| {
                // Quantised weights are multiplied as integers.
                if is_f32 {
                    roofline.of_gemm(2.0 * costs.prefill(length) * rate)
                } else {
                    String::new()
                }
            },
        );
        for (rows, work) in &decode_works {
            let order = format!("decode {threads} {rows} {context} {steps}");
            bench.race(
                work,
                || decode(&pool, model, *rows, &[]),
                &mut [
                    (llama_cpp.as_deref_mut(), order.clone()),
                    (torch.as_deref_mut(), order),
                ],
                &|rate| roofline.of_memory(float(costs.size_bytes) * rate / float(*rows)),
            );
        }
        if !is_f32 {
            continue;
        }
        for (work, ranks) in &adapter_works {
            bench.adapters(work, ranks, &pool, model);
        }
        if threads == 1 {
            bench.memory(model);
        }
        let mut trainer = Trainer::new(model);
        bench.race(
            &train_work,
            || trainer.step(&pool, model),
            &mut [(torch, format!("train {threads} {n} {length} {RANK}"))],
            &|rate| roofline.of_gemm(2.0 * costs.training() * rate),
        );
    }
    rows
}

struct Bench<'a> {
    shape: &'a str,
    format: &'a str,
    threads: usize,
    wanted: &'a dyn Fn(&str) -> bool,
    rows: &'a mut Vec<serde_json::Value>,
}

impl Bench<'_> {
    /// What a row says was done.
    fn work(&self, what: &str) -> String {
        let threads = match self.threads {
            1 => "one thread".to_owned(),
            n => format!("{n} threads"),
        };
        format!(
            "{what}, {} parameters {}, {threads}",
            self.shape, self.format
        )
    }

    /// Runs ours and the peers in turn, so that all see the same state of the
    /// machine; the first round warms up. `ours` returns seconds and tokens.
    fn race(
        &mut self,
        work: &str,
        mut ours: impl FnMut() -> (f64, usize),
        peers: &mut [(Option<&mut Peer>, String)],
        roofline: &dyn Fn(f64) -> String,
    ) {
        if !(self.wanted)(work) {
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
                work,
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
    fn adapters(&mut self, work: &str, ranks: &[usize], pool: &Pool, model: &Model) {
        if !(self.wanted)(work) {
            return;
        }
        let adapters: Vec<Lora> = (0..16)
            .zip(ranks.iter().cycle())
            .map(|(seed, rank)| adapter(model, *rank, seed))
            .collect();
        let (mut ours, mut base) = (Vec::new(), Vec::new());
        for round in 0..=ROUNDS {
            let with = decode(pool, model, 16, &adapters);
            let without = decode(pool, model, 16, &[]);
            if round > 0 {
                ours.push(float(with.1) / with.0);
                base.push(float(without.1) / without.0);
            }
        }
        let row = row(work, "tokens/s", &ours, &base, "ours without adapters", "");
        eprintln!("{row}");
        self.rows.push(row);
    }

    /// Bytes that an adapter takes in memory against those of its file.
    fn memory(&mut self, model: &Model) {
        for rank in [RANK, 64] {
            let work = self.work(&format!("an adapter r={rank} in memory"));
            if !(self.wanted)(&work) {
                continue;
            }
            let (config, file) = adapter(model, rank, 0).to_bytes("bench");
            let held = Lora::from_bytes(&config, &file, model.config())
                .expect("it was just written")
                .resident_size_bytes();
            let sizes = [[float(held) / 1e3], [float(file.len()) / 1e3]];
            let row = row(&work, "kB", &sizes[0], &sizes[1], "its file", "");
            eprintln!("{row}");
            self.rows.push(row);
        }
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
        "rounds": ours.len(),
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

fn adapter(model: &Model, rank: usize, seed: u64) -> Lora {
    let mut lora =
        Lora::init(model.config(), LoraConfig::all_linear(rank), seed).expect("the rank is valid");
    // B is zero in a fresh adapter.
    let parameters: Vec<f32> = lora.to_parameters().iter().map(|p| p + 1e-3).collect();
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
