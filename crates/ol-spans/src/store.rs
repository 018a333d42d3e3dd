//! The folder of an index: shards and corpora, written once under their ids.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use ol_poa::spans::Unigrams;
use ol_runtime::DirLock;
use ol_types::B256;

use crate::build::{BUILD_BYTES_PER_TOKEN, ShardBuilder};
use crate::bytes::{TEMPORARY_PREFIX, id_in_name};
use crate::corpus::{CORPUS_EXTENSION, CorpusFile};
use crate::index::{SHARDS_MAX, SpanIndex, View};
use crate::shard::{SHARD_EXTENSION, Shard, TOKENS_MAX};
use crate::{Corpus, RecordRef, SpansError};

/// Shards of one size that become one.
const MERGE_COUNT: usize = 4;

/// Shards up to this many tokens are of the smallest size; the others are four
/// times as large each.
const SMALL_SHARD_TOKENS: usize = 1 << 16;

/// A folder with indexes of corpora. Corpora share the shards that hold their
/// records, whatever datanets or versions they are.
///
/// Files are mapped into memory: no other program may change one in place.
#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
}

/// How an index is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BuildOptions {
    /// Memory for tokens and suffixes while a shard is built, in bytes. Decides
    /// how large shards become: an eighth of it in tokens. What is known of
    /// every record, some 100 bytes each, comes on top.
    pub memory_budget_bytes: usize,
}

impl Default for BuildOptions {
    /// 2 GiB: shards of up to 2²⁸ tokens.
    fn default() -> Self {
        Self {
            memory_budget_bytes: 2 << 30,
        }
    }
}

/// How far an update is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Records in a shard on the disk, or on their way into one.
    pub records: usize,
    /// Records of the corpus.
    pub records_total: usize,
    /// Shards written so far, merged ones included.
    pub shards_written: usize,
}

/// Gives the texts of a record as tokens; no span crosses from one to another.
/// Called once for each record that is new, in order. An error ends the update;
/// what was finished is found again by the next one.
pub type Tokens<'a> =
    dyn FnMut(&RecordRef) -> Result<Vec<Vec<u32>>, Box<dyn std::error::Error + Send + Sync>> + 'a;

impl Store {
    /// An index in `dir`, an existing folder that nothing else is kept in.
    ///
    /// # Errors
    /// [`SpansError::Io`] if it is no folder.
    pub fn open(dir: &Path) -> Result<Self, SpansError> {
        fs::read_dir(dir).map_err(SpansError::io(dir))?;
        Ok(Self {
            dir: dir.to_owned(),
        })
    }

    /// Indexes `corpus` and returns its id. Only records that no shard of the
    /// folder has are asked for; records that left need nothing but a mask.
    /// Small shards are merged as in a log-structured merge tree, four of a
    /// size at a time, so a record is sorted anew at most once for each fourth
    /// of the size it ends in. What they were merged from stays, for the corpora
    /// that name it, until [`Store::prune`].
    ///
    /// After a crash at any point, or an error, another call goes on with the
    /// shards that were finished.
    ///
    /// # Errors
    /// [`SpansError`]; the corpora that were there stay whole.
    pub fn update(
        &self,
        corpus: &Corpus,
        options: &BuildOptions,
        tokens: &mut Tokens<'_>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<B256, SpansError> {
        let numbers = corpus
            .numbers()
            .map_err(|what| SpansError::Corpus { what })?;
        let _lock = DirLock::acquire(&self.dir)?;
        self.remove_unfinished()?;
        let (views, missing) = self.adopt(corpus, numbers)?;
        let mut update = Update {
            dir: &self.dir,
            corpus,
            tokens_max: (options.memory_budget_bytes / BUILD_BYTES_PER_TOKEN).clamp(1, TOKENS_MAX),
            views,
            state: Progress {
                records: corpus.records.len() - missing.len(),
                records_total: corpus.records.len(),
                shards_written: 0,
            },
            progress,
        };
        update.add(&missing, tokens)?;
        update.merge()?;
        update.finish()
    }

