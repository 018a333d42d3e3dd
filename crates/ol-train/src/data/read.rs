//! Files to rows: JSONL, JSON, CSV, TSV, Parquet, text and Markdown.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde_json::value::RawValue;

use super::{DataError, Fault, parquet};

/// Longest line or row, and longest text file.
pub(super) const MAX_LINE_SIZE_BYTES: usize = 64 << 20;
/// Longest file that is read line by line, or by groups of rows.
const MAX_FILE_SIZE_BYTES: u64 = 64 << 30;
/// Longest file that is read whole: JSON, CSV.
const MAX_WHOLE_SIZE_BYTES: u64 = 1 << 30;
/// Most files of a folder.
const MAX_FILES: usize = 10_000;

/// An example as it is in the file.
#[derive(Debug)]
pub(super) enum Item {
    /// Named fields.
    Row(Row),
    /// A whole text.
    Text(String),
}

/// The fields of an example, as JSON.
pub(super) type Row = BTreeMap<String, Box<RawValue>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Lines,
    List,
    Table(u8),
    Columns,
    Text,
}

impl Kind {
    fn of(path: &Path) -> Option<Self> {
        let extension = path.extension()?.to_str()?.to_ascii_lowercase();
        Some(match extension.as_str() {
            "jsonl" | "ndjson" => Self::Lines,
            "json" => Self::List,
            "csv" => Self::Table(b','),
            "tsv" => Self::Table(b'\t'),
            "parquet" => Self::Columns,
            "txt" | "text" | "md" | "markdown" => Self::Text,
            _ => return None,
        })
    }
}

fn io(path: &Path) -> impl Fn(std::io::Error) -> DataError {
    |source| DataError::Io {
        path: path.to_owned(),
        source,
    }
}

pub(super) fn bad_file(path: &Path, reason: impl Into<String>) -> DataError {
    DataError::File {
        path: path.to_owned(),
        reason: reason.into(),
    }
}

/// Whether what is counted in a file are rows, not lines.
pub(super) fn has_rows(path: &Path) -> bool {
    Kind::of(path) == Some(Kind::Columns)
}

/// The files, with those of folders in the folders' places.
pub(super) fn expand(paths: &[PathBuf]) -> Result<Vec<PathBuf>, DataError> {
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let mut found = Vec::new();
        for entry in fs::read_dir(path).map_err(io(path))? {
            let entry = entry.map_err(io(path))?.path();
            if entry.is_file() && Kind::of(&entry).is_some() {
                found.push(entry);
            }
            if found.len() > MAX_FILES {
                return Err(bad_file(path, format!("more than {MAX_FILES} files")));
            }
        }
        if found.is_empty() {
            return Err(bad_file(path, "no file of examples in this folder"));
        }
        found.sort();
        files.extend(found);
    }
    Ok(files)
}

/// Takes an item, or what is wrong with it, with its line; an error ends the
/// reading.
pub(super) type Take<'a> = &'a mut dyn FnMut(usize, Result<Item, Fault>) -> Result<(), DataError>;

pub(super) fn read(path: &Path, take: Take<'_>) -> Result<(), DataError> {
    let Some(kind) = Kind::of(path) else {
        return Err(bad_file(
            path,
            "unknown kind of file; known are .jsonl, .json, .csv, .tsv, .parquet, .txt and .md",
        ));
    };
    let file = File::open(path).map_err(io(path))?;
    let size_bytes = file.metadata().map_err(io(path))?.len();
    let limit_bytes = match kind {
        Kind::Lines | Kind::Columns => MAX_FILE_SIZE_BYTES,
        Kind::List | Kind::Table(_) => MAX_WHOLE_SIZE_BYTES,
        Kind::Text => MAX_LINE_SIZE_BYTES as u64,
    };
    if size_bytes > limit_bytes {
        let reason = format!("{size_bytes} bytes, allowed are {limit_bytes}");
        return Err(bad_file(path, reason));
    }
    if kind == Kind::Columns {
        return parquet::read(path, file, take);
    }
    // It may grow while it is read.
    let file = file.take(limit_bytes);
    match kind {
        Kind::Lines => read_lines(path, file, take),
        Kind::List => read_list(path, file, take),
        Kind::Table(delimiter) => read_table(path, file, delimiter, take),
        Kind::Text | Kind::Columns => {
            let mut text = String::new();
            BufReader::new(file)
                .read_to_string(&mut text)
                .map_err(io(path))?;
            let text = text.strip_prefix('\u{FEFF}').unwrap_or(&text);
            if text.trim().is_empty() {
                return take(1, Err(Fault::new("the file is empty")));
            }
            take(1, Ok(Item::Text(text.to_owned())))
        }
    }
}

