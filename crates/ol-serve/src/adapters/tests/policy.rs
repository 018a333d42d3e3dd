//! The order of eviction against least-recently-used, on traces.

use std::collections::BTreeMap;

use ol_model::Random;

use super::*;

const N: usize = 2000;

/// Popular adapters, and how often each is asked for; `n_between` requests
/// later others are popular.
fn trace(exponent: f64, n: usize, n_between: usize) -> Vec<usize> {
    let mut random = Random::new(7);
    let mut sums = Vec::with_capacity(N);
    let mut sum = 0.0;
    for rank in 1..=N {
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let weight = (rank as f64).powf(-exponent);
        sum += weight;
        sums.push(sum);
    }
    let mut who: Vec<usize> = (0..N).collect();
    (0..n)
        .map(|at| {
            if at % n_between == 0 {
                for i in (1..N).rev() {
                    #[expect(
                        clippy::cast_possible_truncation,
                        clippy::cast_sign_loss,
                        clippy::cast_precision_loss,
                        reason = "an index"
                    )]
                    let j = (random.uniform() * (i + 1) as f64) as usize;
                    who.swap(i, j.min(i));
                }
            }
            let drawn = random.uniform() * sum;
            who[sums.partition_point(|end| *end < drawn).min(N - 1)]
        })
        .collect()
}

fn size_bytes(adapter: usize) -> u64 {
    [8, 16, 32, 64][adapter % 4] << 14
}

/// Misses and bytes loaded.
fn by_store(trace: &[usize], budget_bytes: u64) -> (u64, u64) {
    let mut table = Table::default();
    table.tiers[HOST].budget_bytes = budget_bytes;
    let lora = Arc::new(lora(1, 1));
    let versions: Vec<Arc<Version>> = (0..N)
        .map(|i| {
            let size_bytes = size_bytes(i);
            let origin = Origin::Source(Scripted::of(&lora));
            let mut version = Version::of(&lora, [size_bytes, 0], size_bytes, origin);
            version.hash = ol_types::keccak256(i.to_be_bytes());
            Arc::new(version)
        })
        .collect();
    let mut after = After::default();
    for (i, version) in versions.iter().enumerate() {
        table.set_name(&format!("{i}").into(), version, false, &mut after);
    }
    for &i in trace {
        let (version, mut ticket) = (&versions[i], 0);
        while !matches!(
            table.poll(version, &mut ticket, Waker::noop(), 0.0),
            table::Answer::Leased(_)
        ) {
            let job = table.next_job(&mut after).unwrap();
            let lora = Arc::clone(&lora);
            let loaded = Loaded { lora, device: None };
            let outcome = Ok((loaded, version.size_bytes));
            table.finish(&job, outcome, 0.0, 0.0, &mut after);
        }
        table.drop_lease(version.hash, &mut after);
    }
    table.check();
    (table.counts.n_misses, table.counts.loaded_bytes)
}

fn by_lru(trace: &[usize], budget_bytes: u64) -> (u64, u64) {
    let (mut by_use, mut used_at) = (BTreeMap::new(), BTreeMap::new());
    let (mut used_bytes, mut misses, mut loaded) = (0, 0, 0);
    for (at, &i) in trace.iter().enumerate() {
        if let Some(old) = used_at.insert(i, at) {
            by_use.remove(&old);
        } else {
            misses += 1;
            loaded += size_bytes(i);
            used_bytes += size_bytes(i);
            while used_bytes > budget_bytes {
                let (_, victim) = by_use.pop_first().unwrap();
                used_at.remove(&victim);
                used_bytes -= size_bytes(victim);
            }
        }
        by_use.insert(at, i);
    }
    (misses, loaded)
}

/// Where a tenth and a half of all adapters fit, with popularity that stays and
/// that changes at once: fewer misses than least-recently-used, and no more
/// bytes.
#[test]
fn the_order_of_eviction_beats_least_recently_used() {
    let all_bytes: u64 = (0..N).map(size_bytes).sum();
    for (exponent, n_between, part, misses_percent) in [
        (1.0, usize::MAX, 10, 80),
        (1.0, usize::MAX, 2, 85),
        (1.0, 10_000, 10, 95),
        (0.8, 10_000, 2, 95),
        (0.0, usize::MAX, 10, 95),
    ] {
        let trace = trace(exponent, 30_000, n_between);
        let (misses, bytes) = by_store(&trace, all_bytes / part);
        let (lru_misses, lru_bytes) = by_lru(&trace, all_bytes / part);
        let what = format!("{exponent} {part}: {misses}/{lru_misses} {bytes}/{lru_bytes}");
        println!("{what}");
        assert!(misses * 100 <= lru_misses * misses_percent, "{what}");
        assert!(bytes * 100 <= lru_bytes * 102, "{what}");
    }
}
