//! Answers that may be large: written as they are made, and no further than
//! an answer may be long.

use std::io::{self, Write};

use jsonrpsee::types::ErrorObjectOwned;
use serde::Serialize;
use serde_json::value::RawValue;

use super::errors;

/// What a method answers whose answer may be large.
pub(super) type LargeReply = Result<Box<RawValue>, ErrorObjectOwned>;

/// Anything as JSON of at most so many bytes.
///
/// # Errors
/// If it is longer.
pub(super) fn shown(value: &impl Serialize, max_size_bytes: usize) -> LargeReply {
    let mut writer = Bounded {
        bytes: Vec::new(),
        max_size_bytes,
        is_full: false,
    };
    if let Err(error) = serde_json::to_writer(&mut writer, value) {
        if writer.is_full {
            return Err(errors::limit_exceeded(format!(
                "the answer is larger than {max_size_bytes} bytes"
            )));
        }
        return Err(errors::internal(&error));
    }
    let json = String::from_utf8(writer.bytes).map_err(|error| errors::internal(&error))?;
    RawValue::from_string(json).map_err(|error| errors::internal(&error))
}

struct Bounded {
    bytes: Vec<u8>,
    max_size_bytes: usize,
    is_full: bool,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.max_size_bytes {
            self.is_full = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
