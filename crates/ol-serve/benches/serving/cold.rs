//! How long it takes from asking for an adapter that is not in memory to having
//! it, and what it takes there.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::task::{Poll, Wake, Waker};

use ol_model::{Lora, ModelConfig};
use ol_runtime::SystemClock;
use ol_serve::{AdapterComponents, AdapterRef, AdapterStore, AdapterStoreOptions, RegisterOptions};
use tempfile::TempDir;

use crate::fixture::{base_dir, random_adapter};
use crate::peer::Peer;
use crate::{Report, float, percentile, timed};

/// Loads of each adapter.
const TIMES: usize = 200;
const TIMES_OF_PEER: usize = 10;

struct Bell(Sender<()>);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        // Nobody listens once the load is over.
        let _ = self.0.send(());
    }
}

pub(crate) fn bench(report: &mut Report) {
    let json =
        std::fs::read(base_dir().join("config.json")).expect("the base is in the repository");
    let small = ModelConfig::from_json(&json).expect("the base is valid");
    let large = ModelConfig {
        vocab_size: 8192,
        hidden_size: 1024,
        intermediate_size: 2816,
        num_hidden_layers: 8,
        num_attention_heads: 16,
        num_key_value_heads: 4,
        head_dim: 64,
        ..small.clone()
    };
    for (base, config) in [("the default base", small), ("107M parameters", large)] {
        for rank in [8, 64] {
            let load = format!("cold load p99, r={rank}, all linear, {base}");
            let slot = format!("memory of an adapter, r={rank}, all linear, {base}");
            if report.wants(&load) || report.wants(&slot) {
                one(report, &config, rank, [&load, &slot]);
            }
        }
    }
}

fn one(report: &mut Report, config: &ModelConfig, rank: usize, [load, slot]: [&str; 2]) {
    let folder = TempDir::new().expect("there is a temporary directory");
    let names = ["a", "b"];
    let mut loras: Vec<Lora> = Vec::new();
    for (seed, name) in names.into_iter().enumerate() {
        let lora = random_adapter(config, rank, seed as u64, true);
        lora.save(&folder.path().join("root").join(name), "base")
            .expect("the temporary directory can be written");
        loras.push(lora);
    }
    let file = folder.path().join("root/a/adapter_model.safetensors");
    let file_size_bytes = std::fs::metadata(file).expect("it was just written").len();
    let slot_size_bytes = loras[0].resident_size_bytes();
    drop(loras);
    // Room for one: every lease of the other is a load.
    let options = AdapterStoreOptions {
        host_budget_bytes: slot_size_bytes as u64 * 3 / 2,
        dir: Some(folder.path().join("store")),
        roots: vec![folder.path().join("root")],
        file_size_bytes_max: u64::MAX,
        ..AdapterStoreOptions::default()
    };
    let components = AdapterComponents::new(Arc::new(SystemClock::new()));
    let store = AdapterStore::open(config, options, components).expect("the folder can be written");
    let adapters = names.map(|name| {
        let registered = store.register(name, name, RegisterOptions::default());
        registered.expect("the adapters are valid")
    });
    let before = store.stats().n_loads;
    let mut times: Vec<f64> = (0..TIMES)
        .map(|at| timed(|| wait(&adapters[(at + 1) % 2])))
        .collect();
    // The first leases may find what registering left.
    times.drain(..2);
    assert!(store.stats().n_loads - before >= TIMES as u64 - 1);
    let p99 = 1e3 * percentile(&times, 0.99);
    let p50 = 1e3 * percentile(&times, 0.5);
    eprintln!("{load}: p50 {p50:.3} ms, p99 {p99:.3} ms");
    let peer_ms = peer_load_ms(config, folder.path(), rank);
    match peer_ms {
        Some((name, ms)) => report.add(load, "ms", &[p99], &[ms], &name, None),
        None => report.add(load, "ms", &[p99], &[10.0], "the aim", None),
    }
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    report.add(
        slot,
        "MiB",
        &[mib(float(slot_size_bytes))],
        &[mib(float(
            usize::try_from(file_size_bytes).unwrap_or(usize::MAX),
        ))],
        "its file",
        None,
    );
}

/// A load by PEFT of the same file, in milliseconds: the mean of a few.
fn peer_load_ms(config: &ModelConfig, folder: &Path, rank: usize) -> Option<(String, f64)> {
    // Making a model of that size for the peer would take longer than the race.
    if config.hidden_size > 512 || rank > 64 {
        return None;
    }
    let dir = folder.join("model");
    std::fs::create_dir_all(dir.join("adapters")).expect("the directory can be written");
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(base_dir().join(name), dir.join(name)).expect("the base can be copied");
    }
    std::os::unix::fs::symlink(folder.join("root/a"), dir.join("adapters/0"))
        .expect("the directory can be written");
    let mut peer = Peer::start("serving", crate::races::PYTHON, "torch", &dir)?;
    peer.ask("adapters 0 1");
    let (seconds, n) = peer.ask(&format!("cold {} {TIMES_OF_PEER}", crate::THREADS));
    Some((peer.name.clone(), 1e3 * seconds / n))
}

fn wait(adapter: &AdapterRef) {
    let (sender, bell) = channel();
    let waker = Waker::from(Arc::new(Bell(sender)));
    loop {
        match adapter.poll_lease(&waker) {
            Poll::Ready(lease) => {
                lease.expect("it was registered");
                return;
            }
            Poll::Pending => bell.recv().expect("the store wakes who waits"),
        }
    }
}
