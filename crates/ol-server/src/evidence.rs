//! What an answer shares with records, and who is paid for it: the evidence
//! that a receipt commits to, and the public object that shows it.
//!
//! Training is paid by scores that the chain computes. Spans and context are
//! paid by what is gathered here after the answer: the spans that an index of
//! the model's datanet finds, and the passages that the model had before it
//! with what the answer would lose without each.
//!
//! The object names places and records, never the answer: of its tokens it has
//! those that stand word for word in public records, so that anybody with the
//! datanet finds the same spans in them and the same units. Format: section
//! "Evidence" of `specs/receipt.md`.

use alloy_primitives::Bytes;
use ol_model::Tokenizer;
use ol_poa::context::{ContextRule, PassageDrop, context_units};
use ol_poa::evidence::{EVIDENCE_SIZE_BYTES_MAX, weights_of};
use ol_poa::spans::{
    Holder, Holders, Span, SpanRule, UNITS_PER_MILLIBIT, answer_units, divide, worths,
};
use ol_poa::{Earned, Evidence, EvidenceError};
use ol_runtime::{Objects, ObjectsError};
use ol_spans::{SpanIndex, SpansError};
use ol_types::{Address, B256, keccak256};
use serde::{Deserialize, Serialize};

use crate::verify::{Difference, same, unusable};

/// Largest object, in bytes.
pub const OBJECT_SIZE_BYTES_MAX: u64 = 16 << 20;

/// Most clusters that hold the paid spans of one answer, all together. An
/// answer with more is not paid by spans: quoting the whole corpus is no
/// evidence of anything.
pub const HOLDERS_MAX: usize = 1 << 16;

/// Most passages of one answer.
pub const PASSAGES_MAX: usize = 64;

const FORMAT: &str = "openledger-evidence-2";

/// A passage that the model had before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Passage {
    /// Id of the manifest of the datanet's version.
    pub version: B256,
    /// Hash of its record.
    pub record: B256,
    /// Duplicate cluster of the record.
    pub cluster: u32,
    /// Who owns the cluster, and is paid.
    pub contributor: Address,
    /// Its first byte in the record's text.
    pub start: u32,
    /// The byte behind its last.
    pub end: u32,
    /// By how much the log-probability of the answer falls without it, in
    /// milli-nats; 0 if it does not.
    pub drop_millinats: u32,
}

/// What evidence is gathered from. Pots that a model does not have are left
/// out: `None`, and no passages.
#[derive(Debug, Clone, Copy)]
pub struct Sources<'a> {
    /// Turns tokens into the text whose positions are shown.
    pub tokenizer: &'a Tokenizer,
    /// The spans of the model's datanet.
    pub spans: Option<&'a SpanIndex>,
    /// Passages that the request had the model read.
    pub passages: &'a [Passage],
}

/// Evidence with the object that shows it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Gathered {
    /// Who is paid, which the receipt commits to.
    pub evidence: Evidence,
    /// The object's bytes, empty if nothing is shown.
    pub object: Bytes,
}

impl Gathered {
    /// Stores what anybody needs to check it. No evidence is known to everybody.
    ///
    /// # Errors
    /// [`ObjectsError`] if the store fails.
    pub fn store(&self, objects: &Objects) -> Result<(), ObjectsError> {
        if self.evidence != Evidence::default() {
            objects.put(self.evidence.to_bytes())?;
            objects.put(self.object.to_vec())?;
        }
        Ok(())
    }

    /// The evidence with this hash. The outer error is the store's, the inner one
    /// says that the object with this hash is none.
    ///
    /// # Errors
    /// [`ObjectsError`] if an object is missing or cannot be read.
    pub fn load(
        objects: &Objects,
        hash: B256,
    ) -> Result<Result<Self, EvidenceError>, ObjectsError> {
        if hash == Evidence::default().hash() {
            return Ok(Ok(Self::default()));
        }
        let bytes = objects.get(hash, EVIDENCE_SIZE_BYTES_MAX as u64)?;
        let evidence = match Evidence::from_bytes(&bytes) {
            Ok(evidence) => evidence,
            Err(error) => return Ok(Err(error)),
        };
        let object = match evidence.object() {
            Some(id) => objects.get(id, OBJECT_SIZE_BYTES_MAX)?.to_vec().into(),
            None => Bytes::new(),
        };
        Ok(Ok(Self { evidence, object }))
    }
}

