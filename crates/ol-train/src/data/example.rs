//! Rows to examples: the formats, and how they are told apart.

use std::fmt;

use ol_model::Conversation;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::Fault;
use super::read::Row;

/// What an example looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// `messages` or `conversations`: a list of `role` and `content`, or of
    /// `from` and `value` (ShareGPT); `system` and `tools` besides.
    Chat,
    /// `instruction`, `input`, `output` (Alpaca), or `question` and `answer`;
    /// `system` besides. Written as a chat.
    Instruction,
    /// `prompt` and `completion`: texts that follow each other as they are, or
    /// lists of messages.
    PromptCompletion,
    /// `text`: learnt whole.
    Text,
    /// `prompt`, `chosen` and `rejected`: texts, or messages.
    Preference,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Chat => "chat messages",
            Self::Instruction => "instructions with answers",
            Self::PromptCompletion => "prompts with completions",
            Self::Text => "plain text",
            Self::Preference => "preferences (chosen and rejected)",
        })
    }
}

impl Format {
    /// Tells the format by the names of the fields.
    pub(super) fn detect(row: &Row) -> Result<Self, Fault> {
        let has = |name: &str| row.contains_key(name);
        if has("chosen") && has("rejected") {
            Ok(Self::Preference)
        } else if has("messages") || has("conversations") {
            Ok(Self::Chat)
        } else if (has("instruction") && has("output")) || (has("question") && has("answer")) {
            Ok(Self::Instruction)
        } else if has("prompt") && has("completion") {
            Ok(Self::PromptCompletion)
        } else if has("text") {
            Ok(Self::Text)
        } else {
            let fields: Vec<&str> = row.keys().take(20).map(String::as_str).collect();
            Err(Fault::new(format!(
                "no known format has the fields {}; known are: messages; conversations; \
                 instruction, output; question, answer; prompt, completion; text; \
                 prompt, chosen, rejected",
                fields.join(", ")
            )))
        }
    }
}

/// Something to learn from.
#[derive(Debug, Clone)]
pub(super) enum Example {
    /// Messages and tools as JSON.
    Chat(Chat),
    /// A text and how it goes on.
    Completion { prompt: String, completion: String },
    /// A text.
    Text(String),
    /// Two ways to go on.
    Preference {
        prompt: Prompt,
        chosen: Prompt,
        rejected: Prompt,
    },
}

/// Messages, each as JSON.
#[derive(Debug, Clone, Default)]
pub(super) struct Chat {
    pub(super) messages: Vec<String>,
    pub(super) tools: Option<String>,
}

#[derive(Debug, Clone)]
pub(super) enum Prompt {
    Text(String),
    Messages(Vec<String>),
}

impl Prompt {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Text(text) => text.as_bytes().to_vec(),
            Self::Messages(list) => list.join("\n").into_bytes(),
        }
    }
}

impl Chat {
    pub(super) fn conversation(&self) -> Result<Conversation, Fault> {
        let bad = |e: ol_model::ChatTemplateError| Fault::new(e.to_string());
        let conversation =
            Conversation::from_json(&format!("[{}]", self.messages.join(","))).map_err(bad)?;
        match &self.tools {
            Some(tools) => conversation.with_tools(tools).map_err(bad),
            None => Ok(conversation),
        }
    }

    fn push(&mut self, role: &str, content: &str) {
        self.messages.push(message(role, content));
    }
}

fn message(role: &str, content: &str) -> String {
    serde_json::json!({ "role": role, "content": content }).to_string()
}

/// The role of a message, in the words of chat templates.
pub(super) fn role_of(message: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Head {
        role: String,
    }
    serde_json::from_str::<Head>(message).ok().map(|h| h.role)
}

/// The text of a message, if it is one.
pub(super) fn content_of(message: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Head {
        content: String,
    }
    serde_json::from_str::<Head>(message)
        .ok()
        .map(|h| h.content)
}

impl Example {
    pub(super) fn question(question: &str, answer: &str) -> Self {
        let mut chat = Chat::default();
        chat.push("user", question);
        chat.push("assistant", answer);
        Self::Chat(chat)
    }

