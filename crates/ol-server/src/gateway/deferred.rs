//! Sketches of answers that were delivered when there was no time for them.
//!
//! The sketch of an answer takes about as long as the answer. When more answers
//! end than can be sketched, the client is not kept waiting: the answer goes to
//! the [`Journal`] first, the reply says `pending`, and one thread sketches what
//! is there, oldest first, and hands the receipts to the settlement.
//!
//! # Never charged twice
//! Everything in a receipt but its query sketch is fixed when the answer is
//! written to the journal, and the sketch follows from the tokens. Whoever comes
//! after a crash computes the same receipt, with the same id.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ol_model::Tokenizer;
use ol_types::B256;
use tokio::sync::Semaphore;

use super::ServedModel;
use super::chain::{Chain, Model};
use super::holds::Reserve;
use super::journal::{AnsweredRequest, Journal, PENDING_MAX, PendingReceipt};
use super::settlement::{Job, Settlement, chain_of};
use super::thread::Thread;

/// How long after a failure of the disk it is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Answers that wait for their sketch, and room for those that will.
#[derive(Debug)]
pub(super) struct Deferred {
    shared: Arc<Shared>,
    thread: Thread,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    max_size_bytes: u64,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Waiting>,
    /// Room taken by requests that run and by answers that wait.
    n_taken: usize,
    taken_bytes: u64,
    is_stopping: bool,
}

#[derive(Debug)]
struct Waiting {
    request_id: B256,
    hold: Reserve,
    room: Room,
}

/// Room for one answer, from before its first token on: an answer that was
/// begun can always be kept.
#[derive(Debug)]
pub(super) struct Room {
    shared: Arc<Shared>,
    size_bytes: u64,
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.n_taken -= 1;
        state.taken_bytes -= self.size_bytes;
    }
}

/// What sketching needs.
pub(super) struct Tools {
    pub(super) journal: Journal,
    pub(super) settlement: Arc<Settlement>,
    pub(super) models: BTreeMap<String, Arc<ServedModel>>,
    /// Knows which pots a model has.
    pub(super) chain: Arc<Chain>,
    pub(super) tokenizer: Arc<Tokenizer>,
    /// Shared with the requests that wait for their sketch.
    pub(super) sketches: Arc<Semaphore>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is complete before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Deferred {
    /// Starts the thread with the answers that an earlier run left, each with
    /// its fee set aside.
    pub(super) fn start(
        tools: Tools,
        max_size_bytes: u64,
        left: Vec<(AnsweredRequest, Reserve)>,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            wake: Condvar::new(),
            max_size_bytes,
        });
        for (answered, hold) in left {
            let n_tokens = answered.prompt_tokens.len() + answered.answer_tokens.len();
            let size_bytes = AnsweredRequest::size_bytes(n_tokens, answered.passages.len());
            let room = take(&shared, size_bytes as u64);
            shared.lock().queue.push_back(Waiting {
                request_id: answered.draft.request_id,
                hold,
                room,
            });
        }
        let worker = Worker {
            shared: Arc::clone(&shared),
            tools,
        };
        let thread = Thread::spawn("sketches", move || worker.run())?;
        Ok(Self { shared, thread })
    }

    /// Room for an answer with so many tokens, prompt and all, and passages;
    /// `None` if there is none, beside `n_owed` receipts.
    pub(super) fn reserve(
        &self,
        (n_tokens, n_passages): (usize, usize),
        n_owed: usize,
    ) -> Option<Room> {
        let size_bytes = AnsweredRequest::size_bytes(n_tokens, n_passages) as u64;
        let state = self.shared.lock();
        let has_room = state.n_taken + n_owed < PENDING_MAX
            && state.taken_bytes.saturating_add(size_bytes) <= self.shared.max_size_bytes;
        drop(state);
        has_room.then(|| take(&self.shared, size_bytes))
    }

    /// Takes an answer that is in the journal.
    pub(super) fn push(&self, request_id: B256, hold: Reserve, room: Room) {
        self.shared.lock().queue.push_back(Waiting {
            request_id,
            hold,
            room,
        });
        self.shared.wake.notify_one();
    }

    /// Answers that wait.
    pub(super) fn n_waiting(&self) -> usize {
        self.shared.lock().queue.len()
    }

    /// Ends the thread after the sketch under way; what waits stays in the
    /// journal. Blocks.
    pub(super) fn stop(&self) {
        self.shared.lock().is_stopping = true;
        self.shared.wake.notify_all();
        self.thread.join();
    }
}

