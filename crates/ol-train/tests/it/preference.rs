//! The loss of preferences and its gradient beside torch's (the fixtures of
//! ol-model: `dpo` in `fixtures/README.md` there).

use std::path::Path;

use ol_model::{CpuLearner, Lora, Model, Pool, Sequence};
use ol_train::{Objective as _, Pair, PreferenceObjective, ScoredPair, TrainOptions};
use safetensors::SafeTensors;
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    dpo: Dpo,
}

#[derive(Deserialize)]
struct Dpo {
    beta: f32,
    pairs: Vec<GoldenPair>,
    margins: Vec<f64>,
    loss: f64,
}

#[derive(Deserialize)]
struct GoldenPair {
    prompt: Vec<u32>,
    chosen: Vec<u32>,
    rejected: Vec<u32>,
}

/// The gradient of the fixture in the flat order of an adapter: read as if it
/// were an adapter.
fn gradient_of(dir: &Path, model: &Model) -> Vec<f32> {
    let bytes = std::fs::read(dir.join("golden.safetensors")).unwrap();
    let all = SafeTensors::deserialize(&bytes).unwrap();
    let own = all.iter().filter_map(|(name, view)| {
        let name = name.strip_prefix("dpo.gradient.")?;
        Some((name.to_owned(), view))
    });
    let copy = tempfile::tempdir().unwrap();
    let file = copy.path().join("adapter_model.safetensors");
    safetensors::serialize_to_file(own, None, &file).unwrap();
    let config = "adapter_config.json";
    std::fs::copy(dir.join("adapter").join(config), copy.path().join(config)).unwrap();
    let adapter = Lora::load(copy.path(), model.config()).unwrap();
    adapter.parameters().to_vec()
}

fn norm(x: impl Iterator<Item = f64>) -> f64 {
    x.map(|v| v * v).sum::<f64>().sqrt()
}

#[test]
fn preferences_have_the_loss_and_gradient_of_the_reference() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ol-model/fixtures/families/llama3");
    let text = std::fs::read(dir.join("golden.json")).unwrap();
    let dpo = serde_json::from_slice::<Golden>(&text).unwrap().dpo;
    let model = Model::load(&dir.join("base")).unwrap();
    let adapter = Lora::load(&dir.join("adapter"), model.config()).unwrap();
    let answer = |prompt: &[u32], completion: &[u32]| Sequence {
        tokens: [prompt, completion].concat(),
        weights: [vec![0.0; prompt.len()], vec![1.0; completion.len()]].concat(),
    };
    let pairs: Vec<Pair> = dpo
        .pairs
        .iter()
        .map(|p| Pair {
            chosen: answer(&p.prompt, &p.chosen),
            rejected: answer(&p.prompt, &p.rejected),
        })
        .collect();
    let pool = Pool::new(2);
    let pairs = ScoredPair::score(&CpuLearner::new(&model, &pool), &pairs).unwrap();
    let options = TrainOptions {
        dpo_beta: dpo.beta,
        ..TrainOptions::default()
    };
    let objective = PreferenceObjective::new(&model, adapter, &pool, &options);
    let measured = objective.measure(&pairs).unwrap();
    for (got, want) in measured.iter().zip(&dpo.margins) {
        assert!((got.margin.unwrap() - want).abs() < 1e-4, "{got:?} {want}");
    }
    let n = pairs.len() as f64;
    let loss = measured.iter().map(|m| m.loss).sum::<f64>() / n;
    assert!((loss - dpo.loss).abs() < 1e-5, "{loss} {}", dpo.loss);
    let mut gradient = vec![0.0; objective.policy.adapter.n_params()];
    objective
        .add_gradient(&pairs, false, &mut gradient)
        .unwrap();
    let want = gradient_of(&dir, &model);
    let mean = gradient.iter().map(|g| f64::from(*g) / n);
    let error = norm(mean.zip(&want).map(|(g, w)| g - f64::from(*w)));
    let length = norm(want.iter().map(|w| f64::from(*w)));
    assert!(error < 1e-3 * length, "{error} off, of {length}");
}
