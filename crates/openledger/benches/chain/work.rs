//! The transactions of the race, signed and serialised before anything is timed.

use std::fs;
use std::path::Path;

use alloy_consensus::{SignableTransaction, TxEip1559, TxEnvelope};
use alloy_eips::eip2718::Encodable2718;
use alloy_primitives::{Address, B256, Bytes, TxKind, U256, hex, keccak256};
use alloy_signer::SignerSync;
use alloy_signer_local::PrivateKeySigner;
use alloy_sol_types::{SolCall, SolValue, sol};
use ol_types::{DEV_CHAIN_ID, DEV_MNEMONIC_KEYS, WEI_PER_OPEN};
use serde_json::{Value, json};

use crate::rpc::batch;

/// Accounts that send.
pub(crate) const N_SENDERS: usize = 250;

/// Calls in one batch.
pub(crate) const BATCH: usize = 250;

/// Transactions of one workload, in order, as JSON-RPC takes them.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) raws: Vec<String>,
    pub(crate) hashes: Vec<B256>,
}

/// A serialised batch.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) body: Vec<u8>,
    pub(crate) n_calls: usize,
}

/// Everything that is sent.
#[derive(Debug)]
pub(crate) struct Work {
    /// Gives every sender coins and tokens.
    pub(crate) setup: Load,
    /// Native transfers to accounts that do not exist yet.
    pub(crate) transfers: Load,
    /// Transfers of an OpenZeppelin ERC-20 to accounts that hold none yet.
    pub(crate) tokens: Load,
    /// The ERC-20.
    pub(crate) token: Address,
    /// The accounts that send.
    pub(crate) senders: Vec<Address>,
}

sol! {
    function transfer(address to, uint256 value) external returns (bool);
}

impl Work {
    /// Two loads of `n` transactions, a multiple of the number of senders; the
    /// second follows the first.
    pub(crate) fn sign(n: usize) -> Self {
        let treasury: PrivateKeySigner = DEV_MNEMONIC_KEYS[0].parse().expect("a key");
        let signers: Vec<PrivateKeySigner> = (0..N_SENDERS)
            .map(|i| {
                let key = keccak256(format!("openledger bench sender {i}"));
                PrivateKeySigner::from_bytes(&key).expect("a hash is a key")
            })
            .collect();
        let senders: Vec<Address> = signers.iter().map(PrivateKeySigner::address).collect();

        let mut setup = Load::empty();
        for (nonce, sender) in (0..).zip(&senders) {
            let value = U256::from(10 * WEI_PER_OPEN);
            setup.push(
                &treasury,
                nonce,
                TxKind::Call(*sender),
                value,
                21_000,
                Bytes::new(),
            );
        }
        let nonce = N_SENDERS as u64;
        let token = treasury.address().create(nonce);
        let each = U256::from(1_000_000 * WEI_PER_OPEN);
        let arguments = (senders.clone(), each).abi_encode_params();
        let code = [token_code(), arguments].concat().into();
        setup.push(
            &treasury,
            nonce,
            TxKind::Create,
            U256::ZERO,
            14_000_000,
            code,
        );

        let rounds = n / N_SENDERS;
        let mut transfers = Load::empty();
        let mut tokens = Load::empty();
        for round in 0..rounds {
            for (i, signer) in signers.iter().enumerate() {
                let (coin, holder) = (fresh("coin", round, i), fresh("token", round, i));
                let nonce = round as u64;
                let to = TxKind::Call(coin);
                transfers.push(signer, nonce, to, U256::ONE, 21_000, Bytes::new());
                let call = transferCall {
                    to: holder,
                    value: U256::ONE,
                };
                let (nonce, to) = (nonce + rounds as u64, TxKind::Call(token));
                let input = call.abi_encode().into();
                tokens.push(signer, nonce, to, U256::ZERO, 60_000, input);
            }
        }
        Self {
            setup,
            transfers,
            tokens,
            token,
            senders,
        }
    }
}

impl Load {
    const fn empty() -> Self {
        Self {
            raws: Vec::new(),
            hashes: Vec::new(),
        }
    }

    fn push(
        &mut self,
        signer: &PrivateKeySigner,
        nonce: u64,
        to: TxKind,
        value: U256,
        gas_limit: u64,
        input: Bytes,
    ) {
        let transaction = TxEip1559 {
            chain_id: DEV_CHAIN_ID,
            nonce,
            gas_limit,
            max_fee_per_gas: 1_000_000_000_000,
            max_priority_fee_per_gas: 1_000_000_000,
            to,
            value,
            input,
            ..TxEip1559::default()
        };
        let signature = signer
            .sign_hash_sync(&transaction.signature_hash())
            .expect("a key in memory signs");
        let envelope = TxEnvelope::from(transaction.into_signed(signature));
        self.raws
            .push(hex::encode_prefixed(envelope.encoded_2718()));
        self.hashes.push(*envelope.tx_hash());
    }

    /// Batches for each of `n_connections`. A sender's transactions go over one
    /// connection, in order of their nonces.
    pub(crate) fn batches(&self, n_connections: usize) -> Vec<Vec<Batch>> {
        (0..n_connections)
            .map(|connection| {
                let raws = self.of_connection(&self.raws, connection, n_connections);
                let batches = raws.chunks(BATCH).map(|raws| Batch {
                    body: batch(
                        "eth_sendRawTransaction",
                        raws.iter().map(|raw| json!([raw])),
                    ),
                    n_calls: raws.len(),
                });
                batches.collect()
            })
            .collect()
    }

    /// The last transaction of each sender.
    pub(crate) fn last(&self) -> &[B256] {
        &self.hashes[self.hashes.len() - N_SENDERS..]
    }

    fn of_connection<'a, T>(&self, all: &'a [T], connection: usize, of: usize) -> Vec<&'a T> {
        all.iter()
            .enumerate()
            .filter(|(i, _)| i % N_SENDERS % of == connection)
            .map(|(_, item)| item)
            .collect()
    }
}

/// A batch that asks for the receipts of some transactions.
pub(crate) fn receipts(hashes: &[B256]) -> Vec<u8> {
    batch(
        "eth_getTransactionReceipt",
        hashes.iter().map(|hash| json!([hash])),
    )
}

/// How many of a batch of receipts are those of a success, in a block.
pub(crate) fn n_successes(answer: &[u8]) -> usize {
    let answers: Vec<Value> = serde_json::from_slice(answer).expect("JSON");
    let is_success = |answer: &&Value| {
        let receipt = &answer["result"];
        receipt["status"] == "0x1" && receipt["blockHash"].is_string()
    };
    answers.iter().filter(is_success).count()
}

/// An account that nobody has used.
fn fresh(kind: &str, nonce: usize, sender: usize) -> Address {
    Address::from_word(keccak256(format!("{kind} {nonce} {sender}")))
}

/// Init code of `contracts/clients/Token.sol`.
fn token_code() -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../contracts/cache/clients/out/Token.sol/Token.json");
    let text = fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}; run node clients/build.mjs", path.display()));
    let artifact: Value = serde_json::from_str(&text).expect("forge writes JSON");
    let code = artifact["bytecode"]["object"].as_str().expect("its code");
    hex::decode(code).expect("forge links it")
}
