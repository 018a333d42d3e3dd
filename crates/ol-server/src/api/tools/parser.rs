//! Calls in the text of an answer, while it comes.

use ol_model::Tokenizer;
use serde_json::Value;

use self::call::{NoHead, Object};
use super::{Form, ToolChoice};

mod call;

/// Longest text of calls that is kept to be read.
const CALLS_SIZE_BYTES_MAX: usize = 1 << 20;

const HERMES: (&str, &str) = ("<tool_call>", "</tool_call>");
const MISTRAL: &str = "[TOOL_CALLS]";
const MISTRAL_ARGUMENTS: &str = "[ARGS]";
const LLAMA: &str = "<|python_tag|>";
const DEEPSEEK: &str = "<｜tool▁calls▁begin｜>";
pub(super) const DEEPSEEK_CALL: &str = "<｜tool▁call▁begin｜>";
const DEEPSEEK_CALL_END: &str = "<｜tool▁call▁end｜>";
const DEEPSEEK_SEPARATOR: &str = "<｜tool▁sep｜>";
const DEEPSEEK_END: &str = "<｜tool▁calls▁end｜>";

/// Tokens that mean something here, and have no text where they are control
/// tokens.
const MARKERS: [&str; 10] = [
    HERMES.0,
    HERMES.1,
    MISTRAL,
    MISTRAL_ARGUMENTS,
    LLAMA,
    DEEPSEEK,
    DEEPSEEK_CALL,
    DEEPSEEK_CALL_END,
    DEEPSEEK_SEPARATOR,
    DEEPSEEK_END,
];

/// What a piece of an answer became.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::api) struct Parsed {
    /// Text that is no call.
    pub(in crate::api) content: String,
    /// What is new of calls.
    pub(in crate::api) calls: Vec<CallDelta>,
}

/// What is new of a call: its first part has an id and a name, later ones go on
/// with its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::api) struct CallDelta {
    pub(in crate::api) index: usize,
    /// Id and name of the function.
    pub(in crate::api) head: Option<(String, String)>,
    /// JSON text, to be put together.
    pub(in crate::api) arguments: String,
}

/// Finds calls.
#[derive(Debug)]
pub(in crate::api) struct ToolParser {
    mode: Mode,
    /// Control tokens among [`MARKERS`], which have no text of their own.
    hidden: Vec<(u32, &'static str)>,
    /// Text that was not decided on.
    held: String,
    /// The call that is being passed on.
    open: Option<Open>,
    n_calls: usize,
    n_calls_max: usize,
    id_prefix: String,
}

#[derive(Debug)]
enum Mode {
    /// Content with calls in it.
    Free(Form),
    /// Content, and no calls any more.
    Text,
    /// Calls up to the end.
    Calls(Form),
    /// The text is a list of calls.
    List,
    /// Calls one after the other; the first one has begun.
    Listed,
    /// The text is the arguments of this function.
    Arguments { name: String, has_begun: bool },
}

/// How far a call has come whose name is known.
#[derive(Debug)]
enum Open {
    /// In its arguments.
    Arguments {
        object: Object,
        /// Whether there may be so many calls.
        is_shown: bool,
    },
    /// Behind them.
    Tail,
}

impl ToolParser {
    pub(super) fn new(
        choice: &ToolChoice,
        tokenizer: &Tokenizer,
        id_prefix: String,
        n_calls_max: usize,
    ) -> Option<Self> {
        let mode = match choice {
            ToolChoice::None => return None,
            ToolChoice::Auto => Mode::Free(Form::of(tokenizer)),
            ToolChoice::Required => Mode::List,
            ToolChoice::Named(name) => Mode::Arguments {
                name: name.clone(),
                has_begun: false,
            },
        };
        let hidden = MARKERS.into_iter().filter_map(|marker| {
            let id = tokenizer.added_token(marker)?;
            tokenizer.token_bytes(id).is_empty().then_some((id, marker))
        });
        Some(Self {
            mode,
            hidden: hidden.collect(),
            held: String::new(),
            open: None,
            n_calls: 0,
            n_calls_max,
            id_prefix,
        })
    }

    #[cfg(test)]
    pub(super) fn for_form(form: Form) -> Self {
        Self {
            mode: Mode::Free(form),
            hidden: Vec::new(),
            held: String::new(),
            open: None,
            n_calls: 0,
            n_calls_max: 8,
            id_prefix: "id".to_owned(),
        }
    }

