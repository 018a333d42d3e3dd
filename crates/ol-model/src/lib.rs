//! Language models: weights, tokenizer, LoRA, kernels with one K-order.
//!
//! Everything is computed in f32 with a fixed order of operations (see the
//! `kernels` module), so losses, gradients, logits and tokens have the same bits
//! on every machine, at every batch size and on any number of threads.
//!
//! * [`Model`]: load, save, [`Model::forward`] for mixed-adapter batches with
//!   [`KvCache`]s, [`Model::losses`], [`Model::lora_gradients`] per sequence,
//!   [`Model::full_gradient`].
//! * [`Executor`]: what carries out passes for a server: the CPU, or a device.
//! * [`Lora`]: adapters in PEFT's format.
//! * [`Tokenizer`]: BPE of every family, chat templates, streaming decoder.
//! * [`Pool`]: the threads it all runs on.

mod cache;
mod chat_template;
mod config;
mod executor;
mod generation_config;
mod gguf;
mod isa;
pub(crate) mod kernels;
mod layout;
mod linear;
mod lora;
mod model;
mod pool;
mod quant;
mod random;
#[doc(hidden)]
pub mod roofline;
mod tokenizer;
mod weights;

pub use cache::{KvCache, KvPage, KvPool, PAGE_TOKENS, PoolFull};
pub use chat_template::{ChatOptions, ChatTemplateError, Conversation};
pub use config::{
    ConfigError, Family, Mla, ModelConfig, Moe, Rope, Routing, SlidingWindow, WeightFormat,
};
pub use executor::{CpuExecutor, CpuLearner, Draw, Drawn, Executor, Forwarded, Learner};
pub use generation_config::GenerationConfig;
pub use gguf::{
    Array, Gguf, GgufError, GgufTensor, GgufTokenizer, MAX_GGUF_HEADER_SIZE_BYTES, Storage,
    TokenKind, Value,
};
pub use isa::{Isa, Level};
pub use layout::{Layout, TensorSpec};
pub use lora::{
    Lora, LoraBlock, LoraConfig, LoraError, MAX_ADAPTER_SIZE_BYTES, MAX_RANK, PeftError, Projection,
};
pub use model::{
    ForwardError, GradientOptions, Labels, LoadError, MAX_MODEL_SIZE_BYTES, Model, Segment,
    Sequence, SequenceGradient, StoredTensor,
};
pub use pool::Pool;
pub use quant::{Format, QuantError, QuantMatrix};
pub use random::Random;
pub use tokenizer::{
    ChatMessage, ChatTokens, MAX_TOKENIZER_SIZE_BYTES, Role, TokenStream, Tokenizer, TokenizerError,
};
pub use weights::{Dtype, WeightsError, write_atomic};
