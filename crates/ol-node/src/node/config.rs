//! What a node is told when it is opened, and why it may not open.

use std::num::NonZeroU64;

use alloy_primitives::{Address, B256};

use crate::StoreError;
use crate::mempool::PoolConfig;
use crate::signature::BlockSigner;
use crate::store::FORMAT_VERSION;

/// Who makes the blocks of a chain. Fixed while a node is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Role {
    /// This node takes transactions and makes blocks.
    #[default]
    Sequencer,
    /// Blocks come from another node; transactions are refused.
    Follower,
}

/// When a sequencer closes a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BlockMode {
    /// As soon as something can be executed, with all that waits.
    #[default]
    OnDemand,
    /// At most once in this many milliseconds. Until then a transaction is
    /// executed when it arrives and shows in the pending block. There is no
    /// block without a transaction, unless [`NodeConfig::empty_blocks`] says so.
    Interval(NonZeroU64),
}

/// Limits of a node. Plain data; the defaults suit a development machine.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Who makes the blocks. Default: this node.
    pub role: Role,
    /// When a block is closed. Default: on demand.
    pub block_mode: BlockMode,
    /// Whether a block is closed at every interval, be it empty. Default: no.
    pub empty_blocks: bool,
    /// Limits of the pool of transactions that wait.
    pub pool: PoolConfig,
    /// Most transactions that were sent and are not looked at yet. Default 4,096.
    pub queue_max: usize,
    /// Largest size of the database file. Default 256 GiB; no disk is used
    /// before it is needed.
    pub store_max_size_bytes: usize,
    /// How many blocks back the state can be asked for and restored; older
    /// history is forgotten. 0 keeps all. Default 100,000.
    pub history_max_blocks: u64,
    /// How many blocks back proofs are given. A proof costs time and memory in
    /// proportion to what changed since its block. Default 1,024.
    pub proof_depth_max_blocks: u64,
    /// Signs the blocks that this node makes. Blocks that nobody signed are
    /// taken by no follower. Default: none.
    pub block_signer: Option<BlockSigner>,
    /// Who signs the blocks that a follower takes. Default: whom the genesis
    /// names ([`sequencer_of`](crate::sequencer_of)).
    pub sequencer: Option<Address>,
    /// Most blocks that a change to another branch may undo. Default 256.
    pub reorg_max_blocks: u64,
    /// Events that a slow subscriber may lag behind before it is cut off.
    /// Default 1,024.
    pub subscriber_lag_max: usize,
    /// Most gas of a message that is only tried. Default 50,000,000.
    pub call_gas_max: u64,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            role: Role::default(),
            block_mode: BlockMode::default(),
            empty_blocks: false,
            pool: PoolConfig::default(),
            queue_max: 4_096,
            store_max_size_bytes: 256 << 30,
            history_max_blocks: 100_000,
            proof_depth_max_blocks: 1_024,
            block_signer: None,
            sequencer: None,
            reorg_max_blocks: 256,
            subscriber_lag_max: 1_024,
            call_gas_max: 50_000_000,
        }
    }
}

/// Why a chain could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The database could not be opened or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The database was written by a version that this one does not know.
    #[error(
        "the chain database has format {found}, this version reads {FORMAT_VERSION}; open it with the version that wrote it, or remove the folder to begin the chain anew"
    )]
    Format {
        /// What the database says.
        found: u32,
    },
    /// The directory holds another chain.
    #[error("the chain database begins with genesis {found}, expected {expected}")]
    ForeignGenesis {
        /// Hash of the block 0 that is there.
        found: B256,
        /// Hash of the block 0 that the given genesis makes.
        expected: B256,
    },
    /// The directory holds a chain with the same block 0 and another id.
    #[error("the chain database has chain id {found}, expected {expected}")]
    ForeignChain {
        /// The id that is there.
        found: u64,
        /// The id that the given genesis has.
        expected: u64,
    },
    /// The genesis makes no block.
    #[error("the genesis is not usable: {reason}")]
    Genesis {
        /// Why.
        reason: String,
    },
    /// A follower was not told whose blocks it is to take.
    #[error(
        "neither the genesis (openledger.sequencer) nor the configuration says who signs the blocks of this chain"
    )]
    NoSequencer,
    /// The key is not the one whose blocks followers take.
    #[error("the key of {found} cannot sign the blocks of this chain: its sequencer is {expected}")]
    ForeignSigner {
        /// Whose the key is.
        found: Address,
        /// The sequencer.
        expected: Address,
    },
    /// A thread of the node could not be started.
    #[error("the node could not start a thread")]
    Thread(#[source] std::io::Error),
}
