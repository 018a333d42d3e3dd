//! Reading request bodies: every field by name, with a clear error for each.
//!
//! Unknown fields are ignored, as OpenAI's servers do. Known fields that ask for
//! something we do not do are refused rather than ignored: nobody should pay for
//! an answer that is not the one asked for. [`spec`] lists every field with its
//! range; the OpenAPI document is made of the same list.

use std::time::Duration;

use ol_retrieval::Method;
use ol_serve::{Grammar, MAX_LOGIT_BIAS, MAX_LOGIT_BIASES, MAX_STOP_TOKENS, Priority, Sampling};
use serde_json::{Map, Value};

use super::error::ApiError;
use super::tools::{ToolChoice, Tools};
use crate::retrieval::Wanted;
use crate::sampling::SamplingRequest;
pub(super) use fields::{Fields, wrong_type};
pub(super) use messages::{Chat, refused};

mod fields;
mod messages;
pub(super) mod spec;

/// Most stop strings.
const STOP_STRINGS_MAX: usize = 16;

/// Passages of a question when the request does not say.
const PASSAGES_DEFAULT: usize = 4;

/// Longest name of a model that is looked up, in bytes.
const MODEL_NAME_SIZE_BYTES_MAX: usize = 256;

/// Most texts or token lists of one request for embeddings.
pub(super) const INPUTS_MAX: usize = 256;

/// Most adapters added up for one request.
const ADAPTERS_MAX: usize = 8;

/// What both endpoints that answer take.
#[derive(Debug, Clone)]
pub(super) struct Common {
    pub(super) model: String,
    pub(super) adapters: Vec<(String, f32)>,
    pub(super) is_stream: bool,
    pub(super) include_usage: bool,
    pub(super) n: usize,
    pub(super) sampling: SamplingRequest,
    pub(super) seed: Option<u64>,
    pub(super) max_tokens: Option<usize>,
    pub(super) stop: Vec<String>,
    pub(super) grammar: Option<Grammar>,
    pub(super) timeout: Option<Duration>,
    pub(super) priority: Priority,
    pub(super) wants_token_ids: bool,
    pub(super) names_tokens_by_id: bool,
}

/// A body of `POST /v1/chat/completions`.
#[derive(Debug, Clone)]
pub(super) struct ChatParams {
    pub(super) common: Common,
    pub(super) chat: Chat,
    pub(super) tools: Tools,
    pub(super) retrieval: Option<Wanted>,
}

/// A body of `POST /v1/completions`.
#[derive(Debug, Clone)]
pub(super) struct CompletionParams {
    pub(super) common: Common,
    pub(super) prompt: Text,
}

/// Text, or its tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Text {
    Text(String),
    Tokens(Vec<u32>),
}

/// A body of `POST /v1/embeddings`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EmbeddingParams {
    pub(super) model: String,
    pub(super) inputs: Vec<Text>,
    pub(super) is_base64: bool,
    pub(super) dimensions: Option<usize>,
}

/// A body of `POST /tokenize`: what is cut into tokens.
#[derive(Debug, Clone)]
pub(super) enum Tokenize {
    Text { text: String, adds_start: bool },
    Chat(Chat),
}

/// A body of `POST /v1/load_lora_adapter` or `/v1/unload_lora_adapter`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AdapterParams {
    pub(super) name: String,
    pub(super) path: String,
    pub(super) replaces: bool,
}

/// Reads a chat request.
pub(super) fn chat(body: &[u8]) -> Result<ChatParams, ApiError> {
    let fields = Fields::parse(body)?;
    let mut common = common(&fields)?;
    for name in ["functions", "function_call", "audio", "web_search_options"] {
        fields.refuse_unless(name, |value| value.as_array().is_some_and(Vec::is_empty))?;
    }
    fields.refuse_unless("chat_template", |_| false)?;
    fields.refuse_unless("modalities", |value| *value == serde_json::json!(["text"]))?;
    fields.refuse_unless("add_generation_prompt", |value| *value == Value::Bool(true))?;
    if fields.bool("logprobs")? {
        let n_top = fields.integer(&spec::TOP_LOGPROBS)?.unwrap_or(0);
        common.sampling.rest.n_logprobs = u32::try_from(n_top).ok();
    } else if fields.integer(&spec::TOP_LOGPROBS)?.unwrap_or(0) > 0 {
        return Err(ApiError::invalid_value(
            "top_logprobs",
            "top_logprobs needs logprobs to be true",
        ));
    }
    let tools = Tools::read(&fields)?;
    if let Some(grammar) = tools.grammar() {
        if common.grammar.is_some() {
            return Err(ApiError::invalid_value(
                "tool_choice",
                "a tool that must be called leaves no room for response_format",
            ));
        }
        common.grammar = Some(grammar);
    }
    let mut chat = messages::chat(&fields)?;
    if tools.choice != ToolChoice::None {
        chat.set_tools(tools.descriptions.clone());
    }
    Ok(ChatParams {
        chat,
        tools,
        common,
        retrieval: retrieval(&fields)?,
    })
}

