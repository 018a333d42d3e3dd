//! Goal: every family computes what transformers and PEFT compute, and the same
//! bits however the work is cut.
//! Method: the fixtures of `fixtures/families`; each family runs the same checks.

use std::collections::BTreeMap;

use ol_model::{Isa, KvCache, Labels, Lora, LoraBlock, Model, ModelConfig, Pool, Segment};

use crate::fixture::{Fixture, folder};

/// Largest error of a logit, relative to the row's largest.
const LOGIT_ERROR: f64 = 1e-4;
/// Largest error of a gradient, relative to the tensor's norm.
const GRADIENT_ERROR: f64 = 1e-3;
/// Tokens that a fixture's prompts and greedy answers need.
const ROOM: usize = 64;

macro_rules! families {
    ($($module:ident: $folder:literal;)*) => { $(
        mod $module {
            #[test]
            fn logits_and_greedy_tokens_are_those_of_transformers() {
                super::check_outputs($folder);
            }

            #[test]
            fn losses_and_gradients_are_those_of_peft() {
                super::check_gradients($folder);
            }

            #[test]
            fn bits_do_not_depend_on_batch_threads_chunks_or_isa() {
                super::check_bits($folder);
            }

            #[test]
            fn both_styles_of_config_mean_the_same() {
                super::check_config($folder);
            }
        }
    )* };
}

include!("../../fixtures/families.rs");

/// Feeds `tokens` to one cache and returns the last position's logits.
fn feed(
    model: &Model,
    pool: &Pool,
    cache: &mut KvCache,
    adapter: Option<&Lora>,
    tokens: &[u32],
) -> Vec<f32> {
    let segment = Segment {
        tokens,
        cache,
        adapter,
    };
    model.forward(pool, &mut [segment]).unwrap()
}

#[track_caller]
fn check_logits(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let size = want
        .iter()
        .fold(0.0_f64, |size, w| size.max(f64::from(w.abs())));
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(*got) - f64::from(*want)).abs();
        assert!(
            error < LOGIT_ERROR * size,
            "{what}, logit {i}: {got}, expected {want}"
        );
    }
}

fn argmax(logits: &[f32]) -> u32 {
    let best = (0..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best });
    u32::try_from(best).unwrap()
}

fn check_outputs(family: &str) {
    let fixture = Fixture::load(family);
    check_outputs_of(&fixture, "base", None);
    for name in fixture.adapters() {
        check_outputs_of(&fixture, name, Some(&fixture.adapter(name)));
    }
}

/// Logits of every position, token by token; then the greedy continuation.
fn check_outputs_of(fixture: &Fixture, of: &str, adapter: Option<&Lora>) {
    let (model, pool) = (&fixture.model, Pool::new(2));
    let vocab = model.config().vocab_size;
    for (i, (prompt, greedy)) in fixture.prompts().iter().zip(fixture.greedy(of)).enumerate() {
        let mut cache = KvCache::new(model.config(), ROOM);
        let want = fixture.tensor(&format!("{of}.logits.{i}"));
        assert_eq!(want.len(), prompt.len() * vocab);
        let mut logits = Vec::new();
        for (at, (token, want)) in prompt.iter().zip(want.chunks_exact(vocab)).enumerate() {
            logits = feed(model, &pool, &mut cache, adapter, &[*token]);
            check_logits(&logits, want, &format!("{of}, prompt {i}, position {at}"));
        }
        let mut got = Vec::new();
        while got.len() < greedy.len() {
            let token = argmax(&logits);
            got.push(token);
            logits = feed(model, &pool, &mut cache, adapter, &[token]);
        }
        assert_eq!(got, greedy, "{of}: greedy tokens of prompt {i}");
    }
}

/// The name of a factor in PEFT's files.
fn parameter(block: &LoraBlock, factor: char) -> String {
    format!("base_model.model.{}.lora_{factor}.weight", block.module)
}

