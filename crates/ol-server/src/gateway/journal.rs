//! Receipts that are owed: on disk before they are sent to the chain, gone when
//! the chain has them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alloy_primitives::{Bytes, hex};
use ol_poa::evidence::EVIDENCE_SIZE_BYTES_MAX;
use ol_poa::{Evidence, QuerySketch};
use ol_types::{B256, RECEIPT_SIZE_BYTES, Receipt, keccak256};

use super::durable;
use crate::evidence::{Gathered, OBJECT_SIZE_BYTES_MAX};

pub(super) use self::answered::AnsweredRequest;

mod answered;

const SUFFIX: &str = ".receipt";

/// Ends the name of an answer that is still to be sketched.
const ANSWER_SUFFIX: &str = ".answer";

/// Largest file of an answer: far more than a context holds.
const ANSWER_MAX_SIZE_BYTES: u64 = 64 << 20;

/// Folder of the receipts that the chain refused.
const REFUSED: &str = "refused";

/// Folder of the receipts whose claims are open.
const CLAIMED: &str = "claimed";

/// Receipt, query sketch, and the size of the evidence.
const HEAD_SIZE_BYTES: usize = RECEIPT_SIZE_BYTES + ol_poa::K + 4;

/// Largest file of a receipt.
const PENDING_MAX_SIZE_BYTES: u64 =
    (HEAD_SIZE_BYTES + EVIDENCE_SIZE_BYTES_MAX) as u64 + OBJECT_SIZE_BYTES_MAX;

/// Most receipts that may be owed at once.
pub const PENDING_MAX: usize = 10_000;

/// A receipt with the query sketch and the evidence it names: all that settling
/// needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingReceipt {
    /// The receipt.
    pub receipt: Receipt,
    /// The sketch whose hash the receipt holds.
    pub query: QuerySketch,
    /// The evidence whose hash the receipt holds, and the object that shows it.
    pub gathered: Gathered,
}

impl PendingReceipt {
    /// Receipt, query sketch, size of the evidence, evidence, object.
    fn encode(&self) -> Vec<u8> {
        let Gathered { evidence, object } = &self.gathered;
        let evidence = evidence.to_bytes();
        let size = u32::try_from(evidence.len()).expect("evidence has some kilobytes at most");
        let mut bytes = self.receipt.encode().to_vec();
        bytes.extend(self.query.to_bytes());
        bytes.extend(size.to_be_bytes());
        bytes.extend(evidence);
        bytes.extend(object);
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, String> {
        let short = || format!("it has only {} bytes", bytes.len());
        let (receipt, rest) = bytes
            .split_at_checked(RECEIPT_SIZE_BYTES)
            .ok_or_else(short)?;
        let (query, rest) = rest.split_at_checked(ol_poa::K).ok_or_else(short)?;
        let (size, rest) = rest.split_first_chunk().ok_or_else(short)?;
        let size = u32::from_be_bytes(*size) as usize;
        let (evidence, object) = rest.split_at_checked(size).ok_or_else(short)?;
        let receipt = Receipt::decode(receipt).map_err(|error| error.to_string())?;
        let query = QuerySketch::from_bytes(query).map_err(|error| error.to_string())?;
        let evidence = Evidence::from_bytes(evidence).map_err(|error| error.to_string())?;
        if query.hash() != receipt.query_hash {
            return Err("its query sketch is not the receipt's".to_owned());
        }
        let id = (!object.is_empty()).then(|| keccak256(object));
        if evidence.hash() != receipt.evidence_hash || evidence.object() != id {
            return Err("its evidence is not the receipt's".to_owned());
        }
        let object = Bytes::copy_from_slice(object);
        Ok(Self {
            receipt,
            query,
            gathered: Gathered { evidence, object },
        })
    }
}

/// The folder of receipts that are owed, one file each, named by the receipt's
/// id and holding the encoded receipt, the query sketch and the evidence. A file is complete
/// or not there; its name and the hashes in it vouch for its bytes.
///
/// Beside them are the answers that are still to be sketched, named by the id of
/// their request: they hold the tokens, are readable by their owner alone, and
/// go when the receipt is there.
#[derive(Debug, Clone)]
pub struct Journal {
    dir: PathBuf,
    /// Receipts that are owed or were refused, by request.
    by_request: Arc<Mutex<BTreeMap<B256, B256>>>,
}

/// What is owed for an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Owed {
    /// Its receipt.
    Receipt(Box<PendingReceipt>),
    /// A receipt that waits for its query sketch.
    Answer(Box<AnsweredRequest>),
}

impl Owed {
    /// The receipt; its query hash is zero if it waits for its sketch.
    pub(super) const fn receipt(&self) -> &Receipt {
        match self {
            Self::Receipt(pending) => &pending.receipt,
            Self::Answer(answered) => &answered.draft,
        }
    }

