//! Traces as Parity shows them: frames in one list, and what changed.
//!
//! # Source
//! The `trace` namespace of OpenEthereum, as Erigon and reth answer it.

use std::collections::BTreeMap;

use alloy_primitives::{Address, B256, Bytes, U64, U256};
use ol_node::{Frame, FrameKind, TouchedAccount, Trace};
use serde::ser::SerializeSeq;
use serde::{Serialize, Serializer};

/// Where a transaction is.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::eth) struct Place {
    pub(in crate::eth) block_hash: B256,
    pub(in crate::eth) block_number: u64,
    pub(in crate::eth) transaction_hash: B256,
    pub(in crate::eth) transaction_position: u64,
}

/// How frames are shown.
#[derive(Debug, Clone, Copy)]
pub(in crate::eth) struct FlatStyle {
    /// Whether the first frame shows the gas of the whole transaction (geth),
    /// or what its code had and used (Parity).
    pub(in crate::eth) whole_transaction: bool,
    /// Whether faults are in Parity's words, or in geth's.
    pub(in crate::eth) parity_words: bool,
    /// Whether calls of precompiles are shown that send nothing.
    pub(in crate::eth) with_precompiles: bool,
}

/// As Parity's own methods show frames.
pub(in crate::eth) const PARITY: FlatStyle = FlatStyle {
    whole_transaction: false,
    parity_words: true,
    with_precompiles: false,
};

/// The frames of a transaction in one list.
#[derive(Debug)]
pub(in crate::eth) struct FlatFrames<'a> {
    pub(in crate::eth) trace: &'a Trace,
    pub(in crate::eth) place: Option<&'a Place>,
    pub(in crate::eth) style: FlatStyle,
}

impl Serialize for FlatFrames<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut sequence = serializer.serialize_seq(None)?;
        self.visit(|frame| sequence.serialize_element(&frame))?;
        sequence.end()
    }
}

impl<'a> FlatFrames<'a> {
    /// Shows every frame, in order, until one is refused.
    ///
    /// # Errors
    /// That of `show`.
    pub(in crate::eth) fn visit<E>(
        &self,
        mut show: impl FnMut(FlatFrame<'a>) -> Result<(), E>,
    ) -> Result<(), E> {
        let frames = &self.trace.frames;
        let mut n_shown_below = vec![0_usize; frames.len()];
        for frame in frames.iter().filter(|frame| self.is_shown(frame)) {
            if let Some(parent) = frame.parent {
                n_shown_below[parent] += 1;
            }
        }
        // The frames from the first to the last shown, and how many below each
        // were shown already.
        let mut path = Vec::<(usize, usize)>::new();
        for (position, frame) in frames.iter().enumerate() {
            if !self.is_shown(frame) {
                continue;
            }
            while path
                .last()
                .is_some_and(|&(last, _)| Some(last) != frame.parent)
            {
                path.pop();
            }
            if let Some((_, n_before)) = path.last_mut() {
                *n_before += 1;
            }
            let address = path.iter().map(|&(_, n_before)| n_before - 1).collect();
            path.push((position, 0));
            show(self.flat(frame, n_shown_below[position], address))?;
        }
        Ok(())
    }

    fn is_shown(&self, frame: &Frame) -> bool {
        let is_quiet = frame.is_precompile && frame.parent.is_some() && frame.value_wei.is_zero();
        self.style.with_precompiles || !is_quiet
    }

    fn flat(&self, frame: &'a Frame, subtraces: usize, trace_address: Vec<usize>) -> FlatFrame<'a> {
        let (gas_limit, gas_used) = match frame.parent {
            None if self.style.whole_transaction => (self.trace.gas_limit, self.trace.gas_used),
            _ => (frame.gas_limit, frame.gas_used),
        };
        let has_result = frame.kind != FrameKind::SelfDestruct
            && frame
                .fault
                .is_none_or(|fault| fault == ol_node::Fault::Reverted);
        FlatFrame {
            action: action(frame, gas_limit),
            error: frame.fault.map(|fault| match self.style.parity_words {
                true => fault.in_parity_words(),
                false => fault.to_string(),
            }),
            result: has_result.then(|| outcome(frame, gas_used)),
            subtraces,
            trace_address,
            kind: match frame.kind {
                FrameKind::SelfDestruct => "suicide",
                kind if kind.is_create() => "create",
                _ => "call",
            },
            place: self.place.copied(),
        }
    }
}

/// One frame.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::eth) struct FlatFrame<'a> {
    pub(in crate::eth) action: Action<'a>,
    #[serde(flatten)]
    place: Option<Place>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    result: Option<Outcome<'a>>,
    subtraces: usize,
    trace_address: Vec<usize>,
    #[serde(rename = "type")]
    kind: &'static str,
}

impl FlatFrame<'_> {
    /// Whether these positions lead to it.
    pub(super) fn is_at(&self, path: &[usize]) -> bool {
        self.trace_address == path
    }

