//! One request on its way through the fleet: a place, a worker, its answer,
//! and another worker where that fails before anything was passed on.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{Method, StatusCode};
use ol_serve::{Event, FinishReason, GenerateError, GenerateRequest, Grammar, StopReason};
use ol_types::B256;
use tokio::sync::mpsc;

use super::Inner;
use super::adapters::{LoadError, worker_name};
use super::client::{As, Ask, ClientError, Reply};
use super::config::WorkerKind;
use super::lines::EventLines;
use super::pool::{Nobody, Place, Ticket};
use super::protocol::{self, Chunk, Refusal, Tokens};
use super::transcript::{NotTheForm, Transcript};

/// Largest error that is read.
const ERROR_MAX_SIZE_BYTES: usize = 64 << 10;

/// What a line and a body may have beside their tokens.
const FRAME_MAX_SIZE_BYTES: usize = 64 << 10;

/// What a token id may take in a list.
const ID_MAX_SIZE_BYTES: usize = 12;

/// What an event for one token may take.
const EVENT_MAX_SIZE_BYTES: usize = 4 << 10;

/// How long the end of an answer that is complete is waited for, so that the
/// connection can be used again.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a try did not give an answer.
enum TryError {
    /// The worker is full for so many seconds.
    Busy(f64),
    /// It takes nothing more.
    Draining,
    /// It does not know the model any more.
    UnknownModel,
    /// It does not take this request or adapter; others may.
    Refused(String),
    /// It is broken.
    Failed(String),
    /// It says what cannot be true.
    Lied(String),
}

impl From<ClientError> for TryError {
    fn from(error: ClientError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<LoadError> for TryError {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Full(_) => Self::Busy(1.0),
            LoadError::Refused(said) => Self::Refused(format!("it refuses the adapter: {said}")),
            LoadError::Broken(said) => Self::Failed(said),
        }
    }
}

/// Runs a request until its answer is complete, it has failed, or its client
/// has left. Dropping what is left of it then tells the worker to stop.
pub(super) async fn run(
    fleet: Arc<Inner>,
    ticket: Ticket,
    request: GenerateRequest,
    events: mpsc::Sender<Event>,
) {
    let mut transcript = Transcript::new(&fleet.options.tokenizer, &request, &events);
    let answering = answer(&fleet, &ticket, &request, &mut transcript);
    let in_time = async {
        match request.timeout {
            Some(timeout) => tokio::time::timeout(timeout, answering).await,
            None => Ok(answering.await),
        }
    };
    let ended = tokio::select! {
        ended = in_time => ended,
        () = events.closed() => return,
    };
    // Over before it says so, so that who waits for the end can count on it.
    drop(ticket);
    match ended {
        Ok(Ok(End::Stopped)) => transcript.stop(),
        Ok(Ok(End::Finished(reason, stop_reason))) => transcript.finish(reason, stop_reason),
        Err(_) if transcript.has_begun() => transcript.finish(FinishReason::Deadline, None),
        Ok(Err(error)) => transcript.fail(error),
        Err(_) => transcript.fail(GenerateError::Deadline),
    }
}

async fn answer(
    fleet: &Arc<Inner>,
    ticket: &Ticket,
    request: &GenerateRequest,
    transcript: &mut Transcript<'_>,
) -> Result<End, GenerateError> {
    let adapter = match &request.adapter {
        None => None,
        Some(adapter) => {
            if let Err(error) = fleet.published.publish(adapter).await {
                tracing::error!(adapter = %adapter.hash(), error, "an adapter could not be published");
                return Err(GenerateError::Worker);
            }
            Some((worker_name(adapter.hash()), adapter.hash()))
        }
    };
    let adapter = adapter.as_ref().map(|(name, hash)| (name.as_str(), *hash));
    let give_up_s = fleet.clock.monotonic_s() + fleet.options.queue_timeout.as_secs_f64();
    let (mut tried, mut forgot) = (BTreeSet::new(), BTreeSet::new());
    loop {
        let Ok(mut place) = wait_for_place(fleet, ticket, adapter, &tried, give_up_s).await else {
            return Err(GenerateError::Worker);
        };
        let worker = place.worker;
        let name = &fleet.pool.workers[worker].options.name;
        let hash = adapter.map(|(_, hash)| hash);
        let error = match ask(fleet, &mut place, hash, request, transcript).await {
            Ok(end) => {
                place.succeed();
                return Ok(end);
            }
            Err(error) => error,
        };
        let (failure, said) = match error {
            TryError::Busy(pause_s) => {
                fleet.pool.note_busy(worker, pause_s);
                continue;
            }
            TryError::Draining => {
                fleet.pool.note_draining(worker);
                continue;
            }
            TryError::UnknownModel => {
                fleet.pool.note_loaded(worker, &place.model, false);
                if !forgot.insert(worker) {
                    tried.insert(worker);
                }
                continue;
            }
            TryError::Refused(said) => {
                tracing::warn!(worker = name, said, "a worker refuses a request");
                tried.insert(worker);
                if tried.len() >= fleet.options.n_tries_max {
                    return Err(GenerateError::Worker);
                }
                continue;
            }
            TryError::Failed(said) => (GenerateError::Worker, said),
            TryError::Lied(said) => (GenerateError::Lied, said),
        };
        tracing::warn!(worker = name, said, "a worker has failed a request");
        tried.insert(worker);
        place.fail(said);
        drop(place);
        // What was passed on cannot be taken back, and a second answer could
        // differ from it.
        if transcript.has_begun()
            || tried.len() >= fleet.options.n_tries_max
            || !fleet.pool.may_retry()
        {
            return Err(failure);
        }
        crate::metrics::fleet_retried();
    }
}

