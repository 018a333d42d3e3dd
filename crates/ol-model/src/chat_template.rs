//! Chat templates: how a model's makers write conversations (Jinja, as
//! `transformers` runs it).
//!
//! # Why contents cannot inject control tokens
//!
//! Before it is compiled, every control token that the template's *source*
//! contains (`<|im_start|>`, and those behind `bos_token` and its like) is
//! replaced by one character that Unicode keeps out of interchange (a
//! noncharacter, U+1FFFE and so on). Such characters are replaced by U+FFFD in
//! everything that comes from outside: messages, tools, variables. Whatever the
//! template then does with strings, a noncharacter in its output was written by
//! the template itself, and becomes the control token; all else is text, and the
//! encoder makes no control token of text. This holds too where template and
//! content *together* spell a token (`'<' + tool.name + '>'` with a tool called
//! `/s`).
//!
//! The price: a template that puts control tokens together from parts
//! (`'<|' + role + '|>'`) would have them encoded as text. That is found out
//! when the template is compiled, and refused.
//!
//! # Limits
//!
//! Source, output, steps and nesting are limited. What is not: the length of
//! strings inside a template that doubles a variable again and again; only load
//! templates from directories whose weights you would run.

mod python;
mod spans;
mod value;

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use aho_corasick::{AhoCorasick, MatchKind};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior};
use thiserror::Error;
use tokenizers::AddedToken;

use crate::tokenizer::{ChatMessage, Control, Role};
use value::Outside;

/// Longest template source.
const MAX_SOURCE_SIZE_BYTES: usize = 1 << 20;
/// Longest output of a template.
const MAX_OUTPUT_SIZE_BYTES: usize = 32 << 20;
/// Most instructions that rendering may take.
const FUEL: u64 = 5_000_000;
/// Deepest nesting of macros and includes.
const MAX_RECURSION: usize = 64;
/// Most messages of a conversation.
const MAX_MESSAGES: usize = 100_000;

/// The fields that hold what a model thought, the usual one first.
const THOUGHTS: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// Around what the assistant wrote.
const OPEN: char = '\u{FFFE}';
const CLOSE: char = '\u{FFFF}';
/// Around a message's content, to find it again.
const PROBES: [char; 2] = ['\u{FDD0}', '\u{FDD1}'];

/// Why a chat template cannot be used.
#[derive(Debug, Error)]
pub enum ChatTemplateError {
    /// The source is not a template that can be run.
    #[error("chat template {name}: {reason}")]
    Source {
        /// Name of the template.
        name: String,
        /// What is wrong, and where.
        reason: String,
    },
    /// The template itself refuses the conversation.
    #[error("the chat template refuses the conversation: {reason}")]
    Refused {
        /// What the template says.
        reason: String,
    },
    /// The template fails on the conversation.
    #[error("chat template {name} fails on the conversation: {reason}")]
    Failed {
        /// Name of the template.
        name: String,
        /// What is wrong, and where.
        reason: String,
    },
    /// The conversation is not what a template takes.
    #[error("conversation: {0}")]
    Conversation(String),
    /// There is no template of this name.
    #[error("there is no chat template {name}, only {}", known.join(", "))]
    Unknown {
        /// The name asked for.
        name: String,
        /// Those that there are.
        known: Vec<String>,
    },
    /// Which tokens are the assistant's cannot be told.
    #[error(
        "chat template {name}: message {message} cannot be told apart from what is around it; \
         mark it with {{% generation %}} in the template"
    )]
    Mask {
        /// Name of the template.
        name: String,
        /// The message, from 0.
        message: usize,
    },
}

/// What is said, as chat templates take it: messages with a `role`, a `content`
/// and whatever else the template knows (`tool_calls`, `reasoning_content`), and
/// the tools that may be called.
#[derive(Debug, Clone)]
pub struct Conversation {
    messages: Vec<Value>,
    tools: Option<Value>,
}

