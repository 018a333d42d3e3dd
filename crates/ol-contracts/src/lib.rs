//! The contracts as Rust sees them: addresses, bindings, runtime code and the
//! genesis state.
//!
//! The sources are in `contracts/`; `artifacts/` holds their ABI and runtime
//! code, built by `cargo xtask contracts` and checked for freshness by
//! `cargo xtask contracts --check`, so that building this crate needs no
//! Solidity compiler. Formats: `specs/predeploys.md`, `specs/poa.md`,
//! `specs/receipt.md`.
//!
//! # Example
//! ```
//! use alloy_sol_types::SolCall;
//! use ol_contracts::{address, bindings::InferenceSettlement, genesis};
//!
//! let call = InferenceSettlement::depositForCall { account: address::DEV_ACCOUNTS[3] };
//! assert_eq!(call.abi_encode().len(), 4 + 32);
//! assert!(genesis::dev().alloc.contains_key(&address::INFERENCE_SETTLEMENT));
//! ```

pub mod address;
pub mod bindings;
pub mod court;
pub mod genesis;
pub mod settlement;
pub mod sketch;