    /// Whether a call was found in text that the model was free to write, or in
    /// a list that it had to.
    pub(in crate::api) fn has_called(&self) -> bool {
        self.n_calls > 0 && !matches!(self.mode, Mode::Arguments { .. })
    }

    /// Takes the next token and its text.
    pub(in crate::api) fn push(&mut self, id: u32, text: &str) -> Parsed {
        let hidden = self.hidden.iter().find(|(hidden, _)| *hidden == id);
        if let Some((_, marker)) = hidden {
            self.held.push_str(marker);
        }
        self.held.push_str(text);
        self.advance()
    }

    /// Takes the last of the text.
    pub(in crate::api) fn finish(&mut self, text: &str) -> Parsed {
        self.held.push_str(text);
        let mut parsed = self.advance();
        let rest = std::mem::take(&mut self.held);
        if self.open.take().is_some() {
            // What follows the arguments of a call that was passed on.
            return parsed;
        }
        let calls = match &self.mode {
            Mode::Arguments { .. } => Some(Vec::new()),
            Mode::Listed if rest.is_empty() => Some(Vec::new()),
            Mode::Listed => None,
            Mode::List => calls_of_json(&rest),
            Mode::Free(Form::Llama) => calls_of_llama(&rest),
            Mode::Free(_) | Mode::Text => None,
            Mode::Calls(form) => read_calls(*form, &rest),
        };
        match calls {
            Some(calls) => self.emit(calls, &mut parsed),
            // What cannot be read as a call is text like any other.
            None if matches!(self.mode, Mode::Free(Form::Hermes)) => {
                parsed.content.push_str(self.before_call(&rest));
            }
            None => parsed.content.push_str(&rest),
        }
        parsed
    }

    fn advance(&mut self) -> Parsed {
        let mut parsed = Parsed::default();
        match &mut self.mode {
            Mode::Arguments { name, has_begun } => {
                let arguments = std::mem::take(&mut self.held);
                if arguments.is_empty() && *has_begun {
                    return parsed;
                }
                let head = (!*has_begun).then(|| (format!("{}0", self.id_prefix), name.clone()));
                *has_begun = true;
                self.n_calls = 1;
                parsed.calls.push(CallDelta {
                    index: 0,
                    head,
                    arguments,
                });
            }
            Mode::Text => parsed.content = std::mem::take(&mut self.held),
            Mode::List => self.advance_list(&mut parsed),
            Mode::Listed => self.advance_listed(&mut parsed),
            Mode::Free(form) => {
                let form = *form;
                self.advance_free(form, &mut parsed);
            }
            Mode::Calls(Form::Mistral) => self.advance_list(&mut parsed),
            Mode::Calls(_) => self.bound(&mut parsed),
        }
        parsed
    }

    /// Gives up on calls that are too long to be kept.
    fn bound(&mut self, parsed: &mut Parsed) {
        if self.held.len() > CALLS_SIZE_BYTES_MAX {
            parsed.content.push_str(&std::mem::take(&mut self.held));
        }
    }

    fn advance_free(&mut self, form: Form, parsed: &mut Parsed) {
        match form {
            Form::Hermes => self.advance_hermes(parsed),
            Form::Llama => {
                // A call is all there is: whatever begins otherwise is text.
                let start = self.held.trim_start();
                if start.starts_with('{') || LLAMA.starts_with(start) || start.starts_with(LLAMA) {
                    let first = start.strip_prefix(LLAMA).unwrap_or(start);
                    self.begin_list(self.held.len() - first.len(), parsed);
                } else {
                    parsed.content.push_str(&std::mem::take(&mut self.held));
                    self.mode = Mode::Text;
                }
            }
            Form::Mistral | Form::DeepSeek => {
                let marker = if form == Form::Mistral {
                    MISTRAL
                } else {
                    DEEPSEEK
                };
                if let Some((before, rest)) = self.held.split_once(marker) {
                    parsed.content.push_str(before);
                    self.held = rest.to_owned();
                    self.mode = Mode::Calls(form);
                } else {
                    let n = self.held.len() - open_suffix_bytes(&self.held, marker);
                    parsed.content.extend(self.held.drain(..n));
                }
            }
        }
    }

