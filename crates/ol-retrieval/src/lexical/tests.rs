use proptest::prelude::*;

use super::*;

/// The formula in floats, term by term.
fn oracle(texts: &[String], query: &str) -> Vec<f64> {
    let bags: Vec<Vec<String>> = texts.iter().map(|text| terms(text).collect()).collect();
    let n = bags.len() as f64;
    let mean = (bags.iter().map(Vec::len).sum::<usize>() as f64 / n).max(1e-9);
    let mut wanted: Vec<String> = terms(query).collect();
    wanted.sort();
    wanted.dedup();
    let score = |bag: &Vec<String>| {
        let of_term = |term: &String| {
            let with = bags.iter().filter(|bag| bag.contains(term)).count() as f64;
            let f = bag.iter().filter(|t| *t == term).count() as f64;
            let rarity = (1.0 + (n - with + 0.5) / (with + 0.5)).log2();
            let length = 1.2 * (1.0 - 0.75 + 0.75 * bag.len() as f64 / mean);
            rarity * f * 2.2 / (f + length)
        };
        wanted.iter().map(of_term).sum()
    };
    bags.iter().map(score).collect()
}

fn index(texts: &[String]) -> Lexical {
    Lexical::new(texts.iter().map(String::as_str)).unwrap()
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(ToString::to_string).collect()
}

#[test]
fn golden_scores() {
    let index = index(&texts(&[
        "the bridge was drained",
        "the flash loan drained the pool, and the pool was empty",
        "",
        "Oracle manipulation of a pool",
    ]));
    // In 2⁻¹⁶ bits; from the formula in exact arithmetic, rounded down.
    assert_eq!(index.scores("pool drained?"), GOLDEN);
    let hits = index.search("pool drained?", 2);
    assert_eq!(
        hits.iter().map(|hit| hit.passage).collect::<Vec<_>>(),
        [1, 0]
    );
    assert!(index.search("nothing of that sort", 5).len() == 1, "`of`");
    assert!(index.search("", 5).is_empty() && index.search("pool", 0).is_empty());
}

const GOLDEN: [u32; 4] = [71375, 111330, 0, 65536];

#[test]
fn repeating_a_term_in_the_query_changes_nothing_and_terms_are_limited() {
    let index = index(&texts(&["alpha beta", "beta gamma", "delta"]));
    assert_eq!(
        index.scores("Beta beta BETA alpha"),
        index.scores("alpha beta")
    );
    let many: String = (0..1_500).map(|n| format!("term{n} ")).collect();
    let one_each = Lexical::new(many.split(' ')).unwrap();
    assert_eq!(one_each.search(&many, 2_000).len(), QUERY_TERMS_MAX);
}

#[test]
fn empty_is_empty() {
    let none = Lexical::new([]).unwrap();
    assert!(none.is_empty() && none.search("a", 3).is_empty());
    let blank = Lexical::new(["", "  "]).unwrap();
    assert_eq!((blank.len(), blank.search("a", 3)), (2, Vec::new()));
}

proptest! {
    /// Within the rounding of each term, and in an order that the formula gives.
    #[test]
    fn scores_are_those_of_the_formula(
        texts in prop::collection::vec("[a-f ]{0,60}", 1..30),
        query in "[a-f ]{0,12}",
    ) {
        let texts: Vec<String> = texts;
        let index = index(&texts);
        let wanted = oracle(&texts, &query);
        let n_terms = terms(&query).count() as f64;
        for (score, wanted) in index.scores(&query).into_iter().zip(&wanted) {
            let found = f64::from(score) / 65_536.0;
            // A product is rounded to 2⁻¹⁶; what its factors lose is far less.
            let bound = n_terms * 2.0 / 65_536.0;
            prop_assert!((found - wanted).abs() <= bound, "{} {}", found, wanted);
        }
        let hits = index.search(&query, 5);
        let key = |hit: &Hit| (std::cmp::Reverse(hit.score), hit.passage);
        prop_assert!(hits.is_sorted_by_key(key));
    }
}
