//! Goal: a run of the training loop is the run that PEFT and torch's AdamW make.
//! Method: the fixtures of ol-model (`fixtures/README.md` there): 20 steps with
//! warm-up, cosine, decay and clipping, from an adapter with random A and B.

use std::path::Path;

use ol_model::{Lora, Model, Pool, Sequence};
use ol_runtime::ManualClock;
use ol_train::{LoraObjective, Observer, Progress, TrainOptions, train};
use safetensors::SafeTensors;
use serde_json::Value;

/// Largest error of a step's loss, relative.
const LOSS_ERROR: f64 = 2e-4;
/// Largest error of what a factor moved by, relative to how far it moved. The
/// first steps of AdamW follow the sign of a gradient however small it is.
const MOVE_ERROR: f64 = 1e-2;

macro_rules! families {
    ($($test:ident: $folder:literal;)*) => { $(
        #[test]
        fn $test() {
            check($folder);
        }
    )* };
}

include!("../../../ol-model/fixtures/families.rs");

fn floats(value: &Value) -> Vec<f64> {
    let values = value.as_array().unwrap().iter();
    values.map(|v| v.as_f64().unwrap()).collect()
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the file was written from f32"
)]
fn float(value: &Value) -> f32 {
    value.as_f64().unwrap() as f32
}

fn number(value: &Value) -> u32 {
    u32::try_from(value.as_u64().unwrap()).unwrap()
}

/// Losses and gradient lengths of every step.
#[derive(Default)]
struct Log(Vec<(f64, f64)>);

impl<O> Observer<O> for Log {
    fn on_step(&mut self, progress: &Progress) {
        self.0.push((progress.loss, progress.gradient_norm));
    }
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|v| v * v).sum::<f64>().sqrt()
}

fn check(family: &str) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../ol-model/fixtures/families")
        .join(family);
    check_run(&dir, &Model::load(&dir.join("base")).unwrap());
}

/// Checks the run of the fixture in `dir` on `model`.
pub(crate) fn check_run(dir: &Path, model: &Model) {
    let text = std::fs::read(dir.join("golden.json")).unwrap();
    let golden: Value = serde_json::from_slice(&text).unwrap();
    let pool = Pool::new(2);
    let seqs: Vec<Sequence> = golden["sequences"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| Sequence {
            tokens: s["tokens"].as_array().unwrap().iter().map(number).collect(),
            weights: s["weights"].as_array().unwrap().iter().map(float).collect(),
        })
        .collect();
    let want = &golden["training"];
    let given = &want["options"];
    let options = TrainOptions {
        batch_sequences: Some(seqs.len()),
        beta1: float(&given["beta1"]),
        beta2: float(&given["beta2"]),
        clip_norm: float(&given["clip_norm"]),
        evaluate_every: 1000,
        final_fraction: float(&given["final_fraction"]),
        learning_rate: float(&given["learning_rate"]),
        shuffle: false,
        steps: number(&given["steps"]),
        warmup_steps: number(&given["warmup_steps"]),
        weight_decay: float(&given["weight_decay"]),
        ..TrainOptions::default()
    };
    let start = Lora::load(&dir.join("adapter"), model.config()).unwrap();
    let mut objective = LoraObjective {
        model,
        adapter: start.clone(),
        pool: &pool,
        learner: None,
    };
    let mut log = Log::default();
    let clock = ManualClock::new(0);
    train(
        &mut objective,
        &seqs,
        &seqs,
        &options,
        None,
        &clock,
        &mut log,
    )
    .unwrap();

    let (losses, norms) = (floats(&want["losses"]), floats(&want["gradient_norms"]));
    assert_eq!(log.0.len(), losses.len());
    for (step, ((loss, length), (want_loss, want_length))) in
        log.0.iter().zip(losses.iter().zip(&norms)).enumerate()
    {
        assert!(
            (loss - want_loss).abs() < LOSS_ERROR * want_loss,
            "step {step}: a loss of {loss}, expected {want_loss}"
        );
        assert!(
            (length - want_length).abs() < 1e-3 * want_length,
            "step {step}: a gradient of {length}, expected {want_length}"
        );
    }
    check_moves(dir, &start, &objective.adapter);
}

/// Every factor has moved from `start` to where the fixture's has.
fn check_moves(dir: &Path, start: &Lora, end: &Lora) {
    let bytes = std::fs::read(dir.join("golden.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    for block in start.blocks() {
        for (factor, range) in [("A", block.range_a()), ("B", block.range_b())] {
            let name = format!(
                "trained.base_model.model.{}.lora_{factor}.weight",
                block.module
            );
            let values = tensors.tensor(&name).unwrap();
            let want = values.data().as_chunks::<4>().0.iter();
            let want = want.map(|b| f64::from(f32::from_le_bytes(*b)));
            let (from, to) = (&start.parameters()[range.clone()], &end.parameters()[range]);
            let error = norm(to.iter().zip(want.clone()).map(|(t, w)| f64::from(*t) - w));
            let moved = norm(from.iter().zip(want).map(|(f, w)| f64::from(*f) - w));
            assert!(
                error < MOVE_ERROR * moved,
                "{name}: {error} off after a move of {moved}"
            );
        }
    }
}
