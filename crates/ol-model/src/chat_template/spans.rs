//! Which part of a conversation the assistant wrote.
//!
//! Three ways, from the best:
//! 1. the template says so with `{% generation %}`;
//! 2. the conversation up to the assistant's turn, with the generation prompt,
//!    is how the whole conversation begins: its turn starts there;
//! 3. the message's content is found by rendering once more with marks around
//!    it, where that changes nothing else.
//!
//! A turn goes on to the token that ends it.

use std::ops::Range;

use minijinja::value::Value;

use super::{
    CLOSE, ChatOptions, ChatTemplate, ChatTemplateError, Conversation, OPEN, PROBES, Rendered,
    role_of,
};

impl ChatTemplate {
    /// The whole conversation, and what the assistant wrote of it.
    pub(crate) fn training(
        &self,
        conversation: &Conversation,
        options: &ChatOptions,
        is_end: &dyn Fn(u32) -> bool,
    ) -> Result<Rendered, ChatTemplateError> {
        let raw = self.render(conversation, options, false)?;
        if self.marks_assistant {
            return self.expand(&raw);
        }
        let search = Search {
            template: self,
            conversation,
            options,
            is_end,
            raw: &raw,
        };
        let mut marked = String::with_capacity(raw.len());
        let mut at = 0;
        for (i, message) in conversation.messages.iter().enumerate() {
            if role_of(message).as_deref() != Some("assistant") {
                continue;
            }
            let span = search.turn(i).filter(|span| span.start >= at);
            let span = span.ok_or_else(|| ChatTemplateError::Mask {
                name: self.name.clone(),
                message: i,
            })?;
            marked.push_str(&raw[at..span.start]);
            marked.push(OPEN);
            marked.push_str(&raw[span.clone()]);
            marked.push(CLOSE);
            at = span.end;
        }
        marked.push_str(&raw[at..]);
        self.expand(&marked)
    }
}

struct Search<'a> {
    template: &'a ChatTemplate,
    conversation: &'a Conversation,
    options: &'a ChatOptions,
    is_end: &'a dyn Fn(u32) -> bool,
    /// The whole conversation.
    raw: &'a str,
}

impl Search<'_> {
    /// The assistant's turn: bytes of `raw`.
    fn turn(&self, message: usize) -> Option<Range<usize>> {
        let content = self.content(message);
        let start = self
            .start(message)
            .or_else(|| content.as_ref().map(|c| c.start))?;
        // Not beyond what this message added, nor into the next one.
        let through = self
            .render(message + 1, false)
            .filter(|through| self.raw.starts_with(through.as_str()))
            .map(|through| through.len());
        let limit = through
            .or_else(|| self.content(message + 1).map(|next| next.start))
            .unwrap_or(self.raw.len());
        // Control tokens within the content cannot be: it is text. Tool calls
        // come after it, and may have some.
        let from = content.map_or(start, |c| c.end.max(start));
        let ends_turn = |c: char| {
            let marker = self.template.markers.get(&c);
            marker.is_some_and(|(id, _)| (self.is_end)(*id))
        };
        let rest = self.raw.get(from..limit)?;
        let end = rest
            .char_indices()
            .find(|(_, c)| ends_turn(*c))
            .map(|(at, c)| from + at + c.len_utf8());
        let is_last = message + 1 == self.conversation.messages.len();
        // Without such a token the turn ends where the message does.
        end.or(through)
            .or_else(|| is_last.then_some(self.raw.len()))
            .filter(|end| *end >= start)
            .map(|end| start..end)
    }

    /// Where the turn starts, if rendering goes on where it stopped.
    fn start(&self, message: usize) -> Option<usize> {
        let prompt = self.render(message, true)?;
        if self.raw.starts_with(prompt.as_str()) {
            return Some(prompt.len());
        }
        // The prompt may lead further than the turn does (it opens a thought
        // that training data has not): back to the last control token in both.
        let before = self.render(message, false)?;
        let common = common_prefix(self.raw, &prompt);
        if common < before.len() {
            return None;
        }
        let shared = &self.raw[before.len()..common];
        let (at, marker) = shared
            .char_indices()
            .rev()
            .find(|(_, c)| self.template.markers.contains_key(c))?;
        Some(before.len() + at + marker.len_utf8())
    }

    /// The first `n` messages; `None` if the template does not take them.
    fn render(&self, n: usize, wants_answer: bool) -> Option<String> {
        let part = Conversation {
            messages: self.conversation.messages.get(..n)?.to_vec(),
            tools: self.conversation.tools.clone(),
        };
        self.template.render(&part, self.options, wants_answer).ok()
    }

    /// Where a message's content stands, without white space around it.
    fn content(&self, message: usize) -> Option<Range<usize>> {
        let original = self.conversation.messages.get(message)?;
        let content = original.get_attr("content").ok()?.to_str()?;
        let trimmed = content.trim();
        if trimmed.is_empty() {
            return None;
        }
        let start = content.len() - content.trim_start().len();
        let end = start + trimmed.len();
        let [open, close] = PROBES;
        let probed = format!(
            "{}{open}{trimmed}{close}{}",
            &content[..start],
            &content[end..]
        );
        let keys = original.try_iter().ok()?;
        let fields: Vec<(Value, Value)> = keys
            .map(|key| {
                let value = if key.as_str() == Some("content") {
                    Value::from(probed.clone())
                } else {
                    original.get_item(&key).unwrap_or_default()
                };
                (key, value)
            })
            .collect();
        let mut conversation = self.conversation.clone();
        conversation.messages[message] = Value::from_pairs(fields);
        let raw = self
            .template
            .render(&conversation, self.options, false)
            .ok()?;
        let (before, rest) = raw.split_once(open)?;
        let (inside, after) = rest.split_once(close)?;
        let is_same = self.raw.len() == before.len() + inside.len() + after.len()
            && self.raw.starts_with(before)
            && self.raw[before.len()..].starts_with(inside)
            && self.raw.ends_with(after);
        is_same.then(|| before.len()..before.len() + inside.len())
    }
}

/// Bytes that both begin with, up to a character's end.
fn common_prefix(a: &str, b: &str) -> usize {
    let n = a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    (0..=n).rev().find(|n| a.is_char_boundary(*n)).unwrap_or(0)
}
