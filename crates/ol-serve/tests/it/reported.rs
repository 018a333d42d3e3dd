//! Bugs that were published about other servers of many adapters, each as a test.

use ol_serve::{AdapterStore, EngineOptions, GenerateRequest};

use crate::drive::{Driven, Reader};
use crate::support::{adapter, adapter_store as store, lora, oracle, request};

fn prompt() -> GenerateRequest {
    let mut prompt = request("the quick brown fox jumps over the lazy dog", 12);
    prompt.prompt_tokens = prompt
        .prompt_tokens
        .iter()
        .copied()
        .cycle()
        .take(70)
        .collect();
    prompt
}

fn with(store: &AdapterStore, name: &str) -> GenerateRequest {
    GenerateRequest {
        adapter: Some(store.resolve(name).unwrap()),
        ..prompt()
    }
}

fn ask(driven: &mut Driven, request: &GenerateRequest) -> Reader {
    let mut reader = driven.submit(request).unwrap();
    driven.finish();
    reader.check();
    reader
}

fn n_cached(reader: &Reader) -> usize {
    reader.end.as_ref().unwrap().as_ref().unwrap().tokens_cached
}

/// vLLM #47724: a request in flight was answered with another user's adapter
/// after one was added.
#[test]
fn a_request_in_flight_keeps_its_adapter_while_others_come_and_go() {
    let mut driven = Driven::new(EngineOptions::default());
    let store = store();
    store.insert("mine", lora(4, 1)).unwrap();
    let mut mine = driven.submit(&with(&store, "mine")).unwrap();
    for other in 2..8 {
        driven.scheduler.turn();
        store.insert("mine", lora(4, other)).unwrap();
        store.insert("theirs", lora(9, other)).unwrap();
        driven.submit(&with(&store, "theirs")).unwrap();
    }
    store.unload("mine").unwrap();
    driven.finish();
    mine.check();
    assert!(matches!(mine.end, Some(Ok(_))));
}

/// vLLM #42125: a name that was loaded again was answered from pages of the
/// prefix cache that the version before it had computed.
#[test]
fn a_name_that_is_loaded_again_finds_no_pages_of_the_version_before() {
    let mut driven = Driven::new(EngineOptions::default());
    let store = store();
    store.insert("legal", lora(4, 1)).unwrap();
    let old = ask(&mut driven, &with(&store, "legal"));
    assert_eq!(n_cached(&old), 0);
    assert_eq!(n_cached(&ask(&mut driven, &with(&store, "legal"))), 64);
    store.insert("legal", lora(4, 2)).unwrap();
    let new = ask(&mut driven, &with(&store, "legal"));
    assert_eq!(n_cached(&new), 0);
    assert_ne!(new.token_ids, old.token_ids);
    // The same content under another name is the same adapter.
    store.insert("law", lora(4, 1)).unwrap();
    assert_eq!(n_cached(&ask(&mut driven, &with(&store, "law"))), 64);
}

/// vLLM #12199: wrong output after an adapter was loaded while others ran.
#[test]
fn the_base_and_its_adapters_share_no_pages() {
    let mut driven = Driven::new(EngineOptions::default());
    let mut answers = Vec::new();
    for _ in 0..2 {
        for adapter in [None, Some(adapter(4, 1)), Some(adapter(9, 7))] {
            let request = GenerateRequest {
                adapter,
                ..prompt()
            };
            answers.push(ask(&mut driven, &request));
        }
    }
    let cached: Vec<usize> = answers.iter().map(n_cached).collect();
    assert_eq!(cached, [0, 0, 0, 64, 64, 64]);
}

/// vLLM #8559, LoRAServe: adapters of different ranks in one batch slowed or
/// disturbed each other. (Speed is measured in the benchmarks.)
#[test]
fn ranks_are_mixed_in_one_batch() {
    let mut driven = Driven::new(EngineOptions::default());
    let ranks = [1, 4, 9, 16, 64];
    let mut readers: Vec<Reader> = ranks
        .iter()
        .map(|&rank| GenerateRequest {
            adapter: Some(adapter(rank, 3)),
            ..prompt()
        })
        .chain([prompt()])
        .map(|request| driven.submit(&request).unwrap())
        .collect();
    driven.scheduler.turn();
    assert_eq!(driven.engine.stats().n_running, ranks.len() + 1);
    driven.finish();
    readers.iter_mut().for_each(Reader::check);
}

/// One tenant's prompt must not be told by how soon another is answered.
#[test]
fn a_prompt_of_another_tenant_is_not_found() {
    let mut driven = Driven::new(EngineOptions::default());
    let of = |tenant: &str| GenerateRequest {
        tenant: tenant.into(),
        ..prompt()
    };
    for (tenant, cached) in [("a", 0), ("b", 0), ("a", 64), ("b", 64)] {
        assert_eq!(n_cached(&ask(&mut driven, &of(tenant))), cached);
    }
}

/// A conversation goes on: the answer is part of what is found.
#[test]
fn the_next_turn_of_a_conversation_finds_the_answer_too() {
    let mut driven = Driven::new(EngineOptions::default());
    let first = prompt();
    let answer = oracle(&first).1.token_ids;
    ask(&mut driven, &first);
    let mut next = first;
    next.prompt_tokens.extend(&answer);
    next.prompt_tokens.extend([9, 10, 11]);
    // 70 + 12 tokens, of which the last was drawn and never computed.
    assert_eq!(n_cached(&ask(&mut driven, &next)), 80);
}