/// Why there is no evidence.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GatherError {
    /// The spans cannot be found.
    #[error("the spans of the answer cannot be found")]
    Spans(#[from] SpansError),
    /// More clusters hold the spans than are listed.
    #[error("{n_holders} clusters hold the answer's spans, at most {HOLDERS_MAX} are listed")]
    TooManyHolders {
        /// How many do.
        n_holders: usize,
    },
    /// More passages than an answer has.
    #[error("{n_passages} passages, at most {PASSAGES_MAX} are listed")]
    TooManyPassages {
        /// How many there are.
        n_passages: usize,
    },
    /// The lists are none.
    #[error("the weights cannot be paid by")]
    Evidence(#[from] EvidenceError),
}

/// The public object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shown {
    format: String,
    /// Tokens of the answer.
    pub n_tokens: u32,
    /// Spans that are paid for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spans: Option<ShownSpans>,
    /// Passages that the model had before it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub passages: Vec<Passage>,
}

/// The spans that are paid for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShownSpans {
    /// Id of the corpus they stand in.
    pub corpus: B256,
    /// Units that the whole answer would be worth as one span without a floor:
    /// what the units of the spans are of it, is paid of the pot.
    pub total_units: u64,
    /// The tokens of the answer that the spans cover, without gaps, ascending.
    pub runs: Vec<Run>,
    /// The spans by position.
    pub found: Vec<ShownSpan>,
}

/// Tokens of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// Position of the first in the answer.
    pub start: u32,
    /// The tokens.
    pub tokens: Vec<u32>,
}

/// A span that is paid for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShownSpan {
    /// Position of its first token in the answer.
    pub start: u32,
    /// Its number of tokens.
    pub len: u32,
    /// The version of the datanet that it first stood in, from 1.
    pub since: u32,
    /// Where it begins and ends in the text of the answer, in Unicode code
    /// points; the second is past its end.
    pub text: (u32, u32),
    /// Its units, before they are divided over the holders.
    pub units: u64,
    /// The clusters that held it in that version, ascending.
    pub holders: Vec<ShownHolder>,
}

/// A cluster that holds a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShownHolder {
    /// Its number.
    pub cluster: u32,
    /// Who owns it, and is paid.
    pub contributor: Address,
    /// Its first record in which the span stands, of that version.
    pub record: B256,
}

impl Shown {
    /// Reads an object.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() as u64 > OBJECT_SIZE_BYTES_MAX {
            return Err(format!("it has {} bytes", bytes.len()));
        }
        let shown: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if shown.format != FORMAT {
            return Err(format!("it is of format {:?}, not {FORMAT}", shown.format));
        }
        Ok(shown)
    }

    /// The tokens of a span, if a run covers it.
    #[must_use]
    pub fn tokens(&self, span: &ShownSpan) -> Option<&[u32]> {
        let runs = self.spans.as_ref()?.runs.iter();
        runs.filter(|run| run.start <= span.start).find_map(|run| {
            let start = (span.start - run.start) as usize;
            run.tokens.get(start..start.checked_add(span.len as usize)?)
        })
    }

    /// What follows from it for the pots of spans and context.
    fn earned(&self) -> [Earned; 2] {
        let found = self.spans.iter().flat_map(|spans| &spans.found);
        let earned = found.flat_map(|span| {
            let holders: Vec<Holder> = span.holders.iter().map(ShownHolder::holder).collect();
            divide(span.units, &holders)
        });
        let drops: Vec<PassageDrop> = self.passages.iter().map(Passage::as_drop).collect();
        // Passages that contradict each other are worth nothing.
        let context = context_units(&drops, &ContextRule::default()).unwrap_or_default();
        let total = self.spans.as_ref().map_or(0, |spans| spans.total_units);
        [Earned::new(weights_of(earned), total), context]
    }
}

impl Passage {
    const fn as_drop(&self) -> PassageDrop {
        PassageDrop {
            cluster: self.cluster,
            contributor: self.contributor,
            drop_millinats: self.drop_millinats,
        }
    }
}

impl ShownHolder {
    const fn holder(&self) -> Holder {
        Holder {
            cluster: self.cluster,
            contributor: self.contributor,
        }
    }
}

