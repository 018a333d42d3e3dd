//! Receipts as they are shown, from chain and objects.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use alloy_primitives::hex;
use ol_contracts::settlement::Credit;
use ol_poa::{Index, QuerySketch};
use ol_runtime::{Objects, ObjectsError};
use ol_types::{Address, B256, RECEIPT_SIZE_BYTES, Receipt};
use serde::Serialize;

use super::chain::{Chain, ChainError, Model, Settled};
use super::idempotency::Earlier;
use super::journal::{Journal, JournalError, Owed, PendingReceipt};
use super::labels::Labels;
use super::settlement::{Status, chain_of};
use crate::verify::{self, Difference, Payout};

/// Most records shown per contributor, those that moved the answer most.
const RECORDS_MAX: usize = 16;

/// Most sketch indexes kept in memory; one is at most three megabytes.
const INDEXES_MAX: usize = 32;

/// A receipt with where its fee went, ready to be sent. Amounts in wei are
/// decimal strings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReceiptView {
    /// The receipt's id: keccak256 of its encoding. Absent while its query sketch
    /// is still to be computed; its request's id finds it then, and later too.
    pub id: Option<B256>,
    /// `settled`, `refused` or `pending`. Only a settled receipt was charged.
    pub status: &'static str,
    /// Chain it settles on.
    pub chain_id: u64,
    /// Contract it settles with.
    pub settlement: Address,
    /// Who pays.
    pub payer: Address,
    /// The request that was answered.
    pub request_id: B256,
    /// Name of the model.
    pub model: String,
    /// Hash of that name.
    pub model_id: B256,
    /// Version of the model in the registry.
    pub model_version: Option<u64>,
    /// Hash of the base model.
    pub base_hash: B256,
    /// Hash of the adapter.
    pub adapter_hash: B256,
    /// Hash of the training manifest.
    pub manifest_hash: B256,
    /// Root of the sketch index.
    pub sketch_root: B256,
    /// Hash of the prompt's tokens.
    pub prompt_hash: B256,
    /// Hash of the answer's tokens.
    pub response_hash: B256,
    /// Hash of the query sketch, once it is computed.
    pub query_hash: Option<B256>,
    /// The query sketch itself: its codes as bytes, in hexadecimal.
    pub query_sketch: Option<String>,
    /// Names of the datanets the model learned from.
    pub datanets: Vec<String>,
    /// What a contributor's net score must exceed.
    pub null_threshold: String,
    /// Tokens of the prompt.
    pub tokens_in: u32,
    /// Tokens of the answer.
    pub tokens_out: u32,
    /// The fee.
    pub fee_wei: String,
    /// When the answer was finished, Unix seconds.
    pub answered_at: u64,
    /// The four parts of the fee.
    pub split: SplitView,
    /// The contributors, the best paid first.
    pub shares: Vec<ShareView>,
    /// How many contributors are paid.
    pub n_shares: usize,
    /// What the model's treasury gets because nobody's data moved the answer.
    pub treasury_wei: String,
    /// The settling transaction.
    pub tx_hash: Option<B256>,
    /// Its block.
    pub block: Option<u64>,
}

/// The parts of a fee.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct SplitView {
    /// The platform's.
    pub platform: String,
    /// The model owner's.
    pub model: String,
    /// The stakers'.
    pub stakers: String,
    /// The contributors' together.
    pub contributors: String,
}

