//! Answers of a prescribed form: JSON of a schema, a regular expression, one of
//! several texts.
//!
//! A [`Grammar`] is compiled against a tokenizer by a [`ConstraintCompiler`],
//! away from the engine's thread, into a [`Constraint`], which says before each
//! token which ones may follow. The work is `llguidance`'s: an Earley parser
//! over lazily built automata, walked along a trie of the tokens' bytes, so that
//! tokens may end anywhere within the grammar.
//!
//! # Limits
//! Size of a grammar, its automata, and the work for one token are bounded. A
//! constraint that runs into a bound in the middle of an answer ends it with an
//! error, never with text that does not fit.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use ol_model::Tokenizer;
use serde_json::{Value, json};

/// Largest grammar, in bytes of its JSON or text.
pub const MAX_GRAMMAR_SIZE_BYTES: usize = 64 << 10;

/// Most texts to choose from.
pub const MAX_CHOICES: usize = 1024;

/// Compiled grammars that are kept.
const CACHE_MAX: usize = 32;

/// What may stand between the parts of JSON: one space, or a new line and its
/// indentation. Without a bound a weak model fills its answer with space.
const WHITESPACE: &str = r"( |\r?\n[ \t]{0,16})?";

/// What an answer has to look like.
#[derive(Clone, PartialEq)]
pub enum Grammar {
    /// JSON that a schema describes. References may only point into the schema
    /// itself; a keyword that is not understood is refused.
    JsonSchema(Value),
    /// A regular expression that the whole answer matches.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
}

// Schemas are the client's own: they stay out of logs.
impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::JsonSchema(_) => "JsonSchema(…)",
            Self::Regex(_) => "Regex(…)",
            Self::Choice(_) => "Choice(…)",
        })
    }
}

impl Grammar {
    /// Any JSON object.
    #[must_use]
    pub fn json_object() -> Self {
        Self::JsonSchema(json!({"type": "object"}))
    }

    /// In `llguidance`'s terms.
    fn lower(&self) -> Result<TopLevelGrammar, GrammarError> {
        let too_large = || GrammarError::TooLarge;
        match self {
            Self::JsonSchema(schema) => {
                if schema.to_string().len() > MAX_GRAMMAR_SIZE_BYTES {
                    return Err(too_large());
                }
                let mut schema = match schema {
                    // A schema of `true` allows everything.
                    Value::Bool(true) => json!({}),
                    Value::Object(_) => schema.clone(),
                    _ => return Err(GrammarError::Refused("a schema is an object".to_owned())),
                };
                schema["x-guidance"] = json!({"whitespace_pattern": WHITESPACE});
                Ok(TopLevelGrammar::from_json_schema(schema))
            }
            Self::Regex(pattern) if pattern.len() > MAX_GRAMMAR_SIZE_BYTES => Err(too_large()),
            Self::Regex(pattern) => Ok(TopLevelGrammar::from_regex(pattern)),
            Self::Choice(texts) => {
                let size_bytes: usize = texts.iter().map(String::len).sum();
                if texts.len() > MAX_CHOICES || size_bytes > MAX_GRAMMAR_SIZE_BYTES {
                    return Err(too_large());
                }
                if texts.is_empty() || texts.iter().any(String::is_empty) {
                    let reason = "a choice has at least one text, and none is empty";
                    return Err(GrammarError::Refused(reason.to_owned()));
                }
                let quoted: Vec<String> = texts
                    .iter()
                    .map(|text| Value::String(text.clone()).to_string())
                    .collect();
                let rule = format!("start: {}", quoted.join(" | "));
                Ok(TopLevelGrammar::from_lark(rule))
            }
        }
    }
}

/// Why a grammar cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GrammarError {
    /// Too many bytes or choices.
    #[error("a grammar has at most {MAX_GRAMMAR_SIZE_BYTES} bytes and {MAX_CHOICES} choices")]
    TooLarge,
    /// It is no grammar, or one that is not understood or too complex.
    #[error("{0}")]
    Refused(String),
}

/// A constraint cannot be followed within its limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the form asked for is too complex to be followed")]
pub struct ConstraintError;

/// Compiles grammars for one tokenizer.
pub struct ConstraintCompiler {
    factory: ParserFactory,
    /// The compiled ones asked for last, the newest at the back.
    cache: Mutex<VecDeque<(Grammar, Constraint)>>,
}

impl fmt::Debug for ConstraintCompiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConstraintCompiler").finish_non_exhaustive()
    }
}

