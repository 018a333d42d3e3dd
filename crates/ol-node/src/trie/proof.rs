//! The nodes on the way to a key.

use alloy_primitives::{B256, Bytes};
use alloy_trie::Nibbles;
use alloy_trie::nodes::{ExtensionNodeRef, LeafNodeRef, RlpNode};

use super::{Child, TrieReader, damaged};
use crate::store::StoreError;

/// What a trie has under a key, and the nodes that show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Proven {
    /// The value, `None` if there is none.
    pub(crate) value: Option<Vec<u8>>,
    /// The RLP of the nodes from the root on, without those that stand within
    /// their parent; nothing if the trie is empty.
    pub(crate) nodes: Vec<Bytes>,
}

/// Proves what is under a key, or that nothing is.
///
/// # Source
/// EIP-1186.
pub(crate) fn prove<R: TrieReader>(reader: &R, key: B256) -> Result<Proven, StoreError> {
    prove_at(reader, Nibbles::unpack(key))
}

/// [`prove`], for a key of any length.
pub(super) fn prove_at<R: TrieReader>(reader: &R, key: Nibbles) -> Result<Proven, StoreError> {
    let mut nodes = Vec::new();
    let mut push = |rlp: Vec<u8>| {
        // A short node is part of its parent; only the root has none.
        if rlp.len() >= 32 || nodes.is_empty() {
            nodes.push(Bytes::from(rlp));
        }
    };
    let mut prefix = Nibbles::new();
    let mut child = Child::Unknown;
    let value = loop {
        if child == Child::Absent {
            break None;
        }
        if child != Child::Leaf
            && let Some((path, branch)) = reader.branch_below(&prefix)?
        {
            let rlp = branch.rlp();
            if path.len() > prefix.len() {
                let short = path.slice(prefix.len()..);
                let reference = RlpNode::from_rlp(&rlp);
                let mut extension = Vec::new();
                ExtensionNodeRef::new(&short, &reference).rlp(&mut extension);
                push(extension);
            }
            if !key.starts_with(&path) {
                break None;
            }
            push(rlp);
            let nibble = key.get_unchecked(path.len());
            child = branch.kind(nibble);
            prefix = path;
            prefix.push(nibble);
            continue;
        }
        let Some((found, value)) = reader.leaf_below(&prefix)? else {
            if prefix.is_empty() {
                break None;
            }
            return Err(damaged(&prefix));
        };
        let mut leaf = Vec::new();
        LeafNodeRef::new(&found.slice(prefix.len()..), &value).rlp(&mut leaf);
        push(leaf);
        break (found == key).then_some(value);
    };
    Ok(Proven { value, nodes })
}
