//! Goal: a chain is found by the very tokens and the very adapter that made it,
//! and memory is given back in the order stated.
//! Method: a reference tree of token lists beside the real one, under random
//! use; named cases for the bugs that others had.

use std::collections::BTreeMap;

use ol_model::{KvCache, KvPool, Model, ModelConfig, Pool, Segment};
use proptest::prelude::*;

use super::*;

fn config() -> ModelConfig {
    ModelConfig {
        vocab_size: 8,
        hidden_size: 16,
        intermediate_size: 16,
        num_hidden_layers: 1,
        num_attention_heads: 1,
        num_key_value_heads: 1,
        head_dim: 16,
        max_position_embeddings: 512,
        ..ModelConfig::default_base()
    }
}

struct World {
    model: Model,
    threads: Pool,
    pool: KvPool,
}

impl World {
    fn new(n_pages: usize) -> Self {
        let model = Model::random(config(), 1).unwrap();
        let pool = KvPool::new(model.config(), n_pages);
        Self {
            model,
            threads: Pool::new(1),
            pool,
        }
    }

    /// Finds what there is, computes the rest, and offers it.
    fn run(&self, cache: &mut PrefixCache, root: &Root, tokens: &[u32]) -> (Chain, usize) {
        let (mut chain, pages) = cache.acquire(root, tokens);
        let n_found = pages.len() * PAGE_TOKENS;
        let mut kv = KvCache::beginning_with(&self.pool, 512, &pages);
        drop(pages);
        let n_pages = (tokens.len() - n_found).div_ceil(PAGE_TOKENS);
        while self.pool.free_pages() < n_pages && cache.evict() {}
        let mut segments = [Segment {
            tokens: &tokens[n_found..],
            cache: &mut kv,
            adapter: None,
        }];
        self.model.forward(&self.threads, &mut segments).unwrap();
        while let Some(page) = kv.full_page(chain.n_pages()) {
            let from = chain.n_pages() * PAGE_TOKENS;
            let ids = &tokens[from..from + PAGE_TOKENS];
            if cache.extend(&mut chain, ids, page).is_none() {
                break;
            }
        }
        (chain, n_found)
    }

    fn use_once(&self, cache: &mut PrefixCache, root: &Root, tokens: &[u32]) -> usize {
        let (chain, n_found) = self.run(cache, root, tokens);
        cache.release(chain);
        n_found
    }
}

fn root(adapter: Option<u8>) -> Root {
    Root {
        adapter: adapter.map(B256::repeat_byte),
        scope: Scope::Everyone,
    }
}

fn tokens(n: usize, seed: u32) -> Vec<u32> {
    let n = u32::try_from(n).unwrap();
    (0..n).map(|i| (i * i + i / 7 + seed) % 8).collect()
}

#[test]
fn whole_pages_before_the_last_token_are_found() {
    let world = World::new(64);
    let mut cache = PrefixCache::new(64);
    let text = tokens(40, 0);
    assert_eq!(world.use_once(&mut cache, &root(None), &text), 0);
    assert_eq!(world.use_once(&mut cache, &root(None), &text), 32);
    // Its last token is computed, even where its page is there.
    assert_eq!(world.use_once(&mut cache, &root(None), &text[..32]), 16);
    let mut other = text;
    other[20] ^= 1;
    assert_eq!(world.use_once(&mut cache, &root(None), &other), 16);
    assert_eq!(cache.n_pages(), 3);
    assert_eq!(cache.n_idle(), 3);
}

/// vLLM #42125: a name that was loaded again found pages of the version before.
/// Here the key is the content's hash, so another version has nothing.
#[test]
fn another_adapter_finds_nothing() {
    let world = World::new(64);
    let mut cache = PrefixCache::new(64);
    let text = tokens(40, 0);
    for (adapter, found) in [(None, 0), (Some(1), 0), (Some(2), 0), (Some(1), 32)] {
        assert_eq!(world.use_once(&mut cache, &root(adapter), &text), found);
    }
}

