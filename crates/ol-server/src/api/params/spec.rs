//! Every field of every body: name, type, range and what it means. The readers
//! take their ranges from here, and so does the OpenAPI document.

use ol_retrieval::TOP_K_MAX;
use ol_serve::{MAX_LOGPROBS, MAX_STOP_STRING_BYTES, MAX_STOP_TOKENS};
use serde_json::{Map, Value, json};

use super::{ADAPTERS_MAX, INPUTS_MAX, PASSAGES_DEFAULT, STOP_STRINGS_MAX};

/// A number and its range, both ends included.
#[derive(Debug, Clone, Copy)]
pub(in crate::api) struct Number {
    pub(super) name: &'static str,
    pub(super) min: f64,
    pub(super) max: f64,
    default: Option<f64>,
    help: &'static str,
}

/// A whole number and its range, both ends included.
#[derive(Debug, Clone, Copy)]
pub(in crate::api) struct Integer {
    pub(super) name: &'static str,
    pub(super) min: i64,
    pub(super) max: i64,
    default: Option<i64>,
    help: &'static str,
}

macro_rules! numbers {
    ($($name:ident: $kind:ident = $text:literal, $min:expr, $max:expr, $default:expr, $help:literal;)*) => {
        $(pub(in crate::api) const $name: $kind = $kind {
            name: $text, min: $min, max: $max, default: $default, help: $help,
        };)*
    };
}

numbers! {
    TEMPERATURE: Number = "temperature", 0.0, 2.0, Some(1.0), "0 takes the likeliest token; higher is more varied.";
    TOP_P: Number = "top_p", 0.0, 1.0, Some(1.0), "Only the likeliest tokens that reach this probability together take part.";
    MIN_P: Number = "min_p", 0.0, 1.0, Some(0.0), "Only tokens with this share of the likeliest token's probability take part.";
    PRESENCE_PENALTY: Number = "presence_penalty", -2.0, 2.0, Some(0.0), "Taken off the logit of tokens that the answer has.";
    FREQUENCY_PENALTY: Number = "frequency_penalty", -2.0, 2.0, Some(0.0), "Taken off a token's logit for each time the answer has it.";
    REPETITION_PENALTY: Number = "repetition_penalty", 0.01, 100.0, Some(1.0), "Divides positive logits of tokens of prompt and answer, multiplies negative ones.";
    TIMEOUT: Number = "timeout", 0.001, 3600.0, None, "Seconds after which the answer ends with what there is.";
    TOP_K: Integer = "top_k", -1, 1_000_000, Some(0), "Only so many likeliest tokens take part; 0 and -1 keep all.";
    N: Integer = "n", 1, 16, Some(1), "Answers to the same prompt. Where answers are paid for, each has its own receipt.";
    MIN_TOKENS: Integer = "min_tokens", 0, 1_000_000, Some(0), "Tokens before which nothing ends the answer.";
    PRIORITY: Integer = "priority", -1_000_000, 1_000_000, Some(0), "Below 0 goes before others, above 0 after them.";
    TOP_LOGPROBS: Integer = "top_logprobs", 0, MAX_LOGPROBS as i64, Some(0), "Likeliest tokens reported beside each token.";
    LOGPROBS: Integer = "logprobs", 0, MAX_LOGPROBS as i64, None, "Likeliest tokens reported beside each token.";
    PASSAGES: Integer = "top_k", 1, TOP_K_MAX as i64, Some(PASSAGES_DEFAULT as i64), "Passages at most; the lowest are left out where the context is too short.";
    DIMENSIONS: Integer = "dimensions", 1, 1_000_000, None, "The first so many numbers of each embedding, scaled to length 1; at most the model's width.";
}

impl Number {
    fn schema(&self) -> (&'static str, Value) {
        let Self { name, min, max, .. } = self;
        let mut schema = json!({"type": "number", "minimum": min, "maximum": max});
        if let Some(default) = self.default {
            schema["default"] = json!(default);
        }
        (name, described(schema, self.help))
    }
}

