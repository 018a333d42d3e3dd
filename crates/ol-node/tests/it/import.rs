//! Goal: a follower takes exactly the blocks that the sequencer made by the
//! rules, says which rule another block breaks, and changes branches whole.
//! Method: a sequencer makes chains; what it made is changed, signed again and
//! imported; random branches are compared with a node that saw only the winner.

use std::path::Path;
use std::sync::Arc;

use alloy_consensus::{Block, Header};
use alloy_eips::eip4895::{Withdrawal, Withdrawals};
use alloy_primitives::{Address, B64, B256, Bloom, Bytes, Signature, U256};
use ol_node::{
    BlockFault, BlockRef, BlockSigner, ChainEvent, ImportError, Node, NodeConfig, Role,
    SubmitError, Transaction, WireBlock,
};
use ol_runtime::ManualClock;
use proptest::prelude::*;
use tempfile::TempDir;

use crate::common::{CHAIN_ID, START_S, Wallet, genesis};

const TARGET: Address = Address::repeat_byte(0x77);

/// A node in a folder of its own.
pub(crate) struct Chain {
    pub(crate) node: Node,
    dir: TempDir,
}

impl Chain {
    pub(crate) fn sequencer(clock_s: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let node = open(dir.path(), sequencer_config(), clock_s);
        Self { node, dir }
    }

    pub(crate) fn follower() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let node = open(dir.path(), follower_config(), 0);
        Self { node, dir }
    }

    /// A sequencer that goes on after these blocks.
    pub(crate) fn sequencer_after(blocks: &[WireBlock], clock_s: u64) -> Self {
        let Self { node, dir } = Self::follower();
        node.import(blocks.to_vec()).unwrap();
        drop(node);
        let node = open(dir.path(), sequencer_config(), clock_s);
        Self { node, dir }
    }

    /// A block with one transfer of `value_wei` from an account of its own nonce.
    pub(crate) fn transfer(&self, account: usize, value_wei: u128) {
        let wallet = Wallet::dev(account);
        let nonce = self.node.nonce(wallet.address(), BlockRef::Latest).unwrap();
        let raw = wallet.transfer(nonce, TARGET, value_wei);
        self.node.submit_and_wait(&raw).unwrap();
    }

    /// Blocks 1 to the head.
    pub(crate) fn blocks(&self) -> Vec<WireBlock> {
        let blocks = self.node.wire_blocks(1, 10_000, usize::MAX).unwrap();
        assert_eq!(blocks.len() as u64, self.node.head().header.number);
        blocks
    }

    pub(crate) fn assert_same_as(&self, other: &Self) {
        assert_eq!(self.node.head(), other.node.head());
        self.node.verify().unwrap();
        for number in 0..=self.node.head().header.number {
            let at = BlockRef::Number(number);
            assert_eq!(self.node.block(at).unwrap(), other.node.block(at).unwrap());
            let receipts = self.node.block_receipts(at).unwrap();
            assert_eq!(receipts, other.node.block_receipts(at).unwrap());
        }
        assert_eq!(self.blocks(), other.blocks());
        for account in 0..5 {
            let address = Wallet::dev(account).address();
            let at = BlockRef::Latest;
            assert_eq!(
                self.node.balance_wei(address, at).unwrap(),
                other.node.balance_wei(address, at).unwrap()
            );
        }
    }
}

fn open(dir: &Path, config: NodeConfig, clock_s: u64) -> Node {
    let clock = Arc::new(ManualClock::new(START_S + clock_s));
    Node::open_with(dir, &genesis(), clock, config).unwrap()
}

fn sequencer_config() -> NodeConfig {
    NodeConfig {
        block_signer: Some(BlockSigner::dev()),
        ..NodeConfig::default()
    }
}

fn follower_config() -> NodeConfig {
    NodeConfig {
        role: Role::Follower,
        sequencer: Some(BlockSigner::dev().address()),
        reorg_max_blocks: 8,
        ..NodeConfig::default()
    }
}

