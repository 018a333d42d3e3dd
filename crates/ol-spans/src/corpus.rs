//! A corpus: which records count, whose they are, and the committed table.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use ol_poa::spans::{Unigrams, VOCABULARY_MAX};
use ol_types::{Address, B256, keccak256};

use crate::SpansError;
use crate::bytes::{Reader, file_name, write_file};
use crate::index::SHARDS_MAX;

/// Most records of a corpus, as of a datanet.
pub const RECORDS_MAX: usize = 1 << 20;

pub(crate) const CORPUS_EXTENSION: &str = "corpus";

const MAGIC: [u8; 8] = *b"OLSPANSC";
const VERSION: u32 = 2;
const HEADER_SIZE_BYTES: usize = 88;
const RECORD_SIZE_BYTES: usize = 32 + 20 + 4;

/// Most versions of a datanet.
const VERSIONS_MAX: usize = 100_000;

/// Bytes of the largest file of this kind.
const FILE_MAX_SIZE_BYTES: u64 = (HEADER_SIZE_BYTES
    + VERSIONS_MAX * 4
    + RECORDS_MAX * RECORD_SIZE_BYTES
    + VOCABULARY_MAX * 2
    + 4
    + SHARDS_MAX * 32) as u64;

/// A record of a corpus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordRef {
    /// Hash of the record: with the tokenizer, it fixes its tokens.
    pub hash: B256,
    /// Who wrote it.
    pub contributor: Address,
    /// Its duplicate cluster.
    pub cluster: u32,
}

/// A version of a datanet, as far as spans go.
///
/// The first record of a cluster owns it: spans that any record of the cluster
/// holds are paid to the owner's contributor, once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Corpus {
    /// Id of the datanet's manifest.
    pub manifest: B256,
    /// keccak256 of the tokenizer's file.
    pub tokenizer: B256,
    /// Tokens of its vocabulary.
    pub vocabulary_size: usize,
    /// How many of the records each version of the datanet has, from the first to
    /// this one: strictly ascending, at least 1, the last all of them.
    pub versions: Vec<u32>,
    /// The records in commit order, 1 to [`RECORDS_MAX`], no hash twice.
    pub records: Vec<RecordRef>,
}

impl Corpus {
    /// The version that brought a record, from 1.
    pub(crate) fn version_of(versions: &[u32], number: u32) -> u32 {
        let before = versions.partition_point(|&end| end <= number);
        u32::try_from(before + 1).expect("at most 100,000 versions")
    }

    /// Position of each record by its hash, after checking the limits.
    pub(crate) fn numbers(&self) -> Result<HashMap<B256, u32>, String> {
        let n_records = self.records.len();
        if n_records == 0 || n_records > RECORDS_MAX {
            return Err(format!(
                "it has {n_records} records, not 1 to {RECORDS_MAX}"
            ));
        }
        if self.vocabulary_size == 0 || self.vocabulary_size > VOCABULARY_MAX {
            let size = self.vocabulary_size;
            return Err(format!(
                "a vocabulary of {size} tokens, not 1 to {VOCABULARY_MAX}"
            ));
        }
        let versions = &self.versions;
        let is_ascending = versions.is_sorted_by(|a, b| a < b);
        let ends = (versions.first(), versions.last().map(|&end| end as usize));
        let is_whole = ends.0.is_some_and(|&first| first > 0) && ends.1 == Some(n_records);
        if !is_ascending || !is_whole || versions.len() > VERSIONS_MAX {
            return Err(format!(
                "its versions do not grow to {n_records} records in 1 to {VERSIONS_MAX} steps"
            ));
        }
        let mut numbers = HashMap::with_capacity(n_records);
        for (number, record) in (0..).zip(&self.records) {
            if numbers.insert(record.hash, number).is_some() {
                return Err(format!("record {} stands twice in it", record.hash));
            }
        }
        Ok(numbers)
    }

    /// The first record of each cluster, by cluster.
    pub(crate) fn owners(&self) -> HashMap<u32, u32> {
        let mut owners = HashMap::new();
        for (number, record) in (0..).zip(&self.records) {
            owners.entry(record.cluster).or_insert(number);
        }
        owners
    }
}

/// A corpus as its file holds it: with the table that follows from its tokens,
/// and the shards that hold them here.
#[derive(Debug)]
pub(crate) struct CorpusFile {
    pub(crate) corpus: Corpus,
    pub(crate) table: Unigrams,
    /// Not part of the id: others may have cut the same corpus otherwise.
    pub(crate) shards: Vec<B256>,
}

impl CorpusFile {
    /// Writes the file; its id commits to everything but the shards.
    pub(crate) fn write(&self, dir: &Path) -> Result<B256, SpansError> {
        let head = self.head();
        write_file(dir, CORPUS_EXTENSION, |file| {
            file.hashed(&head)?;
            let n_shards = u32::try_from(self.shards.len()).expect("at most 128 shards");
            file.plain(&n_shards.to_le_bytes())?;
            for shard in &self.shards {
                file.plain(shard.as_slice())?;
            }
            Ok(())
        })
    }

