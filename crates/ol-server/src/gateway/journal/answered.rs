//! Answers that are owed a receipt whose query sketch is still to be computed.

use ol_model::Tokenizer;
use ol_types::{Address, B256, RECEIPT_SIZE_BYTES, Receipt, keccak256};

use super::super::ServedModel;
use super::super::session::hash_tokens;
use super::super::settlement::chain_of;
use super::PendingReceipt;
use crate::evidence::{Gathered, PASSAGES_MAX, Passage, Sources, gather};

const CHECK_SIZE_BYTES: usize = 32;

/// Version, record, contributor and four numbers.
const PASSAGE_SIZE_BYTES: usize = 32 + 32 + 20 + 4 * 4;

/// An answer that was delivered and not sketched yet: all that its receipt and
/// its settlement need.
#[derive(Clone, PartialEq, Eq)]
pub(in crate::gateway) struct AnsweredRequest {
    /// The receipt as it will be, but with hashes of query and evidence of zero.
    pub(in crate::gateway) draft: Receipt,
    /// The prompt.
    pub(in crate::gateway) prompt_tokens: Vec<u32>,
    /// The answer.
    pub(in crate::gateway) answer_tokens: Vec<u32>,
    /// The passages in the prompt, with what the answer loses without each.
    pub(in crate::gateway) passages: Vec<Passage>,
}

// Prompts and answers are private: they stay out of logs.
impl std::fmt::Debug for AnsweredRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AnsweredRequest")
            .field("draft", &self.draft)
            .finish_non_exhaustive()
    }
}

impl AnsweredRequest {
    /// The receipt, with the sketch and the evidence that follow from the tokens.
    /// Evidence is gathered for the pots that the model has.
    ///
    /// # Errors
    /// Why there is no sketch, in words.
    pub(in crate::gateway) fn recorded(
        self,
        served: &ServedModel,
        pots_bps: [u16; 3],
        tokenizer: &Tokenizer,
    ) -> Result<PendingReceipt, String> {
        let sketcher = &served.sketcher;
        let query = sketcher.sketch(&self.prompt_tokens, &self.answer_tokens);
        let query = query.map_err(|error| chain_of(&*error))?;
        let [_, spans_bps, _] = pots_bps;
        let sources = Sources {
            tokenizer,
            spans: served.spans.as_deref().filter(|_| spans_bps > 0),
            passages: &self.passages,
        };
        let gathered = gather(&self.answer_tokens, &sources).unwrap_or_else(|error| {
            // Its pots fall to training: contributors are paid all the same.
            let (request, error) = (self.draft.request_id, chain_of(&error));
            tracing::warn!(%request, error, "an answer is settled without evidence");
            Gathered::default()
        });
        let receipt = Receipt {
            query_hash: query.hash(),
            evidence_hash: gathered.evidence.hash(),
            ..self.draft
        };
        Ok(PendingReceipt {
            receipt,
            query,
            gathered,
        })
    }

    /// Size of the file of an answer with so many tokens and passages.
    pub(in crate::gateway) const fn size_bytes(n_tokens: usize, n_passages: usize) -> usize {
        RECEIPT_SIZE_BYTES + 4 * n_tokens + PASSAGE_SIZE_BYTES * n_passages + CHECK_SIZE_BYTES
    }

    /// The draft, the tokens of prompt and answer as big-endian `u32`, the
    /// passages, and the keccak256 of all before.
    pub(super) fn encode(&self) -> Vec<u8> {
        let tokens = self.prompt_tokens.iter().chain(&self.answer_tokens);
        let mut bytes = self.draft.encode().to_vec();
        bytes.extend(tokens.flat_map(|id| id.to_be_bytes()));
        for passage in &self.passages {
            bytes.extend(passage.version);
            bytes.extend(passage.record);
            bytes.extend(passage.contributor);
            let Passage {
                cluster,
                start,
                end,
                drop_millinats,
                ..
            } = *passage;
            let numbers = [cluster, start, end, drop_millinats];
            bytes.extend(numbers.iter().flat_map(|number| number.to_be_bytes()));
        }
        let check = keccak256(&bytes);
        bytes.extend_from_slice(check.as_slice());
        bytes
    }

    /// Reads what [`AnsweredRequest::encode`] wrote.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let short = || format!("it has only {} bytes", bytes.len());
        let n_content = bytes
            .len()
            .checked_sub(CHECK_SIZE_BYTES)
            .ok_or_else(short)?;
        let (content, check) = bytes.split_at(n_content);
        if keccak256(content).as_slice() != check {
            return Err("its checksum is another".to_owned());
        }
        let (draft, tokens) = content
            .split_at_checked(RECEIPT_SIZE_BYTES)
            .ok_or_else(short)?;
        let draft = Receipt::decode(draft).map_err(|error| error.to_string())?;
        let n_expected = u64::from(draft.tokens_in) + u64::from(draft.tokens_out);
        let lacks = || format!("it has not the {n_expected} tokens it speaks of");
        let n_bytes = usize::try_from(4 * n_expected).map_err(|_| lacks())?;
        let (tokens, passages) = tokens.split_at_checked(n_bytes).ok_or_else(lacks)?;
        let (tokens, _) = tokens.as_chunks::<4>();
        let (passages, rest) = passages.as_chunks::<PASSAGE_SIZE_BYTES>();
        if !rest.is_empty() || passages.len() > PASSAGES_MAX {
            return Err("it has half a passage, or too many".to_owned());
        }
        let mut prompt_tokens: Vec<u32> = tokens.iter().map(|id| u32::from_be_bytes(*id)).collect();
        let answer_tokens = prompt_tokens.split_off(draft.tokens_in as usize);
        let is_whole = draft.query_hash == B256::ZERO
            && draft.evidence_hash == B256::ZERO
            && draft.prompt_hash == hash_tokens(&prompt_tokens)
            && draft.response_hash == hash_tokens(&answer_tokens);
        if !is_whole {
            return Err("its tokens are not those of its receipt".to_owned());
        }
        Ok(Self {
            draft,
            prompt_tokens,
            answer_tokens,
            passages: passages.iter().map(read_passage).collect(),
        })
    }
}

fn read_passage(bytes: &[u8; PASSAGE_SIZE_BYTES]) -> Passage {
    let (hashes, numbers) = bytes.split_at(84);
    let (numbers, _) = numbers.as_chunks::<4>();
    let number = |at: usize| u32::from_be_bytes(numbers[at]);
    Passage {
        version: B256::from_slice(&hashes[..32]),
        record: B256::from_slice(&hashes[32..64]),
        contributor: Address::from_slice(&hashes[64..]),
        cluster: number(0),
        start: number(1),
        end: number(2),
        drop_millinats: number(3),
    }
}