impl Conversation {
    /// Reads a JSON array of messages.
    ///
    /// # Errors
    /// [`ChatTemplateError::Conversation`] when it is not one, or a message has
    /// no `role`.
    pub fn from_json(messages: &str) -> Result<Self, ChatTemplateError> {
        let bad = ChatTemplateError::Conversation;
        let value = Outside::parse(messages).map_err(bad)?;
        if value.kind() != minijinja::value::ValueKind::Seq {
            return Err(bad("messages are not a list".to_owned()));
        }
        let messages: Vec<Value> = value.try_iter().map_err(|e| bad(e.to_string()))?.collect();
        if messages.is_empty() || messages.len() > MAX_MESSAGES {
            let n = messages.len();
            return Err(bad(format!(
                "{n} messages, allowed are 1 to {MAX_MESSAGES}"
            )));
        }
        let messages = messages
            .iter()
            .enumerate()
            .map(|(i, message)| {
                let role = message.get_attr("role").unwrap_or_default();
                if role.as_str().is_none_or(str::is_empty) {
                    return Err(bad(format!("message {i} has no role")));
                }
                Ok(normal_message(message))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            messages,
            tools: None,
        })
    }

    /// Adds the tools that may be called: a JSON array of their descriptions.
    ///
    /// # Errors
    /// [`ChatTemplateError::Conversation`] when it is not a JSON array.
    pub fn with_tools(mut self, tools: &str) -> Result<Self, ChatTemplateError> {
        let bad = ChatTemplateError::Conversation;
        let value = Outside::parse(tools).map_err(bad)?;
        if value.kind() != minijinja::value::ValueKind::Seq {
            return Err(bad("tools are not a list".to_owned()));
        }
        self.tools = Some(value);
        Ok(self)
    }

    pub(crate) const fn has_tools(&self) -> bool {
        self.tools.is_some()
    }

    /// The messages for a format that knows three roles and text only.
    pub(crate) fn plain_messages(&self) -> Result<Vec<ChatMessage>, ChatTemplateError> {
        let plain = |(i, message): (usize, &Value)| {
            let field = |name: &str| {
                let value = message.get_attr(name).unwrap_or_default();
                value.as_str().map(str::to_owned)
            };
            let bad = |what: &str| ChatTemplateError::Conversation(format!("message {i}: {what}"));
            let role = match field("role").as_deref() {
                Some("system") => Role::System,
                Some("user") => Role::User,
                Some("assistant") => Role::Assistant,
                _ => {
                    return Err(bad(
                        "the role is none of system, user and assistant, which this model knows",
                    ));
                }
            };
            let content = field("content").ok_or_else(|| bad("the content is not a text"))?;
            Ok(ChatMessage { role, content })
        };
        self.messages.iter().enumerate().map(plain).collect()
    }
}

impl From<&[ChatMessage]> for Conversation {
    fn from(messages: &[ChatMessage]) -> Self {
        let value = |m: &ChatMessage| {
            Value::from_pairs([
                ("role", Value::from(m.role.name())),
                ("content", Value::from(value::clean(&m.content))),
            ])
        };
        Self {
            messages: messages.iter().map(value).collect(),
            tools: None,
        }
    }
}

/// What else a template may ask for.
#[derive(Debug, Clone, Default)]
pub struct ChatOptions {
    /// Name of the template; the one for the case when `None`.
    pub template: Option<String>,
    /// What time it is, seconds since 1970. `None` leaves `strftime_now`
    /// undefined: templates fall back on a fixed date, or fail if they have none.
    pub unix_s: Option<u64>,
    /// Variables of the template (`enable_thinking`), each as JSON.
    pub variables: BTreeMap<String, serde_json::Value>,
}

/// The tokens a template may write, and what it calls some of them.
#[derive(Debug)]
pub(crate) struct ControlTokens<'a> {
    pub(crate) tokens: &'a BTreeMap<u32, AddedToken>,
    /// `bos_token` and the like.
    pub(crate) names: &'a BTreeMap<String, String>,
}

/// A conversation in text, with control tokens at their places.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Rendered {
    pub(crate) text: String,
    pub(crate) controls: Vec<Control>,
    /// What the assistant wrote, in order: byte ranges of `text`.
    pub(crate) assistant: Vec<Range<usize>>,
}

/// A compiled template.
#[derive(Debug)]
pub(crate) struct ChatTemplate {
    name: String,
    environment: Environment<'static>,
    /// Control token behind each marker.
    markers: BTreeMap<char, (u32, String)>,
    /// `bos_token` and the like, as the template sees them.
    names: Vec<(String, Value)>,
    marks_assistant: bool,
}

