//! Encodings: what is decoded is encoded as it was.

use alloy_consensus::transaction::SignerRecoverable as _;
use alloy_eips::eip2718::{Decodable2718 as _, Encodable2718 as _};
use alloy_primitives::{Bytes, keccak256};
use alloy_rlp::Decodable as _;
use ol_evm::{Header, Transaction, TransactionReceipt};
use ol_node::WireBlock;

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

/// A header, and a block as nodes send it to each other (RLP).
///
/// # Panics
/// If one is encoded otherwise.
pub fn block(bytes: &[u8]) {
    let mut rest = bytes;
    if let Ok(header) = Header::decode(&mut rest) {
        let encoded = alloy_rlp::encode(&header);
        let n_read = bytes.len() - rest.len();
        assert_eq!(encoded, &bytes[..n_read], "another encoding of a header");
    }
    let wire = WireBlock {
        rlp: Bytes::copy_from_slice(bytes),
        signature: None,
    };
    if let Ok(block) = wire.decode() {
        assert_eq!(
            alloy_rlp::encode(&block),
            bytes,
            "another encoding of a block"
        );
        assert_eq!(wire.header().expect("it has one"), block.header);
    }
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
