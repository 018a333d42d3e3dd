//! Bad adapters, places that are off limits, and storage that fails.

use std::os::unix::fs::symlink;
use std::time::Duration;

use super::*;

/// Every way in which a file may be bad, with a part of the reason.
#[test]
fn a_bad_adapter_is_refused_with_the_reason_and_changes_nothing() {
    let fixture = Fixture::new(4);
    let store = fixture.open();
    fixture.write("good", &lora(4, 1));
    let good = store.register("legal", "good", PLAIN).unwrap();
    let AdapterFiles::Peft { config, weights } = files(&lora(4, 2)) else {
        panic!("these are a directory's");
    };
    let other_base = {
        let other = ModelConfig {
            hidden_size: 32,
            head_dim: 16,
            ..model()
        };
        Lora::init(&other, LoraConfig::all_linear(4), 1)
            .unwrap()
            .to_bytes("b")
    };
    let replaced = |from: &str, to: &str| {
        let text = std::str::from_utf8(&config).unwrap();
        assert!(text.contains(from), "{text}");
        text.replace(from, to).into_bytes()
    };
    let at_end = |bytes: &[u8]| {
        let mut bad = weights.to_vec();
        let at = bad.len() - bytes.len();
        bad[at..].copy_from_slice(bytes);
        bad
    };
    let with_length = |length: u64| {
        let mut bad = weights.to_vec();
        bad[..8].copy_from_slice(&length.to_le_bytes());
        bad
    };
    let (same, tensors) = (|| config.to_vec(), || weights.to_vec());
    let cases: Vec<(&str, Vec<u8>, Vec<u8>)> = vec![
        (
            "the file holds",
            same(),
            weights[..weights.len() - 1].to_vec(),
        ),
        ("hold no header", same(), Vec::new()),
        ("its header says", same(), with_length(u64::MAX)),
        ("its header", same(), with_length(9)),
        ("element", same(), at_end(&f32::NAN.to_le_bytes())),
        ("element", same(), at_end(&f32::INFINITY.to_le_bytes())),
        ("tensor", other_base.0, other_base.1),
        ("adapter_config.json", b"{".to_vec(), tensors()),
        ("rank 0", replaced("\"r\": 4", "\"r\": 0"), tensors()),
        ("rank 257", replaced("\"r\": 4", "\"r\": 257"), tensors()),
        ("tensor", replaced("\"r\": 4", "\"r\": 8"), tensors()),
        ("IA3", replaced("LORA", "IA3"), tensors()),
    ];
    for (reason, config, weights) in cases {
        write(
            &fixture.root().join("bad"),
            &AdapterFiles::Peft {
                config: config.into(),
                weights: weights.into(),
            },
        );
        let error = store.register("legal", "bad", REPLACE).unwrap_err();
        assert!(matches!(error, AdapterError::Refused { .. }), "{error:?}");
        assert!(error.to_string().contains(reason), "{reason}: {error}");
        assert_eq!(store.resolve("legal").unwrap().hash(), good.hash());
    }
    assert_eq!(store.stats().n_versions, 1);
    assert!(lease(&good).is_ok());
}