    /// The corpora of a datanet's version in the tokens of a tokenizer, by id:
    /// one, unless a program that cuts records otherwise made another.
    ///
    /// # Errors
    /// [`SpansError::Io`] if the folder or a file cannot be read.
    pub fn find(&self, manifest: B256, tokenizer: B256) -> Result<Vec<B256>, SpansError> {
        let mut found = Vec::new();
        for (id, path) in self.files(CORPUS_EXTENSION)? {
            if CorpusFile::peek(&path)? == Some((manifest, tokenizer)) {
                found.push(id);
            }
        }
        Ok(found)
    }

    /// Opens the corpus `id`.
    ///
    /// # Errors
    /// [`SpansError::Io`] if a file is missing, [`SpansError::Damaged`] naming
    /// one whose form is wrong. What is in the shards is not read; see
    /// [`Store::verify`].
    pub fn load(&self, id: B256) -> Result<SpanIndex, SpansError> {
        SpanIndex::open(&self.dir, id)
    }

    /// Reads the corpus `id` whole and checks every id, every suffix array and
    /// the table.
    ///
    /// # Errors
    /// As [`Store::load`], and [`SpansError::Damaged`] naming what differs.
    pub fn verify(&self, id: B256) -> Result<(), SpansError> {
        let file = CorpusFile::read(&self.dir, id)?;
        // Before loading, which would find the consequences and not the cause.
        for &shard in &file.shards {
            Shard::open(&self.dir, shard)?.verify()?;
        }
        let index = self.load(id)?;
        if table(&file.corpus, index.views())? != file.table {
            let path = self.dir.join(crate::bytes::file_name(id, CORPUS_EXTENSION));
            return Err(SpansError::damaged(
                &path,
                "its table is not that of its tokens",
            ));
        }
        Ok(())
    }

    /// Deletes all corpora but `keep`, and the shards that none of those has.
    /// Returns how many files that were. An index that is open stays usable.
    ///
    /// # Errors
    /// [`SpansError`] if one to keep cannot be read; nothing is deleted then.
    pub fn prune(&self, keep: &[B256]) -> Result<usize, SpansError> {
        let _lock = DirLock::acquire(&self.dir)?;
        let mut kept_shards = Vec::new();
        for &id in keep {
            kept_shards.extend(CorpusFile::read(&self.dir, id)?.shards);
        }
        let mut n_deleted = 0;
        for (extension, kept) in [
            (CORPUS_EXTENSION, keep),
            (SHARD_EXTENSION, kept_shards.as_slice()),
        ] {
            for (id, path) in self.files(extension)? {
                if !kept.contains(&id) {
                    fs::remove_file(&path).map_err(SpansError::io(&path))?;
                    n_deleted += 1;
                }
            }
        }
        Ok(n_deleted)
    }

