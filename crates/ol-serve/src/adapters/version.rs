//! An immutable version of an adapter, and how it gets into memory.

use std::sync::Arc;

use ol_model::{Gguf, Lora, MAX_ADAPTER_SIZE_BYTES, ModelConfig};
use ol_types::B256;

use super::disk::Disk;
use super::source::{AdapterFiles, AdapterSource, GGUF_FILE};
use super::sum::weighted_sum;
use super::table::N_TIERS;
use super::{AdapterError, AdapterStoreOptions};

/// What is known of a version whether or not it is in memory.
pub(super) struct Version {
    /// Of its content.
    pub(super) hash: B256,
    pub(super) rank_max: usize,
    pub(super) n_params: usize,
    pub(super) use_dora: bool,
    /// Of its files; 0 for what has none.
    pub(super) file_size_bytes: u64,
    /// Memory it takes in each tier; of a sum, an estimate.
    pub(super) size_bytes: [u64; N_TIERS],
    pub(super) origin: Origin,
}

pub(super) enum Origin {
    Source(Arc<dyn AdapterSource>),
    /// It was given as it is, and cannot be had again.
    Memory,
    /// A weighted sum of others.
    Sum(Vec<(Arc<Version>, f32)>),
}

impl Version {
    /// The version that `lora` is.
    pub(super) fn of(
        lora: &Lora,
        size_bytes: [u64; N_TIERS],
        file_size_bytes: u64,
        origin: Origin,
    ) -> Self {
        Self {
            hash: lora.hash(),
            rank_max: rank_max(lora),
            n_params: lora.n_params(),
            use_dora: lora.config().use_dora,
            file_size_bytes,
            size_bytes,
            origin,
        }
    }

    pub(super) const fn is_sum(&self) -> bool {
        matches!(self.origin, Origin::Sum(_))
    }

    pub(super) const fn is_in_memory_only(&self) -> bool {
        matches!(self.origin, Origin::Memory)
    }
}

pub(super) fn rank_max(lora: &Lora) -> usize {
    let ranks = lora.blocks().iter().map(ol_model::LoraBlock::rank);
    ranks.max().unwrap_or(0)
}

/// Reads adapters and checks them; no state but the folder.
pub(super) struct Reader {
    pub(super) model: ModelConfig,
    pub(super) options: AdapterStoreOptions,
    pub(super) disk: Option<Disk>,
}

impl Reader {
    /// A version as its source has it now, and its files.
    pub(super) fn fetch(
        &self,
        source: &dyn AdapterSource,
    ) -> Result<(Lora, AdapterFiles), AdapterError> {
        let limit_bytes = self.options.file_size_bytes_max.min(MAX_ADAPTER_SIZE_BYTES);
        let files = source.read(limit_bytes)?;
        // A source may be anything.
        let size_bytes = files.weights().len() as u64;
        if size_bytes > limit_bytes {
            return Err(AdapterError::TooLarge {
                what: "on disk",
                size_bytes,
                limit_bytes,
            });
        }
        let lora = self.parse(&files, source)?;
        Ok((lora, files))
    }

    fn parse(
        &self,
        files: &AdapterFiles,
        source: &dyn AdapterSource,
    ) -> Result<Lora, AdapterError> {
        let refused = |reason: String| AdapterError::Refused {
            location: source.to_string(),
            reason,
        };
        let lora = match files {
            AdapterFiles::Peft { config, weights } => {
                Lora::from_bytes(config, weights, &self.model)
                    .map_err(|error| refused(error.to_string()))?
            }
            AdapterFiles::Gguf(file) => Gguf::from_bytes(GGUF_FILE, file.clone())
                .and_then(|file| Lora::from_gguf(&file, &self.model))
                .map_err(|error| refused(error.to_string()))?,
        };
        let (rank, limit) = (rank_max(&lora), self.options.rank_max);
        if rank > limit {
            return Err(refused(format!(
                "rank {rank} is above the limit of {limit}"
            )));
        }
        if let Some(allowed) = &self.options.target_modules {
            let targets = &lora.config().target_modules;
            if let Some(target) = targets.iter().find(|target| !allowed.contains(target)) {
                return Err(refused(format!(
                    "target module {target:?} is not allowed; allowed are {allowed:?}"
                )));
            }
        }
        Ok(lora)
    }

    /// Brings a version into memory. `resident` gives what is there already.
    pub(super) fn load(
        &self,
        version: &Version,
        resident: &dyn Fn(B256) -> Option<Arc<Lora>>,
    ) -> Result<Arc<Lora>, AdapterError> {
        match &version.origin {
            Origin::Source(source) => self.read(version.hash, source.as_ref()).map(Arc::new),
            Origin::Memory => Err(AdapterError::Defect),
            Origin::Sum(parts) => {
                let parts: Vec<(Arc<Lora>, f32)> = parts
                    .iter()
                    .map(|(part, weight)| {
                        let lora = match resident(part.hash) {
                            Some(lora) => lora,
                            None => self.load(part, resident)?,
                        };
                        Ok((lora, *weight))
                    })
                    .collect::<Result<_, AdapterError>>()?;
                weighted_sum(&self.model, &parts).map(Arc::new)
            }
        }
    }

    /// From the folder, or else from the source, which may have changed.
    fn read(&self, hash: B256, source: &dyn AdapterSource) -> Result<Lora, AdapterError> {
        if let Some(disk) = &self.disk
            && let Some(files) = disk.get(hash, MAX_ADAPTER_SIZE_BYTES)
        {
            return self.parse(&files, source);
        }
        let (lora, files) = self.fetch(source)?;
        if lora.hash() != hash {
            return Err(AdapterError::Changed {
                location: source.to_string(),
                expected: hash,
            });
        }
        if let Some(disk) = &self.disk {
            disk.put(hash, &files);
        }
        Ok(lora)
    }
}
