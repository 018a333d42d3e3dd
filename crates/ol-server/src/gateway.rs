//! From a question with an API key to an answer with a receipt.
//!
//! A request goes through: account of the key, model, price on chain, a hold on
//! the prepaid balance for the largest fee it can cause, generation, query
//! sketch, receipt, [`Journal`], settlement, reply. No HTTP here; that is
//! [`crate::api`].
//!
//! # Who pays for what
//! - A request that is refused, fails, or has its client leave before any part
//!   of the answer was delivered costs nothing.
//! - A client that leaves in the middle of a stream pays for the tokens generated
//!   until then (their receipt settles like any other).
//! - From the moment a receipt is in the journal it is settled, refused or
//!   pending, and never charged twice, whatever crashes.
//! - An answer whose query sketch there is no time for goes to the journal as it
//!   is, and its reply says `pending`; it is sketched and settled later.
//! - An answer of the optimistic tier is charged when it is claimed; refuted, its
//!   fee goes back to the payer, and the operator's bond is lost. Past the bond its
//!   model is refused by name.
//! - Asked again under the same idempotency key, a request is answered again
//!   under the receipt that is there.
//!
//! # Limits
//! Requests at once, requests waiting in the engine, receipts owed, tokens: all
//! bounded; past a bound a request is refused as overloaded.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ol_model::Lora;
use ol_runtime::{Clock, Objects};
use ol_serve::{AdapterRef, GenerateRequest};
use ol_spans::SpanIndex;
use ol_types::{Address, B256, Receipt, WEI_PER_OPEN, name_id};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub use self::chain::{Chain, ChainError, ClaimState, ClaimStatus, Claimed, Model, Settled};
pub use self::claims::CLAIMS_MAX;
pub use self::idempotency::IDEMPOTENCY_KEY_SIZE_BYTES_MAX;
pub use self::journal::{Journal, JournalError, PENDING_MAX, PendingReceipt};
pub use self::labels::Labels;
pub use self::receipts::{
    ClaimView, PassageView, PotView, PotsView, ReceiptError, ReceiptView, Receipts, ShareView,
    SourceView, SpanView, SplitView,
};
pub use self::session::{Session, hash_tokens};
pub use self::settlement::Status;
pub use self::sketch::{AnswerSketcher, PassagePrompt};

use crate::answer::{AnswerRequest, RequestError};
use crate::backend::Backend;
use crate::keys::{ApiKeys, Cost, KeysError, Meter};
use crate::optimistic::OptimisticIndex;
use crate::prepare::{Prepared, Preparer};
use crate::retrieval::Retrieval;
use crate::sampling::SamplingDefaults;

use self::claims::{Bonds, Claims, OpenError};
use self::deferred::{Deferred, Tools};
use self::holds::{Hold, HoldError, Holds, Reserve};
use self::session::{Charge, Start};
use self::settlement::{Job, Settlement, chain_of};

mod chain;
mod claims;
mod deferred;
pub(crate) mod durable;
mod holds;
mod idempotency;
mod journal;
mod labels;
mod receipts;
mod session;
mod settlement;
mod sketch;
mod thread;

/// The gateway's limits and places.
#[derive(Debug, Clone)]
pub struct GatewayOptions {
    /// Folder of keys and of the journal of receipts.
    pub dir: PathBuf,
    /// Tokens of an answer when the request does not say. Default 256.
    pub max_tokens_default: usize,
    /// Most requests between acceptance and receipt. Default 128.
    pub n_requests_max: usize,
    /// Most query sketches computed at once. Default 1: each uses all threads.
    pub n_sketches_max: usize,
    /// Most answers whose clients wait for a query sketch beside those computed
    /// now; the next are sketched later, and their replies say `pending`. Default 16.
    pub n_sketches_waiting_max: usize,
    /// Most bytes of answers kept on disk to be sketched later. Default 256 MiB.
    pub deferred_max_size_bytes: u64,
    /// How long a reply waits for its settlement before it says `pending`. Default 30 s.
    pub settle_wait: Duration,
    /// Names shown in receipts. Default none.
    pub labels: Arc<Labels>,
    /// Datanets that questions may be given passages of. Default none.
    pub retrieval: Retrieval,
    /// Most of the operator's OPEN that may be bonded for claims at one time, in
    /// wei; past it answers of optimistic models are refused. Default 1,000 OPEN.
    pub bond_max_wei: u128,
}