#[test]
fn a_bad_gguf_file_is_refused_with_the_reason_and_changes_nothing() {
    let fixture = Fixture::new(4);
    let store = fixture.open();
    let file = fixture.root().join("a.gguf");
    let put = |bytes: &[u8]| std::fs::write(&file, bytes).unwrap();
    let whole = gguf(&lora(4, 1));
    put(&whole);
    let good = store.register("legal", "a.gguf", PLAIN).unwrap();
    let renamed = |from: &str, to: &str| {
        let mut bytes = whole.to_vec();
        let at = bytes.windows(from.len()).position(|w| w == from.as_bytes());
        let at = at.unwrap_or_else(|| panic!("{from} is in the file"));
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        bytes
    };
    let mut not_a_number = whole.to_vec();
    let at = not_a_number.len() - 4;
    not_a_number[at..].copy_from_slice(&f32::NAN.to_le_bytes());
    for (reason, bytes) in [
        ("but the file has", whole[..whole.len() - 1].to_vec()),
        ("not a readable GGUF file", Vec::new()),
        ("not a readable GGUF file", b"{}".to_vec()),
        // A base model, for one.
        ("general.type", renamed("adapter", "modeler")),
        ("is missing beside its lora_b", renamed("blk.0", "blk.9")),
        ("is NaN", not_a_number),
    ] {
        put(&bytes);
        let error = store.register("legal", "a.gguf", REPLACE).unwrap_err();
        assert!(matches!(error, AdapterError::Refused { .. }), "{error:?}");
        assert!(error.to_string().contains(reason), "{reason}: {error}");
        assert_eq!(store.resolve("legal").unwrap().hash(), good.hash());
    }
    assert_eq!(store.stats().n_versions, 1);
    assert!(lease(&good).is_ok());
    // A link to a file that is elsewhere.
    let outside = fixture.folder.path().join("outside.gguf");
    std::fs::write(&outside, &whole).unwrap();
    symlink(&outside, fixture.root().join("link.gguf")).unwrap();
    let error = store.register("link", "link.gguf", PLAIN).unwrap_err();
    assert!(matches!(error, AdapterError::Location { .. }), "{error:?}");
}

#[test]
fn a_gguf_file_is_the_adapter_that_its_directory_is() {
    let mut fixture = Fixture::new(1);
    let file = fixture.root().join("a.gguf");
    std::fs::write(&file, gguf(&lora(4, 1))).unwrap();
    fixture.write("b", &lora(4, 2));
    let store = fixture.open();
    let a = store.register("a", "a.gguf", PLAIN).unwrap();
    assert_eq!(a.hash(), lora(4, 1).hash());
    let location = store.list()[0].location.clone().unwrap();
    assert!(location.ends_with("a.gguf"), "{location}");
    // Out of memory and in again: from the store's folder, for the file is gone.
    std::fs::remove_file(&file).unwrap();
    let b = store.register("b", "b", PLAIN).unwrap();
    drop(lease(&b).unwrap());
    assert_eq!(lease(&a).unwrap().hash(), a.hash());
    assert!(store.stats().host.n_evictions > 0);
    // What an earlier process left is compared with the file, and used.
    std::fs::write(&file, gguf(&lora(4, 1))).unwrap();
    drop((a, b, store));
    let store = fixture.open();
    let a = store.register("a", "a.gguf", PLAIN).unwrap();
    assert_eq!(store.stats().disk.n_versions, 2);
    // It may not have become another one since.
    std::fs::write(&file, gguf(&lora(4, 3))).unwrap();
    let kept = fixture.folder.path().join("store");
    std::fs::remove_dir_all(&kept).unwrap();
    let b = store.register("b", "b", PLAIN).unwrap();
    drop(lease(&b).unwrap());
    fixture.clock.advance(Duration::from_secs(60));
    let error = lease(&a).unwrap_err();
    assert!(matches!(error, AdapterError::Changed { .. }), "{error:?}");
    drop((a, b, store));
    // Longer than a file may be.
    fixture.options.file_size_bytes_max = 100;
    let store = fixture.open();
    let error = store.register("a", "a.gguf", PLAIN).unwrap_err();
    assert!(matches!(error, AdapterError::TooLarge { .. }), "{error:?}");
}

