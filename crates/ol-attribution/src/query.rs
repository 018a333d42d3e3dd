//! The sketch of an answer: what it is paid by.

use ol_model::{ForwardError, Labels, Lora, Model, Pool, Sequence};
use ol_poa::{Entry, QuerySketch};
use ol_types::B256;

use crate::checkpoint::{Checkpoints, Places};
use crate::map::{SketchError, SketchMap};
use crate::method::Method;
use crate::record::RecordInput;
use crate::reduce::Reducer;

/// Makes the query sketches of one adapter. Immutable, cheap to share.
#[derive(Debug, Clone)]
pub struct QuerySketcher {
    map: SketchMap,
    method: Method,
    places: Places,
    reducer: Reducer,
    base: B256,
    adapter: B256,
}

impl QuerySketcher {
    /// Prepares the sketches of an adapter's answers whose gradients are taken at
    /// the adapter itself.
    ///
    /// # Errors
    /// [`SketcherError`] if the map was not made for this base and adapter.
    pub fn new(map: SketchMap, model: &Model, adapter: &Lora) -> Result<Self, SketcherError> {
        Self::at(map, model, adapter, &Checkpoints::default())
    }

    /// As [`Self::new`], the gradients taken at `checkpoints`, or their mean, as
    /// the map says.
    ///
    /// # Errors
    /// As [`Self::new`], and if the map names other checkpoints.
    pub fn at(
        map: SketchMap,
        model: &Model,
        adapter: &Lora,
        checkpoints: &Checkpoints,
    ) -> Result<Self, SketcherError> {
        let method = Method::from_context(map.context()).ok_or(SketcherError::Method)?;
        let (base, adapter_hash) = (model.hash(), adapter.hash());
        if !method.is_for(base, adapter_hash) {
            return Err(SketcherError::OtherModel);
        }
        let found = checkpoints.hashes(adapter);
        let places = Places::new(adapter, checkpoints, method.place)
            .filter(|_| found == method.checkpoints)
            .ok_or_else(|| SketcherError::Checkpoints {
                expected: method.checkpoints.clone(),
                found,
            })?;
        let reducer = method.reducer(adapter);
        if reducer.output_len() != map.dim() {
            return Err(SketcherError::Method);
        }
        Ok(Self {
            map,
            places,
            method,
            reducer,
            base,
            adapter: adapter_hash,
        })
    }

    /// The map that sketches are made with.
    #[must_use]
    pub const fn map(&self) -> &SketchMap {
        &self.map
    }

    /// How the sketches are made.
    #[must_use]
    pub const fn method(&self) -> &Method {
        &self.method
    }

    /// The sketch of `answer` after `prompt`, both as the model saw and gave
    /// them: the prompt ends where the answer begins.
    ///
    /// One forward and one backward pass for each place. The same on every machine and any
    /// number of threads.
    ///
    /// # Errors
    /// [`QueryError`] if the model or adapter is not the one this sketcher was
    /// made for, or the tokens do not fit it.
    pub fn sketch(
        &self,
        model: &Model,
        pool: &Pool,
        adapter: &Lora,
        prompt: &[u32],
        answer: &[u32],
    ) -> Result<QuerySketch, QueryError> {
        let tokens = [prompt, answer].concat();
        let weights = self.method.query_loss.weights(tokens.len(), prompt.len());
        let sequence = Sequence { tokens, weights };
        Ok(self
            .map
            .sketch(&self.gradient(model, pool, adapter, sequence)?)?)
    }

    /// The sketch of a record that came after the map was fitted: what the fit
    /// would have given it, but for the subspace, which was chosen without it.
    ///
    /// # Errors
    /// As [`Self::sketch`].
    pub fn sketch_record(
        &self,
        model: &Model,
        pool: &Pool,
        adapter: &Lora,
        record: &RecordInput,
    ) -> Result<Entry, QueryError> {
        let context = model.config().max_position_embeddings;
        let sequence = record.sequence(self.method.record_loss, context);
        let gradient = self.gradient(model, pool, adapter, sequence)?;
        Ok(record.entry(self.map.record(&gradient)?))
    }

    /// The reduced gradient of one sequence.
    fn gradient(
        &self,
        model: &Model,
        pool: &Pool,
        adapter: &Lora,
        sequence: Sequence,
    ) -> Result<Vec<f32>, QueryError> {
        if model.hash() != self.base || adapter.hash() != self.adapter {
            return Err(QueryError::OtherModel);
        }
        let sequences = [sequence];
        let rows = self
            .places
            .gradients(model, pool, &sequences, Labels::Given)?;
        Ok(self.reducer.reduce(&rows[0]))
    }
}

/// Why a map does not go with a model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SketcherError {
    /// The map does not say how its sketches are made, or in a way that this
    /// version does not know.
    #[error("the sketch map's method is not one of this version")]
    Method,
    /// The map's gradients are taken elsewhere.
    #[error(
        "the sketch map's gradients are taken at the checkpoints {}, given were {}",
        expected.join(", "),
        found.join(", ")
    )]
    Checkpoints {
        /// Content hashes in the map.
        expected: Vec<String>,
        /// Content hashes of what was given.
        found: Vec<String>,
    },
    /// The map belongs to another base model or adapter.
    #[error("the sketch map belongs to another base model or adapter")]
    OtherModel,
}

/// Why an answer has no sketch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QueryError {
    /// The model or adapter is not the one the sketcher was made for.
    #[error("the sketcher belongs to another base model or adapter")]
    OtherModel,
    /// The tokens do not fit the model.
    #[error(transparent)]
    Forward(#[from] ForwardError),
    /// The gradient cannot be sketched.
    #[error(transparent)]
    Sketch(#[from] SketchError),
}
