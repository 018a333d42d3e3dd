//! geth's `debug` methods: traces, and blocks and transactions as bytes.

mod options;
mod shapes;

use alloy_consensus::transaction::SignerRecoverable;
use alloy_consensus::{Block as ConsensusBlock, Header};
use alloy_eips::eip2718::Encodable2718;
use alloy_eips::{BlockId, BlockNumberOrTag};
use alloy_primitives::{B256, Bytes};
use alloy_rlp::{Decodable, Encodable};
use alloy_rpc_types_eth::TransactionRequest;
use jsonrpsee::types::ErrorObjectOwned;
use ol_node::{BlockContext, BlockRef, Recovered, Trace, TraceLimits, Transaction};
use serde::ser::SerializeSeq;
use serde::{Serialize, Serializer};

use super::args::Args;
use super::bounded::LargeReply;
use super::calls::call_request;
use super::method::LargeMethod;
use super::shapes::block_ref;
use super::state::optional_block;
use super::trace::Place;
use super::{Eth, errors, overrides};
use options::{TraceOptions, Tracer};
use shapes::Shown;

pub(super) const METHODS: &[LargeMethod] = &[
    LargeMethod::read("debug_getRawBlock", 1, raw_block),
    LargeMethod::read("debug_getRawHeader", 1, raw_header),
    LargeMethod::read("debug_getRawReceipts", 1, raw_receipts),
    LargeMethod::read("debug_getRawTransaction", 1, raw_transaction),
    LargeMethod::trace("debug_traceBlock", 2, trace_given_block),
    LargeMethod::trace("debug_traceBlockByHash", 2, |args, eth| {
        let block = BlockRef::Hash(args.required()?);
        trace_block(args, eth, block)
    }),
    LargeMethod::trace("debug_traceBlockByNumber", 2, |args, eth| {
        let block = block_ref(args.required::<BlockNumberOrTag>()?);
        trace_block(args, eth, block)
    }),
    LargeMethod::trace("debug_traceCall", 3, trace_call),
    LargeMethod::trace("debug_traceTransaction", 2, trace_transaction),
];

/// What to trace, and at what cost at most.
struct Wanted {
    tracer: Tracer,
    limits: TraceLimits,
}

fn wanted(options: &TraceOptions, eth: &Eth) -> Result<Wanted, ErrorObjectOwned> {
    let mut config = eth.limits.trace;
    config.time_max_s = options.time_max_s(config.time_max_s)?;
    Ok(Wanted {
        tracer: options.tracer()?,
        limits: eth.node.trace_limits(&config),
    })
}

fn trace_transaction(args: &mut Args<'_>, eth: &Eth) -> LargeReply {
    let hash: B256 = args.required()?;
    let options = args.optional::<TraceOptions>()?.unwrap_or_default();
    let Wanted { tracer, limits } = wanted(&options, eth)?;
    let found = eth
        .node
        .trace_transaction(hash, &tracer.parts(), &limits)
        .map_err(errors::query)?
        .ok_or_else(|| errors::refused("transaction not found"))?;
    eth.large(&Shown {
        tracer: &tracer,
        trace: &found.trace,
        place: Some(&Place::of(&found.place)),
    })
}

fn trace_call(args: &mut Args<'_>, eth: &Eth) -> LargeReply {
    let mut request = call_request(args.required::<TransactionRequest>()?)?;
    let at = optional_block(args, &eth.node)?;
    let mut options = args.optional::<TraceOptions>()?.unwrap_or_default();
    if options.tx_index.is_some() {
        return Err(errors::invalid_params("txIndex is not supported"));
    }
    request.overrides = overrides::overrides(
        options.state_overrides.take(),
        options.block_overrides.take(),
    )?;
    let Wanted { tracer, limits } = wanted(&options, eth)?;
    let trace = eth
        .node
        .trace_call(&request, at, &tracer.parts(), &limits)
        .map_err(errors::query)?;
    eth.large(&Shown {
        tracer: &tracer,
        trace: &trace,
        place: None,
    })
}

fn trace_block(args: &mut Args<'_>, eth: &Eth, block: BlockRef) -> LargeReply {
    let options = args.optional::<TraceOptions>()?.unwrap_or_default();
    let Wanted { tracer, limits } = wanted(&options, eth)?;
    let found = eth
        .node
        .trace_block(block, &tracer.parts(), &limits)
        .map_err(errors::query)?
        .ok_or_else(|| errors::refused("block not found"))?;
    eth.large(&BlockTraces {
        tracer: &tracer,
        hash: found.block.hash,
        number: found.block.header.number,
        transactions: &found.block.transactions,
        traces: &found.traces,
    })
}

