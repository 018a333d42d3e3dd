//! Training an adapter on a device.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use ol_model::{ForwardError, Learner, Lora, Sequence};

use crate::adapters::AdapterSlot;
use crate::backend::Backend;
use crate::error::GpuError;
use crate::model::GpuModel;

/// A model on a device with the one adapter that is trained.
pub struct GpuLearner<B: Backend> {
    held: Mutex<Held<B>>,
}

struct Held<B: Backend> {
    model: GpuModel<B>,
    slot: Option<AdapterSlot>,
}

impl<B: Backend> fmt::Debug for GpuLearner<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GpuLearner").finish_non_exhaustive()
    }
}

impl<B: Backend> Held<B> {
    /// The slot with the adapter as it is now.
    fn slot(&mut self, adapter: &Lora) -> Result<AdapterSlot, GpuError> {
        let slot = match self.slot {
            Some(slot) => {
                self.model.replace_adapter(slot, adapter)?;
                slot
            }
            None => self.model.add_adapter(adapter)?,
        };
        self.slot = Some(slot);
        Ok(slot)
    }
}

impl<B: Backend> GpuLearner<B> {
    /// Trains adapters of `model`, which needs one adapter slot and no KV page.
    #[must_use]
    pub const fn new(model: GpuModel<B>) -> Self {
        Self {
            held: Mutex::new(Held { model, slot: None }),
        }
    }

    fn with<T>(
        &self,
        work: impl FnOnce(&mut Held<B>) -> Result<T, GpuError>,
    ) -> Result<T, ForwardError> {
        // A slot is replaced before each use, whatever a panic left there.
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(work(&mut held)?)
    }
}

impl<B: Backend> Learner for GpuLearner<B> {
    fn losses(
        &self,
        adapter: Option<&Lora>,
        sequences: &[Sequence],
    ) -> Result<Vec<f64>, ForwardError> {
        self.with(|held| {
            let slot = adapter.map(|adapter| held.slot(adapter)).transpose()?;
            let mut losses = Vec::with_capacity(sequences.len());
            for range in Sequence::batches(sequences) {
                losses.extend(held.model.losses(slot, &sequences[range])?);
            }
            Ok(losses)
        })
    }

    /// Nothing is recomputed: the device's memory decides how much fits a pass.
    fn add_gradient(
        &self,
        adapter: &Lora,
        sequences: &[Sequence],
        _recompute: bool,
        factors: Option<&dyn Fn(&[f64]) -> Vec<f32>>,
        gradient: &mut [f32],
    ) -> Result<Vec<f64>, ForwardError> {
        assert_eq!(gradient.len(), adapter.n_params(), "one value a parameter");
        self.with(|held| {
            let slot = held.slot(adapter)?;
            // Factors see the losses of all.
            let parts = match factors {
                Some(_) => std::iter::once(0..sequences.len()).collect(),
                None => Sequence::batches(sequences),
            };
            let (mut losses, mut sum) = (Vec::new(), vec![0.0_f32; gradient.len()]);
            for range in parts {
                let (part, slope) = held.model.lora_gradient(slot, &sequences[range], factors)?;
                losses.extend(part);
                for (sum, slope) in sum.iter_mut().zip(slope) {
                    *sum += slope;
                }
            }
            for (gradient, sum) in gradient.iter_mut().zip(sum) {
                *gradient += sum;
            }
            Ok(losses)
        })
    }
}
