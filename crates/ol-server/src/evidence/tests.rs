//! Goal: what is gathered for an answer is what anybody finds again with the
//! datanet alone, and every change of it is found and named.

use ol_spans::{BuildOptions, Corpus, RecordRef, Store};
use proptest::prelude::*;

use super::*;

/// A tokenizer of single bytes and a few longer tokens.
pub(crate) fn tokenizer() -> Tokenizer {
    let texts = [
        "the bridge was drained, café",
        "🦀 and the law of contracts",
    ];
    Tokenizer::train(texts.iter().map(ToString::to_string), 280).unwrap()
}

/// Records of three contributors, each with one text of tokens. The second and
/// the third stand in one cluster.
fn index(dir: &std::path::Path, texts: &[Vec<u32>]) -> SpanIndex {
    index_of(dir, texts, &[])
}

/// The same, the first of them in earlier versions.
fn index_of(dir: &std::path::Path, texts: &[Vec<u32>], earlier: &[u32]) -> SpanIndex {
    let last = u32::try_from(texts.len()).unwrap();
    let records: Vec<RecordRef> = (0..texts.len())
        .map(|n| RecordRef {
            hash: keccak256([u8::try_from(n).unwrap()]),
            contributor: Address::repeat_byte(u8::try_from(n % 3).unwrap() + 1),
            cluster: u32::try_from(if n == 2 { 1 } else { n }).unwrap(),
        })
        .collect();
    let corpus = Corpus {
        manifest: keccak256("manifest"),
        tokenizer: keccak256("tokenizer"),
        vocabulary_size: 300,
        versions: [earlier, &[last]].concat(),
        records: records.clone(),
    };
    let store = Store::open(dir).unwrap();
    let mut tokens = |record: &RecordRef| {
        let n = records.iter().position(|r| r.hash == record.hash).unwrap();
        Ok(vec![texts[n].clone()])
    };
    let id = store
        .update(&corpus, &BuildOptions::default(), &mut tokens, &mut |_| ())
        .unwrap();
    store.load(id).unwrap()
}

/// Texts of 60 tokens that share little, but the last repeats half of the first.
fn texts() -> Vec<Vec<u32>> {
    let text = |seed: u32| -> Vec<u32> { (0..60).map(|i| (i * i * seed + 7 * i) % 271).collect() };
    let mut texts: Vec<Vec<u32>> = (1..=5).map(text).collect();
    texts[2] = texts[1].clone();
    let half = texts[0][10..40].to_vec();
    texts.push(half);
    texts
}

fn sources<'a>(tokenizer: &'a Tokenizer, index: &'a SpanIndex) -> Sources<'a> {
    Sources {
        tokenizer,
        spans: Some(index),
        passages: &[],
    }
}

/// Two quotations, text of no record between them, one that many hold.
fn answer(texts: &[Vec<u32>]) -> Vec<u32> {
    let filler = [272, 273, 274, 275, 276];
    [
        &filler[..],
        &texts[0][5..45],
        &filler,
        &texts[1][..30],
        &texts[3][20..50],
        &filler,
    ]
    .concat()
}

#[test]
fn what_is_gathered_is_found_again_without_the_answer() {
    let dir = tempfile::tempdir().unwrap();
    let (texts, tokenizer) = (texts(), tokenizer());
    let index = index(dir.path(), &texts);
    let answer = answer(&texts);
    let gathered = gather(&answer, &sources(&tokenizer, &index)).unwrap();
    assert_eq!(
        gathered,
        gather(&answer, &sources(&tokenizer, &index)).unwrap()
    );

    let Gathered { evidence, object } = &gathered;
    let earned = index.units(&answer, &SpanRule::default()).unwrap();
    assert_eq!(evidence.spans(), &earned);
    assert!(!earned.weights.is_empty());
    let n_tokens = u32::try_from(answer.len()).unwrap();
    let shown = check(evidence, object, n_tokens, Some(&index)).unwrap();
    let spans = shown.spans.as_ref().unwrap();
    // Quotations that touch share a run; what stands between them is not shown.
    let covered: Vec<(u32, usize)> = spans
        .runs
        .iter()
        .map(|run| (run.start, run.tokens.len()))
        .collect();
    assert_eq!(covered, [(5, 40), (50, 60)]);
    let mut tokens = spans.runs.iter().flat_map(|run| &run.tokens);
    assert!(
        tokens.all(|&token| token < 272),
        "a token of no record is shown"
    );
    // The first is held by the record that it is from, in part by another.
    let first = &spans.found[0];
    assert_eq!((first.start, first.len, first.holders.len()), (5, 40, 1));
    assert_eq!(shown.tokens(first).unwrap(), &texts[0][5..45]);
    // Copies are one cluster, paid to its owner, the second contributor.
    let copied = &spans.found[1];
    assert_eq!(copied.holders.len(), 1);
    assert_eq!(copied.holders[0].contributor, Address::repeat_byte(2));
}

