//! Tools: what a request offers, and the calls in what the model writes.
//!
//! Where a call is up to the model, its text is searched for calls in the form
//! that its family was trained on ([`Form`]). Where one is required, the
//! answer's form is constrained to the function's schema instead, so that
//! arguments always fit.

use ol_model::Tokenizer;
use ol_serve::Grammar;
use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::params::object;
use super::params::{Fields, wrong_type};

mod parser;

pub(super) use parser::{CallDelta, Parsed, ToolParser};

/// Most tools of a request.
pub(super) const TOOLS_MAX: usize = 128;

/// Most calls of one answer.
const CALLS_MAX: usize = 64;

/// Whether and what the model has to call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ToolChoice {
    /// It calls nothing.
    None,
    /// It decides.
    Auto,
    /// One or more, of its choice.
    Required,
    /// This one.
    Named(String),
}

/// The tools of a request.
#[derive(Debug, Clone)]
pub(super) struct Tools {
    /// As the client describes them.
    pub(super) descriptions: Vec<Value>,
    pub(super) choice: ToolChoice,
    is_parallel: bool,
}

/// How a family of models writes calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// `<tool_call>{"name": …, "arguments": …}</tool_call>`: Hermes, Qwen.
    Hermes,
    /// `{"name": …, "parameters": …}` and nothing else: Llama 3.
    Llama,
    /// `[TOOL_CALLS][{"name": …, "arguments": …}]`, or
    /// `[TOOL_CALLS]name[ARGS]{…}`: Mistral.
    Mistral,
    /// `<｜tool▁call▁begin｜>…`: DeepSeek.
    DeepSeek,
}

impl Form {
    /// The form of the model with this tokenizer: families have tokens of their
    /// own for it.
    pub(super) fn of(tokenizer: &Tokenizer) -> Self {
        let has = |token: &str| tokenizer.added_token(token).is_some();
        if has("[TOOL_CALLS]") {
            Self::Mistral
        } else if has(parser::DEEPSEEK_CALL) {
            Self::DeepSeek
        } else if has("<|python_tag|>") {
            Self::Llama
        } else {
            Self::Hermes
        }
    }
}

impl Tools {
    /// Reads `tools`, `tool_choice` and `parallel_tool_calls`.
    pub(super) fn read(fields: &Fields) -> Result<Self, ApiError> {
        let descriptions = match fields.get("tools") {
            None => Vec::new(),
            Some(Value::Array(tools)) if tools.len() > TOOLS_MAX => {
                let message = format!("tools takes at most {TOOLS_MAX}");
                return Err(ApiError::invalid_value("tools", message));
            }
            Some(Value::Array(tools)) => tools.clone(),
            Some(_) => return Err(wrong_type("tools", "a list of tools")),
        };
        for (at, tool) in descriptions.iter().enumerate() {
            check_tool(&format!("tools[{at}]"), tool)?;
        }
        let mut tools = Self {
            choice: ToolChoice::None,
            is_parallel: fields.get("parallel_tool_calls").is_none()
                || fields.bool("parallel_tool_calls")?,
            descriptions,
        };
        tools.choice = tools.read_choice(fields)?;
        Ok(tools)
    }

    fn read_choice(&self, fields: &Fields) -> Result<ToolChoice, ApiError> {
        let invalid = |message: &str| ApiError::invalid_value("tool_choice", message);
        let choice = match fields.get("tool_choice") {
            None if self.descriptions.is_empty() => return Ok(ToolChoice::None),
            None => return Ok(ToolChoice::Auto),
            Some(Value::String(choice)) => match choice.as_str() {
                "none" => return Ok(ToolChoice::None),
                "auto" if self.descriptions.is_empty() => return Ok(ToolChoice::None),
                "auto" => return Ok(ToolChoice::Auto),
                "required" => ToolChoice::Required,
                _ => {
                    return Err(invalid("tool_choice is none, auto, required or a function"));
                }
            },
            Some(choice) => {
                let function = object("tool_choice", choice)?.get("function");
                let name = function.and_then(|f| f.get("name")).and_then(Value::as_str);
                let name =
                    name.ok_or_else(|| wrong_type("tool_choice.function.name", "a string"))?;
                if !self.names().any(|known| known == name) {
                    return Err(invalid("tool_choice names a function that is not in tools"));
                }
                ToolChoice::Named(name.to_owned())
            }
        };
        if self.descriptions.is_empty() {
            return Err(invalid("tool_choice asks for a tool, and there are none"));
        }
        Ok(choice)
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.descriptions
            .iter()
            .filter_map(|tool| tool["function"]["name"].as_str())
    }

