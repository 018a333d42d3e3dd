//! Goal: the loss weights are those of the rule, and a map's context is read
//! back or refused.

use ol_types::B256;

use crate::checkpoint::Place;

use super::{FORMAT, Length, LossRule, Method};

fn method() -> Method {
    let loss = LossRule {
        question_weight: 0.5,
        length: Length::Sum,
    };
    Method {
        format: FORMAT.to_owned(),
        base: B256::repeat_byte(1).to_string(),
        adapter: B256::repeat_byte(2).to_string(),
        checkpoints: vec![B256::repeat_byte(2).to_string()],
        place: Place::Each,
        record_loss: loss,
        query_loss: loss,
        side: 16,
        seed: u64::MAX,
        fisher_samples: 1,
        damping: 0.001,
    }
}

#[test]
fn weights_follow_the_rule() {
    let weights = |question_weight, length| {
        let rule = LossRule {
            question_weight,
            length,
        };
        rule.weights(6, 2)
    };
    assert_eq!(weights(0.0, Length::Sum), [0.0, 0.0, 1.0, 1.0, 1.0, 1.0]);
    assert_eq!(weights(0.0, Length::Root), [0.0, 0.0, 0.5, 0.5, 0.5, 0.5]);
    assert_eq!(
        weights(0.0, Length::Mean),
        [0.0, 0.0, 0.25, 0.25, 0.25, 0.25]
    );
    assert_eq!(weights(0.5, Length::Sum), [0.0, 0.5, 1.0, 1.0, 1.0, 1.0]);
    assert_eq!(
        weights(0.5, Length::Mean),
        [0.0, 0.5, 0.25, 0.25, 0.25, 0.25]
    );
    let rule = LossRule {
        question_weight: 1.0,
        length: Length::Mean,
    };
    assert_eq!(rule.weights(5, 3), [0.0, 0.5, 0.5, 0.5, 0.5]);
    assert_eq!(rule.weights(3, 9), [0.0, 0.5, 0.5]);
    // An answer that was cut away leaves nothing.
    let rule = method().record_loss;
    assert!(rule.weights(0, 3).is_empty());
    assert_eq!(rule.weights(1, 3), [0.0]);
}

#[test]
fn the_context_survives() {
    let method = method();
    assert_eq!(
        Method::from_context(&method.to_context()),
        Some(method.clone())
    );
    assert!(method.is_for(B256::repeat_byte(1), B256::repeat_byte(2)));
    assert!(!method.is_for(B256::repeat_byte(2), B256::repeat_byte(1)));
}

#[test]
fn format_2_is_read_as_gradients_at_the_adapter() {
    let text = String::from_utf8(method().to_context()).unwrap();
    let adapter = B256::repeat_byte(2);
    let places = format!("\"checkpoints\":[\"{adapter}\"],\"place\":\"each\",");
    assert!(text.contains(&places), "{text}");
    let old = text.replace(&places, "").replace("sketch/3", "sketch/2");
    let expected = Method {
        place: Place::Mean,
        ..method()
    };
    assert_eq!(Method::from_context(old.as_bytes()), Some(expected));
}

#[test]
fn other_contexts_are_refused() {
    let text = String::from_utf8(method().to_context()).unwrap();
    let with = |from: &str, to: &str| {
        assert!(text.contains(from), "{from} in {text}");
        Method::from_context(text.replace(from, to).as_bytes())
    };
    assert_eq!(with("sketch/3", "sketch/1"), None);
    // Format 2 knew no checkpoints.
    assert_eq!(with("sketch/3", "sketch/2"), None);
    assert_eq!(with("\"side\":16", "\"side\":4097"), None);
    assert_eq!(with("\"side\":16", "\"side\":0"), None);
    assert_eq!(with("\"fisher_samples\":1", "\"fisher_samples\":17"), None);
    assert_eq!(
        with("\"question_weight\":0.5", "\"question_weight\":1.5"),
        None
    );
    let hash = format!("\"checkpoints\":[\"{}\"]", B256::repeat_byte(2));
    assert_eq!(with(&hash, "\"checkpoints\":[]"), None);
    let nine = [B256::ZERO.to_string().as_str(); 9].join("\",\"");
    assert_eq!(with(&hash, &format!("\"checkpoints\":[\"{nine}\"]")), None);
    assert_eq!(with("\"each\"", "\"none\""), None);
    assert_eq!(with("\"seed\"", "\"sead\""), None);
    assert_eq!(with("{", "{\"more\":1,"), None);
    assert_eq!(Method::from_context(b""), None);
    assert_eq!(Method::from_context(&[0xff; 20]), None);
}
