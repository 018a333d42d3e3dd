//! Adding records: lines in, a new version out.

use std::io::BufRead;

use ol_runtime::Objects;
use ol_types::{Address, B256};

use super::verify::check_link;
use super::{AddOptions, AddReport, Datanets, VersionSummary};
use crate::cluster::DuplicateRules;
use crate::error::DatanetError;
use crate::history::{History, Replay, ShardFill};
use crate::limits::{INPUT_MAX_SIZE_BYTES, LINE_MAX_SIZE_BYTES, VERSIONS_MAX};
use crate::lines::{Line, Lines};
use crate::manifest::{Manifest, ShardRef};
use crate::shard::encode_shard;
use crate::{CommittedRecord, Record, RejectReason};

/// A byte order mark, which some editors put before the first line.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

impl Datanets {
    /// Adds the records of a JSONL input as one new version.
    ///
    /// A line that is not a record is rejected with its reason and does not
    /// stop the others; blank lines are passed over. Records that the datanet
    /// holds already are skipped; if nothing is left there is no new version.
    /// Objects are written first and the head moves last, so that a crash at
    /// any point leaves the old version or the new one.
    ///
    /// # Errors
    /// [`DatanetError::Input`] if the input cannot be read or is too large,
    /// [`DatanetError::Moved`] if somebody else added meanwhile,
    /// [`DatanetError::Damaged`] if the version before is; nothing is added
    /// then. After [`DatanetError::Heads`] the head is the old or the new one.
    pub fn add<R: BufRead>(
        &self,
        name: &str,
        input: R,
        options: &AddOptions<'_>,
    ) -> Result<AddReport, DatanetError> {
        let head = self.head(name)?;
        let parent = match head {
            None => None,
            Some(id) => {
                let manifest = self.manifest(id)?;
                check_link(name, id, &manifest, None)?;
                Some((id, manifest))
            }
        };
        let version = parent.as_ref().map_or(0, |(_, manifest)| manifest.version) + 1;
        if version > VERSIONS_MAX {
            return Err(DatanetError::TooManyVersions {
                name: name.to_owned(),
                max: VERSIONS_MAX,
            });
        }
        let mut writer = Writer::new(&self.objects, rules(name, parent.as_ref(), options)?);
        if let Some((id, manifest)) = &parent {
            writer.reopen(Replay::new(&self.objects, *id, manifest), &manifest.shards)?;
        }
        let mut report = writer.add_lines(input, options)?;
        if report.accepted == 0 {
            return Ok(report);
        }
        let (history, shards) = writer.finish()?;
        let manifest = history.manifest(name, version, head, shards);
        let id = self
            .objects
            .put(manifest.encode())
            .map_err(DatanetError::Objects)?;
        self.move_head(name, Some(head.unwrap_or(B256::ZERO)), id)?;
        report.new_version = Some(VersionSummary::new(id, &manifest));
        Ok(report)
    }
}

/// The rules of the datanet for duplicates: those of its versions, or what its
/// first one is asked to fix.
fn rules(
    name: &str,
    parent: Option<&(B256, Manifest)>,
    options: &AddOptions<'_>,
) -> Result<DuplicateRules, DatanetError> {
    let asked = options.duplicates;
    let fixed = match parent {
        Some((_, manifest)) => manifest.duplicates,
        None => DuplicateRules {
            near_percent: asked.near_percent.filter(|p| (1..=100).contains(p)),
            ..asked
        },
    };
    let is_near_fixed = asked.near_percent.is_none() || asked.near_percent == fixed.near_percent;
    if is_near_fixed && asked.recombined <= fixed.recombined {
        return Ok(fixed);
    }
    Err(DatanetError::Duplicates {
        name: name.to_owned(),
        fixed,
        asked,
    })
}

/// Collects records into shards, and writes each shard when it is full.
struct Writer<'a> {
    objects: &'a Objects,
    history: History,
    shards: Vec<ShardRef>,
    /// The last shard, still open.
    records: Vec<CommittedRecord>,
    fill: ShardFill,
}

