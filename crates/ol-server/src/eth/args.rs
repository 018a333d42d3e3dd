//! Parameters by position, and geth's words for what is wrong with them.

use jsonrpsee::types::{ErrorObjectOwned, Params};
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::errors;

/// The parameters of one request; read one after the other.
#[derive(Debug)]
pub(super) struct Args<'a> {
    values: Vec<&'a RawValue>,
    n_read: usize,
}

impl<'a> Args<'a> {
    /// The parameters of a method that takes at most `max` of them.
    ///
    /// # Errors
    /// If they are no array, or more than `max`.
    pub(super) fn parse(params: &'a Params<'_>, max: usize) -> Result<Self, ErrorObjectOwned> {
        let values: Vec<&RawValue> = match params.as_str().map(str::trim) {
            None | Some("" | "null") => Vec::new(),
            Some(json) => {
                serde_json::from_str(json).map_err(|_| errors::invalid_params("non-array args"))?
            }
        };
        if values.len() > max {
            return Err(errors::invalid_params(format!(
                "too many arguments, want at most {max}"
            )));
        }
        Ok(Self { values, n_read: 0 })
    }

    /// The next parameter.
    ///
    /// # Errors
    /// If there is none, or it is not a `T`.
    pub(super) fn required<T: DeserializeOwned>(&mut self) -> Result<T, ErrorObjectOwned> {
        let position = self.n_read;
        self.optional()?.ok_or_else(|| {
            errors::invalid_params(format!("missing value for required argument {position}"))
        })
    }

    /// The next parameter, which may be `null` or not be there.
    ///
    /// # Errors
    /// If it is not a `T`.
    pub(super) fn optional<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ErrorObjectOwned> {
        let position = self.n_read;
        self.n_read += 1;
        let Some(value) = self.values.get(position) else {
            return Ok(None);
        };
        serde_json::from_str(value.get()).map_err(|error| {
            let reason = without_place(&error);
            errors::invalid_params(format!("invalid argument {position}: {reason}"))
        })
    }
}

/// What serde says, without line and column: they count from a place that the
/// caller does not see.
fn without_place(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rsplit_once(" at line ") {
        Some((reason, _)) => reason.to_owned(),
        None => text,
    }
}