/// Reads which passages the question is to be given.
fn retrieval(fields: &Fields) -> Result<Option<Wanted>, ApiError> {
    let Some(value) = fields.get("retrieval") else {
        return Ok(None);
    };
    let fields = object("retrieval", value)?;
    let known = ["datanet", "top_k", "method"];
    if let Some(name) = fields.keys().find(|name| !known.contains(&name.as_str())) {
        let name: String = name.chars().take(40).collect();
        let message = format!(
            "retrieval has no field {name:?}; it has {}",
            known.join(", ")
        );
        return Err(ApiError::invalid_value("retrieval", message));
    }
    let fields = Fields::from(fields.clone());
    let within = |error: ApiError, name: &str| error.with_param(&format!("retrieval.{name}"));
    let datanet = fields.string("datanet");
    let top_k = fields.integer(&spec::PASSAGES);
    let top_k = top_k.map_err(|error| within(error, "top_k"))?;
    let method = match fields.get("method").map(Value::as_str) {
        None => None,
        Some(name) => {
            let methods = [Method::Lexical, Method::Embedding, Method::Hybrid];
            let found = methods
                .into_iter()
                .find(|method| name == Some(method.name()));
            Some(found.ok_or_else(|| {
                let message = "the method of retrieval is lexical, embedding or hybrid";
                ApiError::invalid_value("retrieval.method", message)
            })?)
        }
    };
    Ok(Some(Wanted {
        datanet: datanet
            .map_err(|error| within(error, "datanet"))?
            .to_owned(),
        top_k: top_k
            .and_then(|n| usize::try_from(n).ok())
            .unwrap_or(PASSAGES_DEFAULT),
        method,
    }))
}

/// Reads a completion request.
pub(super) fn completion(body: &[u8]) -> Result<CompletionParams, ApiError> {
    let fields = Fields::parse(body)?;
    let mut common = common(&fields)?;
    // The default of this endpoint at OpenAI.
    common.max_tokens.get_or_insert(16);
    fields.refuse_unless("echo", |value| value == &Value::Bool(false))?;
    fields.refuse_unless("suffix", |value| value.as_str() == Some(""))?;
    fields.refuse_unless("retrieval", |_| false)?;
    fields.refuse_unless("best_of", |value| value.as_u64() == Some(1))?;
    let n_top = fields.integer(&spec::LOGPROBS)?;
    common.sampling.rest.n_logprobs = n_top.and_then(|n| u32::try_from(n).ok());
    let mut prompts = texts(&fields, "prompt")?;
    match (prompts.pop(), prompts.is_empty()) {
        (Some(prompt), true) => Ok(CompletionParams { prompt, common }),
        _ => Err(ApiError::unsupported(
            "prompt",
            "only one prompt a request is supported",
        )),
    }
}

/// Reads a request for embeddings.
pub(super) fn embeddings(body: &[u8]) -> Result<EmbeddingParams, ApiError> {
    let fields = Fields::parse(body)?;
    let is_base64 = match fields.get("encoding_format").map(Value::as_str) {
        None | Some(Some("float")) => false,
        Some(Some("base64")) => true,
        Some(_) => {
            let message = "encoding_format is float or base64";
            return Err(ApiError::invalid_value("encoding_format", message));
        }
    };
    Ok(EmbeddingParams {
        model: model(&fields)?,
        inputs: texts(&fields, "input")?,
        is_base64,
        dimensions: fields
            .integer(&spec::DIMENSIONS)?
            .and_then(|n| usize::try_from(n).ok()),
    })
}

