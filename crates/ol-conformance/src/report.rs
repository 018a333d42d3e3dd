//! What came of many tests.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use crate::{CaseResult, Suite, Verdict};

/// Most failures that are kept word for word.
const FAILURES_KEPT_MAX: usize = 200;

/// Counts of cases.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Files that they came from.
    pub n_files: usize,
    /// As the test says.
    pub n_passed: usize,
    /// Otherwise.
    pub n_failed: usize,
    /// Not run, by reason.
    pub skipped: BTreeMap<&'static str, usize>,
}

impl Tally {
    /// Cases that were not run.
    #[must_use]
    pub fn n_skipped(&self) -> usize {
        self.skipped.values().sum()
    }

    fn add(&mut self, other: &Self) {
        self.n_files += other.n_files;
        self.n_passed += other.n_passed;
        self.n_failed += other.n_failed;
        for (reason, count) in &other.skipped {
            *self.skipped.entry(reason).or_default() += count;
        }
    }
}

/// Counts for each suite and folder, and the failures.
#[derive(Debug, Clone, Default)]
pub struct Report {
    folders: BTreeMap<(Suite, String), Tally>,
    failures: Vec<String>,
}

impl Report {
    /// Adds the cases of a file.
    pub fn add(&mut self, suite: Suite, path: &Path, cases: Vec<CaseResult>) {
        let mut tally = Tally {
            n_files: 1,
            ..Tally::default()
        };
        for (case, verdict) in cases {
            match verdict {
                Verdict::Passed => tally.n_passed += 1,
                Verdict::Skipped(reason) => *tally.skipped.entry(reason).or_default() += 1,
                Verdict::Failed(reason) => {
                    tally.n_failed += 1;
                    if self.failures.len() < FAILURES_KEPT_MAX {
                        self.failures
                            .push(format!("{} {case}: {reason}", path.display()));
                    }
                }
            }
        }
        let key = (suite, folder(suite, path));
        self.folders.entry(key).or_default().add(&tally);
    }

    /// Of all suites together.
    #[must_use]
    pub fn total(&self) -> Tally {
        let mut total = Tally::default();
        self.folders.values().for_each(|tally| total.add(tally));
        total
    }

    /// The first failures, each with its file and case.
    #[must_use]
    pub fn failures(&self) -> &[String] {
        &self.failures
    }

    /// Counts for each suite and each of its folders.
    pub fn folders(&self) -> impl Iterator<Item = (Suite, &str, &Tally)> {
        self.folders
            .iter()
            .map(|((suite, folder), tally)| (*suite, folder.as_str(), tally))
    }
}

/// The folder below that of the suite.
fn folder(suite: Suite, path: &Path) -> String {
    let mut folders = path.iter().skip_while(|name| {
        let is_suite = Suite::of(Path::new(name)) == Some(suite);
        !is_suite
    });
    folders.next();
    let below: Vec<_> = folders.collect();
    match below.split_last() {
        Some((_, [])) | None => "(top)".to_owned(),
        Some((_, folders)) => folders[0].to_string_lossy().into_owned(),
    }
}

/// A table in Markdown: a row for each suite and folder, then the sums, the
/// reasons for what was skipped, and the failures.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| suite | folder | files | passed | skipped | failed |")?;
        writeln!(f, "|---|---|---:|---:|---:|---:|")?;
        let row = |f: &mut fmt::Formatter<'_>, suite: &str, folder: &str, tally: &Tally| {
            writeln!(
                f,
                "| {suite} | {folder} | {} | {} | {} | {} |",
                tally.n_files,
                tally.n_passed,
                tally.n_skipped(),
                tally.n_failed
            )
        };
        let mut suites: BTreeMap<Suite, Tally> = BTreeMap::new();
        for ((suite, folder), tally) in &self.folders {
            row(f, &format!("{suite:?}"), folder, tally)?;
            suites.entry(*suite).or_default().add(tally);
        }
        for (suite, tally) in &suites {
            row(f, &format!("**{suite:?}**"), "all", tally)?;
        }
        let total = self.total();
        row(f, "**all**", "all", &total)?;
        for (reason, count) in &total.skipped {
            writeln!(f, "\nskipped: {count} ({reason})")?;
        }
        for failure in &self.failures {
            writeln!(f, "failed: {failure}")?;
        }
        Ok(())
    }
}
