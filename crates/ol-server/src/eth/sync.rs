//! Blocks with their signatures, for nodes that follow this one; see
//! `specs/blocks.md`.

use alloy_primitives::{Bytes, U64};

use super::args::Args;
use super::method::{Method, Reply, shown};
use super::{Eth, errors};
use crate::follow::{BlockAnswer, HeadAnswer};

/// Most blocks in one answer.
const BLOCKS_MAX: usize = 128;

/// Most bytes of blocks in one answer, unless one block alone is larger.
const BLOCKS_MAX_SIZE_BYTES: usize = 8 << 20;

pub(super) const METHODS: &[Method] = &[
    Method::free("ol_head", 0, head),
    Method::call("ol_signedBlocks", 2, signed_blocks),
];

fn head(_: &mut Args<'_>, eth: &Eth) -> Reply {
    let head = eth.node.head();
    shown(HeadAnswer {
        chain_id: U64::from(eth.node.chain_id()),
        genesis_hash: eth.node.genesis_hash(),
        number: U64::from(head.header.number),
        hash: head.hash,
    })
}

fn signed_blocks(args: &mut Args<'_>, eth: &Eth) -> Reply {
    let first: U64 = args.required()?;
    let n_max: U64 = args.required()?;
    let n_max = usize::try_from(n_max.to::<u64>()).unwrap_or(usize::MAX);
    let blocks = eth
        .node
        .wire_blocks(first.to(), n_max.min(BLOCKS_MAX), BLOCKS_MAX_SIZE_BYTES)
        .map_err(errors::query)?;
    let answer: Vec<BlockAnswer> = blocks
        .into_iter()
        .map(|block| BlockAnswer {
            rlp: block.rlp,
            signature: block
                .signature
                .map(|signature| Bytes::copy_from_slice(&signature.as_bytes())),
        })
        .collect();
    shown(answer)
}
