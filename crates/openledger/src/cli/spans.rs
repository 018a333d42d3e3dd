//! `openledger datanet spans`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub(crate) enum SpansCommand {
    /// Build the index of a version of a datanet
    ///
    /// Only records that no earlier index has are read and sorted; the rest is
    /// shared. Stop it at any time: the next call goes on with what was finished.
    ///
    ///   openledger datanet spans build legal
    Build {
        #[command(flatten)]
        version: SpansVersion,
        /// Memory for sorting, in MiB; the smaller, the more files
        #[arg(long, value_name = "MIB", default_value_t = 1024,
              value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
        memory_mib: u32,
    },
    /// Read an index whole and check every hash, suffix array and table
    Verify {
        #[command(flatten)]
        version: SpansVersion,
    },
    /// Find the spans of a text, who holds them, and what they would be paid by
    ///
    ///   openledger datanet spans query legal "governed by the laws of the State of"
    ///   openledger datanet spans query legal --file answer.txt --json
    Query {
        #[command(flatten)]
        version: SpansVersion,
        /// The text
        #[arg(required_unless_present = "file", conflicts_with = "file")]
        text: Option<String>,
        /// File with the text, at most 1 MiB of UTF-8
        #[arg(long)]
        file: Option<PathBuf>,
    },
}

/// Which version of which datanet.
#[derive(Debug, Args)]
pub(crate) struct SpansVersion {
    /// Datanet
    pub(crate) name: String,
    /// Its version [default: the newest]
    #[arg(long)]
    pub(crate) version: Option<u64>,
}