impl<'a> Writer<'a> {
    fn new(objects: &'a Objects, duplicates: DuplicateRules) -> Self {
        let history = History::new(duplicates);
        let fill = ShardFill::default();
        Self {
            objects,
            history,
            shards: Vec::new(),
            records: Vec::new(),
            fill,
        }
    }

    /// Takes over the shards of the version before. Its last shard is opened
    /// again: how records lie in shards follows from the records, not from
    /// how many versions they came in.
    fn reopen(&mut self, mut replay: Replay<'_>, shards: &[ShardRef]) -> Result<(), DatanetError> {
        while let Some(records) = replay.next_shard()? {
            for record in &records {
                replay.commit(record)?;
            }
            self.records = records;
        }
        self.history = replay.finish()?;
        self.shards = shards[..shards.len() - 1].to_vec();
        for record in &self.records {
            self.fill.push(record.record.canonical_json().len());
        }
        Ok(())
    }

    fn add_lines<R: BufRead>(
        &mut self,
        input: R,
        options: &AddOptions<'_>,
    ) -> Result<AddReport, DatanetError> {
        let mut report = AddReport::new();
        let mut lines = Lines::new(input, LINE_MAX_SIZE_BYTES, INPUT_MAX_SIZE_BYTES);
        let mut number = 0;
        while let Some(line) = lines.next_line()? {
            number += 1;
            let record = match line {
                Line::TooLong => {
                    let max_size_bytes = LINE_MAX_SIZE_BYTES;
                    Err(RejectReason::LineTooLong { max_size_bytes })
                }
                Line::Whole(bytes) => {
                    let is_first = number == 1;
                    let mark = if is_first { BYTE_ORDER_MARK } else { b"" };
                    let bytes = bytes.strip_prefix(mark).unwrap_or(bytes);
                    if bytes.trim_ascii().is_empty() {
                        continue;
                    }
                    Record::from_json(bytes)
                }
            };
            match record {
                Ok(record) => self.add_record(record, number, options, &mut report)?,
                Err(reason) => report.reject(number, reason),
            }
        }
        Ok(report)
    }

    fn add_record(
        &mut self,
        record: Record,
        line: u64,
        options: &AddOptions<'_>,
        report: &mut AddReport,
    ) -> Result<(), DatanetError> {
        let record_hash = record.hash();
        if self.history.contains(record_hash) {
            report.repeated += 1;
            return Ok(());
        }
        if let Err(reason) = self.history.check_room(&record) {
            report.reject(line, reason);
            return Ok(());
        }
        let contributor_address = (options.contributor_address)(&record.contributor);
        if contributor_address == Address::ZERO {
            report.reject(
                line,
                RejectReason::NoAddress {
                    contributor: record.contributor,
                },
            );
            return Ok(());
        }
        let placement = self.history.place(&record);
        report.accepted += 1;
        report.duplicates += u64::from(!placement.is_new);
        let cluster = placement.number;
        let committed = CommittedRecord {
            record,
            record_hash,
            contributor_address,
            cluster,
        };
        self.history.commit(&committed, placement);
        self.push(committed)
    }

    fn push(&mut self, committed: CommittedRecord) -> Result<(), DatanetError> {
        let text_size_bytes = committed.record.canonical_json().len();
        if self.fill.is_full_for(text_size_bytes) {
            self.close_shard()?;
        }
        self.fill.push(text_size_bytes);
        self.records.push(committed);
        Ok(())
    }

    fn close_shard(&mut self) -> Result<(), DatanetError> {
        let bytes = encode_shard(&self.records)?;
        let (size_bytes, n_records) = (bytes.len() as u64, self.records.len() as u64);
        let object = self.objects.put(bytes).map_err(DatanetError::Objects)?;
        self.shards.push(ShardRef {
            object,
            size_bytes,
            n_records,
        });
        self.records.clear();
        self.fill = ShardFill::default();
        Ok(())
    }

    fn finish(mut self) -> Result<(History, Vec<ShardRef>), DatanetError> {
        self.close_shard()?;
        Ok((self.history, self.shards))
    }
}
