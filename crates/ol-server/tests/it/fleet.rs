//! Goal: through a fleet, every request gets the tokens that one engine gives,
//! or fails and costs nothing, whatever workers do.
//! Method: workers in this process that speak vLLM's protocol over the real
//! engine and can be told to misbehave; the engine itself is the oracle.

mod forms;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use ol_runtime::SystemClock;
use ol_serve::{
    AdapterRef, Answer, Completion, Event, GenerateError, GenerateRequest, Sampling, SubmitError,
};
use ol_server::Backend;
use ol_server::fleet::{Fleet, FleetOptions, WorkerHealth, WorkerOptions};
use serde_json::json;
use tempfile::TempDir;

use self::worker::{Fault, TestWorker};
use crate::support::{
    CONTEXT_TOKENS, Disk, OPEN, OPERATOR, PAYER, adapter, base, engine, events, prepaid_wei,
    question, tokenizer,
};

struct World {
    workers: Vec<TestWorker>,
    fleet: Fleet,
    _dir: TempDir,
}

impl World {
    async fn new(n_workers: usize, change: impl FnOnce(&mut FleetOptions)) -> Self {
        let mut workers = Vec::new();
        for _ in 0..n_workers {
            workers.push(TestWorker::start().await);
        }
        let dir = tempfile::tempdir().unwrap();
        let mut options = options(&workers, &dir);
        change(&mut options);
        let fleet = Fleet::start(options, Arc::new(SystemClock::new())).await;
        Self {
            workers,
            fleet: fleet.unwrap(),
            _dir: dir,
        }
    }

    /// The worker that an adapter's requests go to, and another one.
    async fn first_and_other(&self, request: &GenerateRequest) -> (&TestWorker, &TestWorker) {
        let before: Vec<usize> = self.workers.iter().map(TestWorker::n_asked).collect();
        collect(self.fleet.submit(request.clone()).unwrap())
            .await
            .unwrap();
        let first = (0..before.len())
            .find(|&n| self.workers[n].n_asked() > before[n])
            .unwrap();
        (
            &self.workers[first],
            &self.workers[(first + 1) % before.len()],
        )
    }
}

fn options(workers: &[TestWorker], dir: &TempDir) -> FleetOptions {
    let workers = workers.iter().map(|worker| WorkerOptions {
        key: Some("worker key".to_owned()),
        ..WorkerOptions::new(&worker.url())
    });
    FleetOptions {
        probe_interval: Duration::from_millis(20),
        ..FleetOptions::new(
            workers.collect(),
            base().hash(),
            tokenizer(),
            (base().config().vocab_size, CONTEXT_TOKENS),
            dir.path().to_owned(),
        )
    }
}

fn request(seed: u32, n: u64) -> GenerateRequest {
    let prompt = tokenizer().encode_prompt("who hacked the bridge").unwrap();
    GenerateRequest {
        adapter: Some(AdapterRef::resident(adapter(seed))),
        sampling: Sampling {
            temperature: 1.1,
            top_p: 0.9,
            seed: u64::MAX - n,
            ..Sampling::GREEDY
        },
        ..GenerateRequest::new(prompt, 24)
    }
}

async fn collect(mut answer: Answer) -> Result<(String, Completion), GenerateError> {
    let (mut text, mut ids) = (String::new(), Vec::new());
    while let Some(event) = answer.next().await {
        match event {
            Event::Token { id, text_delta, .. } => {
                ids.push(id);
                text.push_str(&text_delta);
            }
            Event::Done(completion) => {
                text.push_str(&completion.text_delta);
                assert_eq!(completion.token_ids, ids);
                return Ok((text, completion));
            }
            Event::Failed(error) => return Err(error),
        }
    }
    panic!("an answer without end");
}

