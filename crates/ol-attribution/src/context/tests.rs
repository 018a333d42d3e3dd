use std::convert::Infallible;

use ol_model::{KvCache, LoraConfig, ModelConfig, Segment};
use proptest::prelude::*;

use super::*;

fn model() -> Model {
    let config = ModelConfig {
        vocab_size: 97,
        hidden_size: 32,
        intermediate_size: 48,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 16,
        max_position_embeddings: 512,
        ..ModelConfig::default_base()
    };
    let random = Model::random(config.clone(), 5).unwrap();
    // Peaked, so that passages matter.
    let params: Vec<f32> = random.parameters().iter().map(|p| p * 8.0).collect();
    Model::from_parameters(config, &params).unwrap()
}

fn adapter(model: &Model) -> Lora {
    let config = LoraConfig::all_linear(2);
    let fresh = Lora::init(model.config(), config.clone(), 1).unwrap();
    let mut random = Random::new(9);
    let params = (0..fresh.n_params())
        .map(|_| random.normal() * 0.1)
        .collect();
    Lora::from_parameters(model.config(), config, params).unwrap()
}

/// Passage `j` is a few tokens of its own.
fn prompt(mask: &[bool]) -> Result<Vec<u32>, Infallible> {
    let mut tokens = vec![1];
    for (j, _) in (0_u32..).zip(mask).filter(|(_, is_there)| **is_there) {
        tokens.extend((0..5 + j % 3).map(|t| (j * 13 + t * 7 + 2) % 97));
    }
    tokens.extend([3, 4, 5]);
    Ok(tokens)
}

/// The log-probability, one prompt by itself, one token after the other.
fn naive(answered: &Answered<'_>, mask: &[bool]) -> f64 {
    let model = answered.model;
    let mut cache = KvCache::new(model.config(), 512);
    let mut sum = 0.0;
    let mut new = prompt(mask).unwrap();
    for &token in answered.tokens {
        let segment = Segment {
            tokens: &new,
            cache: &mut cache,
            adapter: answered.adapter,
        };
        let logits = model.forward(answered.pool, &mut [segment]).unwrap();
        let top = logits.iter().copied().fold(f32::MIN, f32::max);
        let exp = |&x: &f32| libm::exp(f64::from(x) - f64::from(top));
        let total: f64 = logits.iter().map(exp).sum();
        sum += f64::from(logits[token as usize]) - f64::from(top) - libm::log(total);
        new = vec![token];
    }
    sum
}

#[test]
fn leave_one_out_is_what_separate_passes_give() {
    let model = model();
    let adapter = adapter(&model);
    let answer = [7, 60, 2, 33, 33, 90];
    for (adapter, n_threads) in [(None, 1), (Some(&adapter), 3)] {
        let pool = Pool::new(n_threads);
        let answered = Answered {
            model: &model,
            pool: &pool,
            adapter,
            tokens: &answer,
        };
        let drops = answered.drops(LEAVE_ONE_OUT_MAX, &prompt).unwrap();
        let mut mask = vec![true; LEAVE_ONE_OUT_MAX];
        let full = naive(&answered, &mask);
        for (j, &drop) in drops.iter().enumerate() {
            mask[j] = false;
            let wanted = (1_000.0 * (full - naive(&answered, &mask))).max(0.0);
            mask[j] = true;
            assert!(
                (f64::from(drop) - wanted).abs() <= 1.5,
                "{j}: {drop} {wanted}"
            );
        }
        assert!(drops.iter().any(|drop| *drop > 100), "{drops:?}");
        assert!(drops.contains(&0), "{drops:?}");
    }
}

#[test]
fn drops_are_golden_and_independent_of_threads() {
    let model = model();
    let answer = [7, 60, 2, 33];
    let mut many = Vec::new();
    for n_threads in [1, 2, 5] {
        let pool = Pool::new(n_threads);
        let answered = Answered {
            model: &model,
            pool: &pool,
            adapter: None,
            tokens: &answer,
        };
        assert_eq!(answered.drops(4, &prompt).unwrap(), GOLDEN_FEW);
        many.push(answered.drops(10, &prompt).unwrap());
    }
    assert!(many.iter().all(|drops| *drops == many[0]));
    assert!(many[0].iter().any(|drop| *drop > 1_000), "{many:?}");
}

const GOLDEN_FEW: [u32; 4] = [2_080, 19_149, 0, 0];

#[test]
fn nothing_to_tell_apart_and_too_much() {
    let model = model();
    let pool = Pool::new(1);
    let mut answered = Answered {
        model: &model,
        pool: &pool,
        adapter: None,
        tokens: &[],
    };
    assert_eq!(answered.drops(3, &prompt).unwrap(), [0; 3]);
    answered.tokens = &[1];
    assert_eq!(answered.drops(0, &prompt).unwrap(), [0; 0]);
    let error = answered.drops(PASSAGES_MAX + 1, &prompt).unwrap_err();
    assert!(matches!(error, DropsError::TooMany { n_passages: 65 }));
    let missing = |_: &[bool]| Err(std::io::Error::other("no template"));
    let error = answered.drops(2, &missing).unwrap_err();
    assert!(matches!(error, DropsError::Prompt(_)));
    answered.tokens = &[97];
    let error = answered.drops(2, &prompt).unwrap_err();
    assert!(matches!(error, DropsError::Forward(_)));
}

#[test]
fn every_passage_is_left_out_about_as_often_as_it_is_there() {
    for n in [9, 16, PASSAGES_MAX] {
        let masks = random_masks(n);
        assert_eq!(masks.len(), ABLATIONS + 1);
        assert_eq!(masks[ABLATIONS], vec![true; n]);
        for j in 0..n {
            let there = masks[..ABLATIONS].iter().filter(|mask| mask[j]).count();
            assert!(
                (ABLATIONS / 4..=3 * ABLATIONS / 4).contains(&there),
                "{j}: {there}"
            );
        }
        let different: std::collections::BTreeSet<_> = masks.iter().collect();
        assert!(different.len() > ABLATIONS / 2, "{n}");
    }
}

proptest! {
    /// Passages that alone matter are found, with what they are worth less the
    /// shrinkage, and no other.
    #[test]
    fn a_sparse_fit_finds_planted_passages(
        n_passages in 9..PASSAGES_MAX,
        planted in prop::collection::btree_map(0..9_usize, 8_000..60_000_i64, 1..4),
        noise_seed: u64,
    ) {
        let n_tokens = 40;
        let masks = random_masks(n_passages);
        let mut noise = Random::new(noise_seed);
        let value = |mask: &Vec<bool>| -> i64 {
            let of_planted: i64 = planted.iter().map(|(&j, &worth)| if mask[j] { worth } else { 0 }).sum();
            of_planted - 200_000 + i64::try_from(noise.below(200)).unwrap() - 100
        };
        let found: Vec<i64> = masks.iter().map(value).collect();
        let coefficients = lasso::fit(&masks, &found, n_tokens);
        // The shrinkage: α nats a token, over the deviation of a column (a half).
        let shrinkage = 2 * 10 * i64::try_from(n_tokens).unwrap();
        for (j, &found) in coefficients.iter().enumerate() {
            let wanted = planted.get(&j).copied().unwrap_or(0);
            let least = if wanted > 0 { wanted - 3 * shrinkage } else { -shrinkage };
            prop_assert!((least..=wanted + shrinkage).contains(&found), "{} {} {}", j, wanted, found);
        }
    }
}
