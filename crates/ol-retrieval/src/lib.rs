//! Retrieval over a version of a datanet: passages, found by words and by
//! embeddings, and put into a prompt.
//!
//! - [`Passages`]: the records of a version, cut; one record stands for a
//!   duplicate cluster, so copies are never found.
//! - [`Lexical`]: BM25 in integers.
//! - [`Embedder`], [`Dense`]: embeddings by a model of a folder, compared by
//!   codes of 8 bits.
//! - [`Retriever`]: both, fused by rank, without near copies.
//! - [`prompt`]: how passages stand before a question.
//!
//! # Invariants
//! - The same version, rule and model give the same passages in the same order
//!   on every machine: scores are integers, equal ones go by position. Who is
//!   cited may be paid.
//! - Everything has a limit, and what comes from outside never panics.
//!
//! Synchronous; reads and writes files only for embeddings.

mod dense;
mod embedder;
mod lexical;
mod passage;
pub mod prompt;
mod retriever;
mod words;

pub use dense::Dense;
pub use embedder::{EmbedError, EmbedKind, Embedder};
pub use lexical::Lexical;
pub use passage::{CutRule, PASSAGES_MAX, Passage, PassageError, Passages, Source, record_text};
pub use retriever::{Method, RetrievalError, Retriever, TOP_K_MAX};

/// A passage that was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hit {
    /// Its position among the passages.
    pub passage: u32,
    /// How well it fits; comparable within one list of hits only.
    pub score: u64,
}

/// The `n` best, best first, ties to the lower position.
fn best(mut hits: Vec<Hit>, n: usize) -> Vec<Hit> {
    let key = |hit: &Hit| (std::cmp::Reverse(hit.score), hit.passage);
    if n == 0 {
        return Vec::new();
    }
    if n < hits.len() {
        hits.select_nth_unstable_by_key(n - 1, key);
        hits.truncate(n);
    }
    hits.sort_unstable_by_key(key);
    hits
}
