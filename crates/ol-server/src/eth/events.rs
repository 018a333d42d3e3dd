//! What happens to the chain, for filters and subscriptions.
//!
//! A node hands its events to one thread here, which hands them on to the
//! subscriptions and notes them in a journal for the filters. Both are bounded:
//! a subscription that falls behind is cut off, and a filter that is asked too
//! rarely is gone.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;

use alloy_primitives::B256;
use alloy_rpc_types_eth::Log as RpcLog;
use ol_node::{ChainEvent, Head, LogFilter, Node};
use tokio::sync::broadcast;

use super::shapes;

/// Events that a subscription may fall behind.
const LIVE_MAX: usize = 256;

/// Blocks, and pending transactions, that the journal goes back.
const JOURNAL_MAX: usize = 65_536;

/// Why there are no events.
#[derive(Debug, thiserror::Error)]
#[error("the thread for events could not be started")]
pub(super) struct EventsError(#[source] std::io::Error);

/// Gives out the [`Feed`] of a node.
#[derive(Debug)]
pub(super) struct Events {
    node: Node,
    current: Mutex<Option<Arc<Feed>>>,
}

impl Events {
    pub(super) const fn new(node: Node) -> Self {
        Self {
            node,
            current: Mutex::new(None),
        }
    }

    /// The feed; begun anew if there is none, or the last one has ended.
    ///
    /// # Errors
    /// [`EventsError`] if it had to be begun and could not.
    pub(super) fn feed(&self) -> Result<Arc<Feed>, EventsError> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(feed) = current.as_ref()
            && !feed.journal().has_ended
        {
            return Ok(Arc::clone(feed));
        }
        let (live, kept_open) = broadcast::channel(LIVE_MAX);
        let feed = Arc::new(Feed {
            live: kept_open,
            journal: Mutex::new(Journal::default()),
        });
        let received = self.node.subscribe();
        let thread = thread::Builder::new().name("rpc-events".to_owned());
        thread
            .spawn({
                let feed = Arc::clone(&feed);
                move || hand_on(&received, &feed, &live)
            })
            .map_err(EventsError)?;
        *current = Some(Arc::clone(&feed));
        Ok(feed)
    }
}

/// Runs until the node is gone, or has cut this thread off.
fn hand_on(
    received: &mpsc::Receiver<ChainEvent>,
    feed: &Feed,
    live: &broadcast::Sender<ChainEvent>,
) {
    while let Ok(event) = received.recv() {
        feed.journal().note(&event);
        // `feed` holds a receiver, so there is one.
        let _ = live.send(event);
    }
    feed.journal().has_ended = true;
}

/// Events from one moment on.
#[derive(Debug)]
pub(super) struct Feed {
    /// Never read: new receivers are made of it.
    live: broadcast::Receiver<ChainEvent>,
    journal: Mutex<Journal>,
}

impl Feed {
    /// Every event from now on. Some from before may come first: [`Since`]
    /// tells them apart.
    pub(super) fn subscribe(&self) -> broadcast::Receiver<ChainEvent> {
        self.live.resubscribe()
    }

    /// Where the journal ends now.
    pub(super) fn mark(&self, head: &Head) -> Mark {
        let journal = self.journal();
        Mark {
            block: journal.blocks.end(),
            transaction: journal.transactions.end(),
            since: Since::new(head),
        }
    }

    /// What happened to blocks since `mark`, which is moved to now. `None` if
    /// the journal does not go back so far.
    pub(super) fn blocks_since(&self, mark: &mut Mark) -> Option<Net> {
        let journal = self.journal();
        let changes = journal.blocks.since(mark.block)?;
        if journal.has_ended {
            return None;
        }
        let mut net = Net::default();
        for change in changes {
            match change {
                BlockChange::Added { number, hash } => {
                    if mark.since.is_added_after(*number, *hash) {
                        net.added.push((*number, *hash));
                    }
                }
                BlockChange::Removed { hash, logs } => {
                    // One that was added since the mark leaves no trace.
                    if mark.since.is_removed_after(*hash)
                        && net.added.pop_if(|(_, added)| added == hash).is_none()
                    {
                        net.removed.push(Arc::clone(logs));
                    }
                }
            }
        }
        mark.block = journal.blocks.end();
        Some(net)
    }

