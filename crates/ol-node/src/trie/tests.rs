//! Goal: the root, the stored branches and the proofs are right after any
//! history of insertions, updates, deletions and collapses.
//! Method: random histories over keys that share crafted prefixes (whole keys
//! are fed in, not hashed ones, so that deep branches, long extensions and nodes
//! shorter than 32 bytes occur), against three others: `alloy_trie`'s builder
//! over all leaves, `eth_trie`, and our own update on an empty trie, which must
//! leave exactly the branches that the history left.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use alloy_primitives::{B256, Bytes};
use alloy_trie::proof::verify_proof;
use alloy_trie::{EMPTY_ROOT_HASH, HashBuilder, Nibbles};
use eth_trie::{EthTrie, MemoryDB, Trie};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::{Branch, Change, Empty, Overlay, SortedTrie, TrieReader, TrieUpdate, prove, update};
use crate::store::StoreError;

type Leaves = BTreeMap<B256, Vec<u8>>;

/// A trie as the database keeps it, in maps.
#[derive(Debug, Default, Clone, PartialEq)]
struct Memory {
    branches: BTreeMap<Vec<u8>, Branch>,
    leaves: Leaves,
    /// How many branches and leaves were read.
    n_reads: RefCell<usize>,
}

impl SortedTrie for Memory {
    fn branch_from(&self, from: &[u8]) -> Result<Option<(Nibbles, Branch)>, StoreError> {
        *self.n_reads.borrow_mut() += 1;
        let found = self.branches.range(from.to_vec()..).next();
        // Stored and read, as in the database.
        found
            .map(|(path, branch)| {
                let branch = Branch::decode(&branch.encode())?;
                Ok((Nibbles::from_nibbles(path), branch))
            })
            .transpose()
    }

    fn leaf_from(&self, from: B256) -> Result<Option<(B256, Vec<u8>)>, StoreError> {
        *self.n_reads.borrow_mut() += 1;
        let found = self.leaves.range(from..).next();
        Ok(found.map(|(key, value)| (*key, value.clone())))
    }
}

impl Memory {
    fn apply(&mut self, changes: &Block) -> B256 {
        let TrieUpdate { root, branches } = update(self, to_changes(changes)).unwrap();
        for (path, branch) in branches {
            match branch {
                Some(branch) => self.branches.insert(path.to_vec(), branch),
                None => self.branches.remove(&path.to_vec()),
            };
        }
        for (key, value) in changes {
            match value {
                Some(value) => self.leaves.insert(*key, value.clone()),
                None => self.leaves.remove(key),
            };
        }
        root
    }
}

/// What one block changes.
type Block = BTreeMap<B256, Option<Vec<u8>>>;

fn to_changes(block: &Block) -> Vec<Change> {
    let changes = block.iter();
    changes
        .map(|(key, value)| Change::new(*key, value.clone()))
        .collect()
}

fn built_root(leaves: &Leaves) -> B256 {
    let mut builder = HashBuilder::default();
    for (key, value) in leaves {
        builder.add_leaf(Nibbles::unpack(key), value);
    }
    builder.root()
}

/// A key with nibbles that matter at the given depths only: two of them share
/// the more the fewer bits they differ in.
fn crafted(bits: u16) -> B256 {
    const PLACES: [(usize, u16); 6] = [(0, 4), (1, 2), (7, 4), (31, 4), (62, 2), (63, 16)];
    let mut key = B256::repeat_byte(0x33);
    let mut rest = bits;
    for (depth, n_values) in PLACES {
        let nibble = u8::try_from(rest % n_values).unwrap();
        rest /= n_values;
        let (byte, shift) = (depth / 2, if depth % 2 == 0 { 4 } else { 0 });
        key[byte] = key[byte] & !(15 << shift) | nibble << shift;
    }
    key
}

fn any_key() -> impl Strategy<Value = B256> {
    prop_oneof![
        8 => (0..2_048_u16).prop_map(crafted),
        // The same few, so that they are deleted and inserted again.
        8 => (0..24_u16).prop_map(|bits| crafted(bits * 67)),
        1 => any::<[u8; 32]>().prop_map(B256::from),
    ]
}

/// A value of one small byte, which makes nodes that stand within their
/// parent, or of `len` bytes.
fn any_value(len: std::ops::Range<usize>) -> impl Strategy<Value = Option<Vec<u8>>> {
    prop_oneof![
        3 => Just(None),
        2 => (1..128_u8).prop_map(|byte| Some(vec![byte])),
        2 => prop::collection::vec(any::<u8>(), len).prop_map(Some),
    ]
}

