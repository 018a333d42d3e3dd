//! One running request, from its first token to its receipt.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ol_serve::{Answer, Completion, Event, FinishReason, GenerateError};
use ol_types::{Address, B256, Receipt, keccak256};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::chain::Model;
use super::deferred::Room;
use super::holds::Reserve;
use super::idempotency::{Earlier, RunningGuard};
use super::journal::{AnsweredRequest, Owed, PendingReceipt};
use super::receipts::ReceiptView;
use super::settlement::{Job, Status};
use super::{Inner, ServedModel, chain_of, count};
use crate::answer::{Finished, Frame, SessionError, Token};
use crate::evidence::Passage;
use crate::keys::{Admission, Cost};
use crate::retrieval::Grounded;

/// A request that was taken on.
pub(super) struct Start {
    pub(super) payer: Address,
    pub(super) served: Arc<ServedModel>,
    pub(super) model: Model,
    pub(super) prompt_tokens: Vec<u32>,
    pub(super) max_tokens: usize,
    pub(super) request_id: B256,
    /// The passages in the prompt, if it was given any.
    pub(super) context: Option<Arc<Grounded>>,
    pub(super) charge: Charge,
    /// For the answer, should there be no time to sketch it.
    pub(super) room: Room,
    pub(super) running: Option<RunningGuard>,
    pub(super) answer: Answer,
    pub(super) permit: OwnedSemaphorePermit,
}

/// How an answer is paid.
pub(super) enum Charge {
    /// By a receipt of its own, out of what is set aside.
    New(Reserve, Option<Admission>),
    /// By the receipt of an earlier request with the same idempotency key.
    Earlier(Box<Earlier>),
}

/// The client's end of a running request. Dropping it says that the client has left.
#[derive(Debug)]
pub struct Session {
    request_id: B256,
    prompt_tokens: Vec<u32>,
    frames: mpsc::Receiver<Frame>,
    is_delivered: Arc<AtomicBool>,
}

impl Session {
    pub(super) fn spawn(gateway: Arc<Inner>, start: Start) -> Self {
        // Room for every frame there can be: the tokens and the end.
        let (sender, frames) = mpsc::channel(start.max_tokens + 1);
        let is_delivered = Arc::new(AtomicBool::new(false));
        let (request_id, prompt_tokens) = (start.request_id, start.prompt_tokens.clone());
        let task = Task {
            gateway,
            start: Box::new(start),
            frames: sender,
            is_delivered: Arc::clone(&is_delivered),
        };
        tokio::spawn(task.run());
        Self {
            request_id,
            prompt_tokens,
            frames,
            is_delivered,
        }
    }

    /// The request's id, which its receipt holds.
    #[must_use]
    pub const fn request_id(&self) -> B256 {
        self.request_id
    }

    /// The prompt.
    #[must_use]
    pub fn prompt_tokens(&self) -> &[u32] {
        &self.prompt_tokens
    }

    /// The next frame; `None` after the last.
    pub async fn next(&mut self) -> Option<Frame> {
        self.frames.recv().await
    }

    /// Says that part of the answer is on its way to the client: from now on
    /// leaving does not make the answer free.
    pub fn mark_delivered(&self) {
        self.is_delivered.store(true, Ordering::Release);
    }
}

/// What runs whether or not the client still listens.
struct Task {
    gateway: Arc<Inner>,
    start: Box<Start>,
    frames: mpsc::Sender<Frame>,
    is_delivered: Arc<AtomicBool>,
}

impl Task {
    async fn run(mut self) {
        let completion = match self.generate().await {
            Ok(Some(completion)) => completion,
            Ok(None) => {
                tracing::debug!(request = %self.start.request_id, "client left, nothing charged");
                return;
            }
            Err(error) => return self.send(Frame::Failed(error.into())),
        };
        let frames = self.frames.clone();
        let frame = match self.account(completion).await {
            Ok(finished) => Frame::Finished(Box::new(finished)),
            Err(error) => Frame::Failed(error),
        };
        // There is room for every frame; a closed channel has nobody to tell.
        let _ = frames.try_send(frame);
    }

    fn send(&self, frame: Frame) {
        let _ = self.frames.try_send(frame);
    }

    /// Passes the answer on until it ends or the client leaves. `None`: the
    /// client left before it got anything.
    async fn generate(&mut self) -> Result<Option<Completion>, GenerateError> {
        let mut token_ids = Vec::new();
        loop {
            let event = tokio::select! {
                event = self.start.answer.next() => event,
                () = self.frames.closed() => {
                    if !self.is_delivered.load(Ordering::Acquire) {
                        return Ok(None);
                    }
                    return Ok(Some(Completion {
                        finish_reason: FinishReason::Length,
                        stop_reason: None,
                        text_delta: String::new(),
                        tokens_in: self.start.prompt_tokens.len(),
                        tokens_cached: 0,
                        token_ids,
                    }));
                }
            };
            match event {
                Some(Event::Token {
                    id,
                    text_delta: text,
                    logprobs,
                }) => {
                    token_ids.push(id);
                    self.send(Frame::Token(Token { id, text, logprobs }));
                }
                Some(Event::Done(completion)) => return Ok(Some(completion)),
                Some(Event::Failed(error)) => return Err(error),
                None => return Err(GenerateError::Stopped),
            }
        }
    }