impl GatewayOptions {
    /// The defaults, with everything kept in `dir`.
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            max_tokens_default: 256,
            n_requests_max: 128,
            n_sketches_max: 1,
            n_sketches_waiting_max: 16,
            deferred_max_size_bytes: 256 << 20,
            settle_wait: Duration::from_secs(30),
            labels: Arc::default(),
            retrieval: Retrieval::default(),
            bond_max_wei: 1_000 * WEI_PER_OPEN,
        }
    }
}

/// A model as it is loaded here. It must be the newest version on chain.
pub struct ServedModel {
    /// Its name in the registry.
    pub name: String,
    /// Its adapter over the base model.
    pub adapter: Arc<Lora>,
    /// Sketches its answers.
    pub sketcher: Arc<dyn AnswerSketcher>,
    /// Finds the spans that its answers share with the datanet it learned from,
    /// as of the version that its training manifest names. Needed if it has a pot
    /// for spans.
    pub spans: Option<Arc<SpanIndex>>,
    /// The index that it commits to, if it is of the optimistic tier: needed then.
    pub optimistic: Option<Arc<OptimisticIndex>>,
}

impl std::fmt::Debug for ServedModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServedModel")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Why the gateway did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The keys, or what they have used, cannot be read.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The journal cannot be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The chain cannot be read.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The model on chain is not the one loaded here.
    #[error("model {name} cannot be served: {reason}")]
    Model {
        /// Its name.
        name: String,
        /// What differs.
        reason: String,
    },
    /// More receipts are owed than the gateway may hold.
    #[error("{n_owed} receipts are owed, at most {} may be", PENDING_MAX)]
    TooManyOwed {
        /// Files in the journal.
        n_owed: usize,
    },
    /// No thread is to be had.
    #[error("could not start the settlement thread")]
    Thread(#[source] io::Error),
}

impl From<OpenError> for StartError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Chain(error) => error.into(),
            OpenError::Journal(error) => error.into(),
        }
    }
}

/// The gateway; clones share it.
#[derive(Debug, Clone)]
pub struct Gateway {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    options: GatewayOptions,
    chain: Arc<Chain>,
    backend: Backend,
    preparer: Arc<Preparer>,
    bonds: Arc<Bonds>,
    clock: Arc<dyn Clock>,
    keys: ApiKeys,
    meter: Arc<Meter>,
    models: BTreeMap<String, Arc<ServedModel>>,
    journal: Journal,
    holds: Arc<Holds>,
    running: Arc<idempotency::Running>,
    settlement: Arc<Settlement>,
    deferred: Deferred,
    requests: Arc<Semaphore>,
    sketches: Arc<Semaphore>,
    /// Those who have their sketch computed, or wait for it.
    sketch_queue: Semaphore,
    receipts: Receipts,
    is_stopping: AtomicBool,
    started_at_s: u64,
}

