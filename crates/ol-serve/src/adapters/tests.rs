//! The store against files, hostile and failing ones, and what it promises.

mod faults;
mod interleavings;
mod policy;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::task::{Poll, Wake, Waker};

use bytes::Bytes;
use object_store::memory::InMemory;
use ol_model::{Dtype, Lora, LoraConfig, ModelConfig, Projection};
use ol_runtime::{ManualClock, Objects};
use tempfile::TempDir;

use super::*;

pub(super) fn model() -> ModelConfig {
    ModelConfig {
        vocab_size: 64,
        hidden_size: 16,
        intermediate_size: 24,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 8,
        max_position_embeddings: 64,
        ..ModelConfig::default_base()
    }
}

pub(super) fn lora_of(config: LoraConfig, seed: u64) -> Lora {
    let fresh = Lora::init(&model(), config.clone(), seed).unwrap();
    let mut random = ol_model::Random::new(seed);
    #[expect(clippy::cast_possible_truncation, reason = "any numbers will do")]
    let params = (0..fresh.n_params()).map(|_| random.uniform() as f32 - 0.5);
    Lora::from_parameters(&model(), config, params.collect()).unwrap()
}

pub(super) fn lora(rank: usize, seed: u64) -> Lora {
    lora_of(LoraConfig::all_linear(rank), seed)
}

pub(super) fn files(lora: &Lora) -> AdapterFiles {
    let (config, weights) = lora.to_bytes("base");
    AdapterFiles::Peft {
        config: config.into(),
        weights: weights.into(),
    }
}

/// The same in the form of llama.cpp.
pub(super) fn gguf(lora: &Lora) -> Bytes {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("adapter.gguf");
    lora.save_gguf(&path, &model(), Dtype::F32).unwrap();
    std::fs::read(path).unwrap().into()
}

/// A store of adapters of rank 4, with folders, and a clock that stands still.
pub(super) struct Fixture {
    pub(super) folder: TempDir,
    pub(super) clock: Arc<ManualClock>,
    pub(super) options: AdapterStoreOptions,
}

impl Fixture {
    /// Room for `n` adapters in memory.
    pub(super) fn new(n: u64) -> Self {
        let folder = TempDir::new().unwrap();
        std::fs::create_dir(folder.path().join("root")).unwrap();
        let options = AdapterStoreOptions {
            host_budget_bytes: n * lora(4, 0).resident_size_bytes() as u64,
            dir: Some(folder.path().join("store")),
            roots: vec![folder.path().join("root")],
            ..AdapterStoreOptions::default()
        };
        Self {
            folder,
            clock: Arc::new(ManualClock::new(0)),
            options,
        }
    }

    /// The threads of a store that was dropped may hold its folder a moment
    /// longer.
    pub(super) fn open(&self) -> AdapterStore {
        loop {
            let components = AdapterComponents::new(self.clock.clone());
            match AdapterStore::open(&model(), self.options.clone(), components) {
                Ok(store) => return store,
                Err(_) => std::thread::yield_now(),
            }
        }
    }

    pub(super) fn root(&self) -> std::path::PathBuf {
        self.folder.path().join("root")
    }

    /// Writes an adapter below the root.
    pub(super) fn write(&self, name: &str, lora: &Lora) {
        write(&self.root().join(name), &files(lora));
    }
}

pub(super) fn write(dir: &Path, files: &AdapterFiles) {
    std::fs::create_dir_all(dir).unwrap();
    for (name, bytes) in files.by_name() {
        std::fs::write(dir.join(name), bytes).unwrap();
    }
}

pub(super) const PLAIN: RegisterOptions = RegisterOptions {
    is_pinned: false,
    may_replace: false,
};
pub(super) const REPLACE: RegisterOptions = RegisterOptions {
    is_pinned: false,
    may_replace: true,
};
pub(super) const PIN: RegisterOptions = RegisterOptions {
    is_pinned: true,
    may_replace: false,
};

/// Sends a message when it is woken.
struct Bell(Sender<()>);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        let _ = self.0.send(());
    }
}

