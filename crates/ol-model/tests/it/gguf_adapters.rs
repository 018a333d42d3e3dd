//! Goal: an adapter is the same one in PEFT's format and in llama.cpp's, and
//! llama.cpp answers with it as this engine does.
//! Method: files of the gguf package and what llama.cpp computed with them
//! (`fixtures/gguf/make_adapters.py`); files of our own, read back.

use std::collections::BTreeMap;
use std::path::Path;

use ol_model::{
    Dtype, Format, Gguf, KvCache, Lora, LoraConfig, Model, Pool, Projection, Segment, WeightFormat,
};
use serde::Deserialize;

use crate::gguf::{argmax, changed_bytes, error, fixture};

#[derive(Deserialize)]
struct Golden {
    tokens: Vec<u32>,
    logits: Vec<f32>,
    greedy: Vec<u32>,
    /// By how much the nearest choice was won.
    margin: f32,
}

fn golden() -> BTreeMap<String, Golden> {
    let bytes = std::fs::read(fixture("adapters/golden.json")).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

fn base(name: &str) -> Model {
    let path = fixture(&format!("{name}.gguf"));
    Model::load_as(&Pool::new(2), &path, WeightFormat::F32).unwrap()
}

/// Logits after `tokens`, then `n` greedy tokens.
fn outputs(model: &Model, adapter: &Lora, tokens: &[u32], n: usize) -> (Vec<f32>, Vec<u32>) {
    let pool = Pool::new(2);
    let mut cache = KvCache::new(model.config(), 64);
    let mut feed = |tokens: &[u32]| {
        let segment = Segment {
            tokens,
            cache: &mut cache,
            adapter: Some(adapter),
        };
        model.forward(&pool, &mut [segment]).unwrap()
    };
    let first = feed(tokens);
    let (mut last, mut greedy) = (first.clone(), Vec::new());
    for _ in 0..n {
        greedy.push(argmax(&last));
        last = feed(&greedy[greedy.len() - 1..]);
    }
    (first, greedy)
}

#[test]
fn adapters_of_llama_cpp_are_those_of_peft_and_answer_alike() {
    let all = golden();
    assert_eq!(all.len(), 3);
    let dir = tempfile::tempdir().unwrap();
    for (name, golden) in all {
        let model = base(&name);
        let config = model.config();
        let path = fixture(&format!("adapters/{name}.gguf"));
        let theirs = Lora::load(&path, config).unwrap();
        let ours = Lora::load(&fixture(&format!("adapters/{name}")), config).unwrap();
        assert_eq!(theirs.hash(), ours.hash(), "{name}");

        let (logits, greedy) = outputs(&model, &theirs, &golden.tokens, golden.greedy.len());
        // llama.cpp rounds activations to the format of the weights.
        let e = error(&logits, &golden.logits);
        assert!(e < 0.02, "{name}: {e}");
        assert!(golden.margin > 0.05);
        assert_eq!(greedy, golden.greedy, "{name}");

        // What we write is what the gguf package wrote.
        let written = dir.path().join(format!("{name}.gguf"));
        ours.save_gguf(&written, config, Dtype::F32).unwrap();
        let (a, b) = (Gguf::open(&path).unwrap(), Gguf::open(&written).unwrap());
        assert_eq!(a.metadata(), b.metadata(), "{name}");
        assert_eq!(a.tensors().len(), b.tensors().len(), "{name}");
        for tensor in a.tensors() {
            let same = b.find(&tensor.name).unwrap();
            assert_eq!((&tensor.shape, tensor.storage), (&same.shape, same.storage));
            assert_eq!(
                a.read_rows(tensor, 0..tensor.rows().0).unwrap(),
                b.read_rows(same, 0..same.rows().0).unwrap(),
                "{}",
                tensor.name
            );
        }
    }
}

/// An adapter with no zeros in it.
fn filled(model: &Model, config: LoraConfig) -> Lora {
    let fresh = Lora::init(model.config(), config, 3).unwrap();
    let params = (0..fresh.n_params())
        .map(|i| 0.1 * (i as f32 * 0.7).sin())
        .collect();
    Lora::from_parameters(model.config(), fresh.config().clone(), params).unwrap()
}

#[test]
fn any_scale_and_any_choice_of_modules_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("adapter.gguf");
    for name in ["llama3-f16", "deepseek2-v3-split-q8_0"] {
        let model = base(name);
        let plain = LoraConfig {
            target_modules: vec![Projection::O, Projection::Up, Projection::Down],
            ..LoraConfig::all_linear(4)
        };
        let cases = [
            plain.clone(),
            LoraConfig {
                use_rslora: true,
                ..plain.clone()
            },
            LoraConfig {
                alpha_pattern: BTreeMap::from([("o_proj".to_owned(), 3.0)]),
                rank_pattern: BTreeMap::from([("layers.1.*".to_owned(), 2)]),
                ..plain.clone()
            },
            LoraConfig {
                module_pattern: Some(r"model\.layers\.1\..*".to_owned()),
                rank: 1,
                ..plain.clone()
            },
        ];
        for config in cases {
            let adapter = filled(&model, config.clone());
            adapter
                .save_gguf(&path, model.config(), Dtype::F32)
                .unwrap();
            let read = Lora::load(&path, model.config()).unwrap();
            let modules = |l: &Lora| -> Vec<_> {
                let blocks = l.blocks().iter();
                blocks.map(|b| (b.module.clone(), b.rank())).collect()
            };
            assert_eq!(modules(&read), modules(&adapter), "{config:?}");
            // The products are the same, however scale and factors share them.
            for (a, b) in read.blocks().iter().zip(adapter.blocks()) {
                let factor = |l: &Lora, block: &ol_model::LoraBlock| {
                    let values = l.parameters()[block.range_b()].iter();
                    values.map(|v| v * block.scale).collect::<Vec<f32>>()
                };
                let e = error(&factor(&read, a), &factor(&adapter, b));
                assert!(e < 1e-6, "{}: {e}", a.module);
                assert_eq!(
                    read.parameters()[a.range_a()],
                    adapter.parameters()[b.range_a()]
                );
            }
            if !config.use_rslora && config.alpha_pattern.is_empty() {
                assert_eq!(read.hash(), adapter.hash(), "{config:?}");
            }
        }
        for (dtype, format) in [(Dtype::F16, Format::F16), (Dtype::Bf16, Format::Bf16)] {
            let adapter = filled(&model, plain.clone());
            adapter.save_gguf(&path, model.config(), dtype).unwrap();
            let file = Gguf::open(&path).unwrap();
            let is_small =
                |t: &ol_model::GgufTensor| t.storage == ol_model::Storage::Quantised(format);
            assert!(file.tensors().iter().all(is_small));
            let read = Lora::from_gguf(&file, model.config()).unwrap();
            let e = error(read.parameters(), adapter.parameters());
            assert!(e > 0.0 && e < 0.003, "{e}");
        }
    }
}

