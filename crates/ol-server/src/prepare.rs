//! What becomes of a request before an engine sees it: tokens, a length that
//! fits, a compiled constraint.

use std::sync::{Arc, OnceLock};

use ol_model::Tokenizer;
use ol_serve::{ConstraintCompiler, GrammarError, Sampling, SubmitError};

use crate::answer::{AnswerRequest, Prompt, RequestError};
use crate::backend::Backend;
use crate::sampling::SamplingDefaults;

/// Prepares requests for one base model.
#[derive(Debug)]
pub(crate) struct Preparer {
    tokenizer: Arc<Tokenizer>,
    context_tokens: usize,
    max_tokens_default: usize,
    sampling_defaults: SamplingDefaults,
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
        backend: &Backend,
        max_tokens_default: usize,
        sampling_defaults: SamplingDefaults,
    ) -> Self {
        Self {
            tokenizer: Arc::clone(backend.tokenizer()),
            context_tokens: backend.context_tokens(),
            max_tokens_default,
            sampling_defaults,
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

    /// Tokens of an answer when the request does not say.
    pub(crate) const fn max_tokens_default(&self) -> usize {
        self.max_tokens_default
    }

    /// Cuts a prompt into tokens. Blocks: it may be a megabyte.
    pub(crate) fn tokens(&self, prompt: &Prompt) -> Result<Vec<u32>, RequestError> {
        Ok(match prompt {
            Prompt::Chat(conversation, options) => {
                self.tokenizer.chat_prompt(conversation, options)?
            }
            Prompt::Text(text) => self.tokenizer.encode_prompt(text)?,
            Prompt::Tokens(tokens) => tokens.clone(),
        })
    }

    /// Tokens, length and sampling of a request; the seed is the caller's. Blocks.
    ///
    /// # Errors
    /// [`RequestError`] says what no engine would take.
    pub(crate) fn prepare(&self, request: &AnswerRequest) -> Result<Prepared, RequestError> {
        let prompt_tokens = self.tokens(&request.prompt)?;
        let (tokens_in, context_tokens) = (prompt_tokens.len(), self.context_tokens);
        let max_tokens = request.max_tokens.unwrap_or_else(|| {
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
        let mut sampling = self.sampling_defaults.resolve(request.sampling.clone());
        sampling.validate().map_err(SubmitError::from)?;
        if let Some(grammar) = &request.grammar {
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
