//! The JSON header of a safetensors file.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::Dtype;

/// Longest header accepted; the limit of the format.
pub(super) const MAX_HEADER_SIZE_BYTES: u64 = 100_000_000;

/// One tensor of the file.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) dtype: String,
    pub(super) shape: Vec<usize>,
    /// First byte after the header.
    pub(super) start: u64,
    end: u64,
}

impl Entry {
    /// Elements; the header was checked, so they can be counted.
    pub(super) fn n_elements(&self) -> usize {
        self.shape.iter().product()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

struct RawHeader(BTreeMap<String, Entry>);

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<BTreeMap<String, String>>()?;
                        continue;
                    }
                    let raw: RawEntry = map.next_value()?;
                    let entry = Entry {
                        dtype: raw.dtype,
                        shape: raw.shape,
                        start: raw.data_offsets.0,
                        end: raw.data_offsets.1,
                    };
                    if entries.insert(name.clone(), entry).is_some() {
                        return Err(A::Error::custom(format!("tensor {name:?} twice")));
                    }
                }
                Ok(RawHeader(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// Bytes of an element, for the types of the format.
fn width_bytes(dtype: &str) -> Option<u64> {
    Some(match dtype {
        "BOOL" | "U8" | "I8" | "F8_E4M3" | "F8_E5M2" | "F8_E8M0" => 1,
        "U16" | "I16" | "F16" | "BF16" => 2,
        "U32" | "I32" | "F32" => 4,
        "U64" | "I64" | "F64" | "C64" => 8,
        _ => return None,
    })
}

/// Reads a header and checks that its tensors fill `data_size_bytes` without
/// gap or overlap.
pub(super) fn parse(text: &[u8], data_size_bytes: u64) -> Result<BTreeMap<String, Entry>, String> {
    let RawHeader(entries) =
        serde_json::from_slice(text).map_err(|e| format!("its header: {e}"))?;
    let mut order: Vec<(&String, &Entry)> = entries.iter().collect();
    order.sort_unstable_by_key(|(_, e)| (e.start, e.end));
    let mut next = 0;
    for (name, entry) in order {
        if entry.start != next || entry.end < entry.start {
            return Err(format!(
                "tensor {name:?} is at {}..{}, expected is {next}",
                entry.start, entry.end
            ));
        }
        next = entry.end;
        let n = entry
            .shape
            .iter()
            .try_fold(1_u64, |n, d| n.checked_mul(*d as u64));
        let Some(n) = n else {
            return Err(format!("tensor {name:?} has shape {:?}", entry.shape));
        };
        let size = width_bytes(&entry.dtype).map(|width| n.checked_mul(width));
        if size.is_some_and(|size| size != Some(entry.end - entry.start)) {
            return Err(format!(
                "tensor {name:?} of {} {:?} has {} bytes",
                entry.dtype,
                entry.shape,
                entry.end - entry.start
            ));
        }
    }
    if next != data_size_bytes {
        return Err(format!(
            "its tensors have {next} bytes, the file holds {data_size_bytes}"
        ));
    }
    Ok(entries)
}

/// Length and text of the header for tensors that follow each other.
pub(super) fn write<'a>(
    tensors: impl Iterator<Item = (&'a str, &'a [usize])>,
    dtype: Dtype,
) -> Vec<u8> {
    let mut text = r#"{"__metadata__":{"format":"pt"}"#.to_owned();
    let mut start = 0;
    for (name, shape) in tensors {
        let end = start + shape.iter().product::<usize>() * dtype.size_bytes();
        let name = serde_json::Value::from(name);
        let shape = serde_json::Value::from(shape);
        let dtype = dtype.name();
        text.push_str(&format!(
            r#",{name}:{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}"#
        ));
        start = end;
    }
    text.push('}');
    // Tensors begin at a multiple of eight bytes.
    let padded = text.len().next_multiple_of(8);
    text.extend(std::iter::repeat_n(' ', padded - text.len()));
    let mut out = (text.len() as u64).to_le_bytes().to_vec();
    out.extend(text.as_bytes());
    out
}
