//! Header of a GGUF file. Every count is held against the bytes that are left
//! before anything is allocated for it.

use std::collections::{BTreeMap, HashSet};
use std::io::Read;
use std::path::Path;

use super::{Array, GgufError, GgufTensor, MAX_GGUF_HEADER_SIZE_BYTES, Storage, Value};

/// Most metadata entries, and most tensors.
const MAX_ENTRIES: u64 = 1 << 16;

/// Longest name of a tensor and longest key.
const MAX_NAME_SIZE_BYTES: u64 = 512;

/// Longest string.
const MAX_STRING_SIZE_BYTES: u64 = 16 << 20;

/// Most dimensions of a tensor.
const MAX_DIMENSIONS: u32 = 4;

/// Largest alignment of tensors.
const MAX_ALIGNMENT: u64 = 1 << 20;

/// What the header says, checked.
pub(super) struct Header {
    pub(super) metadata: BTreeMap<String, Value>,
    pub(super) tensors: Vec<GgufTensor>,
}

struct Reader<'a, R> {
    path: &'a Path,
    inner: R,
    /// Bytes read.
    at: u64,
    /// Bytes that may be read in all.
    limit: u64,
}

impl<R: Read> Reader<'_, R> {
    fn error(&self, reason: impl Into<String>) -> GgufError {
        GgufError::Format {
            path: self.path.to_owned(),
            reason: format!("{} (at byte {})", reason.into(), self.at),
        }
    }

    fn left(&self) -> u64 {
        self.limit - self.at
    }

    /// Refuses `n` things of at least `size_bytes` each if they cannot be there.
    fn check(&self, n: u64, size_bytes: u64, what: &str) -> Result<usize, GgufError> {
        if n.checked_mul(size_bytes).is_none_or(|s| s > self.left()) {
            return Err(self.error(format!(
                "{n} {what} do not fit the {} bytes left of the header",
                self.left()
            )));
        }
        usize::try_from(n).map_err(|_| self.error(format!("{n} {what}")))
    }

    fn bytes(&mut self, n: u64, what: &str) -> Result<Vec<u8>, GgufError> {
        let n = self.check(n, 1, what)?;
        let mut bytes = vec![0; n];
        self.fill(&mut bytes, what)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8], what: &str) -> Result<(), GgufError> {
        if bytes.len() as u64 > self.left() {
            return Err(self.error(format!("it ends within {what}")));
        }
        self.inner
            .read_exact(bytes)
            .map_err(|e| self.error(format!("{what} cannot be read: {e}")))?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], GgufError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes, what)?;
        Ok(bytes)
    }

    fn u32(&mut self, what: &str) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    fn string(&mut self, limit: u64, what: &str) -> Result<String, GgufError> {
        let n = self.u64(what)?;
        if n > limit {
            return Err(self.error(format!("{what} of {n} bytes, allowed are {limit}")));
        }
        let bytes = self.bytes(n, what)?;
        String::from_utf8(bytes).map_err(|_| self.error(format!("{what} is not UTF-8")))
    }

    fn bool(&mut self, what: &str) -> Result<bool, GgufError> {
        match self.array::<1>(what)? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(self.error(format!("{what}: a flag is {other}, expected 0 or 1"))),
        }
    }

    fn integer(&mut self, kind: u32, what: &str) -> Result<i128, GgufError> {
        Ok(match kind {
            0 => u8::from_le_bytes(self.array(what)?).into(),
            1 => i8::from_le_bytes(self.array(what)?).into(),
            2 => u16::from_le_bytes(self.array(what)?).into(),
            3 => i16::from_le_bytes(self.array(what)?).into(),
            4 => u32::from_le_bytes(self.array(what)?).into(),
            5 => i32::from_le_bytes(self.array(what)?).into(),
            10 => u64::from_le_bytes(self.array(what)?).into(),
            _ => i64::from_le_bytes(self.array(what)?).into(),
        })
    }

    fn value(&mut self, key: &str) -> Result<Value, GgufError> {
        let kind = self.u32(key)?;
        Ok(match kind {
            0..=5 | 10 | 11 => Value::Integer(self.integer(kind, key)?),
            6 => Value::Float(f32::from_le_bytes(self.array(key)?).into()),
            7 => Value::Bool(self.bool(key)?),
            8 => Value::String(self.string(MAX_STRING_SIZE_BYTES, key)?),
            9 => Value::Array(self.values(key)?),
            12 => Value::Float(f64::from_le_bytes(self.array(key)?)),
            _ => return Err(self.error(format!("{key}: no value type {kind}"))),
        })
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "arrays of doubles are kept as f32"
    )]
    fn values(&mut self, key: &str) -> Result<Array, GgufError> {
        let kind = self.u32(key)?;
        let n = self.u64(key)?;
        let size_bytes = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            9 => return Err(self.error(format!("{key}: arrays of arrays are not read"))),
            _ => return Err(self.error(format!("{key}: no value type {kind}"))),
        };
        let n = self.check(n, size_bytes, "array elements")?;
        Ok(match kind {
            6 => Array::Floats(
                (0..n)
                    .map(|_| Ok(f32::from_le_bytes(self.array(key)?)))
                    .collect::<Result<_, GgufError>>()?,
            ),
            12 => Array::Floats(
                (0..n)
                    .map(|_| Ok(f64::from_le_bytes(self.array(key)?) as f32))
                    .collect::<Result<_, GgufError>>()?,
            ),
            7 => Array::Bools((0..n).map(|_| self.bool(key)).collect::<Result<_, _>>()?),
            8 => Array::Strings(
                (0..n)
                    .map(|_| self.string(MAX_STRING_SIZE_BYTES, key))
                    .collect::<Result<_, _>>()?,
            ),
            _ => Array::Integers(
                (0..n)
                    .map(|_| {
                        let value = self.integer(kind, key)?;
                        i64::try_from(value).map_err(|_| self.error(format!("{key}: {value}")))
                    })
                    .collect::<Result<_, _>>()?,
            ),
        })
    }

    /// A table entry; `offset` is still relative to the tensor data.
    fn tensor(&mut self) -> Result<GgufTensor, GgufError> {
        let name = self.string(MAX_NAME_SIZE_BYTES, "the name of a tensor")?;
        let bad = |path: &Path, reason: String| GgufError::Tensor {
            path: path.to_owned(),
            tensor: name.clone(),
            reason,
        };
        let n = self.u32(&name)?;
        if n == 0 || n > MAX_DIMENSIONS {
            let reason = format!("has {n} dimensions, expected 1 to {MAX_DIMENSIONS}");
            return Err(bad(self.path, reason));
        }
        let mut shape = Vec::new();
        for _ in 0..n {
            let length = self.u64(&name)?;
            match usize::try_from(length) {
                Ok(length @ 1..=0x7FFF_FFFF) => shape.push(length),
                _ => return Err(bad(self.path, format!("has a dimension of {length}"))),
            }
        }
        shape.reverse();
        let id = self.u32(&name)?;
        let storage = Storage::from_id(id).ok_or_else(|| {
            let reason = format!(
                "is stored as {}, expected {}",
                type_name(id),
                Storage::READABLE
            );
            bad(self.path, reason)
        })?;
        let offset = self.u64(&name)?;
        let (block, block_size) = storage.block();
        let cols = shape[shape.len() - 1];
        if !cols.is_multiple_of(block) {
            let reason = format!(
                "has rows of {cols}, which are not whole {} blocks of {block}",
                storage.name()
            );
            return Err(bad(self.path, reason));
        }
        let size_bytes = shape[..shape.len() - 1]
            .iter()
            .try_fold(cols / block * block_size, |size, n| size.checked_mul(*n))
            .ok_or_else(|| bad(self.path, format!("has shape {shape:?}, too large")))?;
        Ok(GgufTensor {
            name,
            shape,
            storage,
            offset,
            size_bytes,
        })
    }
}

