//! Adapters and merged models as GGUF files, for llama.cpp and what is built on
//! it. The base says what the file alone does not: which rows of a matrix
//! belong together.

use std::path::Path;

use ol_model::{Dtype, Format, Gguf, GgufTokenizer, Lora, Model, ModelConfig, Pool, WeightFormat};

use super::{
    Adapter, JSON_SIZE_BYTES_MAX, PeftFileError, format as bad, io, new_dir, read_limited,
};

/// What a merge into one GGUF file came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MergedFile {
    /// Modules of the base that were changed.
    pub n_modules: usize,
    /// Whether the file also has the tokenizer.
    pub has_tokenizer: bool,
    /// Size of the file, in bytes.
    pub size_bytes: u64,
}

/// Whether a path names a GGUF file.
#[must_use]
pub fn is_gguf(path: &Path) -> bool {
    path.extension()
        .is_some_and(|end| end.eq_ignore_ascii_case("gguf"))
}

/// Stores an adapter for `base` (a Hugging Face folder or a GGUF file) as
/// `dtype`: from a PEFT folder or a GGUF file to a GGUF file, if `out` ends so,
/// or else to a new PEFT folder.
///
/// # Errors
/// [`PeftFileError`]; [`PeftFileError::Taken`] if there is something at `out`.
pub fn convert_for(
    base: &Path,
    adapter: &Path,
    out: &Path,
    dtype: Dtype,
) -> Result<(), PeftFileError> {
    let config = config_of(base)?;
    let lora = Lora::load(adapter, &config)?;
    if is_gguf(out) {
        new_file(out)?;
        return Ok(lora.save_gguf(out, &config, dtype)?);
    }
    let (text, weights) = lora.to_bytes(&name_of(base));
    let adapter = Adapter::parse(adapter, text, weights)?;
    new_dir(out)?;
    adapter.store(out, dtype)
}

/// Adds an adapter to its base and writes one GGUF file with the matrices in
/// `format`, and the tokenizer if the base has one. The model is held in memory
/// meanwhile, adapted matrices in f32.
///
/// # Errors
/// [`PeftFileError`]; [`PeftFileError::Taken`] if there is something at `out`.
pub fn merge_gguf(
    pool: &Pool,
    base: &Path,
    adapter: &Path,
    out: &Path,
    format: Format,
) -> Result<MergedFile, PeftFileError> {
    new_file(out)?;
    let config = config_of(base)?;
    let lora = Lora::load(adapter, &config)?;
    let tokenizer = if base.is_file() {
        Gguf::open(base)?.tokenizer()?
    } else if base.join("tokenizer.json").exists() {
        Some(GgufTokenizer::load(base, config.vocab_size)?)
    } else {
        None
    };
    let mut model = Model::load_as(pool, base, WeightFormat::Stored)?;
    model.merge(pool, &lora)?;
    model.save_gguf(out, format, tokenizer.as_ref())?;
    Ok(MergedFile {
        n_modules: lora.blocks().len(),
        has_tokenizer: tokenizer.is_some(),
        size_bytes: std::fs::metadata(out).map_err(io(out))?.len(),
    })
}

/// Shape of the base in a folder or a GGUF file.
fn config_of(base: &Path) -> Result<ModelConfig, PeftFileError> {
    if base.is_file() {
        return Ok(Gguf::open(base)?.config()?);
    }
    let path = base.join("config.json");
    let text = read_limited(&path, JSON_SIZE_BYTES_MAX)?;
    ModelConfig::from_json(&text).map_err(|e| bad(&path, e.to_string()))
}

fn name_of(base: &Path) -> String {
    let name = base.file_stem().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

fn new_file(path: &Path) -> Result<(), PeftFileError> {
    if path.exists() {
        return Err(PeftFileError::Taken {
            path: path.to_owned(),
        });
    }
    Ok(())
}