/// Reads a request to cut text into tokens.
pub(super) fn tokenize(body: &[u8]) -> Result<Tokenize, ApiError> {
    let fields = Fields::parse(body)?;
    Ok(if fields.get("messages").is_some() {
        Tokenize::Chat(messages::chat(&fields)?)
    } else {
        let text = fields.required("prompt")?.as_str();
        Tokenize::Text {
            text: text
                .ok_or_else(|| wrong_type("prompt", "a string"))?
                .to_owned(),
            adds_start: fields.get("add_special_tokens").is_none()
                || fields.bool("add_special_tokens")?,
        }
    })
}

/// Reads a request to put tokens together.
pub(super) fn detokenize(body: &[u8]) -> Result<Vec<u32>, ApiError> {
    let fields = Fields::parse(body)?;
    token_ids(fields.required("tokens")?).ok_or_else(|| wrong_type("tokens", "a list of token ids"))
}

/// Reads a request to load an adapter.
pub(super) fn load_adapter(body: &[u8]) -> Result<AdapterParams, ApiError> {
    let fields = Fields::parse(body)?;
    Ok(AdapterParams {
        name: fields.string("lora_name")?.to_owned(),
        path: fields.string("lora_path")?.to_owned(),
        replaces: fields.bool("load_inplace")?,
    })
}

/// Reads a request to unload an adapter.
pub(super) fn unload_adapter(body: &[u8]) -> Result<String, ApiError> {
    let fields = Fields::parse(body)?;
    Ok(fields.string("lora_name")?.to_owned())
}

fn model(fields: &Fields) -> Result<String, ApiError> {
    let model = fields.string("model")?;
    if model.len() > MODEL_NAME_SIZE_BYTES_MAX {
        return Err(ApiError::not_found(
            "model_not_found",
            "there is no model with this name",
        ));
    }
    Ok(model.to_owned())
}

fn common(fields: &Fields) -> Result<Common, ApiError> {
    for (name, allowed) in [
        ("use_beam_search", Value::Bool(false)),
        ("skip_special_tokens", Value::Bool(true)),
        ("include_stop_str_in_output", Value::Bool(false)),
    ] {
        fields.refuse_unless(name, |value| *value == allowed)?;
    }
    for name in ["prompt_logprobs", "guided_grammar", "logits_processors"] {
        fields.refuse_unless(name, |_| false)?;
    }
    fields.refuse_unless("bad_words", |value| {
        value.as_array().is_some_and(Vec::is_empty)
    })?;
    let whole = |found: Option<i64>| found.and_then(|n| u32::try_from(n).ok());
    let sampling = SamplingRequest {
        temperature: fields.number(&spec::TEMPERATURE)?,
        top_p: fields.number(&spec::TOP_P)?,
        // -1 is vLLM's way to say all.
        top_k: fields
            .integer(&spec::TOP_K)?
            .map(|k| u32::try_from(k).unwrap_or(0)),
        min_p: fields.number(&spec::MIN_P)?,
        repetition_penalty: fields.number(&spec::REPETITION_PENALTY)?,
        rest: Sampling {
            presence_penalty: fields.number(&spec::PRESENCE_PENALTY)?.unwrap_or(0.0),
            frequency_penalty: fields.number(&spec::FREQUENCY_PENALTY)?.unwrap_or(0.0),
            logit_bias: logit_bias(fields)?,
            stop_token_ids: stop_token_ids(fields)?,
            min_tokens: whole(fields.integer(&spec::MIN_TOKENS)?).unwrap_or(0) as usize,
            ignores_end: fields.bool("ignore_eos")?,
            ..Sampling::GREEDY
        },
    };
    let max_tokens = max_tokens(fields)?;
    if max_tokens.is_some_and(|max_tokens| sampling.rest.min_tokens > max_tokens) {
        let message = "min_tokens is more than max_tokens";
        return Err(ApiError::invalid_value("min_tokens", message));
    }
    let priority = match fields.integer(&spec::PRIORITY)?.unwrap_or(0) {
        ..0 => Priority::Interactive,
        0 => Priority::Normal,
        1.. => Priority::Batch,
    };
    Ok(Common {
        model: model(fields)?,
        adapters: adapters(fields)?,
        is_stream: fields.bool("stream")?,
        include_usage: include_usage(fields)?,
        n: whole(fields.integer(&spec::N)?).unwrap_or(1) as usize,
        sampling,
        seed: seed(fields)?,
        max_tokens,
        stop: stop(fields)?,
        grammar: grammar(fields)?,
        timeout: fields.number(&spec::TIMEOUT)?.map(Duration::from_secs_f32),
        priority,
        wants_token_ids: fields.bool("return_token_ids")?,
        names_tokens_by_id: fields.bool("return_tokens_as_token_ids")?,
    })
}