    /// The receipt with its query sketch and evidence, if they are computed.
    pub(super) const fn recorded(&self) -> Option<&PendingReceipt> {
        match self {
            Self::Receipt(pending) => Some(pending),
            Self::Answer(_) => None,
        }
    }
}

impl From<PendingReceipt> for Owed {
    fn from(pending: PendingReceipt) -> Self {
        Self::Receipt(Box::new(pending))
    }
}

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// A file is not what its name says. Nothing is settled from it.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The disk failed.
    #[error("could not use the journal of receipts at {}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Journal {
    /// Opens the journal in `dir`, which is made if it is missing; removes what
    /// a crash left half written.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn open(dir: &Path) -> Result<Self, JournalError> {
        let journal = Self {
            dir: dir.to_owned(),
            by_request: Arc::default(),
        };
        let io_error = |source| JournalError::Io {
            path: dir.to_owned(),
            source,
        };
        durable::create_dir(&dir.join(REFUSED)).map_err(io_error)?;
        durable::create_dir(&dir.join(CLAIMED)).map_err(io_error)?;
        for name in journal.names()? {
            if name.starts_with(durable::TEMPORARY_PREFIX) {
                durable::remove(dir, &name).map_err(io_error)?;
            }
        }
        // What is damaged is named by who reads it.
        for owed in [&journal, &journal.refused()] {
            for name in owed.names()? {
                if let Ok(Some(pending)) = owed.read(&name) {
                    let receipt = pending.receipt;
                    journal.lock().insert(receipt.request_id, receipt.id());
                }
            }
        }
        Ok(journal)
    }

    /// The receipts that the chain refused, and the answers that have no sketch.
    fn refused(&self) -> Self {
        Self {
            dir: self.dir.join(REFUSED),
            by_request: Arc::clone(&self.by_request),
        }
    }

    /// The receipts that are claimed on chain, and whose claims are not closed.
    pub(super) fn claimed(&self) -> Self {
        Self {
            dir: self.dir.join(CLAIMED),
            by_request: Arc::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<B256, B256>> {
        self.by_request
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The receipt of a request, if it is owed or was refused.
    pub(super) fn receipt_of(&self, request_id: B256) -> Option<B256> {
        self.lock().get(&request_id).copied()
    }

    /// Puts an answer on the disk that is still to be sketched; it is there when
    /// this returns.
    ///
    /// # Errors
    /// [`JournalError::Io`]; it may or may not be there then.
    pub(super) fn add_answer(&self, answered: &AnsweredRequest) -> Result<(), JournalError> {
        let name = answer_name(answered.draft.request_id);
        durable::write(&self.dir, &name, &answered.encode()).map_err(|source| JournalError::Io {
            path: self.dir.join(name),
            source,
        })
    }

    /// The answer to this request, if it is still to be sketched.
    ///
    /// # Errors
    /// [`JournalError`] if its file cannot be read or is damaged.
    pub(super) fn answer(&self, request_id: B256) -> Result<Option<AnsweredRequest>, JournalError> {
        let name = answer_name(request_id);
        let path = self.dir.join(&name);
        let bytes = match durable::read(&path, ANSWER_MAX_SIZE_BYTES) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Ok(None),
            Err(source) => return Err(JournalError::Io { path, source }),
        };
        let damaged = |reason| JournalError::Damaged {
            path: path.clone(),
            reason,
        };
        let answered = AnsweredRequest::decode(&bytes).map_err(damaged)?;
        if answered.draft.request_id != request_id {
            return Err(damaged(format!(
                "it is of request {}",
                answered.draft.request_id
            )));
        }
        Ok(Some(answered))
    }

    /// The answer to this request, if it turned out to have no sketch.
    ///
    /// # Errors
    /// [`JournalError`] if its file cannot be read or is damaged.
    pub(super) fn refused_answer(
        &self,
        request_id: B256,
    ) -> Result<Option<AnsweredRequest>, JournalError> {
        self.refused().answer(request_id)
    }

    /// All answers that are still to be sketched, oldest first.
    ///
    /// # Errors
    /// [`JournalError`] if a file cannot be read or is damaged.
    pub(super) fn answers(&self) -> Result<Vec<AnsweredRequest>, JournalError> {
        let mut all = Vec::new();
        for name in self.names()? {
            let id = name.strip_suffix(ANSWER_SUFFIX);
            if let Some(id) = id.and_then(|id| id.parse::<B256>().ok()) {
                all.extend(self.answer(id)?);
            }
        }
        all.sort_by_key(|answered| (answered.draft.answered_at_s, answered.draft.request_id));
        Ok(all)
    }

    /// Forgets an answer whose receipt is there; fine if it is not there.
    ///
    /// # Errors
    /// [`JournalError::Io`]; it may come back at the next start then.
    pub(super) fn remove_answer(&self, request_id: B256) -> Result<(), JournalError> {
        self.remove_file(&answer_name(request_id))
    }

    /// Moves an answer that has no sketch to the folder `refused`.
    ///
    /// # Errors
    /// [`JournalError::Io`]; it is tried again then.
    pub(super) fn refuse_answer(&self, request_id: B256) -> Result<(), JournalError> {
        self.refuse_file(&answer_name(request_id))
    }

    fn remove_file(&self, name: &str) -> Result<(), JournalError> {
        durable::remove(&self.dir, name).map_err(|source| JournalError::Io {
            path: self.dir.join(name),
            source,
        })
    }

    fn refuse_file(&self, name: &str) -> Result<(), JournalError> {
        self.move_file(name, REFUSED)
    }

    fn move_file(&self, name: &str, folder: &str) -> Result<(), JournalError> {
        durable::rename(&self.dir, &self.dir.join(folder), name).map_err(|source| {
            JournalError::Io {
                path: self.dir.join(name),
                source,
            }
        })
    }

    /// Puts a receipt on the disk; it is there when this returns.
    ///
    /// # Errors
    /// [`JournalError::Io`]; it may or may not be there then.
    pub fn add(&self, pending: &PendingReceipt) -> Result<(), JournalError> {
        let id = pending.receipt.id();
        let name = file_name(id);
        self.lock().insert(pending.receipt.request_id, id);
        durable::write(&self.dir, &name, &pending.encode()).map_err(|source| JournalError::Io {
            path: self.dir.join(name),
            source,
        })
    }

    /// The receipt with this id, if it is owed.
    ///
    /// # Errors
    /// [`JournalError`] if its file cannot be read or is damaged.
    pub fn get(&self, id: B256) -> Result<Option<PendingReceipt>, JournalError> {
        self.read(&file_name(id))
    }

    /// All receipts that are owed, oldest first.
    ///
    /// # Errors
    /// [`JournalError`] if a file cannot be read or is damaged.
    pub fn all(&self) -> Result<Vec<PendingReceipt>, JournalError> {
        let mut all = Vec::new();
        for name in self.names()? {
            if name.ends_with(SUFFIX) && !name.starts_with(durable::TEMPORARY_PREFIX) {
                // Another thread may have settled it since the folder was listed.
                all.extend(self.read(&name)?);
            }
        }
        all.sort_by_key(|pending| (pending.receipt.answered_at_s, pending.receipt.id()));
        Ok(all)
    }

    /// Forgets a receipt that is settled; fine if it is not there.
    ///
    /// # Errors
    /// [`JournalError::Io`]; it may come back at the next start then.
    pub fn remove(&self, id: B256) -> Result<(), JournalError> {
        self.remove_file(&file_name(id))?;
        self.lock().retain(|_, owed| *owed != id);
        Ok(())
    }

    /// Moves a receipt that is claimed to the folder `claimed`, until its claim is
    /// closed; fine if it is not there.
    ///
    /// # Errors
    /// [`JournalError::Io`]; it is tried again then.
    pub(super) fn begin_claim(&self, id: B256) -> Result<(), JournalError> {
        self.move_file(&file_name(id), CLAIMED)?;
        self.lock().retain(|_, owed| *owed != id);
        Ok(())
    }

    /// Moves a receipt that the chain refused for good to the folder `refused`,
    /// where the operator can look at it; fine if it is not there.
    ///
    /// # Errors
    /// [`JournalError::Io`]; it is tried again then.
    pub fn refuse(&self, id: B256) -> Result<(), JournalError> {
        self.refuse_file(&file_name(id))
    }

    /// The receipt with this id, if the chain refused it.
    ///
    /// # Errors
    /// [`JournalError`] if its file cannot be read or is damaged.
    pub fn get_refused(&self, id: B256) -> Result<Option<PendingReceipt>, JournalError> {
        self.refused().get(id)
    }

    fn read(&self, name: &str) -> Result<Option<PendingReceipt>, JournalError> {
        let path = self.dir.join(name);
        let read = durable::read(&path, PENDING_MAX_SIZE_BYTES);
        let bytes = match read {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Ok(None),
            Err(source) => return Err(JournalError::Io { path, source }),
        };
        let pending = PendingReceipt::decode(&bytes).map_err(|reason| JournalError::Damaged {
            path: path.clone(),
            reason,
        })?;
        if file_name(pending.receipt.id()) != name {
            let reason = format!("it holds receipt {}", pending.receipt.id());
            return Err(JournalError::Damaged { path, reason });
        }
        Ok(Some(pending))
    }

    fn names(&self) -> Result<Vec<String>, JournalError> {
        let io_error = |source| JournalError::Io {
            path: self.dir.clone(),
            source,
        };
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(io_error)? {
            names.push(
                entry
                    .map_err(io_error)?
                    .file_name()
                    .to_string_lossy()
                    .into_owned(),
            );
        }
        Ok(names)
    }
}

fn file_name(id: B256) -> String {
    format!("{}{SUFFIX}", hex::encode(id))
}

fn answer_name(request_id: B256) -> String {
    format!("{}{ANSWER_SUFFIX}", hex::encode(request_id))
}

#[cfg(test)]
mod tests;