/// The noncharacters that stand for control tokens: all but [`OPEN`], [`CLOSE`]
/// and [`PROBES`].
fn marker_alphabet() -> impl Iterator<Item = char> {
    let planes = (1..=16_u32).flat_map(|plane| [plane << 16 | 0xFFFE, plane << 16 | 0xFFFF]);
    planes.chain(0xFDD2..=0xFDEF).filter_map(char::from_u32)
}

fn is_noncharacter(c: char) -> bool {
    matches!(u32::from(c), 0xFDD0..=0xFDEF) || u32::from(c) & 0xFFFE == 0xFFFE
}

/// A `raise_exception` in a template.
#[derive(Debug, Error)]
#[error("{0}")]
struct Raised(String);

impl ChatTemplate {
    pub(crate) fn compile(
        name: &str,
        source: &str,
        controls: &ControlTokens<'_>,
    ) -> Result<Self, ChatTemplateError> {
        let bad = |reason: String| ChatTemplateError::Source {
            name: name.to_owned(),
            reason,
        };
        if source.len() > MAX_SOURCE_SIZE_BYTES {
            return Err(bad(format!(
                "{} bytes, allowed are {MAX_SOURCE_SIZE_BYTES}",
                source.len()
            )));
        }
        if source.contains(is_noncharacter) {
            return Err(bad("contains a Unicode noncharacter".to_owned()));
        }
        let mut marking = Marking::new(controls).map_err(bad)?;
        let marked = marking.mark(source).map_err(bad)?;
        let mut names = Vec::new();
        for (part, token) in controls.names {
            let value = marking.mark(token).map_err(bad)?;
            names.push((part.clone(), Value::from(value)));
        }
        let (marked, marks_assistant) = generation_tags(&marked);
        let mut environment = environment();
        environment
            .add_template_owned("chat", marked)
            .map_err(|e| bad(python::describe(&e)))?;
        let template = Self {
            name: name.to_owned(),
            environment,
            markers: marking.markers,
            names,
            marks_assistant,
        };
        template.check_composed(&marking.automaton, &marking.eligible)?;
        Ok(template)
    }

    /// Refuses a template that puts control tokens together from parts.
    fn check_composed(
        &self,
        automaton: &AhoCorasick,
        tokens: &[(u32, String)],
    ) -> Result<(), ChatTemplateError> {
        let message = |role| ChatMessage {
            role,
            content: "a".to_owned(),
        };
        let (system, user, assistant) = (
            message(Role::System),
            message(Role::User),
            message(Role::Assistant),
        );
        let conversations = [
            vec![user.clone()],
            vec![user.clone(), assistant.clone()],
            vec![system, user, assistant],
        ];
        for messages in conversations {
            let conversation = Conversation::from(messages.as_slice());
            // A template may refuse a conversation; only what it writes matters.
            let Ok(raw) = self.render(&conversation, &ChatOptions::default(), true) else {
                continue;
            };
            if let Some(found) = automaton.find(&raw) {
                let token = &tokens[found.pattern().as_usize()].1;
                return Err(ChatTemplateError::Source {
                    name: self.name.clone(),
                    reason: format!(
                        "puts the control token {token} together from parts; write it out"
                    ),
                });
            }
        }
        Ok(())
    }

    /// Output with markers in the place of control tokens.
    fn render(
        &self,
        conversation: &Conversation,
        options: &ChatOptions,
        wants_answer: bool,
    ) -> Result<String, ChatTemplateError> {
        let mut context: BTreeMap<String, Value> = self.names.iter().cloned().collect();
        for (name, value) in &options.variables {
            context.insert(name.clone(), value::from_json(value));
        }
        if let Some(unix_s) = options.unix_s {
            let now = move |format: String| python::strftime(unix_s, &format);
            context.insert("strftime_now".to_owned(), Value::from_function(now));
        }
        let messages = Value::from(conversation.messages.clone());
        context.insert("messages".to_owned(), messages);
        let tools = conversation.tools.clone().unwrap_or(Value::from(()));
        context.insert("tools".to_owned(), tools);
        context.insert("documents".to_owned(), Value::from(()));
        let prompt = Value::from(wants_answer);
        context.insert("add_generation_prompt".to_owned(), prompt);

        let mut output = Bounded::default();
        let rendered = self
            .environment
            .get_template("chat")
            .and_then(|t| t.render_captured_to(Value::from_pairs(context), &mut output));
        if let Err(error) = rendered {
            return Err(self.failure(&error, &output));
        }
        String::from_utf8(output.bytes).map_err(|e| ChatTemplateError::Failed {
            name: self.name.clone(),
            reason: e.to_string(),
        })
    }

