//! Query sketches: what an answer is compared with the records by.

use std::error::Error;

use ol_poa::QuerySketch;

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
}
