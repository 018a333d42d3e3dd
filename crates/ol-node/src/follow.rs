//! Following: a chain that another node makes, kept up to date here.
//!
//! A [`Follower`] asks a [`BlockSource`] for what is new and imports it
//! ([`Node::import`]), from block 0 on and then as blocks are made. It trusts
//! the source with nothing: every block is checked against the rules and the
//! sequencer's signature, and what does not pass is refused, by name, while
//! the node goes on serving the chain it has. How blocks travel is the
//! source's business.
//!
//! # Phases
//! ```text
//!            another chain, a wrong block, a branch that is too old
//!   Connecting ──> Syncing ──> Live ──────> Refusing
//!        ^            │          │              │
//!        └────────────┴──────────┴──────────────┘  the source is away, or again
//! ```

mod source;
mod status;

use std::time::Duration;

use alloy_primitives::B256;
use ol_runtime::Shutdown;

pub use source::{BlockSource, SourceError, SourceHead};
pub use status::{FollowPhase, FollowStatus, StatusHandle};

use crate::import::ImportError;
use crate::query::QueryError;
use crate::wire::WireBlock;
use crate::{BlockRef, Node};

/// How a follower behaves. Plain data.
#[derive(Debug, Clone)]
pub struct FollowConfig {
    /// Most blocks asked for at one time. Default 128.
    pub batch_max_blocks: usize,
    /// Longest rest before the source is asked again while it makes no
    /// announcement. Default 5 s.
    pub poll: Duration,
    /// Rest after the first failure; it doubles with every further one.
    /// Default 500 ms.
    pub retry_min: Duration,
    /// Longest rest after a failure. Default 30 s.
    pub retry_max: Duration,
}

impl Default for FollowConfig {
    fn default() -> Self {
        Self {
            batch_max_blocks: 128,
            poll: Duration::from_secs(5),
            retry_min: Duration::from_millis(500),
            retry_max: Duration::from_secs(30),
        }
    }
}

/// What a follower wants after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// To be called again: there may be more to do.
    Continue,
    /// To be called again when the source has something new ([`Follower::wait`]).
    Wait,
    /// To be left alone for this long: something failed.
    Rest(Duration),
    /// To be dropped: the node or the source is stopping.
    Stop,
}