#[test]
fn what_cannot_be_said_or_meant_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let model = base("llama3-f16");
    let dora = LoraConfig {
        use_dora: true,
        ..LoraConfig::all_linear(4)
    };
    let dora = model.fresh_adapter(&Pool::new(1), dora, 1).unwrap();
    let path = dir.path().join("dora.gguf");
    let refused = |result: Result<(), ol_model::GgufError>| result.unwrap_err().to_string();
    let said = refused(dora.save_gguf(&path, model.config(), Dtype::F32));
    assert!(said.contains("DoRA") && said.contains("merge"), "{said}");
    let latent = base("deepseek2-v3-split-q8_0");
    let config = LoraConfig {
        target_modules: Projection::all_linear(latent.config()),
        ..LoraConfig::all_linear(4)
    };
    let adapter = filled(&latent, config);
    let said = refused(adapter.save_gguf(&path, latent.config(), Dtype::F32));
    assert!(
        said.contains("q_a_proj") && said.contains("merge"),
        "{said}"
    );
    let other = base("qwen3-bf16");
    let adapter = filled(&model, LoraConfig::all_linear(4));
    let said = refused(adapter.save_gguf(&path, other.config(), Dtype::F32));
    assert!(said.contains("another shape"), "{said}");
    assert!(!path.exists());

    let name = "adapters/llama3-f16.gguf";
    let read = |bytes: Vec<u8>, model: &Model| {
        let file = Gguf::from_bytes("some.gguf", bytes).unwrap();
        Lora::from_gguf(&file, model.config())
            .unwrap_err()
            .to_string()
    };
    let whole = std::fs::read(fixture(name)).unwrap();
    let said = read(whole, &other);
    assert!(said.contains("is llama, expected qwen3"), "{said}");
    let said = read(std::fs::read(fixture("llama3-f16.gguf")).unwrap(), &model);
    assert!(said.contains("general.type"), "{said}");
    for (from, to, expected) in [
        (
            "blk.0.attn_q.weight.lora_a",
            "blk.0.attn_q.weight.lora_c",
            "blk.0.attn_q.weight.lora_a: is missing beside",
        ),
        (
            "blk.1.attn_k.weight.lora_b",
            "blk.1.attn_k.weight.lora_d",
            "blk.1.attn_k.weight.lora_b: is missing beside",
        ),
        (
            "blk.0.attn_q",
            "blk.9.attn_q",
            "blk.9.attn_q.weight.lora_a: is no factor",
        ),
    ] {
        let mut bytes = std::fs::read(fixture(name)).unwrap();
        let n = if to.contains("blk.9") { 2 } else { 1 };
        for _ in 0..n {
            bytes = changed_bytes(bytes, from.as_bytes(), to.as_bytes());
        }
        let said = read(bytes, &model);
        assert!(
            said.contains(expected) && said.contains("some.gguf"),
            "{said}"
        );
    }
    // A file where a folder is expected, and the other way round.
    let said = Lora::load(Path::new("/nowhere"), model.config()).unwrap_err();
    assert!(said.to_string().contains("adapter_config.json"), "{said}");
}

#[test]
fn damaged_adapters_are_errors_or_other_adapters() {
    let model = base("llama3-f16");
    let config = model.config();
    let whole = std::fs::read(fixture("adapters/llama3-f16.gguf")).unwrap();
    let read = |bytes: Vec<u8>| {
        let file = Gguf::from_bytes("damaged.gguf", bytes)?;
        Lora::from_gguf(&file, config)
    };
    let n_header = whole.len() - read(whole.clone()).unwrap().n_params() * 4;
    for at in 0..n_header {
        assert!(read(whole[..at].to_vec()).is_err(), "cut at {at}");
        for mask in [1, 1 << (at % 8), 0xFF] {
            let mut bytes = whole.clone();
            bytes[at] ^= mask;
            if let Ok(adapter) = read(bytes) {
                assert!(adapter.fits(config), "byte {at}");
            }
        }
    }
}