pub(super) fn bell() -> (Waker, Receiver<()>) {
    let (sender, receiver) = channel();
    (Waker::from(Arc::new(Bell(sender))), receiver)
}

/// Waits for a lease.
pub(super) fn lease(reference: &AdapterRef) -> Result<AdapterLease, AdapterError> {
    let (waker, bell) = bell();
    loop {
        match reference.poll_lease(&waker) {
            Poll::Ready(lease) => return lease,
            Poll::Pending => bell.recv().unwrap(),
        }
    }
}

pub(super) fn is_pending(reference: &AdapterRef) -> bool {
    reference.poll_lease(Waker::noop()).is_pending()
}

/// A source whose files and manners the test decides.
pub(super) struct Scripted {
    pub(super) n_reads: AtomicUsize,
    pub(super) read: Box<dyn Fn() -> Result<AdapterFiles, AdapterError> + Send + Sync>,
}

impl Scripted {
    pub(super) fn new(
        read: impl Fn() -> Result<AdapterFiles, AdapterError> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            n_reads: AtomicUsize::new(0),
            read: Box::new(read),
        })
    }

    pub(super) fn of(lora: &Lora) -> Arc<Self> {
        let files = files(lora);
        Self::new(move || Ok(files.clone()))
    }

    pub(super) fn n_reads(&self) -> usize {
        self.n_reads.load(Ordering::SeqCst)
    }
}

impl std::fmt::Display for Scripted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a scripted source")
    }
}

impl AdapterSource for Scripted {
    fn read(&self, _: u64) -> Result<AdapterFiles, AdapterError> {
        self.n_reads.fetch_add(1, Ordering::SeqCst);
        (self.read)()
    }
}

#[test]
fn a_version_is_evicted_and_comes_back_the_same() {
    let fixture = Fixture::new(2);
    let store = fixture.open();
    let loras: Vec<Lora> = (0..4).map(|seed| lora(4, seed)).collect();
    for (i, lora) in loras.iter().enumerate() {
        let name = format!("a{i}");
        fixture.write(&name, lora);
        let registered = store.register(&name, &name, PLAIN).unwrap();
        assert_eq!(registered.hash(), lora.hash());
        assert_eq!((registered.rank_max(), registered.is_sum()), (4, false));
        assert!(registered.fits(&model()));
    }
    for round in 0..3 {
        for (i, lora) in loras.iter().enumerate() {
            let leased = lease(&store.resolve(&format!("a{i}")).unwrap()).unwrap();
            assert_eq!(leased.hash(), lora.hash(), "round {round}");
        }
    }
    let stats = store.stats();
    assert_eq!((stats.n_names, stats.n_versions), (4, 4));
    assert_eq!((stats.host.n_versions, stats.disk.n_versions), (2, 4));
    assert_eq!(stats.host.used_bytes, stats.host.budget_bytes);
    assert_eq!(stats.n_hits + stats.n_misses, 12);
    assert_eq!(stats.n_misses, stats.n_loads);
    assert_eq!(stats.loads_by_s.iter().sum::<u64>(), stats.n_loads);
    assert!(stats.host.n_evictions >= stats.n_loads, "{stats:?}");
    assert_eq!(store.names(), ["a0", "a1", "a2", "a3"]);
    let list = store.list();
    assert_eq!(list[1].hash, loras[1].hash());
    assert!(list[1].location.as_ref().unwrap().ends_with("a1"));
    assert_eq!(list.iter().filter(|info| info.is_resident).count(), 2);
}