    fn failure(&self, error: &Error, output: &Bounded) -> ChatTemplateError {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(error) = cause {
            if let Some(Raised(reason)) = error.downcast_ref() {
                return ChatTemplateError::Refused {
                    reason: self.readable(reason),
                };
            }
            cause = error.source();
        }
        let reason = if output.is_full {
            format!("the output passes {MAX_OUTPUT_SIZE_BYTES} bytes")
        } else if error.kind() == ErrorKind::OutOfFuel {
            format!("rendering takes more than {FUEL} steps")
        } else {
            self.readable(&python::describe(error))
        };
        ChatTemplateError::Failed {
            name: self.name.clone(),
            reason,
        }
    }

    /// Control tokens in the place of markers, for people.
    fn readable(&self, raw: &str) -> String {
        self.expand(raw).map_or_else(|_| raw.to_owned(), |r| r.text)
    }

    /// Puts the control tokens back.
    fn expand(&self, raw: &str) -> Result<Rendered, ChatTemplateError> {
        let unbalanced = || ChatTemplateError::Failed {
            name: self.name.clone(),
            reason: "cuts through what {% generation %} encloses".to_owned(),
        };
        let mut rendered = Rendered::default();
        let mut open = None;
        for c in raw.chars() {
            let at = rendered.text.len();
            if let Some((id, token)) = self.markers.get(&c) {
                rendered.text.push_str(token);
                let range = at..rendered.text.len();
                rendered.controls.push(Control { range, id: *id });
            } else if c == OPEN {
                if open.replace(at).is_some() {
                    return Err(unbalanced());
                }
            } else if c == CLOSE {
                let start = open.take().ok_or_else(unbalanced)?;
                if start < at {
                    rendered.assistant.push(start..at);
                }
            } else {
                rendered.text.push(c);
            }
        }
        if open.is_some() {
            return Err(unbalanced());
        }
        Ok(rendered)
    }

    /// The conversation up to where the model answers; a trailing assistant
    /// message is left open.
    pub(crate) fn prompt(
        &self,
        conversation: &Conversation,
        options: &ChatOptions,
    ) -> Result<Rendered, ChatTemplateError> {
        let is_open = conversation
            .messages
            .last()
            .is_some_and(|m| role_of(m).as_deref() == Some("assistant"));
        if !is_open {
            return self.expand(&self.render(conversation, options, true)?);
        }
        let mut before = conversation.clone();
        let last = before.messages.pop().unwrap_or_default();
        let Some(content) = last.get_attr("content").unwrap_or_default().to_str() else {
            return Err(ChatTemplateError::Conversation(
                "the last message is to be continued, but its content is not a text".to_owned(),
            ));
        };
        let mut raw = self.render(&before, options, true)?;
        raw.push_str(&content);
        self.expand(&raw)
    }
}

/// A message as `transformers` hands it to templates: without the fields that
/// are null, and with what the model thought under the names that templates look
/// for.
fn normal_message(message: &Value) -> Value {
    let field = |name: &str| {
        let value = message.get_attr(name).unwrap_or_default();
        (!value.is_none() && !value.is_undefined()).then_some(value)
    };
    let thought = THOUGHTS.iter().find_map(|name| field(name));
    let mut fields: Vec<(Value, Value)> = Vec::new();
    for key in message.try_iter().into_iter().flatten() {
        let name = key.as_str().unwrap_or_default();
        if let Some(value) = field(name).filter(|_| name != THOUGHTS[0]) {
            fields.push((key, value));
        }
    }
    if let Some(thought) = thought {
        if field(THOUGHTS[1]).is_none() {
            fields.push((Value::from(THOUGHTS[1]), thought.clone()));
        }
        fields.push((Value::from(THOUGHTS[0]), thought));
    }
    Value::from_pairs(fields)
}

