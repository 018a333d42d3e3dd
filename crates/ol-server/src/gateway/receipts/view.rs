//! The shape of a receipt that is shown, and how it is filled.

use std::collections::BTreeMap;

use alloy_primitives::hex;
use ol_contracts::settlement::{Credit, PotCredits};
use ol_model::Tokenizer;
use ol_poa::{Pot, QuerySketch};
use ol_types::{Address, B256};
use serde::Serialize;

use super::super::chain::{ClaimState, Claimed, Model, Settled};
use super::super::holds::bond_of_wei;
use super::super::journal::{Owed, PendingReceipt};
use super::super::labels::Labels;
use super::super::settlement::Status;
use super::AnyIndex;
use crate::evidence::{Shown, ShownSpan};
use crate::verify::Payout;

/// Most records shown per contributor, those that count most.
const RECORDS_MAX: usize = 16;

/// A receipt with where its fee went, ready to be sent. Amounts in wei are
/// decimal strings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReceiptView {
    /// The receipt's id: keccak256 of its encoding. Absent while its query sketch
    /// is still to be computed; its request's id finds it then, and later too.
    pub id: Option<B256>,
    /// `pending` or `refused`: nothing was charged. `settled`: charged and paid out.
    /// Of the optimistic tier instead of it: `claimed`, or `challenged` while numbers
    /// of the claim are asked for; then `final`, or `slashed`, whose fee is back at
    /// the payer.
    pub status: &'static str,
    /// Chain it settles on.
    pub chain_id: u64,
    /// Contract it settles with.
    pub settlement: Address,
    /// Who pays.
    pub payer: Address,
    /// The request that was answered.
    pub request_id: B256,
    /// Name of the model.
    pub model: String,
    /// Hash of that name.
    pub model_id: B256,
    /// Version of the model in the registry.
    pub model_version: Option<u64>,
    /// Hash of the base model.
    pub base_hash: B256,
    /// Hash of the adapter.
    pub adapter_hash: B256,
    /// Hash of the training manifest.
    pub manifest_hash: B256,
    /// Root of the sketch index.
    pub sketch_root: B256,
    /// Hash of the prompt's tokens.
    pub prompt_hash: B256,
    /// Hash of the answer's tokens.
    pub response_hash: B256,
    /// Hash of the query sketch, once it is computed.
    pub query_hash: Option<B256>,
    /// The query sketch itself: its codes as bytes, in hexadecimal.
    pub query_sketch: Option<String>,
    /// Hash of the evidence, once it is gathered.
    pub evidence_hash: Option<B256>,
    /// Id of the object that shows it, if there is any.
    pub evidence_object: Option<B256>,
    /// Names of the datanets the model learned from.
    pub datanets: Vec<String>,
    /// What a contributor's net score must exceed.
    pub null_threshold: String,
    /// Tokens of the prompt.
    pub tokens_in: u32,
    /// Tokens of the answer.
    pub tokens_out: u32,
    /// The fee.
    pub fee_wei: String,
    /// When the answer was finished, Unix seconds.
    pub answered_at: u64,
    /// The four parts of the fee.
    pub split: SplitView,
    /// The contributors' part: who is paid for what, and why.
    pub pots: PotsView,
    /// What the model's treasury gets of the pot for training because nobody's data
    /// moved the answer.
    pub treasury_wei: String,
    /// The claim, of the optimistic tier.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claim: Option<ClaimView>,
    /// The settling transaction, or the one that claimed.
    pub tx_hash: Option<B256>,
    /// Its block.
    pub block: Option<u64>,
}

/// A claim of the optimistic tier: who is paid is claimed, backed by a bond, and
/// holds if nobody refutes it in time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClaimView {
    /// Until when it can be challenged, Unix seconds.
    pub deadline: u64,
    /// What the operator loses if it is refuted.
    pub bond_wei: String,
    /// Nodes of the claim that the operator is asked for now.
    pub n_open_reveals: u16,
}

/// How a receipt that is charged was charged.
pub(super) enum Settling<'a> {
    Settled(&'a Settled),
    Claimed(&'a ClaimState, &'a Claimed),
}

/// The parts of a fee.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct SplitView {
    /// The platform's.
    pub platform: String,
    /// The model owner's.
    pub model: String,
    /// The stakers'.
    pub stakers: String,
    /// The contributors' together.
    pub contributors: String,
}

/// The pots of the contributors' part. They have different units: influence is
/// not presence. A pot without evidence falls to training.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct PotsView {
    /// Whose records moved the answer. Weights are net scores above the null
    /// threshold.
    pub training: PotView,
    /// Whose words stand in the answer. Weights are units of information, 10⁻⁶
    /// milli-bits.
    pub spans: PotView,
    /// Whose passages the model had before it. Weights are what the answer's
    /// log-probability loses without them, in milli-nats.
    pub context: PotView,
}