#[test]
fn nothing_outside_of_the_roots_is_read() {
    let fixture = Fixture::new(4);
    let store = fixture.open();
    let outside = fixture.folder.path().join("outside");
    write(&outside, &files(&lora(4, 1)));
    fixture.write("good", &lora(4, 1));
    let root = fixture.root();
    symlink(&outside, root.join("link")).unwrap();
    symlink("good", root.join("inside")).unwrap();
    // A directory below the root whose weights are elsewhere.
    fixture.write("split", &lora(4, 1));
    let weights = root.join("split/adapter_model.safetensors");
    std::fs::remove_file(&weights).unwrap();
    symlink(outside.join("adapter_model.safetensors"), &weights).unwrap();
    let absolute = outside.to_str().unwrap().to_owned();
    for bad in [
        "../outside",
        "good/../../outside",
        "link",
        &absolute,
        "/etc",
        "split",
        "absent",
        "",
    ] {
        let error = store.register("a", bad, PLAIN).unwrap_err();
        assert!(
            matches!(
                error,
                AdapterError::Location { .. } | AdapterError::Missing { .. }
            ),
            "{bad}: {error:?}"
        );
        assert!(store.names().is_empty());
    }
    // A pipe is not waited for.
    fixture.write("pipe", &lora(4, 1));
    let pipe = root.join("pipe/adapter_config.json");
    std::fs::remove_file(&pipe).unwrap();
    let made = std::process::Command::new("mkfifo")
        .arg(&pipe)
        .status()
        .unwrap();
    assert!(made.success());
    let error = store.register("a", "pipe", PLAIN).unwrap_err();
    assert!(error.to_string().contains("is not a file"), "{error}");
    for good in [
        "good",
        "inside",
        "./good/../good",
        root.join("good").to_str().unwrap(),
    ] {
        store.register("a", good, REPLACE).unwrap();
    }
}

#[test]
fn a_damaged_copy_is_read_again_from_its_source() {
    let fixture = Fixture::new(1);
    let store = fixture.open();
    let source = Scripted::of(&lora(4, 1));
    let reference = store.register_from("a", source.clone(), PLAIN).unwrap();
    let fill = store
        .register_from("b", Scripted::of(&lora(4, 2)), PLAIN)
        .unwrap();
    let hex = format!("{:x}", reference.hash());
    let place = fixture
        .folder
        .path()
        .join("store")
        .join(&hex[..2])
        .join(&hex[2..]);
    let weights = place.join("adapter_model.safetensors");
    let whole = std::fs::read(&weights).unwrap();
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let damages: [Option<&[u8]>; 3] = [Some(&flipped), Some(&whole[..100]), None];
    for (n, damage) in damages.into_iter().enumerate() {
        drop(lease(&fill).unwrap());
        match damage {
            Some(bytes) => std::fs::write(&weights, bytes).unwrap(),
            None => std::fs::remove_dir_all(&place).unwrap(),
        }
        assert_eq!(lease(&reference).unwrap().hash(), lora(4, 1).hash());
        assert_eq!(source.n_reads(), n + 2);
        assert_eq!(std::fs::read(&weights).unwrap(), whole);
    }
}

#[test]
fn what_an_earlier_process_left_is_compared_before_it_is_used() {
    let fixture = Fixture::new(1);
    let store = fixture.open();
    let error = AdapterStore::open(
        &model(),
        fixture.options.clone(),
        AdapterComponents::new(fixture.clock.clone()),
    )
    .unwrap_err();
    assert!(matches!(error, AdapterError::Start { .. }), "{error}");
    for (name, seed) in [("a", 1), ("b", 2)] {
        store
            .register_from(name, Scripted::of(&lora(4, seed)), PLAIN)
            .unwrap();
    }
    let hex = format!("{:x}", lora(4, 1).hash());
    let folder = fixture.folder.path().join("store");
    let weights = folder
        .join(&hex[..2])
        .join(&hex[2..])
        .join("adapter_model.safetensors");
    drop(store);
    std::fs::write(&weights, "half").unwrap();
    std::fs::create_dir(folder.join("7.tmp")).unwrap();
    let store = fixture.open();
    assert_eq!(store.stats().disk.n_versions, 2);
    assert!(!folder.join("7.tmp").exists());
    for (name, seed) in [("a", 1), ("b", 2)] {
        let source = Scripted::of(&lora(4, seed));
        store.register_from(name, source.clone(), PLAIN).unwrap();
        assert_eq!(
            lease(&store.resolve(name).unwrap()).unwrap().hash(),
            lora(4, seed).hash()
        );
        assert_eq!(source.n_reads(), 1);
    }
    assert_eq!(
        std::fs::read(&weights).unwrap(),
        *files(&lora(4, 1)).weights()
    );
}

