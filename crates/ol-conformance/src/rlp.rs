//! `RLPTests`: the recursive length prefix, as everything that comes in is
//! decoded by.

use std::collections::BTreeMap;

use alloy_primitives::{Uint, hex};
use alloy_rlp::{BufMut, Decodable, Encodable, Header, PayloadView};
use serde::Deserialize;
use serde_json::Value;

use crate::fields::FieldError;
use crate::{CaseResult, Verdict};

/// Deepest nesting that is followed.
const DEPTH_MAX: usize = 64;

#[derive(Debug, Deserialize)]
struct RlpTest {
    #[serde(rename = "in")]
    value: Value,
    out: String,
}

/// A string or a list of items.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Item {
    String(Vec<u8>),
    List(Vec<Self>),
}

impl Encodable for Item {
    fn encode(&self, out: &mut dyn BufMut) {
        match self {
            Self::String(bytes) => bytes.as_slice().encode(out),
            Self::List(items) => items.encode(out),
        }
    }
}

impl Decodable for Item {
    fn decode(buf: &mut &[u8]) -> alloy_rlp::Result<Self> {
        decode(buf, 0)
    }
}

fn decode(buf: &mut &[u8], depth: usize) -> alloy_rlp::Result<Item> {
    if depth > DEPTH_MAX {
        return Err(alloy_rlp::Error::Custom("nested too deep"));
    }
    match Header::decode_raw(buf)? {
        PayloadView::String(bytes) => Ok(Item::String(bytes.to_vec())),
        PayloadView::List(items) => items
            .into_iter()
            .map(|mut item| decode(&mut item, depth + 1))
            .collect::<Result<_, _>>()
            .map(Item::List),
    }
}

pub(crate) fn run(content: &[u8]) -> Result<Vec<CaseResult>, FieldError> {
    let tests: BTreeMap<String, RlpTest> = serde_json::from_slice(content)?;
    tests
        .into_iter()
        .map(|(name, test)| Ok((name, run_case(&test)?)))
        .collect()
}

fn run_case(test: &RlpTest) -> Result<Verdict, FieldError> {
    let raw = hex::decode(&test.out).map_err(|_| FieldError::text(&test.out, "bytes"))?;
    let decoded = alloy_rlp::decode_exact::<Item>(&raw);
    let failed = |what: &str| Ok(Verdict::Failed(what.to_owned()));
    match (test.value.as_str(), decoded) {
        (Some("INVALID"), Ok(_)) => failed("decoded, expected an error"),
        (Some("INVALID"), Err(_)) => Ok(Verdict::Passed),
        (_, Err(error)) => Ok(Verdict::Failed(error.to_string())),
        (Some("VALID"), Ok(item)) if alloy_rlp::encode(&item) == raw => Ok(Verdict::Passed),
        (_, Ok(item)) => {
            let expected = item_of(&test.value)?;
            if alloy_rlp::encode(&expected) != raw {
                return failed("encodes to other bytes");
            }
            if item != expected {
                return failed("decodes to something else");
            }
            Ok(Verdict::Passed)
        }
    }
}

/// The item that a test describes: text, a number, `#` and a large number, or
/// a list of them.
fn item_of(value: &Value) -> Result<Item, FieldError> {
    match value {
        Value::Array(items) => items
            .iter()
            .map(item_of)
            .collect::<Result<_, _>>()
            .map(Item::List),
        Value::String(text) => match text.strip_prefix('#') {
            Some(digits) => big_endian(digits).map(Item::String),
            None => Ok(Item::String(text.as_bytes().to_vec())),
        },
        other => big_endian(&other.to_string()).map(Item::String),
    }
}

/// The bytes of a decimal number without leading zeros; one test has a number
/// of 257 bits.
fn big_endian(digits: &str) -> Result<Vec<u8>, FieldError> {
    let number = Uint::<512, 8>::from_str_radix(digits, 10)
        .map_err(|_| FieldError::text(digits, "number"))?;
    Ok(number.to_be_bytes_trimmed_vec())
}
