//! Rows of Parquet files, as data sets are published: texts, numbers, flags, and
//! lists and structs of them. Columns of other types are left out.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use arrow_array::cast::AsArray as _;
use arrow_array::types::{
    Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type,
    UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrayRef};
use arrow_schema::DataType;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use serde_json::{Map, Value};

use super::read::{Item, MAX_LINE_SIZE_BYTES, Row, Take, bad_file};
use super::{DataError, Fault};

/// Rows that are decoded at once.
const BATCH_ROWS: usize = 128;
/// Most columns of a file, those inside others counted.
const MAX_COLUMNS: usize = 1000;
/// Largest row group, unpacked.
const MAX_GROUP_SIZE_BYTES: i64 = 4 << 30;

/// The reader checks most of what it reads, yet is large and not written for
/// hostile files: a panic in it must not end the process.
fn guarded<T, E: std::fmt::Display>(
    path: &Path,
    read: impl FnOnce() -> Result<T, E>,
) -> Result<T, DataError> {
    catch_unwind(AssertUnwindSafe(read))
        .map_err(|_| bad_file(path, "the file is damaged"))?
        .map_err(|error| bad_file(path, error.to_string()))
}

pub(super) fn read(path: &Path, file: File, take: Take<'_>) -> Result<(), DataError> {
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    let builder = guarded(path, || {
        ParquetRecordBatchReaderBuilder::try_new_with_options(file, options)
    })?;
    let metadata = builder.metadata();
    let n_columns = metadata.file_metadata().schema_descr().num_columns();
    if n_columns > MAX_COLUMNS {
        let reason = format!("{n_columns} columns, allowed are {MAX_COLUMNS}");
        return Err(bad_file(path, reason));
    }
    for (i, group) in metadata.row_groups().iter().enumerate() {
        let columns = group.columns().iter();
        let sizes = columns.map(|c| c.uncompressed_size().max(0));
        let size_bytes = sizes.fold(0_i64, i64::saturating_add);
        if size_bytes > MAX_GROUP_SIZE_BYTES {
            let reason = format!(
                "row group {i} unpacks to {size_bytes} bytes, allowed are {MAX_GROUP_SIZE_BYTES}"
            );
            return Err(bad_file(path, reason));
        }
    }
    let mut reader = guarded(path, || builder.with_batch_size(BATCH_ROWS).build())?;
    let mut n_rows = 0;
    while let Some(batch) = guarded(path, || reader.next().transpose())? {
        let schema = batch.schema();
        for row in 0..batch.num_rows() {
            n_rows += 1;
            let fields = schema.fields().iter().zip(batch.columns());
            let fields = fields
                .filter_map(|(field, column)| Some((field.name().clone(), value(column, row)?)));
            take(n_rows, fields_of(fields).map(Item::Row))?;
        }
    }
    Ok(())
}

fn fields_of(fields: impl Iterator<Item = (String, Value)>) -> Result<Row, Fault> {
    let mut row = Row::new();
    let mut size_bytes = 0;
    for (name, value) in fields {
        let json = serde_json::value::to_raw_value(&value)
            .map_err(|e| Fault::in_field(&name, e.to_string()))?;
        size_bytes += json.get().len();
        if size_bytes > MAX_LINE_SIZE_BYTES {
            let reason = format!("the row is longer than {MAX_LINE_SIZE_BYTES} bytes");
            return Err(Fault::new(reason));
        }
        row.insert(name, json);
    }
    Ok(row)
}

/// A value as JSON; none for null and for what JSON does not have.
fn value(column: &ArrayRef, row: usize) -> Option<Value> {
    if column.is_null(row) {
        return None;
    }
    let list = |items: ArrayRef| {
        let items = (0..items.len()).map(|i| value(&items, i).unwrap_or(Value::Null));
        Value::Array(items.collect())
    };
    Some(match column.data_type() {
        DataType::Utf8 => column.as_string::<i32>().value(row).into(),
        DataType::LargeUtf8 => column.as_string::<i64>().value(row).into(),
        DataType::Utf8View => column.as_string_view().value(row).into(),
        DataType::Boolean => column.as_boolean().value(row).into(),
        DataType::Int8 => column.as_primitive::<Int8Type>().value(row).into(),
        DataType::Int16 => column.as_primitive::<Int16Type>().value(row).into(),
        DataType::Int32 => column.as_primitive::<Int32Type>().value(row).into(),
        DataType::Int64 => column.as_primitive::<Int64Type>().value(row).into(),
        DataType::UInt8 => column.as_primitive::<UInt8Type>().value(row).into(),
        DataType::UInt16 => column.as_primitive::<UInt16Type>().value(row).into(),
        DataType::UInt32 => column.as_primitive::<UInt32Type>().value(row).into(),
        DataType::UInt64 => column.as_primitive::<UInt64Type>().value(row).into(),
        DataType::Float32 => column.as_primitive::<Float32Type>().value(row).into(),
        DataType::Float64 => column.as_primitive::<Float64Type>().value(row).into(),
        DataType::List(_) => list(column.as_list::<i32>().value(row)),
        DataType::LargeList(_) => list(column.as_list::<i64>().value(row)),
        DataType::Struct(fields) => {
            let columns = column.as_struct().columns();
            let fields = fields.iter().zip(columns);
            let fields: Map<String, Value> = fields
                .filter_map(|(field, column)| Some((field.name().clone(), value(column, row)?)))
                .collect();
            Value::Object(fields)
        }
        _ => return None,
    })
}
