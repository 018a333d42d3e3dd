use super::*;
use crate::embedder::tests::folder;
use crate::passage::tests::committed;

fn records() -> Vec<CommittedRecord> {
    vec![
        committed(
            "Who drained the Ronin bridge?",
            "A group stole validator keys of the Ronin bridge.",
            1,
            0,
        ),
        committed(
            "What is asthma?",
            "Asthma is a disease of the airways.",
            2,
            1,
        ),
        committed(
            "What is asthma",
            "Asthma is a disease of the small airways!",
            3,
            2,
        ),
        committed(
            "How was Euler drained?",
            "A flash loan and a missing health check.",
            1,
            3,
        ),
    ]
}

fn found(retriever: &Retriever, query: &str, method: Method) -> Vec<u32> {
    let hits = retriever.search(query, 4, method).unwrap();
    hits.iter().map(|hit| hit.passage).collect()
}

#[test]
fn of_near_copies_the_first_is_found_at_the_rank_of_the_best() {
    let retriever = Retriever::new("demo", B256::ZERO, &records(), CutRule::default()).unwrap();
    // The copy has one more word of the query, and scores above the original.
    let hits = retriever.lexical.search("small airways of asthma", 4);
    assert_eq!(hits[0].passage, 2);
    let kept = retriever
        .search("small airways of asthma", 4, Method::Lexical)
        .unwrap();
    assert_eq!((kept[0].passage, kept[0].score), (1, hits[0].score));
    assert!(kept.iter().all(|hit| hit.passage != 2));
    assert_eq!(
        found(&retriever, "who drained the bridge", Method::Lexical)[0],
        0
    );
    assert!(found(&retriever, "", Method::Lexical).is_empty());
    assert_eq!(retriever.default_method(), Method::Lexical);
    let refused = retriever.search("asthma", 4, Method::Hybrid);
    assert!(matches!(refused, Err(RetrievalError::NoEmbeddings)));
}

#[test]
fn fusion_adds_reciprocal_ranks() {
    let list = |passages: &[u32]| -> Vec<Hit> {
        let hit = |&passage: &u32| Hit { passage, score: 9 };
        passages.iter().map(hit).collect()
    };
    let fused = fuse(&[list(&[5, 3, 8]), list(&[3, 9])]);
    let wanted = [
        (3, ONE / 62 + ONE / 61),
        (5, ONE / 61),
        (9, ONE / 62),
        (8, ONE / 63),
    ];
    let fused: Vec<(u32, u64)> = fused.iter().map(|hit| (hit.passage, hit.score)).collect();
    assert_eq!(fused, wanted);
    // Ties go to the lower position.
    let tie = fuse(&[list(&[7]), list(&[2])]);
    assert_eq!((tie[0].passage, tie[1].passage), (2, 7));
}

#[test]
fn embeddings_are_one_more_way_to_find() {
    let dir = folder();
    let embedder = Arc::new(Embedder::load(dir.path(), 1).unwrap());
    let retriever = Retriever::new("demo", B256::ZERO, &records(), CutRule::default())
        .unwrap()
        .with_embeddings(embedder, None, &mut |_| ())
        .unwrap();
    assert_eq!(retriever.default_method(), Method::Hybrid);
    let text = retriever.passages().get(3).unwrap().text.to_owned();
    assert_eq!(found(&retriever, &text, Method::Embedding)[0], 3);
    assert_eq!(found(&retriever, &text, Method::Hybrid)[0], 3);
    assert!(
        retriever
            .search(&text, 1_000, Method::Hybrid)
            .unwrap()
            .len()
            <= TOP_K_MAX
    );
}