#[test]
fn nothing_to_show_is_no_evidence() {
    let dir = tempfile::tempdir().unwrap();
    let (texts, tokenizer) = (texts(), tokenizer());
    let index = index(dir.path(), &texts);
    let own: Vec<u32> = (0..100).map(|i| 272 + i % 7).collect();
    for answer in [&own[..], &[]] {
        let gathered = gather(answer, &sources(&tokenizer, &index)).unwrap();
        assert_eq!(gathered, Gathered::default());
        assert_eq!(gathered.evidence.hash(), Evidence::default().hash());
    }
    // Without an index nothing is looked for.
    let without = Sources {
        tokenizer: &tokenizer,
        spans: None,
        passages: &[],
    };
    assert_eq!(
        gather(&answer(&texts), &without).unwrap(),
        Gathered::default()
    );
}

#[test]
fn places_in_the_text_are_code_points() {
    let tokenizer = tokenizer();
    let texts = [
        "naïve 🦀 crabs walk over the café of the law",
        "another record",
    ];
    let encoded: Vec<Vec<u32>> = texts.iter().map(|t| tokenizer.encode(t).unwrap()).collect();
    let dir = tempfile::tempdir().unwrap();
    let index = index(dir.path(), &encoded);
    let before = "¡Olé! ";
    let answer = [tokenizer.encode(before).unwrap(), encoded[0].clone()].concat();
    let gathered = gather(&answer, &sources(&tokenizer, &index)).unwrap();
    let shown = Shown::from_bytes(&gathered.object).unwrap();
    let span = &shown.spans.unwrap().found[0];
    let chars: Vec<char> = tokenizer.decode(&answer).chars().collect();
    let (start, end) = (span.text.0 as usize, span.text.1 as usize);
    let words: String = chars[start..end].iter().collect();
    assert_eq!(words, texts[0]);
}