fn role_of(message: &Value) -> Option<std::sync::Arc<str>> {
    message.get_attr("role").unwrap_or_default().to_str()
}

/// What replaces control tokens by markers.
struct Marking {
    automaton: AhoCorasick,
    /// In the order of the automaton's patterns.
    eligible: Vec<(u32, String)>,
    alphabet: Box<dyn Iterator<Item = char>>,
    markers: BTreeMap<char, (u32, String)>,
    by_id: BTreeMap<u32, char>,
}

impl Marking {
    fn new(controls: &ControlTokens<'_>) -> Result<Self, String> {
        // A token that is also a piece of template language cannot be told from
        // it; if such a template writes it, that is found out and refused.
        let is_language = |token: &str| {
            token.len() < 2
                || token.contains(['{', '}', '%', '\'', '"', '\\'])
                || token.chars().all(|c| c.is_alphanumeric() || c == '_')
                || token.chars().any(char::is_whitespace)
        };
        let eligible: Vec<(u32, String)> = controls
            .tokens
            .iter()
            .filter(|(_, token)| !is_language(&token.content))
            .map(|(id, token)| (*id, token.content.clone()))
            .collect();
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(eligible.iter().map(|(_, token)| token))
            .map_err(|e| e.to_string())?;
        Ok(Self {
            automaton,
            eligible,
            alphabet: Box::new(marker_alphabet()),
            markers: BTreeMap::new(),
            by_id: BTreeMap::new(),
        })
    }

    fn mark(&mut self, text: &str) -> Result<String, String> {
        let mut out = String::with_capacity(text.len());
        let mut at = 0;
        for found in self.automaton.find_iter(text) {
            let (id, token) = &self.eligible[found.pattern().as_usize()];
            let marker = match self.by_id.get(id) {
                Some(marker) => *marker,
                None => {
                    let marker = self
                        .alphabet
                        .next()
                        .ok_or("writes more than 62 different control tokens")?;
                    self.by_id.insert(*id, marker);
                    self.markers.insert(marker, (*id, token.clone()));
                    marker
                }
            };
            out.push_str(&text[at..found.start()]);
            out.push(marker);
            at = found.end();
        }
        out.push_str(&text[at..]);
        Ok(out)
    }
}

/// Jinja as `transformers` sets it up.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()
        .expect("the delimiters are the usual ones");
    environment.set_syntax(syntax);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_recursion_limit(MAX_RECURSION);
    environment.set_fuel(Some(FUEL));
    environment.set_formatter(|out, _, value| python::write(out, value));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", python::to_json);
    environment.add_filter("ol_assistant", |text: String| {
        format!("{OPEN}{text}{CLOSE}")
    });
    environment.add_function("raise_exception", |reason: String, _: Kwargs| {
        let error = Error::new(ErrorKind::InvalidOperation, "raise_exception");
        Err::<Value, _>(error.with_source(Raised(reason)))
    });
    environment
}

/// Replaces `{% generation %}` by a filter block with the same bounds and the
/// same rules for white space; says whether there was one.
fn generation_tags(source: &str) -> (String, bool) {
    let mut out = String::with_capacity(source.len());
    let (mut rest, mut found) = (source, false);
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        out.push_str(before);
        rest = tag;
        let Some(end) = tag.find("%}") else { break };
        let inside = &tag[..end];
        let word = inside.trim_matches(['-', '+']).trim();
        let replacement = match word {
            "generation" => " filter ol_assistant ",
            "endgeneration" => " endfilter ",
            _ => continue,
        };
        found = true;
        let control = |c: Option<char>| c.filter(|c| matches!(c, '-' | '+'));
        out.extend(control(inside.chars().next()));
        out.push_str(replacement);
        out.extend(control(inside.chars().next_back()));
        rest = &tag[end..];
    }
    out.push_str(rest);
    (out, found)
}

/// Takes output up to a limit.
#[derive(Debug, Default)]
struct Bounded {
    bytes: Vec<u8>,
    is_full: bool,
}

impl io::Write for &mut Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > MAX_OUTPUT_SIZE_BYTES {
            self.is_full = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
