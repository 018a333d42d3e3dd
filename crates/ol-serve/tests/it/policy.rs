//! Goal: nobody waits longer than promised, whatever others send.
//! Method: the engine turned by hand under floods; order and counts, no times.

use std::time::Duration;

use ol_serve::{
    EngineOptions, EngineParts, FinishReason, GenerateError, GenerateRequest, Observation,
    Observer, OverloadLimit, Priority, Sharing, SubmitError,
};

use crate::drive::{Driven, Reader};
use crate::support::{adapter, base, request, tokenizer};

fn options(n_rows_max: usize) -> EngineOptions {
    EngineOptions {
        n_rows_max,
        n_kv_tokens_max: 1024,
        n_step_tokens_max: 32,
        n_waiting_max: 400,
        n_waiting_per_tenant_max: 400,
        ..EngineOptions::default()
    }
}

fn of(tenant: &str, request: GenerateRequest) -> GenerateRequest {
    GenerateRequest {
        tenant: tenant.into(),
        ..request
    }
}

/// How many of the readers have begun.
fn n_begun(readers: &mut [Reader]) -> usize {
    readers
        .iter_mut()
        .filter_map(|r| r.read().then_some(()))
        .count()
}

/// Turns until `one` has begun; how many of `others` began meanwhile.
fn overtaken_by(driven: &mut Driven, one: &mut Reader, others: &mut [Reader]) -> usize {
    let before = n_begun(others);
    for _ in 0..10_000 {
        if one.read() {
            return n_begun(others) - before;
        }
        driven.scheduler.turn();
    }
    panic!("it waits for ever");
}

/// The bound of the policy module: of a flood that came first, one request for
/// each row may still begin, and one more while the charges are equal.
#[test]
fn a_flood_of_one_tenant_does_not_keep_another_waiting() {
    let mut driven = Driven::new(options(2));
    let mut flood: Vec<Reader> = (0..200)
        .map(|i| {
            driven
                .submit(&of("flood", request("the quick", 4 + i % 9)))
                .unwrap()
        })
        .collect();
    for _ in 0..20 {
        driven.scheduler.turn();
    }
    for _ in 0..5 {
        let mut one = driven.submit(&of("other", request("over the", 6))).unwrap();
        let n = overtaken_by(&mut driven, &mut one, &mut flood);
        assert!(n <= 3, "{n} of the flood went first");
    }
}

#[test]
fn two_tenants_that_always_wait_get_the_same_however_much_they_ask_for() {
    let mut driven = Driven::new(options(4));
    let submit = |tenant, max_tokens, adapter| {
        let alone = GenerateRequest {
            sharing: Sharing::Nobody,
            adapter,
            ..request("the quick", max_tokens)
        };
        driven.submit(&of(tenant, alone)).unwrap()
    };
    // Many adapters are no way to more than one tenant's share.
    let mut long: Vec<Reader> = (0..40)
        .map(|i| submit("long", 40, Some(adapter(4, i % 8))))
        .collect();
    let mut short: Vec<Reader> = (0..360).map(|_| submit("short", 2, None)).collect();
    for _ in 0..300 {
        driven.scheduler.turn();
    }
    // One for a token of a prompt, two for one of an answer.
    let charge = |readers: &mut [Reader]| -> usize {
        let begun = readers.iter_mut().filter_map(|r| r.read().then_some(&*r));
        begun
            .map(|r| r.request.prompt_tokens.len() + 2 * r.token_ids.len())
            .sum()
    };
    let (long, short) = (charge(&mut long), charge(&mut short));
    assert!(driven.engine.stats().n_waiting > 0, "both still wait");
    // Twice what the four rows can hold of the long ones.
    assert!(long.abs_diff(short) <= 2 * 2 * 4 * 40, "{long} and {short}");
    assert!(long.min(short) > 600, "{long} and {short}");
}

#[test]
fn a_hot_adapter_does_not_keep_another_of_the_same_tenant_waiting() {
    let mut driven = Driven::new(options(2));
    let hot = GenerateRequest {
        adapter: Some(adapter(4, 1)),
        ..request("the quick", 8)
    };
    let mut flood: Vec<Reader> = (0..200).map(|_| driven.submit(&hot).unwrap()).collect();
    for _ in 0..20 {
        driven.scheduler.turn();
    }
    let cold = GenerateRequest {
        adapter: Some(adapter(9, 7)),
        ..hot
    };
    let mut one = driven.submit(&cold).unwrap();
    let n = overtaken_by(&mut driven, &mut one, &mut flood);
    assert!(n <= 3, "{n} of the flood went first");
}

