//! Embeddings of passages as codes of 8 bits, compared by cosine in integers.

use std::fs;
use std::path::Path;

use ol_model::write_atomic;
use ol_types::{B256, keccak256};

use crate::{EmbedError, EmbedKind, Embedder, Hit, Passages, best};

const MAGIC: &[u8; 16] = b"ol-dense/1\0\0\0\0\0\0";
/// Magic, key, passages, dimensions.
const HEAD_SIZE_BYTES: usize = 16 + 32 + 8 + 8;
const HASH_SIZE_BYTES: usize = 32;

/// What a cosine of 1 is as a score: a millionth is the unit.
const ONE: i64 = 1_000_000;

/// Passages that are embedded between two calls of `progress`.
const BATCH_PASSAGES: usize = 64;

/// The embeddings of the passages of one version by one model: a byte a number,
/// 1 to 127 by the largest of each.
#[derive(Debug, Clone, PartialEq)]
pub struct Dense {
    /// What these embeddings are of, and by which model.
    key: B256,
    /// What all have in common; taken off before they are compared.
    centre: Vec<f32>,
    /// `[passages, dimensions]`.
    codes: Vec<i8>,
    /// Sum of the squares of each passage's codes.
    squares: Vec<u32>,
}

impl Dense {
    /// Embeds passages, or reads them from `file` if it holds the embeddings of
    /// these passages by this model; otherwise it is written. `version` names
    /// the version of the datanet. `progress` is told how many are embedded.
    ///
    /// # Errors
    /// [`EmbedError`]. A file that cannot be read or written only costs time.
    pub fn open(
        file: Option<&Path>,
        version: B256,
        passages: &Passages,
        embedder: &Embedder,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Self, EmbedError> {
        let words_max = passages.rule().words_max as u64;
        let key = [version.as_slice(), embedder.id().as_slice()].concat();
        let key = keccak256([key.as_slice(), words_max.to_be_bytes().as_slice()].concat());
        let (n, width) = (passages.len(), embedder.n_dimensions());
        let stored = file.and_then(|file| Self::read(file, key, n, width));
        if let Some(stored) = stored {
            return Ok(stored);
        }
        let texts: Vec<&str> = passages.iter().map(|passage| passage.text).collect();
        let mut embeddings = Vec::with_capacity(texts.len());
        for batch in texts.chunks(BATCH_PASSAGES) {
            embeddings.extend(embedder.embed(EmbedKind::Passage, batch)?);
            progress(embeddings.len());
        }
        let mut centre = vec![0.0_f32; width];
        if embedder.needs_centring() {
            #[expect(clippy::cast_precision_loss, reason = "at most 2²² passages")]
            let part = 1.0 / embeddings.len().max(1) as f32;
            for embedding in &embeddings {
                let values = centre.iter_mut().zip(embedding);
                values.for_each(|(c, x)| *c += part * x);
            }
        }
        let codes = embeddings.iter().flat_map(|e| codes(e, &centre)).collect();
        let dense = Self::new(key, centre, codes);
        if let Some(file) = file {
            // Without the file the next start takes longer, and that is all.
            let _ = write_atomic(file, &dense.encode());
        }
        Ok(dense)
    }

    fn new(key: B256, centre: Vec<f32>, codes: Vec<i8>) -> Self {
        let rows = codes.chunks_exact(centre.len().max(1));
        let squares = rows.map(|row| dot(row, row).unsigned_abs()).collect();
        Self {
            key,
            centre,
            codes,
            squares,
        }
    }

    /// The `n` passages whose cosine with the query is largest and above 0, best
    /// first, ties to the lower position. Scores are cosines in millionths.
    ///
    /// # Errors
    /// [`EmbedError`].
    pub fn search(
        &self,
        embedder: &Embedder,
        query: &str,
        n: usize,
    ) -> Result<Vec<Hit>, EmbedError> {
        let embedding = embedder.embed(EmbedKind::Query, &[query])?;
        let Some(embedding) = embedding.first() else {
            return Ok(Vec::new());
        };
        let query: Vec<i8> = codes(embedding, &self.centre).collect();
        let square = u64::from(dot(&query, &query).unsigned_abs());
        let rows = self.codes.chunks_exact(self.centre.len().max(1));
        let hits = rows.zip(&self.squares).zip(0_u32..);
        let hits = hits.filter_map(|((row, &passage_square), passage)| {
            // At most 2¹⁶ numbers of 2¹⁴: squares are below 2³¹, products below 2⁶².
            let length = (square * u64::from(passage_square)).isqrt().max(1);
            let product = i64::from(dot(row, &query)) * ONE;
            let score = product / length.cast_signed();
            let score = u64::try_from(score).ok().filter(|score| *score > 0)?;
            Some(Hit { passage, score })
        });
        Ok(best(hits.collect(), n))
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(
            HEAD_SIZE_BYTES + 4 * self.centre.len() + self.codes.len() + HASH_SIZE_BYTES,
        );
        bytes.extend(MAGIC);
        bytes.extend(self.key);
        bytes.extend((self.squares.len() as u64).to_be_bytes());
        bytes.extend((self.centre.len() as u64).to_be_bytes());
        bytes.extend(self.centre.iter().flat_map(|x| x.to_le_bytes()));
        bytes.extend(self.codes.iter().map(|code| code.cast_unsigned()));
        let hash = keccak256(&bytes);
        bytes.extend(hash);
        bytes
    }

    /// What [`Self::encode`] wrote, if it is of these passages and whole.
    fn read(file: &Path, key: B256, n_passages: usize, width: usize) -> Option<Self> {
        let size_bytes = n_passages
            .checked_add(4)?
            .checked_mul(width)?
            .checked_add(HEAD_SIZE_BYTES + HASH_SIZE_BYTES)?;
        // The size first: nothing else is read into memory.
        if fs::metadata(file).ok()?.len() != size_bytes as u64 {
            return None;
        }
        let bytes = fs::read(file).ok()?;
        let (content, hash) = bytes.split_at_checked(size_bytes - HASH_SIZE_BYTES)?;
        if keccak256(content).as_slice() != hash {
            return None;
        }
        let (head, rest) = content.split_at_checked(HEAD_SIZE_BYTES)?;
        let sizes = [n_passages as u64, width as u64].map(u64::to_be_bytes);
        let wanted = [MAGIC.as_slice(), key.as_slice(), sizes.as_flattened()].concat();
        if head != wanted {
            return None;
        }
        let (centre, codes) = rest.split_at_checked(4 * width)?;
        let (centre, _) = centre.as_chunks::<4>();
        let centre = centre.iter().copied().map(f32::from_le_bytes).collect();
        let codes = codes.iter().map(|byte| byte.cast_signed()).collect();
        Some(Self::new(key, centre, codes))
    }
}

/// An embedding as codes: the largest number without the centre becomes 127.
fn codes(embedding: &[f32], centre: &[f32]) -> impl Iterator<Item = i8> {
    let largest = embedding
        .iter()
        .zip(centre)
        .fold(0.0_f32, |largest, (x, c)| largest.max((x - c).abs()));
    let factor = if largest > 0.0 && largest.is_finite() {
        127.0 / largest
    } else {
        0.0
    };
    #[expect(
        clippy::cast_possible_truncation,
        reason = "within ±127; a cast saturates, and what is no number becomes 0"
    )]
    embedding
        .iter()
        .zip(centre)
        .map(move |(x, c)| ((x - c) * factor).round() as i8)
}

/// Inner product of two rows of codes: below 2³¹ for up to 2¹⁶ numbers.
fn dot(a: &[i8], b: &[i8]) -> i32 {
    a.iter()
        .zip(b)
        .map(|(a, b)| i32::from(*a) * i32::from(*b))
        .sum()
}

#[cfg(test)]
mod tests;
