//! Goal: a merged model answers as base and adapter do together, a converted
//! adapter holds the rounded numbers, and no file makes a panic.

use ol_model::{Format, Lora, Model, ModelConfig, Pool, Sequence};

use super::*;
use crate::fixture::{self, decisive};

fn base(dir: &Path) -> Model {
    let config = ModelConfig {
        vocab_size: 64,
        hidden_size: 32,
        intermediate_size: 48,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 16,
        max_position_embeddings: 64,
        ..ModelConfig::default_base()
    };
    let model = decisive(config, 1);
    fs::create_dir_all(dir).unwrap();
    model.save(dir, Dtype::F32).unwrap();
    model
}

fn adapter(model: &Model, dir: &Path) -> Lora {
    let adapter = fixture::adapter(model.config(), 4, 0.5, 3);
    adapter.save(dir, "tiny").unwrap();
    adapter
}

fn losses(model: &Model, adapter: Option<&Lora>) -> Vec<f64> {
    let tokens: Vec<u32> = (0..40).map(|i| (i * 7 + 3) % 64).collect();
    let sequences = [Sequence {
        weights: vec![1.0; tokens.len()],
        tokens,
    }];
    model.losses(&Pool::new(1), adapter, &sequences).unwrap()
}

#[test]
fn a_merged_model_answers_as_base_and_adapter() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let model = base(&at("base"));
    let adapter = adapter(&model, &at("adapter"));
    let merged = merge(&at("base"), &at("adapter"), &at("merged"), None).unwrap();
    assert_eq!(merged.n_modules, 14);
    let (with, without) = (losses(&model, Some(&adapter)), losses(&model, None));
    let read = losses(&Model::load(&at("merged")).unwrap(), None);
    assert!(
        (read[0] - with[0]).abs() < 1e-4 * with[0].abs(),
        "{read:?} {with:?}"
    );
    assert!(
        (with[0] - without[0]).abs() > 0.01 * with[0].abs(),
        "the adapter does nothing"
    );
    merge(&at("base"), &at("adapter"), &at("half"), Some(Dtype::Bf16)).unwrap();
    let half = losses(&Model::load(&at("half")).unwrap(), None);
    assert!(
        (half[0] - with[0]).abs() < 0.02 * with[0].abs(),
        "{half:?} {with:?}"
    );
    let config = fs::read_to_string(at("half").join("config.json")).unwrap();
    assert!(config.contains("\"dtype\": \"bfloat16\""), "{config}");
    // Nothing is ever overwritten.
    assert!(matches!(
        merge(&at("base"), &at("adapter"), &at("merged"), None).unwrap_err(),
        PeftFileError::Taken { .. }
    ));
}

#[test]
fn an_adapter_of_another_base_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let model = base(&at("base"));
    adapter(&model, &at("adapter"));
    let config = ModelConfig {
        hidden_size: 64,
        ..model.config().clone()
    };
    let other = Model::random(config, 1).unwrap();
    fs::create_dir_all(at("other")).unwrap();
    other.save(&at("other"), Dtype::F16).unwrap();
    let error = merge(&at("other"), &at("adapter"), &at("out"), None).unwrap_err();
    assert!(
        error.to_string().contains("belongs to another base"),
        "{error}"
    );
    let error = merge(&at("nowhere"), &at("adapter"), &at("out"), None).unwrap_err();
    assert!(
        error.to_string().contains("name a Hugging Face folder"),
        "{error}"
    );
}

#[test]
fn a_converted_adapter_is_the_rounded_one_and_an_inspection_tells_what_is_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let model = base(&at("base"));
    let adapter = adapter(&model, &at("adapter"));
    let found = inspect(&at("adapter")).unwrap();
    assert_eq!(found.n_parameters, adapter.n_params() as u64);
    assert_eq!(
        (found.rank, found.n_modules, found.layers.len()),
        (4, 14, 2)
    );
    assert_eq!(found.base.as_deref(), Some("tiny"));
    assert_eq!(found.dtype, "F32");
    // The norm of one module's change, by its definition.
    let block = &adapter.blocks()[0];
    let (a, b) = (
        &adapter.parameters()[block.range_a()],
        &adapter.parameters()[block.range_b()],
    );
    let (rank, inputs, outputs) = (block.rows_a.0, block.rows_a.1, block.rows_b.0);
    let mut square = 0.0_f64;
    for o in 0..outputs {
        for i in 0..inputs {
            let sum: f32 = (0..rank).map(|r| b[o * rank + r] * a[r * inputs + i]).sum();
            square += f64::from(2.0 * sum).powi(2);
        }
    }
    let norm = found.layers[0].modules["q_proj"];
    assert!(
        (norm - square.sqrt()).abs() < 1e-4 * norm,
        "{norm} {}",
        square.sqrt()
    );

    convert(&at("adapter"), &at("half"), Dtype::F16).unwrap();
    let half = Lora::load(&at("half"), model.config()).unwrap();
    for (half, whole) in half.parameters().iter().zip(adapter.parameters()) {
        assert_eq!(*half, f16::from_f32(*whole).to_f32());
    }
    convert(&at("half"), &at("again"), Dtype::F32).unwrap();
    let again = Lora::load(&at("again"), model.config()).unwrap();
    assert_eq!(again.parameters(), half.parameters());
    assert_eq!(inspect(&at("half")).unwrap().dtype, "F16");
}

