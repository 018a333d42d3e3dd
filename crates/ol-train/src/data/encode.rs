//! Examples to tokens.

use ol_model::{ChatOptions, ChatTokens, Sequence, Tokenizer, TokenizerError};

use super::example::{Chat, Example, Prompt, content_of, role_of};
use super::{DataOptions, Fault, Long, Summary};
use crate::evaluate::Question;
use crate::preference::Pair;

/// An example in tokens.
#[derive(Debug)]
pub(super) enum Encoded {
    /// One, or the pieces of a long text.
    Sequences(Vec<Sequence>),
    Preference(Pair),
}

pub(super) struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    options: &'a DataOptions,
    chat: ChatOptions,
}

fn fault(error: &TokenizerError) -> Fault {
    Fault::new(error.to_string())
}

impl<'a> Encoder<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer, options: &'a DataOptions) -> Self {
        let chat = ChatOptions {
            template: options.template.clone(),
            // The same examples give the same tokens on every day.
            unix_s: None,
            variables: options.template_variables.clone(),
        };
        Self {
            tokenizer,
            options,
            chat,
        }
    }

    /// `None` when nothing is left of it.
    pub(super) fn encode(
        &self,
        example: &Example,
        summary: &mut Summary,
    ) -> Result<Option<Encoded>, Fault> {
        let encoded = match example {
            Example::Chat(chat) => self.single(self.chat(chat)?, summary),
            Example::Completion { prompt, completion } => {
                self.single(self.completion(prompt, completion)?, summary)
            }
            Example::Text(text) => Some(Encoded::Sequences(self.pieces(text, summary)?)),
            Example::Preference {
                prompt,
                chosen,
                rejected,
            } => {
                let chosen = self.answer(prompt, chosen)?;
                let rejected = self.answer(prompt, rejected)?;
                self.pair(chosen, rejected, summary)
            }
        };
        if let Some(encoded) = &encoded {
            let mut count = |sequence: &Sequence| {
                summary.n_tokens += sequence.tokens.len() as u64;
                let learnt = sequence.weights.iter().filter(|w| **w != 0.0).count();
                summary.n_learnt_tokens += learnt as u64;
            };
            match encoded {
                Encoded::Sequences(list) => list.iter().for_each(count),
                Encoded::Preference(pair) => [&pair.chosen, &pair.rejected]
                    .into_iter()
                    .for_each(&mut count),
            }
        }
        Ok(encoded)
    }

    /// What to ask; `None` when the example does not end with an answer in words.
    pub(super) fn question(&self, example: &Example) -> Option<Question> {
        match example {
            Example::Chat(chat) => {
                let (last, before) = chat.messages.split_last()?;
                if role_of(last)? != "assistant" || before.is_empty() {
                    return None;
                }
                let asked = Chat {
                    messages: before.to_vec(),
                    tools: chat.tools.clone(),
                };
                let conversation = asked.conversation().ok()?;
                let question = before.iter().rev().find_map(|m| content_of(m));
                Some(Question {
                    question: question.unwrap_or_default(),
                    prompt: self.tokenizer.chat_prompt(&conversation, &self.chat).ok()?,
                    answer: content_of(last)?,
                })
            }
            Example::Completion { prompt, completion } => Some(Question {
                question: prompt.clone(),
                prompt: self.tokenizer.encode_prompt(prompt).ok()?,
                answer: completion.clone(),
            }),
            Example::Text(_) | Example::Preference { .. } => None,
        }
    }

    fn chat(&self, chat: &Chat) -> Result<ChatTokens, Fault> {
        self.tokenizer
            .chat_training(&chat.conversation()?, &self.chat)
            .map_err(|e| fault(&e))
    }

    fn completion(&self, prompt: &str, completion: &str) -> Result<ChatTokens, Fault> {
        self.tokenizer
            .completion(prompt, completion)
            .map_err(|e| fault(&e))
    }

    /// A prompt with one of the answers to it.
    fn answer(&self, prompt: &Prompt, answer: &Prompt) -> Result<ChatTokens, Fault> {
        match (prompt, answer) {
            (Prompt::Text(prompt), Prompt::Text(answer)) if self.tokenizer.has_chat_format() => {
                match Example::question(prompt, answer) {
                    Example::Chat(chat) => self.chat(&chat),
                    _ => Err(Fault::new("not a chat")),
                }
            }
            (Prompt::Text(prompt), Prompt::Text(answer)) => self.completion(prompt, answer),
            (Prompt::Messages(prompt), Prompt::Messages(answer)) => {
                let messages = [prompt.as_slice(), answer].concat();
                if messages.len() < 2 {
                    return Err(Fault::in_field("prompt", "is missing"));
                }
                self.chat(&Chat {
                    messages,
                    tools: None,
                })
            }
            (Prompt::Messages(prompt), Prompt::Text(answer)) if !prompt.is_empty() => {
                let last = Example::question("", answer);
                let Example::Chat(mut chat) = last else {
                    return Err(Fault::new("not a chat"));
                };
                let last = chat.messages.pop().unwrap_or_default();
                chat.messages = prompt.clone();
                chat.messages.push(last);
                self.chat(&chat)
            }
            (Prompt::Messages(_), Prompt::Text(_)) => Err(Fault::in_field("prompt", "is missing")),
            (Prompt::Text(_), Prompt::Messages(_)) => Err(Fault::in_field(
                "prompt",
                "is a text, but the answers are messages",
            )),
        }
    }

    fn sequence(&self, chat: ChatTokens, prompt_weight: f32) -> Sequence {
        let weight = |is: &bool| if *is { 1.0 } else { prompt_weight };
        Sequence {
            weights: chat.is_assistant.iter().map(weight).collect(),
            tokens: chat.tokens,
        }
    }

    /// Cuts what is too long; false when it shall be left out.
    fn fit(&self, chats: &mut [&mut ChatTokens], summary: &mut Summary) -> bool {
        let most = self.options.max_tokens;
        if chats.iter().any(|c| c.tokens.len() > most) {
            if self.options.long == Long::Drop {
                summary.n_dropped += 1;
                return false;
            }
            summary.n_cut += 1;
            for chat in &mut *chats {
                chat.tokens.truncate(most);
                chat.is_assistant.truncate(most);
            }
        }
        // The first token is never predicted.
        let learns = |c: &&mut ChatTokens| c.is_assistant.iter().skip(1).any(|is| *is);
        if chats.iter().all(learns) {
            return true;
        }
        summary.n_without_answer += 1;
        false
    }

    fn single(&self, mut chat: ChatTokens, summary: &mut Summary) -> Option<Encoded> {
        self.fit(&mut [&mut chat], summary)
            .then(|| Encoded::Sequences(vec![self.sequence(chat, self.options.prompt_weight)]))
    }

    fn pair(
        &self,
        mut chosen: ChatTokens,
        mut rejected: ChatTokens,
        summary: &mut Summary,
    ) -> Option<Encoded> {
        // What both begin with is the prompt, earlier answers included.
        let n = std::iter::zip(&chosen.tokens, &rejected.tokens)
            .take_while(|(a, b)| a == b)
            .count();
        let answer_start = |chat: &ChatTokens| {
            let shared = &chat.is_assistant[..n];
            // An answer that begins alike is still an answer: back to where the
            // assistant's turn began.
            n - shared.iter().rev().take_while(|is| **is).count()
        };
        for chat in [&mut chosen, &mut rejected] {
            let start = answer_start(chat);
            chat.is_assistant[..start].fill(false);
        }
        self.fit(&mut [&mut chosen, &mut rejected], summary)
            .then(|| {
                Encoded::Preference(Pair {
                    chosen: self.sequence(chosen, 0.0),
                    rejected: self.sequence(rejected, 0.0),
                })
            })
    }

    fn pieces(&self, text: &str, summary: &mut Summary) -> Result<Vec<Sequence>, Fault> {
        let tokens = self
            .tokenizer
            .encode_document(text)
            .map_err(|e| fault(&e))?;
        if tokens.len() > self.options.max_tokens {
            summary.n_split += 1;
        }
        let pieces = tokens
            .chunks(self.options.max_tokens)
            .filter(|piece| piece.len() > 1);
        Ok(pieces
            .map(|piece| Sequence {
                tokens: piece.to_vec(),
                weights: vec![1.0; piece.len()],
            })
            .collect())
    }
}
