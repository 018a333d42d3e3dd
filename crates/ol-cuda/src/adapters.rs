//! Adapters on a device: slots with a budget of bytes.
//!
//! A slot belongs to one content, named by its hash, from the upload to the
//! eviction. A name that gets another adapter is another hash, hence another
//! slot: no step can read the weights of one adapter as those of another. A slot
//! is written again only by calls that the device carries out after all passes
//! that were asked for before.

use std::collections::HashMap;

use ol_model::{Lora, LoraBlock, ModelConfig};
use ol_types::B256;

use crate::backend::Backend;
use crate::error::GpuError;
use crate::kernels::{Arguments, LoraEntry};
use crate::model::{GpuModel, PROJECTIONS, floats_to_bytes, int};

/// The place of an adapter that is trained; [`GpuModel::remove_adapter`] frees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AdapterSlot(pub(crate) usize);

/// Where the factors of one adapted layer begin, in elements.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Factors {
    pub(crate) a: usize,
    pub(crate) b: usize,
    pub(crate) rank: usize,
    pub(crate) scale: f32,
}

/// An adapter's weights.
pub(crate) struct GpuAdapter<M> {
    pub(crate) parameters: M,
    /// The widest rank.
    pub(crate) rank: usize,
    pub(crate) n_params: usize,
    /// By layer and [`PROJECTIONS`].
    pub(crate) blocks: Vec<Option<Factors>>,
    /// Its content; none for one that is trained, which is never evicted.
    hash: Option<B256>,
    size_bytes: usize,
    last_used: u64,
}

/// What the slots hold now and have done since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AdapterStats {
    /// Adapters on the device.
    pub n_resident: usize,
    /// Their bytes.
    pub resident_bytes: usize,
    /// Adapters copied to the device.
    pub n_uploads: u64,
    /// Adapters that made room for another.
    pub n_evictions: u64,
}

/// All slots, and the table that the kernels look adapters up in.
pub(crate) struct Slots<M> {
    pub(crate) table: M,
    all: Vec<Option<GpuAdapter<M>>>,
    by_hash: HashMap<B256, usize>,
    budget_bytes: usize,
    uses: u64,
    stats: AdapterStats,
}

impl<M> Slots<M> {
    pub(crate) fn new(table: M, n: usize, budget_bytes: usize) -> Self {
        Self {
            table,
            all: (0..n).map(|_| None).collect(),
            by_hash: HashMap::new(),
            budget_bytes,
            uses: 0,
            stats: AdapterStats::default(),
        }
    }

    pub(crate) fn get(&self, slot: AdapterSlot) -> Result<&GpuAdapter<M>, GpuError> {
        self.all
            .get(slot.0)
            .and_then(Option::as_ref)
            .ok_or_else(|| GpuError::Invalid(format!("no adapter in slot {}", slot.0)))
    }

    fn remove(&mut self, slot: usize) {
        if let Some(adapter) = self.all.get_mut(slot).and_then(Option::take) {
            self.stats.n_resident -= 1;
            self.stats.resident_bytes -= adapter.size_bytes;
            if let Some(hash) = adapter.hash {
                self.by_hash.remove(&hash);
            }
        }
    }

    /// A free slot with room for `size_bytes`; the adapters that were not used
    /// for longest make way, but for those in `kept`. One that exceeds the
    /// budget by itself gets a slot when nothing has to be kept.
    fn make_room(&mut self, size_bytes: usize, kept: &[usize]) -> Result<usize, GpuError> {
        loop {
            let free = self.all.iter().position(Option::is_none);
            let fits = self.stats.resident_bytes + size_bytes <= self.budget_bytes;
            if let (Some(slot), true) = (free, fits) {
                return Ok(slot);
            }
            let oldest = (0..self.all.len())
                .filter(|slot| !kept.contains(slot))
                .filter_map(|slot| {
                    let adapter = self.all[slot].as_ref()?;
                    adapter.hash.map(|_| (adapter.last_used, slot))
                })
                .min();
            let Some((_, slot)) = oldest else {
                return match free {
                    Some(slot) if self.by_hash.is_empty() && kept.is_empty() => Ok(slot),
                    _ => Err(GpuError::Full("adapter slot")),
                };
            };
            self.remove(slot);
            self.stats.n_evictions += 1;
        }
    }

    fn put(&mut self, slot: usize, adapter: GpuAdapter<M>) {
        self.remove(slot);
        self.stats.n_uploads += 1;
        self.stats.n_resident += 1;
        self.stats.resident_bytes += adapter.size_bytes;
        if let Some(hash) = adapter.hash {
            self.by_hash.insert(hash, slot);
        }
        self.all[slot] = Some(adapter);
    }
}

