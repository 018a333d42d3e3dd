//! Speed on a GPU: a model of the shape of Llama 3 8B with random weights in bf16.
//!
//! Prefill, decoding by batch, and decoding with 1 to 1,000 adapters (or as
//! `ADAPTERS` says) of rank 8 on queries and values. Without a GPU it says so and ends. `on-device.sh` runs the
//! golden tests on the device before, and PEFT after.
#![expect(clippy::print_stdout, reason = "a program that prints")]

use std::error::Error;

use ol_cuda::{DeviceInfo, Gpu, GpuModel, GpuModelOptions, Precision, devices};
use ol_model::{
    Draw, Executor, KvCache, KvPool, Lora, LoraConfig, Model, ModelConfig, PAGE_TOKENS, Projection,
    Segment,
};
use ol_runtime::{Clock, SystemClock};

/// Blocks of the model.
const LAYERS: usize = 32;

/// Tokens of a sequence before it decodes.
const CONTEXT: usize = 128;

/// Rows that decode together in the adapter sweep.
const ROWS: usize = 128;

/// Steps of a measurement, after two that warm up.
const STEPS: usize = 10;

/// Most adapters of the sweep.
const ADAPTERS_MAX: usize = 2000;

/// Pages of the KV cache, for the largest batch and the longest prompt.
const PAGES: usize = 4096;

type Measured<T> = Result<T, Box<dyn Error>>;

/// Llama 3 8B with one block, its embedding tied to its output layer: that of the
/// real one is not, which takes memory but no time.
fn shape() -> ModelConfig {
    ModelConfig {
        vocab_size: 128_256,
        hidden_size: 4096,
        intermediate_size: 14_336,
        num_hidden_layers: 1,
        num_attention_heads: 32,
        num_key_value_heads: 8,
        head_dim: 128,
        max_position_embeddings: 8192,
        ..ModelConfig::default_base()
    }
}

struct Bench {
    model: GpuModel<Gpu>,
    pool: KvPool,
    clock: SystemClock,
}

impl Bench {
    fn new(device: &DeviceInfo) -> Measured<Self> {
        let options = GpuModelOptions {
            precision: Precision::Bf16,
            kv_pages: PAGES,
            adapter_slots: ADAPTERS_MAX,
            adapter_bytes: 16 << 30,
            workspace_bytes: 0,
        };
        let base = Model::random(shape(), 1)?;
        let model = GpuModel::with_layers(Gpu::open(device.ordinal)?, &base, LAYERS, options)?;
        Ok(Self {
            pool: model.kv_pool(),
            model,
            clock: SystemClock::new(),
        })
    }

    /// Feeds `tokens` tokens to each sequence; draws the likeliest.
    fn pass(
        &mut self,
        caches: &mut [KvCache],
        tokens: usize,
        adapters: &[Option<&Lora>],
    ) -> Measured<()> {
        let tokens: Vec<u32> = (1000..2000).cycle().take(tokens).collect();
        let mut segments: Vec<Segment<'_>> = caches
            .iter_mut()
            .zip(adapters)
            .map(|(cache, adapter)| Segment {
                tokens: &tokens,
                cache,
                adapter: *adapter,
            })
            .collect();
        let draws = vec![Some(Draw::GREEDY); segments.len()];
        self.model.forward(&mut segments, &draws)?;
        Ok(())
    }

    fn caches(&self, n: usize) -> Vec<KvCache> {
        let cache = || KvCache::in_pool(&self.pool, 8192);
        (0..n).map(|_| cache()).collect()
    }

    /// Tokens a second of prefill.
    fn prefill(&mut self, sequences: usize, tokens: usize) -> Measured<f64> {
        let none = vec![None; sequences];
        let mut seconds = 0.0;
        for step in 0..4 {
            let mut caches = self.caches(sequences);
            let from = self.clock.monotonic_s();
            self.pass(&mut caches, tokens, &none)?;
            if step > 0 {
                seconds += self.clock.monotonic_s() - from;
            }
        }
        Ok(3.0 * (sequences * tokens) as f64 / seconds)
    }

    /// Tokens a second of decoding; rows take turns at the adapters.
    fn decode(&mut self, rows: usize, adapters: &[Lora]) -> Measured<f64> {
        let mut caches = self.caches(rows);
        let none = vec![None; rows];
        for part in caches.chunks_mut(8192 / CONTEXT) {
            self.pass(part, CONTEXT, &none)?;
        }
        // Every adapter is on the device before the clock starts.
        let n_warm = adapters.len().div_ceil(rows).max(2);
        let mut from = 0.0;
        for step in 0..n_warm + STEPS {
            if step == n_warm {
                from = self.clock.monotonic_s();
            }
            let choice: Vec<Option<&Lora>> = (0..rows)
                .map(|row| {
                    (!adapters.is_empty()).then(|| &adapters[(step * rows + row) % adapters.len()])
                })
                .collect();
            self.pass(&mut caches, 1, &choice)?;
        }
        Ok((rows * STEPS) as f64 / (self.clock.monotonic_s() - from))
    }
}

/// How many adapters the sweep has, ascending.
fn counts() -> Measured<Vec<usize>> {
    let said = std::env::var("ADAPTERS").unwrap_or_else(|_| "1 10 100 1000".to_owned());
    let mut counts = said
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<Vec<usize>, _>>()?;
    counts.sort_unstable();
    if counts.is_empty() || counts.iter().any(|n| !(1..=ADAPTERS_MAX).contains(n)) {
        return Err(format!("ADAPTERS: numbers from 1 to {ADAPTERS_MAX}").into());
    }
    Ok(counts)
}

fn measure(device: &DeviceInfo) -> Measured<()> {
    let counts = counts()?;
    println!(
        "{}, {} GiB, compute {}.{}: shape of Llama 3 8B, random weights, bf16",
        device.name,
        device.memory_bytes >> 30,
        device.capability.0,
        device.capability.1
    );
    let mut bench = Bench::new(device)?;
    println!("\n| prefill | tokens/s |\n|---|---|");
    for (sequences, tokens) in [(1, 512), (1, 2048), (8, 512)] {
        let speed = bench.prefill(sequences, tokens)?;
        println!("| {sequences} x {tokens} | {speed:.0} |");
    }
    println!("\n| decode, rows | tokens/s |\n|---|---|");
    for rows in [1, 16, 64, ROWS] {
        println!("| {rows} | {:.0} |", bench.decode(rows, &[])?);
    }
    let base = bench.decode(ROWS, &[])?;
    println!("\n| adapters, {ROWS} rows | tokens/s | of base only |\n|---|---|---|");
    let config = ModelConfig {
        num_hidden_layers: LAYERS,
        ..shape()
    };
    let lora = LoraConfig {
        target_modules: vec![Projection::Q, Projection::V],
        ..LoraConfig::all_linear(8)
    };
    let mut adapters = Vec::new();
    for n in counts {
        for seed in adapters.len()..n {
            adapters.push(Lora::init(&config, lora.clone(), seed as u64)?);
        }
        let speed = bench.decode(ROWS, &adapters)?;
        println!("| {n} | {speed:.0} | {:.2} |", speed / base);
    }
    println!("\n{:?}", bench.model.adapter_stats());
    println!("{} tokens of KV cache", PAGES * PAGE_TOKENS);
    Ok(())
}

fn main() -> Measured<()> {
    match devices() {
        Ok(found) if !found.is_empty() => measure(&found[0]),
        Ok(_) => {
            println!("no GPU, nothing is measured: there is a driver, but no device");
            Ok(())
        }
        Err(error) => {
            println!("nothing is measured: {error}");
            Ok(())
        }
    }
}