/// One pot.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct PotView {
    /// All of it.
    pub paid_wei: String,
    /// What the weights would add up to if all of the pot were earned; what they
    /// do is paid, the rest is in the pot for training. Not of that pot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_weight: Option<String>,
    /// The contributors, the best paid first.
    pub contributors: Vec<ShareView>,
    /// How many there are.
    pub n_contributors: usize,
    /// The spans that are paid for, by position. Only of the pot for spans.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub found: Vec<SpanView>,
    /// The passages, in the order in which they were given to the model. Only of
    /// the pot for context.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub passages: Vec<PassageView>,
}

/// One contributor's share of a pot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ShareView {
    /// Who is paid: the name by which the datanet knows the contributor, or the
    /// address where no name is known.
    pub contributor: String,
    /// The address that is paid.
    pub address: Address,
    /// By what the pot is shared.
    pub weight: String,
    /// Part of all weights, in billionths, rounded down.
    pub share_ppb: u32,
    /// The payment.
    pub paid_wei: String,
    /// The contributor's records that count most, the strongest first, at most
    /// 16: by the contributor's own name for them, or by hash.
    pub records: Vec<String>,
    /// Hashes of the same records.
    pub record_hashes: Vec<B256>,
}

/// A run of the answer that stands word for word in records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SpanView {
    /// Its first token and the one past its last, counted in the answer.
    pub tokens: (u32, u32),
    /// The same in Unicode code points of the answer's text.
    pub text_range: (u32, u32),
    /// The words, where the tokenizer is at hand.
    pub text: Option<String>,
    /// Its units, before they are divided over those who hold it.
    pub weight: String,
    /// The version of the datanet in which the words first stood, from 1.
    pub since_version: u32,
    /// Where they stood then, at most 16; each of all is paid the same.
    pub holders: Vec<SourceView>,
    /// How many clusters of duplicates held it then.
    pub n_holders: usize,
}

/// A passage that the model had before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PassageView {
    /// Where it is from.
    #[serde(flatten)]
    pub source: SourceView,
    /// What the answer's log-probability loses without it, in milli-nats.
    pub weight: String,
}

/// A record and who is paid for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SourceView {
    /// The contributor's name, or the address where no name is known.
    pub contributor: String,
    /// The address that is paid.
    pub address: Address,
    /// The contributor's own name for the record, or its hash.
    pub record: String,
    /// Hash of the record.
    pub record_hash: B256,
}

/// What the receipt itself says.
pub(super) fn bare(owed: &Owed, status: Status) -> ReceiptView {
    let (receipt, recorded) = (owed.receipt(), owed.recorded());
    let query = recorded.map(|recorded| &recorded.query);
    ReceiptView {
        id: query.map(|_| receipt.id()),
        status: status.as_str(),
        chain_id: receipt.chain_id,
        settlement: receipt.settlement,
        payer: receipt.payer,
        request_id: receipt.request_id,
        model: String::new(),
        model_id: receipt.model_id,
        model_version: None,
        base_hash: receipt.base_hash,
        adapter_hash: receipt.adapter_hash,
        manifest_hash: receipt.manifest_hash,
        sketch_root: receipt.sketch_root,
        prompt_hash: receipt.prompt_hash,
        response_hash: receipt.response_hash,
        query_hash: query.map(|_| receipt.query_hash),
        query_sketch: query.map(|query| hex::encode_prefixed(query.to_bytes())),
        evidence_hash: recorded.map(|_| receipt.evidence_hash),
        evidence_object: recorded.and_then(|recorded| recorded.gathered.evidence.object()),
        datanets: Vec::new(),
        null_threshold: String::new(),
        tokens_in: receipt.tokens_in,
        tokens_out: receipt.tokens_out,
        fee_wei: receipt.fee_wei.to_string(),
        answered_at: receipt.answered_at_s,
        split: SplitView::default(),
        pots: PotsView::default(),
        treasury_wei: String::new(),
        claim: None,
        tx_hash: None,
        block: None,
    }
}

/// What the model's registration says.
pub(super) fn describe(view: &mut ReceiptView, model: Model) {
    view.model = model.name;
    view.model_version = Some(model.version);
    view.datanets = model.datanets;
    view.null_threshold = model.params.nullThreshold.to_string();
}

/// Where the fee goes.
pub(super) fn fill(view: &mut ReceiptView, payout: &Payout, settling: Option<Settling<'_>>) {
    view.split = SplitView {
        platform: payout.split.platform_wei.to_string(),
        model: payout.split.model_wei.to_string(),
        stakers: payout.split.stakers_wei.to_string(),
        contributors: payout.split.contributors_wei.to_string(),
    };
    view.treasury_wei = payout.treasury_wei.to_string();
    match settling {
        Some(Settling::Settled(settled)) => {
            view.tx_hash = Some(settled.tx_hash);
            view.block = Some(settled.block);
        }
        Some(Settling::Claimed(claim, claimed)) => {
            view.tx_hash = Some(claimed.tx_hash);
            view.block = Some(claimed.block);
            view.claim = Some(ClaimView {
                deadline: claim.deadline_s,
                bond_wei: bond_of_wei(claim.fee_wei).to_string(),
                n_open_reveals: claim.n_open_reveals,
            });
        }
        None => {}
    }
}

/// Records of a contributor with what each counts, to name the strongest.
type Records = BTreeMap<Address, Vec<(u64, B256)>>;

