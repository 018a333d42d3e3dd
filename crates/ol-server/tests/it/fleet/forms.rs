//! Log-probabilities, forms and reasons to stop, through workers of both kinds.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ol_runtime::{Shutdown, SystemClock};
use ol_serve::{
    Answer, ConstraintCompiler, EngineHandle, EngineOptions, Event, GenerateError, GenerateRequest,
    Grammar, Sampling, StopReason,
};
use ol_server::Access;
use ol_server::api::{self, ApiState};
use ol_server::fleet::{Fleet, FleetOptions, WorkerOptions};
use ol_server::keys::{KeyLimits, NewKey, Scope};
use ol_server::plain::{Plain, PlainOptions};
use serde_json::json;
use tempfile::TempDir;

use super::worker::Fault;
use super::{World, request};
use crate::support::{CONTEXT_TOKENS, adapter_store, base, engine, tokenizer};

fn with_form(grammar: &Grammar) -> GenerateRequest {
    let compiler = ConstraintCompiler::new(&tokenizer()).unwrap();
    GenerateRequest {
        sampling: Sampling {
            constraint: Some(compiler.compile(grammar).unwrap()),
            ..request(1, 5).sampling
        },
        max_tokens: 200,
        ..request(1, 5)
    }
}

fn grammars() -> [Grammar; 3] {
    [
        Grammar::JsonSchema(json!({
            "type": "object", "additionalProperties": false, "required": ["law", "n"],
            "properties": {"law": {"enum": ["who", "how"]}, "n": {"type": "integer", "maximum": 9}},
        })),
        Grammar::Regex("[a-c]{3,5} the".to_owned()),
        Grammar::Choice(vec!["bridge".to_owned(), "law".to_owned()]),
    ]
}

/// All events, with what a worker does not know taken out: how likely a token
/// was among those that were not asked for.
async fn events_of(mut answer: Answer) -> Vec<Event> {
    let mut events = Vec::new();
    while let Some(mut event) = answer.next().await {
        match &mut event {
            Event::Token {
                logprobs: Some(logprobs),
                ..
            } => logprobs.rank = 0,
            Event::Done(completion) => completion.tokens_cached = 0,
            _ => {}
        }
        events.push(event);
    }
    events
}

/// What goes beyond tokens and text.
fn requests() -> Vec<GenerateRequest> {
    let mut requests: Vec<GenerateRequest> = grammars().iter().map(with_form).collect();
    for n_top in [0, 3, 20] {
        let mut asked = request(2, 7);
        asked.sampling.n_logprobs = Some(n_top);
        requests.push(asked);
    }
    requests
}

/// A server of this program with workers' routes over a real engine.
struct OwnWorker {
    url: String,
    admin_key: String,
    stop: Shutdown,
}

async fn own_worker(keys: &Path, adapters: &Path) -> OwnWorker {
    let engine = EngineHandle::start(base(), tokenizer(), 1, EngineOptions::default()).unwrap();
    let clock = Arc::new(SystemClock::new());
    let options = PlainOptions::new(keys.to_owned(), "base");
    let plain = Plain::new(options, engine, adapter_store(adapters), clock).unwrap();
    let new = NewKey {
        account: None,
        label: "gateway".to_owned(),
        scopes: vec![Scope::Infer, Scope::Admin],
        limits: KeyLimits::default(),
    };
    let admin_key = plain.keys().add(new).unwrap().expose().to_owned();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (state, stop) = (ApiState::new(), Shutdown::new());
    state.set_ready(plain);
    let served = api::serve_on(state, Access::default(), None, listener, stop.clone());
    tokio::spawn(served);
    OwnWorker {
        url,
        admin_key,
        stop,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn own_workers_say_all_that_one_engine_says() {
    let dir = TempDir::new().unwrap();
    let adapters = dir.path().join("adapters");
    std::fs::create_dir(&adapters).unwrap();
    let mut workers = Vec::new();
    for n in 0..2 {
        workers.push(own_worker(&dir.path().join(format!("keys {n}")), &adapters).await);
    }
    let options = workers.iter().map(|worker| WorkerOptions {
        key: Some(worker.admin_key.clone()),
        ..WorkerOptions::new(&worker.url)
    });
    let shape = (base().config().vocab_size, CONTEXT_TOKENS);
    let options = FleetOptions {
        probe_interval: Duration::from_millis(20),
        ..FleetOptions::new(
            options.collect(),
            base().hash(),
            tokenizer(),
            shape,
            adapters,
        )
    };
    let fleet = Fleet::start(options, Arc::new(SystemClock::new()))
        .await
        .unwrap();
    let alone = engine();
    let mut requests = requests();
    // A text and a token that the answer has, so that they can end it.
    let first = events_of(alone.submit(request(2, 7)).unwrap()).await;
    let known = first[4..].iter().find_map(|event| match event {
        Event::Token { id, text_delta, .. } if !text_delta.is_empty() => Some((*id, text_delta)),
        _ => None,
    });
    let (id, text) = known.unwrap();
    let mut asked = request(2, 7);
    asked.sampling.n_logprobs = Some(1);
    asked.stop = vec!["never".to_owned(), text.clone()];
    requests.push(asked);
    let mut asked = request(2, 7);
    asked.sampling.stop_token_ids = vec![id];
    requests.push(asked);
    let mut stops = Vec::new();
    for request in requests {
        let expected = events_of(alone.submit(request.clone()).unwrap()).await;
        let given = events_of(fleet.submit(request).unwrap()).await;
        assert_eq!(given, expected);
        if let Some(Event::Done(completion)) = given.last() {
            stops.extend(completion.stop_reason.clone());
        }
    }
    assert_eq!(
        stops,
        [StopReason::Text(text.clone()), StopReason::Token(id)]
    );
    fleet.shutdown().await;
    for worker in workers {
        worker.stop.trigger();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_vllm_says_means_the_same() {
    let world = World::new(2, |_| {}).await;
    for request in requests() {
        let expected = events_of(engine().submit(request.clone()).unwrap()).await;
        let given = events_of(world.fleet.submit(request).unwrap()).await;
        assert_eq!(given, expected);
    }
}

/// A server that does not know a field passes over it in silence; nobody gets an
/// answer of another form because of that.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_of_another_form_is_a_lie() {
    let world = World::new(1, |options| options.n_tries_max = 1).await;
    let mut with_logprobs = request(1, 1);
    with_logprobs.sampling.n_logprobs = Some(2);
    let form = |n: usize| with_form(&grammars()[n]);
    for (fault, request) in [
        (Fault::AnyForm, form(0)),
        (Fault::AnyForm, form(1)),
        (Fault::AnyForm, form(2)),
        (Fault::NoLogprobs, with_logprobs),
    ] {
        world.workers[0].set(fault);
        let events = events_of(world.fleet.submit(request.clone()).unwrap()).await;
        let Some(Event::Failed(error)) = events.last() else {
            panic!("{fault:?}: {events:?}");
        };
        assert_eq!(*error, GenerateError::Lied, "{fault:?}");
        world.workers[0].set(Fault::None);
        let events = events_of(world.fleet.submit(request).unwrap()).await;
        assert!(matches!(events.last(), Some(Event::Done(_))), "{events:?}");
    }
}
