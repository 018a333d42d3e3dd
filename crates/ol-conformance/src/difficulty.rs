//! `DifficultyTests`: the difficulty of proof of work.

use std::collections::BTreeMap;

use alloy_primitives::{B256, U256};
use ol_evm::{EthereumHardfork, Header, header};
use serde_json::Value;

use crate::fields::{self, FieldError};
use crate::{CaseResult, Verdict, network};

/// Hash of the RLP of an empty list of ommers is the default of a header; any
/// other stands for a parent with ommers.
const SOME_OMMERS: B256 = B256::repeat_byte(1);

pub(crate) fn run(content: &[u8]) -> Result<Vec<CaseResult>, FieldError> {
    let tests: BTreeMap<String, BTreeMap<String, Value>> = serde_json::from_slice(content)?;
    let mut cases = Vec::new();
    for (network_name, group) in tests.values().flatten() {
        let Some(fork) = network::fork(network_name) else {
            continue;
        };
        let steps: BTreeMap<String, BTreeMap<String, String>> =
            serde_json::from_value(group.clone())?;
        for (name, step) in &steps {
            cases.push((format!("{name} {network_name}"), run_case(fork, step)?));
        }
    }
    Ok(cases)
}

fn run_case(
    fork: EthereumHardfork,
    step: &BTreeMap<String, String>,
) -> Result<Verdict, FieldError> {
    let text = |field: &str| {
        step.get(field)
            .map(String::as_str)
            .ok_or_else(|| FieldError::text(field, "field of the test"))
    };
    let mut parent = Header {
        number: fields::number(text("currentBlockNumber")?)?.saturating_sub(1),
        timestamp: fields::number(text("parentTimestamp")?)?,
        difficulty: fields::quantity(text("parentDifficulty")?)?,
        ..Header::default()
    };
    if fields::quantity(text("parentUncles")?)? != U256::ZERO {
        parent.ommers_hash = SOME_OMMERS;
    }
    let timestamp_s = fields::number(text("currentTimestamp")?)?;
    let found = header::next_difficulty(&parent, timestamp_s, fork);
    let expected = fields::quantity(text("currentDifficulty")?)?;
    if found == expected {
        return Ok(Verdict::Passed);
    }
    Ok(Verdict::Failed(format!(
        "difficulty {found}, expected {expected}"
    )))
}
