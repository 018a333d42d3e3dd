//! A shard: documents, their tokens, and the suffix array over them, mapped
//! from a file.
//!
//! Everything before the suffix array makes the file's id. The suffix array
//! follows from it, and has a checksum against damage instead: hashing it too
//! would cost a fifth of the time that building it takes.

use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use ol_types::{B256, Keccak256};

use crate::SpansError;
use crate::bytes::{Reader, file_name, rows};
use crate::search::{Code, Search};

pub(crate) const SHARD_EXTENSION: &str = "shard";
pub(crate) const MAGIC: [u8; 8] = *b"OLSPANSS";
pub(crate) const VERSION: u32 = 1;

/// Most tokens of a shard, separators included: positions are `i32` in the
/// builder.
pub(crate) const TOKENS_MAX: usize = i32::MAX as usize;

/// Ends every text of a document, and stands for a token that a shard lacks:
/// so neither ever matches.
pub(crate) const SEPARATOR: u32 = 0;

const DOCUMENT_SIZE_BYTES: usize = 32 + 4;
const LETTER_SIZE_BYTES: usize = 4 + 4;

/// Positions of the text that share an entry of the directory.
const BLOCK: u32 = 256;

/// Where the parts of a shard lie in its file.
#[derive(Debug, Clone, Copy)]
struct Layout {
    /// Bytes of one code: 2, or 4 if there are more than 65,535 letters.
    width: usize,
    n_tokens: usize,
    documents: (usize, usize),
    alphabet: (usize, usize),
    text: (usize, usize),
    suffixes: (usize, usize),
}

/// An opened shard.
#[derive(Debug)]
pub(crate) struct Shard {
    pub(crate) id: B256,
    pub(crate) tokenizer: B256,
    path: PathBuf,
    map: Mmap,
    layout: Layout,
    /// First rank of the suffixes that begin with each code, and the number of
    /// tokens at the end.
    buckets: Vec<u32>,
    /// The document at the first position of each block.
    directory: Vec<u32>,
}

impl Shard {
    /// Maps the shard `id` of the folder and checks its form: that all parts
    /// are there, and that documents and alphabet are in order. The suffix
    /// array is not looked at; see [`Shard::verify`].
    pub(crate) fn open(dir: &Path, id: B256) -> Result<Self, SpansError> {
        let path = dir.join(file_name(id, SHARD_EXTENSION));
        let file = File::open(&path).map_err(SpansError::io(&path))?;
        #[expect(unsafe_code, reason = "there is no safe way to map a file")]
        // SAFETY: files of this folder are written once, under another name,
        // and are never changed or cut afterwards, only unlinked.
        let map = unsafe { Mmap::map(&file) }.map_err(SpansError::io(&path))?;
        let damaged = |what: String| SpansError::damaged(&path, what);
        let (layout, tokenizer) = Layout::read(&map).map_err(damaged)?;
        let mut shard = Self {
            id,
            tokenizer,
            path: path.clone(),
            map,
            layout,
            buckets: Vec::new(),
            directory: Vec::new(),
        };
        shard.buckets = shard.make_buckets().map_err(damaged)?;
        shard.directory = shard.make_directory().map_err(damaged)?;
        Ok(shard)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Tokens, separators included.
    pub(crate) const fn n_tokens(&self) -> usize {
        self.layout.n_tokens
    }

    fn part(&self, (start, end): (usize, usize)) -> &[u8] {
        // The layout was checked against the size of the map.
        &self.map[start..end]
    }

    fn documents(&self) -> &[[u8; DOCUMENT_SIZE_BYTES]] {
        rows(self.part(self.layout.documents))
    }

    pub(crate) fn n_documents(&self) -> usize {
        self.documents().len()
    }

    /// Hash of the record that each document is, in the order of the text.
    pub(crate) fn records(&self) -> impl Iterator<Item = B256> + '_ {
        let hash = |row: &[u8; DOCUMENT_SIZE_BYTES]| B256::from_slice(&row[..32]);
        self.documents().iter().map(hash)
    }

    /// Positions of a document's texts and their separators.
    pub(crate) fn document_range(&self, document: usize) -> std::ops::Range<usize> {
        let start = |document: usize| {
            let row = self.documents().get(document)?;
            Some(start_of(row) as usize)
        };
        let end = start(document + 1).unwrap_or(self.n_tokens());
        start(document).unwrap_or(end)..end
    }

    /// The document at a position of the text; `None` beyond its end.
    pub(crate) fn document_at(&self, position: u32) -> Option<usize> {
        if position as usize >= self.n_tokens() {
            return None;
        }
        let block = (position / BLOCK) as usize;
        let first = *self.directory.get(block)? as usize;
        // The block's end may be in a later document, which the next entry names.
        let last = self.directory.get(block + 1).map(|&last| last as usize);
        let last = last.unwrap_or_else(|| self.n_documents().saturating_sub(1));
        let candidates = self.documents().get(first + 1..=last).unwrap_or_default();
        Some(first + candidates.partition_point(|row| start_of(row) <= position))
    }