    fn advance_hermes(&mut self, parsed: &mut Parsed) {
        let (open, close) = HERMES;
        loop {
            match &self.open {
                Some(Open::Arguments { .. }) => {
                    if !self.pass_arguments(parsed) {
                        return;
                    }
                    continue;
                }
                Some(Open::Tail) => {
                    let Some(end) = self.held.find(close) else {
                        let n = self.held.len() - open_suffix_bytes(&self.held, close);
                        self.held.drain(..n);
                        return;
                    };
                    self.held.drain(..end + close.len());
                    self.open = None;
                    continue;
                }
                None => {}
            }
            let Some(start) = self.held.find(open) else {
                let n = self.held.len() - open_suffix_bytes(&self.held, open);
                let n = self.before_call(&self.held[..n]).len();
                parsed.content.extend(self.held.drain(..n));
                return self.bound(parsed);
            };
            let inside = start + open.len();
            let len = self.held[inside..].find(close);
            let end = len.map_or(self.held.len(), |len| inside + len);
            if let Ok((name, at)) = call::head(&self.held[inside..end]) {
                self.pass_before_call(start, parsed);
                self.held.drain(..open.len() + at);
                self.begin(name, parsed);
                continue;
            }
            let Some(len) = len else {
                self.pass_before_call(start, parsed);
                return self.bound(parsed);
            };
            self.pass_before_call(start, parsed);
            let all: String = self.held.drain(..open.len() + len + close.len()).collect();
            match call_of_json(&all[open.len()..open.len() + len]) {
                Some(call) => self.emit(vec![call], parsed),
                None => parsed.content.push_str(&all),
            }
        }
    }

    /// Of text that a call may follow, what is content. White space behind a call
    /// and before the next or the end is theirs, so after the first call it waits
    /// for text.
    fn before_call<'a>(&self, text: &'a str) -> &'a str {
        if self.n_calls == 0 {
            text
        } else {
            text.trim_end()
        }
    }

    fn pass_before_call(&mut self, n: usize, parsed: &mut Parsed) {
        let text: String = self.held.drain(..n).collect();
        parsed.content.push_str(self.before_call(&text));
    }

    /// A list of calls begins, if it can be read as one.
    fn advance_list(&mut self, parsed: &mut Parsed) {
        let start = self.held.trim_start();
        match start.strip_prefix('[') {
            Some(first) => self.begin_list(self.held.len() - first.len(), parsed),
            None => self.bound(parsed),
        }
    }

    /// Begins with the first of several calls, at `at`, if its head is there.
    fn begin_list(&mut self, at: usize, parsed: &mut Parsed) {
        match call::head(&self.held[at..]) {
            Ok(_) => {
                self.held.drain(..at);
                self.mode = Mode::Listed;
                self.advance_listed(parsed);
            }
            Err(_) => self.bound(parsed),
        }
    }

    /// Passes on what there is of calls with anything between them.
    fn advance_listed(&mut self, parsed: &mut Parsed) {
        loop {
            match &self.open {
                Some(Open::Arguments { .. }) => {
                    if !self.pass_arguments(parsed) {
                        return;
                    }
                }
                Some(Open::Tail) => {
                    let Some(next) = self.held.find('{') else {
                        return self.held.clear();
                    };
                    self.held.drain(..next);
                    self.open = None;
                }
                None => match call::head(&self.held) {
                    Ok((name, at)) => {
                        self.held.drain(..at);
                        self.begin(name, parsed);
                    }
                    Err(NoHead::More) => return self.bound(parsed),
                    Err(NoHead::Other) => {
                        let mut values =
                            serde_json::Deserializer::from_str(&self.held).into_iter::<Value>();
                        match values.next() {
                            Some(Err(error)) if error.is_eof() => return self.bound(parsed),
                            Some(Ok(value)) if call_of(&value).is_some() => {
                                let n = values.byte_offset();
                                self.emit(call_of(&value).into_iter().collect(), parsed);
                                self.held.drain(..n);
                                self.open = Some(Open::Tail);
                            }
                            _ => {
                                parsed.content.push_str(&std::mem::take(&mut self.held));
                                self.mode = Mode::Text;
                                return;
                            }
                        }
                    }
                },
            }
        }
    }

    /// A call whose name is known; its arguments follow.
    fn begin(&mut self, name: String, parsed: &mut Parsed) {
        let is_shown = self.n_calls < self.n_calls_max;
        let arguments = String::new();
        self.emit(vec![Call { name, arguments }], parsed);
        self.open = Some(Open::Arguments {
            object: Object::default(),
            is_shown,
        });
    }

    /// Passes on what there is of the arguments; whether they are over.
    fn pass_arguments(&mut self, parsed: &mut Parsed) -> bool {
        let Some(Open::Arguments { object, is_shown }) = &mut self.open else {
            return true;
        };
        let (n, is_over) = object.scan(&self.held);
        let arguments: String = self.held.drain(..n).collect();
        if *is_shown && !arguments.is_empty() {
            let index = self.n_calls - 1;
            match parsed.calls.last_mut().filter(|call| call.index == index) {
                Some(call) => call.arguments.push_str(&arguments),
                None => parsed.calls.push(CallDelta {
                    index,
                    head: None,
                    arguments,
                }),
            }
        }
        if is_over {
            self.open = Some(Open::Tail);
        }
        is_over
    }

    fn emit(&mut self, calls: Vec<Call>, parsed: &mut Parsed) {
        for call in calls {
            if self.n_calls >= self.n_calls_max {
                return;
            }
            let id = format!("{}{}", self.id_prefix, self.n_calls);
            parsed.calls.push(CallDelta {
                index: self.n_calls,
                head: Some((id, call.name)),
                arguments: call.arguments,
            });
            self.n_calls += 1;
        }
    }
}

