use super::*;

/// DoRA with biases, beside plain adapters, trained and merged.
#[test]
fn dora_is_exact_alone_in_batches_and_merged() {
    let pool = Pool::new(2);
    for config in variants() {
        let base = model_of(config.clone());
        let dora = LoraConfig {
            use_dora: true,
            ..LoraConfig::all_linear(3)
        };
        assert_eq!(
            Lora::init(&config, dora.clone(), 1).unwrap_err(),
            crate::lora::LoraError::NeedsBase
        );
        let fresh = base.fresh_adapter(&pool, dora, 4).unwrap();
        let prompt = tokens(30, 3);
        let (with, without) = (
            alone(&base, &pool, &prompt, Some(&fresh)),
            alone(&base, &pool, &prompt, None),
        );
        for (a, b) in with.iter().zip(&without) {
            assert!((a - b).abs() < 1e-4, "a fresh adapter changes nothing");
        }
        let mut random = Random::new(8);
        let params: Vec<f32> = fresh
            .parameters()
            .iter()
            .map(|p| p + 0.05 * random.normal())
            .collect();
        let mut lora = fresh.clone();
        lora.set_parameters(&params).unwrap();
        let (text, weights) = lora.to_bytes("b");
        let read = Lora::from_bytes(&text, &weights, &config).unwrap();
        assert_eq!(read.hash(), lora.hash());

        let seqs = [sequence(17, 1), sequence(40, 3)];
        let (_, gradient) = base
            .lora_gradient(&pool, &lora, &seqs, Labels::Given)
            .unwrap();
        let each = base
            .lora_gradients(&pool, &lora, &seqs, Labels::Given)
            .unwrap();
        for (i, sum) in gradient.iter().enumerate() {
            let parts: f32 = each.iter().map(|g| g.gradient[i]).sum();
            assert!((sum - parts).abs() < 1e-3 * (1.0 + parts.abs()));
        }
        // Magnitudes move with nothing else, so their slopes are exact.
        let only_magnitudes: Vec<bool> = {
            let mut only = vec![false; params.len()];
            for block in lora.blocks() {
                only[block.range_magnitude()].fill(true);
            }
            only
        };
        let masked: Vec<f32> = gradient
            .iter()
            .zip(&only_magnitudes)
            .map(|(g, m)| if *m { *g } else { 0.0 })
            .collect();
        check_directions(&masked, &params, |moved| {
            let moved: Vec<f32> = moved
                .iter()
                .zip(&params)
                .zip(&only_magnitudes)
                .map(|((p, old), m)| if *m { *p } else { *old })
                .collect();
            let mut lora = lora.clone();
            lora.set_parameters(&moved).unwrap();
            base.losses(&pool, Some(&lora), &seqs).unwrap().iter().sum()
        });

        // Beside a plain adapter and none: the bits of each alone.
        let plain = adapter_of(&config, 2, 5, &Projection::ALL);
        let adapters = [Some(&lora), Some(&plain), None];
        let mut caches: Vec<KvCache> = (0..3).map(|_| KvCache::new(&config, 30)).collect();
        let mut segments: Vec<Segment<'_>> = caches
            .iter_mut()
            .zip(adapters)
            .map(|(cache, adapter)| Segment {
                tokens: &prompt,
                cache,
                adapter,
            })
            .collect();
        let logits = base.forward(&pool, &mut segments).unwrap();
        for (row, adapter) in logits.chunks(61).zip(adapters) {
            let want = alone(&base, &Pool::with_isa(1, Isa::SCALAR), &prompt, adapter);
            assert_eq!(bits(row), bits(&want));
        }

        let want = alone(&base, &pool, &prompt, Some(&lora));
        let dir = tempfile::tempdir().unwrap();
        base.save(dir.path(), Dtype::F32).unwrap();
        let before = base.hash();
        let mut merged = base;
        merged.merge(&pool, &lora).unwrap();
        assert_ne!(merged.hash(), before);
        for (a, b) in alone(&merged, &pool, &prompt, None).iter().zip(&want) {
            assert!((a - b).abs() < 2e-4, "{a} merged, {b} beside");
        }
    }
}

#[test]
fn a_merged_16_bit_base_is_the_merged_f32_base() {
    let (pool, dir) = (Pool::new(2), tempfile::tempdir().unwrap());
    model(false).save(dir.path(), Dtype::Bf16).unwrap();
    let lora = adapter(3, 2, &[Projection::K, Projection::Up]);
    let merged = [WeightFormat::F32, WeightFormat::Stored].map(|format| {
        let mut model = Model::load_as(&pool, dir.path(), format).unwrap();
        // Turned matrices kept from before are of no use after.
        model
            .lora_gradient(&pool, &lora, &[sequence(9, 1)], Labels::Given)
            .unwrap();
        model.merge(&pool, &lora).unwrap();
        let (_, gradient) = model
            .lora_gradient(&pool, &lora, &[sequence(9, 1)], Labels::Given)
            .unwrap();
        (bits(&model.parameters()), bits(&gradient))
    });
    assert!(merged[0] == merged[1]);
    let wide = ModelConfig {
        hidden_size: 26,
        ..tiny(false)
    };
    let stranger = Lora::init(&wide, LoraConfig::all_linear(2), 0).unwrap();
    assert!(model(false).merge(&pool, &stranger).is_err());
}