/// Init code of a contract that stores its block's number at its own slot 0
/// and logs it when it is made, and is empty.
pub(crate) fn init_code() -> Vec<u8> {
    vec![
        0x43, 0x5f, 0x55, // sstore(0, number)
        0x43, 0x5f, 0x52, 0x60, 0x20, 0x5f, 0xa0, // log0(number)
        0x5f, 0x5f, 0xf3,
    ]
}

/// Four blocks, of which the third has a contract's log.
pub(crate) fn chain() -> Chain {
    let chain = Chain::sequencer(100);
    chain.transfer(0, 1);
    chain.transfer(1, 2);
    let raw = Wallet::dev(0).deploy(1, init_code());
    chain.node.submit_and_wait(&raw).unwrap();
    chain.transfer(2, 3);
    chain
}

/// The block again, changed and signed by the sequencer.
pub(crate) fn changed(
    block: &WireBlock,
    change: impl FnOnce(&mut Block<Transaction>),
) -> WireBlock {
    let mut block = block.decode().unwrap();
    change(&mut block);
    signed(&block, &BlockSigner::dev())
}

fn signed(block: &Block<Transaction>, signer: &BlockSigner) -> WireBlock {
    let signature = signer.sign(CHAIN_ID, block.header.hash_slow());
    WireBlock::new(block, Some(signature))
}

#[test]
fn a_follower_gets_the_chain_and_keeps_it() {
    let source = chain();
    let blocks = source.blocks();
    let follower = Chain::follower();
    let events = follower.node.subscribe();
    let imported = follower.node.import(blocks[..3].to_vec()).unwrap();
    assert_eq!((imported.n_blocks, imported.n_unwound), (3, 0));
    assert_eq!((imported.head_number, imported.is_canonical), (3, true));
    // What is there already is passed over.
    let imported = follower.node.import(blocks.clone()).unwrap();
    assert_eq!(imported.n_blocks, 1);
    let imported = follower.node.import(blocks).unwrap();
    assert_eq!((imported.n_blocks, imported.is_canonical), (0, true));
    follower.assert_same_as(&source);
    for number in 1..=4 {
        match events.try_recv().unwrap() {
            ChainEvent::Block(block) => assert_eq!(block.header.number, number),
            other => panic!("{other:?}"),
        }
    }
    let Chain { node, dir } = follower;
    drop(node);
    let node = open(dir.path(), follower_config(), 0);
    Chain { node, dir }.assert_same_as(&source);
}

#[test]
fn every_wrong_field_is_refused_by_its_name() {
    type Change = fn(&mut Block<Transaction>);
    let cases: [(&str, Change); 24] = [
        ("stateRoot", |b| b.header.state_root = B256::repeat_byte(1)),
        ("receiptsRoot", |b| {
            b.header.receipts_root = B256::repeat_byte(1)
        }),
        ("gasUsed", |b| b.header.gas_used += 1),
        ("logsBloom", |b| b.header.logs_bloom = Bloom::ZERO),
        ("transactionsRoot", |b| {
            b.header.transactions_root = B256::ZERO
        }),
        ("transactionsRoot", |b| b.body.transactions.clear()),
        ("baseFeePerGas", |b| b.header.base_fee_per_gas = Some(7)),
        ("baseFeePerGas", |b| {
            b.header.withdrawals_root = None;
            b.header.blob_gas_used = None;
            b.header.excess_blob_gas = None;
            b.header.parent_beacon_block_root = None;
            b.header.requests_hash = None;
            b.header.base_fee_per_gas = None;
        }),
        ("timestamp", |b| b.header.timestamp = START_S),
        ("gasLimit", |b| b.header.gas_limit += 1),
        ("number", |b| b.header.number += 1),
        ("number", |b| b.header.number = u64::MAX),
        ("miner", |b| b.header.beneficiary = TARGET),
        ("difficulty", |b| b.header.difficulty = U256::ONE),
        ("extraData", |b| {
            b.header.extra_data = Bytes::from_static(b"hello")
        }),
        ("mixHash", |b| b.header.mix_hash = B256::repeat_byte(1)),
        ("nonce", |b| b.header.nonce = B64::repeat_byte(1)),
        ("sha3Uncles", |b| b.header.ommers_hash = B256::ZERO),
        ("withdrawalsRoot", |b| {
            b.header.withdrawals_root = Some(B256::ZERO)
        }),
        ("blobGasUsed", |b| b.header.blob_gas_used = Some(131_072)),
        ("excessBlobGas", |b| b.header.excess_blob_gas = Some(1)),
        ("parentBeaconBlockRoot", |b| {
            b.header.parent_beacon_block_root = Some(B256::repeat_byte(1));
        }),
        ("requestsHash", |b| {
            b.header.requests_hash = Some(B256::ZERO)
        }),
        ("sha3Uncles", |b| b.body.ommers.push(Header::default())),
    ];
    let source = chain();
    let blocks = source.blocks();
    let follower = Chain::follower();
    follower.node.import(blocks[..2].to_vec()).unwrap();
    let before = follower.node.head();
    for (name, change) in cases {
        let wrong = changed(&blocks[2], change);
        let error = follower.node.import(vec![wrong]).unwrap_err();
        let fault = error.fault().unwrap_or_else(|| panic!("{name}: {error}"));
        assert_eq!(fault.rule(), name, "{error}");
        assert!(error.to_string().starts_with("block "), "{error}");
        assert_eq!(follower.node.head(), before);
    }
    follower.node.verify().unwrap();
    follower.node.import(blocks).unwrap();
    follower.assert_same_as(&source);
}