async fn oracle(request: &GenerateRequest) -> (String, Completion) {
    let mut given = collect(engine().submit(request.clone()).unwrap())
        .await
        .unwrap();
    given.1.tokens_cached = 0;
    given
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_gives_the_tokens_of_one_engine() {
    let world = World::new(3, |_| {}).await;
    for seed in 1..7 {
        let mut request = request(seed, u64::from(seed));
        if seed == 3 {
            request.stop = vec!["e".to_owned()];
        }
        let expected = oracle(&request).await;
        for _ in 0..2 {
            let given = collect(world.fleet.submit(request.clone()).unwrap()).await;
            assert_eq!(given.unwrap(), expected);
        }
    }
    let n_loads: usize = world.workers.iter().map(|w| w.loads().len()).sum();
    assert_eq!(n_loads, 6, "an adapter goes where it is loaded");
    // The base model has no adapter, and any worker will do.
    let mut plain = request(1, 1);
    plain.adapter = None;
    let given = collect(world.fleet.submit(plain.clone()).unwrap()).await;
    assert_eq!(given.unwrap(), oracle(&plain).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_before_the_first_token_is_answered_by_another() {
    for fault in [
        Fault::Broken,
        Fault::Hangs,
        Fault::DiesAfter(0),
        Fault::WrongModel,
        Fault::WrongPrompt,
        Fault::UnknownToken,
        Fault::NoIds,
        Fault::EndlessLine,
        Fault::EndlessComments,
        Fault::NoEnd(0),
        Fault::Garbage,
    ] {
        let world = World::new(2, |options| {
            options.first_token_timeout = Duration::from_secs(3);
        })
        .await;
        let request = request(1, 7);
        let expected = oracle(&request).await;
        let (first, other) = world.first_and_other(&request).await;
        first.set(fault);
        let n_before = other.n_asked();
        let given = collect(world.fleet.submit(request.clone()).unwrap()).await;
        assert_eq!(given.as_ref().ok(), Some(&expected), "{fault:?}");
        assert_eq!(other.n_asked(), n_before + 1, "{fault:?}");
        let status = world.fleet.status();
        let failed = status.iter().find(|worker| worker.n_failed > 0);
        assert!(failed.unwrap().last_error.is_some(), "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_after_the_first_token_is_not_tried_again() {
    for (fault, error) in [
        (Fault::DiesAfter(3), GenerateError::Worker),
        (Fault::NoEnd(3), GenerateError::Worker),
        (Fault::TooMany, GenerateError::Lied),
    ] {
        let world = World::new(2, |_| {}).await;
        let request = request(1, 7);
        let (first, other) = world.first_and_other(&request).await;
        first.set(fault);
        let n_before = other.n_asked();
        let mut answer = world.fleet.submit(request.clone()).unwrap();
        for _ in 0..3 {
            let event = answer.next().await;
            assert!(matches!(event, Some(Event::Token { .. })), "{fault:?}");
        }
        first.were_read();
        assert_eq!(collect(answer).await.unwrap_err(), error, "{fault:?}");
        assert_eq!(other.n_asked(), n_before, "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_worker_gets_nothing_until_it_is_back() {
    let world = World::new(2, |_| {}).await;
    let request = request(1, 7);
    let (first, other) = world.first_and_other(&request).await;
    let name = first.url().trim_start_matches("http://").to_owned();
    assert!(world.fleet.set_drained(&name, true).unwrap().is_drained);
    let (n_first, n_other) = (first.n_asked(), other.n_asked());
    for _ in 0..3 {
        collect(world.fleet.submit(request.clone()).unwrap())
            .await
            .unwrap();
    }
    assert_eq!((first.n_asked(), other.n_asked()), (n_first, n_other + 3));
    let other_name = other.url().trim_start_matches("http://").to_owned();
    world.fleet.set_drained(&other_name, true).unwrap();
    let refused = world.fleet.submit(request.clone()).unwrap_err();
    assert_eq!(refused, SubmitError::Unavailable);
    world.fleet.set_drained(&name, false).unwrap();
    collect(world.fleet.submit(request.clone()).unwrap())
        .await
        .unwrap();
    assert_eq!(first.n_asked(), n_first + 1);
    assert!(world.fleet.set_drained("nobody", true).is_none());

    // Its own word counts too.
    first.set(Fault::Draining);
    while world
        .fleet
        .status()
        .iter()
        .all(|w| w.health != WorkerHealth::Draining)
    {
        tokio::task::yield_now().await;
    }
    assert_eq!(
        world.fleet.submit(request).unwrap_err(),
        SubmitError::Unavailable
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_or_forgotten_adapter_is_never_answered_by_other_weights() {
    let world = World::new(1, |options| options.workers[0].adapters_max = 2).await;
    // Four versions under one name for the client, two places at the worker.
    for round in 0..3 {
        for version in 1..5 {
            let request = request(version, round);
            let given = collect(world.fleet.submit(request.clone()).unwrap()).await;
            assert_eq!(given.unwrap(), oracle(&request).await);
            assert!(world.workers[0].n_adapters() <= 2, "its limit is kept");
        }
        // As after a restart.
        world.workers[0].forget_adapters();
        let request = request(4, round + 10);
        let given = collect(world.fleet.submit(request.clone()).unwrap()).await;
        assert_eq!(given.unwrap(), oracle(&request).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn past_the_slots_requests_wait_and_past_the_queue_they_are_refused() {
    let world = World::new(1, |options| {
        options.workers[0].slots = 1;
        options.n_waiting_max = 1;
    })
    .await;
    let mut long = request(1, 1);
    long.max_tokens = 20_000;
    long.sampling = Sampling::GREEDY;
    let mut running = world.fleet.submit(long).unwrap();
    assert!(matches!(running.next().await, Some(Event::Token { .. })));
    let waiting = world.fleet.submit(request(1, 2)).unwrap();
    let refused = world.fleet.submit(request(1, 3)).unwrap_err();
    assert!(matches!(
        refused,
        SubmitError::Overloaded { n_waiting: 1, .. }
    ));
    assert_eq!(world.fleet.stats().n_waiting, 1);
    // Who leaves makes room, and the worker stops.
    drop(running);
    collect(waiting).await.unwrap();
    while world.workers[0].n_running() > 0 {
        tokio::task::yield_now().await;
    }
    // A worker that says it is full is asked again when it has room.
    world.workers[0].set(Fault::BusyOnce);
    collect(world.fleet.submit(request(1, 4)).unwrap())
        .await
        .unwrap();
    world.fleet.shutdown().await;
    assert_eq!(
        world.fleet.submit(request(1, 5)).unwrap_err(),
        SubmitError::Stopped
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_goes_is_noticed_and_one_that_comes_back_is_used() {
    let mut world = World::new(2, |_| {}).await;
    let request = request(1, 7);
    let expected = oracle(&request).await;
    let gone = world.workers.remove(0);
    let name = gone.url().trim_start_matches("http://").to_owned();
    let address = gone.stop().await;
    let health = |fleet: &Fleet| {
        let all = fleet.status();
        all.into_iter().find(|w| w.name == name).unwrap().health
    };
    for _ in 0..4 {
        let given = collect(world.fleet.submit(request.clone()).unwrap()).await;
        assert_eq!(given.unwrap(), expected);
    }
    while health(&world.fleet) != WorkerHealth::Down {
        tokio::task::yield_now().await;
    }
    let back = TestWorker::start_at(address).await;
    while health(&world.fleet) != WorkerHealth::Up {
        tokio::task::yield_now().await;
    }
    let other = world.workers[0]
        .url()
        .trim_start_matches("http://")
        .to_owned();
    world.fleet.set_drained(&other, true).unwrap();
    let given = collect(world.fleet.submit(request).unwrap()).await;
    assert_eq!(given.unwrap(), expected);
    assert_eq!(back.n_asked(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_worker_would_take_is_refused_before() {
    let world = World::new(1, |_| {}).await;
    let with = |change: &dyn Fn(&mut GenerateRequest)| {
        let mut request = request(1, 1);
        change(&mut request);
        world.fleet.submit(request).unwrap_err()
    };
    let refused = with(&|request| request.max_tokens = CONTEXT_TOKENS);
    assert!(matches!(refused, SubmitError::TooLong { .. }));
    let refused = with(&|request| request.prompt_tokens[0] = u32::MAX);
    assert!(matches!(refused, SubmitError::UnknownToken { .. }));
    let refused = with(&|request| request.prompt_tokens.clear());
    assert_eq!(refused, SubmitError::EmptyPrompt);
    assert_eq!(world.workers[0].n_asked(), 0);
}

/// The paying gateway over a fleet: same receipts, and never a charge for what
/// was not delivered.
#[test]
fn receipts_do_not_depend_on_who_computes() {
    let bodies: Vec<_> = (0..3)
        .map(|seed| question("legal", "the law", seed))
        .collect();
    let disk = Disk::new();
    let world = disk.start();
    let expected: Vec<_> = bodies.iter().map(|body| world.chat(body)).collect();
    world.stop();

    let disk = Disk::new();
    let dir = tempfile::tempdir().unwrap();
    let mut workers = Vec::new();
    let world = disk.start_as(OPERATOR, disk.options(), |runtime| {
        runtime.block_on(async {
            for _ in 0..2 {
                workers.push(TestWorker::start().await);
            }
            let options = options(&workers, &dir);
            let clock = Arc::new(SystemClock::new());
            Backend::from(Fleet::start(options, clock).await.unwrap())
        })
    });
    for (body, expected) in bodies.iter().zip(&expected) {
        let given = world.chat(body);
        assert_eq!(given["choices"], expected["choices"]);
        assert_eq!(given["openledger"]["status"], "settled");
        for part in ["fee_wei", "split", "pots"] {
            assert_eq!(given["openledger"][part], expected["openledger"][part]);
        }
    }
    let paid_wei = prepaid_wei(&world.node, PAYER);
    assert!(paid_wei < 100 * OPEN);

    // Every worker dies in the middle: an error ends the stream, and nothing is paid.
    for worker in &workers {
        worker.set(Fault::NoEnd(3));
    }
    let mut body = question("legal", "the law", 9);
    body["stream"] = json!(true);
    let reply = world.post(
        "/v1/chat/completions",
        Some(&world.key),
        body.to_string().as_bytes(),
    );
    let last = events(&reply.text).pop().unwrap();
    assert!(last.contains("\"error\""), "{last}");
    assert_eq!(prepaid_wei(&world.node, PAYER), paid_wei);
    assert!(disk.owed().is_empty());
    world.stop();
}
