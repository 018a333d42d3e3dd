//! Query sketches: what an answer is compared with the records by.

use std::error::Error;

use ol_poa::QuerySketch;

/// The tokens of a prompt with those passages that its argument says.
pub type PassagePrompt<'a> = &'a dyn Fn(&[bool]) -> Result<Vec<u32>, Box<dyn Error + Send + Sync>>;

/// Makes the query sketch of an answer.
///
/// Deterministic: the same tokens give the same codes on every machine.
pub trait AnswerSketcher: Send + Sync {
    /// The sketch of `answer_tokens` after `prompt_tokens`. Blocks; may use many
    /// threads.
    ///
    /// # Errors
    /// If the tokens do not fit the model, or the gradient has no sketch. The
    /// answer is not charged then.
    fn sketch(
        &self,
        prompt_tokens: &[u32],
        answer_tokens: &[u32],
    ) -> Result<QuerySketch, Box<dyn Error + Send + Sync>>;

    /// What the answer's log-probability loses without each of the passages in
    /// its prompt, in milli-nats (`ol_attribution::context`). `prompt` gives the
    /// tokens of the prompt with those passages that its argument says. Blocks.
    ///
    /// # Errors
    /// If a prompt cannot be made or does not fit the model. The pot for context
    /// then falls to training.
    fn drops(
        &self,
        n_passages: usize,
        prompt: PassagePrompt<'_>,
        answer_tokens: &[u32],
    ) -> Result<Vec<u32>, Box<dyn Error + Send + Sync>>;
}
