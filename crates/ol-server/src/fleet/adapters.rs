//! Adapters on their way to the workers: files under their hash, and the calls
//! that make a worker load them.
//!
//! What a worker is told to load never changes: the folder of an adapter is
//! named by the hash of its content, and so is the name it is loaded under. A
//! name that is replaced becomes another folder and another name there, and no
//! answer can come from weights that were replaced.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use alloy_primitives::hex;
use axum::body::Bytes;
use axum::http::{Method, StatusCode};
use ol_serve::AdapterRef;
use ol_types::B256;
use serde_json::json;

use super::client::{As, Ask};
use super::pool::{Place, Pool};
use super::protocol::{self, Loaded};

/// How long a worker may take to load an adapter.
const LOAD_TIMEOUT: Duration = Duration::from_secs(60);

/// Largest answer to a call for an adapter.
const ANSWER_MAX_SIZE_BYTES: usize = 64 << 10;

/// Most adapters kept as files; the one published first goes first.
const PUBLISHED_MAX: usize = 8_192;

/// The folder of published adapters.
#[derive(Debug)]
pub(super) struct Published {
    dir: PathBuf,
    /// Names at workers, by hash, and in which order they came.
    names: Mutex<(BTreeMap<B256, u64>, u64)>,
    publishing: tokio::sync::Mutex<()>,
}

/// Why a worker does not have an adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum LoadError {
    /// It has no room now.
    Full(String),
    /// It refuses the adapter.
    Refused(String),
    /// It is broken.
    Broken(String),
}

/// The name under which workers know an adapter.
pub(super) fn worker_name(hash: B256) -> String {
    format!("adapter@{}", hex::encode(&hash[..8]))
}

impl Published {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            names: Mutex::default(),
            publishing: tokio::sync::Mutex::default(),
        }
    }

    /// Makes sure that the adapter's files are there for workers to read.
    ///
    /// # Errors
    /// What went wrong, in words.
    pub(super) async fn publish(&self, adapter: &AdapterRef) -> Result<(), String> {
        let hash = adapter.hash();
        let is_known = || {
            let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
            names.0.contains_key(&hash)
        };
        if is_known() {
            return Ok(());
        }
        // One at a time: two requests for one adapter must not write the same files.
        let _turn = self.publishing.lock().await;
        if is_known() {
            return Ok(());
        }
        let lease = std::future::poll_fn(|context| adapter.poll_lease(context.waker())).await;
        let lease = lease.map_err(|error| error.to_string())?;
        let dir = self.dir.join(hex::encode(hash));
        let written = tokio::task::spawn_blocking(move || {
            lease.save(&dir, "base").map_err(|error| error.to_string())
        });
        written
            .await
            .map_err(|_| "writing the adapter panicked".to_owned())??;
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let (by_hash, n_published) = &mut *names;
        *n_published += 1;
        by_hash.insert(hash, *n_published);
        let oldest = by_hash.iter().min_by_key(|&(_, order)| order);
        let gone = oldest
            .map(|(&hash, _)| hash)
            .filter(|_| by_hash.len() > PUBLISHED_MAX);
        if let Some(hash) = gone {
            by_hash.remove(&hash);
            // Left behind it costs disk, and is found again by its hash.
            let _ = std::fs::remove_dir_all(self.dir.join(hex::encode(hash)));
        }
        Ok(())
    }

    /// Where a worker finds the adapter.
    fn path(&self, adapter_root: Option<&str>, hash: B256) -> String {
        let name = hex::encode(hash);
        match adapter_root {
            Some(root) => format!("{}/{name}", root.trim_end_matches('/')),
            None => self.dir.join(name).to_string_lossy().into_owned(),
        }
    }

    /// Makes sure that the worker of a place has its adapter.
    ///
    /// # Errors
    /// [`LoadError`].
    pub(super) async fn load(
        &self,
        pool: &Pool,
        place: &Place,
        hash: B256,
    ) -> Result<(), LoadError> {
        if pool.is_loaded(place.worker, &place.model) {
            return Ok(());
        }
        let worker = &pool.workers[place.worker];
        let _turn = worker.loading.lock().await;
        if pool.is_loaded(place.worker, &place.model) {
            return Ok(());
        }
        for name in pool.take_unloads(place.worker) {
            let body = json!({"lora_name": name});
            let (status, said) = self.call(pool, place, "unload", &body).await?;
            // Gone already is as good.
            if !status.is_success() && status != StatusCode::NOT_FOUND {
                let said = format!("{status}: {}", String::from_utf8_lossy(&said));
                return Err(LoadError::Broken(said));
            }
        }
        let path = self.path(worker.options.adapter_root.as_deref(), hash);
        let body = json!({"lora_name": place.model, "lora_path": path});
        let (status, said) = self.call(pool, place, "load", &body).await?;
        match protocol::loaded(status, &said) {
            Loaded::Yes => {
                pool.note_loaded(place.worker, &place.model, true);
                Ok(())
            }
            Loaded::Full(said) => Err(LoadError::Full(said)),
            Loaded::Refused(said) => Err(LoadError::Refused(said)),
            Loaded::Broken(said) => Err(LoadError::Broken(said)),
        }
    }

    async fn call(
        &self,
        pool: &Pool,
        place: &Place,
        what: &str,
        body: &serde_json::Value,
    ) -> Result<(StatusCode, Vec<u8>), LoadError> {
        let client = &pool.workers[place.worker].client;
        let path = format!("/v1/{what}_lora_adapter");
        let ask = Ask {
            role: As::Admin,
            method: Method::POST,
            path: &path,
            body: Some(Bytes::from(body.to_string())),
            timeout: LOAD_TIMEOUT,
        };
        client
            .call(&ask, ANSWER_MAX_SIZE_BYTES)
            .await
            .map_err(|error| LoadError::Broken(error.to_string()))
    }
}
