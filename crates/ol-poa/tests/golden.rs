//! Goal: the numbers of an independent implementation, byte for byte.
//! Method: `fixtures/poa/vectors.json`, written by `fixtures/poa/make.py`,
//! which shares no code with this crate.

use alloy_primitives::{Address, B256, hex};
use ol_poa::{Index, QuerySketch, commit, merkle, shares, split_fee};
use serde::Deserialize;

#[derive(Deserialize)]
struct Vectors {
    indexes: Vec<IndexCase>,
    queries: Vec<QueryCase>,
    shares: Vec<SharesCase>,
    splits: Vec<SplitCase>,
    merkle: Vec<MerkleCase>,
}

#[derive(Deserialize)]
struct IndexCase {
    n_entries: usize,
    chunk_roots: Vec<B256>,
    root: B256,
    proofs: Vec<ProofCase>,
}

#[derive(Deserialize)]
struct ProofCase {
    entry: usize,
    siblings: Vec<B256>,
}

#[derive(Deserialize)]
struct QueryCase {
    n_entries: usize,
    codes: String,
    hash: B256,
    null_threshold: u64,
    scores: Vec<i64>,
    contributors: Vec<Address>,
    weights: Vec<u64>,
}

#[derive(Deserialize)]
struct SharesCase {
    pot: String,
    weights: Vec<u64>,
    shares: Vec<String>,
}

#[derive(Deserialize)]
struct SplitCase {
    fee: String,
    split_bps: [u16; 4],
    parts: [String; 4],
}

#[derive(Deserialize)]
struct MerkleCase {
    leaves: Vec<B256>,
    root: B256,
}

const ENTRIES: &[u8] = include_bytes!("../../../fixtures/poa/entries.bin");
const VECTORS: &str = include_str!("../../../fixtures/poa/vectors.json");

fn vectors() -> Vectors {
    serde_json::from_str(VECTORS).expect("the fixture has the shape above")
}

/// The fixture's indexes are the first entries of one file.
fn index(n_entries: usize) -> Index {
    Index::from_bytes(ENTRIES[..n_entries * ol_poa::ENTRY_SIZE_BYTES].to_vec())
        .expect("the fixture is an index")
}

#[test]
fn roots_and_proofs() {
    let cases = vectors().indexes;
    assert!(!cases.is_empty());
    for case in cases {
        let index = index(case.n_entries);
        let roots: Vec<B256> = index
            .chunks()
            .iter()
            .map(|chunk| commit::chunk_root(chunk).unwrap())
            .collect();
        assert_eq!(roots, case.chunk_roots);
        assert_eq!(index.root(), case.root);
        for ProofCase { entry, siblings } in case.proofs {
            let own = commit::proof(&index.chunks(), entry).unwrap().unwrap();
            assert_eq!(own, siblings);
            let bytes = index.entries().nth(entry).unwrap();
            assert!(commit::verify_proof(
                &case.root,
                case.n_entries,
                entry,
                bytes.bytes(),
                &siblings
            ));
        }
    }
}

#[test]
fn scores_and_weights() {
    let cases = vectors().queries;
    assert!(!cases.is_empty());
    for case in cases {
        let index = index(case.n_entries);
        let query = QuerySketch::from_bytes(&hex::decode(case.codes).unwrap()).unwrap();
        assert_eq!(query.hash(), case.hash);
        assert_eq!(index.scores(&query), case.scores);
        let expected: Vec<(Address, u64)> =
            case.contributors.into_iter().zip(case.weights).collect();
        assert_eq!(index.weights(case.null_threshold, &query), expected);
    }
}

#[test]
fn shares_and_splits() {
    let vectors = vectors();
    assert!(!vectors.shares.is_empty() && !vectors.splits.is_empty());
    for case in vectors.shares {
        let parts = shares(case.pot.parse().unwrap(), &case.weights).unwrap();
        let parts: Vec<String> = parts.iter().map(u128::to_string).collect();
        assert_eq!(parts, case.shares);
    }
    for case in vectors.splits {
        let parts = split_fee(case.fee.parse().unwrap(), case.split_bps).unwrap();
        assert_eq!(parts.map(|part| part.to_string()), case.parts);
    }
}

#[test]
fn merkle_roots() {
    let cases = vectors().merkle;
    assert!(!cases.is_empty());
    for case in cases {
        assert_eq!(merkle::root(&case.leaves), case.root);
    }
}