/// Gathers the evidence of an answer. Deterministic: the same answer and
/// sources give the same bytes.
///
/// # Errors
/// [`GatherError`]; the answer is then paid for without evidence.
#[expect(clippy::missing_panics_doc, reason = "the expectation cannot fail")]
pub fn gather(answer: &[u32], sources: &Sources<'_>) -> Result<Gathered, GatherError> {
    let n_passages = sources.passages.len();
    if n_passages > PASSAGES_MAX {
        return Err(GatherError::TooManyPassages { n_passages });
    }
    let mut shown = Shown {
        format: FORMAT.to_owned(),
        n_tokens: u32::try_from(answer.len()).unwrap_or(u32::MAX),
        spans: None,
        passages: sources.passages.to_vec(),
    };
    if let Some(index) = sources.spans {
        let mut found = paid_spans(index, answer, 0)?;
        let n_holders = found.iter().map(|span| span.holders.len()).sum();
        if n_holders > HOLDERS_MAX {
            return Err(GatherError::TooManyHolders { n_holders });
        }
        if !found.is_empty() {
            place(&mut found, answer, sources.tokenizer);
            shown.spans = Some(ShownSpans {
                corpus: index.id(),
                total_units: answer_units(answer, index.unigrams()).map_err(SpansError::from)?,
                runs: runs(&found, answer),
                found,
            });
        }
    }
    if shown.spans.is_none() && shown.passages.is_empty() {
        return Ok(Gathered::default());
    }
    let object = serde_json::to_vec(&shown).expect("numbers and hashes have a JSON form");
    let [spans, context] = shown.earned();
    Ok(Gathered {
        evidence: Evidence::new(spans, context, keccak256(&object))?,
        object: object.into(),
    })
}

/// The spans of `tokens` that are worth something, by position, `offset` added
/// to it.
fn paid_spans(
    index: &SpanIndex,
    tokens: &[u32],
    offset: u32,
) -> Result<Vec<ShownSpan>, SpansError> {
    let rule = SpanRule::default();
    let matches = index.spans(tokens, rule.length_min)?;
    let spans: Vec<Span> = matches.iter().map(|found| found.span.clone()).collect();
    let mut paid = worths(tokens, &spans, index.unigrams(), &rule)?;
    paid.sort_unstable();
    let shown = paid.into_iter().map(|(position, units)| {
        let found = &matches[position];
        let holders = match &found.span.holders {
            Holders::Listed(holders) => holders.as_slice(),
            Holders::TooMany => &[],
        };
        let records = found
            .records
            .iter()
            .filter_map(|&at| index.records().get(at as usize));
        ShownSpan {
            start: found.span.start + offset,
            len: found.span.len,
            since: found.span.since,
            text: (0, 0),
            units,
            holders: holders
                .iter()
                .zip(records)
                .map(|(holder, record)| ShownHolder {
                    cluster: holder.cluster,
                    contributor: holder.contributor,
                    record: record.hash,
                })
                .collect(),
        }
    });
    Ok(shown.collect())
}

/// Says where spans stand in the text.
fn place(spans: &mut [ShownSpan], answer: &[u32], tokenizer: &Tokenizer) {
    // Code points before each token; those of a character that is not complete
    // yet come with the token that completes it.
    let mut ends = Vec::with_capacity(answer.len() + 1);
    let (mut stream, mut n_chars) = (tokenizer.stream(), 0_u32);
    ends.push(0);
    for &token in answer {
        let n_more = stream.push(token).chars().count();
        n_chars = n_chars.saturating_add(u32::try_from(n_more).unwrap_or(u32::MAX));
        ends.push(n_chars);
    }
    for span in spans {
        let end = |position: u32| ends.get(position as usize).copied().unwrap_or(n_chars);
        span.text = (end(span.start), end(span.start + span.len));
    }
}

/// The tokens that spans cover; spans that touch or overlap share a run.
fn runs(spans: &[ShownSpan], answer: &[u32]) -> Vec<Run> {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for span in spans {
        let end = span.start + span.len;
        match ranges.last_mut() {
            Some(last) if span.start <= last.1 => last.1 = last.1.max(end),
            _ => ranges.push((span.start, end)),
        }
    }
    ranges
        .into_iter()
        .map(|(start, end)| Run {
            start,
            tokens: answer[start as usize..end as usize].to_vec(),
        })
        .collect()
}

