//! The two ways in which training pays contributors.

use anyhow::ensure;
use ol_poa::court::{COURT_CONTRIBUTORS_MAX, COURT_ENTRIES_MAX, CommittedIndex};
use ol_poa::{ENTRIES_MAX, Index};
use ol_types::B256;
use serde::{Deserialize, Serialize};

/// How contributors of a model are paid by training (`docs/attribution.md`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Tier {
    /// The chain computes every score and pays at once: up to 16,384 records
    #[default]
    Exact,
    /// The operator claims who is paid, backed by a bond, and it is paid after 12
    /// hours in which nobody refuted it: up to 1,048,576 records
    Optimistic,
}

impl Tier {
    /// The tier of a model with so many records, if it was asked for this one.
    ///
    /// # Errors
    /// If they do not fit.
    pub(super) fn of(
        asked: Option<Self>,
        n_records: usize,
        n_contributors: usize,
    ) -> anyhow::Result<Self> {
        let tier = asked.unwrap_or(if n_records > ENTRIES_MAX {
            Self::Optimistic
        } else {
            Self::Exact
        });
        match tier {
            Self::Exact => ensure!(
                n_records <= ENTRIES_MAX,
                "{n_records} records do not fit on chain, {ENTRIES_MAX} do; with `--tier optimistic` \
                 up to {COURT_ENTRIES_MAX} are committed to"
            ),
            Self::Optimistic => {
                ensure!(
                    n_records <= COURT_ENTRIES_MAX,
                    "{n_records} records, at most {COURT_ENTRIES_MAX} fit an index"
                );
                ensure!(
                    n_contributors <= COURT_CONTRIBUTORS_MAX,
                    "{n_contributors} contributors, at most {COURT_CONTRIBUTORS_MAX} fit a claim"
                );
            }
        }
        Ok(tier)
    }

    /// What a model names an index by on chain.
    pub(super) fn root(self, index: &Index) -> anyhow::Result<B256> {
        Ok(match self {
            Self::Exact => index.root(),
            Self::Optimistic => CommittedIndex::new(index.clone())?.id(),
        })
    }
}