impl ConstraintCompiler {
    /// A compiler for a tokenizer's vocabulary. Takes a moment where that is
    /// large.
    ///
    /// # Errors
    /// [`GrammarError::Refused`] if no trie can be built of it.
    pub fn new(tokenizer: &Tokenizer) -> Result<Self, GrammarError> {
        let refused = |error: anyhow::Error| GrammarError::Refused(error.to_string());
        let too_many = |_| GrammarError::Refused("the vocabulary is too large".to_owned());
        let n_vocab = u32::try_from(tokenizer.vocab_size()).map_err(too_many)?;
        // Control tokens have no bytes: no grammar can ask for them.
        let words: Vec<Vec<u8>> = (0..n_vocab)
            .map(|id| tokenizer.token_bytes(id).to_vec())
            .collect();
        let info = TokRxInfo::new(n_vocab, tokenizer.end_id());
        let trie = TokTrie::from(&info, &words);
        let tok_env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new(
            &tok_env,
            InferenceCapabilities::default(),
            &llguidance::earley::SlicedBiasComputer::general_slices(),
        )
        .map_err(refused)?;
        factory.quiet();
        *factory.limits_mut() = ParserLimits {
            max_lexer_states: 20_000,
            max_grammar_size: 100_000,
            verbose_errors: false,
            ..ParserLimits::default()
        };
        Ok(Self {
            factory,
            cache: Mutex::default(),
        })
    }

    /// Compiles a grammar, or finds it compiled. Blocks; takes up to some tens
    /// of milliseconds.
    ///
    /// # Errors
    /// [`GrammarError`] says what is wrong with it.
    pub fn compile(&self, grammar: &Grammar) -> Result<Constraint, GrammarError> {
        if let Some(found) = self.cached(grammar) {
            return Ok(found);
        }
        let lowered = grammar.lower()?;
        let mut matcher = Matcher::new(self.factory.create_parser(lowered));
        if let Some(reason) = matcher.get_error() {
            return Err(GrammarError::Refused(reason));
        }
        // A grammar that allows nothing fails here instead of in an answer.
        matcher
            .compute_mask()
            .map_err(|error| GrammarError::Refused(error.to_string()))?;
        let constraint = Constraint {
            grammar: Arc::new(grammar.clone()),
            matcher: Box::new(matcher),
        };
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.len() >= CACHE_MAX {
            cache.pop_front();
        }
        cache.push_back((grammar.clone(), constraint.clone()));
        Ok(constraint)
    }

    fn cached(&self, grammar: &Grammar) -> Option<Constraint> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let at = cache.iter().position(|(known, _)| known == grammar)?;
        let found = cache.remove(at)?;
        let constraint = found.1.clone();
        cache.push_back(found);
        Some(constraint)
    }
}

/// What an answer has to look like, and how far it has come. Clones go their
/// own ways.
pub struct Constraint {
    grammar: Arc<Grammar>,
    matcher: Box<Matcher>,
}

impl fmt::Debug for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Constraint").finish_non_exhaustive()
    }
}

impl Clone for Constraint {
    fn clone(&self) -> Self {
        // A plain clone shares its automata under a lock.
        Self {
            grammar: Arc::clone(&self.grammar),
            matcher: Box::new(self.matcher.deep_clone()),
        }
    }
}

impl Constraint {
    /// Makes every token that may not follow impossible. Where the answer may
    /// end, so may it by each of `end_ids` and `stop_ids`.
    pub(crate) fn mask(
        &mut self,
        logits: &mut [f32],
        end_ids: &[u32],
        stop_ids: &[u32],
    ) -> Result<(), ConstraintError> {
        let failed = |_| ConstraintError;
        let mask = self.matcher.compute_mask_or_eos().map_err(failed)?;
        let may_end = self.may_end()?;
        let n_known = mask.len();
        for (id, logit) in (0_u32..).zip(logits) {
            let is_end = end_ids.contains(&id) || stop_ids.contains(&id);
            let is_allowed = if is_end {
                may_end
            } else {
                (id as usize) < n_known && mask.is_allowed(id)
            };
            if !is_allowed {
                *logit = f32::NEG_INFINITY;
            }
        }
        Ok(())
    }

    /// What it was compiled from.
    #[must_use]
    pub fn grammar(&self) -> &Grammar {
        &self.grammar
    }

    /// Goes on by a token.
    ///
    /// # Errors
    /// [`ConstraintError`] if the token may not follow, or this cannot be told
    /// within the limits.
    pub fn accept(&mut self, id: u32) -> Result<(), ConstraintError> {
        self.matcher.consume_token(id).map_err(|_| ConstraintError)
    }

    /// Whether the answer may end here.
    ///
    /// # Errors
    /// [`ConstraintError`] if this cannot be told within the limits.
    pub fn may_end(&mut self) -> Result<bool, ConstraintError> {
        self.matcher.is_accepting().map_err(|_| ConstraintError)
    }

    /// Whether the form is complete and nothing can be added.
    pub(crate) fn is_complete(&self) -> bool {
        self.matcher.is_stopped() && !self.matcher.is_error()
    }
}

#[cfg(test)]
mod tests;
