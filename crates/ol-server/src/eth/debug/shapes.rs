//! Traces as geth shows them.
//!
//! # Source
//! The tracers of go-ethereum: field names, what is left out when it is empty,
//! decimal numbers in struct logs, hexadecimal ones elsewhere.

use std::collections::BTreeMap;

use alloy_primitives::{Address, B256, Bytes, Selector, U64, U256, hex};
use alloy_sol_types::{GenericContractError, SolInterface};
use ol_node::{CallStatus, Fault, Frame, FrameKind, FrameLog, Step, TouchedAccount, Trace};
use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Serialize, Serializer};

use super::options::{CallOptions, FlatOptions, PrestateOptions, Tracer};
use crate::eth::trace::{FlatFrames, FlatStyle, Place};

/// A trace as a tracer shows it.
#[derive(Debug)]
pub(super) struct Shown<'a> {
    pub(super) tracer: &'a Tracer,
    pub(super) trace: &'a Trace,
    pub(super) place: Option<&'a Place>,
}

impl Serialize for Shown<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { trace, place, .. } = *self;
        match self.tracer {
            Tracer::StructLogs(_) => StructLogs(trace).serialize(serializer),
            Tracer::Calls(options) => CallTree::new(trace, *options).serialize(serializer),
            Tracer::FlatCalls(options) => flat(trace, place, *options).serialize(serializer),
            Tracer::Prestate(options) => prestate(trace, *options).serialize(serializer),
            Tracer::FourByte => FourByte(&trace.selectors).serialize(serializer),
            Tracer::Noop => serializer.serialize_map(Some(0))?.end(),
            Tracer::Mux(tracers) => serializer.collect_map(tracers.iter().map(|(name, tracer)| {
                let shown = Shown {
                    tracer,
                    trace,
                    place,
                };
                (name, shown)
            })),
        }
    }
}

// --- Struct logs ---

struct StructLogs<'a>(&'a Trace);

impl Serialize for StructLogs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let trace = self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("gas", &trace.gas_used)?;
        map.serialize_entry("failed", &(trace.status != CallStatus::Success))?;
        map.serialize_entry("returnValue", &trace.output)?;
        map.serialize_entry("structLogs", &Steps(&trace.steps))?;
        map.end()
    }
}

struct Steps<'a>(&'a [Step]);

impl Serialize for Steps<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // With each access comes all that was seen of the account's storage.
        let mut storages = BTreeMap::<Address, BTreeMap<U256, U256>>::new();
        let mut sequence = serializer.serialize_seq(Some(self.0.len()))?;
        for step in self.0 {
            let storage = step.storage.map(|(slot, value)| {
                let storage = storages.entry(step.address).or_default();
                storage.insert(slot, value);
                &*storage
            });
            sequence.serialize_element(&StructLog { step, storage })?;
        }
        sequence.end()
    }
}

struct StructLog<'a> {
    step: &'a Step,
    storage: Option<&'a BTreeMap<U256, U256>>,
}

impl Serialize for StructLog<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let step = self.step;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("pc", &step.pc)?;
        map.serialize_entry("op", &ol_node::opcode_name(step.opcode))?;
        map.serialize_entry("gas", &step.gas)?;
        map.serialize_entry("gasCost", &step.gas_cost)?;
        map.serialize_entry("depth", &step.depth)?;
        if let Some(fault) = step.fault {
            map.serialize_entry("error", &fault.to_string())?;
        }
        if let Some(stack) = &step.stack {
            map.serialize_entry("stack", stack)?;
        }
        if let Some(data) = step.return_data.as_ref().filter(|data| !data.is_empty()) {
            map.serialize_entry("returnData", data)?;
        }
        if let Some(memory) = step.memory.as_ref().filter(|memory| !memory.is_empty()) {
            map.serialize_entry("memory", &Memory(memory))?;
        }
        if let Some(storage) = self.storage {
            map.serialize_entry("storage", &Slots(storage))?;
        }
        if step.refund > 0 {
            map.serialize_entry("refund", &step.refund)?;
        }
        map.end()
    }
}

