//! Requests in a mixed batch against the same requests alone.

use ol_serve::{
    Answer, Completion, ConstraintCompiler, EngineOptions, Event, FinishReason, GenerateRequest,
    Grammar, Sampling,
};
use proptest::prelude::*;

use crate::support::{adapter, logits, oracle, request, start, tokenizer};

/// Reads an answer to its end, checking the order of events.
fn collect(mut answer: Answer) -> (String, Completion) {
    let (mut text, mut ids) = (String::new(), Vec::new());
    loop {
        match answer.blocking_next().unwrap() {
            Event::Token { id, text_delta, .. } => {
                ids.push(id);
                text.push_str(&text_delta);
            }
            Event::Done(mut completion) => {
                assert_eq!(answer.blocking_next(), None, "nothing follows the end");
                assert_eq!(completion.token_ids, ids, "every token was sent, in order");
                text.push_str(&std::mem::take(&mut completion.text_delta));
                completion.tokens_cached = 0;
                return (text, completion);
            }
            Event::Failed(error) => panic!("{error}"),
        }
    }
}

fn any_request() -> impl Strategy<Value = GenerateRequest> {
    let sampling = prop_oneof![
        Just(Sampling::GREEDY),
        (0.1_f32..2.0, 0.1_f32..=1.0, any::<u64>()).prop_map(|(temperature, top_p, seed)| {
            Sampling {
                temperature,
                top_p,
                seed,
                ..Sampling::GREEDY
            }
        }),
    ];
    let adapter = prop_oneof![
        Just(None),
        (1_u32..4).prop_map(|seed| Some(adapter(4, seed))),
        Just(Some(adapter(9, 7))),
    ];
    let stop = prop::collection::vec("[a-z ]{1,2}", 0..3);
    let prompt_tokens =
        prop::collection::vec(0..u32::try_from(tokenizer().vocab_size()).unwrap(), 1..40);
    (prompt_tokens, adapter, sampling, 1_usize..24, stop).prop_map(
        |(prompt_tokens, adapter, sampling, max_tokens, stop)| GenerateRequest {
            prompt_tokens,
            adapter,
            sampling,
            max_tokens,
            stop,
            ..GenerateRequest::new(Vec::new(), 1)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Few rows and few tokens a pass: requests wait, join while others decode,
    /// and long prompts are prefilled in parts.
    #[test]
    fn a_mixed_batch_gives_what_each_gives_alone(
        requests in prop::collection::vec(any_request(), 1..10),
        n_rows_max in 1_usize..6,
        n_step_tokens in 0_usize..20,
        n_kv_tokens_max in 64_usize..300,
    ) {
        let engine = start(EngineOptions {
            n_rows_max,
            n_kv_tokens_max,
            n_waiting_max: 16,
            n_step_tokens_max: n_rows_max + n_step_tokens,
            ..EngineOptions::default()
        });
        let answers: Vec<Answer> =
            requests.iter().map(|request| engine.submit(request.clone()).unwrap()).collect();
        for (request, answer) in requests.iter().zip(answers) {
            prop_assert_eq!(collect(answer), oracle(request));
        }
        engine.shutdown();
        let stats = engine.stats();
        prop_assert_eq!((stats.n_running, stats.n_waiting), (0, 0));
    }
}

#[test]
fn adapters_and_seeds_change_answers() {
    let mut requests = vec![request("the quick", 16)];
    for seed in 1..4 {
        requests.push(GenerateRequest {
            adapter: Some(adapter(4, seed)),
            ..requests[0].clone()
        });
        let sampling = Sampling {
            temperature: 8.0,
            top_p: 1.0,
            seed: seed.into(),
            ..Sampling::GREEDY
        };
        requests.push(GenerateRequest {
            sampling,
            ..requests[0].clone()
        });
    }
    let mut answers: Vec<Vec<u32>> = requests.iter().map(|r| oracle(r).1.token_ids).collect();
    answers.sort();
    answers.dedup();
    assert_eq!(answers.len(), requests.len());
}

#[test]
fn a_stop_string_ends_the_answer_and_is_not_part_of_it() {
    let plain = GenerateRequest {
        sampling: Sampling {
            temperature: 1.0,
            top_p: 1.0,
            seed: 5,
            ..Sampling::GREEDY
        },
        ..request("over the lazy", 60)
    };
    let (text, whole) = oracle(&plain);
    let (at, stop) = text
        .char_indices()
        .nth(12)
        .map(|(at, _)| (at, &text[at..]))
        .unwrap();
    let stop: String = stop.chars().take(3).collect();
    let first = text.find(&stop).unwrap();
    assert!(first <= at);
    let engine = start(EngineOptions::default());
    let stopping = GenerateRequest {
        stop: vec![stop],
        ..plain
    };
    let (stopped_text, stopped) = collect(engine.submit(stopping).unwrap());
    assert_eq!(stopped_text, text[..first]);
    assert_eq!(stopped.finish_reason, FinishReason::Stop);
    assert!(stopped.tokens_out() < whole.tokens_out());
    assert!(whole.token_ids.starts_with(&stopped.token_ids));
}

/// A seed whose first draw is the end token: an answer of no tokens is an answer.
#[test]
fn an_empty_answer_is_an_answer() {
    let base = request("the", 5);
    let logits = logits(&base.prompt_tokens, None);
    let sampling = (0..100_000)
        .map(|seed| Sampling {
            temperature: 30.0,
            top_p: 1.0,
            seed,
            ..Sampling::GREEDY
        })
        .find(|sampling| {
            ol_serve::Sampler::new(sampling.clone()).next(&logits) == Ok(tokenizer().end_id())
        })
        .unwrap();
    let engine = start(EngineOptions::default());
    let (text, completion) = collect(engine.submit(GenerateRequest { sampling, ..base }).unwrap());
    assert_eq!((text.as_str(), completion.tokens_out()), ("", 0));
    assert_eq!(completion.finish_reason, FinishReason::Stop);
}

/// What one request gets by its own sampling is the same in a mixed batch, and
/// is what the sampling asks for.
#[test]
fn samplings_of_every_kind_share_a_batch() {
    let compiler = ConstraintCompiler::new(&tokenizer()).unwrap();
    let greedy = request("the quick", 40);
    let with = |sampling: Sampling| GenerateRequest {
        sampling,
        ..greedy.clone()
    };
    let engine = start(EngineOptions::default());
    let alone = |request: &GenerateRequest| collect(engine.submit(request.clone()).unwrap());
    let (text, plain) = alone(&greedy);
    let first = plain.token_ids[0];
    let stopping = plain.token_ids[3];
    let n_before = plain
        .token_ids
        .iter()
        .position(|&id| id == stopping)
        .unwrap();
    let numbers = Grammar::JsonSchema(serde_json::json!({
        "type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 3,
    }));
    let requests = [
        with(Sampling {
            logit_bias: vec![(first, -100.0)],
            n_logprobs: Some(3),
            ..Sampling::GREEDY
        }),
        with(Sampling {
            stop_token_ids: vec![stopping],
            ..Sampling::GREEDY
        }),
        with(Sampling {
            constraint: Some(compiler.compile(&numbers).unwrap()),
            temperature: 1.0,
            seed: 3,
            ..Sampling::GREEDY
        }),
        with(Sampling {
            constraint: Some(
                compiler
                    .compile(&Grammar::Choice(vec!["café".into(), "no".into()]))
                    .unwrap(),
            ),
            ..Sampling::GREEDY
        }),
        with(Sampling {
            repetition_penalty: 1.5,
            presence_penalty: 1.0,
            frequency_penalty: 0.5,
            top_k: 5,
            min_p: 0.01,
            temperature: 0.7,
            ..Sampling::GREEDY
        }),
        greedy.clone(),
    ];
    let answers: Vec<Answer> = requests
        .iter()
        .map(|request| engine.submit(request.clone()).unwrap())
        .collect();
    let batched: Vec<(String, Completion)> = answers.into_iter().map(collect).collect();
    for (request, found) in requests.iter().zip(&batched) {
        assert_eq!(*found, alone(request));
    }
    assert_ne!(batched[0].1.token_ids[0], first);
    assert_eq!(batched[1].1.token_ids, plain.token_ids[..n_before]);
    assert_eq!(batched[1].1.finish_reason, FinishReason::Stop);
    if batched[2].1.finish_reason == FinishReason::Stop {
        let list: Vec<i128> = serde_json::from_str(&batched[2].0).unwrap();
        assert!((1..=3).contains(&list.len()));
    }
    assert!(["café", "no"].contains(&batched[3].0.as_str()));
    assert_eq!(batched[3].1.finish_reason, FinishReason::Stop);
    assert_eq!(batched[5].0, text);
}