fn adapters(fields: &Fields) -> Result<Vec<(String, f32)>, ApiError> {
    let expected = || wrong_type("adapters", "a list of {\"name\", \"weight\"}");
    let Some(value) = fields.get("adapters") else {
        return Ok(Vec::new());
    };
    let items = value.as_array().ok_or_else(expected)?;
    if items.len() > ADAPTERS_MAX {
        let message = format!("adapters takes at most {ADAPTERS_MAX}");
        return Err(ApiError::invalid_value("adapters", message));
    }
    items
        .iter()
        .map(|item| {
            let name = item.get("name").and_then(Value::as_str);
            let weight = match item.get("weight") {
                None => 1.0,
                Some(weight) => weight.as_f64().ok_or_else(expected)?,
            };
            if !(-10.0..=10.0).contains(&weight) {
                let message = "the weight of an adapter is from -10 to 10";
                return Err(ApiError::invalid_value("adapters", message));
            }
            #[expect(clippy::cast_possible_truncation, reason = "the nearest is meant")]
            Ok((name.ok_or_else(expected)?.to_owned(), weight as f32))
        })
        .collect()
}

fn include_usage(fields: &Fields) -> Result<bool, ApiError> {
    match fields.get("stream_options") {
        None => Ok(false),
        Some(Value::Object(options)) => match options.get("include_usage") {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(value)) => Ok(*value),
            Some(_) => Err(wrong_type("stream_options.include_usage", "true or false")),
        },
        Some(_) => Err(wrong_type("stream_options", "an object")),
    }
}

fn seed(fields: &Fields) -> Result<Option<u64>, ApiError> {
    let Some(value) = fields.get("seed") else {
        return Ok(None);
    };
    let seed = value
        .as_u64()
        .or_else(|| value.as_i64().map(i64::cast_unsigned));
    seed.map(Some)
        .ok_or_else(|| wrong_type("seed", "a whole number of 64 bits"))
}