/// Why a step did not succeed.
#[derive(Debug, thiserror::Error)]
enum StepError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error("the source serves another chain: {what} is {found}, ours is {expected}")]
    ForeignChain {
        what: &'static str,
        found: String,
        expected: String,
    },
    #[error(
        "the source's chain leaves ours before block {oldest}, more blocks ago than a reorg may undo"
    )]
    NoCommonAncestor { oldest: u64 },
    #[error("the source did not send what it was asked for: {reason}")]
    Answer { reason: String },
    #[error(transparent)]
    Import(#[from] ImportError),
    #[error(transparent)]
    Query(#[from] QueryError),
}

/// Keeps a node on the chain of a source; see the module.
#[derive(Debug)]
pub struct Follower<S> {
    node: Node,
    source: S,
    config: FollowConfig,
    status: StatusHandle,
    n_failures: u32,
}

impl<S: BlockSource> Follower<S> {
    /// A follower that has not asked anything yet.
    #[must_use]
    pub fn new(node: Node, source: S, config: FollowConfig) -> Self {
        let status = StatusHandle::new(&node);
        Self {
            node,
            source,
            config,
            status,
            n_failures: 0,
        }
    }

    /// Where the follower stands, for others to look at while it works.
    #[must_use]
    pub fn status(&self) -> StatusHandle {
        self.status.clone()
    }

    /// Follows until `shutdown`, or until the node stops. Blocks this thread.
    pub fn run(mut self, shutdown: &Shutdown) {
        while !shutdown.is_triggered() {
            match self.step() {
                Next::Continue => {}
                Next::Wait => self.wait(),
                Next::Rest(span) => {
                    if shutdown.wait_timeout(span) {
                        return;
                    }
                }
                Next::Stop => return,
            }
        }
    }

    /// Rests until the source has something new, at most [`FollowConfig::poll`].
    pub fn wait(&mut self) {
        if let Err(error) = self.source.wait(self.config.poll) {
            tracing::debug!(%error, "no announcements from the source");
        }
    }

    /// Asks the source once and imports at most what it takes to be on its
    /// chain, a batch at a time.
    pub fn step(&mut self) -> Next {
        match self.advance() {
            Ok(next) => {
                self.n_failures = 0;
                next
            }
            Err(
                StepError::Source(SourceError::Stopped) | StepError::Import(ImportError::Stopped),
            ) => Next::Stop,
            Err(error) => self.failed(&error),
        }
    }

    fn advance(&mut self) -> Result<Next, StepError> {
        let head = self.source.head()?;
        self.check_chain(&head)?;
        let local = self.node.head();
        self.status.source_is_at(head.number);
        if self.is_ours(head.number, head.hash)? {
            // The same block, or the source is behind on our own chain.
            self.status.live(local.header.number);
            return Ok(Next::Wait);
        }
        self.status.syncing(local.header.number);
        if head.number > local.header.number {
            let blocks = self.fetch(local.header.number + 1)?;
            if parent_of(&blocks)? == local.hash {
                self.import(blocks)?;
                return Ok(Next::Continue);
            }
        }
        self.follow_branch(&head)
    }

    /// Imports the branch of the source from where it leaves our chain on.
    fn follow_branch(&mut self, head: &SourceHead) -> Result<Next, StepError> {
        let ancestor = self.common_ancestor(head)?;
        tracing::info!(
            ancestor,
            source = head.number,
            "the source is on another branch"
        );
        let mut first = ancestor + 1;
        while first <= head.number {
            let blocks = self.fetch(first)?;
            first += blocks.len() as u64;
            if self.import(blocks)? {
                return Ok(Next::Continue);
            }
        }
        // A branch that is not newer than ours: the source may be a node that
        // was left behind.
        self.status.live(self.node.head().header.number);
        Ok(Next::Wait)
    }

    /// The newest block that the source's chain and ours share, by bisection.
    fn common_ancestor(&mut self, head: &SourceHead) -> Result<u64, StepError> {
        let local = self.node.head().header.number;
        let oldest = local.saturating_sub(self.node.reorg_max_blocks());
        // Shared up to `low`, not from `high` on.
        let mut low = oldest;
        let mut high = local.min(head.number) + 1;
        if low >= high || !self.is_shared(low)? {
            return Err(StepError::NoCommonAncestor { oldest });
        }
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if self.is_shared(middle)? {
                low = middle;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }

    fn is_shared(&mut self, number: u64) -> Result<bool, StepError> {
        if number == 0 {
            // Compared in `check_chain`.
            return Ok(true);
        }
        let blocks = self.source.blocks(number, 1)?;
        let [block] = blocks.as_slice() else {
            return Err(answer(format!(
                "{} blocks for block {number}",
                blocks.len()
            )));
        };
        let header = block.header().map_err(|error| answer(error.to_string()))?;
        if header.number != number {
            return Err(answer(format!(
                "block {} for block {number}",
                header.number
            )));
        }
        self.is_ours(number, header.hash_slow())
    }

    fn is_ours(&self, number: u64, hash: B256) -> Result<bool, StepError> {
        let found = self.node.header(BlockRef::Number(number))?;
        Ok(found.is_some_and(|(_, ours)| ours == hash))
    }

    /// Asks for blocks from `first` on; there is at least one in the answer.
    fn fetch(&mut self, first: u64) -> Result<Vec<WireBlock>, StepError> {
        let n_max = self.config.batch_max_blocks;
        let blocks = self.source.blocks(first, n_max)?;
        if blocks.is_empty() {
            return Err(answer(format!(
                "no block {first}, though its head is not below"
            )));
        }
        if blocks.len() > n_max {
            return Err(answer(format!(
                "{} blocks, asked for {n_max}",
                blocks.len()
            )));
        }
        Ok(blocks)
    }

    /// Imports blocks; of a batch with a wrong one, those before it. Returns
    /// whether the last of them is on the chain now.
    fn import(&mut self, mut blocks: Vec<WireBlock>) -> Result<bool, StepError> {
        let error = match self.node.import(blocks.clone()) {
            Ok(imported) if imported.n_blocks == 0 => {
                return Err(answer("nothing but blocks that we have".to_owned()));
            }
            Ok(imported) => {
                self.status.imported(&imported);
                tracing::debug!(
                    number = imported.head_number,
                    n_blocks = imported.n_blocks,
                    n_unwound = imported.n_unwound,
                    "imported"
                );
                return Ok(imported.is_canonical);
            }
            Err(error) => error,
        };
        if let Some(position) = error.position()
            && position > 0
        {
            blocks.truncate(position);
            // Whatever becomes of them, the reason is the wrong block.
            if let Ok(imported) = self.node.import(blocks) {
                self.status.imported(&imported);
            }
        }
        Err(error.into())
    }

    fn check_chain(&self, head: &SourceHead) -> Result<(), StepError> {
        let expected = self.node.chain_id();
        if head.chain_id != expected {
            return Err(StepError::ForeignChain {
                what: "the chain id",
                found: head.chain_id.to_string(),
                expected: expected.to_string(),
            });
        }
        let expected = self.node.genesis_hash();
        if head.genesis_hash != expected {
            return Err(StepError::ForeignChain {
                what: "block 0",
                found: head.genesis_hash.to_string(),
                expected: expected.to_string(),
            });
        }
        Ok(())
    }

    fn failed(&mut self, error: &StepError) -> Next {
        let doublings = self.n_failures.min(16);
        self.n_failures = self.n_failures.saturating_add(1);
        let rest = self
            .config
            .retry_min
            .saturating_mul(1 << doublings)
            .min(self.config.retry_max);
        let reason = error_chain(error);
        match error {
            StepError::Source(_) => {
                tracing::warn!(%reason, ?rest, "the source cannot be reached");
                self.status.away(reason);
            }
            _ => {
                tracing::warn!(%reason, ?rest, "refused what the source sent; staying on our chain");
                self.status.refused(reason);
            }
        }
        Next::Rest(rest)
    }
}

fn answer(reason: String) -> StepError {
    StepError::Answer { reason }
}

fn parent_of(blocks: &[WireBlock]) -> Result<B256, StepError> {
    let first = blocks
        .first()
        .ok_or_else(|| answer("no block".to_owned()))?;
    let header = first.header().map_err(|error| answer(error.to_string()))?;
    Ok(header.parent_hash)
}

fn error_chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Runs a follower on a thread of its own.
///
/// # Errors
/// If the thread could not be started.
pub fn spawn_follower<S: BlockSource + Send + 'static>(
    follower: Follower<S>,
    shutdown: Shutdown,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    std::thread::Builder::new()
        .name("follower".to_owned())
        .spawn(move || follower.run(&shutdown))
}
