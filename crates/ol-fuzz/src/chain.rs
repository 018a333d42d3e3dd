//! A node: what it is sent, and what it begins with.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use alloy_primitives::keccak256;
use ol_node::{BlockRef, Genesis, Node, NodeConfig, OpenError, SubmitError};
use ol_runtime::ManualClock;
use tempfile::TempDir;

/// Largest database of a target. Small, so that a fuzzer cannot fill the disk.
const STORE_MAX_SIZE_BYTES: usize = 256 << 20;

/// Largest genesis that is opened: more is only slower.
const GENESIS_MAX_SIZE_BYTES: usize = 64 << 10;

/// Time at which everything happens.
const NOW_S: u64 = 1_700_000_000;

fn open(path: &Path, genesis: &Genesis) -> Result<Node, OpenError> {
    let config = NodeConfig {
        store_max_size_bytes: STORE_MAX_SIZE_BYTES,
        ..NodeConfig::default()
    };
    Node::open_with(path, genesis, Arc::new(ManualClock::new(NOW_S)), config)
}

/// The development chain, for all calls of this process.
pub(crate) fn node() -> &'static Node {
    static NODE: OnceLock<(Node, TempDir)> = OnceLock::new();
    let make = || {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let node = open(dir.path(), &ol_contracts::genesis::dev()).expect("the chain opens");
        (node, dir)
    };
    &NODE.get_or_init(make).0
}

/// A raw transaction is sent to a node.
///
/// # Panics
/// If the node fails, or says it included what it did not.
pub fn submit(bytes: &[u8]) {
    let node = node();
    let before = node.head().header.number;
    match node.submit_and_wait(bytes) {
        Ok(inclusion) => {
            assert_eq!(inclusion.transaction_hash, keccak256(bytes));
            let block = node.block(BlockRef::Number(inclusion.block_number));
            let block = block.expect("readable").expect("it is in a block");
            assert_eq!(block.hash, inclusion.block_hash);
            assert!(inclusion.block_number > before);
        }
        Err(SubmitError::Storage(error)) => panic!("the node failed: {error}"),
        Err(SubmitError::Stopped) => panic!("the node stopped"),
        Err(refusal) => assert!(!refusal.to_string().is_empty()),
    }
}

/// A genesis file begins a chain.
///
/// # Panics
/// If the chain cannot be opened again, or another error comes than that the
/// genesis is not usable.
pub fn genesis(bytes: &[u8]) {
    if bytes.len() > GENESIS_MAX_SIZE_BYTES {
        return;
    }
    let Ok(genesis) = serde_json::from_slice::<Genesis>(bytes) else {
        return;
    };
    let dir = tempfile::tempdir().expect("a temporary folder");
    match open(dir.path(), &genesis) {
        Ok(node) => {
            let head = node.head();
            assert_eq!(head.header.number, 0);
            drop(node);
            let again = open(dir.path(), &genesis).expect("it opens again");
            assert_eq!(again.head(), head);
        }
        Err(OpenError::Genesis { reason }) => assert!(!reason.is_empty()),
        Err(error) => panic!("{error}"),
    }
}
