//! Proof of Attribution in integers: scores, netting, shares, commitments.
//!
//! One crate for the serving engine, the chain's precompiles, the verifier and
//! the browser, so that all of them compute the same numbers from the same
//! bytes. The format is `specs/poa.md`.
//!
//! - [`index`]: the sketch entries of a model, as bytes that are checked once.
//! - [`score`]: a query sketch against an index, netted by contributor.
//! - [`mod@shares`]: a pot divided by weights, exact to the unit.
//! - [`commit`]: the sketch root and proofs of single entries.
//! - [`evidence`]: weights that a receipt commits to, and the pots they open.
//! - [`spans`]: what an answer's verbatim spans are worth, by contributor.
//! - [`context`]: what passages that an answer was given are worth, by contributor.
//! - [`court`]: claims that pay unless somebody refutes them in one step.
//! - [`merkle`]: the padded binary tree below it; datanets use it too.
//!
//! Integers only, no floats, no I/O, no panic on any bytes.

#![no_std]

extern crate alloc;
#[cfg(feature = "std")]
extern crate std;

pub mod commit;
pub mod context;
pub mod court;
pub mod evidence;
pub mod index;
pub mod merkle;
pub mod score;
pub mod shares;
pub mod spans;

pub use evidence::{DEFAULT_POTS_BPS, Earned, Evidence, EvidenceError, Pot, split_pots};
pub use index::{
    CHUNK_ENTRIES, CODE_MAX, ENTRIES_MAX, ENTRY_SIZE_BYTES, Entry, Index, IndexError, K,
};
pub use score::{QuerySketch, weights};
pub use shares::{DEFAULT_SPLIT_BPS, SharesError, shares, split_fee};
