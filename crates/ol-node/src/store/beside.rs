//! What belongs to a block besides its header, transactions and receipts: the
//! signature, which OpenLedger's blocks have, and ommers and withdrawals,
//! which Ethereum's may have.

use alloy_consensus::{Block, BlockBody};
use alloy_eips::eip4895::Withdrawals;
use alloy_primitives::{B256, Signature, U256};
use alloy_rlp::Decodable;
use ol_evm::{Header, Recovered, Transaction};
use signet_libmdbx::{Rw, TransactionKind};

use super::{StoreError, Txn, array};
use crate::wire::WireBlock;

impl<K: TransactionKind> Txn<K> {
    /// The header of a block that must be there, and its hash.
    pub(crate) fn known_header(&self, number: u64) -> Result<(Header, B256), StoreError> {
        self.header(number)?
            .ok_or_else(|| StoreError::corrupt(format!("block {number} lacks a header")))
    }

    /// The signature of a block, if it has one.
    pub(crate) fn signature(&self, number: u64) -> Result<Option<Signature>, StoreError> {
        let Some(bytes) = self.get(self.tables.signatures, &number.to_be_bytes())? else {
            return Ok(None);
        };
        let bytes: [u8; 65] = array("a block signature", &bytes)?;
        Signature::from_raw_array(&bytes)
            .map(Some)
            .map_err(|error| StoreError::corrupt(format!("a block signature: {error}")))
    }

    /// The ommers and withdrawals of a block.
    pub(crate) fn ommers_and_withdrawals(
        &self,
        number: u64,
    ) -> Result<(Vec<Header>, Option<Withdrawals>), StoreError> {
        let Some(bytes) = self.get(self.tables.ommers, &number.to_be_bytes())? else {
            return Ok((Vec::new(), None));
        };
        let body = BlockBody::<Transaction>::decode(&mut bytes.as_ref())
            .map_err(|error| StoreError::corrupt(format!("ommers of a block: {error}")))?;
        Ok((body.ommers, body.withdrawals))
    }

    /// Difficulty of an Ethereum chain's blocks up to and with this one; zero
    /// on ours, and for block 0, whose header says it.
    pub(crate) fn total_difficulty(&self, number: u64) -> Result<U256, StoreError> {
        self.get(self.tables.total_difficulties, &number.to_be_bytes())?
            .map_or(Ok(U256::ZERO), |bytes| {
                let bytes = array("a total difficulty", &bytes)?;
                Ok(U256::from_be_bytes::<32>(bytes))
            })
    }

    /// A block as it travels between nodes, if there is one.
    pub(crate) fn wire_block(&self, number: u64) -> Result<Option<WireBlock>, StoreError> {
        let Some((header, _)) = self.header(number)? else {
            return Ok(None);
        };
        let (ommers, withdrawals) = self.ommers_and_withdrawals(number)?;
        let transactions = self.body(number)?.into_iter().map(Recovered::into_inner);
        let body = BlockBody {
            transactions: transactions.collect(),
            ommers,
            // Not stored where there are none.
            withdrawals: withdrawals.or(header.withdrawals_root.map(|_| Withdrawals::default())),
        };
        let block = Block { header, body };
        Ok(Some(WireBlock::new(&block, self.signature(number)?)))
    }
}

impl Txn<Rw> {
    /// Puts a signature beside a block.
    pub(crate) fn set_signature(
        &self,
        number: u64,
        signature: &Signature,
    ) -> Result<(), StoreError> {
        let key = number.to_be_bytes();
        self.put(self.tables.signatures, &key, &signature.as_bytes())
    }

    /// Puts ommers and withdrawals beside a block, if there are any.
    pub(crate) fn set_ommers_and_withdrawals(
        &self,
        number: u64,
        ommers: &[Header],
        withdrawals: Option<&Withdrawals>,
    ) -> Result<(), StoreError> {
        let withdrawals = withdrawals.filter(|list| !list.is_empty());
        if ommers.is_empty() && withdrawals.is_none() {
            return Ok(());
        }
        let body = BlockBody::<Transaction> {
            transactions: Vec::new(),
            ommers: ommers.to_vec(),
            withdrawals: withdrawals.cloned(),
        };
        self.put(
            self.tables.ommers,
            &number.to_be_bytes(),
            &alloy_rlp::encode(body),
        )
    }

    /// Notes the total difficulty of an Ethereum chain's block.
    pub(crate) fn set_total_difficulty(&self, number: u64, total: U256) -> Result<(), StoreError> {
        let key = number.to_be_bytes();
        self.put(
            self.tables.total_difficulties,
            &key,
            &total.to_be_bytes::<32>(),
        )
    }
    /// Forgets what is beside a block.
    pub(crate) fn delete_beside(&self, number: u64) -> Result<(), StoreError> {
        let key = number.to_be_bytes();
        self.delete(self.tables.signatures, &key)?;
        self.delete(self.tables.total_difficulties, &key)?;
        self.delete(self.tables.ommers, &key)
    }
}