#[test]
fn limits_are_kept() {
    let tokenizer = tokenizer();
    let passage = Passage {
        version: B256::ZERO,
        record: B256::ZERO,
        cluster: 0,
        contributor: Address::repeat_byte(1),
        start: 0,
        end: 1,
        drop_millinats: 1,
    };
    let passages = vec![passage; PASSAGES_MAX + 1];
    let sources = Sources {
        tokenizer: &tokenizer,
        spans: None,
        passages: &passages,
    };
    let n_passages = PASSAGES_MAX + 1;
    assert!(matches!(
        gather(&[1], &sources),
        Err(GatherError::TooManyPassages { n_passages: n }) if n == n_passages
    ));
    let dir = tempfile::tempdir().unwrap();
    let index = index(dir.path(), &texts());
    let unknown = Sources {
        tokenizer: &tokenizer,
        spans: Some(&index),
        passages: &[],
    };
    assert!(matches!(
        gather(&[9_999], &unknown),
        Err(GatherError::Spans(_))
    ));
    assert!(Shown::from_bytes(br#"{"format":"other","n_tokens":1}"#).is_err());
    assert!(Shown::from_bytes(b"{}").is_err());
}

/// Every lie about the spans that a stranger can see.
#[test]
fn lies_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let (texts, tokenizer) = (texts(), tokenizer());
    let index = index(dir.path(), &texts);
    let answer = answer(&texts);
    let n_tokens = u32::try_from(answer.len()).unwrap();
    let honest = gather(&answer, &sources(&tokenizer, &index)).unwrap();
    let shown = Shown::from_bytes(&honest.object).unwrap();
    type Lie = (&'static str, fn(&mut ShownSpans));
    let lies: &[Lie] = &[
        ("evidence.corpus", |s| s.corpus.0[0] ^= 1),
        // More than the answer's other tokens can hold, and less than those shown.
        ("evidence.total", |s| s.total_units *= 50),
        ("evidence.total", |s| {
            s.total_units = s.found.iter().map(|span| span.units).sum()
        }),
        ("evidence.span 0", |s| s.found[0].units += 1),
        ("evidence.span 0", |s| s.found[0].start += 1),
        ("evidence.span 0", |s| s.found[0].len -= 1),
        ("evidence.span 0", |s| s.found[0].since += 1),
        ("evidence.span 0", |s| {
            s.found[0].holders[0].contributor = Address::repeat_byte(9)
        }),
        ("evidence.span 0", |s| {
            s.found[0].holders[0].record.0[0] ^= 1
        }),
        ("evidence.span 1", |s| {
            let more = s.found[1].holders[0];
            s.found[1].holders.push(ShownHolder { cluster: 4, ..more });
        }),
        ("evidence.span 0", |s| drop(s.found.remove(0))),
        ("evidence.span 3", |s| s.found.push(s.found[0].clone())),
        ("evidence.span 0", |s| s.runs[0].tokens[20] = 271),
        ("evidence.span 0", |s| drop(s.runs.remove(0))),
        ("evidence.runs", |s| s.runs.swap(0, 1)),
        ("evidence.runs", |s| s.runs[1].start = 45),
        ("evidence.runs", |s| s.runs[1].start = u32::MAX),
        ("evidence.runs", |s| s.runs[1].tokens.clear()),
        ("evidence.runs", |s| s.runs[1].tokens[0] = 9_999),
    ];
    for (n, (part, lie)) in lies.iter().enumerate() {
        let mut lying = shown.clone();
        lie(lying.spans.as_mut().unwrap());
        let object = serde_json::to_vec(&lying).unwrap();
        // A liar pays by what it shows.
        let [spans, context] = lying.earned();
        let evidence = Evidence::new(spans, context, keccak256(&object)).unwrap();
        let difference = check(&evidence, &object, n_tokens, Some(&index)).unwrap_err();
        assert_eq!(difference.part, *part, "lie {n}: {difference}");
    }
    // What is shown, and other weights.
    let mut spans = honest.evidence.spans().clone();
    spans.weights[0].1 += 1;
    let id = honest.evidence.object().unwrap();
    let other = Evidence::new(spans, Earned::default(), id).unwrap();
    let difference = check(&other, &honest.object, n_tokens, Some(&index)).unwrap_err();
    assert_eq!(difference.part, "evidence.spans");
    let other = Evidence::new(
        honest.evidence.spans().clone(),
        Earned::new(vec![(Address::repeat_byte(1), 1)], 1),
        id,
    );
    let difference = check(&other.unwrap(), &honest.object, n_tokens, None).unwrap_err();
    assert_eq!(difference.part, "evidence.context: total");
    // A total that the answer may have, and that is not what the object shows.
    let mut spans = honest.evidence.spans().clone();
    spans.total += 1;
    let other = Evidence::new(spans, Earned::default(), id).unwrap();
    let difference = check(&other, &honest.object, n_tokens, Some(&index)).unwrap_err();
    assert_eq!(difference.part, "evidence.spans: total");
    let difference = check(&honest.evidence, &honest.object, n_tokens + 1, None).unwrap_err();
    assert_eq!(difference.part, "evidence.n_tokens");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Pieces of records in any order: what is worth something in the whole
    /// answer is worth the same in its runs.
    #[test]
    fn honest_evidence_of_any_answer_is_found_again(
        pieces in prop::collection::vec((0..6_usize, 0..60_usize, 0..60_usize, 0..4_usize), 0..9),
        earlier in prop::sample::subsequence(vec![1, 2, 3, 4, 5], 0..4),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (texts, tokenizer) = (texts(), tokenizer());
        let index = index_of(dir.path(), &texts, &earlier);
        let mut answer = Vec::new();
        for (text, a, b, n_own) in pieces {
            let text = &texts[text];
            let (a, b) = (a.min(text.len()), b.min(text.len()));
            answer.extend(&text[a.min(b)..a.max(b)]);
            answer.extend(vec![273; n_own]);
        }
        let gathered = gather(&answer, &sources(&tokenizer, &index)).unwrap();
        prop_assert_eq!(
            gathered.evidence.spans(),
            &index.units(&answer, &SpanRule::default()).unwrap()
        );
        if !gathered.object.is_empty() {
            let n_tokens = u32::try_from(answer.len()).unwrap();
            let checked = check(&gathered.evidence, &gathered.object, n_tokens, Some(&index));
            prop_assert!(checked.is_ok(), "{:?}", checked);
        }
    }

    #[test]
    fn arbitrary_objects_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Shown::from_bytes(&bytes);
    }
}