#[test]
fn a_replaced_name_serves_the_old_version_to_who_resolved_it() {
    let fixture = Fixture::new(1);
    let store = fixture.open();
    let (old, new) = (lora(4, 1), lora(4, 2));
    fixture.write("a", &old);
    let before = store.register("legal", "a", PLAIN).unwrap();
    fixture.write("a", &new);
    assert_eq!(
        store.register("legal", "a", PLAIN).unwrap_err(),
        AdapterError::Taken {
            name: "legal".into()
        }
    );
    let after = store.register("legal", "a", REPLACE).unwrap();
    // The old one is not in its source any more, but in the store's folder.
    for _ in 0..3 {
        assert_eq!(lease(&before).unwrap().hash(), old.hash());
        assert_eq!(lease(&after).unwrap().hash(), new.hash());
    }
    assert_eq!(store.stats().n_versions, 2);
    let held = lease(&before).unwrap();
    drop(before);
    assert_eq!(held.hash(), old.hash());
    assert_eq!(store.stats().n_versions, 2);
    drop(held);
    assert_eq!(store.stats().n_versions, 1);
    store.unload("legal").unwrap();
    assert_eq!(
        store.resolve("legal").unwrap_err(),
        AdapterError::Unknown {
            name: "legal".into()
        }
    );
    assert_eq!(lease(&after).unwrap().hash(), new.hash());
    drop(after);
    let stats = store.stats();
    assert_eq!((stats.n_versions, stats.host.used_bytes), (0, 0));
}

#[test]
fn equal_adapters_under_two_names_are_one_version() {
    let fixture = Fixture::new(2);
    let store = fixture.open();
    for name in ["a", "b"] {
        fixture.write(name, &lora(4, 1));
        store.register(name, name, PLAIN).unwrap();
    }
    assert_eq!(store.stats().n_versions, 1);
    store.unload("a").unwrap();
    // The source of the name that is left.
    std::fs::remove_dir_all(fixture.root().join("a")).unwrap();
    let leased = lease(&store.resolve("b").unwrap()).unwrap();
    assert_eq!(leased.hash(), lora(4, 1).hash());
}

#[test]
fn what_is_leased_or_pinned_stays_and_who_finds_no_room_waits() {
    let fixture = Fixture::new(2);
    let store = fixture.open();
    for seed in 0..4 {
        let name = format!("a{seed}");
        fixture.write(&name, &lora(4, seed));
        let options = if seed == 0 { PIN } else { PLAIN };
        store.register(&name, &name, options).unwrap();
    }
    let [one, two] = ["a1", "a2"].map(|name| store.resolve(name).unwrap());
    let held = lease(&one).unwrap();
    let (waker, bell) = bell();
    assert!(two.poll_lease(&waker).is_pending());
    assert_eq!(store.stats().n_waiting, 1);
    // The other half of the memory is pinned.
    assert!(lease(&store.resolve("a0").unwrap()).is_ok());
    assert!(bell.try_recv().is_err());
    drop(held);
    bell.recv().unwrap();
    let Poll::Ready(Ok(two)) = two.poll_lease(&waker) else {
        panic!("it was woken for a lease");
    };
    assert_eq!(two.hash(), lora(4, 2).hash());
    // A request that goes away takes its wish back.
    let three = store.resolve("a3").unwrap();
    assert!(is_pending(&three));
    drop(three);
    assert_eq!(store.stats().n_waiting, 0);
    // Pins that would fill the memory for good are refused, and who cannot fit
    // beside the pins is told at once.
    fixture.write("b", &lora(8, 9));
    let pin_too_much = store.register("b", "b", PIN).unwrap_err();
    assert!(matches!(pin_too_much, AdapterError::Overloaded { .. }));
    let wide = store.register("b", "b", PLAIN).unwrap();
    assert!(matches!(lease(&wide), Err(AdapterError::Overloaded { .. })));
    store.unload("a0").unwrap();
    drop(two);
    assert!(lease(&wide).is_ok());
    // Larger than all memory.
    fixture.write("c", &lora(12, 9));
    let error = store.register("c", "c", PLAIN).unwrap_err();
    assert!(matches!(error, AdapterError::TooLarge { .. }), "{error}");
}

#[test]
fn one_load_answers_all_who_wait() {
    let store = Fixture::new(1).open();
    let source = Scripted::of(&lora(4, 1));
    store.register_from("a", source.clone(), PLAIN).unwrap();
    store
        .register_from("b", Scripted::of(&lora(4, 2)), PLAIN)
        .unwrap();
    drop(lease(&store.resolve("b").unwrap()).unwrap());
    let loads = store.stats().n_loads;
    let held = lease(&store.resolve("b").unwrap()).unwrap();
    let waiting: Vec<_> = (0..8).map(|_| store.resolve("a").unwrap()).collect();
    assert!(waiting.iter().all(is_pending));
    drop(held);
    for reference in &waiting {
        assert_eq!(lease(reference).unwrap().hash(), lora(4, 1).hash());
    }
    assert_eq!(store.stats().n_loads, loads + 1);
    // From the store's folder: the source was read to register it.
    assert_eq!(source.n_reads(), 1);
}

