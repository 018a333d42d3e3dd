//! A small chain and wallets for it.

use std::path::Path;
use std::sync::Arc;

use alloy_consensus::{SignableTransaction, TxEip1559};
use alloy_eips::eip2718::Encodable2718;
use alloy_primitives::{Address, B256, Signature, TxKind, U256};
use alloy_signer::SignerSync;
use alloy_signer_local::PrivateKeySigner;
use ol_node::{Genesis, GenesisAccount, Node, NodeConfig, OpenError};
use ol_runtime::ManualClock;
use op_alloy_consensus::OpTxEnvelope;

pub(crate) const CHAIN_ID: u64 = 161_200;
pub(crate) const START_S: u64 = 1_700_000_000;

/// What every dev account has in block 0.
pub(crate) const FUNDS_WEI: u128 = 1_000_000 * ol_types::WEI_PER_OPEN;

pub(crate) fn genesis() -> Genesis {
    let mut genesis = Genesis::default();
    genesis.config.chain_id = CHAIN_ID;
    genesis.timestamp = START_S;
    for number in 0..5 {
        let account = GenesisAccount {
            balance: U256::from(FUNDS_WEI),
            ..GenesisAccount::default()
        };
        genesis.alloc.insert(Wallet::dev(number).address(), account);
    }
    genesis
}

#[allow(dead_code, reason = "this file is part of several test programs")]
pub(crate) fn open_with(dir: &Path, config: NodeConfig) -> Result<Node, OpenError> {
    let clock = Arc::new(ManualClock::new(START_S + 100));
    Node::open_with(dir, &genesis(), clock, config)
}

#[allow(dead_code, reason = "this file is part of several test programs")]
pub(crate) fn open(dir: &Path) -> Node {
    open_with(dir, NodeConfig::default()).unwrap()
}

/// A key and nothing else.
#[derive(Debug, Clone)]
pub(crate) struct Wallet(PrivateKeySigner);

impl Wallet {
    pub(crate) fn dev(number: usize) -> Self {
        Self(ol_types::DEV_MNEMONIC_KEYS[number].parse().unwrap())
    }

    pub(crate) fn address(&self) -> Address {
        self.0.address()
    }

    #[allow(dead_code, reason = "this file is part of two test programs")]
    pub(crate) fn sign_hash(&self, hash: B256) -> Signature {
        self.0.sign_hash_sync(&hash).unwrap()
    }

    pub(crate) fn sign(&self, transaction: TxEip1559) -> Vec<u8> {
        let signature = self
            .0
            .sign_hash_sync(&transaction.signature_hash())
            .unwrap();
        OpTxEnvelope::from(transaction.into_signed(signature)).encoded_2718()
    }

    pub(crate) fn transfer(&self, nonce: u64, to: Address, value_wei: u128) -> Vec<u8> {
        self.sign(TxEip1559 {
            to: to.into(),
            value: U256::from(value_wei),
            ..template(nonce)
        })
    }

    #[allow(dead_code, reason = "this file is part of several test programs")]
    pub(crate) fn deploy(&self, nonce: u64, init_code: Vec<u8>) -> Vec<u8> {
        self.sign(TxEip1559 {
            to: TxKind::Create,
            input: init_code.into(),
            gas_limit: 8_000_000,
            ..template(nonce)
        })
    }
}

pub(crate) fn template(nonce: u64) -> TxEip1559 {
    TxEip1559 {
        chain_id: CHAIN_ID,
        nonce,
        gas_limit: 100_000,
        max_fee_per_gas: 5_000_000_000,
        max_priority_fee_per_gas: 1_000_000,
        ..TxEip1559::default()
    }
}
