//! Goal: what is in the journal comes back, in order; a torn, damaged or
//! foreign one gives what is whole in it, and never a panic.

use alloy_consensus::{SignableTransaction, TxEip1559, TxLegacy};
use alloy_primitives::{Address, Signature};
use ol_evm::Recovered;
use proptest::prelude::*;

use super::*;

const CHAIN_ID: u64 = 161_200;
const MAX: u64 = 1 << 20;

fn pooled(nonce: u64) -> Arc<PooledTransaction> {
    let signature = Signature::test_signature();
    let transaction: Transaction = if nonce.is_multiple_of(2) {
        let transaction = TxEip1559 {
            nonce,
            input: vec![7; usize::try_from(nonce).unwrap()].into(),
            ..TxEip1559::default()
        };
        transaction.into_signed(signature).into()
    } else {
        let transaction = TxLegacy {
            nonce,
            chain_id: Some(CHAIN_ID),
            ..TxLegacy::default()
        };
        transaction.into_signed(signature).into()
    };
    let transaction = Recovered::new_unchecked(transaction, Address::ZERO);
    Arc::new(PooledTransaction::new(transaction, vec![], 1_000 + nonce))
}

fn remembered(nonces: &[u64]) -> Vec<Remembered> {
    let one = |&nonce| Remembered {
        transaction: pooled(nonce).transaction.inner().clone(),
        received_s: 1_000 + nonce,
    };
    nonces.iter().map(one).collect()
}

fn append(journal: &mut Journal, nonces: &[u64]) {
    let all: Vec<_> = nonces.iter().map(|&nonce| pooled(nonce)).collect();
    journal.append(all.iter()).unwrap();
}

/// A journal of five transactions, and where each entry ends.
fn five(path: &Path) -> (Vec<u8>, Vec<usize>) {
    let (mut journal, _) = Journal::open(path, CHAIN_ID, MAX).unwrap();
    let ends = (0..5).map(|nonce| {
        append(&mut journal, &[nonce]);
        usize::try_from(std::fs::metadata(path).unwrap().len()).unwrap()
    });
    let ends = ends.collect();
    (std::fs::read(path).unwrap(), ends)
}

#[test]
fn what_is_torn_at_any_byte_gives_what_is_whole_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let (bytes, ends) = five(&path);
    for length in 0..=bytes.len() {
        std::fs::write(&path, &bytes[..length]).unwrap();
        let n_whole = ends.iter().filter(|&&end| end <= length).count() as u64;
        let whole: Vec<u64> = (0..n_whole).collect();
        let (mut journal, found) = Journal::open(&path, CHAIN_ID, MAX).unwrap();
        assert_eq!(found, remembered(&whole), "torn at {length}");
        append(&mut journal, &[9]);
        let (_, found) = Journal::open(&path, CHAIN_ID, MAX).unwrap();
        let with_more: Vec<u64> = whole.into_iter().chain([9]).collect();
        assert_eq!(found, remembered(&with_more), "torn at {length}");
    }
}

#[test]
fn what_is_damaged_at_any_byte_ends_the_journal_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let (bytes, ends) = five(&path);
    for position in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[position] ^= 0x55;
        let (found, size_bytes) = read(&damaged, CHAIN_ID);
        let n_whole = if position < HEADER_SIZE_BYTES {
            0
        } else {
            ends.iter().filter(|&&end| end <= position).count()
        };
        let whole: Vec<u64> = (0..n_whole as u64).collect();
        assert_eq!(found, remembered(&whole), "damaged at {position}");
        assert!(size_bytes <= position as u64);
    }
}

#[test]
fn another_chain_begins_anew_and_a_rewrite_forgets() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    five(&path);
    let (_, found) = Journal::open(&path, CHAIN_ID + 1, MAX).unwrap();
    assert_eq!(found, []);
    let (mut journal, found) = Journal::open(&path, CHAIN_ID, MAX).unwrap();
    assert_eq!(found, [], "the other chain's");
    append(&mut journal, &[1, 2, 3]);
    journal.rewrite([pooled(2)].iter()).unwrap();
    append(&mut journal, &[4]);
    drop(journal);
    let (journal, found) = Journal::open(&path, CHAIN_ID, MAX).unwrap();
    assert_eq!(found, remembered(&[2, 4]));
    assert!(!journal.should_be_rewritten(0), "it is small");
    assert!(!path.with_extension("new").exists());
}

proptest! {
    #[test]
    fn no_bytes_cause_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = read(&bytes, CHAIN_ID);
        let _ = read(&[header(CHAIN_ID), bytes].concat(), CHAIN_ID);
    }
}
