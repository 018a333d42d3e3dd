//! Reads one family's fixture; `fixtures/README.md` says what is in it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ol_model::{Lora, Model, Sequence};
use safetensors::SafeTensors;
use serde_json::Value;

/// A model with what transformers and PEFT make of it.
pub(crate) struct Fixture {
    pub(crate) dir: PathBuf,
    pub(crate) model: Model,
    pub(crate) golden: Value,
    tensors: BTreeMap<String, Vec<f32>>,
}

pub(crate) fn folder(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures/families")
        .join(family)
}

impl Fixture {
    pub(crate) fn load(family: &str) -> Self {
        let dir = folder(family);
        let text = std::fs::read(dir.join("golden.json")).unwrap();
        let bytes = std::fs::read(dir.join("golden.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes)
            .unwrap()
            .iter()
            .map(|(name, view)| {
                assert_eq!(view.dtype(), safetensors::Dtype::F32, "{name}");
                let (values, rest) = view.data().as_chunks::<4>();
                assert!(rest.is_empty(), "{name}");
                let values = values.iter().map(|b| f32::from_le_bytes(*b)).collect();
                (name.to_owned(), values)
            })
            .collect();
        Self {
            model: Model::load(&dir.join("base")).unwrap(),
            golden: serde_json::from_slice(&text).unwrap(),
            tensors,
            dir,
        }
    }

    pub(crate) fn tensor(&self, name: &str) -> &[f32] {
        self.tensors
            .get(name)
            .unwrap_or_else(|| panic!("no tensor {name} in the fixture"))
    }

    /// Names of the tensors that start with `prefix`, without it.
    pub(crate) fn names(&self, prefix: &str) -> Vec<&str> {
        self.tensors
            .keys()
            .filter_map(|n| n.strip_prefix(prefix))
            .collect()
    }

    pub(crate) fn adapter(&self, name: &str) -> Lora {
        Lora::load(&self.dir.join(name), self.model.config()).unwrap()
    }

    /// The adapters that the family has.
    pub(crate) fn adapters(&self) -> Vec<&'static str> {
        ["adapter", "whole", "rslora", "dora"]
            .into_iter()
            .filter(|name| self.dir.join(name).exists())
            .collect()
    }

    pub(crate) fn prompts(&self) -> Vec<Vec<u32>> {
        lists(&self.golden["prompts"])
    }

    /// Greedy tokens of every prompt, of the base or an adapter.
    pub(crate) fn greedy(&self, of: &str) -> Vec<Vec<u32>> {
        lists(&self.golden[of]["greedy"])
    }

    pub(crate) fn losses(&self, of: &str) -> Vec<f64> {
        floats(&self.golden[of]["losses"])
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "the file was written from f32"
    )]
    pub(crate) fn sequences(&self) -> Vec<Sequence> {
        let read = |s: &Value| Sequence {
            tokens: tokens(&s["tokens"]),
            weights: floats(&s["weights"]).iter().map(|w| *w as f32).collect(),
        };
        self.golden["sequences"]
            .as_array()
            .unwrap()
            .iter()
            .map(read)
            .collect()
    }
}

pub(crate) fn floats(value: &Value) -> Vec<f64> {
    let values = value.as_array().unwrap().iter();
    values.map(|v| v.as_f64().unwrap()).collect()
}

fn tokens(value: &Value) -> Vec<u32> {
    let values = value.as_array().unwrap().iter();
    values
        .map(|v| u32::try_from(v.as_u64().unwrap()).unwrap())
        .collect()
}

fn lists(value: &Value) -> Vec<Vec<u32>> {
    value.as_array().unwrap().iter().map(tokens).collect()
}