#[test]
fn limits_have_their_errors() {
    let mut fixture = Fixture::new(8);
    fixture.options.rank_max = 4;
    fixture.options.n_names_max = 2;
    fixture.options.file_size_bytes_max = files(&lora(4, 1)).weights().len() as u64;
    fixture.options.target_modules = Some(Projection::ALL[..7].to_vec());
    let store = fixture.open();
    let narrow = LoraConfig {
        target_modules: vec![Projection::Q],
        ..LoraConfig::all_linear(5)
    };
    fixture.write("rank", &lora_of(narrow, 1));
    let error = store.register("a", "rank", PLAIN).unwrap_err();
    assert!(
        error.to_string().contains("rank 5 is above the limit of 4"),
        "{error}"
    );
    fixture.write("size", &lora(8, 1));
    let error = store.register("a", "size", PLAIN).unwrap_err();
    assert!(matches!(error, AdapterError::TooLarge { .. }), "{error}");
    for bad in ["", "a\n", &"a".repeat(257)] {
        fixture.write("a", &lora(4, 1));
        assert_eq!(
            store.register(bad, "a", PLAIN).unwrap_err(),
            AdapterError::Name
        );
        assert_eq!(
            store.insert(bad, lora(4, 1).into()).unwrap_err(),
            AdapterError::Name
        );
    }
    store.register("a", "a", PLAIN).unwrap();
    store.register("b", "a", PLAIN).unwrap();
    let full = AdapterError::TooMany { n_max: 2 };
    assert_eq!(store.register("c", "a", PLAIN).unwrap_err(), full);
    store.register("b", "a", REPLACE).unwrap();
    let other = ModelConfig {
        hidden_size: 32,
        head_dim: 16,
        ..model()
    };
    let misfit = Lora::init(&other, LoraConfig::all_linear(2), 1).unwrap();
    assert_eq!(
        store.insert("b", misfit.into()).unwrap_err(),
        AdapterError::Misfit
    );
    drop(store);
    fixture.options.target_modules = Some(vec![Projection::Q]);
    let error = fixture.open().register("a", "a", PLAIN).unwrap_err();
    assert!(error.to_string().contains("is not allowed"), "{error}");
}

#[test]
fn adapters_given_in_memory_stay_there_within_the_budget() {
    let fixture = Fixture::new(2);
    let store = fixture.open();
    let given = Arc::new(lora(4, 1));
    store.insert("a", Arc::clone(&given)).unwrap();
    store.insert("b", lora(4, 2).into()).unwrap();
    let error = store.insert("c", lora(4, 3).into()).unwrap_err();
    assert!(matches!(error, AdapterError::Overloaded { .. }), "{error}");
    // Replacing one leaves room for it once nobody uses the old one.
    let old = store.resolve("a").unwrap();
    let error = store.insert("a", lora(4, 3).into()).unwrap_err();
    assert!(matches!(error, AdapterError::Overloaded { .. }), "{error}");
    assert_eq!(lease(&old).unwrap().hash(), given.hash());
    drop(old);
    store.unload("a").unwrap();
    store.insert("a", lora(4, 3).into()).unwrap();
    assert_eq!(store.list()[0].location, None);
    let outside = AdapterRef::resident(Arc::clone(&given));
    assert_eq!(lease(&outside).unwrap().hash(), given.hash());
    assert_eq!(outside.hash(), given.hash());
}

