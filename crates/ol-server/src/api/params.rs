//! Reading request bodies: every field by name, with a clear error for each.
//!
//! Unknown fields are ignored, as OpenAI's servers do. Known fields that ask for
//! something we do not do are refused rather than ignored: nobody should pay for
//! an answer that is not the one asked for.

use ol_model::{ChatMessage, Role};
use serde_json::{Map, Value};

use super::error::ApiError;

/// Most messages of a chat.
const MESSAGES_MAX: usize = 1_024;

/// Most stop strings, as OpenAI allows.
const STOP_STRINGS_MAX: usize = 4;

/// Longest name of a model that is looked up, in bytes.
const MODEL_NAME_SIZE_BYTES_MAX: usize = 256;

/// What both endpoints take.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Common {
    pub(super) model: String,
    pub(super) is_stream: bool,
    pub(super) include_usage: bool,
    pub(super) temperature: f32,
    pub(super) top_p: f32,
    pub(super) seed: Option<u64>,
    pub(super) max_tokens: Option<usize>,
    pub(super) stop: Vec<String>,
}

/// A body of `POST /v1/chat/completions`.
#[derive(Debug, Clone)]
pub(super) struct ChatParams {
    pub(super) common: Common,
    pub(super) messages: Vec<ChatMessage>,
}

/// A body of `POST /v1/completions`.
#[derive(Debug, Clone)]
pub(super) struct CompletionParams {
    pub(super) common: Common,
    pub(super) prompt: CompletionPrompt,
}

/// The text to continue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum CompletionPrompt {
    Text(String),
    Tokens(Vec<u32>),
}

/// Reads a chat request.
pub(super) fn chat(body: &[u8]) -> Result<ChatParams, ApiError> {
    let fields = Fields::parse(body)?;
    let common = fields.common()?;
    for name in ["tools", "functions"] {
        if !matches!(fields.get(name), None | Some(Value::Array(_))) || !fields.is_empty_list(name)
        {
            return Err(ApiError::unsupported(name, "tools are not supported"));
        }
    }
    if fields
        .get("logprobs")
        .is_some_and(|value| value != &Value::Bool(false))
    {
        return Err(ApiError::unsupported(
            "logprobs",
            "log-probabilities are not supported",
        ));
    }
    if let Some(format) = fields.get("response_format")
        && format.get("type").and_then(Value::as_str) != Some("text")
    {
        return Err(ApiError::unsupported(
            "response_format",
            "only {\"type\":\"text\"} is supported",
        ));
    }
    Ok(ChatParams {
        messages: fields.messages()?,
        common,
    })
}

/// Reads a completion request.
pub(super) fn completion(body: &[u8]) -> Result<CompletionParams, ApiError> {
    let fields = Fields::parse(body)?;
    let mut common = fields.common()?;
    // The default of this endpoint at OpenAI.
    common.max_tokens.get_or_insert(16);
    if fields
        .get("echo")
        .is_some_and(|value| value != &Value::Bool(false))
    {
        return Err(ApiError::unsupported("echo", "echo is not supported"));
    }
    if fields
        .get("suffix")
        .is_some_and(|value| value != &Value::String(String::new()))
    {
        return Err(ApiError::unsupported("suffix", "suffix is not supported"));
    }
    if fields.get("logprobs").is_some() {
        return Err(ApiError::unsupported(
            "logprobs",
            "log-probabilities are not supported",
        ));
    }
    if fields
        .get("best_of")
        .is_some_and(|value| value.as_u64() != Some(1))
    {
        return Err(ApiError::unsupported("best_of", "best_of may only be 1"));
    }
    Ok(CompletionParams {
        prompt: fields.prompt()?,
        common,
    })
}

/// The fields of a JSON object; `null` is the same as absent.
struct Fields(Map<String, Value>);

