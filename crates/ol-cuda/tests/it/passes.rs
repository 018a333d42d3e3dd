//! Forward and backward passes.

use std::path::PathBuf;

use ol_cuda::{Backend, Gpu, GpuError, GpuLearner, GpuModel, GpuModelOptions, Precision, devices};
use ol_model::{
    Executor, Format, ForwardError, KvCache, Labels, Learner, Lora, LoraConfig, Model, ModelConfig,
    Pool, Random, Segment, Sequence, WeightFormat,
};

use crate::emulator::Emulator;
use crate::serving::serves;

/// Longer than a tile of keys.
const LONG: usize = 150;

pub(crate) fn small() -> ModelConfig {
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

pub(crate) fn options(precision: Precision) -> GpuModelOptions {
    GpuModelOptions {
        precision,
        kv_pages: 40,
        adapter_slots: 3,
        adapter_bytes: 1 << 20,
        // A few rows of a matrix at a time.
        workspace_bytes: 5000,
    }
}

/// A model whose weights are large enough for every part to matter.
pub(crate) fn model(config: ModelConfig, seed: u64) -> Model {
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

pub(crate) fn adapter(config: &ModelConfig, rank: usize, seed: u64) -> Lora {
    let fresh = Lora::init(config, LoraConfig::all_linear(rank), seed).unwrap();
    let mut random = Random::new(seed);
    let params = fresh
        .parameters()
        .iter()
        .map(|p| p + 0.1 * random.normal())
        .collect();
    Lora::from_parameters(config, LoraConfig::all_linear(rank), params).unwrap()
}

pub(crate) fn tokens(n: usize, vocab: usize, seed: u64) -> Vec<u32> {
    let mut random = Random::new(seed);
    (0..n)
        .map(|_| u32::try_from(random.below(vocab)).unwrap())
        .collect()
}

pub(crate) fn close(ours: &[f32], cpu: &[f32], relative: f32, what: &str) {
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

/// The logits of segments, none drawn.
pub(crate) fn logits(
    executor: &mut impl Executor,
    segments: &mut [Segment<'_>],
) -> Result<Vec<f32>, ForwardError> {
    let draws = vec![None; segments.len()];
    Ok(executor.forward(segments, &draws)?.logits)
}

/// Prefill in two parts, then single tokens, mixed adapters and ranks.
fn generation_agrees<B>(device: B, cpu: &Model, precision: Precision, longest: usize, near: f32)
where
    B: Backend + Send,
    B::Memory: Send,
{
    let config = cpu.config().clone();
    let pool = Pool::new(1);
    let adapters = [adapter(&config, 4, 1), adapter(&config, 37, 2)];
    let choice = [Some(&adapters[0]), None, Some(&adapters[1])];
    let mut gpu = GpuModel::new(device, cpu, options(precision)).unwrap();
    let room = longest.min(config.max_position_embeddings - 8);
    let prompts = [
        tokens(37.min(room), config.vocab_size, 3),
        tokens(5, config.vocab_size, 4),
        tokens(150.min(room), config.vocab_size, 5),
    ];
    let mut on_cpu: Vec<KvCache> = (0..3).map(|_| KvCache::new(&config, 200)).collect();
    let remote = gpu.kv_pool();
    let mut on_gpu: Vec<KvCache> = (0..3).map(|_| KvCache::in_pool(&remote, 200)).collect();
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
        let expected = cpu
            .forward(&pool, &mut segments(parts, &mut on_cpu, &choice))
            .unwrap();
        let got = logits(&mut gpu, &mut segments(parts, &mut on_gpu, &choice)).unwrap();
        close(&got, &expected, near, &format!("round {round}"));
    }
}

pub(crate) fn segments<'a>(
    parts: &'a [Vec<u32>],
    caches: &'a mut [KvCache],
    adapters: &[Option<&'a Lora>],
) -> Vec<Segment<'a>> {
    parts
        .iter()
        .zip(caches)
        .zip(adapters)
        .map(|((tokens, cache), adapter)| Segment {
            tokens,
            cache,
            adapter: *adapter,
        })
        .collect()
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
    let gpu = GpuLearner::new(GpuModel::new(device, cpu, options(precision)).unwrap());
    let room = longest.min(config.max_position_embeddings);
    let sequences: Vec<Sequence> = [23, 1, 140.min(room), 9]
        .iter()
        .enumerate()
        .map(|(i, &n)| Sequence {
            tokens: tokens(n, config.vocab_size, 20 + i as u64),
            weights: (0..n).map(|t| if t % 3 == 0 { 0.0 } else { 1.0 }).collect(),
        })
        .collect();
    // Of a sum, and of a function of all losses, added to what is there.
    let factors = |losses: &[f64]| -> Vec<f32> {
        (0..losses.len())
            .map(|i| if i % 2 == 0 { 0.5 } else { -2.0 })
            .collect()
    };
    for factors in [None, Some(&factors as &dyn Fn(&[f64]) -> Vec<f32>)] {
        let mut expected = vec![0.25; adapter.n_params()];
        let mut got = expected.clone();
        let cpu_losses = match factors {
            None => {
                cpu.add_lora_gradient(&pool, &adapter, &sequences, Labels::Given, &mut expected)
            }
            Some(factors) => cpu.add_scaled_lora_gradient(
                &pool,
                &adapter,
                &sequences,
                Labels::Given,
                factors,
                &mut expected,
            ),
        }
        .unwrap();
        let losses = gpu
            .add_gradient(&adapter, &sequences, false, factors, &mut got)
            .unwrap();
        losses_agree(&losses, &cpu_losses, near);
        close(&got, &expected, 10.0 * near, "gradient");
        let measured = gpu.losses(Some(&adapter), &sequences).unwrap();
        losses_agree(&measured, &losses, 1e-6);
    }
    let alone = gpu.losses(None, &sequences[2..3]).unwrap();
    let base = cpu.losses(&pool, None, &sequences[2..3]).unwrap();
    losses_agree(&alone, &base, near);
}

fn losses_agree(ours: &[f64], theirs: &[f64], near: f32) {
    assert_eq!(ours.len(), theirs.len());
    for (a, b) in ours.iter().zip(theirs) {
        assert!((a - b).abs() <= f64::from(near) * b, "{a} against {b}");
    }
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
    families_agree(|| Emulator);
}

fn families_agree<B: Backend + Send>(open: impl Fn() -> B)
where
    B::Memory: Send,
{
    for name in ["llama3", "llama-yarn", "mistral", "qwen2", "qwen3"] {
        let cpu = Model::load(&families().join(name).join("base")).unwrap();
        generation_agrees(open(), &cpu, Precision::F32, 40, 1e-4);
        gradients_agree(open(), &cpu, Precision::F32, 40, 1e-4);
    }
}

/// The fixtures; found where the tests run, which may not be where they were built.
fn families() -> PathBuf {
    let here = std::env::var_os("CARGO_MANIFEST_DIR");
    let here = here.unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    PathBuf::from(here).join("../ol-model/fixtures/families")
}

#[test]
fn what_only_the_cpu_does_is_refused_by_name() {
    let latent = Model::load(&families().join("deepseek-v2/base")).unwrap();
    let error = GpuModel::new(Emulator, &latent, options(Precision::F32)).unwrap_err();
    assert!(error.to_string().contains("latent attention"), "{error}");
    let cpu = model(small(), 3);
    let mut gpu = GpuModel::new(Emulator, &cpu, options(Precision::F32)).unwrap();
    let dora = LoraConfig {
        use_dora: true,
        ..LoraConfig::all_linear(2)
    };
    let dora = cpu.fresh_adapter(&Pool::new(1), dora, 1).unwrap();
    let error = gpu.add_adapter(&dora).unwrap_err();
    assert!(error.to_string().contains("DoRA"), "{error}");
}

#[test]
fn bf16_stays_near() {
    generation_agrees(Emulator, &model(small(), 7), Precision::Bf16, 40, 0.05);
    gradients_agree(Emulator, &model(small(), 7), Precision::Bf16, 40, 0.02);
}

/// Every format of blocks, expanded on the device some rows at a time, against
/// the same values held in f32.
#[test]
fn quantised_bases_stay_as_they_are_stored() {
    blocks_are_expanded(|| Emulator);
}

fn blocks_are_expanded<B: Backend + Send>(open: impl Fn() -> B)
where
    B::Memory: Send,
{
    let config = ModelConfig {
        hidden_size: 256,
        intermediate_size: 256,
        num_hidden_layers: 1,
        head_dim: 64,
        ..small()
    };
    let folder = tempfile::tempdir().unwrap();
    let dense = model(config.clone(), 7);
    dense.save(folder.path(), ol_model::Dtype::F32).unwrap();
    let pool = Pool::new(1);
    for format in Format::ALL {
        let format = WeightFormat::Quantised(format);
        let stored = Model::load_as(&pool, folder.path(), format).unwrap();
        let same = Model::from_parameters(config.clone(), &stored.parameters()).unwrap();
        let adapter = adapter(&config, 3, 1);
        let prompt = tokens(9, config.vocab_size, 2);
        let (parts, choice) = ([prompt], [Some(&adapter)]);
        let mut caches = [KvCache::new(&config, 20)];
        let expected = same
            .forward(&pool, &mut segments(&parts, &mut caches, &choice))
            .unwrap();
        for workspace_bytes in [1, 100_000] {
            let limits = GpuModelOptions {
                workspace_bytes,
                ..options(Precision::F32)
            };
            let mut gpu = GpuModel::new(open(), &stored, limits).unwrap();
            let mut caches = [KvCache::in_pool(&gpu.kv_pool(), 20)];
            let got = logits(&mut gpu, &mut segments(&parts, &mut caches, &choice)).unwrap();
            close(&got, &expected, 1e-4, &format!("{format:?}"));
        }
    }
}

#[test]
fn gradients_through_blocks_agree() {
    let config = ModelConfig {
        hidden_size: 64,
        intermediate_size: 128,
        head_dim: 16,
        ..small()
    };
    let folder = tempfile::tempdir().unwrap();
    let dense = model(config, 7);
    dense.save(folder.path(), ol_model::Dtype::F32).unwrap();
    let format = WeightFormat::Quantised(Format::Nf4Double);
    let stored = Model::load_as(&Pool::new(1), folder.path(), format).unwrap();
    gradients_agree(Emulator, &stored, Precision::F32, LONG, 1e-4);
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let config = small();
    let cpu = model(config.clone(), 3);
    let limits = GpuModelOptions {
        kv_pages: 2,
        adapter_slots: 1,
        ..options(Precision::F32)
    };
    let mut gpu = GpuModel::new(Emulator, &cpu, limits).unwrap();
    let other = GpuModel::new(Emulator, &cpu, limits).unwrap();
    let slot = gpu.add_adapter(&adapter(&config, 2, 1)).unwrap();
    assert_eq!(
        gpu.add_adapter(&adapter(&config, 2, 1)).unwrap_err(),
        GpuError::Full("adapter slot")
    );
    gpu.remove_adapter(slot);
    assert!(gpu.replace_adapter(slot, &adapter(&config, 2, 1)).is_err());
    let long = tokens(33, config.vocab_size, 1);
    let wide = ModelConfig {
        hidden_size: 40,
        ..config.clone()
    };
    let wide = adapter(&wide, 2, 1);
    let mut cache = KvCache::in_pool(&gpu.kv_pool(), 100);
    let mut foreign = KvCache::in_pool(&other.kv_pool(), 100);
    let mut host = KvCache::new(&config, 100);
    let mut attempt = |tokens: &[u32], adapter, cache: &mut KvCache| {
        let mut segment = [Segment {
            tokens,
            cache,
            adapter,
        }];
        logits(&mut gpu, &mut segment).unwrap_err().to_string()
    };
    for (error, word) in [
        (attempt(&long, None, &mut cache), "3 more pages"),
        (attempt(&[], None, &mut cache), "no tokens"),
        (attempt(&[97], None, &mut cache), "vocabulary"),
        (attempt(&[1], Some(&wide), &mut cache), "adapter"),
        (attempt(&[1], None, &mut foreign), "another shape"),
        (attempt(&[1], None, &mut host), "another shape"),
    ] {
        assert!(error.contains(word), "{error}");
    }
    assert!(cache.is_empty());
    assert_eq!(gpu.kv_pool().free_pages(), 2);
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
                gradients_agree(open(), &model(small(), 7), Precision::Bf16, 40, 0.02);
                families_agree(open);
                blocks_are_expanded(open);
                serves(open);
            }
        }
    }
}
