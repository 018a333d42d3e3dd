//! The state trie under any history of changes.

use std::collections::BTreeMap;

use alloy_primitives::B256;
use alloy_trie::proof::verify_proof;
use alloy_trie::{HashBuilder, Nibbles};
use ol_node::testing::MemoryTrie;

/// Nibbles of a key that the input chooses; the others are the same in all
/// keys. Deep and shallow ones, so that branches meet, split and collapse at
/// every depth.
const PLACES: [usize; 4] = [0, 1, 40, 63];

/// Most changes that are looked at.
const CHANGES_MAX: usize = 256;

/// Changes to a trie, in blocks. Four bytes are one change: a key, a length
/// (zero takes the key out) with a mark for the end of a block, and what the
/// value is made of.
///
/// # Panics
/// If root or stored branches are not those of all leaves at one time, or a
/// proof does not hold.
pub fn trie(bytes: &[u8]) {
    let mut trie = MemoryTrie::default();
    let mut block = BTreeMap::new();
    for change in bytes.chunks_exact(4).take(CHANGES_MAX) {
        let [high, low, control, filler] = change else {
            continue;
        };
        let key = key(u16::from_be_bytes([*high, *low]));
        let length = usize::from(control & 0x3f);
        let value = (length > 0).then(|| vec![*filler; length]);
        block.insert(key.to_vec(), value);
        if control & 0xc0 == 0xc0 {
            check(&mut trie, &std::mem::take(&mut block));
        }
    }
    check(&mut trie, &block);
}

/// A key with the four nibbles of `bits` at [`PLACES`].
fn key(bits: u16) -> B256 {
    let mut key = B256::repeat_byte(0x33);
    for (shift, place) in (0..).step_by(4).zip(PLACES) {
        let nibble = u8::try_from(bits >> shift & 15).expect("four bits");
        let byte = &mut key[place / 2];
        *byte = if place % 2 == 0 {
            *byte & 0x0f | nibble << 4
        } else {
            *byte & 0xf0 | nibble
        };
    }
    key
}

fn check(trie: &mut MemoryTrie, block: &BTreeMap<Vec<u8>, Option<Vec<u8>>>) {
    let root = trie.apply(block).expect("the trie is whole");
    let root = root.expect("every key has 32 bytes, and no value is empty");
    let mut builder = HashBuilder::default();
    for (key, value) in trie.leaves() {
        builder.add_leaf(Nibbles::from_nibbles(key), value);
    }
    assert_eq!(root, builder.root(), "another root");
    assert!(
        trie.is_as_rebuilt().expect("the trie is whole"),
        "other branches"
    );
    for key in block.keys().take(4) {
        let proven = trie.prove(key).expect("the trie is whole");
        let (value, nodes) = proven.expect("the key has 32 bytes");
        assert!(block[key] == value, "another value");
        verify_proof(root, Nibbles::unpack(key), value, &nodes).expect("the proof holds");
    }
}
