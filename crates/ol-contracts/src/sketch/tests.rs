//! Goal: Rust knows where the contract puts a chunk. The Solidity tests write
//! the chunks of the same vectors and find the same addresses.

use alloy_primitives::hex;
use serde_json::Value;

use super::*;

#[test]
fn golden_chunks_have_the_addresses_that_the_contract_gives_them() {
    let vectors: Value = serde_json::from_str(include_str!(
        "../../../../contracts/test/vectors/sketch.json"
    ))
    .unwrap();
    let mut n_chunks = 0;
    for index in vectors["indexes"].as_array().unwrap() {
        let chunks = index["chunks"].as_array().unwrap();
        let addresses = index["addresses"].as_array().unwrap();
        for (chunk, address) in chunks.iter().zip(addresses) {
            let chunk = hex::decode(chunk.as_str().unwrap()).unwrap();
            let expected: Address = address.as_str().unwrap().parse().unwrap();
            assert_eq!(chunk_address(&chunk), Some(expected));
            n_chunks += 1;
        }
    }
    assert_eq!(n_chunks, 5);
}

#[test]
fn oversized_chunk_has_no_address() {
    assert!(chunk_address(&vec![1; CHUNK_SIZE_BYTES_MAX]).is_some());
    assert_eq!(chunk_address(&vec![1; CHUNK_SIZE_BYTES_MAX + 1]), None);
}