#[test]
fn stores_and_the_registry_are_sources_like_any_other() {
    let fixture = Fixture::new(4);
    let memory = InMemory::new();
    let peft = files(&lora(4, 1));
    let gguf = gguf(&lora(4, 2));
    let legal = |name: &str| format!("team/legal/{name}");
    let all = peft.by_name().into_iter().map(|(n, b)| (legal(n), b));
    for (path, bytes) in all.chain([("team/tax.gguf".to_owned(), &gguf)]) {
        let path = object_store::path::Path::from(path);
        let put = object_store::ObjectStoreExt::put(&memory, &path, bytes.clone().into());
        ol_runtime::block_on(put).unwrap();
    }
    let mut components = AdapterComponents::new(fixture.clock.clone());
    let bucket = "s3://bucket/".to_owned();
    components.stores.insert(bucket, Arc::new(memory));
    let store = AdapterStore::open(&model(), fixture.options, components).unwrap();
    let found = store
        .register("a", "s3://bucket/team/legal/", PLAIN)
        .unwrap();
    assert_eq!(found.hash(), lora(4, 1).hash());
    let found = store.register("tax", "s3://bucket/team/tax.gguf", PLAIN);
    assert_eq!(found.unwrap().hash(), lora(4, 2).hash());
    for (bad, is_outside) in [
        ("s3://bucket/team/../x", true),
        ("s3://bucketteam/legal", true),
        ("s3://other/team/legal", true),
        ("s3://bucket/team/other", false),
        ("s3://bucket/team/other.gguf", false),
    ] {
        let error = store.register("b", bad, PLAIN).unwrap_err();
        match error {
            AdapterError::Location { .. } => assert!(is_outside, "{bad}"),
            AdapterError::Missing { .. } => assert!(!is_outside, "{bad}"),
            error => panic!("{bad}: {error}"),
        }
    }
    let objects = Objects::memory();
    let AdapterFiles::Peft { config, weights } = peft else {
        panic!("these are a directory's");
    };
    let source = ObjectsSource {
        config: objects.put(config).unwrap(),
        weights: objects.put(weights).unwrap(),
        objects,
    };
    let found = store
        .register_from("o", Arc::new(source.clone()), PLAIN)
        .unwrap();
    assert_eq!(found.hash(), lora(4, 1).hash());
    let gone = ObjectsSource {
        weights: B256::ZERO,
        ..source
    };
    let error = store.register_from("p", Arc::new(gone), PLAIN).unwrap_err();
    assert!(matches!(error, AdapterError::Missing { .. }), "{error}");
}

/// A device that counts its copies.
struct Counting(AtomicUsize);

impl AdapterDevice for Counting {
    fn size_bytes(&self, lora: &Lora) -> u64 {
        lora.n_params() as u64
    }

    fn upload(&self, lora: &Lora) -> Result<Arc<dyn Any + Send + Sync>, String> {
        if lora.config().rank == 8 {
            return Err("out of memory".into());
        }
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(Arc::new(lora.hash()))
    }
}

#[test]
fn a_device_is_a_tier_of_its_own() {
    let mut fixture = Fixture::new(3);
    fixture.options.device_budget_bytes = 2 * lora(4, 0).n_params() as u64;
    let device = Arc::new(Counting(AtomicUsize::new(0)));
    let mut components = AdapterComponents::new(fixture.clock.clone());
    components.device = Some(device.clone());
    let store = AdapterStore::open(&model(), fixture.options, components).unwrap();
    for seed in 0..4 {
        let source = Scripted::of(&lora(4, seed));
        store
            .register_from(&format!("a{seed}"), source, PLAIN)
            .unwrap();
    }
    for seed in [0, 1, 2, 3, 0, 1] {
        let leased = lease(&store.resolve(&format!("a{seed}")).unwrap()).unwrap();
        let copy = leased.device().unwrap().downcast_ref::<B256>();
        assert_eq!(copy, Some(&lora(4, seed).hash()));
    }
    let stats = store.stats();
    assert_eq!((stats.host.n_versions, stats.device.n_versions), (3, 2));
    assert_eq!(device.0.load(Ordering::SeqCst) as u64, stats.n_loads);
    assert_eq!(stats.device.n_evictions, stats.n_loads - 2);
    let narrow = LoraConfig {
        target_modules: vec![Projection::Q],
        ..LoraConfig::all_linear(8)
    };
    store
        .register_from("w", Scripted::of(&lora_of(narrow, 1)), PLAIN)
        .unwrap();
    let error = lease(&store.resolve("w").unwrap()).unwrap_err();
    assert!(error.to_string().contains("out of memory"), "{error}");
}