    fn head(&self) -> Vec<u8> {
        let Corpus {
            manifest,
            tokenizer,
            vocabulary_size,
            versions,
            records,
        } = &self.corpus;
        let count = |n: usize| u32::try_from(n).expect("the limits are below 2³²");
        let size_bytes = HEADER_SIZE_BYTES
            + versions.len() * 4
            + records.len() * RECORD_SIZE_BYTES
            + vocabulary_size * 2;
        let mut bytes = Vec::with_capacity(size_bytes);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(count(*vocabulary_size).to_le_bytes());
        bytes.extend(count(records.len()).to_le_bytes());
        bytes.extend(count(versions.len()).to_le_bytes());
        bytes.extend(manifest);
        bytes.extend(tokenizer);
        for version in versions {
            bytes.extend(version.to_le_bytes());
        }
        for record in records {
            bytes.extend(record.hash);
            bytes.extend(record.contributor);
            bytes.extend(record.cluster.to_le_bytes());
        }
        bytes.extend(self.table.to_bytes());
        bytes
    }

    /// Manifest and tokenizer that a file's first bytes name; `None` if it is no
    /// corpus. The file's id is not looked at.
    pub(crate) fn peek(path: &Path) -> Result<Option<(B256, B256)>, SpansError> {
        let file = File::open(path).map_err(SpansError::io(path))?;
        let mut bytes = Vec::with_capacity(HEADER_SIZE_BYTES);
        file.take(HEADER_SIZE_BYTES as u64)
            .read_to_end(&mut bytes)
            .map_err(SpansError::io(path))?;
        let mut reader = Reader(&bytes);
        if reader.format(MAGIC, VERSION, "corpus").is_err() {
            return Ok(None);
        }
        // Sizes, which do not matter here.
        Ok(reader
            .take(12)
            .and_then(|_| Some((reader.hash()?, reader.hash()?))))
    }

    /// Reads the file of `id` and checks that it is what it is called.
    pub(crate) fn read(dir: &Path, id: B256) -> Result<Self, SpansError> {
        let path = dir.join(file_name(id, CORPUS_EXTENSION));
        let file = File::open(&path).map_err(SpansError::io(&path))?;
        let mut bytes = Vec::new();
        file.take(FILE_MAX_SIZE_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(SpansError::io(&path))?;
        let damaged = |what: String| SpansError::damaged(&path, what);
        if bytes.len() as u64 > FILE_MAX_SIZE_BYTES {
            return Err(damaged("it is larger than such a file can be".to_owned()));
        }
        let (this, head_size_bytes) = Self::decode(&bytes).map_err(damaged)?;
        let found = keccak256(&bytes[..head_size_bytes]);
        if found != id {
            return Err(damaged(format!("its content has the id {found}")));
        }
        Ok(this)
    }

    /// The file's content, and how many of its bytes make its id.
    fn decode(bytes: &[u8]) -> Result<(Self, usize), String> {
        let cut_off = || "it is cut off".to_owned();
        let mut reader = Reader(bytes);
        reader.format(MAGIC, VERSION, "corpus")?;
        let vocabulary_size = reader.u32().ok_or_else(cut_off)?;
        let n_records = reader.u32().ok_or_else(cut_off)?;
        let n_versions = reader.u32().ok_or_else(cut_off)?;
        let manifest = reader.hash().ok_or_else(cut_off)?;
        let tokenizer = reader.hash().ok_or_else(cut_off)?;
        let versions = reader.take(u64::from(n_versions) * 4).ok_or_else(cut_off)?;
        let versions = crate::bytes::rows::<4>(versions).iter().copied();
        let records = reader.take(u64::from(n_records) * RECORD_SIZE_BYTES as u64);
        let records = records.ok_or_else(cut_off)?;
        let record = |row: &[u8; RECORD_SIZE_BYTES]| {
            let mut row = Reader(row);
            Some(RecordRef {
                hash: row.hash()?,
                contributor: Address::new(row.array()?),
                cluster: row.u32()?,
            })
        };
        let records: Option<Vec<RecordRef>> =
            crate::bytes::rows(records).iter().map(record).collect();
        let table = reader
            .take(u64::from(vocabulary_size) * 2)
            .ok_or_else(cut_off)?;
        let table = Unigrams::from_bytes(table).map_err(|error| error.to_string())?;
        let head_size_bytes = bytes.len() - reader.0.len();
        let n_shards = reader.u32().ok_or_else(cut_off)? as usize;
        if n_shards == 0 || n_shards > SHARDS_MAX {
            return Err(format!("it names {n_shards} shards, not 1 to {SHARDS_MAX}"));
        }
        let shards = reader.take(n_shards as u64 * 32).ok_or_else(cut_off)?;
        if !reader.0.is_empty() {
            return Err("bytes follow its end".to_owned());
        }
        let corpus = Corpus {
            manifest,
            tokenizer,
            vocabulary_size: vocabulary_size as usize,
            versions: versions.map(u32::from_le_bytes).collect(),
            records: records.ok_or_else(cut_off)?,
        };
        corpus.numbers()?;
        let shards = crate::bytes::rows(shards).iter().copied().map(B256::new);
        let this = Self {
            corpus,
            table,
            shards: shards.collect(),
        };
        Ok((this, head_size_bytes))
    }
}
