//! The messages of a chat, as chat templates take them.

use ol_model::{ChatOptions, ChatTemplateError};
use serde_json::{Map, Value, json};

use super::fields::{Fields, wrong_type};
use crate::answer::Prompt;
use crate::api::error::ApiError;

/// Most messages of a chat.
const MESSAGES_MAX: usize = 1_024;

/// Most variables for the template.
const VARIABLES_MAX: usize = 32;

/// A chat that was read: contents are texts, arguments of calls are objects.
#[derive(Debug, Clone)]
pub(in crate::api) struct Chat(crate::retrieval::Chat);

impl Chat {
    /// What the model is to continue.
    pub(in crate::api) fn prompt(self) -> Result<Prompt, ApiError> {
        self.0.prompt().map_err(|error| refused(&error))
    }

    /// The chat itself.
    pub(in crate::api) fn into_inner(self) -> crate::retrieval::Chat {
        self.0
    }

    /// Tools the template is to describe.
    pub(super) fn set_tools(&mut self, tools: Vec<Value>) {
        self.0.tools = tools;
    }

    /// For a model that cannot be told of tools.
    pub(in crate::api) fn drop_tools(&mut self) {
        self.0.tools.clear();
    }

    #[cfg(test)]
    pub(super) fn messages(&self) -> &[Value] {
        &self.0.messages
    }
}

/// A conversation that no template takes.
pub(in crate::api) fn refused(error: &ChatTemplateError) -> ApiError {
    ApiError::invalid_value("messages", error.to_string())
}

pub(super) fn chat(fields: &Fields) -> Result<Chat, ApiError> {
    let Value::Array(messages) = fields.required("messages")? else {
        return Err(wrong_type("messages", "a list of messages"));
    };
    if messages.is_empty() || messages.len() > MESSAGES_MAX {
        let message = format!("messages must be 1 to {MESSAGES_MAX} messages");
        return Err(ApiError::invalid_value("messages", message));
    }
    let messages = messages.iter().enumerate();
    let messages: Result<Vec<Value>, ApiError> = messages
        .map(|(at, message)| read_message(&format!("messages[{at}]"), message))
        .collect();
    let mut options = ChatOptions::default();
    if let Some(variables) = fields.get("chat_template_kwargs") {
        let variables = super::object("chat_template_kwargs", variables)?;
        if variables.len() > VARIABLES_MAX {
            let message = format!("chat_template_kwargs takes at most {VARIABLES_MAX} variables");
            return Err(ApiError::invalid_value("chat_template_kwargs", message));
        }
        // What the server itself gives a template is not the client's to change.
        let is_ours = |name: &str| {
            ["messages", "tools", "documents", "add_generation_prompt"].contains(&name)
        };
        if let Some(name) = variables.keys().find(|name| is_ours(name)) {
            let message = format!("{name} cannot be set");
            return Err(ApiError::invalid_value("chat_template_kwargs", message));
        }
        options.variables = variables
            .iter()
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
    }
    Ok(Chat(crate::retrieval::Chat {
        messages: messages?,
        tools: Vec::new(),
        options,
    }))
}

fn read_message(at: &str, message: &Value) -> Result<Value, ApiError> {
    let field = |name: &str| format!("{at}.{name}");
    let role = match message.get("role").and_then(Value::as_str) {
        // The newer name of the same role.
        Some("developer" | "system") => "system",
        Some(role @ ("user" | "assistant" | "tool")) => role,
        Some(_) => {
            let message = "a role is system, developer, user, assistant or tool";
            return Err(ApiError::invalid_value(&field("role"), message));
        }
        None => return Err(wrong_type(&field("role"), "a string")),
    };
    let mut read = Map::new();
    read.insert("role".to_owned(), json!(role));
    let calls = message
        .get("tool_calls")
        .filter(|calls| !calls.is_null() && role == "assistant");
    let content = match message.get("content") {
        None | Some(Value::Null) if calls.is_some() => String::new(),
        Some(content) => text_of(&field("content"), content)?,
        None => return Err(wrong_type(&field("content"), "a string or a list of parts")),
    };
    read.insert("content".to_owned(), Value::String(content));
    if let Some(calls) = calls {
        let calls = read_calls(&field("tool_calls"), calls)?;
        read.insert("tool_calls".to_owned(), calls);
    }
    for name in ["name", "tool_call_id", "reasoning_content"] {
        match message.get(name) {
            None | Some(Value::Null) => {}
            Some(Value::String(text)) => {
                read.insert(name.to_owned(), json!(text));
            }
            Some(_) => return Err(wrong_type(&field(name), "a string")),
        }
    }
    Ok(Value::Object(read))
}

fn text_of(at: &str, content: &Value) -> Result<String, ApiError> {
    let parts = match content {
        Value::String(text) => return Ok(text.clone()),
        Value::Array(parts) => parts,
        _ => return Err(wrong_type(at, "a string or a list of parts")),
    };
    let mut text = String::new();
    for (part_at, part) in parts.iter().enumerate() {
        let name = format!("{at}[{part_at}]");
        if part.get("type").and_then(Value::as_str) != Some("text") {
            return Err(ApiError::unsupported(
                &name,
                "only parts of type text are supported",
            ));
        }
        let part = part.get("text").and_then(Value::as_str);
        text.push_str(part.ok_or_else(|| wrong_type(&format!("{name}.text"), "a string"))?);
    }
    Ok(text)
}

/// Calls that the assistant made earlier.
fn read_calls(at: &str, calls: &Value) -> Result<Value, ApiError> {
    let calls = calls
        .as_array()
        .ok_or_else(|| wrong_type(at, "a list of calls"))?;
    let read = |(n, call): (usize, &Value)| {
        let at = format!("{at}[{n}].function");
        let function = call.get("function").unwrap_or(&Value::Null);
        let name = function.get("name").and_then(Value::as_str);
        let name = name.ok_or_else(|| wrong_type(&format!("{at}.name"), "a string"))?;
        // Templates write the arguments out as JSON of their own.
        let arguments = match function.get("arguments") {
            None | Some(Value::Null) => json!({}),
            Some(Value::String(text)) if text.trim().is_empty() => json!({}),
            Some(Value::String(text)) => serde_json::from_str(text).map_err(|_| {
                ApiError::invalid_value(&format!("{at}.arguments"), "arguments are not JSON")
            })?,
            Some(value) => value.clone(),
        };
        let id = call.get("id").and_then(Value::as_str).unwrap_or_default();
        Ok(json!({
            "id": id, "type": "function", "function": {"name": name, "arguments": arguments},
        }))
    };
    calls.iter().enumerate().map(read).collect()
}
