//! Receipts as they are shown, from chain and objects.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use ol_model::{Pool, Tokenizer};
use ol_poa::{Index, QuerySketch};
use ol_runtime::{Objects, ObjectsError};
use ol_types::{Address, B256, RECEIPT_SIZE_BYTES, Receipt};

pub use self::view::{
    ClaimView, PassageView, PotView, PotsView, ReceiptView, ShareView, SourceView, SpanView,
    SplitView,
};
use self::view::{Settling, bare, describe, fill, pots};
use super::chain::{Chain, ChainError, ClaimState, ClaimStatus};
use super::idempotency::Earlier;
use super::journal::{Journal, JournalError, Owed, PendingReceipt};
use super::labels::Labels;
use super::settlement::{Status, chain_of};
use crate::evidence::Gathered;
use crate::optimistic::{IndexObjectError, OptimisticIndex, load_committed};
use crate::verify::{self, Difference, Payout};

mod view;

/// Most sketch indexes kept in memory; one is at most three megabytes.
const INDEXES_MAX: usize = 32;

/// Most indexes of the optimistic tier kept in memory beside those of models that
/// are served; one is at most 400 megabytes.
const COMMITTED_MAX: usize = 1;

/// Why a receipt cannot be shown.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiptError {
    /// The chain cannot be read.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// Its objects are missing or damaged.
    #[error(transparent)]
    Objects(#[from] ObjectsError),
    /// The journal cannot be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// An object under its id is not a receipt or a query sketch.
    #[error("object {id} is not what the receipt says: {reason}")]
    Form {
        /// The object.
        id: B256,
        /// What is wrong.
        reason: String,
    },
    /// The index that its model commits to cannot be had.
    #[error("the index of the model is not at hand")]
    Index(#[from] IndexObjectError),
    /// No version of its model has its hashes and its price.
    #[error("receipt {id} names a model that is not on chain")]
    UnknownModel {
        /// The receipt.
        id: B256,
    },
    /// What it should pay cannot be computed.
    #[error("receipt {id} cannot be recomputed")]
    Terms {
        /// The receipt.
        id: B256,
        /// What does not agree.
        #[source]
        difference: Difference,
    },
}

/// Reads receipts: those of a running gateway, or of a folder that none runs on.
#[derive(Debug)]
pub struct Receipts {
    chain: Arc<Chain>,
    objects: Objects,
    journal: Journal,
    labels: Arc<Labels>,
    tokenizer: Option<Arc<Tokenizer>>,
    indexes: Mutex<BTreeMap<B256, Arc<Index>>>,
    /// Of the models that are served.
    served: Vec<Arc<OptimisticIndex>>,
    /// Of other models of the optimistic tier.
    committed: Mutex<BTreeMap<B256, Arc<OptimisticIndex>>>,
}

/// What the records of a model score.
pub(super) enum AnyIndex {
    Exact(Arc<Index>),
    Optimistic(Arc<OptimisticIndex>),
}

impl AnyIndex {
    fn weights(&self, null_threshold: u64, query: &QuerySketch) -> Vec<(Address, u64)> {
        match self {
            Self::Exact(index) => index.weights(null_threshold, query),
            Self::Optimistic(index) => index.weights(null_threshold, query),
        }
    }
}

impl Receipts {
    /// Reads from a chain, the objects and the journal of a gateway.
    #[must_use]
    pub fn new(chain: Arc<Chain>, objects: Objects, journal: Journal, labels: Arc<Labels>) -> Self {
        Self {
            chain,
            objects,
            journal,
            labels,
            tokenizer: None,
            indexes: Mutex::default(),
            served: Vec::new(),
            committed: Mutex::default(),
        }
    }

    /// Uses indexes of the optimistic tier that are loaded already.
    #[must_use]
    pub fn with_indexes(self, served: Vec<Arc<OptimisticIndex>>) -> Self {
        Self { served, ..self }
    }

    /// Shows the words of spans, too, which the tokenizer of the base gives.
    #[must_use]
    pub fn with_tokenizer(self, tokenizer: Arc<Tokenizer>) -> Self {
        Self {
            tokenizer: Some(tokenizer),
            ..self
        }
    }

    /// The receipt with this id, or of the request with this id, wherever it is;
    /// `None` if there is none.
    ///
    /// # Errors
    /// [`ReceiptError`].
    pub fn get(&self, id: B256) -> Result<Option<ReceiptView>, ReceiptError> {
        if let Some((owed, status)) = self.find(id)? {
            return self.try_view(&owed, status).map(Some);
        }
        // In the order in which a receipt moves on: it is never missed.
        let found = if let Some(answered) = self.journal.answer(id)? {
            Some((Owed::Answer(Box::new(answered)), Status::Pending))
        } else if let Some(receipt) = self.journal.receipt_of(id)
            && let Some(found) = self.find(receipt)?
        {
            Some(found)
        } else if let Some(receipt) = self.chain.receipt_of(id)? {
            Some((self.settled(receipt)?.into(), self.charged(receipt)?))
        } else {
            let refused = self.journal.refused_answer(id)?;
            refused.map(|answered| (Owed::Answer(Box::new(answered)), Status::Refused))
        };
        found
            .map(|(owed, status)| self.try_view(&owed, status))
            .transpose()
    }

    /// The receipt with this id.
    fn find(&self, id: B256) -> Result<Option<(Owed, Status)>, ReceiptError> {
        Ok(if self.chain.settled_at(id)?.is_some() {
            Some((self.settled(id)?.into(), Status::Settled))
        } else if let Some(claim) = self.chain.claim_state(id)? {
            Some((self.settled(id)?.into(), status_of(&claim)))
        } else if let Some(pending) = self.journal.get(id)? {
            Some((pending.into(), Status::Pending))
        } else {
            let refused = self.journal.get_refused(id)?;
            refused.map(|pending| (pending.into(), Status::Refused))
        })
    }

    /// The receipt of a request that was answered before, settled or owed. A
    /// refused one does not count: nothing was charged for it.
    pub(super) fn of_request(&self, request_id: B256) -> Result<Option<Earlier>, ReceiptError> {
        let pending = |owed| Earlier {
            owed,
            status: Status::Pending,
        };
        if let Some(answered) = self.journal.answer(request_id)? {
            return Ok(Some(pending(Owed::Answer(Box::new(answered)))));
        }
        let owed = match self.journal.receipt_of(request_id) {
            Some(id) => self.journal.get(id)?,
            None => None,
        };
        if let Some(owed) = owed {
            return Ok(Some(pending(owed.into())));
        }
        let Some(id) = self.chain.receipt_of(request_id)? else {
            return Ok(None);
        };
        Ok(Some(Earlier {
            owed: self.settled(id)?.into(),
            status: self.charged(id)?,
        }))
    }

    /// How far a receipt is that the chain has charged.
    fn charged(&self, id: B256) -> Result<Status, ChainError> {
        let claim = self.chain.claim_state(id)?;
        Ok(claim.map_or(Status::Settled, |claim| status_of(&claim)))
    }

    /// The receipt as a reply shows it. Never fails: the answer was paid for, so
    /// it is sent even if its shares cannot be read now.
    pub(super) fn view(&self, owed: &Owed, status: Status) -> ReceiptView {
        self.try_view(owed, status).unwrap_or_else(|error| {
            let (request, error) = (owed.receipt().request_id, chain_of(&error));
            tracing::warn!(%request, %error, "receipt shown without its shares");
            bare(owed, status)
        })
    }

    /// A settled receipt. The objects follow the settlement; until then the
    /// journal has it.
    fn settled(&self, id: B256) -> Result<PendingReceipt, ReceiptError> {
        match self.journal.get(id)? {
            Some(pending) => Ok(pending),
            None => self.stored(id),
        }
    }

    fn stored(&self, id: B256) -> Result<PendingReceipt, ReceiptError> {
        let form = |id: B256, reason: String| ReceiptError::Form { id, reason };
        let bytes = self.objects.get(id, RECEIPT_SIZE_BYTES as u64)?;
        let receipt = Receipt::decode(&bytes).map_err(|error| form(id, error.to_string()))?;
        let bytes = self.objects.get(receipt.query_hash, ol_poa::K as u64)?;
        let query = QuerySketch::from_bytes(&bytes);
        let query = query.map_err(|error| form(receipt.query_hash, error.to_string()))?;
        let hash = receipt.evidence_hash;
        let gathered = Gathered::load(&self.objects, hash)?;
        let gathered = gathered.map_err(|error| form(hash, error.to_string()))?;
        Ok(PendingReceipt {
            receipt,
            query,
            gathered,
        })
    }

    fn try_view(&self, owed: &Owed, status: Status) -> Result<ReceiptView, ReceiptError> {
        let receipt = owed.receipt();
        let id = receipt.id();
        let claim = self.chain.claim_state(id)?;
        let model = match &claim {
            Some(claim) => Some(self.chain.model_version(receipt.model_id, claim.version)?),
            None => self.chain.model_of(receipt)?,
        };
        let model = model.ok_or(ReceiptError::UnknownModel { id })?;
        let mut view = bare(owed, status);
        let Some(recorded) = owed.recorded() else {
            // Who is paid follows from sketch and evidence.
            describe(&mut view, model);
            return Ok(view);
        };
        let index = self.index(receipt.sketch_root)?;
        let settled = match status {
            Status::Settled => self.chain.settled(id)?,
            _ => None,
        };
        let payout = match &settled {
            Some(settled) => Payout::from(&settled.settlement),
            None => {
                let PendingReceipt {
                    query, gathered, ..
                } = recorded;
                let scored = index.weights(model.params.nullThreshold, query);
                verify::payout(receipt, &scored, &model.params, &gathered.evidence)
                    .map_err(|difference| ReceiptError::Terms { id, difference })?
            }
        };
        describe(&mut view, model);
        let claimed = match &claim {
            Some(_) => self.chain.claimed(id)?,
            None => None,
        };
        let settling = match (&settled, &claim, &claimed) {
            (Some(settled), ..) => Some(Settling::Settled(settled)),
            (None, Some(claim), Some(claimed)) => Some(Settling::Claimed(claim, claimed)),
            _ => None,
        };
        fill(&mut view, &payout, settling);
        let tokenizer = self.tokenizer.as_deref();
        view.pots = pots(&payout, &index, recorded, &self.labels, tokenizer).map_err(|reason| {
            let id = recorded.gathered.evidence.object().unwrap_or_default();
            ReceiptError::Form { id, reason }
        })?;
        Ok(view)
    }

    fn index(&self, root: B256) -> Result<AnyIndex, ReceiptError> {
        if let Some(index) = self.served.iter().find(|index| index.id() == root) {
            return Ok(AnyIndex::Optimistic(Arc::clone(index)));
        }
        match self.chain.index_object(root)? {
            Some(object) => self.committed(object, root).map(AnyIndex::Optimistic),
            None => self.exact(root).map(AnyIndex::Exact),
        }
    }

    fn committed(&self, object: B256, id: B256) -> Result<Arc<OptimisticIndex>, ReceiptError> {
        // Held while it is read: two that ask at once read it once.
        let mut committed = self
            .committed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = committed.get(&id) {
            return Ok(Arc::clone(index));
        }
        let index = load_committed(&self.objects, object, id)?;
        let index = OptimisticIndex::new(index, Arc::new(Pool::new(1)));
        let index = Arc::new(index.map_err(IndexObjectError::from)?);
        if committed.len() >= COMMITTED_MAX {
            committed.pop_first();
        }
        committed.insert(id, Arc::clone(&index));
        Ok(index)
    }

    fn exact(&self, root: B256) -> Result<Arc<Index>, ReceiptError> {
        let lock = || self.indexes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = lock().get(&root) {
            return Ok(Arc::clone(index));
        }
        let index = Arc::new(self.chain.index(root)?);
        let mut indexes = lock();
        if indexes.len() >= INDEXES_MAX {
            indexes.pop_first();
        }
        indexes.insert(root, Arc::clone(&index));
        Ok(index)
    }
}

/// How far a claim is.
const fn status_of(claim: &ClaimState) -> Status {
    match claim.status {
        ClaimStatus::Pending if claim.n_open_reveals > 0 => Status::Challenged,
        ClaimStatus::Pending => Status::Claimed,
        ClaimStatus::Paid => Status::Final,
        ClaimStatus::Refuted | ClaimStatus::Closed => Status::Slashed,
    }
}
