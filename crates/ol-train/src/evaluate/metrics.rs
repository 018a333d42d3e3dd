//! How near an answer is to the right one.

use std::collections::HashMap;

/// Longest text compared word by word, in words.
const MAX_WORDS: usize = 4096;

/// Whether two answers are the same without case, ASCII punctuation, the
/// articles a, an, the, and space (the normalisation of SQuAD; Rajpurkar et al.,
/// 2016).
#[must_use]
pub fn exact_match(answer: &str, reference: &str) -> bool {
    normalised(answer) == normalised(reference)
}

fn normalised(text: &str) -> String {
    let kept: String = text
        .to_lowercase()
        .chars()
        .filter(|c| !c.is_ascii_punctuation())
        .collect();
    // Words are runs of letters and digits; what is between them stays.
    let mut out = String::new();
    let mut rest = kept.as_str();
    while let Some(first) = rest.chars().next() {
        let is_word = first.is_alphanumeric();
        let end = rest
            .find(|c: char| c.is_alphanumeric() != is_word)
            .unwrap_or(rest.len());
        let (run, after) = rest.split_at(end);
        let is_article = matches!(run, "a" | "an" | "the");
        out.push_str(if is_article { " " } else { run });
        rest = after;
    }
    out.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// ROUGE-L between 0 and 1 (Lin, 2004): the F-measure of the longest common
/// subsequence of words, in lower case, of ASCII letters and digits. Words past
/// the 4096th are not compared.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "counts of words are small")]
pub fn rouge_l(answer: &str, reference: &str) -> f64 {
    let mut ids = HashMap::new();
    let (answer, reference) = (words(answer, &mut ids), words(reference, &mut ids));
    if answer.is_empty() || reference.is_empty() {
        return 0.0;
    }
    let common = common_length(&answer, &reference) as f64;
    if common == 0.0 {
        return 0.0;
    }
    let (precision, recall) = (
        common / answer.len() as f64,
        common / reference.len() as f64,
    );
    2.0 * precision * recall / (precision + recall)
}

/// Words as numbers, equal for equal ones.
fn words(text: &str, ids: &mut HashMap<String, usize>) -> Vec<usize> {
    text.to_lowercase()
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .take(MAX_WORDS)
        .map(|word| {
            let next = ids.len();
            *ids.entry(word.to_owned()).or_insert(next)
        })
        .collect()
}

/// Length of the longest common subsequence.
fn common_length(a: &[usize], b: &[usize]) -> usize {
    // `row[j]`: of the part of `a` seen so far and the first j of `b`.
    let mut row = vec![0_usize; b.len() + 1];
    for a in a {
        let mut diagonal = 0;
        for (j, b) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if a == b {
                diagonal + 1
            } else {
                above.max(row[j])
            };
            diagonal = above;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Case {
        answer: String,
        reference: String,
        exact_match: bool,
        rouge_l: f64,
    }

    /// `fixtures/make_metrics.py`: the `rouge-score` package, and SQuAD's
    /// normalisation.
    #[test]
    fn the_metrics_are_those_of_the_reference() {
        let cases: Vec<Case> =
            serde_json::from_str(include_str!("../../fixtures/metrics.json")).unwrap();
        assert!(cases.len() > 50);
        for c in cases {
            let got = exact_match(&c.answer, &c.reference);
            assert_eq!(got, c.exact_match, "{:?} {:?}", c.answer, c.reference);
            let got = rouge_l(&c.answer, &c.reference);
            assert!(
                (got - c.rouge_l).abs() < 1e-12,
                "{:?} {:?}: {got} {}",
                c.answer,
                c.reference,
                c.rouge_l
            );
        }
    }

    /// By trying every subsequence.
    fn common_length_slow(a: &[usize], b: &[usize]) -> usize {
        match (a.split_first(), b.split_first()) {
            (Some((x, a1)), Some((y, b1))) => {
                if x == y {
                    1 + common_length_slow(a1, b1)
                } else {
                    common_length_slow(a1, b).max(common_length_slow(a, b1))
                }
            }
            _ => 0,
        }
    }

    proptest! {
        #[test]
        fn the_common_length_is_right(
            a in prop::collection::vec(0_usize..4, 0..9),
            b in prop::collection::vec(0_usize..4, 0..9),
        ) {
            prop_assert_eq!(common_length(&a, &b), common_length_slow(&a, &b));
        }

        #[test]
        fn any_text_has_a_score(a in "\\PC*", b in "\\PC*") {
            let score = rouge_l(&a, &b);
            prop_assert!((0.0..=1.0).contains(&score));
            prop_assert!((score - rouge_l(&b, &a)).abs() < 1e-12);
            prop_assert!(exact_match(&a, &a));
            prop_assert_eq!(exact_match(&a, &b), exact_match(&b, &a));
        }
    }
}
