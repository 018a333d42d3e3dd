//! Limits, cancellation, shutdown and the registry of adapters.

use std::sync::Arc;

use ol_model::{Lora, LoraConfig, ModelConfig};
use ol_serve::{
    AdapterRef, EngineOptions, Event, GenerateError, GenerateRequest, MAX_STOP_STRING_BYTES,
    MAX_STOP_STRINGS, OverloadLimit, Sampling, SamplingError, StartError, SubmitError,
};

use crate::support::{
    CONTEXT_TOKENS, adapter, adapter_store, base, lora, oracle, request, start, tokenizer,
};

fn narrow() -> EngineOptions {
    EngineOptions {
        n_rows_max: 1,
        n_kv_tokens_max: CONTEXT_TOKENS,
        n_waiting_max: 2,
        n_step_tokens_max: 16,
        ..EngineOptions::default()
    }
}

/// The end token is never the likeliest, so this ends at `max_tokens`.
fn long(max_tokens: usize) -> GenerateRequest {
    request("the quick brown fox", max_tokens)
}

#[test]
fn bad_requests_are_refused_before_anything_is_computed() {
    let engine = start(narrow());
    let good = request("the quick", 4);
    let n_vocab = tokenizer().vocab_size();
    let misfit = ModelConfig {
        hidden_size: 64,
        ..base().config().clone()
    };
    let misfit = Arc::new(Lora::init(&misfit, LoraConfig::all_linear(2), 1).unwrap());
    let misfit = AdapterRef::resident(misfit);
    let nan = Sampling {
        temperature: f32::NAN,
        ..Sampling::GREEDY
    };
    let cases = [
        (
            GenerateRequest {
                prompt_tokens: Vec::new(),
                ..good.clone()
            },
            SubmitError::EmptyPrompt,
        ),
        (
            GenerateRequest {
                max_tokens: 0,
                ..good.clone()
            },
            SubmitError::NoTokens,
        ),
        (
            GenerateRequest {
                prompt_tokens: vec![5, 5_000],
                ..good.clone()
            },
            SubmitError::UnknownToken { id: 5_000, n_vocab },
        ),
        (
            GenerateRequest {
                max_tokens: CONTEXT_TOKENS - 1,
                ..request("a b", 1)
            },
            SubmitError::TooLong {
                tokens_in: request("a b", 1).prompt_tokens.len(),
                max_tokens: CONTEXT_TOKENS - 1,
                context_tokens: CONTEXT_TOKENS,
            },
        ),
        (
            GenerateRequest {
                stop: vec![String::new()],
                ..good.clone()
            },
            SubmitError::Stop,
        ),
        (
            GenerateRequest {
                stop: vec!["a".repeat(MAX_STOP_STRING_BYTES + 1)],
                ..good.clone()
            },
            SubmitError::Stop,
        ),
        (
            GenerateRequest {
                stop: vec!["a".to_owned(); MAX_STOP_STRINGS + 1],
                ..good.clone()
            },
            SubmitError::Stop,
        ),
        (
            GenerateRequest {
                sampling: Sampling {
                    top_p: 0.0,
                    ..Sampling::GREEDY
                },
                ..good.clone()
            },
            SubmitError::Sampling(SamplingError::TopP { found: 0.0 }),
        ),
        (
            GenerateRequest {
                adapter: Some(misfit),
                ..good.clone()
            },
            SubmitError::Adapter,
        ),
    ];
    for (request, expected) in cases {
        assert_eq!(engine.submit(request).unwrap_err(), expected);
    }
    let overflow = GenerateRequest {
        max_tokens: usize::MAX,
        ..good.clone()
    };
    assert!(matches!(
        engine.submit(overflow).unwrap_err(),
        SubmitError::TooLong { .. }
    ));
    let nan = engine
        .submit(GenerateRequest {
            sampling: nan,
            ..good
        })
        .unwrap_err();
    assert!(matches!(
        nan,
        SubmitError::Sampling(SamplingError::Temperature { .. })
    ));
    assert_eq!(engine.stats().n_steps, 0);
}

#[test]
fn senseless_bounds_are_refused() {
    let good = EngineOptions::default();
    for options in [
        EngineOptions {
            n_rows_max: 0,
            ..good.clone()
        },
        EngineOptions {
            n_kv_tokens_max: 0,
            ..good.clone()
        },
        EngineOptions {
            n_waiting_max: 0,
            ..good.clone()
        },
        EngineOptions {
            n_step_tokens_max: good.n_rows_max - 1,
            ..good
        },
    ] {
        let started = ol_serve::EngineHandle::start(base(), tokenizer(), 1, options);
        assert!(matches!(started, Err(StartError::Options { .. })));
    }
}

