//! Parity's `trace` methods: what Blockscout and other explorers ask for.

mod shapes;

use std::collections::BTreeSet;

use alloy_eips::{BlockId, BlockNumberOrTag};
use alloy_primitives::{Address, B256, Bytes, U64};
use alloy_rpc_types_eth::TransactionRequest;
use jsonrpsee::types::ErrorObjectOwned;
use ol_node::{BlockRef, FrameOptions, Trace, TraceLimits, TraceParts, TransactionInBlock};
use serde::ser::SerializeSeq;
use serde::{Deserialize, Serialize, Serializer};

use super::args::Args;
use super::bounded::LargeReply;
use super::calls::call_request;
use super::method::LargeMethod;
use super::shapes::block_ref;
use super::state::{block_of, optional_block};
use super::{Eth, errors};
use shapes::{Action, FlatFrame, PARITY, StateDiff};

pub(super) use shapes::{FlatFrames, FlatStyle, Place};

/// Most blocks that one `trace_filter` replays.
pub(super) const FILTER_BLOCKS_MAX: u64 = 100;

pub(super) const METHODS: &[LargeMethod] = &[
    LargeMethod::trace("trace_block", 1, trace_block),
    LargeMethod::trace("trace_call", 3, trace_call),
    LargeMethod::trace("trace_filter", 1, trace_filter),
    LargeMethod::trace("trace_get", 2, trace_get),
    LargeMethod::trace("trace_replayBlockTransactions", 2, replay_block),
    LargeMethod::trace("trace_replayTransaction", 2, replay_transaction),
    LargeMethod::trace("trace_transaction", 1, trace_transaction),
];

const FRAMES: TraceParts = TraceParts {
    frames: Some(FrameOptions {
        only_top: false,
        with_logs: false,
    }),
    steps: None,
    selectors: false,
    touched: false,
    transfers: false,
};

impl Place {
    pub(super) fn of(found: &TransactionInBlock) -> Self {
        Self {
            block_hash: found.block_hash,
            block_number: found.header.number,
            transaction_hash: found.transaction.tx_hash(),
            transaction_position: found.position as u64,
        }
    }
}

fn limits(eth: &Eth) -> TraceLimits {
    eth.node.trace_limits(&eth.limits.trace)
}

fn trace_block(args: &mut Args<'_>, eth: &Eth) -> LargeReply {
    let at = block_of(args.required::<BlockId>()?);
    if at == BlockRef::Earliest || at == BlockRef::Number(0) {
        // Block 0 has no transactions, so no traces.
        return eth.large(&[(); 0]);
    }
    let found = eth
        .node
        .trace_block(at, &FRAMES, &limits(eth))
        .map_err(errors::query)?;
    let traces = found.map(|found| LocatedTraces::of(found.block, found.traces));
    eth.large(&traces)
}

fn trace_transaction(args: &mut Args<'_>, eth: &Eth) -> LargeReply {
    let hash: B256 = args.required()?;
    let found = eth
        .node
        .trace_transaction(hash, &FRAMES, &limits(eth))
        .map_err(errors::query)?;
    eth.large(&found.map(|found| LocatedTraces(vec![(Place::of(&found.place), found.trace)])))
}

/// One frame of a transaction, by the positions that lead to it.
fn trace_get(args: &mut Args<'_>, eth: &Eth) -> LargeReply {
    let hash: B256 = args.required()?;
    let path: Vec<U64> = args.required()?;
    let found = eth
        .node
        .trace_transaction(hash, &FRAMES, &limits(eth))
        .map_err(errors::query)?;
    let Some(found) = found else {
        return eth.large(&());
    };
    let wanted: Vec<usize> = path.iter().map(|position| position.to()).collect();
    let place = Place::of(&found.place);
    let mut answer = None;
    let frames = FlatFrames {
        trace: &found.trace,
        place: Some(&place),
        style: PARITY,
    };
    let _ = frames.visit(|frame| {
        if frame.is_at(&wanted) {
            answer = Some(frame);
            return Err(());
        }
        Ok(())
    });
    eth.large(&answer)
}

