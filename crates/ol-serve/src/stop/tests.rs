//! Goal: what is sent is the text before the first stop string, however the
//! text arrives, and no longer held back than needed.
//! Method: examples, and properties against a search over the whole text.

use proptest::prelude::*;

use super::*;

/// Sends `pieces`, returns what came out at each, and whether it stopped.
fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
    let mut filter = StopFilter::new(stops.iter().map(ToString::to_string).collect());
    let mut out = Vec::new();
    for piece in pieces {
        let Filtered { text, stop } = filter.push(piece);
        out.push(text);
        if stop.is_some() {
            return (out, true);
        }
    }
    out.push(filter.finish());
    (out, false)
}

#[track_caller]
fn check(stops: &[&str], pieces: &[&str], expected: &[&str], is_stopped: bool) {
    let expected = expected.iter().map(ToString::to_string).collect();
    assert_eq!(run(stops, pieces), (expected, is_stopped));
}

#[test]
fn without_stop_strings_all_passes_at_once() {
    check(&[], &["a", "", "b"], &["a", "", "b", ""], false);
    check(&[""], &["ab"], &["ab", ""], false);
}

#[test]
fn a_stop_string_over_several_pieces_is_cut() {
    check(&["END"], &["say E", "N", "D more"], &["say ", "", ""], true);
    check(
        &["END"],
        &["say E", "N", "O"],
        &["say ", "", "ENO", ""],
        false,
    );
    check(&["END"], &["E", "E", "ND"], &["", "E", ""], true);
    check(&["END"], &["xEN"], &["x", "EN"], false);
}

#[test]
fn characters_are_never_cut() {
    check(&["é!"], &["caf", "é", "?"], &["caf", "", "é?", ""], false);
    check(&["é!"], &["café", "!"], &["caf", ""], true);
}

#[test]
fn the_match_that_ends_first_wins() {
    check(&["abcd", "bc"], &["xabcd"], &["xa"], true);
    check(&["abc", "bc"], &["xabcd"], &["x"], true);
}

/// What the filter should pass on: the text before the stop string that ends
/// first, the longest of those.
fn oracle(stops: &[String], text: &str) -> (String, bool) {
    for end in 0..=text.len() {
        let starts = stops
            .iter()
            .filter(|stop| text.is_char_boundary(end) && text[..end].ends_with(*stop));
        if let Some(start) = starts.map(|stop| end - stop.len()).min() {
            return (text[..start].to_owned(), true);
        }
    }
    (text.to_owned(), false)
}

proptest! {
    #[test]
    fn pieces_do_not_matter(
        stops in prop::collection::vec("[abé]{1,4}", 0..4),
        pieces in prop::collection::vec("[abcé]{0,3}", 0..12),
    ) {
        let text = pieces.concat();
        let stop_refs: Vec<&str> = stops.iter().map(String::as_str).collect();
        let piece_refs: Vec<&str> = pieces.iter().map(String::as_str).collect();
        let (out, is_stopped) = run(&stop_refs, &piece_refs);
        prop_assert_eq!((out.concat(), is_stopped), oracle(&stops, &text));
    }

    #[test]
    fn nothing_is_held_without_need(text in "[ab]{0,12}") {
        let mut filter = StopFilter::new(vec!["aab".to_owned()]);
        let sent = filter.push(&text);
        let held = filter.finish();
        if sent.stop.is_none() {
            prop_assert!(held.is_empty() || "aab".starts_with(&held));
            prop_assert!(held.len() < 3);
        }
    }
}
