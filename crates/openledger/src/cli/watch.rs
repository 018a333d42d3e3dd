//! `openledger watch` and `bond`: the two sides of a claim.

use std::path::PathBuf;

use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    /// File with the key that pays for challenges; without one, lies are only reported
    #[arg(long, value_name = "FILE", env = "OPENLEDGER_WATCH_KEY_FILE")]
    pub(crate) key: Option<PathBuf>,
    /// Report what would be done, and do nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Check what is there and end: status 0 if all is right, 3 if a lie was found
    #[arg(long)]
    pub(crate) once: bool,
    /// Begin at this block instead of where the last watch ended
    #[arg(long, value_name = "BLOCK")]
    pub(crate) from: Option<u64>,
    /// Seconds between two looks at the chain
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) every: u64,
}

#[derive(Debug, Args)]
pub(crate) struct BondArgs {
    /// Take so much of what is free back to the account: an amount, as 1.25, or `all`
    #[arg(long, value_name = "OPEN")]
    pub(crate) take: Option<String>,
    /// File with the operator's key [default: the development operator's]
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
}