impl Gateway {
    /// Starts the gateway: checks the models against the chain, and begins to
    /// settle what an earlier run left owed. Blocks.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(
        options: GatewayOptions,
        chain: Chain,
        backend: impl Into<Backend>,
        objects: Objects,
        clock: Arc<dyn Clock>,
        models: Vec<ServedModel>,
    ) -> Result<Self, StartError> {
        let (chain, backend) = (Arc::new(chain), backend.into());
        let base_hash = backend.base_hash();
        for served in &models {
            check_model(&chain, served, base_hash)?;
        }
        let keys = ApiKeys::open(&options.dir)?;
        let meter = Meter::open(&options.dir, Arc::clone(&clock))?;
        let journal = Journal::open(&options.dir.join("pending"))?;
        let owed = journal.all()?;
        let left = journal.answers()?;
        if owed.len() + left.len() > PENDING_MAX {
            let n_owed = owed.len() + left.len();
            return Err(StartError::TooManyOwed { n_owed });
        }
        let holds = Arc::new(Holds::default());
        let bonds = Arc::new(Bonds::new(Arc::clone(&chain), options.bond_max_wei));
        let indexes: Vec<_> = models
            .iter()
            .filter_map(|served| served.optimistic.clone())
            .collect();
        let adopt = |receipt: &Receipt| Reserve {
            fee: holds.adopt(receipt.payer, receipt.fee_wei),
            bond: indexes
                .iter()
                .any(|index| index.id() == receipt.sketch_root)
                .then(|| bonds.adopt(receipt.fee_wei)),
        };
        let owed = owed
            .into_iter()
            .map(|pending| {
                let hold = adopt(&pending.receipt);
                Job {
                    pending,
                    hold,
                    reply: None,
                }
            })
            .collect();
        let mut waiting = Vec::new();
        for answered in left {
            let draft = &answered.draft;
            // A crash between the two: the receipt is there, and owed above.
            if journal.receipt_of(draft.request_id).is_some() {
                journal.remove_answer(draft.request_id)?;
                continue;
            }
            let hold = adopt(draft);
            waiting.push((answered, hold));
        }
        let by_id = indexes.iter().map(|index| (index.id(), Arc::clone(index)));
        let claims = Claims::open(
            Arc::clone(&chain),
            journal.clone(),
            by_id.collect(),
            Arc::clone(&bonds),
        )?;
        let settlement = Settlement::start(
            Arc::clone(&chain),
            objects.clone(),
            journal.clone(),
            claims,
            owed,
            options.n_requests_max,
        )
        .map_err(StartError::Thread)?;
        let settlement = Arc::new(settlement);
        let models: BTreeMap<_, _> = models
            .into_iter()
            .map(|served| (served.name.clone(), Arc::new(served)))
            .collect();
        // A paid answer can be checked by who knows the request: no file that may
        // change later has a part in it.
        let preparer = Arc::new(Preparer::new(
            &backend,
            options.max_tokens_default,
            SamplingDefaults::default(),
        ));
        let sketches = Arc::new(Semaphore::new(options.n_sketches_max));
        let tools = Tools {
            journal: journal.clone(),
            settlement: Arc::clone(&settlement),
            models: models.clone(),
            sketches: Arc::clone(&sketches),
            chain: Arc::clone(&chain),
            tokenizer: Arc::clone(preparer.tokenizer()),
        };
        let deferred = Deferred::start(tools, options.deferred_max_size_bytes, waiting);
        let inner = Inner {
            deferred: deferred.map_err(StartError::Thread)?,
            sketch_queue: Semaphore::new(options.n_sketches_max + options.n_sketches_waiting_max),
            requests: Arc::new(Semaphore::new(options.n_requests_max)),
            sketches,
            receipts: Receipts::new(
                Arc::clone(&chain),
                objects,
                journal.clone(),
                Arc::clone(&options.labels),
            )
            .with_tokenizer(Arc::clone(preparer.tokenizer()))
            .with_indexes(indexes),
            started_at_s: clock.unix_s(),
            preparer,
            options,
            chain,
            backend,
            clock,
            keys,
            meter,
            models,
            journal,
            holds,
            bonds,
            settlement,
            running: Arc::default(),
            is_stopping: AtomicBool::new(false),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// The API keys.
    #[must_use]
    pub fn keys(&self) -> &ApiKeys {
        &self.inner.keys
    }

    /// What the keys use.
    pub(crate) fn meter(&self) -> &Meter {
        &self.inner.meter
    }

    /// Names of the models that are served, ascending.
    pub fn models(&self) -> impl Iterator<Item = &str> {
        self.inner.models.keys().map(String::as_str)
    }

    /// When the gateway started: Unix time in seconds.
    #[must_use]
    pub fn started_at_s(&self) -> u64 {
        self.inner.started_at_s
    }

    /// The time, Unix seconds.
    #[must_use]
    pub fn unix_s(&self) -> u64 {
        self.inner.clock.unix_s()
    }

    /// Whether requests can be answered and settled.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        !self.inner.is_stopping.load(Ordering::Acquire)
            && self.inner.backend.is_running()
            && self.inner.settlement.is_running()
    }

    /// Cuts text into tokens as the model does.
    /// The datanets that questions may be given passages of.
    #[must_use]
    pub fn retrieval(&self) -> &Retrieval {
        &self.inner.options.retrieval
    }

    pub(crate) fn preparer(&self) -> &Arc<Preparer> {
        &self.inner.preparer
    }

    /// Where its tokens come from.
    #[must_use]
    pub fn backend(&self) -> &Backend {
        &self.inner.backend
    }

    /// Answers that wait for their query sketch.
    #[must_use]
    pub fn n_deferred(&self) -> usize {
        self.inner.deferred.n_waiting()
    }

    /// The receipt with this id, or of the request with this id: settled,
    /// refused or pending. Blocks.
    ///
    /// # Errors
    /// [`ReceiptError`] if the chain or the objects cannot be read.
    pub fn receipt(&self, id: B256) -> Result<Option<ReceiptView>, ReceiptError> {
        self.inner.receipts.get(id)
    }

    /// Takes a request on for the account of a key.
    ///
    /// # Errors
    /// [`RequestError`]; nothing is charged then.
    pub async fn answer(
        &self,
        payer: Address,
        request: AnswerRequest,
    ) -> Result<Session, RequestError> {
        if self.inner.is_stopping.load(Ordering::Acquire) {
            return Err(RequestError::Stopping);
        }
        let permit = Arc::clone(&self.inner.requests)
            .try_acquire_owned()
            .map_err(|_| RequestError::Overloaded)?;
        let inner = Arc::clone(&self.inner);
        // Tokenizing a megabyte and reading the chain are work for another thread.
        let start = tokio::task::spawn_blocking(move || inner.admit(payer, request, permit));
        let start = start.await.map_err(|_| RequestError::Internal)??;
        Ok(Session::spawn(Arc::clone(&self.inner), start))
    }

    /// Takes no more requests, lets the running ones finish, settles what can be
    /// settled, and stops the engine. What stays owed is in the journal.
    pub async fn shutdown(&self) {
        self.inner.is_stopping.store(true, Ordering::Release);
        self.inner.backend.shutdown().await;
        // Every session holds a permit until its receipt is with the settlement thread.
        let n_requests = u32::try_from(self.inner.options.n_requests_max).unwrap_or(u32::MAX);
        let _ = self.inner.requests.acquire_many(n_requests).await;
        let inner = Arc::clone(&self.inner);
        let stop = move || {
            // What waits for a sketch waits on.
            inner.deferred.stop();
            inner.settlement.stop();
            inner.meter.write(true);
        };
        let _ = tokio::task::spawn_blocking(stop).await;
    }
}

