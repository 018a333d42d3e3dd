//! A worker of the fleet in this process: vLLM's protocol over the real engine,
//! with faults.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONNECTION;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures::StreamExt as _;
use ol_model::Lora;
use ol_runtime::Shutdown;
use ol_serve::{
    AdapterRef, Constraint, ConstraintCompiler, EngineHandle, Event, FinishReason, GenerateRequest,
    Grammar, Sampling, StopReason, TokenLogprobs,
};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::support::{base, engine};

/// How a worker misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// Answers 500.
    Broken,
    /// Answers 429 to the next request.
    BusyOnce,
    /// Says that it is draining.
    Draining,
    /// Never answers.
    Hangs,
    /// Breaks the connection after so many tokens, once they were read.
    DiesAfter(usize),
    /// Ends the body after so many tokens, without a reason.
    NoEnd(usize),
    /// Answers as another model.
    WrongModel,
    /// Answers another prompt.
    WrongPrompt,
    /// Sends a token that does not exist.
    UnknownToken,
    /// Sends text only.
    NoIds,
    /// Sends more tokens than were asked for.
    TooMany,
    /// Sends a line that never ends.
    EndlessLine,
    /// Sends comments for ever.
    EndlessComments,
    /// Sends what is no JSON.
    Garbage,
    /// Knows of no forms, and passes over the field that asks for one.
    AnyForm,
    /// Knows of no log-probabilities.
    NoLogprobs,
}

struct Shared {
    engine: EngineHandle,
    adapters: Mutex<BTreeMap<String, Arc<Lora>>>,
    loads: Mutex<Vec<String>>,
    fault: Mutex<Fault>,
    n_asked: AtomicUsize,
    /// The tokens before a fault were read.
    were_read: Arc<Notify>,
}

pub(crate) struct TestWorker {
    address: SocketAddr,
    shared: Arc<Shared>,
    shutdown: Shutdown,
    server: JoinHandle<()>,
}

impl TestWorker {
    pub(crate) async fn start() -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0))).await
    }

    pub(crate) async fn start_at(address: SocketAddr) -> Self {
        let shared = Arc::new(Shared {
            engine: engine(),
            adapters: Mutex::default(),
            loads: Mutex::default(),
            fault: Mutex::new(Fault::None),
            n_asked: AtomicUsize::new(0),
            were_read: Arc::default(),
        });
        let routes = Router::new()
            .route("/health", get(health))
            .route("/v1/models", get(models))
            .route("/v1/completions", post(completions))
            .route("/v1/load_lora_adapter", post(load))
            .route("/v1/unload_lora_adapter", post(unload))
            .with_state(Arc::clone(&shared));
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = Shutdown::new();
        let stop = shutdown.clone();
        let server = tokio::spawn(async move {
            tokio::select! {
                served = axum::serve(listener, routes) => served.unwrap(),
                () = stop.triggered() => {}
            }
        });
        Self {
            address,
            shared,
            shutdown,
            server,
        }
    }

    /// Goes without a word.
    pub(crate) async fn stop(self) -> SocketAddr {
        // Connections that are open answer no more.
        self.set(Fault::Broken);
        self.shutdown.trigger();
        self.server.await.unwrap();
        self.address
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn set(&self, fault: Fault) {
        *self.shared.fault.lock().unwrap() = fault;
    }

    /// Says that the tokens before a fault were read.
    pub(crate) fn were_read(&self) {
        self.shared.were_read.notify_one();
    }

    /// Requests for tokens that came.
    pub(crate) fn n_asked(&self) -> usize {
        self.shared.n_asked.load(Ordering::Relaxed)
    }

    pub(crate) fn n_running(&self) -> usize {
        self.shared.engine.stats().n_running
    }

    pub(crate) fn loads(&self) -> Vec<String> {
        self.shared.loads.lock().unwrap().clone()
    }

    pub(crate) fn n_adapters(&self) -> usize {
        self.shared.adapters.lock().unwrap().len()
    }

    pub(crate) fn forget_adapters(&self) {
        self.shared.adapters.lock().unwrap().clear();
    }
}

type Worker = State<Arc<Shared>>;

impl Shared {
    fn fault(&self) -> Fault {
        *self.fault.lock().unwrap()
    }
}