    pub(super) fn parse(format: Format, row: &Row) -> Result<Self, Fault> {
        match format {
            Format::Chat => chat(row).map(Self::Chat),
            Format::Instruction => instruction(row).map(Self::Chat),
            Format::PromptCompletion => {
                let prompt = prompt(row, "prompt")?;
                let completion = answer(row, "completion")?;
                match (prompt, completion) {
                    (Prompt::Text(prompt), Prompt::Text(completion)) => {
                        if completion.is_empty() {
                            return Err(Fault::in_field("completion", "is empty"));
                        }
                        Ok(Self::Completion { prompt, completion })
                    }
                    (Prompt::Messages(mut messages), Prompt::Messages(rest)) => {
                        messages.extend(rest);
                        let tools = tools(row)?;
                        let chat = Chat { messages, tools };
                        check(&chat, "completion").map(|()| Self::Chat(chat))
                    }
                    _ => Err(Fault::in_field(
                        "completion",
                        "prompt and completion must both be texts or both be lists of messages",
                    )),
                }
            }
            Format::Text => {
                let text = text(row, "text")?;
                if text.trim().is_empty() {
                    return Err(Fault::in_field("text", "is empty"));
                }
                Ok(Self::Text(text))
            }
            Format::Preference => {
                let prompt = if row.contains_key("prompt") {
                    prompt(row, "prompt")?
                } else {
                    // The prompt is what both begin with.
                    Prompt::Messages(Vec::new())
                };
                let (chosen, rejected) = (answer(row, "chosen")?, answer(row, "rejected")?);
                if chosen.bytes() == rejected.bytes() {
                    return Err(Fault::in_field("rejected", "is the same as `chosen`"));
                }
                Ok(Self::Preference {
                    prompt,
                    chosen,
                    rejected,
                })
            }
        }
    }

    /// What decides on which side of the split the example lands.
    pub(super) fn prompt(&self) -> Vec<u8> {
        let opening = |messages: &[String]| {
            let is_answer = |m: &&String| role_of(m).as_deref() == Some("assistant");
            let n = messages.iter().position(|m| is_answer(&m));
            messages[..n.unwrap_or(messages.len())]
                .join("\n")
                .into_bytes()
        };
        match self {
            Self::Chat(chat) => opening(&chat.messages),
            Self::Completion { prompt, .. } => prompt.as_bytes().to_vec(),
            Self::Text(text) => text.as_bytes().to_vec(),
            Self::Preference { prompt, chosen, .. } => match (prompt, chosen) {
                (Prompt::Text(text), _) => text.as_bytes().to_vec(),
                (Prompt::Messages(list), Prompt::Messages(rest)) if list.is_empty() => {
                    opening(rest)
                }
                (Prompt::Messages(list), _) => opening(list),
            },
        }
    }

    /// All of it, for finding what is there twice.
    pub(super) fn whole(&self) -> Vec<u8> {
        match self {
            Self::Chat(chat) => chat.messages.join("\n").into_bytes(),
            Self::Completion { prompt, completion } => {
                format!("{prompt}\0{completion}").into_bytes()
            }
            Self::Text(text) => text.as_bytes().to_vec(),
            Self::Preference {
                prompt,
                chosen,
                rejected,
            } => [prompt.bytes(), chosen.bytes(), rejected.bytes()].join(&0),
        }
    }
}

fn field<'a>(row: &'a Row, name: &str) -> Result<&'a RawValue, Fault> {
    row.get(name)
        .map(Box::as_ref)
        .ok_or_else(|| Fault::in_field(name, "is missing"))
}

fn text(row: &Row, name: &str) -> Result<String, Fault> {
    serde_json::from_str(field(row, name)?.get())
        .map_err(|_| Fault::in_field(name, "is not a text"))
}

/// `None` when the field is absent, null or empty.
fn optional_text(row: &Row, name: &str) -> Result<Option<String>, Fault> {
    if row.get(name).is_none_or(|v| v.get() == "null") {
        return Ok(None);
    }
    Ok(Some(text(row, name)?).filter(|t| !t.is_empty()))
}

fn tools(row: &Row) -> Result<Option<String>, Fault> {
    let Some(value) = row.get("tools").filter(|v| v.get() != "null") else {
        return Ok(None);
    };
    if value.get().starts_with('[') {
        return Ok(Some(value.get().to_owned()));
    }
    // ShareGPT data has the list written out in a text.
    let list = optional_text(row, "tools")?;
    match list.filter(|t| !t.trim().is_empty()) {
        Some(list) if list.trim_start().starts_with('[') => Ok(Some(list)),
        Some(_) => Err(Fault::in_field("tools", "is not a list")),
        None => Ok(None),
    }
}