/// The tensors of a flat vector that is laid out as the adapter's parameters.
fn by_name<'a>(lora: &Lora, flat: &'a [f32]) -> BTreeMap<String, &'a [f32]> {
    let of = |block: &LoraBlock| {
        let mut all = vec![
            (parameter(block, 'A'), &flat[block.range_a()]),
            (parameter(block, 'B'), &flat[block.range_b()]),
        ];
        if block.has_magnitude {
            let name = format!(
                "base_model.model.{}.lora_magnitude_vector.weight",
                block.module
            );
            all.push((name, &flat[block.range_magnitude()]));
        }
        all
    };
    lora.blocks().iter().flat_map(of).collect()
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|v| v * v).sum::<f64>().sqrt()
}

#[track_caller]
fn check_close(got: &[f32], want: &[f32], most: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let size = norm(want.iter().map(|w| f64::from(*w)));
    let error = norm(
        got.iter()
            .zip(want)
            .map(|(g, w)| f64::from(*g) - f64::from(*w)),
    );
    assert!(
        error <= most * size,
        "{what}: an error of {error} in a norm of {size}"
    );
}

#[track_caller]
fn check_losses(got: &[f64], want: &[f64], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!(
            (got - want).abs() < 1e-4 * want.abs(),
            "{what}, sequence {i}: a loss of {got}, expected {want}"
        );
    }
}