    /// The files of one kind, by id.
    fn files(&self, extension: &str) -> Result<Vec<(B256, PathBuf)>, SpansError> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(SpansError::io(&self.dir))? {
            let entry = entry.map_err(SpansError::io(&self.dir))?;
            let name = entry.file_name();
            let id = name.to_str().and_then(|name| id_in_name(name, extension));
            files.extend(id.map(|id| (id, entry.path())));
        }
        files.sort_unstable();
        Ok(files)
    }

    /// Removes what a crash left. The caller holds the lock.
    fn remove_unfinished(&self) -> Result<(), SpansError> {
        for entry in fs::read_dir(&self.dir).map_err(SpansError::io(&self.dir))? {
            let entry = entry.map_err(SpansError::io(&self.dir))?;
            if entry
                .file_name()
                .to_string_lossy()
                .starts_with(TEMPORARY_PREFIX)
            {
                let path = entry.path();
                fs::remove_file(&path).map_err(SpansError::io(&path))?;
            }
        }
        Ok(())
    }

    /// Shards of the folder that together hold as much of the corpus as they
    /// can without holding a record twice, and the records that they lack. A
    /// shard of which less than half would count is left out.
    fn adopt(
        &self,
        corpus: &Corpus,
        mut numbers: HashMap<B256, u32>,
    ) -> Result<(Vec<View>, Vec<u32>), SpansError> {
        let mut candidates = Vec::new();
        for (id, _) in self.files(SHARD_EXTENSION)? {
            let shard = Shard::open(&self.dir, id)?;
            if shard.tokenizer == corpus.tokenizer {
                let n_live = shard
                    .records()
                    .filter(|hash| numbers.contains_key(hash))
                    .count();
                candidates.push((std::cmp::Reverse(n_live), id, shard));
            }
        }
        // The largest first: what was merged goes before what it was merged from.
        candidates.sort_by_key(|(n_live, id, _)| (*n_live, *id));
        let mut views = Vec::new();
        for (_, _, shard) in candidates {
            let (mut n_live, mut n_taken) = (0, 0);
            for (document, hash) in shard.records().enumerate() {
                if numbers.contains_key(&hash) {
                    n_live += shard.document_range(document).len();
                } else {
                    n_taken += shard.document_range(document).len();
                }
            }
            if n_live > 0 && n_live >= n_taken {
                let view = View::claim(shard, &mut numbers, &corpus.versions);
                views.push(view);
            }
        }
        let mut missing: Vec<u32> = numbers.into_values().collect();
        missing.sort_unstable();
        Ok((views, missing))
    }
}

/// An update on its way.
struct Update<'a> {
    dir: &'a Path,
    corpus: &'a Corpus,
    /// Tokens of the largest shard that is built on purpose. A single record
    /// may have more.
    tokens_max: usize,
    views: Vec<View>,
    state: Progress,
    progress: &'a mut dyn FnMut(Progress),
}

