//! Goal: a directory is opened only by one node of its own chain, and whatever
//! is wrong with it is named.

use std::sync::Arc;

use ol_node::{Node, NodeConfig, OpenError, StoreError};
use ol_runtime::ManualClock;

use crate::common::{CHAIN_ID, genesis, open, open_with};

#[test]
fn a_second_node_is_kept_out_until_the_first_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let node = open(dir.path());
    let error = open_with(dir.path(), NodeConfig::default()).unwrap_err();
    assert!(
        matches!(error, OpenError::Store(StoreError::Locked)),
        "{error:?}"
    );
    assert_eq!(
        error.to_string(),
        "the chain database is in use by another process"
    );
    drop(node);
    open(dir.path());
}

#[test]
fn another_chain_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let found = open(dir.path()).head().hash;
    let clock = || Arc::new(ManualClock::new(0));

    let mut other = genesis();
    other.timestamp += 1;
    match Node::open(dir.path(), &other, clock()) {
        Err(OpenError::ForeignGenesis { found: hash, .. }) => assert_eq!(hash, found),
        other => panic!("{other:?}"),
    }
    let mut other = genesis();
    other.config.chain_id += 1;
    match Node::open(dir.path(), &other, clock()) {
        Err(OpenError::ForeignChain { found, expected }) => {
            assert_eq!((found, expected), (CHAIN_ID, CHAIN_ID + 1));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(open(dir.path()).head().hash, found);
}

#[test]
fn a_genesis_that_makes_no_block_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut no_id = genesis();
    no_id.config.chain_id = 0;
    let mut huge_fee = genesis();
    huge_fee.base_fee_per_gas = Some(u128::MAX);
    for genesis in [no_id, huge_fee] {
        let error = Node::open(dir.path(), &genesis, Arc::new(ManualClock::new(0))).unwrap_err();
        assert!(matches!(error, OpenError::Genesis { .. }), "{error:?}");
    }
    open(dir.path());
}

#[test]
fn a_place_that_cannot_hold_a_chain_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "not a directory").unwrap();
    for path in [file.clone(), file.join("below")] {
        let error = open_with(&path, NodeConfig::default()).unwrap_err();
        assert!(
            matches!(error, OpenError::Store(StoreError::Unwritable(Some(_)))),
            "{error:?}"
        );
    }

    let foreign = dir.path().join("foreign");
    std::fs::create_dir(&foreign).unwrap();
    std::fs::write(foreign.join("mdbx.dat"), vec![7; 65_536]).unwrap();
    let error = open_with(&foreign, NodeConfig::default()).unwrap_err();
    assert!(
        matches!(error, OpenError::Store(StoreError::Corrupt { .. })),
        "{error:?}"
    );
}
