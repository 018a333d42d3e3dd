//! The sketch of an answer: what it is paid by.

use ol_model::{ForwardError, Labels, Lora, Model, Pool, Sequence};
use ol_poa::{Entry, QuerySketch};
use ol_types::B256;

use crate::map::{SketchError, SketchMap};
use crate::method::Method;
use crate::record::RecordInput;
use crate::reduce::Reducer;

/// Makes the query sketches of one adapter. Immutable, cheap to share.
#[derive(Debug, Clone)]
pub struct QuerySketcher {
    map: SketchMap,
    method: Method,
    reducer: Reducer,
    base: B256,
    adapter: B256,
}

impl QuerySketcher {
    /// Prepares the sketches of an adapter's answers.
    ///
    /// # Errors
    /// [`SketcherError`] if the map was not made for this base and adapter.
    pub fn new(map: SketchMap, model: &Model, adapter: &Lora) -> Result<Self, SketcherError> {
        let method = Method::from_context(map.context()).ok_or(SketcherError::Method)?;
        let (base, adapter_hash) = (model.hash(), adapter.hash());
        if !method.is_for(base, adapter_hash) {
            return Err(SketcherError::OtherModel);
        }
        let reducer = method.reducer(adapter);
        if reducer.output_len() != map.dim() {
            return Err(SketcherError::Method);
        }
        Ok(Self {
            map,
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
    /// One forward and one backward pass. The same on every machine and any
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
        if model.hash() != self.base || adapter.hash() != self.adapter {
            return Err(QueryError::OtherModel);
        }
        let tokens = [prompt, answer].concat();
        let weights = self.method.query_loss.weights(tokens.len(), prompt.len());
        let sequences = [Sequence { tokens, weights }];
        let gradients = model.lora_gradients(pool, adapter, &sequences, Labels::Given)?;
        Ok(self
            .map
            .sketch(&self.reducer.reduce(&gradients[0].gradient))?)
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
        if model.hash() != self.base || adapter.hash() != self.adapter {
            return Err(QueryError::OtherModel);
        }
        let context = model.config().max_position_embeddings;
        let sequence = record.sequence(self.method.record_loss, context);
        let gradients = model.lora_gradients(pool, adapter, &[sequence], Labels::Given)?;
        let reduced = self.reducer.reduce(&gradients[0].gradient);
        Ok(record.entry(self.map.record(&reduced)?))
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
