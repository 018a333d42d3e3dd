use super::*;
use crate::quant::Format;

/// Wide enough for blocks of 256.
fn wide() -> ModelConfig {
    ModelConfig {
        hidden_size: 256,
        intermediate_size: 512,
        head_dim: 64,
        ..tiny(false)
    }
}

fn norm(values: impl Iterator<Item = f32>) -> f64 {
    values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt()
}

/// An error relative to what is expected.
fn error(got: &[f32], want: &[f32]) -> f64 {
    norm(got.iter().zip(want).map(|(g, w)| g - w)) / norm(want.iter().copied())
}

/// A quantised base trains an adapter as the f32 model of its weights does, and
/// serves the same bits in any batch.
#[test]
fn adapters_train_and_serve_over_quantised_bases() {
    let (pool, dir) = (Pool::new(2), tempfile::tempdir().unwrap());
    let original = Model::random(wide(), 3).unwrap();
    original.save(dir.path(), Dtype::F32).unwrap();
    let lora = adapter_of(&wide(), 3, 5, &Projection::ALL);
    let seqs = [sequence(30, 1), sequence(17, 2)];
    let mut hashes = vec![original.hash()];
    for format in Format::ALL {
        let load = || Model::load_as(&pool, dir.path(), WeightFormat::Quantised(format)).unwrap();
        let model = load();
        assert_eq!(load().hash(), model.hash(), "{format:?}");
        assert!(!hashes.contains(&model.hash()), "{format:?}");
        hashes.push(model.hash());
        assert!(model.size_bytes() < original.size_bytes());
        let params = model.parameters();
        let loss = error(&params, &original.parameters());
        assert!(loss < 0.12, "{format:?} loses {loss}");
        let dense = Model::from_parameters(wide(), &params).unwrap();
        let gradient = |model: &Model| {
            model
                .lora_gradient(&pool, &lora, &seqs, Labels::Given)
                .unwrap()
        };
        let (got, want) = (gradient(&model), gradient(&dense));
        assert!((got.0 - want.0).abs() < 1e-5 * want.0, "{format:?}");
        assert!(error(&got.1, &want.1) < 1e-4, "{format:?}");

        let prompts: Vec<Vec<u32>> = [20, 1, 33].iter().map(|&n| tokens(n, 9)).collect();
        let mut caches: Vec<KvCache> = (0..3).map(|_| KvCache::new(&wide(), 33)).collect();
        let mut segments: Vec<Segment<'_>> = prompts
            .iter()
            .zip(&mut caches)
            .map(|(tokens, cache)| Segment {
                tokens,
                cache,
                adapter: Some(&lora),
            })
            .collect();
        let logits = model.forward(&pool, &mut segments).unwrap();
        let oracle = Pool::with_isa(1, Isa::SCALAR);
        for (row, prompt) in logits.chunks(61).zip(&prompts) {
            let want = alone(&model, &oracle, prompt, Some(&lora));
            assert!(bits(row) == bits(&want), "{format:?}");
            // Activations in eight bits, not in f32.
            let exact = alone(&dense, &oracle, prompt, Some(&lora));
            let error = error(row, &exact);
            assert!(error < 0.06, "{format:?}: {error}");
        }
    }
    // 24 columns are no whole blocks.
    let narrow = tempfile::tempdir().unwrap();
    model(false).save(narrow.path(), Dtype::F32).unwrap();
    let error = Model::load_as(&pool, narrow.path(), WeightFormat::Quantised(Format::Q4K))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("q_proj.weight") && error.contains("Q4_K"),
        "{error}"
    );
}

/// The estimate is of the weights as they lie in memory, up to the padding of
/// their panels.
#[test]
fn weights_take_what_the_configuration_says() {
    let (pool, dir) = (Pool::new(1), tempfile::tempdir().unwrap());
    let model = Model::random(wide(), 3).unwrap();
    model.save(dir.path(), Dtype::Bf16).unwrap();
    let all = Format::ALL.map(WeightFormat::Quantised);
    for format in [WeightFormat::F32, WeightFormat::Stored]
        .into_iter()
        .chain(all)
    {
        let held = Model::load_as(&pool, dir.path(), format).unwrap();
        let (got, want) = (
            held.size_bytes() as f64,
            wide().weight_size_bytes(format) as f64,
        );
        assert!((got / want - 1.0).abs() < 0.15, "{format:?}: {got}, {want}");
    }
    for config in variants().into_iter().chain([wide()]) {
        let page = crate::cache::KvPool::new(&config, 1).page_size_bytes() as u64;
        assert_eq!(16 * config.kv_size_bytes_per_token(), page);
    }
    let kept = wide().activation_size_bytes_per_token(9, false);
    let recomputed = wide().activation_size_bytes_per_token(9, true);
    assert!(recomputed < kept);
}
