//! Entry points for fuzzing: bytes in, and what must hold whatever they are.
//!
//! Each [`Target`] takes any bytes and panics if something is wrong: a panic in
//! the code under it, or a property that does not hold. `fuzz/` runs them under
//! libFuzzer; the tests of this crate run the same functions over the committed
//! seeds and what proptest makes of them, so that neither can rot.
//!
//! # Targets
//! - [`transaction`], [`block`], [`receipt`]: what is decoded is encoded as it was.
//! - [`submit`]: a node takes a raw transaction or says why not, and stays whole.
//! - [`rpc`]: a JSON-RPC request is answered with JSON, and never by an internal error.
//! - [`method`]: the same with parameters for a method that exists.
//! - [`genesis`]: a genesis makes a chain that opens again, or an error.
//! - [`execute`]: any code gives an answer, and the same one twice.
//! - [`trie`]: any history of changes leaves the trie that its leaves make at once.
//! - [`model`], [`adapter`]: files of weights are read and written alike, or an error.
//! - [`gguf`]: a GGUF file is a model, and the same one twice, or an error.
//! - [`gguf_adapter`]: a GGUF file is an adapter, and as a PEFT directory the same, or an error.
//! - [`spans`]: files of an index open and are asked, or are damaged by name.
//! - [`span_units_of`]: whatever spans are said to be found, no token is paid twice.
//! - [`evidence`]: lists have one encoding; objects that show them are read or refused.

mod chain;
mod codec;
mod evm;
mod gguf;
mod model;
mod rpc;
mod spans;
mod trie;

pub use chain::{genesis, submit};
pub use codec::{block, receipt, transaction};
pub use evm::execute;
pub use gguf::{gguf, gguf_adapter};
pub use model::{adapter, adapter_base, model};
pub use rpc::{method, rpc};
pub use spans::{evidence, span_units_of, spans};
pub use trie::trie;

/// Something to throw bytes at.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name: that of the program in `fuzz/` and of the folder of seeds.
    pub name: &'static str,
    /// Panics if something is wrong.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target {
        name: "transaction",
        run: transaction,
    },
    Target {
        name: "block",
        run: block,
    },
    Target {
        name: "receipt",
        run: receipt,
    },
    Target {
        name: "submit",
        run: submit,
    },
    Target {
        name: "rpc",
        run: rpc,
    },
    Target {
        name: "method",
        run: method,
    },
    Target {
        name: "genesis",
        run: genesis,
    },
    Target {
        name: "execute",
        run: execute,
    },
    Target {
        name: "trie",
        run: trie,
    },
    Target {
        name: "model",
        run: model,
    },
    Target {
        name: "adapter",
        run: adapter,
    },
    Target {
        name: "gguf",
        run: gguf,
    },
    Target {
        name: "gguf_adapter",
        run: gguf_adapter,
    },
    Target {
        name: "spans",
        run: spans,
    },
    Target {
        name: "span_units",
        run: span_units_of,
    },
    Target {
        name: "evidence",
        run: evidence,
    },
];
