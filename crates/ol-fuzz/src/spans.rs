//! Indexes of spans, what spans are paid by, and evidence of both.

use std::fs;

use alloy_primitives::{Address, B256, keccak256};
use ol_poa::spans::{
    Holder, Holders, Span, SpanRule, UNITS_PER_MILLIBIT, Unigrams, span_units, worths,
};
use ol_poa::{Earned, Evidence, split_pots};
use ol_server::evidence::Shown;
use ol_spans::{SpansError, Store};

use crate::model::parts;

/// Largest input that is looked at: a folder is written for each.
const FILES_MAX_SIZE_BYTES: usize = 1 << 16;

/// Bytes of a corpus file before its records, and of each record.
const CORPUS_HEADER_SIZE_BYTES: usize = 88;
const RECORD_SIZE_BYTES: usize = 56;

/// Files of an index: a corpus, as long as the first four bytes say, and one
/// shard, which the corpus is made to name.
///
/// # Panics
/// If what verifies cannot be asked, or a span is found that is not as it must be.
pub fn spans(bytes: &[u8]) {
    let Some([corpus, shard]) = parts(bytes).filter(|_| bytes.len() <= FILES_MAX_SIZE_BYTES) else {
        return;
    };
    // Files are named by their content, so that all of the decoders is reached.
    let size = |at: usize| {
        let field = corpus.get(at..at + 4)?;
        usize::try_from(u32::from_le_bytes(field.try_into().ok()?)).ok()
    };
    let (Some(n_tokens), Some(n_records), Some(n_versions)) = (size(12), size(16), size(20)) else {
        return;
    };
    let head = n_records
        .checked_mul(RECORD_SIZE_BYTES)
        .and_then(|n| {
            n.checked_add(n_tokens.checked_mul(2)?)?
                .checked_add(n_versions.checked_mul(4)?)?
                .checked_add(CORPUS_HEADER_SIZE_BYTES)
        })
        .and_then(|size| corpus.get(..size))
        .unwrap_or(corpus);
    let shard_id = keccak256(shard);
    let whole = [head, &1_u32.to_le_bytes(), shard_id.as_slice()].concat();
    let id = keccak256(head);
    let dir = tempfile::tempdir().expect("a temporary folder");
    let write = |id: B256, extension: &str, bytes: &[u8]| {
        let name = format!("{}.{extension}", alloy_primitives::hex::encode(id));
        fs::write(dir.path().join(name), bytes).expect("a temporary file");
    };
    write(id, "corpus", &whole);
    write(shard_id, "shard", shard);
    let store = Store::open(dir.path()).expect("an existing folder");
    let verified = store.verify(id);
    let Ok(index) = store.load(id) else {
        assert!(verified.is_err(), "what verifies cannot be opened");
        return;
    };
    let found = store.find(index.manifest(), tokenizer_of(head));
    assert_eq!(
        found.expect("a folder with one corpus"),
        [id],
        "it is not found"
    );
    let answer: Vec<u32> = shard
        .iter()
        .take(64)
        .map(|&byte| u32::from(byte) % 16)
        .collect();
    let rule = SpanRule {
        length_min: 1,
        floor_millibits: 0,
    };
    let spans = index.spans(&answer, rule.length_min);
    for found in spans.expect("an answer of 64 tokens is no error") {
        let end = (found.span.start + found.span.len) as usize;
        assert!(end <= answer.len(), "a span beyond the answer");
    }
    match index.units(&answer, &rule) {
        Ok(_) | Err(SpansError::Spans(_)) => {}
        // Holders in a file that lies about itself may be in any order.
        Err(error) => panic!("units: {error}"),
    }
}

fn tokenizer_of(head: &[u8]) -> B256 {
    head.get(56..88).map(B256::from_slice).unwrap_or_default()
}

/// What spans are paid by, whatever the spans: a table, an answer and spans of
/// 8 bytes and a holder each, in this order.
///
/// # Panics
/// If more is paid than the answer holds, or not all of what a span is worth.
pub fn span_units_of(bytes: &[u8]) {
    let Some([table, rest]) = parts(bytes) else {
        return;
    };
    let Ok(table) = Unigrams::from_bytes(table) else {
        return;
    };
    let n_answer = rest.len() / 2;
    let (answer, spans) = rest.split_at(n_answer);
    let answer: Vec<u32> = answer.iter().copied().map(u32::from).collect();
    let read = |entry: &[u8; 8]| {
        let [a, b, c, d, n, cluster, who, floor] = *entry;
        let holder = |i: u8| Holder {
            cluster: u32::from(cluster.wrapping_add(i)),
            contributor: Address::repeat_byte(who ^ i),
        };
        Span {
            start: u16::from_le_bytes([a, b]).into(),
            len: u16::from_le_bytes([c, d]).into(),
            since: u32::from(cluster % 3),
            holders: match floor {
                0 => Holders::TooMany,
                _ => Holders::Listed((0..n % 8).map(holder).collect()),
            },
        }
    };
    let spans: Vec<Span> = spans.as_chunks().0.iter().map(read).collect();
    let rule = SpanRule {
        length_min: 1,
        floor_millibits: bytes.last().map_or(0, |&byte| u64::from(byte) * 100),
    };
    let Ok(earned) = span_units(&answer, &spans, &table, &rule) else {
        return;
    };
    let (units, total) = (&earned.weights, earned.total);
    assert!(units.is_sorted_by(|a, b| a.0 < b.0), "contributors ascend");
    assert!(
        units.iter().all(|&(_, units)| units > 0),
        "a weight of nothing"
    );
    let worths = worths(&answer, &spans, &table, &rule).expect("units had no error");
    let worth: u64 = worths.iter().map(|&(_, worth)| worth).sum();
    let held: u64 = answer
        .iter()
        .filter_map(|&token| table.get(token))
        .map(u64::from)
        .sum();
    let held = held * UNITS_PER_MILLIBIT;
    assert!(worth <= held, "more than the answer holds");
    let whole = if units.is_empty() { 0 } else { held };
    assert_eq!(total, whole, "the total is not the answer's");
    let paid: u64 = units.iter().map(|&(_, units)| units).sum();
    // The zero address is nobody: what it would earn is left out.
    let is_nobody = |span: &Span| match &span.holders {
        Holders::Listed(holders) => holders.iter().any(|h| h.contributor.is_zero()),
        Holders::TooMany => false,
    };
    if !spans.iter().any(is_nobody) {
        assert_eq!(paid, worth, "not all of it is paid");
    }
}

/// Evidence of a receipt, and the object that shows it.
///
/// # Panics
/// If lists that are read are written otherwise.
pub fn evidence(bytes: &[u8]) {
    if let Ok(evidence) = Evidence::from_bytes(bytes) {
        assert_eq!(evidence.to_bytes(), bytes, "another encoding");
        for part in [0, 1, 1_000_003, u128::MAX] {
            let pots = split_pots(part, [3_334, 3_333, 3_333], &evidence).expect("pots for all");
            let sum = pots.into_iter().try_fold(0, u128::checked_add);
            assert_eq!(sum, Some(part), "pots do not add up");
        }
    }
    if let Ok(shown) = Shown::from_bytes(bytes) {
        let found = shown.spans.iter().flat_map(|spans| &spans.found);
        for span in found {
            // A place without tokens is none, whatever it says.
            let _ = shown.tokens(span);
        }
        let id = keccak256(bytes);
        let lists =
            Evidence::new(Earned::default(), Earned::default(), id).expect("empty lists are lists");
        let _ = ol_server::evidence::check(&lists, bytes, shown.n_tokens, None);
    }
}