impl Inner {
    /// Sets the largest fee that a request can cause aside.
    fn hold(
        &self,
        payer: Address,
        model: &Model,
        tokens_in: usize,
        max_tokens: usize,
    ) -> Result<Hold, RequestError> {
        let needed_wei = count(tokens_in)
            .zip(count(max_tokens))
            .and_then(|(tokens_in, max_tokens)| model.params.fee_wei(tokens_in, max_tokens))
            .ok_or(RequestError::Internal)?;
        let hold = self
            .holds
            .place(payer, needed_wei, || self.chain.prepaid_wei(payer));
        hold.map_err(|error| match error {
            HoldError::Insufficient {
                amount_wei,
                available_wei,
            } => RequestError::InsufficientBalance {
                account: payer,
                needed_wei: amount_wei,
                available_wei,
            },
            HoldError::Balance(error) => error.into(),
        })
    }

    /// Everything before the first token.
    fn admit(
        &self,
        payer: Address,
        request: AnswerRequest,
        permit: OwnedSemaphorePermit,
    ) -> Result<Start, RequestError> {
        let Some(served) = self.models.get(&request.model).cloned() else {
            return Err(RequestError::UnknownModel {
                model: request.model,
            });
        };
        if !request.adapters.is_empty() {
            return Err(RequestError::Unsupported {
                param: "adapters",
                what: "a paid answer is one adapter's: its receipt names it; ask for a model instead",
            });
        }
        // Before money is looked at: what the engine would refuse anyway.
        let Prepared {
            prompt_tokens,
            max_tokens,
            mut sampling,
        } = self.preparer.prepare(&request)?;
        let tokens_in = prompt_tokens.len();
        // What is begun can be kept, whatever time its sketch takes.
        let n_tokens = tokens_in.saturating_add(max_tokens);
        let n_passages = request.context.as_ref().map_or(0, |context| context.len());
        let n_owed = self.settlement.n_owed();
        let room = self.deferred.reserve((n_tokens, n_passages), n_owed);
        let room = room.ok_or(RequestError::Overloaded)?;

        let model = self.chain.model(name_id(&served.name))?;
        let model = model.ok_or_else(|| RequestError::UnknownModel {
            model: served.name.clone(),
        })?;
        let is_index = |index: &Arc<OptimisticIndex>| index.id() == model.params.sketchRoot;
        let is_current = model.params.baseHash == self.backend.base_hash()
            && model.params.adapterHash == served.adapter.hash()
            && served.optimistic.as_ref().is_none_or(is_index);
        if !is_current {
            return Err(RequestError::Outdated {
                model: served.name.clone(),
            });
        }
        let named = request
            .idempotency_key
            .as_deref()
            .map(|key| idempotency::request_id(payer, key));
        let running = named.map(|id| self.running.begin(id)).transpose()?;
        let earlier = match named {
            Some(id) => self.receipts.of_request(id).map_err(|error| {
                tracing::error!(request = %id, error = chain_of(&error), "earlier receipt unreadable");
                RequestError::Internal
            })?,
            None => None,
        };
        let (max_tokens, charge) = match earlier {
            Some(earlier) => {
                earlier.check(&prompt_tokens, model.id, served.adapter.hash())?;
                // What was paid for, and no more.
                let n_paid = usize::try_from(earlier.owed.receipt().tokens_out);
                let n_paid = n_paid.map_err(|_| RequestError::Internal)?;
                (n_paid.max(1), Charge::Earlier(Box::new(earlier)))
            }
            None => {
                let fee = self.hold(payer, &model, tokens_in, max_tokens)?;
                let cost = Cost {
                    tokens: (tokens_in as u64).saturating_add(max_tokens as u64),
                    wei: fee.amount_wei(),
                };
                let bond = served.optimistic.as_ref().map(|_| {
                    let bond = self.bonds.place(fee.amount_wei());
                    bond.map_err(|error| no_bond(&served.name, error))
                });
                let hold = Reserve {
                    fee,
                    bond: bond.transpose()?,
                };
                let key = request.key.as_ref();
                let admission = key.map(|key| self.meter.begin(key, cost)).transpose()?;
                (max_tokens, Charge::New(hold, admission))
            }
        };

        let request_id = match named {
            Some(id) => id,
            None => B256::from(ol_runtime::os_bytes::<32>().map_err(RequestError::Randomness)?),
        };
        sampling.seed = match (request.seed, named) {
            (Some(seed), _) => seed,
            (None, Some(id)) => idempotency::seed(id),
            (None, None) => {
                u64::from_be_bytes(ol_runtime::os_bytes().map_err(RequestError::Randomness)?)
            }
        };
        let answer = self.backend.submit(GenerateRequest {
            adapter: Some(AdapterRef::resident(Arc::clone(&served.adapter))),
            sampling,
            stop: request.stop,
            timeout: request.timeout,
            priority: request.priority,
            // Who pays shares with others who pay, and starves nobody.
            tenant: payer.to_string().into(),
            ..GenerateRequest::new(prompt_tokens.clone(), max_tokens)
        })?;
        Ok(Start {
            payer,
            served,
            model,
            prompt_tokens,
            max_tokens,
            request_id,
            context: request.context,
            charge,
            room,
            running,
            answer,
            permit,
        })
    }
}

