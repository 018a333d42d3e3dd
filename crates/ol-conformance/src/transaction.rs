//! `TransactionTests`: raw transactions, fork by fork.

use std::collections::BTreeMap;
use std::path::Path;

use alloy_eips::eip2718::Decodable2718;
use alloy_primitives::{Address, B256};
use ol_evm::{Transaction, check_transaction};
use serde::Deserialize;

use crate::fields::{self, FieldError};
use crate::{CaseResult, Verdict, network, skip};

#[derive(Debug, Deserialize)]
struct TransactionTest {
    result: BTreeMap<String, Expected>,
    txbytes: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Expected {
    exception: Option<String>,
    hash: Option<B256>,
    sender: Option<Address>,
    intrinsic_gas: Option<String>,
}

pub(crate) fn run(path: &Path, content: &[u8]) -> Result<Vec<CaseResult>, FieldError> {
    let tests: BTreeMap<String, TransactionTest> = serde_json::from_slice(content)?;
    let mut cases = Vec::new();
    for (name, test) in &tests {
        for (network_name, expected) in &test.result {
            let verdict = match skip::reason(path, network_name) {
                Some(reason) => Verdict::Skipped(reason),
                None => run_case(network_name, &test.txbytes, expected)?,
            };
            cases.push((format!("{name} {network_name}"), verdict));
        }
    }
    Ok(cases)
}

fn run_case(network_name: &str, raw: &str, expected: &Expected) -> Result<Verdict, FieldError> {
    let Some(fork) = network::fork(network_name) else {
        return Ok(Verdict::Failed(format!("unknown network {network_name}")));
    };
    let raw = fields::bytes(raw)?;
    let checked = Transaction::decode_2718_exact(&raw)
        .map_err(|error| error.to_string())
        .and_then(|transaction| {
            check_transaction(transaction, network::CHAIN_ID, fork)
                .map_err(|error| error.to_string())
        });
    let failed = |what: String| Ok(Verdict::Failed(what));
    match (checked, &expected.exception) {
        (Err(_), Some(_)) => Ok(Verdict::Passed),
        (Ok(_), Some(exception)) => failed(format!("valid, expected {exception}")),
        (Err(reason), None) => failed(format!("invalid: {reason}")),
        (Ok((transaction, gas)), None) => {
            if Some(transaction.inner().tx_hash()) != expected.hash {
                return failed("another hash".to_owned());
            }
            if Some(transaction.signer()) != expected.sender {
                return failed(format!("sender {}", transaction.signer()));
            }
            let intrinsic_gas = expected.intrinsic_gas.as_deref();
            if Some(gas) != intrinsic_gas.map(fields::number).transpose()? {
                return failed(format!("intrinsic gas {gas}"));
            }
            Ok(Verdict::Passed)
        }
    }
}