/// Where the factors of `adapter` lie, by layer and projection.
fn blocks_of(config: &ModelConfig, adapter: &Lora) -> Result<Vec<Option<Factors>>, GpuError> {
    let mut blocks = vec![None; config.num_hidden_layers * PROJECTIONS.len()];
    for block in adapter.blocks() {
        let place = PROJECTIONS
            .iter()
            .position(|p| *p == block.projection)
            .ok_or_else(|| GpuError::Unsupported(block.projection.name().to_owned()))?;
        if block.has_magnitude {
            return Err(GpuError::Unsupported("DoRA".to_owned()));
        }
        blocks[block.layer * PROJECTIONS.len() + place] = Some(Factors {
            a: block.range_a().start,
            b: block.range_b().start,
            rank: block.rank(),
            scale: block.scale,
        });
    }
    Ok(blocks)
}

impl<B: Backend> GpuModel<B> {
    /// What the adapter slots hold and have done.
    pub const fn adapter_stats(&self) -> AdapterStats {
        self.slots.stats
    }

    /// Copies an adapter that will be trained to a slot, where it stays until it
    /// is removed.
    ///
    /// # Errors
    /// [`GpuError::Full`] when there is no room, [`GpuError::Invalid`] when it
    /// belongs to a model of another shape, [`GpuError::Unsupported`] for DoRA,
    /// [`GpuError::Memory`].
    pub fn add_adapter(&mut self, adapter: &Lora) -> Result<AdapterSlot, GpuError> {
        let size_bytes = adapter.n_params() * size_of::<f32>();
        let slot = AdapterSlot(self.slots.make_room(size_bytes, &[])?);
        self.upload_adapter(slot, adapter, None)?;
        Ok(slot)
    }

    /// Puts another adapter in the place of one, as every step of training does.
    ///
    /// # Errors
    /// As [`GpuModel::add_adapter`].
    pub fn replace_adapter(&mut self, slot: AdapterSlot, adapter: &Lora) -> Result<(), GpuError> {
        self.slots.get(slot)?;
        self.upload_adapter(slot, adapter, None)
    }

    /// Frees an adapter's slot and memory.
    pub fn remove_adapter(&mut self, slot: AdapterSlot) {
        self.slots.remove(slot.0);
    }

    /// The slot of an adapter's content, copied there if it is not yet. Slots in
    /// `kept` stay.
    pub(crate) fn resident(&mut self, adapter: &Lora, kept: &[usize]) -> Result<usize, GpuError> {
        let hash = adapter.hash();
        self.slots.uses += 1;
        let uses = self.slots.uses;
        let slot = match self.slots.by_hash.get(&hash) {
            Some(slot) => *slot,
            None => {
                let size_bytes = adapter.n_params() * size_of::<f32>();
                let slot = self.slots.make_room(size_bytes, kept)?;
                self.upload_adapter(AdapterSlot(slot), adapter, Some(hash))?;
                slot
            }
        };
        if let Some(held) = &mut self.slots.all[slot] {
            held.last_used = uses;
        }
        Ok(slot)
    }

    fn upload_adapter(
        &mut self,
        slot: AdapterSlot,
        adapter: &Lora,
        hash: Option<B256>,
    ) -> Result<(), GpuError> {
        if !adapter.fits(&self.config) {
            return Err(GpuError::Invalid(
                "the adapter belongs to a model of another shape".to_owned(),
            ));
        }
        let blocks = blocks_of(&self.config, adapter)?;
        let bytes = floats_to_bytes(adapter.parameters());
        let mut parameters = self.device.allocate("an adapter", bytes.len())?;
        self.device.write(&mut parameters, 0, &bytes)?;
        let base = self.device.address(&parameters);
        let at = |element: usize| base + (element * size_of::<f32>()) as u64;
        let entries: Vec<u8> = blocks
            .iter()
            .flat_map(|block| {
                let none = LoraEntry {
                    a: 0,
                    b: 0,
                    rank: 0,
                    scale: 0.0,
                };
                let entry = block.map_or(none, |block: Factors| LoraEntry {
                    a: at(block.a),
                    b: at(block.b),
                    rank: int(block.rank),
                    scale: block.scale,
                });
                entry.bytes().to_vec()
            })
            .collect();
        self.device
            .write(&mut self.slots.table, slot.0 * entries.len(), &entries)?;
        self.slots.put(
            slot.0,
            GpuAdapter {
                parameters,
                rank: widest(adapter.blocks()),
                n_params: adapter.n_params(),
                blocks,
                hash,
                size_bytes: bytes.len(),
                last_used: 0,
            },
        );
        Ok(())
    }
}

fn widest(blocks: &[LoraBlock]) -> usize {
    blocks.iter().map(LoraBlock::rank).max().unwrap_or(0)
}