    /// The transactions that were taken since `mark`, which is moved to now.
    /// `None` if the journal does not go back so far.
    pub(super) fn transactions_since(&self, mark: &mut Mark) -> Option<Vec<B256>> {
        let journal = self.journal();
        let found = journal
            .transactions
            .since(mark.transaction)?
            .copied()
            .collect();
        if journal.has_ended {
            return None;
        }
        mark.transaction = journal.transactions.end();
        Some(found)
    }

    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in a journal.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark {
    block: u64,
    transaction: u64,
    since: Since,
}

/// Tells events after a moment from those before it that come late, because a
/// node moves its head before its subscribers hear of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Since {
    /// The head at that moment, until something after it was seen.
    head: Option<(u64, B256)>,
}

impl Since {
    pub(super) fn new(head: &Head) -> Self {
        Self {
            head: Some((head.header.number, head.hash)),
        }
    }

    /// Whether a block was added after the moment. To be asked in order.
    pub(super) fn is_added_after(&mut self, number: u64, hash: B256) -> bool {
        match self.head {
            Some((head, head_hash)) if number <= head => {
                if hash == head_hash {
                    self.head = None;
                }
                false
            }
            _ => {
                self.head = None;
                true
            }
        }
    }

    /// Whether a block was removed after the moment. To be asked in order.
    pub(super) fn is_removed_after(&mut self, hash: B256) -> bool {
        // The first to be removed after the moment is the head of that moment,
        // or one that was added after it.
        if self.head.is_some_and(|(_, head_hash)| hash == head_hash) {
            self.head = None;
        }
        self.head.is_none()
    }
}

/// What happened to blocks between two moments.
#[derive(Debug, Default)]
pub(super) struct Net {
    /// Logs of each block that is no more part of the chain, newest block first.
    pub(super) removed: Vec<Arc<[RpcLog]>>,
    /// Blocks that have become part of the chain, by number and hash, ascending.
    pub(super) added: Vec<(u64, B256)>,
}

#[derive(Debug, Default)]
struct Journal {
    blocks: Ring<BlockChange>,
    transactions: Ring<B256>,
    has_ended: bool,
}

#[derive(Debug)]
enum BlockChange {
    Added { number: u64, hash: B256 },
    Removed { hash: B256, logs: Arc<[RpcLog]> },
}

impl Journal {
    fn note(&mut self, event: &ChainEvent) {
        match event {
            ChainEvent::Block(block) => self.blocks.push(BlockChange::Added {
                number: block.header.number,
                hash: block.hash,
            }),
            ChainEvent::Unwound { blocks } => {
                for block in blocks.iter() {
                    let logs = shapes::logs_of_block(block, &LogFilter::default(), true);
                    self.blocks.push(BlockChange::Removed {
                        hash: block.hash,
                        logs: logs.into(),
                    });
                }
            }
            ChainEvent::PendingTransactions(taken) => {
                for pooled in taken.iter() {
                    self.transactions.push(pooled.hash);
                }
            }
            _ => {}
        }
    }
}

/// The last of a row of items, which are counted from the first on.
#[derive(Debug)]
struct Ring<T> {
    n_gone: u64,
    kept: VecDeque<T>,
}

impl<T> Default for Ring<T> {
    fn default() -> Self {
        Self {
            n_gone: 0,
            kept: VecDeque::new(),
        }
    }
}

impl<T> Ring<T> {
    fn push(&mut self, item: T) {
        if self.kept.len() == JOURNAL_MAX {
            self.kept.pop_front();
            self.n_gone += 1;
        }
        self.kept.push_back(item);
    }

    fn end(&self) -> u64 {
        self.n_gone + self.kept.len() as u64
    }

    /// The items from the `from`-th on, if all of them are kept.
    fn since(&self, from: u64) -> Option<impl Iterator<Item = &T>> {
        let skipped = usize::try_from(from.checked_sub(self.n_gone)?).ok()?;
        Some(self.kept.iter().skip(skipped))
    }
}

#[cfg(test)]
mod tests;
