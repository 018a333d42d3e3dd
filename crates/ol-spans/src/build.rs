//! Documents to a shard.

use std::io;
use std::path::Path;

use libsais::SuffixArrayConstruction;
use ol_types::B256;

use crate::SpansError;
use crate::bytes::write_file;
use crate::shard::{MAGIC, SHARD_EXTENSION, TOKENS_MAX, VERSION, width_for};

/// Bytes of memory that building takes for each token, separators included, at
/// most: four for the token and then, in its place, its code, and four for a
/// suffix.
pub(crate) const BUILD_BYTES_PER_TOKEN: usize = 8;

/// Tokens, each text followed by the largest number of the type, which is no
/// token and stands for a separator until codes are given.
#[derive(Debug)]
enum Tokens {
    /// Of a vocabulary that fits. Half the memory counts for more than it seems:
    /// a third of the time of building is that of the first touch of a page.
    Narrow(Vec<u16>),
    Wide(Vec<u32>),
}

impl Tokens {
    const fn new(vocabulary_size: usize) -> Self {
        if vocabulary_size <= u16::MAX as usize {
            Self::Narrow(Vec::new())
        } else {
            Self::Wide(Vec::new())
        }
    }

    const fn len(&self) -> usize {
        match self {
            Self::Narrow(tokens) => tokens.len(),
            Self::Wide(tokens) => tokens.len(),
        }
    }

    /// Adds a text and its end. Its tokens are of the vocabulary.
    fn push(&mut self, text: &[u32]) {
        match self {
            Self::Narrow(tokens) => {
                let narrow = |&token| u16::try_from(token).expect("in a vocabulary that fits");
                tokens.extend(text.iter().map(narrow));
                tokens.push(u16::MAX);
            }
            Self::Wide(tokens) => {
                tokens.extend(text);
                tokens.push(u32::MAX);
            }
        }
    }

    /// How often each token of the vocabulary occurs.
    fn counts(&self, vocabulary_size: usize) -> Vec<u32> {
        let mut counts = vec![0_u32; vocabulary_size];
        let mut add = |token: usize| {
            // An end is outside every vocabulary.
            if let Some(count) = counts.get_mut(token) {
                *count += 1;
            }
        };
        match self {
            Self::Narrow(tokens) => tokens.iter().for_each(|&token| add(token.into())),
            Self::Wide(tokens) => tokens.iter().for_each(|&token| add(token as usize)),
        }
        counts
    }
}

/// Gathers documents.
#[derive(Debug)]
pub(crate) struct ShardBuilder {
    tokenizer: B256,
    vocabulary_size: usize,
    documents: Vec<(B256, u32)>,
    tokens: Tokens,
}

impl ShardBuilder {
    pub(crate) const fn new(tokenizer: B256, vocabulary_size: usize) -> Self {
        Self {
            tokenizer,
            vocabulary_size,
            documents: Vec::new(),
            tokens: Tokens::new(vocabulary_size),
        }
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.documents.is_empty()
    }

    pub(crate) const fn n_tokens(&self) -> usize {
        self.tokens.len()
    }

    /// Positions that texts take, with their separators. A document without a
    /// text still takes one.
    pub(crate) fn size_of(texts: &[Vec<u32>]) -> usize {
        texts
            .iter()
            .map(|text| text.len() + 1)
            .sum::<usize>()
            .max(1)
    }

    /// Adds a document. Fails if a token is not in the vocabulary or the shard
    /// would be too long.
    pub(crate) fn push(&mut self, record: B256, texts: &[Vec<u32>]) -> Result<(), String> {
        let start = self.tokens.len();
        if Self::size_of(texts) > TOKENS_MAX - start {
            return Err(format!("record {record} has too many tokens for a shard"));
        }
        let start = u32::try_from(start).expect("TOKENS_MAX is below 2³²");
        let is_known = |token: &u32| (*token as usize) < self.vocabulary_size;
        if let Some(token) = texts.iter().flatten().find(|token| !is_known(token)) {
            return Err(format!(
                "record {record} has the token {token}, which is not in the vocabulary"
            ));
        }
        self.documents.push((record, start));
        for text in texts {
            self.tokens.push(text);
        }
        if texts.is_empty() {
            self.tokens.push(&[]);
        }
        Ok(())
    }

