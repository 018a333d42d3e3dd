//! The table against a simple model, and the store under real threads.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::adapters::table::Answer;

#[derive(Debug, Clone)]
enum Op {
    SetName(usize, usize, bool),
    DropName(usize),
    Resolve(usize),
    Poll(usize),
    DropRef(usize),
    DropLease(usize),
    /// Starts a load.
    Start,
    /// Ends one, well or not.
    End(usize, bool),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        2 => (0_usize..5, 0_usize..7, any::<bool>()).prop_map(|(n, v, p)| Op::SetName(n, v, p)),
        1 => (0_usize..5).prop_map(Op::DropName),
        4 => (0_usize..5).prop_map(Op::Resolve),
        6 => any::<usize>().prop_map(Op::Poll),
        2 => any::<usize>().prop_map(Op::DropRef),
        3 => any::<usize>().prop_map(Op::DropLease),
        4 => Just(Op::Start),
        4 => (any::<usize>(), prop::bool::weighted(0.8)).prop_map(|(i, ok)| Op::End(i, ok)),
    ];
    prop::collection::vec(op, 1..120)
}

struct Reference {
    version: Arc<Version>,
    ticket: u64,
}

fn end(table: &mut Table, job: &Job, is_good: bool, lora: &Arc<Lora>) {
    let outcome = if is_good {
        let loaded = Loaded {
            lora: Arc::clone(lora),
            device: None,
        };
        Ok((loaded, job.version.size_bytes))
    } else {
        Err(AdapterError::Defect)
    };
    let mut after = After::default();
    table.finish(job, outcome, 0.0, 0.0, &mut after);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Names are what was set last, budgets hold, what is leased is there, what
    /// nothing refers to is gone, and whoever can be served is served.
    #[test]
    fn any_history_of_the_table_keeps_its_promises(ops in ops()) {
        const BUDGET: u64 = 10;
        let lora = Arc::new(lora(1, 1));
        let versions: Vec<Arc<Version>> = (0..7_u8).map(|i| {
            let size_bytes = u64::from(i) + 1;
            let origin = Origin::Source(Scripted::of(&lora));
            let mut version = Version::of(&lora, [size_bytes, 0], 0, origin);
            version.hash = B256::repeat_byte(i);
            Arc::new(version)
        }).collect();
        let mut table = Table::default();
        table.tiers[HOST].budget_bytes = BUDGET;
        let mut names: BTreeMap<usize, usize> = BTreeMap::new();
        let (mut refs, mut leases, mut jobs) = (Vec::<Reference>::new(), Vec::new(), Vec::new());
        let mut after = After::default();
        let pick = |i: usize, n: usize| (n > 0).then(|| i % n);
        for op in ops {
            match op {
                Op::SetName(name, version, is_pinned) => {
                    let key: Arc<str> = name.to_string().into();
                    let old = table.names.get(&key).filter(|old| old.is_pinned).map(|old| old.hash);
                    if !is_pinned || table.can_pin(&versions[version], old) {
                        table.set_name(&key, &versions[version], is_pinned, &mut after);
                        names.insert(name, version);
                    }
                }
                Op::DropName(name) => {
                    let was_there = table.drop_name(&name.to_string(), &mut after);
                    prop_assert_eq!(was_there, names.remove(&name).is_some());
                }
                Op::Resolve(name) => {
                    if let Some(version) = names.get(&name) {
                        let version = Arc::clone(&versions[*version]);
                        table.add_ref(&version);
                        refs.push(Reference { version, ticket: 0 });
                    }
                }
                Op::Poll(i) => if let Some(i) = pick(i, refs.len()) {
                    let Reference { version, ticket } = &mut refs[i];
                    if let Answer::Leased(_) = table.poll(version, ticket, Waker::noop(), 0.0) {
                        leases.push(version.hash);
                    }
                },
                Op::DropRef(i) => if let Some(i) = pick(i, refs.len()) {
                    let gone = refs.swap_remove(i);
                    table.drop_ref(gone.version.hash, gone.ticket, &mut after);
                },
                Op::DropLease(i) => if let Some(i) = pick(i, leases.len()) {
                    table.drop_lease(leases.swap_remove(i), &mut after);
                },
                Op::Start => jobs.extend(table.next_job(&mut after)),
                Op::End(i, is_good) => if let Some(i) = pick(i, jobs.len()) {
                    end(&mut table, &jobs.swap_remove(i), is_good, &lora);
                },
            }
            table.check();
            for hash in &leases {
                prop_assert!(table.lora(*hash).is_some(), "a leased version is there");
            }
            for (name, version) in &names {
                let entry = &table.names[name.to_string().as_str()];
                prop_assert_eq!(entry.hash, versions[*version].hash);
            }
            prop_assert_eq!(table.names.len(), names.len());
        }
        // Everybody is served in the end, in any order of asking.
        for job in jobs.drain(..) {
            end(&mut table, &job, true, &lora);
        }
        for hash in leases.drain(..) {
            table.drop_lease(hash, &mut after);
        }
        let mut left = refs;
        while !left.is_empty() {
            let before = left.len();
            left.retain_mut(|Reference { version, ticket }| {
                match table.poll(version, ticket, Waker::noop(), 0.0) {
                    Answer::Leased(_) => table.drop_lease(version.hash, &mut after),
                    Answer::Failed(error) => {
                        assert!(matches!(error, AdapterError::Overloaded { .. }), "{error}");
                    }
                    Answer::Pending => return true,
                }
                table.drop_ref(version.hash, *ticket, &mut after);
                false
            });
            let job = table.next_job(&mut after);
            prop_assert!(left.len() < before || job.is_some(), "nobody gets on");
            if let Some(job) = job {
                end(&mut table, &job, true, &lora);
            }
        }
        for name in names.into_keys() {
            table.drop_name(&name.to_string(), &mut after);
        }
        table.check();
        prop_assert!(table.slots.is_empty());
        prop_assert_eq!(table.tiers[HOST].used_bytes, 0);
    }
}

