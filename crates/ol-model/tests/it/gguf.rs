//! Goal: a GGUF file gives the model that its weights describe, to run and to
//! train adapters over, and a model gives a file that says the same.
//! Method: files of the gguf package with what transformers computes from their
//! expanded weights (`fixtures/gguf/make.py`).

use std::path::{Path, PathBuf};

use ol_model::{
    Format, Gguf, Isa, KvCache, Labels, Lora, LoraConfig, Model, Pool, Segment, Sequence,
    WeightFormat,
};
use safetensors::SafeTensors;

const TOKENS: usize = 64;

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures/gguf")
        .join(name)
}

struct Golden {
    tokens: Vec<u32>,
    greedy: Vec<u32>,
    logits: Vec<f32>,
    /// With the inputs of linear layers rounded to bytes.
    rounded: Option<Vec<f32>>,
}

impl Golden {
    fn load(name: &str) -> Self {
        let bytes = std::fs::read(fixture("golden.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let words = |part: &str| {
            let data = tensors.tensor(&format!("{name}.{part}")).unwrap().data();
            data.as_chunks::<4>().0.to_vec()
        };
        let floats = |part: &str| words(part).into_iter().map(f32::from_le_bytes).collect();
        Self {
            tokens: words("tokens")
                .into_iter()
                .map(u32::from_le_bytes)
                .collect(),
            greedy: words("greedy")
                .into_iter()
                .map(u32::from_le_bytes)
                .collect(),
            logits: floats("logits"),
            rounded: tensors
                .tensor(&format!("{name}.rounded"))
                .is_ok()
                .then(|| floats("rounded")),
        }
    }
}

fn load(name: &str, format: WeightFormat) -> Model {
    let path = fixture(&format!("{name}.gguf"));
    Model::load_as(&Pool::new(2), &path, format).unwrap()
}

pub(crate) fn argmax(logits: &[f32]) -> u32 {
    let best = (0..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best });
    u32::try_from(best).unwrap()
}

/// Logits of the last four of `tokens`, then greedy tokens.
fn outputs(model: &Model, pool: &Pool, golden: &Golden) -> (Vec<f32>, Vec<u32>) {
    let mut cache = KvCache::new(model.config(), TOKENS);
    let mut feed = |tokens: &[u32]| {
        let segment = Segment {
            tokens,
            cache: &mut cache,
            adapter: None,
        };
        model.forward(pool, &mut [segment]).unwrap()
    };
    let (head, tail) = golden.tokens.split_at(golden.tokens.len() - 3);
    let mut logits = feed(head);
    for token in tail {
        logits.extend(feed(&[*token]));
    }
    let mut last = logits[logits.len() - model.config().vocab_size..].to_vec();
    let mut greedy = Vec::new();
    for _ in 0..golden.greedy.len() {
        greedy.push(argmax(&last));
        last = feed(&greedy[greedy.len() - 1..]);
    }
    (logits, greedy)
}

/// Root mean square error relative to the deviation of the logits.
pub(crate) fn error(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let squares = |x: &mut dyn Iterator<Item = f64>| x.map(|v| v * v).sum::<f64>();
    let pairs = got.iter().zip(want);
    let e = squares(&mut pairs.map(|(g, w)| f64::from(*g) - f64::from(*w)));
    (e / squares(&mut want.iter().map(|w| f64::from(*w)))).sqrt()
}