fn no_bond(model: &str, error: HoldError<ChainError>) -> RequestError {
    match error {
        HoldError::Insufficient {
            amount_wei,
            available_wei,
        } => RequestError::NoBond {
            model: model.to_owned(),
            needed_wei: amount_wei,
            available_wei,
        },
        HoldError::Balance(error) => error.into(),
    }
}

/// A number of tokens as receipts hold it.
fn count(n_tokens: usize) -> Option<u32> {
    u32::try_from(n_tokens).ok()
}

fn check_model(chain: &Chain, served: &ServedModel, base_hash: B256) -> Result<(), StartError> {
    let refuse = |reason: String| StartError::Model {
        name: served.name.clone(),
        reason,
    };
    let Some(model) = chain.model(name_id(&served.name))? else {
        return Err(refuse("it is not registered on chain".to_owned()));
    };
    let adapter_hash = served.adapter.hash();
    for (what, on_chain, here) in [
        ("base model", model.params.baseHash, base_hash),
        ("adapter", model.params.adapterHash, adapter_hash),
    ] {
        if on_chain != here {
            return Err(refuse(format!(
                "its {what} on chain is {on_chain}, here it is {here}"
            )));
        }
    }
    match &served.optimistic {
        Some(index) if index.id() != model.params.sketchRoot => {
            return Err(refuse(format!(
                "its index on chain is {}, here it is {}",
                model.params.sketchRoot,
                index.id()
            )));
        }
        None if chain.is_committed(model.params.sketchRoot)? => {
            return Err(refuse(
                "its index is only committed to on chain, and is not loaded here".to_owned(),
            ));
        }
        Some(_) | None => {}
    }
    let [_, spans_bps, _] = model.params.potsBps;
    if spans_bps > 0 && served.spans.is_none() {
        return Err(refuse(
            "it pays for spans, and there is no index of them; build it with \
             `openledger datanet spans build`"
                .to_owned(),
        ));
    }
    Ok(())
}
