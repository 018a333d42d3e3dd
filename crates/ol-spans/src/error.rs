//! What can go wrong with an index.

use std::io;
use std::path::{Path, PathBuf};

use ol_poa::spans::SpanError;
use ol_runtime::LockError;

use crate::index::SPANS_MAX;

/// Why an index could not be built, opened or asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpansError {
    /// A file cannot be read or written.
    #[error("could not use {}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is not what its name says: cut off, changed, or of another
    /// version. It can be deleted; updating builds it anew.
    #[error("{} is damaged: {what}; delete it and update the index again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What differs.
        what: String,
    },
    /// Somebody else is changing the folder.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The corpus cannot be indexed as it is.
    #[error("the corpus cannot be indexed: {what}")]
    Corpus {
        /// Which rule it breaks.
        what: String,
    },
    /// The caller could not give the tokens of a record.
    #[error("no tokens for record {record}")]
    Tokens {
        /// Position of the record in the corpus.
        record: u32,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The suffix array could not be built: there is not enough memory. Give a
    /// smaller budget.
    #[error(
        "the suffix array of {n_tokens} tokens could not be built: {what}; lower the memory budget"
    )]
    Build {
        /// Tokens of the shard.
        n_tokens: usize,
        /// What the builder said.
        what: String,
    },
    /// So many spans, in so many versions, that no record can be said to be quoted.
    #[error("the answer has more than {SPANS_MAX} spans in the versions of the corpus")]
    TooMany,
    /// The answer or the rule is outside its limits.
    #[error(transparent)]
    Spans(#[from] SpanError),
}

impl SpansError {
    pub(crate) fn damaged(path: &Path, what: impl Into<String>) -> Self {
        Self::Damaged {
            path: path.to_owned(),
            what: what.into(),
        }
    }

    /// For `map_err`: an I/O error with the file's name.
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}