fn take(shared: &Arc<Shared>, size_bytes: u64) -> Room {
    let mut state = shared.lock();
    state.n_taken += 1;
    state.taken_bytes += size_bytes;
    drop(state);
    Room {
        shared: Arc::clone(shared),
        size_bytes,
    }
}

struct Worker {
    shared: Arc<Shared>,
    tools: Tools,
}

impl Worker {
    fn run(self) {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().build() else {
            tracing::error!("no thread for sketches; answers wait for the next start");
            return;
        };
        while let Some(waiting) = self.next() {
            // In turn with the requests whose clients wait for their receipt.
            let turn = runtime.block_on(self.tools.sketches.acquire());
            let kept = self.sketch(waiting);
            drop(turn);
            if let Err(waiting) = kept {
                let mut state = self.shared.lock();
                state.queue.push_front(waiting);
                let wait = self
                    .shared
                    .wake
                    .wait_timeout_while(state, RETRY_AFTER, |state| !state.is_stopping);
                drop(wait);
            }
        }
    }

    /// The oldest answer, when there is one; `None` to stop.
    fn next(&self) -> Option<Waiting> {
        let state = self.shared.lock();
        let is_idle = |state: &mut State| !state.is_stopping && state.queue.is_empty();
        let state = self.shared.wake.wait_while(state, is_idle);
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        if state.is_stopping {
            return None;
        }
        state.queue.pop_front()
    }

    /// From an answer to its receipt. Gives it back if the disk failed.
    fn sketch(&self, waiting: Waiting) -> Result<(), Waiting> {
        let Tools {
            journal,
            settlement,
            ..
        } = &self.tools;
        let request = waiting.request_id;
        let answered = match journal.answer(request) {
            Ok(Some(answered)) => answered,
            Ok(None) => return Ok(()),
            Err(error) => {
                let error = chain_of(&error);
                tracing::error!(%request, error, "an answer cannot be read; it is left for the next start");
                return Ok(());
            }
        };
        let model = match self.tools.chain.model_of(&answered.draft) {
            Ok(model) => model,
            Err(error) => {
                tracing::warn!(%request, error = chain_of(&error), "an answer waits for the chain");
                return Err(waiting);
            }
        };
        let done = match self.receipt(answered, model) {
            Ok(pending) => journal
                .add(&pending)
                .and_then(|()| journal.remove_answer(request))
                .map(|()| Some(pending)),
            Err(error) => {
                tracing::error!(%request, error, "an answer has no sketch; nothing is charged");
                journal.refuse_answer(request).map(|()| None)
            }
        };
        match done {
            Ok(Some(pending)) => {
                let Waiting { hold, room, .. } = waiting;
                drop(room);
                settlement.submit_waiting(Job {
                    pending,
                    hold,
                    reply: None,
                });
                Ok(())
            }
            Ok(None) => Ok(()),
            Err(error) => {
                tracing::warn!(%request, error = chain_of(&error), "a receipt is not kept yet");
                Err(waiting)
            }
        }
    }

    /// # Errors
    /// Why there is no sketch.
    fn receipt(
        &self,
        answered: AnsweredRequest,
        model: Option<Model>,
    ) -> Result<PendingReceipt, String> {
        let draft = &answered.draft;
        let served = self.tools.models.values().find(|served| {
            ol_types::name_id(&served.name) == draft.model_id
                && served.adapter.hash() == draft.adapter_hash
        });
        let served = served.ok_or("its model is not served any more")?;
        let model = model.ok_or("its model is not on chain any more")?;
        answered.recorded(served, model.params.potsBps, &self.tools.tokenizer)
    }
}