    /// The tokens that occur, ascending, each with its number of occurrences:
    /// letter `i` is code `i + 1`.
    pub(crate) fn alphabet(&self) -> impl ExactSizeIterator<Item = (u32, u32)> + '_ {
        let letters = rows::<LETTER_SIZE_BYTES>(self.part(self.layout.alphabet));
        letters.iter().map(|row| (word(row, 0), word(row, 4)))
    }

    /// The code of a token; [`SEPARATOR`] if it does not occur.
    pub(crate) fn code(&self, token: u32) -> u32 {
        let letters = rows::<LETTER_SIZE_BYTES>(self.part(self.layout.alphabet));
        let found = letters.binary_search_by_key(&token, |row| word(row, 0));
        let code = found.map_or(SEPARATOR as usize, |letter| letter + 1);
        u32::try_from(code).expect("letters were counted by a u32 and are ascending tokens")
    }

    /// The texts of a document as tokens.
    pub(crate) fn texts(&self, document: usize) -> Vec<Vec<u32>> {
        let letters = rows::<LETTER_SIZE_BYTES>(self.part(self.layout.alphabet));
        let mut texts = vec![Vec::new()];
        for position in self.document_range(document) {
            let code = self.code_at(position);
            let letter = (code as usize)
                .checked_sub(1)
                .and_then(|at| letters.get(at));
            match letter {
                Some(row) => texts.last_mut().expect("never empty").push(word(row, 0)),
                None => texts.push(Vec::new()),
            }
        }
        // The separator after the last text opened one that is not there.
        texts.pop();
        texts
    }

    fn code_at(&self, position: usize) -> u32 {
        let text = self.part(self.layout.text);
        if self.layout.width == 2 {
            rows::<2>(text).get(position).map_or(SEPARATOR, Code::value)
        } else {
            rows::<4>(text).get(position).map_or(SEPARATOR, Code::value)
        }
    }

    /// What can be asked of the suffix array.
    pub(crate) fn search(&self) -> Search<'_> {
        let text = self.part(self.layout.text);
        Search {
            text: if self.layout.width == 2 {
                crate::search::Text::Narrow(rows(text))
            } else {
                crate::search::Text::Wide(rows(text))
            },
            suffixes: rows(self.part(self.layout.suffixes)),
            buckets: &self.buckets,
        }
    }

    /// Checks everything: the id, the checksum, and that the suffix array is
    /// the one of the text, whoever wrote it. Takes 4 bytes of memory a token.
    pub(crate) fn verify(&self) -> Result<(), SpansError> {
        let damaged = |what: String| SpansError::damaged(&self.path, what);
        let (start, end) = self.layout.suffixes;
        let mut hasher = Keccak256::new();
        hasher.update(&self.map[..start]);
        let found = hasher.finalize();
        if found != self.id {
            return Err(damaged(format!("its content has the id {found}")));
        }
        let checksum = crc32fast::hash(&self.map[start..end]);
        if Reader(&self.map[end..]).u32() != Some(checksum) {
            return Err(damaged("its suffix array has another checksum".to_owned()));
        }
        let mut counts = vec![0_u32; self.buckets.len()];
        for position in 0..self.n_tokens() {
            let count = counts.get_mut(self.code_at(position) as usize);
            let count = count.ok_or_else(|| damaged("a code has no letter".to_owned()))?;
            *count += 1;
        }
        let buckets = self.buckets.windows(2).map(|pair| pair[1] - pair[0]);
        if !buckets.eq(counts[..self.buckets.len() - 1].iter().copied()) {
            return Err(damaged("its alphabet is not that of its text".to_owned()));
        }
        for document in 0..self.n_documents() {
            if self.code_at(self.document_range(document).end - 1) != SEPARATOR {
                return Err(damaged(format!("document {document} does not end")));
            }
        }
        self.check_order().map_err(damaged)
    }

    /// Whether each suffix is above the one before it. It is if its first code
    /// is, or is the same and what follows it ranks higher.
    fn check_order(&self) -> Result<(), String> {
        let wrong = |rank: usize| format!("its suffix array is wrong at rank {rank}");
        let suffixes = rows::<4>(self.part(self.layout.suffixes));
        let n = suffixes.len();
        let unset = u32::MAX;
        let mut ranks = vec![unset; n];
        for (rank, row) in (0_u32..).zip(suffixes) {
            let slot = ranks.get_mut(row.value() as usize);
            let slot = slot.filter(|slot| **slot == unset);
            *slot.ok_or_else(|| wrong(rank as usize))? = rank;
        }
        // The empty suffix ranks below all others.
        let key = |row: &[u8; 4]| {
            let position = row.value() as usize;
            let next = ranks.get(position + 1).map(|&rank| u64::from(rank) + 1);
            (self.code_at(position), next.unwrap_or(0))
        };
        for (rank, pair) in suffixes.windows(2).enumerate() {
            if key(&pair[0]) >= key(&pair[1]) {
                return Err(wrong(rank + 1));
            }
        }
        Ok(())
    }

    fn make_buckets(&self) -> Result<Vec<u32>, String> {
        let n_tokens = u32::try_from(self.n_tokens()).expect("checked by the layout");
        let letters = self.alphabet();
        let mut starts = Vec::with_capacity(letters.len() + 2);
        let mut previous = None;
        let mut sum = 0_u32;
        starts.push(0);
        for (token, count) in letters {
            if previous >= Some(token) || count == 0 {
                return Err("its alphabet is not in order".to_owned());
            }
            previous = Some(token);
            starts.push(sum);
            sum = sum
                .checked_add(count)
                .filter(|sum| *sum < n_tokens)
                .ok_or("its alphabet counts more tokens than there are")?;
        }
        // What is no letter is a separator, and those rank first.
        let n_separators = n_tokens - sum;
        for start in &mut starts[1..] {
            *start += n_separators;
        }
        starts.push(n_tokens);
        Ok(starts)
    }

    fn make_directory(&self) -> Result<Vec<u32>, String> {
        let n_tokens = u32::try_from(self.n_tokens()).expect("checked by the layout");
        let mut directory = Vec::with_capacity(self.n_tokens() / BLOCK as usize + 1);
        let mut next_block = 0;
        let mut previous = None;
        for (document, row) in (0..).zip(self.documents()) {
            let start = start_of(row);
            let is_first = document == 0;
            if (is_first && start != 0)
                || (!is_first && previous >= Some(start))
                || start >= n_tokens
            {
                return Err(format!("document {document} is out of place"));
            }
            previous = Some(start);
            // Blocks that begin before this document are in the one before it.
            while next_block < start {
                directory.push(document - 1);
                next_block += BLOCK;
            }
        }
        let last = u32::try_from(self.n_documents() - 1).expect("counted by a u32");
        while next_block < n_tokens {
            directory.push(last);
            next_block += BLOCK;
        }
        Ok(directory)
    }
}

