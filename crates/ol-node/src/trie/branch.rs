//! A stored branch node.

use alloy_rlp::EMPTY_STRING_CODE;
use alloy_trie::Nibbles;
use alloy_trie::nodes::RlpNode;

use super::{Child, Subtree};
use crate::store::StoreError;

/// A hash as an RLP string, which most references are.
const HASH_CODE: u8 = EMPTY_STRING_CODE + 32;
/// An RLP list shorter than 32 bytes begins with this plus its length.
const LIST_CODE: u8 = 0xc0;
const INLINE_PAYLOAD_MAX_SIZE_BYTES: u8 = 30;

/// A branch node of a trie, with the references of all its children.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Branch {
    /// Bit `n`: there is a child under nibble `n`.
    children: u16,
    /// Bit `n`: that child is a branch, perhaps behind an extension.
    branches: u16,
    /// The references of the children, ascending by nibble: a node shorter than
    /// 32 bytes as it is, of another the hash as an RLP string. Both tell their
    /// own length.
    references: Vec<u8>,
}

impl Branch {
    /// `children` and `branches` as `u16`, then the references.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(4 + self.references.len());
        bytes.extend(self.children.to_be_bytes());
        bytes.extend(self.branches.to_be_bytes());
        bytes.extend(&self.references);
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        let damaged = || StoreError::corrupt("a branch of the state trie");
        let [a, b, c, d, references @ ..] = bytes else {
            return Err(damaged());
        };
        let branch = Self {
            children: u16::from_be_bytes([*a, *b]),
            branches: u16::from_be_bytes([*c, *d]),
            references: references.to_vec(),
        };
        let mut rest = references;
        for _ in 0..branch.children.count_ones() {
            let len = reference_len(rest).ok_or_else(damaged)?;
            rest = &rest[len..];
        }
        let is_whole = rest.is_empty()
            && branch.children.count_ones() > 1
            && branch.branches & !branch.children == 0;
        if is_whole { Ok(branch) } else { Err(damaged()) }
    }

    /// The RLP of the node.
    pub(super) fn rlp(&self) -> Vec<u8> {
        let n_absent = 16 - self.children.count_ones() as usize;
        // Of the value, which no branch has, too.
        let payload_length = self.references.len() + n_absent + 1;
        let header = alloy_rlp::Header {
            list: true,
            payload_length,
        };
        let mut rlp = Vec::with_capacity(3 + payload_length);
        header.encode(&mut rlp);
        let mut rest = self.references.as_slice();
        for nibble in 0..16 {
            if self.children >> nibble & 1 == 0 {
                rlp.push(EMPTY_STRING_CODE);
                continue;
            }
            let (reference, after) = rest.split_at(known_reference_len(rest));
            rlp.extend(reference);
            rest = after;
        }
        rlp.push(EMPTY_STRING_CODE);
        rlp
    }

    pub(super) fn subtree(&self, path: Nibbles) -> Subtree {
        let reference = RlpNode::from_rlp(&self.rlp());
        Subtree::Branch { path, reference }
    }

    /// What hangs under a nibble.
    pub(super) const fn kind(&self, nibble: u8) -> Child {
        kind(self.children, self.branches, nibble)
    }

    pub(super) fn unpack(&self) -> Children {
        let mut references: [RlpNode; 16] = Default::default();
        let mut rest = self.references.as_slice();
        for (nibble, slot) in references.iter_mut().enumerate() {
            if self.children >> nibble & 1 == 1 {
                let (reference, after) = rest.split_at(known_reference_len(rest));
                *slot = RlpNode::from_raw(reference).expect("a reference is 33 bytes at most");
                rest = after;
            }
        }
        Children {
            children: self.children,
            branches: self.branches,
            references,
        }
    }
}

/// A branch while its children change.
pub(super) struct Children {
    children: u16,
    branches: u16,
    references: [RlpNode; 16],
}

impl Children {
    pub(super) const fn kind(&self, nibble: u8) -> Child {
        kind(self.children, self.branches, nibble)
    }

    pub(super) fn set(&mut self, nibble: u8, reference: RlpNode, is_branch: bool) {
        self.references[usize::from(nibble)] = reference;
        self.children |= 1 << nibble;
        self.branches &= !(1 << nibble);
        self.branches |= u16::from(is_branch) << nibble;
    }

    pub(super) fn clear(&mut self, nibble: u8) {
        self.references[usize::from(nibble)] = RlpNode::default();
        self.children &= !(1 << nibble);
        self.branches &= !(1 << nibble);
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.children == 0
    }

    /// The nibble of the only child.
    pub(super) fn only(&self) -> Option<u8> {
        let nibble = u8::try_from(self.children.trailing_zeros()).expect("at most 16");
        (self.children.count_ones() == 1).then_some(nibble)
    }

    pub(super) fn pack(&self) -> Branch {
        Branch {
            children: self.children,
            branches: self.branches,
            references: self
                .references
                .iter()
                .flat_map(|r| r.iter())
                .copied()
                .collect(),
        }
    }
}

const fn kind(children: u16, branches: u16, nibble: u8) -> Child {
    match (children >> nibble & 1, branches >> nibble & 1) {
        (0, _) => Child::Absent,
        (_, 0) => Child::Leaf,
        _ => Child::Branch,
    }
}

/// The length of the reference that `bytes` begin with, if they hold it whole.
fn reference_len(bytes: &[u8]) -> Option<usize> {
    let len = match *bytes.first()? {
        HASH_CODE => 33,
        code @ LIST_CODE..=0xff if code - LIST_CODE <= INLINE_PAYLOAD_MAX_SIZE_BYTES => {
            1 + usize::from(code - LIST_CODE)
        }
        _ => return None,
    };
    (len <= bytes.len()).then_some(len)
}

fn known_reference_len(bytes: &[u8]) -> usize {
    reference_len(bytes).expect("references are checked when a branch is made or decoded")
}