fn chat(row: &Row) -> Result<Chat, Fault> {
    let name = if row.contains_key("messages") {
        "messages"
    } else {
        "conversations"
    };
    let mut chat = Chat {
        messages: messages(field(row, name)?, name)?,
        tools: tools(row)?,
    };
    let has_system = chat.messages.first().and_then(|m| role_of(m)).as_deref() == Some("system");
    if let Some(system) = optional_text(row, "system")?.filter(|_| !has_system) {
        chat.messages.insert(0, message("system", &system));
    }
    check(&chat, name).map(|()| chat)
}

/// A conversation must have something to learn.
fn check(chat: &Chat, name: &str) -> Result<(), Fault> {
    let is_answer = |m: &String| role_of(m).as_deref() == Some("assistant");
    if !chat.messages.iter().any(is_answer) {
        return Err(Fault::in_field(
            name,
            "no message is the assistant's: there is nothing to learn",
        ));
    }
    Ok(())
}

fn instruction(row: &Row) -> Result<Chat, Fault> {
    let mut chat = Chat::default();
    if let Some(system) = optional_text(row, "system")? {
        chat.push("system", &system);
    }
    let (question, answer) = if row.contains_key("instruction") {
        ("instruction", "output")
    } else {
        ("question", "answer")
    };
    let mut asked = text(row, question)?;
    if let Some(input) = optional_text(row, "input")? {
        asked = format!("{asked}\n{input}");
    }
    if asked.trim().is_empty() {
        return Err(Fault::in_field(question, "is empty"));
    }
    let answered = text(row, answer)?;
    if answered.trim().is_empty() {
        return Err(Fault::in_field(answer, "is empty"));
    }
    chat.push("user", &asked);
    chat.push("assistant", &answered);
    Ok(chat)
}

/// Messages with `role`; ShareGPT's `from` and `value` are translated.
fn messages(value: &RawValue, name: &str) -> Result<Vec<String>, Fault> {
    let list: Vec<&RawValue> = serde_json::from_str(value.get())
        .map_err(|_| Fault::in_field(name, "is not a list of messages"))?;
    list.iter()
        .enumerate()
        .map(|(i, value)| {
            let bad = |reason: &str| Fault::in_field(&format!("{name}[{i}]"), reason);
            let fields: Row = serde_json::from_str(value.get())
                .map_err(|_| bad("is not an object with role and content"))?;
            let said = |field: &str| {
                let value = fields.get(field)?;
                serde_json::from_str::<String>(value.get()).ok()
            };
            if let Some(from) = said("from") {
                let role = match from.as_str() {
                    "human" | "user" => "user",
                    "gpt" | "assistant" | "model" | "chatgpt" | "bot" => "assistant",
                    "system" => "system",
                    "tool" | "observation" | "function_response" => "tool",
                    other => {
                        return Err(bad(&format!(
                            "`from` is `{other}`; known are human, gpt, system and tool"
                        )));
                    }
                };
                let text = said("value").ok_or_else(|| bad("`value` is not a text"))?;
                return Ok(message(role, &text));
            }
            match said("role").as_deref() {
                Some("system" | "developer" | "user" | "assistant" | "tool" | "ipython") => {}
                Some(other) => {
                    return Err(bad(&format!(
                        "the role is `{other}`; known are system, developer, user, assistant and tool"
                    )));
                }
                None => return Err(bad("has no `role`")),
            }
            if !fields.contains_key("content") && !fields.contains_key("tool_calls") {
                return Err(bad("has no `content`"));
            }
            Ok(value.get().to_owned())
        })
        .collect()
}

/// A text or messages.
fn prompt(row: &Row, name: &str) -> Result<Prompt, Fault> {
    let value = field(row, name)?;
    match value.get().as_bytes().first() {
        Some(b'"') => text(row, name).map(Prompt::Text),
        Some(b'[') => messages(value, name).map(Prompt::Messages),
        Some(b'{') => {
            let list = RawValue::from_string(format!("[{}]", value.get()))
                .map_err(|e| Fault::in_field(name, e.to_string()))?;
            messages(&list, name).map(Prompt::Messages)
        }
        _ => Err(Fault::in_field(
            name,
            "is neither a text nor a list of messages",
        )),
    }
}

/// A text that is not empty, or messages that end with the assistant's.
fn answer(row: &Row, name: &str) -> Result<Prompt, Fault> {
    let answer = prompt(row, name)?;
    match &answer {
        Prompt::Text(text) if text.trim().is_empty() => Err(Fault::in_field(name, "is empty")),
        Prompt::Messages(list)
            if list.last().and_then(|m| role_of(m)).as_deref() != Some("assistant") =>
        {
            Err(Fault::in_field(
                name,
                "the last message is not the assistant's",
            ))
        }
        _ => Ok(answer),
    }
}