fn trace_call(args: &mut Args<'_>, eth: &Eth) -> LargeReply {
    let request = call_request(args.required::<TransactionRequest>()?)?;
    let kinds = Kinds::of(&args.required::<BTreeSet<String>>()?)?;
    let at = optional_block(args, &eth.node)?;
    let trace = eth
        .node
        .trace_call(&request, at, &kinds.parts(), &limits(eth))
        .map_err(errors::query)?;
    eth.large(&kinds.show(&trace, None))
}

fn replay_transaction(args: &mut Args<'_>, eth: &Eth) -> LargeReply {
    let hash: B256 = args.required()?;
    let kinds = Kinds::of(&args.required::<BTreeSet<String>>()?)?;
    let found = eth
        .node
        .trace_transaction(hash, &kinds.parts(), &limits(eth))
        .map_err(errors::query)?
        .ok_or_else(|| errors::refused("transaction not found"))?;
    eth.large(&kinds.show(&found.trace, None))
}

fn replay_block(args: &mut Args<'_>, eth: &Eth) -> LargeReply {
    let at = block_of(args.required::<BlockId>()?);
    let kinds = Kinds::of(&args.required::<BTreeSet<String>>()?)?;
    let found = eth
        .node
        .trace_block(at, &kinds.parts(), &limits(eth))
        .map_err(errors::query)?;
    let Some(found) = found else {
        return eth.large(&());
    };
    let transactions = found.block.transactions.iter();
    let replayed: Vec<_> = transactions
        .zip(&found.traces)
        .map(|(transaction, trace)| kinds.show(trace, Some(transaction.tx_hash())))
        .collect();
    eth.large(&replayed)
}

/// Which kinds of traces are asked for.
#[derive(Debug, Clone, Copy)]
struct Kinds {
    trace: bool,
    state_diff: bool,
}

impl Kinds {
    fn of(names: &BTreeSet<String>) -> Result<Self, ErrorObjectOwned> {
        let mut kinds = Self {
            trace: false,
            state_diff: false,
        };
        for name in names {
            match name.as_str() {
                "trace" => kinds.trace = true,
                "stateDiff" => kinds.state_diff = true,
                "vmTrace" => {
                    return Err(errors::invalid_params(
                        "vmTrace is not supported: debug_traceTransaction shows instructions",
                    ));
                }
                _ => {
                    return Err(errors::invalid_params(
                        "unknown trace type: there are trace and stateDiff",
                    ));
                }
            }
        }
        Ok(kinds)
    }

    fn parts(self) -> TraceParts {
        TraceParts {
            frames: FRAMES.frames.filter(|_| self.trace),
            touched: self.state_diff,
            ..TraceParts::default()
        }
    }

    fn show(self, trace: &Trace, transaction_hash: Option<B256>) -> Replayed<'_> {
        Replayed {
            output: &trace.output,
            state_diff: self.state_diff.then_some(StateDiff(trace)),
            trace: FlatFrames {
                trace,
                place: None,
                style: PARITY,
            },
            transaction_hash,
            vm_trace: None,
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Replayed<'a> {
    output: &'a Bytes,
    state_diff: Option<StateDiff<'a>>,
    trace: FlatFrames<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    transaction_hash: Option<B256>,
    vm_trace: Option<()>,
}

/// Traces of transactions, all their frames in one list.
struct LocatedTraces(Vec<(Place, Trace)>);

impl LocatedTraces {
    fn of(block: ol_node::Block, traces: Vec<Trace>) -> Self {
        let transactions = block.transactions.iter().enumerate();
        let located = transactions
            .zip(traces)
            .map(|((position, transaction), trace)| {
                let place = Place {
                    block_hash: block.hash,
                    block_number: block.header.number,
                    transaction_hash: transaction.tx_hash(),
                    transaction_position: position as u64,
                };
                (place, trace)
            });
        Self(located.collect())
    }