#[test]
fn the_whole_context_can_be_used() {
    let engine = start(narrow());
    let mut full = request("the quick", 8);
    full.prompt_tokens = full
        .prompt_tokens
        .iter()
        .copied()
        .cycle()
        .take(CONTEXT_TOKENS - 8)
        .collect();
    let (_, completion) = engine.submit(full).unwrap().blocking_collect().unwrap();
    assert!(completion.tokens_out() <= 8);
}

/// One row, two places to wait: the queue fills long before a thousand tokens
/// are decoded. Every request that was taken on is answered all the same.
#[test]
fn a_full_queue_is_overload_and_not_growth() {
    let engine = start(narrow());
    let mut answers = Vec::new();
    let overload = loop {
        match engine.submit(long(1_000)) {
            Ok(answer) => answers.push(answer),
            Err(error) => break error,
        }
        assert!(answers.len() < 100, "the queue never fills");
    };
    assert!(matches!(
        overload,
        SubmitError::Overloaded {
            n_waiting: 2,
            limit: OverloadLimit::Requests,
            ..
        }
    ));
    // Those who leave make room at once, waiting or running.
    drop(answers);
    let expected = oracle(&request("over the", 6));
    let answer = loop {
        match engine.submit(request("over the", 6)) {
            Ok(answer) => break answer,
            Err(error) => assert!(matches!(error, SubmitError::Overloaded { .. })),
        }
        std::thread::yield_now();
    };
    let (text, mut completion) = answer.blocking_collect().unwrap();
    completion.text_delta.clear();
    assert_eq!((text, completion), expected);
}

#[test]
fn a_dropped_request_is_cancelled() {
    let engine = start(narrow());
    let mut answer = engine.submit(long(4_000)).unwrap();
    assert!(matches!(answer.blocking_next(), Some(Event::Token { .. })));
    drop(answer);
    engine
        .submit(request("over", 2))
        .unwrap()
        .blocking_collect()
        .unwrap();
    let n_tokens_out = engine.stats().n_tokens_out;
    assert!(
        n_tokens_out < 4_000,
        "{n_tokens_out} tokens were generated for nobody"
    );
}

#[test]
fn shutdown_finishes_what_runs_and_refuses_the_rest() {
    let engine = start(narrow());
    let mut running = engine.submit(long(200)).unwrap();
    assert!(matches!(running.blocking_next(), Some(Event::Token { .. })));
    let mut waiting = engine.submit(long(200)).unwrap();
    let expected = oracle(&long(200)).1.token_ids.len();
    engine.shutdown();
    let (_, completion) = running.blocking_collect().unwrap();
    assert_eq!(completion.tokens_out(), expected);
    // It waits behind the running one, unless that one was over already.
    match waiting.blocking_next() {
        Some(Event::Failed(error)) => assert_eq!(error, GenerateError::Stopped),
        Some(Event::Token { .. }) => {
            assert_eq!(waiting.blocking_collect().unwrap().1.tokens_out(), expected)
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(engine.submit(long(1)).unwrap_err(), SubmitError::Stopped);
    assert!(!engine.is_running());
    engine.shutdown();
}

#[test]
fn dropping_every_handle_ends_what_waits() {
    let engine = start(narrow());
    let mut answers: Vec<_> = (0..2).map(|_| engine.submit(long(500)).unwrap()).collect();
    drop(engine);
    for answer in &mut answers {
        while answer.blocking_next().is_some() {}
    }
}

#[test]
fn a_request_keeps_the_adapter_it_started_with() {
    let store = adapter_store();
    store.insert("legal", lora(4, 1)).unwrap();
    let engine = start(narrow());
    let with = |adapter: AdapterRef| GenerateRequest {
        adapter: Some(adapter),
        ..request("the lazy", 40)
    };
    let resolved = store.resolve("legal").unwrap();
    store.insert("legal", lora(4, 2)).unwrap();
    let old = engine.submit(with(resolved)).unwrap();
    let new = engine
        .submit(with(store.resolve("legal").unwrap()))
        .unwrap();
    for (answer, seed) in [(old, 1), (new, 2)] {
        let expected = oracle(&with(adapter(4, seed))).1.token_ids;
        assert_eq!(answer.blocking_collect().unwrap().1.token_ids, expected);
    }
}
