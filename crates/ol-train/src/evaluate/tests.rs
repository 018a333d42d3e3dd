use ol_model::Random;

use super::*;
use crate::fixture::{adapter, tiny};

fn setting() -> (Model, Lora) {
    let config = tiny(24);
    let model = Model::random(config.clone(), 3).unwrap();
    (model, adapter(&config, 2, 1.0, 9))
}

fn text(tokens: &[u32]) -> String {
    let words: Vec<String> = tokens.iter().map(u32::to_string).collect();
    words.join(" ")
}

/// One prompt alone, every token by a whole pass.
fn answer_slowly(
    model: &Model,
    adapter: Option<&Lora>,
    prompt: &[u32],
    answering: &Answering<'_>,
) -> String {
    let pool = Pool::new(1);
    let context = model.config().max_position_embeddings;
    let mut tokens = prompt.to_vec();
    while tokens.len() < context + 1
        && tokens.len() - prompt.len() < answering.max_new_tokens
        && prompt.len() < context
    {
        let mut cache = KvCache::new(model.config(), context);
        let mut segments = [Segment {
            tokens: &tokens,
            cache: &mut cache,
            adapter,
        }];
        let logits = model.forward(&pool, &mut segments).unwrap();
        let token = most_likely(&logits);
        if answering.end_ids.contains(&token) {
            break;
        }
        tokens.push(token);
    }
    (answering.decode)(&tokens[prompt.len()..])
}

#[test]
fn answers_are_those_of_one_prompt_alone() {
    let (model, adapter) = setting();
    let mut random = Random::new(5);
    let prompts: Vec<Vec<u32>> = (0..40)
        .map(|i| {
            let n = if i == 7 { 24 } else { 1 + random.below(23) };
            (0..n)
                .map(|_| u32::try_from(random.below(40)).unwrap())
                .collect()
        })
        .collect();
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let answering = Answering {
        max_new_tokens: 9,
        end_ids: &[3, 11, 17, 20],
        decode: &text,
    };
    for adapter in [None, Some(&adapter)] {
        let mut seen = Vec::new();
        let got = answer(
            &model,
            &Pool::new(2),
            adapter,
            &prompts,
            &answering,
            &mut |n| {
                seen.push(n);
            },
        )
        .unwrap();
        assert_eq!(seen.last(), Some(&40));
        assert!(seen.is_sorted());
        assert_eq!(got[7], "", "a prompt that fills the context");
        let lengths: Vec<usize> = got.iter().map(|a| a.split(' ').count()).collect();
        assert!(lengths.contains(&9) && lengths.iter().any(|n| *n < 9));
        for (prompt, got) in prompts.iter().zip(&got) {
            assert_eq!(*got, answer_slowly(&model, adapter, prompt, &answering));
        }
    }
}

#[test]
fn a_prompt_that_the_model_cannot_read_is_refused() {
    let (model, _) = setting();
    let answering = Answering {
        max_new_tokens: 4,
        end_ids: &[],
        decode: &text,
    };
    let go = |prompt: &[u32]| {
        answer(
            &model,
            &Pool::new(1),
            None,
            &[prompt],
            &answering,
            &mut |_| (),
        )
    };
    assert!(matches!(go(&[]), Err(ForwardError::Empty(_))));
    assert!(matches!(go(&[40]), Err(ForwardError::Token { .. })));
    assert_eq!(go(&[1]).unwrap()[0].split(' ').count(), 4);
}

#[test]
fn base_and_adapter_are_measured_and_written() {
    let (model, adapter) = setting();
    let pool = Pool::new(2);
    let answering = Answering {
        max_new_tokens: 3,
        end_ids: &[],
        decode: &text,
    };
    let prompt = vec![5, 6];
    let right = answer(
        &model,
        &pool,
        Some(&adapter),
        &[&prompt],
        &answering,
        &mut |_| (),
    )
    .unwrap();
    let questions = [
        Question {
            question: "what | is\n<this>?".to_owned(),
            prompt,
            answer: format!("The {}!", right[0]),
        },
        Question {
            question: "x".repeat(300),
            prompt: vec![7],
            answer: "nothing the model says".to_owned(),
        },
    ];
    let held_out = [Sequence {
        tokens: vec![1, 2, 3, 4],
        weights: vec![0.0, 0.0, 1.0, 0.5],
    }];
    let mut answered = 0;
    let got = Evaluation::measure(
        &model,
        &pool,
        &adapter,
        &held_out,
        &questions,
        &answering,
        &mut |n| answered = n,
    )
    .unwrap();
    assert_eq!(answered, 4);
    assert_eq!(got.n_tokens, 2);
    assert_eq!(got.after.exact_match, Some(0.5));
    assert!(got.after.rouge_l > Some(0.4) && got.after.rouge_l < Some(0.5));
    let loss = |adapter| model.losses(&pool, adapter, &held_out).unwrap()[0] / 1.5;
    assert_eq!(got.before.loss, loss(None));
    assert_eq!(got.after.loss, loss(Some(&adapter)));
    assert_eq!(got.after.perplexity, libm::exp(got.after.loss));

    let dir = tempfile::tempdir().unwrap();
    got.write(dir.path()).unwrap();
    let json = std::fs::read(dir.path().join(Evaluation::JSON_FILE)).unwrap();
    let read: Evaluation = serde_json::from_slice(&json).unwrap();
    assert_eq!(read.answers, got.answers);
    let page = std::fs::read_to_string(dir.path().join(Evaluation::MARKDOWN_FILE)).unwrap();
    assert!(
        page.contains("| exact match | ") && page.contains(" | 0.5000 |"),
        "{page}"
    );
    assert!(page.contains(r"what \| is &lt;this>?"), "{page}");
    assert!(
        page.contains("xxx…") && !page.contains(&"x".repeat(201)),
        "{page}"
    );
    // Every row of a table has its cells.
    let columns = |line: &str| line.replace(r"\|", "").matches('|').count();
    assert!(
        page.lines()
            .filter(|l| l.starts_with('|'))
            .all(|l| [4, 5].contains(&columns(l)))
    );

    let without = Evaluation::measure(
        &model,
        &pool,
        &adapter,
        &held_out,
        &[],
        &answering,
        &mut |_| (),
    )
    .unwrap();
    assert_eq!(without.before.exact_match, None);
    assert!(!without.markdown().contains("ROUGE"));
    let error = without.write(&dir.path().join("none")).unwrap_err();
    assert!(error.to_string().contains(Evaluation::JSON_FILE), "{error}");
}