    /// Sketch, receipt, journal, settlement.
    async fn account(self, completion: Completion) -> Result<Finished, SessionError> {
        let Self {
            gateway,
            start,
            frames,
            is_delivered,
        } = self;
        let Start {
            payer,
            served,
            model,
            prompt_tokens,
            request_id,
            context,
            charge,
            room,
            running,
            answer,
            permit,
            ..
        } = *start;
        // The engine is done with it: the cancelled row ends here.
        drop(answer);
        let Completion {
            finish_reason,
            stop_reason,
            text_delta: text,
            token_ids,
            tokens_cached,
            ..
        } = completion;
        let tokens_cached = count(tokens_cached).ok_or(SessionError::Account)?;
        let counts = count(prompt_tokens.len()).zip(count(token_ids.len()));
        let (tokens_in, tokens_out) = counts.ok_or(SessionError::Account)?;
        let finished = |receipt| Finished {
            finish_reason,
            stop_reason,
            text,
            tokens_in,
            tokens_cached,
            tokens_out,
            receipt: Some(receipt),
        };
        let (mut hold, admission) = match charge {
            Charge::New(hold, admission) => (hold, admission),
            Charge::Earlier(earlier) => {
                let Earlier { owed, status } = *earlier;
                if owed.receipt().response_hash != hash_tokens(&token_ids) {
                    return Err(SessionError::KeyReused);
                }
                let receipt = view(&gateway, owed, status).await?;
                return Ok(finished(receipt));
            }
        };
        let fee_wei = model
            .params
            .fee_wei(tokens_in, tokens_out)
            .ok_or(SessionError::Account)?;

        if frames.is_closed() && !is_delivered.load(Ordering::Acquire) {
            return Err(SessionError::Account);
        }
        let params = &model.params;
        let [_, _, context_bps] = params.potsBps;
        let passages = match context.filter(|_| context_bps > 0) {
            Some(context) => passages(&gateway, &served, &context, &token_ids, request_id).await?,
            None => Vec::new(),
        };
        let answered = AnsweredRequest {
            draft: Receipt {
                chain_id: gateway.chain.chain_id(),
                settlement: ol_contracts::address::INFERENCE_SETTLEMENT,
                payer,
                request_id,
                model_id: model.id,
                base_hash: params.baseHash,
                adapter_hash: params.adapterHash,
                manifest_hash: params.manifestHash,
                sketch_root: params.sketchRoot,
                prompt_hash: hash_tokens(&prompt_tokens),
                response_hash: hash_tokens(&token_ids),
                query_hash: B256::ZERO,
                evidence_hash: B256::ZERO,
                tokens_in,
                tokens_out,
                fee_wei,
                answered_at_s: gateway.clock.unix_s(),
            },
            prompt_tokens,
            answer_tokens: token_ids,
            passages,
        };
        // Who finds a queue here does not make their client wait in it.
        let Ok(place) = gateway.sketch_queue.try_acquire() else {
            keep(&gateway, &answered).await?;
            // From here on the fee is owed, whatever happens.
            hold.shrink_to(fee_wei);
            settle(admission, (tokens_in, tokens_out), fee_wei);
            gateway.deferred.push(request_id, hold, room);
            drop(permit);
            let owed = Owed::Answer(Box::new(answered));
            let receipt = view(&gateway, owed, Status::Pending).await?;
            drop(running);
            return Ok(finished(receipt));
        };
        let turn = gateway
            .sketches
            .acquire()
            .await
            .map_err(|_| SessionError::Account)?;
        let pending = record(&gateway, &served, params.potsBps, answered).await?;
        drop((turn, place, room));

        // From here on the fee is owed, whatever happens.
        hold.shrink_to(fee_wei);
        settle(admission, (tokens_in, tokens_out), fee_wei);
        let (reply, settled) = oneshot::channel();
        gateway.settlement.submit(Job {
            pending: pending.clone(),
            hold,
            reply: Some(reply),
        });
        drop(permit);
        let status = match tokio::time::timeout(gateway.options.settle_wait, settled).await {
            Ok(Ok(status)) => status,
            Ok(Err(_)) | Err(_) => Status::Pending,
        };
        let receipt = view(&gateway, pending.into(), status).await?;
        // Until here a repeated request would not have found this receipt.
        drop(running);
        Ok(finished(receipt))
    }
}

