//! Blocks as they travel between nodes; see `specs/blocks.md`.

use alloy_consensus::Block;
use alloy_primitives::{Bytes, Signature};
use alloy_rlp::Decodable;
use ol_evm::{Header, Transaction};

use crate::Node;
use crate::query::QueryError;

/// Largest block: more than 60 million gas can buy at the calldata floor price
/// of EIP-7623 (10 gas a byte), headers and framing included.
pub const BLOCK_MAX_SIZE_BYTES: usize = 8 << 20;

/// A block and its signature, as bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WireBlock {
    /// The block: RLP of header, transactions, ommers and withdrawals.
    pub rlp: Bytes,
    /// The sequencer's signature; none for block 0 and for blocks of a chain
    /// with Ethereum's rules.
    pub signature: Option<Signature>,
}

impl WireBlock {
    /// Encodes a block.
    #[must_use]
    pub fn new(block: &Block<Transaction>, signature: Option<Signature>) -> Self {
        Self {
            rlp: alloy_rlp::encode(block).into(),
            signature,
        }
    }

    /// The header alone, without a look at the rest.
    ///
    /// # Errors
    /// If the bytes do not begin with a block's header.
    pub fn header(&self) -> Result<Header, alloy_rlp::Error> {
        let mut payload = alloy_rlp::Header::decode_bytes(&mut self.rlp.as_ref(), true)?;
        Header::decode(&mut payload)
    }

    /// The whole block; every byte belongs to it.
    ///
    /// # Errors
    /// If the bytes are no block, or not as the block is encoded: the decoder
    /// alone does not look at the length before a typed transaction.
    pub fn decode(&self) -> Result<Block<Transaction>, alloy_rlp::Error> {
        let block = Block::decode(&mut self.rlp.as_ref())?;
        if alloy_rlp::encode(&block) == self.rlp {
            Ok(block)
        } else {
            Err(alloy_rlp::Error::UnexpectedLength)
        }
    }
}

impl Node {
    /// Blocks of this chain from number `first` on, in order: at most
    /// `n_blocks_max`, and no more once they have `size_max_bytes`, but one if
    /// there is one. Empty above the head.
    ///
    /// # Errors
    /// [`QueryError::Store`].
    pub fn wire_blocks(
        &self,
        first: u64,
        n_blocks_max: usize,
        size_max_bytes: usize,
    ) -> Result<Vec<WireBlock>, QueryError> {
        let txn = self.shared.store.read()?;
        let mut blocks = Vec::new();
        let mut size_bytes = 0_usize;
        for number in (first..=u64::MAX).take(n_blocks_max) {
            let Some(block) = txn.wire_block(number)? else {
                break;
            };
            size_bytes = size_bytes.saturating_add(block.rlp.len());
            if size_bytes > size_max_bytes && !blocks.is_empty() {
                break;
            }
            blocks.push(block);
        }
        Ok(blocks)
    }
}