impl Fields {
    fn parse(body: &[u8]) -> Result<Self, ApiError> {
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

    fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    fn is_empty_list(&self, name: &str) -> bool {
        self.get(name)
            .is_none_or(|value| value.as_array().is_some_and(Vec::is_empty))
    }

    fn required(&self, name: &str) -> Result<&Value, ApiError> {
        self.get(name).ok_or_else(|| {
            ApiError::invalid("missing_required_parameter", format!("{name} is missing"))
                .with_param(name)
        })
    }

    fn common(&self) -> Result<Common, ApiError> {
        for (name, allowed) in [
            ("n", 1.0),
            ("presence_penalty", 0.0),
            ("frequency_penalty", 0.0),
        ] {
            if self
                .get(name)
                .is_some_and(|value| value.as_f64() != Some(allowed))
            {
                return Err(ApiError::unsupported(
                    name,
                    format!("{name} may only be {allowed}"),
                ));
            }
        }
        if self
            .get("top_logprobs")
            .is_some_and(|value| value.as_u64() != Some(0))
        {
            return Err(ApiError::unsupported(
                "top_logprobs",
                "log-probabilities are not supported",
            ));
        }
        if self
            .get("logit_bias")
            .is_some_and(|bias| !bias.as_object().is_some_and(Map::is_empty))
        {
            return Err(ApiError::unsupported(
                "logit_bias",
                "logit_bias is not supported",
            ));
        }
        let model = self
            .required("model")?
            .as_str()
            .ok_or_else(|| wrong_type("model", "a string"))?;
        if model.len() > MODEL_NAME_SIZE_BYTES_MAX {
            return Err(ApiError::not_found(
                "model_not_found",
                "there is no model with this name",
            ));
        }
        Ok(Common {
            model: model.to_owned(),
            is_stream: self.bool("stream")?,
            include_usage: self.include_usage()?,
            temperature: self.number("temperature", 1.0, 2.0)?,
            // A nucleus of nothing holds the likeliest token, as the smallest one does.
            top_p: self.number("top_p", 1.0, 1.0)?.max(f32::MIN_POSITIVE),
            seed: self.seed()?,
            max_tokens: self.max_tokens()?,
            stop: self.stop()?,
        })
    }

    fn bool(&self, name: &str) -> Result<bool, ApiError> {
        match self.get(name) {
            None => Ok(false),
            Some(Value::Bool(value)) => Ok(*value),
            Some(_) => Err(wrong_type(name, "true or false")),
        }
    }

    fn include_usage(&self) -> Result<bool, ApiError> {
        match self.get("stream_options") {
            None => Ok(false),
            Some(Value::Object(options)) => match options.get("include_usage") {
                None | Some(Value::Null) => Ok(false),
                Some(Value::Bool(value)) => Ok(*value),
                Some(_) => Err(wrong_type("stream_options.include_usage", "true or false")),
            },
            Some(_) => Err(wrong_type("stream_options", "an object")),
        }
    }

    /// A number from 0 to `max`.
    fn number(&self, name: &str, default: f32, max: f32) -> Result<f32, ApiError> {
        let Some(value) = self.get(name) else {
            return Ok(default);
        };
        let value = value.as_f64().ok_or_else(|| wrong_type(name, "a number"))?;
        if !(0.0..=f64::from(max)).contains(&value) {
            return Err(ApiError::invalid_value(
                name,
                format!("{name} must be from 0 to {max}"),
            ));
        }
        #[expect(
            clippy::cast_possible_truncation,
            reason = "from 0 to 2; the nearest f32 is meant"
        )]
        Ok(value as f32)
    }

    fn seed(&self) -> Result<Option<u64>, ApiError> {
        let Some(value) = self.get("seed") else {
            return Ok(None);
        };
        let seed = value
            .as_u64()
            .or_else(|| value.as_i64().map(i64::cast_unsigned));
        seed.map(Some)
            .ok_or_else(|| wrong_type("seed", "a whole number of 64 bits"))
    }

    fn max_tokens(&self) -> Result<Option<usize>, ApiError> {
        let read = |name: &str| match self.get(name) {
            None => Ok(None),
            Some(value) => match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
                Some(n) if n > 0 => Ok(Some(n)),
                _ => Err(ApiError::invalid_value(
                    name,
                    format!("{name} must be a whole number of at least 1"),
                )),
            },
        };
        match (read("max_completion_tokens")?, read("max_tokens")?) {
            (Some(a), Some(b)) if a != b => Err(ApiError::invalid_value(
                "max_tokens",
                "max_tokens and max_completion_tokens differ",
            )),
            (a, b) => Ok(a.or(b)),
        }
    }

    fn stop(&self) -> Result<Vec<String>, ApiError> {
        let stops = match self.get("stop") {
            None => Vec::new(),
            Some(Value::String(stop)) => vec![stop.clone()],
            Some(Value::Array(stops)) => {
                let stops: Option<Vec<String>> = stops
                    .iter()
                    .map(|stop| stop.as_str().map(str::to_owned))
                    .collect();
                stops.ok_or_else(|| wrong_type("stop", "a string or a list of strings"))?
            }
            Some(_) => return Err(wrong_type("stop", "a string or a list of strings")),
        };
        let size_bytes_max = ol_serve::MAX_STOP_STRING_BYTES;
        let is_wrong = |stop: &String| !(1..=size_bytes_max).contains(&stop.len());
        if stops.len() > STOP_STRINGS_MAX || stops.iter().any(is_wrong) {
            let message = format!(
                "stop takes at most {STOP_STRINGS_MAX} strings of 1 to {size_bytes_max} bytes"
            );
            return Err(ApiError::invalid_value("stop", message));
        }
        Ok(stops)
    }

    fn messages(&self) -> Result<Vec<ChatMessage>, ApiError> {
        let Value::Array(messages) = self.required("messages")? else {
            return Err(wrong_type("messages", "a list of messages"));
        };
        if messages.is_empty() || messages.len() > MESSAGES_MAX {
            let message = format!("messages must be 1 to {MESSAGES_MAX} messages");
            return Err(ApiError::invalid_value("messages", message));
        }
        messages
            .iter()
            .enumerate()
            .map(|(at, message)| chat_message(at, message))
            .collect()
    }

    fn prompt(&self) -> Result<CompletionPrompt, ApiError> {
        let expected = "a string, a list of one string, or a list of token ids";
        match self.required("prompt")? {
            Value::String(text) => Ok(CompletionPrompt::Text(text.clone())),
            Value::Array(items) => match items.as_slice() {
                [Value::String(text)] => Ok(CompletionPrompt::Text(text.clone())),
                [Value::String(_), ..] => Err(ApiError::unsupported(
                    "prompt",
                    "only one prompt a request is supported",
                )),
                ids => {
                    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
                    let ids: Option<Vec<u32>> = ids.iter().map(id).collect();
                    ids.map(CompletionPrompt::Tokens)
                        .ok_or_else(|| wrong_type("prompt", expected))
                }
            },
            _ => Err(wrong_type("prompt", expected)),
        }
    }
}