#[test]
fn the_folder_keeps_to_its_budget() {
    let mut fixture = Fixture::new(1);
    fixture.options.disk_budget_bytes = 2 * files(&lora(4, 0)).size_bytes() + 100;
    let store = fixture.open();
    let sources: Vec<_> = (0..3).map(|seed| Scripted::of(&lora(4, seed))).collect();
    for (seed, source) in sources.iter().enumerate() {
        store
            .register_from(&format!("a{seed}"), source.clone(), PLAIN)
            .unwrap();
    }
    let stats = store.stats().disk;
    assert_eq!((stats.n_versions, stats.n_evictions), (2, 1));
    // The one that was evicted comes from its source again.
    drop(lease(&store.resolve("a1").unwrap()).unwrap());
    assert!(lease(&store.resolve("a0").unwrap()).is_ok() && store.stats().disk.n_versions == 2);
    assert_eq!(sources.iter().map(|s| s.n_reads()).sum::<usize>(), 4);
}

#[test]
fn a_full_disk_costs_speed_and_nothing_else() {
    let fixture = Fixture::new(1);
    let store = fixture.open();
    let source = Scripted::of(&lora(4, 1));
    // Where its directory would go there is a file.
    let hex = format!("{:x}", lora(4, 1).hash());
    std::fs::write(fixture.folder.path().join("store").join(&hex[..2]), "").unwrap();
    store.register_from("a", source.clone(), PLAIN).unwrap();
    store
        .register_from("b", Scripted::of(&lora(4, 2)), PLAIN)
        .unwrap();
    for _ in 0..2 {
        for (name, seed) in [("b", 2), ("a", 1)] {
            let leased = lease(&store.resolve(name).unwrap()).unwrap();
            assert_eq!(leased.hash(), lora(4, seed).hash());
        }
    }
    let stats = store.stats();
    assert_eq!(stats.n_disk_failures, source.n_reads() as u64);
    assert_eq!(stats.disk.n_versions, 1);
}

#[test]
fn a_source_that_vanished_or_changed_is_an_error_and_never_another_adapter() {
    let mut fixture = Fixture::new(1);
    fixture.options.dir = None;
    let store = fixture.open();
    for (name, seed) in [("a", 1), ("b", 2)] {
        fixture.write(name, &lora(4, seed));
        store.register(name, name, PLAIN).unwrap();
    }
    let [a, b] = ["a", "b"].map(|name| store.resolve(name).unwrap());
    drop(lease(&b).unwrap());
    fixture.write("a", &lora(4, 3));
    let error = lease(&a).unwrap_err();
    assert!(matches!(error, AdapterError::Changed { .. }), "{error}");
    std::fs::remove_dir_all(fixture.root().join("a")).unwrap();
    // For a while the failure is remembered, and the disk left alone.
    let failures = store.stats().n_load_failures;
    assert_eq!(lease(&a).unwrap_err(), error);
    assert_eq!(store.stats().n_load_failures, failures);
    fixture.clock.advance(Duration::from_secs(6));
    let error = lease(&a).unwrap_err();
    assert!(matches!(error, AdapterError::Missing { .. }), "{error}");
    assert_eq!(store.stats().n_load_failures, failures + 1);
    // Others are not touched, and it comes back when its files do.
    assert!(lease(&b).is_ok());
    fixture.write("a", &lora(4, 1));
    fixture.clock.advance(Duration::from_secs(6));
    assert_eq!(lease(&a).unwrap().hash(), lora(4, 1).hash());
    // Registering it again forgets the failure at once.
    drop(lease(&b).unwrap());
    std::fs::remove_dir_all(fixture.root().join("a")).unwrap();
    assert!(lease(&a).is_err());
    fixture.write("a", &lora(4, 1));
    store.register("a", "a", REPLACE).unwrap();
    assert!(lease(&a).is_ok());
}

