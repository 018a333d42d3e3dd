//! Forward and backward passes.

use std::path::Path;

use ol_cuda::{Backend, Gpu, GpuError, GpuModel, GpuModelOptions, GpuSegment, Precision, devices};
use ol_model::{
    KvCache, Labels, Lora, LoraConfig, Model, ModelConfig, Pool, Random, Segment, Sequence,
};

use crate::emulator::Emulator;

/// Longer than a tile of keys.
const LONG: usize = 150;

fn small() -> ModelConfig {
    ModelConfig {
        vocab_size: 97,
        hidden_size: 32,
        intermediate_size: 48,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 8,
        max_position_embeddings: 256,
        ..ModelConfig::default_base()
    }
}

fn options(precision: Precision) -> GpuModelOptions {
    GpuModelOptions {
        precision,
        kv_pages: 40,
        adapter_slots: 3,
    }
}

/// A model whose weights are large enough for every part to matter.
fn model(config: ModelConfig, seed: u64) -> Model {
    let mut params = Model::random(config.clone(), seed).unwrap().parameters();
    let mut random = Random::new(seed ^ 1);
    for p in &mut params {
        *p = if *p == 1.0 {
            1.0 + 0.2 * random.normal()
        } else {
            8.0 * *p + 0.02 * random.normal()
        };
    }
    Model::from_parameters(config, &params).unwrap()
}

fn adapter(config: &ModelConfig, rank: usize, seed: u64) -> Lora {
    let fresh = Lora::init(config, LoraConfig::all_linear(rank), seed).unwrap();
    let mut random = Random::new(seed);
    let params = fresh
        .parameters()
        .iter()
        .map(|p| p + 0.1 * random.normal())
        .collect();
    Lora::from_parameters(config, LoraConfig::all_linear(rank), params).unwrap()
}

fn tokens(n: usize, vocab: usize, seed: u64) -> Vec<u32> {
    let mut random = Random::new(seed);
    (0..n)
        .map(|_| u32::try_from(random.below(vocab)).unwrap())
        .collect()
}

fn close(ours: &[f32], cpu: &[f32], relative: f32, what: &str) {
    assert_eq!(ours.len(), cpu.len(), "{what}");
    let scale = cpu.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
    let worst = ours
        .iter()
        .zip(cpu)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0_f32, f32::max);
    assert!(
        worst <= relative * scale,
        "{what}: off by {worst}, largest value {scale}"
    );
}

/// Prefill in two parts, then single tokens, mixed adapters and ranks.
fn generation_agrees<B: Backend>(
    device: B,
    cpu: &Model,
    precision: Precision,
    longest: usize,
    near: f32,
) {
    let config = cpu.config().clone();
    let pool = Pool::new(1);
    let adapters = [adapter(&config, 4, 1), adapter(&config, 7, 2)];
    let mut gpu = GpuModel::new(device, cpu, options(precision)).unwrap();
    let slots = [
        Some(gpu.add_adapter(&adapters[0]).unwrap()),
        None,
        Some(gpu.add_adapter(&adapters[1]).unwrap()),
    ];
    let choice = [Some(&adapters[0]), None, Some(&adapters[1])];
    let room = longest.min(config.max_position_embeddings - 8);
    let prompts = [
        tokens(37.min(room), config.vocab_size, 3),
        tokens(5, config.vocab_size, 4),
        tokens(150.min(room), config.vocab_size, 5),
    ];
    let mut caches: Vec<KvCache> = (0..3).map(|_| KvCache::new(&config, 200)).collect();
    let mut sequences: Vec<_> = (0..3).map(|_| gpu.sequence()).collect();
    let mut rounds: Vec<Vec<Vec<u32>>> = vec![
        prompts.iter().map(|p| p[..p.len() / 2].to_vec()).collect(),
        prompts.iter().map(|p| p[p.len() / 2..].to_vec()).collect(),
    ];
    rounds.extend((0..4).map(|i| {
        (0..3)
            .map(|j| tokens(1, config.vocab_size, 50 + i * 3 + j))
            .collect()
    }));
    for (round, parts) in rounds.iter().enumerate() {
        let mut on_cpu: Vec<Segment<'_>> = parts
            .iter()
            .zip(&mut caches)
            .zip(choice)
            .map(|((tokens, cache), adapter)| Segment {
                tokens,
                cache,
                adapter,
            })
            .collect();
        let expected = cpu.forward(&pool, &mut on_cpu).unwrap();
        let mut on_gpu: Vec<GpuSegment<'_>> = parts
            .iter()
            .zip(&mut sequences)
            .zip(slots)
            .map(|((tokens, sequence), adapter)| GpuSegment {
                tokens,
                sequence,
                adapter,
            })
            .collect();
        let got = gpu.forward(&mut on_gpu).unwrap();
        close(&got, &expected, near, &format!("round {round}"));
    }
}