/// Checks that an object shows why evidence pays as it does. With the index of
/// the model's corpus, every span is found again in the tokens of its run: what
/// is worth something in the whole answer is worth the same in its run, because
/// a span that is cut there took nothing from others, and neither does what is
/// left of it, which stood no later in the whole than it does in the run.
///
/// Whether the runs are the answer's, and all of it that there is to show, and
/// what exactly the rest of the answer counts in the total, only those can say who
/// have the answer: they [`gather`] again. Others check that the total is one
/// that the tokens shown and as many others as the answer has can add up to.
///
/// # Errors
/// The first [`Difference`].
pub fn check(
    evidence: &Evidence,
    object: &[u8],
    n_tokens: u32,
    index: Option<&SpanIndex>,
) -> Result<Shown, Difference> {
    same(
        "evidence.object",
        keccak256(object),
        evidence.object().unwrap_or_default(),
    )?;
    let shown = Shown::from_bytes(object).map_err(|what| unusable("evidence.object", &what))?;
    same("evidence.n_tokens", n_tokens, shown.n_tokens)?;
    if let (Some(spans), Some(index)) = (&shown.spans, index) {
        same("evidence.corpus", index.id(), spans.corpus)?;
        check_spans(spans, n_tokens, index)?;
    }
    let [spans, context] = shown.earned();
    for (what, ours, theirs) in [
        ("spans", &spans, evidence.spans()),
        ("context", &context, evidence.context()),
    ] {
        same(&format!("evidence.{what}: total"), ours.total, theirs.total)?;
        let (ours, theirs) = (&ours.weights, &theirs.weights);
        let differing = (0..ours.len().max(theirs.len())).find(|&n| ours.get(n) != theirs.get(n));
        if let Some(n) = differing {
            let name = |list: &[(Address, u64)]| {
                list.get(n).map_or_else(
                    || "nobody".to_owned(),
                    |(who, weight)| format!("{who} with {weight}"),
                )
            };
            return Err(Difference {
                part: format!("evidence.{what}"),
                recomputed: name(ours),
                found: name(theirs),
            });
        }
    }
    Ok(shown)
}

fn check_spans(spans: &ShownSpans, n_tokens: u32, index: &SpanIndex) -> Result<(), Difference> {
    let mut expected = Vec::new();
    let mut end_before = None;
    // Of the tokens shown, and how many are not.
    let (mut shown_units, mut n_others) = (0, u64::from(n_tokens));
    for run in &spans.runs {
        let len = u32::try_from(run.tokens.len()).ok().filter(|&len| len > 0);
        let end = len.and_then(|len| run.start.checked_add(len));
        let is_placed = end.is_some_and(|end| end <= n_tokens)
            && end_before.is_none_or(|before| run.start > before);
        if !is_placed {
            return Err(unusable(
                "evidence.runs",
                &format!("tokens at {} that overlap, touch or lie outside", run.start),
            ));
        }
        end_before = end;
        let found = paid_spans(index, &run.tokens, run.start)
            .map_err(|error| unusable("evidence.runs", &error))?;
        expected.extend(found);
        shown_units += answer_units(&run.tokens, index.unigrams())
            .map_err(|error| unusable("evidence.runs", &error))?;
        // Runs lie apart within the answer.
        n_others -= run.tokens.len() as u64;
    }
    let (least, most) = index.unigrams().bounds();
    let total = |each: u16| shown_units + n_others * u64::from(each) * UNITS_PER_MILLIBIT;
    let possible = total(least)..=total(most);
    if !possible.contains(&spans.total_units) {
        return Err(Difference {
            part: "evidence.total".to_owned(),
            recomputed: format!("{} to {} units", possible.start(), possible.end()),
            found: format!("{} units", spans.total_units),
        });
    }
    let name = |span: Option<&ShownSpan>| {
        span.map_or_else(
            || "none".to_owned(),
            |span| {
                let (end, n) = (
                    u64::from(span.start) + u64::from(span.len),
                    span.holders.len(),
                );
                format!(
                    "tokens {}..{end}, {} units, {n} holders since version {}",
                    span.start, span.units, span.since
                )
            },
        )
    };
    for n in 0..expected.len().max(spans.found.len()) {
        let (ours, theirs) = (expected.get(n), spans.found.get(n));
        let is_same = ours.zip(theirs).is_some_and(|(ours, theirs)| {
            // Places in the text take the answer; they move no money.
            ShownSpan {
                text: theirs.text,
                ..ours.clone()
            } == *theirs
        });
        if !is_same {
            return Err(Difference {
                part: format!("evidence.span {n}"),
                recomputed: name(ours),
                found: name(theirs),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests;