#[test]
fn a_slow_source_does_not_stall_the_others() {
    let mut fixture = Fixture::new(2);
    fixture.options.dir = None;
    let store = fixture.open();
    let (open, gate) = channel::<()>();
    let gate = Mutex::new(gate);
    let is_first = std::sync::atomic::AtomicBool::new(true);
    let slow_files = files(&lora(4, 1));
    let slow = Scripted::new(move || {
        if !is_first.swap(false, Ordering::SeqCst) {
            gate.lock().unwrap().recv().unwrap();
        }
        Ok(slow_files.clone())
    });
    store.register_from("slow", slow, PLAIN).unwrap();
    for seed in 2..5 {
        let source = Scripted::of(&lora(4, seed));
        store
            .register_from(&format!("a{seed}"), source, PLAIN)
            .unwrap();
    }
    // Out of memory.
    for name in ["a2", "a3", "a2", "a3"] {
        drop(lease(&store.resolve(name).unwrap()).unwrap());
    }
    let slow = store.resolve("slow").unwrap();
    let (waker, bell) = bell();
    assert!(slow.poll_lease(&waker).is_pending());
    for seed in [2, 3, 4, 2, 3, 4] {
        let leased = lease(&store.resolve(&format!("a{seed}")).unwrap()).unwrap();
        assert_eq!(leased.hash(), lora(4, seed).hash());
    }
    assert!(bell.try_recv().is_err());
    open.send(()).unwrap();
    bell.recv().unwrap();
    assert!(matches!(slow.poll_lease(&waker), Poll::Ready(Ok(_))));
}

#[test]
fn a_source_that_panics_is_a_failed_load() {
    let mut fixture = Fixture::new(1);
    fixture.options.dir = None;
    fixture.options.n_loaders = 1;
    let store = fixture.open();
    let is_first = std::sync::atomic::AtomicBool::new(true);
    let good = files(&lora(4, 1));
    let source = Scripted::new(move || {
        assert!(is_first.swap(false, Ordering::SeqCst), "a defect");
        Ok(good.clone())
    });
    store.register_from("a", source, PLAIN).unwrap();
    let b = store
        .register_from("b", Scripted::of(&lora(4, 2)), PLAIN)
        .unwrap();
    drop(lease(&b).unwrap());
    let a = store.resolve("a").unwrap();
    assert_eq!(lease(&a).unwrap_err(), AdapterError::Defect);
    // The only loader is still there.
    let c = store
        .register_from("c", Scripted::of(&lora(4, 3)), PLAIN)
        .unwrap();
    assert!(lease(&c).is_ok());
}

#[test]
fn registering_is_bounded_and_closing_ends_the_waiting() {
    let mut fixture = Fixture::new(1);
    fixture.options.n_loaders = 1;
    let store = fixture.open();
    let (open, gate) = channel::<()>();
    let (entered, is_entered) = channel::<()>();
    let (gate, entered) = (Mutex::new(gate), Mutex::new(entered));
    let slow = Scripted::new(move || {
        entered.lock().unwrap().send(()).unwrap();
        gate.lock().unwrap().recv().unwrap();
        Ok(files(&lora(4, 1)))
    });
    std::thread::scope(|scope| {
        let registering = scope.spawn(|| store.register_from("slow", slow, PLAIN));
        is_entered.recv().unwrap();
        let busy = store.register_from("b", Scripted::of(&lora(4, 2)), PLAIN);
        assert_eq!(busy.unwrap_err(), AdapterError::Busy);
        open.send(()).unwrap();
        registering.join().unwrap().unwrap();
    });
    let b = store
        .register_from("b", Scripted::of(&lora(4, 2)), PLAIN)
        .unwrap();
    let held = lease(&b).unwrap();
    let waiting = store.resolve("slow").unwrap();
    let (waker, bell) = bell();
    assert!(waiting.poll_lease(&waker).is_pending());
    drop(store);
    bell.recv().unwrap();
    let Poll::Ready(Err(error)) = waiting.poll_lease(&waker) else {
        panic!("the store is closed");
    };
    assert_eq!(error, AdapterError::Closed);
    assert_eq!(held.hash(), lora(4, 2).hash());
}
