//! The base, its adapters, an engine and a store of them.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::bf16;
use ol_model::{Lora, LoraConfig, Model, ModelConfig, Projection, Random, Tokenizer};
use ol_runtime::SystemClock;
use ol_serve::{
    AdapterComponents, AdapterError, AdapterFiles, AdapterSource, AdapterStore,
    AdapterStoreOptions, EngineHandle, EngineOptions, RegisterOptions,
};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use tempfile::TempDir;

use crate::{CLIENTS, THREADS};

/// The default base of the repository.
pub(crate) fn base_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/base")
}

/// Adapter number `i`.
pub(crate) fn adapter(model: &ModelConfig, i: usize, is_all: bool) -> Lora {
    let rank = [8, 16, 32, 64][i % 4];
    random_adapter(model, rank, i as u64, is_all)
}

pub(crate) fn random_adapter(model: &ModelConfig, rank: usize, seed: u64, is_all: bool) -> Lora {
    let mut config = LoraConfig::all_linear(rank);
    if !is_all {
        config.target_modules = vec![Projection::Q, Projection::V];
    }
    let fresh = Lora::init(model, config.clone(), seed).expect("the rank is valid");
    // B is zero in a fresh adapter.
    let mut random = Random::new(seed);
    #[expect(
        clippy::cast_possible_truncation,
        reason = "rounding to f32 is what is wanted"
    )]
    let params: Vec<f32> = fresh
        .to_parameters()
        .iter()
        .map(|p| p + 0.01 * (random.uniform() as f32 - 0.5))
        .collect();
    Lora::from_parameters(model, config, params).expect("the parameters fit")
}

/// What the adapters of a fixture are like.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kind {
    /// On every linear layer, or on q and v.
    pub(crate) is_all: bool,
    /// Stored in bf16, or in f32.
    pub(crate) is_half: bool,
}

/// Makes an adapter when it is asked for; the store's folder keeps it.
struct Made {
    model: ModelConfig,
    i: usize,
    kind: Kind,
}

/// The same tensors in bf16.
fn halved(weights: &[u8]) -> Vec<u8> {
    let tensors = SafeTensors::deserialize(weights).expect("it was just written");
    let halved: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, tensor)| {
            let values = tensor.data().as_chunks::<4>().0.iter();
            let values = values.flat_map(|v| bf16::from_f32(f32::from_le_bytes(*v)).to_le_bytes());
            (name.to_owned(), tensor.shape().to_vec(), values.collect())
        })
        .collect();
    let views = halved.iter().map(|(name, shape, data)| {
        let view = TensorView::new(Dtype::BF16, shape.clone(), data);
        (name, view.expect("the bytes fit the shape"))
    });
    safetensors::serialize(views, None).expect("the header can be written")
}

impl fmt::Display for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "adapter {}", self.i)
    }
}

impl AdapterSource for Made {
    fn read(&self, _: u64) -> Result<AdapterFiles, AdapterError> {
        let (config, mut weights) = adapter(&self.model, self.i, self.kind.is_all).to_bytes("base");
        if self.kind.is_half {
            weights = halved(&weights);
        }
        Ok(AdapterFiles::Peft {
            config: config.into(),
            weights: weights.into(),
        })
    }
}

pub(crate) struct Fixture {
    pub(crate) store: AdapterStore,
    pub(crate) engine: EngineHandle,
    _folder: TempDir,
}

impl Fixture {
    /// `n` adapters, and so much memory for them.
    pub(crate) fn new(n: usize, kind: Kind, budget_bytes: u64) -> Self {
        let base = Model::load(&base_dir()).expect("the base is in the repository");
        let tokenizer = Tokenizer::load(&base_dir()).expect("the base is in the repository");
        let folder = TempDir::new().expect("there is a temporary directory");
        let options = AdapterStoreOptions {
            host_budget_bytes: budget_bytes,
            dir: Some(folder.path().to_owned()),
            ..AdapterStoreOptions::default()
        };
        let components = AdapterComponents::new(Arc::new(SystemClock::new()));
        let store = AdapterStore::open(base.config(), options, components)
            .expect("the folder can be written");
        for i in 0..n {
            let made = Made {
                model: base.config().clone(),
                i,
                kind,
            };
            store
                .register_from(&name(i), Arc::new(made), RegisterOptions::default())
                .expect("the adapters are valid");
        }
        let options = EngineOptions {
            n_rows_max: CLIENTS,
            n_prefix_tokens_max: 0,
            ..EngineOptions::default()
        };
        let engine = EngineHandle::start(Arc::new(base), Arc::new(tokenizer), THREADS, options)
            .expect("the bounds are valid");
        Self {
            store,
            engine,
            _folder: folder,
        }
    }
}

pub(crate) fn name(i: usize) -> String {
    format!("a{i}")
}

/// The tokens of request `row`, which no other begins with.
pub(crate) fn prompt(row: usize, length: usize, n_vocab: usize) -> Vec<u32> {
    let token = |i: usize| {
        u32::try_from(10 + (7 + 31 * row + 17 * i) % (n_vocab - 10)).expect("a small vocabulary")
    };
    (0..length).map(token).collect()
}
