//! What an experiment consists of: everything that its numbers depend on.

use anyhow::{Context, ensure};
use ol_types::{B256, keccak256};
use serde::{Deserialize, Serialize};

/// How adapters are retrained and what is measured on them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Setting {
    /// Records of the datanet that may be trained on, at random.
    pub(crate) records: usize,
    /// Records are cut to this many tokens.
    pub(crate) cut: usize,
    /// Passes over the records that are left in.
    pub(crate) epochs: u32,
    pub(crate) learning_rate: f32,
    pub(crate) batch_tokens: usize,
    pub(crate) rank: usize,
    /// Records that are never trained on and whose losses are measured.
    pub(crate) held_out: usize,
    /// Records that may be trained on and whose losses are measured too.
    pub(crate) own: usize,
    /// Random halves of the records.
    pub(crate) halves: usize,
    /// Trainings of each half: initial adapter and order of the records.
    pub(crate) half_seeds: usize,
    /// The largest contributors, each left out in turn.
    pub(crate) contributors: usize,
    /// Trainings without each of them, and with all.
    pub(crate) contributor_seeds: usize,
}

impl Default for Setting {
    fn default() -> Self {
        Self {
            records: 320,
            cut: 96,
            epochs: 3,
            learning_rate: 3e-3,
            batch_tokens: 1024,
            rank: 8,
            held_out: 100,
            own: 100,
            halves: 128,
            half_seeds: 2,
            contributors: 24,
            contributor_seeds: 4,
        }
    }
}

impl Setting {
    /// The default, with the fields that `json` has.
    pub(crate) fn from_json(json: &str) -> anyhow::Result<Self> {
        let setting: Self = serde_json::from_str(json).context("the setting")?;
        ensure!(
            setting.cut >= 16 && setting.epochs > 0 && setting.rank > 0 && setting.half_seeds > 0,
            "a setting of nothing"
        );
        Ok(setting)
    }

    /// Names an experiment: the setting, the base and the records. How many
    /// retrainings there are does not count, so that an experiment can grow.
    pub(crate) fn hash(&self, base: B256, records: &[u8]) -> B256 {
        let of_any_size = Self {
            halves: 0,
            half_seeds: 0,
            contributors: 0,
            contributor_seeds: 0,
            ..self.clone()
        };
        let mut bytes = serde_json::to_vec(&of_any_size).expect("numbers are JSON");
        bytes.extend(base.as_slice());
        bytes.extend(keccak256(records).as_slice());
        keccak256(bytes)
    }
}
