use ol_model::{CpuLearner, Random};
use ol_runtime::ManualClock;

use super::*;
use crate::fixture::{adapter, decisive, tiny};
use crate::trainer::{Silent, train};

fn setting() -> (Model, Lora, Vec<Pair>) {
    let config = tiny(24);
    // A fresh model could not tell answers apart.
    let (model, adapter) = (decisive(config.clone(), 3), adapter(&config, 2, 0.3, 9));
    let mut random = Random::new(10);
    let mut answer = |prompt: &[u32], first: usize| {
        let n = 2 + random.below(4);
        let mut tokens = prompt.to_vec();
        tokens.extend((0..n).map(|_| u32::try_from(first + random.below(4)).unwrap()));
        let weights = (0..tokens.len())
            .map(|t| f32::from(u8::from(t >= prompt.len())))
            .collect();
        Sequence { tokens, weights }
    };
    let pairs = (0..12)
        .map(|i| {
            let prompt = [i, i + 1, i + 2];
            Pair {
                chosen: answer(&prompt, 0),
                rejected: answer(&prompt, 20),
            }
        })
        .collect();
    (model, adapter, pairs)
}

fn loss(objective: &PreferenceObjective<'_>, pairs: &[ScoredPair]) -> f64 {
    objective
        .measure(pairs)
        .unwrap()
        .iter()
        .map(|m| m.loss)
        .sum()
}

#[test]
fn the_gradient_agrees_with_finite_differences() {
    let (model, adapter, pairs) = setting();
    let pool = Pool::new(2);
    let pairs = ScoredPair::score(&CpuLearner::new(&model, &pool), &pairs).unwrap();
    for label_smoothing in [0.0, 0.2] {
        let options = TrainOptions {
            dpo_beta: 0.5,
            dpo_label_smoothing: label_smoothing,
            ..TrainOptions::default()
        };
        let mut objective = PreferenceObjective::new(&model, adapter.clone(), &pool, &options);
        let params = objective.parameters();
        let mut gradient = vec![0.0; params.len()];
        let losses = objective
            .add_gradient(&pairs, false, &mut gradient)
            .unwrap();
        let sum = loss(&objective, &pairs);
        assert!((losses.iter().sum::<f64>() - sum).abs() < 1e-12);
        // Along the gradient, where rounding weighs least.
        let norm = gradient
            .iter()
            .map(|g| f64::from(g * g))
            .sum::<f64>()
            .sqrt();
        let step = 2e-3 / norm;
        #[expect(
            clippy::cast_possible_truncation,
            reason = "rounding to f32 is what is wanted"
        )]
        let mut at = |sign: f64| {
            let moved: Vec<f32> = params
                .iter()
                .zip(&gradient)
                .map(|(p, g)| p + (sign * step * f64::from(*g)) as f32)
                .collect();
            assert!(objective.set_parameters(&moved));
            loss(&objective, &pairs)
        };
        let slope = (at(1.0) - at(-1.0)) / (2.0 * step * norm);
        assert!((slope / norm - 1.0).abs() < 1e-2, "{slope} {norm}");
    }
}

#[test]
fn the_loss_is_that_of_the_paper() {
    let (model, adapter, pairs) = setting();
    let pool = Pool::new(1);
    let pairs = ScoredPair::score(&CpuLearner::new(&model, &pool), &pairs).unwrap();
    let fresh = Lora::init(model.config(), adapter.config().clone(), 1).unwrap();
    let options = TrainOptions::default();
    // A fresh adapter is the reference: every margin is zero, every loss ln 2.
    let objective = PreferenceObjective::new(&model, fresh, &pool, &options);
    for m in objective.measure(&pairs).unwrap() {
        assert!((m.loss - std::f64::consts::LN_2).abs() < 1e-6, "{m:?}");
        assert!(m.margin.unwrap().abs() < 1e-6, "{m:?}");
    }
    let objective = PreferenceObjective::new(&model, adapter, &pool, &options);
    let chosen: Vec<Sequence> = pairs.iter().map(|p| p.pair().chosen.clone()).collect();
    let rejected: Vec<Sequence> = pairs.iter().map(|p| p.pair().rejected.clone()).collect();
    let nll = |adapter, seqs: &[Sequence]| model.losses(&pool, adapter, seqs).unwrap();
    let with = Some(&objective.policy.adapter);
    let (c, r) = (nll(with, &chosen), nll(with, &rejected));
    let (c0, r0) = (nll(None, &chosen), nll(None, &rejected));
    let z = |i: usize| 0.1_f32 as f64 * ((c0[i] - c[i]) - (r0[i] - r[i]));
    for (i, m) in objective.measure(&pairs).unwrap().iter().enumerate() {
        let want = -(1.0 / (1.0 + (-z(i)).exp())).ln();
        assert!((m.loss - want).abs() < 1e-9, "{m:?} {want}");
        assert!((m.margin.unwrap() - z(i)).abs() < 1e-9, "{m:?}");
    }
    assert_eq!(softplus(1e4), 1e4);
    assert_eq!(
        (softplus(-1e4), sigmoid(-1e4), sigmoid(1e4)),
        (0.0, 0.0, 1.0)
    );
}

#[test]
fn preferences_are_learnt_and_reported() {
    let (model, adapter, pairs) = setting();
    let pool = Pool::new(2);
    let pairs = ScoredPair::score(&CpuLearner::new(&model, &pool), &pairs).unwrap();
    let options = TrainOptions {
        steps: 60,
        batch_sequences: Some(4),
        dpo_beta: 0.5,
        learning_rate: 1e-2,
        evaluate_every: 10,
        ..TrainOptions::default()
    };
    let fresh = Lora::init(model.config(), adapter.config().clone(), 1).unwrap();
    let mut objective = PreferenceObjective::new(&model, fresh, &pool, &options);
    let got = train(
        &mut objective,
        &pairs[..8],
        &pairs[8..],
        &options,
        None,
        &ManualClock::new(0),
        &mut Silent,
    )
    .unwrap();
    let rewards = got.rewards.unwrap();
    assert!(
        got.held_out < 0.6 && rewards.accuracy >= 0.75 && rewards.margin > 0.1,
        "{got:?}"
    );
    assert!(got.curve.iter().all(|p| p.rewards.is_some()));
}

#[test]
fn a_pair_without_an_answer_has_no_part() {
    let (model, adapter, mut pairs) = setting();
    let pool = Pool::new(1);
    pairs.truncate(2);
    pairs[1].rejected.weights.fill(0.0);
    let pairs = ScoredPair::score(&CpuLearner::new(&model, &pool), &pairs).unwrap();
    assert_eq!(pairs[1].weight(), 0.0);
    let objective = PreferenceObjective::new(&model, adapter, &pool, &TrainOptions::default());
    let gradient = |pairs: &[ScoredPair]| {
        let mut gradient = vec![0.0; objective.policy.adapter.n_params()];
        let losses = objective.add_gradient(pairs, false, &mut gradient).unwrap();
        (losses.iter().sum::<f64>(), gradient)
    };
    assert_eq!(gradient(&pairs), gradient(&pairs[..1]));
}