/// `w s B A` of every module, as dense matrices.
fn deltas(lora: &Lora, weight: f64, into: &mut BTreeMap<String, Vec<f64>>) {
    for block in lora.blocks() {
        let (rank, d_in) = block.rows_a;
        let (a, b) = (
            &lora.parameters()[block.range_a()],
            &lora.parameters()[block.range_b()],
        );
        let sum = into.entry(block.module.clone());
        let sum = sum.or_insert_with(|| vec![0.0; d_in * block.rows_b.0]);
        for (at, sum) in sum.iter_mut().enumerate() {
            let (row, column) = (at / d_in, at % d_in);
            let product: f64 = (0..rank)
                .map(|r| f64::from(b[row * rank + r]) * f64::from(a[r * d_in + column]))
                .sum();
            *sum += weight * f64::from(block.scale) * product;
        }
    }
}

#[test]
fn a_weighted_sum_is_the_sum_of_its_parts() {
    let store = Fixture::new(12).open();
    let parts = [
        lora(4, 1),
        lora_of(
            LoraConfig {
                target_modules: vec![Projection::Q, Projection::Down],
                module_pattern: Some(r".*\.1\..*".into()),
                use_rslora: true,
                ..LoraConfig::all_linear(3)
            },
            2,
        ),
        lora_of(
            LoraConfig {
                rank_pattern: [("q_proj".to_owned(), 1)].into(),
                alpha: 5.0,
                ..LoraConfig::all_linear(2)
            },
            3,
        ),
    ];
    for (i, part) in parts.iter().enumerate() {
        store
            .register_from(&format!("p{i}"), Scripted::of(part), PLAIN)
            .unwrap();
    }
    let weights = [0.5, -1.25, 2.0];
    let sum = store
        .resolve_weighted(&[("p0", 0.5), ("p1", -1.25), ("p2", 2.0)])
        .unwrap();
    assert!(sum.is_sum());
    assert_eq!(sum.rank_max(), 9);
    let leased = lease(&sum).unwrap();
    let (mut want, mut got) = (BTreeMap::new(), BTreeMap::new());
    for (part, weight) in parts.iter().zip(weights) {
        deltas(part, weight, &mut want);
    }
    deltas(&leased, 1.0, &mut got);
    assert!(want.keys().eq(got.keys()));
    for (module, want) in &want {
        for (want, got) in want.iter().zip(&got[module]) {
            assert!(
                (want - got).abs() < 1e-6 * (1.0 + want.abs()),
                "{module}: {want} {got}"
            );
        }
    }
    // The same parts in any order are the same version; other weights are not.
    let again = [("p2", 1.0), ("p0", 0.5), ("p1", -1.25), ("p2", 1.0)];
    assert_eq!(store.resolve_weighted(&again).unwrap().hash(), sum.hash());
    let other = [("p0", 0.5), ("p1", -1.25)];
    assert_ne!(store.resolve_weighted(&other).unwrap().hash(), sum.hash());
    let alone = store.resolve_weighted(&[("p0", 1.0), ("p1", 0.0)]).unwrap();
    assert_eq!((alone.hash(), alone.is_sum()), (parts[0].hash(), false));
    // It is kept, and has nothing to do with what its names stand for later.
    drop(leased);
    let loads = store.stats().n_loads;
    store
        .register_from("p0", Scripted::of(&lora(4, 9)), REPLACE)
        .unwrap();
    assert!(lease(&sum).is_ok());
    assert_eq!(store.stats().n_loads, loads);
    let after = store.resolve_weighted(&again).unwrap();
    assert_ne!(after.hash(), sum.hash());
    assert!(lease(&after).is_ok());
}

