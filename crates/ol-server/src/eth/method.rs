//! A method: its name, how many parameters it takes, what it costs.

use serde::Serialize;
use serde_json::Value;

use super::args::Args;
use super::bounded::LargeReply;
use super::gate::Weight;
use super::{Eth, errors};
use alloy_primitives::U64;
use jsonrpsee::types::ErrorObjectOwned;

/// What a method answers.
pub(super) type Reply = Result<Value, ErrorObjectOwned>;

/// A method that answers by itself, without waiting for an event.
#[derive(Debug, Clone, Copy)]
pub(super) struct Method {
    pub(super) name: &'static str,
    pub(super) args_max: usize,
    pub(super) weight: Weight,
    pub(super) run: fn(&mut Args<'_>, &Eth) -> Reply,
}

impl Method {
    /// A method that needs memory only.
    pub(super) const fn free(
        name: &'static str,
        args_max: usize,
        run: fn(&mut Args<'_>, &Eth) -> Reply,
    ) -> Self {
        Self {
            name,
            args_max,
            weight: Weight::Free,
            run,
        }
    }

    /// A method that reads a little.
    pub(super) const fn read(
        name: &'static str,
        args_max: usize,
        run: fn(&mut Args<'_>, &Eth) -> Reply,
    ) -> Self {
        Self {
            weight: Weight::Read,
            ..Self::free(name, args_max, run)
        }
    }

    /// A method that runs the EVM, or reads much.
    pub(super) const fn call(
        name: &'static str,
        args_max: usize,
        run: fn(&mut Args<'_>, &Eth) -> Reply,
    ) -> Self {
        Self {
            weight: Weight::Call,
            ..Self::free(name, args_max, run)
        }
    }
}

/// A number as JSON-RPC writes it.
pub(super) fn quantity(number: u64) -> Reply {
    shown(U64::from(number))
}

/// Anything as JSON.
pub(super) fn shown(value: impl Serialize) -> Reply {
    serde_json::to_value(value).map_err(|error| errors::internal(&error))
}

/// A method whose answer may be large.
#[derive(Debug, Clone, Copy)]
pub(super) struct LargeMethod {
    pub(super) name: &'static str,
    pub(super) args_max: usize,
    pub(super) weight: Weight,
    pub(super) run: fn(&mut Args<'_>, &Eth) -> LargeReply,
}

impl LargeMethod {
    /// A method that reads.
    pub(super) const fn read(
        name: &'static str,
        args_max: usize,
        run: fn(&mut Args<'_>, &Eth) -> LargeReply,
    ) -> Self {
        Self {
            name,
            args_max,
            weight: Weight::Read,
            run,
        }
    }

    /// A method that runs the EVM and records it.
    pub(super) const fn trace(
        name: &'static str,
        args_max: usize,
        run: fn(&mut Args<'_>, &Eth) -> LargeReply,
    ) -> Self {
        Self {
            weight: Weight::Trace,
            ..Self::read(name, args_max, run)
        }
    }
}