    fn visit<'a, E>(
        &'a self,
        mut show: impl FnMut(FlatFrame<'a>) -> Result<(), E>,
    ) -> Result<(), E> {
        for (place, trace) in &self.0 {
            let frames = FlatFrames {
                trace,
                place: Some(place),
                style: PARITY,
            };
            frames.visit(&mut show)?;
        }
        Ok(())
    }
}

impl Serialize for LocatedTraces {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut sequence = serializer.serialize_seq(None)?;
        self.visit(|frame| sequence.serialize_element(&frame))?;
        sequence.end()
    }
}

/// Which frames `trace_filter` looks for.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct Filter {
    from_block: Option<BlockNumberOrTag>,
    to_block: Option<BlockNumberOrTag>,
    from_address: BTreeSet<Address>,
    to_address: BTreeSet<Address>,
    mode: Mode,
    after: u64,
    count: Option<u64>,
}

/// How sender and receiver go together, where both are asked for.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    #[default]
    Union,
    Intersection,
}

impl Filter {
    fn matches(&self, frame: &FlatFrame<'_>) -> bool {
        let (from, to) = frame.ends();
        let is_from = self.from_address.contains(&from);
        let is_to = to.is_some_and(|to| self.to_address.contains(&to));
        match (self.from_address.is_empty(), self.to_address.is_empty()) {
            (true, true) => true,
            (false, true) => is_from,
            (true, false) => is_to,
            (false, false) if self.mode == Mode::Union => is_from || is_to,
            (false, false) => is_from && is_to,
        }
    }
}

/// The frames of several blocks that a filter looks for. Blocks are replayed
/// one after the other, and none is kept longer than until it is shown.
fn trace_filter(args: &mut Args<'_>, eth: &Eth) -> LargeReply {
    let filter: Filter = args.required()?;
    let number = |tag: Option<BlockNumberOrTag>| {
        let at = block_ref(tag.unwrap_or_default());
        let header = eth.node.header(at).map_err(errors::query)?;
        let (header, _) = header.ok_or_else(|| errors::refused("header not found"))?;
        Ok::<_, ErrorObjectOwned>(header.number)
    };
    let from = number(filter.from_block)?;
    let to = number(filter.to_block)?;
    if from > to {
        return Err(errors::invalid_params("invalid block range params"));
    }
    if to - from >= FILTER_BLOCKS_MAX {
        return Err(errors::limit_exceeded(format!(
            "trace_filter takes at most {FILTER_BLOCKS_MAX} blocks"
        )));
    }
    let limits = limits(eth);
    let mut answer = Vec::new();
    let mut size_bytes = 0;
    let mut n_skipped = 0;
    for block in from.max(1)..=to {
        let found = eth
            .node
            .trace_block(BlockRef::Number(block), &FRAMES, &limits)
            .map_err(errors::query)?;
        let Some(found) = found else {
            break;
        };
        let traces = LocatedTraces::of(found.block, found.traces);
        traces.visit(|frame| {
            if !filter.matches(&frame) {
                return Ok(());
            }
            if n_skipped < filter.after {
                n_skipped += 1;
                return Ok(());
            }
            if filter
                .count
                .is_some_and(|count| answer.len() as u64 >= count)
            {
                return Ok(());
            }
            let shown = super::bounded::shown(&frame, eth.response_max_size_bytes() - size_bytes)?;
            size_bytes += shown.get().len() + 1;
            answer.push(shown);
            Ok::<_, ErrorObjectOwned>(())
        })?;
        if filter
            .count
            .is_some_and(|count| answer.len() as u64 >= count)
        {
            break;
        }
    }
    eth.large(&answer)
}

impl FlatFrame<'_> {
    /// Who sent, and who received.
    fn ends(&self) -> (Address, Option<Address>) {
        match self.action {
            Action::Call { from, to, .. } => (from, to),
            Action::Create { from, .. } => (from, self.created()),
            Action::SelfDestruct {
                address,
                refund_address,
                ..
            } => (address, refund_address),
        }
    }
}