#[test]
fn urgent_requests_go_first_and_the_others_age() {
    let mut driven = Driven::new(options(1));
    let urgent = GenerateRequest {
        priority: Priority::Interactive,
        ..request("the quick", 3)
    };
    let batch = GenerateRequest {
        priority: Priority::Batch,
        ..of("other", request("over the", 3))
    };
    let mut first = driven.submit(&batch).unwrap();
    let mut waiting = driven.submit(&urgent).unwrap();
    let n = overtaken_by(&mut driven, &mut waiting, std::slice::from_mut(&mut first));
    assert_eq!(n, 0);
    driven.finish();
    // Without end, two new urgent ones each second.
    let mut late = driven.submit(&batch).unwrap();
    let mut seconds = 0;
    let mut kept = Vec::new();
    while !late.read() {
        for _ in 0..2 {
            kept.push(driven.submit(&urgent).unwrap());
        }
        driven.scheduler.turn();
        driven.clock.advance(Duration::from_secs(1));
        seconds += 1;
        assert!(seconds < 30, "it starves");
    }
    assert!(
        seconds >= 10,
        "it went first without having waited: {seconds} s"
    );
}

/// It makes room in the middle of its answer, and goes on as if nothing had been.
#[test]
fn an_urgent_request_takes_the_row_of_one_that_can_wait() {
    let mut driven = Driven::new(options(1));
    let batch = GenerateRequest {
        priority: Priority::Batch,
        sharing: Sharing::Nobody,
        ..request("over the lazy dog", 30)
    };
    let mut slow = driven.submit(&batch).unwrap();
    for _ in 0..12 {
        driven.scheduler.turn();
    }
    assert!(slow.read() && slow.end.is_none());
    let urgent = GenerateRequest {
        priority: Priority::Interactive,
        ..request("the quick", 5)
    };
    let mut quick = driven.submit(&urgent).unwrap();
    driven.scheduler.turn();
    assert!(quick.read(), "at once");
    assert_eq!(driven.engine.stats().n_preempted, 1);
    driven.finish();
    quick.check();
    slow.check();
    assert!(matches!(slow.end, Some(Ok(_))));
    driven.check_empty();
}

/// Four requests that fit alone but not together: the pool is too small for
/// what they grow to, so some make room, and all end.
#[test]
fn a_full_pool_preempts_and_never_blocks() {
    let mut driven = Driven::new(EngineOptions {
        n_kv_tokens_max: 128,
        n_prefix_tokens_max: 0,
        ..options(4)
    });
    let mut readers: Vec<Reader> = ["the quick", "over the", "lazy dog", "brown fox"]
        .iter()
        .map(|prompt| driven.submit(&request(prompt, 100)).unwrap())
        .collect();
    driven.finish();
    assert!(driven.engine.stats().n_preempted > 0);
    for reader in &mut readers {
        reader.check();
        assert!(matches!(reader.end, Some(Ok(_))));
    }
    driven.check_empty();
    assert_eq!(driven.engine.stats().n_pages_idle, 0);
}

/// Both write the same text at the same time: they end up on the same pages, so
/// the pool is not too small for the last of them.
#[test]
fn equal_texts_come_to_use_the_same_pages() {
    let mut driven = Driven::new(EngineOptions {
        n_kv_tokens_max: 128,
        ..options(2)
    });
    let submit = || driven.submit(&request("the quick", 100)).unwrap();
    let mut readers = [submit(), submit()];
    driven.finish();
    for reader in &mut readers {
        reader.check();
        assert!(matches!(reader.end, Some(Ok(_))));
    }
    let stats = driven.engine.stats();
    assert_eq!((stats.n_preempted, stats.n_pages_used), (0, 0));
}

#[test]
fn running_requests_get_a_token_in_every_pass_while_prompts_are_prefilled() {
    let mut driven = Driven::new(options(4));
    let mut running = driven.submit(&request("the quick", 60)).unwrap();
    driven.scheduler.turn();
    running.read();
    let mut long = request("over the lazy dog ", 4);
    long.prompt_tokens = long
        .prompt_tokens
        .iter()
        .copied()
        .cycle()
        .take(400)
        .collect();
    let mut long = driven.submit(&long).unwrap();
    let mut short = driven.submit(&request("brown fox", 4)).unwrap();
    let mut n_turns = 0;
    while !long.read() {
        let before = running.token_ids.len();
        driven.scheduler.turn();
        running.read();
        assert_eq!(running.token_ids.len(), before + 1);
        n_turns += 1;
        if n_turns == 2 {
            assert!(short.read(), "the short prompt waits for the long one");
        }
    }
    assert!(n_turns > 10);
    driven.finish();
    running.check();
    long.check();
}