#[test]
fn an_adapter_goes_to_gguf_and_back() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let model = base(&at("base"));
    let adapter = adapter(&model, &at("adapter"));
    let (from, file) = (at("adapter"), at("adapter.gguf"));
    convert_for(&at("base"), &from, &file, Dtype::F32).unwrap();
    let read = Lora::load(&file, model.config()).unwrap();
    assert_eq!(read.hash(), adapter.hash());
    convert_for(&at("base"), &file, &at("back"), Dtype::F32).unwrap();
    let back = Lora::load(&at("back"), model.config()).unwrap();
    assert_eq!(back.hash(), adapter.hash());
    assert_eq!(inspect(&at("back")).unwrap().base.as_deref(), Some("base"));
    // The base may be a GGUF file too.
    model
        .save_gguf(&at("base.gguf"), Format::F16, None)
        .unwrap();
    convert_for(&at("base.gguf"), &file, &at("half"), Dtype::F16).unwrap();
    assert_eq!(inspect(&at("half")).unwrap().dtype, "F16");
    let taken = convert_for(&at("base"), &from, &file, Dtype::F32).unwrap_err();
    assert!(matches!(taken, PeftFileError::Taken { .. }), "{taken}");
    let nowhere = convert_for(&at("nowhere"), &from, &at("x.gguf"), Dtype::F32).unwrap_err();
    assert!(nowhere.to_string().contains("config.json"), "{nowhere}");
}

#[test]
fn a_base_and_its_adapter_become_one_gguf_file() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let pool = Pool::new(2);
    let model = base(&at("base"));
    let adapter = adapter(&model, &at("adapter"));
    let with = losses(&model, Some(&adapter));
    for (format, most) in [(Format::F16, 0.01), (Format::Q8_0, 0.05)] {
        let out = at(&format!("{}.gguf", format.name()));
        let merged = merge_gguf(&pool, &at("base"), &at("adapter"), &out, format).unwrap();
        assert_eq!((merged.n_modules, merged.has_tokenizer), (14, false));
        assert_eq!(merged.size_bytes, fs::metadata(&out).unwrap().len());
        let read = losses(&Model::load(&out).unwrap(), None);
        assert!(
            (read[0] - with[0]).abs() < most * with[0].abs(),
            "{}: {read:?} {with:?}",
            format.name()
        );
        let taken = merge_gguf(&pool, &at("base"), &at("adapter"), &out, format).unwrap_err();
        assert!(matches!(taken, PeftFileError::Taken { .. }), "{taken}");
    }
    // A tokenizer is taken along, or said why not.
    let texts = ["a cat".to_owned()].into_iter();
    let tokenizer = ol_model::Tokenizer::train(texts, 300).unwrap();
    tokenizer.save(&at("base"), 64).unwrap();
    let out = at("with-tokenizer.gguf");
    let error = merge_gguf(&pool, &at("base"), &at("adapter"), &out, Format::F16).unwrap_err();
    assert!(error.to_string().contains("the model has 64"), "{error}");
    assert!(!out.exists());
}

#[test]
fn damaged_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let model = base(&at("base"));
    adapter(&model, &at("adapter"));
    let config = fs::read_to_string(at("adapter").join(CONFIG)).unwrap();
    let weights = fs::read(at("adapter").join(WEIGHTS)).unwrap();
    let check = |config: &str, weights: &[u8], expected: &str| {
        fs::write(at("adapter").join(CONFIG), config).unwrap();
        fs::write(at("adapter").join(WEIGHTS), weights).unwrap();
        let error = inspect(&at("adapter")).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} lacks {expected:?}");
        assert!(convert(&at("adapter"), &at("out"), Dtype::F16).is_err());
        assert!(!at("out").exists());
    };
    check("{", &weights, "not an adapter's configuration");
    check(&config.replace("LORA", "IA3"), &weights, "only LORA");
    check(
        &config,
        &weights[..weights.len() / 2],
        "not a safetensors file",
    );
    check(&config, b"", "not a safetensors file");
    let mut nan = weights.clone();
    let n = nan.len();
    nan[n - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    check(&config, &nan, "is NaN");
    let text = |from: &str, to: &str| {
        let at = weights
            .windows(from.len())
            .position(|w| w == from.as_bytes())
            .unwrap();
        let mut changed = weights.clone();
        changed[at..at + from.len()].copy_from_slice(to.as_bytes());
        changed
    };
    check(&config, &text("lora_A", "lora_C"), "is no factor");
}
