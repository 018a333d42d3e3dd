//! Bugs that were published about other servers of many adapters, each as a test.

use std::fmt;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ol_runtime::ManualClock;
use ol_serve::{
    AdapterComponents, AdapterError, AdapterFiles, AdapterSource, AdapterStore,
    AdapterStoreOptions, EngineOptions, GenerateError, GenerateRequest, RegisterOptions, Turn,
};

use crate::drive::{Driven, Reader};
use crate::support::{adapter, adapter_store as store, base, lora, oracle, request};

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

/// Files of an adapter; reading them again waits until the gate is opened.
#[derive(Debug)]
struct Gated {
    files: AdapterFiles,
    gate: Mutex<Option<Receiver<()>>>,
}

impl fmt::Display for Gated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a gated source")
    }
}

impl AdapterSource for Gated {
    fn read(&self, _: u64) -> Result<AdapterFiles, AdapterError> {
        if let Some(gate) = &*self.gate.lock().unwrap() {
            // Closed for good when the test is over.
            let _ = gate.recv();
        }
        Ok(self.files.clone())
    }
}

/// Three adapters of which two fit the memory; loading the third waits for the
/// sender.
fn store_with_a_slow_one() -> (AdapterStore, Sender<()>) {
    let size_bytes = lora(4, 1).resident_size_bytes() as u64;
    let options = AdapterStoreOptions {
        host_budget_bytes: 5 * size_bytes / 2,
        ..AdapterStoreOptions::default()
    };
    let components = AdapterComponents::new(Arc::new(ManualClock::new(0)));
    let store = AdapterStore::open(base().config(), options, components).unwrap();
    let (open, gate) = channel();
    let mut last = None;
    for (name, seed) in [("a", 2), ("b", 3), ("slow", 1)] {
        let (config, weights) = lora(4, seed).to_bytes("base");
        let files = AdapterFiles::Peft {
            config: config.into(),
            weights: weights.into(),
        };
        let source = Arc::new(Gated {
            files,
            gate: Mutex::new(None),
        });
        last = Some(Arc::clone(&source));
        store
            .register_from(name, source, RegisterOptions::default())
            .unwrap();
    }
    *last.unwrap().gate.lock().unwrap() = Some(gate);
    (store, open)
}

/// vLLM #5564, #18217: while one adapter was loaded, requests of others waited.
#[test]
fn a_slow_load_keeps_nobody_else_waiting() {
    let (store, open) = store_with_a_slow_one();
    let mut driven = Driven::new(EngineOptions {
        n_rows_max: 1,
        ..EngineOptions::default()
    });
    let running = driven.submit(&with(&store, "a")).unwrap();
    driven.scheduler.turn();
    let mut slow = driven.submit(&with(&store, "slow")).unwrap();
    let mut others = [running, driven.submit(&prompt()).unwrap()];
    driven.finish();
    for other in &mut others {
        other.read();
        assert!(matches!(other.end, Some(Ok(_))));
    }
    assert!(!slow.read());
    assert_eq!(driven.engine.stats().n_loading, 1);
    open.send(()).unwrap();
    while !slow.read() || slow.end.is_none() {
        driven.scheduler.turn();
        std::thread::yield_now();
    }
    assert_eq!(
        slow.token_ids,
        oracle(&GenerateRequest {
            adapter: Some(adapter(4, 1)),
            ..prompt()
        })
        .1
        .token_ids
    );
}

/// Whoever waits for an adapter can leave, and its time can run out.
#[test]
fn a_request_that_loads_can_end_before_it_began() {
    let (store, _open) = store_with_a_slow_one();
    let mut driven = Driven::new(EngineOptions::default());
    let mut leaves = driven.submit(&with(&store, "slow")).unwrap();
    let mut late = driven
        .submit(&GenerateRequest {
            timeout: Some(Duration::from_secs(1)),
            ..with(&store, "slow")
        })
        .unwrap();
    driven.finish();
    assert_eq!(driven.engine.stats().n_loading, 2);
    assert_eq!(driven.scheduler.turn(), Turn::Idle { until_s: Some(1.0) });
    leaves.cancel();
    driven.clock.advance(Duration::from_secs(1));
    driven.finish();
    late.read();
    assert_eq!(late.end, Some(Err(GenerateError::Deadline)));
    driven.check_empty();
}
