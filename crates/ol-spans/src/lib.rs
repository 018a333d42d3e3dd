//! Verbatim spans: a token-level suffix array over datanet versions, on disk.
//!
//! Which runs of an answer's tokens stand word for word in a corpus, in whose
//! records, and what are they worth? A [`Corpus`] is a version of a datanet in
//! tokens. A [`Store`] indexes it into a folder, new records only, and opens it
//! as a [`SpanIndex`], which finds all maximal spans of an answer and what each
//! contributor has earned by them. The format is `specs/spans.md`; what spans
//! are worth is integer code in [`ol_poa::spans`].
//!
//! Invariants: what is found depends on the corpus alone, not on how it is cut
//! into shards or in which order it was indexed; what a later version adds
//! changes no span of an earlier one; a file appears under its name
//! only when it is complete; no content of a file causes a panic or memory
//! beyond its own size.
//!
//! Does not own: tokenizers (the caller gives tokens), which texts of a record
//! count, and money.
//!
//! A crate of its own beside `ol-attribution`: it needs neither a model nor
//! floats, but files, memory maps and a builder in C.
//!
//! # Example
//! ```
//! use ol_poa::spans::SpanRule;
//! use ol_spans::{BuildOptions, Corpus, RecordRef, Store};
//! use ol_types::{Address, B256, keccak256};
//!
//! let dir = tempfile::tempdir()?;
//! let store = Store::open(dir.path())?;
//! let text: Vec<u32> = (10..30).collect();
//! let record = RecordRef {
//!     hash: keccak256("a record"),
//!     contributor: Address::repeat_byte(1),
//!     cluster: 0,
//! };
//! let corpus = Corpus {
//!     manifest: keccak256("a manifest"),
//!     tokenizer: keccak256("a tokenizer"),
//!     vocabulary_size: 100,
//!     versions: vec![1],
//!     records: vec![record],
//! };
//! let mut tokens = |_: &RecordRef| Ok(vec![text.clone()]);
//! let id = store.update(&corpus, &BuildOptions::default(), &mut tokens, &mut |_| ())?;
//!
//! let index = store.load(id)?;
//! let answer = [&[7, 8][..], &text[3..15], &[9]].concat();
//! let rule = SpanRule { length_min: 4, floor_millibits: 1_000 };
//! let found = index.spans(&answer, rule.length_min)?;
//! assert_eq!((found[0].span.start, found[0].span.len), (2, 12));
//! assert_eq!(index.units(&answer, &rule)?.weights[0].0, Address::repeat_byte(1));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod build;
mod bytes;
mod corpus;
mod error;
mod index;
mod query;
#[cfg(test)]
mod sample;
mod search;
mod shard;
mod store;
mod versions;

pub use corpus::{Corpus, RECORDS_MAX, RecordRef};
pub use error::SpansError;
pub use index::{Match, SHARDS_MAX, SpanIndex};
pub use store::{BuildOptions, Progress, Store, Tokens};
