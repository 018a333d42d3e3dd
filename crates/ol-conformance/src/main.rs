//! Runs every public test of Ethereum below some folders.
//!
//! `ol-conformance DIR...` prints a line of progress, then the counts for each
//! suite and folder as a table, and fails if a test fails.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line tool"
)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ol_conformance::{Suite, run_all};

/// A file, and its path from the folder that was asked for on.
struct TestFile {
    path: PathBuf,
    name: PathBuf,
}

impl AsRef<Path> for TestFile {
    fn as_ref(&self) -> &Path {
        &self.name
    }
}

fn main() -> ExitCode {
    let folders: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    if folders.is_empty() {
        eprintln!("Usage: ol-conformance DIR...");
        return ExitCode::from(2);
    }
    let mut files = Vec::new();
    for folder in &folders {
        if let Err(error) = collect(folder, above_suite(folder), &mut files) {
            eprintln!("error: {}: {error}", folder.display());
            return ExitCode::FAILURE;
        }
    }
    files.sort_by(|one, other| one.path.cmp(&other.path));
    let n_files = files.len();
    if n_files == 0 {
        eprintln!("error: no test below {folders:?}");
        return ExitCode::FAILURE;
    }
    let report = run_all(
        &files,
        |file| std::fs::read(&file.path),
        |n_done| {
            if n_done % 50 == 0 || n_done == n_files {
                eprint!("\r{n_done} of {n_files} files");
            }
        },
    );
    eprintln!();
    println!("{report}");
    if report.total().n_failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// What is above the outermost folder that is named as a suite: one of those
/// that a folder lies in, or the folder itself.
fn above_suite(folder: &Path) -> &Path {
    let names_suite = |path: &&Path| {
        let name = path.file_name();
        name.is_some_and(|name| Suite::of(Path::new(name)).is_some())
    };
    let suite = folder.ancestors().filter(names_suite).last();
    suite.unwrap_or(folder).parent().unwrap_or(Path::new(""))
}

/// Every test file below a folder; `above` is left out of their names.
fn collect(folder: &Path, above: &Path, files: &mut Vec<TestFile>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, above, files)?;
            continue;
        }
        let name = path.strip_prefix(above).unwrap_or(&path).to_owned();
        if path.extension().is_some_and(|end| end == "json") && Suite::of(&name).is_some() {
            files.push(TestFile { path, name });
        }
    }
    Ok(())
}
