mod files;
mod merge;
mod quantised;

use super::*;
use crate::cache::KvCache;
use crate::config::{Family, Rope, SlidingWindow, WeightFormat};
use crate::isa::Isa;
use crate::kernels::Output;
use crate::linear::Precision;
use crate::lora::{Lora, LoraConfig, Projection};

fn tiny(tied: bool) -> ModelConfig {
    ModelConfig {
        vocab_size: 61,
        hidden_size: 24,
        intermediate_size: 40,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 6,
        max_position_embeddings: 128,
        tie_word_embeddings: tied,
        ..ModelConfig::default_base()
    }
}

/// What tells the dense families apart, each in one small model.
fn variants() -> Vec<ModelConfig> {
    let window = |window_tokens, layers: [bool; 2]| {
        Some(SlidingWindow {
            window_tokens,
            layers: layers.to_vec(),
        })
    };
    vec![
        ModelConfig {
            attention_bias: true,
            mlp_bias: true,
            rope: Rope::Linear { factor: 2.0 },
            ..tiny(false)
        },
        ModelConfig {
            family: Family::Mistral,
            sliding_window: window(7, [true, true]),
            head_dim: 8,
            ..tiny(false)
        },
        ModelConfig {
            family: Family::Qwen2,
            sliding_window: window(19, [false, true]),
            ..tiny(true)
        },
        ModelConfig {
            family: Family::Qwen3,
            attention_bias: true,
            head_dim: 10,
            ..tiny(true)
        },
    ]
}

/// Weights large enough that nothing is nearly zero.
fn model(tied: bool) -> Model {
    model_of(tiny(tied))
}

fn model_of(config: ModelConfig) -> Model {
    let base = Model::random(config.clone(), 5).unwrap();
    let mut random = Random::new(9);
    let params: Vec<f32> = base
        .parameters()
        .iter()
        .map(|p| p + 0.15 * random.normal())
        .collect();
    Model::from_parameters(config, &params).unwrap()
}

fn adapter(rank: usize, seed: u64, targets: &[Projection]) -> Lora {
    adapter_of(&tiny(true), rank, seed, targets)
}

fn adapter_of(model: &ModelConfig, rank: usize, seed: u64, targets: &[Projection]) -> Lora {
    let config = LoraConfig {
        rank,
        alpha: 12.0,
        target_modules: targets.to_vec(),
        ..LoraConfig::default()
    };
    let mut lora = Lora::init(model, config, seed).unwrap();
    let mut random = Random::new(seed);
    let params: Vec<f32> = (0..lora.n_params())
        .map(|_| 0.1 * random.normal())
        .collect();
    lora.set_parameters(&params).unwrap();
    lora
}

fn tokens(n: usize, seed: u64) -> Vec<u32> {
    let mut random = Random::new(seed);
    (0..n)
        .map(|_| u32::try_from(random.below(61)).unwrap())
        .collect()
}

