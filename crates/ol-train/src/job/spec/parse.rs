//! Reading a specification, with every mistake in it named at once.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use thiserror::Error;

use super::{JobSpec, Problem};
use crate::options::TrainOptions;

/// Longest specification read, in bytes.
pub const MAX_SPEC_SIZE_BYTES: u64 = 1 << 20;

/// Why a specification cannot be used.
#[derive(Debug, Error)]
pub enum SpecError {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// File concerned.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is longer than [`MAX_SPEC_SIZE_BYTES`].
    #[error("{path}: longer than {MAX_SPEC_SIZE_BYTES} bytes, which no specification is")]
    TooLarge {
        /// File concerned.
        path: PathBuf,
    },
    /// The text is neither JSON nor TOML.
    #[error("not {kind}: {reason}")]
    Syntax {
        /// `JSON` or `TOML`.
        kind: &'static str,
        /// What the parser said, with line and column.
        reason: String,
    },
    /// Fields are missing, unknown, or make no sense.
    #[error("the job cannot run as described: {}", list(.0))]
    Invalid(Vec<Problem>),
}

fn list(problems: &[Problem]) -> String {
    let lines: Vec<String> = problems.iter().map(Problem::to_string).collect();
    lines.join("; ")
}

impl SpecError {
    /// The single mistakes, where there are any.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        match self {
            Self::Invalid(problems) => problems,
            _ => &[],
        }
    }
}

impl JobSpec {
    /// Reads a file: TOML if its name ends in `.toml`, JSON otherwise. Paths in
    /// it are taken from its folder.
    ///
    /// # Errors
    /// [`SpecError`], with every mistake that can be told without the model.
    pub fn load(path: &Path) -> Result<Self, SpecError> {
        let io = |source| SpecError::Io {
            path: path.to_owned(),
            source,
        };
        let mut text = String::new();
        File::open(path)
            .map_err(io)?
            .take(MAX_SPEC_SIZE_BYTES + 1)
            .read_to_string(&mut text)
            .map_err(io)?;
        if text.len() as u64 > MAX_SPEC_SIZE_BYTES {
            return Err(SpecError::TooLarge {
                path: path.to_owned(),
            });
        }
        let spec = if path.extension().is_some_and(|e| e == "toml") {
            Self::from_toml(&text)?
        } else {
            Self::from_json(&text)?
        };
        let full = std::path::absolute(path).map_err(io)?;
        Ok(spec.at(full.parent().unwrap_or(Path::new("/"))))
    }

    /// Reads JSON.
    ///
    /// # Errors
    /// [`SpecError::Syntax`], or [`SpecError::Invalid`] for fields of a wrong
    /// name or type. What the values mean is for [`JobSpec::problems`].
    pub fn from_json(text: &str) -> Result<Self, SpecError> {
        let value = serde_json::from_str(text).map_err(|e| SpecError::Syntax {
            kind: "JSON",
            reason: e.to_string(),
        })?;
        read(value)
    }

    /// Reads TOML.
    ///
    /// # Errors
    /// As [`JobSpec::from_json`].
    pub fn from_toml(text: &str) -> Result<Self, SpecError> {
        let value = toml::from_str(text).map_err(|e| SpecError::Syntax {
            kind: "TOML",
            reason: e.to_string().trim_end().replace('\n', " "),
        })?;
        read(value)
    }

    /// As TOML, for people to change.
    ///
    /// # Errors
    /// [`SpecError::Syntax`] for a number beyond 64 bits with sign, which TOML lacks.
    pub fn to_toml(&self) -> Result<String, SpecError> {
        let syntax = |e: toml::ser::Error| SpecError::Syntax {
            kind: "TOML",
            reason: e.to_string(),
        };
        let mut value = toml::Table::try_from(self).map_err(syntax)?;
        // Where epochs rule, the default of the steps says nothing.
        if self.options.epochs.is_some()
            && self.options.steps == TrainOptions::default().steps
            && let Some(options) = value.get_mut("options").and_then(|o| o.as_table_mut())
        {
            options.remove("steps");
        }
        toml::to_string_pretty(&value).map_err(syntax)
    }
}