fn read_lines(path: &Path, file: impl Read, take: Take<'_>) -> Result<(), DataError> {
    let mut reader = BufReader::new(file);
    let mut text = Vec::new();
    for line in 1.. {
        text.clear();
        let most = MAX_LINE_SIZE_BYTES as u64 + 1;
        let n = (&mut reader)
            .take(most)
            .read_until(b'\n', &mut text)
            .map_err(io(path))?;
        if n == 0 {
            break;
        }
        if text.len() > MAX_LINE_SIZE_BYTES {
            let reason = format!("line {line} is longer than {MAX_LINE_SIZE_BYTES} bytes");
            return Err(bad_file(path, reason));
        }
        let bytes = text.strip_prefix("\u{FEFF}".as_bytes()).unwrap_or(&text);
        if bytes.trim_ascii().is_empty() {
            continue;
        }
        let row = serde_json::from_slice::<Row>(bytes).map_err(|e| Fault::new(said(&e)));
        take(line, row.map(Item::Row))?;
    }
    Ok(())
}

/// What serde says, without its line, which is not the file's.
fn said(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.split_once(" at line ") {
        Some((what, _)) => format!("{what}, column {}", error.column()),
        None => text,
    }
}

fn read_list(path: &Path, mut file: impl Read, take: Take<'_>) -> Result<(), DataError> {
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(io(path))?;
    let text = text.strip_prefix('\u{FEFF}').unwrap_or(&text);
    let whole = |e: serde_json::Error| bad_file(path, e.to_string());
    // Some data sets have their list in the one field of an object.
    let list: Vec<&RawValue> = if text.trim_start().starts_with('{') {
        let mut fields: BTreeMap<String, &RawValue> = serde_json::from_str(text).map_err(whole)?;
        let list = fields
            .len()
            .eq(&1)
            .then(|| fields.pop_first())
            .flatten()
            .filter(|(_, value)| value.get().starts_with('['));
        let Some((_, list)) = list else {
            return Err(bad_file(
                path,
                "is neither a list of examples nor an object with one; \
                 a file with an example on each line ends in .jsonl",
            ));
        };
        serde_json::from_str(list.get()).map_err(whole)?
    } else {
        serde_json::from_str(text).map_err(whole)?
    };
    let (mut line, mut at) = (1, 0);
    for value in list {
        // The value is a part of `text`: the lines before it are its line.
        let start = value.get().as_ptr() as usize - text.as_ptr() as usize;
        line += text.as_bytes()[at..start]
            .iter()
            .filter(|b| **b == b'\n')
            .count();
        at = start;
        let row = serde_json::from_str::<Row>(value.get()).map_err(|e| Fault::new(said(&e)));
        take(line, row.map(Item::Row))?;
    }
    Ok(())
}

fn read_table(
    path: &Path,
    file: impl Read,
    delimiter: u8,
    take: Take<'_>,
) -> Result<(), DataError> {
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(delimiter)
        .from_reader(file);
    let header = reader
        .headers()
        .map_err(|e| bad_file(path, e.to_string()))?
        .clone();
    for record in reader.records() {
        let record = match record {
            Ok(record) => record,
            Err(error) => {
                let line = error.position().map_or(0, csv::Position::line);
                let reason = match error.kind() {
                    csv::ErrorKind::UnequalLengths {
                        expected_len, len, ..
                    } => format!("{len} fields, the header has {expected_len}"),
                    csv::ErrorKind::Utf8 { .. } => "is not UTF-8".to_owned(),
                    _ => return Err(bad_file(path, error.to_string())),
                };
                take(
                    usize::try_from(line).unwrap_or(usize::MAX),
                    Err(Fault::new(reason)),
                )?;
                continue;
            }
        };
        let line = record.position().map_or(0, csv::Position::line);
        let fields = header.iter().zip(record.iter());
        let row = fields
            .map(|(name, value)| {
                let json = serde_json::to_string(value).expect("a text is JSON");
                let value = RawValue::from_string(json).expect("it was just written");
                (name.trim_start_matches('\u{FEFF}').trim().to_owned(), value)
            })
            .collect();
        take(
            usize::try_from(line).unwrap_or(usize::MAX),
            Ok(Item::Row(row)),
        )?;
    }
    Ok(())
}