/// The time of an answer tells nothing about another tenant's prompts.
#[test]
fn another_tenant_finds_nothing() {
    let world = World::new(64);
    let mut cache = PrefixCache::new(64);
    let text = tokens(40, 0);
    let tenant = |name: &str| Root {
        adapter: None,
        scope: Scope::Tenant(name.into()),
    };
    let shared = root(None);
    for (root, found) in [
        (&tenant("a"), 0),
        (&tenant("b"), 0),
        (&shared, 0),
        (&tenant("a"), 32),
        (&tenant(""), 0),
    ] {
        assert_eq!(world.use_once(&mut cache, root, &text), found);
    }
}

#[test]
fn the_least_recently_used_end_goes_first() {
    let world = World::new(64);
    let mut cache = PrefixCache::new(64);
    let (old, new) = (tokens(49, 1), tokens(49, 2));
    world.use_once(&mut cache, &root(None), &old);
    world.use_once(&mut cache, &root(None), &new);
    assert_eq!((cache.n_pages(), world.pool.free_pages()), (6, 58));
    for n_left in (3..6).rev() {
        assert!(cache.evict());
        assert_eq!((cache.n_pages(), cache.n_idle()), (n_left, n_left));
    }
    assert_eq!(world.use_once(&mut cache, &root(None), &new), 48);
    // A page that is in use stays, and so do those before it.
    let (chain, _) = world.run(&mut cache, &root(None), &new);
    assert!(!cache.evict());
    cache.release(chain);
    while cache.evict() {}
    assert_eq!((cache.n_pages(), world.pool.free_pages()), (0, 64));
    assert!(cache.roots.is_empty() && cache.children.is_empty() && cache.nodes.is_empty());
}

#[test]
fn without_room_nothing_is_kept() {
    let world = World::new(64);
    let mut cache = PrefixCache::new(2);
    let text = tokens(80, 0);
    assert_eq!(world.use_once(&mut cache, &root(None), &text), 0);
    assert_eq!(cache.n_pages(), 2);
    assert_eq!(world.use_once(&mut cache, &root(None), &text), 32);
    let mut off = PrefixCache::new(0);
    world.use_once(&mut off, &root(None), &text);
    assert_eq!(world.use_once(&mut off, &root(None), &text), 0);
    assert_eq!(off.n_pages(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever is used, kept, given back and dropped: what is found is a prefix
    /// that was computed for this root, pages are counted right, and at the end
    /// nothing is left.
    #[test]
    fn what_is_found_was_computed_and_nothing_leaks(
        steps in prop::collection::vec((0_u8..5, 0_u8..3, 0_u32..4, 1_usize..70), 1..60),
        n_pages_max in 0_usize..12,
    ) {
        let world = World::new(64);
        let mut cache = PrefixCache::new(n_pages_max);
        let mut computed: BTreeMap<u8, Vec<Vec<u32>>> = BTreeMap::new();
        let mut in_use: Vec<Chain> = Vec::new();
        for (what, adapter, seed, n) in steps {
            match what {
                0..=2 => {
                    let text = tokens(n, seed);
                    let (chain, n_found) = world.run(&mut cache, &root(Some(adapter)), &text);
                    let earlier = computed.entry(adapter).or_default();
                    let is_known = |text: &Vec<u32>| text.starts_with(&tokens(n, seed)[..n_found]);
                    prop_assert!(n_found == 0 || earlier.iter().any(is_known));
                    prop_assert!(n_found < text.len());
                    earlier.push(text);
                    if what == 2 && in_use.len() < 8 {
                        in_use.push(chain);
                    } else {
                        cache.release(chain);
                    }
                }
                3 => {
                    if let Some(chain) = in_use.pop() {
                        cache.release(chain);
                    }
                }
                _ => {
                    cache.evict();
                }
            }
            prop_assert!(cache.n_pages() <= n_pages_max);
            // Only the tree holds pages here.
            prop_assert_eq!(world.pool.free_pages(), 64 - cache.n_pages());
            let n_idle = cache.nodes.values().filter(|n| n.page.is_some() && n.n_users == 0).count();
            prop_assert_eq!(cache.n_idle(), n_idle);
        }
        for chain in in_use {
            cache.release(chain);
        }
        while cache.evict() {}
        prop_assert!(cache.roots.is_empty() && cache.children.is_empty() && cache.nodes.is_empty());
        prop_assert_eq!(world.pool.free_pages(), 64);
    }
}
