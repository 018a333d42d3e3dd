//! Metadata values.

use super::{Gguf, GgufError};

/// A metadata value. Integers of all widths are one kind, and so are floats.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// An integer of any width and sign.
    Integer(i128),
    /// A float of either width.
    Float(f64),
    /// A flag.
    Bool(bool),
    /// UTF-8 text.
    String(String),
    /// Values of one kind.
    Array(Array),
}

/// Values of one kind.
#[derive(Debug, Clone, PartialEq)]
pub enum Array {
    /// Integers that fit 64 bits with a sign.
    Integers(Vec<i64>),
    /// Floats.
    Floats(Vec<f32>),
    /// Flags.
    Bools(Vec<bool>),
    /// UTF-8 texts.
    Strings(Vec<String>),
}

impl Array {
    /// Number of values.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Integers(v) => v.len(),
            Self::Floats(v) => v.len(),
            Self::Bools(v) => v.len(),
            Self::Strings(v) => v.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Value {
    fn kind(&self) -> &'static str {
        match self {
            Self::Integer(_) => "an integer",
            Self::Float(_) => "a float",
            Self::Bool(_) => "a flag",
            Self::String(_) => "a string",
            Self::Array(Array::Integers(_)) => "an array of integers",
            Self::Array(Array::Floats(_)) => "an array of floats",
            Self::Array(Array::Bools(_)) => "an array of flags",
            Self::Array(Array::Strings(_)) => "an array of strings",
        }
    }
}

impl Gguf {
    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, GgufError> {
        let Some(value) = self.metadata().get(key) else {
            return Ok(None);
        };
        read(value).map(Some).ok_or_else(|| {
            let reason = match value {
                Value::Integer(i) => format!("is {i}, expected {expected}"),
                other => format!("is {}, expected {expected}", other.kind()),
            };
            self.metadata_error(key, reason)
        })
    }

    /// A number that is a size or an index, if the key is there.
    ///
    /// # Errors
    /// [`GgufError::Metadata`] when it is something else, negative or over 2^32.
    pub fn size(&self, key: &str) -> Result<Option<usize>, GgufError> {
        self.typed(key, "a size", |v| match v {
            Value::Integer(i) => u32::try_from(*i).ok().and_then(|i| usize::try_from(i).ok()),
            _ => None,
        })
    }

    /// A float, if the key is there.
    ///
    /// # Errors
    /// [`GgufError::Metadata`] when it is something else or not finite.
    pub fn float(&self, key: &str) -> Result<Option<f64>, GgufError> {
        self.typed(key, "a finite float", |v| match v {
            Value::Float(f) if f.is_finite() => Some(*f),
            _ => None,
        })
    }

    /// A flag, if the key is there.
    ///
    /// # Errors
    /// [`GgufError::Metadata`] when it is something else.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.typed(key, "a flag", |v| match v {
            Value::Bool(b) => Some(*b),
            _ => None,
        })
    }

    /// A text, if the key is there.
    ///
    /// # Errors
    /// [`GgufError::Metadata`] when it is something else.
    pub fn text(&self, key: &str) -> Result<Option<&str>, GgufError> {
        self.typed(key, "a string", |v| match v {
            Value::String(s) => Some(s.as_str()),
            _ => None,
        })
    }

    /// Texts, if the key is there.
    ///
    /// # Errors
    /// [`GgufError::Metadata`] when it is something else.
    pub fn texts(&self, key: &str) -> Result<Option<&[String]>, GgufError> {
        self.typed(key, "an array of strings", |v| match v {
            Value::Array(Array::Strings(s)) => Some(s.as_slice()),
            // An empty array may be of any kind.
            Value::Array(a) if a.is_empty() => Some(&[]),
            _ => None,
        })
    }

    /// Floats, if the key is there.
    ///
    /// # Errors
    /// [`GgufError::Metadata`] when it is something else.
    pub fn floats(&self, key: &str) -> Result<Option<&[f32]>, GgufError> {
        self.typed(key, "an array of floats", |v| match v {
            Value::Array(Array::Floats(f)) => Some(f.as_slice()),
            _ => None,
        })
    }

    /// Integers, if the key is there.
    ///
    /// # Errors
    /// [`GgufError::Metadata`] when it is something else.
    pub fn integers(&self, key: &str) -> Result<Option<&[i64]>, GgufError> {
        self.typed(key, "an array of integers", |v| match v {
            Value::Array(Array::Integers(i)) => Some(i.as_slice()),
            _ => None,
        })
    }
}
