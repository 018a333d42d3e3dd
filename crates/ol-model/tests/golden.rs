//! Against transformers and PEFT: logits, greedy tokens, losses and gradients
//! of two small random models (`fixtures/model/make.py` made the files).
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests: a broken fixture should fail them"
)]

use std::path::{Path, PathBuf};

use ol_model::{KvCache, Labels, Lora, Model, Pool, Segment, Sequence};
use serde_json::Value;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fixtures/model")
        .join(name)
}

fn golden(name: &str) -> Value {
    let text = std::fs::read_to_string(folder(name).join("golden.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn floats(value: &Value) -> Vec<f64> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_f64().unwrap())
        .collect()
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the file was written from f32"
)]
fn sequences(golden: &Value) -> Vec<Sequence> {
    let read = |s: &Value| Sequence {
        tokens: s["tokens"]
            .as_array()
            .unwrap()
            .iter()
            .map(|t| u32::try_from(t.as_u64().unwrap()).unwrap())
            .collect(),
        weights: floats(&s["weights"]).iter().map(|w| *w as f32).collect(),
    };
    golden["sequences"]
        .as_array()
        .unwrap()
        .iter()
        .map(read)
        .collect()
}

fn argmax(logits: &[f32]) -> u32 {
    let best = (0..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best });
    u32::try_from(best).unwrap()
}

/// All sequences as one batch, prompts first, then token by token.
fn check_outputs(model: &Model, adapter: Option<&Lora>, seqs: &[Sequence], want: &Value) {
    let pool = Pool::new(2);
    let mut caches: Vec<KvCache> = seqs
        .iter()
        .map(|_| KvCache::new(model.config(), 128))
        .collect();
    let mut next: Vec<Vec<u32>> = seqs.iter().map(|s| s.tokens.clone()).collect();
    let mut greedy: Vec<Vec<u64>> = vec![Vec::new(); seqs.len()];
    let vocab = model.config().vocab_size;
    for step in 0..16 {
        let mut segments: Vec<Segment<'_>> = caches
            .iter_mut()
            .zip(&next)
            .map(|(cache, tokens)| Segment {
                tokens,
                cache,
                adapter,
            })
            .collect();
        let logits = model.forward(&pool, &mut segments).unwrap();
        for (i, row) in logits.chunks(vocab).enumerate() {
            if step == 0 {
                let want = floats(&want["logits"][i]);
                let size = want.iter().fold(0.0_f64, |m, w| m.max(w.abs()));
                for (got, want) in row.iter().zip(&want) {
                    assert!(
                        (f64::from(*got) - want).abs() < 1e-4 * size,
                        "sequence {i}: {got}, expected {want}"
                    );
                }
            }
            next[i] = vec![argmax(row)];
            greedy[i].push(u64::from(next[i][0]));
        }
    }
    for (i, got) in greedy.iter().enumerate() {
        let want: Vec<u64> = want["greedy"][i]
            .as_array()
            .unwrap()
            .iter()
            .map(|t| t.as_u64().unwrap())
            .collect();
        assert_eq!(*got, want, "greedy tokens of sequence {i}");
    }
}

/// Norm and chosen elements within 1e-3 of the tensor's scale.
fn check_gradient(name: &str, got: &[f32], want: &Value) {
    let norm = got
        .iter()
        .map(|g| f64::from(*g).powi(2))
        .sum::<f64>()
        .sqrt();
    let expected = want["norm"].as_f64().unwrap();
    assert!(
        (norm - expected).abs() < 1e-3 * expected,
        "{name}: norm {norm}, expected {expected}"
    );
    let scale = expected / (got.len() as f64).sqrt();
    let places = want["places"].as_array().unwrap().iter();
    for (place, value) in places.zip(floats(&want["values"])) {
        let got = f64::from(got[usize::try_from(place.as_u64().unwrap()).unwrap()]);
        assert!(
            (got - value).abs() < 1e-3 * (scale + value.abs()),
            "{name}[{place}]: {got}, expected {value}"
        );
    }
}

fn close(got: f64, want: &Value) {
    let want = want.as_f64().unwrap();
    assert!(
        (got - want).abs() < 1e-4 * want.abs(),
        "loss {got}, expected {want}"
    );
}

#[test]
fn base_models_agree_with_transformers() {
    for name in ["tied", "untied"] {
        let (golden, model) = (
            golden(name),
            Model::load(&folder(name).join("base")).unwrap(),
        );
        let (seqs, want) = (sequences(&golden), &golden["base"]);
        check_outputs(&model, None, &seqs, want);
        let (loss, gradient) = model.full_gradient(&Pool::new(2), &seqs).unwrap();
        close(loss, &want["loss"]);
        let tensors = want["gradients"].as_object().unwrap();
        assert_eq!(tensors.len(), model.layout().tensors().len());
        for spec in model.layout().tensors() {
            check_gradient(&spec.name, &gradient[spec.range()], &tensors[&spec.name]);
        }
    }
}

#[test]
fn adapters_agree_with_peft() {
    for name in ["tied", "untied"] {
        let (golden, model) = (
            golden(name),
            Model::load(&folder(name).join("base")).unwrap(),
        );
        let lora = Lora::load(&folder(name).join("adapter"), model.config()).unwrap();
        let (seqs, want) = (sequences(&golden), &golden["adapter"]);
        check_outputs(&model, Some(&lora), &seqs, want);
        let pool = Pool::new(2);
        let (loss, sum) = model
            .lora_gradient(&pool, &lora, &seqs, Labels::Given)
            .unwrap();
        close(loss, &want["loss"]);
        let each = model
            .lora_gradients(&pool, &lora, &seqs, Labels::Given)
            .unwrap();
        let mut added = vec![0.0_f32; lora.n_params()];
        for (i, one) in each.iter().enumerate() {
            close(one.loss, &want["losses"][i]);
            added
                .iter_mut()
                .zip(&one.gradient)
                .for_each(|(a, g)| *a += g);
        }
        let tensors = want["gradients"].as_object().unwrap();
        assert_eq!(tensors.len(), 2 * lora.blocks().len());
        for block in lora.blocks() {
            for (factor, range) in [("A", block.range_a()), ("B", block.range_b())] {
                let name = format!("base_model.model.{}.lora_{factor}.weight", block.module);
                check_gradient(&name, &sum[range.clone()], &tensors[&name]);
                check_gradient(&name, &added[range], &tensors[&name]);
            }
        }
    }
}

#[test]
fn a_saved_adapter_is_what_peft_wrote() {
    let model = Model::load(&folder("tied/base")).unwrap();
    let lora = Lora::load(&folder("tied/adapter"), model.config()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    lora.save(dir.path(), "tied").unwrap();
    assert_eq!(
        Lora::load(dir.path(), model.config()).unwrap().hash(),
        lora.hash()
    );
    let theirs = std::fs::metadata(folder("tied/adapter/adapter_model.safetensors"))
        .unwrap()
        .len();
    let ours = std::fs::metadata(dir.path().join("adapter_model.safetensors"))
        .unwrap()
        .len();
    assert!(
        ours.abs_diff(theirs) < 1024,
        "{ours} against {theirs} bytes"
    );
}