/// Many threads register, replace, unload, resolve, wait and give up, with room
/// for two: everybody gets the version that was resolved, and at the end nothing
/// is left.
#[test]
fn threads_get_the_version_they_resolved() {
    const N_NAMES: u64 = 4;
    let mut fixture = Fixture::new(2);
    fixture.options.n_loaders = 4;
    let store = fixture.open();
    let loras: Vec<Lora> = (0..6).map(|seed| lora(4, seed)).collect();
    let sources: Vec<_> = loras.iter().map(Scripted::of).collect();
    for name in 0..N_NAMES {
        let source = sources[usize::try_from(name).unwrap()].clone();
        store
            .register_from(&format!("n{name}"), source, PLAIN)
            .unwrap();
    }
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let (store, sources) = (&store, &sources);
            scope.spawn(move || {
                let mut random = ol_model::Random::new(thread);
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "a small number"
                )]
                let mut below = |n: u32| (random.uniform() * f64::from(n)) as usize;
                for _ in 0..300 {
                    let name = format!("n{}", below(4));
                    match below(10) {
                        0 => {
                            let source = sources[below(6)].clone();
                            match store.register_from(&name, source, REPLACE) {
                                Ok(_) | Err(AdapterError::Busy) => {}
                                Err(error) => panic!("{error}"),
                            }
                        }
                        1 => drop(store.unload(&name)),
                        2 => drop(store.resolve(&name).map(|r| is_pending(&r))),
                        3 => {
                            let parts = [(name.as_str(), 0.5), ("n0", 0.25)];
                            if let Ok(sum) = store.resolve_weighted(&parts) {
                                is_pending(&sum);
                            }
                        }
                        _ => {
                            if let Ok(reference) = store.resolve(&name) {
                                let leased = lease(&reference).unwrap();
                                assert_eq!(leased.hash(), reference.hash());
                            }
                        }
                    }
                    store.shared.lock().table.check();
                }
            });
        }
    });
    for name in store.names() {
        store.unload(&name).unwrap();
    }
    let stats = store.stats();
    assert_eq!((stats.n_names, stats.n_waiting), (0, 0));
}