fn gradients_agree<B: Backend>(
    device: B,
    cpu: &Model,
    precision: Precision,
    longest: usize,
    near: f32,
) {
    let config = cpu.config().clone();
    let pool = Pool::new(1);
    let adapter = adapter(&config, 5, 6);
    let mut gpu = GpuModel::new(device, cpu, options(precision)).unwrap();
    let slot = gpu.add_adapter(&adapter).unwrap();
    let room = longest.min(config.max_position_embeddings);
    let sequences: Vec<Sequence> = [23, 1, 140.min(room), 9]
        .iter()
        .enumerate()
        .map(|(i, &n)| Sequence {
            tokens: tokens(n, config.vocab_size, 20 + i as u64),
            weights: (0..n).map(|t| if t % 3 == 0 { 0.0 } else { 1.0 }).collect(),
        })
        .collect();
    let (loss, expected) = cpu
        .lora_gradient(&pool, &adapter, &sequences, Labels::Given)
        .unwrap();
    let (got_loss, got) = gpu.lora_gradient(slot, &sequences).unwrap();
    assert!(
        (got_loss - loss).abs() <= f64::from(near) * loss,
        "{got_loss} against {loss}"
    );
    close(&got, &expected, 10.0 * near, "gradient");
    let losses = gpu.losses(Some(slot), &sequences).unwrap();
    assert!((losses.iter().sum::<f64>() - got_loss).abs() <= 1e-9 * loss);
    let alone = gpu.losses(None, &sequences[2..3]).unwrap();
    let base = cpu.losses(&pool, None, &sequences[2..3]).unwrap();
    assert!((alone[0] - base[0]).abs() <= f64::from(near) * base[0]);
}

#[test]
fn generation_agrees_with_the_cpu() {
    generation_agrees(Emulator, &model(small(), 7), Precision::F32, LONG, 1e-4);
}

#[test]
fn gradients_agree_with_the_cpu() {
    gradients_agree(Emulator, &model(small(), 7), Precision::F32, LONG, 1e-5);
}

/// Windows, biases, norms of heads, scaled rotations, wide heads: the models
/// whose CPU results are held to transformers' in `ol-model`.
#[test]
fn every_dense_family_agrees_with_the_cpu() {
    for name in ["llama3", "llama-yarn", "mistral", "qwen2", "qwen3"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../ol-model/fixtures/families")
            .join(name)
            .join("base");
        let cpu = Model::load(&folder).unwrap();
        generation_agrees(Emulator, &cpu, Precision::F32, 40, 1e-4);
        gradients_agree(Emulator, &cpu, Precision::F32, 40, 1e-4);
    }
}

#[test]
fn what_only_the_cpu_does_is_refused_by_name() {
    let families = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ol-model/fixtures/families");
    let latent = Model::load(&families.join("deepseek-v2/base")).unwrap();
    let error = GpuModel::new(Emulator, &latent, options(Precision::F32)).unwrap_err();
    assert!(error.to_string().contains("latent attention"), "{error}");
    let cpu = model(small(), 3);
    let mut gpu = GpuModel::new(Emulator, &cpu, options(Precision::F32)).unwrap();
    let dora = LoraConfig {
        use_dora: true,
        ..LoraConfig::all_linear(2)
    };
    let error = gpu
        .add_adapter(&cpu.fresh_adapter(&Pool::new(1), dora, 1).unwrap())
        .unwrap_err();
    assert!(error.to_string().contains("DoRA"), "{error}");
}

