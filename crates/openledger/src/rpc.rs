//! A small Ethereum JSON-RPC client: what commands and the set-up of `up` need
//! to read the chain and to send signed transactions. The same path for a
//! running instance and for a chain opened only for one command.

use alloy_consensus::{SignableTransaction, TxEip1559, TxEnvelope};
use alloy_eips::eip2718::Encodable2718;
use alloy_primitives::{Address, B256, Bytes, Log, TxKind, U256, hex};
use alloy_signer::SignerSync;
use alloy_signer_local::PrivateKeySigner;
use alloy_sol_types::SolCall;
use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use crate::http::agent;

/// Largest answer read from a node, in bytes.
const ANSWER_SIZE_BYTES_MAX: u64 = 64 << 20;

/// A connection to one node.
#[derive(Debug, Clone)]
pub(crate) struct Rpc {
    agent: ureq::Agent,
    url: String,
}

/// A log as the node gives it.
#[derive(Debug, Clone)]
pub(crate) struct FoundLog {
    pub(crate) log: Log,
    pub(crate) tx_hash: B256,
    pub(crate) block: u64,
}

impl Rpc {
    /// A client of the node at `url`; no connection is made yet.
    pub(crate) fn new(url: &str) -> Self {
        Self {
            agent: agent(),
            url: url.to_owned(),
        }
    }

    /// Calls a method.
    ///
    /// # Errors
    /// If the node cannot be reached, or its own error.
    pub(crate) fn request(&self, method: &str, params: &Value) -> anyhow::Result<Value> {
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        let mut answer: Value = self
            .agent
            .post(&self.url)
            .send_json(&body)
            .and_then(|mut answer| {
                answer
                    .body_mut()
                    .with_config()
                    .limit(ANSWER_SIZE_BYTES_MAX)
                    .read_json()
            })
            .with_context(|| format!("could not reach the node at {}", self.url))?;
        if let Some(error) = answer.get("error") {
            let message = error["message"].as_str().unwrap_or("unknown error");
            bail!("{method}: {message}");
        }
        Ok(answer["result"].take())
    }

    pub(crate) fn chain_id(&self) -> anyhow::Result<u64> {
        quantity(&self.request("eth_chainId", &json!([]))?)
    }

    pub(crate) fn balance(&self, account: Address) -> anyhow::Result<U256> {
        let result = self.request("eth_getBalance", &json!([account, "latest"]))?;
        result
            .as_str()
            .and_then(|text| text.parse().ok())
            .context("the node gave no balance")
    }

    pub(crate) fn code(&self, account: Address) -> anyhow::Result<Bytes> {
        bytes(&self.request("eth_getCode", &json!([account, "latest"]))?)
    }

    /// Calls a view function.
    pub(crate) fn call<C: SolCall>(&self, to: Address, call: &C) -> anyhow::Result<C::Return> {
        let params = json!([{"to": to, "data": hex::encode_prefixed(call.abi_encode())}, "latest"]);
        let output = bytes(
            &self
                .request("eth_call", &params)
                .with_context(|| C::SIGNATURE)?,
        )?;
        C::abi_decode_returns(&output)
            .with_context(|| format!("{} gave an unknown answer", C::SIGNATURE))
    }

    /// Number of the newest block.
    pub(crate) fn block_number(&self) -> anyhow::Result<u64> {
        quantity(&self.request("eth_blockNumber", &json!([]))?)
    }

    /// Time of the newest block, in Unix seconds.
    pub(crate) fn block_time_s(&self) -> anyhow::Result<u64> {
        let block = self.request("eth_getBlockByNumber", &json!(["latest", false]))?;
        quantity(&block["timestamp"])
    }

    /// Logs of one contract, of any event, whose first indexed field is `topic`.
    pub(crate) fn logs(&self, contract: Address, topic: B256) -> anyhow::Result<Vec<FoundLog>> {
        self.find_logs(&json!([{
            "address": contract,
            "fromBlock": "earliest",
            "toBlock": "latest",
            "topics": [null, topic],
        }]))
    }