    /// The contract that it made.
    pub(super) fn created(&self) -> Option<Address> {
        match self.result {
            Some(Outcome::Create { address, .. }) => address,
            _ => None,
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(untagged, rename_all_fields = "camelCase")]
pub(in crate::eth) enum Action<'a> {
    Call {
        from: Address,
        call_type: &'static str,
        gas: U64,
        input: &'a Bytes,
        to: Option<Address>,
        value: U256,
    },
    Create {
        from: Address,
        gas: U64,
        init: &'a Bytes,
        value: U256,
        creation_method: &'static str,
    },
    SelfDestruct {
        address: Address,
        balance: U256,
        refund_address: Option<Address>,
    },
}

#[derive(Debug, Serialize)]
#[serde(untagged, rename_all_fields = "camelCase")]
enum Outcome<'a> {
    Call {
        gas_used: U64,
        output: &'a Bytes,
    },
    Create {
        #[serde(skip_serializing_if = "Option::is_none")]
        address: Option<Address>,
        code: &'a Bytes,
        gas_used: U64,
    },
}

fn action(frame: &Frame, gas_limit: u64) -> Action<'_> {
    let gas = U64::from(gas_limit);
    match frame.kind {
        FrameKind::SelfDestruct => Action::SelfDestruct {
            address: frame.from,
            balance: frame.value_wei,
            refund_address: frame.to,
        },
        kind if kind.is_create() => Action::Create {
            from: frame.from,
            gas,
            init: &frame.input,
            value: frame.value_wei,
            creation_method: match kind {
                FrameKind::Create2 => "create2",
                _ => "create",
            },
        },
        kind => Action::Call {
            from: frame.from,
            call_type: match kind {
                FrameKind::StaticCall => "staticcall",
                FrameKind::DelegateCall => "delegatecall",
                FrameKind::CallCode => "callcode",
                _ => "call",
            },
            gas,
            input: &frame.input,
            to: frame.to,
            // A static call sends nothing.
            value: frame.value_wei,
        },
    }
}

fn outcome(frame: &Frame, gas_used: u64) -> Outcome<'_> {
    let gas_used = U64::from(gas_used);
    match frame.kind.is_create() {
        true => Outcome::Create {
            address: frame.to,
            code: &frame.output,
            gas_used,
        },
        false => Outcome::Call {
            gas_used,
            output: &frame.output,
        },
    }
}

/// Accounts that are different afterwards.
#[derive(Debug)]
pub(in crate::eth) struct StateDiff<'a>(pub(in crate::eth) &'a Trace);

impl Serialize for StateDiff<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let touched = self.0.touched.iter();
        let changed = touched.filter(|(_, account)| account.is_changed());
        serializer.collect_map(changed.map(|(address, account)| (address, diff(account))))
    }
}

#[derive(Debug, Serialize)]
struct AccountDiff<'a> {
    balance: Delta<U256>,
    code: Delta<&'a Bytes>,
    nonce: Delta<U64>,
    storage: BTreeMap<B256, Delta<B256>>,
}

#[derive(Debug, Serialize)]
enum Delta<T> {
    #[serde(rename = "=")]
    Same,
    #[serde(rename = "+")]
    New(T),
    #[serde(rename = "-")]
    Gone(T),
    #[serde(rename = "*")]
    Changed { from: T, to: T },
}

impl<T: PartialEq> Delta<T> {
    /// What became of a value of an account that may be new or gone.
    fn of(account: &TouchedAccount, from: T, to: T) -> Self {
        match (account.before, account.after) {
            (None, _) => Self::New(to),
            (Some(_), None) => Self::Gone(from),
            _ if from == to => Self::Same,
            _ => Self::Changed { from, to },
        }
    }
}

fn diff(account: &TouchedAccount) -> AccountDiff<'_> {
    let before = account.before.unwrap_or_default();
    let after = account.after.unwrap_or_default();
    let slots = account.storage.iter();
    let changed = slots.filter(|(_, (before, after))| before != after);
    AccountDiff {
        balance: Delta::of(account, before.balance_wei, after.balance_wei),
        code: Delta::of(account, &account.code_before, &account.code_after),
        nonce: Delta::of(account, U64::from(before.nonce), U64::from(after.nonce)),
        storage: changed
            .map(|(&slot, &(before, after))| {
                (slot.into(), Delta::of(account, before.into(), after.into()))
            })
            .collect(),
    }
}
