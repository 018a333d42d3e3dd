//! Headers, bodies, receipts and their indices.

use alloy_eips::eip2718::{Decodable2718, Encodable2718};
use alloy_primitives::{Address, B256, Bytes};
use alloy_rlp::Decodable;
use ol_evm::{Header, Recovered, Transaction, TransactionReceipt};
use signet_libmdbx::{Rw, TransactionKind};

use super::{StoreError, Txn, array};

/// A block and what it left.
#[derive(Debug)]
pub(crate) struct StoredBlock<'a> {
    /// Its header.
    pub(crate) header: &'a Header,
    /// Hash of the header.
    pub(crate) hash: B256,
    /// Its transactions, in order.
    pub(crate) transactions: &'a [Recovered<Transaction>],
    /// One receipt for each.
    pub(crate) receipts: &'a [TransactionReceipt],
}

impl<K: TransactionKind> Txn<K> {
    /// A header and its hash.
    pub(crate) fn header(&self, number: u64) -> Result<Option<(Header, B256)>, StoreError> {
        self.get(self.tables.headers, &number.to_be_bytes())?
            .map(|bytes| decode_header(&bytes))
            .transpose()
    }

    /// The newest header and its hash.
    pub(crate) fn head(&self) -> Result<(Header, B256), StoreError> {
        let mut cursor = self.tx.cursor(self.tables.headers)?;
        let last = cursor.last::<Vec<u8>, Vec<u8>>()?;
        let (_, bytes) = last.ok_or_else(|| StoreError::corrupt("there is no block"))?;
        decode_header(&bytes)
    }

    /// The number of the block with a hash.
    pub(crate) fn block_number(&self, hash: B256) -> Result<Option<u64>, StoreError> {
        self.get(self.tables.block_numbers, hash.as_slice())?
            .map(|bytes| Ok(u64::from_be_bytes(array("a block number", &bytes)?)))
            .transpose()
    }

    /// The transactions of a block, with their senders.
    pub(crate) fn body(&self, number: u64) -> Result<Vec<Recovered<Transaction>>, StoreError> {
        let damaged = || StoreError::corrupt(format!("the body of block {number}"));
        let bytes = self
            .get(self.tables.bodies, &number.to_be_bytes())?
            .ok_or_else(damaged)?;
        let items = Vec::<Bytes>::decode(&mut bytes.as_ref()).map_err(|_| damaged())?;
        items
            .iter()
            .map(|item| {
                let (sender, raw) = item.split_at_checked(20).ok_or_else(damaged)?;
                let transaction = Transaction::decode_2718_exact(raw).map_err(|_| damaged())?;
                let sender = Address::from_slice(sender);
                Ok(Recovered::new_unchecked(transaction, sender))
            })
            .collect()
    }

    /// The receipts of a block.
    pub(crate) fn receipts(&self, number: u64) -> Result<Vec<TransactionReceipt>, StoreError> {
        let damaged = || StoreError::corrupt(format!("the receipts of block {number}"));
        let bytes = self
            .get(self.tables.receipts, &number.to_be_bytes())?
            .ok_or_else(damaged)?;
        let items = Vec::<Bytes>::decode(&mut bytes.as_ref()).map_err(|_| damaged())?;
        items
            .iter()
            .map(|item| TransactionReceipt::decode_2718_exact(item).map_err(|_| damaged()))
            .collect()
    }

    /// Block and position of a transaction.
    pub(crate) fn transaction_place(&self, hash: B256) -> Result<Option<(u64, usize)>, StoreError> {
        let Some(bytes) = self.get(self.tables.transactions, hash.as_slice())? else {
            return Ok(None);
        };
        let bytes: [u8; 12] = array("the place of a transaction", &bytes)?;
        let (number, position) = bytes.split_at(8);
        let number = u64::from_be_bytes(array("a block number", number)?);
        let position = u32::from_be_bytes(array("a position", position)?);
        let position = usize::try_from(position)
            .map_err(|_| StoreError::corrupt("the place of a transaction"))?;
        Ok(Some((number, position)))
    }
}

impl Txn<Rw> {
    /// Adds the next block.
    pub(crate) fn append(&self, block: &StoredBlock<'_>) -> Result<(), StoreError> {
        let tables = self.tables;
        let number = block.header.number.to_be_bytes();
        let mut header = block.hash.to_vec();
        alloy_rlp::Encodable::encode(block.header, &mut header);
        let body: Vec<Bytes> = block
            .transactions
            .iter()
            .map(|transaction| {
                let mut item = transaction.signer().to_vec();
                transaction.inner().encode_2718(&mut item);
                item.into()
            })
            .collect();
        let receipts: Vec<Bytes> = block
            .receipts
            .iter()
            .map(|receipt| receipt.encoded_2718().into())
            .collect();
        self.put(tables.headers, &number, &header)?;
        self.put(tables.bodies, &number, &alloy_rlp::encode(body))?;
        self.put(tables.receipts, &number, &alloy_rlp::encode(receipts))?;
        self.put(tables.block_numbers, block.hash.as_slice(), &number)?;
        for (position, transaction) in (0_u32..).zip(block.transactions) {
            let hash = transaction.inner().trie_hash();
            let place = [&number[..], &position.to_be_bytes()].concat();
            self.put(tables.transactions, hash.as_slice(), &place)?;
        }
        let logs = block.receipts.iter().flat_map(|receipt| receipt.logs());
        self.index_logs(block.header.number, logs)
    }

    /// Removes the newest block and its indices.
    pub(super) fn remove_block(&self, number: u64) -> Result<(), StoreError> {
        let tables = self.tables;
        let (_, hash) = self
            .header(number)?
            .ok_or_else(|| StoreError::corrupt(format!("block {number} is missing")))?;
        for transaction in self.body(number)? {
            self.delete(tables.transactions, transaction.tx_hash().as_slice())?;
        }
        let key = number.to_be_bytes();
        for table in [tables.headers, tables.bodies, tables.receipts] {
            self.delete(table, &key)?;
        }
        self.delete(tables.block_numbers, hash.as_slice())?;
        self.delete_beside(number)?;
        self.unindex_logs(number)
    }
}

fn decode_header(bytes: &[u8]) -> Result<(Header, B256), StoreError> {
    let damaged = || StoreError::corrupt("a header");
    let (hash, mut rlp) = bytes.split_at_checked(32).ok_or_else(damaged)?;
    let header = Header::decode(&mut rlp).map_err(|_| damaged())?;
    Ok((header, B256::from_slice(hash)))
}