#[test]
fn several_answers_to_one_prompt_compute_it_once() {
    let mut driven = Driven::new(options(8));
    let mut prompt = request("the quick brown fox jumps over the lazy dog", 6);
    prompt.prompt_tokens = prompt
        .prompt_tokens
        .iter()
        .copied()
        .cycle()
        .take(100)
        .collect();
    let requests: Vec<GenerateRequest> = (0..5)
        .map(|seed| {
            let mut request = prompt.clone();
            request.sampling.temperature = 1.5;
            request.sampling.seed = seed;
            request
        })
        .collect();
    let answers = driven.engine.submit_all(requests.clone()).unwrap();
    let mut readers: Vec<Reader> = requests
        .into_iter()
        .zip(answers)
        .map(|(r, a)| Reader::new(r, a))
        .collect();
    driven.finish();
    readers.iter_mut().for_each(Reader::check);
    // Six whole pages once, and for each the four tokens after them.
    assert_eq!(driven.engine.stats().n_tokens_in, 96 + 5 * 4);
    // All or none.
    let many = vec![prompt; 500];
    let refused = driven.engine.submit_all(many).unwrap_err();
    assert!(matches!(refused, SubmitError::Overloaded { .. }));
    assert_eq!(driven.engine.stats().n_waiting, 0);
}

#[test]
fn every_limit_of_the_queue_is_named() {
    let driven = Driven::new(EngineOptions {
        n_waiting_max: 5,
        n_waiting_per_tenant_max: 3,
        n_waiting_tokens_max: 40,
        ..options(1)
    });
    let of_length = |tenant: &str, n: usize| of(tenant, GenerateRequest::new(vec![9; n], 4));
    let limit = |tenant: &str, n: usize| match driven.submit(&of_length(tenant, n)) {
        Err(SubmitError::Overloaded { limit, .. }) => limit,
        other => panic!("{:?}", other.map(|_| ())),
    };
    let mut kept: Vec<Reader> = (0..3)
        .map(|_| driven.submit(&of_length("a", 5)).unwrap())
        .collect();
    assert_eq!(limit("a", 5), OverloadLimit::Tenant);
    assert_eq!(limit("b", 26), OverloadLimit::Tokens);
    kept.push(driven.submit(&of_length("b", 25)).unwrap());
    assert_eq!(limit("c", 1), OverloadLimit::Tokens);
    kept[3].cancel();
    kept.push(driven.submit(&of_length("b", 5)).unwrap());
    kept.push(driven.submit(&of_length("c", 5)).unwrap());
    assert_eq!(limit("d", 1), OverloadLimit::Requests);
    assert_eq!(driven.engine.stats().n_refused, 4);
    assert_eq!(driven.engine.stats().n_cancelled, 1);
}

/// A clock that moves by a tenth of a second whenever it is read.
#[derive(Debug, Default)]
struct Ticking(std::sync::Mutex<u64>);

impl ol_runtime::Clock for Ticking {
    fn unix_s(&self) -> u64 {
        0
    }

    fn monotonic_s(&self) -> f64 {
        let mut ticks = self.0.lock().unwrap();
        *ticks += 1;
        *ticks as f64 / 10.0
    }
}

#[derive(Debug, Default)]
struct Recorder(std::sync::Mutex<Vec<Observation>>);

impl Observer for Recorder {
    fn observe(&self, observation: &Observation) {
        self.0.lock().unwrap().push(*observation);
    }
}

#[test]
fn overload_says_when_to_come_again_by_the_pace_measured() {
    let parts = EngineParts {
        clock: std::sync::Arc::new(Ticking::default()),
        ..EngineParts::new(base(), tokenizer(), 1)
    };
    let options = EngineOptions {
        n_waiting_max: 20,
        n_step_tokens_max: 1,
        ..options(1)
    };
    let (engine, mut scheduler) = ol_serve::EngineHandle::without_thread(parts, options).unwrap();
    let ask = || GenerateRequest::new(vec![9; 10], 10);
    let refusal = || {
        let mut kept = Vec::new();
        loop {
            match engine.submit(ask()) {
                Ok(answer) => kept.push(answer),
                Err(SubmitError::Overloaded { retry_after, .. }) => break (retry_after, kept),
                Err(error) => panic!("{error}"),
            }
        }
    };
    let (unmeasured, kept) = refusal();
    assert_eq!(unmeasured, Duration::from_secs(1));
    drop(kept);
    let answer = engine.submit(ask()).unwrap();
    while engine.stats().n_tokens_out < 10 {
        scheduler.turn();
    }
    drop(answer);
    // A token for each pass of a tenth of a second, and twenty requests of
    // twenty tokens.
    let (measured, _kept) = refusal();
    assert_eq!(measured, Duration::from_secs(40));
}

