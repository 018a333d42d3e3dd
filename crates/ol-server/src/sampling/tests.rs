//! Request before model before ours.

use super::*;

fn numbers(sampling: &Sampling) -> (f32, f32, u32, f32, f32) {
    (
        sampling.temperature,
        sampling.top_p,
        sampling.top_k,
        sampling.min_p,
        sampling.repetition_penalty,
    )
}

#[test]
fn a_request_goes_before_the_model_and_the_model_before_ours() {
    let nothing = SamplingRequest::default;
    let ours = SamplingDefaults::default();
    assert_eq!(numbers(&ours.resolve(nothing())), (1.0, 1.0, 0, 0.0, 1.0));
    assert_eq!(
        SamplingDefaults::recommended(&GenerationConfig::default()).unwrap(),
        ours
    );
    let config = GenerationConfig {
        do_sample: Some(true),
        temperature: Some(0.6),
        top_p: Some(0.0),
        top_k: Some(20),
        min_p: Some(0.05),
        ..GenerationConfig::default()
    };
    let model = SamplingDefaults::recommended(&config).unwrap();
    assert_eq!(
        numbers(&model.resolve(nothing())),
        (0.6, f32::MIN_POSITIVE, 20, 0.05, 1.0)
    );
    assert_eq!(
        model.to_string(),
        "temperature 0.6, top_p 0, top_k 20, min_p 0.05"
    );
    let said = SamplingRequest {
        temperature: Some(0.0),
        top_k: Some(0),
        repetition_penalty: Some(1.5),
        rest: Sampling {
            presence_penalty: 0.5,
            seed: 3,
            ..Sampling::GREEDY
        },
        ..nothing()
    };
    let sampling = model.resolve(said);
    assert_eq!(numbers(&sampling), (0.0, f32::MIN_POSITIVE, 0, 0.05, 1.5));
    assert_eq!((sampling.presence_penalty, sampling.seed), (0.5, 0));
    // The makers want the likeliest tokens.
    let greedy = GenerationConfig {
        do_sample: Some(false),
        ..config
    };
    let greedy = SamplingDefaults::recommended(&greedy).unwrap();
    assert_eq!(numbers(&greedy.resolve(nothing())).0, 0.0);
}

#[test]
fn what_no_request_may_ask_for_is_no_default() {
    let config = GenerationConfig {
        repetition_penalty: Some(1e9),
        ..GenerationConfig::default()
    };
    let error = SamplingDefaults::recommended(&config).unwrap_err();
    assert!(error.to_string().contains("repetition_penalty"), "{error}");
}
