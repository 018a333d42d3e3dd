//! The indexes of spans in a data folder: which words of an answer stand in
//! which records, for every version of a datanet that a model learned from.

use std::fs;

use alloy_primitives::B256;
use anyhow::{Context, ensure};
use ol_datanet::{CommittedRecord, Datanets};
use ol_model::Tokenizer;
use ol_spans::{BuildOptions, Corpus, Progress, RecordRef, SpanIndex, SpansError, Store};
use ol_train::TrainingManifest;
use ol_types::keccak256;

use crate::assets;
use crate::instance::Layout;
use crate::output::{bar, note};

/// Largest tokenizer file, in bytes.
const TOKENIZER_SIZE_BYTES_MAX: u64 = 64 << 20;

/// The folder of indexes, and the tokenizer whose tokens are indexed: that of
/// the base that payable models are adapters of.
#[derive(Debug)]
pub(crate) struct Spans {
    store: Store,
    tokenizer: Tokenizer,
    tokenizer_hash: B256,
}

impl Spans {
    /// Opens the folder, which is made if it is missing.
    pub(crate) fn open(layout: &Layout) -> anyhow::Result<Self> {
        assets::install_base(&layout.base())?;
        let path = layout.base().join("tokenizer.json");
        let context = || path.display().to_string();
        let size_bytes = fs::metadata(&path).with_context(context)?.len();
        ensure!(
            size_bytes <= TOKENIZER_SIZE_BYTES_MAX,
            "{} is larger than 64 MiB",
            path.display()
        );
        let tokenizer_hash = keccak256(fs::read(&path).with_context(context)?);
        let dir = layout.spans();
        fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        Ok(Self {
            store: Store::open(&dir)?,
            tokenizer: Tokenizer::load(&layout.base())
                .context("the tokenizer of the base model")?,
            tokenizer_hash,
        })
    }

    pub(crate) const fn store(&self) -> &Store {
        &self.store
    }

    pub(crate) const fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The index of a version of a datanet, if it is there.
    ///
    /// # Errors
    /// If it is there and damaged, or a file of it is missing.
    pub(crate) fn find(&self, version: B256) -> Result<Option<SpanIndex>, SpansError> {
        let found = self.store.find(version, self.tokenizer_hash)?;
        found.first().map(|&id| self.store.load(id)).transpose()
    }

    /// The index of a version of a datanet; built if it is not there, from the
    /// records that no earlier one has.
    pub(crate) fn index(
        &self,
        datanets: &Datanets,
        version: B256,
        options: &BuildOptions,
    ) -> anyhow::Result<SpanIndex> {
        match self.find(version) {
            Ok(Some(index)) => return Ok(index),
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "an index of spans is built anew"),
        }
        self.build(datanets, version, options)
    }

    /// Builds the index of a version of a datanet. What an earlier try finished,
    /// or another version has, is used again.
    pub(crate) fn build(
        &self,
        datanets: &Datanets,
        version: B256,
        options: &BuildOptions,
    ) -> anyhow::Result<SpanIndex> {
        let name = datanets.manifest(version)?.name;
        let records = datanets.records(version)?;
        let corpus = Corpus {
            manifest: version,
            tokenizer: self.tokenizer_hash,
            vocabulary_size: self.tokenizer.vocab_size(),
            versions: versions(datanets, version)?,
            records: records.iter().map(record_ref).collect(),
        };
        let progress = bar(records.len() as u64, &format!("spans of {name}"));
        // The folder asks for records in order, so finding each takes no map.
        let mut rest = records.iter();
        let mut tokens = |wanted: &RecordRef| {
            let record = rest.find(|record| record.record_hash == wanted.hash);
            let record = record.ok_or("the folder asks for a record that is not in the datanet")?;
            Ok(self.texts(record)?)
        };
        let mut n_files = 0;
        let mut observe = |done: Progress| {
            progress.set_position(done.records as u64);
            // In a log file there is no bar: a line for each file that is finished.
            if progress.is_hidden() && done.shards_written > n_files {
                n_files = done.shards_written;
                let (records, total) = (done.records, done.records_total);
                note(&format!(
                    "spans of {name}: {records} of {total} records, file {n_files} written"
                ));
            }
        };
        let id = self
            .store
            .update(&corpus, options, &mut tokens, &mut observe)
            .with_context(|| format!("the index of spans of {name}"))?;
        progress.finish_and_clear();
        Ok(self.store.load(id)?)
    }

    /// The texts of a record in which spans are looked for: question and answer.
    fn texts(&self, record: &CommittedRecord) -> anyhow::Result<Vec<Vec<u32>>> {
        [&record.record.question, &record.record.answer]
            .into_iter()
            .map(|text| Ok(self.tokenizer.encode(text)?))
            .collect()
    }

    /// The index that a model's answers are looked up in: of the one version of a
    /// datanet that its training manifest names.
    pub(crate) fn of_model(
        &self,
        datanets: &Datanets,
        manifest: &TrainingManifest,
    ) -> anyhow::Result<SpanIndex> {
        let [source] = manifest.datanets.as_slice() else {
            anyhow::bail!(
                "a model that pays for spans learns from one datanet, this one from {}",
                manifest.datanets.len()
            );
        };
        self.index(datanets, source.manifest, &BuildOptions::default())
    }
}

/// How many records each version up to this one has, from the first.
fn versions(datanets: &Datanets, version: B256) -> anyhow::Result<Vec<u32>> {
    let mut versions = Vec::new();
    let mut next = Some(version);
    while let Some(id) = next {
        let manifest = datanets.manifest(id)?;
        versions.push(u32::try_from(manifest.n_records)?);
        next = manifest.parent;
    }
    versions.reverse();
    Ok(versions)
}

const fn record_ref(record: &CommittedRecord) -> RecordRef {
    RecordRef {
        hash: record.record_hash,
        contributor: record.contributor_address,
        cluster: record.cluster,
    }
}