fn chat_message(at: usize, message: &Value) -> Result<ChatMessage, ApiError> {
    let field = |name: &str| format!("messages[{at}].{name}");
    let role = match message.get("role").and_then(Value::as_str) {
        // The newer name of the same role.
        Some("developer" | "system") => Role::System,
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        Some(_) => {
            let message = "a role is system, developer, user or assistant";
            return Err(ApiError::invalid_value(&field("role"), message));
        }
        None => return Err(wrong_type(&field("role"), "a string")),
    };
    let content = match message.get("content") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            let mut content = String::new();
            for (part_at, part) in parts.iter().enumerate() {
                let name = field(&format!("content[{part_at}]"));
                if part.get("type").and_then(Value::as_str) != Some("text") {
                    return Err(ApiError::unsupported(
                        &name,
                        "only parts of type text are supported",
                    ));
                }
                let text = part.get("text").and_then(Value::as_str);
                content
                    .push_str(text.ok_or_else(|| wrong_type(&format!("{name}.text"), "a string"))?);
            }
            content
        }
        _ => return Err(wrong_type(&field("content"), "a string or a list of parts")),
    };
    Ok(ChatMessage { role, content })
}

fn wrong_type(param: &str, expected: &str) -> ApiError {
    ApiError::invalid("invalid_type", format!("{param} must be {expected}")).with_param(param)
}

#[cfg(test)]
mod tests;
