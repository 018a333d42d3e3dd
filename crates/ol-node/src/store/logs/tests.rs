//! Goal: the index never hides a block that holds what is asked for, and hides
//! nearly all others, however blocks come and go.
//! Method: random chains with unwinding, compared with a look at every log.

use alloy_primitives::Bytes;
use proptest::prelude::*;

use super::super::Store;
use super::*;

fn log(address: u8, topics: &[u8]) -> Log {
    let topics = topics.iter().map(|&t| B256::repeat_byte(t)).collect();
    Log::new(Address::repeat_byte(address), topics, Bytes::new()).unwrap()
}

fn found(txn: &Txn<Rw>, query: &LogQuery, from: u64, to: u64) -> Vec<u64> {
    let mut numbers = Vec::new();
    let visit = |number| {
        numbers.push(number);
        Ok::<_, StoreError>(())
    };
    let searched_to = txn.blocks_with_logs(query, from, to, visit).unwrap();
    assert_eq!(searched_to, to);
    numbers
}

/// A chain in memory: for every block its logs.
type Chain = Vec<Vec<Log>>;

/// The blocks in which, for every group, one of the logs fits.
fn expected(chain: &Chain, addresses: &[u8], topic: &[u8], from: u64, to: u64) -> Vec<u64> {
    (1_u64..)
        .zip(chain)
        .filter(|(number, logs)| {
            let has_address = addresses.is_empty()
                || logs
                    .iter()
                    .any(|log| addresses.contains(&log.address.as_slice()[0]));
            let has_topic = topic.is_empty()
                || logs.iter().any(|log| {
                    let found = log.topics().first();
                    found.is_some_and(|found| topic.contains(&found.as_slice()[0]))
                });
            (from..=to).contains(number) && has_address && has_topic
        })
        .map(|(number, _)| number)
        .collect()
}

fn query(addresses: &[u8], topic: &[u8]) -> LogQuery {
    let addresses = addresses
        .iter()
        .map(|&a| of_address(&Address::repeat_byte(a)));
    let topics = topic.iter().map(|&t| of_topic(0, &B256::repeat_byte(t)));
    let groups: [Vec<_>; 2] = [addresses.collect(), topics.collect()];
    LogQuery {
        groups: groups
            .into_iter()
            .filter(|group| !group.is_empty())
            .collect(),
    }
}

#[derive(Debug, Clone)]
enum Step {
    Block(Vec<(u8, Vec<u8>)>),
    Close,
    Unwind(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let topics = prop::collection::vec(0..8_u8, 0..=4);
    let block = prop::collection::vec((0..8_u8, topics), 0..4);
    prop_oneof![
        8 => block.prop_map(Step::Block),
        1 => Just(Step::Close),
        1 => (1..6_usize).prop_map(Step::Unwind),
    ]
}

proptest! {
    #[test]
    fn the_index_agrees_with_a_look_at_every_log(
        steps in prop::collection::vec(step(), 1..60),
        addresses in prop::collection::vec(0..8_u8, 0..3),
        topic in prop::collection::vec(0..8_u8, 0..3),
        from in 0..40_u64,
        span in 0..40_u64,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open::<StoreError>(dir.path(), 1 << 30, |_| Ok(())).unwrap();
        let txn = store.write().unwrap();
        let mut chain = Chain::new();
        for step in steps {
            match step {
                Step::Block(logs) => {
                    let logs: Vec<Log> = logs.iter().map(|(a, topics)| log(*a, topics)).collect();
                    txn.index_logs(chain.len() as u64 + 1, logs.iter()).unwrap();
                    chain.push(logs);
                }
                Step::Close => txn.close_section().unwrap(),
                Step::Unwind(n) => {
                    for _ in 0..n.min(chain.len()) {
                        txn.unindex_logs(chain.len() as u64).unwrap();
                        chain.pop();
                    }
                }
            }
        }
        if !(addresses.is_empty() && topic.is_empty()) {
            let to = from + span;
            prop_assert_eq!(
                found(&txn, &query(&addresses, &topic), from, to),
                expected(&chain, &addresses, &topic, from, to)
            );
        }
        prop_assert_eq!(found(&txn, &LogQuery::default(), 0, u64::MAX), Vec::<u64>::new());
    }
}

#[test]
fn sections_close_by_entries_and_by_span() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open::<StoreError>(dir.path(), 1 << 30, |_| Ok(())).unwrap();
    let txn = store.write().unwrap();
    let sections = || {
        let mut n = 0;
        let visit = |_: &[u8], _: &[u8]| {
            n += 1;
            Ok::<_, StoreError>(true)
        };
        txn.scan_from(txn.tables.log_sections, 0, visit).unwrap();
        n
    };
    // Every block has 1,001 entries of its own.
    let logs = |block: u64| -> Vec<Log> {
        (0..1_000)
            .map(|n| {
                let topic = B256::from(alloy_primitives::U256::from(block * 1_000 + n));
                Log::new(Address::ZERO, vec![topic], Bytes::new()).unwrap()
            })
            .collect()
    };
    for block in 1..=40 {
        txn.index_logs(block, logs(block).iter()).unwrap();
    }
    assert_eq!(sections(), 1);
    txn.index_logs(40 + SECTION_BLOCKS_MAX, logs(41).iter())
        .unwrap();
    assert_eq!(sections(), 2);
    let topic = |n: u64| of_topic(0, &B256::from(alloy_primitives::U256::from(n)));
    for (wanted, block) in [(7_500, 7), (35_001, 35), (41_000, 40 + SECTION_BLOCKS_MAX)] {
        let query = LogQuery {
            groups: vec![vec![topic(wanted)]],
        };
        assert_eq!(found(&txn, &query, 0, u64::MAX), [block]);
        assert_eq!(found(&txn, &query, block + 1, u64::MAX), [0; 0]);
        assert_eq!(found(&txn, &query, 0, block - 1), [0; 0]);
    }
    // Too many alternatives for the sections there are: the answer is cut.
    let mut alternatives = vec![[0; FINGERPRINT_SIZE_BYTES]; PROBES_MAX];
    alternatives[0] = of_address(&Address::ZERO);
    let query = LogQuery {
        groups: vec![alternatives],
    };
    let mut blocks = BTreeSet::new();
    let visit = |number| {
        blocks.insert(number);
        Ok::<_, StoreError>(())
    };
    let searched_to = txn.blocks_with_logs(&query, 0, u64::MAX, visit).unwrap();
    assert_eq!(searched_to, 32);
    assert_eq!(blocks, (1..=32).collect());
}