impl Integer {
    fn schema(&self) -> (&'static str, Value) {
        let Self { name, min, max, .. } = self;
        let mut schema = json!({"type": "integer", "minimum": min, "maximum": max});
        if let Some(default) = self.default {
            schema["default"] = json!(default);
        }
        (name, described(schema, self.help))
    }
}

fn described(mut schema: Value, help: &str) -> Value {
    schema["description"] = json!(help);
    schema
}

type Field = (&'static str, Value);

fn field(name: &'static str, schema: Value, help: &str) -> Field {
    (name, described(schema, help))
}

fn flag(name: &'static str, help: &str) -> Field {
    field(name, json!({"type": "boolean", "default": false}), help)
}

fn text(name: &'static str, help: &str) -> Field {
    field(name, json!({"type": "string"}), help)
}

fn count(name: &'static str, help: &str) -> Field {
    field(name, json!({"type": "integer", "minimum": 1}), help)
}

fn object(required: &[&str], fields: impl IntoIterator<Item = Field>) -> Value {
    let properties: Map<String, Value> = fields
        .into_iter()
        .map(|(name, schema)| (name.to_owned(), schema))
        .collect();
    json!({"type": "object", "required": required, "properties": properties})
}

/// What both endpoints that answer take.
fn common() -> Vec<Field> {
    let ids = json!({"type": "array", "items": {"type": "integer"}, "maxItems": MAX_STOP_TOKENS});
    let one = json!({"type": "string", "minLength": 1, "maxLength": MAX_STOP_STRING_BYTES});
    let stop =
        json!({"anyOf": [one, {"type": "array", "items": one, "maxItems": STOP_STRINGS_MAX}]});
    let adapter = object(
        &["name"],
        [
            text("name", "Name of an adapter."),
            field(
                "weight",
                json!({"type": "number", "minimum": -10, "maximum": 10, "default": 1}),
                "What it is multiplied by.",
            ),
        ],
    );
    vec![
        text("model", "Name of the model: the base or an adapter."),
        field(
            "adapters",
            json!({"type": "array", "items": adapter, "maxItems": ADAPTERS_MAX}),
            "Adapters added up with weights instead of the model's own; not where answers are paid for.",
        ),
        flag("stream", "Answer with server-sent events."),
        field(
            "stream_options",
            object(
                &[],
                [flag("include_usage", "Send the usage before the end.")],
            ),
            "How to stream.",
        ),
        N.schema(),
        count("max_tokens", "Most tokens of the answer."),
        count("max_completion_tokens", "The newer name of max_tokens."),
        MIN_TOKENS.schema(),
        field("stop", stop, "Strings that end the answer; not part of it."),
        field(
            "stop_token_ids",
            ids,
            "Tokens that end the answer; not part of it.",
        ),
        flag("ignore_eos", "The model's end tokens end nothing."),
        TEMPERATURE.schema(),
        TOP_P.schema(),
        TOP_K.schema(),
        MIN_P.schema(),
        field(
            "seed",
            json!({"type": "integer"}),
            "The same seed gives the same answer.",
        ),
        PRESENCE_PENALTY.schema(),
        FREQUENCY_PENALTY.schema(),
        REPETITION_PENALTY.schema(),
        field(
            "logit_bias",
            json!({"type": "object", "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100}}),
            "Added to the logits of tokens, by id.",
        ),
        field(
            "response_format",
            json!({"type": "object", "required": ["type"], "properties": {
                "type": {"enum": ["text", "json_object", "json_schema"]}, "json_schema": {"type": "object"},
            }}),
            "What the answer has to look like. A schema may only refer to itself.",
        ),
        field(
            "structured_outputs",
            json!({"type": "object"}),
            "vLLM's way: one of json, json_object, regex, choice.",
        ),
        field(
            "guided_json",
            json!({"anyOf": [{"type": "object"}, {"type": "string"}]}),
            "vLLM's older way: a schema.",
        ),
        text("guided_regex", "vLLM's older way: a regular expression."),
        field(
            "guided_choice",
            json!({"type": "array", "items": {"type": "string"}}),
            "vLLM's older way: texts to choose from.",
        ),
        PRIORITY.schema(),
        TIMEOUT.schema(),
        flag(
            "return_token_ids",
            "Give the token ids of prompt and answer.",
        ),
        flag(
            "return_tokens_as_token_ids",
            "Log-probabilities name a token as token_id:ID instead of by its text.",
        ),
    ]
}

fn chat_fields() -> [Field; 2] {
    [
        field(
            "messages",
            json!({"type": "array", "minItems": 1, "items": {"type": "object", "required": ["role"], "properties": {
                "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
                "content": {"description": "A text, or parts of type text."},
                "tool_calls": {"type": "array", "items": {"type": "object"}},
                "tool_call_id": {"type": "string"},
            }}}),
            "The conversation; a trailing assistant message is gone on with.",
        ),
        field(
            "chat_template_kwargs",
            json!({"type": "object"}),
            "Variables of the model's chat template.",
        ),
    ]
}

pub(in crate::api) fn chat() -> Value {
    let retrieval = object(
        &["datanet"],
        [
            text("datanet", "Name of a datanet that this server has."),
            PASSAGES.schema(),
            field(
                "method",
                json!({"enum": ["lexical", "embedding", "hybrid"]}),
                "How passages are found; by words and embeddings where there is an embedding model.",
            ),
        ],
    );
    let own = [
        field(
            "retrieval",
            retrieval,
            "Gives the last question passages of a datanet; the reply lists them as `citations`.",
        ),
        flag("logprobs", "Report how likely each token was."),
        TOP_LOGPROBS.schema(),
        field(
            "tools",
            json!({"type": "array", "maxItems": crate::api::tools::TOOLS_MAX, "items": {"type": "object"}}),
            "Functions that the model may call.",
        ),
        field(
            "tool_choice",
            json!({"anyOf": [{"enum": ["none", "auto", "required"]}, {"type": "object"}]}),
            "Whether it calls one; `required` and a named function always give arguments of the schema.",
        ),
        field(
            "parallel_tool_calls",
            json!({"type": "boolean", "default": true}),
            "Whether it may call several.",
        ),
    ];
    let fields = chat_fields().into_iter().chain(common()).chain(own);
    object(&["model", "messages"], fields)
}

fn text_or_tokens() -> Value {
    json!({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "integer"}}]})
}