/// Names of types that exist but are not read.
fn type_name(id: u32) -> String {
    const NAMES: [(u32, &str); 26] = [
        (3, "Q4_1"),
        (6, "Q5_0"),
        (7, "Q5_1"),
        (9, "Q8_1"),
        (10, "Q2_K"),
        (11, "Q3_K"),
        (13, "Q5_K"),
        (15, "Q8_K"),
        (16, "IQ2_XXS"),
        (17, "IQ2_XS"),
        (18, "IQ3_XXS"),
        (19, "IQ1_S"),
        (20, "IQ4_NL"),
        (21, "IQ3_S"),
        (22, "IQ2_S"),
        (23, "IQ4_XS"),
        (24, "I8"),
        (25, "I16"),
        (26, "I32"),
        (27, "I64"),
        (28, "F64"),
        (29, "IQ1_M"),
        (34, "TQ1_0"),
        (35, "TQ2_0"),
        (39, "MXFP4"),
        (40, "NVFP4"),
    ];
    NAMES
        .iter()
        .find(|(i, _)| *i == id)
        .map_or_else(|| format!("unknown type {id}"), |(_, n)| (*n).to_owned())
}

/// Reads and checks the header of a file of `len` bytes.
pub(super) fn header(path: &Path, inner: impl Read, len: u64) -> Result<Header, GgufError> {
    let mut r = Reader {
        path,
        inner,
        at: 0,
        limit: len.min(MAX_GGUF_HEADER_SIZE_BYTES),
    };
    let magic = r.array::<4>("the magic number")?;
    if magic != *b"GGUF" {
        return Err(r.error(format!("it starts with {magic:?}, expected \"GGUF\"")));
    }
    let version = r.u32("the version")?;
    if !matches!(version, 2 | 3) {
        let hint = if matches!(version.swap_bytes(), 1..=3) {
            " (big-endian)"
        } else {
            ""
        };
        return Err(r.error(format!("version {version}{hint}, expected 2 or 3")));
    }
    let n_tensors = r.u64("the number of tensors")?;
    let n_entries = r.u64("the number of metadata entries")?;
    for (n, what) in [(n_tensors, "tensors"), (n_entries, "metadata entries")] {
        if n > MAX_ENTRIES {
            return Err(r.error(format!("{n} {what}, allowed are {MAX_ENTRIES}")));
        }
    }
    let mut metadata = BTreeMap::new();
    for _ in 0..n_entries {
        let key = r.string(MAX_NAME_SIZE_BYTES, "a metadata key")?;
        let value = r.value(&key)?;
        if metadata.contains_key(&key) {
            return Err(r.error(format!("metadata {key} is there twice")));
        }
        metadata.insert(key, value);
    }
    let mut tensors = Vec::new();
    for _ in 0..n_tensors {
        tensors.push(r.tensor()?);
    }
    let alignment = match metadata.get("general.alignment") {
        None => 32,
        Some(Value::Integer(a)) => u64::try_from(*a)
            .ok()
            .filter(|a| a.is_power_of_two() && *a <= MAX_ALIGNMENT)
            .ok_or_else(|| {
                r.error(format!(
                    "general.alignment is {a}, expected a power of two up to {MAX_ALIGNMENT}"
                ))
            })?,
        Some(_) => return Err(r.error("general.alignment is not an integer")),
    };
    place(
        path,
        &mut tensors,
        r.at.next_multiple_of(alignment),
        alignment,
        len,
    )?;
    Ok(Header { metadata, tensors })
}

