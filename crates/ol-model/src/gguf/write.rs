//! Writing GGUF files, version 3.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use super::{Array, GgufError, Storage, TokenKind, Value};

/// Alignment of tensors, the default of the specification.
const ALIGNMENT: usize = 32;

/// A tensor that will be written.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) name: String,
    /// Lengths, the one of neighbours in memory last.
    pub(crate) shape: Vec<usize>,
    pub(crate) storage: Storage,
}

impl Plan {
    /// Bytes of the tensor; the shape is whole blocks.
    pub(crate) fn size_bytes(&self) -> u64 {
        let (block, size) = self.storage.block();
        let values: u64 = self.shape.iter().map(|n| *n as u64).product();
        values / block as u64 * size as u64
    }
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "floats are stored as f32, as other writers do"
)]
fn put_value(out: &mut Vec<u8>, value: &Value) {
    let mut kind = |id: u32| out.extend(id.to_le_bytes());
    match value {
        Value::Integer(i) => {
            if let Ok(i) = u32::try_from(*i) {
                kind(4);
                out.extend(i.to_le_bytes());
            } else if let Ok(i) = i64::try_from(*i) {
                kind(11);
                out.extend(i.to_le_bytes());
            } else {
                kind(10);
                out.extend(u64::try_from(*i).unwrap_or(u64::MAX).to_le_bytes());
            }
        }
        Value::Float(f) => {
            kind(6);
            out.extend((*f as f32).to_le_bytes());
        }
        Value::Bool(b) => {
            kind(7);
            out.push(u8::from(*b));
        }
        Value::String(s) => {
            kind(8);
            put_string(out, s);
        }
        Value::Array(array) => {
            kind(9);
            kind(match array {
                // Token types, the only array of integers others look for,
                // have 32 bits.
                Array::Integers(_) => 5,
                Array::Floats(_) => 6,
                Array::Bools(_) => 7,
                Array::Strings(_) => 8,
            });
            out.extend((array.len() as u64).to_le_bytes());
            match array {
                Array::Integers(v) => out.extend(v.iter().flat_map(|i| {
                    i32::try_from(*i)
                        .unwrap_or(if *i < 0 { i32::MIN } else { i32::MAX })
                        .to_le_bytes()
                })),
                Array::Floats(v) => out.extend(v.iter().flat_map(|f| f.to_le_bytes())),
                Array::Bools(v) => out.extend(v.iter().map(|b| u8::from(*b))),
                Array::Strings(v) => v.iter().for_each(|s| put_string(out, s)),
            }
        }
    }
}

/// Metadata of a tokenizer.
pub(crate) fn tokenizer_metadata(t: &super::GgufTokenizer) -> Vec<(String, Value)> {
    let mut all = Vec::new();
    let mut put = |name: &str, value: Value| all.push((format!("tokenizer.{name}"), value));
    put("ggml.model", Value::String(t.model.clone()));
    if let Some(pre) = &t.pre {
        put("ggml.pre", Value::String(pre.clone()));
    }
    put(
        "ggml.tokens",
        Value::Array(Array::Strings(t.tokens.clone())),
    );
    if !t.scores.is_empty() {
        put("ggml.scores", Value::Array(Array::Floats(t.scores.clone())));
    }
    if !t.kinds.is_empty() {
        let kinds = t.kinds.iter().map(|kind| match kind {
            TokenKind::Normal => 1,
            TokenKind::Unknown => 2,
            TokenKind::Control => 3,
            TokenKind::UserDefined => 4,
            TokenKind::Unused => 5,
            TokenKind::Byte => 6,
        });
        put(
            "ggml.token_type",
            Value::Array(Array::Integers(kinds.collect())),
        );
    }
    if !t.merges.is_empty() {
        put(
            "ggml.merges",
            Value::Array(Array::Strings(t.merges.clone())),
        );
    }
    for (name, id) in [
        ("bos", t.bos),
        ("eos", t.eos),
        ("eot", t.eot),
        ("unknown", t.unknown),
        ("padding", t.padding),
    ] {
        if let Some(id) = id {
            put(&format!("ggml.{name}_token_id"), Value::Integer(id.into()));
        }
    }
    for (name, flag) in [
        ("bos_token", t.add_bos),
        ("eos_token", t.add_eos),
        ("space_prefix", t.add_space_prefix),
    ] {
        if let Some(flag) = flag {
            put(&format!("ggml.add_{name}"), Value::Bool(flag));
        }
    }
    if let Some(template) = &t.chat_template {
        put("chat_template", Value::String(template.clone()));
    }
    all
}

/// Writes a file beside `path`, then puts it in its place, so that a crash
/// leaves the old one or the new one. `data(i)` gives the bytes of tensor `i`.
///
/// # Errors
/// What the file system says, or `data`.
///
/// # Panics
/// If `data` gives another number of bytes than the plan says.
pub(crate) fn write<E: From<GgufError>>(
    path: &Path,
    metadata: &[(String, Value)],
    tensors: &[Plan],
    mut data: impl FnMut(usize) -> Result<Vec<u8>, E>,
) -> Result<(), E> {
    let mut head = b"GGUF".to_vec();
    head.extend(3_u32.to_le_bytes());
    head.extend((tensors.len() as u64).to_le_bytes());
    head.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        put_string(&mut head, key);
        put_value(&mut head, value);
    }
    let mut offset = 0_u64;
    for plan in tensors {
        put_string(&mut head, &plan.name);
        let dimensions = u32::try_from(plan.shape.len()).unwrap_or(u32::MAX);
        head.extend(dimensions.to_le_bytes());
        for n in plan.shape.iter().rev() {
            head.extend((*n as u64).to_le_bytes());
        }
        let id = plan.storage.id().ok_or_else(|| GgufError::Tensor {
            path: path.to_owned(),
            tensor: plan.name.clone(),
            reason: format!("cannot be stored as {} in GGUF", plan.storage.name()),
        })?;
        head.extend(id.to_le_bytes());
        head.extend(offset.to_le_bytes());
        offset += plan.size_bytes().next_multiple_of(ALIGNMENT as u64);
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let temporary: PathBuf = path.with_file_name(name);
    let io = |source| GgufError::Io {
        path: temporary.clone(),
        source,
    };
    let mut file = BufWriter::new(File::create(&temporary).map_err(io)?);
    let mut put = |bytes: &[u8]| {
        // Everything written before was padded too.
        let padding = bytes.len().next_multiple_of(ALIGNMENT) - bytes.len();
        file.write_all(bytes)
            .and_then(|()| file.write_all(&[0; ALIGNMENT][..padding]))
            .map_err(io)
    };
    put(&head)?;
    for (i, plan) in tensors.iter().enumerate() {
        let bytes = data(i)?;
        assert_eq!(
            bytes.len() as u64,
            plan.size_bytes(),
            "bytes of {}",
            plan.name
        );
        put(&bytes)?;
    }
    let file = file.into_inner().map_err(|e| io(e.into_error()))?;
    file.sync_all().map_err(io)?;
    std::fs::rename(&temporary, path).map_err(io)?;
    if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
        File::open(dir).and_then(|d| d.sync_all()).map_err(io)?;
    }
    Ok(())
}