/// The pots of an answer, each with its own contributors and reasons.
pub(super) fn pots(
    payout: &Payout,
    index: &AnyIndex,
    recorded: &PendingReceipt,
    labels: &Labels,
    tokenizer: Option<&Tokenizer>,
) -> Result<PotsView, String> {
    let trained = trained(index, &recorded.query, payout);
    let object = &recorded.gathered.object;
    let shown = (!object.is_empty()).then(|| Shown::from_bytes(object));
    let shown = shown.transpose()?;
    let (mut quoted, mut read) = (Records::new(), Records::new());
    let (mut found, mut passages) = (Vec::new(), Vec::new());
    if let Some(shown) = &shown {
        for span in shown.spans.iter().flat_map(|spans| &spans.found) {
            for holder in &span.holders {
                let record = (span.units, holder.record);
                quoted.entry(holder.contributor).or_default().push(record);
            }
            let tokens = shown.tokens(span);
            let text = tokenizer.zip(tokens).map(|(t, tokens)| t.decode(tokens));
            found.push(span_view(span, text, labels));
        }
        for passage in &shown.passages {
            let record = (passage.drop_millinats.into(), passage.record);
            read.entry(passage.contributor).or_default().push(record);
            passages.push(PassageView {
                source: source(passage.contributor, passage.record, labels),
                weight: passage.drop_millinats.to_string(),
            });
        }
    }
    let view = |pot: Pot, records: Records| pot_view(payout.pot(pot), records, labels);
    let evidence = &recorded.gathered.evidence;
    Ok(PotsView {
        training: view(Pot::Training, trained),
        spans: PotView {
            total_weight: Some(evidence.spans().total.to_string()),
            found,
            ..view(Pot::Spans, quoted)
        },
        context: PotView {
            total_weight: Some(evidence.context().total.to_string()),
            passages,
            ..view(Pot::Context, read)
        },
    })
}

/// The records that moved the answer.
fn trained(index: &AnyIndex, query: &QuerySketch, payout: &Payout) -> Records {
    let mut records = Records::new();
    match index {
        AnyIndex::Exact(index) => {
            for (entry, score) in index.entries().zip(index.scores(query)) {
                if let Ok(score @ 1..) = u64::try_from(score) {
                    let record = (score, entry.record());
                    records.entry(entry.contributor()).or_default().push(record);
                }
            }
        }
        // Of millions only those that are shown.
        AnyIndex::Optimistic(index) => {
            for credit in &payout.pot(Pot::Training).credits {
                let strongest = index.strongest(query, credit.contributor, RECORDS_MAX);
                let strongest = strongest
                    .into_iter()
                    .map(|(score, record)| (score.unsigned_abs(), record));
                records.insert(credit.contributor, strongest.collect());
            }
        }
    }
    records
}

fn span_view(span: &ShownSpan, text: Option<String>, labels: &Labels) -> SpanView {
    let holders = span.holders.iter().take(RECORDS_MAX);
    SpanView {
        tokens: (span.start, span.start.saturating_add(span.len)),
        text_range: span.text,
        text,
        weight: span.units.to_string(),
        since_version: span.since,
        holders: holders
            .map(|holder| source(holder.contributor, holder.record, labels))
            .collect(),
        n_holders: span.holders.len(),
    }
}

fn source(contributor: Address, record: B256, labels: &Labels) -> SourceView {
    SourceView {
        contributor: labels.contributor(contributor),
        address: contributor,
        record: labels.record(record),
        record_hash: record,
    }
}

/// The contributors, the heaviest first, each with the records that count most.
fn pot_view(pot: &PotCredits, mut records: Records, labels: &Labels) -> PotView {
    let total: u128 = pot
        .credits
        .iter()
        .map(|credit| u128::from(credit.weight))
        .sum();
    let mut credits = pot.credits.clone();
    credits.sort_by_key(|credit| (std::cmp::Reverse(credit.weight), credit.contributor));
    let share = |credit: Credit| {
        let mut records = records.remove(&credit.contributor).unwrap_or_default();
        records.sort_by_key(|&(score, record)| (std::cmp::Reverse(score), record));
        let mut record_hashes: Vec<B256> = Vec::new();
        for (_, record) in records {
            // A record may hold several spans.
            if record_hashes.len() < RECORDS_MAX && !record_hashes.contains(&record) {
                record_hashes.push(record);
            }
        }
        let share_ppb = u128::from(credit.weight) * 1_000_000_000 / total.max(1);
        ShareView {
            contributor: labels.contributor(credit.contributor),
            address: credit.contributor,
            weight: credit.weight.to_string(),
            share_ppb: u32::try_from(share_ppb).expect("a part is at most the whole"),
            paid_wei: credit.amount_wei.to_string(),
            records: record_hashes
                .iter()
                .map(|&record| labels.record(record))
                .collect(),
            record_hashes,
        }
    };
    PotView {
        paid_wei: pot.amount_wei.to_string(),
        total_weight: None,
        n_contributors: credits.len(),
        contributors: credits.into_iter().map(share).collect(),
        found: Vec::new(),
        passages: Vec::new(),
    }
}
