use ol_model::ModelConfig;
use ol_runtime::ManualClock;

use super::*;
use crate::fixture::decisive;
use crate::trainer::Silent;

pub(crate) fn setting() -> (Model, Tokenizer, Vec<TrainingRecord>) {
    let colors = ["red", "blue", "green", "black"];
    let records: Vec<TrainingRecord> = (0..40)
        .map(|i| TrainingRecord {
            question: format!("which color is number {}?", i % 10),
            answer: format!("number {} is {}", i % 10, colors[i % 4]),
        })
        .collect();
    let texts = records
        .iter()
        .flat_map(|r| [r.question.clone(), r.answer.clone()])
        .collect::<Vec<_>>();
    let tokenizer = Tokenizer::train(texts.into_iter(), 300).unwrap();
    let config = ModelConfig {
        vocab_size: tokenizer.vocab_size(),
        hidden_size: 32,
        intermediate_size: 48,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: 2,
        head_dim: 16,
        max_position_embeddings: 64,
        ..ModelConfig::default_base()
    };
    (decisive(config, 1), tokenizer, records)
}

#[test]
fn a_job_writes_an_adapter_that_is_better_than_the_base() {
    let (model, tokenizer, records) = setting();
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = dir.path().join("checkpoint.bin");
    let pool = Pool::new(2);
    let job = AdapterJob {
        model: &model,
        tokenizer: &tokenizer,
        base_name: "test-base",
        records: &records,
        lora: LoraConfig::all_linear(4),
        options: TrainOptions {
            batch_tokens: 200,
            learning_rate: 1e-2,
            checkpoint_every: 3,
            ..TrainOptions::default()
        },
        epochs: Some(20.0),
        question_weight: 0.5,
        held_out_fraction: 0.1,
        out_dir: &dir.path().join("adapter"),
        segments: 1,
        checkpoint: Some(&checkpoint),
    };
    let report = train_adapter(&job, &pool, &ManualClock::new(0), &mut Silent).unwrap();
    assert!(report.held_out_after < report.held_out_before - 0.5);
    assert_eq!(report.held_out_records.len(), 4);
    assert!(report.finished && !checkpoint.exists());
    let read = Lora::load(job.out_dir, model.config()).unwrap();
    assert_eq!(read.hash(), report.adapter_hash);
    // The same job gives the same adapter, on any number of threads.
    let again = AdapterJob {
        out_dir: &dir.path().join("again"),
        checkpoint: None,
        records: &records,
        ..job
    };
    let report2 = train_adapter(&again, &Pool::new(1), &ManualClock::new(0), &mut Silent).unwrap();
    assert_eq!(report2.adapter_hash, report.adapter_hash);
}

#[test]
fn weights_follow_question_and_answer_and_long_records_are_cut() {
    let (_, tokenizer, records) = setting();
    let s = records[0].sequence(&tokenizer, 64, 0.25).unwrap();
    let (tokens, start) = tokenizer
        .record(&records[0].question, &records[0].answer)
        .unwrap();
    assert_eq!(s.tokens, tokens);
    assert!(
        s.weights[..start].iter().all(|w| *w == 0.25)
            && s.weights[start..].iter().all(|w| *w == 1.0)
    );
    let long = TrainingRecord {
        question: "which ".repeat(100),
        answer: "red".to_owned(),
    };
    assert_eq!(long.sequence(&tokenizer, 64, 1.0).unwrap().tokens.len(), 64);
}

#[test]
fn impossible_jobs_are_refused() {
    let (model, tokenizer, records) = setting();
    let dir = tempfile::tempdir().unwrap();
    let pool = Pool::new(1);
    let go = |records: &[TrainingRecord],
              fraction: f64,
              question_weight: f32,
              rank: usize,
              epochs: f64| {
        let job = AdapterJob {
            model: &model,
            tokenizer: &tokenizer,
            base_name: "test-base",
            records,
            lora: LoraConfig {
                rank,
                ..LoraConfig::all_linear(4)
            },
            options: TrainOptions::default(),
            epochs: Some(epochs),
            question_weight,
            held_out_fraction: fraction,
            out_dir: dir.path(),
            segments: 1,
            checkpoint: None,
        };
        train_adapter(&job, &pool, &ManualClock::new(0), &mut Silent).map(|_| ())
    };
    assert!(matches!(
        go(&records[..1], 0.1, 1.0, 4, 1.0),
        Err(AdapterError::Job(_))
    ));
    assert!(matches!(
        go(&records, 0.0, 1.0, 4, 1.0),
        Err(AdapterError::Job(_))
    ));
    assert!(matches!(
        go(&records, 0.1, f32::NAN, 4, 1.0),
        Err(AdapterError::Job(_))
    ));
    assert!(matches!(
        go(&records, 0.1, 1.0, 4, f64::INFINITY),
        Err(AdapterError::Job(_))
    ));
    assert!(matches!(
        go(&records, 0.1, 1.0, 0, 1.0),
        Err(AdapterError::Shape(_))
    ));
}