/// Traces a block that comes with the request, on the state of its parent.
fn trace_given_block(args: &mut Args<'_>, eth: &Eth) -> LargeReply {
    let rlp: Bytes = args.required()?;
    let options = args.optional::<TraceOptions>()?.unwrap_or_default();
    let Wanted { tracer, limits } = wanted(&options, eth)?;
    let mut rest = rlp.as_ref();
    let block = ConsensusBlock::<Transaction, Header>::decode(&mut rest)
        .map_err(|error| errors::invalid_params(format!("could not decode block: {error}")))?;
    if !rest.is_empty() {
        return Err(errors::invalid_params(
            "could not decode block: bytes behind it",
        ));
    }
    let transactions = block
        .body
        .transactions
        .into_iter()
        .map(|transaction| {
            let sender = transaction
                .recover_signer()
                .map_err(|_| errors::invalid_params("a transaction is not signed"))?;
            Ok(Recovered::new_unchecked(transaction, sender))
        })
        .collect::<Result<Vec<_>, ErrorObjectOwned>>()?;
    let context = BlockContext::of(&block.header, eth.node.chain_id(), eth.node.rules());
    let traces = eth
        .node
        .trace_given_block(&context, &transactions, &tracer.parts(), &limits)
        .map_err(errors::query)?;
    eth.large(&BlockTraces {
        tracer: &tracer,
        hash: block.header.hash_slow(),
        number: block.header.number,
        transactions: &transactions,
        traces: &traces,
    })
}

/// The traces of a block, each under the hash of its transaction.
struct BlockTraces<'a> {
    tracer: &'a Tracer,
    hash: B256,
    number: u64,
    transactions: &'a [Recovered<Transaction>],
    traces: &'a [Trace],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TransactionTrace<'a> {
    tx_hash: B256,
    result: Shown<'a>,
}

impl Serialize for BlockTraces<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut sequence = serializer.serialize_seq(Some(self.traces.len()))?;
        let transactions = self.transactions.iter().zip(self.traces);
        for (position, (transaction, trace)) in transactions.enumerate() {
            let place = Place {
                block_hash: self.hash,
                block_number: self.number,
                transaction_hash: transaction.tx_hash(),
                transaction_position: position as u64,
            };
            let result = Shown {
                tracer: self.tracer,
                trace,
                place: Some(&place),
            };
            sequence.serialize_element(&TransactionTrace {
                tx_hash: place.transaction_hash,
                result,
            })?;
        }
        sequence.end()
    }
}

fn raw_header(args: &mut Args<'_>, eth: &Eth) -> LargeReply {
    let at = super::state::block_of(args.required::<BlockId>()?);
    let found = eth.node.header(at).map_err(errors::query)?;
    let (header, _) = found.ok_or_else(|| errors::refused("header not found"))?;
    let mut rlp = Vec::with_capacity(header.length());
    header.encode(&mut rlp);
    eth.large(&Bytes::from(rlp))
}

fn raw_block(args: &mut Args<'_>, eth: &Eth) -> LargeReply {
    let at = super::state::block_of(args.required::<BlockId>()?);
    let found = eth.node.block(at).map_err(errors::query)?;
    let block = found.ok_or_else(|| errors::refused("block not found"))?;
    eth.large(&Bytes::from(super::shapes::block_rlp(block)))
}

fn raw_receipts(args: &mut Args<'_>, eth: &Eth) -> LargeReply {
    let at = super::state::block_of(args.required::<BlockId>()?);
    let found = eth.node.block_receipts(at).map_err(errors::query)?;
    let receipts = found.ok_or_else(|| errors::refused("block not found"))?;
    let raw: Vec<Bytes> = receipts
        .iter()
        .map(|found| found.receipt.encoded_2718().into())
        .collect();
    eth.large(&raw)
}

fn raw_transaction(args: &mut Args<'_>, eth: &Eth) -> LargeReply {
    let hash: B256 = args.required()?;
    let found = eth.node.transaction(hash).map_err(errors::query)?;
    let raw = found.map(|found| Bytes::from(found.transaction.inner().encoded_2718()));
    eth.large(&raw.unwrap_or_default())
}