/// Memory word by word.
struct Memory<'a>(&'a [u8]);

impl Serialize for Memory<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.chunks(32).map(hex::encode_prefixed))
    }
}

/// Slots and values as whole words.
struct Slots<'a>(&'a BTreeMap<U256, U256>);

impl Serialize for Slots<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let slots = self.0.iter();
        serializer.collect_map(slots.map(|(&slot, &value)| (B256::from(slot), B256::from(value))))
    }
}

// --- Calls ---

/// The frames, each with those below it inside.
struct CallTree<'a> {
    trace: &'a Trace,
    options: CallOptions,
    /// For each frame, the position behind the last one below it.
    ends: Vec<usize>,
}

impl<'a> CallTree<'a> {
    fn new(trace: &'a Trace, options: CallOptions) -> Self {
        let frames = &trace.frames;
        let mut ends: Vec<usize> = (1..=frames.len()).collect();
        for (position, frame) in frames.iter().enumerate().rev() {
            if let Some(parent) = frame.parent {
                ends[parent] = ends[parent].max(ends[position]);
            }
        }
        Self {
            trace,
            options,
            ends,
        }
    }
}

impl Serialize for CallTree<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let root = CallFrame {
            tree: self,
            position: 0,
        };
        match self.trace.frames.is_empty() {
            true => serializer.serialize_none(),
            false => root.serialize(serializer),
        }
    }
}

struct CallFrame<'a> {
    tree: &'a CallTree<'a>,
    position: usize,
}

impl Serialize for CallFrame<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let CallTree {
            trace,
            options,
            ends,
        } = self.tree;
        let frame = &trace.frames[self.position];
        // The transaction's own frame shows the gas of the transaction.
        let (gas_limit, gas_used) = match frame.parent {
            None => (trace.gas_limit, trace.gas_used),
            Some(_) => (frame.gas_limit, frame.gas_used),
        };
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("from", &frame.from)?;
        map.serialize_entry("gas", &U64::from(gas_limit))?;
        map.serialize_entry("gasUsed", &U64::from(gas_used))?;
        if let Some(to) = frame.to {
            map.serialize_entry("to", &to)?;
        }
        map.serialize_entry("input", &frame.input)?;
        if !frame.output.is_empty() {
            map.serialize_entry("output", &frame.output)?;
        }
        if let Some(fault) = frame.fault {
            map.serialize_entry("error", &fault.to_string())?;
        }
        if let Some(reason) = revert_reason(frame) {
            map.serialize_entry("revertReason", &reason)?;
        }
        let end = ends[self.position];
        if !options.only_top_call && end > self.position + 1 {
            let calls = Children {
                tree: self.tree,
                range: (self.position + 1, end),
            };
            map.serialize_entry("calls", &calls)?;
        }
        if options.with_log && !frame.logs.is_empty() {
            let logs: Vec<_> = frame.logs.iter().map(CallLog::from).collect();
            map.serialize_entry("logs", &logs)?;
        }
        if frame.kind != FrameKind::StaticCall {
            map.serialize_entry("value", &frame.value_wei)?;
        }
        map.serialize_entry("type", frame.kind.name())?;
        map.end()
    }
}

struct Children<'a> {
    tree: &'a CallTree<'a>,
    range: (usize, usize),
}

impl Serialize for Children<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (mut position, end) = self.range;
        let mut sequence = serializer.serialize_seq(None)?;
        while position < end {
            sequence.serialize_element(&CallFrame {
                tree: self.tree,
                position,
            })?;
            position = self.tree.ends[position];
        }
        sequence.end()
    }
}

#[derive(Serialize)]
struct CallLog<'a> {
    address: Address,
    topics: &'a [B256],
    data: &'a Bytes,
    position: U64,
    index: U64,
}

