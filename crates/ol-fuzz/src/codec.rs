//! Encodings: what is decoded is encoded as it was.

use alloy_consensus::Block;
use alloy_consensus::transaction::SignerRecoverable as _;
use alloy_eips::eip2718::{Decodable2718 as _, Encodable2718 as _};
use alloy_primitives::keccak256;
use alloy_rlp::Decodable as _;
use ol_evm::{Header, Transaction, TransactionReceipt};

/// A transaction as it is sent (EIP-2718).
///
/// # Panics
/// If it is encoded otherwise, or its hash is not that of its bytes.
pub fn transaction(bytes: &[u8]) {
    let Ok(decoded) = Transaction::decode_2718_exact(bytes) else {
        return;
    };
    assert_eq!(decoded.encoded_2718(), bytes, "another encoding");
    assert_eq!(decoded.tx_hash(), keccak256(bytes), "another hash");
    // Any signature gives a sender or an error.
    let _ = decoded.recover_signer();
}

/// A header and a whole block (RLP).
///
/// # Panics
/// If a header is encoded otherwise, or a block is another one afterwards.
pub fn block(bytes: &[u8]) {
    let mut rest = bytes;
    if let Ok(header) = Header::decode(&mut rest) {
        let encoded = alloy_rlp::encode(&header);
        let n_read = bytes.len() - rest.len();
        assert_eq!(encoded, &bytes[..n_read], "another encoding of a header");
    }
    let Ok(block) = Block::<Transaction>::decode(&mut &*bytes) else {
        return;
    };
    // Alloy takes any length before a typed transaction in a block, so bytes are
    // not compared; `Block` is refused elsewhere if it is not as it is encoded.
    let encoded = alloy_rlp::encode(&block);
    let again = Block::<Transaction>::decode(&mut encoded.as_slice()).expect("it is encoded");
    assert_eq!(again, block, "another block");
}

/// A receipt as the store keeps it (EIP-2718).
///
/// # Panics
/// If it is encoded otherwise.
pub fn receipt(bytes: &[u8]) {
    if let Ok(decoded) = TransactionReceipt::decode_2718_exact(bytes) {
        assert_eq!(decoded.encoded_2718(), bytes, "another encoding");
    }
}