/// Counts what was used against the limits of its key.
fn settle(admission: Option<Admission>, (tokens_in, tokens_out): (u32, u32), fee_wei: u128) {
    if let Some(mut admission) = admission {
        admission.settle(Cost {
            tokens: u64::from(tokens_in) + u64::from(tokens_out),
            wei: fee_wei,
        });
    }
}

/// The passages in the prompt, with what the answer loses without each; none if
/// that cannot be measured: the pot for context then falls to training.
///
/// Unlike a sketch it is not deferred, as the prompts without passages are not
/// kept: a client waits for its turn.
async fn passages(
    gateway: &Arc<Inner>,
    served: &Arc<ServedModel>,
    context: &Arc<Grounded>,
    answer_tokens: &[u32],
    request_id: B256,
) -> Result<Vec<Passage>, SessionError> {
    let turn = gateway.sketches.acquire().await;
    let turn = turn.map_err(|_| SessionError::Account)?;
    let (gateway, served) = (Arc::clone(gateway), Arc::clone(served));
    let (context, answer_tokens) = (Arc::clone(context), answer_tokens.to_vec());
    let measured = tokio::task::spawn_blocking(move || {
        let prompt = |keep: &[bool]| -> Result<Vec<u32>, Box<dyn Error + Send + Sync>> {
            let prompt = context.prompt(keep)?;
            Ok(gateway.preparer.tokens(&prompt)?)
        };
        let drops = served
            .sketcher
            .drops(context.len(), &prompt, &answer_tokens)?;
        let found = context.passages().zip(drops);
        let found = found.map(|((_, passage), drop_millinats)| Passage {
            version: context.version(),
            record: passage.source.record,
            cluster: passage.source.cluster,
            contributor: passage.source.address,
            start: passage.start,
            end: passage.end,
            drop_millinats,
        });
        Ok::<Vec<Passage>, Box<dyn Error + Send + Sync>>(found.collect())
    });
    let measured = measured.await;
    drop(turn);
    match measured {
        Ok(Ok(passages)) => Ok(passages),
        Ok(Err(error)) => {
            let error = chain_of(&*error);
            tracing::warn!(request = %request_id, error, "an answer is settled without its passages");
            Ok(Vec::new())
        }
        Err(_) => {
            tracing::error!(request = %request_id, "measuring the passages failed");
            Err(SessionError::Account)
        }
    }
}

/// Makes the receipt of an answer and puts it into the journal.
async fn record(
    gateway: &Arc<Inner>,
    served: &Arc<ServedModel>,
    pots_bps: [u16; 3],
    answered: AnsweredRequest,
) -> Result<PendingReceipt, SessionError> {
    let (gateway, served) = (Arc::clone(gateway), Arc::clone(served));
    let request_id = answered.draft.request_id;
    let recorded = tokio::task::spawn_blocking(move || {
        let tokenizer = gateway.preparer.tokenizer();
        let pending = answered.recorded(&served, pots_bps, tokenizer)?;
        if let Err(error) = gateway.journal.add(&pending) {
            // It may be on the disk all the same, and the client is told that
            // nothing is charged.
            let _ = gateway.journal.remove(pending.receipt.id());
            return Err(chain_of(&error));
        }
        Ok(pending)
    });
    match recorded.await {
        Ok(Ok(pending)) => Ok(pending),
        Ok(Err(error)) => {
            tracing::error!(request = %request_id, %error, "receipt could not be kept");
            Err(SessionError::Account)
        }
        Err(_) => {
            tracing::error!(request = %request_id, "sketching the answer failed");
            Err(SessionError::Account)
        }
    }
}

/// Puts an answer into the journal, to be sketched later.
async fn keep(gateway: &Arc<Inner>, answered: &AnsweredRequest) -> Result<(), SessionError> {
    let (gateway, answered) = (Arc::clone(gateway), answered.clone());
    let kept = tokio::task::spawn_blocking(move || {
        gateway.journal.add_answer(&answered).inspect_err(|error| {
            let request = answered.draft.request_id;
            tracing::error!(%request, error = chain_of(error), "an answer could not be kept");
            // As with a receipt: nothing is charged, so nothing may be left.
            let _ = gateway.journal.remove_answer(request);
        })
    });
    match kept.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(SessionError::Account),
    }
}

/// The receipt as the reply shows it.
async fn view(
    gateway: &Arc<Inner>,
    owed: Owed,
    status: Status,
) -> Result<ReceiptView, SessionError> {
    let gateway = Arc::clone(gateway);
    let view = tokio::task::spawn_blocking(move || gateway.receipts.view(&owed, status));
    view.await.map_err(|_| SessionError::Account)
}

/// Hash of a prompt or an answer: keccak256 of the token ids, each as a
/// big-endian `u32` (`specs/receipt.md`).
#[must_use]
pub fn hash_tokens(tokens: &[u32]) -> B256 {
    let bytes: Vec<u8> = tokens.iter().flat_map(|id| id.to_be_bytes()).collect();
    keccak256(bytes)
}