fn sequence(n: usize, seed: u64) -> Sequence {
    let mut random = Random::new(seed + 1000);
    let mut weights: Vec<f32> = (0..n).map(|_| 0.75 + 0.1 * random.normal()).collect();
    if n > 4 {
        weights[3] = 0.0;
    }
    Sequence {
        tokens: tokens(n, seed),
        weights,
    }
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

fn alone(model: &Model, pool: &Pool, tokens: &[u32], adapter: Option<&Lora>) -> Vec<f32> {
    let mut cache = KvCache::new(model.config(), tokens.len());
    model
        .forward(
            pool,
            &mut [Segment {
                tokens,
                cache: &mut cache,
                adapter,
            }],
        )
        .unwrap()
}

#[test]
fn parameters_round_trip() {
    for tied in [true, false] {
        let model = model(tied);
        let again = Model::from_parameters(tiny(tied), &model.parameters()).unwrap();
        assert_eq!(model.hash(), again.hash());
        assert_eq!(bits(&model.parameters()), bits(&again.parameters()));
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_any_batch() {
    let model = model(true);
    let some = adapter(4, 1, &Projection::ALL);
    let other = adapter(9, 2, &[Projection::Q, Projection::Down]);
    let prompts: Vec<Vec<u32>> = [1, 37, 5, 64, 2, 90]
        .iter()
        .zip(0..)
        .map(|(&n, i)| tokens(n, i))
        .collect();
    let adapters = [
        None,
        Some(&some),
        Some(&other),
        Some(&some),
        Some(&some),
        None,
    ];
    let pool = Pool::with_isa(1, Isa::SCALAR);
    let want: Vec<Vec<u32>> = prompts
        .iter()
        .zip(adapters)
        .map(|(p, a)| bits(&alone(&model, &pool, p, a)))
        .collect();
    for isa in Isa::available() {
        for threads in 1..=3 {
            let pool = Pool::with_isa(threads, isa);
            let mut caches: Vec<KvCache> = prompts
                .iter()
                .map(|_| KvCache::new(model.config(), 128))
                .collect();
            let mut segments: Vec<Segment<'_>> = caches
                .iter_mut()
                .zip(&prompts)
                .zip(adapters)
                .map(|((cache, tokens), adapter)| Segment {
                    tokens,
                    cache,
                    adapter,
                })
                .collect();
            let logits = model.forward(&pool, &mut segments).unwrap();
            for (row, want) in logits.chunks(61).zip(&want) {
                assert!(bits(row) == *want, "{isa:?}, {threads} threads");
            }
        }
    }
}

#[test]
fn prefill_at_once_equals_token_by_token() {
    let model = model(false);
    let lora = adapter(4, 3, &Projection::ALL);
    let pool = Pool::new(2);
    let prompt = tokens(75, 4);
    for adapter in [None, Some(&lora)] {
        let whole = alone(&model, &pool, &prompt, adapter);
        for chunks in [vec![75], vec![1; 75], vec![20, 1, 1, 50, 3]] {
            let mut cache = KvCache::new(model.config(), 75);
            let (mut at, mut last) = (0, Vec::new());
            for n in chunks {
                let segment = Segment {
                    tokens: &prompt[at..at + n],
                    cache: &mut cache,
                    adapter,
                };
                last = model.forward(&pool, &mut [segment]).unwrap();
                at += n;
            }
            assert_eq!(bits(&last), bits(&whole));
            // Going back and on again leaves no trace.
            cache.truncate(40);
            let segment = Segment {
                tokens: &prompt[40..],
                cache: &mut cache,
                adapter,
            };
            assert_eq!(
                bits(&model.forward(&pool, &mut [segment]).unwrap()),
                bits(&whole)
            );
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let model = model(true);
    let pool = Pool::new(1);
    let mut cache = KvCache::new(model.config(), 4);
    let mut go = |tokens: &[u32], adapter: Option<&Lora>| {
        model
            .forward(
                &pool,
                &mut [Segment {
                    tokens,
                    cache: &mut cache,
                    adapter,
                }],
            )
            .map(|_| ())
    };
    assert_eq!(go(&[], None), Err(ForwardError::Empty(0)));
    assert_eq!(
        go(&[61], None),
        Err(ForwardError::Token {
            segment: 0,
            token: 61,
            vocab_size: 61
        })
    );
    assert_eq!(
        go(&[0; 5], None),
        Err(ForwardError::TooLong {
            segment: 0,
            needed: 5,
            room: 4
        })
    );
    let wide = ModelConfig {
        hidden_size: 26,
        ..tiny(true)
    };
    let stranger = Lora::init(&wide, LoraConfig::all_linear(2), 0).unwrap();
    assert_eq!(
        go(&[1], Some(&stranger)),
        Err(ForwardError::Shape {
            segment: 0,
            what: "adapter"
        })
    );
    assert!(go(&[1, 2, 3, 4], None).is_ok());
    assert_eq!(cache.len(), 4);
    let mut short = KvCache::new(&wide, 4);
    short.truncate(0);
    let bad = Sequence {
        tokens: vec![1, 2],
        weights: vec![1.0],
    };
    assert_eq!(
        model.losses(&pool, None, &[bad]),
        Err(ForwardError::Weights(0))
    );
    assert!(model.forward(&pool, &mut []).unwrap().is_empty());
}

#[test]
fn losses_agree_with_forward() {
    let model = model(true);
    let lora = adapter(3, 8, &Projection::ALL);
    let pool = Pool::new(2);
    let seq = sequence(30, 6);
    let loss = model
        .losses(&pool, Some(&lora), std::slice::from_ref(&seq))
        .unwrap()[0];
    let mut want = 0.0;
    for t in 1..30 {
        let logits = alone(&model, &pool, &seq.tokens[..t], Some(&lora));
        let sum: f64 = logits.iter().map(|l| libm::exp(f64::from(*l))).sum();
        let nll = libm::log(sum) - f64::from(logits[seq.tokens[t] as usize]);
        want += f64::from(seq.weights[t]) * nll;
    }
    assert!((loss - want).abs() < 1e-4 * want, "{loss} {want}");
}

/// The head is linear: of the mean hidden state it makes the mean logits.
#[test]
fn hidden_states_agree_with_forward() {
    let model = model(true);
    let lora = adapter(3, 8, &Projection::ALL);
    let pool = Pool::new(2);
    let seqs = [sequence(12, 6), sequence(30, 7)];
    let hidden = model.mean_hidden(&pool, Some(&lora), &seqs).unwrap();
    for (seq, hidden) in seqs.iter().zip(&hidden) {
        let n = seq.tokens.len() - 1;
        let mut want = vec![0.0_f32; model.config().vocab_size];
        for t in 1..=n {
            let logits = alone(&model, &pool, &seq.tokens[..t], Some(&lora));
            want.iter_mut()
                .zip(logits)
                .for_each(|(sum, l)| *sum += l / n as f32);
        }
        let mut found = vec![0.0_f32; want.len()];
        let out = Output::new(&mut found, want.len());
        model.head.product_to(&pool, hidden, &out, Precision::Exact);
        for (want, found) in want.iter().zip(&found) {
            assert!((want - found).abs() < 1e-4, "{want} {found}");
        }
        let one = model.mean_hidden(&pool, Some(&lora), std::slice::from_ref(seq));
        assert_eq!(one.unwrap()[0], *hidden);
    }
}

/// Compares a gradient with central differences along random directions.
fn check_directions(gradient: &[f32], params: &[f32], mut loss: impl FnMut(&[f32]) -> f64) {
    let mut random = Random::new(77);
    for _ in 0..6 {
        let direction: Vec<f32> = params.iter().map(|_| random.normal()).collect();
        let step = 5e-4_f32;
        let moved = |sign: f32| -> Vec<f32> {
            params
                .iter()
                .zip(&direction)
                .map(|(p, d)| p + sign * step * d)
                .collect()
        };
        let slope = (loss(&moved(1.0)) - loss(&moved(-1.0))) / (2.0 * f64::from(step));
        let want: f64 = gradient
            .iter()
            .zip(&direction)
            .map(|(g, d)| f64::from(*g) * f64::from(*d))
            .sum();
        let size: f64 = gradient
            .iter()
            .map(|g| f64::from(*g).powi(2))
            .sum::<f64>()
            .sqrt();
        assert!(
            (slope - want).abs() < 0.01 * size,
            "slope {slope}, gradient says {want}, norm {size}"
        );
    }
}

#[test]
fn full_gradients_agree_with_finite_differences() {
    for tied in [true, false] {
        let base = model(tied);
        let pool = Pool::new(2);
        let seqs = [
            sequence(17, 1),
            sequence(1, 2),
            sequence(50, 3),
            sequence(0, 4),
            sequence(2, 5),
        ];
        let (loss, gradient) = base.full_gradient(&pool, &seqs).unwrap();
        let losses = base.losses(&pool, None, &seqs).unwrap();
        assert!((loss - losses.iter().sum::<f64>()).abs() < 1e-9);
        check_directions(&gradient, &base.parameters(), |p| {
            let moved = Model::from_parameters(tiny(tied), p).unwrap();
            moved.losses(&pool, None, &seqs).unwrap().iter().sum()
        });
    }
}

#[test]
fn adapter_gradients_agree_with_finite_differences() {
    let base = model(true);
    let pool = Pool::new(2);
    let seqs = [sequence(17, 1), sequence(40, 3)];
    for targets in [&Projection::ALL[..], &[Projection::V, Projection::Up]] {
        let lora = adapter(3, 5, targets);
        let (_, gradient) = base
            .lora_gradient(&pool, &lora, &seqs, Labels::Given)
            .unwrap();
        check_directions(&gradient, lora.parameters(), |p| {
            let moved =
                Lora::from_parameters(&tiny(true), lora.config().clone(), p.to_vec()).unwrap();
            base.losses(&pool, Some(&moved), &seqs)
                .unwrap()
                .iter()
                .sum()
        });
    }
}

/// Prompts of several lengths at once, in chunks and alone: the same bits.
#[test]
fn every_variant_serves_the_same_bits_in_any_way() {
    let pool = Pool::new(2);
    let oracle = Pool::with_isa(1, Isa::SCALAR);
    for config in variants() {
        let model = model_of(config.clone());
        let lora = adapter_of(&config, 3, 2, &Projection::ALL);
        let prompts: Vec<Vec<u32>> = [70, 1, 33].iter().map(|&n| tokens(n, 9)).collect();
        let want: Vec<Vec<u32>> = prompts
            .iter()
            .map(|p| bits(&alone(&model, &oracle, p, Some(&lora))))
            .collect();
        let mut caches: Vec<KvCache> = (0..3).map(|_| KvCache::new(&config, 70)).collect();
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
        for (row, want) in logits.chunks(61).zip(&want) {
            assert!(bits(row) == *want, "{:?} in a batch", config.family);
        }
        let mut cache = KvCache::new(&config, 70);
        let (mut last, mut at) = (Vec::new(), 0);
        for n in [1, 18, 1, 50] {
            let segment = Segment {
                tokens: &prompts[0][at..at + n],
                cache: &mut cache,
                adapter: Some(&lora),
            };
            last = model.forward(&pool, &mut [segment]).unwrap();
            at += n;
        }
        assert!(bits(&last) == want[0], "{:?} in chunks", config.family);
    }
}

#[test]
fn gradients_of_every_variant_agree_with_finite_differences() {
    let pool = Pool::new(2);
    let seqs = [sequence(17, 1), sequence(1, 2), sequence(60, 3)];
    for config in variants() {
        let base = model_of(config.clone());
        let (_, gradient) = base.full_gradient(&pool, &seqs).unwrap();
        for spec in base.layout().tensors() {
            let some = gradient[spec.range()].iter().any(|g| *g != 0.0);
            assert!(some, "{} has no gradient", spec.name);
        }
        check_directions(&gradient, &base.parameters(), |p| {
            let moved = Model::from_parameters(config.clone(), p).unwrap();
            moved.losses(&pool, None, &seqs).unwrap().iter().sum()
        });
        let lora = adapter_of(&config, 3, 5, &Projection::ALL);
        let (loss, gradient) = base
            .lora_gradient(&pool, &lora, &seqs, Labels::Given)
            .unwrap();
        check_directions(&gradient, lora.parameters(), |p| {
            let moved = Lora::from_parameters(&config, lora.config().clone(), p.to_vec()).unwrap();
            base.losses(&pool, Some(&moved), &seqs)
                .unwrap()
                .iter()
                .sum()
        });
        let recompute = GradientOptions {
            labels: Labels::Given,
            recompute: true,
        };
        let again = base.lora_gradient(&pool, &lora, &seqs, recompute).unwrap();
        assert_eq!(loss.to_bits(), again.0.to_bits());
        assert!(bits(&gradient) == bits(&again.1), "recomputed");
    }
}

#[test]
fn per_sequence_gradients_do_not_depend_on_the_batch() {
    let base = model(true);
    let lora = adapter(4, 6, &Projection::ALL);
    let seqs: Vec<Sequence> = [20, 1, 64, 7, 128, 33]
        .iter()
        .zip(0..)
        .map(|(&n, i)| sequence(n, i))
        .collect();
    for labels in [Labels::Given, Labels::Sampled { seed: 4 }] {
        let one = Pool::with_isa(1, Isa::SCALAR);
        let want: Vec<SequenceGradient> = seqs
            .iter()
            .flat_map(|s| {
                base.lora_gradients(&one, &lora, std::slice::from_ref(s), labels)
                    .unwrap()
            })
            .collect();
        for threads in 1..=3 {
            let got = base
                .lora_gradients(&Pool::new(threads), &lora, &seqs, labels)
                .unwrap();
            for (got, want) in got.iter().zip(&want) {
                assert_eq!(got.loss.to_bits(), want.loss.to_bits());
                assert!(bits(&got.gradient) == bits(&want.gradient));
            }
        }
        let (loss, sum) = base
            .lora_gradient(&Pool::new(2), &lora, &seqs, labels)
            .unwrap();
        let (loss1, sum1) = base.lora_gradient(&one, &lora, &seqs, labels).unwrap();
        assert_eq!((loss.to_bits(), bits(&sum)), (loss1.to_bits(), bits(&sum1)));
        for (i, total) in sum.iter().enumerate() {
            let parts: f32 = want.iter().map(|g| g.gradient[i]).sum();
            assert!((total - parts).abs() < 1e-3 * (1.0 + parts.abs()));
        }
    }
}

#[test]
fn sampled_labels_follow_the_model() {
    // The expected gradient under the model's own labels is zero.
    let base = model(true);
    let lora = adapter(2, 6, &[Projection::V]);
    let pool = Pool::new(2);
    let seq = sequence(24, 3);
    let draws = 600;
    let mut mean = vec![0.0_f64; lora.n_params()];
    let mut size = 0.0;
    for seed in 0..draws {
        let (_, g) = base
            .lora_gradient(
                &pool,
                &lora,
                std::slice::from_ref(&seq),
                Labels::Sampled { seed },
            )
            .unwrap();
        size += g.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>() / draws as f64;
        mean.iter_mut()
            .zip(&g)
            .for_each(|(m, g)| *m += f64::from(*g) / draws as f64);
    }
    let of_mean: f64 = mean.iter().map(|m| m * m).sum();
    assert!(
        of_mean < 3.0 * size / draws as f64,
        "{of_mean} against {size} / {draws}"
    );
}