    /// Logs of one event of one contract in the blocks `first` to `last`.
    pub(crate) fn events(
        &self,
        contract: Address,
        event: B256,
        first: u64,
        last: u64,
    ) -> anyhow::Result<Vec<FoundLog>> {
        self.find_logs(&json!([{
            "address": contract,
            "fromBlock": format!("{first:#x}"),
            "toBlock": format!("{last:#x}"),
            "topics": [event],
        }]))
    }

    fn find_logs(&self, filter: &Value) -> anyhow::Result<Vec<FoundLog>> {
        let found = self.request("eth_getLogs", filter)?;
        let logs = found.as_array().context("the node gave no list of logs")?;
        logs.iter()
            .map(|log| {
                let contract = log["address"].as_str().and_then(|text| text.parse().ok());
                let topics = log["topics"].as_array().context("a log without topics")?;
                let topics = topics.iter().map(hash).collect::<anyhow::Result<_>>()?;
                Ok(FoundLog {
                    log: Log::new_unchecked(
                        contract.context("a log without address")?,
                        topics,
                        bytes(&log["data"])?,
                    ),
                    tx_hash: hash(&log["transactionHash"])?,
                    block: quantity(&log["blockNumber"])?,
                })
            })
            .collect()
    }

    /// Signs and sends a call; returns when it is in a block.
    ///
    /// # Errors
    /// If the node refuses it, or it reverts: the message names the function.
    pub(crate) fn send<C: SolCall>(
        &self,
        signer: &PrivateKeySigner,
        to: Address,
        value_wei: U256,
        call: &C,
    ) -> anyhow::Result<B256> {
        self.send_bytes(signer, to, value_wei, call.abi_encode().into())
            .with_context(|| C::SIGNATURE)
    }

    fn send_bytes(
        &self,
        signer: &PrivateKeySigner,
        to: Address,
        value_wei: U256,
        input: Bytes,
    ) -> anyhow::Result<B256> {
        let from = signer.address();
        let request = json!({"from": from, "to": to, "value": value_wei, "data": input});
        let gas = quantity(&self.request("eth_estimateGas", &json!([request]))?)?;
        let nonce = quantity(&self.request("eth_getTransactionCount", &json!([from, "pending"]))?)?;
        let gas_price = quantity(&self.request("eth_gasPrice", &json!([]))?)?;
        let transaction = TxEip1559 {
            chain_id: self.chain_id()?,
            nonce,
            gas_limit: gas + gas / 10,
            max_fee_per_gas: u128::from(gas_price) * 2,
            max_priority_fee_per_gas: 0,
            to: TxKind::Call(to),
            value: value_wei,
            access_list: Default::default(),
            input,
        };
        let signature = signer.sign_hash_sync(&transaction.signature_hash())?;
        let envelope = TxEnvelope::from(transaction.into_signed(signature));
        let raw = hex::encode_prefixed(envelope.encoded_2718());
        let tx_hash = hash(&self.request("eth_sendRawTransaction", &json!([raw]))?)?;
        self.check_done(tx_hash)?;
        Ok(tx_hash)
    }

    /// The node answers a transaction when its block is on disk, so its receipt
    /// is there at once.
    fn check_done(&self, tx_hash: B256) -> anyhow::Result<()> {
        let receipt = self.request("eth_getTransactionReceipt", &json!([tx_hash]))?;
        ensure!(
            !receipt.is_null(),
            "the node took transaction {tx_hash} and has no receipt of it"
        );
        ensure!(
            quantity(&receipt["status"])? == 1,
            "transaction {tx_hash} reverted"
        );
        Ok(())
    }
}

/// A number of an answer.
///
/// # Errors
/// If it is none, or does not fit.
pub(crate) fn quantity(value: &Value) -> anyhow::Result<u64> {
    value
        .as_str()
        .and_then(|text| text.strip_prefix("0x"))
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .with_context(|| format!("the node gave {value} for a number"))
}

fn bytes(value: &Value) -> anyhow::Result<Bytes> {
    value
        .as_str()
        .and_then(|text| text.parse().ok())
        .context("the node gave no bytes")
}

fn hash(value: &Value) -> anyhow::Result<B256> {
    value
        .as_str()
        .and_then(|text| text.parse().ok())
        .context("the node gave no hash")
}
