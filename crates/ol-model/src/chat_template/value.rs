//! Values from outside for templates: JSON in the order it was written, without
//! the characters that stand for control tokens.

use std::fmt;

use minijinja::value::Value;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// Text from outside: noncharacters become U+FFFD.
pub(super) fn clean(text: &str) -> String {
    let clean = |c| {
        if super::is_noncharacter(c) {
            char::REPLACEMENT_CHARACTER
        } else {
            c
        }
    };
    text.chars().map(clean).collect()
}

pub(super) fn from_json(value: &serde_json::Value) -> Value {
    match value {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(b) => Value::from(*b),
        serde_json::Value::Number(n) => match (n.as_u64(), n.as_i64()) {
            (Some(n), _) => Value::from(n),
            (_, Some(n)) => Value::from(n),
            _ => Value::from(n.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(s) => Value::from(clean(s)),
        serde_json::Value::Array(list) => list.iter().map(from_json).collect(),
        serde_json::Value::Object(map) => {
            Value::from_pairs(map.iter().map(|(k, v)| (clean(k), from_json(v))))
        }
    }
}

/// A JSON value.
pub(super) struct Outside(Value);

impl Outside {
    pub(super) fn parse(json: &str) -> Result<Value, String> {
        serde_json::from_str::<Self>(json)
            .map(|v| v.0)
            .map_err(|e| e.to_string())
    }
}

impl<'de> Deserialize<'de> for Outside {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Json;

        impl<'de> Visitor<'de> for Json {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON value")
            }

            fn visit_unit<E: Error>(self) -> Result<Value, E> {
                Ok(Value::from(()))
            }

            fn visit_bool<E: Error>(self, v: bool) -> Result<Value, E> {
                Ok(Value::from(v))
            }

            fn visit_u64<E: Error>(self, v: u64) -> Result<Value, E> {
                Ok(Value::from(v))
            }

            fn visit_i64<E: Error>(self, v: i64) -> Result<Value, E> {
                Ok(Value::from(v))
            }

            fn visit_f64<E: Error>(self, v: f64) -> Result<Value, E> {
                Ok(Value::from(v))
            }

            fn visit_str<E: Error>(self, v: &str) -> Result<Value, E> {
                Ok(Value::from(clean(v)))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
                let mut values = Vec::new();
                while let Some(Outside(value)) = list.next_element()? {
                    values.push(value);
                }
                Ok(Value::from(values))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
                let mut pairs = Vec::new();
                while let Some((key, Outside(value))) = map.next_entry::<String, _>()? {
                    pairs.push((clean(&key), value));
                }
                Ok(Value::from_pairs(pairs))
            }
        }

        deserializer.deserialize_any(Json).map(Self)
    }
}
