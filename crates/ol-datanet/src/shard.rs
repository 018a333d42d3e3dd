//! A shard: records as a Parquet file.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow_array::cast::AsArray as _;
use arrow_array::types::UInt32Type;
use arrow_array::{
    Array as _, ArrayRef, FixedSizeBinaryArray, RecordBatch, StringArray, UInt32Array,
};
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef};
use bytes::Bytes;
use ol_types::{Address, B256};
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::arrow::arrow_writer::{ArrowWriter, ArrowWriterOptions};
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, RowGroupMetaData};
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};

use crate::error::{DamageKind, DatanetError};
use crate::limits::{SHARD_RECORDS_MAX, SHARD_TEXT_MAX_SIZE_BYTES};
use crate::{CommittedRecord, Record};

/// Most bytes that the pages of a shard may unpack to, and its records too: the
/// text, and hashes, lengths and dictionaries beside it.
const UNPACKED_MAX_SIZE_BYTES: u64 = SHARD_TEXT_MAX_SIZE_BYTES as u64 + 8 * 1_024 * 1_024;

/// Most row groups of a shard. Ours have one.
const ROW_GROUPS_MAX: usize = 16;

/// Records unpacked at a time. One: a dictionary of one long value can stand for
/// a long value in every row, and this way it is held once.
const BATCH_RECORDS: usize = 1;

mod pages;

/// The columns, in order.
fn schema() -> SchemaRef {
    let text = |name: &str| Field::new(name, DataType::Utf8, false);
    Arc::new(Schema::new(vec![
        text("id"),
        text("contributor"),
        Field::new("contributor_address", DataType::FixedSizeBinary(20), false),
        text("question"),
        text("answer"),
        text("topic"),
        text("kind"),
        text("url"),
        text("license"),
        Field::new("record_hash", DataType::FixedSizeBinary(32), false),
        Field::new("cluster", DataType::UInt32, false),
    ]))
}

/// Everything that decides the bytes is set here, also where it is the
/// default, so that the same records give the same shard when a default moves.
fn writer_properties() -> WriterProperties {
    let level = ZstdLevel::try_new(9).expect("zstd has levels 1 to 22");
    WriterProperties::builder()
        .set_writer_version(WriterVersion::PARQUET_1_0)
        .set_created_by("openledger-datanet/1".to_owned())
        .set_compression(Compression::ZSTD(level))
        .set_dictionary_enabled(true)
        .set_dictionary_page_size_limit(1 << 20)
        .set_data_page_size_limit(1 << 20)
        .set_data_page_row_count_limit(SHARD_RECORDS_MAX)
        .set_write_batch_size(1_024)
        .set_max_row_group_row_count(Some(SHARD_RECORDS_MAX))
        .set_max_row_group_bytes(None)
        .set_statistics_enabled(EnabledStatistics::None)
        .set_offset_index_disabled(true)
        .set_bloom_filter_enabled(false)
        .set_write_path_in_schema(true)
        .build()
}

/// The Parquet file that holds `records`. The same records give the same bytes.
///
/// # Errors
/// [`DatanetError::Encode`] if the Parquet writer fails.
///
/// # Panics
/// If there are more than [`SHARD_RECORDS_MAX`] records.
pub fn encode_shard(records: &[CommittedRecord]) -> Result<Vec<u8>, DatanetError> {
    assert!(
        records.len() <= SHARD_RECORDS_MAX,
        "{} records in a shard",
        records.len()
    );
    let write = || -> Result<Vec<u8>, parquet::errors::ParquetError> {
        let options = ArrowWriterOptions::new()
            .with_properties(writer_properties())
            .with_skip_arrow_metadata(true);
        let mut writer = ArrowWriter::try_new_with_options(Vec::new(), schema(), options)?;
        writer.write(&batch(records)?)?;
        writer.into_inner()
    };
    write().map_err(|error| DatanetError::Encode {
        detail: error.to_string(),
    })
}

fn batch(records: &[CommittedRecord]) -> Result<RecordBatch, ArrowError> {
    let text = |field: fn(&Record) -> &String| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(
            records.iter().map(|r| field(&r.record)),
        ))
    };
    let addresses = records.iter().map(|r| r.contributor_address);
    let hashes = records.iter().map(|r| r.record_hash);
    let clusters = records.iter().map(|r| r.cluster);
    RecordBatch::try_new(
        schema(),
        vec![
            text(|r| &r.id),
            text(|r| &r.contributor),
            Arc::new(FixedSizeBinaryArray::try_from_iter(addresses)?),
            text(|r| &r.question),
            text(|r| &r.answer),
            text(|r| &r.topic),
            text(|r| &r.kind),
            text(|r| &r.url),
            text(|r| &r.license),
            Arc::new(FixedSizeBinaryArray::try_from_iter(hashes)?),
            Arc::new(UInt32Array::from_iter_values(clusters)),
        ],
    )
}