    /// The form of an answer that has to be a call: for a named function its
    /// arguments, else a list of calls.
    pub(super) fn grammar(&self) -> Option<Grammar> {
        match &self.choice {
            ToolChoice::None | ToolChoice::Auto => None,
            ToolChoice::Named(name) => {
                let tool = self
                    .descriptions
                    .iter()
                    .find(|tool| tool["function"]["name"] == **name)?;
                Some(Grammar::JsonSchema(parameters(tool)))
            }
            ToolChoice::Required => {
                // References of a function's schema point into that schema: each
                // is moved to where its own root is.
                let calls: Vec<Value> = (0..)
                    .zip(&self.descriptions)
                    .map(|(at, tool)| {
                        let mut schema = parameters(tool);
                        let root = format!("#/items/anyOf/{at}/properties/parameters");
                        rebase(&mut schema, &root);
                        json!({
                            "type": "object",
                            "properties": {
                                "name": {"const": tool["function"]["name"]}, "parameters": schema,
                            },
                            "required": ["name", "parameters"], "additionalProperties": false,
                        })
                    })
                    .collect();
                let n_max = if self.is_parallel { CALLS_MAX } else { 1 };
                Some(Grammar::JsonSchema(json!({
                    "type": "array", "items": {"anyOf": calls}, "minItems": 1, "maxItems": n_max,
                })))
            }
        }
    }

    /// What finds calls in an answer, where there can be any.
    pub(super) fn parser(&self, tokenizer: &Tokenizer, id_prefix: String) -> Option<ToolParser> {
        let n_max = if self.is_parallel { CALLS_MAX } else { 1 };
        ToolParser::new(&self.choice, tokenizer, id_prefix, n_max)
    }
}

/// The schema of a function's arguments.
fn parameters(tool: &Value) -> Value {
    match tool["function"].get("parameters") {
        Some(Value::Object(schema)) if !schema.is_empty() => Value::Object(schema.clone()),
        // A function without parameters.
        _ => json!({"type": "object", "properties": {}, "additionalProperties": false}),
    }
}

/// Moves references within a schema to a schema that it becomes a part of.
fn rebase(schema: &mut Value, root: &str) {
    match schema {
        Value::Object(fields) => {
            for (name, value) in fields.iter_mut() {
                match value {
                    Value::String(reference) if name == "$ref" => {
                        if let Some(rest) = reference.strip_prefix('#') {
                            *reference = format!("{root}{rest}");
                        }
                    }
                    value => rebase(value, root),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| rebase(item, root)),
        _ => {}
    }
}

fn check_tool(at: &str, tool: &Value) -> Result<(), ApiError> {
    if tool.get("type").and_then(Value::as_str) != Some("function") {
        return Err(ApiError::unsupported(
            &format!("{at}.type"),
            "only tools of type function are supported",
        ));
    }
    let empty = Map::new();
    let function = tool.get("function").and_then(Value::as_object);
    let function = function.unwrap_or(&empty);
    let is_name = |name: &str| {
        (1..=64).contains(&name.len())
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
    };
    let name = function.get("name").and_then(Value::as_str);
    if !name.is_some_and(is_name) {
        return Err(ApiError::invalid_value(
            &format!("{at}.function.name"),
            "a function's name has 1 to 64 letters, digits, underscores, dots and hyphens",
        ));
    }
    match function.get("parameters") {
        None | Some(Value::Null | Value::Object(_)) => Ok(()),
        Some(_) => Err(wrong_type(
            &format!("{at}.function.parameters"),
            "a JSON schema",
        )),
    }
}

#[cfg(test)]
mod tests;