impl Update<'_> {
    fn builder(&self) -> ShardBuilder {
        ShardBuilder::new(self.corpus.tokenizer, self.corpus.vocabulary_size)
    }

    /// Builds shards of the records that are new.
    fn add(&mut self, missing: &[u32], tokens: &mut Tokens<'_>) -> Result<(), SpansError> {
        let mut builder = self.builder();
        let mut numbers = Vec::new();
        for &number in missing {
            let record = &self.corpus.records[number as usize];
            let texts = tokens(record).map_err(|source| SpansError::Tokens {
                record: number,
                source,
            })?;
            let n_tokens = ShardBuilder::size_of(&texts);
            if !builder.is_empty() && builder.n_tokens() + n_tokens > self.tokens_max {
                let full = std::mem::replace(&mut builder, self.builder());
                self.write(full, std::mem::take(&mut numbers))?;
            }
            builder
                .push(record.hash, &texts)
                .map_err(|what| SpansError::Corpus { what })?;
            numbers.push(number);
            self.state.records += 1;
            (self.progress)(self.state);
        }
        if !builder.is_empty() {
            self.write(builder, numbers)?;
        }
        Ok(())
    }

    /// Writes a shard whose documents are the records of these numbers.
    fn write(&mut self, builder: ShardBuilder, numbers: Vec<u32>) -> Result<(), SpansError> {
        let id = builder.write(self.dir)?;
        let shard = Shard::open(self.dir, id)?;
        let versions = &self.corpus.versions;
        self.views.push(View::new(shard, numbers, versions));
        self.state.shards_written += 1;
        (self.progress)(self.state);
        Ok(())
    }

    /// Merges shards of a size until there are fewer than four of each, as far
    /// as a merged one stays within the budget.
    fn merge(&mut self) -> Result<(), SpansError> {
        while let Some(group) = self.next_group() {
            let mut merged: Vec<View> = Vec::with_capacity(group.len());
            for &position in group.iter().rev() {
                merged.push(self.views.swap_remove(position));
            }
            let mut documents: Vec<(u32, usize, usize)> = Vec::new();
            for (view, from) in merged.iter().zip(0..) {
                let numbered = view.numbers().enumerate();
                documents.extend(numbered.filter_map(|(at, number)| Some((number?, from, at))));
            }
            // In the corpus's order, so that the result depends on the records alone.
            documents.sort_unstable();
            let mut builder = self.builder();
            let numbers = documents.iter().map(|document| document.0).collect();
            for (number, from, at) in documents {
                let hash = self.corpus.records[number as usize].hash;
                let texts = merged[from].shard.texts(at);
                let damaged = |what| SpansError::damaged(merged[from].shard.path(), what);
                builder.push(hash, &texts).map_err(damaged)?;
            }
            self.write(builder, numbers)?;
        }
        Ok(())
    }

    /// Positions of the next shards to merge, ascending.
    fn next_group(&self) -> Option<Vec<usize>> {
        let mut by_size: HashMap<u32, Vec<(usize, usize)>> = HashMap::new();
        for (position, view) in self.views.iter().enumerate() {
            let n_tokens = view.shard.n_tokens();
            by_size
                .entry(size(n_tokens))
                .or_default()
                .push((n_tokens, position));
        }
        let mut sizes: Vec<(u32, Vec<(usize, usize)>)> = by_size.into_iter().collect();
        sizes.sort_unstable();
        for (_, mut shards) in sizes {
            shards.sort_unstable();
            let mut n_tokens = 0;
            let fits = |&(more, _): &(usize, usize)| {
                n_tokens += more;
                n_tokens <= self.tokens_max
            };
            let mut group: Vec<usize> = shards
                .iter()
                .copied()
                .take_while(fits)
                .map(|(_, at)| at)
                .collect();
            if group.len() >= MERGE_COUNT {
                group.sort_unstable();
                return Some(group);
            }
        }
        None
    }

    fn finish(self) -> Result<B256, SpansError> {
        if self.views.len() > SHARDS_MAX {
            let n = self.views.len();
            return Err(SpansError::Corpus {
                what: format!("it takes {n} shards, at most {SHARDS_MAX}; raise the memory budget"),
            });
        }
        let file = CorpusFile {
            corpus: self.corpus.clone(),
            table: table(self.corpus, &self.views)?,
            shards: self.views.iter().map(|view| view.shard.id).collect(),
        };
        file.write(self.dir)
    }
}

/// Which size a shard is of: each is up to four times the one before.
fn size(n_tokens: usize) -> u32 {
    (n_tokens / SMALL_SHARD_TOKENS).max(1).ilog2() / 2
}

/// The table of a corpus: tokens are counted in the first record of each
/// cluster, so that copies change nothing.
fn table(corpus: &Corpus, views: &[View]) -> Result<Unigrams, SpansError> {
    let owners = corpus.owners();
    let is_counted = |number: Option<u32>| {
        number.is_some_and(|number| {
            let record = &corpus.records[number as usize];
            owners.get(&record.cluster) == Some(&number)
        })
    };
    let mut counts = vec![0_u64; corpus.vocabulary_size];
    for view in views {
        let unknown = || SpansError::damaged(view.shard.path(), "a token is not in the vocabulary");
        // All tokens, less those of the documents that do not count.
        for (token, count) in view.shard.alphabet() {
            *counts.get_mut(token as usize).ok_or_else(unknown)? += u64::from(count);
        }
        for (document, number) in view.numbers().enumerate() {
            if !is_counted(number) {
                for token in view.shard.texts(document).into_iter().flatten() {
                    let count = counts.get_mut(token as usize).ok_or_else(unknown)?;
                    *count = count.checked_sub(1).ok_or_else(unknown)?;
                }
            }
        }
    }
    Ok(Unigrams::from_counts(&counts)?)
}

#[cfg(test)]
mod tests;
