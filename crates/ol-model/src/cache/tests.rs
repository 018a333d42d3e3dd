use proptest::prelude::*;

use super::*;
use crate::isa::Isa;
use crate::kernels::{Mat, MatMut, Panels, matmul_here};
use crate::random::Random;

const LAYERS: usize = 2;
const HEADS: usize = 2;
const DIM: usize = 6;

fn config() -> ModelConfig {
    ModelConfig {
        num_hidden_layers: LAYERS,
        num_attention_heads: HEADS,
        num_key_value_heads: HEADS,
        head_dim: DIM,
        max_position_embeddings: 100,
        ..ModelConfig::default_base()
    }
}

/// The key or value rows of a token, all heads: a function of what it is.
fn row(token: u64, layer: usize, value: bool) -> Vec<f32> {
    let mut random = Random::new(token * 4 + layer as u64 * 2 + u64::from(value));
    (0..HEADS * DIM).map(|_| random.normal()).collect()
}

fn push(cache: &mut KvCache, token: u64) -> Result<(), PoolFull> {
    cache.reserve(1)?;
    for layer in 0..LAYERS {
        let at = cache.len();
        cache.write(
            layer,
            at,
            &row(token, layer, false),
            &row(token, layer, true),
        );
    }
    cache.advance(1);
    Ok(())
}

