//! Which adapter answers to which name.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use ol_model::Lora;

/// The adapters that can be asked for by name.
///
/// Replacing a name is safe while requests run: each keeps the version it got.
#[derive(Debug)]
pub struct Adapters {
    by_name: RwLock<BTreeMap<String, Arc<Lora>>>,
    n_max: usize,
}

/// The registry is full; remove an adapter first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{n_max} adapters are loaded, which is the most there may be")]
pub struct AdapterLimitError {
    /// The limit.
    pub n_max: usize,
}

impl Adapters {
    /// An empty registry for at most `n_max` names.
    #[must_use]
    pub const fn new(n_max: usize) -> Self {
        Self {
            by_name: RwLock::new(BTreeMap::new()),
            n_max,
        }
    }

    /// Puts an adapter under a name and gives back the version it replaces.
    ///
    /// # Errors
    /// [`AdapterLimitError`] if the name is new and the registry full.
    pub fn insert(
        &self,
        name: &str,
        lora: Arc<Lora>,
    ) -> Result<Option<Arc<Lora>>, AdapterLimitError> {
        let mut by_name = self.by_name.write().unwrap_or_else(PoisonError::into_inner);
        if by_name.len() >= self.n_max && !by_name.contains_key(name) {
            return Err(AdapterLimitError { n_max: self.n_max });
        }
        Ok(by_name.insert(name.to_owned(), lora))
    }

    /// The adapter under a name now.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Arc<Lora>> {
        self.by_name
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(name)
            .cloned()
    }

    /// Takes a name away; running requests are not touched.
    pub fn remove(&self, name: &str) -> Option<Arc<Lora>> {
        self.by_name
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(name)
    }

    /// All names, ascending.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.by_name
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .keys()
            .cloned()
            .collect()
    }
}
