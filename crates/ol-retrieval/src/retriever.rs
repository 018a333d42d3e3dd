//! Passages for a question: words and embeddings, fused by rank.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use ol_datanet::CommittedRecord;
use ol_types::B256;

use crate::words::terms;
use crate::{CutRule, Dense, EmbedError, Embedder, Hit, Lexical, PassageError, Passages, best};

/// The most passages that may be asked for.
pub const TOP_K_MAX: usize = 32;

/// Hits of each way that are fused.
const CANDIDATES: usize = 100;

/// Constant of reciprocal-rank fusion.
const RANK_OFFSET: u64 = 60;

/// What the reciprocal of 1 is as a score.
const ONE: u64 = 1 << 32;

/// Bytes of a query that are looked at.
const QUERY_SIZE_BYTES_MAX: usize = 16 * 1_024;

/// Two passages of which so many percent of the terms are shared are copies.
const COPY_PERCENT: usize = 80;

/// How passages are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// By words (BM25).
    Lexical,
    /// By embeddings.
    Embedding,
    /// By both, fused by reciprocal rank.
    Hybrid,
}

impl Method {
    /// Its name, as it is written in requests and replies.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lexical => "lexical",
            Self::Embedding => "embedding",
            Self::Hybrid => "hybrid",
        }
    }
}

/// Why there are no passages.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RetrievalError {
    /// The records cannot be cut or indexed.
    #[error(transparent)]
    Passages(#[from] PassageError),
    /// The embedding model failed.
    #[error(transparent)]
    Embed(#[from] EmbedError),
    /// There is no embedding model.
    #[error("passages are found by words only here: no embedding model is configured")]
    NoEmbeddings,
}

/// Finds passages of one version of a datanet. Cheap to share by `Arc`.
pub struct Retriever {
    datanet: String,
    version: B256,
    passages: Passages,
    lexical: Lexical,
    dense: Option<(Arc<Embedder>, Dense)>,
}

impl fmt::Debug for Retriever {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Retriever")
            .field("datanet", &self.datanet)
            .field("version", &self.version)
            .field("n_passages", &self.passages.len())
            .finish_non_exhaustive()
    }
}

impl Retriever {
    /// Indexes the records of version `version` of `datanet`, given in commit
    /// order, by words.
    ///
    /// # Errors
    /// [`RetrievalError::Passages`].
    pub fn new(
        datanet: &str,
        version: B256,
        records: &[CommittedRecord],
        rule: CutRule,
    ) -> Result<Self, RetrievalError> {
        let passages = Passages::cut(records, rule)?;
        Ok(Self {
            datanet: datanet.to_owned(),
            version,
            lexical: Lexical::new(passages.iter().map(|passage| passage.text))?,
            passages,
            dense: None,
        })
    }

    /// Adds embeddings; see [`Dense::open`] for `file` and `progress`.
    ///
    /// # Errors
    /// [`RetrievalError::Embed`].
    pub fn with_embeddings(
        mut self,
        embedder: Arc<Embedder>,
        file: Option<&Path>,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Self, RetrievalError> {
        let dense = Dense::open(file, self.version, &self.passages, &embedder, progress)?;
        self.dense = Some((embedder, dense));
        Ok(self)
    }

    /// Name of the datanet.
    #[must_use]
    pub fn datanet(&self) -> &str {
        &self.datanet
    }

    /// Id of the version's manifest.
    #[must_use]
    pub const fn version(&self) -> B256 {
        self.version
    }

    /// The passages that hits are positions in.
    #[must_use]
    pub const fn passages(&self) -> &Passages {
        &self.passages
    }

    /// How passages are found unless a request says otherwise: by words and
    /// embeddings, where there are embeddings.
    #[must_use]
    pub const fn default_method(&self) -> Method {
        match self.dense {
            Some(_) => Method::Hybrid,
            None => Method::Lexical,
        }
    }

    /// The best `top_k` passages (at most [`TOP_K_MAX`]) for a query, best first.
    ///
    /// Of near copies, passages that share four fifths of their terms, only the
    /// first in commit order is given, at the rank of the best of them.
    ///
    /// # Errors
    /// [`RetrievalError::NoEmbeddings`], [`RetrievalError::Embed`].
    pub fn search(
        &self,
        query: &str,
        top_k: usize,
        method: Method,
    ) -> Result<Vec<Hit>, RetrievalError> {
        let query = &query[..query.floor_char_boundary(QUERY_SIZE_BYTES_MAX)];
        let by_words = || self.lexical.search(query, CANDIDATES);
        let by_embedding = || {
            let (embedder, dense) = self.dense.as_ref().ok_or(RetrievalError::NoEmbeddings)?;
            Ok::<_, RetrievalError>(dense.search(embedder, query, CANDIDATES)?)
        };
        let hits = match method {
            Method::Lexical => by_words(),
            Method::Embedding => by_embedding()?,
            Method::Hybrid => fuse(&[by_words(), by_embedding()?]),
        };
        Ok(self.without_copies(&hits, top_k.min(TOP_K_MAX)))
    }

    fn without_copies(&self, hits: &[Hit], top_k: usize) -> Vec<Hit> {
        let mut kept: Vec<(Hit, BTreeSet<String>)> = Vec::new();
        for &hit in hits {
            let Some(passage) = self.passages.get(hit.passage) else {
                continue;
            };
            let own: BTreeSet<String> = terms(passage.text).collect();
            match kept.iter().position(|(_, other)| are_copies(&own, other)) {
                Some(at) if hit.passage < kept[at].0.passage => {
                    kept[at].0.passage = hit.passage;
                    kept[at].1 = own;
                }
                Some(_) => {}
                None if kept.len() < top_k => kept.push((hit, own)),
                // A copy of one that is kept may still come.
                None => {}
            }
        }
        kept.into_iter().map(|(hit, _)| hit).collect()
    }
}

fn are_copies(a: &BTreeSet<String>, b: &BTreeSet<String>) -> bool {
    let n_shared = a.intersection(b).count();
    let n_all = a.len() + b.len() - n_shared;
    n_all > 0 && 100 * n_shared >= COPY_PERCENT * n_all
}

/// Reciprocal-rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009): a passage
/// is worth `1 / (60 + rank)` in each list that has it.
fn fuse(lists: &[Vec<Hit>]) -> Vec<Hit> {
    let mut scores: BTreeMap<u32, u64> = BTreeMap::new();
    for list in lists {
        for (hit, rank) in list.iter().zip(1..) {
            *scores.entry(hit.passage).or_default() += ONE / (RANK_OFFSET + rank);
        }
    }
    let hits: Vec<Hit> = scores
        .into_iter()
        .map(|(passage, score)| Hit { passage, score })
        .collect();
    let n = hits.len();
    best(hits, n)
}

#[cfg(test)]
mod tests;
