//! What the binary carries, so that `up` needs no network: the base model, the
//! demo datanets and the adapters trained on them.

use std::fs;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, ensure};

/// Largest unpacked datanet, in bytes.
const DATANET_SIZE_BYTES_MAX: u64 = 64 << 20;

/// A file with its name.
type File = (&'static str, &'static [u8]);

/// A demo datanet and the model trained on it, which have the same name.
#[derive(Debug)]
pub(crate) struct Demo {
    pub(crate) name: &'static str,
    records_xz: &'static [u8],
    /// The description, which makes a folder complete, comes last.
    model: [File; 10],
}

macro_rules! asset {
    ($($part:literal),+) => {
        include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/", $($part),+))
    };
}

macro_rules! demo {
    ($name:literal) => {
        demo!(
            $name,
            "adapter_config.json",
            "adapter_model.safetensors",
            "segments/1/adapter_config.json",
            "segments/1/adapter_model.safetensors",
            "segments/2/adapter_config.json",
            "segments/2/adapter_model.safetensors",
            "manifest.json",
            "sketches.bin",
            "sketch-map.bin",
            "model.json"
        )
    };
    ($name:literal, $($file:literal),+) => {
        Demo {
            name: $name,
            records_xz: asset!("datanets/", $name, ".jsonl.xz"),
            model: [$(($file, asset!("models/", $name, "/", $file))),+],
        }
    };
}

/// The demo datanets, in the order in which they are set up.
pub(crate) static DEMOS: [Demo; 3] = [demo!("healthcare"), demo!("legal"), demo!("defi-exploits")];

static BASE: [File; 4] = [
    ("config.json", asset!("base/config.json")),
    ("model.safetensors", asset!("base/model.safetensors")),
    ("tokenizer.json", asset!("base/tokenizer.json")),
    (
        "tokenizer_config.json",
        asset!("base/tokenizer_config.json"),
    ),
];

impl Demo {
    /// The records as JSONL.
    pub(crate) fn records(&self) -> anyhow::Result<Vec<u8>> {
        let mut jsonl = Vec::new();
        xz2::read::XzDecoder::new(self.records_xz)
            .take(DATANET_SIZE_BYTES_MAX)
            .read_to_end(&mut jsonl)
            .with_context(|| format!("the embedded records of {}", self.name))?;
        Ok(jsonl)
    }

    /// Writes the shipped model into a folder, unless one is there.
    pub(crate) fn install_model(&self, dir: &Path) -> anyhow::Result<()> {
        // The description is written last: with it the folder is complete.
        if dir.join("model.json").exists() {
            return Ok(());
        }
        install(&self.model, dir)
    }
}

/// Writes the base model into a folder, unless it is there.
///
/// # Errors
/// If it cannot be written, or what is there is not what was shipped.
pub(crate) fn install_base(dir: &Path) -> anyhow::Result<()> {
    for (name, shipped) in BASE {
        let path = dir.join(name);
        if path.exists() {
            let found = fs::read(&path).with_context(|| path.display().to_string())?;
            ensure!(
                found == shipped,
                "{} is not the file that was shipped; remove the folder to restore it",
                path.display()
            );
        }
    }
    install(&BASE, dir)
}

/// Writes files so that a crash leaves each whole or absent.
fn install(files: &[File], dir: &Path) -> anyhow::Result<()> {
    for (name, bytes) in files {
        let path = dir.join(name);
        if !path.exists() {
            let folder = path.parent().unwrap_or(dir);
            fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
            ol_model::write_atomic(&path, bytes).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}