async fn health(State(worker): Worker) -> Response {
    match worker.fault() {
        Fault::Draining => {
            let body = Json(json!({"status": "draining"}));
            (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
        }
        // Closed, so that whoever starts at this address next is asked and not we.
        Fault::Broken => {
            (StatusCode::INTERNAL_SERVER_ERROR, [(CONNECTION, "close")]).into_response()
        }
        _ => StatusCode::OK.into_response(),
    }
}

async fn models(State(worker): Worker) -> Json<Value> {
    let adapters = worker.adapters.lock().unwrap();
    let cards = adapters
        .keys()
        .map(|name| json!({"id": name, "parent": "base"}));
    let data: Vec<Value> = [json!({"id": "base"})].into_iter().chain(cards).collect();
    Json(json!({"object": "list", "data": data}))
}

fn error(status: u16, message: &str) -> Response {
    let status = StatusCode::from_u16(status).unwrap();
    (status, Json(json!({"error": {"message": message}}))).into_response()
}

async fn load(State(worker): Worker, Json(body): Json<Value>) -> Response {
    let name = body["lora_name"].as_str().unwrap().to_owned();
    let path = Path::new(body["lora_path"].as_str().unwrap());
    let mut adapters = worker.adapters.lock().unwrap();
    if adapters.contains_key(&name) {
        return error(400, "The lora adapter has already been loaded.");
    }
    let Ok(lora) = Lora::load(path, base().config()) else {
        return error(404, "No adapter found");
    };
    worker.loads.lock().unwrap().push(name.clone());
    adapters.insert(name, Arc::new(lora));
    "Success".into_response()
}

async fn unload(State(worker): Worker, Json(body): Json<Value>) -> Response {
    let name = body["lora_name"].as_str().unwrap();
    match worker.adapters.lock().unwrap().remove(name) {
        Some(_) => "Success".into_response(),
        None => error(404, "not found"),
    }
}

async fn completions(State(worker): Worker, Json(body): Json<Value>) -> Response {
    worker.n_asked.fetch_add(1, Ordering::Relaxed);
    let fault = worker.fault();
    match fault {
        Fault::Broken => return ([(CONNECTION, "close")], error(500, "broken")).into_response(),
        Fault::Draining => return error(503, "draining"),
        Fault::Hangs => std::future::pending::<()>().await,
        Fault::BusyOnce => {
            *worker.fault.lock().unwrap() = Fault::None;
            return error(429, "full");
        }
        Fault::EndlessLine => return endless("x"),
        Fault::EndlessComments => return endless(": and so on\n"),
        Fault::Garbage => return "data: {\"choices\":\n\n".into_response(),
        _ => {}
    }
    let model = body["model"].as_str().unwrap().to_owned();
    let adapter = match worker.adapters.lock().unwrap().get(&model) {
        Some(lora) => Some(AdapterRef::resident(Arc::clone(lora))),
        None if model == "base" => None,
        None => return error(404, "The model does not exist."),
    };
    let prompt: Vec<u32> = serde_json::from_value(body["prompt"].clone()).unwrap();
    let max_tokens = usize::try_from(body["max_tokens"].as_u64().unwrap()).unwrap();
    assert_eq!(body["return_token_ids"], json!(true));
    #[expect(clippy::cast_possible_truncation, reason = "they were f32")]
    let number = |name: &str| body[name].as_f64().unwrap() as f32;
    let n_extra = usize::from(fault == Fault::TooMany);
    let form = body.get("structured_outputs");
    let n_logprobs = body.get("logprobs").and_then(Value::as_u64);
    if n_logprobs.is_some() {
        assert_eq!(body["return_tokens_as_token_ids"], json!(true));
    }
    let request = GenerateRequest {
        adapter,
        sampling: Sampling {
            temperature: number("temperature"),
            top_p: number("top_p"),
            seed: body["seed"].as_i64().unwrap().cast_unsigned(),
            n_logprobs: n_logprobs.map(|n| u32::try_from(n).unwrap()),
            stop_token_ids: serde_json::from_value(body["stop_token_ids"].clone())
                .unwrap_or_default(),
            constraint: form.filter(|_| fault != Fault::AnyForm).map(constraint),
            ..Sampling::GREEDY
        },
        ..GenerateRequest::new(prompt.clone(), max_tokens + n_extra)
    };
    let has_logprobs = n_logprobs.is_some();
    let answer = worker.engine.submit(request).unwrap();
    let were_read = Arc::clone(&worker.were_read);
    let start = (answer, 0_usize, Some((model, prompt, were_read)));
    let chunks = futures::stream::unfold(start, move |(mut answer, n, head)| async move {
        let (model, prompt, were_read) = head?;
        if let Fault::DiesAfter(n_max) = fault
            && n == n_max
        {
            // What is not flushed yet would be lost with the connection.
            if n > 0 {
                were_read.notified().await;
            }
            return Some((Err("it dies"), (answer, n, None)));
        }
        if fault == Fault::NoEnd(n) {
            return None;
        }
        let mut logprobs = Value::Null;
        let mut stop_reason = Value::Null;
        let (ids, reason) = match answer.next().await? {
            Event::Token {
                id,
                logprobs: given,
                ..
            } => {
                if let Some(given) = given.filter(|_| fault != Fault::NoLogprobs) {
                    logprobs = logprobs_of(id, &given);
                }
                (vec![id], None)
            }
            Event::Done(completion) => match completion.finish_reason {
                // As vLLM: the end token is among the ids.
                FinishReason::Stop => {
                    let mut id = crate::support::tokenizer().end_id();
                    if let Some(StopReason::Token(stop_id)) = completion.stop_reason {
                        (id, stop_reason) = (stop_id, json!(stop_id));
                    }
                    if has_logprobs {
                        let certain = TokenLogprobs {
                            logprob: 0.0,
                            rank: 1,
                            top: Vec::new(),
                        };
                        logprobs = logprobs_of(id, &certain);
                    }
                    (vec![id], Some("stop"))
                }
                _ => (Vec::new(), Some("length")),
            },
            Event::Failed(_) => return None,
        };
        let mut choice = json!({
            "index": 0, "text": if ids.is_empty() { "" } else { "x" },
            "finish_reason": reason, "token_ids": ids, "logprobs": logprobs,
            "stop_reason": stop_reason,
        });
        match fault {
            Fault::UnknownToken => choice["token_ids"] = json!([u32::MAX]),
            Fault::NoIds => choice["token_ids"] = Value::Null,
            Fault::WrongPrompt => choice["prompt_token_ids"] = json!([1]),
            _ if n == 0 => choice["prompt_token_ids"] = json!(prompt),
            _ => {}
        }
        let name = if fault == Fault::WrongModel {
            "other"
        } else {
            &model
        };
        let mut data = format!("data: {}\n\n", json!({"model": name, "choices": [choice]}));
        if reason.is_some() {
            data.push_str("data: [DONE]\n\n");
        }
        let head = reason.is_none().then_some((model, prompt, were_read));
        Some((Ok(Bytes::from(data)), (answer, n + 1, head)))
    });
    Response::new(Body::from_stream(chunks))
}

/// As vLLM: the token that was drawn is always one of those shown.
fn logprobs_of(id: u32, given: &TokenLogprobs) -> Value {
    let drawn = (id, given.logprob);
    let shown = given.top.iter().chain([&drawn]);
    let top: serde_json::Map<String, Value> = shown
        .map(|(id, value)| (format!("token_id:{id}"), json!(value)))
        .collect();
    json!({
        "tokens": [format!("token_id:{id}")], "token_logprobs": [given.logprob],
        "top_logprobs": [top], "text_offset": [0],
    })
}

fn constraint(form: &Value) -> Constraint {
    let grammar = match form.as_object().unwrap().iter().next().unwrap() {
        (kind, schema) if kind == "json" => Grammar::JsonSchema(schema.clone()),
        (kind, pattern) if kind == "regex" => Grammar::Regex(pattern.as_str().unwrap().to_owned()),
        (_, texts) => Grammar::Choice(serde_json::from_value(texts.clone()).unwrap()),
    };
    let compiler = ConstraintCompiler::new(&crate::support::tokenizer()).unwrap();
    compiler.compile(&grammar).unwrap()
}

fn endless(part: &'static str) -> Response {
    let parts = futures::stream::repeat(part).map(|part| Ok::<_, Infallible>(part.repeat(1_000)));
    Response::new(Body::from_stream(parts))
}