#[test]
fn a_body_that_is_not_the_headers_is_refused() {
    let source = chain();
    let blocks = source.blocks();
    let follower = Chain::follower();
    follower.node.import(blocks[..2].to_vec()).unwrap();
    let withdrawal = Withdrawal {
        index: 0,
        validator_index: 0,
        address: TARGET,
        amount: 1,
    };
    for withdrawals in [None, Some(Withdrawals::new(vec![withdrawal]))] {
        let wrong = changed(&blocks[2], |block| block.body.withdrawals = withdrawals);
        let error = follower.node.import(vec![wrong]).unwrap_err();
        let rule = error.fault().unwrap().rule();
        assert!(rule.starts_with("withdrawals"), "{error}");
    }
}

#[test]
fn a_transaction_that_does_not_belong_is_refused() {
    let source = chain();
    let blocks = source.blocks();
    let follower = Chain::follower();
    follower.node.import(blocks[..2].to_vec()).unwrap();
    // The transaction of block 1 once more: its nonce is used.
    let again = blocks[0].decode().unwrap().body.transactions;
    let wrong = changed(&blocks[2], |block| {
        block.header.transactions_root =
            alloy_consensus::proofs::calculate_transaction_root(&again);
        block.body.transactions = again;
    });
    let error = follower.node.import(vec![wrong]).unwrap_err();
    assert!(
        matches!(
            error.fault(),
            Some(BlockFault::Transaction { position: 0, .. })
        ),
        "{error}"
    );
    assert!(error.to_string().contains("nonce too low"), "{error}");
}

#[test]
fn only_the_sequencers_signature_of_this_block_counts() {
    let source = chain();
    let blocks = source.blocks();
    let follower = Chain::follower();
    let first = blocks[0].decode().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    std::fs::write(&path, ol_types::DEV_MNEMONIC_KEYS[2]).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let other_key = BlockSigner::from_file(&path).unwrap();
    let with = |signature| WireBlock {
        rlp: blocks[0].rlp.clone(),
        signature,
    };
    let other_chain = BlockSigner::dev().sign(CHAIN_ID + 1, first.header.hash_slow());
    let garbage = Signature::new(U256::ONE, U256::ONE, true);
    let cases = [
        (with(None), "not signed"),
        (
            signed(&first, &other_key),
            "signed by 0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC",
        ),
        (with(blocks[1].signature), "not by the sequencer"),
        (with(Some(other_chain)), "not by the sequencer"),
        (with(Some(garbage)), "not by the sequencer"),
    ];
    for (wrong, words) in cases {
        let error = follower.node.import(vec![wrong]).unwrap_err();
        assert_eq!(error.fault().unwrap().rule(), "signature");
        assert!(error.to_string().contains(words), "{error}");
    }
    assert_eq!(follower.node.head().header.number, 0);
}