impl Layout {
    fn read(bytes: &[u8]) -> Result<(Self, B256), String> {
        let cut_off = || "it is cut off".to_owned();
        let mut reader = Reader(bytes);
        reader.format(MAGIC, VERSION, "shard")?;
        let width = reader.u32().ok_or_else(cut_off)?;
        let n_tokens = reader.u64().ok_or_else(cut_off)?;
        let n_documents = reader.u32().ok_or_else(cut_off)?;
        let n_letters = reader.u32().ok_or_else(cut_off)?;
        let tokenizer = reader.hash().ok_or_else(cut_off)?;
        let n_tokens_max = TOKENS_MAX as u64;
        if n_documents == 0 || n_tokens == 0 || n_tokens > n_tokens_max {
            return Err(format!(
                "{n_documents} documents of {n_tokens} tokens are no shard"
            ));
        }
        if width != width_for(n_letters) {
            return Err(format!(
                "{n_letters} letters are not stored in {width} bytes"
            ));
        }
        let mut part = |size_bytes: u64| {
            let start = bytes.len() - reader.0.len();
            let taken = reader.take(size_bytes).ok_or_else(cut_off)?;
            Ok::<_, String>((start, start + taken.len()))
        };
        // No product overflows: the factors were 32 bits, or are checked.
        let documents = part(u64::from(n_documents) * DOCUMENT_SIZE_BYTES as u64)?;
        let alphabet = part(u64::from(n_letters) * LETTER_SIZE_BYTES as u64)?;
        let text = part(n_tokens * u64::from(width))?;
        let suffixes = part(n_tokens * 4)?;
        part(4)?;
        if !reader.0.is_empty() {
            return Err("bytes follow its end".to_owned());
        }
        let layout = Self {
            width: width as usize,
            n_tokens: usize::try_from(n_tokens).expect("they are in memory"),
            documents,
            alphabet,
            text,
            suffixes,
        };
        Ok((layout, tokenizer))
    }
}

/// Bytes of a code, code 0 being the separator.
pub(crate) const fn width_for(n_letters: u32) -> u32 {
    if n_letters < 1 << 16 { 2 } else { 4 }
}

const fn word<const N: usize>(row: &[u8; N], at: usize) -> u32 {
    u32::from_le_bytes([row[at], row[at + 1], row[at + 2], row[at + 3]])
}

const fn start_of(row: &[u8; DOCUMENT_SIZE_BYTES]) -> u32 {
    word(row, 32)
}

#[cfg(test)]
mod tests;
