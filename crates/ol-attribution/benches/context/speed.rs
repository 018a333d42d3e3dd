//! How long it takes to index and to search, against bm25s.

use std::fs;
use std::hint::black_box;
use std::time::Instant;

use ol_model::Random;
use ol_retrieval::Lexical;

use crate::Rows;
use crate::peer::Peer;

const PYTHON: &str = "OPENLEDGER_BM25_PYTHON";
const N_PASSAGES: usize = 200_000;
const VOCABULARY: usize = 50_000;
const N_QUERIES: usize = 64;
const QUERY_WORDS: usize = 8;
const TOP_K: usize = 10;
const ROUNDS: usize = 5;

pub(crate) fn measure(rows: &mut Rows) -> anyhow::Result<()> {
    let mut random = Random::new(11);
    let lens: Vec<usize> = (0..N_PASSAGES).map(|_| 24 + random.below(64)).collect();
    let texts: Vec<String> = lens.iter().map(|&len| text(&mut random, len)).collect();
    let queries: Vec<String> = (0..N_QUERIES)
        .map(|_| text(&mut random, QUERY_WORDS))
        .collect();
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("texts"), texts.join("\n"))?;
    fs::write(folder.path().join("queries"), queries.join("\n"))?;

    let index = Lexical::new(texts.iter().map(String::as_str))?;
    let mut best = None;
    for kind in ["numpy", "numba"] {
        let mut peer = Peer::start("context", PYTHON, kind, folder.path());
        let (mut build, mut their_build) = (Vec::new(), Vec::new());
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let started = Instant::now();
            black_box(Lexical::new(texts.iter().map(String::as_str))?);
            build.push(started.elapsed().as_secs_f64());
            if let Some(peer) = &mut peer {
                their_build.push(peer.ask("build").0);
            }
            for (at, query) in queries.iter().enumerate() {
                let started = Instant::now();
                let hits = index.search(query, TOP_K);
                ours.push(started.elapsed().as_secs_f64() * 1e3);
                if let Some(peer) = &mut peer {
                    let (seconds, sum) = peer.ask(&format!("{at} {TOP_K}"));
                    theirs.push(seconds * 1e3);
                    let own_sum: u32 = hits.iter().map(|hit| hit.passage).sum();
                    best.get_or_insert_with(Vec::new)
                        .push(f64::from(own_sum) == sum);
                }
            }
        }
        let setting = format!("{N_PASSAGES} passages of 24 to 87 words");
        let queries = format!("{QUERY_WORDS} words, {TOP_K} best of {setting}");
        let works = [
            (format!("index {setting}"), "s", build, their_build),
            (format!("search by {queries}"), "ms", ours, theirs),
        ];
        for (work, unit, mut ours, mut theirs) in works {
            let ours = median(&mut ours);
            match &peer {
                Some(peer) => {
                    rows.race(&work, unit, ours, (&peer.name, median(&mut theirs)), ROUNDS);
                }
                None => rows.add(&work, unit, ours, ROUNDS),
            }
        }
    }
    if let Some(same) = best {
        let n_same = same.iter().filter(|same| **same).count();
        let work = format!("the same {TOP_K} best as bm25s");
        rows.add(&work, "%", crate::percent(n_same, same.len()), same.len());
    }
    Ok(())
}

/// Words drawn by Zipf's law.
fn text(random: &mut Random, len: usize) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "from 1 to the size of the vocabulary"
    )]
    let word = |uniform: f64| (VOCABULARY as f64).powf(uniform) as u32;
    let words: Vec<String> = (0..len)
        .map(|_| format!("w{}", word(random.uniform())))
        .collect();
    words.join(" ")
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}