/// Turns offsets into places in the file, and checks them.
fn place(
    path: &Path,
    tensors: &mut [GgufTensor],
    start: u64,
    alignment: u64,
    len: u64,
) -> Result<(), GgufError> {
    let bad = |tensor: &GgufTensor, reason: String| GgufError::Tensor {
        path: path.to_owned(),
        tensor: tensor.name.clone(),
        reason,
    };
    let mut names = HashSet::new();
    for tensor in tensors.iter_mut() {
        if !tensor.offset.is_multiple_of(alignment) {
            let reason = format!(
                "starts at {}, expected a multiple of {alignment}",
                tensor.offset
            );
            return Err(bad(tensor, reason));
        }
        let end = tensor
            .offset
            .checked_add(start)
            .and_then(|first| first.checked_add(tensor.size_bytes as u64));
        if end.is_none_or(|end| end > len) {
            let reason = format!(
                "takes {} bytes from {} of the tensor data, but the file has {len} bytes, {start} of them before",
                tensor.size_bytes, tensor.offset
            );
            return Err(bad(tensor, reason));
        }
        tensor.offset += start;
    }
    for tensor in &*tensors {
        if !names.insert(&tensor.name) {
            return Err(bad(tensor, "is there twice".to_owned()));
        }
    }
    let mut order: Vec<&GgufTensor> = tensors.iter().collect();
    order.sort_by_key(|t| t.offset);
    for pair in order.windows(2) {
        if pair[0].offset + pair[0].size_bytes as u64 > pair[1].offset {
            let reason = format!("lies partly where {} lies", pair[0].name);
            return Err(bad(pair[1], reason));
        }
    }
    Ok(())
}
