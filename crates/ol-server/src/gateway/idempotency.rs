//! Asking again without paying again.
//!
//! A client that lost a reply repeats its request with the same idempotency
//! key. The request's id is then the same, the chain settles a request once,
//! and the engine gives the same tokens for the same prompt and seed: so the
//! answer is computed again and handed out under the receipt that is there. No
//! prompt and no answer is kept for it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use ol_types::{Address, B256, keccak256};

use super::journal::Owed;
use super::session::hash_tokens;
use super::settlement::Status;
use crate::answer::RequestError;

/// Longest idempotency key, in bytes.
pub const IDEMPOTENCY_KEY_SIZE_BYTES_MAX: usize = 255;

/// The id of the request that a payer names by `key`.
pub(super) fn request_id(payer: Address, key: &str) -> B256 {
    keccak256([b"openledger request", payer.as_slice(), key.as_bytes()].concat())
}

/// The seed of a named request that asks for none: the same each time.
pub(super) fn seed(request_id: B256) -> u64 {
    let hash = keccak256(request_id);
    u64::from_be_bytes(*hash.first_chunk().expect("a hash has eight bytes"))
}

/// The receipt that an earlier request with the same key got.
#[derive(Debug, Clone)]
pub(super) struct Earlier {
    pub(super) owed: Owed,
    pub(super) status: Status,
}

impl Earlier {
    /// Checks that this is the same question to the same model, before anything
    /// is computed: a key is not a way to answers that nobody paid for.
    pub(super) fn check(
        &self,
        prompt_tokens: &[u32],
        model_id: B256,
        adapter: B256,
    ) -> Result<(), RequestError> {
        let receipt = self.owed.receipt();
        let is_same = receipt.prompt_hash == hash_tokens(prompt_tokens)
            && receipt.model_id == model_id
            && receipt.adapter_hash == adapter;
        if is_same {
            Ok(())
        } else {
            Err(RequestError::KeyReused)
        }
    }
}

/// The named requests that run now.
#[derive(Debug, Default)]
pub(super) struct Running {
    requests: Mutex<BTreeSet<B256>>,
}

impl Running {
    /// Says that a named request runs, until the guard is dropped. At most as
    /// many as there are request permits.
    ///
    /// # Errors
    /// [`RequestError::InFlight`] if it does already.
    pub(super) fn begin(self: &Arc<Self>, request_id: B256) -> Result<RunningGuard, RequestError> {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        if !requests.insert(request_id) {
            return Err(RequestError::InFlight);
        }
        Ok(RunningGuard {
            running: Arc::clone(self),
            request_id,
        })
    }
}

/// A named request that runs.
#[derive(Debug)]
pub(super) struct RunningGuard {
    running: Arc<Running>,
    request_id: B256,
}

impl Drop for RunningGuard {
    fn drop(&mut self) {
        let mut requests = self
            .running
            .requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        requests.remove(&self.request_id);
    }
}
