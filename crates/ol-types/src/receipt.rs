//! The receipt of one paid answer, and its canonical encoding.

use crate::{Address, B256, keccak256};

/// Size of an encoded receipt: seventeen 32-byte words.
pub const RECEIPT_SIZE_BYTES: usize = 17 * 32;

/// What was answered, by what, for whom and at which price; every part by hash.
///
/// The canonical encoding is Solidity's `abi.encode` of the fields in this
/// order (all static, one 32-byte word each), so a contract derives the same
/// id from calldata. See `specs/receipt.md`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// Chain the receipt settles on.
    pub chain_id: u64,
    /// Settlement contract that may charge for it.
    pub settlement: Address,
    /// Account whose prepaid balance pays.
    pub payer: Address,
    /// Chosen by the gateway, unique for ever: the same request never settles twice.
    pub request_id: B256,
    /// Id of the model in the registry: hash of its name.
    pub model_id: B256,
    /// Hash of the base model.
    pub base_hash: B256,
    /// Hash of the adapter.
    pub adapter_hash: B256,
    /// Hash of the training manifest.
    pub manifest_hash: B256,
    /// Merkle root of the record sketches.
    pub sketch_root: B256,
    /// Hash of the prompt: keccak256 of the token ids as big-endian `u32`.
    pub prompt_hash: B256,
    /// Hash of the answer, in the same form.
    pub response_hash: B256,
    /// Hash of the query sketch: keccak256 of its codes, one byte each.
    pub query_hash: B256,
    /// Hash of the evidence: who is paid for spans and context.
    pub evidence_hash: B256,
    /// Tokens of the prompt.
    pub tokens_in: u32,
    /// Tokens of the answer.
    pub tokens_out: u32,
    /// What the payer pays, in wei.
    pub fee_wei: u128,
    /// When the answer was finished: Unix time in seconds.
    pub answered_at_s: u64,
}

/// Why bytes are not a receipt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiptError {
    /// The input has the wrong length.
    #[error("a receipt has {RECEIPT_SIZE_BYTES} bytes, found {found}")]
    Size {
        /// Bytes given.
        found: usize,
    },
    /// A word does not fit its field: it was not made by [`Receipt::encode`].
    #[error("receipt field {field} is out of range")]
    OutOfRange {
        /// Name of the field.
        field: &'static str,
    },
}

impl Receipt {
    /// The receipt's id: keccak256 of [`Receipt::encode`].
    #[must_use]
    pub fn id(&self) -> B256 {
        keccak256(self.encode())
    }

    /// The canonical encoding.
    #[must_use]
    pub fn encode(&self) -> [u8; RECEIPT_SIZE_BYTES] {
        let words = [
            number(self.chain_id.into()),
            self.settlement.into_word(),
            self.payer.into_word(),
            self.request_id,
            self.model_id,
            self.base_hash,
            self.adapter_hash,
            self.manifest_hash,
            self.sketch_root,
            self.prompt_hash,
            self.response_hash,
            self.query_hash,
            self.evidence_hash,
            number(self.tokens_in.into()),
            number(self.tokens_out.into()),
            number(self.fee_wei),
            number(self.answered_at_s.into()),
        ];
        let mut out = [0; RECEIPT_SIZE_BYTES];
        for (slot, word) in out.chunks_exact_mut(32).zip(words) {
            slot.copy_from_slice(word.as_slice());
        }
        out
    }

    /// Reads what [`Receipt::encode`] wrote.
    ///
    /// # Errors
    /// [`ReceiptError`] if the length is wrong or a number or address has bits
    /// set above its width; every accepted input re-encodes to the same bytes.
    #[expect(clippy::missing_panics_doc, reason = "the expectations cannot fail")]
    pub fn decode(bytes: &[u8]) -> Result<Self, ReceiptError> {
        if bytes.len() != RECEIPT_SIZE_BYTES {
            return Err(ReceiptError::Size { found: bytes.len() });
        }
        let word = |index: usize| B256::from_slice(&bytes[index * 32..][..32]);
        let narrow = |index: usize, max: u128, field: &'static str| {
            let word = word(index);
            let (high, low) = word.split_at(16);
            let value = u128::from_be_bytes(low.try_into().expect("half of 32 bytes is 16"));
            if high.iter().any(|&byte| byte != 0) || value > max {
                return Err(ReceiptError::OutOfRange { field });
            }
            Ok(value)
        };
        let long = |index, field| {
            narrow(index, u64::MAX.into(), field)
                .map(|value| u64::try_from(value).expect("checked"))
        };
        let short = |index, field| {
            narrow(index, u32::MAX.into(), field)
                .map(|value| u32::try_from(value).expect("checked"))
        };
        let address = |index: usize, field: &'static str| {
            let word = word(index);
            if word[..12].iter().any(|&byte| byte != 0) {
                return Err(ReceiptError::OutOfRange { field });
            }
            Ok(Address::from_word(word))
        };
        Ok(Self {
            chain_id: long(0, "chain_id")?,
            settlement: address(1, "settlement")?,
            payer: address(2, "payer")?,
            request_id: word(3),
            model_id: word(4),
            base_hash: word(5),
            adapter_hash: word(6),
            manifest_hash: word(7),
            sketch_root: word(8),
            prompt_hash: word(9),
            response_hash: word(10),
            query_hash: word(11),
            evidence_hash: word(12),
            tokens_in: short(13, "tokens_in")?,
            tokens_out: short(14, "tokens_out")?,
            fee_wei: narrow(15, u128::MAX, "fee_wei")?,
            answered_at_s: long(16, "answered_at_s")?,
        })
    }
}

fn number(value: u128) -> B256 {
    let mut word = [0; 32];
    word[16..].copy_from_slice(&value.to_be_bytes());
    B256::from(word)
}

#[cfg(test)]
mod tests;