/// A whole call.
#[derive(Debug, PartialEq, Eq)]
struct Call {
    name: String,
    /// JSON text.
    arguments: String,
}

fn read_calls(form: Form, text: &str) -> Option<Vec<Call>> {
    match form {
        Form::Hermes => None,
        Form::Llama => calls_of_llama(text),
        Form::Mistral => calls_of_mistral(text),
        Form::DeepSeek => calls_of_deepseek(text),
    }
}

fn call_of(value: &Value) -> Option<Call> {
    let name = value.get("name")?.as_str()?.to_owned();
    let arguments = value.get("arguments").or_else(|| value.get("parameters"));
    let arguments = match arguments {
        None => "{}".to_owned(),
        // Some models write JSON within a string.
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
    };
    Some(Call { name, arguments })
}

fn call_of_json(text: &str) -> Option<Call> {
    call_of(&serde_json::from_str(text.trim()).ok()?)
}

fn calls_of_json(text: &str) -> Option<Vec<Call>> {
    let value: Value = serde_json::from_str(text.trim()).ok()?;
    value.as_array()?.iter().map(call_of).collect()
}

/// One call, or several with semicolons between them.
fn calls_of_llama(text: &str) -> Option<Vec<Call>> {
    let text = text.trim();
    let text = text.strip_prefix(LLAMA).unwrap_or(text);
    let mut calls = Vec::new();
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    let mut end = 0;
    while let Some(value) = values.next() {
        calls.push(call_of(&value.ok()?)?);
        end += values.byte_offset();
        let rest = text[end..].trim_start();
        if rest.is_empty() {
            return Some(calls);
        }
        let rest = rest.strip_prefix(';')?;
        end = text.len() - rest.len();
        values = serde_json::Deserializer::from_str(rest).into_iter();
    }
    None
}

/// A list of calls, or names with their arguments.
fn calls_of_mistral(text: &str) -> Option<Vec<Call>> {
    if text.trim_start().starts_with('[') {
        return calls_of_json(text);
    }
    text.split(MISTRAL)
        .map(|call| {
            let (name, arguments) = call.split_once(MISTRAL_ARGUMENTS)?;
            let arguments: Value = serde_json::from_str(arguments.trim()).ok()?;
            Some(Call {
                name: name.trim().to_owned(),
                arguments: arguments.to_string(),
            })
        })
        .collect()
}

/// `function<sep>name` with a fenced block (V3, R1), or `name<sep>{…}` (V3.1).
fn calls_of_deepseek(text: &str) -> Option<Vec<Call>> {
    let text = text.split(DEEPSEEK_END).next()?;
    let calls: Option<Vec<Call>> = text
        .split(DEEPSEEK_CALL)
        .skip(1)
        .map(|call| {
            let call = call.split(DEEPSEEK_CALL_END).next()?;
            let (kind, rest) = call.split_once(DEEPSEEK_SEPARATOR)?;
            let (name, arguments) = match rest.split_once("```json") {
                Some((name, block)) => (name, block.split("```").next()?),
                None => (kind, rest),
            };
            let arguments: Value = serde_json::from_str(arguments.trim()).ok()?;
            Some(Call {
                name: name.trim().to_owned(),
                arguments: arguments.to_string(),
            })
        })
        .collect();
    calls.filter(|calls| !calls.is_empty())
}

/// Length of the longest end of the text that the marker begins with.
fn open_suffix_bytes(text: &str, marker: &str) -> usize {
    let longest = marker.len().min(text.len());
    (0..=longest)
        .rev()
        .filter(|n| text.is_char_boundary(text.len() - n))
        .find(|n| marker.starts_with(&text[text.len() - n..]))
        .unwrap_or(0)
}