#[test]
fn sums_that_make_no_sense_are_refused() {
    let mut fixture = Fixture::new(400);
    fixture.options.n_names_max = 400;
    let store = fixture.open();
    store
        .register_from("a", Scripted::of(&lora(200, 1)), PLAIN)
        .unwrap();
    store
        .register_from("b", Scripted::of(&lora(100, 2)), PLAIN)
        .unwrap();
    let dora = LoraConfig {
        use_dora: true,
        ..LoraConfig::all_linear(2)
    };
    let base = ol_model::Model::random(model(), 1).unwrap();
    let dora = base
        .fresh_adapter(&ol_model::Pool::new(1), dora, 1)
        .unwrap();
    store
        .register_from("d", Scripted::of(&dora), PLAIN)
        .unwrap();
    let many = ["a"; 9].map(|name| (name, 0.1));
    let cases: [(&[(&str, f32)], &str); 8] = [
        (&[("a", 1.0), ("b", 1.0)], "ranks add up to 300"),
        (&[("d", 0.5)], "DoRA"),
        (&[("a", f32::NAN)], "is not a number from"),
        (&[("a", 101.0)], "is not a number from"),
        (&[("a", 60.0), ("a", 60.0)], "is not a number from"),
        (&[("a", 0.0)], "no part has a weight"),
        (&[], "no part has a weight"),
        (&many, "more than 8"),
    ];
    for (parts, reason) in cases {
        let error = store.resolve_weighted(parts).unwrap_err();
        assert!(error.to_string().contains(reason), "{parts:?}: {error}");
    }
    let error = store.resolve_weighted(&[("x", 1.0)]).unwrap_err();
    assert!(matches!(error, AdapterError::Unknown { .. }), "{error}");
}

/// Copies nothing.
struct NoDevice;

impl AdapterDevice for NoDevice {
    fn size_bytes(&self, _: &Lora) -> u64 {
        1
    }

    fn upload(&self, _: &Lora) -> Result<Arc<dyn Any + Send + Sync>, String> {
        Ok(Arc::new(()))
    }
}

/// Found by random histories: the oldest load waited for memory that a version
/// without a source held, and the copy of that version waited for its turn.
#[test]
fn what_only_memory_holds_reaches_its_device_before_older_loads() {
    let mut fixture = Fixture::new(1);
    fixture.options.host_budget_bytes = fixture.options.host_budget_bytes * 3 / 2;
    fixture.write("p", &lora(4, 1));
    let mut components = AdapterComponents::new(fixture.clock.clone());
    components.device = Some(Arc::new(NoDevice));
    let (store, loader) =
        AdapterStore::without_threads(&model(), fixture.options, components).unwrap();
    let in_memory = store.insert("x", Arc::new(lora(4, 2))).unwrap();
    store.register("p", "p", PLAIN).unwrap();
    store.unload("x").unwrap();
    let older = store.resolve("p").unwrap();
    assert!(older.poll_lease(Waker::noop()).is_pending());
    assert!(loader.begin().is_none(), "there is no room");
    assert!(in_memory.poll_lease(Waker::noop()).is_pending());
    drop(
        loader
            .begin()
            .expect("its copy needs no memory of the host"),
    );
    assert!(in_memory.poll_lease(Waker::noop()).is_ready());
    drop(in_memory);
    drop(loader.begin().expect("there is room now"));
    assert!(older.poll_lease(Waker::noop()).is_ready());
}

/// Found by random histories: who waited when a pin took the memory was never
/// told, and waited on.
#[test]
fn a_pin_that_leaves_no_room_answers_who_waits() {
    let fixture = Fixture::new(1);
    fixture.write("p", &lora(4, 1));
    fixture.write("q", &lora(4, 2));
    let components = AdapterComponents::new(fixture.clock.clone());
    let (store, loader) =
        AdapterStore::without_threads(&model(), fixture.options, components).unwrap();
    store.register("p", "p", PLAIN).unwrap();
    let waiting = store.register("q", "q", PLAIN).unwrap();
    let (waker, bell) = bell();
    assert!(waiting.poll_lease(&waker).is_pending());
    store.insert("x", Arc::new(lora(4, 3))).unwrap();
    bell.try_recv().expect("it is told");
    assert!(loader.begin().is_none());
    let Poll::Ready(Err(error)) = waiting.poll_lease(&waker) else {
        panic!("it waits on");
    };
    assert!(matches!(error, AdapterError::Overloaded { .. }), "{error}");
}