fn any_history(len: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Block>> {
    let block = prop::collection::btree_map(any_key(), any_value(len), 0..24);
    prop::collection::vec(block, 1..24)
}

struct Oracle {
    leaves: Leaves,
    /// `None` where there may be a leaf within its parent with a value that is
    /// not its own RLP: it reads such a value back with the RLP header.
    trie: Option<EthTrie<MemoryDB>>,
}

impl Oracle {
    fn new(has_eth_trie: bool) -> Self {
        Self {
            leaves: Leaves::new(),
            trie: has_eth_trie.then(|| EthTrie::new(Arc::new(MemoryDB::new(false)))),
        }
    }

    fn apply(&mut self, block: &Block) {
        for (key, value) in block {
            match value {
                Some(value) => self.leaves.insert(*key, value.clone()),
                None => self.leaves.remove(key),
            };
            let Some(trie) = &mut self.trie else {
                continue;
            };
            match value {
                Some(value) => trie.insert(key.as_slice(), value).unwrap(),
                None => {
                    trie.remove(key.as_slice()).unwrap();
                }
            }
        }
    }
}

fn check_proof<R: TrieReader>(reader: &R, root: B256, key: B256, leaves: &Leaves) -> Vec<Bytes> {
    let proven = prove(reader, key).unwrap();
    assert_eq!(proven.value.as_ref(), leaves.get(&key));
    verify_proof(root, Nibbles::unpack(key), proven.value, &proven.nodes).unwrap();
    proven.nodes
}

fn check_history(blocks: &[Block], has_eth_trie: bool) -> usize {
    let mut memory = Memory::default();
    let mut oracle = Oracle::new(has_eth_trie);
    let mut n_operations = 0;
    for block in blocks {
        let before = memory.clone();
        let root = memory.apply(block);
        oracle.apply(block);
        n_operations += block.len();

        assert_eq!(root, built_root(&oracle.leaves));
        if let Some(trie) = &mut oracle.trie {
            assert_eq!(root, trie.root_hash().unwrap());
        }
        let whole = oracle.leaves.iter();
        let whole = whole.map(|(key, value)| (*key, Some(value.clone())));
        let made = update(&Empty, to_changes(&whole.collect())).unwrap();
        assert_eq!(made.root, root);
        let made: BTreeMap<_, _> = made
            .branches
            .into_iter()
            .map(|(path, branch)| (path.to_vec(), branch.unwrap()))
            .collect();
        assert_eq!(memory.branches, made);

        // What is laid over the trie before shows the trie after.
        let TrieUpdate { branches, .. } = update(&before, to_changes(block)).unwrap();
        let overlay = Overlay::new(before, &branches, block.clone());
        for key in block.keys().take(6) {
            let nodes = check_proof(&memory, root, *key, &oracle.leaves);
            assert_eq!(check_proof(&overlay, root, *key, &oracle.leaves), nodes);
            // It has no proof that there is nothing at all.
            if let Some(trie) = &oracle.trie
                && root != EMPTY_ROOT_HASH
            {
                let nodes = nodes.into_iter().map(Vec::from).collect();
                let theirs = trie.verify_proof(root, key.as_slice(), nodes).unwrap();
                assert_eq!(theirs.as_ref(), oracle.leaves.get(key));
            }
            let mut beside = *key;
            beside[31] ^= 1;
            check_proof(&overlay, root, beside, &oracle.leaves);
            beside[3] ^= 1;
            check_proof(&memory, root, beside, &oracle.leaves);
        }
    }
    n_operations
}

/// Runs random histories: 80 for each unit of the scale, of about a hundred
/// changes each.
fn run_histories(len: std::ops::Range<usize>, has_eth_trie: bool) {
    let cases = 80 * crate::test_scale();
    let n_changes = RefCell::new(0);
    let mut runner = TestRunner::new(Config {
        cases: u32::try_from(cases).unwrap(),
        failure_persistence: None,
        ..Config::default()
    });
    let outcome = runner.run(&any_history(len), |blocks| {
        *n_changes.borrow_mut() += check_history(&blocks, has_eth_trie);
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
    let n_changes = n_changes.into_inner();
    println!("{n_changes} changes in {cases} histories");
    assert!(
        n_changes >= 80 * cases,
        "{n_changes} changes in {cases} histories"
    );
}

#[test]
fn every_history_has_the_root_the_branches_and_the_proofs_of_its_leaves() {
    run_histories(32..80, true);
}

#[test]
fn short_values_within_their_parents_are_right() {
    run_histories(1..40, false);
}

#[test]
fn a_trie_of_few_is_right() {
    let one = |byte: u8| (B256::repeat_byte(byte), Some(vec![byte]));
    let blocks = [
        Block::new(),
        Block::from([one(1)]),
        Block::from([(B256::repeat_byte(1), None)]),
        Block::from([one(1), one(2), one(0x21)]),
        // The branch at the root collapses into a branch, then into a leaf.
        Block::from([(B256::repeat_byte(1), None)]),
        Block::from([(B256::repeat_byte(2), None)]),
        Block::from([(B256::repeat_byte(0x21), None)]),
    ];
    check_history(&blocks, true);
    assert_eq!(update(&Empty, Vec::new()).unwrap().root, EMPTY_ROOT_HASH);
}

#[test]
fn a_change_reads_only_its_path() {
    let key = |n: u64| alloy_primitives::keccak256(n.to_be_bytes());
    let mut memory = Memory::default();
    memory.apply(&(0..20_000).map(|n| (key(n), Some(vec![7; 40]))).collect());
    *memory.n_reads.borrow_mut() = 0;
    memory.apply(&Block::from([(key(77), Some(vec![8; 40]))]));
    // Four or five branches and the leaf.
    assert!(*memory.n_reads.borrow() <= 8);
}

proptest! {
    #[test]
    fn hostile_branches_are_errors(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        if let Ok(branch) = Branch::decode(&bytes) {
            prop_assert_eq!(branch.encode(), bytes);
        }
    }
}