fn max_tokens(fields: &Fields) -> Result<Option<usize>, ApiError> {
    let read = |name: &str| match fields.get(name) {
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

fn stop(fields: &Fields) -> Result<Vec<String>, ApiError> {
    let stops = match fields.get("stop") {
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
        let message =
            format!("stop takes at most {STOP_STRINGS_MAX} strings of 1 to {size_bytes_max} bytes");
        return Err(ApiError::invalid_value("stop", message));
    }
    Ok(stops)
}

fn stop_token_ids(fields: &Fields) -> Result<Vec<u32>, ApiError> {
    let Some(value) = fields.get("stop_token_ids") else {
        return Ok(Vec::new());
    };
    let ids =
        token_ids(value).ok_or_else(|| wrong_type("stop_token_ids", "a list of token ids"))?;
    if ids.len() > MAX_STOP_TOKENS {
        let message = format!("stop_token_ids takes at most {MAX_STOP_TOKENS} ids");
        return Err(ApiError::invalid_value("stop_token_ids", message));
    }
    Ok(ids)
}

fn logit_bias(fields: &Fields) -> Result<Vec<(u32, f32)>, ApiError> {
    let expected = || wrong_type("logit_bias", "an object of token ids and numbers");
    let Some(value) = fields.get("logit_bias") else {
        return Ok(Vec::new());
    };
    let entries = value.as_object().ok_or_else(expected)?;
    if entries.len() > MAX_LOGIT_BIASES {
        let message = format!("logit_bias takes at most {MAX_LOGIT_BIASES} tokens");
        return Err(ApiError::invalid_value("logit_bias", message));
    }
    entries
        .iter()
        .map(|(id, bias)| {
            let id = id.parse().map_err(|_| expected())?;
            let bias = bias.as_f64().ok_or_else(expected)?;
            let max = f64::from(MAX_LOGIT_BIAS);
            if !(-max..=max).contains(&bias) {
                let message = format!("a logit_bias is from -{max} to {max}");
                return Err(ApiError::invalid_value("logit_bias", message));
            }
            #[expect(clippy::cast_possible_truncation, reason = "the nearest is meant")]
            Ok((id, bias as f32))
        })
        .collect()
}

/// The form of the answer, however it is asked for.
fn grammar(fields: &Fields) -> Result<Option<Grammar>, ApiError> {
    let mut found: Vec<(&str, Grammar)> = Vec::new();
    if let Some(format) = fields.get("response_format")
        && let Some(grammar) = response_format(format)?
    {
        found.push(("response_format", grammar));
    }
    for name in ["guided_json", "guided_regex", "guided_choice"] {
        if let Some(value) = fields.get(name) {
            let kind = name.trim_start_matches("guided_");
            found.push((name, structured(name, kind, value)?));
        }
    }
    if let Some(value) = fields.get("structured_outputs") {
        let options = value.as_object();
        let options = options.ok_or_else(|| wrong_type("structured_outputs", "an object"))?;
        for (kind, value) in options.iter().filter(|(_, value)| !value.is_null()) {
            let name = format!("structured_outputs.{kind}");
            found.push(("structured_outputs", structured(&name, kind, value)?));
        }
    }
    match (found.pop(), found.is_empty()) {
        (None, _) => Ok(None),
        (Some((_, grammar)), true) => Ok(Some(grammar)),
        (Some((name, _)), false) => Err(ApiError::invalid_value(
            name,
            "an answer can be given only one form",
        )),
    }
}

fn response_format(format: &Value) -> Result<Option<Grammar>, ApiError> {
    match format.get("type").and_then(Value::as_str) {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(Grammar::json_object())),
        Some("json_schema") => {
            let schema = format.get("json_schema").and_then(|s| s.get("schema"));
            let schema = schema.filter(|schema| schema.is_object());
            let missing = || wrong_type("response_format.json_schema.schema", "an object");
            Ok(Some(Grammar::JsonSchema(
                schema.ok_or_else(missing)?.clone(),
            )))
        }
        _ => Err(ApiError::invalid_value(
            "response_format",
            "the type of response_format is text, json_object or json_schema",
        )),
    }
}

/// vLLM's ways to ask for a form.
fn structured(name: &str, kind: &str, value: &Value) -> Result<Grammar, ApiError> {
    match (kind, value) {
        ("json", Value::Object(_)) => Ok(Grammar::JsonSchema(value.clone())),
        ("json", Value::String(text)) => match serde_json::from_str(text) {
            Ok(schema @ Value::Object(_)) => Ok(Grammar::JsonSchema(schema)),
            _ => Err(ApiError::invalid_value(name, "it is no JSON schema")),
        },
        ("json_object", Value::Bool(true)) => Ok(Grammar::json_object()),
        ("regex", Value::String(pattern)) => Ok(Grammar::Regex(pattern.clone())),
        ("choice", Value::Array(texts)) => {
            let texts: Option<Vec<String>> = texts
                .iter()
                .map(|text| text.as_str().map(str::to_owned))
                .collect();
            let texts = texts.ok_or_else(|| wrong_type(name, "a list of strings"))?;
            Ok(Grammar::Choice(texts))
        }
        ("json" | "json_object" | "regex" | "choice", _) => {
            Err(wrong_type(name, "what its name says"))
        }
        _ => Err(ApiError::unsupported(
            name,
            "only json, json_object, regex and choice are supported",
        )),
    }
}

fn token_ids(value: &Value) -> Option<Vec<u32>> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    value.as_array()?.iter().map(id).collect()
}

/// One text or several, each as a string or as tokens.
fn texts(fields: &Fields, name: &str) -> Result<Vec<Text>, ApiError> {
    let expected = || wrong_type(name, "a string, a list of token ids, or a list of either");
    let value = fields.required(name)?;
    let texts: Vec<Text> = match value {
        Value::String(text) => vec![Text::Text(text.clone())],
        Value::Array(items) => match items.as_slice() {
            [Value::String(_) | Value::Array(_), ..] => items
                .iter()
                .map(|item| match item {
                    Value::String(text) => Some(Text::Text(text.clone())),
                    item => token_ids(item).map(Text::Tokens),
                })
                .collect::<Option<_>>()
                .ok_or_else(expected)?,
            _ => vec![Text::Tokens(token_ids(value).ok_or_else(expected)?)],
        },
        _ => return Err(expected()),
    };
    if texts.len() > INPUTS_MAX {
        let message = format!("{name} takes at most {INPUTS_MAX} texts");
        return Err(ApiError::invalid_value(name, message));
    }
    Ok(texts)
}

/// The fields of a JSON value that is an object.
pub(super) fn object<'a>(name: &str, value: &'a Value) -> Result<&'a Map<String, Value>, ApiError> {
    value
        .as_object()
        .ok_or_else(|| wrong_type(name, "an object"))
}

#[cfg(test)]
mod tests;
