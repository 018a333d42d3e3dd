//! A JSON object, field by field.

use serde_json::{Map, Value};

use super::spec::{Integer, Number};
use crate::api::error::ApiError;

/// The fields of a JSON object; `null` is the same as absent.
pub(in crate::api) struct Fields(Map<String, Value>);

impl From<Map<String, Value>> for Fields {
    fn from(fields: Map<String, Value>) -> Self {
        Self(fields)
    }
}

impl Fields {
    pub(in crate::api) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let text = std::str::from_utf8(body).map_err(|error| {
            let message = format!(
                "the body is not UTF-8: byte {} is wrong",
                error.valid_up_to()
            );
            ApiError::invalid("invalid_utf8", message)
        })?;
        match serde_json::from_str(text) {
            Ok(Value::Object(fields)) => Ok(Self(fields)),
            Ok(_) => Err(ApiError::invalid(
                "malformed_json",
                "the body must be a JSON object",
            )),
            Err(error) => {
                // The position only: a message of the parser may quote the prompt.
                let (line, column) = (error.line(), error.column());
                let message =
                    format!("the body is not JSON: error at line {line}, column {column}");
                Err(ApiError::invalid("malformed_json", message))
            }
        }
    }

    pub(in crate::api) fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    pub(in crate::api) fn required(&self, name: &str) -> Result<&Value, ApiError> {
        self.get(name).ok_or_else(|| {
            ApiError::invalid("missing_required_parameter", format!("{name} is missing"))
                .with_param(name)
        })
    }

    pub(in crate::api) fn string(&self, name: &str) -> Result<&str, ApiError> {
        let value = self.required(name)?;
        value.as_str().ok_or_else(|| wrong_type(name, "a string"))
    }

    /// False where it is absent.
    pub(in crate::api) fn bool(&self, name: &str) -> Result<bool, ApiError> {
        match self.get(name) {
            None => Ok(false),
            Some(Value::Bool(value)) => Ok(*value),
            Some(_) => Err(wrong_type(name, "true or false")),
        }
    }

    pub(in crate::api) fn number(&self, spec: &Number) -> Result<Option<f32>, ApiError> {
        let Number { name, min, max, .. } = *spec;
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let value = value.as_f64().ok_or_else(|| wrong_type(name, "a number"))?;
        if !(min..=max).contains(&value) {
            let message = format!("{name} must be from {min} to {max}");
            return Err(ApiError::invalid_value(name, message));
        }
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the ranges are small; the nearest f32 is meant"
        )]
        Ok(Some(value as f32))
    }

    pub(in crate::api) fn integer(&self, spec: &Integer) -> Result<Option<i64>, ApiError> {
        let Integer { name, min, max, .. } = *spec;
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let value = value
            .as_i64()
            .ok_or_else(|| wrong_type(name, "a whole number"))?;
        if !(min..=max).contains(&value) {
            let message = format!("{name} must be from {min} to {max}");
            return Err(ApiError::invalid_value(name, message));
        }
        Ok(Some(value))
    }

    /// Refuses a field that asks for something that is not done here.
    pub(in crate::api) fn refuse_unless(
        &self,
        name: &str,
        asks_for_nothing: impl Fn(&Value) -> bool,
    ) -> Result<(), ApiError> {
        match self.get(name) {
            Some(value) if !asks_for_nothing(value) => Err(ApiError::unsupported(
                name,
                format!("{name} is not supported"),
            )),
            _ => Ok(()),
        }
    }
}

pub(in crate::api) fn wrong_type(param: &str, expected: &str) -> ApiError {
    ApiError::invalid("invalid_type", format!("{param} must be {expected}")).with_param(param)
}