/// One contributor's share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ShareView {
    /// Who is paid: the name by which the datanet knows the contributor, or the
    /// address where no name is known.
    pub contributor: String,
    /// The address that is paid.
    pub address: Address,
    /// Net score above the null threshold.
    pub score: String,
    /// Part of all scores, in billionths, rounded down.
    pub share_ppb: u32,
    /// The payment.
    pub paid_wei: String,
    /// The contributor's records that moved the answer most, the strongest
    /// first, at most 16: by the contributor's own name for them, or by hash.
    pub records: Vec<String>,
    /// Hashes of the same records.
    pub record_hashes: Vec<B256>,
}

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
            indexes: Mutex::default(),
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
        Ok(PendingReceipt { receipt, query })
    }

    fn try_view(&self, owed: &Owed, status: Status) -> Result<ReceiptView, ReceiptError> {
        let receipt = owed.receipt();
        let id = receipt.id();
        let model = self
            .chain
            .model_of(receipt)?
            .ok_or(ReceiptError::UnknownModel { id })?;
        let mut view = bare(owed, status);
        let Some(query) = owed.query() else {
            // Who is paid follows from the sketch.
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
            None => verify::payout(receipt, query, &index, &model.params)
                .map_err(|difference| ReceiptError::Terms { id, difference })?,
        };
        describe(&mut view, model);
        fill(&mut view, &payout, settled.as_ref());
        view.shares = shares(&payout, &index, query, &self.labels);
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

/// What the receipt itself says.
fn bare(owed: &Owed, status: Status) -> ReceiptView {
    let (receipt, query) = (owed.receipt(), owed.query());
    ReceiptView {
        id: query.map(|_| receipt.id()),
        status: status.as_str(),
        chain_id: receipt.chain_id,
        settlement: receipt.settlement,
        payer: receipt.payer,
        request_id: receipt.request_id,
        model: String::new(),
        model_id: receipt.model_id,
        model_version: None,
        base_hash: receipt.base_hash,
        adapter_hash: receipt.adapter_hash,
        manifest_hash: receipt.manifest_hash,
        sketch_root: receipt.sketch_root,
        prompt_hash: receipt.prompt_hash,
        response_hash: receipt.response_hash,
        query_hash: query.map(|_| receipt.query_hash),
        query_sketch: query.map(|query| hex::encode_prefixed(query.to_bytes())),
        datanets: Vec::new(),
        null_threshold: String::new(),
        tokens_in: receipt.tokens_in,
        tokens_out: receipt.tokens_out,
        fee_wei: receipt.fee_wei.to_string(),
        answered_at: receipt.answered_at_s,
        split: SplitView::default(),
        shares: Vec::new(),
        n_shares: 0,
        treasury_wei: String::new(),
        tx_hash: None,
        block: None,
    }
}

/// What the model's registration says.
fn describe(view: &mut ReceiptView, model: Model) {
    view.model = model.name;
    view.model_version = Some(model.version);
    view.datanets = model.datanets;
    view.null_threshold = model.params.nullThreshold.to_string();
}

/// Where the fee goes.
fn fill(view: &mut ReceiptView, payout: &Payout, settled: Option<&Settled>) {
    view.split = SplitView {
        platform: payout.split.platform_wei.to_string(),
        model: payout.split.model_wei.to_string(),
        stakers: payout.split.stakers_wei.to_string(),
        contributors: payout.split.contributors_wei.to_string(),
    };
    view.n_shares = payout.credits.len();
    view.treasury_wei = payout.treasury_wei.to_string();
    view.tx_hash = settled.map(|settled| settled.tx_hash);
    view.block = settled.map(|settled| settled.block);
}

/// The contributors, the heaviest first, each with the records that count most.
fn shares(payout: &Payout, index: &Index, query: &QuerySketch, labels: &Labels) -> Vec<ShareView> {
    let mut records: BTreeMap<Address, Vec<(i64, B256)>> = BTreeMap::new();
    for (entry, score) in index.entries().zip(index.scores(query)) {
        if score > 0 {
            records
                .entry(entry.contributor())
                .or_default()
                .push((score, entry.record()));
        }
    }
    let total: u128 = payout
        .credits
        .iter()
        .map(|credit| u128::from(credit.weight))
        .sum();
    let mut credits = payout.credits.clone();
    credits.sort_by_key(|credit| (std::cmp::Reverse(credit.weight), credit.contributor));
    let share = |credit: Credit| {
        let mut records = records.remove(&credit.contributor).unwrap_or_default();
        records.sort_by_key(|&(score, record)| (std::cmp::Reverse(score), record));
        records.truncate(RECORDS_MAX);
        let record_hashes: Vec<B256> = records.into_iter().map(|(_, record)| record).collect();
        let share_ppb = u128::from(credit.weight) * 1_000_000_000 / total.max(1);
        ShareView {
            contributor: labels.contributor(credit.contributor),
            address: credit.contributor,
            score: credit.weight.to_string(),
            share_ppb: u32::try_from(share_ppb).expect("a part is at most the whole"),
            paid_wei: credit.amount_wei.to_string(),
            records: record_hashes
                .iter()
                .map(|&record| labels.record(record))
                .collect(),
            record_hashes,
        }
    };
    credits.into_iter().map(share).collect()
}
