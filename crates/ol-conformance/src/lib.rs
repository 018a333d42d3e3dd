//! Runs the public tests of Ethereum against our execution and our node.
//!
//! A file of tests belongs to a [`Suite`] by the folder that it lies in. Each
//! case in it passes, fails, or is skipped for a reason that stands in the
//! source ([`skip`]); nothing is left out silently.
//!
//! # Map
//! - [`run_file`]: the cases of one file; [`run_all`]: of many, in parallel.
//! - [`Report`]: counts for each suite and folder, and the failures.
//! - [`network`]: the forks that a test names, as a genesis configuration.
//! - [`subset`]: the pinned tests of this repository.

pub mod network;
pub mod skip;
pub mod subset;

mod blockchain;
mod difficulty;
mod fields;
mod report;
mod rlp;
mod state;
mod transaction;
mod trie;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Mutex;

use rayon::prelude::*;

pub use fields::FieldError;
pub use report::{Report, Tally};

/// A kind of tests, named as its folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Suite {
    /// A genesis and blocks, through the node's import.
    BlockchainTests,
    /// One transaction on one state, through the block builder.
    GeneralStateTests,
    /// Raw transactions: validity, sender, hash and intrinsic gas by fork.
    TransactionTests,
    /// The recursive length prefix.
    RlpTests,
    /// The difficulty of proof of work.
    DifficultyTests,
    /// The Merkle Patricia trie.
    TrieTests,
}

impl Suite {
    /// The suite of a file, by the outermost of its folders that names one.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        path.iter().find_map(|folder| match folder.to_str()? {
            "BlockchainTests" => Some(Some(Self::BlockchainTests)),
            "GeneralStateTests" | "StateTests" => Some(Some(Self::GeneralStateTests)),
            "TransactionTests" => Some(Some(Self::TransactionTests)),
            "RLPTests" => Some(Some(Self::RlpTests)),
            "DifficultyTests" => Some(Some(Self::DifficultyTests)),
            "TrieTests" => Some(Some(Self::TrieTests)),
            // Tests of other suites lie below, in folders of the same names.
            "EOFTests" | "src" => Some(None),
            _ => None,
        })?
    }
}

/// How one case ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// As the test says.
    Passed,
    /// Not run, for this reason.
    Skipped(&'static str),
    /// Otherwise.
    Failed(String),
}

/// A case of a file, by name, and how it ended.
pub type CaseResult = (String, Verdict);

/// Runs all cases of a file.
///
/// A file that cannot be read as tests of its suite, or that causes a panic, is
/// one failed case.
#[must_use]
pub fn run_file(suite: Suite, path: &Path, content: &[u8]) -> Vec<CaseResult> {
    let run = || match suite {
        Suite::BlockchainTests => blockchain::run(path, content),
        Suite::GeneralStateTests => state::run(path, content),
        Suite::TransactionTests => transaction::run(path, content),
        Suite::RlpTests => rlp::run(content),
        Suite::DifficultyTests => difficulty::run(content),
        Suite::TrieTests => trie::run(path, content),
    };
    let failed = |reason: String| vec![("(file)".to_owned(), Verdict::Failed(reason))];
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(cases)) => cases,
        Ok(Err(error)) => failed(format!("not a test of its suite: {error}")),
        Err(panic) => {
            let reason = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("for an unknown reason");
            failed(format!("panicked: {reason}"))
        }
    }
}

/// Runs files in parallel. `read` gives the content of the file at a path;
/// `progress` hears the number of files that are done.
pub fn run_all<P: AsRef<Path> + Sync>(
    paths: &[P],
    read: impl Fn(&P) -> std::io::Result<Vec<u8>> + Sync,
    progress: impl Fn(usize) + Sync,
) -> Report {
    let shared = Mutex::new((0, Report::default()));
    paths.par_iter().for_each(|path| {
        let name = path.as_ref();
        let Some(suite) = Suite::of(name) else {
            return;
        };
        let cases = match read(path) {
            Ok(content) => run_file(suite, name, &content),
            Err(error) => vec![("(file)".to_owned(), Verdict::Failed(error.to_string()))],
        };
        let mut shared = shared
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        shared.1.add(suite, name, cases);
        shared.0 += 1;
        progress(shared.0);
    });
    let (_, report) = shared
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    report
}