#[test]
fn what_happens_is_observed() {
    let recorder = std::sync::Arc::new(Recorder::default());
    let parts = EngineParts {
        clock: std::sync::Arc::new(Ticking::default()),
        observer: std::sync::Arc::clone(&recorder) as _,
        ..EngineParts::new(base(), tokenizer(), 1)
    };
    let (engine, mut scheduler) =
        ol_serve::EngineHandle::without_thread(parts, options(2)).unwrap();
    let _answer = engine.submit(GenerateRequest::new(vec![9; 5], 3)).unwrap();
    for _ in 0..5 {
        scheduler.turn();
    }
    let seen = recorder.0.lock().unwrap();
    let count = |is: fn(&Observation) -> bool| seen.iter().filter(|o| is(o)).count();
    assert_eq!(
        count(|o| matches!(o, Observation::Started { waited_s } if *waited_s > 0.0)),
        1
    );
    assert_eq!(
        count(|o| matches!(o, Observation::FirstToken { ttft_s } if *ttft_s > 0.0)),
        1
    );
    assert_eq!(
        count(|o| matches!(o, Observation::NextToken { itl_s } if *itl_s > 0.0)),
        2
    );
    assert_eq!(
        count(|o| matches!(
            o,
            Observation::Pass {
                n_rows: 1,
                n_tokens: 5,
                ..
            }
        )),
        1
    );
    assert_eq!(
        count(|o| matches!(
            o,
            Observation::Pass {
                n_rows: 1,
                n_tokens: 1,
                ..
            }
        )),
        2
    );
    let is_finished = |o: &Observation| {
        matches!(
            o,
            Observation::Finished {
                reason: FinishReason::Length,
                tokens_in: 5,
                tokens_out: 3,
                ..
            }
        )
    };
    assert_eq!(count(is_finished), 1);
}

#[test]
fn a_deadline_ends_a_request_wherever_it_is() {
    let mut driven = Driven::new(options(1));
    let within = |s, max_tokens| GenerateRequest {
        timeout: Some(Duration::from_secs(s)),
        ..request("the quick", max_tokens)
    };
    let mut running = driven.submit(&within(5, 50)).unwrap();
    let mut waiting = driven.submit(&within(3, 50)).unwrap();
    let mut in_time = driven.submit(&within(100, 5)).unwrap();
    for _ in 0..4 {
        driven.scheduler.turn();
    }
    driven.clock.advance(Duration::from_secs(3));
    driven.scheduler.turn();
    waiting.read();
    assert_eq!(waiting.end, Some(Err(GenerateError::Deadline)));
    assert!(running.read() && running.end.is_none());
    driven.clock.advance(Duration::from_secs(2));
    driven.scheduler.turn();
    running.check();
    let end = running.end.unwrap().unwrap();
    assert_eq!(end.finish_reason, FinishReason::Deadline);
    assert_eq!(end.token_ids, running.token_ids);
    driven.finish();
    in_time.check();
    assert_eq!(driven.engine.stats().n_expired, 2);
    driven.check_empty();
}

/// Preempted requests have begun: a shutdown lets them finish too.
#[test]
fn a_shutdown_finishes_what_was_preempted() {
    let mut driven = Driven::new(EngineOptions {
        n_kv_tokens_max: 128,
        n_prefix_tokens_max: 0,
        ..options(3)
    });
    let mut readers: Vec<Reader> = ["the quick", "over the", "lazy dog"]
        .iter()
        .map(|prompt| driven.submit(&request(prompt, 100)).unwrap())
        .collect();
    while driven.engine.stats().n_preempted == 0 {
        driven.scheduler.turn();
    }
    let mut refused = driven.submit(&request("brown", 4)).unwrap();
    driven.engine.shutdown();
    driven.finish();
    for reader in &mut readers {
        reader.check();
        assert!(matches!(reader.end, Some(Ok(_))));
    }
    refused.read();
    assert_eq!(refused.end, Some(Err(GenerateError::Stopped)));
}