#[test]
fn blocks_must_follow_each_other_and_join_the_chain() {
    let source = chain();
    let blocks = source.blocks();
    let follower = Chain::follower();
    let import = |blocks: &[&WireBlock]| {
        let blocks = blocks.iter().map(|&block| block.clone()).collect();
        let outcome = follower.node.import(blocks);
        assert_eq!(follower.node.head().header.number, 0);
        outcome.unwrap_err()
    };
    let unknown = import(&[&blocks[1]]);
    assert!(
        matches!(unknown, ImportError::UnknownParent { number: 2, .. }),
        "{unknown}"
    );
    let gap = import(&[&blocks[0], &blocks[2]]);
    assert_eq!(
        (gap.position(), gap.fault().unwrap().rule()),
        (Some(1), "number")
    );
    let wrong_parent = changed(&blocks[1], |block| block.header.parent_hash = B256::ZERO);
    let wrong_parent = import(&[&blocks[0], &wrong_parent]);
    assert_eq!(wrong_parent.fault().unwrap().rule(), "parentHash");
    // All or nothing: the first two are good.
    let bad = changed(&blocks[2], |block| block.header.state_root = B256::ZERO);
    let bad = import(&[&blocks[0], &blocks[1], &bad]);
    assert_eq!(bad.position(), Some(2), "{bad}");
    let bad = changed(&blocks[2], |block| block.header.gas_used = 0);
    let bad = import(&[&blocks[0], &blocks[1], &bad]);
    assert_eq!(
        (bad.position(), bad.fault().unwrap().rule()),
        (Some(2), "gasUsed")
    );
}

#[test]
fn bytes_that_are_no_block_are_refused() {
    let source = chain();
    let good = &source.blocks()[0];
    let follower = Chain::follower();
    let mut longer = good.rlp.to_vec();
    longer.push(0);
    let cases = [
        Bytes::new(),
        Bytes::from_static(b"\xc0"),
        Bytes::from_static(b"\xbf\xff\xff\xff\xff\xff\xff\xff\xff"),
        Bytes::from_static(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
        good.rlp.slice(..good.rlp.len() - 1),
        longer.into(),
        vec![0xc0; ol_node::BLOCK_MAX_SIZE_BYTES + 1].into(),
    ];
    for rlp in cases {
        let wrong = WireBlock {
            rlp,
            signature: good.signature,
        };
        let error = follower.node.import(vec![wrong]).unwrap_err();
        assert!(
            matches!(error, ImportError::Malformed { position: 0, .. }),
            "{error}"
        );
    }
    let many = vec![good.clone(); ol_node::IMPORT_MAX_BLOCKS + 1];
    let error = follower.node.import(many).unwrap_err();
    assert!(matches!(error, ImportError::TooMuch { .. }), "{error}");
    assert_eq!(follower.node.head().header.number, 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_give_an_error(position in any::<prop::sample::Index>(), byte: u8, cut in any::<prop::sample::Index>()) {
        static BLOCK: std::sync::OnceLock<WireBlock> = std::sync::OnceLock::new();
        let good = BLOCK.get_or_init(|| chain().blocks()[0].clone());
        let follower = Chain::follower();
        let mut rlp = good.rlp.to_vec();
        let position = position.index(rlp.len());
        rlp[position] ^= byte.max(1);
        let flipped = WireBlock { rlp: rlp.clone().into(), signature: good.signature };
        prop_assert!(follower.node.import(vec![flipped]).is_err());
        rlp.truncate(cut.index(rlp.len()));
        let cut = WireBlock { rlp: rlp.into(), signature: good.signature };
        prop_assert!(follower.node.import(vec![cut]).is_err());
    }
}

#[test]
fn roles_do_not_mix() {
    let source = chain();
    let error = source.node.import(source.blocks()).unwrap_err();
    assert!(matches!(error, ImportError::Sequencer), "{error}");
    let follower = Chain::follower();
    let raw = Wallet::dev(0).transfer(0, TARGET, 1);
    let error = follower.node.submit_and_wait(&raw).unwrap_err();
    assert!(matches!(error, SubmitError::Follower), "{error}");
}