fn check_gradients(family: &str) {
    let fixture = Fixture::load(family);
    let (model, pool, seqs) = (&fixture.model, Pool::new(2), fixture.sequences());
    let losses = model.losses(&pool, None, &seqs).unwrap();
    check_losses(&losses, &fixture.losses("base"), "base");
    for name in fixture.adapters() {
        let lora = fixture.adapter(name);
        let want = fixture.losses(name);
        let losses = model.losses(&pool, Some(&lora), &seqs).unwrap();
        check_losses(&losses, &want, name);
        let (loss, sum) = model
            .lora_gradient(&pool, &lora, &seqs, Labels::Given)
            .unwrap();
        check_losses(&[loss], &[want.iter().sum()], name);
        let got = by_name(&lora, &sum);
        let names = fixture.names(&format!("{name}.gradient."));
        assert_eq!(
            got.keys().collect::<Vec<_>>(),
            names.iter().collect::<Vec<_>>()
        );
        for (parameter, got) in got {
            let want = fixture.tensor(&format!("{name}.gradient.{parameter}"));
            check_close(got, want, GRADIENT_ERROR, &parameter);
        }
        // One by one they add up to the same.
        let each = model
            .lora_gradients(&pool, &lora, &seqs, Labels::Given)
            .unwrap();
        let mut added = vec![0.0_f32; lora.n_params()];
        for one in &each {
            added
                .iter_mut()
                .zip(&one.gradient)
                .for_each(|(a, g)| *a += g);
        }
        check_losses(
            &each.iter().map(|e| e.loss).collect::<Vec<_>>(),
            &want,
            name,
        );
        check_close(&added, &sum, 1e-5, "the sum over sequences");
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Logits after the whole of each prompt, all in one batch; the prompts are fed
/// in pieces of at most `chunk` tokens.
fn batch_logits(
    model: &Model,
    pool: &Pool,
    requests: &[(&[u32], Option<&Lora>)],
    chunk: usize,
) -> Vec<Vec<u32>> {
    let mut caches: Vec<KvCache> = requests
        .iter()
        .map(|_| KvCache::new(model.config(), ROOM))
        .collect();
    let mut last = vec![Vec::new(); requests.len()];
    for start in (0..ROOM).step_by(chunk) {
        let mut fed = Vec::new();
        let mut segments = Vec::new();
        for (i, ((tokens, adapter), cache)) in requests.iter().zip(&mut caches).enumerate() {
            if start < tokens.len() {
                fed.push(i);
                segments.push(Segment {
                    tokens: &tokens[start..tokens.len().min(start + chunk)],
                    cache,
                    adapter: *adapter,
                });
            }
        }
        let logits = model.forward(pool, &mut segments).unwrap();
        for (i, row) in fed.iter().zip(logits.chunks(model.config().vocab_size)) {
            last[*i] = bits(row);
        }
    }
    last
}

fn check_bits(family: &str) {
    let fixture = Fixture::load(family);
    let model = &fixture.model;
    let prompts = fixture.prompts();
    let loras: Vec<Lora> = fixture
        .adapters()
        .iter()
        .map(|name| fixture.adapter(name))
        .collect();
    // Sixteen requests: every prompt without and with adapters.
    let requests: Vec<(&[u32], Option<&Lora>)> = (0..16)
        .map(|i| {
            let adapter = (i % 3 != 0).then(|| &loras[i % loras.len()]);
            (prompts[(i * 7 + i / 4) % prompts.len()].as_slice(), adapter)
        })
        .collect();
    let oracle = Pool::with_isa(1, Isa::SCALAR);
    let want: Vec<Vec<u32>> = requests
        .iter()
        .flat_map(|r| batch_logits(model, &oracle, &[*r], ROOM))
        .collect();
    for isa in Isa::available() {
        for threads in [1, 2] {
            let pool = Pool::with_isa(threads, isa);
            for size in 1..=requests.len() {
                let got = batch_logits(model, &pool, &requests[..size], ROOM);
                assert!(
                    got == want[..size],
                    "{isa:?}, {threads} threads, {size} rows"
                );
            }
            for chunk in [1, 5, 9] {
                let got = batch_logits(model, &pool, &requests, chunk);
                assert!(got == want, "{isa:?}, {threads} threads, {chunk} at a time");
            }
        }
    }
    check_gradient_bits(&fixture, &loras, &oracle);
}

/// A sequence's gradient has the same bits alone and in a batch.
fn check_gradient_bits(fixture: &Fixture, loras: &[Lora], oracle: &Pool) {
    let (model, seqs) = (&fixture.model, fixture.sequences());
    for lora in loras {
        let gradients = |pool: &Pool, seqs: &[ol_model::Sequence]| -> Vec<(u64, Vec<u32>)> {
            let all = model
                .lora_gradients(pool, lora, seqs, Labels::Given)
                .unwrap();
            all.iter()
                .map(|one| (one.loss.to_bits(), bits(&one.gradient)))
                .collect()
        };
        let want: Vec<_> = seqs
            .iter()
            .flat_map(|s| gradients(oracle, std::slice::from_ref(s)))
            .collect();
        for isa in Isa::available() {
            for threads in [1, 2] {
                let got = gradients(&Pool::with_isa(threads, isa), &seqs);
                assert!(got == want, "{isa:?}, {threads} threads");
            }
        }
    }
}

fn check_config(family: &str) {
    let read = |name: &str| {
        let text = std::fs::read(folder(family).join(name).join("config.json")).unwrap();
        ModelConfig::from_json(&text).unwrap()
    };
    assert_eq!(read("old"), read("base"));
}

/// Adapters of three kinds merged into the weights, as PEFT merges them.
#[test]
fn merged_weights_are_those_of_peft() {
    let pool = Pool::new(2);
    for name in ["adapter", "rslora", "dora"] {
        let mut fixture = Fixture::load("llama3");
        let lora = fixture.adapter(name);
        fixture.model.merge(&pool, &lora).unwrap();
        let (params, prefix) = (fixture.model.parameters(), format!("{name}.merged."));
        let names = fixture.names(&prefix);
        assert_eq!(names.len(), lora.blocks().len());
        for tensor in names {
            let spec = fixture.model.layout().find(tensor).unwrap();
            let want = fixture.tensor(&format!("{prefix}{tensor}"));
            check_close(&params[spec.range()], want, 1e-6, tensor);
        }
    }
}

#[test]
fn experts_in_one_tensor_are_the_same_experts() {
    let load = |name: &str| Model::load(&folder("deepseek-v2-lite").join(name)).unwrap();
    assert_eq!(load("fused").hash(), load("base").hash());
}