pub(in crate::api) fn completion() -> Value {
    let own = [
        field("prompt", text_or_tokens(), "What is gone on with."),
        LOGPROBS.schema(),
    ];
    object(&["model", "prompt"], own.into_iter().chain(common()))
}

pub(in crate::api) fn embeddings() -> Value {
    let one = text_or_tokens();
    let input = json!({"anyOf": [one, {"type": "array", "items": one, "maxItems": INPUTS_MAX}]});
    object(
        &["model", "input"],
        [
            text("model", "Name of the base model."),
            field("input", input, "Texts or their tokens."),
            field(
                "encoding_format",
                json!({"enum": ["float", "base64"], "default": "float"}),
                "base64: little-endian 32-bit floats.",
            ),
            DIMENSIONS.schema(),
        ],
    )
}

pub(in crate::api) fn tokenize() -> Value {
    let own = [
        text("model", "Ignored: all models have one tokenizer."),
        text("prompt", "A text; or give messages."),
        field(
            "add_special_tokens",
            json!({"type": "boolean", "default": true}),
            "Begin with the token that begins a text, if the model has one.",
        ),
    ];
    object(&[], own.into_iter().chain(chat_fields()))
}

pub(in crate::api) fn detokenize() -> Value {
    let tokens = json!({"type": "array", "items": {"type": "integer"}});
    object(&["tokens"], [field("tokens", tokens, "Token ids.")])
}

pub(in crate::api) fn load_adapter() -> Value {
    object(
        &["lora_name", "lora_path"],
        [
            text("lora_name", "The name it is to have."),
            text("lora_path", "Its folder, within the server's roots."),
            flag("load_inplace", "Replace an adapter of this name."),
        ],
    )
}

pub(in crate::api) fn unload_adapter() -> Value {
    object(&["lora_name"], [text("lora_name", "Its name.")])
}