impl<'a> From<&'a FrameLog> for CallLog<'a> {
    fn from(log: &'a FrameLog) -> Self {
        Self {
            address: log.address,
            topics: &log.topics,
            data: &log.data,
            position: U64::from(log.position),
            index: U64::from(log.index),
        }
    }
}

/// What a frame says that was reverted with `Error(string)` or `Panic(uint256)`.
fn revert_reason(frame: &Frame) -> Option<String> {
    if frame.fault != Some(Fault::Reverted) {
        return None;
    }
    match GenericContractError::abi_decode(&frame.output).ok()? {
        GenericContractError::Revert(revert) => Some(revert.reason),
        GenericContractError::Panic(panic) => Some(panic.as_geth_str().to_string()),
        _ => None,
    }
}

fn flat<'a>(trace: &'a Trace, place: Option<&'a Place>, options: FlatOptions) -> FlatFrames<'a> {
    let style = FlatStyle {
        whole_transaction: true,
        parity_words: options.convert_parity_errors,
        with_precompiles: options.include_precompiles,
    };
    FlatFrames {
        trace,
        place,
        style,
    }
}

// --- Selectors ---

struct FourByte<'a>(&'a BTreeMap<(Selector, usize), u64>);

impl Serialize for FourByte<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let counts = self.0.iter();
        serializer.collect_map(
            counts
                .map(|((selector, size_bytes), count)| (format!("{selector}-{size_bytes}"), count)),
        )
    }
}

// --- Accounts ---

/// An account, with what is empty left out.
#[derive(Debug, Default, Serialize)]
struct Account {
    #[serde(skip_serializing_if = "Option::is_none")]
    balance: Option<U256>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<Bytes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nonce: Option<u64>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    storage: BTreeMap<B256, B256>,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Prestate {
    Before(BTreeMap<Address, Account>),
    Diff {
        post: BTreeMap<Address, Account>,
        pre: BTreeMap<Address, Account>,
    },
}

fn prestate(trace: &Trace, options: PrestateOptions) -> Prestate {
    let mut pre = BTreeMap::new();
    let mut post = BTreeMap::new();
    for (&address, account) in &trace.touched {
        if options.diff_mode && !account.is_changed() {
            continue;
        }
        // An account without anything in it is left out, unless asked for.
        if account
            .before
            .is_some_and(|before| before != Default::default())
            || options.include_empty
        {
            pre.insert(address, before(account, options));
        }
        if options.diff_mode && account.after.is_some() {
            post.insert(address, changed(account, options));
        }
    }
    match options.diff_mode {
        false => Prestate::Before(pre),
        true => Prestate::Diff { post, pre },
    }
}

fn before(account: &TouchedAccount, options: PrestateOptions) -> Account {
    let state = account.before.unwrap_or_default();
    let slots = account.storage.iter().filter(|(_, (before, after))| {
        !options.disable_storage && (!options.diff_mode || (before != after && !before.is_zero()))
    });
    let code = Some(&account.code_before).filter(|code| !options.disable_code && !code.is_empty());
    Account {
        balance: Some(state.balance_wei),
        code: code.cloned(),
        nonce: Some(state.nonce).filter(|&nonce| nonce > 0),
        storage: slots
            .map(|(&slot, &(before, _))| (slot.into(), before.into()))
            .collect(),
    }
}

fn changed(account: &TouchedAccount, options: PrestateOptions) -> Account {
    let before = account.before.unwrap_or_default();
    let after = account.after.unwrap_or_default();
    let slots = account.storage.iter().filter(|(_, (before, after))| {
        !options.disable_storage && before != after && !after.is_zero()
    });
    let has_new_code = after.code_hash != before.code_hash;
    let code = Some(&account.code_after).filter(|_| !options.disable_code && has_new_code);
    Account {
        balance: Some(after.balance_wei).filter(|&balance| balance != before.balance_wei),
        code: code.cloned(),
        nonce: Some(after.nonce).filter(|&nonce| nonce != before.nonce),
        storage: slots
            .map(|(&slot, &(_, after))| (slot.into(), after.into()))
            .collect(),
    }
}
