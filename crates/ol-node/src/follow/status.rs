//! Where a follower stands.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::event::ChainEvent;
use crate::import::Imported;
use crate::node::{Node, Shared};

/// A follower that lacks more blocks than this is told to be syncing; up to
/// there it takes blocks as they come.
const BEHIND_MIN_BLOCKS: u64 = 2;

/// What a follower does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FollowPhase {
    /// It has not reached its source, or has lost it.
    Connecting,
    /// It fetches what it lacks.
    Syncing,
    /// It has every block that the source has.
    Live,
    /// The source sends what this node refuses; it stays on its chain and
    /// asks again later.
    Refusing,
}

/// Where a follower stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FollowStatus {
    /// What it does.
    pub phase: FollowPhase,
    /// Whether its chain cannot be taken for that of its source: it is some
    /// blocks behind, or has no source that it can follow.
    pub is_syncing: bool,
    /// Head when it last began to sync.
    pub starting_block: u64,
    /// Head now.
    pub current_block: u64,
    /// Head of the source, once it has been heard of.
    pub highest_block: Option<u64>,
    /// Why it is not live, in words; of the newest failure.
    pub reason: Option<String>,
    /// Blocks imported since it was started.
    pub n_imported: u64,
    /// Times that it changed to another branch.
    pub n_reorgs: u64,
    /// Times that it refused what the source sent.
    pub n_refused: u64,
}

/// A view of a follower's status. Clones see the same.
#[derive(Debug, Clone)]
pub struct StatusHandle(Arc<Watched>);

#[derive(Debug)]
struct Watched {
    status: Mutex<FollowStatus>,
    /// Who is told; a status outlives its node.
    node: Weak<Shared>,
}

impl StatusHandle {
    pub(super) fn new(node: &Node) -> Self {
        let head = node.head().header.number;
        let status = FollowStatus {
            phase: FollowPhase::Connecting,
            is_syncing: true,
            starting_block: head,
            current_block: head,
            highest_block: None,
            reason: None,
            n_imported: 0,
            n_reorgs: 0,
            n_refused: 0,
        };
        Self(Arc::new(Watched {
            status: Mutex::new(status),
            node: Arc::downgrade(&node.shared),
        }))
    }

    /// The status now.
    #[must_use]
    pub fn get(&self) -> FollowStatus {
        self.lock().clone()
    }

    pub(super) fn source_is_at(&self, number: u64) {
        self.lock().highest_block = Some(number);
    }

    pub(super) fn syncing(&self, head: u64) {
        let mut status = self.lock();
        if status.phase != FollowPhase::Syncing {
            status.phase = FollowPhase::Syncing;
            status.starting_block = head;
        }
        status.current_block = head;
        let highest = status.highest_block.unwrap_or(head);
        let is_behind = highest.saturating_sub(head) > BEHIND_MIN_BLOCKS;
        let is_syncing = status.is_syncing || is_behind;
        self.tell(status, is_syncing);
    }

    pub(super) fn live(&self, head: u64) {
        let mut status = self.lock();
        if status.phase != FollowPhase::Live {
            tracing::info!(head, "on the source's chain");
        }
        status.phase = FollowPhase::Live;
        status.current_block = head;
        status.reason = None;
        self.tell(status, false);
    }

    pub(super) fn away(&self, reason: String) {
        let mut status = self.lock();
        status.phase = FollowPhase::Connecting;
        status.reason = Some(reason);
        self.tell(status, true);
    }

    pub(super) fn refused(&self, reason: String) {
        let mut status = self.lock();
        status.phase = FollowPhase::Refusing;
        status.reason = Some(reason);
        status.n_refused += 1;
        self.tell(status, true);
    }

    pub(super) fn imported(&self, imported: &Imported) {
        let mut status = self.lock();
        status.current_block = imported.head_number;
        status.n_imported += imported.n_blocks as u64;
        if imported.n_unwound > 0 {
            status.n_reorgs += 1;
        }
    }

    /// Tells the node's subscribers if the follower has begun or ceased to sync.
    fn tell(&self, mut status: MutexGuard<'_, FollowStatus>, is_syncing: bool) {
        if status.is_syncing == is_syncing {
            return;
        }
        status.is_syncing = is_syncing;
        let event = ChainEvent::Syncing(Arc::new(status.clone()));
        drop(status);
        if let Some(node) = self.0.node.upgrade() {
            node.publish(&event);
        }
    }

    fn lock(&self) -> MutexGuard<'_, FollowStatus> {
        self.0.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
