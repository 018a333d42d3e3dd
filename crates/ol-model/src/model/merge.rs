//! Adapters made for a base, and merged into it.

use super::dora::{Dora, weight_norms};
use super::{ForwardError, Model};
use crate::linear::Linear;
use crate::lora::{Lora, LoraBlock, LoraConfig, LoraError};
use crate::pool::Pool;

impl Model {
    /// A fresh adapter that changes nothing yet; for DoRA the magnitudes are
    /// the norms of the weights.
    ///
    /// # Errors
    /// [`LoraError`] when `config` is out of its limits.
    pub fn fresh_adapter(
        &self,
        pool: &Pool,
        config: LoraConfig,
        seed: u64,
    ) -> Result<Lora, LoraError> {
        let mut adapter = Lora::init_with(&self.config, config, seed)?;
        if adapter.config().use_dora {
            let mut params = adapter.to_parameters();
            for (at, block) in adapter.blocks().iter().enumerate() {
                let (linear, first) = self.adapted(block);
                let norms = weight_norms(pool, linear, first, &adapter, at);
                params[block.range_magnitude()].copy_from_slice(&norms);
            }
            adapter.set_parameters(&params)?;
        }
        Ok(adapter)
    }

    /// Adds the adapter to the weights: `W + s B A`, with DoRA rescaled to its
    /// magnitudes. Adapted matrices are held in f32 from then on.
    ///
    /// # Errors
    /// [`ForwardError::Shape`] when the adapter belongs to another shape of
    /// model.
    pub fn merge(&mut self, pool: &Pool, adapter: &Lora) -> Result<(), ForwardError> {
        if !adapter.fits(&self.config) {
            return Err(ForwardError::Shape {
                segment: 0,
                what: "adapter",
            });
        }
        for (at, block) in adapter.blocks().iter().enumerate() {
            let (linear, first) = self.adapted(block);
            let dora = Dora::new(pool, linear, first, adapter, at);
            let factors = adapter.factors(at);
            let flat = linear.flat().start;
            let Some(linear) = self
                .linears_mut()
                .into_iter()
                .find(|l| l.flat().start == flat)
            else {
                continue;
            };
            linear.map_rows(pool, first..first + block.rows_b.0, &|row, weights| {
                factors.add_to_row(row - first, weights);
                if let Some(dora) = &dora {
                    let gain = dora.gains[row - first];
                    weights.iter_mut().for_each(|w| *w *= gain);
                }
            });
        }
        self.hash = std::sync::OnceLock::new();
        Ok(())
    }

    /// The layer that a block adapts, and the first of its outputs there.
    fn adapted(&self, block: &LoraBlock) -> (&Linear, usize) {
        let spec = self
            .layout
            .find(&format!("{}.weight", block.module))
            .expect("an adapter that fits names matrices of the layout");
        self.linears()
            .into_iter()
            .filter(|l| l.flat().contains(&spec.offset))
            .map(|l| (l, (spec.offset - l.flat().start) / l.d_in()))
            .next()
            .expect("every matrix of the layout is in a layer")
    }
}