/// Products over the pages against products over one contiguous matrix.
fn check(cache: &KvCache, tokens: &[u64]) {
    let n = tokens.len();
    assert_eq!(cache.len(), n);
    let rows = 3;
    let mut random = Random::new(1);
    let mut draw = |n: usize| -> Vec<f32> { (0..n).map(|_| random.normal()).collect() };
    let (queries, weights) = (draw(rows * DIM), draw(rows * n));
    for layer in 0..LAYERS {
        for head in 0..HEADS {
            let gather = |value| -> Vec<f32> {
                let rows = tokens.iter().map(|&t| row(t, layer, value));
                rows.flat_map(|row| row[head * DIM..(head + 1) * DIM].to_vec())
                    .collect()
            };
            let (keys, values) = (gather(false), gather(true));
            let keys = Panels::pack(Mat::new(&keys, n, DIM).t());
            let values = Panels::pack(Mat::new(&values, n, DIM));
            for isa in Isa::available() {
                for from in (0..n).step_by(PAGE_TOKENS) {
                    let seen = n - from;
                    let mut want = vec![0.0; rows * (seen + DIM)];
                    let mut got = want.clone();
                    for (out, keys, values) in [
                        (
                            &mut want,
                            keys.view().columns(from..n),
                            values.view().rows(from..n),
                        ),
                        (
                            &mut got,
                            cache.keys(layer, head, from..n),
                            cache.values(layer, head, from..n),
                        ),
                    ] {
                        let (scores, sums) = out.split_at_mut(rows * seen);
                        let queries = Mat::new(&queries, rows, DIM);
                        let scores = MatMut::new(scores, rows, seen);
                        matmul_here(isa, queries, keys, scores, false);
                        let weights = Mat::strided(&weights, rows, seen, n);
                        let sums = MatMut::new(sums, rows, DIM);
                        matmul_here(isa, weights, values, sums, false);
                    }
                    let bits = |x: &[f32]| x.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                    assert!(bits(&want) == bits(&got), "{n} tokens from {from}, {isa:?}");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Sequences that grow, are cut, copied and dropped in any order hold
    /// what they would hold alone, and every page is counted.
    #[test]
    fn pages_hold_what_contiguous_memory_would(
        steps in prop::collection::vec((0..6_u8, 0..4_usize, 1..40_usize), 1..40),
        n_pages in 1..12_usize,
    ) {
        let pool = KvPool::new(&config(), n_pages);
        let mut all: Vec<(KvCache, Vec<u64>)> = vec![(KvCache::in_pool(&pool, 100), Vec::new())];
        let mut next_token = 0;
        for (what, which, n) in steps {
            let at = which % all.len();
            match what {
                0..=2 => {
                    let (cache, tokens) = &mut all[at];
                    for _ in 0..n {
                        next_token += 1;
                        let free = pool.free_pages();
                        match push(cache, next_token) {
                            Ok(()) => tokens.push(next_token),
                            Err(error) => {
                                prop_assert_eq!(error, PoolFull { needed_pages: 1, free_pages: 0 });
                                prop_assert_eq!(free, 0);
                                break;
                            }
                        }
                    }
                }
                3 => {
                    let (cache, tokens) = &mut all[at];
                    cache.truncate(n);
                    tokens.truncate(n);
                }
                4 => {
                    let copy = all[at].clone();
                    all.push(copy);
                }
                _ => {
                    all.swap_remove(at);
                    if all.is_empty() {
                        prop_assert_eq!(pool.free_pages(), n_pages);
                        all.push((KvCache::in_pool(&pool, 100), Vec::new()));
                    }
                }
            }
            let mut pages: Vec<*const Page> =
                all.iter().flat_map(|(c, _)| c.pages.iter().map(Arc::as_ptr)).collect();
            pages.sort_unstable();
            pages.dedup();
            prop_assert_eq!(pool.free_pages(), n_pages - pages.len());
        }
        for (cache, tokens) in &all {
            check(cache, tokens);
        }
        drop(all);
        prop_assert_eq!(pool.free_pages(), n_pages);
    }
}

#[test]
fn a_refused_reservation_changes_nothing() {
    let pool = KvPool::new(&config(), 3);
    let mut cache = KvCache::in_pool(&pool, 100);
    for token in 0..20 {
        push(&mut cache, token).unwrap();
    }
    let mut copy = cache.clone();
    let full = PoolFull {
        needed_pages: 2,
        free_pages: 1,
    };
    assert_eq!(copy.reserve(20), Err(full));
    assert_eq!(
        full.to_string(),
        "2 more pages of the KV pool are needed, 1 are free"
    );
    assert_eq!(pool.free_pages(), 1);
    check(&copy, &(0..20).collect::<Vec<_>>());
    push(&mut copy, 77).unwrap();
    check(&cache, &(0..20).collect::<Vec<_>>());
    assert_eq!(pool.free_pages(), 0);
    drop(cache);
    // The first page is still the copy's.
    assert_eq!(pool.free_pages(), 1);
}

#[test]
fn remote_pages_are_numbers_that_no_two_pages_share() {
    let pool = KvPool::remote(&config(), 4);
    let mut cache = KvCache::in_pool(&pool, 100);
    assert_eq!(cache.reserve(20), Ok(Vec::new()));
    cache.advance(20);
    let mut copy = cache.clone();
    // The first page stays shared; the second is copied before it is written.
    assert_eq!(copy.reserve(20), Ok(vec![(1, 3)]));
    copy.advance(20);
    let numbers = |cache: &KvCache| cache.page_numbers().collect::<Vec<_>>();
    assert_eq!(
        (numbers(&cache), numbers(&copy)),
        (vec![0, 1], vec![0, 3, 2])
    );
    drop(cache);
    copy.truncate(16);
    let mut next = KvCache::in_pool(&pool, 100);
    next.reserve(40).unwrap();
    let mut numbers = numbers(&next);
    numbers.sort_unstable();
    assert_eq!(numbers, [1, 2, 3]);
    assert!(next.is_in(&pool) && !next.is_in(&KvPool::remote(&config(), 4)));
    assert!(!next.fits(&config()), "its contents are not here");
}

/// A cache that begins with full pages of another holds what it would hold
/// alone, shares their memory, and writes to none of them.
#[test]
fn full_pages_begin_other_caches() {
    let pool = KvPool::new(&config(), 8);
    let mut first = KvCache::in_pool(&pool, 100);
    for token in 0..40 {
        push(&mut first, token).unwrap();
    }
    let pages: Vec<KvPage> = (0..3).map_while(|i| first.full_page(i)).collect();
    assert_eq!(pages.len(), 2, "the third is not full");
    let mut second = KvCache::beginning_with(&pool, 100, &pages);
    drop(pages);
    for token in 90..95 {
        push(&mut second, token).unwrap();
    }
    assert_eq!(pool.free_pages(), 8 - 4);
    check(&first, &(0..40).collect::<Vec<_>>());
    check(&second, &(0..32).chain(90..95).collect::<Vec<_>>());
    // Who computed the same gives its own back.
    let mut third = KvCache::in_pool(&pool, 100);
    for token in 0..20 {
        push(&mut third, token).unwrap();
    }
    assert_eq!(pool.free_pages(), 8 - 6);
    third.adopt_page(0, &first.full_page(0).unwrap());
    assert_eq!(pool.free_pages(), 8 - 5);
    drop(first);
    check(&third, &(0..20).collect::<Vec<_>>());
    drop((second, third));
    assert_eq!(pool.free_pages(), 8);
}