/// `most` is what rounding activations to eight bits makes of the logits of these
/// models: the rounding alone, in transformers, makes it 1.3 to 3.1 %.
fn check(name: &str, most: f64) {
    let golden = Golden::load(name);
    let pool = Pool::new(2);
    let expanded = load(name, WeightFormat::F32);
    let (logits, greedy) = outputs(&expanded, &pool, &golden);
    let e = error(&logits, &golden.logits);
    assert!(e < 2e-5, "{name} in f32: {e}");
    assert_eq!(greedy, golden.greedy, "{name} in f32");

    let model = Model::load(&fixture(&format!("{name}.gguf"))).unwrap();
    assert!(model.size_bytes() < expanded.size_bytes() * 6 / 10);
    let (logits, _) = outputs(&model, &pool, &golden);
    let e = error(&logits, &golden.logits);
    assert!(e < most, "{name} as stored: {e}");
    if let Some(rounded) = &golden.rounded {
        let e = error(&logits, rounded);
        assert!(e < 1e-3, "{name} as stored, with rounded activations: {e}");
    }
    let scalar = Pool::with_isa(1, Isa::SCALAR);
    let (again, _) = outputs(&model, &scalar, &golden);
    assert!(
        logits
            .iter()
            .map(|v| v.to_bits())
            .eq(again.iter().map(|v| v.to_bits())),
        "{name}: other bits on scalar code"
    );

    // Training computes with the expanded weights, bit for bit.
    let adapter = adapter(&model);
    let gradient = |model: &Model| {
        let sequence = Sequence {
            weights: vec![1.0; golden.tokens.len()],
            tokens: golden.tokens.clone(),
        };
        let all = model.lora_gradients(&pool, &adapter, &[sequence], Labels::Given);
        all.unwrap().remove(0)
    };
    assert_eq!(gradient(&model), gradient(&expanded), "{name}");
    assert_ne!(model.hash(), expanded.hash());
}

/// An adapter with no zeros in it.
fn adapter(model: &Model) -> Lora {
    let mut lora = Lora::init(model.config(), LoraConfig::all_linear(4), 7).unwrap();
    let params: Vec<f32> = (0..lora.n_params())
        .map(|i| 0.01 * (i as f32 * 0.7).sin())
        .collect();
    lora.set_parameters(&params).unwrap();
    lora
}

macro_rules! files {
    ($($test:ident: $name:literal, $most:literal;)*) => { $(
        #[test]
        fn $test() {
            check($name, $most);
        }
    )* };
}

files! {
    llama_in_q4_k_and_q6_k: "llama-q4_k", 0.04;
    llama3_in_f16: "llama3-f16", 2e-5;
    mistral_in_q8_0: "mistral-q8_0", 0.02;
    qwen2_in_q4_0: "qwen2-q4_0", 0.02;
    qwen3_in_bf16: "qwen3-bf16", 2e-5;
    deepseek_v2_in_q8_0: "deepseek2-lite-q8_0", 0.04;
    deepseek_v3_in_parts: "deepseek2-v3-split-q8_0", 0.04;
}

#[test]
fn a_model_is_written_and_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let pool = Pool::new(2);
    for name in [
        "llama-q4_k",
        "llama3-f16",
        "qwen2-q4_0",
        "deepseek2-lite-q8_0",
    ] {
        let golden = Golden::load(name);
        let from = load(name, WeightFormat::F32);
        let tokenizer = Gguf::open(&fixture(&format!("{name}.gguf")))
            .unwrap()
            .tokenizer()
            .unwrap()
            .unwrap();
        for (format, most) in [
            (Format::F16, 0.002),
            (Format::Q8_0, 0.03),
            (Format::Q6K, 0.08),
            (Format::Q4K, 0.3),
        ] {
            let path = dir.path().join(format!("{name}.gguf"));
            from.save_gguf(&path, format, Some(&tokenizer)).unwrap();
            let file = Gguf::open(&path).unwrap();
            assert_eq!(file.tokenizer().unwrap().as_ref(), Some(&tokenizer));
            let to = Model::load_as(&pool, &path, WeightFormat::F32).unwrap();
            assert_eq!(to.config(), from.config());
            let (logits, _) = outputs(&to, &pool, &golden);
            let e = error(&logits, &golden.logits);
            assert!(e < most, "{name} as {}: {e}", format.name());
        }
    }
    // What was stored so is stored so again.
    let from = Gguf::open(&fixture("mistral-q8_0.gguf")).unwrap();
    let path = dir.path().join("again.gguf");
    load("mistral-q8_0", WeightFormat::Stored)
        .save_gguf(&path, Format::Q8_0, None)
        .unwrap();
    let to = Gguf::open(&path).unwrap();
    for a in from.tensors() {
        let b = to.find(&a.name).unwrap();
        assert_eq!((&a.shape, a.storage), (&b.shape, b.storage), "{}", a.name);
        let (a, b) = (from.read_f32(a).unwrap(), to.read_f32(b).unwrap());
        assert!(error(&b, &a) < 1e-3);
    }
}