async fn wait_for_place(
    fleet: &Arc<Inner>,
    ticket: &Ticket,
    adapter: Option<(&str, B256)>,
    tried: &BTreeSet<usize>,
    give_up_s: f64,
) -> Result<Place, Nobody> {
    let left_s = (give_up_s - fleet.clock.monotonic_s()).max(0.0);
    let waiting = async {
        loop {
            let changed = fleet.pool.changed();
            if let Some(place) = fleet.pool.try_place(ticket, adapter, tried)? {
                return Ok(place);
            }
            changed.await;
        }
    };
    tokio::time::timeout(Duration::from_secs_f64(left_s), waiting)
        .await
        .unwrap_or(Err(Nobody))
}

/// How an answer is complete.
enum End {
    Stopped,
    Finished(FinishReason, Option<StopReason>),
}

/// One try at one worker.
async fn ask(
    fleet: &Arc<Inner>,
    place: &mut Place,
    hash: Option<B256>,
    request: &GenerateRequest,
    transcript: &mut Transcript<'_>,
) -> Result<End, TryError> {
    if let Some(hash) = hash {
        fleet.published.load(&fleet.pool, place, hash).await?;
    }
    let client = &fleet.pool.workers[place.worker].client;
    let kind = fleet.pool.workers[place.worker].options.kind;
    // vLLM's white space in JSON, and its reading of a schema, are its own.
    let form = request.sampling.constraint.as_ref();
    let is_schema = form.is_some_and(|form| matches!(form.grammar(), Grammar::JsonSchema(_)));
    transcript.follow(kind == WorkerKind::Openledger || !is_schema);
    let body = protocol::completion_body(kind, &place.model, request).to_string();
    let ask = Ask {
        role: As::User,
        method: Method::POST,
        path: "/v1/completions",
        body: Some(Bytes::from(body)),
        timeout: fleet.options.first_token_timeout,
    };
    let mut reply = client.send(&ask).await?;
    if reply.status != StatusCode::OK {
        return Err(refused(client, reply).await);
    }
    let n_ids = request.prompt_tokens.len() + request.max_tokens;
    let line_max_size_bytes = FRAME_MAX_SIZE_BYTES + n_ids * ID_MAX_SIZE_BYTES;
    let body_max_size_bytes = line_max_size_bytes + request.max_tokens * EVENT_MAX_SIZE_BYTES;
    let mut lines = EventLines::new(line_max_size_bytes, body_max_size_bytes);
    loop {
        let patience = if transcript.has_begun() {
            fleet.options.idle_timeout
        } else {
            fleet.options.first_token_timeout
        };
        let bytes = tokio::time::timeout(patience, reply.next())
            .await
            .map_err(|_| TryError::Failed("no token came in time".to_owned()))??;
        let Some(bytes) = bytes else {
            return Err(TryError::Failed("its answer has no end".to_owned()));
        };
        let events = lines.push(&bytes);
        for data in events.map_err(|error| TryError::Lied(error.to_string()))? {
            let chunk = protocol::chunk(&data).map_err(TryError::Lied)?;
            if let Some(end) = take(fleet, place, request, transcript, chunk)? {
                if matches!(end, End::Finished(..)) {
                    let (fleet, worker) = (Arc::clone(fleet), place.worker);
                    tokio::spawn(async move { read_end(&fleet, worker, reply).await });
                }
                return Ok(end);
            }
        }
    }
}

