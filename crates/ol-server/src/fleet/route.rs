//! Which worker a request goes to. Pure.

use ol_types::{B256, keccak256};

/// How much more than its part of the load a worker may have before the next
/// one in the order is taken: 1 + 1/4.
const BOUND_QUARTERS: u128 = 5;

/// What routing looks at in a worker that can take a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Candidate {
    /// Which worker it is.
    pub(super) worker: usize,
    /// Requests it runs.
    pub(super) n_running: usize,
    /// Requests it can run at once; more than it runs.
    pub(super) n_slots: usize,
}

/// How strongly an adapter is drawn to a worker: each adapter has an order of
/// its own over all workers, and a worker that comes or goes moves only the
/// adapters that are drawn to it most.
///
/// # Source
/// Rendezvous hashing: Thaler and Ravishankar, "Using name-based mappings to
/// increase hit rates", 1998.
pub(super) fn affinity(worker: &str, adapter: B256) -> u64 {
    let hash = keccak256([adapter.as_slice(), worker.as_bytes()].concat());
    u64::from_be_bytes(*hash.first_chunk().expect("a hash has eight bytes"))
}

/// The worker to take: of the candidates in `order`, the first whose load stays
/// within its part of all load and a quarter. Requests for one adapter so stay
/// together until it is too popular for one worker.
///
/// `n_running` and `n_slots` are those of all workers that can be used, full
/// ones too.
///
/// # Source
/// Mirrokni, Thorup and Zadimoghaddam, "Consistent hashing with bounded loads",
/// arXiv:1608.01350; parts here are by the workers' slots.
pub(super) fn choose(order: &[Candidate], n_running: usize, n_slots: usize) -> Option<usize> {
    let total = n_running as u128 + 1;
    let is_within = |candidate: &&Candidate| {
        // n < ceil(5/4 · total · slots / all slots), in whole numbers.
        let part = BOUND_QUARTERS * total * candidate.n_slots as u128;
        (candidate.n_running as u128) < part.div_ceil(4 * (n_slots as u128).max(1))
    };
    let chosen = order.iter().find(is_within);
    // Every part is taken only where full workers hold more than theirs.
    chosen.or_else(|| least_loaded(order)).map(|c| c.worker)
}

/// The candidate with the most room for its size; of equals the first.
pub(super) fn least_loaded(candidates: &[Candidate]) -> Option<&Candidate> {
    candidates.iter().reduce(|best, candidate| {
        let (a, b) = (
            candidate.n_running as u128 * best.n_slots as u128,
            best.n_running as u128 * candidate.n_slots as u128,
        );
        if a < b { candidate } else { best }
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn adapter(n: u32) -> B256 {
        keccak256(n.to_be_bytes())
    }

    fn order(workers: &[&str], adapter: B256) -> Vec<usize> {
        let mut order: Vec<usize> = (0..workers.len()).collect();
        order.sort_by_key(|&worker| std::cmp::Reverse(affinity(workers[worker], adapter)));
        order
    }

    #[test]
    fn adapters_spread_evenly_and_stay_when_a_worker_goes() {
        let workers = ["a:1", "b:1", "c:1", "d:1"];
        let mut n_by_worker = BTreeMap::new();
        for n in 0..4_000 {
            let order = order(&workers, adapter(n));
            *n_by_worker.entry(order[0]).or_insert(0_u32) += 1;
            // Without worker 3 the others keep their order.
            let fewer = self::order(&workers[..3], adapter(n));
            let expected: Vec<usize> = order.into_iter().filter(|&w| w != 3).collect();
            assert_eq!(fewer, expected);
        }
        for (worker, n) in n_by_worker {
            assert!((900..1_100).contains(&n), "worker {worker} has {n}");
        }
    }

    #[test]
    fn a_popular_adapter_overflows_to_the_next_in_its_order() {
        let slots = 8;
        let mut running = [0_usize; 4];
        for _ in 0..slots * 4 {
            let order: Vec<Candidate> = (0..4)
                .filter(|&worker| running[worker] < slots)
                .map(|worker| Candidate {
                    worker,
                    n_running: running[worker],
                    n_slots: slots,
                })
                .collect();
            let n_running: usize = running.iter().sum();
            let worker = choose(&order, n_running, slots * 4).unwrap();
            running[worker] += 1;
            let bound = (5 * (n_running + 1)).div_ceil(16);
            assert!(running[worker] <= bound.max(1), "{running:?}");
        }
        assert_eq!(running, [slots; 4], "every slot is used before any refusal");
    }

    proptest! {
        #[test]
        fn whoever_has_room_is_used(
            loads in prop::collection::vec((0_usize..20, 1_usize..20), 1..20),
        ) {
            let all: Vec<Candidate> = loads
                .iter()
                .enumerate()
                .map(|(worker, &(n_running, n_slots))| Candidate { worker, n_running: n_running.min(n_slots), n_slots })
                .collect();
            let n_running = all.iter().map(|c| c.n_running).sum();
            let n_slots = all.iter().map(|c| c.n_slots).sum();
            let order: Vec<Candidate> =
                all.iter().copied().filter(|c| c.n_running < c.n_slots).collect();
            let chosen = choose(&order, n_running, n_slots);
            prop_assert_eq!(chosen.is_some(), !order.is_empty());
            if let Some(worker) = chosen {
                prop_assert!(order.iter().any(|c| c.worker == worker));
            }
        }
    }
}
