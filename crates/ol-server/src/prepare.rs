//! What becomes of a request before an engine sees it: tokens, a length that
//! fits, a compiled constraint.

use std::sync::{Arc, OnceLock};

use ol_model::Tokenizer;
use ol_serve::{ConstraintCompiler, Grammar, GrammarError, Sampling, SubmitError};

use crate::answer::{Prompt, RequestError};

/// Prepares requests for one base model.
#[derive(Debug)]
pub(crate) struct Preparer {
    tokenizer: Arc<Tokenizer>,
    context_tokens: usize,
    max_tokens_default: usize,
    /// Made when the first grammar comes: it takes a moment.
    compiler: OnceLock<Result<ConstraintCompiler, GrammarError>>,
}

/// A request as an engine takes it.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) prompt_tokens: Vec<u32>,
    pub(crate) max_tokens: usize,
    pub(crate) sampling: Sampling,
}

impl Preparer {
    pub(crate) fn new(
        tokenizer: Arc<Tokenizer>,
        context_tokens: usize,
        max_tokens_default: usize,
    ) -> Self {
        Self {
            tokenizer,
            context_tokens,
            max_tokens_default,
            compiler: OnceLock::new(),
        }
    }

    pub(crate) fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// Longest prompt and answer together, in tokens.
    pub(crate) const fn context_tokens(&self) -> usize {
        self.context_tokens
    }

    /// Cuts a prompt into tokens. Blocks: it may be a megabyte.
    pub(crate) fn tokens(&self, prompt: Prompt) -> Result<Vec<u32>, RequestError> {
        Ok(match prompt {
            Prompt::Chat(conversation, options) => {
                self.tokenizer.chat_prompt(&conversation, &options)?
            }
            Prompt::Text(text) => self.tokenizer.encode_prompt(&text)?,
            Prompt::Tokens(tokens) => tokens,
        })
    }

    /// Blocks.
    ///
    /// # Errors
    /// [`RequestError`] says what no engine would take.
    pub(crate) fn prepare(
        &self,
        prompt: Prompt,
        mut sampling: Sampling,
        grammar: Option<&Grammar>,
        max_tokens: Option<usize>,
    ) -> Result<Prepared, RequestError> {
        let prompt_tokens = self.tokens(prompt)?;
        let (tokens_in, context_tokens) = (prompt_tokens.len(), self.context_tokens);
        let max_tokens = max_tokens.unwrap_or_else(|| {
            let n_left = context_tokens.saturating_sub(tokens_in);
            self.max_tokens_default.min(n_left).max(1)
        });
        if tokens_in.saturating_add(max_tokens) > context_tokens {
            return Err(SubmitError::TooLong {
                tokens_in,
                max_tokens,
                context_tokens,
            }
            .into());
        }
        sampling.validate().map_err(SubmitError::from)?;
        if let Some(grammar) = grammar {
            let compiler = self
                .compiler
                .get_or_init(|| ConstraintCompiler::new(&self.tokenizer));
            let compiler = compiler.as_ref().map_err(Clone::clone)?;
            sampling.constraint = Some(compiler.compile(grammar)?);
        }
        Ok(Prepared {
            prompt_tokens,
            max_tokens,
            sampling,
        })
    }
}