/// Takes a part of an answer; `Some` if it was the last.
fn take(
    fleet: &Inner,
    place: &Place,
    request: &GenerateRequest,
    transcript: &mut Transcript<'_>,
    chunk: Chunk,
) -> Result<Option<End>, TryError> {
    let lied = |said: String| Err(TryError::Lied(said));
    let tokens = match chunk {
        Chunk::Done => {
            return Err(TryError::Failed(
                "its answer has no reason to end".to_owned(),
            ));
        }
        Chunk::Failed { message } => return Err(TryError::Failed(message)),
        Chunk::Tokens(tokens) => tokens,
    };
    let Tokens {
        model,
        token_ids,
        logprobs,
        prompt_token_ids,
        finish_reason,
        stop_token_id,
    } = tokens;
    if model != place.model {
        return lied(format!(
            "asked for {:?}, it answers as {model:?}",
            place.model
        ));
    }
    if prompt_token_ids.is_some_and(|ids| ids != request.prompt_tokens) {
        return lied("it has answered another prompt".to_owned());
    }
    let n_ids = token_ids.len();
    let sampling = &request.sampling;
    if sampling.n_logprobs.is_some() && logprobs.len() != n_ids {
        return lied("its tokens have no log-probabilities".to_owned());
    }
    let mut logprobs = logprobs.into_iter();
    for (n, id) in token_ids.into_iter().enumerate() {
        let of_token = sampling
            .n_logprobs
            .and_then(|n_top| protocol::token_logprobs(logprobs.next()?, n_top));
        let is_end = sampling.stop_token_ids.contains(&id)
            || !sampling.ignores_end && fleet.options.tokenizer.is_end(id);
        if is_end {
            // vLLM counts the end token as part of the answer; we do not.
            if n + 1 == n_ids && finish_reason == Some(FinishReason::Stop) {
                break;
            }
            return lied("its answer goes on after its end".to_owned());
        }
        if id as usize >= fleet.options.n_vocab {
            return lied(format!("there is no token {id}"));
        }
        if transcript.is_full() {
            return lied("it sends more tokens than were asked for".to_owned());
        }
        if sampling.n_logprobs.is_some() && of_token.is_none() {
            return lied("it does not name tokens by their ids".to_owned());
        }
        match transcript.push(id, of_token) {
            Ok(false) => {}
            Ok(true) => return Ok(Some(End::Stopped)),
            Err(NotTheForm) => return lied("its answer has another form".to_owned()),
        }
    }
    if finish_reason == Some(FinishReason::Stop) && !transcript.may_end() {
        return lied("its answer ends before its form is complete".to_owned());
    }
    // An own worker ends at the last token by itself, and so does vLLM.
    let stop_token_id = stop_token_id.filter(|id| sampling.stop_token_ids.contains(id));
    Ok(finish_reason.map(|reason| End::Finished(reason, stop_token_id.map(StopReason::Token))))
}

/// What a reply that is no success means.
async fn refused(client: &super::client::Client, mut reply: Reply) -> TryError {
    let body = tokio::time::timeout(END_TIMEOUT, reply.read_to_end(ERROR_MAX_SIZE_BYTES)).await;
    let body = match body {
        Ok(Ok(body)) => body,
        Ok(Err(_)) | Err(_) => Vec::new(),
    };
    let (status, pause_s) = (reply.status, reply.retry_after_s);
    client.rest(reply);
    match protocol::refusal(status, &body) {
        Refusal::Busy => TryError::Busy(pause_s.unwrap_or(1.0)),
        Refusal::Draining => TryError::Draining,
        Refusal::UnknownModel => TryError::UnknownModel,
        Refusal::Request(said) => TryError::Refused(said),
        Refusal::Broken(said) => TryError::Failed(said),
    }
}

/// Reads what comes after the last token, and keeps the connection.
async fn read_end(fleet: &Inner, worker: usize, mut reply: Reply) {
    let reading = reply.read_to_end(FRAME_MAX_SIZE_BYTES);
    if let Ok(Ok(_)) = tokio::time::timeout(END_TIMEOUT, reading).await {
        fleet.pool.workers[worker].client.rest(reply);
    }
}