/// The records of a shard of `n_records`, as they stand in the file: hashes and
/// clusters are for the caller to check.
///
/// Reads any Parquet file with these columns, not only those that
/// [`encode_shard`] wrote.
///
/// # Errors
/// [`DamageKind`] with what is wrong. Never panics, whatever the bytes.
pub fn decode_shard(bytes: Bytes, n_records: u64) -> Result<Vec<CommittedRecord>, DamageKind> {
    let malformed = |detail: String| DamageKind::Malformed { detail };
    // The Parquet reader checks most of what it reads, yet is large and not
    // written for hostile files: a panic in it must not end the process.
    catch_unwind(AssertUnwindSafe(|| read(bytes, n_records)))
        .map_err(|_| malformed("the Parquet reader failed".to_owned()))?
        .map_err(malformed)
}

fn read(file: Bytes, n_records: u64) -> Result<Vec<CommittedRecord>, String> {
    let to_text = |error: parquet::errors::ParquetError| error.to_string();
    pages::check_footer(&file)?;
    // Without the page index the reader goes from page to page, as the check
    // of their sizes does.
    let options = ArrowReaderOptions::new()
        .with_skip_arrow_metadata(true)
        .with_page_index_policy(PageIndexPolicy::Skip);
    let builder = ParquetRecordBatchReaderBuilder::try_new_with_options(file.clone(), options)
        .map_err(to_text)?;
    if builder.schema().fields() != schema().fields() {
        return Err("the columns are not those of a shard".to_owned());
    }
    let metadata = builder.metadata();
    if u64::try_from(metadata.file_metadata().num_rows()) != Ok(n_records) {
        return Err(format!("the number of rows is not {n_records}"));
    }
    check_unpacked_size(&file, metadata)?;
    let reader = builder
        .with_batch_size(BATCH_RECORDS)
        .build()
        .map_err(to_text)?;
    let mut records = Vec::new();
    let mut size_bytes = 0;
    for batch in reader {
        let batch = batch.map_err(|error| error.to_string())?;
        if (records.len() + batch.num_rows()) as u64 > n_records {
            return Err(format!("it holds more than {n_records} rows"));
        }
        push_records(&batch, &mut records)?;
        size_bytes += records.last().map_or(0, text_size_bytes);
        if size_bytes > UNPACKED_MAX_SIZE_BYTES {
            return Err("its records are too large".to_owned());
        }
    }
    if records.len() as u64 != n_records {
        return Err(format!("it holds {} rows, not {n_records}", records.len()));
    }
    Ok(records)
}

/// Refuses a file that would unpack to more than a shard may, by the headers of
/// its pages: the footer may lie about them.
fn check_unpacked_size(file: &Bytes, metadata: &ParquetMetaData) -> Result<(), String> {
    if metadata.num_row_groups() > ROW_GROUPS_MAX {
        return Err("too many row groups".to_owned());
    }
    let mut unpacked = 0_u64;
    for column in metadata
        .row_groups()
        .iter()
        .flat_map(RowGroupMetaData::columns)
    {
        let start = column
            .dictionary_page_offset()
            .unwrap_or_else(|| column.data_page_offset());
        let range = usize::try_from(start)
            .ok()
            .zip(usize::try_from(column.compressed_size()).ok());
        let chunk = range
            .and_then(|(start, size)| file.get(start..start.checked_add(size)?))
            .ok_or("a column lies outside of the file")?;
        unpacked = unpacked.saturating_add(pages::unpacked_size_bytes(chunk)?);
    }
    if unpacked > UNPACKED_MAX_SIZE_BYTES {
        return Err(format!("it would unpack to {unpacked} bytes"));
    }
    Ok(())
}

fn push_records(batch: &RecordBatch, records: &mut Vec<CommittedRecord>) -> Result<(), String> {
    if batch.columns().iter().any(|column| column.null_count() > 0) {
        return Err("a value is null".to_owned());
    }
    // The types are those of `schema`, checked by the caller.
    let text = |column: usize, row: usize| {
        batch
            .column(column)
            .as_string::<i32>()
            .value(row)
            .to_owned()
    };
    let binary = |column: usize| batch.column(column).as_fixed_size_binary();
    for row in 0..batch.num_rows() {
        records.push(CommittedRecord {
            record: Record {
                id: text(0, row),
                contributor: text(1, row),
                question: text(3, row),
                answer: text(4, row),
                topic: text(5, row),
                kind: text(6, row),
                url: text(7, row),
                license: text(8, row),
            },
            contributor_address: Address::from_slice(binary(2).value(row)),
            record_hash: B256::from_slice(binary(9).value(row)),
            cluster: batch.column(10).as_primitive::<UInt32Type>().value(row),
        });
    }
    Ok(())
}

fn text_size_bytes(committed: &CommittedRecord) -> u64 {
    let fields = committed.record.fields();
    fields.map(|field| field.len() as u64).iter().sum()
}

#[cfg(test)]
mod tests;
