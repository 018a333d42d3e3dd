//! Receipts as they are shown, from chain and objects.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use ol_model::Tokenizer;
use ol_poa::{Index, QuerySketch};
use ol_runtime::{Objects, ObjectsError};
use ol_types::{B256, RECEIPT_SIZE_BYTES, Receipt};

pub use self::view::{
    PassageView, PotView, PotsView, ReceiptView, ShareView, SourceView, SpanView, SplitView,
};
use self::view::{bare, describe, fill, pots};
use super::chain::{Chain, ChainError};
use super::idempotency::Earlier;
use super::journal::{Journal, JournalError, Owed, PendingReceipt};
use super::labels::Labels;
use super::settlement::{Status, chain_of};
use crate::evidence::Gathered;
use crate::verify::{self, Difference, Payout};

mod view;

/// Most sketch indexes kept in memory; one is at most three megabytes.
const INDEXES_MAX: usize = 32;

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
        }
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
            Some((self.settled(receipt)?.into(), Status::Settled))
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
            status: Status::Settled,
        }))
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
        let model = self
            .chain
            .model_of(receipt)?
            .ok_or(ReceiptError::UnknownModel { id })?;
        let mut view = bare(owed, status);
        let Some(recorded) = owed.recorded() else {
            // Who is paid follows from sketch and evidence.
            describe(&mut view, model);
            return Ok(view);
        };
        let index = self.index(receipt.sketch_root)?;
        let settled = match status {
            Status::Settled => self.chain.settled(id)?,
            Status::Pending | Status::Refused => None,
        };
        let payout = match &settled {
            Some(settled) => Payout::from(&settled.settlement),
            None => {
                let PendingReceipt {
                    query, gathered, ..
                } = recorded;
                verify::payout(receipt, query, &index, &model.params, &gathered.evidence)
                    .map_err(|difference| ReceiptError::Terms { id, difference })?
            }
        };
        describe(&mut view, model);
        fill(&mut view, &payout, settled.as_ref());
        let tokenizer = self.tokenizer.as_deref();
        view.pots = pots(&payout, &index, recorded, &self.labels, tokenizer).map_err(|reason| {
            let id = recorded.gathered.evidence.object().unwrap_or_default();
            ReceiptError::Form { id, reason }
        })?;
        Ok(view)
    }

    fn index(&self, root: B256) -> Result<Arc<Index>, ReceiptError> {
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