/// Reads section by section and field by field, so that one mistake does not
/// hide the others.
fn read(value: Value) -> Result<JobSpec, SpecError> {
    let mut problems = Vec::new();
    let Value::Object(mut fields) = value else {
        let what = format!("is {}, not an object with fields", kind(&value));
        return Err(SpecError::Invalid(vec![Problem::new("the file", what)]));
    };
    match fields.remove("format") {
        Some(Value::String(format)) if format == JobSpec::FORMAT => {}
        Some(other) => problems.push(Problem::new(
            "format",
            format!("is {other}; this version reads {:?}", JobSpec::FORMAT),
        )),
        None => problems.push(Problem::new(
            "format",
            format!("is missing; write format = {:?}", JobSpec::FORMAT),
        )),
    }
    let name = match fields.remove("name") {
        Some(name) => field(name, "name", &mut problems),
        None => {
            problems.push(Problem::new("name", "is missing; give the job a name"));
            None
        }
    };
    if !fields.contains_key("base") {
        problems.push(Problem::new(
            "base",
            "is missing; name a model with path or hub",
        ));
    }
    if !fields.contains_key("data") {
        problems.push(Problem::new(
            "data",
            "is missing; name files or a datanet to learn from",
        ));
    }
    let spec = JobSpec {
        base: section(fields.remove("base"), "base", &mut problems),
        data: section(fields.remove("data"), "data", &mut problems),
        evaluation: section(fields.remove("evaluation"), "evaluation", &mut problems),
        format: JobSpec::FORMAT.to_owned(),
        lora: section(fields.remove("lora"), "lora", &mut problems),
        method: optional(fields.remove("method"), "method", &mut problems),
        name: name.unwrap_or_default(),
        options: section(fields.remove("options"), "options", &mut problems),
        output: optional(fields.remove("output"), "output", &mut problems),
    };
    const KNOWN: [&str; 9] = [
        "base",
        "data",
        "evaluation",
        "format",
        "lora",
        "method",
        "name",
        "options",
        "output",
    ];
    for unknown in fields.keys() {
        let what = format!("is no field of a job{}", suggestion(unknown, &KNOWN));
        problems.push(Problem::new(unknown, what));
    }
    if problems.is_empty() {
        Ok(spec)
    } else {
        Err(SpecError::Invalid(problems))
    }
}

fn optional<T: DeserializeOwned + Default>(
    value: Option<Value>,
    at: &str,
    problems: &mut Vec<Problem>,
) -> T {
    value
        .and_then(|value| field(value, at, problems))
        .unwrap_or_default()
}

fn field<T: DeserializeOwned>(value: Value, at: &str, problems: &mut Vec<Problem>) -> Option<T> {
    serde_json::from_value(value)
        .map_err(|error| problems.push(Problem::new(at, error.to_string())))
        .ok()
}

/// Reads a section whose every field has a default.
fn section<T: DeserializeOwned + Default>(
    value: Option<Value>,
    at: &str,
    problems: &mut Vec<Problem>,
) -> T {
    let fields = match value {
        None => return T::default(),
        Some(Value::Object(fields)) => fields,
        Some(other) => {
            let what = format!("is {}, not a table of fields", kind(&other));
            problems.push(Problem::new(at, what));
            return T::default();
        }
    };
    let n_before = problems.len();
    for (name, value) in &fields {
        let alone = Map::from_iter([(name.clone(), value.clone())]);
        if let Err(error) = serde_json::from_value::<T>(Value::Object(alone)) {
            let error = error.to_string();
            let what = match error.strip_prefix("unknown field ") {
                Some(rest) => {
                    let known: Vec<&str> = rest.split('`').skip(3).step_by(2).collect();
                    let hint = suggestion(name, &known);
                    format!("is no field of {at}{hint}; there are {}", known.join(", "))
                }
                None => error,
            };
            problems.push(Problem::new(format!("{at}.{name}"), what));
        }
    }
    if problems.len() > n_before {
        return T::default();
    }
    match serde_json::from_value(Value::Object(fields)) {
        Ok(read) => read,
        Err(error) => {
            problems.push(Problem::new(at, error.to_string()));
            T::default()
        }
    }
}

/// ", did you mean …" where a known name is close.
fn suggestion(name: &str, known: &[&str]) -> String {
    let near = known
        .iter()
        .map(|known| (strsim::jaro_winkler(name, known), known))
        .filter(|(near, _)| *near > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    near.map_or_else(String::new, |(_, known)| {
        format!(", did you mean `{known}`?")
    })
}

const fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "a table",
    }
}