#[test]
fn weights_quantised_while_loading_train_as_their_expansion() {
    let pool = Pool::new(2);
    let golden = Golden::load("llama-q4_k");
    for format in [Format::Nf4, Format::Nf4Double, Format::Q8_0] {
        let model = load("llama-q4_k", WeightFormat::Quantised(format));
        // The same numbers in f32.
        let expanded = Model::from_parameters(model.config().clone(), &model.parameters()).unwrap();
        let adapter = adapter(&model);
        let sequence = Sequence {
            weights: vec![1.0; golden.tokens.len()],
            tokens: golden.tokens.clone(),
        };
        let gradient = |model: &Model| {
            let sequences = std::slice::from_ref(&sequence);
            model
                .lora_gradients(&pool, &adapter, sequences, Labels::Given)
                .unwrap()
        };
        assert_eq!(gradient(&model), gradient(&expanded), "{}", format.name());
        let (logits, _) = outputs(&model, &pool, &golden);
        let e = error(&logits, &golden.logits);
        assert!(e < 0.6 && e > 1e-3, "{}: {e}", format.name());
    }
}

/// The bytes with the first `from` in them made `to`, as long.
pub(crate) fn changed_bytes(mut bytes: Vec<u8>, from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let at = bytes
        .windows(from.len())
        .position(|w| w == from)
        .expect("the bytes are there");
    bytes[at..at + to.len()].copy_from_slice(to);
    bytes
}

fn changed(name: &str, from: &[u8], to: &[u8]) -> Gguf {
    let bytes = std::fs::read(fixture(name)).unwrap();
    Gguf::from_bytes("changed.gguf", changed_bytes(bytes, from, to)).unwrap()
}

#[test]
fn files_of_other_models_are_refused_by_name() {
    let pool = Pool::new(1);
    for (name, from, to, words) in [
        (
            "llama-q4_k.gguf",
            "general.architecture\u{8}\0\0\0\u{5}\0\0\0\0\0\0\0llama",
            "general.architecture\u{8}\0\0\0\u{5}\0\0\0\0\0\0\0gemma",
            ["general.architecture", "gemma", "qwen2"],
        ),
        (
            "llama-q4_k.gguf",
            "blk.0.attn_q.weight",
            "blk.0.attn_x.weight",
            ["blk.0.attn_q.weight", "missing", "[256, 256]"],
        ),
        (
            "qwen2-q4_0.gguf",
            "qwen2.block_count\u{4}\0\0\0\u{2}",
            "qwen2.block_count\u{4}\0\0\0\u{1}",
            ["blk.1.", "no part of", "qwen2"],
        ),
        (
            "qwen2-q4_0.gguf",
            "qwen2.block_count\u{4}\0\0\0\u{2}",
            "qwen2.block_count\u{4}\0\0\0\u{3}",
            ["blk.2.", "missing", "expected"],
        ),
        (
            "qwen2-q4_0.gguf",
            "qwen2.embedding_length\u{4}\0\0\0\u{40}",
            "qwen2.embedding_length\u{4}\0\0\0\u{20}",
            ["token_embd.weight", "[96, 64]", "[96, 32]"],
        ),
        (
            "deepseek2-lite-q8_0.gguf",
            "deepseek2.expert_count\u{4}\0\0\0\u{4}",
            "deepseek2.expert_count\u{4}\0\0\0\u{8}",
            ["blk.1.ffn_gate_inp.weight", "[4, 64]", "[8, 64]"],
        ),
        (
            "mistral-q8_0.gguf",
            "llama.rope.dimension_count\u{4}\0\0\0\u{20}",
            "llama.rope.dimension_count\u{4}\0\0\0\u{10}",
            ["llama.rope.dimension_count", "16", "32"],
        ),
    ] {
        let gguf = changed(name, from.as_bytes(), to.as_bytes());
        let error = Model::from_gguf(&pool, &gguf, WeightFormat::Stored).unwrap_err();
        let error = error.to_string();
        for word in words.iter().chain(&["changed.gguf"]) {
            assert!(error.contains(word), "{error}: no {word:?}");
        }
    }
}