#[test]
fn bf16_stays_near() {
    generation_agrees(Emulator, &model(small(), 7), Precision::Bf16, 40, 0.05);
    gradients_agree(Emulator, &model(small(), 7), Precision::Bf16, 40, 0.02);
}

#[test]
fn greedy_tokens_are_the_largest_logits() {
    let config = small();
    let cpu = model(config.clone(), 3);
    let gpu = GpuModel::new(Emulator, &cpu, options(Precision::F32)).unwrap();
    let prompt = tokens(9, config.vocab_size, 1);
    let (mut one, mut two) = (gpu.sequence(), gpu.sequence());
    let segment = |sequence| GpuSegment {
        tokens: &prompt,
        sequence,
        adapter: None,
    };
    let logits = gpu.forward(&mut [segment(&mut one)]).unwrap();
    let best = (0..logits.len())
        .max_by(|a, b| logits[*a].total_cmp(&logits[*b]).then(b.cmp(a)))
        .unwrap();
    let greedy = gpu.forward_greedy(&mut [segment(&mut two)]).unwrap();
    assert_eq!(greedy, [u32::try_from(best).unwrap()]);
    assert_eq!((one.len(), two.len()), (9, 9));
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let config = small();
    let cpu = model(config.clone(), 3);
    let mut limits = options(Precision::F32);
    limits.kv_pages = 2;
    limits.adapter_slots = 1;
    let mut gpu = GpuModel::new(Emulator, &cpu, limits).unwrap();
    let other = GpuModel::new(Emulator, &cpu, limits).unwrap();
    let slot = gpu.add_adapter(&adapter(&config, 2, 1)).unwrap();
    assert_eq!(
        gpu.add_adapter(&adapter(&config, 2, 1)).unwrap_err(),
        GpuError::Full("adapter slot")
    );
    gpu.remove_adapter(slot);
    let long = tokens(33, config.vocab_size, 1);
    let mut sequence = gpu.sequence();
    let mut foreign = other.sequence();
    let mut attempt = |tokens: &[u32], adapter, own: bool| {
        gpu.forward(&mut [GpuSegment {
            tokens,
            sequence: if own { &mut sequence } else { &mut foreign },
            adapter,
        }])
        .unwrap_err()
        .to_string()
    };
    assert_eq!(attempt(&long, None, true), "no free KV page on the GPU");
    for (error, word) in [
        (attempt(&[], None, true), "no tokens"),
        (attempt(&[97], None, true), "vocabulary"),
        (attempt(&[1], Some(slot), true), "no adapter"),
        (attempt(&[1], None, false), "another model"),
    ] {
        assert!(error.contains(word), "{error}");
    }
    assert!(sequence.is_empty());
    let wide = ModelConfig {
        hidden_size: 40,
        ..config
    };
    let error = gpu.add_adapter(&adapter(&wide, 2, 1)).unwrap_err();
    assert!(error.to_string().contains("another shape"), "{error}");
}

/// The same passes on a real device. Where there is none, that must be said as
/// [`GpuError::Absent`], not by a panic.
#[test]
fn a_real_device_agrees_or_is_absent() {
    match devices() {
        Err(GpuError::Absent(reason)) => assert!(!reason.is_empty()),
        Err(other) => panic!("{other}"),
        Ok(found) => {
            for device in found {
                let open = || Gpu::open(device.ordinal).unwrap();
                generation_agrees(open(), &model(small(), 7), Precision::F32, LONG, 1e-4);
                gradients_agree(open(), &model(small(), 7), Precision::F32, LONG, 1e-5);
                generation_agrees(open(), &model(small(), 7), Precision::Bf16, 40, 0.05);
            }
        }
    }
}