    /// Sorts the suffixes and writes the shard. There is at least one document.
    pub(crate) fn write(self, dir: &Path) -> Result<B256, SpansError> {
        let Self {
            tokenizer,
            vocabulary_size,
            documents,
            tokens,
        } = self;
        let (letters, codes) = letters(&tokens.counts(vocabulary_size));
        let n_letters = u32::try_from(letters.len()).expect("a vocabulary is below 2³²");
        let n_documents = u32::try_from(documents.len()).expect("fewer than tokens");
        let width = width_for(n_letters);
        let mut head = Vec::with_capacity(64 + documents.len() * 36 + letters.len() * 8);
        head.extend(MAGIC);
        head.extend(VERSION.to_le_bytes());
        head.extend(width.to_le_bytes());
        head.extend((tokens.len() as u64).to_le_bytes());
        head.extend(n_documents.to_le_bytes());
        head.extend(n_letters.to_le_bytes());
        head.extend(tokenizer);
        for (record, start) in &documents {
            head.extend(record);
            head.extend(start.to_le_bytes());
        }
        for (token, count) in &letters {
            head.extend(token.to_le_bytes());
            head.extend(count.to_le_bytes());
        }
        drop((documents, letters));

        let n_tokens = tokens.len();
        let failed = |error: libsais::LibsaisError| SpansError::Build {
            n_tokens,
            what: error.to_string(),
        };
        let code = |token: usize| codes.get(token).copied().unwrap_or(0);
        let narrow = |token| u16::try_from(code(token)).expect("fewer than 2¹⁶ letters");
        let narrow_text = |text: &[u16]| {
            let suffixes = SuffixArrayConstruction::for_text(text)
                .in_owned_buffer32()
                .single_threaded()
                .run()
                .map_err(failed)?
                .into_vec();
            write_shard(dir, &head, text, u16::to_le_bytes, &suffixes)
        };
        match tokens {
            Tokens::Narrow(mut text) => {
                text.iter_mut()
                    .for_each(|token| *token = narrow((*token).into()));
                narrow_text(&text)
            }
            Tokens::Wide(tokens) if width == 2 => {
                let text: Vec<u16> = tokens.iter().map(|&token| narrow(token as usize)).collect();
                drop(tokens);
                narrow_text(&text)
            }
            Tokens::Wide(tokens) => {
                let wide = |token| i32::try_from(code(token)).expect("letters are below 2²⁰");
                let text = tokens.into_iter().map(|token| wide(token as usize));
                let mut text: Vec<i32> = text.collect();
                let suffixes = SuffixArrayConstruction::for_text_mut(&mut text)
                    .in_owned_buffer32()
                    .single_threaded()
                    .run()
                    .map_err(failed)?
                    .into_vec();
                write_shard(dir, &head, &text, i32::to_le_bytes, &suffixes)
            }
        }
    }
}

/// The tokens that occur, ascending with their counts, and the code of every
/// token of the vocabulary.
fn letters(counts: &[u32]) -> (Vec<(u32, u32)>, Vec<u32>) {
    let mut letters = Vec::new();
    let mut codes = vec![0_u32; counts.len()];
    for ((token, &count), code) in (0..).zip(counts).zip(&mut codes) {
        if count > 0 {
            letters.push((token, count));
            *code = u32::try_from(letters.len()).expect("a vocabulary is below 2³²");
        }
    }
    (letters, codes)
}

/// The file: head and text, which make its id, then the suffix array and its
/// checksum.
fn write_shard<T: Copy, const N: usize>(
    dir: &Path,
    head: &[u8],
    text: &[T],
    to_bytes: impl Fn(T) -> [u8; N],
    suffixes: &[i32],
) -> Result<B256, SpansError> {
    write_file(dir, SHARD_EXTENSION, |file| {
        file.hashed(head)?;
        in_pieces(text, to_bytes, |bytes| file.hashed(bytes))?;
        let mut checksum = crc32fast::Hasher::new();
        in_pieces(suffixes, i32::to_le_bytes, |bytes| {
            checksum.update(bytes);
            file.plain(bytes)
        })?;
        file.plain(&checksum.finalize().to_le_bytes())
    })
}

/// Writes values as bytes, some thousands at a time.
fn in_pieces<T: Copy, const N: usize>(
    values: &[T],
    to_bytes: impl Fn(T) -> [u8; N],
    mut write: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(N << 14);
    for piece in values.chunks(1 << 14) {
        bytes.clear();
        bytes.extend(piece.iter().flat_map(|&value| to_bytes(value)));
        write(&bytes)?;
    }
    Ok(())
}
